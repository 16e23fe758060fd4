"""Compute intervals, influences and control pairs from the evidence of a study, once for all parts of its data set."""

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
"""Names in results of debiased CKA and of partial CKA, by the control that is projected out."""


@dataclass(frozen=True, eq=False)
class Inference:
    """Evidence of a study, and the statistics that are computed from it."""

    evidence: Evidence
    draws: int
    """Number of draws of the multiplier bootstrap."""
    seed: int
    """Seed of these draws."""

    @property
    def design(self) -> Design:
        """Design of the study."""
        return self.evidence.design

    @property
    def indices(self) -> Indices:
        """Indices of the study, which are functions of the matrix R."""
        return self.evidence.indices

    @cached_property
    def theta(self) -> Float64[np.ndarray, " T"]:
        """All indices, from all samples."""
        return self.indices.evaluate(self.indices.R)

    @cached_property
    def influences(self) -> Float64[np.ndarray, "n T"]:
        """Influence of every sample on every index."""
        return influence(self.theta, self.evidence.left_out)

    @cached_property
    def drawn(self) -> Float64[np.ndarray, "draws T"]:
        """Bootstrap draws of all indices, with the same random weights of samples for all of them.

        Fluctuations that two indices share therefore cancel in the draws of their difference.
        """
        return multiplier_bootstrap(self.theta, self.influences, self.draws, self.seed)

    @cached_property
    def conditions(self) -> dict[str, str]:
        """Kinds of debiased CKA, by their names in results."""
        return {TITLES[kind]: kind for kind in self.indices.conditions}

    @cached_property
    def kernels(self) -> dict[str, str]:
        """Kinds of debiased CKA with one control for all layers: their matrices are positive semidefinite."""
        return {TITLES[kind]: kind for kind in self.indices.kernels}

    @cached_property
    def titles(self) -> list[str]:
        """Names in results of all measures."""
        return [*self.conditions, *(result.metric.spec for result in self.evidence.measures)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Pairs of trained models that have an index."""
        with_index = {pair.name for pair in self.indices.pairs}
        return [pair for pair in self.design.pairs if pair.name in with_index]

    @cached_property
    def layers(self) -> list[int]:
        """Positions in R of the layers of trained models."""
        return [int(k) for member in self.design.trained for k in self.indices.positions[member.name]]

    def column(self, kind: str, pair: Pair) -> int:
        """Return the column of the index (MBM) of a pair."""
        return self.indices.column_of["mbm", kind, pair.name]

    def controls(self, pair: Pair, *, half: bool) -> Iterator[tuple[str, list[Pair]]]:
        """Yield the control pairs of a pair of trained models, with their kind: "both untrained" or "one untrained".

        Parameters
        ----------
        pair
            Pair of trained models.
        half
            Whether to include pairs of a trained network with an untrained one.
        """
        with_index = {pair_with_index.name for pair_with_index in self.indices.pairs}
        candidates = {"both untrained": self.design.controls_of(pair)}
        if half:
            candidates["one untrained"] = half_trained(self.design, pair)
        for name, pairs in candidates.items():
            if usable := [control for control in pairs if control.name in with_index]:
                yield name, usable
