"""Decode pictures to RGB as timm decodes them, in every format that Pillow opens, up to a number of pixels.

Transparency is dropped and EXIF orientation is not applied, as in timm's training and evaluation. Only 16-bit greys
differ: they are scaled to 8 bits and not cut off at 255.
"""

import functools
import io
import threading
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from repsim.errors import Argument, ImageError, Part, Remedy, reason

MAX_PIXELS = 178_956_970
"""Pixels of a picture at most, unless more are allowed: where Pillow refuses by default."""
_NO_PICTURES = frozenset({"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats that Pillow registers and that hold no picture of their own: films, documents that run a program, and stubs
for which some other library has to be there."""
_REFUSED_SUFFIXES = frozenset({".pfm"})
"""Floating-point pixels without a fixed range: depth maps, beside the pictures that they belong to."""
_WITH_FRAMES = frozenset({"AVIF", "DCX", "GIF", "MPO", "PNG", "TIFF", "WEBP"})
"""Formats whose files may hold several pictures in a row."""
_limits = threading.Lock()


def suffixes() -> frozenset[str]:
    """Return the suffixes of the pictures that this Pillow opens, in lower case.

    >>> sorted({".png", ".jfif", ".jpe", ".eps", ".mpg", ".txt"} & suffixes())
    ['.jfif', '.jpe', '.png']
    """
    Image.init()  # MPO, which stereo cameras write, is opened as JPEG is
    return frozenset(
        suffix.lower()
        for suffix, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in _NO_PICTURES and suffix not in _REFUSED_SUFFIXES
    )


@functools.cache
def suffixes_of_frames() -> frozenset[str]:
    """Return the suffixes of pictures that may hold several in a row, in lower case.

    >>> sorted({".gif", ".mpo", ".tif", ".jpg"} & suffixes_of_frames())
    ['.gif', '.mpo', '.tif']
    """
    Image.init()
    return frozenset(suffix.lower() for suffix, name in Image.registered_extensions().items() if name in _WITH_FRAMES)


def decode(data: Any, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first picture of a file that is open for reading; `ImageError` with its name where that fails."""
    try:
        with _open(data) as picture:
            _check_size(picture, name, max_pixels)
            return as_rgb(picture)
    except (ImageError, MemoryError):  # the latter is no fault of the picture, which skip_bad=True would leave out
        raise
    except Exception as error:  # noqa: BLE001 - what the decoders raise on damaged files is anything
        foreign = isinstance(error, UnidentifiedImageError)
        raise unreadable(name, "not a picture that can be decoded" if foreign else reason(error)) from None


def has_frames(data: bytes) -> bool:
    """Whether a file holds pictures after its first one; what cannot be opened has none."""
    try:
        with _open(io.BytesIO(data)) as picture:
            return picture.format in _WITH_FRAMES and bool(getattr(picture, "is_animated", False))
    except Exception:  # noqa: BLE001 - damaged; whoever decodes it says so
        return False


def as_rgb(picture: Image.Image) -> Image.Image:
    """Convert an open picture to RGB."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in {"I", "F"}:
        raise ValueError(f"its pixels (mode {picture.mode}) have no fixed range; save it with 8 or 16 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours, without Pillow's warning
    return picture.convert("RGB")


def unreadable(name: str, why: str, *allow: Part) -> ImageError:
    """Make the error for a picture that cannot be read; ``allow`` is what would allow it, for the remedy."""
    remedy = Remedy(*allow, "mend or remove it, or pass ", Argument("skip_bad", value=True))
    return ImageError(f"cannot read the picture {name}: {why}", remedy=remedy)


def _open(data: Any) -> Image.Image:
    """Read a file's header, by a format that holds pictures, whatever its suffix says.

    Pillow's own limit is one for the whole program, and warns on stderr at half of it: it is off for a header.
    """
    Image.init()
    formats = [name for name in Image.ID if name not in _NO_PICTURES]
    with _limits:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(data, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(picture: Image.Image, name: str, max_pixels: int) -> None:
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise unreadable(
            name,
            f"it has {picture.width:,} x {picture.height:,} = {pixels:,} pixels, and {max_pixels:,} are allowed",
            Argument("max_pixels", pixels),
            " allows it; ",
        )
