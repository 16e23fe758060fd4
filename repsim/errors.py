"""Errors and warnings of repsim: all errors derive from `RepsimError`, so that ``except RepsimError`` catches them.

Each error also derives from the matching builtin, such as ValueError. A message states what was expected, what was
received and what to do: `RepsimError.problem` and `RepsimError.remedy`. Parameters and functions in a message are
objects (`Argument`, `Function`). ``str`` writes them as Python does, the command line as options and commands
(`repsim.commands.remedies`). Programs read the attributes of an error and never need to search its text.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Argument:
    """Parameter of a public function in a message; ``value`` is its argument, ``metavar`` a placeholder for one.

    >>> str(Argument("img_size")), str(Argument("overwrite", True)), str(Argument("weights", metavar="FILE"))
    ('img_size', 'overwrite=True', 'weights=FILE')
    """

    name: str
    value: Any = None
    of: str = ""
    """Function that has the parameter; empty for the function that was called."""
    metavar: str = ""

    def __str__(self) -> str:
        if self.value is None and not self.metavar:
            return self.name
        return f"{self.name}={self.metavar or repr(self.value)}"


@dataclass(frozen=True)
class Function:
    """Public function in a message, by its full name, such as ``repsim.heatmap``."""

    name: str

    def __str__(self) -> str:
        return self.name


SAME_CALL = Function("the same call")
"""The call that raised the error, in messages that advise to repeat it."""
Part = str | Argument | Function
"""Part of a message."""
Formatter = Callable[[Argument | Function], str]
"""Function that writes a parameter or a function for a reader; ``str`` writes it as Python does."""


def render(parts: Iterable[Part], formatter: Formatter = str) -> str:
    """Return the parts of a message as one text."""
    return "".join(part if isinstance(part, str) else formatter(part) for part in parts)


@dataclass(frozen=True, init=False)
class Remedy:
    """Advice on how to correct an error: a clause in which parameters and functions are objects.

    >>> remedy = Remedy("give ", Argument("overwrite", True), " to replace it")
    >>> str(remedy), remedy.arguments[0].name
    ('give overwrite=True to replace it', 'overwrite')
    """

    parts: tuple[Part, ...]

    def __init__(self, *parts: Part) -> None:
        object.__setattr__(self, "parts", parts)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """Arguments to pass, in the order of the text."""
        return tuple(part for part in self.parts if isinstance(part, Argument))

    def __str__(self) -> str:
        return render(self.parts)


class Hint(str):
    """Note to the user that is no error, for instance about a choice that was made: a text with an optional remedy.

    >>> note = Hint("weights: ema of net.pth", remedy=Remedy(Argument("weights_key"), " takes another"))
    >>> note
    'weights: ema of net.pth; weights_key takes another'
    """

    __slots__ = ("problem", "remedy")
    problem: str
    remedy: Remedy | None

    def __new__(cls, problem: str, *, remedy: Remedy | None = None) -> Self:
        """Make the text, with parameters written as Python does."""
        note = super().__new__(cls, _sentence([problem], remedy, str))
        note.problem, note.remedy = problem, remedy
        return note

    def render(self, formatter: Formatter) -> str:
        """Return the text with parameters and functions written by ``formatter``."""
        return _sentence([self.problem], self.remedy, formatter)


def _sentence(problem: Iterable[Part], remedy: Remedy | None, formatter: Formatter) -> str:
    text = render(problem, formatter)
    return text if remedy is None else f"{text}{' ' if text.endswith('?') else '; '}{render(remedy.parts, formatter)}"


class RepsimError(Exception):
    """Error that the user can correct. The message is one line and says how.

    Parameters
    ----------
    problem : str, Argument or Function
        Parts of the text: what was expected, and what was received.
    remedy : Remedy, optional
        What to do, unless the problem says it already.

    Examples
    --------
    >>> error = RepsimError("r.nc exists", remedy=Remedy("give ", Argument("overwrite", True), " to replace it"))
    >>> print(error)
    r.nc exists; give overwrite=True to replace it
    >>> error.problem
    'r.nc exists'
    """

    remedy: Remedy | None

    def __init__(self, *problem: Part, remedy: Remedy | None = None) -> None:
        self._problem, self.remedy = problem, remedy
        super().__init__(render(problem))

    @property
    def problem(self) -> str:
        """Message without the remedy."""
        return render(self._problem)

    def render(self, formatter: Formatter) -> str:
        """Return the message with parameters and functions written by ``formatter``."""
        return _sentence(self._problem, self.remedy, formatter)

    def __str__(self) -> str:
        return self.render(str)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[RepsimError], args: tuple[Any, ...], state: dict[str, Any]) -> RepsimError:
    """Restore a pickled error without calling ``__init__``, whose arguments may differ from ``args``."""
    base: Any = kind
    while base.__module__ != "builtins":  # only the builtin base class can allocate the instance
        base = base.__base__
    error: RepsimError = base.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(RepsimError, ValueError):
    """Value that cannot be used: wrong shape, too few samples, not finite, or an impossible option."""


class InvalidArgumentError(InvalidInputError):
    """Argument of a public function with a value that the function does not accept.

    >>> print(InvalidArgumentError("limit", "at least 1", 0))
    limit is at least 1, not 0
    """

    def __init__(self, parameter: str, expected: str, got: Any) -> None:
        self.parameter, self.expected, self.got = parameter, expected, got
        super().__init__(Argument(parameter), f" is {expected}, not {got!r}")


class TooLittleMemoryError(RepsimError, MemoryError):
    """Memory limit that even the smallest plan for these metrics exceeds; ``needed`` and ``allowed`` are in bytes."""

    def __init__(
        self, *problem: Part, metrics: Iterable[str], needed: int, allowed: int, remedy: Remedy | None = None
    ) -> None:
        self.metrics, self.needed, self.allowed = frozenset(metrics), needed, allowed
        super().__init__(*problem, remedy=remedy)


_MOST_KNOWN, _MOST_LOOKED_UP = 12, 500
"""Largest number of names that an error lists, and of names of which it lists the first ones."""


class UnknownNameError(RepsimError, LookupError):
    """Name that is not registered; ``candidates`` are the most similar registered names, ignoring case.

    The message has these or, if there are none, some of the registered names; with ``listed`` both.

    >>> print(UnknownNameError("metric", "ckaa", ["cka", "rsa"], where="study.yaml, line 3"))
    unknown metric 'ckaa'; did you mean cka? (study.yaml, line 3)
    """

    def __init__(
        self,
        kind: str,
        name: str,
        names: Iterable[str],
        *,
        where: str = "",
        remedy: Remedy | None = None,
        listed: bool = False,
    ) -> None:
        names = list(dict.fromkeys(names))
        self.kind, self.name, self.candidates = kind, name, nearest(name, names)
        message = f"unknown {kind} {name!r}"
        if self.candidates:
            message += f"; did you mean {' or '.join(self.candidates)}?"
        if names and (listed or (not self.candidates and len(names) <= _MOST_LOOKED_UP)):
            more = f" and {len(names) - _MOST_KNOWN} more" if len(names) > _MOST_KNOWN else ""
            message += f"{'' if self.candidates else ';'} known: {', '.join(names[:_MOST_KNOWN])}{more}"
        super().__init__(f"{message} ({where})" if where else message, remedy=remedy)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most similar to ``name``, the most similar first, at most three.

    Case is ignored. If some names differ from ``name`` only in case, only these are returned.

    >>> nearest("CKA", ["cka", "cca", "svcca"]), nearest("ResNet-50", ["resnet50", "resnet101", "vit"])
    (['cka'], ['resnet50', 'resnet101'])
    """
    wanted = name.casefold()
    by_folded: dict[str, list[str]] = {}
    for candidate in dict.fromkeys(names):
        by_folded.setdefault(candidate.casefold(), []).append(candidate)
    if wanted in by_folded:
        return by_folded[wanted][:3]
    close = difflib.get_close_matches(wanted, by_folded, n=3, cutoff=0.5)
    close = close or [folded for folded in by_folded if wanted and wanted in folded]
    return [candidate for folded in close for candidate in by_folded[folded]][:3]


class UndefinedValueError(RepsimError, ArithmeticError):
    """Measure without a value for these representations, such as a constant layer; the message gives the reason."""


class MissingExtraError(RepsimError, ImportError):
    """Library that is not installed because only an optional extra includes it."""

    def __init__(self, who: str, library: str, *, extra: str) -> None:
        self.library, self.extra = library, extra
        super().__init__(f"{who} needs {library}: pip install 'repsim-toolkit[{extra}]'")


class SampleMismatchError(RepsimError, ValueError):
    """Two stores with different samples, or with the same samples in another order; ``paths`` are their files.

    ``by_samples`` is False if the samples are the same, but not their classes or blocks.
    """

    def __init__(
        self, *problem: Part, paths: Iterable[Path] = (), by_samples: bool = False, remedy: Remedy | None = None
    ) -> None:
        self.paths, self.by_samples = tuple(paths), by_samples
        super().__init__(*problem, remedy=remedy)


class _FileError(RepsimError, OSError):
    """Error about one file; ``path`` is None if the file has no name."""

    def __init__(self, *problem: Part, path: Path | None = None, remedy: Remedy | None = None) -> None:
        self.path = path
        super().__init__(*problem, remedy=remedy)


class StoreError(_FileError):
    """File that is missing, damaged or incomplete, or that is neither an activation store nor a result."""


class FormatVersionError(StoreError):
    """File in a version of its format that this version of repsim cannot read."""

    def __init__(self, *problem: Part, path: Path, version: Any, remedy: Remedy) -> None:
        self.version = version
        super().__init__(*problem, path=path, remedy=remedy)


class OutputError(_FileError):
    """Path that cannot be written, or that holds a file which would be overwritten."""


class OtherSettingsError(OutputError):
    """Complete or partial store that was made with other settings; ``difference`` names them."""

    def __init__(self, path: Path, difference: str) -> None:
        self.difference = difference
        super().__init__(
            f"{path} was made with other settings: {difference}",
            path=path,
            remedy=Remedy("use ", Argument("overwrite", True), " to replace it, or another folder"),
        )


class WeightsError(RepsimError, OSError):
    """Weights that cannot be loaded: not cached and no network, damaged, or of another architecture."""


class SampleError(RepsimError, OSError):
    """Sample, or source of samples, that cannot be read."""


class ImageError(SampleError):
    """Picture that cannot be read, or a source without pictures."""


class OtherProcessError(RepsimError, ConnectionError):
    """Another process of the same run has ended.

    ``first`` is whether this process reports the error. ``ended`` has the ranks of processes that ended before they met
    the others, if they are known.
    """

    def __init__(self, *, first: bool, ended: Sequence[int] = ()) -> None:
        self.first, self.ended = first, tuple(ended)
        if not ended:
            super().__init__("another process of this run has ended; its own message, if any, gives the reason")
            return
        named = f"process{'es' if len(ended) > 1 else ''} {', '.join(map(str, ended))}"
        super().__init__(
            f"{named} of this run ended before meeting the others, which need {'them' if len(ended) > 1 else 'it'}",
            remedy=Remedy("make the same call in every process"),
        )


class UnequalProcessesError(RepsimError, ValueError):
    """Processes of one run with different stores, samples or options; every process raises it.

    ``difference`` names what differs; ``first`` is whether this is the first process, which reports the error.
    """

    def __init__(self, difference: str, *, first: bool) -> None:
        self.difference, self.first = difference, first
        super().__init__(
            f"the processes of this run differ: {difference}",
            remedy=Remedy("give every process the same options and the same files"),
        )


class UnreliableValueWarning(UserWarning):
    """Value that is defined but not informative, for instance CCA with more features than samples."""


class BrokenPluginWarning(UserWarning):
    """Plug-in of another package that cannot be loaded, and is left out."""


class MissingFontWarning(UserWarning):
    """Characters of a name that no font of this machine has; the figure shows them as escapes."""


class MissingDigestWarning(UserWarning):
    """Result or study of an earlier format without a digest, in which damage may go unnoticed."""


def reason(error: BaseException, lines: int = 1) -> str:
    """Return the reason of an error for the end of a message: the text of the operating system, or its first lines.

    >>> reason(FileNotFoundError(2, "...")), reason(KeyError("head"))
    ('No such file or directory', "KeyError 'head'")
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if quoted := re.search(r"errno = \d+, error message = '([^']+)'", str(error)):  # HDF5 sets no errno
        return quoted[1]
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    if " " not in text:  # the text of a KeyError is only its key
        text = f"{type(error).__name__} {text}".strip()
    return (text[:200] + " ...") if len(text) > 200 else text
