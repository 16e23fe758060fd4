"""Find near duplicates among the samples of a study: pictures that are not independent, but are not declared as groups.

Frames of a scene, copies and crops raise every similarity, and make every interval too short.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from repsim.labels import TOKENS, SampleIds
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut, map_pieces
from repsim.runtime.progress import Progress, counter
from repsim.study.design import Design, Member
from repsim.study.formatting import listed

FALSE_ALARMS = 0.01
"""Nominal probability of a false alarm if all samples are independent. In simulations it was at most 0.01, but 0.06 for
one layer of t3 samples in two dimensions, whose density is not even at the distance of neighbours."""
_NEIGHBOURS = 100
"""Largest number of nearest neighbours that are examined: larger groups are not found."""
_NETWORKS, _LAYERS = 6, 3
"""Number of trained networks that are examined, and of layers of each."""
_LARGEST = 2**28
"""Values of the largest layer that is examined."""
_ROUNDING = 1e-6
"""Distances below this share of the root mean square are equal."""
_NEAR = 0.05
"""Squared distances below this share of the sum of both squared norms are computed from differences."""
_DISTANCES, _DIFFERENCES = 2**22, 2**20
"""Distances, and values of differences, that are in memory at once, in each thread."""


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of samples that are far more alike than the other samples, and what follows."""

    ids: SampleIds
    pairs: tuple[tuple[int, int], ...]
    """Positions of the samples of each pair."""
    exact: int
    """Number of samples that equal an earlier one in every pixel, or else every token, or else in the first layer."""
    covered: bool
    """Whether the two samples of every pair are in one of the groups that are declared already."""

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Ids of the samples of each pair."""
        return tuple((self.ids.ids[a], self.ids.ids[b]) for a, b in self.pairs)

    @property
    def groups(self) -> Groups:
        """Groups that these pairs propose: samples that are connected by pairs."""
        parents = list(range(len(self.ids)))

        def root(k: int) -> int:
            while parents[k] != k:
                parents[k] = parents[parents[k]]
                k = parents[k]
            return k

        for a, b in self.pairs:
            parents[max(root(a), root(b))] = min(root(a), root(b))
        return Groups.of([root(k) for k in range(len(parents))])

    @property
    def caution(self) -> str | None:
        """Sentence for the warnings of a study; None if there is nothing to report, or declared groups cover it."""
        if not self.pairs or self.covered:
            return None
        sizes = self.groups.sizes[self.groups.sizes > 1]
        pairs = [f"{a} = {b}" for a, b in self.names]
        copies = f", {self.exact} of them the same as an earlier one" if self.exact else ""
        return (
            f"{int(sizes.sum())} samples are nearly the same as others{copies}, in {len(sizes)} "
            f"group{'s' * (len(sizes) > 1)} ({listed(pairs)}): they raise every similarity and are not independent; "
            "declare them as groups, or leave out all but one of each group"
        )


def near_duplicates(design: Design, device: str = "cpu", progress: Progress | None = None) -> NearDuplicates:
    """Find pairs of samples that are alike far beyond what is usual for these samples.

    **One representation.** Let d_1 <= d_2 <= ... be the distances of a sample to its nearest neighbours. Where samples
    are independent, and their density is even at this distance, l log(d_{l+1} / d_l) are independent exponential
    variables with the mean 1/D, for the local dimension D (Renyi; Levina & Bickel 2004). A group of k + 1 near
    duplicates leaves a gap behind the k-th neighbour. Its ratio to the mean of the other m spacings has P(ratio > t) =
    (1 + t / m)^-m, which is multiplied by k (k + 1), as any k may have the gap; the smallest product selects the k
    neighbours. A pair is alike if each sample is among the selected neighbours of the other, and if their distance is
    below the median distance across the gaps, as two outliers may be apart from all others without being near. Its
    p-value is the larger of those of its samples. Scale and dimension of the representation do not matter.

    **Classes.** Trained networks bring the samples of a class together, to nearly one point at their end, and these
    samples are not near duplicates. Where there are class labels, the neighbours of a sample are therefore examined up
    to the median one of its class only: it has to stand out from the samples of its class. Nor does a sample count that
    fewer than half of its selected neighbours select, as one that lies among those of another class.

    **A study.** Pixels are one representation. The layers of a network count together, by their largest p-value, at
    three depths: classes are clusters in late layers only. Networks count by twice their median p-value, which is valid
    however they depend on one another. The smaller of the p-values of pixels and networks, doubled, is compared by the
    procedure of Benjamini and Hochberg over samples, at 0.01: if all samples are independent, this is the probability
    that any pair is reported. Samples with equal pixels or equal tokens are always reported. The narrowest layer of
    each network is examined first: if no pair is significant then, none is with further layers, which are not read.

    **Limits.** A group of more than 100 samples, or a quarter of all, is not found. With class labels, a group that is
    half of its class is not, unless its samples are equal, and a class of which half is misclassified may raise a false
    alarm. Nor are pairs found that are only somewhat more alike than neighbours are in this number of samples and
    dimensions, or that only one network of several sees; of a group that is found, a few samples may be missed. Without
    labels, classes that are tight at every depth are groups. What is not found may still depend: groups that are known
    should be declared.

    Parameters
    ----------
    design
        The models of the study; trained networks and their pixels are examined.
    device
        Device on which distances are computed.
    progress
        Called with the number of representations that are examined, and of all.

    References
    ----------
    Levina, Bickel. Maximum likelihood estimation of intrinsic dimension. NIPS 2004.
    Benjamini, Hochberg. Controlling the false discovery rate. JRSS B 1995.
    """
    pixels = pixels_of(design)
    first = design.trained[0]
    tokens = next((ids for member in design.trained if (ids := member.store.control(*TOKENS)) is not None), None)
    seen = next(values for values in (pixels, tokens, first.store[first.arrays[0]]) if values is not None)
    exact = _equal(np.asarray(seen[:]))
    labels = next((member.store.labels for member in design.members if member.store.labels is not None), None)
    numbers = None if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    networks = _networks(design)
    step = counter(len(networks) * _LAYERS + 1, progress)

    def examined(array: Any) -> PairValues:
        values = pair_values(torch.from_numpy(np.asarray(array[:])).flatten(1), device, numbers)
        step()
        return values

    of_pixels = [] if pixels is None else [examined(pixels)]
    of_networks: dict[int, PairValues] = {}
    alike = select(_smallest(of_pixels), design.n)
    for layers in zip_longest(*networks):
        for k, array in enumerate(layers):
            if array is not None and of_networks.get(k) != {}:
                values = examined(array)
                of_networks[k] = _larger(of_networks[k], values) if k in of_networks else values
        alike = select(_smallest([*of_pixels, _median([*of_networks.values()])]), design.n)
        if not alike:  # further layers only make p-values larger
            break
    pairs = {*exact, *alike}
    ordered = tuple(sorted(pairs))
    groups = None if design.groups is None else design.groups.numbers.tolist()
    covered = groups is not None and all(groups[a] == groups[b] for a, b in ordered)
    return NearDuplicates(design.ids, ordered, len({b for _, b in exact}), covered)


PairValues = dict[tuple[int, int], float]
"""p-values of the pairs that are alike; of all other pairs it is 1."""


def pixels_of(design: Design) -> Any:
    """Return the pixels of the first trained network that has them; None if none has."""
    return next((member.store.pixels for member in design.trained if member.store.pixels is not None), None)


def examined_members(design: Design) -> list[Member]:
    """Return the trained networks to examine, of as many architectures as possible."""
    firsts = {member.architecture: member for member in reversed(design.trained)}
    return [*reversed(firsts.values()), *(m for m in design.trained if m not in firsts.values())][:_NETWORKS]


def examined_layers(widths: Sequence[int], n: int) -> list[int]:
    """Return which layers of a network to examine, from the numbers of features of all: the narrowest first.

    >>> examined_layers([30, 10, 10, 10, 20], 8)
    [2, 4, 0]
    """
    depths = dict.fromkeys(np.linspace(0, len(widths) - 1, _LAYERS).round().astype(int).tolist())
    return sorted((k for k in depths if n * widths[k] <= _LARGEST), key=lambda k: widths[k])


def _networks(design: Design) -> list[list[Any]]:
    """Return the layers of trained networks to examine, the narrowest of each first."""
    networks = []
    for member in examined_members(design):
        widths = [math.prod(member.store[array].shape[1:]) for array in member.arrays]
        networks.append([member.store[member.arrays[k]] for k in examined_layers(widths, design.n)])
    return [arrays for arrays in networks if arrays]


def pair_values(x: Tensor, device: str = "cpu", classes: Int64[np.ndarray, " n"] | None = None) -> PairValues:
    """Return the p-values of pairs of samples that are alike in one representation, (n, p), perhaps within classes."""
    n = len(x)
    x = x.to(device).float()
    x = x - x.mean(0)
    scale = float(x.square().sum(1).mean().sqrt())
    if not scale > 0 or n < 8:
        return {}
    count = min(_NEIGHBOURS, n // 4) + 1
    distances, neighbours = _nearest(x.div_(scale), count)
    lengths = np.full(n, count) if classes is None else _up_to_classmates(neighbours, classes)
    logs = np.log(np.maximum(distances, _ROUNDING))
    rank = np.arange(1, count)
    examined = rank < lengths[:, None]
    spacings = np.where(examined, rank * np.diff(logs, axis=1), 0)
    others = np.maximum(lengths[:, None] - 2, 1)
    mean = (spacings.sum(1, keepdims=True) - spacings) / others
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(spacings > 0, spacings / mean, 0)
    p = np.where(examined, -others * np.log1p(t / others) + np.log(rank * (rank + 1)), np.inf)
    best = p.argmin(1)
    value = np.where(lengths > 2, np.exp(np.minimum(p[np.arange(n), best], 0)), 1)
    limit = np.median(distances[np.arange(n), np.minimum(best + 1, count - 1)])  # of the distances across the gap
    near = (np.arange(count) <= best[:, None]) & (distances <= limit)
    selectors, places = near.nonzero()
    selected = neighbours[selectors, places]
    mutual = np.isin(selectors * n + selected, selected * n + selectors)
    # what lies among the samples of another class, as a misclassified one does, selects them and is not selected
    alike = (value < 1) & (2 * np.bincount(selectors[mutual], minlength=n) > best)
    a, b = selectors[mutual], selected[mutual]
    kept = (a < b) & alike[a] & alike[b]
    p_values = np.maximum(value[a[kept]], value[b[kept]])
    return dict(zip(zip(a[kept].tolist(), b[kept].tolist(), strict=True), p_values.tolist(), strict=True))


def _up_to_classmates(
    neighbours: Int64[np.ndarray, "n count"], classes: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return how many neighbours of each sample are examined: up to the median one of its class.

    A class that is nearly one point leaves a gap behind its last sample, which is thereby not seen.
    """
    count = neighbours.shape[1]
    mates = np.bincount(classes)[classes] - 1
    reached = np.cumsum(classes[neighbours] == classes[:, None], axis=1) > (mates // 2)[:, None]
    return np.asarray(np.where(reached.any(1) & (mates > 0), reached.argmax(1) + 1, count))


def _nearest(x: Tensor, count: int) -> tuple[Float64[np.ndarray, "n count"], Int64[np.ndarray, "n count"]]:
    """Return the distances to the nearest neighbours, in increasing order, and which they are.

    They are selected by |x|^2 + |y|^2 - 2 x'y in float32. Its error is about 1e-7 (|x|^2 + |y|^2), and so at most 1e-5
    of a squared distance that is not `_NEAR`; nearer samples have the norms of their differences.
    """
    n, p = x.shape
    norms = x.square().sum(1)

    def of_rows(i: slice) -> tuple[Tensor, Tensor]:
        squared = torch.addmm(norms, x[i], x.T, alpha=-2)
        squared[torch.arange(len(squared)), torch.arange(i.start, i.stop)] = torch.inf
        nearest, neighbours = squared.topk(count, dim=1, largest=False)
        nearest += norms[i, None]
        rows, places = (nearest < _NEAR * (norms[i, None] + norms[neighbours])).nonzero(as_tuple=True)
        for pairs in cut(len(rows), max(1, _DIFFERENCES // p)):
            r, k = rows[pairs], places[pairs]
            nearest[r, k] = (x[i][r] - x[neighbours[r, k]]).square_().sum(1)
        ordered, order = nearest.clamp_(min=0).sort(dim=1)
        return ordered.cpu(), neighbours.gather(1, order).cpu()

    parts = map_pieces(of_rows, x, zip(cut(n, max(1, min(512, _DISTANCES // n)))))
    squared, neighbours = (torch.cat(values) for values in zip(*parts, strict=True))
    return squared.double().sqrt().numpy(), neighbours.numpy()


def _larger(values: PairValues, others: PairValues) -> PairValues:
    """Return the larger p-value of each pair."""
    return {pair: max(p, others[pair]) for pair, p in values.items() if pair in others}


def _median(networks: Sequence[PairValues]) -> PairValues:
    """Return twice the median p-value of each pair over networks; the value itself for one network."""
    needed = (len(networks) + 1) // 2
    every = {pair: sorted(v[pair] for v in networks if pair in v) for pair in set().union(*networks)}
    times = 1 if len(networks) == 1 else 2
    return {pair: min(1.0, times * p[needed - 1]) for pair, p in every.items() if len(p) >= needed}


def _smallest(evidence: Sequence[PairValues]) -> PairValues:
    """Return the smallest p-value of each pair, times the number of kinds of evidence."""
    pairs = set().union(*evidence)
    return {pair: min(1.0, len(evidence) * min(v.get(pair, 1.0) for v in evidence)) for pair in pairs}


def select(values: PairValues, n: int) -> set[tuple[int, int]]:
    """Select the pairs that are significant by the procedure of Benjamini and Hochberg over n samples."""
    best = np.ones(n)
    for pair, p in values.items():
        for k in pair:
            best[k] = min(best[k], p)
    ordered = np.sort(best)
    passing = np.flatnonzero(ordered <= FALSE_ALARMS * np.arange(1, n + 1) / n)
    limit = ordered[passing[-1]] if len(passing) else -1.0
    return {pair for pair, p in values.items() if p <= limit}


def _equal(values: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of a sample with an earlier one that has the same bytes."""
    rows = np.ascontiguousarray(values.reshape(len(values), -1))
    seen: dict[bytes, int] = {}
    return {(k, i) for i, row in enumerate(rows) if (k := seen.setdefault(row.tobytes(), i)) != i}
