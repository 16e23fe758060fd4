"""Order models by their similarity: the matrix of all pairs of models, and its dendrogram."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

FEWEST = 3
"""Smallest number of models that a dendrogram orders."""


def matrix_of_models(study: xr.Dataset, name: str, measure: str, models: Sequence[str]) -> NDArray[np.float64]:
    """Return a variable of pairs of models as a symmetric matrix, NaN where it is undefined and on the diagonal.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    name : str
        Variable with the dimensions ``measure`` and ``pair``.
    measure : str
        Measure of the study.
    models : sequence of str
        All models of the study, in the order of the rows.
    """
    place = {model: k for k, model in enumerate(models)}
    table = np.full((len(models), len(models)), np.nan)
    rows, columns = ([place[model] for model in study[f"pair_{side}"].values.tolist()] for side in "ab")
    table[rows, columns] = table[columns, rows] = study[name].sel(measure=measure).values
    return table


def order_by_similarity(table: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]] | None:
    """Return the order of models by average linkage, with the joints of the dendrogram.

    The dendrogram joins clusters with the largest mean similarity of their models first. Of the orders that it allows,
    the one with the most similar neighbours is chosen (Bar-Joseph et al. 2001). Pairs without a value are as distant as
    the most distant ones.

    Parameters
    ----------
    table : array of shape (models, models)
        Similarities, NaN where undefined.

    Returns
    -------
    tuple of list of int and array of shape (models - 1, 4, 2), or None
        Positions of the models in their order; four corners of every joint, (place, height), with heights from 0 to 1.
        None if fewer than `FEWEST` models have values.

    Examples
    --------
    >>> order, joints = order_by_similarity(np.array([[np.nan, 0.1, 0.9], [0.1, np.nan, 0.3], [0.9, 0.3, np.nan]]))
    >>> order in ([0, 2, 1], [1, 2, 0]), joints.shape
    (True, (2, 4, 2))
    """
    from scipy.cluster.hierarchy import dendrogram, linkage  # noqa: PLC0415 - takes long to import

    if np.isfinite(table).any(1).sum() < FEWEST:
        return None
    distances = np.nanmax(table) - table
    distances = np.where(np.isfinite(distances), distances, np.nanmax(distances))
    tree = linkage(distances[np.triu_indices(len(table), 1)], "average", optimal_ordering=True)
    drawn = dendrogram(tree, no_plot=True)
    heights = np.array(drawn["dcoord"])
    joints = np.stack([(np.array(drawn["icoord"]) - 5) / 10, heights / (heights.max() or 1)], -1)
    return drawn["leaves"], joints
