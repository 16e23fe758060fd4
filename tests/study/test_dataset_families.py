"""The table of pairs of families of one study, computed again from explicit kernels and loops over networks."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from repsim.results.variables import CONTROL_PAIRS
from repsim.runtime import tuning
from repsim.study import controls
from repsim.study.design import design
from repsim.study.universality import universality
from repsim.testing.examples import Array, write_networks
from tests.study.references import all_choices, balanced_halves, slow_excess, slow_variance, unit_kernel, without

N, DEPTH, SEED, SPLITS = 24, 2, 3, 2
CNN = ("cnn.seed0", "cnn.seed1", "cnn+random-seed0", "cnn+random-seed1")
VIT = ("vit.seed0", "vit.seed1", "vit+random-seed0", "vit+random-seed1", "vit+random-seed2")
MODELS = (*CNN[:2], *VIT[:2], *CNN[2:], *VIT[2:])
KERNELS = ("cka", "cka given input")
WHOLE = np.arange(N)

Maps = tuple[Array, Array]
Study = tuple[xr.Dataset, dict[str, list[Array]], list[Array]]


def best_maps(S: Array) -> Maps:
    """Return the best of all monotone maps, forth and back, as weights of 0 and 1."""

    def best(X: Array) -> Array:
        paths = combinations_with_replacement(range(X.shape[1]), len(X))
        path = max(paths, key=lambda columns: sum(X[i, j] for i, j in enumerate(columns)))
        return np.asarray(np.eye(X.shape[1])[list(path)])

    return best(S), best(S.T)


def along(S: Array, maps: Maps) -> float:
    return float(((maps[0] * S).sum() / len(S) + (maps[1] * S.T).sum() / S.shape[1]) / 2)


@dataclass
class Slow:
    """Similarities of networks from layers, with or without the input projected out, plain or in units of energy."""

    layers: dict[str, list[Array]]
    inputs: list[Array]
    given_input: bool
    in_energy: bool

    def vectors(self, rows: Array, *, in_energy: bool) -> dict[str, Array]:
        units = {name: np.stack([unit_kernel(x[rows]) for x in arrays]) for name, arrays in self.layers.items()}
        if self.given_input:
            Z = np.stack([unit_kernel(x[rows]) for x in self.inputs])
            units = {name: without(V, Z) for name, V in units.items()}
        if not in_energy:
            units = {name: V / np.linalg.norm(V, axis=1, keepdims=True) for name, V in units.items()}
        return units

    def similarities(self, pairs: list[tuple[str, str]]) -> tuple[Array, Array, dict[tuple[str, str], Maps]]:
        """Return values of pairs of networks from each split, values without each sample, and mean maps of layers.

        The jackknife's estimate of the bias of a ratio, which is twice as large in half of the samples, is subtracted.
        """
        measured_by_pair: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
        maps: dict[tuple[str, str], list[Maps]] = {pair: [] for pair in pairs}
        for halves in balanced_halves(N, SPLITS, SEED):
            for first, second in (halves, halves[::-1]):
                matched, measured = self.vectors(first, in_energy=False), self.vectors(second, in_energy=self.in_energy)
                for a, b in pairs:
                    maps[a, b].append(best_maps(matched[a] @ matched[b].T))
                    measured_by_pair[a, b].append(along(measured[a] @ measured[b].T, maps[a, b][-1]))
        mean = {pair: (np.mean([one for one, _ in of], axis=0), np.mean([two for _, two in of], axis=0))
                for pair, of in maps.items()}  # fmt: skip
        left_out = []
        for i in range(N):
            V = self.vectors(np.delete(WHOLE, i), in_energy=self.in_energy)
            left_out.append([along(V[a] @ V[b].T, mean[a, b]) for a, b in pairs])
        by_split = np.array([np.reshape(measured_by_pair[pair], (SPLITS, 2)).mean(1) for pair in pairs]).T
        V = self.vectors(WHOLE, in_energy=self.in_energy)
        whole = np.array([along(V[a] @ V[b].T, mean[a, b]) for a, b in pairs])
        by_split -= 2 * (N - 1) * (np.mean(left_out, axis=0) - whole)
        return by_split, np.array(left_out), mean

    def second_order(self, coefficients: dict[tuple[str, str], float], maps: dict[tuple[str, str], Maps]) -> float:
        """Sum 2 / (n (n - 3)) w x (R_ac R_bd + R_ad R_bc) over pairs of layers (a, b), (c, d), w times 1 - cosine^2."""
        V, unit = (self.vectors(WHOLE, in_energy=energy) for energy in (self.in_energy, False))
        terms = []
        for (a, b), coefficient in coefficients.items():
            weights = (maps[a, b][0] / DEPTH + maps[a, b][1].T / DEPTH) / 2
            cosines = unit[a] @ unit[b].T
            terms += [
                (V[a][i], V[b][j], coefficient * weights[i, j] * (1 - cosines[i, j] ** 2))
                for i, j in product(range(DEPTH), range(DEPTH))
            ]
        total = 0.0
        for (a, b, w), (c, d, x) in product(terms, terms):
            total += w * x * ((a @ c) * (b @ d) + (a @ d) * (b @ c))
        return 2 * total / (N * (N - 3))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with ExitStack() as stack, tuning.using(halvings=SPLITS):
        folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(6)
        stores = [
            stack.enter_context(store)
            for store in write_networks(folder, rng, N, learned=0.9, seen=0.4, models=MODELS, depth=DEPTH)
        ]
        layers = {store.model: [store[name][:] for name in store.layers] for store in stores}
        inputs = [control.features for control in controls.inputs(design(stores).stores)]
        yield universality(stores, ["cka"], permutations=19, draws=20, seed=SEED), layers, inputs


def controls_of(a: str, b: str) -> dict[str, list[tuple[str, str]]]:
    return {
        "both untrained": list(product(CNN[2:], VIT[2:])),
        "first trained": list(product([a], VIT[2:])),
        "second trained": list(product(CNN[2:], [b])),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_effects_intervals_and_tests_of_a_pair_of_families(study: Study, kernel: str) -> None:
    data, layers, inputs = study
    row = data.sel(families="cnn x vit", kernel=kernel, measure=kernel)
    a, b = (np.array(["+" not in name for name in names]) for names in (CNN, VIT))
    pairs = list(product(CNN, VIT))
    exchange_p, sample_p = [], []
    for in_energy in (False, True) if kernel != "cka" else (False,):
        suffix = "_energy" if in_energy else ""
        slow = Slow(layers, inputs, kernel != "cka", in_energy)
        by_split, left_out, maps = slow.similarities(pairs)
        values = by_split.mean(0)
        trained = dict.fromkeys(product(CNN[:2], VIT[:2]), 1 / 4)
        assert row["trained_energy" if in_energy else "trained_value"] == pytest.approx(
            np.mean([values[pairs.index(pair)] for pair in trained]), abs=1e-9
        )
        matrix = values.reshape(len(CNN), len(VIT))
        network, freedom = slow_variance(matrix, a, b)
        ends, t = [], []
        for k, name in enumerate(CONTROL_PAIRS):
            control: dict[tuple[str, str], float] = {}
            for pair in trained:
                of_pair = controls_of(*pair)[name]
                for other in of_pair:
                    control[other] = control.get(other, 0.0) + 1 / 4 / len(of_pair)
            level = sum(weight * values[pairs.index(pair)] for pair, weight in control.items())
            name_of_levels = "control_energy" if in_energy else "control_value"
            assert row[name_of_levels].sel(control_pair=name) == pytest.approx(level, abs=1e-9)
            difference = trained | {pair: -weight for pair, weight in control.items()}
            w = np.array([difference.get(pair, 0.0) for pair in pairs])
            replicates = left_out @ w
            variance = (N - 1) / N * ((replicates - replicates.mean()) ** 2).sum()
            q = slow.second_order(difference, maps)
            variance = variance - 2 * q**2 / variance if 2 * q < variance else variance / 2
            variance += ((by_split @ w - values @ w) ** 2).sum() / (SPLITS - 1) / SPLITS
            effect, se2 = float(values @ w), variance
            margin = stats.t.ppf(0.975, N - 1) * np.sqrt(se2)
            crossed = se2 + network[k]
            df = crossed**2 / (se2**2 / (N - 1) + network[k] ** 2 / freedom[k])
            wide = stats.t.ppf(0.975, df) * np.sqrt(crossed)
            ends.append([effect, effect - margin, effect + margin, effect - wide, effect + wide])
            t.append(effect / np.sqrt(se2))
        least = np.min(ends, axis=0)
        for name, expected in zip(
            ("effect", "effect_low", "effect_high", "effect_network_low", "effect_network_high"), least, strict=True
        ):
            assert row[name.replace("effect", f"effect{suffix}")] == pytest.approx(expected, abs=1e-8), name
        sample_p.append(max(stats.t.sf(t, N - 1)))
        observed = slow_excess(matrix, a, b).min()
        drawn = [slow_excess(matrix, x, y).min() for x in all_choices(a) for y in all_choices(b)]
        exchange_p.append(np.mean(np.array(drawn) >= observed - 1e-12))
    assert row["p_samples"] == pytest.approx(max(sample_p), rel=1e-6)
    assert row["p_exchange"] == pytest.approx(max(exchange_p), abs=1e-12)
    assert row["p_exchange_least"] == 1 / (6 * 10)
    levels = row["control_value"].values
    assert row["effect_against"] == CONTROL_PAIRS[int(np.argmax(levels))]
    assert row["effect"] == pytest.approx(float(row["trained_value"]) - levels.max(), abs=1e-12)


def test_similarities_of_networks_and_the_energy_left(
    study: Study,
) -> None:
    data, layers, inputs = study
    assert data["network"].values.tolist() == list(MODELS)
    assert data["network_state"].values.tolist() == ["trained"] * 4 + ["untrained"] * 5
    for kernel in KERNELS:
        slow = Slow(layers, inputs, kernel != "cka", in_energy=False)
        pairs = list(combinations(MODELS, 2))
        values = slow.similarities(pairs)[0].mean(0)
        table = data["network_similarity"].sel(kernel=kernel)
        for (a, b), value in zip(pairs, values, strict=True):
            for one, other in ((a, b), (b, a)):
                assert table.sel(network=one, other_network=other) == pytest.approx(value, abs=1e-9)
        assert np.isnan(np.diagonal(table.values)).all()
        left = Slow(layers, inputs, kernel != "cka", in_energy=True).vectors(WHOLE, in_energy=True)
        expected = [np.mean([w @ w for w in left[model]]) for model in MODELS]
        np.testing.assert_allclose(data["energy_left"].sel(kernel=kernel), expected, atol=1e-9)
