"""Look up the traits of the measures of a study, whose file holds only their names."""

from dataclasses import dataclass

from repsim import metrics

GIVEN = " given "


@dataclass(frozen=True)
class Traits:
    """Traits that a measure declares (`repsim.metrics.base.Metric`), with the name of the measure in a study."""

    spec: str
    label: str
    sense: str
    valid_range: tuple[float, float]
    formula: str
    citation: str

    @property
    def similarity_range(self) -> tuple[float, float]:
        """Range of the values in a study, which are similarities: a study holds the negative of a distance."""
        low, high = self.valid_range
        return (low, high) if self.sense == "similarity" else (0.0 - high, 0.0 - low)


def traits(measure: str) -> Traits:
    """Return the traits of a measure of a study.

    Parameters
    ----------
    measure : str
        Name of the measure in the study: a spec, or ``SPEC given CONTROL`` for partial similarity.

    Raises
    ------
    UnknownNameError
        If the measure belongs to a package that is not installed.

    Examples
    --------
    >>> traits("cka given input").label
    'CKA (linear, debiased), given input'
    >>> [round(bound, 4) for bound in traits("procrustes").similarity_range]
    [-1.4142, 0.0]
    """
    spec, _, control = measure.partition(GIVEN)
    metric = metrics.get(spec)
    label = f"{metric.label}, given {control}" if control else metric.label
    low, high = metric.bounds
    return Traits(measure, label, metric.sense, (low, high), metric.formula, metric.citation)
