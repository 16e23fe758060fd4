"""Coverage of intervals for samples in groups, and of similarity within classes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from repsim.metrics.recipes.groups import Groups
from repsim.study.indices import RAW
from simulations.cells import ANY, COVERAGE, Cell, Numbers, Simulation
from simulations.populations import covered
from simulations.studies import Array, families, gram_kernels, inference, places


def grouped_layers(rng: np.random.Generator, n: int, size: int, *, related: bool) -> list[Array]:
    """Draw two layers of 20 latents of their own and, if related, 20 that they share; within groups, latents are alike.

    The latents of two samples of a group have a correlation of .9. The CKA of related layers is 1 / (1 + 0.7^4).
    """

    def latents() -> Array:
        common = np.repeat(rng.normal(size=(n // size, 20)), size, 0)
        return np.asarray(np.sqrt(0.9) * common + np.sqrt(0.1) * rng.normal(size=(n, 20)))

    shared = [latents()] if related else []
    return [np.hstack([*shared, 0.7 * latents()]) for _ in range(2)]


def grouped(simulation: Simulation, n: int = 400) -> Iterator[Cell]:
    """Yield how often intervals hold the truth for samples in groups, declared or not."""
    part, design = f"samples in groups, n = {n}", families(2, 1, 0, layers=1)
    cases = (
        [(True, 2)] if simulation.quick else [(related, size) for related in (True, False) for size in (1, 2, 4, 10)]
    )
    for related, size in cases:
        truth = 1 / (1 + 0.7**4) if related else 0.0
        row = f"{'related' if related else 'unrelated'} layers, groups of {size}"

        def one(run: int, related: bool = related, size: int = size, truth: float = truth) -> Numbers:
            layers = grouped_layers(np.random.default_rng([8, related, size, run]), n, size, related=related)
            declared = Groups.of(np.repeat(np.arange(n // size), size).tolist())
            numbers = dict[str, float]()
            for name, groups in {"declared": declared if size > 1 else None, "not declared": None}.items():
                if name == "declared" or size > 1:
                    study = inference(design, gram_kernels(layers, places(design, 0), groups), run)
                    estimate = study.estimate({study.column(RAW, design.pairs[0]): 1.0}, RAW)
                    numbers |= {name: covered(estimate.low, truth, estimate.high), f"mean, {name}": estimate.value}
            return numbers

        numbers = simulation.runs(f"groups {row}", 10 if simulation.quick else 500, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["declared"]), form="{:,}")
        yield Cell(part, row, "truth", truth, form="{:.3f}")
        for name in ("declared", "not declared"):
            if name in numbers:
                bounds = COVERAGE if name == "declared" else ANY
                yield Cell(part, row, f"mean, groups {name}", float(numbers[f"mean, {name}"].mean()), form="{:.3f}")
                yield Cell(part, row, f"interval holds the truth, {name}", float(numbers[name].mean()), *bounds)


def layers_of_classes(rng: np.random.Generator, classes: NDArray[np.int64], *, related: bool) -> list[Array]:
    """Draw two layers of class means, which are three times as large, 10 latents of their own and 10 that both share.

    Within classes, the CKA of related layers is 1 / (1 + 0.7^4); class means are the same in both layers.
    """
    n, means = len(classes), 3 * rng.normal(size=(int(classes.max()) + 1, 5))
    shared = [rng.normal(size=(n, 10))] if related else []
    return [np.hstack([means[classes], *shared, 0.7 * rng.normal(size=(n, 10))]) for _ in range(2)]


def within(simulation: Simulation, n: int = 400) -> Iterator[Cell]:
    """Yield how often intervals hold the similarity within classes."""
    part, design = f"similarity within classes, n = {n}", families(2, 1, 0, layers=1)
    cases = (
        [(True, 10)] if simulation.quick else [(related, count) for related in (True, False) for count in (5, 10, 100)]
    )
    for related, count in cases:
        truth = 1 / (1 + 0.7**4) if related else 0.0
        row = f"{'related' if related else 'unrelated'} layers, {count} classes"

        def one(run: int, related: bool = related, count: int = count, truth: float = truth) -> Numbers:
            rng = np.random.default_rng([9, related, count, run])
            classes = rng.integers(0, count, n)
            kernels = gram_kernels(layers_of_classes(rng, classes, related=related), places(design, 0))
            study = inference(design, replace(kernels, classes=Groups.of(classes)), run)
            estimate = study.estimate({study.column("labels", design.pairs[0]): 1.0}, "labels")
            raw = study.estimate({study.column(RAW, design.pairs[0]): 1.0}, RAW)
            inside = covered(estimate.low, truth, estimate.high)
            return {"inside": inside, "mean": estimate.value, "raw": raw.value}

        numbers = simulation.runs(f"classes {row}", 10 if simulation.quick else 500, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["inside"]), form="{:,}")
        yield Cell(part, row, "truth", truth, form="{:.3f}")
        yield Cell(part, row, "mean given the labels", float(numbers["mean"].mean()), form="{:.3f}")
        yield Cell(part, row, "interval holds the truth", float(numbers["inside"].mean()), *COVERAGE)
        yield Cell(part, row, "mean without control", float(numbers["raw"].mean()), form="{:.3f}")
