"""Indices of a study, computed from one matrix R: debiased CKA of all layers and controls.

With class labels there is a second matrix, of similarities within classes; both are stacked (`gram_passes.Matrices`).
As every index is a function of R, it can also be computed from R without one sample, or from R of half of the samples.
Leave-one-out values give confidence intervals of indices and of their differences, and the influence of every stimulus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import combinations
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int64

from repsim.errors import UndefinedValueError
from repsim.study.design import Design, Member, Pair, is_twin
from repsim.study.gram_passes import Matrices
from repsim.study.layer_matching import LayerMaps, best_maps, nearest
from repsim.study.partial_cka import MIN_ENERGY, partial_between, residual_between
from repsim.study.similarities import Similarities

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
_Residual = tuple[
    Float64[np.ndarray, "*batch rows columns"],
    Float64[np.ndarray, "*batch rows"],
    Float64[np.ndarray, "*batch columns"],
]
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

    def sums(
        self, values: Float64[np.ndarray, "*batch rows columns"], where: Similarities
    ) -> Float64[np.ndarray, "*batch sums"]:
        """Compute the sums; entries that no sum uses may be NaN. ``where`` knows the rows and columns of positions."""
        if not len(self.starts):
            return np.zeros((*values.shape[:-2], 0))
        entries = values[..., *where.places(self.rows, self.columns)]
        return np.add.reduceat(entries * self.weights, self.starts, axis=-1)

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " sums_and_1"]:
        """First entry of each sum, and the number of all."""
        return np.append(self.starts, len(self.rows))

    def matrix(self, coefficients: Mapping[int, float]) -> tuple[Int64[np.ndarray, " used"], Matrix]:
        """Return the layers that a combination of sums uses, and the symmetric matrix Q among them.

        <Q, values> is the combination: the sum over ``coefficients``, by sum, of the coefficient times the sum.
        """
        ends = self._ends
        entries = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in coefficients])
        factors = np.concatenate([np.full(ends[k + 1] - ends[k], c) for k, c in coefficients.items()])
        used, places = np.unique(np.stack([self.rows[entries], self.columns[entries]]), return_inverse=True)
        rows, columns = places.reshape(2, -1)
        Q = np.zeros((len(used), len(used)))
        np.add.at(Q, (rows, columns), self.weights[entries] * factors)
        return used, np.asarray((Q + Q.T) / 2)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Weighted entries of a matrix, and the number of the sum that each belongs to."""

    owners: Int64[np.ndarray, " entries"]
    rows: Int64[np.ndarray, " entries"]
    columns: Int64[np.ndarray, " entries"]
    weights: Float64[np.ndarray, " entries"]

    @classmethod
    def none(cls) -> Self:
        """Return no entries."""
        places = np.zeros(0, int)
        return cls(places, places, places, np.zeros(0))

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """Return the entries of all pieces, one after the other."""
        return cls(*(np.concatenate([getattr(one, field.name) for one in pieces]) for field in fields(cls)))

    def in_order(self) -> Self:
        """Return the entries in the order of their sums; those of one sum stay in order."""
        return self._taken(np.argsort(self.owners, kind="stable"))

    def summed(self, owners: Bool[np.ndarray, " sums"]) -> Self:
        """Return the entries of some of the sums as those of one sum."""
        chosen = self._taken(np.flatnonzero(owners[self.owners]))
        return replace(chosen, owners=np.zeros_like(chosen.owners))

    def _taken(self, places: Int64[np.ndarray, " k"]) -> Self:
        return type(self)(*(getattr(self, field.name)[places] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class AlikePairs:
    """Pairs of models of which the first ones have equal numbers of layers, and the second ones as well."""

    numbers: Int64[np.ndarray, " pairs"]
    """Places of the pairs among all pairs."""
    rows: Int64[np.ndarray, "pairs A"]
    """Positions in R of the layers of the first model of each pair."""
    columns: Int64[np.ndarray, "pairs B"]
    """The same for the second model."""


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
    among: tuple[Pair, ...] | None = None
    """Pairs of models whose indices are computed; by default all."""
    alone: tuple[Member, ...] | None = None
    """Models of which the energy that is left, and the own energy in shares, is computed; by default all."""

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
        """All pairs of models, trained or not, or those that were chosen."""
        return tuple(Pair(a, b) for a, b in combinations(self.members, 2)) if self.among is None else self.among

    @cached_property
    def depths(self) -> int:
        """Number of relative depths at which shares are computed: the fewest layers of any model, at most ten."""
        return max(2, min(_DEPTHS, *(len(self.positions[member.name]) for member in self.design.members)))

    def similarities(self, source: Matrices | Similarities, kind: str) -> Float64[np.ndarray, "*batch rows columns"]:
        """Compute debiased CKA of rows and columns, or partial CKA where ``kind`` names what is controlled for."""
        where = _similarities(source)
        if kind == TWINS:
            return self._given_twins(where)
        if kind == RAW:
            return where.values[..., 0, :, :]
        return _normalised(*self._residual(where, kind))

    def residuals(self, source: Matrices | Similarities, kind: str) -> Float64[np.ndarray, "*batch rows columns"]:
        """Compute inner products given a control, in units of energy; NaN if it has no value."""
        return self._residual(_similarities(source), kind)[0]

    def _residual(self, where: Similarities, kind: str) -> _Residual:
        """Return the inner products given a control, and those of the rows and of the columns with themselves."""
        k = _place(kind)
        values, own = where.values[..., k, :, :], (where.own_rows[..., k, :], where.own_columns[..., k, :])
        if kind in {RAW, "labels"}:  # nothing to project out: features are centred within classes
            return values, *own
        controls = self.positions["input"]
        try:
            return residual_between(values, *own, where.row_of[controls].tolist(), where.column_of[controls].tolist())
        except UndefinedValueError:  # on half of the samples a control can be constant
            of_rows, of_columns = (np.full(norms.shape, np.nan) for norms in own)
            return np.full(values.shape, np.nan), of_rows, of_columns

    def _given_twins(self, where: Similarities) -> Float64[np.ndarray, "*batch rows columns"]:
        """Return partial CKA given the untrained twins of each layer; controls of the input take no part."""
        values = np.full(where.values.shape[:-3] + where.values.shape[-2:], np.nan)
        rows, columns = (np.flatnonzero(np.isin(side, self.layers)) for side in (where.rows, where.columns))
        i, j = where.rows[rows], where.columns[columns]
        values[..., rows[:, None], columns] = partial_between(
            where.values[..., 0, :, :][..., rows[:, None], columns],
            *(self._twins[np.ix_(a, b)] for a, b in ((i, i), (j, j), (i, j), (j, i))),
        )
        return values

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
    def alike(self) -> tuple[AlikePairs, ...]:
        """All pairs, those whose models have equal numbers of layers together."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        sides = [(self.positions[pair.a.name], self.positions[pair.b.name]) for pair in self.pairs]
        for number, (rows, columns) in enumerate(sides):
            by_shape.setdefault((len(rows), len(columns)), []).append(number)
        return tuple(
            AlikePairs(np.array(numbers), *(np.stack([sides[k][side] for k in numbers]) for side in (0, 1)))
            for numbers in by_shape.values()
        )

    @cached_property
    def _source_keys(self) -> dict[tuple[str, bool], list[Key]]:
        """Keys of the columns that are sums of entries, by (kind, whether in units of energy)."""
        names = [pair.name for pair in self.pairs]
        columns = ("index",) if self.best is None else ("index", "best")
        keys: dict[tuple[str, bool], list[Key]] = {
            (kind, False): [(what, kind, name) for what in columns for name in names] for kind in self.conditions
        }
        return keys | {(kind, True): [("energy", kind, name) for name in names] for kind in self.energies}

    @cached_property
    def _sources(self) -> dict[tuple[str, bool], Entries]:
        """Entries of these columns."""
        sources = {}
        for kind, in_energy in self._source_keys:
            entries = [self._along(self._halved[kind], _of_index)]
            if self.best is not None and not in_energy:
                entries.append(self._along(self._stacked(kind, self.best), _of_index))
            sources[kind, in_energy] = _entries(entries, len(self.pairs))
        return sources

    @cached_property
    def _halved(self) -> dict[str, list[LayerMaps]]:
        """Maps for indices, energies and shares, by kind."""
        return {kind: self._stacked(kind, self.maps) for kind in self.conditions}

    def _stacked(self, kind: str, maps: Maps) -> list[LayerMaps]:
        """Return the maps of all pairs of each of `alike`, stacked."""
        stacked = []
        for alike in self.alike:
            of_pairs = [maps[kind, self.pairs[k].name] for k in alike.numbers.tolist()]
            ways = ([one.a_to_b for one in of_pairs], [one.b_to_a for one in of_pairs])
            stacked.append(LayerMaps(*map(np.array, ways)))
        return stacked

    def _along(
        self, maps: Sequence[LayerMaps], weights_of: Callable[[LayerMaps], Float64[np.ndarray, "P A B"]]
    ) -> Pieces:
        """Return the entries whose sum is a mean along maps of layers, of all pairs, one after the other.

        ``weights_of`` computes the weights of several pairs from their maps.
        """
        pieces = [Pieces.none()]
        for alike, stacked in zip(self.alike, maps, strict=True):
            weights = weights_of(stacked)
            p, i, j = np.nonzero(weights)
            pieces.append(Pieces(alike.numbers[p], alike.rows[p, i], alike.columns[p, j], weights[p, i, j]))
        return Pieces.joined(pieces).in_order()

    @cached_property
    def _alone(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if self.alone is None or m in self.alone)

    @cached_property
    def _share_keys(self) -> dict[tuple[str, str], Bool[np.ndarray, " pairs"]]:
        """Whether each pair counts in a similarity of families, by (state, "across" or "within")."""
        chosen = {}
        for state, models in self.states():
            names = {model.name for model in models}
            of_state = np.array([{pair.a.name, pair.b.name} <= names for pair in self.pairs], bool)
            across = np.array([pair.across_families for pair in self.pairs], bool)
            for name, pairs in (("across", of_state & across), ("within", of_state & ~across)):
                if pairs.any():
                    chosen[state, name] = pairs
        return chosen

    @cached_property
    def _share_sums(self) -> Entries:
        """Sums for the shares: similarity across families and within them, by state and depth."""
        by_depth = [
            self._along(self._halved[self._share_kind], partial(self._at_relative_depth, d=d))
            for d in range(self.depths if self._share_keys else 0)
        ]
        return _entries([of_depth.summed(pairs) for pairs in self._share_keys.values() for of_depth in by_depth], 1)

    def _at_relative_depth(self, maps: LayerMaps, d: int) -> Float64[np.ndarray, "P A B"]:
        """Return weights for the similarity of two networks at a relative depth of one of them, both in turn."""
        return maps.at(*(int(nearest(count, self.depths)[d]) for count in maps.a_to_b.shape[-2:]))

    @cached_property
    def _own_sums(self) -> list[tuple[Key, Int64[np.ndarray, " models"]]]:
        """Keys of the sums of the energy of models at each depth, with the layers that count."""
        return [
            ((_SUM, state, str(d), "own"), np.array([self._at_depth(model, d) for model in counted]))
            for state, models in self.states()
            if (counted := [model for model in models if model in self._alone])
            for d in range(self.depths)
        ]

    def _at_depth(self, model: Member, d: int) -> int:
        layers = self.positions[model.name]
        return int(layers[nearest(len(layers), self.depths)[d]])

    @property
    def _share_kind(self) -> str:
        return "input" if "input" in self.kernels else RAW

    @cached_property
    def _columns(self) -> list[Key]:
        """Keys of the columns before the shares."""
        keys: list[Key] = []
        for (kind, in_energy), of_source in self._source_keys.items():
            keys += of_source
            keys += [(_LEFT, kind, member.name) for member in self._alone if in_energy]
        return keys

    @cached_property
    def parts(self) -> tuple[Key, ...]:
        """Keys of the numbers that `evaluate_parts` computes: the columns before the shares, and sums for the shares.

        A sum of several blocks of pairs of models is the sum of those of the blocks.
        """
        shares = [(_SUM, state, str(d), name) for state, name in self._share_keys for d in range(self.depths)]
        return (*self._columns, *shares, *(key for key, _ in self._own_sums))

    @cached_property
    def names(self) -> tuple[Key, ...]:
        """Keys of the columns that `evaluate` computes: ("index", kind, pair), ("share", state, depth, share), ..."""
        keys = list(self._columns)
        for state, _ in self.states():
            keys += [("share", state, str(d), share) for d in range(self.depths) for share in SHARES]
        return tuple(keys)

    @cached_property
    def column_of(self) -> dict[Key, int]:
        """Column of each key of `names`."""
        return {name: k for k, name in enumerate(self.names)}

    def evaluate(self, source: Matrices | Similarities) -> Float64[np.ndarray, "*batch T"]:
        """Compute all indices from similarities on the same samples, or from each of a batch."""
        return self.assembled(self.evaluate_parts(source))

    def assembled(self, parts: Float64[np.ndarray, "*batch parts"]) -> Float64[np.ndarray, "*batch T"]:
        """Compute all indices from all numbers of `parts`."""
        sums = dict(
            zip(self.parts[len(self._columns) :], np.moveaxis(parts[..., len(self._columns) :], -1, 0), strict=True)
        )
        return np.concatenate([parts[..., : len(self._columns)], self.shares(sums, parts.shape[:-1])], -1)

    def evaluate_parts(self, source: Matrices | Similarities) -> Float64[np.ndarray, "*batch parts"]:
        """Compute the numbers from which the indices follow, in the order of `parts`."""
        where = _similarities(source)
        residuals = {kind: self._residual(where, kind) for kind in {RAW, *self.energies}}
        parts: list[Float64[np.ndarray, "*batch part"]] = []
        for (kind, in_energy), entries in self._sources.items():
            if in_energy:
                values, own, _ = residuals[kind]
                layers = [where.row_of[self.positions[member.name]] for member in self._alone]
                parts += [entries.sums(values, where), *(own[..., of_model].mean(-1)[..., None] for of_model in layers)]
            elif kind == TWINS:
                parts.append(entries.sums(self._given_twins(where), where))
            else:
                values = where.values[..., 0, :, :] if kind == RAW else _normalised(*residuals[kind])
                parts.append(entries.sums(values, where))
        values, own, _ = residuals[self._share_kind]
        parts.append(self._share_sums.sums(values, where))
        parts += [own[..., where.row_of[layers]].sum(-1)[..., None] for _, layers in self._own_sums]
        return np.concatenate(parts, -1)

    def shares(
        self, sums: Mapping[Key, Float64[np.ndarray, "*batch"]], batch: tuple[int, ...]
    ) -> Float64[np.ndarray, "*batch shares"]:
        """Compute the shares of all states and depths from the sums of all pairs of models; missing sums are NaN."""
        missing, parts = np.full(batch, np.nan), []
        for state, models in self.states():
            pairs = list(combinations(models, 2))
            across = sum(a.family != b.family for a, b in pairs)
            counts = {"own": len(models), "across": across, "within": len(pairs) - across}
            for d in range(self.depths):
                means = [sums.get((_SUM, state, str(d), name), missing) / max(1, counts[name]) for name in _SUMS]
                parts.append(np.stack(self._shares(means), -1))
        return np.concatenate(parts, -1) if parts else np.zeros((*batch, 0))

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
        entries = self._sources[kind, in_energy]
        first = self.column_of[self._source_keys[kind, in_energy][0]]  # the columns of a source follow one another
        used, Q = entries.matrix({column - first: c for column, c in coefficients.items() if c})
        values = np.nan_to_num(values[np.ix_(used, used)])
        norms = np.sqrt(np.maximum(np.diagonal(values), MIN_ENERGY))
        cosines = values / norms / norms[:, None]
        QR = Q * (1 - np.minimum(cosines**2, 1)) @ values
        return float(2 * null_variances[_place(kind)] * np.sum(QR * QR.T))


def _of_index(maps: LayerMaps) -> Float64[np.ndarray, "P A B"]:
    """Return weights for the index of two networks along the maps of their layers."""
    return maps.weights


_SUM = "sum"
"""First part of the key of a sum from which shares follow."""
_SUMS = ("own", "across", "within")


def _place(kind: str) -> int:
    """Return the place of the matrix from which a kind of debiased CKA is computed: of all, or within classes."""
    return int(kind in _OF_CLASSES)


def matches_on(indices: Indices, source: Matrices | Similarities) -> dict[tuple[str, str], LayerMaps]:
    """Return the best matches of layers of all pairs of models under every kind of debiased CKA.

    Pairs whose models have equal numbers of layers are matched together, which is much faster.
    """
    maps, where = {}, _similarities(source)
    for kind in indices.conditions:
        values = indices.similarities(where, kind)
        for alike in indices.alike:
            blocks = values[where.places(alike.rows[:, :, None], alike.columns[:, None, :])]
            for k, a_to_b, b_to_a in zip(alike.numbers.tolist(), *best_maps(blocks), strict=True):
                maps[kind, indices.pairs[k].name] = LayerMaps(a_to_b, b_to_a)
    return maps


def cross_fitted(
    make: Callable[[Maps], Indices], halves: Iterator[tuple[Matrices | Similarities, Matrices | Similarities]]
) -> tuple[Float64[np.ndarray, "splits parts"], dict[tuple[str, str], LayerMaps]]:
    """Compute indices whose matches come from one half of the samples and whose similarities come from the other.

    Parameters
    ----------
    make
        Function that returns the indices along maps of layers.
    halves
        Similarities on both halves of the samples, for each of several splits.

    Returns
    -------
    array
        (splits, parts): mean of the numbers of `Indices.parts` over both directions of each split. NaN where neither
        has a value.
    dict
        Mean maps of layers over both halves of all splits.
    """
    rows: list[Float64[np.ndarray, " T"]] = []
    sums: dict[tuple[str, str], tuple[Float64[np.ndarray, "A B"], Float64[np.ndarray, "B A"]]] = {}
    empty = make({})
    for both_halves in halves:
        maps = [matches_on(empty, of_half) for of_half in both_halves]
        for of_half, other in zip(maps, reversed(both_halves), strict=True):
            rows.append(make(of_half).evaluate_parts(other))
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


def _entries(pieces: Sequence[Pieces], count: int) -> Entries:
    """Return the entries of ``count`` sums for each of the pieces; a sum without entries has no value and is NaN."""
    every = Pieces.joined(
        [replace(one, owners=one.owners + k * count) for k, one in enumerate([Pieces.none(), *pieces], -1)]
    )
    sums = np.arange(count * len(pieces))
    empty = np.setdiff1d(sums, every.owners)
    nothing = np.zeros(len(empty), int)
    every = Pieces.joined([every, Pieces(empty, nothing, nothing, np.full(len(empty), np.nan))]).in_order()
    return Entries(every.rows, every.columns, every.weights, np.searchsorted(every.owners, sums))


def _similarities(source: Matrices | Similarities) -> Similarities:
    return source if isinstance(source, Similarities) else Similarities.whole(source)


def _normalised(
    C: Float64[np.ndarray, "*batch rows columns"],
    own_rows: Float64[np.ndarray, "*batch rows"],
    own_columns: Float64[np.ndarray, "*batch columns"],
) -> Float64[np.ndarray, "*batch rows columns"]:
    """Divide residual inner products by the norms of both layers; NaN for a layer without a residual."""
    a, b = (np.sqrt(np.where(own > MIN_ENERGY, own, np.nan)) for own in (own_rows, own_columns))
    return C / a[..., :, None] / b[..., None, :]
