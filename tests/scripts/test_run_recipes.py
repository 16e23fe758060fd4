"""Tests of scripts/maintenance/run_recipes.py: a page gets the output and the picture of its code."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = """# A page

```python
from PIL import Image

def double(x):
    return 2 * x
```

```pycon
>>> for k in range(2):
...     print(double(k))
wrong
>>> double(4)
```

<!-- not run: long -->
```python
1 / 0
```

```python
Image.new("RGB", (30, 20), "red").save("page.png")
```

![Red](page.png)
"""


def test_a_page_gets_its_output_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "maintenance")
    script = importlib.import_module("run_recipes")
    monkeypatch.setattr(script, "RECIPES", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert script.run(page) == [tmp_path / "page.png"]
    filled = PAGE.replace("wrong\n", "0\n2\n").replace(">>> double(4)\n", ">>> double(4)\n8\n")
    assert page.read_text() == filled
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (30, 20)
    script.run(page)
    assert page.read_text() == filled, "a second run changes nothing"
