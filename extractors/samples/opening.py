"""Open sources of samples by their name or type: pictures, texts, tables, arrays, and data sets of other libraries.

A source gives every sample a stable id and, if the data have labels, a label. A picture that cannot be decoded raises
an error with its name. It is never replaced by the next picture, as timm's own data set does. An unknown split is an
error; it does not mean the whole folder. An option that does not apply to the data is an error, too.
"""

import copy
import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from repsim.errors import Argument, ImageError, InvalidArgumentError, InvalidInputError, SampleError
from repsim.extractors.samples import tables
from repsim.extractors.samples.arrays import ARRAY_SUFFIXES, ArrayFile, is_zarr, open_array, open_array_file
from repsim.extractors.samples.columns import Roles, check_ids, open_column
from repsim.extractors.samples.decoding import MAX_PIXELS
from repsim.extractors.samples.folders import TEXT_SUFFIXES, Folder, Tar, TextFolder, holds_texts
from repsim.extractors.samples.group_files import GroupsOfPictures, assign_groups
from repsim.extractors.samples.hugging_face import is_dataset, is_saved, open_hugging_face, open_saved
from repsim.extractors.samples.label_files import Labels, assign_labels
from repsim.extractors.samples.loaders import open_dataset, open_loader
from repsim.extractors.samples.picture_sets import Digits, TimmDataset
from repsim.extractors.samples.source import Content, ImageSource, SampleSource, content_of
from repsim.extractors.samples.texts import open_lines, open_list
from repsim.extractors.samples.web_dataset import open_shards
from repsim.runtime import interrupts
from repsim.runtime.deprecation import rename_keyword
from repsim.runtime.progress import Progress

_RUN = 4096
"""Number of samples that are submitted to the thread pool at once."""
_TIMM = frozenset({"torch", "hfds", "hfids", "tfds", "wds"})
_ROLES = ("column", "id_column", "label_column", "group_column", "ids")
"""Options that apply to tables."""
_READABLE = (
    "a folder of pictures, of .txt files or of datasets' save_to_disk, a .zarr folder, or a file .tar, .txt, .csv, "
    ".tsv, .jsonl, .parquet, .npy, .npz, .safetensors or .pt; or digits, or timm's torch/cifar10 and the like"
)


def open_samples(
    data: Any,
    *,
    split: str | None = None,
    root: str | None = None,
    download: bool = False,
    labels: Labels | None = None,
    groups: GroupsOfPictures | None = None,
    max_pixels: int | None = None,
    column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    ids: Sequence[Any] | None = None,
) -> SampleSource:
    r"""Open the samples that models read.

    Parameters
    ----------
    data : str, path or object
        A path or name: a folder of pictures, or of ``.txt`` files; a folder that ``save_to_disk`` of datasets wrote; a
        ``.zarr`` folder; a file ``.txt`` (one text a line), ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ``.npy``,
        ``.npz``, ``.safetensors``, ``.pt``, or ``.tar`` (pictures; with a named column a webdataset); shards of a
        webdataset in braces, ``shards-{000..003}.tar``; ``digits``; or a timm name (``torch/cifar10``). Or an object:
        a list of texts, an array or tensor (n, ...), a Dataset or DataLoader of torch, a data set of Hugging Face, or a
        source.
    split : str, optional
        A folder inside a folder or a tar file of pictures or texts (``.`` takes everything); ``train`` or ``test`` of
        the digits; a split of a data set.
    root : str, optional
        Folder of a timm data set.
    download : bool
        Allow timm to download the data set.
    labels : path, mapping or sequence, optional
        Classes of the samples, which replace those of the data: a file of two columns (id or file name, and class); a
        mapping from id or file name to class; or one class per sample, in the order of the ids.
    groups : str, path, mapping or sequence, optional
        Groups of samples that are not independent: ``folders``, ``re:PATTERN`` over the ids, or as labels.
    max_pixels : int, optional
        Refuse pictures with more pixels than this. The default is 178,956,970.
    column : str, optional
        Column of a table, array of a file, or extension in a webdataset that is read. By default the only one of
        pictures or texts, or else the only one of numbers.
    id_column, label_column, group_column : str, optional
        Columns of ids (by default one called id, key, ``__key__`` or sample_id), of classes (by default one called
        label, class, ...), and of groups (by default the pictures of the table, if they repeat).
    ids : sequence, optional
        Ids in the order of the samples, texts or integers, for data without ids of their own.

    Returns
    -------
    SampleSource
        The samples in a fixed order. Choices that were made are in its ``notes`` and ``record``.

    Raises
    ------
    SampleError
        There is no such file, it cannot be read, or it is not clear what to read of it.
    UnknownNameError
        The split or a column does not exist.
    InvalidInputError
        An option does not apply to the data; ids repeat; or labels or groups do not fit the samples.
    MissingExtraError
        The library that reads such data is not installed.

    Examples
    --------
    >>> texts = open_samples(["a cat", "a dog", "two cats"], labels=["cat", "dog", "cat"])
    >>> texts.modality, texts.ids, texts.load(1), texts.classes
    ('text', ['0', '1', '2'], 'a dog', ('cat', 'dog'))
    """
    _check_max_pixels(max_pixels)
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    for values, by_column, what in (
        (labels, label_column, "labels"),
        (groups, group_column, "groups"),
        (ids, id_column, "ids"),
    ):
        if values is not None and by_column is not None:
            raise InvalidInputError(f"{what} are given twice: by themselves, and by the column {by_column}")
    options = {
        "split": split,
        "root": root,
        "download": download or None,
        "max_pixels": max_pixels,
        "column": column,
        "id_column": id_column,
        "label_column": label_column,
        "group_column": group_column,
        "ids": ids,
    }
    roles = Roles(column=column, id_column=id_column, label_column=label_column, group_column=group_column, ids=ids)
    open_data = _open_path if isinstance(data, str) else _open_object
    source = open_data(data, options, roles)
    _assign(source, labels, groups)
    return source


def open_images(
    data: str,
    *,
    split: str | None = None,
    root: str | None = None,
    download: bool = False,
    labels: Labels | None = None,
    groups: GroupsOfPictures | None = None,
    max_pixels: int | None = None,
) -> ImageSource:
    """Open ``digits``, a folder, a ``.tar`` file, or a data set by its timm name (``torch/cifar10``, under ``root``).

    Parameters
    ----------
    data : str
        ``digits`` (the data set of scikit-learn; write ``./digits`` for a folder of that name), a path, or a timm name.
    split : str, optional
        A folder inside the folder or tar file (``.`` takes everything, for folders that only look like splits);
        ``train`` or ``test`` of the digits; or a split of the timm data set (by default ``validation``).
    root : str, optional
        Folder of a ``torch/`` data set, in which it is or to which it is downloaded; cache of an ``hfds/`` data set.
    download : bool
        Allow timm to download the data set.
    labels : path, mapping or sequence, optional
        Classes of the pictures, which replace those of the source: a file of two columns (id or file name, and class);
        a mapping from id or file name to class; or one class per picture, in the order of the ids.
    groups : str, path, mapping or sequence, optional
        Groups of pictures that are not independent: ``folders``, ``re:PATTERN`` over the ids, or as labels.
    max_pixels : int, optional
        Refuse pictures with more pixels than this. The default is 178,956,970.

    Returns
    -------
    ImageSource
        The pictures in a fixed order.

    Raises
    ------
    ImageError
        There is no folder or file of this name, it has no pictures, or the archive is damaged.
    UnknownNameError
        The split does not exist.
    InvalidInputError
        No split is named and the folder holds training pictures beside others, or the labels or groups do not fit the
        pictures.

    Examples
    --------
    >>> digits = open_images("digits", split="test")
    >>> len(digits), digits.ids[0], digits.labels[0].item(), digits.load(0).size
    (898, 'digits/0001', 1, (8, 8))
    """
    _check_max_pixels(max_pixels)
    images = _open_pictures(data, split, root, max_pixels or MAX_PIXELS, download=download)
    _assign(images, labels, groups)
    return images


def _check_max_pixels(max_pixels: int | None) -> None:
    if max_pixels is not None and max_pixels < 1:
        raise InvalidArgumentError("max_pixels", "at least 1", max_pixels)


def _assign(source: SampleSource, labels: Labels | None, groups: GroupsOfPictures | None) -> None:
    if labels is not None:
        assign_labels(source, labels)
    if groups is not None:
        assign_groups(source, groups)


def _refuse(what: str, options: Mapping[str, Any], *allowed: str) -> None:
    """Raise `InvalidInputError` for options that do not apply to the data."""
    for name, value in options.items():
        if name not in allowed and value is not None:
            raise InvalidInputError(Argument(name) if name != "ids" else name, f" does not apply to {what}")


def _open_object(  # noqa: PLR0911 - one for each kind
    data: Any, options: Mapping[str, Any], roles: Roles
) -> SampleSource:
    """Open an object that holds samples."""
    kind = f"a {type(data).__name__}"
    if isinstance(data, SampleSource):
        _refuse(f"{data.name}, which is a source already", options)
        return copy.copy(data)  # labels and groups may be set
    if is_dataset(data):
        _refuse(kind, options, "split", "max_pixels", *_ROLES)
        return open_hugging_face(data, options["split"], roles, options["max_pixels"] or MAX_PIXELS)
    _refuse(kind, options, "ids")
    if isinstance(data, DataLoader):
        return open_loader(data, ids=roles.ids)
    if isinstance(data, Dataset):
        return open_dataset(data, ids=roles.ids)
    if isinstance(data, np.ndarray) and data.ndim == 1 and all(isinstance(value, str) for value in data.tolist()):
        data = data.tolist()
    if isinstance(data, list | tuple):
        return _with_ids(open_list(data), roles)
    if hasattr(data, "__array__"):
        return _with_ids(open_array(data), roles)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping | bytes):
        return open_dataset(data, ids=roles.ids)
    raise InvalidInputError(
        f"no samples can be read from {kind}; give a path or name, a list of texts, an array or tensor (n, ...), a "
        "Dataset or DataLoader of torch, or a data set of Hugging Face"
    )


def _with_ids(source: SampleSource, roles: Roles) -> SampleSource:
    """Replace the ids of a source by those that the user gave."""
    if roles.ids is not None:
        source.ids = check_ids(roles.ids, len(source), source.name)
        source.record = {**source.record, "ids_from": "given"}
    return source


def _open_path(  # noqa: PLR0911 - one for each kind
    data: str, options: Mapping[str, Any], roles: Roles
) -> SampleSource:
    """Open a file, a folder, or a data set by its name."""
    path, suffix = Path(data), Path(data).suffix.lower()
    max_pixels = options["max_pixels"] or MAX_PIXELS
    is_name = data == "digits" or (data.partition("/")[0].lower() in _TIMM and "/" in data and not path.exists())
    if not data or not (is_name or path.exists() or "{" in data):
        raise SampleError(f"no such folder or file: {data or '(an empty name)'}; samples are {_READABLE}")
    if is_name:
        _refuse(data, options, "split", "root", "download", "max_pixels")
        return _open_pictures(data, options["split"], options["root"], max_pixels, download=bool(options["download"]))
    if path.is_dir():
        return _open_folder(path, options, roles)
    if suffix == ".tar" and (roles.named or not path.exists()):
        _refuse(path.name, options, "max_pixels", *_ROLES)
        return open_shards(data, roles, max_pixels)
    if suffix in TEXT_SUFFIXES:
        _refuse(path.name, options, "ids")
        return _with_ids(open_lines(path), roles)
    if suffix in tables.SUFFIXES:
        _refuse(path.name, options, "max_pixels", *_ROLES)
        return open_column(tables.open_table(path, max_pixels), roles)
    if suffix in ARRAY_SUFFIXES:
        return _open_arrays(path, options, roles)
    if suffix == ".tar" or (path.is_file() and tarfile.is_tarfile(path)):
        _refuse(path.name, options, "split", "root", "download", "max_pixels")
        return Tar(path, options["split"], max_pixels)
    raise SampleError(f"cannot read {data}: samples are {_READABLE}")


def _open_arrays(path: Path, options: Mapping[str, Any], roles: Roles) -> SampleSource:
    opened = open_array_file(path)
    if isinstance(opened, ArrayFile):
        _refuse(path.name, options, *_ROLES)
        return open_column(opened, roles)
    _refuse(f"{path.name}, which holds one array", options, "ids")
    return _with_ids(opened, roles)


def _open_folder(path: Path, options: Mapping[str, Any], roles: Roles) -> SampleSource:
    """Open a folder by what it holds."""
    max_pixels = options["max_pixels"] or MAX_PIXELS
    if is_saved(path):
        _refuse(path.name, options, "split", "max_pixels", *_ROLES)
        return open_saved(path, options["split"], roles, max_pixels)
    if is_zarr(path):
        return _open_arrays(path, options, roles)
    if holds_texts(path):
        _refuse(f"{path.name}, a folder of texts", options, "split")
        return TextFolder(path, options["split"])
    _refuse(f"{path.name}, a folder of pictures", options, "split", "root", "download", "max_pixels")
    return Folder(path, options["split"], max_pixels)


def _open_pictures(data: str, split: str | None, root: str | None, max_pixels: int, *, download: bool) -> ImageSource:
    if data == "digits":
        return Digits(split)
    if not data:
        raise ImageError("the name of the data is empty: give a folder of pictures, a .tar, or digits")
    path = Path(data)
    if path.is_dir():
        return Folder(path, split, max_pixels)
    if path.is_file():
        return Tar(path, split, max_pixels)
    prefix, slash, rest = data.partition("/")
    if slash and rest and prefix.lower() in _TIMM:
        return TimmDataset(f"{prefix.lower()}/{rest}", split, root, max_pixels, download=download)
    raise ImageError(
        f"no such folder or file: {data} (besides folders and .tar files: digits, timm's torch/cifar10 and the like)"
    )


def choose(total: int, limit: int | None) -> list[int]:
    """Return the positions of ``limit`` samples, spread evenly over all ``total`` samples.

    The first ``limit`` samples would not do: many data sets are sorted by class.

    >>> choose(10, 4)
    [0, 2, 5, 7]
    """
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise InvalidArgumentError("limit", "at least 1", limit)
    return [i * total // limit for i in range(limit)]


@rename_keyword("images", "source", gone_in="2.0.0")
def examine(
    source: SampleSource,
    rows: Sequence[int],
    workers: int = 0,
    progress: Progress | None = None,
    *,
    skip_bad: bool = False,
) -> tuple[dict[int, Content], dict[int, str]]:
    """Read every sample once, in threads: hash its contents and, with ``skip_bad``, decode it.

    Returns
    -------
    dict, dict
        Mapping from row to the content of the sample, in the order of ``rows``, and mapping from row to the reason why
        the sample cannot be read. The latter is empty without ``skip_bad``.

    Raises
    ------
    SampleError
        Without ``skip_bad``, a sample cannot be read; the message contains the name of the first one.

    Examples
    --------
    >>> contents, bad = examine(open_images("digits"), [2, 0, 1])
    >>> list(contents), len(contents[2].digest), bad
    ([2, 0, 1], 8, {})
    """

    def examine_row(row: int) -> Content | SampleError:
        try:
            return source.examine(row, decode=skip_bad)
        except SampleError as error:
            return error

    contents: dict[int, Content] = {}
    bad: dict[int, str] = {}
    if not source.indexable:
        for done, (row, sample) in enumerate(source.read(rows), 1):
            contents[row] = content_of(sample)
            if progress:
                progress(done, len(rows))
            interrupts.check()
        return contents, bad
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(rows), _RUN):
            part = rows[start : start + _RUN]
            outcomes = map(examine_row, part) if source.quick else pool.map(examine_row, part)  # threads cost more
            for done, (row, outcome) in enumerate(zip(part, outcomes, strict=True), start + 1):
                if isinstance(outcome, Content):
                    contents[row] = outcome
                elif skip_bad:
                    bad[row] = outcome.problem
                else:
                    pool.shutdown(cancel_futures=True)
                    raise outcome
                if progress:
                    progress(done, len(rows))
                interrupts.check()
    return contents, bad
