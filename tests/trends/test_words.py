"""Sentences on series whose truth is known; scripts/validation/simulated_series.py counts how often they are wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from tests.trends.conftest import STEPS, step_layers


def _summary(series: Any) -> str:
    return " ".join(json.loads(series.attrs["summary"]))


def _written(folder: Path, pixels: Any, runs: int, slow: tuple[float, ...], **more: Any) -> list[Path]:
    paths = []
    for run in range(runs):
        for step in STEPS:
            paths.append(folder / f"{run}.{step}.h5")
            axes: dict[str, int | str] = {"step": step, "run": f"r{run}"} if runs > 1 else {"step": step}
            layers = step_layers(pixels, step, run, slow=slow)
            repsim.write_store(paths[-1], layers, model=paths[-1].stem, axes=axes, **more).close()
    return paths


def test_lower_layers_that_settle_first_are_said_to(tmp_path: Path, pixels: Any) -> None:
    text = _summary(repsim.series(_written(tmp_path, pixels, 3, (3, 10, 30))))
    assert "Over 3 runs, lower layers settle first: Kendall's tau of depth and settling is 1.000" in text
    assert "6 models of each of 3 runs along step, from 0 to 100: 3 layers, compared on 61 samples" in text
    assert "with the last point of its run rises along step" in text


def test_higher_layers_that_settle_first_are_said_to(tmp_path: Path, pixels: Any) -> None:
    assert "higher layers settle first" in _summary(repsim.series(_written(tmp_path, pixels, 3, (30, 10, 3))))


def test_no_order_and_few_runs_are_said(tmp_path: Path, pixels: Any) -> None:
    series = repsim.series(_written(tmp_path, pixels, 1, (10, 3, 30)))
    text, warnings = _summary(series), " ".join(json.loads(series.attrs["warnings"]))
    assert "no order of depth in which layers settle is shown" in text
    assert " rises along " not in text, "the points of one run are one network"
    assert "There is one run" in warnings
    assert "The stores hold no input" in warnings


def test_two_runs_with_the_same_order_of_three_layers_are_too_few(tmp_path: Path, pixels: Any) -> None:
    text = _summary(repsim.series(_written(tmp_path, pixels, 2, (3, 10, 30))))
    assert "no order of depth" in text, "an interval of two equal ranks has no width: 2 / 36 is above 0.05"


@pytest.mark.parametrize(("sign", "verb"), [(1, "rises"), (-1, "falls")])
def test_a_trend_of_networks_is_tested_against_all_orders(tmp_path: Path, sign: int, verb: str) -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(200, 20))
    paths = []
    for k, width in enumerate((8, 16, 32, 64, 128)):
        noise = rng.normal(size=signal.shape) * (1.5 - sign * (0.25 * k - 0.5))
        paths.append(tmp_path / f"{width}.h5")
        repsim.write_store(paths[-1], {"out": signal + noise}, model=f"w{width}", axes={"width": width}).close()
    base = tmp_path / "base.h5"
    repsim.write_store(base, {"out": signal}, model="base").close()
    series = repsim.series([*paths, base], axis="width", reference="base")
    assert f"The debiased CKA with base {verb} along width" in _summary(series)
    assert float(series["trend_p"].sel(measure="cka", comparison="reference", trend_of="network")) == pytest.approx(
        2 / 120
    )
    assert "its seed and its place on the axis cannot be told apart" in series.attrs["warnings"]


def test_models_of_other_depth_and_runs_of_other_length_are_said(tmp_path: Path, pixels: Any) -> None:
    paths = _written(tmp_path, pixels, 2, (3, 10, 30))
    series = repsim.series(paths[:-1])
    assert "Runs do not end at the same value (30 to 100)" in series.attrs["warnings"]


def test_the_same_weights_at_two_places_are_said(tmp_path: Path, pixels: Any) -> None:
    for step in (1, 2):
        repsim.write_store(
            tmp_path / f"{step}.h5", step_layers(pixels, step, 0), model=f"m{step}", axes={"step": step},
            provenance={"weights_sha256": "ab" * 32},
        ).close()  # fmt: skip
    series = repsim.series([tmp_path / "1.h5", tmp_path / "2.h5"])
    assert "m1 and m2 hold the same weights, at different places on the axis" in series.attrs["warnings"]
