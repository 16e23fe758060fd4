"""Test the search for blocks of alike layers, the removal of first components, and how often the verdict is wrong."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import repsim
from repsim.engine.uncertainty import jackknife
from repsim.errors import InvalidInputError
from repsim.trends import block_structure as module
from repsim.trends.block_structure import alike_blocks, block_structure

Array = NDArray[np.float64]
SCRIPT = Path(__file__).parents[2] / "scripts" / "validation" / "simulated_blocks.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_blocks", path)
    assert spec is not None
    assert spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(script)
    return script


script = load(SCRIPT)
make: Callable[..., dict[str, Array]] = script.make
SCENARIOS: dict[str, Any] = script.SCENARIOS


def slow_blocks(s: Array, threshold: float, least: int) -> set[tuple[int, int]]:
    """Find blocks by trying all runs, each time the longest of those that touch no block."""
    taken: list[tuple[int, int]] = []
    while True:
        runs = [
            (i, j)
            for i in range(len(s))
            for j in range(i + least, len(s) + 1)
            if s[i:j, i:j].min() >= threshold and all(j <= a or i >= b for a, b in taken)
        ]
        if not runs:
            return set(taken)
        taken.append(max(runs, key=lambda run: (run[1] - run[0], s[run[0] : run[1], run[0] : run[1]].mean())))


def test_blocks_are_those_of_a_slow_search(rng: np.random.Generator) -> None:
    counts = set()
    for _ in range(200):
        position = np.cumsum(rng.exponential(size=12))
        s = np.exp(-np.abs(position[:, None] - position) / rng.uniform(1, 30)) * rng.uniform(0.95, 1, size=(12, 12))
        s = (s + s.T) / 2
        np.fill_diagonal(s, 1)
        blocks = alike_blocks(s, 0.8, 2)
        assert set(blocks) == slow_blocks(s, 0.8, 2)
        assert {(12 - b, 12 - a) for a, b in alike_blocks(s[::-1, ::-1], 0.8, 2)} == set(blocks)
        counts.add(len(blocks))
    assert len(counts) > 2


@pytest.mark.slow
def test_values_are_those_of_a_slow_reference(rng: np.random.Generator) -> None:
    common = 3 * rng.normal(size=(40, 1))
    layers = {f"l{k}": common @ rng.normal(size=(1, p)) + rng.normal(size=(40, p)) for k, p in enumerate((5, 9, 60))}
    made = block_structure(layers, threshold=0.2, least=3)
    names = list(layers)

    def without(x: Array) -> Array:
        x = x - x.mean(0)
        u, s, v = np.linalg.svd(x, full_matrices=False)
        return np.asarray(x - s[0] * np.outer(u[:, 0], v[0]))

    cut = {name: without(x) for name, x in layers.items()}
    for a in names:
        centred = layers[a] - layers[a].mean(0)
        values = np.linalg.svd(centred, compute_uv=False) ** 2
        assert made["first_share"].sel(layer=a).item() == pytest.approx(values[0] / values.sum())
        for b in names:
            pair = {"layer": a, "other_layer": b}
            assert made["similarity"].sel(pair).item() == pytest.approx(repsim.similarity(layers[a], layers[b]))
            assert made["without_first"].sel(pair).item() == pytest.approx(repsim.similarity(cut[a], cut[b]))
            first = [np.linalg.svd(layers[c] - layers[c].mean(0))[0][:, 0] for c in (a, b)]
            assert made["first_alike"].sel(pair).item() == pytest.approx((first[0] @ first[1]) ** 2)

    def left(rows: Any) -> float:
        pairs = [(names[i], names[j]) for i in range(3) for j in range(i)]
        means = [
            np.mean([repsim.similarity(of[a][rows], of[b][rows]) for a, b in pairs]) for of in (cut, layers)
        ]  # fmt: skip
        return float(means[0] / means[1])

    assert made["left"].item() == pytest.approx(left(slice(None)))
    interval = jackknife(made["left"].item(), [left(np.delete(np.arange(40), i)) for i in range(40)])
    ends = [made[name].item() for name in ("left_low", "left_high")]
    assert ends == pytest.approx([float(interval.low), float(interval.high)], abs=1e-6)


def test_large_layers_take_the_first_component_by_iteration(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = make("shared component", rng, n=150)
    exact = block_structure(layers)
    monkeypatch.setattr(module, "_SMALL", 3)
    iterated = block_structure(layers)
    for name in ("similarity", "without_first", "first_share", "first_alike"):
        np.testing.assert_allclose(iterated[name], exact[name], atol=1e-6)


def test_the_result_does_not_depend_on_scale_shift_rotation_and_direction(rng: np.random.Generator) -> None:
    layers = make("shared component", rng, n=150)
    before = block_structure(layers)
    rotated = {
        name: 10.0 ** rng.uniform(-3, 3) * x @ np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0] + rng.normal()
        for name, x in layers.items()
    }
    after = block_structure(rotated)
    for name in ("similarity", "without_first", "first_share", "first_alike", "left", "left_low", "verdict"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    backwards = block_structure(dict(reversed(layers.items())))
    assert (backwards["first"].item(), backwards["last"].item()) == (before["last"].item(), before["first"].item())
    assert backwards["left"].item() == pytest.approx(before["left"].item())


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_verdict_where_the_truth_is_known(scenario: str, rng: np.random.Generator) -> None:
    """`scripts/validation/simulated_blocks.py` has the rates of errors of more networks (docs/blocks.md)."""
    truth = SCENARIOS[scenario]
    for _ in range(4):
        made = block_structure(make(scenario, rng, n=200))
        if truth.verdict is None:
            assert made.sizes["block"] == 0
            assert "no block" in json.loads(made.attrs["summary"])[0]
        else:
            assert made["verdict"].values.tolist() == [truth.verdict]
            assert [made["first"].item(), made["last"].item()] == list(truth.block)
        assert made.attrs["block_structure"] == (truth.verdict == 1)


def test_layers_of_rank_one_have_nothing_left(rng: np.random.Generator) -> None:
    common = rng.normal(size=(60, 1))
    layers: dict[str, Any] = {f"l{k}": (common @ rng.normal(size=(1, 6))).astype(np.float32) for k in range(4)}
    made = block_structure({"stem": rng.normal(size=(60, 6)), **layers})
    assert np.isnan(made["without_first"].values[1:]).all()
    assert (made["after"].item(), made["left"].item(), made.attrs["block_structure"]) == (0, 0, 1)


def test_a_store_and_a_result(tmp_path: Path, rng: np.random.Generator) -> None:
    layers = make("shared component", rng, n=100)
    store = repsim.write_store(tmp_path / "net.h5", layers, model="net")
    made, of_arrays = block_structure(store.path), block_structure(layers)
    np.testing.assert_allclose(made["left"], of_arrays["left"])
    result = repsim.compare(store)
    blocks = block_structure(result)
    assert blocks["first"].values.tolist() == made["first"].values.tolist()
    assert (blocks.attrs["block_structure"], blocks["verdict"].item()) == (-1, -1)
    assert "not known: the layers themselves are needed" in json.loads(blocks.attrs["summary"])[0]
    groups = np.arange(100) // 4
    grouped = block_structure(repsim.write_store(tmp_path / "g.h5", layers, model="net", groups=groups))
    assert grouped.attrs["block_structure"] == 1
    assert grouped["left_high"].item() != made["left_high"].item()


def test_bad_input_is_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 4))
    a, b = (repsim.write_store(tmp_path / f"{name}.h5", {"x": x, "y": x, "z": x}, model=name) for name in "ab")
    for network, options, message in (
        ({"a": x, "b": x}, {}, "2 layers are too few"),
        ({"a": x, "b": x, "c": np.ones((30, 4))}, {}, "layer c is constant"),
        ({"a": x[:4], "b": x[:4], "c": x[:4]}, {}, "at least 5"),
        (a, {"threshold": 1.5}, "threshold is above 0 and at most 1, not 1.5"),
        (a, {"least": 1}, "least is at least 2, not 1"),
        (a, {"layers": "q*"}, "no layer that matches"),
        (repsim.compare(a, b), {}, "expected one network compared with itself, got a, b"),
        (repsim.compare(a, metrics="svcca"), {}, "with debiased CKA"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            block_structure(network, **options)
