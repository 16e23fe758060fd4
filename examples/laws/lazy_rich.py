"""Lazy and rich training: the scale of the output decides whether seeds come to agree.

Setting
    A perceptron f with one hidden layer of 128 rectified units learns the digits by gradient descent on the
    cross-entropy of scale * (f - f at the start), until the loss is 0.02. The step is inversely proportional to scale^2
    (to the scale below 1), so that functions of all scales change at similar rates.
Prediction
    With a large scale, a small change of the weights fits the data. Training is lazy: it is linear regression on
    features of the start. With a small scale, the weights have to move, and the data shape them. So with the scale:

    1. CKA of the hidden layer before and after training tends to 1.
    2. CKA between two trained seeds tends to that between two untrained seeds. It is higher only in the rich regime.
    3. Accuracy is nearly the same. It does not tell the two regimes apart.
Source
    Chizat, Oyallon, Bach, On lazy training in differentiable programming, arXiv:1812.07956 (2019). The second statement
    follows from the first; that rich seeds agree more is observed, not derived.
Measured
    Debiased CKA (`repsim.similarity`) of hidden layers on 797 digits that were not trained on. Two seeds of a pair are
    in no other pair.
Refutation
    A similarity before and after training that falls with the scale, or is below 0.99 at scale 10; a similarity between
    seeds that rises with the scale, or that differs by more than 0.01 from that of untrained seeds at scale 10;
    accuracies that differ by more than 0.02.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from shared import Numbers, band, digits, finish, interval, log_axis, main, panels, show, table
from torch import Tensor
from torch.nn.functional import cross_entropy

import repsim

SCALES = (0.03, 0.1, 0.3, 1.0, 10.0)
WIDTH, TRAINED, STEP, LOSS = 128, 1000, 0.5, 0.02


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixels and classes to train on, and others; in a fixed random order, with mean 0 and mean square 1."""
    x, classes = digits()
    order = np.random.default_rng(0).permutation(len(x))
    pixels = torch.tensor(x[order] - x.mean(0))
    y = torch.tensor(classes[order])
    pixels = pixels / pixels.square().mean().sqrt()
    return pixels[:TRAINED], y[:TRAINED], pixels[TRAINED:], y[TRAINED:]


def start(seed: int) -> tuple[Tensor, Tensor]:
    """Draw the weights (64, width) and (width, 10) at the start."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64) * (2 / 64) ** 0.5
    return first, torch.randn(WIDTH, 10, generator=generator, dtype=torch.float64) / WIDTH**0.5


def train(scale: float, seed: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both weight matrices after training to the same loss."""
    first, last = (w.requires_grad_() for w in start(seed))
    at_start = (torch.relu(x @ first) @ last).detach()
    step = STEP / (scale * max(scale, 1))
    loss = torch.tensor(torch.inf)
    while loss > LOSS:
        loss = cross_entropy(scale * (torch.relu(x @ first) @ last - at_start), y)
        for w, gradient in zip((first, last), torch.autograd.grad(loss, (first, last)), strict=True):
            w.data -= step * gradient
    return first.detach(), last.detach()


def measure(quick: bool) -> Numbers:
    """Train several seeds at every scale."""
    x, y, test_x, test_y = data()
    seeds = range(4 if quick else 8)

    def between(layers: list[Tensor]) -> list[float]:
        return interval([repsim.similarity(a, b) for a, b in zip(layers[::2], layers[1::2], strict=True)])

    weights = [start(seed) for seed in seeds]
    before = [torch.relu(test_x @ first) for first, _ in weights]
    rows = []
    for scale in SCALES:
        after, accuracies = [], []
        for seed in seeds:
            first, last = train(scale, seed, x, y)
            after.append(torch.relu(test_x @ first))
            change = after[-1] @ last - before[seed] @ weights[seed][1]
            accuracies.append((change.argmax(1) == test_y).double().mean().item())
        rows.append(
            {
                "scale": scale,
                "moved": interval([repsim.similarity(a, b) for a, b in zip(before, after, strict=True)]),
                "seeds": between(after),
                "accuracy": interval(accuracies),
            }
        )
    return {"seeds": len(seeds), "untrained": between(before), "rows": rows}


def report(numbers: Numbers) -> str:
    """Return the table over scales."""
    rows = [
        {
            "scale": f"{r['scale']:g}",
            "CKA before and after": show(r["moved"]),
            "CKA between seeds": show(r["seeds"]),
            "accuracy": show(r["accuracy"]),
        }
        for r in numbers["rows"]
    ]
    return f"{numbers['seeds']} seeds. CKA between untrained seeds: {show(numbers['untrained'])}\n\n{table(rows)}"


def draw(numbers: Numbers) -> Figure:
    """Draw both similarities along the scale."""
    (ax,) = panels(("scale of the output", "CKA of hidden layers"))
    rows = numbers["rows"]
    scales = [row["scale"] for row in rows]
    band(ax, scales, [row["moved"] for row in rows], 0, "before and after training")
    band(ax, scales, [row["seeds"] for row in rows], 1, "between trained seeds")
    ax.axhline(numbers["untrained"][0], color="0.4", linewidth=0.8, linestyle="--", label="between untrained seeds")
    log_axis(ax, scales)
    return finish([ax], "Bands: 95 % intervals over seeds, or over pairs of seeds.")


if __name__ == "__main__":
    main(__file__, measure, report, draw)
