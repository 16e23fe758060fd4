"""The part of a study's data set that is a map: of models, with clusters, and of layers."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim.runtime import tuning
from repsim.study.inference import Inference
from repsim.study.layer_matching import nearest
from repsim.study.model_map import clusters, common_share, embed, stability
from repsim.study.other_measures import Measured
from repsim.study.uncertainty import jackknife


def values_between_models(
    known: Inference, kind: str, rows: Float64[np.ndarray, "*batch T"]
) -> Float64[np.ndarray, "*batch M M"]:
    """Similarities of all pairs of trained models, from rows of indices."""
    count = len(known.design.trained)
    found = np.broadcast_to(np.eye(count), (*rows.shape[:-1], count, count)).copy()
    for i in range(count):
        for j in range(i + 1, count):
            found[..., i, j] = found[..., j, i] = rows[..., known.indices.at["models", kind, str(i), str(j)]]
    return found


def map_of_models(known: Inference) -> xr.Dataset:
    """Coordinates of models and of layers, clusters, and how stable these are."""
    count = len(known.design.trained)
    if count < 2:
        return xr.Dataset()
    maps: list[tuple[str, Any, Any]] = [
        (title, values_between_models(known, kind, known.theta), kind) for title, kind in known.kernels.items()
    ]
    maps += [
        (each.metric.spec, _from_pairs(known, each), None)
        for each in known.evidence.measured
        if each.metric.name == "mutual_knn"
    ]
    maps = [each for each in maps if np.isfinite(each[1]).all()]
    shape = len(maps), count
    coordinates, eigenvalues = np.full((*shape, count), np.nan), np.full(shape, np.nan)
    labels, together = np.full(shape, -1), np.full((*shape, count), np.nan)
    single = {name: np.full(len(maps), np.nan) for name in ("common", "common_low", "common_high", "silhouette", "ari")}
    similarity = np.stack([R for _, R, _ in maps])
    for k, (_, R, kind) in enumerate(maps):
        placed, grouped = embed(R), clusters(R)
        coordinates[k, :, : placed.coordinates.shape[1]] = placed.coordinates
        eigenvalues[k, : len(placed.eigenvalues)] = placed.eigenvalues
        labels[k], single["silhouette"][k] = grouped.labels, grouped.silhouette
        single["common"][k] = common_share(R)
        if kind is not None:
            interval = jackknife(
                common_share(R), common_share(values_between_models(known, kind, known.evidence.left_out))
            )
            single["common_low"][k], single["common_high"][k] = interval.low, interval.high
            firm = stability(
                values_between_models(known, kind, known.drawn[: tuning.current().map_draws]), grouped.labels
            )
            single["ari"][k], together[k] = firm.ari, firm.together
    layers = _place_of_layers(known)
    square = ("map", "model", "other_model")
    return xr.Dataset(
        {
            "model_similarity": (square, similarity),
            "map_coordinates": (("map", "model", "axis"), coordinates),
            "map_eigenvalues": (("map", "axis"), eigenvalues),
            "cluster": (("map", "model"), labels),
            "together": (square, together),
            "layer_coordinates": (("layer_a", "layer_axis"), layers),
            "common_share": ("map", single["common"]),
            "common_share_low": ("map", single["common_low"]),
            "common_share_high": ("map", single["common_high"]),
            "silhouette": ("map", single["silhouette"]),
            "cluster_stability": ("map", single["ari"]),
        },
        coords={"map": [title for title, _, _ in maps], "other_model": [m.name for m in known.design.trained]},
    )


def _from_pairs(known: Inference, each: Measured) -> Float64[np.ndarray, "M M"]:
    """Similarity of models at matched depths, of a measure that was computed pair by pair."""
    models = [member.name for member in known.design.trained]
    found = np.eye(len(models))
    for pair in known.design.pairs:
        values = each.values[pair.name]
        rows, columns = (nearest(size, known.indices.depths) for size in values.shape)
        i, j = models.index(pair.a.name), models.index(pair.b.name)
        found[i, j] = found[j, i] = values[rows, columns].mean()
    return found


def _place_of_layers(known: Inference) -> Float64[np.ndarray, "layers 3"]:
    R = known.indices.R[np.ix_(known.layers, known.layers)]
    placed = embed(R, 3).coordinates
    return np.pad(placed, ((0, 0), (0, 3 - placed.shape[1])))
