"""Convert decoded pictures to the input of a model, with the transform of timm, torchvision or the user."""

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
from repsim.extractors.preparation import Preparation

Transform = Callable[[Image.Image], Tensor]
"""Function from a PIL picture in RGB to a tensor (3, H, W), or (1, H, W) for a network that takes grey pictures."""

_SIZES = ((320, 256), (256, 320), (288, 288))
"""Width and height of the pictures with which a transform is tested."""


@dataclass(frozen=True)
class Preprocessing:
    """Preparation of a picture as the input of a model."""

    transform: Transform
    key: str
    """Models with equal keys compute equal inputs from a picture, and can share them."""
    record: Mapping[str, Any]
    """Entries for the provenance, as JSON values."""
    channels: int = 3
    notes: tuple[str, ...] = ()
    """Messages for the user about choices that were made."""


def timm_preprocessing(pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
    """Return timm's preprocessing for evaluation, from a model's ``pretrained_cfg``; the model itself is not needed.

    >>> timm_preprocessing({"input_size": (3, 64, 64), "crop_pct": 1.0}).record["preprocessing"]["interpolation"]
    'bicubic'
    """
    config = resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    channels = config["input_size"][0]
    if channels not in {1, 3}:
        raise InvalidInputError(
            f"this model takes pictures of {channels} channels; repsim supports 3 channels (RGB) and 1 channel (grey)"
        )
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    transform: Transform = create_transform(**config, is_training=False)
    if channels == 1:
        transform = Compose([Grayscale(), transform])
    text = _text(transform)
    key = f"timm {json.dumps(plain, sort_keys=True)} {text}"
    return Preprocessing(transform, key, {"preprocessing": plain, "transform": text}, channels)


def preset(transform: Transform) -> Preprocessing:
    """Return the preprocessing of a library's transform, whose text describes it completely."""
    text = _text(transform)
    return Preprocessing(transform, text, {"transform": text})


def choose_preprocessing(model: nn.Module, transform: Transform | Preprocessing | None) -> Preprocessing:
    """Return the preprocessing of the user's transform, or else timm's preprocessing of a timm model.

    The key of a user's transform contains its identity, as two transforms with the same text may differ.

    Raises
    ------
    InvalidInputError
        There is no transform, and the model is not a timm model.
    """
    if isinstance(transform, Preprocessing):
        return transform
    if transform is not None:
        text = _text(transform)
        return Preprocessing(transform, f"{text} {id(transform):#x}", {"transform": text})
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        raise InvalidInputError(
            f"a {type(model).__name__} has no preprocessing of its own: pass transform=, "
            "a function from a PIL picture to a tensor (3, H, W)"
        )
    overlay, notes = _actual_input(model, config)
    return replace(timm_preprocessing({**config, **overlay}), notes=notes)


def prepare_pictures(model: nn.Module, transform: Transform | Preprocessing | None) -> Preparation:
    """Return the preparation of pictures for a network; its example is three pictures of noise.

    Raises
    ------
    InvalidInputError
        There is no transform and the model is not a timm model, or the transform fails or returns no picture.
    """
    chosen = choose_preprocessing(model, transform)
    return Preparation(
        transform=chosen.transform,
        collate=torch.stack,
        key=chosen.key,
        record=chosen.record,
        notes=chosen.notes,
        examples=(example_batch(chosen.transform, chosen.channels),),
        modality="image",
    )


def _actual_input(model: nn.Module, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the input size and channels of a timm network where its ``pretrained_cfg`` is wrong, and notes."""
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
    """Return three prepared pictures of noise, a tensor (3, ``channels``, H, W).

    The pictures differ in size, to test that the transform makes tensors of equal size.

    Raises
    ------
    InvalidInputError
        The transform fails, does not return a tensor (``channels``, H, W), or returns tensors of different H and W.
    """
    random = np.random.default_rng(0)
    examples: list[Tensor] = []
    for width, height in _SIZES:
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            pixels = transform(picture)
        except Exception as error:  # the code of the user may raise any exception
            raise InvalidInputError(
                f"transform fails on an RGB picture of {width} x {height} pixels: {reason(error)}"
            ) from error
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != channels:
            got = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
            raise InvalidInputError(f"transform must return a tensor ({channels}, H, W) for a picture, got {got}")
        examples.append(pixels)
    sizes = [tuple(pixels.shape[1:]) for pixels in examples]
    if len(set(sizes)) > 1:
        raise InvalidInputError(
            f"transform returns tensors of different sizes ({', '.join(map(str, sizes))} for pictures of "
            f"{', '.join(f'{w} x {h}' for w, h in _SIZES)}); end it with a resize or a crop to a fixed (H, W)"
        )
    return torch.stack(examples)


def _text(transform: Transform) -> str:
    """Return the text of a transform on one line, without memory addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(transform).split()))
