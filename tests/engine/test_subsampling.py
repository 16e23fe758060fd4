"""Test the products of gathered Gram matrices against direct computations."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from repsim.engine.jackknife import LeaveOneOut
from repsim.engine.permutation import halved
from repsim.engine.subsampling import Norms, centred, gather_chunks, groups, interleaved, padded_width
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import as_samples
from repsim.metrics.cka import CKA
from tests.metrics.references import gram, u_centred


def factors(rng: np.random.Generator, spec: str, n: int, *widths: int) -> tuple[list[Any], list[Any]]:
    layers = [rng.normal(size=(n, p)) for p in widths]
    return layers, [get(spec).recipe(as_samples(x)) for x in layers]


def test_the_centred_matrix_does_not_depend_on_block_sizes(rng: np.random.Generator) -> None:
    (x,), (factor,) = factors(rng, "cka", 30, 40)
    expected = u_centred(gram(x))
    scale = 4.0 ** math.ceil(math.log2(np.sum((x - x.mean(0)) ** 2) / 30) / 2)  # a power of two, squared
    for panel, tile in ((2048, 512), (11, 4), (7, 3), (1, 1)):
        matrix = centred(factor, torch.float64, unbiased=True, panel=panel, tile=tile)
        np.testing.assert_allclose(matrix, expected / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [5, 6, 7, 8])
def test_half_a_matrix_holds_every_pair_once(rng: np.random.Generator, n: int) -> None:
    """Weighted sums over half of a symmetric matrix are equal to sums over the full matrix."""
    _, (a, b) = factors(rng, "cka:estimator=biased", n, 3, 9)
    A, B = (centred(factor, torch.float64, unbiased=False) for factor in (a, b))
    half = halved([a, b], torch.float64, unbiased=False)
    assert half.shape == (n, 2, n // 2 + 1)
    weights = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    for i in range(n):
        for k in range(n // 2 + 1):
            torch.testing.assert_close(half[i, :, k], torch.stack([A, B])[:, i, (i + k) % n] * weights[k])
    assert float(half[:, 0].sum()) == pytest.approx(float(A.sum()), abs=1e-12)
    assert float((half[:, 0] * half[:, 1] / weights).sum()) == pytest.approx(float((A * B).sum()), rel=1e-12)


def test_interleaved_has_layers_last_and_zeros_as_padding(rng: np.random.Generator) -> None:
    _, both = factors(rng, "cka", 6, 3, 4)
    both += factors(rng, "cka", 6, 5)[1]
    grams = interleaved(both, torch.float64, unbiased=True, ones=False)
    assert grams.shape == (6, 6, 4)
    for k, factor in enumerate(both):
        torch.testing.assert_close(grams[:, :, k], centred(factor, torch.float64, unbiased=True))
    assert not grams[:, :, 3].any()
    assert (interleaved(both, torch.float64, unbiased=True, ones=True)[:, :, 3] == 1).all()


@pytest.mark.parametrize(("panel", "tile"), [(2048, 0), (12, 5), (7, 3), (50, 64)])
@pytest.mark.parametrize("samples", [30, 12, 1])
def test_leave_one_out_does_not_depend_on_block_sizes(
    rng: np.random.Generator, panel: int, tile: int, samples: int
) -> None:
    _, layers = factors(rng, "cka", 30, 3, 40, 5)
    expected = LeaveOneOut(layers[:2], layers[1:], CKA()).left_out(lambda: None)
    room = samples * 8 * (2 * 3 + 3)  # memory for the sums of this many samples
    sweep = LeaveOneOut(layers[:2], layers[1:], CKA(), panel=panel, tile=tile, room=room)
    runs = list(sweep.runs(lambda: None))
    np.testing.assert_allclose(sweep.full_values, get("cka").block(layers[:2], layers[1:]), rtol=0, atol=1e-13)
    assert [k for run, _ in runs for k in range(run.start, run.stop)] == list(range(30))
    assert max(len(values) for _, values in runs) <= samples
    np.testing.assert_allclose(np.concatenate([values for _, values in runs]), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spec", ["cka", "cka:estimator=biased", "cka:kernel=rbf"])
def test_norms_are_those_of_the_centred_matrices(rng: np.random.Generator, spec: str) -> None:
    metric: Any = get(spec)
    _, layers = factors(rng, spec, 30, 3, 40)
    expected = [float(centred(a, torch.float64, unbiased=metric.unbiased).norm()) for a in layers]
    np.testing.assert_allclose(Norms(layers, metric).norms(), expected, rtol=1e-12)


@pytest.mark.parametrize("layers", [*range(1, 18), 32, 33])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_padded_entries_do_not_cross_cache_lines(layers: int, itemsize: int) -> None:
    width = padded_width(layers, itemsize)
    assert layers <= width < max(2 * layers, layers + 64 // itemsize)
    assert 64 % (width * itemsize) == 0 or (width * itemsize) % 64 == 0


def test_gathered_chunks_fit_into_the_cache() -> None:
    like = torch.empty(0, dtype=torch.float64)
    for count, numbers in ((1000, 2**12), (7, 2**30), (5, 10)):
        blocks = gather_chunks(count, numbers, like)
        assert [k for i in blocks for k in range(i.start, i.stop)] == list(range(count))
        fits = max(1, 2**22 // (8 * numbers))
        assert max(i.stop - i.start for i in blocks) <= fits
        assert len(blocks) == -(-count // fits)


def test_groups_cover_every_pair_once_within_memory() -> None:
    def size(n: int, r: int, c: int) -> int:
        return n * n * (r + 2 * c)

    for rows, columns, memory in ((7, 5, 100 * 19), (7, 5, 100 * 3), (1, 9, 100 * 8), (3, 2, 10**9)):
        blocks = groups(rows, columns, 10, memory, size)
        covered = [(a, b) for i, j in blocks for a in range(rows)[i] for b in range(columns)[j]]
        assert sorted(covered) == [(a, b) for a in range(rows) for b in range(columns)]
        assert all(size(10, i.stop - i.start, j.stop - j.start) <= memory for i, j in blocks)
        assert [j for _, j in blocks] == sorted((j for _, j in blocks), key=lambda j: j.start)
    assert groups(3, 2, 10, 10**9, size) == [(slice(0, 3), slice(0, 2))]
    with pytest.raises(InvalidInputError, match=r"one layer of each side takes .* a subsample of at most 9 samples"):
        groups(3, 2, 10, 299, size)
