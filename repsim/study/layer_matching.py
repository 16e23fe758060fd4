"""Match the layers of two networks in order of depth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError

TIE_TOLERANCE = 1e-8
"""Sums that differ by less than this share of the largest similarity count as ties: float32 rounds more than that."""


@dataclass(frozen=True, eq=False)
class Match:
    """The best order-preserving map of the layers of A to layers of B, for each matrix of a batch."""

    value: Float64[np.ndarray, "*batch"]
    """Mean similarity along the map; NaN if there is no map."""
    columns: Int64[np.ndarray, "*batch A"]
    """The layer of B for each layer of A, never decreasing; -1 for layers that are left out, or if there is no map."""


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """Maps of the layers of two networks to each other, with weights: a mean of several maps has several targets."""

    a_to_b: Float64[np.ndarray, "*batch A B"]
    """Weights of the layers of B for each layer of A, with sum 1; zeros for a layer that is left out."""
    b_to_a: Float64[np.ndarray, "*batch B A"]
    """The same for each layer of B."""

    @property
    def weights(self) -> Float64[np.ndarray, "*batch A B"]:
        """Weights W whose sum of products with S is the mean similarity along both maps; they sum to 1, or are 0."""
        sums = [maps.reshape(*maps.shape[:-2], -1).sum(-1)[..., None, None] for maps in (self.a_to_b, self.b_to_a)]
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = (self.a_to_b / sums[0] + self.b_to_a.swapaxes(-1, -2) / sums[1]) / 2
        return np.asarray(np.where((sums[0] == 0) | (sums[1] == 0), 0.0, weights))

    def at(self, i: int, j: int) -> Float64[np.ndarray, "*batch A B"]:
        """Return weights of the layers to which layer i of A and layer j of B are mapped; they sum to 1, or are 0."""
        weights = np.zeros(self.a_to_b.shape)
        weights[..., i, :] += _normalised(self.a_to_b[..., i, :])
        weights[..., :, j] += _normalised(self.b_to_a[..., j, :])
        flat = weights.reshape(*weights.shape[:-2], -1)
        return _normalised(flat).reshape(weights.shape)


def _normalised(weights: Float64[np.ndarray, "*batch k"]) -> Float64[np.ndarray, "*batch k"]:
    """Divide weights by their sum, if it is not 0."""
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1, total))


def best_maps(S: ArrayLike) -> tuple[Float64[np.ndarray, "*batch A B"], Float64[np.ndarray, "*batch B A"]]:
    """Return the best matches from A to B and from B to A (`best_match`) as weights of 0 and 1.

    Parameters
    ----------
    S : array of shape (..., A, B)
        Similarities, as in `best_match`.

    Examples
    --------
    >>> a_to_b, b_to_a = best_maps([[0.8, 0.2], [0.3, 0.6], [0.1, 0.4]])
    >>> a_to_b
    array([[1., 0.],
           [0., 1.],
           [0., 1.]])
    >>> LayerMaps(a_to_b, b_to_a).weights.round(3)
    array([[0.417, 0.   ],
           [0.   , 0.417],
           [0.   , 0.167]])
    """
    S = _matrices(S)
    one, other = (
        (best_match(matrix).columns[..., None] == np.arange(matrix.shape[-1])).astype(np.float64)
        for matrix in (S, S.swapaxes(-1, -2))
    )
    return one, other


def best_match(S: ArrayLike) -> Match:
    """Map every layer of A to a layer of B, in order of depth, so that the mean similarity is largest.

    D_1j = S_1j, D_ij = S_ij + max_{j' <= j} D_{i-1,j'}; the value is MBM(A -> B) = max_j D_{A,j} / A.

    Parameters
    ----------
    S : array of shape (..., A, B)
        Similarities of the layers of A (rows) and of B (columns), each in order of depth. NaN means no value. A row of
        nothing but NaN is left out of the map and of the mean; other NaN are never chosen.

    Returns
    -------
    Match
        Its value lies within the range of S. Of several best maps it is the one with the smallest columns. Sums that
        differ by less than 1e-8 of the largest similarity count as ties, as equal layers differ by rounding errors.

    Notes
    -----
    Dynamic time warping sums along paths, and so favours long ones; here every layer of A counts once. The value is a
    maximum, which grows by chance with the number of layers. Judge it with `split_half` or with permutations.

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
    tolerance = TIE_TOLERANCE * np.where(missing, 0, np.abs(S)).max((-2, -1))[..., None]
    gains = np.where(left_out[..., None], 0, np.where(missing, -np.inf, S))  # a row that is left out adds 0

    total = np.zeros((*batch, width))
    best_column = np.zeros((rows, *batch, width), np.int64)  # the best column of row i among columns up to j
    for i in range(rows):
        total = total + gains[..., i, :]
        running_max = np.maximum.accumulate(total, axis=-1)
        rises = np.concatenate([np.zeros((*batch, 1), bool), total[..., 1:] > running_max[..., :-1] + tolerance], -1)
        best_column[i] = np.maximum.accumulate(np.where(rises, np.arange(width), 0), axis=-1)
        total = running_max

    columns = np.full((*batch, rows), width - 1)
    for i in reversed(range(rows)):
        end = columns[..., min(i + 1, rows - 1), None]
        columns[..., i] = np.take_along_axis(best_column[i], end, -1)[..., 0]
    counted = rows - left_out.sum(-1)
    has_map = np.isfinite(total[..., -1]) & (counted > 0)
    value = np.where(has_map, total[..., -1], np.nan) / np.maximum(counted, 1)
    return Match(np.asarray(value), np.where(has_map[..., None] & ~left_out, columns, -1))


def mbm(S: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Compute the mean value of the best order-preserving matches A -> B and B -> A.

    MBM = (MBM(A -> B) + MBM(B -> A)) / 2, with the values of `best_match`.

    Parameters
    ----------
    S : array of shape (..., A, B)
        Similarities, as in `best_match`.

    Returns
    -------
    array of shape (...)
        Values within the range of S; NaN where one of the two directions has no map.

    Examples
    --------
    >>> round(float(mbm([[0.8, 0.2], [0.3, 0.6], [0.1, 0.4]])), 3)
    0.65
    """
    S = _matrices(S)
    return np.asarray((best_match(S).value + best_match(S.swapaxes(-1, -2)).value) / 2)


def split_half(first: ArrayLike, second: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Compute the similarity along the best match of one half of the stimuli, measured on the other half.

    The result is the mean of four values: for the maps A -> B and B -> A, the map is fitted on either half and its mean
    similarity measured on the other. This avoids the bias of a maximum: for unrelated layers the expectation is that of
    a single similarity, which is 0 for debiased CKA.

    Parameters
    ----------
    first, second : arrays of shape (..., A, B)
        Similarities from two disjoint halves of the stimuli. Entries that are NaN in one of them are ignored in both.

    Returns
    -------
    array of shape (...)
        Values within the range of the similarities; NaN where a direction has no map.

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
    """Compute the mean of S along a map that was fitted before, for instance on other stimuli.

    Parameters
    ----------
    S : array of shape (..., A, B)
        Similarities, as in `best_match`.
    columns : array of shape (A,) or (..., A)
        Columns of a `Match`: one map, or one for each matrix of the batch.

    Returns
    -------
    array of shape (...)
        Mean similarities; NaN where the map is empty.

    Examples
    --------
    >>> along([[0.9, 0.2], [0.3, 0.8]], [0, 1]).round(3).item()
    0.85
    """
    S, columns = _matrices(S), np.asarray(columns)
    columns = np.broadcast_to(columns, S.shape[:-1])
    return _mean(np.take_along_axis(S, np.maximum(columns, 0)[..., None], -1)[..., 0], columns >= 0)


def relative(columns: ArrayLike, width: int) -> Float64[np.ndarray, "*batch A"]:
    """Convert layer indices to relative depths: j / (B - 1), which is 0 for the first layer and 1 for the last.

    Parameters
    ----------
    columns : array of int
        Layer indices, as in `Match`.
    width : int
        B, the number of layers of the network.

    Returns
    -------
    array of the shape of columns
        Relative depths. NaN for a layer that is left out (-1), and if the network has a single layer.

    Raises
    ------
    InvalidInputError
        If an index is not between -1 and B - 1.

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
    """Compute the mean difference in relative depth between the layers of A and their matches in B.

    mean_i (j_i / (B - 1) - i / (A - 1)), over the layers that have a match.

    Parameters
    ----------
    columns : array of shape (..., A)
        Columns of a `Match`.
    width : int
        B, the number of layers of the other network.

    Returns
    -------
    array of shape (...)
        Values in [-1/2, 1/2] if all layers have a match. 0 if layers match at the same relative depth, negative if
        layers of A match earlier layers of B. NaN if no layer has a match, or a network has a single layer.

    References
    ----------
    Raghu, Unterthiner, Kornblith, Zhang, Dosovitskiy. Do vision transformers see like convolutional neural networks?
    NeurIPS 2021 (the lower half of a ResNet matches the first quarter of a ViT).

    Examples
    --------
    >>> float(warp([0, 0, 1, 1, 2], 5))
    -0.3
    """
    in_b = relative(columns, width)
    in_a = relative(np.arange(in_b.shape[-1]), in_b.shape[-1])
    return _mean(in_b - in_a, ~np.isnan(in_b))


def nearest(layers: int, count: int) -> Int64[np.ndarray, " count"]:
    """Return the indices of the layers closest to the relative depths 0, 1 / (count - 1), ..., 1.

    Of two layers at the same distance it is the earlier one.

    Parameters
    ----------
    layers : int
        Number of layers.
    count : int
        Number of depths, at least 2.

    Examples
    --------
    >>> nearest(17, 5), nearest(4, 3), nearest(2, 4)
    (array([ 0,  4,  8, 12, 16]), array([0, 1, 3]), array([0, 0, 1, 1]))
    """
    if layers < 1 or count < 2:
        raise InvalidInputError(f"expected at least 1 layer and 2 depths, got {layers} and {count}")
    steps = count - 1  # integer arithmetic keeps ties exact: the smallest j with j - depth >= -1/2
    return (2 * np.arange(count) * (layers - 1) + steps - 1) // (2 * steps)


def _matrices(S: ArrayLike) -> Float64[np.ndarray, "*batch A B"]:
    S = np.asarray(S, np.float64)
    if S.ndim < 2 or 0 in S.shape[-2:]:
        raise InvalidInputError(f"expected similarities of layers with layers, (..., A, B), got the shape {S.shape}")
    return S


def _mean(values: Float64[np.ndarray, "*batch A"], mask: np.ndarray) -> Float64[np.ndarray, "*batch"]:
    """Return the mean of the values in the mask; NaN where the mask is empty."""
    count = mask.sum(-1)
    return np.where(count > 0, np.where(mask, values, 0).sum(-1) / np.maximum(count, 1), np.nan)
