"""Find the groups of a study's samples, and check that they can be divided into halves."""

from collections.abc import Sequence

from repsim.errors import InvalidInputError
from repsim.extractors.samples.group_files import GroupsOfPictures
from repsim.metrics.recipes.groups import Groups
from repsim.stores.alignment import AlignedView
from repsim.stores.grouping import common_groups_of
from repsim.stores.store import ActivationStore

_FEWEST = 8
"""Smallest number of groups: each half of the samples needs four."""


def groups_of(
    stores: Sequence[ActivationStore], groups: GroupsOfPictures | None = None, view: AlignedView | None = None
) -> Groups | None:
    r"""Return the groups of the samples that all stores of a study share; None if every sample is independent.

    Parameters
    ----------
    stores, groups, view
        As in `repsim.stores.grouping.common_groups_of`.

    Raises
    ------
    InvalidInputError
        If stores have different groups, there are fewer than 8 groups (4 in each half of the samples), or one has half
        of the samples or more.

    Examples
    --------
    >>> import repsim, tempfile
    >>> import torch
    >>> names = [f"scene{k // 2}/frame{k % 2}" for k in range(16)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x = torch.arange(32.0).view(16, 2)
    ...     store = repsim.write_store(f"{folder}/a.h5", {"out": x}, model="a", sample_ids=names)
    ...     groups_of([store]), groups_of([store], r"re:scene(\d+)").count, groups_of([store], "folders").name(0)
    (None, 8, 'scene0')
    """
    chosen = common_groups_of(stores, groups, view)
    if chosen is not None and chosen.count < _FEWEST:
        groups = "1 group is" if chosen.count == 1 else f"{chosen.count} groups are"
        raise InvalidInputError(
            f"{groups} too few for a study, which divides them into halves: it needs {_FEWEST} or more"
        )
    return chosen
