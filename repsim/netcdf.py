"""netCDF-4 files without variable-length strings, made of a data set and read back with suspicion.

Every netCDF and HDF5 library reads them. Text has a fixed width, every variable lies in one piece, and nothing is
compressed: so what a file claims can be held against its size before memory is taken, and none of HDF5's heaps has to
be read. (netCDF's DIMENSION_LIST lies in one, for other libraries; here the numbers of dimensions are read instead.)
"""

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, StoreError, reason
from repsim.layout import in_one_piece

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""Beginning of every HDF5 file."""
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
        dataset = file.create_dataset(name, values.shape, values.dtype, dcpl=in_one_piece(), track_order=True)
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
        with h5py.File(io.BytesIO(data), "r") as file:
            return _Reader(file, memoryview(data), path).all()
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - what HDF5 makes of damaged structures is anything
        raise StoreError(f"{path} is damaged: {reason(error)}") from None


def is_strict(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether bytes begin as `to_bytes` begins a file: in a version of HDF5's that has checksums."""
    return bytes(data[:8]) == SIGNATURE and len(data) > 8 and data[8] in {2, 3}


class _Reader:
    """Reads one file; every step refuses what `to_bytes` cannot have made."""

    def __init__(self, file: h5py.File, data: memoryview, path: object) -> None:
        self.file, self.data, self.path = file, data, path
        self.room = len(data)

    def all(self) -> xr.Dataset:
        """Everything."""
        if not is_strict(self.data) or self.file.userblock_size:
            raise StoreError(f"{self.path} is refused: its HDF5 structures have no checksums; save it with save_result")
        datasets = {name: self.dataset(name) for name in self.file}
        dims = self.dimensions(datasets)
        attrs = self.attributes(self.file, "the file")
        beside = set(str(attrs.pop("coordinates", "")).split())
        variables = {
            name: xr.Variable(dims[name], self.values(dataset), attributes)
            for name, dataset in datasets.items()
            if name in dims
            for attributes in [self.attributes(dataset, name)]
        }
        for variable in variables.values():
            for key in _CODED:
                variable.attrs.pop(key, None)
        coordinates = {name for name, variable in variables.items() if name in beside or variable.dims == (name,)}
        return xr.Dataset(
            {name: variable for name, variable in variables.items() if name not in coordinates},
            {name: variable for name, variable in variables.items() if name in coordinates},
            attrs,
        )

    def dataset(self, name: str) -> h5py.Dataset:
        """One variable, which lies in this file, in one piece, and not on top of what was claimed before."""
        where = f"{self.path} is refused: /{name}"
        if not isinstance(self.file.get(name, getlink=True), h5py.HardLink):
            raise StoreError(f"{where} is a link, perhaps to another file")
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise StoreError(f"{where} is no variable")
        made = dataset.id.get_create_plist()
        if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_external_count() or made.get_nfilters():
            raise StoreError(f"{where} does not lie in this file in one piece")
        if dataset.dtype.kind not in "iufS" or (dataset.dtype.kind == "S" and dataset.dtype.itemsize > 1):
            raise StoreError(f"{where} holds neither numbers nor characters")
        size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
        self.room -= size if self.holds_values(dataset) else 0
        if self.room < 0 or max(dataset.shape, default=0) > 2**40:
            raise StoreError(f"{where} claims the shape {dataset.shape}, which the file has no room for")
        return dataset

    def holds_values(self, dataset: h5py.Dataset) -> bool:
        """Tell a variable from a dimension that has none."""
        return not (
            "NAME" in dataset.attrs and str(self.attribute(dataset, "NAME", "a dimension")).startswith(_NO_VARIABLE)
        )

    def dimensions(self, datasets: Mapping[str, h5py.Dataset]) -> dict[str, tuple[str, ...]]:
        """Dimensions of every variable, held against its shape."""
        numbered: dict[Any, tuple[str, int]] = {}
        for name, dataset in datasets.items():
            if "_Netcdf4Dimid" in dataset.attrs:
                number = self.attribute(dataset, "_Netcdf4Dimid", name)
                if not isinstance(number, int) or number in numbered or not dataset.shape:
                    raise StoreError(f"{self.path} is damaged: the dimension {name} has no number of its own")
                numbered[number] = name, dataset.shape[0]
        dims = {}
        for name, dataset in datasets.items():
            if not self.holds_values(dataset):
                continue
            own = self.attribute(dataset, "_Netcdf4Coordinates", name) if dataset.shape else []
            places = own if isinstance(own, list) else [own]
            if [numbered.get(place, ("", -1))[1] for place in places] != list(dataset.shape):
                raise StoreError(
                    f"{self.path} is damaged: the shape {dataset.shape} of {name} is not that of its dimensions"
                )
            dims[name] = tuple(numbered[place][0] for place in places)
            if dataset.dtype.kind == "S":
                if not dims[name] or not dataset.shape[-1]:
                    raise StoreError(f"{self.path} is damaged: {name} holds single characters, and no texts")
                dims[name] = dims[name][:-1]
        return dims

    def values(self, dataset: h5py.Dataset) -> NDArray[Any]:
        count, dtype = int(np.prod(dataset.shape, dtype=object)), dataset.dtype
        offset = dataset.id.get_offset()
        if not count:
            raw = np.empty(dataset.shape, dtype)
        elif offset is None or offset + count * dtype.itemsize > len(self.data):
            raise StoreError(f"{self.path} is refused: {dataset.name} lies beyond the end of the file")
        else:
            raw = np.frombuffer(self.data, dtype, count, offset).reshape(dataset.shape)
        if dtype.kind == "S":
            texts = [text.decode() for text in np.ascontiguousarray(raw).view(f"S{raw.shape[-1]}").ravel().tolist()]
            return np.array(texts, dtype=object).reshape(dataset.shape[:-1]).astype(str)
        return raw.astype(dtype.newbyteorder("="), copy=not raw.flags.aligned)  # else the file's own memory, read once

    def attributes(self, owner: Any, name: str) -> dict[str, Any]:
        return {key: self.attribute(owner, key, name) for key in owner.attrs if key not in _HIDDEN}

    def attribute(self, owner: Any, key: str, name: str) -> Any:
        """A text or a number, or a list of several, as plain Python values."""
        attribute = owner.attrs.get_id(key)
        where = f"{self.path} is refused: attribute {key} of {name}"
        if attribute.dtype.kind not in "iufS" or len(attribute.shape) > 1:
            raise StoreError(f"{where} is no number and no text of a fixed width")
        if int(np.prod(attribute.shape, dtype=object)) * attribute.dtype.itemsize > len(self.data):
            raise StoreError(f"{where} claims the shape {attribute.shape}, which the file has no room for")
        values = np.atleast_1d(owner.attrs[key]).tolist()
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
        return values[0] if len(values) == 1 else values
