"""Tests of the views of stores, results and studies in notebooks, and of progress bars there."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import xarray as xr
from nbclient import NotebookClient

import repsim
from repsim import ActivationStore
from repsim.commands import terminal
from repsim.engine.comparison import Comparison
from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extraction import Extraction, choose_samples
from repsim.extractors import open_images
from repsim.extractors.factory import make_extractor
from repsim.results.chance import chance_of
from repsim.results.summary import closest
from repsim.results.variables import COORDINATES, VARIABLES
from repsim.runtime import notebook
from repsim.runtime.progress import report_progress
from repsim.runtime.text_tables import FOLDED, Table
from repsim.stores.alignment import AlignedView
from repsim.study import tables
from tests.series_example import training

N = 40
HOSTILE = '<script>"&'


def layers(rng: np.random.Generator, count: int = 3) -> dict[str, Any]:
    shared = rng.normal(size=(N, 4))
    return {f"layer{k}": np.hstack([shared, rng.normal(size=(N, 4))]) for k in range(count)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[ActivationStore]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
    models = ("net.seed0", "net.seed1", "other.seed0")
    pixels = rng.normal(size=(N, 6))
    labels = np.arange(N) % 4
    return [
        repsim.write_store(folder / f"{model}.h5", layers(rng), model=model, pixels=pixels, labels=labels)
        for model in models
    ]


@pytest.fixture(scope="module")
def study(stores: list[ActivationStore]) -> xr.Dataset:
    return repsim.universality(stores, ["cka", "mutual_knn:k=5"], permutations=19, draws=50)


@pytest.fixture(scope="module")
def result(stores: list[ActivationStore]) -> xr.Dataset:
    return repsim.compare(stores[0], stores[2], ["cka", "procrustes"])


# Stores


def test_a_store_shows_what_it_holds(stores: list[ActivationStore]) -> None:
    shown = stores[0]._repr_html_()
    for text in ("net.seed0", "40 samples of given", "4 classes", "pixels of the input 6", "net.seed0.h5", " kB"):
        assert text in shown
    assert shown.count("<tr>") == 4
    assert "40 x 8 float64" in shown
    assert " open>" in shown
    assert "color:inherit" in shown
    assert not re.search("<script|http|src=|#[0-9a-f]{3}", shown), "makes requests, or sets colours"


def test_a_store_that_is_closed_or_gone_still_shows_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    store = repsim.write_store(tmp_path / "a.h5", layers(rng), model="a")
    assert "closed" not in repr(store) + store._repr_html_()
    store.close()
    assert re.fullmatch(r"<ActivationStore a.h5: a, 3 layers, 40 samples of given \([\d.]+ kB, closed\)>", repr(store))
    store.path.unlink()
    assert "no longer there, closed" in repr(store)
    assert "no longer there, closed" in store._repr_html_()


def test_names_of_strangers_are_escaped(tmp_path: Path, rng: np.random.Generator) -> None:
    store = repsim.write_store(tmp_path / "a.h5", {HOSTILE: layers(rng)["layer0"]}, model=HOSTILE, source=HOSTILE)
    compared = repsim.compare(store)
    for shown in (store._repr_html_(), compared.repsim._repr_html_()):
        assert "<script" not in shown
        assert "&lt;script&gt;&quot;&amp;" in shown


def test_many_layers_are_folded(tmp_path: Path, rng: np.random.Generator) -> None:
    for count in (FOLDED, FOLDED + 1):
        store = repsim.write_store(tmp_path / f"{count}.h5", layers(rng, count), model="a")
        assert ("<details>" in store._repr_html_()) == (count > FOLDED)


def test_views_plans_and_extractions_are_told_in_a_line(stores: list[ActivationStore], tmp_path: Path) -> None:
    assert repr(AlignedView(*stores)) == "<AlignedView of 40 samples of given: net.seed0, net.seed1, other.seed0>"
    with Comparison(stores[0], stores[1]) as comparison:
        assert repr(comparison.plan).splitlines()[1:] == comparison.plan.lines()
        assert repr(comparison.plan).startswith("<Plan over 40 samples, ")
    extractor = make_extractor("digits_vit.seed0", layers="blocks.*")
    job = Extraction(extractor, choose_samples(open_images("digits", split="test"), limit=16), tmp_path)
    assert repr(job) == (
        "<Extraction of digits_vit.seed0: 9 arrays, 16 samples of digits [test], 44.2 kB for digits_vit.seed0.h5>"
    )


# Results and studies


def test_a_result_shows_the_closest_layers_and_a_heatmap(result: xr.Dataset) -> None:
    view = result.repsim
    tables_shown = [table.rows for table in view.tables]
    for rows, (name, pick) in zip(tables_shown, (("cka", np.argmax), ("procrustes", np.argmin)), strict=True):
        for row, values in zip(rows, result[name].values, strict=True):
            by_pair = chance_of(result[name])
            assert by_pair is not None
            levels = by_pair[rows.index(row)]
            at = pick(values - levels)
            above = (values - levels)[at] * (1 if name == "cka" else -1) > 0
            layer = result["layer_b"].values[at] if above else "none is above chance"
            shown = values[at], *([levels[at]] if name == "procrustes" else [])
            assert row[1:] == (layer, *(f"{number:.4f}" for number in shown))
    assert view.heading == "net.seed0 x other.seed0: 40 samples of given"
    assert view.heading in repr(view)
    assert view._repr_html_().count('src="data:image/png;base64,iVBOR') == 1
    assert view.heatmap("procrustes").images[0].get_array().shape == (3, 3)
    with pytest.raises(UnknownNameError, match="did you mean cka"):
        view.heatmap("ckaa")


def test_notes_of_a_result_are_those_of_the_terminal(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    store = repsim.write_store(tmp_path / "a.h5", layers(rng) | {"dead": np.ones((N, 2))}, model="a")
    compared = repsim.compare(store)
    terminal.print_notes(compared)
    (warning,) = compared.repsim.warnings
    assert "layer a/dead" in warning or "layer dead" in warning
    assert capsys.readouterr().err == f"{warning}\n"
    assert f"note: {warning}" in repr(compared.repsim)


def test_parts_of_a_result_and_what_users_add_are_no_trouble(result: xr.Dataset) -> None:
    more = result.assign(mine=result["cka"].mean("layer_b")).assign(row=result["procrustes"].isel(layer_a=0))
    assert len(more.repsim.tables) == 2
    empty = result.isel(layer_a=0)
    assert empty.repsim.tables == []
    assert "<img" not in empty.repsim._repr_html_()


@pytest.mark.slow
def test_a_study_shows_its_sentences_and_the_tables_of_the_terminal(
    study: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.print_study(study, full=True)
    output = " ".join(capsys.readouterr().out.split())
    assert study.repsim.summary == json.loads(study.attrs["summary"])
    assert study.repsim.warnings == json.loads(study.attrs["warnings"])
    titles = [table.title.split(":")[0].split(",")[0] for table in study.repsim.tables]
    assert titles == [
        "cka given input", "every measure", "what pairs of families share that was learned", "why no more is claimed",
        "where the energy of kernels comes from",
    ]  # fmt: skip
    for table in study.repsim.tables:
        for row in table.rows:
            assert " ".join(" ".join(row).split()) in output
    shown = study.repsim._repr_html_()
    for text in (*study.repsim.summary, *study.repsim.warnings):
        assert text.replace("'", "&#x27;").replace("<", "&lt;").replace(">", "&gt;") in shown
        assert text in repr(study.repsim)
    assert tables.pairs(study).rows[0][0] == "net.seed0 x net.seed1"


@pytest.mark.slow
def test_a_study_shows_the_figures_that_it_has(study: xr.Dataset) -> None:
    shown = study.repsim._repr_html_()
    assert re.findall('alt="([^"]*)" src="data:image/png;base64,iVBOR', shown) == [
        "How alike all pairs of models are",
        "Shares of energy by depth",
    ]
    alone = study.isel(pair=[]).repsim._repr_html_()
    assert re.findall('alt="([^"]*)"', alone) == ["Shares of energy by depth"]


@pytest.mark.slow
def test_a_series_shows_its_sentences_tables_and_figures(tmp_path: Path) -> None:
    repsim.save_result(training(), tmp_path / "series.nc")
    view = repsim.open_series(tmp_path / "series.nc").repsim
    text = repr(view)
    assert text.startswith("A series of 16 networks along step: 500 samples of cifar10-test")
    for sentence in (*view.summary, *view.warnings):
        assert sentence in text
    assert [table.title for table in view.tables]
    assert re.findall('alt="([^"]*)" src="data:image/png;base64,iVBOR', view._repr_html_()) == [
        "Similarity of layers along the axis",
        "Where layers settle, by depth",
        "Similarity of networks along the axis",
    ]


def test_other_data_sets_have_nothing_to_show() -> None:
    with pytest.raises(
        InvalidInputError, match=r"no result of repsim\.compare, study of repsim\.universality or series"
    ):
        repsim.view(xr.Dataset())


def test_everything_in_a_study_says_what_it_is(study: xr.Dataset, tmp_path: Path) -> None:
    entries = {name: (entry.names[name], entry.dims, entry.meaning) for entry in VARIABLES for name in entry.names}
    assert set(entries) == set(study.data_vars)
    coordinates = {name: field for name, field in COORDINATES.items() if name != "axis_NAME"}  # of models with axes
    assert set(coordinates) == set(study.coords)
    repsim.save_result(study, tmp_path / "study.nc")
    saved = repsim.open_study(tmp_path / "study.nc")
    for name, (long, dims, said) in entries.items():
        assert saved[name].attrs == {"long_name": long, "description": said}
        assert ", ".join(map(str, saved[name].dims)) == dims
    longs = {name: field.meaning for name, field in coordinates.items()}
    assert {name: saved[name].attrs["long_name"] for name in coordinates} == longs
    assert len({long for long, _, _ in entries.values()}) == len(entries), "two variables of one name"
    texts: list[str] = [*longs.values(), *(text for entry in entries.values() for text in entry)]
    assert "universal" not in " ".join(texts), "claims what only the words of a study may"


def test_every_coordinate_of_a_result_says_what_it_is(result: xr.Dataset) -> None:
    names = {str(name): coordinate.attrs["long_name"] for name, coordinate in result.coords.items()}
    assert len(set(names.values())) == len(names) > 10
    assert names["layer_a"] == "layer (a)"
    assert names["features_b"] == "values a sample (b)"
    assert names["procrustes.rank_a"] == "procrustes.rank (a)"
    assert names["n_samples"] == "number of samples"


@pytest.mark.parametrize("noise", [1e-12, -1e-12])
def test_of_layers_that_are_level_the_first_is_closest_and_zero_has_no_sign(result: xr.Dataset, noise: float) -> None:
    cka = result["cka"].copy()
    cka.values[:] = 0.3
    cka.values[0, 1:] = 0.9 + noise, *[0.1] * (cka.shape[1] - 2)
    cka.values[0, 0] = 0.9
    cka.values[1] = noise
    rows = closest(cka).rows
    first = str(cka["layer_b"].values[0])
    level = first if noise > 0 else "none is above chance"
    assert [row[1:] for row in rows[:3]] == [(first, "0.9000"), (level, "0.0000"), (first, "0.3000")]


def test_plain_tables_align() -> None:
    lines = str(Table("", ("a", ">b"), (("long name", "1"), ("x", "10")))).splitlines()
    assert lines == ["a           b", "long name   1", "x          10"]


# Progress

Shown = list[list[str]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]) -> Shown:
    """Simulate the kernel of a notebook; return the successive contents of every output area."""
    shown: Shown = []

    def display(what: object, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append([repr(what)])
        return SimpleNamespace(update=lambda more, area=shown[-1]: area.append(repr(more)))

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    tuned(bar_after=0.0, bar_every=0.0)
    return shown


def works(stores: list[ActivationStore], folder: Path) -> dict[str, Callable[..., object]]:
    a, b = stores[0], stores[2]
    few = repsim.random_permutations(N, 3)
    return {
        "extracting digits_vit.seed0": lambda **how: repsim.extract(
            "digits_vit.seed0", "digits", folder, limit=8, overwrite=True, **how
        ),
        "comparing": lambda **how: repsim.compare(a, b, **how),
        "verifying net.seed0.h5": lambda **how: repsim.verify(a.path, **how),
        "permuting samples": lambda **how: repsim.permuted(a, b, "cka", few, **how),
        "drawing subsamples": lambda **how: repsim.subsampled(a, b, "cka", few[:, :20], **how),
        "leaving out each sample": lambda **how: repsim.leave_one_out(a, b, **how),
    }


def test_long_work_shows_one_bar_in_a_notebook(kernel: Shown, stores: list[ActivationStore], tmp_path: Path) -> None:
    for what, work in works(stores, tmp_path).items():
        work()
        *checks, area = kernel
        assert [check[0].partition(":")[0] for check in checks] == ["checking pictures"] * what.startswith("extracting")
        assert re.fullmatch(rf"{re.escape(what)}: [\d,]+ of [\d,]+(, .* left)?", area[0])
        assert re.fullmatch(rf"{re.escape(what)}: .* s", area[-1]), "the last text is the duration"
        kernel.clear()


def test_it_can_be_silenced_or_told_otherwise(kernel: Shown, stores: list[ActivationStore], tmp_path: Path) -> None:
    for work in works(stores, tmp_path).values():
        calls: list[tuple[int, int]] = []
        work(progress=False)
        work(progress=lambda done, total, calls=calls: calls.append((done, total)))
        assert kernel == []
        assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.slow
def test_a_study_shows_one_bar_with_its_steps(kernel: Shown, stores: list[ActivationStore]) -> None:
    """The only bar is that of the study, even if a step is a function that shows its own bar when called alone."""
    repsim.universality(stores, ["mutual_knn:k=5"], permutations=19, draws=9)
    (area,) = kernel
    steps = {text.split(":")[0] for text in area}
    assert {"preparing layers", "comparing all layers", "permuting samples", "measuring mutual_knn"} <= steps
    assert area[-1].startswith("the study: ")
    kernel.clear()
    repsim.universality(stores[:2], ["cka"], permutations=19, draws=9, progress=False)
    assert kernel == []


def test_short_work_shows_nothing(kernel: Shown, tuned: Callable[..., None]) -> None:
    tuned(bar_after=60.0)
    with report_progress("counting", None) as progress:
        assert progress is not None
        progress(1, 2)
    assert kernel == []


def test_work_that_fails_says_where_it_stopped(kernel: Shown) -> None:
    def work() -> None:
        with report_progress("counting", None) as progress:
            assert progress is not None, "a bar of failed work is still registered"
            progress(1, 2)
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert kernel == [["counting: 1 of 2", "counting: 1 of 2, stopped"]] * 2


def test_a_script_is_silent(stores: list[ActivationStore], capfd: pytest.CaptureFixture[str]) -> None:
    import IPython  # noqa: F401, PLC0415 - imported, but no kernel runs

    assert not notebook.running()
    repsim.verify(stores[0].path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_in_a_real_kernel(stores: list[ActivationStore]) -> None:
    cells = [
        f"import repsim\nfrom repsim.runtime import tuning\npath = {str(stores[0].path)!r}",
        "with tuning.using(bar_after=0.0):\n    damaged = repsim.verify(path)",
        "damaged = repsim.verify(path, progress=False)",
        "repsim.open_store(path)",
        "from repsim import figures\nfigures.figure(repsim.compare(path))",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])  # type: ignore[no-untyped-call]
    NotebookClient(book, timeout=600, startup_timeout=600).execute()
    bar, silent, store, figure = (cell.outputs for cell in book.cells[1:])
    assert [output.output_type for output in bar] == ["display_data"]
    assert re.search("verifying net.seed0.h5: .* s</div>", bar[0].data["text/html"]), "the bar was replaced by its end"
    assert silent == []
    assert "<strong>net.seed0</strong>" in store[0].data["text/html"]
    assert store[0].data["text/plain"].startswith("<ActivationStore net.seed0.h5")
    assert figure[-1].data["image/png"].startswith("iVBOR"), "a figure that pyplot does not manage is shown"
