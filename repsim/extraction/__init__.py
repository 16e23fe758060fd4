"""From models and pictures to activation stores. The names below load what they need when they are first used."""

import importlib
from typing import Any

_HOME = {"extract": "runs"} | dict.fromkeys(
    ("DType", "Extraction", "Samples", "choose_samples", "choose_stream", "run_together"), "jobs"
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"repsim.extraction.{_HOME[name]}"), name)
    raise AttributeError(f"module 'repsim.extraction' has no attribute {name!r}")
