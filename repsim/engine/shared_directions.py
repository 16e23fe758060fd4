"""Truncate layers to their leading principal components: few features with nearly the same Gram matrix."""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from repsim.engine.preparation import map_layers
from repsim.errors import Argument, InvalidInputError, Remedy, TooLittleMemoryError
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.products import covariance, inner_products
from repsim.metrics.recipes.rows import Centred, Rows, cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.files import format_size
from repsim.runtime.progress import part_of_unit, report_share

_RUN = 2048
"""Samples that are multiplied, or converted to float64, at once."""
_LARGEST_SHARE = 0.9999
"""Largest share for which products in float32, whose errors are about 1e-6 of ||K||^2, are exact enough."""
_IN_THREADS = 4096
"""Largest X'X or XX' that is made and decomposed beside others."""
_AT_ONCE = 16
"""Layers that are truncated before their components are counted."""
_DECOMPOSED = 40
"""Bytes that a decomposition in float64 takes for each entry of the matrix: the matrix, its vectors and their copy, and
twice as much for what LAPACK needs."""
_ROUNDS, _CONVERGED = 12, 1e-7
"""Products of a subspace with C, at most, and the share of the energy by which the last one has to increase it."""


def truncate(gram: Gram, share: float = 0.9999) -> Gram:
    """Truncate a layer to the fewest principal components that keep this share of ||K||^2 = sum_i s_i^4.

    s_i are the singular values of the centred layer X. The features become X V_r, or the equal U_r diag(s_1 ... s_r) if
    there are more features than samples. The result is a `Gram` as any other, which is much cheaper to permute: the
    cost of a permutation is proportional to the number of features.

    **Error bound.** Let c = (sum_{i<=r} s_i^4 / sum_i s_i^4)^(1/2), which is the biased CKA of a layer and its
    truncation. For the biased CKA of any two layers, |arccos CKA - arccos CKA_r| <= arccos c_X + arccos c_Y, because
    angles between Gram matrices satisfy the triangle inequality.

    Parameters
    ----------
    gram : Gram
        A linear kernel of all samples.
    share : float
        The share of sum_i s_i^4 to keep, in (0, 1]. Fourth powers decrease fast, so most layers keep few components.

    Returns
    -------
    Gram
        The truncated layer in the dtype of the layer. The components are computed from the eigenvectors of X'X or XX',
        whichever is smaller: in float64, or, for large layers in float32, by `leading_components`.

    Raises
    ------
    InvalidInputError
        If the kernel is not linear, is divided into minibatches, or ``share`` is outside (0, 1].

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> gram = CentredGram()(x)
    >>> truncate(gram).p, truncate(gram, share=0.9).p, truncate(gram, share=1.0).p
    (12, 1, 50)
    """
    if gram.kernel != "linear" or gram.block != gram.n:
        raise InvalidInputError("principal components are those of a linear kernel of all samples")
    if not 0 < share <= 1:
        raise InvalidInputError(f"share has to be above 0 and at most 1, got {share}")
    place = gram.squared_norms.device
    x = Centred(gram.features, torch.zeros(gram.p, dtype=torch.float64, device=place), 1.0, torch.float64)
    narrow = gram.p <= gram.n
    if gram.dtype == torch.float32 and share <= _LARGEST_SHARE and min(gram.n, gram.p) >= tuning.current().squared_from:
        values, vectors = leading_components(_products(gram.features, narrow=narrow), share)
    else:
        values, vectors = _leading(covariance(x) if narrow else inner_products(x), share)
    if narrow:
        vectors = vectors.to(gram.device, gram.dtype)
        features = torch.cat([gram.features[i] @ vectors for i in cut(gram.n, _RUN)])
    else:
        features = (vectors * values.sqrt()).to(gram.device, gram.dtype)
    squared_norms = features.to(place, torch.float64).square().sum(1)
    return dataclasses.replace(gram, features=features, squared_norms=squared_norms).grouped(gram.groups)


def _products(x: Rows, *, narrow: bool, block: int = 512) -> Float32[Tensor, "m m"]:
    """Return X'X, or XX', of centred features in their dtype."""
    n, p = x.shape
    m = p if narrow else n
    C = torch.zeros(m, m, dtype=x.dtype, device=x.device)
    panels = list(cut(n, _RUN if narrow else block))
    for k, i in enumerate(panels):
        rows = x[i]
        if narrow:
            for j in cut(p, block):
                C[j, j.start :].addmm_(rows[:, j].T, rows[:, j.start :])
        else:
            for other in panels[k:]:
                torch.mm(rows, x[other].T, out=C[i, other])
    for j in cut(m, block):
        C[j.stop :, j] = C[j, j.stop :].T
    return C


def leading_components(C: Float32[Tensor, "m m"], share: float) -> tuple[Float64[Tensor, " r"], Float64[Tensor, "m r"]]:
    """Return the fewest leading eigenvalues that have this share of ||C||^2, with vectors; C is positive semidefinite.

    They are those of a subspace that is multiplied by C until its energy no longer increases. With orthonormal columns
    V, ||V'CV||^2 is never more than ||C||^2, whatever V is: what is kept is certain, as ||C||^2 is known. If more
    components are needed than such a space can hold, all are computed.

    References
    ----------
    Halko, Martinsson, Tropp. Finding structure with randomness. SIAM Review 2011.
    """
    width = max(64, len(C) // 8)
    needed = share * float(torch.linalg.vector_norm(C, dtype=torch.float64)) ** 2
    V = torch.randn(len(C), width, generator=torch.Generator().manual_seed(0)).to(C)
    before = 0.0
    for _ in range(_ROUNDS):
        V = torch.linalg.qr(C @ V).Q
        values, vectors = torch.linalg.eigh((V.T @ (C @ V)).double())
        energy = values.flip(0).square().cumsum(0)
        r = int((energy < needed).sum()) + 1
        if r > width // 2:
            break
        if float(energy[r - 1]) - before < _CONVERGED * needed:
            return values.flip(0)[:r], V.double() @ vectors.flip(1)[:, :r]
        before = float(energy[r - 1])
    return _leading(C.double(), share)


def _leading(C: Float64[Tensor, "m m"], share: float) -> tuple[Float64[Tensor, " r"], Float64[Tensor, "m r"]]:
    """Return the same from all eigenvalues and vectors of C; its upper triangle is read."""
    values, vectors = torch.linalg.eigh(C, UPLO="U")
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    r = _components_to_keep(values, share)
    return values[:r], vectors[:, :r]


@dataclass(frozen=True, eq=False)
class LowRankFeatures:
    """Features Q C that are linear combinations of a few directions Q, which several layers share (`Rows`)."""

    directions: Float64[Tensor, "n k"]
    """Q, with orthonormal columns; the same object for all layers that share it."""
    loadings: Float64[Tensor, "k r"]
    """C."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, r) of the features."""
        return len(self.directions), self.loadings.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the directions."""
        return self.directions.dtype

    @property
    def device(self) -> torch.device:
        """Device of the directions."""
        return self.directions.device

    def __getitem__(self, rows: slice | Tensor) -> Float64[Tensor, "rows r"]:
        return self.directions[rows] @ self.loadings


def truncate_jointly(grams: Sequence[Gram], share: float = 0.9999, *, memory: float = math.inf) -> list[Gram]:
    """Truncate several layers to leading components that are linear combinations of a few shared directions.

    Layers of one network, or of similar networks, have similar leading components, which span far fewer directions than
    there are components. Each layer is first truncated by `truncate`. Its components are then projected onto the k
    leading directions of all layers together, each layer scaled to ||K|| = 1. k is the smallest number with which every
    layer keeps ``share`` of the ||K||^2 that `truncate` has kept, and so at least ``share`` squared in all.

    Parameters
    ----------
    grams : sequence of Gram
        Linear kernels of all samples, over the same samples.
    share : float
        As in `truncate`.
    memory : float
        Bytes that may be taken.

    Returns
    -------
    list of Gram
        The truncated layers in float64, with features Q C (`LowRankFeatures`) that share one Q. `repsim.permuted`
        permutes only Q.

    Raises
    ------
    TooLittleMemoryError
        If this takes more memory than allowed, as it does for many components.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> a, b = truncate_jointly([CentredGram()(x), CentredGram()(x[:, :8])])
    >>> a.features.directions is b.features.directions, a.features.directions.shape[1] < a.p + b.p
    (True, True)
    """
    _check(max(map(_bytes_to_truncate, grams)), memory)
    truncated: list[Gram] = []
    whole = len(grams) + 2  # of the unit of work: every layer, the directions, and what the layers are in these
    for run in cut(len(grams), _AT_ONCE):
        with part_of_unit(run.start, run.stop, whole):
            truncated += map_layers(partial(truncate, share=share), grams[run], _IN_THREADS)
        _check(bytes_to_share(grams[0].n, [gram.p for gram in truncated], truncated[0].dtype.itemsize), memory)
    place = float64_device(truncated[0].device)

    def scaled(gram: Gram) -> Float64[Tensor, "n r"]:
        x = gram.features[:].to(place, torch.float64)
        unit: Tensor = x / torch.linalg.matrix_norm(x.T @ x).sqrt()
        return unit

    def keeps_share(C: Float64[Tensor, "k r"], k: int) -> bool:
        return float(torch.linalg.matrix_norm(C[:k].T @ C[:k])) ** 2 >= share

    Q = _directions([gram.p for gram in truncated], map(scaled, truncated))
    report_share(len(grams) + 1, whole)
    k = 1
    for gram in truncated:  # bisection, because the share increases with k, from what the layers before need
        C = Q.T @ scaled(gram)
        k += bisect_left(range(k, Q.shape[1]), x=True, key=partial(keeps_share, C))
    directions = Q[:, :k].contiguous()
    layers = []
    for number, gram in enumerate(truncated, 1):
        low_rank = LowRankFeatures(directions, directions.T @ scaled(gram))
        norms = torch.cat([low_rank[i].square().sum(1) for i in cut(gram.n, _RUN)]).to(gram.squared_norms)
        layers.append(dataclasses.replace(gram, features=low_rank, squared_norms=norms).grouped(gram.groups))
        report_share(len(grams) + 1 + number / len(grams), whole)
    return layers


def _directions(widths: Sequence[int], layers: Iterable[Float64[Tensor, "n r"]]) -> Float64[Tensor, "n k"]:
    """Return the left singular vectors of all layers side by side, those of the largest singular values first."""
    x: Tensor = next(layers := iter(layers))
    n, total = len(x), sum(widths)
    if total <= n:
        X = x.new_empty(n, total)
        for place, features in zip(X.split(list(widths), 1), chain([x], layers), strict=True):
            place.copy_(features)
        K = X.T @ X
    else:  # one layer at a time, because all of them would take more memory than K
        K = x @ x.T
        for x in layers:
            K.addmm_(x, x.T)
    values, vectors = torch.linalg.eigh(K)
    rank = int((values > 1e-12 * values[-1]).sum())
    leading: Tensor = vectors.flip(1)[:, :rank]
    return (X @ leading) / values.flip(0)[:rank].sqrt() if total <= n else leading


def _check(needed: int, allowed: float) -> None:
    if needed > allowed:
        raise TooLittleMemoryError(
            f"cutting layers to their leading components takes {format_size(needed)} of memory at least; allowed are "
            f"{format_size(int(allowed))}",
            metrics=("cka",),
            needed=needed,
            allowed=int(allowed),
            remedy=Remedy("give ", Argument("memory"), " more, or use fewer layers"),
        )


def _bytes_to_truncate(gram: Gram) -> int:
    """Return the bytes that `truncate` takes for its matrices, in every thread that does so at once."""
    m = min(gram.n, gram.p)
    in_float32 = gram.dtype == torch.float32 and m >= tuning.current().squared_from
    return (6 if in_float32 else _DECOMPOSED) * m**2 * (torch.get_num_threads() if m <= _IN_THREADS else 1)


def bytes_to_share(n: int, components: Sequence[int], itemsize: int) -> int:
    """Return the bytes that layers truncated to so many components take, and finding their shared directions."""
    total = sum(components)
    k = min(n, total)
    together = 16 * n * k if total <= n else 0  # all layers side by side, and as many directions
    return n * total * itemsize + _DECOMPOSED * k**2 + together + 16 * n * max(components) + 8 * k * total


def _components_to_keep(values: Float64[Tensor, " m"], share: float) -> int:
    """Return the smallest r with sum_{i<=r} s_i^4 >= share * sum_i s_i^4, for s_i^2 in decreasing order."""
    cumulative = values.square().cumsum(0)
    if share == 1:  # all nonzero components, even if the last ones do not change the rounded sum
        return max(1, int((values > 0).sum()))
    return int((cumulative < share * cumulative[-1]).sum()) + 1
