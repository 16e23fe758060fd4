"""Stimuli on the page: texts as text, pictures small, pairs side by side, and nothing unless it is asked for."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from PIL import Image

from repsim import write_report
from repsim.cli import main
from repsim.errors import InvalidInputError, SampleError, UnknownNameError
from repsim.report.parts import of_study
from repsim.report.stimuli import LENGTH, shortened, stimuli_of
from repsim.results.files import save_result
from repsim.study.universality import universality
from repsim.testing.examples import opened_networks
from tests.report.conftest import HOSTILE, NAMES

TEXTS = [HOSTILE, "a 'quoted' \"text\" & more", "عربي \u202eevil", " word" * 200, *(f"text {k}" for k in range(4, 40))]


def payload_of(path: Path) -> dict[str, Any]:
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return dict(json.loads(blocks[0]))


@pytest.fixture(scope="module")
def texts() -> xr.Dataset:
    """Return a study of text networks."""
    rng, record = np.random.default_rng(8), {"modality": "text", "column": "caption"}
    with opened_networks(rng, 40, learned=0.7, seen=0.5, sample_ids=NAMES, provenance=record) as stores:
        study = universality(stores, ["cka"], permutations=19, draws=20)
    study["agreement"][:, :4] = [[9.0, 8.0, 7.0, 6.0]] * study.sizes["kernel"]  # the first texts are shown
    return study


@pytest.fixture(scope="module")
def part(texts: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(texts, path)
    return dict(payload_of(path)["parts"][0])


def write_table(path: Path, **columns: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns])
        writer.writerows(zip(NAMES, *columns.values(), strict=True))
    return path


@pytest.fixture
def table(tmp_path: Path, photos: Path) -> Path:
    """Write a table of ids, pictures and captions."""
    (tmp_path / "photos").symlink_to(photos)
    return write_table(tmp_path / "pairs.csv", image=[f"photos/{name}" for name in NAMES], caption=TEXTS)


def test_texts_stay_text(texts: xr.Dataset, tmp_path: Path) -> None:
    table = write_table(tmp_path / "captions.csv", caption=TEXTS)
    write_report(texts, tmp_path / "page.html", thumbnails=table)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 3
    assert "<b>{x}" not in page
    data = payload_of(tmp_path / "page.html")
    shown = {name: view["text"] for name, (view,) in data["stimuli"].items()}
    by_name = dict(zip(NAMES, TEXTS, strict=True))
    assert set(NAMES[:4]) < set(shown)
    for name, text in shown.items():
        assert text == shortened(by_name[name])
    assert data["stimuli_note"] == "Shown: the column caption of captions.csv."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\tcat\r\n sits\x00 \u2028 here ", "a cat sits here"),
        ("left \u202eright\u202c \u2066x\u2069", "left right x"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("x" * LENGTH, "x" * LENGTH),
        ("x" * (LENGTH + 1), "x" * (LENGTH - 1) + " …"),
        (" word" * 200, "word " * 47 + "…"),
        ("", ""),
        ("\ud800a", "a"),
    ],
)
def test_texts_are_shortened(text: str, expected: str) -> None:
    assert shortened(text) == expected


def test_a_pair_is_shown_side_by_side(part: Mapping[str, Any], table: Path) -> None:
    entries = stimuli_of([part], table)
    assert entries["stimuli_note"] == "Shown: the columns image and caption of pairs.csv."
    assert set(NAMES[:4]) < set(entries["stimuli"])
    for name, (picture, text) in entries["stimuli"].items():
        assert picture["url"].startswith("data:image/webp;base64,")
        assert text == {"text": shortened(TEXTS[NAMES.index(name)])}


def test_columns_can_be_chosen(part: Mapping[str, Any], table: Path) -> None:
    for column, key in (("caption", "text"), (["image"], "url")):
        views = stimuli_of([part], table, column)["stimuli"].values()
        assert all([list(view) for view in of_sample] == [[key]] for of_sample in views)
    with pytest.raises(UnknownNameError, match="nothing"):
        stimuli_of([part], table, "nothing")


def test_of_several_columns_of_texts_those_that_networks_read(part: Mapping[str, Any], tmp_path: Path) -> None:
    """Others may be private: an address is not shown because a caption is."""
    table = write_table(tmp_path / "t.csv", caption=TEXTS, address=[f"street {k}" for k in range(40)])
    entries = stimuli_of([part], table)
    assert entries["stimuli_note"] == "Shown: the column caption of t.csv."
    assert "street" not in json.dumps(entries)
    with pytest.raises(SampleError, match="2 columns that can be read"):
        stimuli_of([{**part, "columns": []}], table)


def test_pictures_of_networks_that_read_a_folder_are_those_of_the_only_column(
    part: Mapping[str, Any], tmp_path: Path, pictures: Any
) -> None:
    root = pictures(names=[f"{k}.png" for k in range(40)])
    paths = [str(root / f"{k}.png") for k in range(40)]
    table = write_table(tmp_path / "t.csv", image=paths, caption=TEXTS, address=[f"street {k}" for k in range(40)])
    of_both = {**part, "coords": {**part["coords"], "modality": ["image", "text"]}}
    entries = stimuli_of([of_both], table)
    assert entries["stimuli_note"] == "Shown: the columns image and caption of t.csv."
    assert "street" not in json.dumps(entries)


def test_samples_in_memory_and_nests_of_them(part: Mapping[str, Any]) -> None:
    names = {"coords": {"sample": ["0", "1", "2", "9"]}, "stimuli": {"cka": {"most": [0, 1], "least": [2, 3]}}}
    entries = stimuli_of([{**part, **names}], ["one", "two", "three"])
    assert entries["stimuli"] == {
        "0": [{"text": "one"}],
        "1": [{"text": "two"}],
        "2": [{"text": "three"}],
        "9": [{"missing": "no such text"}],
    }

    class Pairs:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, k: int) -> tuple[Image.Image, dict[str, Any]]:
            if k > 2:
                raise IndexError
            return Image.new("RGB", (8, 8)), {"caption": f"text {k}", "size": 8}

    first = stimuli_of([{**part, **names}], Pairs())["stimuli"]["1"]
    assert [list(view) for view in first] == [["url"], ["text"]]
    with pytest.raises(InvalidInputError, match="holds arrays, which a page cannot show"):
        stimuli_of([part], np.zeros((40, 3)))


def test_nothing_is_shown_unless_it_is_asked_for(texts: xr.Dataset, part: Mapping[str, Any], tmp_path: Path) -> None:
    write_report(texts, tmp_path / "page.html")
    data = payload_of(tmp_path / "page.html")
    assert data["stimuli"] == {}
    assert data["stimuli_note"].startswith("The texts themselves are not in this page because they may be private.")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "on texts like these" in page
    with pytest.raises(InvalidInputError, match=r"name it with thumbnails"):
        write_report(texts, tmp_path / "page.html", column="caption", overwrite=True)
    other = stimuli_of([part], ["a", "b"])
    assert other["stimuli_note"] == (
        "None of these texts is among the 2 of the thumbnails option; give the data that the networks have read."
    )


@pytest.mark.slow
def test_the_command_takes_tables_and_columns(texts: xr.Dataset, table: Path, tmp_path: Path) -> None:
    save_result(texts, tmp_path / "study.nc")
    words = ["report", str(tmp_path / "study.nc"), "-o", str(tmp_path / "page.html"), "--thumbnails", str(table)]
    done = CliRunner().invoke(main, [*words, "--column", "caption"])
    assert done.exit_code == 0, done.output
    assert payload_of(tmp_path / "page.html")["stimuli_note"] == "Shown: the column caption of pairs.csv."
    failed = CliRunner().invoke(main, [*words, "--column", "nothing", "--overwrite"])
    assert failed.exit_code == 2
    assert "nothing" in failed.output
    assert "Traceback" not in failed.output


@pytest.mark.slow
def test_the_browser_shows_texts_and_pictures_as_they_are(
    browser: Any, texts: xr.Dataset, table: Path, tmp_path: Path
) -> None:
    write_report(texts, tmp_path / "page.html", thumbnails=table)
    page = browser.new_page(viewport={"width": 390, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"file://{tmp_path / 'page.html'}")
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate("[...document.querySelectorAll('.pictures li')].length") == 24
    cards = page.evaluate(
        "[...document.querySelectorAll('#most li')].slice(0, 4).map(x => x.innerText.split('\\n')[0])"
    )
    assert cards == [shortened(text) for text in TEXTS[:4]]
    assert page.evaluate("[...document.querySelectorAll('.pictures img')].every(x => x.naturalWidth === 96)")
    assert page.evaluate("window.hurt") is None
    assert page.locator(".pictures.pairs blockquote").count() == 24
    beside = page.evaluate(
        "(() => { const [a, b] = ['img', 'blockquote'].map(x => document.querySelector(`#most ${x}`)"
        ".getBoundingClientRect()); return a.right <= b.left && a.top < b.bottom && b.top < a.bottom; })()"
    )
    assert beside
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert problems == []
    page.close()


def test_samples_are_found_by_the_ids_of_the_study(part: Mapping[str, Any], tmp_path: Path) -> None:
    """A column id may hold the same names in another order than the column of ids that the networks have read."""
    path = tmp_path / "captions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "key", "caption"])
        writer.writerows(zip([*NAMES[1:], NAMES[0]], NAMES, TEXTS, strict=True))
    shown = stimuli_of([{**part, "id_columns": ["key"]}], str(path))["stimuli"]
    by_name = dict(zip(NAMES, TEXTS, strict=True))
    assert shown
    assert all(view["text"] == shortened(by_name[name]) for name, (view,) in shown.items())


@pytest.mark.slow
def test_a_page_knows_the_column_of_ids_of_its_networks() -> None:
    record = {"modality": "text", "column": "caption", "ids_from": "column key"}
    rng = np.random.default_rng(8)
    with opened_networks(rng, 40, learned=0.7, seen=0.5, sample_ids=NAMES, provenance=record) as stores:
        study = universality(stores, ["cka"], permutations=19, draws=20)
    assert of_study(study)["id_columns"] == ["key"]
