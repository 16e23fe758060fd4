"""What can be read off the data set of a study: its strictest kernel, the shares that are known, the verdict."""

import numpy as np
import xarray as xr
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
    """The shares that these models can tell apart, and of the others their sum: each with what it is called."""
    names = study["share_of"].values.tolist()
    known = [name for name in names if not np.isnan(study["share"].sel(share_of=name).values).all()]
    apart = [name for name in known if "_and_" not in name or not set(name.split("_and_")) & set(known)]
    return {name: " + ".join(name_of(study, part) for part in name.split("_and_")) for name in apart}


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
