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

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Kept:
    """A file that holds all of this already, so nothing was computed."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def logged(events: Iterable[Any]) -> Iterator[Any]:
    """Log notes to ``logging.getLogger("repsim")``, level INFO, and pass on the rest.

    >>> [event for event in logged([Note("one picture was skipped"), 3])]
    [3]
    """
    for event in events:
        if isinstance(event, Note | Kept):
            _LOG.info("%s", event)
        else:
            yield event
