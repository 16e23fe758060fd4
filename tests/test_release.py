"""Tests of what a release says of itself: version, date, addresses, formats, lowest versions, and the README."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import repsim
from repsim.results.versions import RESULTS, SERIES_FILES, STUDIES
from repsim.runtime.formats import Readers
from repsim.stores.reader import READERS as STORES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_comparison_with_torch_cka_has_the_numbers_of_the_benchmarks() -> None:
    readme, benchmarks = ((ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    table = benchmarks.partition("### Comparison with torch-cka\n")[2].partition("###")[0]
    measured = {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?(?![\w])", table)}
    rows = [line for line in readme.partition("| torch_cka 0.21 |")[2].splitlines() if line.startswith("| n =")]
    named = [float(number) for row in rows for number in re.findall(r"([\d.]+) (?:s|MiB)", row)]
    assert len(named) == 12
    for number in named:
        assert any(float(f"{value:.3g}") == number for value in measured), number


def test_the_readme_quotes_the_evidence() -> None:
    """Its numbers stand on the pages that it links to."""
    readme = (ROOT / "README.md").read_text()
    values = (ROOT / "docs/conformance.md").read_text().partition("<!-- numbers: ")[2].partition("<!-- /numbers")[0]
    bounds = re.findall(r"\| < (\S+) \|$", values, re.MULTILINE)
    assert set(bounds) == {"1e-12"}
    assert f"**{len(bounds)} of {len(bounds)}** reference values" in readme
    sweep = (ROOT / "docs/timm-sweep.md").read_text()
    families = re.search(r"\*\*(\d+) of \1 families pass", sweep)
    layers = re.search(r"All ([\d,]+) layers were compared with a hook", sweep)
    difference = re.search(r"largest difference is (\S+) of the\s+layer's largest value", sweep)
    assert families
    assert layers
    assert difference
    assert f"**{layers[1]} layers** of {families[1]} architecture families" in readme
    assert f"is {difference[1]} of the layer's largest value" in readme
    claims = (ROOT / "docs/statistics.md").read_text().partition("universal in version 0.2 |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in row.split("|")] for row in claims.splitlines()]
    simulated = [(int(row[2]), row[4]) for row in cells if len(row) > 4 and row[4].endswith("%")]
    assert {rate for _, rate in simulated} == {"0.0%"}
    assert f"**0 of {sum(studies for studies, _ in simulated):,}** simulated studies" in readme


def test_the_citation_has_a_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == repsim.__version__
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", citation["date-released"])


def test_every_version_of_python_is_declared() -> None:
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    declared = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert tuple(map(int, declared[0].split("."))) == lowest
    assert f"| Python | {', '.join(declared)} |" in (ROOT / "docs/stability.md").read_text()


def test_dependencies_of_the_developers_are_those_of_the_users() -> None:
    """A bound is written twice where the extra `dev` repeats another one."""
    extras = PROJECT["optional-dependencies"]
    for extra in ("text", "data", "topology"):
        assert set(extras[extra]) <= set(extras["dev"]), extra


@pytest.mark.parametrize(
    ("kind", "readers"), [("store", STORES), ("result", RESULTS), ("study", STUDIES), ("series", SERIES_FILES)]
)
def test_the_page_of_stability_names_the_versions_of_formats(kind: str, readers: Readers[Any]) -> None:
    page = (ROOT / "docs/stability.md").read_text()
    row = re.search(rf"^\| {kind} \(`\.\w+`\) \| (\d) \| ([\d, ]+) \|", page, re.MULTILINE)
    assert row
    assert int(row[1]) == readers.newest
    read = [version for version in range(readers.newest + 1) if version in readers]
    assert [int(version) for version in row[2].split(", ")] == read


def test_what_is_deprecated_names_a_later_major_version() -> None:
    major = int(repsim.__version__.split(".")[0])
    named = []
    for top in ("repsim", "metrics", "extractors"):
        for path in (ROOT / top).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            named += [word.value for call in calls for word in call.keywords if word.arg == "gone_in"]
    releases = {node.value for node in named if isinstance(node, ast.Constant)}
    assert releases
    assert {release for release in releases if not re.fullmatch(r"\d+\.0\.0", str(release))} == set()
    assert all(int(str(release).split(".")[0]) > major for release in releases)


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)`", row)
        assert named, row
        assert all((ROOT / name).exists() for name in named), row


def test_every_declared_version_of_python_is_tested() -> None:
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    workflow = yaml.safe_load(text)
    declared = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert workflow["jobs"]["quick"]["strategy"]["matrix"]["python"] == declared
    assert workflow["permissions"] == {"contents": "read"}
    for script in re.findall(r"(?:scripts|\.ci)/[\w/]+", text):
        assert (ROOT / script).exists(), script


def test_an_upload_needs_a_tag_and_no_password() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # `on` is true in YAML
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert ".ci/package dist" in [step.get("run") for step in workflow["jobs"]["build"]["steps"]]
    assert "secrets." not in text
    for script in re.findall(r"(?:scripts|\.ci)/\w+", text):
        assert (ROOT / script).exists(), script
