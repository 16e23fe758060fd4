"""Best one-to-one partners, and best transport plans, between the units of two layers."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.rows import float64_device
from repsim.runtime import tuning

_OPTIMAL = 1e-12
"""Share of the largest gain, a unit of mass, by which another plan may be better: rounding errors of the potentials."""
_NEARLY = 0.5
"""Share of the largest increase by which pairs may miss it, and are added, too: saves half of the rounds."""
_PIVOTS = 10**9
"""Limit for the steps of the network simplex method, never reached."""


def best_partners(gains: Float[Tensor, "p q"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Return one-to-one partners, rows i and columns j, with the largest sum of gains.

    The solver takes half the time if it needs no copy: it minimises, and there are no more rows than columns.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes long to import

    transposed = gains.shape[0] > gains.shape[1]
    short = gains.detach().T if transposed else gains.detach()
    costs = short.to("cpu").contiguous().to(torch.float64, copy=True).neg_()
    i, j = (torch.from_numpy(k).to(gains.device) for k in linear_sum_assignment(costs.numpy()))
    return (j, i) if transposed else (i, j)


class Transport(NamedTuple):
    """Optimal transport plan between units of equal weights: the entries that are not 0; all masses sum to 1."""

    i: Int64[Tensor, " k"]
    j: Int64[Tensor, " k"]
    mass: Float64[Tensor, " k"]


def best_transport(gains: Float[Tensor, "p q"]) -> Transport:
    """Return the transport plan T between p and q units of equal weights with the largest sum of T x gains.

    The solver works with integer masses, so that no flow is lost to rounding. Of a large matrix only the best partners
    of every unit are considered first. The dual potentials of this plan show whether a pair of other units would
    increase the sum. Such pairs, and those that nearly would, are added until there are none, so the plan is optimal
    among all.
    """
    import ot  # noqa: PLC0415 - takes seconds to import
    from scipy.sparse import coo_matrix  # noqa: PLC0415 - takes long to import

    place, gains = float64_device(gains.device), gains.detach().to("cpu")
    p, q = gains.shape
    total = math.lcm(p, q)
    weights = np.full(p, total / p), np.full(q, total / q)
    in_float64 = gains.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    costs: NDArray[np.float64] = (in_float64.neg_().add_(gains.max())).numpy()  # the solver expects costs of 0 or more
    plan = None
    if p * q >= tuning.current().transport_sparse_from:
        plan = _on_candidates(costs, weights, _candidates(gains), _OPTIMAL * float(gains.abs().max()))
    if plan is None:
        plan = coo_matrix(ot.emd(*weights, costs, numItermax=_PIVOTS))
    entries = plan.row, plan.col, plan.data / total
    i, j, mass = (torch.from_numpy(np.ascontiguousarray(numbers)).to(place) for numbers in entries)
    return Transport(i.long(), j.long(), mass)


def _on_candidates(
    costs: NDArray[np.float64],
    weights: tuple[NDArray[np.float64], NDArray[np.float64]],
    allowed: Bool[Tensor, "p q"],
    tolerance: float,
) -> Any:
    """Return the best plan as a sparse matrix; None if rounding errors prevent the certificate that it is the best."""
    import ot  # noqa: PLC0415 - takes seconds to import
    from scipy.sparse import coo_matrix  # noqa: PLC0415 - takes long to import

    while True:
        i, j = (k.numpy() for k in allowed.nonzero(as_tuple=True))
        arcs = coo_matrix((costs[i, j], (i, j)), shape=costs.shape)
        plan, log = ot.emd(*weights, arcs, numItermax=_PIVOTS, log=True)
        reduced = costs - log["u"][:, None]
        reduced -= log["v"]
        worst = float(reduced.min())
        if worst >= -tolerance:
            return plan
        nearly = torch.from_numpy(reduced < -_NEARLY * worst)
        if not bool((nearly & ~allowed).any()):
            return None
        allowed |= nearly


def _candidates(gains: Float[Tensor, "p q"]) -> Bool[Tensor, "p q"]:
    """Return the best partners of every unit of either side, and the pairs of one plan that satisfies all masses."""
    p, q = gains.shape
    count = tuning.current().transport_partners
    allowed = torch.zeros(p, q, dtype=torch.bool)
    for side, into in ((gains, allowed), (gains.T.contiguous(), allowed.T)):
        into.scatter_(1, side.topk(min(count, side.shape[1]), 1, sorted=False).indices, value=True)
    total = math.lcm(p, q)
    i, j = total // p, total // q  # masses of units; the plan goes from the first units to the last
    starts = torch.cat([torch.arange(0, total, i), torch.arange(0, total, j)])
    allowed[starts // i, starts // j] = True
    return allowed


def cost_of_assignment(p: int, q: int) -> Cost:
    """Return the approximate cost of `best_partners`, as measured on correlations of layers."""
    short, long = sorted((p, q))
    return Cost(touched=6.0 * short * long + 0.012 * short * short * long)


def cost_of_transport(p: int, q: int) -> Cost:
    """Return the approximate cost of `best_transport`, as measured on correlations of layers."""
    return Cost(touched=42.0 * p * q + 5.6 * (p + q) ** 2)
