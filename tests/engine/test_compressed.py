"""Test values of compressed readouts against those of the full flattened features, from pictures to results."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import repsim
from repsim.errors import InvalidInputError, SampleMismatchError, UndefinedValueError
from repsim.labels import LayerKey, SampleIds
from repsim.metrics.base import Array
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore
from repsim.stores.writer import StoreWriter, write_store
from tests.metrics.references import minibatch_cka, sketch_error

pytestmark = pytest.mark.slow

MODELS = ("digits_resnet.seed0", "digits_vit.seed0")
N = 100


@pytest.fixture(scope="module", params=["float32", "float16"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[ActivationStore]:
    """Return stores of real layers of two architectures on the same pictures, 4 of which are in no block."""
    out = tmp_path_factory.mktemp(request.param)
    return [
        repsim.extract(
            model,
            "digits",
            out,
            layers={"digits_resnet.seed0": "layer1.0,layer2.1,layer4.1", "digits_vit.seed0": "blocks.*"}[model],
            readout="flatten,mean,gram:32,sketch:256",
            limit=N,
            batch_size=64,
            dtype=request.param,
        )
        for model in MODELS
    ]


@pytest.fixture(scope="module")
def result(stores: list[ActivationStore]) -> xr.Dataset:
    a, b = stores
    return repsim.compare(a, b, ["cka", "cka:estimator=biased", "svcca"])


def of(values: xr.DataArray, readout: str) -> xr.DataArray:
    return values.where((values["readout_a"] == readout) & (values["readout_b"] == readout), drop=True)


def full(store: ActivationStore, name: str) -> Array:
    """Return the flattened features of a compressed array's layer, in float64 and in the order of extraction."""
    assert store.order is not None
    features: Array = store[f"{name.partition('@')[0]}@flatten"][:]
    return features.reshape(N, -1).astype(np.float64)[store.order]


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_grams_are_minibatch_cka_of_the_full_features(
    stores: list[ActivationStore], result: xr.Dataset, estimator: str
) -> None:
    """The tolerance is 1e-5, or 2e-3 if features and matrices were rounded to float16."""
    tolerance = 1e-5 if stores[0][stores[0].layers[0]].dtype == np.float32 else 2e-3
    values = of(result["cka" if estimator == "debiased" else "cka:estimator=biased"], "gram:32")
    assert values.shape == (3, 6)
    for a in values["layer_a"].values:
        for b in values["layer_b"].values:
            exact = minibatch_cka(full(stores[0], a), full(stores[1], b), 32, estimator=estimator)
            assert values.sel(layer_a=a, layer_b=b).item() == pytest.approx(exact, abs=tolerance), (a, b)


def test_sketches_are_within_their_predicted_error(stores: list[ActivationStore], result: xr.Dataset) -> None:
    values = of(result["cka"], "sketch:256")
    flat = of(result["cka"], "flatten")
    assert values.shape == flat.shape == (3, 6)
    errors = []
    for i, a in enumerate(values["layer_a"].values):
        for j, b in enumerate(values["layer_b"].values):
            predicted = sketch_error(full(stores[0], a), full(stores[1], b), 256)
            errors.append((values[i, j].item() - flat[i, j].item()) / predicted)
    assert max(map(abs, errors)) < 4
    assert 0.3 < math.sqrt(np.mean(np.square(errors))) < 1.7


def test_only_like_is_compared_with_like(stores: list[ActivationStore], result: xr.Dataset) -> None:
    """Features are compared with features of any readout; each reason for the other pairs is given once."""
    features = {"flatten", "mean"}
    for i, a in enumerate(result["readout_a"].values):
        for j, b in enumerate(result["readout_b"].values):
            comparable = a == b or {a, b} <= features
            assert np.isnan(result["cka"][i, j].item()) != comparable
            assert np.isnan(result["svcca"][i, j].item()) != ({a, b} <= features)
    assert json.loads(result["cka"].attrs["undefined"]) == [
        f"layers read out as {pair}: only like can be compared with like"
        for pair in ("flatten and gram:32", "flatten and sketch:256", "gram:32 and sketch:256")
    ]
    reasons = json.loads(result["svcca"].attrs["undefined"])
    assert len(reasons) == 2 * 9
    assert reasons[0] == (
        "layer blocks.0@gram:32: svcca needs the features themselves; this readout keeps only Gram matrices, "
        "which linear cka compares"
    )
    assert result["cka"].attrs["label"] == "CKA (linear, debiased)"  # no readout, because there are several
    assert result["svcca"].attrs["label"] == "SVCCA (variance=0.99, rho)"


def test_samples_in_no_block_are_reported(result: xr.Dataset) -> None:
    assert json.loads(result["cka"].attrs["remarks"]) == [
        "4 of 100 samples are in no block of 32, and left out of gram:32"
    ]
    assert result["cka"].attrs["cautions"] == "[]"
    assert result["n_samples"].item() == N
    biased = json.loads(result["cka:estimator=biased"].attrs["cautions"])
    assert sum("inflated by minibatches, 32 samples small" in caution for caution in biased) == 3 * 6


def test_features_are_counted_before_they_are_compressed(result: xr.Dataset) -> None:
    counts = result["features_a"].where(result["readout_a"] != "mean", drop=True)
    assert counts.values.tolist() == [24 * 64] * 3 + [36 * 16] * 3 + [64 * 16] * 3


@pytest.mark.parametrize(
    ("readout", "label"),
    [
        ("gram:32", "CKA (linear, debiased, minibatches of 32)"),
        ("sketch:64", "CKA (linear, debiased, two sketches of 64)"),
        ("flatten", "CKA (linear, debiased)"),
    ],
)
def test_the_label_says_what_was_computed(tmp_path: Path, readout: str, label: str) -> None:
    store = repsim.extract(
        "digits_resnet.seed0", "digits", tmp_path, layers="layer4.*", readout=readout, limit=64, batch_size=32
    )
    values = repsim.compare(store, store)["cka"]
    assert values.attrs["label"] == label
    assert values.attrs["cautions"] == "[]"
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-6)
    np.testing.assert_allclose(values, values.T, atol=1e-12)
    if readout != "flatten":
        with pytest.raises(UndefinedValueError, match="cka:kernel=rbf needs the features themselves"):
            repsim.compare(store, store, ["cka:kernel=rbf"])


# Stores made by hand


def gram_store(path: Path, x: Array, size: int, order: Array | None = None, readout: str = "") -> ActivationStore:
    order = np.arange(len(x)) if order is None else order
    blocks = x[order][: len(x) // size * size].reshape(-1, size, x.shape[1])
    blocks = blocks - blocks.mean(1, keepdims=True)
    key = LayerKey(path.stem, "x", readout or f"gram:{size}")
    ids = SampleIds(tuple(map(str, range(len(x)))))
    contents = Contents((ArraySpec(key, (size, size), {}, size),), ids, "given", {}, "float64", order=order)
    with StoreWriter(path, contents) as writer:
        writer.write(key, slice(0, len(blocks)), blocks @ blocks.transpose(0, 2, 1) / x.shape[1])
        writer.mark_done(slice(0, len(x)))
    return repsim.open_store(path)


def test_blocks_of_other_samples_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    x, order = rng.normal(size=(20, 6)), rng.permutation(20)
    a, b = gram_store(tmp_path / "a.h5", x, 8), gram_store(tmp_path / "b.h5", x, 8, order)
    with pytest.raises(SampleMismatchError, match=r"a\.h5 and .*b\.h5 hold Gram matrices whose blocks are not of the"):
        repsim.compare(a, b)
    again = gram_store(tmp_path / "c.h5", x, 8, order)
    assert repsim.compare(b, again)["cka"].item() == pytest.approx(1, abs=1e-12)
    features = write_store(tmp_path / "d.h5", {"x": x}, model="d")
    with pytest.raises(UndefinedValueError, match="read out as given and gram:8: only like can be compared with like"):
        repsim.compare(b, features)  # features do not depend on the order


def test_blocks_of_another_size_are_not_compared(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 6))
    a, b = gram_store(tmp_path / "a.h5", x, 8), gram_store(tmp_path / "b.h5", x, 5)
    with pytest.raises(UndefinedValueError, match="read out as gram:5 and gram:8: only like can be compared with like"):
        repsim.compare(a, b)
    assert repsim.compare(a, a)["features_a"].item() == -1  # the number was not recorded


def test_arrays_that_do_not_fit_their_readout_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    cases: dict[str, tuple[Any, str]] = {
        "gram:8": (rng.normal(size=(16, 5)), r"expected the shape \(2, 8, 8\) for gram:8 of 16 samples, got \(16, 5\)"),
        "gram:32": (rng.normal(size=(16, 5)), "16 samples are too few: gram:32 needs at least 32, one block"),
        "sketch:8": (rng.normal(size=(16, 9)), r"expected the shape \(16, 2, 8\) for sketch:8 of 16 samples, got"),
    }
    for i, (readout, (values, message)) in enumerate(cases.items()):
        store = write_store(tmp_path / f"{i}.h5", {"x": values}, model="x", readout=readout)
        with pytest.raises(InvalidInputError, match=rf"{i}\.h5, layer x: {message}"):
            repsim.compare(store, store)
    small = write_store(tmp_path / "s.h5", {"x": rng.normal(size=(3, 2, 8))}, model="x", readout="sketch:8")
    with pytest.raises(InvalidInputError, match="3 samples are too few"):
        repsim.compare(small, small)


def test_similar_names_are_not_compressed_readouts(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(16, 5))
    for readout in ("gram", "gram:mine", "sketch", "sketches:3"):
        assert LayerKey("m", "x", readout).form == "features"
    store = write_store(tmp_path / "a.h5", {"x": x}, model="a", readout="gram")
    assert repsim.compare(store, store)["cka"].item() == pytest.approx(1, abs=1e-12)
    assert (LayerKey("m", "x", "sketch:9:3").form, LayerKey("m", "x", "sketch:9:3").size) == ("sketches", 9)
