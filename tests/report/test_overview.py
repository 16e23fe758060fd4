"""Tests of the page of many networks: every pair of layers is in it, and it is drawn when its pair is chosen."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim import write_report
from repsim.engine.comparison import compare
from repsim.presentation.stages import Run, runs
from repsim.report import overview, packing
from repsim.report.page import SCRIPTS
from repsim.report.payload import payload
from repsim.study.reading import headline
from repsim.testing.examples import related_layers, write_network
from repsim.testing.large import enlarged_study

MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")
FOLDER = Path(overview.__file__).parent


@pytest.fixture(scope="module")
def large(study: xr.Dataset) -> xr.Dataset:
    return enlarged_study(study, 30)


@pytest.fixture
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MOST_CELLS", 1000)


def part_of(result: xr.Dataset) -> dict[str, Any]:
    return dict(json.loads(json.dumps(payload([result])["parts"][0])))


def block(part: dict[str, Any], name: str, k: int, i: int, j: int) -> NDArray[np.float64]:
    """Unpack the layers of two runs as the scripts of the page do."""
    up, across = part["sides"]["a"]["runs"], part["sides"]["b"]["runs"]
    shape = up[i]["count"], across[j]["count"]
    packed = part["matrices"][name][k]
    if packed is None:
        return np.full(shape, np.nan)
    if packed == {}:
        value, low, chance, sd = (block(part, other, k, i, j) for other in ("value", "low", "chance", "chance_sd"))
        return 2 * value - low if name == "high" else (value - chance) / sd
    if "constant" in packed:
        return np.where(np.isnan(block(part, "value", k, i, j)), np.nan, packed["constant"])
    if packed["symmetric"] and j < i:
        return block(part, name, k, j, i).T
    before = [
        (p, q) for p, q in product(range(len(up)), range(len(across)))
        if (p, q) < (i, j) and not (packed["symmetric"] and q < p)
    ]  # fmt: skip
    first = sum(up[p]["count"] * across[q]["count"] for p, q in before)
    kind = "u2" if "u2" in packed["blocks"] else "f4"
    raw = np.frombuffer(base64.b64decode(packed["blocks"][kind]), f"<{kind}")[first : first + shape[0] * shape[1]]
    if kind == "u2":
        raw = np.where(raw == 65535, np.nan, packed["blocks"]["low"] + packed["blocks"]["step"] * raw.astype(float))
    return raw.reshape(shape).astype(np.float64)


@pytest.mark.usefixtures("few_cells")
def test_every_pair_of_layers_of_a_study_is_in_the_page(large: xr.Dataset) -> None:
    part = part_of(large)
    up = part["sides"]["a"]["runs"]
    assert len(part["coords"]["pair"]) == 435
    for k in range(large.sizes["measure"]):
        steps = {name: (part["matrices"][name][k] or {}).get("blocks", {}).get("step", 0) for name in ("value", "low")}
        assert max(steps.values()) / 2 < 1e-4
        sd = large["chance_sd"].values[k]
        room = {
            "value": steps["value"] / 2, "low": steps["low"] / 2, "high": steps["value"] + steps["low"] / 2,
            "z": steps["value"] / 2 / np.nanmin(sd) if np.isfinite(sd).any() else 0,
        }  # fmt: skip
        for name in MATRICES:
            values = large[name].values[k]
            for i, j in [(0, 0), (3, 3), (0, 29), (29, 0), (7, 12), (12, 7), (28, 29)]:
                rows, columns = (slice(up[x]["first"], up[x]["first"] + up[x]["count"]) for x in (i, j))
                np.testing.assert_allclose(
                    block(part, name, k, i, j), values[rows, columns], rtol=2e-6, atol=1.01 * room.get(name, 0) + 1e-7,
                    err_msg=f"{name} {i} {j}",
                )  # fmt: skip
    largest = max(one["blocks"]["step"] for one in part["matrices"]["value"] if one and "blocks" in one) / 2
    assert f"at most {largest:.1g} from" in part["rounding"]


@pytest.mark.usefixtures("few_cells")
def test_the_first_heatmap_has_the_main_value_of_every_pair(large: xr.Dataset) -> None:
    part = part_of(large)
    models = [run["model"] for run in part["sides"]["a"]["runs"]]
    for k, measure in enumerate(large["measure"].values.tolist()):
        shown = np.frombuffer(base64.b64decode(part["overview"][k]["value"]["f4"]), "<f4").reshape(30, 30)
        values = large[headline(large, measure)].sel(measure=measure).values
        assert np.isnan(np.diag(shown)).all()
        pairs = zip(large["pair_a"].values.tolist(), large["pair_b"].values.tolist(), values.tolist(), strict=True)
        for a, b, value in pairs:
            i, j = models.index(a), models.index(b)
            np.testing.assert_allclose([shown[i, j], shown[j, i]], value, rtol=1e-6)
        assert set(part["overview_notes"][k]) == {"value", "calibrated", "z"}


def test_few_layers_are_all_shown_at_once(study: xr.Dataset, large: xr.Dataset) -> None:
    for few in (study, large):  # 90 layers
        part = part_of(few)
        assert "overview" not in part
        assert "triangle" in part["matrices"]["value"][0]
    assert overview.networks_of(study.assign_coords(model_a=("layer_a", study["model_a"].values[::-1]))) is None


@pytest.mark.usefixtures("few_cells")
def test_the_pairs_that_the_figure_leaves_out_are_told(large: xr.Dataset, study: xr.Dataset) -> None:
    part = part_of(large)
    assert all(2 < len(drawn) <= 48 for drawn in part["drawn"])
    assert part["drawn_note"].startswith(f"{len(part['drawn'][0])} of 435 pairs of networks are drawn")
    every = part_of(study)
    assert sorted(every["drawn"][0]) == list(range(study.sizes["pair"]))
    assert every["drawn_note"] == ""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Return a comparison of 26 networks of 12 layers, more than are shown at once, under an asymmetric measure too."""
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("many")
    stores = [write_network(folder, f"net{k:02d}", related_layers(rng, 24, *[3] * 12)) for k in range(26)]
    result = compare(stores, metrics=["cka", "linear_regression"])
    for store in stores:
        store.close()
    return result


def test_a_comparison_of_many_networks_is_there_pair_by_pair(many: xr.Dataset) -> None:
    part = part_of(many)
    assert [packed["symmetric"] for packed in part["matrices"]["value"]] == [True, False]
    for k, name in enumerate(("cka", "linear_regression")):
        step = part["matrices"]["value"][k]["blocks"]["step"]
        for i, j in [(0, 1), (1, 0), (25, 24), (11, 11)]:
            expected = many[name].values[12 * i : 12 * i + 12, 12 * j : 12 * j + 12]
            np.testing.assert_allclose(block(part, "value", k, i, j), expected, rtol=0, atol=0.501 * step)


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs scripts without a browser, is not installed")
@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize("name", ["large", "many"])
def test_the_scripts_unpack_single_pairs_and_the_whole(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result: xr.Dataset = request.getfixturevalue(name)
    part = part_of(result)
    (tmp_path / "part.json").write_text(json.dumps(part), encoding="utf-8")
    scripts = "\n".join((FOLDER / f"{script}.js").read_text("utf-8") for script in ("unpacking", "variables", "part"))
    frames = [[0, 1], [1, 0], [2, 2], [7, 20]]
    code = f"""
{scripts}
const part = new Part(JSON.parse(require("fs").readFileSync({json.dumps(str(tmp_path / "part.json"))}, "utf8")));
const plain = (values) => values && Array.from(values, (value) => (Number.isNaN(value) ? null : value));
const frameOf = ([i, j]) => ({{ up: part.runs.a[i], across: part.runs.b[j] }});
const of = (name, measure, pair) => plain(part.matrix(name, measure, frameOf(pair)));
console.log(JSON.stringify(part.measures.map(({{ name }}) => ({{
  pairs: {json.dumps(frames)}.map((pair) => ["value", "high", "p", "calibrated"].map((kind) => of(kind, name, pair))),
  whole: plain(part.matrix("value", name)),
}}))));
"""
    (tmp_path / "run.js").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [str(shutil.which("node")), str(tmp_path / "run.js")], capture_output=True, encoding="utf-8", check=True
    )
    for k, scripted in enumerate(json.loads(run.stdout)):
        for (i, j), (value, high, p, calibrated) in zip(frames, scripted["pairs"], strict=True):
            for kind, numbers in (("value", value), ("high", high), ("p", p)):
                if kind in part["matrices"]:
                    expected = block(part, kind, k, i, j).ravel()
                    np.testing.assert_allclose(np.array(numbers, float), expected, rtol=1e-12, atol=1e-12)
            if calibrated is not None:
                assert (np.array(calibrated, float)[~np.isnan(np.array(calibrated, float))] >= 0).all()
        up, across = (part["sides"][side]["runs"] for side in "ab")
        whole = np.block([[block(part, "value", k, i, j) for j in range(len(across))] for i in range(len(up))])
        np.testing.assert_allclose(np.array(scripted["whole"], float).reshape(whole.shape), whole, atol=1e-12)
        if k:  # one measure suffices; the reference is slow
            break


def test_values_that_have_no_code_keep_their_precision() -> None:
    both = [Run("a", 0, 1), Run("b", 1, 1)]
    values = np.array([[np.inf, 0.5], [np.nan, 0.25]])
    packed = packing.blocks(values, both, both, symmetric=False, kind="u2")["blocks"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed["f4"]), "<f4"), values.ravel())
    equal = packing.quantised(np.array([0.5, 0.5, np.nan]))
    assert (equal["low"], equal["u2"]) == (0.5, "AAAAAP//")


def test_scripts_of_the_page_are_those_that_were_run() -> None:
    assert {"unpacking", "variables", "part"} <= set(SCRIPTS["study"])


@pytest.mark.slow
def test_a_browser_shows_networks_and_then_the_layers_of_a_pair(
    browser: Any, many: xr.Dataset, large: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(overview, "MOST_CELLS", 1000)
    shown = "id => document.getElementById(id).data[0].z.map(row => Array.from(row, x => x ?? NaN))"
    opened: Callable[[Any, xr.Dataset, str], Any] = _open
    page = opened(browser, many, str(tmp_path / "many.html"))
    assert np.array(page.evaluate(shown, "all-map"), float).shape == (26, 26)
    page.select_option("#pair", "net03 x net17")
    up = runs(map(str, many["model_a"].values))
    expected = many["cka"].values[up[3].first : up[3].first + 12, up[17].first : up[17].first + 12]
    np.testing.assert_allclose(np.array(page.evaluate(shown, "one-map"), float), expected, atol=1e-4)
    page = opened(browser, large, str(tmp_path / "large.html"))
    assert page.locator("#pairs-table tbody tr").count() == 100
    page.click("#pairs-table > button")
    assert page.locator("#pairs-table tbody tr").count() == 200
    assert "of 435 pairs of networks are drawn" in page.locator("#pairs-note").text_content()
    assert page.problems == []


def _open(browser: Any, result: xr.Dataset, path: str) -> Any:
    write_report(result, path)
    page = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"file://{path}")
    page.wait_for_selector("html[data-ready]", state="attached")
    return page
