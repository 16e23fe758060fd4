"""What could make representations alike without any learning: the input, the classes, and untrained networks.

The input and the classes are kernels like those of layers: pixels that went into the networks, stored at extraction,
and which samples are of one class. Untrained networks of the same architectures are extracted where they are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from repsim.errors import Argument, InvalidInputError, OtherSettingsError, Remedy, RepsimError
from repsim.extraction.jobs import Extraction, Samples, choose_stream
from repsim.extraction.options import DType
from repsim.extractors import ImageSource, open_images
from repsim.extractors.factory import make_extractor
from repsim.extractors.options import Choices
from repsim.stores.store import ActivationStore
from repsim.study.design import Design, Member

Kind = Literal["input", "labels"]
_ROUNDING = 1e-5
"""Of the largest pixel: means that differ by less are equal, but for rounding errors."""


@dataclass(frozen=True, eq=False)
class Control:
    """A kernel that is given: the similarity that is left when it is projected out is not its doing."""

    kind: Kind
    name: str
    features: Float[np.ndarray, "n p"]


def inputs(design: Design) -> list[Control]:
    """What went into the networks, once for all that prepare pictures alike; nothing of stores that did not keep it.

    Two kernels each: that of all pixels, and that of their mean over the picture, which is what a readout that averages
    over positions leaves of them. A layer's mean follows the mean of the input much more than any single pixel.
    """
    found: list[Control] = []
    for member in design.members:
        values = _pixels(member.store)
        if values is None or any(np.array_equal(values.reshape(len(values), -1), other.features) for other in found):
            continue
        found.append(Control("input", f"input of {member.name}", values.reshape(len(values), -1)))
        mean = values.mean(-1)
        if np.ptp(mean, axis=0).max() > _ROUNDING * np.abs(values).max():  # pictures may have been given a mean of 0
            found.append(Control("input", f"mean input of {member.name}", mean))
    return found


def _pixels(store: ActivationStore) -> Float[np.ndarray, "n channels positions"] | None:
    """What `repsim.extract` keeps has three channels; arrays that were given have those that their shape says."""
    if store.pixels is None:
        return None
    values = store.pixels[:]
    channels = values.shape[1] if values.ndim > 2 else 3 if store.provenance.get("extractor") != "given" else 1
    values = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    return np.ascontiguousarray(values.reshape(len(values), channels, -1))


def classes(design: Design) -> Control | None:
    """Which samples are of one class: the linear kernel of one-hot labels; None where that is all pairs, or none."""
    labelled = [member.store for member in design.members if member.store.labels is not None]
    if not labelled:
        return None
    numbers = _partition(labelled[0])
    for other in labelled[1:]:
        if not np.array_equal(_partition(other), numbers):
            raise InvalidInputError(
                f"{labelled[0].path} and {other.path} give the same samples different class labels",
                remedy=Remedy("extract one of them again, with the same ", Argument("labels", of="extract")),
            )
    count = numbers.max() + 1
    return Control("labels", "class labels", np.eye(count)[numbers]) if 1 < count < design.n else None


def _partition(store: ActivationStore) -> NDArray[np.intp]:
    """Which samples are of one class, whatever classes are called: classes are numbered as they first occur."""
    first, numbers = np.unique(np.asarray(store.labels), return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(first))[numbers]


def duplicates(design: Design) -> list[tuple[str, str]]:
    """Pairs of samples that are the same: in what went into a network or, if that is not kept, in its first layer."""
    first = design.trained[0]
    array = first.store.pixels if first.store.pixels is not None else first.store[first.arrays[0]]
    values = np.ascontiguousarray(array[:].reshape(len(first.store), -1))
    seen: dict[bytes, int] = {}
    ids = design.ids.ids
    return [(ids[k], ids[i]) for i, row in enumerate(values) if (k := seen.setdefault(row.tobytes(), i)) != i]


def untrained(
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

    Batch norm is recalibrated on the samples: without that it would do nothing. What an earlier call stored is kept.

    Parameters
    ----------
    seeds
        How many of each architecture: random seeds 0, 1, ...
    data, split, data_root
        The pictures, as for `repsim.extract`; by default what the stores say that they were made from.

    Raises
    ------
    InvalidInputError
        The pictures are not those of the stores; a model that was not extracted from a name.
    OutputError
        What the folder keeps was made with other settings.
    """
    some = {member.architecture: member for member in reversed(design.trained)}
    for member in some.values():
        if member.store.provenance.get("extractor") not in {"timm", "torchvision"}:
            raise InvalidInputError(
                f"{member.store.path} was not extracted from a model's name, so no untrained one can be made; "
                "extract it yourself (weights of no training, provenance weights='random') and name its store"
            )
    samples = _same_samples(_images(design.trained[0], data, split, data_root), design.trained[0])
    made = []
    for member in reversed(some.values()):
        for seed in range(seeds):
            made.append(_extract(member, seed, samples, folder, device))
            step()
    return made


def to_extract(design: Design) -> int:
    """Architectures of which untrained networks can be made."""
    return len({member.architecture for member in design.trained})


def _images(member: Member, data: str | None, split: str | None, root: str | None) -> ImageSource:
    """What is named, or what the store says that it was made from: of a folder that is its name, and not its place."""
    limit = member.store.provenance.get("max_pixels")  # what was allowed then is allowed now
    max_pixels = limit if isinstance(limit, int) and limit > 0 else None
    if data is not None:
        return open_images(data, split=split, root=root, max_pixels=max_pixels)
    told = str(member.store.provenance.get("data") or member.store.data)
    name, bracket, rest = told.rpartition(" [")
    where, part = (name, rest.removesuffix("]")) if bracket and rest.endswith("]") else (told, split)
    try:
        return open_images(where, split=part, root=root, max_pixels=max_pixels)
    except RepsimError as error:
        raise InvalidInputError(
            f"{member.store.path} was made from {told}, and {error.problem}",
            remedy=Remedy("name the pictures with ", Argument("data")),
        ) from None


def _same_samples(images: ImageSource, member: Member) -> Samples:
    place = {name: k for k, name in enumerate(images.ids)}
    ids = member.store.sample_ids
    missing = [name for name in ids if name not in place]
    if missing:
        raise InvalidInputError(
            f"{images.name} lacks {len(missing)} of the {len(ids)} samples of {member.store.path}, the first "
            f"{missing[0]}",
            remedy=Remedy("name the pictures that it was extracted from with ", Argument("data")),
        )
    samples = Samples(images, [place[name] for name in ids])
    if difference := ids.difference(samples.ids):
        raise InvalidInputError(
            f"the pictures in {images.name} have the names of those of {member.store.path}, but are others "
            f"({difference})",
            remedy=Remedy("name the ones that it was extracted from with ", Argument("data")),
        )
    if member.store.labels is not None:  # they may come from a table
        labels = np.zeros(len(images), np.int64)
        labels[samples.rows] = member.store.labels
        images.labels, images.classes = labels, member.store.classes
    return samples


def _like(provenance: Mapping[str, Any]) -> Choices:
    """How the trained network was built and its pictures prepared, where its name alone does not say so."""
    choices: Choices = {}
    if kwargs := provenance.get("model_kwargs"):
        choices["model_kwargs"] = {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}
    for key, value in (provenance.get("prepared") or {}).items():
        choices[key] = tuple(value) if isinstance(value, list) else value  # type: ignore[literal-required]
    return choices


def _extract(member: Member, seed: int, samples: Samples, folder: Path, device: str) -> ActivationStore:
    told = member.store.provenance
    prefix = "torchvision/" if told.get("extractor") == "torchvision" else ""
    name = prefix + str(told.get("timm_name") or member.architecture)
    layers = [member.store[array].key.layer for array in member.arrays]
    extractor = make_extractor(
        name, weights="random", seed=seed, layers=",".join(layers), readout=member.readout, **_like(told)
    )
    how = choose_stream(samples, readout=member.readout, batch_size=None, workers=None, device=device, amp=False)
    dtype: DType = "float16" if member.store[member.arrays[0]].dtype == np.float16 else "float32"
    job = Extraction(extractor, samples, folder, how, dtype=dtype, recalibrate=True)
    try:
        job.samples_stored()
    except OtherSettingsError as error:  # overwrite=True of a study replaces the study, and not this
        error.remedy = Remedy("delete it, and it is made anew")
        raise
    return job.run()
