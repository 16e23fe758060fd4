"""Test values with samples left out, permuted and subsampled against values of indexed arrays."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import repsim
from repsim.engine import permutation, subsampling
from repsim.engine.resampling import leave_one_out, permuted, random_permutations, random_subsamples, subsampled
from repsim.errors import InvalidInputError, SampleMismatchError, UndefinedValueError
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.recipes.stored_kernels import StoredGrams, TwoSketches
from repsim.stores.writer import write_store
from repsim.testing.examples import RowsOnDisk, related_layers
from tests.metrics import references
from tests.metrics.references_rsm import distance_correlation

Reference = Callable[[Array, Array], float]
GRAM: dict[str, Reference] = {
    "cka": references.cka,
    "cka:kernel=rbf,sigma=6": partial(references.cka, kernel="rbf", sigma=6.0),
    "cka:estimator=biased": partial(references.cka, estimator="biased"),
    "cka:kernel=rbf,estimator=biased,sigma=6": partial(references.cka, kernel="rbf", estimator="biased", sigma=6.0),
    "distance_correlation": distance_correlation,
}
OTHERS: dict[str, Reference] = {
    "cca": references.cca,
    "cca:summary=r2": partial(references.cca, summary="r2"),
    "svcca:variance=0.9": partial(references.svcca, variance=0.9),
    "pwcca": references.pwcca,
    "cka:estimator=minibatch,batch=5": partial(references.cka, estimator="minibatch", batch=5),
}
ALL = GRAM | OTHERS


related = partial(related_layers, offset=3.0)  # means far from zero


def sides(rng: np.random.Generator, n: int) -> tuple[list[Array], list[Array]]:
    """Draw three row layers and two column layers, one of each side with more features than 25 samples."""
    layers = related(rng, n, 4, 30, 5, 3, 26)
    return layers[:3], layers[3:]


def values_of(reference: Reference, rows: list[Array], columns: list[Array]) -> Array:
    return np.array([[reference(x, y) for y in columns] for x in rows])


def rounded(rows: list[Array], columns: list[Array]) -> tuple[list[Array], list[Array]]:
    return [x.astype(np.float32) for x in rows], [y.astype(np.float32) for y in columns]


RESAMPLE: dict[str, Any] = {
    "leave_one_out": leave_one_out,
    "permuted": partial(permuted, permutations=random_permutations(20, 3)),
    "subsampled": partial(subsampled, samples=random_subsamples(20, 9, 3)),
}


# Leave one out


@pytest.mark.parametrize("n", [5, 6, 24])
@pytest.mark.parametrize("spec", ["cka", "cka:kernel=rbf,sigma=6"])
def test_leave_one_out(rng: np.random.Generator, spec: str, n: int) -> None:
    """With n = 5, HSIC_1 of the 4 samples left can be almost 0, which loses digits."""
    rows, columns = sides(rng, n)
    expected = [values_of(ALL[spec], *([np.delete(x, i, 0) for x in s] for s in (rows, columns))) for i in range(n)]
    values = leave_one_out(rows, columns, spec)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 if n > 6 else 1e-9)
    if n > 6:
        np.testing.assert_allclose(leave_one_out(*rounded(rows, columns), spec), expected, rtol=0, atol=1e-6)


def test_leave_one_out_keeps_the_width_of_all_samples(rng: np.random.Generator) -> None:
    (x,), (y,) = related(rng, 20, 4), related(rng, 20, 6)
    widths = [np.sqrt(np.median(np.sum((z[:, None] - z) ** 2, axis=2))) / 2 for z in (x, y)]
    kernels = [references.gram(z, "rbf", sigma=width) for z, width in zip((x, y), widths, strict=True)]
    for i in range(20):
        A, B = (references.u_centred(np.delete(np.delete(K, i, 0), i, 1)) for K in kernels)
        assert leave_one_out([x], [y], "cka:kernel=rbf")[i, 0, 0] == pytest.approx(references.cosine(A, B), abs=1e-12)


def test_layers_of_both_sides_are_compared_with_themselves(rng: np.random.Generator) -> None:
    layers = related(rng, 20, 4, 30, 7)
    copies = [x.copy() for x in layers]
    for name, resample in RESAMPLE.items():
        same_objects = resample([layers[2], layers[0], layers[0]], layers, "cka")
        equal_copies = resample([copies[2], copies[0], copies[0]], layers, "cka")
        np.testing.assert_allclose(same_objects, equal_copies, rtol=0, atol=1e-12)
        if name != "permuted":
            np.testing.assert_allclose(same_objects[:, [0, 1, 2], [2, 0, 0]], 1, rtol=0, atol=1e-12)


def test_layers_without_a_value_once_a_sample_is_left_out_are_nan(rng: np.random.Generator) -> None:
    """Only two samples differ from the others; without one of them, the debiased Gram matrix is 0."""
    (live,) = related(rng, 20, 5)
    for dtype in (np.float32, np.float64):
        two, dead = np.full((20, 3), 7, dtype), np.ones((20, 2), dtype)
        two[4], two[9] = [1, 2, 3], [-1, 2, 0]
        values = leave_one_out([two, dead, live], [live, dead])
        assert np.isnan(values[[4, 9], 0]).all()
        assert np.isnan(values[:, 1]).all()
        assert np.isnan(values[:, :, 1]).all()
        without_4_and_9 = np.delete(np.arange(20), [4, 9])
        assert not np.isnan(values[without_4_and_9, 0, 0]).any()
        np.testing.assert_allclose(values[:, 2, 0], 1, rtol=0, atol=1e-6)
        assert np.isnan(leave_one_out([dead], [live])).all()


@pytest.mark.parametrize("spec", ["cka:estimator=biased", "cka:estimator=minibatch,batch=5", "svcca"])
def test_leave_one_out_is_of_debiased_cka(rng: np.random.Generator, spec: str) -> None:
    with pytest.raises(InvalidInputError, match="no exact leave-one-out; take debiased CKA"):
        leave_one_out(*sides(rng, 20), spec)


def test_leave_one_out_needs_five_samples(rng: np.random.Generator) -> None:
    with pytest.raises(InvalidInputError, match="4 samples are too few: with one left out"):
        leave_one_out(*sides(rng, 4))


# Permutations


@pytest.fixture(params=["grams", "features"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]) -> None:
    """Select the algorithm for permuted samples of a linear kernel, whichever is cheaper."""
    if request.param == "features":
        tuned(permuted_entry=1e30)
    else:
        monkeypatch.setattr(permutation, "_features_are_cheaper", lambda *_: False)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize("spec", ALL)
def test_permuted(rng: np.random.Generator, spec: str, n: int) -> None:
    for rows, columns in (sides(rng, n), sides(rng, n)[::-1]):  # with more rows than columns, and vice versa
        orders = random_permutations(n, 4)
        expected = [values_of(ALL[spec], rows, [y[order] for y in columns]) for order in orders]
        np.testing.assert_allclose(permuted(rows, columns, spec, orders), expected, rtol=0, atol=1e-10)
        if spec in GRAM:
            np.testing.assert_allclose(permuted(*rounded(rows, columns), spec, orders), expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("algorithm")
def test_the_identity_gives_the_values_of_the_comparison(rng: np.random.Generator) -> None:
    rows, columns = sides(rng, 20)
    for spec in ALL:
        metric = get(spec)
        values = permuted(rows, columns, metric, [range(20)])
        block = metric.block(*([metric.recipe(as_samples(x)) for x in side] for side in (rows, columns)))
        np.testing.assert_allclose(values, [block], rtol=0, atol=1e-12)


def test_a_single_minibatch_is_not_all_samples(rng: np.random.Generator) -> None:
    (x,), (y,), (order,) = related(rng, 20, 4), related(rng, 20, 6), random_permutations(20, 1)
    expected = references.cka(x, y[order], estimator="minibatch", batch=12)
    values = permuted([x], [y], "cka:estimator=minibatch,batch=12", [order])
    assert values.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("spec", ["cka", "cka:kernel=rbf,sigma=6"])
@pytest.mark.parametrize("n", [5, 6])
def test_moments_over_every_permutation(rng: np.random.Generator, spec: str, n: int) -> None:
    """Debiased CKA has mean 0 and variance 2 / (n (n - 3)), exactly and for any data."""
    rows = [rng.normal(size=(n, 3)), rng.exponential(size=(n, 2)) ** 2]
    columns = [rng.exponential(size=(n, 8)) ** 3]
    values = permuted(rows, columns, spec, list(itertools.permutations(range(n))))
    np.testing.assert_allclose(values.mean(0), 0, rtol=0, atol=1e-13)
    np.testing.assert_allclose(values.var(0), 2 / (n * (n - 3)), rtol=1e-12)


@pytest.mark.usefixtures("algorithm")
def test_the_mean_of_biased_cka_over_every_permutation(rng: np.random.Generator) -> None:
    """The mean is sqrt(PR PR') / (n - 1) with participation ratios PR = tr(K)^2 / ||K||^2."""
    n = 6
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(n, 2)) ** 2
    ratios = [np.trace(K) ** 2 / np.sum(K * K) for K in map(references.gram, (x, y))]
    values = permuted([x], [y], "cka:estimator=biased", list(itertools.permutations(range(n))))
    assert values.mean() == pytest.approx(np.sqrt(ratios[0] * ratios[1]) / (n - 1), rel=1e-12)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("counts", [(1, 1), (3, 17), (18, 17)], ids=str)
def test_many_layers(rng: np.random.Generator, counts: tuple[int, int]) -> None:
    """Numbers of layers are below, at and above the width of a cache line."""
    n = 12
    rows, columns = (related(rng, n, *([3] * count)) for count in counts)
    (order,) = orders = random_permutations(n, 1)
    expected = values_of(references.cka, rows, [y[order] for y in columns])
    np.testing.assert_allclose(permuted(rows, columns, "cka", orders)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(permuted(*rounded(rows, columns), "cka", orders)[0], expected, rtol=0, atol=2e-6)


def test_less_memory_gives_the_same_values(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = sides(rng, 20)
    orders, drawn = random_permutations(20, 7), random_subsamples(20, 9, 7)
    monkeypatch.setattr(permutation, "_features_are_cheaper", lambda *_: False)
    expected = [permuted(rows, columns, "cka", orders), subsampled(rows, columns, "cka", drawn)]
    group_sizes: list[int] = []
    original = subsampling.interleaved

    def counted(draws: Any, *args: Any, **options: Any) -> torch.Tensor:
        group_sizes.append(len(draws))
        return original(draws, *args, **options)

    for module in (permutation, subsampling):
        monkeypatch.setattr(module, "interleaved", counted)
    monkeypatch.setitem(subsampling._GATHERED, "cpu", 2 * 11 * 8)  # two permutations at once
    in_groups = [permuted(rows, columns, "cka", orders, memory=20 * 20 * 8 * 3)]
    assert group_sizes == [1, 1]  # one layer after the other
    in_groups.append(subsampled(rows, columns, "cka", drawn, memory=20 * 20 * 8 * 5))
    assert group_sizes[2:] == [3] * 3  # a row and both columns
    for values, all_at_once in zip(in_groups, expected, strict=True):
        np.testing.assert_allclose(values, all_at_once, rtol=0, atol=1e-14)


@pytest.mark.parametrize("resample", [permuted, subsampled])
def test_the_error_about_memory_names_the_largest_n_that_fits(rng: np.random.Generator, resample: Any) -> None:
    rows, columns = related(rng, 40, 3, 3), related(rng, 40, 3)

    def first(n: int) -> Array:
        indices = np.arange(n if resample is permuted else 4)[None]
        sides = [x[:n] for x in rows], [y[:n] for y in columns]
        return np.asarray(resample(*sides, "cka:kernel=rbf", indices, memory="10kB"))

    with pytest.raises(InvalidInputError, match=r"takes 0\.\d MiB at n = 40, .* at most (\d+) samples") as refused:
        first(40)
    largest = int(str(refused.value).split("at most ")[1].split()[0])
    assert 4 <= largest < 40
    assert first(largest).shape == (1, 2, 1)
    with pytest.raises(InvalidInputError, match=r"more than the 0\.0 MiB"):
        first(largest + 1)


@pytest.mark.usefixtures("algorithm")
def test_constant_layers_are_nan_and_the_rest_is_not(rng: np.random.Generator) -> None:
    (x, y), dead, single = related(rng, 20, 4, 5), np.ones((20, 3)), np.zeros((20, 3))
    single[3] = 1
    orders, drawn = random_permutations(20, 2), random_subsamples(20, 10, 2)
    for spec, reference in ALL.items():
        values = permuted([dead, x], [y, dead], spec, orders)
        assert np.isnan(values).tolist() == [[[True, True], [False, True]]] * 2
        assert values[1, 1, 0] == pytest.approx(reference(x, y[orders[1]]), abs=1e-10)
        values = subsampled([dead, x], [y, dead], spec, drawn)
        assert np.isnan(values).tolist() == [[[True, True], [False, True]]] * 2
        assert np.isnan(permuted([dead], [y], spec, orders)).all()
        assert np.isnan(subsampled([x], [dead], spec, drawn)).all()
    for side in ([single, x], [single.astype(np.float32), x]):
        assert np.isnan(permuted(side, [y], "cka", orders)).tolist() == [[[True], [False]]] * 2
        assert np.isnan(permuted([y], side, "cka", orders)).tolist() == [[[True, False]]] * 2


# Subsamples


@pytest.mark.parametrize("m", [10, 11, 20])
@pytest.mark.parametrize("spec", ALL)
def test_subsampled(rng: np.random.Generator, spec: str, m: int) -> None:
    rows, columns = sides(rng, 20)
    drawn = random_subsamples(20, m, 4)
    drawn[0] = drawn[0, ::-1]  # samples may be in any order
    expected = [values_of(ALL[spec], *([x[rows_] for x in side] for side in (rows, columns))) for rows_ in drawn]
    np.testing.assert_allclose(subsampled(rows, columns, spec, drawn), expected, rtol=0, atol=1e-10)
    if spec in GRAM:
        np.testing.assert_allclose(subsampled(*rounded(rows, columns), spec, drawn), expected, rtol=0, atol=2e-6)


def test_a_subsample_on_which_a_layer_is_constant_has_no_value(rng: np.random.Generator) -> None:
    """In one layer half of the samples are equal; in the other a single sample differs."""
    (live,) = related(rng, 20, 4)
    single = np.zeros((20, 3))
    single[3] = rng.normal(size=3)
    half = np.concatenate([np.ones((10, 3)) * rng.normal(size=3), rng.normal(size=(10, 3))])
    drawn = [np.arange(10), np.arange(5, 15), np.arange(10, 20)]
    for spec in GRAM:
        metric: Any = get(spec)
        for dtype in (np.float32, np.float64):
            side = [(half * (3 if "rbf" in spec else 1e3)).astype(dtype), single.astype(dtype)]
            values = subsampled(side, [live.astype(dtype)], spec, drawn)[:, :, 0]
            assert np.isnan(values[:, 0]).tolist() == [True, False, False], (spec, dtype)
            assert np.isnan(values[:, 1]).tolist() == [metric.unbiased, True, True], (spec, dtype)


def test_the_width_is_that_of_all_samples(rng: np.random.Generator) -> None:
    (x,), (y,) = related(rng, 20, 4), related(rng, 20, 6)
    widths = [np.sqrt(np.median(np.sum((z[:, None] - z) ** 2, axis=2))) / 2 for z in (x, y)]
    (subsample,) = drawn = random_subsamples(20, 9, 1)
    A, B = (
        references.u_centred(references.gram(z[subsample], "rbf", sigma=width))
        for z, width in zip((x, y), widths, strict=True)
    )
    assert subsampled([x], [y], "cka:kernel=rbf", drawn).item() == pytest.approx(references.cosine(A, B), abs=1e-12)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_errors_are_no_value(rng: np.random.Generator, dtype: type) -> None:
    """One sample differs by 1, and the others by less than the rounding error of its square."""
    single = rng.normal(size=(20, 3)) * np.finfo(dtype).eps / 10
    single[3] += 1
    side: list[Array] = [single.astype(dtype)]
    others = related(rng, 20, 4)
    assert np.isnan(leave_one_out(side, others)[np.arange(20) != 3]).all()
    assert np.isnan(permuted(side, others, "cka", random_permutations(20, 2))).all()
    assert np.isnan(subsampled(side, others, "cka", [np.arange(20), np.arange(20)[::-1]])).all()


# Types of layers


def test_sketches(rng: np.random.Generator) -> None:
    """Each matrix has two independent estimates, and a value compares one kind with the other."""
    n = 14
    x, y, z = (rng.normal(size=(n, 1, 6)) + rng.normal(size=(n, 2, 6)) / 3 for _ in range(3))
    rows, columns = ([TwoSketches()(torch.from_numpy(sketch)) for sketch in side] for side in ([x, z], [y, z, x]))
    values = leave_one_out(rows, columns)
    by_hand = [
        [[references.sketched_cka(np.delete(a, i, 0), np.delete(b, i, 0)) for b in (y, z, x)] for a in (x, z)]
        for i in range(n)
    ]
    np.testing.assert_allclose(values, by_hand, rtol=0, atol=1e-12)
    orders, drawn = random_permutations(n, 3), random_subsamples(n, 9, 3)
    by_hand = [[[references.sketched_cka(a, b[order]) for b in (y, z, x)] for a in (x, z)] for order in orders]
    np.testing.assert_allclose(permuted(rows, columns, "cka", orders), by_hand, rtol=0, atol=1e-12)
    by_hand = [[[references.sketched_cka(a[s], b[s]) for b in (y, z, x)] for a in (x, z)] for s in drawn]
    np.testing.assert_allclose(subsampled(rows, columns, "cka", drawn), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", RESAMPLE)
@pytest.mark.parametrize("spec", ["cka", "svcca", "cka:estimator=minibatch,batch=5"])
def test_arrays_tensors_rows_and_stores_are_the_same_layers(
    tmp_path: Path, rng: np.random.Generator, how: str, spec: str
) -> None:
    if how == "leave_one_out" and spec != "cka":
        return
    resample = RESAMPLE[how]
    rows, columns = sides(rng, 20)
    a = write_store(tmp_path / "a.h5", {f"l{k}": x.reshape(20, -1, 1) for k, x in enumerate(rows)}, model="a")
    b = write_store(tmp_path / "b.h5", {f"l{k}": y for k, y in enumerate(columns)}, model="b")
    expected = resample(rows, columns, spec)
    for left, right in (
        (a, b),
        (a, {name: b[name] for name in b.layers}),
        ([x.tolist() for x in rows], dict(zip("yz", columns, strict=True))),
        ([RowsOnDisk(x) for x in rows], [torch.from_numpy(y) for y in columns]),
    ):
        np.testing.assert_allclose(resample(left, right, spec), expected, rtol=0, atol=1e-12)


def test_rows_are_not_read_again_for_every_permutation(rng: np.random.Generator) -> None:
    x, (other,) = rng.normal(size=(20, 5)), related(rng, 20, 4)
    for spec in ("cka", "svcca", "cka:estimator=minibatch,batch=5"):
        few, many = RowsOnDisk(x), RowsOnDisk(x)
        permuted([other], [few], spec, random_permutations(20, 1))
        permuted([other], [many], spec, random_permutations(20, 9))
        assert len(few.reads) == len(many.reads)


class Passing(Mapping[str, Any]):
    """Mapping that creates its layers on access and keeps no reference to them."""

    def __init__(self, **layers: Array) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Array:
        return self._layers[name].astype(np.float16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def test_layers_without_other_references_are_not_mixed_up(rng: np.random.Generator) -> None:
    layers = {f"l{k}": x for k, x in enumerate(related(rng, 20, 4, 4, 4, 4, 4, 4))}
    arrays = [x.astype(np.float16) for x in layers.values()]
    for resample in RESAMPLE.values():
        np.testing.assert_array_equal(
            resample(Passing(**layers), Passing(**layers), "cka"), resample(arrays, [x.copy() for x in arrays], "cka")
        )


def test_factors_are_accepted(rng: np.random.Generator) -> None:
    rows, columns = sides(rng, 20)
    for spec in ("cka", "svcca"):
        recipe = get(spec).recipe
        factors = [[recipe(as_samples(x)) for x in side] for side in (rows, columns)]
        np.testing.assert_array_equal(RESAMPLE["permuted"](*factors, spec), RESAMPLE["permuted"](rows, columns, spec))
    with pytest.raises(InvalidInputError, match="give the layers, and not factors"):
        RESAMPLE["subsampled"](*factors, "svcca")
    with pytest.raises(InvalidInputError, match="not all factors of one recipe of cka"):
        RESAMPLE["subsampled"](*factors, "cka")
    sketched = TwoSketches()(torch.from_numpy(rng.normal(size=(20, 2, 4))))
    with pytest.raises(InvalidInputError, match="not all factors of one recipe of cka"):
        RESAMPLE["permuted"](rows, [sketched], "cka")


def test_stores_of_other_samples_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    names = [f"{i}.png" for i in range(20)]
    a, b = (
        write_store(tmp_path / f"{m}.h5", {"x": rng.normal(size=(20, 3))}, model=m, sample_ids=ids)
        for m, ids in (("a", names), ("b", names[::-1]))
    )
    for resample in RESAMPLE.values():
        with pytest.raises(SampleMismatchError, match="the same 20 in another order"):
            resample(a, b, "cka")


def test_compressed_readouts_in_stores(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 2, 6))
    sketched = write_store(tmp_path / "s.h5", {"x": x}, model="s", readout="sketch:6")
    plain = write_store(tmp_path / "p.h5", {"x": rng.normal(size=(20, 3))}, model="p")
    orders = random_permutations(20, 2)
    expected = [references.sketched_cka(x, x[order]) for order in orders]
    np.testing.assert_allclose(permuted(sketched, sketched, "cka", orders)[:, 0, 0], expected, rtol=0, atol=1e-12)
    with pytest.raises(
        InvalidInputError, match="layers of different readouts cannot be compared: features and sketch:6"
    ):
        permuted(plain, sketched, "cka", orders)
    with pytest.raises(UndefinedValueError, match="needs the features themselves"):
        permuted(sketched, sketched, "svcca", orders)
    blocks = write_store(tmp_path / "g.h5", {"x": np.ones((4, 5, 5))}, model="g", readout="gram:5")
    with pytest.raises(
        InvalidInputError, match=r"g\.h5, layer x: Gram matrices of blocks have no values for samples in"
    ):
        permuted(blocks, blocks, "cka", orders)
    small = write_store(tmp_path / "t.h5", {"x": np.ones((2, 5))}, model="t")
    with pytest.raises(InvalidInputError, match=r"t\.h5, layer x: 2 samples are too few"):
        permuted(small, small, "cka", orders)
    grams = [StoredGrams()(torch.from_numpy(z.reshape(4, 5, -1) @ z.reshape(4, 5, -1).swapaxes(1, 2))) for z in (x, x)]
    with pytest.raises(InvalidInputError, match="give the layers, and not factors"):
        permuted(grams[:1], grams[1:], "cka", orders)


def test_progress(rng: np.random.Generator) -> None:
    for spec in ("cka", "svcca"):
        for name, resample in RESAMPLE.items():
            if (name, spec) == ("leave_one_out", "svcca"):
                continue
            steps: list[tuple[int, int]] = []
            resample(*sides(rng, 20), spec, progress=lambda done, total, to=steps: to.append((done, total)))
            assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
            assert {total for _, total in steps} == {len(steps)}


# Guards


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (np.arange(20), r"expected permutations: whole numbers of shape \(K, samples\), got shape \(20,\)"),
        ([np.arange(20.0)], "dtype float64"),
        (np.empty((0, 20), int), r"got shape \(0, 20\)"),
        ([np.arange(19)], "permutations of 19 samples, but the layers have 20"),
        ([np.arange(1, 21)], "permutations of 20 samples are of the numbers 0 to 19, got 20"),
        ([np.arange(-1, 19)], "got -1"),
        ([np.arange(20), [5, *range(19)]], "row 1 of the permutations has sample 5 2 times; take every sample once"),
    ],
)
def test_invalid_permutations_are_refused(rng: np.random.Generator, orders: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        permuted(*sides(rng, 20), "cka", orders)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ([[0, 1, 2, 2, 4]], "row 0 of the subsamples has sample 2 2 times"),
        ([[0, 1, 2, 20]], "subsamples of 20 samples are of the numbers 0 to 19, got 20"),
        ([[0, 1, 2]], "subsamples of 3 are too small: (cka|svcca) needs at least 4 samples"),
        ([0, 1, 2, 3], "expected subsamples"),
    ],
)
@pytest.mark.parametrize("spec", ["cka", "svcca"])
def test_invalid_subsamples_are_refused(rng: np.random.Generator, spec: str, drawn: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        subsampled(*sides(rng, 20), spec, drawn)


@pytest.mark.parametrize("how", RESAMPLE)
def test_layers_that_do_not_fit_together_are_refused(rng: np.random.Generator, how: str) -> None:
    resample = RESAMPLE[how]
    rows, columns = sides(rng, 20)
    with pytest.raises(InvalidInputError, match="layers have 19 and 20 samples"):
        resample(rows, [y[:19] for y in columns], "cka")
    with pytest.raises(InvalidInputError, match="layers have 19 and 20 samples"):
        resample(rows, [get("cka").recipe(as_samples(columns[0][:19]))], "cka")
    with pytest.raises(InvalidInputError, match="at least one layer of each side"):
        resample(rows, {}, "cka")
    with pytest.raises(InvalidInputError, match="expected an array of shape"):
        resample(rows, columns[0], "cka")
    with pytest.raises(InvalidInputError, match="2 samples are too few"):
        resample([x[:2] for x in rows], columns, "cka")
    with pytest.raises(InvalidInputError, match="device 'warp' cannot be used"):
        resample(rows, columns, "cka", device="warp")


# Drawing


def test_permutations_are_equally_likely() -> None:
    """The counts of the 6 orders of 3 samples are binomial, and the seed determines the draws."""
    orders = random_permutations(3, 6000, seed=1)
    distinct, counts = np.unique(orders, axis=0, return_counts=True)
    assert distinct.tolist() == [list(order) for order in itertools.permutations(range(3))]
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(6000 * 5 / 36)
    np.testing.assert_array_equal(orders, random_permutations(3, 6000, seed=1))
    assert (orders != random_permutations(3, 6000, seed=2)).any()
    for n, count in ((0, 1), (1, 0)):
        with pytest.raises(InvalidInputError, match="at least 1 sample and 1 permutation"):
            random_permutations(n, count)


def test_subsamples_are_equally_likely() -> None:
    drawn = random_subsamples(6, 4, 6000, seed=1)
    distinct, counts = np.unique(drawn, axis=0, return_counts=True)
    assert distinct.tolist() == [list(subset) for subset in itertools.combinations(range(6), 4)]
    assert np.abs(counts - 400).max() < 4 * np.sqrt(6000 * 14 / 225)
    np.testing.assert_array_equal(drawn, random_subsamples(6, 4, 6000, seed=1))
    assert (drawn != random_subsamples(6, 4, 6000, seed=2)).any()
    for n, m, count in ((6, 3, 1), (6, 7, 1), (6, 4, 0)):
        with pytest.raises(InvalidInputError, match="expected 4 <= m <= n"):
            random_subsamples(n, m, count)


def test_the_public_names() -> None:
    assert (repsim.permuted, repsim.subsampled, repsim.leave_one_out) == (permuted, subsampled, leave_one_out)
    assert (repsim.random_permutations, repsim.random_subsamples) == (random_permutations, random_subsamples)
