"""Extractors made from names and modules: timm's, torchvision's, and those of other packages."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision import transforms

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.factory import check_name, make_extractor, preprocessing_of
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.preprocessing import timm_preprocessing
from repsim.extractors.timm_models import TimmExtractor
from repsim.extractors.torchvision_models import TorchvisionExtractor

TO_TENSOR = transforms.Compose([transforms.Resize((4, 4)), transforms.ToTensor()])


def test_each_kind_of_name_has_its_extractor() -> None:
    common = {"weights": "random", "seed": 4, "layers": "stages", "readout": "max"}
    extractor: Any = make_extractor("test_resnet", **common)  # type: ignore[arg-type]
    assert type(extractor) is TimmExtractor
    assert (extractor.name, next(iter(extractor.readouts))) == ("test_resnet+random-seed4", ("act1", "max"))
    extractor = make_extractor("torchvision/shufflenet_v2_x0_5", **common)  # type: ignore[arg-type]
    assert type(extractor) is TorchvisionExtractor
    assert extractor.name == "torchvision_shufflenet_v2_x0_5+random-seed4"
    assert next(iter(extractor.readouts)) == ("stage2", "max")
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    extractor = make_extractor(net, transform=TO_TENSOR, name="mine", layers="1", readout="flatten")
    assert type(extractor) is ModuleExtractor
    assert (extractor.name, list(extractor.readouts)) == ("mine", [("1", "flatten")])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("test_resnet", {"transform": TO_TENSOR}, "are for a torch module; test_resnet has its own"),
        ("test_resnet", {"name": "mine"}, "are for a torch module; test_resnet has its own"),
        (
            nn.Linear(48, 5),
            {"transform": TO_TENSOR, "weights": "w.pth"},
            "a torch module has its weights already: weights='w.pth'",
        ),
        (
            nn.Linear(48, 5),
            {"transform": TO_TENSOR, "seed": 1},
            "a torch module has its weights already: .* seed=1 cannot",
        ),
    ],
)
def test_options_that_would_have_no_effect_are_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_extractor(model, **options)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install, for importlib, a package with an entry point for a source of models called nets."""
    (tmp_path / "other_package.py").write_text(
        "from torch import nn\n"
        "from torchvision import transforms as t\n"
        "from repsim.extractors.modules import ModuleExtractor\n"
        "def make(name, *, weights, seed, layers, readout):\n"
        "    prepare = t.Compose([t.Resize((4, 4)), t.ToTensor()])\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))\n"
        "    called = '-'.join([name, weights, str(seed)])\n"
        "    return ModuleExtractor(net, prepare, name=called, layers=layers, readout=readout)\n"
    )
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[repsim.extractors]\nnets = other_package:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("other_package", None)


@pytest.mark.usefixtures("package")
def test_another_package_brings_its_models() -> None:
    check_name("nets/deep/one")
    assert preprocessing_of("nets/deep/one") is None
    extractor: Any = make_extractor("nets/deep/one", weights="random", seed=3, layers="1", readout="max")
    assert extractor.name == "deep_one-random-3"
    assert list(extractor.readouts) == [("1", "max")]
    with pytest.raises(UnknownNameError, match=r"^unknown source of models 'net'; did you mean nets\? \(in net/one\)$"):
        check_name("net/one")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet5O", r"^unknown torchvision model 'resnet5O'; did you mean resnet50"),
        ("resnet5O", r"^unknown model 'resnet5O'; did you mean resnet50"),
        ("resnet50.a1_in2k", r"^unknown pretrained tag 'a1_in2k'; did you mean a1_in1k"),
        ("torchvison/resnet50", r"^unknown source of models 'torchvison'; did you mean torchvision"),
    ],
)
def test_names_that_do_not_exist(name: str, message: str) -> None:
    for check in (check_name, preprocessing_of, lambda name: make_extractor(name, weights="random")):
        with pytest.raises(UnknownNameError, match=message):
            check(name)


def test_names_that_exist() -> None:
    for name in ("torchvision/resnet50", "resnet50", "resnet50.a1_in1k", "digits_vit.seed2", "hf-hub:timm/some/thing"):
        check_name(name)


# extractors on the meta device, without weights, against the preprocessing computed from the name
TIMM = [
    "resnet50", "resnet50.tv_in1k", "vit_base_patch16_224", "vit_small_patch16_384", "swin_tiny_patch4_window7_224",
    "convnext_tiny", "mixer_b16_224", "efficientnet_b0", "tf_efficientnet_b0.ns_jft_in1k", "mobilenetv3_small_100",
    "regnety_002", "densenet121", "vgg11", "inception_v3", "levit_128s", "mobilevit_xxs", "beit_base_patch16_224",
    "eva02_tiny_patch14_224", "vit_small_patch14_dinov2", "vit_base_patch16_clip_224", "naflexvit_base_patch16_gap",
    "coat_lite_tiny", "digits_vit.seed1",
]  # fmt: skip


@pytest.mark.slow
def test_the_preprocessing_of_a_timm_name_is_the_later_extractors() -> None:
    keys = {}
    for name in TIMM:
        with torch.device("meta" if not name.startswith("levit") else "cpu"):
            model: Any = timm.create_model(name)
        keys[name] = timm_preprocessing(model.pretrained_cfg).key
        assert preprocessing_of(name) == keys[name], name
    assert 8 < len(set(keys.values())) < len(TIMM)
    assert keys["resnet50"] != keys["resnet50.tv_in1k"]  # another crop and interpolation


@pytest.mark.parametrize("name", ["test_vit", "digits_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_the_preprocessing_of_a_name_is_the_extractors(name: str) -> None:
    extractor: Any = make_extractor(name, weights="random")
    assert preprocessing_of(name) == extractor.preprocessing


def test_preprocessing_that_depends_on_the_weights_is_none() -> None:
    assert preprocessing_of("hf-hub:timm/resnet50.a1_in1k") is None
    assert preprocessing_of("torchvision/resnet18") == preprocessing_of("torchvision/densenet121")
    assert preprocessing_of("torchvision/resnet18") != preprocessing_of("torchvision/resnet50")
