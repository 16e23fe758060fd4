"""Small copies of the pictures that networks agree on most and least, inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from repsim.errors import ImageError
from repsim.extractors.folders import EVERYTHING, Folder
from repsim.extractors.images import open_images
from repsim.extractors.sources import ImageSource

SHOWN = 12
"""How many of either kind."""
SIZE = 96
"""Pixels of the longer side."""


def without_pictures() -> dict[str, Any]:
    """Say why there are none: whether pictures may be passed on is not for a tool to say."""
    return {
        "pictures": {},
        "pictures_note": "The pictures themselves are not in this page, as they may be private; "
        "repsim report --thumbnails DIR puts small copies of these into it.",
    }


def thumbnails(parts: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """Make small copies of what the parts of a page show.

    A picture is looked up among those that ``source`` lists, so no name leads out of it, and links that do are not
    followed: a page is passed on. One that is not there, or cannot be read, says so in its place.

    Raises
    ------
    ImageError
        If there is no picture in ``source`` at all.
    """
    # a study of one split has ids of the whole
    everything = EVERYTHING if source != "digits" and Path(source).exists() else None
    images = open_images(source, split=everything)
    places = {name: row for row, name in enumerate(images.ids)}
    shown = {
        part["coords"]["sample"][k]
        for part in parts
        for chosen in part.get("stimuli", {}).values()
        for k in (*chosen["most"], *chosen["least"])
    }
    pictures = {name: _picture(images, places.get(name)) for name in sorted(shown)}
    found = sum("url" in each for each in pictures.values())
    note = (
        "" if found else f"None of these pictures is in the {len(images)} that --thumbnails names; give their folder."
    )
    return {"pictures": pictures, "pictures_note": note}


def _picture(images: ImageSource, row: int | None) -> dict[str, str]:
    if row is None:
        return {"missing": "no such picture there"}
    if isinstance(images, Folder) and not images.path(row).resolve().is_relative_to(images.root.resolve()):
        return {"missing": "a link to another folder"}
    try:
        picture = images.load(row)
    except ImageError:
        return {"missing": "cannot be read"}
    if max(picture.size) < SIZE:  # pixels of a digit stay pixels
        times = SIZE // max(picture.size)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80, method=6)
    return {"url": f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"}
