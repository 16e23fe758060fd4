"""Statistics of pictures against a slow reference in numpy, one picture and one position at a time."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from repsim.extractors.picture_statistics import has_statistics, picture_statistics, statistic_names

Array = NDArray[np.float64]
SHAPES = [(3, 64, 48), (3, 33, 20), (1, 16, 16), (2, 17, 40), (3, 224, 224)]


def blocks(plane: Array, size: int) -> Array:
    """Average squares of ``size`` positions; those that do not fill a square are left out, at every halving."""
    while size > 1:
        h, w = plane.shape[0] // 2, plane.shape[1] // 2
        plane = plane[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3))
        size //= 2
    return plane


def cells(plane: Array, height: int, width: int) -> Array:
    """Average over cells as adaptive pooling does."""

    def limits(size: int, count: int) -> list[slice]:
        return [slice(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]

    return np.array(
        [[plane[r, c].mean() for c in limits(plane.shape[1], width)] for r in limits(plane.shape[0], height)]
    )


def reference(picture: Array) -> dict[str, float]:  # noqa: PLR0912 - one statistic after the other
    """Compute all statistics of one picture in float64."""
    values: dict[str, float] = {}
    grey = picture.mean(0)
    planes = {"": grey}
    if len(picture) > 1:
        planes |= {f" of channel {k + 1}": plane for k, plane in enumerate(picture)}
    for name, plane in planes.items():
        values[f"brightness: mean{name}"] = plane.mean()
        values[f"contrast: standard deviation{name}"] = plane.std()
        values[f"skewness: skewness{name}"] = ((plane - plane.mean()) ** 3).mean() / (plane.var() + 1e-6) ** 1.5
        h, w = plane.shape[0] // 2, plane.shape[1] // 2
        quarters = {
            "upper left": plane[:h, :w],
            "upper right": plane[:h, w:],
            "lower left": plane[h:, :w],
            "lower right": plane[h:, w:],
        }
        for where, quarter in quarters.items():
            values[f"brightness: mean{name}, {where}"] = quarter.mean()
            values[f"contrast: standard deviation{name}, {where}"] = quarter.std()
    for i in range(1, len(picture)):
        for j in range(i):
            a, b = picture[i] - picture[i].mean(), picture[j] - picture[j].mean()
            values[f"colour: correlation of channels {j + 1} and {i + 1}"] = (a * b).mean() / (a.std() * b.std() + 1e-6)
    colours = {}
    if len(picture) == 3:
        red, green, blue = picture
        colours = {"red - green": red - green, "yellow - blue": (red + green) / 2 - blue}
        for name, plane in colours.items():
            values[f"colour: standard deviation of {name}"] = plane.std()
    for scale in (1, 2, 4, 8, 16):
        level = blocks(grey, scale)
        if min(level.shape) < 4:
            break
        points = [(i, j) for i in range(level.shape[0] - 1) for j in range(level.shape[1] - 1)]
        right = np.array([level[i, j + 1] - level[i, j] for i, j in points])
        down = np.array([level[i + 1, j] - level[i, j] for i, j in points])
        for name, differences in (
            ("horizontal", right),
            ("vertical", down),
            ("diagonal", right + down),
            ("other diagonal", right - down),
        ):
            values[f"orientation: {name} differences at scale {scale}"] = np.abs(differences).mean()
        values[f"edges: root mean square gradient at scale {scale}"] = np.sqrt((right**2 + down**2).mean())
        laplacian = [
            level[i - 1, j] + level[i + 1, j] + level[i, j - 1] + level[i, j + 1] - 4 * level[i, j]
            for i in range(1, level.shape[0] - 1)
            for j in range(1, level.shape[1] - 1)
        ]
        values[f"edges: Laplacian at scale {scale}"] = np.abs(laplacian).mean()
        if scale <= 4:
            values[f"edges: share of edges at scale {scale}"] = (np.hypot(right, down) > grey.std() / 2).mean()
        if 2 <= scale <= 8:
            for name, plane in colours.items():
                small = blocks(plane, scale)
                across = np.abs(small[:-1, 1:] - small[:-1, :-1]).mean()
                along = np.abs(small[1:, :-1] - small[:-1, :-1]).mean()
                values[f"colour: differences of {name} at scale {scale}"] = (across + along) / 2
    for scale in (2, 8):
        small = np.stack([blocks(plane, scale) for plane in picture])
        if min(small.shape[1:]) < 4 or (scale == 8 and min(blocks(grey, 8).shape) < 4):
            continue
        names = ["the picture"] if len(picture) == 1 else [f"channel {k + 1}" for k in range(len(picture))]
        for k, name in enumerate(names):
            values[f"colour: mean modulus of {name} at scale {scale}"] = np.abs(small[k]).mean()
        for i, j in itertools.combinations(range(len(picture)), 2):
            for sign, symbol in ((1, "+"), (-1, "-")):
                name = f"channel {i + 1} {symbol} {j + 1}"
                plane = (small[i] + sign * small[j]) / np.sqrt(2)
                values[f"colour: mean modulus of {name} at scale {scale}"] = np.abs(plane).mean()
        if len(picture) == 3:
            for second, third in itertools.product("+-", repeat=2):
                plane = small[0] + small[1] * float(f"{second}1") + small[2] * float(f"{third}1")
                name = f"channel 1 {second} 2 {third} 3"
                values[f"colour: mean modulus of {name} at scale {scale}"] = np.abs(plane / np.sqrt(3)).mean()
    h, w = (min(64, size) for size in grey.shape)
    small = cells(grey, h, w)
    windows = [0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size) for size in (h, w)]
    power = np.abs(np.fft.fft2((small - small.mean()) * np.outer(*windows))) ** 2 / (h * w)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    limits = [*np.geomspace(1 / min(h, w), 0.5, 7)[:-1], np.inf]
    for k in range(6):
        band = (frequency >= limits[k] - 1e-9) & (frequency < limits[k + 1] - 1e-9)
        values[f"spectrum: log power of band {k + 1} of 6"] = np.log(power[band].mean() + 1e-6)
    return values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    smooth = np.cumsum(np.cumsum(rng.normal(size=(2, *shape)), -1), -2)  # like a photo, most power at low frequencies
    pictures = (
        smooth / smooth.std() + rng.normal(size=(2, shape[0], 1, 1)) + 0.1 * rng.normal(size=smooth.shape)
    ).astype(np.float32)
    measured = picture_statistics(torch.from_numpy(pictures))
    assert measured.dtype == torch.float32
    names = statistic_names(shape)
    for row, picture in zip(measured.numpy(), pictures.astype(np.float64), strict=True):
        expected = reference(picture)
        assert set(names) == expected.keys()
        assert len(names) == len(expected)
        np.testing.assert_allclose(row, [expected[name] for name in names], rtol=3e-5, atol=3e-5)


def test_values_do_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    pictures = torch.from_numpy(rng.normal(size=(5, 3, 64, 64)).astype(np.float32))
    together = picture_statistics(pictures)
    torch.testing.assert_close(picture_statistics(pictures[3:4]), together[3:4], rtol=0, atol=0)
    torch.testing.assert_close(picture_statistics(pictures.flip(0)).flip(0), together, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(picture_statistics(pictures), together, rtol=0, atol=0)


def test_pictures_are_not_changed(rng: np.random.Generator) -> None:
    pictures = torch.from_numpy(rng.normal(size=(2, 3, 32, 32)).astype(np.float32))
    before = pictures.clone()
    picture_statistics(pictures)
    assert torch.equal(pictures, before)
    picture_statistics(pictures[:, :1])
    assert torch.equal(pictures, before)


def test_a_constant_picture_has_finite_statistics() -> None:
    values = dict(
        zip(statistic_names((3, 32, 32)), picture_statistics(torch.full((1, 3, 32, 32), 0.3))[0].tolist(), strict=True)
    )
    assert all(np.isfinite(value) for value in values.values())
    assert values["brightness: mean"] == pytest.approx(0.3)
    level = ("brightness", "spectrum", "colour: mean modulus")
    assert max(abs(value) for name, value in values.items() if not name.startswith(level)) < 1e-3


def test_small_pictures_and_vectors_have_none() -> None:
    assert [has_statistics(shape) for shape in [(3, 16, 16), (3, 15, 200), (1, 16, 17), (192,), (0, 32, 32)]] == [
        True, False, True, False, False,
    ]  # fmt: skip


def test_names_have_a_group_and_are_unique() -> None:
    for shape in SHAPES:
        names = statistic_names(shape)
        assert len(set(names)) == len(names)
        groups = {name.split(": ")[0] for name in names}
        assert groups <= {"brightness", "contrast", "skewness", "colour", "orientation", "edges", "spectrum"}
        assert not any(";" in name for name in names)
