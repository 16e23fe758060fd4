"""Read conclusions from the data set of a study: its strictest kernel, the identified shares, the verdict."""

import numpy as np
import xarray as xr
from jaxtyping import Float64
from numpy.typing import ArrayLike

ALPHA = 0.05
"""Significance level."""


def quantile(n: int, level: float = 0.95) -> float:
    """Return the half-width of a jackknife interval from n samples, in standard errors.

    >>> round(quantile(1000), 2)
    1.96
    """
    from scipy import stats  # noqa: PLC0415 - takes long to import

    return float(stats.t.ppf((1 + level) / 2, n - 1))


def verdict(study: xr.Dataset) -> bool | None:
    """Return whether something learned is shared across families; None if the study cannot say.

    The input is required: on ImageNet pictures, networks with random weights declared as trained were more alike than
    untrained networks in plain CKA, and no longer so once the input was projected out.
    """
    if strictest(study) == "cka":
        return None
    low = float(study["learned_mean_low"].sel(kernel=strictest(study), kind_of_pair="other family"))
    return None if np.isnan(low) else low > 0


def name_of(study: xr.Dataset, share: str) -> str:
    """Return the label of a share. It is called universal only if `verdict` is True."""
    return "common to all families" if share == "universal" and not verdict(study) else share


def known_shares(study: xr.Dataset) -> dict[str, str]:
    """Return labels of the shares that these models identify, and of sums of shares that are identified only together.

    The label of a sum names its parts. Without stored pixels the input is part of what all families share.
    """
    names = study["share_of"].values.tolist()
    defined = [name for name in names if not np.isnan(study["share"].sel(share_of=name).values).all()]
    identified = [name for name in defined if "_and_" not in name or not set(name.split("_and_")) & set(defined)]
    labels = {name: " + ".join(name_of(study, part) for part in name.split("_and_")) for name in identified}
    if "input" in identified:
        return labels
    return {name: f"input + {label}" if name.startswith("universal") else label for name, label in labels.items()}


def share_places(study: xr.Dataset) -> dict[str, int]:
    """Return the position of every share in the study, so that its colour and marker are always the same."""
    return {str(name): place for place, name in enumerate(study["share_of"].values)}


def axis_shares(eigenvalues: ArrayLike) -> Float64[np.ndarray, " axes"]:
    """Return the share of the squared distances along each axis of a map; zeros if all points are equal.

    >>> axis_shares([3.0, 1.0, -0.5]).tolist()
    [0.75, 0.25, 0.0]
    """
    positive = np.nan_to_num(np.asarray(eigenvalues, np.float64)).clip(0)
    total = positive.sum()
    return positive / total if total > 0 else positive


def extremes(agreement: ArrayLike, count: int) -> tuple[list[int], list[int]]:
    """Return the positions of the stimuli with the largest and with the smallest values, the most extreme ones first.

    Values are rounded, so that rounding errors do not decide between ties. No stimulus is in both lists.

    >>> extremes([0.1, 0.3, np.nan, -0.2, 0.2], 2)
    ([1, 4], [3, 0])
    """
    values = np.asarray(agreement, np.float64).round(9)
    count = min(count, int(np.isfinite(values).sum()) // 2)
    most, least = (np.argsort(sign * values, kind="stable")[:count].tolist() for sign in (-1, 1))  # NaN goes last
    return most, least


def strictest(study: xr.Dataset) -> str:
    """Return the strictest kernel of a study: CKA given the input, or plain CKA if no pixels are stored."""
    return "cka given input" if "cka given input" in study["kernel"].values else "cka"


def means_over_pairs(
    study: xr.Dataset, what: str, kernel: str, relation: str = "other family"
) -> tuple[float, float, float]:
    """Return the mean of "index", "control" or "learned" over pairs of one kind, and the ends of its interval."""
    selection = {"kernel": kernel, "kind_of_pair": relation}
    value, low, high = (float(study[f"{what}_mean{end}"].sel(selection)) for end in ("", "_low", "_high"))
    return value, low, high
