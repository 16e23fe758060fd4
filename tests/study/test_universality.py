"""Whole studies: shared learning is detected, shared input is not mistaken for it; few models, few samples."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim import compare
from repsim.errors import InvalidInputError, StoreError
from repsim.results.files import open_result, open_study, save_result
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from repsim.study import reading, tables
from repsim.study.universality import universality
from repsim.testing.examples import (
    TRAINED,
    UNTRAINED,
    append_features,
    small_study,
    unrelated_layers,
    write_network,
    write_networks,
)

N = 60
MakeNetworks = Callable[..., list[ActivationStore]]


def conduct(stores: Sequence[ActivationStore], metrics: Sequence[str] = ("cka",), **options: Any) -> xr.Dataset:
    return universality(stores, metrics, **{"permutations": 119, "draws": 400, **options})


@pytest.fixture(scope="module")
def make_networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeNetworks]:
    """Return a function that writes simulated networks, with other options if given."""
    with ExitStack() as stack:

        def make(n: int = N, seed: int = 1, **options: Any) -> list[ActivationStore]:
            settings = {"learned": 1.0, "seen": 0.6, **options}
            stores = write_networks(tmp_path_factory.mktemp("stores"), np.random.default_rng(seed), n, **settings)
            return [stack.enter_context(store) for store in stores]

        yield make


@pytest.fixture(scope="module")
def learned(make_networks: MakeNetworks) -> tuple[list[ActivationStore], xr.Dataset]:
    stores = make_networks()
    return stores, conduct(stores)


@pytest.fixture(scope="module")
def seen(make_networks: MakeNetworks) -> xr.Dataset:
    """Conduct a study of networks that share only the input."""
    return conduct(make_networks(learned=0.0, seen=1.0))


@pytest.fixture(autouse=True)
def few_halves(tuned: Callable[..., None]) -> None:
    tuned(half_samples=8)


def summary(study: xr.Dataset) -> str:
    return "\n".join(json.loads(study.attrs["summary"]))


def warnings(study: xr.Dataset) -> str:
    return "\n".join(json.loads(study.attrs["warnings"]))


def gaps(study: xr.Dataset) -> set[str]:
    """Return the names of variables with nothing but NaN."""
    return {
        str(name)
        for name, variable in study.data_vars.items()
        if variable.dtype.kind == "f" and variable.size and np.isnan(variable.values).all()
    }


# What was learned


def test_what_was_learned_is_found(learned: tuple[list[ActivationStore], xr.Dataset]) -> None:
    at = {"kernel": "cka given input", "kind_of_pair": "other family"}
    low, value, high = (float(learned[1][f"learned_mean{end}"].sel(at)) for end in ("_low", "", "_high"))
    assert 0.2 < low < value < high < 1
    assert "To this extent what was learned is universal across these families, beyond the classes" in summary(
        learned[1]
    )
    assert learned[1]["claim_level"].values.tolist() == ["architectures"]
    assert reading.verdict(learned[1]) is True
    assert reading.claims(learned[1], "architectures") == [("cnn", "vit")]
    across = learned[1]["relation"].values == "other family"
    assert (learned[1]["p_index_holm"].sel(measure="cka given input").values[across] <= 0.05).all()
    assert (learned[1]["calibrated_index"].sel(measure="cka").values > 0.1).all()


def test_what_is_only_seen_is_not_claimed(seen: xr.Dataset) -> None:
    """Raw similarity is high and significant; given the input, no similarity is left."""
    assert float(seen["index_mean"].sel(kernel="cka", kind_of_pair="other family")) > 0.2
    assert (seen["p_index"].sel(measure="cka").values <= 0.05).all()
    at = {"kernel": "cka given input", "kind_of_pair": "other family"}
    assert float(seen["learned_mean_low"].sel(at)) <= 0
    assert abs(float(seen["index_mean"].sel(at))) < 0.1
    assert "universal" not in summary(seen) + warnings(seen)
    assert "common to families" in summary(seen)
    assert "in the strongest control it is" in summary(seen)
    assert "Nothing learned is shown to be shared by cnn x vit: given the input, trained networks are not" in summary(
        seen
    )
    assert seen["claim_level"].values.tolist() == [""]
    assert reading.verdict(seen) is False
    assert reading.claims(seen) == []


@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.slow
def test_no_claim_without_learning_in_other_draws(make_networks: MakeNetworks, seed: int) -> None:
    study = conduct(make_networks(40, seed, learned=0.0, seen=1.0, depth=2), permutations=19)
    assert "universal" not in summary(study)
    assert float(study["effect_low"].sel(measure="cka given input", families="cnn x vit")) < 0.05


@pytest.mark.slow
def test_one_network_of_each_is_a_claim_about_these_networks(make_networks: MakeNetworks) -> None:
    """The word universal needs several networks of each architecture, trained and untrained."""
    study = conduct(make_networks(60, models=TRAINED[::2] + UNTRAINED[::2]), permutations=19)
    assert study["claim_level"].values.tolist() == ["networks"]
    text = summary(study)
    assert "These trained networks are, on average over their pairs, more alike than each of their controls, " in text
    assert "the exact test cannot reach 0.05 (its smallest p is 0.250)" in text
    assert "universal" not in text
    assert (reading.verdict(study), reading.claims(study)) == (False, [("cnn", "vit")])


@pytest.mark.slow
def test_what_only_the_classes_share_is_not_claimed(tmp_path: Path) -> None:
    """Trained networks tell the classes apart, all classes equally, and are alike in nothing else."""
    rng, n = np.random.default_rng(4), 80
    labels, pixels = np.arange(n) % 4, rng.normal(size=(n, 3, 2, 2))
    with ExitStack() as stack:
        stores = []
        for model in TRAINED + UNTRAINED:
            layers = append_features(unrelated_layers(rng, n, 6, 6), 2 * np.eye(4)[labels] * ("+random" not in model))
            stores.append(stack.enter_context(write_network(tmp_path, model, layers, labels=labels, pixels=pixels)))
        study = conduct(stores, permutations=19)
    assert float(study["effect_low"].sel(measure="cka given input", families="cnn x vit")) > 0.1
    assert study["claim_level"].values.tolist() == [""]
    assert str(study["claim_reason"].values[0]).startswith(
        "not beyond the classes: given the input and the class labels"
    )
    assert "universal" not in summary(study)


def test_intervals_hold_their_values(learned: tuple[list[ActivationStore], xr.Dataset], seen: xr.Dataset) -> None:
    for study in (learned[1], seen):
        for low in (str(name) for name in study.data_vars if str(name).endswith("low")):
            name = {"low": "value"}.get(low, low.removesuffix("_low")).removesuffix("_network")
            value, least, most = (study[variable].values for variable in (name, low, low[:-3] + "high"))
            if name == "effect" and low != "effect_low":
                value = study[name].sel(measure=study["kernel"].values).values
            defined = ~np.isnan(least)
            assert (least[defined] <= value[defined] + 1e-12).all(), name
            assert (value[defined] <= most[defined] + 1e-12).all(), name


def test_the_control_is_the_strongest_of_three(learned: tuple[list[ActivationStore], xr.Dataset]) -> None:
    """Both are untrained, or one of them: each is the mean over all pairs of such networks, in split-half values."""
    study = learned[1]
    similarity = study["network_similarity"].sel(kernel="cka")

    def mean(a: list[str], b: list[str]) -> float:
        values = [float(similarity.sel(network=x, other_network=y)) for x, y in product(a, b) if x != y]
        return float(np.mean(values))

    untrained = {family: [f"{family}+random-seed{k}" for k in (0, 1)] for family in ("cnn", "vit")}
    for a, b in (("cnn.seed0", "vit.seed0"), ("cnn.seed1", "vit.seed0"), ("cnn.seed0", "cnn.seed1")):
        row = study.sel(measure="cka", pair=f"{a} x {b}")
        levels = {
            "both untrained": mean(untrained[a[:3]], untrained[b[:3]]),
            "first trained": mean([a], untrained[b[:3]]),
            "second trained": mean(untrained[a[:3]], [b]),
        }
        assert row["control"] == pytest.approx(max(levels.values()), abs=1e-10)
        assert row["control_name"] == max(levels, key=lambda name: levels[name])
        assert row["learned"] == pytest.approx(float(row["split_half"]) - max(levels.values()), abs=1e-10)
        assert row["split_half"] == pytest.approx(mean([a], [b]), abs=1e-10)


@pytest.mark.slow
def test_no_pair_loses_its_control_to_the_order_of_the_stores(make_networks: MakeNetworks) -> None:
    stores = make_networks(30, depth=2)
    mixed = [stores[k] for k in (0, 2, 1, 3, 6, 4, 5, 7)]
    study, other = conduct(stores, permutations=19), conduct(mixed, permutations=19)

    def controls(study: xr.Dataset) -> dict[frozenset[str], tuple[float, str]]:
        """Return the control of each pair of models: its value, and which of the two is trained in it."""
        cka, result = study.sel(measure="cka"), {}
        for a, b, value, name in zip(
            cka["pair_a"].values.tolist(), cka["pair_b"].values.tolist(), cka["control"].values.tolist(),
            cka["control_name"].values.tolist(), strict=True,
        ):  # fmt: skip
            trained = {"both untrained": "none", "first trained": a, "second trained": b}[name]
            result[frozenset({a, b})] = round(value, 9), trained
        return result

    assert controls(study) == controls(other)
    at = {"kernel": "cka given input", "kind_of_pair": "other family"}
    for name in ("index_mean", "control_mean", "learned_mean"):
        assert float(study[name].sel(at)) == pytest.approx(float(other[name].sel(at)), abs=1e-12)
    for name in ("p_exchange", "effect_network_low"):
        np.testing.assert_allclose(study[name].values, other[name].values, atol=1e-9)


# Properties of the data set


@pytest.mark.slow
def test_the_same_seed_is_the_same_study_to_the_bit(
    learned: tuple[list[ActivationStore], xr.Dataset],
) -> None:
    stores, study = learned
    again, other = conduct(stores), conduct(stores, seed=1)
    for repeated in (again, other):
        repeated.attrs["created"] = study.attrs["created"]
    assert study.identical(again)
    assert not np.array_equal(study["threshold_index"], other["threshold_index"])
    # the seed orders the samples of a tile, and with it the rounding errors
    np.testing.assert_allclose(study["index"], other["index"], rtol=1e-12)


@pytest.mark.slow
def test_saved_and_opened_it_is_equal(
    learned: tuple[list[ActivationStore], xr.Dataset], tmp_path: Path, make_networks: MakeNetworks
) -> None:
    alone = conduct(make_networks(20, models=TRAINED[:1]), permutations=19)
    for study in (learned[1], alone):
        path = tmp_path / f"{len(study['model'])}.nc"
        save_result(study, path)
        assert open_study(path).identical(study)
        with pytest.raises(
            StoreError, match=r"is no result of repsim.compare .*; it is a study of repsim.universality"
        ):
            open_result(path)


def test_a_comparison_is_no_study(learned: tuple[list[ActivationStore], xr.Dataset], tmp_path: Path) -> None:
    save_result(compare(learned[0][0], learned[0][1], ["cka"]), tmp_path / "result.nc")
    with pytest.raises(StoreError, match=r"is no study of repsim.universality .*; it is a comparison: give it to"):
        open_study(tmp_path / "result.nc")
    with pytest.raises(StoreError, match="it is an activation store"):
        open_study(learned[0][0].path)


def test_models_and_layers_are_named_whatever_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(
                write_store(tmp_path / f"{k}.h5", {name: rng.normal(size=(20, 6)) for name in "xy"}, model=model)
            )
            for k, model in enumerate(["hub/net", "hub/other"])
        ]
        study = conduct(stores, permutations=19)
    assert study["layer_a"].values.tolist() == ["hub/net/x", "hub/net/y", "hub/other/x", "hub/other/y"]
    assert study["model_a"].values.tolist() == ["hub/net"] * 2 + ["hub/other"] * 2


# Missing models, controls and samples

INDEX = {
    "index",
    "split_half",
    "split_half_low",
    "split_half_high",
    "largest",
    "p_index",
    "p_largest",
    "calibrated_index",
}


def _columns(study: xr.Dataset) -> list[str]:
    """Return the column titles of the table of shares, where unidentified shares are given as a sum."""
    return [head.removeprefix(">") for head in tables.shares(study).heads]


def test_one_model(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[:1]), ["cka", "mutual_knn:k=5", "procrustes"], permutations=19)
    assert study.sizes["pair"] == 0
    assert np.isfinite(study["value"].sel(measure="cka")).all()
    assert np.isfinite(study["low"].sel(measure="cka given input")).all()
    assert "one trained model (cnn.seed0)" in warnings(study)
    assert summary(study) == (
        "1 trained network of 1 family, and 0 untrained: cnn (1 + 0); 40 samples of given, readout given."
    )
    assert study.sizes["families"] == 0
    assert reading.verdict(study) is None
    assert "affordable" not in warnings(study)


@pytest.mark.slow
def test_one_family(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[:2] + UNTRAINED[:2]), permutations=19)
    assert "all trained models are of one family (cnn)" in warnings(study)
    assert not INDEX & gaps(study)
    shares = study["mean_share"].sel(state="trained")
    identified = shares.sel(share_of=["input", "seed", "universal_and_family"])
    assert np.isnan(shares.sel(share_of=["universal", "family"])).all()
    assert float(identified.sum()) == pytest.approx(1, abs=1e-10)
    assert "common to families + family" in summary(study)
    assert "universal" not in summary(study) + warnings(study)
    assert _columns(study) == ["networks", "depth", "input", "seed", "common to families + family"]


@pytest.mark.slow
def test_one_seed_of_each(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[::2] + UNTRAINED[::2]), permutations=19)
    assert "one model of cnn, vit: the shares of family and seed cannot be told apart there" in warnings(study)
    assert not (INDEX | {"learned", "learned_low"}) & gaps(study)
    assert {"ceiling", "ratio", "within"} <= gaps(study)
    assert "family + seed" in summary(study)
    assert study["ceiling_of"].values.tolist() == ["one model, no ceiling"] * 2
    assert _columns(study) == ["networks", "depth", "input", "common to families", "family + seed"]


def test_no_labels_no_pixels_no_untrained(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED, pixels=None, labels=None), permutations=119)
    lines = warnings(study)
    for part in ("no store holds the input", "the samples have no class labels", "no untrained networks: it cannot"):
        assert part in lines
    assert study["measure"].values.tolist() == ["cka"]
    assert not INDEX & gaps(study)
    assert {"learned", "learned_mean", "p_index_within_classes", "effect", "energy", "p_exchange"} <= gaps(study)
    assert study["claim_reason"].values.tolist() == ["no untrained network of cnn, vit, so there is no control"]
    assert reading.verdict(study) is None
    assert np.isnan(study["mean_share"].sel(share_of="input")).all()  # and not 0
    assert "input + common to families" in summary(study)
    assert "universal" not in summary(study) + lines


@pytest.mark.slow
def test_without_the_input_nothing_is_claimed(make_networks: MakeNetworks) -> None:
    """Nothing is claimed even if trained networks are much more alike than untrained ones."""
    study = conduct(make_networks(80, models=(*TRAINED, *UNTRAINED), pixels=None), permutations=119)
    assert float(study["learned_mean_low"].sel(kernel="cka", kind_of_pair="other family")) > 0
    summary = " ".join(json.loads(study.attrs["summary"]))
    assert "What the input alone explains is not known" in summary
    assert "universal" not in summary.lower()
    assert study["claim_reason"].values.tolist() == ["the input is not known"]
    assert reading.verdict(study) is None


@pytest.mark.slow
def test_every_sample_of_another_class(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(20, labels=np.arange(20)), permutations=19)
    assert "cka given labels" not in study["measure"].values


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 20])
def test_few_samples(make_networks: MakeNetworks, n: int) -> None:
    study = conduct(make_networks(n), ["cka", "mutual_knn"], permutations=119)
    assert f"{n} samples: intervals are wide" in warnings(study)
    assert not (INDEX | {"learned", "learned_low", "share", "share_low", "agreement", "effect_low"}) & gaps(study)
    assert ("mutual_knn: 8 samples are too few: it needs at least 12" in warnings(study)) == (n == 8)
    assert np.isnan(study["index"].sel(measure="mutual_knn")).all() == (n == 8)
    assert "nan" not in summary(study)


def test_too_few_samples_are_refused(make_networks: MakeNetworks) -> None:
    with pytest.raises(InvalidInputError, match="7 samples are too few for a study: it needs at least 8"):
        conduct(make_networks(7))


def test_duplicates_are_warned_of(make_networks: MakeNetworks) -> None:
    pixels = np.random.default_rng(0).normal(size=(20, 3, 2, 2))
    pixels[[3, 11]] = pixels[7]
    study = conduct(make_networks(20, models=TRAINED[::2], pixels=pixels), permutations=19)
    assert "3 samples are nearly the same as others, 2 of them the same as an earlier one, in 1 group (3 = 7" in (
        warnings(study)
    )


@pytest.mark.slow
def test_a_constant_layer_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    with ExitStack() as stack:
        layers = {model: unrelated_layers(rng, 30, 6, 6, 6) for model in TRAINED}
        layers["cnn.seed0"][1] = np.ones((30, 6))
        stores = [stack.enter_context(write_network(tmp_path, model, arrays)) for model, arrays in layers.items()]
        study = conduct(stores, ["cka", "procrustes"], permutations=19)
        assert "cnn.seed0/block1 is left out: the layer is constant" in warnings(study)
        assert study["layer_a"].values.tolist()[:3] == ["cnn.seed0/block0", "cnn.seed0/block2", "cnn.seed1/block0"]
        assert not INDEX - {"split_half"} & gaps(study)
        of_pair = study["pair"].values[[name.startswith("cnn.seed0 x ") for name in study["pair"].values]][0]
        forth, back = study["match"].sel(pair=of_pair, measure="procrustes").values
        assert forth[2] == -1, "two of its layers are in the study"
        assert (forth[:2] >= 0).all()
        assert back.max() <= 1
        layers = {"mlp": [np.ones((30, 6))] * 2}
        stores += [stack.enter_context(write_network(tmp_path, model, arrays)) for model, arrays in layers.items()]
        with pytest.raises(
            InvalidInputError, match=r"mlp\.h5: none of its layers can be compared .*constant.*leave it out"
        ):
            conduct(stores)


@pytest.mark.slow
def test_an_architecture_without_untrained_networks(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(30, models=TRAINED + UNTRAINED[:2]), permutations=19)
    assert "no untrained network of vit: pairs with it have no control" in warnings(study)
    controls = study["control"].sel(measure="cka")
    assert np.isfinite(controls.sel(pair="cnn.seed0 x cnn.seed1"))
    assert np.isnan(controls.sel(pair=["cnn.seed0 x vit.seed0", "vit.seed0 x vit.seed1"])).all()  # not all of them
    assert study["pairs_counted"].sel(kind_of_pair=["other family", "same architecture"]).values.tolist() == [0, 1]
    assert "Nothing learned is shown to be shared by cnn x vit: no untrained network of vit" in summary(study)


@pytest.mark.slow
def test_one_of_several_architectures_without_untrained_networks(tmp_path: Path) -> None:
    """Pairs of models with it are left out of the effect, and nothing is claimed of the architectures."""
    rng, n = np.random.default_rng(2), 60
    pixels, common = rng.normal(size=(n, 3, 2, 2)), rng.normal(size=(n, 5))
    with ExitStack() as stack:
        stores = []
        for model in (*TRAINED, "big", *UNTRAINED):
            layers = append_features(unrelated_layers(rng, n, 6, 6), common * ("+random" not in model))
            stores.append(stack.enter_context(write_network(tmp_path, model, layers, pixels=pixels)))
        study = universality(stores, ["cka"], permutations=19, draws=50, families={"vit": ["vit*", "big"]})
    assert study["claim_level"].values.tolist() == ["networks"]
    assert study["claim_reason"].values.tolist() == ["no untrained network of big"]
    counted = study["network_similarity"].sel(kernel="cka", network=list(TRAINED[:2]), other_network=list(TRAINED[2:]))
    assert study["trained_value"].sel(measure="cka").item() == pytest.approx(float(counted.mean()), abs=1e-12)
    assert int(study["pairs_counted"].sel(kind_of_pair="other family")) == 4
    assert "only 4 of 6 pairs of models have controls; their own value is" in summary(study)


@pytest.mark.slow
def test_too_few_permutations_for_so_many_pairs(make_networks: MakeNetworks) -> None:
    for count, lacking in ((118, True), (119, False)):  # 6 pairs: 6 / 120 is 0.05
        study = conduct(make_networks(20, models=TRAINED, depth=2), permutations=count)
        assert ("permutations are too few for 6 pairs of models" in warnings(study)) == lacking
        assert "take 119 permutations or more" in warnings(study) or not lacking


def test_a_pair_without_a_monotone_map_has_a_largest_similarity_and_no_index(tmp_path: Path) -> None:
    """The study is saved: each layer of one network has a value with one of the other, and these two cross."""
    rng = np.random.default_rng(0)

    def layer(equal: list[int]) -> NDArray[np.float64]:
        x = rng.normal(size=(40, 6))
        x[equal] = x[equal[0]]
        return x

    stores = [
        write_network(tmp_path, name, [layer([0, 1, 2]), layer([3, 4, 5])]) for name in ("cnn.seed0", "vit.seed0")
    ]
    universality(stores, ["second_order_cosine:k=2"], permutations=19, draws=20, out=tmp_path / "study.nc")
    study = open_study(tmp_path / "study.nc").sel(measure="second_order_cosine:k=2")
    assert np.isnan(study["index"].values).all()
    assert np.isfinite(study["largest"].values).all()


def test_topology_of_batches_is_a_measure_of_a_study() -> None:
    pytest.importorskip("gudhi")
    study = small_study(30, metrics=["rtd"], draws=5)
    assert np.isfinite(study["index"].sel(measure="rtd").values).all()
