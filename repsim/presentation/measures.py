"""Describes the measures of a study, whose file has their names alone."""

from dataclasses import dataclass

from repsim import metrics

GIVEN = " given "


@dataclass(frozen=True)
class Traits:
    """What a measure declares (`repsim.metrics.base.Metric`), under the name that a study gives it."""

    spec: str
    label: str
    sense: str
    valid_range: tuple[float, float]
    formula: str
    citation: str

    @property
    def similarity_range(self) -> tuple[float, float]:
        """The range of the study's values, which are similarities: a distance is there as its negative."""
        low, high = self.valid_range
        return (low, high) if self.sense == "similarity" else (0.0 - high, 0.0 - low)


def traits(measure: str) -> Traits:
    """Look up what a measure of a study declares.

    Raises
    ------
    UnknownNameError
        If it is a third party's, which is not installed here.

    Examples
    --------
    >>> traits("cka given input").label
    'CKA (linear, debiased), given input'
    >>> [round(bound, 4) for bound in traits("procrustes").similarity_range]
    [-1.4142, 0.0]
    """
    spec, _, given = measure.partition(GIVEN)
    metric = metrics.get(spec)
    label = f"{metric.label}, given {given}" if given else metric.label
    low, high = metric.bounds
    return Traits(measure, label, metric.sense, (low, high), metric.formula, metric.citation)
