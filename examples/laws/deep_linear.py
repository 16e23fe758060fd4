"""Deep linear networks: from a small start, the hidden layer becomes a function of the data alone.

Setting
    Inputs x whitened (covariance I), outputs y, correlation C = E y x' = U S V'. A network W2 W1 x with h hidden units
    follows the gradient flow of half the squared error, dW1/dt = W2'(C - W2 W1), dW2/dt = (C - W2 W1) W1'.
Prediction
    Starting from small random weights:

    1. W1'W1 tends to V S V'. The hidden kernel X W1'W1 X' is that of X V S^(1/2), whatever the width and the seed.
    2. The singular value of mode i grows as a sigmoid, s / (1 + (s / a - 1) exp(-2 s t)). It reaches s / 2 at
       t = log(s / a - 1) / (2 s).

    The start a follows from the weights. For small weights, p = (W1 v_i + W2'u_i) / 2 grows as exp(s t), and the
    difference (W1 v_i - W2'u_i) / 2 decays. So a = |p|^2, *less* the part of p along the modes with larger s, which
    these modes take away when they saturate (Gram-Schmidt). Without this correction, times are wrong by several percent
    when there are few hidden units for 9 modes.

    From large random weights, neither holds: the kernel remains close to that of the start, the closer the wider.
Source
    Saxe, McClelland, Ganguli, arXiv:1312.6120 (2014); Braun et al., NeurIPS 2022; Domine et al., arXiv:2409.14623.
    The start of random weights is derived here.
Measured
    Debiased CKA (`repsim.similarity`) on all digits, of hidden layers, between two widths, with the closed form, and
    before and after training. Inputs: 40 whitened principal components. Outputs: classes, so C has 9 singular values.
Refutation
    After a small start: a CKA with the closed form or between widths below 0.99, or a time to half that is wrong by
    more than 2 %, of any mode, width or seed. After a large start: a CKA with the closed form above 0.9.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared import (
    Floats,
    Numbers,
    digits,
    finish,
    interval,
    log_axis,
    main,
    panels,
    points,
    show,
    table,
)

import repsim
from repsim.figures.canvas import COLOURS, MARKERS

WIDTHS = (16, 64, 256)
COMPONENTS = 40
STEP, TIME = 0.125, 120.0
"""Step of the Runge-Kutta method, and the end of training."""
SHOWN = 24
"""Steps between points of the figure."""
SCALES = {"small": 1e-4, "large": 1.0}
"""Weights at the start are normal, with this standard deviation divided by the root of the number of inputs."""


def data() -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return whitened inputs (n, 40), their correlation C (10, 40) with the classes, and its factors U, S, V'."""
    x, classes = digits()
    n, x = len(x), x - x.mean(0)
    x = np.linalg.svd(x, full_matrices=False)[0][:, :COMPONENTS] * np.sqrt(n)
    y = np.eye(10)[classes]
    correlation = (y - y.mean(0)).T @ x / n
    U, S, V = np.linalg.svd(correlation, full_matrices=False)
    return x, correlation, U[:, :9], S[:9], V[:9]  # the centred classes sum to 0: the last singular value is 0


def start(width: int, scale: float, seed: int) -> tuple[Floats, Floats]:
    """Draw W1 (width, 40) and W2 (10, width)."""
    rng = np.random.default_rng([width, seed])
    first = rng.normal(size=(width, COMPONENTS)) * scale / np.sqrt(COMPONENTS)
    return first, rng.normal(size=(10, width)) * scale / np.sqrt(width)


def slope(W1: Floats, W2: Floats, C: Floats) -> tuple[Floats, Floats]:
    """Return the derivatives of both weight matrices in time."""
    error = C - W2 @ W1
    return W2.T @ error, error @ W1.T


def train(W1: Floats, W2: Floats, C: Floats) -> tuple[list[Floats], Floats]:
    """Integrate the gradient flow by the method of Runge and Kutta; return W2 W1 at every step, and the last W1."""
    products = [W2 @ W1]
    for _ in range(round(TIME / STEP)):
        a1, a2 = slope(W1, W2, C)
        b1, b2 = slope(W1 + STEP / 2 * a1, W2 + STEP / 2 * a2, C)
        c1, c2 = slope(W1 + STEP / 2 * b1, W2 + STEP / 2 * b2, C)
        d1, d2 = slope(W1 + STEP * c1, W2 + STEP * c2, C)
        W1 = W1 + STEP / 6 * (a1 + 2 * b1 + 2 * c1 + d1)
        W2 = W2 + STEP / 6 * (a2 + 2 * b2 + 2 * c2 + d2)
        products.append(W2 @ W1)
    return products, W1


def starts(W1: Floats, W2: Floats, U: Floats, V: Floats) -> tuple[Floats, Floats]:
    """Return the start a of every mode, without and with the correction for modes that are learned earlier."""
    growing = (W1 @ V.T + W2.T @ U) / 2
    return (growing**2).sum(0), np.diag(np.linalg.qr(growing)[1]) ** 2


def time_to_half(S: Floats, a: Floats) -> Floats:
    """Return the predicted time at which every singular value is half of its final value."""
    return np.log(S / a - 1) / (2 * S)


def crossing(values: Floats) -> float:
    """Return the time at which values at every step first reach 1/2, by linear interpolation."""
    after = int(np.argmax(values >= 0.5))
    assert after > 0, "the mode is not learned by the end of training"
    return float(STEP * (after - (values[after] - 0.5) / (values[after] - values[after - 1])))


def measure(quick: bool) -> Numbers:
    """Train networks of every width from small and large weights."""
    x, C, U, S, V = data()
    closed_form = x @ V.T * np.sqrt(S)
    seeds = range(2 if quick else 8)
    rows, curves = [], {}
    for kind, scale in SCALES.items():
        hidden: dict[int, list[Floats]] = {}
        for width in WIDTHS:
            to_closed_form, to_start, errors = [], [], []
            for seed in seeds:
                W1, W2 = start(width, scale, seed)
                products, last = train(W1, W2, C)
                layer = x @ last.T
                hidden.setdefault(width, []).append(layer)
                to_closed_form.append(repsim.similarity(layer, closed_form))
                to_start.append(repsim.similarity(layer, x @ W1.T))
                if kind == "small":
                    modes = np.array([np.diag(U.T @ product @ V.T) for product in products]) / S
                    halves = np.array([crossing(mode) for mode in modes.T])
                    plain, corrected = starts(W1, W2, U, V)
                    errors.append([np.abs(time_to_half(S, a) / halves - 1).max() for a in (plain, corrected)])
                    if width == 64 and seed == 0:
                        curves = {"modes": modes[::SHOWN].T.tolist(), "s": S.tolist(), "a": corrected.tolist()}
            between = [repsim.similarity(a, b) for a, b in zip(hidden[WIDTHS[0]], hidden[width], strict=True)]
            row = {"start": kind, "width": width, "closed_form": interval(to_closed_form), "moved": interval(to_start)}
            row |= {"narrowest": interval(between)} if width != WIDTHS[0] else {}
            if errors:
                row |= {
                    "worst_time_uncorrected": float(np.max(errors, 0)[0]),
                    "worst_time": float(np.max(errors, 0)[1]),
                }
            rows.append(row)
    return {"seeds": len(seeds), "rows": rows, "curves": curves}


def report(numbers: Numbers) -> str:
    """Return the table of similarities and of errors of times."""
    rows = []
    for r in numbers["rows"]:
        row = {"start": r["start"], "width": r["width"], "CKA to closed form": show(r["closed_form"])}
        row["to width 16"] = show(r["narrowest"]) if "narrowest" in r else ""
        row["to the start"] = show(r["moved"])
        row["worst error of a time to half"] = f"{100 * r['worst_time']:.1f} %" if "worst_time" in r else ""
        row["without correction"] = f"{100 * r['worst_time_uncorrected']:.1f} %" if "worst_time" in r else ""
        rows.append(row)
    return f"{numbers['seeds']} seeds.\n\n{table(rows)}"


def draw(numbers: Numbers) -> Figure:
    """Draw the growth of singular values, and similarity to the closed form by width."""
    upper, lower = panels(("time", "singular value"), ("width", "CKA to the closed form"))
    curves = numbers["curves"]
    fine = np.linspace(0, TIME, 400)
    for k, mode in enumerate((0, 4, 8)):
        s, a = curves["s"][mode], curves["a"][mode]
        upper.plot(fine, s / (1 + (s / a - 1) * np.exp(-2 * s * fine)), color=COLOURS[6], linewidth=0.8)
        values = s * np.array(curves["modes"][mode])
        style: dict[str, Any] = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 3.0, "linestyle": "none"}
        upper.plot(np.arange(len(values)) * SHOWN * STEP, values, label=f"mode {mode + 1}", **style)
    for k, kind in enumerate(SCALES):
        rows = [row for row in numbers["rows"] if row["start"] == kind]
        points(lower, WIDTHS, [row["closed_form"] for row in rows], k, f"{kind} start")
    log_axis(lower, WIDTHS)
    lower.set_ylim(0, 1.05)
    return finish([upper, lower], "Curves: closed form. Points: measured, with 95 % intervals over seeds.")


if __name__ == "__main__":
    main(__file__, measure, report, draw)
