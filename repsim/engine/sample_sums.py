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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.engine.class_means import ClassMeans
from repsim.engine.subsampling import runs_of_layers
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
_ENTRIES = 1024
"""Entries of a tile, of each layer, whose products are added up in float32."""
CELL_SUMS = 2**22
"""Sums over cells and classes in float64 that are in memory at once, unless one layer has more."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of centred kernels of the rows with those of the columns, and of each layer with itself."""

    pairs: Float64[np.ndarray, "*batch rows columns"]
    own: Float64[np.ndarray, "*batch layers"]
    """||A||^2 of all layers, those of the rows first; NaN for a layer that consists of rounding errors."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Data from which tiles are made: features of the samples of a panel or, with classes, their deviations, and H."""

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


Work = Callable[[], Iterable[tuple[str, Any, Sequence[Tensor]]]]
"""Work of a thread; gives sums of pairs, and of each layer with itself, with their name and place in the sums."""


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
    (`repsim.metrics.recipes.within_classes`). Tiles of them are made first, without subtraction of anything large, and
    those of A from them. The sums over single samples are of the same form. Those over subsets, on which the means of
    classes are others, follow from sums over pairs of cells and from the means (`repsim.engine.class_means`).

    **Units.** Sums over a single sample i are in a unit of its own: |D_i| is at most the largest sum_j A_ij^2 of all
    layers, which may be far smaller for most samples than for one that is far from the others.

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
        self._cube_unit = 2.0 ** (bits * 3 / 2 - _BITS)
        self._cubes = cubes
        self._widest_first = sorted(range(len(self.layers)), key=lambda k: -self.draws[k].p)  # threads end together
        self._upper = torch.triu_indices(self.height, self.width, device=self._place) if self.square else None
        """Pairs whose sums of single samples are kept if the rows are the columns: half of all, by symmetry."""
        self._packing = None if self._upper is None else (self._upper[0] * self.width + self._upper[1]).to(self.device)
        self._adding = Lock()
        self._spare: deque[Tensor] = deque()
        """Memory for the products of some rows of a tile that no thread uses now."""
        self._sums = self._empty_sums()
        self._offsets64 = torch.stack(self._offsets(self.measures[0])).to(self._place)
        self._shifts = self._offsets64[:, self._order.to(self._place)].to(self.device, self.dtype)
        self._squared_norms = torch.stack([layer.squared_norms.to(self._place) for layer in self.layers])
        largest = self._largest_rows()
        self._units = {"samples": self._units_of(largest)}
        """Unit of the sums over each sample, in the order of the tiles, for every kernel."""
        self._unit = {"samples of cells": self._unit_of_sums(largest)}
        """Unit of the sums over many samples."""
        self._with_all = np.concatenate([np.ones((1, self._subsets.shape[1]), bool), self._subsets])
        """All samples, and then the subsets, as cells."""
        self._members = torch.from_numpy(self._with_all[:, np.asarray(cells, np.int64)]).to(self._place)
        """Whether each sample is in all samples, and in each subset."""
        self._means: ClassMeans | None = None
        self._sums_of_products = torch.empty(0)
        """sum_j x_i'x_j over the samples j of all samples, and of each subset, (layers, subsets, n)."""
        self._mean_sums: list[Products] = []
        """sum_cc' n_c n_c' M_cc' N_cc' over all samples, and over each subset."""

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
        layers, parts = len(self.layers), self._subsets.shape[1]
        kept, own = self.height * self.width, layers
        if self._upper is not None:
            kept, own = self._upper.shape[1], 0
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self._kernels:
            pairs_of_cells = parts * (parts + 1) // 2
            shapes |= {f"{name} of cells": (pairs_of_cells, kept), f"own {name} of cells": (pairs_of_cells, own)}
        if self._cubes:
            shapes["cubes"] = (layers,)
        if self._classes is not None:
            subsets = 1 + len(self._subsets)
            shapes |= {"class means": (subsets, self.height, self.width), "own class means": (subsets, layers)}
        sums = {name: torch.zeros(shape, dtype=torch.int64, device=self._place) for name, shape in shapes.items()}
        for name in self._kernels:
            for whose, width in ((name, kept), (f"own {name}", own)):
                zeros = torch.from_numpy(np.zeros((self._n, width)))  # takes memory when it is written, not before
                sums[whose] = zeros.to(self._place)
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
        shape = len(self.layers), len(self._members), self._n
        self._sums_of_products = torch.empty(shape, dtype=torch.float64, device=self._place)
        weights = torch.from_numpy(self._with_all).to(self._place, torch.float64)
        totals, means, squares_of = [], None, self._squared_norms.sum(1).tolist()
        if self._classes is not None:
            means = ClassMeans(
                self._classes, self._cells, self._with_all, dtype=self.dtype, device=self.device, place=self._place
            )
        for run in self._runs_of_layers():  # sums in float64 take twice the memory of rounded ones
            own = run[part(len(run))]
            exchanged = gather(dict(zip(own, self._in_threads(self._sum_features, own), strict=True)))
            of_layers = {k: sums for part_of in exchanged for k, sums in part_of.items()}
            for k in run:
                sums = of_layers.pop(k).to(self._place)
                totals.append((weights @ sums.sum(1)).T.to(self.device, self.dtype))
                if means is not None:
                    means.add(sums, squares_of[k])
        if means is not None:
            assert self._classes is not None, "its means are those of classes"
            self._mean_sums = self._products_of_means(means)
            norms = means.largest_norms(self._squared_norms.sqrt(), self._classes.numbers.to(self._place))
            largest = self._largest_rows_within(norms.square()[:, self._order.to(self._place)])
            self._unit |= dict.fromkeys(("within of cells", "class means"), self._unit_of_sums(largest))
        mine = range(len(self._panels_of))[part(len(self._panels_of))]
        squares = torch.zeros(len(self.layers), self._n, dtype=torch.float64, device=self._place)
        features: Iterator[Panel] = (self._rows(panel) for panel in range(len(self._panels_of)))
        if not all(draw.in_memory for draw in self.draws):
            features = prefetch(features, self.device)
        for panel, read in enumerate(features):
            i, x = self._panels_of[panel], read.features
            self._in_threads(partial(self._sum_products, i, x, totals), self._widest_first)
            if means is not None:
                squares[:, i] = self._deviations(means, i, x)
                if panel in mine:
                    self._add_class_means(means, i, x)
        if means is not None:
            self._units["within"] = self._units_of(self._largest_rows_within(squares))
            means.release()
        self._means = means
        release_free_heap()

    def _sum_products(self, i: slice, x: Sequence[Tensor], totals: Sequence[Tensor], k: int) -> None:
        """Sum the products of the samples of a panel with all samples, and with those of each subset."""
        self._sums_of_products[k][:, self._order[i].to(self._place)] = (x[k] @ totals[k]).T.to(self._sums_of_products)

    def _deviations(self, means: ClassMeans, i: slice, x: Sequence[Tensor]) -> Float64[Tensor, "layers rows"]:
        """Replace the features of a panel by deviations; return their squared norms."""
        assert self._numbers is not None, "set together with the classes"
        numbers = self._numbers[i].to(self.device)

        def centre(k: int) -> Tensor:
            means.centre(k, x[k], numbers)
            squared: Tensor = torch.linalg.vecdot(x[k], x[k])
            return squared.to(self._place, torch.float64)

        with torch.inference_mode():  # in which features from a file were read, in another thread
            squares: list[Tensor] = self._in_threads(centre, range(len(self.layers)))
            return torch.stack(squares)

    def _add_class_means(self, means: ClassMeans, i: slice, y: Sequence[Tensor]) -> None:
        """Add sum_ic n_c G_ic F_ic over the samples of a panel, from deviations."""
        assert self._numbers is not None, "set together with the classes"
        layers, (subsets, classes) = len(self.layers), means.sizes.shape
        for rows in cut(i.stop - i.start, max(1, 2**24 // (layers * classes * subsets))):
            place = slice(i.start + rows.start, i.start + rows.stop)
            numbers = self._numbers[place].to(self.device)
            runs = [(run, np.flatnonzero(self._with_all[:, cell])) for cell, run in self._cell_runs(place)]
            of_runs = [
                torch.empty(layers, run.stop - run.start, len(of), classes, dtype=self.dtype, device=self.device)
                for run, of in runs
            ]
            self._in_threads(
                lambda k: means.of_samples(k, y[k][rows], numbers, runs, of_runs),  # noqa: B023
                self._widest_first,
            )
            self._run([
                partial(self._products_of_samples, int(s), of_run[:, :, p])
                for (_, of), of_run in zip(runs, of_runs, strict=True) for p, s in enumerate(of)
            ])  # fmt: skip

    def _products_of_samples(
        self, s: int, means: Float[Tensor, "layers run classes"]
    ) -> list[tuple[str, int, Sequence[Tensor]]]:
        """Return the sums of n_c G_ic F_ic over samples of a subset."""
        by_row = means.transpose(0, 1)
        products = by_row[:, : self.height] @ by_row[:, self.first :].mT, torch.linalg.vecdot(by_row, by_row)
        return [("class means", s, [x.to(self._place).sum(0, dtype=torch.float64) for x in products])]

    def _products_of_means(self, means: ClassMeans) -> list[Products]:
        """Return sum_cc' n_c n_c' M_cc' N_cc' of pairs and of layers, for all samples and each subset."""
        (subsets, classes), layers = means.sizes.shape, range(len(self.layers))
        pairs = torch.zeros(subsets, self.height, self.width, dtype=torch.float64, device=self._place)
        own = torch.zeros(subsets, len(layers), dtype=torch.float64, device=self._place)
        for run in cut(classes, max(1, 2**24 // (classes * subsets * len(layers)))):
            M = torch.stack(self._in_threads(partial(means.weighted, run), layers))
            for s in range(subsets):
                pairs[s] += M[: self.height, s] @ M[self.first :, s].T
                own[s] += torch.linalg.vecdot(M[:, s], M[:, s])
        return [Products(*of_subset) for of_subset in zip(pairs.cpu().numpy(), own.cpu().numpy(), strict=True)]

    def _runs_of_layers(self) -> list[range]:
        """Divide the layers into runs whose sums over cells and classes are in memory at once."""
        values = self._subsets.shape[1] * (1 if self._classes is None else self._classes.count)
        every = range(len(self.draws))
        return [every[run] for run in runs_of_layers([draw.p * values for draw in self.draws], CELL_SUMS)]

    def _sum_features(self, k: int) -> Float64[Tensor, "cells classes p"]:
        layer, classes = self.layers[k], 1 if self._classes is None else self._classes.count
        place = (self._cells if self._classes is None else self._cells * classes + self._classes.numbers).to(
            self._place
        )
        total = torch.zeros(self._subsets.shape[1] * classes, layer.p, dtype=torch.float64, device=self._place)
        for i in pieces(layer.features):
            total.index_add_(0, place[i], layer.features[i].to(total))
        return total.view(self._subsets.shape[1], classes, layer.p).cpu()

    def _largest_rows(self) -> Float64[Tensor, " n"]:
        """Return a bound of sum_j A_ij^2 of all layers for each sample, in the order of the tiles."""
        o, squares = self._offsets64, self._squared_norms
        # those of (x_i'x_j)^2, o_i^2 and o_j^2, for j different from i
        bound: Tensor = 3 * (squares * _others(squares) + self._n * o.square() + o.square().sum(1, keepdim=True))
        return bound.amax(0)[self._order.to(self._place)]

    def _largest_rows_within(self, squares: Float64[Tensor, "layers n"]) -> Float64[Tensor, " n"]:
        """Return a bound of sum_j W_ij^2 of all layers for each sample, from bounds of |y_i|^2, all in that order."""
        assert self._classes is not None, "there are classes"
        numbers = self._classes.numbers[self._order].to(self._place)
        of_classes = squares.new_zeros(len(squares), self._classes.count).index_add_(1, numbers, squares)
        bound: Tensor = squares * _others(of_classes)[:, numbers]
        return bound.amax(0)

    def _units_of(self, largest: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return powers of two in whose units sums of at most this size are exact whole numbers in float64."""
        _, exponents = torch.frexp((1.01 * largest).clamp(min=2.0**-400))
        return torch.ldexp(torch.ones_like(largest), exponents - _FLOAT_BITS)

    def _unit_of_sums(self, largest: Float64[Tensor, " n"]) -> float:
        """Return a power of two in whose unit sums over all samples do not overflow, from bounds for each sample."""
        total = min(float(self._n) ** 2, max(1.01 * float(largest.sum()), 2.0**-400))
        return float(2.0 ** (math.ceil(math.log2(total)) - _BITS))

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
        classes = 0 if self._means is None else self._means.sizes.shape[1]
        # one tensor for all layers, because many small ones leave gaps in the memory when they are freed
        memory = torch.empty(count * (sum(widths) + len(layers) * classes), dtype=self.dtype, device=self.device)
        parts = memory.split([count * width for width in [*widths, *[classes] * len(layers)]])
        x = [part.view(count, -1) for part in parts[: len(layers)]]
        for k in layers:
            torch.index_select(self.draws[k].rows(i).to(self.dtype), 0, order, out=x[k])
        if self._means is None:
            return Panel(x, [])
        by_class, means = [part.view(count, classes) for part in parts[len(layers) :]], self._means
        assert self._numbers is not None, "set together with the means"
        numbers = self._numbers[i].to(self.device)

        def centre(k: int) -> None:
            means.by_class(k, means.centre(k, x[k], numbers), by_class[k])
            by_class[k].sub_(self._shifts[k, i, None])

        self._in_threads(centre, self._widest_first)
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
        """Do work in threads, and add each of its sums as soon as it is there: as whole numbers, in any order."""

        def add(sums_of: Work) -> None:
            for name, place, values in sums_of():
                with self._adding:
                    self._add(name, place, values)

        self._in_threads(add, work)

    def _make_tile(self, tiles: Tiles, sides: tuple[tuple[Panel, slice], tuple[Panel, slice]], k: int) -> list[Any]:
        """Compute the tile of one layer, also within classes, and transposed; all while it is in the cache.

        ``sides`` are the panel of the rows and that of the columns, each with the samples of the tile in the panel.
        """
        i, j, tile, ((x, rows), (y, columns)) = tiles.rows, tiles.columns, tiles.kernels[0, k], sides
        if tiles.differ is None:
            self.draws[k].tile(x.features[k][rows], y.features[k][columns], i, j, tile)
            tile.sub_(self._shifts[k, i, None]).sub_(self._shifts[k, j])
        else:
            assert self._numbers is not None, "set together with the classes"
            assert self._means is not None, "set before tiles are made"
            ci, cj = (self._numbers[side].to(self.device) for side in (i, j))
            within, unit = tiles.kernels[1, k], self._means.units[k]
            torch.mm(x.features[k][rows], y.features[k][columns].T, out=within)
            torch.add(x.by_class[k][rows].index_select(1, cj), within, alpha=unit**2, out=tile)
            tile.add_(y.by_class[k][columns].T.contiguous().index_select(0, ci))
            within.mul_(tiles.differ)
        if i == j:
            tile.fill_diagonal_(0)
        if self._cubes:
            cube = torch.linalg.vecdot(tile.square(), tile).double().sum() / self._cube_unit
            self._sums["cubes"][k] += tiles.weight * cube.round().long()
        if i != j:
            for kernel, transposed in zip(tiles.kernels[:, k], tiles.transposed[:, k], strict=True):
                transposed.copy_(kernel.T)  # one matrix at a time, because torch then transposes in blocks
        return []

    def _products_of(self, tiles: Tiles) -> list[Work]:
        """Return the work that adds tiles to the sums of their rows' samples and, off the diagonal, their columns'.

        Sums over cells, of each pair of samples once, add up the products of each row, computed cell after cell. Where
        this takes longer than the products, which is for many layers, they have products of their own.
        """
        of_rows, of_columns = ([*self._cell_runs(side)] for side in (tiles.rows, tiles.columns))
        additions = (len(of_columns) - 1) * self.height * self.width
        apart = additions > len(self.layers) * tiles.kernels.shape[3]
        sides = [(tiles.rows, tiles.kernels, [] if apart else of_columns)]
        if tiles.rows != tiles.columns:
            sides.append((tiles.columns, tiles.transposed, []))
        of_samples = [
            partial(
                self._of_samples_in, name, tiles.weight, slice(side.start + rows.start, side.start + rows.stop),
                stack[kind][:, rows], cells,
            )
            for side, stack, cells in sides
            for kind, name in enumerate(self._kernels)
            for rows in cut(side.stop - side.start, self._rows_at_once)
        ]  # fmt: skip
        of_cells = [
            partial(self._of_cells, name, tiles.weight, (cell, other), stack[:, rows, columns])
            for name, stack in zip(self._kernels, tiles.kernels, strict=True)
            for cell, rows in (of_rows if apart else ())
            for other, columns in of_columns
        ]
        return [*of_cells, *of_samples]

    def _of_samples_in(
        self, name: str, weight: int, samples: slice, stack: Tensor, cells: Sequence[tuple[int, slice]]
    ) -> Iterator[tuple[str, int, Sequence[Tensor]]]:
        """Add the products of some rows to the sums of their samples; yield their sums by pairs of cells, if given."""
        per_unit, spare = self._per_unit(name, samples), self._spare_memory()
        for cell, columns in cells or [(-1, slice(None))]:
            products = self._products_of_rows(stack[:, :, columns].transpose(0, 1), spare)
            for other, inside in self._cell_runs(samples) if cells else ():
                sums = [weight * values[inside].sum(0, dtype=torch.float64) for values in products]
                yield f"{name} of cells", _pair_of_cells(cell, other), sums
            for whose, values in zip((name, f"own {name}"), products, strict=True):
                self._sums[whose][samples] += values.mul_(per_unit).round_()
        self._spare.append(spare)

    def _of_cells(
        self, name: str, weight: int, cells: tuple[int, int], stack: Float[Tensor, "layers rows columns"]
    ) -> Iterator[tuple[str, int, Sequence[Tensor]]]:
        """Yield the sums of products over all pairs of a sample of one cell with one of another."""
        at_once = max(1, _ENTRIES // stack.shape[2])  # so few that sums in float32 are nearly as exact as of a row
        for rows in cut(stack.shape[1], at_once):
            x = stack[:, rows].flatten(1)
            pairs = (x[: self.height] @ x[self.first :].T).to(self._place, torch.float64).flatten()
            own = torch.linalg.vecdot(x, x).to(self._place, torch.float64)
            if self._packing is not None:
                pairs, own = pairs[self._packing.to(self._place)], own[:0]
            yield f"{name} of cells", _pair_of_cells(*cells), [weight * pairs, weight * own]

    def _per_unit(self, name: str, samples: slice) -> Float[Tensor, "samples 1"]:
        """Return 1 / unit of the sums over samples, powers of two: in the dtype of products, if it has them."""
        exact = 1 / self._units[name][samples, None]
        rounded = exact.to(self.dtype)  # a product with float64 takes a hundred times as long
        return rounded if bool((rounded == exact).all()) else exact

    def _spare_memory(self) -> Tensor:
        """Return memory for the products of some rows, which a thread has put back, or new memory."""
        with suppress(IndexError):
            return self._spare.pop()
        kept = 0 if self._packing is None else len(self._packing)
        size = self._rows_at_once * (self.height * self.width + kept)
        return torch.empty(size, dtype=self.dtype, device=self.device)

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

    def _add(self, name: str, place: Any, sums: Sequence[Tensor]) -> None:
        """Add sums of pairs, and of each layer with itself, as whole numbers."""
        for whose, values in zip((name, f"own {name}"), sums, strict=True):
            self._sums[whose][place] += (values / self._unit[name]).round_().long()

    # What follows from the sums

    def _unpacked(self, sums: Float64[np.ndarray, "*samples kept"]) -> Float64[np.ndarray, "*samples rows columns"]:
        if self._upper is None:
            return sums.reshape(*sums.shape[:-1], self.height, self.width)
        pairs = np.empty((*sums.shape[:-1], self.height, self.width))
        rows, columns = self._upper.cpu().numpy()
        pairs[..., rows, columns] = pairs[..., columns, rows] = sums
        return pairs

    def _over_cells(self, s: int, kernel: str = "samples") -> Products:
        """Return the sums over pairs of different samples of all samples (0), or of a subset (from 1)."""
        high, low = np.tril_indices(self._with_all.shape[1])
        inside = self._with_all[s, high] & self._with_all[s, low]
        pairs, own = (
            self._sums[name].cpu().numpy()[inside].sum(0) * self._unit[f"{kernel} of cells"]
            for name in (f"{kernel} of cells", f"own {kernel} of cells")
        )
        of_pairs = self._unpacked(pairs)
        return Products(of_pairs, of_pairs.diagonal() if self.square else own)

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
        """Largest share of a sum that is rounding errors: of its terms, or of the features, which count squared."""
        computed, stored = (np.array(eps) for eps in zip(*(
            (torch.finfo(draw.dtype).eps, draw.eps) for draw in self.draws
        ), strict=True))  # fmt: skip
        return np.asarray(np.maximum(100 * computed, (100 * stored) ** 2))

    def _row_sums(self, s: int) -> Float64[Tensor, "layers members"]:
        """Return a_i = sum_j A_ij over the other samples of a subset, for its samples."""
        inside = self._members[s].nonzero()[:, 0]
        o = self._offsets64[:, inside]
        sums = self._sums_of_products[:, s, inside] - self._squared_norms[:, inside]
        return sums - (len(inside) - 2) * o - o.sum(1, keepdim=True)

    def within(self, s: int) -> Products:
        """Return inner products within classes over all samples (0), or over a subset (from 1), per degree of freedom.

        NaN if the classes leave no degree of freedom.
        """
        assert self._means is not None, "there are classes"
        sums, of_means = self._over_cells(s, "within"), self._mean_sums[s]
        pairs, own = (
            self._sums[whose][s].cpu().numpy() * self._unit["class means"]
            for whose in ("class means", "own class means")
        )
        left = sums.pairs - 2 * pairs + of_means.pairs, sums.own - 2 * own + of_means.own
        return self._per_degree(*left, degrees_of_freedom(self._means.sizes[s].cpu().long()).numpy())

    def _per_degree(
        self,
        pairs: Float64[np.ndarray, "*batch rows columns"],
        own: Float64[np.ndarray, "*batch layers"],
        degrees: Float64[np.ndarray, "*batch"],
    ) -> Products:
        """Return inner products of deviations in the units of features, per degree of freedom; NaN if there is none."""
        assert self._means is not None, "there are classes"
        units = np.square(self._means.units)  # of a kernel
        left, right = units[: self.height, None], units[self.first :]
        degrees = np.where(degrees > 0, degrees, np.nan)
        return Products(pairs * (left * right) / degrees[..., None, None], own * np.square(units) / degrees[..., None])

    @property
    def row_squares(self) -> Float64[np.ndarray, "n layers"]:
        """sum_j A_ij^2 of every layer, for each sample."""
        own = self._sums["own samples"]
        if self._upper is not None:
            own = self._sums["samples"][:, self._upper[0] == self._upper[1]]
        return np.asarray((own * self._units["samples"][:, None])[self._place_of].cpu().numpy())

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
        products = -(-self._n // self.tile) * (1 + self._subsets.shape[1])  # each rounded to whole units
        rounded = products * self._units["samples"][self._place_of[run], None].cpu().numpy()
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
        left = whole.pairs - weights[:, None, None] * pairs, whole.own - weights[:, None] * own
        return self._per_degree(*left, degrees_of_freedom(sizes).numpy())

    @functools.cached_property
    def within_whole(self) -> Products:
        """Inner products within classes over all samples, per degree of freedom, as sums over single samples."""
        assert self._classes is not None, "there are classes"
        totals = self._within_totals
        return self._per_degree(totals.pairs, totals.own, degrees_of_freedom(self._classes.sizes).numpy())

    @functools.cached_property
    def _within_totals(self) -> Products:
        """Inner products within classes over all samples, as sums over single samples."""
        units = self._units["within"].cpu().numpy()
        of_pairs, own = (  # not a product of matrices, whose bits may depend on the number of threads
            np.einsum("i,ij->j", units, self._sums[name].cpu().numpy()) for name in ("within", "own within")
        )
        pairs = self._unpacked(of_pairs)
        return Products(pairs, pairs.diagonal() if self.square else own)

    def _of_samples(
        self, name: str, run: slice
    ) -> tuple[Float64[np.ndarray, "run rows columns"], Float64[np.ndarray, "run layers"]]:
        place = self._place_of[run]
        units = self._units[name][place, None].cpu().numpy()
        of_pairs, own = (self._sums[whose][place].cpu().numpy() * units for whose in (name, f"own {name}"))
        pairs = self._unpacked(of_pairs)
        return pairs, np.diagonal(pairs, axis1=1, axis2=2) if self.square else own


def _pair_of_cells(first: int, second: int) -> int:
    """Return the place of a pair of cells in any order among all pairs."""
    low, high = sorted((first, second))
    return high * (high + 1) // 2 + low


def _others(squares: Float64[Tensor, "layers parts"]) -> Float64[Tensor, "layers parts"]:
    """Return the sum over all other parts, or a little more."""
    total = squares.sum(1, keepdim=True)
    return (1 + 1e-14) * total - squares
