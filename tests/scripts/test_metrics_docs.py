"""Tests of scripts/maintenance/metrics_docs.py: the generated pages of docs/ are up to date and valid Markdown."""

import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt  # rich brings it
from markdown_it.token import Token

import repsim.metrics
from repsim.metrics import describe
from tests.metrics.oracles import AWAITED

ROOT = Path(__file__).parents[2]
PAGES = ("metrics.md", "conformance.md", "study-format.md", "series-format.md", "result-format.md")
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metrics_docs", ROOT / "scripts" / "maintenance" / "metrics_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_up_to_date(script: ModuleType, name: str) -> None:
    path = ROOT / "docs" / name
    assert path.read_text() == script.pages()[path], "out of date: run scripts/maintenance/metrics_docs.py"


def test_a_page_that_is_out_of_date_is_detected_and_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for name in PAGES:
        (tmp_path / "docs" / name).write_text((ROOT / "docs" / name).read_text())
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert CliRunner().invoke(script.main, ["--check"]).exit_code == 0
    page = tmp_path / "docs" / "metrics.md"
    text = page.read_text()
    page.write_text(text.replace("| 10,241 |", "| 10,242 |"))
    result = CliRunner().invoke(script.main, ["--check"])
    assert result.exit_code == 1
    assert result.stderr == "docs/metrics.md is out of date: run scripts/maintenance/metrics_docs.py\n"
    assert CliRunner().invoke(script.main).stdout == "docs/metrics.md\n"
    assert page.read_text() == text
    page.write_text(text.replace("<!-- /traits -->", ""))
    assert "needs the marks" in CliRunner().invoke(script.main).output


def inline(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from inline(token.children or [])


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_valid_markdown(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    tokens = list(inline(MARKDOWN.parse(text)))
    kinds = {token.type for token in tokens}
    assert not kinds & {"em_open", "s_open", "html_inline"}, "a formula was parsed as markup"
    assert all(token.content.startswith("<!-- ") for token in tokens if token.type == "html_block")
    width = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        assert not width or not cells or cells == width, f"different number of cells: {line}"
        width = cells
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(slugs) == len(set(slugs))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert not anchor or anchor in slugs
        assert not file or (ROOT / "docs" / file).exists()


def test_every_measure_is_on_every_page() -> None:
    metrics, conformance = ((ROOT / "docs" / name).read_text() for name in PAGES[:2])
    for name in repsim.metrics.names():
        assert metrics.count(f"[`{name}`](#{name})") == 2
        assert f"\n#### {name}\n" in metrics
        assert f"`{name}`" in conformance or f"`{name}:" in conformance


def test_the_guide_names_only_measures_that_exist() -> None:
    guide = (ROOT / "docs" / "metrics.md").read_text().split("<!-- questions")[0]
    named = set(re.findall(r"`([a-z_]+(?::[a-z0-9_.,=]+)?)`", guide))
    assert {"cka", "mutual_knn", "linear_regression", "cka:estimator=biased"} <= named
    for spec in named:
        if spec not in AWAITED or spec in repsim.metrics.names():
            repsim.metrics.get(spec)


def shown(markdown: str) -> str:
    """Return the visible text of a paragraph, after checking that the Markdown is one paragraph."""
    tokens = MARKDOWN.parse(markdown)
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    return "".join(token.content for token in inline(tokens) if token.type != "inline")


def test_a_bar_in_a_cell_does_not_end_the_cell(script: ModuleType) -> None:
    cells = ["`||a||`", script.escaped("|b| and ||c||_F")]
    tokens = MARKDOWN.parse("\n".join(script.table(("one", "two"), [cells])))
    assert [shown(token.content) for token in tokens if token.type == "inline"][2:] == ["||a||", "|b| and ||c||_F"]


@pytest.mark.parametrize(
    "text",
    [
        "||X'Y||_F^2 / sum_{i<=k} a_i and `sum_{i}` again, ||Y||_F",
        "<K^1, K^2>, <b>, a * b * c, X~ and Y~, [x](y), a\\b",
        "_F of U_i_ is __not__ emphasis",
        "|a| is no table",
        "# is no heading",
        "- b is no list",
    ],
)
def test_formulas_are_shown_unchanged(script: ModuleType, text: str) -> None:
    assert shown(script.escaped(text)) == text.replace("`", "")


@pytest.mark.parametrize("name", repsim.metrics.names())
def test_texts_of_measures_are_shown_unchanged(script: ModuleType, name: str) -> None:
    metric: Any = repsim.metrics.get(name)
    sections = describe.sections(type(metric))
    texts = [metric.question, *metric.others, *metric.others.values(), *describe.references(metric)]
    texts += describe.traits(metric).values()
    for heading in ("", "Notes"):
        texts += [line for part in describe.paragraphs(sections.get(heading, "")) for line in part.lines]
    for text in texts:
        assert shown(script.escaped(text)) == text.replace("`", "")
