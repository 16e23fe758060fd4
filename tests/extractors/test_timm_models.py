"""Streamed values against plain forward passes with hooks of the test, and against timm's intermediates.

No file here shares code with the extractor: references are forward passes of a model that the test makes by itself.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from repsim.errors import ImageError, InvalidInputError, UnknownNameError
from repsim.extractors import Batch, Stream, open_images
from repsim.extractors.samples.source import ImageSource
from repsim.extractors.timm_models import TimmExtractor

N = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Create four colour pictures of different sizes and shapes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i, size in enumerate([(40, 60), (300, 200), (64, 64), (90, 500)]):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size).save(root / f"{i}.png")
    return open_images(str(root))


def reference_input(extractor: TimmExtractor, images: ImageSource) -> Tensor:
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(extractor.model), is_training=False)
    pictures = [images.load(i) for i in range(len(images))]
    return torch.stack([transform(p) for p in pictures])


def reference(extractor: TimmExtractor, images: ImageSource) -> dict[tuple[str, int, int], Tensor]:
    """Return clones of all outputs by (module, call, item), and the input of classifier i as ("pre_logits", i, 0)."""
    model = timm.create_model(extractor.provenance()["architecture"], pretrained=False)
    model.load_state_dict(extractor.model.state_dict())
    model.eval()
    got: dict[tuple[str, int, int], Tensor] = {}
    calls: dict[str, int] = defaultdict(int)

    def flat(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for item in value:
                yield from flat(item)

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for item, tensor in enumerate(flat(output)):
                got[name, calls[name], item] = tensor.clone()
            calls[name] += 1

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    heads = model.get_classifier()
    for i, head in enumerate(heads if isinstance(heads, tuple) else [heads]):
        head.register_forward_pre_hook(lambda _, args, i=i: got.__setitem__(("pre_logits", i, 0), args[0].clone()))
    with torch.no_grad():
        model(reference_input(extractor, images))
    return got


def stream(extractor: TimmExtractor, images: ImageSource, how: Stream | None = None) -> dict[tuple[str, str], Tensor]:
    batches = list(extractor.stream(images, range(len(images)), how or Stream(batch_size=3)))
    assert [row for batch in batches for row in batch.rows] == list(range(len(images)))
    return {key: torch.cat([batch.values[key] for batch in batches]) for key in extractor.readouts}


def mean(output: Tensor, form: str, prefix: int) -> Tensor:
    """Return the mean over positions, computed in float64 separately for each form."""
    output = output.double()
    if form == "NCHW":
        return output.sum((2, 3)) / (output.shape[2] * output.shape[3])
    if form == "NHWC":
        return output.sum((1, 2)) / (output.shape[1] * output.shape[2])
    if form == "NLC":
        return output[:, prefix:].sum(1) / (output.shape[1] - prefix)
    return output.reshape(len(output), -1)


# model -> its stem and that one's form, the number of blocks and their form, prefix tokens of the blocks.
MODELS = [
    ("test_resnet", "maxpool", "NCHW", 4, "NCHW", 0),
    ("test_vit", "patch_embed", "NHWC", 6, "NLC", 1),
    ("test_vit3", "patch_embed", "NLC", 9, "NLC", 1),  # a register and no class token
    ("test_vit4", "patch_embed", "NHWC", 9, "NLC", 1),
    ("test_convnext", "stem", "NCHW", 9, "NCHW", 0),
    ("test_efficientnet", "bn1", "NCHW", 5, "NCHW", 0),
    ("test_maxvit", "stem", "NCHW", 4, "NCHW", 0),
    ("swin_tiny_patch4_window7_224", "patch_embed", "NHWC", 12, "NHWC", 0),
    ("resnet50", "maxpool", "NCHW", 16, "NCHW", 0),
    ("vit_tiny_patch16_224", "patch_embed", "NLC", 12, "NLC", 1),
    ("convnext_tiny", "stem", "NCHW", 18, "NCHW", 0),
    ("mixer_s16_224", "stem", "NLC", 8, "NLC", 0),
    ("deit_tiny_distilled_patch16_224", "patch_embed", "NLC", 12, "NLC", 2),
]


LARGE = {"swin_tiny_patch4_window7_224", "convnext_tiny", "mixer_s16_224", "resnet50"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case[0], marks=[pytest.mark.slow] if case[0] in LARGE else []) for case in MODELS],
)
def test_every_default_layer_equals_a_plain_forward_pass(
    images: ImageSource, case: tuple[str, str, str, int, str, int]
) -> None:
    model, stem, stem_form, blocks, form, prefix = case
    extractor = TimmExtractor(model, weights="random", seed=3)
    names = [layer.name for layer in extractor.layers()]
    heads = [name for name in names if name.startswith("pre_logits")]
    assert names == [stem, *names[1 : 1 + blocks], *heads]
    assert len(names) == 1 + blocks + (2 if "distilled" in model else 1)
    expected = reference(extractor, images)
    values = stream(extractor, images)
    for name in names:
        if name in heads:
            target = mean(expected["pre_logits", heads.index(name), 0], "NC", 0)
        elif name == stem:
            target = mean(expected[name, 0, 0], stem_form, 0)
        else:
            target = mean(expected[name, 0, 0], form, prefix)
        got = values[name, "mean"]
        assert got.dtype == torch.float32
        assert got.shape == (N, prod(extractor.readouts[name, "mean"][1].shape(extractor.readouts[name, "mean"][0])))
        torch.testing.assert_close(got.double(), target, rtol=1e-5, atol=1e-5)


def test_an_output_is_read_before_it_is_overwritten_in_place(images: ImageSource) -> None:
    """An in-place ReLU follows bn1 of a ResNet: read too late, bn1 would have no negative values."""
    extractor = TimmExtractor("test_resnet", weights="random", layers="**.bn1,**.conv1.*", readout="flatten")
    expected = reference(extractor, images)
    values = stream(extractor, images)
    assert len(values) > 4
    for (name, _), got in values.items():
        torch.testing.assert_close(got, expected[name, 0, 0].flatten(1), rtol=1e-5, atol=1e-5)
    assert (values["bn1", "flatten"] < 0).float().mean() > 0.2


@pytest.mark.slow
def test_all_layers_of_a_model_that_returns_lists_and_repeats_modules(images: ImageSource) -> None:
    """CrossViT: blocks return two tensors, and one dropout module serves both branches."""
    extractor = TimmExtractor(
        "crossvit_tiny_240", weights="random", layers="pos_drop,blocks.0,norm.*", readout="mean,cls"
    )
    assert "is called several times" in extractor.notes[-1]
    expected = reference(extractor, images)
    values = stream(extractor, images)
    sites = {"pos_drop#1": ("pos_drop", 0, 0), "pos_drop#2": ("pos_drop", 1, 0)}
    sites |= {"blocks.0[0]": ("blocks.0", 0, 0), "blocks.0[1]": ("blocks.0", 0, 1)}
    sites |= {"norm.0": ("norm.0", 0, 0), "norm.1": ("norm.1", 0, 0)}
    assert {name for name, _ in values} == set(sites)
    for name, site in sites.items():
        target = mean(expected[site], "NLC", 1)
        torch.testing.assert_close(values[name, "mean"].double(), target, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values[name, "cls"], expected[site][:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_tokens_equal_timms_own_intermediates(images: ImageSource) -> None:
    """Two prefix tokens, a class token and a distillation token: mean has neither of them, cls has the first."""
    extractor = TimmExtractor(
        "deit_tiny_distilled_patch16_224", weights="random", layers="stages", readout="mean,cls,max,grid:2"
    )
    with torch.no_grad():
        intermediates: Any = extractor.model.forward_intermediates(  # type: ignore[operator]
            reference_input(extractor, images), return_prefix_tokens=True, intermediates_only=True, output_fmt="NCHW"
        )
    values = stream(extractor, images)
    assert len(intermediates) == len(extractor.layers()) == 12
    for layer, (patches, prefix) in zip(extractor.layers(), intermediates, strict=True):
        assert patches.shape[2:] == layer.grid == (14, 14)
        quarters = [patches[:, :, h : h + 7, w : w + 7].mean((2, 3)) for h in (0, 7) for w in (0, 7)]
        for readout, expected in {
            "mean": patches.mean((2, 3)),
            "cls": prefix[:, 0],
            "max": patches.flatten(2).max(2).values,
            "grid:2": torch.stack(quarters, 2).flatten(1),
        }.items():
            torch.testing.assert_close(values[layer.name, readout], expected, rtol=1e-5, atol=1e-5)


def test_stages_equal_timms_own_intermediates(images: ImageSource) -> None:
    extractor = TimmExtractor("test_resnet", weights="random", layers="stages", readout="flatten,max")
    with torch.no_grad():
        intermediates: Any = extractor.model.forward_intermediates(  # type: ignore[operator]
            reference_input(extractor, images), intermediates_only=True
        )
    values = stream(extractor, images)
    assert [layer.name for layer in extractor.layers()] == ["act1", "layer1", "layer2", "layer3", "layer4"]
    for layer, maps in zip(extractor.layers(), intermediates, strict=True):
        torch.testing.assert_close(values[layer.name, "flatten"], maps.flatten(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values[layer.name, "max"], maps.amax((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_batches_workers_and_order_do_not_change_the_numbers(images: ImageSource) -> None:
    extractor = TimmExtractor("test_vit", weights="random", layers="blocks.5")
    key = ("blocks.5", "mean")
    expected = stream(extractor, images, Stream(batch_size=4))[key]
    for how in (Stream(batch_size=1), Stream(batch_size=3, workers=2)):
        torch.testing.assert_close(stream(extractor, images, how)[key], expected, rtol=1e-5, atol=1e-5)
    batch: Batch
    (batch,) = extractor.stream(images, [2, 0], Stream())
    assert batch.rows == (2, 0)
    torch.testing.assert_close(batch.values[key], expected[[2, 0]], rtol=1e-5, atol=1e-5)


def test_amp_differs_by_what_bfloat16_rounds_and_no_more(images: ImageSource) -> None:
    extractor = TimmExtractor("test_resnet", weights="random")
    exact, half = stream(extractor, images), stream(extractor, images, Stream(amp=True))
    for key, value in exact.items():
        assert half[key].dtype == torch.float32
        error = (half[key] - value).norm() / value.norm()
        assert 1e-5 < error < 3e-2, key


def test_the_callers_code_between_batches_is_not_inference(images: ImageSource) -> None:
    for batch in TimmExtractor("test_resnet", weights="random").stream(images, range(2), Stream(batch_size=1)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not any(value.is_inference() for value in batch.values.values())


def test_no_hook_is_left_behind(images: ImageSource) -> None:
    extractor = TimmExtractor("test_resnet", weights="random")
    running = extractor.stream(images, range(3), Stream(batch_size=1))
    next(running)
    hooked = [m for m in extractor.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert len(hooked) == 1 + len(extractor.layers())
    running.close()  # type: ignore[attr-defined]
    assert not [m for m in extractor.model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_unreadable_picture_stops_the_stream_with_its_name(pictures: Any, workers: int) -> None:
    root = pictures(4)
    (root / "photo02.png").write_bytes(b"no picture")
    extractor = TimmExtractor("test_resnet", weights="random")
    running = extractor.stream(open_images(str(root)), range(4), Stream(batch_size=2, workers=workers))
    assert next(running).rows == (0, 1)
    with pytest.raises(ImageError, match=r"^cannot read the picture photo02.png: not a picture .* skip_bad=True$"):
        next(running)


@pytest.mark.slow
def test_each_model_has_its_own_preprocessing(images: ImageSource) -> None:
    extractors = [TimmExtractor(name, weights="random") for name in ("test_vit", "mixer_s32_224")]
    sides = [extractor.provenance()["preprocessing"]["input_size"] for extractor in extractors]
    assert sides == [[3, 160, 160], [3, 224, 224]]
    assert all("Normalize" in extractor.provenance()["transform"] for extractor in extractors)


@pytest.mark.slow
def test_names_and_provenance(tmp_path: Any) -> None:
    first, again, other = (TimmExtractor("test_vit2", weights="random", seed=seed) for seed in (0, 0, 1))
    assert (first.name, other.name) == ("test_vit2+random-seed0", "test_vit2+random-seed1")
    record = first.provenance()
    assert json.loads(json.dumps(record)) == record
    assert record == again.provenance()
    assert record["weights_sha256"] != other.provenance()["weights_sha256"]
    file = tmp_path / "epoch.3.pth"
    torch.save(other.model.state_dict(), file)
    loaded = TimmExtractor("test_vit2", weights=str(file))
    assert loaded.name == "test_vit2+epoch.3"
    assert loaded.provenance()["weights_sha256"] == other.provenance()["weights_sha256"]
    assert str(tmp_path) not in json.dumps(loaded.provenance())


@pytest.mark.slow
def test_impossible_requests_are_refused_before_the_first_picture() -> None:
    with pytest.raises(InvalidInputError, match=r"^readout cls of layer 'maxpool': there is no class token"):
        TimmExtractor("test_resnet", weights="random", readout="cls")
    with pytest.raises(InvalidInputError, match="no class token"):  # a register is not a class token
        TimmExtractor("test_vit3", weights="random", layers="blocks.*", readout="cls")
    with pytest.raises(UnknownNameError, match=r"unknown layer 'layer3\.7'; did you mean layer3\.0"):
        TimmExtractor("test_resnet", weights="random", layers="layer3.7")
    with pytest.raises(
        InvalidInputError, match=r"^layer .blocks.0.attn.attn_drop. is never called .*nothing can be read there$"
    ):
        TimmExtractor("test_vit", weights="random", layers="blocks.0.attn.attn_drop")
    note = TimmExtractor("test_vit", weights="random", readout="mean,cls").notes
    assert note == ["readout cls is left out for layers that do not have it: patch_embed"]
