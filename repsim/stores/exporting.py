"""Write the layers of a store to files that other programs read: safetensors, parquet and zarr."""

import json
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from repsim.errors import Argument, InvalidInputError, MissingExtraError, OutputError, Remedy, UnknownNameError
from repsim.runtime import interrupts
from repsim.runtime.files import replacing, replacing_folder
from repsim.stores import extents
from repsim.stores.foreign import RECORD
from repsim.stores.schema import Array
from repsim.stores.store import Activations, ActivationStore, open_store, store_path

SUFFIXES = (".safetensors", ".parquet", ".zarr")
"""Suffixes of the formats."""
COLUMNS = ("id", "label", "group")
"""Columns of a table beside the layers."""
_PIECE = 2**24
"""Bytes that are copied at once."""
_SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64"}


def export_activations(
    store: ActivationStore | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    layers: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the layers of a store to one file of another format, a few megabytes at a time.

    Values are unchanged, and `repsim.read_activations` reads them back, equal to the bit, with ids, classes and groups.
    The input of the model (pixels, statistics) is left out. The suffix decides the format:

    - ``.safetensors``: a tensor (n, ...) for each layer. The metadata hold the ``model``, the ``ids_fingerprint`` and,
      in the JSON text ``repsim``, ids, classes, groups and provenance.
    - ``.parquet``: a table with a row for each sample: the columns ``id``, ``label`` and ``group``, if there are any,
      and a column of lists of p numbers for each layer.
    - ``.zarr``: a group with an array (n, ...) for each layer, and the same description in its attributes.

    Parameters
    ----------
    store : ActivationStore or path
        The store.
    path : str or path
        The new file, or folder for zarr.
    layers : str or sequence of str, optional
        Names of layers in the store, or globs such as ``block*``. By default all.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    list of str
        Names of the layers in the file.

    Raises
    ------
    InvalidInputError
        The suffix is another one, a layer is compressed (Gram matrices or sketches, which are no features of samples),
        or a layer has the name of a column of the table.
    UnknownNameError
        No layer has a name that was given.
    MissingExtraError
        The library of the format is not installed.
    OutputError
        The file exists or cannot be written.

    Examples
    --------
    >>> import repsim, tempfile
    >>> x = np.random.default_rng(0).normal(size=(20, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = repsim.write_store(f"{folder}/net.h5", {"conv": x, "fc": x[:, :2]}, model="net")
    ...     repsim.export_activations(store, f"{folder}/net.safetensors")
    ...     bool((repsim.read_activations(f"{folder}/net.safetensors")["fc"][:] == x[:, :2]).all())
    ['conv', 'fc']
    True
    """
    target = store_path(path)
    if target.suffix not in SUFFIXES:
        raise InvalidInputError(f"name the file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not {target.name}")
    if not isinstance(store, ActivationStore):
        with open_store(store) as opened:
            return export_activations(opened, target, layers=layers, overwrite=overwrite)
    names = _select(store, layers)
    write = {".safetensors": _write_safetensors, ".parquet": _write_parquet, ".zarr": _write_zarr}[target.suffix]
    write(store, names, target, overwrite=overwrite)
    return names


def _select(store: ActivationStore, patterns: str | Sequence[str] | None) -> list[str]:
    """Return the names of the layers to write; refuse compressed ones."""
    wanted = [patterns] if isinstance(patterns, str) else patterns
    for pattern in wanted or ():
        if not any(fnmatchcase(name, pattern) for name in store.layers):
            raise UnknownNameError("layer", pattern, store.layers, where=f"in {store.path.name}")
    names = [name for name in store.layers if wanted is None or any(fnmatchcase(name, p) for p in wanted)]
    if compressed := [name for name in names if store[name].key.form != "features"]:
        raise InvalidInputError(
            f"{store.path}: {compressed[0]} is read out by {store[compressed[0]].key.readout}, which keeps no features "
            "of samples",
            remedy=Remedy("choose other layers with ", Argument("layers")),
        )
    return names


def _record(store: ActivationStore, names: Sequence[str]) -> dict[str, Any]:
    """Return the description of the samples and layers that stands beside the values."""
    contents = store.contents
    readouts = {name: store[name].key.readout for name in names}
    return {
        "model": store.model,
        "data": store.data,
        "layers": list(names),
        "readout": next(iter(readouts.values())) if len(set(readouts.values())) == 1 else "",
        "readouts": readouts,
        "shapes": {name: store[name].shape[1:] for name in names},
        "ids": list(store.sample_ids),
        "ids_fingerprint": store.sample_ids.fingerprint,
        "labels": contents.class_of,
        "groups": contents.group_of,
        "checksum": store.checksum,
        "provenance": store.provenance,
    }


def _blocks(array: Activations) -> Iterator[tuple[int, Array]]:
    """Yield the rows of a layer a few megabytes at a time, with the number of the first of them."""
    rows = _rows(array)
    for start in range(0, len(array), rows):
        interrupts.check()
        yield start, np.ascontiguousarray(array.read_rows(start, min(start + rows, len(array))))


def _rows(array: Activations) -> int:
    return max(1, _PIECE // (int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize))


def _write_safetensors(store: ActivationStore, names: Sequence[str], path: Path, *, overwrite: bool) -> None:
    """Write the format as its specification says: the length of a JSON header, the header, and the values."""
    record = _record(store, names)
    texts = {"model": store.model, "ids_fingerprint": store.sample_ids.fingerprint, RECORD: json.dumps(record)}
    header: dict[str, Any] = {"__metadata__": texts}
    offset = 0
    for name in names:
        array = store[name]
        size = int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.name], "shape": array.shape, "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of 8 bytes
    with replacing(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        _write_values(store, names, file)


def _write_values(store: ActivationStore, names: Sequence[str], file: BinaryIO) -> None:
    for name in names:
        little = store[name].dtype.newbyteorder("<")
        file.writelines(extents.as_bytes(values.astype(little, copy=False)) for _, values in _blocks(store[name]))


def _write_parquet(store: ActivationStore, names: Sequence[str], path: Path, *, overwrite: bool) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415 - in the extra `data` only
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("writing parquet", "pyarrow", extra="data") from None
    if reserved := [name for name in names if name in COLUMNS]:
        raise InvalidInputError(
            f"a layer is named {reserved[0]!r}, like a column of the table; export it as .safetensors or .zarr"
        )
    record = _record(store, names)
    columns = {"id": list(store.sample_ids), "label": record.pop("labels"), "group": record.pop("groups")}
    columns = {name: values for name, values in columns.items() if values is not None}
    del record["ids"]
    record["columns"] = list(columns)
    sizes = {name: int(np.prod(store[name].shape[1:], dtype=np.int64)) for name in names}
    kinds = {name: pa.list_(pa.from_numpy_dtype(store[name].dtype), size) for name, size in sizes.items()}
    kinds = {name: pa.array(values[:1]).type for name, values in columns.items()} | kinds
    schema = pa.schema(kinds.items(), metadata={RECORD: json.dumps(record)})
    rows = max(1, _PIECE // sum(sizes[name] * store[name].dtype.itemsize for name in names))
    texts = [name for name in columns if name in COLUMNS]  # a dictionary of real numbers only takes memory
    with (
        replacing(path, overwrite=overwrite) as partial,
        pq.ParquetWriter(partial, schema, use_dictionary=texts) as writer,
    ):
        for start in range(0, len(store), rows):
            interrupts.check()
            stop = min(start + rows, len(store))
            arrays = {name: pa.array(values[start:stop], kinds[name]) for name, values in columns.items()}
            for name in names:
                values = np.ascontiguousarray(store[name].read_rows(start, stop)).reshape(-1)
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), sizes[name])
            writer.write_table(pa.Table.from_arrays([*arrays.values()], schema=schema))


def _write_zarr(store: ActivationStore, names: Sequence[str], path: Path, *, overwrite: bool) -> None:
    try:
        import zarr  # noqa: PLC0415 - in the extra `data` only
    except ImportError:
        raise MissingExtraError("writing zarr", "zarr", extra="data") from None
    if path.is_dir() and not (path / "zarr.json").exists():  # a mistyped name must not replace a folder
        raise OutputError(f"{path} is a folder, and no zarr group; name another", path=path)
    with replacing_folder(path, overwrite=overwrite) as partial:
        group = zarr.create_group(partial, attributes={RECORD: json.loads(json.dumps(_record(store, names)))})
        for name in names:
            array = store[name]
            chunks = (min(_rows(array), len(array)), *array.shape[1:])
            target = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)
            for start, values in _blocks(array):
                target[start : start + len(values)] = values
