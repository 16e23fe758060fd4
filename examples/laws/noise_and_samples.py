"""Signal to noise and sample size: two fits to noisy data agree least near the interpolation threshold.

Setting
    A teacher maps x, p = 50 standard normal inputs, to k = 10 outputs B'x with variance 1. Two students see the same n
    inputs X with independent noise E of variance v: Y = X B + E. Signal to noise is 1 / v. Both fit by ridge regression
    with penalty r; their representations of new inputs are W'x, W = A Y, A = (X'X + r I)^-1 X' (r = 0: pseudo-inverse).
Prediction
    CKA of the students is the ratio of the means N / D over the noise, with M = A X B, G = M'M, a = tr(A A'),
    b = ||A A'||^2, c = ||A'M||^2:

    N = ||G||^2 + 2 k v c + k^2 v^2 b
    D = ||G||^2 + 2 (k + 1) v c + 2 v a tr G + v^2 (k a^2 + k (k + 1) b)

    CKA of white inputs is ||W_1'W_2||^2 / (||W_1'W_1|| ||W_2'W_2||). W = M + A E; N and D follow by expanding the
    squares with the second and fourth moments of a normal matrix E. Consequences:

    1. Alignment rises with signal to noise, to 1, once the signal exceeds the noise. It does *not* start at 0, and at
       the threshold it is not even monotone: students of pure noise agree with N / D = k / (a^2 / b + k + 1), because
       the same inputs amplify the noise of both along the same directions; a weak signal first dilutes this.
    2. It falls with n up to the interpolation threshold n = p, where a is largest, and then rises to 1.
    3. A strong penalty makes the dip shallow; it does not remove it.
    4. Without a penalty, there is a *peak* at n = p within the dip. The smallest singular value of X is almost 0, the
       noise of both students is amplified along the same direction, and they agree on this one direction. The ratio of
       means is a poor approximation there.
Source
    The dip: Umar and Laio, arXiv:2605.26973 (2026), for networks on noisy data. The formula is derived here.
Measured
    `repsim.similarity` (debiased CKA) of both students on 1000 new inputs, over seeds that draw teacher, inputs and
    noise. Also with different inputs for both students, for which the formula does not hold: they agree on nothing
    when n is small, so alignment rises with n almost from the start.
Refutation
    With penalty 1 or 12.5: a mean over seeds further than 0.03 from the formula, no minimum between n = 0.6 p and
    1.4 p, or an alignment that falls between signal to noise 1 and 64.
"""

import numpy as np
from matplotlib.figure import Figure
from shared import Floats, Numbers, band, finish, interval, log_axis, main, panels, points, show, table

import repsim
from repsim.figures.canvas import COLOURS

P, K, NEW = 50, 10, 1000
SAMPLES = (10, 20, 30, 40, 50, 60, 75, 100, 200, 400)
SIGNAL_TO_NOISE = (0.01, 0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
PENALTIES = (0.0, 1.0, 12.5)
"""No penalty, a weak one, and the one with the smallest error for signal to noise 4: p v."""


def solver(x: Floats, penalty: float) -> Floats:
    """Return the matrix A of ridge regression, by which W = A Y."""
    if not penalty:
        return np.asarray(np.linalg.pinv(x), dtype=np.float64)
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(P), x.T), dtype=np.float64)


def predict(x: Floats, teacher: Floats, noise: float, penalty: float) -> float:
    """Return the predicted CKA of two students with the same inputs and noise of this variance."""
    A = solver(x, penalty)
    M = A @ x @ teacher
    G, AA = M.T @ M, A.T @ A
    a, b, c, signal = np.trace(AA), (AA**2).sum(), ((A.T @ M) ** 2).sum(), (G**2).sum()
    both = signal + 2 * K * noise * c + K**2 * noise**2 * b
    own = signal + 2 * (K + 1) * noise * c + 2 * noise * a * np.trace(G) + noise**2 * (K * a**2 + K * (K + 1) * b)
    return float(both / own)


def align(n: int, signal_to_noise: float, penalty: float, seed: int, same_inputs: bool) -> tuple[float, float]:
    """Return the measured and the predicted CKA of two students."""
    rng = np.random.default_rng([n, seed])
    teacher = rng.normal(size=(P, K)) / np.sqrt(P)
    new, first, second = rng.normal(size=(NEW, P)), rng.normal(size=(n, P)), rng.normal(size=(n, P))
    noise = 1 / signal_to_noise
    students = [
        solver(x, penalty) @ (x @ teacher + np.sqrt(noise) * rng.normal(size=(n, K)))
        for x in (first, first if same_inputs else second)
    ]
    measured = repsim.similarity(new @ students[0], new @ students[1])
    return measured, predict(first, teacher, noise, penalty)


def over_seeds(n: int, signal_to_noise: float, penalty: float, seeds: int, same_inputs: bool = True) -> Numbers:
    """Return a row of numbers, with the interval over seeds."""
    values = np.array([align(n, signal_to_noise, penalty, seed, same_inputs) for seed in range(seeds)])
    row: dict[str, object] = {
        "n": n,
        "signal_to_noise": signal_to_noise,
        "penalty": penalty,
        "cka": interval(values[:, 0]),
    }
    return row | ({"predicted": float(values[:, 1].mean())} if same_inputs else {})


def measure(quick: bool) -> Numbers:
    """Measure along n for every penalty, and along signal to noise for a weak penalty."""
    seeds = 8 if quick else 30
    return {
        "samples": [over_seeds(n, 4.0, penalty, seeds) for penalty in PENALTIES for n in SAMPLES],
        "other_inputs": [over_seeds(n, 4.0, 1.0, seeds, same_inputs=False) for n in SAMPLES],
        "noise": [over_seeds(n, ratio, 1.0, seeds) for n in (25, 50, 200) for ratio in SIGNAL_TO_NOISE],
    }


def report(numbers: Numbers) -> str:
    """Return two tables: along n, and along signal to noise."""

    def cells(key: str, row: str, column: str, head: str) -> dict[float, dict[str, str]]:
        texts: dict[float, dict[str, str]] = {}
        for r in numbers[key]:
            text = show(r["cka"], 2) + (f"; {show(r['predicted'], 2)}" if "predicted" in r else "")
            texts.setdefault(r[row], {})[head.format(f"{r[column]:g}")] = text
        return texts

    samples = cells("samples", "n", "penalty", "penalty {}")
    other = cells("other_inputs", "n", "penalty", "penalty {}, different inputs")
    noise = cells("noise", "signal_to_noise", "n", "n = {}")
    return "\n\n".join(
        (
            "Signal to noise 4. Measured, with interval; predicted:",
            table({"n": str(n)} | samples[n] | other[n] for n in samples),
            "Penalty 1. Measured, with interval; predicted:",
            table({"signal to noise": f"{ratio:g}"} | row for ratio, row in noise.items()),
        )
    )


def draw(numbers: Numbers) -> Figure:
    """Draw alignment along n and along signal to noise: formulas as curves, measured values as points."""
    upper, lower = panels(("training samples / inputs", "debiased CKA"), ("signal to noise", "debiased CKA"))
    for k, penalty in enumerate(PENALTIES):
        rows = [row for row in numbers["samples"] if row["penalty"] == penalty]
        x = [row["n"] / P for row in rows]
        upper.plot(x, [row["predicted"] for row in rows], color=COLOURS[k], linewidth=0.8)
        points(upper, x, [row["cka"] for row in rows], k, f"penalty {penalty:g}")
    others = numbers["other_inputs"]
    band(upper, [row["n"] / P for row in others], [row["cka"] for row in others], 3, "penalty 1, different inputs")
    upper.axvline(1, color="0.6", linewidth=0.6, linestyle=":")
    for k, n in enumerate((25, 50, 200)):
        rows = [row for row in numbers["noise"] if row["n"] == n]
        x = [row["signal_to_noise"] for row in rows]
        lower.plot(x, [row["predicted"] for row in rows], color=COLOURS[k + 3], linewidth=0.8)
        points(lower, x, [row["cka"] for row in rows], k + 3, f"{n / P:g} samples per input")
    log_axis(upper, [n / P for n in SAMPLES if n not in (40, 60)])
    log_axis(lower, SIGNAL_TO_NOISE)
    for ax in (upper, lower):
        ax.set_ylim(0, 1.02)
    return finish([upper, lower], "Curves: formula. Points: measured, with 95 % intervals over seeds.")


if __name__ == "__main__":
    main(__file__, measure, report, draw)
