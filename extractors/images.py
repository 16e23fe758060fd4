"""Open image sources: a folder, a tar file, the digits of scikit-learn, or a data set that timm opens by name.

A source gives every sample a stable id and, if the data have labels, a label. A picture that cannot be decoded raises
an error with its name. It is never replaced by the next picture, as timm's own data set does. An unknown split is an
error; it does not mean the whole folder.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from repsim.errors import Argument, ImageError, InvalidArgumentError, Remedy, UnknownNameError, reason
from repsim.extractors.decoding import MAX_PIXELS, as_rgb, decode, unreadable
from repsim.extractors.folders import Folder, Tar
from repsim.extractors.group_files import GroupsOfPictures, assign_groups
from repsim.extractors.label_files import Labels, assign_labels
from repsim.extractors.sources import Content, ImageSource, pixel_content
from repsim.runtime import interrupts
from repsim.runtime.progress import Progress

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "eval", "evaluation"})
_TRAIN = frozenset({"train", "training"})
_RUN = 4096
"""Number of pictures that are submitted to the thread pool at once."""


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


def examine(
    images: ImageSource,
    rows: Sequence[int],
    workers: int = 0,
    progress: Progress | None = None,
    *,
    skip_bad: bool = False,
) -> tuple[dict[int, Content], dict[int, str]]:
    """Read every picture once, in threads: hash its contents and, with ``skip_bad``, decode it.

    Returns
    -------
    dict, dict
        Mapping from row to the content of the picture, in the order of ``rows``, and mapping from row to the reason why
        the picture cannot be read. The latter is empty without ``skip_bad``.

    Raises
    ------
    ImageError
        Without ``skip_bad``, a picture cannot be read; the message contains the name of the first one.

    Examples
    --------
    >>> contents, bad = examine(open_images("digits"), [2, 0, 1])
    >>> list(contents), len(contents[2].digest), bad
    ([2, 0, 1], 8, {})
    """

    def examine_row(row: int) -> Content | ImageError:
        try:
            return images.examine(row, decode=skip_bad)
        except ImageError as error:
            return error

    contents: dict[int, Content] = {}
    bad: dict[int, str] = {}
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


class Digits(ImageSource):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels.

    The split ``train`` has the samples at even positions, ``test`` those at odd positions.
    """

    splits: ClassVar[dict[str | None, slice]] = {
        None: slice(None),
        "train": slice(0, None, 2),
        "test": slice(1, None, 2),
    }

    def __init__(self, split: str | None = None) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import; only this source needs it

        if split not in self.splits:
            raise UnknownNameError("split", str(split), [s for s in self.splits if s], where="of digits")
        digits = load_digits()
        chosen = range(len(digits.target))[self.splits[split]]
        self.name = "digits" if split is None else f"digits [{split}]"
        self.ids = [f"digits/{i:04d}" for i in chosen]
        self.labels = digits.target[chosen].astype(np.int64)
        self.classes = [str(c) for c in range(10)]
        self._pixels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)

    def load(self, index: int) -> Image.Image:
        """Return one digit as an RGB picture."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - decoded already
        """Hash the pixels of one digit."""
        return pixel_content(Digits.load(self, index))

    def sizes(self) -> Sequence[int]:
        """Return the size of each picture in bytes, 64 for all."""
        return [self._pixels[0].size] * len(self.ids)


class TimmDataset(ImageSource):
    """A data set that timm's ``create_dataset`` opens by name.

    Items are read one by one, without timm's error handling, which would replace a damaged picture by the next one.
    """

    def __init__(
        self,
        name: str,
        split: str | None,
        root: str | None,
        max_pixels: int = MAX_PIXELS,
        *,
        download: bool = False,
    ) -> None:
        self.max_pixels = max_pixels
        prefix, _, rest = name.partition("/")
        split = split or "validation"
        if prefix in {"hfids", "tfds", "wds"}:
            raise ImageError(
                f"{name} can only be streamed: its samples have no fixed order; use a folder, a .tar, torch/ or hfds/"
            )
        if prefix == "torch" and rest in {"folder", "image_folder"}:
            raise ImageError(
                f"{name} is a folder of pictures",
                remedy=Remedy("give the folder itself, and its split with ", Argument("split")),
            )
        if prefix == "torch" and split not in _SPLITS:  # timm would take another split without a warning
            raise UnknownNameError("split", split, sorted(_SPLITS), where=f"of {name}")
        if root is None and prefix == "torch":
            raise ImageError(
                f"the folder of {name} is not set",
                remedy=Remedy("set it with ", Argument("data_root", metavar="DIR")),
            )
        try:
            from timm.data.dataset_factory import create_dataset  # noqa: PLC0415 - slow, and only this source needs it

            self._dataset = create_dataset(name, root=root, split=split, download=download, search_split=False)
        except Exception as error:  # noqa: BLE001 - a third-party data set may raise any exception
            fetch = Remedy(Argument("download", value=True), " allows the download")
            where = f" under {root}" if root else ""
            raise ImageError(
                f"cannot open {name} [{split}]{where}: {reason(error)}",
                remedy=None if download or prefix != "torch" else fetch,
            ) from None
        if prefix == "torch":  # timm has several names for the two splits; the same samples get the same ids
            split = "train" if split in _TRAIN else "test"
        self.name = f"{name} [{split}]"
        self.ids = [f"{name}/{split}/{i}" for i in range(len(self._dataset))]
        reader = getattr(self._dataset, "reader", None)
        self._items = self._dataset if reader is None else reader
        iterate = getattr(reader, "iter_targets", None)
        self._take_labels(list(iterate()) if iterate else getattr(self._dataset, "targets", ()))
        self.classes = [str(c) for c in getattr(self._dataset, "classes", getattr(reader, "class_to_idx", ()))]

    def _take_labels(self, targets: Sequence[Any]) -> None:
        """Use the targets as labels if there is one integer per sample; otherwise record that they are left out."""
        if len(targets) != len(self.ids) or not len(targets):
            return
        if all(np.ndim(target) == 0 and np.asarray(target).dtype.kind in "iub" for target in targets):
            self.labels = np.asarray(targets, dtype=np.int64)
        else:
            self.left_out.add("targets of samples that are no class numbers", str(targets[0]))

    def _item(self, index: int) -> Any:
        """Read one sample without ``ImageDataset.__getitem__``, which returns the next sample after an error."""
        try:
            return self._items[index][0]
        except MemoryError:  # the sample itself may be fine
            raise
        except Exception as error:  # noqa: BLE001 - a third-party data set may raise any exception
            raise unreadable(self.ids[index], reason(error)) from None

    def load(self, index: int) -> Image.Image:
        """Return one sample, decoded to RGB."""
        picture = self._item(index)
        if not isinstance(picture, Image.Image):  # an open file
            return decode(picture, self.ids[index], self.max_pixels)
        try:
            return as_rgb(picture)
        except MemoryError:  # the sample itself may be fine
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise any exception on damaged files
            raise unreadable(self.ids[index], reason(error)) from None

    def sizes(self) -> Sequence[int]:
        """Return zeros: the sizes are unknown without reading all samples, so only the ids make the fingerprint."""
        return [0] * len(self.ids)
