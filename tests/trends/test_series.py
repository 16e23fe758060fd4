"""Series against independent references: single comparisons, brute force, and runs that are interrupted or grow."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.engine.checkpoints import Checkpoints
from repsim.engine.uncertainty import jackknife
from repsim.errors import SampleMismatchError
from repsim.runtime import tuning
from repsim.study import controls
from repsim.study.partial_cka import partial
from tests.trends.conftest import LAYERS, STEPS, Write, step_layers


def _matrix(paths: list[Path], samples: Any = None) -> tuple[list[str], Any, int]:
    """Return names, debiased CKA of all layers and of the controls, and the number of layers, with plain numpy."""
    stores = [repsim.open_store(path) for path in paths]
    names = [f"{store.model}/{layer}" for store in stores for layer in store.layers]
    layers = [np.asarray(store[layer][:], np.float64) for store in stores for layer in store.layers]
    layers += [np.asarray(control.features, np.float64) for control in controls.inputs(stores)]
    kept = slice(None) if samples is None else samples
    kernels = []
    for x in layers:
        K = x[kept] @ x[kept].T
        n = len(K)
        np.fill_diagonal(K, 0)
        m = K.sum(1) / (n - 2) - K.sum() / (2 * (n - 1) * (n - 2))
        K = K - m[:, None] - m
        np.fill_diagonal(K, 0)
        kernels.append(K.ravel() / np.linalg.norm(K))
    V = np.array(kernels)
    return names, V @ V.T, len(names)


@pytest.mark.slow
def test_similarities_are_those_of_single_comparisons(write: Write) -> None:
    paths = write()
    series = repsim.series(paths)
    names, R, count = _matrix(paths)
    of_input = partial(R, list(range(count, len(R))))
    place = {name: k for k, name in enumerate(names)}
    for measure, values in (("cka", R), ("cka given input", of_input)):
        for k, point in enumerate(series["point"].values):
            run = str(point).split(".")[0]
            step = STEPS.index(int(series["value"].values[k]))
            others = {
                "reference": f"{run}.step{STEPS[-1]}",
                "previous": f"{run}.step{STEPS[step - 1]}" if step else None,
                "other runs": str(point).replace(run, {"run0": "run1", "run1": "run0"}[run]),
            }
            for comparison, other in others.items():
                one = series.sel(measure=measure, comparison=comparison, point=point)
                for layer in LAYERS:
                    value = float(one["similarity"].sel(layer=layer))
                    if other is None:
                        assert np.isnan(value)
                    else:
                        np.testing.assert_allclose(value, values[place[f"{point}/{layer}"], place[f"{other}/{layer}"]],
                                                   rtol=0, atol=5e-8)  # fmt: skip
                if other is not None:
                    rows, columns = ([place[f"{name}/{layer}"] for layer in LAYERS] for name in (point, other))
                    np.testing.assert_allclose(one["blocks"], values[np.ix_(rows, columns)], rtol=0, atol=5e-8)
            rows = [place[f"{point}/{layer}"] for layer in LAYERS]
            np.testing.assert_allclose(
                series["within"].sel(measure=measure, point=point), values[np.ix_(rows, rows)], rtol=0, atol=5e-8
            )
    reference = series["similarity"].sel(measure="cka", comparison="reference")
    np.testing.assert_allclose(series["network"].sel(measure="cka", comparison="reference"), reference.mean("layer"))


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True])
def test_intervals_are_those_of_leaving_out_samples_by_brute_force(write: Write, *, small: bool) -> None:
    paths = write(runs=1, steps=(0, 5, 50))
    with tuning.using(**({"series_tile": 7, "series_panel": 20} if small else {})):
        series = repsim.series(paths)
    names, R, count = _matrix(paths)
    place = {name: k for k, name in enumerate(names)}
    a, b = (([place[f"run0.step{step}/{layer}"] for layer in LAYERS]) for step in (0, 50))

    def values(matrix: Any) -> Any:
        of_input = partial(matrix, list(range(count, len(matrix))))
        return np.stack([matrix[a, b], of_input[a, b]])

    n = 61
    left_out = np.array([values(_matrix(paths, np.delete(np.arange(n), i))[1]) for i in range(n)])
    expected = jackknife(values(R), left_out)
    of_first = series.sel(comparison="reference", point="run0.step0")
    np.testing.assert_allclose(of_first["similarity_low"], expected.low, rtol=0, atol=1e-7)
    np.testing.assert_allclose(of_first["similarity_high"], expected.high, rtol=0, atol=1e-7)
    network = jackknife(values(R).mean(1), left_out.mean(2))
    np.testing.assert_allclose(of_first["network_low"], network.low, rtol=0, atol=1e-7)
    gain = series.sel(comparison="reference", point="run0.step50")
    np.testing.assert_allclose(gain["gain"], 1 - values(R).mean(1), rtol=0, atol=1e-8)
    np.testing.assert_allclose(gain["gain_high"] - gain["gain"], network.high - values(R).mean(1), rtol=0, atol=1e-7)


def _equal(a: Any, b: Any) -> None:
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


@pytest.mark.slow
def test_growth_a_resumed_run_and_other_batches_are_equal_to_the_bit(write: Write, tmp_path: Path) -> None:
    paths = write()
    metrics = ["mutual_knn", "svcca", "nuclear"]
    at_once = repsim.series(paths, metrics, all_pairs=True)
    out = tmp_path / "grown.nc"
    repsim.series(paths[:4] + paths[6:9], metrics, out=out)
    computed = len(list((tmp_path / "grown.nc.parts").glob("*.part")))
    grown = repsim.series(paths, metrics, out=out, all_pairs=True, overwrite=True)
    _equal(at_once, grown)
    _equal(at_once, repsim.open_series(out))
    parts = sorted((tmp_path / "grown.nc.parts").glob("*.part"))
    assert len(parts) > computed
    before = {part: part.stat().st_mtime_ns for part in parts}
    for part in parts[::3]:
        part.unlink()
    parts[1].write_bytes(b"damaged")
    _equal(at_once, repsim.series(paths, metrics, out=out, all_pairs=True, overwrite=True))
    kept = [part for k, part in enumerate(parts) if k % 3 and k != 1]
    assert all(part.stat().st_mtime_ns == before[part] for part in kept), "finished pairs were computed again"
    with tuning.using(series_models=1):
        _equal(at_once, repsim.series(paths, metrics, all_pairs=True))


@pytest.mark.slow
def test_a_series_that_is_killed_keeps_finished_pairs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write()
    saved: list[str] = []
    save = Checkpoints.save

    def save_some(self: Checkpoints, name: str, unit: int, part: Any) -> None:
        if len(saved) == 9:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, unit, part)

    out = tmp_path / "series.nc"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_some)
        with pytest.raises(KeyboardInterrupt):
            repsim.series(paths, out=out)
    assert not out.exists()
    assert len(list((tmp_path / "series.nc.parts").glob("*.part"))) == 9
    again: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", lambda *args: again.append(args[1]))
        resumed = repsim.series(paths, out=out)
    assert not set(saved) & set(again)
    _equal(resumed, repsim.series(paths))


@pytest.mark.slow
@pytest.mark.processes
def test_fifty_checkpoints_killed_resumed_grown_and_shared_are_equal_to_the_bit(write: Write, tmp_path: Path) -> None:
    paths = write(runs=1, steps=tuple(range(50)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(out: Path, stores: list[Path] = paths, *more: str) -> list[str]:
        return ["-m", "repsim", "series", *map(str, stores), "-m", "mutual_knn", "-o", str(out), *more]

    killed, shared, grown, alone = (tmp_path / f"{name}.nc" for name in ("killed", "shared", "grown", "alone"))
    process = subprocess.Popen([sys.executable, *command(killed)], env=environment, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed.nc.parts"
    while process.poll() is None and len(list(parts.glob("*.part"))) < 20:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not killed.exists(), "the machine was too fast to kill it"
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.part")}
    assert len(kept) >= 20
    for arguments in (
        [sys.executable, *command(killed)],
        [sys.executable, *command(alone)],
        [sys.executable, *command(grown, paths[:20] + paths[21:])],
        [sys.executable, *command(grown, paths, "--overwrite")],
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command(shared)],
    ):
        done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
        assert done.stdout.count("saved") == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished pairs were computed again"
    expected = repsim.open_series(alone)
    for other in (killed, grown, shared):
        _equal(expected, repsim.open_series(other))


@pytest.mark.slow
def test_groups_of_samples_are_left_out_together(write: Write, pixels: Any, tmp_path: Path) -> None:
    """Every sample twice: with groups, intervals are about those of single samples, and not narrower."""
    once = write(runs=1, steps=(0, 5, 50))
    twice = []
    for path in once:
        with repsim.open_store(path) as store:
            layers = {name: np.repeat(store[name][:], 2, 0) for name in store.layers}
            twice.append(tmp_path / f"twice.{path.name}")
            repsim.write_store(
                twice[-1], layers, model=store.model, axes=store.axes, pixels=np.repeat(pixels, 2, 0),
                groups=np.repeat(np.arange(61), 2),
            ).close()  # fmt: skip
    single, grouped = (repsim.series(paths).sel(comparison="reference", measure="cka") for paths in (once, twice))
    np.testing.assert_allclose(grouped["similarity"], single["similarity"], atol=1e-6)
    widths = [(s["similarity_high"] - s["similarity_low"]).values[:2] for s in (grouped, single)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.1)


def test_a_constant_layer_is_undefined_and_said(write: Write, pixels: Any, tmp_path: Path) -> None:
    paths = write(runs=1)
    layers = {name: np.zeros((61, 4), np.float32) for name in LAYERS[:1]}
    with repsim.open_store(paths[0]) as store:
        layers |= {name: store[name][:] for name in LAYERS[1:]}
    constant = tmp_path / "constant.h5"
    repsim.write_store(constant, layers, model="run0.step0", axes={"step": 0}, pixels=pixels).close()
    series = repsim.series([constant, *paths[1:]])
    first = series.sel(measure="cka", comparison="reference", point="run0.step0")
    assert np.isnan(first["similarity"].values).tolist() == [True, False, False]
    assert np.isfinite(first["network"])
    assert any("undefined" in text and "a of run0.step0" in text for text in json.loads(series.attrs["warnings"]))


def test_networks_of_other_depth_match_by_relative_depth(write: Write, pixels: Any, tmp_path: Path) -> None:
    deep = tmp_path / "deep.h5"
    with repsim.open_store(write(runs=1)[-1]) as store:
        layers = {f"block{k}": store[LAYERS[k // 2]][:] for k in range(5)}
        repsim.write_store(deep, layers, model="deep", axes={"depth": 5}, pixels=pixels).close()
        shallow = {name: store[name][:] for name in LAYERS}
        repsim.write_store(tmp_path / "shallow.h5", shallow, model="shallow", axes={"depth": 3}, pixels=pixels).close()
    series = repsim.series([deep, tmp_path / "shallow.h5"], axis="depth")
    assert series.attrs["matched_by"] == "relative depth"
    assert series["layer"].values.tolist() == ["0.00", "0.50", "1.00"]
    np.testing.assert_allclose(
        series["similarity"].sel(measure="cka", comparison="reference", point="shallow"), 1, atol=1e-6
    )
    assert series["layer_name"].sel(point="shallow").values.tolist() == ["a", "b", "c", "", ""]


@pytest.mark.slow
def test_references(write: Write, pixels: Any, tmp_path: Path) -> None:
    paths = write()
    base = tmp_path / "base.h5"
    with repsim.open_store(paths[5]) as store:
        repsim.write_store(base, {name: store[name][:] for name in LAYERS}, model="base", pixels=pixels).close()
    to_base = repsim.series([*paths, base], reference="base")
    to_last = repsim.series(paths)
    assert "base" not in to_base["point"].values
    raw = {"measure": "cka", "comparison": "reference"}
    of_run0 = to_base["point"].values[:6]
    np.testing.assert_allclose(
        to_base["similarity"].sel({**raw, "point": of_run0}),
        to_last["similarity"].sel({**raw, "point": of_run0}),
        atol=1e-9,
    )
    to_run = repsim.series(paths, reference="run=r1")
    other = {"measure": "cka", "comparison": "other runs"}
    np.testing.assert_array_equal(
        to_run["similarity"].sel({**raw, "point": of_run0}), to_last["similarity"].sel({**other, "point": of_run0})
    )
    assert np.isnan(to_run["settled"]).all(), "nothing is known about the last point"
    np.testing.assert_array_equal(
        repsim.series(paths, reference="run0.step100")["similarity"].sel({**raw, "point": of_run0}),
        to_last["similarity"].sel({**raw, "point": of_run0}),
    )


@pytest.mark.slow
def test_samples_are_paired_by_id(write: Write, pixels: Any, tmp_path: Path) -> None:
    """Stores with other pictures, another order or a part of the samples give the values of the same samples."""
    n = len(pixels)
    names = np.array([f"{k}.png" for k in range(n)])
    groups = np.array([f"scene{k // 2}" for k in range(n)])
    random = np.random.default_rng(3)

    def stores(folder: str, rows: dict[int, Any], noise: dict[int, Any], **more: Any) -> list[Path]:
        paths = []
        for level in (0, 1, 2):
            of_level = rows[level]
            seen = (pixels + noise[level])[of_level]
            layers = {name: x[of_level] for name, x in step_layers(pixels + noise[level], 3, 0).items()}
            path = tmp_path / folder / f"noise{level}.h5"
            path.parent.mkdir(exist_ok=True)
            repsim.write_store(
                path, layers, model=path.stem, axes={"noise": level}, pixels=seen, sample_ids=names[of_level].tolist(),
                provenance={"weights_sha256": "aa"}, **{k: v[of_level] for k, v in more.items()},
            ).close()  # fmt: skip
            paths.append(path)
        return paths

    kept = np.sort(random.permutation(n)[:50])
    noise = {level: level * random.normal(size=pixels.shape).astype(np.float32) / 2 for level in (0, 1, 2)}
    paired = stores(
        "paired", {0: np.arange(n), 1: random.permutation(n), 2: random.permutation(kept)}, noise, groups=groups
    )
    plain = stores("plain", dict.fromkeys((0, 1, 2), kept), noise, groups=groups)
    with pytest.raises(SampleMismatchError, match="pair_by"):
        repsim.series(paired, axis="noise", reference="first")
    out = tmp_path / "paired.nc"
    options: dict[str, Any] = {"axis": "noise", "reference": "first", "metrics": "mutual_knn", "all_pairs": True}
    of_pairs = repsim.series(paired, pair_by="id", out=out, **options)
    of_same = repsim.series(plain, pair_by="id", **options)
    for name in of_same.data_vars:
        np.testing.assert_allclose(of_pairs[name], of_same[name], rtol=1e-5, atol=1e-6, err_msg=str(name))
    assert (np.diff(of_pairs["network"].sel(measure="cka", comparison="reference")) < 0).all()
    record = json.loads(repsim.open_series(out).attrs["pairing"])
    assert (record["by"], record["pairs"], [side["count"] for side in record["left_out"]]) == ("id", 50, [11, 11, 0])
    assert of_pairs.attrs["samples_fingerprint"] == record["sha256"]
    assert "on 50 samples of given" in json.loads(of_pairs.attrs["summary"])[0]
    warned = json.loads(of_pairs.attrs["warnings"])
    assert any("samples are paired by their ids: 50 pairs" in sentence for sentence in warned)
    assert not any("same weights" in sentence for sentence in warned)


@pytest.mark.slow
def test_pairs_of_other_rows_are_computed_again(write: Write, pixels: Any, tmp_path: Path) -> None:
    """Values that are kept of two stores are not taken for other rows of them; equal rows are not computed again."""
    n, out = len(pixels), tmp_path / "series.nc"
    names = np.array([f"{k}.png" for k in range(n)])
    random, paths = np.random.default_rng(3), {}
    for name, rows in {"a": np.arange(n), "b": np.arange(n), "c": np.arange(50), "d": np.arange(n - 50, n)}.items():
        paths[name] = tmp_path / f"{name}.h5"
        x = (pixels + len(paths) * random.normal(size=pixels.shape)).reshape(n, -1)[rows]
        repsim.write_store(paths[name], {"out": x}, model=name, sample_ids=names[rows].tolist(),
                           axes={"noise": len(paths)}).close()  # fmt: skip

    def computed(stores: str) -> np.ndarray:
        options: dict[str, Any] = {"axis": "noise", "reference": "first", "pair_by": "id"}
        kept = repsim.series([paths[name] for name in stores], out=out, overwrite=True, **options)
        fresh = repsim.series([paths[name] for name in stores], **options)
        np.testing.assert_array_equal(kept["similarity"], fresh["similarity"])
        return kept["similarity"].sel(measure="cka", comparison="reference", point="b").values

    first, second = computed("abc"), computed("abd")
    assert abs(first - second).min() > 0.001
    files = sum(path.stat().st_size for path in tmp_path.glob("series.nc.parts/**/*") if path.is_file())
    assert (computed("abc") == first).all()
    assert sum(path.stat().st_size for path in tmp_path.glob("series.nc.parts/**/*") if path.is_file()) == files


@pytest.mark.slow
def test_all_pairs_of_points_are_those_of_single_comparisons(write: Write) -> None:
    paths = write(steps=(0, 10, 100))
    series = repsim.series(paths, ["svcca"], all_pairs=True)
    names, R, count = _matrix(paths)
    of_input = partial(R, list(range(count, len(R))))
    svcca = repsim.compare(paths, metrics=["svcca"])["svcca"]
    for k, layer in enumerate(LAYERS):
        rows = [names.index(f"{point}/{layer}") for point in series["point"].values]
        labels = [f"{point}/{layer}" for point in series["point"].values]
        for measure, expected in (
            ("cka", R[np.ix_(rows, rows)]),
            ("cka given input", of_input[np.ix_(rows, rows)]),
            ("svcca", svcca.sel(layer_a=labels, layer_b=labels).values),
        ):
            np.testing.assert_allclose(
                series["every_point"].sel(measure=measure).values[..., k], expected, rtol=0, atol=1e-6
            )
