"""Sources of samples: pictures, texts, arrays or anything else in a fixed order, with ids, labels and groups."""

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repsim.errors import SampleError
from repsim.extractors.samples.decoding import MAX_PIXELS
from repsim.labels import NOUNS as NOUNS  # noqa: PLC0414 - also imported from this file
from repsim.labels import Modality as Modality  # noqa: PLC0414
from repsim.runtime.arrays import as_array

DIGEST = 8
"""Number of bytes of the SHA-256 of a sample that are kept."""


_EXACT = (bool, int, float, complex, type(None), dt.date, dt.time, dt.timedelta, decimal.Decimal,
          fractions.Fraction, uuid.UUID, enum.Enum, torch.dtype, torch.device, torch.Size, range)  # fmt: skip
"""Types whose texts hold all of their value."""


class Content(NamedTuple):
    """Hash of one sample, and whether its file has more frames."""

    digest: bytes
    """The first 8 bytes of a SHA-256 of what `SampleSource.content_kind` names."""
    frames: bool = False
    """Whether the file of a picture holds further pictures after the first. They are not read."""


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


class SampleSource(ABC):
    """Samples in a fixed order, with ids, and perhaps labels and groups.

    A source can be pickled, because worker processes load its samples. A subclass defines `load`, sets ``name`` and
    ``ids``, and states its ``modality``.
    """

    modality: ClassVar[Modality] = "other"
    name: str
    """Name of the data as the user wrote it, with the split or the column."""
    ids: Sequence[str]
    labels: np.ndarray[Any, np.dtype[np.int64]] | None = None
    classes: Sequence[str] = ()
    """Class names, in the order of the label numbers."""
    label_record: Mapping[str, Any] = {}
    """Origin of the labels, if they do not come from the source itself."""
    groups: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Group of each sample, if samples of one group are not independent."""
    group_names: Sequence[str] = ()
    group_record: Mapping[str, Any] = {}
    """Origin of the groups."""
    record: Mapping[str, Any] = {}
    """Entries about the data for the provenance, as JSON values: the column, the file, the number of shards."""
    notes: Sequence[str] = ()
    """Messages for the user about choices that were made when the data were opened."""
    content_kind: str = "values"
    """Content of a sample that is hashed: ``files`` (the bytes of the file), ``pixels`` (the decoded pixels) or
    ``values`` (`content_of`). Only hashes of one kind can be compared."""
    quick: bool = False
    """Whether samples are in memory, so that worker processes would only cost time."""
    indexable: bool = True
    """Whether `load` can read samples in any order. If not, `read` yields them in the order of the data."""
    collate: Callable[[list[Any]], Any] | None = None
    """Function from a list of samples to a batch, of sources that have one of their own, such as a `DataLoader`."""
    batch_size: int | None = None
    """Number of samples in a batch of sources that have batches of their own."""

    @property
    def left_out(self) -> LeftOut:
        """Files beside the samples that were left out."""
        return self.__dict__.setdefault("_left_out", LeftOut())  # type: ignore[no-any-return]

    @property
    def noun(self) -> str:
        """Plural of the samples, for messages: pictures, texts, arrays, samples."""
        return NOUNS[self.modality][1]

    @abstractmethod
    def load(self, index: int) -> Any:
        """Return one sample.

        Raises
        ------
        SampleError
            The sample cannot be read; the message contains its name.
        """

    def read(self, rows: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield positions and samples, in the order of ``rows``; of a source that is not `indexable` it increases."""
        for row in rows:
            yield row, self.load(row)

    def sizes(self) -> Sequence[int]:
        """Return the stored size of each sample in bytes, or zeros if only ids are to make the `fingerprint`."""
        return [0] * len(self.ids)

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - this class always loads
        """Hash one sample; with ``decode``, raise `SampleError` if it cannot be decoded."""
        return content_of(self.load(index))

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Return the SHA-256 over the ids and sizes of these samples in their order; `examine` hashes the contents."""
        sizes = self.sizes()
        sha = hashlib.sha256()
        for row in rows:
            sha.update(f"{self.ids[row]}\0{sizes[row]}\n".encode())
        return sha.hexdigest()


class ImageSource(SampleSource):
    """Pictures in a fixed order, with ids and perhaps labels."""

    modality = "image"
    content_kind = "pixels"
    max_pixels: int = MAX_PIXELS
    """Largest allowed number of pixels of a picture."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Return one picture, decoded to RGB.

        Raises
        ------
        ImageError
            The picture cannot be decoded; the message contains its name.
        """

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - this class always decodes
        """Hash one picture; with ``decode``, raise `ImageError` if it cannot be decoded."""
        return pixel_content(self.load(index))


def pixel_content(picture: Image.Image) -> Content:
    """Return the hash of a picture's width, height, and decoded pixels in RGB."""
    return Content(digest(f"{picture.width} x {picture.height}\n".encode(), picture.tobytes()))


def content_of(sample: Any) -> Content:
    """Return the hash of the values of a sample: text, array, picture, number, or a nest of these.

    Raises
    ------
    SampleError
        A part of the sample is an object without contents that could be hashed, such as a function.

    >>> content_of({"text": "a", "ids": np.arange(3)}) == content_of({"text": "a", "ids": np.arange(3)})
    True
    """
    return Content(digest(*_pieces(sample)))


def _pieces(sample: Any) -> Iterator[bytes]:
    """Yield bytes that determine a sample: a tag of its kind with its size, and its values."""
    if isinstance(sample, str):
        data = sample.encode("utf-8", "surrogatepass")
        yield f"text {len(data)}\n".encode()
        yield data
    elif isinstance(sample, bytes | bytearray):
        yield f"bytes {len(sample)}\n".encode()
        yield bytes(sample)
    elif isinstance(sample, Image.Image):
        yield f"picture {sample.mode} {sample.width} x {sample.height}\n".encode()
        yield sample.tobytes()
        if sample.mode in {"P", "PA"}:
            yield repr((sample.getpalette("RGBA"), sample.info.get("transparency"))).encode()
    elif isinstance(sample, Mapping):
        yield f"mapping {len(sample)}\n".encode()
        for key, value in sample.items():
            yield from _pieces(str(key))
            yield from _pieces(value)
    elif isinstance(sample, tuple | list):
        yield f"sequence {len(sample)}\n".encode()
        for value in sample:
            yield from _pieces(value)
    elif isinstance(sample, Tensor | np.ndarray | np.generic):
        yield from _pieces_of_array(sample)
    else:
        yield from _pieces_of_object(sample)


def _pieces_of_array(sample: Any) -> Iterator[bytes]:
    """Yield bytes that determine a tensor or an array, with its mask if it has one."""
    if isinstance(sample, Tensor):
        sample = as_array(sample, "a sample")
    if isinstance(sample, np.ma.MaskedArray):
        yield b"mask\n"
        yield from _pieces(np.ma.getmaskarray(sample))
        sample = sample.data
    array = np.ascontiguousarray(sample)
    if array.dtype.hasobject:
        raise SampleError("a sample holds an array of Python objects, whose contents cannot be hashed")
    yield f"array {array.dtype} {np.shape(sample)}\n".encode()
    yield array.tobytes()


def _pieces_of_object(sample: Any) -> Iterator[bytes]:
    """Yield bytes that determine an object by its attributes, or else by its text."""
    if hasattr(sample, "__dict__") and not callable(sample):
        yield f"{type(sample).__name__}\n".encode()
        yield from _pieces(vars(sample))
    elif callable(sample):
        raise SampleError(f"a sample holds a {type(sample).__name__}, whose contents cannot be hashed")
    elif isinstance(sample, _EXACT):
        yield f"{type(sample).__name__} {sample!r}\n".encode()
    elif dataclasses.is_dataclass(sample):
        yield f"{type(sample).__name__}\n".encode()
        yield from _pieces({entry.name: getattr(sample, entry.name) for entry in dataclasses.fields(sample)})
    else:  # its text may leave values out
        raise SampleError(f"a sample holds a {type(sample).__name__}, whose contents cannot be hashed")


def digest(*parts: bytes) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the concatenated parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.digest()[:DIGEST]
