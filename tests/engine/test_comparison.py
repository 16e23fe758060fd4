"""Test that comparisons return the values of the metrics, refuse unequal samples, and give reasons for NaN."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from typing_extensions import override

import repsim
from repsim import metrics
from repsim.engine.comparison import Comparison, compare, similarity
from repsim.errors import InvalidInputError, SampleMismatchError, StoreError, UndefinedValueError, UnknownNameError
from repsim.labels import SampleIds
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.cca import SVCCA
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.cost import NOMINAL, Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.metrics.rsm import RSMDifference
from repsim.results.files import open_result, save_result
from repsim.runtime.progress import Step, sharing
from repsim.stores.store import ActivationStore, open_store
from repsim.stores.writer import write_store
from repsim.testing.examples import related_layers
from tests.threads import torch_threads

SPECS = ("cka", "cka:estimator=biased", "cka:kernel=rbf", "cca", "svcca", "pwcca")


def store(
    folder: Path, name: str, rng: np.random.Generator, n: int = 40, widths: tuple[int, ...] = (3, 5, 8), **options: Any
) -> ActivationStore:
    shared = np.random.default_rng(7).normal(size=(n, 4))
    layers = {f"blocks.{i}": x for i, x in enumerate(related_layers(rng, n, *widths, shared=shared))}
    return write_store(folder / f"{name}.h5", layers, model=name, **options)


def test_every_value_is_that_of_the_metric(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = store(tmp_path, "a", rng), store(tmp_path, "b", rng, widths=(6, 2))
    result = compare(a, b, SPECS)
    assert list(result.data_vars) == list(SPECS)
    for spec in SPECS:
        assert result[spec].dims == ("layer_a", "layer_b")
        for name_a in a.layers:
            for name_b in b.layers:
                value = result[spec].sel(layer_a=name_a, layer_b=name_b).item()
                assert value == pytest.approx(similarity(a[name_a][:], b[name_b][:], spec), abs=1e-12), (
                    spec,
                    name_a,
                    name_b,
                )


def test_the_result_describes_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = store(tmp_path, "a", rng, source="photos"), store(tmp_path, "b", rng, source="photos", readout="cls")
    with Comparison(a, b, ["svcca:variance=0.9"]) as planned:
        result = planned.run(command="repsim compare a b")
    assert result["layer_a"].values.tolist() == ["blocks.0", "blocks.1", "blocks.2"]
    assert result["model_b"].values.tolist() == ["b"] * 3
    assert result["readout_b"].values.tolist() == ["cls"] * 3
    assert result["features_a"].values.tolist() == [3, 5, 8]
    assert (result["n_samples"].item(), result["data"].item()) == (40, "photos")
    attrs = result["svcca:variance=0.9"].attrs
    assert attrs["label"] == "SVCCA (variance=0.9, rho)"
    assert (attrs["sense"], attrs["valid_range"], attrs["symmetric"]) == ("similarity", [0.0, 1.0], 1)
    assert "Raghu" in attrs["citation"]
    components = result["svcca:variance=0.9.components_a"]
    metric: Any = metrics.get("svcca:variance=0.9")
    expected = [metric.recipe(_tensor(a[name][:])).components(0.9) for name in a.layers]
    assert components.values.tolist() == expected
    (stored,) = json.loads(result.attrs["stores_a"])
    assert (stored["model"], stored["checksum"]) == ("a", a.checksum)
    assert stored["provenance"]["extractor"] == "given"
    assert result.attrs["command"] == "repsim compare a b"


def _tensor(x: Any) -> Any:
    return metrics.base.as_samples(x)


def test_cautions_about_values_that_are_not_determined(tmp_path: Path, rng: np.random.Generator) -> None:
    """Layers with columns in common: their canonical correlations of 1 tie, and PWCCA weights their directions."""
    shared = rng.normal(size=(300, 6))
    layers = {
        "x": np.c_[shared * range(1, 7), rng.normal(size=(300, 3))],
        "y": np.c_[shared, rng.normal(size=(300, 4))],
        "z": rng.normal(size=(300, 5)),
    }
    a = write_store(tmp_path / "a.h5", layers, model="a")
    result = compare(a, a, ["pwcca", "cca"], out=tmp_path / "result.nc")
    cautions = [text for text in json.loads(result["pwcca"].attrs["cautions"]) if "not determined" in text]
    assert sorted(text.partition(":")[0] for text in cautions) == ["x and y", "y and x"]
    assert not any("not determined" in text for text in json.loads(result["cca"].attrs["cautions"]))
    grown = compare(a, a, ["svcca"], out=tmp_path / "result.nc")
    assert [text for text in json.loads(grown["pwcca"].attrs["cautions"]) if "not determined" in text] == cautions


@pytest.mark.parametrize("twice", ["one object", "one path", "two openings"])
def test_a_store_with_itself(tmp_path: Path, rng: np.random.Generator, twice: str) -> None:
    a = store(tmp_path, "a", rng)
    again: Any = {"one object": a, "one path": a.path, "two openings": open_store(a.path)}[twice]
    steps: list[tuple[int, int]] = []
    result = compare(
        a.path if again is a.path else a,
        again,
        ["cka", "pwcca"],
        progress=lambda done, total: steps.append((done, total)),
    )
    np.testing.assert_allclose(np.diag(result["cka"]), 1, atol=1e-6)
    np.testing.assert_allclose(result["cka"], result["cka"].values.T, atol=1e-12)
    assert steps[-1] == (100, 100)
    assert steps == sorted(set(steps))
    assert json.loads(result.attrs["stores_a"]) == json.loads(result.attrs["stores_b"])


def test_each_layer_is_prepared_once_for_all_metrics_that_share_a_recipe(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = PrincipalSubspace.__call__

    def counted(self: PrincipalSubspace, x: Any) -> Any:
        calls.append(x)
        return original(self, x)

    monkeypatch.setattr(PrincipalSubspace, "__call__", counted)
    compare(store(tmp_path, "a", rng), store(tmp_path, "b", rng), ["cca", "svcca", "svcca:variance=0.9", "pwcca"])
    assert len(calls) == 6


def test_arrays_of_maps_are_compared_flattened(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(20, 3, 4, 4)), rng.normal(size=(20, 5))
    a = write_store(tmp_path / "a.h5", {"map": x}, model="a")
    b = write_store(tmp_path / "b.h5", {"vector": y}, model="b")
    assert compare(a, b)["cka"].item() == pytest.approx(similarity(x.reshape(20, -1), y), abs=1e-12)


def test_float16_stores_are_compared_in_float32(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 6)).astype(np.float16)
    a = write_store(tmp_path / "a.h5", {"x": x}, model="a")
    assert compare(a, a, ["cka"])["cka"].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (list("abcd"), list("abce"), r"1 of 4 only in the first \(d\), 1 of 4 only in the second \(e\)"),
        (list("abcde"), list("abcd"), r"1 of 5 only in the first \(e\)"),
        (list("abcd"), list("abdc"), r"the same 4 in another order, from row 2 on \(c / d\)"),
    ],
)
def test_other_samples_or_another_order_are_refused(
    tmp_path: Path, first: list[str], second: list[str], message: str
) -> None:
    rng = np.random.default_rng(0)
    a = write_store(tmp_path / "a.h5", {"x": rng.normal(size=(len(first), 3))}, model="a", sample_ids=first)
    b = write_store(tmp_path / "b.h5", {"x": rng.normal(size=(len(second), 3))}, model="b", sample_ids=second)
    with pytest.raises(SampleMismatchError, match=message):
        compare(a, b)


def test_the_same_names_of_other_pictures_are_other_samples() -> None:
    ids = ("1.png", "2.png")
    assert SampleIds(ids, "x").difference(SampleIds(ids, "y")) == (
        "other pictures behind the same names: the sizes of the files of the 2 samples differ"
    )
    assert SampleIds(ids, "x").difference(SampleIds(ids, "")) is None  # one store does not record file sizes


def test_a_long_list_of_differences_is_cut_short() -> None:
    text = SampleIds(tuple(map(str, range(100)))).difference(SampleIds(("0",)))
    assert text == "99 of 100 only in the first (1, 2, 3, ...)"


def test_too_few_samples(tmp_path: Path, rng: np.random.Generator) -> None:
    a = store(tmp_path, "a", rng, n=3)
    with pytest.raises(InvalidInputError, match="layer blocks.0: 3 samples are too few: .* at least 4"):
        compare(a, a)


def test_damage_names_the_layer_and_the_row(tmp_path: Path, rng: np.random.Generator) -> None:
    a = store(tmp_path, "a", rng)
    a.close()
    with h5py.File(a.path, "r+") as file:
        file["layers/blocks.1/given"][5, 2] = np.nan
    with pytest.raises(StoreError, match=r"a\.h5: a blocks\.1@given is damaged in row 5"):
        compare(a.path, a.path)


def test_a_constant_layer_is_nan_with_its_reason_and_the_rest_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 4))
    a = write_store(tmp_path / "a.h5", {"dead": np.ones((30, 4)), "live": x}, model="a")
    b = write_store(tmp_path / "b.h5", {"live": x}, model="b")
    for spec in SPECS:
        values = compare(a, b, [spec])[spec]
        assert np.isnan(values.values).tolist() == [[True], [False]]
        assert values[1, 0].item() == pytest.approx(1, abs=1e-6)
        assert json.loads(values.attrs["undefined"]) == [
            "layer dead: the layer is constant: every sample has the same features, so there is nothing to compare"
        ]
    with pytest.raises(UndefinedValueError, match="no pair of layers has a value; layer dead: the layer is constant"):
        compare(write_store(tmp_path / "c.h5", {"dead": np.ones((30, 4))}, model="c"), b)


def test_a_pair_without_a_value_has_a_reason(tmp_path: Path, rng: np.random.Generator) -> None:
    """If only one sample differs, the Gram matrix is 0 without its diagonal."""
    single = np.zeros((30, 4))
    single[3] = 1
    a = write_store(tmp_path / "a.h5", {"single": single, "live": rng.normal(size=(30, 4))}, model="a")
    values = compare(a, a)["cka"]
    assert np.isnan(values.values).tolist() == [[True, True], [True, False]]
    assert "in too few samples" in json.loads(values.attrs["undefined"])[0]


def test_unreliable_values_have_cautions(tmp_path: Path, rng: np.random.Generator) -> None:
    a = write_store(
        tmp_path / "a.h5", {"wide": rng.normal(size=(10, 20)), "narrow": rng.normal(size=(10, 2))}, model="a"
    )
    cautions = json.loads(compare(a, a, ["cca"])["cca"].attrs["cautions"])
    assert cautions[0].startswith("all values: n = 10 samples are too few for 9 and 9 directions")
    assert len(cautions) == 1 + 3  # all pairs except narrow with narrow
    assert cautions[1].startswith("wide and wide: with n = 10 samples")


def test_an_unknown_metric_and_none(tmp_path: Path, rng: np.random.Generator) -> None:
    a = store(tmp_path, "a", rng)
    with pytest.raises(UnknownNameError, match="did you mean svcca"):
        compare(a, a, ["svca"])
    with pytest.raises(InvalidInputError, match="at least one metric"):
        compare(a, a, [])
    with pytest.raises(InvalidInputError, match="cannot be used; this machine has: "):
        compare(a, a, device="warp")


def test_a_result_is_saved_and_read_back(tmp_path: Path, rng: np.random.Generator) -> None:
    result = compare(store(tmp_path, "a", rng), store(tmp_path, "b", rng), ["cka", "svcca:variance=0.9"])
    path = tmp_path / "r.nc"
    save_result(result, path)
    again = open_result(path)
    xr.testing.assert_equal(again, result)
    for name in result.data_vars:
        assert again[name].attrs["spec"] == name
        assert np.asarray(again[name].attrs["valid_range"]).tolist() == list(result[name].attrs["valid_range"])
    assert again.attrs == result.attrs
    with xr.open_dataset(path) as plain:  # without repsim
        assert plain["cka"].shape == (3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5", "r.nc"]


@pytest.mark.slow
def test_what_is_no_result_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(StoreError, match="no such file"):
        open_result(tmp_path / "r.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(StoreError, match="no result of repsim.compare"):
        open_result(tmp_path / "text.nc")
    with pytest.raises(StoreError, match="activation store"):
        open_result(store(tmp_path, "a", rng).path)
    xr.Dataset({"x": ("i", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(StoreError, match="no result of repsim.compare"):
        open_result(tmp_path / "other.nc")


def test_the_public_names() -> None:
    assert repsim.compare is compare
    assert repsim.similarity is similarity


def test_other_labels_of_the_same_samples_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(12, 3)), np.arange(12) % 3
    named = np.array(["cat", "dog", "ant"])[labels]  # other numbers, the same classes
    others = {"a": labels, "b": named, "c": np.roll(labels, 1) // 2, "d": None}
    stores = {name: write_store(tmp_path / f"{name}.h5", {"x": x}, model=name, labels=y) for name, y in others.items()}
    assert compare([stores[name] for name in "abd"])["cka"].shape == (3, 3)
    with pytest.raises(SampleMismatchError, match=r"d?a.h5 and .*c.h5 give the same samples different class labels"):
        compare([stores[name] for name in "dabc"])


# --- progress


class Slow(RSMDifference):
    """Measure whose pairs are predicted to take nearly all of the time."""

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return an hour."""
        return Cost(flop32=3600 * NOMINAL.flop32)


def test_a_unit_reports_each_of_its_pairs() -> None:
    """All pairs are one unit, which would otherwise report nothing until its end."""
    a, b = ({f"{k}": x for k, x in enumerate(np.random.default_rng(seed).normal(size=(2, 40, 5)))} for seed in (0, 1))
    percent: list[int] = []
    with torch_threads(1), Comparison(a, b, [Slow()]) as comparison:
        assert comparison.plan.stages[0].group == 2
        comparison.run(progress=lambda done, _: percent.append(done))
    assert percent == sorted(percent)
    assert {25, 50, 75, 100} <= set(percent)


@pytest.mark.parametrize(("metric", "n"), [("svcca", 60), ("cka", 3000)])
def test_sums_over_pairs_and_over_tiles_report_from_within_a_unit(metric: str, n: int) -> None:
    shares = []

    class Shown(Step):
        def share(self, share: float) -> None:
            shares.append(share)

    x = np.random.default_rng(0).normal(size=(2, n, 6)).astype(np.float32)
    measure = SVCCA() if metric == "svcca" else CKA()
    factors: list[Any] = [measure.recipe(torch.from_numpy(layer)) for layer in x]
    sweep = (
        MomentSweep(factors, factors, [measure], chunk=4096, room=2**20)
        if isinstance(measure, SVCCA)
        else GramSweep(factors, factors, [measure], panel=2048, tile=256)
    )
    with torch_threads(1), sharing(Shown()):
        next(iter(sweep.parts(list(sweep.order)[:1])))
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
