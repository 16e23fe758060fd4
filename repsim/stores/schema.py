"""What a store holds beside its values: arrays and their shapes, samples, labels, provenance. docs/store-format.md."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.labels import OTHER_PICTURES, LayerKey, SampleIds

FORMAT = "repsim-activations"
VERSION = 2
_NO_SETTINGS = frozenset({"command", "left_out", "labels", "max_pixels"})
"""What is recorded and decides no value: labels themselves are compared, not the file that they come from."""
Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store, before it is written."""

    key: LayerKey
    shape: tuple[int, ...]
    """Of one row."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is recorded of the layer: module type, output shape, axes, tokens."""
    block: int = 1
    """Samples that make one row: B where a row is the Gram matrix of B samples."""

    def row_bytes(self, dtype: str) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Contents:
    """Everything of a store but its values."""

    arrays: tuple[ArraySpec, ...]
    """In depth order, and then the control, if there is one (`LayerKey.control`)."""
    sample_ids: SampleIds
    source: str
    """What the samples are, for people."""
    provenance: Mapping[str, Any]
    dtype: str = "float32"
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    order: Array | None = None
    """Positions of the samples in the order in which they were read, where rows are made of several: row k of an array
    of blocks is made of the samples order[k * block : (k + 1) * block]."""
    created: str = ""
    """ISO 8601, UTC; set when the file is laid out."""

    @property
    def model(self) -> str:
        """Names the model in every result."""
        return self.arrays[0].key.model

    def rows(self, spec: ArraySpec) -> int:
        """Rows of one array; samples that make no full row are left out."""
        return len(self.sample_ids) // spec.block

    def difference(self, other: "Contents") -> str | None:
        """How ``other`` would hold other values, in words; None where both promise the same to the bit."""
        samples = self.sample_ids.difference(other.sample_ids)
        found = [samples if samples.startswith(OTHER_PICTURES) else f"samples: {samples}"] if samples else []
        settings, others = (_settings(contents.provenance) for contents in (self, other))
        for key in dict.fromkeys((*settings, *others)):
            if not (samples and key in {"samples", "data_fingerprint", "skipped"}):
                found += _differences(key, settings.get(key), others.get(key))
        if not samples and (classes := self._other_classes(other)):
            found.append(f"labels: {classes}")
        mine, yours = ({spec.key.label: spec for spec in contents.arrays} for contents in (self, other))
        if lonely := [
            *(label for label in mine if label not in yours),
            *(label for label in yours if label not in mine),
        ]:
            found.append(f"layers: {len(mine)} there, {len(yours)} now (not in both: {_some(lonely)})")
        elif changed := [label for label, spec in mine.items() if yours[label].shape != spec.shape]:
            found.append(f"shapes of layers: {_some(changed)}")
        if self.dtype != other.dtype and "dtype" not in self.provenance:
            found.append(f"dtype: {self.dtype} there, {other.dtype} now")
        return "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "") if found else None

    def _other_classes(self, other: "Contents") -> str | None:
        """How the samples' classes differ."""
        mine, yours = self.class_of, other.class_of
        if mine is None or yours is None:
            return (
                None
                if mine is yours
                else f"{'none' if mine is None else 'some'} there, " + ("none now" if yours is None else "some now")
            )
        changed = [k for k, (there, now) in enumerate(zip(mine, yours, strict=True)) if there != now]
        if not changed:
            return None
        k = changed[0]
        first = f"{self.sample_ids.ids[k]} ({mine[k]} there, {yours[k]} now)"
        return f"{len(changed)} of {len(mine)} differ, the first: {first}"

    @property
    def class_of(self) -> list[Any] | None:
        """Name of every sample's class, or its number where classes have no names; None without labels."""
        if self.labels is None:
            return None
        names = dict(enumerate(self.classes))
        return [names.get(number, number) for number in np.asarray(self.labels).tolist()]


def _settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Select what decides values; of pictures that were left out their names, and not why, which is a message."""
    settings = {key: value for key, value in provenance.items() if key not in _NO_SETTINGS}
    if isinstance(skipped := settings.get("skipped"), Mapping):
        settings["skipped"] = sorted(skipped)
    return settings


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _differences(key: str, there: Any, now: Any) -> list[str]:
    """What differs between two JSON values, down to the entries of dictionaries."""
    there, now = (json.loads(json.dumps(value)) for value in (there, now))  # tuples as lists, as they are stored
    if there == now:
        return []
    if isinstance(there, dict) and isinstance(now, dict):
        return [d for k in dict.fromkeys((*there, *now)) for d in _differences(f"{key}.{k}", there.get(k), now.get(k))]
    texts = ["nothing" if value is None else json.dumps(value) for value in (there, now)]
    return [f"{key}: {_short(texts[0])} there, {_short(texts[1])} now"]


def _short(text: str) -> str:
    """A hash is known by its beginning."""
    return text if len(text) <= 40 else text[:16] + '..."' if " " not in text else text[:40] + "..."
