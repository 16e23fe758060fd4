"""Where pictures come from: a folder, a tar file, scikit-learn's digits, or a data set that timm opens.

A source gives every sample a stable id and, where there are any, a label. A picture that cannot be decoded raises with
its name: it is never replaced by its neighbour, as timm's own dataset does, and an unknown split is an error, never the
whole folder. Pictures are decoded as timm decodes them for training and evaluation: to RGB, transparency dropped, EXIF
orientation not applied; only 16-bit greys differ, which are scaled to 8 bits and not cut off at 255.
"""

import hashlib
import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from repsim.errors import ImageError, InvalidInputError, UnknownNameError, reason
from repsim.progress import Progress

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "eval", "evaluation"})
_TRAIN = frozenset({"train", "training"})


class ImageSource(ABC):
    """Pictures in a fixed order, with ids and perhaps labels."""

    name: str
    """What the user wrote, with the split."""
    ids: Sequence[str]
    labels: np.ndarray[Any, np.dtype[np.int64]] | None = None
    classes: Sequence[str] = ()
    """Class names, in the order of the label numbers."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Decode one picture as RGB, or raise `ImageError` with its name."""

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Bytes of each picture as stored: with the ids, what the fingerprint is made of."""

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, rows: Sequence[int]) -> str:
        """SHA-256 over the ids and sizes of these samples: the same pictures in the same order, or another value."""
        sizes = self.sizes()
        digest = hashlib.sha256()
        for row in rows:
            digest.update(f"{self.ids[row]}\0{sizes[row]}\n".encode())
        return digest.hexdigest()


def open_images(data: str, *, split: str | None = None, root: str | None = None, download: bool = False) -> ImageSource:
    """Open ``digits``, a folder, a ``.tar`` file, or a data set by timm's name (``torch/cifar10``, under ``root``).

    Parameters
    ----------
    data
        ``digits`` (those that scikit-learn brings; a folder of that name is ``./digits``), a path, or timm's name.
    split
        A folder directly inside a folder or tar; ``train`` or ``test`` of the digits; timm's split (``validation``).
    root
        Where a ``torch/`` data set lies or is downloaded to; the cache of an ``hfds/`` one.
    download
        Let timm fetch the data set.

    Raises
    ------
    ImageError
        Where there is no picture, or nothing of that name, or a damaged archive.
    UnknownNameError
        For a split that does not exist.

    Examples
    --------
    >>> digits = open_images("digits", split="test")
    >>> len(digits), digits.ids[0], digits.labels[0].item(), digits.load(0).size
    (898, 'digits/0001', 1, (8, 8))
    """
    if data == "digits":
        return Digits(split)
    path = Path(data)
    if path.is_dir():
        return Folder(path, split)
    if path.is_file():
        return Tar(path, split)
    prefix, slash, rest = data.partition("/")
    if slash and rest and prefix.lower() in {"torch", "hfds", "hfids", "tfds", "wds"}:
        return TimmDataset(f"{prefix.lower()}/{rest}", split, root, download=download)
    raise ImageError(
        f"no such folder or file: {data} (besides folders and .tar files: digits, timm's torch/cifar10 and the like)"
    )


def choose(total: int, limit: int | None) -> list[int]:
    """Positions of ``limit`` samples, spread evenly over the whole: sorted by class, the first N would be one class.

    >>> choose(10, 4)
    [0, 2, 5, 7]
    """
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise InvalidInputError(f"--limit must be at least 1, got {limit}")
    return [i * total // limit for i in range(limit)]


def readable(
    images: ImageSource, rows: Sequence[int], workers: int = 0, progress: Progress | None = None
) -> tuple[list[int], dict[int, str]]:
    """Decode every picture once: which can be read, in order, and why the others cannot (row -> reason).

    >>> readable(open_images("digits"), [2, 0, 1])
    ([2, 0, 1], {})
    """

    def fault(row: int) -> str:
        try:
            images.load(row)
        except ImageError as error:
            return str(error)
        return ""

    good: list[int] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (row, why) in enumerate(zip(rows, pool.map(fault, rows), strict=True), 1):
            if why:
                bad[row] = why
            else:
                good.append(row)
            if progress:
                progress(done, len(rows))
    return good, bad


def _decode(data: Any, name: str) -> Image.Image:
    try:
        with Image.open(data) as picture:
            return _rgb(picture)
    except Exception as error:  # noqa: BLE001 - what the decoders raise on damaged files is anything
        foreign = isinstance(error, UnidentifiedImageError)
        raise _unreadable(name, "not a picture that can be decoded" if foreign else reason(error)) from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in {"I", "F"}:
        raise ValueError(f"its pixels (mode {picture.mode}) have no fixed range; save it with 8 or 16 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours, without Pillow's warning
    return picture.convert("RGB")


def _unreadable(name: str, why: str) -> ImageError:
    return ImageError(f"cannot read the picture {name}: {why}; mend or remove it, or pass --skip-bad")


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in _SUFFIXES and not Path(name).name.startswith(".")


class _Tree(ImageSource):
    """Pictures by relative path: a flat list, or one folder a class."""

    def __init__(self, name: str, paths: Sequence[str], split: str | None) -> None:
        """``paths`` are relative, with / between their parts; ``split`` keeps those under that first folder."""
        paths = sorted(paths)
        if not paths:
            raise ImageError(f"no picture found in {name} (looked for {', '.join(sorted(_SUFFIXES))})")
        tops = sorted({p.split("/", 1)[0] for p in paths if "/" in p})
        if split is not None:
            if split not in tops:
                raise UnknownNameError("split", split, tops, hint=f"(--split names a folder directly inside {name})")
            paths = [p for p in paths if p.startswith(f"{split}/")]
        elif len(tops) > 1 and _SPLITS.issuperset(tops):
            raise InvalidInputError(f"{name} holds the splits {', '.join(tops)}; choose one with --split")
        self.name = name if split is None else f"{name} [{split}]"
        self.ids = paths
        parents = [p.rpartition("/")[0].removeprefix(f"{split}/" if split else "") for p in paths]
        if split is not None:
            parents = ["" if parent == split else parent for parent in parents]
        if all(parents):  # a picture beside the class folders means that folders are not classes
            self.classes = sorted(set(parents))
            number = {c: i for i, c in enumerate(self.classes)}
            self.labels = np.array([number[parent] for parent in parents], dtype=np.int64)


class Folder(_Tree):
    """A folder of pictures, flat or with one folder a class, read recursively, links included."""

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.root = root
        paths: list[str] = []
        for folder, inside, files in os.walk(root, followlinks=True, onerror=self._refuse):
            here = Path(folder)
            above = {here.resolve(), *here.resolve().parents}
            inside[:] = [
                name for name in inside if not ((here / name).is_symlink() and (here / name).resolve() in above)
            ]
            paths += [(here / name).relative_to(root).as_posix() for name in files if _is_picture(name)]
        super().__init__(root.name or str(root), paths, split)

    def _refuse(self, error: OSError) -> None:
        """A folder that cannot be listed is an error: its pictures would be missing without a word."""
        raise ImageError(f"cannot list the folder {error.filename}: {error.strerror}")

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        try:
            data = (self.root / self.ids[index]).read_bytes()
        except OSError as error:
            raise _unreadable(self.ids[index], reason(error)) from None
        return _decode(io.BytesIO(data), self.ids[index])

    def sizes(self) -> Sequence[int]:
        """File sizes; 0 for a link that leads nowhere."""
        files = [self.root / i for i in self.ids]
        return [file.stat().st_size if file.exists() else 0 for file in files]


class Tar(_Tree):
    """A tar archive of pictures, not unpacked: a member is read by its offset."""

    def __init__(self, path: Path, split: str | None = None) -> None:
        self.path = path
        members: dict[str, tuple[int, int]] = {}
        try:
            known = tarfile.is_tarfile(path)
        except OSError as error:
            raise ImageError(f"cannot read {path.name}: {error.strerror}") from None
        if not known:
            raise ImageError(f"{path.name} is a file but no tar archive; give a folder of pictures or a .tar")
        try:
            archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below; an error here has a meaning of its own
        except tarfile.TarError:
            raise ImageError(
                f"{path.name} is compressed: its pictures cannot be read in any order; unpack it, or make a plain .tar"
            ) from None
        damaged = f"{path.name} is damaged or cut off"
        with archive, path.open("rb") as file:
            try:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile():
                        members[name] = (member.offset_data, member.size)
                    elif member.islnk() and (target := member.linkname.removeprefix("./")) in members:
                        members[name] = members[target]  # the same file under a second name
            except (tarfile.TarError, OSError) as error:
                raise ImageError(f"{damaged} after {len(members)} files: {reason(error)}") from None
            file.seek(archive.offset)  # tarfile takes a cut between two members, or within a header, for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ImageError(f"{damaged} after {len(members)} files: it has no end mark")
        self._members = {name: where for name, where in members.items() if _is_picture(name)}
        super().__init__(path.name, list(self._members), split)

    def load(self, index: int) -> Image.Image:
        """Decode one member."""
        offset, size = self._members[self.ids[index]]
        with self.path.open("rb") as file:
            file.seek(offset)
            return _decode(io.BytesIO(file.read(size)), self.ids[index])

    def sizes(self) -> Sequence[int]:
        """Member sizes."""
        return [self._members[i][1] for i in self.ids]


class Digits(ImageSource):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels. Split ``train``: the even ones; ``test``: the odd."""

    splits: ClassVar[dict[str | None, slice]] = {
        None: slice(None),
        "train": slice(0, None, 2),
        "test": slice(1, None, 2),
    }

    def __init__(self, split: str | None = None) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a second to import, and only this source needs it

        if split not in self.splits:
            raise UnknownNameError("split", str(split), [s for s in self.splits if s], hint="of digits")
        digits = load_digits()
        chosen = range(len(digits.target))[self.splits[split]]
        self.name = "digits" if split is None else f"digits [{split}]"
        self.ids = [f"digits/{i:04d}" for i in chosen]
        self.labels = digits.target[chosen].astype(np.int64)
        self.classes = [str(c) for c in range(10)]
        self._pixels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)

    def load(self, index: int) -> Image.Image:
        """Grey as RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def sizes(self) -> Sequence[int]:
        """All the same."""
        return [self._pixels[0].size] * len(self.ids)


class TimmDataset(ImageSource):
    """A data set that timm's ``create_dataset`` opens by name, read item by item, past timm's own error handling."""

    def __init__(self, name: str, split: str | None, root: str | None, *, download: bool = False) -> None:
        prefix, _, rest = name.partition("/")
        split = split or "validation"
        if prefix in {"hfids", "tfds", "wds"}:
            raise ImageError(
                f"{name} can only be streamed: its samples have no fixed order; use a folder, a .tar, torch/ or hfds/"
            )
        if prefix == "torch" and rest in {"folder", "image_folder"}:
            raise ImageError(f"{name}: give the folder itself, and its split with --split")
        if prefix == "torch" and split not in _SPLITS:  # timm would quietly take another split
            raise UnknownNameError("split", split, sorted(_SPLITS), hint=f"of {name}")
        if root is None and prefix == "torch":
            raise ImageError(f"say where {name} lies, or is to be downloaded to, with --data-root DIR")
        try:
            from timm.data.dataset_factory import create_dataset  # noqa: PLC0415 - slow, and only this source needs it

            self._dataset = create_dataset(name, root=root, split=split, download=download, search_split=False)
        except Exception as error:  # noqa: BLE001 - what a foreign data set raises is anything
            hint = "" if download or prefix != "torch" else "; --download fetches what can be fetched"
            where = f" under {root}" if root else ""
            raise ImageError(f"cannot open {name} [{split}]{where}: {reason(error)}{hint}") from None
        if prefix == "torch":  # timm's many words for two splits: the same samples get the same ids
            split = "train" if split in _TRAIN else "test"
        self.name = f"{name} [{split}]"
        self.ids = [f"{name}/{split}/{i}" for i in range(len(self._dataset))]
        reader = getattr(self._dataset, "reader", None)
        self._items = self._dataset if reader is None else reader
        given = getattr(reader, "iter_targets", None)
        targets = list(given()) if given else getattr(self._dataset, "targets", ())
        if len(targets) == len(self.ids) and all(np.ndim(target) == 0 for target in targets):
            self.labels = np.asarray(targets, dtype=np.int64)
        self.classes = [str(c) for c in getattr(self._dataset, "classes", getattr(reader, "class_to_idx", ()))]

    def load(self, index: int) -> Image.Image:
        """Read past ``ImageDataset.__getitem__``, which returns the next sample where one cannot be read."""
        try:
            picture = self._items[index][0]
        except Exception as error:  # noqa: BLE001 - what a foreign data set raises is anything
            raise _unreadable(self.ids[index], reason(error)) from None
        return _rgb(picture) if isinstance(picture, Image.Image) else _decode(picture, self.ids[index])

    def sizes(self) -> Sequence[int]:
        """Unknown without reading everything; the ids alone make the fingerprint."""
        return [0] * len(self.ids)
