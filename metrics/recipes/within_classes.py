"""Kernels of what varies within classes: features minus the mean of their class, in pairs of different classes.

Whatever depends on the class alone is removed exactly, whichever classes are alike: no function of the class is left.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import Rows, by_pieces, float64_device, pieces


@dataclass(frozen=True, eq=False)
class ClassCentred:
    """Activations minus the mean of their class, computed in float64, then rounded to the dtype of the source."""

    source: Rows
    means: Float64[Tensor, "classes p"]
    numbers: Int64[Tensor, " n"]
    """Class of each sample."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, p)."""
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        return by_pieces(self, rows, self._centred)

    def _centred(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        piece = self.source[rows]
        exact = piece.to(self.means) - self.means[self.numbers[rows.cpu() if isinstance(rows, Tensor) else rows]]
        return exact.to(piece)


class WithinClasses(Gram):
    """Linear kernel of features minus the mean of their class; pairs of one class do not count.

    A_ij = (x_i - m_c(i))'(x_j - m_c(j)) for samples of different classes, otherwise 0. Its sums over the samples of a
    class are 0, so that centring changes nothing. Deviations of samples of different classes are independent, so two
    layers that share nothing within classes have an expected inner product of 0. Such matrices have
    (n - C)^2 - sum_c (n_c - 1)^2 degrees of freedom for n samples in C classes (`degrees_of_freedom`).
    """

    @override
    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """Return zeros."""
        return torch.zeros_like(self.squared_norms)[None]


def within_classes(layer: Gram, classes: Groups) -> WithinClasses:
    """Return the kernel of what varies within classes. Reads the layer once.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.tensor([[0.0, 1], [2, 1], [5, 0], [5, 4]])
    >>> kernel = within_classes(CentredGram()(x), Groups.of(["cat", "cat", "dog", "dog"]))
    >>> (kernel.rows(slice(0, 4)) / kernel.rows(slice(0, 4)).abs().max() * 2).tolist()
    [[-1.0, 0.0], [1.0, 0.0], [0.0, -2.0], [0.0, 2.0]]
    """
    place = float64_device(layer.device)
    numbers = classes.numbers.to(place)
    sums = torch.zeros(classes.count, layer.p, dtype=torch.float64, device=place)
    for i in pieces(layer.features):
        sums.index_add_(0, numbers[i], layer.features[i].to(sums))
    features = ClassCentred(layer.features, sums / classes.sizes.to(sums)[:, None], classes.numbers)
    values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    return WithinClasses(**values | {"features": features, "groups": classes, "sums_within": None})


def degrees_of_freedom(sizes: Int64[Tensor, "*batch classes"]) -> Float64[Tensor, "*batch"]:
    """Return the degrees of freedom of kernels within classes, from the numbers of samples of each class.

    >>> float(degrees_of_freedom(torch.tensor([2, 2])))  # one for each sign of the two deviations
    2.0
    """
    left = (sizes - 1).clamp(min=0).double()
    return left.sum(-1).square() - left.square().sum(-1)
