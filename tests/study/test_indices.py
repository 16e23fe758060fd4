"""Every index of a study compared with explicit kernels: U-centred, as vectors, projected by least squares."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim.engine.uncertainty import jackknife
from repsim.runtime.processes import ALONE
from repsim.study import controls
from repsim.study.block_sums import block_sums, draw_halves
from repsim.study.blocks import Sides
from repsim.study.design import Design, Member, Pair, design
from repsim.study.estimation import without_each
from repsim.study.gram_passes import Kernels, kernels
from repsim.study.indices import RAW, TWINS, Indices, cross_fitted, matches_on, mean_over_splits
from repsim.study.layer_matching import LayerMaps
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, Array, append_features, unrelated_layers, write_network
from tests.study.references import cosines, kernel_within, unit_kernel, without

N = 30
DEPTHS = {"cnn": 4, "vit": 3}
Keep = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass
class Case:
    design: Design
    controls: list[controls.Control]
    kernels: Kernels
    R: Array
    indices: Indices


def soft_maps(indices: Indices) -> dict[tuple[str, str], LayerMaps]:
    """Make maps with several targets for each layer, as means of maps are; a layer of some pairs is left out."""
    rng, maps = np.random.default_rng(4), {}
    for kind, (k, pair) in itertools.product(indices.conditions, enumerate(indices.pairs)):
        a, b = (len(indices.positions[member.name]) for member in (pair.a, pair.b))
        a_to_b, b_to_a = rng.dirichlet(np.ones(b), a), rng.dirichlet(np.ones(a), b)
        if k % 2:
            a_to_b[k % a] = 0
        b_to_a[k % b] /= 2  # left out on half of the splits
        maps[kind, pair.name] = LayerMaps(a_to_b, b_to_a)
    return maps


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
    study_controls, classes = controls.inputs(study.stores), controls.classes(study)
    passes = kernels(study, study_controls, "cpu", classes=classes, keep=True, step=lambda: None)
    R = passes.values()
    empty = Indices(study, passes.positions, len(passes.names), {}, classes=with_controls)
    indices = replace(empty, maps=soft_maps(empty), best=matches_on(empty, R))
    return Case(study, study_controls, passes, R, indices)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with ExitStack() as stack:
        yield make(tmp_path_factory.mktemp("stores"), stack, TRAINED + UNTRAINED)


def paths(rows: int, columns: int) -> Iterator[tuple[int, ...]]:
    return itertools.combinations_with_replacement(range(columns), rows)


def along(S: Array, path: tuple[int, ...]) -> float:
    return float(np.mean([S[i, j] for i, j in enumerate(path)]))


def best_path(S: Array) -> tuple[int, ...]:
    return max(paths(*S.shape), key=lambda path: along(S, path))


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
        classes = (np.arange(N) % 3)[self.keep]
        layers = {
            layer: np.asarray(member.store[array][:])[self.keep]
            for member in self.case.design.members
            for layer, array in zip(member.layers, member.arrays, strict=True)
        }
        pixels = [control.features[self.keep].astype(float) for control in self.case.controls]

        def left_by(kernel: Callable[[Array], Array], inputs: list[Array]) -> dict[str, Array]:
            V, Z = np.stack([kernel(x) for x in layers.values()]), np.array([kernel(x) for x in inputs])
            return dict(zip(layers, without(V, Z), strict=True))

        def within(x: Array) -> Array:
            return kernel_within(x, classes)

        self.left = {RAW: left_by(unit_kernel, [])}
        if pixels:
            self.left |= {"input": left_by(unit_kernel, pixels)}
            self.left |= {"labels": left_by(within, []), "input and labels": left_by(within, pixels)}

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

    def energies(self, kind: str, a: Any, b: Any) -> Array:
        """Compute the inner products of what is left of unit kernels."""
        return np.array([[self.left[kind][x] @ self.left[kind][y] for y in b.layers] for x in a.layers])

    def pair(self, name: str) -> Pair:
        return next(pair for pair in self.case.indices.pairs if pair.name == name)

    def along_maps(self, S: Array, maps: LayerMaps) -> float:
        """Compute the mean over both directions of the mean over the targets of all layers, as often as they match."""
        means = []
        for weights, values in ((maps.a_to_b, S), (maps.b_to_a, S.T)):
            means.append(sum(row @ s for row, s in zip(weights, values, strict=True)) / weights.sum())
        return float(np.mean(means))

    def at_depth(self, member: Member, d: int) -> int:
        relative = np.linspace(0, 1, len(member.layers))
        return int(np.argmin(np.round(abs(relative - d / (self.case.indices.depths - 1)), 9)))

    def alike_at_depth(self, a: Member, b: Member, d: int) -> float:
        """Compute the energy that two networks share where one is at this depth and the other at its match."""
        kind = "input" if "input" in self.left else RAW
        maps, C = self.case.indices.maps[kind, Pair(a, b).name], self.energies(kind, a, b)
        i, j = self.at_depth(a, d), self.at_depth(b, d)
        rows = ((maps.a_to_b[i], C[i]), (maps.b_to_a[j], C[:, j]))
        return float(np.mean([weights @ values / weights.sum() for weights, values in rows if weights.any()]))

    def shares(self, state: str, d: int) -> dict[str, float]:
        models = self.case.design.trained if state == "trained" else self.case.design.untrained
        has_input = "input" in self.left
        left = self.left["input" if has_input else RAW]
        own = [left[member.layers[self.at_depth(member, d)]] for member in models]
        energy = np.mean([x @ x for x in own])
        pairs = list(itertools.combinations(models, 2))
        same = [self.alike_at_depth(a, b, d) for a, b in pairs if a.family == b.family]
        other = [self.alike_at_depth(a, b, d) for a, b in pairs if a.family != b.family]
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
            case "index", kind, which:
                pair = self.pair(which)
                return self.along_maps(self.block(kind, pair.a, pair.b), indices.maps[kind, which])
            case "best", kind, which:
                pair = self.pair(which)
                assert indices.best is not None
                return self.along_maps(self.block(kind, pair.a, pair.b), indices.best[kind, which])
            case "energy", kind, which:
                pair = self.pair(which)
                return self.along_maps(self.energies(kind, pair.a, pair.b), indices.maps[kind, which])
            case "left", kind, which:
                (member,) = (member for member in self.case.design.members if member.name == which)
                return float(np.mean([self.left[kind][layer] @ self.left[kind][layer] for layer in member.layers]))
            case "share", state, d, share:
                return float(self.shares(state, int(d))[share])
        raise AssertionError(name)

    def row(self) -> Array:
        """Compute all numbers; given untrained twins, a pair with an untrained network has no value."""
        names = self.case.indices.names
        return np.array([np.nan if is_undefined(name) else self.number(name) for name in names])


def is_undefined(name: tuple[str, ...]) -> bool:
    return name[1] == TWINS and "+random" in name[2]


def everything() -> Keep:
    return np.ones(N, bool)


def all_but(i: int) -> Keep:
    return np.asarray(np.arange(N) != i)


def test_every_number_equals_that_of_explicit_kernels(case: Case) -> None:
    indices = case.indices
    assert indices.kernels == (RAW, "input", "labels", "input and labels")
    assert indices.energies == indices.kernels[1:]
    assert indices.conditions == (*indices.kernels, TWINS)
    assert len(indices.pairs) == 8 * 7 / 2
    assert {name[0] for name in indices.names} == {"index", "best", "energy", "left", "share"}
    np.testing.assert_allclose(indices.evaluate(case.R), Slow(case, everything()).row(), atol=1e-10)


def test_the_plain_index_is_along_the_best_of_all_paths(case: Case) -> None:
    indices, slow = case.indices, Slow(case, everything())
    numbers = dict(zip(indices.names, indices.evaluate(case.R), strict=True))
    for kind, pair in itertools.product(indices.conditions, indices.design.pairs):
        S = slow.block(kind, pair.a, pair.b)
        best = [along(X, best_path(X)) for X in (S, S.T)]
        assert numbers["best", kind, pair.name] == pytest.approx(np.mean(best), abs=1e-10)


def test_a_twin_of_both_layers_is_projected_out_once(case: Case) -> None:
    """Layers of two seeds of one architecture at one depth have the same twins, which span one direction."""
    indices, slow = case.indices, Slow(case, everything())
    values = indices.similarities(case.R, TWINS)
    first, second = case.design.trained[:2]
    for d, (a, b) in enumerate(zip(first.layers, second.layers, strict=True)):
        u, v, twin = slow.unit[a], slow.unit[b], slow.twin(a)
        np.testing.assert_array_equal(twin, slow.twin(b))
        w, x = (kernel - kernel @ twin / (twin @ twin) * twin for kernel in (u, v))
        value = values[indices.positions[first.name][d], indices.positions[second.name][d]]
        assert value == pytest.approx(float(w @ x / np.sqrt((w @ w) * (x @ x))), abs=1e-10)


def all_left_out(case: Case) -> tuple[Array, dict[str, Array]]:
    """Return all indices without each sample, and standard errors by the kind of control."""
    everything, indices = np.arange(len(case.kernels.names)), case.indices
    halves = draw_halves(case.kernels.unit_of, 1, seed=0)
    sums = block_sums(case.kernels, Sides(everything, everything), halves, cubes=False, room=0)
    sums.compute(ALONE, lambda: None)
    parts, errors = without_each(indices, sums.every, sums.without, N)
    return indices.assembled(parts), dict(zip(indices.conditions, errors, strict=True))


@pytest.fixture(scope="module")
def left_out(case: Case) -> tuple[Array, dict[str, Array]]:
    return all_left_out(case)


def test_without_each_sample_everything_is_recomputed(case: Case, left_out: tuple[Array, dict[str, Array]]) -> None:
    """The sample is deleted from every array, also from pixels and labels; the maps of layers are kept."""
    assert left_out[0].shape == (N, len(case.indices.names))
    for i in range(0, N, 8):
        np.testing.assert_allclose(left_out[0][i], Slow(case, all_but(i)).row(), atol=1e-10)


@pytest.mark.slow
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
    size = case.R.size * 8
    tuned(jackknife_memory=7 * size)  # seven samples at a time
    rows, errors = all_left_out(case)
    np.testing.assert_allclose(rows, left_out[0], atol=1e-12)
    for kind, expected in left_out[1].items():
        np.testing.assert_allclose(errors[kind], expected, atol=1e-9)


def test_shares_sum_to_one_in_every_replicate(case: Case, left_out: tuple[Array, dict[str, Array]]) -> None:
    indices = case.indices
    values = np.vstack([indices.evaluate(case.R), left_out[0]])
    for state, d in itertools.product(("trained", "untrained"), range(indices.depths)):
        column: Callable[[str], Array] = lambda name: values[:, indices.column_of["share", state, str(d), name]]  # noqa: B023, E731 - called at once
        four = sum(column(name) for name in ("input", "universal", "family", "seed"))
        np.testing.assert_allclose(four, 1, atol=1e-10)
        np.testing.assert_allclose(column("input") + column("universal") + column("family_and_seed"), 1, atol=1e-10)
        np.testing.assert_allclose(column("input") + column("seed") + column("universal_and_family"), 1, atol=1e-10)


@pytest.mark.parametrize(
    ("models", "numbers"),
    [
        (("cnn.seed0",), 0),
        (("cnn.seed0", "cnn.seed1"), 2 + 6 * 4),
        (("cnn.seed0", "vit.seed0"), 2 + 6 * 3),
        (("cnn.seed0", "vit.seed0", "vit+random-seed0"), 2 * 2 * 3 + 6 * 3),
    ],
)
def test_few_models_and_no_controls(tmp_path: Any, models: tuple[str, ...], numbers: int) -> None:
    """Without pixels there is no energy that is left, and no share of the input."""
    with ExitStack() as stack:
        case = make(tmp_path, stack, models, with_controls=False)
        indices = case.indices
        assert indices.kernels == (RAW,)
        assert len(indices.names) == numbers
        slow = Slow(case, everything())
        names = [name for name in indices.names if TWINS not in name]
        values = indices.evaluate(case.R)[[indices.column_of[name] for name in names]]
        np.testing.assert_allclose(values, [slow.number(name) for name in names], atol=1e-10)


# Matches on one half, similarities on the other


def test_matches_come_from_one_half_and_values_from_the_other(case: Case) -> None:
    """Every split gives two values, one for each half on which layers are matched; the maps are their means."""
    everywhere, rng = np.arange(len(case.kernels.names)), np.random.default_rng(0)
    kept = [(order < N // 2, order >= N // 2) for order in (rng.permutation(N) for _ in range(2))]
    matrices = [[case.kernels.values_on(np.flatnonzero(keep), everywhere) for keep in halves] for halves in kept]

    def along_maps(maps: Any) -> Indices:
        return replace(case.indices, maps=maps, best=None)

    by_split, maps = cross_fitted(along_maps, iter([(one, other) for one, other in matrices]))
    values = mean_over_splits(by_split)
    column_of = along_maps(maps).column_of
    slow = [[Slow(case, np.asarray(keep)) for keep in halves] for halves in kept]
    a, b = case.design.trained[1], case.design.trained[2]
    for kind in case.indices.conditions:
        measured, energies, forth = [], [], []
        for halves in slow:
            for first, second in (halves, halves[::-1]):
                S, T = (half.block(kind, a, b) for half in (first, second))
                forward, back = best_path(S), best_path(S.T)
                forth.append([[float(j == k) for k in range(len(b.layers))] for j in forward])
                measured.append((along(T, forward) + along(T.T, back)) / 2)
                if kind in case.indices.energies:
                    C = second.energies(kind, a, b)
                    energies.append((along(C, forward) + along(C.T, back)) / 2)
        name = Pair(a, b).name
        assert values[column_of["index", kind, name]] == pytest.approx(np.mean(measured), abs=1e-10)
        if energies:
            assert values[column_of["energy", kind, name]] == pytest.approx(np.mean(energies), abs=1e-10)
        np.testing.assert_allclose(maps[kind, name].a_to_b, np.mean(forth, axis=0), atol=1e-12)


def test_a_split_without_a_value_does_not_count(case: Case) -> None:
    """On half of the samples a layer can be constant; where no split has a value there is none."""
    everywhere = np.arange(len(case.kernels.names))
    whole = [case.kernels.values_on(np.arange(N)[k::2], everywhere) for k in (0, 1)]
    lost = [R.copy() for R in whole]
    first = case.kernels.positions["cnn.seed0"]
    lost[0][:, first], lost[0][..., first] = np.nan, np.nan

    def values(*halves: Any) -> dict[tuple[str, ...], float]:
        def along_maps(maps: Any) -> Indices:
            return replace(case.indices, maps=maps, best=None)

        numbers, maps = cross_fitted(along_maps, iter(halves))
        return dict(zip(along_maps(maps).parts, mean_over_splits(numbers), strict=True))

    complete, partly, never = values(whole), values(whole, lost), values(lost)
    with_first, others = ("index", RAW, "cnn.seed0 x vit.seed0"), ("index", RAW, "cnn.seed1 x vit.seed0")
    assert partly[with_first] == pytest.approx(complete[with_first], abs=1e-12)
    assert np.isnan(never[with_first])
    assert never[others] == pytest.approx(complete[others], abs=1e-12)


# Variance of unrelated networks


def exact_variance(A: Array, B: Array, weights: Array) -> float:
    """Compute the variance of a weighted sum of inner products over all permutations of the samples of B."""
    n = round(np.sqrt(A.shape[1]))
    matrices = B.reshape(-1, n, n)
    sums = []
    for order in itertools.permutations(range(n)):
        moved = matrices[:, list(order)][:, :, list(order)].reshape(len(B), -1)
        sums.append(float((weights * (A @ moved.T)).sum()))
    assert abs(np.mean(sums)) < 1e-12
    return float(np.var(sums))


@pytest.mark.parametrize(("kind", "in_energy"), [(RAW, False), ("input", False), ("input", True)])
def test_variance_of_unrelated_networks_is_that_of_all_permutations(
    tmp_path: Path, kind: str, *, in_energy: bool
) -> None:
    """Layers of one network are alike, those of different ones are not; the samples of each network are permuted."""
    n, rng = 6, np.random.default_rng(5)
    models = ("cnn.seed0", "vit.seed0", "vit.seed1")
    with ExitStack() as stack:
        layers = {model: append_features(unrelated_layers(rng, n, 3, 3), rng.normal(size=(n, 2))) for model in models}
        built = design([stack.enter_context(write_network(tmp_path, model, x)) for model, x in layers.items()])
        V = {model: np.stack([unit_kernel(x) for x in arrays]) for model, arrays in layers.items()}
        z = unit_kernel(rng.normal(size=(n, 4)))
        everything = np.vstack([*V.values(), z[None]])
        R = everything @ everything.T
        if kind == "input":
            V = {model: without(unit, z[None]) for model, unit in V.items()}
        for a, b in itertools.combinations(range(3), 2):  # nothing in common, given the input
            between = np.outer(R[2 * a : 2 * a + 2, 6], R[6, 2 * b : 2 * b + 2]) if kind == "input" else 0
            R[2 * a : 2 * a + 2, 2 * b : 2 * b + 2] = between
        R = np.triu(R) + np.triu(R, 1).T
        positions = {model: np.arange(2 * k, 2 * k + 2) for k, model in enumerate(models)} | {"input": np.array([6])}
        empty = Indices(built, positions, 7, {})
        indices = Indices(built, positions, 7, soft_maps(empty))
        if kind == "input" and not in_energy:
            V = {model: w / np.linalg.norm(w, axis=1, keepdims=True) for model, w in V.items()}
        what, expected, coefficients = "energy" if in_energy else "index", 0.0, {}
        for coefficient, pair in zip((1.0, -0.5, 0.7), indices.pairs, strict=True):
            coefficients[indices.column_of[what, kind, pair.name]] = coefficient
            weights = coefficient * indices.maps[kind, pair.name].weights
            expected += exact_variance(V[pair.a.name], V[pair.b.name], weights)
        values = (indices.residuals if in_energy else indices.similarities)(R[None], kind)
        variance = indices.degenerate_variance(values, kind, coefficients, (2 / (n * (n - 3)),), in_energy=in_energy)
        assert variance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.3, -0.6, 1.0])
def test_variance_of_two_layers(tmp_path: Path, r: float, rng: np.random.Generator) -> None:
    """For one pair of layers it is 2 / (u (u - 3)) (1 + r^2) (1 - r^2)^2, which is 0 for equal layers."""
    with ExitStack() as stack:
        stores = [stack.enter_context(write_network(tmp_path, model, [rng.normal(size=(20, 3))]))
                  for model in ("cnn.seed0", "vit.seed0")]  # fmt: skip
        built = design(stores)
        positions = {"cnn.seed0": np.array([0]), "vit.seed0": np.array([1])}
        indices = Indices(
            built, positions, 2, {(RAW, built.pairs[0].name): LayerMaps(np.ones((1, 1)), np.ones((1, 1)))}
        )
        R = np.array([[1, r], [r, 1]])
        variance = indices.degenerate_variance(R, RAW, {0: 1.0}, (2 / (20 * 17),))
        assert variance == pytest.approx(2 / (20 * 17) * (1 + r**2) * (1 - r**2) ** 2, abs=1e-15)


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
