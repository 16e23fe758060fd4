"""What layers share beyond their controls, from the matrix of their debiased CKA alone.

Debiased CKA is the inner product of unit vectors, the U-centred kernels v_a: a matrix R of it is a Gram matrix,
positive semidefinite with a unit diagonal, and whatever is linear in kernels can be had from R without a kernel.
Everything here takes batches (..., L, L), such as all leave-one-out replicates at once; stack the point estimate on
them, so that all are treated alike.
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
"""Directions of the controls with less than this share of the largest eigenvalue are rounding errors."""
NOTHING = 1e-9
"""What is left of a layer's unit energy where nothing is left."""


def residual(R: ArrayLike, controls: Sequence[int]) -> Matrices:
    """Inner products of what is left of unit kernels once those of the controls are projected out.

    C = R - R_:Z R_ZZ^+ R_Z:, that is <w_a, w_b> with w = (I - P_Z) v.

    Parameters
    ----------
    R
        (..., L, L), debiased CKA of all layers and controls: positive semidefinite with a unit diagonal.
    controls
        Z, the indices of the controls among the L: the input, labels, untrained networks. Their own rows become 0.

    Returns
    -------
    array
        (..., L, L), positive semidefinite, C_aa in [0, 1], but for rounding errors. NaN where R is, and everywhere in a
        replicate in which a control has no value.

    Raises
    ------
    InvalidInputError
        No square matrices; a control that is none of the L.
    UndefinedValueError
        Controls without a value in every replicate.

    Notes
    -----
    Controls may be the same, such as the pixels of two models with one preprocessing: R_ZZ is inverted on the
    eigenvectors of its r largest eigenvalues. The mean of the batch decides on r (eigenvalues above 1e-6 of the
    largest), so that no replicate jumps because one of its eigenvalues happened to fall below a threshold.

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
    within = R[..., Z, :][..., Z]
    there = np.isfinite(within).all((-2, -1))
    if not there.any():
        raise UndefinedValueError(f"the controls {Z} have no similarity with each other: one of them has no value")
    spectrum = np.linalg.eigvalsh(within[there].mean(0) if there.ndim else within)
    rank = int((spectrum > TOLERANCE * spectrum[-1]).sum())
    values, vectors = np.linalg.eigh(np.where(there[..., None, None], within, np.eye(len(Z))))
    values, vectors = values[..., None, -rank:], vectors[..., -rank:]
    along = R[..., Z] @ vectors
    C = R - (along / values) @ along.swapaxes(-1, -2)
    return np.where(there[..., None, None], C, np.nan)


def partial(R: ArrayLike, controls: Sequence[int]) -> Matrices:
    """Debiased CKA of layers given the controls: the cosine between what is left of their U-centred kernels.

    C_ab / sqrt(C_aa C_bb), with C of `residual`, of which the parameters and errors are, too.

    Returns
    -------
    array
        (..., L, L), in [-1, 1], and never clipped; without controls it is R. NaN for a layer of which nothing is left
        (C_aa <= 1e-9), as for the controls themselves.

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
    norm = np.sqrt(np.where(energy > NOTHING, energy, np.nan))
    return C / norm[..., :, None] / norm[..., None, :]


def partial_of_two(R: ArrayLike, weights: ArrayLike) -> Matrices:
    """Debiased CKA of two layers given two kernels, each layer's own: its untrained twin, say.

    partial_ab = C_ab / sqrt(C_aa C_bb), with C of `residual` for the controls u_a and u_b, u_a = sum_c W_ac v_c.

    Parameters
    ----------
    R
        (..., L, L), as in `residual`.
    weights
        (L, L), W: row a says which kernels make up the control of layer a. A row of zeros: it has none.

    Returns
    -------
    array
        (..., L, L), in [-1, 1], and never clipped. As every pair has controls of its own, it need not be positive
        semidefinite. NaN for layers that have no control, and where nothing is left of one.

    Examples
    --------
    >>> R = np.array([[1, 0.8, 0.6], [0.8, 1, 0.6], [0.6, 0.6, 1]])
    >>> float(partial_of_two(R, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])[0, 1].round(4))  # as given the third
    0.6875
    """
    R, W = _matrices(R), np.asarray(weights, np.float64)
    with_control = R @ W.T  # <v_a, u_b>
    controls = W @ with_control
    own = _diagonal(controls)
    s, t, st = own[..., :, None], own[..., None, :], controls
    a_s, b_t = _diagonal(with_control)[..., :, None], _diagonal(with_control)[..., None, :]
    a_t, b_s = with_control, with_control.swapaxes(-1, -2)
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = s * t - st**2 <= TOLERANCE * s * t  # both controls are one: the second adds nothing
        det = np.where(alone, np.nan, s * t - st**2)

        def left(x_s: Matrices, x_t: Matrices, y_s: Matrices, y_t: Matrices) -> Matrices:
            both = (t * x_s * y_s - st * (x_s * y_t + x_t * y_s) + s * x_t * y_t) / det
            return np.asarray(np.where(alone, x_s * y_s / s, both))

        C = R - left(a_s, a_t, b_s, b_t)
        first, second = 1 - left(a_s, a_t, a_s, a_t), 1 - left(b_s, b_t, b_s, b_t)
        there = (s > 0) & (t > 0) & (first > NOTHING) & (second > NOTHING)
        return np.where(there, C / np.sqrt(np.where(there, first * second, 1)), np.nan)


@dataclass(frozen=True)
class Roles:
    """Which pairs of models are of one family, and which of two."""

    families: tuple[str, ...]
    """The family of each model, in the order of the rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """The families, each once, in order of appearance."""
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
        """Pairs of different models, one of each of the two families (or both of one), each once."""
        one, other = (np.array([family == name for family in self.families]) for name in (first, second))
        return np.triu(np.outer(one, other) | np.outer(other, one), 1)

    @property
    def _same(self) -> Bool[np.ndarray, "M M"]:
        return np.array([[a == b for b in self.families] for a in self.families])


@dataclass(frozen=True, eq=False)
class Shares:
    """Where the energy of models' kernels comes from, at one depth: input + universal + family + seed = 1.

    NaN is what the models cannot tell. Where only a sum of two is identified, the sum has a value.
    """

    input: Batch
    universal: Batch
    family: Batch
    seed: Batch
    family_and_seed: Batch
    """1 - input - universal: also where no family has two models."""
    universal_and_family: Batch
    """1 - input - seed: also where there is one family only."""


def shares(C: ArrayLike, families: Sequence[str]) -> Shares:
    """Divide the energy of models' kernels into what is input, universal, of the family, and of the seed.

    With C = <w_m, w_m'> of `residual`, and plain means over models and over pairs of them, so that a family counts as
    its models do:

        input = 1 - mean_m C_mm
        universal = mean of C_mm' over pairs of models of two families
        family = mean of C_mm' over pairs of different models of one family - universal
        seed = mean_m C_mm - mean over pairs of different models of one family

    Parameters
    ----------
    C
        (..., M, M), `residual` of one layer of each model, at matched depths, the models' rows only.
    families
        The family of each model.

    Returns
    -------
    Shares
        They sum to 1 exactly. Each is unbiased, and can be a little below 0. One family: no universal and no family,
        but their sum. One model of each family: no family and no seed, but their sum. NaN where C is.

    Notes
    -----
    A family with a single model has no part in the mean within families; where only some have several, those speak for
    all of them.

    Examples
    --------
    >>> C = 0.45 * np.eye(4) + np.kron(np.eye(2), 1 - np.eye(2)) * 0.33 + np.kron(1 - np.eye(2), np.ones((2, 2))) * 0.15
    >>> found = shares(C, ["mlp", "mlp", "cnn", "cnn"])
    >>> [round(float(share), 2) for share in (found.input, found.universal, found.family, found.seed)]
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
    """How alike families are, measured by how alike the models of one family are."""

    families: tuple[str, ...]
    """In the order of the rows of `pairs`."""
    within: Float64[np.ndarray, "*batch F"]
    """Mean similarity of different models of each family; NaN for a family with one model."""
    pairs: Float64[np.ndarray, "*batch F F"]
    """Each pair of families; NaN on the diagonal."""
    overall: Batch
    """All pairs of families that have several models."""


def ceiling(C: ArrayLike, families: Sequence[str]) -> Ceiling:
    """Compare families by what the models of each have in common: the cosine between their seed-averaged kernels.

    mean_AB / sqrt(mean_A mean_B), of the mean C_mm' of models of the families A and B, and within A and within B over
    different models. Were each model what its family has in common and something of its own, the ratio would be the
    cosine between what the two families have in common. Overall: sum of mean_AB / sum of sqrt(mean_A mean_B) over all
    pairs of families with several models.

    Parameters
    ----------
    C
        (..., M, M), R itself or `residual` of one layer of each model, at matched depths, the models' rows only.
    families
        The family of each model.

    Returns
    -------
    Ceiling
        NaN where a mean within a family is not above 0, or does not exist: a ratio to a ceiling that is not there is
        none. It estimates a cosine, but may itself exceed 1.

    References
    ----------
    Spearman. The proof and measurement of association between two things. American Journal of Psychology 1904.

    Examples
    --------
    >>> C = 0.45 * np.eye(4) + np.kron(np.eye(2), 1 - np.eye(2)) * 0.33 + np.kron(1 - np.eye(2), np.ones((2, 2))) * 0.15
    >>> found = ceiling(C, ["mlp", "mlp", "cnn", "cnn"])
    >>> found.within.round(2), round(float(found.overall), 3)
    (array([0.33, 0.33]), 0.455)
    """
    C, roles = _models(C, families)
    names = roles.names
    means = np.stack([np.stack([_mean(C, roles.among(a, b)) for b in names], -1) for a in names], -2)
    within = _diagonal(means)
    resolved = np.sqrt(np.where(within > 0, within, np.nan))
    limit = resolved[..., :, None] * resolved[..., None, :]
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
    """Of the pairs; NaN where there are none."""
    return np.asarray(C[..., pairs].mean(-1) if pairs.any() else np.full(C.shape[:-2], np.nan))
