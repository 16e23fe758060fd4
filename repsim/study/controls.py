"""Make the controls of a study: the input of the networks, the classes of their samples, untrained networks.

They can make representations alike without any learning. The input is a set of kernels like those of layers: of the
pixels that went into the networks and of the statistics of the pictures, both stored at extraction. Classes are
controlled for by comparing within them. Untrained networks of the same architectures are extracted on request.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from repsim.errors import Argument, InvalidInputError, OtherSettingsError, Remedy, RepsimError
from repsim.extraction.jobs import Extraction, Samples, choose_stream
from repsim.extraction.options import DType
from repsim.extractors import ImageSource, open_images
from repsim.extractors.factory import make_extractor
from repsim.extractors.options import Choices
from repsim.metrics.recipes.groups import Groups
from repsim.stores.store import ActivationStore
from repsim.study.design import Design, Member
from repsim.study.input_kernels import of_pixels, of_statistics, scaled, select

Values = Float64[np.ndarray, "n *features"]
_LEAST_WITHIN = 4
"""Smallest number of samples, beyond one for each class, in half of the samples: what similarity within classes needs.
"""
_EQUAL = 1e-4
"""Inputs that differ by less than this share, after centring and scaling, are one: devices differ in rounding."""


@dataclass(frozen=True, eq=False)
class Control:
    """A kernel that is projected out of layers: the remaining similarity is not due to it."""

    name: str
    features: Float[np.ndarray, "n p"]
    members: tuple[str, ...] = ()
    """Names of the networks whose layers it is a control for: those whose input is stored."""


def inputs(design: Design) -> list[Control]:
    """Return the input of the networks as a few controls that are not all linear in the pixels.

    The dictionary of `repsim.study.input_kernels` is made of the pixels of every network and of the statistics of its
    pictures; equal ones, and those that differ by an offset and a scale, are used once. The kernels that span it are
    selected. The kernels of all pixels and of their mean over the picture come first, as a readout that averages over
    positions depends on them most. Stores without pixels have no input; they are not among the ``members``.
    """
    seen = tuple(member.name for member in design.members if member.store.pixels is not None)
    pixels = _distinct((member.name, _pixels(member.store)) for member in design.members)
    statistics = _distinct((member.name, _statistics(member.store)) for member in design.members)
    named = {member.name: member.store.statistic_names for member in design.members}
    candidates = [
        *chain.from_iterable(of_pixels(values, _of("pixels", name, pixels)) for name, values in pixels.items()),
        *chain.from_iterable(
            of_statistics(values, named[name], _of("statistics of the picture", name, statistics))
            for name, values in statistics.items()
        ),
    ]
    # computed in float64; in the precision of the pixels, products with layers need no conversion
    wide = any(member.store.pixels is not None and member.store.pixels.dtype == np.float64 for member in design.members)
    dtype = np.float64 if wide else np.float32
    return [Control(kernel.name, kernel.features().astype(dtype), seen) for kernel in select(candidates)]


def _of(what: str, name: str, all_inputs: Mapping[str, Any]) -> str:
    """Return the name of an input: with that of its network only if there are several."""
    return what if len(all_inputs) == 1 else f"{what} of {name}"


def _distinct(arrays: Iterable[tuple[str, Values | None]]) -> dict[str, Values]:
    """Return the arrays that differ from earlier ones by more than an offset of each feature and one scale."""
    distinct: dict[str, Values] = {}
    unit: list[Values] = []
    for name, values in arrays:
        if values is None:
            continue
        x = scaled(values.reshape(len(values), -1))
        if not any(x.shape == other.shape and np.abs(x - other).max() < _EQUAL for other in unit):
            distinct[name] = values
            unit.append(x)
    return distinct


def _pixels(store: ActivationStore) -> Values | None:
    """Return the stored pixels, (n, channels, height, width), or (n, channels, positions); None if there are none.

    Pixels from `repsim.extract` are stored as vectors of three channels, of 8 x 8 pixels unless the picture is smaller.
    Arrays given to `repsim.write_store` have their shape.
    """
    if store.pixels is None:
        return None
    values = store.pixels[:].astype(np.float64)
    if store.provenance.get("extractor") == "given":
        return values if values.ndim > 2 else values[:, None]
    values = values.reshape(len(values), 3, -1)
    side = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:2], side, side) if side**2 == values.shape[-1] > 1 else values


def _statistics(store: ActivationStore) -> Values | None:
    """Return the stored statistics of the pictures, (n, statistics); None if the store has none."""
    return None if store.statistics is None else store.statistics[:].astype(np.float64)


def classes(design: Design) -> Groups | None:
    """Return the classes of the samples, if similarity within classes can be computed (`objection_to_classes`).

    Stores that put the same samples into different classes are refused before (`AlignedView`).
    """
    labelled = [member.store for member in design.members if member.store.labels is not None]
    if not labelled:
        return None
    numbers = Groups(torch.from_numpy(_class_numbers(labelled[0])))
    return None if _objection(numbers, design.groups) else numbers


def objection_to_classes(design: Design) -> str:
    """Return why similarity within classes is not computed though labels are stored; empty if it is.

    It needs classes with several samples, also in half of the samples.
    """
    labelled = [member.store for member in design.members if member.store.labels is not None]
    return _objection(Groups(torch.from_numpy(_class_numbers(labelled[0]))), design.groups) if labelled else ""


def unjudged_classes(design: Design) -> str:
    """Return why it cannot be told what goes beyond the classes; empty if it can, or if there are no classes.

    One class of all samples, and classes of single samples, are not classes that networks could share.
    """
    held = next((member.store for member in design.members if member.store.labels is not None), None)
    if held is None or len(np.unique(np.asarray(held.labels))) in {1, design.n}:
        return ""
    return objection_to_classes(design)


def _objection(labels: Groups, groups: Groups | None) -> str:
    if labels.count == 1:
        return "all samples are of one class"
    if labels.trivial:
        return "every sample is of a class of its own"
    sizes = labels.sizes.double()
    in_half = sizes / 2 - 1 + 0.5**sizes  # samples of a class beyond the first, in half of all, on average
    if float(in_half.sum()) < _LEAST_WITHIN or int((sizes > 1).sum()) < 2:
        return f"the {labels.n} samples are of {labels.count} classes, with too few samples in each"
    if groups is not None and len(np.unique(np.stack([groups.numbers, labels.numbers]), axis=1).T) > groups.count:
        return "some groups have samples of several classes"
    return ""


def _class_numbers(store: ActivationStore) -> NDArray[np.intp]:
    """Return the class of every sample, numbered by first occurrence, so that the names of classes do not matter."""
    first, numbers = np.unique(np.asarray(store.labels), return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(first))[numbers]


def extract_untrained(
    design: Design,
    seeds: int,
    folder: Path,
    *,
    data: str | None = None,
    split: str | None = None,
    data_root: str | None = None,
    device: str = "auto",
    step: Callable[[], None] = lambda: None,
) -> list[ActivationStore]:
    """Extract untrained networks of every trained architecture, on the same samples, into ``folder``.

    Architectures without a name, such as a torch module, are left out if untrained networks of them are among the
    stores. Batch norm is recalibrated on the samples; as initialised it would have no effect. Stores that an earlier
    call made are kept.

    Parameters
    ----------
    design
        The models of the study.
    seeds
        Number of networks of each architecture, with random seeds 0, 1, ...
    folder
        Folder of the stores.
    data, split, data_root
        The pictures, as for `repsim.extract`; by default those that the stores name as their source.
    device
        Device on which the networks run.
    step
        Called after each network.

    Raises
    ------
    InvalidInputError
        If the pictures are not those of the stores, or a model was not extracted by its name and has no untrained
        networks yet.
    OutputError
        If a store in the folder was made with other settings.
    """
    examples = _examples(design)
    for member in examples:
        if not _has_name(member):
            raise InvalidInputError(
                f"{member.store.path} was not extracted from a model's name, so no untrained network can be made; "
                "write the store of an untrained one yourself, with weights='random' in its provenance, and add it"
            )
    if not examples:
        return []
    samples = _same_samples(_images(examples[0], data, split, data_root), examples[0])
    stores = []
    for member in examples:
        for seed in range(seeds):
            stores.append(_extract(member, seed, samples, folder, device))
            step()
    return stores


def count_architectures(design: Design) -> int:
    """Return the number of architectures of which untrained networks are extracted."""
    return len(_examples(design))


def _examples(design: Design) -> list[Member]:
    """Return a trained model of every architecture, without those that have no name but untrained networks already."""
    by_architecture: dict[str, Member] = {}
    for member in design.trained:
        by_architecture.setdefault(member.architecture, member)
    return [member for member in by_architecture.values() if _has_name(member) or not design.twins_of(member)]


def _has_name(member: Member) -> bool:
    """Return whether a model was extracted by the name of its architecture, so that it can be made again."""
    return member.store.provenance.get("extractor") in {"timm", "torchvision"}


def _images(member: Member, data: str | None, split: str | None, root: str | None) -> ImageSource:
    """Open the pictures that the user names, or those that the store names as its source.

    A store records the name of a folder, not its path, and appends the split in brackets ("photos [val]").
    """
    limit = member.store.provenance.get("max_pixels")  # the limit of the earlier extraction
    max_pixels = limit if isinstance(limit, int) and limit > 0 else None
    if data is not None:
        return open_images(data, split=split, root=root, max_pixels=max_pixels)
    recorded = str(member.store.provenance.get("data") or member.store.data)
    name, bracket, rest = recorded.rpartition(" [")
    source, part = (name, rest.removesuffix("]")) if bracket and rest.endswith("]") else (recorded, split)
    try:
        return open_images(source, split=part, root=root, max_pixels=max_pixels)
    except RepsimError as error:
        raise InvalidInputError(
            f"{member.store.path} was made from {recorded}, and {error.problem}",
            remedy=Remedy("name the pictures with ", Argument("data")),
        ) from None


def _same_samples(images: ImageSource, member: Member) -> Samples:
    row_of = {name: k for k, name in enumerate(images.ids)}
    ids = member.store.sample_ids
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise InvalidInputError(
            f"{images.name} lacks {len(missing)} of the {len(ids)} samples of {member.store.path}, the first "
            f"{missing[0]}",
            remedy=Remedy("name the pictures that it was extracted from with ", Argument("data")),
        )
    samples = Samples(images, [row_of[name] for name in ids])
    if difference := ids.difference(samples.ids):
        raise InvalidInputError(
            f"the pictures in {images.name} have the same names as those of {member.store.path}, but other contents "
            f"({difference})",
            remedy=Remedy("name the pictures that it was extracted from with ", Argument("data")),
        )
    if member.store.labels is not None:  # the labels of a store may come from a table of the user
        labels = np.zeros(len(images), np.int64)
        labels[samples.rows] = member.store.labels
        images.labels, images.classes = labels, member.store.classes
    return samples


def _recorded_choices(provenance: Mapping[str, Any]) -> Choices:
    """Return the settings of a trained network and its preprocessing that do not follow from its name."""
    choices: Choices = {}
    if kwargs := provenance.get("model_kwargs"):
        choices["model_kwargs"] = {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}
    for key, value in (provenance.get("prepared") or {}).items():
        choices[key] = tuple(value) if isinstance(value, list) else value  # type: ignore[literal-required]
    return choices


def _extract(member: Member, seed: int, samples: Samples, folder: Path, device: str) -> ActivationStore:
    provenance = member.store.provenance
    prefix = "torchvision/" if provenance.get("extractor") == "torchvision" else ""
    name = prefix + str(provenance.get("timm_name") or provenance.get("architecture") or member.architecture)
    layers = [member.store[array].key.layer for array in member.arrays]
    extractor = make_extractor(
        name,
        weights="random",
        seed=seed,
        layers=",".join(layers),
        readout=member.readout,
        **_recorded_choices(provenance),
    )
    how = choose_stream(samples, readout=member.readout, batch_size=None, workers=None, device=device, amp=False)
    dtype: DType = "float16" if member.store[member.arrays[0]].dtype == np.float16 else "float32"
    named = f"{extractor.name}.{member.variant.replace('=', '-')}" if member.variant else None
    job = Extraction(extractor, samples, folder, how, dtype=dtype, recalibrate=True, name=named)
    try:
        job.samples_stored()
    except OtherSettingsError as error:  # overwrite=True of a study replaces only the study
        error.remedy = Remedy("delete it, and it is made anew")
        raise
    return job.run()
