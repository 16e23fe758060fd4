"""Groups of samples that are not independent, such as the frames of a scene, and centring without pairs within a group.

The usual U-centring leaves out the diagonal of a Gram matrix, because a sample resembles itself in every layer. Samples
of one group resemble one another in the same way, so their pairs are left out as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.runtime.arrays import as_groups

LEAST = 4
"""Smallest number of groups: with three, no degree of freedom is left after centring."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of n samples, numbered from 0; samples of different groups are independent.

    **Centring.** With M_ij = 1 if i and j are in different groups, and D = diag(M 1), the centred kernel is
    A_ij = M_ij (K_ij - r_i - r_j), whose rows sum to 0. So r is the least-squares fit of r_i + r_j to the pairs of
    different groups, (D + M) r = s with s = (M * K) 1. For n_g samples in group g, and sigma_g the sum of s over it,

        r_i = (s_i - S + rho_g) / (n - n_g), rho_g = (sigma_g - n_g S) / (n - 2 n_g),
        S (1 + sum_g n_g / (n - 2 n_g)) = sum_g sigma_g / (n - 2 n_g),

    where rho_g is the sum of r over the group, and S that over all samples. If every sample is a group of its own, this
    is U-centring (Szekely & Rizzo 2014). The space of such matrices is linear, and a kernel that is independent between
    groups has an expected inner product of 0 with any other; so the cosine <A, B> / (||A|| ||B||) is positive
    semidefinite, and 0 on average for unrelated layers.

    Parameters
    ----------
    numbers : tensor of shape (n,)
        Group of each sample, from 0 to the number of groups - 1.
    names : tuple of str
        Names of the groups, or () for their numbers.

    Examples
    --------
    >>> groups = Groups.of(["sea", "sea", "wood", "town", "hill"])
    >>> groups.count, groups.sizes.tolist(), groups.name(1)
    (4, [2, 1, 1, 1], 'wood')
    """

    numbers: Int64[Tensor, " n"]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, groups: "GroupsLike", n: int | None = None) -> "Groups":
        """Make groups from one integer or text for each of n samples, numbered by first occurrence.

        Raises `InvalidInputError` if there is not one group for each sample, or a group is neither integer nor text.
        """
        if not isinstance(groups, Groups):
            numbers, names = as_groups(groups, n)
            return cls(torch.from_numpy(numbers), names)
        if n is not None and groups.n != n:
            raise InvalidInputError(f"{groups.n} groups for {n} samples: give the group of every sample")
        return groups

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.numbers)

    @cached_property
    def sizes(self) -> Int64[Tensor, " groups"]:
        """Number of samples in each group."""
        return torch.bincount(self.numbers)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def trivial(self) -> bool:
        """Whether every sample is a group of its own."""
        return self.count == self.n

    @cached_property
    def order(self) -> Int64[Tensor, " n"]:
        """Samples, group after group, in their order within each."""
        return self.numbers.argsort(stable=True)

    @cached_property
    def starts(self) -> Int64[Tensor, " groups_and_1"]:
        """Place in `order` at which each group starts, and n."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.sizes.cumsum(0)])

    def name(self, group: int) -> str:
        """Return the name of a group."""
        return self.names[group] if self.names else str(group)

    def members(self, group: int) -> Int64[Tensor, " size"]:
        """Return the samples of a group, in increasing order."""
        return self.order[int(self.starts[group]) : int(self.starts[group + 1])]

    def select(self, samples: Int64[Tensor, " m"]) -> "Groups":
        """Return the groups of a subset of the samples."""
        kept, numbers = torch.unique(self.numbers[samples], return_inverse=True)
        return Groups(numbers, tuple(self.name(int(group)) for group in kept) if self.names else ())

    def check(self, without: int | None = None) -> None:
        """Raise `InvalidInputError` for fewer than 4 groups, or a group with half of the samples or more.

        ``without`` is a group that is left out.
        """
        sizes, rest = self.sizes.clone(), ""
        if without is not None:
            sizes[without] = 0
            rest = f" without the group {self.name(without)}"
        count, n = int((sizes > 0).sum()), int(sizes.sum())
        if count < LEAST:
            groups = f"{count} group{rest} is" if count == 1 else f"{count} groups{rest} are"
            raise InvalidInputError(
                f"{groups} too few: samples of one group are not independent, and at least {LEAST} groups are needed"
            )
        largest = int(sizes.argmax())
        if 2 * int(sizes[largest]) >= n:
            raise InvalidInputError(
                f"the group {self.name(largest)} has {int(sizes[largest])} of {n} samples{rest}, half or more: too few "
                "pairs of different groups are left; divide the group, or leave out some of its samples"
            )

    def check_left_out(self) -> None:
        """Raise `InvalidInputError` if the groups cannot be left out one by one."""
        if self.count == LEAST:
            raise InvalidInputError(
                f"{self.count} groups are too few: each of them is left out once, so at least {LEAST + 1} are needed"
            )
        for without in self.sizes.argsort(descending=True, stable=True)[:2].tolist():
            self.check(without)

    def same(self, i: slice, j: slice, device: torch.device | None = None) -> Bool[Tensor, "i j"]:
        """Return whether the samples of rows i and of columns j are in the same group."""
        numbers = self.numbers if device is None else self._numbers_on(device)
        return numbers[i, None] == numbers[j]

    def sums(self, values: Float64[Tensor, "*layers n"]) -> Float64[Tensor, "*layers groups"]:
        """Return the sum of the values over each group."""
        total = values.new_zeros(*values.shape[:-1], self.count)
        return total.index_add_(-1, self._numbers_on(values.device), values)

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def _numbers_on(self, device: torch.device) -> Int64[Tensor, " n"]:
        """Return the numbers on a device, copied there once: a mask for each tile would be copied, too."""
        if device not in self._copies:
            self._copies[device] = self.numbers.to(device)
        return self._copies[device]

    def solve(self, s: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Solve (D + M) r = s: the offsets r of the centred kernel, from its row sums s over other groups."""
        sizes, numbers = self.sizes.to(s), self._numbers_on(s.device)
        u = 1 / (self.n - 2 * sizes)
        sigma = self.sums(s)
        S = (sigma @ u) / (1 + sizes @ u)
        rho = (sigma - sizes * S) * u
        return (s - S + rho[numbers]) / (self.n - sizes)[numbers]


GroupsLike = Groups | Sequence[int] | Sequence[str] | NDArray[Any] | Tensor
"""Groups, or one integer or text for each sample."""
