"""Write data sets as netCDF-4 files without variable-length strings, and read them safely.

All netCDF and HDF5 libraries can read the files. Text has a fixed width, variables are contiguous, and nothing is
compressed. Therefore shapes can be compared with the size of the file before memory is allocated, and
`repsim.results.hdf5` can read the file without the HDF5 library. (DIMENSION_LIST, which is in a heap, is written for
other libraries; this module reads the ids of dimensions instead.)
"""

import io
import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, StoreError, reason
from repsim.results.hdf5 import SIGNATURE, Object, Structures, Values
from repsim.stores.layout import contiguous_layout

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
_HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}
"""Attributes in which netCDF describes dimensions and variables."""
_CODED = {"_FillValue", "_Encoding", "coordinates"}
"""Attributes in which xarray describes variables."""
_NAME = re.compile(r"[^\x00-\x1f/\x7f]+")


# Writing


def to_bytes(data: xr.Dataset) -> bytearray:
    """Convert a data set to the bytes of a netCDF-4 file.

    Parameters
    ----------
    data : xarray.Dataset
        Variables of numbers and texts over named dimensions.

    Raises
    ------
    InvalidInputError
        A variable or an attribute is neither numbers nor text, or a name cannot be written.
    """
    buffer = io.BytesIO()
    # in version 1.8 of the file format all structures of HDF5 have checksums
    with h5py.File(buffer, "w", libver=("v108", "v108"), track_order=True) as file:
        _write(file, data)
    return bytearray(buffer.getbuffer())


def _write(file: h5py.File, data: xr.Dataset) -> None:
    coordinates = [str(name) for name in data.coords if name not in data.dims and " " not in str(name)]
    coded = {"coordinates": " ".join(coordinates)} if coordinates else {}
    attrs = _checked_attributes(data.attrs, "the file")
    _write_attributes(file, {"_NCProperties": f"version=2,h5py={h5py.__version__}"} | coded | attrs)
    sizes = {str(dim): size for dim, size in data.sizes.items()}
    dims: dict[str, list[str]] = {}
    for name in sorted(map(str, data.variables), key=lambda name: name not in sizes):  # dimensions first
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"netCDF has no variable {name!r}; leave out '/' and control characters")
        variable = data[name]
        dims[name] = [str(dim) for dim in variable.dims]
        values, coded = _encoded(variable.values, name)
        if values.dtype.kind == "S":
            dims[name].append(f"string{values.shape[-1]}")
            sizes[dims[name][-1]] = values.shape[-1]
        own = [coordinate for coordinate in coordinates if set(data[coordinate].dims) <= set(variable.dims)]
        if own and name not in data.coords:
            coded["coordinates"] = " ".join(own)
        dataset = file.create_dataset(name, values.shape, values.dtype, dcpl=contiguous_layout(), track_order=True)
        if values.size:
            dataset[...] = values
        _write_attributes(dataset, coded | _checked_attributes(variable.attrs, name), name)
    for number, (dim, size) in enumerate(sizes.items()):
        if dim in dims:
            file[dim].make_scale(dim)
        else:
            file.create_dataset(dim, data=np.zeros(size, ">f4"), track_order=True)
            file[dim].make_scale(f"{_NO_VARIABLE}{size:10d}")
        file[dim].attrs["_Netcdf4Dimid"] = np.int32(number)
    numbers = {dim: number for number, dim in enumerate(sizes)}
    for name, own in dims.items():
        if own:
            file[name].attrs["_Netcdf4Coordinates"] = np.array([numbers[dim] for dim in own], "i4")
        for axis, dim in enumerate(own if name not in sizes else []):  # a scale cannot have scales in HDF5
            file[name].dims[axis].attach_scale(file[dim])


def _encoded(values: NDArray[Any], name: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return values as they are stored, and attributes that describe them; text becomes characters on a new axis."""
    if values.dtype.kind in "iu":
        return values, {}
    if values.dtype.kind == "f" and values.dtype.itemsize in {4, 8}:
        return values, {"_FillValue": values.dtype.type(np.nan)}
    flat = values.ravel().tolist()
    if values.dtype.kind not in "UOT" or not all(isinstance(value, str) for value in flat):
        raise InvalidInputError(f"{name} is of {values.dtype}; expected numbers (float32, float64, integers) or text")
    texts = _texts(flat, name)
    return texts.view("S1").reshape(*values.shape, texts.itemsize), {"_Encoding": "utf-8"}


def _texts(values: Iterable[str], name: str, least: int = 1) -> NDArray[Any]:
    """Return texts as an array of fixed-width strings of at least ``least`` bytes."""
    try:
        encoded = [value.encode() for value in values]
    except UnicodeEncodeError:
        raise InvalidInputError(f"a text of {name} is no valid Unicode (it has a lone surrogate); remove it") from None
    if any(b"\0" in text for text in encoded):
        raise InvalidInputError(f"a text of {name} holds a NUL, which netCDF cannot store; leave it out")
    return np.array(encoded, f"S{max(least, *map(len, encoded), least)}")


def _checked_attributes(attrs: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Return attributes with their names as text; refuse names that netCDF or xarray uses."""
    reserved = sorted((_HIDDEN | _CODED) & {str(key) for key in attrs})
    if reserved:
        raise InvalidInputError(f"{name} has an attribute {reserved[0]}, a reserved name of netCDF; leave it out")
    return {str(key): value for key, value in attrs.items()}


def _write_attributes(owner: Any, attrs: Mapping[str, Any], name: str = "the file") -> None:
    """Write attributes: texts, numbers, or lists of them.

    Texts have at least two bytes, because netCDF reads one byte as a character.
    """
    for key, value in attrs.items():
        where = f"attribute {key} of {name}"
        if not _NAME.fullmatch(key):
            raise InvalidInputError(f"netCDF has no attribute {key!r}; leave out '/' and control characters")
        array = np.asarray(value)
        if array.ndim > 1 or not array.size or array.dtype.kind not in "iufbUO":
            raise InvalidInputError(
                f"{where} is a {type(value).__name__}; expected a text, a number, or a list of them"
            )
        if array.dtype.kind in "iufb":
            owner.attrs[key] = np.atleast_1d(array.astype("i1") if array.dtype.kind == "b" else array)
            continue
        flat = np.atleast_1d(array).tolist()
        if not all(isinstance(text, str) for text in flat):
            raise InvalidInputError(f"{where} is neither text nor numbers; write it as JSON")
        texts = _texts(flat, where, least=2)
        kind = h5py.string_dtype("utf-8", texts.itemsize)
        owner.attrs.create(key, texts.astype(kind) if array.ndim else texts[0], dtype=kind)


# Reading


def from_bytes(data: bytes | bytearray | memoryview, path: object) -> xr.Dataset:
    """Read the bytes of a file that `to_bytes` has written.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        The bytes. Values are not copied: they are writable if ``data`` is.
    path : object
        Name of the file, for messages.

    Raises
    ------
    StoreError
        The bytes are damaged, or were not written by `to_bytes`.
    """
    try:
        return _Reader(memoryview(data), path).read()
    except (ValueError, struct.error, LookupError) as error:  # inconsistent structures
        raise StoreError(f"{path} is damaged: {reason(error)}") from None


def is_strict(data: bytes | bytearray | memoryview) -> bool:
    """Return whether bytes begin like those of `to_bytes`: in a version of HDF5's file format that has checksums."""
    return bytes(data[:8]) == SIGNATURE and len(data) > 8 and data[8] in {2, 3}


class _Reader:
    """Reader of one file, which refuses everything that `to_bytes` cannot have written."""

    def __init__(self, data: memoryview, path: object) -> None:
        self.data, self.path = data, path
        self.structures = Structures(data)
        self.bytes_left = len(data)

    def read(self) -> xr.Dataset:
        """Read all variables and attributes."""
        variables = {name: self.structures.object(at) for name, at in self.structures.root.links.items()}
        for name, variable in variables.items():
            self.check(name, variable)
        dims = self.dimensions(variables)
        attrs = self.attributes(self.structures.root, "the file")
        listed = set(str(attrs.pop("coordinates", "")).split())
        arrays = {
            name: xr.Variable(dims[name], self.values(variable, name), self.attributes(variable, name))
            for name, variable in variables.items()
            if name in dims
        }
        for array in arrays.values():
            for key in _CODED:
                array.attrs.pop(key, None)
        coordinates = {name for name, array in arrays.items() if name in listed or array.dims == (name,)}
        return xr.Dataset(
            {name: array for name, array in arrays.items() if name not in coordinates},
            {name: array for name, array in arrays.items() if name in coordinates},
            attrs,
        )

    def check(self, name: str, variable: Object) -> None:
        """Check the dtype of one variable, and that all variables together fit into the file."""
        where, values = f"{self.path} is refused: /{name}", variable.values
        if not _NAME.fullmatch(name):
            raise StoreError(f"{self.path} is damaged: it has a variable {name!r}")
        if values is None:
            raise StoreError(f"{where} is no variable")
        if values.dtype is None or (values.dtype.kind == "S" and values.dtype.itemsize > 1):
            raise StoreError(f"{where} holds neither numbers nor characters")
        self.bytes_left -= values.nbytes if self.holds_values(variable) else 0
        if self.bytes_left < 0 or max(values.shape, default=0) > 2**40:
            raise StoreError(f"{where} claims the shape {values.shape}, for which the file is too small")

    def holds_values(self, variable: Object) -> bool:
        """Return whether a variable has values; a netCDF dimension may have none."""
        scale = variable.attributes.get("NAME")
        return scale is None or not str(self.attribute(scale, "NAME", "a dimension")).startswith(_NO_VARIABLE)

    def dimensions(self, variables: Mapping[str, Object]) -> dict[str, tuple[str, ...]]:
        """Return the dimensions of every variable, and check them against its shape."""
        shapes = {name: variable.values.shape for name, variable in variables.items() if variable.values}
        numbered: dict[Any, tuple[str, int]] = {}
        for name, variable in variables.items():
            if "_Netcdf4Dimid" in variable.attributes:
                number = self.attribute(variable.attributes["_Netcdf4Dimid"], "_Netcdf4Dimid", name)
                if not isinstance(number, int) or number in numbered or not shapes[name]:
                    raise StoreError(f"{self.path} is damaged: the dimension {name} has no number of its own")
                numbered[number] = name, shapes[name][0]
        dims = {}
        for name, variable in variables.items():
            if not self.holds_values(variable):
                continue
            own = variable.attributes.get("_Netcdf4Coordinates")
            numbers = [] if own is None else self.attribute(own, "_Netcdf4Coordinates", name)
            numbers = numbers if isinstance(numbers, list) else [numbers]
            if [numbered.get(number, ("", -1))[1] for number in numbers] != list(shapes[name]):
                raise StoreError(
                    f"{self.path} is damaged: the shape {shapes[name]} of {name} is not that of its dimensions"
                )
            dims[name] = tuple(numbered[number][0] for number in numbers)
            if variable.values and variable.values.dtype == np.dtype("S1"):
                if not dims[name] or not shapes[name][-1]:
                    raise StoreError(f"{self.path} is damaged: {name} holds single characters, and no texts")
                dims[name] = dims[name][:-1]
        return dims

    def values(self, variable: Object, name: str) -> NDArray[Any]:
        """Return the values of a variable; text is decoded."""
        raw = self.raw(variable.values, f"{self.path} is refused: /{name}")
        if raw.dtype.kind == "S":
            texts = [text.decode() for text in np.ascontiguousarray(raw).view(f"S{raw.shape[-1]}").ravel().tolist()]
            return np.array(texts, dtype=object).reshape(raw.shape[:-1]).astype(str)
        return raw.astype(raw.dtype.newbyteorder("="), copy=not raw.flags.aligned)  # without a copy if possible

    def raw(self, values: Values | None, where: str) -> NDArray[Any]:
        """Return numbers and characters as they are in the file, without a copy."""
        if values is None or values.dtype is None:
            raise StoreError(f"{where} is no number and no text of a fixed width")
        count = math.prod(values.shape)
        if not count:
            return np.empty(values.shape, values.dtype)
        if values.offset is None or values.offset + values.nbytes > len(self.data):
            raise StoreError(f"{where} is beyond the end of the file")
        return np.frombuffer(self.data, values.dtype, count, values.offset).reshape(values.shape)

    def attributes(self, owner: Object, name: str) -> dict[str, Any]:
        own = {key: value for key, value in owner.attributes.items() if key not in _HIDDEN}
        if wrong := [key for key in own if not _NAME.fullmatch(key)]:
            raise StoreError(f"{self.path} is damaged: {name} has an attribute {wrong[0]!r}")
        return {key: self.attribute(value, key, name) for key, value in own.items()}

    def attribute(self, value: Values, key: str, name: str) -> Any:
        """Return an attribute as a text, a number, or a list of several, in Python types."""
        where = f"{self.path} is refused: attribute {key} of {name}"
        raw = self.raw(value, where)
        if raw.ndim > 1:
            raise StoreError(f"{where} has {raw.ndim} dimensions; expected a list of numbers or texts")
        items = [item.decode() if isinstance(item, bytes) else item for item in np.atleast_1d(raw).tolist()]
        return items[0] if len(items) == 1 else items
