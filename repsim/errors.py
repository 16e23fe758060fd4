"""Every error that repsim raises on purpose: one tree, so that ``except RepsimError`` catches them all.

Each is also the builtin that a careful user would catch. A message says what was expected, what came, and what to do.
The command line turns any of them into one line and exit code 2.
"""

import difflib
import os
import re
from collections.abc import Iterable


class RepsimError(Exception):
    """Something the user can mend. The message is one line and says how."""


class InvalidInputError(RepsimError, ValueError):
    """A value that cannot be used: wrong shape, too few samples, not finite, an impossible option."""


class TooLittleMemoryError(RepsimError, MemoryError):
    """Not even the smallest plan for these metrics fits into the memory that is allowed."""

    def __init__(self, message: str, metrics: Iterable[str]) -> None:
        self.metrics = frozenset(metrics)
        super().__init__(message)


class UnknownNameError(RepsimError, LookupError):
    """A name that nothing is registered under; the message lists the nearest names, whatever their case."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = list(known)
        near = nearest(name, known)
        message = f"unknown {kind} {name!r}"
        if near:
            message += f"; did you mean {' or '.join(near)}?"
        elif 0 < len(known) <= 12:
            message += f"; known: {', '.join(known)}"
        super().__init__(f"{message} {hint}".rstrip())


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Names that somebody who wrote ``name`` may have meant, the nearest first, three at most.

    Case does not count: a name that differs in nothing else is the only one.

    >>> nearest("CKA", ["cka", "cca", "svcca"]), nearest("ResNet-50", ["resnet50", "resnet101", "vit"])
    (['cka'], ['resnet50', 'resnet101'])
    """
    wanted = name.casefold()
    spelled: dict[str, list[str]] = {}
    for candidate in dict.fromkeys(known):
        spelled.setdefault(candidate.casefold(), []).append(candidate)
    if wanted in spelled:
        return spelled[wanted][:3]
    near = difflib.get_close_matches(wanted, spelled, n=3, cutoff=0.5)
    near = near or [folded for folded in spelled if wanted and wanted in folded]
    return [candidate for folded in near for candidate in spelled[folded]][:3]


class UndefinedValueError(RepsimError, ArithmeticError):
    """The measure has no value for these representations (a constant layer, say); the message gives the reason."""


class MissingExtraError(RepsimError, ImportError):
    """A library that is not installed, because it comes with one of the optional extras only."""

    def __init__(self, who: str, library: str, *, extra: str) -> None:
        super().__init__(f"{who} needs {library}: pip install 'repsim-toolkit[{extra}]'")


class SampleMismatchError(RepsimError, ValueError):
    """Two stores do not hold the same samples in the same order."""


class StoreError(RepsimError, OSError):
    """A file that is missing, damaged, incomplete, or no activation store or result."""


class OutputError(RepsimError, OSError):
    """A place that cannot be written, or that already holds what would be overwritten."""


class WeightsError(RepsimError, OSError):
    """Weights that cannot be had: not in the cache and no network, a damaged file, another architecture's."""


class ImageError(RepsimError, OSError):
    """A picture that cannot be read, or a place in which there are none."""


class OtherProcessError(RepsimError, ConnectionError):
    """Another process of the same run has ended; ``first``: whether this one is the first, which speaks for all."""

    def __init__(self, *, first: bool) -> None:
        self.first = first
        super().__init__("another process of this run has ended; where it said why, its message is beside this one")


class UnreliableValueWarning(UserWarning):
    """The value is defined but says little: for instance CCA with more features than samples."""


class MissingFontWarning(UserWarning):
    """No font of this machine has some characters of a name, which a figure writes as escapes."""


class MissingDigestWarning(UserWarning):
    """A result or a study of an earlier format, which carries no digest: damage in it may go unnoticed."""


def reason(error: Exception, lines: int = 1) -> str:
    """Why something failed, for the end of a message: the system's words where there are some, else the first lines.

    >>> reason(FileNotFoundError(2, "...")), reason(KeyError("head"))
    ('No such file or directory', "KeyError 'head'")
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if quoted := re.search(r"errno = \d+, error message = '([^']+)'", str(error)):  # HDF5 quotes the system
        return quoted[1]
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    if " " not in text:  # a KeyError says no more than its key
        text = f"{type(error).__name__} {text}".strip()
    return (text[:200] + " ...") if len(text) > 200 else text
