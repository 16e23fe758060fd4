"""Configure Sphinx, which makes the site of the pages in this folder: `scripts/docs` calls it."""

import inspect
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import click
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from repsim.metrics.base import Array

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = PROJECT.get("urls", {}).get("Source", "")  # the address of the repository, if it is known

project = "repsim"
author = PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001 - Sphinx's name for it
release = version = PROJECT["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "py:obj"  # `repsim.compare` in a docstring is a link where there is such a name, and code where not

html_theme = "furo"
html_title = f"repsim {release}"
html_static_path = ["_static"]
html_css_files = ["repsim.css"]
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "monokai"

# Markdown, as GitHub shows it, too: headings have GitHub's anchors
myst_enable_extensions = ["colon_fence"]  # no dollarmath: MathJax would be fetched from elsewhere
myst_heading_anchors = 4
highlight_language = "none"  # a block without a language is a command, or a drawing

# notebooks of examples/ run here, so that pages have outputs; an error in one is a warning, and a warning an error
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True
nb_execution_show_tb = True

# the API: signatures one parameter a line, with types as short as they are read
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def outside(_: Sphinx, page: str, text: list[str]) -> None:
    """Point links to files outside docs/ to the copied notebooks or to the repository; name those without address."""
    if page.startswith("recipes/"):
        return  # links to ../ are to other pages
    text[0] = re.sub(r"\]\(\.\./(examples/[^)\s]+\.ipynb)", r"](\1", text[0])
    link = rf"[\1]({SOURCES}/blob/main/\2)" if SOURCES else r"\1 (`\2` in the repository)"
    text[0] = re.sub(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)", link, text[0])


ALIASES = {  # what autodoc writes out in full -> what the code says
    stringify_annotation(Array, "smart"): "Array",
    stringify_annotation(ArrayLike, "smart"): "ArrayLike",
    "(*args, **kwargs)": "",  # of a protocol
}


def signature(*said: Any) -> tuple[str | None, str | None]:
    """Write types as they are written in the code."""
    written, returned = (text and _short(text) for text in said[-2:])
    return written, returned


def _short(text: str) -> str:
    for long, short in ALIASES.items():
        text = text.replace(long, short)
    return text


def described(_: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Format the help of a command: its paragraphs, and its examples as a block of code."""
    lines.clear()
    for paragraph in inspect.cleandoc(context.command.help or "").split("\n\n"):
        if not paragraph.startswith("\b"):
            lines += [*map(_plain, paragraph.splitlines()), ""]
            continue
        said = paragraph.splitlines()[1:]
        lines += [*(line for line in said if not line.startswith(" ")), "", ".. code-block:: sh", ""]
        lines += [*(f"    {line.strip()}" for line in said if line.startswith(" ")), ""]


def options(_: Sphinx, __: click.Context, lines: list[str]) -> None:
    """Show the defaults of options as they are typed."""
    lines[:] = [
        re.sub(r"PosixPath\('(.*?)'\)", r"\1", line) if line.lstrip().startswith((".. ", ":")) else _plain(line)
        for line in lines
    ]


def _plain(line: str) -> str:
    """Escape the asterisks of globs, which are no emphasis."""
    return line.replace("*", r"\*")


def copy_examples() -> None:
    """Copy the notebooks of examples/, because Sphinx reads only its own folder."""
    folder = HERE / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        shutil.copy(notebook, folder)


def setup(app: Sphinx) -> None:
    """Connect the functions above to the events of Sphinx."""
    copy_examples()
    app.connect("source-read", outside)
    app.connect("autodoc-process-signature", signature)
    app.connect("sphinx-click-process-description", described)
    app.connect("sphinx-click-process-options", options)
