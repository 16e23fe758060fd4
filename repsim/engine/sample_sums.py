"""Sum the Gram matrices of layers over single samples, over halves of the samples, and within classes, in one pass.

A study needs debiased CKA of all samples, without each sample, on random halves, and within classes. All of these are
sums over the same tiles, and making the tiles takes most of the time. So every tile is made once and used for all.

Sums are kept as whole numbers of a tiny unit. Whole numbers can be added in any order with the same result, so the sums
are equal to the bit however the tiles are shared among processes. Those over single samples, the most numbers, are
whole numbers in float64, which adds results in float32 to them faster than converts them; the others are integers.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side
from repsim.metrics.algorithms.sweep import Sums
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut, float64_device, pieces, prefetch
from repsim.metrics.recipes.within_classes import degrees_of_freedom
from repsim.runtime import tuning
from repsim.runtime.heap import release_free_heap

_BITS = 61
"""Bits of the largest possible sum, so that no sum of whole numbers overflows."""
_FLOAT_BITS = 51
"""The same for sums of whole numbers in float64, so that each of them is exact."""
_ROWS = 128
"""Rows of a tile, at most, whose products are computed by one thread at a time."""
_PRODUCTS = 2**22
"""Products, at most, that a thread computes at a time, unless one row has more."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of centred kernels of the rows with those of the columns, and of each layer with itself."""

    pairs: Float64[np.ndarray, "*batch rows columns"]
    own: Float64[np.ndarray, "*batch layers"]
    """||A||^2 of all layers, those of the rows first; NaN for a layer that consists of rounding errors."""


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Means of the classes of one layer over all samples."""

    means: Float[Tensor, "classes p"]
    offsets: Float[Tensor, " classes"]
    """Mean offset of each class."""
    products: Float[Tensor, "classes classes"]
    """M."""

    def centred(
        self, x: Float[Tensor, "rows p"], c: Int64[Tensor, " rows"], o: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes"]:
        """Return H of some samples of the classes ``c``, with the offsets ``o``."""
        return (x @ self.means.T).sub_(o[:, None]).sub_(self.offsets).sub_(self.products[c], alpha=0.5)


@dataclass(frozen=True, eq=False)
class Panel:
    """Data from which tiles are made, of the samples of a panel: features of each layer and, with classes, H."""

    features: list[Float[Tensor, "rows p"]]
    by_class: list[Float[Tensor, "rows classes"]]


@dataclass(frozen=True, eq=False)
class Tiles:
    """One tile of the centred kernels of all layers and, with classes, of their kernels within classes."""

    rows: slice
    columns: slice
    """Samples, in the order of the tiles."""
    kernels: Float[Tensor, "kinds layers rows columns"]
    transposed: Float[Tensor, "kinds layers columns rows"]
    """The same, so that the layers of one column lie side by side."""
    differ: Float[Tensor, "rows columns"] | None
    """1 for pairs of samples of different classes, and otherwise 0."""

    @property
    def weight(self) -> int:
        """Number of times that each entry is in the matrix, which is symmetric."""
        return 1 if self.rows == self.columns else 2


Runs = Sequence[tuple[slice, Int64[np.ndarray, " subsets"]]]
"""Runs of samples of one cell, and the subsets that have them."""
Work = Callable[[], list[tuple[str, Any, Sequence[Tensor]]]]
"""Work of a thread; returns sums of pairs, and of each layer with itself, with their name and place in the sums."""


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
        key = self._cells if classes is None else self._cells * classes.count + classes.numbers
        self._order = torch.cat([i.start + key[i].argsort(stable=True) for i in self._panels_of])
        """Samples in the order of the tiles: within each panel, cell after cell, and within a cell by class."""
        self._numbers = None if classes is None else classes.numbers[self._order]
        self.square = self.first == 0 and self.height == len(self.layers)
        """Whether the rows are the columns."""
        bits = 2 * math.ceil(math.log2(self._n))
        self._unit, self._cube_unit = 2.0 ** (bits - _BITS), 2.0 ** (bits * 3 / 2 - _BITS)
        self._float_unit = 2.0 ** (bits - _FLOAT_BITS)
        self._cubes = cubes
        self._widest_first = sorted(range(len(self.layers)), key=lambda k: -self.draws[k].p)  # threads end together
        self._upper = torch.triu_indices(self.height, self.width, device=self._place) if self.square else None
        """Pairs whose sums of single samples are kept if the rows are the columns: half of all, by symmetry."""
        self._packing = None if self._upper is None else (self._upper[0] * self.width + self._upper[1]).to(self.device)
        self._spare: deque[Tensor] = deque()
        """Memory for the products of some rows of a tile that no thread uses now."""
        self._sums = self._empty_sums()
        self._offsets64 = torch.stack(self._offsets(self.measures[0])).to(self._place)
        self._shifts = self._offsets64[:, self._order.to(self._place)].to(self.device, self.dtype)
        self._with_all = np.concatenate([np.ones((1, self._subsets.shape[1]), bool), self._subsets])
        """All samples, and then the subsets, as cells."""
        self._members = torch.from_numpy(self._with_all[:, np.asarray(cells, np.int64)]).to(self._place)
        """Whether each sample is in all samples, and in each subset."""
        self._means: list[ClassMeans] = []
        self._own_class = torch.empty(0)
        """H of each sample's own class, (layers, subsets, n), centred within the classes of each subset; 0 outside."""
        self._own_products = torch.empty(0)
        """M of each class with itself, (subsets, layers, classes)."""
        self._sums_of_products = torch.empty(0)
        """sum_j x_i'x_j over the samples j of all samples, and of each subset, (layers, subsets, n)."""
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
        if self._cubes:
            shapes["cubes"] = (layers,)
        if self._classes is not None:
            subsets = 1 + len(self._subsets)
            for name in ("same class", "class means"):
                shapes |= {name: (subsets, *pairs), f"own {name}": (subsets, layers)}
        sums = {name: torch.zeros(shape, dtype=torch.int64, device=self._place) for name, shape in shapes.items()}
        for name in self._kernels:
            for whose, width in ((name, kept), (f"own {name}", own)):
                sums[whose] = torch.zeros(self._n, width, dtype=torch.float64, device=self._place)
        return sums

    @property
    def _kernels(self) -> tuple[str, ...]:
        """Names of the kernels whose sums over single samples are kept."""
        return ("samples",) if self._classes is None else ("samples", "within")

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
        cell_sums = [exchanged.pop(k).to(self._place) for k in range(len(self.layers))]
        shape = len(self.layers), len(self._members), self._n
        self._sums_of_products = torch.empty(shape, dtype=torch.float64, device=self._place)
        weights = torch.from_numpy(self._with_all).to(self._place, torch.float64)
        totals = [(weights @ sums.sum(1)).T.to(self.device, self.dtype) for sums in cell_sums]
        means: list[ClassMeans] = []
        if self._classes is not None:
            self._own_class = torch.zeros(shape, dtype=self.dtype, device=self.device)
            self._own_products = torch.empty(
                len(self._members), len(self.layers), self._classes.count, dtype=self.dtype, device=self.device
            )
            self._mean_sums = self._mean_products(cell_sums)
            means = [self._means_of_classes(k, sums) for k, sums in enumerate(cell_sums)]
        for k, sums in enumerate(cell_sums):
            cell_sums[k] = sums.to(self.device, self.dtype)
        mine = range(len(self._panels_of))[part(len(self._panels_of))]
        features: Iterator[Panel] = (self._rows(panel) for panel in range(len(self._panels_of)))
        if not all(draw.in_memory for draw in self.draws):
            features = prefetch(features, self.device)
        for panel, read in enumerate(features):
            i, x = self._panels_of[panel], read.features
            self._in_threads(partial(self._sum_products, i, x, totals), self._widest_first)
            if self._classes is not None:
                self._centre_by_class(i, x, cell_sums, add=panel in mine)
        self._means = means
        del cell_sums
        release_free_heap()

    def _means_of_classes(self, k: int, sums: Float64[Tensor, "cells classes p"]) -> ClassMeans:
        """Return the means of the classes of a layer."""
        means, shifts = sums.sum(0) / self._class_sizes[0, :, None].clamp(min=1), self._class_offsets[k, 0]
        products = means @ means.T - shifts - shifts[:, None]
        return ClassMeans(*(values.to(self.device, self.dtype) for values in (means, shifts, products)))

    def _sum_products(self, i: slice, x: Sequence[Tensor], totals: Sequence[Tensor], k: int) -> None:
        """Sum the products of the samples of a panel with all samples, and with those of each subset."""
        self._sums_of_products[k][:, self._order[i].to(self._place)] = (x[k] @ totals[k]).T.to(self._sums_of_products)

    def _centre_by_class(self, i: slice, x: Sequence[Tensor], sums: Sequence[Tensor], *, add: bool) -> None:
        """Compute H of each sample's own class, and ``add`` what depends on G of these samples to the sums."""
        assert self._classes is not None, "there are classes"
        layers, classes = len(self.layers), self._classes.count
        for rows in cut(i.stop - i.start, max(1, 2**24 // (layers * classes * len(self._members))), 0):
            place = slice(i.start + rows.start, i.start + rows.stop)
            runs = [(run, np.flatnonzero(self._with_all[:, cell])) for cell, run in self._cell_runs(place)]
            means = [
                torch.empty(layers, run.stop - run.start, len(of), classes, dtype=self.dtype, device=self.device)
                for run, of in runs
            ]
            self._in_threads(
                lambda k: self._means_by_class(place, runs, k, x[k][rows] @ sums[k].flatten(0, 1).T, means),  # noqa: B023
                self._widest_first,
            )
            if add:
                self._add_class_means(place, runs, means)

    def _means_by_class(
        self,
        i: slice,
        runs: Runs,
        k: int,
        products: Float[Tensor, "rows cells_and_classes"],
        means: Sequence[Float[Tensor, "layers run subsets classes"]],
    ) -> None:
        """Compute G of some samples in the subsets that have them, times the root of the sizes of classes.

        ``products`` are those with the sums of each class over each cell. H of the class of each sample is kept.
        """
        assert self._numbers is not None, "set together with the classes"
        by_cell = products.unflatten(1, (self._subsets.shape[1], -1))
        for (run, of), out in zip(runs, means, strict=True):
            chosen, place = torch.from_numpy(of), slice(i.start + run.start, i.start + run.stop)
            weights = torch.from_numpy(self._with_all[of]).to(products)
            sizes, offsets = (
                x[chosen.to(self._place)].to(products) for x in (self._class_sizes, self._class_offsets[k])
            )
            G, c = out[k], self._numbers[place].to(self.device)
            torch.matmul(weights, by_cell[run], out=G)
            G.div_(sizes.clamp(min=1)).sub_(self._shifts[k, place, None, None]).sub_(offsets)
            of_own = G.gather(2, c[:, None, None].expand(-1, len(of), 1))[..., 0].T
            self._own_class[k, chosen.to(self.device), place] = of_own - self._own_products[chosen, k][:, c] / 2
            G.mul_(sizes.sqrt())

    def _add_class_means(
        self, i: slice, runs: Runs, means: Sequence[Float[Tensor, "layers run subsets classes"]]
    ) -> None:
        """Add sum_ic n_c G_ic F_ic over some samples, and the diagonals of pairs of one class."""
        samples = self._order[i].to(self._place)
        squared = torch.stack([layer.squared_norms.to(self._place)[samples] for layer in self.layers])
        diagonal = squared - 2 * self._offsets64[:, samples]

        def sums_of(number: int, p: int) -> list[tuple[str, Any, Sequence[Tensor]]]:
            run, subsets = runs[number]
            s, by_row = int(subsets[p]), means[number][:, :, p].transpose(0, 1)
            products = by_row[:, : self.height] @ by_row[:, self.first :].mT, torch.linalg.vecdot(by_row, by_row)
            own = self._own_class[:, s, i.start + run.start : i.start + run.stop].to(self._place, torch.float64)
            return [
                ("class means", s, [x.to(self._place).sum(0, dtype=torch.float64) for x in products]),
                ("same class", s, self._inner_products(diagonal[:, run] - 2 * own)),
            ]

        self._run([
            partial(sums_of, number, p) for number, (_, subsets) in enumerate(runs) for p in range(len(subsets))
        ])  # fmt: skip

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
    def state(self) -> Mapping[str, Tensor]:
        """All sums: whole numbers, in int64 or float64."""
        return self._sums

    @override
    def _rows(self, panel: int) -> Panel:
        i, layers = self._panels_of[panel], range(len(self.draws))
        order, count = (self._order[i] - i.start).to(self.device), i.stop - i.start
        widths = [draw.p for draw in self.draws]
        classes = len(self._means[0].offsets) if self._means else 0
        # one tensor for all layers, because many small ones leave gaps in the memory when they are freed
        memory = torch.empty(count * (sum(widths) + len(layers) * classes), dtype=self.dtype, device=self.device)
        parts = memory.split([count * width for width in [*widths, *[classes] * len(layers)]])
        x = [part.view(count, -1) for part in parts[: len(layers)]]
        for k in layers:
            torch.index_select(self.draws[k].rows(i).to(self.dtype), 0, order, out=x[k])
        by_class = [part.view(count, -1) for part in parts[len(layers) :]] if self._means else []

        def centre(k: int) -> None:
            assert self._numbers is not None, "set together with the means"
            c = self._numbers[i].to(self.device)
            by_class[k].copy_(self._means[k].centred(x[k], c, self._shifts[k, i].to(x[k])))

        self._in_threads(centre, range(len(by_class)))
        return Panel(x, by_class)

    @override
    def _part(self, left: slice, right: slice, x: Any, y: Any, shifts: list[list[Tensor]]) -> Sums:
        rows, columns = self._runs(left), self._runs(right)
        largest = math.prod(max(run.stop - run.start for run in runs) for runs in (rows, columns))
        # two tiles: one is made while the other is multiplied, so that no thread waits for the last of a kind of work
        shape = 2, 2 * len(self._kernels), len(self.layers) * largest
        this, other = torch.empty(shape, dtype=self.dtype, device=self.device)
        before: list[Work] = []
        for number, i in enumerate(rows):
            for j in columns[number:] if left == right else columns:
                tiles = self._tiles(i, j, this)
                sides = (x, slice(i.start - left.start, i.stop - left.start)), (
                    y, slice(j.start - right.start, j.stop - right.start)
                )  # fmt: skip
                self._run([*before, *(partial(self._make_tile, tiles, sides, k) for k in self._widest_first)])
                before, (this, other) = self._products_of(tiles), (other, this)
        self._run(before)
        return np.zeros(0)

    def _runs(self, panel: slice) -> list[slice]:
        """Divide a panel into the rows, or columns, of tiles, as equal as possible."""
        count = -(-(panel.stop - panel.start) // self.tile)
        ends = np.linspace(panel.start, panel.stop, count + 1).round().astype(int)
        return [slice(a, b) for a, b in pairwise(ends.tolist())]

    def _tiles(self, i: slice, j: slice, memory: Float[Tensor, "two_kinds values"]) -> Tiles:
        """Return the tile of some rows and columns, to be made in this memory."""
        height, width, kinds = i.stop - i.start, j.stop - j.start, len(self._kernels)
        flat = memory[:, : len(self.layers) * height * width]
        differ = None
        if self._numbers is not None:
            differ = (self._numbers[i, None] != self._numbers[j]).to(self.device, self.dtype)
        kernels, transposed = flat[:kinds].view(kinds, -1, height, width), flat[kinds:].view(kinds, -1, width, height)
        return Tiles(i, j, kernels, transposed, differ)

    def _run(self, work: Sequence[Work]) -> None:
        """Do work in threads, and add the sums that it returns."""
        for sums in self._in_threads(lambda compute: compute(), work):
            for name, place, values in sums:
                self._add(name, place, values)

    def _make_tile(self, tiles: Tiles, sides: tuple[tuple[Panel, slice], tuple[Panel, slice]], k: int) -> list[Any]:
        """Compute the tile of one layer, also within classes, and transposed; all while it is in the cache.

        ``sides`` are the panel of the rows and that of the columns, each with the samples of the tile in the panel.
        """
        i, j, tile, ((x, rows), (y, columns)) = tiles.rows, tiles.columns, tiles.kernels[0, k], sides
        self.draws[k].tile(x.features[k][rows], y.features[k][columns], i, j, tile)
        tile.sub_(self._shifts[k, i, None]).sub_(self._shifts[k, j])
        if i == j:
            tile.fill_diagonal_(0)
        if self._cubes:
            cube = torch.linalg.vecdot(tile.square(), tile).double().sum() / self._cube_unit
            self._sums["cubes"][k] += tiles.weight * cube.round().long()
        if tiles.differ is not None:
            assert self._numbers is not None, "set together with the classes"
            ci, cj = (self._numbers[side].to(self.device) for side in (i, j))
            centred = tiles.kernels[1, k]
            torch.sub(tile, x.by_class[k][rows].index_select(1, cj), out=centred)
            centred.sub_(y.by_class[k][columns].T.contiguous().index_select(0, ci)).mul_(tiles.differ)
        if i != j:
            for kernel, transposed in zip(tiles.kernels[:, k], tiles.transposed[:, k], strict=True):
                transposed.copy_(kernel.T)  # one matrix at a time, because torch then transposes in blocks
        return []

    def _products_of(self, tiles: Tiles) -> list[Work]:
        """Return the work that adds tiles to the sums of their rows' samples and, off the diagonal, their columns'."""
        sides = [(tiles.rows, tiles.kernels, [*self._cell_runs(tiles.columns)])]
        if tiles.rows != tiles.columns:
            sides.append((tiles.columns, tiles.transposed, []))
        tasks = [
            # sums over cells are those of each pair of samples once, and not within classes
            (name, stack[kind], side.start, rows, cells if kind == 0 else [])
            for side, stack, cells in sides
            for kind, name in enumerate(self._kernels)
            for rows in cut(side.stop - side.start, self._rows_at_once)
        ]

        def add(name: str, stack: Tensor, first: int, rows: slice, cells: list[tuple[int, slice]]) -> list[Any]:
            """Add the products of some rows to the sums of their samples; return their sums by pairs of cells."""
            samples, sums = slice(first + rows.start, first + rows.stop), []
            spare = self._spare_memory()
            for cell, columns in cells or [(-1, slice(None))]:
                products = self._products_of_rows(stack[:, rows, columns].transpose(0, 1), spare)
                for other, inside in self._cell_runs(samples) if cells else ():
                    of_cells = [tiles.weight * values[inside].sum(0, dtype=torch.float64) for values in products]
                    sums.append(("cells", (other, cell), of_cells))
                for whose, values in zip((name, f"own {name}"), products, strict=True):
                    self._sums[whose][samples] += values.div_(self._float_unit).round_()
            self._spare.append(spare)
            return sums

        work: list[Work] = [partial(add, *task) for task in tasks]
        return work if tiles.differ is None else [partial(self._same_class, tiles), *work]

    def _spare_memory(self) -> Tensor:
        """Return memory for the products of some rows, which a thread has put back, or new memory."""
        with suppress(IndexError):
            return self._spare.pop()
        kept = 0 if self._packing is None else len(self._packing)
        size = self._rows_at_once * (self.height * self.width + kept)
        return torch.empty(size, dtype=self.dtype, device=self.device)

    @property
    def _rows_at_once(self) -> int:
        return max(1, min(_ROWS, _PRODUCTS // (self.height * self.width)))

    def _products_of_rows(
        self, by_row: Float[Tensor, "samples layers columns"], spare: Tensor
    ) -> tuple[Float[Tensor, "samples kept"], Float[Tensor, "samples own"]]:
        """Return the products of the layers in each row of a tile, in spare memory, and of each layer with itself."""
        count, size = len(by_row), self.height * self.width
        pairs = spare[: count * size].view(count, self.height, self.width)
        torch.bmm(by_row[:, : self.height], by_row[:, self.first :].mT, out=pairs)
        if self._packing is None:
            return pairs.flatten(1).to(self._place), torch.linalg.vecdot(by_row, by_row).to(self._place)
        packed = spare[count * size : count * (size + len(self._packing))].view(count, -1)
        torch.index_select(pairs.flatten(1), 1, self._packing, out=packed)
        packed = packed.to(self._place)
        return packed, packed[:, :0]

    def _cell_runs(self, i: slice) -> Iterator[tuple[int, slice]]:
        """Yield the cells of a run of samples, with their places within the run."""
        cells = self._cells[self._order[i]]
        values, counts = cells.unique_consecutive(return_counts=True)
        start = 0
        for cell, count in zip(values.tolist(), counts.tolist(), strict=True):
            yield cell, slice(start, start + count)
            start += count

    def _same_class(self, tiles: Tiles) -> list[tuple[str, int, Sequence[Tensor]]]:
        """Return the sums over pairs of different samples of one class, centred within the classes of each subset."""
        assert tiles.differ is not None, "there are classes"
        i, j = tiles.rows, tiles.columns
        alike = tiles.differ == 0
        if i == j:
            alike.fill_diagonal_(False)
        r, c = alike.nonzero(as_tuple=True)
        sums: list[tuple[str, int, Sequence[Tensor]]] = []
        members, subsets = self._members.to(self.device), len(self._members)
        for run in cut(len(r), max(1, 2**22 // (len(self.layers) * subsets))):
            rows, columns = r[run], c[run]
            W = tiles.kernels[0][:, None, rows, columns] - self._own_class[:, :, i.start + rows]
            W -= self._own_class[:, :, j.start + columns]
            W *= members[:, self._order[i].to(rows.device)[rows]] & members[:, self._order[j].to(rows.device)[columns]]
            products = [self._inner_products(W[:, s]) for s in range(subsets)]
            sums += [("same class", s, [tiles.weight * x for x in of_subset]) for s, of_subset in enumerate(products)]
        return sums

    def _inner_products(self, W: Float[Tensor, "layers entries"]) -> tuple[Tensor, Tensor]:
        """Return the inner products of rows and columns, and of each layer with itself, over entries of kernels."""
        W = W.to(self._place, torch.float64)
        return W[: self.height] @ W[self.first :].T, torch.linalg.vecdot(W, W)

    def _add(self, name: str, place: Any, sums: Sequence[Tensor]) -> None:
        """Add sums of pairs, and of each layer with itself, as whole numbers."""
        for whose, values in zip((name, f"own {name}"), sums, strict=True):
            self._sums[whose][place] += (values / self._unit).round_().long()

    # What follows from the sums

    def _unpacked(self, sums: Float64[np.ndarray, "*samples kept"]) -> Float64[np.ndarray, "*samples rows columns"]:
        if self._upper is None:
            return sums.reshape(*sums.shape[:-1], self.height, self.width)
        pairs = np.empty((*sums.shape[:-1], self.height, self.width))
        rows, columns = self._upper.cpu().numpy()
        pairs[..., rows, columns] = pairs[..., columns, rows] = sums
        return pairs

    def _over_cells(self, s: int) -> Products:
        """Return the sums over pairs of different samples of all samples (0), or of a subset (from 1)."""
        inside = np.flatnonzero(self._with_all[s])
        chosen = np.ix_(inside, inside)
        pairs, own = (self._sums[name].cpu().numpy() for name in ("cells", "own cells"))
        # a pair of cells was seen once, in either order, with the weight of both
        of_pairs = self._unpacked(pairs[chosen].sum((0, 1)) * self._unit)
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
            of_name = (weight * self._unit * self._sums[whose][s].cpu().numpy() for whose in (name, f"own {name}"))
            pairs, own = (total - values for total, values in zip((pairs, own), of_name, strict=True))
        degrees = float(degrees_of_freedom(sizes.cpu().long()))
        degrees = degrees if degrees > 0 else math.nan
        return Products(np.asarray(pairs / degrees), np.asarray(own / degrees))

    def _mean_products(
        self, cell_sums: Sequence[Float64[Tensor, "cells classes p"]]
    ) -> list[tuple[Float64[np.ndarray, "rows columns"], Float64[np.ndarray, " layers"]]]:
        """Return sum_cc' n_c n_c' M_cc' N_cc' of pairs and of layers, for all samples and each subset; keep M_cc."""
        sizes, layers = self._class_sizes, range(len(self.layers))
        subsets, classes = sizes.shape
        weights = torch.from_numpy(self._with_all).to(self._place, torch.float64)

        def products(run: slice, k: int) -> Float64[Tensor, "subsets run_classes"]:
            means = torch.tensordot(weights, cell_sums[k], 1) / sizes.clamp(min=1)[..., None]
            offsets = self._class_offsets[k]
            M = means[:, run] @ means.mT - offsets[:, run, None] - offsets[:, None]
            self._own_products[:, k, run] = M.diagonal(run.start, 1, 2).to(self._own_products)
            weighted: Tensor = M.mul_((sizes[:, run, None] * sizes[:, None]).sqrt())
            return weighted.flatten(1)

        shape = subsets, self.height, self.width
        pairs = torch.zeros(shape, dtype=torch.float64, device=self._place)
        own = torch.zeros(subsets, len(layers), dtype=torch.float64, device=self._place)
        for run in cut(classes, max(1, 2**24 // (classes * subsets * len(layers)))):
            M = torch.stack(self._in_threads(partial(products, run), layers))
            for s in range(subsets):
                of_subset = self._inner_products(M[:, s])
                pairs[s] += of_subset[0]
                own[s] += of_subset[1]
        return list(zip(pairs.cpu().numpy(), own.cpu().numpy(), strict=True))

    @property
    def row_squares(self) -> Float64[np.ndarray, "n layers"]:
        """sum_j A_ij^2 of every layer, for each sample."""
        own = self._sums["own samples"]
        if self._upper is not None:
            own = self._sums["samples"][:, self._upper[0] == self._upper[1]]
        return np.asarray(own[self._place_of].cpu().numpy() * self._float_unit)

    @property
    def cubes(self) -> Float64[np.ndarray, " layers"]:
        """sum_ij A_ij^3 of every layer."""
        return np.asarray(self._sums["cubes"].cpu().numpy() * self._cube_unit)

    @functools.cached_property
    def _place_of(self) -> Int64[Tensor, " n"]:
        return self._order.argsort().to(self._place)

    def without(self, run: slice) -> Products:
        """Return <A, B> without each sample of a run."""
        c = 2 * (self._n - 2) / (self._n - 3)
        pairs, own = self._of_samples("samples", run)
        own = self._over_all.own - c * own
        rounded = self._float_unit * -(-self._n // self.tile) * (1 + self._subsets.shape[1])  # a unit for each product
        noise = np.maximum(self.noise_of_all, self._eps * np.abs(self._over_all.own)) + c * rounded
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
        of_pairs, own = (self._sums[name].sum(0).cpu().numpy() * self._float_unit for name in ("within", "own within"))
        pairs = self._unpacked(of_pairs)
        return Products(pairs, pairs.diagonal() if self.square else own)

    def _of_samples(
        self, name: str, run: slice
    ) -> tuple[Float64[np.ndarray, "run rows columns"], Float64[np.ndarray, "run layers"]]:
        place = self._place_of[run]
        of_pairs, own = (self._sums[whose][place].cpu().numpy() * self._float_unit for whose in (name, f"own {name}"))
        pairs = self._unpacked(of_pairs)
        return pairs, np.diagonal(pairs, axis1=1, axis2=2) if self.square else own
