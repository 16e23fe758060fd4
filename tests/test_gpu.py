"""Values on a GPU are those on the CPU, up to rounding.

Without a GPU the tests run on a simulated one (`tests.simulated_device`), which shows where tensors of two devices
meet, but not errors of kernels, streams and pinned memory. ``REPSIM_TEST_DEVICE`` names another device.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import repsim
from repsim import metrics
from repsim.engine.comparison import Comparison
from repsim.engine.null_moments import cubic_moments
from repsim.engine.shared_directions import truncate_jointly
from repsim.extractors import open_images
from repsim.extractors.base import Stream
from repsim.extractors.loading import stream_together
from repsim.extractors.timm_models import TimmExtractor
from repsim.labels import PREDICTION
from repsim.runtime import tuning
from repsim.testing.examples import write_networks
from tests.simulated_device import NAME as SIMULATED
from tests.simulated_device import SimulatedDevice

DEVICE = os.environ.get("REPSIM_TEST_DEVICE", "cuda" if torch.cuda.is_available() else SIMULATED)
N = 90
SPECS = [metric.spec for metric in metrics.select("all") if DEVICE != SIMULATED or metric.name not in {"gulp", "pwcca"}]
"""All measures; two of them make what cannot be simulated."""


@pytest.fixture(autouse=True)
def _the_device_exists() -> Iterator[None]:
    with SimulatedDevice() if DEVICE == SIMULATED else nullcontext():
        yield


@pytest.fixture
def layers(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Return related layers, narrow and wide."""
    signal = rng.standard_normal((N, 6))
    widths = (8, 40, 130)
    noise = (rng.standard_normal((N, p)) / 3 for p in widths)
    return [(signal @ rng.standard_normal((6, p)) + e).astype(np.float32) for p, e in zip(widths, noise, strict=True)]


def on(device: str, layers: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    return [torch.from_numpy(x).to(device) for x in layers]


def assert_close(on_device: ArrayLike, on_cpu: ArrayLike) -> None:
    """Compare values whose products add up to some hundred numbers in another order, in float32.

    The errors are 1e-6, times ten for differences.
    """
    np.testing.assert_allclose(np.asarray(on_device), np.asarray(on_cpu), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_every_measure_has_the_values_of_the_cpu(spec: str, layers: list[NDArray[np.float32]]) -> None:
    metric = metrics.get(spec)
    values = []
    for device in (DEVICE, "cpu"):
        with torch.inference_mode():
            factors = [metric.recipe(x) for x in on(device, layers)]
            values.append(metric.block(factors[:2], factors))
    assert_close(*values)


@pytest.mark.parametrize(
    "spec", ["cka", pytest.param("cka:kernel=rbf", marks=pytest.mark.slow), "distance_correlation", "mutual_knn"]
)
def test_resampled_values_are_those_of_the_cpu(spec: str, layers: list[NDArray[np.float32]]) -> None:
    orders = repsim.random_permutations(N, 7)
    samples = repsim.random_subsamples(N, 50, 6)
    for resampled, how in ((repsim.permuted, orders), (repsim.subsampled, samples)):
        values = [resampled(layers[:2], layers[1:], spec, how, device=device) for device in (DEVICE, "cpu")]
        assert_close(*values)


def test_leave_one_out_of_cka_is_that_of_the_cpu(layers: list[NDArray[np.float32]]) -> None:
    values = [repsim.leave_one_out(layers[:2], layers[1:], device=device) for device in (DEVICE, "cpu")]
    assert_close(*values)


def test_permuted_cka_of_groups_is_that_of_the_cpu(layers: list[NDArray[np.float32]]) -> None:
    groups = np.repeat(np.arange(N // 3), 3)
    orders = repsim.random_permutations(N, 5, groups=groups)
    values = [
        repsim.permuted(layers[:2], layers[1:], "cka", orders, groups=groups, device=device)
        for device in (DEVICE, "cpu")
    ]
    assert_close(*values)


def test_cka_moments_and_shared_directions_are_those_of_the_cpu(layers: list[NDArray[np.float32]]) -> None:
    cka = metrics.get("cka")
    moments, values = [], []
    for device in (DEVICE, "cpu"):
        grams = [cka.recipe(x) for x in on(device, layers)]
        sums = cubic_moments(grams)
        moments.append([[one.norm2, one.triangles, one.cubes] for one in sums])
        shared = truncate_jointly(grams)
        values.append(cka.block(shared, shared))
    on_device, on_cpu = map(np.asarray, moments)
    np.testing.assert_allclose(on_device, on_cpu, rtol=1e-4, atol=1e-4 * np.abs(on_cpu).max())
    assert_close(*values)


@pytest.mark.parametrize("small", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stream_from_stores_has_the_values_of_layers_in_memory(
    small: bool, layers: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    """Layers that do not fit into memory are read again, in a thread and a stream of its own."""
    specs = ["cka", "svcca", "mutual_knn", "distance_correlation"]
    stacked = [np.concatenate([x, x[::-1] + 1]) for x in layers]
    paths = []
    for model in "ab":
        paths.append(tmp_path / f"{model}.h5")
        repsim.write_store(paths[-1], {str(k): x for k, x in enumerate(stacked)}, model=model)
    expected = repsim.compare(paths[0], paths[1], specs, device="cpu")
    with tuning.using(panel=64, smallest_panel=16, tile=16, run=64, piece=512, slab=512):
        memory = _least(paths, specs) if small else None
        result = repsim.compare(paths[0], paths[1], specs, device=DEVICE, memory=memory)
    for spec in specs:
        assert_close(result[spec].values, expected[spec].values)


def _least(paths: Sequence[Path], specs: Sequence[str]) -> int:
    """Return a limit with which layers are not kept, if there is one."""
    with Comparison(paths[0], paths[1], specs, device=DEVICE) as job:
        most = job.plan.memory
    for share in np.linspace(0.7, 1, 13):
        try:
            with Comparison(paths[0], paths[1], specs, device=DEVICE, memory=int(share * most)) as job:
                if not all(stage.kept for stage in job.plan.stages):
                    return int(share * most)
        except repsim.errors.TooLittleMemoryError:
            continue
    return most


@pytest.mark.parametrize("name", [pytest.param("digits_resnet", marks=pytest.mark.slow), "digits_vit"])
def test_extracted_layers_are_those_of_the_cpu(name: str) -> None:
    samples = open_images("digits")
    batches = {}
    for device, amp in ((DEVICE, False), (DEVICE, True), ("cpu", False)):
        extractor = TimmExtractor(name, weights="random")
        how = Stream(batch_size=16, device=device, amp=amp)
        passes = [batch for _, batch in stream_together([extractor], samples, [range(40)], how)]
        assert all(isinstance(batch.rows, tuple) for batch in passes)
        assert [row for batch in passes for row in batch.rows] == list(range(40))
        batches[device, amp] = {key: torch.cat([b.values[key] for b in passes]) for key in passes[0].values}
    exact = batches["cpu", False]
    for key, values in batches[DEVICE, False].items():
        if key == PREDICTION:  # the largest of nearly equal outputs of a network with random weights
            continue
        size = exact[key].abs().max()
        # TF32 is the default of cuDNN: 10 bits, over a few layers
        assert (values - exact[key]).abs().max() <= (1e-2 if DEVICE == "cuda" else 1e-4) * size
        assert (batches[DEVICE, True][key] - exact[key]).abs().max() <= 0.1 * size


@pytest.mark.slow
def test_a_study_is_that_of_the_cpu(tmp_path: Path) -> None:
    stores = write_networks(tmp_path, np.random.default_rng(1), 60, learned=1.0, seen=0.6)
    studies = [
        repsim.universality(stores, ["cka"], permutations=19, draws=200, device=device) for device in (DEVICE, "cpu")
    ]
    differing = [
        name
        for name, variable in studies[1].data_vars.items()
        if variable.dtype.kind == "f" and not _alike(studies[0][name], variable)
    ]
    assert differing == []


def _alike(a: xr.DataArray, b: xr.DataArray) -> bool:
    """Return whether the values differ by rounding; a p-value of 20 permutations may change by one of them."""
    atol = 0.051 if str(a.name).startswith("p_") else 1e-3
    return bool(np.allclose(a.values, b.values, rtol=1e-3, atol=atol, equal_nan=True))
