"""Contract of every source of samples: order, ids, hashes of contents, and pickling."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from repsim.extractors.samples.opening import examine
from repsim.extractors.samples.source import SampleSource


def digests(source: SampleSource) -> list[bytes]:
    """Return the hashes of all samples."""
    contents, _ = examine(source, range(len(source)))
    return [contents[row].digest for row in range(len(source))]


def plain(sample: Any) -> Any:
    """Return a sample as something that ``==`` compares."""
    if isinstance(sample, Image.Image):
        return np.asarray(sample).tolist()
    if hasattr(sample, "tolist"):
        return sample.tolist()
    if isinstance(sample, tuple | list):
        return [plain(part) for part in sample]
    return {key: plain(value) for key, value in sample.items()} if isinstance(sample, dict) else sample


def check_source(source: SampleSource, expected: Sequence[Any], ids: Sequence[str]) -> list[bytes]:
    """Check the samples and ids of a source, that a copy in another process reads the same, and return the hashes."""
    assert list(source.ids) == list(ids)
    assert len(set(source.ids)) == len(source) == len(source.sizes()) == len(expected)
    read = dict(source.read(range(len(source))))
    assert [plain(read[row]) for row in range(len(source))] == [plain(sample) for sample in expected]
    assert plain(source.load(len(source) - 1)) == plain(expected[-1])
    hashes = digests(source)
    assert digests(source) == hashes
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
    assert digests(copy) == hashes
    assert plain(copy.load(0)) == plain(expected[0])
    rows = list(range(len(source)))
    assert copy.fingerprint(rows) == source.fingerprint(rows)
    for values in (source.labels, source.groups):
        assert values is None or values.shape == (len(source),)
    return hashes


def check_one_change(before: Sequence[bytes], after: Sequence[bytes], row: int) -> None:
    """Check that the hash of one sample differs, and no other."""
    assert [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [row]
