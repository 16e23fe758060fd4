"""Permutation nulls: plain values equal those of `repsim.permuted`, partial values those of permuted residuals."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from repsim.engine.checkpoints import Checkpoints
from repsim.engine.permutation import least_bytes
from repsim.engine.resampling import permuted, random_permutations
from repsim.metrics.recipes.gram import CentredGram
from repsim.study import controls, permutation_nulls
from repsim.study.blocks import Block, blocks, divide
from repsim.study.chance import p_value
from repsim.study.design import Design, design
from repsim.study.gram_passes import Kernels, kernels
from repsim.study.indices import RAW, Indices, matches_on
from repsim.study.layer_matching import mbm
from repsim.study.units import Sharing
from repsim.testing.examples import TRAINED, UNTRAINED, Array, write_networks
from tests.largest_tensor import Largest
from tests.study.references import unit_kernel, without

N, COUNT = 24, 12
ORDERS = random_permutations(N, COUNT, 5)
Study = tuple[Design, list[controls.Control], Kernels, Indices]
KINDS = (RAW, "input", "labels")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with ExitStack() as stack:
        rng, folder = np.random.default_rng(4), tmp_path_factory.mktemp("stores")
        stores = write_networks(folder, rng, N, learned=0.6, seen=0.8, models=(*TRAINED[:3], UNTRAINED[0]))
        built = design([stack.enter_context(store) for store in stores])
        study_controls = controls.inputs(built.stores)
        passes = kernels(built, study_controls, "cpu", keep=True, step=lambda: None)
        empty = Indices(built, passes.positions, len(passes.names), {})
        matches = matches_on(empty, passes.values())
        yield built, study_controls, passes, Indices(built, passes.positions, len(passes.names), matches)


def draw(kernels: Kernels, samples: np.ndarray) -> np.ndarray:
    return ORDERS if len(samples) == N else random_permutations(len(samples), COUNT, 6)


def parts_of(study: Study, most: int = 100) -> list[permutation_nulls.Reduced]:
    """Divide a study into blocks of at most this many layers."""
    return permutation_nulls.reduced(study[2], study[0], blocks(divide(study[0].members, most)))


def of_cka(study: Study) -> dict[tuple[str, str], permutation_nulls.Null]:
    return permutation_nulls.cka_nulls(parts_of(study), KINDS, draw)


def features(study: Study) -> dict[str, list[Array]]:
    return {member.name: [member.store[array][:] for array in member.arrays] for member in study[0].trained}


def test_plain_values_are_those_of_permuted(study: Study) -> None:
    nulls, layers = of_cka(study), features(study)
    for pair in study[0].pairs:
        a, b = layers[pair.a.name], layers[pair.b.name]
        values = permuted(a, b, "cka", [np.arange(N), *ORDERS])
        expected = np.stack([mbm(values), values.max((1, 2))], -1)
        null = nulls[RAW, pair.name]
        np.testing.assert_allclose(null.observed, expected[0], atol=1e-12)
        np.testing.assert_allclose(null.permuted, expected[1:], atol=1e-12)


def test_partial_values_are_those_of_permuted_residuals(study: Study) -> None:
    """The residual kernel of b, an n x n matrix, is permuted in its rows and columns."""
    nulls, layers = of_cka(study), features(study)
    Z = np.array([unit_kernel(control.features) for control in study[1]])
    for pair in study[0].pairs:
        unit_residuals = {}
        for side in (pair.a.name, pair.b.name):
            residuals = without(np.stack([unit_kernel(x) for x in layers[side]]), Z)
            unit_residuals[side] = residuals / np.linalg.norm(residuals, axis=1, keepdims=True)
        b = unit_residuals[pair.b.name].reshape(-1, N, N)
        values = np.stack(
            [
                unit_residuals[pair.a.name] @ b[:, order][:, :, order].reshape(len(b), -1).T
                for order in (np.arange(N), *ORDERS)
            ]
        )
        expected = np.stack([mbm(values), values.max((1, 2))], -1)
        null = nulls["input", pair.name]
        np.testing.assert_allclose(null.observed, expected[0], atol=1e-6)
        np.testing.assert_allclose(null.permuted, expected[1:], atol=1e-6)


def test_all_pairs_have_a_null(study: Study) -> None:
    """Untrained twins differ from layer to layer, and what is left within classes is not permuted."""
    names = [pair.name for pair in study[0].pairs]
    assert set(of_cka(study)) == {(kind, name) for kind in (RAW, "input") for name in names}


def test_observed_is_the_index_of_the_study(study: Study) -> None:
    indices = study[3]
    theta = dict(zip(indices.names, indices.evaluate(study[2].values()), strict=True))
    for (kind, name), null in of_cka(study).items():
        assert null.observed[0] == pytest.approx(theta["index", kind, name], abs=1e-6)


def test_runs_of_permutations_are_one_after_the_other(study: Study, tuned: Callable[..., None]) -> None:
    whole, steps = of_cka(study), []
    tuned(permutations_at_once=5)
    in_runs = permutation_nulls.cka_nulls(parts_of(study), KINDS, draw, progress=lambda *done: steps.append(done))
    assert steps == sorted(steps)  # a run also reports while it is computed
    assert set(steps) == {(done, 6) for done in range(7)}  # permutations 0 to 4, 5 to 9, and the rest, of two kinds
    assert in_runs.keys() == whole.keys()
    for key, null in whole.items():
        np.testing.assert_allclose(in_runs[key].permuted, null.permuted, atol=1e-13)
        np.testing.assert_array_equal(in_runs[key].observed, null.observed)


def test_blocks_of_models_give_what_the_whole_gives(study: Study) -> None:
    """Every pair of trained models is in one block, also if one model of the block is untrained."""
    whole, layers = of_cka(study), len(study[0].trained[0].layers)
    for most in (layers, 2 * layers):
        parts = parts_of(study, most)
        names = [pair.name for part in parts for pair in part.pairs]
        assert sorted(names) == sorted(pair.name for pair in study[0].pairs)
        divided = permutation_nulls.cka_nulls(parts, KINDS, draw)
        assert divided.keys() == whole.keys()
        for key, null in whole.items():
            np.testing.assert_allclose(divided[key].permuted, null.permuted, atol=1e-6)
            np.testing.assert_allclose(divided[key].observed, null.observed, atol=1e-6)
            if key[0] == RAW:
                np.testing.assert_allclose(divided[key].permuted, null.permuted, atol=1e-12)


def test_many_samples_are_cut_to_leading_components(study: Study, tuned: Callable[..., None]) -> None:
    whole = of_cka(study)
    tuned(exact_samples=N - 1, permuted_entry=1e9)
    cut = of_cka(study)
    assert cut.keys() == whole.keys()
    moved = max(abs(cut[key].permuted - null.permuted).max() for key, null in whole.items())
    assert 0 < moved < 2e-2  # without 1e-3 of its energy, a kernel's direction changes by 3e-2
    for key, null in whole.items():
        np.testing.assert_allclose(cut[key].observed, null.observed, atol=1e-2)
        difference = abs(p_value(cut[key].observed, cut[key].permuted) - p_value(null.observed, null.permuted))
        assert difference.max() <= 1 / (COUNT + 1) + 1e-12


@pytest.mark.parametrize(("memory", "entry"), [(100, 1e9), (None, 0.0)])
def test_layers_of_many_components_are_permuted_as_they_are(
    study: Study, tuned: Callable[..., None], memory: int | None, entry: float
) -> None:
    """If cutting them takes more memory than allowed, or permuting components takes longer than Gram matrices."""
    whole = of_cka(study)
    tuned(exact_samples=N - 1, permuted_entry=entry, permuted_layer=0.0, permuted_pair=0.0)
    (part,) = parts_of(study)
    limited = dataclasses.replace(part, memory=memory)
    assert limited.plain is part.kernels
    unlimited = dataclasses.replace(part, memory=None)
    values = permutation_nulls.cka_nulls([unlimited], [RAW], draw)
    assert (unlimited.plain is part.kernels) == (memory is None)
    if memory is None:
        for key, null in values.items():
            np.testing.assert_array_equal(null.permuted, whole[key].permuted)


def test_fewer_components_are_kept_if_not_even_two_gram_matrices_fit(rng: np.random.Generator) -> None:
    n, recipe = 600, CentredGram()
    grams = tuple(recipe(torch.from_numpy(rng.normal(size=(n, 100)).astype(np.float32))) for _ in "ab")
    full = Kernels(("a", "b"), grams, {"a": np.array([0]), "b": np.array([1])}, {})
    least = least_bytes(n, 4)
    plain, kept = permutation_nulls.reduced_kernels(full, ["a", "b"], least)
    assert plain is full  # all components take more memory than Gram matrices
    assert kept == 1
    cut, kept = permutation_nulls.reduced_kernels(full, ["a", "b"], least - 1)
    assert cut.reduced
    assert 0 < kept < 0.99
    assert 0 < sum(gram.p for gram in cut.grams) < 150


def test_layers_that_are_cut_count_as_progress(study: Study, tuned: Callable[..., None]) -> None:
    """Cutting many layers takes longer than permuting them, and nothing moved meanwhile."""
    tuned(exact_samples=N - 1, permuted_entry=1e9, permutations_at_once=5)
    layers, steps = sum(len(member.layers) for member in study[0].trained), []
    permutation_nulls.cka_nulls(parts_of(study), [RAW], draw, progress=lambda *done: steps.append(done))
    assert set(steps) == {(done, layers + 3) for done in range(1, layers + 4)}
    assert steps == sorted(steps)


LITTLE = least_bytes(N, 8)
"""Bytes in which Gram matrices of two layers fit, and leading components of all layers do not."""


@pytest.mark.parametrize("memories", [(None, LITTLE), (LITTLE, None), (None, LITTLE, None)])
def test_a_run_that_goes_on_with_other_memory_permutes_the_same_kernels(
    study: Study, tuned: Callable[..., None], tmp_path: Path, memories: tuple[int | None, ...]
) -> None:
    """With little memory layers are permuted as they are, otherwise cut; one distribution is never made of both."""
    tuned(exact_samples=N - 1, permuted_entry=1e9, permutations_at_once=5)
    sharing = Sharing(Checkpoints(tmp_path / "parts", keep=True))

    def nulls(
        memory: int | None, sharing: Sharing | None = None, stop: int = 1000
    ) -> dict[tuple[str, str], permutation_nulls.Null]:
        (part,) = parts_of(study)
        part = dataclasses.replace(part, memory=memory)

        def progress(done: int, total: int) -> None:
            if stop <= done - part.cuts < total - part.cuts:
                raise KeyboardInterrupt

        return permutation_nulls.cka_nulls(
            [part], [RAW], draw, name=lambda part: part.identity, sharing=sharing, progress=progress
        )

    for number, memory in enumerate(memories[:-1]):
        with pytest.raises(KeyboardInterrupt):
            nulls(memory, sharing, stop=number + 1)
    resumed = nulls(memories[-1], sharing)
    alike = []
    for memory in (None, LITTLE):
        alone = nulls(memory)
        assert alone.keys() == resumed.keys()
        alike.append(all(np.allclose(null.permuted, alone[key].permuted, atol=1e-12) for key, null in resumed.items()))
    assert alike == [False, True]
    files = len(list((tmp_path / "parts").iterdir()))
    nulls(memories[-1], sharing)
    assert len(list((tmp_path / "parts").iterdir())) == files


def test_blocks_are_divided_until_their_components_fit(study: Study, tuned: Callable[..., None]) -> None:
    tuned(exact_samples=N - 1, permuted_entry=1e9)
    design, kernels = study[0], study[2]
    (block,) = blocks(divide(design.members, 100))
    whole = permutation_nulls.cka_nulls(permutation_nulls.reduced(kernels, design, [block]), [RAW], draw)
    (part,) = permutation_nulls.reduced(kernels, design, [block], memory=2**30)
    assert len(part.pairs) == len(design.pairs)
    for memory in (2**14, 1):
        parts = permutation_nulls.reduced(kernels, design, [block], memory)
        assert len(parts) > 1
        assert {pair.name for part in parts for pair in part.pairs} == {pair.name for pair in design.pairs}
        assert sum(len(part.pairs) for part in parts) == len(design.pairs)
        unlimited = [dataclasses.replace(part, memory=None) for part in parts]
        for key, null in permutation_nulls.cka_nulls(unlimited, [RAW], draw).items():
            np.testing.assert_allclose(null.permuted, whole[key].permuted, atol=1e-2)
        assert not any("_reduced" in vars(part) for part in unlimited)  # all of them may not fit into the memory


@pytest.mark.parametrize("exact", [N, N - 1])
def test_values_do_not_depend_on_the_number_of_threads(study: Study, tuned: Callable[..., None], exact: int) -> None:
    tuned(exact_samples=exact, permuted_entry=1e9)
    threads, nulls = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            nulls.append(of_cka(study))
    finally:
        torch.set_num_threads(threads)
    for key, null in nulls[0].items():
        np.testing.assert_array_equal(nulls[1][key].permuted, null.permuted)


def test_threads_gather_few_values_at_a_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual kernels of all layers take much memory, and every thread gathers them for a permutation of its own."""
    residuals = parts_of(study)[0].residuals(COUNT)
    order = torch.from_numpy(ORDERS[0])
    with Largest() as everything:
        expected = residuals.products(order)
    width = residuals._right.shape[1]
    assert everything.values == residuals._right.numel() // 2 - N * width // 2  # half of the pairs of samples
    monkeypatch.setattr(permutation_nulls, "_GATHERED", 40 * width)
    with Largest() as few:
        values = residuals.products(order)
    assert few.values <= residuals._left.numel() < everything.values  # of which a part is a view
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_one_model_has_nothing_to_permute(study: Study) -> None:
    alone = Design(study[0].trained[:1], ())
    parts = permutation_nulls.reduced(study[2], alone, [Block(alone.members, alone.members)])
    assert permutation_nulls.cka_nulls(parts, KINDS, draw) == {}


def test_statistics() -> None:
    S = np.array([[0.1, 0.9, np.nan], [0.8, 0.2, 0.3]])
    np.testing.assert_allclose(permutation_nulls.statistics(S), [float(mbm(S)), 0.9])
    assert np.isnan(permutation_nulls.statistics(np.full((2, 2), np.nan))).all()
    batch = np.stack([S, -S])
    np.testing.assert_array_equal(permutation_nulls.statistics(batch)[1], permutation_nulls.statistics(-S))


def test_null_of_values() -> None:
    rng = np.random.default_rng(0)
    observed, values = rng.normal(size=(2, 3)), rng.normal(size=(4, 2, 3))
    null = permutation_nulls.null_of_values(observed, values)
    np.testing.assert_array_equal(null.observed, [mbm(observed), observed.max()])
    np.testing.assert_array_equal(null.permuted[:, 1], values.max((1, 2)))
