"""Sum the Gram matrices of layers over single samples, over halves of the samples, and within classes, in one pass.

A study needs debiased CKA of all samples, without each sample, on random halves, and within classes. All of these are
sums over the same tiles, and making the tiles takes most of the time. So every tile is made once and used for all.

Sums are kept as whole numbers of a tiny unit. Whole numbers can be added in any order with the same result, so the sums
are equal to the bit however the tiles are shared among processes.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side, tiles
from repsim.metrics.algorithms.sweep import Sums
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut, float64_device, pieces
from repsim.metrics.recipes.within_classes import degrees_of_freedom
from repsim.runtime import tuning

_BITS = 61
"""Bits of the largest possible sum, so that no sum of whole numbers overflows."""
_ROWS = 128
"""Rows of a tile whose products are computed by one thread at a time."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of centred kernels of the rows with those of the columns, and of each layer with itself."""

    pairs: Float64[np.ndarray, "*batch rows columns"]
    own: Float64[np.ndarray, "*batch layers"]
    """||A||^2 of all layers, those of the rows first; NaN for a layer that consists of rounding errors."""


class SampleSums(GramSweep):
    """Sums over the tiles of U-centred Gram matrices, for pairs of rows and columns.

    Let A and B be the U-centred kernels of two layers, A_ij = x_i'x_j - o_i - o_j off the diagonal and A_ii = 0.

    **Single samples.** D_i = sum_j A_ij B_ij. Without sample i, <A, B> becomes <A, B> - 2 (n-2)/(n-3) D_i
    (`repsim.engine.jackknife`).

    **Subsets.** Samples are divided into cells, and a subset S consists of cells; half of the cells are a half of the
    samples. With a_i = sum_(j in S) A_ij and m samples in S, debiased HSIC of the subset is, up to a factor,

        sum_(i, j in S) A_ij B_ij + (sum_i a_i)(sum_i b_i) / ((m-1)(m-2)) - 2/(m-2) sum_i a_i b_i,

    because it is invariant to offsets of rows and columns. The first sum is one of sums over pairs of cells.

    **Within classes.** Kernels of features minus the mean of their class, in pairs of different classes
    (`repsim.metrics.recipes.within_classes`). With K_ij = A_ij and K_ii = x_i'x_i - 2 o_i, the mean G_ic of K_ij over
    the samples j of class c, and M_cc' that of G_ic' over those of class c, the centred kernel is

        W_ij = K_ij - H_i,c(j) - H_j,c(i), with H_ic = G_ic - M_c(i)c / 2.

    Sums over single samples are made of W. Those over subsets, on which the means are others, follow from

        sum_(i, j in S) W_ij V_ij = sum_(i, j in S) K_ij L_ij - 2 sum_ic n_c G_ic F_ic + sum_cc' n_c n_c' M_cc' N_cc',

    for two layers with kernels K and L, minus the sum over pairs of the same class.

    Parameters
    ----------
    rows, columns : sequence of Gram
        Linear kernels of all samples, without groups of samples.
    cells : array of shape (n,)
        Cell of each sample, from 0.
    subsets : array of shape (subsets, cells)
        Which cells each subset has. Without subsets there are none.
    classes : Groups, optional
        Classes of the samples.
    keep : bool
        Whether sums of single samples are kept.
    cubes : bool
        Whether sum_ij A_ij^3 of every layer is computed as well.
    panel, tile, held : int
        As in `GramSweep`; 0 for the settings of `tuning`.
    """

    def __init__(
        self,
        rows: Sequence[Gram],
        columns: Sequence[Gram],
        *,
        cells: Int64[np.ndarray, " n"],
        subsets: Bool[np.ndarray, "subsets cells"],
        classes: Groups | None = None,
        keep: bool = True,
        cubes: bool = False,
        panel: int = 0,
        tile: int = 0,
        held: int = 2,
    ) -> None:
        settings = tuning.current()
        count = len({id(layer) for layer in [*rows, *columns]})
        panel, tile = panel or settings.panel, tile or tile_side(count * (1 if classes is None else 2), 4)
        super().__init__(rows, columns, [CKA()], panel=panel, tile=min(tile, panel), held=held)
        self._narrow(columns)
        if self.groups is not None or any(layer.kernel != "linear" or layer.size for layer in self.layers):
            raise InvalidInputError("sums of single samples are those of linear kernels of independent samples")
        self._n, self._place = self.draws[0].n, float64_device(self.device)
        self._classes, self._subsets = classes, np.asarray(subsets, bool)
        self._cells = torch.from_numpy(np.asarray(cells, np.int64))
        self._order = torch.cat([i.start + self._cells[i].argsort(stable=True) for i in self._panels_of])
        """Samples in the order in which they are read: within each panel, cell after cell."""
        self._numbers = None if classes is None else classes.numbers[self._order]
        self.square = self.first == 0 and self.height == len(self.layers)
        """Whether the rows are the columns."""
        bits = 2 * math.ceil(math.log2(self._n))
        self._unit, self._cube_unit = 2.0 ** (bits - _BITS), 2.0 ** (bits * 3 / 2 - _BITS)
        self._keep, self._cubes = keep, cubes
        self._widest_first = sorted(range(len(self.layers)), key=lambda k: -self.draws[k].p)  # threads end together
        self._upper = torch.triu_indices(self.height, self.width, device=self._place) if self.square else None
        """Pairs whose sums of single samples are kept if the rows are the columns: half of all, by symmetry."""
        self._sums = self._empty_sums()
        self._offsets64 = torch.stack(self._offsets(self.measures[0])).to(self._place)
        self._shifts = self._offsets64[:, self._order.to(self._place)].to(self.device, self.dtype)
        self._with_all = np.concatenate([np.ones((1, self._subsets.shape[1]), bool), self._subsets])
        """All samples, and then the subsets, as cells."""
        self._members = torch.from_numpy(self._with_all[:, np.asarray(cells, np.int64)]).to(self._place)
        """Whether each sample is in all samples, and in each subset."""
        self._cell_sums: list[Float64[Tensor, "cells classes p"]] = []
        self._means: list[Float[Tensor, "subsets classes p"]] = []
        self._of_classes: list[Float[Tensor, "n classes"]] = []
        """H of each layer, in the order in which samples are read."""
        self._own_class = torch.empty(0)
        """H of each sample's own class, (layers, subsets, n), centred within the classes of each subset."""
        self._mean_sums: list[tuple[Float64[np.ndarray, "rows columns"], Float64[np.ndarray, " layers"]]] = []

    def _narrow(self, columns: Sequence[Gram]) -> None:
        """Leave out rows that are not among the columns: the layers of both are the last rows and the first columns."""
        among = {id(layer) for layer in columns}
        self.first = next((k for k, layer in enumerate(self.layers[: self.height]) if id(layer) in among), self.height)
        if [id(layer) for layer in columns] != [id(layer) for layer in self.layers[self.first :]]:
            raise InvalidInputError("layers on both sides have to be the last of the rows and the first of the columns")
        self._columns = list(range(len(columns)))

    # The sums

    def _empty_sums(self) -> dict[str, Tensor]:
        """Return zeros for all sums: whole numbers, by their names."""
        pairs, layers, parts = (self.height, self.width), len(self.layers), self._subsets.shape[1]
        kept, own = self.height * self.width, layers
        if self._upper is not None:
            kept, own = self._upper.shape[1], 0
        shapes: dict[str, tuple[int, ...]] = {"cells": (parts, parts, kept), "own cells": (parts, parts, own)}
        for name in ("samples", "within") if self._classes is not None else ("samples",):
            if self._keep:
                shapes |= {name: (self._n, kept), f"own {name}": (self._n, own)}
        if self._cubes:
            shapes["cubes"] = (layers,)
        if self._classes is not None:
            subsets = 1 + len(self._subsets)
            for name in ("same class", "class means"):
                shapes |= {name: (subsets, *pairs), f"own {name}": (subsets, layers)}
        return {name: torch.zeros(shape, dtype=torch.int64, device=self._place) for name, shape in shapes.items()}

    def prepare(
        self,
        gather: Callable[[dict[int, Any]], list[dict[int, Any]]] = lambda sums: [sums],
        part: Callable[[int], slice] = lambda count: slice(0, count),
    ) -> None:
        """Sum the features of every layer over cells and classes, and centre by classes, in passes over each layer.

        Parameters
        ----------
        gather : callable
            Function that exchanges results among processes.
        part : callable
            Function that returns the share of this process of a number of items.
        """
        if not self._subsets.size and self._classes is None:
            return
        own = range(len(self.layers))[part(len(self.layers))]
        sums = dict(zip(own, self._in_threads(self._sum_features, [self.layers[k] for k in own]), strict=True))
        exchanged = {k: values for part_of in gather(sums) for k, values in part_of.items()}
        self._cell_sums = [exchanged[k].to(self._place) for k in range(len(self.layers))]
        if self._classes is None:
            return
        members = torch.from_numpy(self._with_all).to(self._place, torch.float64)
        sizes = self._class_sizes.clamp(min=1)[..., None]
        self._means = [
            (torch.einsum("sk,kcp->scp", members, sums) / sizes).to(self.device, layer.dtype)
            for layer, sums in zip(self.layers, self._cell_sums, strict=True)
        ]
        tables = self._in_threads(self._class_table, range(len(self.layers)))
        self._of_classes = [of_classes for of_classes, _ in tables]
        self._own_class = torch.stack([own_class for _, own_class in tables])
        self._mean_sums = [self._mean_products(s, of_subset) for s, of_subset in enumerate(self._class_sizes)]
        for i in self._panels_of[part(len(self._panels_of))]:
            self._add_class_means(i)
        self._means = []

    def _class_table(self, k: int) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "subsets n"]]:
        """Return H of a layer for all samples and classes, and of each sample's own class in the subsets that have it.

        The samples are in the order in which tiles have them; H of the own class is 0 in other subsets.
        """
        assert self._classes is not None, "there are classes"
        layer, means = self.layers[k], self._means[k]
        offsets, shifts = self._offsets64[k].to(means), self._class_offsets[k].to(means)
        numbers, members = self._classes.numbers.to(self.device), self._members.to(self.device)
        diagonal = means.square().sum(2) - 2 * shifts
        M = (means[0] @ means[0].T) - shifts[0] - shifts[0][:, None]
        table = torch.empty(self._n, means.shape[1], dtype=self.dtype, device=self.device)
        own = torch.zeros(len(means), self._n, dtype=self.dtype, device=self.device)
        for i in pieces(layer.features):
            x, c = layer.features[i], numbers[i]
            table[i] = (x @ means[0].T - offsets[i, None] - shifts[0] - M[c] / 2).to(self.dtype)
            for s, member in enumerate(members[:, i]):
                inside = member.nonzero()[:, 0]
                of = c[inside]
                matching = torch.linalg.vecdot(means[s][of], x[inside]) - offsets[i][inside] - shifts[s][of]
                own[s, i.start + inside] = (matching - diagonal[s][of] / 2).to(self.dtype)
        order = self._order.to(self.device)
        return table[order], own[:, order]

    def _sum_features(self, layer: Gram) -> Float64[Tensor, "cells classes p"]:
        classes = 1 if self._classes is None else self._classes.count
        place = (self._cells if self._classes is None else self._cells * classes + self._classes.numbers).to(
            self._place
        )
        total = torch.zeros(self._subsets.shape[1] * classes, layer.p, dtype=torch.float64, device=self._place)
        for i in pieces(layer.features):
            total.index_add_(0, place[i], layer.features[i].to(total))
        return total.view(self._subsets.shape[1], classes, layer.p).cpu()

    @functools.cached_property
    def _class_sizes(self) -> Float64[Tensor, "subsets classes"]:
        """Number of samples of each class in all samples, and in each subset."""
        assert self._classes is not None, "there are classes"
        sizes = self._members.new_zeros(len(self._members), self._classes.count, dtype=torch.float64)
        return sizes.index_add_(1, self._classes.numbers.to(self._place), self._members.double())

    @functools.cached_property
    def _class_offsets(self) -> Float64[Tensor, "layers subsets classes"]:
        """Mean offset of every class in all samples, and in each subset."""
        assert self._classes is not None, "there are classes"
        weighted = self._offsets64[:, None] * self._members
        sums = weighted.new_zeros(*weighted.shape[:2], self._classes.count)
        sums.index_add_(2, self._classes.numbers.to(self._place), weighted)
        return sums / self._class_sizes.clamp(min=1)

    def accumulate(self, units: Sequence[int], step: Callable[[], None]) -> None:
        """Add the tiles of these units to the sums; ``step`` is called after each unit."""
        for _ in self.parts(units):
            step()

    def exchange(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add the sums of all processes; ``add`` does this for one array."""
        for name, values in self._sums.items():
            self._sums[name] = add(values)

    @property
    def state(self) -> Mapping[str, Int64[Tensor, "..."]]:
        """All sums, as whole numbers."""
        return self._sums

    @override
    def _rows(self, panel: int) -> Any:
        i = self._panels_of[panel]
        order = (self._order[i] - i.start).to(self.device)
        return [draw.rows(i)[order] for draw in self.draws]

    @override
    def _part(self, left: slice, right: slice, x: Any, y: Any, shifts: list[Tensor]) -> Sums:
        layers, within = len(self.layers), self._classes is not None
        side = min(self.tile, max(left.stop - left.start, right.stop - right.start))
        kept = within and self._keep
        memory = torch.empty(2 + 2 * kept, layers * side**2, dtype=self.dtype, device=self.device)
        for i, j in tiles(left, right, self._n, self.tile):
            shape = (layers, i.stop - i.start, j.stop - j.start)
            spare = [m[: math.prod(shape)] for m in memory]
            stack = spare[0].view(shape)
            rows, columns = (
                slice(i.start - left.start, i.stop - left.start),
                slice(j.start - right.start, j.stop - right.start),
            )
            weight = 1 if i == j else 2
            if within:
                assert self._numbers is not None, "set together with the classes"
                ci, cj = (self._numbers[side].to(self.device) for side in (i, j))
                differ = (ci[:, None] != cj).to(self.dtype)

            def make(k: int) -> None:
                tile = stack[k]  # noqa: B023 - called at once
                self.draws[k].tile(x[k][rows], y[k][columns], i, j, tile)  # noqa: B023
                tile.sub_(self._shifts[k, i, None]).sub_(self._shifts[k, j])  # noqa: B023
                if i == j:  # noqa: B023
                    tile.fill_diagonal_(0)
                if self._cubes:
                    cube = torch.linalg.vecdot(tile.square(), tile).double().sum() / self._cube_unit
                    self._sums["cubes"][k] += weight * cube.round().long()  # noqa: B023
                if kept:  # while the tile is in the cache
                    centred = spare[2].view(shape)[k]  # noqa: B023
                    of_classes = self._of_classes[k]
                    torch.sub(tile, of_classes[i].index_select(1, cj), out=centred)  # noqa: B023
                    transposed = of_classes[j].T.contiguous().index_select(0, ci)  # noqa: B023
                    centred.sub_(transposed).mul_(differ)  # noqa: B023

            self._in_threads(make, self._widest_first)
            self._add_tile(stack, i, j, "samples", spare[1])
            if kept:
                self._add_tile(spare[2].view(shape), i, j, "within", spare[3])
            if within:
                self._add_same_class(stack, i, j)
        return np.zeros(0)

    def _cell_runs(self, i: slice) -> Iterator[tuple[int, slice]]:
        """Yield the cells of a run of samples, with their places within the run."""
        cells = self._cells[self._order[i]]
        values, counts = cells.unique_consecutive(return_counts=True)
        start = 0
        for cell, count in zip(values.tolist(), counts.tolist(), strict=True):
            yield cell, slice(start, start + count)
            start += count

    def _add_tile(self, stack: Tensor, i: slice, j: slice, what: str, spare: Tensor) -> None:
        """Add a tile to the sums of its rows' samples and, off the diagonal, to those of its columns' samples."""
        self._add_rows(stack, i, j, what)
        if i == j or not self._keep:
            return
        transposed = spare.view(stack.shape[0], stack.shape[2], stack.shape[1])
        # one matrix at a time, because torch then transposes in blocks
        self._in_threads(lambda k: transposed[k].copy_(stack[k].T), range(len(stack)))
        self._add_rows(transposed, j, i, what, again=True)

    def _add_rows(self, stack: Tensor, i: slice, j: slice, what: str, *, again: bool = False) -> None:
        """Add a tile to the sums of its rows' samples and, unless it was seen before, to those over pairs of cells."""
        by_row, weight = stack.transpose(0, 1), 1 if i == j else 2
        over_cells = what == "samples" and not again
        columns = list(self._cell_runs(j)) if over_cells else [(0, slice(0, j.stop - j.start))]

        def add(rows: slice) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
            """Add some rows to the sums of their samples; return their sums by pairs of cells."""
            samples, of_cells = slice(i.start + rows.start, i.start + rows.stop), []
            for cell, part in columns:
                piece = by_row[rows, :, part]
                pairs = self._whole(self._packed(piece[:, : self.height] @ piece[:, self.first :].mT))
                own = pairs[:, :0] if self.square else self._whole(torch.linalg.vecdot(piece, piece))
                if self._keep:
                    self._sums[what][samples] += pairs
                    if not self.square:
                        self._sums[f"own {what}"][samples] += own
                if over_cells:
                    of_cells += [
                        ((other, cell), weight * pairs[inside].sum(0), weight * own[inside].sum(0))
                        for other, inside in self._cell_runs(samples)
                    ]
            return of_cells

        for of_rows in self._in_threads(add, cut(len(by_row), _ROWS)):
            for cells, pairs, own in of_rows:
                self._sums["cells"][cells] += pairs
                self._sums["own cells"][cells] += own

    def _packed(self, pairs: Float[Tensor, "samples rows columns"]) -> Float[Tensor, "samples kept"]:
        if self._upper is None:
            return pairs.flatten(1)
        return pairs.flatten(1).index_select(1, self._upper[0] * self.width + self._upper[1])

    def _unpacked(self, sums: Int64[Tensor, "*samples kept"]) -> Float64[np.ndarray, "*samples rows columns"]:
        if self._upper is None:
            return np.asarray(sums.unflatten(-1, (self.height, self.width)).cpu().numpy() * self._unit)
        pairs = np.empty((*sums.shape[:-1], self.height, self.width))
        rows, columns = self._upper.cpu().numpy()
        pairs[..., rows, columns] = pairs[..., columns, rows] = sums.cpu().numpy() * self._unit
        return pairs

    def _whole(self, values: Tensor) -> Int64[Tensor, "..."]:
        """Return values as whole numbers of the unit."""
        if values.dtype == torch.float64:
            return values.div(self._unit).round_().long().to(self._place)
        return values.div_(self._unit).long().to(self._place)  # division by a power of two rounds nothing

    def _add_same_class(self, stack: Tensor, i: slice, j: slice) -> None:
        """Add the pairs of different samples of one class, centred within the classes of each subset."""
        assert self._numbers is not None, "set together with the classes"
        alike = self._numbers[i, None] == self._numbers[j]
        if i == j:
            alike.fill_diagonal_(False)
        r, c = (place.to(self.device) for place in alike.nonzero(as_tuple=True))
        if not len(r):
            return
        values, weight = stack[:, r, c], 1 if i == j else 2
        members, own = self._members.to(self.device), self._own_class
        rows, columns = (self._order[side].to(self.device) for side in (i, j))
        for s, member in enumerate(members):
            both = (member[rows[r]] & member[columns[c]]).nonzero()[:, 0]
            for run in cut(len(both), max(1, 2**24 // len(self.layers))):
                chosen = both[run]
                W = values[:, chosen] - own[:, s, i.start + r[chosen]] - own[:, s, j.start + c[chosen]]
                self._add_products("same class", s, W, weight)

    def _add_products(self, name: str, s: int, W: Float[Tensor, "layers entries"], weight: float) -> None:
        """Add the inner products of rows and columns, over some entries of their kernels."""
        W = W.to(self._place, torch.float64)
        pairs, own = W[: self.height] @ W[self.first :].T, torch.linalg.vecdot(W, W)
        self._sums[name][s] += (weight * pairs / self._unit).round_().long()
        self._sums[f"own {name}"][s] += (weight * own / self._unit).round_().long()

    def _add_class_means(self, i: slice) -> None:
        """Add sum_ic n_c G_ic F_ic over the samples of a panel, and the diagonals of pairs of one class."""
        samples = self._order[i].to(self._place)
        squared = torch.stack([layer.squared_norms.to(self._place)[samples] for layer in self.layers])
        diagonal, x = squared - 2 * self._offsets64[:, samples], self._rows(self._panels_of.index(i))
        sizes, of_classes = self._class_sizes, self._class_offsets
        classes = sizes.shape[1]
        for s in range(len(self._members)):
            inside = self._members[s, samples].nonzero()[:, 0]
            place = inside.to(self.device)
            W = diagonal[:, inside] - 2 * self._own_class[:, s, i.start + place].to(self._place, torch.float64)
            self._add_products("same class", s, W, 1)
            for run in cut(len(inside), max(1, 2**22 // (classes * len(self.layers)))):
                G = torch.empty(len(self.layers), run.stop - run.start, classes, dtype=self.dtype, device=self.device)
                rows = inside[run]

                def write(k: int) -> None:
                    G[k] = x[k][rows.to(self.device)] @ self._means[k][s].T  # noqa: B023 - called at once
                    offsets = self._offsets64[k, samples[rows], None].to(G)  # noqa: B023
                    G[k].sub_(offsets).sub_(of_classes[k, s].to(G)).mul_(sizes[s].sqrt().to(G))  # noqa: B023

                self._in_threads(write, self._widest_first)
                by_row = G.transpose(0, 1)
                pairs = by_row[:, : self.height] @ by_row[:, self.first :].mT
                self._sums["class means"][s] += self._whole(pairs).sum(0)
                self._sums["own class means"][s] += self._whole(torch.linalg.vecdot(by_row, by_row)).sum(0)

    # What follows from the sums

    def _float(self, name: str) -> Float64[np.ndarray, "..."]:
        return np.asarray(self._sums[name].cpu().numpy() * self._unit)

    def _over_cells(self, s: int) -> Products:
        """Return the sums over pairs of different samples of all samples (0), or of a subset (from 1)."""
        inside = np.flatnonzero(self._with_all[s])
        chosen = np.ix_(inside, inside)
        pairs, own = (self._sums[name].cpu().numpy() for name in ("cells", "own cells"))
        # a pair of cells was seen once, in either order, with the weight of both
        of_pairs = self._unpacked(torch.from_numpy(pairs[chosen].sum((0, 1))))
        return Products(of_pairs, of_pairs.diagonal() if self.square else own[chosen].sum((0, 1)) * self._unit)

    @functools.cached_property
    def _over_all(self) -> Products:
        return self._over_cells(0)

    @functools.cached_property
    def noise_of_all(self) -> Float64[np.ndarray, " layers"]:
        """Largest ||A||^2 of each layer that is only rounding errors."""
        return self._noise(self.measures[0])

    @functools.cached_property
    def all(self) -> Products:
        """Inner products over all samples."""
        sums = self._over_all
        return Products(sums.pairs, np.where(sums.own > self.noise_of_all, sums.own, np.nan))

    def subset(self, s: int) -> Products:
        """Return the debiased inner products on a subset of the samples, numbered from 0."""
        sums, members = self._over_cells(1 + s), self._members[1 + s]
        m = int(members.sum())
        a = self._row_sums(1 + s)
        total = a.sum(1)
        scale = (m - 1) * (m - 2)
        left, right = a[: self.height], a[self.first :]
        pairs = sums.pairs + (torch.outer(total[: self.height], total[self.first :]) / scale).cpu().numpy()
        pairs -= (2 / (m - 2) * left @ right.T).cpu().numpy()
        own = sums.own + (total.square() / scale - 2 / (m - 2) * a.square().sum(1)).cpu().numpy()
        noise = self._eps * (sums.own + 2 / m * a.square().sum(1).cpu().numpy())
        return Products(pairs, np.where(own > noise, own, np.nan))

    @functools.cached_property
    def _eps(self) -> Float64[np.ndarray, " layers"]:
        return 100 * np.array([draw.eps for draw in self.draws])

    def _row_sums(self, s: int) -> Float64[Tensor, "layers members"]:
        """Return a_i = sum_j A_ij over the other samples of a subset, for its samples."""
        inside = self._members[s].nonzero()[:, 0]
        o = self._offsets64[:, inside]
        squared = torch.stack([layer.squared_norms.to(self._place)[inside] for layer in self.layers])
        return self._sums_of_products[:, s, inside] - squared - (len(inside) - 2) * o - o.sum(1, keepdim=True)

    @functools.cached_property
    def _sums_of_products(self) -> Float64[Tensor, "layers subsets n"]:
        """sum_j x_i'x_j over the samples j of all samples, and of each subset, in one pass over every layer."""
        weights = torch.from_numpy(self._with_all).to(self._place, torch.float64)
        sums = torch.empty(len(self.layers), len(weights), self._n, dtype=torch.float64, device=self._place)
        for k, layer in enumerate(self.layers):
            total = torch.einsum("sk,kcp->ps", weights, self._cell_sums[k]).to(self.device, layer.dtype)
            for i in pieces(layer.features):
                sums[k, :, i] = (layer.features[i] @ total).T.to(sums)
        return sums

    def within(self, s: int) -> Products:
        """Return inner products within classes over all samples (0), or over a subset (from 1), per degree of freedom.

        NaN if the classes leave no degree of freedom.
        """
        sums, members = self._over_cells(s), self._members[s]
        squared = torch.stack([layer.squared_norms.to(self._place) for layer in self.layers])
        d = ((squared - 2 * self._offsets64) * members).cpu().numpy()
        sizes = self._class_sizes[s]
        means = self._mean_sums[s]
        parts = [
            (sums.pairs, sums.own), (d[: self.height] @ d[self.first :].T, np.square(d).sum(1)), means,
        ]  # fmt: skip
        pairs, own = (sum(part) for part in zip(*parts, strict=True))
        for name, weight in (("class means", 2), ("same class", 1)):
            pairs, own = pairs - weight * self._float(name)[s], own - weight * self._float(f"own {name}")[s]
        degrees = float(degrees_of_freedom(sizes.cpu().long()))
        degrees = degrees if degrees > 0 else math.nan
        return Products(np.asarray(pairs / degrees), np.asarray(own / degrees))

    def _mean_products(
        self, s: int, sizes: Float64[Tensor, " classes"]
    ) -> tuple[Float64[np.ndarray, "rows columns"], Float64[np.ndarray, " layers"]]:
        """Return sum_cc' n_c n_c' M_cc' N_cc' of all pairs, and of every layer with itself."""
        offsets, layers = self._class_offsets[:, s], len(self.layers)
        pairs = torch.zeros(self.height, self.width, dtype=torch.float64, device=self._place)
        own = torch.zeros(layers, dtype=torch.float64, device=self._place)
        for run in cut(len(sizes), max(1, 2**24 // (len(sizes) * layers))):
            M = torch.stack([
                self._means[k][s][run].double() @ self._means[k][s].double().T - offsets[k, run, None] - offsets[k]
                for k in range(layers)
            ])  # fmt: skip
            M = (M * (sizes[run, None] * sizes).sqrt()).flatten(1)
            pairs += M[: self.height] @ M[self.first :].T
            own += torch.linalg.vecdot(M, M)
        return pairs.cpu().numpy(), own.cpu().numpy()

    @property
    def row_squares(self) -> Float64[np.ndarray, "n layers"]:
        """sum_j A_ij^2 of every layer, for each sample."""
        place = self._place_of.to(self._place)
        own = self._sums["own samples"]
        if self._upper is not None:
            own = self._sums["samples"][:, self._upper[0] == self._upper[1]]
        return np.asarray(own[place].cpu().numpy() * self._unit)

    @property
    def cubes(self) -> Float64[np.ndarray, " layers"]:
        """sum_ij A_ij^3 of every layer."""
        return np.asarray(self._sums["cubes"].cpu().numpy() * self._cube_unit)

    @functools.cached_property
    def _place_of(self) -> Int64[Tensor, " n"]:
        return self._order.argsort()

    def without(self, run: slice) -> Products:
        """Return <A, B> without each sample of a run."""
        c = 2 * (self._n - 2) / (self._n - 3)
        pairs, own = self._of_samples("samples", run)
        own = self._over_all.own - c * own
        noise = np.maximum(self.noise_of_all, self._eps * np.abs(self._over_all.own))
        return Products(self.all.pairs - c * pairs, np.where(own > noise, own, np.nan))

    def within_without(self, run: slice) -> Products:
        """Return inner products within classes without each sample of a run, for each degree of freedom that is left.

        Without sample i of a class of m samples, the mean of its class changes, and the others move by x_i / (m - 1).
        As the deviations of a class sum to 0, the result is exactly <W, V> - 2 m / (m - 1) D_i, D_i = sum_j W_ij V_ij.
        Nothing moves if no sample of the class is left.
        """
        assert self._classes is not None, "there are classes"
        class_of = self._classes.numbers[run]
        sizes = self._classes.sizes.repeat(len(class_of), 1)
        rest = sizes[torch.arange(len(sizes)), class_of] - 1
        sizes[torch.arange(len(sizes)), class_of] = rest
        weights = (2 + torch.where(rest > 0, 2 / rest.double(), 0)).numpy()
        pairs, own = self._of_samples("within", run)
        whole = self._within_totals
        degrees = degrees_of_freedom(sizes).numpy()
        degrees = np.where(degrees > 0, degrees, np.nan)
        return Products(
            (whole.pairs - weights[:, None, None] * pairs) / degrees[:, None, None],
            (whole.own - weights[:, None] * own) / degrees[:, None],
        )

    @functools.cached_property
    def within_whole(self) -> Products:
        """Inner products within classes over all samples, per degree of freedom, as sums over single samples."""
        assert self._classes is not None, "there are classes"
        degrees = float(degrees_of_freedom(self._classes.sizes))
        totals, degrees = self._within_totals, degrees if degrees > 0 else math.nan
        return Products(totals.pairs / degrees, totals.own / degrees)

    @functools.cached_property
    def _within_totals(self) -> Products:
        """Inner products within classes over all samples, as sums over single samples."""
        pairs = self._unpacked(self._sums["within"].sum(0))
        own = self._sums["own within"].sum(0).cpu().numpy() * self._unit
        return Products(pairs, pairs.diagonal() if self.square else own)

    def _of_samples(
        self, name: str, run: slice
    ) -> tuple[Float64[np.ndarray, "run rows columns"], Float64[np.ndarray, "run layers"]]:
        place = self._place_of[run].to(self._place)
        pairs = self._unpacked(self._sums[name][place])
        if self.square:
            return pairs, np.diagonal(pairs, axis1=1, axis2=2)
        return pairs, self._sums[f"own {name}"][place].cpu().numpy() * self._unit
