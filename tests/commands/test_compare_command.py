"""Tests of `repsim compare`: plans, memory limits, several processes, interruption, and results that are extended."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result

from repsim.commands.terminal import SCREEN
from repsim.engine.comparison import Comparison, compare
from repsim.results.files import open_result
from repsim.runtime.memory import parse_size
from repsim.stores.writer import write_store
from tests.commands import calls
from tests.scripts.test_durability import torture  # noqa: F401 - a fixture

SMALL_UNITS = (
    "import os; from repsim import cli; from repsim.runtime import tuning; small = tuning.using(panel=64); "
    "small.__enter__(); rank = int(os.environ.get('RANK', 0)); "
    "ballast = b'x' * (2 * 10**8 * rank); cli.main()"
)


run = partial(calls.run, "compare")
succeed = partial(calls.succeed, "compare")
fail = partial(calls.fail, "compare")


def make(folder: Path, name: str, n: int = 50, widths: tuple[int, ...] = (4, 6)) -> Path:
    rng = np.random.default_rng(ord(name))
    layers = {f"{name}{i}": rng.normal(size=(n, p)).astype(np.float32) for i, p in enumerate(widths)}
    path = folder / f"{name}.h5"
    write_store(path, layers, model=f"net_{name}", source="photos").close()
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    return [make(tmp_path, name) for name in "abc"]


def values(path: Path) -> dict[str, Any]:
    return {str(spec): variable.values.tolist() for spec, variable in open_result(path).data_vars.items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- plans


@pytest.mark.slow
def test_explain_says_the_plan_and_what_it_took(tmp_path: Path, stores: list[Path]) -> None:
    lines = succeed(*stores, "-m", "cka", "-m", "svcca", "--explain").stderr.splitlines()
    with Comparison(stores, None, ["cka", "svcca"]) as planned:
        of_plan = len(planned.plan.lines())
        assert lines[:of_plan] == planned.plan.lines()
    assert re.fullmatch(
        r"predicted: .+ s, [\d.]+ [MG]B of memory at most \(allowed: [\d.]+ GB\), "
        r"at [\d,]+ GFLOP/s in float32 and .*B/s from the stores",
        lines[of_plan],
    )
    assert re.fullmatch(r"took: .+ s, [\d.]+ [MG]B of memory at most", lines[of_plan + 1])


@pytest.mark.slow
def test_a_dry_run_computes_and_writes_nothing(tmp_path: Path, stores: list[Path]) -> None:
    before = names(tmp_path)
    done = succeed(*stores, "-o", tmp_path / "new" / "r.nc", "--dry-run")
    assert done.stdout == ""
    assert done.stderr.startswith("cka: 6 x 6 layers, 50 samples\n")
    assert "predicted: " in done.stderr
    assert "took" not in done.stderr
    assert names(tmp_path) == before
    succeed(*stores, "-o", tmp_path / "r.nc")
    kept = (tmp_path / "r.nc").stat().st_mtime_ns
    assert succeed(*stores, "-o", tmp_path / "r.nc", "--dry-run").stderr == "nothing is left to compute\n"
    assert "svcca: 6 x 6 layers" in succeed(*stores, "-m", "svcca", "-o", tmp_path / "r.nc", "--dry-run").stderr
    assert (tmp_path / "r.nc").stat().st_mtime_ns == kept


# --- many stores, and results that are extended


def test_two_stores_are_sides_and_more_are_all_with_all(stores: list[Path]) -> None:
    arguments = (stores[:2], stores, [*stores[:2], "--all"])
    results = [json.loads(succeed(*words, "--json").stdout) for words in arguments]
    sides = [(result["a"]["models"], result["b"]["models"]) for result in results]
    assert sides == [
        (["net_a"], ["net_b"]),
        (["net_a", "net_b", "net_c"],) * 2,
        (["net_a", "net_b"],) * 2,
    ]
    assert results[1]["a"]["layers"] == ["net_a/a0", "net_a/a1", "net_b/b0", "net_b/b1", "net_c/c0", "net_c/c1"]
    assert results[0]["a"]["layers"] == ["a0", "a1"]
    np.testing.assert_array_equal(results[1]["metrics"]["cka"]["values"], compare(stores)["cka"].values)
    assert results[1]["metrics"]["cka"]["symmetric"] == 1


def test_of_many_models_the_mean_of_the_closest_is_shown(stores: list[Path]) -> None:
    text = succeed(*stores).stdout
    value = compare(stores)["cka"]
    a, b = (value["model_a"].values == f"net_{name}" for name in "ab")
    wanted = value.values[np.ix_(a, b)].max(1).mean()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip().startswith("net_")}
    assert rows["net_a"][:2] == ["-", f"{wanted:.4f}"]
    assert rows["net_b"][1] == "-"


@pytest.mark.slow
def test_a_long_result_is_printed_on_request(tmp_path: Path) -> None:
    long = [make(tmp_path, name, widths=(3,) * 60) for name in "xy"]
    out = tmp_path / "long.nc"
    short = succeed(*long, "-m", "cka", "-m", "svcca", "-o", out).stdout
    assert short.count("\n") <= SCREEN + 2
    assert short.count("rows") == 3  # the titles of both tables, and how to get all
    assert f"repsim inspect {out} --full" in short
    everything = calls.succeed("inspect", str(out), "--full").stdout
    layers = [line.split()[0] for line in everything.splitlines() if line.startswith(" x")]
    assert layers == 2 * [f"x{k}" for k in range(60)]
    assert succeed(*long, "-m", "cka", "-m", "svcca", "--full").stdout == everything
    many = succeed(*long, *[word for name in ("cka", "svcca", "rsa", "procrustes", "cca", "pwcca")
                            for word in ("-m", name)]).stdout  # fmt: skip
    assert many.count("\n") <= SCREEN
    assert re.search("[234] more measures: --full prints them", many)


@pytest.mark.parametrize("measures", [["cka"], ["cka", "svcca", "procrustes", "mutual_knn", "rsa", "cca"]])
def test_a_result_of_many_models_fits_on_a_screen(tmp_path: Path, measures: list[str]) -> None:
    """Both ends of the list of pairs are shown, and it is told which row is of which."""
    many = [make(tmp_path, name, widths=(3,)) for name in "abcdefghijklmnop"]
    done = succeed(*many, *[word for name in measures for word in ("-m", name)], "-o", tmp_path / "r.nc")
    assert len(done.stdout.splitlines()) + len(done.stderr.splitlines()) <= SCREEN
    titles = re.findall(r"(\w+) of 240 ordered pairs of models(; of these [^\n]*)?", " ".join(done.stdout.split()))
    assert titles
    if len(measures) > 1:
        rows = [line.split() for line in done.stdout.splitlines()]
        rows = [row for row in rows if len(row) > 2 and row[0].startswith("net_")]
        assert all("of these the first" in which for _, which in titles)
        assert len(rows) % (2 * len(titles)) == 0


@pytest.mark.slow
def test_a_result_grows(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "r.nc"
    succeed(*stores[:2], "--all", "-o", out)
    first, before = values(out), out.stat().st_mtime_ns
    again = succeed(*stores[:2], "--all", "-o", out)
    assert again.stderr == f"{out} holds all of this already; --overwrite computes it again\n"
    assert "mean over layers of the closest" in again.stdout
    assert out.stat().st_mtime_ns == before
    grown = succeed(*stores, "-m", "cka", "-m", "pwcca", "-o", out, "--explain").stderr
    assert "cka: 2 x 6 layers" in grown
    assert "pwcca: 6 x 6 layers" in grown
    np.testing.assert_array_equal(np.array(values(out)["cka"])[:4, :4], first["cka"])
    np.testing.assert_allclose(values(out)["pwcca"], compare(stores, metrics=["pwcca"])["pwcca"], atol=1e-6)
    assert "which would be lost" in fail(*stores[:2], "--all", "-o", out)
    succeed(*stores[:2], "--all", "-o", out, "--overwrite")
    assert values(out) == first
    assert names(tmp_path) == ["a.h5", "b.h5", "c.h5", "r.nc"]


def test_without_a_metric_a_result_grows_by_those_that_it_has(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "r.nc"
    succeed(*stores[:2], "--all", "-m", "svcca", "-o", out)
    succeed(*stores, "-o", out)
    assert list(values(out)) == ["svcca"]
    assert open_result(out)["svcca"].shape == (6, 6)
    assert list(values_of(succeed(*stores, "--json"))) == ["cka"]


def values_of(result: Result) -> dict[str, Any]:
    return dict(json.loads(result.stdout)["metrics"])


def test_a_result_that_was_rounded_once_says_so_for_ever(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "r.nc"
    succeed(*stores[:2], "--all", "--tf32", "-o", out)
    assert open_result(out).attrs["tf32"] == 1
    succeed(*stores, "-o", out)
    assert open_result(out).attrs["tf32"] == 1
    succeed(*stores, "-o", out, "--overwrite")
    assert open_result(out).attrs["tf32"] == 0


def test_an_error_in_the_middle_leaves_the_earlier_result(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "r.nc"
    succeed(*stores[:2], "--all", "-o", out)
    data = out.read_bytes()
    damaged = stores[2].read_bytes()
    place = damaged.rindex(np.random.default_rng(ord("c")).normal(size=(50, 4)).astype(np.float32).tobytes())
    stores[2].write_bytes(damaged[: place + 99] + bytes([damaged[place + 99] ^ 64]) + damaged[place + 100 :])
    assert "net_c c0@given is damaged in row 6" in fail(*stores, "-o", out)
    assert "net_c c0@given is damaged in row 6" in fail(*stores, "-o", out, "--overwrite")
    write_store(tmp_path / "d.h5", {"x": np.ones((50, 2))}, model="net_d").close()
    assert "no pair of layers has a value" in fail(tmp_path / "d.h5", "-o", out, "--overwrite")
    assert out.read_bytes() == data
    assert names(tmp_path) == ["a.h5", "b.h5", "c.h5", "d.h5", "r.nc"]


# --- memory


@pytest.mark.parametrize("size", ["much", "2 GiBit", "-1GB", "0", "1e"])
def test_a_size_that_is_none(stores: list[Path], size: str) -> None:
    message = fail(*stores, "--memory", size)
    assert message in {
        f"cannot read {size!r} as a size; write 2GiB, or 500MB",
        f"a size has to be positive, got {size!r}",
    }


def amount(text: str) -> str:
    match = re.search(r"takes ([\d.]+ .B) of memory at least", text)
    assert match is not None, text
    return match[1]


@pytest.mark.slow
def test_too_little_memory_says_how_much_is_needed(tmp_path: Path, torture: ModuleType) -> None:  # noqa: F811
    """The reported amount is enough for layers that are larger: the peak of the process stays below it."""
    paths = [make(tmp_path, name, n=4000, widths=(1000, 1000, 1000)) for name in "ab"]
    command = [*torture.REPSIM, "compare", *paths, "-o", tmp_path / "r.nc", "--explain", "--memory"]
    code, out, stderr = torture.run(*command, "1MB")
    assert (code, out, stderr.count("\n")) == (2, "", 1), stderr
    assert names(tmp_path) == ["a.h5", "b.h5"]
    code, _, stderr = torture.run(*command, amount(stderr))
    assert code == 0, stderr
    assert "read again as needed" in stderr
    matches = [re.search(pattern, stderr) for pattern in (r"took: .*, ([\d.]+ .B) of", r"allowed: ([\d.]+ .B)")]
    peak, allowed = (parse_size(match[1]) for match in matches if match is not None)
    assert peak <= allowed
    np.testing.assert_allclose(values(tmp_path / "r.nc")["cka"], compare(paths[0], paths[1])["cka"].values, atol=1e-6)


# --- several processes, and killed processes


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_result(tmp_path: Path, torture: ModuleType) -> None:  # noqa: F811
    """The results are equal to the bit, although the other ranks use more memory and would plan differently."""
    paths = [make(tmp_path, name, n=400, widths=(300, 350)) for name in "abc"]
    driver = tmp_path / "driver.py"
    driver.write_text(SMALL_UNITS)
    command = ["compare", *paths, "-m", "cka", "-m", "svcca", "--memory"]
    code, _, stderr = torture.run(sys.executable, driver, *command, "100GB", "--dry-run")
    predicted = re.search(r"predicted: .*, ([\d.]+ .B) of memory at most", stderr)
    assert predicted is not None, stderr
    enough = parse_size(predicted[1]) + 8 * 10**7
    results: list[xr.Dataset] = []
    for launch in ([sys.executable], torture.torchrun(3)[:-2]):
        out = tmp_path / f"{len(results)}.nc"
        code, printed, stderr = torture.run(*launch, driver, *command, enough, "-o", out)
        assert code == 0, stderr
        assert printed.count("saved") == 1
        results.append(open_result(out))
        assert not out.with_name(f"{out.name}.parts").exists()
    xr.testing.assert_equal(*results)


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
    tuned: Callable[..., None],
) -> None:
    paths = [make(tmp_path, name, n=3000, widths=(20, 30)) for name in "abc"]
    out, parts = tmp_path / "r.nc", tmp_path / "r.nc.parts"
    command = [sys.executable, "-c", SMALL_UNITS, "compare", *paths, "-m", "cka:kernel=rbf,sigma=5.0", "-o", out]
    with torture.Run(command) as one:
        assert torture.wait_until(lambda: len(list(parts.glob("*.part"))) > 30, one), one.end()
        assert one.kill()
    assert not out.exists()
    left = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")}
    assert len(left) > 30
    complete: dict[str, int] = {}

    def record_parts(_: xr.Dataset) -> None:
        complete.update({path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")})

    tuned(panel=64)
    with Comparison(paths, None, ["cka:kernel=rbf,sigma=5.0"]) as planned:
        again = planned.run(parts=parts, save=record_parts)
    assert len(complete) == 47 * 48 // 2  # pairs of panels
    assert len(left) < len(complete)
    assert {name: complete[name] for name in left} == left, "finished parts were computed again"
    assert names(tmp_path) == [
        ".r.nc.lock",
        "a.h5",
        "b.h5",
        "c.h5",
    ]  # removed by the next command
    xr.testing.assert_equal(again, compare(paths, metrics=["cka:kernel=rbf,sigma=5.0"]))


# --- intervals


def test_intervals_are_computed_saved_and_shown(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "result.nc"
    shown = succeed(*stores[:2], "--level", 0.9, "-o", out)
    assert "90 % interval" in shown.stdout
    result = open_result(out)
    expected = compare(stores[0], stores[1], interval=0.9)
    for name in ("cka", "cka.low", "cka.high"):
        np.testing.assert_array_equal(result[name].values, expected[name].values)
    as_json = json.loads(succeed(*stores[:2], "--interval", "--json").stdout)
    assert as_json["metrics"]["cka"]["interval"] == 0.95
    assert "each sample left out" in succeed(*stores[:2], "--interval", "--dry-run").output


def test_intervals_that_cannot_be_computed_are_refused(tmp_path: Path, stores: list[Path]) -> None:
    out = tmp_path / "result.nc"
    assert fail(*stores[:2], "-m", "svcca", "--interval", "-o", out).startswith("no interval for svcca: ")
    assert fail(*stores[:2], "--groups", "folders", "-o", out) == "groups are those of an interval; add --interval"
    assert "are in no folder, so folders make no groups" in fail(*stores[:2], "--interval", "--groups", "folders")
    assert not out.exists()
