"""Neural collapse: long after the last training error, the last layer forgets all but the class.

Setting
    Perceptrons with three hidden layers of 128 units and batch normalisation, as in the networks of the source, learn
    500 digits by stochastic gradient descent with momentum and weight decay, for 256 epochs with a decaying step.
Prediction
    Training past zero error, the representation of the last hidden layer collapses to one point per class, and these
    points become the corners of a regular simplex. Its kernel is then, after centring, the kernel of the classes: 1 for
    two samples of one class, 0 otherwise. On the training data,

    1. CKA with the one-hot classes goes on rising after the epoch at which the training error is 0, and tends to 1.
    2. Therefore CKA between seeds does, too.
Source
    Papyan, Han, Donoho, Prevalence of neural collapse during the terminal phase of deep learning training,
    arXiv:2008.08186 (2020). The second statement follows from the first.
Measured
    Debiased CKA (`repsim.similarity`) of the last hidden layer on the training data, with the classes and between
    seeds; two seeds of a pair are in no other pair. Also without batch normalisation, where the prediction *fails* at
    this length of training: CKA with the classes stays at 0.72, although the error is 0 and seeds come to agree.
    Agreement of seeds alone is therefore no evidence of collapse.
Refutation
    With batch normalisation: from epoch 8, at which all training errors are 0, to the end, the distance of either
    similarity to 1 shrinks by less than a factor of 3; or an end below 0.97.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from shared import Numbers, band, digits, finish, interval, log_axis, main, panels, show, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import repsim

EPOCHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COUNT, BATCH, WIDTH, STEP, DECAY = 500, 100, 128, 0.1, 2e-3


def data() -> tuple[Tensor, Tensor]:
    """Return pixels and classes to train on, with mean 0 and mean square 1."""
    x, classes = digits()
    order = np.random.default_rng(0).permutation(len(x))[:COUNT]
    pixels = torch.tensor((x - x.mean(0))[order])
    return pixels / pixels.square().mean().sqrt(), torch.tensor(classes[order])


def build(normalised: bool) -> nn.Sequential:
    """Return the hidden layers followed by the classifier."""
    layers: list[nn.Module] = []
    for inputs in (64, WIDTH, WIDTH):
        layers.append(nn.Linear(inputs, WIDTH))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")  # type: ignore[arg-type]
        layers += [nn.BatchNorm1d(WIDTH)] * normalised + [nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(WIDTH, 10)).double()


def train(x: Tensor, y: Tensor, seed: int, normalised: bool) -> tuple[list[Tensor], int]:
    """Return the last hidden layer of the training data at the recorded epochs, and the first epoch without errors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(normalised)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=STEP, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS[-1])
    layers, without_errors = [], 0
    for epoch in range(1, EPOCHS[-1] + 1):
        net.train()
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
        if epoch in EPOCHS or not without_errors:
            net.eval()
            with torch.no_grad():
                hidden = net[0](x)
                if not without_errors and bool((net[1](hidden).argmax(1) == y).all()):
                    without_errors = epoch
            layers += [hidden] * (epoch in EPOCHS)
    return layers, without_errors


def measure(quick: bool) -> Numbers:
    """Train several seeds with and without batch normalisation."""
    x, y = data()
    classes = one_hot(y, 10).double()
    seeds = range(4 if quick else 8)
    numbers: Numbers = {"seeds": len(seeds), "epochs": EPOCHS}
    for kind, normalised in (("normalised", True), ("not_normalised", False)):
        runs, ends = zip(*(train(x, y, seed, normalised) for seed in seeds), strict=True)
        by_epoch = list(zip(*runs, strict=True))
        pairs = [list(zip(layers[::2], layers[1::2], strict=True)) for layers in by_epoch]
        numbers[kind] = {
            "without_errors": list(ends),
            "classes": [interval([repsim.similarity(layer, classes) for layer in layers]) for layers in by_epoch],
            "seeds": [interval([repsim.similarity(a, b) for a, b in layers]) for layers in pairs],
        }
    return numbers


def report(numbers: Numbers) -> str:
    """Return the table over epochs."""
    with_it, without = numbers["normalised"], numbers["not_normalised"]
    rows = [
        {
            "epoch": epoch,
            "CKA with the classes": show(with_it["classes"][k]),
            "between seeds": show(with_it["seeds"][k]),
            "with the classes, no batch norm": show(without["classes"][k]),
            "between seeds, no batch norm": show(without["seeds"][k]),
        }
        for k, epoch in enumerate(numbers["epochs"])
    ]
    ends = [f"{min(kind['without_errors'])} to {max(kind['without_errors'])}" for kind in (with_it, without)]
    head = f"{numbers['seeds']} seeds. First epoch without training errors: {ends[0]}; without batch norm {ends[1]}."
    return f"{head}\n\n{table(rows)}"


def draw(numbers: Numbers) -> Figure:
    """Draw both similarities along epochs, above with and below without batch normalisation."""
    axes = panels(("epoch", "CKA, batch norm"), ("epoch", "CKA, no batch norm"), height=1.5)
    for ax, kind in zip(axes, ("normalised", "not_normalised"), strict=True):
        values = numbers[kind]
        band(ax, numbers["epochs"], values["classes"], 0, "last layer and classes")
        band(ax, numbers["epochs"], values["seeds"], 1, "two seeds")
        ax.axvline(max(values["without_errors"]), color="0.5", linewidth=0.8, linestyle=":", label="no training errors")
        log_axis(ax, numbers["epochs"])
        ax.set_ylim(0.4, 1.02)
    return finish(axes, "Training data, last hidden layer. Bands: 95 % intervals over seeds, or over pairs of seeds.")


if __name__ == "__main__":
    main(__file__, measure, report, draw)
