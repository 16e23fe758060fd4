"""Find the groups of a study's samples: those that its stores hold, or those that the user names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extractors.group_files import GroupsOfPictures, read_groups
from repsim.metrics.recipes.groups import Groups
from repsim.stores.store import ActivationStore

_FEWEST = 8
"""Smallest number of groups: each half of the samples needs four."""


@dataclass(frozen=True)
class _Samples:
    """Ids of the samples of a store."""

    name: str
    ids: Sequence[str]


def groups_of(stores: Sequence[ActivationStore], groups: GroupsOfPictures | None = None) -> Groups | None:
    r"""Return the groups of the samples that all stores share; None if every sample is independent.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Stores of the same samples.
    groups : str, path, mapping or sequence, optional
        ``folders``, ``re:PATTERN`` over the ids, a CSV file, or one group for each sample
        (`repsim.extractors.group_files.read_groups`). By default the groups that stores hold; a store without groups
        says nothing.

    Raises
    ------
    InvalidInputError
        If stores have different groups, there are fewer than 8 groups (4 in each half of the samples), or one has half
        of the samples or more.

    Examples
    --------
    >>> import repsim, tempfile
    >>> names = [f"scene{k // 2}/frame{k % 2}" for k in range(16)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x = torch.arange(32.0).view(16, 2)
    ...     store = repsim.write_store(f"{folder}/a.h5", {"out": x}, model="a", sample_ids=names)
    ...     groups_of([store]), groups_of([store], r"re:scene(\d+)").count, groups_of([store], "folders").name(0)
    (None, 8, 'scene0')
    """
    if groups is not None:
        values, _ = read_groups(_Samples(str(stores[0].path), stores[0].sample_ids.ids), groups)
        chosen = Groups.of(values, len(stores[0]))
    else:
        held = [store for store in stores if store.groups is not None]
        if not held:
            return None
        chosen = _held(held[0])
        for store in held[1:]:
            if not torch.equal(_held(store).numbers, chosen.numbers):
                raise InvalidInputError(
                    f"{held[0].path} and {store.path} put the same samples into different groups",
                    remedy=Remedy("extract one of them again, with the same ", Argument("groups", of="extract"),
                                  ", or name the groups for all with ", Argument("groups")),
                )  # fmt: skip
    if chosen.trivial:
        return None
    chosen.check()
    if chosen.count < _FEWEST:
        raise InvalidInputError(
            f"{chosen.count} groups are too few for a study, which divides them into halves: it needs {_FEWEST} or more"
        )
    return chosen


def _held(store: ActivationStore) -> Groups:
    assert store.groups is not None, "only stores with groups"
    return Groups(Groups.of(store.groups).numbers, store.group_names)
