"""Describe the contents of a store without its values: arrays, samples, labels and provenance.

docs/store-format.md describes the file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.labels import CONTROLS, INPUT, OTHER_CONTENTS, OTHER_PICTURES, LayerKey, SampleIds

FORMAT = "repsim-activations"
VERSION = 3
_NO_SETTINGS = frozenset(
    {"command", "computed", "groups", "left_out", "labels", "library", "max_pixels", "repsim_version"}
)
"""Entries of the provenance that do not affect values. The labels and groups themselves are compared, not
their source."""
Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape and attributes of one array of a store."""

    key: LayerKey
    shape: tuple[int, ...]
    """Shape of one row."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Recorded attributes of the layer: module type, output shape, axes, tokens."""
    block: int = 1
    """Number of samples in one row: B if a row is the Gram matrix of B samples."""

    def row_bytes(self, dtype: str) -> int:
        """Return the number of bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Contents:
    """Contents of a store without its values."""

    arrays: tuple[ArraySpec, ...]
    """The layers in depth order, followed by the controls, if there are any (`LayerKey.control`)."""
    sample_ids: SampleIds
    source: str
    """Description of the samples, for figures and reports."""
    provenance: Mapping[str, Any]
    dtype: str = "float32"
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    order: Array | None = None
    """Indices of the samples in the order in which they were read, if a row consists of several samples: row k of an
    array of blocks consists of the samples order[k * block : (k + 1) * block]."""
    created: str = ""
    """Time in ISO 8601, UTC; set when the file is created."""
    groups: Array | None = None
    """Group of each sample, from 0: samples of one group are not independent."""
    group_names: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.arrays[0].key.model

    def rows(self, spec: ArraySpec) -> int:
        """Return the number of rows of one array; samples that do not fill a row are left out."""
        return len(self.sample_ids) // spec.block

    def difference(self, other: "Contents") -> str | None:
        """Describe the settings in which ``other`` differs; None if both describe the same values, bit for bit.

        A store of an earlier version, which lacks a control other than the pixels, is continued without it.
        """
        samples = self.sample_ids.difference(other.sample_ids, ("before", "now"))
        by_content = samples is not None and samples.startswith((OTHER_PICTURES, OTHER_CONTENTS))
        differences = [samples if by_content else f"samples: {samples}"] if samples else []
        settings, others = self.settings, other.settings
        for key in dict.fromkeys((*settings, *others)):
            if not (samples and key in {"samples", "data_fingerprint", "skipped"}):
                differences += _differences(key, settings.get(key), others.get(key))
        if not samples and (classes := self._difference_of_samples(self.class_of, other.class_of)):
            differences.append(f"labels: {classes}")
        if not samples and (groups := self._difference_of_samples(self.group_of, other.group_of)):
            differences.append(f"groups: {groups}")
        old, new = ({spec.key.label: spec for spec in contents.arrays} for contents in (self, other))
        for control in CONTROLS - {INPUT}:
            if LayerKey(self.model, *control).label not in old:
                new.pop(LayerKey(other.model, *control).label, None)
        if only_one := [*(label for label in old if label not in new), *(label for label in new if label not in old)]:
            differences.append(f"layers: {len(old)} before, {len(new)} now (not in both: {_first_names(only_one)})")
        elif changed := [label for label, spec in old.items() if new[label].shape != spec.shape]:
            differences.append(f"shapes of layers: {_first_names(changed)}")
        if self.dtype != other.dtype and "dtype" not in self.provenance:
            differences.append(f"dtype: {self.dtype} before, {other.dtype} now")
        return "; ".join(differences[:4]) + ("; ..." if len(differences) > 4 else "") if differences else None

    def _difference_of_samples(self, old: list[Any] | None, new: list[Any] | None) -> str | None:
        """Describe how the classes or the groups of the samples differ; None if they are equal."""
        if old is None or new is None:
            return (
                None
                if old is new
                else f"{'none' if old is None else 'some'} before, " + ("none now" if new is None else "some now")
            )
        changed = [k for k, (before, now) in enumerate(zip(old, new, strict=True)) if before != now]
        if not changed:
            return None
        k = changed[0]
        first = f"{self.sample_ids.ids[k]} ({old[k]} before, {new[k]} now)"
        return f"{len(changed)} of {len(old)} differ, the first: {first}"

    @property
    def settings(self) -> dict[str, Any]:
        """Entries of the provenance that affect values; of skipped pictures the names, not the reasons."""
        settings = {key: value for key, value in self.provenance.items() if key not in _NO_SETTINGS}
        if isinstance(skipped := settings.get("skipped"), Mapping):
            settings["skipped"] = sorted(skipped)
        return settings

    @property
    def class_of(self) -> list[Any] | None:
        """Class of every sample: its name, or its number if classes have no names. None without labels."""
        if self.labels is None:
            return None
        names = dict(enumerate(self.classes))
        return [names.get(number, number) for number in np.asarray(self.labels).tolist()]

    @property
    def group_of(self) -> list[Any] | None:
        """Name of the group of every sample; None without groups."""
        return None if self.groups is None else [self.group_names[number] for number in self.groups.tolist()]


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _differences(key: str, old: Any, new: Any) -> list[str]:
    """List the differences of two JSON values; of dictionaries, the differences of their entries."""
    old, new = (json.loads(json.dumps(value)) for value in (old, new))  # JSON turns tuples into lists
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in dict.fromkeys((*old, *new)) for d in _differences(f"{key}.{k}", old.get(k), new.get(k))]
    texts = ["nothing" if value is None else json.dumps(value) for value in (old, new)]
    return [f"{key}: {_short(texts[0])} before, {_short(texts[1])} now"]


def _short(text: str) -> str:
    """Shorten a long text; of a text without spaces, such as a hash, keep 15 characters."""
    return text if len(text) <= 40 else text[:16] + '..."' if " " not in text else text[:40] + "..."
