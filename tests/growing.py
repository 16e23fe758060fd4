"""Compare stores with an earlier result in memory, or with parts in a folder chosen by the test."""

from pathlib import Path
from typing import Any

import xarray as xr

from repsim.engine.comparison import Comparison


def grow(*stores: Any, parts: Path | None = None, **options: Any) -> xr.Dataset:
    """Compare stores; the option ``known`` is the earlier result."""
    with Comparison(*stores, **options) as planned:
        return planned.run(parts=parts)
