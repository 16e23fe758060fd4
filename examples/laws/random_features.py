"""Random features: two random layers of width m are as similar as their width allows.

Prediction
    Debiased CKA of two layers X W, with independent Gaussian weights, is 1 / (1 + (1 + PR) / m). PR is the
    participation ratio (tr C)^2 / tr(C^2) of the covariance C of the inputs X: the number of directions that matter.

    1. The kernel K_m = X W W'X' / m is K = X X' on average. Two seeds are independent, so <K_1, K_2> is ||K||^2.
    2. W W' / m is a Wishart matrix: E K_m[ij] K_m[kl] = K[ij] K[kl] + (K[ik] K[jl] + K[il] K[jk]) / m.
    3. So E ||K_m||^2 = ||K||^2 + (||K||^2 + (tr K)^2) / m = ||K||^2 (1 + (1 + PR) / m), and CKA = <K_1, K_2> /
       (||K_1|| ||K_2||). U-centring is linear, so the steps also hold for the debiased products: line 3 then has
       the debiased estimate of PR, which `participation_ratio` computes without approximation.

    The mean of a ratio is replaced by the ratio of the means, which is what "within 0.01" has to cover.
Source
    Moments of Wishart matrices (Muirhead, Aspects of Multivariate Statistical Theory, 1982, chapter 3).
Measured
    Debiased CKA of pairs of seeds, on all digits, with `repsim.similarity`. No seed is in two pairs.
Refutation
    A width at which the mean over pairs, or an end of its interval, is further than 0.01 from the formula.
"""

import numpy as np
from matplotlib.figure import Figure
from shared import Floats, Numbers, digits, finish, interval, log_axis, main, panels, points, show, table

import repsim
from repsim.figures.canvas import COLOURS

PAIRS = {16: 1600, 64: 400, 256: 60, 1024: 12}
"""Pairs of seeds at every width: narrow layers vary more."""


def participation_ratio(x: Floats) -> float:
    """Return the debiased participation ratio (tr C)^2 / tr(C^2) of the covariance of x (n, p).

    Its parts are unbiased like those of debiased CKA, and the prediction for debiased CKA is exact only with it: the
    denominator is n (n - 3) HSIC_1(K, K), and the numerator is what m (E HSIC_1(K_m, K_m) - HSIC_1(K, K)) adds to it.
    """
    n, x = len(x), x - x.mean(0)
    norms = (x**2).sum(1)
    squares, trace = ((x.T @ x) ** 2).sum(), norms.sum()
    diagonal, pairs = n / (n - 2) * (norms**2).sum(), (n - 1) * (n - 2)
    return float(
        (trace**2 - diagonal + (2 * squares - trace**2) / pairs) / (squares - diagonal + trace**2 / pairs),
    )


def predict(ratio: float, width: float) -> float:
    """Return the predicted debiased CKA of two seeds."""
    return 1 / (1 + (1 + ratio) / width)


def features(x: Floats, width: int, seed: int) -> Floats:
    """Return linear random features of this width."""
    return x @ np.random.default_rng([width, seed]).normal(size=(x.shape[1], width))


def measure(quick: bool) -> Numbers:
    """Measure CKA between seeds at every width."""
    x, _ = digits()
    ratio = participation_ratio(x)
    rows = []
    for width, pairs in PAIRS.items():
        values = [
            repsim.similarity(features(x, width, 2 * k), features(x, width, 2 * k + 1))
            for k in range(pairs // 4 if quick else pairs)
        ]
        rows.append({"width": width, "pairs": len(values), "predicted": predict(ratio, width), "cka": interval(values)})
    return {"participation_ratio": ratio, "rows": rows}


def report(numbers: Numbers) -> str:
    """Return the table of prediction and measurement."""
    rows = [
        {"width": r["width"], "predicted": show(r["predicted"]), "measured": show(r["cka"]), "pairs": r["pairs"]}
        for r in numbers["rows"]
    ]
    return f"Participation ratio of the digits: {numbers['participation_ratio']:.2f}\n\n{table(rows)}"


def draw(numbers: Numbers) -> Figure:
    """Draw the formula as a curve, and the measured values as points."""
    (ax,) = panels(("width m", "debiased CKA of two seeds"))
    widths = np.geomspace(10, 1500, 100)
    ratio, rows = numbers["participation_ratio"], numbers["rows"]
    ax.plot(
        widths,
        [predict(ratio, width) for width in widths],
        color=COLOURS[6],
        linewidth=0.8,
        label="1 / (1 + (1 + PR) / m)",
    )
    points(ax, [row["width"] for row in rows], [row["cka"] for row in rows], 0, "measured, 95 % interval")
    log_axis(ax, list(PAIRS))
    ax.set_ylim(0.35, 1.02)
    return finish([ax])


if __name__ == "__main__":
    main(__file__, measure, report, draw)
