"""Checkpoints of training programs: activations equal those of the saved network, or an error explains why not.

Every file is written by torch.save, and held against a forward pass of the saved network that knows nothing of repsim.
"""

import argparse
import enum
import gzip
import pathlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from repsim.errors import InvalidInputError, RepsimError, UnknownNameError, WeightsError
from repsim.extractors import Stream, open_images
from repsim.extractors.factory import make_extractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.weights import load_model

ARGS = argparse.Namespace(model="test_vit", img_size=96, mean=[0.2], std=[0.1], interpolation="", crop_pct=None, lr=0.1)


class Attributes(dict[str, Any]):
    """A mapping class, as Lightning stores it."""


class Kind(enum.Enum):
    """An enum, as programs store it."""

    A = 1


def make_model(name: str = "test_vit", **options: Any) -> Any:
    torch.manual_seed(7)
    model: Any = timm.create_model(name, **options)
    with torch.no_grad():
        for value in model.parameters():  # norms and embeddings of fresh networks are ones and zeros
            value.add_(torch.randn_like(value) * 0.05)
    return model.eval()


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value * 0 for key, value in state.items()}


def before(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def saved(tmp_path: Path, held: Any) -> str:
    torch.save(held, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], state[key]) for key in own)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create three colour pictures that are larger than the input of all networks in this file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((270, 210)).save(folder / f"{i}.png")
    return folder


def features(extractor: Any, root: Path, layer: str) -> Tensor:
    (batch,) = extractor.stream(open_images(str(root)), range(3), Stream())
    values: Tensor = batch.values[layer, "mean"]
    return values


def plain(model: Any, root: Path, size: int, mean: float, std: float, *, grey: bool = False) -> Tensor:
    """Return blocks.5 of a plain forward pass, with timm's transform for this size, mean and std."""
    channels = 1 if grey else 3
    prepare = timm.data.create_transform(
        (channels, size, size), mean=(mean,) * channels, std=(std,) * channels, crop_pct=0.95, interpolation="bicubic"
    )
    pictures = [Image.open(path).convert("L" if grey else "RGB") for path in sorted(root.iterdir())]
    outputs: list[Tensor] = []
    hook = model.blocks[5].register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        model(torch.stack([prepare(picture) for picture in pictures]))
    hook.remove()
    return outputs[0][:, model.num_prefix_tokens :].mean(1)


def test_a_vit_trained_at_another_size_and_normalisation_runs_as_it_was_trained(tmp_path: Path, root: Path) -> None:
    model = make_model(img_size=96)
    path = saved(tmp_path, {"state_dict": model.state_dict(), "args": ARGS, "epoch": 3})
    extractor: Any = make_extractor("test_vit", weights=path)
    torch.testing.assert_close(features(extractor, root, "blocks.5"), plain(model, root, 96, 0.2, 0.1), rtol=0, atol=0)
    record = extractor.provenance()
    assert record["preprocessing"]["input_size"] == [3, 96, 96]
    assert record["prepared"] == {"mean": (0.2,) * 3, "std": (0.1,) * 3, "img_size": (96, 96)}
    assert record["model_kwargs"] == {"img_size": (96, 96)}
    assert "resampled" not in record
    for part in ("pos_embed has 6 x 6", "96 x 96 pixels: args", "mean 0.2: args", "std 0.1: args"):
        assert any(part in note for note in extractor.notes), part


def test_the_size_is_inferred_from_the_position_embedding(tmp_path: Path, root: Path) -> None:
    model = make_model(img_size=96)
    extractor: Any = make_extractor("test_vit", weights=saved(tmp_path, model.state_dict()), mean=0.3, std="0.2")
    torch.testing.assert_close(features(extractor, root, "blocks.5"), plain(model, root, 96, 0.3, 0.2), rtol=0, atol=0)


def test_a_network_that_resamples_in_every_pass_is_trained_on_pictures_of_its_args(tmp_path: Path, root: Path) -> None:
    """With --img-size, timm may train without rebuilding the network: the embedding is then still for 160 pixels."""
    model = make_model()
    extractor: Any = make_extractor("test_vit", weights=saved(tmp_path, {"model": model.state_dict(), "args": ARGS}))
    torch.testing.assert_close(features(extractor, root, "blocks.5"), plain(model, root, 96, 0.2, 0.1), rtol=0, atol=0)
    assert any("resamples it in every forward pass" in note for note in extractor.notes)


@pytest.mark.slow
def test_a_network_of_fixed_size_with_another_size_in_its_args_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": make_model("test_vit3").state_dict(), "args": ARGS})
    with pytest.raises(
        WeightsError,
        match=r"have pictures of 96 x 96, but its tensors are for 160 x 160; set img_size='160x160'",
    ):
        load_model("test_vit3", path)


def test_another_size_resamples_only_on_request(tmp_path: Path, root: Path) -> None:
    model = make_model()
    extractor: Any = make_extractor("test_vit", weights=saved(tmp_path, model.state_dict()), img_size=96)
    record = extractor.provenance()
    assert record["resampled"] == ["pos_embed"]
    assert "resampled to the chosen size: pos_embed from (1, 101, 64) to (1, 37, 64)" in extractor.notes
    assert extractor.name == "test_vit+w+96px"
    torch.save(model.state_dict(), tmp_path / "other.pth")
    expected: Any = timm.create_model(
        "test_vit", pretrained=True, img_size=96, pretrained_cfg_overlay={"file": str(tmp_path / "other.pth")}
    )
    assert same(extractor.model, expected.state_dict())
    assert features(extractor, root, "blocks.5").shape == (3, 64)


@pytest.mark.slow
def test_an_argument_other_than_the_size_does_not_allow_resampling(tmp_path: Path) -> None:
    path = saved(tmp_path, make_model(img_size=96).state_dict())
    options = ModelOptions.read(model_kwargs={"drop_rate": 0.1})
    assert load_model("test_vit", path, options=options).record["model_kwargs"]["img_size"] == (96, 96)
    assert load_model("test_vit", path, options=ModelOptions.read(model_kwargs={"img_size": 160})).record["resampled"]
    table = make_model().state_dict() | {"pos_embed": torch.ones(1, 38, 64)}
    with pytest.raises(WeightsError, match="pos_embed has 38 positions"):
        load_model("test_vit", saved(tmp_path, table), options=options)


def test_patches_of_another_size_are_not_resampled_either(tmp_path: Path) -> None:
    path = saved(tmp_path, make_model(patch_size=8, pos_embed="none").state_dict())
    options = ModelOptions.read(model_kwargs={"pos_embed": "none"})
    with pytest.raises(
        WeightsError, match=r"patch_embed\.proj\.weight has shape \(64, 3, 8, 8\) .*timm would resample"
    ):
        load_model("test_vit", path, options=options)


def test_pretrained_weights_at_another_size_are_resampled_with_a_note() -> None:
    extractor: Any = make_extractor("digits_vit.seed0", img_size="64", mean=0.5, std=0.5)
    assert extractor.name == "digits_vit.seed0+64px"
    assert extractor.provenance()["resampled"] == ["pos_embed"]
    assert extractor.provenance()["preprocessing"]["input_size"] == [3, 64, 64]
    assert extractor.provenance()["preprocessing"]["mean"] == [0.5] * 3
    assert any("pos_embed from (1, 65, 64) to (1, 257, 64)" in note for note in extractor.notes)


def test_a_module_of_timms_gets_the_pictures_that_it_was_built_for(root: Path) -> None:
    cases: list[tuple[dict[str, Any], int]] = [({"img_size": 96}, 96), ({"in_chans": 1}, 160)]
    for options, size in cases:
        model = make_model(**options)
        extractor: Any = make_extractor(model, layers="blocks.5")
        expected = plain(model, root, size, 0.5, 0.5, grey="in_chans" in options)
        torch.testing.assert_close(features(extractor, root, "blocks.5"), expected, rtol=0, atol=1e-6)
        assert any("for which the network was built" in note for note in extractor.notes)
    assert make_extractor(make_model(), layers="blocks.5").notes == []  # type: ignore[attr-defined]


def test_a_convolutional_network_takes_the_pictures_of_its_args(tmp_path: Path) -> None:
    extractor: Any = make_extractor(
        "test_resnet", weights=saved(tmp_path, {"model": make_model("test_resnet").state_dict(), "args": ARGS})
    )
    assert extractor.provenance()["preprocessing"]["input_size"] == [3, 96, 96]
    assert extractor.provenance()["preprocessing"]["mean"] == [0.2] * 3


@pytest.mark.slow
def test_tables_that_fit_several_sizes_need_the_size(tmp_path: Path) -> None:
    """A window of 8 fits several picture sizes; with the right size the network equals the saved one."""
    name = "swin_tiny_patch4_window7_224"
    model = make_model(name, img_size=256, window_size=8, depths=(1, 1, 1, 1))
    path = saved(tmp_path, model.state_dict())
    with pytest.raises(WeightsError, match=r"which fits pictures of .*; choose one with img_size="):
        load_model(name, path, options=ModelOptions.read(model_kwargs={"depths": (1, 1, 1, 1)}))
    loaded = load_model(name, path, options=ModelOptions.read(img_size=256, model_kwargs={"depths": (1, 1, 1, 1)}))
    assert same(loaded.model, model.state_dict())
    assert loaded.record["model_kwargs"]["window_size"] == 8
    assert "resampled" not in loaded.record


@pytest.mark.slow
def test_a_window_of_any_picture_takes_that_of_the_args(tmp_path: Path) -> None:
    """The tables of a Swin Transformer are equal for 224 and 448 pixels; only the args of the training differ."""
    name, args = "swin_tiny_patch4_window7_224", argparse.Namespace(img_size=448)
    small = ModelOptions.read(model_kwargs={"depths": (1, 1, 1, 1)})
    model = make_model(name, depths=(1, 1, 1, 1))
    loaded: Any = load_model(name, saved(tmp_path, {"model": model.state_dict(), "args": args}), options=small)
    assert loaded.record["model_kwargs"]["img_size"] == (448, 448)
    assert loaded.model.pretrained_cfg["input_size"] == (3, 448, 448)
    assert same(loaded.model, model.state_dict())


@pytest.mark.slow
def test_formats_of_the_authors_are_converted_as_before(tmp_path: Path) -> None:
    """Swin's downsampling is named by the stage before it; DINOv2 has a position for its class token."""
    name = "swin_tiny_patch4_window7_224"
    small: dict[str, Any] = {"depths": (1, 1, 1, 1)}
    good = make_model(name, **small).state_dict()
    official = {
        re.sub(r"(\d+)\.downsample", lambda match: f"{int(match[1]) - 1}.downsample", key).replace("head.fc", "head"): v
        for key, v in good.items()
    }
    path = saved(tmp_path, {"model": official})
    assert same(load_model(name, path, options=ModelOptions.read(model_kwargs=small)).model, good)
    built: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
    for size in (160, 96):
        good = make_model(img_size=size, num_classes=0, **built).state_dict()
        official = {key.replace("reg_token", "register_tokens"): value for key, value in good.items()}
        official["mask_token"] = torch.zeros(1, 64)
        official["pos_embed"] = torch.cat([torch.zeros(1, 1, 64), good["pos_embed"]], 1)
        loaded: Any = load_model("test_vit", saved(tmp_path, official), options=ModelOptions.read(model_kwargs=built))
        assert same(loaded.model, good)
        assert loaded.model.pretrained_cfg["input_size"] == (3, size, size)
        assert "resampled" not in loaded.record


@pytest.mark.slow
def test_a_family_whose_tables_have_one_size_is_built_for_it(tmp_path: Path) -> None:
    model = make_model("mixer_s32_224", img_size=96, num_classes=3)
    loaded = load_model("mixer_s32_224", saved(tmp_path, model.state_dict()))
    assert same(loaded.model, model.state_dict())
    assert loaded.record["model_kwargs"]["img_size"] == (96, 96)


# the saved object -> the record besides the hash of the weights, and the note; "good" are the expected weights
WRAPPED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], dict[str, Any], str]] = {
    "ema beside": (
        lambda good: {"state_dict": zeros(good), "state_dict_ema": good},
        {"weights_key": "state_dict_ema"},
        "state_dict_ema of w.pth, which also holds state_dict",
    ),
    "ema that is none": (lambda good: {"state_dict": good, "state_dict_ema": None}, {}, ""),
    "model and model_ema": (
        lambda good: {"model": zeros(good), "model_ema": {"n_averaged": torch.tensor(3), **before("module.", good)}},
        {"weights_key": "model_ema"},
        "model_ema of w.pth, which also holds model",
    ),
    "teacher": (
        lambda good: {"student": zeros(before("module.", good)), "teacher": before("module.", good), "epoch": 3},
        {"weights_key": "teacher"},
        "teacher of w.pth, which also holds student",
    ),
    "model_state_dict": (
        lambda good: {"model_state_dict": good, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"weights_key": "model_state_dict"},
        "model_state_dict of w.pth",
    ),
    "net": (lambda good: {"net": before("module.", good), "acc": 93.2, "epoch": 3}, {"weights_key": "net"}, "net of w"),
    "lightning": (
        lambda good: {
            "state_dict": {**before("model.", good), "criterion.weight": torch.ones(10)},
            "hyper_parameters": {"lr": 0.1, "root": pathlib.PurePosixPath("data")},
            "optimizer_states": [{"state": {0: {"step": torch.ones(1)}}}],
        },
        {"weights_prefix": "model."},
        "prefix 'model.' removed; 1 under other names left out",
    ),
    "compiled in lightning": (
        lambda good: {"state_dict": before("net._orig_mod.", good)},
        {"weights_prefix": "net."},
        "prefix 'net.' removed",
    ),
    "compiled": (lambda good: before("_orig_mod.", good), {}, "prefix '_orig_mod.' removed"),
    "compiled, then parallel": (lambda good: before("module._orig_mod.", good), {}, "prefix 'module.' removed"),
    "averaged": (
        lambda good: {"n_averaged": torch.tensor(3), **before("module.", good)},
        {},
        "prefix 'module.' removed",
    ),
    "nested": (lambda good: {"state": {"model": good}, "step": 3}, {"weights_key": "state.model"}, "state.model of w"),
    "numpy beside": (
        lambda good: {
            "state_dict": good,
            "best": np.float64(0.93),
            "epoch": np.int64(3),
            "rng": np.arange(4),
            "kind": np.dtype("f4"),
            "out": pathlib.PosixPath("runs"),
            "loss": torch.tensor(0.3),
        },
        {},
        "",
    ),
    "numbers among the weights": (lambda good: {**good, "epoch": 3, "best": np.float32(0.3)}, {}, ""),
    "ordered": (OrderedDict, {}, ""),
    "parameters": (lambda good: {key: nn.Parameter(value) for key, value in good.items()}, {}, ""),
    "counters of thop": (
        lambda good: {**good, "total_ops": torch.zeros(1), "blocks.0.total_params": torch.zeros(1)},
        {},
        "total_ops, blocks.0.total_params of w.pth left out",
    ),
    "a decoder": (
        lambda good: {**good, "decoder_embed.weight": torch.ones(3, 3), "mask_token": torch.ones(1, 1, 3)},
        {"weights_left_out": 2},
        "tensors that only the training uses are left out: decoder_embed.weight, mask_token",
    ),
    "sharded": (lambda good: before("_fsdp_wrapped_module.", good), {}, "prefix '_fsdp_wrapped_module.' removed"),
    "sharded and recomputed inside": (
        lambda good: {
            key.replace(".attn.", "._fsdp_wrapped_module.attn._checkpoint_wrapped_module."): value
            for key, value in good.items()
        },
        {},
        "",
    ),
    "a pair": (
        lambda good: (good, {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}),
        {"weights_key": "0"},
        "weights: 0 of w.pth",
    ),
    "classes of other programs": (
        lambda good: {"state_dict": good, "hyper_parameters": Attributes(lr=0.1), "x": Kind.A, "on": datetime(1, 1, 1)},
        {},
        "objects in w.pth that were not read: datetime.datetime, ",
    ),
    "a dict of another program": (Attributes, {}, "that were not read: tests.extractors.test_checkpoints.Attributes"),
    "a number in a tensor": (lambda good: {**good, "acc": torch.tensor(0.3)}, {}, "acc of w.pth left out: numbers"),
    "transformers": (lambda good: before("timm_model.", good), {"weights_prefix": "timm_model."}, "'timm_model.'"),
}  # fmt: skip


@pytest.mark.parametrize("form", WRAPPED)
def test_wrapped_weights_of_training_programs_are_read_with_a_note(tmp_path: Path, form: str) -> None:
    wrap, record, note = WRAPPED[form]
    good = make_model().state_dict()
    loaded = load_model("test_vit", saved(tmp_path, wrap(good)))
    assert same(loaded.model, good)
    usual = {"weights", "weights_file", "architecture", "timm_name", "weights_sha256"}
    assert {key: value for key, value in loaded.record.items() if key not in usual} == record
    assert note in " | ".join(loaded.notes)
    assert bool(note) == bool(loaded.notes)


def test_a_real_averaged_and_a_real_parallel_module_are_read(tmp_path: Path) -> None:
    model = make_model("test_resnet")
    for wrapped in (AveragedModel(model), nn.DataParallel(model)):
        loaded = load_model("test_resnet", saved(tmp_path, wrapped.state_dict()))
        assert same(loaded.model, model.state_dict())


@pytest.mark.slow
def test_a_set_of_weights_is_chosen_by_its_key_and_its_prefix(tmp_path: Path) -> None:
    good = make_model().state_dict()
    path = saved(tmp_path, {"state_dict": good, "state_dict_ema": zeros(good)})
    extractor: Any = make_extractor("test_vit", weights=path, weights_key="state_dict")
    assert same(extractor.model, good)
    assert extractor.name == "test_vit+w.state_dict"
    assert extractor.provenance()["weights_key"] == "state_dict"
    path = saved(tmp_path, {"nets": {"a.b": before("first.", zeros(good)) | before("second.", good)}})
    extractor = make_extractor("test_vit", weights=path, weights_key="nets.a.b", weights_prefix="second")
    assert same(extractor.model, good)
    assert extractor.provenance()["weights_prefix"] == "second."


def test_dino_is_read_without_its_head(tmp_path: Path) -> None:
    good = make_model(num_classes=0).state_dict()
    teacher = {
        **before("backbone.", good),
        "head.mlp.0.weight": torch.ones(5, 64),
        "head.last_layer.weight_g": torch.ones(5, 1),
    }
    held = {"student": before("module.", zeros(teacher)), "teacher": teacher, "args": argparse.Namespace(arch="vit")}
    loaded = load_model("test_vit", saved(tmp_path, held))
    assert same(loaded.model, good)
    assert (loaded.record["weights_key"], loaded.record["weights_prefix"]) == ("teacher", "backbone.")


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "average of patches": ({"global_pool": "avg"}, {"global_pool": "avg"}),
    "grey": ({"in_chans": 1}, {"in_chans": 1}),
    "registers": ({"reg_tokens": 4}, {"reg_tokens": 4}),
    "no class token": ({"class_token": False, "global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}),
    "no class token, norm before": (
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ),
    "embedding without class": (
        {"no_embed_class": True, "reg_tokens": 4, "img_size": 96},
        {"reg_tokens": 4, "no_embed_class": True, "img_size": (96, 96)},
    ),
    "scaled layers": ({"init_values": 1e-3}, {"init_values": 1e-5}),
    "no bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "norm of queries": ({"qk_norm": True}, {"qk_norm": True}),
    "norm before": ({"pre_norm": True}, {"pre_norm": True}),
    "attention pooling": ({"global_pool": "map", "class_token": False}, {"class_token": False, "global_pool": "map"}),
    "other classes": ({"num_classes": 7}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_is_built_from_names_and_shapes(tmp_path: Path, root: Path, variant: str) -> None:
    options, inferred = VARIANTS[variant]
    model = make_model(**options)
    extractor: Any = make_extractor("test_vit", weights=saved(tmp_path, model.state_dict()), layers="blocks.5")
    assert same(extractor.model, model.state_dict())
    assert extractor.provenance().get("model_kwargs", {}) == inferred
    grey, size = "in_chans" in options, options.get("img_size", 160)
    expected = plain(model, root, size, 0.5, 0.5, grey=grey)
    torch.testing.assert_close(features(extractor, root, "blocks.5"), expected, rtol=0, atol=1e-6)
    assert any("grey pictures of 1 channel" in note for note in extractor.notes) == grey


@pytest.mark.slow
def test_the_inference_form_of_a_network_is_built(tmp_path: Path) -> None:
    name = "mobileone_s0"
    model: Any = reparameterize_model(make_model(name, num_classes=5))
    loaded: Any = load_model(name, saved(tmp_path, {"state_dict": before("module.", model.state_dict())}))
    assert same(loaded.model, model.state_dict())
    assert loaded.record["reparameterised"] is True
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)


def test_weights_of_other_names_are_taken_in_order(tmp_path: Path) -> None:
    good = make_model("test_resnet", num_classes=5).state_dict()
    path = saved(tmp_path, {f"layer_{i}": value for i, value in enumerate(good.values())})
    with pytest.raises(WeightsError, match=r"its names are layer_0, layer_1, .* weights_match='order'"):
        load_model("test_resnet", path)
    counted = {f"p{i}": value for i, (key, value) in enumerate(good.items()) if "tracked" not in key}
    loaded = load_model("test_resnet", saved(tmp_path, counted), options=ModelOptions.read(weights_match="order"))
    assert all(
        torch.equal(value, good[key]) for key, value in loaded.model.state_dict().items() if "tracked" not in key
    )
    assert loaded.record["weights_match"] == "order"
    assert any("taken in order" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[:-1], r"w\.pth has 76 tensors .* the network 77"),
        (lambda tensors: [tensors[1], tensors[0], *tensors[2:]], r"tensor 1 of w\.pth, p0, has shape \(16,\) where"),
        (lambda tensors: [*tensors[:2], torch.ones(3), *tensors[3:]], r"conv1\.1\.bias has shape \(3,\) in w\.pth and"),
    ],
)
def test_order_asserts_every_shape(tmp_path: Path, change: Any, message: str) -> None:
    good = [value for key, value in make_model("test_resnet").state_dict().items() if "tracked" not in key]
    path = saved(tmp_path, {f"p{i}": value for i, value in enumerate(change(good))})
    with pytest.raises(WeightsError, match=message):
        load_model("test_resnet", path, options=ModelOptions.read(weights_match="order"))


def test_a_file_without_order_is_not_taken_in_order(tmp_path: Path) -> None:
    save_file(make_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="keeps no order of its tensors"):
        load_model("test_resnet", str(tmp_path / "w.safetensors"), options=ModelOptions.read(weights_match="order"))


def refused() -> dict[str, tuple[Any, dict[str, Any], str]]:
    good = make_model().state_dict()
    integers = {key: (value * 50).to(torch.int8) for key, value in good.items()}
    fewer = {key: value for key, value in good.items() if "blocks.5" not in key}
    more = good | {key.replace("blocks.5", "blocks.6"): value for key, value in good.items()}
    two = {"a": good, "b": zeros(good)}
    return {
        "two that nothing tells apart": (two, {}, r"several sets of weights: a, b; choose one with weights_key=KEY"),
        "a key it lacks": (two, {"weights_key": "c"}, r"no weights under 'c'; weights_key takes a, b"),
        "a key of a bare one": (good, {"weights_key": "c"}, r"is a bare state_dict, without keys"),
        "a prefix it lacks": (good, {"weights_prefix": "c."}, r"no name in w\.pth begins with 'c\.'; .* cls_token, "),
        "an unknown prefix": (
            before("mine.", good),
            {},
            r"its names are mine\.cls_token, .*weights_prefix='mine\.' would",
        ),
        "two networks in one": (
            before("net.", good) | before("network.", good),
            {"weights_prefix": "n"},
            r"does not fit",
        ),
        "a block too few": (fewer, {}, r"12 missing: blocks\.5\.norm1\.weight, .*model_kwargs"),
        "a block too many": (more, {}, r"12 that the network does not have: blocks\.6\.norm1\.weight, "),
        "other widths": (
            make_model(embed_dim=32).state_dict(),
            {},
            r"cls_token has shape \(1, 1, 32\) in w\.pth and \(1, 1, 64\)",
        ),
        "other patches": (
            make_model(patch_size=8).state_dict(),
            {},
            r"patches of 8 x 8 pixels, .* of 16 x 16; .*patch_size': 8",
        ),
        "no square": (make_model(img_size=(64, 128)).state_dict(), {}, r"pos_embed has 33 positions.* img_size=HxW"),
        "four channels": (
            make_model(in_chans=4).state_dict(),
            {},
            r"pictures of 4 channels \(patch_embed\.proj\.weight",
        ),
        "integers": (integers, {}, r"cls_token is int8, not a plain real"),
        "an unknown argument": (good, {"model_kwargs": ["nonsense=3"]}, r"cannot be built with nonsense=3: "),
        "no weights at all": ({"epoch": 3, "args": ARGS}, {}, r"is not a state_dict: .*; its keys are epoch, args"),
    }


@pytest.mark.parametrize("form", refused())
def test_an_undecided_choice_raises_an_error_with_keys_and_options(tmp_path: Path, form: str) -> None:
    held, options, message = refused()[form]
    with pytest.raises(RepsimError, match=message) as caught:
        load_model("test_vit", saved(tmp_path, held), options=ModelOptions.read(**options))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.slow
def test_of_several_networks_in_one_the_averaged_or_the_backbone_is_taken(tmp_path: Path) -> None:
    good = make_model().state_dict()
    for first, other in (("teacher.", "student."), ("backbone.", "student."), ("ema_model.", "model.")):
        loaded = load_model("test_vit", saved(tmp_path, before(other, zeros(good)) | before(first, good)))
        assert same(loaded.model, good)
        assert loaded.record["weights_prefix"] == first
        assert "80 under other names left out" in loaded.notes[0]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    good = make_model().state_dict()
    good["head.weight"] = torch.quantize_per_tensor(good["head.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match=r"head\.weight is quantised"):
        load_model("test_vit", saved(tmp_path, good))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_noted(tmp_path: Path, kind: torch.dtype) -> None:
    good = make_model().state_dict()
    loaded = load_model("test_vit", saved(tmp_path, {key: value.to(kind) for key, value in good.items()}))
    assert same(loaded.model, {key: value.to(kind).float() for key, value in good.items()})
    assert loaded.notes == [f"weights: {str(kind).removeprefix('torch.')} in w.pth, float32 in the network"]


def test_batch_norms_without_counters_are_read(tmp_path: Path) -> None:
    good = make_model("test_resnet").state_dict()
    loaded = load_model("test_resnet", saved(tmp_path, {k: v for k, v in good.items() if "tracked" not in k}))
    assert same(loaded.model, good)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"img_size": 0}, r"img_size is a number of pixels, or HEIGHTxWIDTH .*, not 0"),
        ({"img_size": "96x"}, r"img_size is .* not '96x'"),
        ({"img_size": True}, r"img_size is .* not True"),
        ({"mean": "a"}, r"mean is one number, or three .*, not 'a'"),
        ({"mean": (0.1, 0.2)}, r"mean is one number, or three"),
        ({"std": "nan"}, r"std is one number, or three"),
        ({"std": 0}, r"std is above 0, as it divides, not 0"),
        ({"crop_pct": 2}, r"crop_pct is one number above 0 and at most 1, not 2"),
        ({"model_kwargs": ["a"]}, r"model_kwargs is KEY=VALUE .*, not 'a'"),
        ({"model_kwargs": ["a=1", "a=2"]}, r"model_kwargs: a is given twice, as 1 and '2'"),
    ],
)
def test_options_that_mean_nothing_are_refused(choices: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ModelOptions.read(**choices)


def test_options_of_a_file_need_one_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"weights_key: for a file of weights only .*, not for weights='random'"
    ):
        make_extractor("test_vit", weights="random", weights_key="model")
    with pytest.raises(UnknownNameError, match="unknown way to match weights 'ordr'; did you mean order"):
        ModelOptions.read(weights_match="ordr")
    with pytest.raises(UnknownNameError, match="unknown interpolation 'bicubc'; did you mean bicubic"):
        ModelOptions.read(interpolation="bicubc")
    with pytest.raises(InvalidInputError, match="img_size: not for a torch module"):
        make_extractor(nn.Linear(3, 3), transform=lambda _: torch.ones(3, 4, 4), img_size=3)


def test_a_plain_file_is_recorded_as_it_always_was(tmp_path: Path) -> None:
    """Without choices the record does not change, so a store of an earlier version is complete for the same command."""
    record = load_model("test_vit", saved(tmp_path, {"state_dict": make_model().state_dict(), "epoch": 3})).record
    assert set(record) == {"weights", "weights_file", "architecture", "timm_name", "weights_sha256"}
    record = load_model("test_vit", "random").record
    assert set(record) == {"weights", "seed", "architecture", "timm_name", "weights_sha256"}


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_contrastive_networks_are_read_without_their_head(tmp_path: Path, name: str) -> None:
    """MoCo: the query encoder, which has a classifier of two layers, is read; a note names the key encoder."""
    extractor: Any = make_extractor(name, weights="random", seed=3)
    body = {key: value for key, value in extractor.model.state_dict().items() if not key.startswith("fc.")}
    head = {"fc.0.weight": torch.ones(4, 4), "fc.2.weight": torch.ones(2, 4)}
    queries, keys = (before(f"module.encoder_{x}.", half) for x, half in (("q", body | head), ("k", zeros(body))))
    path = saved(tmp_path, {"epoch": 3, "state_dict": {**queries, **keys, "module.queue": torch.ones(4, 8)}})
    for prefix in (None, "module.encoder_q.", "encoder_q."):
        loaded: Any = make_extractor(name, weights=path, weights_prefix=prefix)
        assert same(loaded.model, body)
        assert loaded.provenance()["weights_prefix"] == "module.encoder_q."
        assert any("among them a network under module.encoder_k." in note for note in loaded.notes)
        assert any("only the training uses are left out: fc.0.weight, fc.2.weight" in note for note in loaded.notes)
    assert same(make_extractor(name, weights=path, weights_prefix="encoder_k").model, zeros(body))  # type: ignore[attr-defined]


def test_every_prefix_that_would_fit_is_listed(tmp_path: Path) -> None:
    good = make_model().state_dict()
    path = saved(tmp_path, before("a.net.", good) | before("b.", zeros(good)))
    with pytest.raises(WeightsError, match=r"weights_prefix='a\.net\.' or weights_prefix='b\.' would make them fit"):
        load_model("test_vit", path)
    assert same(load_model("test_vit", path, options=ModelOptions.read(weights_prefix="a.net.")).model, good)


def test_the_size_of_torchvisions_own_training_is_taken(tmp_path: Path) -> None:
    args = argparse.Namespace(train_crop_size=40, val_crop_size=48, val_resize_size=60, interpolation="bicubic")
    for name in ("torchvision/shufflenet_v2_x0_5", "test_resnet"):
        model: Any = make_extractor(name, weights="random", seed=3)
        path = saved(tmp_path, {"model": model.model.state_dict(), "epoch": 3, "args": args})
        extractor: Any = make_extractor(name, weights=path)
        assert extractor.transform(Image.new("RGB", (70, 80))).shape == (3, 48, 48)
        record = extractor.provenance()
        assert record["prepared"]["img_size"] == (48, 48)
        assert record["prepared"]["crop_pct"] == 0.8
        assert "pictures of 48 x 48 pixels: args of the checkpoint" in extractor.notes


def test_a_file_is_read_for_what_it_is_whatever_its_suffix(tmp_path: Path) -> None:
    good = make_model().state_dict()
    save_file(good, tmp_path / "w.bin")
    torch.save(good, tmp_path / "w.safetensors")
    for name in ("w.bin", "w.safetensors"):
        assert same(load_model("test_vit", str(tmp_path / name)).model, good)


def test_errors_name_the_kind_of_another_file(tmp_path: Path) -> None:
    kinds = {
        "w.pth.gz": (gzip.compress(b"0" * 99), "compressed: unpack it with gunzip"),
        "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS: `git lfs pull`"),
        "page.pth": (b"\n<!DOCTYPE html>", "a web page"),
        "model.safetensors.index.json": (b'{"weight_map": {}}', "JSON, perhaps the index of weights in several files"),
    }
    for name, (data, message) in kinds.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=rf"^cannot read weights from {name}, is it damaged\? It is {message}"):
            load_model("test_vit", str(tmp_path / name))
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="It is a numpy archive"):
        load_model("test_vit", str(tmp_path / "w.npz"))
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", b"")
    with pytest.raises(WeightsError, match="It is a TorchScript archive"):
        load_model("test_vit", str(tmp_path / "w.pt"))
    with pytest.raises(WeightsError, match=r"is a folder, with the files lfs\.safetensors, page\.pth"):
        load_model("test_vit", str(tmp_path))


def test_a_whole_module_is_refused_with_the_names_of_its_classes(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"could run code \(.*torch\.nn\.modules.*\): refused\. Save its state_dict"):
        load_model("test_vit", saved(tmp_path, {"model": nn.Linear(1, 1), "epoch": 3}))


def test_a_tensor_that_claims_more_numbers_than_its_file_holds(tmp_path: Path) -> None:
    """A file of some kilobytes would take gigabytes; small masks are expanded in good faith."""
    state = make_model().state_dict()
    width = state["head.weight"].shape[1]
    state["head.weight"] = torch.zeros(1, 1).expand(50_000_000, width)
    path = saved(tmp_path, state)
    assert Path(path).stat().st_size < 10**7
    with pytest.raises(WeightsError, match=r"head.weight repeats few numbers, and would take .* GB of memory for 4 B"):
        make_extractor("test_vit", weights=path)
    state["head.weight"] = torch.zeros(1, 1).expand(10, width)
    state["head.bias"] = torch.zeros(10)
    make_extractor("test_vit", weights=saved(tmp_path, state))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["head.weight", "head.bias", "reg_token", "pos_embed", "patch_embed.proj.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (1, 0, 3), (1, 1, 1, 1, 1)])
def test_tensors_of_any_shape_are_one_line_or_fit(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    """Shapes are read to infer the network, before they are compared with it."""
    path = saved(tmp_path, make_model("test_vit2").state_dict() | {key: torch.ones(shape)})
    with pytest.raises(RepsimError) as caught:
        make_extractor("test_vit2", weights=path)
    assert "\n" not in str(caught.value)


def test_complex_weights_and_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    state = make_model().state_dict()
    path = saved(tmp_path, {key: value.to(torch.complex64) + 1j for key, value in state.items()})
    with pytest.raises(WeightsError, match="is complex64, not a plain real number"):
        make_extractor("test_vit", weights=path)
    with pytest.raises(WeightsError, match="is not a state_dict: expected names and tensors; its keys are"):
        make_extractor("test_vit", weights=saved(tmp_path, state | {3: torch.zeros(2)}))
