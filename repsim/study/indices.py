"""Indices of a study, computed from one matrix R: debiased CKA of all layers and controls.

With class labels there is a second matrix, of similarities within classes; both are stacked (`gram_passes.Matrices`).
As every index is a function of R, it can also be computed from R without one sample, or from R of half of the samples.
Leave-one-out values give confidence intervals of indices and of their differences, and the influence of every stimulus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from repsim.errors import UndefinedValueError
from repsim.runtime import tuning
from repsim.study.design import Design, Member, Pair, is_twin
from repsim.study.gram_passes import Matrices
from repsim.study.layer_matching import LayerMaps, best_maps, nearest
from repsim.study.partial_cka import MIN_ENERGY, partial_of_two, residual

RAW = ""
"""Kind of debiased CKA in which no control is projected out."""
TWINS = "untrained"
"""Kind of debiased CKA in which each layer's untrained twins are projected out."""
CONTROLS = ("input", "labels", "input and labels")
"""Kinds of controls that are the same for all layers: the input is projected out, and classes are centred."""
_OF_CLASSES = CONTROLS[1:]
SHARES = ("input", "universal", "family", "seed", "family_and_seed", "universal_and_family")
_DEPTHS = 10
_LEFT = "left"
"""Part of the key of a column: the energy that a network has left once a control is projected out."""

Key = tuple[str, ...]
Maps = Mapping[tuple[str, str], LayerMaps]
"""Maps of layers by (kind of control, name of the pair)."""
Matrix = Float64[np.ndarray, "L L"]


@dataclass(frozen=True, eq=False)
class Entries:
    """Weighted sums of the entries of a matrix, one sum for each of several columns."""

    rows: Int64[np.ndarray, " entries"]
    columns: Int64[np.ndarray, " entries"]
    weights: Float64[np.ndarray, " entries"]
    starts: Int64[np.ndarray, " sums"]
    """First entry of each sum; no sum is empty."""

    def sums(self, values: Float64[np.ndarray, "*batch L L"]) -> Float64[np.ndarray, "*batch sums"]:
        """Compute the sums; entries that no sum uses may be NaN."""
        return np.add.reduceat(values[..., self.rows, self.columns] * self.weights, self.starts, axis=-1)

    def matrix(self, coefficients: Float64[np.ndarray, " sums"], size: int) -> Matrix:
        """Return the symmetric matrix Q with <Q, values> equal to the sums, each times its coefficient."""
        counts = np.diff(np.append(self.starts, len(self.rows)))
        Q = np.zeros((size, size))
        np.add.at(Q, (self.rows, self.columns), self.weights * np.repeat(coefficients, counts))
        return np.asarray((Q + Q.T) / 2)


@dataclass(frozen=True, eq=False)
class Indices:
    """All indices of a study. `evaluate` computes a row of numbers, and `column_of` gives the column of each.

    The similarity of two networks is the mean similarity of each layer and its match in the other network. Which layers
    match is determined beforehand (``maps``), from other samples or from all, and kept when a sample is left out.
    """

    design: Design
    positions: Mapping[str, Int64[np.ndarray, " layers"]]
    """Positions in R of the layers of each model, by its name, and of the controls of the input ("input")."""
    size: int
    """Number of layers and controls: rows of R."""
    maps: Maps
    """Maps of layers for indices, energies and shares."""
    best: Maps | None = None
    """Best matches on all samples, for the plain index; None if it is not wanted."""
    classes: bool = False
    """Whether there is a matrix of similarities within classes."""

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """Kinds of debiased CKA with one control for all layers: none, the input, the classes, both."""
        has_input = bool(len(self.positions.get("input", ())))
        kinds = {"input": has_input, "labels": self.classes, "input and labels": has_input and self.classes}
        return (RAW, *(kind for kind in CONTROLS if kinds[kind]))

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """All kinds of debiased CKA: `kernels`, and that given untrained twins, which differ from layer to layer."""
        twins = any(len(self.positions[member.name]) for member in self.design.untrained)
        return (*self.kernels, TWINS) if twins else self.kernels

    @property
    def energies(self) -> tuple[str, ...]:
        """Kinds of debiased CKA with a value in units of energy: those with a control for all layers."""
        return self.kernels[1:]

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Models with layers that can be compared."""
        return tuple(member for member in self.design.members if len(self.positions[member.name]))

    @cached_property
    def layers(self) -> Int64[np.ndarray, " layers"]:
        """Positions in R of the layers of all models."""
        return np.concatenate([self.positions[member.name] for member in self.design.members])

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of models, trained or not."""
        return tuple(Pair(a, b) for a, b in combinations(self.members, 2))

    @cached_property
    def depths(self) -> int:
        """Number of relative depths at which shares are computed: the fewest layers of any model, at most ten."""
        return max(2, min(_DEPTHS, *(len(self.positions[member.name]) for member in self.design.members)))

    def similarities(self, matrices: Matrices, kind: str) -> Float64[np.ndarray, "*batch L L"]:
        """Compute debiased CKA from the matrices, or partial CKA where ``kind`` names what is controlled for."""
        R = matrices[..., 0, :, :]
        if kind == TWINS:  # controls of the input take no part
            layers = np.ix_(self.layers, self.layers)
            values = np.full(R.shape, np.nan)
            values[..., layers[0], layers[1]] = partial_of_two(R[..., layers[0], layers[1]], self._twins[layers])
            return values
        return R if kind == RAW else _normalised(self.residuals(matrices, kind))

    def residuals(self, matrices: Matrices, kind: str) -> Float64[np.ndarray, "*batch L L"]:
        """Compute inner products given a control, in units of energy; NaN if it has no value."""
        values = matrices[..., _place(kind), :, :]
        if kind == "labels":  # nothing to project out: features are centred within classes
            return values
        try:
            return residual(values, self.positions["input"].tolist())
        except UndefinedValueError:  # on half of the samples a control can be constant
            return np.full(values.shape, np.nan)

    @cached_property
    def _twins(self) -> Matrix:
        """Weights that average the untrained twins of every layer of a trained network; rows of other layers are 0.

        Twins are networks with the same layers. A network with a layer without a value is no twin: it would not be
        known which of its layers corresponds to which.
        """
        weights = np.zeros((self.size, self.size))
        for member in self.design.trained:
            layers = self.positions[member.name]
            twins = [self.positions[m.name] for m in self.design.untrained if is_twin(m, member)]
            twins = [twin for twin in twins if len(twin) == len(layers) == len(member.blocks)]
            for twin in twins:
                weights[layers, twin] += 1 / len(twins)
        return weights

    def block(self, values: Float64[np.ndarray, "*batch L L"], pair: Pair) -> Float64[np.ndarray, "*batch A B"]:
        """Select the similarities of the layers of a (rows) with those of b (columns)."""
        return values[..., self.positions[pair.a.name][:, None], self.positions[pair.b.name]]

    def states(self) -> Iterator[tuple[str, tuple[Member, ...]]]:
        """Yield "trained" and "untrained" with their models, if there is more than one."""
        for state, models in (("trained", self.design.trained), ("untrained", self.design.untrained)):
            if len(models) > 1:
                yield state, tuple(model for model in models if len(self.positions[model.name]))

    @cached_property
    def _sources(self) -> dict[tuple[str, bool], tuple[list[Key], Entries]]:
        """Keys and entries of the columns that are sums of entries, by (kind, whether in units of energy)."""
        sources = {}
        for kind in self.conditions:
            sums = [(("index", kind, pair.name), self._index(self.maps[kind, pair.name], pair)) for pair in self.pairs]
            if self.best is not None:
                sums += [
                    (("best", kind, pair.name), self._index(self.best[kind, pair.name], pair)) for pair in self.pairs
                ]
            sources[kind, False] = _entries(sums)
        for kind in self.energies:
            sums = [(("energy", kind, pair.name), self._index(self.maps[kind, pair.name], pair)) for pair in self.pairs]
            sums += [((_LEFT, kind, member.name), self._own(member)) for member in self.members]
            sources[kind, True] = _entries(sums)
        return sources

    def _index(self, maps: LayerMaps, pair: Pair) -> list[tuple[int, int, float]]:
        """Return the entries, with their weights, whose sum is the index of a pair along maps of layers."""
        return self._weighted(maps.weights, pair)

    def _weighted(self, weights: Float64[np.ndarray, "A B"], pair: Pair) -> list[tuple[int, int, float]]:
        a, b = self.positions[pair.a.name], self.positions[pair.b.name]
        i, j = np.nonzero(weights)
        return list(zip(a[i].tolist(), b[j].tolist(), weights[i, j].tolist(), strict=True))

    def _own(self, member: Member) -> list[tuple[int, int, float]]:
        layers = self.positions[member.name].tolist()
        return [(k, k, 1 / len(layers)) for k in layers]

    @cached_property
    def _share_sums(self) -> tuple[list[Key], Entries]:
        """Sums for the shares: own energy, similarity across families and within them, by state and depth."""
        kind = self._share_kind
        sums: list[tuple[Key, list[tuple[int, int, float]]]] = []
        for state, models in self.states():
            names = {model.name for model in models}
            of_state = [pair for pair in self.pairs if {pair.a.name, pair.b.name} <= names]
            across = [pair for pair in of_state if pair.across_families]
            within = [pair for pair in of_state if not pair.across_families]
            for d in range(self.depths):
                own = [(int(k), int(k), 1 / len(models)) for k in (self._at_depth(model, d) for model in models)]
                sums.append(((state, str(d), "own"), own))
                for name, pairs in (("across", across), ("within", within)):
                    entries = [entry for pair in pairs for entry in self._pair_at_depth(pair, d, kind, len(pairs))]
                    sums.append(((state, str(d), name), entries))
        return _entries(sums)

    def _at_depth(self, model: Member, d: int) -> int:
        layers = self.positions[model.name]
        return int(layers[nearest(len(layers), self.depths)[d]])

    def _pair_at_depth(self, pair: Pair, d: int, kind: str, count: int) -> list[tuple[int, int, float]]:
        """Return the entries of the similarity of two networks at a relative depth of one of them, both in turn."""
        maps, weights = self.maps[kind, pair.name], np.zeros(self.maps[kind, pair.name].weights.shape)
        i, j = (nearest(len(self.positions[side.name]), self.depths)[d] for side in (pair.a, pair.b))
        if total := maps.a_to_b[i].sum():
            weights[i] += maps.a_to_b[i] / total
        if total := maps.b_to_a[j].sum():
            weights[:, j] += maps.b_to_a[j] / total
        if weights.sum():
            weights /= weights.sum() * count
        return self._weighted(weights, pair)

    @property
    def _share_kind(self) -> str:
        return "input" if "input" in self.kernels else RAW

    @cached_property
    def names(self) -> tuple[Key, ...]:
        """Keys of the columns that `evaluate` computes: ("index", kind, pair), ("share", state, depth, share), ..."""
        keys = [key for keys, _ in self._sources.values() for key in keys]
        for state, _ in self.states():
            keys += [("share", state, str(d), share) for d in range(self.depths) for share in SHARES]
        return tuple(keys)

    @cached_property
    def column_of(self) -> dict[Key, int]:
        """Column of each key of `names`."""
        return {name: k for k, name in enumerate(self.names)}

    def evaluate(self, matrices: Matrices) -> Float64[np.ndarray, "*batch T"]:
        """Compute all indices of the matrices of the same samples, or of each of a batch."""
        parts = []
        R = matrices[..., 0, :, :]
        residuals = {kind: self.residuals(matrices, kind) for kind in self.energies}
        for (kind, in_energy), (_, entries) in self._sources.items():
            if in_energy:
                values = residuals[kind]
            elif kind in residuals:
                values = _normalised(residuals[kind])
            else:
                values = self.similarities(matrices, kind)
            parts.append(entries.sums(values))
        keys, entries = self._share_sums
        if keys:
            sums = entries.sums(residuals[self._share_kind] if self._share_kind else R)
            by_key = {key: sums[..., k] for k, key in enumerate(keys)}
            missing = np.full(R.shape[:-2], np.nan)
            parts += [
                np.stack(self._shares([by_key.get((state, str(d), name), missing) for name in _SUMS]), -1)
                for state, _ in self.states()
                for d in range(self.depths)
            ]
        return np.concatenate(parts, -1) if parts else np.zeros((*R.shape[:-2], 0))

    def _shares(self, sums: Sequence[Float64[np.ndarray, "*batch"]]) -> list[Float64[np.ndarray, "*batch"]]:
        """Return the shares of energy in the order of `SHARES`; they sum to 1, and unidentified ones are NaN."""
        own, across, within = sums
        has_input = bool(self._share_kind)
        of_input = 1 - own if has_input else np.full_like(own, np.nan)  # without pixels it is part of the universal one
        by_name = {
            "input": of_input, "universal": across, "family": within - across, "seed": own - within,
            "family_and_seed": own - across, "universal_and_family": within,
        }  # fmt: skip
        return [by_name[name] for name in SHARES]

    def degenerate_variance(
        self,
        values: Matrix,
        kind: str,
        coefficients: Mapping[int, float],
        null_variances: Sequence[float],
        *,
        in_energy: bool = False,
    ) -> float:
        """Compute the second-order part of the variance of a combination of columns of one kind.

        If networks are unrelated, Var = 2 v tr(Q R Q R) for the combination <Q, R>, as the covariance of debiased CKA
        of (a, b) and of (c, d) over permutations is v R_ac R_bd, with v = 2 / (n (n - 3)). For related layers each
        entry counts 1 - R_ab^2, as for the correlation of two normal variables. The jackknife counts this part twice.

        Parameters
        ----------
        values
            Similarities of this kind (`similarities`), or inner products (`residuals`), of all layers and controls.
        kind
            Kind of debiased CKA of all columns.
        coefficients
            Coefficient by column (`column_of`).
        null_variances
            v of both matrices (`Kernels.null_variances`).
        in_energy
            Whether the columns are in units of energy.
        """
        keys, entries = self._sources[kind, in_energy]
        first, by_sum = self.column_of[keys[0]], np.zeros(len(keys))  # the columns of a source follow one another
        for column, coefficient in coefficients.items():
            by_sum[column - first] = coefficient
        Q = entries.matrix(by_sum, self.size)
        used = np.flatnonzero(np.abs(Q).sum(0))
        values = np.nan_to_num(values[np.ix_(used, used)])
        norms = np.sqrt(np.maximum(np.diagonal(values), MIN_ENERGY))
        cosines = values / norms / norms[:, None]
        QR = Q[np.ix_(used, used)] * (1 - np.minimum(cosines**2, 1)) @ values
        return float(2 * null_variances[_place(kind)] * np.sum(QR * QR.T))

    def without_each(
        self, matrices: Matrices, runs: Iterator[Matrices]
    ) -> tuple[Float64[np.ndarray, "units T"], dict[str, Float64[np.ndarray, "layers layers"]]]:
        """Compute all indices without each sample, and jackknife standard errors of all similarities of layers.

        Parameters
        ----------
        matrices
            The matrices from all samples.
        runs
            Those without each sample, or each group of samples, several at a time.

        Returns
        -------
        array
            (units, T): all indices without each sample or group.
        dict
            Standard errors of the similarities of layers, by kind of control.
        """
        rows, moments = [], {kind: np.zeros((3, len(self.layers), len(self.layers))) for kind in self.conditions}
        all_samples = {kind: self._between_layers(matrices, kind) for kind in self.conditions}
        step = max(1, tuning.current().jackknife_memory // (8 * matrices.size))
        for run in runs:
            for start in range(0, len(run), step):
                batch = run[start : start + step]
                rows.append(self.evaluate(batch))
                for kind in self.conditions:
                    change = self._between_layers(batch, kind) - all_samples[kind]
                    moments[kind] += np.stack(
                        [np.full(change.shape[1:], len(batch)), change.sum(0), np.square(change).sum(0)]
                    )
        errors = {
            kind: np.sqrt((count - 1) / count * np.maximum(squares - total**2 / count, 0))
            for kind, (count, total, squares) in moments.items()
        }
        return np.concatenate(rows), errors

    def _between_layers(self, matrices: Matrices, kind: str) -> Float64[np.ndarray, "*batch layers layers"]:
        return self.similarities(matrices, kind)[..., self.layers[:, None], self.layers]


_SUMS = ("own", "across", "within")


def _place(kind: str) -> int:
    """Return the place of the matrix from which a kind of debiased CKA is computed: of all, or within classes."""
    return int(kind in _OF_CLASSES)


def matches_on(indices: Indices, matrices: Matrices) -> dict[tuple[str, str], LayerMaps]:
    """Return the best matches of layers of all pairs of models under every kind of debiased CKA.

    Pairs whose models have equal numbers of layers are matched together, which is much faster.
    """
    by_shape: dict[tuple[int, int], list[Pair]] = {}
    for pair in indices.pairs:
        shape = len(indices.positions[pair.a.name]), len(indices.positions[pair.b.name])
        by_shape.setdefault(shape, []).append(pair)
    maps = {}
    for kind in indices.conditions:
        values = indices.similarities(matrices, kind)
        for pairs in by_shape.values():
            blocks = np.stack([indices.block(values, pair) for pair in pairs])
            for pair, a_to_b, b_to_a in zip(pairs, *best_maps(blocks), strict=True):
                maps[kind, pair.name] = LayerMaps(a_to_b, b_to_a)
    return maps


def cross_fitted(
    make: Callable[[Maps], Indices], halves: Iterator[tuple[Matrices, Matrices]]
) -> tuple[Float64[np.ndarray, "splits T"], dict[tuple[str, str], LayerMaps]]:
    """Compute indices whose matches come from one half of the samples and whose similarities come from the other.

    Parameters
    ----------
    make
        Function that returns the indices along maps of layers.
    halves
        Matrices of both halves of the samples, for each of several splits.

    Returns
    -------
    array
        (splits, T): mean over both directions of each split. NaN where neither has a value.
    dict
        Mean maps of layers over both halves of all splits.
    """
    rows: list[Float64[np.ndarray, " T"]] = []
    sums: dict[tuple[str, str], tuple[Float64[np.ndarray, "A B"], Float64[np.ndarray, "B A"]]] = {}
    empty = make({})
    for both_halves in halves:
        maps = [matches_on(empty, of_half) for of_half in both_halves]
        for of_half, other in zip(maps, reversed(both_halves), strict=True):
            rows.append(make(of_half).evaluate(other))
            for key, layers in of_half.items():
                total = sums.get(key, (0.0, 0.0))
                sums[key] = total[0] + layers.a_to_b, total[1] + layers.b_to_a
    both = np.stack(rows).reshape(len(rows) // 2, 2, -1)
    return _mean(both, 1), {key: LayerMaps(a / len(rows), b / len(rows)) for key, (a, b) in sums.items()}


def mean_over_splits(values: Float64[np.ndarray, "splits T"]) -> Float64[np.ndarray, " T"]:
    """Return the mean over the splits of the samples in which an index has a value."""
    return _mean(values, 0)


def _mean(values: Float64[np.ndarray, "..."], axis: int) -> Float64[np.ndarray, "..."]:
    """Return the mean of the values that are defined; NaN where none is."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis)
    return np.asarray(np.where(defined, values, 0).sum(axis) / np.where(counts, counts, np.nan))


def _entries(sums: Sequence[tuple[Key, list[tuple[int, int, float]]]]) -> tuple[list[Key], Entries]:
    """Return the keys and the entries of sums; one without entries has no value and is NaN."""
    rows: list[int] = []
    columns: list[int] = []
    weights: list[float] = []
    starts: list[int] = []
    for _, entries in sums:
        starts.append(len(rows))
        for row, column, weight in entries or [(0, 0, np.nan)]:
            rows.append(row)
            columns.append(column)
            weights.append(weight)
    integers = (np.array(numbers, np.int64) for numbers in (rows, columns, starts))
    i, j, first = integers
    return [key for key, _ in sums], Entries(i, j, np.array(weights, np.float64), first)


def _normalised(C: Float64[np.ndarray, "*batch L L"]) -> Float64[np.ndarray, "*batch L L"]:
    """Divide residual inner products by the norms of both layers; NaN for a layer without a residual."""
    energy = np.diagonal(C, axis1=-2, axis2=-1)
    defined: Bool[np.ndarray, "*batch L"] = energy > MIN_ENERGY
    norm = np.sqrt(np.where(defined, energy, np.nan))
    return C / norm[..., :, None] / norm[..., None, :]
