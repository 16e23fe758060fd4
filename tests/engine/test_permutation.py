"""Test the algorithms for permuted values, and the choice between them."""

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

MEMORY = 2**30


def factors(spec: str, *layers: Array) -> list[Any]:
    return [get(spec).recipe(as_samples(x)) for x in layers]


def values_by(algorithm: str, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> Array:
    with monkeypatch.context() as patch:
        patch.setattr(permutation, "_features_are_cheaper", lambda *_: algorithm == "features")
        return permuted(*args, memory=MEMORY, **options)


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
@pytest.mark.parametrize(("side", "run"), [(2048, 1024), (50, 30), (40, 100), (25, 7)])
def test_values_do_not_depend_on_block_sizes(
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
        expected = values_by("grams", monkeypatch, rows, columns, get(spec), orders)
        tuned(permuted_side=side, permuted_run=run)
        values = values_by("features", monkeypatch, rows, columns, get(spec), orders)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
def test_float32_features(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """Layers are wide, narrow, or dominated by a single sample."""
    rows, columns = related_layers(rng, 200, 64, 5, 300, 48), related_layers(rng, 200, 80, 3, 40)
    for uneven in (rows[3], columns[2]):
        uneven[7] *= 100
    orders = random_permutations(200, 4)
    orders[0] = np.arange(200)
    reduced = [[x.astype(np.float32) for x in side] for side in (rows, columns)]
    prepared = [factors(spec, *side) for side in reduced]
    values = values_by("features", monkeypatch, *prepared, get(spec), torch.from_numpy(orders))
    expected = values_by("grams", monkeypatch, *prepared, get(spec), torch.from_numpy(orders))
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    estimator = "biased" if "biased" in spec else "debiased"
    by_hand = [
        [[references.cka(x, y[order], estimator=estimator) for y in reduced[1]] for x in reduced[0]] for order in orders
    ]
    np.testing.assert_allclose(values, by_hand, rtol=0, atol=1e-6)


def test_uneven_and_narrow_layers_are_multiplied_in_float64(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [x.astype(np.float32) for x in related_layers(rng, 100, 40, 50, 3, 60)]
    layers[3][7] *= 100
    seen: list[tuple[list[int], list[int], torch.dtype]] = []
    original = permutation.permuted_moments

    def recorded(rows: Any, columns: Any, orders: Any, dtype: torch.dtype, step: Any) -> torch.Tensor:
        seen.append(([a.p for a in rows], [b.p for b in columns], dtype))
        return original(rows, columns, orders, dtype, step)

    monkeypatch.setattr(permutation, "permuted_moments", recorded)
    orders = torch.from_numpy(random_permutations(100, 1))
    values_by("features", monkeypatch, factors("cka", *layers), factors("cka", *layers[:3]), get("cka"), orders)
    assert seen == [
        ([40, 50], [40, 50], torch.float32),
        ([40, 50], [3], torch.float64),
        ([3, 60], [40, 50, 3], torch.float64),
    ]
    seen.clear()
    doubles = factors("cka", *(x.astype(np.float64) for x in layers))
    values_by("features", monkeypatch, doubles, factors("cka", layers[0]), get("cka"), orders)
    assert seen == [([40, 50, 3, 60], [40], torch.float64)]


def test_truncated_layers(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated layers give the same values by both algorithms, close to those of the full layers."""
    layers = [x @ np.diag(1 / np.arange(1, x.shape[1] + 1)) for x in related_layers(rng, 80, 50, 90, 70)]
    full = factors("cka", *layers)
    reduced = [truncate(layer, share=0.99999) for layer in full]
    assert max(layer.p for layer in reduced) < 25
    orders = torch.from_numpy(random_permutations(80, 5))
    by_features, by_grams, of_full = (
        values_by(algorithm, monkeypatch, factors_[:2], factors_[2:], get("cka"), orders)
        for algorithm, factors_ in (("features", reduced), ("grams", reduced), ("grams", full))
    )
    np.testing.assert_allclose(by_features, by_grams, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_features, of_full, rtol=0, atol=1e-3)
    assert np.abs(by_features - of_full).max() > 1e-8


def algorithm_used(monkeypatch: pytest.MonkeyPatch, *args: Any, memory: int = MEMORY) -> str:
    calls = []

    def recorded(name: str, original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Array:
            calls.append(name)
            return np.asarray(original(*args, **options))

        return call

    with monkeypatch.context() as patch:
        for name in ("_from_grams", "_from_features"):
            patch.setattr(permutation, name, recorded(name, getattr(permutation, name)))
        permuted(*args, memory=memory)
    return calls[0]


def test_the_cheaper_algorithm_is_used(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = torch.from_numpy(random_permutations(60, 2))
    narrow, wide = factors("cka", *related_layers(rng, 60, 3, 4)), factors("cka", *related_layers(rng, 60, 200, 200))
    assert algorithm_used(monkeypatch, narrow[:1], narrow[1:], get("cka"), orders) == "_from_features"
    assert algorithm_used(monkeypatch, wide[:1], wide[1:], get("cka"), orders) == "_from_grams"
    # Gram matrices of which not even one fits
    assert algorithm_used(monkeypatch, wide[:1], wide[1:], get("cka"), orders, memory=8 * 60 * 400) == "_from_grams"
    memory_for_features = 8 * 60 * 10
    assert (
        algorithm_used(monkeypatch, narrow[:1], narrow[1:], get("cka"), orders, memory=memory_for_features)
        == "_from_features"
    )
    with pytest.raises(InvalidInputError, match="takes .* MiB at n = 60"):
        permuted(narrow[:1], narrow[1:], CKA(), orders, memory=8 * 60)
    # measures without a feature-space algorithm
    for spec in ("cka:kernel=rbf", "distance_correlation"):
        others = factors(spec, *related_layers(rng, 60, 3, 4))
        assert algorithm_used(monkeypatch, others[:1], others[1:], get(spec), orders) == "_from_grams"


def test_progress_counts_permutations(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]
) -> None:
    layers = factors("cka", *(x.astype(np.float32) for x in related_layers(rng, 60, 40, 3, 50)))
    orders = torch.from_numpy(random_permutations(60, 4))
    for side in (2048, 30):
        tuned(permuted_side=side)
        reported: list[int] = []
        both = layers[:2], layers[2:]
        values_by(
            "features", monkeypatch, *both, get("cka"), orders, progress=lambda *done, to=reported: to.extend(done)
        )
        assert reported == [number for k in range(1, 9) for number in (k, 8)]


@pytest.mark.parametrize("gathered", [1, 100, 2**21])
@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased"])
def test_shared_directions_give_what_features_give(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, spec: str, gathered: int
) -> None:
    """Also if a thread multiplies one layer, or a few, at a time."""
    monkeypatch.setattr(permutation, "_GATHERED", gathered)
    metric: Any = get(spec)
    layers = truncate_jointly(factors(spec, *related_layers(rng, 60, 40, 3, 100, 35, 2)), 0.99)
    apart = [dataclasses.replace(layer, features=layer.features[:]) for layer in layers]
    orders = torch.from_numpy(random_permutations(60, 5))
    called = []
    original = permutation._from_directions

    def counted(*args: Any, **options: Any) -> Array:
        called.append(1)
        return original(*args, **options)

    monkeypatch.setattr(permutation, "_from_directions", counted)
    for i, j in ((slice(0, 3), slice(3, 5)), (slice(3, 5), slice(0, 5))):
        values = permuted(layers[i], layers[j], metric, orders, memory=MEMORY)
        expected = values_by("grams", monkeypatch, apart[i], apart[j], get(spec), orders)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert len(called) == 2
    permuted(layers[:1], apart[1:], metric, orders, memory=MEMORY)
    assert len(called) == 2  # these layers do not share all directions
