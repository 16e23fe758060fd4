"""Width consistency: networks converge to one as they become wider, earlier and better under muP.

Prediction
    Similarity to the widest network, trained from another seed, rises with the width. It is higher at every width, and
    reaches any value at a smaller width, in the maximal update parametrisation (muP), in which features move equally
    far at all widths, than in the standard parametrisation, in which one learning rate serves all widths.
Source
    Vyas, Atanasov, Bordelon, Morwani, Sainathan, Pehlevan: Feature-learning networks are consistent across widths at
    realistic scales (2023, arXiv 2305.18411). muP: Yang and Hu, Tensor Programs IV (2021, arXiv 2011.14522); for Adam,
    Yang et al., Tensor Programs V (2022, arXiv 2203.03466), table 8.
Measured
    Perceptrons with two hidden layers of equal width, trained with Adam for 150 steps. muP differs from the standard
    parametrisation in three numbers, with r = width / 64: the learning rates of the second and third layer are divided
    by r, and so is the initial variance of the third layer times r (1 / inputs^2 instead of 1 / inputs). At width 64
    both are the same network. Debiased CKA of each hidden layer with that of the widest network, mean over the layers,
    on test pictures. A network and its reference share no seed, and every interval is over independent pairs.
Refutation
    Under muP, similarity that does not rise from one width to the next, or at a width above 64 an interval of the
    difference between muP and standard that is not above 0.
Result
    It holds, 5 pairs. From width 64 on, muP is 0.022 to 0.030 above standard, every interval above 0, and both rise
    with every width. Two networks of width 512 are at 0.979 under muP and at 0.949 in the standard parametrisation, at
    equal accuracy. "Earlier" (0.9 at width 60 instead of 84) has intervals that overlap.
"""

import numpy as np
from matplotlib.figure import Figure
from shared import Floats, Numbers, band, finish, interval, log_axis, main, panels, show, table
from torch import Tensor
from training import Pictures, accuracy, adam, initialise, outputs, perceptron, pictures, run, similarities, train

WIDTHS = (16, 32, 64, 128, 256)
WIDEST, BASE = 512, 64
SEEDS, QUICK_SEEDS = 5, 3
STEPS, QUICK_STEPS = 150, 60
RATE, BATCH = 0.003, 64
NAMES = {"standard": "standard parametrisation", "muP": "muP"}


def network(data: Pictures, width: int, seed: int, steps: int, *, mup: bool) -> list[Tensor]:
    """Train a network, and return all its layers for the test pictures."""
    weights = initialise([64, width, width, 10], seed)
    ratio = width / BASE if mup else 1.0
    weights[2] /= ratio**0.5
    run(train(weights, data, adam(weights, [RATE, RATE / ratio, RATE / ratio]), batch=BATCH, seed=seed), steps)
    return outputs(weights, data.test_x, perceptron)


def width_at(level: float, widths: tuple[int, ...], values: Floats) -> float:
    """Return the width at which a rising curve reaches a level, linear in the logarithm of the width."""
    return float(np.exp(np.interp(level, values, np.log(widths))))


def measure(quick: bool) -> Numbers:
    """Compare networks of all widths with the widest, in both parametrisations."""
    data, seeds, steps = pictures(), QUICK_SEEDS if quick else SEEDS, QUICK_STEPS if quick else STEPS
    values = np.empty((2, seeds, len(WIDTHS) + 1))
    accurate = np.empty_like(values)
    for k, name in enumerate(NAMES):
        for seed in range(seeds):
            reference = network(data, WIDEST, 100 + seed, steps, mup=name == "muP")
            for j, width in enumerate((*WIDTHS, WIDEST)):
                layers = network(data, width, seed, steps, mup=name == "muP")
                values[k, seed, j] = np.diag(similarities(layers[:-1], reference[:-1])).mean()
                accurate[k, seed, j] = accuracy(layers[-1], data.test_y)
    widths = (*WIDTHS, WIDEST)
    return {
        "rows": [
            {
                "width": width,
                **{name: interval(values[k, :, j]) for k, name in enumerate(NAMES)},
                "difference": interval(values[1, :, j] - values[0, :, j]),
                "accuracy": {name: float(accurate[k, :, j].mean()) for k, name in enumerate(NAMES)},
            }
            for j, width in enumerate(widths)
        ],
        "rise": {name: interval(values[k, :, -2] - values[k, :, 0]) for k, name in enumerate(NAMES)},
        "width_at_0.9": {
            name: interval([width_at(0.9, widths, curve) for curve in values[k]]) for k, name in enumerate(NAMES)
        },
    }


def report(numbers: Numbers) -> str:
    """Return the table of both parametrisations."""
    rows = [
        {
            "width": row["width"],
            **{NAMES[name]: show(row[name]) for name in NAMES},
            "difference": show(row["difference"]),
            "accuracy": " / ".join(show(row["accuracy"][name]) for name in NAMES),
        }
        for row in numbers["rows"]
    ]
    reached = "; ".join(f"{NAMES[name]} {show(numbers['width_at_0.9'][name], 0)}" for name in NAMES)
    return f"{table(rows)}\n\nWidth at which similarity reaches 0.9: {reached}"


def draw(numbers: Numbers) -> Figure:
    """Draw similarity to the widest network by width."""
    (ax,) = panels(("width", f"debiased CKA with another network of width {WIDEST}"))
    widths = [row["width"] for row in numbers["rows"]]
    for k, name in enumerate(NAMES):
        band(ax, widths, [row[name] for row in numbers["rows"]], k, NAMES[name])
    log_axis(ax, widths)
    return finish([ax])


if __name__ == "__main__":
    main(__file__, measure, report, draw)
