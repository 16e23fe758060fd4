"""Show the samples that networks agree on most and least: small copies of pictures, shortened texts, or both."""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from repsim.errors import InvalidInputError, SampleError, UnknownNameError
from repsim.extractors.samples import tables
from repsim.extractors.samples.columns import ID_NAMES
from repsim.extractors.samples.folders import EVERYTHING, Folder, TextFolder
from repsim.extractors.samples.label_files import LABEL_HEADS
from repsim.extractors.samples.opening import open_samples
from repsim.extractors.samples.source import SampleSource
from repsim.labels import noun_of
from repsim.runtime.visible_text import is_visible

SHOWN = 12
"""Number of samples of either kind."""
SIZE = 96
"""Length of the longer side of a picture in pixels."""
LENGTH = 240
"""Largest number of characters of a text."""
_MOST = 4
"""Largest number of pictures and texts of one sample."""

Shown = dict[str, str]
"""One view of a sample: ``url`` of a picture, ``text``, or the reason why it is ``missing``."""


def without_stimuli(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of a page without samples, which are left out by default because they may be private."""
    noun = parts[0]["samples"]
    how = "them, shortened" if noun == "texts" else "small copies of them"
    return {
        "stimuli": {},
        "stimuli_note": f"The {noun} themselves are not in this page because they may be private. "
        f"The page can be made with {how} (option thumbnails).",
    }


def stimuli_of(parts: Sequence[Mapping[str, Any]], data: Any, column: str | Sequence[str] = ()) -> dict[str, Any]:
    """Read the samples that the parts of a page show.

    Only samples that ``data`` lists are used, and links to other folders are not followed, so that the page can be
    shared. The page shows a note in the place of a sample that is missing or cannot be read. A sample of a table is
    shown in all of its columns.

    Parameters
    ----------
    parts : sequence of dict
        Parts of the page.
    data : str, path or object
        The samples, as for `repsim.extract`.
    column : str or sequence of str
        Columns of a table that are shown. By default the column of pictures and that of texts if the table has no more
        of either, and otherwise those that the networks have read.

    Returns
    -------
    dict
        ``stimuli``: a list of views for each name of a sample; and ``stimuli_note``.

    Raises
    ------
    SampleError
        There are no samples in ``data`` at all, or it is not clear which columns are to be shown.
    UnknownNameError
        There is no column of a name.
    InvalidInputError
        The samples are neither pictures nor texts.
    """
    sources = _open(data, [column] if isinstance(column, str) else list(column), parts)
    names = sorted({
        part["coords"]["sample"][k]
        for part in parts
        for chosen in part.get("stimuli", {}).values()
        for k in (*chosen["most"], *chosen["least"])
    })  # fmt: skip
    views: dict[str, list[Shown]] = {name: [] for name in names}
    for source in sources:
        for name, shown in _views(source, names):
            views[name] += shown
    available = any("missing" not in view for of_sample in views.values() for view in of_sample)
    return {"stimuli": views, "stimuli_note": _columns_note(sources) if available else _none_note(sources)}


def _columns_note(sources: Sequence[SampleSource]) -> str:
    """Return which columns of a table are shown; empty for data without columns."""
    columns = [str(source.record["column"]) for source in sources if source.record.get("column")]
    if not columns:
        return ""
    name = sources[0].name.removesuffix(f" [{columns[0]}]")
    which = f"column {columns[0]}" if len(columns) == 1 else f"columns {' and '.join(columns)}"
    return f"Shown: the {which} of {name}."


def _none_note(sources: Sequence[SampleSource]) -> str:
    noun, count = noun_of([source.modality for source in sources]), len(sources[0])
    what = "their folder" if noun == "pictures" else "the data that the networks have read"
    return f"None of these {noun} is among the {count} of the thumbnails option; give {what}."


def _open(data: Any, columns: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> list[SampleSource]:
    """Open the data, and of a table the columns that are shown, pictures first."""
    data = os.fspath(data) if isinstance(data, os.PathLike) else data
    columns = columns or _columns_of(data, parts)
    named = list(dict.fromkeys(name for part in parts for name in part.get("id_columns", ())))
    ids = named[0] if len(named) == 1 else None  # the ids of the study, which may be in another order than others
    sources = [open_samples(data, column=name, id_column=ids) for name in columns] or [_open_all(data)]
    if wrong := next((source for source in sources if source.modality == "tensor"), None):
        raise InvalidInputError(f"{wrong.name} holds arrays, which a page cannot show; give pictures or texts")
    return sorted(sources, key=lambda source: source.modality != "image")


def _open_all(data: Any) -> SampleSource:
    """Open data without columns. The ids of a study of one split are relative to the folder of all splits."""
    if isinstance(data, str) and data != "digits" and (Path(data).is_dir() or Path(data).suffix.lower() == ".tar"):
        try:
            return open_samples(data, split=EVERYTHING)
        except (InvalidInputError, UnknownNameError):  # a folder of another library, which has splits of its own
            return open_samples(data)
    return open_samples(data)


def _columns_of(data: Any, parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a table that are shown; none for other data, and for a table of one column."""
    read = list(dict.fromkeys(name for part in parts for name in part.get("columns", ())))
    if not (isinstance(data, str) and Path(data).suffix.lower() in tables.SUFFIXES and Path(data).is_file()):
        return [name for name in read if _has_column(data, name)]
    table = tables.open_table(Path(data))
    kinds = {
        name: kind for name in table.columns
        if name.lower() not in {*ID_NAMES, *LABEL_HEADS} and (kind := table.modality(name)) in {"image", "text"}
    }  # fmt: skip
    if len(kinds) == len(set(kinds.values())):
        return list(kinds)
    chosen = [name for name in read if name in kinds]
    modalities = {modality for part in parts for modality in part["coords"].get("modality", ())}
    for modality in modalities - {kinds[name] for name in chosen}:  # pictures may have been read from their folder
        own = [name for name, kind in kinds.items() if kind == modality]
        chosen += own if len(own) == 1 else []
    return sorted(chosen, key=lambda name: kinds[name] != "image")


def _has_column(data: Any, name: str) -> bool:
    """Return whether data have a column of this name."""
    try:
        open_samples(data, column=name)
    except (InvalidInputError, UnknownNameError, SampleError):
        return False
    return True


def _views(source: SampleSource, names: Sequence[str]) -> Iterator[tuple[str, list[Shown]]]:
    """Yield the name of every sample with what is shown of it."""
    places = {name: row for row, name in enumerate(source.ids)}
    absent = noun_of([source.modality], count=1)
    yield from ((name, [{"missing": f"no such {absent}"}]) for name in names if name not in places)
    rows = sorted(places[name] for name in names if name in places)
    if not source.indexable:  # read in its order, once
        samples = dict(source.read(rows))
        yield from ((source.ids[row], _shown(samples[row])) for row in rows)
        return
    for row in rows:
        if isinstance(source, Folder | TextFolder) and not source.path(row).resolve().is_relative_to(
            source.root.resolve()
        ):
            yield source.ids[row], [{"missing": "a link to another folder"}]
            continue
        try:
            yield source.ids[row], _shown(source.load(row))
        except SampleError:
            yield source.ids[row], [{"missing": "cannot be read"}]


def _shown(sample: Any) -> list[Shown]:
    """Return the pictures and texts of a sample, which can be a nest of them."""
    views = list(_parts(sample))[:_MOST]
    return views or [{"missing": "no picture and no text"}]


def _parts(sample: Any) -> Iterator[Shown]:
    if isinstance(sample, Image.Image):
        yield {"url": _thumbnail(sample)}
    elif isinstance(sample, str):
        yield {"text": shortened(sample)}
    elif isinstance(sample, Mapping | list | tuple):
        for part in sample.values() if isinstance(sample, Mapping) else sample:
            yield from _parts(part)


def _thumbnail(picture: Image.Image) -> str:
    """Return a small copy of a picture as a ``data:`` address."""
    if max(picture.size) < SIZE:  # enlarge small pictures without interpolation
        times = SIZE // max(picture.size)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def shortened(text: str, length: int = LENGTH) -> str:
    r"""Return a text on one line, without characters that format it, cut at a space if it is longer than ``length``.

    The script of the page inserts it as text, so that markup in it stays text.

    >>> shortened(" Two cats\n\ton a sofa. "), shortened("one two three", 9)
    ('Two cats on a sofa.', 'one two …')
    """
    plain = "".join(" " if letter.isspace() else letter for letter in text if is_visible(letter))
    plain = " ".join(plain.split())
    if len(plain) <= length:
        return plain
    cut = plain[: length - 1]
    at_space = cut.rfind(" ")
    return f"{cut[: at_space if at_space > length // 2 else None].rstrip()} …"
