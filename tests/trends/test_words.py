"""Sentences on series whose truth is known; scripts/validation/simulated_series.py counts how often they are wrong."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.trends import tables
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


@pytest.mark.parametrize("reference", ["r1.100", "run=r1"])
def test_a_reference_is_no_part_of_the_mean_that_is_compared_with_it(
    tmp_path: Path, pixels: Any, reference: str
) -> None:
    """The value of a network with itself, 1, is neither shown nor part of a mean, and networks are counted right."""
    paths = []
    for run in (0, 1, 2):
        for step in (1, 10, 100):
            paths.append(tmp_path / f"r{run}.{step}.h5")
            repsim.write_store(paths[-1], step_layers(pixels, step, run), model=paths[-1].stem,
                               axes={"step": step, "run": f"r{run}"}).close()  # fmt: skip
    series = repsim.series(paths, reference=reference)
    (text,) = (s for s in json.loads(series.attrs["summary"]) if "mean over layers, mean" in s)
    of_network = series["network"].sel(measure="cka", comparison="reference").to_series()
    first = of_network[["r0.1", "r2.1"] if reference == "run=r1" else ["r0.1", "r1.1", "r2.1"]].mean()
    last = of_network[["r0.100", "r2.100"]].mean()
    assert f"{first:.3f} at step 1 and {last:.3f} at step 100" in text
    assert ("mean of 2 runs" if reference == "run=r1" else "mean over runs") in text


def test_one_network_at_the_end_is_said_with_its_interval(tmp_path: Path, pixels: Any) -> None:
    """A reference in a run of its own, at the end of the axis, is not said to be like itself."""
    paths = []
    for run, step in ((0, 1), (0, 10), (1, 2), (1, 20), ("good", 100)):
        paths.append(tmp_path / f"{run}.{step}.h5")
        repsim.write_store(paths[-1], step_layers(pixels, step, 0), model=paths[-1].stem,
                           axes={"accuracy": step, "seed": run}).close()  # fmt: skip
    series = repsim.series(paths, axis="accuracy", reference="good.100")
    text = _summary(series)
    assert re.search(
        r"with good.100, mean over layers: 0.\d{3} \(.*\) at accuracy 1 and 0.\d{3} \(.*\) at accuracy 20", text
    )


@pytest.mark.slow
def test_networks_of_growing_width_do_not_settle(tmp_path: Path, pixels: Any) -> None:
    """The widest network is no final form of the others."""
    paths = _written(tmp_path, pixels, 3, (3, 10, 30))
    networks = repsim.series(paths, points="networks")
    assert np.isfinite(networks["settled"]).any()
    assert "final form" not in _summary(networks)
    assert "settle" not in _summary(networks)
    assert not tables.layers(networks).rows
    assert tables.layers(repsim.series(paths)).rows


def test_pairs_of_runs_are_no_more_evidence_than_their_mean(tmp_path: Path) -> None:
    """The similarity of two runs is that of both of them: it counts once."""
    rng = np.random.default_rng(0)
    signal, paths = rng.normal(size=(200, 20)), []
    for k, width in enumerate((8, 16, 32, 64)):
        for seed in (0, 1):
            noise = rng.normal(size=signal.shape) * (1.5 - 0.3 * k)
            paths.append(tmp_path / f"{width}.{seed}.h5")
            axes = {"width": width, "seed": seed}
            repsim.write_store(paths[-1], {"out": signal + noise}, model=paths[-1].stem, axes=axes).close()
    series = repsim.series(paths, axis="width")
    trend = series.sel(measure="cka", comparison="other runs", trend_of="network")
    assert float(trend["trend_tau"]) == 1
    assert float(trend["trend_p"]) == pytest.approx(2 / 24)
    assert "No trend of debiased CKA of different runs" in _summary(series)
