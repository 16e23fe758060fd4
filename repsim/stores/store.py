"""Open and verify activation stores, one HDF5 file for each model (docs/store-format.md).

Opening a store checks the whole file except the arrays; reading rows checks the rows. `repsim.stores.writer` writes
stores.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from repsim.errors import Function, InvalidInputError, Remedy, StoreError, UnknownNameError, reason
from repsim.labels import (
    CHARACTERS,
    INPUT,
    NAME_SEPARATOR,
    PREDICTION,
    STATISTICS,
    TOKENS,
    LayerKey,
    SampleIds,
    noun_of,
)
from repsim.runtime.files import format_size
from repsim.runtime.progress import Listener, report_progress
from repsim.runtime.text_tables import Table, card, paragraphs, times
from repsim.stores import extents, layout, reader
from repsim.stores.axes import COMPUTED, AxisValue, axes_of, in_words
from repsim.stores.extents import Extent
from repsim.stores.schema import Array, Contents

_PIECE = 2**24
"""Bytes of an array that are read at once by `verify`, and for rows that are not consecutive."""
_GAP = 2**16
"""Bytes between two rows up to which both are read at once: to read them takes no longer than a second system call."""


class Activations:
    """Array of one layer in a store: ``activations[rows]`` reads rows as a numpy array and checks them."""

    def __init__(self, store: "ActivationStore", key: LayerKey) -> None:
        self._store, self.key = store, key
        self._extent, self._checksums = store._layout.arrays[key], store._layout.checksums[key]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array: (n samples, ...); (n // B, B, B) for Gram matrices of B samples."""
        return self._extent.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: float16, float32 or float64."""
        return self._extent.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        first, *rest = rows if isinstance(rows, tuple) and rows else (rows,)
        if first is Ellipsis or first is None:  # indexes other axes than the first
            return np.asarray(self[:][rows])
        indices = np.arange(len(self))[first]
        values = self.read_indices(np.atleast_1d(indices).ravel()).reshape(*indices.shape, *self.shape[1:])
        return values[(*[slice(None)] * indices.ndim, *rest)] if rest else values

    def read_indices(self, indices: Array, *, check: bool = True) -> Array:
        """Read rows in any order, in the order of the file; rows that lie close together are read at once.

        Parameters
        ----------
        indices : array of shape (m,)
            Rows of the array; a row may occur several times.
        check : bool
            Check the checksums of these rows, as in `read_rows`.

        Returns
        -------
        array of shape (m, ...)

        Raises
        ------
        StoreError
            A checksum does not match, or the file cannot be read.
        """
        values = np.empty((len(indices), *self.shape[1:]), self.dtype)
        order = np.argsort(indices, kind="stable")
        in_file = np.asarray(indices)[order]
        for places, start, stop in self._reads(in_file):
            rows, wanted = self._store._read(self._extent, start, stop), in_file[places]
            if (np.diff(wanted) != 1).any():
                rows = rows[wanted - start]
            if check:
                self._raise_if_damaged(self._damaged(rows, wanted))
            values[order[places]] = rows
        return values

    def _reads(self, in_file: Array) -> Iterator[tuple[slice, int, int]]:
        """Yield the places of sorted rows that one read fetches, and the range of rows that it reads."""
        row_bytes = max(1, self._extent.row_bytes)
        most = max(1, _PIECE // row_bytes)
        first = 0
        for cut in [*(np.flatnonzero(np.diff(in_file) > 1 + _GAP // row_bytes) + 1), len(in_file)]:
            while first < cut:  # a long run is read in pieces, so that the rows between take no memory to speak of
                last = int(np.searchsorted(in_file[first:cut], in_file[first] + most)) + first
                yield slice(first, last), int(in_file[first]), int(in_file[last - 1]) + 1
                first = last

    def read_rows(self, start: int, stop: int, *, check: bool = True) -> Array:
        """Read the rows start:stop.

        Parameters
        ----------
        start, stop : int
            Range of rows.
        check : bool
            Check the checksums. False saves time for rows that were read and checked before.

        Returns
        -------
        array of shape (stop - start, ...)

        Raises
        ------
        StoreError
            A checksum does not match, or the file cannot be read.
        """
        if not check:
            return self._store._read(self._extent, start, stop)
        values, damaged = self.read_and_check(start, stop)
        self._raise_if_damaged(damaged)
        return values

    def _raise_if_damaged(self, damaged: list[int]) -> None:
        """Raise an error that names the damaged rows, if there are any."""
        if damaged:
            raise StoreError(
                f"{self._store.path}: {self.key} is damaged in {rows_in_words(damaged)}: the checksum does not match",
                path=self._store.path,
                remedy=Remedy(
                    "extract the store again, or restore it from a copy (",
                    Function("repsim.verify"),
                    " lists all damage)",
                ),
            )

    def read_and_check(self, start: int, stop: int) -> tuple[Array, list[int]]:
        """Read the rows start:stop, and return them with the indices of the rows whose checksum does not match."""
        values = self._store._read(self._extent, start, stop)
        return values, self._damaged(values, np.arange(start, start + len(values)))

    def _damaged(self, values: Array, indices: Array) -> list[int]:
        """Return the indices of the rows whose values do not match their checksum; indices are sorted."""
        if not len(indices):
            return []
        first = int(indices[0])
        checksums = self._store._read(self._checksums, first, int(indices[-1]) + 1)
        lines = values.reshape(len(values), -1)
        pairs = zip(indices.tolist(), lines, strict=True)
        return sorted({i for i, line in pairs if zlib.crc32(extents.as_bytes(line)) != checksums[i - first]})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        return f"<Activations {self.key} {self.shape} {self.dtype}>"


class ActivationStore:
    """Activation store that is open for reading; a context manager.

    ``store["layer3.5"][:100]`` reads the first 100 rows of a layer. If the store holds several readouts, the name of an
    array is ``layer@readout``, as in ``store["blocks.3@cls"]``.

    Parameters
    ----------
    path : str or path
        The file.

    Raises
    ------
    StoreError
        The file is missing, damaged, incomplete, or no store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = store_path(path)
        self._contents, self._layout = reader.read(self.path)
        self._file: int | None = os.open(self.path, os.O_RDONLY)
        try:
            self._check_structure()
        except BaseException:
            self.close()
            raise
        self._name_arrays()

    def _name_arrays(self) -> None:
        """Name the layers: by their readout, too, if there are several readouts."""
        specs = [spec for spec in self._contents.arrays if not spec.key.control]
        several = len({spec.key.readout for spec in specs}) > 1
        names = [spec.key.label if several else spec.key.layer for spec in specs]
        self._arrays = {name: self._activations(spec.key) for name, spec in zip(names, specs, strict=True)}
        self._facts = {name: spec.facts for name, spec in zip(names, specs, strict=True)}

    def _activations(self, key: LayerKey) -> Activations:
        return Activations(self, key)

    def is_file(self, path: Path) -> bool:
        """Return whether this file is the store's own, perhaps under another name."""
        return path.exists() and self.path.samefile(path)

    def _check_structure(self) -> None:
        stored = int(self._read(self._layout.structure, 0, 1)[0])
        if stored < layout.COMPLETE:
            raise StoreError(
                f"{self.path} is incomplete: its extraction was interrupted, or is still running",
                path=self.path,
                remedy=Remedy("run the same extraction again to resume it"),
            )
        if stored != layout.COMPLETE + self._structure_checksum():
            raise StoreError(
                f"{self.path} is damaged outside of its arrays: the checksum of its header, names, attributes, labels "
                "and checksums does not match",
                path=self.path,
                remedy=Remedy("extract it again, or restore it from a copy"),
            )

    def _structure_checksum(self) -> int:
        assert self._file is not None, "the store is open"
        return extents.structure_checksum(self._file, self._layout)

    def _read(self, extent: Extent, start: int, stop: int) -> Array:
        if self._file is None:
            raise StoreError(f"the store {self.path} is closed; open it again")
        try:
            return extents.read_rows(self._file, extent, start, stop)
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {reason(error)}") from None

    @property
    def contents(self) -> Contents:
        """Contents of the store without the values."""
        return self._contents

    @property
    def model(self) -> str:
        """Name of the model, used in all results."""
        return self._contents.model

    @property
    def provenance(self) -> dict[str, Any]:
        """Settings from which the values were computed."""
        return dict(self._contents.provenance)

    @property
    def axes(self) -> dict[str, AxisValue]:
        """Coordinates of the model, such as its training step or width: values by the name of the axis.

        What was stated comes first, and replaces what was computed: `computed_axes`.
        """
        stated = axes_of(self._contents.provenance)
        return stated | {name: value for name, value in self.computed_axes.items() if name not in stated}

    @property
    def computed_axes(self) -> dict[str, AxisValue]:
        """Coordinates that the extraction computed: ``parameters``, ``depth``, ``width`` and ``accuracy``.

        The number of parameters; the number of convolutions and linear maps; the number of features before the
        classifier; and the share of samples whose predicted class is their label, if the model classifies them.
        """
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        return axes_of(self._contents.provenance, COMPUTED) | accuracy

    @cached_property
    def accuracy(self) -> float | None:
        """Share of samples whose `predicted` class is their label, from 0 to 1; None if it is not known."""
        if self.predicted is None or self.labels is None:
            return None
        return float(np.mean(self.predicted[:].ravel() == self.labels))

    @property
    def data(self) -> str:
        """Description of the samples, for figures and reports."""
        return self._contents.source

    @property
    def column(self) -> str:
        """Column of the table that the samples come from; empty without one."""
        return str(self._contents.provenance.get("column") or "")

    @property
    def modality(self) -> str:
        """Kind of what the model reads: ``image``, ``text``, ``tensor`` or ``other``; empty if it is not known.

        It is recorded at extraction, or in the provenance that `repsim.write_store` takes. Networks that were extracted
        by earlier versions read pictures, and so do those whose stored pixels have channels, a height and a width.
        Those with tokens or characters of texts read texts. With both it is not known.
        """
        recorded = self._contents.provenance
        if stated := recorded.get("modality"):
            return str(stated)
        extracted = str(recorded.get("extractor") or "given") != "given"
        pictures = extracted or (self.pixels is not None and len(self.pixels.shape) == 4)
        texts = any(self.control(*name) is not None for name in (TOKENS, CHARACTERS))
        return "" if pictures == texts else "image" if pictures else "text"

    @property
    def sample_ids(self) -> SampleIds:
        """Ids of the samples, in the order of the rows."""
        return self._contents.sample_ids

    @property
    def labels(self) -> Array | None:
        """Class numbers of the samples, (n,), or None."""
        return self._contents.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class numbers; empty if classes have no names."""
        return self._contents.classes

    @property
    def groups(self) -> Array | None:
        """Group of each sample, (n,), numbered from 0; None if all samples are independent.

        Samples of one group, such as the frames of a scene, are not independent.
        """
        return self._contents.groups

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups in the order of their numbers; empty without groups."""
        return self._contents.group_names

    @property
    def checksum(self) -> str:
        """Checksum of the file, including the checksums of all rows; two stores with the same one are equal."""
        return f"{int(self._read(self._layout.structure, 0, 1)[0]) - layout.COMPLETE:08x}"

    @property
    def order(self) -> Array | None:
        """Indices of the samples in the order in which they were read, if rows consist of several samples; else None.

        Row k of an array ``gram:B`` consists of the samples ``order[k * B : (k + 1) * B]``.
        """
        return self._contents.order

    @property
    def pixels(self) -> Activations | None:
        """Input of the model at low resolution; None if it is not stored.

        It is no layer but a control: it measures what networks share because they see the same pictures.
        """
        return self.control(*INPUT)

    @property
    def statistics(self) -> Activations | None:
        """Statistics of the model's input in full size, (n, statistics); None if they are not stored.

        Like `pixels` they are a control: brightness, contrast, colours, edges and frequencies, which networks see
        without any learning. Stores of earlier versions have none.
        """
        return self.control(*STATISTICS)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of the columns of `statistics`, ``group: statistic``; empty if they are not stored."""
        facts = [spec.facts for spec in self._contents.arrays if (spec.key.layer, spec.key.readout) == STATISTICS]
        return tuple(str(facts[0]["names"]).split(NAME_SEPARATOR)) if facts else ()

    @property
    def predicted(self) -> Activations | None:
        """Class that the model predicts for each sample, (n, 1): its number, or -1 for none of the labels' classes.

        None if the model does not classify the samples, or the store is of an earlier version. It is no layer.
        """
        return self.control(*PREDICTION)

    @property
    def prediction_rule(self) -> str:
        """Sentence that says which class each output of the model stands for; empty if nothing is `predicted`."""
        facts = [spec.facts for spec in self._contents.arrays if (spec.key.layer, spec.key.readout) == PREDICTION]
        return str(facts[0].get("classes", "")) if facts else ""

    def control(self, layer: str, readout: str) -> Activations | None:
        """Return a control, an array beside the layers; None if it is not stored.

        Parameters
        ----------
        layer, readout : str
            Name of the control. ``("input", "pixels")`` and ``("input", "statistics")`` are `pixels` and `statistics`,
            ``("output", "prediction")`` is `predicted`. Of texts, ``("input", "tokens")`` are the ids of tokens,
            ``("input", "characters")`` hashed counts of character n-grams, and ``("input", "embeddings")`` means of
            static embeddings. ``("input", "values")`` is an input that is a small array, as it is.
            docs/store-format.md describes all of them.

        Returns
        -------
        Activations or None
            The array, (n, ...).

        Examples
        --------
        >>> import numpy as np, repsim, tempfile
        >>> x = np.ones((4, 3), np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with repsim.write_store(f"{folder}/a.h5", {"out": x}, model="a", pixels=x) as store:
        ...         store.control("input", "pixels").shape, store.control("input", "tokens")
        ((4, 3), None)
        """
        keys = (spec.key for spec in self._contents.arrays if spec.key.control)
        return next((self._activations(key) for key in keys if (key.layer, key.readout) == (layer, readout)), None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers' arrays, in depth order."""
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> Activations:
        if name not in self._arrays:
            raise UnknownNameError("layer", name, self.layers, where=f"in {self.path.name}")
        return self._arrays[name]

    def facts(self, name: str) -> dict[str, Any]:
        """Return the recorded attributes of a layer: module type, output shape, axes, tokens."""
        self[name]
        return dict(self._facts[name])

    def __len__(self) -> int:
        return len(self.sample_ids)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(self) -> Table:
        """Tabulate the layers: readout, module type, output shape, axes, and the stored shape and dtype."""
        rows = []
        for name, array in self._arrays.items():
            facts = self._facts[name]
            stored = f"{times(array.shape)} {array.dtype}"
            output = times(facts.get("output_shape", ()))
            rows.append(
                (name, array.key.readout, str(facts.get("type", "")), output, str(facts.get("axes", "")), stored)
            )
        return Table(
            f"{len(rows)} layers", ("layer", "readout", "type", "output shape", "axes", "stored as"), tuple(rows)
        )

    @property
    def _state(self) -> str:
        """Size of the file, if it still exists, and whether it is open."""
        size = format_size(self.path.stat().st_size) if self.path.exists() else "no longer there"
        return size if self._file is not None else f"{size}, closed"

    def __repr__(self) -> str:
        return (
            f"<ActivationStore {self.path.name}: {self.model}, {len(self.layers)} layers, {len(self)} "
            f"{noun_of([self.modality], count=len(self))} of {self.data} ({self._state})>"
        )

    def _repr_html_(self) -> str:
        recorded = self.provenance
        weights = f"weights {recorded['weights']}" if recorded.get("weights") else ""
        labels = "" if self.labels is None else f"{len(self.classes) or len(set(self.labels.tolist()))} classes"
        groups = "" if self.groups is None else f"{len(self.group_names)} groups"
        pixels = "" if self.pixels is None else f"pixels of the input {times(self.pixels.shape[1:])}"
        statistics = "" if self.statistics is None else f"{self.statistics.shape[1]} statistics of the input"
        noun = noun_of([self.modality], count=len(self))
        facts = [
            weights, in_words(axes_of(recorded)), f"{len(self):,} {noun} of {self.data}", labels, groups, pixels,
            statistics,
            f"{self.path.name}, {self._state}",
        ]  # fmt: skip
        return card(self.model, paragraphs(["; ".join(filter(None, facts))]), self.table().html())


def store_path(path: Any) -> Path:
    """Return the name of a store's file as a path; raise `InvalidInputError` for anything else, such as an array."""
    if not isinstance(path, str | os.PathLike) or isinstance(path, bytes) or not str(path):
        kind = "empty text" if isinstance(path, str) else f"a {type(path).__name__}"
        raise InvalidInputError(
            f"expected a store or the name of its file, got {kind}; name arrays in a dictionary, "
            "{'layer': x}, compare two of them with repsim.similarity, or write a store with repsim.write_store"
        )
    if "\0" in str(path):
        raise InvalidInputError(f"a file name holds no null character: {str(path)!r}")
    return Path(path)


def is_other_view(a: ActivationStore, b: ActivationStore) -> bool:
    """Return whether two stores hold different views of their samples: other modalities, or other columns of a table.

    A picture and its caption are two views of a sample, and so are two captions. Their contents cannot be compared.
    """
    return any(
        first and second and first != second for first, second in ((a.modality, b.modality), (a.column, b.column))
    )


def same_weights(stores: Iterable[ActivationStore]) -> list[list[str]]:
    """Return the models whose weights are equal to the bit, as groups of two or more names.

    Two steps of a training run with equal weights are one step, saved twice. Stores without a hash of the weights, such
    as those of `repsim.write_store`, are left out.

    Parameters
    ----------
    stores : iterable of ActivationStore
        The stores.

    Returns
    -------
    list of list of str
        Names of models, in the order of the stores.

    Examples
    --------
    >>> import repsim, tempfile
    >>> with tempfile.TemporaryDirectory() as where:
    ...     same_weights(
    ...         repsim.write_store(f"{where}/{name}.h5", {"out": np.ones((3, 2))}, model=name,
    ...                            provenance={"weights_sha256": digest})
    ...         for name, digest in {"step.0": "aa", "step.1": "bb", "step.2": "aa"}.items()
    ...     )
    [['step.0', 'step.2']]
    """
    groups: dict[str, list[str]] = {}
    for store in stores:
        if digest := store.provenance.get("weights_sha256"):
            groups.setdefault(str(digest), []).append(store.model)
    return [models for models in groups.values() if len(models) > 1]


def open_store(path: str | os.PathLike[str]) -> ActivationStore:
    """Open a store for reading.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    ActivationStore
        A context manager that closes the file.

    Raises
    ------
    StoreError
        The file is missing, damaged, incomplete, or no store.
    """
    return ActivationStore(path)


@dataclass(frozen=True)
class Damage:
    """Damaged rows of one array: rows whose checksum does not match."""

    key: LayerKey
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} is damaged in {rows_in_words(self.rows)}"


def verify(path: str | os.PathLike[str], progress: Listener = None) -> list[Damage]:
    """Read a whole store and compare every byte with its checksum.

    Parameters
    ----------
    path : str or path
        The store.
    progress : callable or False, optional
        Called with the number of arrays that are checked and the number of all arrays. By default notebooks show a
        progress bar; False shows none.

    Returns
    -------
    list of Damage
        The damaged rows of every layer; empty if all checksums match.

    Raises
    ------
    StoreError
        The file is missing, cut off, incomplete, or damaged outside of its arrays.

    Examples
    --------
    >>> import repsim, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     repsim.write_store(f"{folder}/a.h5", {"out": np.ones((4, 2))}, model="a").close()
    ...     verify(f"{folder}/a.h5")
    []
    """
    damage: list[Damage] = []
    with open_store(path) as store, report_progress(f"verifying {store.path.name}", progress) as advance:
        arrays = [Activations(store, spec.key) for spec in store.contents.arrays]
        for done, array in enumerate(arrays, start=1):
            step = max(1, _PIECE // array._extent.row_bytes)
            rows = [
                row
                for start in range(0, len(array), step)
                for row in array.read_and_check(start, min(start + step, len(array)))[1]
            ]
            if rows:
                damage.append(Damage(array.key, tuple(rows)))
            if advance is not None:
                advance(done, len(arrays))
    return damage


def rows_in_words(rows: "list[int] | tuple[int, ...]") -> str:
    """Return the numbers of rows as text, with consecutive rows as ranges.

    >>> rows_in_words([3]), rows_in_words([1, 2, 3, 7])
    ('row 3', '4 rows (1-3, 7)')
    """
    runs = list(_runs(rows))
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:5]] + (["..."] if len(runs) > 5 else [])
    return f"row {words[0]}" if len(rows) == 1 else f"{len(rows)} rows ({', '.join(words)})"


def _runs(rows: "list[int] | tuple[int, ...]") -> Iterator[tuple[int, int]]:
    start = previous = rows[0]
    for row in rows[1:]:
        if row != previous + 1:
            yield start, previous
            start = row
        previous = row
    yield start, previous
