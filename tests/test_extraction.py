"""Extraction from models and pictures to files: the stored values are those that the model computes."""

import dataclasses
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision import transforms

from repsim.errors import ImageError, InvalidInputError, OutputError, RepsimError, UnknownNameError
from repsim.extraction import Extraction, choose_samples, extract, run_together
from repsim.extractors import Stream, open_images
from repsim.extractors.picture_statistics import picture_statistics, statistic_names
from repsim.extractors.recalibration import assign, measure
from repsim.extractors.samples.opening import choose
from repsim.extractors.timm_models import TimmExtractor
from repsim.stores.store import open_store
from repsim.study.design import design, is_twin

Pictures = Callable[..., Path]


def by_hand(name: str, folder: Path, modules: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Compute activations with plain hooks, one picture after the other."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    kept: dict[str, list[torch.Tensor]] = {module: [] for module in modules}

    def keep(module: str) -> Callable[..., None]:
        def hook(_: object, __: object, out: torch.Tensor) -> None:
            kept[module].append(out.clone())

        return hook

    for module in modules:
        model.get_submodule(module).register_forward_hook(keep(module))
    with torch.inference_mode():
        for path in sorted(folder.iterdir()):
            model(transform(Image.open(path).convert("RGB"))[None])
    return {module: torch.cat(values) for module, values in kept.items()}


@pytest.mark.slow
def test_what_is_stored_is_what_the_model_computes(tmp_path: Path, pictures: Pictures) -> None:
    """A ResNet and a ViT, in batches that do not divide the number of pictures, and with two worker processes."""
    folder = pictures(5)
    blocks = [f"layer{stage}.0" for stage in range(1, 5)]
    store = extract("test_resnet", folder, tmp_path / "acts", weights="random", seed=3, batch_size=2, workers=2)
    wanted = by_hand("test_resnet", folder, blocks, seed=3)
    for module in blocks:
        np.testing.assert_allclose(store[module][:], wanted[module].mean((2, 3)), atol=1e-5, err_msg=module)
    store = extract("test_vit", folder, tmp_path / "acts", weights="random", readout="mean,cls,max", batch_size=3)
    modules = [f"blocks.{i}" for i in range(len(store.layers)) if f"blocks.{i}@cls" in store.layers]
    assert modules
    for module, tokens in by_hand("test_vit", folder, modules).items():
        np.testing.assert_allclose(store[f"{module}@mean"][:], tokens[:, 1:].mean(1), atol=1e-5)
        np.testing.assert_allclose(store[f"{module}@max"][:], tokens[:, 1:].amax(1), atol=1e-5)
        np.testing.assert_allclose(store[f"{module}@cls"][:], tokens[:, 0], atol=1e-5)


def test_readouts_keep_their_shape(tmp_path: Path) -> None:
    store = extract(
        "digits_resnet", "digits", tmp_path, weights="random", readout="flatten,grid:2", layers="layer1.0", limit=5
    )
    maps = store["layer1.0@flatten"][:]
    channels = maps.shape[1]
    assert maps.shape == (5, channels, 8, 8)
    grid = maps.reshape(5, channels, 2, 4, 2, 4).mean((3, 5))
    np.testing.assert_allclose(store["layer1.0@grid:2"][:], grid, atol=1e-5)


def test_everything_that_determines_the_values_is_recorded(tmp_path: Path, pictures: Pictures) -> None:
    folder = pictures(names=["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    store = extract("test_resnet", folder, tmp_path / "acts", weights="random", seed=5, batch_size=3)
    assert store.path == tmp_path / "acts" / "test_resnet+random-seed5.h5"
    assert store.model == "test_resnet+random-seed5"
    assert list(store.sample_ids) == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert store.labels is not None
    assert (store.labels.tolist(), store.classes) == ([0, 0, 1, 1], ("cat", "dog"))
    record = store.provenance
    assert (record["weights"], record["seed"], record["architecture"]) == ("random", 5, "test_resnet")
    assert (record["data"], record["samples"], record["readouts"]) == ("photos", 4, ["mean"])
    assert (record["batch_size"], record["amp"], record["dtype"]) == (3, False, "float32")
    assert (record["timm_version"], record["torch_version"]) == (timm.__version__, torch.__version__)
    assert record["preprocessing"]["interpolation"]
    assert record["data_fingerprint"] == store.sample_ids.content
    assert store.facts("layer1.0")["type"] == "BasicBlock"
    assert store.facts("layer1.0")["axes"] == "NCHW"
    other = extract("test_resnet", folder, tmp_path / "acts", weights="random", seed=6)
    assert other.provenance["weights_sha256"] != record["weights_sha256"]
    assert other.sample_ids.difference(store.sample_ids) is None


def test_a_limit_is_spread_over_the_data_and_the_same_for_every_model(tmp_path: Path) -> None:
    first = extract("digits_resnet", "digits", tmp_path, weights="random", layers="layer1.0", limit=10)
    second = extract("digits_vit", "digits", tmp_path, weights="random", layers="blocks.0", limit=10)
    assert first.sample_ids.ids == second.sample_ids.ids
    assert list(first.sample_ids)[:3] == ["digits/0000", "digits/0179", "digits/0359"]


def test_float16(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": "random", "layers": "layer1.*", "limit": 6}
    wide = extract("digits_resnet", "digits", tmp_path / "wide", **options)
    narrow = extract("digits_resnet", "digits", tmp_path / "narrow", dtype="float16", **options)
    assert narrow["layer1.0"].dtype == np.float16
    np.testing.assert_array_equal(narrow["layer1.0"][:], wide["layer1.0"][:].astype(np.float16))


def test_progress_counts_pictures(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    extract(
        "digits_vit",
        "digits",
        tmp_path,
        weights="random",
        limit=10,
        batch_size=4,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_an_unreadable_picture_stops_with_its_name(tmp_path: Path, pictures: Pictures) -> None:
    """Samples before it are kept for the next run; without any, no file is left."""
    folder = pictures(6)
    truncate(folder / "photo04.png")
    with pytest.raises(ImageError, match=r"photo04\.png.*skip_bad=True") as caught:
        extract("test_resnet", folder, tmp_path / "acts", weights="random", batch_size=2)
    (partial,) = (tmp_path / "acts").iterdir()
    assert caught.value.__notes__ == [
        f"4 of 6 samples are kept in {partial}; the same call on the same pictures goes on from there"
    ]
    truncate(folder / "photo00.png")
    with pytest.raises(ImageError, match=r"photo00\.png"):
        extract("test_resnet", folder, tmp_path / "none", weights="random", batch_size=2)
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.slow
def test_skip_bad_leaves_it_out_and_lists_it(tmp_path: Path, pictures: Pictures) -> None:
    """The values of the other pictures do not change: no picture replaces another."""
    folder = pictures(6)
    complete = extract("test_resnet", folder, tmp_path / "whole", weights="random", layers="layer1.0")
    truncate(folder / "photo02.png")
    store = extract("test_resnet", folder, tmp_path / "acts", weights="random", layers="layer1.0", skip_bad=True)
    assert list(store.sample_ids) == [f"photo{i:02d}.png" for i in (0, 1, 3, 4, 5)]
    assert list(store.provenance["skipped"]) == ["photo02.png"]
    np.testing.assert_allclose(store["layer1.0"][:], complete["layer1.0"][[0, 1, 3, 4, 5]], atol=1e-6)


def test_nothing_readable_at_all(tmp_path: Path, pictures: Pictures) -> None:
    folder = pictures(2)
    for path in folder.iterdir():
        truncate(path)
    with pytest.raises(ImageError, match="none of the 2 pictures"):
        extract("test_resnet", folder, tmp_path / "acts", weights="random", skip_bad=True)


def test_a_nan_activation_names_layer_and_sample(tmp_path: Path) -> None:
    """A network with one broken weight, as a diverged training run leaves it."""
    torch.manual_seed(0)
    state = timm.create_model("digits_resnet").state_dict()
    state["layer3.1.conv2.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(
        InvalidInputError,
        match=r"diverged layer3\.1@mean: \d+ values are NaN or infinite, the first in sample digits/0000",
    ):
        extract("digits_resnet", "digits", tmp_path / "acts", weights=str(tmp_path / "diverged.pth"), limit=8)
    assert list((tmp_path / "acts").iterdir()) == []


class StoppedError(Exception):
    """Simulates the end of the program in the middle of an extraction."""


def stop_after(samples: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done >= samples:
            raise StoppedError

    return progress


@pytest.mark.slow
def test_the_same_call_resumes_an_interrupted_extraction(tmp_path: Path, pictures: Pictures) -> None:
    """The values are equal to the bit, and finished pictures are not decoded again."""
    options: dict[str, Any] = {"weights": "random", "readout": "mean,gram:4", "batch_size": 4, "recalibrate": True}
    folder = pictures(18)
    uninterrupted = extract("test_resnet", folder, tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        extract("test_resnet", folder, tmp_path / "acts", progress=stop_after(8), **options)
    (partial,) = (tmp_path / "acts").iterdir()
    count = int(whole_marks(partial).sum())
    assert 8 <= count < 18
    seen: list[tuple[int, int]] = []
    store = extract("test_resnet", folder, tmp_path / "acts", progress=lambda *step: seen.append(step), **options)
    assert seen[0] == (count, 18)
    assert seen[-1] == (18, 18)
    for name in uninterrupted.layers:
        np.testing.assert_array_equal(store[name][:], uninterrupted[name][:])
    np.testing.assert_array_equal(store.pixels, uninterrupted.pixels)
    for change, difference in ({"readout": "mean"}, "readouts"), ({"recalibrate": False}, "batch_norm"):
        with pytest.raises(OutputError, match=f"{difference}: .*before.*now"):
            extract("test_resnet", folder, tmp_path / "acts", **{**options, **change})


def whole_marks(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        marks: np.ndarray = file["checks/written"][:]
    return marks


class Counted(type(open_images("digits"))):  # type: ignore[misc]
    """Digits that count how often each is decoded."""

    def load(self, index: int) -> Image.Image:
        self.decoded[index] += 1
        return super().load(index)  # type: ignore[no-any-return]


def counted() -> Any:
    images: Any = open_images("digits")
    images.__class__ = Counted
    images.decoded = Counter()
    return images


@pytest.mark.slow
def test_several_models_share_the_decoded_pictures(tmp_path: Path) -> None:
    """Each store equals the one of a separate extraction, also if one of them is partly complete."""
    names = ["digits_resnet.seed0", "digits_vit.seed0", "digits_vit.seed1"]

    def jobs(folder: Path, images: Any) -> list[Extraction]:
        samples = choose_samples(images, limit=20)
        how = Stream(batch_size=6)
        return [Extraction(TimmExtractor(name, readout="mean,max"), samples, folder, how) for name in names]

    alone = [job.run() for job in jobs(tmp_path / "alone", open_images("digits"))]
    images = counted()
    together = run_together(jobs(tmp_path / "together", images))
    assert set(images.decoded.values()) == {1}
    assert len(images.decoded) == 20
    with pytest.raises(StoppedError):
        jobs(tmp_path / "part", open_images("digits"))[1].run(stop_after(12))
    images = counted()
    parted = run_together(jobs(tmp_path / "part", images))
    assert set(images.decoded.values()) == {1}
    for one, other, third in zip(alone, together, parted, strict=True):
        assert one.model == other.model
        for name in one.layers:
            np.testing.assert_array_equal(other[name][:], one[name][:])
            np.testing.assert_array_equal(third[name][:], one[name][:])
        np.testing.assert_array_equal(other.pixels, one.pixels)
        np.testing.assert_array_equal(third.pixels, one.pixels)


def test_blocks_are_a_random_partition_and_the_same_for_every_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"readout": "flatten,gram:8", "limit": 30, "weights": "random"}
    resnet = extract("digits_resnet", "digits", tmp_path, layers="layer1.0", **options)
    vit = extract("digits_vit", "digits", tmp_path, layers="blocks.0", **options)
    assert resnet.order is not None
    assert vit.order is not None
    assert resnet.order.tolist() == vit.order.tolist()
    assert sorted(resnet.order) == list(range(30))
    assert resnet.order.tolist() != list(range(30))
    grams, maps = resnet["layer1.0@gram:8"][:], resnet["layer1.0@flatten"][:].reshape(30, -1).astype(np.float64)
    assert grams.shape == (3, 8, 8)
    for k, gram in enumerate(grams):
        x = maps[resnet.order[8 * k : 8 * k + 8]]
        x -= x.mean(0)
        np.testing.assert_allclose(gram, x @ x.T / x.shape[1], atol=1e-6 * np.abs(gram).max())


def block_means(x: np.ndarray, size: int) -> np.ndarray:
    """Return the means of (n, 3, H, W) over size x size blocks."""
    n, _, height, width = x.shape
    means: np.ndarray = x.reshape(n, 3, height // size, size, width // size, size).mean((3, 5))
    return means.reshape(n, -1)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["mean", "mean,gram:4"])
def test_pixels_are_what_went_into_the_model(tmp_path: Path, pictures: Pictures, readout: str) -> None:
    """The pixels are those after preprocessing, in the order of the samples, and are not among the layers."""
    folder = pictures(10)
    options: dict[str, Any] = {"weights": "random", "layers": "layer1.0", "batch_size": 4}
    store = extract("test_resnet", folder, tmp_path / "acts", readout=readout, **options)
    transform: Any = create_transform(**resolve_model_data_config(timm.create_model("test_resnet")), is_training=False)
    x = np.stack([transform(Image.open(path).convert("RGB")).double().numpy() for path in sorted(folder.iterdir())])
    assert store.pixels is not None
    assert store.pixels.shape == (10, 192)
    assert store.pixels.dtype == np.float32
    np.testing.assert_allclose(store.pixels, block_means(x, x.shape[-1] // 8), atol=1e-5)
    assert set(store.layers) <= {"layer1.0", "layer1.0@mean", "layer1.0@gram:4"}
    assert store.provenance["readouts"] == sorted(readout.split(","))
    narrow = extract("test_resnet", folder, tmp_path / "narrow", dtype="float16", **options)
    np.testing.assert_array_equal(narrow.pixels, np.asarray(store.pixels).astype(np.float16))
    assert store.statistics is not None
    expected = picture_statistics(torch.from_numpy(x).float())  # tests/extractors compares it with a reference
    np.testing.assert_allclose(store.statistics, expected, atol=1e-4)
    assert store.statistic_names == statistic_names(x.shape[1:])


@pytest.mark.parametrize(("size", "shape"), [((4, 6), (4, 6)), ((16, 6), (8, 6)), ((12, 20), (8, 8))])
def test_pixels_of_small_and_of_odd_inputs(tmp_path: Path, size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Small inputs are not enlarged, and a model that overwrites its input does not change the pixels."""

    class Overwrites(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.zero_())  # type: ignore[no-any-return, no-untyped-call]

    torch.manual_seed(0)
    transform = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    model = Overwrites(OrderedDict(input=torch.nn.Conv2d(3, 2, 1)))  # a layer of the same name is a different array
    store = extract(model, "digits", tmp_path, transform=transform, name="mine", layers="input", limit=5)
    assert store.pixels is not None
    assert store.layers == ("input",)
    assert store.facts("input")["type"] == "Conv2d"
    assert store["input"].shape == (5, 2)
    x = torch.stack([transform(open_images("digits").load(row)) for row in choose(1797, 5)])
    # means of equal float32 numbers, whose sums are rounded in an order that the processor and its threads decide
    np.testing.assert_allclose(store["input"][:], np.broadcast_to(model.input.bias.detach(), (5, 2)), rtol=1e-5)  # type: ignore[operator, union-attr]
    assert store.pixels.shape == (5, 3 * math.prod(shape))
    cuts = [[slice(i * s // k, -(-(i + 1) * s // k)) for i in range(k)] for s, k in zip(size, shape, strict=True)]
    wanted = np.stack([x[:, :, a, b].mean((2, 3)) for a in cuts[0] for b in cuts[1]], -1).reshape(5, -1)
    np.testing.assert_allclose(store.pixels, wanted, atol=1e-6)


@pytest.mark.slow
def test_untrained_batch_norm_is_recalibrated(tmp_path: Path) -> None:
    """Recalibration is optional and recorded; the layers are those of a network with these statistics."""
    options: dict[str, Any] = {"weights": "random", "limit": 50, "layers": "layer4.1,pre_logits"}
    plain = extract("digits_resnet", "digits", tmp_path / "plain", **options)
    store = extract("digits_resnet", "digits", tmp_path / "acts", recalibrate=True, **options)
    assert plain.provenance["batch_norm"] == "eval mode, not recalibrated"
    assert store.provenance["batch_norm"] == "recalibrated on 50 samples"
    assert store.provenance["weights_sha256"] == plain.provenance["weights_sha256"]
    extractor = TimmExtractor("digits_resnet", weights="random", layers=options["layers"])
    images = open_images("digits")
    rows = choose(len(images), 50)
    assign(extractor.model, measure(extractor.model, extractor.preparation, images, rows, Stream()))
    batches = list(extractor.stream(images, rows, Stream(batch_size=32)))
    for name in store.layers:
        wanted = torch.cat([batch.values[name, "mean"] for batch in batches])
        np.testing.assert_array_equal(store[name][:], wanted)
        assert np.abs(store[name][:] - plain[name][:]).max() > 0.1
    np.testing.assert_array_equal(store.pixels, plain.pixels)
    vit = extract("digits_vit", "digits", tmp_path, recalibrate=True, weights="random", limit=4, layers="blocks.0")
    assert vit.provenance["batch_norm"] == "none in this network"


def test_only_untrained_networks_are_recalibrated(tmp_path: Path) -> None:
    for weights in ("pretrained", "no such file.pth"):  # refused before they are looked for
        with pytest.raises(InvalidInputError, match="is for untrained networks; .*; use it with weights='random'"):
            extract("resnet18", "digits", tmp_path, weights=weights, recalibrate=True)
    extractor = TimmExtractor("digits_resnet.seed0", layers="layer1.0")
    with pytest.raises(InvalidInputError, match="is for untrained networks"):
        Extraction(extractor, choose_samples(open_images("digits"), limit=7), tmp_path, recalibrate=True)
    with pytest.raises(InvalidInputError, match="at least 2 samples"):
        extract("digits_resnet", "digits", tmp_path, weights="random", limit=1, recalibrate=True)
    assert list(tmp_path.iterdir()) == []


SMALL = transforms.Compose([transforms.Resize((12, 12)), transforms.ToTensor()])


SMALL = transforms.Compose([transforms.Resize((12, 12)), transforms.ToTensor()])


def net_of_ones_own(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    )


def test_a_study_knows_an_untrained_torch_module_by_its_provenance(tmp_path: Path) -> None:
    models = [net_of_ones_own(seed) for seed in range(4)]
    models[0][1].running_mean.add_(1)  # type: ignore[operator]
    trained, *untrained = extract(
        models,
        "digits",
        tmp_path,
        transform=SMALL,
        limit=20,
        layers="0,1",
        name=["mine", "new0", "new1", "new2"],
        provenance=[{"architecture": "mynet"}, *[{"weights": "random", "architecture": "mynet"}] * 3],
    )
    study = design([trained, *untrained])
    assert [member.name for member in study.untrained] == ["new0", "new1", "new2"]
    assert all(is_twin(member, study.trained[0]) for member in study.untrained)
    assert {member.family for member in study.members} == {"mynet"}
    assert trained.provenance["batch_norm"] == "eval mode"
    assert untrained[0].provenance["batch_norm"] == "eval mode, not recalibrated"


def test_an_untrained_torch_module_is_recalibrated_and_keeps_its_own_statistics(tmp_path: Path) -> None:
    model = net_of_ones_own(0)
    options: dict[str, Any] = {"transform": SMALL, "limit": 40, "layers": "1", "name": "mine"}
    store = extract(model, "digits", tmp_path, recalibrate=True, provenance={"weights": "random"}, **options)
    assert store.provenance["batch_norm"] == "recalibrated on 40 samples"
    # channel means over the pictures are 0 after batch norm with the statistics of these pictures
    np.testing.assert_allclose(store["1"][:].mean(0), 0, atol=1e-5)
    assert not model[1].running_mean.any()  # type: ignore[operator]
    again = extract(model, "digits", tmp_path, recalibrate=True, provenance={"weights": "random"}, **options)
    assert again.provenance == store.provenance


def test_provenance_of_the_user_cannot_contradict_the_extraction(tmp_path: Path) -> None:
    options: dict[str, Any] = {"transform": SMALL, "limit": 4, "layers": "1"}
    with pytest.raises(InvalidInputError, match="itself records data as 'digits', which contradicts 'photos'"):
        extract(net_of_ones_own(0), "digits", tmp_path, provenance={"data": "photos"}, **options)
    with pytest.raises(InvalidInputError, match="records weights as 'pretrained', which contradicts 'random'"):
        extract("digits_vit.seed0", "digits", tmp_path, provenance={"weights": "random"}, limit=4)
    with pytest.raises(InvalidInputError, match="use it with provenance={'weights': 'random'}"):
        extract(net_of_ones_own(0), "digits", tmp_path, recalibrate=True, **options)
    with pytest.raises(InvalidInputError, match="2 provenances for 1 model"):
        extract([net_of_ones_own(0)], "digits", tmp_path, provenance=[{}, {}], **options)
    with pytest.raises(InvalidInputError, match="expected a dictionary, got str"):
        extract(net_of_ones_own(0), "digits", tmp_path, provenance="random", **options)  # type: ignore[call-overload]
    with pytest.raises(InvalidInputError, match="provenance"):
        extract(net_of_ones_own(0), "digits", tmp_path, provenance={"loss": float("nan")}, **options)
    store = extract(
        "digits_vit.seed0", "digits", tmp_path, provenance={"run": 7, "architecture": "digits_vit"}, limit=4
    )
    assert store.provenance["run"] == 7


def test_batches_that_cut_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="gram:8 needs batches of whole blocks: .* multiple of 8, not 12"):
        extract("digits_vit.seed0", "digits", tmp_path, readout="gram:8", batch_size=12)
    with pytest.raises(InvalidInputError, match="at least 40 samples, got 30"):
        extract("digits_vit.seed0", "digits", tmp_path, readout="gram:40", limit=30)


def test_a_model_of_ones_own(tmp_path: Path, pictures: Pictures) -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(
        OrderedDict(conv=torch.nn.Conv2d(3, 5, 3), act=torch.nn.ReLU(inplace=True), pool=torch.nn.AdaptiveAvgPool2d(1))
    )
    transform = create_transform((3, 32, 40), is_training=False)
    folder = pictures(5)
    options: dict[str, Any] = {"transform": transform, "layers": "conv,pool", "batch_size": 2}
    store = extract(model, folder, tmp_path / "acts", name="mine", readout="flatten", **options)
    assert store.path == tmp_path / "acts" / "mine.h5"
    x = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])
    with torch.no_grad():
        np.testing.assert_allclose(store["conv"][:], model.conv(x), atol=1e-5)
        np.testing.assert_allclose(store["pool"][:].squeeze(), model(x).squeeze(), atol=1e-5)
    with pytest.raises(InvalidInputError, match="transform="):
        extract(model, folder, tmp_path / "acts")
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1
    with pytest.raises(OutputError, match="weights_sha256: .* before, .* now"):
        extract(model, folder, tmp_path / "acts", name="mine", readout="flatten", **options)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": "random", "layers": "layer1.0", "limit": 4}
    path = extract("digits_resnet", "digits", tmp_path, **options).path
    before = path.stat().st_mtime_ns
    assert len(extract("digits_resnet", "digits", tmp_path, **options)) == 4
    assert path.stat().st_mtime_ns == before
    with pytest.raises(
        OutputError, match=r"made with other settings: samples: 2 of 4 only before.*data: .*overwrite=True"
    ):
        extract("digits_resnet", "digits", tmp_path, **{**options, "limit": None}, split="test")
    with pytest.raises(RepsimError):
        extract("digits_resnet", "digits", tmp_path, weights="random", layers="layer9", limit=4, overwrite=True)
    assert len(open_store(tmp_path / "digits_resnet+random-seed0.h5")) == 4
    extract("digits_resnet", "digits", tmp_path, overwrite=True, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "layer9"}, UnknownNameError, "unknown layer 'layer9'; did you mean layer"),
        ({"readout": "cls"}, InvalidInputError, "no class token"),
        ({"readout": "median"}, UnknownNameError, "unknown readout"),
        ({"split": "dev"}, UnknownNameError, "unknown split"),
        ({"device": "cuda:99"}, InvalidInputError, "cannot be used; this machine has: "),
    ],
)
def test_errors_of_the_user_are_raised_before_the_first_batch(
    tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    def never(*_: int) -> None:
        raise AssertionError("a batch was computed")

    with pytest.raises(error, match=message):
        extract("digits_resnet", "digits", tmp_path / "acts", weights="random", progress=never, **options)
    assert not (tmp_path / "acts").exists()


def test_a_disk_without_room(tmp_path: Path) -> None:
    job = plan(tmp_path)
    job.__dict__["arrays"] = [dataclasses.replace(job.arrays[0], shape=(10**13,))]
    with pytest.raises(OutputError, match="needs .* TB and the disk has"):
        job.run()
    assert list(tmp_path.iterdir()) == []


def test_the_plan_has_the_size_of_the_store(tmp_path: Path) -> None:
    job = plan(tmp_path / "not" / "there")
    assert job.bytes_per_sample == 4 * (math.prod(job.arrays[0].shape) + 3 * 8 * 8 + 114 + 1)
    assert job.bytes == 7 * job.bytes_per_sample
    assert job.bytes_free > 0
    assert not job.folder.exists()
    store = job.run()
    assert store.pixels is not None
    assert store.statistics is not None
    assert store.predicted is not None
    arrays = (store["layer1.0"], store.pixels, store.statistics, store.predicted)
    assert sum(array[:].nbytes for array in arrays) == job.bytes


def plan(folder: Path) -> Extraction:
    extractor = TimmExtractor("digits_resnet", weights="random", layers="layer1.0", readout="flatten")
    return Extraction(extractor, choose_samples(open_images("digits"), limit=7), folder, Stream(batch_size=4))
