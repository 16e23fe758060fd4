"""Stores whose arrays are in memory: dictionaries of arrays that are compared without a file.

Arrays are read in place. A store in memory has all properties of a store in a file (`repsim.stores.store`), and is
accepted wherever one is.
"""

import dataclasses
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.labels import LayerKey, check_model_name
from repsim.runtime.arrays import as_array, check_exact, check_tensor, is_finite
from repsim.runtime.files import format_size
from repsim.runtime.threads import map_in_threads
from repsim.stores import extents
from repsim.stores.axes import StatedAxes
from repsim.stores.given import Described, check_contents, convert_layers, describe
from repsim.stores.schema import Array, Contents
from repsim.stores.store import Activations, ActivationStore

IN_MEMORY = "arrays in memory"
"""Description of the samples of arrays without a name of their own, for figures and reports."""
ROW_NUMBERS = "numbers of the rows"
"""Entry ``sample_ids`` of the provenance if no ids were passed: row k of every array is then the same sample."""
_DTYPES = {"float16", "float32", "float64"}
_PIECE = 2**24
"""Bytes of an array that are checked at once."""


class ArrayInMemory(Activations):
    """Array of one layer in memory; ``values`` is a tensor that shares the memory of the user's array."""

    def __init__(self, key: LayerKey, values: Tensor) -> None:
        self.key, self.values = key, values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, (n samples, ...)."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: float16, float32 or float64."""
        return np.dtype(_name(self.values.dtype))

    def read_in_place(self, rows: slice | Array) -> Tensor:
        """Read rows as a tensor on the device of the array, which shares its memory if the rows are consecutive."""
        if isinstance(rows, slice):
            return self.values[rows]
        return self.values[torch.as_tensor(rows, device=self.values.device)]

    def read_indices(self, indices: Array, *, check: bool = True) -> Array:  # noqa: ARG002 - no checksums in memory
        """Read rows in any order, as a numpy array."""
        return self.read_in_place(indices).cpu().numpy()

    def read_rows(self, start: int, stop: int, *, check: bool = True) -> Array:  # noqa: ARG002
        """Read the rows start:stop, as a numpy array that shares memory with the layer on the CPU."""
        return self.values[start:stop].cpu().numpy()


class StoreInMemory(ActivationStore):
    """Activation store whose arrays are in memory; `as_store` makes one.

    Messages and results name it by its model: ``path`` is the name of the model, and no file.
    """

    def __init__(self, described: Described) -> None:
        check_contents(described.contents)
        self._contents, self._file, self._tensors = described.contents, None, dict(described.arrays)
        self.path = Path(check_model_name(self.model))
        self._name_arrays()
        self._check_finite()

    def _activations(self, key: LayerKey) -> Activations:
        return ArrayInMemory(key, self._tensors[key])

    def is_file(self, path: Path) -> bool:  # noqa: ARG002
        """Return False: there is no file."""
        return False

    def _check_finite(self) -> None:
        runs = [rows for values in self._tensors.values() for _, rows in _pieces(values)]
        if all(map_in_threads(is_finite, runs)):
            return
        for key, values in self._tensors.items():
            bad, first = 0, 0
            for start, rows in _pieces(values):
                finite = torch.isfinite(rows).flatten(1)
                if not bad and not finite.all():
                    first = start + int(torch.nonzero(~finite.all(1))[0, 0])
                bad += int((~finite).sum())
            if bad:
                name = self.sample_ids.ids[first]
                raise InvalidInputError(f"{key}: {bad} values are NaN or infinite, the first in sample {name}")

    @cached_property
    def checksum(self) -> str:
        """Checksum of ids, labels, groups, names and values; two stores with the same one hold the same."""
        contents = self._contents
        described = [
            contents.sample_ids.ids, contents.class_of, contents.group_of, contents.dtype,
            [(spec.key, spec.shape, spec.facts) for spec in contents.arrays],
        ]  # fmt: skip
        total = zlib.crc32(repr(described).encode("utf-8", "surrogatepass"))
        for values in self._tensors.values():
            for _, rows in _pieces(values):
                total = zlib.crc32(extents.as_bytes(np.ascontiguousarray(rows.cpu().numpy())), total)
        return f"{total:08x}"

    @property
    def _state(self) -> str:
        return f"{format_size(sum(values.nbytes for values in self._tensors.values()))} in memory"


def as_store(
    layers: Mapping[str, Any],
    *,
    model: str,
    pixels: Any = None,
    controls: Mapping[str, Any] | None = None,
    sample_ids: Iterable[str | int] | None = None,
    labels: Any = None,
    groups: Any = None,
    readout: str = "given",
    source: str = IN_MEMORY,
    axes: StatedAxes | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ActivationStore:
    """Make a store of arrays in memory, which every function accepts in place of a store in a file.

    Nothing is copied and no file is written: arrays of numpy and tensors (on any device) are read in place, so they
    must not change while the store is in use. Every sample is one row; all further dimensions of a layer, as of feature
    maps (n, channels, height, width), are flattened to features when layers are compared, as of stores in files.

    Parameters
    ----------
    layers : dict of str to array of shape (n, ...)
        The layers by name, in depth order: arrays of numpy, torch, jax, pandas or xarray. They may have different
        dtypes. Integers become float64; bfloat16 and 8-bit floats become float32. These are the only copies.
    model : str
        Name of the model, used in all results.
    pixels, controls, sample_ids, labels, groups, readout, source, axes, provenance
        As in `repsim.write_store`.

    Returns
    -------
    ActivationStore
        The store. Its ``checksum`` is that of the values, so results of equal arrays are extended and resumed.

    Raises
    ------
    InvalidInputError
        As in `repsim.write_store`; also if a layer is complex.

    Examples
    --------
    >>> import repsim
    >>> x = np.random.default_rng(0).normal(size=(20, 4))
    >>> store = repsim.as_store({"hidden": x, "out": x[:, :2]}, model="net", labels=[0, 1] * 10)
    >>> store.layers, store["hidden"][:].shape, np.shares_memory(store["hidden"].read_rows(0, 20), x)
    (('hidden', 'out'), (20, 4), True)
    """
    tensors = convert_layers(layers, _as_tensor)
    kinds = {_name(values.dtype) for values in tensors.values()}
    described = describe(
        tensors, layers, np.result_type(*kinds).name if kinds else "float32", model=model, pixels=pixels,
        controls=controls, sample_ids=sample_ids, labels=labels, groups=groups, readout=readout, source=source,
        axes=axes, provenance=provenance,
    )  # fmt: skip
    contents, arrays = described.contents, dict(described.arrays)
    for key, values in described.arrays.items():
        if key.control:  # a file has the controls in the dtype of the layers
            arrays[key] = torch.from_numpy(np.array(values, contents.dtype))
    return StoreInMemory(Described(record_ids(contents), arrays))


def record_ids(contents: Contents) -> Contents:
    """Add to the provenance whether the samples have ids, or are only numbered."""
    numbered = contents.sample_ids.ids == tuple(map(str, range(len(contents.sample_ids))))
    record = {**contents.provenance, "sample_ids": ROW_NUMBERS if numbered else "given"}
    return dataclasses.replace(contents, provenance=record)


def _as_tensor(values: Any, what: str) -> Tensor:
    """Return an array as a tensor that shares its memory, unless its dtype has to be converted."""
    if isinstance(values, Tensor):
        check_tensor(values, what)
        tensor = values.detach().resolve_conj().resolve_neg()
    else:
        array = as_array(values, what)
        if array.dtype.kind != "c":
            wide = array.dtype.itemsize > 8
            array = np.asarray(array, np.float64 if wide else array.dtype.newbyteorder("="))
        if min(array.strides, default=1) < 0:  # torch has no reversed arrays
            array = array.copy()
        with warnings.catch_warnings():  # arrays of jax are read-only; nothing is written to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
    if tensor.is_complex():
        raise InvalidInputError(f"{what} is complex; take its real and imaginary parts as features")
    if tensor.is_floating_point():
        return tensor if _name(tensor.dtype) in _DTYPES else tensor.float()
    check_exact(tensor, what)
    return tensor.double()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pieces(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows of a tensor a few at a time, with the number of the first of them."""
    step = max(1, _PIECE // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]
