"""Find the groups of the samples of stores: those that the stores hold, or those that the user names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extractors.samples.group_files import GroupsOfPictures, read_groups
from repsim.metrics.recipes.groups import Groups
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore


@dataclass(frozen=True)
class _Samples:
    """Ids of the samples of a store."""

    name: str
    ids: Sequence[str]


def common_groups_of(
    stores: Sequence[ActivationStore], groups: GroupsOfPictures | None = None, view: AlignedView | None = None
) -> Groups | None:
    r"""Return the groups of the samples that all stores share; None if every sample is independent.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Stores of the same samples.
    groups : str, path, mapping or sequence, optional
        ``folders``, ``re:PATTERN`` over the ids, a CSV file, or one group for each sample
        (`repsim.extractors.samples.group_files.read_groups`). By default the groups that stores hold; a store without
        groups says nothing.
    view : AlignedView, optional
        The stores with their samples paired; by default their samples are the same, in the same order.

    Raises
    ------
    InvalidInputError
        If stores have different groups, there are fewer than 4 groups, or one has half of the samples or more.

    Examples
    --------
    >>> import repsim, tempfile
    >>> names = [f"scene{k // 2}/frame{k % 2}" for k in range(16)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x = torch.arange(32.0).view(16, 2)
    ...     store = repsim.write_store(f"{folder}/a.h5", {"out": x}, model="a", sample_ids=names)
    ...     common_groups_of([store]), common_groups_of([store], r"re:scene(\d+)").count
    (None, 8)
    """
    if groups is not None:
        ids = (stores[0] if view is None else view).sample_ids.ids
        values, _ = read_groups(_Samples(str(stores[0].path), ids), groups)
        chosen = Groups.of(values, len(ids))
    else:
        held = [store for store in stores if store.groups is not None]
        if not held:
            return None
        chosen = _held(held[0], view)
        for store in held[1:]:
            if not torch.equal(_held(store, view).numbers, chosen.numbers):
                raise InvalidInputError(
                    f"{held[0].path} and {store.path} put the same samples into different groups",
                    remedy=Remedy("extract one of them again, with the same ", Argument("groups", of="extract"),
                                  ", or name the groups for all with ", Argument("groups")),
                )  # fmt: skip
    if chosen.trivial:
        return None
    chosen.check()
    return chosen


def _held(store: ActivationStore, view: AlignedView | None) -> Groups:
    assert store.groups is not None, "only stores with groups"
    rows = None if view is None else view.rows(store)
    if rows is not None:
        numbers = np.asarray(store.groups)[rows].tolist()
        return Groups.of([store.group_names[k] for k in numbers] if store.group_names else numbers)
    return Groups(Groups.of(store.groups).numbers, store.group_names)
