"""netCDF-4 files without variable-length strings, made of a data set and read back with suspicion.

Every netCDF and HDF5 library reads them. Text has a fixed width, every variable lies in one piece, and nothing is
compressed: so what a file claims can be held against its size before memory is taken, and `repsim.results.hdf5` can
read it without HDF5. (netCDF's DIMENSION_LIST lies in a heap, for other libraries; here the numbers of dimensions are
read.)
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
"""Attributes by which netCDF describes its variables."""
_CODED = {"_FillValue", "_Encoding", "coordinates"}
"""Attributes by which xarray does."""
_NAME = re.compile(r"[^\x00-\x1f/\x7f]+")


# Writing


def to_bytes(data: xr.Dataset) -> bytearray:
    """Make a netCDF-4 file, in memory, of numbers and texts over named dimensions.

    Raises
    ------
    InvalidInputError
        A variable or an attribute is neither numbers nor text, or a name cannot be written.
    """
    paper = io.BytesIO()
    # the bound on versions puts a checksum on every one of HDF5's own structures
    with h5py.File(paper, "w", libver=("v108", "v108"), track_order=True) as file:
        _write(file, data)
    return bytearray(paper.getbuffer())


def _write(file: h5py.File, data: xr.Dataset) -> None:
    beside = [str(name) for name in data.coords if name not in data.dims and " " not in str(name)]
    facts = {"coordinates": " ".join(beside)} if beside else {}
    _describe(file, {"_NCProperties": f"version=2,h5py={h5py.__version__}"} | facts | _plain(data.attrs, "the file"))
    sizes = {str(dim): size for dim, size in data.sizes.items()}
    dims: dict[str, list[str]] = {}
    for name in sorted(map(str, data.variables), key=lambda name: name not in sizes):  # dimensions first
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"netCDF has no variable {name!r}; leave out '/' and control characters")
        variable = data[name]
        dims[name] = [str(dim) for dim in variable.dims]
        values, facts = _encoded(variable.values, name)
        if values.dtype.kind == "S":
            dims[name].append(f"string{values.shape[-1]}")
            sizes[dims[name][-1]] = values.shape[-1]
        own = [other for other in beside if set(data[other].dims) <= set(variable.dims)]
        if own and name not in data.coords:
            facts["coordinates"] = " ".join(own)
        dataset = file.create_dataset(name, values.shape, values.dtype, dcpl=contiguous_layout(), track_order=True)
        if values.size:
            dataset[...] = values
        _describe(dataset, facts | _plain(variable.attrs, name), name)
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
        for axis, dim in enumerate(own if name not in sizes else []):  # HDF5 gives a scale no scales
            file[name].dims[axis].attach_scale(file[dim])


def _encoded(values: NDArray[Any], name: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Values as they are written, and the attributes that explain them: text as characters along one more axis."""
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
    """Strings of a fixed width."""
    try:
        encoded = [value.encode() for value in values]
    except UnicodeEncodeError:
        raise InvalidInputError(f"a text of {name} is no Unicode (a lone surrogate is in it); write another") from None
    if any(b"\0" in text for text in encoded):
        raise InvalidInputError(f"a text of {name} holds a NUL, which netCDF cannot keep; leave it out")
    return np.array(encoded, f"S{max(least, *map(len, encoded), least)}")


def _plain(attrs: Mapping[Any, Any], name: str) -> dict[str, Any]:
    taken = sorted((_HIDDEN | _CODED) & {str(key) for key in attrs})
    if taken:
        raise InvalidInputError(f"{name} has an attribute {taken[0]}, which netCDF keeps for itself; leave it out")
    return {str(key): value for key, value in attrs.items()}


def _describe(owner: Any, attrs: Mapping[str, Any], name: str = "the file") -> None:
    """Write attributes: a text, a number, or a list of either. One byte would be a character to netCDF, no text."""
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
    """Read what `to_bytes` makes; `StoreError`, which names ``path``, where it is anything else.

    Values are not copied, so they can be changed where ``data`` can.
    """
    try:
        return _Reader(memoryview(data), path).all()
    except (ValueError, struct.error, LookupError) as error:  # what does not fit together
        raise StoreError(f"{path} is damaged: {reason(error)}") from None


def is_strict(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether bytes begin as `to_bytes` begins a file: in a version of HDF5's that has checksums."""
    return bytes(data[:8]) == SIGNATURE and len(data) > 8 and data[8] in {2, 3}


class _Reader:
    """Reads one file; every step refuses what `to_bytes` cannot have made."""

    def __init__(self, data: memoryview, path: object) -> None:
        self.data, self.path = data, path
        self.structures = Structures(data)
        self.room = len(data)

    def all(self) -> xr.Dataset:
        """Everything."""
        variables = {name: self.structures.object(at) for name, at in self.structures.root.links.items()}
        for name, variable in variables.items():
            self.check(name, variable)
        dims = self.dimensions(variables)
        attrs = self.attributes(self.structures.root, "the file")
        beside = set(str(attrs.pop("coordinates", "")).split())
        made = {
            name: xr.Variable(dims[name], self.values(variable, name), self.attributes(variable, name))
            for name, variable in variables.items()
            if name in dims
        }
        for array in made.values():
            for key in _CODED:
                array.attrs.pop(key, None)
        coordinates = {name for name, array in made.items() if name in beside or array.dims == (name,)}
        return xr.Dataset(
            {name: array for name, array in made.items() if name not in coordinates},
            {name: array for name, array in made.items() if name in coordinates},
            attrs,
        )

    def check(self, name: str, variable: Object) -> None:
        """Hold one variable against the size of the file, and against what others have claimed of it."""
        where, values = f"{self.path} is refused: /{name}", variable.values
        if not _NAME.fullmatch(name):
            raise StoreError(f"{self.path} is damaged: it has a variable {name!r}")
        if values is None:
            raise StoreError(f"{where} is no variable")
        if values.dtype is None or (values.dtype.kind == "S" and values.dtype.itemsize > 1):
            raise StoreError(f"{where} holds neither numbers nor characters")
        self.room -= values.nbytes if self.holds_values(variable) else 0
        if self.room < 0 or max(values.shape, default=0) > 2**40:
            raise StoreError(f"{where} claims the shape {values.shape}, which the file has no room for")

    def holds_values(self, variable: Object) -> bool:
        """Tell a variable from a dimension that has none."""
        scale = variable.attributes.get("NAME")
        return scale is None or not str(self.attribute(scale, "NAME", "a dimension")).startswith(_NO_VARIABLE)

    def dimensions(self, variables: Mapping[str, Object]) -> dict[str, tuple[str, ...]]:
        """Dimensions of every variable, held against its shape."""
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
            places = [] if own is None else self.attribute(own, "_Netcdf4Coordinates", name)
            places = places if isinstance(places, list) else [places]
            if [numbered.get(place, ("", -1))[1] for place in places] != list(shapes[name]):
                raise StoreError(
                    f"{self.path} is damaged: the shape {shapes[name]} of {name} is not that of its dimensions"
                )
            dims[name] = tuple(numbered[place][0] for place in places)
            if variable.values and variable.values.dtype == np.dtype("S1"):
                if not dims[name] or not shapes[name][-1]:
                    raise StoreError(f"{self.path} is damaged: {name} holds single characters, and no texts")
                dims[name] = dims[name][:-1]
        return dims

    def values(self, variable: Object, name: str) -> NDArray[Any]:
        """Values of a variable; text decoded."""
        raw = self.raw(variable.values, f"{self.path} is refused: /{name}")
        if raw.dtype.kind == "S":
            texts = [text.decode() for text in np.ascontiguousarray(raw).view(f"S{raw.shape[-1]}").ravel().tolist()]
            return np.array(texts, dtype=object).reshape(raw.shape[:-1]).astype(str)
        return raw.astype(raw.dtype.newbyteorder("="), copy=not raw.flags.aligned)  # else the file's own memory

    def raw(self, values: Values | None, where: str) -> NDArray[Any]:
        """Numbers and characters as they are in the file."""
        if values is None or values.dtype is None:
            raise StoreError(f"{where} is no number and no text of a fixed width")
        count = math.prod(values.shape)
        if not count:
            return np.empty(values.shape, values.dtype)
        if values.offset is None or values.offset + values.nbytes > len(self.data):
            raise StoreError(f"{where} lies beyond the end of the file")
        return np.frombuffer(self.data, values.dtype, count, values.offset).reshape(values.shape)

    def attributes(self, owner: Object, name: str) -> dict[str, Any]:
        own = {key: value for key, value in owner.attributes.items() if key not in _HIDDEN}
        if wrong := [key for key in own if not _NAME.fullmatch(key)]:
            raise StoreError(f"{self.path} is damaged: {name} has an attribute {wrong[0]!r}")
        return {key: self.attribute(value, key, name) for key, value in own.items()}

    def attribute(self, value: Values, key: str, name: str) -> Any:
        """A text or a number, or a list of several, as plain Python values."""
        where = f"{self.path} is refused: attribute {key} of {name}"
        raw = self.raw(value, where)
        if raw.ndim > 1:
            raise StoreError(f"{where} is no list of numbers or texts, but a table")
        items = [item.decode() if isinstance(item, bytes) else item for item in np.atleast_1d(raw).tolist()]
        return items[0] if len(items) == 1 else items
