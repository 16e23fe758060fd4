"""Recipes that make kernel matrices from compressed readouts, for CKA."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.gram import CentredGram, Gram, K_co, KernelMatrix, KernelRecipe, offsets


@dataclass(frozen=True, eq=False)
class BlockGrams(KernelMatrix):
    """Gram matrices of disjoint blocks of samples: a kernel matrix of which only these blocks are stored.

    Matrices are scaled to a mean diagonal of 1. The inner product with the matrices of another layer is the sum of HSIC
    over the blocks, up to a common factor.
    """

    grams: Float[Tensor, "blocks b b"]
    rounding: float
    """Relative rounding error of a stored entry."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.grams.nbytes

    @property
    def n(self) -> int:
        """Number of samples that are in a block."""
        return self.grams.shape[0] * self.grams.shape[1]

    @property
    def p(self) -> int:
        """0, because the entries are stored."""
        return 0

    @property
    def block(self) -> int:
        """Samples of each block."""
        return self.grams.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored matrices."""
        return self.grams.dtype

    @property
    def device(self) -> torch.device:
        """Device of the matrices."""
        return self.grams.device

    @property
    def eps(self) -> float:
        """Relative rounding error of a stored entry."""
        return self.rounding

    def rows(self, i: slice) -> Float[Tensor, "rows b"]:
        """Return rows of the blocks that contain these samples."""
        return self.grams.flatten(0, 1)[i]

    @override
    def tile(self, x: Tensor, y: Tensor, i: slice, j: slice, out: Float[Tensor, "i j"]) -> None:
        """Write a part of the block that contains both runs of samples."""
        start = j.start - i.start // self.block * self.block
        out.copy_(x[:, start : start + j.stop - j.start])

    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """Compute the offsets from the row sums of the blocks."""
        grams = self.grams.cpu() if self.grams.device.type == "mps" else self.grams  # mps has no float64
        diagonal = grams.diagonal(dim1=1, dim2=2).double()
        return offsets(grams.sum(2, dtype=torch.float64), diagonal, unbiased=unbiased)


class _StoredKernels(KernelRecipe[K_co], InMemoryRecipe[K_co]):
    """Base of the recipes of both compressed readouts."""

    stored: ClassVar[bool] = True

    @override
    def block(self, n: int) -> int:
        """Return n: the size of the blocks is not known before they are read."""
        return n

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return no cost besides reading."""
        return Cost()

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the stored values, and of some numbers per sample."""
        return Memory(layer.n * layer.p * layer.itemsize, state=32 * layer.n)


@dataclass(frozen=True)
class StoredGrams(_StoredKernels[BlockGrams]):
    """Recipe for the readout ``gram:B``: stored Gram matrices, one for each block of samples."""

    def __call__(self, x: Float[Tensor, "blocks b b"]) -> BlockGrams:
        """Scale the matrices; raise `UndefinedValueError` if no feature varies within any block."""
        if x.shape[1] < 4:
            raise InvalidInputError(f"blocks of {x.shape[1]} samples are too small: HSIC_1 needs at least 4")
        scale = x.diagonal(dim1=1, dim2=2).mean(dtype=torch.float32 if x.device.type == "mps" else torch.float64)
        if scale <= 0:
            raise UndefinedValueError(
                "the layer is constant: within every block all samples have the same features, so there is nothing to "
                "compare"
            )
        half = torch.equal(x, x.half().to(x.dtype))  # the values were stored as float16
        return BlockGrams(x / scale.to(x), torch.finfo(torch.float16 if half else x.dtype).eps)


@dataclass(frozen=True, eq=False)
class SketchedGrams:
    """Two estimates of one Gram matrix, from independent sketches of the features: K^1 and K^2, each with mean K."""

    first: Gram
    second: Gram

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.first.nbytes + self.second.nbytes

    @property
    def draws(self) -> tuple[Gram, Gram]:
        """Both estimates."""
        return self.first, self.second


@dataclass(frozen=True)
class TwoSketches(_StoredKernels[SketchedGrams]):
    """Recipe for the readout ``sketch:M``: both sketches are centred, and scaled by one number."""

    draws: ClassVar[int] = 2

    def __call__(self, x: Float[Tensor, "n 2 m"]) -> SketchedGrams:
        """Prepare one layer."""
        gram = CentredGram()(x.flatten(1))
        first, second = (self._half(half, gram) for half in gram.features[:].chunk(2, dim=1))
        return SketchedGrams(first, second)

    @staticmethod
    def _half(features: Float[Tensor, "n m"], gram: Gram) -> Gram:
        squared_norms = features.to(gram.squared_norms).square().sum(1)
        return Gram(features, squared_norms, gram.row_sums)
