"""Arrays and tensors whose first axis is that of the samples: in memory, or files that are read when asked.

No file is unpickled: object arrays of numpy and pickled Python objects of torch are refused.
"""

import pickle
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from repsim.errors import InvalidInputError, MissingExtraError, SampleError, reason
from repsim.extractors.samples.columns import Table
from repsim.extractors.samples.source import Content, Modality, SampleSource, content_of
from repsim.extractors.samples.texts import Texts, numbered
from repsim.runtime.arrays import as_array, check_tensor, is_tensor

ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".safetensors", ".pt", ".pth"})
"""Suffixes of files of arrays, in lower case. Arrays of zarr are folders."""
Opener = Callable[[Path, str | None], Any]
"""Function from a file and the name of an array in it to an object whose ``[k]`` is row k."""
_NUMBERS = "biufc"
"""Kinds of numpy's types that torch holds: booleans, integers, floats, complex numbers."""


class Rows(ABC):
    """An array of shape (n, ...), read row by row. It can be pickled without its values if they are in a file."""

    shape: tuple[int, ...]
    in_memory: bool = True
    """Whether reading a row costs next to nothing: values in memory, or a file that is mapped to memory."""

    @abstractmethod
    def row(self, index: int) -> Tensor:
        """Return one row."""


class ArrayRows(Rows):
    """Rows of an array or tensor in memory."""

    def __init__(self, values: Any) -> None:
        self._values, self.shape = values, tuple(values.shape)

    def row(self, index: int) -> Tensor:
        """Return a copy of one row."""
        row = self._values[index]
        return row.detach().cpu().clone() if isinstance(row, Tensor) else as_tensor(row)


class FileRows(Rows):
    """Rows of an array in a file, which each process opens for itself.

    Parameters
    ----------
    opener : callable
        Function from the path and the name of the array to an object whose ``[k]`` is row k.
    path : Path
        The file.
    key : str, optional
        Name of the array in a file of several.
    shape : tuple of int
        Shape of the array.
    in_memory : bool
        Whether the file is mapped to memory, or its array read as a whole.
    """

    def __init__(
        self, opener: Opener, path: Path, key: str | None, shape: Sequence[int], *, in_memory: bool = True
    ) -> None:
        self._opener, self._path, self._key = opener, path, key
        self.shape, self.in_memory = tuple(map(int, shape)), in_memory
        self._array: Any = None

    def row(self, index: int) -> Tensor:
        """Read one row."""
        if self._array is None:
            self._array = self._opener(self._path, self._key)
        row = self._array[index]
        return row.clone() if isinstance(row, Tensor) else as_tensor(row)

    def values(self) -> list[Any]:
        """Read all rows as nested lists."""
        return list(np.asarray(self._opener(self._path, self._key)[:]).tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None}


class Arrays(SampleSource):
    """Rows of an array as samples: tensors without the first axis.

    Parameters
    ----------
    name : str
        Name of the data.
    rows : Rows
        The array.
    ids : sequence of str, optional
        Ids of the samples; by default the positions.

    Examples
    --------
    >>> source = Arrays("x", ArrayRows(np.arange(6.0).reshape(3, 2)))
    >>> source.ids, source.load(1)
    (['0', '1', '2'], tensor([2., 3.], dtype=torch.float64))
    """

    modality = "tensor"

    def __init__(self, name: str, rows: Rows, ids: Sequence[str] | None = None) -> None:
        if not rows.shape or not rows.shape[0]:
            raise SampleError(f"{name} has no samples: its shape is {rows.shape}, and the first axis is the samples'")
        if 0 in rows.shape[1:]:
            raise SampleError(f"the samples of {name} have no values: its shape is {rows.shape}")
        self.name, self._rows = name, rows
        self.ids = numbered(range(rows.shape[0])) if ids is None else ids
        self.quick = rows.in_memory
        self.record = {"ids_from": "positions"}

    def load(self, index: int) -> Tensor:
        """Return one sample."""
        try:
            return self._rows.row(index)
        except SampleError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise SampleError(f"cannot read row {index} of {self.name}: {reason(error)}") from None

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - this class always loads
        """Hash one sample.

        Raises
        ------
        SampleError
            A value is not finite.
        """
        sample = self.load(index)
        if (sample.is_floating_point() or sample.is_complex()) and not bool(torch.isfinite(sample).all()):
            wrong = sample[~torch.isfinite(sample)] if sample.ndim else sample.reshape(1)
            raise SampleError(
                f"row {index} of {self.name} (id {self.ids[index]}) holds {len(wrong):,} values that are not finite "
                f"({wrong[0].item()})"
            )
        return content_of(sample)


def as_tensor(row: Any) -> Tensor:
    """Return a copy of numbers of numpy or zarr as a tensor, in the byte order of this machine."""
    array = np.array(row)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def open_array(values: Any, name: str = "array") -> Arrays:
    """Open an array or tensor (n, ...) in memory.

    Raises
    ------
    InvalidInputError
        The values are no numbers, masked, sparse, or an array without a first axis.
    """
    if is_tensor(values):
        check_tensor(values, name)
        return Arrays(name, ArrayRows(values.detach()))
    return Arrays(name, ArrayRows(as_array(values, name)))


class ArrayFile(Table):
    """Arrays by name out of one file as the columns of a table. Those with one entry for each sample can be read.

    Parameters
    ----------
    path : Path
        The file, for messages.
    arrays : mapping of str to FileRows
        The arrays.
    kinds : mapping of str to str
        Kinds of their types, as numpy writes them.
    """

    def __init__(self, path: Path, arrays: Mapping[str, FileRows], kinds: Mapping[str, str]) -> None:
        self.name, self._arrays, self._kinds = path.name, arrays, kinds
        self.columns = list(arrays)
        lengths = [rows.shape[0] for rows in arrays.values() if rows.shape]
        self.n = max(lengths, default=0)

    def modality(self, column: str) -> Modality | None:
        """Return ``tensor`` for numbers, ``text`` for a list of texts, and None for anything else."""
        shape, kind = self._arrays[column].shape, self._kinds[column]
        if not shape or shape[0] != self.n:
            return None
        return "tensor" if kind in _NUMBERS else "text" if kind in "UT" and len(shape) == 1 else None

    def values(self, column: str) -> Sequence[Any]:
        """Return all entries of an array of one dimension.

        Raises
        ------
        SampleError
            It has another number of entries than the file has samples, or more dimensions.
        """
        shape = self._arrays[column].shape
        if shape != (self.n,) or self._kinds[column] == "O":
            raise InvalidInputError(f"{self.name}: {column} has the shape {shape}, not one entry for each of {self.n}")
        return self._arrays[column].values()

    def why_not(self, column: str) -> str:
        """Return why an array cannot be read."""
        if self._kinds[column] == "O":
            return "it holds Python objects, which repsim does not unpickle"
        return f"it has the shape {self._arrays[column].shape}, and the file has {self.n:,} samples"

    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open one array."""
        if modality == "text":
            return Texts(self.name, self.values(column), (), self.place)
        return Arrays(f"{self.name} [{column}]", self._arrays[column])


def is_zarr(folder: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_array_file(path: Path) -> Arrays | ArrayFile:
    """Open ``.npy``, ``.npz``, ``.safetensors``, ``.pt`` or a zarr folder: one array, or a table of named arrays.

    Raises
    ------
    SampleError
        The file is damaged, holds pickled objects, or no arrays.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_zarr(path)
    if suffix == ".npy":
        with path.open("rb") as file:
            shape, dtype = _npy_header(file, path.name)
        _check_kind(path.name, dtype)
        return Arrays(path.name, FileRows(_map_npy, path, None, shape))
    if suffix == ".npz":
        headers = _npz_headers(path)
        arrays = {name: FileRows(_read_npz, path, name, shape) for name, (shape, _) in headers.items()}
        return _table(path, arrays, {name: dtype.kind for name, (_, dtype) in headers.items()})
    if suffix == ".safetensors":
        file = _safe_open(path)
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        arrays = {name: FileRows(_map_safetensors, path, name, shape) for name, shape in shapes.items()}
        return _table(path, arrays, dict.fromkeys(arrays, "f"))
    values = _load_torch(path)
    if isinstance(values, Tensor):
        check_tensor(values, path.name)
        return Arrays(path.name, FileRows(_map_torch, path, None, values.shape))
    if not isinstance(values, Mapping):
        raise SampleError(f"{path.name} holds a {type(values).__name__}; save one tensor, or a dictionary of tensors")
    tensors = {str(name): tensor for name, tensor in values.items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():
        check_tensor(tensor, f"{path.name}: {name}")
    arrays = {name: FileRows(_map_torch, path, name, tensor.shape) for name, tensor in tensors.items()}
    return _table(path, arrays, dict.fromkeys(arrays, "f"))


def _table(path: Path, arrays: Mapping[str, FileRows], kinds: Mapping[str, str]) -> ArrayFile:
    if not arrays:
        raise SampleError(f"{path.name} holds no arrays")
    return ArrayFile(path, arrays, kinds)


def _check_kind(name: str, dtype: Any) -> None:
    if dtype.hasobject:
        raise SampleError(f"{name} holds Python objects, which repsim does not unpickle; save an array of numbers")
    if dtype.kind not in _NUMBERS:
        raise SampleError(f"{name} holds {dtype}, not numbers")


def _map_npy(path: Path, _: str | None = None) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path.name, error) from None


def _read_npz(path: Path, key: str | None) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path.name, error) from None


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shapes and types of the arrays, without reading their values."""
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for member in archive.namelist():
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")] = _npy_header(file, f"{path.name}: {member}")
            return headers
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path.name, error) from None


def _npy_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], Any]:
    """Return shape and type of an array."""
    try:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise _unreadable(name, error) from None
    return shape, dtype


def _open_zarr(path: Path) -> Arrays | ArrayFile:
    opened = _load_zarr(path)
    if hasattr(opened, "shape"):
        _check_kind(path.name, np.dtype(opened.dtype))
        return Arrays(path.name, FileRows(_load_zarr, path, None, opened.shape, in_memory=False))
    arrays = dict(opened.arrays())
    rows = {name: FileRows(_load_zarr, path, name, array.shape, in_memory=False) for name, array in arrays.items()}
    return _table(path, rows, {name: array.dtype.kind for name, array in arrays.items()})


def _load_zarr(path: Path, key: str | None = None) -> Any:
    try:
        import zarr  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "zarr", extra="data") from None
    try:
        opened: Any = zarr.open(str(path), mode="r")
        return opened if key is None else opened[key]
    except Exception as error:  # noqa: BLE001 - zarr raises errors of its own and of its stores
        raise _unreadable(path.name, error) from None


def _safe_open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only this kind of file needs it

    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path.name, error) from None


def _map_safetensors(path: Path, key: str | None) -> Any:
    return _safe_open(path).get_slice(key)


def _map_torch(path: Path, key: str | None) -> Any:
    values = _load_torch(path)
    return values if key is None else values[key]


def _load_torch(path: Path) -> Any:
    """Load a file of ``torch.save`` without unpickling objects, mapped to memory if its format allows it."""
    try:
        zipped = zipfile.is_zipfile(path)  # files in the format before torch 1.6 cannot be mapped
        with warnings.catch_warnings():  # about the protocol of pickles, which are refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise SampleError(
            f"{path.name} cannot be read as tensors alone: it is damaged, or holds Python objects, which repsim does "
            "not unpickle; save a tensor or a dictionary of tensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch raises anything on damaged files
        raise _unreadable(path.name, error) from None


def _unreadable(name: str, error: Exception) -> SampleError:
    return SampleError(f"cannot read {name}: {reason(error)}")
