"""Tests of figures of studies: values, matches, intervals and missing values are those of the study."""

import json
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray
from scipy import stats

from repsim import figures
from repsim.cli import main
from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.files import save_result
from repsim.results.variables import CONTROL_PAIRS, RELATIONS, STUDY_ATTRIBUTES, VARIABLES
from repsim.results.versions import STUDY_VERSION
from repsim.study.layer_matching import best_match
from repsim.study.multiple_tests import holm

PAGE = Path(__file__).parents[2] / "docs" / "figures.md"
DRAWN = (
    "heatmap", "figure", "plot_grid", "plot_depths", "plot_pairs", "plot_families", "plot_shares", "plot_map",
    "plot_measures", "plot_trajectories", "plot_layers_by_step", "plot_convergence", "plot_trend", "plot_runs",
    "plot_every_point", "plot_drift", "plot_spans", "plot_models",
)  # fmt: skip
MODELS = {"net.seed0": "cnn", "net.seed1": "cnn", "vit.seed0": "vit", "vit.seed1": "vit"}
CNN = ("stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1")
VIT = ("patch_embed", "blocks.0", "blocks.1")
SHARES = ("input", "universal", "family", "seed", "family_and_seed", "universal_and_family")


def make_study(models: dict[str, str] | None = None, *, untrained: bool = True) -> xr.Dataset:
    """Make a study with random numbers in the format of docs/study-format.md."""
    models = MODELS if models is None else models
    rng = np.random.default_rng(0)
    layers = {m: CNN if family == "cnn" else VIT for m, family in models.items()}
    labels = [f"{m}/{layer}" for m in models for layer in layers[m]]
    owner = [m for m in models for _ in layers[m]]
    measures = ["cka", "cka given input", "mutual_knn", "procrustes"]
    pairs = list(combinations(models, 2))
    value = rng.uniform(0, 1, (4, len(labels), len(labels)))
    value = (value + value.swapaxes(1, 2)) / 2
    value[3] *= -1  # a study holds the negative of a distance
    p = np.full(value.shape, np.nan)
    p[0] = rng.uniform(0, 0.02, p[0].shape)
    own = np.array(owner)
    match = np.full((4, len(pairs), 2, 5), -1)
    for k, (a, b) in enumerate(pairs):
        for m in range(4):
            block = value[m][np.ix_(own == a, own == b)]
            for d, similarities in enumerate((block, block.T)):
                match[m, k, d, : len(similarities)] = best_match(similarities).columns
    value[2:, own[:, None] == own] = np.nan  # layers of one model are compared by debiased CKA only
    study = xr.Dataset(
        {
            "value": (("measure", "layer_a", "layer_b"), value),
            "p": (("measure", "layer_a", "layer_b"), p),
            "match": (("measure", "pair", "direction", "position"), match),
        },
        coords={
            "measure": measures,
            "kernel": measures[:2],
            "model": list(models),
            "family": ("model", list(models.values())),
            "layer_a": labels, "layer_b": labels,
            "model_a": ("layer_a", owner), "model_b": ("layer_b", owner),
            "pair": [f"{a} x {b}" for a, b in pairs],
            "pair_a": ("pair", [a for a, _ in pairs]), "pair_b": ("pair", [b for _, b in pairs]),
            "relation": ("pair", ["same architecture" if models[a] == models[b] else "other family" for a, b in pairs]),
            "kind_of_pair": list(RELATIONS),
            "n_samples": 120, "data": "digits", "readout": "mean",
        },
        attrs={"format": "repsim-study", "format_version": 1, "warnings": json.dumps([]), "summary": json.dumps([])},
    )  # fmt: skip
    index = rng.uniform(0.4, 0.8, (4, len(pairs)))
    for name, shift in {"index": 0.0, "index_low": -0.1, "index_high": 0.12, "control": -0.2, "threshold_index": -0.3,
                        "split_half": -0.02, "split_half_low": -0.12, "split_half_high": 0.1, "energy": -0.1,
                        "calibrated_index": -0.05}.items():  # fmt: skip
        values = index + shift
        if name == "control" and not untrained:
            values[:] = np.nan
        elif name.startswith(("split_half", "energy")):  # only debiased CKA has them
            values[2:] = np.nan
        study[name] = (("measure", "pair"), values)
    study["learned"] = study["split_half"].fillna(study["index"]) - study["control"]
    study["control_name"] = (("measure", "pair"), np.full(index.shape, "both untrained" if untrained else ""))
    others = np.random.default_rng(1)
    study = with_networks(study, models, others, untrained=untrained)
    study = with_families(study, list(dict.fromkeys(models.values())), others, untrained=untrained)
    states = ["trained", "untrained"][: 1 + untrained]
    share = rng.uniform(-0.1, 0.6, (len(states), 6, 4))
    dims = ("state", "share_of", "depth")
    study = study.assign_coords(state=states, share_of=list(SHARES), depth=np.linspace(0, 1, 4))
    study["share"], study["share_low"], study["share_high"] = (dims, share), (dims, share - 0.05), (dims, share + 0.05)
    if len(models) > 1:
        study = study.assign_coords({"map": measures[:3]})
        count = len(models)
        study["map_coordinates"] = (("map", "model", "axis"), rng.normal(size=(3, count, count)))
        study["map_eigenvalues"] = (("map", "axis"), np.sort(rng.uniform(0, 1, (3, count)))[:, ::-1])
        study["cluster"] = (("map", "model"), np.tile([0 if f == "cnn" else 1 for f in models.values()], (3, 1)))
        study["cluster_stability"] = ("map", np.full(3, 0.9))
    return study


def with_networks(
    study: xr.Dataset, models: dict[str, str], rng: np.random.Generator, *, untrained: bool
) -> xr.Dataset:
    """Add all networks: the trained ones, and two untrained ones of every architecture."""
    twins = {f"{family}+random-seed{k}": family for family in models.values() for k in range(2 * untrained)}
    everyone = models | twins
    similarity = rng.uniform(0, 1, (2, len(everyone), len(everyone)))
    similarity = (similarity + similarity.swapaxes(1, 2)) / 2
    similarity[:, range(len(everyone)), range(len(everyone))] = np.nan
    study["network_similarity"] = (("kernel", "network", "other_network"), similarity)
    return study.assign_coords(
        network=list(everyone),
        other_network=list(everyone),
        network_family=("network", list(everyone.values())),
        network_architecture=("network", list(everyone.values())),
        network_state=("network", ["trained"] * len(models) + ["untrained"] * len(twins)),
    )


def with_families(study: xr.Dataset, families: list[str], rng: np.random.Generator, *, untrained: bool) -> xr.Dataset:
    """Add effects of training on pairs of families, each with three controls; nothing is claimed."""
    pairs = list(combinations(families, 2))
    study = study.assign_coords(
        families=[f"{a} x {b}" for a, b in pairs],
        family_a=("families", [a for a, _ in pairs]),
        family_b=("families", [b for _, b in pairs]),
        control_pair=list(CONTROL_PAIRS),
    )
    trained = rng.uniform(0.5, 0.8, (4, len(pairs)))
    controls = rng.uniform(0, 0.4, (4, len(pairs), 3))
    effect = trained - controls.max(-1)
    if not untrained:
        trained[:] = controls[:] = effect[:] = np.nan
    study["trained_value"] = (("measure", "families"), trained)
    study["control_value"] = (("measure", "families", "control_pair"), controls)
    for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1)):
        study[f"effect{end}"] = (("measure", "families"), effect + shift)
        if end:
            study[f"effect_network{end}"] = (("kernel", "families"), effect[:2] + 2 * shift)
    study["claim_level"] = ("families", np.full(len(pairs), "", dtype="U13"))
    strongest = np.array(CONTROL_PAIRS)[controls.argmax(-1)]
    study["effect_against"] = (("measure", "families"), strongest if untrained else np.full_like(strongest, ""))
    return study


def complete(study: xr.Dataset) -> xr.Dataset:
    """Add the variables that a study file must have and figures do not need, as NaN."""
    study = study.assign_coords(
        architecture=("model", study["family"].values),
        other_model=study["model"].values,
        sample=[str(k) for k in range(120)],
        direction=["a to b", "b to a"],
        one_family=["cnn", "vit"],
        ceiling_of=("one_family", ["one model, no ceiling"] * 2),
    )
    sizes = dict(study.sizes) | {"layer_axis": 3}
    for entry in VARIABLES:
        dims = entry.dims.split(", ")
        for name in entry.names.keys() - study.data_vars.keys():
            fill = {"number": np.nan, "whole": 0, "text": ""}[entry.kind]
            study[name] = (dims, np.full([sizes[dim] for dim in dims], fill))
    for name, field in STUDY_ATTRIBUTES.items():
        value = {"text": "", "whole": 0, "texts": "[]", "stores": ""}[field.kind]
        study.attrs.setdefault(name, value)
    stores = [{"model": model, "checksum": "", "provenance": {}} for model in study["model"].values]
    return study.assign_attrs(stores=json.dumps(stores), format_version=STUDY_VERSION)


@pytest.fixture(scope="module")
def study() -> xr.Dataset:
    return make_study()


def drawn_by(ax: Axes, gid: str) -> list[Any]:
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def line(ax: Axes, gid: str) -> NDArray[np.float64]:
    return np.asarray(cast("Line2D", drawn_by(ax, gid)[0]).get_xydata())


def points(ax: Axes, gid: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(cast("PathCollection", one).get_offsets()) for one in drawn_by(ax, gid)])


def render(drawn: Figure) -> None:
    canvas: Any = FigureCanvasAgg(drawn)
    canvas.draw()


def texts(drawn: Figure) -> list[Text]:
    render(drawn)
    return [text for text in drawn.findobj(Text) if text.get_text().strip() and text.get_visible()]


# Stages


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (CNN, [1, 3]),
        (VIT, []),
        (["layer1.0@mean", "layer1.1@mean", "layer2.0@mean"], [2]),
        (["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "norm"], [2, 3]),
        (["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"], [2]),
        (["conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1"], [1, 2]),
        (["f.denseblock1.denselayer1", "f.denseblock1.denselayer2", "f.denseblock2.denselayer1"], [2]),
        (["blocks.0.norm1", "blocks.0.mlp.fc2", "blocks.1.norm1", "blocks.1.mlp.fc2"], []),
        (["layer1", "layer2", "layer3"], []),
        (["layer1.0", "layer1.1"], []),
        ([], []),
    ],
)  # fmt: skip
def test_stages_end_where_the_names_say(layers: Sequence[str], expected: list[int]) -> None:
    assert figures.boundaries(layers) == expected


def test_a_figure_of_a_result_says_what_its_line_is(study: xr.Dataset) -> None:
    one = figures.pick(study, "net.seed0 x vit.seed0", "cka")
    caption = figures.figure(one).get_supxlabel()
    assert "White line: the best order-preserving match" in caption.replace("\n", " ")
    assert "Holm over the cells" in caption.replace("\n", " ")
    assert "White" not in figures.figure(one.drop_vars(["match", "p"])).get_supxlabel()


def test_stages_are_parted_between_their_layers(study: xr.Dataset) -> None:
    ax = figures.heatmap(figures.pick(study, "net.seed0 x vit.seed0", "cka"))
    across = [line.get_ydata()[0] for line in ax.lines if line.get_gid() is None]  # type: ignore[index]
    assert across == [0.5, 2.5]
    assert len(figures.heatmap(figures.pick(study, "net.seed0 x vit.seed0", "cka"), stages=False).lines) == 1


# One pair


def test_a_pair_has_the_values_of_the_study_in_both_orders(study: xr.Dataset) -> None:
    one = figures.pick(study, "net.seed1 x vit.seed0", "cka")
    block = study["value"].sel(measure="cka").values[5:10, 10:13]
    np.testing.assert_array_equal(one.values, block)
    np.testing.assert_array_equal(one["p"].values, study["p"].sel(measure="cka").values[5:10, 10:13])
    assert one["layer_a"].values.tolist() == list(CNN)
    turned = figures.pick(study, "vit.seed0 x net.seed1", "cka")
    np.testing.assert_array_equal(turned.values, block.T)
    np.testing.assert_array_equal(turned["p"].values, one["p"].values.T)
    assert turned["model_a"].values[0] == "vit.seed0"
    for pair in (one, turned):
        np.testing.assert_array_equal(pair["match"].values, best_match(pair.values).columns)


def test_a_distance_is_a_distance_again(study: xr.Dataset) -> None:
    one = figures.pick(study, "net.seed0 x vit.seed0", "procrustes")
    assert one.attrs["sense"] == "distance"
    assert (one.values > 0).all()
    np.testing.assert_array_equal(one["match"].values, best_match(-one.values).columns)


@pytest.mark.slow
def test_the_path_is_the_best_match_given_or_computed(study: xr.Dataset) -> None:
    for measure in ("cka", "procrustes"):
        one = figures.pick(study, "net.seed0 x vit.seed0", measure)
        expected = np.stack([one["match"].values, np.arange(5)], 1)
        np.testing.assert_array_equal(line(figures.heatmap(one), "path"), expected)
        bare = one.drop_vars(["match", "p"], errors="ignore")
        np.testing.assert_array_equal(line(figures.heatmap(bare, path=True), "path"), expected)
        assert not drawn_by(figures.heatmap(bare), "path")
        assert not drawn_by(figures.heatmap(one, path=False), "path")


def test_marks_are_on_what_is_not_significant_after_holm(study: xr.Dataset) -> None:
    one = figures.pick(study, "net.seed0 x vit.seed0", "cka")
    rows, columns = np.nonzero(holm(one["p"].values) > 0.05)
    assert 0 < len(rows) < one.size
    assert len(rows) > (one["p"].values > 0.05).sum()
    np.testing.assert_array_equal(points(figures.heatmap(one), "marks"), np.stack([columns, rows], 1))
    assert not drawn_by(figures.heatmap(one, marks=False), "marks")
    with pytest.raises(InvalidInputError, match="has no p-values"):
        figures.heatmap(figures.pick(study, "net.seed0 x vit.seed0", "mutual_knn"), marks=True)


# Grids


def test_panels_share_one_scale(study: xr.Dataset) -> None:
    drawn = figures.plot_grid(study, ["cka"])
    images = [ax.images[0] for ax in drawn.axes if ax.images]
    assert len(images) == 6
    for one in images:
        np.testing.assert_array_equal(one.norm(np.linspace(-1, 1, 9)), images[0].norm(np.linspace(-1, 1, 9)))
    assert len(drawn.axes) == 7  # one colour bar
    sizes = {tuple(np.round(ax.get_position().size, 4)) for ax in drawn.axes[:6]}
    assert len(sizes) == 1


def test_equal_colours_are_equal_values_where_only_the_data_bound_the_range() -> None:
    layers = {f"layer_{side}": ["x", "y"] for side in "ab"}
    few, many = (
        xr.DataArray(
            [[0.0, 0.5], [1.0, top]], layers, ("layer_a", "layer_b"),
            attrs={"sense": "distance", "valid_range": [0.0, np.inf]},
        )
        for top in (1.0, 3.0)
    )  # fmt: skip
    left, right = (ax.images[0] for ax in figures.plot_grid([few, many]).axes[:2])
    shown = [one.to_rgba(np.asarray(one.get_array())) for one in (left, right)]
    np.testing.assert_array_equal(shown[0][0], shown[1][0])
    assert left.norm.vmax == 3


def test_every_panel_is_where_its_models_say_and_named_once(study: xr.Dataset) -> None:
    drawn = figures.plot_grid(study, ["cka given input"])
    named = [ax for ax in drawn.axes if ax.get_ylabel() and ax.images]
    assert {ax.get_ylabel() for ax in named} == {"net.seed1", "vit.seed0", "vit.seed1"}
    lowest = [ax for ax in drawn.axes if ax.get_xlabel() and ax.images]
    assert {ax.get_xlabel() for ax in lowest} == {"net.seed0", "net.seed1", "vit.seed0"}
    corner = next(ax for ax in named if ax in lowest)
    expected = figures.pick(study, f"{corner.get_ylabel()} x {corner.get_xlabel()}", "cka given input")
    np.testing.assert_array_equal(corner.images[0].get_array(), expected.values)


def test_measures_of_other_ranges_share_no_scale(study: xr.Dataset) -> None:
    with pytest.raises(InvalidInputError, match="differ in sense or range"):
        figures.plot_grid(study, ["cka", "mutual_knn"])
    two = figures.plot_grid(study, ["cka", "cka given input"], pairs=["net.seed0 x vit.seed0"])
    assert [ax.get_title() != "" for ax in two.axes[:2]] == [True, True]
    with pytest.raises(UnknownNameError, match="unknown pair of this study"):
        figures.plot_grid(study, pairs=["net x vit"])
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        figures.plot_grid([])


# Depths


def test_depth_curves_are_the_matches(study: xr.Dataset) -> None:
    ax = figures.plot_depths(study, "cka")
    assert len(drawn_by(ax, "pair")) == 6
    one = figures.pick(study, "net.seed0 x net.seed1", "cka")
    expected = np.stack([np.arange(5) / 4, one["match"].values / 4], 1)
    assert any(np.array_equal(np.asarray(curve.get_xydata()), expected) for curve in drawn_by(ax, "pair"))
    names = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert names == ["cnn \N{RIGHTWARDS ARROW} vit (4 pairs)", "cnn (1 pair)", "vit (1 pair)"]
    mean = np.asarray(drawn_by(ax, "mean")[0].get_xydata())
    across = [figures.pick(study, f"{a} x {b}", "cka")["match"].values / 2
              for a in ("net.seed0", "net.seed1") for b in ("vit.seed0", "vit.seed1")]  # fmt: skip
    np.testing.assert_allclose(mean[:, 1], np.mean(across, axis=0))


def test_pairs_run_from_the_family_named_first() -> None:
    mixed = make_study({"net.seed0": "cnn", "vit.seed0": "vit", "net.seed1": "cnn"})
    ax = figures.plot_depths(mixed, "cka", show="similarity")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts[0] == "cnn \N{RIGHTWARDS ARROW} vit (2 pairs)"
    one = figures.pick(mixed, "net.seed1 x vit.seed0", "cka")
    expected = one.values[np.arange(5), one["match"].values]
    assert any(np.array_equal(curve.get_ydata(), expected) for curve in drawn_by(ax, "pair"))


# Pairs


@pytest.mark.parametrize("measure", ["cka", "mutual_knn"])
def test_the_forest_is_the_table(study: xr.Dataset, measure: str) -> None:
    value = "split_half" if measure == "cka" else "index"
    ax = figures.plot_pairs(study, measure)
    at = study.sel(measure=measure)
    order = np.argsort([RELATIONS.index(relation) for relation in study["relation"].values], kind="stable")
    for name in {value, "index", "threshold_index"}:
        marks = points(ax, name)
        np.testing.assert_array_equal(marks[:, 0], at[name].values[order])
        above = 0.28 * (name == "index" != value)  # where it does not hide the other value
        np.testing.assert_allclose(marks[:, 1] + above, [1, 2, 3, 4, 6, 8])
    ends = [np.asarray(interval.get_xdata()).tolist() for interval in drawn_by(ax, "interval")]
    np.testing.assert_array_equal(ends, np.stack([at[f"{value}_low"], at[f"{value}_high"]], 1)[order])
    labels = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    pairs = [pair.replace(" x ", " \N{MULTIPLICATION SIGN} ") for pair in study["pair"].values[order].tolist()]
    alike = ("same architecture: cnn", "same architecture: vit")  # not pooled
    assert labels == ["other family", *pairs[:4], alike[0], pairs[4], alike[1], pairs[5]]
    beside = [text.get_text() for text in ax.texts]
    assert [f"{number:.2f}" for number in at["learned"].values[order]] == [t for t in beside if t != "learned"]


def test_the_forest_has_every_control_of_debiased_cka(study: xr.Dataset) -> None:
    ax = figures.plot_pairs(study, "cka")
    similarity = study["network_similarity"].sel(kernel="cka").values
    networks = study["network"].values.tolist()

    def mean(*pairs: tuple[str, str]) -> float:
        return float(np.mean([similarity[networks.index(a), networks.index(b)] for a, b in pairs]))

    cnn, vit = (tuple(f"{family}+random-seed{k}" for k in range(2)) for family in ("cnn", "vit"))
    expected = {
        "both untrained": mean(*((a, b) for a in cnn for b in vit)),
        "first trained": mean(*(("net.seed0", twin) for twin in vit)),
        "second trained": mean(*((twin, "vit.seed1") for twin in cnn)),
    }
    across = [pair for pair, relation in zip(study["pair"].values, study["relation"].values, strict=True)
              if relation == "other family"]  # fmt: skip
    row = across.index("net.seed0 x vit.seed1")
    for name, value in expected.items():
        assert points(ax, name)[row, 0] == pytest.approx(value)
    seeds = mean((cnn[0], cnn[1]))  # of one architecture, a network is not compared with itself
    assert points(ax, "both untrained")[4, 0] == pytest.approx(seeds)
    others = figures.plot_pairs(study, "mutual_knn")
    assert not drawn_by(others, "first trained")
    np.testing.assert_array_equal(np.sort(points(others, "both untrained")[:, 0]),
                                  np.sort(study["control"].sel(measure="mutual_knn").values))  # fmt: skip


# Families


@pytest.mark.parametrize("measure", ["cka given input", "mutual_knn"])
def test_effects_of_families_are_those_of_the_study(measure: str) -> None:
    three = make_study({"a.seed0": "a", "b.seed0": "b", "c.seed0": "c"})
    three["claim_level"][:2] = ["architectures", "networks"]
    ax = figures.plot_families(three, measure)
    at = three.sel(measure=measure)
    np.testing.assert_array_equal(points(ax, "effect"), np.stack([at["effect"], np.arange(3)], 1))
    for k, name in enumerate(CONTROL_PAIRS):
        np.testing.assert_allclose(points(ax, name)[:, 0], at["trained_value"] - at["control_value"][:, k])
    samples = [np.asarray(interval.get_xdata()).tolist() for interval in drawn_by(ax, "samples")]
    np.testing.assert_array_equal(samples, np.stack([at["effect_low"], at["effect_high"]], 1))
    networks = [np.asarray(interval.get_xdata()).tolist() for interval in drawn_by(ax, "networks")]
    if measure == "mutual_knn":
        assert not networks
    else:
        ends = three.sel(kernel=measure)
        np.testing.assert_array_equal(networks, np.stack([ends["effect_network_low"], ends["effect_network_high"]], 1))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert legend[:3] == ["claimed of these architectures", "claimed of these networks", "not shown"]
    fills = {tuple(np.round(mark.get_facecolors()[0], 2)) for mark in drawn_by(ax, "effect")}
    assert len(fills) == 3


def test_effects_given_the_labels_are_drawn_where_there_are_labels() -> None:
    study = make_study()
    both = {"cka": "cka given input", "cka given input": "cka given input and labels"}
    renamed = study.assign_coords(
        measure=[both.get(name, name) for name in study["measure"].values],
        kernel=[both.get(name, name) for name in study["kernel"].values],
    )
    assert "given input and labels" in figures.plot_families(renamed).get_xlabel().replace("\n", " ")
    with pytest.raises(InvalidInputError, match="no pair of families has untrained networks of both"):
        figures.plot_families(make_study(untrained=False))


# Shares


def test_shares_are_lines_that_may_go_below_0(study: xr.Dataset) -> None:
    ax = figures.plot_shares(study)
    for state in ("trained", "untrained"):
        for name in SHARES[:4]:
            expected = study["share"].sel(state=state, share_of=name)
            np.testing.assert_array_equal(line(ax, f"{state} {name}"), np.stack([expected["depth"], expected], 1))
    assert study["share"].min() < 0
    assert ax.get_ylim()[0] < study["share_low"].min()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["input", "common to families", "family", "seed", "untrained"]


def test_what_cannot_be_told_apart_is_its_sum() -> None:
    alone = make_study(untrained=False)
    for name in ("universal", "family"):
        alone["share"].loc[{"share_of": name}] = np.nan
    ax = figures.plot_shares(alone)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["input", "seed", "common to families + family"]
    assert "Only trained networks" in ax.figure.get_supxlabel().replace("\n", " ")
    alone["share"].loc[{"share_of": "input"}] = np.nan
    labels = [text.get_text() for text in figures.plot_shares(alone).get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["seed", "input + common to families + family"]


# The map


def test_models_are_where_the_map_has_them_and_their_names_apart(study: xr.Dataset) -> None:
    close = study.copy(deep=True)
    close["map_coordinates"].values[:, :3, :2] = [[0, 0], [0, 0.001], [0.001, 0]]
    for data in (study, close):
        ax = figures.plot_map(data, "cka")
        np.testing.assert_array_equal(points(ax, "model"), data["map_coordinates"].sel(map="cka").values[:, :2])
        render(ax.figure.figure)
        names = drawn_by(ax, "name")
        assert sorted(name.get_text() for name in names) == sorted(MODELS)
        boxes = np.array([Text.get_window_extent(name).extents for name in names])
        for k, box in enumerate(boxes):
            others = np.delete(boxes, k, axis=0)
            assert not ((others[:, :2] < box[2:]).all(1) & (others[:, 2:] > box[:2]).all(1)).any()
        (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
        assert x1 - x0 == pytest.approx(y1 - y0)
    parts = study["map_eigenvalues"].sel(map="cka").values
    assert f"{parts[0] / parts.sum():.0%}" in ax.get_xlabel()
    assert len({mark.get_paths()[0].vertices.shape for mark in drawn_by(ax, "model")}) == 2  # one marker per family


# Measure against measure


def test_points_are_the_pairs_of_values_with_their_rank_correlation(study: xr.Dataset) -> None:
    ax = figures.plot_measures(study, "cka", "cka given input")
    both = ("cka", "cka given input")
    values = [[figures.pick(study, pair, measure).values.ravel() for measure in both] for pair in study["pair"].values]
    x, y = np.concatenate(values, axis=1)
    marks = points(ax, "pairs")
    np.testing.assert_array_equal(marks[np.lexsort(marks.T)], np.stack([x, y], 1)[np.lexsort((x, y))])
    (written,) = drawn_by(ax, "statistics")
    assert f"{stats.spearmanr(x, y).statistic:.2f}" in written.get_text()
    assert f"{stats.kendalltau(x, y).statistic:.2f}" in written.get_text()
    assert len(drawn_by(ax, "identity")) == 1
    assert not drawn_by(figures.plot_measures(study, "cka", "mutual_knn"), "identity")


# All of them


@pytest.mark.slow
def test_text_can_be_read_at_column_width_and_nothing_is_cut_off(study: xr.Dataset) -> None:
    for name, _, drawn in figures.draw_all(study, width=3.3):
        assert drawn is not None
        assert drawn.get_figwidth() == pytest.approx(3.3), name
        assert min(float(text.get_fontsize()) for text in texts(drawn)) >= 6, name
        box, (across, up) = drawn.get_tightbbox(), drawn.get_size_inches()
        assert (min(box.x0, box.y0) >= 0, box.x1 <= across, box.y1 <= up) == (True, True, True), (name, box)
        assert "120 samples of digits, readout mean" in drawn.get_supxlabel().replace("\n", " ") or name == "heatmaps"


@pytest.mark.slow
def test_hostile_names_are_shown_as_they_are() -> None:
    names = {"$x$ <b>": "cnn", "a_{b": "cnn", "$": "$f^$"}
    for _, what, drawn in figures.draw_all(make_study(names)):
        assert drawn is not None, what
        texts(drawn)


@pytest.mark.slow
def test_equal_studies_give_equal_files(study: xr.Dataset, tmp_path: Path) -> None:
    for k in range(2):
        again = study.copy(deep=True)
        figures.save(figures.plot_grid(again, pairs=["net.seed0 x vit.seed0"]), tmp_path / f"grid{k}.pdf")
        figures.save(cast("Figure", figures.plot_map(again).figure), tmp_path / f"map{k}.svg")
    assert (tmp_path / "grid0.pdf").read_bytes() == (tmp_path / "grid1.pdf").read_bytes()
    assert (tmp_path / "map0.svg").read_bytes() == (tmp_path / "map1.svg").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "missing"),
    [
        (
            {"net.seed0": "cnn"},
            {"heatmaps", "depths", "similarity", "models", "pairs", "families", "shares", "map", "measures"},
        ),
        ({"net.seed0": "cnn", "net.seed1": "cnn"}, {"families", "models"}),
    ],
    ids=["one model", "one family"],
)
def test_what_a_study_cannot_show_is_said_in_a_line(models: dict[str, str], missing: set[str]) -> None:
    study = make_study(models, untrained=False)
    if len(models) == 1:
        study["share"][:] = np.nan
    results = {name: (text, drawn) for name, text, drawn in figures.draw_all(study)}
    assert {name for name, (_, drawn) in results.items() if drawn is None} == missing
    assert all("\n" not in text for text, _ in results.values())


@pytest.mark.slow
def test_missing_values_leave_the_rest(study: xr.Dataset) -> None:
    holed = study.copy(deep=True)
    for name in ("index_low", "split_half", "threshold_index", "learned", "trained_value", "effect", "effect_low"):
        holed[name][:, 0] = np.nan
    holed["value"][:, 0] = np.nan
    holed["match"][:, 0] = -1
    assert {name for name, _, drawn in figures.draw_all(holed) if drawn is None} == {"families"}  # there is one pair
    nothing = study.copy(deep=True)
    nothing["index"][:] = nothing["split_half"][:] = nothing["value"][:] = np.nan
    nothing["match"][:] = -1
    for draw in (figures.plot_pairs, figures.plot_depths):
        with pytest.raises(InvalidInputError, match="nothing to draw"):
            draw(nothing)
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        figures.plot_measures(nothing, "cka", "mutual_knn")
    with pytest.raises(InvalidInputError, match="expected a study"):
        figures.plot_pairs(xr.Dataset())
    with pytest.raises(UnknownNameError, match="did you mean cka"):
        figures.plot_map(study, "ckaa")


def test_every_figure_is_on_its_page() -> None:
    page = PAGE.read_text()
    for name in DRAWN:
        assert re.search(rf"figures\.{name}\(", page), name
    assert {name for name in figures.__all__ if name.startswith("plot_")} <= set(DRAWN)
    pictures = {path.name for path in (PAGE.parent / "pictures").iterdir()}
    assert set(re.findall(r"\(pictures/(.+?)\)", page)) <= pictures


@pytest.mark.slow
def test_the_commands_draw_studies(tmp_path: Path) -> None:
    study = complete(make_study({"net.seed0": "cnn", "vit.seed0": "vit"}))

    def run(*args: object) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    save_result(study, tmp_path / "study.nc")
    done = run("figures", tmp_path / "study.nc", "-o", tmp_path / "out", "--format", "svg", "--width", "3.3")
    assert done.exit_code == 0, done.output
    assert done.output.count(".svg  ") == 8
    pair = ("--pair", "net.seed0 x vit.seed0")
    assert run("heatmap", tmp_path / "study.nc", "-o", tmp_path / "a.png", *pair, "--no-path").exit_code == 0
    for args, message in (
        ((tmp_path / "study.nc", tmp_path / "study.nc"), "expected one study"),
        ((tmp_path / "study.nc", "--pair", "net.seed0 x vit"), "did you mean"),
        ((tmp_path / "study.nc", "-m", "cka", "-m", "mutual_knn"), "differ in sense or range"),
        ((tmp_path / "none.nc",), "no such file"),
    ):
        failed = run("heatmap", *args, "-o", tmp_path / "b.png")
        assert (failed.exit_code, message in failed.output) == (2, True), failed.output
    assert not (tmp_path / "b.png").exists()
