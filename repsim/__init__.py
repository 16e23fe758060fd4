"""repsim: do two neural networks represent the world in the same way?

The public names below load what they need when they are first used (PEP 562), so that ``import repsim`` and
``repsim --help`` stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repsim.comparison import compare, similarity
    from repsim.errors import RepsimError
    from repsim.extraction import extract
    from repsim.figures import heatmap
    from repsim.frames import to_frame
    from repsim.report.page import write_report
    from repsim.resampling import leave_one_out, permuted, random_permutations, random_subsamples, subsampled
    from repsim.results import open_result, open_study, save_result
    from repsim.store import ActivationStore, open_store, verify
    from repsim.study.conduct import universality
    from repsim.views import view
    from repsim.writing import write_store

__version__ = "0.1.0"

_HOME = {
    "ActivationStore": "repsim.store",
    "RepsimError": "repsim.errors",
    "compare": "repsim.comparison",
    "extract": "repsim.extraction",
    "heatmap": "repsim.figures",
    "leave_one_out": "repsim.resampling",
    "open_result": "repsim.results",
    "open_store": "repsim.store",
    "open_study": "repsim.results",
    "permuted": "repsim.resampling",
    "random_permutations": "repsim.resampling",
    "random_subsamples": "repsim.resampling",
    "save_result": "repsim.results",
    "similarity": "repsim.comparison",
    "subsampled": "repsim.resampling",
    "to_frame": "repsim.frames",
    "universality": "repsim.study.conduct",
    "verify": "repsim.store",
    "view": "repsim.views",
    "write_report": "repsim.report.page",
    "write_store": "repsim.writing",
}

__all__ = [
    "ActivationStore",
    "RepsimError",
    "__version__",
    "compare",
    "extract",
    "heatmap",
    "leave_one_out",
    "open_result",
    "open_store",
    "open_study",
    "permuted",
    "random_permutations",
    "random_subsamples",
    "save_result",
    "similarity",
    "subsampled",
    "to_frame",
    "universality",
    "verify",
    "view",
    "write_report",
    "write_store",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in {"extractors", "metrics"}:
        return importlib.import_module(f"repsim.{name}")
    raise AttributeError(f"module 'repsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "extractors", "metrics"})
