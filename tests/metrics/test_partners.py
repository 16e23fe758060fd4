"""Best partners and transport plans of units, against solvers that consider all pairs at once."""

import math
from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from repsim.metrics.algorithms.partners import best_partners, best_transport
from repsim.metrics.base import Array

SHAPES = [(1, 1), (1, 7), (6, 6), (5, 9), (9, 6), (12, 8), (7, 11), (40, 25)]


def gains(kind: str, p: int, q: int) -> Array:
    rng = np.random.default_rng(p * 100 + q)
    random = rng.normal(size=(p, q))
    kinds: dict[str, Array] = {
        "random": random,
        "zero": np.zeros((p, q)),
        "equal": np.full((p, q), 0.3),
        "few values": np.round(random),  # many plans are equally good
        "rank one": np.outer(rng.normal(size=p), rng.normal(size=q)),
        "small": 1e-9 * random,
        "large": 1e9 * random,
        "nearly equal": 0.5 + 1e-10 * random,
        "one partner for all": random + 10 * (np.arange(q) == 0),
    }
    return kinds[kind]


KINDS = ["random", "zero", "equal", "few values", "rank one", "small", "large", "nearly equal", "one partner for all"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_partners_are_those_of_the_whole_matrix(kind: str, p: int, q: int, dtype: torch.dtype) -> None:
    c = torch.from_numpy(gains(kind, p, q)).to(dtype)
    i, j = best_partners(c)
    assert len(set(i.tolist())) == len(set(j.tolist())) == len(i) == min(p, q)
    expected = c.double().numpy()[linear_sum_assignment(c.double().numpy(), maximize=True)].sum()
    assert c.double()[i, j].sum().item() == pytest.approx(expected, rel=1e-12, abs=1e-12 * float(c.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), SHAPES)
@pytest.mark.parametrize("partners", [1, 3, 100])
def test_a_plan_on_few_partners_is_the_best_of_all(
    tuned: Callable[..., None], kind: str, p: int, q: int, partners: int
) -> None:
    """The first partners allow a plan, but seldom the best: pairs are added until the potentials certify it."""
    tuned(transport_sparse_from=0, transport_partners=partners)
    c = gains(kind, p, q)
    plan = best_transport(torch.from_numpy(c))
    matrix = np.zeros((p, q))
    np.add.at(matrix, (plan.i.numpy(), plan.j.numpy()), plan.mass.numpy())
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1 / p, rtol=1e-12)
    np.testing.assert_allclose(matrix.sum(0), 1 / q, rtol=1e-12)
    total = math.lcm(p, q)
    dense = ot.emd(np.full(p, total / p), np.full(q, total / q), c.max() - c, numItermax=10**9) / total
    scale = float(np.abs(c).max())
    assert (matrix * c).sum() == pytest.approx((dense * c).sum(), abs=1e-11 * scale)


@pytest.mark.parametrize(("p", "q"), [(5, 9), (12, 8), (7, 11)])
def test_no_linear_program_finds_a_better_plan(tuned: Callable[..., None], p: int, q: int) -> None:
    tuned(transport_sparse_from=0, transport_partners=1)
    c = gains("random", p, q)
    plan = best_transport(torch.from_numpy(c))
    sums = np.vstack([np.kron(np.eye(p), np.ones(q)), np.kron(np.ones(p), np.eye(q))])
    program = linprog(-c.ravel(), A_eq=sums, b_eq=np.r_[np.full(p, 1 / p), np.full(q, 1 / q)])
    assert (plan.mass * torch.from_numpy(c)[plan.i, plan.j]).sum().item() == pytest.approx(-program.fun, abs=1e-9)


def test_a_large_plan_is_the_dense_one() -> None:
    """Wide enough for the plan on few partners without a change of its thresholds."""
    p, q = 600, 450
    c = gains("random", p, q)
    plan = best_transport(torch.from_numpy(c))
    total = math.lcm(p, q)
    dense = ot.emd(np.full(p, total / p), np.full(q, total / q), c.max() - c, numItermax=10**9) / total
    assert (plan.mass * torch.from_numpy(c)[plan.i, plan.j]).sum().item() == pytest.approx((dense * c).sum(), abs=1e-12)
