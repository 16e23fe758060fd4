"""Registry of the readers of a file format, one for every version that has been released.

A format's version is raised when the reader of the previous version would misunderstand a new file. The new reader is
then registered beside the earlier ones, so that files of earlier releases still open. If an earlier reader is removed,
the error says how to make the file again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from repsim.errors import FormatVersionError, Remedy

Reader = TypeVar("Reader", bound=Callable[..., Any])


class Readers(Generic[Reader]):
    """Readers of one file format by version.

    Parameters
    ----------
    what : str
        The kind of file, for error messages: ``store``.
    remake : Remedy
        What to do with a file of a version that has no reader any more.

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
        """Return a decorator that registers the reader of a version."""

        def add(reader: Reader) -> Reader:
            self._readers[version] = reader
            return reader

        return add

    def __contains__(self, version: object) -> bool:
        return isinstance(version, int) and version in self._readers

    @property
    def newest(self) -> int:
        """Newest version, in which files are written."""
        return max(self._readers)

    def get(self, version: Any, path: Path) -> Reader:
        """Return the reader of a version; raise `FormatVersionError` about the file ``path`` if there is none."""
        if isinstance(version, int) and version in self._readers:
            return self._readers[version]
        versions = " and ".join(", ".join(map(str, sorted(self._readers))).rsplit(", ", 1))
        newer = isinstance(version, int) and version > self.newest
        text = " ".join(repr(version).split())
        raise FormatVersionError(
            f"{path} has {self.what} format {text[:60]}; this repsim reads {versions}",
            path=path,
            version=version,
            remedy=Remedy("install a newer repsim") if newer else self.remake,
        )
