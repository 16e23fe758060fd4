"""Compressed readouts of flattened feature maps: the Gram matrices `gram:B` and the random projections `sketch:M`.

Both are computed on the device, inside the hook. docs/compressed-readouts.md describes their accuracy: values of
`gram:B` are exact, those of `sketch:M` have a small random error.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from repsim.extractors.base import LayerSpec, OneRow
from repsim.extractors.tokens import left_aligned
from repsim.runtime import tuning

_PIECE = 2**12
"""Number of features that a processor processes at once, so that a large output is never copied in full."""


@dataclass(frozen=True)
class BlockGram:
    """Gram matrix (B, B) of the flattened features of each block of B samples, as minibatch CKA uses it.

    K = Xc Xc' / p, with X (B, p) the features of all samples of a block and Xc = X minus the mean of each feature over
    the block. HSIC_1 of a block does not depend on the mean, and subtracting it avoids a loss of digits in float32. The
    division by p keeps the values within the range of float16.

    References
    ----------
    Nguyen, Raghu, Kornblith. Do wide and deep networks learn the same things? ICLR 2021, eq. 3.
    """

    size: int

    @property
    def name(self) -> str:
        """Spec string: ``gram:B``."""
        return f"gram:{self.size}"

    @property
    def block(self) -> int:
        """Number of samples of a block: B."""
        return self.size

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every layer
        """Return the shape of one row: (B, B)."""
        return (self.size, self.size)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return the Gram matrices (b // B, B B) of an output (b, ...); a remainder of less than B samples is dropped.

        Sums are in float64, or in float32 on mps; the result is float32.
        """
        output = output if mask is None else left_aligned(output, mask, layer)
        count = len(output) // self.size
        x: Tensor = output[: count * self.size].flatten(1).unflatten(0, (count, self.size))
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no float64
        grams = torch.zeros(count, self.size, self.size, dtype=wide, device=x.device)
        with torch.autocast(x.device.type, enabled=False), _exact_products():
            for piece in x.split(_piece(x.device), dim=2):
                centred = piece.float() - piece[:, :1].float()  # a constant feature becomes exactly 0
                centred -= centred.mean(1, keepdim=True)
                grams += centred @ centred.mT
        return (grams / x.shape[2]).float().flatten(1)


@dataclass(frozen=True)
class Sketch(OneRow):
    """Two independent random projections of the flattened features to m = min(M, p) values each.

    Each projection is a balanced count sketch: features get random signs and are divided into rows of m; each row is
    permuted at random, and the rows are summed. Every bucket is the sum of p/m features, rounded up or down. Two
    features of different rows share a bucket with probability 1/m, two features of one row never do. The inner product
    is unbiased: E <Sx, Sy> = <x, y>. The cost is O(p) per sample, without atomic additions. With p <= M there is one
    row, and the projection is a signed permutation, which loses nothing. Two projections are stored so that CKA can be
    estimated without the bias of a single one (`repsim.metrics.cka.CKA`).

    Signs and orders depend on the seed, the number of the projection (1 or 2), p, m and the name of the layer, but not
    on the model.

    References
    ----------
    Charikar, Chen, Farach-Colton. Finding frequent items in data streams. ICALP 2002.
    """

    size: int
    seed: int = 0
    _cache: dict[tuple[str, int, torch.device], list[tuple[Tensor, Tensor]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """Spec string: ``sketch:M``, or ``sketch:M:SEED`` if the seed is not 0."""
        return f"sketch:{self.size}:{self.seed}" if self.seed else f"sketch:{self.size}"

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (2, m)."""
        return (2, min(self.size, prod(layer.shape)))

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return both projections (b, 2 m) of an output (b, ...), summed in float32."""
        x = (output if mask is None else left_aligned(output, mask, layer)).flatten(1)
        return torch.cat([self._project(x, *draw) for draw in self._draws(layer, x.shape[1], x.device)], dim=1)

    def _project(self, x: Tensor, features: Tensor, signs: Tensor) -> Tensor:
        m = min(self.size, x.shape[1])
        step = max(1, _piece(x.device) // m) * m
        total = torch.zeros(len(x), m, device=x.device)
        for columns, sign in zip(features.split(step), signs.split(step), strict=True):
            piece = x.index_select(1, columns).float().mul_(sign)
            total += pad(piece, (0, -len(columns) % m)).unflatten(1, (-1, m)).sum(1)
        return total

    def _draws(self, layer: LayerSpec, p: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return the order of the features and their signs for both sketches, cached per layer and device."""
        key = (layer.name, p, device)
        if key not in self._cache:
            draws, m = [], min(self.size, p)
            for sketch in (1, 2):
                text = f"seed {self.seed}, sketch {sketch}, {p} to {m}, layer {layer.name}"
                generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
                rows = torch.rand(-(-p // m), m, generator=generator).argsort(1)
                order = (rows + m * torch.arange(len(rows))[:, None]).flatten()
                features = order[order < p].int()
                signs = torch.randint(2, (p,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
                draws.append((features.to(device), signs.to(device)))
            self._cache[key] = draws
        return self._cache[key]


def _piece(device: torch.device) -> int:
    """Return the number of features that are processed at once."""
    return tuning.values_at_once(_PIECE, device.type)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute matrix products in full float32 inside the block, even if TF32 or bfloat16 is allowed for the model."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    precisions = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, precisions, strict=True):
            setting.fp32_precision = precision
