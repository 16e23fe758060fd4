"""Readouts that keep the comparison of flattened feature maps and drop their bulk: `gram:B` and `sketch:M`.

Both are computed on the device, inside the hook. docs/compressed-readouts.md says what they lose: nothing, and little.
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

from repsim.extractors.base import LayerSpec

_PIECE = 2**12
"""Features taken at a time: a copy of a huge output never exists in full, and float32 sums stay short."""


@dataclass(frozen=True)
class BlockGram:
    """For each block of B samples the B x B Gram matrix of their flattened features: what minibatch CKA is made of.

    K = Xc Xc' / p, with X (B, p) all features of a block and Xc = X minus the block's own mean of every feature. HSIC_1
    of a block does not see the mean, and without it float32 keeps its digits; over p, float16 has room for the values.

    References
    ----------
    Nguyen, Raghu, Kornblith. Do wide and deep networks learn the same things? ICLR 2021, eq. 3.
    """

    size: int

    @property
    def name(self) -> str:
        """gram:B."""
        return f"gram:{self.size}"

    @property
    def block(self) -> int:
        """B."""
        return self.size

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every layer
        """(B, B)."""
        return (self.size, self.size)

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:  # noqa: ARG002 - as above
        """(b, ...) -> (b // B, B B); a remainder of fewer than B samples is dropped."""
        count = len(output) // self.size
        x: Tensor = output[: count * self.size].flatten(1).unflatten(0, (count, self.size))
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no float64
        grams = torch.zeros(count, self.size, self.size, dtype=wide, device=x.device)
        with torch.autocast(x.device.type, enabled=False), _exact_products():
            for piece in x.split(_PIECE, dim=2):
                centred = piece.float() - piece[:, :1].float()  # makes a constant feature exactly 0
                centred -= centred.mean(1, keepdim=True)
                grams += centred @ centred.mT
        return (grams / x.shape[2]).float().flatten(1)


@dataclass(frozen=True)
class Sketch:
    """Two independent random projections of the flattened features to m = min(M, p) values each.

    A balanced count sketch: features get random signs and are cut into rows of m; each row is permuted at random, and
    the rows are summed. So every bucket gets p/m features, rounded up or down; two features of different rows share one
    with probability 1/m, two of a row never; and E <Sx, Sy> = <x, y>. It takes O(p) a sample and no atomic additions.
    With p <= M there is one row, a signed permutation, and nothing is lost. Two of them, so that CKA can be estimated
    without the bias of one (`repsim.metrics.cka.CKA`).

    Signs and orders follow from the seed, which of the two it is, p, m and the layer's name, and not from the model.

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
        """sketch:M, or sketch:M:SEED where the seed is not 0."""
        return f"sketch:{self.size}:{self.seed}" if self.seed else f"sketch:{self.size}"

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """(2, m)."""
        return (2, min(self.size, prod(layer.shape)))

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """(b, ...) -> (b, 2 m), summed in float32."""
        x = output.flatten(1)
        return torch.cat([self._project(x, *draw) for draw in self._draws(layer, x.shape[1], x.device)], dim=1)

    def _project(self, x: Tensor, features: Tensor, signs: Tensor) -> Tensor:
        m = min(self.size, x.shape[1])
        step = max(1, _PIECE // m) * m
        total = torch.zeros(len(x), m, device=x.device)
        for chosen, sign in zip(features.split(step), signs.split(step), strict=True):
            piece = x.index_select(1, chosen).float().mul_(sign)
            total += pad(piece, (0, -len(chosen) % m)).unflatten(1, (-1, m)).sum(1)
        return total

    def _draws(self, layer: LayerSpec, p: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """The order of the features, and their signs, of both sketches: made once a layer and device."""
        key = (layer.name, p, device)
        if key not in self._cache:
            draws, m = [], min(self.size, p)
            for which in (1, 2):
                text = f"seed {self.seed}, sketch {which}, {p} to {m}, layer {layer.name}"
                generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
                rows = torch.rand(-(-p // m), m, generator=generator).argsort(1)
                order = (rows + m * torch.arange(len(rows))[:, None]).flatten()
                features = order[order < p].int()
                signs = torch.randint(2, (p,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
                draws.append((features.to(device), signs.to(device)))
            self._cache[key] = draws
        return self._cache[key]


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 matrices as IEEE has them, whatever the flags allow for the model's own (TF32, bfloat16)."""
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
