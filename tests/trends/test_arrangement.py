"""Bad input: one line that says what is wrong, from Python and on the command line, and nothing is lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import repsim
from repsim.cli import main
from repsim.errors import InvalidInputError, RepsimError
from tests.trends.conftest import Write

rng = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    def written(name: str, axes: dict[str, Any], n: int = 20) -> Path:
        path = tmp_path / f"{name}.h5"
        repsim.write_store(path, {"out": rng.normal(size=(n, 5))}, model=name, axes=axes).close()
        return path

    return written


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "no store has it": ([{"width": 1}, {"width": 2}], {}, "no store has the axis step; they have width"),
    "one lacks it": ([{"step": 1}, {"width": 2}], {}, r"m1.h5 does not say .* axis step \(width=2\)"),
    "no axes at all": ([{"step": 1}, {}], {}, r"m1.h5 does not say where it stands .* \(it has no axes\)"),
    "text": ([{"step": 1}, {"step": "late"}], {}, "m1.h5 has step='late', a text; a series needs numbers"),
    "one place": ([{"step": 3, "run": "a"}, {"step": 3, "run": "b"}], {}, "two values of step or more"),
    "twice": (
        [{"step": 1, "lr": 0.1}, {"step": 1, "lr": 0.2}, {"step": 2, "lr": 0.2}],
        {},
        r"two models stand at step=1: .*m0.h5 \(step=1, lr=0.1\) and .*m1.h5 .*; they differ in lr",
    ),
    "mixed runs": ([{"step": 1, "run": "a"}, {"step": 2}], {}, "1 of 2 models have no run, which tells runs apart"),
    "no such run axis": ([{"step": 1}, {"step": 2}], {"run": "lr"}, "2 of 2 models have no lr"),
    "run is the axis": ([{"step": 1}, {"step": 2}], {"run": "step"}, "runs need another axis"),
    "no such reference": ([{"step": 1}, {"step": 2}], {"reference": "best"}, "'best' is none of these models"),
    "no such reference run": (
        [{"step": 1, "run": "a"}, {"step": 2, "run": "a"}],
        {"reference": "run=b"},
        "no run is named 'b'; there are 'a'",
    ),
    "no such readout": ([{"step": 1}, {"step": 2}], {"readout": "cls"}, "no layer that is read out by cls"),
    "a share of 1": ([{"step": 1}, {"step": 2}], {"settled_at": 1.0}, "settled_at"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(case: str, store: Any, tmp_path: Path) -> None:
    all_axes, keywords, message = CASES[case]
    paths = [store(f"m{k}", axes) for k, axes in enumerate(all_axes)]
    out = tmp_path / "series.nc"
    with pytest.raises((RepsimError, ValueError), match=message):
        repsim.series(paths, out=out, **keywords)
    options = [word for name, value in keywords.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    run = CliRunner().invoke(main, ["series", *map(str, paths), "-o", str(out), *options])
    assert run.exit_code == 2
    assert len(run.stderr.strip().splitlines()) <= 5, "click repeats the usage for a bad option"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_few_samples_two_models_of_one_name_and_no_store(store: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="7 samples are too few for a series"):
        repsim.series([store("a", {"step": 1}, n=7), store("b", {"step": 2}, n=7)])
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "a.h5"
    repsim.write_store(twin, {"out": rng.normal(size=(7, 5))}, model="a", axes={"step": 2}).close()
    with pytest.raises(InvalidInputError, match="are all of a model named 'a'"):
        repsim.series([tmp_path / "a.h5", twin])
    with pytest.raises(InvalidInputError, match="at least two stores"):
        repsim.series([])


def test_an_existing_series_is_not_replaced(write: Write, tmp_path: Path) -> None:
    paths = write(runs=1, steps=(0, 1, 2))
    out = tmp_path / "series.nc"
    repsim.series(paths, out=out)
    before = out.read_bytes()
    with pytest.raises(RepsimError, match="exists"):
        repsim.series(paths, out=out)
    with pytest.raises(InvalidInputError, match="name it .nc"):
        repsim.series(paths, out=paths[0])
    assert out.read_bytes() == before


def test_compressed_readouts_are_refused(tmp_path: Path) -> None:
    stores = [
        repsim.extract(
            "digits_vit.seed0", "digits", tmp_path, limit=64, readout="gram:32", name=f"m{k}", axes={"step": k}
        )
        for k in (1, 2)
    ]
    with pytest.raises(RepsimError, match="compressed readouts"):
        repsim.series(stores)


@pytest.mark.slow
def test_the_command_prints_tables_and_sentences(write: Write, tmp_path: Path) -> None:
    paths = write()
    out = tmp_path / "series.nc"
    run = CliRunner().invoke(main, ["series", *map(str, paths), "-o", str(out)])
    assert run.exit_code == 0, run.output
    assert "6 models of each of 2 runs along step, from 0 to 100" in " ".join(run.stdout.split())
    assert "settled" in run.stdout
    assert f"saved {out}" in run.stdout
    assert repsim.open_series(out).attrs["command"].startswith("repsim")
    as_json = CliRunner().invoke(main, ["series", *map(str, paths), "--json"])
    assert as_json.exit_code == 0
    assert as_json.stdout.startswith("{")
