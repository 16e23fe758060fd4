"""Centred kernel alignment: the cosine between two centred Gram matrices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.labels import Form
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Algorithm, Chance, GramMetric, Group, Invariance, MomentMetric
from repsim.metrics.recipes.gram import CentredGram, Gram, KernelRecipe, Kernels
from repsim.metrics.recipes.stored_kernels import BlockGrams, StoredGrams, TwoSketches


@dataclass(frozen=True)
class CKA(GramMetric[Kernels], MomentMetric[Kernels]):
    """Centred kernel alignment between X (n x p) and Y (n x q), with Gram matrices K and L.

    With the debiased estimator (the default) CKA = <A, B> / (||A|| ||B||), where A and B are K and L after U-centring:
    A_ij = K_ij - m_i - m_j off the diagonal and 0 on it. It equals HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) of
    Song et al. (2012). Its mean over unrelated representations is 0 for any n, p and q, so it can be negative; it is
    never clipped. The biased estimator (Kornblith et al. 2019) centres with H K H instead, and gives
    sqrt(pq / ((n + p)(n + q))) for independent Gaussian features, not 0.

    The minibatch estimator (Nguyen et al. 2021) averages HSIC_1 over disjoint batches, sum_b HSIC_1(K_b, L_b) /
    sqrt(sum_b HSIC_1(K_b, K_b) sum_b HSIC_1(L_b, L_b)). It estimates the debiased value from a fraction of the Gram
    matrix, and each HSIC_1 is unbiased. The batches are a random partition, the same for every layer and model, so the
    value depends on the order of the samples; the last n mod ``batch`` samples of the partition are left out.

    With the linear kernel it also compares compressed readouts. From Gram matrices of blocks of samples it is the
    minibatch CKA of Nguyen et al. (2021), sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b)). From
    two sketches of each layer it is (<A^1, B^2> + <A^2, B^1>) / 2 / sqrt(<A^1, A^2> <B^1, B^2>), which may exceed 1; a
    single sketch would give a biased estimate.

    Parameters
    ----------
    kernel : {"linear", "rbf"}
        ``linear``: K = X X'. ``rbf``: K_ij = exp(-||x_i - x_j||^2 / (2 s^2)).
    estimator : {"debiased", "biased", "minibatch"}
        ``debiased``, ``biased`` or ``minibatch``.
    bandwidth : float, optional
        RBF only, default 0.5: s^2 = bandwidth^2 x the median of all n^2 squared distances of that representation.
    sigma : float, optional
        RBF only: s itself, instead of ``bandwidth``.
    batch : int, optional
        Minibatch only: samples of one batch, as in ``cka:estimator=minibatch,batch=256``.

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
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "Are the same pairs of stimuli similar in two layers, large differences counting most?"
    needs: ClassVar[str] = (
        "20 debiased (chance is 0 at any n, with sd sqrt(2 / (n (n - 3)))); biased 4 times the wider layer, "
        "RBF 40 times"
    )
    others: ClassVar[Mapping[str, str]] = {
        "torch-cka 0.21": "takes batches in the order of the loader, which may differ between networks; "
        "estimator=minibatch is the same formula, over one random partition for all layers",
        "scripts that average over batches": "average a ratio, or the biased HSIC, over batches; the value then "
        "depends on the batch size (here estimator=minibatch does not)",
        "ReSi benchmark, and most scripts": "the biased estimator, which is not 0 for unrelated layers if n < p",
        "several RBF scripts": "use the bandwidth of one layer, or a fixed one, for both; here it is a fraction of the "
        "median distance of each layer on its own, as in Kornblith's published code",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    normalised: ClassVar[bool] = True

    kernel: Literal["linear", "rbf"] = "linear"
    estimator: Literal["debiased", "biased", "minibatch"] = "debiased"
    bandwidth: float | None = None
    sigma: float | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("bandwidth", self.bandwidth), ("sigma", self.sigma)):
            if value is not None and self.kernel == "linear":
                raise InvalidInputError(f"{name} belongs to the RBF kernel; write cka:kernel=rbf,{name}={value}")
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InvalidInputError(f"{name} must be a positive number, got {value}")
        if (self.estimator == "minibatch") != (self.batch is not None):
            raise InvalidInputError(
                "batch and the minibatch estimator belong together: write cka:estimator=minibatch,batch=256"
            )
        if self.batch is not None and self.batch < 4:
            raise InvalidInputError(f"minibatches of {self.batch} samples are too small: HSIC_1 needs at least 4")
        if self.bandwidth is not None and self.sigma is not None:
            raise InvalidInputError(
                "give bandwidth (a fraction of the median distance) or sigma (the width itself), not both"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [-1, 1] for debiased and minibatch CKA, [0, 1] for biased CKA."""
        return (-1.0, 1.0) if self.unbiased else (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the value unchanged; not scaling if ``sigma`` is given."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "translation"})
        return rigid if self.sigma is not None else rigid | {"isotropic scaling"}

    @property
    def min_samples(self) -> int:
        """4, or the samples of one minibatch."""
        return self.batch or 4

    @property
    def recipe(self) -> CentredGram:
        """Recipe that all estimators with the same kernel and batch share."""
        if self.kernel == "linear":
            return CentredGram(batch=self.batch)
        if self.sigma is not None:
            return CentredGram("rbf", sigma=self.sigma, batch=self.batch)
        return CentredGram("rbf", bandwidth=0.5 if self.bandwidth is None else self.bandwidth, batch=self.batch)

    def recipe_for(self, form: Form) -> KernelRecipe[Kernels]:
        """Return the recipe for a form; the linear kernel also supports Gram matrices of blocks, and sketches."""
        if form == "features" or self.kernel != "linear":
            return super().recipe_for(form)  # type: ignore[return-value]
        return StoredGrams() if form == "grams" else TwoSketches()

    @property
    def unbiased(self) -> bool:
        """Whether Gram matrices are U-centred: yes for all estimators except the biased one."""
        return self.estimator != "biased"

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Gram space; also feature space for the linear kernel over all samples, and the cheaper of both is chosen."""
        return ("gram", "moments") if self.kernel == "linear" and self.estimator != "minibatch" else ("gram",)

    def moment(self, cross: Cross[Any]) -> float:
        """Return <A, B> in feature space, without an n x n matrix: ||X'Y||_F^2, minus the terms of debiasing.

        With g_i = ||x_i||^2 and h_i = ||y_i||^2 of the centred rows it is (Song et al. 2012, eq. 5, for XX' and YY')
        ||X'Y||^2 - n/(n-2) sum_i g_i h_i + (sum_i g_i)(sum_i h_i)/((n-1)(n-2)).
        """
        a, b, total = cross.a, cross.b, float(torch.linalg.vector_norm(cross.product)) ** 2
        if not self.unbiased:
            return total
        if a.groups is not None or b.groups is not None:
            raise InvalidInputError("CKA of samples in groups is computed from Gram matrices, not in feature space")
        n, g, h = a.n, a.squared_norms, b.squared_norms
        value = total - n / (n - 2) * float(g @ h) + float(g.sum()) * float(h.sum()) / ((n - 1) * (n - 2))
        noise = 100 * a.eps
        if (
            a.uneven and a.eps > torch.finfo(torch.float64).eps
        ):  # products are made in float64, and only the features are rounded
            noise = a.eps / 10
        return math.nan if a is b and value <= noise * total else value

    def samples_needed(self, p: int, q: int) -> int | None:
        """Return 20 if debiased; 4 max(p, q) for the biased linear kernel; 40 max(p, q) for the biased RBF kernel.

        Debiased: two standard deviations of chance are 0.2. Biased, linear: from the chance level sqrt(pq / ((n + p)(n
        + q))). Biased, RBF: from simulations; with Gaussian features, 1 to 100 wide, an RBF kernel of the default width
        needs 20 to 40 times as many samples as features.
        """
        if self.unbiased:
            return 5 * self.batch if self.batch else 20
        if self.kernel == "linear":
            return 4 * max(p, q)
        return 40 * max(p, q) if self.sigma is None and (self.bandwidth or 0.5) >= 0.5 else None

    def scarcity(self, n: int, p: int, q: int) -> str | None:
        """Return a warning if samples are too few, or if the number that a narrow RBF kernel needs is unknown."""
        if self.samples_needed(p, q) is None:
            return (
                "it is not known how many samples the biased estimator needs with an RBF kernel of this width: "
                "unrelated layers may score near 1; use estimator=debiased, or compare with permuted samples"
            )
        return super().scarcity(n, p, q)

    def chance(self, a: Kernels, b: Kernels) -> Chance | None:
        """Return the chance level: 0, variance 2 / (n (n - 3)), debiased; tr K tr L / ((n - 1) ||K|| ||L||), biased.

        K and L are the centred Gram matrices.
        """
        if len(a.draws) > 1 or not isinstance(a, Gram) or not isinstance(b, Gram) or a.groups is not None:
            return None
        if self.unbiased:
            return Chance(0.0, math.sqrt(2 / (a.n // a.block * a.block * (a.block - 3))))
        if a.concentration is None or b.concentration is None:
            return None
        return Chance(a.concentration * b.concentration / (a.n - 1))

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute <A, B> / (||A|| ||B||) with a gradient, with sums over the minibatches if there are any."""
        A, B = (self.recipe.with_gradient(side, unbiased=self.unbiased) for side in (x, y))
        return (A * B).sum() / (A.square().sum() * B.square().sum()).sqrt()

    @override
    def reason(self, a: Kernels, b: Kernels) -> str:
        """Return the reason why ||A|| of a layer is zero up to rounding errors."""
        if len(a.draws) > 1:
            return (
                "the two sketches of a layer share nothing after centring (<K^1, K^2> is not above 0): "
                "extract it again with more columns, sketch:M"
            )
        return "a Gram matrix is zero after centring: the layer differs from a constant in too few samples"

    def caution(self, a: Kernels, b: Kernels) -> str | None:
        """Warn of the bias of biased CKA, with more features than samples or in minibatches."""
        if self.unbiased:
            return None
        if isinstance(a, Gram) and isinstance(b, Gram):
            if max(a.p, b.p) <= a.n:
                return None
            why = (
                f"n = {a.n} samples but {max(a.p, b.p)} features: the biased estimator is inflated; use more samples or"
            )
        elif isinstance(a, BlockGrams):
            why = f"the biased estimator is inflated by minibatches, {a.grams.shape[2]} samples small; use"
        else:
            why = "the biased estimator is inflated where a sketched layer has more features than samples; use"
        return f"{why} estimator=debiased"

    def remark(self, n: int) -> str | None:
        """Report the samples that are in no minibatch."""
        left = n % self.batch if self.batch else 0
        return f"{left} of {n} samples are in no minibatch of {self.batch}, and left out" if left else None
