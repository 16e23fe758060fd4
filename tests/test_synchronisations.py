"""The host waits for the device a few times for a layer or a unit of work, and never for a tile, pair or permutation.

On a GPU every number that Python reads, and every index by a mask, waits until all earlier work has finished. They are
counted on a simulated GPU.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import repsim
from repsim import metrics
from repsim.engine import permutation
from repsim.engine.shared_directions import truncate_jointly
from repsim.engine.subsampling import subsampled
from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.krylov import leading_by_krylov
from repsim.metrics.recipes.rows import Centred, column_means
from tests.simulated_device import NAME, SimulatedDevice

N = 120
Waits = Callable[[Callable[[], object]], int]


@pytest.fixture(autouse=True)
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as simulated:
        yield simulated


@pytest.fixture
def waits(device: SimulatedDevice) -> Waits:
    """Return a function that counts how often the host waits during some work."""

    def count(work: Callable[[], object]) -> int:
        before = len(device.waited)
        with torch.no_grad():
            work()
        return len(device.waited) - before

    return count


@pytest.fixture
def layers(rng: np.random.Generator) -> list[Tensor]:
    signal = rng.standard_normal((N, 6))
    widths = (8, 40, 64, 33)
    return [
        torch.from_numpy(signal @ rng.standard_normal((6, p)) + rng.standard_normal((N, p)) / 3).float().to(NAME)
        for p in widths
    ]  # fmt: skip


def test_the_count_sees_what_a_gpu_would_wait_for(waits: Waits) -> None:
    x = torch.arange(4.0).to(NAME)
    for work in (
        lambda: float(x[0]), lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 1], x.nonzero, x.cpu,
        x.tolist,
    ):  # fmt: skip
        assert waits(work) == 1
    assert waits(lambda: x[torch.tensor([0, 2])] @ x[:2]) == 0


def test_tensors_of_two_devices_do_not_meet() -> None:
    x, y = torch.ones(3).to(NAME), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        x + y
    with pytest.raises(RuntimeError, match="same device"):
        y[x.long()]
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_sweep_waits_once_for_a_unit_whatever_the_number_of_tiles(
    layers: list[Tensor], grouped: bool, waits: Waits
) -> None:
    cka = CKA()
    groups = Groups.of(np.arange(N) // 3) if grouped else None
    factors = [cka.recipe(x).grouped(groups) for x in layers]
    counts = {}
    for tile in (10, 40):
        sweep = GramSweep(factors[:2], factors[1:], [cka], panel=40, tile=tile)
        list(sweep.parts([0]))  # what is made once
        counts[tile] = waits(lambda: list(sweep.parts(sweep.order)))  # noqa: B023
    assert counts[10] == counts[40] <= 2 * sweep.units


@pytest.mark.parametrize("spec", ["mutual_knn", "jaccard_knn", "rank_similarity", "cycle_knn", "cknna"])
def test_neighbours_of_a_row_of_pairs_are_fetched_at_once(spec: str, layers: list[Tensor], waits: Waits) -> None:
    metric = metrics.get(spec)
    factors = [metric.recipe(x) for x in layers]
    metric.block(factors, factors)  # what is computed once a layer
    for a in factors:
        for b in factors:
            metric.chance(a, b)
    counts = [waits(lambda: metric.block(factors[:2], factors[:count])) for count in (1, 4)]  # noqa: B023
    assert counts[0] == counts[1] <= 2 * 2  # to the CPU, and to numpy
    assert waits(lambda: [metric.chance(a, b) for a in factors for b in factors]) <= 2 * len(factors) ** 2


def test_preparing_neighbours_does_not_wait_for_pieces(
    layers: list[Tensor], tuned: Callable[..., None], waits: Waits
) -> None:
    recipe, counts = metrics.get("mutual_knn").recipe, []
    for piece in (64, 2**19):
        tuned(piece=piece)
        counts.append(waits(lambda: recipe(layers[1])))
    assert counts[0] == counts[1] <= 20


@pytest.mark.parametrize("how", ["directions", "features", "groups"])
def test_permutations_are_fetched_together(how: str, layers: list[Tensor], waits: Waits) -> None:
    cka = CKA()
    groups = Groups.of(np.arange(N) // 3) if how == "groups" else None
    factors = [cka.recipe(x).grouped(groups) for x in layers]
    if how == "directions":
        factors = truncate_jointly(factors)
    work = permutation._from_features if how == "features" else permutation._from_directions
    if how == "groups":
        work = permutation._from_features
    names = None if groups is None else groups.numbers.numpy()
    counts = []
    for count in (5, 60):
        orders = torch.from_numpy(repsim.random_permutations(N, count, groups=names))
        counts.append(waits(lambda: work(factors[:2], factors[2:], cka, orders, progress=None)))  # noqa: B023
    assert counts[1] <= counts[0]  # the first call also looks at the layers, once


def test_subsamples_are_not_counted_row_by_row(layers: list[Tensor], waits: Waits) -> None:
    cka, counts = CKA(), []
    for n in (60, N):
        factors = [cka.recipe(x[:n]) for x in layers]
        samples = torch.from_numpy(repsim.random_subsamples(n, 40, 3))
        counts.append(waits(lambda: subsampled(factors[:2], factors[2:], cka, samples, memory=2**28)))  # noqa: B023
    assert counts[0] == counts[1]


def test_a_krylov_space_does_not_wait_for_pieces(
    layers: list[Tensor], tuned: Callable[..., None], waits: Waits
) -> None:
    mean, peak = column_means(layers[2])
    x, counts = Centred(layers[2], mean, peak, torch.float64), []
    for piece in (64, 2**19):
        tuned(piece=piece, krylov_block=4)
        counts.append(waits(lambda: leading_by_krylov(x, 0.5, 1e-6)))
    assert counts[0] == counts[1]


def test_components_are_counted_once_a_layer(layers: list[Tensor], waits: Waits) -> None:
    svcca = metrics.get("svcca")
    factors = [svcca.recipe(x) for x in layers]
    svcca.block(factors, factors)
    assert waits(lambda: [svcca.caution(a, b) for a in factors for b in factors]) == 0
    assert (
        waits(lambda: svcca.block(factors, factors)) <= 5 * len(factors) * (len(factors) + 1) / 2
    )  # a value, and its bound
