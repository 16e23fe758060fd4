"""Near duplicates: frames, copies and crops are found by name, and independent samples are not."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from repsim.stores.store import ActivationStore
from repsim.study import duplicates as module
from repsim.study.design import design
from repsim.study.duplicates import NearDuplicates, near_duplicates, pair_values
from repsim.testing.examples import Array, append_features, unrelated_layers, write_network


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def networks(
    stack: ExitStack, folder: Path, layers: list[list[Array]], pixels: Array | None = None, **options: object
) -> list[ActivationStore]:
    folder.mkdir(exist_ok=True)
    ids = [f"photo{k}" for k in range(len(layers[0][0]))]
    return [
        stack.enter_context(write_network(folder, f"net{k}", of, sample_ids=ids, pixels=pixels, **options))
        for k, of in enumerate(layers)
    ]


def frames(rng: np.random.Generator, groups: Array, features: int, correlation: float = 0.9) -> Array:
    scene = rng.normal(size=(groups.max() + 1, features))[groups]
    noise = rng.normal(size=(len(groups), features))
    return np.asarray(np.sqrt(correlation) * scene + np.sqrt(1 - correlation) * noise)


def within(groups: Array) -> set[tuple[int, int]]:
    return {(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups)) if groups[a] == groups[b]}


@pytest.mark.parametrize(("scenes", "size", "related"), [(40, 10, False), (40, 10, True), (50, 4, True)])
def test_frames_of_scenes_are_found(tmp_path: Path, stack: ExitStack, scenes: int, size: int, related: bool) -> None:
    """Case G of issue 17: the pixels tell nothing, and the networks may share nothing but the scenes."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(scenes), size))
    shared = frames(rng, groups, 20) * related
    layers = [[np.hstack([shared, frames(rng, groups, 20)]) for _ in range(3)] for _ in range(2)]
    pixels = rng.normal(size=(len(groups), 3, 2, 2))
    duplicates = near_duplicates(design(networks(stack, tmp_path, layers, pixels)))
    expected = within(groups)
    assert len(set(duplicates.pairs) & expected) > 0.9 * len(expected)
    assert set(duplicates.pairs) <= expected
    assert duplicates.groups.count < 1.3 * scenes  # a few frames are missed
    assert not duplicates.covered
    assert duplicates.caution is not None
    assert "photo" in duplicates.caution


def test_declared_groups_cover_them(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(30), 5)
    stores = networks(stack, tmp_path, [[frames(rng, groups, 20)]])
    for declared, covered in ((groups, True), (groups // 2, True), (np.arange(150) // 3, False)):
        duplicates = near_duplicates(design(stores, groups=declared))
        assert duplicates.pairs
        assert duplicates.covered is covered
        assert (duplicates.caution is None) is covered


def test_pairs_and_crops_are_found_by_name(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Pictures 7 and 3 are almost the same; picture 9 is a crop of 1, with other pixels, and less alike."""
    n = 200
    shared = rng.normal(size=(n, 10))
    layers = append_features(unrelated_layers(rng, n, 20, 20, 20), shared)
    more = append_features(unrelated_layers(rng, n, 20, 20, 20), shared)
    for x in (*layers, *more):
        x[7] = x[3] + 0.02 * rng.normal(size=x.shape[1])
        x[9] = np.sqrt(0.97) * x[1] + np.sqrt(0.03) * rng.normal(size=x.shape[1])
    duplicates = near_duplicates(design(networks(stack, tmp_path, [layers, more], rng.normal(size=(n, 3, 4, 4)))))
    assert duplicates.names == (("photo1", "photo9"), ("photo3", "photo7"))
    assert duplicates.caution is not None
    assert "4 samples are nearly the same as others, in 2 groups (photo1 = photo9, photo3 = photo7)" in (
        duplicates.caution
    )


def test_copies_are_found_in_pixels_alone(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    n = 100
    pixels = rng.normal(size=(n, 3, 4, 4))
    pixels[5] = pixels[2] + 0.01 * rng.normal(size=(3, 4, 4))
    duplicates = near_duplicates(design(networks(stack, tmp_path, [unrelated_layers(rng, n, 9, 9)], pixels)))
    assert duplicates.names == (("photo2", "photo5"),)


def test_one_network_of_three_is_not_enough(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    layers = [unrelated_layers(rng, 100, 9, 9) for _ in range(3)]
    for x in layers[0]:
        x[5] = x[2] + 0.01
    assert not near_duplicates(design(networks(stack, tmp_path, layers))).pairs


def test_clusters_in_late_layers_are_no_duplicates(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    """Classes of ten pictures, which trained networks separate at their end."""
    classes = np.repeat(np.arange(20), 10)
    layers = [[rng.normal(size=(200, 12)), rng.normal(size=(200, 12)), frames(rng, classes, 12)] for _ in range(2)]
    assert not near_duplicates(design(networks(stack, tmp_path, layers))).pairs


def collapsed(rng: np.random.Generator, positions: Array, features: int = 20) -> Array:
    """Return a layer in which every class is nearly one point."""
    return np.hstack([8 * np.eye(positions.max() + 1)[positions], 0.1 * rng.normal(size=(len(positions), features))])


@pytest.mark.parametrize(("classes", "misclassified"), [(10, 0.0), (10, 0.2), (60, 0.0), (150, 0.0)])
def test_collapsed_classes_are_no_duplicates(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator, classes: int, misclassified: float
) -> None:
    """Trained networks bring a class to one point; a single layer is stored, so no earlier one says otherwise."""
    labels = rng.integers(0, classes, 300)
    positions = np.where(rng.random(300) < misclassified, rng.integers(0, classes, 300), labels)
    stores = networks(stack, tmp_path, [[collapsed(rng, positions)] for _ in range(2)], labels=labels)
    assert not near_duplicates(design(stores)).pairs


@pytest.mark.parametrize("tight", [False, True])
def test_duplicates_within_a_class_are_found(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator, tight: bool
) -> None:
    labels = np.arange(300) % 10
    layers = [[collapsed(rng, labels) if tight else rng.normal(size=(300, 20))] for _ in range(2)]
    for (x,) in layers:
        x[13] = x[3] + 0.002 * rng.normal(size=x.shape[1])  # of one class
        if not tight:
            x[41] = x[70] + 0.02 * rng.normal(size=20)  # of two classes
    duplicates = near_duplicates(design(networks(stack, tmp_path, layers, labels=labels)))
    assert duplicates.names == (("photo3", "photo13"), *([] if tight else [("photo41", "photo70")]))


def test_duplicates_in_pixels_are_found_in_small_tight_classes(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator
) -> None:
    """Five pictures a class are too few for the layers to tell; their pixels are not collapsed."""
    labels = np.arange(300) % 60
    pixels = rng.normal(size=(300, 3, 4, 4))
    pixels[63] = pixels[3] + 0.01 * rng.normal(size=(3, 4, 4))
    stores = networks(stack, tmp_path, [[collapsed(rng, labels)] for _ in range(2)], pixels, labels=labels)
    assert near_duplicates(design(stores)).names == (("photo3", "photo63"),)


@pytest.mark.parametrize("kept", [True, False])
def test_equal_samples_are_named(tmp_path: Path, stack: ExitStack, rng: np.random.Generator, kept: bool) -> None:
    x = rng.normal(size=(20, 2, 3))
    x[[4, 9, 7]] = x[[2, 2, 6]]
    layers: list[Array] = [*([] if kept else [x.reshape(20, -1)]), *unrelated_layers(rng, 20, 6, 6, 6)]
    duplicates = near_duplicates(design(networks(stack, tmp_path, [layers], x if kept else None)))
    assert {("photo2", "photo4"), ("photo6", "photo7"), ("photo2", "photo9")} <= set(duplicates.names)
    assert set(duplicates.pairs) <= {(2, 4), (2, 9), (4, 9), (6, 7)}
    assert duplicates.exact == 3
    assert duplicates.groups.sizes.max() == 3


def test_few_samples_and_constant_layers(tmp_path: Path, stack: ExitStack, rng: np.random.Generator) -> None:
    small = near_duplicates(design(networks(stack, tmp_path / "small", [[rng.normal(size=(7, 3))]])))
    assert (small.pairs, small.caution, small.covered) == ((), None, False)
    constant = near_duplicates(design(networks(stack, tmp_path / "constant", [[np.ones((30, 3)), np.eye(30)]])))
    assert isinstance(constant, NearDuplicates)
    assert constant.exact == 29


@pytest.mark.parametrize("tails", ["gaussian", "t3"])
@pytest.mark.parametrize(("n", "features"), [(120, 6), (120, 40), (400, 20)])
def test_independent_samples_raise_no_alarm(
    tmp_path: Path, stack: ExitStack, tails: str, n: int, features: int
) -> None:
    """The nominal rate is 1 in 1,000; 2 of 8 would show a rate far above it."""
    alarms = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def draw(width: int) -> Array:
            scale = np.sqrt(rng.chisquare(3, (n, 1)) / 3) if tails == "t3" else 1  # noqa: B023
            return np.asarray(rng.normal(size=(n, width)) / scale)  # noqa: B023

        shared = draw(features)
        layers = [[np.hstack([shared, 0.7 * draw(features)]) for _ in range(2)] for _ in range(2)]
        alarms += bool(near_duplicates(design(networks(stack, tmp_path / str(seed), layers, draw(12)))).pairs)
    assert alarms < 2


def test_equal_texts_are_found_though_their_layers_differ_by_rounding(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator
) -> None:
    tokens = [[k, k + 1, k + 2] for k in range(60)]
    tokens[7], tokens[30] = tokens[3], [32, 31, 30]  # the second is another order of the same tokens
    x = rng.normal(size=(60, 8))
    x[7] = x[3] + 1e-7
    store = stack.enter_context(write_network(tmp_path, "reader", [x], controls={"tokens": tokens}))
    duplicates = near_duplicates(design([store]))
    assert duplicates.exact == 1
    assert (3, 7) in duplicates.pairs


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.001])
def test_distances_are_those_of_differences_in_float64(rng: np.random.Generator, spread: float) -> None:
    """Products in float32 lose the distances within tight groups, which are computed from differences."""
    n, count = 300, 40
    centres = rng.normal(size=(n // 10, 50))
    x = torch.from_numpy(np.repeat(centres, 10, axis=0) + spread * rng.normal(size=(n, 50))).float()
    x[1] = x[0]
    x /= float(x.square().sum(1).mean().sqrt())
    distances, neighbours = module._nearest(x, count)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").numpy()
    np.fill_diagonal(exact, np.inf)
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :count], rtol=1e-5)
    np.testing.assert_allclose(distances, np.take_along_axis(exact, neighbours, 1), rtol=1e-5)
    assert distances[0, 0] == 0
    assert neighbours[0, 0] == 1


def test_layers_that_are_not_read_would_change_nothing(
    tmp_path: Path, stack: ExitStack, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the widest layer holds a pair of duplicates: two narrower ones of both networks say that it is none."""
    shared = rng.normal(size=(200, 10))
    layers = [append_features(unrelated_layers(rng, 200, 30, 20, 10), shared) for _ in range(2)]
    for x, _, _ in layers:
        x[9] = x[4] + 0.01
    built, read = design(networks(stack, tmp_path, layers)), []

    def noted(x: torch.Tensor, *rest: object) -> dict[tuple[int, int], float]:
        read.append(x.shape[1])
        return pair_values(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pair_values", noted)
    assert not near_duplicates(built).pairs
    assert read == [20, 20]
    monkeypatch.setattr(module, "select", lambda *_: {(0, 1)})  # as if pairs were left
    assert near_duplicates(built).pairs
    assert read == [20, 20, 20, 20, 30, 30]  # then no pair is left
