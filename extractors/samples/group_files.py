"""Assign groups to samples: by their folders, by a regular expression over their ids, or by a CSV file.

Samples of one group, such as the frames of a scene, are not independent. A group is a name; `repsim` compares groups
only for equality.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError
from repsim.extractors.samples.label_files import Named, Noun, match_names, read_table
from repsim.extractors.samples.source import SampleSource
from repsim.runtime.arrays import as_groups

GroupsOfPictures = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | np.ndarray[Any, Any]
"""`folders`, `re:PATTERN`, a file, a mapping from id or file name to group, or a sequence in the order of the ids."""

_GROUP = Noun(
    "group", "groups", "group", "groups", "groups", frozenset({"group", "groups", "scene", "cluster", "subject"})
)


def assign_groups(samples: SampleSource, groups: GroupsOfPictures) -> None:
    r"""Set the groups of a source, and record their origin.

    Parameters
    ----------
    samples : SampleSource
        The source, whose groups are replaced.
    groups : str, path, mapping or sequence
        As in `read_groups`.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> images = open_images("digits", groups=r"re:/(\d\d)")
    >>> images.ids[13], images.group_names[images.groups[13]]
    ('digits/0013', '00')
    """
    values, record = read_groups(samples, groups)
    samples.groups, samples.group_names = as_groups(values, len(samples.ids))
    samples.group_record = record


def read_groups(samples: Named, groups: GroupsOfPictures) -> tuple[Any, dict[str, Any]]:
    r"""Return the group of each sample, in the order of the ids, and a record of their origin for the provenance.

    Parameters
    ----------
    samples : Named
        Ids of the samples, and the name of the data for messages.
    groups : str, path, mapping or sequence
        ``folders``: the folder of each sample. ``re:PATTERN``: what the first bracket of a regular expression matches
        in the id, as in ``re:scene(\d+)``. Any other text is a table of two columns, id or file name, and group. A
        mapping from id or file name to group, or one integer or text for each sample.

    Raises
    ------
    InvalidInputError
        The pattern is none, has no bracket, or does not match every id; no sample is in a folder; or the table and
        the samples do not match one to one. The message contains counts and the first names.
    """
    if isinstance(groups, Mapping):
        table = [(str(name), value) for name, value in groups.items()]
        values, matched_by = match_names(samples, table, "groups", _GROUP)
        return values, {"source": "given", "matched_by": matched_by}
    if not isinstance(groups, str | os.PathLike):
        return groups, {"source": "given"}
    if groups == "folders":
        return _folders(samples), {"source": "folders"}
    if isinstance(groups, str) and groups.startswith("re:"):
        return _matches(samples, groups.removeprefix("re:")), {"source": groups}
    path = Path(groups)
    table, record = read_table(path, samples, _GROUP)
    values, record["matched_by"] = match_names(samples, table, path.name, _GROUP)
    for name, group in zip(samples.ids, values, strict=True):
        if not group:
            raise InvalidInputError(f"{path.name}: {name} has no group; add one, as its own group if it is alone")
    return values, record


def _folders(samples: Named) -> list[str]:
    folders = [name.rpartition("/")[0] for name in samples.ids]
    if len(set(folders)) == 1:
        where = f"in one folder ({folders[0]})" if folders[0] else "in no folder"
        raise InvalidInputError(f"all {len(folders)} samples of {samples.name} are {where}, so folders make no groups")
    return folders


def _matches(samples: Named, text: str) -> list[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InvalidInputError(f"groups: {text} is no regular expression: {error}") from None
    if not pattern.groups:
        raise InvalidInputError(f"groups: {text} has no bracket; put the part that names the group in one: scene(\\d+)")
    matches = [pattern.search(name) for name in samples.ids]
    missing = [name for name, m in zip(samples.ids, matches, strict=True) if m is None or m.group(1) is None]
    if missing:
        raise InvalidInputError(
            f"groups: {text} names no group of {len(missing)} of {len(matches)} samples of {samples.name} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        )
    return [m.group(1) for m in matches if m is not None]
