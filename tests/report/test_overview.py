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
from repsim.study import reading
from repsim.study.reading import headline
from repsim.testing.examples import related_layers, write_network
from repsim.testing.large import enlarged_study
from tests.report.conftest import renamed

pytestmark = pytest.mark.slow

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


def test_few_layers_are_unpacked_and_shown_at_once(study: xr.Dataset, large: xr.Dataset) -> None:
    for few in (study, large):  # 90 layers
        part = part_of(few)
        assert ("overview" in part) == (few is large)  # it has more than 48 pairs of networks
        assert not part["in_blocks"]
        assert "triangle" in part["matrices"]["value"][0]
    assert not overview.shows_networks(enlarged_study(study, 10))
    assert overview.shows_networks(enlarged_study(study, 11))
    assert overview.networks_of(study.assign_coords(model_a=("layer_a", study["model_a"].values[::-1]))) is None


def test_networks_are_in_the_order_of_the_dendrogram(large: xr.Dataset, many: xr.Dataset) -> None:
    """The order is that of the leaves: every joint of the tree joins neighbours, the most similar ones lowest."""
    for result in (large, many):
        for one in part_of(result)["overview"]:
            table = np.frombuffer(base64.b64decode(one["value"]["f4"]), "<f4").astype(float)
            size = round(table.size**0.5)
            if np.isnan(table).all():
                assert "order" not in one
                continue
            assert sorted(one["order"]) == list(range(size))
            joints = np.array(one["tree"])
            assert joints.shape == (size - 1, 4, 2)
            ordered = table.reshape(size, size)[np.ix_(one["order"], one["order"])]
            ordered = np.nan_to_num((ordered + ordered.T) / 2, nan=-np.inf)
            lowest = joints[joints[:, 1, 1].argmin()]
            i, j = (int(x) for x in (lowest[0, 0], lowest[3, 0]))
            assert abs(i - j) == 1
            np.testing.assert_allclose(ordered[i, j], ordered.max(), rtol=1e-6)


def test_the_most_and_the_least_alike_of_many_pairs_are_drawn(large: xr.Dataset, study: xr.Dataset) -> None:
    part = part_of(large)
    assert part["drawn_note"].startswith("The 10 most and the 10 least alike of 435 pairs are drawn")
    for measure, shown in zip(large["measure"].values.tolist(), part["drawn"], strict=True):
        values = large[headline(large, measure)].sel(measure=measure).values
        ordered = np.sort(values[np.isfinite(values)])[::-1]
        np.testing.assert_array_equal(values[shown], np.r_[ordered[:10], ordered[-10:]])
    every = part_of(study)
    assert sorted(every["drawn"][0]) == list(range(study.sizes["pair"]))
    assert (every["drawn_note"], every["extremes"]) == ("", 0)


def test_a_page_opens_given_the_input_with_the_stimuli_of_the_summary(study: xr.Dataset) -> None:
    part = part_of(study)
    assert part["opens_on"] == "cka given input"
    assert part["tiles"][0]["label"].startswith("Pairs of families that exceed")
    assert part["tiles"][1]["label"].endswith("given input")
    (about,) = (one for one in part["measures"] if one["name"] == part["opens_on"])
    named = [part["coords"]["sample"][k] for k in part["stimuli"][about["kernel"]]["most"]]
    sentence = next((text for text in part["summary"] if text.startswith("Networks agree most on")), "")
    assert not sentence or (named[0] in sentence and sentence.endswith(f"({part['opens_on']})."))
    without = study.drop_sel(kernel="cka given input", measure="cka given input")
    assert reading.strictest(without) == "cka"


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
    opened: Callable[..., Any] = _open
    page = opened(browser, many, str(tmp_path / "many.html"))
    assert np.array(page.evaluate(shown, "all-map"), float).shape == (26, 26)
    page.select_option("#pair", "net03 x net17")
    up = runs(map(str, many["model_a"].values))
    expected = many["cka"].values[up[3].first : up[3].first + 12, up[17].first : up[17].first + 12]
    np.testing.assert_allclose(np.array(page.evaluate(shown, "one-map"), float), expected, atol=1e-4)
    names = [f"vit_base_patch16_224.recipe{k}_in21k_ft_in1k" for k in range(30)]
    models = dict(zip(large["model"].values.tolist(), names, strict=True))
    long = renamed(large, lambda name: " x ".join(models.get(part, part) for part in name.split(" x ")))
    for width in (1280, 400):
        page = opened(browser, long, str(tmp_path / "large.html"), width)
        assert page.input_value("#measure") == "cka given input"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        heads = page.evaluate("document.getElementById('all-map').layout.xaxis.ticktext")
        order = part_of(large)["overview"][1]["order"]
        assert part_of(large)["measures"][1]["name"] == "cka given input"
        assert len(set(heads)) == len(heads) > 8
        every = -(-30 // len(heads))
        for head, k in zip(heads, order[::every], strict=True):  # the digits that differ are not cut off
            assert f"{k}" in head
            assert len(head) <= 26
        values = np.array(page.evaluate(shown, "all-map"), float)
        np.testing.assert_allclose(values, values.T)
        of_pairs = large.sel(measure="cka given input").set_index(pair=["pair_a", "pair_b"])["split_half"]
        first, second = sorted(order[:2])
        pair = {"pair_a": large["model"].values[first], "pair_b": large["model"].values[second]}
        np.testing.assert_allclose(values[0, 1], float(of_pairs.sel(pair=tuple(pair.values()))), rtol=1e-6)
        labels = page.evaluate("document.getElementById('forest').layout.yaxis.ticktext")
        assert len(labels) == len(set(labels)) == 20
        assert "of 435 pairs are drawn" in page.locator("#pairs-note").text_content()
        families = large["family"].values.tolist()
        assert page.locator("#panels .panel").count() == min(12, len(set(families)))
        page.click("#family-panels summary")
        row = page.locator("#family-panels details tbody tr").first.inner_text().split("\t")
        own = (large["pair_a"].isin(members := large["model"].values[np.array(families) == families[0]])
               & large["pair_b"].isin(members))  # fmt: skip
        mean = float(large["split_half"].sel(measure="cka given input").values[own.values].mean())
        assert row[:4] == [families[0], families[0], str(int(own.sum())), f"{mean:.4f}"]
        shown_names = page.evaluate("document.getElementById('models-map').data.flatMap(x => x.text)")
        assert len(shown_names) == 30
        placed = [name for name in shown_names if name]
        assert len(placed) == len(set(placed)) > 3
        assert page.locator("#pairs-table tbody tr").count() == 20
        page.click("#pairs-table > button")
        assert page.locator("#pairs-table tbody tr").count() == 120
        page.focus("#all-map")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.input_value("#pair") == f"{names[first]} x {names[second]}"
        assert page.problems == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs scripts without a browser, is not installed")
def test_different_names_are_shortened_to_different_texts(tmp_path: Path) -> None:
    families = [
        [f"vit_base_patch{k}_224.augreg_in21k_ft_in1k" for k in (8, 14, 16, 32)],
        [f"{'a' * 250}{k}{'b' * 250}" for k in range(40)],
        [*(f"net.seed{k}" for k in range(3)), "x" * 500],
        ["😀" * 30 + f"{k}" + "😀" * 30 for k in range(3)],
        [f"{'ab' * k}{'c' * 60}{'de' * (30 - k)}" for k in range(12)],
    ]
    code = (
        (FOLDER / "text.js").read_text("utf-8").split("// Measures the width")[0]
        + f"""
console.log(JSON.stringify({json.dumps(families)}.map((names) => [10, 18, 26].map((most) => shortenAll(names, most)))));
"""
    )
    (tmp_path / "run.js").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [str(shutil.which("node")), str(tmp_path / "run.js")], capture_output=True, encoding="utf-8", check=True
    )
    for names, results in zip(families, json.loads(run.stdout), strict=True):
        for most, short in zip((10, 18, 26), results, strict=True):
            assert len(set(short)) == len(names)
            assert max(map(len, short)) <= most
            assert all(text == name for text, name in zip(short, names, strict=True) if len(name) <= most)


def _open(browser: Any, result: xr.Dataset, path: str, width: int = 1280) -> Any:
    write_report(result, path, overwrite=True)
    page = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"file://{path}")
    page.wait_for_selector("html[data-ready]", state="attached")
    return page
