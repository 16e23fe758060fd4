"""Compare with an earlier result that is in memory, or with parts in a folder of the test's choice."""

from pathlib import Path
from typing import Any

import xarray as xr

from repsim.engine.comparison import Comparison


def grow(*stores: Any, parts: Path | None = None, **options: Any) -> xr.Dataset:
    """Compare; ``known`` is the earlier result."""
    with Comparison(*stores, **options) as planned:
        return planned.run(parts=parts)
