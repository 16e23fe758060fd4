#!/usr/bin/env python3
"""Compare networks of pictures with a sentence encoder on pairs of a picture and its caption."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from packaged_weights import NETWORKS
from real_networks import ENCODER, extract_texts, run, sentences, write_pairs, write_study

import repsim
from repsim.stores.store import ActivationStore

PERMUTATIONS = 199
MEASURES = {"mutual_knn": "mutual kNN (k = 10)", "cka": "debiased CKA"}
SHOWN = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "mobilenet_v1")
"""Networks whose weights are those of ImageNet."""
Values = NDArray[np.float64]


def in_study(name: str) -> bool:
    """Return whether a network is in the study, which takes hours with all of them: three trained ones and the encoder,
    with two untrained networks of each.
    """
    return "lite2" not in name and not name.endswith("seed2")


def shuffles(labels: Sequence[int], *, within: bool) -> NDArray[np.int64]:
    """Return permutations of the samples, or of those of each class, (count, n)."""
    random, numbers = np.random.default_rng(0), np.asarray(labels)
    if not within:
        return np.stack([random.permutation(len(numbers)) for _ in range(PERMUTATIONS)])
    orders = np.tile(np.arange(len(numbers)), (PERMUTATIONS, 1))
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        for order in orders:
            order[rows] = random.permutation(rows)
    return orders


def test(a: ActivationStore, b: ActivationStore, metric: str) -> dict[str, Any]:
    """Return the values of all pairs of layers, and those of wrong pairs: any, and of one kind."""
    values = repsim.compare(a, b, metric)[metric].values
    assert a.labels is not None, "the table has kinds"
    wrong = {
        name: repsim.permuted(a, b, metric, shuffles(a.labels.tolist(), within=within))
        for name, within in (("any", False), ("one kind", True))
    }
    return {"values": values, **wrong}


def p_of(result: Mapping[str, Any], null: str) -> float:
    """Return the p-value of the largest of all pairs of layers, against the largest of each permutation."""
    largest = np.nanmax(result[null], axis=(1, 2))
    return float((1 + (largest >= np.nanmax(result["values"])).sum()) / (1 + len(largest)))


def best_table(
    vision: Mapping[str, ActivationStore], texts: Mapping[str, ActivationStore], metric: str
) -> Iterator[str]:
    """Yield a table of the largest value of all pairs of layers, for trained and untrained networks of both sides."""
    head = f"| picture network | text network | largest {MEASURES[metric]} | layers | wrong pairs | p |"
    yield f"{head} wrong pairs of one kind | p |"
    yield "|---|---|--:|---|--:|--:|--:|--:|"
    sides = {
        "trained": ([vision[name] for name in SHOWN], [texts[ENCODER]]),
        "text untrained": ([vision[SHOWN[0]]], [store for name, store in texts.items() if name != ENCODER]),
        "pictures untrained": ([store for name, store in vision.items() if "lite0+random" in name], [texts[ENCODER]]),
    }
    for pictures, readers in sides.values():
        for a in pictures:
            for b in readers:
                result = test(a, b, metric)
                row, column = np.unravel_index(np.nanargmax(result["values"]), result["values"].shape)
                chance = [f"{np.nanmax(result[null], axis=(1, 2)).mean():.3f} | {p_of(result, null):.3f}"
                          for null in ("any", "one kind")]  # fmt: skip
                yield (
                    f"| {a.model} | {b.model} | {result['values'].max():.3f} | {a.layers[row]}, {b.layers[column]} | "
                    f"{' | '.join(chance)} |"
                )


def depth_table(vision: Mapping[str, ActivationStore], text: ActivationStore, metric: str) -> Iterator[str]:
    """Yield a table of the last layer of the encoder against depths of the networks of pictures."""
    depths = np.linspace(0, 1, 6)
    columns = " | ".join(f"{depth:.1f}" for depth in depths)
    yield f"| {MEASURES[metric]} with the last layer of {text.model}, at depth | {columns} |"
    yield f"|---|{'--:|' * len(depths)}"
    for name in SHOWN:
        values: Values = repsim.compare(vision[name], text, metric)[metric].values[:, -1]
        rows = np.round(depths * (len(values) - 1)).astype(int)
        yield f"| {name} | {' | '.join(f'{value:.3f}' for value in values[rows])} |"


@click.command()
@click.option(
    "--pictures", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of photographs of ImageNet classes, whose names begin with the synset: n01440764_tench.JPEG.",
)  # fmt: skip
@click.option(
    "--work", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder for packages, weights, stores and studies, which real_networks.py uses, too; all steps resume.",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(*, pictures: Path, work: Path, out: Path | None) -> None:
    """Compare networks of pictures with a sentence encoder that reads captions, trained and untrained.

    A caption is the name of the class of its picture. What is compared is held against wrong pairs of pictures and
    captions, against wrong pairs of the same kind of thing (dogs with dogs), against untrained networks, and against
    the kernels of both inputs. The encoder needs the extra `text`.

    \b
    Example:
      pip install 'repsim-toolkit[text]'
      scripts/validation/across_modalities.py --pictures imagenet-sample --work real -o tables.md
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "vision" / "study.nc").exists():
        for network in NETWORKS:
            network.convert(work / "packages", work / "weights")
        run("run", write_study(pictures, work))
    of_pictures = {
        path.stem: path
        for path in sorted([*(work / "vision" / "acts").glob("*.h5"), *(work / "vision" / "controls").glob("*.h5")])
        if path.stem in SHOWN or any(path.stem.startswith(f"{network.architecture}+random") for network in NETWORKS[:4])
    }
    of_texts = extract_texts(write_pairs(pictures, work), work)
    study = work / "across.nc"
    if not study.exists():
        stores = [path for name, path in {**of_pictures, **of_texts}.items() if in_study(name)]
        families = ["--family=efficientnet_lite=efficientnet_lite*", "--family=mobilenet_v1=mobilenet_v1"]
        run("universality", *stores, *families, "-m", "cka", "-m", "mutual_knn", "--permutations", "199", "-o", study)
    vision = {name: repsim.open_store(path) for name, path in of_pictures.items()}
    texts = {name: repsim.open_store(path) for name, path in of_texts.items()}
    lines: list[str] = []
    for metric in MEASURES:
        lines += [*best_table(vision, texts, metric), "", *depth_table(vision, texts[ENCODER], metric), ""]
    lines += ["### The study", "", *sentences(study)]
    text = "\n".join(lines) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
