"""Tests of names of any length and language in figures: they fit, stay different, and show every character."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from repsim import figures
from repsim.errors import MissingFontWarning
from repsim.figures import lettering
from repsim.figures.lettering import ELLIPSIS, escape_text, shorten, text_width, wrap

LONG = [f"model.encoder.layers.{i}.self_attention.output_projection.{what}" for i in range(6) for what in ("w", "bias")]


@pytest.fixture
def _no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a machine that has only matplotlib's default font."""
    own = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fontManager, "ttflist", own)
    lettering._family_with.cache_clear()
    yield
    lettering._family_with.cache_clear()


def measured(rows: list[str], columns: list[str], model: str = "net") -> xr.DataArray:
    values = np.linspace(0, 1, len(rows) * len(columns)).reshape(len(rows), len(columns))
    coords = {"layer_a": rows, "layer_b": columns, "model_a": ("layer_a", [model] * len(rows))}
    attrs = {"label": "CKA (linear, debiased)", "sense": "similarity", "valid_range": [-1.0, 1.0]}
    return xr.DataArray(values, coords, ["layer_a", "layer_b"], name="cka", attrs=attrs)


ALIKE = {
    "different at the end": [f"{'encoder.' * 8}{k}" for k in range(30)],
    "in the middle": [f"{'encoder.' * 6}{k:02d}{'.attention' * 6}" for k in range(30)],
    "at the beginning": [f"{k}{'.attention' * 8}" for k in range(30)],
    "in two places": [f"{'a' * 30}{i}{'b' * 30}{j}{'c' * 30}" for i in range(5) for j in range(5)],
    "in length": ["x" * k for k in range(60, 90)],
    "layers": LONG,
}


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
@pytest.mark.parametrize("inches", [0.8, 1.5, 2.4])
def test_different_names_stay_different(names: list[str], inches: float) -> None:
    short = shorten(names, inches, 7)
    assert len(set(short)) == len(names)
    assert max(text_width(name, 7) for name in short) <= 72 * inches + 1
    assert all(one == name or ELLIPSIS in one for one, name in zip(short, names, strict=True))
    assert shorten([*names, names[0]], inches, 7)[-1] == short[0]


def test_names_that_fit_stay_as_they_are() -> None:
    assert shorten(["conv1", "layer1.0", "conv1"], 1, 7) == ["conv1", "layer1.0", "conv1"]


def test_a_line_without_joints_is_folded_all_the_same() -> None:
    lines = wrap(["x" * 100], 1, 7).split("\n")
    assert "".join(lines) == "x" * 100
    assert max(text_width(line, 7) for line in lines) <= 72


@pytest.mark.parametrize("names", [LONG, ["$x_1$ and $y$", "a\nb", "größer", "π·ρ → ∑", "x" * 90]], ids=["long", "odd"])
def test_everything_is_inside_the_figure(names: list[str]) -> None:
    """matplotlib warns if the layout has no room left, and a warning is an error here."""
    figure = figures.figure(measured(names, names[:5], model="model_" + "x" * 60))
    width, height = figure.get_size_inches() * figure.dpi
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    ax = figure.axes[0]
    assert ax.get_window_extent(renderer).width > 100
    for axis, shown in ((ax.yaxis, names), (ax.xaxis, names[:5])):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert len(set(labels)) == len(shown)
        box = axis.get_tightbbox(renderer)
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_grid_of_long_names() -> None:
    figure = figures.plot_grid([measured(LONG, LONG[:7], model="x" * 70)] * 3)
    assert figure.axes[0].get_position().width > 0.08


@pytest.mark.usefixtures("_no_other_fonts")
def test_characters_that_no_font_has_are_written_as_escapes() -> None:
    with pytest.warns(MissingFontWarning, match=r"no font on this machine has 層 日; .* written as \\u5c64\. Install"):
        figure = figures.figure(measured(["日.0", "層"], ["größer", "b"]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"\u65e5.0", r"\u5c64"]
    assert escape_text("größer") == "größer"


def test_another_font_is_taken_where_one_has_the_character() -> None:
    ordinary, other = (
        get_font(findfont(FontProperties(family=name))).get_charmap() for name in ("DejaVu Sans", "STIXGeneral")
    )
    character = next(chr(code) for code in sorted(other) if code not in ordinary and chr(code).isprintable())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.figure(measured([character, "b"], ["c", "d"]))
        figures.png(figure)
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_text() == character
    assert len(label.get_fontfamily()) > 1
