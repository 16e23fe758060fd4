"""What follows from the evidence of a study, computed once for all parts of its data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from repsim.study.design import Design, Pair, half_trained
from repsim.study.evidence import Evidence
from repsim.study.indices import RAW, TWINS, Indices
from repsim.study.uncertainty import influence, multiplier_bootstrap

TITLES = {RAW: "cka", "input": "cka given input", "labels": "cka given labels", TWINS: "cka given untrained"}
"""Of debiased CKA, and partial CKA."""


@dataclass(frozen=True, eq=False)
class Inference:
    """Evidence, and what follows from it."""

    evidence: Evidence
    draws: int
    seed: int

    @property
    def design(self) -> Design:
        """The study's design."""
        return self.evidence.design

    @property
    def indices(self) -> Indices:
        """All functions of the matrix R."""
        return self.evidence.indices

    @cached_property
    def theta(self) -> Float64[np.ndarray, " T"]:
        """The indices of all samples."""
        return self.indices.evaluate(self.indices.R)

    @cached_property
    def influences(self) -> Float64[np.ndarray, "n T"]:
        """The influence of every sample on every index."""
        return influence(self.theta, self.evidence.left_out)

    @cached_property
    def drawn(self) -> Float64[np.ndarray, "draws T"]:
        """All indices under the same random weights of samples: what they have in common, differences do not have."""
        return multiplier_bootstrap(self.theta, self.influences, self.draws, self.seed)

    @cached_property
    def given(self) -> dict[str, str]:
        """Title -> what is given, of debiased CKA."""
        return {TITLES[kind]: kind for kind in self.indices.given}

    @cached_property
    def kernels(self) -> dict[str, str]:
        """Those of which the same is given for all layers: matrices of them are positive semidefinite."""
        return {TITLES[kind]: kind for kind in self.indices.kernels}

    @cached_property
    def titles(self) -> list[str]:
        """Of all measures."""
        return [*self.given, *(each.metric.spec for each in self.evidence.measured)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Of trained models that have an index."""
        there = {pair.name for pair in self.indices.pairs}
        return [pair for pair in self.design.pairs if pair.name in there]

    @cached_property
    def layers(self) -> list[int]:
        """Where in R the layers of trained models are."""
        return [int(k) for member in self.design.trained for k in self.indices.of[member.name]]

    def column(self, kind: str, pair: Pair) -> int:
        """Of a pair's index."""
        return self.indices.at["mbm", kind, pair.name]

    def controls(self, pair: Pair, *, half: bool) -> Iterator[tuple[str, list[Pair]]]:
        """What a pair's similarity is held against: pairs of which one network, or both, have learnt nothing."""
        there = {each.name for each in self.indices.pairs}
        some = {"both untrained": self.design.controls_of(pair)}
        if half:
            some["one untrained"] = half_trained(self.design, pair)
        for name, pairs in some.items():
            if known := [each for each in pairs if each.name in there]:
                yield name, known
