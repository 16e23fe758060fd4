"""Time one study in a process of its own: read settings as JSON, print the measurements as one line of JSON."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_worker import RESNET50, RUN, VIT_B
from machine_rates import gemm, peak_mib

MODELS = {"resnet50": (RESNET50, 1), "vit_base": (VIT_B, 2)}
_DIRECTIONS = 64


def runs(widths: Mapping[str, int], n: int, seed: int) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield blocks of samples of synthetic float32 layers, as pairs of row slice and arrays.

    A layer is the sum of shared directions, shifted from layer to layer, and noise. The singular values are
    proportional to 1/i, as in layers of the zoo. Their decay determines the cost of permutations.
    """
    rng = np.random.default_rng(seed)
    strengths = (np.roll(1 / np.arange(1, _DIRECTIONS + 1), depth) for depth in range(len(widths)))
    mixing = {
        name: (rng.standard_normal((_DIRECTIONS, p)) * strength[:, None]).astype(np.float32)
        for (name, p), strength in zip(widths.items(), strengths, strict=True)
    }
    for start in range(0, n, RUN):
        rows = slice(start, min(start + RUN, n))
        count = rows.stop - start
        signal = np.random.default_rng([0, start]).standard_normal((count, _DIRECTIONS), dtype=np.float32)
        noise = np.random.default_rng([seed, start])
        yield (
            rows,
            {
                name: signal @ directions + noise.standard_normal((count, widths[name]), dtype=np.float32) / 50
                for name, directions in mixing.items()
            },
        )


def stores(folder: Path, n: int, models: int = 0, layers: int = 12, features: int = 256) -> list[Path]:
    """Write stores of two networks and their untrained twins, n samples of 100 classes, and return the paths.

    With ``models``, write stores of so many trained networks of as few families as there are tens of them instead.
    """
    if models:
        return _many(folder, n, models, {f"layer{k}": features for k in range(layers)})
    return _two(folder, n)


def _many(folder: Path, n: int, models: int, widths: Mapping[str, int]) -> list[Path]:
    from repsim.labels import LayerKey, SampleIds  # noqa: PLC0415
    from repsim.stores.schema import ArraySpec, Contents  # noqa: PLC0415
    from repsim.stores.writer import StoreWriter  # noqa: PLC0415

    paths = []
    for k in range(models):
        name = f"family{k // 10}.seed{k % 10}"
        paths.append(folder / f"{name}.h5")
        specs = tuple(ArraySpec(LayerKey(name, layer, "given"), (p,)) for layer, p in widths.items())
        provenance = {"extractor": "given", "architecture": f"family{k // 10}", "weights": "pretrained"}
        contents = Contents(specs, SampleIds(tuple(map(str, range(n)))), "made", provenance)
        with StoreWriter(paths[-1], contents) as writer:
            for rows, layers in runs(widths, n, k + 1):
                for spec in specs:
                    writer.write(spec.key, rows, layers[spec.key.layer])
                writer.mark_done(rows)
    return paths


@dataclass(frozen=True)
class _Planned:
    """Substitute for a trained network of a study, from whose shape alone the study is planned."""

    name: str
    arrays: tuple[str, ...]
    trained: bool = True

    @property
    def architecture(self) -> str:
        """Name of the architecture: another one for every network."""
        return self.name


def plan_lines(n: int, *, models: int, layers: int, features: int, memory: str, permutations: int) -> list[str]:
    """Return the plan of a study of debiased CKA of many networks, at nominal rates, without stores."""
    from repsim.engine.planning import Limits  # noqa: PLC0415
    from repsim.metrics.recipes.cost import NOMINAL  # noqa: PLC0415
    from repsim.runtime.memory import memory_to_use  # noqa: PLC0415
    from repsim.study.design import Design  # noqa: PLC0415
    from repsim.study.estimation import splits_for  # noqa: PLC0415
    from repsim.study.planning import StudyShape, base_memory, plan_study  # noqa: PLC0415

    networks: Any = tuple(_Planned(f"net{k}", tuple(f"layer{j}" for j in range(layers))) for k in range(models))
    widths = {network.name: [features] * layers for network in networks}
    shape = StudyShape(n, n, splits_for(n), widths, 4, (), 0, grouped=False, metrics=(), permutations=permutations)
    limits = Limits(memory_to_use("cpu", memory), base_memory("cpu"), "cpu")
    return plan_study(shape, Design(networks, ()), limits).lines(NOMINAL)


def _two(folder: Path, n: int) -> list[Path]:
    from repsim.labels import LayerKey, SampleIds  # noqa: PLC0415
    from repsim.stores.schema import ArraySpec, Contents  # noqa: PLC0415
    from repsim.stores.writer import StoreWriter  # noqa: PLC0415

    pixels = np.random.default_rng(0).standard_normal((n, 3 * 64), dtype=np.float32)
    pixels /= np.arange(1, pixels.shape[1] + 1, dtype=np.float32)
    labels = np.random.default_rng(1).integers(0, 100, n)
    paths = []
    for model, (widths, seed) in MODELS.items():
        for weights in ("pretrained", "random"):
            name = model if weights == "pretrained" else f"{model}+random-seed0"
            path = folder / f"{name}.h5"
            paths.append(path)
            keys = {LayerKey(name, layer, "given"): p for layer, p in widths.items()}
            keys[LayerKey(name, "input", "pixels")] = pixels.shape[1]
            specs = tuple(ArraySpec(key, (p,)) for key, p in keys.items())
            provenance = {"extractor": "given", "architecture": model, "library": "timm", "weights": weights}
            contents = Contents(specs, SampleIds(tuple(map(str, range(n)))), "made", provenance, labels=labels)
            with StoreWriter(path, contents) as writer:
                for rows, layers in runs(widths, n, seed + (10 if weights == "random" else 0)):
                    for spec in specs:
                        values = pixels[rows] if spec.key.control else layers[spec.key.layer]
                        writer.write(spec.key, rows, values)
                    writer.mark_done(rows)
    return paths


def _seconds_to_open(path: Path) -> float:
    from repsim import open_study  # noqa: PLC0415

    start = time.perf_counter()
    open_study(path)
    return time.perf_counter() - start


def main(settings: dict[str, Any]) -> dict[str, Any]:
    from repsim import compare, universality  # noqa: PLC0415
    from repsim.study.options import UniversalityOptions  # noqa: PLC0415
    from repsim.study.universality import explain_plan  # noqa: PLC0415

    paths = stores(
        Path(settings["folder"]), settings["samples"], settings["models"], settings["layers"], settings["features"]
    )
    rate = gemm("cpu", torch.float32)["seconds"]
    start = time.perf_counter()
    compare(paths, metrics=["cka"], memory=settings["memory"])
    comparison = time.perf_counter() - start
    made = UniversalityOptions(memory=settings["memory"], permutations=settings["permutations"])
    plan = explain_plan(paths, made, metrics=settings["metrics"] or None)
    starts: list[tuple[str, float]] = []
    start = time.perf_counter()
    study = universality(
        paths,
        settings["metrics"] or None,
        permutations=settings["permutations"],
        memory=settings["memory"],
        out=Path(settings["folder"]) / "study.nc",
        progress=lambda name: starts.append((name, time.perf_counter())),
    )
    end = time.perf_counter()
    ends = [*(start for _, start in starts[1:]), end]
    return {
        "seconds": end - start,
        "steps": {name: after - before for (name, before), after in zip(starts, ends, strict=True)},
        "comparison": comparison,
        "plan": plan,
        "size": (Path(settings["folder"]) / "study.nc").stat().st_size,
        "opened": _seconds_to_open(Path(settings["folder"]) / "study.nc"),
        "peak": peak_mib(),
        "rate": rate,
        "warnings": json.loads(study.attrs["warnings"]),
        "permuted": {name: float(study["permuted"].sel(measure=name)[0]) for name in study["measure"].values.tolist()},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
