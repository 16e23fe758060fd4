"""Decode pictures to RGB as timm decodes them, in every format that Pillow opens, up to a maximal number of pixels.

Transparency is dropped and EXIF orientation is not applied, as in timm's training and evaluation. Only 16-bit grey
pictures differ from timm: they are scaled to 8 bits, and not clipped at 255.
"""

import functools
import io
import threading
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from repsim.errors import Argument, ImageError, Part, Remedy, reason

MAX_PIXELS = 178_956_970
"""Default of the largest allowed number of pixels of a picture: the default limit of Pillow."""
_NO_PICTURES = frozenset({"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats that Pillow registers but repsim does not read: films, documents that run a program, and formats that need
another library."""
_REFUSED_SUFFIXES = frozenset({".pfm"})
"""Suffix of floating-point pixels without a fixed range. Data sets store depth maps in this format."""
_WITH_FRAMES = frozenset({"AVIF", "DCX", "GIF", "MPO", "PNG", "TIFF", "WEBP"})
"""Formats whose files may hold several frames."""
_limits = threading.Lock()


def suffixes() -> frozenset[str]:
    """Return the suffixes of the pictures that the installed Pillow opens, in lower case.

    >>> sorted({".png", ".jfif", ".jpe", ".eps", ".mpg", ".txt"} & suffixes())
    ['.jfif', '.jpe', '.png']
    """
    Image.init()  # Pillow opens MPO, the format of stereo cameras, with its JPEG plugin
    return frozenset(
        suffix.lower()
        for suffix, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in _NO_PICTURES and suffix not in _REFUSED_SUFFIXES
    )


@functools.cache
def suffixes_of_frames() -> frozenset[str]:
    """Return the suffixes of the formats whose files may hold several frames, in lower case.

    >>> sorted({".gif", ".mpo", ".tif", ".jpg"} & suffixes_of_frames())
    ['.gif', '.mpo', '.tif']
    """
    Image.init()
    return frozenset(suffix.lower() for suffix, name in Image.registered_extensions().items() if name in _WITH_FRAMES)


def decode(data: Any, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the first picture of an open file, decoded to RGB.

    Raises
    ------
    ImageError
        The picture cannot be decoded or has more than ``max_pixels`` pixels; the message contains ``name``.
    """
    try:
        with _open(data) as picture:
            _check_size(picture, name, max_pixels)
            return as_rgb(picture)
    except (ImageError, MemoryError):  # out of memory: the picture may be fine, so skip_bad=True must not skip it
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise any exception on damaged files
        unidentified = isinstance(error, UnidentifiedImageError)
        raise unreadable(name, "not a picture that can be decoded" if unidentified else reason(error)) from None


def has_frames(data: bytes) -> bool:
    """Return whether a file holds further frames after the first; False if it cannot be opened."""
    try:
        with _open(io.BytesIO(data)) as picture:
            return picture.format in _WITH_FRAMES and bool(getattr(picture, "is_animated", False))
    except Exception:  # noqa: BLE001 - a damaged file; decoding it raises the error
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
    """Return the error for a picture that cannot be read; the remedy begins with the parts ``allow``."""
    remedy = Remedy(*allow, "repair or remove it, or pass ", Argument("skip_bad", value=True))
    return ImageError(f"cannot read the picture {name}: {why}", remedy=remedy)


def _open(data: Any) -> Image.Image:
    """Open a picture and read its header. The format is detected from the content, not from the suffix.

    Pillow's own limit on pixels applies to the whole program and warns on stderr at half the limit, so it is switched
    off while the header is read.
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
