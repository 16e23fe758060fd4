#!/usr/bin/env python3
"""Run recipes of docs/recipes/ again, and write their output and pictures: run_recipes.py [NAME ...]."""

import contextlib
import doctest
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
BLOCK = re.compile(r"(?<=^)(<!-- not run: [^\n]*\n)?```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: Path) -> list[Path]:
    """Run the Python code of a page in a temporary folder, and return the paths of its pictures, which are new."""
    names: dict[str, Any] = {"__name__": "__main__"}

    def fill_in(match: re.Match[str]) -> str:
        """Return a block with the output of its examples."""
        if match[1]:
            return match[0]
        if match[2] == "python":
            exec(compile(match[3], page.name, "exec"), names)  # noqa: S102 - code of this repository
            return match[0]
        examples = [example.source for example in doctest.DocTestParser().get_examples(match[3])]
        return "```pycon\n{}```".format("".join(answered(source, names) for source in examples))

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        page.write_text(BLOCK.sub(fill_in, page.read_text()))
        pictures = [RECIPES / name for name in re.findall(r"\]\(([\w-]+\.png)\)", page.read_text())]
        for picture in pictures:
            Image.open(picture.name).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
    return pictures


def answered(source: str, names: dict[str, Any]) -> str:
    """Run a statement as the Python prompt does, and return it with what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, "<example>", "single"), names)  # noqa: S102 - code of this repository
    first, *others = source.rstrip("\n").split("\n")
    shown = "".join(f"{line}\n" for line in [f">>> {first}", *(f"... {line}".rstrip() for line in others)])
    return shown + output.getvalue()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for page in [RECIPES / f"{name}.md" for name in sys.argv[1:]] or sorted(RECIPES.glob("*.md")):
        for picture in run(page):
            print(f"{picture.relative_to(RECIPES.parent)}  {picture.stat().st_size / 1000:.0f} kB")
