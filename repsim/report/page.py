"""Writes one self-contained page: a file that makes no network requests and runs nothing but its own scripts."""

import base64
import hashlib
import html
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import xarray as xr

from repsim._version import __version__
from repsim.report.payload import payload
from repsim.report.pictures import thumbnails as thumbnails_of
from repsim.report.pictures import without_pictures
from repsim.results.files import open_result_or_study
from repsim.runtime.files import check_output, replacing

Source = xr.Dataset | str | os.PathLike[str]

SCRIPTS = ("unpacking", "text", "colours", "state", "part", "heatmap", "layers", "pairs", "shares", "maps", "stimuli",
           "about", "main")  # fmt: skip
"""What the page's script is made of, in this order."""
_HOME = "https://github.com/repsim/repsim-toolkit"
_NAME = "repsim: do two neural networks represent the world in the same way?"
_HARMLESS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def write_report(
    studies: Source | Sequence[Source],
    path: str | os.PathLike[str],
    *,
    thumbnails: str | os.PathLike[str] | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write studies or comparisons as one interactive page, a single HTML file that opens from disk.

    The page makes no request: plotly.js, all numbers and all pictures are inside. Layer similarities are there as they
    are in the file, in double precision; their intervals and chance levels in single. Equal input gives equal bytes.

    Parameters
    ----------
    studies
        A study of `repsim.universality`, or several of the same models and samples under different readouts; or a
        result of `repsim.compare`. Data sets, or their files.
    path
        The page, ``.html``.
    thumbnails
        The pictures, for small copies of those that networks agree on most and least: the folder or ``.tar`` that
        activations were extracted from, or ``digits``. Without it only their names are shown, as pictures may be
        private.
    title
        Of the page.
    overwrite
        Replace what is there.

    Raises
    ------
    StoreError
        If a file is missing, damaged, or no study or result.
    InvalidInputError
        If the files are of different models, or of one readout twice.
    SampleMismatchError
        If they are of different samples.
    ImageError
        If there are no pictures at ``thumbnails``.
    OutputError
        If the file exists or cannot be written.

    Examples
    --------
    >>> import tempfile, numpy as np, repsim
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x, y = np.random.default_rng(0).normal(size=(2, 30, 5))
    ...     stores = [repsim.write_store(f"{folder}/{name}.h5", {"conv1": layer}, model=name)
    ...               for name, layer in (("mine", x), ("yours", y))]
    ...     write_report(repsim.compare(*stores), f"{folder}/report.html")
    ...     "default-src 'none'" in Path(folder, "report.html").read_text(encoding="utf-8")
    True
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    given = [studies] if isinstance(studies, xr.Dataset | str | os.PathLike) else list(studies)
    files = [Path(each) for each in given if not isinstance(each, xr.Dataset)]
    data = payload([each if isinstance(each, xr.Dataset) else open_result_or_study(each) for each in given])
    data |= {"title": title or data["title"], "citation": _citation()}
    data["files"] = {f"{file.name} (SHA-256)": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    data |= without_pictures() if thumbnails is None else thumbnails_of(data["parts"], os.fspath(thumbnails))
    page = render(data)
    with replacing(path, overwrite=overwrite) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")


def render(data: Mapping[str, Any]) -> str:
    """Make the page of a payload."""
    here = resources.files("repsim.report")
    read = {name: here.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css")}
    parts = [here.joinpath(f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    script = "\n".join(['"use strict";', "(() => {", *parts, "})();"])
    library, packed = _library()
    return Template(read["page.html"]).substitute(
        csp=policy(script, library),
        version=__version__,
        title=html.escape(str(data["title"])),
        css=read["page.css"],
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_HARMLESS),
        library=packed,
        script=script,
    )


@cache
def _library() -> tuple[str, str]:
    """Give plotly.js, and the same compressed: a page of 6 MB would be one of 3."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - slow, and only a page needs it

    code = str(get_plotlyjs())
    return code, base64.b64encode(zlib.compress(code.encode(), 9)).decode()


def policy(*scripts: str) -> str:
    """Give the content security policy under which these scripts run, and nothing else does or is fetched.

    plotly.js places its parts through styles, and draws heatmaps as ``data:`` pictures.

    >>> policy("")[:80]
    "default-src 'none'; script-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSu"
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _citation() -> dict[str, str]:
    """What CITATION.cff says; a test holds the two together."""
    return {
        "text": f"The repsim authors. {_NAME} Version {__version__}. {_HOME}",
        "bibtex": (
            "@software{repsim,\n  author  = {{The repsim authors}},\n"
            f"  title   = {{{{{_NAME}}}}},\n  version = {{{__version__}}},\n  url     = {{{_HOME}}},\n"
            "  license = {Apache-2.0}\n}"
        ),
    }
