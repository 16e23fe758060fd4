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
    A large network, 12 layers of width 64 trained on 60 digits, against networks with less capacity for their data:
    4 layers, width 16, or 1200 digits. Two architectures: plain perceptrons, and perceptrons with residual blocks
    x + relu(normalise(x) W), as most networks of the paper were residual. Adam, 300 steps. Block: the upper two
    thirds of the layers. Debiased CKA within a network between layers of the block that are at least half of the block
    apart; the same without the first principal component of each layer; the share of that component in the variance;
    CKA of equal layers of two seeds, in the block and in the lower third. Intervals over independent pairs of seeds.
Refutation
    1: an interval of large minus small that is not above 0, for CKA far apart or for the share of the first component.
    2: a first component with less than half of the variance, or an interval of the fall without it that is not above
    0. 3: an interval of the similarity of seeds below the block minus that in the block that is not above 0.
Result
    1 holds in part, 5 pairs. The first component has more of the variance when pictures are fewer (by 0.11 and 0.12)
    and, in plain networks, when layers are more (by 0.18). It has *less* in wider plain layers, against the prediction.
    Similarity of layers far apart does not rise in any of these: all networks on digits have it. 2 holds in part:
    without the component similarity falls in plain networks (by 0.15) and not beyond doubt in residual ones, which copy
    every direction from layer to layer; its share is 0.4 and not above half. 3 holds: seeds are less alike in the block
    by 0.23 and 0.17. These networks and data are small; the paper used convolutional networks and CIFAR.
"""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from shared import Floats, Numbers, interval, main, show, table
from torch import Tensor
from torch.nn.functional import layer_norm
from training import Weights, accuracy, adam, initialise, outputs, perceptron, pictures, run, similarities, train

from repsim.figures.canvas import make_figure, style_axes
from repsim.figures.styles import COLUMN, NOTE

LARGE = (64, 12, 60)
"""Width, number of layers, and number of training pictures."""
SMALL = {"fewer layers": (64, 4, 60), "narrower layers": (16, 12, 60), "more pictures": (64, 12, 1200)}
QUICK_SMALL = ("more pictures",)
RATES = {"plain": 0.002, "residual": 0.03}
PAIRS, QUICK_PAIRS = 5, 3
STEPS, BATCH = 300, 60
VALUES = {
    "share": "first component",
    "far": "CKA far apart",
    "far_without": "without the component",
    "seeds_below": "seeds, below",
    "seeds": "seeds, block",
}


def residual(weights: Weights, x: Tensor) -> list[Tensor]:
    """Return all layers of a perceptron with residual blocks: x W_0, then x + relu(normalise(x) W), and the logits."""
    x = x @ weights[0]
    layers = []
    for w in weights[1:-1]:
        x = x + torch.relu(layer_norm(x, x.shape[1:]) @ w)
        layers.append(x)
    return [*layers, x @ weights[-1]]


def network(kind: str, width: int, depth: int, count: int, seed: int) -> tuple[list[Tensor], float]:
    """Train a network on some pictures; return its hidden layers for the test pictures, and its accuracy."""
    data = pictures(count)
    forward = residual if kind == "residual" else perceptron
    weights = initialise([64, *[width] * (depth + (kind == "residual")), 10], seed)
    optimizer = adam(weights, [RATES[kind]] * len(weights))
    run(train(weights, data, optimizer, batch=BATCH, seed=seed, forward=forward), STEPS)
    *hidden, logits = outputs(weights, data.test_x, forward)
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


def within(layers: list[Tensor]) -> tuple[dict[str, float], dict[str, Floats]]:
    """Measure one network: values of its block, and matrices of layers by layers."""
    block = len(layers) // 3
    shares, rest = zip(*map(first_component, layers), strict=True)
    matrices = {"within": similarities(layers, layers), "without": similarities(rest, rest)}
    values = {"far": far_apart(matrices["within"]), "far_without": far_apart(matrices["without"])}
    return values | {"share": float(np.mean(shares[block:]))}, matrices


def pair_of_seeds(
    kind: str, width: int, depth: int, count: int, pair: int
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Train two networks; return mean values of both, and matrices of the first one and of the pair."""
    (a, accurate_a), (b, accurate_b) = (network(kind, width, depth, count, 2 * pair + k) for k in range(2))
    (values_a, matrices), (values_b, _) = within(a), within(b)
    matrices["seeds"] = similarities(a, b)
    equal = np.diag(matrices["seeds"])
    return {
        **{name: (values_a[name] + values_b[name]) / 2 for name in values_a},
        "seeds": float(equal[depth // 3 :].mean()),
        "seeds_below": float(equal[: depth // 3].mean()),
        "accuracy": (accurate_a + accurate_b) / 2,
    }, matrices


def measure(quick: bool) -> Numbers:
    """Measure the large network and smaller ones, in both architectures."""
    rows, changes, shown = [], {}, {}
    small = {name: size for name, size in SMALL.items() if not quick or name in QUICK_SMALL}
    for kind in RATES:
        values = {}
        for size in (LARGE, *small.values()):
            results = [pair_of_seeds(kind, *size, pair) for pair in range(QUICK_PAIRS if quick else PAIRS)]
            values[size] = {name: np.array([result[0][name] for result in results]) for name in results[0][0]}
            names = dict(zip(("architecture", "width", "layers", "pictures"), (kind, *size), strict=True))
            rows.append(names | {name: interval(column) for name, column in values[size].items()})
            if size == LARGE:
                shown[kind] = {name: matrix.tolist() for name, matrix in results[0][1].items()}
        large = values[LARGE]
        changes[kind] = {
            **{
                name: {value: interval(large[value] - values[size][value]) for value in ("share", "far")}
                for name, size in small.items()
            },
            "fall": interval(large["far"] - large["far_without"]),
            "below_minus_block": interval(large["seeds_below"] - large["seeds"]),
        }
    return {"rows": rows, "changes": changes, "shown": shown}


def report(numbers: Numbers) -> str:
    """Return the tables of networks, and of differences between them."""
    rows = [
        {
            **{name: row[name] for name in ("architecture", "width", "layers", "pictures")},
            **{text: show(row[name], 2) for name, text in VALUES.items()},
            "accuracy": show(row["accuracy"][0], 2),
        }
        for row in numbers["rows"]
    ]
    changes = [
        {
            "architecture": kind,
            "large minus": name,
            "first component": show(change[name]["share"], 2),
            "CKA far apart": show(change[name]["far"], 2),
        }
        for kind, change in numbers["changes"].items()
        for name in SMALL
        if name in change
    ]
    rest = "\n".join(
        f"Large, {kind}: fall without the first component {show(change['fall'], 2)}; similarity of seeds below the "
        f"block minus in the block {show(change['below_minus_block'], 2)}"
        for kind, change in numbers["changes"].items()
    )
    return f"{table(rows)}\n\n{table(changes)}\n\n{rest}"


def draw(numbers: Numbers) -> Figure:
    """Draw matrices of layers by layers of the large network, in both architectures."""
    figure = make_figure(COLUMN, 1.0)
    colours = colormaps["viridis"].resampled(20)  # steps of 0.05, so that few colours suffice
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    titles = {"within": "one network", "without": "without first\ncomponent", "seeds": "two seeds"}
    for i, (kind, matrices) in enumerate(numbers["shown"].items()):
        for ax, (name, title) in zip(axes[i], titles.items(), strict=True):
            image = ax.imshow(matrices[name], vmin=0, vmax=1, origin="lower", cmap=colours)
            style_axes(ax, "layer" if i else "", "")
            ax.set_xticks([0, 5, 11], ["1", "6", "12"])
            ax.set_yticks([0, 5, 11], ["1", "6", "12"])
            ax.set_title("" if i else title, fontsize=NOTE)
        axes[i, 0].set_ylabel(f"{kind}: layer", fontsize=NOTE + 0.5)
    bar = figure.colorbar(image, ax=list(axes.ravel()), orientation="horizontal", aspect=40, pad=0.02)
    bar.ax.tick_params(labelsize=NOTE, length=2.5)
    bar.set_label("debiased CKA", fontsize=NOTE + 0.5)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04)
    figure.set_figheight(2.8)
    layout.execute(figure)
    return figure


if __name__ == "__main__":
    main(__file__, measure, report, draw)
