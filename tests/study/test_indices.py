"""Every index of a study compared with explicit kernels: U-centred, as vectors, projected by least squares."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim.study import controls
from repsim.study.design import Design, design
from repsim.study.gram_passes import Kernels, kernels
from repsim.study.indices import RAW, TWINS, Indices
from repsim.study.uncertainty import jackknife
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, Array, append_features, unrelated_layers, write_network
from tests.study.references import cosines, unit_kernel, without

N = 30
DEPTHS = {"cnn": 4, "vit": 3}
Keep = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass
class Case:
    design: Design
    controls: list[controls.Control]
    kernels: Kernels
    indices: Indices


def make(folder: Any, stack: ExitStack, models: tuple[str, ...], *, with_controls: bool = True) -> Case:
    rng = np.random.default_rng(3)
    pixels, common, options = rng.normal(size=(N, 3, 2, 2)) + 1, rng.normal(size=(N, 2)), {}
    if with_controls:
        options = {"pixels": pixels, "labels": np.arange(N) % 3}
    stores = []
    for model in models:
        layers = append_features(unrelated_layers(rng, N, *[6] * DEPTHS[model[:3]]), pixels.reshape(N, -1))
        if "+random" not in model:
            layers = append_features(layers, common)
        stores.append(stack.enter_context(write_network(folder, model, layers, **options)))
    study = design(stores)
    study_controls = [*controls.inputs(study), *filter(None, [controls.classes(study)])]
    passes = kernels(study, study_controls, "cpu", keep=True, step=lambda: None)
    return Case(study, study_controls, passes, Indices(study, dict(passes.positions), passes.values()))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with ExitStack() as stack:
        yield make(tmp_path_factory.mktemp("stores"), stack, TRAINED + UNTRAINED)


@dataclass
class Slow:
    """The indices computed from explicit kernels, on some of the samples."""

    case: Case
    keep: Keep

    def __post_init__(self) -> None:
        self.unit = {
            layer: unit_kernel(np.asarray(member.store[array][:])[self.keep])
            for member in self.case.design.members
            for layer, array in zip(member.layers, member.arrays, strict=True)
        }
        controls_by_kind: dict[str, list[Array]] = {RAW: []}
        for control in self.case.controls:
            kernel = unit_kernel(control.features[self.keep].astype(float))
            controls_by_kind.setdefault(control.kind, []).append(kernel)
        self.left = {
            kind: dict(zip(self.unit, without(np.stack(list(self.unit.values())), np.array(Z)), strict=True))
            for kind, Z in controls_by_kind.items()
        }

    def twin(self, layer: str) -> Array:
        """Return the mean unit kernel of the same layer of the untrained networks."""
        model, _, block = layer.partition("/")
        twins = [name for name in self.unit if name.startswith(f"{model[:3]}+") and name.endswith(block)]
        return np.asarray(np.mean([self.unit[name] for name in twins], axis=0))

    def similarity(self, kind: str, a: str, b: str) -> float:
        if kind != TWINS:
            left = self.left[kind]
            return float(cosines(left[a][None], left[b][None])[0, 0])
        if "+random" in a or "+random" in b:
            return np.nan  # an untrained network has no twin
        both = without(np.stack([self.unit[a], self.unit[b]]), np.stack([self.twin(a), self.twin(b)]))
        return float(cosines(both, both)[0, 1])

    def block(self, kind: str, a: Any, b: Any) -> Array:
        return np.array([[self.similarity(kind, x, y) for y in b.layers] for x in a.layers])

    def at_depth(self, member: Any, d: int) -> str:
        relative = np.linspace(0, 1, len(member.layers))
        return str(member.layers[int(np.argmin(np.round(abs(relative - d / (self.case.indices.depths - 1)), 9)))])

    def shares(self, state: str, d: int) -> dict[str, float]:
        models = self.case.design.trained if state == "trained" else self.case.design.untrained
        has_input = "input" in self.left
        left = self.left["input" if has_input else RAW]
        w = [left[self.at_depth(member, d)] for member in models]
        energy = np.mean([x @ x for x in w])
        pairs = list(itertools.combinations(range(len(models)), 2))
        same = [w[i] @ w[j] for i, j in pairs if models[i].family == models[j].family]
        other = [w[i] @ w[j] for i, j in pairs if models[i].family != models[j].family]
        within, across = (np.mean(products) if products else np.nan for products in (same, other))
        return {
            "input": 1 - energy if has_input else np.nan, "universal": across,
            "family": within - across, "seed": energy - within,
            "family_and_seed": energy - across, "universal_and_family": within,
        }  # fmt: skip

    def number(self, name: tuple[str, ...]) -> float:
        """Compute the number with this key of `Indices.names`."""
        indices = self.case.indices
        match name:
            case "mbm", kind, which:
                pair = next(pair for pair in indices.pairs if pair.name == which)
                S = self.block(kind, pair.a, pair.b)
                a_to_b, b_to_a = (match.columns for match in indices.matches[kind, which])
                forth = [S[i, j] for i, j in enumerate(a_to_b) if j >= 0]
                return float((np.mean(forth) + np.mean([S[j, i] for i, j in enumerate(b_to_a) if j >= 0])) / 2)
            case "share", state, d, share:
                return float(self.shares(state, int(d))[share])
            case "models", kind, i, j:
                a, b = (self.case.design.trained[int(k)] for k in (i, j))
                depths = range(indices.depths)
                return float(np.mean([self.similarity(kind, self.at_depth(a, d), self.at_depth(b, d)) for d in depths]))
        raise AssertionError(name)

    def row(self) -> Array:
        return np.array([self.number(name) for name in self.case.indices.names])


def everything() -> Keep:
    return np.ones(N, bool)


def all_but(i: int) -> Keep:
    return np.asarray(np.arange(N) != i)


def defined(indices: Indices) -> list[bool]:
    """Return which names have a value: given untrained twins, a pair with an untrained network has none."""
    return [not (name[0] == "mbm" and name[1] == TWINS and "+random" in name[2]) for name in indices.names]


def test_every_number_equals_that_of_explicit_kernels(case: Case) -> None:
    indices = case.indices
    assert indices.kernels == (RAW, "input", "labels")
    assert indices.conditions == (*indices.kernels, TWINS)
    assert len(indices.pairs) == 6 + (2 + 1 + 1) + 4 * 4  # trained; untrained twins by seed; one of the two trained
    with np.errstate(invalid="ignore"):
        numbers, with_value = indices.evaluate(indices.R), defined(indices)
    assert np.isnan(numbers).tolist() == np.logical_not(with_value).tolist()
    slow = Slow(case, everything())
    expected = np.array(
        [slow.number(name) if ok else np.nan for name, ok in zip(indices.names, with_value, strict=True)]
    )
    np.testing.assert_allclose(numbers, expected, atol=1e-10)


def test_the_point_estimate_is_along_the_best_of_all_paths(case: Case) -> None:
    """`evaluate` uses the matches of all samples, so that for all samples they are the best."""
    indices, slow = case.indices, Slow(case, everything())
    numbers = dict(zip(indices.names, indices.evaluate(indices.R), strict=True))

    def best(S: Array) -> float:
        paths = itertools.combinations_with_replacement(range(S.shape[1]), len(S))
        return max(float(np.mean([S[i, j] for i, j in enumerate(path)])) for path in paths)

    for kind, pair in itertools.product(indices.conditions, indices.design.pairs):
        S = slow.block(kind, pair.a, pair.b)
        assert numbers["mbm", kind, pair.name] == pytest.approx((best(S) + best(S.T)) / 2, abs=1e-10)


def test_a_twin_of_both_layers_is_projected_out_once(case: Case) -> None:
    """Layers of two seeds of one architecture at one depth have the same twins, which span one direction."""
    indices, slow = case.indices, Slow(case, everything())
    values = indices.similarities(indices.R, TWINS)
    first, second = case.design.trained[:2]
    for d, (a, b) in enumerate(zip(first.layers, second.layers, strict=True)):
        u, v, twin = slow.unit[a], slow.unit[b], slow.twin(a)
        np.testing.assert_array_equal(twin, slow.twin(b))
        w, x = (kernel - kernel @ twin / (twin @ twin) * twin for kernel in (u, v))
        value = values[indices.positions[first.name][d], indices.positions[second.name][d]]
        assert value == pytest.approx(float(w @ x / np.sqrt((w @ w) * (x @ x))), abs=1e-10)


def runs(case: Case, room: int) -> Iterator[Array]:
    return (values for _, values in case.kernels.leave_one_out(room).runs(lambda: None))


@pytest.fixture(scope="module")
def left_out(case: Case) -> tuple[Array, dict[str, Array]]:
    return case.indices.without_each(runs(case, 2**29))


def test_without_each_sample_everything_is_recomputed(case: Case, left_out: tuple[Array, dict[str, Array]]) -> None:
    """The sample is deleted from every array, also from pixels and labels; the matches stay those of all samples."""
    rows, with_value = left_out[0], defined(case.indices)
    assert rows.shape == (N, len(case.indices.names))
    for i in range(0, N, 6):
        slow = Slow(case, all_but(i))
        expected = [
            slow.number(name) if ok else np.nan for name, ok in zip(case.indices.names, with_value, strict=True)
        ]
        np.testing.assert_allclose(rows[i], expected, atol=1e-10)


def test_errors_of_layers_are_those_of_the_replicates(case: Case, left_out: tuple[Array, dict[str, Array]]) -> None:
    indices, every = case.indices, np.array([Slow(case, all_but(i)) for i in range(N)])
    layers = [case.kernels.names[k] for k in indices.layers]
    pairs = [(0, 1), (0, 5), (3, 9), (2, 13), (6, 8)]
    for kind, (i, j) in itertools.product(indices.conditions, pairs):
        replicates = np.array([slow.similarity(kind, layers[i], layers[j]) for slow in every])
        expected = jackknife(Slow(case, everything()).similarity(kind, layers[i], layers[j]), replicates).se
        np.testing.assert_allclose(left_out[1][kind][i, j], expected, atol=1e-8)
        assert left_out[1][kind][j, i] == pytest.approx(expected, abs=1e-8)


def test_pieces_give_what_the_whole_gives(
    case: Case, left_out: tuple[Array, dict[str, Array]], tuned: Callable[..., None]
) -> None:
    tuned(jackknife_memory=1)  # one sample at a time
    rows, errors = case.indices.without_each(runs(case, 100_000))  # and a few samples in each run
    np.testing.assert_allclose(rows, left_out[0], atol=1e-12)
    for kind, expected in left_out[1].items():
        np.testing.assert_allclose(errors[kind], expected, atol=1e-9)


def test_shares_sum_to_one_in_every_replicate(case: Case, left_out: tuple[Array, dict[str, Array]]) -> None:
    indices = case.indices
    values = np.vstack([indices.evaluate(indices.R), left_out[0]])
    for state, d in itertools.product(("trained", "untrained"), range(indices.depths)):
        column: Callable[[str], Array] = lambda name: values[:, indices.column_of["share", state, str(d), name]]  # noqa: B023, E731 - called at once
        four = sum(column(name) for name in ("input", "universal", "family", "seed"))
        np.testing.assert_allclose(four, 1, atol=1e-10)
        np.testing.assert_allclose(column("input") + column("universal") + column("family_and_seed"), 1, atol=1e-10)
        np.testing.assert_allclose(column("input") + column("seed") + column("universal_and_family"), 1, atol=1e-10)


def test_similarities_of_models_are_positive_semidefinite(case: Case) -> None:
    indices = case.indices
    for kind in indices.kernels:
        C = indices.of_models(indices.similarities(indices.R, kind), indices.design.trained)
        assert np.linalg.eigvalsh(C).min() > -1e-12
        np.testing.assert_allclose(np.diagonal(C), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("models", "numbers"),
    [
        (("cnn.seed0",), 0),
        (("cnn.seed0", "cnn.seed1"), 1 + 6 * 4 + 1),
        (("cnn.seed0", "vit.seed0"), 1 + 6 * 3 + 1),
        (("cnn.seed0", "vit.seed0", "vit+random-seed0"), 2 * (1 + 1) + 6 * 3 + 1),
    ],
)
def test_few_models_and_no_controls(tmp_path: Any, models: tuple[str, ...], numbers: int) -> None:
    with ExitStack() as stack:
        case = make(tmp_path, stack, models, with_controls=False)
        indices = case.indices
        assert indices.kernels == (RAW,)
        assert len(indices.names) == numbers
        slow = Slow(case, everything())
        names = [name for name in indices.names if TWINS not in name]
        values = indices.evaluate(indices.R)[[indices.column_of[name] for name in names]]
        np.testing.assert_allclose(values, [slow.number(name) for name in names], atol=1e-10)


def test_layers_of_other_names_are_no_twins(tmp_path: Path) -> None:
    """With the same number of layers but other names, corresponding layers are not known, and there is no value."""
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(write_network(tmp_path, model, {name: rng.normal(size=(N, 6)) for name in names}))
            for model, names in (
                ("cnn.seed0", "abc"),
                ("vit.seed0", "abc"),
                (UNTRAINED[0], "abc"),
                (UNTRAINED[2], "abd"),
            )
        ]
        study = universality(stores, ["cka"], permutations=19, draws=50)
    values = study["value"].sel(measure="cka given untrained").values
    assert np.isfinite(values[:3, :3]).all()
    assert np.isnan(values[3:]).all()
    assert "the untrained networks of vit.seed0 have other layers" in study.attrs["warnings"]
