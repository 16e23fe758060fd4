"""Compute partial CKA, energy shares and family ceilings from a matrix of debiased CKA.

Debiased CKA is the inner product of unit vectors, the U-centred kernels v_a. A matrix R of it is therefore a Gram
matrix, positive semidefinite with a unit diagonal, and whatever is linear in kernels can be computed from R alone.
All functions take batches (..., L, L), such as all leave-one-out replicates at once. Stack the point estimate and its
replicates, so that all are treated alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError, UndefinedValueError

Batch = Float64[np.ndarray, "*batch"]
PerLayer = Float64[np.ndarray, "*batch L"]
Matrices = Float64[np.ndarray, "*batch L L"]

TOLERANCE = 1e-6
"""Eigenvalues of the controls below this share of the largest one are treated as rounding errors."""
MIN_ENERGY = 1e-9
"""A layer whose residual energy (of a total of 1) is at most this has no residual, and no partial CKA."""


def residual(R: ArrayLike, controls: Sequence[int]) -> Matrices:
    """Compute inner products of unit kernels after the kernels of the controls are projected out.

    C = R - R_:Z R_ZZ^+ R_Z:, that is <w_a, w_b> with w = (I - P_Z) v.

    Parameters
    ----------
    R : array of shape (..., L, L)
        Debiased CKA of all layers and controls: positive semidefinite with a unit diagonal.
    controls : sequence of int
        Z, the positions of the controls among the L: kernels of the input, or untrained networks. Their own rows become
        0.

    Returns
    -------
    array of shape (..., L, L)
        Positive semidefinite, with C_aa in [0, 1], up to rounding errors. NaN where R is NaN, and everywhere in a
        replicate in which a control has no value.

    Raises
    ------
    InvalidInputError
        If the matrices are not square, or the position of a control is not between 0 and L - 1.
    UndefinedValueError
        If the controls have no value in any replicate.

    Notes
    -----
    Controls may be equal, such as the pixels of two models with the same preprocessing: R_ZZ is inverted on the
    eigenvectors of its r largest eigenvalues. r is the number of eigenvalues of the batch mean above 1e-6 of the
    largest. All replicates have the same r, so that none jumps because an eigenvalue of its own crosses the threshold.

    Examples
    --------
    >>> R = np.array([[1, 0.8, 0.6], [0.8, 1, 0.6], [0.6, 0.6, 1]])
    >>> residual(R, [2]).round(3)
    array([[0.64, 0.44, 0.  ],
           [0.44, 0.64, 0.  ],
           [0.  , 0.  , 0.  ]])
    """
    R, Z = _matrices(R), list(controls)
    if not Z:
        return R.copy()
    if not all(0 <= z < R.shape[-1] for z in Z):
        raise InvalidInputError(f"expected controls between 0 and {R.shape[-1] - 1}, got {Z}")
    own = _diagonal(R)
    return residual_between(R, own, own, Z, Z)[0]


def residual_between(
    values: Float64[np.ndarray, "*batch rows columns"],
    own_rows: Float64[np.ndarray, "*batch rows"],
    own_columns: Float64[np.ndarray, "*batch columns"],
    in_rows: Sequence[int],
    in_columns: Sequence[int],
) -> tuple[Matrices, PerLayer, PerLayer]:
    """Compute `residual` for some rows and columns of R, both of which have the controls.

    Parameters
    ----------
    values : array of shape (..., rows, columns)
        Debiased CKA of the rows with the columns.
    own_rows, own_columns : arrays of shape (..., rows) and (..., columns)
        Inner products of the layers with themselves: 1 for unit kernels.
    in_rows, in_columns : sequence of int
        Positions of the controls among the rows, and among the columns, in the same order.

    Returns
    -------
    tuple of arrays
        C of the rows with the columns, and C_aa of the rows and of the columns.
    """
    within = values[..., in_rows, :][..., in_columns]
    defined = np.isfinite(within).all((-2, -1))
    if not defined.any():
        raise UndefinedValueError(
            f"the controls {list(in_rows)} have no similarity with each other: one of them has no value"
        )
    spectrum = np.linalg.eigvalsh(within[defined].mean(0) if defined.ndim else within)
    rank = int((spectrum > TOLERANCE * spectrum[-1]).sum())
    roots, vectors = np.linalg.eigh(np.where(defined[..., None, None], within, np.eye(len(in_rows))))
    roots, vectors = roots[..., None, -rank:], vectors[..., -rank:]
    along_rows = values[..., in_columns] @ vectors
    along_columns = values[..., in_rows, :].swapaxes(-1, -2) @ vectors
    C = values - (along_rows / roots) @ along_columns.swapaxes(-1, -2)
    of_rows, of_columns = (
        np.where(defined[..., None], norms - (np.square(along) / roots).sum(-1), np.nan)
        for norms, along in ((own_rows, along_rows), (own_columns, along_columns))
    )
    return np.where(defined[..., None, None], C, np.nan), of_rows, of_columns


def partial(R: ArrayLike, controls: Sequence[int]) -> Matrices:
    """Compute partial CKA: the cosine between the U-centred kernels after the controls are projected out.

    C_ab / sqrt(C_aa C_bb), with C from `residual`. Parameters and errors are those of `residual`.

    Returns
    -------
    array of shape (..., L, L)
        Values in [-1, 1], never clipped; R itself if there are no controls. NaN for a layer without a residual
        (C_aa <= 1e-9), and so for the controls themselves.

    Examples
    --------
    >>> R = np.array([[1, 0.8, 0.6], [0.8, 1, 0.6], [0.6, 0.6, 1]])
    >>> partial(R, [2]).round(4)
    array([[1.    , 0.6875,    nan],
           [0.6875, 1.    ,    nan],
           [   nan,    nan,    nan]])
    """
    C = residual(R, controls)
    if not controls:
        return C
    energy = _diagonal(C)
    norm = np.sqrt(np.where(energy > MIN_ENERGY, energy, np.nan))
    return C / norm[..., :, None] / norm[..., None, :]


def partial_of_two(R: ArrayLike, weights: ArrayLike) -> Matrices:
    """Compute partial CKA of two layers given one control for each of them, such as its untrained twin.

    partial_ab = C_ab / sqrt(C_aa C_bb), with C from `residual` for the controls u_a and u_b, u_a = sum_c W_ac v_c.

    Parameters
    ----------
    R : array of shape (..., L, L)
        Debiased CKA, as in `residual`.
    weights : array of shape (L, L)
        W: row a holds the weights of the kernels whose sum is the control of layer a. A row of zeros: no control.

    Returns
    -------
    array of shape (..., L, L)
        Values in [-1, 1], never clipped. As the controls differ from pair to pair, the matrix need not be positive
        semidefinite. NaN for layers that have no control, and for layers without a residual.

    Examples
    --------
    >>> R = np.array([[1, 0.8, 0.6], [0.8, 1, 0.6], [0.6, 0.6, 1]])
    >>> float(partial_of_two(R, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])[0, 1].round(4))  # the same as partial(R, [2])
    0.6875
    """
    R, W = _matrices(R), np.asarray(weights, np.float64)
    return partial_between(R, W, W, W, W)


def partial_between(
    values: Float64[np.ndarray, "*batch rows columns"],
    of_rows: Float64[np.ndarray, "rows rows"],
    of_columns: Float64[np.ndarray, "columns columns"],
    rows_in_columns: Float64[np.ndarray, "rows columns"],
    columns_in_rows: Float64[np.ndarray, "columns rows"],
) -> Matrices:
    """Compute `partial_of_two` for some rows and columns of R, both of which have the controls of all layers.

    Parameters
    ----------
    values : array of shape (..., rows, columns)
        Debiased CKA of the rows with the columns.
    of_rows, of_columns : arrays of shape (rows, rows) and (columns, columns)
        Weights of the controls of the rows, as rows, and of the columns, as columns.
    rows_in_columns, columns_in_rows : arrays of shape (rows, columns) and (columns, rows)
        The same weights: of the controls of the rows, as columns, and of those of the columns, as rows.
    """
    b_s = of_rows @ values  # <v_b, u_a>
    a_t = values @ of_columns.T  # <v_a, u_b>
    st = of_rows @ a_t  # <u_a, u_b>
    a_s = (values * rows_in_columns).sum(-1)[..., :, None]
    s = (b_s * rows_in_columns).sum(-1)[..., :, None]
    b_t = (values * columns_in_rows.T).sum(-2)[..., None, :]
    t = (a_t * columns_in_rows.T).sum(-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        collinear = s * t - st**2 <= TOLERANCE * s * t  # the two controls span one direction
        det = np.where(collinear, np.nan, s * t - st**2)

        def explained(x_s: Matrices, x_t: Matrices, y_s: Matrices, y_t: Matrices) -> Matrices:
            by_both = (t * x_s * y_s - st * (x_s * y_t + x_t * y_s) + s * x_t * y_t) / det
            return np.asarray(np.where(collinear, x_s * y_s / s, by_both))

        C = values - explained(a_s, a_t, b_s, b_t)
        energy_a, energy_b = 1 - explained(a_s, a_t, a_s, a_t), 1 - explained(b_s, b_t, b_s, b_t)
        defined = (s > 0) & (t > 0) & (energy_a > MIN_ENERGY) & (energy_b > MIN_ENERGY)
        return np.where(defined, C / np.sqrt(np.where(defined, energy_a * energy_b, 1)), np.nan)


@dataclass(frozen=True)
class Roles:
    """Family of each model, and masks of the pairs of models within one family and across two."""

    families: tuple[str, ...]
    """The family of each model, in the order of the rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families, each once, in order of appearance."""
        return tuple(dict.fromkeys(self.families))

    @property
    def within(self) -> Bool[np.ndarray, "M M"]:
        """Pairs of different models of one family, each once."""
        return np.triu(self._same, 1)

    @property
    def across(self) -> Bool[np.ndarray, "M M"]:
        """Pairs of models of different families, each once."""
        return np.triu(~self._same, 1)

    def among(self, first: str, second: str) -> Bool[np.ndarray, "M M"]:
        """Return a mask of the pairs of different models, one of each of the two families, each pair once.

        If both names are the same, the pairs are those within this family.
        """
        one, other = (np.array([family == name for family in self.families]) for name in (first, second))
        return np.triu(np.outer(one, other) | np.outer(other, one), 1)

    @property
    def _same(self) -> Bool[np.ndarray, "M M"]:
        return np.array([[a == b for b in self.families] for a in self.families])


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of the energy of models' kernels at one depth: input + universal + family + seed = 1.

    Shares that these models do not identify are NaN. If only the sum of two is identified, the sum has a value.
    """

    input: Batch
    """Explained by the input."""
    universal: Batch
    """Shared by models of different families, beyond the input."""
    family: Batch
    """Shared by models of one family, beyond that."""
    seed: Batch
    """Not shared with any other model."""
    family_and_seed: Batch
    """1 - input - universal; identified even if no family has two models."""
    universal_and_family: Batch
    """1 - input - seed; identified even if there is only one family."""


def shares(C: ArrayLike, families: Sequence[str]) -> Shares:
    """Divide the energy of models' kernels into the shares of the input, of all models, of the family and of the seed.

    With C = <w_m, w_m'> from `residual`, and unweighted means over models and over pairs of models, so that a family
    counts in proportion to its models:

        input = 1 - mean_m C_mm
        universal = mean of C_mm' over pairs of models of two families
        family = mean of C_mm' over pairs of different models of one family - universal
        seed = mean_m C_mm - mean over pairs of different models of one family

    Parameters
    ----------
    C : array of shape (..., M, M)
        `residual` of one layer of each model, at matched depths, without the rows of the controls.
    families : sequence of str
        The family of each model.

    Returns
    -------
    Shares
        The four shares sum to 1 exactly. Each is unbiased, and can be slightly negative. With one family, universal
        and family are NaN, and only their sum is given. With one model of each family, family and seed are NaN, and
        only their sum is given. NaN where C is NaN.

    Notes
    -----
    A family with a single model does not enter the mean within families. If only some families have several models,
    the mean within families is that of these families.

    Examples
    --------
    >>> C = 0.45 * np.eye(4) + np.kron(np.eye(2), 1 - np.eye(2)) * 0.33 + np.kron(1 - np.eye(2), np.ones((2, 2))) * 0.15
    >>> result = shares(C, ["mlp", "mlp", "cnn", "cnn"])
    >>> [round(float(share), 2) for share in (result.input, result.universal, result.family, result.seed)]
    [0.55, 0.15, 0.18, 0.12]
    """
    C, roles = _models(C, families)
    energy = _diagonal(C).mean(-1)
    within, across = _mean(C, roles.within), _mean(C, roles.across)
    return Shares(
        input=np.asarray(1 - energy),
        universal=across,
        family=np.asarray(within - across),
        seed=np.asarray(energy - within),
        family_and_seed=np.asarray(energy - across),
        universal_and_family=within,
    )


@dataclass(frozen=True, eq=False)
class Ceiling:
    """Similarity of families relative to the similarity of models within a family."""

    families: tuple[str, ...]
    """Names of the families, in the order of the rows of `pairs`."""
    within: Float64[np.ndarray, "*batch F"]
    """Mean similarity of different models of each family; NaN for a family with one model."""
    pairs: Float64[np.ndarray, "*batch F F"]
    """Ratio for each pair of families; NaN on the diagonal."""
    overall: Batch
    """Ratio for all pairs of families with several models together."""


def ceiling(C: ArrayLike, families: Sequence[str]) -> Ceiling:
    """Compare the similarity across families with the ceiling set by the similarity within families.

    The ratio is mean_AB / sqrt(mean_A mean_B), where mean_AB is the mean C_mm' over pairs of a model of family A and a
    model of family B, and mean_A the mean over different models of A. If each model is the sum of a part that its
    family shares and a part of its own, the ratio is the cosine between the shared parts of the two families. Overall:
    sum of mean_AB / sum of sqrt(mean_A mean_B) over all pairs of families with several models.

    Parameters
    ----------
    C : array of shape (..., M, M)
        R itself or `residual` of one layer of each model, at matched depths, without the rows of the controls.
    families : sequence of str
        The family of each model.

    Returns
    -------
    Ceiling
        NaN where the mean within a family is not above 0, or the family has one model: then there is no ceiling. The
        ratio estimates a cosine, but may itself exceed 1.

    References
    ----------
    Spearman. The proof and measurement of association between two things. American Journal of Psychology 1904.

    Examples
    --------
    >>> C = 0.45 * np.eye(4) + np.kron(np.eye(2), 1 - np.eye(2)) * 0.33 + np.kron(1 - np.eye(2), np.ones((2, 2))) * 0.15
    >>> result = ceiling(C, ["mlp", "mlp", "cnn", "cnn"])
    >>> result.within.round(2), round(float(result.overall), 3)
    (array([0.33, 0.33]), 0.455)
    """
    C, roles = _models(C, families)
    names = roles.names
    means = np.stack([np.stack([_mean(C, roles.among(a, b)) for b in names], -1) for a in names], -2)
    within = _diagonal(means)
    roots = np.sqrt(np.where(within > 0, within, np.nan))
    limit = roots[..., :, None] * roots[..., None, :]
    several = np.array([roles.families.count(name) > 1 for name in names])
    counted = np.triu(np.outer(several, several), 1)
    overall = _mean(means, counted) / _mean(limit, counted)
    return Ceiling(names, within, np.where(np.eye(len(names), dtype=bool), np.nan, means / limit), np.asarray(overall))


def _matrices(R: ArrayLike) -> Matrices:
    R = np.asarray(R, np.float64)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2] or R.shape[-1] == 0:
        raise InvalidInputError(
            f"expected similarities of layers with themselves, (..., L, L), got the shape {R.shape}"
        )
    return R


def _models(C: ArrayLike, families: Sequence[str]) -> tuple[Matrices, Roles]:
    C = _matrices(C)
    if len(families) != C.shape[-1]:
        raise InvalidInputError(f"expected a family for each of {C.shape[-1]} models, got {len(families)}")
    return C, Roles(tuple(families))


def _diagonal(C: Matrices) -> PerLayer:
    return np.diagonal(C, axis1=-2, axis2=-1)


def _mean(C: Matrices, pairs: Bool[np.ndarray, "L L"]) -> Batch:
    """Return the mean of C over a set of pairs; NaN if it is empty."""
    return np.asarray(C[..., pairs].mean(-1) if pairs.any() else np.full(C.shape[:-2], np.nan))
