"""Rows that are read in pieces give the values of numpy for the whole array, and no piece is left unread."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim.errors import UndefinedValueError
from repsim.metrics.base import Array
from repsim.metrics.recipes.rows import (
    Centred,
    Rows,
    by_pieces,
    column_means,
    column_ranges,
    cut,
    float64_device,
    in_memory,
    pieces,
    prefetch,
)
from repsim.runtime.tuning import Tuning
from repsim.testing.examples import RowsOnDisk
from tests.threads import torch_threads

CPU = torch.device("cpu")


@pytest.fixture
def small_pieces(tuned: Callable[..., None]) -> None:
    """Use pieces of ten values, so that small arrays have many."""
    tuned(piece=10, scratch=4)


def test_what_counts_as_rows() -> None:
    array = np.zeros((3, 2))
    assert isinstance(torch.from_numpy(array), Rows)
    assert isinstance(RowsOnDisk(array), Rows)
    assert not isinstance(array.tolist(), Rows)


# Cutting


@pytest.mark.slow
@given(st.integers(0, 200), st.integers(1, 250), st.integers(0, 50))
def test_a_cut_is_one_of_few_equal_runs(n: int, size: int, start: int) -> None:
    runs = list(cut(n, size, start))
    assert [k for run in runs for k in range(run.start, run.stop)] == list(range(start, start + n))
    assert len(runs) == -(-n // size)
    lengths = [run.stop - run.start for run in runs]
    assert all(length <= size for length in lengths)
    assert len(set(lengths[:-1])) <= 1
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.slow
@given(st.integers(1, 3000), st.integers(1, 2000))
def test_pieces_cover_the_rows_and_stay_in_the_cache(n: int, p: int) -> None:
    runs = list(pieces(torch.empty(n, p, device="meta")))
    assert [run.stop for run in runs[:-1]] == [run.start for run in runs[1:]]
    assert (runs[0].start, runs[-1].stop) == (0, n)
    assert all((run.stop - run.start) * p <= Tuning.piece for run in runs)
    assert len(runs) <= -(-n // (Tuning.piece // p))  # and are no smaller than need be


def test_a_row_that_is_larger_than_a_piece_is_a_piece() -> None:
    assert list(pieces(torch.empty(2, Tuning.piece + 1, device="meta"))) == [slice(0, 1), slice(1, 2)]


# Means


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "p"), [(1, 3), (7, 1), (40, 3), (41, 12)])
def test_means_and_peak_are_numpys(rng: np.random.Generator, n: int, p: int, dtype: Any) -> None:
    x = (rng.normal(size=(n, p)) + 100 * rng.normal(size=p)).astype(dtype)
    if n == 1:
        x = np.concatenate([x, x + 1])
    source = RowsOnDisk(x)
    mean, peak = column_means(source)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-14)
    assert peak == pytest.approx(np.abs(exact - exact.mean(0)).max(), rel=1e-13)
    assert sum(source.reads) == len(x) + (dtype == np.float64)  # once; in float64 the first sample before all others
    assert max(source.reads) * p <= max(10, p)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_peak_may_lie_on_either_side(sign: int) -> None:
    x = np.zeros((5, 2))
    x[3, 1] = 10 * sign
    assert column_means(torch.from_numpy(x))[1] == pytest.approx(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_a_constant_column_is_exact(rng: np.random.Generator, dtype: torch.dtype) -> None:
    x = torch.from_numpy(np.column_stack([np.full(1001, 0.1), rng.normal(size=1001)])).to(dtype)
    assert column_means(x)[0][0] == x[0, 0].double()


def test_an_offset_costs_the_mean_no_digits(rng: np.random.Generator) -> None:
    """Sums of float32 values in float64 are not rounded, as long as the values hardly differ."""
    x = (rng.normal(size=(100_000, 2)) + 1e6).astype(np.float32)
    exact = 1e6 + (x.astype(np.float64) - 1e6).mean(0)
    np.testing.assert_allclose(column_means(torch.from_numpy(x))[0].numpy(), exact, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 1e-30, -1e30])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_constant_layer_is_refused(dtype: Any, value: float, steps: int) -> None:
    """And so is one whose values are one rounding step apart."""
    x = np.full((30, 2), value, dtype)
    if value:
        for _ in range(steps):
            x[17] = np.nextafter(x[17], dtype(0))
    with pytest.raises(UndefinedValueError, match="the layer is constant"):
        column_means(RowsOnDisk(x))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -1000.0])
@pytest.mark.parametrize("where", [0, 13, 29])
def test_a_layer_with_one_other_value_is_not_constant(dtype: Any, value: float, where: int) -> None:
    x = np.full((30, 2), value, dtype)
    x[where, 1] *= 1 + 4 * np.finfo(dtype).eps
    mean, _ = column_means(RowsOnDisk(x))
    assert mean[0] == float(dtype(value))


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same values in another memory layout."""
    if layout == "columns":
        return x.T.contiguous().T
    if layout == "every other":
        wide = torch.full((2 * x.shape[0], 3 * x.shape[1]), torch.nan, dtype=x.dtype)
        wide[::2, 1::3] = x
        return wide[::2, 1::3]
    return x


LAYERS: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda rng: rng.normal(size=(61, 5)),
    "all negative": lambda rng: -rng.uniform(1, 2, size=(61, 5)),
    "means of different sizes": lambda rng: rng.normal(size=(61, 5)) + np.array([0, 1e-3, 1e6, -1e7, 3]),
    "columns of different sizes": lambda rng: rng.normal(size=(61, 5)) * [1e-30, 1, 1e12, 1e-6, 1e25],
    "a constant column": lambda rng: np.column_stack([np.full(61, 0.1), rng.normal(size=(61, 4))]),
    "an outlier": lambda rng: np.concatenate([[[1e8, 0, 0, 0, 0]], rng.normal(size=(60, 5))]),
    "two samples": lambda rng: rng.normal(size=(2, 5)),
    "one column": lambda rng: rng.normal(size=(61, 1)) + 100,
}


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compute with one thread, and with several."""
    with torch_threads(request.param) as count:
        yield count


@pytest.mark.usefixtures("small_pieces", "threads")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "every other"])
def test_ranges_are_those_of_exact_sums(rng: np.random.Generator, name: str, dtype: torch.dtype, layout: str) -> None:
    """Python adds without rounding errors (`math.fsum`)."""
    x = torch.from_numpy(LAYERS[name](rng)).to(dtype)
    if not x.isfinite().all():
        pytest.skip("too large for half precision")
    mean, low, high = column_ranges(in_layout(x, layout))
    columns = [[float(value) for value in column] for column in x.T]
    exact = np.array([math.fsum(column) / len(column) for column in columns])
    assert (mean.dtype, low.dtype, high.dtype) == (torch.float64,) * 3
    spread = np.array([max(column) - min(column) for column in columns])
    assert np.all(np.abs(mean.numpy() - exact) <= 2**-52 * np.abs(exact) + 2**-48 * spread)
    assert low.tolist() == [min(column) for column in columns]
    assert high.tolist() == [max(column) for column in columns]
    if name == "a constant column":
        assert mean[0] == low[0]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ranges_are_the_same_to_the_bit_however_they_are_computed(
    rng: np.random.Generator, name: str, dtype: torch.dtype
) -> None:
    """In one thread or several, and read from a file."""
    x = torch.from_numpy(LAYERS[name](rng)).to(dtype)
    expected = column_ranges(RowsOnDisk(x.numpy()))
    for threads in (1, 2, 5):
        with torch_threads(threads):
            assert all(map(torch.equal, column_ranges(x), expected))


# Centred


@pytest.mark.usefixtures("small_pieces", "threads")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "every other"])
@pytest.mark.parametrize("scale", [0.25, 3.0])
@pytest.mark.parametrize("order", ["all", "permuted", "backwards in steps"])
def test_samples_and_their_norms_are_written_after_rounding_once(  # noqa: PLR0917 - pytest passes by name
    rng: np.random.Generator, name: str, dtype: torch.dtype, layout: str, scale: float, order: str
) -> None:
    """Against operations on the whole array in float64; also if a division by the scale rounds."""
    x = torch.from_numpy(LAYERS[name](rng)).to(dtype)
    rows: slice | torch.Tensor = slice(None)
    if order != "all":
        rows = torch.from_numpy(rng.permutation(len(x))) if order == "permuted" else torch.arange(len(x) - 1, -1, -2)
    mean = x.double().mean(0)
    expected = ((x.double() - mean) / scale)[rows].to(dtype)
    source = in_layout(x, layout)
    centred = Centred(source, mean, scale, dtype)
    out, norms = torch.empty_like(expected), torch.empty(len(expected), dtype=torch.float64)
    centred.write(rows, out, norms)
    assert torch.equal(out, expected)
    np.testing.assert_allclose(norms.numpy(), expected.double().square().sum(1).sqrt().numpy(), rtol=1e-14)
    assert torch.equal(centred[rows], expected)
    only_norms = torch.empty_like(norms)
    centred.write(rows, None, only_norms)
    assert torch.equal(only_norms, norms)
    assert torch.equal(source, x)  # the layer itself is not changed


INDICES = [
    slice(None),
    slice(3, 20),
    slice(2, 30, 7),
    slice(25, None),
    slice(-4, None),
    slice(4, 4),
    torch.tensor([5]),
    torch.tensor([29, 0, 7, 7, 3, 28, 11, 2, 19, 4, 0]),
]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("streamed", [False, True])
def test_centred_rows_are_what_numpy_makes_of_them(
    rng: np.random.Generator, index: "slice | torch.Tensor", streamed: bool
) -> None:
    x = (rng.normal(size=(30, 4)) + 1000).astype(np.float32)
    source = RowsOnDisk(x) if streamed else torch.from_numpy(x)
    centred = Centred(source, *column_means(source), torch.float32)
    exact = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    expected = (exact / np.abs(exact).max())[index if isinstance(index, slice) else index.numpy()]
    assert (centred.shape, centred.device) == ((30, 4), CPU)
    np.testing.assert_allclose(centred.exact(index).numpy(), expected, rtol=1e-12, atol=1e-13)
    assert centred[index].dtype == torch.float32
    np.testing.assert_array_equal(centred[index].numpy(), centred.exact(index).float().numpy())
    if isinstance(source, RowsOnDisk):
        source.reads.clear()
        centred[index]
        assert sum(source.reads) == len(expected)  # only requested rows are read
        assert max(source.reads, default=0) <= 2


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_pieces_together_are_the_whole(rng: np.random.Generator, index: "slice | torch.Tensor") -> None:
    x = torch.from_numpy(rng.normal(size=(30, 4)))
    lengths = []

    def make(part: "slice | torch.Tensor") -> torch.Tensor:
        lengths.append(len(x[part]))
        return x[part]

    assert torch.equal(by_pieces(x, index, make), x[index])
    assert max(lengths, default=0) <= 2


def test_only_what_is_made_of_a_tensor_is_kept(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 2))
    for source in (torch.from_numpy(x), RowsOnDisk(x)):
        centred = Centred(source, *column_means(source), torch.float64)
        kept = in_memory(centred, source=source)
        if isinstance(source, RowsOnDisk):
            assert kept is centred
        else:
            assert isinstance(kept, torch.Tensor)
            assert torch.equal(kept, centred[:])


def test_float64_is_computed_where_there_is_some() -> None:
    assert float64_device(torch.device("mps")) == CPU
    assert float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


# Reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("repsim-reader")]


def test_items_come_in_their_order_from_another_thread() -> None:
    makers = set()

    def items() -> Iterator[int]:
        for k in range(50):
            makers.add(threading.current_thread())
            yield k

    assert list(prefetch(items(), CPU)) == list(range(50))
    assert len(makers) == 1
    assert threading.current_thread() not in makers
    assert readers() == []
    assert list(prefetch(iter([]), CPU)) == []


def test_one_item_is_made_ahead_and_no_more() -> None:
    """While the caller works with k, k + 1 is computed, and k + 2 is not begun."""
    made = [threading.Event() for _ in range(10)]

    def items() -> Iterator[int]:
        for k, event in enumerate(made):
            event.set()
            yield k

    for k in prefetch(items(), CPU):
        if k + 1 < len(made):
            assert made[k + 1].wait(10)
        time.sleep(0.01)
        assert not any(event.is_set() for event in made[k + 2 :])


class ReadingError(Exception):
    """Error of a reader in these tests."""


@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_error_while_reading_reaches_the_caller_in_its_place(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise ReadingError

    seen = []
    with pytest.raises(ReadingError):  # noqa: PT012 - what came before is the point
        for k in prefetch(items(), CPU):
            seen.append(k)  # noqa: PERF402
    assert seen == list(range(good))
    assert readers() == []


@pytest.mark.parametrize("how", ["close", "forget", "error", "break"])
def test_a_caller_that_stops_stops_the_reading(how: str) -> None:
    made = []

    def items() -> Iterator[int]:
        for k in itertools.count():
            made.append(k)
            yield k

    def stop() -> None:
        coming = prefetch(items(), CPU)
        assert (next(coming), next(coming)) == (0, 1)
        if how == "close":
            coming.close()  # type: ignore[attr-defined]
        elif how == "error":
            raise ReadingError
        elif how == "break":
            for _ in coming:
                break

    try:
        stop()
    except ReadingError:
        assert how == "error"
    assert readers() == []
    count = len(made)
    time.sleep(0.02)
    assert len(made) == count <= 4


def test_what_is_read_ahead_is_no_part_of_a_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    (item,) = prefetch((weight * k for k in (2,)), CPU)
    assert not item.requires_grad
    total = torch.zeros(3)
    total += item  # and may be used like any other
    assert total.tolist() == [2, 2, 2]


def test_lists_and_arrays_go_through(rng: np.random.Generator) -> None:
    """A sweep prefetches pairs of lists of tensors."""
    x: Array = rng.normal(size=(4, 2))
    source = RowsOnDisk(x)
    (((a, b), (c,)),) = prefetch((([source[:2], source[2:]], [source[:]]) for _ in range(1)), CPU)
    assert torch.equal(torch.cat([a, b]), c)
    (name,) = source.readers
    assert name.startswith("repsim-reader")
