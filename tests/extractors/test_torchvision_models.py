"""torchvision's models against plain forward passes with hooks of the test, and the layers of each family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from repsim.errors import InvalidInputError, UnknownNameError, WeightsError
from repsim.extractors import Stream, open_images
from repsim.extractors.options import ModelOptions
from repsim.extractors.torchvision_models import TorchvisionExtractor, load_model
from repsim.testing import ExtractorContract


class TestShuffleNet(ExtractorContract):
    def extractor(self) -> TorchvisionExtractor:
        return TorchvisionExtractor("torchvision/shufflenet_v2_x0_5", weights="random", readout="mean,max")


def make_model(name: str, **options: Any) -> Any:
    torch.manual_seed(7)
    return models.get_model(name, weights=None, **options).eval()


RESNET = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
TRANSFORMER = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks", "head"),
    [("resnet18", RESNET, "fc"), pytest.param("vit_b_32", TRANSFORMER, "heads.head", marks=pytest.mark.slow)],
)
def test_default_layers_equal_a_plain_forward_pass(pictures: Any, name: str, blocks: list[str], head: str) -> None:
    extractor = TorchvisionExtractor(name, weights="random", seed=7)
    names = [layer.name for layer in extractor.layers()]
    assert names[1:] == [*blocks, "pre_logits"]
    model, images = make_model(name), open_images(str(pictures(3)))
    got: dict[str, Tensor] = {}
    for path in names[:-1]:
        model.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: got.update({path: out.clone()}))
    model.get_submodule(head).register_forward_pre_hook(lambda _, args: got.update(pre_logits=args[0].clone()))
    prepare = models.get_model_weights(name).DEFAULT.transforms()
    with torch.no_grad():
        model(torch.stack([prepare(images.load(i)) for i in range(3)]))
    (batch,) = extractor.stream(images, range(3), Stream())
    for path, output in got.items():
        exact = output.double()
        target = exact if exact.ndim == 2 else exact[:, 1:].mean(1) if exact.ndim == 3 else exact.mean((2, 3))
        torch.testing.assert_close(batch.values[path, "mean"].double(), target, rtol=1e-5, atol=1e-5)


# One of each family: its stem, how many blocks follow, the first and the last, and whether a linear map ends it.
FAMILIES = {
    "alexnet": ("features.0", 4, "features.1", "avgpool", True),  # a plain chain: the last at each resolution
    "convnext_tiny": ("features.0", 18, "features.1.0", "features.7.2", True),
    "densenet121": ("features.pool0", 4, "features.denseblock1", "features.denseblock4", True),
    "efficientnet_b0": ("features.0", 16, "features.1.0", "features.7.0", True),
    "googlenet": ("maxpool2", 9, "inception3a", "inception5b", True),
    "inception_v3": ("maxpool2", 11, "Mixed_5b", "Mixed_7c", True),
    "maxvit_t": ("stem", 4, "blocks.0", "blocks.3", True),
    "mnasnet0_5": ("layers.7", 16, "layers.8.0", "layers.13.0", True),
    "mobilenet_v2": ("features.0", 17, "features.1", "features.17", True),
    "mobilenet_v3_small": ("features.0", 11, "features.1", "features.11", True),
    "regnet_x_400mf": ("stem", 22, "trunk_output.block1.block1-0", "trunk_output.block4.block4-11", True),
    "shufflenet_v2_x0_5": ("maxpool", 16, "stage2.0", "stage4.3", True),
    "squeezenet1_1": ("features.2", 8, "features.3", "features.12", False),
    "swin_t": ("features.0", 12, "features.1.0", "features.7.1", True),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_default_layers_of_each_family(name: str) -> None:
    stem, count, first, last, linear = FAMILIES[name]
    extractor = TorchvisionExtractor(name, weights="random")
    layers = [layer.name for layer in extractor.layers()]
    blocks = layers[1:-1] if linear else layers[1:]
    assert (layers[0], len(blocks), blocks[0], blocks[-1], layers[-1] == "pre_logits") == (
        stem,
        count,
        first,
        last,
        linear,
    )
    assert extractor.notes == []


@pytest.mark.slow
def test_a_vit_has_a_class_token_and_a_swin_is_channels_last() -> None:
    (block,) = TorchvisionExtractor("vit_b_32", weights="random", layers=TRANSFORMER[3], readout="cls").layers()
    assert (block.axes, block.prefix_tokens, block.class_token, block.grid) == ("NLC", 1, True, (7, 7))
    (block,) = TorchvisionExtractor("swin_t", weights="random", layers="features.5.0").layers()
    assert (block.axes, block.width, block.grid) == ("NHWC", 384, (14, 14))


def test_random_weights_come_from_their_seed() -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    model, record, *_ = load_model("resnet18", "random", seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    expected = make_model("resnet18").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert (record["weights"], record["seed"], record["architecture"]) == ("random", 7, "resnet18")
    assert not model.training


@pytest.mark.parametrize(("name", "classes"), [("shufflenet_v2_x0_5", 10), ("squeezenet1_1", 7), ("googlenet", 1000)])
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_a_file_brings_its_own_number_of_classes(tmp_path: Path, name: str, classes: int, form: str) -> None:
    extra = {"init_weights": True} if name == "googlenet" else {}
    state = make_model(name, num_classes=classes, **extra).state_dict()
    path = tmp_path / f"epoch.9.{form}"
    if form == "pth":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 9}, path)
    else:
        save_file(state, path)
    model, record, *_ = load_model(name, str(path))
    own = model.state_dict()
    assert set(own) == set(state)
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert (record["weights"], record["weights_file"]) == ("file", path.name)
    if name != "googlenet":
        extractor = TorchvisionExtractor(name, weights=str(path), layers="all")
        assert extractor.name == f"torchvision_{name}+epoch.9"
        assert extractor.provenance()["weights_sha256"] == record["weights_sha256"]
        assert str(tmp_path) not in str(extractor.provenance())


def test_the_models_that_normalise_by_themselves_do_so() -> None:
    """Their published weights expect it, and their transform is the usual one."""
    for name in ("googlenet", "inception_v3"):
        model: Any = load_model(name, "random")[0]
        assert model.transform_input is True


def test_weights_of_another_model_are_one_clear_line(tmp_path: Path) -> None:
    save_file(make_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"^w\.safetensors does not fit torchvision/resnet18: its names are "):
        load_model("resnet18", str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match=r"^no such weights file: .*absent\.pth"):
        load_model("resnet18", str(tmp_path / "absent.pth"))


def test_names_and_provenance() -> None:
    extractor = TorchvisionExtractor("torchvision/shufflenet_v2_x0_5", weights="random", seed=2)
    assert extractor.name == "torchvision_shufflenet_v2_x0_5+random-seed2"
    record = extractor.provenance()
    assert (record["extractor"], record["architecture"], record["seed"]) == ("torchvision", "shufflenet_v2_x0_5", 2)
    assert record["class"] == "torchvision.models.shufflenetv2.ShuffleNetV2"
    assert "crop_size=[224]" in record["transform"]
    with pytest.raises(UnknownNameError, match=r"^unknown torchvision model 'resnet5O'; did you mean resnet50"):
        TorchvisionExtractor("torchvision/resnet5O")
    with pytest.raises(UnknownNameError, match="unknown torchvision model"):
        TorchvisionExtractor("torchvision/fasterrcnn_resnet50_fpn")  # detects, and is called in another way


def test_the_text_of_a_transform_shows_all_its_attributes() -> None:
    """Equal texts of torchvision's transforms mean equal transforms: the text shows every attribute."""
    for name in ("resnet18", "swin_v2_t", "efficientnet_v2_l"):
        transform: nn.Module = models.get_model_weights(name).DEFAULT.transforms()
        own = {key for key in vars(transform) if not key.startswith("_") and key not in {"training", "antialias"}}
        assert own
        assert all(f"{key}=" in str(transform) for key in own), (name, own)


def test_pictures_are_prepared_with_the_options_of_the_user() -> None:
    options_given = {"img_size": 96, "mean": 0.3, "std": (0.1, 0.2, 0.3), "interpolation": "bicubic"}
    options = ModelOptions.read(**options_given)  # type: ignore[arg-type]
    extractor = TorchvisionExtractor("shufflenet_v2_x0_5", weights="random", options=options, layers="stages")
    prepare: Any = extractor.transform
    assert (prepare.crop_size, prepare.resize_size, prepare.mean) == ([96], [110], [0.3] * 3)  # 96 of 110 as 224 of 256
    assert (prepare.std, prepare.interpolation) == ([0.1, 0.2, 0.3], InterpolationMode.BICUBIC)
    record = extractor.provenance()
    assert record["prepared"]["img_size"] == (96, 96)
    assert extractor.name == "torchvision_shufflenet_v2_x0_5+random-seed0+96px"
    assert any("mean 0.3, set by the user" in note for note in extractor.notes)
    assert extractor.layers()[0].shape == (48, 12, 12)


def test_checkpoints_are_read_as_those_of_timms_models(tmp_path: Path) -> None:
    good = make_model("shufflenet_v2_x0_5").state_dict()
    zero = {key: value * 0 for key, value in good.items()}
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in good.items()}}
    torch.save({"model": zero, "model_ema": averaged}, tmp_path / "w.pth")
    loaded = load_model("shufflenet_v2_x0_5", str(tmp_path / "w.pth"))
    assert all(torch.equal(value, good[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.record["weights_key"] == "model_ema"
    torch.save({f"p{i}": value for i, value in enumerate(good.values()) if value.ndim}, tmp_path / "order.pth")
    options = ModelOptions.read(weights_match="order")
    loaded = load_model("shufflenet_v2_x0_5", str(tmp_path / "order.pth"), options=options)
    assert all(torch.equal(value, good[key]) for key, value in loaded.model.state_dict().items() if value.ndim)
    grey = {**good, "conv1.0.weight": good["conv1.0.weight"][:, :1]}
    torch.save(grey, tmp_path / "grey.pth")
    with pytest.raises(InvalidInputError, match=r"grey\.pth takes pictures of 1 channels .* take 3$"):
        load_model("shufflenet_v2_x0_5", str(tmp_path / "grey.pth"))
