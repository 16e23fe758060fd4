"""Scale: the better two networks are, the more alike are their neighbourhoods; CKA has to be calibrated first.

Prediction
    1. Mutual nearest neighbours with a good reference network rise with quality (test accuracy), raw and calibrated.
    2. The trend of CKA is weaker once it is calibrated against chance: part of the raw trend is the bias of the biased
       estimator, which grows with the dimension of the layers.
Source
    1: Huh, Cheung, Wang and Isola: The platonic representation hypothesis (2024, arXiv 2405.07987). 2: Gröger, Wen
    and Brbić: Revisiting the platonic representation hypothesis (2026, arXiv 2602.14486): the correlation of CKA with
    capability is 0.86 raw and 0.45 calibrated; that of mutual neighbours 0.85 and 0.84.
Measured
    Two series of perceptrons: more training pictures (20 to 1200, width 64), and more units (4 to 128, all pictures).
    Similarity of the second hidden layer with that of a network of width 256 trained on all pictures from another seed:
    mutual nearest neighbours (k = 10), CKA with the biased estimator, and debiased CKA; on 400 and on 64 test pictures,
    as the bias is large where pictures are few. Calibrated: max(0, (s - t) / (1 - t)), t the 95 % point of 100
    permutations of the pictures. Trend: rank correlation with accuracy over all networks of one seed, and the gain
    from the worst to the best third of the networks. Intervals are over seeds.
Refutation
    1: an interval of the rank correlation of mutual neighbours that is not above 0, or an interval of its change by
    calibration that is below 0. 2: an interval of the change of CKA's trend by calibration that is not below 0.
Result
    1 holds, 5 seeds: rank correlations are 0.76 (400 pictures) and 0.92 (64), raw and calibrated alike. 2 does not hold
    here: calibration leaves the rank correlation of CKA as it is (0.90 and 0.90; 0.85 and 0.86) and makes the gain
    larger. The cause that was proposed is there: on 64 pictures the chance level of biased CKA rises from 0.11 to 0.16
    with the width. But trained on the same data, these networks are far above chance (0.60 to 0.93), so that it does
    not matter. The paper compared networks for pictures and for text, whose CKA is close to chance.
"""

import math
import warnings

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from shared import Floats, Numbers, finish, interval, main, panels, show, table
from torch import Tensor
from torch.nn.functional import leaky_relu
from training import Weights, accuracy, adam, initialise, outputs, perceptron, pictures, run, train

import repsim
from repsim.errors import UnreliableValueWarning
from repsim.figures.canvas import COLOURS, MARKERS

PICTURES = (20, 40, 80, 150, 300, 600, 1200)
WIDTHS = (4, 8, 16, 32, 128)
SERIES = [("pictures", 64, count) for count in PICTURES] + [("units", width, 1200) for width in WIDTHS]
REFERENCE = 256
SEEDS, QUICK_SEEDS = 5, 3
STEPS, RATE, BATCH = 300, 0.003, 64
MEASURES = {
    "mutual neighbours": "mutual_knn:k=10",
    "CKA, biased": "cka:estimator=biased",
    "CKA, debiased": "cka",
}
SAMPLES = (400, 64)
PERMUTATIONS = 100


def leaky(weights: Weights, x: Tensor) -> list[Tensor]:
    """Return all layers with leaky ReLU: with ReLU, some pictures are 0 in all units of a narrow layer."""
    return perceptron(weights, x, leaky_relu)


def network(width: int, count: int, seed: int) -> tuple[Tensor, float]:
    """Train a network; return its second hidden layer for the test pictures, and its accuracy."""
    data = pictures(count)
    weights = initialise([64, width, width, 10], seed)
    run(train(weights, data, adam(weights, [RATE] * 3), batch=BATCH, seed=seed, forward=leaky), STEPS)
    _, layer, logits = outputs(weights, data.test_x, leaky)
    return layer, accuracy(logits, data.test_y)


def raw_and_calibrated(layers: list[Tensor], reference: Tensor, metric: str) -> Floats:
    """Return the similarity of every layer with the reference, raw, calibrated, and by chance: shape (3, layers)."""
    orders = repsim.random_permutations(len(reference), PERMUTATIONS)
    with warnings.catch_warnings():  # few pictures are a condition here, and calibration corrects for chance
        warnings.simplefilter("ignore", UnreliableValueWarning)
        raw = np.array([repsim.similarity(layer, reference, metric) for layer in layers])
        chance = repsim.permuted(layers, [reference], metric, orders, progress=False)[:, :, 0]
    rank = math.ceil(0.95 * (PERMUTATIONS + 1)) - 1  # of the permuted values and the observed one
    threshold = np.sort(np.vstack([chance, raw]), axis=0)[rank]
    return np.array([raw, np.maximum(0, (raw - threshold) / (1 - threshold)), threshold])


def gain(accurate: Floats, values: Floats) -> float:
    """Return how much higher the best third of the networks is than the worst third."""
    order, third = np.argsort(accurate, kind="stable"), len(values) // 3
    return float(values[order[-third:]].mean() - values[order[:third]].mean())


def measure(quick: bool) -> Numbers:
    """Compare all networks of both series with references, from several seeds."""
    accurate, values = [], []
    for seed in range(QUICK_SEEDS if quick else SEEDS):
        reference, _ = network(REFERENCE, 1200, 100 + seed)
        networks = [network(width, count, seed) for _, width, count in SERIES]
        accurate.append([quality for _, quality in networks])
        values.append(
            [
                [raw_and_calibrated([x[:n] for x, _ in networks], reference[:n], spec) for spec in MEASURES.values()]
                for n in SAMPLES
            ]
        )
    qualities, similar = np.array(accurate), np.array(values)  # (seeds, samples, measures, forms, networks)
    trends = []
    for j, n in enumerate(SAMPLES):
        for k, name in enumerate(MEASURES):
            curves = similar[:, j, k, :2]
            rank = np.array([[spearmanr(q, c)[0] for c in two] for q, two in zip(qualities, curves, strict=True)])
            gains = np.array([[gain(q, c) for c in two] for q, two in zip(qualities, curves, strict=True)])
            trends.append(
                {
                    "pictures": n,
                    "measure": name,
                    "rank": [interval(rank[:, i]) for i in range(2)],
                    "rank_change": interval(rank[:, 1] - rank[:, 0]),
                    "gain": [interval(gains[:, i]) for i in range(2)],
                    "gain_change": interval(gains[:, 1] - gains[:, 0]),
                    "range": [float(curves[:, 0].mean(0).min()), float(curves[:, 0].mean(0).max())],
                }
            )
    return {
        "networks": [
            {
                "series": series,
                "width": width,
                "pictures": count,
                "accuracy": interval(qualities[:, i]),
                "similarity": {
                    str(n): {
                        name: [interval(similar[:, j, k, form, i]) for form in range(3)]
                        for k, name in enumerate(MEASURES)
                    }
                    for j, n in enumerate(SAMPLES)
                },
            }
            for i, (series, width, count) in enumerate(SERIES)
        ],
        "trends": trends,
    }


def report(numbers: Numbers) -> str:
    """Return the table of trends, and one of the networks."""
    trends = [
        {
            "test pictures": row["pictures"],
            "measure": row["measure"],
            "rank correlation, raw": show(row["rank"][0], 2),
            "calibrated": show(row["rank"][1], 2),
            "gain, raw": show(row["gain"][0], 2),
            "gain, calibrated": show(row["gain"][1], 2),
            "change of gain": show(row["gain_change"], 2),
        }
        for row in numbers["trends"]
    ]
    networks = [
        {
            "width": row["width"],
            "training pictures": row["pictures"],
            "accuracy": show(row["accuracy"], 2),
            "mutual neighbours (400)": show(row["similarity"]["400"]["mutual neighbours"][0], 2),
            "biased CKA (400)": show(row["similarity"]["400"]["CKA, biased"][0], 2),
            "biased CKA (64)": show(row["similarity"]["64"]["CKA, biased"][0], 2),
            "its chance level (64)": show(row["similarity"]["64"]["CKA, biased"][2], 2),
        }
        for row in numbers["networks"]
    ]
    return f"{table(trends)}\n\n{table(networks)}"


def draw(numbers: Numbers) -> Figure:
    """Draw similarity by accuracy: raw with filled marks, calibrated with open ones."""
    shown = [(SAMPLES[0], "mutual neighbours"), (SAMPLES[1], "CKA, biased")]
    axes = panels(*(("test accuracy", f"{name}, {n} pictures") for n, name in shown))
    for ax, (n, name) in zip(axes, shown, strict=True):
        for k, series in enumerate(("pictures", "units")):
            rows = [row for row in numbers["networks"] if row["series"] == series]
            for form, face in enumerate((COLOURS[k], "white")):
                means = [row["similarity"][str(n)][name][form] for row in rows]
                mean, low, high = np.transpose(means)
                ax.errorbar(
                    [row["accuracy"][0] for row in rows],
                    mean,
                    [mean - low, high - mean],
                    color=COLOURS[k],
                    marker=MARKERS[k],
                    markerfacecolor=face,
                    markersize=3.0,
                    linewidth=0.7,
                    linestyle=("-", ":")[form],
                    label=f"more {series}, {('raw', 'calibrated')[form]}" if ax is axes[1] else "",
                )
    return finish(axes)


if __name__ == "__main__":
    main(__file__, measure, report, draw)
