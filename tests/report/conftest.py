"""Fixtures of the report's tests: a small study, its pictures, and a browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from repsim.engine.comparison import compare
from repsim.testing.examples import sample_names, small_study, write_network

N = 40
NAMES = sample_names(N)
HOSTILE = '</script><script>window.hurt=1</script><img src=x onerror="window.hurt=2"><b>{x}</b>%{y}&amp;\u2028=1'


@pytest.fixture(scope="session")
def study() -> xr.Dataset:
    return small_study(N)


@pytest.fixture(scope="session")
def readouts(study: xr.Dataset) -> list[xr.Dataset]:
    """Return the study, and a copy with another readout and other values."""
    other = study.assign_coords(readout="cls")
    return [study, other.assign(value=other["value"] / 2, low=other["low"] - other["value"] / 2)]


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Return a comparison of two networks with different layers under three measures, with undefined values."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("pair")
    a = {f"layer1.{k}": rng.normal(size=(N, 5)) for k in range(3)}
    b = {f"blocks.{k}": rng.normal(size=(N, 4)) for k in range(2)} | {"head": np.ones((N, 3))}
    with write_network(folder, "left", a) as left, write_network(folder, "right", b) as right:
        return compare(left, right, metrics=["cka", "procrustes", "linear_regression"])


def renamed(study: xr.Dataset, change: Callable[[str], str]) -> xr.Dataset:
    """Return the study with other names of models, layers, families and samples."""
    text = np.frompyfunc(change, 1, 1)
    models = {name: change(name) for name in study["model"].values.tolist()}

    def new(name: str) -> str:
        model, slash, layer = name.partition("/")
        return models[model] + slash + (change(layer) if slash else "")

    changed: dict[str, Any] = {
        name: (study[name].dims, [new(label) for label in study[name].values.tolist()])
        for name in ("model", "other_model", "layer_a", "layer_b", "model_a", "model_b", "pair_a", "pair_b")
    }
    networks = [models.get(name, change(name)) for name in study["network"].values.tolist()]
    changed |= {name: (study[name].dims, networks) for name in ("network", "other_network")}
    for name in (
        "family", "sample", "pair", "one_family", "families", "family_a", "family_b", "network_family", "architecture",
    ):  # fmt: skip
        changed[name] = (study[name].dims, text(study[name].values).astype(str))
    return study.assign_coords(**changed)


def hostile(study: xr.Dataset) -> xr.Dataset:
    """Return the study with names that contain markup, scripts and format characters."""

    def change(name: str) -> str:
        return f"{HOSTILE} {name}"

    study = renamed(study, change).assign_coords(readout=HOSTILE, data=HOSTILE)
    for name in ("control_name", "claim_reason"):
        study[name] = (study[name].dims, np.frompyfunc(change, 1, 1)(study[name].values).astype(str))
    sentences = '["' + HOSTILE.replace('"', '\\"') + '"]'
    return study.assign_attrs(summary=sentences, warnings=sentences, command=HOSTILE)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the pictures of the study in a folder."""
    root = tmp_path_factory.mktemp("photos")
    for k, name in enumerate(NAMES):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (120, 80), (6 * k, 20, 200)).save(path)
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start Chromium once for all tests."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine: install the system's package `chromium`")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
               "--disable-sync", "--no-first-run"]  # fmt: skip
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=options)
        yield chromium
        chromium.close()
