"""Tests of the page with a keyboard, at 200 % zoom, with names of 500 characters, and with marks that turn text.

The rules are those of WCAG 2.2 at level AA that can be computed: names of controls (4.1.2), reflow (1.4.10), focus that
is seen and not trapped (2.1.2, 2.4.7), contrast (1.4.3), and structure (1.3.1).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from repsim import write_report
from repsim.runtime.visible_text import all_visible
from repsim.testing.large import enlarged_study
from tests.report.conftest import renamed
from tests.report.test_browser import luminance

Open = Callable[..., Any]
TURNED = "\u202enet\u2066 \u05e9\u05dc\u05d5\u05dd \u200f"
UNNAMED = """() => {
  const label = (x) => [...(x.labels ?? [])].map(y => y.textContent).join('');
  const name = (x) => x.ariaLabel || x.getAttribute('aria-labelledby') || label(x) || x.alt || x.textContent.trim();
  const roles = ['a', 'button', 'input', 'select', 'summary', 'img', 'svg[role=img]', '[role=application]',
    '[role=region]', '[role=group]', 'fieldset', 'form'].join();
  const shown = [...document.querySelectorAll(roles)].filter(x => x.checkVisibility() && !x.closest('.modebar'));
  return shown.filter(x => !name(x)).map(x => x.outerHTML.slice(0, 99));
}"""
CONTRASTS = """() => {
  const ground = (x) => {
    for (let y = x; y; y = y.parentElement) {
      const colour = getComputedStyle(y).backgroundColor;
      if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const own = (x) => [...x.childNodes].some(y => y.nodeType === 3 && y.textContent.trim());
  const left = 'svg, script, style, [disabled], noscript, input:disabled + *';
  const shown = [...document.querySelectorAll('body *')].filter(x => own(x) && x.checkVisibility() && !x.closest(left));
  return shown.map(x => [getComputedStyle(x).color, ground(x), x.textContent.slice(0, 40)]);
}"""
WIDE = """() => {
  const parts = [...document.querySelectorAll('button, select, p, li, dd, h1, h2, h3, figure, .plot')];
  const out = (x) => x.checkVisibility() && !x.closest('.scroll') && x.getBoundingClientRect().right > innerWidth + 1;
  return parts.filter(out).map(x => x.id || x.textContent.slice(0, 40));
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, study: xr.Dataset) -> Path:
    pages = tmp_path_factory.mktemp("pages")
    large = enlarged_study(study, 12)
    write_report(large, pages / "large.html")
    write_report(renamed(large, lambda name: "m" * 250 + name + "m" * 250), pages / "long.html")
    write_report(renamed(study, lambda name: f"{TURNED}{name}"), pages / "turned.html", title=f"{TURNED}?")
    return pages


@pytest.fixture(scope="module")
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    contexts = []

    def start(name: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"file://{folder / name}.html")
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_controls_have_names_and_all_text_has_contrast(open_page: Open, theme: str) -> None:
    page = open_page("large", color_scheme=theme)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate(UNNAMED) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(x => x.id)")
    assert len(ids) == len(set(ids))

    def parsed(colour: str) -> str:
        return "#" + "".join(f"{round(float(part)):02x}" for part in colour.split("(")[1].rstrip(")").split(",")[:3])

    texts = page.evaluate(CONTRASTS)
    assert len(texts) > 200
    for ink, ground, text in texts:
        low, high = sorted(luminance(parsed(colour)) for colour in (ink, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, ground)


@pytest.mark.slow
def test_the_keyboard_passes_all_figures_of_many_networks_and_sees_where_it_is(open_page: Open) -> None:
    page = open_page("large")
    reached: list[str] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        where, seen = page.evaluate(
            "(() => { const x = document.activeElement, s = getComputedStyle(x), n = x.nextElementSibling; "
            "return [x.id || x.closest('[id]')?.id || x.tagName, s.outlineStyle !== 'none' || (n && getComputedStyle(n)"
            ".outlineStyle !== 'none')] })()"
        )
        if reached and where == "BODY":
            break
        assert seen, where
        reached.append(where)
    for name in ("measure", "pair", "all-map", "one-map", "step", "family-panels", "pairs-table", "chosen", "copy"):
        assert name in reached, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "long", "turned"])
@pytest.mark.parametrize(
    "view",
    [
        {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2},  # 1280 x 900 at 200 %
        {"viewport": {"width": 400, "height": 800}},
    ],
)
def test_nothing_but_tables_is_scrolled_sideways(open_page: Open, name: str, view: dict[str, Any]) -> None:
    page = open_page(name, **view)
    width, height = view["viewport"]["width"], view["viewport"]["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(WIDE) == []
    page.evaluate("document.getElementById('pairs').scrollIntoView()")
    stuck = page.evaluate("document.getElementById('controls').getBoundingClientRect().bottom")
    assert stuck < height / 3
    assert page.problems == []


@pytest.mark.slow
def test_names_of_500_characters_stay_different(open_page: Open) -> None:
    page = open_page("long", viewport={"width": 400, "height": 800})
    for axis in ("xaxis", "yaxis"):
        heads = page.evaluate(f"document.getElementById('all-map').layout.{axis}.ticktext")
        assert len(set(heads)) == len(heads) > 4
        assert max(map(len, heads)) <= 26
    labels = page.evaluate("document.getElementById('forest').layout.yaxis.ticktext")
    assert len(set(labels)) == len(labels) == 20


@pytest.mark.slow
def test_marks_that_turn_text_are_escapes(open_page: Open, study: xr.Dataset) -> None:
    page = open_page("turned")
    text = page.evaluate("document.body.textContent")
    assert not set(text) & set("\u202e\u2066\u200f")
    assert page.inner_text("h1") == all_visible(f"{TURNED}?")
    assert "\u05e9\u05dc\u05d5\u05dd" in page.inner_text("h1")
    first = str(study["pair"].values[0])
    page.select_option("#pair", all_visible(f"{TURNED}{first}"))
    assert page.problems == []
