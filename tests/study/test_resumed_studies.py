"""Studies that are killed and resumed, shared by processes, or grown: the same numbers, and no work twice."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim.results.files import open_study
from repsim.runtime import tuning
from repsim.stores.store import open_store
from repsim.study.design import design
from repsim.study.planning import measured_pairs
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, write_networks
from tests.scripts.test_durability import torture  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.processes]
MODELS = (*TRAINED, UNTRAINED[0], UNTRAINED[2])
SMALL = {"panel": 64, "permutations_at_once": 10, "half_samples": 8}
DRIVER = f"""
from repsim import cli
from repsim.runtime import tuning
from repsim.stores.store import open_store
from repsim.study.design import design
from repsim.study.planning import measured_pairs

if __name__ == "__main__":
    with tuning.using(**{SMALL!r}):
        cli.main()
"""
KILLS = 6
"""Most of their time is that of starting Python; `scripts/validation/torture stops` kills a study more often."""
_CHANGING = {"created", "command"}


def written(folder: Path, models: Sequence[str] = MODELS, n: int = 300, **options: Any) -> list[Path]:
    """Write stores of networks in float64, whose values do not depend on which of them are chosen."""
    paths, rng = [], np.random.default_rng(0)
    for store in write_networks(folder, rng, n, learned=0.6, seen=0.5, models=MODELS, depth=3, **options):
        store.close()
        paths.append(folder / f"{store.model}.h5")
    return [path for path in paths if path.stem in models]


def command(folder: Path, stores: Sequence[Path], out: Path) -> list[object]:
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    metrics = ["-m", "cka", "-m", "mutual_knn:k=4", "-m", "nuclear"]
    return [driver, "universality", *stores, *metrics, "--permutations", "99", "-o", out]


def assert_equal_to_the_bit(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name, values in one.variables.items():
        expected = other.variables[name]
        assert values.dims == expected.dims
        assert values.dtype == expected.dtype
        if values.dtype.kind == "f":
            assert values.values.tobytes() == expected.values.tobytes(), name
        else:
            np.testing.assert_array_equal(values.values, expected.values, err_msg=str(name))
    assert one.attrs.keys() == other.attrs.keys()
    for name in one.attrs.keys() - _CHANGING:
        assert one.attrs[name] == other.attrs[name], name


def parts_of(out: Path) -> dict[str, int]:
    """Return the finished parts beside a study, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in out.with_name(f"{out.name}.parts").glob("*.part")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, torture: ModuleType, stores: list[Path]) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("undisturbed")
    out = folder / "study.nc"
    code, _, stderr = torture.run(sys.executable, *command(folder, stores, out))
    assert code == 0, stderr
    return out


def test_a_study_killed_at_random_moments_goes_on(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
    stores: list[Path],
    undisturbed: Path,
) -> None:
    """Most kills come after a random number of finished parts, and some at a random time.

    A part that was there at one kill is still the same file at the next, so it was not computed again.
    """
    rng, out, total = np.random.default_rng(5), tmp_path / "study.nc", len(parts_of(undisturbed))
    call, kills, finished = [sys.executable, *command(tmp_path, stores, out)], 0, 0
    while kills < KILLS:
        before = parts_of(out)
        goal = len(before) + int(rng.integers(0, max(1, 2 * total // KILLS)))
        with torture.Run(call) as job:
            if kills % 3 == 2:
                time.sleep(rng.uniform(0, 10))
            else:
                torture.wait_until(lambda goal=goal: len(parts_of(out)) > goal, job)
                time.sleep(rng.exponential(0.03))
            if job.running() and job.kill():
                kills += 1
            else:
                code, _, stderr = job.end()
                assert code == 0, stderr
        after = parts_of(out)
        assert {name: after.get(name) for name in before} == before, "finished parts were computed again, or are lost"
        if out.exists():  # finished before it was killed: from the beginning
            finished += 1
            assert finished < KILLS
            assert_equal_to_the_bit(open_study(out), open_study(undisturbed))
            out.unlink()
            for path in out.with_name(f"{out.name}.parts").iterdir():
                path.unlink()
    before = parts_of(out)
    code, printed, stderr = torture.run(*call)
    assert code == 0, stderr
    assert "saved" in printed
    assert_equal_to_the_bit(open_study(out), open_study(undisturbed))
    after = parts_of(out)
    assert after.keys() == parts_of(undisturbed).keys()
    assert {name: after[name] for name in before} == before
    assert not list(tmp_path.rglob("*.partial"))


def test_torchrun_equals_one_process_to_the_bit(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
    stores: list[Path],
    undisturbed: Path,
) -> None:
    """Three processes; the next test has two."""
    out = tmp_path / "study.nc"
    code, printed, stderr = torture.run(*torture.torchrun(3)[:-2], *command(tmp_path, stores, out))
    assert code == 0, stderr
    assert printed.count("saved") == 1
    assert_equal_to_the_bit(open_study(out), open_study(undisturbed))
    assert parts_of(out).keys() == parts_of(undisturbed).keys()


def test_torchrun_equals_one_process_to_the_bit_with_samples_in_groups(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
) -> None:
    """Groups of two samples of one class."""
    stores = written(tmp_path, MODELS[:3], 160, groups=[str(k % 4 + 4 * (k // 8)) for k in range(160)])
    one, two = tmp_path / "one.nc", tmp_path / "two.nc"
    for call, out in (([sys.executable], one), (torture.torchrun(2)[:-2], two)):
        code, _, stderr = torture.run(*call, *command(tmp_path, stores, out))
        assert code == 0, stderr
    assert_equal_to_the_bit(open_study(two), open_study(one))
    assert parts_of(two).keys() == parts_of(one).keys()


def test_another_number_of_processes_goes_on(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
    stores: list[Path],
    undisturbed: Path,
) -> None:
    """Two processes are killed, and one goes on."""
    out = tmp_path / "study.nc"
    call = command(tmp_path, stores, out)
    with torture.Run([*torture.torchrun(2)[:-2], *call]) as job:
        assert torture.wait_until(lambda: len(parts_of(out)) > 10, job), job.end()
        assert job.kill()
    left = parts_of(out)
    assert len(left) > 10
    code, _, stderr = torture.run(sys.executable, *call)
    assert code == 0, stderr
    after = parts_of(out)
    assert {name: after[name] for name in left} == left
    assert_equal_to_the_bit(open_study(out), open_study(undisturbed))


def study_of(stores: Sequence[Path], out: Path, *, overwrite: bool = False) -> xr.Dataset:
    with tuning.using(**SMALL):
        return universality(
            stores, ["cka", "mutual_knn:k=4"], out=out, permutations=39, draws=50, overwrite=overwrite, progress=False
        )


def test_a_study_grows_at_the_cost_of_what_is_new(tmp_path: Path) -> None:
    """One more trained network: the block of the earlier ones, and the permutations of their pairs, are read again."""
    stores = written(tmp_path)
    grown, fresh = tmp_path / "grown.nc", tmp_path / "fresh.nc"
    new = stores[3]
    earlier = [path for path in stores if path != new]
    study_of(earlier, grown)
    before = parts_of(grown)
    study_of(stores, grown, overwrite=True)
    after = parts_of(grown)
    assert {name: after[name] for name in before} == before
    study_of(stores, fresh)
    # of permutations: 39 in runs of 10, raw and given the input, of all samples and within classes
    runs, kinds, orders = 4, 2, 2
    pairs = [len(measured_pairs(design([open_store(path) for path in paths]))) for paths in (earlier, stores)]
    assert 3 <= pairs[1] - pairs[0] < pairs[0]
    blocks = 2  # of the new network with the earlier ones, and with itself
    new_parts = blocks + runs * kinds * orders + 2 * (pairs[1] - pairs[0])  # values of new pairs, and those on halves
    assert len(after) - len(before) == new_parts
    one, other = open_study(grown), open_study(fresh)
    for name, values in one.variables.items():
        if values.dtype.kind == "f":
            permuted = str(name).startswith(("threshold", "calibrated"))  # residuals are permuted in float32
            atol = 1e-6 if permuted else 1e-8
            np.testing.assert_allclose(values.values, other[name].values, atol=atol, err_msg=str(name))
        else:
            np.testing.assert_array_equal(values.values, other[name].values, err_msg=str(name))
    assert one.attrs["summary"] == other.attrs["summary"]
