"""Tests of comparisons of the same layers under several readouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from repsim.cli import main
from repsim.engine.comparison import compare
from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.figures import figure
from repsim.labels import LayerKey, SampleIds
from repsim.metrics import get
from repsim.metrics.base import Array
from repsim.results.files import open_result, save_result
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import open_store
from repsim.stores.writer import StoreWriter
from tests.growing import grow

N = 40


@pytest.fixture
def values(rng: np.random.Generator) -> dict[LayerKey, Array]:
    """Return two models of two layers with the readouts mean and cls; model b has one more layer with mean only."""
    keys = [LayerKey(model, layer, readout) for model in "ab" for layer in ("x", "y") for readout in ("mean", "cls")]
    return {key: rng.normal(size=(N, 6)) for key in [*keys, LayerKey("b", "z", "mean")]}


@pytest.fixture
def stores(tmp_path: Path, values: dict[LayerKey, Array]) -> tuple[Path, Path]:
    made = []
    for model in "ab":
        keys = [key for key in values if key.model == model]
        specs = tuple(ArraySpec(key, (6,)) for key in keys)
        contents = Contents(specs, SampleIds(tuple(map(str, range(N)))), "photos", {}, dtype="float64")
        made.append(tmp_path / f"{model}.h5")
        with StoreWriter(made[-1], contents) as out:
            for key in keys:
                out.write(key, slice(0, N), values[key])
            out.mark_done(slice(None))
    return made[0], made[1]


def test_like_is_compared_with_like(stores: tuple[Path, Path], values: dict[LayerKey, Array]) -> None:
    result = compare(*stores, ["cka", "pwcca"], readouts=["mean", "cls"])
    assert list(result.data_vars) == ["cka@mean", "cka@cls", "pwcca@mean", "pwcca@cls"]
    assert result["layer_a"].values.tolist() == ["x", "y"]
    assert result["layer_b"].values.tolist() == ["x", "y", "z"]
    for name, variable in result.data_vars.items():
        spec, _, readout = str(name).partition("@")
        assert (variable.attrs["spec"], variable.attrs["readout"]) == (spec, readout)
        assert f"readout {readout}" in variable.attrs["label"]
        for a in ("x", "y"):
            for b in ("x", "y", "z"):
                value = variable.sel(layer_a=a, layer_b=b).item()
                other = values.get(LayerKey("b", b, readout))
                expected = np.nan if other is None else get(spec)(values[LayerKey("a", a, readout)], other)
                np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert json.loads(result["cka@mean"].attrs["undefined"]) == []
    assert json.loads(result["cka@cls"].attrs["undefined"]) == ["layer z: it is not read out by cls"]
    assert result["features@cls_b"].values.tolist() == [6, 6, -1]
    assert result["pwcca@cls.rank_b"].values.tolist() == [6, 6, -1]
    assert "readout_a" not in result.coords


def test_one_readout_is_a_choice_of_layers(stores: tuple[Path, Path], values: dict[LayerKey, Array]) -> None:
    result = compare(*stores, readouts=["cls"])
    assert result["cka"].shape == (2, 2)
    assert result["readout_b"].values.tolist() == ["cls", "cls"]
    assert result["cka"].sel(layer_a="x", layer_b="y").item() == pytest.approx(
        get("cka")(values[LayerKey("a", "x", "cls")], values[LayerKey("b", "y", "cls")]), rel=1e-12
    )


def test_many_models(stores: tuple[Path, Path]) -> None:
    both = compare(list(stores), None, ["cka", "pwcca"], readouts=["mean", "cls"])
    assert both["layer_a"].values.tolist() == ["a/x", "a/y", "b/x", "b/y", "b/z"]
    for name, variable in compare(*stores, ["cka", "pwcca"], readouts=["mean", "cls"]).data_vars.items():
        np.testing.assert_allclose(both[name].values[:2, 2:], variable.values, rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(both["cka@cls"].values[4]), [True] * 5)


def test_it_grows_by_metrics_and_keeps_what_it_has(stores: tuple[Path, Path], tmp_path: Path) -> None:
    save_result(compare(*stores, ["cka"], readouts=["mean", "cls"]), tmp_path / "r.nc")
    earlier = open_result(tmp_path / "r.nc")
    earlier["cka@cls"][0, 0] = 0.125  # a value that no comparison would compute
    grown = grow(*stores, ["pwcca"], readouts=["mean", "cls"], earlier_result=earlier)
    fresh = compare(*stores, ["cka", "pwcca"], readouts=["mean", "cls"])
    assert list(grown.data_vars) == list(fresh.data_vars)
    assert grown["cka@cls"].values[0, 0] == 0.125
    xr.testing.assert_equal(grown["pwcca@cls"].drop_vars(grown.coords), fresh["pwcca@cls"].drop_vars(fresh.coords))
    xr.testing.assert_equal(grown["cka@mean"].drop_vars(grown.coords), fresh["cka@mean"].drop_vars(fresh.coords))
    for other in ((), ("cls",), ("cls", "mean")):
        with pytest.raises(InvalidInputError, match="about these readouts: mean, cls; name the same"):
            grow(*stores, ["cka"], readouts=other, earlier_result=earlier)
    with pytest.raises(InvalidInputError, match="about all readouts"):
        grow(*stores, readouts=["cls"], earlier_result=compare(*stores))


def test_a_readout_that_a_store_has_not(stores: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.h5 holds no layer that is read out by max, only by mean, cls"):
        compare(*stores, readouts=["mean", "max"])


def test_a_metric_without_any_value_under_one_readout_is_left_out(
    stores: tuple[Path, Path], tmp_path: Path, values: dict[LayerKey, Array]
) -> None:
    """A metric without a value under any readout is an error."""
    x = values[LayerKey("a", "x", "mean")]
    keys = LayerKey("g", "x", "mean"), LayerKey("g", "x", "gram:4")
    specs = ArraySpec(keys[0], (6,)), ArraySpec(keys[1], (4, 4), block=4)
    ids = SampleIds(tuple(map(str, range(N))))
    contents = Contents(specs, ids, "photos", {}, dtype="float64", order=np.arange(N))
    with StoreWriter(tmp_path / "g.h5", contents) as out:
        out.write(keys[0], slice(0, N), x)
        blocks = (x - x.mean(0)).reshape(-1, 4, 6)
        out.write(keys[1], slice(0, N // 4), (blocks @ blocks.transpose(0, 2, 1)).reshape(-1, 16))
        out.mark_done(slice(None))
    result = compare(tmp_path / "g.h5", None, ["cka", "svcca"], readouts=["mean", "gram:4"])
    assert list(result.data_vars) == ["cka@mean", "cka@gram:4", "svcca@mean"]
    (left_out,) = json.loads(result.attrs["left_out"])
    assert left_out.startswith("svcca@gram:4: no pair of layers has a value; layer x: svcca needs the features")
    with pytest.raises(UndefinedValueError, match="svcca: no pair of layers has a value"):
        compare(tmp_path / "g.h5", None, ["cka", "svcca"], readouts=["gram:4"])


def test_on_the_command_line(stores: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "r.nc"
    words = ["compare", *map(str, stores), "--readout", "mean", "--readout", "cls", "-o", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "CKA (linear, debiased, readout cls): 40 samples of photos" in " ".join(done.output.split())
    assert "cka@cls: no value: layer z: it is not read out by cls" in done.output
    printed = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert printed["metrics"]["cka@cls"]["readout"] == "cls"
    panels = [ax.get_title() for ax in figure(open_result(out), ["cka"]).axes if ax.get_title()]
    assert [title.replace("\n", " ") for title in panels] == [
        "CKA (linear, debiased, readout mean)",
        "CKA (linear, debiased, readout cls)",
    ]


def test_all_arrays_with_all_by_default(stores: tuple[Path, Path]) -> None:
    with open_store(stores[0]) as store:
        names = list(store.layers)
    result = compare(*stores)
    assert result["layer_a"].values.tolist() == names
    assert result["cka"].shape == (4, 5)
    assert result["readout_a"].values.tolist() == ["mean", "cls"] * 2
