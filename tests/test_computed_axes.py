"""Tests of what the extraction computes about a model: parameters, depth, width, and accuracy on the labels."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn
from torchvision.transforms import Compose, Resize, ToTensor

import repsim
from repsim.engine.comparison import compare
from repsim.extraction.jobs import Extraction, choose_samples
from repsim.extractors import open_images
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.timm_models import TimmExtractor
from repsim.labels import PREDICTION, LayerKey
from repsim.results.export import to_frame
from repsim.stores.schema import Contents
from repsim.stores.writer import StoreWriter, count_stored
from tests.commands.calls import succeed

COMMON: dict[str, Any] = {"limit": 90, "layers": "blocks.0", "workers": 0}
TRANSFORM = Compose([Resize((8, 8)), ToTensor()])


class Classifier(nn.Module):
    """Two layers; ``wrap`` returns the logits in a list, as some models do."""

    def __init__(self, classes: int, *, wrap: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten())
        self.head = nn.Linear(180, classes)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.head(self.blocks(x))
        return [logits] if self.wrap else logits


def module_store(path: Path, net: nn.Module, **keywords: Any) -> repsim.ActivationStore:
    keywords = {"limit": 40, "layers": "pre_logits", "workers": 0, "transform": TRANSFORM, **keywords}
    return repsim.extract(net, "digits", path, **keywords)


def predictions_of(net: nn.Module, rows: list[int]) -> np.ndarray[Any, Any]:
    images = open_images("digits")
    with torch.no_grad():
        outputs = [net.eval()(TRANSFORM(images.load(row))[None])[0].numpy() for row in rows]
    return np.array([max(range(len(output)), key=lambda k: output[k]) for output in outputs])


def test_sizes_are_those_of_the_network(tmp_path: Path) -> None:
    store = module_store(tmp_path, Classifier(10))
    assert store.computed_axes == {
        "parameters": 3 * 5 * 9 + 5 + 180 * 10 + 10, "depth": 2, "width": 180, "accuracy": store.accuracy,
    }  # fmt: skip
    timm_net = TimmExtractor("test_vit", weights="random", layers="blocks.0")
    record = timm_net.provenance()["computed"]
    assert record["parameters"] == sum(p.numel() for p in timm_net.model.parameters())
    assert record["width"] == timm_net.model.num_features
    assert record["depth"] == 1 + 4 * 6 + 1  # patches; qkv, proj, fc1, fc2; head


def test_accuracy_is_that_of_the_largest_output(tmp_path: Path) -> None:
    net = Classifier(10)
    store = module_store(tmp_path, net)
    images = open_images("digits")
    rows = [images.ids.index(name) for name in store.sample_ids.ids]
    expected = predictions_of(net, rows)
    assert store.predicted is not None
    assert store.predicted.shape == (40, 1)
    assert np.array_equal(store.predicted[:].ravel(), expected)
    assert images.labels is not None
    assert store.accuracy == np.mean(expected == images.labels[rows])
    assert store.prediction_rule == "output k is class k of the 10 classes in their order"
    assert repsim.verify(store.path) == []


@pytest.mark.slow
def test_trained_networks_classify_the_digits(tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        store = repsim.extract("digits_vit.seed0", "digits", tmp_path / dtype, split="test", dtype=dtype, **COMMON)
        assert store.accuracy is not None
        assert 0.8 < store.accuracy <= 1
    shown = succeed("inspect", store.path).stdout
    assert "computed axes: parameters=" in shown
    assert f"accuracy={store.accuracy:.6g} (output k is class k of the 10 classes in their order)\n" in shown
    assert json.loads(succeed("inspect", store.path, "--json").stdout)["axes"] == store.axes


def test_what_is_stated_replaces_what_is_computed(tmp_path: Path) -> None:
    store = module_store(tmp_path, Classifier(10), axes={"width": 3, "accuracy": "high"})
    assert (store.axes["width"], store.axes["accuracy"], store.axes["depth"]) == (3, "high", 2)
    assert list(store.axes)[:2] == ["width", "accuracy"]
    assert store.computed_axes["width"] == 180


@pytest.mark.parametrize(
    ("net", "keywords"),
    [
        (Classifier(11), {}),
        (Classifier(10, wrap=True), {}),
        (nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU()), {"layers": "0"}),
        (Classifier(10), {"labels": [f"{k % 3}" for k in range(1797)]}),
    ],
)
def test_no_accuracy_of_networks_that_do_not_classify_the_labels(tmp_path: Path, net: Any, keywords: Any) -> None:
    store = module_store(tmp_path, net, **keywords)
    assert (store.predicted, store.accuracy, store.prediction_rule) == (None, None, "")
    assert set(store.axes) <= {"parameters", "depth", "width"}


def test_synsets_name_the_outputs_of_imagenet(tmp_path: Path) -> None:
    synsets = ImageNetInfo().label_names()
    chosen = [synsets[k] for k in (700, 3, 999)]
    labels = [chosen[k % 3] for k in range(1797)]
    net = Classifier(1000)
    store = module_store(tmp_path, net, labels=labels)
    images = open_images("digits")
    rows = [images.ids.index(name) for name in store.sample_ids.ids]
    output = predictions_of(net, rows)
    expected = [sorted(chosen).index(synsets[k]) if synsets[k] in chosen else -1 for k in output]
    assert store.predicted is not None
    assert store.predicted[:].ravel().tolist() == expected
    assert store.prediction_rule.startswith("outputs are the synsets")
    with torch.no_grad():
        net.head.bias[700] = 1e6
    store = module_store(tmp_path, net, labels=labels, overwrite=True)
    assert store.accuracy == np.mean([labels[row] == synsets[700] for row in rows])
    other = module_store(tmp_path / "other", net, labels=[*labels[:-1], "n99999999"])
    assert other.accuracy is None


def test_many_classes_are_not_rounded_to_half_precision(tmp_path: Path) -> None:
    labels = [k % 3000 for k in range(1797)]
    labels[0] = 2999
    assert module_store(tmp_path / "a", Classifier(3000), labels=labels, dtype="float16").accuracy is None
    assert module_store(tmp_path / "b", Classifier(3000), labels=labels).accuracy is not None


def test_predictions_are_no_layer_of_anything(tmp_path: Path) -> None:
    store = module_store(tmp_path, Classifier(10))
    assert store.layers == ("pre_logits",)
    assert store.provenance["readouts"] == ["mean"]
    with pytest.raises(LookupError):
        store["output"]
    result = compare([store], metrics=["cka"])
    assert result["layer_a"].values.tolist() == ["pre_logits"]
    assert not {"output", "prediction"} & set(to_frame(result)["layer_a"])
    with pytest.raises(ValueError, match="output@prediction is no layer"):
        repsim.write_store(tmp_path / "x.h5", {"output": np.ones((4, 2))}, model="x", readout="prediction")


def without_predictions(store: repsim.ActivationStore, path: Path, *, done: int | None = None) -> None:
    """Write a store as earlier versions did: without predictions and sizes; with ``done`` an interrupted one."""
    contents = store.contents
    old = Contents(
        **{
            **vars(contents),
            "arrays": tuple(spec for spec in contents.arrays if (spec.key.layer, spec.key.readout) != PREDICTION),
            "provenance": {key: value for key, value in contents.provenance.items() if key != "computed"},
        }
    )
    arrays = {LayerKey(store.model, "input", "pixels"): store.pixels, store["pre_logits"].key: store["pre_logits"]}
    rows = slice(done)
    with suppress(InterruptedError), StoreWriter(path, old) as writer:
        for key, values in arrays.items():
            assert values is not None
            writer.write(key, rows, values[rows])
        writer.mark_done(rows)
        if done is not None:
            raise InterruptedError


@pytest.mark.parametrize("done", [None, 32])
def test_stores_of_earlier_versions_are_read_and_resumed(tmp_path: Path, done: int | None) -> None:
    new = module_store(tmp_path / "new", Classifier(10))
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / new.path.name
    without_predictions(new, path, done=done)
    assert count_stored(path, new.contents) == (done or 40)
    again = module_store(tmp_path / "old", Classifier(10))
    assert (again.predicted, again.accuracy) == (None, None)
    assert again.axes == {}
    assert np.array_equal(again["pre_logits"][:], new["pre_logits"][:])


def test_an_interrupted_run_goes_on_with_its_predictions(tmp_path: Path) -> None:
    whole = module_store(tmp_path / "whole", Classifier(10))
    images = open_images("digits")
    samples = choose_samples(images, limit=40)
    job = Extraction(ModuleExtractor(Classifier(10), TRANSFORM, layers="pre_logits"), samples, tmp_path / "parts")
    (tmp_path / "parts").mkdir()

    def stop(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(stop)
    resumed = module_store(tmp_path / "parts", Classifier(10))
    assert resumed.predicted is not None
    assert whole.predicted is not None
    assert np.array_equal(resumed.predicted[:], whole.predicted[:])
    assert resumed.accuracy == whole.accuracy


def test_a_damaged_prediction_is_named(tmp_path: Path) -> None:
    store = module_store(tmp_path, Classifier(10))
    assert store.predicted is not None
    offset = store.predicted._extent.offset
    shutil.copy(store.path, copy := tmp_path / "copy.h5")
    data = bytearray(copy.read_bytes())
    data[offset] ^= 1
    copy.write_bytes(data)
    assert [str(damage.key) for damage in repsim.verify(copy)] == ["classifier output@prediction"]
    with repsim.open_store(copy) as damaged, pytest.raises(repsim.RepsimError, match="checksum"):
        _ = damaged.axes
