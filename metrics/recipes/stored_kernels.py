"""What the compressed readouts leave of a layer, as kernel matrices that CKA compares like any other."""

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
    """Gram matrices of disjoint blocks of samples, one kernel matrix of which only these blocks are known.

    Scaled to a mean diagonal of 1. Its inner product with another layer's is the sum of HSIC over the blocks, up to a
    factor that all blocks share.
    """

    grams: Float[Tensor, "blocks b b"]
    rounding: float
    """The relative rounding error of an entry, as it was stored."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.grams.nbytes

    @property
    def n(self) -> int:
        """Samples that are in some block."""
        return self.grams.shape[0] * self.grams.shape[1]

    @property
    def p(self) -> int:
        """None: the entries are stored."""
        return 0

    @property
    def block(self) -> int:
        """Samples of each."""
        return self.grams.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """As it was stored."""
        return self.grams.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.grams.device

    @property
    def eps(self) -> float:
        """As it was stored."""
        return self.rounding

    def rows(self, i: slice) -> Float[Tensor, "rows b"]:
        """Rows of the blocks they are in."""
        return self.grams.flatten(0, 1)[i]

    @override
    def tile(self, x: Tensor, y: Tensor, i: slice, j: slice, out: Float[Tensor, "i j"]) -> None:
        """A piece of the block that both belong to."""
        start = j.start - i.start // self.block * self.block
        out.copy_(x[:, start : start + j.stop - j.start])

    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """From the blocks' row sums."""
        grams = self.grams.cpu() if self.grams.device.type == "mps" else self.grams  # mps has no float64
        diagonal = grams.diagonal(dim1=1, dim2=2).double()
        return offsets(grams.sum(2, dtype=torch.float64), diagonal, unbiased=unbiased)


class _StoredKernels(KernelRecipe[K_co], InMemoryRecipe[K_co]):
    """What the recipes of both readouts have in common."""

    stored: ClassVar[bool] = True

    @override
    def block(self, n: int) -> int:
        """All samples: of which size the blocks are is not known before they are read."""
        return n

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Nothing beside reading."""
        return Cost()

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """What was stored, and some numbers a sample."""
        return Memory(layer.n * layer.p * layer.itemsize, state=32 * layer.n)


@dataclass(frozen=True)
class StoredGrams(_StoredKernels[BlockGrams]):
    """The recipe for the readout ``gram:B``: Gram matrices as they were stored, each over its own block."""

    def __call__(self, x: Float[Tensor, "blocks b b"]) -> BlockGrams:
        """Scale; `UndefinedValueError` where no feature varies within any block."""
        if x.shape[1] < 4:
            raise InvalidInputError(f"blocks of {x.shape[1]} samples are too small: HSIC_1 needs at least 4")
        scale = x.diagonal(dim1=1, dim2=2).mean(dtype=torch.float32 if x.device.type == "mps" else torch.float64)
        if scale <= 0:
            raise UndefinedValueError(
                "the layer is constant: within every block all samples have the same features, so there is nothing to "
                "compare"
            )
        half = torch.equal(x, x.half().to(x.dtype))  # every digit that float16 has, and no more
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
        """Both."""
        return self.first, self.second


@dataclass(frozen=True)
class TwoSketches(_StoredKernels[SketchedGrams]):
    """The recipe for the readout ``sketch:M``: both sketches are centred, and scaled by one number."""

    draws: ClassVar[int] = 2

    def __call__(self, x: Float[Tensor, "n 2 m"]) -> SketchedGrams:
        """Prepare one layer."""
        whole = CentredGram()(x.flatten(1))
        first, second = (self._half(half, whole) for half in whole.features[:].chunk(2, dim=1))
        return SketchedGrams(first, second)

    @staticmethod
    def _half(features: Float[Tensor, "n m"], whole: Gram) -> Gram:
        squared_norms = features.to(whole.squared_norms).square().sum(1)
        return Gram(features, squared_norms, whole.row_sums)
