"""Finds the nearest neighbours of every sample, by the cosine between samples, once a layer for a whole family."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics.recipes.base import Recipe, StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.gram import Reordered
from repsim.metrics.recipes.rows import Rows, by_pieces, column_means, cut, direction, in_memory, pieces, wide
from repsim.runtime import tuning

T = TypeVar("T")
_ROUNDINGS = 8
"""Rounding steps of 1 that are lost where similarities are multiplied and added."""
_SPARE = 6
"""Candidates beyond those that are wanted: the next ones bound how near a sample can be that is none of them."""
_MORE = 64
"""The same, where float32 cannot decide: samples that not even so many candidates separate are equally near."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k samples most similar to each sample, the nearest first, and how similar they are."""

    indices: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n more"]
    """1 - cosine with the k neighbours, and with the one that comes next."""
    ties: Bool[Tensor, "n k"]
    """Whether the next one is as near: then it is by lot which of the two comes first."""
    rounding: float
    """Rounding error of a similarity, at most."""
    features: Rows | None = None
    """The samples, each divided by its norm, minus the mean of all: distances do not see it, and keep their digits. A
    tensor, or read from the store whenever they are asked for; where somebody asked for them."""
    _found: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.indices, self.distances, self.ties, self.features)
        return sum(t.nbytes for t in held if isinstance(t, Tensor))

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.indices)

    @property
    def similarities(self) -> Float64[Tensor, "n more"]:
        """Cosines with the k neighbours, and with the one that comes next."""
        return 1 - self.distances

    def permuted(self, order: Int64[Tensor, " n"]) -> "Neighbours":
        """Those of the same layer with its samples in another order: sample i is the one that was order[i].

        Nothing is found again: neighbours get the new numbers of who they are. Among equally near samples they stay
        those whom the lot has chosen; the permuted layer itself, prepared anew, would draw others.
        """
        order = order.to(self.indices.device)
        features = self.features
        if features is not None:
            there = order.to(features.device)
            features = in_memory(Reordered(features, there), made_of=features)
        return Neighbours(
            order.argsort()[self.indices[order]],
            self.distances[order],
            self.ties[order],
            self.rounding,
            features,
            self._found,  # numbers for all samples together, whatever their order
        )

    def once(self, find: Callable[["Neighbours", int], T], k: int) -> T:
        """What ``find`` finds in the first k neighbours, once for all pairs: no order of samples may change it."""
        if (find, k) not in self._found:
            self._found[find, k] = find(self, k)
        return self._found[find, k]  # type: ignore[no-any-return]

    @functools.cached_property
    def returned(self) -> Int64[Tensor, "n k"]:
        """The rank of a sample, from 1, among the neighbours of each of its neighbours; 0 where it is none."""
        n, k = self.indices.shape
        ranks = torch.arange(1, k + 1, device=self.indices.device)
        own = torch.arange(n, device=self.indices.device)
        found = [
            ((self.indices[self.indices[i]] == own[i, None, None]) * ranks).sum(2)
            for i in cut(n, max(1, tuning.current().neighbour_gathered // k**2))
        ]
        return torch.cat(found)

    def chosen_by(self, k: int) -> Int64[Tensor, " n"]:
        """How many samples have each sample among their first k neighbours: hubs are chosen often."""
        return torch.bincount(self.indices[:, :k].flatten(), minlength=self.n)

    def undecided(self, k: int) -> int:
        """How many samples have a k-th neighbour that is no nearer than the next one."""
        return int(self.ties[:, k - 1].sum())


@dataclass(frozen=True, eq=False)
class Directions:
    """Samples divided by their norms, minus ``centre``: computed in float64, then rounded to ``dtype``."""

    source: Rows
    centre: Float64[Tensor, " p"]
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """(n, p)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Of the source."""
        return self.source.device

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows p"]:
        """Before they are rounded."""
        return direction(self.source[rows]) - self.centre

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        return by_pieces(self, rows, lambda piece: self.exact(piece).to(self.device, self.dtype))


@dataclass(frozen=True)
class NearestNeighbours(StreamingRecipe[Neighbours]):
    """The recipe of `Neighbours`: the k largest cosines of every sample, itself left out.

    The order of cosines is that of float64, whatever the dtype of the layer. With u_i = x_i / ||x_i||, their mean m and
    v_i = u_i - m, it is that of the distances ||v_i - v_j||^2 = 2 - 2 cos(x_i, x_j), which see no mean that samples
    share. They are computed tile by tile in the dtype of the layer, each tile serving its rows and its columns, and
    their rounding errors are bounded (Higham & Mary 2019). What is closer together than that is computed again, from
    differences, in float64.

    What is equal then, but for float64's own rounding, is ordered by lot: by a hash of both samples' numbers and of who
    is nearest to whom in this layer. So the lot is the same whenever the layer, turned or scaled, is prepared, and
    whatever k is, but is another one in every layer: two layers do not agree on neighbours by the order of samples.

    ``features`` says whether the samples themselves are wanted, too.

    References
    ----------
    Higham, Mary. A new approach to probabilistic rounding error analysis. SIAM J. Sci. Comput. 2019.
    """

    k: int = 10
    features: bool = False

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """One that finds as many neighbours: fewer are the first of more."""
        return isinstance(other, NearestNeighbours) and self.k >= other.k and self.features >= other.features

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Half of all cosines."""
        return Cost.of_products(1.0 * layer.n * layer.n * layer.p, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Numbers, distances and ties of the neighbours; the samples where they are wanted."""
        return Memory(layer.n * (17 * self.k + 8 + (layer.p * layer.itemsize if self.features else 0)))

    def __call__(self, x: Rows) -> Neighbours:
        """Prepare one layer; by operations that autograd knows where x requires a gradient."""
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return self._with_gradient(x)
        state, v = self._fit(x)
        return dataclasses.replace(state, features=v) if self.features else state

    def fit(self, x: Rows) -> Neighbours:
        """Find the neighbours: all but the features."""
        return self._fit(x)[0]

    def apply(self, x: Rows, state: Neighbours) -> Neighbours:
        """Add the features where they are wanted: in memory if x is, read from the store as they are needed if not."""
        return dataclasses.replace(state, features=self._centred(x)[1]) if self.features else state

    def _fit(self, x: Rows) -> tuple[Neighbours, Rows]:
        """The neighbours, and the features."""
        n = x.shape[0]
        if n < self.k + 2:
            raise InvalidInputError(too_few(n, self.k))
        column_means(x)  # refuses what is constant
        if zeros := sum(int((x[i] == 0).all(1).sum()) for i in pieces(x)):
            raise UndefinedValueError(
                f"{zeros} of {n} samples are 0 in every feature: they have no direction, and so no nearest neighbours"
            )
        directions, v = self._centred(x)
        indices, distances, ties = Search(directions, v, self.k + 1).run()
        if self.features:  # to all digits, those that no other is near, too
            distances = torch.cat(list(_distances(v, indices)))
        rounding = _ROUNDINGS * torch.finfo(v.dtype).eps
        return Neighbours(indices[:, : self.k].contiguous(), distances, ties, rounding), v

    @staticmethod
    def _centred(x: Rows) -> tuple[Directions, Rows]:
        """Directions minus their mean: as they are computed, and rounded, in memory if x is."""
        place = wide(x.device)
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=place)
        for i in pieces(x):
            total += direction(x[i]).sum(0)
        directions = Directions(x, total / x.shape[0], torch.promote_types(x.dtype, torch.float32))
        return directions, in_memory(directions, made_of=x)

    def _with_gradient(self, x: Float[Tensor, "n p"]) -> Neighbours:
        """The neighbours that there are, and distances as functions of x."""
        state, unit = self.fit(x.detach()), direction(x)
        near = torch.cat(list(_distances(unit, state.indices)))
        return dataclasses.replace(state, distances=torch.cat([near, state.distances[:, -1:]], 1), features=unit)


def too_few(n: int, k: int) -> str:
    """Say what could be done."""
    return (
        f"{n} samples are too few for {k} neighbours each: it takes {max(k + 2, 4)}, or all have the same neighbours; "
        f"ask for fewer, as in mutual_knn:k={max(1, n // 5)}, or for a measure that needs none, like cka"
    )


@dataclass(frozen=True, eq=False)
class Search:
    """The search for the ``count`` samples that are nearest to each sample: see `NearestNeighbours`.

    For a fixed i the distance d_ij = ||v_i - v_j||^2 / 2 falls with the score v_i'v_j - ||v_j||^2 / 2, and a tile of
    scores is one matrix product.
    """

    directions: Directions
    rounded: Rows
    """The directions in the dtype of tiles."""
    count: int

    @property
    def n(self) -> int:
        """Samples."""
        return self.rounded.shape[0]

    @functools.cached_property
    def halves(self) -> Float64[Tensor, " n"]:
        """||v_j||^2 / 2, of v as it is rounded."""
        place = wide(self.rounded.device)
        norms = [
            torch.linalg.vector_norm(self.rounded[i].to(place, torch.float64), dim=1) for i in pieces(self.rounded)
        ]
        return torch.cat(norms).square() / 2

    @functools.cached_property
    def exact_halves(self) -> Float64[Tensor, " n"]:
        """||v_j||^2 / 2."""
        return torch.cat([self.directions.exact(i).square().sum(1) / 2 for i in pieces(self.rounded)])

    def run(self) -> tuple[Int64[Tensor, "n count"], Float64[Tensor, "n count"], Bool[Tensor, "n before"]]:
        """Who they are, their distances, and whether each of them but the last is as near as the next one."""
        n, count, place = self.n, self.count, self.halves.device
        scores, whose = self._largest_scores(min(n - 1, count + _SPARE))
        eps = torch.finfo(scores.dtype).eps
        everyone = torch.arange(n, device=place)
        first = self._settled(everyone, whose.to(place), self.halves[:, None] - scores.to(place).double(), eps)
        lists, crowded, chunk = [first], [], max(1, tuning.current().neighbour_table // n)
        open_rows = first.open.nonzero()[:, 0]
        for i in cut(len(open_rows), chunk):
            rows = open_rows[i]
            near, whose = self._table(rows).topk(min(n - 1, count + _MORE), dim=1, largest=False)
            lists.append(self._settled(rows, whose, near, torch.finfo(torch.float64).eps))
            crowded.append(rows[lists[-1].open])
        hashes = torch.empty(n, dtype=torch.int64, device=place)
        for each in lists:
            hashes[each.rows] = _hash_of_nearest(each)
        rest = torch.cat(crowded) if crowded else open_rows
        for i in cut(len(rest), chunk):
            hashes[rest[i]] = _hash_of_nearest(self._crowd(rest[i]))
        lot = int(_mixed(hashes + torch.arange(n, device=place) * _GOLDEN).sum())
        indices = torch.empty(n, count, dtype=torch.int64, device=place)
        distances = torch.empty(n, count, dtype=torch.float64, device=place)
        ties = torch.empty(n, count - 1, dtype=torch.bool, device=place)
        crowds = (self._crowd(rest[i]) for i in cut(len(rest), chunk))
        for each in itertools.chain(lists, crowds):
            indices[each.rows], distances[each.rows], ties[each.rows] = each.drawn(lot, n, count)
        return indices, distances, ties

    def _bound(self, rows: Int64[Tensor, " rows"], eps: float) -> Float64[Tensor, " rows"]:
        """How far a distance from scores in a dtype of this ``eps`` is from the true one, at most.

        A sum of p products, however it is ordered, has an error below g eps / 2 ||v_i|| ||v_j||: for g = p always, and
        for g = 8 sqrt(p) but for a probability of 2 p exp(-32) (Higham & Mary 2019, theorem 3.1). Rounding v, halves
        and scores adds the rest; and directions themselves are known to float64's rounding only.
        """
        p = self.rounded.shape[1]
        norms = (2 * self.halves).sqrt()
        largest, norms = norms.max(), norms[rows]
        of_products = (min(p, 8 * math.sqrt(p)) + 6) * norms * largest + 2 * largest.square()
        return eps / 2 * of_products + 2.0**-50 * (norms + largest) + 2.0**-100

    def _largest_scores(self, count: int) -> tuple[Float[Tensor, "n count"], Int64[Tensor, "n count"]]:
        """The largest scores of every sample, and whose they are; equal ones in any order."""
        v = self.rounded
        best = torch.full((self.n, count), -torch.inf, dtype=v.dtype, device=v.device)
        whose = torch.zeros(self.n, count, dtype=torch.int64, device=v.device)
        halves = self.halves.to(v.device, v.dtype)

        def enter(i: slice, j: slice, tile: Tensor) -> None:
            values, at = tile.topk(min(count, tile.shape[1]), dim=1, sorted=False)
            best[i], order = torch.cat([best[i], values], 1).topk(count, dim=1)
            whose[i] = torch.cat([whose[i], at + j.start], 1).gather(1, order)

        panels = list(cut(self.n, tuning.current().neighbour_side))
        for number, i in enumerate(panels):
            left = v[i]
            enter(i, i, (left @ left.T).sub_(halves[i]).fill_diagonal_(-torch.inf))
            for j in panels[number + 1 :]:
                tile = left @ v[j].T
                enter(j, i, (tile - halves[i, None]).T.contiguous())
                enter(i, j, tile.sub_(halves[j]))
        return best, whose

    def _table(self, rows: Int64[Tensor, " rows"]) -> Float64[Tensor, "rows n"]:
        """The distances of some samples from all, from products in float64; infinite from themselves."""
        own, halves = self.directions.exact(rows), self.exact_halves
        products = torch.cat([own @ self.directions.exact(j).T for j in pieces(self.rounded)], 1)
        return products.neg_().add_(halves).add_(halves[rows, None]).scatter_(1, rows[:, None], torch.inf)

    def _exact(self, i: Int64[Tensor, " pairs"], j: Int64[Tensor, " pairs"]) -> Float64[Tensor, " pairs"]:
        """The distances of these pairs from differences, which cancel no digits, in float64."""
        found = [
            (self.directions.exact(i[some]) - self.directions.exact(j[some])).square().sum(1) / 2
            for some in cut(len(i), max(1, tuning.current().neighbour_gathered // self.rounded.shape[1]))
        ]
        return torch.cat(found) if found else i.double()

    def _settled(
        self,
        rows: Int64[Tensor, " rows"],
        whose: Int64[Tensor, "rows some"],
        distances: Float64[Tensor, "rows some"],
        eps: float,
    ) -> "Candidates":
        """Candidates in their true order: distances closer to one another than rounding errors are computed again.

        Rows are open where the first ``count`` and all that follow are so close: there may be others that are as near.
        """
        count, p = self.count, self.rounded.shape[1]
        distances, order = distances.sort(dim=1)
        whose = whose.gather(1, order)
        close = distances.diff(dim=1) <= 2 * self._bound(rows, eps)[:, None]
        run = close[:, count - 1 :].cummin(1).values  # from the last that is wanted on, as far as it goes
        close = torch.cat([close[:, : count - 1], run], 1)
        unknown = run.all(1) if whose.shape[1] < self.n - 1 else torch.zeros_like(rows, dtype=torch.bool)
        edge = torch.zeros_like(close[:, :1])
        again = (torch.cat([close, edge], 1) | torch.cat([edge, close], 1)) & ~unknown[:, None]
        i, at = again.nonzero(as_tuple=True)
        distances[i, at] = self._exact(rows[i], whose[i, at])
        distances, order = distances.sort(dim=1)
        return Candidates(rows, whose.gather(1, order), distances, equal(distances, p), unknown)

    def _crowd(self, rows: Int64[Tensor, " rows"]) -> "Candidates":
        """Samples so many of which are equally near, to float64's rounding, that all have to be looked at."""
        distances, whose = self._table(rows).sort(dim=1)
        close = distances[:, :-1].diff(dim=1) <= 2 * self._bound(rows, torch.finfo(torch.float64).eps)[:, None]
        whose, distances = whose[:, :-1], distances[:, :-1].clamp(min=0)  # the last one is the sample itself
        return Candidates(rows, whose, distances, close, torch.zeros_like(rows, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Samples that may be the nearest to those of some ``rows``, by their distance."""

    rows: Int64[Tensor, " rows"]
    whose: Int64[Tensor, "rows some"]
    distances: Float64[Tensor, "rows some"]
    ties: Bool[Tensor, "rows before"]
    """Whether each of them but the last is as near as the next one."""
    open: Bool[Tensor, " rows"]
    """Whether these are not all that may be."""

    @property
    def groups(self) -> Int64[Tensor, "rows some"]:
        """The number of the group of equals that each is in, from 0."""
        return torch.nn.functional.pad((~self.ties).cumsum(1), (1, 0))

    def drawn(self, lot: int, n: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first ``count``, their distances, and ties, equals being ordered by lot."""
        order = _mixed(lot + _GOLDEN * (self.rows[:, None] * n + self.whose)).argsort(1)
        order = order.gather(1, self.groups.gather(1, order).argsort(dim=1, stable=True))[:, :count]
        return self.whose.gather(1, order), self.distances[:, :count], self.ties[:, : count - 1]


_GOLDEN = -7046029254386353131
"""2^64 / golden ratio: the step of SplitMix64 (Steele, Lea, Flood 2014), which mixes numbers into a hash."""


def _mixed(z: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """SplitMix64's hash of every number, modulo 2^64."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & (2**37 - 1))) * -7723592293110705685
    return z ^ ((z >> 31) & (2**33 - 1))


def _hash_of_nearest(found: Candidates) -> Int64[Tensor, " rows"]:
    """A hash of the set of those that are nearest to each sample: of one, if no other is as near."""
    return (_mixed(found.whose + 1) * (found.groups == 0)).sum(1)


def equal(distances: Float64[Tensor, "rows some"], p: int) -> Bool[Tensor, "rows before"]:
    """Whether each distance is that of the next one, but for float64's rounding of p features."""
    larger = distances[:, 1:]
    eps = torch.finfo(torch.float64).eps
    tolerance = eps * (32 * (2 * larger).sqrt() + (8 * math.sqrt(p) + 32) * larger) + (32 * eps) ** 2
    return distances.diff(dim=1) <= tolerance


def _distances(x: Rows, whose: Int64[Tensor, "n k"]) -> Iterator[Float64[Tensor, "some k"]]:
    """1 - cosine with these samples, some rows after the other: half a squared distance, which cancels no digits."""
    n, k = whose.shape
    for i in cut(n, max(1, tuning.current().neighbour_gathered // (k * x.shape[1]))):
        others = x[whose[i].flatten().to(x.device)].unflatten(0, (-1, k))
        yield torch.linalg.vector_norm(others - x[i][:, None], dim=2).to(wide(x.device)).double().square() / 2


def distances_to(a: Neighbours, whose: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
    """1 - cosine of every sample of a layer with these others."""
    assert a.features is not None, "the recipe was asked for no features"
    return torch.cat(list(_distances(a.features, whose)))


def ranks_among(a: Neighbours, others: Sequence[Neighbours], k: int) -> list[Int64[Tensor, "n k"]]:
    """For several layers: the rank, from 1, that each neighbour of a sample has among those of a; 0 where it is none.

    A table of some samples by all samples holds the ranks; it is filled once for all the others, and only where a has
    neighbours, so that n k numbers are touched and not n^2.
    """
    n, place = a.n, a.indices.device
    table = torch.zeros(min(n, max(64, tuning.current().neighbour_ranks // n)), n, dtype=torch.int32, device=place)
    ranks = torch.arange(1, k + 1, dtype=table.dtype, device=place)
    found = [torch.empty(n, k, dtype=torch.int64, device=place) for _ in others]
    for i in cut(n, len(table)):
        own = a.indices[i, :k]
        part = table[: len(own)]
        part.scatter_(1, own, ranks.expand(own.shape))
        for other, into in zip(others, found, strict=True):
            into[i] = part.gather(1, other.indices[i, :k])
        part.scatter_(1, own, 0)
    return found


def shared_when_permuted(
    rows: Sequence[Neighbours],
    columns: Sequence[Neighbours],
    orders: Int64[Tensor, "count n"],
    k: int,
    step: Callable[[], None],
) -> Int64[Tensor, "count rows columns"]:
    """How many neighbours of all samples two layers share, of the first k, once the columns' samples are permuted.

    A table of some samples by all samples has a bit for each row layer: whether the one is a neighbour of the other. So
    one look-up, which stays in the cache, serves all of them; and nearly everywhere it finds 0, so that only some
    k^2 places a pair of layers and order are looked at. ``step`` is called once an order.
    """
    if len(columns) > len(rows):  # whose edges are looked up: the side that has fewer
        return shared_when_permuted(columns, rows, orders.argsort(1), k, step).mT
    n, device = rows[0].n, rows[0].indices.device
    edges = torch.cat([layer.indices[:, :k] for layer in columns], 1)
    found = torch.zeros(len(orders), len(columns), len(rows), dtype=torch.int64, device=device)
    side = min(n, max(64, tuning.current().neighbour_ranks // n))
    table = torch.zeros(side, n, dtype=torch.int32, device=device)
    starts = n * torch.arange(side, dtype=torch.int32, device=device)[:, None]
    for chunk in cut(len(orders), max(1, tuning.current().neighbour_ranks // (side * edges.shape[1]))):
        some = orders[chunk].to(device)
        places = some.argsort(1).to(torch.int32)
        for group in cut(len(rows), tuning.current().neighbour_bits):
            bits = torch.arange(group.stop - group.start, dtype=torch.int32, device=device)
            sums = found[chunk, :, group].flatten(0, 1)
            for i in cut(n, side):
                part, size = table[: i.stop - i.start], (i.stop - i.start) * edges.shape[1]
                own = [layer.indices[i, :k] for layer in rows[group]]
                for bit, whose in enumerate(own):
                    part.scatter_(1, whose, part.gather(1, whose) + (1 << bit))
                words = torch.empty(len(some), size, dtype=torch.int32, device=device)
                for place, order, into in zip(places, some[:, i], words, strict=True):
                    where = place.index_select(0, edges.index_select(0, order).flatten())
                    where.view(len(part), -1).add_(starts[: len(part)])
                    torch.index_select(part.view(-1), 0, where, out=into)
                there = words.view(-1).nonzero()[:, 0]
                pairs = there // size * len(columns) + there % edges.shape[1] // k
                sums.index_add_(0, pairs, (words.view(-1)[there, None] >> bits & 1).long())
                for whose in own:
                    part.scatter_(1, whose, 0)
            found[chunk, :, group] = sums.unflatten(0, (len(some), -1))
        for _ in range(len(some)):
            step()
    return found.mT


@dataclass(frozen=True, eq=False)
class EdgePairs:
    """sum P_e Q_f over the pairs (e, f) of edges of a neighbour graph, sample -> neighbour, by what the two share.

    Let two graphs have such sums, S and S', for P, Q and P', Q', and let the samples of one be permuted at random. Then
    sum P_e Q_f P'_e Q'_f over the pairs of edges that are in both is S S' / (ways to place such a pair) on average, as
    the moments of Mantel's statistic are found.
    """

    values: Float64[Tensor, "7"]
    """Both are one edge; one is the other, reversed; the same source; the same target; e ends where f starts; e starts
    where f ends; they have no sample in common."""

    def expected(self, other: "EdgePairs", n: int) -> Float64[Tensor, "7"]:
        """The means over permutations."""
        two, three, four = n * (n - 1.0), n * (n - 1.0) * (n - 2), n * (n - 1.0) * (n - 2) * (n - 3)
        ways = torch.tensor([two, two, three, three, three, three, four], dtype=torch.float64)
        return self.values.cpu() * other.values.cpu() / ways


def edge_pairs(a: Neighbours, k: int, P: Float64[Tensor, "n k"], Q: Float64[Tensor, "n k"]) -> EdgePairs:
    """The sums of `EdgePairs` for the graph of the first k neighbours: nothing in it takes more than n k steps."""
    targets, back = a.indices[:, :k], a.returned[:, :k]
    both = mutual(back, k)
    one, reverse = (P * Q).sum(), (both * P * Q[targets, (back - 1).clamp(0, k - 1)]).sum()
    leaving = P.sum(1), Q.sum(1)
    entering = tuple(W.new_zeros(a.n).index_add(0, targets.flatten(), W.flatten()) for W in (P, Q))
    source, target = leaving[0] @ leaving[1] - one, entering[0] @ entering[1] - one
    path, path_back = entering[0] @ leaving[1] - reverse, leaving[0] @ entering[1] - reverse
    joined = torch.stack([one, reverse, source, target, path, path_back])
    return EdgePairs(torch.cat([joined, (P.sum() * Q.sum() - joined.sum())[None]]))


def mutual(returned: Int64[Tensor, "n k"], k: int) -> Bool[Tensor, "n k"]:
    """Whether a sample is among the first k neighbours of its neighbour, too."""
    return (returned > 0) & (returned <= k)
