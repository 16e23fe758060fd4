"""Controls: the input, class labels, duplicate samples, and untrained networks that are extracted on request."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim import extract
from repsim.errors import InvalidInputError, OutputError, RepsimError
from repsim.stores.store import ActivationStore, open_store
from repsim.study import controls
from repsim.study.design import design
from repsim.study.gram_passes import kernels
from repsim.study.partial_cka import residual
from repsim.testing.examples import unrelated_layers, write_network
from tests.study.references import unit_kernel

N = 20


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def names(inputs: list[controls.Control]) -> list[str]:
    return [control.name for control in inputs]


# The input


def test_equal_pixels_are_one_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    pixels = rng.normal(size=(N, 3, 2, 2))
    stores = [
        stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, N, 6, 6, 6), pixels=values))
        for model, values in (("a", pixels), ("b", pixels), ("c", 2 * pixels + 1), ("d", None), ("e", 2 * pixels + 1))
    ]
    inputs = controls.inputs(design(stores))
    assert names(inputs)[:2] == ["pixels", "mean pixels"]
    assert {control.kind for control in inputs} == {"input"}
    assert {control.members for control in inputs} == {("a", "b", "c", "e")}  # d has no pixels
    centred = pixels - pixels.mean(0)
    for control, expected in zip(inputs, (centred.reshape(N, -1), centred.mean((2, 3))), strict=False):
        ratio = np.linalg.norm(control.features) / np.linalg.norm(expected)
        np.testing.assert_allclose(control.features, expected * ratio, atol=1e-12)


def test_other_pixels_are_an_input_of_their_own(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Pictures of another crop have kernels of their own, and those that add nothing are left out."""
    pixels, other = rng.normal(size=(2, 80, 3, 4, 4))
    almost = pixels + 0.01 * rng.normal(size=pixels.shape)
    stores = [
        stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, 80, 6), pixels=values))
        for model, values in (("a", pixels), ("b", other), ("c", almost))
    ]
    selected = names(controls.inputs(design(stores)))
    assert selected[:4] == ["pixels of a", "mean pixels of a", "pixels of b", "mean pixels of b"]
    assert not any(name.endswith("pixels of c") for name in selected)
    assert "RBF of the pixels of a, width 1" in selected or "RBF of the pixels of a, width 0.5" in selected


def test_the_mean_of_pixels_of_one_channel_is_over_all(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator
) -> None:
    pixels = rng.normal(size=(N, 8)).astype(np.float32)
    store = stack.enter_context(write_network(tmp_path, "a", unrelated_layers(rng, N, 6), pixels=pixels))
    inputs = controls.inputs(design([store]))
    expected = pixels.mean(1) - pixels.mean()
    np.testing.assert_allclose(
        inputs[1].features[:, 0] / inputs[1].features.std(), expected / expected.std(), atol=1e-5
    )


def test_statistics_of_pictures_are_an_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Contrast is no linear function of the pixels: a network that measures it has energy left without statistics."""
    contrast = rng.uniform(0.5, 2, size=(80, 1, 1, 1))
    checkerboard = np.resize([[1.0, -1], [-1, 1]], (32, 32))
    signs = rng.choice([-1, 1], size=(80, 3, 1, 1))
    pictures = signs * contrast * checkerboard + 0.1 * rng.normal(size=(80, 3, 32, 32))
    layer = np.concatenate([contrast[:, :, 0, 0], 0.01 * rng.normal(size=(80, 3))], 1)
    store = stack.enter_context(write_network(tmp_path, "a", [layer], pixels=pictures.astype(np.float64)))
    inputs = controls.inputs(design([store]))
    assert "statistics of the picture" in names(inputs)
    energies = []
    for selected in (inputs[:2], [control for control in inputs if "statistics" in control.name]):
        measured = kernels(design([store]), selected, "cpu", keep=True, step=lambda: None)
        energies.append(residual(measured.values(), measured.positions["input"].tolist())[0, 0])
    assert energies[0] > 0.5  # of linear kernels of the pixels
    assert energies[1] < 0.05


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pictures_without_a_mean_have_no_mean_input(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator, dtype: str
) -> None:
    """Mean pixels that differ only by rounding errors are no input."""
    pixels = rng.normal(size=(N, 3, 4, 4)).astype(dtype)
    pixels -= pixels.mean((2, 3), keepdims=True)
    layers = [x.astype(dtype) for x in unrelated_layers(rng, N, 6, 6, 6)]
    store = stack.enter_context(write_network(tmp_path, "a", layers, pixels=pixels))
    selected = names(controls.inputs(design([store])))
    assert selected[0] == "pixels"
    assert "mean pixels" not in selected


def test_no_pixels_no_input(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    study = design([stack.enter_context(write_network(tmp_path, "a", unrelated_layers(rng, N, 6, 6, 6)))])
    assert controls.inputs(study) == []
    assert controls.classes(study) is None


# The classes


def test_the_kernel_of_classes_is_1_within_a_class(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Debiased CKA of a layer with it, from an n x n matrix of ones and zeros."""
    labels, x = np.array([7, 3, 3, 9, 7, 7, 3, 9, 9, 3]), rng.normal(size=(10, 4))
    study = design([stack.enter_context(write_network(tmp_path, "a", [x], labels=labels))])
    labels_control = controls.classes(study)
    assert labels_control is not None
    same = labels[:, None] == labels
    np.testing.assert_array_equal(labels_control.features @ labels_control.features.T, same)
    measured = kernels(study, [labels_control], "cpu", keep=True, step=lambda: None)
    A = same - np.eye(10)  # U-centred
    A = A - A.sum(0) / 8 - A.sum(1)[:, None] / 8 + A.sum() / 72
    np.fill_diagonal(A, 0)
    expected = A.ravel() / np.linalg.norm(A) @ unit_kernel(x)
    assert measured.values()[0, measured.positions["labels"][0]] == pytest.approx(expected, abs=1e-12)


def test_one_class_is_no_control(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    store = stack.enter_context(write_network(tmp_path, "a", unrelated_layers(rng, N, 6, 6, 6), labels=np.ones(N, int)))
    assert controls.classes(design([store])) is None


# Untrained networks


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract two layers of a trained network of the zoo."""
    folder = tmp_path_factory.mktemp("digits")
    options: dict[str, Any] = {"data": "digits", "split": "test", "limit": 24, "layers": "blocks.0,blocks.5"}
    extract("digits_vit.seed1", out=folder, **options).close()
    return folder / "digits_vit.seed1.h5"


@pytest.fixture
def trained(digits: Path, stack: ExitStack) -> ActivationStore:
    return stack.enter_context(open_store(digits))


def make(store: ActivationStore, stack: ExitStack, seeds: int, folder: Path, **options: Any) -> list[ActivationStore]:
    return [stack.enter_context(made) for made in controls.extract_untrained(design([store]), seeds, folder, **options)]


def test_untrained_networks_see_the_same_samples(trained: ActivationStore, stack: ExitStack, tmp_path: Path) -> None:
    steps: list[int] = []
    made = make(trained, stack, 2, tmp_path, step=lambda: steps.append(0))
    assert [store.model for store in made] == ["digits_vit+random-seed0", "digits_vit+random-seed1"]
    assert len(steps) == 2
    for store in made:
        assert store.sample_ids == trained.sample_ids
        assert store.layers == trained.layers
        assert store.provenance["weights"] == "random"
        np.testing.assert_array_equal(store.pixels[:], trained.pixels[:])  # type: ignore[index]
    assert not np.allclose(made[0][made[0].layers[0]][:], made[1][made[1].layers[0]][:])
    study = design([trained, *made])
    assert [member.architecture for member in study.untrained] == ["digits_vit"] * 2
    assert names(controls.inputs(study))[:3] == ["pixels", "mean pixels", "statistics of the picture"]  # one input


def test_untrained_networks_are_kept(trained: ActivationStore, stack: ExitStack, tmp_path: Path) -> None:
    make(trained, stack, 1, tmp_path)
    path = tmp_path / "digits_vit+random-seed0.h5"
    before = path.stat()
    make(trained, stack, 2, tmp_path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"digits_vit+random-seed{seed}.h5" for seed in (0, 1)]


def test_kept_networks_of_other_samples_are_refused(trained: ActivationStore, stack: ExitStack, tmp_path: Path) -> None:
    extract("digits_vit", data="digits", split="test", limit=10, out=tmp_path, weights="random").close()
    with pytest.raises(OutputError, match=r"random-seed0.h5 was made with other settings: .*; delete it") as caught:
        make(trained, stack, 1, tmp_path)
    assert "overwrite" not in str(caught.value)  # which would replace the study, but not this store


def test_samples_in_another_order_are_found(trained: ActivationStore, stack: ExitStack, tmp_path: Path) -> None:
    """Untrained networks are extracted in the sample order of the store."""
    order = np.random.default_rng(0).permutation(len(trained))
    layers = {name: trained[name][:][order] for name in trained.layers}
    mixed = stack.enter_context(
        write_network(
            tmp_path, "digits_vit.seed1", {name.partition("@")[0]: x for name, x in layers.items()}, readout="mean",
            sample_ids=[trained.sample_ids.ids[k] for k in order], provenance=trained.provenance, source=trained.data,
        )
    )  # fmt: skip
    made = make(mixed, stack, 1, tmp_path / "mixed")[0]
    straight = make(trained, stack, 1, tmp_path / "straight")[0]
    assert made.sample_ids.ids == mixed.sample_ids.ids
    for name in trained.layers:
        np.testing.assert_allclose(made[name][:], straight[name][:][order], rtol=1e-3, atol=1e-4)


def test_other_pictures_are_refused(trained: ActivationStore, stack: ExitStack, tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"lacks 24 of the 24 samples of .*seed1\.h5, the first .* with data"):
        make(trained, stack, 1, tmp_path, data=str(pictures(3)))
    with pytest.raises(InvalidInputError, match=r"lacks 24 of the 24 samples"):
        make(trained, stack, 1, tmp_path, data="digits", split="train")
    with pytest.raises(RepsimError, match="nowhere"):
        make(trained, stack, 1, tmp_path, data="nowhere")
    assert not list(tmp_path.rglob("*.h5*"))


def test_pictures_with_the_same_names_but_other_contents(stack: ExitStack, tmp_path: Path, pictures: Any) -> None:
    folder = pictures(8)
    store = stack.enter_context(
        extract("digits_vit.seed0", data=str(folder), out=tmp_path / "acts", layers="blocks.0", workers=0)
    )
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InvalidInputError, match=r"have the same names as those of .*, but other contents"):
        make(store, stack, 1, tmp_path, data=str(folder))
    with pytest.raises(
        InvalidInputError, match=r"was made from photos, and no such folder.*; name the pictures with da"
    ):
        make(store, stack, 1, tmp_path)


def test_networks_without_a_name_cannot_be_made(stack: ExitStack, tmp_path: Path, rng: np.random.Generator) -> None:
    store = stack.enter_context(write_network(tmp_path, "mine", unrelated_layers(rng, N, 6, 6, 6)))
    with pytest.raises(InvalidInputError, match=r"mine\.h5 was not extracted from a model's name"):
        make(store, stack, 1, tmp_path)


def test_networks_with_untrained_ones_need_no_name(trained: ActivationStore, stack: ExitStack, tmp_path: Path) -> None:
    """A text encoder with untrained networks beside a model of timm: only those of the model are made."""
    n, rng = len(trained), np.random.default_rng(0)
    stores = [
        stack.enter_context(
            write_network(
                tmp_path, model, unrelated_layers(rng, n, 6, 6), sample_ids=list(trained.sample_ids), readout="mean"
            )
        )
        for model in ("text", "text+random-seed0")
    ]
    study = design([trained, *stores])
    assert controls.count_architectures(study) == 1
    made = [stack.enter_context(store) for store in controls.extract_untrained(study, 1, tmp_path / "made")]
    assert [store.model for store in made] == ["digits_vit+random-seed0"]
