"""Tests of scripts/bench: timed programs compute correct values, and a missing package gives a one-line error."""

import errno
import importlib
import importlib.machinery
import importlib.util
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from timm.models import ResNet

from repsim.extractors import open_images
from repsim.extractors.timm_models import TimmExtractor
from repsim.stores.store import open_store

MODEL = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench", str(Path(__file__).parents[2] / "scripts" / "bench"))
    spec = importlib.util.spec_from_loader("bench", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# --- comparisons

SMALL = ({"x": 3, "y": 40, "z": 3}, {"v": 30, "w": 9})


@pytest.fixture
def compare(bench: ModuleType) -> ModuleType:
    return importlib.import_module("compare_worker")  # bench has put its folder on the path


@pytest.fixture
def tables(bench: ModuleType) -> ModuleType:
    module: ModuleType = bench.compare_bench
    return module


@pytest.fixture
def sides(compare: ModuleType) -> list[dict[str, Any]]:
    return [compare.activations(widths, 70, seed) for seed, widths in enumerate(SMALL, start=1)]


def quietly(work: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the other packages
        return work()


def job(tables: ModuleType, folder: Path, **settings: Any) -> Any:
    return tables.Job(rounds=1, threads=1, peer_python=sys.executable, folder=folder, **settings)


def cells(report: Any) -> list[list[str]]:
    """Return the cells of every row."""
    return [list(row) for row in zip(*(column.cells for column in report.table.columns), strict=True)]


@pytest.mark.parametrize(
    ("peer", "prepare", "settings"),
    [
        ("torch_cka", "by_torch_cka", {}),
        ("torch_cka", "by_torch_cka", {"metric": "cka:estimator=minibatch,batch=16", "batch": 16}),  # 6 are left out
        ("rsatoolbox", "by_rsatoolbox", {"metric": "cka:estimator=biased"}),
    ],
)
def test_the_peers_compute_what_repsim_computes(
    compare: ModuleType, sides: list[Any], peer: str, prepare: str, settings: dict[str, Any]
) -> None:
    quietly(lambda: pytest.importorskip(peer))
    run = compare.Settings("any", **settings)
    ours = compare.by_repsim(*sides, run)()
    theirs = quietly(getattr(compare, prepare)(*sides, run))
    assert ours.shape == theirs.shape == (3, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours, compare.in_float64(*sides, run)(), atol=1e-6)


def test_reference_values_are_in_float64(compare: ModuleType, sides: list[Any]) -> None:
    """Compare with eq. 5 of Song et al. 2012."""

    def hsic(k: Any, m: Any) -> float:
        n = len(k)
        total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return float(total) / (n * (n - 3))

    def hollow(x: Any) -> Any:
        x = x.astype(np.float64)
        x -= x.mean(0)
        return x @ x.T * (1 - np.eye(len(x)))

    k, m = (hollow(side[name]) for side, name in zip(sides, ("y", "w"), strict=True))
    values = compare.in_float64(*sides, compare.Settings("float64"))()
    assert values[1, 1] == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), abs=1e-12)


def test_permutations_are_the_same_for_all_programs(compare: ModuleType, sides: list[Any]) -> None:
    quietly(lambda: pytest.importorskip("calibrated_similarity"))
    sides = [
        {name: x[:12] for name, x in side.items()} for side in sides
    ]  # few samples, so that debiasing has a large effect
    few, many = (compare.Settings("any", permutations=count) for count in (2, 5))
    ours = compare.by_permuting(*sides, many)()
    theirs = quietly(compare.by_calibrated_similarity(*sides, few))
    assert (ours.shape, theirs.shape) == ((5, 3, 2), (2, 3, 2))
    np.testing.assert_allclose(ours[:2], theirs, atol=1e-5)


def test_reference_values_of_permutations_use_the_first_one(compare: ModuleType, sides: list[Any]) -> None:
    settings = compare.Settings("any", permutations=3)
    exact = compare.in_float64(*sides, settings)()
    np.testing.assert_allclose(compare.by_permuting(*sides, settings)()[0], exact, atol=1e-6)
    assert np.abs(exact - compare.in_float64(*sides, compare.Settings("any"))()).max() > 0.01
    settings = compare.Settings("permuted", samples=32, permutations=2)
    ours, theirs = (compare.CONTENDERS[name](settings)["values"] for name in ("permuted", "float64"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_reference_values_of_leave_one_out_leave_out_the_first_sample(compare: ModuleType) -> None:
    result = compare.CONTENDERS["left out"](compare.Settings("left out", samples=32))
    settings = compare.Settings("left out in float64", samples=32)
    exact = compare.CONTENDERS["left out in float64"](settings)["values"]
    assert np.shape(exact) == (17, 13)
    np.testing.assert_allclose(result["values"], exact, atol=1e-5)
    all_samples = compare.CONTENDERS["float64"](compare.Settings("float64", samples=32))["values"]
    assert np.abs(np.subtract(exact, all_samples)).max() > 1e-3
    assert result["comparison"].keys() == {"seconds", "cpu"}


def test_the_widths_are_those_of_the_models(compare: ModuleType) -> None:
    assert (len(compare.RESNET50), sum(compare.RESNET50.values())) == (17, 64 + 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048)
    assert (len(compare.VIT_B), sum(compare.VIT_B.values())) == (13, 13 * 768)


def test_models_share_the_signal_of_every_sample(compare: ModuleType) -> None:
    """Also in the second block of samples; and the blocks differ from each other."""
    n = compare.RUN + 300
    a, b = (compare.activations({"x": 20}, n, seed)["x"] for seed in (1, 2))
    for rows in (slice(0, 300), slice(compare.RUN, n)):
        value = compare.by_repsim({"a": a[rows]}, {"b": b[rows]}, compare.Settings("any"))()
        assert value > 0.3
    shifted = compare.by_repsim({"a": a[:300]}, {"b": b[compare.RUN :]}, compare.Settings("any"))()
    assert abs(shifted) < 0.1
    wide = compare.activations({"x": 100}, n, 1)["x"]
    assert np.linalg.matrix_rank(wide[:300] - wide[compare.RUN :]) == 100  # with the same noise it would be 64


@pytest.mark.parametrize("peer", ["torch-cka", "rsatoolbox", "calibrated-similarity"])
def test_a_missing_package_gives_the_command_to_install_it(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, peer: str
) -> None:
    monkeypatch.setitem(sys.modules, compare.PEERS[peer], None)
    with pytest.raises(SystemExit, match=rf"{peer} is not installed: pip install -e '\.\[bench\]'"):
        compare.main(compare.Settings(peer))


# --- from stores


def test_stores_hold_what_arrays_hold(compare: ModuleType, tables: ModuleType, tmp_path: Path) -> None:
    n, widths = compare.RUN + 30, {"x": 3, "y": 5}
    (path,) = job(tables, tmp_path).stores({"small": (widths, 7)}, n)
    with open_store(path) as store:
        for name, values in compare.activations(widths, n, 7).items():
            np.testing.assert_array_equal(store[name][:], values)
    before = Path(path).stat().st_mtime_ns
    assert job(tables, tmp_path).stores({"small": (widths, 7)}, n) == [path]
    assert Path(path).stat().st_mtime_ns == before


def test_stores_that_do_not_fit_are_not_started(tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"do not fit into .*; choose another --folder"):
        job(tables, tmp_path).stores({"huge": ({"x": 2**40}, 1)}, 2**20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stores_give_the_values_of_arrays(
    compare: ModuleType, tables: ModuleType, sides: list[Any], tmp_path: Path
) -> None:
    stores = job(tables, tmp_path).stores({f"m{seed}": (SMALL[seed - 1], seed) for seed in (1, 2)}, 70)
    exact = compare.in_float64(*sides, compare.Settings("any"))()
    result = compare.from_stores(compare.Settings("stores", stores=stores))
    np.testing.assert_allclose(result["values"], exact, atol=1e-6)
    assert (result["layers a"], result["layers b"]) == (["x", "y", "z"], ["v", "w"])
    assert 0 < result["predicted"] < math.inf

    together = compare.from_stores(compare.Settings("stores", stores=stores, together=True))
    assert np.shape(together["values"]) == (5, 5)
    np.testing.assert_allclose(tables.values_of_pairs(together, [("m1/y", "m2/w")]), exact[1, 1], atol=1e-6)


@pytest.mark.slow
def test_all_implementations_of_svcca_agree(compare: ModuleType, tables: ModuleType, tmp_path: Path) -> None:
    stores = job(tables, tmp_path).stores({f"m{seed}": (SMALL[seed - 1], seed) for seed in (1, 2)}, 200)
    settings = compare.Settings("any", stores=stores, metric="svcca", pairs=[("y", "v"), ("x", "w")])
    result = compare.from_stores(settings)
    values = tables.values_of_pairs(result, settings.pairs)
    assert 0.1 < values[0] < 0.99
    for name in ("pairs", "pairs in float64", "pairs by SVD", "pairs by SVD in float64"):
        pairs = compare.CONTENDERS[name](settings)
        np.testing.assert_allclose(pairs["values"], values, atol=1e-5)
        assert len(pairs["times"]) == 2
    assert all(0 < k <= 40 for side in "ab" for k in result[f"components {side}"])


def test_share_of_a_file_in_the_page_cache(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page cache changes under load, so the test replaces the system call: three quarters are in memory."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2**22))
    share = compare.cached(str(path))
    if share is None:
        pytest.skip("the system does not report it")
    assert 0 <= share <= 1
    read, kept = os.preadv, 3 * 2**20

    def kept_in_part(file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if offset >= kept:
            raise BlockingIOError
        return read(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", kept_in_part)
    assert compare.cached(str(path)) == 0.75
    kept = 0
    assert compare.cached(str(path)) == 0

    def unknown_flag(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", unknown_flag)
    assert compare.cached(str(path)) is None


# --- floors and tables


def test_operations_of_a_comparison(tables: ModuleType) -> None:
    sides = {"x": 3}, {"y": 2, "z": 2}
    assert tables.flop(sides, 10) == {"Gram space": 100 * (7 + 2), "feature space": 10 * (2 * 3 * 4 + 9 + 4 + 4)}
    assert tables.flop(sides, 10, 5) == {"Gram space": 10 * 5 * (7 + 2)}
    large = tables.flop(tables.PAIR_WIDTHS, 10_000)
    assert large["Gram space"] == 1e8 * (15_168 + 9984 + 221) < large["feature space"]
    assert tables.flop(tables.PAIR_WIDTHS, 50_000)["feature space"] == 5 * large["feature space"]


def test_the_floor_is_that_of_the_cheaper_algorithm(tables: ModuleType, tmp_path: Path) -> None:
    report = tables.Report("any", job(tables, tmp_path))
    rates = [{"sgemm": {"seconds": rate, "cpu": rate / 2}} for rate in (1e9, 9e9, 2e9)]
    assert report.floor({"one": 8e9, "other": 6e9}, rates) == {"seconds": 3.0, "cpu": 6.0}
    assert cells(report) == [["floor: other, 6 GFLOP at 2 GFLOP/s", "3.00", "6.00", "", "", ""]]


def test_one_pair_of_every_combination_of_widths_is_timed(tables: ModuleType) -> None:
    counts = tables.width_combinations(*SMALL)
    assert counts == {("x", "v"): 2, ("x", "w"): 2, ("y", "v"): 1, ("y", "w"): 1}
    assert sum(tables.width_combinations(*tables.PAIR_WIDTHS).values()) == 221
    times = [{"seconds": float(SMALL[0][a] * SMALL[1][b]), "cpu": 1.0} for a, b in counts]
    total = sum(p * q for p in SMALL[0].values() for q in SMALL[1].values())
    scaled = tables.scale_to_all_pairs({"times": times}, list(counts.values()))
    assert scaled == {"times": times, "seconds": total, "cpu": 6.0}


def test_the_floor_of_svcca(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """X'X of layers (10 x 4) and (10 x 2), and XX' of a layer (10 x 20), whose eigenvectors are already the basis."""
    monkeypatch.setattr(tables, "PAIR_WIDTHS", ({"x": 4, "z": 20}, {"y": 2}))
    kept = {"components a": [3, 7], "components b": [1]}
    rates = {
        "dgemm": {"seconds": 2.0, "cpu": 1.0},
        "sgemm": {"seconds": 4.0, "cpu": 2.0},
        "eigh": [{"seconds": s, "cpu": 2 * s} for s in (0.25, 0.5, 8.0)],  # widths 2, 4, 10
        "svdvals": [{"seconds": 3.0, "cpu": 6.0}, {"seconds": 5.0, "cpu": 10.0}],
    }
    parts = tables.svcca_floor(kept, rates, 10, [2, 4, 10], [1, 1])
    flop = 10 * (4 * 4 + 2 * 2 + 20 * 10), 2 * 10 * (4 * 3 + 2 * 1), 2 * 10 * 10 * 1
    assert list(parts["seconds"].values()) == [flop[0] / 2, 8.75, flop[1] / 2, flop[2] / 4, 8.0]
    assert list(parts["cpu"].values()) == [2 * seconds for seconds in parts["seconds"].values()]


def test_rows_are_medians_and_the_largest_error(tables: ModuleType, tmp_path: Path) -> None:
    report = tables.Report("any", job(tables, tmp_path))
    results = [
        {"seconds": s, "cpu": 2 * s, "mib": 100 * s, "added mib": s, "values": [[0.5 + s / 100]]}
        for s in (1.0, 2.0, 9.0)
    ]
    report.contender("repsim", results, [[0.5]])
    report.contender("peer", [*results, {"failure": "NaN"}], [[0.5]])
    report.ratio("peer / repsim", [{"seconds": 9.0, "cpu": 6.0}] * 3, results)
    assert cells(report) == [
        ["repsim", "2.00", "4.00", "200", "2", "9.0e-02"],
        ["peer", "NaN", "", "", "", ""],
        ["peer / repsim", "4.5 x", "1.5 x", "", "", ""],
    ]
    assert np.isnan(tables.largest_difference([[0.5, math.nan]], [[0.5, 0.5]]))


@pytest.mark.slow
def test_a_case_from_the_command_line(bench: ModuleType, tmp_path: Path) -> None:
    command = ["compare", "disk", "--samples=32", "--rounds=1", "--threads=1", f"--folder={tmp_path}"]
    done = CliRunner().invoke(bench.main, command)
    assert done.exit_code == 0, done.output
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in done.stdout.splitlines() if "│" in line}
    assert float(rows["repsim"][4]) < 1e-5
    assert float(rows["repsim"][2].replace(",", "")) > float(rows["repsim"][3].replace(",", "")) > 0
    assert any(label.startswith("floor: Gram space") for label in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resnet50-32.h5", "vit-32.h5"]


# --- extraction


@pytest.fixture
def worker(bench: ModuleType) -> ModuleType:
    return importlib.import_module("extraction_worker")  # bench has put its folder on the path


@pytest.fixture
def staged(bench: ModuleType, tmp_path: Path) -> Path:
    """Folder that lists three pictures under ten names."""
    pictures = bench.extraction_bench.make_pictures(tmp_path, 3)
    folder: Path = bench.extraction_bench.stage(tmp_path, pictures, 10)
    return folder


@pytest.fixture
def settings(staged: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "out").mkdir()
    return {"model": MODEL, "pictures": str(staged), "out": str(tmp_path / "out"), "batch_size": 4, "workers": 0}


def test_the_bare_loop_reads_what_repsim_reads(worker: ModuleType, settings: dict[str, Any]) -> None:
    """Both must read the same images in the same order, bit for bit; otherwise the ratio is meaningless."""
    extractor = TimmExtractor(MODEL, weights="random")
    images = open_images(settings["pictures"])
    ours = torch.stack([extractor.transform(images.load(row)) for row in range(len(images))])
    theirs = torch.cat(list(worker.pictures_of(worker.Settings("bare", **settings), extractor.model)))
    assert len(ours) == 10
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[0], ours[3])
    assert not torch.equal(ours[0], ours[1])


@pytest.mark.parametrize(("contender", "passes"), [("bare", [4, 4, 2]), ("repsim", [3, 4, 4, 2])])  # 3: the trace
def test_each_program_processes_all_images(
    worker: ModuleType, settings: dict[str, Any], contender: str, passes: list[int]
) -> None:
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, ResNet):
            assert not module.training
            assert not torch.is_grad_enabled()
            seen.append(len(args[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        result = worker.CONTENDERS[contender](worker.Settings(contender, **settings))
    finally:
        handle.remove()
    assert seen == passes
    if contender == "repsim":
        (path,) = Path(settings["out"]).iterdir()
        with open_store(path) as store:
            assert (len(store), len(store.layers)) == (10, result["layers"])
        assert path.stat().st_size == result["bytes"] > 10 * result["bytes_per_image"]


def test_the_clock_leaves_out_the_time_before_the_mark(worker: ModuleType) -> None:
    class Clock(worker.Clock):  # type: ignore[misc, name-defined]
        @staticmethod
        def now() -> tuple[float, float, float]:
            return 13.0, 7.0, 3.0

    clock = Clock()
    clock.start, clock.marks = (0.0, 0.0, 0.0), [(1.0, 1.0, 0.5), (3.0, 2.0, 1.0)]
    assert clock.result(24, 4) == {"steady": 20 / 10, "whole": 24 / 13, "cpu": 5 / 20, "system": 2 / 20}
    with pytest.raises(SystemExit, match="4 images are too few: the measurement begins after the first 4"):
        clock.result(4, 4)


@pytest.mark.slow
def test_limits_are_those_of_the_model(worker: ModuleType, settings: dict[str, Any]) -> None:
    """A ResNet-18 needs 1.8 billion multiply-adds per image: 3.6 GFLOP, as in the literature."""
    limits = worker.limits(worker.Settings("limits", **settings | {"model": "resnet18"}))
    assert limits["flop"] / 1e9 == pytest.approx(3.628, abs=0.01)
    assert list(Path(settings["out"]).iterdir()) == []


@pytest.mark.slow
def test_the_bare_loop_over_texts_computes_what_repsim_stores(bench: ModuleType, tmp_path: Path) -> None:
    worker = importlib.import_module("text_worker")
    sizes = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 16}
    worker.make_folder(tmp_path / "model", 50, words=30, **sizes)
    for contender, run in worker.CONTENDERS.items():
        (tmp_path / contender).mkdir()
        result = run(worker.Settings(contender, str(tmp_path / "model"), str(tmp_path / contender)))
        assert result["steady"] > result["whole"] > 0
    means = np.load(tmp_path / "bare" / "means.npy")
    for contender, layers in (("repsim", 1), ("repsim, all blocks", 7)):
        with open_store(tmp_path / contender / "model.h5") as store:
            assert len(store.layers) == layers
            np.testing.assert_allclose(store["encoder.layer.5"][:], means, atol=1e-5)


def test_ratios_compare_the_runs_of_one_round(bench: ModuleType) -> None:
    ours, theirs = ([{"steady": x} for x in side] for side in ((9.0, 90.0, 50.0), (10.0, 100.0, 40.0)))
    assert bench.extraction_bench.ratios(ours, theirs, "steady") == 0.9
    runs = [{"seconds": x, "predicted": 2 * x} for x in (1.0, 2.0)]
    assert bench.extraction_bench.ratios(runs, runs, "seconds", "predicted") == 0.5


@pytest.mark.slow
def test_a_failed_run_gives_the_reason_in_one_line(bench: ModuleType, settings: dict[str, Any]) -> None:
    options = {key: settings[key] for key in ("pictures", "batch_size", "workers")}
    run = bench.extraction_bench.run
    with pytest.raises(click.ClickException, match="bare on resnet_18 failed: RuntimeError: Unknown model"):
        run(sys.executable, 1, contender="bare", model="resnet_18", **options)
    with pytest.raises(click.ClickException, match="no/python cannot be run: No such file"):
        run("no/python", 1, contender="thingsvision", model="resnet18", **options)


# --- plan


@pytest.mark.slow
def test_the_bench_of_the_plan_shows_predicted_and_measured_times(bench: ModuleType) -> None:
    command = ["plan", "mutual_knn", "cka", "--samples", "60", "--rounds", "1", "--few"]
    done = CliRunner().invoke(bench.main, command)
    assert done.exit_code == 0, done.output
    for name, algorithm in (("mutual_knn", "pairs"), ("cka", "gram")):
        row = rf"{name} +\S+ +2 x 2 \S+ +{algorithm} \S+ +\d+\.\d\d \S+ +\S+ +\d+\.\d\d \S+ +\d+\.\d\d"
        assert re.search(row, done.output), done.output
    assert "of 2 within 30 %" in done.output


def test_fewer_layers_are_compared_where_all_take_too_long(bench: ModuleType) -> None:
    worker = importlib.import_module("plan_worker")
    assert bench.plan_bench.WORKER.exists()
    settings = worker.read(["", '{"samples": 60, "measures": ["mutual_knn"], "limit": 0.0}'])
    result = worker.measure("mutual_knn", settings)
    assert result["layers"] == "2 x 2"
    assert min(result["predicted"], result["cpu"], result["calibration"]) > 0
