"""Exploratory: batch size, step size and the edge of stability. No published law predicts similarity.

Prediction
    None about similarity. Known is: gradient descent with step size s makes the loss sharper until the largest
    eigenvalue of its Hessian is about 2 / s, and stays at this edge of stability; small batches also end at flatter
    minima. Open is: at equal training loss, are networks that trained with large steps or small batches as similar to
    each other as those that trained with small steps on all pictures? How far are they from these?
Source
    Cohen, Kaur, Li, Kolter and Talwalkar (2021, arXiv 2103.00065) for the edge of stability; Keskar et al. (2017, arXiv
    1609.04836) for batches.
Measured
    Perceptrons with two hidden layers of 32 tanh units, squared error, 200 digits; training stops once the loss on all
    training pictures is below 0.03. Two series: all pictures at once with growing step size; and one step size
    with smaller batches. Debiased CKA of the second hidden layer on 400 test pictures: between seeds, and with the
    network that started from the same weights and took the smallest step on all pictures. Sharpness: largest eigenvalue
    of the Hessian of the loss of all training pictures. Intervals over independent pairs of seeds.
Refutation
    Nothing is predicted, so nothing can be refuted. A claim to test on other data would be a trend that is stated below
    and whose interval excludes 0; a larger study in which it is absent would refute it.
Result
    What was seen, 5 pairs. Below the edge the step size does not matter: networks from one start are equal (CKA 1.000)
    at steps of 0.05 and 0.1. At the edge (sharpness times step / 2 is 0.92) they have left the path of small steps:
    0.81 at a step of 0.3, with sharpness 6 instead of 10. Small batches do the same more gently: 0.93 with batch 10,
    with sharpness 8. Similarity between seeds does not change beyond its interval in either series; a change by
    0.1 would not have been noticed.
"""

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from shared import Numbers, band, finish, interval, log_axis, main, panels, show, table
from torch import Tensor
from training import Pictures, Weights, accuracy, initialise, outputs, perceptron, pictures, squared_error, train

import repsim

COUNT, WIDTH, GOAL = 200, 32, 0.03
STEP_SIZES = (0.05, 0.1, 0.2, 0.3)
BATCHES = (COUNT, 50, 20, 10)
BATCH_STEP = 0.1
WAYS = [("step size", size, COUNT) for size in STEP_SIZES] + [("batch", BATCH_STEP, batch) for batch in BATCHES[1:]]
QUICK_WAYS = [WAYS[k] for k in (1, 3, 6)]
PAIRS, QUICK_PAIRS = 5, 3
MOST_STEPS = 6000
POWER_STEPS = 50
tanh = partial(perceptron, activation=torch.tanh)


def sharpness(weights: Weights, data: Pictures) -> float:
    """Return the largest eigenvalue of the Hessian of the loss, by power iteration."""
    loss = squared_error(tanh(weights, data.x)[-1], data.y)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    value = 0.0
    for _ in range(POWER_STEPS):
        norm = sum(float((a * a).sum()) for a in v) ** 0.5
        v = [a / norm for a in v]
        product = torch.autograd.grad(gradients, weights, v, retain_graph=True)
        value = float(sum((a * b).sum() for a, b in zip(v, product, strict=True)))
        v = list(product)
    return value


def network(data: Pictures, seed: int, step_size: float, batch: int) -> tuple[Tensor, dict[str, float]]:
    """Train until the loss of all training pictures is low; return the second hidden layer, and facts."""
    weights = [w.requires_grad_() for w in initialise([64, WIDTH, WIDTH, 10], seed)]
    optimizer = torch.optim.SGD(weights, step_size)
    training = train(weights, data, optimizer, batch=batch, seed=seed, forward=tanh, loss=squared_error)
    loss = float("inf")
    for step, loss_of_batch in enumerate(training):
        if batch == len(data.x):
            loss = loss_of_batch
        elif step % 5 == 0:  # the loss of all pictures costs more than the step
            loss = float(squared_error(outputs(weights, data.x, tanh)[-1], data.y))
        if loss < GOAL:
            break
        assert step < MOST_STEPS, f"step size {step_size}, batch {batch}: the loss is still {loss:.3f}"
    _, layer, logits = outputs(weights, data.test_x, tanh)
    sharp = sharpness(weights, data)
    facts = {"steps": step, "sharpness": sharp, "times_step": sharp * step_size / 2}
    return layer, facts | {"accuracy": accuracy(logits, data.test_y)}


def measure(quick: bool) -> Numbers:
    """Train pairs of networks in every way, all from the same starts, to the same loss."""
    data = pictures(COUNT)
    ways = QUICK_WAYS if quick else WAYS
    results = []
    for pair in range(QUICK_PAIRS if quick else PAIRS):
        reference: list[Tensor] = []
        rows = []
        for _, size, batch in ways:
            layers, facts = zip(*(network(data, 2 * pair + k, size, batch) for k in range(2)), strict=True)
            reference = reference or list(layers)
            row = {name: float(np.mean([one[name] for one in facts])) for name in facts[0]}
            row["seeds"] = repsim.similarity(*layers)
            row["same_start"] = float(np.mean([repsim.similarity(*two) for two in zip(layers, reference, strict=True)]))
            rows.append(row)
        results.append(rows)
    values = {name: np.array([[row[name] for row in rows] for rows in results]) for name in results[0][0]}
    ends = {"step size": (0, ways.index(WAYS[3])), "batch": (ways.index(("step size", BATCH_STEP, COUNT)), -1)}
    changes = {
        series: {name: interval(values[name][:, last] - values[name][:, first]) for name in ("seeds", "sharpness")}
        for series, (first, last) in ends.items()
    }
    return {
        "ways": [
            {"series": series, "step_size": size, "batch": batch}
            | {name: interval(column[:, k]) for name, column in values.items()}
            for k, (series, size, batch) in enumerate(ways)
        ],
        "changes": changes,
    }


def report(numbers: Numbers) -> str:
    """Return the table of all ways to train."""
    rows = [
        {
            "step size": f"{row['step_size']:g}",
            "batch": row["batch"],
            "steps": show(row["steps"][0], 0),
            "sharpness": show(row["sharpness"], 1),
            "sharpness x step / 2": show(row["times_step"][0], 2),
            "CKA between seeds": show(row["seeds"]),
            "CKA, same start": show(row["same_start"]),
            "accuracy": show(row["accuracy"], 3),
        }
        for row in numbers["ways"]
    ]
    changes = [
        f"{series}: CKA between seeds {show(change['seeds'])}, sharpness {show(change['sharpness'], 1)}"
        for series, change in numbers["changes"].items()
    ]
    return f"{table(rows)}\n\nChange from the first to the last of a series: {'; '.join(changes)}"


def draw(numbers: Numbers) -> Figure:
    """Draw similarity by step size, and by batch."""
    y = "debiased CKA"
    upper, lower = panels(("step size, all pictures", y), (f"batch, step size {BATCH_STEP:g}", y), height=1.3)
    full = [row for row in numbers["ways"] if row["series"] == "step size"]
    start = [row for row in full if row["step_size"] == BATCH_STEP]
    small = start + [row for row in numbers["ways"] if row["series"] == "batch"]
    names = {"seeds": "between seeds", "same_start": "same start, smallest step"}
    for k, (name, text) in enumerate(names.items()):
        band(upper, [row["step_size"] for row in full], [row[name] for row in full], k)
        band(lower, [row["batch"] for row in small], [row[name] for row in small], k, text)
    log_axis(upper, STEP_SIZES)
    log_axis(lower, BATCHES)
    return finish([upper, lower])


if __name__ == "__main__":
    main(__file__, measure, report, draw)
