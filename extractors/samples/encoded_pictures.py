"""Pictures as the bytes of files: in folders, in tar archives, in tables and in data sets of other libraries."""

import io
import posixpath
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from repsim.errors import reason
from repsim.extractors.samples.decoding import MAX_PIXELS, decode, has_frames, suffixes_of_frames, unreadable
from repsim.extractors.samples.source import Content, ImageSource, digest
from repsim.runtime import interrupts

_decode = decode


class EncodedPictures(ImageSource):
    """Pictures whose bytes are those of files. The bytes are hashed."""

    content_kind = "files"

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of the file of one picture.

        Raises
        ------
        ImageError
            The file cannot be read.
        """

    def file_name(self, index: int) -> str:  # noqa: ARG002 - most sources have no names of files
        """Return the name of the file of one picture; empty if it has none."""
        return ""

    def place(self, index: int) -> str:
        """Return the name of one picture for messages."""
        return self.ids[index]

    def load(self, index: int) -> Image.Image:
        """Return one picture, decoded to RGB."""
        return decode(io.BytesIO(self.read_bytes(index)), self.place(index), self.max_pixels)

    def examine(self, index: int, *, decode: bool = False) -> Content:
        """Hash the bytes of one file; with ``decode``, raise `ImageError` if it cannot be decoded."""
        data = self.read_bytes(index)
        if decode:
            _decode(io.BytesIO(data), self.place(index), self.max_pixels)
        suffix = Path(self.file_name(index)).suffix.lower()
        frames = (not suffix or suffix in suffixes_of_frames()) and has_frames(data)
        return Content(digest(data), frames)


class PicturesOfTable(EncodedPictures):
    """Pictures of a column that holds paths or bytes.

    Parameters
    ----------
    cell : callable
        Function from a row to its value: a path, the bytes of a file, a dictionary ``{"bytes": ..., "path": ...}`` of
        which one may be None, or None.
    places : callable
        Function from a row to its name in messages: ``pairs.csv, line 5``.
    folder : Path, optional
        Folder that paths are relative to.
    """

    def __init__(
        self,
        cell: Callable[[int], Any],
        places: Callable[[int], str],
        folder: Path | None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._cell, self._places, self._folder, self.max_pixels = cell, places, folder, max_pixels

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of a cell, or of the file that it names."""
        data, path = picture_parts(self._cell(index))
        if data is not None:
            return data
        if path is None:
            raise unreadable(self.place(index), "the cell is empty")
        try:
            file = (self._folder or Path()) / path
            if file.exists() and not file.is_file():  # a device or a pipe may have no end
                raise unreadable(self.place(index), "it is no file")
            return file.read_bytes()
        except OSError as error:
            raise unreadable(self.place(index), reason(error)) from None

    def file_name(self, index: int) -> str:
        """Return the path that a cell names."""
        return picture_parts(self._cell(index))[1] or ""

    def place(self, index: int) -> str:
        """Return the path and the line of one picture."""
        path = picture_parts(self._cell(index))[1]
        return f"{path} ({self._places(index)})" if path else self._places(index)

    def sizes(self) -> Sequence[int]:
        """Return zeros: the ids alone make the fingerprint, as the contents are hashed."""
        return [0] * len(self.ids)


def picture_parts(cell: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path that a cell of a column of pictures holds.

    >>> picture_parts("a.png"), picture_parts(b"..."), picture_parts({"bytes": None, "path": "a.png"})
    ((None, 'a.png'), (b'...', None), (None, 'a.png'))
    """
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell), None
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return None, cell


def picture_keys(cell: Callable[[int], Any], n: int) -> list[Hashable]:
    """Return what identifies the picture of each of ``n`` cells: its path, or the hash of its bytes.

    >>> picture_keys(["a/../b.png", "b.png", b"...", None].__getitem__, 4)
    ['b.png', 'b.png', 'ab5df625bc76dbd4', 'empty cell 3']
    """
    keys: list[Hashable] = []
    for row in range(n):
        data, path = picture_parts(cell(row))
        if data is not None:
            keys.append(digest(data).hex())
        else:
            keys.append(posixpath.normpath(path) if path else f"empty cell {row}")
        interrupts.check()
    return keys
