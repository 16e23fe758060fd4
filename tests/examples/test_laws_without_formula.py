"""Tests of the laws that have no closed form (examples/laws/): directions, with margins that several seeds support."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import repsim

pytestmark = pytest.mark.usefixtures("one_thread")  # the matrices are small: threads would wait for each other

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "laws"
PICTURES = ROOT / "docs" / "pictures" / "laws"
PAGE = ROOT / "docs" / "laws.md"
SCRIPTS = ("width_consistency", "block_structure", "training_time", "scale", "edge_of_stability")
"""Laws that are tested here."""


@pytest.fixture(scope="module")
def laws() -> Iterator[dict[str, ModuleType]]:
    """Import the scripts as Python does when they are started: their folder is searched first."""
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in ("training", *SCRIPTS)}
    for name in set(sys.modules) - modules:
        if FOLDER in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
            del sys.modules[name]


def test_similarities_of_all_pairs_are_those_of_single_pairs(laws: dict[str, ModuleType]) -> None:
    a, b = ([torch.randn(60, p, generator=torch.Generator().manual_seed(p)) for p in sizes] for sizes in ((3, 5), (4,)))
    for metric in ("cka", "mutual_knn:k=5"):
        values = laws["training"].similarities(a, b, metric)
        single = [[repsim.similarity(x, b[0], metric)] for x in a]
        np.testing.assert_allclose(values, single, atol=1e-6)  # single precision


def test_batches_have_every_sample_once_an_epoch(laws: dict[str, ModuleType]) -> None:
    batches = laws["training"].batches(20, 5, seed=0)
    epochs = [[row for _ in range(4) for row in next(batches).tolist()] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]
    assert next(laws["training"].batches(20, 30, seed=0)).tolist() == list(range(20))


def test_training_is_the_same_from_the_same_seed_and_learns(laws: dict[str, ModuleType]) -> None:
    training = laws["training"]
    data, losses = training.pictures(100, 50), []
    for seed in (0, 0, 1):
        weights = training.initialise([64, 8, 10], seed)
        steps = training.train(weights, data, training.adam(weights, [0.01, 0.01]), batch=20, seed=seed)
        losses.append([training.run(steps, 0), training.run(steps, 60)])
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][1] < losses[0][0] / 2


def test_times_are_read_between_checkpoints(laws: dict[str, ModuleType]) -> None:
    steps, reaches = np.array([0.0, 1.0, 3.0, 7.0]), laws["training_time"].reaches
    assert reaches(0.5, steps, np.array([0.0, 1.0, 1.0, 1.0])) == pytest.approx(2**0.5 - 1)  # half way in log(1 + step)
    assert reaches(0.5, steps, np.array([0.9, 0.0, 1.0, 1.0])) == pytest.approx(8**0.5 - 1)  # it falls again
    assert reaches(0.5, steps, np.array([0.6, 0.7, 0.8, 1.0])) == 0
    width = laws["width_consistency"].width_at(0.5, (16, 64), np.array([0.4, 0.6]))
    assert width == pytest.approx(32)


def test_the_first_component_is_left_out(laws: dict[str, ModuleType]) -> None:
    x = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]], dtype=torch.float64) + 5
    share, rest = laws["block_structure"].first_component(x)
    assert share == pytest.approx(0.9)  # 36 of 40
    np.testing.assert_allclose(rest, [[0, 1], [0, 1], [0, -1], [0, -1]], atol=1e-12)
    R = np.arange(36.0).reshape(6, 6)  # the block is layers 2 to 5, and pairs 2 or 3 apart are counted
    assert laws["block_structure"].far_apart(R) == pytest.approx((R[2, 4] + R[2, 5] + R[3, 5]) / 3)


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(
    laws: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    law, training = laws["edge_of_stability"], laws["training"]
    monkeypatch.setattr(law, "POWER_STEPS", 400)
    data = training.pictures(30, 20)
    weights = [w.requires_grad_() for w in training.initialise([64, 2, 10], 0)]
    sizes = [w.numel() for w in weights]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.reshape(w.shape) for part, w in zip(flat.split(sizes), weights, strict=True)]
        value: torch.Tensor = training.squared_error(law.tanh(parts, data.x)[-1], data.y)
        return value

    hessian = torch.autograd.functional.hessian(loss, torch.cat([w.detach().ravel() for w in weights]))
    assert law.sharpness(weights, data) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


@pytest.mark.slow
def test_width_consistency(laws: dict[str, ModuleType]) -> None:
    numbers = laws["width_consistency"].measure(quick=True)
    for name in ("standard", "muP"):
        assert np.diff([row[name][0] for row in numbers["rows"]]).min() > 0.005
    for row in numbers["rows"]:
        if row["width"] >= 64:
            assert row["difference"][0] > 0.01
    assert numbers["width_at_0.9"]["muP"][0] < numbers["width_at_0.9"]["standard"][0]


@pytest.mark.slow
def test_training_time(laws: dict[str, ModuleType]) -> None:
    numbers = laws["training_time"].measure(quick=True)
    mean = numbers["mean"]
    assert abs(mean["given the input"][0][0]) < 0.1
    assert mean["raw"][0][0] > 0.3
    assert mean["raw"][-1][0] > mean["raw"][0][0] + 0.2
    assert mean["given the input"][-1][0] > mean["given the input"][0][0] + 0.1
    assert mean["raw"][-1][0] > mean["given the input"][-1][0] + 0.3
    times = [mean for mean, _, _ in numbers["settled"]["CKA above 0.9"]]
    assert np.diff(times).min() > 0


@pytest.mark.slow
def test_block_structure(laws: dict[str, ModuleType]) -> None:
    changes = laws["block_structure"].measure(quick=True)["changes"]
    for kind in ("plain", "residual"):
        assert changes[kind]["below_minus_block"][1] > 0.05
        assert changes[kind]["more pictures"]["share"][0] > 0
    assert changes["plain"]["fall"][0] > 0.05


@pytest.mark.slow
def test_scale(laws: dict[str, ModuleType]) -> None:
    numbers = laws["scale"].measure(quick=True)
    for row in numbers["trends"]:
        assert row["rank"][0][0] > 0.6
        assert row["rank"][1][0] > row["rank"][0][0] - 0.1  # calibration leaves the trend of similar networks
        assert row["gain"][1][0] > row["gain"][0][0] - 0.01
    rows = {(row["width"], row["pictures"]): row["similarity"]["64"]["CKA, biased"] for row in numbers["networks"]}
    assert rows[128, 1200][2][0] > rows[4, 1200][2][0] + 0.03  # chance of the biased estimator grows with width


@pytest.mark.slow
def test_edge_of_stability(laws: dict[str, ModuleType]) -> None:
    numbers = laws["edge_of_stability"].measure(quick=True)
    small, large, batch = numbers["ways"]
    assert large["step_size"] == 0.3
    assert 0.7 < large["times_step"][0] < 1.1
    assert small["times_step"][0] < 0.6
    assert large["sharpness"][0] < small["sharpness"][0] - 2
    assert batch["sharpness"][0] < small["sharpness"][0] - 1
    assert small["same_start"] == pytest.approx([1, 1, 1])
    assert large["same_start"][0] < 0.95
    assert large["same_start"][0] < batch["same_start"][0] < 0.99


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_shows_what_was_measured(name: str, laws: dict[str, ModuleType]) -> None:
    """The numbers beside the figures are those of the tables of the page."""
    numbers = json.loads((PICTURES / f"{name}.json").read_text())
    page = PAGE.read_text()
    for part in laws[name].report(numbers).split("\n\n"):
        assert " ".join(part.split()) in " ".join(page.split())
    assert f"(pictures/laws/{name}.png)" in page
    assert f"python examples/laws/{name}.py" in page
    assert (PICTURES / f"{name}.png").stat().st_size < 150_000


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_law_can_be_refuted(name: str, laws: dict[str, ModuleType]) -> None:
    heads = ("Prediction", "Source", "Measured", "Refutation", "Result")
    lines = (laws[name].__doc__ or "").splitlines()
    assert [line for line in lines if line in heads] == list(heads)
