#!/usr/bin/env python3
"""Draw the picture of docs/series.md from two series: draw_cifar.py RESNET.nc VIT.nc.

`scripts/validation/train_series.py` trains the networks of which `repsim series` made them.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from PIL import Image

import repsim
from repsim import figures

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "cifar.png"
LINES = {"cka": ("raw", "#d55e00", "s"), "cka given input": ("given the input", "#0072b2", "o")}


def between_runs(series: xr.Dataset, ax: Axes) -> None:
    """Draw how similar two runs are at equal steps: mean over layers and pairs, and the range over runs."""
    for measure, (label, colour, marker) in LINES.items():
        network = series["network"].sel(measure=measure, comparison="other runs").groupby("value")
        mean, low, high = network.mean(), network.min(), network.max()
        ax.plot(mean["value"], mean, color=colour, marker=marker, markersize=3, label=label)
        ax.fill_between(mean["value"], low, high, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.set(xlabel="step", ylabel="debiased CKA of two runs", ylim=(-0.3, 1.03), xlim=(-0.2, 2000))
    ax.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7)


def main(resnet: str, vit: str) -> None:
    plt.rcParams["font.size"] = 8
    figure, axes = plt.subplots(2, 2, figsize=(6.8, 5.0), layout="constrained")
    for (left, right), path, name in zip(axes, (resnet, vit), ("ResNet", "ViT"), strict=True):
        series = repsim.open_series(path)
        figures.plot_convergence(series, left, measure="cka given input")
        left.set_ylabel("step at which it has settled")
        between_runs(series, right)
        for ax in (left, right):
            ax.set_title(name)
    figure.savefig(PICTURE, dpi=150)
    Image.open(PICTURE).convert("RGB").save(PICTURE, optimize=True)
    print(f"{PICTURE.name}  {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
