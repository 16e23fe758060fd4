"""What a study says of its models, as functions of one matrix: debiased CKA of all layers and controls.

Each is a number of R, and so of R without any one of the samples: leave-one-out values of all of them, taken together,
give intervals, differences between them, and the part that every stimulus has in them.
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
"""No control is given."""
TWINS = "untrained"
CONTROLS = ("input", "labels")
"""Kinds of kernels that can be given for all layers."""
SHARES = ("input", "universal", "family", "seed", "family_and_seed", "universal_and_family")
_DEPTHS = 10


@dataclass(frozen=True, eq=False)
class Indices:
    """Everything that is computed of R; `evaluate` computes it, `at` says where in a row of results it is.

    The best matches of layers are found once, in all samples: of a maximum, that is the derivative, and what is left
    out of one sample is a small step.
    """

    design: Design
    of: dict[str, Int64[np.ndarray, " layers"]]
    """Model, or kind of control -> where in R its layers are."""
    R: Float64[np.ndarray, "L L"]

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """What is projected out of all layers, one after the other: nothing, the input, the class labels."""
        return (RAW, *(kind for kind in CONTROLS if len(self.of.get(kind, ()))))

    @cached_property
    def given(self) -> tuple[str, ...]:
        """The same, and untrained networks, of which every pair of layers has its own."""
        twins = any(len(self.of[member.name]) for member in self.design.untrained)
        return (*self.kernels, TWINS) if twins else self.kernels

    @cached_property
    def layers(self) -> Int64[np.ndarray, " layers"]:
        """Where layers are, of all models."""
        return np.concatenate([self.of[member.name] for member in self.design.members])

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs with an index: trained models, their untrained twins, and one trained with the other's twin."""
        wanted: dict[frozenset[str], Pair] = {}
        for pair in self.design.pairs:
            for each in (pair, *self.design.controls_of(pair), *half_trained(self.design, pair)):
                wanted.setdefault(frozenset({each.a.name, each.b.name}), each)
        return tuple(pair for pair in wanted.values() if len(self.of[pair.a.name]) and len(self.of[pair.b.name]))

    @cached_property
    def depths(self) -> int:
        """How many relative depths models are compared at: those of the model with the fewest layers, or ten."""
        return max(2, min(_DEPTHS, *(len(self.of[member.name]) for member in self.design.members)))

    @cached_property
    def matches(self) -> dict[tuple[str, str], tuple[Match, Match]]:
        """(given, pair) -> the best match of a's layers with b's, and of b's with a's."""
        found = {}
        for kind in self.given:
            values = self.similarities(self.R, kind)
            for pair in self.pairs:
                S = self.block(values, pair)
                found[kind, pair.name] = best_match(S), best_match(S.T)
        return found

    def similarities(self, R: Float64[np.ndarray, "*batch L L"], kind: str) -> Float64[np.ndarray, "*batch L L"]:
        """Debiased CKA, partial where something is given."""
        if kind == TWINS:
            return partial_of_two(R, self._twins)
        return R if kind == RAW else partial(R, self.of[kind].tolist())

    @cached_property
    def _twins(self) -> Float64[np.ndarray, "L L"]:
        """For every layer of a trained network the mean of its untrained twins, as weights of layers; else 0.

        Twins are networks that have the same layers, all of them: where one is left out, it is not known which.
        """
        weights = np.zeros(self.R.shape)
        for member in self.design.trained:
            own = self.of[member.name]
            twins = [self.of[m.name] for m in self.design.untrained if is_twin(m, member)]
            twins = [layers for layers in twins if len(layers) == len(own) == len(member.blocks)]
            for layers in twins:
                weights[own, layers] += 1 / len(twins)
        return weights

    def block(self, values: Float64[np.ndarray, "*batch L L"], pair: Pair) -> Float64[np.ndarray, "*batch A B"]:
        """The layers of a by those of b."""
        return values[..., self.of[pair.a.name][:, None], self.of[pair.b.name]]

    def at_depths(self, member: Member) -> Int64[np.ndarray, " depths"]:
        """Where a model's layers at the common depths are."""
        own = self.of[member.name]
        return np.asarray(own[nearest(len(own), self.depths)])

    def states(self) -> Iterator[tuple[str, tuple[Member, ...]]]:
        """Trained and untrained models, where there are several."""
        for state, some in (("trained", self.design.trained), ("untrained", self.design.untrained)):
            if len(some) > 1:
                yield state, some

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """What each number of a row is."""
        found: list[tuple[str, ...]] = [("mbm", kind, pair.name) for kind in self.given for pair in self.pairs]
        for state, _ in self.states():
            found += [("share", state, str(d), share) for d in range(self.depths) for share in SHARES]
        count = len(self.design.trained)
        found += [
            ("models", kind, str(i), str(j)) for kind in self.kernels for i in range(count) for j in range(i + 1, count)
        ]
        return tuple(found)

    @cached_property
    def at(self) -> dict[tuple[str, ...], int]:
        """Where in a row a number is."""
        return {name: k for k, name in enumerate(self.names)}

    def evaluate(self, R: Float64[np.ndarray, "*batch L L"]) -> Float64[np.ndarray, "*batch T"]:
        """All numbers of one matrix, or of each of many."""
        columns: list[Float64[np.ndarray, ...]] = []
        by_kind = {kind: self.similarities(R, kind) for kind in self.given}
        for kind, values in by_kind.items():
            for pair in self.pairs:
                S = self.block(values, pair)
                there, back = self.matches[kind, pair.name]
                columns.append((along(S, there.columns) + along(np.swapaxes(S, -1, -2), back.columns)) / 2)
        columns += self._shares(R)
        for kind in self.kernels:
            similarity = self.of_models(by_kind[kind], self.design.trained)
            columns += [
                similarity[..., i, j] for i, j in zip(*np.triu_indices(len(self.design.trained), 1), strict=True)
            ]
        return np.stack(np.broadcast_arrays(*columns), -1) if columns else np.zeros((*R.shape[:-2], 0))

    def _shares(self, R: Float64[np.ndarray, "*batch L L"]) -> list[Float64[np.ndarray, "..."]]:
        """The four shares at every depth, and the sums of those that may not be told apart."""
        columns = []
        known = "input" in self.kernels
        C = residual(R, self.of["input"].tolist()) if known else R
        for _, some in self.states():
            where = np.stack([self.at_depths(member) for member in some], 1)
            for rows in where:
                found = shares(C[..., rows[:, None], rows], [member.family for member in some])
                columns += [getattr(found, name) for name in SHARES]
                if not known:  # it is in the share that is common to all
                    columns[-len(SHARES)] = np.full_like(found.input, np.nan)
        return columns

    def of_models(
        self, values: Float64[np.ndarray, "*batch L L"], some: Sequence[Member]
    ) -> Float64[np.ndarray, "*batch M M"]:
        """Similarity of models: the mean over the common depths. Where R is positive semidefinite, so is this."""
        where = np.stack([self.at_depths(member) for member in some], 1)
        return np.asarray(np.mean([values[..., rows[:, None], rows] for rows in where], axis=0))

    def without_each(
        self, runs: Iterator[Float64[np.ndarray, "run L L"]]
    ) -> tuple[Float64[np.ndarray, "n T"], dict[str, Float64[np.ndarray, "layers layers"]]]:
        """`evaluate` without each sample, and the jackknife's standard errors of all similarities of layers."""
        rows, moments = [], {kind: np.zeros((3, len(self.layers), len(self.layers))) for kind in self.given}
        whole = {kind: self._of_layers(self.R, kind) for kind in self.given}
        step = max(1, tuning.current().jackknife_memory // (8 * self.R.size))
        for run in runs:
            for start in range(0, len(run), step):
                piece = run[start : start + step]
                rows.append(self.evaluate(piece))
                for kind in self.given:
                    change = self._of_layers(piece, kind) - whole[kind]
                    moments[kind] += np.stack(
                        [np.full(change.shape[1:], len(piece)), change.sum(0), np.square(change).sum(0)]
                    )
        errors = {
            kind: np.sqrt((count - 1) / count * np.maximum(squares - total**2 / count, 0))
            for kind, (count, total, squares) in moments.items()
        }
        return np.concatenate(rows), errors

    def _of_layers(
        self, R: Float64[np.ndarray, "*batch L L"], kind: str
    ) -> Float64[np.ndarray, "*batch layers layers"]:
        return self.similarities(R, kind)[..., self.layers[:, None], self.layers]
