#!/usr/bin/env python3
"""Repeat the layer identification of Kornblith et al. 2019, Table 2: see ``reproduce_kornblith.py --help``."""

import itertools
import math
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchvision.transforms.functional import pil_to_tensor

import repsim
from repsim import metrics as registry
from repsim.engine.comparison import Comparison
from repsim.errors import RepsimError
from repsim.extractors import open_images
from repsim.extractors.zoo import ZOO
from repsim.metrics import Metric
from repsim.runtime.files import replacing

PAPER = {
    "cca": 1.4,
    "cca:summary=r2": 10.6,
    "svcca": 9.9,
    "svcca:summary=r2": 15.1,
    "pwcca": 11.1,
    "linear_regression": 45.4,
    "cka:estimator=biased": 99.3,
    "cka:kernel=rbf,estimator=biased,bandwidth=0.2": 80.6,
    "cka:kernel=rbf,estimator=biased,bandwidth=0.4": 99.1,
    "cka:kernel=rbf,estimator=biased,bandwidth=0.8": 99.3,
}
"""Table 2 of the paper, in percent. It also has linear HSIC (22.2), the numerator of CKA, which is not in repsim."""
LAYERS = "conv*,pool"
"""All nine layers except the logits, as in the paper."""
AVERAGED = {"tiny10": "pool", "digits_resnet": "pre_logits"}
"""Layer that averages the layer before it over positions; with the readout mean both are equal, and it is left out."""

Say = Callable[[str], None]
Array = NDArray[np.float64]


# --- identification


@dataclass(frozen=True, eq=False)
class Identification:
    """Results of the identification of every layer of every network in every other network."""

    credit: Array
    """Array of shape (networks, networks, layers). The entry for layer l of network i in network j is 1 if layer l of j
    is the most similar one, 1/k if it is one of k tied layers, else 0. It is NaN for i = j."""
    ties: int
    """Number of decisions between equally similar layers."""
    undefined: int
    """Number of decisions for which a value is missing."""

    @property
    def accuracy(self) -> float:
        """Mean credit in percent, over all ordered pairs of different networks and all layers."""
        return 100 * float(np.nanmean(self.credit))

    @property
    def by_layer(self) -> Array:
        """Mean credit of each layer in percent."""
        return 100 * np.asarray(np.nanmean(self.credit, axis=(0, 1)))

    @property
    def error(self) -> float:
        """Standard error of the accuracy, by the jackknife over networks; NaN for fewer than three networks."""
        n = len(self.credit)
        if n < 3:
            return math.nan
        without = [np.nanmean(np.delete(np.delete(self.credit, k, 0), k, 1)) for k in range(n)]
        return 100 * math.sqrt((n - 1) * np.var(without))


def identify(values: Array, *, distance: bool = False, tolerance: float = 1e-6) -> Identification:
    """Test for each layer of each network whether the most similar layer of every other network corresponds to it.

    Parameters
    ----------
    values : array of shape (networks, layers, networks, layers)
        Similarity of layer l of network i and layer m of network j.
    distance : bool
        Whether small values mean similar layers.
    tolerance : float
        Values are tied if they differ by less than this share of the largest absolute value in the row. Rounding
        errors of float32 then do not decide.

    Notes
    -----
    A layer without a value (NaN) is never the most similar one. If it is the corresponding layer, this counts as wrong.
    """
    good = np.where(np.isnan(values), -np.inf, -values if distance else values)
    scale = np.abs(np.nan_to_num(values)).max(-1, keepdims=True)
    tied = np.isfinite(good) & (good >= good.max(-1, keepdims=True) - tolerance * scale)
    count = tied.sum(-1)
    right = np.diagonal(tied, axis1=1, axis2=3)  # (i, j, l)
    credit = right / np.maximum(count, 1).transpose(0, 2, 1)
    same = np.eye(len(values), dtype=bool)
    credit[same] = np.nan
    different = ~same[:, None, :]
    ties = int(((count > 1) & different).sum())
    return Identification(credit, ties, int((np.isnan(values).any(-1) & different).sum()))


def identify_in(result: xr.Dataset, spec: str, without: str | None = None) -> Identification:
    """Identify layers in a result of networks of one architecture, without the layer ``without``.

    An asymmetric measure S is replaced by S + S', as in the paper for PWCCA and linear regression.
    """
    variable, models = result[spec], len(set(result["model_a"].values))
    names = np.array([str(name).partition("/")[2] for name in result["layer_a"].values])
    kept = np.flatnonzero(names != without)
    values = variable.values[np.ix_(kept, kept)]
    values = values if variable.attrs["symmetric"] else (values + values.T) / 2
    layers = names[kept].reshape(models, -1)
    assert (layers == layers[0]).all(), "networks of one architecture have the same layers"
    shape = (*layers.shape, *layers.shape)
    return identify(values.reshape(shape), distance=variable.attrs["sense"] == "distance")


# --- networks


def tiny10() -> nn.Sequential:
    """Return Tiny-10 (Table E.1 of the paper): eight convolutions, global average pooling, logits."""

    def convolution(channels: int, width: int, size: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(channels, width, size, stride, padding, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())

    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=convolution(3, 16),
            conv2=convolution(16, 16),
            conv3=convolution(16, 32, stride=2),
            conv4=convolution(32, 32),
            conv5=convolution(32, 32),
            conv6=convolution(32, 64, stride=2),
            conv7=convolution(64, 64, padding=0),
            conv8=convolution(64, 64, size=1, padding=0),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            logits=nn.Linear(64, 10),
        )
    )


def normalised(pixels: Tensor) -> Tensor:
    """Scale pixels of 0 to 255 to the input range of the networks."""
    return (pixels.float() / 255 - 0.5) / 0.25


def transform(picture: Image.Image) -> Tensor:
    """Return the input of the networks for one image."""
    return normalised(pil_to_tensor(picture.resize((32, 32)) if picture.size != (32, 32) else picture))


@dataclass(frozen=True)
class Training:
    """Training settings: SGD with Nesterov momentum, a one-cycle learning rate, random flips and shifts.

    The paper does not describe the training, so these settings are our choice.
    """

    data: str
    epochs: int
    bf16: bool
    rate: float = 0.1
    decay: float = 5e-4
    batch: int = 128
    shift: int = 4

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Training images, bytes of shape (n, 3, 32, 32), and their labels."""
        return self._pictures("train")

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test images, bytes of shape (n, 3, 32, 32), and their labels."""
        return self._pictures("test")

    def _pictures(self, split: str) -> tuple[Tensor, Tensor]:
        source = open_images(self.data, split=split)
        if source.labels is None:
            raise click.ClickException(f"{source.name} has no labels; put the images of each class into one folder")
        return torch.stack([pil_to_tensor(source.load(i)) for i in range(len(source))]), torch.tensor(source.labels)

    def settings(self) -> dict[str, Any]:
        """Return the settings that are saved in a checkpoint."""
        fields = {name: getattr(self, name) for name in ("epochs", "bf16", "rate", "decay", "batch", "shift")}
        return fields | {"pictures": len(self.train[0])}

    def augment(self, pictures: Tensor, draw: torch.Generator) -> Tensor:
        """Flip half of the images, and shift each by a few pixels; new pixels are black."""
        n, _, height, width = pictures.shape
        large = pad(pictures, [self.shift] * 4)
        down, right = torch.randint(0, 2 * self.shift + 1, (2, n, 1), generator=draw)
        columns = torch.arange(width).expand(n, width)
        columns = torch.where(torch.rand(n, 1, generator=draw) < 0.5, columns, columns.flip(1)) + right
        rows = torch.arange(height) + down
        return large[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def run(self, seed: int, say: Say) -> nn.Module:
        """Train one network; the seed determines its weights, the order of the images, and their augmentation."""
        pictures, labels = self.train
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = tiny10().to(memory_format=torch.channels_last)
        draw = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), self.rate, 0.9, weight_decay=self.decay, nesterov=True)
        steps = self.epochs * -(-len(pictures) // self.batch)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps, pct_start=0.2)
        for epoch in range(self.epochs):
            began, total = time.perf_counter(), 0.0
            for rows in torch.randperm(len(pictures), generator=draw).split(self.batch):
                batch = normalised(self.augment(pictures[rows], draw)).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    loss = cross_entropy(model(batch).float(), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                total += loss.item() * len(rows)
            seconds = time.perf_counter() - began
            say(f"seed {seed}  epoch {epoch + 1}/{self.epochs}  loss {total / len(pictures):.3f}  {seconds:.1f} s")
        return model.eval()

    @torch.inference_mode()
    def accuracy(self, model: nn.Module) -> float:
        """Return the share of the test images that the network classifies correctly."""
        pictures, labels = self.test
        predicted = torch.cat([model.eval()(normalised(batch)).argmax(1) for batch in pictures.split(500)])
        return float((predicted == labels).double().mean())

    def network(self, seed: int, folder: Path, say: Say) -> tuple[nn.Module, float]:
        """Load a network from its checkpoint, or train and save it; return it with its test accuracy."""
        path, model = folder / f"tiny10.seed{seed}.pt", tiny10()
        if path.exists():
            checkpoint = torch.load(path, weights_only=True)
            if checkpoint["settings"] != self.settings():
                raise click.ClickException(
                    f"{path} was trained with other settings ({checkpoint['settings']}); choose another --work"
                )
        else:
            began = time.perf_counter()
            trained = self.run(seed, say)
            score = self.accuracy(trained)
            checkpoint = {"state": trained.state_dict(), "settings": self.settings(), "accuracy": score}
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, overwrite=False) as partial:
                torch.save(checkpoint, partial)
            say(f"seed {seed}  test accuracy {score:.3f}  {time.perf_counter() - began:.0f} s  {path}")
        model.load_state_dict(checkpoint["state"])
        return model.eval(), checkpoint["accuracy"]


# --- comparison


def measures() -> list[str]:
    """Return the default measures: those of the paper, and all others except topological ones."""
    names = [name for group, names in registry.groups().items() if group != "topology" for name in sorted(names)]
    specs = [registry.get(spec).spec for spec in PAPER if exists(spec)]
    return list(dict.fromkeys([*specs, *names]))


def exists(spec: str) -> bool:
    """Return whether repsim has this measure."""
    try:
        registry.get(spec)
    except RepsimError:
        return False
    return True


@dataclass
class Column:
    """Column of the table: all measures on the same activations."""

    results: dict[str, Identification]
    left: dict[str, str]
    """Reason for every measure without a result, by spec."""
    samples: int
    layers: int


def examine(
    stores: Sequence[repsim.ActivationStore],
    specs: Sequence[str],
    *,
    file: Path,
    minutes: float,
    memory: str,
    without: str | None,
    say: Say,
) -> Column:
    """Compare all layers of all networks under every measure, and identify each layer in the other networks.

    Values in ``file`` are not computed again. A measure is left out if the plan, as in `repsim compare --dry-run`,
    predicts more than this number of ``minutes``.
    """
    result = repsim.open_result(file) if file.exists() else None
    left: dict[str, str] = {}
    groups: dict[type, list[Metric[Any]]] = {}  # by recipe, because measures with equal recipes share their factors
    speed = None
    for metric in map(registry.get, specs):
        if result is not None and metric.spec in result:
            continue
        try:
            with Comparison(stores, metrics=[metric], memory=memory) as planned:
                speed = speed or planned.rates()
                seconds = planned.plan.seconds(speed)
        except RepsimError as error:
            left[metric.spec] = str(error)
            continue
        if seconds > 60 * minutes:
            left[metric.spec] = f"would take about {seconds / 60:,.0f} minutes"
        else:
            groups.setdefault(type(metric.recipe), []).append(metric)
    todo = list(groups.values())
    while todo:
        group, began = todo.pop(0), time.perf_counter()
        try:
            with Comparison(stores, metrics=group, memory=memory, earlier_result=result) as planned:
                result = planned.run(parts=file.with_suffix(".parts"), command=" ".join(sys.argv))
        except RepsimError as error:
            if len(group) > 1:  # try the measures one by one, to identify the one that fails
                todo[:0] = [[metric] for metric in group]
            else:
                left[group[0].spec] = str(error)
            continue
        repsim.save_result(result, file, overwrite=True)
        say(f"{', '.join(metric.spec for metric in group)}: {time.perf_counter() - began:.0f} s")
    results = {} if result is None else {spec: identify_in(result, spec, without) for spec in specs if spec in result}
    return Column(results, left, len(stores[0].sample_ids), len(set(stores[0].layers) - {without}))


def table(columns: Mapping[str, Column], specs: Sequence[str], paper: Mapping[str, float]) -> str:
    """Return a table of the accuracies in Markdown, with those of the paper, and reasons for missing ones below."""
    head = ["measure", *(["paper"] if paper else []), *(f"{name}, n = {c.samples:,}" for name, c in columns.items())]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for spec in dict.fromkeys([*paper, *specs]):
        cells = [cell(column.results[spec]) if spec in column.results else "–" for column in columns.values()]
        lines.append([f"`{spec}`", *([f"{paper[spec]}" if spec in paper else ""] if paper else []), *cells])
    notes = [f"- {name}, `{spec}`: {reason}" for name, col in columns.items() for spec, reason in col.left.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + ("\n\nLeft out:\n\n" + "\n".join(notes) if notes else "")


def cell(result: Identification) -> str:
    """Return the text of one cell: accuracy, standard error, and the numbers of tied and undefined decisions."""
    error = "" if math.isnan(result.error) else f" ± {result.error:.1f}"
    counts = {"tied": result.ties, "undefined": result.undefined}
    remarks = [f"{count:,} {name}" for name, count in counts.items() if count]
    return f"{result.accuracy:.1f}{error}" + (f" ({', '.join(remarks)})" if remarks else "")


# --- command


@click.command()
@click.option("--data", help="CIFAR-10: a .tar or folder with train/CLASS/*.* and test/CLASS/*.* inside.")
@click.option("--zoo", is_flag=True, help="Use the networks that come with repsim, on digits, instead of CIFAR-10.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()) / "repsim-kornblith",
    show_default="repsim-kornblith in the folder for temporary files",
    help="Folder for networks, activations and results; the same command continues from these files.",
)
@click.option("--networks", type=click.IntRange(min=2), default=10, show_default=True, help="Number of networks.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--bf16", is_flag=True, help="Train in bfloat16: half the time on a processor that supports it.")
@click.option(
    "-m", "--metric", "specs", multiple=True, help="Measures or groups.  [default: all except topological ones]"
)
@click.option("-r", "--readout", "readouts", multiple=True, default=["flatten", "mean"], show_default=True)
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Images.")
@click.option("--limit", type=click.IntRange(min=4), help="Number of images, equally from all classes.")
@click.option("--minutes", default=20.0, show_default=True, help="Leave out measures that would take longer.")
@click.option("--memory", default="4GiB", show_default=True, help="Memory limit of a comparison.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(
    *,
    data: str | None,
    zoo: bool,
    work: Path,
    networks: int,
    epochs: int,
    bf16: bool,
    specs: Sequence[str],
    readouts: Sequence[str],
    split: str,
    limit: int | None,
    minutes: float,
    memory: str,
    out: Path | None,
) -> None:
    """Identify corresponding layers of networks that only differ in their initialisation (Kornblith et al. 2019).

    The script trains ten networks on CIFAR-10 (Tiny-10 of the paper), extracts all layers except the logits with
    repsim, and compares all layers of all networks under every measure. It counts for how many layers the most similar
    layer of another network is the corresponding one. The table gives the percentage over all layers and ordered pairs
    of networks, with the values of the paper (Table 2).

    If k layers are equally similar, up to 1e-6, each counts 1/k. An undefined value counts as wrong.

    \b
    Examples:
      scripts/validation/reproduce_kornblith.py --data cifar10.tar --work kornblith --bf16 -o table.md
      scripts/validation/reproduce_kornblith.py --data cifar10.tar -m cka -m procrustes -r mean
      scripts/validation/reproduce_kornblith.py --zoo -r mean
    """
    try:
        chosen = [metric.spec for word in specs for metric in registry.select(word)] or measures()
        parts = []
        for title, models, pictures, paper in families(data, zoo, work, networks, epochs, bf16=bf16):
            columns = {}
            for readout in readouts:
                folder = work / title / f"{split}-{limit or 'all'}-{readout}".replace(":", "_")
                stores = [
                    repsim.extract(
                        model, pictures, folder, readout=readout, split=split, limit=limit, workers=0, **options
                    )
                    for model, options in models
                ]
                columns[readout] = examine(
                    stores,
                    chosen,
                    file=folder / "result.nc",
                    minutes=minutes,
                    memory=memory,
                    without=AVERAGED.get(title) if readout == "mean" else None,
                    say=lambda text: click.echo(f"  {text}"),
                )
            layers = ", ".join(f"{name} {column.layers} layers" for name, column in columns.items())
            parts.append(f"{title}: {len(models)} networks, {split} images; {layers}\n\n")
            parts[-1] += table(columns, chosen, paper)
    except RepsimError as error:
        raise click.ClickException(str(error)) from None
    text = "\n\n".join(parts) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text)


Models = list[tuple[str | nn.Module, dict[str, Any]]]


def families(
    data: str | None, zoo: bool, work: Path, networks: int, epochs: int, *, bf16: bool
) -> Iterator[tuple[str, Models, str, Mapping[str, float]]]:
    """Yield for every architecture a title, models for `repsim.extract`, their images, and the values of the paper."""
    if zoo:
        for title, names in itertools.groupby(ZOO, lambda name: name.partition(".")[0]):
            yield title, [(name, {}) for name in names], "digits", {}
        return
    if data is None:
        raise click.UsageError("name the images of CIFAR-10 with --data, or use --zoo")
    training = Training(data, epochs, bf16)
    models: Models = []
    scores = []
    for seed in range(networks):
        model, accuracy = training.network(seed, work / "networks", click.echo)
        models.append((model, {"layers": LAYERS, "transform": transform, "name": f"tiny10.seed{seed}"}))
        scores.append(100 * accuracy)
    click.echo(f"test accuracy {np.mean(scores):.1f} % ({min(scores):.1f} to {max(scores):.1f})")
    yield "tiny10", models, data, PAPER


if __name__ == "__main__":
    main()
