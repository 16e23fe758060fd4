"""Properties of all measures, for layers drawn by Hypothesis and for degenerate ones."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import repsim.metrics
from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.metrics.base import Array, Invariance, Metric, as_samples
from tests.metrics import references_knn

K = 3
MEASURES = [
    repsim.metrics.get(f"{name}:k={K}" if group == "neighbours" else name)
    for group, members in repsim.metrics.groups().items()
    for name in members
    if group != "topology"
]
NOT_LARGEST_WITH_ITSELF = {
    "cknna": "leaves every interval",
    "cycle_knn": "a sample's neighbours need not choose it in turn",
    "cka_units": "its norm counts only what different units share, so noise in the units may raise the value",
}
SPOILT: dict[str, Callable[[Array], Array]] = {
    "nothing": lambda x: x,
    "a constant feature": lambda x: np.column_stack([x[:, 1:], np.full(len(x), x[0, 0])]),
    "every sample twice": lambda x: np.repeat(x, 2, axis=0)[: len(x)],
    "one sample differs": lambda x: np.where(np.arange(len(x))[:, None] == 1, x, x[0]),
    "rectified": lambda x: np.maximum(x, 0),
    "few values": lambda x: np.sign(x) * np.abs(x).max(),
    "a sample is zero": lambda x: np.where(np.arange(len(x))[:, None] == 1, -0.0, x),
}
few = settings(max_examples=settings().max_examples // 5)
every_measure = pytest.mark.parametrize("metric", MEASURES, ids=[metric.spec for metric in MEASURES])


@pytest.fixture(autouse=True, scope="module")
def _shapes_are_checked_elsewhere() -> Iterator[None]:
    """Switch off shape checks, which would take three quarters of the time; other tests have them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@dataclass(frozen=True)
class Layers:
    """Two layers that share a signal: the parameters that Hypothesis draws."""

    n: int
    p: int
    q: int
    rank: int
    offset: float
    """Means of the features, relative to their deviations."""
    scale: float
    seed: int
    dtype: type = np.float64
    spoilt: str = "nothing"

    def make(self) -> tuple[Array, Array]:
        """Return x with this rank at most, this scale and its degeneracy, and a generic y."""
        rng = np.random.default_rng(self.seed)
        signal = rng.normal(size=(self.n, min(self.rank, self.p)))
        x = signal @ rng.normal(size=(signal.shape[1], self.p)) + self.offset * rng.normal(size=self.p)
        y = signal @ rng.normal(size=(signal.shape[1], self.q)) + rng.normal(size=(self.n, self.q))
        y += self.offset * rng.normal(size=self.q)
        return (SPOILT[self.spoilt](x) * self.scale).astype(self.dtype), y.astype(self.dtype)


widths = st.sampled_from([1, 2, 3, 4, 6, 10, 20])
any_layers = st.builds(
    Layers,
    n=st.integers(5, 24),
    p=widths,
    q=widths,
    rank=st.one_of(st.just(99), st.integers(1, 4)),
    offset=st.sampled_from([0.0, 0.5, 1e3, 1e6]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([np.float64, np.float32]),
    spoilt=st.sampled_from(list(SPOILT)),
)


def calm(layers: Layers) -> Layers:
    """Return the layers without properties that make values depend on rounding errors."""
    return replace(layers, rank=99, offset=min(layers.offset, 1.0), spoilt="nothing", dtype=np.float64)


def value(metric: Metric[Any], x: Array, y: Array) -> float | None:
    """Return the value, after checking it; or None if the measure raises an error with a reason."""
    reason = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UnreliableValueWarning)
        try:
            result = metric(x, y)
        except (UndefinedValueError, InvalidInputError) as undefined:
            result, reason = None, str(undefined)
    if result is None:
        assert len(reason) > 20
        assert "\n" not in reason
        return None
    low, high = metric.bounds
    eps = 1e-12 if x.dtype == y.dtype == np.float64 else 1e-5
    assert np.isfinite(result)
    assert low - (eps if metric.sense == "similarity" else 0) <= result <= high + eps
    return float(result)


def error(metric: Metric[Any], a: float | None, b: float | None, *layers: Array) -> float:
    """Return the difference between two values, relative to their size."""
    assert (a is None) == (b is None), "one of the two is undefined"
    if a is None or b is None:
        return 0.0
    unit = 1.0
    if "isotropic scaling" not in metric.invariances and metric.name != "uniformity_difference":
        unit = max(float(np.abs(x).max()) for x in layers)
    return abs(a - b) / max(unit, abs(a), abs(b))


def rounding(*layers: Array) -> float:
    """Return the approximate rounding error of a value that depends on the smallest directions."""
    if layers[0].dtype == np.float32:
        return 1e-4
    spectra = [np.linalg.svd(x - x.mean(0), compute_uv=False) for x in layers]
    condition = max(float(s[0] / s[s > 1e-14 * s[0]].min(initial=s[0])) if s[0] else 1.0 for s in spectra)
    return 1e-14 * len(layers[0]) * condition


def depends_on_ties(metric: Metric[Any], *layers: Array) -> bool:
    """Return whether rounding errors decide the order of neighbours, pairs or directions in one of the layers."""
    for x in layers:
        eps = float(np.finfo(x.dtype).eps)
        if metric.group == "neighbours":
            if not x.any(axis=1).all():
                return True
            cosines = np.sort(references_knn.cosines(x.astype(np.float64)) - 3 * np.eye(len(x)), axis=1)[:, ::-1]
            if len(x) >= K + 2 and (cosines[:, :K] - cosines[:, 1 : K + 1]).min() < 100 * eps:
                return True
        if metric.name == "rsa" and (x.shape[1] < 4 or keys_depend_on_rounding(x)):
            return True  # correlations of 2 values are 1 or -1, of 3 near that
    return False


def keys_depend_on_rounding(x: Array) -> bool:
    """Return whether two correlations are close and might be rounded differently, which decides ties in rsa."""
    steps = 2.0 ** (46 if x.dtype == np.float64 else 30)
    z = x.astype(np.longdouble)
    z = z - z.mean(1, keepdims=True)
    z /= np.maximum(np.sqrt((z * z).sum(1, keepdims=True)), np.finfo(np.longdouble).tiny)
    keys = np.sort((z @ z.T)[np.triu_indices(len(z), 1)] * steps)
    near_half = np.abs(keys - np.floor(keys) - 0.5) < 16 * np.finfo(np.float64).eps * steps
    return bool(((np.diff(keys) < 1.5) & (near_half[1:] | near_half[:-1])).any())


@every_measure
@few
@given(layers=any_layers)
def test_a_value_or_a_reason(metric: Metric[Any], layers: Layers) -> None:
    """Never NaN, never outside the bounds, never another warning or error; and the same for x and y exchanged."""
    x, y = layers.make()
    forward, backward = value(metric, x, y), value(metric, y, x)
    assert (forward is None) == (backward is None)
    if metric.symmetric:
        assert error(metric, forward, backward, x, y) <= rounding(x, y)
    value(metric, x, x)


@pytest.mark.slow
@every_measure
@few
@given(layers=any_layers, exponent=st.integers(-6, 6), move=st.sampled_from([1.0, 1e3, 1e6]), exchanged=st.booleans())
def test_declared_invariances_hold(
    metric: Metric[Any], layers: Layers, exponent: int, move: float, *, exchanged: bool
) -> None:
    """On either side, however large the scale or the shift is."""
    x, y = calm(layers).make()
    if exchanged:
        x, y = y, x
    if depends_on_ties(metric, x, y):
        return
    rng = np.random.default_rng(layers.seed + 1)
    size = np.abs(x).max()
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]
    transformed: dict[Invariance, tuple[Array, float]] = {
        "permutation": (x[:, rng.permutation(x.shape[1])], 1.0),
        "orthogonal": (x @ rotation, 1.0),
        "isotropic scaling": (x * 10.0**exponent * 1.1, 1.0),
        "translation": (x + move * size * rng.normal(size=x.shape[1]), move),
        "invertible linear": (x @ (rotation * np.geomspace(0.3, 3, x.shape[1])), 10.0),
    }
    plain, mirrored = value(metric, x, y), value(metric, y, x)
    for invariance, (other, errors) in transformed.items():
        tolerance = errors * rounding(x, y)
        if tolerance > 1e-4:  # the layer's own rounding errors count
            continue
        if invariance in metric.invariances:
            assert error(metric, value(metric, other, y), plain, x, y) <= tolerance, f"{invariance} of x"
        if invariance in metric.invariances_of_y:
            assert error(metric, value(metric, y, other), mirrored, x, y) <= tolerance, f"{invariance} of y"


@every_measure
@few
@given(layers=any_layers)
def test_order_of_samples_does_not_matter(metric: Metric[Any], layers: Layers) -> None:
    """Except for distances of duplicates, which are roots of rounding errors."""
    x, y = layers.make()
    if depends_on_ties(metric, x, y):
        return
    order = np.random.default_rng(layers.seed).permutation(len(x))
    assert error(metric, value(metric, x[order], y[order]), value(metric, x, y), x, y) <= rounding(x, y) + 1e-8


@pytest.mark.slow
@every_measure
@few
@given(layers=any_layers)
def test_a_block_is_its_pairs(metric: Metric[Any], layers: Layers) -> None:
    """And NaN exactly where there is no value.

    Offsets are small: with large ones the algorithms of cka may differ on whether a value is only rounding errors.
    """
    layers = replace(layers, offset=min(layers.offset, 1.0))
    factors = []
    for layer in (*layers.make(), *(replace(layers, spoilt=spoilt).make()[0] for spoilt in SPOILT)):
        try:
            factors.append(metric.recipe(as_samples(layer, metric.min_samples)))
        except (UndefinedValueError, InvalidInputError):
            continue
    rows, columns = factors[:3], factors[1:]
    block = metric.block(rows, columns)
    pairs = np.full((len(rows), len(columns)), np.nan)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            try:
                pairs[i, j] = metric.pair(a, b)
            except UndefinedValueError:
                assert len(metric.reason(a, b)) > 20
    np.testing.assert_array_equal(np.isnan(block), np.isnan(pairs))
    np.testing.assert_allclose(block, pairs, rtol=1e-6, atol=1e-6 if "isotropic scaling" in metric.invariances else 0)


@every_measure
@few
@given(layers=any_layers)
def test_nothing_is_more_like_a_layer_than_itself(metric: Metric[Any], layers: Layers) -> None:
    x, y = layers.make()
    own = value(metric, x, x.copy())
    if own is None or metric.name in NOT_LARGEST_WITH_ITSELF:
        return
    tolerance = rounding(x, y)
    if metric.sense == "distance":
        assert error(metric, own, 0.0, x) <= tolerance
        return
    near = x + 1e-3 * np.abs(x).max() * np.random.default_rng(layers.seed).normal(size=x.shape).astype(x.dtype)
    for other in (y, near, -x, x[:, ::-1], 2 * x):
        result = value(metric, x, other)
        assert result is None or result <= own + tolerance


def _awkward() -> dict[str, tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    n = 12
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(n, 5))
    first = np.arange(n)[:, None] == 0
    return {
        "two samples": (np.repeat(x[:2], 6, axis=0), np.repeat(y[:2], 6, axis=0)),
        "two samples and many": (np.repeat(x[:2], 6, axis=0), y),
        "every sample twice": (np.repeat(x[:6], 2, axis=0), np.repeat(y[:6], 2, axis=0)),
        "one sample differs": (np.where(first, x, 0.7), y),
        "one sample differs in both": (np.where(first, x, 0.7), np.where(first, y, 0.7)),
        "one value is not zero": (np.where(first, [0.0, 1, 0, 0], 0.0), y),
        "one feature": (x[:, :1], y[:, :1]),
        "one feature, positive": (np.abs(x[:, :1]), np.abs(y[:, :1])),
        "one feature, binary": ((x[:, :1] > 0) * 1.0, (y[:, :1] > 0) * 1.0),
        "tiny": (x * 1e-30, y * 1e-30),
        "huge": (x * 1e30, y * 1e30),
        "tiny and huge": (x * 1e-30, y * 1e30),
        "features from tiny to huge": (x * [1e-30, 1.0, 1e30, 1.0], y),
        "subnormal": (x * 1e-40, y),
        "a dead feature": (x * [1, -0.0, 1, 1], y),
        "zero samples": (np.where(first, 0.0, x), np.where(first, -0.0, y)),
        "identical": (x, x.copy()),
        "opposite": (x, -x),
        "unit vectors": (np.eye(n), 2 * np.eye(n)),
        "unit vectors, others": (np.eye(n)[:, :4], np.eye(n)[:, 4:8]),
        "binary": ((x > 0) * 1.0, (y > 0) * 1.0),
        "far from zero": (x + 1e6, y - 1e6),
        "hardly off a constant": (x * 1e-9 + 1e6, y),
        "centred": (x - x.mean(0), y - y.mean(0)),
        "a line": (np.outer(x[:, 0], y[0]), np.outer(x[:, 1], y[1])),
        "all features alike": (np.repeat(x[:, :1], 4, axis=1), y),
        "few samples": (x[:4], y[:4]),
    }


@every_measure
@pytest.mark.parametrize("case", list(_awkward()))
@pytest.mark.slow
def test_awkward_layers_have_a_value_or_a_reason(metric: Metric[Any], case: str) -> None:
    for dtype in (np.float64, np.float32):
        x, y = (layer.astype(dtype) for layer in _awkward()[case])
        for pair in ((x, y), (y, x), (x, x.copy())):
            value(metric, *pair)


@pytest.mark.parametrize(
    ("word", "case"),
    [
        *(
            ("neighbours", case)
            for case in ("two samples", "one sample differs", "one feature", "unit vectors", "a line")
        ),
        *(("neighbours", case) for case in ("one value is not zero", "zero samples", "few samples")),
        *(("cka", case) for case in ("one sample differs", "one value is not zero", "unit vectors")),
        *(("rsa", case) for case in ("one feature", "all features alike", "unit vectors")),
        *(("aligned_cosine", case) for case in ("one value is not zero", "zero samples")),
        *(("concentricity_difference", case) for case in ("centred", "zero samples")),
    ],
)
def test_layers_without_a_value(word: str, case: str) -> None:
    x, y = _awkward()[case]
    for metric in MEASURES:
        if word in (metric.name, metric.group):
            assert value(metric, x, y) is None, metric.spec
            assert value(metric, x, x) is None, metric.spec


@every_measure
def test_the_largest_numbers_are_refused(metric: Metric[Any]) -> None:
    """Differences of the largest float64 numbers overflow."""
    x, y = np.random.default_rng(0).normal(size=(2, 12, 4))
    huge = np.clip(x, -1, 1) * np.finfo(np.float64).max
    for pair in ((huge, y), (y, huge)):
        with pytest.raises(UndefinedValueError, match="scale them down"):
            metric(*pair)
    value(metric, x * 1e300, y * 1e300)


@every_measure
def test_a_constant_feature_changes_nothing_where_means_do_not_count(metric: Metric[Any]) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 12, 4))
    more = np.insert(x, 2, 7.3, axis=1)
    if "translation" not in metric.invariances or metric.name == "cka_units":  # which counts the constant unit, too
        value(metric, more, y)
        return
    for own, other, plain in ((more, y, (x, y)), (y, more, (y, x)), (more, more, (x, x))):
        assert error(metric, value(metric, own, other), value(metric, *plain), more) <= 1e-12
