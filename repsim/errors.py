"""Every error that repsim raises on purpose: one tree, so that ``except RepsimError`` catches them all.

Each is also the builtin that a careful user would catch. A message says what was expected, what came, and what to do:
`RepsimError.problem` and `RepsimError.remedy`. Parameters and functions in it are objects (`Argument`, `Function`),
which ``str`` writes as Python does, and the command line as its options and commands (`repsim.commands.remedies`). What
a program may want to know of an error is in its attributes; nobody has to search the text.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Argument:
    """A parameter of a public function, or with ``value`` an argument of it; ``metavar`` stands for a value to choose.

    >>> str(Argument("img_size")), str(Argument("overwrite", True)), str(Argument("weights", metavar="FILE"))
    ('img_size', 'overwrite=True', 'weights=FILE')
    """

    name: str
    value: Any = None
    of: str = ""
    """The function; empty for the one that was called."""
    metavar: str = ""

    def __str__(self) -> str:
        if self.value is None and not self.metavar:
            return self.name
        return f"{self.name}={self.metavar or repr(self.value)}"


@dataclass(frozen=True)
class Function:
    """A public function by its full name, ``repsim.heatmap``."""

    name: str

    def __str__(self) -> str:
        return self.name


SAME_CALL = Function("the same call")
"""The call in which something was raised, for what goes on where an earlier one stopped."""
Part = str | Argument | Function
"""What texts for users are made of."""
Spell = Callable[[Argument | Function], str]
"""Writes a parameter or a function as the reader of a text knows it; ``str`` is Python's way."""


def spelled(parts: Iterable[Part], spell: Spell = str) -> str:
    """Write out the parts of a text."""
    return "".join(part if isinstance(part, str) else spell(part) for part in parts)


@dataclass(frozen=True, init=False)
class Remedy:
    """What can be done about an error: a clause in which parameters and functions are objects.

    >>> remedy = Remedy("give ", Argument("overwrite", True), " to replace it")
    >>> str(remedy), remedy.arguments[0].name
    ('give overwrite=True to replace it', 'overwrite')
    """

    parts: tuple[Part, ...]

    def __init__(self, *parts: Part) -> None:
        object.__setattr__(self, "parts", parts)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments to give, in the order in which the text names them."""
        return tuple(part for part in self.parts if isinstance(part, Argument))

    def __str__(self) -> str:
        return spelled(self.parts)


class Hint(str):
    """A line for the user that is no error: what was chosen, or is kept. It is text, and knows its remedy.

    >>> note = Hint("weights: ema of net.pth", remedy=Remedy(Argument("weights_key"), " takes another"))
    >>> note
    'weights: ema of net.pth; weights_key takes another'
    """

    __slots__ = ("problem", "remedy")
    problem: str
    remedy: Remedy | None

    def __new__(cls, problem: str, *, remedy: Remedy | None = None) -> Self:
        """Make the text, with Python's words for parameters."""
        note = super().__new__(cls, _sentence([problem], remedy, str))
        note.problem, note.remedy = problem, remedy
        return note

    def spelled(self, spell: Spell) -> str:
        """Write the text in a reader's words for parameters."""
        return _sentence([self.problem], self.remedy, spell)


def _sentence(problem: Iterable[Part], remedy: Remedy | None, spell: Spell) -> str:
    text = spelled(problem, spell)
    return text if remedy is None else f"{text}{' ' if text.endswith('?') else '; '}{spelled(remedy.parts, spell)}"


class RepsimError(Exception):
    """Something that the user can put right. The message is one line and says how.

    Parameters
    ----------
    problem
        The parts of the text: what was expected, and what came.
    remedy
        What to do, where the problem does not say it already.

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
        super().__init__(spelled(problem))

    @property
    def problem(self) -> str:
        """The text without the remedy."""
        return spelled(self._problem)

    def spelled(self, spell: Spell) -> str:
        """Write the message in a reader's words for parameters and functions."""
        return _sentence(self._problem, self.remedy, spell)

    def __str__(self) -> str:
        return self.spelled(str)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[RepsimError], args: tuple[Any, ...], state: dict[str, Any]) -> RepsimError:
    """Make an error that was pickled, without ``__init__``: an error's class may take other arguments than ``args``."""
    base: Any = kind
    while base.__module__ != "builtins":  # Python makes an instance by the builtin that its memory is laid out as
        base = base.__base__
    error: RepsimError = base.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(RepsimError, ValueError):
    """A value that cannot be used: wrong shape, too few samples, not finite, an impossible option."""


class InvalidArgumentError(InvalidInputError):
    """An argument of a public function that is not what the function takes.

    >>> print(InvalidArgumentError("limit", "at least 1", 0))
    limit is at least 1, not 0
    """

    def __init__(self, parameter: str, expected: str, got: Any) -> None:
        self.parameter, self.expected, self.got = parameter, expected, got
        super().__init__(Argument(parameter), f" is {expected}, not {got!r}")


class TooLittleMemoryError(RepsimError, MemoryError):
    """Not even the smallest plan for these metrics fits into the memory that is allowed; sizes are in bytes."""

    def __init__(
        self, *problem: Part, metrics: Iterable[str], needed: int, allowed: int, remedy: Remedy | None = None
    ) -> None:
        self.metrics, self.needed, self.allowed = frozenset(metrics), needed, allowed
        super().__init__(*problem, remedy=remedy)


class UnknownNameError(RepsimError, LookupError):
    """A name that nothing is registered under; ``candidates`` are the nearest that there are, whatever their case.

    >>> print(UnknownNameError("metric", "ckaa", ["cka", "rsa"], where="study.yaml, line 3"))
    unknown metric 'ckaa'; did you mean cka? (study.yaml, line 3)
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, where: str = "", remedy: Remedy | None = None
    ) -> None:
        known = list(known)
        self.kind, self.name, self.candidates = kind, name, nearest(name, known)
        message = f"unknown {kind} {name!r}"
        if self.candidates:
            message += f"; did you mean {' or '.join(self.candidates)}?"
        elif 0 < len(known) <= 12:
            message += f"; known: {', '.join(known)}"
        super().__init__(f"{message} ({where})" if where else message, remedy=remedy)


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
        self.library, self.extra = library, extra
        super().__init__(f"{who} needs {library}: pip install 'repsim-toolkit[{extra}]'")


class SampleMismatchError(RepsimError, ValueError):
    """Two stores do not hold the same samples in the same order; ``paths`` are their files."""

    def __init__(self, *problem: Part, paths: Iterable[Path] = (), remedy: Remedy | None = None) -> None:
        self.paths = tuple(paths)
        super().__init__(*problem, remedy=remedy)


class _FileError(RepsimError, OSError):
    """An error about one file; ``path`` is None where that has no name."""

    def __init__(self, *problem: Part, path: Path | None = None, remedy: Remedy | None = None) -> None:
        self.path = path
        super().__init__(*problem, remedy=remedy)


class StoreError(_FileError):
    """A file that is missing, damaged, incomplete, or no activation store or result."""


class FormatVersionError(StoreError):
    """A file of a version of its format for which this repsim has no reader."""

    def __init__(self, *problem: Part, path: Path, version: Any, remedy: Remedy) -> None:
        self.version = version
        super().__init__(*problem, path=path, remedy=remedy)


class OutputError(_FileError):
    """A place that cannot be written, or that already holds what would be overwritten."""


class OtherSettingsError(OutputError):
    """A store, or what an interrupted run has left of one, that was made with other settings; ``difference``: which."""

    def __init__(self, path: Path, difference: str) -> None:
        self.difference = difference
        super().__init__(
            f"{path} was made with other settings: {difference}",
            path=path,
            remedy=Remedy("use ", Argument("overwrite", True), " to replace it, or another folder"),
        )


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
    """A result or a study of an earlier format, which has no digest, so that damage cannot be detected."""


def reason(error: Exception, lines: int = 1) -> str:
    """Why something failed, for the end of a message: the system's words where there are some, else the first lines.

    >>> reason(FileNotFoundError(2, "...")), reason(KeyError("head"))
    ('No such file or directory', "KeyError 'head'")
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if quoted := re.search(r"errno = \d+, error message = '([^']+)'", str(error)):  # HDF5 has no field for it
        return quoted[1]
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    if " " not in text:  # a KeyError says no more than its key
        text = f"{type(error).__name__} {text}".strip()
    return (text[:200] + " ...") if len(text) > 200 else text
