"""Choice of layers by specs, and the axes of tensors in the families of timm."""

from typing import Any

import pytest
import timm
import torch
from timm.models import cait, hiera, vision_transformer
from torch import nn

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.base import Site
from repsim.extractors.hooks import TracedTensor
from repsim.extractors.layers import Geometry, blocks
from repsim.extractors.timm_models import TimmExtractor


def names(model: str, layers: str) -> list[str]:
    return [layer.name for layer in TimmExtractor(model, weights="random", layers=layers).layers()]


RESNET_BLOCKS = ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("blocks", ["maxpool", *RESNET_BLOCKS, "pre_logits"]),
        ("stages", ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("layer?.*", RESNET_BLOCKS),
        ("layer[12].*", RESNET_BLOCKS[:2]),
        ("*1", ["conv1", "bn1", "act1", "layer1"]),
        ("layer2.**.conv1", ["layer2.0.conv1"]),
        ("**.bn2", [f"{block}.bn2" for block in RESNET_BLOCKS]),
        ("layer4.0.bn2 , maxpool", ["maxpool", "layer4.0.bn2"]),  # in the order of the forward pass
        ("pre_logits,stages", ["act1", "layer1", "layer2", "layer3", "layer4", "pre_logits"]),
    ],
)
def test_specs(spec: str, expected: list[str]) -> None:
    assert sorted(names("test_resnet", spec)) == sorted(expected)
    if spec != "*":
        assert names("test_resnet", spec) == expected


def test_all_is_every_module_that_is_called() -> None:
    extractor = TimmExtractor("test_resnet", weights="random", layers="all", readout="flatten")
    modules = {path for path, _ in extractor.model.named_modules() if path}
    assert {layer.site.module for layer in extractor.layers()} == modules


def test_a_spec_that_names_nothing() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer 'layer5\.\*'; did you mean"):
        names("test_resnet", "maxpool,layer5.*")
    with pytest.raises(InvalidInputError, match="names no layer"):
        names("test_resnet", " , ")


# One of each kind of the families whose blocks are written in ways of their own: what the default layers must be.
FAMILIES = {
    "regnety_002": ("stem", 13, ["pre_logits"]),
    "densenet121": ("features.pool0", 4, ["pre_logits"]),
    "mvitv2_tiny": ("patch_embed", 10, ["pre_logits"]),
    "twins_pcpvt_small": ("patch_embeds.0", 16, ["pre_logits"]),
    "coat_lite_tiny": ("patch_embed1", 8, ["pre_logits"]),
    "cait_xxs24_224": ("patch_embed", 26, ["pre_logits"]),  # 24 blocks, and 2 in which the class token attends
    "nest_tiny": ("patch_embed", 12, ["pre_logits"]),
    "levit_128s": ("stem", 9, ["pre_logits[0]", "pre_logits[1]"]),
    "repvgg_a0": ("stem", 21, ["pre_logits"]),
    "mobilevit_xxs": ("stem", 10, ["pre_logits"]),
    "poolformer_s12": ("stem", 12, ["pre_logits"]),
}


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.slow
def test_default_layers_of_other_families(model: str) -> None:
    stem, blocks, heads = FAMILIES[model]
    extractor = TimmExtractor(model, weights="random")
    names = [layer.name for layer in extractor.layers()]
    assert names[0] == stem
    assert names[-len(heads) :] == heads
    assert len(names) == 1 + blocks + len(heads)
    assert extractor.notes == []
    assert {readout for _, readout in extractor.readouts} == {"mean"}


# Blocks that a name or a list inside could hide: of the model, how many, and the first and the last.
BLOCKS = {
    "convmixer_768_32": (32, "blocks.0", "blocks.31"),  # a plain sequence, a residual in front
    "fasternet_t0": (13, "stages.0.blocks.0", "stages.3.blocks.1"),  # its stages are called Block
    "tiny_vit_5m_224": (12, "stages.0.blocks.0", "stages.3.blocks.1"),  # a stage called ConvLayer
    "lcnetv2_small": (10, "stages.0.0", "stages.3.1"),  # a list of parallel convolutions inside
    "xception41": (13, "blocks.0", "blocks.12"),  # a stack of convolutions inside
    "crossvit_tiny_240": (3, "blocks.0", "blocks.2"),  # one list a scale inside
    "rdnet_tiny": (7, "dense_stages.0.0", "dense_stages.6.2"),  # what the dense blocks add together
    "densenet121": (4, "features.denseblock1", "features.denseblock4"),  # transitions are plain sequences
    "gcvit_xxtiny": (16, "stages.0.global_block", "stages.3.blocks.1"),  # what a global block lists has names
}


@pytest.mark.parametrize("model", BLOCKS)
def test_blocks_are_neither_stages_nor_parts_of_blocks(model: str) -> None:
    if not timm.is_model(model):
        pytest.skip(f"timm {timm.__version__} has no {model}")
    with torch.device("meta"):
        names = blocks(timm.create_model(model))
    assert (len(names), names[0], names[-1]) == BLOCKS[model]


def layer(model: nn.Module, shape: tuple[int, ...], size: tuple[int, int] = (64, 64), module: str = "x") -> Any:
    return Geometry(model, size).describe(TracedTensor(Site(module), module, "Block", shape))


def vit(**options: Any) -> nn.Module:
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, **options}
    model: nn.Module = vision_transformer.VisionTransformer(**small)
    return model


@pytest.mark.parametrize(
    ("options", "tokens", "prefix", "class_token"),
    [
        ({}, 17, 1, True),
        ({"reg_tokens": 4}, 21, 5, True),  # DINOv2 with registers
        ({"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, 20, 4, False),
        ({"class_token": False, "global_pool": "map"}, 16, 0, False),  # SigLIP
    ],
)
def test_prefix_tokens_of_vits(options: dict[str, Any], tokens: int, prefix: int, class_token: bool) -> None:
    described = layer(vit(**options), (tokens, 24))
    assert (described.axes, described.prefix_tokens, described.class_token) == ("NLC", prefix, class_token)
    assert (described.grid, described.width) == ((4, 4), 24)
    assert layer(vit(**options), (16, 24)).prefix_tokens == 0  # a patch embedding, or CaiT's blocks
    assert layer(vit(**options), (16, 24)).class_token is False


def test_blocks_of_cait_have_no_class_token_though_the_model_has() -> None:
    model = cait.Cait(img_size=64, patch_size=16, embed_dim=24, depth=1, num_heads=2)
    assert (layer(model, (16, 24)).prefix_tokens, layer(model, (16, 24)).class_token) == (0, False)
    assert (layer(model, (17, 24)).prefix_tokens, layer(model, (17, 24)).class_token) == (1, True)


def test_tokens_of_hiera_have_a_mean_and_no_grid() -> None:
    """They are unrolled by mask units: a grid of them would mix up places (scripts/validation/sweep_timm noticed)."""
    model = hiera.Hiera(img_size=(64, 64), embed_dim=24, num_heads=1, stages=(1, 1, 1, 1), mask_unit_size=(2, 2))
    described = layer(model, (256, 24))
    assert (described.axes, described.prefix_tokens, described.grid) == ("NLC", 0, None)


@pytest.mark.parametrize(
    ("shape", "axes", "grid"),
    [
        ((24,), "NC", None),
        ((24, 1, 1), "NC", None),
        ((1, 24), "NC", None),
        ((24, 8, 8), "NCHW", (8, 8)),
        ((8, 8, 24), "NHWC", (8, 8)),
        ((8, 8, 8), "NCHW", (8, 8)),
        ((24, 16), "NCL", (4, 4)),
        ((4, 4, 24), "NHWC", (4, 4)),
        ((2, 8, 24), "NHWC", None),  # two blocks of eight tokens
        ((2, 17, 12), "other", None),  # heads, tokens, channels
        ((2, 3, 4, 5), "other", None),
        ((19, 24), "NLC", None),  # three tokens too many to know which they are
    ],
)
def test_axes(shape: tuple[int, ...], axes: str, grid: tuple[int, int] | None) -> None:
    described = layer(vit(), shape)
    assert (described.axes, described.grid) == (axes, grid)


def test_a_wide_picture_has_a_wide_grid() -> None:
    assert layer(vit(), (32, 24), (64, 128)).grid == (4, 8)
    assert layer(vit(), (24, 4, 8), (64, 128)).axes == "NCHW"
    assert layer(vit(), (4, 8, 24), (64, 128)).axes == "NHWC"
