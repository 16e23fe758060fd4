"""What depends on one layer, computed once a layer: a factor for every recipe that some metric asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics import Factor, Metric, Recipe


@dataclass(frozen=True)
class LayerFactors:
    """One layer, prepared for a set of metrics."""

    name: str
    features: int
    """p, the number of values a sample."""
    factors: Mapping[Recipe[Any], Factor]
    undefined: Mapping[Recipe[Any], str]
    """Recipes that have no factor for this layer, and why (a constant layer, say)."""


def prepare(name: str, x: Float[Tensor, "n p"], metrics: Iterable[Metric[Any]]) -> LayerFactors:
    """Apply every distinct recipe of ``metrics`` once."""
    factors: dict[Recipe[Any], Factor] = {}
    undefined: dict[Recipe[Any], str] = {}
    for recipe in dict.fromkeys(metric.recipe for metric in metrics):
        try:
            factors[recipe] = recipe(x)
        except UndefinedValueError as error:
            undefined[recipe] = str(error)
        except Exception as error:
            error.add_note(f"while preparing layer {name} ({tuple(x.shape)}) with {recipe}")
            raise
    return LayerFactors(name, x.shape[1], factors, undefined)
