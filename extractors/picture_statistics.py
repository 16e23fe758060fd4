"""Compute statistics of pictures that networks share without learning: brightness, contrast, edges, frequencies.

They are computed from the prepared picture in full size, as the stored pixels are averages over cells and hold no
contrast within a cell, no edge and no texture. Untrained convolutional networks mostly see those.

The filters are fixed: differences of neighbours on a pyramid of averages, and a Fourier spectrum. A scattering
transform (Bruna & Mallat 2013) measures the same at two orders. Its first order is close to what is computed here:
oriented filters at several scales, of which the modulus is averaged. The second order takes several hundred filters per
picture, more than the forward pass of a small network, and a library of its own.

References
----------
Torralba & Oliva. Statistics of natural image categories. Network 2003.
Simoncelli & Olshausen. Natural image statistics and neural representation. Annual Review of Neuroscience 2001.
Bruna & Mallat. Invariant scattering convolution networks. IEEE TPAMI 2013.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from repsim.extractors.base import LayerSpec, OneRow
from repsim.labels import NAME_SEPARATOR, STATISTICS

MIN_SIZE = 16
"""Smallest height and width of a picture that has statistics; smaller ones are stored whole, or nearly so."""
_SCALES = 5
_EDGE_SCALES = 3
_COLOUR_SCALES = (1, 2, 3)
_DIRECTION_SCALES = (1, 3)
_SMALLEST_SCALE = 4
_BANDS = 6
_SPECTRUM = 64
"""Height and width to which the picture is averaged before its spectrum is computed."""
_EDGE = 0.5
"""A position is an edge if the gradient is above this share of the standard deviation of the picture."""
_FLOOR = 1e-6
"""Added to powers before the logarithm, and to variances before a division: a constant picture has no contrast."""
_ORIENTATIONS = ("horizontal", "vertical", "diagonal", "other diagonal")

_OPPONENTS = ("red - green", "yellow - blue")

Values = Float[Tensor, "b k"]


def has_statistics(shape: tuple[int, ...]) -> bool:
    """Return whether samples of a shape, (channels, height, width), have statistics.

    >>> has_statistics((3, 224, 224)), has_statistics((3, 8, 8)), has_statistics((192,))
    (True, False, False)
    """
    return len(shape) == 3 and shape[0] > 0 and min(shape[1:]) >= MIN_SIZE


def statistic_names(shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names of the statistics of pictures of a shape, (channels, height, width): ``group: statistic``.

    >>> names = statistic_names((3, 224, 224))
    >>> len(names), names[0], names[-1]
    (120, 'brightness: mean', 'spectrum: log power of band 6 of 6')
    """
    return _names(*shape)


@lru_cache
def _names(*shape: int) -> tuple[str, ...]:
    return tuple(name for names, _ in _statistics(torch.zeros((1, *shape))) for name in names)


def picture_statistics(pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s"]:
    """Compute the statistics of pictures, in float32.

    Of every channel and of the brightness (the mean of the channels) the mean, standard deviation and skewness, and the
    mean and standard deviation in the four quarters; of the channels their correlations, and the standard deviations of
    the contrasts of colours; on a pyramid of averages over 1, 2, 4, ... pixels the mean modulus of the differences in
    four orientations, the root mean square of the gradient, the mean modulus of the Laplacian, the share of edges, the
    differences in colour, and the mean modulus of the channels, their sums and differences; and the log power in bands
    of the radial frequency.

    Parameters
    ----------
    pictures
        (b, channels, height, width), of any floating dtype, with a height and width of at least 16.

    Returns
    -------
    tensor of shape (b, s)
        In the order of `statistic_names`: 120 for three channels and at least 64 pixels. On a CPU each picture is
        computed by itself, so that values do not depend on the others of its batch.

    Examples
    --------
    >>> pictures = torch.zeros(2, 3, 32, 32)
    >>> pictures[1, :, :, ::2] = 1  # vertical stripes
    >>> values = dict(zip(statistic_names((3, 32, 32)), picture_statistics(pictures).T.tolist(), strict=True))
    >>> values["brightness: mean"], values["orientation: horizontal differences at scale 1"]
    ([0.0, 0.5], [0.0, 1.0])
    """
    if pictures.device.type == "cpu":
        return torch.cat([_stack(picture[None]) for picture in pictures]) if len(pictures) else _stack(pictures)
    return _stack(pictures)


def _stack(pictures: Tensor) -> Float[Tensor, "b s"]:
    with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):
        return torch.cat([values for _, values in _statistics(pictures.float())], 1)


def _statistics(x: Float[Tensor, "b c h w"]) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield the names and the values of statistics, several at a time, as each operation costs time."""
    channels = x.shape[1] if x.shape[1] > 1 else 0
    brightness = x.mean(1, keepdim=True)
    planes = torch.cat([brightness, x], 1) if channels else x
    names = ["", *(f" of channel {k + 1}" for k in range(channels))]
    mean = planes.mean((2, 3))
    centred = planes - mean[:, :, None, None]
    square = centred.square()
    deviation = square.mean((2, 3)).sqrt()
    yield [f"brightness: mean{name}" for name in names], mean
    yield [f"contrast: standard deviation{name}" for name in names], deviation
    height, width = (size // 2 for size in x.shape[2:])
    for row, rows in (("upper", slice(height)), ("lower", slice(height, None))):
        for side, columns in (("left", slice(width)), ("right", slice(width, None))):
            shift, power = (values[:, :, rows, columns].mean((2, 3)) for values in (centred, square))
            yield [f"brightness: mean{name}, {row} {side}" for name in names], mean + shift
            yield (
                [f"contrast: standard deviation{name}, {row} {side}" for name in names],
                (power - shift.square()).clamp_(min=0).sqrt_(),
            )
    skewness = square.mul_(centred).mean((2, 3)) / (deviation.square() + _FLOOR) ** 1.5
    yield [f"skewness: skewness{name}" for name in names], skewness
    yield from _colours(centred[:, 1:], deviation[:, 1:])
    yield from _edges_by_scale(brightness[:, 0], x, deviation[:, :1])
    yield from _spectrum(brightness[:, 0])


def _colours(centred: Float[Tensor, "b c h w"], deviation: Values) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield the correlations of channels, and the standard deviations of contrasts of colours."""
    channels = centred.shape[1]
    for i in range(1, channels):
        covariance = (centred[:, i : i + 1] * centred[:, :i]).mean((2, 3))
        yield (
            [f"colour: correlation of channels {j + 1} and {i + 1}" for j in range(i)],
            covariance / (deviation[:, i : i + 1] * deviation[:, :i] + _FLOOR),
        )
    if channels == 3:
        spread = _opponents(centred).square_().mean((2, 3)).sqrt()
        yield [f"colour: standard deviation of {name}" for name in _OPPONENTS], spread


def _opponents(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Return red - green and yellow - blue."""
    red, green, blue = x.unbind(1)
    return torch.stack([red - green, (red + green) / 2 - blue], 1)


def _edges_by_scale(
    brightness: Float[Tensor, "b h w"], x: Float[Tensor, "b c h w"], spread: Values
) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield the edges of the brightness and of contrasts of colours on a pyramid of averages."""
    level, colours = brightness, x
    for k in range(_SCALES):
        if min(level.shape[1:]) < _SMALLEST_SCALE:
            return
        yield from _edges(level, 2**k, spread if k < _EDGE_SCALES else None)
        if k in _COLOUR_SCALES and x.shape[1] == 3:
            right, down = _differences(_opponents(colours))
            values = (_modulus(right) + _modulus(down)) / 2
            yield [f"colour: differences of {name} at scale {2**k}" for name in _OPPONENTS], values
        if k in _DIRECTION_SCALES and x.shape[1] <= 3:
            names, signs = _directions(x.shape[1], x.device)
            values = _modulus((signs @ colours.flatten(2))[..., None])
            yield [f"colour: mean modulus of {name} at scale {2**k}" for name in names], values
        if k < max(_COLOUR_SCALES):
            colours = _halved(colours)
            level = colours.mean(1)
        else:
            level = _halved(level)


@lru_cache
def _directions(channels: int, device: torch.device) -> tuple[tuple[str, ...], Float[Tensor, "directions c"]]:
    """Return the channels, their sums and differences, as names and unit vectors: filters of one pixel."""
    signs = [v for v in product((1, -1, 0), repeat=channels) if next(filter(None, v), 0) > 0]
    names = [
        " ".join(f"{'+' if sign > 0 else '-'} {k}" for k, sign in enumerate(v, 1) if sign).removeprefix("+ ")
        for v in signs
    ]
    vectors = torch.tensor(signs, dtype=torch.float32)
    vectors = (vectors / vectors.norm(dim=1, keepdim=True)).to(device)
    label = "channel " if channels > 1 else "the picture"
    return tuple(label + name if channels > 1 else label for name in names), vectors


def _differences(x: Float[Tensor, "*b h w"]) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbours along rows and along columns, (*b, h - 1, w - 1)."""
    corner = x[..., :-1, :-1]
    return x[..., :-1, 1:] - corner, x[..., 1:, :-1] - corner


def _modulus(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b"]:
    """Return the mean absolute value, which replaces the values."""
    return x.abs_().mean((-2, -1))


def _edges(level: Float[Tensor, "b h w"], scale: int, spread: Values | None) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield the differences of neighbours at one scale; with the spread of the picture also the share of edges."""
    right, down = _differences(level)
    diagonals = right + down, right - down
    yield (
        [f"orientation: {name} differences at scale {scale}" for name in _ORIENTATIONS],
        torch.stack([_modulus(plane) for plane in (right, down, *diagonals)], 1),
    )
    square = right.square_().add_(down.square_())
    around = level[:, :-2, 1:-1] + level[:, 2:, 1:-1]
    around += level[:, 1:-1, :-2]
    around += level[:, 1:-1, 2:]
    laplacian = _modulus(around.sub_(level[:, 1:-1, 1:-1], alpha=4))
    yield (
        [f"edges: root mean square gradient at scale {scale}", f"edges: Laplacian at scale {scale}"],
        torch.stack([square.mean((1, 2)).sqrt(), laplacian], 1),
    )
    if spread is not None:
        share = (square > (_EDGE * spread).square()[:, :, None]).float().mean((1, 2))
        yield [f"edges: share of edges at scale {scale}"], share[:, None]


def _halved(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h2 w2"]:
    """Return the averages of squares of 2 x 2 positions: torch's avg_pool2d, six times as fast on a CPU."""
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    rows = x[..., 0:height:2, :width] + x[..., 1:height:2, :width]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def _spectrum(brightness: Float[Tensor, "b h w"]) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield the log of the mean power in bands of the radial frequency, of equal width on a logarithmic scale."""
    height, width = (min(_SPECTRUM, size) for size in brightness.shape[1:])
    small = adaptive_avg_pool2d(brightness[:, None], (height, width))[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(small * _window(height, width, small.device)).abs().square() / (height * width)
    bands = power.flatten(1) @ _bands(height, width, power.device)
    yield [f"spectrum: log power of band {k + 1} of {_BANDS}" for k in range(_BANDS)], bands.add_(_FLOOR).log_()


@lru_cache
def _window(height: int, width: int, device: torch.device) -> Float[Tensor, "h w"]:
    """Return a Hann window, which hides the jump between opposite borders."""
    return torch.outer(*(torch.hann_window(size, dtype=torch.float32) for size in (height, width))).to(device)


@lru_cache
def _bands(height: int, width: int, device: torch.device) -> Float[Tensor, "frequencies bands"]:
    """Return the weights with which the power at each frequency is averaged over bands, from 1 / size to 1 / 2."""
    frequency = torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64)[:, None], torch.fft.fftfreq(width, dtype=torch.float64)
    )
    lowest = 1 / min(height, width)
    limits = [lowest * (0.5 / lowest) ** (k / _BANDS) for k in range(_BANDS)] + [float("inf")]
    within = torch.stack(
        [
            ((frequency >= low * (1 - 1e-9)) & (frequency < high * (1 - 1e-9))).flatten().float()
            for low, high in pairwise(limits)
        ],
        1,
    )
    return (within / within.sum(0)).to(device)


@dataclass(frozen=True)
class PictureStatistics(OneRow):
    """The statistics of the model's input in full size. They are a control for the similarity of pictures."""

    name: str = STATISTICS[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (statistics,)."""
        channels, height, width = layer.shape
        return (len(statistic_names((channels, height, width))),)

    def facts(self, layer: LayerSpec) -> dict[str, str]:
        """Return the names of the statistics, which the store records."""
        channels, height, width = layer.shape
        return {"names": NAME_SEPARATOR.join(statistic_names((channels, height, width)))}

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the statistics as an array (b, statistics), float32."""
        return picture_statistics(output)
