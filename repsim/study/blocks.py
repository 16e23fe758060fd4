"""Divide the models of a study into groups, whose pairs are computed one after the other.

A pair of groups is a block. What is computed of a block depends on its models, their controls and the settings, and not
on the other models. So blocks bound the memory, are kept on disk when they are done, and a study to which models are
added computes only the blocks of these. Few models make one group, and so one block.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, product

import numpy as np
from jaxtyping import Int64

from repsim.study.design import Design, Member, Pair

Group = tuple[Member, ...]


@dataclass(frozen=True)
class Block:
    """Two groups of models that are compared, or one group with itself."""

    rows: Group
    columns: Group

    @property
    def diagonal(self) -> bool:
        """Whether a group is compared with itself."""
        return self.rows == self.columns

    @property
    def members(self) -> Group:
        """Models of both groups, each once."""
        return self.rows if self.diagonal else (*self.rows, *self.columns)

    def pairs(self, order: Mapping[str, int]) -> tuple[Pair, ...]:
        """Return pairs of models, one of each group, or different ones of one group; the earlier in the order first."""
        both = combinations(self.rows, 2) if self.diagonal else product(self.rows, self.columns)
        return tuple(Pair(*sorted(pair, key=lambda member: order[member.name])) for pair in both)

    def __str__(self) -> str:
        names = [f"{group[0].name} ... {group[-1].name}" if len(group) > 1 else group[0].name
                 for group in dict.fromkeys((self.rows, self.columns))]  # fmt: skip
        return " x ".join(names)


@dataclass(frozen=True, eq=False)
class Sides:
    """Layers of a block, as positions among all layers and controls."""

    rows: Int64[np.ndarray, " rows"]
    """Layers of the first group that the second lacks; and then the layers of both sides."""
    columns: Int64[np.ndarray, " columns"]
    """The layers of both sides; and then those of the second group that the first lacks."""

    @property
    def layers(self) -> Int64[np.ndarray, " layers"]:
        """All layers, those of the rows first."""
        return np.concatenate([self.rows, self.columns[~np.isin(self.columns, self.rows)]])


def sides(block: Block, design: Design, positions: Mapping[str, Int64[np.ndarray, " layers"]]) -> Sides:
    """Return the layers of a block: of its models, and of the controls that both sides need.

    These are the controls of the input, and the untrained twins of the models.
    """
    inputs = positions.get("input", np.zeros(0, int))
    rows, columns = (_layers(group, positions) for group in (block.rows, block.columns))
    twins = [twin for member in block.members if member.trained for twin in design.twins_of(member)]
    both = np.unique(np.concatenate([_layers(dict.fromkeys(twins), positions), inputs]).astype(int))
    if block.diagonal:
        everything = np.concatenate([rows, both[~np.isin(both, rows)]])
        return Sides(everything, everything)
    return Sides(
        np.concatenate([rows[~np.isin(rows, both)], both]), np.concatenate([both, columns[~np.isin(columns, both)]])
    )


def _layers(
    members: Iterable[Member], positions: Mapping[str, Int64[np.ndarray, " layers"]]
) -> Int64[np.ndarray, " k"]:
    return np.concatenate([np.zeros(0, int), *(positions[member.name] for member in members)]).astype(int)


def divide(
    members: Sequence[Member],
    most: float,
    size: Callable[[Member], float] = lambda member: len(member.arrays),
    earlier: Sequence[Sequence[str]] = (),
) -> list[Group]:
    """Divide models into groups of at most this size in all, or of one larger model.

    Parameters
    ----------
    members
        The models, in their order.
    most
        Largest size of a group.
    size
        Size of a model; by default its number of layers.
    earlier
        Names of the models of earlier groups, which are kept as they are if all of their models are there: a study to
        which models are added finds the blocks that it has computed.
    """
    by_name = {member.name: member for member in members}
    groups: list[Group] = []
    for names in earlier:
        group = tuple(by_name[name] for name in names if name in by_name)
        if len(group) == len(names) and (len(group) == 1 or sum(map(size, group)) <= most):
            groups.append(group)
    placed = {member.name for group in groups for member in group}
    new: list[Member] = []
    total = 0.0
    for member in members:
        if member.name in placed:
            continue
        if new and total + size(member) > most:
            groups.append(tuple(new))
            new, total = [], 0.0
        new.append(member)
        total += size(member)
    return [*groups, tuple(new)] if new else groups


def even_size(members: Sequence[Member], groups: int) -> int:
    """Return the smallest size for which `divide` makes at most this number of groups, so that they are alike."""
    sizes = [len(member.arrays) for member in members]
    possible = range(max(sizes), sum(sizes))
    return possible.start + bisect_left(possible, x=True, key=lambda most: len(divide(members, most)) <= groups)


def blocks(groups: Sequence[Group]) -> list[Block]:
    """Return all blocks: every group with itself and with every later one."""
    return [Block(a, b) for a, b in combinations_with_replacement(groups, 2)]
