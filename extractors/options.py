"""Options of a model: the weights in a file, how its pictures and texts are prepared, and its arguments."""

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypedDict, get_args

from repsim.errors import Argument, InvalidArgumentError, InvalidInputError, Part, UnknownNameError

Match = Literal["names", "order"]
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")


class Choices(TypedDict, total=False):
    """Keyword arguments of `ModelOptions.read`, and of every function that makes an extractor."""

    weights_key: str | None
    weights_prefix: str | None
    weights_match: str
    img_size: int | str | Sequence[int] | None
    mean: float | str | Sequence[float] | None
    std: float | str | Sequence[float] | None
    interpolation: str | None
    crop_pct: float | str | None
    max_length: int | str | None
    model_kwargs: Mapping[str, Any] | Iterable[str] | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of building a model and preparing its pictures that differ from the defaults of its name.

    `read` converts the values of the command line, of a study file or of Python. None means the default of the weights,
    or else of the architecture.

    Examples
    --------
    >>> options = ModelOptions.read(img_size=96, mean="0.2", model_kwargs=["global_pool=avg"])
    >>> options.img_size, options.mean, options.model_kwargs
    ((96, 96), (0.2,), {'global_pool': 'avg'})
    """

    weights_key: str | None = None
    """Key of the set of weights in a checkpoint; dots separate the keys of nested mappings."""
    weights_prefix: str | None = None
    """Only tensors whose names begin with this prefix are used. It is removed from their names."""
    weights_match: Match = "names"
    """Whether tensors of a file are matched with the network by name or by order."""
    img_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    mean: tuple[float, ...] | None = None
    """Mean for the normalisation of pixels in [0, 1]: one number for all channels, or one per channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation for the normalisation, as ``mean``."""
    interpolation: str | None = None
    crop_pct: float | None = None
    """Share of the resized picture that the centre crop keeps, in (0, 1]."""
    max_length: int | None = None
    """Largest number of tokens of a text, special tokens included; longer texts are cut at their end."""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the function that builds the model."""

    @classmethod
    def read(
        cls,
        *,
        weights_key: str | None = None,
        weights_prefix: str | None = None,
        weights_match: str = "names",
        img_size: int | str | Sequence[int] | None = None,
        mean: float | str | Sequence[float] | None = None,
        std: float | str | Sequence[float] | None = None,
        interpolation: str | None = None,
        crop_pct: float | str | None = None,
        max_length: int | str | None = None,
        model_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    ) -> Self:
        """Return the options that the values, or their texts, describe.

        Parameters
        ----------
        weights_key, weights_prefix : str, optional
            The set of weights in a file, and the prefix of its tensor names.
        weights_match : {"names", "order"}
            Match tensors of a file with the network by name or by order.
        img_size : int, str or pair of int, optional
            Size in pixels: a number, (height, width), or ``HxW``.
        mean, std : float, str or sequence of float, optional
            A number, three numbers, or a text of them separated by commas.
        interpolation : str, optional
            Name of the interpolation in timm: ``bicubic``, ``bilinear``, ...
        crop_pct : float or str, optional
            A number in (0, 1].
        max_length : int or str, optional
            A number of tokens of at least 1.
        model_kwargs : mapping or iterable of str, optional
            A mapping, or texts ``KEY=VALUE`` whose values are Python literals or words.

        Raises
        ------
        InvalidInputError, UnknownNameError
            A value is not one of these.
        """
        if weights_match not in get_args(Match):
            raise UnknownNameError("way to match weights", str(weights_match), get_args(Match))
        if interpolation is not None and interpolation not in INTERPOLATIONS:
            raise UnknownNameError("interpolation", str(interpolation), INTERPOLATIONS)
        share = None if crop_pct is None else _numbers("crop_pct", crop_pct)
        if share is not None and not (len(share) == 1 and 0 < share[0] <= 1):
            raise InvalidArgumentError("crop_pct", "one number above 0 and at most 1", crop_pct)
        chosen = None if std is None else _numbers("std", std)
        if chosen and min(chosen) <= 0:
            raise InvalidArgumentError("std", "above 0, as it divides", std)
        return cls(
            weights_key=weights_key,
            weights_prefix=weights_prefix,
            weights_match="order" if weights_match == "order" else "names",
            img_size=None if img_size is None else read_size(img_size),
            mean=None if mean is None else _numbers("mean", mean),
            std=chosen,
            interpolation=interpolation,
            crop_pct=None if share is None else share[0],
            max_length=None if max_length is None else _count("max_length", max_length),
            model_kwargs=read_kwargs(model_kwargs or {}),
        )

    @property
    def file_options(self) -> list[Part]:
        """Names of the options that were set and apply to a file of weights only, with commas between, for messages."""
        return self._set("weights_key", "weights_prefix", "weights_match")

    @property
    def chosen(self) -> list[Part]:
        """Names of all options that were set, with commas between, for messages."""
        return self._set(*(option.name for option in fields(self)))

    def _set(self, *names: str) -> list[Part]:
        default = ModelOptions()
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        parts: list[Part] = [part for name in changed for part in (", ", Argument(name))]
        return parts[1:]

    def check_weights(self, weights: str) -> None:
        """Raise `InvalidInputError` if an option of a weights file is set and ``weights`` is not a file."""
        if weights in {"pretrained", "random"} and self.file_options:
            raise InvalidInputError(
                *self.file_options,
                ": for a file of weights only (",
                Argument("weights", metavar="FILE"),
                "), not for ",
                Argument("weights", weights),
            )


def read_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """Return the height and width of a picture from a number, a pair, or a text.

    >>> read_size(96), read_size("96x128"), read_size((96, 128))
    ((96, 96), (96, 128), (96, 128))
    """
    parts: list[Any]
    if isinstance(size, str):
        written = re.fullmatch(r"(\d+)(?:x(\d+))?", size.strip())
        parts = [int(part) for part in written.groups() if part] if written else []
    else:
        parts = list(size) if isinstance(size, Sequence) else [size]
    if len(parts) not in {1, 2} or any(isinstance(p, bool) or not isinstance(p, int) or p < 1 for p in parts):
        raise InvalidArgumentError("img_size", "a number of pixels, or HEIGHTxWIDTH (224, 256x320)", size)
    return parts[0], parts[-1]


def _count(name: str, value: int | str) -> int:
    """Return a whole number of at least 1, from a number or its text."""
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise InvalidArgumentError(name, "a whole number of at least 1", value)
    return int(text)


def _numbers(name: str, value: float | str | Sequence[float]) -> tuple[float, ...]:
    """Return one number or three, from numbers or from a text with commas."""
    try:
        if isinstance(value, str):
            numbers = tuple(float(part) for part in value.split(","))
        else:
            numbers = tuple(float(part) for part in value) if isinstance(value, Sequence) else (float(value),)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in {1, 3} or not all(math.isfinite(number) for number in numbers):
        raise InvalidArgumentError(name, "one number, or three separated by commas (0.5, or 0.48,0.46,0.41)", value)
    return numbers


def read_kwargs(texts: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Return the arguments of the function that builds a model, from a mapping or from texts ``KEY=VALUE``.

    >>> read_kwargs(["img_size=(96, 96)", "global_pool=avg", "class_token=False"])
    {'img_size': (96, 96), 'global_pool': 'avg', 'class_token': False}
    """
    if isinstance(texts, Mapping):
        return dict(texts)
    values: dict[str, Any] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise InvalidArgumentError("model_kwargs", "KEY=VALUE (global_pool=avg, reg_tokens=4)", text)
        if key in values:
            raise InvalidInputError(
                Argument("model_kwargs"), f": {key} is given twice, as {values[key]!r} and {value!r}"
            )
        try:
            values[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a word without quotes
            values[key] = value.strip()
    return values
