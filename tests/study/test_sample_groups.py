"""Groups of a study: those of its stores or of the user, and the kernels whose units they are."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from repsim.errors import InvalidInputError
from repsim.runtime.processes import ALONE
from repsim.stores.store import ActivationStore
from repsim.study.block_sums import block_sums, draw_halves
from repsim.study.blocks import Sides
from repsim.study.controls import Control
from repsim.study.design import design
from repsim.study.gram_passes import Kernels, kernels, permuted_values
from repsim.study.sample_groups import groups_of
from repsim.testing.examples import unrelated_layers, write_network
from tests.engine.test_grouped import cosine

GROUPS = np.array([4, 4, 0, 0, 1, 1, 2, 2, 3, 3, 5, 5, 6, 6, 7, 7, 8, 9, 9, 8])
N = len(GROUPS)
IDS = [f"scene{group}/frame{k}" for k, group in enumerate(GROUPS)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def written(stack: ExitStack, folder: Path, **groups: list[str] | np.ndarray | None) -> list[ActivationStore]:
    rng = np.random.default_rng(0)
    return [
        stack.enter_context(write_network(folder, model, unrelated_layers(rng, N, 6, 5, 4), sample_ids=IDS, groups=of))
        for model, of in groups.items()
    ]


def test_groups_of_stores_and_of_the_user(tmp_path: Path, stack: ExitStack) -> None:
    stores = written(stack, tmp_path, a=GROUPS, b=None, c=[f"s{g}" for g in GROUPS])
    expected = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 9, 8]
    for groups in (groups_of(stores), groups_of(stores[1:2], "folders"), groups_of(stores, r"re:scene(\d)")):
        assert groups is not None
        assert groups.numbers.tolist() == expected
    assert groups_of(stores[1:2]) is None
    assert groups_of(stores[1:2], list(range(N))) is None
    (tmp_path / "groups.csv").write_text("".join(f"{name},{k // 2}\n" for k, name in enumerate(IDS)))
    from_file = design(stores, groups=tmp_path / "groups.csv").groups
    assert from_file is not None
    assert from_file.sizes.tolist() == [2] * 10
    assert design(stores[1:2]).groups is None


def test_stores_that_disagree_are_refused(tmp_path: Path, stack: ExitStack) -> None:
    stores = written(stack, tmp_path, a=GROUPS, b=GROUPS // 2)
    with pytest.raises(InvalidInputError, match="put the same samples into different groups"):
        design(stores)
    assert design(stores, groups="folders").groups is not None
    with pytest.raises(InvalidInputError, match="2 groups are too few"):
        design(stores, groups=GROUPS // 5)
    with pytest.raises(InvalidInputError, match="19 groups for 20 samples"):
        design(stores, groups=GROUPS[1:])


@pytest.fixture(params=[True, False], ids=["kept", "read again"])
def grouped(tmp_path: Path, stack: ExitStack, request: pytest.FixtureRequest) -> tuple[Kernels, list[np.ndarray]]:
    stores = written(stack, tmp_path, a=GROUPS, b=GROUPS)
    control = np.random.default_rng(1).normal(size=(N, 2))
    passes = kernels(design(stores), [Control("input of a", control)], "cpu", keep=request.param, step=lambda: None)
    return passes, [*(np.asarray(store[name][:]) for store in stores for name in store.layers), control]


def values(layers: list[np.ndarray], samples: np.ndarray) -> np.ndarray:
    return np.array([[cosine(x[samples] @ x[samples].T, y[samples] @ y[samples].T, GROUPS[samples])
                      for y in layers] for x in layers])  # fmt: skip


def test_kernels_leave_out_pairs_within_groups(grouped: tuple[Kernels, list[np.ndarray]]) -> None:
    passes, layers = grouped
    assert (passes.n, passes.units) == (N, 10)
    assert passes.unit_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 9, 8]
    np.testing.assert_allclose(passes.values()[0], values(layers, np.arange(N)), atol=1e-5)
    everything = np.arange(len(passes.names))
    sums = block_sums(
        passes, Sides(everything, everything), draw_halves(passes.unit_of, 2, seed=0), cubes=True, room=2**20
    )
    sums.compute(ALONE, lambda: None)
    assert sums.cubes is None
    np.testing.assert_allclose(sums.every.values[0], values(layers, np.arange(N)), atol=1e-5)
    left_out = np.concatenate([sums.without(run).values for run in (slice(0, 3), slice(3, 10))])[:, 0]
    assert left_out.shape == (10, len(layers), len(layers))
    for unit in range(10):
        np.testing.assert_allclose(left_out[unit], values(layers, np.flatnonzero(passes.unit_of != unit)), atol=1e-5)


def test_halves_are_of_whole_groups(grouped: tuple[Kernels, list[np.ndarray]]) -> None:
    passes, layers = grouped
    halves = draw_halves(passes.unit_of, 5, seed=0)
    assert halves.splits == 3  # four cells of two or three groups
    drawn = [(halves.samples(2 * k), halves.samples(2 * k + 1)) for k in range(halves.splits)]
    for first, second in drawn:
        assert sorted([*first, *second]) == list(range(N))
        assert set(passes.unit_of[first]) & set(passes.unit_of[second]) == set()
        np.testing.assert_allclose(passes.values_on(first, np.array([0, 3]))[0], values([layers[0], layers[3]], first),
                                   atol=1e-5)  # fmt: skip
    assert len({tuple(first) for first, _ in drawn}) == 3


@pytest.mark.parametrize("reduced", [False, True])
def test_permutations_exchange_whole_groups(grouped: tuple[Kernels, list[np.ndarray]], reduced: bool) -> None:
    passes, layers = grouped
    orders = passes.permutations(4, seed=0)
    chosen = passes.reduce([0, 3]) if reduced else passes
    one, other = (0, 1) if reduced else (0, 3)
    permuted = permuted_values(chosen, np.array([one]), np.array([other]), orders, memory=None)
    for value, order in zip(permuted.ravel(), orders, strict=True):
        x, y = layers[0], layers[3][order]
        np.testing.assert_allclose(value, cosine(x @ x.T, y @ y.T, GROUPS), atol=0.02 if reduced else 1e-5)
    classes = passes.unit_of % 2
    for order in passes.permutations(4, 0, classes):
        np.testing.assert_array_equal(classes[order], classes)


def test_without_groups_units_are_samples(tmp_path: Path, stack: ExitStack) -> None:
    passes = kernels(design(written(stack, tmp_path, a=None, b=None)), [], "cpu", keep=True, step=lambda: None)
    assert (passes.groups, passes.units, passes.unit_of.tolist()) == (None, N, list(range(N)))
    halves = draw_halves(passes.unit_of, 1, seed=0)
    assert len(halves.samples(0)) == len(halves.samples(1)) == N // 2
    everything = np.arange(len(passes.names))
    sums = block_sums(passes, Sides(everything, everything), halves, cubes=True, room=0)
    sums.compute(ALONE, lambda: None)
    assert sums.cubes is not None
