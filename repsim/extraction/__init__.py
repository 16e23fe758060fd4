"""Extract the activations of models into stores. The modules behind the names below are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repsim.extraction.jobs import Extraction, Samples, choose_samples, choose_stream, run_together
    from repsim.extraction.runs import extract

__all__ = ["Extraction", "Samples", "choose_samples", "choose_stream", "extract", "run_together"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"repsim.extraction.{'runs' if name == 'extract' else 'jobs'}"), name)
    raise AttributeError(f"module 'repsim.extraction' has no attribute {name!r}")
