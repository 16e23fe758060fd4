"""Make small copies of the pictures that networks agree on most and least, for the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from repsim.errors import ImageError
from repsim.extractors.samples.folders import EVERYTHING, Folder
from repsim.extractors.samples.opening import open_images
from repsim.extractors.samples.source import ImageSource

SHOWN = 12
"""Number of pictures of either kind."""
SIZE = 96
"""Length of the longer side in pixels."""


def without_pictures() -> dict[str, Any]:
    """Return the entries of a page without pictures, which are left out by default because they may be private."""
    return {
        "pictures": {},
        "pictures_note": "The pictures themselves are not in this page because they may be private. "
        "The page can be made with small copies of them (option thumbnails).",
    }


def thumbnails(parts: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """Make small copies of the pictures that the parts of a page show.

    Only pictures that ``source`` lists are used, and links to other folders are not followed, so that the page can be
    shared. The page shows a note in the place of a picture that is missing or cannot be read.

    Parameters
    ----------
    parts : sequence of dict
        Parts of the page.
    source : str
        Folder or ``.tar`` of the pictures, or ``digits``.

    Returns
    -------
    dict
        ``pictures``, by name, and ``pictures_note``.

    Raises
    ------
    ImageError
        If there is no picture in ``source`` at all.
    """
    # the ids of a study of one split are relative to the folder of all splits
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
    available = any("url" in picture for picture in pictures.values())
    note = f"None of these pictures is among the {len(images)} of the thumbnails option; give their folder."
    return {"pictures": pictures, "pictures_note": "" if available else note}


def _picture(images: ImageSource, row: int | None) -> dict[str, str]:
    if row is None:
        return {"missing": "no such picture"}
    if isinstance(images, Folder) and not images.path(row).resolve().is_relative_to(images.root.resolve()):
        return {"missing": "a link to another folder"}
    try:
        picture = images.load(row)
    except ImageError:
        return {"missing": "cannot be read"}
    if max(picture.size) < SIZE:  # enlarge small pictures without interpolation
        times = SIZE // max(picture.size)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80, method=6)
    return {"url": f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"}
