"""Write stores, a result and a study with the installed revision of repsim, and the values that it reads from them.

README.md in this folder lists the revisions that have written the files.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

import repsim


def main(folder: Path) -> None:
    """Write the files into a folder, and their values as arrays to ``values.npz``."""
    work = folder / "work"
    models = {"digits_resnet.seed0": "stages", "digits_resnet.seed1": "stages", "digits_vit.seed0": "blocks.*"}
    options: dict[str, Any] = {"split": "test", "limit": 32}
    stores = [repsim.extract(name, "digits", work, layers=layers, **options) for name, layers in models.items()]
    readouts = "gram:8,sketch:4,mean"
    compressed = repsim.extract(
        "digits_resnet.seed0", "digits", work / "compressed", layers="stages", readout=readouts, **options
    )
    stores[0].path.rename(folder / "store.h5")
    compressed.path.rename(folder / "compressed.h5")
    result = repsim.compare(folder / "store.h5", stores[2].path, ["cka", "svcca", "mutual_knn:k=5"])
    repsim.save_result(result, folder / "result.nc")
    paths = [folder / "store.h5", stores[1].path, stores[2].path]
    repsim.save_result(repsim.universality(paths, ["cka"], permutations=19, draws=50), folder / "study.nc")
    values: dict[str, Any] = {}
    for name in ("store.h5", "compressed.h5"):
        with repsim.open_store(folder / name) as store:
            values |= {f"{name} {layer}": store[layer][:] for layer in store.layers}
            values |= {f"{name} ids": np.array(list(store.sample_ids)), f"{name} labels": np.asarray(store.labels)}
    for name, data in (("result.nc", result), ("study.nc", repsim.open_study(folder / "study.nc"))):
        for variable, array in data.variables.items():
            values[f"{name} {variable}"] = array.values.astype(str) if array.dtype.kind in "OT" else array.values
    np.savez_compressed(folder / "values.npz", **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
