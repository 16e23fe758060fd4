"""Indices of a study, computed from one matrix R: debiased CKA of all layers and controls.

As every index is a function of R, it can also be computed from R without one sample. These leave-one-out values give
confidence intervals of indices and of their differences, and the influence of every stimulus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from repsim.runtime import tuning
from repsim.study.design import Design, Member, Pair, half_trained, is_twin
from repsim.study.layer_matching import Match, along, best_match, nearest
from repsim.study.partial_cka import partial, partial_of_two, residual, shares

RAW = ""
"""Kind of debiased CKA in which no control is projected out."""
TWINS = "untrained"
"""Kind of debiased CKA in which each layer's untrained twins are projected out."""
CONTROLS = ("input", "labels")
"""Kinds of controls that are the same for all layers."""
SHARES = ("input", "universal", "family", "seed", "family_and_seed", "universal_and_family")
_DEPTHS = 10


@dataclass(frozen=True, eq=False)
class Indices:
    """All indices of a study. `evaluate` computes a row of numbers, and `column_of` gives the column of each.

    The best matches of layers are determined once, from all samples, and kept when a sample is left out: leaving out
    one sample is a small change, and the derivative of a maximum is that of the term at which it is attained.
    """

    design: Design
    positions: dict[str, Int64[np.ndarray, " layers"]]
    """Positions in R of the layers of each model, by its name, and of the controls of each kind."""
    R: Float64[np.ndarray, "L L"]
    """Debiased CKA of all layers and controls."""

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """Kinds of debiased CKA with one control for all layers: none, the input, the class labels."""
        return (RAW, *(kind for kind in CONTROLS if len(self.positions.get(kind, ()))))

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """All kinds of debiased CKA: `kernels`, and that given untrained twins, which differ from layer to layer."""
        twins = any(len(self.positions[member.name]) for member in self.design.untrained)
        return (*self.kernels, TWINS) if twins else self.kernels

    @cached_property
    def layers(self) -> Int64[np.ndarray, " layers"]:
        """Positions in R of the layers of all models."""
        return np.concatenate([self.positions[member.name] for member in self.design.members])

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs with an index: trained models, their untrained twins, and a trained model with the other's twin."""
        unique: dict[frozenset[str], Pair] = {}
        for trained in self.design.pairs:
            for pair in (trained, *self.design.controls_of(trained), *half_trained(self.design, trained)):
                unique.setdefault(frozenset({pair.a.name, pair.b.name}), pair)
        return tuple(
            pair for pair in unique.values() if len(self.positions[pair.a.name]) and len(self.positions[pair.b.name])
        )

    @cached_property
    def depths(self) -> int:
        """Number of relative depths at which models are compared: the fewest layers of any model, at most ten."""
        return max(2, min(_DEPTHS, *(len(self.positions[member.name]) for member in self.design.members)))

    @cached_property
    def matches(self) -> dict[tuple[str, str], tuple[Match, Match]]:
        """Best matches of a's layers with b's, and of b's with a's, by (kind of control, name of the pair)."""
        matches = {}
        for kind in self.conditions:
            values = self.similarities(self.R, kind)
            for pair in self.pairs:
                S = self.block(values, pair)
                matches[kind, pair.name] = best_match(S), best_match(S.T)
        return matches

    def similarities(self, R: Float64[np.ndarray, "*batch L L"], kind: str) -> Float64[np.ndarray, "*batch L L"]:
        """Compute debiased CKA from R, or partial CKA where ``kind`` names a control that is projected out."""
        if kind == TWINS:
            return partial_of_two(R, self._twins)
        return R if kind == RAW else partial(R, self.positions[kind].tolist())

    @cached_property
    def _twins(self) -> Float64[np.ndarray, "L L"]:
        """Weights that average the untrained twins of every layer of a trained network; rows of other layers are 0.

        Twins are networks with the same layers. A network with a layer without a value is no twin: it would not be
        known which of its layers corresponds to which.
        """
        weights = np.zeros(self.R.shape)
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

    def at_depths(self, member: Member) -> Int64[np.ndarray, " depths"]:
        """Return the positions in R of a model's layers at the common depths."""
        layers = self.positions[member.name]
        return np.asarray(layers[nearest(len(layers), self.depths)])

    def states(self) -> Iterator[tuple[str, tuple[Member, ...]]]:
        """Yield "trained" and "untrained" with their models, if there is more than one."""
        for state, models in (("trained", self.design.trained), ("untrained", self.design.untrained)):
            if len(models) > 1:
                yield state, models

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Keys of the columns that `evaluate` computes: ("mbm", kind, pair), ("share", state, depth, share), ..."""
        keys: list[tuple[str, ...]] = [("mbm", kind, pair.name) for kind in self.conditions for pair in self.pairs]
        for state, _ in self.states():
            keys += [("share", state, str(d), share) for d in range(self.depths) for share in SHARES]
        count = len(self.design.trained)
        keys += [
            ("models", kind, str(i), str(j)) for kind in self.kernels for i in range(count) for j in range(i + 1, count)
        ]
        return tuple(keys)

    @cached_property
    def column_of(self) -> dict[tuple[str, ...], int]:
        """Column of each key of `names`."""
        return {name: k for k, name in enumerate(self.names)}

    def evaluate(self, R: Float64[np.ndarray, "*batch L L"]) -> Float64[np.ndarray, "*batch T"]:
        """Compute all indices of one matrix R, or of each matrix of a batch."""
        columns: list[Float64[np.ndarray, ...]] = []
        by_kind = {kind: self.similarities(R, kind) for kind in self.conditions}
        for kind, values in by_kind.items():
            for pair in self.pairs:
                S = self.block(values, pair)
                a_to_b, b_to_a = self.matches[kind, pair.name]
                columns.append((along(S, a_to_b.columns) + along(np.swapaxes(S, -1, -2), b_to_a.columns)) / 2)
        columns += self._shares(R)
        for kind in self.kernels:
            similarity = self.of_models(by_kind[kind], self.design.trained)
            columns += [
                similarity[..., i, j] for i, j in zip(*np.triu_indices(len(self.design.trained), 1), strict=True)
            ]
        return np.stack(np.broadcast_arrays(*columns), -1) if columns else np.zeros((*R.shape[:-2], 0))

    def _shares(self, R: Float64[np.ndarray, "*batch L L"]) -> list[Float64[np.ndarray, "..."]]:
        """Compute the four shares at every depth, and the sums of shares that may not be identified separately."""
        columns = []
        has_input = "input" in self.kernels
        C = residual(R, self.positions["input"].tolist()) if has_input else R
        for _, models in self.states():
            layers_by_depth = np.stack([self.at_depths(member) for member in models], 1)
            for layers in layers_by_depth:
                at_depth = shares(C[..., layers[:, None], layers], [member.family for member in models])
                columns += [getattr(at_depth, name) for name in SHARES]
                if not has_input:  # without pixels the input is part of the universal share
                    columns[-len(SHARES)] = np.full_like(at_depth.input, np.nan)
        return columns

    def of_models(
        self, values: Float64[np.ndarray, "*batch L L"], models: Sequence[Member]
    ) -> Float64[np.ndarray, "*batch M M"]:
        """Compute the similarity of models: the mean over the common depths.

        It is positive semidefinite if ``values`` is.
        """
        layers_by_depth = np.stack([self.at_depths(member) for member in models], 1)
        return np.asarray(np.mean([values[..., layers[:, None], layers] for layers in layers_by_depth], axis=0))

    def without_each(
        self, runs: Iterator[Float64[np.ndarray, "run L L"]]
    ) -> tuple[Float64[np.ndarray, "n T"], dict[str, Float64[np.ndarray, "layers layers"]]]:
        """Compute all indices without each sample, and jackknife standard errors of all similarities of layers.

        Parameters
        ----------
        runs
            Matrices R without each sample, several samples at a time.

        Returns
        -------
        array
            (n, T): all indices without each sample.
        dict
            Standard errors of the similarities of layers, by kind of control.
        """
        rows, moments = [], {kind: np.zeros((3, len(self.layers), len(self.layers))) for kind in self.conditions}
        all_samples = {kind: self._between_layers(self.R, kind) for kind in self.conditions}
        step = max(1, tuning.current().jackknife_memory // (8 * self.R.size))
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

    def _between_layers(
        self, R: Float64[np.ndarray, "*batch L L"], kind: str
    ) -> Float64[np.ndarray, "*batch layers layers"]:
        return self.similarities(R, kind)[..., self.layers[:, None], self.layers]
