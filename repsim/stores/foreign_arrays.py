"""Read layers from files of arrays: ``.npy``, ``.npz``, ``.txt``, ``.mat``, ``.safetensors`` and ``.pt``.

No file may run code: pickled objects are refused.
"""

import itertools
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError, Remedy, StoreError, reason
from repsim.runtime.arrays import is_tensor
from repsim.runtime.files import natural_key
from repsim.stores.foreign import RECORD, Foreign, ForeignLayer, as_record, sliced
from repsim.stores.schema import Array

_NO_PICKLES = Remedy("save plain arrays or tensors: files of Python objects can run code when they are opened")
_ONE_ROW = 2
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read_npy(path: Path) -> Foreign:
    """Open a ``.npy`` file, memory-mapped: one layer with the name of the file."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # private, so that torch may share it
    except Exception as error:  # noqa: BLE001 - damaged headers raise anything
        raise _unreadable(path, error) from None
    source = Foreign(form="npy")
    source.add(sliced(path.stem, array))
    return source


def read_npz(path: Path) -> Foreign:
    """Open a ``.npz`` file: one layer for each array, read a few rows at a time."""
    source = Foreign(form="npz")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    shape, in_columns, dtype = _npy_header(file)
                name = member.removesuffix(".npy").replace("/", ".")
                if dtype.hasobject:
                    source.left_out[name] = "Python objects"
                    continue
                blocks = partial(_npz_blocks, path, member, in_columns=in_columns)
                source.add(ForeignLayer(name, shape, dtype.name if dtype.kind in "fiubc" else dtype.str, blocks))
    except Exception as error:  # noqa: BLE001 - damaged archives raise anything
        raise _unreadable(path, error) from None
    return source


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: its shape, whether it is stored column by column, and its dtype."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(file)
    return tuple(shape), bool(in_columns), dtype


def _npz_blocks(path: Path, member: str, rows: int, *, in_columns: bool) -> Iterator[Array]:
    """Yield rows of one array of the archive, decompressed a few rows at a time unless it is stored by columns."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, _, dtype = _npy_header(file)
        if in_columns or not shape:
            values = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if in_columns else "C")
            for start in range(0, shape[0] if shape else 1, rows):
                yield values[start : start + rows]
            return
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            data = file.read(count * size)
            if len(data) < count * size:
                raise StoreError(f"{path} is cut off: {member} has fewer rows than its header says", path=path)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def read_text(path: Path) -> Foreign:
    """Open a text file of numbers, one sample a line: one layer with the name of the file."""

    def lines() -> Iterator[str]:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.strip() and not line.startswith("#"))

    def blocks(rows: int) -> Iterator[Array]:
        remaining = lines()
        while block := list(itertools.islice(remaining, rows)):
            try:
                yield np.loadtxt(block, ndmin=2)
            except ValueError as error:
                raise _unreadable(path, error) from None

    try:
        features = len(np.atleast_1d(np.loadtxt([*itertools.islice(lines(), 1)])))
        n = sum(1 for _ in lines())
    except Exception as error:  # noqa: BLE001 - other text raises anything
        raise _unreadable(path, error) from None
    source = Foreign(form="txt")
    source.add(ForeignLayer(path.stem, (n, features), "float64", blocks))
    return source


def read_mat(path: Path) -> Foreign:
    """Open a ``.mat`` file (up to version 7.2): matrices are layers; rows with the names of samples are one layer."""
    from scipy.io import loadmat  # noqa: PLC0415 - slow to import

    try:
        contents = {name: values for name, values in loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:
        raise InvalidInputError(
            f"{path} is of MATLAB 7.3", remedy=Remedy("save it with save(..., '-v7'), or as .npy")
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise _unreadable(path, error) from None
    source = Foreign(form="mat")
    rows = [np.asarray(values) for values in contents.values()]
    if len(rows) >= _ONE_ROW and all(x.ndim == 2 and len(x) == 1 and x.shape == rows[0].shape for x in rows):
        names = list(contents)  # as thingsvision writes features of named samples
        source.add(sliced(path.stem, np.concatenate(rows)))
        source.ids, source.ids_from = lambda: names, "the names of the variables"
        return source
    for name, values in contents.items():
        array = _texts_of_mat(np.asarray(values))
        source.add(sliced(name, array.ravel() if array.ndim == 2 and 1 in array.shape else array))
    return source


def _texts_of_mat(array: Array) -> Array:
    """Return cells of MATLAB that hold one text each as texts, and rows of letters without the spaces at their ends."""
    if array.dtype.kind == "O" and all(
        np.size(cell) == 1 and np.asarray(cell).dtype.kind == "U" for cell in array.flat
    ):
        array = np.array([np.asarray(cell).item() for cell in array.flat])
    return np.char.rstrip(array, " ") if array.dtype.kind == "U" else array


def read_safetensors(path: Path) -> Foreign:
    """Open a ``.safetensors`` file, memory-mapped: one layer for each tensor, in natural order of the names."""
    from safetensors import safe_open  # noqa: PLC0415 - only for this format

    source = Foreign(form="safetensors")
    try:
        file: Any = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
        record = as_record(metadata.get(RECORD))
        order = {name: k for k, name in enumerate(record.get("layers", ()))}
        for name in sorted(file.keys(), key=lambda name: (order.get(name, len(order)), natural_key(name))):
            part = file.get_slice(name)
            shape, kind = tuple(part.get_shape()), part.get_dtype()
            if kind not in _SAFETENSORS:
                source.left_out[name] = f"of the type {kind}"
                continue
            whole = partial(file.get_tensor, name)
            source.add(
                ForeignLayer(name, shape, _SAFETENSORS[kind], partial(_slices, part, shape[0] if shape else 0), whole)
            )
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise _unreadable(path, error) from None
    source.record = record
    source.take_ids_of_record()
    return source


def _slices(part: Any, n: int, rows: int) -> Iterator[Any]:
    for start in range(0, n, rows):
        yield part[start : start + rows]


def read_torch(path: Path) -> Foreign:
    """Open a file of ``torch.save``, memory-mapped: a tensor, or (nested) dictionaries of tensors.

    A list of tensors, the batches that a hook has collected, is one layer.
    """
    import torch  # noqa: PLC0415 - slow to import

    def load(**how: Any) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, **how)

    try:
        try:
            contents = load(mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            contents = load()  # a file of an early version of torch
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise _unreadable(path, error) from None
    source = Foreign(form="pt")
    for name, value in _entries(contents, path.stem if is_tensor(contents) or isinstance(contents, list) else ""):
        tensors = value if isinstance(value, list | tuple) else [value]
        if tensors and all(map(is_tensor, tensors)):
            source.add(_joined(name, [tensor.detach() for tensor in tensors]))
        elif isinstance(value, list | tuple) and all(isinstance(entry, str | int) for entry in value):
            source.left_out[name] = "one value a sample"
            source.add_column(name, partial(list, value))
        else:
            source.left_out[name] = f"of type {type(value).__name__}"
    return source


def _entries(contents: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dictionaries, with the keys joined by dots."""
    if not isinstance(contents, Mapping):
        yield name or "activations", contents
        return
    for key, value in contents.items():
        yield from _entries(value, f"{name}.{key}" if name else str(key).replace("/", "."))


def _joined(name: str, tensors: list[Any]) -> ForeignLayer:
    """Describe a layer whose rows are those of one tensor, or of several in their order."""
    first = tensors[0]
    if len(tensors) == 1:
        return sliced(name, first)
    if not all(x.dim() and x.shape[1:] == first.shape[1:] and x.dtype == first.dtype for x in tensors):
        raise InvalidInputError(f"the batches of {name!r} have different shapes or dtypes")

    def blocks(rows: int) -> Iterator[Any]:
        for tensor in tensors:
            yield from tensor.split(rows)

    shape = (sum(len(tensor) for tensor in tensors), *first.shape[1:])
    return ForeignLayer(name, shape, str(first.dtype).removeprefix("torch."), blocks)


def _unreadable(path: Path, error: Exception) -> Exception:
    """Return the error for a file that cannot be read, or that holds Python objects."""
    if isinstance(error, StoreError | InvalidInputError):
        return error
    text = str(error)
    if "allow_pickle" in text or "weights_only" in text or "Weights only" in text or "pickle" in text.lower():
        return InvalidInputError(f"{path} holds pickled Python objects, which are refused", remedy=_NO_PICKLES)
    return StoreError(f"cannot read {path}: {reason(error)}", path=path)


def refuse_pickles(path: Path) -> Foreign:
    """Raise the error for files that are pickles by their name."""
    raise InvalidInputError(f"{path} is a pickle, which is refused", remedy=_NO_PICKLES)
