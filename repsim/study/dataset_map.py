"""Build the map of models, their clusters and the map of layers, for the data set of a study."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim.engine.uncertainty import jackknife
from repsim.runtime import tuning
from repsim.study.design import Pair
from repsim.study.inference import Inference
from repsim.study.layer_matching import mbm
from repsim.study.model_map import clusters, common_share, embed, stability
from repsim.study.other_measures import MeasureResult

_AT_ONCE = 2**21
"""Number of values between models without a sample that are held at once."""


def values_between_models(
    inference: Inference, kind: str, values_of: Callable[[list[int]], Float64[np.ndarray, "*batch k"]]
) -> Float64[np.ndarray, "*batch M M"]:
    """Return the similarities of all pairs of trained models (..., M, M); ``values_of`` gives indices by column."""
    return _square(values_of(_columns(inference, kind)), len(inference.design.trained))


def left_out_between_models(inference: Inference, kind: str) -> Iterator[Float64[np.ndarray, "run M M"]]:
    """Yield the similarities of all pairs of trained models without each sample, a run of samples at a time."""
    for values in inference.left_out_in_runs(_columns(inference, kind), _AT_ONCE):
        yield _square(values, len(inference.design.trained))


def _columns(inference: Inference, kind: str) -> list[int]:
    return [inference.column(kind, Pair(a, b)) for a, b in combinations(inference.design.trained, 2)]


def _square(values: Float64[np.ndarray, "*batch pairs"], count: int) -> Float64[np.ndarray, "*batch M M"]:
    """Return symmetric matrices with 1 on the diagonal from the values of pairs of models."""
    similarity = np.broadcast_to(np.eye(count), (*values.shape[:-1], count, count)).copy()
    rows, columns = np.array(list(combinations(range(count), 2)), int).reshape(-1, 2).T
    similarity[..., rows, columns] = similarity[..., columns, rows] = values
    return similarity


def _noise_of_common_share(inference: Inference, kind: str, draws: int = 500) -> float:
    """Return the 95 % point of the share of the first component if no two networks had anything in common.

    Similarities are then normal with mean 0 and the standard errors of this study.
    """
    count = len(inference.design.trained)
    se = np.zeros((count, count))
    for (i, a), (j, b) in combinations(enumerate(inference.design.trained), 2):
        se[i, j] = inference.estimate_of(inference.column(kind, Pair(a, b)), kind).se
    noise = np.random.default_rng(inference.seed).normal(size=(draws, count, count)) * se
    return float(np.quantile(common_share(np.eye(count) + noise + noise.swapaxes(-1, -2)), 0.95))


def map_of_models(inference: Inference) -> xr.Dataset:
    """Compute coordinates of models and layers, clusters of models, and the stability of the clusters."""
    count = len(inference.design.trained)
    if count < 2:
        return xr.Dataset()
    maps: list[tuple[str, Any, Any]] = [
        (title, values_between_models(inference, kind, inference.theta.__getitem__), kind)
        for title, kind in inference.kernels.items()
    ]
    maps += [
        (result.metric.spec, _from_pairs(inference, result), None)
        for result in inference.evidence.measures
        if result.metric.name == "mutual_knn"
    ]
    maps = [(title, R, kind) for title, R, kind in maps if np.isfinite(R).all()]
    shape = len(maps), count
    coordinates, eigenvalues = np.full((*shape, count), np.nan), np.full(shape, np.nan)
    labels, together = np.full(shape, -1), np.full((*shape, count), np.nan)
    single = {
        name: np.full(len(maps), np.nan)
        for name in ("common", "common_low", "common_high", "common_noise", "silhouette", "ari")
    }
    similarity = np.stack([R for _, R, _ in maps])
    for k, (_, R, kind) in enumerate(maps):
        embedding, clustering = embed(R), clusters(R)
        coordinates[k, :, : embedding.coordinates.shape[1]] = embedding.coordinates
        eigenvalues[k, : len(embedding.eigenvalues)] = embedding.eigenvalues
        labels[k], single["silhouette"][k] = clustering.labels, clustering.silhouette
        single["common"][k] = common_share(R)
        if kind is not None:
            without = np.concatenate([common_share(C) for C in left_out_between_models(inference, kind)])
            interval = jackknife(common_share(R), without)
            single["common_low"][k], single["common_high"][k] = interval.low, interval.high
            single["common_noise"][k] = _noise_of_common_share(inference, kind)
            stable = stability(
                values_between_models(inference, kind, partial(inference.drawn, draws=tuning.current().map_draws)),
                clustering.labels,
            )
            single["ari"][k], together[k] = stable.ari, stable.together
    layers = _layer_coordinates(inference)
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
            "common_share_noise": ("map", single["common_noise"]),
            "silhouette": ("map", single["silhouette"]),
            "cluster_stability": ("map", single["ari"]),
        },
        coords={"map": [title for title, _, _ in maps], "other_model": [m.name for m in inference.design.trained]},
    )


def _from_pairs(inference: Inference, result: MeasureResult) -> Float64[np.ndarray, "M M"]:
    """Compute the similarity of models at matched depths for a measure that was computed pair by pair."""
    models = [member.name for member in inference.design.trained]
    similarity = np.eye(len(models))
    for pair in inference.design.pairs:
        i, j = models.index(pair.a.name), models.index(pair.b.name)
        similarity[i, j] = similarity[j, i] = float(mbm(result.values[pair.name]))
    return similarity


def _layer_coordinates(inference: Inference) -> Float64[np.ndarray, "layers 3"]:
    R = inference.matrices[0][np.ix_(inference.layers, inference.layers)]
    coordinates = embed(R, 3).coordinates
    return np.pad(coordinates, ((0, 0), (0, 3 - coordinates.shape[1])))
