"""What long work reports while it runs, whoever shows it: the command line prints it, Python logs it."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("repsim")


@dataclass(frozen=True)
class Note:
    """Something that the user may want to know, and that is no result."""

    text: str
    prefix: str = ""
    """What comes before the text, which may know its remedy (`repsim.errors.Hint`)."""

    def __str__(self) -> str:
        return self.prefix + self.text


@dataclass(frozen=True)
class UpToDate:
    """A file that holds all of this already, so nothing was computed."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def log_notes(events: Iterable[Any]) -> Iterator[Any]:
    """Log notes to ``logging.getLogger("repsim")``, level INFO, and pass on the rest.

    >>> [event for event in log_notes([Note("one picture was skipped"), 3])]
    [3]
    """
    for event in events:
        if isinstance(event, Note | UpToDate):
            _LOG.info("%s", event)
        else:
            yield event
