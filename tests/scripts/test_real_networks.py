"""Tests of scripts/validation/real_networks.py: formats of the packages, matching of tensors, classes, tables."""

import base64
import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn

import repsim
from repsim.study.study_file import read_protocol

SCRIPTS = Path(__file__).parents[2] / "scripts" / "validation"


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def weights(scripts: None) -> ModuleType:
    return importlib.import_module("packaged_weights")


@pytest.fixture(scope="module")
def study(scripts: None) -> ModuleType:
    return importlib.import_module("real_networks")


# --- formats


def test_8_bit_weights_of_tensorflow_js_are_dequantised(weights: ModuleType, tmp_path: Path) -> None:
    specs = [("a/kernel", "1,2,2", -0.5, 0.25), ("a/bias", "2", 1, 0.5)]
    written = ",".join(
        f'{{name:"{name}",shape:[{shape}],dtype:"float32",quantization:{{min:{low},scale:{scale},dtype:"uint8"}}}}'
        for name, shape, low, scale in specs
    )
    (tmp_path / "model.min.js").write_text(f'x={{name:"no weight",weightsManifest:[{{weights:[{written}]}}]}}')
    data = bytes([0, 1, 2, 3, 4, 255])
    for k, part in enumerate((data[:3], data[3:])):  # a tensor may be split between two files
        (tmp_path / f"group1-shard{k + 1}of2.min.js").write_text(f'm.exports="{base64.b64encode(part).decode()}"')
    tensors = weights.read_tfjs(tmp_path)
    np.testing.assert_array_equal(tensors["a/kernel"], [[[-0.5, -0.25], [0, 0.25]]])
    np.testing.assert_array_equal(tensors["a/bias"], [3, 128.5])
    assert tensors["a/bias"].dtype == np.float32


def field(number: int, value: bytes | int) -> bytes:
    """Write a field of a protocol buffer, of fewer than 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def test_constants_of_a_frozen_graph_are_read(weights: ModuleType, tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    shape = b"".join(field(2, field(1, size)) for size in values.shape)
    tensor = field(1, 1) + field(2, shape) + field(4, values.tobytes())
    attribute = field(1, b"value") + field(2, field(8, tensor))
    constant = field(1, b"weights") + field(2, b"Const") + field(5, attribute)
    version = bytes([4 << 3 | 5]) + struct.pack("<f", 1.0)  # fields of 4 bytes are skipped
    other = field(1, b"relu") + field(2, b"Relu6") + field(3, b"weights")
    (tmp_path / "graph.pb").write_bytes(version + field(1, constant) + field(1, other))
    (name, read), *rest = weights.read_graph(tmp_path / "graph.pb").items()
    assert (name, rest) == ("weights", [])
    np.testing.assert_array_equal(read, values)


def test_kernels_of_tensorflow_compute_the_same_in_torch(weights: ModuleType) -> None:
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(3, 3, 2)).astype(np.float32)  # one position of a 3 x 3 kernel
    full, separate = (rng.normal(size=(3, 3, 2, count)).astype(np.float32) for count in (4, 1))
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    expected = np.einsum("hwi,hwio->o", picture, full)
    np.testing.assert_allclose(nn.functional.conv2d(x, weights.kernel(full)).flatten(), expected, rtol=1e-5)
    expected = np.einsum("hwi,hwi->i", picture, separate[..., 0])
    by_channel = nn.functional.conv2d(x, weights.depthwise(separate), groups=2)
    np.testing.assert_allclose(by_channel.flatten(), expected, rtol=1e-5)


# --- networks


def test_tensors_are_matched_by_order_and_shapes_are_checked(weights: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    tensors = [torch.rand(4, 3, 1, 1), *torch.rand(4, 4)]
    renamed = weights.in_order(tensors, model)
    assert list(renamed) == ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert all(value is tensor for value, tensor in zip(renamed.values(), tensors, strict=True))
    with pytest.raises(ValueError, match=r"1\.weight: \(5,\) in the package, \(4,\) in timm"):
        weights.in_order([tensors[0], torch.rand(5), *tensors[2:]], model)
    with pytest.raises(ValueError, match="shorter"):
        weights.in_order(tensors[:-1], model)


def test_the_mobilenets_have_the_convolutions_that_are_read(weights: ModuleType) -> None:
    by_name = {network.name: network for network in weights.NETWORKS}
    counts = {
        name: sum(isinstance(m, nn.Conv2d) for m in by_name[name].model().modules())
        for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v2_140")
    }
    assert counts == {"mobilenet_v1": 27, "mobilenet_v2": 52, "mobilenet_v2_140": 52}
    assert len(list(weights._inverted_residuals())) == 52


# --- study


def test_every_class_of_imagenet_is_in_one_group(study: ModuleType) -> None:
    groups = [study.group_of(synset) for synset in ImageNetInfo("imagenet-1k").label_names()]
    animals = {"fish": 16, "bird": 59, "amphibian or reptile": 44, "invertebrate": 61, "dog": 118, "other mammal": 100}
    counts = {group: groups.count(group) for group in set(groups)}
    assert counts == {**animals, "artefact": 528, "food or plant": 63, "landscape": 11}
    assert groups[:398] == [group for group in groups if group in animals]  # ImageNet's first 398 classes are animals


def test_the_study_file_is_valid(study: ModuleType, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("n01440764_tench.JPEG", "n02666196_abacus.JPEG"):
        (pictures / name).touch()
    protocol, _ = read_protocol(study.write_study(pictures, tmp_path))
    assert [model.store for model in protocol.models] == [network.name for network in study.NETWORKS]
    assert protocol.controls == "untrained:3"
    assert (tmp_path / "labels.csv").read_text().splitlines()[1:] == [
        "n01440764_tench.JPEG,fish",
        "n02666196_abacus.JPEG,artefact",
    ]


def test_captions_are_the_names_of_the_classes(study: ModuleType) -> None:
    assert study.captions(["n01440764_tench.JPEG", "a/n02666196_x.png"]) == ["tench", "abacus"]


def test_dimensions_of_a_gaussian_and_of_a_line(study: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    line = np.outer(rng.normal(size=4000), [1.0, 2.0])
    cloud = rng.normal(size=(4000, 5)) + 100
    assert study.dimensions(line) == pytest.approx((1, 1))
    ratio, first = study.dimensions(cloud)
    assert ratio == pytest.approx(5, rel=0.02)
    assert first == pytest.approx(0.2, abs=0.02)
    repsim.write_store(tmp_path / "a.h5", {"x": line, "y": cloud}, model="a").close()
    *_, row = study.dimension_table([tmp_path / "a.h5"])
    assert row.startswith("| a | 1.0, 5.0, 5.0 | 5.0 | ")
