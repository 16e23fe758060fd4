"""What a source of pictures is: a fixed order, an id for each, a fingerprint of the contents, perhaps labels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from repsim.extractors.decoding import MAX_PIXELS

DIGEST = 8
"""Bytes that are kept of the SHA-256 of a picture."""


class Content(NamedTuple):
    """What looking at one picture gives."""

    digest: bytes
    """The first 8 bytes of a SHA-256: of the file, or of the decoded pixels (`ImageSource.content_kind`)."""
    frames: bool = False
    """Whether the file holds pictures after the first, which are not read."""


class LeftOut:
    """What was not taken, by reason: how many, and the name of the first.

    >>> left_out = LeftOut()
    >>> for name in ("a.heic", "b.heic"):
    ...     left_out.add(".heic", name)
    >>> str(left_out)
    '.heic: 2 (a.heic, ...)'
    """

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, why: str, name: str) -> None:
        """Count one more."""
        count, first = self.reasons.get(why, (0, name))
        self.reasons[why] = count + 1, min(first, name)

    @property
    def counts(self) -> dict[str, int]:
        """How many for each reason, the most frequent first."""
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
    """What the user wrote, with the split."""
    ids: Sequence[str]
    labels: np.ndarray[Any, np.dtype[np.int64]] | None = None
    classes: Sequence[str] = ()
    """Class names, in the order of the label numbers."""
    label_record: Mapping[str, Any] = {}
    """Where the labels come from, where that is not the source itself."""
    content_kind: str = "pixels"
    """What is hashed of a picture: ``files``, their bytes, or ``pixels``, as they are decoded."""
    max_pixels: int = MAX_PIXELS
    """Larger pictures are refused."""

    @property
    def left_out(self) -> LeftOut:
        """What lies beside the pictures and was not taken."""
        return self.__dict__.setdefault("_left_out", LeftOut())  # type: ignore[no-any-return]

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Decode one picture as RGB, or raise `ImageError` with its name."""

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Bytes of each picture as stored: with the ids, what `fingerprint` is made of."""

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - here it always is
        """Hash one picture; with ``decode``, also raise `ImageError` where it cannot be decoded."""
        return pixel_content(self.load(index))

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, rows: Sequence[int]) -> str:
        """SHA-256 over the ids and sizes of these samples, in their order; `examine` sees what is in them."""
        sizes = self.sizes()
        whole = hashlib.sha256()
        for row in rows:
            whole.update(f"{self.ids[row]}\0{sizes[row]}\n".encode())
        return whole.hexdigest()


def pixel_content(picture: Image.Image) -> Content:
    """Hash width, height, and the decoded pixels in RGB."""
    return Content(digest(f"{picture.width} x {picture.height}\n".encode(), picture.tobytes()))


def digest(*parts: bytes) -> bytes:
    """Hash bytes: the first 8 bytes of their SHA-256."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.digest()[:DIGEST]
