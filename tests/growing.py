"""Compare with an earlier result that is in memory, or with parts in a chosen folder."""

from pathlib import Path
from typing import Any

import xarray as xr

from repsim.engine.comparison import Comparison


def grow(*stores: Any, parts: Path | None = None, **options: Any) -> xr.Dataset:
    """Compare; ``options`` are those of `Comparison`, such as ``earlier_result``."""
    with Comparison(*stores, **options) as planned:
        return planned.run(parts=parts)
