"""Units of a study on disk: what is finished is used, and damaged units and those of other names are not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from repsim.engine.checkpoints import Checkpoints
from repsim.runtime.progress import counter
from repsim.study.units import Sharing, flat, shaped

NAMES = {"a": "unit a", "b": "unit b", "c": "unit c"}
SIZES = {"a": 3, "b": 4, "c": 1}


def values(key: str) -> np.ndarray:
    return np.arange(SIZES[key]) + 100.0 * ord(key)


class Work:
    """Computes units, and records which."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def __call__(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        for key in keys:
            self.computed.append(key)
            yield values(key)


def compute(sharing: Sharing, names: dict[str, str] | None = None) -> list[str]:
    """Compute all units; return which were computed."""
    work, reports = Work(), list[tuple[int, int | None]]()
    step = counter(len(NAMES), lambda *done: reports.append(done))
    units = sharing.compute(names or NAMES, SIZES, work, step)
    assert list(units) == list(NAMES)
    finished = len(NAMES) - len(work.computed)
    assert [done for done, _ in reports if done > finished] == list(range(finished + 1, len(NAMES) + 1))
    for key, numbers in units.items():
        np.testing.assert_array_equal(numbers, values(key))
    return work.computed


def test_without_a_folder_everything_is_computed() -> None:
    sharing = Sharing()
    assert compute(sharing) == compute(sharing) == ["a", "b", "c"]
    sharing.save("name", np.zeros(2))
    assert sharing.load("name", 2) is None


def test_finished_units_are_not_computed_again(tmp_path: Path) -> None:
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))
    assert compute(sharing) == ["a", "b", "c"]
    assert compute(sharing) == []
    assert compute(sharing, {"a": "unit a", "b": "another b", "c": "unit c"}) == ["b"]
    assert compute(sharing) == []  # both are kept
    assert len(list((tmp_path / "parts").glob("*.part"))) == 4


def test_each_unit_is_on_disk_as_soon_as_it_is_finished(tmp_path: Path) -> None:
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))

    def fail(keys: Sequence[str]) -> Iterator[np.ndarray]:
        yield values(keys[0])
        yield values(keys[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharing.compute(NAMES, SIZES, fail)
    assert compute(sharing) == ["c"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer", "text"])
def test_a_damaged_unit_counts_as_missing(tmp_path: Path, damage: str) -> None:
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))
    compute(sharing)
    victim = sorted((tmp_path / "parts").glob("*.part"))[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    damaged = {
        "flipped": bytes(data),
        "cut": bytes(data[:-7]),
        "empty": b"",
        "longer": bytes(data) + b"x",
        "text": b"a",
    }
    victim.write_bytes(damaged[damage])
    assert len(compute(sharing)) == 1
    assert compute(sharing) == []


def test_a_unit_of_another_size_counts_as_missing(tmp_path: Path) -> None:
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))
    sharing.save("block", np.arange(5.0))
    np.testing.assert_array_equal(sharing.load("block", 5), np.arange(5.0))
    assert sharing.load("block", 4) is None
    assert sharing.load("block ", 5) is None


def test_arrays_are_flat_and_back() -> None:
    arrays = [np.arange(6).reshape(2, 3), np.zeros((0, 4)), np.array([1.5]), np.array(7.0)]
    numbers = flat(arrays)
    assert numbers.shape == (8,)
    for one, other in zip(shaped(numbers, [array.shape for array in arrays]), arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    assert flat([]).shape == (0,)
