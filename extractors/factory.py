"""From what a user names, or holds, to its extractor: timm's, torchvision's, third parties', and any torch module.

A package adds a source of models by an entry point of the group ``repsim.extractors``. Its name is the prefix of its
models' names, and it leads to a function that makes their extractors::

    [project.entry-points."repsim.extractors"]
    zoo = "my_package:make"      # `repsim extract zoo/net` calls make("net", weights=, seed=, layers=, readout=)
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Unpack

import timm
from torch import nn

from repsim.errors import Argument, InvalidInputError, Remedy, UnknownNameError
from repsim.extractors import torchvision_models
from repsim.extractors.base import Extractor
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import Choices, ModelOptions
from repsim.extractors.preprocessing import Transform, timm_preprocessing
from repsim.extractors.timm_models import TimmExtractor
from repsim.extractors.torchvision_models import TorchvisionExtractor
from repsim.extractors.weights import check_name as check_timm_name
from repsim.extractors.weights import suffix

GROUP = "repsim.extractors"


def make_extractor(
    model: str | nn.Module,
    *,
    weights: str = "pretrained",
    seed: int = 0,
    layers: str = "blocks",
    readout: str = "mean",
    transform: Transform | None = None,
    name: str | None = None,
    **choices: Unpack[Choices],
) -> Extractor:
    """Make the extractor of a model.

    Parameters
    ----------
    model
        A timm name (``resnet50``), ``torchvision/NAME``, ``PREFIX/NAME`` of a package that announces itself, or a torch
        module.
    weights, seed
        ``pretrained``, ``random`` (from ``seed``), or a file. Of a name only: a module has its weights.
    layers, readout
        What is read of it.
    transform, name
        Of a module only: how its pictures are prepared, and what it is called.
    **choices
        Of timm's and torchvision's models: ``weights_key``, ``weights_prefix`` and ``weights_match`` of a file,
        ``img_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct`` of the pictures, and ``model_kwargs`` of the
        function that builds the model, each as `ModelOptions.read` takes it.

    Raises
    ------
    UnknownNameError, WeightsError, InvalidInputError
        As the extractor that is made; for a transform or a name given with a model's name, and for options that it
        does not know.

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
            raise InvalidInputError(f"a torch module has its weights: weights={weights!r}, seed={seed} cannot be given")
        return ModuleExtractor(model, transform, name=name, layers=layers, readout=readout)
    if transform is not None or name is not None:
        raise InvalidInputError(f"transform= and name= are for a torch module; {model} has its own")
    if model.startswith(torchvision_models.PREFIX):
        return TorchvisionExtractor(model, weights=weights, seed=seed, options=options, layers=layers, readout=readout)
    if entry := _entry_point(model):
        if options.chosen:
            raise InvalidInputError(*options.chosen, f": not for {model}, which another package makes")
        made: Extractor = entry.load()(
            model.partition("/")[2], weights=weights, seed=seed, layers=layers, readout=readout
        )
        return made
    return TimmExtractor(model, weights=weights, seed=seed, options=options, layers=layers, readout=readout)


def check_name(model: str) -> None:
    """Raise, with near names, unless there is such a model; loads no weights. Third parties' names are theirs to check.

    >>> check_name("torchvision/resnet5O")
    Traceback (most recent call last):
    ...
    repsim.errors.UnknownNameError: unknown torchvision model 'resnet5O'; did you mean resnet50 ...
    """
    if model.startswith(torchvision_models.PREFIX):
        torchvision_models.check_name(model)
    elif not _entry_point(model):
        check_timm_name(model)


def store_name(model: str, weights: str = "pretrained", seed: int = 0, **choices: Unpack[Choices]) -> str:
    """Name an extractor before it is made; one that another package makes has a name of its own instead.

    >>> store_name("digits_vit.seed1"), store_name("digits_vit.seed1", "runs/epoch9.pth")
    ('digits_vit.seed1', 'digits_vit+epoch9')
    """
    end = suffix(weights, seed, ModelOptions.read(**choices))
    if weights != "pretrained" and "/" not in model and ":" not in model:
        model = model.partition(".")[0]
    return model.replace("/", "_").replace(":", "_") + end


def preprocessing_of(model: str, weights: str = "pretrained", **choices: Unpack[Choices]) -> str | None:
    """What will be the extractor's `ModuleExtractor.preprocessing`, without weights; None where these have a say in it.

    >>> preprocessing_of("digits_vit.seed1") == preprocessing_of("digits_resnet")
    True
    """
    if weights not in {"pretrained", "random"} or ModelOptions.read(**choices).chosen:
        check_name(model)
        return None
    if model.startswith(torchvision_models.PREFIX):
        return torchvision_models.torchvision_preprocessing(model).key
    if ":" in model or _entry_point(model):  # hf-hub:..., local-dir:...: what a file says that comes with the weights
        return None
    check_timm_name(model)
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return timm_preprocessing(config.to_dict()).key if config else None


def family_of(architecture: str) -> str | None:
    """The family that an architecture is of: the module of timm's, or of torchvision's, that defines it.

    None where neither does: a network of the embedded zoo, or a module of the user's own, is a family by itself.

    >>> family_of("resnet50"), family_of("vit_base_patch16_224"), family_of("vit_b_16"), family_of("digits_vit")
    ('resnet', 'vision_transformer', 'vision_transformer', None)
    """
    if timm.is_model(architecture):
        home = timm.model_entrypoint(architecture).__module__
        return home.rpartition(".")[2] if home.startswith("timm.") else None
    if architecture in torchvision_models.names():
        return torchvision_models.family(architecture)
    return None


def _entry_point(model: str) -> EntryPoint | None:
    """The entry point that a name's prefix means, if it has one."""
    prefix, slash, _ = model.partition("/")
    if not slash or ":" in prefix:  # hf-hub:timm/resnet50 is for timm
        return None
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if prefix not in known:
        raise UnknownNameError("source of models", prefix, ["torchvision", *known], where=f"in {model}")
    return known[prefix]
