"""Extractor of torchvision's classification models."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms import InterpolationMode

from repsim.errors import Argument, InvalidInputError, UnknownNameError, WeightsError, reason
from repsim.extractors.checkpoints import Checkpoint, Contents, matching_share, read_checkpoint
from repsim.extractors.fitting import (
    ARGS,
    ORDERED,
    Settings,
    args_size,
    check_dtypes,
    format_kwargs,
    format_value,
    match_in_order,
    misfit_error,
    preprocessing_choices,
    read_pair,
    shapes_of,
)
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preprocessing import Preprocessing, preset
from repsim.extractors.readouts import get_several
from repsim.extractors.weights import (
    ALTERNATIVES,
    check_hash,
    close_response,
    fingerprint,
    quiet_downloads,
    suffix,
    url_cache,
)

PREFIX = "torchvision/"
_POSITIONS = "encoder.pos_embedding"
"""Name of the position embedding of torchvision's Vision Transformers."""

# These two networks normalise their input themselves, as their published weights expect. torchvision warns unless
# init_weights is set.
_OPTIONS = {name: {"transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")}


class TorchvisionExtractor(ModuleExtractor):
    """Extractor of the layers of a torchvision classification model, with the preprocessing of its default weights.

    Parameters
    ----------
    model : str
        A torchvision name (``resnet50``), with or without the prefix ``torchvision/``.
    weights : str
        ``pretrained`` (torchvision's default weights; the hash in the file name is checked), ``random``, or a
        ``.safetensors`` or ``.pth`` file.
    seed : int
        Seed of random weights.
    options : ModelOptions, optional
        Choice of the weights in a file, size and normalisation of the pictures, and arguments of the model.
    layers, readout : str
        As in `ModuleExtractor`.

    Raises
    ------
    UnknownNameError
        A model, layer or readout does not exist; the message suggests similar names.
    WeightsError
        The weights are not available, are damaged, contain code, or belong to another architecture.
    InvalidInputError
        A layer is never called, or no chosen layer has the readout.

    Examples
    --------
    >>> extractor = TorchvisionExtractor("torchvision/shufflenet_v2_x0_5", weights="random", layers="stages")
    >>> extractor.name, [(layer.name, layer.shape) for layer in extractor.layers()][0]
    ('torchvision_shufflenet_v2_x0_5+random-seed0', ('stage2', (48, 28, 28)))
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str = "pretrained",
        seed: int = 0,
        options: ModelOptions | None = None,
        layers: str = "blocks",
        readout: str = "mean",
    ) -> None:
        get_several(readout)  # a typing error in the readout is reported before the download
        name = check_name(model)
        loaded, record, notes, prepared = load_model(name, weights, seed, options)
        super().__init__(
            loaded,
            prepared,
            name=PREFIX + name + suffix(weights, seed, options),
            layers=layers,
            readout=readout,
            provenance={
                "extractor": "torchvision",
                **record,
                "batch_norm": "eval mode, not recalibrated" if weights == "random" else "eval mode",
                "torchvision_version": torchvision.__version__,
            },
            notes=notes,
        )


def names() -> list[str]:
    """Return the names of torchvision's classification models.

    >>> "resnet50" in names(), "fasterrcnn_resnet50_fpn" in names()
    (True, False)
    """
    model_names: list[str] = models.list_models(module=models)
    return model_names


def home(architecture: str) -> str:
    """Return the name of the torchvision module that defines an architecture.

    >>> home("resnext50_32x4d")
    'resnet'
    """
    module: str = models.get_model_builder(architecture).__module__
    return module.rpartition(".")[2]


def check_name(model: str) -> str:
    """Return the name of a torchvision model without its prefix.

    Raises
    ------
    UnknownNameError
        torchvision has no such model; the message suggests similar names.
    """
    name = model.removeprefix(PREFIX)
    if name not in names():
        raise UnknownNameError("torchvision model", name, names())
    return name


def torchvision_preprocessing(model: str) -> Preprocessing:
    """Return the preprocessing of torchvision's default weights of a model, without loading the weights."""
    return preset(models.get_model_weights(check_name(model)).DEFAULT.transforms())


class Loaded(NamedTuple):
    """A network with its weights, in eval mode on the CPU, and the preprocessing of its pictures."""

    model: nn.Module
    record: dict[str, Any]
    """Entries about the weights for the provenance."""
    notes: list[str]
    """Messages for the user about choices that were made."""
    preprocessing: Preprocessing


def load_model(name: str, weights: str = "pretrained", seed: int = 0, options: ModelOptions | None = None) -> Loaded:
    """Return a model in eval mode on the CPU, with its weights and its preprocessing."""
    options = options or ModelOptions()
    options.check_weights(weights)
    settings = Settings(dict(options.model_kwargs), record={"architecture": name, "weights": weights})
    kwargs, record, notes = settings.kwargs, settings.record, settings.notes
    args: Mapping[str, Any] = {}
    key = _size_key(name)
    size = options.img_size
    if size and key and key not in kwargs:
        if size[0] != size[1]:
            raise InvalidInputError(
                f"{PREFIX}{name} takes square pictures, not ", Argument("img_size", f"{size[0]}x{size[1]}")
            )
        kwargs[key] = size[0] if key == "image_size" else size
    if weights == "pretrained":
        chosen = models.get_model_weights(name).DEFAULT
        record["torchvision_weights"] = str(chosen)
        model = _pretrained(name, chosen, settings)
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build(name, **kwargs)
        record["seed"] = seed
    else:
        contents = read_checkpoint(Path(weights), key=options.weights_key, prefix=options.weights_prefix)
        model = _from_file(name, contents, options, settings)
        args = contents.args
        size = size or (read_pair(kwargs["image_size"]) if "image_size" in kwargs else None)
        record |= {"weights": "file", "weights_file": Path(weights).name}
    if kwargs:
        record["model_kwargs"] = kwargs
    record["weights_sha256"] = fingerprint(model)
    return Loaded(model.eval(), record, notes, _preprocessing(name, options, args, size, settings))


def _size_key(name: str) -> str | None:
    """Return the argument that sets the picture size of an architecture, or None if it takes any size."""
    return {"vision_transformer": "image_size", "maxvit": "input_size"}.get(home(name))


def _preprocessing(
    name: str, options: ModelOptions, args: Mapping[str, Any], size: tuple[int, int] | None, settings: Settings
) -> Preprocessing:
    """Return the preprocessing of the default weights, changed by the options of the user and of the checkpoint."""
    usual: Any = models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = usual.crop_size[0], usual.resize_size[0]
    why = "set by the user" if options.img_size else "the weights"
    if size is None and _size_key(name) is None and (size := args_size(args)):
        why = ARGS
    if size is not None and size[0] != size[1]:
        raise InvalidInputError(f"torchvision's models take square pictures, not {size[0]}x{size[1]} ({why})")
    values = preprocessing_choices(options, args)
    share = values["crop_pct"][0] if "crop_pct" in values else crop / resize
    wanted: dict[str, Any] = {"crop_size": size[0] if size else crop}
    wanted["resize_size"] = round(wanted["crop_size"] / share)
    for key in ("mean", "std"):
        if key in values:
            wanted[key] = [*values[key][0]] * (3 // len(values[key][0]))
    if "interpolation" in values:
        wanted["interpolation"] = InterpolationMode(values["interpolation"][0])
    present = {"crop_size": crop, "resize_size": resize, "interpolation": usual.interpolation}
    present |= {key: list(getattr(usual, key)) for key in ("mean", "std")}
    changed = {key: value for key, value in wanted.items() if value != present[key]}
    if not changed:
        return preset(usual)
    if size and "crop_size" in changed:
        settings.notes.append(f"pictures of {size[0]} x {size[1]} pixels{_because(why)}")
    for key in ("mean", "std", "interpolation", "crop_pct"):
        if key in changed or (key == "crop_pct" and key in values and "resize_size" in changed):
            settings.notes.append(f"{key} {format_value(values[key][0])}{_because(values[key][1])}")
    settings.record["prepared"] = {key: value for key, (value, _) in values.items()} | (
        {"img_size": size} if size else {}
    )
    return preset(type(usual)(**{**present, **changed, "antialias": usual.antialias}))


def _because(why: str) -> str:
    return f", {why}" if why == "set by the user" else f": {why}"


def _build(name: str, **options: Any) -> nn.Module:
    try:
        model: nn.Module = models.get_model(name, weights=None, **{**_OPTIONS.get(name, {}), **options})
    except (TypeError, ValueError) as error:
        if not options:
            raise
        raise InvalidInputError(
            f"{PREFIX}{name} cannot be built with {format_kwargs(options)}: {reason(error)}"
        ) from None
    return model


def _pretrained(name: str, chosen: Any, settings: Settings) -> nn.Module:
    kwargs = settings.kwargs
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
        raise WeightsError(
            f"no pretrained weights for {PREFIX}{name} ({file.name}): {why}", remedy=ALTERNATIVES
        ) from error
    if not kwargs:
        return model
    other, state = _build(name, **kwargs), dict(model.state_dict())
    if "image_size" in kwargs:
        state = _resample(other, state, read_pair(kwargs["image_size"])[0], settings)
    _load(other, Checkpoint("its pretrained file", state), name)
    return other


def _resample(model: Any, state: dict[str, Tensor], size: int, settings: Settings) -> dict[str, Tensor]:
    """Return the tensors of a Vision Transformer with the position embedding resampled to the size of the user."""
    before = state[_POSITIONS].shape
    state = dict(interpolate_embeddings(size, model.patch_size, OrderedDict(state)))
    if state[_POSITIONS].shape != before:
        settings.record["resampled"] = [_POSITIONS]
        settings.notes.append(
            f"resampled to the chosen size: {_POSITIONS} from {tuple(before)} to {tuple(state[_POSITIONS].shape)}"
        )
    return state


def _from_file(name: str, contents: Contents, options: ModelOptions, settings: Settings) -> nn.Module:
    """Return a network with the tensors of a file; classes and picture size are those of the file."""
    kwargs, record, notes = settings.kwargs, settings.record, settings.notes
    base = _build(name, **kwargs)
    own = shapes_of(base)
    checkpoint = contents.fit(own)
    record.update(checkpoint.record)
    notes += checkpoint.notes
    state = checkpoint.state
    if options.weights_match == "order":
        state = match_in_order(state, own, checkpoint.name)
        record["weights_match"] = "order"
        notes.append(ORDERED.format(len(state), checkpoint.name))
    check_dtypes(state, base, checkpoint.name, notes)
    first = next(key for key, shape in own.items() if len(shape) == 4)
    if first in state and state[first].shape[1:2] != own[first][1:2]:
        raise InvalidInputError(
            f"{checkpoint.name} takes pictures of {state[first].shape[1]} channels ({first}); torchvision's networks "
            "take 3"
        )
    built = dict(kwargs)
    last = next(key for key in reversed(own) if key.endswith(".weight"))
    if last in state and len(state[last]) != own[last][0]:
        built.setdefault("num_classes", len(state[last]))
    table = state.get(_POSITIONS)
    if table is not None and _POSITIONS in own and table.shape[1:2] != own[_POSITIONS][1:2]:
        side = isqrt(table.shape[1] - 1)
        if "image_size" in kwargs:
            state = _resample(base, state, read_pair(kwargs["image_size"])[0], settings)
        elif side * side == table.shape[1] - 1:
            patch: Any = base.patch_size
            kwargs["image_size"] = built["image_size"] = side * patch
            notes.append(f"built with image_size={side * patch}: {_POSITIONS} has {side} x {side} positions")
    model = _build(name, **built)
    head = last.removesuffix(".weight")
    if f"{head}.bias" in own and matching_share(state, own) >= 0.5 and not {last, f"{head}.bias"} & set(state):
        model.set_submodule(head, nn.Identity())
        notes.append(f"built without its classifier {head}, which {checkpoint.name} does not have")
    _load(model, replace(checkpoint, state=state), name)
    return model


def _load(model: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load the tensors into the model; raise `WeightsError` with the differences if they do not fit."""
    try:
        model.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        raise misfit_error(PREFIX + name, shapes_of(model), checkpoint, error) from None
