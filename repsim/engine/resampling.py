"""Compare all pairs of layers with samples left out, permuted or subsampled.

The functions return one exact value for every resampling; `repsim.study` makes statistics of them. Gram matrices and
decompositions are computed once and reused wherever that is exact.
"""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from repsim import metrics as registry
from repsim.engine import permutation, subsampling
from repsim.engine.grouped import (
    LeaveOneGroupOut,
    check_permutations,
    check_subsample,
    group_permutations,
    random_group_subsamples,
    subsample,
)
from repsim.engine.jackknife import LeaveOneOut
from repsim.engine.preparation import Source, prepare
from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.labels import Form
from repsim.metrics import Factor, Metric
from repsim.metrics.base import GramMetric, PermutedAtOnce, as_samples
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.base import MomentFactor, PermutableFactor, StreamingRecipe
from repsim.metrics.recipes.gram import Gram, Kernels
from repsim.metrics.recipes.groups import Groups, GroupsLike
from repsim.metrics.recipes.rows import Rows
from repsim.runtime.arrays import SupportsArray, as_array
from repsim.runtime.hardware import choose_device
from repsim.runtime.memory import memory_to_use
from repsim.runtime.progress import Listener, counter, report_progress
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore

Layers = ActivationStore | Mapping[str, Any] | Sequence[Any]
"""Layers of one side: a store, or a list or mapping of arrays (n, p), `Rows`, or factors of the metric's recipe."""
Values = Float64[np.ndarray, "count rows columns"]


def random_permutations(
    n: int, count: int, seed: int = 0, *, groups: GroupsLike | None = None
) -> Int64[np.ndarray, "count n"]:
    """Draw permutations of n samples, or of groups of samples.

    The identity is not included; it is drawn with the same probability as any other permutation. A permutation test has
    to add the observed value itself.

    Parameters
    ----------
    n : int
        Number of samples.
    count : int
        Number of permutations.
    seed : int
        Seed of the random generator.
    groups : sequence of n int or str, optional
        Group of each sample. Whole groups are then exchanged with groups of the same size, and the order within groups
        is kept: samples of one group are not exchangeable with others.

    Returns
    -------
    array of shape (count, n)

    Raises
    ------
    InvalidInputError
        If there is not one group for each sample, or fewer than 20 distinct rearrangements of the groups exist.

    Examples
    --------
    >>> random_permutations(5, 2)
    array([[2, 4, 3, 0, 1],
           [4, 1, 2, 0, 3]])
    >>> random_permutations(8, 2, groups=[0, 0, 1, 1, 2, 2, 3, 3])
    array([[4, 5, 0, 1, 2, 3, 6, 7],
           [6, 7, 4, 5, 2, 3, 0, 1]])
    """
    if n < 1 or count < 1:
        raise InvalidInputError(f"expected at least 1 sample and 1 permutation, got n = {n} and count = {count}")
    if groups is not None:
        return group_permutations(Groups.of(groups, n), count, seed)
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(count)])


@overload
def random_subsamples(n: int, m: int, count: int, seed: int = 0) -> Int64[np.ndarray, "count m"]: ...
@overload
def random_subsamples(
    n: int, m: int, count: int, seed: int = 0, *, groups: GroupsLike
) -> list[Int64[np.ndarray, " samples"]]: ...
def random_subsamples(
    n: int, m: int, count: int, seed: int = 0, *, groups: GroupsLike | None = None
) -> Int64[np.ndarray, "count m"] | list[Int64[np.ndarray, " samples"]]:
    """Draw subsamples of m of n samples, or of m groups of samples, without replacement.

    Parameters
    ----------
    n : int
        Number of samples.
    m : int
        Number of samples to draw, from 4 to n; of groups, if there are groups.
    count : int
        Number of subsamples.
    seed : int
        Seed of the random generator.
    groups : sequence of n int or str, optional
        Group of each sample; whole groups are drawn.

    Returns
    -------
    array of shape (count, m)
        Each row in increasing order. With groups, which may have different sizes, a list of arrays.

    Examples
    --------
    >>> random_subsamples(9, 4, 2)
    array([[2, 4, 5, 7],
           [0, 1, 5, 6]])
    """
    if groups is not None:
        return random_group_subsamples(Groups.of(groups, n), m, count, seed)
    if not (4 <= m <= n and count >= 1):
        raise InvalidInputError(f"expected 4 <= m <= n and at least 1 subsample, got m = {m}, n = {n}, count = {count}")
    rng = np.random.default_rng(seed)
    return np.stack([np.sort(rng.choice(n, m, replace=False)) for _ in range(count)])


def leave_one_out(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any] = "cka",
    *,
    groups: GroupsLike | None = None,
    device: str = "auto",
    progress: Listener = None,
) -> Values:
    """Compute debiased CKA of all pairs with each sample, or each group of samples, left out, exactly.

    It takes about the time of one comparison.

    With A and B the U-centred Gram matrices of all n samples and D_i = sum_j A_ij B_ij, HSIC_1 without sample i is
    proportional to <A, B> - c D_i with c = 2 (n-2)/(n-3): leaving out a sample changes offsets of rows and columns, to
    which HSIC_1 is invariant, and the row sums, which become -A_ij (`LeaveOneOut` has the derivation). Value i is

        (<A, B> - c D_i^AB) / sqrt((<A, A> - c D_i^AA) (<B, B> - c D_i^BB)).

    If the width of an RBF kernel is a fraction of the median distance, the width of all n samples is used.

    Samples of one group, such as the frames of a scene, are not independent. With ``groups``, CKA is computed from
    pairs of samples of different groups only, and whole groups are left out (`LeaveOneGroupOut`); a jackknife of these
    values has the groups as its units.

    Parameters
    ----------
    rows, columns : ActivationStore, or list or mapping of layers
        Layers over the same n samples: a store, or arrays of shape (n, p), `Rows` that are read when needed, or
        factors.
    metric : str or Metric
        Debiased `CKA` with any kernel.
    groups : sequence of n int or str, optional
        Group of each sample, as in ``store.groups``; by default every sample is independent, also if the stores hold
        groups.
    device : str
        The device to compute on, as in `repsim.compare`. Factors stay on their device.
    progress : callable or False, optional
        Called with the number of steps done and the total number of steps. By default a notebook shows a bar; False
        shows nothing.

    Returns
    -------
    array of shape (n, rows, columns), or (groups, rows, columns)
        Value (i, a, b) compares row layer a with column layer b without sample i, or without group i, in the order in
        which groups first occur. In [-1, 1], and never clipped. NaN if it is undefined: a layer is constant, or
        consists of rounding errors without the sample.

    Raises
    ------
    InvalidInputError
        If the metric is another one, there are fewer than 5 samples or groups, the layers have different samples, or,
        without another group, one group would have half of the samples or more.

    References
    ----------
    Song, Smola, Gretton, Bedo, Borgwardt. Feature selection via dependence maximization. JMLR 2012, eq. 5 (HSIC_1).
    Szekely, Rizzo. Partial distance correlation with methods for dissimilarities. Annals of Statistics 2014.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 3))
    >>> values = leave_one_out([x], [y])
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(np.delete(x, 7, 0), np.delete(y, 7, 0))))
    ((20, 1, 1), True)
    >>> leave_one_out([x], [y], groups=np.arange(20) // 2).shape
    (10, 1, 1)
    """
    metric = _metric(metric)
    sides = _Sides(rows, columns, metric, device, groups)
    _, values = _left_out(sides, metric, progress)
    if sides.present:
        sides.warn_if_scarce(metric, sides.n - 1)
    return values


def left_out_with_values(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any] = "cka",
    *,
    groups: GroupsLike | None = None,
    device: str = "auto",
    progress: Listener = None,
) -> tuple[Float64[np.ndarray, "rows columns"], Values]:
    """Compute debiased CKA of all pairs on all samples, and without each sample or group, as `leave_one_out` does.

    >>> rng = np.random.default_rng(0)
    >>> x, y, pairs = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), np.arange(20) // 2
    >>> values, left_out = left_out_with_values([x], [y], groups=pairs)
    >>> values.shape, left_out.shape
    ((1, 1), (10, 1, 1))
    """
    metric = _metric(metric)
    return _left_out(_Sides(rows, columns, metric, device, groups), metric, progress)


def check_leaves_one_out(metric: Metric[Any], *, full: bool = True) -> None:
    """Raise `InvalidInputError` if a measure is not debiased CKA, or the layers are not ``full`` Gram matrices."""
    if not (full and leaves_one_out(metric)):
        raise InvalidInputError(f"{metric.spec} has no exact leave-one-out; take debiased CKA: cka or cka:kernel=rbf")


def leaves_one_out(metric: Metric[Any]) -> bool:
    """Return whether values of a measure without each sample are computed exactly from one pass: debiased CKA.

    >>> [leaves_one_out(registry.get(spec)) for spec in ("cka", "cka:kernel=rbf", "cka:estimator=biased", "svcca")]
    [True, True, False, False]
    """
    minibatches = isinstance(metric, CKA) and metric.batch is not None
    return isinstance(metric, GramMetric) and metric.unbiased and metric.normalised and not minibatches


def sweep_without(
    rows: Sequence[Any], columns: Sequence[Any], metric: GramMetric[Any], **sizes: int
) -> LeaveOneOut | LeaveOneGroupOut:
    """Return the algorithm that leaves out samples, or groups if the factors are of samples in groups."""
    grouped = any(isinstance(layer, Gram) and layer.groups is not None for layer in rows)
    return (LeaveOneGroupOut if grouped else LeaveOneOut)(rows, columns, metric, **sizes)


def check_units(samples: int) -> None:
    """Raise `InvalidInputError` if samples are too few to leave one out."""
    if samples < 5:
        raise InvalidInputError(f"{samples} samples are too few: with one left out, debiased CKA needs at least 4")


def _left_out(
    sides: "_Sides", metric: Metric[Any], progress: Listener
) -> tuple[Float64[np.ndarray, "rows columns"], Values]:
    """Return the values of all samples, and those without each sample or group."""
    check_leaves_one_out(metric, full=sides.full_grams)
    check_units(sides.n)
    values, defined = sides.empty_values(sides.n if sides.groups is None else sides.groups.count)
    whole = np.full(values.shape[1:], np.nan)
    if sides.present:
        assert isinstance(metric, GramMetric)
        sweep = sweep_without(*sides.present, metric)
        what = "sample" if sides.groups is None else "group of samples"
        with report_progress(f"leaving out each {what}", progress) as advance:
            values[defined] = sweep.left_out(counter(sweep.units, advance))
        whole[defined[1:]] = sweep.full_values
    return whole, values


def permuted(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    permutations: ArrayLike,
    *,
    groups: GroupsLike | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    progress: Listener = None,
) -> Values:
    """Compute the values of all pairs with the samples of one side permuted, exactly.

    Value k compares rows with columns[permutations[k]]. Permutation and centring commute, and norms do not change under
    permutation. So CKA only needs <A, P B P'>, from centred Gram matrices that are computed once:

        <A, P B P'> = sum_ij A_ij B_pi(i)pi(j),

    where every unordered pair of samples is computed once. For a linear kernel it also follows from the features: with
    g_i and h_i the squared norms of the samples,

        <A, P B P'> = ||X'PY||^2 - n/(n-2) sum_i g_i h_pi(i) + (sum_i g_i)(sum_i h_i)/((n-1)(n-2))

    for the debiased estimator, and the first term alone for the biased one. The algorithm with fewer operations is
    used. Few features are much cheaper than Gram matrices; `repsim.engine.shared_directions.truncate` reduces them.

    For the CCA family the rows of an orthonormal basis are permuted, which gives a basis of the permuted layer. For all
    other measures the permuted layers are prepared again.

    If the samples are in groups, such as the frames of a scene, only whole groups are exchangeable. With ``groups``,
    debiased CKA is computed from pairs of samples of different groups; the values of all other measures are what they
    are without groups, as they have no such estimator.

    Parameters
    ----------
    rows, columns : ActivationStore, or list or mapping of layers
        Layers over the same n samples: a store, or arrays of shape (n, p), `Rows`, or factors.
    metric : str or Metric
        A spec string or a metric.
    permutations : array of shape (K, n)
        Each row is a permutation of 0 ... n - 1, applied to all layers of the columns.
    groups : sequence of n int or str, optional
        Group of each sample; each permutation then has to exchange whole groups of the same size, and keep the order
        within groups (`random_permutations`). By default every sample is independent, also if the stores hold groups.
    device : str
        The device to compute on, as in `repsim.compare`. Factors stay on their device.
    memory : int or str, optional
        Bytes that Gram matrices, or features, may take at once, or a text such as ``"2GiB"``; by default half of the
        machine's memory, or 80 % of the GPU's. If Gram matrices take more, groups of layers are compared one after the
        other.
    progress : callable or False, optional
        Called with the number of steps done and the total number of steps. By default a notebook shows a bar; False
        shows nothing.

    Returns
    -------
    array of shape (K, rows, columns)
        Value (k, a, b) compares row layer a with column layer b under permutation k. In the metric's range; NaN if it
        is undefined.

    Raises
    ------
    InvalidInputError
        If a row is not a permutation, or moves samples out of their group; the layers have different samples; not even
        one Gram matrix of each side fits into the memory; factors are given where the layers themselves are needed; or
        the readout is ``gram:B``, whose blocks cannot be permuted.
    SampleMismatchError
        If stores have different samples, or the same samples in a different order.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, order = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_permutations(20, 100)
    >>> values = permuted([x], [y], "cka", order)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x, y[order[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    sides = _Sides(rows, columns, metric, device, groups)
    orders = _check_indices(permutations, sides.n, "permutations")
    if orders.shape[1] != sides.n:
        raise InvalidInputError(f"permutations of {orders.shape[1]} samples, but the layers have {sides.n}")
    if sides.groups is not None:
        check_permutations(sides.groups, orders)
    values, defined = sides.empty_values(len(orders))
    with report_progress("permuting samples", progress) as advance:
        if isinstance(metric, GramMetric) and sides.full_grams and sides.present:
            limit = memory_to_use(sides.device, memory)
            values[defined] = permutation.permuted(*sides.present, metric, orders, memory=limit, progress=advance)
        elif sides.present:
            step = counter(len(orders), advance)
            if isinstance(metric, PermutedAtOnce):
                values[defined] = metric.permuted(*sides.present, orders, step)
                return values
            for k, order in enumerate(orders):
                permuted_columns = [sides.permuted(name, order) for name in sides.columns]
                values[k] = _block(metric, [sides.factors.get(name) for name in sides.rows], permuted_columns)
                step()
    return values


def subsampled(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    samples: ArrayLike | Sequence[ArrayLike],
    *,
    groups: GroupsLike | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    progress: Listener = None,
) -> Values:
    """Compute the values of all pairs on subsamples drawn without replacement, exactly.

    Value k compares rows[samples[k]] with columns[samples[k]]. For CKA, the entries A_S, B_S are taken from Gram
    matrices that were centred once, over all samples; HSIC on the subsample is invariant to that. With a = A_S 1 and
    b = B_S 1, the debiased estimator (Song et al. 2012, eq. 5), multiplied by m (m - 3), is

        tr(A_S B_S) + (1'a)(1'b) / ((m-1)(m-2)) - 2/(m-2) a'b,

    and the biased one, multiplied by a constant, is tr(A_S B_S) + (1'a)(1'b) / m^2 - 2/m a'b. If the width of an RBF
    kernel is a fraction of the median distance, the width of all n samples is used. Every other metric is computed from
    the subsampled layers.

    With ``groups``, every subsample consists of whole groups, and debiased CKA is computed from pairs of samples of
    different groups; the values of all other measures are what they are without groups.

    Parameters
    ----------
    rows, columns : ActivationStore, or list or mapping of layers
        Layers over the same n samples: a store, or arrays of shape (n, p), `Rows`, or, for CKA, factors.
    metric : str or Metric
        A spec string or a metric.
    samples : array of shape (K, m)
        Each row has m >= 4 different samples out of 0 ... n - 1. With groups, rows may have different lengths.
    groups : sequence of n int or str, optional
        Group of each sample. By default every sample is independent, also if the stores hold groups.
    device : str
        As in `permuted`.
    memory : int or str, optional
        As in `permuted`.
    progress : callable or False, optional
        Called with the number of steps done and the total number of steps. By default a notebook shows a bar; False
        shows nothing.

    Returns
    -------
    array of shape (K, rows, columns)
        Value (k, a, b) compares row layer a with column layer b on subsample k. In the metric's range; NaN if it is
        undefined, for example because a layer is constant on the subsample.

    Raises
    ------
    InvalidInputError
        If a sample is drawn twice (the bootstrap would bring back the bias that the debiased estimator removes) or is
        out of range; a part of a group is drawn; there are fewer samples than the metric needs; and as in `permuted`.
    SampleMismatchError
        If stores have different samples, or the same samples in a different order.

    References
    ----------
    Politis, Romano. Large sample confidence regions based on subsamples under minimal assumptions. Annals of
    Statistics 1994.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, samples = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_subsamples(20, 10, 100)
    >>> values = subsampled([x], [y], "cka", samples)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x[samples[7]], y[samples[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    sides = _Sides(rows, columns, metric, device, groups)
    runs = _equally_long(samples, sides.n, ragged=sides.groups is not None)
    smallest = min(indices.shape[1] for _, indices in runs)
    if smallest < metric.min_samples:
        raise InvalidInputError(
            f"subsamples of {smallest} are too small: {metric.spec} needs at least {metric.min_samples} samples"
        )
    count = sum(len(indices) for _, indices in runs)
    values, defined = sides.empty_values(count)
    sides.warn_if_scarce(metric, smallest)
    with report_progress("drawing subsamples", progress) as advance:
        whole = isinstance(metric, GramMetric) and sides.full_grams and not sides.grouped
        if isinstance(metric, GramMetric) and whole and sides.present and len(runs) == 1:
            limit = memory_to_use(sides.device, memory)
            values[defined] = subsampling.subsampled(*sides.present, metric, runs[0][1], memory=limit, progress=advance)
        elif sides.present:
            step = counter(count, advance)
            for place, indices in runs:
                for k, chosen in zip(place, indices, strict=True):
                    if sides.groups is not None:
                        check_subsample(sides.groups, chosen, k)
                    parts = {name: sides.part(name, chosen) for name in {*sides.rows, *sides.columns}}
                    both = ([parts[name] for name in side] for side in (sides.rows, sides.columns))
                    values[k] = _block(metric, *both)
                    step()
    return values


def _equally_long(samples: Any, n: int, *, ragged: bool) -> list[tuple[list[int], Int64[Tensor, "count m"]]]:
    """Return subsamples of one length together, with their places among all; all at once if they are an array."""
    lengths = {len(part) for part in samples} if ragged and hasattr(samples, "__len__") else set()
    if len(lengths) <= 1:
        indices = _check_indices(samples, n, "subsamples")
        return [(list(range(len(indices))), indices)]
    runs = []
    for length in sorted(lengths):
        places = [k for k, part in enumerate(samples) if len(part) == length]
        runs.append((places, _check_indices([np.asarray(samples[k]) for k in places], n, "subsamples")))
    return runs


def in_groups(factor: Any, groups: Groups | None) -> Gram:
    """Return the Gram matrix of a layer without pairs of samples within a group."""
    if not isinstance(factor, Gram):
        raise InvalidInputError(
            "compressed readouts have no estimator for samples in groups; extract features (mean, cls, grid:K)"
        )
    return factor.grouped(groups)


class _Sides:
    """Layers of both sides, each read and prepared once, even if it is on both sides."""

    def __init__(
        self, rows: Layers, columns: Layers, metric: Metric[Any], device: str, groups: GroupsLike | None = None
    ) -> None:
        self.device = choose_device(device)
        if stores := [side for side in (rows, columns) if isinstance(side, ActivationStore)]:
            AlignedView(*stores)  # checks that they have the same samples in the same order
        self._objects: dict[str, Any] = {}
        self._layers: dict[str, Tensor | Rows] = {}
        self._forms: dict[str, Form] = {}
        self.factors: dict[str, Any] = {}
        """Factors by name of the layer; layers without values have none."""
        self.rows, self.columns = (self._add_side(side, metric.min_samples) for side in (rows, columns))
        self.n = self._count_samples()
        if len(self._forms) > 1:
            raise InvalidInputError(
                f"layers of different readouts cannot be compared: {' and '.join(sorted(self._forms))}"
            )
        self._recipe = metric.recipe_for(next(iter(self._forms.values()), "features"))
        by_grams = isinstance(metric, GramMetric)
        keep = not (by_grams and isinstance(self._recipe, StreamingRecipe))
        sources = [Source(name, name, partial(self._layers.__getitem__, name)) for name in self._layers]
        self.factors |= prepare(self._recipe, sources, keep=keep).factors
        self.full_grams = by_grams and self._have_full_grams(metric)
        """Whether all factors are Gram matrices of all samples, not of minibatches."""
        self.groups = None if groups is None else Groups.of(groups, self.n)
        """Groups of the samples; None if every sample is independent."""
        if self.groups is not None and self.groups.trivial:
            self.groups = None
        self.grouped = self.groups is not None and isinstance(metric, GramMetric) and metric.unbiased
        """Whether the measure is computed from pairs of samples of different groups."""
        if self.grouped:
            self.factors = {name: in_groups(factor, self.groups) for name, factor in self.factors.items()}

    def _add_side(self, side: Layers, min_samples: int) -> list[str]:
        """Add the layers of a side, and return their names. The same object has the same name on both sides."""
        layers: list[tuple[Any, Any]]
        if isinstance(side, ActivationStore):
            layers = [(label, side[label]) for label in side.layers]
        elif isinstance(side, str | bytes) or not isinstance(side, Iterable) or getattr(side, "ndim", 3) != 3:
            raise InvalidInputError(
                "expected an array of shape (n samples, p features) a layer, in a list of the layers of a side, or an "
                f"open store; got {_describe(side)}"
            )
        else:
            layers = list(side.items()) if isinstance(side, Mapping) else list(enumerate(side))
        for label, x in layers:
            name = str(id(x))
            self._objects[name] = x  # a reference, so that no other object can get the same id
            if isinstance(side, ActivationStore):
                self._layers[name] = self._from_store(side, label, min_samples)
                self._forms["features" if x.key.form == "features" else x.key.readout] = x.key.form
            elif (
                not isinstance(x, Tensor)
                and isinstance(x, Factor)
                and not isinstance(x, Rows)
                and not isinstance(x, SupportsArray)
            ):
                self.factors[name] = x
            else:
                self._layers[name] = self._from_memory(x, min_samples)
                self._forms["features"] = "features"
        return [str(id(x)) for _, x in layers]

    def _from_memory(self, x: Any, min_samples: int) -> Tensor | Rows:
        if isinstance(x, Rows) and not isinstance(x, SupportsArray):
            return x
        return as_samples(x, min_samples, "a layer").to(self.device)

    def _from_store(self, store: ActivationStore, label: str, min_samples: int) -> Tensor | Rows:
        view, form = AlignedView(store), store[label].key.form
        if form == "grams":
            raise InvalidInputError(
                f"{store.path}, layer {label}: Gram matrices of blocks have no values for samples in different blocks, "
                "so samples cannot be left out, permuted or subsampled; extract the features, or sketch:M"
            )
        if form == "features":
            return view.stream(store, label, self.device, min_samples=min_samples)
        return view.load(store, label, min_samples=min_samples).to(self.device)

    def _count_samples(self) -> int:
        counts = [layer.shape[0] for layer in self._layers.values()]
        counts += [(factor.draws[0] if isinstance(factor, Kernels) else factor).n for factor in self.factors.values()]
        if not (self.rows and self.columns):
            raise InvalidInputError("name at least one layer of each side")
        if len(set(counts)) > 1:
            raise InvalidInputError(
                f"layers have {' and '.join(map(str, sorted(set(counts))))} samples; "
                "rows must be the same samples in the same order"
            )
        return int(counts[0])

    def _have_full_grams(self, metric: Metric[Any]) -> bool:
        draws_of_layers = [factor.draws if isinstance(factor, Kernels) else () for factor in self.factors.values()]
        if len({len(draws) for draws in draws_of_layers} - {0}) > 1 or not all(draws_of_layers):
            raise InvalidInputError(f"these are not all factors of one recipe of {metric.spec}")
        return all(draw.block == draw.n == self.n for draws in draws_of_layers for draw in draws)

    def warn_if_scarce(self, metric: Metric[Any], samples: int) -> None:
        """Warn once if this number of samples is too small for some pairs of layers."""
        rows, columns = (
            [self._width(metric, name) for name in side if name in self.factors] for side in (self.rows, self.columns)
        )
        if scarce := metric.scarcity_of_all(samples, list(itertools.product(rows, columns))):
            warnings.warn(f"{metric.spec}: {scarce}", UnreliableValueWarning, stacklevel=3)

    def _width(self, metric: Metric[Any], name: str) -> int:
        factor = self.factors[name]
        features = factor.p if isinstance(factor, MomentFactor) else 1
        if name in self._layers:
            features = self._layers[name].shape[1]
        return metric.width(factor, features)

    @property
    def present(self) -> tuple[list[Any], list[Any]] | None:
        """Factors of the rows and of the columns that have one; None if one side has none."""
        a, b = ([self.factors[name] for name in side if name in self.factors] for side in (self.rows, self.columns))
        return (a, b) if a and b else None

    def empty_values(self, count: int) -> tuple[Values, Any]:
        """Return an array of NaN for all values, and the index of the values of `present` in it."""
        a, b = ([k for k, name in enumerate(side) if name in self.factors] for side in (self.rows, self.columns))
        return np.full((count, len(self.rows), len(self.columns)), np.nan), np.ix_(range(count), a, b)

    def permuted(self, name: str, order: Int64[Tensor, " n"]) -> Any:
        """Return the factor of a layer with its samples permuted; None if it has none."""
        factor: Any = self.factors.get(name)
        return factor.permuted(order) if isinstance(factor, PermutableFactor) else self.part(name, order)

    def part(self, name: str, samples: Int64[Tensor, " m"]) -> Any:
        """Prepare a subset of the samples of a layer, and return the factor; None if it has none."""
        if self.grouped:  # with the centre, and for an RBF kernel the width, of all samples
            return subsample(self.factors[name], samples) if name in self.factors else None
        if name not in self._layers:
            raise InvalidInputError(
                "this metric has to prepare the selected samples again: give the layers, and not factors"
            )
        x = self._layers[name] = self._layers[name][:]
        try:
            return self._recipe(x[samples.to(x.device)])
        except UndefinedValueError:
            return None


def _describe(side: Any) -> str:
    shape = getattr(side, "shape", None)
    return type(side).__name__ if shape is None else f"{type(side).__name__} of shape {tuple(shape)}"


def _metric(spec: str | Metric[Any]) -> Metric[Any]:
    return spec if isinstance(spec, Metric) else registry.get(spec)


def _block(metric: Metric[Any], rows: Sequence[Any], columns: Sequence[Any]) -> Float64[np.ndarray, "rows columns"]:
    """Return the values of `Metric.block`, and NaN for layers without a factor."""
    values = np.full((len(rows), len(columns)), np.nan)
    a, b = ([k for k, factor in enumerate(side) if factor is not None] for side in (rows, columns))
    values[np.ix_(a, b)] = metric.block([rows[i] for i in a], [columns[j] for j in b])
    return values


def _check_indices(indices: ArrayLike, n: int, what: str) -> Int64[Tensor, "count m"]:
    """Return the indices as a tensor; raise `InvalidInputError` if a row has a sample twice or out of range."""
    array = as_array(indices, what)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise InvalidInputError(
            f"expected {what}: whole numbers of shape (K, samples), got shape {array.shape}, dtype {array.dtype}"
        )
    array = array.astype(np.int64)
    if outside := array[(array < 0) | (array >= n)].tolist():
        raise InvalidInputError(f"{what} of {n} samples are of the numbers 0 to {n - 1}, got {outside[0]}")
    for k, row in enumerate(array):
        numbers, times = np.unique(row, return_counts=True)
        if times.max() > 1:
            raise InvalidInputError(
                f"row {k} of the {what} has sample {numbers[times.argmax()]} {times.max()} times; take every sample "
                "once: with replacement, a sample and its copy are similar, which increases the value"
            )
    return torch.from_numpy(array)
