"""Activation stores: one HDF5 file a model. The only module that knows HDF5; docs/store-format.md says what is in it.

A store is written under a temporary name, ``<name>.partial``, and gets its own name when it is complete, so a file
with a store's name always holds everything. All arrays are laid out in full before the first row is written.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, OutputError, StoreError, UnknownNameError, reason
from repsim.files import check_output, partial_path
from repsim.labels import LayerKey, SampleIds

FORMAT = "repsim-activations"
VERSION = 1
_CHUNK_BYTES = 2**20
"""Chunks of whole rows of about this size: larger ones than a batch are written slowly, smaller ones read slowly."""

Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store, before it is written."""

    key: LayerKey
    shape: tuple[int, ...]
    """Of one sample."""
    facts: Mapping[str, Any]
    """What is recorded of the layer: module type, output shape, axes, tokens."""

    def row_bytes(self, dtype: str) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


class Activations:
    """One layer's array in a store: ``activations[rows]`` reads those rows as a numpy array."""

    def __init__(self, dataset: h5py.Dataset, key: LayerKey) -> None:
        self._dataset, self.key = dataset, key

    @property
    def shape(self) -> tuple[int, ...]:
        """(n samples, ...)."""
        shape: tuple[int, ...] = self._dataset.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16, float32 or float64."""
        dtype: np.dtype[Any] = self._dataset.dtype
        return dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if not self._dataset:
            raise StoreError(f"the store of {self.key} is closed; open it again")
        try:
            values: Array = self._dataset[rows]
        except OSError as error:
            raise StoreError(f"cannot read {self.key} from {self._dataset.file.filename}: {reason(error)}") from None
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        return f"<Activations {self.key} {self.shape} {self.dtype}>"


class ActivationStore:
    """An open store, to be read: ``store["layer3.5"][:100]`` is the first 100 rows of that layer. A context manager.

    Where a store holds several readouts, an array's name is ``layer@readout``, as in ``store["blocks.3@cls"]``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._read()
        except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
            self._file.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path} is a damaged store: {reason(error)}") from None

    def _read(self) -> None:
        file = self._file
        kind, version, state = (file.attrs.get(key) for key in ("format", "format_version", "state"))
        if kind != FORMAT:
            raise StoreError(
                f"{self.path} is an HDF5 file but no activation store (its 'format' is {kind!r}, not {FORMAT!r})"
            )
        if version != VERSION:
            raise StoreError(
                f"{self.path} has store format {version}; this repsim reads {VERSION}. Install a newer repsim"
            )
        if state != "complete":
            raise StoreError(f"{self.path} is incomplete: its extraction was interrupted. Run it again")
        self.model: str = file.attrs["model"]
        self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
        samples = file["samples"]
        self.data: str = samples.attrs["source"]
        self.sample_ids = SampleIds(tuple(samples["id"].asstr()[:].tolist()), samples.attrs["content_fingerprint"])
        self.labels: Array | None = samples["label"][:] if "label" in samples else None
        """Class numbers, or None."""
        self.classes: tuple[str, ...] = tuple(json.loads(samples.attrs["classes"]))
        self._arrays: dict[str, Activations] = {}
        arrays = [dataset for group in file["layers"].values() for dataset in group.values()]
        several = len({dataset.name.rpartition("/")[2] for dataset in arrays}) > 1
        for dataset in arrays:
            layer, readout = dataset.name.split("/")[2:]
            key = LayerKey(self.model, layer, readout)
            if dataset.shape[0] != len(self.sample_ids):
                raise StoreError(f"{self.path}: {key} has {dataset.shape[0]} rows for {len(self.sample_ids)} samples")
            self._arrays[key.label if several else layer] = Activations(dataset, key)
        if not self._arrays:
            raise StoreError(f"{self.path} holds no layer")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the arrays, in depth order."""
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> Activations:
        if name not in self._arrays:
            raise UnknownNameError("layer", name, self.layers, hint=f"in {self.path.name}")
        return self._arrays[name]

    def facts(self, name: str) -> dict[str, Any]:
        """What is recorded of one layer: module type, output shape, axes, tokens."""
        attrs = self[name]._dataset.parent.attrs
        return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in attrs.items()}

    def __len__(self) -> int:
        return len(self.sample_ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ActivationStore {self.path.name}: {self.model}, {len(self.layers)} layers, {len(self)} samples>"


def open_store(path: str | os.PathLike[str]) -> ActivationStore:
    """Open a store for reading; `StoreError` where it is missing, damaged, incomplete, or something else."""
    return ActivationStore(path)


class StoreWriter:
    """Writes one store. A context manager: the file gets its name when the block ends well, and is removed when not.

    Every array is laid out in full on entry (known sizes, chunks allocated early), so that writing rows changes no HDF5
    metadata, and stays open until the end.
    """

    def __init__(
        self,
        path: Path,
        arrays: Sequence[ArraySpec],
        sample_ids: SampleIds,
        *,
        labels: Array | None = None,
        classes: Sequence[str] = (),
        source: str,
        provenance: Mapping[str, Any],
        dtype: str = "float32",
        batch_size: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path, self.partial, self.overwrite = path, partial_path(path), overwrite
        self.arrays, self._ids, self._labels, self._classes = arrays, sample_ids, labels, classes
        self._source, self._provenance, self._dtype, self._batch_size = source, provenance, dtype, batch_size
        self._datasets: dict[LayerKey, h5py.Dataset] = {}
        self._written = dict.fromkeys((spec.key for spec in arrays), 0)
        self._check()

    def _check(self) -> None:
        ids = self._ids.ids
        if len(set(ids)) < len(ids):
            twice = next(i for i, s in enumerate(ids) if s in ids[:i])
            raise InvalidInputError(f"sample id {ids[twice]!r} occurs twice; ids must be unique")
        for name in ids:
            try:
                name.encode()
            except UnicodeEncodeError:  # a file name in another encoding
                raise InvalidInputError(f"sample id {name!r} is not valid Unicode; rename the file") from None
        if self._labels is not None and len(self._labels) != len(ids):
            raise InvalidInputError(f"{len(self._labels)} labels for {len(ids)} samples")
        if not self.arrays:
            raise InvalidInputError("a store needs at least one layer")
        for spec in self.arrays:
            for part in (spec.key.layer, spec.key.readout):
                if "/" in part or part in {"", "."}:
                    raise InvalidInputError(
                        f"{part!r} cannot name a layer: it may not be empty or hold a slash (use dots)"
                    )

    def __enter__(self) -> Self:
        check_output(self.path, overwrite=self.overwrite)
        _refuse_second_writer(self.partial)
        try:
            with self._guard():
                self.file = h5py.File(self.partial, "w")
                self._lay_out()
        except BaseException:
            self._abandon()
            raise
        return self

    def _lay_out(self) -> None:
        file, n = self.file, len(self._ids)
        file.attrs.update(
            format=FORMAT,
            format_version=VERSION,
            state="partial",
            model=self.arrays[0].key.model,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            provenance=json.dumps(self._provenance),
        )
        samples = file.create_group("samples")
        samples.attrs.update(
            source=self._source,
            content_fingerprint=self._ids.content,
            id_fingerprint=self._ids.fingerprint,
            classes=json.dumps(list(self._classes)),
        )
        # fixed width: variable-length strings take 28 times the room
        encoded = [i.encode() for i in self._ids]
        text = h5py.string_dtype("utf-8", max(map(len, encoded)))
        samples.create_dataset("id", data=np.array(encoded, text), compression="gzip")
        if self._labels is not None:
            samples.create_dataset("label", data=np.asarray(self._labels, np.int64))
        layers = file.create_group("layers", track_order=True)  # else blocks.10 comes before blocks.2
        for spec in self.arrays:
            known = spec.key.layer in layers  # its second readout
            group = layers[spec.key.layer] if known else layers.create_group(spec.key.layer, track_order=True)
            group.attrs.update({key: value for key, value in spec.facts.items() if value is not None})
            rows = max(1, min(_CHUNK_BYTES // max(1, spec.row_bytes(self._dtype)), self._batch_size or n, n))
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            # No chunk cache (h5py takes 0 for its default): where a full disk keeps HDF5 from emptying it, closing the
            # array loses the rows without an error, and the process crashes at its end.
            self._datasets[spec.key] = group.create_dataset(
                spec.key.readout,
                (n, *spec.shape),
                self._dtype,
                chunks=(rows, *spec.shape),
                dcpl=layout,
                rdcc_nbytes=1,
                rdcc_nslots=1,
            )
        file.flush()

    def write(self, key: LayerKey, rows: slice, values: Array) -> None:
        """Write some rows of one array: (rows, ...), or flattened to (rows, p)."""
        dataset = self._datasets[key]
        with np.errstate(over="ignore"):  # an overflow of float16 is found, and named, right below
            values = values.astype(self._dtype, copy=False).reshape(-1, *dataset.shape[1:])
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argwhere(~finite)[0, 0])
            hint = "; it may have overflowed float16, so try float32" if self._dtype == "float16" else ""
            raise InvalidInputError(
                f"{key}: {int((~finite).sum())} values are NaN or infinite, the first in sample "
                f"{self._ids.ids[rows.start + row]}{hint}"
            )
        with self._guard():
            dataset[rows] = values
        self._written[key] += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._check_complete()
            with self._guard():
                self.file.flush()
                self.file.attrs["state"] = "complete"
                self.file.close()
                with self.partial.open("rb") as file:
                    os.fsync(file.fileno())
                self.partial.replace(self.path)
        except OutputError:
            self._abandon()
            raise

    def _check_complete(self) -> None:
        """Rows that were never written would hold whatever was on the disk."""
        for key, count in self._written.items():
            if count != len(self._ids):
                raise OutputError(f"{key}: {count} rows were written for {len(self._ids)} samples")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what HDF5 raises when it cannot write (an OSError or a RuntimeError) into one line."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from None

    def _abandon(self) -> None:
        """Remove the unfinished file. Emptied first: HDF5 writes once more when it closes, and needs room for that."""
        if self.partial.exists():
            os.truncate(self.partial, 0)
        with suppress(OSError, RuntimeError, AttributeError):  # no file yet, where opening it failed
            self.file.close()
        self.partial.unlink(missing_ok=True)


def write_store(
    path: str | os.PathLike[str],
    layers: Mapping[str, Array],
    *,
    model: str,
    sample_ids: Sequence[str] | None = None,
    labels: Sequence[int] | Array | None = None,
    readout: str = "given",
    source: str = "given",
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ActivationStore:
    """Make a store of activations that come from elsewhere.

    Parameters
    ----------
    path
        The new file.
    layers
        Layer name -> array (n samples, ...), in depth order; float16, float32 or float64, the same for all.
    model
        Names the model in every result.
    sample_ids
        One id a sample, unique. Without them samples are numbered, and any two stores of as many samples agree.
    labels
        Class numbers.
    readout
        How the arrays were read out, as it will stand under figures.
    source
        What the samples are, as it will stand under figures.
    provenance
        Anything else worth recording, as JSON values.
    overwrite
        Replace an existing file.

    Raises
    ------
    InvalidInputError
        Arrays of unequal length, of no floating dtype, or with NaN or infinite values.
    OutputError
        The file exists, or cannot be written.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_store(f"{folder}/mine.h5", {"hidden": x, "out": x[:, :2]}, model="mine") as store:
    ...         store.layers, store["out"].shape
    (('hidden', 'out'), (10, 2))
    """
    arrays = {name: np.asarray(values) for name, values in layers.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or any(
        len(shape) < 2 or 0 in shape for shape in shapes.values()
    ):
        raise InvalidInputError(f"every layer must be (n samples, features ...) with the same n, got {shapes}")
    kinds = {str(values.dtype) for values in arrays.values()}
    if not kinds <= {"float16", "float32", "float64"} or len(kinds) > 1:
        raise InvalidInputError(f"layers must all be float16, float32 or float64, got {', '.join(sorted(kinds))}")
    n = next(iter(shapes.values()))[0] if shapes else 0
    ids = tuple(str(i) for i in range(n)) if sample_ids is None else tuple(map(str, sample_ids))
    if len(ids) != n:
        raise InvalidInputError(f"{len(ids)} sample ids for {n} samples")
    specs = [ArraySpec(LayerKey(model, name, readout), shape[1:], {}) for name, shape in shapes.items()]
    writer = StoreWriter(
        Path(path),
        specs,
        SampleIds(ids),
        labels=None if labels is None else np.asarray(labels),
        source=source,
        provenance={"extractor": "given", **(provenance or {})},
        dtype=next(iter(kinds), "float32"),
        overwrite=overwrite,
    )
    with writer:
        for spec in specs:
            writer.write(spec.key, slice(0, n), arrays[spec.key.layer])
    return open_store(path)


def _refuse_second_writer(partial: Path) -> None:
    """Opening a file with 'w' while another process writes it fails, but empties it all the same: so look first."""
    if partial.exists():
        try:
            h5py.File(partial, "r+").close()
        except BlockingIOError:
            raise OutputError(f"another process is writing {partial}") from None
        except OSError:
            pass  # what an interrupted run left behind


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        raise StoreError(f"{path} is being written by another process; wait until it is done") from None
    except OSError as error:
        known = {"truncated": "it is cut off", "signature": "it is no HDF5 file"}
        why = next((text for word, text in known.items() if word in str(error)), reason(error))
        raise StoreError(f"cannot read {path}: {why}") from None
