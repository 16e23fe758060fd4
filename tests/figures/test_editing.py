"""Tests of what a figure's user changes: keywords, titles, colours, fonts and styles, and the size of the file."""

import logging
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from repsim import figures
from repsim.cli import main
from repsim.errors import InvalidInputError, MissingFontWarning, UnknownNameError
from repsim.figures.keywords import check_values
from repsim.figures.styles import STYLES
from repsim.results.files import save_result
from tests.figures.test_figures import CKA, SVCCA, colours, lightness, result
from tests.figures.test_study_figures import MODELS, complete, drawn_by, make_study, render
from tests.series_example import training

STUDY = make_study()
SERIES = training(every_point=True)
PAIR = figures.pick(STUDY, "net.seed0 x vit.seed0", "cka")
IMAGES: dict[str, Callable[..., Any]] = {
    "heatmap": lambda **k: figures.heatmap(PAIR, **k),
    "figure": lambda **k: figures.figure(PAIR, **k),
    "plot_grid": lambda **k: figures.plot_grid(STUDY, **k),
    "plot_models": lambda **k: figures.plot_models(STUDY, **k),
    "plot_layers_by_step": lambda **k: figures.plot_layers_by_step(SERIES, **k),
    "plot_every_point": lambda **k: figures.plot_every_point(SERIES, **k),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "plot_depths": lambda **k: figures.plot_depths(STUDY, **k),
    "plot_pairs": lambda **k: figures.plot_pairs(STUDY, **k),
    "plot_families": lambda **k: figures.plot_families(STUDY, **k),
    "plot_shares": lambda **k: figures.plot_shares(STUDY, **k),
    "plot_map": lambda **k: figures.plot_map(STUDY, **k),
    "plot_measures": lambda **k: figures.plot_measures(STUDY, "cka", "mutual_knn", **k),
    "plot_trajectories": lambda **k: figures.plot_trajectories(SERIES, **k),
    "plot_convergence": lambda **k: figures.plot_convergence(SERIES, **k),
    "plot_trend": lambda **k: figures.plot_trend(SERIES, **k),
    "plot_runs": lambda **k: figures.plot_runs(SERIES, **k),
    "plot_drift": lambda **k: figures.plot_drift(SERIES, **k),
}
PAGES = {"plot_grid"}
"""Figures with the width of a page."""
QUICK = {"heatmap", "plot_layers_by_step", "plot_pairs", "plot_map", "plot_trajectories"}
"""Figures of different kinds, which quick tests draw; the others are drawn in slow tests."""


def drawn_in_turn(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrise a test with names of figures, of which only a few are quick."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else slow) for name in names])


@pytest.fixture(autouse=True)
def _with_arial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine that has Arial, with the letters of another font."""
    font = next(font for font in fontManager.ttflist if font.name == "DejaVu Sans" and font.style == "normal")
    arial = type(font)(**{**{name: getattr(font, name) for name in font.__dataclass_fields__}, "name": "Arial"})
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, arial])


def figure_of(drawn: Any) -> Figure:
    return drawn if isinstance(drawn, Figure) else drawn.figure.figure


def drawn_values(image: AxesImage) -> NDArray[Any]:
    values = image.get_array()
    assert values is not None
    return values


def assert_inside(drawn: Figure) -> None:
    render(drawn)
    box, (width, height) = drawn.get_tightbbox(), drawn.get_size_inches()
    assert min(box.x0, box.y0) > -0.01
    assert box.x1 < width + 0.01
    assert box.y1 < height + 0.01


def width_of(path: Path) -> float:
    """Return the width of a file in inches, from the file itself."""
    data = path.read_bytes()
    match path.suffix:
        case ".pdf":
            box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", data)
        case ".svg":
            box = re.search(rb'width="([\d.]+)pt"', data)
        case ".eps":
            box = re.search(rb"%%HiResBoundingBox: 0.0+ 0.0+ ([\d.]+)", data)
        case _:
            with Image.open(path) as picture:
                return float(picture.width / picture.info["dpi"][0])
    assert box is not None
    return float(box[1]) / 72


# Widths and styles


@drawn_in_turn([*IMAGES, *OTHERS])
def test_every_figure_is_as_wide_as_a_column_of_its_style_and_cuts_nothing_off(name: str, tmp_path: Path) -> None:
    style = STYLES["nature"]
    drawn = figure_of((IMAGES | OTHERS)[name](style="nature"))
    assert_inside(drawn)
    figures.save(drawn, tmp_path / "a.pdf")
    assert width_of(tmp_path / "a.pdf") == pytest.approx(style.page if name in PAGES else style.column, abs=1e-5)
    assert {text.get_fontfamily()[0] for text in drawn.findobj(Text) if text.get_text()} == {"Arial"}


@pytest.mark.parametrize("suffix", list(figures.FORMATS))
def test_every_format_is_as_wide_as_the_figure(suffix: str, tmp_path: Path) -> None:
    with mpl.rc_context({"savefig.bbox": "tight"}):  # would change the width
        figures.save(figure_of(figures.plot_shares(STUDY, width=3.5)), path := tmp_path / f"a{suffix}")
    assert width_of(path) == pytest.approx(3.5, abs=1 / 300)


@pytest.mark.parametrize(("style", "column"), [("neurips", 5.5), pytest.param("talk", 6.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["heatmap", "plot_pairs", "plot_map"])
def test_styles_set_widths_and_sizes_for_one_figure_only(name: str, style: Any, column: float) -> None:
    before = dict(mpl.rcParams)
    drawn = figure_of((IMAGES | OTHERS)[name](style=style))
    assert drawn.get_figwidth() == column
    assert_inside(drawn)
    assert drawn.axes[0].xaxis.label.get_fontsize() == STYLES[style].settings["axes.labelsize"]
    assert dict(mpl.rcParams) == before
    with figures.style_context(style):
        assert figures.plot_shares(STUDY).figure.figure.get_figwidth() == column
    assert figures.plot_shares(STUDY).figure.figure.get_figwidth() == 3.3


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown style of figures 'natur'; did you mean nature"):
        figures.plot_shares(STUDY, style="natur")  # type: ignore[arg-type]


def test_a_font_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])
    with pytest.warns(MissingFontWarning, match="Helvetica is not installed"), figures.style_context(font="Helvetica"):
        assert mpl.rcParams["font.family"] == mpl.rcParamsDefault["font.family"]


def test_settings_of_matplotlib_count() -> None:
    rc: dict[Any, Any] = {"font.size": 12, "font.family": "STIXGeneral", "lines.linewidth": 3.0, "axes.linewidth": 2.0}
    with mpl.rc_context(rc):
        big = figures.plot_trajectories(SERIES)
        heat = figures.heatmap(PAIR)
    plain = figures.plot_trajectories(SERIES)
    assert big.xaxis.label.get_fontsize() == 12 > float(plain.xaxis.label.get_fontsize())
    assert heat.yaxis.label.get_fontsize() == 12
    for ax in (big, heat):
        assert_inside(figure_of(ax))  # ticks are made here, when the settings are others
        assert {text.get_fontfamily()[0] for text in figure_of(ax).findobj(Text) if text.get_text()} == {"STIXGeneral"}
    assert big.lines[0].get_linewidth() == pytest.approx(2 * plain.lines[0].get_linewidth())
    assert big.spines["left"].get_linewidth() == 2.0
    with mpl.rc_context({"savefig.dpi": 50, "figure.dpi": 70}):
        assert figure_of(figures.plot_shares(STUDY)).dpi == 70


def test_a_style_sheet_with_a_dark_background_hides_nothing() -> None:
    with mpl.rc_context({"text.color": "white", "axes.facecolor": "black", "axes.edgecolor": "white"}):
        ax = figures.plot_pairs(STUDY)
    (cross, *_) = drawn_by(ax, "threshold_index")
    np.testing.assert_array_equal(cross.get_edgecolors()[0], [1, 1, 1, 1])


# Changes afterwards


@pytest.mark.slow
@drawn_in_turn(name for name in [*IMAGES, *OTHERS] if name not in {"figure", "plot_grid"})
def test_a_title_that_is_set_later_has_its_room(name: str, tmp_path: Path) -> None:
    ax = (IMAGES | OTHERS)[name]()
    drawn = figure_of(ax)
    width = drawn.get_figwidth()
    ax.set_title("A title\nin two lines", fontsize=14)
    figures.save(drawn, tmp_path / "a.pdf")
    assert_inside(drawn)
    assert drawn.get_figwidth() == width
    box = ax.title.get_window_extent()
    for other in [ax.get_legend(), *(text for text in ax.texts if text.get_gid() != "name"), *ax.patches]:
        if other is not None and other.get_visible():
            assert not box.overlaps(other.get_window_extent())
    figures.save(drawn, tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_size_that_is_set_later_stays() -> None:
    ax = figures.plot_shares(STUDY)
    figure_of(ax).set_size_inches(5, 6)
    ax.set_title("title", fontsize=20)
    assert_inside(figure_of(ax))
    np.testing.assert_array_equal(figure_of(ax).get_size_inches(), [5, 6])


def test_labels_that_are_enlarged_later_push_the_axes() -> None:
    ax = figures.heatmap(PAIR)
    ax.set_ylabel("y", fontsize=40)
    ax.images[0].colorbar.ax.set_ylabel("bar", fontsize=40)  # type: ignore[union-attr]
    assert_inside(figure_of(ax))


def test_limits_and_colour_maps_that_are_set_later_stay(tmp_path: Path) -> None:
    data = result(2, 3)["cka"].copy(data=[[-0.5, -0.1, 0.0], [0.2, 0.5, 1.0]])
    ax = figures.heatmap(data)
    image, bar = ax.images[0], ax.images[0].colorbar
    assert bar is not None
    image.set_clim(-0.25, 0.5)
    figures.save(figure_of(ax), tmp_path / "a.png")
    drawn = colours(ax)
    assert bar.ax.get_ylim() == (-0.25, 0.5)
    assert lightness(drawn[0, 2]) < 10  # 0 is still black, and values below it are still green
    assert drawn[0, 1, 1] > drawn[0, 1, 0]
    np.testing.assert_array_equal(drawn[1, 1], drawn[1, 2])  # both at the end of the colours or beyond it
    image.set_clim(0.2, 0.8)
    assert lightness(colours(ax)[1, 0]) < 10
    image.set_cmap("viridis")
    figures.save(figure_of(ax), tmp_path / "b.png")
    expected = np.array(mpl.colormaps["viridis"](Normalize(0.2, 0.8)(data.values)))[..., :3] * 255
    np.testing.assert_allclose(colours(ax), expected, atol=1)
    assert bar.cmap.name == "viridis"
    assert bar.ax.get_ylim() == (0.2, 0.8)


def test_panels_of_a_grid_share_limits_that_are_set_later() -> None:
    drawn = figures.plot_grid(STUDY, ["cka"])
    images = [ax.images[0] for ax in drawn.axes if ax.images]
    images[1].set_clim(0, 0.5)
    assert {image.get_clim() for image in images} == {(0, 0.5)}
    assert drawn.axes[-1].get_ylim() == (0, 0.5)  # the colour bar


# The user's axes


@pytest.mark.parametrize("size", [(3.5, 2.0), (7.0, 3.2), (3.3, 2.6)])
@pytest.mark.parametrize("rows", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_labels_are_not_cut_off_on_axes_of_the_user(size: tuple[float, float], rows: int) -> None:
    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    for ax in drawn.subplots(1, 2 if size[0] == 7 else 1, squeeze=False).flat:
        figures.heatmap(result(rows, rows, models=("a_resnet_with_a_long_name", "vit"))["cka"], ax)
    assert_inside(drawn)


# Keywords


@drawn_in_turn(IMAGES)
def test_every_image_takes_the_keywords_of_images(name: str) -> None:
    drawn = figure_of(
        IMAGES[name](cmap="viridis", vmin=0.1, vmax=0.4, annotate=".1f", title="A title", im_kw={"alpha": 0.9})
    )
    image = drawn.axes[0].images[0]
    assert (image.get_cmap().name, image.get_clim(), image.get_alpha()) == ("viridis", (0.1, 0.4), 0.9)
    assert [text.get_text() for text in drawn.findobj(Text)].count("A title") == 1
    numbers = [text.get_text() for text in drawn.axes[0].texts if text.get_gid() == "number"]
    values = np.ma.masked_invalid(drawn_values(image))
    assert numbers == [f"{value:z.1f}" for value in values.compressed()]
    assert "Brighter" not in drawn.get_supxlabel()  # not so in other colours
    assert_inside(drawn)
    bare = figure_of(IMAGES[name](cbar=False))
    assert bare.axes[0].images[0].colorbar is None
    with pytest.raises(UnknownNameError, match="colour map of matplotlib"):
        IMAGES[name](cmap="virids")
    with pytest.raises(InvalidInputError, match="a norm has limits of its own"):
        IMAGES[name](norm=Normalize(0, 1), vmin=0)
    with pytest.raises(InvalidInputError, match="expected vmin < vmax"):
        IMAGES[name](vmin=1, vmax=0)
    with pytest.raises(TypeError, match="colormap"):
        IMAGES[name](colormap="viridis")


def test_a_norm_of_the_user_is_used() -> None:
    norm = LogNorm(0.01, 1)
    image = figures.heatmap(result(svcca=SVCCA)["svcca"] + 0.01, norm=norm).images[0]
    assert image.norm is norm


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OTHERS))
def test_every_figure_takes_a_title_and_lines_take_colours(name: str) -> None:
    options = {"cmap": "viridis"} if name in {"plot_trajectories", "plot_runs", "plot_drift"} else {}
    ax = OTHERS[name](title="A title", **options)
    assert ax.get_title() == "A title"
    assert_inside(figure_of(ax))
    if options:
        lines = [line for line in ax.lines if str(line.get_gid()).startswith(("layer", "point"))]
        assert lines[0].get_color() == "#440154"


def test_names_are_replaced_and_stages_stay() -> None:
    ax = figures.heatmap(PAIR, labels={"stem": "conv", "net.seed0": "ResNet"})
    assert ax.get_yticklabels()[0].get_text() == "conv"
    assert ax.get_ylabel() == "ResNet, readout mean"
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_gid() is None]  # type: ignore[index]
    assert dashed == [0.5, 2.5]
    for plot in (figures.plot_pairs, figures.plot_models):
        drawn = plot(STUDY, labels={"net.seed0": "ResNet"})
        assert any("ResNet" in text.get_text() for text in drawn.get_yticklabels())
    with pytest.raises(UnknownNameError, match=r"layer or model of this figure 'stm'; did you mean stem\? known: "):
        figures.heatmap(PAIR, labels={"stm": "conv"})
    with pytest.raises(UnknownNameError, match=r"layer of this figure 'stm'; did you mean stem\? known: .*stem"):
        figures.heatmap(PAIR, order=["stm"])
    with pytest.raises(UnknownNameError, match="unknown model of this study"):
        figures.plot_pairs(STUDY, labels={"net": "x"})


def test_layers_are_drawn_in_the_order_of_the_user_with_their_matches() -> None:
    order = ["layer2.1", "stem", "blocks.1", "blocks.0"]
    ax = figures.heatmap(PAIR, order=order)
    expected = PAIR.sel(layer_a=order[:2], layer_b=order[2:])
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    names = PAIR["layer_b"].values[PAIR["match"].sel(layer_a=order[:2]).values].tolist()
    path = [order[2:].index(name) for name in names if name in order[2:]]
    (line,) = drawn_by(ax, "path")
    assert np.asarray(line.get_xdata()).tolist() == path
    with pytest.raises(UnknownNameError, match="unknown layer of this figure"):
        figures.heatmap(PAIR, order=["stm"])


# Matrix of models


def test_the_matrix_is_symmetric_with_similar_models_beside_each_other() -> None:
    ax = figures.plot_models(STUDY, "cka", order="study")
    table = np.ma.filled(drawn_values(ax.images[0]), np.nan)
    for pair, a, b in zip(STUDY["pair"].values, STUDY["pair_a"].values, STUDY["pair_b"].values, strict=True):
        i, j = list(MODELS).index(a), list(MODELS).index(b)
        value = float(STUDY["split_half"].sel(measure="cka", pair=pair))
        assert table[i, j] == table[j, i] == value
    assert np.isnan(np.diag(table)).all()
    clear = STUDY.copy(deep=True)
    one = {"net.seed0", "vit.seed1"}
    same = [({a, b} <= one) or not ({a, b} & one) for a, b in zip(clear["pair_a"].values, clear["pair_b"].values)]  # noqa: B905
    clear["split_half"][:2] = np.where(same, 0.9, 0.1)
    ax = figures.plot_models(clear)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert one in ({*names[:2]}, {*names[2:]})
    (tree,) = [child for child in ax.child_axes if child.get_gid() == "tree"]
    heights = np.concatenate(tree.collections[0].get_segments())[:, 1]  # type: ignore[attr-defined]
    assert sorted(set(np.round(heights, 6))) == [0, 1]  # models of a group have no distance
    box = ax.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01)
    order = ["vit.seed1", "net.seed0", "net.seed1"]
    chosen = figures.plot_models(STUDY, order=order)
    assert [text.get_text() for text in chosen.get_yticklabels()] == order
    with pytest.raises(InvalidInputError, match="fewer than three models"):
        figures.plot_models(make_study({"net.seed0": "cnn", "vit.seed0": "vit"}))


@pytest.mark.slow
def test_forests_of_many_pairs_fit_on_a_page() -> None:
    many = make_study({f"net{k}.seed0": "cnn" if k < 6 else "vit" for k in range(12)})
    assert many.sizes["pair"] == 66
    ax = figures.plot_pairs(many)
    assert figure_of(ax).get_figheight() < 9.7
    assert "of 66 pairs of models are drawn" in figure_of(ax).get_supxlabel().replace("\n", " ")
    top = figures.plot_pairs(many, order="value", most=5)
    values = np.sort(many["split_half"].sel(measure="cka given input").values)[::-1][:5]
    drawn = np.concatenate([mark.get_offsets() for mark in drawn_by(top, "split_half")])[:, 0]
    np.testing.assert_array_equal(drawn, values)


# What an editor would send back


def test_intervals_are_in_front_of_their_marks_and_higher() -> None:
    narrow = STUDY.copy(deep=True)
    for end in ("low", "high"):
        narrow[f"split_half_{end}"] = narrow["split_half"] + {"low": -0.004, "high": 0.004}[end]
    ax = figures.plot_pairs(narrow)
    interval, dot = drawn_by(ax, "interval")[0], drawn_by(ax, "split_half")[0]
    assert interval.get_zorder() > dot.get_zorder()
    assert interval.get_marker() == "|"
    assert interval.get_markersize() > dot.get_sizes()[0] ** 0.5
    assert drawn_by(ax, "threshold_index")[0].get_paths()[0].vertices[:, 0].std() > 0  # no stroke on the line at 0


def test_0_is_always_in_view() -> None:
    alone = make_study(untrained=False)
    alone["threshold_index"][:] = np.nan
    low, high = figures.plot_pairs(alone).get_xlim()
    assert low < 0 < high


def test_a_heatmap_has_a_footnote_and_names_its_measure_once() -> None:
    drawn = figure_of(figures.heatmap(PAIR))
    assert "120 samples" in drawn.get_supxlabel()
    for one in (drawn, figures.figure(result(cka=CKA, svcca=SVCCA))):
        texts = [text.get_text().replace("\n", " ") for text in one.findobj(Text)]
        assert sum("CKA (linear, debiased)" in text for text in texts) == 1
    bare = figure_of(figures.heatmap(PAIR, cbar=False)).get_supxlabel().replace("\n", " ")
    assert "CKA (linear, debiased)." in bare


# Files


@pytest.mark.slow
def test_eps_and_tiff_are_the_same_files_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn = figure_of(figures.plot_trajectories(SERIES))
    band: Any = drawn.axes[0].collections[0]  # by its types, colours may be no array
    before = band.get_facecolor().tolist(), band.get_alpha()
    for name in "ab":
        for suffix in ("eps", "tiff"):
            figures.save(drawn, tmp_path / f"{name}.{suffix}", dpi=100)
    for suffix in ("eps", "tiff"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert b"CreationDate" not in (tmp_path / "a.eps").read_bytes()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # of transparency
    assert (band.get_facecolor().tolist(), band.get_alpha()) == before
    with Image.open(tmp_path / "a.tiff") as picture:
        assert (picture.mode, picture.info["dpi"]) == ("RGB", (100, 100))


# Commands


@pytest.mark.slow
def test_the_commands_take_the_look_of_figures(tmp_path: Path) -> None:
    save_result(complete(make_study({"net.seed0": "cnn", "vit.seed0": "vit"})), tmp_path / "study.nc")

    def run(*args: object) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    pair = ("heatmap", tmp_path / "study.nc", "--pair", "net.seed0 x vit.seed0")
    look = ("--style", "nature", "--title", "Title", "--range", 0, 0.8, "--cmap", "Greys", "--annotate")
    names = ("--label", "stem=conv", "--order", "stem,layer1.0,blocks.1,blocks.0")
    done = run(*pair, *look, *names, "-o", tmp_path / "a.svg")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "a.svg").read_text()
    assert width_of(tmp_path / "a.svg") == pytest.approx(STYLES["nature"].column, abs=1e-5)
    for shown in (">Title<", ">conv<", ">blocks.1<", "Arial"):
        assert shown in text
    assert ">layer2.0<" not in text
    done = run(*pair, "--width", 4, "--dpi", 100, "--no-cbar", "-o", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 400
    options = ("--only", "map", "--only", "pairs", "--format", "eps", "--label", "vit=Transformer", "--font", "Arial")
    done = run("figures", tmp_path / "study.nc", "-o", tmp_path / "out", *options, "--font-size", 9)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["map.eps", "pairs.eps"]
    for args, message in (
        (("--label", "stem"), "expects NAME=TEXT"),
        (("--label", "stm=x"), "did you mean stem"),
        (("--cmap", "grys"), "unknown colour map"),
        (("--range", 1, 0), "the lower one first"),
        (("--range", 0, "nan"), "the lower one first"),
    ):
        failed = run(*pair, *args, "-o", tmp_path / "b.png")
        assert (failed.exit_code, message in failed.output) == (2, True), failed.output
    failed = run("figures", tmp_path / "study.nc", "-o", tmp_path / "out", "--range", 0.5, 0.5)
    assert (failed.exit_code, "the lower one first" in failed.output) == (2, True), failed.output
    failed = run("figures", tmp_path / "study.nc", "-o", tmp_path / "out", "--only", "maps")
    assert (failed.exit_code, "did you mean map" in failed.output) == (2, True), failed.output


def test_axes_of_the_user_keep_their_width() -> None:
    mine: Axes = Figure(figsize=(6, 4), layout="constrained").subplots()
    assert figures.plot_pairs(STUDY, ax=mine, style="nature") is mine
    assert isinstance(STUDY, xr.Dataset)
    assert figure_of(mine).get_figwidth() == 6


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ({"cmap": 3}, "expected cmap=a colour map"), ({"vmin": "a"}, "expected vmin=a number"),
        ({"width": -1}, "expected width=a width in inches above 0"), ({"width": True}, "expected width="),
        ({"labels": "x"}, "expected labels=a mapping"), ({"labels": {"stem": 1}}, "expected labels=.* with 1"),
        ({"title": 3}, "expected title=a text"), ({"norm": 2}, "expected norm="), ({"im_kw": 3}, "expected im_kw="),
        ({"style": 3}, "expected style="), ({"cbar": "no"}, "expected cbar=True or False"),
        ({"order": 3}, "expected order=a sequence of names"), ({"order": [1]}, "expected order=.* got one with 1"),
        ({"annotate": "x"}, "expected annotate=True, False or a format of numbers such as '.2f', got 'x'"),
        ({"annotate": "%.2f"}, "expected annotate="), ({"annotate": "c"}, "expected annotate="),
        ({"path": "no"}, "expected path=True or False"), ({"marks": 3}, "expected marks="),
        ({"stages": "no"}, "expected stages="), ({"ax": 3}, "expected ax=axes of matplotlib"),
        ({"title": r"$\frac{1}$"}, "the formula in title=.* is not valid"),
        ({"im_kw": {3: 4}}, "expected im_kw=.* with 3"),
        ({"im_kw": {"alpha": 7}}, r"imshow does not take im_kw=\{'alpha': 7\}: alpha \(7\) is outside 0-1 range"),
        ({"im_kw": {"colour": 1}}, "imshow does not take im_kw=.*'colour'"),
    ],
)  # fmt: skip
def test_a_keyword_of_a_wrong_type_is_one_clear_error(keyword: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        figures.heatmap(PAIR, **keyword)


@pytest.mark.parametrize("title", ["5 US$ a layer\n6 US$ a network", "a $x\n y$", "CKA\n$n = 30$", "one $ only"])
def test_every_line_of_a_title_has_formulas_of_its_own(title: str) -> None:
    assert figures.heatmap(PAIR, title=title).get_title() == title


def test_a_title_is_not_read_as_formulas_where_matplotlib_does_not() -> None:
    with mpl.rc_context({"text.parse_math": False}):
        assert figures.heatmap(PAIR, title="$$ CKA").get_title() == "$$ CKA"


def test_an_order_may_be_any_collection_of_names() -> None:
    names = [str(name) for name in PAIR[PAIR.dims[0]].values]
    for order in (pd.Index(names), np.array(names), dict.fromkeys(names).keys()):
        check_values({"order": order})
    with pytest.raises(InvalidInputError, match="expected order=a sequence of names"):
        check_values({"order": iter(names)})


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [({"size": 0}, "expected size=a size in points above 0"), ({"size": "x"}, "expected size="),
     ({"font": 3}, "expected font=the name of a font family"), ({"style": 3}, "expected style=")],
)  # fmt: skip
def test_a_style_of_a_wrong_type_is_one_clear_error(keyword: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected), figures.style_context(**keyword):
        pass


@pytest.mark.parametrize("form", ["", ".1f", "+.2f", ".0%", "5.2e", "g"])
def test_every_format_of_numbers_is_a_format_of_cells(form: str) -> None:
    cells = [text.get_text() for text in figures.heatmap(PAIR, annotate=form).texts]
    assert cells[: PAIR.shape[1]] == [f"{value:{form}}" for value in PAIR.values[0]] if form else not cells


@pytest.mark.parametrize("name", ["plot_trajectories", "plot_layers_by_step"])
def test_what_a_series_does_not_show_is_one_clear_error(name: str) -> None:
    with pytest.raises(InvalidInputError, match="expected show='similarity' or show='calibrated', got 'depth'"):
        {**IMAGES, **OTHERS}[name](show="depth")
    with pytest.raises(InvalidInputError, match="expected comparison=the name of a comparison, got 3"):
        {**IMAGES, **OTHERS}[name](comparison=3)


def test_an_argument_without_its_keyword_is_checked_as_well() -> None:
    with pytest.raises(InvalidInputError, match="expected measure=the name of a measure, got 3"):
        figures.plot_pairs(STUDY, 3)  # type: ignore[arg-type]


def test_a_keyword_that_does_not_exist_names_similar_ones() -> None:
    with pytest.raises(TypeError, match="plot_grid has no keyword 'vmx'; did you mean vmax"):
        figures.plot_grid(STUDY, vmx=1)  # type: ignore[call-arg]


def test_text_that_leaves_no_room_is_an_error_and_no_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with figures.style_context(size=60):
            drawn = figures.plot_pairs(STUDY, width=2).figure.figure
        with pytest.raises(InvalidInputError, match=r"no room for the axes in a figure of 2.0 inches; give more"):
            figures.save(drawn, tmp_path / "crowded.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidInputError, match="the font has no name"), figures.style_context(font=""):
        pass


@pytest.mark.slow
def test_figures_of_a_study_take_the_look_of_images_on_the_command_line(tmp_path: Path) -> None:
    save_result(complete(STUDY), tmp_path / "study.nc")
    look = ["--cmap", "viridis", "--range", "0", "0.5", "--title", "Mine", "--format", "svg"]
    run = CliRunner().invoke(
        main, ["figures", str(tmp_path / "study.nc"), "-o", str(tmp_path), "--only", "models", "--only", "pairs", *look]
    )
    assert run.exit_code == 0, run.output
    for name in ("models", "pairs"):
        assert ">Mine<" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    alone = [name for name, _, _ in figures.draw_all(STUDY, among=["models"], cmap="viridis", vmin=0.0, vmax=0.5)]
    assert alone == ["models"]
    (drawn,) = (figure for _, _, figure in figures.draw_all(STUDY, among=["models"], cmap="viridis", vmax=0.5))
    assert drawn is not None
    (image,) = drawn.axes[0].get_images()
    assert (image.get_cmap().name, image.get_clim()[1]) == ("viridis", 0.5)
    run = CliRunner().invoke(
        main, ["figures", str(tmp_path / "study.nc"), "-o", str(tmp_path), "--only", "pairs", "--cmap", "viridis"]
    )
    assert run.exit_code == 2
    assert "none of these figures is an image" in run.output


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match="unknown model of this study 'zzz'; known: net.seed0, net.seed1"):
        figures.plot_models(STUDY, labels={"zzz": "a"})
    with pytest.raises(UnknownNameError, match="layer of this figure 'zzz'; known: stem, layer1.0"):
        figures.plot_grid(STUDY, order=["zzz"])
