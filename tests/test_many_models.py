"""Tests of comparisons of many models: blocks equal comparisons of two models, and results can be extended."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from repsim.engine.comparison import Comparison, compare
from repsim.errors import InvalidInputError, StoreError
from repsim.stores.alignment import StoredRows
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from repsim.testing.examples import related_layers
from tests.growing import grow

SPECS = ("cka", "cka:estimator=biased", "cka:kernel=rbf", "cca", "svcca:variance=0.9", "pwcca")
WIDTHS = {"a": (3, 5, 8), "b": (6, 5), "c": (4, 7), "d": (5,)}


def store(folder: Path, name: str, n: int = 60, dtype: Any = np.float64, times: int = 1) -> ActivationStore:
    signal, rng = np.random.default_rng(7).normal(size=(n, 4)), np.random.default_rng(ord(name))
    made = related_layers(rng, n, *(p * times for p in WIDTHS[name]), shared=signal)
    layers = {f"blocks.{i}": x.astype(dtype) for i, x in enumerate(made)}
    return write_store(folder / f"{name}.h5", layers, model=name, overwrite=True)


@pytest.fixture
def stores(tmp_path: Path) -> list[ActivationStore]:
    return [store(tmp_path, name) for name in "abcd"]


def block(result: xr.DataArray, a: str, b: str) -> Any:
    return result.values[np.ix_(result["model_a"].values == a, result["model_b"].values == b)]


def notes(variable: xr.DataArray, kind: str) -> list[str]:
    return sorted(json.loads(variable.attrs[kind]))


@pytest.mark.slow
def test_every_block_is_the_comparison_of_two(stores: list[ActivationStore]) -> None:
    result = compare(stores, metrics=SPECS)
    assert result["layer_a"].values.tolist() == [f"{s.model}/{layer}" for s in stores for layer in s.layers]
    assert result["layer_b"].values.tolist() == result["layer_a"].values.tolist()
    for a in stores:
        for b in stores:
            two = compare(a, b, SPECS)
            for spec in SPECS:
                np.testing.assert_allclose(block(result[spec], a.model, b.model), two[spec].values, atol=1e-12)
    assert not np.allclose(result["pwcca"], result["pwcca"].values.T, atol=1e-6)


def test_symmetric_measures_are_symmetric_to_the_bit(tmp_path: Path) -> None:
    made = [store(tmp_path, name, n=130, dtype=np.float32, times=9) for name in "abc"]
    symmetric = [spec for spec in SPECS if spec != "pwcca"]
    before = compare(made[:2], metrics=symmetric)
    for result in (before, grow(made, metrics=symmetric, earlier_result=before), compare(made[0], made[0], symmetric)):
        for spec in symmetric:
            np.testing.assert_array_equal(result[spec].values, result[spec].values.T)


def test_adding_a_model_computes_only_what_is_new_and_changes_nothing_old(stores: list[ActivationStore]) -> None:
    before = compare(stores[:2], metrics=SPECS)
    with Comparison(stores[:3], None, ["cka"], earlier_result=before) as grown:
        work = [(m.spec, len(s.rows), len(s.columns)) for s in grown.plan.stages for m in s.metrics]
        after = grown.run()
    new, old = len(stores[2].layers), len(before["layer_a"])
    assert sorted(work) == sorted([*((spec, new, old + new) for spec in SPECS), ("pwcca", old, new)])
    fresh = compare(stores[:3], metrics=SPECS)
    same_layers = np.isin(after["layer_a"], before["layer_a"])
    for spec in SPECS:
        np.testing.assert_array_equal(after[spec].values[np.ix_(same_layers, same_layers)], before[spec].values)
        np.testing.assert_allclose(after[spec], fresh[spec], atol=1e-12)
        plain = {key: value for key, value in fresh[spec].attrs.items() if key != "cautions"}
        assert {key: after[spec].attrs[key] for key in plain} == plain
        assert notes(after[spec], "cautions") == notes(fresh[spec], "cautions")
    assert set(after.coords) == set(fresh.coords)
    for name, coordinate in fresh.coords.items():
        assert after[name].values.tolist() == coordinate.values.tolist(), name
    assert json.loads(after.attrs["stores_a"]) == json.loads(fresh.attrs["stores_a"])


def test_a_model_may_be_added_in_the_middle(stores: list[ActivationStore]) -> None:
    before = compare([stores[0], stores[2]], metrics=SPECS)
    after, fresh = grow(stores[:3], earlier_result=before, metrics=SPECS), compare(stores[:3], metrics=SPECS)
    for spec in SPECS:
        np.testing.assert_allclose(after[spec], fresh[spec], atol=1e-12)
        np.testing.assert_array_equal(block(after[spec], "c", "a"), block(before[spec], "c", "a"))
    for name in ("svcca:variance=0.9.components_a", "cca.rank_b", "features_b"):
        assert after[name].values.tolist() == fresh[name].values.tolist(), name


def test_numbers_of_a_layer_are_its_own(tmp_path: Path) -> None:
    """Layers of the same name have different ranks; extending the result changes their positions."""
    rng = np.random.default_rng(0)
    ranks = {"a": 2, "b": 3, "c": 4}
    made = [
        write_store(tmp_path / f"{m}.h5", {"x": rng.normal(size=(50, r)) @ rng.normal(size=(r, 6))}, model=m)
        for m, r in ranks.items()
    ]
    before = compare([made[0], made[2]], metrics=["cca"])
    after = grow(made, metrics=["cca"], earlier_result=before)
    assert before["cca.rank_a"].values.tolist() == [2, 4]
    assert after["cca.rank_a"].values.tolist() == after["cca.rank_b"].values.tolist() == [2, 3, 4]
    two = compare(made[0], made[1], ["cca"])
    assert (two["cca.rank_a"].values.tolist(), two["cca.rank_b"].values.tolist()) == ([2], [3])


def test_cautions_grow_with_the_result(tmp_path: Path) -> None:
    """The cautions equal those of one comparison, in both directions."""
    made = [store(tmp_path, name, n=12) for name in "abc"]
    results = (None, compare(made[:2], metrics=["cca"]))
    fresh, grown = (grow(made, metrics=["cca"], earlier_result=result) for result in results)
    assert len(notes(fresh["cca"], "cautions")) > 10
    assert notes(grown["cca"], "cautions") == notes(fresh["cca"], "cautions")


def test_adding_a_metric_computes_that_one(stores: list[ActivationStore]) -> None:
    for a, b in ((stores[:2], None), (stores[0], stores[1])):
        before = compare(a, b, ["cka"])
        with Comparison(a, b, ["svcca", "cka"], earlier_result=before) as grown:
            assert [[m.spec for m in stage.metrics] for stage in grown.plan.stages] == [["svcca"]]
            after = grown.run()
        assert list(after.data_vars) == ["cka", "svcca"]
        xr.testing.assert_identical(
            after["cka"].drop_vars(set(after["cka"].coords) - set(before.coords)), before["cka"]
        )
        np.testing.assert_allclose(after["svcca"], compare(a, b, ["svcca"])["svcca"], atol=1e-12)
        with Comparison(a, b, ["cka"], earlier_result=after) as nothing:
            assert nothing.plan.stages == ()
            assert nothing.plan.memory == nothing.plan.limits.base
            again = nothing.run()
        xr.testing.assert_equal(again, after)
        assert again["svcca"].attrs == after["svcca"].attrs


def test_a_metric_and_a_model_at_once(stores: list[ActivationStore]) -> None:
    before = compare(stores[:2], metrics=["cka"])
    after = grow(stores[:3], metrics=["pwcca"], earlier_result=before)
    fresh = compare(stores[:3], metrics=["cka", "pwcca"])
    for spec in ("cka", "pwcca"):
        np.testing.assert_allclose(after[spec], fresh[spec], atol=1e-12)


def test_what_would_be_lost_or_mixed_up_is_refused(tmp_path: Path, stores: list[ActivationStore]) -> None:
    square, sides, one = compare(stores[:2]), compare(stores[0], stores[1]), compare(stores[0])
    refused: list[tuple[xr.Dataset, Any, str]] = [
        (square, ([stores[0], stores[2]],), "the earlier result holds b, which would be lost"),
        (sides, (stores[0],), "the earlier result holds b, which would be lost"),
        (sides, (stores[:2],), "another form: layers of a by layers of b; name another file"),
        (sides, (stores[:3],), "another form: layers of a by layers of b; name another file"),
        (sides, (stores[1], stores[0]), "another form: layers of a by layers of b; name another file"),
        (one, (stores[:2],), "another form: layers of a by layers of a; name another file"),
        (one, (stores[0], stores[1]), "another form: layers of a by layers of a; name another file"),
        (square, (stores[0], stores[1]), "another form: layers of a, b by layers of a, b; name another file"),
    ]
    for earlier, arguments, message in refused:
        with pytest.raises(InvalidInputError, match=message):
            grow(*arguments, earlier_result=earlier)
    others = tmp_path / "other"
    others.mkdir()
    with pytest.raises(InvalidInputError, match="about other samples"):
        grow([store(others, "a", n=50), store(others, "b", n=50)], earlier_result=square)
    stores[1].close()
    values = {name: 2 + stores[0][name][:] for name in stores[0].layers}
    changed = write_store(stores[1].path, values, model="b", overwrite=True)
    with pytest.raises(InvalidInputError, match="the store of b has changed since the earlier result"):
        grow([stores[0], changed], earlier_result=square)


def test_a_layer_without_values_is_said_once(tmp_path: Path) -> None:
    """If one sample differs from the others, the centred Gram matrix is 0 off its diagonal."""
    outlier = np.zeros((60, 3))
    outlier[3] = 1
    odd = write_store(tmp_path / "z.h5", {"odd": outlier, "dead": np.ones((60, 2))}, model="z")
    a, b = store(tmp_path, "a"), store(tmp_path, "b")
    before = compare([a, odd])
    for result in (before, grow([a, odd, b], earlier_result=before), grow([a, b, odd], earlier_result=compare([a, b]))):
        dead, alone = notes(result["cka"], "undefined")
        assert dead.startswith("layer z/dead: the layer is constant")
        assert alone.startswith("layer z/odd: a Gram matrix is zero after centring")
        empty = np.isnan(result["cka"].values)
        z = result["model_a"].values == "z"
        np.testing.assert_array_equal(empty, z[:, None] | z[None, :])


def streamed(stores: list[ActivationStore], spec: str) -> xr.DataArray:
    """Compare with too little memory to keep all layers."""
    with Comparison(stores, None, [spec]) as plenty:
        (stage,) = plenty.plan.stages
        assert stage.kept
        amount = plenty.plan.memory
    while True:
        amount -= 2**20
        with Comparison(stores, None, [spec], memory=amount) as tight:
            (stage,) = tight.plan.stages
            if not stage.kept:
                return tight.run()[spec]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_layers_read_again_give_the_same_values(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    """This holds for both algorithms, and for a basis that is computed whenever it is needed."""
    specs = ["cka", "cka:kernel=rbf,sigma=30.0", "cka:estimator=minibatch,batch=64", "svcca"]
    made = [store(tmp_path, name, n=1100, dtype=dtype, times=40) for name in "ab"]
    result = compare(made, metrics=specs)
    for spec in specs:
        np.testing.assert_allclose(streamed(made, spec), result[spec], rtol=0, atol=tolerance, err_msg=spec)


# --- layers in stores


def test_rows_of_a_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3, 4))
    halves = write_store(tmp_path / "b.h5", {"x": x.astype(np.float16)}, model="b")
    with write_store(tmp_path / "a.h5", {"x": x}, model="a") as doubles, halves:
        rows = StoredRows(doubles["x"], torch.device("cpu"))
        assert (rows.shape, rows.dtype) == ((20, 12), torch.float64)
        flat = torch.from_numpy(x).flatten(1)
        for wanted in (slice(3, 9), slice(None), slice(None, None, 3), slice(15, 99), slice(5, 5), slice(7, 2)):
            assert torch.equal(rows[wanted], flat[wanted]), wanted
        order = torch.tensor([5, 0, 19, 5])
        assert torch.equal(rows[order], flat[order])
        half = StoredRows(halves["x"], torch.device("cpu"))
        assert half.dtype == torch.float32
        assert torch.equal(half[:], torch.from_numpy(x.astype(np.float16)).float().flatten(1))


def test_what_is_read_is_held_against_its_checksum(tmp_path: Path) -> None:
    made = store(tmp_path, "a")
    name = made.layers[0]
    with h5py.File(made.path) as file:
        place = file[f"layers/{name}/given"].id.get_offset()
    width = made[name][:].nbytes // len(made)
    with made.path.open("r+b") as damaged:
        damaged.seek(place + 12 * width)
        damaged.write(b"\1")
    rows = StoredRows(made[name], torch.device("cpu"))
    assert rows[:12].shape == (12, 3)
    assert rows[torch.tensor([40, 13])].shape == (2, 3)
    for bad in (slice(5, 15), torch.tensor([3, 12]), slice(12, 13)):
        with pytest.raises(StoreError, match="is damaged in row 12"):
            rows[bad]
