"""The data set of a study: each table compared with a computation from layers, kernels and permutations."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from repsim.engine.null_moments import cubic_moments
from repsim.engine.resampling import permuted, random_permutations
from repsim.engine.uncertainty import jackknife
from repsim.metrics.recipes.gram import CentredGram
from repsim.stores.store import ActivationStore
from repsim.study import controls
from repsim.study.chance import (
    null_sd,
    p_value,
    pearson3,
    skewness,
    threshold,
    within_classes,
)
from repsim.study.design import design
from repsim.study.layer_matching import LayerMaps, best_maps, best_match, mbm, split_half
from repsim.study.multiple_tests import benjamini_hochberg, holm
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, Array, write_network, write_networks
from tests.study.references import balanced_halves, cosines, unit_kernel, without

N, COUNT, LABELS = 32, 39, np.arange(32) % 4

Rows = np.ndarray[Any, Any] | slice


@dataclass
class Case:
    study: xr.Dataset
    layers: dict[str, list[Array]]
    """Layers of trained models."""
    inputs: list[Array]

    def unit(self, model: str, rows: Rows = slice(None)) -> Array:
        return np.stack([unit_kernel(x[rows]) for x in self.layers[model]])

    def given_input(self, a: str, b: str, rows: Rows = slice(None)) -> Array:
        Z = np.stack([unit_kernel(x[rows]) for x in self.inputs])
        return cosines(without(self.unit(a, rows), Z), without(self.unit(b, rows), Z))

    def between(self, kind: str, a: str, b: str, rows: Rows = slice(None)) -> Array:
        return self.given_input(a, b, rows) if kind == "cka given input" else self.unit(a, rows) @ self.unit(b, rows).T


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with ExitStack() as stack:
        rng, folder = np.random.default_rng(8), tmp_path_factory.mktemp("stores")
        stores = [stack.enter_context(s) for s in write_networks(folder, rng, N, learned=0.7, seen=0.5)]
        study = universality(stores, ["mutual_knn:k=4"], permutations=COUNT, draws=300, seed=2)
        layers = {store.model: [store[name][:] for name in store.layers] for store in stores[:4]}
        yield Case(study, layers, [control.features for control in controls.inputs(design(stores).stores)])


def stacked(case: Case) -> list[Array]:
    return [x for model in TRAINED for x in case.layers[model]]


# Layer by layer


def test_layers_and_their_intervals(case: Case) -> None:
    V = np.stack([unit_kernel(x) for x in stacked(case)])
    layers = case.study.sel(measure="cka")
    np.testing.assert_allclose(layers["value"], V @ V.T, atol=1e-12)
    left_out = np.array([
        (W := np.stack([unit_kernel(np.delete(x, i, 0)) for x in stacked(case)])) @ W.T for i in range(N)
    ])  # fmt: skip
    interval = jackknife(V @ V.T, left_out)
    np.testing.assert_allclose(layers["low"], interval.low, atol=1e-7)
    np.testing.assert_allclose(layers["high"], interval.high, atol=1e-7)


def test_chance_of_layers(case: Case) -> None:
    layers = case.study.sel(measure="cka")
    assert (layers["chance"] == 0).all()
    np.testing.assert_allclose(layers["chance_sd"], np.sqrt(2 / (N * (N - 3))), rtol=1e-14)
    np.testing.assert_allclose(layers["z"], layers["value"] / null_sd(N), rtol=1e-12)
    grams = [CentredGram()(torch.from_numpy(x)) for x in stacked(case)]
    skewed = np.array([[skewness(a, b) for b in cubic_moments(grams)] for a in cubic_moments(grams)])
    np.testing.assert_allclose(layers["p"], pearson3(layers["value"].values, N, skewed), rtol=1e-8)
    assert np.isnan(case.study["p"].sel(measure="cka given input")).all()  # its null distribution is different
    neighbours = case.study.sel(measure="mutual_knn:k=4")
    defined = ~np.isnan(neighbours["value"].values)
    assert defined.sum() == 12 * 12 - 4 * 9  # pairs of models, both ways
    np.testing.assert_allclose(neighbours["chance"].values[defined], 4 / (N - 1))
    assert np.isfinite(neighbours["z"].values[defined]).all()


# Pair by pair


@pytest.mark.parametrize(("a", "b"), [("cnn.seed0", "vit.seed1"), ("vit.seed0", "vit.seed1")])
def test_indices_and_matches(case: Case, a: str, b: str) -> None:
    for measure, S in (("cka", case.unit(a) @ case.unit(b).T), ("cka given input", case.given_input(a, b))):
        row = case.study.sel(measure=measure, pair=f"{a} x {b}")
        assert row["index"] == pytest.approx(float(mbm(S)), abs=1e-10)
        assert row["largest"] == pytest.approx(S.max(), abs=1e-10)
        np.testing.assert_array_equal(row["match"], [best_match(S).columns, best_match(S.T).columns])
        shift = best_match(S).columns / 2 - np.arange(3) / 2
        assert row["warp"] == pytest.approx(shift.mean(), abs=1e-12)


def test_split_halves(case: Case) -> None:
    a, b = "cnn.seed0", "vit.seed1"
    by_measure = case.study["split_half"].sel(pair=f"{a} x {b}")
    for kind in ("cka", "cka given input"):
        assert by_measure.sel(measure=kind) == pytest.approx(by_halves(case, kind, a, b), abs=1e-10)
    assert np.isnan(by_measure.sel(measure="mutual_knn:k=4"))


def test_the_plain_index_has_an_interval_only_where_it_is_not_optimistic(case: Case) -> None:
    """It is a maximum: far above the split-half value, an interval around it would not cover."""
    for measure in ("cka", "cka given input"):
        rows = case.study.sel(measure=measure)
        with_interval = ~np.isnan(rows["index_low"].values)
        excess = abs(rows["index"] - rows["split_half"]).values
        half_width = ((rows["split_half_high"] - rows["split_half_low"]) / 2).values
        assert (excess[with_interval] < half_width[with_interval]).all()
        assert np.isfinite(half_width).all()
    assert np.isnan(case.study["index_low"].sel(measure="cka")).any()


def test_permutations(case: Case) -> None:
    a, b = case.layers["cnn.seed1"], case.layers["vit.seed0"]
    row = case.study.sel(measure="cka", pair="cnn.seed1 x vit.seed0")
    S = case.unit("cnn.seed1") @ case.unit("vit.seed0").T
    for end, orders in (("", random_permutations(N, COUNT, 2)), ("_within_classes", within_classes(LABELS, COUNT, 2))):
        drawn = permuted(a, b, "cka", orders)
        for statistic, observed, values in (
            ("index", float(mbm(S)), mbm(drawn)),
            ("largest", S.max(), drawn.max((1, 2))),
        ):
            assert row[f"p_{statistic}{end}"] == p_value(observed, values)
            tau = float(threshold(observed, values))
            if not end:
                assert row[f"threshold_{statistic}"] == pytest.approx(tau, abs=1e-10)
            if not end or statistic == "index":
                expected = max(0, (observed - tau) / (1 - tau))
                assert row[f"calibrated_{statistic}{end}"] == pytest.approx(expected, abs=1e-10)
    assert row["permuted"] == COUNT


def test_corrections_are_over_pairs(case: Case) -> None:
    for measure in ("cka", "cka given labels", "mutual_knn:k=4"):
        p = case.study["p_index"].sel(measure=measure).values
        np.testing.assert_array_equal(case.study["p_index_holm"].sel(measure=measure), holm(p))
        np.testing.assert_array_equal(case.study["p_index_bh"].sel(measure=measure), benjamini_hochberg(p))


def test_what_only_the_classes_share_is_not_significant_within_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    rng, folder, labels = np.random.default_rng(0), tmp_path_factory.mktemp("classes"), np.arange(60) % 3
    with ExitStack() as stack:
        stores: list[ActivationStore] = []
        for model in ("a", "b"):
            layers = [np.eye(3)[labels] @ rng.normal(size=(3, 5)) * 2 + rng.normal(size=(60, 5)) for _ in range(2)]
            stores.append(stack.enter_context(write_network(folder, model, layers, labels=labels)))
        row = universality(stores, ["cka"], permutations=99, draws=50).isel(pair=0).sel(measure="cka")
    assert row["index"] > 0.2
    assert row["p_index"] == 0.01
    assert row["p_index_within_classes"] > 0.05


# Families and models


def by_halves(case: Case, kind: str, a: str, b: str) -> float:
    """Compute the mean over splits of the similarity of two models, matched on one half and measured on the other.

    The jackknife's estimate of the bias of a ratio, twice as large in half of the samples, is subtracted.
    """
    values, weights = [], []
    for halves in balanced_halves(N, 8, 2):
        S = [case.between(kind, a, b, half) for half in halves]
        values.append(float(split_half(*S)))
        weights += [LayerMaps(*best_maps(one)).weights for one in S]
    W = np.mean(weights, axis=0)
    whole = (W * case.between(kind, a, b)).sum()
    without_each = [(W * case.between(kind, a, b, np.delete(np.arange(N), i))).sum() for i in range(N)]
    return float(np.mean(values) - 2 * (N - 1) * (np.mean(without_each) - whole))


def models(case: Case, kind: str) -> Array:
    C = np.eye(4)
    for i, j in combinations(range(4), 2):
        C[i, j] = C[j, i] = by_halves(case, kind, TRAINED[i], TRAINED[j])
    return C


@pytest.mark.parametrize("kind", ["cka", "cka given input"])
def test_similarities_of_models_and_ceilings(case: Case, kind: str) -> None:
    C, study = models(case, kind), case.study
    np.testing.assert_allclose(study["model_similarity"].sel(map=kind), C, atol=1e-10)
    assert study["common_share"].sel(map=kind) == pytest.approx(np.linalg.eigvalsh(C)[-1] / 4, abs=1e-10)
    across = np.mean([C[0, 2], C[0, 3], C[1, 2], C[1, 3]])
    families = study.sel(kernel=kind, families="cnn x vit")
    np.testing.assert_allclose(study["within"].sel(kernel=kind), [C[0, 1], C[2, 3]], atol=1e-10)
    assert families["across"] == pytest.approx(across, abs=1e-10)
    assert families["ceiling"] == pytest.approx(np.sqrt(C[0, 1] * C[2, 3]), abs=1e-10)
    assert families["ratio"] == pytest.approx(across / np.sqrt(C[0, 1] * C[2, 3]), abs=1e-10)


def test_the_map_keeps_distances(case: Case) -> None:
    placed = case.study["map_coordinates"].sel(map="cka").values
    squared = ((placed[:, None] - placed) ** 2).sum(-1)
    np.testing.assert_allclose(squared, 2 * (1 - models(case, "cka")), atol=1e-9)


def test_means_over_pairs(case: Case) -> None:
    """They are means of split-half values; the effect is that against the control whose mean is largest."""
    study = case.study
    similarity = study["network_similarity"]

    def mean_control(kernel: str, pairs: list[tuple[str, str]], trained_a: bool, trained_b: bool) -> float:
        means = []
        for pair in pairs:
            sides = [
                [name] if trained else [f"{name[:3]}+random-seed{k}" for k in (0, 1)]
                for name, trained in zip(pair, (trained_a, trained_b), strict=True)
            ]
            values = [
                float(similarity.sel(kernel=kernel, network=a, other_network=b))
                for a, b in product(*sides) if a != b
            ]  # fmt: skip
            means.append(np.mean(values))
        return float(np.mean(means))

    for kernel in ("cka", "cka given input", "cka given labels", "cka given input and labels"):
        for relation, pairs in (
            ("other family", list(product(TRAINED[:2], TRAINED[2:]))),
            ("same architecture", [TRAINED[:2], TRAINED[2:]]),
        ):
            halves = study["split_half"].sel(measure=kernel).values[study["relation"].values == relation]
            means = study.sel(kernel=kernel, kind_of_pair=relation)
            assert means["index_mean"] == pytest.approx(halves.mean(), abs=1e-12)
            assert means["trained_mean"] == pytest.approx(halves.mean(), abs=1e-12)  # all pairs have controls
            assert means["pairs_counted"] == len(halves)
            levels = [mean_control(kernel, pairs, *of) for of in ((False, False), (True, False), (False, True))]
            assert means["control_mean"] == pytest.approx(max(levels), abs=1e-12)
            assert means["learned_mean"] == pytest.approx(halves.mean() - max(levels), abs=1e-12)
    assert np.isnan(study["index_mean"].sel(kind_of_pair="same family")).all()


def test_shares_sum_to_one(case: Case) -> None:
    four = case.study["share"].sel(share_of=["input", "universal", "family", "seed"])
    np.testing.assert_allclose(four.sum("share_of"), 1, atol=1e-10)
    np.testing.assert_allclose(case.study["mean_share"], case.study["share"].mean("depth"), atol=1e-12)
    universal = case.study["mean_share"].sel(share_of="universal")
    assert universal.sel(state="trained") > 0.08
    assert abs(universal.sel(state="untrained")) < 0.02


# Stimuli


def test_agreement_is_how_much_a_sample_moves_the_mean_index(case: Case) -> None:
    """It is (n - 1) (index - index without the sample), with the same matches, averaged over pairs of families.

    The matches are the means of those on halves of the samples.
    """
    pairs = [(a, b) for a in TRAINED[:2] for b in TRAINED[2:]]
    weights = {pair: np.zeros((3, 3)) for pair in pairs}
    for halves in balanced_halves(N, 8, 2):
        for half in halves:
            for a, b in pairs:
                S = case.unit(a, half) @ case.unit(b, half).T
                weights[a, b] += np.eye(3)[best_match(S).columns] / 16 / 3 / 2
                weights[a, b] += np.eye(3)[best_match(S.T).columns].T / 16 / 3 / 2
    for i in (0, 7, 31):
        rows, moved = np.delete(np.arange(N), i), []
        for a, b in pairs:
            before, after = case.unit(a) @ case.unit(b).T, case.unit(a, rows) @ case.unit(b, rows).T
            moved.append((N - 1) * (weights[a, b] * (before - after)).sum())
        assert case.study["agreement"].sel(kernel="cka", sample=str(i)) == pytest.approx(np.mean(moved), abs=1e-8)


def test_a_sample_that_all_networks_single_out_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two samples are far from all others, and near each other, in every network: the networks agree on these."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("outliers")
    with ExitStack() as stack:
        stores = []
        for model in TRAINED:
            layers = [rng.normal(size=(30, 8)) for _ in range(2)]
            for x in layers:
                x[[4, 9]] += 2 * np.abs(rng.normal(size=8))
            stores.append(stack.enter_context(write_network(folder, model, layers)))
        study = universality(stores, ["cka"], permutations=19, draws=50)
    agreement = study["agreement"].sel(kernel="cka")
    assert set(agreement.sortby(agreement)["sample"].values[-2:]) == {"4", "9"}
