"""Which layer of one network a layer of another one matches, when the order of layers must be kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError

LEVEL = 1e-8
"""Sums that differ by less than this share of the largest similarity are equal: float32 rounds more than that."""


@dataclass(frozen=True, eq=False)
class Match:
    """The best order-preserving map of the layers of A to layers of B, for each matrix of a batch."""

    value: Float64[np.ndarray, "*batch"]
    """Mean similarity along the map; NaN where there is no map."""
    columns: Int64[np.ndarray, "*batch A"]
    """The layer of B for each layer of A, never decreasing; -1 for layers that are left out, or if there is no map."""


def best_match(S: ArrayLike) -> Match:
    """Map every layer of A to a layer of B, never going back, so that the mean similarity is largest.

    D_1j = S_1j, D_ij = S_ij + max_{j' <= j} D_{i-1,j'}; the value is MBM(A -> B) = max_j D_{A,j} / A.

    Parameters
    ----------
    S
        (..., A, B), similarities of the layers of A (rows) and B, each in order of depth. NaN: no value. A row of
        nothing but NaN is left out of the map and of the mean; another NaN is never chosen.

    Returns
    -------
    Match
        The value lies within the range of S. Of several best maps it is the one whose every column is smallest; sums
        that differ by less than 1e-8 of the largest similarity are equal, as layers that hold the same differ by that.

    Notes
    -----
    Dynamic time warping sums along paths, and so favours long ones; here every layer of A counts once. The value is a
    maximum: it grows by chance with the number of layers, and needs `split_half` or permutations to be judged.

    Examples
    --------
    >>> match = best_match([[0.9, 0.2, 0.1], [0.3, 0.8, 0.4], [0.5, 0.6, 0.4]])
    >>> match.columns, round(float(match.value), 3)
    (array([0, 1, 1]), 0.767)
    """
    S = _matrices(S)
    *batch, rows, width = S.shape
    missing = np.isnan(S)
    left_out = missing.all(-1)
    level = LEVEL * np.where(missing, 0, np.abs(S)).max((-2, -1))[..., None]
    gains = np.where(left_out[..., None], 0, np.where(missing, -np.inf, S))  # a row left out may go anywhere for 0

    total = np.zeros((*batch, width))
    before = np.zeros((rows, *batch, width), np.int64)  # the best layer for row i, if it may not lie behind j
    for i in range(rows):
        total = total + gains[..., i, :]
        ahead = np.maximum.accumulate(total, axis=-1)
        rises = np.concatenate([np.zeros((*batch, 1), bool), total[..., 1:] > ahead[..., :-1] + level], -1)
        before[i] = np.maximum.accumulate(np.where(rises, np.arange(width), 0), axis=-1)
        total = ahead

    columns = np.full((*batch, rows), width - 1)
    for i in reversed(range(rows)):
        end = columns[..., min(i + 1, rows - 1), None]
        columns[..., i] = np.take_along_axis(before[i], end, -1)[..., 0]
    counted = rows - left_out.sum(-1)
    found = np.isfinite(total[..., -1]) & (counted > 0)
    value = np.where(found, total[..., -1], np.nan) / np.maximum(counted, 1)
    return Match(np.asarray(value), np.where(found[..., None] & ~left_out, columns, -1))


def mbm(S: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Find the best order-preserving matches of A -> B and of B -> A, and take the mean of their two values.

    MBM = (MBM(A -> B) + MBM(B -> A)) / 2, from the matrices S (..., A, B) of `best_match`; within the range of S. NaN
    where one of the two directions has no map.

    Examples
    --------
    >>> round(float(mbm([[0.8, 0.2], [0.3, 0.6], [0.1, 0.4]])), 3)
    0.65
    """
    S = _matrices(S)
    return np.asarray((best_match(S).value + best_match(S.swapaxes(-1, -2)).value) / 2)


def split_half(first: ArrayLike, second: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Find the best match on one half of the stimuli and measure it on the other: no winner's curse.

    The mean of four values: the map A -> B and the map B -> A, found on either half and measured on the other one.
    Where all layers are unrelated its expectation is that of one similarity, 0 for debiased CKA, and no maximum's.

    Parameters
    ----------
    first, second
        (..., A, B), similarities from two halves of the stimuli that have none in common. What is NaN in one of them is
        taken for NaN in both.

    Returns
    -------
    array
        Within the range of the similarities; NaN where a direction has no map.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=(2, 1000, 8, 10))
    >>> round(float(mbm(noise[0]).mean()), 1), round(float(abs(split_half(*noise).mean())), 1)
    (1.0, 0.0)
    """
    halves = np.stack([_matrices(first), _matrices(second)])
    halves = np.where(np.isnan(halves).any(0), np.nan, halves)
    directions = (halves, halves.swapaxes(-1, -2))
    return np.asarray(np.mean([along(S[::-1], best_match(S).columns).mean(0) for S in directions], axis=0))


def along(S: ArrayLike, columns: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Take the mean of S along a map that was found before: in other stimuli, or in all of them but one.

    Parameters
    ----------
    S
        (..., A, B), as in `best_match`.
    columns
        (..., A), as in `Match`: one map, or one for each matrix of the batch.

    Examples
    --------
    >>> along([[0.9, 0.2], [0.3, 0.8]], [0, 1]).round(3).item()
    0.85
    """
    S, columns = _matrices(S), np.asarray(columns)
    columns = np.broadcast_to(columns, S.shape[:-1])
    return _mean(np.take_along_axis(S, np.maximum(columns, 0)[..., None], -1)[..., 0], columns >= 0)


def relative(columns: ArrayLike, width: int) -> Float64[np.ndarray, "*batch A"]:
    """Give layers of a network as depths between 0, the first of its layers, and 1, the last.

    j / (B - 1). NaN for a layer that is left out (-1), and for every layer of a network that has only one.

    Parameters
    ----------
    columns
        Layers, as in `Match`.
    width
        B, the number of layers that there are.

    Examples
    --------
    >>> relative([0, 1, 1, 3, -1], 5)
    array([0.  , 0.25, 0.25, 0.75,  nan])
    """
    columns = np.asarray(columns)
    if not ((columns >= -1) & (columns < width)).all():
        raise InvalidInputError(f"expected layers from 0 to {width - 1}, or -1 for none; got {columns.tolist()}")
    return np.where((columns >= 0) & (width > 1), columns / max(width - 1, 1), np.nan)


def warp(columns: ArrayLike, width: int) -> Float64[np.ndarray, "*batch"]:
    """Say how much deeper in B the layers of A find their match than they lie in A.

    mean_i (j_i / (B - 1) - i / (A - 1)), over the layers that have a match; in [-1/2, 1/2] where all have one. 0 where
    both networks do the same at the same relative depth, negative where A is slow: its layers match earlier ones of B.
    NaN where nothing has a match and where a network has a single layer.

    Parameters
    ----------
    columns
        (..., A), as in `Match`.
    width
        B, the number of layers of the other network.

    References
    ----------
    Raghu, Unterthiner, Kornblith, Zhang, Dosovitskiy. Do vision transformers see like convolutional neural networks?
    NeurIPS 2021 (the lower half of a ResNet matches the first quarter of a ViT).

    Examples
    --------
    >>> float(warp([0, 0, 1, 1, 2], 5))
    -0.3
    """
    there = relative(columns, width)
    here = relative(np.arange(there.shape[-1]), there.shape[-1])
    return _mean(there - here, ~np.isnan(there))


def nearest(layers: int, count: int) -> Int64[np.ndarray, " count"]:
    """Find the layers closest to evenly spaced relative depths 0, 1 / (count - 1), ..., 1; of two the earlier one.

    Examples
    --------
    >>> nearest(17, 5), nearest(4, 3), nearest(2, 4)
    (array([ 0,  4,  8, 12, 16]), array([0, 1, 3]), array([0, 0, 1, 1]))
    """
    if layers < 1 or count < 2:
        raise InvalidInputError(f"expected at least 1 layer and 2 depths, got {layers} and {count}")
    steps = count - 1  # in whole numbers, where halves are exact: the smallest j with j - depth >= -1/2
    return (2 * np.arange(count) * (layers - 1) + steps - 1) // (2 * steps)


def _matrices(S: ArrayLike) -> Float64[np.ndarray, "*batch A B"]:
    S = np.asarray(S, np.float64)
    if S.ndim < 2 or 0 in S.shape[-2:]:
        raise InvalidInputError(f"expected similarities of layers with layers, (..., A, B), got the shape {S.shape}")
    return S


def _mean(values: Float64[np.ndarray, "*batch A"], there: np.ndarray) -> Float64[np.ndarray, "*batch"]:
    """Over what is there; NaN where nothing is."""
    count = there.sum(-1)
    return np.where(count > 0, np.where(there, values, 0).sum(-1) / np.maximum(count, 1), np.nan)
