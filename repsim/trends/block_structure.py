"""Find blocks of consecutive layers that are alike, and whether one dominant component makes them so."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import Tensor

from repsim import metrics as registry
from repsim.engine.resampling import leave_one_out, permuted, subsampled
from repsim.engine.uncertainty import jackknife
from repsim.errors import Function, InvalidInputError
from repsim.metrics.base import as_samples
from repsim.metrics.recipes.rows import Rows
from repsim.results.versions import FORMAT
from repsim.runtime.hardware import choose_device
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore, open_store
from repsim.trends.spans import select_layers

LEFT = 0.5
"""Share of a block's similarity below which, with its interval, its first components are said to make the block."""
_NOTHING = 1e-10
"""Share of the variance beside the first component below which it is rounding errors."""
_SMALL = 512
"""Smaller side of a layer up to which all components are computed, instead of the first by iteration."""
_LEFT_NAMES = ("after", "left", "left_low", "left_high")
_VERDICTS = {
    -1: "not known: the layers themselves are needed",
    0: "no: the layers are also alike without it",
    1: "yes: the first principal component makes the block",
    2: "undecided: the interval includes one half",
}


def block_structure(
    network: ActivationStore | str | os.PathLike[str] | xr.Dataset | Mapping[str, Any],
    *,
    threshold: float = 0.9,
    least: int | None = None,
    layers: str | Sequence[str] | None = None,
    readout: str | None = None,
    device: str = "auto",
) -> xr.Dataset:
    """Find blocks of consecutive layers that are alike, and test whether their first principal components make them so.

    Large networks have *block structure* (Nguyen et al. 2021): many consecutive layers with nearly equal
    representations, because they pass on one dominant principal component. The rule here:

    1. S is the debiased linear CKA of all pairs of layers. A **block** is a run of consecutive layers that are all
       alike: every pair has S >= threshold. The longest run is taken first (of equally long ones that with the largest
       mean), then the longest among the remaining layers on each side, as long as it has ``least`` layers.
    2. The first principal component is removed from every layer: X - s u v', with s, u, v the largest singular value
       and its vectors of the centred layer.
    3. ``left`` is the mean CKA of the pairs of the block without their first components, divided by the mean before.
       The first components **make the block** if ``left`` is below 1/2 with its whole 95 % interval; the block
       *remains* if it is above. Otherwise it is undecided. Only the first is called block structure.

    So layers that are alike because they change little have no block structure: they remain alike. The result does
    not depend on the scale, shift or rotation of any layer, nor on the direction in which the network is read.

    Parameters
    ----------
    network : ActivationStore, path, mapping or Dataset
        One network: a store, or layers by name in the order of depth, arrays of shape (n, p). Or the result of
        `repsim.compare` for one store; it holds no layers, so that only blocks are found.
    threshold : float
        Smallest CKA of two layers that are alike, above 0 and at most 1.
    least : int, optional
        Number of layers that a block has at least, 2 or more; by default a quarter of the layers, and at least 3.
    layers : str or sequence of str, optional
        Patterns of layers of the store that count; by default all.
    readout : str, optional
        Readout of the layers, if the store has several.
    device : str
        The device to compute on, as in `repsim.compare`.

    Returns
    -------
    xarray.Dataset
        ``similarity`` and ``without_first`` (layer, other_layer): CKA, and CKA without first components; NaN for a
        layer of which nothing is left. ``first_share`` (layer): share of the variance of the first component, in (0,
        1]. ``first_alike`` (layer, other_layer): squared correlation of the samples' coordinates on the first
        components, in [0, 1]. ``block_of`` (layer): number of the block, -1 for none. For each block (``block``):
        ``first``, ``last``, ``layers``, the means ``before`` and ``after``, and ``left`` with ``left_low`` and
        ``left_high``, a jackknife over samples (whole groups, if the store has groups) with the components of all
        samples; ``verdict``, an integer: 1 made by the first components, 0 remains, 2 undecided, -1 not known. A layer
        of which nothing is left counts as 0 in ``after``. Attributes: ``block_structure`` (1 if some block has verdict
        1, -1 if not known), ``summary``, ``threshold``, ``least``, ``n_samples``.

    Raises
    ------
    InvalidInputError
        If there are fewer than three layers or fewer than five samples, a layer is constant, the layers are
        compressed, a data set is no result of one network, or the threshold is out of range.

    References
    ----------
    Nguyen, Raghu, Kornblith. Do wide and deep networks learn the same things? Uncovering how neural network
    representations vary with width and depth. ICLR 2021. The removal of first components is theirs (section 4);
    the threshold, the search for blocks and the interval are those of repsim.
    Nguyen, Raghu, Kornblith. On the origins of the block structure phenomenon in neural network representations. TMLR
    2022.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> common = 40 * rng.normal(size=(200, 1))
    >>> shared = {f"layer{k}": common @ rng.normal(size=(1, 20)) + rng.normal(size=(200, 20)) for k in range(4)}
    >>> network = {"stem": rng.normal(size=(200, 20)), **shared, "head": rng.normal(size=(200, 20))}
    >>> structure = block_structure(network)
    >>> structure["first"].item(), structure["last"].item(), structure.attrs["block_structure"]
    ('layer0', 'layer3', 1)
    """
    if not 0 < threshold <= 1:
        raise InvalidInputError(f"threshold is above 0 and at most 1, not {threshold}")
    if isinstance(network, xr.Dataset):
        return _of_result(network, threshold, least)
    if isinstance(network, Mapping):
        arrays = {str(name): as_samples(x, 5, str(name)).to(choose_device(device)) for name, x in network.items()}
        return _of_layers(arrays, None, model="network", threshold=threshold, least=least, device=device)
    store = network if isinstance(network, ActivationStore) else open_store(network)
    try:
        view, names = AlignedView(store), select_layers(store, layers, readout)
        rows = {name: view.stream(store, name, choose_device(device), min_samples=5) for name in names}
        return _of_layers(rows, store.groups, model=store.model, threshold=threshold, least=least, device=device)
    finally:
        if store is not network:
            store.close()


def alike_blocks(similarity: NDArray[np.float64], threshold: float, least: int) -> list[tuple[int, int]]:
    """Return runs of consecutive layers in which every pair reaches the threshold, as (first, end), in order of depth.

    The longest run is taken first, of equally long ones that with the largest mean; then the longest on both sides.

    >>> s = np.array([[1, 0.95, 0.2], [0.95, 1, 0.93], [0.2, 0.93, 1]])
    >>> alike_blocks(s, 0.9, 2)
    [(0, 2)]
    """

    def search(start: int, end: int) -> list[tuple[int, int]]:
        runs = []
        for i in range(start, end):
            j = i + 1
            while j < end and (similarity[i:j, j] >= threshold).all():
                j += 1
            runs.append((i, j))
        length = max((j - i for i, j in runs), default=0)
        if length < least:
            return []
        longest = [(i, j) for i, j in runs if j - i == length]
        i, j = max(longest, key=lambda run: similarity[run[0] : run[1], run[0] : run[1]].mean())
        return [*search(start, i), (i, j), *search(j, end)]

    return search(0, len(similarity))


@dataclass(frozen=True, eq=False)
class _WithoutFirst:
    """Layer whose first principal component is removed, centred; a `Rows`."""

    rows: Rows
    mean: Tensor
    coordinates: Tensor
    """Coordinates of the samples on the first component, (n,)."""
    direction: Tensor
    """Unit vector of the first component, (p,)."""

    @property
    def shape(self) -> Sequence[int]:
        return self.rows.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __getitem__(self, rows: "slice | Tensor", /) -> Tensor:
        x = self.rows[rows].to(self.mean.dtype) - self.mean
        return (x - torch.outer(self.coordinates[rows], self.direction)).to(self.dtype)


def _of_layers(
    rows: Mapping[str, Rows],
    groups: NDArray[Any] | None,
    *,
    model: str,
    threshold: float,
    least: int | None,
    device: str,
) -> xr.Dataset:
    names = list(rows)
    size = _least(least, len(names))
    components = [_first_component(x, name) for name, x in rows.items()]
    shares = np.array([share for _, share in components])
    units = np.stack([(w.coordinates / w.coordinates.norm()).cpu().numpy() for w, _ in components])
    similarity, left_out = _cka([*rows.values()], groups, device)
    kept = np.flatnonzero(1 - shares > _NOTHING)
    without = np.full_like(similarity, np.nan)
    without_left_out = np.zeros_like(left_out)
    if len(kept):
        without[np.ix_(kept, kept)], values = _cka([components[k][0] for k in kept], groups, device)
        without_left_out[:, kept[:, None], kept] = values
    blocks = alike_blocks(similarity, threshold, size)
    shares_left = [_left(block, (similarity, without), (left_out, without_left_out)) for block in blocks]
    data = _dataset(names, similarity, blocks, shares_left, model=model, threshold=threshold, least=size)
    data["without_first"] = (("layer", "other_layer"), without)
    data["first_share"] = ("layer", shares)
    data["first_alike"] = (("layer", "other_layer"), ((units @ units.T) ** 2).clip(0, 1))
    data.attrs["n_samples"] = int(next(iter(rows.values())).shape[0])
    return data


def _of_result(result: xr.Dataset, threshold: float, least: int | None) -> xr.Dataset:
    """Find blocks in the result of a comparison of one network with itself."""
    if result.attrs.get("format") != FORMAT or "cka" not in result:
        raise InvalidInputError("expected the result of ", Function("repsim.compare"), " with debiased CKA, `cka`")
    models = set(result["model_a"].values.tolist()) | set(result["model_b"].values.tolist())
    names = result["layer_a"].values.tolist()
    if len(models) > 1 or names != result["layer_b"].values.tolist():
        raise InvalidInputError(f"expected one network compared with itself, got {', '.join(sorted(models))}")
    size = _least(least, len(names))
    similarity = result["cka"].values
    blocks = alike_blocks(similarity, threshold, size)
    unknown = [None] * len(blocks)
    data = _dataset(names, similarity, blocks, unknown, model=models.pop(), threshold=threshold, least=size)
    data.attrs["n_samples"] = int(result["n_samples"].item())
    return data


def _least(least: int | None, layers: int) -> int:
    if layers < 3:
        raise InvalidInputError(f"{layers} layers are too few: a block consists of several among others")
    if least is not None and least < 2:
        raise InvalidInputError(f"least is at least 2, not {least}")
    return max(3, math.ceil(layers / 4)) if least is None else least


def _first_component(x: Rows, name: str) -> tuple[_WithoutFirst, float]:
    """Return a layer without its first principal component, and the share of variance of the component."""
    full = x[:].double() if x.device.type != "mps" else x[:].cpu().double()
    mean = full.mean(0)
    centred = (full - mean).cpu().numpy()
    energy = float((centred**2).sum())
    if not energy > 0:
        raise InvalidInputError(f"layer {name} is constant; it has no principal component")
    if min(centred.shape) <= _SMALL:
        wide = centred.shape[0] < centred.shape[1]
        _, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        direction = centred.T @ vectors[:, -1] if wide else vectors[:, -1]
        direction /= np.linalg.norm(direction)
    else:
        start = np.random.default_rng(0).normal(size=min(centred.shape))
        direction = svds(centred, k=1, v0=start, tol=1e-9)[2][0]
    coordinates = centred @ direction
    tensors = (torch.from_numpy(a).to(mean.device) for a in (coordinates, direction))
    return _WithoutFirst(x, mean, *tensors), min(1.0, float((coordinates**2).sum()) / energy)


def _cka(
    rows: Sequence[Rows], groups: NDArray[Any] | None, device: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return debiased CKA of all pairs, (layers, layers), and without each sample or group, (units, layers, layers)."""
    order = np.arange(rows[0].shape[0])[None]
    metric = registry.get("cka")
    if groups is None:
        values = permuted(rows, rows, metric, order, device=device, progress=False)[0]
    else:
        values = subsampled(rows, rows, metric, order, groups=groups, device=device, progress=False)[0]
    return values, leave_one_out(rows, rows, metric, groups=groups, device=device, progress=False)


class _Left(NamedTuple):
    """Similarity of a block without first components."""

    after: float
    """Mean CKA of its pairs of layers."""
    share: float
    """The same divided by the mean with first components."""
    low: float
    high: float


def _left(
    block: tuple[int, int],
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    left_out: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> _Left:
    """Return what is left of a block; all values are a pair: with and without first components."""
    start, end = block
    pairs = np.triu_indices(end - start, 1)

    def mean(matrices: NDArray[np.float64]) -> Any:
        return np.nan_to_num(matrices[..., start:end, start:end])[..., pairs[0], pairs[1]].mean(-1)

    share = mean(values[1]) / mean(values[0])
    interval = jackknife(share, mean(left_out[1]) / mean(left_out[0]))
    return _Left(float(mean(values[1])), float(share), float(interval.low), float(interval.high))


def _verdict(left: _Left | None) -> int:
    if left is None:
        return -1
    return 1 if left.high < LEFT else 0 if left.low > LEFT else 2


def _text(value: float, digits: int) -> str:
    """Return a number without the sign of a zero.

    >>> _text(-0.004, 2)
    '0.00'
    """
    return f"{value + 0.0:z.{digits}f}"


def _dataset(
    names: Sequence[str],
    similarity: NDArray[np.float64],
    blocks: Sequence[tuple[int, int]],
    lefts: Sequence[_Left | None],
    *,
    model: str,
    threshold: float,
    least: int,
) -> xr.Dataset:
    """Return the result with the sentences of its summary."""
    block_of = np.full(len(names), -1)
    means, verdicts, summary = [], [_verdict(left) for left in lefts], []
    for number, ((start, end), left, verdict) in enumerate(zip(blocks, lefts, verdicts, strict=True)):
        block_of[start:end] = number
        pairs = np.triu_indices(end - start, 1)
        means.append(float(similarity[start:end, start:end][pairs].mean()))
        share = ""
        if left is not None:
            share = (
                f" Without the first principal component of each layer it is {_text(left.after, 2)}: "
                f"{_text(100 * left.share, 0)} % is left (95 % interval {_text(100 * left.low, 0)} to "
                f"{_text(100 * left.high, 0)} %)."
            )
        summary.append(
            f"{names[start]} to {names[end - 1]}: {end - start} of {len(names)} layers have a CKA of at least "
            f"{threshold:g} with one another, {means[-1]:.2f} on average.{share} Block structure: {_VERDICTS[verdict]}."
        )
    if not blocks:
        summary.append(
            f"No {least} consecutive layers of {model} have a CKA of at least {threshold:g} with one another: no block."
        )
    columns = np.array([(np.nan,) * 4 if left is None else left for left in lefts]).reshape(-1, 4).T
    both = ("layer", "other_layer")
    structure = 1 if 1 in verdicts else -1 if -1 in verdicts else 0
    return xr.Dataset(
        {
            "similarity": (both, similarity),
            "block_of": ("layer", block_of),
            "first": ("block", np.array([names[start] for start, _ in blocks], object)),
            "last": ("block", np.array([names[end - 1] for _, end in blocks], object)),
            "layers": ("block", np.array([end - start for start, end in blocks], int)),
            "before": ("block", np.array(means)),
            **{name: ("block", column) for name, column in zip(_LEFT_NAMES, columns, strict=True)},
            "verdict": ("block", np.array(verdicts, int)),
        },
        coords={"layer": list(names), "other_layer": list(names), "block": np.arange(len(blocks))},
        attrs={
            "model": model, "threshold": threshold, "least": least, "block_structure": structure,
            "summary": json.dumps(summary),
        },
    )  # fmt: skip
