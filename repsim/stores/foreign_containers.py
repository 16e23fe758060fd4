"""Read layers from HDF5, h5ad, zarr and parquet, with the ids and columns that stand beside them.

Nothing outside of a file is read: links into other files are refused, and so are codecs that unpickle objects.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from repsim.errors import Function, InvalidInputError, MissingExtraError, Remedy, StoreError, reason
from repsim.runtime.files import natural_key
from repsim.stores.foreign import IDS, RECORD, Foreign, ForeignLayer, as_record, sliced
from repsim.stores.reader import check_self_contained, stated_format
from repsim.stores.schema import FORMAT, Array


def read_hdf5(path: Path) -> Foreign:
    """Open an HDF5 file: one layer for each dataset; names of groups are joined by dots."""
    file = _open_hdf5(path)
    source = Foreign(form="hdf5")
    for name, dataset in _datasets(file):
        _add_dataset(source, path, name, dataset)
    return source


def read_h5ad(path: Path) -> Foreign:
    """Open a file of AnnData: ``X``, ``layers`` and ``obsm`` are layers, ``obs`` holds ids and columns."""
    try:
        from anndata.io import read_elem, sparse_dataset  # noqa: PLC0415 - in the extra `data` only
    except ImportError:
        raise MissingExtraError("reading .h5ad", "anndata", extra="data") from None
    file = _open_hdf5(path)
    source = Foreign(form="h5ad")
    try:
        obs: Any = read_elem(file["obs"])
        members = {"X": file["X"]} if "X" in file else {}
        for group in ("layers", "obsm"):
            members |= {f"{group}.{name}": value for name, value in file.get(group, {}).items()}
        for name, member in members.items():
            if isinstance(member, h5py.Dataset):
                _add_dataset(source, path, name, member)
            elif str(member.attrs.get("encoding-type", "")).startswith(("csr", "csc")):
                sparse: Any = sparse_dataset(member)
                blocks = partial(_sparse_blocks, sparse)
                source.add(ForeignLayer(name, tuple(sparse.shape), np.dtype(sparse.dtype).name, blocks))
            else:
                source.left_out[name] = "a table"
    except KeyError as error:
        raise StoreError(f"{path} is no file of AnnData: {reason(error)}", path=path) from None
    for name in file:
        if name not in {"X", "obs", "layers", "obsm"} and len(file[name]):
            source.left_out[name] = "describes no sample by features"
    for name in obs.columns:
        source.columns[str(name)] = partial(_column, obs, name)
    source.ids, source.ids_from = (lambda: obs.index.astype(str).tolist()), "obs_names"
    return source


def _column(table: Any, name: str) -> Any:
    column = table[name]
    return column if column.dtype.name == "category" else column.to_numpy()


def _sparse_blocks(sparse: Any, rows: int) -> Iterator[Array]:
    for start in range(0, sparse.shape[0], rows):
        yield sparse[start : start + rows].toarray()


def _open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file; refuse links and values in other files, and stores of repsim."""
    if stated_format(path) == FORMAT:
        raise InvalidInputError(
            f"{path} is a store already", remedy=Remedy("open it with ", Function("repsim.open_store"))
        )
    try:
        check_self_contained(path, compressed=True)
        return h5py.File(path, "r", locking=False)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged structures can make HDF5 raise anything
        raise StoreError(f"cannot read {path}: {reason(error)}", path=path) from None


def _datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield all datasets below a group: in the order of creation where the file keeps it, or else natural order."""
    ordered = group.id.get_create_plist().get_link_creation_order()
    for name in group if ordered else sorted(group, key=natural_key):
        child = group[name]
        if isinstance(child, h5py.Group):
            yield from _datasets(child, f"{prefix}{name}.")
        elif isinstance(child, h5py.Dataset):
            yield f"{prefix}{name}", child


def _add_dataset(source: Foreign, path: Path, name: str, dataset: h5py.Dataset) -> None:
    kind = dataset.dtype
    if h5py.check_string_dtype(kind) is not None:
        source.left_out[name] = "no numbers"
        if len(dataset.shape) == 1:
            source.add_column(name, partial(_hdf5_texts, dataset))
        return
    if dataset.shape is None or kind.kind not in "fiub":
        source.left_out[name] = "no numbers"
        return
    layer = sliced(name, dataset, mapped=False, dtype=kind.name)
    offset = dataset.id.get_offset()
    if offset is not None and kind.isnative and len(dataset.shape) > 1 and dataset.size:
        whole = partial(np.memmap, path, kind, "c", offset, dataset.shape)
        layer = ForeignLayer(name, layer.shape, layer.dtype, layer.blocks, whole)
    source.add(layer)


def _hdf5_texts(dataset: h5py.Dataset) -> Any:
    return dataset.asstr()[:].tolist()


def read_zarr(path: Path) -> Foreign:
    """Open a zarr group or array: one layer for each array; names of groups are joined by dots."""
    try:
        import zarr  # noqa: PLC0415 - in the extra `data` only
    except ImportError:
        raise MissingExtraError("reading zarr", "zarr", extra="data") from None
    _check_zarr(path)
    source = Foreign(form="zarr")
    try:
        root: Any = zarr.open(path, mode="r")
        record = root.attrs.get(RECORD, {})
        source.record = record if isinstance(record, dict) else {}
        order = {name: k for k, name in enumerate(source.record.get("layers", ()))}
        arrays = dict(_zarr_arrays(root, "")) if hasattr(root, "members") else {path.stem: root}
        for name in sorted(arrays, key=lambda name: (order.get(name, len(order)), natural_key(name))):
            array = arrays[name]
            if np.dtype(array.dtype).kind in "fiub":
                source.add(sliced(name, array, mapped=False))
            else:
                source.left_out[name] = "no numbers"
                if array.ndim == 1:
                    source.add_column(name, partial(_zarr_texts, array))
    except Exception as error:  # noqa: BLE001 - damaged groups raise anything
        raise StoreError(f"cannot read {path}: {reason(error)}", path=path) from None
    source.take_ids_of_record()
    return source


def _zarr_texts(array: Any) -> list[str]:
    return [str(entry) for entry in array[:].tolist()]


def _zarr_arrays(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, member in group.members():
        if hasattr(member, "members"):
            yield from _zarr_arrays(member, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", member


def _check_zarr(path: Path) -> None:
    """Refuse links, which may lead out of the folder, and codecs that unpickle objects."""
    for file in path.rglob("*"):
        if file.is_symlink():
            raise StoreError(f"{path} is refused: {file.relative_to(path)} is a link, perhaps to another file")
        if file.name in {"zarr.json", ".zarray", ".zmetadata", ".zgroup"} and file.is_file():
            try:
                described = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                raise StoreError(f"{path} is a damaged zarr group: {file.relative_to(path)} is no JSON") from None
            if any("pickle" in text.lower() for text in _codecs(described)):
                raise StoreError(f"{path} is refused: {file.relative_to(path)} names a codec that unpickles objects")


def _codecs(described: Any) -> Iterator[str]:
    """Yield the names of all codecs in the description of arrays."""
    if isinstance(described, dict):
        yield from (str(described[key]) for key in ("id", "name") if key in described)
        for value in described.values():
            yield from _codecs(value)
    elif isinstance(described, list):
        for value in described:
            yield from _codecs(value)


def read_parquet(path: Path) -> Foreign:
    """Open a parquet table with a row for each sample.

    Every column of lists is a layer. Without lists, all columns of real numbers are the features of one layer with the
    name of the file. Columns of texts and whole numbers describe the samples.
    """
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415 - in the extra `data` only
        from pyarrow import types  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("reading parquet", "pyarrow", extra="data") from None
    try:
        table = pq.ParquetFile(path)
        schema = table.schema_arrow
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise StoreError(f"cannot read {path}: {reason(error)}", path=path) from None
    n = table.metadata.num_rows
    source = Foreign(form="parquet")
    metadata = schema.metadata or {}
    record = as_record(metadata.get(RECORD.encode()))
    features = []
    for entry in schema:
        if types.is_list(entry.type) or types.is_large_list(entry.type) or types.is_fixed_size_list(entry.type):
            _add_lists(source, path, table, entry, record.get("shapes", {}))
            continue
        source.columns[entry.name] = partial(_values, path, entry.name)
        if types.is_floating(entry.type):
            features.append(entry)
        else:
            source.left_out[entry.name] = "one value a sample"
    names = [entry.name for entry in features]
    if names and not source.layers:
        wide = "float64" if any(str(entry.type) == "double" for entry in features) else "float32"
        source.add(ForeignLayer(path.stem, (n, len(names)), wide, partial(_column_blocks, path, names, wide)))
    else:
        source.left_out |= dict.fromkeys(names, "one value a sample")
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    named = [name for name in [*index, *IDS] if isinstance(name, str) and name in source.columns]
    if named:
        source.ids, source.ids_from = source.columns[named[0]], named[0]
    for entry, column in (("labels", "label"), ("groups", "group")):
        if column in record.get("columns", ()) and column in source.columns:
            record[entry] = source.columns[column]()
    for column in record.get("columns", ()):
        source.left_out.pop(column, None)
    source.record = record
    return source


def _add_lists(source: Foreign, path: Path, table: Any, entry: Any, shapes: Mapping[str, Any]) -> None:
    """Add a column of lists as a layer; ``shapes`` are those that repsim has recorded."""
    inner = entry.type.value_type
    try:
        dtype = np.dtype(inner.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        source.left_out[entry.name] = "lists without numbers"
        return
    size, shape = _list_size(table, entry.name, path), tuple(shapes.get(entry.name, ()))
    shape = shape if shape and math.prod(shape) == size else (size,)
    blocks = partial(_list_blocks, path, entry.name, shape)
    source.add(ForeignLayer(entry.name, (table.metadata.num_rows, *shape), dtype.name, blocks))


def _values(path: Path, name: str) -> Any:
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = pq.read_table(path, columns=[name])[name].to_pandas()
    return column if column.dtype.name == "category" else column.to_list()


def _batches(path: Path, names: list[str], rows: int) -> Iterator[Any]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with pq.ParquetFile(path) as table:
        for group in range(table.num_row_groups):  # over all groups at once, the library reads them all ahead
            yield from table.iter_batches(batch_size=rows, row_groups=[group], columns=names)


def _list_size(table: Any, name: str, path: Path) -> int:
    first = next(table.iter_batches(batch_size=1, columns=[name]), None)
    if first is None or first.column(0)[0].as_py() is None:
        raise InvalidInputError(f"{path}: the first row of column {name!r} is empty")
    return len(first.column(0)[0])


def _list_blocks(path: Path, name: str, shape: tuple[int, ...], rows: int) -> Iterator[Array]:
    size = int(np.prod(shape, dtype=np.int64))
    for batch in _batches(path, [name], rows):
        column = batch.column(0)
        values = column.flatten()
        if column.null_count or values.null_count or len(values) != size * len(column):
            raise InvalidInputError(f"{path}: the rows of column {name!r} are not all lists of {size} numbers")
        yield values.to_numpy(zero_copy_only=False).reshape(len(column), *shape)


def _column_blocks(path: Path, names: list[str], dtype: str, rows: int) -> Iterator[Array]:
    for batch in _batches(path, names, rows):
        columns = [batch.column(k).to_numpy(zero_copy_only=False) for k in range(len(names))]
        yield np.column_stack(columns).astype(dtype, copy=False)
