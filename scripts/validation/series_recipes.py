#!/usr/bin/env python3
"""Do what people do with a series, on digits: the numbers, sentences and figures of docs/series-recipes.md."""

import json
import tempfile
import textwrap
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
import xarray as xr
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import pil_to_tensor

import repsim
import repsim.extractors.zoo  # its networks become known to timm
from repsim import figures
from repsim.extractors import open_images
from repsim.figures.canvas import COLOURS, MARKERS, finish_layout, make_figure, save, style_axes
from repsim.figures.styles import NOTE, PAGE
from repsim.study.formatting import probability

Numbers = dict[str, Any]
"""Numbers that a recipe prints, as JSON can hold them."""
SAMPLES = 400
"""Number of test pictures that all networks read."""


@dataclass(frozen=True)
class Size:
    """Amount of training: all, or less for a test."""

    seeds: int = 3
    steps: float = 1.0
    """Share of the steps."""
    samples: int = SAMPLES

    def of(self, steps: int) -> int:
        """Return the number of steps."""
        return max(1, round(self.steps * steps))


# --- pictures and networks


def to_tensor(picture: Image.Image) -> Tensor:
    """Return a digit as the networks of this page read it: (3, 8, 8), with mean 0 and variance 1."""
    pixels: Tensor = pil_to_tensor(picture.convert("RGB").resize((8, 8)))
    return (pixels / 255 - 0.31) / 0.38


def digits(split: str, transform: Callable[[Image.Image], Tensor] = to_tensor) -> tuple[Tensor, Tensor]:
    """Return the pictures of a split, (n, 3, height, width), and their classes."""
    images = open_images("digits", split=split)
    return torch.stack([transform(images.load(k)) for k in range(len(images))]), torch.tensor(np.array(images.labels))


def perceptron(width: int, depth: int) -> nn.Sequential:
    """Return a perceptron with this number of hidden layers."""
    sizes = [3 * 64, *[width] * depth]
    maps = [nn.Linear(p, q) for p, q in pairwise(sizes)]
    for linear in maps:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return _named([nn.Sequential(linear, nn.ReLU()) for linear in maps], [nn.Linear(width, 10)], first=[nn.Flatten()])


def small_cnn(width: int = 24) -> nn.Sequential:
    """Return a network of four convolutions without batch norm, so that averages of weights are networks."""
    channels = [3, width, width, 2 * width, 2 * width]
    blocks = [
        nn.Sequential(nn.Conv2d(p, q, 3, padding=1, stride=1 + (k == 2)), nn.ReLU())
        for k, (p, q) in enumerate(pairwise(channels))
    ]
    return _named(blocks, [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10)])


def _named(blocks: Sequence[nn.Module], last: Sequence[nn.Module], first: Sequence[nn.Module] = ()) -> nn.Sequential:
    """Return these modules one after the other, of which the blocks are named block1, block2, ..."""
    names = {f"first{k}": module for k, module in enumerate(first)}
    names |= {f"block{k}": module for k, module in enumerate(blocks, start=1)}
    return nn.Sequential(OrderedDict(names | {f"last{k}": module for k, module in enumerate(last)}))


def train(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, *, seed: int, rate: float = 1e-3, batch: int = 64
) -> Iterator[int]:
    """Train with Adam, and yield the number of steps done after each."""
    model.train()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=draw)
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


def trained(model: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """Train to the end, and return the network."""
    for _ in train(model, *args, **options):
        pass
    return model.eval()


def extract(models: Mapping[str, nn.Module], axes: Sequence[Mapping[str, Any]], out: Path, size: Size) -> list[Any]:
    """Extract the networks on the test pictures, and return their stores."""
    return repsim.extract(
        list(models.values()), "digits", out, split="test", limit=size.samples, transform=to_tensor, name=list(models),
        layers="block*", axes=[dict(of_model) for of_model in axes],
    )  # fmt: skip


# --- output


def sentences(series: xr.Dataset) -> list[str]:
    """Return the sentences that `repsim series` prints: the summary, then the warnings."""
    return [*json.loads(series.attrs["summary"]), *(f"note: {text}" for text in json.loads(series.attrs["warnings"]))]


def mean_by_value(
    series: xr.Dataset, comparison: str, measure: str = "cka", name: str = "network"
) -> list[list[float]]:
    """Return the values of the axis, and the means over runs of the similarity there."""
    of_points = series[name].sel(measure=measure, comparison=comparison)
    if "layer" in of_points.dims:
        of_points = of_points.mean("layer")
    values = np.unique(series["value"].values)
    means = [float(np.nanmean(of_points.values[series["value"].values == value])) for value in values
             if np.isfinite(of_points.values[series["value"].values == value]).any()]  # fmt: skip
    return [values.tolist(), means]


def side_by_side(count: int, height: float = 1.9, **options: Any) -> list[Axes]:
    """Return the axes of a new figure as wide as a page, side by side."""
    return list(np.ravel(make_figure(PAGE, height).subplots(1, count, **options)))


def finish(axes: Sequence[Axes], path: Path, caption: str) -> None:
    """Add the caption, fix the layout, and save the figure."""
    finish_layout(axes[0].figure.figure, [caption])
    keep_figure(axes[0], path)


def keep_figure(ax: Axes, path: Path) -> None:
    """Save the figure of these axes with few colours, as a small file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(ax.figure.figure, path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(path, dpi=(200, 200), optimize=True)


def title(ax: Axes, text: str) -> None:
    """Write a title above a panel, in the size of its numbers."""
    ax.set_title(text, fontsize=NOTE + 0.5, loc="left", pad=4)


# --- recipes


def width_and_depth(folder: Path, out: Path, size: Size) -> Numbers:
    """Compare networks of growing width, and of growing depth."""
    x, y = digits("train")
    widths, depths = (8, 16, 32, 128, 512), (4, 6, 8, 11, 16)
    numbers: Numbers = {}
    results: dict[str, xr.Dataset] = {}
    for axis, shapes in {"width": [(w, 6) for w in widths], "depth": [(64, d) for d in depths]}.items():
        models: dict[str, nn.Module] = {}
        axes = []
        for width, depth in shapes:
            for seed in range(size.seeds):
                torch.manual_seed(100 * seed + depth)
                name = f"{axis}{width if axis == 'width' else depth}-seed{seed}"
                models[name] = trained(perceptron(width, depth), x, y, size.of(250), seed=seed)
                axes.append({"width": width, "depth": depth, "seed": seed})
        stores = extract(models, axes, folder / axis, size)
        results[axis] = repsim.series(stores, axis=axis, run="seed", scale="log")
        numbers[axis] = {
            "sentences": sentences(results[axis]),
            "reference": mean_by_value(results[axis], "reference"),
            "other runs": mean_by_value(results[axis], "other runs"),
            "accuracy": [float(np.mean([s.accuracy for s in stores if s.axes[axis] == v]))
                         for v in (widths if axis == "width" else depths)],
        }  # fmt: skip
        deepest = stores[-size.seeds]
        if axis == "depth":
            structure = repsim.block_structure(deepest)
            numbers["block structure"] = json.loads(structure.attrs["summary"])

    axes_of = side_by_side(2)
    for ax, series in zip(axes_of, results.values(), strict=True):
        figures.plot_trend(series, ax, comparison="other runs")
    finish(axes_of, out / "width_depth.png", "Two seeds of one architecture, mean over layers.")
    axes_of = side_by_side(len(depths), height=1.1)
    within = results["depth"]["within"].sel(measure="cka")
    for ax, depth in zip(axes_of, depths, strict=True):
        table = within.sel(point=f"depth{depth}-seed0").values[:depth, :depth]
        style_axes(ax, "layer", "layer")
        image = ax.imshow(table, origin="lower", vmin=0, vmax=1, cmap="magma", extent=(0.5, depth + 0.5) * 2)
        title(ax, f"depth {depth}")
        ticks = sorted({1, depth // 2, depth})
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
    axes_of[0].figure.colorbar(image, ax=axes_of, fraction=0.03, pad=0.01).ax.tick_params(labelsize=NOTE)
    finish(axes_of, out / "width_depth_within.png", "Every layer of a network with every other, seed 0: debiased CKA.")
    return numbers


def fine_tuning(folder: Path, out: Path, size: Size) -> Numbers:
    """Follow a fine-tuned network away from its base."""
    base = timm.create_model("digits_resnet.seed0", pretrained=True)
    config = timm.data.resolve_model_data_config(base)
    transform = timm.data.create_transform(**config, is_training=False)
    x, y = digits("train", lambda picture: transform(Image.eval(picture.convert("RGB"), lambda v: 255 - v)))
    keep = sorted({size.of(step) for step in (1, 3, 10, 30, 90)})
    models: dict[str, nn.Module] = {}
    axes: list[dict[str, Any]] = []
    for run in range(size.seeds):
        model = deepcopy(base)
        for step in train(model, x, y, keep[-1], seed=run, rate=1e-3, batch=32):
            if step in keep:
                models[f"tuned{run}-step{step}"] = deepcopy(model)
                axes.append({"step": step, "run": str(run)})
    stores = repsim.extract(
        [base, *models.values()], "digits", folder / "tuned", split="test", limit=size.samples, layers="blocks",
        name=["base", *models], axes=[{}, *axes],
    )  # fmt: skip
    series = repsim.series(stores, axis="step", reference="base")
    keep_figure(figures.plot_drift(series, run="0"), out / "fine_tuning.png")
    last = series.isel(point=series["value"].values == keep[-1]).sel(measure="cka", comparison="reference")
    return {
        "sentences": sentences(series),
        "reference": mean_by_value(series, "reference"),
        "layers": series["layer"].values.tolist(),
        "drift": (1 - last["similarity"].mean("point")).values.tolist(),
        "accuracy": [
            stores[0].accuracy,
            float(np.mean([s.accuracy for s in stores if s.axes.get("step") == keep[-1]])),
        ],
    }


def federated(folder: Path, out: Path, size: Size) -> Numbers:
    """Train three clients with different classes from one base, alone and with averaging."""
    x, y = digits("train")
    torch.manual_seed(0)
    base = trained(small_cnn(), x, y, size.of(60), seed=0)
    classes = {"0-3": (0, 1, 2, 3), "4-6": (4, 5, 6), "7-9": (7, 8, 9)}
    rounds, local = (1, 2, 4, 8, 16), size.of(10)
    numbers: Numbers = {}
    results = {}
    for way in ("alone", "averaged"):
        clients = {name: deepcopy(base) for name in classes}
        models: dict[str, nn.Module] = {}
        axes = []
        for number in range(1, rounds[-1] + 1):
            for k, (name, own) in enumerate(classes.items()):
                rows = torch.isin(y, torch.tensor(own))
                clients[name] = trained(clients[name], x[rows], y[rows], local, seed=100 * number + k, batch=32)
                if number in rounds:
                    models[f"client {name}, round {number}"] = deepcopy(clients[name])
                    axes.append({"round": number, "client": name})
            if way == "averaged":
                states = [client.state_dict() for client in clients.values()]
                mean = {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}
                for client in clients.values():
                    client.load_state_dict(mean)
        stores = extract({"base": base, **models}, [{}, *axes], folder / way, size)
        results[way] = repsim.series(stores, axis="round", run="client", reference="base")
        numbers[way] = {
            "sentences": sentences(results[way]),
            "reference": mean_by_value(results[way], "reference"),
            "other runs": mean_by_value(results[way], "other runs"),
        }
    axes_of = side_by_side(2, sharey=True)
    for ax, (way, series) in zip(axes_of, results.items(), strict=True):
        figures.plot_runs(series, ax)
        title(ax, {"alone": "clients alone", "averaged": "averaged after every round"}[way])
    finish(
        axes_of, out / "federated.png", "Two clients at equal rounds, by layer. Lines: means; bands: range of clients."
    )
    return numbers


def quality(folder: Path, out: Path, size: Size) -> Numbers:
    """Compare networks of growing quality with a good one."""
    x, y = digits("train")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    counts = (10, 20, 40, 80, 200, 600)
    models: dict[str, nn.Module] = {}
    axes = []
    for count in counts:
        for seed in range(size.seeds):
            torch.manual_seed(seed)
            rows = order[:count]
            models[f"{count} pictures, seed {seed}"] = trained(small_cnn(), x[rows], y[rows], size.of(200), seed=seed)
            axes.append({"training_pictures": count, "seed": seed})
    torch.manual_seed(99)
    models["good"] = trained(small_cnn(), x, y, size.of(400), seed=99)
    stores = extract(models, [*axes, {"seed": "good"}], folder / "quality", size)
    measures = ["cka:estimator=biased", "mutual_knn"]
    series = repsim.series(stores, measures, axis="accuracy", reference="good")
    numbers: Numbers = {"sentences": sentences(series), "table": []}
    names = series["measure"].values.tolist()
    where = ~np.isin(series["point"].values, ["good"])
    means = series.isel(point=where).sel(comparison="reference")
    for measure in names:
        raw, calibrated = (means[name].sel(measure=measure).mean("layer") for name in ("similarity", "calibrated"))
        low, high = (series[f"trend_slope_{end}"].sel(measure=measure, comparison="reference", trend_of="network",
                                                      over="pictures").item() for end in ("low", "high"))  # fmt: skip
        trend = series.sel(measure=measure, comparison="reference", trend_of="network")
        numbers["table"].append({
            "measure": measure, "raw": _ends(raw, means), "calibrated": _ends(calibrated, means),
            "slope": float(trend["trend_slope"]), "interval": [low, high], "p": float(trend["trend_p"]),
        })  # fmt: skip
    axes_of = side_by_side(2, sharey=True)
    for ax, name in zip(axes_of, ("similarity", "calibrated"), strict=True):
        style_axes(ax, "accuracy on the test pictures", "similarity, mean over layers")
        for k, measure in enumerate(m for m in names if m != "cka:estimator=biased"):  # it would hide `cka`
            values = means[name].sel(measure=measure).mean("layer")
            ax.plot(means["value"], values, MARKERS[k], color=COLOURS[k], markersize=3, label=measure)
        ax.set_ylim(0, 1.02)
        title(ax, {"similarity": "raw", "calibrated": "calibrated: 0 is the level of unrelated layers"}[name])
    axes_of[0].legend(fontsize=NOTE, frameon=False, loc="lower right")
    finish(axes_of, out / "quality.png", "Similarity with one good network. A point is a network.")
    return numbers


def _ends(values: xr.DataArray, points: xr.Dataset) -> list[float]:
    """Return the means over the third of the networks with the lowest, and with the highest accuracy."""
    order = np.argsort(points["value"].values)
    third = max(1, len(order) // 3)
    return [float(values.values[part].mean()) for part in (order[:third], order[-third:])]


def corruption(folder: Path, out: Path, size: Size) -> Numbers:
    """Compare what networks make of clean and of noisy pictures."""
    levels = (0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    images = open_images("digits", split="test")
    random = np.random.default_rng(0)
    stores = []
    for level in levels:
        pictures = folder / f"noise_{level:g}"
        pictures.mkdir(parents=True)
        for k in range(size.samples):
            clean = images.load(k).convert("L").resize((32, 32), Image.Resampling.BICUBIC)
            noisy = np.asarray(clean, float) / 255 + level * random.normal(size=(32, 32))
            Image.fromarray(np.uint8(np.clip(noisy, 0, 1) * 255)).save(pictures / f"{k:03d}.png")
        seeds = range(size.seeds)
        stores += repsim.extract(
            [f"digits_resnet.seed{seed}" for seed in seeds], pictures, folder / "noise", layers="blocks",
            name=[f"seed{seed}-noise{level:g}" for seed in seeds],
            axes=[{"noise": level, "seed": seed} for seed in seeds],
        )  # fmt: skip
    series = repsim.series(stores, axis="noise", reference="first", points="states", pair_by="id")
    result = repsim.compare(stores[0], stores[levels.index(0.4) * size.seeds], pair_by="id")
    keep_figure(figures.plot_trajectories(series, run="0"), out / "noise.png")
    return {
        "sentences": sentences(series),
        "reference": mean_by_value(series, "reference"),
        "other runs": mean_by_value(series, "other runs"),
        "compare": [round(float(value), 3) for value in np.diag(result["cka"])],
        "layers": result["layer_a"].values.tolist(),
    }


RECIPES: dict[str, Callable[[Path, Path, Size], Numbers]] = {
    "width_and_depth": width_and_depth,
    "fine_tuning": fine_tuning,
    "federated": federated,
    "quality": quality,
    "corruption": corruption,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("recipes"), show_default=True,
              help="Folder of the figures and numbers.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(list(RECIPES)), help="These recipes only.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), help="Write the sentences into this page, too.")
def main(out: Path, only: Sequence[str], page: Path | None) -> None:
    """Run all recipes; print their sentences, and write their figures and numbers to OUT."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    for name in only or RECIPES:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            numbers = RECIPES[name](Path(folder), out, Size())
        (out / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
        for title_of_part, text in texts(name, numbers).items():
            print(f"== {title_of_part}\n{text}\n")
            if page is not None:
                page.write_text(with_part(page.read_text(), title_of_part, text))
        print(f"{name}: {time.perf_counter() - start:.0f} s\n")


def texts(name: str, numbers: Numbers) -> dict[str, str]:
    """Return the sentences of a recipe, and its table, by the name of the part."""
    parts = {}
    if "table" in numbers:
        parts[f"{name} table"] = table(numbers["table"])
    for key, value in {name: numbers, **numbers}.items():
        if isinstance(value, dict) and "sentences" in value:
            parts[key] = in_lines(value["sentences"])
        elif key == "block structure":
            parts[key] = in_lines(value)
    return parts


def in_lines(sentences: Sequence[str]) -> str:
    """Return sentences as the terminal shows them, in a fenced block."""
    lines = [textwrap.fill(text, 96, subsequent_indent="  ") for text in sentences]
    return "\n".join(["```text", *lines, "```"])


def table(rows: Sequence[Numbers]) -> str:
    """Return the table of trends of raw and calibrated similarity."""
    lines = ["| measure | raw: worst third, best third | calibrated | slope for one unit of accuracy | p |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        raw, calibrated = (
            "not known" if np.isnan(row[name][0]) else " to ".join(f"{value:.3f}" for value in row[name])
            for name in ("raw", "calibrated")
        )
        low, high = row["interval"]
        interval = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
        lines.append(
            f"| `{row['measure']}` | {raw} | {calibrated} | {row['slope']:.3f}{interval} | {probability(row['p'])} |"
        )
    return "\n".join(lines)


def with_part(page: str, name: str, text: str) -> str:
    """Return a page with a text between the two comments of a part."""
    first, last = f"<!-- {name}: written by scripts/validation/series_recipes.py -->\n\n", f"\n\n<!-- /{name} -->"
    start, end = page.index(first) + len(first), page.index(last)
    return page[:start] + text + page[end:]


if __name__ == "__main__":
    main()
