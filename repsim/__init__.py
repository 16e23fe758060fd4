"""repsim: do two neural networks represent the world in the same way?

The public names below import their modules at first use (PEP 562), so that ``import repsim`` and ``repsim --help``
are fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from repsim._version import __version__

if TYPE_CHECKING:
    from repsim.display import view
    from repsim.engine.comparison import compare, similarity
    from repsim.engine.intervals import similarity_difference
    from repsim.engine.resampling import leave_one_out, permuted, random_permutations, random_subsamples, subsampled
    from repsim.errors import RepsimError
    from repsim.extraction.runs import extract
    from repsim.figures import heatmap
    from repsim.pipeline import run_study
    from repsim.report.page import write_report
    from repsim.results.export import to_frame
    from repsim.results.files import open_result, open_series, open_study, save_result
    from repsim.stores.exporting import export_activations
    from repsim.stores.importing import read_activations
    from repsim.stores.in_memory import as_store
    from repsim.stores.store import ActivationStore, open_store, verify
    from repsim.stores.writer import write_store
    from repsim.study.universality import universality
    from repsim.trends.block_structure import block_structure
    from repsim.trends.series import series
    from repsim.trends.spans import removable_spans

_MODULES = {
    "ActivationStore": "repsim.stores.store",
    "RepsimError": "repsim.errors",
    "as_store": "repsim.stores.in_memory",
    "block_structure": "repsim.trends.block_structure",
    "compare": "repsim.engine.comparison",
    "export_activations": "repsim.stores.exporting",
    "extract": "repsim.extraction.runs",
    "heatmap": "repsim.figures",
    "leave_one_out": "repsim.engine.resampling",
    "open_result": "repsim.results.files",
    "open_series": "repsim.results.files",
    "open_store": "repsim.stores.store",
    "open_study": "repsim.results.files",
    "permuted": "repsim.engine.resampling",
    "random_permutations": "repsim.engine.resampling",
    "random_subsamples": "repsim.engine.resampling",
    "read_activations": "repsim.stores.importing",
    "removable_spans": "repsim.trends.spans",
    "run_study": "repsim.pipeline",
    "save_result": "repsim.results.files",
    "series": "repsim.trends.series",
    "similarity": "repsim.engine.comparison",
    "similarity_difference": "repsim.engine.intervals",
    "subsampled": "repsim.engine.resampling",
    "to_frame": "repsim.results.export",
    "universality": "repsim.study.universality",
    "verify": "repsim.stores.store",
    "view": "repsim.display",
    "write_report": "repsim.report.page",
    "write_store": "repsim.stores.writer",
}

_NEED_ACCESSOR = {"compare", "open_result", "open_series", "open_study", "run_study", "series", "universality", "view"}
"""Functions that return data sets with the accessor ``.repsim``, which `repsim.display` registers."""

__all__ = [
    "ActivationStore",
    "RepsimError",
    "__version__",
    "as_store",
    "block_structure",
    "compare",
    "export_activations",
    "extract",
    "heatmap",
    "leave_one_out",
    "open_result",
    "open_series",
    "open_store",
    "open_study",
    "permuted",
    "random_permutations",
    "random_subsamples",
    "read_activations",
    "removable_spans",
    "run_study",
    "save_result",
    "series",
    "similarity",
    "similarity_difference",
    "subsampled",
    "to_frame",
    "universality",
    "verify",
    "view",
    "write_report",
    "write_store",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_ACCESSOR:
        importlib.import_module("repsim.display")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in {"extractors", "metrics"}:
        return importlib.import_module(f"repsim.{name}")
    raise AttributeError(f"module 'repsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, "extractors", "metrics"})
