"""scripts/bench: what is timed is right, and who lacks the peer is told in one line."""

import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from timm.models import ResNet

from repsim.extractors import open_images
from repsim.extractors.timm_models import TimmExtractor
from repsim.store import open_store

MODEL = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench", str(Path(__file__).parent.parent / "scripts" / "bench"))
    spec = importlib.util.spec_from_loader("bench", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_both_contenders_compute_the_same(bench: ModuleType) -> None:
    pytest.importorskip("torch_cka")
    a, b = (
        dict(list(bench.activations(bench.RESNET50, 64, 1).items())[:3]),
        bench.activations({"v": 30, "w": 9}, 64, 2),
    )
    ours = bench.by_repsim(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        theirs = bench.by_torch_cka(a, b)
    assert ours.shape == theirs.shape == (3, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours, bench.in_float64(a, b), atol=1e-6)


def test_the_widths_are_those_of_the_models(bench: ModuleType) -> None:
    assert (len(bench.RESNET50), sum(bench.RESNET50.values())) == (17, 64 + 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048)
    assert (len(bench.VIT_B), sum(bench.VIT_B.values())) == (13, 13 * 768)


def test_without_the_peer_it_says_what_to_install(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_cka", None)
    with pytest.raises(click.ClickException, match=r"torch-cka is not installed: pip install -e '\.\[bench\]'"):
        bench.by_torch_cka({}, {})


# --- extraction


@pytest.fixture
def worker(bench: ModuleType) -> ModuleType:
    return importlib.import_module("extraction_worker")  # bench has put its folder on the path


@pytest.fixture
def staged(bench: ModuleType, tmp_path: Path) -> Path:
    """Ten names of three pictures."""
    pictures = bench.extraction_bench.make_pictures(tmp_path, 3)
    folder: Path = bench.extraction_bench.stage(tmp_path, pictures, 10)
    return folder


@pytest.fixture
def settings(staged: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "out").mkdir()
    return {"model": MODEL, "pictures": str(staged), "out": str(tmp_path / "out"), "batch_size": 4, "workers": 0}


def test_the_bare_loop_reads_what_repsim_reads(worker: ModuleType, settings: dict[str, Any]) -> None:
    """The same pictures in the same order to the last bit, or the ratio means nothing."""
    extractor = TimmExtractor(MODEL, weights="random")
    images = open_images(settings["pictures"])
    ours = torch.stack([extractor.transform(images.load(row)) for row in range(len(images))])
    theirs = torch.cat(list(worker.pictures_of(worker.Settings("bare", **settings), extractor.model)))
    assert len(ours) == 10
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[0], ours[3])
    assert not torch.equal(ours[0], ours[1])


@pytest.mark.parametrize(("contender", "passes"), [("bare", [4, 4, 2]), ("repsim", [3, 4, 4, 2])])  # 3: the trace
def test_each_contender_does_the_whole_job(
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


def test_the_clock_leaves_out_what_went_before_the_mark(worker: ModuleType) -> None:
    class Clock(worker.Clock):  # type: ignore[misc, name-defined]
        @staticmethod
        def now() -> tuple[float, float]:
            return 13.0, 7.0

    clock = Clock()
    clock.start, clock.marks = (0.0, 0.0), [(1.0, 1.0), (3.0, 2.0)]
    assert clock.result(24, 4) == {"steady": 20 / 10, "whole": 24 / 13, "cpu": 5 / 20}
    with pytest.raises(SystemExit, match="4 pictures are too few: 4 go before what is measured"):
        clock.result(4, 4)


def test_limits_are_those_of_the_model(worker: ModuleType, settings: dict[str, Any]) -> None:
    """A ResNet-18 does 1.8 billion multiplications and additions a picture: 3.6 GFLOP, as the literature counts."""
    limits = worker.limits(worker.Settings("limits", **settings | {"model": "resnet18"}))
    assert limits["flop"] / 1e9 == pytest.approx(3.628, abs=0.01)
    assert list(Path(settings["out"]).iterdir()) == []


def test_ratios_compare_the_runs_of_one_turn(bench: ModuleType) -> None:
    ours, theirs = ([{"steady": x} for x in side] for side in ((9.0, 90.0, 50.0), (10.0, 100.0, 40.0)))
    assert bench.extraction_bench.ratios(ours, theirs, "steady") == 0.9


def test_a_run_that_fails_says_why_in_one_line(bench: ModuleType, settings: dict[str, Any]) -> None:
    given = {key: settings[key] for key in ("pictures", "batch_size", "workers")}
    run = bench.extraction_bench.run
    with pytest.raises(click.ClickException, match="bare on resnet_18 failed: RuntimeError: Unknown model"):
        run(sys.executable, 1, contender="bare", model="resnet_18", **given)
    with pytest.raises(click.ClickException, match="no/python cannot be run: No such file"):
        run("no/python", 1, contender="thingsvision", model="resnet18", **given)
