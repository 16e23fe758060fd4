"""Inner products of kernels within classes, with each group of samples left out, exactly, for the jackknife."""

import functools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.engine.jackknife import LeaveOneOut
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.metrics.recipes.within_classes import WithinClasses, degrees_of_freedom
from repsim.runtime import tuning


def mean_products(layers: Sequence[WithinClasses]) -> Float64[np.ndarray, "L L"]:
    """Return <A, B> of all pairs of kernels within the same classes, for each degree of freedom.

    NaN if the classes leave none.
    """
    sweep = GramSweep(layers, layers, [CKA()], panel=tuning.current().panel, tile=tile_side(len(layers), 4))
    sums = functools.reduce(np.add, sweep.parts(sweep.order))
    assert layers[0].groups is not None, "these are the classes"
    return _per_degree(sums[: len(layers) ** 2].reshape(len(layers), -1), layers[0].groups.sizes)


class LeaveOneGroupOutWithinClasses(LeaveOneOut):
    """Inner products <A, B> of kernels within classes, for each degree of freedom, with each group left out.

    Without a group u of k samples of a class of m samples, the mean of the class changes, and the others move. As the
    deviations of a class sum to 0, the result is exactly

        <A, B>_(-u) = <A, B> - 2 sum_(i in u) D_i - 2 / (m - k) sum_j a_j b_j,

    with D_i = sum_j A_ij B_ij, a_j = sum_(i in u) A_ij and b_j likewise. Nothing moves if no sample of the class is
    left. Single samples are left out by `repsim.engine.sample_sums`.

    Parameters
    ----------
    layers : sequence of WithinClasses
        Kernels within the same classes.
    unit_of : array of shape (n,)
        Group of each sample, from 0, whose samples are all of one class.
    """

    def __init__(self, layers: Sequence[WithinClasses], unit_of: Int64[np.ndarray, " n"]) -> None:
        assert layers[0].groups is not None, "these are the classes"
        self._classes: Groups = layers[0].groups
        self._unit_of = torch.from_numpy(unit_of)
        count = int(unit_of.max()) + 1
        numbers = self._classes.numbers
        self._class_of = torch.zeros(count, dtype=torch.int64).index_copy_(0, self._unit_of, numbers)
        self._taken = torch.bincount(self._unit_of)
        self._rest = self._classes.sizes[self._class_of] - self._taken
        super().__init__(layers, layers, CKA(), room=sys.maxsize)
        self._total: Float64[np.ndarray, "L L"] | None = None
        self._computed = False

    @override
    def _check_groups(self) -> None:
        """Accept the classes, in whose place the engine has groups."""

    def products(self) -> Float64[np.ndarray, "L L"]:
        """Return the inner products of all samples, for each degree of freedom."""
        if self._total is None:
            self._total = self._totals()[0][:, self._columns]
        return _per_degree(self._total, self._classes.sizes)

    def without(self, run: slice, step: Callable[[], None]) -> Float64[np.ndarray, "run L L"]:
        """Return the inner products without each group of the run, for each degree of freedom that is left."""
        self.products()
        assert self._total is not None, "set by `products`"
        if not self._computed:
            self._sum(slice(0, len(self._taken)), self.order, step)
            self._computed = True
        lost = self._products[run].cpu().numpy()[..., self._columns] + self._of_sums(run)
        sizes = self._classes.sizes.repeat(run.stop - run.start, 1)
        sizes[torch.arange(len(sizes)), self._class_of[run]] = self._rest[run]
        return _per_degree(self._total - lost, sizes)

    @override
    def _sum(self, run: slice, units: Sequence[int], step: Callable[[], None]) -> None:
        """Compute what is lost without each group of a run."""
        self._run = slice(0, self.draws[0].n)
        count, place = run.stop - run.start, float64_device(self.device)
        self._products = torch.zeros(count, self.height, self.width, dtype=torch.float64, device=place)
        for _ in self.parts(units):
            step()

    @override
    def _add(self, stack: Tensor, i: slice) -> None:
        place, units = self._products.device, self._unit_of[i]
        by_row = stack[0].transpose(0, 1)
        pairs = (by_row[:, : self.height] @ by_row[:, self.first :].mT).to(place).double()
        self._products.index_add_(0, units.to(place), 2 * pairs)

    def _of_sums(self, run: slice) -> Float64[np.ndarray, "run L L"]:
        """Return 2 / (m - k) sum_j a_j b_j of all pairs of layers, for a run of groups."""
        count, place = run.stop - run.start, float64_device(self.device)
        inside = (self._unit_of >= run.start) & (self._unit_of < run.stop)
        members = inside.nonzero()[:, 0]
        sums = []
        for draw in self.draws:
            assert isinstance(draw, WithinClasses), "the constructor takes no others"
            total = torch.zeros(count, draw.p, dtype=draw.dtype, device=self.device)
            place_of = (self._unit_of[members] - run.start).to(self.device)
            sums.append(total.index_add_(0, place_of, draw.features[members]))
        products = torch.zeros(count, len(sums), len(sums), dtype=torch.float64, device=place)
        for j in cut(self.draws[0].n, self.tile):
            rows = torch.stack([total @ draw.rows(j).T for total, draw in zip(sums, self.draws, strict=True)], 1)
            alike = self._class_of[run, None] == self._classes.numbers[j]
            rows.masked_fill_(alike[:, None].to(self.device), 0)
            products += (rows @ rows.mT).to(place).double()
        rest = self._rest[run].double()
        products *= torch.where(rest > 0, 2 / rest, 0).to(place)[:, None, None]
        return products[:, : self.height].cpu().numpy()[..., [self.first + k for k in self._columns]]


def _per_degree(
    products: Float64[np.ndarray, "*batch L L"], sizes: Int64[Tensor, "*batch classes"]
) -> Float64[np.ndarray, "*batch L L"]:
    degrees = degrees_of_freedom(sizes).numpy()
    return np.asarray(products / np.where(degrees > 0, degrees, np.nan)[..., None, None])
