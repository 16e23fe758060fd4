"""Open image sources: a folder, a tar file, the digits of scikit-learn, or a data set that timm opens by name.

A source gives every sample a stable id and, if the data have labels, a label. A picture that cannot be decoded raises
an error with its name. It is never replaced by the next picture, as timm's own data set does. An unknown split is an
error; it does not mean the whole folder.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from repsim.errors import ImageError, InvalidArgumentError, SampleError
from repsim.extractors.samples.decoding import MAX_PIXELS
from repsim.extractors.samples.folders import Folder, Tar
from repsim.extractors.samples.group_files import GroupsOfPictures, assign_groups
from repsim.extractors.samples.label_files import Labels, assign_labels
from repsim.extractors.samples.picture_sets import Digits, TimmDataset
from repsim.extractors.samples.source import Content, ImageSource, SampleSource, content_of
from repsim.runtime import interrupts
from repsim.runtime.deprecation import rename_keyword
from repsim.runtime.progress import Progress

_RUN = 4096
"""Number of samples that are submitted to the thread pool at once."""


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
    if max_pixels is not None and max_pixels < 1:
        raise InvalidArgumentError("max_pixels", "at least 1", max_pixels)
    images = _open(data, split, root, max_pixels or MAX_PIXELS, download=download)
    if labels is not None:
        assign_labels(images, labels)
    if groups is not None:
        assign_groups(images, groups)
    return images


def open_samples(data: Any, *, split: str | None = None, root: str | None = None, **options: Any) -> SampleSource:
    """Open pictures, until the other sources land."""
    options = {key: options.get(key) for key in ("download", "labels", "groups", "max_pixels")}
    return data if isinstance(data, SampleSource) else open_images(data, split=split, root=root, **options)


def _open(data: str, split: str | None, root: str | None, max_pixels: int, *, download: bool) -> ImageSource:
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
    if slash and rest and prefix.lower() in {"torch", "hfds", "hfids", "tfds", "wds"}:
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


@rename_keyword("images", "source", gone_in="0.4.0")
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
            for done, (row, outcome) in enumerate(zip(part, pool.map(examine_row, part), strict=True), start + 1):
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
