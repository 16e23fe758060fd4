"""Tests of the page in a browser: no errors, every control works, and the values are those of the file."""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim import write_report
from repsim.study.reading import controls_of_pairs
from tests.report.conftest import HOSTILE, NAMES, hostile

pytestmark = pytest.mark.slow

Open = Callable[..., Any]

SHOWN = "byId => document.getElementById(byId).data[0].z.map(row => Array.from(row, x => x ?? NaN))"
CELL = """([id, row, column]) => {
  const box = document.getElementById(id), {xaxis, yaxis} = box._fullLayout, frame = box.getBoundingClientRect();
  return [frame.left + xaxis._offset + xaxis.d2p(column), frame.top + yaxis._offset + yaxis.d2p(row)];
}"""


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, readouts: list[xr.Dataset], comparison: xr.Dataset, photos: Path
) -> Path:
    pages = tmp_path_factory.mktemp("pages")
    write_report(readouts, pages / "study.html", thumbnails=photos)
    write_report(comparison, pages / "comparison.html")
    write_report(hostile(readouts[0]), pages / "hostile.html", title=HOSTILE)
    empty = readouts[0].map(lambda data: data * np.nan if data.dtype.kind == "f" else data, keep_attrs=True)
    write_report(empty.drop_vars(["map_coordinates", "mean_share"]), pages / "empty.html")
    return pages


@pytest.fixture(scope="module")
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    """Open a page from disk, offline, and record console messages, errors and requests as problems."""
    contexts = []

    def start(name: str, link: str = "", width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.problems.append(request.url))
        page.goto(f"file://{folder / name}.html{link}")
        page.wait_for_selector("html[data-ready]", state="attached")
        page.problems = [
            problem for problem in page.problems if not problem.startswith((f"file://{folder}", "data:image/", "blob:"))
        ]
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def opened(open_page: Open) -> Any:
    return open_page("study")


@pytest.fixture
def page(opened: Any) -> Any:
    """Return the shared page after setting the initial view."""
    choose(opened, readout="given")
    choose(opened, measure="cka", view="value", pair="cnn.seed0 x vit.seed0")
    return opened


def shown(page: Any, box: str = "all-map") -> NDArray[np.float64]:
    return np.array(page.evaluate(SHOWN, box), float)


def choose(page: Any, **what: str) -> None:
    for name, value in what.items():
        if name == "view":
            page.check(f"#view input[value={value}]", force=True)
        else:
            page.select_option(f"#{name}", value)


def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; the content security policy forbids Playwright's `wait_for_function`."""
    for _ in range(2400):  # one minute, because the machine may be busy
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(expression)


def four(value: Any) -> str:
    return f"{float(value):.4f}"


def test_it_opens_from_disk_without_a_request_or_a_word(open_page: Open, page: Any, study: xr.Dataset) -> None:
    for tab in (page, open_page("comparison")):
        assert tab.problems == []
        assert tab.is_hidden("#failure")
        assert tab.evaluate("new Set([...document.querySelectorAll('[id]')].map(x => x.id)).size") == tab.evaluate(
            "document.querySelectorAll('[id]').length"
        )
        levels = [
            int(tag[1])
            for tag in tab.evaluate(
                "[...document.querySelectorAll('h1,h2,h3')].filter(x => x.offsetParent).map(x => x.tagName)"
            )
        ]
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))
        unnamed = "[...document.querySelectorAll('input,select')].filter(x => !x.labels.length).length"
        assert tab.evaluate(unnamed) == tab.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    np.testing.assert_array_equal(shown(page), study["value"].values[0])


def test_every_measure_view_and_readout_is_that_of_the_file(page: Any, readouts: list[xr.Dataset]) -> None:
    for study in readouts:
        readout = study["readout"].item()
        choose(page, readout=readout)
        for measure in study["measure"].values.tolist():
            choose(page, measure=measure)
            at = study.sel(measure=measure)
            for view, name in (("value", "value"), ("z", "z")):
                possible = page.is_enabled(f"#view input[value={view}]")
                assert possible == bool(np.isfinite(at[name]).any()), (measure, view)
                if possible:
                    choose(page, view=view)
                    # z is made of numbers in single precision
                    np.testing.assert_allclose(shown(page), at[name], rtol=1e-5 if view == "z" else 1e-13, atol=1e-12)
            if page.is_enabled("#view input[value=calibrated]"):
                choose(page, view="calibrated")
                check_calibrated(shown(page), at, 0 if measure == "procrustes" else 1, readout)
                choose(page, view="value")
    assert page.problems == []


def check_calibrated(values: NDArray[np.float64], at: xr.Dataset, most: float, readout: str) -> None:
    for k, (a, b) in enumerate(zip(at["pair_a"].values, at["pair_b"].values, strict=True)):
        block = np.ix_(at["model_a"].values == a, at["model_b"].values == b)
        tau = float(at["threshold_largest"][k])
        expected = np.maximum(0, (at["value"].values[block] - tau) / (most - tau))
        np.testing.assert_allclose(values[block], expected, atol=1e-12)
        if readout == "given":  # the values of the other readout are artificial
            assert values[block].max() == pytest.approx(float(at["calibrated_largest"][k]), abs=1e-6)
    same = at["model_a"].values[:, None] == at["model_b"].values
    assert np.isnan(values[same]).all()


def test_the_pair_is_that_block_and_its_details_are_the_numbers_of_the_file(page: Any, study: xr.Dataset) -> None:
    for k in (0, study.sizes["pair"] - 1):
        pair, a, b = (str(study[name].values[k]) for name in ("pair", "pair_a", "pair_b"))
        for measure in ("cka given input", "procrustes"):
            choose(page, measure=measure, pair=pair)
            at = study.sel(measure=measure).isel(pair=k)
            block = (
                study["value"]
                .sel(measure=measure)
                .values[np.ix_(study["model_a"].values == a, study["model_b"].values == b)]
            )
            np.testing.assert_allclose(shown(page, "one-map"), block, atol=1e-13)
            details_text = page.inner_text("#details")
            main = "split_half" if measure == "cka given input" else "index"
            shown_names = [
                main,
                f"{main}_low",
                f"{main}_high",
                "index",
                "largest",
                "warp",
                "calibrated_index",
                "learned",
            ]
            for name in [*shown_names, *(["energy", "energy_low"] if main == "split_half" else [])]:
                assert four(at[name]) in details_text, name
            controls = controls_of_pairs(study).sel(measure=measure).isel(pair=k)
            for name, value in zip(controls["control_pair"].values.tolist(), controls.values.tolist(), strict=True):
                assert np.isnan(value) or f"{name} {four(value)}" in details_text
            assert np.isfinite(controls.values).sum() == (3 if main == "split_half" else 1)
            row = page.inner_text(f"#details-measures tr:has(th:text-is('{measure}'))")
            assert f"{four(at[main])} ({four(at[f'{main}_low'])} to {four(at[f'{main}_high'])})" in row
            assert four(at["p_index_holm"]) in row


def test_pointing_reads_a_cell_and_choosing_shows_its_pair(page: Any, study: xr.Dataset) -> None:
    row, column = 1, study.sizes["layer_b"] - 2
    page.locator("#all-map").scroll_into_view_if_needed()
    x, y = page.evaluate(CELL, ["all-map", row, column])
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    at = study.sel(measure="cka").isel(layer_a=row, layer_b=column)
    tip = page.inner_text("#tip")
    assert f"{at['model_a'].item()} block1 × {at['model_b'].item()} block1" in tip
    for name in ("value", "low", "high", "chance", "chance_sd"):
        assert four(np.float32(at[name])) in tip, name
    assert f"z {float(at['z']):.1f}" in tip
    page.mouse.click(x, y)
    assert page.input_value("#pair") == f"{at['model_a'].item()} x {at['model_b'].item()}"
    page.mouse.move(5, 5)
    page.wait_for_selector("#tip", state="hidden")


def test_the_keyboard_walks_over_cells_and_opens_them(page: Any, study: xr.Dataset) -> None:
    page.focus("#all-map")
    page.keyboard.press("Home")
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    at = study.sel(measure="cka").isel(layer_a=1, layer_b=3)
    live = page.inner_text("#live")
    assert f"{at['model_a'].item()} block1 × {at['model_b'].item()} block0" in live
    assert f"cka {four(at['value'])}" in live
    page.keyboard.press("Enter")
    assert page.input_value("#pair") == f"{at['model_a'].item()} x {at['model_b'].item()}"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")  # stays on the map
    assert f"{at['model_a'].item()} block0 × {at['model_a'].item()} block0" in page.inner_text("#live")
    page.keyboard.press("Enter")
    assert "the same network" in page.inner_text("#live")


def test_the_best_match_can_be_followed(page: Any, study: xr.Dataset) -> None:
    k = 2
    choose(page, measure="cka", pair=str(study["pair"].values[k]))
    at = study.sel(measure="cka").isel(pair=k)
    layers = ["block0", "block1", "block2"]
    for d, way in enumerate(("a to b", "b to a")):
        page.check(f"#direction input[value='{way}']", force=True)
        page.focus("#step")
        for own, other in enumerate(at["match"].values[d].tolist()):
            if own:
                page.keyboard.press("ArrowRight")
            text = page.inner_text("#matched")
            assert f"Layer {own + 1} of 3: {layers[own]} is matched to {layers[other]}" in text
            i, j = (own, other) if d == 0 else (other, own)
            block = (
                study["value"]
                .sel(measure="cka")
                .values[
                    np.ix_(
                        study["model_a"].values == at["pair_a"].item(), study["model_b"].values == at["pair_b"].item()
                    )
                ]
            )
            assert f"cka {four(block[i, j])}" in text
            marks = page.evaluate("document.getElementById('one-map').data.at(-1)")
            assert (marks["x"], marks["y"]) == ([j], [i])


def test_the_table_of_pairs_sorts_and_opens(page: Any, study: xr.Dataset) -> None:
    choose(page, measure="cka")
    rows = "#pairs-table tbody tr"
    index = dict(zip(study["pair"].values, study.sel(measure="cka")["split_half"].values, strict=True))
    names = page.locator(f"{rows} th").all_inner_texts()
    assert names == sorted(index, key=lambda name: -index[name])
    page.click("#pairs-table thead button:text('Split half')")
    assert page.locator(f"{rows} th").all_inner_texts() == names[::-1]
    assert page.get_attribute("#pairs-table th:has(button:text('Split half'))", "aria-sort") == "ascending"
    page.click("#pairs-table thead button:text-is('Pair')")
    assert page.locator(f"{rows} th").all_inner_texts() == sorted(names)
    page.click(f"{rows}:nth-child(3) button")
    assert page.input_value("#pair") == sorted(names)[2]
    first = page.inner_text(f"{rows}:nth-child(3)")
    assert four(index[sorted(names)[2]]) in first


def test_the_page_shows_what_is_claimed_and_every_control(page: Any, study: xr.Dataset) -> None:
    claims = page.inner_text("#claims")
    assert study["claim_reason"].item() in claims
    assert "cnn x vit" in claims
    of_pair = study.isel(families=0)
    for kernel in ("cka given input", "cka given input and labels"):
        row = page.inner_text(f"#effects tr:has(td:text-is('{kernel}'))")
        assert f"{float(of_pair['effect'].sel(measure=kernel)):.3f}" in row
    assert page.locator("#energies tbody tr").count() == 4
    dimension = float(study["effective_dimension"].sel(network="cnn.seed0"))
    assert f"{dimension:.1f}" in page.inner_text("#networks tr:has(th:text-is('cnn.seed0'))")
    choose(page, measure="cka given input")
    until(page, "document.getElementById('pairs-note').textContent.includes('one half')")
    marks = page.evaluate(
        "document.getElementById('forest').data.filter(x => x.name?.startsWith('control')).map(x => [x.name, ...x.x])"
    )
    controls = controls_of_pairs(study).sel(measure="cka given input")
    assert [name for name, *_ in marks] == [f"control: {name}" for name in study["control_pair"].values]
    for (_, *values), name in zip(marks, study["control_pair"].values, strict=True):
        np.testing.assert_allclose(np.sort(values), np.sort(controls.sel(control_pair=name)))


def test_choosing_on_the_map_marks_rows_of_the_table(page: Any, study: xr.Dataset) -> None:
    page.locator("#models-map").scroll_into_view_if_needed()
    drag = page.evaluate("document.querySelector('#models-map .nsewdrag').getBoundingClientRect().toJSON()")
    left, top, right, bottom = (drag[side] for side in ("left", "top", "right", "bottom"))
    page.mouse.move(left + 2, top + 2)
    page.mouse.down()
    for x, y in ((right - 2, top + 2), (right - 2, bottom - 2), (left + 2, bottom - 2), (left + 2, top + 3)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    chosen = "#pairs-table tr.chosen"
    until(page, f"document.querySelectorAll({chosen!r}).length === {study.sizes['pair']}")
    a, b, *others = study["model"].values.tolist()
    for name in others:
        page.click(f"#chosen button:text-is('{name}')")
    assert page.locator(f"{chosen} th").all_inner_texts() == [f"{a} x {b}"]
    assert page.get_attribute(f"#chosen button:text-is('{a}')", "aria-pressed") == "true"
    assert page.get_attribute(f"#chosen button:text-is('{others[0]}')", "aria-pressed") == "false"
    for name in (a, b):
        page.click(f"#chosen button:text-is('{name}')")
    assert page.locator(chosen).count() == 0


def test_shares_maps_and_stimuli_are_those_of_the_file(page: Any, study: xr.Dataset) -> None:
    choose(page, measure="cka given input")
    until(page, "document.getElementById('stimuli-note').textContent.includes('cka given input')")
    lines = page.evaluate(
        "document.getElementById('shares').data.filter(x => x.mode !== 'lines').map(x => [x.name, x.y])"
    )
    expected = [
        study["share"].sel(state=state, share_of=share).values
        for state in ("trained", "untrained")
        for share in ("input", "universal", "family", "seed")
    ]
    for (_, line), shares in zip(lines, expected, strict=True):
        np.testing.assert_array_equal(line, shares)
    points = page.evaluate("document.getElementById('models-map').data.flatMap(x => x.x.map((v, k) => [v, x.y[k]]))")
    np.testing.assert_array_equal(points, study["map_coordinates"].sel(map="cka given input").values[:, :2])
    values = study["agreement"].sel(kernel="cka given input").values
    order = np.argsort(-values, kind="stable")[:12]
    cards = page.locator("#most li").all_inner_texts()
    for card, k in zip(cards, order, strict=True):
        assert NAMES[k] in card
        assert four(np.float32(values[k])) in card
    assert page.evaluate("[...document.querySelectorAll('.pictures img')].every(x => x.naturalWidth === 96)")
    assert page.locator(".pictures img").count() == 24
    layers = page.evaluate("document.getElementById('layers-map').data.flatMap(x => x.x)")
    np.testing.assert_array_equal(layers, study["layer_coordinates"].values[:, 0])
    page.check("#axes input[value='1 2']", force=True)
    layers = page.evaluate("document.getElementById('layers-map').data.flatMap(x => x.y)")
    np.testing.assert_array_equal(layers, study["layer_coordinates"].values[:, 2])


def test_the_shown_matrix_is_downloaded_to_the_last_digit(page: Any, study: xr.Dataset, tmp_path: Path) -> None:
    choose(page, measure="mutual_knn:k=4")
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "matrix.csv")
    with (tmp_path / "matrix.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == study["layer_b"].values.tolist()
    assert [row[0] for row in rows] == study["layer_a"].values.tolist()
    values = np.array([[float(cell or "nan") for cell in row[1:]] for row in rows])
    np.testing.assert_array_equal(values, study["value"].sel(measure="mutual_knn:k=4"))


def test_every_figure_has_a_table_and_the_citation_is_copied(page: Any, study: xr.Dataset) -> None:
    for figure in ("#all", "#one", "figure:has(#shares)", "figure:has(#models-map)", "figure:has(#layers-map)"):
        page.click(f"{figure} summary")
        page.wait_for_selector(f"{figure} details td")
    cell = page.inner_text("#all details tbody tr:nth-child(2) td:nth-child(4)")
    assert cell == four(study["value"].values[0, 1, 2])
    page.click("#copy")
    until(page, "document.getElementById('copied').textContent !== ''")
    assert page.problems == []


def test_a_view_has_an_address(open_page: Open, page: Any, study: xr.Dataset) -> None:
    pair = str(study["pair"].values[-1])
    choose(page, measure="cka given input", view="calibrated", pair=pair, readout="cls")
    link = page.evaluate("location.hash")
    other = open_page("study", link)
    for name, value in (("measure", "cka given input"), ("pair", pair), ("readout", "cls")):
        assert other.input_value(f"#{name}") == value
    assert other.is_checked("#view input[value=calibrated]")
    np.testing.assert_array_equal(shown(other), shown(page))
    other.evaluate("location.hash = '#measure=cka&view=value'")
    until(other, "document.getElementById('measure').value === 'cka'")
    assert open_page("study", "#measure=%3Cb%3E&pair=x&view=constructor&readout=__proto__&theme=x").problems == []


def test_light_and_dark_follow_the_system_and_the_button(open_page: Open) -> None:
    page = open_page("comparison", color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(ground) != dark
    assert "theme=light" in page.evaluate("location.hash")


def test_a_comparison_shows_what_there_is(open_page: Open, comparison: xr.Dataset) -> None:
    page = open_page("comparison")
    visible = page.evaluate(
        "[...document.querySelectorAll('main > section')].filter(x => x.offsetParent).map(x => x.id)"
    )
    assert visible == ["findings", "layers", "made", "cite", "glossary"]
    for measure in comparison.data_vars:
        choose(page, measure=str(measure))
        np.testing.assert_array_equal(shown(page, "one-map"), comparison[measure])
    assert page.is_hidden("#path")
    assert page.problems == []


def test_hostile_names_are_read_and_do_nothing(open_page: Open) -> None:
    page = open_page("hostile")
    assert page.inner_text("h1").startswith(HOSTILE.split("\u2028", maxsplit=1)[0])
    page.locator("#all-map").scroll_into_view_if_needed()
    x, y = page.evaluate(CELL, ["all-map", 1, 4])
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    assert "<img src=x" in page.inner_text("#tip")
    for figure in ("#all", "figure:has(#models-map)", "figure:has(#layers-map)"):
        page.click(f"{figure} summary")
    for map_ in ("forest", "models-map", "layers-map", "shares"):  # plotly interprets markup in hover texts
        page.evaluate("id => Plotly.Fx.hover(id, [{curveNumber: id === 'forest' ? 1 : 0, pointNumber: 0}])", map_)
        hover = page.evaluate("id => document.querySelector(`#${id} .hoverlayer`).textContent", map_)
        assert map_ == "shares" or "<b>{x}</b>" in hover, map_
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None
    assert page.evaluate("document.querySelectorAll('img, .plot a[href], .plot script').length") == 0
    labels = page.evaluate("[...document.querySelectorAll('#all-map .ytick text')].map(x => x.textContent)")
    assert len(labels) == 4
    assert all(label.startswith("</script><s") for label in labels)
    assert page.problems == []


def test_heatmaps_are_seen_before_the_library_is_there_and_a_failure_is_told(
    browser: Any, folder: Path, page: Any, study: xr.Dataset
) -> None:
    """Without its library, a page shows cells at their final positions and an error message."""
    html = (folder / "study.html").read_text(encoding="utf-8")
    (folder / "broken.html").write_text(re.sub(r'(id="library">).*?<', r"\1AAAA<", html), encoding="utf-8")
    broken = browser.new_page(viewport={"width": 1280, "height": 900})
    broken.goto(f"file://{folder / 'broken.html'}")
    broken.wait_for_selector("#failure:not([hidden])")
    assert "could not be drawn" in broken.inner_text("#failure")
    box = "document.querySelector('#one-map %s').getBoundingClientRect().toJSON()"
    first, later = broken.evaluate(box % "canvas"), page.evaluate(box % ".nsewdrag")
    sides = ("left", "right", "width", "height")
    np.testing.assert_allclose([first[side] for side in sides], [later[side] for side in sides], atol=1)
    canvas = "[...document.querySelector('#all-map canvas').getContext('2d').getImageData(0, 11, 2, 1).data]"
    same, other = np.array(broken.evaluate(canvas)).reshape(2, 4).tolist()
    assert same == [252, 253, 191, 255]  # a layer with itself, lower left: 1
    assert sum(other[:3]) < sum(same[:3])
    broken.close()


def test_tab_reaches_everything_in_reading_order(open_page: Open) -> None:
    page = open_page("study")
    order: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        where = page.evaluate(
            "(() => { const x = document.activeElement; return x.id || x.closest('[id]')?.id || x.tagName })()"
        )
        if order and where == "BODY":
            break
        order.append(where)
    reached = list(dict.fromkeys(order))
    expected = ["theme", "claims", "effects", "energies", "measure", "readout", "view", "pair", "all-map", "all", "csv",
                "one-map", "direction", "step", "one", "details-measures", "pairs-table", "depth", "chosen", "maps",
                "axes", "networks", "bibtex", "copy"]  # fmt: skip
    assert [name for name in reached if name in expected] == expected
    page.focus("#measure")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("name", ["study", "comparison", "hostile"])
def test_it_fits_a_telephone(open_page: Open, name: str) -> None:
    page = open_page(name, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.problems == []


def test_it_prints_light_whole_and_without_controls(open_page: Open) -> None:
    page = open_page("study", color_scheme="dark", width=1000)
    page.evaluate("addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme })")
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert page.evaluate("window.printed") == "light"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.emulate_media(media="print")
    for hidden in ("#controls", "#theme", "#path", "#csv"):
        assert page.is_hidden(hidden)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    widths = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(x => x.offsetParent).map(x => x.scrollWidth)"
    )
    assert len(widths) >= 6
    assert max(widths) <= 681  # 180 mm


@pytest.mark.parametrize("name", ["study", "comparison", "empty"])
def test_no_hole_is_shown_as_one(open_page: Open, name: str) -> None:
    page = open_page(name)
    for measure in page.locator("#measure option").all_inner_texts():
        choose(page, measure=measure)
        page.wait_for_timeout(60)
        text = page.inner_text("body")
        hovers = page.evaluate(
            "JSON.stringify([...document.querySelectorAll('.plot')].flatMap(x => (x.data ?? []).map(y => y.text)))"
        )
        assert not re.search(r"NaN|undefined|Infinity|\bnull\b|\[object|\(\)", text), measure
        assert not re.search(r"NaN|undefined|\(\)", hovers), measure
    assert page.problems == []


def test_tables_fit_the_page_and_say_what_they_are(open_page: Open, page: Any) -> None:
    tables = "document.querySelectorAll('main > section > .scroll, #details-measures')"
    assert page.evaluate(f"[...{tables}].filter(x => x.scrollWidth > x.clientWidth).map(x => x.id)") == []
    heads = page.evaluate("[...document.querySelectorAll('th')].filter(x => !x.textContent || !x.scope).length")
    captions = page.evaluate("[...document.querySelectorAll('table')].every(x => x.caption?.textContent)")
    assert (heads, captions) == (0, True)
    labels = page.evaluate("[...document.querySelectorAll('[role=region]')].map(x => x.ariaLabel)")
    assert len(labels) == len(set(labels)) > 3
    page.locator("#all-map").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(CELL, ["all-map", 1, 4]))  # once: a second move could be noticed after the key
    page.wait_for_selector("#tip:not([hidden])")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def luminance(colour: str) -> float:
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_suffices(theme: int) -> None:
    css = (Path(__file__).parents[2] / "repsim" / "report" / "page.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", re.findall(r":root[^{]*\{(.*?)\}", css, re.DOTALL)[theme]))

    def contrast(a: str, b: str) -> float:
        low, high = sorted(luminance(colours[name]) for name in (a, b))
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent"):
        for ground in ("ground", "sheet", "faint"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    others = "accent-ink on accent, caution on caution-ground, ink on caution-ground, ink on mark, soft on mark"
    for pair in (*others.split(", "), "accent on mark"):
        assert contrast(*pair.split(" on ")) >= 4.5, pair
    for hue in ("first", "second", "third", "fourth"):
        assert contrast(hue, "ground") >= 3, hue
