"""Describe texts by kernels: of their bag of tokens, of characters, and of untrained networks that see them.

A network without any training adds up what it knows of each token: its kernel is near that of the bag of tokens. Which
tokens two texts share is known exactly, as stores hold the ids; docs/input-controls.md describes the kernels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse

from repsim.extractors.text_controls import CHARACTER_COLUMNS, DIGIT
from repsim.study.input_kernels import EXACT, Candidate, Linear, networks, powers, rbf, root, scaled

_COLUMNS = 2048
"""Largest number of columns of counts; more are replaced by features with the same inner products, or hashed."""
_SEED = 0
Ids = Int64[np.ndarray, "n L"]
Features = Float64[np.ndarray, "n p"]


def read_tokens(digits: Float64[np.ndarray, "n 2 L"]) -> Ids:
    """Return the ids of tokens from their digits; -1 after the last token of a text.

    >>> read_tokens(np.array([[[0.0, 1.0, -1.0], [5.0, 1.0, -1.0]]])).tolist()
    [[5, 2049]]
    """
    ids = np.where(digits[:, 0] < 0, -1, digits[:, 0] * DIGIT + digits[:, 1]).astype(np.int64)
    return ids[:, : max(1, int((ids >= 0).sum(1).max(initial=0)))]


def of_tokens(ids: Ids, what: str = "tokens") -> Iterator[Candidate]:
    """Yield the kernels of the tokens of texts.

    Linear kernels, and those of pixels that are not linear, of the shares of tokens in the text, which is what a mean
    over tokens sees, of their counts, of which tokens occur, and of the number of tokens. Linear and RBF kernels of
    shares weighted by the logarithm of the inverse document frequency, at unit length. Linear kernels of pairs of
    neighbours, and of the first and of the last token.

    Parameters
    ----------
    ids
        Ids of the tokens, (n, L), with -1 after the last one.
    what
        Name of the tokens in the names of the kernels.
    """
    counts = count(ids)
    lengths = np.asarray(counts.sum(1), np.float64).ravel()
    shares = _over_rows(counts, lengths)
    presence = counts.sign()
    for name, bag, required in (("shares", shares, True), ("counts", counts, True), ("presence", presence, False)):
        yield from _with_networks(dense(bag), f"{name} of the {what}", required=required)
    yield from _with_networks(_of_length(lengths), f"number of {what}", required=True)
    if not counts.shape[1]:
        return
    frequency = np.log(len(ids) / np.bincount(counts.indices, minlength=counts.shape[1]))
    weighted = sparse.csr_array(shares.multiply(frequency[None]))
    rare = dense(_over_rows(weighted, np.sqrt(weighted.multiply(weighted).sum(1))))
    yield Candidate(f"rare {what}", rare, Linear())
    for kernel in rbf(rare):
        yield Candidate(kernel.describe(f"rare {what}"), rare, kernel)
    pairs = np.where(ids[:, 1:] >= 0, ids[:, :-1] * DIGIT**2 + ids[:, 1:], -1)
    last = np.take_along_axis(ids, np.maximum((ids >= 0).sum(1) - 1, 0)[:, None], 1)
    for name, items in (("pairs of neighbouring", pairs), ("first of the", ids[:, :1]), ("last of the", last)):
        bag = count(items)
        if bag.shape[1] > 1:
            yield Candidate(f"{name} {what}", dense(bag), Linear())


def _of_length(lengths: Float64[np.ndarray, " n"]) -> Features:
    """Return the length and its logarithm, each with a standard deviation of 1, as centred features."""
    both = np.stack([lengths, np.log1p(lengths)], 1)
    spread = both.std(0)
    return scaled(np.divide(both, spread, out=np.zeros_like(both), where=spread > 0))


def _with_networks(x: Features, what: str, *, required: bool) -> Iterator[Candidate]:
    """Yield the linear kernel of centred features, and all of the dictionary that are not linear."""
    if x.any():
        yield Candidate(what, x, Linear(), required=required)
        for kernel in (*rbf(x), *powers(), *networks()):
            yield Candidate(kernel.describe(what), x, kernel)


def of_characters(counts: Float64[np.ndarray, "n m"], what: str = "characters") -> Iterator[Candidate]:
    """Yield the kernels of hashed counts of single characters, of pairs and of triples of them.

    Of each of the three, linear kernels of the counts and of the counts at unit length; those that are not linear of
    single characters, and RBF kernels and powers of the cosine of triples.
    """
    for k, size in enumerate(CHARACTER_COLUMNS):
        own = counts[:, sum(CHARACTER_COLUMNS[:k]) :][:, :size]
        name = f"{('single', 'pairs of', 'triples of')[k]} {what}"
        norms = np.linalg.norm(own, axis=1, keepdims=True)
        unit = scaled(np.divide(own, norms, out=np.zeros_like(own), where=norms > 0))
        flat = scaled(own)
        if not flat.any():
            continue
        if k == 0:
            yield from _with_networks(flat, name, required=False)
            yield from _with_networks(unit, f"{name} at unit length", required=False)
            continue
        yield Candidate(name, flat, Linear(), required=k == 2)
        yield Candidate(f"{name} at unit length", unit, Linear())
        for kernel in (*rbf(unit), *powers()):
            yield Candidate(kernel.describe(f"{name} at unit length"), unit, kernel)


def of_embeddings(means: Float64[np.ndarray, "n p"], what: str = "static embeddings") -> Iterator[Candidate]:
    """Yield the kernels of means of static embeddings: linear, and those of pixels that are not linear."""
    yield from _with_networks(scaled(means), what, required=True)


def count(ids: Ids) -> Any:
    """Return how often each id occurs in each row, as a sparse array (n, different ids); negative ids are none.

    >>> count(np.array([[7, 9, 7], [9, -1, -1]])).toarray().tolist()
    [[2.0, 1.0], [0.0, 1.0]]
    """
    real = ids >= 0
    unique, columns = np.unique(ids[real], return_inverse=True)
    rows = real.nonzero()[0]
    shape = len(ids), len(unique)
    return sparse.csr_array(sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape))


def dense(X: Any) -> Features:
    """Return centred features whose inner products are those of a sparse array: exactly, or for many samples nearly.

    Counts of more tokens than 2,048 are replaced by a square root of their kernel matrix. Beyond 2,000 samples, the
    1,024 tokens with most energy keep their columns, and the others are added up in 1,024 ones with random signs, from
    a fixed seed.
    """
    n, columns = X.shape
    if columns <= _COLUMNS:
        return scaled(X.toarray())
    if n <= EXACT:
        K = (X @ X.T).toarray()
        K = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
        return scaled(root(K))
    rng = np.random.default_rng(_SEED)
    energy = np.asarray(X.multiply(X).sum(0)).ravel()
    own = _COLUMNS // 2
    places, signs = rng.integers(own, _COLUMNS, size=columns), rng.choice([-1.0, 1.0], columns)
    largest = np.argsort(-energy, kind="stable")[:own]
    places[largest], signs[largest] = np.arange(own), 1
    sketch = sparse.csr_array((signs, (np.arange(columns), places)), (columns, _COLUMNS))
    return scaled((X @ sketch).toarray())


def _over_rows(X: Any, sizes: Any) -> Any:
    """Return a sparse array whose rows are divided by their sizes; rows of size 0 stay 0."""
    sizes = np.asarray(sizes, np.float64).ravel()
    inverse = np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return sparse.csr_array(X.multiply(inverse[:, None]))
