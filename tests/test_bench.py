"""scripts/bench: what is timed is right, and who lacks the peer is told in one line."""

import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest


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
