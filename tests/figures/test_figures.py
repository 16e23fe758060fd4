"""Tests of heatmaps: values, order, names, range and missing values are those of the result."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, rgb_to_hsv
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from repsim.engine.comparison import compare
from repsim.errors import InvalidInputError, OutputError, UnknownNameError
from repsim.figures import figure, heatmap, save
from repsim.results.files import save_result
from repsim.stores.writer import write_store

CKA: dict[str, Any] = {
    "label": "CKA (linear, debiased)",
    "spec": "cka",
    "sense": "similarity",
    "valid_range": [-1.0, 1.0],
}
SVCCA: dict[str, Any] = {
    "label": "SVCCA (variance 0.99)",
    "spec": "svcca",
    "sense": "similarity",
    "valid_range": [0.0, 1.0],
}
PROCRUSTES: dict[str, Any] = {"label": "Procrustes", "sense": "distance", "valid_range": [0.0, np.inf]}
LONG = "vit_base_patch16_224.augreg2_in21k_ft_in1k+random-seed0"


def result(
    rows: int = 7,
    columns: int = 5,
    models: tuple[str, str] = ("resnet50", "vit_tiny"),
    readouts: tuple[str, str] = ("mean", "cls"),
    **measures: dict[str, Any],
) -> xr.Dataset:
    """Make a result like `compare`, with values spread evenly over [0, 1) in random order."""
    dataset = xr.Dataset(
        coords={
            "layer_a": [f"layer{1 + 4 * i // rows}.{i}" for i in range(rows)],
            "layer_b": [f"blocks.{i}" for i in range(columns)],
            "model_a": ("layer_a", [models[0]] * rows),
            "model_b": ("layer_b", [models[1]] * columns),
            "readout_a": ("layer_a", [readouts[0]] * rows),
            "readout_b": ("layer_b", [readouts[1]] * columns),
            "n_samples": 500,
            "data": "imagenet-sample",
        }
    )
    for name, attrs in (measures or {"cka": CKA}).items():
        values = np.random.default_rng(0).permutation(rows * columns) / (rows * columns)
        dataset[name] = (("layer_a", "layer_b"), values.reshape(rows, columns), attrs)
    return dataset


def printed(drawn: Figure) -> NDArray[np.uint8]:
    canvas: Any = FigureCanvasAgg(drawn)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def pixels(ax: Axes) -> NDArray[np.uint8]:
    """Return the rendered figure of these axes, (height, width, RGBA), rows from the top."""
    return printed(ax.figure.figure)


def colours(ax: Axes) -> NDArray[np.uint8]:
    """Return the rendered colour at the centre of every cell, (rows, columns, RGB), row 0 at the bottom."""
    picture = pixels(ax)
    rows, columns = ax.images[0].get_array().shape  # type: ignore[union-attr]
    middles = ax.transData.transform([(j, i) for i in range(rows) for j in range(columns)]).astype(int)
    return picture[len(picture) - 1 - middles[:, 1], middles[:, 0], :3].reshape(rows, columns, 3)


def hue(colour: NDArray[np.uint8]) -> float:
    return float(rgb_to_hsv(colour / 255)[0])


def lightness(colour: NDArray[np.uint8]) -> float:
    return float(colour @ [0.2126, 0.7152, 0.0722])


def boxes(labels: list[Text]) -> NDArray[np.float64]:
    return np.array([label.get_window_extent().extents for label in labels if label.get_text()])


def assert_apart(extents: NDArray[np.float64]) -> None:
    """Check that no two of the boxes (x0, y0, x1, y1) overlap."""
    assert len(extents) > 1
    for k, box in enumerate(extents):
        others = np.delete(extents, k, axis=0)
        overlap = (others[:, :2] < box[2:]).all(1) & (others[:, 2:] > box[:2]).all(1)
        assert not overlap.any(), (box, others[overlap])


def test_cells_are_the_values_in_depth_order_from_the_lower_left() -> None:
    data = result(svcca=SVCCA)["svcca"]
    ax = heatmap(data)
    image = ax.images[0]
    (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
    assert x1 > x0
    assert y1 > y0
    np.testing.assert_array_equal(image.get_array(), data.values)
    np.testing.assert_allclose(colours(ax), np.array(image.cmap(data.values))[..., :3] * 255, atol=1)


def test_dims_in_the_other_order_draw_the_same() -> None:
    data = result()["cka"]
    np.testing.assert_array_equal(heatmap(data.transpose()).images[0].get_array(), data.values)


def test_names_stand_beside_their_layers() -> None:
    data = result()["cka"]
    ax = heatmap(data)
    for axis, dim in ((ax.yaxis, "layer_a"), (ax.xaxis, "layer_b")):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(data[dim].values)
        np.testing.assert_array_equal(axis.get_majorticklocs(), np.arange(data.sizes[dim]))
    assert ax.get_ylabel() == "resnet50, readout mean"
    assert ax.get_xlabel() == "vit_tiny, readout cls"


def test_a_readout_that_varies_is_left_to_the_names() -> None:
    data = result(2, 2).assign_coords(layer_b=["blocks.0@mean", "blocks.0@cls"], readout_b=("layer_b", ["mean", "cls"]))
    ax = heatmap(data["cka"])
    assert ax.get_xlabel() == "vit_tiny"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["blocks.0@mean", "blocks.0@cls"]


def test_dollars_are_no_formula() -> None:
    data = result(2, 2, models=("$a_1$", "b")).assign_coords(layer_a=["$x$", "y_1"])
    drawn = heatmap(data["cka"])
    plain = heatmap(result(2, 2, models=("+a_1+", "b")).assign_coords(layer_a=["+x+", "y_1"])["cka"])
    pixels(drawn), pixels(plain)
    # a formula would lose its dollars and shrink to an italic letter; '$' and '+' are not equally wide, but nearly
    assert drawn.yaxis.label.get_window_extent().height == pytest.approx(
        plain.yaxis.label.get_window_extent().height, rel=0.15
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attrs", "limits"),
    [(CKA, (-1, 1)), (SVCCA, (0, 1)), (PROCRUSTES, (0, 34 / 35 * 3)), ({}, (0, 34 / 35 * 3))],
)
def test_colours_span_the_declared_range(attrs: dict[str, Any], limits: tuple[float, float]) -> None:
    data = result(m=attrs)["m"]
    data = data if "valid_range" in attrs and np.isfinite(attrs["valid_range"][1]) else data.copy(data=3 * data.values)
    image = heatmap(data).images[0]
    assert isinstance(image.norm, Normalize)
    lowest = image.cmap(image.norm(limits[0]))
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((max(limits[0], 0), limits[1]))  # none is below 0
    assert (lightness(np.array(lowest)[:3]) < 0.05) == (attrs is not PROCRUSTES)  # small distances are bright


def test_a_distance_starts_at_0_however_large_its_values() -> None:
    data = result(m=PROCRUSTES)["m"] + 10
    data.attrs = PROCRUSTES
    assert heatmap(data).images[0].norm.vmin == 0


def test_attributes_from_a_file_draw_the_same(tmp_path: Path) -> None:
    original = result(cka=CKA, procrustes=PROCRUSTES)
    original.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as file:
        read = file.load()
    assert isinstance(read["cka"].attrs["valid_range"], np.ndarray)
    for name in ("cka", "procrustes"):
        np.testing.assert_array_equal(pixels(heatmap(read[name])), pixels(heatmap(original[name])))


def test_alike_is_bright_for_similarities_and_distances() -> None:
    similarity = result(2, 2, m=SVCCA)["m"].copy(data=[[1.0, 0.75], [0.25, 0.0]])
    distance = result(2, 2, m=PROCRUSTES)["m"].copy(data=[[0.0, 0.5], [1.5, 2.0]])  # 2 (1 - similarity)
    np.testing.assert_allclose(colours(heatmap(distance)), colours(heatmap(similarity)), atol=2)
    bright = [lightness(colour) for colour in colours(heatmap(similarity)).reshape(4, 3)]
    assert bright == sorted(bright, reverse=True)
    assert bright[0] > 200
    assert bright[-1] < 20


def test_a_negative_value_is_green_however_small_and_the_rest_as_ever() -> None:
    values = np.array([[-0.5, -0.1, -0.001], [0.0, 0.3, 1.0]])
    signed = colours(heatmap(result(2, 3)["cka"].copy(data=values)))
    unsigned = colours(heatmap(result(2, 3, m=SVCCA)["m"].copy(data=values.clip(0))))
    np.testing.assert_allclose(signed[1], unsigned[1], atol=2)  # the same colours as a measure on [0, 1]
    below = signed[0]
    assert all(0.38 < hue(colour) < 0.5 for colour in below), below
    assert lightness(below[2]) > lightness(signed[1, 0]) + 30  # visibly different from 0
    assert lightness(below[0]) > lightness(below[1]) > lightness(below[2])


@pytest.mark.parametrize(("lowest", "shown"), [(0.0, 0.0), (-0.001, -0.1), (-0.25, -0.3), (-1.0, -1.0)])
def test_the_colour_bar_stops_below_the_lowest_value(lowest: float, shown: float) -> None:
    bar = heatmap(result(1, 2)["cka"].copy(data=[[lowest, 0.5]])).images[0].colorbar
    assert bar is not None
    assert bar.ax.get_ylim() == pytest.approx((shown, 1.0))
    assert bar.get_ticks()[-1] == pytest.approx(1.0)
    assert bar.extend == "neither"


def test_values_outside_the_declared_range_show_as_such() -> None:
    bar = heatmap(result(1, 2, m=SVCCA)["m"].copy(data=[[0.5, 1.1]])).images[0].colorbar
    rounding = heatmap(result(1, 2, m=SVCCA)["m"].copy(data=[[-1e-12, 1 + 1e-12]])).images[0].colorbar
    assert bar is not None and rounding is not None  # noqa: PT018 - for mypy
    assert (bar.extend, rounding.extend) == ("max", "neither")


def test_the_colour_bar_is_named_and_as_high_as_the_cells() -> None:
    ax = heatmap(result(9, 4)["cka"])
    bar = ax.images[0].colorbar
    assert bar is not None
    assert bar.ax.get_ylabel() == "CKA (linear, debiased)"
    pixels(ax)
    box, cells = bar.ax.get_window_extent(), ax.get_window_extent()
    assert (box.y0, box.y1) == pytest.approx((cells.y0, cells.y1), abs=1)
    assert box.x0 > cells.x1


def test_nan_is_hatched_grey_and_counted() -> None:
    data = result(4, 3, cka=CKA)["cka"].copy()
    data[1] = np.nan
    ax = heatmap(data)
    bar = ax.images[0].colorbar
    assert bar is not None
    assert bar.ax.get_ylabel() == "CKA (linear, debiased)\nhatched: no value (3 of 12 pairs)"
    picture = pixels(ax)[::-1, :, :3].astype(int)  # rows from below
    for i in range(4):
        (x0, y0), (x1, y1) = ax.transData.transform([(-0.4, i - 0.4), (2.4, i + 0.4)]).astype(int)
        cells = picture[y0:y1, x0:x1]
        grey = np.ptp(cells, axis=2).max() <= 2
        assert grey == (i == 1), i
        if grey:
            assert {cells.min() < 150, cells.max() > 200} == {True}  # two greys: lines on a background


def test_without_nan_nothing_is_said_of_it() -> None:
    ax = heatmap(result()["cka"])
    assert ax.patch.get_hatch() is None
    assert ax.images[0].colorbar.ax.get_ylabel().count("\n") == 0  # type: ignore[union-attr]


@pytest.mark.slow
def test_names_of_120_layers_are_thinned_evenly_and_do_not_overlap() -> None:
    data = result(120, 110)["cka"]
    ax = heatmap(data)
    pixels(ax)
    for axis, dim in ((ax.yaxis, "layer_a"), (ax.xaxis, "layer_b")):
        named = axis.get_majorticklocs()
        step = int(named[1])
        assert 1 < step < 5
        np.testing.assert_array_equal(named, np.arange(0, data.sizes[dim], step))
        labels = axis.get_ticklabels()
        assert [label.get_text() for label in labels] == list(data[dim].values[::step])
        assert min(float(label.get_fontsize()) for label in labels) >= 6
        assert_apart(boxes(labels))
        ticks = {*axis.get_majorticklocs(), *axis.get_minorticklocs()}
        assert ticks == set(range(data.sizes[dim]))  # layers without a name have a tick


@pytest.mark.slow
def test_names_of_60_layers_all_stand_and_can_be_read() -> None:
    ax = heatmap(result(60, 55)["cka"])
    pixels(ax)
    for axis, count in ((ax.yaxis, 60), (ax.xaxis, 55)):
        labels = axis.get_ticklabels()
        assert len(labels) == count
        assert min(float(label.get_fontsize()) for label in labels) >= 6
        assert_apart(boxes(labels))


def test_names_follow_the_space_that_the_axes_get() -> None:
    canvas = Figure(figsize=(2, 2), layout="constrained")
    ax = heatmap(result(60, 55)["cka"], canvas.subplots())
    pixels(ax)
    few = boxes(ax.get_yticklabels())
    assert_apart(few)
    canvas.set_size_inches(12, 12)
    pixels(ax)
    assert len(boxes(ax.get_yticklabels())) == 60 > len(few)


def test_given_axes_are_used_and_nothing_else_is_touched() -> None:
    canvas = Figure(figsize=(9, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    right.plot([0, 1], [0, 1])
    assert heatmap(result()["cka"], left) is left
    assert canvas.axes == [left, right]
    assert not right.images
    assert canvas.texts == []
    assert canvas.get_supxlabel() == ""
    pixels(left)  # the colour bar and its label are between the two axes
    bar = left.images[0].colorbar
    assert bar is not None
    between, neighbour = bar.ax.get_tightbbox(), right.get_tightbbox()
    assert between is not None and neighbour is not None  # noqa: PT018 - for mypy
    assert between.x1 < neighbour.x0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (7, 7),
        pytest.param(17, 13, marks=pytest.mark.slow),
        pytest.param(60, 55, marks=pytest.mark.slow),
        (12, 30),
        (1, 1),
    ],
)
def test_cells_are_square_and_nothing_is_cut_off(rows: int, columns: int) -> None:
    drawn = figure(result(rows, columns, models=(LONG, LONG), cka=CKA, svcca=SVCCA))
    printed(drawn)
    for ax in drawn.axes:
        box = ax.get_window_extent()
        assert box.width / columns == pytest.approx(box.height / rows, rel=0.02)
    page, caption = drawn.bbox, drawn._supxlabel  # type: ignore[attr-defined]
    extents = [ax.get_tightbbox() for ax in drawn.axes] + [caption.get_window_extent()]
    for extent in extents:
        assert extent.x0 >= page.x0
        assert extent.y0 >= page.y0
        assert extent.x1 <= page.x1
        assert extent.y1 <= page.y1
    assert_apart(np.array([extent.extents for extent in extents]))


def test_few_layers_against_many_are_not_a_thread() -> None:
    box = heatmap(result(2, 80)["cka"]).get_window_extent()
    assert box.width / box.height == pytest.approx(4, rel=0.05)


@pytest.mark.slow
def test_the_figure_has_a_titled_panel_a_measure_in_their_order() -> None:
    data = result(cka=CKA, svcca=SVCCA, procrustes=PROCRUSTES)
    assert [ax.get_title() for ax in figure(data).axes] == [
        "CKA (linear, debiased)", "SVCCA (variance 0.99)", "Procrustes"
    ]  # fmt: skip
    chosen = figure(data, ["procrustes", "cka"])
    assert [ax.get_title() for ax in chosen.axes] == ["Procrustes", "CKA (linear, debiased)"]
    np.testing.assert_array_equal(chosen.axes[0].images[0].get_array(), data["procrustes"].values)
    assert [ax.get_title() for ax in figure(data, ["cka"]).axes] == [""]  # its colour bar says it
    assert [ax.get_title() for ax in figure(data["svcca"]).axes] == [""]


def test_the_caption_says_what_was_compared() -> None:
    caption = figure(result(), ["cka"]).get_supxlabel()
    assert caption.split("\n") == [
        "Rows: resnet50, 7 layers, readout mean.",
        "Columns: vit_tiny, 5 layers, readout cls.",
        "Data: imagenet-sample, 500 samples. Brighter: more",
        "similar.",
    ]


def test_the_caption_of_a_model_with_itself() -> None:
    caption = figure(result(5, 5, models=("resnet50", "resnet50"), readouts=("mean", "mean"))).get_supxlabel()
    assert caption.startswith("resnet50, 5 layers, readout mean, with itself.\n")


def test_a_caption_of_long_names_is_folded_and_complete() -> None:
    caption = figure(result(models=(LONG, LONG))).get_supxlabel()
    assert caption.replace("\n", "").count(LONG) == 2
    assert len(caption.split("\n")) > 3


def of_models(*models: str) -> xr.Dataset:
    """Make a square result with one layer per entry of ``models``, the name of its model."""
    square = result(len(models), len(models), readouts=("mean", "mean"))
    layers = [f"{model}/{i}" for i, model in enumerate(models)]
    square = square.assign_coords(layer_a=layers, layer_b=layers)
    return square.assign_coords(model_a=("layer_a", list(models)), model_b=("layer_b", list(models)))


def test_several_models_are_parted_by_lines_and_named_once() -> None:
    drawn = figure(of_models("m", "m", "m", "n", "o", "o"))
    ax = drawn.axes[0]
    for axis in (ax.xaxis, ax.yaxis):
        named = dict(
            zip(axis.get_ticklocs().tolist(), [text.get_text() for text in axis.get_ticklabels()], strict=True)
        )
        assert named == {1: "m", 3: "n", 4.5: "o"}
        assert axis.get_label().get_text().replace("\n", " ").startswith("3 models, layers by depth")
    across = [np.asarray(line.get_xdata()).tolist() for line in ax.lines]
    up = [np.asarray(line.get_ydata()).tolist() for line in ax.lines]
    assert sorted(map(str, zip(across, up, strict=True))) == sorted(
        str(line) for at in (2.5, 3.5) for line in (([0, 1], [at, at]), ([at, at], [0, 1]))
    )
    assert "6 layers" in drawn.get_supxlabel()
    assert "all with all." in drawn.get_supxlabel()


def test_layers_of_models_that_are_mixed_keep_their_names() -> None:
    ax = heatmap(of_models("m", "n", "m")["cka"])
    assert not ax.lines
    assert [text.get_text() for text in ax.get_yticklabels()] == ["m/0", "n/1", "m/2"]


def test_other_variables_of_a_result_are_no_panels() -> None:
    data = result().assign(null=("layer_a", np.zeros(7)))
    assert len(figure(data).axes) == 1
    with pytest.raises(UnknownNameError, match="unknown measure in this result 'ckaa'; did you mean cka?"):
        figure(data, ["ckaa"])
    with pytest.raises(UnknownNameError, match="'null'"):
        figure(data, ["null"])
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        figure(data, [])


def test_what_is_no_measure_is_refused() -> None:
    data = result(cka=CKA, svcca=SVCCA)
    with pytest.raises(InvalidInputError, match="got a whole result; take one of cka, svcca"):
        heatmap(data)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=re.escape("expected dims and coordinates (layer_a, layer_b), got")):
        heatmap(data["cka"][0])
    with pytest.raises(InvalidInputError, match=re.escape("expected dims and coordinates (layer_a, layer_b), got")):
        heatmap(xr.DataArray(np.eye(3)))
    with pytest.raises(InvalidInputError, match="nothing to draw: 0 x 5 layers"):
        heatmap(data["cka"][:0])


def test_all_nan_or_infinite_values_are_drawn() -> None:
    nothing = result(2, 2, m=PROCRUSTES)["m"].copy(data=np.full((2, 2), np.nan))
    assert "4 of 4" in heatmap(nothing).images[0].colorbar.ax.get_ylabel()  # type: ignore[union-attr]
    infinite = heatmap(nothing.copy(data=[[0.0, 1.0], [2.0, np.inf]]))
    assert infinite.images[0].norm.vmax == 2
    assert infinite.images[0].colorbar.extend == "max"  # type: ignore[union-attr]


MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.mark.slow
def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    data = result(cka=CKA, procrustes=PROCRUSTES)
    data["cka"][2] = np.nan
    drawn = figure(data)
    for name in "ab":  # saving does not change the figure
        for suffix in MAGIC:
            save(drawn, tmp_path / f"{name}{suffix}")
    data.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    code = """
import xarray
from repsim.figures import figure, save
drawn = figure(xarray.load_dataset("result.nc", engine="h5netcdf"))
for suffix in (".svg", ".pdf", ".png"):
    save(drawn, "c" + suffix)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    for suffix, magic in MAGIC.items():
        first, again, elsewhere = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "abc")
        assert first.startswith(magic)
        assert first == again
        assert first == elsewhere
        assert not re.search(rb"CreationDate|<dc:date>|tIME", first)


def test_vector_formats_keep_their_text(tmp_path: Path) -> None:
    drawn = figure(result())
    save(drawn, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert ">layer1.0</text>" in text
    assert "CKA (linear, debiased)" in text
    save(drawn, tmp_path / "a.pdf")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf


@pytest.mark.parametrize(("dpi", "dots"), [(None, 300), (150, 150)])
def test_a_png_has_300_dots_an_inch(dpi: float | None, dots: int, tmp_path: Path) -> None:
    drawn = figure(result())
    save(drawn, tmp_path / "a.PNG", dpi=dpi)
    width, height = np.frombuffer((tmp_path / "a.PNG").read_bytes()[16:24], ">u4")
    assert (width, height) == pytest.approx(tuple(dots * drawn.get_size_inches()), abs=1)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.html", ".png"])
def test_another_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(".png, .pdf, .svg")):
        save(figure(result(2, 2)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png", tmp_path / f"{'x' * 250}.png"):
        with pytest.raises(OutputError) as caught:
            save(figure(result(2, 2)), path)
        assert "\n" not in str(caught.value)
        assert str(path.name) in str(caught.value) or str(path.parent) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_save_that_is_cut_off_leaves_nothing_half_written(tmp_path: Path) -> None:
    class Stumbling(Text):
        def draw(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    drawn = figure(result(2, 2))
    save(drawn, tmp_path / "a.pdf")
    before = (tmp_path / "a.pdf").read_bytes()
    drawn.add_artist(Stumbling())
    with pytest.raises(OutputError, match=r"cannot write .*a\.pdf: No space left on device"):
        save(drawn, tmp_path / "a.pdf")  # the artist fails after a part of the file is written
    assert (tmp_path / "a.pdf").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.pdf"]


@pytest.mark.slow
def test_no_pyplot_no_global_setting_no_display() -> None:
    code = """
import sys, tempfile, matplotlib, numpy as np, xarray as xr
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
from repsim.figures import figure, save
layers = ["a", "b"]
drawn = figure(xr.DataArray(np.eye(2), coords={"layer_a": layers, "layer_b": layers}, dims=["layer_a", "layer_b"]))
with tempfile.TemporaryDirectory() as folder:
    for suffix in ("png", "pdf", "svg"):
        save(drawn, f"{folder}/a.{suffix}")
assert settings() == before
print(*{"matplotlib.pyplot", "click", "rich", "torch"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


@pytest.mark.slow
def test_figures_of_comparisons_load_no_torch(tmp_path: Path) -> None:
    """Heatmaps with path and marks, grids, rank correlations and the command import no torch."""
    x = np.random.default_rng(0).normal(size=(20, 4))
    with write_store(tmp_path / "a.h5", {f"layer{k}": x[:, k:] for k in range(3)}, model="a") as store:
        for name in ("a.nc", "b.nc"):
            save_result(compare(store, metrics=["cka", "procrustes"]), tmp_path / name)
    code = """
import sys
from repsim import figures
from repsim.cli import main
from repsim.results.files import open_result
opened = open_result("a.nc")
figures.heatmap(opened["cka"].assign_coords(p=(("layer_a", "layer_b"), abs(opened["cka"].values))), path=True)
figures.plot_measures(opened, "cka", "procrustes")
for files in (["a.nc"], ["a.nc", "b.nc"]):
    try: main(["heatmap", *files, "-m", "cka", "-o", "a.png"])
    except SystemExit as done: assert not done.code, done.code
print(*{"matplotlib.pyplot", "torch", "timm"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.splitlines()[-1:]) == (0, [""]), run.stderr
