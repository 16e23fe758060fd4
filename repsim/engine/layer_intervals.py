"""Compute the intervals over samples of all pairs of layers of a comparison, with each sample or group left out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from repsim.engine.planning import Stage
from repsim.engine.resampling import in_groups, leaves_one_out, sweep_without
from repsim.engine.uncertainty import errors_of, quantile
from repsim.errors import InvalidInputError
from repsim.metrics import Metric
from repsim.metrics.base import GramMetric
from repsim.metrics.recipes.groups import Groups
from repsim.runtime.processes import ALONE, Ranks
from repsim.stores.alignment import AlignedView
from repsim.stores.grouping import common_groups_of
from repsim.stores.store import ActivationStore

Values = Float64[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of a comparison: their level, and what is left out, single samples or groups.

    Values with all samples are those of the comparison, unless samples are in groups: then they come from pairs of
    samples of different groups only.
    """

    level: float
    n: int
    """Number of samples."""
    groups: Groups | None = None
    """Groups of the samples; None if every sample is independent."""

    @classmethod
    def of(cls, level: float, stores: Sequence[ActivationStore], view: AlignedView, groups: Any) -> "Intervals":
        """Return the intervals of these stores; raise `InvalidInputError` for too few samples or unfit groups."""
        n = len(view.sample_ids)
        chosen = common_groups_of(stores, groups, view)
        if chosen is not None:
            chosen.check_left_out()
        if n < 5:
            raise InvalidInputError(f"{n} samples are too few for an interval: it needs at least 5")
        return cls(level, n, chosen)

    @property
    def units(self) -> int:
        """Number of samples or groups that are left out."""
        return self.n if self.groups is None else self.groups.count

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """Record of the groups for the result; None if there are none."""
        if self.groups is None:
            return None
        numbers = json.dumps(self.groups.numbers.tolist()).encode()
        return {
            "count": self.groups.count,
            "largest": int(self.groups.sizes.max()),
            "sha256": hashlib.sha256(numbers).hexdigest(),
        }

    @property
    def notes(self) -> list[str]:
        """Notes on what is left out."""
        if self.groups is None:
            return []
        groups = f"the samples are in {self.groups.count:,} groups: intervals leave out whole groups"
        return [f"{groups}, and debiased CKA is computed from pairs of samples of different groups"]

    @property
    def margin(self) -> float:
        """Half-width of an interval in standard errors."""
        return quantile(self.units, self.level)

    def check(self, metrics: Iterable[Metric[Any]]) -> None:
        """Raise `InvalidInputError` if no measure has an interval."""
        specs = [metric.spec for metric in metrics]
        if not any(map(leaves_one_out, metrics)):
            raise InvalidInputError(
                f"no interval for {', '.join(specs)}: it needs an exact leave-one-out; take debiased CKA: cka or "
                "cka:kernel=rbf"
            )

    def errors(
        self,
        stage: Stage,
        metric: GramMetric[Any],
        rows: Sequence[Any],
        columns: Sequence[Any],
        values: Values,
        *,
        me: Ranks = ALONE,
        step: Callable[[int], Callable[[], None]],
    ) -> tuple[Values, Values]:
        """Compute values and their standard errors, in the first process.

        Parameters
        ----------
        stage
            Stage of the plan, with sizes of the pass.
        metric
            Debiased CKA.
        rows, columns
            Prepared layers.
        values
            Values of all samples, without regard to groups.
        me
            This process.
        step
            Takes the number of units of the pass, and returns the function to call after each.
        """
        computed: tuple[Values, Values] | None = None
        if me.first:
            sides = rows, columns
            if self.groups is not None:
                factors = {id(x): in_groups(x, self.groups) for x in (*rows, *columns)}
                sides = [factors[id(x)] for x in rows], [factors[id(x)] for x in columns]
            sweep = sweep_without(*sides, metric, panel=stage.units_panel, room=stage.units_room)
            total = squares = np.zeros(values.shape)
            for _, left_out in sweep.runs(step(sweep.units)):
                changes = left_out - sweep.full_values
                total, squares = total + changes.sum(0), squares + np.square(changes, out=changes).sum(0)
            whole = values if self.groups is None else sweep.full_values
            computed = whole, errors_of(self.units, total, squares)
        computed = me.broadcast(computed)
        assert computed is not None, "the first process has computed them"
        return computed
