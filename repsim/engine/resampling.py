"""All pairs of layers with samples left out, permuted or drawn, at the cost of matrix products.

What statistics are made of, and no statistics yet: a value for every way to resample, each the exact one. No Gram
matrix and no decomposition is made a second time where the first one will do.
"""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from repsim import metrics as registry
from repsim.engine import permutation, subsampling
from repsim.engine.jackknife import LeaveOneOut
from repsim.engine.preparation import Source, prepare
from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.labels import Form
from repsim.metrics import Factor, Metric
from repsim.metrics.base import GramMetric, PermutedAtOnce, as_samples
from repsim.metrics.recipes.base import MomentFactor, PermutableFactor, StreamingRecipe
from repsim.metrics.recipes.gram import Kernels
from repsim.metrics.recipes.rows import Rows
from repsim.runtime.arrays import SupportsArray, as_array
from repsim.runtime.hardware import choose_device
from repsim.runtime.memory import memory_to_use
from repsim.runtime.progress import Listener, counter, report_progress
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore

Layers = ActivationStore | Mapping[str, Any] | Sequence[Any]
"""The layers of one side: all of a store, or arrays (n, p), `Rows`, or what the metric's recipe made of them."""
Values = Float64[np.ndarray, "count rows columns"]


def random_permutations(n: int, count: int, seed: int = 0) -> Int64[np.ndarray, "count n"]:
    """Draw permutations of n samples, the same for the same seed.

    The order as it is has no place of its own among them, and is drawn as rarely as any other: the value that a test
    looks at is for the test to add.

    Examples
    --------
    >>> random_permutations(5, 2)
    array([[2, 4, 3, 0, 1],
           [4, 1, 2, 0, 3]])
    """
    if n < 1 or count < 1:
        raise InvalidInputError(f"expected at least 1 sample and 1 permutation, got n = {n} and count = {count}")
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(count)])


def random_subsamples(n: int, m: int, count: int, seed: int = 0) -> Int64[np.ndarray, "count m"]:
    """Draw subsamples of m of n samples without replacement, each in rising order, the same for the same seed.

    Examples
    --------
    >>> random_subsamples(9, 4, 2)
    array([[2, 4, 5, 7],
           [0, 1, 5, 6]])
    """
    if not (4 <= m <= n and count >= 1):
        raise InvalidInputError(f"expected 4 <= m <= n and at least 1 subsample, got m = {m}, n = {n}, count = {count}")
    rng = np.random.default_rng(seed)
    return np.stack([np.sort(rng.choice(n, m, replace=False)) for _ in range(count)])


def leave_one_out(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any] = "cka",
    *,
    device: str = "auto",
    progress: Listener = None,
) -> Values:
    """Debiased CKA of all pairs with each sample left out, exactly, for about the price of the comparison.

    With A and B the U-centred Gram matrices of all n samples and D_i = sum_j A_ij B_ij, the HSIC_1 of the others is
    proportional to <A, B> - c D_i, c = 2 (n-2)/(n-3): leaving out a sample changes offsets of rows and columns, which
    HSIC_1 does not see, and the row sums, which become -A_ij (`LeaveOneOut` has the steps). Value i is therefore

        (<A, B> - c D_i^AB) / sqrt((<A, A> - c D_i^AA) (<B, B> - c D_i^BB)).

    For an RBF kernel whose width is a fraction of the median distance, the width stays that of all n samples.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples, several a side: a store, or arrays (n, p), `Rows` that are read as they are
        needed, or factors.
    metric
        Debiased `CKA`, of either kernel.
    device
        Where to compute, as in `repsim.compare`. Factors stay where they are.
    progress
        Called with the number of steps done, and of all. By default a notebook shows a bar; False is silent.

    Returns
    -------
    array
        Value (i, a, b): row layer a and column layer b without sample i. In [-1, 1], and never clipped. NaN where there
        is no value: a constant layer, or one of which nothing but rounding errors is left without the sample.

    Raises
    ------
    InvalidInputError
        Another metric, fewer than 5 samples, sides with different samples.

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
    """
    metric = _metric(metric)
    both = _Sides(rows, columns, metric, device)
    if not (isinstance(metric, GramMetric) and both.whole and metric.unbiased and metric.normalised):
        raise InvalidInputError(f"{metric.spec} has no exact leave-one-out; take debiased CKA: cka or cka:kernel=rbf")
    if both.n < 5:
        raise InvalidInputError(f"{both.n} samples are too few: with one left out, debiased CKA needs at least 4")
    values, there = both.room(both.n)
    both.warn(metric, both.n - 1)
    if both.present:
        sweep = LeaveOneOut(*both.present, metric)
        with report_progress("leaving out each sample", progress) as advance:
            values[there] = sweep.left_out(counter(sweep.units, advance))
    return values


def permuted(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    permutations: ArrayLike,
    *,
    device: str = "auto",
    memory: int | str | None = None,
    progress: Listener = None,
) -> Values:
    """All pairs with the samples of one side permuted, exactly: value k compares rows with columns[permutations[k]].

    Permutation and centring commute, and norms do not change. So CKA needs <A, P B P'> alone, from centred Gram
    matrices that are made once:

        <A, P B P'> = sum_ij A_ij B_pi(i)pi(j),

    of which every unordered pair of samples is computed once. Of a linear kernel the same follows from the features,

        <A, P B P'> = ||X'PY||^2 - n/(n-2) sum_i g_i h_pi(i) + (sum_i g_i)(sum_i h_i)/((n-1)(n-2)),

    g_i and h_i being squared norms of samples (biased, the first term alone): whichever takes less is what is done.
    Few features are far cheaper than Gram matrices, and `repsim.engine.shared_directions.truncate` makes them few.

    The CCA family has bases permuted: the rows of an orthonormal basis, permuted, are the basis of the permuted layer.
    All else prepares the permuted layers anew.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples, several a side: a store, or arrays (n, p), `Rows`, or factors.
    metric
        A spec string or a metric.
    permutations
        (K, n), each row a permutation of 0 ... n - 1. The same one holds for all layers.
    device
        Where to compute, as in `repsim.compare`. Factors stay where they are.
    memory
        Bytes that Gram matrices, or features, may take at once, or words such as ``"2GiB"``; by default half of the
        machine's memory, or 80 % of the GPU's. Where Gram matrices take more, groups of layers are compared one after
        the other.
    progress
        Called with the number of steps done, and of all. By default a notebook shows a bar; False is silent.

    Returns
    -------
    array
        Value (k, a, b): row layer a and column layer b, permuted by permutation k; in the metric's bounds. NaN where
        the comparison has no value.

    Raises
    ------
    InvalidInputError
        Rows that are no permutations; sides with different samples; Gram matrices of which not even one of each side
        fits; factors where the layers themselves are needed; the readout ``gram:B``, whose blocks cannot be permuted.
    SampleMismatchError
        Stores of other samples, or in another order.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, order = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_permutations(20, 100)
    >>> values = permuted([x], [y], "cka", order)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x, y[order[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    both = _Sides(rows, columns, metric, device)
    orders = _drawn(permutations, both.n, "permutations")
    if orders.shape[1] != both.n:
        raise InvalidInputError(f"permutations of {orders.shape[1]} samples, but the layers have {both.n}")
    values, there = both.room(len(orders))
    with report_progress("permuting samples", progress) as advance:
        if isinstance(metric, GramMetric) and both.whole and both.present:
            limit = memory_to_use(both.device, memory)
            values[there] = permutation.permuted(*both.present, metric, orders, memory=limit, progress=advance)
        elif both.present:
            step = counter(len(orders), advance)
            if isinstance(metric, PermutedAtOnce):
                values[there] = metric.permuted(*both.present, orders, step)
                return values
            for k, order in enumerate(orders):
                others = [both.permuted(name, order) for name in both.columns]
                values[k] = _block(metric, [both.factors.get(name) for name in both.rows], others)
                step()
    return values


def subsampled(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    samples: ArrayLike,
    *,
    device: str = "auto",
    memory: int | str | None = None,
    progress: Listener = None,
) -> Values:
    """All pairs on subsamples without replacement, exactly: value k compares rows[samples[k]] with columns[samples[k]].

    CKA takes the entries A_S, B_S of Gram matrices that were centred once, over all samples. HSIC does not see that
    they are centred over more: with a = A_S 1 and b = B_S 1, its m (m - 3)-fold is, debiased (Song et al. 2012, eq. 5),

        tr(A_S B_S) + (1'a)(1'b) / ((m-1)(m-2)) - 2/(m-2) a'b,

    and, biased, tr(A_S B_S) + (1'a)(1'b) / m^2 - 2/m a'b. For an RBF kernel whose width is a fraction of the median
    distance, the width stays that of all n samples. Every other metric is recomputed from the samples drawn.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples, several a side: a store, or arrays (n, p), `Rows`, or, for CKA, factors.
    metric
        A spec string or a metric.
    samples
        (K, m), each row m different samples out of 0 ... n - 1, m >= 4.
    device, memory
        As in `permuted`.
    progress
        Called with the number of steps done, and of all. By default a notebook shows a bar; False is silent.

    Returns
    -------
    array
        Value (k, a, b): row layer a and column layer b on subsample k; in the metric's bounds. NaN where there is no
        value, as where a layer is constant on the subsample.

    Raises
    ------
    InvalidInputError
        Samples drawn twice (the bootstrap puts back the bias that the debiased estimator takes away), or out of range;
        fewer than the metric needs; and as in `permuted`.
    SampleMismatchError
        Stores of other samples, or in another order.

    References
    ----------
    Politis, Romano. Large sample confidence regions based on subsamples under minimal assumptions. Annals of
    Statistics 1994.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, drawn = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_subsamples(20, 10, 100)
    >>> values = subsampled([x], [y], "cka", drawn)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x[drawn[7]], y[drawn[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    both = _Sides(rows, columns, metric, device)
    drawn = _drawn(samples, both.n, "subsamples")
    if drawn.shape[1] < metric.min_samples:
        raise InvalidInputError(
            f"subsamples of {drawn.shape[1]} are too small: {metric.spec} needs at least {metric.min_samples} samples"
        )
    values, there = both.room(len(drawn))
    both.warn(metric, drawn.shape[1])
    with report_progress("drawing subsamples", progress) as advance:
        if isinstance(metric, GramMetric) and both.whole and both.present:
            limit = memory_to_use(both.device, memory)
            values[there] = subsampling.subsampled(*both.present, metric, drawn, memory=limit, progress=advance)
        elif both.present:
            step = counter(len(drawn), advance)
            for k, some in enumerate(drawn):
                parts = {name: both.part(name, some) for name in {*both.rows, *both.columns}}
                values[k] = _block(metric, *([parts[name] for name in side] for side in (both.rows, both.columns)))
                step()
    return values


class _Sides:
    """Both sides, each layer read and prepared once, though it may be on both."""

    def __init__(self, rows: Layers, columns: Layers, metric: Metric[Any], device: str) -> None:
        self.device = choose_device(device)
        if stores := [side for side in (rows, columns) if isinstance(side, ActivationStore)]:
            AlignedView(*stores)  # refuses other samples, and another order
        self._given: dict[str, Any] = {}
        self._layers: dict[str, Tensor | Rows] = {}
        self._forms: dict[str, Form] = {}
        self.factors: dict[str, Any] = {}
        """By name; a layer that has nothing to compare has none."""
        self.rows, self.columns = (self._take(side, metric.min_samples) for side in (rows, columns))
        self.n = self._samples()
        if len(self._forms) > 1:
            raise InvalidInputError(f"only like can be compared with like, not {' with '.join(sorted(self._forms))}")
        self._recipe = metric.recipe_for(next(iter(self._forms.values()), "features"))
        by_grams = isinstance(metric, GramMetric)
        keep = not (by_grams and isinstance(self._recipe, StreamingRecipe))
        sources = [Source(name, name, partial(self._layers.__getitem__, name)) for name in self._layers]
        self.factors |= prepare(self._recipe, sources, keep=keep).factors
        self.whole = by_grams and self._whole(metric)
        """Whether every layer is a Gram matrix of all samples."""

    def _take(self, side: Layers, enough: int) -> list[str]:
        """Names of a side's layers: one object has one name, on whichever side it is."""
        given: list[tuple[Any, Any]]
        if isinstance(side, ActivationStore):
            given = [(label, side[label]) for label in side.layers]
        elif isinstance(side, str | bytes) or not isinstance(side, Iterable) or getattr(side, "ndim", 3) != 3:
            raise InvalidInputError(
                "expected an array of shape (n samples, p features) a layer, in a list of the layers of a side, or an "
                f"open store; got {_kind(side)}"
            )
        else:
            given = list(side.items()) if isinstance(side, Mapping) else list(enumerate(side))
        for label, x in given:
            name = str(id(x))
            self._given[name] = x  # held, so that no other object comes to have its id
            if isinstance(side, ActivationStore):
                self._layers[name] = self._stored(side, label, enough)
                self._forms["features" if x.key.form == "features" else x.key.readout] = x.key.form
            elif (
                not isinstance(x, Tensor)
                and isinstance(x, Factor)
                and not isinstance(x, Rows)
                and not isinstance(x, SupportsArray)
            ):
                self.factors[name] = x
            else:
                self._layers[name] = self._at_hand(x, enough)
                self._forms["features"] = "features"
        return [str(id(x)) for _, x in given]

    def _at_hand(self, x: Any, enough: int) -> Tensor | Rows:
        if isinstance(x, Rows) and not isinstance(x, SupportsArray):
            return x
        return as_samples(x, enough, "a layer").to(self.device)

    def _stored(self, store: ActivationStore, label: str, enough: int) -> Tensor | Rows:
        view, form = AlignedView(store), store[label].key.form
        if form == "grams":
            raise InvalidInputError(
                f"{store.path}, layer {label}: Gram matrices of blocks say nothing of two samples in different blocks, "
                "so samples cannot be left out, permuted or drawn; extract the features, or sketch:M"
            )
        if form == "features":
            return view.stream(store, label, self.device, min_samples=enough)
        return view.load(store, label, min_samples=enough).to(self.device)

    def _samples(self) -> int:
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

    def _whole(self, metric: Metric[Any]) -> bool:
        draws = [factor.draws if isinstance(factor, Kernels) else () for factor in self.factors.values()]
        if len({len(each) for each in draws} - {0}) > 1 or not all(draws):
            raise InvalidInputError(f"these are not all factors of one recipe of {metric.spec}")
        return all(draw.block == draw.n == self.n for each in draws for draw in each)

    def warn(self, metric: Metric[Any], samples: int) -> None:
        """Warn once where these are too few for some pairs of layers."""
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
        """The factors of rows and of columns that there are; None where one side has none."""
        a, b = ([self.factors[name] for name in side if name in self.factors] for side in (self.rows, self.columns))
        return (a, b) if a and b else None

    def room(self, count: int) -> tuple[Values, Any]:
        """NaN for all values, and where among them those of `present` are."""
        a, b = ([k for k, name in enumerate(side) if name in self.factors] for side in (self.rows, self.columns))
        return np.full((count, len(self.rows), len(self.columns)), np.nan), np.ix_(range(count), a, b)

    def permuted(self, name: str, order: Int64[Tensor, " n"]) -> Any:
        """A layer's factor with its samples in another order; None where there is none."""
        factor: Any = self.factors.get(name)
        return factor.permuted(order) if isinstance(factor, PermutableFactor) else self.part(name, order)

    def part(self, name: str, samples: Int64[Tensor, " m"]) -> Any:
        """The factor of some samples of a layer, prepared anew; None where there is none."""
        if name not in self._layers:
            raise InvalidInputError("this metric prepares the samples drawn anew: give the layers, and not factors")
        x = self._layers[name] = self._layers[name][:]
        try:
            return self._recipe(x[samples.to(x.device)])
        except UndefinedValueError:
            return None


def _kind(side: Any) -> str:
    shape = getattr(side, "shape", None)
    return type(side).__name__ if shape is None else f"{type(side).__name__} of shape {tuple(shape)}"


def _metric(spec: str | Metric[Any]) -> Metric[Any]:
    return spec if isinstance(spec, Metric) else registry.get(spec)


def _block(metric: Metric[Any], rows: Sequence[Any], columns: Sequence[Any]) -> Float64[np.ndarray, "rows columns"]:
    """`Metric.block`, and NaN for layers that have no factor."""
    values = np.full((len(rows), len(columns)), np.nan)
    a, b = ([k for k, factor in enumerate(side) if factor is not None] for side in (rows, columns))
    values[np.ix_(a, b)] = metric.block([rows[i] for i in a], [columns[j] for j in b])
    return values


def _drawn(given: ArrayLike, n: int, what: str) -> Int64[Tensor, "count m"]:
    """Rows of different samples, or a refusal."""
    array = as_array(given, what)
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
                "once: drawn with replacement, a sample is like its double, and that counts as similarity"
            )
    return torch.from_numpy(array)
