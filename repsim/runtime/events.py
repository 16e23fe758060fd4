"""Events that long computations yield: notes, and outputs that are already up to date.

The command line prints them; functions that are called from Python log them.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("repsim")


@dataclass(frozen=True)
class Note:
    """Message to the user that is not part of the result."""

    text: str
    prefix: str = ""
    """Text before ``text``, which may be a `repsim.errors.Hint` with a remedy."""

    def __str__(self) -> str:
        return self.prefix + self.text


@dataclass(frozen=True)
class UpToDate:
    """Output file that is already complete, so that nothing was computed."""

    path: Path
    what: str
    """Predicate of the message, after the path."""

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def log_notes(events: Iterable[Any]) -> Iterator[Any]:
    """Yield the events other than messages; log the messages to ``logging.getLogger("repsim")`` at level INFO.

    >>> [event for event in log_notes([Note("one picture was skipped"), 3])]
    [3]
    """
    for event in events:
        if isinstance(event, Note | UpToDate):
            _LOG.info("%s", event)
        else:
            yield event
