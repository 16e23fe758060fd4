"""Controls: the input, class labels, duplicate samples, and untrained networks that are extracted on request."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm

import repsim
from repsim.study import controls
from repsim.study.design import design
from repsim.study.gram_passes import kernels
from repsim.study.partial_cka import residual
from repsim.testing.examples import unrelated_layers, write_network

N = 20


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def names(inputs: list[controls.Control]) -> list[str]:
    return [control.name for control in inputs]


# The input


def test_equal_pixels_are_one_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    pixels = rng.normal(size=(N, 3, 2, 2))
    stores = [
        stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, N, 6, 6, 6), pixels=values))
        for model, values in (("a", pixels), ("b", pixels), ("c", 2 * pixels + 1), ("d", None), ("e", 2 * pixels + 1))
    ]
    inputs = controls.inputs(design(stores).stores)
    assert names(inputs)[:2] == ["pixels", "mean pixels"]
    assert {control.members for control in inputs} == {("a", "b", "c", "e")}  # d has no pixels
    centred = pixels - pixels.mean(0)
    for control, expected in zip(inputs, (centred.reshape(N, -1), centred.mean((2, 3))), strict=False):
        ratio = np.linalg.norm(control.features) / np.linalg.norm(expected)
        np.testing.assert_allclose(control.features, expected * ratio, atol=1e-12)


def test_other_pixels_are_an_input_of_their_own(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Pictures of another crop have kernels of their own, and those that add nothing are left out."""
    pixels, other = rng.normal(size=(2, 80, 3, 4, 4))
    almost = pixels + 0.01 * rng.normal(size=pixels.shape)
    stores = [
        stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, 80, 6), pixels=values))
        for model, values in (("a", pixels), ("b", other), ("c", almost))
    ]
    selected = names(controls.inputs(design(stores).stores))
    assert selected[:4] == ["pixels of a", "mean pixels of a", "pixels of b", "mean pixels of b"]
    assert not any(name.endswith("pixels of c") for name in selected)
    assert "RBF of the pixels of a, width 1" in selected or "RBF of the pixels of a, width 0.5" in selected


def test_the_mean_of_pixels_of_one_channel_is_over_all(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator
) -> None:
    pixels = rng.normal(size=(N, 8)).astype(np.float32)
    store = stack.enter_context(write_network(tmp_path, "a", unrelated_layers(rng, N, 6), pixels=pixels))
    inputs = controls.inputs([store])
    expected = pixels.mean(1) - pixels.mean()
    np.testing.assert_allclose(
        inputs[1].features[:, 0] / inputs[1].features.std(), expected / expected.std(), atol=1e-5
    )


@pytest.mark.slow
def test_statistics_of_pictures_are_an_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Contrast is no linear function of the pixels: a network that measures it has energy left without statistics."""
    contrast = rng.uniform(0.5, 2, size=(80, 1, 1, 1))
    checkerboard = np.resize([[1.0, -1], [-1, 1]], (32, 32))
    signs = rng.choice([-1, 1], size=(80, 3, 1, 1))
    pictures = signs * contrast * checkerboard + 0.1 * rng.normal(size=(80, 3, 32, 32))
    layer = np.concatenate([contrast[:, :, 0, 0], 0.01 * rng.normal(size=(80, 3))], 1)
    store = stack.enter_context(write_network(tmp_path, "a", [layer], pixels=pictures.astype(np.float64)))
    inputs = controls.inputs([store])
    assert "statistics of the picture" in names(inputs)
    energies = []
    for selected in (inputs[:2], [control for control in inputs if "statistics" in control.name]):
        measured = kernels(design([store]), selected, "cpu", keep=True, step=lambda: None)
        energies.append(residual(measured.cka(), measured.positions["input"].tolist())[0, 0])
    assert energies[0] > 0.5  # of linear kernels of the pixels
    assert energies[1] < 0.05


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pictures_without_a_mean_have_no_mean_input(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator, dtype: str
) -> None:
    """Mean pixels that differ only by rounding errors are no input."""
    pixels = rng.normal(size=(N, 3, 4, 4)).astype(dtype)
    pixels -= pixels.mean((2, 3), keepdims=True)
    layers = [x.astype(dtype) for x in unrelated_layers(rng, N, 6, 6, 6)]
    store = stack.enter_context(write_network(tmp_path, "a", layers, pixels=pixels))
    selected = names(controls.inputs([store]))
    assert selected[0] == "pixels"
    assert "mean pixels" not in selected


def test_no_pixels_no_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    study = design([stack.enter_context(write_network(tmp_path, "a", unrelated_layers(rng, N, 6, 6, 6)))])
    assert controls.inputs(study.stores) == []
    assert controls.classes(study) is None


# The classes


@pytest.mark.parametrize(
    ("labels", "groups", "reason"),
    [
        (np.arange(N) % 3, None, ""),
        (np.arange(N) % 3, np.arange(N) // 2, "some groups have samples of several classes"),
        (np.arange(N) // 10, np.arange(N) // 2, ""),
        (np.ones(N, int), None, "all samples are of one class"),
        (np.arange(N), None, "every sample is of a class of its own"),
        (np.arange(N) // 2 * 2, None, f"the {N} samples are of {N // 2} classes, with too few samples in each"),
        (np.maximum(np.arange(N), 8), None, f"the {N} samples are of {N - 8} classes, with too few samples in each"),
        (np.maximum(np.arange(N), 5) // 3, None, ""),
        (np.where(np.arange(N) < 15, 0, np.arange(N)), None, "of 6 classes, with too few samples in each"),
    ],
)
def test_when_similarity_within_classes_is_known(
    tmp_path: Path, stack: ExitStack, labels: Any, groups: Any, reason: str
) -> None:
    layers = unrelated_layers(np.random.default_rng(0), N, 6, 6, 6)
    study = design([stack.enter_context(write_network(tmp_path, "a", layers, labels=labels, groups=groups))])
    assert reason in controls.objection_to_classes(study)
    classes = controls.classes(study)
    if reason:
        assert classes is None
    else:
        assert classes is not None
        np.testing.assert_array_equal(labels[:, None] == labels, classes.numbers[:, None] == classes.numbers)
    of_no_importance = {"all samples are of one class", "every sample is of a class of its own"}
    assert controls.unjudged_classes(study) == (
        "" if reason in of_no_importance else controls.objection_to_classes(study)
    )


def test_networks_of_grey_pictures_have_controls(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    store = repsim.extract(network, "digits", tmp_path, name="grey", limit=40, layers="layer1")
    first, *_ = controls.inputs([store])
    assert (first.name, first.members) == ("pixels", ("grey",))
    expected = np.asarray(store.pixels, np.float64).reshape(40, -1)
    centred = expected - expected.mean(0)
    kernel, other = first.features @ first.features.T, centred @ centred.T
    np.testing.assert_allclose(kernel / np.trace(kernel), other / np.trace(other), atol=1e-5)
