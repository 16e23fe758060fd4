"""Two roads to permuted values, and which one is taken."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from repsim.engine import permutation
from repsim.engine.permutation import permuted
from repsim.engine.resampling import random_permutations
from repsim.engine.shared_directions import truncate, truncate_jointly
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.cka import CKA
from repsim.testing.examples import related_layers
from tests.metrics import references

ENOUGH = 2**30


def factors(spec: str, *layers: Array) -> list[Any]:
    return [get(spec).recipe(as_samples(x)) for x in layers]


def on(road: str, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> Array:
    with monkeypatch.context() as patch:
        patch.setattr(permutation, "_features_are_cheaper", lambda *_: road == "features")
        return permuted(*args, memory=ENOUGH, **options)


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
@pytest.mark.parametrize(("side", "run"), [(2048, 1024), (50, 30), (40, 100), (25, 7)])
def test_features_are_the_same_however_they_are_cut(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    tuned: Callable[..., None],
    *,
    spec: str,
    side: int,
    run: int,
) -> None:
    layers = factors(spec, *related_layers(rng, 60, 40, 3, 100, 35, 2))
    orders = torch.from_numpy(random_permutations(60, 5))
    for rows, columns in ((layers[:3], layers[3:]), (layers[3:], layers[:3]), (layers, layers)):
        expected = on("grams", monkeypatch, rows, columns, get(spec), orders)
        tuned(permuted_side=side, permuted_run=run)
        found = on("features", monkeypatch, rows, columns, get(spec), orders)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
def test_float32_features(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """Wide and narrow layers, and one in which a single sample is nearly all."""
    rows, columns = related_layers(rng, 200, 64, 5, 300, 48), related_layers(rng, 200, 80, 3, 40)
    for uneven in (rows[3], columns[2]):
        uneven[7] *= 100
    orders = random_permutations(200, 4)
    orders[0] = np.arange(200)
    few = [[x.astype(np.float32) for x in side] for side in (rows, columns)]
    prepared = [factors(spec, *side) for side in few]
    found = on("features", monkeypatch, *prepared, get(spec), torch.from_numpy(orders))
    expected = on("grams", monkeypatch, *prepared, get(spec), torch.from_numpy(orders))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    estimator = "biased" if "biased" in spec else "debiased"
    by_hand = [[[references.cka(x, y[order], estimator=estimator) for y in few[1]] for x in few[0]] for order in orders]
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-6)


def test_uneven_and_narrow_layers_are_multiplied_in_float64(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [x.astype(np.float32) for x in related_layers(rng, 100, 40, 50, 3, 60)]
    layers[3][7] *= 100
    seen: list[tuple[list[int], list[int], torch.dtype]] = []
    original = permutation.permuted_moments

    def noted(rows: Any, columns: Any, orders: Any, dtype: torch.dtype, step: Any) -> torch.Tensor:
        seen.append(([a.p for a in rows], [b.p for b in columns], dtype))
        return original(rows, columns, orders, dtype, step)

    monkeypatch.setattr(permutation, "permuted_moments", noted)
    orders = torch.from_numpy(random_permutations(100, 1))
    on("features", monkeypatch, factors("cka", *layers), factors("cka", *layers[:3]), get("cka"), orders)
    assert seen == [
        ([40, 50], [40, 50], torch.float32),
        ([40, 50], [3], torch.float64),
        ([3, 60], [40, 50, 3], torch.float64),
    ]
    seen.clear()
    doubles = factors("cka", *(x.astype(np.float64) for x in layers))
    on("features", monkeypatch, doubles, factors("cka", layers[0]), get("cka"), orders)
    assert seen == [([40, 50, 3, 60], [40], torch.float64)]


def test_layers_cut_to_a_few_components(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are Gram matrices like any other, and their values are those of the whole ones but for what was cut."""
    layers = [x @ np.diag(1 / np.arange(1, x.shape[1] + 1)) for x in related_layers(rng, 80, 50, 90, 70)]
    whole = factors("cka", *layers)
    few = [truncate(layer, share=0.99999) for layer in whole]
    assert max(layer.p for layer in few) < 25
    orders = torch.from_numpy(random_permutations(80, 5))
    of_few, of_few_grams, of_whole = (
        on(road, monkeypatch, some[:2], some[2:], get("cka"), orders)
        for road, some in (("features", few), ("grams", few), ("grams", whole))
    )
    np.testing.assert_allclose(of_few, of_few_grams, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_few, of_whole, rtol=0, atol=1e-3)
    assert np.abs(of_few - of_whole).max() > 1e-8


def road_of(monkeypatch: pytest.MonkeyPatch, *args: Any, memory: int = ENOUGH) -> str:
    taken = []

    def noted(name: str, original: Any) -> Any:
        def road(*args: Any, **options: Any) -> Array:
            taken.append(name)
            return np.asarray(original(*args, **options))

        return road

    with monkeypatch.context() as patch:
        for name in ("_by_grams", "_by_features"):
            patch.setattr(permutation, name, noted(name, getattr(permutation, name)))
        permuted(*args, memory=memory)
    return taken[0]


def test_the_cheaper_road_is_taken(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = torch.from_numpy(random_permutations(60, 2))
    narrow, wide = factors("cka", *related_layers(rng, 60, 3, 4)), factors("cka", *related_layers(rng, 60, 200, 200))
    assert road_of(monkeypatch, narrow[:1], narrow[1:], get("cka"), orders) == "_by_features"
    assert road_of(monkeypatch, wide[:1], wide[1:], get("cka"), orders) == "_by_grams"
    # Gram matrices of which not even one fits
    assert road_of(monkeypatch, wide[:1], wide[1:], get("cka"), orders, memory=8 * 60 * 400) == "_by_grams"
    little = 8 * 60 * 10
    assert road_of(monkeypatch, narrow[:1], narrow[1:], get("cka"), orders, memory=little) == "_by_features"
    with pytest.raises(InvalidInputError, match="takes .* MiB at n = 60"):
        permuted(narrow[:1], narrow[1:], CKA(), orders, memory=8 * 60)
    # what knows no features
    for spec in ("cka:kernel=rbf", "distance_correlation"):
        others = factors(spec, *related_layers(rng, 60, 3, 4))
        assert road_of(monkeypatch, others[:1], others[1:], get(spec), orders) == "_by_grams"


def test_progress_counts_permutations(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]
) -> None:
    layers = factors("cka", *(x.astype(np.float32) for x in related_layers(rng, 60, 40, 3, 50)))
    orders = torch.from_numpy(random_permutations(60, 4))
    for side in (2048, 30):
        tuned(permuted_side=side)
        said: list[int] = []
        both = layers[:2], layers[2:]
        on("features", monkeypatch, *both, get("cka"), orders, progress=lambda *done, to=said: to.extend(done))
        assert said == [number for k in range(1, 9) for number in (k, 8)]


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
def test_shared_directions_give_what_features_give(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    metric: Any = get(spec)
    layers = truncate_jointly(factors(spec, *related_layers(rng, 60, 40, 3, 100, 35, 2)), 0.99)
    apart = [dataclasses.replace(layer, features=layer.features[:]) for layer in layers]
    orders = torch.from_numpy(random_permutations(60, 5))
    called = []
    original = permutation._by_directions

    def counted(*args: Any, **options: Any) -> Array:
        called.append(1)
        return original(*args, **options)

    monkeypatch.setattr(permutation, "_by_directions", counted)
    for i, j in ((slice(0, 3), slice(3, 5)), (slice(3, 5), slice(0, 5))):
        found = permuted(layers[i], layers[j], metric, orders, memory=ENOUGH)
        expected = on("grams", monkeypatch, apart[i], apart[j], get(spec), orders)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert len(called) == 2
    permuted(layers[:1], apart[1:], metric, orders, memory=ENOUGH)
    assert len(called) == 2  # they do not share all directions
