"""Tests of scripts/validation/series_recipes.py: directions whose truth is known, and what the page shows."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "series-recipes.md"
PICTURES = ROOT / "docs" / "pictures" / "recipes"
NAMES = ("width_and_depth", "fine_tuning", "federated", "quality", "corruption")


@pytest.fixture(scope="module")
def recipes() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts" / "validation")
        yield importlib.import_module("series_recipes")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_the_script_has_written(recipes: ModuleType, name: str) -> None:
    page = PAGE.read_text()
    assert tuple(recipes.RECIPES) == NAMES
    parts = recipes.texts(name, json.loads((PICTURES / f"{name}.json").read_text()))
    assert parts
    for part, text in parts.items():
        assert recipes.with_part(page, part, text) == page, part


def test_a_part_of_a_page_is_replaced(recipes: ModuleType) -> None:
    page = "a\n\n<!-- x: written by scripts/validation/series_recipes.py -->\n\nold\n\n<!-- /x -->\n\nb\n"
    assert recipes.with_part(page, "x", "new") == page.replace("old", "new")


def test_pictures_are_small_and_shown() -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    assert len(pictures) == 6
    for picture in pictures:
        assert f"](pictures/recipes/{picture.name})" in PAGE.read_text()
        assert picture.stat().st_size < 150_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_directions_are_those_of_the_truth(recipes: ModuleType, name: str, tmp_path: Path) -> None:
    """With a few networks that are trained for a short time, as on any machine."""
    numbers = recipes.RECIPES[name](tmp_path / "acts", tmp_path / "out", recipes.Size(seeds=2, steps=0.4, samples=150))
    assert list((tmp_path / "out").glob("*.png"))
    if name == "width_and_depth":
        rising, falling = (numbers[axis]["other runs"][1] for axis in ("width", "depth"))
        assert rising[0] < rising[-1] - 0.1, "wide networks agree better"
        assert falling[0] > falling[-1] + 0.1, "deep networks agree less"
    elif name == "fine_tuning":
        assert (np.diff(numbers["reference"][1]) < 0).all(), "drift grows with steps"
        assert numbers["drift"][-1] > numbers["drift"][0] + 0.05, "upper layers drift further"
        assert numbers["accuracy"][1] < numbers["accuracy"][0] - 0.1, "the network forgets"
    elif name == "federated":
        alone, averaged = (numbers[way]["other runs"][1] for way in ("alone", "averaged"))
        assert alone[-1] < alone[0], "clients with different classes drift apart"
        assert averaged[-1] > alone[-1], "averaging keeps them together"
        assert averaged[0] == pytest.approx(alone[0], abs=1e-6), "nothing is averaged before the first round ends"
    elif name == "quality":
        of_measure = {row["measure"]: row for row in numbers["table"]}
        assert of_measure["mutual_knn"]["slope"] > 0
        for measure in ("cka", "mutual_knn"):
            row = of_measure[measure]
            assert np.all(np.array(row["calibrated"]) < row["raw"]), "chance is taken off"
        assert np.isnan(of_measure["cka:estimator=biased"]["calibrated"]).all(), "its chance is not known"
    else:
        assert (np.diff(numbers["reference"][1]) < 0).all(), "similarity to clean pictures falls with noise"
        assert numbers["reference"][1][0] == pytest.approx(1)
        assert numbers["compare"][0] > numbers["compare"][-1], "upper layers lose more"
