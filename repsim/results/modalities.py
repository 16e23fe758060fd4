"""Words for the samples of a saved result, study or series, by what its networks read."""

import json

import xarray as xr

from repsim.labels import noun_of


def samples_of(data: xr.Dataset, *, count: int = 2) -> str:
    """Return the word for the samples of a result, a study or a series: pictures, texts, arrays, or else samples.

    Networks that were extracted by earlier versions read pictures, which their files do not say.

    Parameters
    ----------
    data
        Result, study or series.
    count
        Number of samples: 1 for the singular.
    """
    if "modality" in data.coords:
        return noun_of(data["modality"].values.tolist(), count=count)
    stores = [store for name in ("stores", "stores_a", "stores_b") for store in json.loads(data.attrs.get(name, "[]"))]
    recorded = [(store.get("provenance") or {}).get("modality") for store in stores]
    return noun_of([str(modality or "image") for modality in recorded] or ["image"], count=count)
