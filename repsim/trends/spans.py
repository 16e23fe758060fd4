"""Measure which consecutive blocks of a network change its representation least, and could be left out."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from repsim import metrics as registry
from repsim.engine.comparison import compare
from repsim.engine.resampling import leave_one_out, leaves_one_out, subsampled
from repsim.engine.uncertainty import jackknife
from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.metrics.base import Metric
from repsim.stores.opening import StoreLike
from repsim.stores.store import ActivationStore, open_store

WARNING = (
    "a high similarity says that the span changes the representation little, not that the network keeps its accuracy "
    "without it: leave the span out and measure"
)
_PIECE = 4096
"""Samples whose angles are computed at once."""


def removable_spans(
    store: StoreLike,
    k: int | None = None,
    metric: str | Metric[Any] = "cka",
    *,
    layers: str | Sequence[str] | None = None,
    readout: str | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Compare the layer before with the layer after every span of k consecutive blocks.

    A span whose input and output are alike changes the representation little, so that it is the first candidate to be
    left out (Gromov et al. 2024). **A high similarity does not say that the network keeps its accuracy without the
    span.** CKA is invariant to rotation, shift and scale, which later layers are not; and directions of little variance
    can matter. Leave the span out and measure: docs/blocks.md does this for all spans of a network.

    If layer l_0, ..., l_L are in the order of depth, the span of k blocks after l_i consists of l_(i+1), ..., l_(i+k);
    it is l_i that is compared with l_(i+k). So the first layer of the store cannot be left out: extract also the layer
    before the first block.

    The angular distance and the block influence compare the rows themselves, with no invariance but scale:

        d = mean over samples of arccos(x_i . y_i / (||x_i|| ||y_i||)) / pi           (Gromov et al.)
        BI = 1 - mean over samples of x_i . y_i / (||x_i|| ||y_i||)                   (Men et al., over all k blocks)

    Gromov et al. take the last token of a text, Men et al. all tokens. Here x_i is the row of the store: the mean of
    the tokens, or another readout such as ``cls``.

    Parameters
    ----------
    store : ActivationStore or path
        One network.
    k : int, optional
        Number of consecutive blocks in a span; by default every number from 1 on.
    metric : str or Metric
        Measure of similarity. Debiased CKA (`cka`, `cka:kernel=rbf`) has an interval over samples, an exact jackknife;
        other measures have none.
    layers : str or sequence of str, optional
        Names of layers that count, as patterns such as ``blocks.*``; by default all layers of the store, so that every
        layer is a block.
    readout : str, optional
        Readout of the layers, if the store has several.
    device : str
        The device to compute on, as in `repsim.compare`.

    Returns
    -------
    pandas.DataFrame
        One line for each span: ``k``; ``first`` and ``last``, the names of its first and last block; ``before`` and
        ``after``, the compared layers; ``similarity`` with the ends ``low`` and ``high`` of its 95 % interval;
        ``angular_distance`` in [0, 1] and ``block_influence`` in [0, 2], NaN if the layers have other widths or a row
        is zero; ``best``,
        True for the most similar span of its k. ``attrs`` has the metric, its label and sense, the model, and the
        number and description of samples. If the store has groups of samples, CKA is computed from pairs of different
        groups, and whole groups are left out.

    Raises
    ------
    InvalidInputError
        If there are fewer than two layers, k is no number of blocks that the network has, no layer has such a name, or
        the store has several readouts and none is named, or one that is compressed.

    References
    ----------
    Gromov, Tirumala, Shapourian, Glorioso, Roberts. The unreasonable ineffectiveness of the deeper layers. ICLR 2025.
    Men, Xu, Zhang, Wang, Lin, Lu, Han, Chen. ShortGPT: Layers in large language models are more redundant than you
    expect. 2024. Both compare inputs and outputs of blocks; that similarity is a weak guide to accuracy is the subject
    of Hinostroza et al. Rethinking layer relevance in large language models beyond cosine similarity. 2026.

    Examples
    --------
    >>> import tempfile
    >>> import repsim
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 6))
    >>> other = rng.normal(size=(60, 6))
    >>> network = {"stem": x, "block1": x + 0.01 * other, "block2": other, "block3": other - x}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     spans = removable_spans(repsim.write_store(f"{folder}/net.h5", network, model="net"), k=1)
    >>> spans[["first", "before", "after", "best"]].values.tolist()[0], round(float(spans["similarity"][0]), 2)
    (['block1', 'stem', 'block1', True], 1.0)
    """
    if isinstance(store, ActivationStore):
        return _spans(store, select_layers(store, layers, readout), k, metric, device)
    with open_store(store) as opened:
        return _spans(opened, select_layers(opened, layers, readout), k, metric, device)


def _spans(
    store: ActivationStore, names: list[str], k: int | None, metric: str | Metric[Any], device: str
) -> pd.DataFrame:
    measure = metric if isinstance(metric, Metric) else registry.get(metric)
    depth = len(names) - 1
    if k is not None and not (isinstance(k, int) and 1 <= k <= depth):
        raise InvalidInputError(
            f"k is a number of blocks from 1 to {depth} ({len(names)} layers of {store.path}), not {k}"
        )
    values, low, high = _similarities(store, names, measure, device)
    cosines = _Cosines(store, names)
    lines = []
    for length in range(1, depth + 1) if k is None else [k]:
        for i in range(len(names) - length):
            j = i + length
            angle, influence = cosines.compare(i, j)
            lines.append(
                {
                    "k": length, "first": names[i + 1], "last": names[j], "before": names[i], "after": names[j],
                    "similarity": values[i, j], "low": low[i, j], "high": high[i, j],
                    "angular_distance": angle, "block_influence": influence,
                }
            )  # fmt: skip
    frame = pd.DataFrame(lines)
    sign = 1 if measure.sense == "similarity" else -1
    ranks = (sign * frame["similarity"]).groupby(frame["k"]).rank(method="first", ascending=False)
    frame["best"] = ranks == 1
    frame.attrs = {
        "metric": measure.spec, "label": measure.label, "sense": measure.sense, "valid_range": list(measure.bounds),
        "model": store.model, "n_samples": len(store), "data": store.data, "layers": names,
        "groups": 0 if store.groups is None else len(store.group_names),
    }  # fmt: skip
    return frame


def select_layers(store: ActivationStore, patterns: str | Sequence[str] | None, readout: str | None) -> list[str]:
    """Return the names of the arrays of one readout whose layers match one of the patterns, in the order of depth."""
    readouts = list(dict.fromkeys(store[name].key.readout for name in store.layers))
    if readout is None and len(readouts) > 1:
        raise InvalidInputError(
            f"{store.path} has several readouts: {', '.join(readouts)}",
            remedy=Remedy("name one of them with ", Argument("readout")),
        )
    if readout is not None and readout not in readouts:
        raise InvalidInputError(f"{store.path} has no readout {readout}, only {', '.join(readouts)}")
    wanted = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    keys = {name: store[name].key for name in store.layers if readout in {None, store[name].key.readout}}
    if any(key.form != "features" for key in keys.values()):
        raise InvalidInputError(
            f"{store.path} holds compressed layers ({readout or readouts[0]}); extract their features, for instance "
            "the readout mean"
        )
    names = [name for name, key in keys.items() if any(fnmatchcase(key.layer, pattern) for pattern in wanted)]
    if len(names) < 2:
        count = "one layer" if names else "no layer"
        raise InvalidInputError(
            f"{store.path} has {count} that matches {', '.join(wanted)}; at least two layers are compared, such as "
            f"{', '.join(store.layers[:2])}"
        )
    return names


def _similarities(
    store: ActivationStore, names: Sequence[str], measure: Metric[Any], device: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the values of all pairs of layers, and the ends of their intervals, which are NaN where there is none."""
    at = [store.layers.index(name) for name in names]
    places = np.ix_(at, at)
    exact = leaves_one_out(measure)
    grouped = exact and store.groups is not None
    if grouped:
        values = subsampled(
            store, store, measure, np.arange(len(store))[None], groups=store.groups, device=device, progress=False
        )[0]
    else:
        values = compare(store, metrics=[measure], device=device, progress=False)[measure.spec].values
    if not exact:
        missing = np.full((len(at), len(at)), np.nan)
        return values[places], missing, missing
    groups = store.groups if grouped else None
    interval = jackknife(values, leave_one_out(store, store, measure, groups=groups, device=device, progress=False))
    return values[places], interval.low[places], interval.high[places]


class _Cosines:
    """Angles between the rows of layers of one store, read in pieces."""

    def __init__(self, store: ActivationStore, names: Sequence[str]) -> None:
        self._arrays = [store[name] for name in names]

    def compare(self, i: int, j: int) -> tuple[float, float]:
        """Return the mean angle divided by pi, and 1 minus the mean cosine; NaN if the widths differ."""
        a, b = self._arrays[i], self._arrays[j]
        if a.shape != b.shape:
            return float("nan"), float("nan")
        cosines = []
        for start in range(0, len(a), _PIECE):
            x, y = (rows[start : start + _PIECE].astype(np.float64) for rows in (a, b))
            x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
            with np.errstate(invalid="ignore"):  # a row of zeros has no direction
                cosines.append((x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)))
        cosine = np.concatenate(cosines)
        return float(np.arccos(cosine.clip(-1, 1)).mean() / np.pi), float(1 - cosine.mean())
