"""Sums of single samples, of subsets and within classes, compared with explicit centred kernels."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from repsim.engine import sample_sums
from repsim.engine.sample_sums import Products, SampleSums
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.groups import Groups
from repsim.runtime.processes import Ranks
from repsim.study.block_sums import draw_halves
from tests.metrics.references import gram, u_centred
from tests.threads import torch_threads

Array = NDArray[np.float64]
N = 33
WIDTHS = (3, 40, 5, 8, 2)
CELLS = np.random.default_rng(1).permutation(np.arange(N) % 4)
SUBSETS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
CLASSES = np.random.default_rng(2).permutation([0] * 12 + [1] * 9 + [2] * 6 + [3] * 3 + [4] * 2 + [5])
"""The last class has one sample."""
SIDES = {
    "equal": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    "partly shared": ([0, 1, 2, 3], [2, 3, 4]),
    "disjoint": ([0, 1, 2], [3, 4]),
    "one layer": ([1], [1]),
}
BLOCKS = [(2048, 0), (12, 5), (7, 3), (1, 1), (50, 64)]


def layers_of(rng: np.random.Generator, n: int = N) -> list[Array]:
    return [rng.normal(size=(n, p)) @ np.diag(np.linspace(0.5, 2, p)) + rng.normal(size=p) for p in WIDTHS]


def factors(layers: Sequence[NDArray[Any]]) -> list[Gram]:
    return [CKA().recipe(torch.from_numpy(x)) for x in layers]


def summed(
    layers: Sequence[NDArray[Any]], sides: str = "equal", *, classes: Any = CLASSES, **options: Any
) -> SampleSums:
    grams = factors(layers)
    rows, columns = ([grams[k] for k in side] for side in SIDES[sides])
    of = None if classes is None else Groups.of(classes)
    sums = SampleSums(rows, columns, **{"cells": CELLS, "subsets": SUBSETS, "classes": of, **options})
    sums.prepare(lambda of_process: [of_process])
    sums.accumulate(list(sums.order), lambda: None)
    return sums


def scaled(x: Array) -> Array:
    """Divide features by a power of two, as kernels do, so that the mean squared norm is between 1/4 and 1."""
    size = np.square(x - x.mean(0)).sum() / len(x)
    return np.asarray(x / 2.0 ** math.ceil(math.log2(size) / 2))


def plain_kernel(x: Array) -> Array:
    return u_centred(gram(x))


def kernel_within(x: Array, classes: NDArray[np.int64]) -> Array:
    """Return the kernel of features minus the means of their classes, in pairs of different classes."""
    deviations = x - np.stack([x[classes == own].mean(0) for own in classes])
    return np.asarray(np.where(classes[:, None] == classes, 0, deviations @ deviations.T))


def degrees_within(classes: NDArray[np.int64]) -> float:
    sizes = np.unique(classes, return_counts=True)[1]
    degrees = float((len(classes) - len(sizes)) ** 2 - ((sizes - 1) ** 2).sum())
    return degrees if degrees > 0 else np.nan


@dataclass
class Expected:
    """Inner products of explicit kernels, in the form of `Products`."""

    layers: Sequence[Array]
    sides: str

    def __post_init__(self) -> None:
        self.layers = [scaled(x) for x in self.layers]
        self.rows, self.columns = SIDES[self.sides]
        self.every = [*self.rows, *(k for k in self.columns if k not in self.rows)]

    def products(self, kernels: Sequence[Array], scale: float = 1) -> tuple[Array, Array]:
        pairs = [[(kernels[a] * kernels[b]).sum() for b in self.columns] for a in self.rows]
        return np.array(pairs) / scale, np.array([(kernels[a] ** 2).sum() for a in self.every]) / scale

    def on(self, samples: Any) -> tuple[Array, Array]:
        return self.products([plain_kernel(x[samples]) for x in self.layers])

    def within(self, samples: Any, classes: NDArray[np.int64] = CLASSES) -> tuple[Array, Array]:
        of = classes[samples]
        return self.products([kernel_within(x[samples], of) for x in self.layers], degrees_within(of))


def check(products: Products, expected: tuple[Array, Array], rtol: float = 1e-10) -> None:
    for values, reference in zip((products.pairs, products.own), expected, strict=True):
        size = np.nanmax(np.abs(expected[1])) if np.isfinite(expected[1]).any() else 1
        np.testing.assert_allclose(values, reference, rtol=rtol, atol=rtol * size)


def left_out(products: Products, place: int) -> Products:
    return Products(products.pairs[place], products.own[place])


def subset(s: int) -> NDArray[np.int64]:
    return np.flatnonzero(SUBSETS[s][CELLS])


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("panel", "tile"), BLOCKS)
def test_sums_are_those_of_explicit_kernels(rng: np.random.Generator, sides: str, panel: int, tile: int) -> None:
    """All samples, subsets, and without each sample; sizes of panels and tiles that do not divide the samples."""
    layers = layers_of(rng)
    sums, expected = summed(layers, sides, classes=None, panel=panel, tile=tile, cubes=True), Expected(layers, sides)
    assert sums.square == (sides in {"equal", "one layer"})
    check(sums.all, expected.on(np.arange(N)))
    for s in range(len(SUBSETS)):
        check(sums.subset(s), expected.on(subset(s)))
    for run in (slice(0, 10), slice(10, N)):
        without = sums.without(run)
        for place, i in enumerate(range(N)[run]):
            check(left_out(without, place), expected.on(np.delete(np.arange(N), i)))
    cubes = [(plain_kernel(expected.layers[k]) ** 3).sum() for k in expected.every]
    np.testing.assert_allclose(sums.cubes, cubes, rtol=1e-9, atol=1e-9 * np.abs(cubes).max())


@pytest.mark.parametrize("sides", ["many", "many, partly shared"])
def test_cells_of_many_layers_have_products_of_their_own(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, sides: str
) -> None:
    """The values are those of few layers, also if the products of two cells are added up in several parts."""
    SIDES["many"] = [*range(30)], [*range(30)]
    SIDES["many, partly shared"] = [*range(20)], [*range(12, 30)]
    monkeypatch.setattr(sample_sums, "_ENTRIES", 7)
    computed, of_cells = Counter[str](), SampleSums._of_cells

    def counted(self: SampleSums, name: str, *args: Any) -> Any:
        computed[name] += 1
        return of_cells(self, name, *args)

    monkeypatch.setattr(SampleSums, "_of_cells", counted)
    layers = [x for _ in range(6) for x in layers_of(rng)]
    sums, expected = summed(layers, sides, panel=20, tile=10), Expected(layers, sides)
    assert computed.keys() == {"samples", "within"}
    check(sums.all, expected.on(np.arange(N)))
    check(sums.within(0), expected.within(np.arange(N)))
    for s in range(len(SUBSETS)):
        check(sums.subset(s), expected.on(subset(s)))
        check(sums.within(1 + s), expected.within(subset(s)))
    check(left_out(sums.without(slice(4, 5)), 0), expected.on(np.delete(np.arange(N), 4)))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("panel", "tile"), BLOCKS)
def test_sums_within_classes(rng: np.random.Generator, sides: str, panel: int, tile: int) -> None:
    """Also the only sample of its class, and classes of which a subset has no sample."""
    layers = layers_of(rng)
    sums, expected = summed(layers, sides, panel=panel, tile=tile), Expected(layers, sides)
    assert any(set(CLASSES[subset(s)]) != set(CLASSES) for s in range(len(SUBSETS)))
    everything = np.arange(N)
    check(sums.within(0), expected.within(everything))
    check(sums.within_whole, expected.within(everything))
    for s in range(len(SUBSETS)):
        check(sums.within(1 + s), expected.within(subset(s)))
    for run in (slice(0, 10), slice(10, N)):
        without = sums.within_without(run)
        for place, i in enumerate(range(N)[run]):
            check(left_out(without, place), expected.within(np.delete(everything, i)))
    check(sums.all, expected.on(everything))  # the plain sums are there as well
    check(sums.subset(0), expected.on(subset(0)))


def test_classes_that_leave_nothing_have_no_value(rng: np.random.Generator) -> None:
    """One class of several samples and others of one: no pair of different classes varies within both."""
    layers, classes = layers_of(rng), np.array([*range(N - 20), *[N - 20] * 20])
    sums = summed(layers, classes=classes)
    for products in (sums.within(0), sums.within_whole, sums.within_without(slice(0, N))):
        assert np.isnan(products.pairs).all()
        assert np.isnan(products.own).all()


def test_every_sample_in_a_class_of_its_own_or_all_in_one(rng: np.random.Generator) -> None:
    layers = layers_of(rng)
    for classes in (np.arange(N), np.zeros(N, int)):
        sums = summed(layers, classes=classes)
        assert np.isnan(sums.within(0).pairs).all()
        check(sums.all, Expected(layers, "equal").on(np.arange(N)))


def test_without_subsets(rng: np.random.Generator) -> None:
    layers = layers_of(rng)
    none = np.zeros((0, 1), bool)
    sums = summed(layers, cells=np.zeros(N, int), subsets=none, panel=12, tile=5)
    expected = Expected(layers, "equal")
    check(sums.all, expected.on(np.arange(N)))
    check(left_out(sums.without(slice(4, 5)), 0), expected.on(np.delete(np.arange(N), 4)))
    check(sums.within_whole, expected.within(np.arange(N)))


@pytest.mark.parametrize("sides", ["equal", "partly shared"])
def test_a_layer_that_is_constant_on_a_subset_has_no_value_there(rng: np.random.Generator, sides: str) -> None:
    layers = layers_of(rng)
    layers[2][subset(0)] = 7.3
    sums = summed(layers, sides, panel=12, tile=5)
    place = Expected(layers, sides).every.index(2)
    assert np.isnan(sums.subset(0).own).tolist() == [k == place for k in range(len(sums.layers))]
    for s in (1, 2, 3, 4):
        assert np.isfinite(sums.subset(s).own).all()
    assert np.isfinite(sums.all.own).all()
    assert np.isfinite(sums.without(slice(0, N)).own).all()


def test_a_layer_that_varies_in_one_sample_has_no_value_without_it(rng: np.random.Generator) -> None:
    layers = layers_of(rng)
    layers[0] = np.ones((N, 3))
    layers[0][[4, 9]] = rng.normal(size=(2, 3)) * 100  # without either, a single sample differs from the others
    own = summed(layers, panel=12, tile=5).without(slice(0, N)).own
    assert np.flatnonzero(np.isnan(own[:, 0])).tolist() == [4, 9]
    assert np.isfinite(own[:, 1:]).all()


@pytest.mark.parametrize("shift", [0, 30, 1000])
def test_float32_is_as_accurate_as_the_comparison(rng: np.random.Generator, shift: float) -> None:
    """Large means are subtracted before anything is rounded to float32."""
    n = 200
    layers = [(rng.normal(size=(n, p)) + shift).astype(np.float32) for p in (6, 64, 20)]
    halves = draw_halves(np.arange(n), 4, seed=0)
    classes = np.arange(n) % 7
    SIDES["three"] = ([0, 1, 2], [0, 1, 2])
    sums = summed(layers, "three", classes=classes, cells=halves.cells, subsets=halves.subsets, panel=64, tile=32)
    exact = [scaled(x.astype(np.float64)) for x in layers]
    expected = Expected(exact, "three")

    def error(products: Products, reference: tuple[Array, Array], scale: Array | None = None) -> float:
        """Return the largest error of a cosine, or of an inner product in units of ``scale``."""
        norms = np.sqrt(reference[1] if scale is None else scale)
        return float(np.abs((products.pairs - reference[0]) / norms / norms[:, None]).max())

    everything = np.arange(n)
    plain = CKA().block(factors(layers), factors(layers))
    of_all = expected.on(everything)
    norms = np.sqrt(of_all[1])
    today = np.abs(plain - of_all[0] / norms / norms[:, None]).max()
    limit = max(1e-6, 2 * float(today))
    assert error(sums.all, of_all) < limit
    for s in range(len(halves.subsets)):
        assert error(sums.subset(s), expected.on(halves.samples(s))) < limit
    without = sums.without(slice(0, 10))
    for i in range(10):
        assert error(left_out(without, i), expected.on(np.delete(everything, i))) < limit
    energies = of_all[1] / (n * (n - 3))
    for s, samples in enumerate([everything, *(halves.samples(k) for k in range(len(halves.subsets)))]):
        assert error(sums.within(s), expected.within(samples, classes), energies) < 2 * limit
    within = sums.within_without(slice(0, 10))
    for i in range(10):
        reference = expected.within(np.delete(everything, i), classes)
        assert error(left_out(within, i), reference, energies) < 2 * limit


def check_within(sums: SampleSums, expected: Expected, classes: NDArray[np.int64], rtol: float) -> None:
    """Check all values within classes: of all samples, of halves, and without each of some samples."""
    everything = np.arange(len(classes))
    check(sums.within(0), expected.within(everything, classes), rtol)
    check(sums.within_whole, expected.within(everything, classes), rtol)
    for s, cells in enumerate(sums._subsets):
        check(sums.within(1 + s), expected.within(everything[cells[sums._cells.numpy()]], classes), rtol)
    without = sums.within_without(slice(0, 3))
    for i in range(3):
        check(left_out(without, i), expected.within(np.delete(everything, i), classes), rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1 / 30, 1 / 150])
def test_tight_classes_lose_no_digits(rng: np.random.Generator, dtype: Any, spread: float) -> None:
    """Deviations from class means have the digits that features leave them; only float32 rounds these."""
    n = 140
    classes = np.arange(n) % 7
    layers = [(rng.normal(size=(7, p))[classes] + spread * rng.normal(size=(n, p))).astype(dtype) for p in (6, 64, 20)]
    halves = draw_halves(np.arange(n), 3, seed=0)
    SIDES["three"] = ([0, 1, 2], [0, 1, 2])
    sums = summed(layers, "three", classes=classes, cells=halves.cells, subsets=halves.subsets, panel=64, tile=32)
    expected = Expected([x.astype(np.float64) for x in layers], "three")
    check_within(sums, expected, classes, rtol=1e-12 if dtype == np.float64 else 3e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sample_far_from_all_others_takes_no_digits(rng: np.random.Generator, dtype: Any) -> None:
    """Sums without it are not those of rounding errors of its own sums; the largest is 10,000 times the others."""
    n = 140
    classes = np.arange(n) % 7
    layers = [rng.normal(size=(n, p)).astype(dtype) for p in (6, 64, 20)]
    for x in layers:
        x[1] *= 10_000
    halves = draw_halves(np.arange(n), 3, seed=0)
    SIDES["three"] = ([0, 1, 2], [0, 1, 2])
    sums = summed(layers, "three", classes=classes, cells=halves.cells, subsets=halves.subsets, panel=64, tile=32)
    expected = Expected([x.astype(np.float64) for x in layers], "three")
    check_within(sums, expected, classes, rtol=1e-4)
    check(sums.all, expected.on(np.arange(n)))
    check(left_out(sums.without(slice(0, 1)), 0), expected.on(np.delete(np.arange(n), 0)), 1e-9)
    without = left_out(sums.without(slice(1, 2)), 0)  # offsets of all samples depend on the one that is left out
    reference = expected.on(np.delete(np.arange(n), 1))
    if dtype == np.float64:
        check(without, reference, 0.02)
    else:
        assert np.isnan(without.own).all()  # what float32 rounds in the features of that sample is larger


def shared_sums(layers: Sequence[Array], sides: str, shares: Sequence[Any], **options: Any) -> SampleSums:
    """Sum as several processes do, each of which adds a share of the units and sums the features of some layers."""
    grams, exchanged = factors(layers), list[dict[int, Any]]()
    rows, columns = ([grams[k] for k in side] for side in SIDES[sides])
    parts = [
        SampleSums(rows, columns, cells=CELLS, subsets=SUBSETS, classes=Groups.of(CLASSES), **options) for _ in shares
    ]
    for part, of in zip(parts, np.array_split(np.arange(len(grams)), len(shares)), strict=True):
        exchanged.append({int(k): part._sum_features(int(k)) for k in of if k < len(part.layers)})
    for rank, (part, share) in enumerate(zip(parts, shares, strict=True)):
        part.prepare(lambda _: exchanged, Ranks(rank, len(shares)).part)
        part.accumulate([part.order[k] for k in share], lambda: None)
    sums = iter([torch.stack(of_all).sum(0) for of_all in zip(*(part.state.values() for part in parts), strict=True)])
    parts[0].exchange(lambda _: next(sums))
    return parts[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sides", ["equal", "partly shared"])
@pytest.mark.parametrize("count", [2, 3])
def test_sums_do_not_depend_on_who_adds_them(rng: np.random.Generator, dtype: Any, sides: str, count: int) -> None:
    """Any division of the units, in any order, gives the same whole numbers."""
    layers = [x.astype(dtype) for x in layers_of(rng)]
    options: dict[str, Any] = {"panel": 7, "tile": 3, "cubes": True}
    whole = summed(layers, sides, **options)
    shared = shared_sums(layers, sides, np.array_split(rng.permutation(len(whole.order)), count), **options)
    for name, values in whole.state.items():
        assert torch.equal(values, values.round()), name
        assert (values.abs() < (2**62 if values.dtype == torch.int64 else 2**53)).all(), name
        assert torch.equal(shared.state[name], values), name
    for of_shared, of_whole in (
        (shared.all, whole.all), (shared.within_whole, whole.within_whole), (shared.subset(1), whole.subset(1)),
        (shared.within(2), whole.within(2)), (shared.without(slice(0, N)), whole.without(slice(0, N))),
    ):  # fmt: skip
        np.testing.assert_array_equal(of_shared.pairs, of_whole.pairs)
        np.testing.assert_array_equal(of_shared.own, of_whole.own)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(rng: np.random.Generator, count: int) -> None:
    """For one layer, too, which a single thread centres and multiplies."""
    layers = [rng.normal(size=(150, 900)).astype(np.float32) for _ in range(count)]
    SIDES["these"] = ([*range(count)],) * 2
    results = []
    for threads in (1, 2, 4):
        with torch_threads(threads):
            sums = summed(layers, "these", classes=np.arange(150) % 5, cells=np.arange(150) % 4, cubes=True)
            results.append([*sums.state.values(), *(torch.from_numpy(sums.within(s).own) for s in range(3))])
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


@pytest.mark.parametrize("values", [1, 40, 100])
def test_sums_of_few_layers_at_a_time_are_those_of_all(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    layers, options = layers_of(rng), {"panel": 7, "tile": 3}
    whole = summed(layers, "equal", **options)
    assert whole._runs_of_layers() == [range(5)]
    monkeypatch.setattr(sample_sums, "CELL_SUMS", values)
    few = summed(layers, "equal", **options)
    assert len(few._runs_of_layers()) > 1
    assert [k for run in few._runs_of_layers() for k in run] == [*range(len(few.layers))]
    assert all(torch.equal(few.state[name], sums) for name, sums in whole.state.items())
    np.testing.assert_array_equal(few.within(1).pairs, whole.within(1).pairs)


def test_every_unit_is_a_step(rng: np.random.Generator) -> None:
    grams, steps = factors(layers_of(rng)), list[None]()
    sums = SampleSums(grams, grams, cells=CELLS, subsets=SUBSETS, panel=12, tile=5)
    sums.prepare(lambda of_process: [of_process])
    sums.accumulate(list(sums.order), lambda: steps.append(None))
    assert len(steps) == sums.units == 6  # three panels


def test_the_scale_of_features_does_not_matter(rng: np.random.Generator) -> None:
    """Whole numbers of a tiny unit hold features of any size, as kernels are scaled by powers of two before."""
    layers = layers_of(rng)
    scaled = [x * 2.0**k for x, k in zip(layers, (-300, 200, 30, 0, -40), strict=True)]
    one, other = (summed(of, panel=12, tile=5) for of in (layers, scaled))
    for a, b in (
        (one.all, other.all),
        (one.subset(1), other.subset(1)),
        (one.without(slice(3, 9)), other.without(slice(3, 9))),
    ):
        first, second = (p.pairs / np.sqrt(p.own[..., :, None] * p.own[..., None, :]) for p in (a, b))
        np.testing.assert_allclose(first, second, atol=1e-10)


def test_other_kernels_are_refused(rng: np.random.Generator) -> None:
    layers = layers_of(rng)
    linear = factors(layers)
    message = "linear kernels of independent samples"
    rbf = [get("cka:kernel=rbf").recipe(torch.from_numpy(x)) for x in layers]
    minibatches = [get("cka:estimator=minibatch,batch=8").recipe(torch.from_numpy(x)) for x in layers]
    grouped = [of.grouped(Groups.of(np.arange(N) // 3)) for of in linear]
    for grams in (rbf, minibatches, grouped):
        with pytest.raises(InvalidInputError, match=message):
            SampleSums(grams, grams, cells=CELLS, subsets=SUBSETS)
    with pytest.raises(InvalidInputError, match="the last of the rows and the first of the columns"):
        SampleSums(linear[:3], linear[1::-1], cells=CELLS, subsets=SUBSETS)
