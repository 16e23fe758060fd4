"""Tests of the page of a series: its numbers are those of the file, and every control works in a browser."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from numpy.typing import NDArray

from repsim import save_result, write_report
from repsim.cli import main
from repsim.errors import InvalidInputError
from repsim.presentation.series import places, references
from repsim.report.payload import payload
from repsim.runtime.visible_text import visible
from tests.report.conftest import HOSTILE
from tests.series_example import LAYERS, STEPS, training, widths

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def series() -> xr.Dataset:
    return training(("a", "b", "c")).assign_coords(axis_seed=("point", np.repeat([0.0, 1.0, 2.0], 8)))


def unpacked(part: dict[str, Any], name: str) -> NDArray[Any]:
    packed = part["variables"][name]
    kind = "f8" if "f8" in packed else "f4"
    return np.frombuffer(base64.b64decode(packed[kind]), f"<{kind}").reshape(packed["shape"])


def test_the_payload_has_the_numbers_of_the_file(series: xr.Dataset) -> None:
    page = payload([series])
    (part,) = page["parts"]
    assert page["title"] == "24 networks of 3 runs along step"
    for name in ("similarity", "similarity_low", "calibrated", "network_high", "settled"):
        assert part["variables"][name]["dims"] == list(series[name].dims)
        np.testing.assert_array_equal(unpacked(part, name), series[name].values)
    for name in ("blocks", "within"):
        np.testing.assert_array_equal(unpacked(part, name), series[name].values.astype("f4"))
    assert [point["axes"] for point in part["points"][7:9]] == [{"seed": "0"}, {"seed": "1"}]
    assert [point["itself"] for point in part["points"]] == [step == 5000 for step in STEPS] * 3
    np.testing.assert_allclose(unpacked(part, "settled_place")[..., 0], np.log10(series["settled"].values))
    json.dumps(page, allow_nan=False)


def test_0_has_its_place_left_of_the_smallest_value_with_a_break_between(series: xr.Dataset) -> None:
    (part,) = payload([series])["parts"]
    place = [point["place"] for point in part["points"][:8]]
    np.testing.assert_allclose(place, [-0.5, *np.log10(STEPS[1:])])
    assert part["ticks"] == {"at": [-0.5, 0, 1, 2, 3], "texts": ["0", "1", "10", "100", "1000"], "break": -0.25}
    linear = series.assign_attrs(scale="linear")
    assert payload([linear])["parts"][0]["ticks"]["at"] is None
    assert np.isnan(places(series, np.array([np.nan, -1.0]))).all()


def test_layers_of_other_networks_have_their_names_or_numbers() -> None:
    (part,) = payload([widths()])["parts"]
    assert part["points"][0]["layers"] == ["block0", "block1", "block2"]
    assert part["points"][0]["others"] == {"reference": [f"block{k}" for k in range(6)]}
    elsewhere = widths().assign_attrs(reference="teacher")
    (part,) = payload([elsewhere])["parts"]
    assert part["points"][0]["others"] == {"reference": [f"layer {k}" for k in range(1, 7)]}
    (part,) = payload([training()])["parts"]
    assert part["points"][0]["others"]["previous"] == []
    assert part["points"][0]["others"]["other runs"] == list(LAYERS)


def test_references_are_the_points_that_the_series_names(series: xr.Dataset) -> None:
    points = series["point"].values.tolist()
    assert references(series) == [points[8 * k + 7] for k in range(3) for _ in STEPS]
    assert references(series.assign_attrs(reference="first"))[8:10] == [points[8]] * 2
    assert references(series.assign_attrs(reference="run=b")) == points[8:16] * 3
    assert set(references(series.assign_attrs(reference=points[5]))) == {points[5]}
    assert set(references(series.assign_attrs(reference="elsewhere"))) == {""}


def test_wrong_input_is_refused_in_one_line(series: xr.Dataset, tmp_path: Path, study: xr.Dataset) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(InvalidInputError, match="one page shows one series and nothing else"):
        write_report([series, study], page)
    with pytest.raises(InvalidInputError, match="the page of a series shows no pictures; leave out thumbnails"):
        write_report(series, page, thumbnails="digits")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_page_of_a_series(series: xr.Dataset, tmp_path: Path) -> None:
    save_result(series, tmp_path / "series.nc")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "series.nc"), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>24 networks of 3 runs along step</title>" in text
    assert not re.search(r"\s(?:src|srcset|action)=", text.split("<script", 1)[0])
    done = CliRunner().invoke(main, ["heatmap", str(tmp_path / "series.nc"), "-o", str(tmp_path / "other.html")])
    assert done.exit_code == 0, done.output


# In a browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, series: xr.Dataset) -> Path:
    pages = tmp_path_factory.mktemp("pages")
    write_report(series, pages / "training.html")
    write_report(widths(), pages / "widths.html")
    names: dict[str, Any] = {
        name: [f"{HOSTILE} {label}" for label in series[name].values.tolist()] for name in ("point", "layer")
    }
    strange = series.assign_coords(**names, data=HOSTILE).assign_attrs(axis=HOSTILE, command=HOSTILE)
    write_report(strange.assign_attrs(summary=json.dumps([HOSTILE])), pages / "hostile.html", title=HOSTILE)
    return pages


@pytest.fixture(scope="module")
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    """Open a page from disk, offline, and record console messages, errors and requests as problems."""
    contexts = []

    def start(name: str, link: str = "", width: int = 1280) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.problems.append(request.url))
        page.goto(f"file://{folder / name}.html{link}")
        page.wait_for_selector("html[data-ready]", state="attached")
        page.problems = [text for text in page.problems if not text.startswith((f"file://{folder}", "data:", "blob:"))]
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(open_page: Open) -> Any:
    return open_page("training")


def table(page: Any, box: str) -> NDArray[np.float64]:
    script = "byId => document.getElementById(byId).data[0].z.map(row => Array.from(row, x => x ?? NaN))"
    return np.array(page.evaluate(script, box), float)


def lines(page: Any, box: str) -> dict[str, list[float]]:
    """Return the values of the lines of a figure, by name."""
    script = """byId => document.getElementById(byId).data.filter(trace => trace.mode !== "lines").map(
      trace => [trace.name, Array.from(trace.y)])"""
    return dict(page.evaluate(script, box))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "widths"])
def test_it_opens_from_disk_without_a_request_or_a_word(open_page: Open, name: str) -> None:
    tab = open_page(name)
    assert tab.problems == []
    assert tab.is_hidden("#failure")
    assert tab.evaluate("new Set([...document.querySelectorAll('[id]')].map(x => x.id)).size") == tab.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    tags = "[...document.querySelectorAll('h1,h2,h3')].filter(x => x.offsetParent).map(x => x.tagName)"
    levels = [int(tag[1]) for tag in tab.evaluate(tags)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert tab.evaluate("[...document.querySelectorAll('input,select')].filter(x => !x.labels.length).length") == 0


@pytest.mark.slow
def test_the_slider_moves_along_the_axis_by_keys_and_is_read_aloud(page: Any, series: xr.Dataset) -> None:
    page.select_option("#run", "b")
    slider = page.locator("#point")
    slider.focus()
    slider.press("Home")
    for k in range(8):
        if k:
            slider.press("ArrowRight")
        at = series.sel(measure="cka", comparison="reference").isel(point=8 + k)
        np.testing.assert_array_equal(table(page, "between-map"), at["blocks"].values.astype("f4"))
        np.testing.assert_array_equal(table(page, "within-map"), at["within"].values.astype("f4"))
        text = slider.get_attribute("aria-valuetext")
        assert text.startswith(f"step {STEPS[k]:g}, {k + 1} of 8: cka with the last point of its run")
        assert f"{float(at['network']):.4f} ({float(at['network_low']):.4f} to" in text
        assert page.inner_text("#points tr.current th") == at["point"].item()
    assert page.problems == []


@pytest.mark.slow
def test_every_measure_comparison_and_view_is_that_of_the_file(page: Any, series: xr.Dataset) -> None:
    page.select_option("#run", "c")
    for measure in series["measure"].values.tolist():
        page.select_option("#measure", measure)
        for comparison in series["comparison"].values.tolist():
            page.select_option("#comparison", comparison)
            for view in ("similarity", "calibrated"):
                page.check(f"#view input[value={view}]", force=True)
                page.wait_for_timeout(100)  # drawn after the next frame
                at = series[view].sel(measure=measure, comparison=comparison).values[16:]
                np.testing.assert_array_equal(table(page, "by-step"), at.T)
                drawn = lines(page, "trajectories")
                assert list(drawn) == list(LAYERS)
                got = np.array(list(drawn.values()), float)
                np.testing.assert_array_equal(got, np.where(np.isnan(at.T), np.nan, at.T))
    page.select_option("#comparison", "reference")
    page.check("#view input[value=similarity]", force=True)
    assert page.problems == []


@pytest.mark.slow
def test_a_first_point_says_that_it_has_no_previous_one(page: Any) -> None:
    page.select_option("#comparison", "previous")
    page.locator("#point").press("Home")
    assert page.is_hidden("#between-map")
    assert page.inner_text("#between-none") == "step 0 has no previous point."
    page.locator("#point").press("ArrowRight")
    assert page.is_visible("#between-map")
    page.select_option("#comparison", "reference")


@pytest.mark.slow
def test_settling_trends_and_points_are_those_of_the_file(page: Any, series: xr.Dataset) -> None:
    page.select_option("#measure", "cka")
    page.wait_for_timeout(100)
    drawn = lines(page, "convergence")
    for run in "abc":
        expected = np.log10(series["settled"].sel(measure="cka", one_run=run).values)
        np.testing.assert_allclose(drawn[f"run {run}"], expected)
    trend = series.sel(measure="cka", comparison="reference", trend_of="network")
    row = page.inner_text("#trends tbody tr:first-child")
    assert f"{float(trend['trend_tau']):.3f}" in row
    assert f"{float(trend['trend_slope']):.3f}" in row
    heads = page.inner_text("#points thead")
    assert "seed" in heads
    cells = page.locator("#points tbody tr").nth(9).inner_text().split("\t")
    assert cells[:4] == ["resnet/b/step_1", "run b", "1", "1"]
    at = series.sel(measure="cka", comparison="reference").isel(point=9)
    assert cells[4] == f"{float(at['network']):.4f} ({float(at['network_low']):.4f} to {float(at['network_high']):.4f})"
    page.locator("#points tbody button").nth(9).click()
    assert page.input_value("#run") == "b"
    assert page.input_value("#point") == "1"


@pytest.mark.slow
def test_a_view_can_be_linked_and_a_wrong_link_shows_the_first(open_page: Open) -> None:
    tab = open_page("training", "#measure=mutual_knn&comparison=other+runs&run=b&point=10&theme=dark")
    assert [tab.input_value(f"#{name}") for name in ("measure", "comparison", "run", "point")] == [
        "mutual_knn", "other runs", "b", "2",
    ]  # fmt: skip
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab = open_page("training", "#measure=nothing&comparison=nothing&run=z&point=999")
    assert [tab.input_value(f"#{name}") for name in ("measure", "comparison", "run")] == ["cka", "reference", "a"]
    assert tab.problems == []


@pytest.mark.slow
def test_names_are_never_markup(open_page: Open) -> None:
    tab = open_page("hostile")
    assert tab.evaluate("window.hurt") is None
    assert tab.problems == []
    assert tab.evaluate("document.getElementById('summary').textContent") == visible(HOSTILE)
    assert tab.evaluate("document.querySelectorAll('main img').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_fits_its_window(open_page: Open, width: int) -> None:
    tab = open_page("training", width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
