"""Series of text networks: sentences, tables, figures and pages say over which samples an interval is taken."""

import json
from pathlib import Path

import pytest

import repsim
from repsim.figures import plot_trajectories
from repsim.report.page import render
from repsim.report.payload import payload
from repsim.results.modalities import samples_of
from repsim.trends import tables
from tests.trends.conftest import Write


@pytest.mark.slow
def test_a_series_of_text_networks_says_texts(write: Write, tmp_path: Path) -> None:
    series = repsim.series(write(runs=2, provenance={"modality": "text"}), out=tmp_path / "series.nc")
    assert samples_of(series) == samples_of(repsim.open_series(tmp_path / "series.nc")) == "texts"
    shown = [*json.loads(series.attrs["summary"]), *json.loads(series.attrs["warnings"])]
    shown += [f"{table.title} {table.heads}" for table in tables.all_tables(series)]
    figure = plot_trajectories(series).figure
    shown.append(figure.get_supxlabel())
    assert "over pictures" not in " ".join(shown)
    assert sum("over texts" in text for text in shown) >= 3
    page = render({**payload([series]), "citation": {"text": "", "bibtex": ""}, "files": {}})
    assert "Over texts: how much the value would vary with other texts" in page


def test_series_of_earlier_versions_and_of_pictures_say_pictures(write: Write) -> None:
    series = repsim.series(write(runs=1, steps=(0, 10, 100)))
    assert samples_of(series) == "pictures"
    assert "intervals are over pictures" in " ".join(json.loads(series.attrs["warnings"]))
