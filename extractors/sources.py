"""Base class of image sources: pictures in a fixed order, with ids, hashes of their contents, and optional labels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from repsim.extractors.decoding import MAX_PIXELS

DIGEST = 8
"""Number of bytes of the SHA-256 of a picture that are kept."""


class Content(NamedTuple):
    """Hash of one picture, and whether its file has more frames."""

    digest: bytes
    """The first 8 bytes of a SHA-256: of the file, or of the decoded pixels (`ImageSource.content_kind`)."""
    frames: bool = False
    """Whether the file holds further pictures after the first. They are not read."""


class LeftOut:
    """Files that were left out, by reason: their number and the name of the first.

    >>> left_out = LeftOut()
    >>> for name in ("a.heic", "b.heic"):
    ...     left_out.add(".heic", name)
    >>> str(left_out)
    '.heic: 2 (a.heic, ...)'
    """

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, why: str, name: str) -> None:
        """Count one more file that was left out for the reason ``why``."""
        count, first = self.reasons.get(why, (0, name))
        self.reasons[why] = count + 1, min(first, name)

    @property
    def counts(self) -> dict[str, int]:
        """Number of files for each reason, the most frequent first."""
        return {why: count for why, (count, _) in self._sorted()}

    def _sorted(self) -> list[tuple[str, tuple[int, str]]]:
        return sorted(self.reasons.items(), key=lambda item: (-item[1][0], item[0]))

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        shown = [
            f"{why}: {count:,} ({first}{', ...' if count > 1 else ''})" for why, (count, first) in self._sorted()[:8]
        ]
        rest = sum(count for _, (count, _) in self._sorted()[8:])
        return ", ".join(shown) + (f", others: {rest:,}" if rest else "")


class ImageSource(ABC):
    """Pictures in a fixed order, with ids and perhaps labels."""

    name: str
    """Name of the data as the user wrote it, with the split."""
    ids: Sequence[str]
    labels: np.ndarray[Any, np.dtype[np.int64]] | None = None
    classes: Sequence[str] = ()
    """Class names, in the order of the label numbers."""
    label_record: Mapping[str, Any] = {}
    """Origin of the labels, if they do not come from the source itself."""
    groups: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Group of each picture, if pictures of one group are not independent."""
    group_names: Sequence[str] = ()
    group_record: Mapping[str, Any] = {}
    """Origin of the groups."""
    content_kind: str = "pixels"
    """Content of a picture that is hashed: ``files`` (the bytes of the file) or ``pixels`` (the decoded pixels)."""
    max_pixels: int = MAX_PIXELS
    """Largest allowed number of pixels of a picture."""

    @property
    def left_out(self) -> LeftOut:
        """Files beside the pictures that were left out."""
        return self.__dict__.setdefault("_left_out", LeftOut())  # type: ignore[no-any-return]

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Return one picture, decoded to RGB.

        Raises
        ------
        ImageError
            The picture cannot be decoded; the message contains its name.
        """

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Return the stored size of each picture in bytes. `fingerprint` uses the ids and these sizes."""

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - this class always decodes
        """Hash one picture; with ``decode``, raise `ImageError` if it cannot be decoded."""
        return pixel_content(self.load(index))

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Return the SHA-256 over the ids and sizes of these samples in their order; `examine` hashes the contents."""
        sizes = self.sizes()
        sha = hashlib.sha256()
        for row in rows:
            sha.update(f"{self.ids[row]}\0{sizes[row]}\n".encode())
        return sha.hexdigest()


def pixel_content(picture: Image.Image) -> Content:
    """Return the hash of a picture's width, height, and decoded pixels in RGB."""
    return Content(digest(f"{picture.width} x {picture.height}\n".encode(), picture.tobytes()))


def digest(*parts: bytes) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the concatenated parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.digest()[:DIGEST]
