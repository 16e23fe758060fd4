"""Write one self-contained page: a file that makes no network requests and runs only its own scripts."""

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
from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.report.payload import payload
from repsim.report.stimuli import stimuli_of, without_stimuli
from repsim.results.files import open_result_or_study
from repsim.runtime.files import replacing, reserved
from repsim.runtime.visible_text import all_visible

Source = xr.Dataset | str | os.PathLike[str]

_COMMON = ("unpacking", "variables", "text", "colours", "state", "heatmap", "about", "frame")
SCRIPTS = {
    "study": (*_COMMON, "part", "layers", "pairs", "families", "shares", "maps", "stimuli", "study_main"),
    "series": (*_COMMON, "series_part", "series_layers", "series_axis", "settling", "series_main"),
}
"""Kinds of pages, with the files of their script in the order in which they are joined. A comparison is shown by the
page of a study. Each kind has its sections and its glossary, ``KIND.html`` and ``KIND_glossary.html``, in frame.html.
"""
_NAME = "repsim: do two neural networks represent the world in the same way?"
_HTML_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def write_report(
    studies: Source | Sequence[Source],
    path: str | os.PathLike[str],
    *,
    thumbnails: Any = None,
    column: str | Sequence[str] = (),
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write studies, comparisons or a series as one interactive page, a single HTML file that opens from disk.

    The page makes no network requests: plotly.js, all numbers and all samples that are shown are in the file.
    Similarities of layers are stored in double precision; their intervals and chance levels, and all pairs of layers of
    a series, in single precision. With more than `repsim.report.overview.MOST_CELLS` pairs of layers, the page shows
    one value for each pair of networks first, and similarities of layers have 16 bits. Equal input gives equal bytes.

    Parameters
    ----------
    studies : Dataset, path, or sequence of these
        Study of `repsim.universality`, several studies of the same models and samples under different readouts, or
        result of `repsim.compare`, or one series of `repsim.series`; as data sets or as files.
    path : path
        File of the page, ``.html``.
    thumbnails : str, path or object, optional
        Samples of which those are shown that networks agree on most and least: the data that activations were extracted
        from, as for `repsim.extract` (a folder, a table, ``digits``, a list of texts, a Dataset, ...). Of pictures the
        page gets small copies; texts are shortened; a sample of a table is shown in its columns, side by side. By
        default the page shows only the names of the samples, which may be private.
    column : str or sequence of str
        Columns of a table that are shown. By default the column of pictures and that of texts if the table has no more
        of either, and otherwise those that the networks have read. The page says which.
    title : str, optional
        Title of the page.
    overwrite : bool
        Whether to replace an existing file.

    Raises
    ------
    StoreError
        If a file is missing or damaged, or is no study, result or series.
    InvalidInputError
        If the files have different models, two files have the same readout, or a series is not alone or has
        thumbnails.
    SampleMismatchError
        If the files have different samples.
    SampleError
        If there are no samples at ``thumbnails``, or it is not clear which columns of them are to be shown.
    UnknownNameError
        If a column does not exist.
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
    sources = [studies] if isinstance(studies, xr.Dataset | str | os.PathLike) else list(studies)
    with reserved(path, overwrite=overwrite):  # a page of many networks takes minutes: no other process makes it, too
        page = render(_data(sources, thumbnails, column, title))
        with replacing(path, overwrite=overwrite) as partial:
            partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")


def _data(sources: Sequence[Source], thumbnails: Any, column: str | Sequence[str], title: str | None) -> dict[str, Any]:
    """Return everything that a page shows, as JSON will hold it."""
    files = [Path(source) for source in sources if not isinstance(source, xr.Dataset)]
    data = payload([source if isinstance(source, xr.Dataset) else open_result_or_study(source) for source in sources])
    data |= {"title": title or data["title"], "citation": _citation()}
    data["files"] = {f"{file.name} (SHA-256)": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if thumbnails is not None and data["parts"][0]["kind"] == "series":
        raise InvalidInputError(
            "the page of a series shows no pictures", remedy=Remedy("leave out ", Argument("thumbnails"))
        )
    if thumbnails is None:
        if column:
            raise InvalidInputError(
                "columns are shown of the samples of a table", remedy=Remedy("name it with ", Argument("thumbnails"))
            )
        data |= without_stimuli(data["parts"])
    else:
        data |= stimuli_of(data["parts"], thumbnails, column)
    return data


def render(data: Mapping[str, Any]) -> str:
    """Return the HTML text of a page with this payload."""
    data = all_visible(data)
    folder = resources.files("repsim.report")
    kind = "series" if data["parts"][0]["kind"] == "series" else "study"
    files = {
        name: folder.joinpath(name).read_text("utf-8")
        for name in ("frame.html", f"{kind}.html", f"{kind}_glossary.html", "page.css")
    }
    parts = [folder.joinpath(f"{name}.js").read_text("utf-8") for name in SCRIPTS[kind]]
    script = "\n".join(['"use strict";', "(() => {", *parts, "})();"])
    library, packed = _library()
    return Template(files["frame.html"]).substitute(
        sections=files[f"{kind}.html"],
        glossary=Template(files[f"{kind}_glossary.html"]).substitute(
            {name: html.escape(str(data["parts"][0][name])) for name in ("sample", "samples")}
        ),
        csp=policy(script, library),
        version=__version__,
        title=html.escape(str(data["title"])),
        css=files["page.css"],
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_HTML_ESCAPES),
        library=packed,
        script=script,
    )


@cache
def _library() -> tuple[str, str]:
    """Return the code of plotly.js, and the same compressed and in base64, which halves the size of a page."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - slow to import, and needed only for a page

    code = str(get_plotlyjs())
    return code, base64.b64encode(zlib.compress(code.encode(), 9)).decode()


def policy(*scripts: str) -> str:
    """Return the content security policy that allows only these scripts to run and nothing to be fetched.

    Styles and ``data:`` pictures are allowed, because plotly.js needs them.

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
    """Return the citation of CITATION.cff as text and as BibTeX; a test checks that both agree with the file."""
    return {
        "text": f"The repsim authors. {_NAME} Version {__version__}.",
        "bibtex": (
            "@software{repsim,\n  author  = {{The repsim authors}},\n"
            f"  title   = {{{{{_NAME}}}}},\n  version = {{{__version__}}},\n"
            "  license = {Apache-2.0}\n}"
        ),
    }
