"""Test that finished units are kept on disk, complete or absent, until the sweep is done."""

import io
import resource
import signal
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim.engine.checkpoints import Checkpoints, compute_sweep
from repsim.engine.comparison import Comparison, compare
from repsim.errors import InvalidInputError, OutputError, UndefinedValueError
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from tests.growing import grow

PARTS = [np.arange(4.0), np.full(4, np.nan), np.array([1e-300, -0.0, np.inf, 1 / 3]), np.zeros(4)]


class Counted:
    """Sweep of four units, computed from the last to the first, which records the units it computed."""

    order = (3, 2, 1, 0)
    units = 4
    size = 4

    def __init__(self, stops_at: int | None = None) -> None:
        self.computed: list[int] = []
        self._stops_at = stops_at

    def parts(self, units: Iterable[int]) -> Iterator[Any]:
        for unit in units:
            if unit == self._stops_at:
                raise InvalidInputError("stopped")
            self.computed.append(unit)
            yield PARTS[unit]

    def values(self, parts: Any) -> Any:
        return [np.stack(parts)]


def computed(folder: Path, name: str = "sweep") -> list[int]:
    """Compute the sweep, check its values, and return the units that were computed."""
    sweep: Any = Counted()
    (values,) = compute_sweep(sweep, name, checkpoints=Checkpoints(folder))
    np.testing.assert_array_equal(values, np.stack(PARTS))
    return sorted(sweep.computed)


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    broken: Any = Counted(stops_at=1)
    with pytest.raises(InvalidInputError, match="stopped"):
        compute_sweep(broken, "sweep", checkpoints=Checkpoints(tmp_path))
    assert broken.computed == [3, 2], "in the sweep's order"
    assert computed(tmp_path) == [0, 1]
    assert computed(tmp_path) == []
    assert computed(tmp_path, "another sweep") == [0, 1, 2, 3]
    steps: list[None] = []
    again: Any = Counted()
    compute_sweep(again, "a third", checkpoints=Checkpoints(tmp_path), step=lambda: steps.append(None))
    assert len(steps) == 4


def test_parts_come_back_to_the_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for unit, part in enumerate(PARTS):
        checkpoints.save("sweep", unit, part)
    parts = checkpoints.load("sweep", (4,))
    assert sorted(parts) == [0, 1, 2, 3]
    assert all(parts[unit].tobytes() == part.tobytes() for unit, part in enumerate(PARTS))
    assert not list(tmp_path.glob("*.partial"))
    assert checkpoints.load("another", (4,)) == {}
    assert Checkpoints(tmp_path / "nowhere").load("sweep", (4,)) == {}
    assert Checkpoints().load("sweep", (4,)) == {}


@pytest.mark.parametrize(
    "damage", ["flipped bit", "truncated", "empty", "no checksum", "another name", "shape", "dtype"]
)
def test_a_damaged_part_is_computed_again(tmp_path: Path, damage: str) -> None:
    computed(tmp_path)
    path = next(tmp_path.glob("*-2.part"))
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[-10] ^= 1
    path.write_bytes(bytes({"truncated": data[:-9], "empty": b"", "no checksum": data[:-4]}.get(damage, data)))
    if damage in {"shape", "dtype"}:  # with a correct checksum
        _write_part(path, np.zeros(3) if damage == "shape" else np.zeros(4, "f4"))
    if damage == "another name":
        path.rename(path.with_name(path.name.replace("-2.", "-x.")))
    assert computed(tmp_path) == [2]
    assert computed(tmp_path) == []


def test_the_folder_exists_until_the_work_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "r.nc.parts"
    checkpoints = Checkpoints(folder)
    with checkpoints.locked():
        checkpoints.save("sweep", 0, PARTS[0])
        assert folder.is_dir()
    assert not folder.exists(), "all is done"
    with pytest.raises(KeyboardInterrupt), checkpoints.locked():
        raise KeyboardInterrupt
    assert not folder.exists(), "nothing was kept"
    with pytest.raises(KeyboardInterrupt), checkpoints.locked():  # noqa: PT012
        checkpoints.save("sweep", 0, PARTS[0])
        raise KeyboardInterrupt
    assert list(checkpoints.load("sweep", (4,))) == [0]
    with checkpoints.locked(first=False):
        pass
    assert folder.exists(), "the first process removes the folder for all"
    with checkpoints.locked():
        pass
    assert not folder.exists()
    with Checkpoints().locked():
        Checkpoints().save("sweep", 0, PARTS[0])
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with Checkpoints(folder).locked():
        refused = pytest.raises(OutputError, match=f"another process is writing {folder}; wait until it is done")
        with refused, Checkpoints(folder).locked():
            pytest.fail("two at once")
        assert folder.is_dir()
        Checkpoints(folder).save("sweep", 0, PARTS[0])
    assert not folder.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep me")
    checkpoints = Checkpoints(tmp_path / "file" / "parts")
    with pytest.raises(OutputError, match="cannot write into .*parts: Not a directory"), checkpoints.locked():
        pass
    with pytest.raises(OutputError, match="cannot write into .*parts: Not a directory"):
        checkpoints.save("sweep", 0, PARTS[0])


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The operating system's limit on file sizes stands for a full disk."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("sweep", 0, PARTS[0])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(OutputError, match=f"cannot write into {tmp_path}: File too large"):
            checkpoints.save("sweep", 1, PARTS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(checkpoints.load("sweep", (4,))) == [0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"], "nothing half-written stays on a full disk"


# --- parts of a comparison: which are reused


def store(path: Path, seed: int, n: int = 40) -> ActivationStore:
    rng = np.random.default_rng(seed)
    layers = {f"blocks.{i}": rng.normal(size=(n, 4 + i)) for i in range(2)}
    return write_store(path, layers, model=path.stem, overwrite=True)


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt(*stores: ActivationStore, parts: Path, metrics: tuple[str, ...] = ("cka",), **options: Any) -> list[Path]:
    """Compare, but fail when the result is saved; return the parts that are left."""

    def fail(_: object) -> None:
        raise Interrupted

    with Comparison(stores, None, metrics, **options) as planned, pytest.raises(Interrupted):
        planned.run(parts=parts, save=fail)
    return sorted(parts.glob("*.part"))


def test_a_result_that_cannot_be_saved_keeps_its_parts(tmp_path: Path) -> None:
    a, b, parts = store(tmp_path / "a.h5", 0), store(tmp_path / "b.h5", 1), tmp_path / "parts"
    left = interrupt(a, b, parts=parts)
    assert left
    before = [(path, path.stat().st_mtime_ns) for path in left]
    assert [(path, path.stat().st_mtime_ns) for path in interrupt(a, b, parts=parts)] == before, (
        "reused, not computed again"
    )
    for path in left:  # replaced by zeros: no pair has a value if they are reused
        _write_part(path, np.zeros_like(np.load(io.BytesIO(path.read_bytes()[:-4]))))
    with pytest.raises(UndefinedValueError, match="no pair of layers has a value"):
        grow([a, b], parts=parts)
    for path in left:
        path.unlink()
    np.testing.assert_array_equal(grow([a, b], parts=parts)["cka"], compare([a, b])["cka"])
    assert not parts.exists()


def _write_part(path: Path, part: Any) -> None:
    data = io.BytesIO()
    np.save(data, part)
    path.write_bytes(data.getvalue() + zlib.crc32(data.getvalue()).to_bytes(4, "little"))


def test_parts_are_of_these_stores_these_metrics_and_this_plan(tmp_path: Path) -> None:
    a, b, parts = store(tmp_path / "a.h5", 0), store(tmp_path / "b.h5", 1), tmp_path / "parts"
    left = set(interrupt(a, b, parts=parts))
    others: list[tuple[tuple[ActivationStore, ...], dict[str, Any]]] = [
        ((b, a), {}),
        ((a,), {}),
        ((a, store(tmp_path / "c.h5", 2)), {}),
        ((a, b), {"metrics": ("cka:estimator=biased",)}),
        ((a, b), {"metrics": ("cka", "cka:estimator=biased")}),
        ((a, b), {"tf32": True}),
    ]
    for stores, options in others:
        new = set(interrupt(*stores, parts=parts, **options)) - left
        assert new, (stores, options)
        left |= new
    b.close()
    changed = store(tmp_path / "b.h5", 3)
    assert set(interrupt(a, changed, parts=parts)) - left, "the same file with other activations"
