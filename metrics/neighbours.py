"""The nearest neighbours of every sample: found once a layer, by the cosine between samples, for a whole family."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics.gram import Reordered
from repsim.metrics.rows import Rows, by_pieces, column_means, cut, direction, in_memory, pieces, wide

T = TypeVar("T")
_SIDE = 2048
"""Samples of a tile's side: of the matrix of all similarities, this much is there at a time."""
_TABLE = 2**22
"""Similarities of some samples with all."""
_RANKS = 2**20
"""Ranks of some samples' neighbours, in a table of all samples: little enough for the cache."""
_BITS = 31
"""Layers whose neighbours are bits of one word."""
_GATHERED = 2**18
"""Values of features that are gathered at once: the same."""
_TIE = 8
"""Similarities that differ by so many rounding steps of 1 are equal: those of duplicates do, by how sums are cut."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k samples most similar to each sample, the nearest first, and how similar they are."""

    indices: Int64[Tensor, "n k"]
    similarities: Float64[Tensor, "n more"]
    """Cosines with the k neighbours, and with the one that comes next."""
    tie: float
    """Similarities no further apart than this are equal."""
    distances: Float64[Tensor, "n k"] | None = None
    """1 - cosine; and `features`: where somebody asked for them."""
    features: Rows | None = None
    """The samples, each divided by its norm: a tensor, or read from the store whenever they are asked for."""
    _found: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.indices, self.similarities, self.distances, self.features)
        return sum(t.nbytes for t in held if isinstance(t, Tensor))

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.indices)

    def permuted(self, order: Int64[Tensor, " n"]) -> "Neighbours":
        """Those of the same layer with its samples in another order: sample i is the one that was order[i].

        Nothing is found again: neighbours get the new numbers of who they are. Among equally near samples they stay
        whom the old order had put first; neighbours of the permuted layer itself would be those that are first in it.
        """
        order = order.to(self.indices.device)
        features, distances = self.features, self.distances
        if features is not None:
            there = order.to(features.device)
            features = in_memory(Reordered(features, there), made_of=features)
        return Neighbours(
            order.argsort()[self.indices[order]],
            self.similarities[order],
            self.tie,
            None if distances is None else distances[order],
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
            for i in cut(n, max(1, _GATHERED // k**2))
        ]
        return torch.cat(found)

    def chosen_by(self, k: int) -> Int64[Tensor, " n"]:
        """How many samples have each sample among their first k neighbours: hubs are chosen often."""
        return torch.bincount(self.indices[:, :k].flatten(), minlength=self.n)

    def undecided(self, k: int) -> int:
        """How many samples have a k-th neighbour that is no nearer than the next one."""
        return int((self.similarities[:, k - 1] - self.similarities[:, k] <= self.tie).sum())


@dataclass(frozen=True, eq=False)
class Directions:
    """Samples divided by their norms: computed in float64, then rounded to ``dtype``."""

    source: Rows
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """(n, p)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Of the source."""
        return self.source.device

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        return by_pieces(self, rows, lambda piece: direction(self.source[piece]).to(self.device, self.dtype))


@dataclass(frozen=True)
class NearestNeighbours:
    """The recipe of `Neighbours`: the k largest cosines of every sample, itself left out. Nothing is centred.

    Similarities are computed tile by tile, and each tile serves its rows and its columns; the matrix of all is never
    there. Equally similar samples are ordered by their index, and similarities are equal that differ by a few rounding
    steps, so that duplicates come in the same order wherever they are computed.

    ``features`` says whether the samples themselves, and the distances of neighbours, are wanted too.
    """

    k: int = 10
    features: bool = False

    def covers(self, other: object) -> bool:
        """Whether the factor has everything that the other recipe's has: fewer neighbours are the first of more."""
        return isinstance(other, NearestNeighbours) and self.k >= other.k and self.features >= other.features

    def takes(self, n: int, p: int, itemsize: int) -> tuple[float, float]:
        """Half of all cosines; and what the factor holds."""
        return 1.0 * n * n * p, n * (8.0 * (2 * self.k + 1) + (8.0 * self.k + p * itemsize if self.features else 0))

    def __call__(self, x: Rows) -> Neighbours:
        """Prepare one layer; by operations that autograd knows where x requires a gradient."""
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return self._with_gradient(x)
        return self.apply(x, self.fit(x))

    def fit(self, x: Rows) -> Neighbours:
        """Find the neighbours: all but the features."""
        n = x.shape[0]
        if n < self.k + 2:
            raise InvalidInputError(too_few(n, self.k))
        column_means(x)  # refuses what is constant
        if zeros := sum(int((x[i] == 0).all(1).sum()) for i in pieces(x)):
            raise UndefinedValueError(
                f"{zeros} of {n} samples are 0 in every feature: they have no direction, and so no nearest neighbours"
            )
        unit = self._unit(x)
        similarities, indices = _nearest(unit, self.k + 1)
        tie = _TIE * torch.finfo(unit.dtype).eps
        tied = torch.nonzero(similarities[:, -2] - similarities[:, -1] <= tie)[:, 0]
        for i in cut(len(tied), max(1, _TABLE // n)):
            rows = tied[i]
            similarities[rows], indices[rows] = _first_by_index(unit, rows, similarities[rows, -2], self.k + 1, tie)
        similarities, indices = _in_order(similarities.to(wide(x.device)), indices.to(wide(x.device)), n, tie)
        indices = indices[:, : self.k].contiguous()
        distances = torch.cat(list(_distances(unit, indices))) if self.features else None
        return Neighbours(indices, similarities.double(), tie, distances)

    def apply(self, x: Rows, state: Neighbours) -> Neighbours:
        """Add the features where they are wanted: in memory if x is, read from the store as they are needed if not."""
        return dataclasses.replace(state, features=self._unit(x)) if self.features else state

    def _unit(self, x: Rows) -> Rows:
        return in_memory(Directions(x, torch.promote_types(x.dtype, torch.float32)), made_of=x)

    def _with_gradient(self, x: Float[Tensor, "n p"]) -> Neighbours:
        """The neighbours that there are, and similarities as functions of x."""
        found, unit = self.fit(x.detach()), direction(x)
        near = torch.cat(list(_distances(unit, found.indices)))
        similarities = torch.cat([1 - near, found.similarities[:, -1:]], 1)
        return dataclasses.replace(found, similarities=similarities, distances=near, features=unit)


def too_few(n: int, k: int) -> str:
    """Say what could be done."""
    return (
        f"{n} samples are too few for {k} neighbours each: it takes {max(k + 2, 4)}, or all have the same neighbours; "
        f"ask for fewer, as in mutual_knn:k={max(1, n // 5)}, or for a measure that needs none, like cka"
    )


def _nearest(x: Rows, count: int) -> tuple[Float[Tensor, "n count"], Int64[Tensor, "n count"]]:
    """The largest cosines of every sample with others, and whose they are; equal ones in any order."""
    n = x.shape[0]
    best = torch.full((n, count), -torch.inf, dtype=x.dtype, device=x.device)
    whose = torch.zeros(n, count, dtype=torch.int64, device=x.device)

    def enter(i: slice, j: slice, tile: Tensor) -> None:
        values, at = tile.topk(min(count, tile.shape[1]), dim=1, sorted=False)
        best[i], order = torch.cat([best[i], values], 1).topk(count, dim=1)
        whose[i] = torch.cat([whose[i], at + j.start], 1).gather(1, order)

    panels = list(cut(n, _SIDE))
    for number, i in enumerate(panels):
        left = x[i]
        enter(i, i, (left @ left.T).fill_diagonal_(-torch.inf))
        for j in panels[number + 1 :]:
            tile = left @ x[j].T
            enter(i, j, tile)
            enter(j, i, tile.T.contiguous())
    return best, whose


def _first_by_index(
    x: Rows, rows: Int64[Tensor, " rows"], last: Float[Tensor, " rows"], count: int, tie: float
) -> tuple[Float[Tensor, "rows count"], Int64[Tensor, "rows count"]]:
    """Of samples whose ``last`` similarity is that of several others: all that are larger, and the first of these.

    Similarities are computed again, which may round otherwise, so that there may be fewer within ``tie`` than were
    found before: the next largest then fill up.
    """
    own, n = x[rows], x.shape[0]
    table = torch.cat([own @ x[j].T for j in cut(n, _SIDE)], 1)
    table.scatter_(1, rows[:, None], -torch.inf)
    cosines, last = (t.to(wide(x.device)).double() for t in (table, last[:, None]))
    by_index = 3 - torch.arange(n, dtype=torch.float64, device=cosines.device) / n  # larger than any cosine
    order = torch.where((cosines - last).abs() <= tie, by_index, cosines + 6 * (cosines > last + tie))
    whose = order.topk(count, dim=1).indices.to(table.device)
    return table.gather(1, whose), whose


def _in_order(
    values: Float[Tensor, "n count"], whose: Int64[Tensor, "n count"], n: int, tie: float
) -> tuple[Float[Tensor, "n count"], Int64[Tensor, "n count"]]:
    """The largest first; equal ones, and such as are joined by equal ones, by index."""
    values, order = values.sort(dim=1, descending=True)
    whose = whose.gather(1, order)
    steps = (values[:, :-1] - values[:, 1:] > tie).cumsum(1)
    order = (torch.nn.functional.pad(steps, (1, 0)) * n + whose).argsort(1)
    return values.gather(1, order), whose.gather(1, order)


def _distances(x: Rows, whose: Int64[Tensor, "n k"]) -> Iterator[Float64[Tensor, "some k"]]:
    """1 - cosine with these samples, some rows after the other: half a squared distance, which cancels no digits."""
    n, k = whose.shape
    for i in cut(n, max(1, _GATHERED // (k * x.shape[1]))):
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
    table = torch.zeros(min(n, max(64, _RANKS // n)), n, dtype=torch.int32, device=place)
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
    side = min(n, max(64, _RANKS // n))
    table = torch.zeros(side, n, dtype=torch.int32, device=device)
    starts = n * torch.arange(side, dtype=torch.int32, device=device)[:, None]
    for chunk in cut(len(orders), max(1, _RANKS // (side * edges.shape[1]))):
        some = orders[chunk].to(device)
        places = some.argsort(1).to(torch.int32)
        for group in cut(len(rows), _BITS):
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
