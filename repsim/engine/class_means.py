"""Centre features by class, and compute what kernels within classes lose on subsets of the samples.

A kernel within classes is made of deviations from the means of classes over all samples. On a subset the means are
others. Deviations are small beside the features of tight classes, but nothing large is subtracted from their products:
so these have all digits that the features leave them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from repsim.metrics.recipes.groups import Groups

Runs = Sequence[tuple[slice, Int64[np.ndarray, " subsets"]]]
"""Runs of samples of one cell, and the subsets that have them."""


class ClassMeans:
    """Means of the classes of several layers over all samples, and of deviations from them over subsets.

    With the mean m_c of class c over all samples, deviations are y_i = (x_i - m_c(i)) / s, and the kernel within
    classes is W_ij = y_i'y_j for samples of different classes, otherwise 0. The unit s is a power of two for which the
    mean squared norm of deviations is between 1/4 and 1. x_i'x_j = s^2 y_i'y_j + H_i,c(j) + H_j,c(i), with
    H_ic = (s y_i + m_c(i) / 2)'m_c.

    On a subset S with n_c samples of class c, let G_ic be the mean of W_ij over the samples j of class c, and M_cc'
    that of G_ic' over those of class c; both are 0 for c = c(i), and c = c'. The kernel within the classes of the
    subset is W_ij - G_i,c(j) - G_j,c(i) + M_c(i)c(j), and the inner product of two such kernels is

        sum_(i, j in S) W_ij V_ij - 2 sum_(i in S) sum_c n_c G_ic F_ic + sum_cc' n_c n_c' M_cc' N_cc'.

    Parameters
    ----------
    classes : Groups
        Classes of the samples.
    cells : tensor of shape (n,)
        Cell of each sample, from 0.
    subsets : array of shape (subsets, cells)
        Which cells each subset has; the first has all.
    dtype, device
        Of features, and of means and sums of deviations.
    place : torch.device
        Device of what is computed in float64.
    """

    def __init__(
        self,
        classes: Groups,
        cells: Int64[Tensor, " n"],
        subsets: Bool[np.ndarray, "subsets cells"],
        *,
        dtype: torch.dtype,
        device: torch.device,
        place: torch.device,
    ) -> None:
        self._dtype, self._device, self._place = dtype, device, place
        self._subsets = torch.from_numpy(subsets).to(self._place, torch.float64)
        counts = torch.zeros(subsets.shape[1], classes.count, dtype=torch.float64, device=self._place)
        one = torch.ones(len(cells), dtype=torch.float64, device=self._place)
        counts.index_put_((cells.to(place), classes.numbers.to(place)), one, accumulate=True)
        self.sizes = self._subsets @ counts
        """Number of samples of each class in every subset, (subsets, classes)."""
        self._counts, self._n = counts, len(cells)
        self._means: list[Float[Tensor, "classes p"]] = []
        self._sums: list[Float[Tensor, "cells classes p"]] = []
        """Sums of deviations."""
        self.units: list[float] = []
        """s of each layer."""

    def add(self, sums: Float64[Tensor, "cells classes p"], squares: float) -> None:
        """Add the next layer: sums of its features over every class in every cell, and of their squared norms."""
        sizes = self._counts.sum(0)[:, None]
        mean = sums.sum(0) / sizes.clamp(min=1)
        self.units.append(_unit(squares - float((sizes * mean.square()).sum()) + 1e-12 * squares, self._n))
        self._means.append(mean.to(self._device, self._dtype))  # deviations are those from the means that are rounded
        exact = self._means[-1].to(sums)
        deviations = torch.addcmul(sums, self._counts[..., None], exact, value=-1).div_(self.units[-1])
        self._sums.append(deviations.to(self._device, self._dtype))

    def centre(self, k: int, x: Float[Tensor, "rows p"], numbers: Int64[Tensor, " rows"]) -> Float[Tensor, "rows p"]:
        """Replace features of a layer by deviations, for samples of these classes; return s y_i + m_c(i) / 2."""
        means = self._means[k].index_select(0, numbers)
        x.sub_(means)
        half = means.mul_(0.5).add_(x)
        x.mul_(1 / self.units[k])
        return half

    def by_class(self, k: int, half: Float[Tensor, "rows p"], out: Float[Tensor, "rows classes"]) -> None:
        """Compute H of some samples of a layer, from what `centre` has returned."""
        torch.mm(half, self._means[k].T, out=out)

    def largest_norms(
        self, norms: Float64[Tensor, "layers n"], numbers: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "layers n"]:
        """Return bounds of the norms of deviations from the norms of features, of samples of these classes."""
        of_means = torch.stack([torch.linalg.vector_norm(means.to(norms), dim=1) for means in self._means])
        bound: Tensor = (norms + of_means[:, numbers]) / torch.tensor(self.units).to(norms)[:, None]
        return bound

    def weighted(self, run: slice, k: int) -> Float64[Tensor, "subsets run_and_classes"]:
        """Return M of a run of classes with all classes, times the roots of the sizes of both, for one layer."""
        means = torch.tensordot(self._subsets, self._sums[k].to(self._subsets), 1) / self.sizes.clamp(min=1)[..., None]
        M = means[:, run] @ means.mT
        M.diagonal(run.start, 1, 2).zero_()
        weighted: Tensor = M.mul_((self.sizes[:, run, None] * self.sizes[:, None]).sqrt()).flatten(1)
        return weighted

    def of_samples(
        self,
        k: int,
        y: Float[Tensor, "rows p"],
        numbers: Int64[Tensor, " rows"],
        runs: Runs,
        out: Sequence[Float[Tensor, "layers run subsets classes"]],
    ) -> None:
        """Compute G of samples of these classes in the subsets that have them, times the root of the sizes of classes.

        ``y`` are deviations of a layer.
        """
        by_cell = (y @ self._sums[k].flatten(0, 1).T).unflatten(1, self._sums[k].shape[:2])
        for (run, subsets), of_layers in zip(runs, out, strict=True):
            chosen = torch.from_numpy(subsets).to(self._place)
            G, sizes = of_layers[k], self.sizes[chosen]
            torch.matmul(self._subsets[chosen].to(y), by_cell[run], out=G)
            G.mul_(torch.where(sizes > 0, sizes.rsqrt(), 0).to(G))
            G.scatter_(2, numbers[run, None, None].expand(-1, len(subsets), 1), 0)

    def release(self) -> None:
        """Free the sums of deviations."""
        self._sums.clear()


def _unit(squares: float, n: int) -> float:
    """Return the power of two in whose units n samples with this sum of squared norms have one of 1 at most."""
    return 1.0 if squares <= 0 else 2.0 ** math.ceil(math.log2(squares / n) / 2)
