"""Block structure: many layers of a large network share one dominant direction, which differs between seeds.

Prediction
    1. When capacity is large for the data (more layers, wider layers, fewer pictures), a block of consecutive layers
       with high mutual similarity appears.
    2. The block is the leading principal component: in its layers one component has most of the variance, and without
       it their similarity falls.
    3. The block differs between seeds: equal layers of two networks are less similar in it than elsewhere.
Source
    Nguyen, Raghu and Kornblith: Do wide and deep networks learn the same things? (2021, arXiv 2010.15327).
Measured
    Perceptrons with ReLU, of 4 or 12 hidden layers, trained with Adam for 200 steps on few or many digits. Block: the
    upper two thirds of the layers. Debiased CKA within a network between layers of the block that are at least half of
    the block apart; the same without the first principal component of each layer; the share of that component in the
    variance; CKA of equal layers of two seeds, in the block and in the lower third. Intervals over independent pairs
    of seeds.
Refutation
    1: an interval of the difference that is not above 0, for CKA far apart or the share of the first component, when
    layers are added, widened, or pictures taken away. 2: a first component with less than half of the variance, or no
    fall without it. 3: seeds that are as similar in the block as below it.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from shared import Floats, Numbers, interval, main, show, table
from torch import Tensor
from training import accuracy, adam, initialise, outputs, perceptron, pictures, run, similarities, train

from repsim.figures.canvas import COLUMN, NOTE, finish_layout, make_figure, style_axes

GRID = [(width, depth, count) for count in (60, 1200) for depth in (4, 12) for width in (16, 64)]
"""Width, number of hidden layers, and number of training pictures."""
SHOWN = (16, 12, 60)
PAIRS, QUICK_PAIRS = 5, 3
STEPS, RATE, BATCH = 200, 0.002, 60
VALUES = {
    "share": "first component",
    "far": "CKA far apart",
    "far_without": "without the component",
    "seeds_below": "seeds, below",
    "seeds": "seeds, block",
}


def network(width: int, depth: int, count: int, seed: int) -> tuple[list[Tensor], float]:
    """Train a network on some pictures; return its hidden layers for the test pictures, and its accuracy."""
    data = pictures(count)
    weights = initialise([64, *[width] * depth, 10], seed)
    run(train(weights, data, adam(weights, [RATE] * len(weights)), batch=BATCH, seed=seed), STEPS)
    *hidden, logits = outputs(weights, data.test_x, perceptron)
    return hidden, accuracy(logits, data.test_y)


def first_component(x: Tensor) -> tuple[float, Tensor]:
    """Return the share of the first principal component in the variance, and the layer without this component."""
    x = x - x.mean(0)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    return float(s[0] ** 2 / (s**2).sum()), x - s[0] * torch.outer(u[:, 0], v[0])


def far_apart(R: Floats) -> float:
    """Return the mean over pairs of layers of the block, at least half of the block apart."""
    start = len(R) // 3
    size = len(R) - start
    return float(R[start:, start:][np.triu_indices(size, max(1, size // 2))].mean())


def pair_of_seeds(width: int, depth: int, count: int, pair: int) -> tuple[dict[str, float], dict[str, Floats]]:
    """Train two networks; return the measured values, and matrices of layers by layers."""
    (a, accurate), (b, _) = (network(width, depth, count, 2 * pair + k) for k in range(2))
    split = [first_component(x) for x in a]
    matrices = {
        "within": similarities(a, a),
        "without": similarities([x for _, x in split], [x for _, x in split]),
        "seeds": similarities(a, b),
    }
    block, equal = depth // 3, np.diag(matrices["seeds"])
    return {
        "share": float(np.mean([share for share, _ in split[block:]])),
        "far": far_apart(matrices["within"]),
        "far_without": far_apart(matrices["without"]),
        "seeds": float(equal[block:].mean()),
        "seeds_below": float(equal[:block].mean()),
        "accuracy": accurate,
    }, matrices


def measure(quick: bool) -> Numbers:
    """Measure all sizes of networks and data."""
    values, matrices = {}, {}
    for width, depth, count in GRID:
        results = [pair_of_seeds(width, depth, count, pair) for pair in range(QUICK_PAIRS if quick else PAIRS)]
        key = f"{width} {depth} {count}"
        values[key] = {name: np.array([result[0][name] for result in results]) for name in results[0][0]}
        matrices[key] = {name: matrix.tolist() for name, matrix in results[0][1].items()}
    changes = {}
    for name, other in {"more layers": (0, 12, 0), "wider layers": (64, 0, 0), "fewer pictures": (0, 0, 60)}.items():
        small = [size for size in GRID if all(not new or size[k] != new for k, new in enumerate(other))]
        for size in small:
            large = tuple(new or size[k] for k, new in enumerate(other))
            a, b = (values["{} {} {}".format(*key)] for key in (size, large))
            changes[f"{name}: {size} to {large}"] = {
                value: interval(b[value] - a[value]) for value in ("share", "far")
            }
    return {
        "rows": [
            {"width": w, "layers": d, "pictures": n, **{k: interval(v) for k, v in values[f"{w} {d} {n}"].items()}}
            for w, d, n in GRID
        ],
        "changes": changes,
        "fall": interval(np.subtract(*(values["{} {} {}".format(*SHOWN)][k] for k in ("far", "far_without")))),
        "below_minus_block": interval(
            np.subtract(*(values["{} {} {}".format(*SHOWN)][k] for k in ("seeds_below", "seeds")))
        ),
        "shown": {"few": matrices["{} {} {}".format(*SHOWN)], "many": matrices["{} {} 1200".format(*SHOWN)]},
    }


def report(numbers: Numbers) -> str:
    """Return the tables of sizes and of differences between them."""
    rows = [
        {
            **{name: row[name] for name in ("width", "layers", "pictures")},
            **{text: show(row[name], 2) for name, text in VALUES.items()},
            "accuracy": show(row["accuracy"][0], 2),
        }
        for row in numbers["rows"]
    ]
    changes = [
        {"change": name, "first component": show(change["share"], 2), "CKA far apart": show(change["far"], 2)}
        for name, change in numbers["changes"].items()
    ]
    width, depth, count = SHOWN
    return (
        f"{table(rows)}\n\n{table(changes)}\n\nWidth {width}, {depth} layers, {count} pictures: fall without the first "
        f"component {show(numbers['fall'], 2)}; similarity of seeds, below minus block "
        f"{show(numbers['below_minus_block'], 2)}"
    )


def draw(numbers: Numbers) -> Figure:
    """Draw matrices of layers by layers of one network."""
    figure = make_figure(COLUMN, 1.3)
    shown, count = numbers["shown"], SHOWN[2]
    titles = {
        f"{count} pictures": shown["few"]["within"],
        "without the first component": shown["few"]["without"],
        "1200 pictures": shown["many"]["within"],
        f"two seeds, {count} pictures": shown["few"]["seeds"],
    }
    axes = figure.subplots(2, 2).ravel()
    for ax, (title, matrix) in zip(axes, titles.items(), strict=True):
        image = ax.imshow(matrix, vmin=0, vmax=1, origin="lower", cmap="viridis")
        style_axes(ax, "layer", "layer")
        ticks = range(1, len(matrix), 4)
        ax.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        ax.set_yticks(ticks, [str(tick + 1) for tick in ticks])
        ax.set_title(title, fontsize=NOTE + 0.5)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.6)
    bar.ax.tick_params(labelsize=NOTE)
    bar.set_label("debiased CKA", fontsize=NOTE + 0.5)
    finish_layout(figure, [])
    return figure


if __name__ == "__main__":
    main(__file__, measure, report, draw)
