"""Options of a model: its picture size, normalisation, arguments, and which tensors of a file are its weights."""

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
    """What `ModelOptions.read` takes, and with it every function that makes an extractor."""

    weights_key: str | None
    weights_prefix: str | None
    weights_match: str
    img_size: int | str | Sequence[int] | None
    mean: float | str | Sequence[float] | None
    std: float | str | Sequence[float] | None
    interpolation: str | None
    crop_pct: float | str | None
    model_kwargs: Mapping[str, Any] | Iterable[str] | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is built and how its pictures are prepared, where that is not what its name says.

    `read` makes one of what a user writes, on the command line, in a study file or in Python. None means: as the
    weights say, and else as the architecture says.

    Examples
    --------
    >>> options = ModelOptions.read(img_size=96, mean="0.2", model_kwargs=["global_pool=avg"])
    >>> options.img_size, options.mean, options.model_kwargs
    ((96, 96), (0.2,), {'global_pool': 'avg'})
    """

    weights_key: str | None = None
    """Key of the set of weights inside a checkpoint; dots lead into nested ones."""
    weights_prefix: str | None = None
    """Only tensors whose names begin so are taken, without it."""
    weights_match: Match = "names"
    img_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    mean: tuple[float, ...] | None = None
    """Of the pixels in [0, 1], one for all channels or one a channel."""
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    """The centre crop's share of the resized picture."""
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
        model_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    ) -> Self:
        """Read options from values, or from their texts.

        Parameters
        ----------
        weights_key, weights_prefix, weights_match
            Of a file: which of its sets of weights, which part of it, and ``names`` or ``order``.
        img_size
            Pixels: a number, (height, width), or ``HxW``.
        mean, std
            A number, three numbers, or a text of them with commas between.
        interpolation, crop_pct
            As timm names them: ``bicubic``, ``bilinear``, ...; a share between 0 and 1.
        model_kwargs
            A mapping, or texts ``KEY=VALUE``, whose values are Python literals or words.

        Raises
        ------
        InvalidInputError, UnknownNameError
            For a value that is none of these.
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
            model_kwargs=read_kwargs(model_kwargs or {}),
        )

    @property
    def of_file(self) -> list[Part]:
        """Names of the options that were set and concern a file of weights only, with commas between, for a message."""
        return self._set("weights_key", "weights_prefix", "weights_match")

    @property
    def chosen(self) -> list[Part]:
        """Names of all options that were set, with commas between, for a message."""
        return self._set(*(option.name for option in fields(self)))

    def _set(self, *names: str) -> list[Part]:
        default = ModelOptions()
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        parts: list[Part] = [part for name in changed for part in (", ", Argument(name))]
        return parts[1:]

    def check_weights(self, weights: str) -> None:
        """Raise `InvalidInputError` where an option of a file comes without a file."""
        if weights in {"pretrained", "random"} and self.of_file:
            raise InvalidInputError(
                *self.of_file,
                ": for a file of weights only (",
                Argument("weights", metavar="FILE"),
                "), not for ",
                Argument("weights", weights),
            )


def read_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """Read a picture's height and width.

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


def _numbers(name: str, value: float | str | Sequence[float]) -> tuple[float, ...]:
    """One number, or three."""
    try:
        if isinstance(value, str):
            numbers = tuple(float(part) for part in value.split(","))
        else:
            numbers = tuple(float(part) for part in value) if isinstance(value, Sequence) else (float(value),)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in {1, 3} or not all(math.isfinite(number) for number in numbers):
        raise InvalidArgumentError(name, "one number, or three with commas between (0.5, or 0.48,0.46,0.41)", value)
    return numbers


def read_kwargs(texts: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Read arguments of the function that builds a model.

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
