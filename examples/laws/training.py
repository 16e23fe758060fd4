"""Networks and training for the laws: perceptrons on handwritten digits, in float64.

Training amplifies rounding errors. In float64 they stay below the digits that the laws report, whatever the number of
threads. Random numbers come from generators with fixed seeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from shared import Floats, digits
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

import repsim

Weights = list[Tensor]
Forward = Callable[[Weights, Tensor], list[Tensor]]
"""Function of weights and inputs that returns the output of every layer."""


@dataclass(frozen=True)
class Pictures:
    """Digits to train on, and others on which networks are tested and compared: x (n, 64), classes y (n,)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def pictures(train: int = 1200, test: int = 400) -> Pictures:
    """Return digits in a fixed random order, centred, with mean square 1 over pixels; the test pictures come last."""
    pixels, classes = digits()
    order = np.random.default_rng(0).permutation(len(pixels))
    x, y = torch.tensor(pixels[order]), torch.tensor(classes[order])
    x = x - x[:-test].mean(0)
    x = x / x[:-test].square().mean().sqrt()
    return Pictures(x[:train], y[:train], x[-test:], y[-test:])


def initialise(sizes: Sequence[int], seed: int) -> Weights:
    """Draw weights of a perceptron with these layer sizes: normal, with variance 2 / inputs (He et al. 2015)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p, q, generator=generator, dtype=torch.float64) * (2 / p) ** 0.5 for p, q in pairwise(sizes)]


def perceptron(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> list[Tensor]:
    """Return all layers of a perceptron without biases; the last layer is linear."""
    outputs = []
    for w in weights[:-1]:
        x = activation(x @ w)
        outputs.append(x)
    return [*outputs, x @ weights[-1]]


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Return half of the mean squared distance to the one-hot classes, as in Cohen et al. (2021)."""
    return (outputs - one_hot(y, 10)).square().sum(1).mean() / 2


def batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield random batches of equal size without end, epoch after epoch; all samples in order if they fit into one."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator) if size < n else torch.arange(n)
        size = min(size, n)
        yield from order[: n - n % size].split(size)


def train(
    weights: Weights,
    data: Pictures,
    optimizer: torch.optim.Optimizer,
    *,
    batch: int,
    seed: int,
    forward: Forward = perceptron,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Iterator[float]:
    """Train weights in place, without end, and yield the loss of the batch before each step."""
    for rows in batches(len(data.x), batch, seed):
        optimizer.zero_grad()
        value = loss(forward(weights, data.x[rows])[-1], data.y[rows])
        value.backward()
        yield value.item()
        optimizer.step()


def adam(weights: Weights, rates: Sequence[float]) -> torch.optim.Optimizer:
    """Return Adam with a learning rate for each layer."""
    groups: list[dict[str, Any]] = []
    for w, rate in zip(weights, rates, strict=True):
        groups.append({"params": [w.requires_grad_()], "lr": rate})
    return torch.optim.Adam(groups)


def run(training: Iterator[float], steps: int) -> float:
    """Do this many steps, and return the loss of the batch after them."""
    return next(islice(training, steps, None))


@torch.no_grad()
def outputs(weights: Weights, x: Tensor, forward: Forward = perceptron) -> list[Tensor]:
    """Return all layers for these inputs, without gradients."""
    return forward(weights, x)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Return the share of samples whose largest output is that of their class."""
    return (logits.argmax(1) == y).double().mean().item()


def similarities(a: Sequence[Tensor], b: Sequence[Tensor], metric: str = "cka") -> Floats:
    """Compare all layers of a with all layers of b: each layer is prepared once."""
    measure = repsim.metrics.get(metric)
    prepare = measure.recipe_for("features")
    values: Floats = measure.block([prepare(x) for x in a], [prepare(x) for x in b])
    return values
