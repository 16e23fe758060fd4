"""The division of a study: samples into balanced halves, models into groups, and groups into blocks."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from repsim.study.block_sums import draw_halves
from repsim.study.blocks import Block, blocks, divide, sides
from repsim.study.design import Design, Member, design
from repsim.testing.examples import TRAINED, UNTRAINED, unrelated_layers, write_network
from tests.study.references import balanced_halves

# Halves


@pytest.mark.parametrize(("n", "splits"), [(64, 8), (64, 2), (32, 1), (128, 4), (48, 7)])
def test_halves_are_balanced(n: int, splits: int) -> None:
    """Both halves are equally large, and two divisions cross: half of each half is in each half of the other."""
    halves = draw_halves(np.arange(n), splits, seed=3)
    assert halves.splits == splits
    signs = np.where(halves.first[:, halves.cells], 1, -1)
    np.testing.assert_array_equal(signs @ signs.T, n * np.eye(splits))
    np.testing.assert_array_equal(signs.sum(1), 0)
    assert np.ptp(np.bincount(halves.cells)) == 0
    for split in range(splits):
        first, second = halves.samples(2 * split), halves.samples(2 * split + 1)
        np.testing.assert_array_equal(first, np.flatnonzero(signs[split] > 0))
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(n))
    for one, other in zip(balanced_halves(n, splits, 3), range(splits), strict=True):
        np.testing.assert_array_equal(one[0], halves.samples(2 * other))
        np.testing.assert_array_equal(one[1], halves.samples(2 * other + 1))


@pytest.mark.parametrize("n", [*range(8, 40), 97, 1001])
def test_halves_of_any_number_of_samples(n: int) -> None:
    """They differ by at most one sample for each cell of a half, and every cell has two samples or more."""
    halves = draw_halves(np.arange(n), 8, seed=0)
    counts = np.bincount(halves.cells)
    assert counts.min() >= 2
    assert np.ptp(counts) <= 1
    assert 1 <= halves.splits <= 8
    assert halves.splits == min(8, len(counts) - 1)
    assert len(counts) <= 16
    for split in range(halves.splits):
        sizes = [len(halves.samples(2 * split + k)) for k in (0, 1)]
        assert sum(sizes) == n
        assert abs(sizes[0] - sizes[1]) <= len(counts) // 2
    assert len({tuple(halves.samples(2 * k)) for k in range(halves.splits)}) == halves.splits


def test_halves_are_random_and_depend_on_the_seed() -> None:
    first = [tuple(draw_halves(np.arange(60), 4, seed).samples(0)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    together = np.zeros((40, 40))
    for seed in range(400):
        halves = draw_halves(np.arange(40), 1, seed)
        signs = np.where(halves.first[0, halves.cells], 1, -1)
        together += np.outer(signs, signs)
    apart = together[~np.eye(40, dtype=bool)] / 400
    assert abs(apart.mean() + 1 / 39) < 0.005  # two samples are in one half with probability 19 / 39
    assert abs(apart).max() < 5 / np.sqrt(400)


def test_groups_stay_together() -> None:
    unit_of = np.repeat(np.arange(20), [1, 5, 2, 2] * 5)[np.random.default_rng(0).permutation(50)]
    halves = draw_halves(unit_of, 8, seed=0)
    assert halves.splits == 7  # 8 cells of two or three groups
    for unit in range(20):
        assert len(set(halves.cells[unit_of == unit])) == 1
    for split in range(halves.splits):
        units = [set(unit_of[halves.samples(2 * split + k)]) for k in (0, 1)]
        assert not units[0] & units[1]
        assert abs(len(units[0]) - len(units[1])) <= 4


# Models


@pytest.fixture
def study(tmp_path: Path) -> Design:
    rng, depths = np.random.default_rng(0), {"cnn": 3, "vit": 2}
    with ExitStack() as stack:
        return design([
            stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, 12, *[4] * depths[model[:3]])))
            for model in (*TRAINED, *UNTRAINED)
        ])  # fmt: skip


def names(groups: Sequence[Sequence[Member]]) -> list[list[str]]:
    return [[member.name for member in group] for group in groups]


def test_groups_have_at_most_the_size(study: Design) -> None:
    assert len(divide(study.members, 100)) == 1
    for most in (1, 3, 5, 6, 9, 20):
        groups = divide(study.members, most)
        assert [name for group in names(groups) for name in group] == [member.name for member in study.members]
        for group in groups:
            assert len(group) == 1 or sum(len(member.arrays) for member in group) <= most
        for one, other in pairwise(groups):  # no two of them would fit together
            assert sum(len(m.arrays) for m in (*one, other[0])) > most
    assert names(divide(study.members, 1)) == [[member.name] for member in study.members]
    assert names(divide(study.members[:3], 2, size=lambda _: 1)) == [[*TRAINED[:2]], [TRAINED[2]]]
    assert divide([], 5) == []


def test_earlier_groups_are_kept(study: Design) -> None:
    """New models follow. A group of which a model is gone, or that is too large now, is divided again."""
    earlier = names(divide(study.members[:4], 6))
    assert earlier == [[*TRAINED[:2]], [*TRAINED[2:]]]
    grown = names(divide(study.members, 6, earlier=earlier))
    assert grown[:2] == earlier
    assert [name for group in grown for name in group] == [member.name for member in study.members]
    moved = names(divide(study.members[::-1], 6, earlier=earlier))
    assert moved[:2] == earlier
    fewer = names(divide([m for m in study.members if m.name != TRAINED[1]], 6, earlier=earlier))
    assert fewer[0] == earlier[1]
    assert fewer[1][0] == TRAINED[0]
    assert sorted(name for group in fewer for name in group) == sorted({m.name for m in study.members} - {TRAINED[1]})
    smaller = names(divide(study.members, 4, earlier=earlier))
    assert earlier[0] not in smaller
    assert smaller[0] == earlier[1]
    assert names(divide(study.members[:1], 1, earlier=[[TRAINED[0]]])) == [[TRAINED[0]]]


@pytest.mark.parametrize("most", [1, 6, 9, 100])
def test_every_pair_of_models_is_in_one_block(study: Design, most: int) -> None:
    order = {member.name: k for k, member in enumerate(study.members)}
    groups = divide(study.members[::-1], most)
    every = blocks(groups)
    assert len(every) == len(groups) * (len(groups) + 1) // 2
    assert [block.rows for block in every if block.diagonal] == groups
    pairs = [pair for block in every for pair in block.pairs(order)]
    assert sorted(pair.name for pair in pairs) == sorted(
        f"{a.name} x {b.name}" for a, b in combinations(study.members, 2)
    )
    for block in every:
        assert len(block.members) == len({member.name for member in block.members})
        assert {m.name for pair in block.pairs(order) for m in (pair.a, pair.b)} <= {m.name for m in block.members}


def test_blocks_have_names(study: Design) -> None:
    a, b = study.members[:2], study.members[2:3]
    assert str(Block(a, a)) == "cnn.seed0 ... cnn.seed1"
    assert str(Block(a, b)) == "cnn.seed0 ... cnn.seed1 x vit.seed0"


def test_sides_have_the_controls_on_both(study: Design) -> None:
    """The rows end with what both sides need, and the columns begin with it."""
    ends = np.cumsum([0, *(len(member.arrays) for member in study.members)])
    positions = {member.name: np.arange(*ends[k : k + 2]) for k, member in enumerate(study.members)}
    positions["input"] = np.array([ends[-1], ends[-1] + 1])
    cnn, vit = ([m for m in study.members if m.name.startswith(start)] for start in ("cnn", "vit"))

    def layers(*members: Member) -> set[int]:
        return {int(k) for member in members for k in positions[member.name]}

    where = sides(Block((cnn[0],), (vit[0],)), study, positions)
    both = layers(*cnn[2:], *vit[2:]) | set(positions["input"].tolist())
    assert set(where.rows.tolist()) == layers(cnn[0]) | both
    assert set(where.columns.tolist()) == layers(vit[0]) | both
    assert where.rows[-len(both) :].tolist() == where.columns[: len(both)].tolist()
    assert sorted(where.layers.tolist()) == sorted(layers(cnn[0], vit[0]) | both)
    untrained = sides(Block((cnn[2],), (vit[2],)), study, positions)
    assert set(untrained.rows.tolist()) == layers(cnn[2]) | set(positions["input"].tolist())
    alone = sides(Block(tuple(cnn), tuple(cnn)), study, positions)
    np.testing.assert_array_equal(alone.rows, alone.columns)
    np.testing.assert_array_equal(alone.rows, alone.layers)
    assert set(alone.rows.tolist()) == layers(*cnn) | set(positions["input"].tolist())
    within = sides(Block((cnn[0], cnn[2]), (cnn[1],)), study, positions)
    assert within.rows.tolist() == [*positions[cnn[0].name], *within.columns[:-3]]
    assert set(positions[cnn[2].name]) <= set(within.columns.tolist())
