"""From a decoded picture to a model's input: timm's own way, torchvision's own, or one that the user gives."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms import Compose, Grayscale

from repsim.errors import InvalidInputError, reason

Transform = Callable[[Image.Image], Tensor]
"""A PIL picture, RGB, to (3, H, W); (1, H, W) for a network that takes grey ones."""

_SIZES = ((320, 256), (256, 320), (288, 288))
"""Of the pictures that a transform is tried on: wide, high and square."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before a model sees it."""

    transform: Transform
    key: str
    """Equal keys: equal pixels, so that models may share them."""
    record: Mapping[str, Any]
    """For the provenance, as JSON values."""
    channels: int = 3
    notes: tuple[str, ...] = ()
    """What was chosen, for people."""


def timm_preprocessing(pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
    """What timm does for evaluation, from a model's ``pretrained_cfg``: without weights, and without the model.

    >>> timm_preprocessing({"input_size": (3, 64, 64), "crop_pct": 1.0}).record["preprocessing"]["interpolation"]
    'bicubic'
    """
    config = resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    channels = config["input_size"][0]
    if channels not in {1, 3}:
        raise InvalidInputError(f"this model takes pictures of {channels} channels; repsim feeds RGB, or grey for 1")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    transform: Transform = create_transform(**config, is_training=False)
    if channels == 1:
        transform = Compose([Grayscale(), transform])
    text = _text(transform)
    key = f"timm {json.dumps(plain, sort_keys=True)} {text}"
    return Preprocessing(transform, key, {"preprocessing": plain, "transform": text}, channels)


def preset(transform: Transform) -> Preprocessing:
    """A library's transform, whose text says all that it does."""
    text = _text(transform)
    return Preprocessing(transform, text, {"transform": text})


def choose_preprocessing(model: nn.Module, transform: Transform | Preprocessing | None) -> Preprocessing:
    """The given transform; without one, timm's own for a model of timm's.

    A transform of the user's is equal to itself only: its text need not say all that it does.
    """
    if isinstance(transform, Preprocessing):
        return transform
    if transform is not None:
        text = _text(transform)
        return Preprocessing(transform, f"{text} {id(transform):#x}", {"transform": text})
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        raise InvalidInputError(
            f"a {type(model).__name__} does not say how its pictures are prepared: pass transform=, "
            "which makes (3, H, W) of a PIL picture"
        )
    overlay, notes = _as_built(model, config)
    return replace(timm_preprocessing({**config, **overlay}), notes=notes)


def _as_built(model: nn.Module, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a network of timm's was built for, where that is not what its ``pretrained_cfg`` says: size and channels."""
    channels, *usual = config.get("input_size") or (3, 224, 224)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    built = tuple(size) if size is not None and config.get("fixed_input_size") else tuple(usual)
    own = getattr(model, "in_chans", channels)
    if (own, *built) == (channels, *usual):
        return {}, ()
    overlay: dict[str, Any] = {"input_size": (own, *built)}
    if own == 1:
        overlay |= {key: (sum(value) / len(value),) for key in ("mean", "std") if (value := config.get(key))}
    return overlay, (f"pictures of {own} x {built[0]} x {built[1]}, for which the network was built",)


def example_batch(transform: Transform, channels: int = 3) -> Tensor:
    """Three pictures of noise, prepared: (3, ``channels``, H, W), whatever the size of the pictures.

    Raises
    ------
    InvalidInputError
        Where the transform fails on a picture, does not give (``channels``, H, W), or gives another H and W for another
        picture.
    """
    random = np.random.default_rng(0)
    made: list[Tensor] = []
    for width, height in _SIZES:
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            pixels = transform(picture)
        except Exception as error:  # the code is the user's
            raise InvalidInputError(
                f"transform fails on an RGB picture of {width} x {height} pixels: {reason(error)}"
            ) from error
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != channels:
            came = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
            raise InvalidInputError(f"transform must make a tensor ({channels}, H, W) of a picture, got {came}")
        made.append(pixels)
    sizes = [tuple(pixels.shape[1:]) for pixels in made]
    if len(set(sizes)) > 1:
        raise InvalidInputError(
            f"transform gives pictures of unequal size ({', '.join(map(str, sizes))} for pictures of "
            f"{', '.join(f'{w} x {h}' for w, h in _SIZES)}); end it with a resize or a crop to one (H, W)"
        )
    return torch.stack(made)


def _text(transform: Transform) -> str:
    """On one line, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(transform).split()))
