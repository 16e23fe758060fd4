"""Recipe of the nearest neighbours of every sample, by the cosine between samples."""

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
from repsim.metrics.recipes.rows import Rows, by_pieces, column_means, cut, direction, float64_device, in_memory, pieces
from repsim.runtime import tuning
from repsim.runtime.progress import report_share

T = TypeVar("T")
_ROUNDINGS = 8
"""Rounding steps of 1 that multiplying and adding similarities may lose."""
_SPARE = 6
"""Candidates beyond the wanted ones: the next one bounds the distances of all samples that are no candidates."""
_SPARE_FLOAT64 = 64
"""The same for float64, if float32 cannot decide: samples that so many candidates do not separate are equally near."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k most similar samples to each sample, the nearest first, and their distances."""

    indices: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n more"]
    """1 - cosine with the k neighbours, and with the next sample after them."""
    ties: Bool[Tensor, "n k"]
    """Whether the next sample is equally near; then their order is random."""
    rounding: float
    """Upper bound of the rounding error of a similarity."""
    features: Rows | None = None
    """Samples divided by their norms, minus the mean of all, which keeps distances and their digits. A
    tensor, or rows that are read from the store on demand; None if the recipe does not keep them."""
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

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
        """Cosines with the k neighbours, and with the next sample after them."""
        return 1 - self.distances

    def permuted(self, order: Int64[Tensor, " n"]) -> "Neighbours":
        """Return the neighbours of the same layer with its samples in another order: sample i is sample order[i] of
        this one.

        The search does not run again; the indices of the neighbours are renumbered. Ties keep their order; preparing
        the permuted layer anew would draw another order.
        """
        order = order.to(self.indices.device)
        features = self.features
        if features is not None:
            feature_order = order.to(features.device)
            features = in_memory(Reordered(features, feature_order), source=features)
        return Neighbours(
            order.argsort()[self.indices[order]],
            self.distances[order],
            self.ties[order],
            self.rounding,
            features,
            self._cache,  # its values do not depend on the order of the samples
        )

    def once(self, compute: Callable[["Neighbours", int], T], k: int) -> T:
        """Return ``compute(self, k)``, cached for all pairs; it must not depend on the order of the samples."""
        if (compute, k) not in self._cache:
            self._cache[compute, k] = compute(self, k)
        return self._cache[compute, k]  # type: ignore[no-any-return]

    @functools.cached_property
    def reverse_ranks(self) -> Int64[Tensor, "n k"]:
        """Rank of a sample, from 1, among the neighbours of each of its neighbours; 0 if it is not one of them."""
        n, k = self.indices.shape
        ranks = torch.arange(1, k + 1, device=self.indices.device)
        own = torch.arange(n, device=self.indices.device)
        runs = [
            ((self.indices[self.indices[i]] == own[i, None, None]) * ranks).sum(2)
            for i in cut(n, max(1, _gathered(self.indices.device) // k**2))
        ]
        return torch.cat(runs)

    def in_degrees(self, k: int) -> Int64[Tensor, " n"]:
        """Return how many samples have each sample among their first k neighbours; hubs have a large number."""
        return torch.bincount(self.indices[:, :k].flatten(), minlength=self.n)

    def undecided(self, k: int) -> int:
        """Return how many samples have a k-th neighbour that is no nearer than the next one."""
        return int(self.ties[:, k - 1].sum())


@dataclass(frozen=True, eq=False)
class Directions:
    """Samples divided by their norms, minus ``centre``: computed in float64, then rounded to ``dtype``."""

    source: Rows
    centre: Float64[Tensor, " p"]
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, p)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows p"]:
        """Return rows in float64, before rounding."""
        return direction(self.source[rows]) - self.centre

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        return by_pieces(self, rows, lambda piece: self.exact(piece).to(self.device, self.dtype))


@dataclass(frozen=True)
class NearestNeighbours(StreamingRecipe[Neighbours]):
    """Recipe of `Neighbours`: the k largest cosines of every sample with others.

    Cosines are ordered as in float64, for any dtype of the layer. With u_i = x_i / ||x_i||, their mean m and
    v_i = u_i - m, the order is that of the distances ||v_i - v_j||^2 = 2 - 2 cos(x_i, x_j), which do not depend on the
    mean. Distances are computed tile by tile in the dtype of the layer, where each tile serves its rows and its
    columns, and their rounding errors are bounded (Higham & Mary 2019). Distances that differ by less than the bound
    are computed again, from differences, in float64.

    Distances that are equal up to float64 rounding are ordered at random: by a hash of the indices of both samples and
    of the nearest neighbours in this layer. So the order is the same whenever the layer is prepared, also rotated or
    scaled, and for any k, but it differs between layers: two layers do not share neighbours because of the order of
    samples.

    ``features`` keeps the samples themselves, too.

    References
    ----------
    Higham, Mary. A new approach to probabilistic rounding error analysis. SIAM J. Sci. Comput. 2019.
    """

    k: int = 10
    features: bool = False

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """Return whether the other recipe needs at most as many neighbours, which are the first of these."""
        return isinstance(other, NearestNeighbours) and self.k >= other.k and self.features >= other.features

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of all cosines, of the selection of the largest, and of distances computed again."""
        n, p = layer.n, layer.p
        side = tuning.current().neighbour_side
        products = Cost.of_products(1.0 * n * (n + min(n, side)) * p, layer.itemsize)
        exact = self.k if self.features else 0  # distances to the neighbours, in float64
        return products + Cost(touched=5.5 * n * n + (8.0 + exact) * n * p, calls=300)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of indices, distances and ties of the neighbours, and of the samples if they are kept."""
        return Memory(layer.n * (17 * self.k + 8 + (layer.p * layer.itemsize if self.features else 0)))

    def __call__(self, x: Rows) -> Neighbours:
        """Prepare one layer, with a gradient if x requires one."""
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return self._with_gradient(x)
        state, v = self._fit(x)
        return dataclasses.replace(state, features=v) if self.features else state

    def fit(self, x: Rows) -> Neighbours:
        """Find the neighbours, without the features."""
        return self._fit(x)[0]

    def apply(self, x: Rows, state: Neighbours) -> Neighbours:
        """Add the features if they are wanted: in memory if x is; otherwise read from the store on demand."""
        return dataclasses.replace(state, features=self._centred(x)[1]) if self.features else state

    def _fit(self, x: Rows) -> tuple[Neighbours, Rows]:
        """Find the neighbours, and return them with the features."""
        n = x.shape[0]
        if n < self.k + 2:
            raise InvalidInputError(too_few_samples(n, self.k))
        column_means(x)  # raises for a constant layer
        if zeros := int(sum((x[i] == 0).all(1).sum() for i in pieces(x))):
            raise UndefinedValueError(
                f"{zeros} of {n} samples are 0 in every feature: they have no direction, and so no nearest neighbours"
            )
        directions, v = self._centred(x)
        indices, distances, ties = Search(directions, v, self.k + 1).run()
        if self.features:  # all distances to full precision, not only close ones
            distances = torch.cat(list(_distances(v, indices)))
        rounding = _ROUNDINGS * torch.finfo(v.dtype).eps
        return Neighbours(indices[:, : self.k].contiguous(), distances, ties, rounding), v

    @staticmethod
    def _centred(x: Rows) -> tuple[Directions, Rows]:
        """Return the directions minus their mean, exact and rounded; the rounded ones in memory if x is."""
        place = float64_device(x.device)
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=place)
        for i in pieces(x):
            total += direction(x[i]).sum(0)
        directions = Directions(x, total / x.shape[0], torch.promote_types(x.dtype, torch.float32))
        return directions, in_memory(directions, source=x)

    def _with_gradient(self, x: Float[Tensor, "n p"]) -> Neighbours:
        """Prepare one layer with fixed neighbours, and distances that have a gradient."""
        state, unit = self.fit(x.detach()), direction(x)
        near = torch.cat(list(_distances(unit, state.indices)))
        return dataclasses.replace(state, distances=torch.cat([near, state.distances[:, -1:]], 1), features=unit)


def _gathered(device: torch.device) -> int:
    """Return the number of feature values that are gathered at once."""
    return tuning.values_at_once(tuning.current().neighbour_gathered, device.type)


def _ranks(device: torch.device) -> int:
    """Return the number of neighbour ranks in a table of some samples by all."""
    return tuning.values_at_once(tuning.current().neighbour_ranks, device.type)


def too_few_samples(n: int, k: int) -> str:
    """Return the error message for n samples that are too few for k neighbours."""
    return (
        f"{n} samples are too few for {k} neighbours each: at least {max(k + 2, 4)} are needed; use fewer neighbours, "
        f"as in mutual_knn:k={max(1, n // 5)}, or a measure without neighbours, like cka"
    )


@dataclass(frozen=True, eq=False)
class Search:
    """Search for the ``count`` nearest samples to each sample: see `NearestNeighbours`.

    For a fixed i the distance d_ij = ||v_i - v_j||^2 / 2 falls as the score v_i'v_j - ||v_j||^2 / 2 grows, and a tile
    of scores is one matrix product.
    """

    directions: Directions
    rounded: Rows
    """Directions in the dtype of tiles."""
    count: int

    @property
    def n(self) -> int:
        """Samples."""
        return self.rounded.shape[0]

    @functools.cached_property
    def halves(self) -> Float64[Tensor, " n"]:
        """||v_j||^2 / 2 of the rounded directions."""
        place = float64_device(self.rounded.device)
        norms = [
            torch.linalg.vector_norm(self.rounded[i].to(place, torch.float64), dim=1) for i in pieces(self.rounded)
        ]
        return torch.cat(norms).square() / 2

    @functools.cached_property
    def exact_halves(self) -> Float64[Tensor, " n"]:
        """||v_j||^2 / 2 of the exact directions."""
        return torch.cat([self.directions.exact(i).square().sum(1) / 2 for i in pieces(self.rounded)])

    def run(self) -> tuple[Int64[Tensor, "n count"], Float64[Tensor, "n count"], Bool[Tensor, "n before"]]:
        """Return the neighbours, their distances, and whether each of them but the last is as near as the next one."""
        n, count, place = self.n, self.count, self.halves.device
        scores, best = self._largest_scores(min(n - 1, count + _SPARE))
        eps = torch.finfo(scores.dtype).eps
        samples = torch.arange(n, device=place)
        first = self._sorted(samples, best.to(place), self.halves[:, None] - scores.to(place).double(), eps)
        lists, undecided, chunk = [first], [], max(1, tuning.current().neighbour_table // n)
        open_rows = first.open.nonzero()[:, 0]
        for i in cut(len(open_rows), chunk):
            rows = open_rows[i]
            near, nearest = self._table(rows).topk(min(n - 1, count + _SPARE_FLOAT64), dim=1, largest=False)
            lists.append(self._sorted(rows, nearest, near, torch.finfo(torch.float64).eps))
            undecided.append(rows[lists[-1].open])
        hashes = torch.empty(n, dtype=torch.int64, device=place)
        for candidates in lists:
            hashes[candidates.rows] = _hash_of_nearest(candidates)
        rest = torch.cat(undecided) if undecided else open_rows
        for i in cut(len(rest), chunk):
            hashes[rest[i]] = _hash_of_nearest(self._all_candidates(rest[i]))
        seed = int(_mixed(hashes + torch.arange(n, device=place) * _GOLDEN).sum())
        indices = torch.empty(n, count, dtype=torch.int64, device=place)
        distances = torch.empty(n, count, dtype=torch.float64, device=place)
        ties = torch.empty(n, count - 1, dtype=torch.bool, device=place)
        remaining = (self._all_candidates(rest[i]) for i in cut(len(rest), chunk))
        for candidates in itertools.chain(lists, remaining):
            rows = candidates.rows
            indices[rows], distances[rows], ties[rows] = candidates.drawn(seed, n, count)
        return indices, distances, ties

    def _bound(self, rows: Int64[Tensor, " rows"], eps: float) -> Float64[Tensor, " rows"]:
        """Return an upper bound of the error of distances that are computed from scores in a dtype of this ``eps``.

        A sum of p products, in any order, has an error below g eps / 2 ||v_i|| ||v_j||: always for g = p, and for
        g = 8 sqrt(p) except with a probability of 2 p exp(-32) (Higham & Mary 2019, theorem 3.1). The rounding of v,
        halves and scores adds the other terms; directions themselves have the rounding errors of float64.
        """
        p = self.rounded.shape[1]
        norms = (2 * self.halves).sqrt()
        largest, norms = norms.max(), norms[rows]
        product_error = (min(p, 8 * math.sqrt(p)) + 6) * norms * largest + 2 * largest.square()
        return eps / 2 * product_error + 2.0**-50 * (norms + largest) + 2.0**-100

    def _largest_scores(self, count: int) -> tuple[Float[Tensor, "n count"], Int64[Tensor, "n count"]]:
        """Return the largest scores of every sample, and the indices of the samples; equal scores in any order."""
        v = self.rounded
        best = torch.full((self.n, count), -torch.inf, dtype=v.dtype, device=v.device)
        indices = torch.zeros(self.n, count, dtype=torch.int64, device=v.device)
        halves = self.halves.to(v.device, v.dtype)

        def enter(i: slice, j: slice, tile: Tensor) -> None:
            values, at = tile.topk(min(count, tile.shape[1]), dim=1, sorted=False)
            best[i], order = torch.cat([best[i], values], 1).topk(count, dim=1)
            indices[i] = torch.cat([indices[i], at + j.start], 1).gather(1, order)

        panels = list(cut(self.n, tuning.current().neighbour_side))
        for number, i in enumerate(panels):
            report_share(number * (2 * len(panels) - number), len(panels) ** 2)  # of the triangle of tiles
            left = v[i]
            enter(i, i, (left @ left.T).sub_(halves[i]).fill_diagonal_(-torch.inf))
            for j in panels[number + 1 :]:
                tile = left @ v[j].T
                enter(j, i, (tile - halves[i, None]).T.contiguous())
                enter(i, j, tile.sub_(halves[j]))
        return best, indices

    def _table(self, rows: Int64[Tensor, " rows"]) -> Float64[Tensor, "rows n"]:
        """Return the distances between some samples and all, from products in float64; infinite from themselves."""
        own, halves = self.directions.exact(rows), self.exact_halves
        products = torch.cat([own @ self.directions.exact(j).T for j in pieces(self.rounded)], 1)
        return products.neg_().add_(halves).add_(halves[rows, None]).scatter_(1, rows[:, None], torch.inf)

    def _exact(self, i: Int64[Tensor, " pairs"], j: Int64[Tensor, " pairs"]) -> Float64[Tensor, " pairs"]:
        """Return the distances of these pairs in float64, from differences, which do not cancel."""
        distances = [
            (self.directions.exact(i[pairs]) - self.directions.exact(j[pairs])).square().sum(1) / 2
            for pairs in cut(len(i), max(1, _gathered(i.device) // self.rounded.shape[1]))
        ]
        return torch.cat(distances) if distances else i.double()

    def _sorted(
        self,
        rows: Int64[Tensor, " rows"],
        indices: Int64[Tensor, "rows candidates"],
        distances: Float64[Tensor, "rows candidates"],
        eps: float,
    ) -> "Candidates":
        """Sort candidates; distances that differ by less than rounding errors are computed again in float64.

        Rows are open if the last wanted candidate and all after it are so close: other samples may be equally near.
        """
        count, p = self.count, self.rounded.shape[1]
        distances, order = distances.sort(dim=1)
        indices = indices.gather(1, order)
        close = distances.diff(dim=1) <= 2 * self._bound(rows, eps)[:, None]
        run = close[:, count - 1 :].cummin(1).values  # the run of close candidates from the last wanted one on
        close = torch.cat([close[:, : count - 1], run], 1)
        is_open = run.all(1) if indices.shape[1] < self.n - 1 else torch.zeros_like(rows, dtype=torch.bool)
        edge = torch.zeros_like(close[:, :1])
        recompute = (torch.cat([close, edge], 1) | torch.cat([edge, close], 1)) & ~is_open[:, None]
        i, at = recompute.nonzero(as_tuple=True)
        distances[i, at] = self._exact(rows[i], indices[i, at])
        distances, order = distances.sort(dim=1)
        return Candidates(rows, indices.gather(1, order), distances, equal(distances, p), is_open)

    def _all_candidates(self, rows: Int64[Tensor, " rows"]) -> "Candidates":
        """Return all samples as candidates, for samples with too many equally near ones in float64."""
        distances, indices = self._table(rows).sort(dim=1)
        close = distances[:, :-1].diff(dim=1) <= 2 * self._bound(rows, torch.finfo(torch.float64).eps)[:, None]
        indices, distances = indices[:, :-1], distances[:, :-1].clamp(min=0)  # the last one is the sample itself
        return Candidates(rows, indices, distances, close, torch.zeros_like(rows, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Samples that may be the nearest to ``rows``, sorted by distance."""

    rows: Int64[Tensor, " rows"]
    indices: Int64[Tensor, "rows candidates"]
    distances: Float64[Tensor, "rows candidates"]
    ties: Bool[Tensor, "rows before"]
    """Whether each of them but the last is as near as the next one."""
    open: Bool[Tensor, " rows"]
    """Whether other samples may be as near as the candidates."""

    @property
    def groups(self) -> Int64[Tensor, "rows candidates"]:
        """Number, from 0, of the group of equal distances that each candidate is in."""
        return torch.nn.functional.pad((~self.ties).cumsum(1), (1, 0))

    def drawn(self, seed: int, n: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first ``count`` candidates, their distances, and ties, with equal distances in random order."""
        order = _mixed(seed + _GOLDEN * (self.rows[:, None] * n + self.indices)).argsort(1)
        order = order.gather(1, self.groups.gather(1, order).argsort(dim=1, stable=True))[:, :count]
        return self.indices.gather(1, order), self.distances[:, :count], self.ties[:, : count - 1]


_GOLDEN = -7046029254386353131
"""2^64 / golden ratio: the step of SplitMix64 (Steele, Lea, Flood 2014), which mixes numbers into a hash."""


def _mixed(z: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """Return the SplitMix64 hash of every number, modulo 2^64."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & (2**37 - 1))) * -7723592293110705685
    return z ^ ((z >> 31) & (2**33 - 1))


def _hash_of_nearest(candidates: Candidates) -> Int64[Tensor, " rows"]:
    """Return a hash of the set of nearest samples to each sample; one sample, unless others are equally near."""
    return (_mixed(candidates.indices + 1) * (candidates.groups == 0)).sum(1)


def equal(distances: Float64[Tensor, "rows candidates"], p: int) -> Bool[Tensor, "rows before"]:
    """Return whether each distance equals the next one, up to float64 rounding of p features."""
    larger = distances[:, 1:]
    eps = torch.finfo(torch.float64).eps
    tolerance = eps * (32 * (2 * larger).sqrt() + (8 * math.sqrt(p) + 32) * larger) + (32 * eps) ** 2
    return distances.diff(dim=1) <= tolerance


def _distances(x: Rows, whose: Int64[Tensor, "n k"]) -> Iterator[Float64[Tensor, "some k"]]:
    """Yield 1 - cosine with these samples, for runs of rows, as half a squared distance, which does not cancel."""
    n, k = whose.shape
    for i in cut(n, max(1, _gathered(x.device) // (k * x.shape[1]))):
        others = x[whose[i].flatten().to(x.device)].unflatten(0, (-1, k))
        yield torch.linalg.vector_norm(others - x[i][:, None], dim=2).to(float64_device(x.device)).double().square() / 2


def distances_to(a: Neighbours, whose: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
    """Return 1 - cosine of every sample of a layer with these samples."""
    assert a.features is not None, "the recipe kept no features"
    return torch.cat(list(_distances(a.features, whose)))


def ranks_among(a: Neighbours, others: Sequence[Neighbours], k: int) -> list[Int64[Tensor, "n k"]]:
    """Return, for several layers, the rank (from 1) of each neighbour among the neighbours in a; 0 if it is not one.

    A table of some samples by all samples holds the ranks. It is filled once for all other layers, and only where a has
    neighbours, so n k entries are written, and not n^2.
    """
    n, place = a.n, a.indices.device
    table = torch.zeros(min(n, max(64, _ranks(place) // n)), n, dtype=torch.int32, device=place)
    ranks = torch.arange(1, k + 1, dtype=table.dtype, device=place)
    ranks_of_others = [torch.empty(n, k, dtype=torch.int64, device=place) for _ in others]
    for i in cut(n, len(table)):
        own = a.indices[i, :k]
        part = table[: len(own)]
        part.scatter_(1, own, ranks.expand(own.shape))
        for other, into in zip(others, ranks_of_others, strict=True):
            into[i] = part.gather(1, other.indices[i, :k])
        part.scatter_(1, own, 0)
    return ranks_of_others


def shared_when_permuted(
    rows: Sequence[Neighbours],
    columns: Sequence[Neighbours],
    orders: Int64[Tensor, "count n"],
    k: int,
    step: Callable[[], None],
) -> Int64[Tensor, "count rows columns"]:
    """Return the number of shared neighbours over all samples, of the first k, with the samples of the columns
    permuted.

    A table of some samples by all samples has one bit per row layer: whether one sample is a neighbour of the other.
    So one look-up, which stays in the cache, serves all row layers. Most entries are 0, so only about k^2 places per
    pair of layers and order are examined. ``step`` is called once per order.
    """
    if len(columns) > len(rows):  # look up the edges of the side with fewer layers
        return shared_when_permuted(columns, rows, orders.argsort(1), k, step).mT
    n, device = rows[0].n, rows[0].indices.device
    edges = torch.cat([layer.indices[:, :k] for layer in columns], 1)
    shared = torch.zeros(len(orders), len(columns), len(rows), dtype=torch.int64, device=device)
    side = min(n, max(64, _ranks(device) // n))
    table = torch.zeros(side, n, dtype=torch.int32, device=device)
    starts = n * torch.arange(side, dtype=torch.int32, device=device)[:, None]
    for chunk in cut(len(orders), max(1, _ranks(device) // (side * edges.shape[1]))):
        chunk_orders = orders[chunk].to(device)
        places = chunk_orders.argsort(1).to(torch.int32)
        for group in cut(len(rows), tuning.current().neighbour_bits):
            bits = torch.arange(group.stop - group.start, dtype=torch.int32, device=device)
            sums = shared[chunk, :, group].flatten(0, 1)
            for i in cut(n, side):
                part, size = table[: i.stop - i.start], (i.stop - i.start) * edges.shape[1]
                own = [layer.indices[i, :k] for layer in rows[group]]
                for bit, neighbours in enumerate(own):
                    part.scatter_(1, neighbours, part.gather(1, neighbours) + (1 << bit))
                words = torch.empty(len(chunk_orders), size, dtype=torch.int32, device=device)
                for place, order, into in zip(places, chunk_orders[:, i], words, strict=True):
                    entries = place.index_select(0, edges.index_select(0, order).flatten())
                    entries.view(len(part), -1).add_(starts[: len(part)])
                    torch.index_select(part.view(-1), 0, entries, out=into)
                nonzero = words.view(-1).nonzero()[:, 0]
                pairs = nonzero // size * len(columns) + nonzero % edges.shape[1] // k
                sums.index_add_(0, pairs, (words.view(-1)[nonzero, None] >> bits & 1).long())
                for neighbours in own:
                    part.scatter_(1, neighbours, 0)
            shared[chunk, :, group] = sums.unflatten(0, (len(chunk_orders), -1))
        for _ in range(len(chunk_orders)):
            step()
    return shared.mT


@dataclass(frozen=True, eq=False)
class EdgePairs:
    """Sums P_e Q_f over the pairs (e, f) of edges of a neighbour graph, sample -> neighbour, by what the two share.

    Let two graphs have such sums, S and S', for P, Q and P', Q', and let the samples of one be permuted at random. Then
    the mean of sum P_e Q_f P'_e Q'_f over the pairs of edges that are in both graphs is S S' / (number of ways to place
    such a pair), as for the moments of Mantel's statistic.
    """

    values: Float64[Tensor, "7"]
    """Both are the same edge; one is the other, reversed; the same source; the same target; e ends where f starts; e
    starts where f ends; they have no sample in common. On the CPU."""

    def expected(self, other: "EdgePairs", n: int) -> Float64[Tensor, "7"]:
        """Return the means over permutations."""
        two, three, four = n * (n - 1.0), n * (n - 1.0) * (n - 2), n * (n - 1.0) * (n - 2) * (n - 3)
        ways = torch.tensor([two, two, three, three, three, three, four], dtype=torch.float64)
        return self.values * other.values / ways


def edge_pairs(a: Neighbours, k: int, P: Float64[Tensor, "n k"], Q: Float64[Tensor, "n k"]) -> EdgePairs:
    """Return the sums of `EdgePairs` for the graph of the first k neighbours, in about n k operations."""
    targets, back = a.indices[:, :k], a.reverse_ranks[:, :k]
    both = mutual(back, k)
    one, reverse = (P * Q).sum(), (both * P * Q[targets, (back - 1).clamp(0, k - 1)]).sum()
    leaving = P.sum(1), Q.sum(1)
    entering = tuple(W.new_zeros(a.n).index_add(0, targets.flatten(), W.flatten()) for W in (P, Q))
    source, target = leaving[0] @ leaving[1] - one, entering[0] @ entering[1] - one
    path, path_back = entering[0] @ leaving[1] - reverse, leaving[0] @ entering[1] - reverse
    joined = torch.stack([one, reverse, source, target, path, path_back])
    return EdgePairs(torch.cat([joined, (P.sum() * Q.sum() - joined.sum())[None]]).cpu())


def mutual(reverse_ranks: Int64[Tensor, "n k"], k: int) -> Bool[Tensor, "n k"]:
    """Return whether a sample is also among the first k neighbours of its neighbour."""
    return (reverse_ranks > 0) & (reverse_ranks <= k)
