"""Extract untrained networks of the architectures of a study: controls that share all but what was learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import Argument, InvalidInputError, OtherSettingsError, Remedy, RepsimError
from repsim.extraction.jobs import Extraction, Samples, choose_stream
from repsim.extraction.options import DType
from repsim.extractors import Extractor, SampleSource, open_samples
from repsim.extractors.factory import make_extractor
from repsim.extractors.options import Choices
from repsim.runtime.progress import Progress, part_of
from repsim.stores.store import ActivationStore
from repsim.study.design import Design, Member


def extract_untrained(
    design: Design,
    seeds: int,
    folder: Path,
    *,
    data: str | None = None,
    split: str | None = None,
    data_root: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
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
        The samples, as for `repsim.extract`; by default those that the stores name as their source. Of a table, each
        network reads the column that its store records, so that one table of pairs serves pictures and texts.
    device
        Device on which the networks run.
    progress
        Called after each batch with the number of samples done and of all, summed over the networks.

    Raises
    ------
    InvalidInputError
        If the samples are not those of the stores, or a model was not extracted by its name and has no untrained
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
    opened: dict[tuple[str, str], Samples] = {}
    for member in examples:  # all samples are checked before the first network runs
        if _origin(member) not in opened:
            source = _source(member, data, split, data_root)
            opened[_origin(member)] = _same_samples(source, member)
    total = seeds * len(examples) * design.n
    stores: list[ActivationStore] = []
    for member in examples:
        for seed in range(seeds):
            advance = part_of(progress, len(stores) * design.n, total)
            stores.append(_extract(member, seed, opened[_origin(member)], folder, device=device, progress=advance))
    return stores


def _examples(design: Design) -> list[Member]:
    """Return a trained model of every architecture, without those that have no name but untrained networks already."""
    by_architecture: dict[str, Member] = {}
    for member in design.trained:
        by_architecture.setdefault(member.architecture, member)
    return [member for member in by_architecture.values() if _has_name(member) or not design.twins_of(member)]


def _has_name(member: Member) -> bool:
    """Return whether a model was extracted by the name of its architecture, so that it can be made again."""
    return member.store.provenance.get("extractor") in {"timm", "torchvision", "transformers"}


def _origin(member: Member) -> tuple[str, str]:
    """Return the name of the data and the column from which a store was made; pictures and texts have their own."""
    provenance = member.store.provenance
    return str(provenance.get("data") or member.store.data), str(provenance.get("column") or "")


def _source(member: Member, data: str | None, split: str | None, root: str | None) -> SampleSource:
    """Open the samples that the user names, or those that the store names as its source.

    A store records the name of a folder or table, not its path, and appends the split or the column in brackets
    ("photos [val]", "pairs.jsonl [text]"). The columns of a table are those of the store: networks of pictures and of
    texts read two columns of the one table that the user names.
    """
    recorded, column = _origin(member)
    limit = member.store.provenance.get("max_pixels")  # the limit of the earlier extraction
    options: dict[str, Any] = {"root": root, "max_pixels": limit if isinstance(limit, int) and limit > 0 else None}
    if column:
        kind, _, id_column = str(member.store.provenance.get("ids_from") or "").partition(" ")
        options |= {"column": column, "id_column": id_column if kind == "column" and id_column else None}
    if data is not None:
        return open_samples(data, split=split, **options)
    name, bracket, rest = recorded.rpartition(" [")
    part = rest.removesuffix("]") if bracket and rest.endswith("]") else ""
    try:
        return open_samples(name if part else recorded, split=split if part in {"", column} else part, **options)
    except RepsimError as error:
        raise InvalidInputError(
            f"{member.store.path} was made from {recorded}, and {error.problem}",
            remedy=Remedy("name the samples with ", Argument("data")),
        ) from None


def _same_samples(source: SampleSource, member: Member) -> Samples:
    """Return the samples of a store in a source, in their order; refuse other ones."""
    row_of = {name: k for k, name in enumerate(source.ids)}
    ids = member.store.sample_ids
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise InvalidInputError(
            f"{source.name} lacks {len(missing)} of the {len(ids)} samples of {member.store.path}, the first "
            f"{missing[0]}",
            remedy=Remedy("name the samples that it was extracted from with ", Argument("data")),
        )
    samples = Samples(source, [row_of[name] for name in ids])
    if difference := ids.difference(samples.ids):
        raise InvalidInputError(
            f"the samples in {source.name} have the same names as those of {member.store.path}, but other contents "
            f"({difference})",
            remedy=Remedy("name the samples that it was extracted from with ", Argument("data")),
        )
    if member.store.labels is not None:  # the labels of a store may come from a table of the user
        labels = np.zeros(len(source), np.int64)
        labels[samples.rows] = member.store.labels
        source.labels, source.classes = labels, member.store.classes
    return samples


def _recorded_choices(provenance: Mapping[str, Any]) -> Choices:
    """Return the settings of a trained network and its preprocessing that do not follow from its name."""
    choices: Choices = {}
    if kwargs := provenance.get("model_kwargs"):
        choices["model_kwargs"] = {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}
    for key, value in (provenance.get("prepared") or {}).items():
        choices[key] = tuple(value) if isinstance(value, list) else value  # type: ignore[literal-required]
    return choices


def _extract(
    member: Member, seed: int, samples: Samples, folder: Path, *, device: str, progress: Progress | None
) -> ActivationStore:
    extractor = _untrained(member, seed, samples)
    how = choose_stream(samples, readout=member.readout, batch_size=None, workers=None, device=device, amp=False)
    dtype: DType = "float16" if member.store[member.arrays[0]].dtype == np.float16 else "float32"
    named = None
    if "=" in member.variant:  # of networks of several sizes that have one name
        named = f"{extractor.name}.{member.variant.replace('=', '-').replace(' ', '-')}"
    job = Extraction(extractor, samples, folder, how, dtype=dtype, recalibrate=True, name=named)
    try:
        job.samples_stored()
    except OtherSettingsError as error:  # overwrite=True of a study replaces only the study
        error.remedy = Remedy("delete it, and it is made anew")
        raise
    return job.run(progress)


def _untrained(member: Member, seed: int, samples: Samples) -> Extractor:
    """Return the extractor of an untrained network of the architecture of a trained one, with equal layers."""
    provenance = member.store.provenance
    name = str(
        provenance.get("timm_name")
        or provenance.get("transformers_name")
        or provenance.get("architecture")
        or member.architecture
    )
    choices = _recorded_choices(provenance)
    layers = [member.store[array].key.layer for array in member.arrays]

    def make() -> Extractor:
        return make_extractor(
            _PREFIXES.get(str(provenance.get("extractor")), "") + name,
            weights="random",
            seed=seed,
            layers=",".join(layers),
            readout=member.readout,
            samples=samples.source,
            **choices,
        )

    extractor = make()
    length = provenance.get("max_length")
    if length is not None and extractor.provenance().get("max_length") != length:  # the user chose it
        choices["max_length"] = length
        extractor = make()
    return extractor


_PREFIXES = {"torchvision": "torchvision/", "transformers": "hf/"}
"""Beginnings of the names of models, by the extractor that a store records."""
