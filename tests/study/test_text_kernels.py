"""Kernels of texts against loops over tokens."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from repsim.study import text_kernels
from repsim.study.input_kernels import EXACT, u_centred

Array = NDArray[np.float64]
LISTED = [[5, 3, 5], [3], [9, 9, 2, 5], [], [2, 3, 9, 9, 9], [5, 5], [7, 2, 3], [9]]


def padded(tokens: list[list[int]]) -> NDArray[np.int64]:
    longest = max(map(len, tokens))
    return np.array([[*ids, *[-1] * (longest - len(ids))] for ids in tokens])


def unit(K: Array) -> Array:
    K = u_centred(K)
    return np.asarray(K / np.linalg.norm(K))


def test_linear_kernels_are_those_of_loops() -> None:
    candidates = {one.name: one for one in text_kernels.of_tokens(padded(LISTED))}
    bags = [Counter(ids) for ids in LISTED]
    n = len(bags)
    frequency = {t: np.log(n / sum(t in bag for bag in bags)) for bag in bags for t in bag}
    weighted = [{t: c * frequency[t] for t, c in bag.items()} for bag in bags]
    sizes = [np.sqrt(sum(v**2 for v in bag.values())) for bag in weighted]
    pairs = [Counter(pairwise(ids)) for ids in LISTED]
    expected: dict[str, Callable[[int, int], float]] = {
        "counts of the tokens": lambda i, j: sum(bags[i][t] * bags[j][t] for t in bags[i]),
        "presence of the tokens": lambda i, j: len(bags[i].keys() & bags[j].keys()),
        "shares of the tokens": lambda i, j: sum(
            bags[i][t] * bags[j][t] / len(LISTED[i]) / len(LISTED[j]) for t in bags[i].keys() & bags[j].keys()
        ),
        "rare tokens": lambda i, j: sum(
            weighted[i][t] * weighted[j][t] / sizes[i] / sizes[j] for t in weighted[i].keys() & weighted[j].keys()
        ),
        "pairs of neighbouring tokens": lambda i, j: sum(pairs[i][t] * pairs[j][t] for t in pairs[i]),
        "first of the tokens": lambda i, j: float(LISTED[i][:1] == LISTED[j][:1] != []),
        "last of the tokens": lambda i, j: float(LISTED[i][-1:] == LISTED[j][-1:] != []),
    }
    every = np.arange(n)
    for name, entry in expected.items():
        K = np.array([[entry(i, j) for j in range(n)] for i in range(n)], np.float64)
        np.testing.assert_allclose(unit(candidates[name].matrix(every, every)), unit(K), atol=1e-12, err_msg=name)


def test_texts_without_tokens_have_no_kernels() -> None:
    assert list(text_kernels.of_tokens(padded([[], [], [1]])[:2])) == []


@pytest.mark.parametrize(("n", "columns", "closeness"), [(40, 30, 1.0), (40, 3000, 1.0), (EXACT + 1, 3000, 0.99)])
def test_many_tokens_keep_their_kernel(n: int, columns: int, closeness: float) -> None:
    """Exactly up to 2,000 samples, and nearly beyond, where columns are added up."""
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, columns + 1)
    tokens = rng.choice(columns, (n, 20), p=often / often.sum())  # as frequent as words
    X = sparse.csr_array((np.ones(tokens.size), (np.repeat(np.arange(n), 20), tokens.ravel())), (n, columns))
    F = text_kernels.dense(X)
    assert F.shape[1] <= 2048
    similarity = float((unit(F @ F.T) * unit((X @ X.T).toarray())).sum())
    assert similarity >= closeness - 1e-9


def test_digits_are_read() -> None:
    digits = np.array([[[24.0, 0, -1], [848, 7, -1]], [[-1.0, -1, -1], [-1, -1, -1]]])
    assert text_kernels.read_tokens(digits).tolist() == [[50_000, 7], [-1, -1]]
