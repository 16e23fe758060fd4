"""What depends on one layer, computed once a layer: a factor for every recipe that some metric asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.labels import LayerKey
from repsim.metrics import Factor, Metric, Recipe


@dataclass(frozen=True)
class LayerFactors:
    """One layer, prepared for a set of metrics."""

    name: str
    key: LayerKey
    features: int
    """p, the number of values that a sample has in the comparison; -1 where that is not known."""
    factors: Mapping[Metric[Any], Factor]
    undefined: Mapping[Metric[Any], str]
    """Metrics for which this layer has no factor, and why (a constant layer, say)."""

    @property
    def kind(self) -> str:
        """Layers of one kind can be compared: all features with one another, and compressed readouts of equal size."""
        return "features" if self.key.form == "features" else self.key.readout


def prepare(
    name: str, key: LayerKey, features: int, x: Float[Tensor, "rows ..."], metrics: Iterable[Metric[Any]]
) -> LayerFactors:
    """Apply every distinct recipe of ``metrics`` once."""
    made: dict[Recipe[Any], Factor | UndefinedValueError] = {}
    factors: dict[Metric[Any], Factor] = {}
    undefined: dict[Metric[Any], str] = {}
    for metric in metrics:
        try:
            recipe = metric.recipe_for(key.form)
        except UndefinedValueError as error:
            undefined[metric] = str(error)
            continue
        if recipe not in made:
            made[recipe] = _apply(recipe, name, x)
        factor = made[recipe]
        if isinstance(factor, UndefinedValueError):
            undefined[metric] = str(factor)
        else:
            factors[metric] = factor
    return LayerFactors(name, key, features, factors, undefined)


def _apply(recipe: Recipe[Any], name: str, x: Float[Tensor, "rows ..."]) -> Factor | UndefinedValueError:
    try:
        factor: Factor = recipe(x)
    except UndefinedValueError as error:
        return error
    except Exception as error:
        error.add_note(f"while preparing layer {name} ({tuple(x.shape)}) with {recipe}")
        raise
    return factor
