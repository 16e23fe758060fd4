"""A study in several blocks of models equals the study in one, and a plan fits into its memory or is refused."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pytest
import xarray as xr
from torch import Tensor

from repsim import metrics
from repsim.engine.checkpoints import Checkpoints
from repsim.engine.grouped import LeaveOneGroupOut
from repsim.engine.planning import Limits
from repsim.errors import TooLittleMemoryError
from repsim.metrics.recipes.groups import Groups
from repsim.runtime.files import format_size
from repsim.runtime.processes import Ranks
from repsim.stores.writer import write_store
from repsim.study import controls, duplicates, planning
from repsim.study.blocks import blocks, divide
from repsim.study.design import Design, design
from repsim.study.estimation import Estimates, estimate, settings_of
from repsim.study.gram_passes import Kernels, kernels
from repsim.study.planning import StudyPlan, StudyShape, base_memory, plan_study, shape_of
from repsim.study.units import Sharing
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, write_networks

T = TypeVar("T")
N = 40
MODELS = (*TRAINED[:3], *UNTRAINED[1:])


@dataclass
class Case:
    design: Design
    controls: list[controls.Control]
    kernels: Kernels
    plan: StudyPlan

    def estimate(self, plan: StudyPlan, sharing: Sharing | None = None) -> Estimates:
        settings = settings_of(self.kernels, plan, self.controls, 1)
        return estimate(
            self.design, self.kernels, plan, seed=1, steps=lambda _: lambda *_: None, sharing=sharing, settings=settings
        )

    def divided(self, most: int) -> StudyPlan:
        """Return a plan with groups of at most this many layers."""
        groups = divide(self.design.members, most)
        return replace(self.plan, groups=groups, blocks=blocks(groups))


def make(folder: Path, stack: ExitStack, n: int = N, groups: np.ndarray | None = None) -> Case:
    rng = np.random.default_rng(4)
    stores = write_networks(folder, rng, n, learned=0.7, seen=0.6, models=MODELS, depth=2)
    built = design([stack.enter_context(store) for store in stores])
    if groups is not None:
        built = replace(built, groups=Groups.of(groups))
    study_controls, classes = controls.inputs(built.stores), controls.classes(built)
    passes = kernels(built, study_controls, "cpu", classes=classes, keep=True, step=lambda: None)
    shape = shape_of(built, controls=[c.features.shape[1] for c in study_controls], classes=classes, metrics=[],
                     permutations=19, splits=8)  # fmt: skip
    return Case(built, study_controls, passes, plan_study(shape, built, Limits(2**40, 0, "cpu")))


@pytest.fixture(scope="module", params=["samples", "groups"])
def case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Case]:
    groups = None if request.param == "samples" else np.arange(N) % 4 + 4 * (np.arange(N) // 8)
    with ExitStack() as stack:
        yield make(tmp_path_factory.mktemp("stores"), stack, groups=groups)


@pytest.fixture(scope="module")
def whole(case: Case) -> Estimates:
    return case.estimate(case.plan)


@pytest.fixture(scope="module")
def in_groups_of_two(case: Case) -> Estimates:
    """Estimate in groups of two models, which have two layers each."""
    return case.estimate(case.divided(4))


def assert_equal_to_the_bit(one: Estimates, other: Estimates) -> None:
    for variable in fields(Estimates):
        if isinstance(values := getattr(one, variable.name), np.ndarray):
            np.testing.assert_array_equal(values, getattr(other, variable.name), err_msg=variable.name)


@dataclass(frozen=True)
class Thread(Ranks):
    """One of several threads that stand for processes, and exchange values through a list."""

    values: list[Any] = field(default_factory=list)
    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def gather(self, value: T) -> list[T]:
        self.values[self.rank] = value
        self.barrier.wait(60)
        gathered = list(self.values)
        self.barrier.wait(60)
        return gathered

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]

    def add(self, values: Tensor) -> Tensor:
        return sum(self.gather(values), start=values * 0)


@pytest.mark.parametrize("world", [2, 3, pytest.param(17, marks=pytest.mark.slow)])
def test_processes_share_a_block_and_get_the_same_bits(case: Case, whole: Estimates, world: int) -> None:
    """Also with more processes than there are parts of the work."""
    values, barrier = [None] * world, Barrier(world)

    def conducted(rank: int) -> Estimates:
        return case.estimate(case.plan, Sharing(me=Thread(rank, world, values, barrier)))

    with ThreadPoolExecutor(world) as pool:
        shared = list(pool.map(conducted, range(world)))
    for estimates in shared:
        assert_equal_to_the_bit(estimates, whole)


def test_processes_share_the_runs_of_groups(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of groups, and each half, is computed once."""
    if case.kernels.groups is None:
        return
    world = 3
    values, barrier = [None] * world, Barrier(world)
    left_out, halves = list[tuple[int, int]](), list[bytes]()
    lost, values_on = LeaveOneGroupOut._lost, Kernels.values_on

    def lost_of(sweep: LeaveOneGroupOut, first: int, last: int) -> Any:
        left_out.append((first, last))
        return lost(sweep, first, last)

    def on_half(kernels: Kernels, samples: Any, selected: Any) -> Any:
        halves.append(samples.tobytes())
        return values_on(kernels, samples, selected)

    monkeypatch.setattr(LeaveOneGroupOut, "_lost", lost_of)
    monkeypatch.setattr(Kernels, "values_on", on_half)
    plan = replace(case.plan, room=2**16)

    def conducted(rank: int) -> Estimates:
        return case.estimate(plan, Sharing(me=Thread(rank, world, values, barrier)))

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(conducted, range(world)))
    assert len(left_out) > world
    assert len(set(left_out)) == len(left_out)
    assert len(set(halves)) == len(halves) > world


def assert_alike(one: Estimates, other: Estimates, atol: float) -> None:
    assert one.indices.names == other.indices.names
    assert one.null_variances == other.null_variances
    for name in ("matrices", "theta", "theta_of_all", "splits", "changes", "squares"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)
    assert (one.cubes is None) == (other.cubes is None)
    if one.cubes is not None and other.cubes is not None:
        np.testing.assert_allclose(one.cubes, other.cubes, atol=atol * np.nanmax(np.abs(other.cubes)))
    assert one.errors.keys() == other.errors.keys()
    for kind, values in one.errors.items():
        np.testing.assert_allclose(values, other.errors[kind], atol=atol, err_msg=kind)
    for maps, others in ((one.indices.maps, other.indices.maps), (one.indices.best, other.indices.best)):
        assert maps is not None
        assert others is not None
        for key, of_pair in maps.items():
            np.testing.assert_allclose(of_pair.weights, others[key].weights, atol=1e-12)


def test_few_models_are_one_block(case: Case) -> None:
    assert len(case.plan.blocks) == 1
    assert case.plan.groups == [case.design.members]


@pytest.mark.parametrize("most", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_blocks_of_models_give_what_the_whole_gives(
    case: Case, whole: Estimates, in_groups_of_two: Estimates, most: int
) -> None:
    """Groups of one to three models: every index, its values on splits and without each sample, and all errors."""
    plan = case.divided(most)
    assert len(plan.groups) == -(-6 * 2 // most)
    assert_alike(in_groups_of_two if most == 4 else case.estimate(plan), whole, 1e-9)


def test_the_matrix_is_symmetric_with_one_on_the_diagonal(whole: Estimates, in_groups_of_two: Estimates) -> None:
    for estimates in (whole, in_groups_of_two):
        R = estimates.matrices
        np.testing.assert_array_equal(R, R.swapaxes(-1, -2))
        np.testing.assert_array_equal(np.diagonal(R[0]), 1)
        assert np.isfinite(R).all()


def test_without_gives_the_indices_without_each_unit(whole: Estimates) -> None:
    columns = [0, 3, len(whole.indices.names) - 1]
    np.testing.assert_array_equal(whole.without(columns), (whole.theta_of_all - whole.changes)[:, columns])
    assert whole.units == len(whole.changes)


@pytest.mark.slow
def test_finished_blocks_are_read_again_to_the_bit(case: Case, tmp_path: Path) -> None:
    plan, sharing = case.divided(4), Sharing(Checkpoints(tmp_path / "parts", keep=True))
    first = case.estimate(plan, sharing)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.part")}
    assert len(parts) == len(plan.blocks) == 6
    removed = sorted(parts)[2]
    removed.unlink()
    again = case.estimate(plan, sharing)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.part")}
    assert now.keys() == parts.keys()
    assert [path for path in parts if now[path] != parts[path]] == [removed]
    assert_equal_to_the_bit(first, again)
    for kind, values in first.errors.items():
        np.testing.assert_array_equal(values, again.errors[kind])


@pytest.mark.slow
def test_a_block_of_other_settings_is_not_read(case: Case, tmp_path: Path) -> None:
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))
    for _ in range(2):
        case.estimate(case.plan, sharing)
    assert len(list((tmp_path / "parts").glob("*.part"))) == 1
    case.estimate(replace(case.plan, panel=case.plan.panel // 2), sharing)
    moved = [replace(one, features=one.features + 1) for one in case.controls]
    replace_controls = Case(case.design, moved, case.kernels, case.plan)
    replace_controls.estimate(case.plan, sharing)
    assert len(list((tmp_path / "parts").glob("*.part"))) == 3


# Memory


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process always take the same memory; it grows meanwhile, and plans are for what it takes."""
    monkeypatch.setattr(planning, "memory_now", lambda: 2**33)  # more than any process of tests takes


def numbers(study: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(name): of.values for name, of in study.variables.items() if of.dtype.kind == "f"}


def least_memory(case: Case, shape: StudyShape | None = None) -> int:
    """Return the least memory that is enough for the study."""
    with pytest.raises(TooLittleMemoryError) as caught:
        plan_study(shape or case.plan.shape, case.design, Limits(2**20, base_memory("cpu"), "cpu"))
    return caught.value.needed


@pytest.mark.usefixtures("steady")
def test_too_little_memory_is_refused_in_one_line(case: Case) -> None:
    with pytest.raises(TooLittleMemoryError, match=r"a study of 12 layers of 40 samples takes .* at least") as caught:
        plan_study(case.plan.shape, case.design, Limits(2**20, base_memory("cpu"), "cpu"))
    assert "\n" not in str(caught.value)
    assert caught.value.allowed == 2**20
    with pytest.raises(TooLittleMemoryError, match="12 layers"):
        universality([member.store for member in case.design.members], ["cka"], memory="1MB", permutations=19)


@pytest.mark.usefixtures("steady")
def test_a_plan_fits_into_its_memory(case: Case) -> None:
    least = least_memory(case)
    others = tuple(map(metrics.get, ("mutual_knn:k=4", "nuclear", "svcca")))
    wide = replace(
        case.plan.shape, n=2000, units=2000, classes=0, grouped=False, metrics=others,
        widths={name: [512] * 6 for name in case.plan.shape.widths},
    )  # fmt: skip
    for shape, memories in ((case.plan.shape, (least, 2 * least)), (wide, (base_memory("cpu") + 310 * 10**6, 2**40))):
        for memory in memories:
            made = plan_study(shape, case.design, Limits(memory, base_memory("cpu"), "cpu"))
            assert made.memory <= memory
            assert "allowed" not in "".join(made.lines())
        assert sorted(m.name for group in made.groups for m in group) == sorted(m.name for m in case.design.members)
    with pytest.raises(TooLittleMemoryError):
        plan_study(case.plan.shape, case.design, Limits(least - 1, base_memory("cpu"), "cpu"))


@pytest.mark.usefixtures("steady")
def test_a_plan_names_a_measure_that_takes_more_than_is_allowed(case: Case) -> None:
    """Its layers are not divided, as those of debiased CKA are."""
    widths = {name: [8192] * len(of_model) for name, of_model in case.plan.shape.widths.items()}
    shape = replace(case.plan.shape, n=5000, units=50, widths=widths, metrics=(metrics.get("nuclear"),))
    made = plan_study(shape, case.design, Limits(least_memory(case, shape), base_memory("cpu"), "cpu"))
    assert made.memory > made.limits.memory
    (line,) = [line for line in made.lines() if "allowed" in line]
    size = re.escape(format_size(made.memory))
    assert re.search(rf"measuring nuclear \(takes {size} of memory, more than is allowed; ", line)


def test_the_plan_counts_the_layers_in_which_near_duplicates_are_looked_for(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[int] = []

    def pair_values(x: Tensor, *_: Any) -> dict[tuple[int, int], float]:
        examined.append(x.shape[1])
        return {}

    monkeypatch.setattr(duplicates, "pair_values", pair_values)
    duplicates.near_duplicates(case.design)
    assert len(examined) > 1  # pixels, and a layer of each network
    assert case.plan.steps[-1].cost.flop32 == 2 * case.design.n**2 * sum(examined)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_a_study_in_the_least_memory_equals_one_in_plenty(tmp_path: Path, tuned: Any) -> None:
    """Groups of single models, layers read again as needed, small panels."""
    tuned(smallest_panel=16, panel=16, half_samples=8)
    with ExitStack() as stack:
        case = make(tmp_path, stack, n=80)
        stores, least = [member.store for member in case.design.members], least_memory(case)
        plan = plan_study(case.plan.shape, case.design, Limits(least, base_memory("cpu"), "cpu"))
        options: dict[str, Any] = {"permutations": 19, "draws": 50, "seed": 1}
        tight = universality(stores, ["cka", "mutual_knn:k=4"], memory=least, **options)
        plenty = universality(stores, ["cka", "mutual_knn:k=4"], memory=2**36, **options)
    assert len(plan.groups) == len(MODELS)
    assert not plan.kept
    assert plan.panel == 16
    for name, values in numbers(plenty).items():
        permuted = name.startswith(("threshold", "calibrated"))  # residuals are permuted in float32
        np.testing.assert_allclose(numbers(tight)[name], values, atol=1e-6 if permuted else 1e-8, err_msg=name)
    assert tight.attrs["summary"] == plenty.attrs["summary"]


def test_a_study_of_one_network_without_its_input_has_no_index(tmp_path: Path, rng: np.random.Generator) -> None:
    """There are no pairs, no controls and no shares, so the list of indices is empty."""
    with write_store(tmp_path / "net.h5", {"a": rng.normal(size=(20, 3))}, model="net") as store:
        study = universality([store], ["cka"], permutations=19, draws=20)
    assert (study.sizes["pair"], study["value"].item()) == (0, 1.0)
