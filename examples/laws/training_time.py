"""Training time: layers align early, from the bottom up, and much of their likeness is the input.

Prediction
    1. Nearly all of the final alignment between two networks arises early in training, before accuracy is final.
    2. Layers reach their final form from the bottom up: the lower the layer, the earlier.
    3. Networks share their inputs, so part of the likeness is there without any learning: what remains given the input
       (partial debiased CKA, the kernel of the pixels projected out) is lower, and it starts near 0.
Source
    1: Kapoor, Srivastava and Khosla: Bridging critical gaps in convergent learning (2025, arXiv 2502.18710). 2: Raghu,
    Gilmer, Yosinski and Sohl-Dickstein: SVCCA (2017, arXiv 1706.05806), figure 4. 3: what untrained networks share is
    no prediction of theirs; 2502.18710 explains early alignment by the statistics of the input and the architecture.
Measured
    Perceptrons with five hidden layers of width 64, trained with Adam for 640 steps (17 epochs), on test pictures.
    Alignment: debiased CKA of equal layers of two networks after equal steps, raw and given the input. A layer has
    settled when debiased CKA with its own final form stays above 0.9, or above 90 % of the way from its first to its
    last value, and SVCCA likewise. Intervals are over independent pairs, or over networks.
Refutation
    1: less than 90 % of the final gain in alignment after an eighth of the steps, or less of it than of the gain in
    accuracy.
    2: an interval of the difference between the times at which the highest and the lowest layer settle that is not
    above 0. 3: an interval of alignment given the input, before training, that is as high as that of raw alignment.
Result
    1 does not hold as stated: after an eighth of the steps (2 epochs) alignment has 77 % of its gain, and accuracy 93 %
    of its own; alignment follows accuracy here. It is early only in the sense that half of the final value is there
    before any training: 0.39 of 0.75. 2 holds for similarity with the final form (0.9 is reached at steps 0, 25, 43, 59
    and 67 from the bottom up), but it says as much about the start as about learning: as a share of their own way,
    lower layers are *later* by CKA, and SVCCA does not decide. 3 holds: given the input, alignment rises from 0.02 to
    0.33; the lowest layer, most alike in raw value, has least beyond the input (0.14).
"""

import warnings

import numpy as np
from matplotlib.figure import Figure
from shared import Floats, Numbers, band, finish, interval, main, panels, show, table
from torch import Tensor
from training import Pictures, accuracy, adam, initialise, outputs, perceptron, pictures, similarities, train

from repsim.errors import UnreliableValueWarning
from repsim.study.partial_cka import partial

DEPTH, WIDTH = 5, 64
CHECKPOINTS = (0, 2, 5, 10, 20, 40, 80, 160, 320, 640)
QUICK_CHECKPOINTS = (0, 5, 10, 20, 40, 80, 160)
PAIRS, QUICK_PAIRS = 5, 3
RATE, BATCH = 0.001, 32
LAYERS = [f"layer {k + 1}" for k in range(DEPTH)]


def trajectory(data: Pictures, seed: int, checkpoints: tuple[int, ...]) -> tuple[list[list[Tensor]], list[float]]:
    """Train a network; return its hidden layers and its accuracy on the test pictures at all checkpoints."""
    weights = initialise([64, *[WIDTH] * DEPTH, 10], seed)
    layers, accurate = [], []
    for step, _ in enumerate(train(weights, data, adam(weights, [RATE] * len(weights)), batch=BATCH, seed=seed)):
        if step in checkpoints:
            *hidden, logits = outputs(weights, data.test_x, perceptron)
            layers.append(hidden)
            accurate.append(accuracy(logits, data.test_y))
        if step == checkpoints[-1]:
            break
    return layers, accurate


def alignment(a: list[Tensor], b: list[Tensor], x: Tensor) -> Floats:
    """Return debiased CKA of equal layers, raw and given the input: shape (2, layers)."""
    R = similarities([*a, *b, x], [*a, *b, x])
    given_input = partial(R, [2 * DEPTH])
    return np.array([[M[k, DEPTH + k] for k in range(DEPTH)] for M in (R, given_input)])


def with_final_form(layers: list[list[Tensor]], metric: str) -> Floats:
    """Return the similarity of each layer with its own final form: shape (checkpoints, layers)."""
    columns = [similarities([at[k] for at in layers], [layers[-1][k]], metric)[:, 0] for k in range(DEPTH)]
    return np.transpose(columns)


def reaches(level: float, steps: Floats, values: Floats) -> float:
    """Return the step from which on a curve stays above a level, linear in log(1 + step) between checkpoints."""
    below = np.flatnonzero(values < level)
    if not len(below):
        return float(steps[0])
    k = below[-1]
    share = (level - values[k]) / (values[k + 1] - values[k])
    x = np.log1p(steps)
    return float(np.expm1(x[k] + share * (x[k + 1] - x[k])))


def measure(quick: bool) -> Numbers:
    """Follow pairs of networks through training."""
    data, checkpoints = pictures(), QUICK_CHECKPOINTS if quick else CHECKPOINTS
    steps = np.array(checkpoints, float)
    aligned, own, svcca, accurate = [], [], [], []
    for pair in range(QUICK_PAIRS if quick else PAIRS):
        (a, accurate_a), (b, accurate_b) = (trajectory(data, 2 * pair + k, checkpoints) for k in range(2))
        aligned.append([alignment(x, y, data.test_x) for x, y in zip(a, b, strict=True)])
        own.append(with_final_form(a, "cka"))
        with warnings.catch_warnings():  # 400 pictures are few for SVCCA; only its order of layers is used
            warnings.simplefilter("ignore", UnreliableValueWarning)
            svcca.append(with_final_form(a, "svcca"))
        accurate.append((np.array(accurate_a) + accurate_b) / 2)
    raw, given_input = np.moveaxis(np.array(aligned), 2, 0)  # (pairs, checkpoints, layers)
    means = {"raw": raw.mean(-1), "given the input": given_input.mean(-1), "accuracy": np.array(accurate)}
    shares = {name: [(c - c[0]) / (c[-1] - c[0]) for c in curves] for name, curves in means.items()}
    eighth = checkpoints.index(max(step for step in checkpoints if step <= checkpoints[-1] / 8))
    settled: dict[str, list[list[float]]] = {
        "CKA above 0.9": [],
        "CKA, 90 % of the way": [],
        "SVCCA, 90 % of the way": [],
    }
    for cka, cca in zip(own, svcca, strict=True):
        for name, curves, level in zip(settled, (cka, cka, cca), (None, 0.9, 0.9), strict=True):
            levels = [0.9 if level is None else c[0] + level * (c[-1] - c[0]) for c in curves.T]
            settled[name].append([reaches(goal, steps, c) for goal, c in zip(levels, curves.T, strict=True)])
    return {
        "checkpoints": list(checkpoints),
        "pairs": len(own),
        "mean": {name: [interval(column) for column in curves.T] for name, curves in means.items()},
        "early": checkpoints[eighth],
        "gained_early": {name: interval([c[eighth] for c in curves]) for name, curves in shares.items()},
        "of_layers": {
            "raw": [[interval(raw[:, j, k]) for j in range(len(steps))] for k in range(DEPTH)],
            "given the input": [[interval(given_input[:, j, k]) for j in range(len(steps))] for k in range(DEPTH)],
            "own final form": [[interval([c[j, k] for c in own]) for j in range(len(steps))] for k in range(DEPTH)],
        },
        "settled": {name: [interval(column) for column in np.transpose(times)] for name, times in settled.items()},
        "highest_minus_lowest": {
            name: interval([times[-1] - times[0] for times in rows]) for name, rows in settled.items()
        },
    }


def report(numbers: Numbers) -> str:
    """Return a table of alignment by step, and one of the steps at which layers settle."""
    mean, checkpoints = numbers["mean"], numbers["checkpoints"]
    first = [{"step": step, **{name: show(mean[name][j]) for name in mean}} for j, step in enumerate(checkpoints)]
    second = [
        {
            "layer": k + 1,
            "alignment untrained": show(numbers["of_layers"]["raw"][k][0], 2),
            "trained": show(numbers["of_layers"]["raw"][k][-1], 2),
            "trained, given the input": show(numbers["of_layers"]["given the input"][k][-1], 2),
            **{f"settled: {name}": show(times[k], 0) for name, times in numbers["settled"].items()},
        }
        for k in range(DEPTH)
    ]
    early = "; ".join(f"{name} {show(share, 2)}" for name, share in numbers["gained_early"].items())
    order = "; ".join(f"{name}: {show(steps, 0)}" for name, steps in numbers["highest_minus_lowest"].items())
    return (
        f"{table(first)}\n\n{table(second)}\n\nShare of the gain reached at step {numbers['early']} of "
        f"{checkpoints[-1]}: {early}\nSteps by which the highest layer settles after the lowest: {order}"
    )


def draw(numbers: Numbers) -> Figure:
    """Draw alignment of two networks, and similarity of layers with their final form, by step."""
    labels = ("training step + 1", "mean over layers"), ("training step + 1", "debiased CKA with final form")
    upper, lower = panels(*labels)
    steps = [step + 1 for step in numbers["checkpoints"]]
    names = {"raw": "alignment of two networks", "given the input": "alignment given the input", "accuracy": "accuracy"}
    for k, (name, text) in enumerate(names.items()):
        band(upper, steps, numbers["mean"][name], k, text)
    for k, curve in enumerate(numbers["of_layers"]["own final form"]):
        band(lower, steps, curve, k, LAYERS[k])
    for ax in (upper, lower):
        ax.set_xscale("log")
    return finish([upper, lower])


if __name__ == "__main__":
    main(__file__, measure, report, draw)
