"""Registry of the readers of a file format, one for every version that has been released.

The version is raised when a reader of the version before would misunderstand a file. Then the new reader is registered
here beside the old one, which stays, so that what an earlier release wrote still opens; or the old one is removed, and
the error says how the file can be made again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from repsim.errors import FormatVersionError, Remedy

Reader = TypeVar("Reader", bound=Callable[..., Any])


class Readers(Generic[Reader]):
    """Readers of one format by version.

    Parameters
    ----------
    what
        What a file of the format is, for messages: ``store``.
    remake
        What to do about a file of a version that is not read any more.

    Examples
    --------
    >>> readers = Readers("store", Remedy("extract it again"))
    >>> @readers.register(2)
    ... def read(text: str) -> str:
    ...     return text.upper()
    >>> readers.newest, readers.get(2, Path("a.h5"))("values")
    (2, 'VALUES')
    >>> readers.get(3, Path("a.h5"))
    Traceback (most recent call last):
    ...
    repsim.errors.FormatVersionError: a.h5 has store format 3; this repsim reads 2; install a newer repsim
    """

    def __init__(self, what: str, remake: Remedy) -> None:
        self.what, self.remake = what, remake
        self._readers: dict[int, Reader] = {}

    def register(self, version: int) -> Callable[[Reader], Reader]:
        """Register what reads a version; a decorator."""

        def add(reader: Reader) -> Reader:
            self._readers[version] = reader
            return reader

        return add

    def __contains__(self, version: object) -> bool:
        return isinstance(version, int) and version in self._readers

    @property
    def newest(self) -> int:
        """The version that is written."""
        return max(self._readers)

    def get(self, version: Any, path: Path) -> Reader:
        """Give the reader of a version, which is whatever the file at ``path`` says that it is."""
        if isinstance(version, int) and version in self._readers:
            return self._readers[version]
        versions = " and ".join(map(str, sorted(self._readers)))
        newer = isinstance(version, int) and version > self.newest
        text = " ".join(repr(version).split())
        raise FormatVersionError(
            f"{path} has {self.what} format {text[:60]}; this repsim reads {versions}",
            path=path,
            version=version,
            remedy=Remedy("install a newer repsim") if newer else self.remake,
        )
