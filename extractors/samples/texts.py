"""Texts in a fixed order: the lines of a file, a list, or a column of a table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repsim.errors import SampleError, reason
from repsim.extractors.samples.source import SampleSource


class Places:
    """Names of samples in messages, made when they are needed.

    Parameters
    ----------
    prefix : str
        Beginning of the names.
    numbers : sequence of int, optional
        Numbers of the samples, such as those of lines; by default their positions.

    Examples
    --------
    >>> Places("captions.csv, line ", [2, 5])(1)
    'captions.csv, line 5'
    """

    def __init__(self, prefix: str, numbers: Sequence[int] | None = None) -> None:
        self._prefix, self._numbers = prefix, numbers

    def __call__(self, row: int) -> str:
        """Return the name of one sample."""
        return f"{self._prefix}{row if self._numbers is None else self._numbers[row]}"


class Texts(SampleSource):
    """Texts in memory.

    Parameters
    ----------
    name : str
        Name of the data.
    texts : sequence of str
        The texts. One that is empty, or no text, raises an error when it is read.
    ids : sequence of str
        Ids of the texts.
    places : callable, optional
        Function from a position to the name of the text in messages, such as ``captions.csv, line 5``; by default its
        id.

    Examples
    --------
    >>> texts = Texts("captions", ["a cat", "a dog"], ["0", "1"])
    >>> len(texts), texts.noun, texts.load(1)
    (2, 'texts', 'a dog')
    """

    modality = "text"
    quick = True

    def __init__(
        self, name: str, texts: Sequence[Any], ids: Sequence[str], places: Callable[[int], str] | None = None
    ) -> None:
        self.name, self.texts, self.ids, self._places = name, texts, ids, places

    def load(self, index: int) -> str:
        """Return one text."""
        return check_text(self.texts[index], self._places(index) if self._places else self.ids[index])

    def sizes(self) -> Sequence[int]:
        """Return the numbers of bytes of the texts in UTF-8."""
        return [len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0 for text in self.texts]


def check_text(text: Any, place: str) -> str:
    """Return a text that a model can read.

    Raises
    ------
    SampleError
        It is missing, no text, empty, or holds half a surrogate pair, which no file in UTF-8 can hold.
    """
    if text is None:
        raise SampleError(f"{place} has no text")
    if not isinstance(text, str):
        raise SampleError(f"{place} has no text but a {type(text).__name__}: {text!r:.40}")
    if not text.strip():
        raise SampleError(f"the text of {place} is empty")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise SampleError(f"the text of {place} holds half a surrogate pair, which is no character")
    return text


def decode_text(raw: bytes, name: str) -> str:
    """Return bytes in UTF-8, with or without a byte order mark, as a text.

    Raises
    ------
    SampleError
        The bytes are no UTF-8; the message contains the line.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SampleError(
            f"{name}, line {line}: not text in UTF-8 (byte {raw[error.start]:#04x}); save the file in this encoding"
        ) from None


def read_text(path: Path) -> str:
    """Return the contents of a file in UTF-8.

    Raises
    ------
    SampleError
        The file cannot be read, or is no UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SampleError(f"cannot read {path.name}: {reason(error)}") from None
    return decode_text(raw, path.name)


def numbered(numbers: Sequence[int]) -> list[str]:
    """Return numbers as ids: with leading zeros, so that their order is that of the texts.

    >>> numbered([1, 2, 10])
    ['01', '02', '10']
    """
    width = len(str(max(numbers, default=0)))
    return [f"{number:0{width}d}" for number in numbers]


def open_lines(path: Path) -> Texts:
    """Open a file with one text a line. Empty lines are left out and counted; the id of a text is its line number.

    Raises
    ------
    SampleError
        The file cannot be read, is no UTF-8, or has no text.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    if lines and not lines[-1]:  # the end of the last line
        lines.pop()
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    if not numbers:
        raise SampleError(f"no text in {path.name}: it has no line that is not empty")
    texts = [lines[number - 1] for number in numbers]
    source = Texts(path.name, texts, numbered(numbers), Places(f"{path.name}, line ", numbers))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            source.left_out.add("empty lines", f"line {number}")
    source.record = {"ids_from": "line numbers"}
    return source


def open_list(texts: Sequence[Any]) -> Texts:
    """Open a list of texts; the id of a text is its position.

    Raises
    ------
    SampleError
        The list is empty, or an element is no text.
    """
    if not texts:
        raise SampleError("the list of texts is empty")
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise SampleError(
                f"a list of samples holds texts, but element {k} is a {type(text).__name__}; give an array, a tensor, "
                "a torch Dataset or a DataLoader"
            )
    source = Texts("texts", list(texts), numbered(range(len(texts))), Places("text "))
    source.record = {"ids_from": "positions"}
    return source
