"""Tests that the page and the figures show the same stages, colours, shares, maps and pairs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from repsim import figures
from repsim.figures.canvas import COLOURS
from repsim.figures.scales import ImageOptions
from repsim.presentation.scales import scale_of
from repsim.report import captions
from repsim.report.payload import payload
from repsim.study.chance import calibrated
from tests.figures.test_study_figures import complete, make_study
from tests.report.test_payload import matrix

pytestmark = pytest.mark.slow

VIT = ["patch_embed", *(f"blocks.{k}" for k in range(4)), "norm"]
AWKWARD = {
    "ViT": VIT,
    "ResNet": ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"],
    "Swin": ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "norm", "head"],
    "sublayers": [f"blocks.{k}.{part}" for k in range(3) for part in ("attn.proj", "mlp.fc2", "norm1")],
    "readouts": ["conv1@mean", "layer1.0@mean", "layer1.1@mean", "layer2.0@mean", "layer2.1@mean"],
    "numbers": ["0", "1", "10", "10.1"],
    "a stage that comes back": ["a1.0", "a1.1", "b1.0", "b1.1", "a1.2"],
    "dots": [".", "..", ".0.", "layer1.", ".layer1.0"],
    "other alphabets": ["größe1.0", "größe1.1", "año2.0", "año2.1"],
    "one layer": ["only"],
}
PIECES = st.sampled_from(["a", "layer1", "blocks", "0", "1", "12", "norm@mean", ""])
NAME = st.lists(PIECES, min_size=1, max_size=4).map(".".join)
SCRIPTS = sorted((Path(__file__).parents[2] / "repsim" / "report").glob("*.js"))


def compared(rows: list[str], columns: list[str]) -> xr.Dataset:
    """Make a comparison of two models with these layers."""
    sides = {"layer_a": rows, "layer_b": columns}
    models = {"model_a": ("layer_a", ["a"] * len(rows)), "model_b": ("layer_b", ["b"] * len(columns))}
    values = np.linspace(0, 1, len(rows) * len(columns)).reshape(len(rows), len(columns))
    return xr.Dataset({"m": (tuple(sides), values)}, coords=sides | models | {"n_samples": 30, "data": "digits"})


def figure_stages(ax: Axes) -> tuple[list[int], list[int]]:
    """Return the positions of layers after a dashed line of the figure, along sides a and b."""
    ends = [[np.asarray(values, float) for values in line.get_data()] for line in ax.lines if line.get_gid() != "path"]
    up = sorted(round(y[0] + 0.5) for _, y in ends if np.ptp(y) == 0)
    return up, sorted(round(x[0] + 0.5) for x, y in ends if np.ptp(y) > 0)


def page_stages(part: dict[str, Any], a: str, b: str) -> tuple[list[int], list[int]]:
    """Return the positions of layers at which a stage begins on the page, along sides a and b."""
    first, second = (
        next(run["stages"] for run in part["sides"][side]["runs"] if run["model"] == model)
        for side, model in (("a", a), ("b", b))
    )
    return first, second


@pytest.mark.parametrize("layers", AWKWARD.values(), ids=AWKWARD)
def test_stages_are_those_of_the_figure(layers: list[str]) -> None:
    for rows, columns in ((layers, VIT), (VIT, layers)):
        result = compared(rows, columns)
        assert page_stages(payload([result])["parts"][0], "a", "b") == figure_stages(figures.heatmap(result["m"]))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=8, unique=True))
def test_stages_are_those_of_the_figure_whatever_layers_are_called(layers: list[str]) -> None:
    result = compared(layers, ["x"])
    assert page_stages(payload([result])["parts"][0], "a", "b") == figure_stages(figures.heatmap(result["m"]))


@pytest.fixture(scope="module")
def drawn() -> xr.Dataset:
    """Make a study with ResNets and ViTs."""
    study = complete(make_study())
    study["threshold_largest"][:] = 0.5
    return study


@pytest.mark.slow
def test_stages_of_every_pair_of_a_study_are_those_of_its_figure(drawn: xr.Dataset) -> None:
    (part,) = payload([drawn])["parts"]
    boundaries = 0
    for pair, a, b in zip(*(drawn[name].values.tolist() for name in ("pair", "pair_a", "pair_b")), strict=True):
        stages = page_stages(part, a, b)
        assert stages == figure_stages(figures.heatmap(figures.pick(drawn, pair)))
        boundaries += len(stages[0]) + len(stages[1])
    assert boundaries


RANGES = [(-1.0, 1.0), (0.0, 1.0), (-np.inf, 1.0), (0.0, np.inf), (-np.inf, np.inf), (-0.02, 1.0), (-1.0, 0.0)]


@pytest.mark.parametrize("sense", ["similarity", "distance"])
@pytest.mark.parametrize("valid_range", RANGES)
@pytest.mark.parametrize("values", [[-0.25, -0.001, 0, 0.3, 0.99], [0.2, 0.4], [0.5], [np.nan], [-0.9, -0.1]])
def test_a_value_has_one_colour(values: list[float], valid_range: tuple[float, float], sense: str) -> None:
    """The colours of the figure equal those that the page interpolates between its stops."""
    scale = scale_of(np.array(values), valid_range, sense)
    low, high = scale.shown
    norm, colours = ImageOptions().colours(scale)
    shown = np.linspace(low, high, 41)
    shown = shown[abs(shown) > 0.01 * (high - low)]  # at 0 the colour jumps
    page = np.array(
        [LinearSegmentedColormap.from_list("", scale.stops, 4096)((value - low) / (high - low)) for value in shown]
    )
    np.testing.assert_allclose(page, colours(norm(shown)), atol=0.02)


def test_measures_and_views_have_the_scale_of_the_figure(drawn: xr.Dataset) -> None:
    (part,) = payload([drawn])["parts"]
    for k, about in enumerate(part["measures"]):
        panel = figures.pick(drawn, str(drawn["pair"].values[0]), about["name"])
        assert about["label"].startswith(panel.attrs["label"])
        whole_range = scale_of(drawn["value"].values[k] * (1 if panel.sense == "similarity" else -1),
                               tuple(panel.valid_range), panel.sense)  # fmt: skip
        view = about["views"]["value"]
        ends = [view["low"], view["high"]]
        stops = part["palettes"][view["palette"]]
        if panel.sense == "distance":  # the page shows the negative
            ends, stops = [-ends[1], -ends[0]], [(1 - at, colour) for at, colour in stops[::-1]]
        np.testing.assert_allclose(ends, whole_range.shown)
        assert [colour for _, colour in stops] == [colour for _, colour in whole_range.stops]
        np.testing.assert_allclose([at for at, _ in stops], [at for at, _ in whole_range.stops], atol=1e-9)
        assert part["palettes"][about["views"]["calibrated"]["palette"]] == scale_of(np.zeros(1), (0, 1)).stops


def test_calibrated_cells_are_what_python_makes_of_them(study: xr.Dataset) -> None:
    """Compute them as part.js does: from the value, tau of the pair, and the value of equal layers."""
    (part,) = payload([study])["parts"]
    for k, about in enumerate(part["measures"]):
        value, most = matrix(part, "value", k), about["most"]
        for pair in range(study.sizes["pair"]):
            a, b = (study[f"model_{side}"].values == study[f"pair_{side}"].values[pair] for side in "ab")
            tau = float(study["threshold_largest"].values[k, pair])
            cells = calibrated(value[np.ix_(a, b)] + 1 - most, tau + 1 - most)
            expected = float(study["calibrated_largest"].values[k, pair])
            # permutations have their own pass, with another order of rounding
            assert cells.max() == pytest.approx(expected, abs=1e-6, nan_ok=True)
            np.testing.assert_allclose(np.maximum(0, (value[np.ix_(a, b)] - tau) / (most - tau)), cells, atol=1e-12)


@pytest.mark.parametrize("unknown", [(), ("input",), ("universal", "family"), ("input", "universal", "family")])
def test_shares_have_the_names_the_order_and_the_colours_of_the_figure(
    drawn: xr.Dataset, unknown: tuple[str, ...]
) -> None:
    changed = drawn.copy(deep=True)
    for name in unknown:
        changed["share"].loc[{"share_of": name}] = np.nan
    ax = figures.plot_shares(changed)
    lines = {str(line.get_label()): line for line in ax.lines if str(line.get_gid()).startswith("trained")}
    (part,) = payload([changed])["parts"]
    assert [share["label"] for share in part["shares"]] == list(lines)
    places: dict[Any, int] = {lines[share["label"]].get_color(): share["place"] for share in part["shares"]}
    assert len(places) == len(lines)  # all colours differ
    assert [COLOURS[place] for place in places.values()] == list(places)
    assert ("input" in unknown) == any(label.startswith("input + ") for label in lines)


def test_axes_of_a_map_carry_what_the_figure_says(drawn: xr.Dataset) -> None:
    (part,) = payload([drawn])["parts"]
    for name, shown in part["maps"].items():
        ax = figures.plot_map(drawn, name)
        for label, axis in ((ax.get_xlabel(), shown["axes"][0]), (ax.get_ylabel(), shown["axes"][1])):
            assert axis.replace(" %)", "%").replace("\n", " ") in label.replace("\n", " ")


def test_relations_come_in_the_order_of_the_figure(drawn: xr.Dataset) -> None:
    (part,) = payload([drawn])["parts"]
    ax = figures.plot_pairs(drawn)
    bold = [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert part["relations"] == list(dict.fromkeys(heading.partition(":")[0] for heading in bold))
    assert drawn["kind_of_pair"].values.tolist() == part["coords"]["kind_of_pair"]


def test_nothing_is_decided_twice() -> None:
    """The scripts contain no colour scale, no names of shares or relations, and no search for stages."""
    scripts = "".join(path.read_text("utf-8") for path in SCRIPTS)
    for word in ("#000004", "family_and_seed", "same architecture", "valid_range", "lastIndexOf"):
        assert word not in scripts, word


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs scripts without a browser, is not installed")
def test_numbers_are_written_alike() -> None:
    """text.js and captions.py format numbers in the same way."""
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=50), *(rng.normal(size=50) / 1e4), 0.0, 1.0, -1.0, 1e-9, -1e-9, -0.00004, float("nan")]
    script = SCRIPTS[0].with_name("text.js").read_text("utf-8")
    code = f"""
const document = {{ createElement: () => ({{ getContext: () => null }}) }};
{script}
const values = {json.dumps([None if np.isnan(value) else value for value in values])}.map((value) => value ?? NaN);
const digits = [0, 1, 2, 3, 4];
const written = (value, other, n) => [fixed(value, n), interval(value, other, n)];
console.log(JSON.stringify(values.map((value, k) => digits.map((n) => written(value, values[k - 1] ?? 0, n)))));
"""
    run = subprocess.run([str(shutil.which("node")), "-e", code], capture_output=True, encoding="utf-8", check=True)
    for k, (value, row) in enumerate(zip(values, json.loads(run.stdout), strict=True)):
        other = values[k - 1] if k else 0.0
        assert row == [[captions.fixed(value, n), captions.interval(value, other, n)] for n in range(5)]
