"""Debiased CKA of all layers and controls: on all samples, on subsets, reduced to components, and read again."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from repsim.metrics.recipes.groups import Groups
from repsim.runtime.processes import ALONE
from repsim.study.block_sums import BlockSums, block_sums, draw_halves
from repsim.study.blocks import Sides
from repsim.study.controls import Control
from repsim.study.design import Design, design
from repsim.study.gram_passes import Kernels, kernels, sources
from repsim.testing.examples import unrelated_layers, write_network
from tests.study.references import kernel_within, unit_kernel

N = 30


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Design, list[Control]]]:
    """Build a study in which a/block1 is constant on the first half of the samples, and b/block0 on all samples."""
    with ExitStack() as stack:
        rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
        layers = {model: unrelated_layers(rng, N, 6, 6, 6) for model in ("a", "b")}
        layers["a"][1][: N // 2] = 1
        layers["b"][0][:] = 1
        stores = [stack.enter_context(write_network(folder, model, arrays)) for model, arrays in layers.items()]
        yield design(stores), [Control(f"input {k}", rng.normal(size=(N, 2))) for k in range(3)]


def prepared(study: tuple[Design, list[Control]], *, keep: bool = True) -> Kernels:
    return kernels(*study, "cpu", keep=keep, step=lambda: None)


def features(study: tuple[Design, list[Control]]) -> list[np.ndarray]:
    members = [np.asarray(m.store[array][:]) for m in study[0].members for array in m.arrays]
    return [x for x in [*members, *(control.features for control in study[1])] if np.ptp(x) > 0]


def test_the_matrix_and_the_positions_of_layers(study: tuple[Design, list[Control]]) -> None:
    passes = prepared(study)
    V = np.stack([unit_kernel(x) for x in features(study)])
    np.testing.assert_allclose(passes.values()[0], V @ V.T, atol=1e-12)
    assert np.array_equal(np.diagonal(passes.values()[0]), np.ones(len(V)))
    assert {name: where.tolist() for name, where in passes.positions.items()} == {
        "a": [0, 1, 2], "b": [3, 4], "input": [5, 6, 7],
    }  # fmt: skip
    assert passes.names[1:4] == ("a/block1", "a/block2", "b/block1")
    assert list(passes.undefined) == ["b/block0"]
    assert "constant" in passes.undefined["b/block0"]


def test_layers_that_are_read_again_are_the_same(study: tuple[Design, list[Control]]) -> None:
    np.testing.assert_allclose(prepared(study, keep=False).values(), prepared(study).values(), atol=1e-13)


def test_values_on_a_subset_of_the_samples(study: tuple[Design, list[Control]]) -> None:
    """A layer that is constant on the subset has NaN."""
    passes, where = prepared(study), np.array([1, 0, 4, 7])
    late = np.arange(N // 2 - 3, N)
    V = np.stack([unit_kernel(features(study)[k][late]) for k in where])
    np.testing.assert_allclose(passes.values_on(late, where)[0], V @ V.T, atol=1e-12)
    early = passes.values_on(np.arange(N // 2), where)[0]
    assert np.isnan(early[0]).all()
    assert np.isnan(early[:, 0]).all()
    V = np.stack([unit_kernel(features(study)[k][: N // 2]) for k in where[1:]])
    np.testing.assert_allclose(early[1:, 1:], V @ V.T, atol=1e-12)


def sums_of(passes: Kernels) -> BlockSums:
    """Sum all layers and controls in one block, in small panels and tiles."""
    everything = np.arange(len(passes.names))
    halves = draw_halves(passes.unit_of, 2, seed=0)
    sums = block_sums(passes, Sides(everything, everything), halves, cubes=True, room=6_000, panel=11, tile=4)
    sums.compute(ALONE, lambda: None)
    return sums


def test_without_each_sample(study: tuple[Design, list[Control]]) -> None:
    sums = sums_of(prepared(study))
    values = np.concatenate([sums.without(run).values for run in (slice(0, 7), slice(7, N))])[:, 0]
    every = sums.every.values[0]
    V = np.stack([unit_kernel(x) for x in features(study)])
    np.testing.assert_allclose(every, V @ V.T, atol=1e-12)
    np.testing.assert_array_equal(np.diagonal(every), np.ones(len(V)))
    assert np.linalg.eigvalsh(every).min() > -1e-12
    for i in range(N):
        V = np.stack([unit_kernel(np.delete(x, i, 0)) for x in features(study)])
        np.testing.assert_allclose(values[i], V @ V.T, atol=1e-11)


def test_on_halves(study: tuple[Design, list[Control]]) -> None:
    passes = prepared(study)
    sums = sums_of(passes)
    for split, both in enumerate(sums.halves()):
        for k, of_half in enumerate(both):
            samples = sums.drawn.samples(2 * split + k)
            expected = passes.values_on(samples, np.arange(len(passes.names)))
            np.testing.assert_allclose(of_half.values, expected, atol=1e-11)


def test_reduce(study: tuple[Design, list[Control]]) -> None:
    """Select layers in another order, each reduced to its leading components."""
    full = prepared(study)
    cut = full.reduce([7, 4, 0])
    assert cut.names == ("input 2", "b/block2", "a/block0")
    assert {name: where.tolist() for name, where in cut.positions.items() if len(where)} == {
        "a": [2],
        "b": [1],
        "input": [0],
    }
    np.testing.assert_allclose(cut.values()[0], full.values()[0][np.ix_([7, 4, 0], [7, 4, 0])], atol=5e-3)


def test_every_layer_is_a_source(study: tuple[Design, list[Control]]) -> None:
    layer_sources = sources(study[0].members, "cpu")
    assert [source.name for source in layer_sources] == [f"{model}/block{k}" for model in "ab" for k in range(3)]
    np.testing.assert_array_equal(layer_sources[2].rows()[:], study[0].members[0].store["block2"][:])


CLASSES = np.array([0] * 2 + [1] * 2 + [2, 3] * 5 + [4] * (N - 15) + [5])


def test_similarity_within_classes(study: tuple[Design, list[Control]]) -> None:
    """All samples, a subset, and without each sample, also the only one of its class."""
    passes = kernels(*study, "cpu", classes=Groups.of(CLASSES), keep=True, step=lambda: None)

    def expected(rows: np.ndarray) -> np.ndarray:
        V = np.stack([kernel_within(x[rows], CLASSES[rows]) for x in features(study)])
        return np.asarray(V @ V.T)

    np.testing.assert_allclose(passes.values()[1], expected(np.arange(N)), atol=1e-12)
    part = np.flatnonzero(np.arange(N) % 3 > 0)
    np.testing.assert_allclose(passes.values_on(part, np.arange(len(passes.names)))[1], expected(part), atol=1e-12)
    sums = sums_of(passes)
    np.testing.assert_allclose(sums.every.values[1], passes.values()[1], atol=1e-12)
    values = sums.without(slice(0, N)).values[:, 1]
    for i in range(N):
        np.testing.assert_allclose(values[i], expected(np.delete(np.arange(N), i)), atol=1e-11)
    for split, both in enumerate(sums.halves()):
        for k, of_half in enumerate(both):
            with np.errstate(invalid="ignore"):  # a half whose samples that are not alone are of one class has NaN
                of_samples = expected(sums.drawn.samples(2 * split + k))
            np.testing.assert_allclose(of_half.values[1], of_samples, atol=1e-11)


def test_similarity_within_classes_without_a_group(study: tuple[Design, list[Control]]) -> None:
    """Groups of one to three samples; one class is a single group."""
    built, study_controls = study
    groups = np.repeat(np.arange(15), [1, 2, 3] * 5)
    classes = np.where(groups == 14, 4, groups % 4)
    grouped = replace(built, groups=Groups.of(groups), trained=(), untrained=())
    passes = kernels(grouped, study_controls, "cpu", classes=Groups.of(classes), keep=True, step=lambda: None)
    sweep = passes.leave_one_out(2**20)
    values = np.concatenate(list(sweep.runs(lambda: None)))[:, 1]

    def expected(rows: np.ndarray) -> np.ndarray:
        part = passes.part(rows, range(len(study_controls)))
        V = np.stack([kernel_within(control.features[rows], classes[rows]) for control in study_controls])
        norms = np.sqrt(np.diagonal(part.values()[1]) / np.square(V).sum(1))  # in units of energy between groups
        return np.asarray(V @ V.T * norms * norms[:, None])

    np.testing.assert_allclose(sweep.full_values[1], passes.values()[1], atol=1e-12)
    for group in range(15):
        np.testing.assert_allclose(values[group], expected(np.flatnonzero(groups != group)), atol=1e-11)


def test_layers_that_vary_in_one_sample_are_left_out(rng: np.random.Generator) -> None:
    """Their energy is all on the diagonal of the kernel, which does not count."""
    x = np.ones((N, 3))
    x[4] = 7
    other = x.copy()
    other[9] = 5
    layers = [Control("one", x), Control("two", other), Control("all", x + rng.normal(size=x.shape))]
    passes = kernels(Design((), ()), layers, "cpu", keep=True, step=lambda: None)
    assert passes.names == ("two", "all")
    assert "constant but for one sample" in passes.undefined["one"]
    assert np.isfinite(passes.values()).all()
