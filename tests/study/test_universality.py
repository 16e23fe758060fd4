"""Whole studies: shared learning is detected, shared input is not mistaken for it; few models, few samples."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim import compare
from repsim.errors import InvalidInputError, StoreError
from repsim.results.files import open_result, open_study, save_result
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from repsim.study import tables
from repsim.study.layer_matching import mbm
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, unrelated_layers, write_network, write_networks
from tests.study.references import unit_kernel

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
    assert "To this extent what was learned is universal across these families." in summary(learned[1])
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
    assert "common to all families" in summary(seen)
    assert "raw similarity does not tell trained networks from untrained ones here" in summary(seen)


@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.slow
def test_no_claim_without_learning_in_other_draws(make_networks: MakeNetworks, seed: int) -> None:
    study = conduct(make_networks(40, seed, learned=0.0, seen=1.0, depth=2), permutations=19)
    low = float(study["learned_mean_low"].sel(kernel="cka given input", kind_of_pair="other family"))
    assert ("universal" in summary(study)) == (low > 0)
    assert low < 0.05


def test_intervals_hold_their_values(learned: tuple[list[ActivationStore], xr.Dataset], seen: xr.Dataset) -> None:
    for study in (learned[1], seen):
        for low in (str(name) for name in study.data_vars if str(name).endswith("low")):
            name = {"low": "value"}.get(low, low.removesuffix("_low"))
            value, least, most = (study[variable].values for variable in (name, low, low[:-3] + "high"))
            defined = ~np.isnan(least)
            assert (least[defined] <= value[defined] + 1e-12).all(), name
            assert (value[defined] <= most[defined] + 1e-12).all(), name


def test_the_control_is_the_best_of_two(learned: tuple[list[ActivationStore], xr.Dataset]) -> None:
    """The control is both untrained, seed by seed, or one trained with untrained networks of the other's kind."""
    stores, study = learned
    kernels = {store.model: np.stack([unit_kernel(store[name][:]) for name in store.layers]) for store in stores}

    def index(a: str, b: str) -> float:
        return float(mbm(kernels[a] @ kernels[b].T))

    both = np.mean([index(f"cnn+random-seed{k}", f"vit+random-seed{k}") for k in (0, 1)])
    one = np.mean([index("cnn.seed0", f"vit+random-seed{k}") for k in (0, 1)] +
                  [index("vit.seed0", f"cnn+random-seed{k}") for k in (0, 1)])  # fmt: skip
    row = study.sel(measure="cka", pair="cnn.seed0 x vit.seed0")
    assert row["control"] == pytest.approx(max(both, one), abs=1e-10)
    assert row["control_name"] == ("both untrained" if both > one else "one untrained")
    assert row["learned"] == pytest.approx(index("cnn.seed0", "vit.seed0") - max(both, one), abs=1e-10)
    one_seed_each = index("cnn+random-seed0", "cnn+random-seed1")
    half = np.mean([index(f"cnn.seed{i}", f"cnn+random-seed{k}") for i in (0, 1) for k in (0, 1)])
    within = study.sel(measure="cka", pair="cnn.seed0 x cnn.seed1")
    assert within["control"] == pytest.approx(max(one_seed_each, half), abs=1e-10)


def test_no_pair_loses_its_control_to_the_order_of_the_stores(make_networks: MakeNetworks) -> None:
    stores = make_networks(30, depth=2)
    mixed = [stores[k] for k in (0, 2, 1, 3, 6, 4, 5, 7)]
    study, other = conduct(stores, permutations=19), conduct(mixed, permutations=19)

    def controls(study: xr.Dataset) -> dict[frozenset[str], tuple[float, str]]:
        cka = study.sel(measure="cka")
        values = zip(cka["control"].values.round(9).tolist(), cka["control_name"].values.tolist(), strict=True)
        return {frozenset(name.split(" x ")): value for name, value in zip(cka["pair"].values, values, strict=True)}

    assert controls(study) == controls(other)
    at = {"kernel": "cka given input", "kind_of_pair": "other family"}
    for name in ("index_mean", "control_mean", "learned_mean"):
        assert float(study[name].sel(at)) == pytest.approx(float(other[name].sel(at)), abs=1e-12)


# Properties of the data set


def test_the_same_seed_is_the_same_study_to_the_bit(
    learned: tuple[list[ActivationStore], xr.Dataset],
) -> None:
    stores, study = learned
    again, other = conduct(stores), conduct(stores, seed=1)
    for repeated in (again, other):
        repeated.attrs["created"] = study.attrs["created"]
    assert study.identical(again)
    assert not np.array_equal(study["threshold_index"], other["threshold_index"])
    np.testing.assert_array_equal(study["index"], other["index"])


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

INDEX = {"index", "index_low", "index_high", "split_half", "largest", "p_index", "p_largest", "calibrated_index"}


def _columns(study: xr.Dataset) -> list[str]:
    """Return the column titles of the table of shares, where unidentified shares are given as a sum."""
    return [head.removeprefix(">") for head in tables.shares(study).heads]


def test_one_model(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[:1]), ["cka", "mutual_knn:k=5", "procrustes"], permutations=19)
    assert study.sizes["pair"] == 0
    assert np.isfinite(study["value"].sel(measure="cka")).all()
    assert np.isfinite(study["low"].sel(measure="cka given input")).all()
    assert "one trained model (cnn.seed0)" in warnings(study)
    assert summary(study) == "1 trained model of 1 family: cnn (1); 40 samples of given, readout given."
    assert "affordable" not in warnings(study)


def test_one_family(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[:2] + UNTRAINED[:2]), permutations=19)
    assert "all trained models are of one family (cnn)" in warnings(study)
    assert not INDEX & gaps(study)
    shares = study["mean_share"].sel(state="trained")
    identified = shares.sel(share_of=["input", "seed", "universal_and_family"])
    assert np.isnan(shares.sel(share_of=["universal", "family"])).all()
    assert float(identified.sum()) == pytest.approx(1, abs=1e-10)
    assert "common to all families + family" in summary(study)
    assert "universal" not in summary(study) + warnings(study)
    assert _columns(study) == ["networks", "depth", "input", "seed", "common to all families + family"]


def test_one_seed_of_each(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED[::2] + UNTRAINED[::2]), permutations=19)
    assert "one model of cnn, vit: the shares of family and seed cannot be told apart there" in warnings(study)
    assert not (INDEX | {"learned", "learned_low"}) & gaps(study)
    assert {"ceiling", "ratio", "within"} <= gaps(study)
    assert "family + seed" in summary(study)
    assert study["ceiling_of"].values.tolist() == ["one model, no ceiling"] * 2
    assert _columns(study) == ["networks", "depth", "input", "universal", "family + seed"]


def test_no_labels_no_pixels_no_untrained(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(40, models=TRAINED, pixels=None, labels=None), permutations=119)
    lines = warnings(study)
    for part in ("no store holds the pixels", "the samples have no class labels", "no untrained networks: it cannot"):
        assert part in lines
    assert study["measure"].values.tolist() == ["cka"]
    assert not INDEX & gaps(study)
    assert {"learned", "learned_mean", "p_index_within_classes"} <= gaps(study)
    assert np.isnan(study["mean_share"].sel(share_of="input")).all()  # and not 0
    assert "input + common to all families" in summary(study)
    assert "universal" not in summary(study) + lines


def test_without_the_input_nothing_is_claimed(make_networks: MakeNetworks) -> None:
    """Nothing is claimed even if trained networks are much more alike than untrained ones."""
    study = conduct(make_networks(80, models=(*TRAINED, *UNTRAINED), pixels=None), permutations=119)
    assert float(study["learned_mean_low"].sel(kernel="cka", kind_of_pair="other family")) > 0
    summary = " ".join(json.loads(study.attrs["summary"]))
    assert "What the input alone explains is not known" in summary
    assert "universal" not in summary.lower().replace("universality classes", "")


def test_every_sample_of_another_class(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(20, labels=np.arange(20)), permutations=19)
    assert "cka given labels" not in study["measure"].values


@pytest.mark.parametrize("n", [8, 20])
def test_few_samples(make_networks: MakeNetworks, n: int) -> None:
    study = conduct(make_networks(n), ["cka", "mutual_knn"], permutations=119)
    assert f"{n} samples: intervals are wide" in warnings(study)
    assert not (INDEX | {"learned", "learned_low", "share", "share_low", "agreement"}) & gaps(study)
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
        layers = {"mlp": [np.ones((30, 6))] * 2}
        stores += [stack.enter_context(write_network(tmp_path, model, arrays)) for model, arrays in layers.items()]
        with pytest.raises(
            InvalidInputError, match=r"mlp\.h5: none of its layers can be compared .*constant.*leave it out"
        ):
            conduct(stores)


def test_an_architecture_without_untrained_networks(make_networks: MakeNetworks) -> None:
    study = conduct(make_networks(30, models=TRAINED + UNTRAINED[:2]), permutations=19)
    assert "no untrained network of vit: pairs with it have no control" in warnings(study)
    assert not np.isnan(study["control"].sel(measure="cka", pair="cnn.seed0 x vit.seed0"))
    assert np.isnan(study["control"].sel(measure="cka", pair="vit.seed0 x vit.seed1"))


def test_too_few_permutations_for_so_many_pairs(make_networks: MakeNetworks) -> None:
    for count, lacking in ((118, True), (119, False)):  # 6 pairs: 6 / 120 is 0.05
        study = conduct(make_networks(20, models=TRAINED, depth=2), permutations=count)
        assert ("permutations are too few for 6 pairs of models" in warnings(study)) == lacking
        assert "take 119 permutations or more" in warnings(study) or not lacking
