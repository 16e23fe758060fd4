"""Tests of what an editor looks at: overlapping and tiny texts, widths, hidden marks, and intervals in heatmaps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import repsim
from repsim import figures
from repsim.cli import main
from repsim.errors import InvalidInputError
from repsim.figures.lettering import wrap
from repsim.results.files import save_result
from repsim.results.intervals import ends_of
from repsim.results.variables import CONTROL_PAIRS
from tests.figures.test_study_figures import drawn_by, make_study, points
from tests.series_example import training

FAMILIES = ("resnet50.a1_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k", "swin_base_patch4_window7_224.ms_in22k")
SMALLEST = 5.0


def zoo(count: int) -> xr.Dataset:
    """Return a study of so many models with names as long as those of timm."""
    return make_study({f"{FAMILIES[k % 3]}.seed{k // 3}": FAMILIES[k % 3] for k in range(count)})


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox, float]]:
    """Draw a figure, and return each text that is really drawn with its box in pixels and its font size."""
    texts: dict[tuple[str, tuple[float, ...]], tuple[str, Bbox, float]] = {}
    draw = Text.draw

    def record(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            box = Text.get_window_extent(self, renderer)
            place = tuple(np.round(box.extents).tolist())
            texts[self.get_text(), place] = (self.get_text(), box, float(self.get_fontsize()))
        draw(self, renderer, *args, **kwargs)

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # the layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        canvas.draw()
    return list(texts.values())


def faults(figure: Figure) -> Iterator[str]:
    """Yield what an editor would send back: texts that overlap, leave the figure or are too small."""
    texts = drawn_texts(figure)
    assert texts
    for k, (text, box, size) in enumerate(texts):
        if size < SMALLEST:
            yield f"{text!r} has {size:.1f} points"
        if not (box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1):
            yield f"{text!r} leaves the figure"
        for other, beside, _ in texts[:k]:
            across, up = (
                min(box.x1, beside.x1) - max(box.x0, beside.x0),
                min(box.y1, beside.y1) - max(box.y0, beside.y0),
            )
            if across > 1 and up > 2:  # boxes are higher than letters
                yield f"{text!r} and {other!r} overlap by {across:.0f} x {up:.0f} pixels"


@pytest.mark.slow
@pytest.mark.parametrize("style", [None, "neurips", "talk"])
@pytest.mark.parametrize("count", [2, 10, 30])
def test_no_text_of_a_study_overlaps_is_cut_off_or_tiny(count: int, style: Any) -> None:
    with figures.style_context(style):
        for name, what, figure in figures.draw_all(zoo(count)):
            if figure is not None:
                assert list(faults(figure)) == [], name
            else:
                assert name in {"heatmaps", "models"}, what  # too many pairs, too few models


@pytest.mark.slow
@pytest.mark.parametrize("style", [None, "neurips", "talk"])
def test_no_text_of_a_series_overlaps_is_cut_off_or_tiny(style: Any) -> None:
    with figures.style_context(style):
        for name, what, figure in figures.draw_all(training(every_point=True)):
            assert figure is not None, what
            assert list(faults(figure)) == [], name


def test_faults_are_noticed() -> None:
    figure = figures.plot_shares(make_study()).figure.figure
    assert list(faults(figure)) == []
    for place, size, fault in ((0.5, 4.0, "points"), (0.999, 8.0, "leaves"), (0.5, 8.0, "overlap")):
        text = figure.text(place, 0.6, "a text", fontsize=size)
        second = figure.text(place, 0.601, "another", fontsize=size) if fault == "overlap" else None
        assert any(fault in one for one in faults(figure))
        for added in filter(None, (text, second)):
            added.remove()


def test_numbers_are_not_divided() -> None:
    for inches in np.linspace(0.3, 2, 40):
        lines = wrap(["Bars: 95 % intervals, less than 0.005 apart, above 90 %"], float(inches), 7).split("\n")
        assert not any(line.startswith("%") or line.endswith("0.") for line in lines)
    assert "".join(wrap(["layer1.0.conv-2_a"], 0.2, 7).split()) == "layer1.0.conv-2_a"


# Marks


def test_equal_controls_do_not_hide_each_other() -> None:
    study = make_study()
    study["network_similarity"][:] = 0.3  # all controls of all pairs are equal
    ax = figures.plot_pairs(study, "cka")
    of_kinds = [points(ax, name) for name in CONTROL_PAIRS]
    assert all(of_kind.shape == of_kinds[0].shape and (of_kind[:, 0] == 0.3).all() for of_kind in of_kinds)
    heights = np.stack([of_kind[:, 1] for of_kind in of_kinds])
    assert np.diff(np.sort(heights, axis=0), axis=0).min() > 0.15
    assert np.abs(heights - heights.round()).max() < 0.5  # each beside its own row


def test_a_caption_speaks_of_crosses_only_where_there_are_some() -> None:
    pair = figures.pick(make_study(), "net.seed0 x vit.seed0", "cka")
    for p, crossed in ((1e-9, False), (0.9, True)):
        figure = figures.figure(pair.assign_coords(p=(pair.dims, np.full(pair.shape, p))))
        assert ("Crosses: not above chance" in figure.get_supxlabel()) == crossed
        assert ("All cells are above chance" in figure.get_supxlabel()) != crossed


def test_groups_of_pairs_have_looks_of_their_own() -> None:
    models = {f"{family}.seed{k}": family for family in "abcde" for k in range(2)}
    ax = figures.plot_depths(make_study(models))
    looks = [(line.get_color(), line.get_marker()) for line in drawn_by(ax, "mean")]
    assert len(looks) == 6
    assert len({colour for colour, _ in looks}) == len(set(looks)) == 6


@pytest.mark.slow
def test_a_matrix_says_how_many_models_it_names() -> None:
    for width, named in ((3.3, True), (7.0, False)):
        figure = figures.plot_models(zoo(24), width=width).figure.figure
        shown = {text for text, _, _ in drawn_texts(figure) if "seed" in text}
        assert ("One in 2 models is named" in figure.get_supxlabel().replace("\n", " ")) == named
        assert len(shown) == (12 if named else 24)


def test_outlines_of_clusters_are_not_cut_off() -> None:
    ax = figures.plot_map(make_study())
    figure = ax.figure.figure
    drawn_texts(figure)
    for outline in drawn_by(ax, "cluster"):
        box = outline.get_window_extent().padded(outline.get_linewidth() / 2 * figure.dpi / 72)
        assert ax.bbox.x0 <= box.x0 < box.x1 <= ax.bbox.x1
        assert ax.bbox.y0 <= box.y0 < box.y1 <= ax.bbox.y1


# Intervals of heatmaps


def compared(layers: int = 4, samples: int = 60) -> xr.Dataset:
    """Return a comparison with intervals in which the last layer of one side is noise."""
    rng = np.random.default_rng(0)
    x = {f"layer{k}": rng.normal(size=(samples, 4)) for k in range(layers)}
    y = {name: value + 0.5 * rng.normal(size=value.shape) for name, value in x.items()}
    y[f"layer{layers - 1}"] = rng.normal(size=(samples, 4))
    return repsim.compare(x, y, ["cka", "mutual_knn"], interval=True)


def test_numbers_are_the_value_and_half_of_its_interval() -> None:
    cka = compared()["cka"]
    ax = figures.heatmap(cka, interval="numbers")
    low, high = ends_of(cka)
    texts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert len(texts) == cka.size
    for at, text in texts.items():
        value, half = text.split("\n\N{PLUS-MINUS SIGN}")
        assert float(value) == pytest.approx(cka.values[at], abs=0.0051)
        assert float(half) == pytest.approx((high - low)[at] / 2, abs=0.0051)
    assert "\N{PLUS-MINUS SIGN}: half of the 95 % interval over samples" in ax.figure.figure.get_supxlabel().replace(
        "\n", " "
    )
    assert list(faults(ax.figure.figure)) == []
    assert "\N{PLUS-MINUS SIGN}0.1" in figures.heatmap(cka, interval="numbers", annotate=".1f").texts[-1].get_text()


def test_squares_are_on_cells_whose_interval_includes_chance() -> None:
    cka = compared()["cka"]
    low, high = ends_of(cka)
    rows, columns = np.nonzero((low <= 0) & (high >= 0))
    assert 0 < len(rows) < cka.size
    ax = figures.heatmap(cka, interval="chance")
    assert {tuple(at) for at in points(ax, "interval")} == set(zip(columns.tolist(), rows.tolist(), strict=True))
    colours = {tuple(colour) for colour in drawn_by(ax, "interval")[0].get_edgecolors()}
    assert colours <= {to_rgba("white"), to_rgba("black")}
    caption = ax.figure.figure.get_supxlabel().replace("\n", " ")
    assert "Squares: the 95 % interval over samples includes the mean of unrelated layers." in caption
    alone = figures.heatmap(cka[:1, :1], interval="chance").figure.figure.get_supxlabel().replace("\n", " ")
    assert "In no cell the 95 % interval" in alone


def test_a_pair_of_a_study_has_the_intervals_of_the_study() -> None:
    study = make_study()
    study["low"], study["high"] = study["value"] - 0.1, study["value"] + 0.1
    study["low"][2:] = np.nan
    for pair in ("net.seed0 x vit.seed0", "vit.seed0 x net.seed0"):
        ends = ends_of(one := figures.pick(study, pair, "cka given input"))
        assert np.allclose(ends, np.stack([one.values - 0.1, one.values + 0.1]))
        assert np.isnan(ends_of(figures.pick(study, pair, "mutual_knn"))).all()
    order = ["layer2.1", "stem"]
    ax = figures.heatmap(figures.pick(study, "net.seed0 x vit.seed0", "cka"), interval="numbers", order=order)
    assert {text.get_text().split("\n")[1] for text in ax.texts} == {"\N{PLUS-MINUS SIGN}0.10"}


def test_measures_without_intervals_are_drawn_without_and_alone_refused() -> None:
    result = compared()
    panels = figures.figure(result, interval="numbers").axes
    assert [any("\N{PLUS-MINUS SIGN}" in text.get_text() for text in ax.texts) for ax in panels[:2]] == [True, False]
    with pytest.raises(InvalidInputError, match=r"Mutual.*no intervals to show; compute .* interval=True"):
        figures.heatmap(result["mutual_knn"], interval="chance")
    with pytest.raises(InvalidInputError, match="'numbers' or .*'chance'"):
        figures.heatmap(result["cka"], interval="half")  # type: ignore[arg-type]


@pytest.mark.slow
def test_numbers_that_cannot_be_read_are_an_error() -> None:
    many = compared(30)["cka"]
    assert min(size for text, _, size in drawn_texts(figures.heatmap(many, annotate=True).figure.figure)) >= SMALLEST
    for keywords in ({"annotate": True}, {"interval": "numbers"}):
        with pytest.raises(InvalidInputError, match=r"30 x 30 cells would be \d.\d points high, which cannot be read"):
            figures.heatmap(many, width=3.3, **keywords)
    figures.heatmap(many, width=3.3, interval="chance")


def test_the_command_shows_intervals(tmp_path: Path) -> None:
    save_result(compared(), path := tmp_path / "a.nc")
    run = CliRunner().invoke(main, ["heatmap", str(path), "-o", str(tmp_path / "a.svg"), "--interval", "numbers"])
    assert run.exit_code == 0, run.output
    assert "\N{PLUS-MINUS SIGN}" in (tmp_path / "a.svg").read_text()
    run = CliRunner().invoke(
        main, ["heatmap", str(path), "-o", str(tmp_path / "b.svg"), "--interval", "chance", "-m", "mutual_knn"]
    )
    assert (run.exit_code != 0, "repsim compare" in run.output, (tmp_path / "b.svg").exists()) == (True, True, False)
