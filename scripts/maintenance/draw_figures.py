#!/usr/bin/env python3
"""Draw the pictures of docs/figures.md again with the code of that page: draw_figures.py DEMO [SERIES].

DEMO is the folder that `repsim demo` wrote, SERIES a file of `repsim series --all-pairs`; without it, the pictures of
series stay as they are.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


def draw(demo: Path, series: Path | None = None) -> list[Path]:
    """Run the Python code of the page in a temporary folder, save the pictures in docs/, and return their paths."""
    page = (DOCS / "figures.md").read_text()
    if series is None:
        page = re.sub(r"^## Figures of a series$.*?(?=^## )", "", page, flags=re.MULTILINE | re.DOTALL)
    wanted = re.findall(r"\]\(pictures/(.+?)\)", page)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "demo").symlink_to(demo.resolve())
        (Path(folder) / "acts").symlink_to(demo.resolve() / "acts")
        if series is not None:
            (Path(folder) / "series.nc").symlink_to(series.resolve())
        os.chdir(folder)
        names: dict[str, Any] = {}
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            exec(block, names)  # noqa: S102 - code of this repository
        pictures = [DOCS / "pictures" / name for name in wanted if Path(name).exists()]
        for picture in pictures:
            Image.open(picture.name).convert("RGB").save(picture, optimize=True)
        os.chdir(DOCS)
    return pictures


if __name__ == "__main__":
    for picture in draw(*map(Path, sys.argv[1:3])):
        print(f"{picture.relative_to(DOCS.parent)}  {picture.stat().st_size / 1000:.0f} kB")
