"""Leave out, permute and subsample whole groups of samples, for samples that are independent only between groups.

`repsim.metrics.recipes.groups.Groups` has the estimator. No n x n matrix is held.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramMeasure, GramSweep, tile_side
from repsim.metrics.recipes.gram import Gram, Reordered
from repsim.metrics.recipes.groups import Groups, GroupsLike
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.processes import ALONE, Ranks

LEAST_REARRANGEMENTS = 20
"""Smallest number of distinct rearrangements of groups: with fewer, no p-value is below 0.05."""


class LeaveOneGroupOut(GramSweep):
    """CKA of all pairs of layers with each group of samples left out, from rows of the Gram matrices.

    For group h, D_h = sum over its rows of A_ij B_ij, and a_h[i] = sum_{j in h} A_ij of the other samples i. Without h
    the rows of A sum to -a_h, so that centring again adds the offsets of the least-squares fit to -a_h (`Groups`), and

        <A, B>_(-h) = <A, B> - 2 D_h - 2 a_h' (D + M)^-1 b_h,

    where D + M is that of the remaining samples, with its inverse in closed form. For groups of one sample it equals
    <A, B> - 2 (n-2)/(n-3) D_i (`LeaveOneOut`).

    Groups are left out one run after the other: rows of the groups of a run, times all columns, for all layers.

    Parameters
    ----------
    rows, columns : sequence of Gram
        Factors of ``measure`` over the same samples, in the same groups (`Gram.grouped`).
    measure : GramMeasure
        Debiased CKA.
    panel : int
        Samples whose features are read at once; 0 for the setting of `tuning`.
    tile : int
        Side of a tile in samples; 0 for the largest that fits the setting of `tuning`.
    room : int
        Bytes for the sums of a run of groups; 0 for the setting of `tuning`.

    Raises
    ------
    InvalidInputError
        If the layers are not features in groups, there are fewer than 5 groups, or one group would have half of the
        samples or more without another.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        columns: Sequence[Any],
        measure: GramMeasure,
        *,
        panel: int = 0,
        tile: int = 0,
        room: int = 0,
    ) -> None:
        groups = next((layer.groups for layer in [*rows, *columns] if isinstance(layer, Gram)), None)
        if groups is None:
            raise InvalidInputError("no groups are left out of samples without groups, or of compressed readouts")
        contiguous: dict[int, Any] = {id(layer): _contiguous(layer, groups) for layer in [*rows, *columns]}
        left, right = ([contiguous[id(layer)] for layer in side] for side in (rows, columns))
        tile = tile or tile_side(len(contiguous), 4)
        super().__init__(left, right, [measure], panel=panel or tuning.current().panel, tile=tile)
        assert self.groups is not None, "all layers are in groups"
        self.all: Groups = self.groups
        """Groups of the samples, which are in the order of their groups."""
        self.all.check_left_out()
        self._panel, self._room = panel or tuning.current().panel, room or tuning.current().unit_memory
        self.full_values = np.full((self.height, len(self._columns)), np.nan)
        """Values of all samples, of shape (rows, columns); set by `sum_all`."""
        self.squares = np.zeros(len(self.layers))
        """||A||^2 of every layer, of all samples; set by `sum_all`."""
        self._squares_noise = np.zeros(len(self.layers))
        """Rounding errors of ``squares``."""
        self._products = np.zeros((0, 0))
        """<A, B> of all pairs, of all samples."""
        self.squares_left = np.zeros((0, len(self.layers)))
        """||A||^2 of every layer without each group of the latest run."""
        self._runs = list(self._cut_groups())

    @property
    def units(self) -> int:
        """Number of runs of groups, and one for the values of all samples."""
        return self.units_of(ALONE)

    def units_of(self, me: Ranks) -> int:
        """Return the number of runs of groups of a process, and one for the values of all samples."""
        return len(self._runs[me.part(len(self._runs))]) + 1

    def _cut_groups(self) -> Iterator[tuple[int, int]]:
        """Yield runs of groups whose rows fill a tile, and whose sums a_h fit into the room."""
        starts = self.all.starts
        most = max(1, self._room // (24 * len(self.layers) * self.all.n))
        first = 0
        while first < self.all.count:
            last = first + 1
            while last < self.all.count and last - first < most and int(starts[last + 1] - starts[first]) <= self.tile:
                last += 1
            yield first, last
            first = last

    def left_out(self, step: Callable[[], None]) -> Float64[np.ndarray, "groups rows columns"]:
        """Return the values of all groups: value (h, a, b) is that of row a and column b without group h."""
        return np.concatenate([values for _, values in self.runs(step)])

    def sum_all(self, step: Callable[[], None], me: Ranks = ALONE) -> None:
        """Compute the values of all samples; processes share the work. ``step`` is called at the end."""
        columns = [self.layers[self.first + k] for k in self._columns]
        sweep = GramSweep(self.layers[: self.height], columns, self.measures, panel=self._panel, tile=self.tile)
        order = list(sweep.order)
        gathered = me.gather(list(sweep.parts(order[me.part(len(order))])))
        sums = np.sum(list(chain.from_iterable(gathered)), axis=0)
        self._products = sums[: self.height * self.width].reshape(self.height, self.width)
        self.squares = squares = sums[self.height * self.width :]
        eps = np.array([draw.eps for draw in self.draws])
        noise = np.maximum(self._noise(self.measures[0]), 100 * eps * abs(squares))  # cancellation in the difference
        self._squares_noise = noise
        self.full_values = self._values(self._products, np.sqrt(np.where(squares > noise, squares, np.nan)))
        step()

    def runs(
        self, step: Callable[[], None], me: Ranks = ALONE
    ) -> Iterator[tuple[slice, Float64[np.ndarray, "run rows columns"]]]:
        """Yield runs of groups with the values that leave out each group of the run: those that are this process's.

        A value is NaN if a norm is not larger than its rounding errors. ``step`` is called after every unit.
        """
        if not self._products.size:
            self.sum_all(step, me)
        for first, last in self._runs[me.part(len(self._runs))]:
            lost, lost_squares = self._lost(first, last)
            self.squares_left = remaining = self.squares - lost_squares
            norms = np.sqrt(np.where(remaining > self._squares_noise, remaining, np.nan))
            yield slice(first, last), self._values(self._products - lost, norms)
            step()

    def _values(
        self, products: Float64[np.ndarray, "*run height width"], norms: Float64[np.ndarray, "*run layers"]
    ) -> Float64[np.ndarray, "*run rows columns"]:
        values: Float64[np.ndarray, "*run rows columns"] = products[..., self._columns]
        values /= norms[..., : self.height, None]
        values /= norms[..., None, [self.first + k for k in self._columns]]
        return values

    def _lost(
        self, first: int, last: int
    ) -> tuple[Float64[np.ndarray, "run height width"], Float64[np.ndarray, "run layers"]]:
        """Return 2 D_h + 2 a_h' (D + M)^-1 b_h of all pairs, and of each layer with itself, for a run of groups."""
        place, layers, n = float64_device(self.device), len(self.layers), self.all.n
        count, start, stop = last - first, int(self.all.starts[first]), int(self.all.starts[last])
        products = torch.zeros(count, self.height, self.width, dtype=torch.float64, device=place)
        squares = torch.zeros(count, layers, dtype=torch.float64, device=place)
        a = torch.zeros(count, layers, n, dtype=torch.float64, device=place)
        for i in cut(stop - start, self.tile, start):
            group = (self.all.numbers[i] - first).to(place)
            for j, stack in self._row_tiles(i):  # (rows, layers, columns)
                pairs = stack[:, : self.height] @ stack[:, self.first :].mT
                products.index_add_(0, group, pairs.to(place).double())
                squares.index_add_(0, group, torch.linalg.vector_norm(stack, dim=2).to(place).double().square())
                a[:, :, j].index_add_(0, group, stack.to(place).double())
        projected, projected_squares = self._projected(a, first)
        return (2 * (products + projected)).cpu().numpy(), (2 * (squares + projected_squares)).cpu().numpy()

    def _row_tiles(self, i: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield tiles of all layers' centred matrices, (rows, layers, columns), of these rows and all columns."""
        offsets = [o.to(self.device, self.dtype) for o in self._offsets(self.measures[0])]
        x = [draw.rows(i) for draw in self.draws]
        memory = torch.empty((i.stop - i.start) * len(x) * self.tile, dtype=self.dtype, device=self.device)
        for panel in cut(self.all.n, self._panel):
            y = [draw.rows(panel) for draw in self.draws]
            for j in cut(panel.stop - panel.start, self.tile, panel.start):
                alike = self.all.same(i, j, self.device)
                shape = (len(x), i.stop - i.start, j.stop - j.start)
                stack = memory[: math.prod(shape)].view(shape)
                for k, draw in enumerate(self.draws):
                    draw.tile(x[k], y[k][j.start - panel.start : j.stop - panel.start], i, j, stack[k])
                    stack[k].sub_(offsets[k][i, None]).sub_(offsets[k][j]).masked_fill_(alike, 0)
                yield j, stack.transpose(0, 1)

    def _projected(
        self, a: Float64[Tensor, "run layers n"], first: int
    ) -> tuple[Float64[Tensor, "run height width"], Float64[Tensor, "run layers"]]:
        """Return a_h' (D + M)^-1 b_h, where D + M is that of the samples outside h, by `Groups.solve`.

        With N samples left, and alpha and beta the sums of a and b over groups, it is sum_i a_i b_i / (N - n_i) +
        sum_g alpha_g beta_g u_g / (N - n_g) - (alpha'u) (beta'u) / (1 + sum_g n_g u_g), where u_g = 1 / (N - 2 n_g).
        """
        h = torch.arange(first, first + len(a))
        sizes = self.all.sizes.double().repeat(len(a), 1)
        left = self.all.n - sizes[torch.arange(len(a)), h]
        sizes[torch.arange(len(a)), h] = 0
        numbers = self.all.numbers.to(a.device)
        w = (1 / (left[:, None] - sizes)).to(a.device)
        u = (1 / (left[:, None] - 2 * sizes)).to(a.device)
        total = 1 + (sizes.to(a.device) * u).sum(1)
        alpha = self.all.sums(a)
        weighted, grouped = a * w[:, None, numbers], alpha * (w * u)[:, None]
        common = (alpha @ u[:, :, None])[..., 0] / total.sqrt()[:, None]
        rows, columns = slice(0, self.height), slice(self.first, None)
        projected = weighted[:, rows] @ a[:, columns].mT + grouped[:, rows] @ alpha[:, columns].mT
        projected -= common[:, rows, None] * common[:, None, columns]
        squares = (weighted * a).sum(2) + (grouped * alpha).sum(2) - common.square()
        return projected, squares


def _contiguous(layer: Any, groups: Groups) -> Gram:
    """Return the layer with its samples in the order of their groups, which are then slices."""
    if not isinstance(layer, Gram) or layer.groups is None:
        raise InvalidInputError(
            "samples in groups need the features of every sample, in the same groups for all layers"
        )
    order = groups.order
    if torch.equal(order, torch.arange(groups.n)):
        return layer
    assert layer.sums_within is not None, "set together with the groups"
    place = order.to(layer.squared_norms.device)
    features = layer.features
    features = (
        features[order.to(features.device)]
        if isinstance(features, Tensor)
        else Reordered(features, order.to(features.device))
    )
    return dataclasses.replace(
        layer, features=features, squared_norms=layer.squared_norms[place], row_sums=layer.row_sums[place],
        groups=Groups(layer.groups.numbers[order], layer.groups.names), sums_within=layer.sums_within[place],
    )  # fmt: skip


def subsample(layer: Gram, samples: Int64[Tensor, " m"]) -> Gram:
    """Return a layer on a subset of the samples, which has to consist of whole groups, in the groups that are left."""
    part = layer.select(samples)
    part = dataclasses.replace(part, row_sums=part.sums_of(torch.zeros(part.n, dtype=torch.int64)))
    return part.grouped(None if layer.groups is None else layer.groups.select(samples))


def group_permutations(
    groups: GroupsLike, count: int, seed: int = 0, *, classes: ArrayLike | None = None
) -> Int64[np.ndarray, "count n"]:
    """Draw permutations that exchange whole groups of the same size, and keep the order within groups.

    Parameters
    ----------
    groups : Groups, or sequence of n integers or texts
        Group of each sample.
    count : int
        Number of permutations. The identity is drawn with the same probability as any other.
    seed : int
        Seed of the random generator.
    classes : array of shape (n,), optional
        Classes of the samples: only groups whose samples are of the same classes, in their order, are exchanged.

    Returns
    -------
    array of shape (count, n)

    Raises
    ------
    InvalidInputError
        If fewer than 20 distinct rearrangements exist.

    Examples
    --------
    >>> group_permutations([0, 0, 1, 1, 2, 2, 3, 3], 2).tolist()
    [[4, 5, 0, 1, 2, 3, 6, 7], [6, 7, 4, 5, 2, 3, 0, 1]]
    """
    groups = Groups.of(groups)
    if count < 1:
        raise InvalidInputError(f"expected at least 1 permutation, got count = {count}")
    kinds: dict[tuple[Any, ...], list[int]] = {}
    names = None if classes is None else np.asarray(classes)
    if names is not None and names.shape != (groups.n,):
        raise InvalidInputError(f"expected the class of each of {groups.n} samples, got the shape {names.shape}")
    members = [group.numpy() for group in groups.order.split(groups.sizes.tolist())]
    for group, samples in enumerate(members):
        kinds.setdefault((len(samples),) if names is None else tuple(names[samples].tolist()), []).append(group)
    possible = math.prod(math.factorial(min(len(alike), 20)) for alike in kinds.values())
    if possible < LEAST_REARRANGEMENTS:
        within = "of the same size" if names is None else "of the same size and classes"
        raise InvalidInputError(
            f"only {possible} rearrangement{'s' * (possible > 1)} of the {groups.count} groups "
            f"exist{'s' * (possible == 1)}, as whole groups are exchanged with "
            f"groups {within}: no p-value can be below {1 / (possible + 1):.2f}; take the same number of samples from "
            "every group, or divide large groups"
        )
    rng = np.random.default_rng(seed)
    orders = np.empty((count, groups.n), np.int64)
    for order in orders:
        for alike in kinds.values():
            rows = np.stack([members[group] for group in alike])
            order[rows] = rows[rng.permutation(len(alike))]
    return orders


def random_group_subsamples(
    groups: GroupsLike, m: int, count: int, seed: int = 0
) -> list[Int64[np.ndarray, " samples"]]:
    """Draw subsamples of m whole groups without replacement: the samples of each, in increasing order.

    >>> [part.tolist() for part in random_group_subsamples(list("aabbbcde"), 4, 2)]
    [[2, 3, 4, 5, 6, 7], [0, 1, 5, 6, 7]]
    """
    groups = Groups.of(groups)
    if not (4 <= m <= groups.count and count >= 1):
        raise InvalidInputError(
            f"expected m groups from 4 to all {groups.count}, and at least 1 subsample, got m = {m}, count = {count}"
        )
    rng = np.random.default_rng(seed)
    numbers = groups.numbers.numpy()
    return [np.flatnonzero(np.isin(numbers, rng.choice(groups.count, m, replace=False))) for _ in range(count)]


def check_permutations(groups: Groups, orders: Int64[Tensor, "count n"]) -> None:
    """Raise `InvalidInputError` unless every order exchanges whole groups and keeps the order within them."""
    order = groups.order
    for k, permuted in enumerate(orders.cpu()):
        moved = permuted[order]
        place = torch.empty_like(order)
        place[order] = torch.arange(groups.n)
        places = place[moved]
        first = places[groups.starts[:-1]]
        expected = (
            first.repeat_interleave(groups.sizes)
            + torch.arange(groups.n)
            - groups.starts[:-1].repeat_interleave(groups.sizes)
        )
        target = groups.numbers[moved[groups.starts[:-1]]]
        starts = groups.starts[:-1][target]
        if not (
            torch.equal(places, expected)
            and torch.equal(first, starts)
            and torch.equal(groups.sizes[target], groups.sizes)
        ):
            raise InvalidInputError(
                f"row {k} of the permutations moves samples out of their groups; exchange whole groups of the same "
                "size, with the order within groups kept (random_permutations(..., groups=))"
            )


def check_subsample(groups: Groups, samples: Int64[Tensor, " m"], k: int) -> None:
    """Raise `InvalidInputError` unless the samples are whole groups."""
    taken = torch.bincount(groups.numbers[samples], minlength=groups.count)
    if bool(((taken > 0) & (taken < groups.sizes)).any()):
        part = int(((taken > 0) & (taken < groups.sizes)).nonzero()[0])
        raise InvalidInputError(
            f"row {k} of the subsamples has {int(taken[part])} of the {int(groups.sizes[part])} samples of the group "
            f"{groups.name(part)}; take whole groups (random_subsamples(..., groups=))"
        )
