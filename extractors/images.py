"""Where pictures come from: a folder, a tar file, scikit-learn's digits, or a data set that timm opens.

A source gives every sample a stable id and, where there are any, a label. A picture that cannot be decoded raises with
its name: it is never replaced by its neighbour, as timm's own dataset does, and an unknown split is an error, never the
whole folder.
"""

import hashlib
import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from repsim.errors import ImageError, InvalidInputError, UnknownNameError

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
    """Open ``digits``, a folder, a ``.tar`` file, or a data set by timm's name (``torch/cifar10``, under ``root``)."""
    if data == "digits":
        return Digits(split)
    path = Path(data)
    if path.is_dir():
        return Folder(path, split)
    if path.is_file():
        if not tarfile.is_tarfile(path):
            raise ImageError(f"{data} is a file but no tar archive; give a folder of pictures or a .tar")
        return Tar(path, split)
    prefix, slash, rest = data.partition("/")
    if slash and rest and prefix.lower() in {"torch", "hfds", "hfids", "tfds", "wds"}:
        return TimmDataset(data, split, root, download=download)
    raise ImageError(
        f"no such folder or file: {data} (known besides folders and .tar files: digits, and timm's names such as torch/cifar10)"
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
    images: ImageSource, rows: Sequence[int], workers: int = 0, progress: Callable[[int, int], None] | None = None
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
        for done, (row, reason) in enumerate(zip(rows, pool.map(fault, rows), strict=True), 1):
            if reason:
                bad[row] = reason
            else:
                good.append(row)
            if progress:
                progress(done, len(rows))
    return good, bad


def _decode(data: Any, name: str) -> Image.Image:
    try:
        with Image.open(data) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "not a picture that can be decoded" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(f"cannot read the picture {name}: {reason}; mend or remove it, or pass --skip-bad") from None


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
    """A folder of pictures, flat or with one folder a class, read recursively."""

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.root = root
        files = (p.relative_to(root).as_posix() for p in root.rglob("*") if _is_picture(p.name) and p.is_file())
        super().__init__(root.name or str(root), list(files), split)

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        try:
            data = (self.root / self.ids[index]).read_bytes()
        except OSError as error:
            raise ImageError(
                f"cannot read the picture {self.ids[index]}: {error.strerror}; or pass --skip-bad"
            ) from None
        return _decode(io.BytesIO(data), self.ids[index])

    def sizes(self) -> Sequence[int]:
        """File sizes."""
        return [(self.root / i).stat().st_size for i in self.ids]


class Tar(_Tree):
    """A tar archive of pictures, not unpacked. A member is read by its offset, from a handle a process."""

    def __init__(self, path: Path, split: str | None = None) -> None:
        self.path = path
        try:
            with tarfile.open(path) as archive:
                if archive.fileobj is None or path.suffix.lower() != ".tar":
                    raise ImageError(
                        f"{path.name} is compressed, so its pictures cannot be read in any order; unpack it"
                    )
                members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isfile()}
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"{path.name} is a damaged tar archive: {error}") from None
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
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. Split ``train`` is the even ones, ``test`` the odd ones."""

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
        from timm.data import create_dataset  # noqa: PLC0415 - imports a great deal, and only this source needs it

        split = split or "validation"
        if name.startswith("torch/") and split not in _SPLITS:  # timm would quietly take another split
            raise UnknownNameError("split", split, sorted(_SPLITS), hint=f"of {name}")
        if name.partition("/")[0].lower() in {"hfids", "tfds", "wds"}:
            raise ImageError(
                f"{name} can only be streamed, so its samples have no fixed order or ids; use a folder, .tar, torch/ or hfds/"
            )
        if root is None and not name.startswith("hfds/"):
            raise ImageError(f"say where {name} lies, or is to be downloaded to, with --data-root DIR")
        try:
            self._dataset = create_dataset(name, root=root, split=split, download=download, search_split=False)
        except Exception as error:  # noqa: BLE001 - what a foreign data set raises is anything
            hint = "" if download else "; --download fetches what can be fetched"
            first = str(error).strip().split("\n", 1)[0]
            raise ImageError(f"cannot open {name} under {root}: {first or type(error).__name__}{hint}") from None
        self.name = f"{name} [{split}]"
        self._split = split
        if hasattr(self._dataset, "filenames"):
            names = [str(f) for f in self._dataset.filenames()]
            self.ids = names if len(set(names)) == len(names) else [f"{split}/{i}" for i in range(len(self._dataset))]
        else:
            self.ids = [f"{split}/{i}" for i in range(len(self._dataset))]
        if len(getattr(self._dataset, "targets", ())) == len(self.ids):
            self.labels = np.asarray(self._dataset.targets, dtype=np.int64)
        self.classes = [str(c) for c in getattr(self._dataset, "classes", ())]
        self._dataset.transform = None

    def load(self, index: int) -> Image.Image:
        """Read past ``ImageDataset.__getitem__``, which returns the next sample where one cannot be read."""
        reader = getattr(self._dataset, "reader", None)
        try:
            picture = (reader if reader is not None else self._dataset)[index][0]
        except Exception as error:  # noqa: BLE001 - what a foreign data set raises is anything
            raise ImageError(
                f"cannot read sample {self.ids[index]} of {self.name}: {error}; or pass --skip-bad"
            ) from None
        if isinstance(picture, Image.Image):
            return picture.convert("RGB")
        return _decode(io.BytesIO(picture) if isinstance(picture, bytes) else picture, str(self.ids[index]))

    def sizes(self) -> Sequence[int]:
        """Unknown without reading everything; the ids alone make the fingerprint."""
        return [0] * len(self.ids)
