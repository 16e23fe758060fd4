#!/usr/bin/env python3
"""Simulate series whose truth is known, and count how often their sentences and intervals are wrong."""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr
from scipy import stats

import repsim

STEPS = (1, 3, 10, 30, 100, 300)
LAYERS, WIDTH, SAMPLES = 6, 12, 120
Layers = dict[str, Any]


def mixed(start: Any, end: Any, share: float, noise: Any) -> Any:
    """Return features that have gone a share of the way, with some noise of their own."""
    return (1 - share) * start + share * end + 0.3 * noise


def networks_without_trend(rng: np.random.Generator, seeds: int) -> Iterator[tuple[dict[str, Any], Layers]]:
    """Yield networks of growing width that share one signal, equally much whatever the width."""
    signal = rng.normal(size=(LAYERS, SAMPLES, WIDTH))
    for seed in range(seeds):
        for width in STEPS:
            share = rng.uniform(0.4, 0.6)  # of the network: what its seed makes of it
            noise = rng.normal(size=signal.shape)
            layers = {f"layer{k}": mixed(noise[k], signal[k], share, 0 * noise[k]) for k in range(LAYERS)}
            yield {"width": width, "seed": seed}, layers


def runs_with_trends_of_either_sign(rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], Layers]]:
    """Yield states of three runs that come closer to one network, or move away from it: on average neither."""
    base = rng.normal(size=(LAYERS, SAMPLES, WIDTH))
    yield {}, {f"layer{k}": base[k] for k in range(LAYERS)}
    for run in range(3):
        other, slope = rng.normal(size=base.shape), rng.normal(0, 0.1)
        for step in STEPS:
            share = 0.5 + slope * (np.log10(step) - 1.24)
            noise = rng.normal(size=base.shape)
            yield (
                {"step": step, "run": f"r{run}"},
                {f"layer{k}": mixed(other[k], base[k], share, noise[k]) for k in range(LAYERS)},
            )


def layers_in_any_order(rng: np.random.Generator, runs: int) -> Iterator[tuple[dict[str, Any], Layers]]:
    """Yield states of runs whose layers settle at times that do not depend on depth."""
    for run in range(runs):
        start, end = rng.normal(size=(2, LAYERS, SAMPLES, WIDTH))
        times = np.exp(rng.uniform(0, 4, LAYERS))
        for step in STEPS:
            noise = rng.normal(size=start.shape)
            yield (
                {"step": step, "run": f"r{run}"},
                {f"layer{k}": mixed(start[k], end[k], step / (step + times[k]), 0.1 * noise[k]) for k in range(LAYERS)},
            )


CASES: dict[str, tuple[Callable[[np.random.Generator], Iterator[tuple[dict[str, Any], Layers]]], dict[str, Any]]] = {
    "width without a trend": (lambda rng: networks_without_trend(rng, 1), {"axis": "width"}),
    "width without a trend, three seeds": (lambda rng: networks_without_trend(rng, 3), {"axis": "width"}),
    "three runs, trends of either sign": (runs_with_trends_of_either_sign, {"reference": "model0"}),
    "one run, layers in any order": (lambda rng: layers_in_any_order(rng, 1), {}),
    "three runs, layers in any order": (lambda rng: layers_in_any_order(rng, 3), {}),
}


def simulate(case: str, seed: int) -> xr.Dataset:
    """Compute one series of a case."""
    make, options = CASES[case]
    rng = np.random.default_rng([sorted(CASES).index(case), seed])
    with tempfile.TemporaryDirectory() as folder:
        stores = [
            repsim.write_store(Path(folder, f"{k}.h5"), layers, model=f"model{k}", axes=axes)
            for k, (axes, layers) in enumerate(make(rng))
        ]
        series = repsim.series(stores, progress=False, **options)
        for store in stores:
            store.close()
    return series


SENTENCES = {
    "trend": (("No trend of ",), (" rises along ", " falls along ")),
    "order": (("no order of depth",), ("lower layers settle first", "higher layers settle first")),
}
"""Words of sentences that claim nothing, and of those that make a claim."""


def sentences(series: xr.Dataset, kind: str) -> tuple[int, int]:
    """Return how many sentences of a summary make a claim, all of them false, and how many do not."""
    texts = json.loads(series.attrs["summary"])
    without, claims = ([text for text in texts if any(word in text for word in words)] for words in SENTENCES[kind])
    return len(claims), len(without)


def coverage(draws: int) -> dict[str, float]:
    """Return how often intervals over pictures contain the value of very many pictures."""
    population = 4000
    rng = np.random.default_rng(5)
    signal = rng.normal(size=(2, population, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.5
    points = [mixed(signal[0], signal[1], share, rng.normal(size=signal[0].shape)) for share in (0.2, 0.4, 0.6, 0.9)]

    def computed(samples: Any) -> xr.Dataset:
        with tempfile.TemporaryDirectory() as folder:
            stores = [
                repsim.write_store(Path(folder, f"{k}.h5"), {"out": x[samples]}, model=f"m{k}", axes={"step": 10**k})
                for k, x in enumerate(points)
            ]
            series = repsim.series(stores, progress=False).sel(measure="cka", comparison="reference")
            for store in stores:
                store.close()
        return series

    truth, inside = computed(np.arange(population)), Counter[str]()
    for _ in range(draws):
        one = computed(rng.choice(population, SAMPLES, replace=False))
        for name, select in {
            "similarity": {"point": "m0", "layer": "out"}, "gain": {"point": "m2"},
            "trend_slope": {"trend_of": "network"}, "trend_exponent": {"trend_of": "network"},
        }.items():  # fmt: skip
            ends = {**select, "over": "pictures"} if name.startswith("trend") else select
            low, high = (float(one[f"{name}_{end}"].sel(ends)) for end in ("low", "high"))
            inside[name] += int(low <= float(truth[name].sel(select)) <= high)
        low, high = (float(one[f"settled_{end}"].sel(one_run="", layer="out")) for end in ("low", "high"))
        inside["settled"] += int(low <= float(truth["settled"].sel(one_run="", layer="out")) <= high)
    return {name: count / draws for name, count in inside.items()}


@click.command()
@click.option("--draws", default=400, show_default=True, help="Number of series of each case.")
def main(draws: int) -> None:
    """Print how often series without a trend or an order claim one, and how often intervals contain the truth."""
    start = time.time()
    for case in CASES:
        kind = "order" if "order" in case else "trend"  # layers that settle do have a trend
        false, none = np.sum([sentences(simulate(case, seed), kind) for seed in range(draws)], axis=0)
        low, high = stats.binomtest(int(false), int(false + none)).proportion_ci(method="wilson")
        print(f"{case}: {false} of {false + none} sentences, {100 * false / (false + none):.1f} % "
              f"({100 * low:.1f} to {100 * high:.1f})")  # fmt: skip
        sys.stdout.flush()
    for name, share in coverage(draws).items():
        print(f"interval of {name} over pictures: contains the truth in {100 * share:.1f} %")
    print(f"{draws} series each, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
