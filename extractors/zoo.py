"""Embedded zoo: six small trained networks that come with the package, so that examples run without a network.

There are two architectures, a narrow ResNet and a small ViT. Each was trained from three seeds on the even samples of
scikit-learn's digits by ``scripts/maintenance/train_zoo.py``. With them one can test within seconds, for example,
whether two seeds of one architecture represent the digits alike, and how much of the similarity exists before training.

Importing this module registers them with timm: ``timm.create_model("digits_vit.seed1", pretrained=True)``.
"""

from importlib.resources import files
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

SEEDS = (0, 1, 2)
ZOO: tuple[str, ...] = tuple(f"{net}.seed{seed}" for net in ("digits_resnet", "digits_vit") for seed in SEEDS)
"""Names of the trained networks for ``timm.create_model(name, pretrained=True)``."""

# a list, as timm appends the names of the models that it registers
__all__ = ["SEEDS", "ZOO", "digits_resnet", "digits_vit", "weights_file"]


def weights_file(name: str) -> str:
    """Return the path of the weights of one network of `ZOO` in the installed package.

    >>> weights_file("digits_vit.seed1").endswith("digits_vit.seed1.safetensors")
    True
    """
    return str(files("repsim") / "zoo" / f"{name}.safetensors")


def _cfg(name: str) -> dict[str, Any]:
    """Return timm's configuration of one set of weights: their file, and the preprocessing of their training."""
    vit = name.startswith("digits_vit")
    return {
        "file": weights_file(name),
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": vit,  # timm then passes img_size, which a ResNet does not take
        "pool_size": None if vit else (4, 4),
        "interpolation": "bicubic",
        "crop_pct": 1.0,  # the digits fill their 8 x 8 pixels: there is no border
        "mean": (0.31, 0.31, 0.31),  # of the training samples after resizing
        "std": (0.35, 0.35, 0.35),
        "first_conv": "patch_embed.proj" if vit else "conv1",
        "classifier": "head" if vit else "fc",
        "license": "cc-by-4.0",  # licence of the digits; see repsim/zoo/README.md
        "label_names": tuple("0123456789"),
        "origin_url": "https://archive.ics.uci.edu/dataset/80",
    }


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in ZOO})  # the name where register_model looks


def digits_resnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a narrow ResNet-18, with 24 to 64 channels instead of 64 to 512.

    Parameters
    ----------
    pretrained
        Load trained weights: those of the tag, or ``seed0``.
    **kwargs
        As for any timm ResNet.

    Returns
    -------
    nn.Module
        The network.
    """
    # The feature maps have 8, 4, 4 and 4 pixels. With the usual strides the last stage would have a single pixel, for
    # which all spatial readouts are the same.
    args: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (24, 36, 48, 64),
        "output_stride": 8,
    }
    args |= {"stem_width": 24, **kwargs}
    model: nn.Module = build_model_with_cfg(ResNet, "digits_resnet", pretrained, **args)
    return model


def digits_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a ViT of six blocks with a class token and 8 x 8 patches of 4 pixels, one per pixel of the digit.

    Parameters
    ----------
    pretrained
        Load trained weights: those of the tag, or ``seed0``.
    **kwargs
        As for any timm VisionTransformer.

    Returns
    -------
    nn.Module
        The network.
    """
    args: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
    # timm's default (standard deviation 0.02) is for widths of several hundred: at 64, blocks would start as identities
    args |= {"mlp_ratio": 2.0, "weight_init": "jax", **kwargs}
    model: nn.Module = build_model_with_cfg(
        VisionTransformer,
        "digits_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # resamples the position embedding for another img_size
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **args,
    )
    return model


for _entry in (digits_resnet, digits_vit):
    if not is_model(_entry.__name__):  # when this module is reloaded, timm would warn
        register_model(_entry)
