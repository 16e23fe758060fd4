"""What can be read off the data set of a study: its strictest kernel, the shares that are known, the verdict."""

import numpy as np
import xarray as xr
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import stats

ALPHA = 0.05


def quantile(n: int, level: float = 0.95) -> float:
    """How many standard errors an interval reaches to either side.

    >>> round(quantile(1000), 2)
    1.96
    """
    return float(stats.t.ppf((1 + level) / 2, n - 1))


def verdict(study: xr.Dataset) -> bool | None:
    """Whether something learned is shared across families; None where that cannot be said.

    It takes the input: on ImageNet pictures random checkpoints that posed as trained ones were more alike than
    untrained networks in plain CKA, and were not once the input was projected out.
    """
    if strictest(study) == "cka":
        return None
    low = float(study["learned_mean_low"].sel(kernel=strictest(study), kind_of_pair="other family"))
    return None if np.isnan(low) else low > 0


def name_of(study: xr.Dataset, share: str) -> str:
    """What a share is called, where it is printed: calling it universal would claim what only `verdict` may."""
    return "common to all families" if share == "universal" and not verdict(study) else share


def known_shares(study: xr.Dataset) -> dict[str, str]:
    """Label the shares that these models can tell apart, and of the others their sum.

    A sum names its parts. Where the pixels are not known the input is a part of what all families share.
    """
    names = study["share_of"].values.tolist()
    known = [name for name in names if not np.isnan(study["share"].sel(share_of=name).values).all()]
    apart = [name for name in known if "_and_" not in name or not set(name.split("_and_")) & set(known)]
    labels = {name: " + ".join(name_of(study, part) for part in name.split("_and_")) for name in apart}
    if "input" in apart:
        return labels
    return {name: f"input + {label}" if name.startswith("universal") else label for name, label in labels.items()}


def share_places(study: xr.Dataset) -> dict[str, int]:
    """Return the place of every share in the study: its colour and marker, whichever shares are known."""
    return {str(name): place for place, name in enumerate(study["share_of"].values)}


def axis_shares(eigenvalues: ArrayLike) -> Float64[np.ndarray, " axes"]:
    """Return the part of all squared distances that each axis of a map carries; zeros where all is in one place.

    >>> axis_shares([3.0, 1.0, -0.5]).tolist()
    [0.75, 0.25, 0.0]
    """
    positive = np.nan_to_num(np.asarray(eigenvalues, np.float64)).clip(0)
    total = positive.sum()
    return positive / total if total > 0 else positive


def extremes(agreement: ArrayLike, count: int) -> tuple[list[int], list[int]]:
    """Find the stimuli with the largest and the smallest values, both from the extreme inwards.

    Rounding errors do not choose between stimuli that are level. None is in both lists.

    >>> extremes([0.1, 0.3, np.nan, -0.2, 0.2], 2)
    ([1, 4], [3, 0])
    """
    values = np.asarray(agreement, np.float64).round(9)
    count = min(count, int(np.isfinite(values).sum()) // 2)
    most, least = (np.argsort(sign * values, kind="stable")[:count].tolist() for sign in (-1, 1))  # NaN goes last
    return most, least


def strictest(study: xr.Dataset) -> str:
    """Given the input, where it is known."""
    return "cka given input" if "cka given input" in study["kernel"].values else "cka"


def means_over_pairs(
    study: xr.Dataset, what: str, kernel: str, relation: str = "other family"
) -> tuple[float, float, float]:
    """Mean over pairs of one kind, with its interval."""
    at = {"kernel": kernel, "kind_of_pair": relation}
    found = [float(study[f"{what}_mean{end}"].sel(at)) for end in ("", "_low", "_high")]
    return found[0], found[1], found[2]
