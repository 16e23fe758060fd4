"""Centred kernel alignment: the cosine between two centred Gram matrices."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float64

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.labels import Form
from repsim.metrics.base import Factor, Invariance, Metric, Recipe
from repsim.metrics.compressed import BlockGrams, StoredGrams, TwoSketches
from repsim.metrics.gram import CentredGram, Gram, Kernel, KernelMatrix

_TILE_BYTES = 32 * 2**20
"""What the stacked tiles of all layers may take together, so that they stay in the cache."""


class Kernels(Factor, Protocol):
    """One layer's kernel matrix: exact, or in several independent estimates."""

    @property
    def draws(self) -> Sequence[KernelMatrix]:
        """The estimates."""


@dataclass(frozen=True)
class CKA(Metric[Kernels]):
    """Centred kernel alignment between X (n x p) and Y (n x q), with Gram matrices K and L.

    With the debiased estimator (the default) CKA = <A, B> / (||A|| ||B||), where A and B are K and L after U-centring:
    A_ij = K_ij - m_i - m_j off the diagonal and 0 on it. It equals HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) of
    Song et al. (2012), its mean over unrelated representations is 0 whatever n, p and q are, and it can therefore be
    negative: it is never clipped. The biased estimator (Kornblith et al. 2019) centres with H K H instead, and gives
    sqrt(pq / ((n + p)(n + q))) for independent Gaussian features, not 0.

    With the linear kernel it also compares what compressed readouts keep. From Gram matrices of blocks of samples it is
    the minibatch CKA of Nguyen et al. (2021), sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b));
    from two sketches of each layer, (<A^1, B^2> + <A^2, B^1>) / 2 / sqrt(<A^1, A^2> <B^1, B^2>), an estimate that one
    sketch would bias, and that may exceed 1.

    Parameters
    ----------
    kernel
        ``linear``: K = X X'. ``rbf``: K_ij = exp(-||x_i - x_j||^2 / (2 s^2)).
    estimator
        ``debiased`` or ``biased``.
    bandwidth
        RBF only, default 0.5: s^2 = bandwidth^2 x the median of all n^2 squared distances of that representation.
    sigma
        RBF only: s itself, instead of ``bandwidth``.

    Raises
    ------
    UndefinedValueError
        For a constant layer, and for one that differs from a constant in a single sample (debiased).

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton. Similarity of neural network representations revisited. ICML 2019.
    Song, Smola, Gretton, Bedo, Borgwardt. Feature selection via dependence maximization. JMLR 2012, eq. 5.
    Nguyen, Raghu, Kornblith. Do wide and deep networks learn the same things? ICLR 2021.
    Murphy, Zylberberg, Fyshe. Correcting biased centered kernel alignment measures. Re-Align, ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(CKA()(x, y), 9), round(CKA(estimator="biased")(x, y), 9)
    (0.023598699, 0.489342739)
    """

    name: ClassVar[str] = "cka"
    title: ClassVar[str] = "CKA"
    formula: ClassVar[str] = "<A, B> / (||A|| ||B||), A and B the centred Gram matrices"
    citation: ClassVar[str] = "Kornblith et al. 2019; debiased: Song et al. 2012, eq. 5"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    kernel: Kernel = "linear"
    estimator: Literal["debiased", "biased"] = "debiased"
    bandwidth: float | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("bandwidth", self.bandwidth), ("sigma", self.sigma)):
            if value is not None and self.kernel == "linear":
                raise InvalidInputError(f"{name} belongs to the RBF kernel; write cka:kernel=rbf,{name}={value}")
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InvalidInputError(f"{name} must be a positive number, got {value}")
        if self.bandwidth is not None and self.sigma is not None:
            raise InvalidInputError(
                "give bandwidth (a fraction of the median distance) or sigma (the width itself), not both"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """[-1, 1] debiased, [0, 1] biased."""
        return (-1.0, 1.0) if self.estimator == "debiased" else (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """A fixed ``sigma`` sees the scale; everything else does not."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "translation"})
        return rigid if self.sigma is not None else rigid | {"isotropic scaling"}

    @property
    def recipe(self) -> CentredGram:
        """Shared by both estimators."""
        if self.kernel == "linear":
            return CentredGram()
        if self.sigma is not None:
            return CentredGram("rbf", sigma=self.sigma)
        return CentredGram("rbf", bandwidth=0.5 if self.bandwidth is None else self.bandwidth)

    def recipe_for(self, form: Form) -> Recipe[Kernels]:
        """The linear kernel needs no features: Gram matrices of blocks and sketches will do."""
        if form == "features" or self.kernel != "linear":
            return super().recipe_for(form)
        return StoredGrams() if form == "grams" else TwoSketches()

    def pair(self, a: Kernels, b: Kernels) -> float:
        """Compare two prepared layers."""
        value = float(self.block([a], [b])[0, 0])
        if math.isnan(value) and len(a.draws) > 1:
            raise UndefinedValueError(
                "nothing that both sketches of a layer share is left after centring (<K^1, K^2> is not above 0): "
                "extract it again with more columns, sketch:M"
            )
        if math.isnan(value):
            raise UndefinedValueError(
                "nothing is left of a Gram matrix after centring: the layer differs from a constant in too few samples"
            )
        return value

    def block(self, rows: Sequence[Kernels], columns: Sequence[Kernels]) -> Float64[np.ndarray, "rows columns"]:
        """Compare all pairs in one sweep over tiles of the Gram matrices.

        Gram matrices are symmetric, so a tile off the diagonal stands for two. Of each tile, one row of every layer's
        piece is a matrix (layers, columns of the tile): all pairs are then one batched matrix product. Sums run over
        one such row in the features' dtype and from there on in float64, so that no digits are lost to long sums.

        Where a layer comes as two independent estimates K^1 and K^2, only products of one with the other are taken:
        (<A^1, B^2> + <A^2, B^1>) / 2, and <A^1, A^2> for the norm. None of them is biased by the estimates' own noise.
        """
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        layers = list(rows) if rows is columns else [*rows, *columns]
        draws = [draw for each in zip(*(layer.draws for layer in layers), strict=True) for draw in each]
        times, values = len(draws) // len(layers), draws[0].values
        dtype = functools.reduce(torch.promote_types, (draw.values.dtype for draw in draws))
        unbiased = self.estimator == "debiased"
        offsets = torch.stack([draw.offsets(unbiased=unbiased) for draw in draws])
        shift = offsets.flatten(1).to(values.device, dtype)
        # on the CPU for good: mps has no float64, and these are a few numbers
        products = torch.zeros(len(rows), len(columns), dtype=torch.float64)
        squares = torch.zeros(len(layers), dtype=torch.float64)
        size = max(64, min(512, math.isqrt(_TILE_BYTES // (dtype.itemsize * len(draws)))))
        memory = values.new_empty(len(draws) * min(size, offsets.shape[2]) ** 2, dtype=dtype)
        for i, j in draws[0].tiles(size):
            shape = (len(draws), i.stop - i.start, j.stop - j.start)
            tiles = memory[: math.prod(shape)].view(shape)
            for tile, draw in zip(tiles, draws, strict=True):
                tile.copy_(draw.kernel_tile(i, j))
            tiles -= shift[:, i, None]
            tiles -= shift[:, None, j]
            if unbiased and i == j:
                tiles.diagonal(dim1=1, dim2=2).zero_()
            by_draw = tiles.unflatten(0, (times, len(layers)))
            weight = 1 if i == j else 2
            for one, other in zip(by_draw.transpose(1, 2), by_draw.transpose(1, 2).flip(0), strict=True):
                pairs = one[:, : len(rows)] @ other[:, -len(columns) :].mT
                products += weight / times * pairs.cpu().sum(0, dtype=torch.float64)
            squares += weight * torch.linalg.vecdot(by_draw[0], by_draw[-1]).cpu().sum(1, dtype=torch.float64)
        eps = torch.tensor([draw.eps for draw in draws], dtype=torch.float64)
        noise = (self._removed(offsets.cpu()) * (100 * eps) ** 2).unflatten(0, (times, len(layers))).amax(0)
        squares[squares <= noise] = torch.nan
        norms = squares.sqrt()
        return (products / norms[: len(rows), None] / norms[None, -len(columns) :]).numpy()

    @staticmethod
    def _removed(offsets: Float64[torch.Tensor, "draws blocks b"]) -> Float64[torch.Tensor, " draws"]:
        """What centring took away, sum_ij (o_i + o_j)^2: an ||A||^2 that is nothing beside it is rounding errors."""
        return 2 * (offsets.shape[2] * offsets.square().sum(2) + offsets.sum(2).square()).sum(1)

    def caution(self, a: Kernels, b: Kernels) -> str | None:
        """Biased CKA of more features than samples is mostly bias; of minibatches, always more than of all samples."""
        if self.estimator == "debiased":
            return None
        if isinstance(a, Gram) and isinstance(b, Gram):
            n, p = a.features.shape
            q = b.features.shape[1]
            if max(p, q) <= n:
                return None
            why = f"n = {n} samples but {max(p, q)} features: the biased estimator is inflated; use more samples or"
        elif isinstance(a, BlockGrams):
            why = f"the biased estimator is inflated by minibatches, {a.grams.shape[2]} samples small; use"
        else:
            why = "the biased estimator is inflated where a sketched layer has more features than samples; use"
        return f"{why} estimator=debiased"
