"""All pairs by every algorithm and division of the work equal the slow reference; parts sum to the same bits."""

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from repsim.metrics import get
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.feature_space import MomentSweep, flop_of_moments, units_of_moments
from repsim.metrics.algorithms.gram_space import GramSweep, flop_of_grams, panels, tile_side, tiles
from repsim.metrics.algorithms.in_memory import compare_in_memory
from repsim.metrics.algorithms.pair_by_pair import PairSweep
from repsim.metrics.algorithms.sweep import Sweep
from repsim.metrics.base import Array
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram, Gram, KernelMatrix
from repsim.metrics.recipes.stored_kernels import StoredGrams, TwoSketches
from repsim.testing.examples import RowsOnDisk, related_layers
from tests.largest_tensor import Largest
from tests.metrics import references
from tests.metrics.references import minibatch_cka, sketched_cka
from tests.threads import torch_threads

CPU = torch.device("cpu")


def cka(spec: str) -> CKA:
    metric = get(spec)
    assert isinstance(metric, CKA)
    return metric


def tensors(recipe: CentredGram, layers: list[Array]) -> list[Gram]:
    return [recipe(torch.from_numpy(x)) for x in layers]


# Any algorithm, any division of the work


SPECS: dict[str, dict[str, Any]] = {
    "cka": {},
    "cka:estimator=biased": {"estimator": "biased"},
    "cka:estimator=minibatch,batch=5": {"batch": 5},
    "cka:kernel=rbf": {"kernel": "rbf"},
    "cka:kernel=rbf,estimator=biased,sigma=2.0": {"kernel": "rbf", "estimator": "biased", "sigma": 2.0},
    "cka:kernel=rbf,estimator=minibatch,batch=4": {"kernel": "rbf", "batch": 4},
}


@dataclass
class Case:
    """Layers of all shapes, some in files; rows and columns may share, repeat and reorder them."""

    layers: list[Array]
    streamed: list[bool]
    rows: list[int]
    columns: list[int]

    def factors(self, recipe: CentredGram) -> list[Gram]:
        sources = zip(self.layers, self.streamed, strict=True)
        return [recipe(RowsOnDisk(x) if streamed else torch.from_numpy(x)) for x, streamed in sources]

    def pick(self, factors: list[Any]) -> tuple[list[Any], list[Any]]:
        return [factors[k] for k in self.rows], [factors[k] for k in self.columns]

    def block(self, square: Any) -> Array:
        return np.asarray(square)[np.ix_(self.rows, self.columns)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(5, 16))
    widths = draw(st.lists(st.one_of(st.just(1), st.just(n), st.integers(2, 40)), min_size=1, max_size=4))
    layers = related_layers(np.random.default_rng(draw(st.integers(0, 5))), n, *widths)
    for k, x in enumerate(layers):
        offset = draw(st.sampled_from([0, 1, 100])) * np.linspace(-1, 1, x.shape[1])
        layers[k] = (x + offset) * draw(st.sampled_from([1, 1e-6, 1e6]))
    indices = st.lists(st.integers(0, len(layers) - 1), min_size=1, max_size=4)
    streamed = draw(st.lists(st.booleans(), min_size=len(layers), max_size=len(layers)))
    return Case(layers, streamed, draw(indices), draw(indices))


sizes = st.integers(1, 20)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=25)
@given(case=cases(), data=st.data())
@pytest.mark.slow
def test_any_cut_gives_the_reference(spec: str, case: Case, data: st.DataObject) -> None:
    options = SPECS[spec]
    metric = cka(spec)
    layers = case.layers
    if "sigma" in options:  # in units of the features, and so one for all would be no width for most
        layers = case.layers = [x / np.abs(x).max() for x in layers]
    expected = case.block([[references.cka(x, y, **options) for y in layers] for x in layers])
    rows, columns = case.pick(case.factors(metric.recipe))
    panel, tile, held = data.draw(st.tuples(sizes, sizes, st.integers(1, 6)), label="panel, tile, held")
    sweeps: list[Sweep[Any]] = [GramSweep(rows, columns, [metric], panel=panel, tile=tile, held=held)]
    if "moments" in metric.algorithms:
        chunk, room = data.draw(st.tuples(sizes, st.integers(1, 50_000)), label="chunk, room")
        sweeps.append(MomentSweep(rows, columns, [metric], chunk=chunk, room=room))
    for sweep in sweeps:
        (values,) = sweep.run()
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)


# Accuracy of float32


def hard_layers() -> list[Array]:
    """Related layers in float32: plain, far from 0, heavy-tailed, of low rank and scaled, with one huge sample."""
    rng = np.random.default_rng(2)
    n = 1500
    signal = rng.normal(size=(n, 5))
    plain, far, tails, low, huge = (
        signal @ rng.normal(size=(5, p)) + rng.normal(size=(n, p)) for p in (40, 130, 60, 150, 30)
    )
    far += 100 * far.std(0) * rng.choice([-1, 1], size=130)
    tails += rng.standard_t(3, size=tails.shape)
    low = 1e-6 * signal[:, :2] @ rng.normal(size=(2, 150))
    huge[77] *= 30
    return [x.astype(np.float32) for x in (plain, far, tails, low, huge)]


def exact(layers: list[Array], kernel: str, estimator: str) -> Array:
    """Return the values of all pairs in float64, from complete Gram matrices."""
    centred = []
    for layer in layers:
        x = layer.astype(np.float64)
        x -= x.mean(0)
        K = x @ x.T
        if kernel == "rbf":
            g = np.diag(K)
            squared = (g[:, None] + g - 2 * K).clip(0)
            np.fill_diagonal(squared, 0)
            K = np.exp(-2 * squared / np.median(squared))
        means = K.mean(0)
        centred.append(
            references.u_centred(K) if estimator == "debiased" else K - means - means[:, None] + means.mean()
        )
    products = np.array([[np.vdot(A, B) for B in centred] for A in centred])
    return np.asarray(products / np.sqrt(np.outer(np.diag(products), np.diag(products))))


@pytest.fixture(scope="module")
def hard() -> list[Array]:
    return hard_layers()


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.slow
def test_float32_is_accurate_whatever_the_cut(hard: list[Array], kernel: str, estimator: str) -> None:
    expected = exact(hard, kernel, estimator)
    metric = cka(f"cka:kernel={kernel},estimator={estimator}")
    factors = tensors(metric.recipe, hard)
    sweeps: list[Sweep[Any]] = [
        GramSweep(factors, factors, [metric], panel=panel, tile=tile)
        for panel, tile in ((2048, 2048), (2048, 512), (700, 131), (1500, 40))
    ]
    if kernel == "linear":
        sweeps += [MomentSweep(factors, factors, [metric], chunk=chunk, room=2**22) for chunk in (4096, 1000, 17)]
    for sweep in sweeps:
        (values,) = sweep.run()
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


def test_sums_of_moments_are_kept_in_float64(rng: np.random.Generator) -> None:
    """Runs of 16 samples: 1,200 partial sums, of which float32 would lose more than the products do."""
    x, y = (layer.astype(np.float32) for layer in related_layers(rng, 20_000, 3, 4))
    metric = CKA()
    a, b = tensors(metric.recipe, [x, y])
    (values,) = MomentSweep([a], [b], [metric], chunk=16, room=1).run()
    assert values[0, 0] == pytest.approx(metric(x.astype(np.float64), y.astype(np.float64)), abs=1e-9)


# Units


@dataclass(frozen=True)
class Unnormalised:
    """A measure that only compares pairs."""

    of: CKA
    normalised: bool = False

    def block(self, rows: Sequence[Any], columns: Sequence[Any]) -> Array:
        return self.of.block(rows, columns)


ALGORITHMS = ["gram", "moments", "pairs"]


def sweep_of(algorithm: str, rows: list[Any], columns: list[Any], measures: list[CKA]) -> Sweep[Any]:
    if algorithm == "gram":
        return GramSweep(rows, columns, measures, panel=9, tile=4, held=3)
    if algorithm == "moments":
        return MomentSweep(rows, columns, measures, chunk=7, room=8 * 41**2)
    return PairSweep(rows, columns, [Unnormalised(measure) for measure in measures], group=2)


@pytest.fixture(scope="module")
def prepared() -> list[Gram]:
    layers = [x.astype(np.float32) for x in related_layers(np.random.default_rng(3), 41, 3, 41, 20, 9)]
    recipe = CentredGram()
    return [recipe(RowsOnDisk(x) if k % 2 else torch.from_numpy(x)) for k, x in enumerate(layers)]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=8)
@given(data=st.data())
def test_units_in_any_order_and_process(prepared: list[Gram], algorithm: str, data: st.DataObject) -> None:
    """Processes share the units and take them in any order: the sum is the same to the bit."""
    measures = [CKA(), CKA(estimator="biased")]
    alone = sweep_of(algorithm, prepared[:3], prepared[1:], measures)
    units = alone.units
    assert sorted(alone.order) == list(range(units))
    assert units > 3
    expected = alone.run()
    order = data.draw(st.permutations(range(units)))
    shares = data.draw(st.integers(1, 4))
    results: dict[int, Array] = {}
    for k in range(shares):
        share = order[k::shares]
        parts = sweep_of(algorithm, prepared[:3], prepared[1:], measures).parts(share)
        results |= dict(zip(share, parts, strict=True))
    assert {part.shape for part in results.values()} == {(alone.size,)}
    for values, same in zip(expected, alone.values([results[unit] for unit in range(units)]), strict=True):
        assert values.tobytes() == same.tobytes()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_unit_counts(prepared: list[Gram], algorithm: str) -> None:
    """Without any one unit some value changes."""
    sweep = sweep_of(algorithm, prepared[:3], prepared[1:], [CKA()])
    parts = list(sweep.parts(range(sweep.units)))
    (expected,) = sweep.values(parts)
    for unit in range(sweep.units):
        (values,) = sweep.values([*parts[:unit], *parts[unit + 1 :]])
        assert not np.array_equal(values, expected, equal_nan=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_several_measures_at_once_are_each_alone(prepared: list[Gram], algorithm: str) -> None:
    measures = [CKA(), CKA(estimator="biased")]
    both = sweep_of(algorithm, prepared, prepared, measures).run()
    for measure, values in zip(measures, both, strict=True):
        (alone,) = sweep_of(algorithm, prepared, prepared, [measure]).run()
        np.testing.assert_array_equal(values, alone)
    assert np.abs(both[0] - both[1]).max() > 0.01


# Samples that a Gram sweep covers


class Table(KernelMatrix):
    """Kernel matrix of integers without centring, so that sums are exact. It counts reads."""

    def __init__(self, n: int, block: int, seed: int, most: int = 9, dtype: torch.dtype = torch.float64) -> None:
        table = np.random.default_rng(seed).integers(-most, most + 1, (n, n))
        self.table = torch.from_numpy(table + table.T).to(dtype)
        self._block = block
        self.reads: list[int] = []
        self.most = 0
        """Panels that were somewhere at once."""
        self._alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self._lock = threading.Lock()

    n = property(lambda self: len(self.table))
    p = 0
    block = property(lambda self: self._block)
    dtype = property(lambda self: self.table.dtype)
    device = CPU
    eps = 0.0
    in_memory = False

    def rows(self, i: slice) -> torch.Tensor:
        x = self.table[i].clone()
        with self._lock:
            self.reads.append(i.start)
            self._alive.add(x)
            self.most = max(self.most, len(self._alive))
        return x

    def tile(self, x: torch.Tensor, y: torch.Tensor, i: slice, j: slice, out: torch.Tensor) -> None:  # noqa: ARG002
        assert torch.equal(y, self.table[j])
        out.copy_(x[:, j])

    def offsets(self, *, unbiased: bool) -> torch.Tensor:  # noqa: ARG002
        return torch.zeros(self.n // self.block, self.block, dtype=torch.float64)


@dataclass(frozen=True)
class Sums:
    """A measure that is the plain sum S_ab."""

    unbiased: bool = False
    normalised: bool = False
    symmetric: bool = True

    def moment(self, cross: Cross[Any]) -> torch.Tensor:
        return cross.product.square().sum()

    def finish(self, values: Array) -> Array:
        return values


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 6), sizes, sizes, st.booleans())
def test_every_pair_of_samples_counts_once(blocks: int, size: int, panel: int, tile: int, unbiased: bool) -> None:
    """Whole, or in blocks; the diagonal, too, unless it is left out."""
    n = blocks * size
    for block in {n, size}:
        A, B = Table(n, block, 1), Table(n, block, 2)
        (values,) = GramSweep([A, B], [A], [Sums(unbiased)], panel=panel, tile=tile).run()
        counted = np.kron(np.eye(n // block), np.ones((block, block)))
        if unbiased:
            np.fill_diagonal(counted, 0)
        expected = [[np.sum(K.table.numpy() * A.table.numpy() * counted)] for K in (A, B)]
        np.testing.assert_array_equal(values, expected)


def test_rows_of_a_tile_are_summed_in_float64() -> None:
    """A sum over one row is a whole number that float32 holds, but one over all rows is not."""
    n = 300
    A, B = (Table(n, n, seed, 70, torch.float32) for seed in (1, 2))
    K, L = (table.table.double() for table in (A, B))
    assert (K * K).sum(1).max() < 2**24 < (K * K).sum() / 10
    for tile in (n, 128):
        parts = GramSweep([A], [A, B], [Sums()], panel=n, tile=tile).parts([0])
        products, squares = np.split(next(parts), 2)
        np.testing.assert_array_equal(products, [(K * K).sum(), (K * L).sum()])
        np.testing.assert_allclose(squares, [(K * K).sum(), (L * L).sum()], rtol=1e-8)  # roots of rows are rounded


@given(st.integers(1, 40), st.integers(1, 8), sizes)
def test_panels_are_runs_of_samples_and_no_block_is_cut(blocks: int, size: int, panel: int) -> None:
    n = blocks * size
    for block in {n, size}:
        runs = list(panels(n, block, panel))
        assert [k for run in runs for k in range(run.start, run.stop)] == list(range(n))
        assert all(run.stop - run.start <= max(panel, block if block < n else 1) for run in runs)
        if block < n:
            assert all(run.start % block == 0 == run.stop % block for run in runs)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), sizes)
def test_no_tile_is_larger_than_requested(a: int, size: int, b: int, gap: int, side: int) -> None:
    panel = slice(gap * size, (gap + a) * size)
    for i, j in (
        *tiles(panel, panel, size, side),
        *tiles(panel, panel, 10**6, side),
        *tiles(panel, slice(panel.stop, panel.stop + b * size), 10**6, side),
    ):
        assert 0 < i.stop - i.start <= side
        assert 0 < j.stop - j.start <= side
        assert i == j or i.stop <= j.start  # of the upper triangle


class FastReader(ThreadPoolExecutor):
    """Executor whose reader finishes before the caller continues, which gives the largest memory use on any machine."""

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        future = super().submit(*args, **options)
        wait([future])
        return future


@pytest.mark.parametrize("count", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("held", [1, 2, 3, 4, 6, 20])
def test_held_panels_are_not_read_again(count: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With r panels that stay, every r-th sweep past the others reads what is right of them: what
    `repsim.engine.planning` says.

    And no more panels are in memory than those that are held, and one that is read ahead.
    """
    monkeypatch.setattr("repsim.metrics.recipes.rows.ThreadPoolExecutor", FastReader)
    table = Table(2 * count, 2 * count, 0)
    sweep = GramSweep([table], [table], [Sums()], panel=2, tile=2, held=held)
    sweep.run()
    stay = max(1, held - 1)
    assert len(table.reads) <= sum(count - start for start in range(0, count, stay))
    assert set(table.reads) == set(range(0, 2 * count, 2))
    assert table.most <= max(2, held) + 1
    if held >= count:
        assert len(table.reads) == count
    other = Table(2 * count, 2 * count, 0)
    list(GramSweep([other], [other], [Sums()], panel=2, tile=2, held=held).parts(range(sweep.units)))
    assert len(table.reads) <= len(other.reads)
    if 2 < held < count - 1:
        assert len(table.reads) < len(other.reads)  # the order is what saves it


def test_blocks_are_read_once() -> None:
    table = Table(24, 4, 0)
    GramSweep([table], [table], [Sums()], panel=9, tile=3).run()
    assert table.reads == [0, 8, 16]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk", [20, 1000])
def test_moments_in_threads_are_those_of_one_thread(rng: np.random.Generator, chunk: int, dtype: Any) -> None:
    """A thread multiplies the layers of its own pair; in one run of samples the product keeps its dtype."""
    arrays = [x.astype(dtype) for x in related_layers(rng, 90, 40, 50, 8, 600)]
    factors = [CentredGram()(torch.from_numpy(x)) for x in arrays]
    sweeps = [MomentSweep(factors[:2], factors, [CKA(), Sums()], chunk=chunk, room=2**24) for _ in range(2)]
    with torch_threads(1):
        expected = sweeps[0].run()
    with torch_threads(3):
        values = sweeps[1].run()
    exact = [factor.rows(slice(None)).double().numpy() for factor in factors]
    sums = [[np.square(x.T @ y).sum() for y in exact] for x in exact[:2]]
    for one, several in zip(expected, values, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(values[1], sums, rtol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(
    "specs",
    [
        ["cka"], ["cka", "cka:estimator=biased"], ["cka:estimator=minibatch,batch=8"], ["cka:kernel=rbf"],
        ["cka:kernel=rbf,estimator=minibatch,batch=8"],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_the_same_to_the_bit_with_any_number_of_threads(
    rng: np.random.Generator, specs: list[str], dtype: Any, tuned: Callable[..., None]
) -> None:
    """Preparation, tiles and sums over pairs are divided among threads in the same parts."""
    tuned(piece=200, scratch=64)
    layers = [torch.from_numpy(x.astype(dtype)) for x in related_layers(rng, 300, 40, 7, 65, 3)]
    measures = [cka(spec) for spec in specs]
    matrices = []
    for threads in (1, 2, 5):
        with torch_threads(threads):
            factors = [measures[0].recipe(x) for x in layers]
            matrices.append(GramSweep(factors[:2], factors, measures, panel=160, tile=150).run())
    for other in matrices[1:]:
        for a, b in zip(matrices[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# Choices of layers


@dataclass(frozen=True)
class FirstColumn:
    """Asymmetric measure: the first feature of a with all features of b."""

    unbiased: bool = False
    normalised: bool = False
    symmetric: bool = False

    def moment(self, cross: Cross[Any]) -> torch.Tensor:
        return cross.product[0].sum()

    def finish(self, values: Array) -> Array:
        return values


def test_measures_that_are_not_symmetric(rng: np.random.Generator) -> None:
    factors = tensors(CentredGram(), related_layers(rng, 20, 3, 7, 5))
    features = [factor.features[:].numpy() for factor in factors]
    expected = np.array([[(x.T @ y)[0].sum() for y in features] for x in features])
    for rows, columns in (([0, 1, 2], [0, 1, 2]), ([2, 0], [0, 1, 2]), ([0, 1], [2])):
        sweep = MomentSweep([factors[k] for k in rows], [factors[k] for k in columns], [FirstColumn()], chunk=6, room=1)
        np.testing.assert_allclose(sweep.run()[0], expected[np.ix_(rows, columns)], rtol=1e-10)


def test_a_layer_that_is_there_twice_is_read_once(rng: np.random.Generator) -> None:
    x, y = (RowsOnDisk(layer) for layer in related_layers(rng, 20, 3, 7))
    a, b = (CentredGram()(layer) for layer in (x, y))
    for layer in (x, y):
        layer.reads.clear()
    (values,) = MomentSweep([a, b], [b, a], [CKA()], chunk=20, room=10**6).run()
    assert x.reads == y.reads == [20]
    assert np.diag(values[:, ::-1]) == pytest.approx(1, abs=1e-12)
    assert values[0, 0] == pytest.approx(values[1, 1], abs=1e-12)
    assert abs(values[0, 0]) < 0.99


@given(
    rows=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    more=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    fit=st.sampled_from([0, 0.3, 1, 1.5, 3, 10]),
    symmetric=st.booleans(),
    norms=st.booleans(),
)
@example(rows=[20] * 6, more=[20], fit=1, symmetric=False, norms=False)  # the columns are few, or the rows
@example(rows=[20], more=[20] * 6, fit=1, symmetric=False, norms=False)
def test_moments_are_grouped_to_fit_and_none_is_missing(
    rows: list[int], more: list[int], fit: float, symmetric: bool, norms: bool
) -> None:
    """``fit``: how many of the largest cross-moments have room."""
    columns = [*rows, *more] if symmetric else more
    widths = [*rows, *more]
    room = int(8 * fit * max(widths) ** 2)
    units = units_of_moments(rows, columns, room, symmetric=symmetric, norms=norms)
    results = [pair for unit in units for pair in unit]
    height, count = len(rows), len(widths)
    wanted = {(u, v) for u in range(height) for v in range(u if symmetric else height, count)}
    if norms:
        wanted |= {(u, u) for u in range(count)}
    assert len(results) == len(set(results))
    assert set(results) == wanted
    if fit >= 1:
        assert all(8 * sum(widths[u] * widths[v] for u, v in unit) <= room for unit in units)
    if 8 * sum(widths) ** 2 <= room:
        assert len(units) <= 1 + norms  # what fits is not cut


# Memory and operations


@pytest.mark.parametrize("spec", ["cka", "cka:kernel=rbf,sigma=2.0", "cka:estimator=minibatch,batch=500"])
def test_nothing_is_as_large_as_a_gram_matrix(rng: np.random.Generator, spec: str) -> None:
    """Preparing a layer that is in a file, reading panels, and a sweep take pieces, panels, and a stack of tiles."""
    n, widths, panel, tile = 3000, (50, 90), 400, 100
    metric = cka(spec)
    layers = [RowsOnDisk(x.astype(np.float32)) for x in related_layers(rng, n, *widths)]
    with torch_threads(1), Largest() as preparing:
        factors = [metric.recipe(layer) for layer in layers]
    if metric.kernel == "linear":
        assert preparing.values <= max(2**19, 500**2)
    else:
        assert preparing.values <= 2048**2
    assert not any(factor.in_memory for factor in factors)
    sweeps: list[Sweep[Any]] = [GramSweep(factors, factors, [metric], panel=panel, tile=tile)]
    bounds = [max(len(factors) * tile**2, max(panel, metric.batch or 0) * max(widths))]
    if "moments" in metric.algorithms:
        sweeps.append(MomentSweep(factors, factors, [metric], chunk=panel, room=8 * 90**2))
        bounds.append(panel * max(widths))
    for sweep, bound in zip(sweeps, bounds, strict=True):
        for layer in layers:
            layer.reads.clear()
            layer.readers.clear()
        with torch_threads(1), Largest() as sweeping:
            list(sweep.parts(list(sweep.order)[:4]))
        assert 0 < sweeping.values <= bound
        assert {name.split("_")[0] for name in layers[0].readers} == {"repsim-reader"}
        assert max(layers[0].reads) <= max(panel, metric.batch or 0)
    with Largest() as reading:  # which the sweep does in another thread
        factors[1].rows(slice(0, panel))
    assert reading.values <= 3 * panel * widths[1]


@pytest.mark.parametrize("layers", [1, 7, 60, 500, 5000])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_a_stack_of_tiles_takes_no_more_than_it_may(layers: int, itemsize: int) -> None:
    side = tile_side(layers, itemsize)
    assert 64 <= side <= 512
    assert side == 64 or layers * itemsize * side**2 <= 2**27
    assert side == 512 or layers * itemsize * (side + 1) ** 2 > 2**27


def flop_of(work: Callable[[], object]) -> int:
    """Return the operations of some work, which torch counts in one thread only."""
    with torch_threads(1), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("batch", [None, 64])
def test_operations_of_a_gram_sweep_match_their_count(rng: np.random.Generator, batch: int | None) -> None:
    """But for the lower halves of the quarters of tiles on the diagonal."""
    n, widths, tile = 256, (5, 200, 30), 16
    factors = tensors(CentredGram(batch=batch), related_layers(rng, n, *widths))
    sweep = GramSweep(factors[:2], factors, [CKA()], panel=128, tile=tile)
    assert sweep.flop == flop_of_grams(n, batch or n, widths, 6) == n * (batch or n) * (5 + 200 + 30 + 6)
    assert flop_of(sweep.run) == pytest.approx(sweep.flop * (1 + tile / 2 / (batch or n)), rel=1e-12)


def test_operations_of_a_moment_sweep_match_their_count(rng: np.random.Generator) -> None:
    """But for the lower halves of the blocks on the diagonal of X'X."""
    n, widths = 50, (5, 1024, 30)
    factors = tensors(CentredGram(), related_layers(rng, n, *widths))
    sweep = MomentSweep(factors[:2], factors, [CKA()], chunk=20, room=2**20)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert sweep.flop == flop_of_moments(n, widths, pairs)
    extra = n * (5 * 5 + 1024 * 512 + 30 * 30)  # X'X as if it were no larger than a block, or in two
    assert flop_of(sweep.run) == sweep.flop + extra
    alone = MomentSweep(factors[:2], factors[2:], [Sums()], chunk=20, room=2**20)
    assert alone.flop == flop_of(alone.run) == 2 * n * 30 * (5 + 1024)


@pytest.mark.parametrize(("n", "widths"), [(300, (4, 8, 6)), (60, (300, 400, 500))], ids=["long", "wide"])
def test_a_few_layers_take_the_algorithm_of_fewer_operations(
    rng: np.random.Generator, n: int, widths: tuple[int, ...]
) -> None:
    layers = related_layers(rng, n, *widths)
    factors = tensors(CentredGram(), layers)
    sweeps: list[Sweep[Any]] = [
        GramSweep(factors, factors, [CKA()], panel=2048, tile=64),
        MomentSweep(factors, factors, [CKA()], chunk=4096, room=2**27),
    ]
    fewest, most = sorted(flop_of(sweep.run) for sweep in sweeps)
    assert 0 < flop_of(lambda: compare_in_memory(factors, factors, CKA())) <= 1.3 * fewest < most / 2
    values = compare_in_memory(factors, factors, CKA())
    expected = [[references.cka(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10)


# Compressed layers


@settings(max_examples=20)
@given(panel=sizes, tile=sizes, held=st.integers(1, 5), estimator=st.sampled_from(["debiased", "biased"]))
def test_block_grams_in_any_cut(panel: int, tile: int, held: int, estimator: str) -> None:
    layers = related_layers(np.random.default_rng(1), 40, 3, 8, 20)
    blocks = [torch.from_numpy(x.reshape(5, 8, -1)) for x in layers]
    factors = [StoredGrams()(x @ x.mT) for x in blocks]
    expected = [[minibatch_cka(x, y, 8, estimator=estimator) for y in layers] for x in layers[:2]]
    measure: Any = get(f"cka:estimator={estimator}")
    sweep = GramSweep(factors[:2], factors, [measure], panel=panel, tile=tile, held=held)
    np.testing.assert_allclose(sweep.run()[0], expected, rtol=0, atol=1e-11)


@pytest.mark.slow
@settings(max_examples=20)
@given(panel=sizes, tile=sizes, held=st.integers(1, 5), several=st.booleans())
def test_two_sketches_in_any_cut(panel: int, tile: int, held: int, several: bool) -> None:
    """Halves are not exchanged, wherever they are in the stack; both measures at once, too."""
    rng = np.random.default_rng(1)
    layers = [np.stack([x, x + 0.3 * rng.normal(size=x.shape)], 1) for x in related_layers(rng, 25, 6, 9, 30)]
    factors = [TwoSketches()(torch.from_numpy(x)) for x in layers]
    expected = [[sketched_cka(x, y) for y in layers] for x in layers[1:]]
    measures: list[CKA] = [CKA(), CKA(estimator="biased")] if several else [CKA()]
    sweep = GramSweep(factors[1:], factors, measures, panel=panel, tile=tile, held=held)
    np.testing.assert_allclose(sweep.run()[0], expected, rtol=0, atol=1e-10)


# Undefined values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("noisy", [False, True], ids=["constant but one", "rounding noise but one"])
def test_rounding_errors_are_no_value(rng: np.random.Generator, dtype: Any, streamed: bool, noisy: bool) -> None:
    """A layer that differs from a constant in one sample: what debiasing leaves is noise, never a 0 or a 1."""
    n = 60
    x, y = (layer.astype(dtype) for layer in related_layers(rng, n, 4, 70))
    spike = np.full((n, 3), 0.1, dtype)
    if noisy:
        spike[::2] = np.nextafter(dtype(0.1), dtype(1))
    spike[7] = rng.normal(size=3)
    layers = [x, spike, y, np.tile(spike, 30) * dtype(1e-6)]
    factors = [CentredGram()(RowsOnDisk(z) if streamed else torch.from_numpy(z)) for z in layers]
    lost = np.array([False, True, False, True])
    for panel, tile, chunk, room in ((60, 60, 60, 10**6), (13, 7, 7, 1)):
        for sweep in (
            GramSweep(factors, factors, [CKA()], panel=panel, tile=tile),
            MomentSweep(factors, factors, [CKA()], chunk=chunk, room=room),
        ):
            (values,) = sweep.run()
            np.testing.assert_array_equal(np.isnan(values), lost[:, None] | lost)
            (values,) = type(sweep)(factors[:1], factors[1:], [CKA()], **_cut(sweep)).run()
            np.testing.assert_array_equal(np.isnan(values), [lost[1:]])
            (values,) = type(sweep)(factors, factors, [CKA(estimator="biased")], **_cut(sweep)).run()
            assert np.isfinite(values).all()  # the biased estimator has a value for it
            np.testing.assert_allclose(np.diag(values), 1, rtol=0, atol=1e-6)


def _cut(sweep: GramSweep | MomentSweep) -> dict[str, Any]:
    return {"panel": 13, "tile": sweep.tile} if isinstance(sweep, GramSweep) else {"chunk": sweep.chunk, "room": 1}


def test_a_pair_without_a_value_spoils_no_other_of_its_block() -> None:
    """`PairSweep` has NaN where `Metric.block` has it, and other values are not affected."""

    class Differences:
        normalised = False

        def block(self, rows: Sequence[Any], columns: Sequence[Any]) -> Array:
            values = np.subtract.outer(rows, columns)
            return np.where(values == 0, np.nan, values)

    layers = [float(k**2) for k in range(7)]
    expected = Differences().block(layers[:4], layers[1:])
    for group in (1, 2, 3, 10):
        sweep = PairSweep(layers[:4], layers[1:], [Differences()], group=group)
        np.testing.assert_array_equal(sweep.run()[0], expected)
        assert sweep.units == len(list(itertools.product(range(-(-4 // group)), range(-(-7 // group)))))
