#!/usr/bin/env python3
"""Layer identification of Kornblith et al. 2019, Table 2: see ``scripts/validation/reproduce_kornblith.py --help``."""

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
"""Table 2, in percent. It also has linear HSIC (22.2), CKA's numerator, which is none of our measures."""
LAYERS = "conv*,pool"
"""All but the logits, as in the paper: nine."""
AVERAGED = {"tiny10": "pool", "digits_resnet": "pre_logits"}
"""The layer that is the one before it, averaged over positions: with the readout mean the two are one, and it is left
out."""

Say = Callable[[str], None]
Array = NDArray[np.float64]


# --- identification


@dataclass(frozen=True, eq=False)
class Identification:
    """How well the layers of every network were found in every other one."""

    credit: Array
    """(networks, networks, layers): of layer l of network i in network j, 1 where layer l of j is the most alike, 1/k
    where k layers are tied for that and it is among them, else 0. NaN where i = j."""
    ties: int
    """Decisions between layers that are equally alike."""
    undefined: int
    """Decisions for which a value is missing."""

    @property
    def accuracy(self) -> float:
        """In percent, over all ordered pairs of different networks, and all layers."""
        return 100 * float(np.nanmean(self.credit))

    @property
    def by_layer(self) -> Array:
        """The same for each layer."""
        return 100 * np.asarray(np.nanmean(self.credit, axis=(0, 1)))

    @property
    def error(self) -> float:
        """The accuracy's standard error, by the jackknife over networks; NaN of fewer than three."""
        n = len(self.credit)
        if n < 3:
            return math.nan
        without = [np.nanmean(np.delete(np.delete(self.credit, k, 0), k, 1)) for k in range(n)]
        return 100 * math.sqrt((n - 1) * np.var(without))


def identify(values: Array, *, distance: bool = False, tolerance: float = 1e-6) -> Identification:
    """Look for each layer of each network in every other network: the most alike should be its namesake.

    Parameters
    ----------
    values
        (networks, layers, networks, layers): how alike layer l of network i and layer m of network j are.
    distance
        Whether small values mean alike.
    tolerance
        Values that differ by less than this, as a share of the largest among which is chosen, are tied: what float32
        leaves of equal numbers is no identification.

    Notes
    -----
    A layer without a value (NaN) is never the most alike: where it is the right one, that counts as wrong.
    """
    good = np.where(np.isnan(values), -np.inf, -values if distance else values)
    scale = np.abs(np.nan_to_num(values)).max(-1, keepdims=True)
    tied = np.isfinite(good) & (good >= good.max(-1, keepdims=True) - tolerance * scale)
    count = tied.sum(-1)
    right = np.diagonal(tied, axis1=1, axis2=3)  # (i, j, l)
    credit = right / np.maximum(count, 1).transpose(0, 2, 1)
    same = np.eye(len(values), dtype=bool)
    credit[same] = np.nan
    others = ~same[:, None, :]
    return Identification(credit, int(((count > 1) & others).sum()), int((np.isnan(values).any(-1) & others).sum()))


def identify_in(result: xr.Dataset, spec: str, without: str | None = None) -> Identification:
    """Identification from a comparison of networks of one architecture, a layer left out if need be.

    Where a measure is asymmetric, S + S' takes its place, as in the paper for PWCCA and linear regression.
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
    """Tiny-10, Table E.1 of the paper: eight convolutions, global average pooling, logits."""

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
    """Pixels of 0 to 255, as the networks take them."""
    return (pixels.float() / 255 - 0.5) / 0.25


def transform(picture: Image.Image) -> Tensor:
    """Make the networks' input of one picture."""
    return normalised(pil_to_tensor(picture.resize((32, 32)) if picture.size != (32, 32) else picture))


@dataclass(frozen=True)
class Training:
    """How the networks are trained: SGD with Nesterov's momentum, one cycle of the learning rate; flips and shifts.

    Whatever is not said in the paper is chosen here.
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
        """Pictures (n, 3, 32, 32) of bytes, and labels."""
        return self._pictures("train")

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """The same of the test pictures."""
        return self._pictures("test")

    def _pictures(self, split: str) -> tuple[Tensor, Tensor]:
        source = open_images(self.data, split=split)
        if source.labels is None:
            raise click.ClickException(f"{source.name} has no folders of classes")
        return torch.stack([pil_to_tensor(source.load(i)) for i in range(len(source))]), torch.tensor(source.labels)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint remembers."""
        told = {name: getattr(self, name) for name in ("epochs", "bf16", "rate", "decay", "batch", "shift")}
        return told | {"pictures": len(self.train[0])}

    def moved(self, pictures: Tensor, draw: torch.Generator) -> Tensor:
        """Mirror half of the pictures, and shift each by some pixels, black coming in."""
        n, _, height, width = pictures.shape
        large = pad(pictures, [self.shift] * 4)
        down, right = torch.randint(0, 2 * self.shift + 1, (2, n, 1), generator=draw)
        columns = torch.arange(width).expand(n, width)
        columns = torch.where(torch.rand(n, 1, generator=draw) < 0.5, columns, columns.flip(1)) + right
        rows = torch.arange(height) + down
        return large[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def run(self, seed: int, say: Say) -> nn.Module:
        """Train one network; the seed decides its weights, the order of the pictures, and how they are moved."""
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
                batch = normalised(self.moved(pictures[rows], draw)).contiguous(memory_format=torch.channels_last)
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
        """Share of the test pictures that are named rightly."""
        pictures, labels = self.test
        named = torch.cat([model.eval()(normalised(some)).argmax(1) for some in pictures.split(500)])
        return float((named == labels).double().mean())

    def network(self, seed: int, folder: Path, say: Say) -> tuple[nn.Module, float]:
        """Take a network from its checkpoint, or train it and leave one; returns it with its test accuracy."""
        path, model = folder / f"tiny10.seed{seed}.pt", tiny10()
        if path.exists():
            found = torch.load(path, weights_only=True)
            if found["settings"] != self.settings():
                raise click.ClickException(f"{path} was trained otherwise ({found['settings']}); name another --work")
        else:
            began = time.perf_counter()
            trained = self.run(seed, say)
            found = {"state": trained.state_dict(), "settings": self.settings(), "accuracy": self.accuracy(trained)}
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, overwrite=False) as partial:
                torch.save(found, partial)
            say(f"seed {seed}  test accuracy {found['accuracy']:.3f}  {time.perf_counter() - began:.0f} s  {path}")
        model.load_state_dict(found["state"])
        return model.eval(), found["accuracy"]


# --- comparison


def measures() -> list[str]:
    """What is compared by default: the paper's measures, and all others but those of topology, as they are."""
    every = [name for group, names in registry.groups().items() if group != "topology" for name in sorted(names)]
    specs = [registry.get(spec).spec for spec in PAPER if exists(spec)]
    return list(dict.fromkeys([*specs, *every]))


def exists(spec: str) -> bool:
    """Whether this repsim has such a measure."""
    try:
        registry.get(spec)
    except RepsimError:
        return False
    return True


@dataclass
class Column:
    """One way to look at the networks: all measures over the same activations."""

    found: dict[str, Identification]
    left: dict[str, str]
    """Spec -> why there is no figure."""
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
    """Compare all layers of all networks under every measure, and look for each layer in the other networks.

    What is in ``file`` already is taken from there. A measure that would take more than so many ``minutes``, as
    `repsim compare --dry-run` counts, is left out.
    """
    known = repsim.open_result(file) if file.exists() else None
    left: dict[str, str] = {}
    groups: dict[type, list[Metric[Any]]] = {}  # by recipe: what is made of a layer serves all of them
    speed = None
    for metric in map(registry.get, specs):
        if known is not None and metric.spec in known:
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
            with Comparison(stores, metrics=group, memory=memory, earlier_result=known) as planned:
                known = planned.run(parts=file.with_suffix(".parts"), command=" ".join(sys.argv))
        except RepsimError as error:
            if len(group) > 1:  # one of them: which?
                todo[:0] = [[metric] for metric in group]
            else:
                left[group[0].spec] = str(error)
            continue
        repsim.save_result(known, file, overwrite=True)
        say(f"{', '.join(metric.spec for metric in group)}: {time.perf_counter() - began:.0f} s")
    found = {} if known is None else {spec: identify_in(known, spec, without) for spec in specs if spec in known}
    return Column(found, left, len(stores[0].sample_ids), len(set(stores[0].layers) - {without}))


def table(columns: Mapping[str, Column], specs: Sequence[str], paper: Mapping[str, float]) -> str:
    """Write the accuracies as markdown, the paper's beside ours, and below why some are missing."""
    head = ["measure", *(["paper"] if paper else []), *(f"{name}, n = {c.samples:,}" for name, c in columns.items())]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for spec in dict.fromkeys([*paper, *specs]):
        cells = [cell(column.found[spec]) if spec in column.found else "–" for column in columns.values()]
        lines.append([f"`{spec}`", *([f"{paper[spec]}" if spec in paper else ""] if paper else []), *cells])
    notes = [f"- {name}, `{spec}`: {why}" for name, column in columns.items() for spec, why in column.left.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + ("\n\nLeft out:\n\n" + "\n".join(notes) if notes else "")


def cell(found: Identification) -> str:
    """Accuracy, standard error, and what is behind it that a figure would hide."""
    error = "" if math.isnan(found.error) else f" ± {found.error:.1f}"
    hidden = [f"{count:,} {what}" for count, what in ((found.ties, "tied"), (found.undefined, "undefined")) if count]
    return f"{found.accuracy:.1f}{error}" + (f" ({', '.join(hidden)})" if hidden else "")


# --- command


@click.command()
@click.option("--data", help="CIFAR-10: a .tar or folder with train/CLASS/*.* and test/CLASS/*.* inside.")
@click.option("--zoo", is_flag=True, help="The networks that come with repsim, on its digits, and not CIFAR-10's.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()) / "repsim-kornblith",
    show_default="repsim-kornblith in the folder for temporary files",
    help="Folder for networks, activations and results: the same command goes on from what is there.",
)
@click.option("--networks", type=click.IntRange(min=2), default=10, show_default=True, help="How many are trained.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--bf16", is_flag=True, help="Train in bfloat16: half the time on a processor that knows it.")
@click.option(
    "-m", "--metric", "specs", multiple=True, help="Measures, or groups; all but topology where none is named."
)
@click.option("-r", "--readout", "readouts", multiple=True, default=["flatten", "mean"], show_default=True)
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Pictures.")
@click.option("--limit", type=click.IntRange(min=4), help="So many of them, spread evenly over the classes.")
@click.option("--minutes", default=20.0, show_default=True, help="Leave out measures that would take longer.")
@click.option("--memory", default="4GiB", show_default=True, help="What a comparison may take.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (markdown).")
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
    """Find corresponding layers of networks that differ in their initialisation only (Kornblith et al. 2019, Table 2).

    Trains ten networks on CIFAR-10 (the paper's Tiny-10), reads all layers but the logits with repsim, compares all
    layers of all networks under every measure, and counts: for each layer, is the most similar layer of another network
    the corresponding one? In percent of all layers and ordered pairs of networks, beside the paper's figures.

    Ties count by their share (1/k of k layers that are alike to 1e-6), and what is undefined counts as wrong.

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
            parts.append(f"{title}: {len(models)} networks, {split} pictures; {layers}\n\n")
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
    """Networks of one architecture each: a title, models for `repsim.extract`, their pictures, the paper's figures."""
    if zoo:
        for title, names in itertools.groupby(ZOO, lambda name: name.partition(".")[0]):
            yield title, [(name, {}) for name in names], "digits", {}
        return
    if data is None:
        raise click.UsageError("name CIFAR-10's pictures with --data, or take --zoo")
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
