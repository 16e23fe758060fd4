"""Read activations that other programs have saved, and make a store of them."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np

from repsim.errors import Argument, Hint, InvalidInputError, Remedy, StoreError, UnknownNameError, reason
from repsim.extractors.samples.group_files import read_groups
from repsim.extractors.samples.label_files import assign_labels
from repsim.labels import check_model_name
from repsim.runtime.events import Note, log_notes
from repsim.runtime.files import check_output, natural_key, sha256_of
from repsim.runtime.progress import Listener, counter, report_progress
from repsim.stores.axes import StatedAxes
from repsim.stores.foreign import Foreign, ForeignLayer, as_floats, texts
from repsim.stores.foreign_arrays import (
    read_mat,
    read_npy,
    read_npz,
    read_safetensors,
    read_text,
    read_torch,
    refuse_pickles,
)
from repsim.stores.foreign_containers import read_h5ad, read_hdf5, read_parquet, read_zarr
from repsim.stores.given import describe
from repsim.stores.in_memory import as_store, record_ids
from repsim.stores.store import ActivationStore, open_store, store_path
from repsim.stores.writer import StoreWriter

READERS: Mapping[str, Callable[[Path], Foreign]] = {
    ".npy": read_npy, ".npz": read_npz, ".txt": read_text, ".mat": read_mat, ".safetensors": read_safetensors,
    ".pt": read_torch, ".pth": read_torch, ".h5": read_hdf5, ".hdf5": read_hdf5, ".h5ad": read_h5ad,
    ".parquet": read_parquet, ".zarr": read_zarr,
    ".pkl": refuse_pickles, ".pickle": refuse_pickles, ".joblib": refuse_pickles,
}  # fmt: skip
"""Readers by the suffix of the file."""
_NAMES = ("file_names.txt", "ids.txt", "sample_ids.txt")
"""Files with the sample ids, one a line, beside the layers; thingsvision writes the first."""
_PART = re.compile(r"(features.*?)_(\d+)(?:-(\d+))?")
"""Name of a file with a part of the rows, as thingsvision writes them."""
_PIECE = 2**24
"""Bytes of a layer that are read at once."""


@dataclass
class _Samples:
    """Ids of the samples, and the classes that `assign_labels` sets."""

    name: str
    ids: Sequence[str]
    labels: Any = None
    classes: Sequence[str] = ()
    label_record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def read_activations(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    layers: str | Sequence[str] | None = None,
    ids: str | os.PathLike[str] | Iterable[str | int] | None = None,
    labels: Any = None,
    groups: Any = None,
    data: str | None = None,
    axes: StatedAxes | None = None,
    overwrite: bool = False,
    progress: Listener = None,
) -> ActivationStore:
    """Make a store of activations that another program has saved.

    The format follows from the name: a folder of ``.npy``, ``.pt`` or ``.safetensors`` files with one layer each, as
    also thingsvision writes them; a file of many layers, ``.npz``, ``.safetensors``, ``.pt`` (dictionaries of tensors,
    such as those of hooks), ``.mat``, ``.h5`` (HDF5), ``.h5ad`` (AnnData), ``.zarr`` or ``.parquet``; or what
    `repsim.export_activations` has written. docs/import-export.md describes what becomes a layer. Pickles, and links
    from HDF5 into other files, are refused. Notes are logged to ``logging.getLogger("repsim")``; they say what was
    taken and what was left out, and so does the entry ``imported`` of the provenance.

    Parameters
    ----------
    source : str or path
        The file or folder. All layers have the same number of rows, one for each sample.
    out : path, optional
        File of the new store (.h5), or folder of the new store MODEL.h5, to which values are copied a few megabytes at
        a time. By default nothing is written, and the store reads from the source: memory-mapped if it is ``.npy``,
        ``.pt``, ``.safetensors`` or uncompressed HDF5, and otherwise read into memory.
    model : str, optional
        Name of the model in results. By default the name of the source without suffix.
    layers : str or sequence of str, optional
        Names of layers, or globs such as ``block*``. By default all.
    ids : path, str or sequence of str or int, optional
        Sample ids: a text file with one a line, the name of a column of the source, or the ids. By default those of the
        source (``file_names.txt`` in the folder, ``obs_names``, the index of a table, an array named ``ids``), or else
        numbers of the rows.
    labels, groups : path, str, mapping or sequence, optional
        Classes and groups of the samples, as `repsim.extract` takes them, or the name of a column of the source.
    data : str, optional
        Description of the samples, for figures. By default the name of the source.
    axes : dict of str to number or str, optional
        Coordinates of the model among others, as in `repsim.write_store`.
    overwrite : bool
        Replace an existing file.
    progress : callable or False, optional
        Called with the number of layers that are copied, and of all. By default notebooks show a bar.

    Returns
    -------
    ActivationStore
        The store, open for reading.

    Raises
    ------
    InvalidInputError
        There is no layer, the format is not known, the file holds pickled objects, layers have different numbers of
        rows, values are NaN or infinite, or ids, labels or groups do not fit the samples.
    StoreError
        There is no such file, it is damaged, or it refers to other files.
    UnknownNameError
        No layer has a name that was given.
    MissingExtraError
        The library of the format is not installed.
    OutputError
        ``out`` exists or cannot be written.

    Examples
    --------
    >>> import repsim, tempfile
    >>> x = np.random.default_rng(0).normal(size=(20, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/net.npz", conv=x, fc=x[:, :2], ids=[f"photo{k}" for k in range(20)])
    ...     store = repsim.read_activations(f"{folder}/net.npz", f"{folder}/net.h5")
    ...     store.model, store.layers, store.sample_ids.ids[0], store["fc"].shape
    ('net', ('conv', 'fc'), 'photo0', (20, 2))
    """
    steps = import_steps(
        source, out, model=model, layers=layers, ids=ids, labels=labels, groups=groups, data=data, axes=axes,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    store: ActivationStore
    (store,) = log_notes(steps)
    return store


def import_steps(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    model: str | None = None,
    layers: str | Sequence[str] | None = None,
    ids: Any = None,
    labels: Any = None,
    groups: Any = None,
    data: str | None = None,
    axes: StatedAxes | None = None,
    overwrite: bool = False,
    progress: Listener = None,
) -> Iterator[Note | ActivationStore]:
    """Read activations as `read_activations` does; yield notes, and the store at the end."""
    path = store_path(source)
    foreign, files = _open(path)
    record: dict[str, Any] = dict(foreign.record)
    stem = path.resolve().name if path.is_dir() and path.suffix != ".zarr" else path.resolve().stem
    name = check_model_name(model or str(record.get("model") or stem))
    target = None if out is None else store_path(out)
    if target is not None:
        target = target if target.suffix == ".h5" else target / f"{name}.h5"
        check_output(target, overwrite=overwrite)
    chosen, left_out = _select(path, foreign, layers)
    n = chosen[0].shape[0]
    sample_ids, ids_record = _ids(foreign, ids, n)
    names = tuple(map(str, range(n))) if sample_ids is None else tuple(map(str, sample_ids))
    classes, labels_record = _labels(path, foreign, labels, names)
    group_of, groups_record = _groups(path, foreign, groups, names)
    for column in (ids if ids is not None else foreign.ids_from, labels, groups):
        if isinstance(column, str) and column in foreign.columns:
            left_out.pop(column, None)
    provenance = {
        "imported": {
            "format": foreign.form,
            "files": [{"name": file.relative_to(path.parent).as_posix(), "sha256": sha256_of(file)} for file in files],
            "layers": {layer.name: layer.dtype for layer in chosen},
            "left_out": left_out,
            "ids": ids_record,
            **({"labels": labels_record} if labels_record else {}),
            **({"groups": groups_record} if groups_record else {}),
            **({"provenance": record["provenance"]} if "provenance" in record else {}),
        }
    }
    yield from map(Note, _notes(path, foreign, chosen, left_out, ids_record))
    settings: dict[str, Any] = {
        "model": name, "sample_ids": sample_ids,
        "labels": classes, "groups": group_of, "readout": str(record.get("readout") or "given"),
        "source": data or str(record.get("data") or stem), "axes": axes, "provenance": provenance,
    }  # fmt: skip
    if target is None:
        yield as_store({layer.name: layer.values() for layer in chosen}, **settings)
    else:
        _write(target, chosen, settings, overwrite=overwrite, progress=progress)
        yield open_store(target)


def _write(
    path: Path, layers: Sequence[ForeignLayer], settings: Mapping[str, Any], *, overwrite: bool, progress: Listener
) -> None:
    """Copy layers to a new store, a few megabytes at a time."""
    named = {layer.name: layer for layer in layers}
    dtype = np.result_type(*(layer.stored_as for layer in layers)).name
    described = describe(named, named, dtype, pixels=None, controls=None, **settings)
    contents = record_ids(described.contents)
    with (
        report_progress(f"reading {path.name}", progress) as advance,
        StoreWriter(path, contents, overwrite=overwrite) as writer,
    ):
        step = counter(len(layers), advance)
        for key, layer in described.arrays.items():
            row_bytes = int(np.prod(layer.shape[1:], dtype=np.int64)) * np.dtype(layer.stored_as).itemsize
            start = 0
            for block in layer.blocks(max(1, _PIECE // row_bytes)):
                values = as_floats(block, layer.name)
                if values.shape[1:] != layer.shape[1:] or start + len(values) > layer.shape[0]:
                    raise StoreError(f"layer {layer.name!r} is damaged: its rows have the shape {values.shape[1:]}")
                writer.write(key, slice(start, start + len(values)), values)
                start += len(values)
            if start != layer.shape[0]:
                raise StoreError(f"layer {layer.name!r} is damaged: it has {start} rows, and not {layer.shape[0]}")
            step()
        writer.mark_done(slice(None))


def _open(path: Path) -> tuple[Foreign, list[Path]]:
    """Open a file or a folder; return its contents, and the files that were read."""
    if not path.exists():
        raise StoreError(f"no such file or folder: {path}", path=path)
    if path.is_dir() and not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        foreign, files = _read_folder(path)
    else:
        foreign, files = _read_file(path)
    n_ids = None if foreign.ids is None else len(foreign.ids())
    foreign.layers = _join_parts(foreign.layers, n_ids)
    return foreign, files


def _read_file(path: Path) -> tuple[Foreign, list[Path]]:
    """Open a file, or the folder of a zarr group."""
    suffix = ".zarr" if path.is_dir() else path.suffix.lower()
    if suffix not in READERS:
        readable = ", ".join(name for name, reader in READERS.items() if reader is not refuse_pickles)
        raise InvalidInputError(f"{path.name}: expected a folder, or a file of activations ({readable})")
    foreign = READERS[suffix](path)
    beside = path.with_name(_NAMES[0])
    if foreign.ids is None and path.stem == "features" and beside.is_file():  # a file that thingsvision has written
        foreign.ids, foreign.ids_from = _reader_of_ids(beside), beside.name
        return foreign, [path, beside]
    return foreign, [path]


def _read_folder(folder: Path) -> tuple[Foreign, list[Path]]:
    """Open a folder with one layer in each file, or in each folder of the files ``features*`` of thingsvision."""
    source, files = Foreign(form="folder"), list[Path]()
    forms: dict[str, None] = {}
    children = sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=_by_name)
    for child in children:
        parts = (
            sorted((file for file in child.glob("features*") if file.suffix in READERS), key=_by_name)
            if (child.is_dir())
            else [child]
        )
        if child.name in _NAMES and child.is_file():
            _check_inside(child, folder)
            source.ids, source.ids_from = _reader_of_ids(child), child.name
            files.append(child)
        elif child.is_dir() and (not parts or child.suffix in READERS):
            source.left_out[child.name] = "a folder"
        elif not child.is_dir() and child.suffix.lower() not in READERS:
            source.left_out[child.name] = f"{child.suffix or 'no suffix'} is not read"
        else:
            for part in parts:
                _check_inside(part, folder)
                opened = READERS[part.suffix.lower()](part)
                forms[opened.form] = None
                _add_part(source, part, opened, child.name if child.is_dir() else None)
                files.append(part)
            names = child / _NAMES[0]
            if child.is_dir() and source.ids is None and names.is_file():
                _check_inside(names, folder)
                source.ids, source.ids_from = _reader_of_ids(names), f"{child.name}/{names.name}"
                files.append(names)
    if forms:
        source.form = f"folder of {', '.join(forms)}"
    return source, files


def _by_name(path: Path) -> list[tuple[int, int, str]]:
    return natural_key(path.name)


def _check_inside(file: Path, folder: Path) -> None:
    """Refuse links that lead out of the folder."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{folder} is refused: {file.relative_to(folder)} is a link to another file", path=file)


def _add_part(source: Foreign, file: Path, opened: Foreign, module: str | None) -> None:
    """Add what one file of a folder holds: one layer with the name of the file, or values of the samples."""
    parts_of_rows = all(_PART.fullmatch(layer.name) for layer in opened.layers)  # in one HDF5 file of thingsvision
    if len(opened.layers) > 1 and not parts_of_rows:
        raise InvalidInputError(
            f"{file.name} holds {len(opened.layers)} layers, such as {opened.layers[0].name}",
            remedy=Remedy("if each file of the folder is a model, name the files, one at a time"),
        )
    for layer in opened.layers:
        name = layer.name if len(opened.layers) > 1 else file.stem
        source.layers.append(dataclasses.replace(layer, name=name if module is None else f"{module}/{name}"))
    source.left_out |= opened.left_out
    for column, read in opened.columns.items():
        source.add_column(column, read)
    if opened.ids is not None and source.ids is None:
        source.ids, source.ids_from = opened.ids, f"{file.name}: {opened.ids_from}"


def _join_parts(layers: Sequence[ForeignLayer], n_ids: int | None) -> list[ForeignLayer]:
    """Join parts of the rows, as thingsvision writes them, and name layers by the module whose folder they are in.

    ``features_0-100`` names the rows that it holds. ``features_01`` could also be a layer: such names are parts only if
    they hold one row for each of the ``n_ids`` ids together.
    """
    parts: dict[tuple[str, str], list[tuple[list[int], ForeignLayer]]] = {}
    for layer in layers:
        module, _, stem = layer.name.rpartition("/")
        match = _PART.fullmatch(stem)
        numbers = [int(number) for number in match.groups()[1:] if number] if match else []
        parts.setdefault((module, match[1] if match else stem), []).append((numbers, layer))
    joined: list[ForeignLayer] = []
    modules = [module for module, _ in parts]
    for (module, stem), listed in parts.items():
        name = stem if not module else module if modules.count(module) == 1 else f"{module}.{stem}"
        ordered = sorted(listed, key=lambda part: part[0])
        runs = all(len(run) == 2 and run[1] - run[0] == layer.shape[0] for run, layer in ordered)
        counted = all(len(run) == 1 for run, _ in ordered) and n_ids == sum(layer.shape[0] for _, layer in ordered)
        starts = [0, *(run[-1] for run, _ in ordered)] if runs else []
        if any(stop != run[0] for stop, (run, _) in zip(starts, ordered, strict=False)):
            held = ", ".join(f"{run[0]}-{run[1]}" for run, _ in ordered)
            raise InvalidInputError(f"{name}: a file is missing; the others hold the rows {held}")
        if (runs or counted) and len({(layer.shape[1:], layer.dtype) for _, layer in ordered}) == 1:
            joined.append(_joined(name, [layer for _, layer in ordered]))
        elif len(ordered) == 1 and module:
            joined.append(dataclasses.replace(listed[0][1], name=name))
        else:
            joined += [dataclasses.replace(layer, name=layer.name.replace("/", ".")) for _, layer in listed]
    return joined


def _joined(name: str, layers: Sequence[ForeignLayer]) -> ForeignLayer:
    def blocks(rows: int) -> Iterator[Any]:
        for layer in layers:
            yield from layer.blocks(rows)

    shape = (sum(layer.shape[0] for layer in layers), *layers[0].shape[1:])
    return ForeignLayer(name, shape, layers[0].dtype, blocks)


def _select(
    path: Path, foreign: Foreign, patterns: str | Sequence[str] | None
) -> tuple[list[ForeignLayer], dict[str, str]]:
    """Return the layers to take, and what is left out with the reasons; check that their rows may be the same."""
    names = [layer.name for layer in foreign.layers]
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(foreign.left_out.items())[:5])
        raise InvalidInputError(f"{path} holds no layer, (n samples, features ...): {reasons or 'it is empty'}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInputError(f"{path} holds two layers named {twice!r}; rename one of them")
    left_out = dict(foreign.left_out)
    wanted = [patterns] if isinstance(patterns, str) else patterns
    for pattern in wanted or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError("layer", pattern, names, where=f"in {path.name}")
    chosen = [layer for layer in foreign.layers if wanted is None or any(fnmatchcase(layer.name, p) for p in wanted)]
    left_out |= {name: "not among the chosen layers" for name in names if name not in {x.name for x in chosen}}
    if len({layer.shape[0] for layer in chosen}) > 1:
        firsts = dict[int, ForeignLayer]()
        for layer in chosen:
            firsts.setdefault(layer.shape[0], layer)
        shapes = ", ".join(f"{layer.name} {layer.shape}" for layer in list(firsts.values())[:4])
        raise InvalidInputError(
            f"{path}: layers have different numbers of rows, and cannot be of the same samples: {shapes}",
            remedy=Remedy("choose layers with ", Argument("layers")),
        )
    return chosen, left_out


def _ids(foreign: Foreign, ids: Any, n: int) -> tuple[Any, str]:
    """Return the sample ids, or None for numbers, and where they are from."""
    if ids is None:
        if foreign.ids is None:
            return None, "numbers of the rows"
        own = texts(foreign.ids(), foreign.ids_from)
        if len(own) != n:
            raise InvalidInputError(
                f"{len(own)} ids in {foreign.ids_from} for {n} samples", remedy=Remedy("give ", Argument("ids"))
            )
        return own, f"the column {foreign.ids_from}" if foreign.ids_from in foreign.columns else foreign.ids_from
    if not isinstance(ids, str | os.PathLike):
        return ids, "given"
    if str(ids) in foreign.columns:
        return texts(foreign.columns[str(ids)](), str(ids)), f"the column {ids}"
    return _read_ids(Path(ids)), Path(ids).name


def _reader_of_ids(path: Path) -> Callable[[], list[str]]:
    return lambda: _read_ids(path)


def _read_ids(path: Path) -> list[str]:
    """Read a text file with one id a line."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(f"cannot read the sample ids from {path}: {why}") from None


def _labels(path: Path, foreign: Foreign, labels: Any, ids: Sequence[str]) -> tuple[Any, Any]:
    """Return the classes of the samples as `repsim.write_store` takes them, and where they are from."""
    if labels is None:
        own = foreign.record.get("labels")
        return own, "the file" if own is not None else None
    if isinstance(labels, str) and labels in foreign.columns:
        return foreign.columns[labels](), f"the column {labels}"
    samples = _Samples(path.name, ids)
    assign_labels(cast("Any", samples), labels)
    names = samples.classes
    return [names[k] for k in samples.labels] if names else samples.labels, dict(samples.label_record)


def _groups(path: Path, foreign: Foreign, groups: Any, ids: Sequence[str]) -> tuple[Any, Any]:
    """Return the groups of the samples as `repsim.write_store` takes them, and where they are from."""
    if groups is None:
        own = foreign.record.get("groups")
        return own, "the file" if own is not None else None
    if isinstance(groups, str) and groups in foreign.columns:
        return foreign.columns[groups](), f"the column {groups}"
    return read_groups(_Samples(path.name, ids), groups)


def _notes(
    path: Path, foreign: Foreign, layers: Sequence[ForeignLayer], left_out: Mapping[str, str], ids: str
) -> Iterator[str]:
    """Yield what was taken, what was left out, and where the ids are from."""
    names = [layer.name for layer in layers]
    shown = ", ".join(names if len(names) <= 6 else [*names[:5], "...", names[-1]])
    count = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    yield f"note: {count} of {layers[0].shape[0]:,} samples in {path.name} ({foreign.form}): {shown}"
    if left_out:
        listed = [f"{name} ({why})" for name, why in left_out.items()]
        yield f"note: left out: {', '.join(listed[:6])}{', ...' if len(listed) > 6 else ''}"
    if ids == "numbers of the rows":
        yield Hint(
            "note: no sample ids: row k of every store without ids is taken as the same sample",
            remedy=Remedy("name them with ", Argument("ids")),
        )
    else:
        yield f"note: sample ids: {ids}"
