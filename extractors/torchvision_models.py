"""The extractor for torchvision's classification models."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from torchvision import models

from repsim.errors import UnknownNameError, WeightsError, reason
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.preprocessing import Preprocessing, preset
from repsim.extractors.readouts import get_several
from repsim.extractors.weights import (
    check_hash,
    close_response,
    fingerprint,
    quiet_downloads,
    read_tensors,
    suffix,
    url_cache,
)

PREFIX = "torchvision/"

# These two normalise their input in the model, as their published weights expect; and torchvision warns that another
# initialisation will be the default.
_OPTIONS = {name: {"transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")}


class TorchvisionExtractor(ModuleExtractor):
    """Reads layers of one of torchvision's classification models, prepared as for its default weights.

    Parameters
    ----------
    model
        A name of torchvision's (``resnet50``), with ``torchvision/`` before it or not.
    weights
        ``pretrained`` (torchvision's default weights; the hash in the file's name is checked), ``random``, or a
        ``.safetensors`` or ``.pth`` file.
    seed
        Of random weights.
    layers, readout
        As for every `ModuleExtractor`.

    Raises
    ------
    UnknownNameError
        For a model, layer or readout of no known name; with the nearest ones.
    WeightsError
        For weights that cannot be had, are damaged, hold code, or are another architecture's.
    InvalidInputError
        For a layer that is never called, and for a readout that no chosen layer has.

    Examples
    --------
    >>> extractor = TorchvisionExtractor("torchvision/shufflenet_v2_x0_5", weights="random", layers="stages")
    >>> extractor.name, [(layer.name, layer.shape) for layer in extractor.layers()][0]
    ('torchvision_shufflenet_v2_x0_5+random-seed0', ('stage2', (48, 28, 28)))
    """

    def __init__(
        self, model: str, *, weights: str = "pretrained", seed: int = 0, layers: str = "blocks", readout: str = "mean"
    ) -> None:
        get_several(readout)  # a slip of the hand there should not cost a download
        name = check_name(model)
        loaded, record = load_model(name, weights, seed)
        super().__init__(
            loaded,
            torchvision_preprocessing(name),
            name=PREFIX + name + suffix(weights, seed),
            layers=layers,
            readout=readout,
            provenance={
                "extractor": "torchvision",
                **record,
                "batch_norm": "eval mode, not recalibrated" if weights == "random" else "eval mode",
                "torchvision_version": torchvision.__version__,
            },
        )


def names() -> list[str]:
    """List torchvision's classification models.

    >>> "resnet50" in names(), "fasterrcnn_resnet50_fpn" in names()
    (True, False)
    """
    found: list[str] = models.list_models(module=models)
    return found


def family(architecture: str) -> str:
    """The module that defines it.

    >>> family("resnext50_32x4d")
    'resnet'
    """
    home: str = models.get_model_builder(architecture).__module__
    return home.rpartition(".")[2]


def check_name(model: str) -> str:
    """The name without its prefix; raises, with near names, unless torchvision knows it."""
    name = model.removeprefix(PREFIX)
    if name not in names():
        raise UnknownNameError("torchvision model", name, names())
    return name


def torchvision_preprocessing(model: str) -> Preprocessing:
    """What torchvision does for its default weights of this model; needs no weights."""
    return preset(models.get_model_weights(check_name(model)).DEFAULT.transforms())


def load_model(name: str, weights: str = "pretrained", seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Make a model in eval mode on the CPU; returns it with what is to be recorded of its weights."""
    record: dict[str, Any] = {"architecture": name, "weights": weights}
    if weights == "pretrained":
        chosen = models.get_model_weights(name).DEFAULT
        record["torchvision_weights"] = str(chosen)
        model = _pretrained(name, chosen)
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build(name)
        record["seed"] = seed
    else:
        model = _from_file(name, Path(weights))
        record |= {"weights": "file", "weights_file": Path(weights).name}
    record["weights_sha256"] = fingerprint(model)
    return model.eval(), record


def _build(name: str, **options: Any) -> nn.Module:
    model: nn.Module = models.get_model(name, weights=None, **_OPTIONS.get(name, {}), **options)
    return model


def _pretrained(name: str, chosen: Any) -> nn.Module:
    ways = "Use --weights FILE (.safetensors or .pth), or --weights random"
    file = url_cache(chosen.url)
    check_hash(file)  # torch compares the hash in the name when it downloads, and never again
    try:
        with quiet_downloads():
            model: nn.Module = models.get_model(name, weights=chosen, progress=False)
    except Exception as error:
        close_response(error)
        why = reason(error)
        if type(error) is URLError:  # a 404 is a URLError too
            why = "they are not in the cache and their server cannot be reached"
        raise WeightsError(f"no pretrained weights for {PREFIX}{name} ({file.name}): {why}. {ways}") from error
    return model


def _from_file(name: str, path: Path) -> nn.Module:
    """Load a state_dict with as many classes as it has."""
    state = read_tensors(path)
    last = next(key for key in reversed(_build(name).state_dict()) if key.endswith(".weight"))
    model = _build(name, num_classes=len(state[last])) if last in state else _build(name)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path.name} does not fit {PREFIX}{name}: {reason(error, lines=2)}") from None
    return model
