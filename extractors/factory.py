"""Make the extractor of a model: a timm or torchvision name, a name of another package, or a torch module.

A package adds a source of models by an entry point of the group ``repsim.extractors``. The name of the entry point is
the prefix of the names of its models, and its value is a function that makes their extractors::

    [project.entry-points."repsim.extractors"]
    zoo = "my_package:make"      # `repsim extract zoo/net` calls make("net", weights=, seed=, layers=, readout=)
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Unpack

import timm
from torch import Tensor, nn

from repsim.errors import Argument, InvalidInputError, Remedy, UnknownNameError, reason
from repsim.extractors import torchvision_models, transformers_models
from repsim.extractors.base import Extractor
from repsim.extractors.families import family_in
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import Choices, ModelOptions
from repsim.extractors.preparation import Preparation, prepare_samples
from repsim.extractors.preprocessing import Transform, timm_preprocessing
from repsim.extractors.repositories import PREFIX as HUB_PREFIX
from repsim.extractors.repositories import locate
from repsim.extractors.samples.source import SampleSource
from repsim.extractors.timm_models import TimmExtractor
from repsim.extractors.torchvision_models import TorchvisionExtractor
from repsim.extractors.weights import check_name as check_timm_name
from repsim.extractors.weights import suffix

GROUP = "repsim.extractors"
Forward = Callable[[nn.Module, Any], Any]
Collate = Callable[[list[Any]], Any]
Mask = str | Callable[[Any], Tensor | None]


def make_extractor(
    model: str | nn.Module,
    *,
    weights: str = "pretrained",
    seed: int = 0,
    layers: str = "blocks",
    readout: str = "mean",
    transform: Transform | None = None,
    name: str | None = None,
    samples: SampleSource | None = None,
    forward: Forward | None = None,
    collate: Collate | None = None,
    mask: Mask | None = None,
    **choices: Unpack[Choices],
) -> Extractor:
    """Make the extractor of a model.

    Parameters
    ----------
    model : str or torch.nn.Module
        A timm name (``resnet50``), ``torchvision/NAME``, ``hf/NAME`` of transformers, ``PREFIX/NAME`` of a package with
        an entry point, or a torch module.
    weights : str
        ``pretrained``, ``random``, or a file. Only for a model that is named: a module has its weights already.
    seed : int
        Seed of random weights.
    layers, readout : str
        The layers to read, and their readouts.
    transform, name : optional
        For a torch module only: the function that prepares its samples, and the name of the model.
    samples : SampleSource, optional
        The samples that the model will read; by default pictures. A model that cannot read their kind is refused.
    forward, collate, mask : optional
        For a torch module only: how it is called, how batches are made, and the mask of their tokens
        (`repsim.extractors.preparation.prepare_samples`).
    **choices
        For models of timm and torchvision only: ``weights_key``, ``weights_prefix`` and ``weights_match`` of a weights
        file; ``img_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct`` of the pictures; ``model_kwargs`` of
        the function that builds the model. `ModelOptions.read` describes their values.

    Returns
    -------
    Extractor
        The extractor, with its weights loaded.

    Raises
    ------
    UnknownNameError, WeightsError, InvalidInputError
        The extractor cannot be made; ``transform`` or ``name`` is used with the name of a model; or the model does not
        take one of the options.

    Examples
    --------
    >>> make_extractor("digits_vit", weights="random").name
    'digits_vit+random-seed0'
    >>> from torchvision.transforms import ToTensor, Resize, Compose
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> make_extractor(net, transform=Compose([Resize((4, 4)), ToTensor()]), name="mine", layers="pre_logits").name
    'mine'
    """
    options = ModelOptions.read(**choices)
    if isinstance(model, nn.Module):
        if options.chosen:
            raise InvalidInputError(
                *options.chosen,
                ": not for a torch module, which is built already",
                remedy=Remedy(Argument("transform"), " prepares its pictures"),
            )
        if (weights, seed) != ("pretrained", 0):
            raise InvalidInputError(
                f"a torch module has its weights already: weights={weights!r}, seed={seed} cannot be used with it"
            )
        prepared = _prepare(samples, transform, forward, collate, mask)
        return ModuleExtractor(model, prepared, name=name, layers=layers, readout=readout)
    if transform is not None or name is not None:
        raise InvalidInputError(f"transform= and name= are for a torch module; {model} has its own")
    if any(option is not None for option in (forward, collate, mask)):
        raise InvalidInputError(f"forward=, collate= and mask= are for a torch module; {model} has its own")
    if model.startswith(HUB_PREFIX):
        return transformers_models.TransformersExtractor(
            model, samples=samples, weights=weights, seed=seed, options=options, layers=layers, readout=readout
        )  # fmt: skip
    if options.max_length is not None:
        raise InvalidInputError(Argument("max_length"), f": {model} reads pictures, which have no tokens")
    if samples is not None and samples.modality != "image":
        raise InvalidInputError(f"{model} reads pictures, and {samples.name} has {samples.noun}")
    if model.startswith(torchvision_models.PREFIX):
        return TorchvisionExtractor(model, weights=weights, seed=seed, options=options, layers=layers, readout=readout)
    if entry := _entry_point(model):
        if options.chosen:
            raise InvalidInputError(*options.chosen, f": not for {model}, which another package makes")
        try:
            make = entry.load()
        except (Exception, SystemExit) as error:  # what another package does at import is not known
            raise InvalidInputError(
                f"{model}: the plug-in {entry.name} = {entry.value} cannot be loaded ({reason(error)})"
            ) from error
        extractor: Extractor = make(model.partition("/")[2], weights=weights, seed=seed, layers=layers, readout=readout)
        return extractor
    return TimmExtractor(model, weights=weights, seed=seed, options=options, layers=layers, readout=readout)


def _prepare(
    samples: SampleSource | None,
    transform: Transform | None,
    forward: Forward | None,
    collate: Collate | None,
    mask: Mask | None,
) -> Transform | Preparation | None:
    """Return the preparation of a module's samples; of pictures that are called as usual, their transform."""
    pictures = samples is None or (samples.modality == "image" and samples.collate is None)
    if samples is None or (pictures and forward is None and collate is None and mask is None):
        return transform
    if pictures and transform is None:
        raise InvalidInputError(
            "a module with forward= or collate= has no preprocessing of its own: pass transform=, a function from a "
            "PIL picture to a tensor"
        )
    return prepare_samples(samples, transform=transform, collate=collate, forward=forward, mask=mask)


def check_name(model: str) -> None:
    """Check that a model of this name exists, without loading weights. Names of other packages are not checked.

    Raises
    ------
    UnknownNameError
        There is no such model; the message suggests similar names.

    Examples
    --------
    >>> check_name("torchvision/resnet5O")
    Traceback (most recent call last):
    ...
    repsim.errors.UnknownNameError: unknown torchvision model 'resnet5O'; did you mean resnet50 ...
    """
    if model.startswith(torchvision_models.PREFIX):
        torchvision_models.check_name(model)
    elif model.startswith(HUB_PREFIX):
        transformers_models.check_name(model)
    elif not _entry_point(model):
        check_timm_name(model)


def store_name(model: str, weights: str = "pretrained", seed: int = 0, **choices: Unpack[Choices]) -> str:
    """Return the name that the extractor of a model will have; extractors of other packages choose their own names.

    >>> store_name("digits_vit.seed1"), store_name("digits_vit.seed1", "runs/epoch9.pth")
    ('digits_vit.seed1', 'digits_vit+epoch9')
    """
    end = suffix(weights, seed, ModelOptions.read(**choices))
    if model.startswith(HUB_PREFIX):
        return locate(model).label.replace("/", "_") + end
    if weights != "pretrained" and "/" not in model and ":" not in model:
        model = model.partition(".")[0]
    return model.replace("/", "_").replace(":", "_") + end


def preprocessing_of(model: str, weights: str = "pretrained", **choices: Unpack[Choices]) -> str | None:
    """Return the future `ModuleExtractor.preprocessing` of a model, without loading weights.

    None if the preprocessing depends on the weights.

    >>> preprocessing_of("digits_vit.seed1") == preprocessing_of("digits_resnet")
    True
    """
    if weights not in {"pretrained", "random"} or ModelOptions.read(**choices).chosen:
        check_name(model)
        return None
    if model.startswith(torchvision_models.PREFIX):
        return torchvision_models.torchvision_preprocessing(model).key
    if model.startswith(HUB_PREFIX):
        transformers_models.check_name(model)
        return None
    if ":" in model or _entry_point(model):  # hf-hub:..., local-dir:...: in a file beside the weights
        return None
    check_timm_name(model)
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return timm_preprocessing(config.to_dict()).key if config else None


def library_of(architecture: str) -> str | None:
    """Return which of timm, torchvision and transformers defines an architecture.

    None if none of them does: a network of the embedded zoo, or a torch module, is a family of its own.

    >>> library_of("resnet50"), library_of("vit_b_16"), library_of("gpt2-12x768"), library_of("digits_vit")
    ('timm', 'torchvision', 'transformers', None)
    """
    if timm.is_model(architecture):
        return "timm" if timm.model_entrypoint(architecture).__module__.startswith("timm.") else None
    if architecture in torchvision_models.names():
        return "torchvision"
    return "transformers" if family_in("transformers", architecture) else None


def _entry_point(model: str) -> EntryPoint | None:
    """Return the entry point for the prefix of a model's name, or None if the name has no prefix."""
    prefix, slash, _ = model.partition("/")
    if not slash or ":" in prefix:  # timm resolves hf-hub:timm/resnet50
        return None
    sources = {entry.name: entry for entry in entry_points(group=GROUP)}
    if prefix not in sources:
        raise UnknownNameError("source of models", prefix, ["torchvision", "hf", *sources], where=f"in {model}")
    return sources[prefix]
