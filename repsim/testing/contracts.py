"""Test whether a measure or an extractor has the properties that it declares.

Needs pytest. A measure of your own is tested in a file like this one::

    class TestMyMeasure(repsim.testing.MetricContract):
        metrics = (MyMeasure(), MyMeasure(neighbours=5))

        @staticmethod
        def reference(x, y, neighbours=10):  # slow, plain numpy, written from the formula and not from your code
            ...
"""

import dataclasses
import inspect
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch

import repsim.metrics
from repsim.errors import InvalidInputError, SampleError, UndefinedValueError, UnreliableValueWarning
from repsim.extractors import Extractor, LayerSpec, Readout, SampleSource, Stream, open_images
from repsim.metrics.base import Array, Group, Invariance, Metric, as_samples
from repsim.runtime.deprecation import warn_deprecated

INVARIANCES: tuple[Invariance, ...] = get_args(Invariance)


class MetricContract:
    """Base class for the tests of a measure; a subclass defines `metrics` and `reference`, and pytest runs the tests.

    Every property that a measure declares is tested on generic data: a declared invariance has to hold, an undeclared
    one has to fail, and a measure declared asymmetric has to be asymmetric. A subclass overrides a test if a different
    property holds for its measure.
    """

    metrics: ClassVar[Sequence[Metric[Any]]]
    """Instances to test; every option should appear in one of them."""
    reference: ClassVar[Callable[..., float]]
    """Independent implementation (a staticmethod): takes float64 arrays (n, p) and (n, q), and the fields of the metric
    as keywords."""
    tolerance: ClassVar[float] = 1e-9
    """Largest allowed error for float64 activations."""
    tolerance_float32: ClassVar[float] = 1e-6
    """Largest allowed error for float32 activations."""
    breaks: ClassVar[float] = 1e-4
    """Smallest change of a value that shows that an invariance fails; far above rounding errors."""

    def layers(self, seed: int = 0, n: int = 40, widths: Sequence[int] = (6, 6)) -> list[Array]:
        """Generate layers (n, p) with a shared signal, noise, features of unequal scale, and means other than zero."""
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=(n, 3))
        return [
            (signal @ rng.normal(size=(3, p)) + rng.normal(size=(n, p))) * np.geomspace(1, 0.1, p) + rng.normal(size=p)
            for p in widths
        ]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise the tests with every metric, and with every invariance if they have that argument."""
        if "metric" in metafunc.fixturenames:
            metafunc.parametrize("metric", self.metrics, ids=[metric.spec for metric in self.metrics])
        if "invariance" in metafunc.fixturenames:
            metafunc.parametrize("invariance", INVARIANCES)

    # Declarations

    def test_declarations_are_complete(self, metric: Metric[Any]) -> None:
        for attribute in ("name", "title", "formula", "citation"):
            assert getattr(metric, attribute).strip(), f"{attribute} is empty"
        assert metric.sense in {"similarity", "distance"}
        low, high = metric.bounds
        assert low < high
        assert metric.invariances <= metric.invariances_of_y <= set(INVARIANCES)
        assert metric.group in get_args(Group)
        assert metric.question.endswith("?")
        assert metric.needs.strip(), "needs is empty: state how many samples a reliable value needs"
        assert metric.sense == "distance" or not metric.triangle, "a similarity has no triangle inequality"
        assert metric.label.startswith(metric.title)

    def test_docstring_cites_and_shows(self, metric: Metric[Any]) -> None:
        text = type(metric).__doc__ or ""
        assert "References\n" in text, "the docstring has no section References"
        assert "Examples\n" in text, "the docstring has no section Examples"
        assert ">>> " in text, "the section Examples of the docstring has no example that runs"
        names = [field.name for field in dataclasses.fields(metric)]
        assert not names or "Parameters\n" in text, "the docstring has no section Parameters"
        for name in names:
            described = re.search(rf"^{name}( : .+)?$", inspect.cleandoc(text), re.MULTILINE)
            assert described, f"the docstring does not describe the parameter {name}"

    def test_is_a_frozen_value(self, metric: Metric[Any]) -> None:
        twin = dataclasses.replace(metric)
        assert twin == metric
        assert hash(twin) == hash(metric)
        for name in [field.name for field in dataclasses.fields(metric)] or ["anything"]:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(metric, name, None)

    def test_spec_makes_the_same_metric(self, metric: Metric[Any]) -> None:
        parsed = repsim.metrics.get(metric.spec)
        assert parsed == metric
        assert repr(parsed) == repr(metric)

    def test_equal_recipes_share(self, metric: Metric[Any]) -> None:
        recipe, twin = metric.recipe, dataclasses.replace(metric).recipe
        assert recipe == twin
        assert hash(recipe) == hash(twin)

    # Values

    @pytest.mark.parametrize(("n", "p", "q"), [(40, 6, 6), (41, 5, 9), (40, 9, 4), (10, 20, 15)])
    def test_agrees_with_the_reference(self, metric: Metric[Any], n: int, p: int, q: int) -> None:
        parameters = {field.name: getattr(metric, field.name) for field in dataclasses.fields(metric)}
        x, y = self.layers(n=n, widths=(p, q))
        unrelated = [self.layers(seed, n=n, widths=(q,))[0] for seed in range(1, 5)]  # includes values below chance
        for layer in (y, *unrelated):
            _assert_close(_value(metric, x, layer), self.reference(x, layer, **parameters), self.tolerance)

    def test_invariance(self, metric: Metric[Any], invariance: Invariance) -> None:
        """Test that a declared invariance holds for x and y, or for y only, and that an undeclared one fails.

        For an asymmetric measure that does not declare the invariance for y, it has to fail for y, for the narrower
        layer or for the wider one.
        """
        x, y = self.layers()
        plain = _value(metric, x, y)
        transform = _TRANSFORMS[invariance]
        changes = abs(_value(metric, transform(x), y) - plain), abs(_value(metric, x, transform(y)) - plain)
        change = changes[1] if invariance in metric.invariances_of_y else max(changes)
        if invariance in metric.invariances:
            change = max(changes)
        if invariance in metric.invariances_of_y:
            assert change <= self.tolerance, f"declared invariant to {invariance}, but the value changes by {change}"
        if invariance not in metric.invariances:
            assert max(changes) > self.breaks, f"not declared invariant to {invariance}, but the value stays the same"
        if invariance not in metric.invariances_of_y and not metric.symmetric:
            orders = [self.layers(widths=widths) for widths in ((6, 4), (4, 6))]
            changes_of_y = [abs(_value(metric, x, transform(y)) - _value(metric, x, y)) for x, y in orders]
            assert max(changes_of_y) > self.breaks, (
                f"{invariance} is not in invariances_of_y, but the value stays the same when y is transformed"
            )

    def test_symmetry(self, metric: Metric[Any]) -> None:
        """Test that a metric declared symmetric is symmetric, and that one declared asymmetric is not."""
        x, y = self.layers()
        change = abs(_value(metric, x, y) - _value(metric, y, x))
        if metric.symmetric:
            assert change <= self.tolerance, f"declared symmetric, but exchanging x and y changes the value by {change}"
        else:
            assert change > self.breaks, "declared asymmetric, but exchanging x and y changes nothing"

    def test_order_of_samples_does_not_matter(self, metric: Metric[Any]) -> None:
        x, y = self.layers()
        order = np.random.default_rng(1).permutation(len(x))
        _assert_close(_value(metric, x[order], y[order]), _value(metric, x, y), self.tolerance)

    def test_triangle_inequality(self, metric: Metric[Any]) -> None:
        """Test the triangle inequality if it is declared."""
        if not metric.triangle:
            return
        for seed in range(5):
            layers = self.layers(seed, widths=(6, 4, 7))
            near = layers[0] + 0.1 * self.layers(seed + 50)[0]
            x, y, z, close = (metric.recipe(as_samples(layer)) for layer in (*layers, near))
            for a, b, c in ((x, y, z), (y, x, z), (x, z, y), (x, close, y), (close, x, z)):
                detour = metric.pair(a, b) + metric.pair(b, c)
                assert metric.pair(a, c) <= detour + self.tolerance, (
                    "declared a metric, but d(x, z) > d(x, y) + d(y, z)"
                )

    def test_which_sample_is_which_matters(self, metric: Metric[Any]) -> None:
        """Test that permuting the samples of one layer changes the value, unless the measure is declared unpaired."""
        x, y = self.layers()
        order = np.random.default_rng(3).permutation(len(x))
        change = abs(_value(metric, x, y[order]) - _value(metric, x, y))
        if metric.paired:
            assert change > self.breaks, "declared paired, but permuting the samples of one layer changes nothing"
        else:
            assert change <= self.tolerance, (
                f"declared not paired, but permuting the samples of one layer changes the value by {change}"
            )

    def test_chance_level(self, metric: Metric[Any], draws: int = 200) -> None:
        """Test the declared mean and standard deviation over permutations of the samples of one layer."""
        x, y = self.layers(n=24, widths=(5, 7))
        a, b = _prepared(metric, [x, y])
        chance = metric.chance(a, b)
        if chance is None:
            return
        rng = np.random.default_rng(5)
        values = metric.block([a], _prepared(metric, [y[rng.permutation(len(y))] for _ in range(draws)]))[0]
        error, sd = abs(values.mean() - chance.mean), values.std(ddof=1)
        allowed = 4 * sd / math.sqrt(draws) + (0 if chance.exact else 0.1 * abs(chance.mean))
        assert error <= allowed + self.tolerance, f"the mean is {values.mean():.4f}, declared {chance.mean:.4f}"
        if chance.sd is not None:
            assert 0.85 < sd / chance.sd < 1.18, f"the standard deviation is {sd:.4f}, declared {chance.sd:.4f}"

    def test_as_many_samples_as_it_needs(self, metric: Metric[Any]) -> None:
        """Test that with `samples_needed` samples unrelated layers have a similarity of at most 0.2.

        Distances have to be at least 0.8 of the largest one. A measure without `samples_needed` has to warn for any
        number of samples, or has to be a distance that declares that any number is enough.
        """
        p, q = 5, 8
        n = metric.samples_needed(p, q)
        if n is None:
            any_number = metric.sense == "distance" and metric.needs.startswith("any number")
            assert any_number or metric.scarcity(10**9, p, q), "samples_needed does not say how many samples are needed"
            return
        if not metric.paired or math.isinf(metric.bounds[1]):
            return
        rng = np.random.default_rng(7)
        for size in (n, 2 * n):
            pairs = [[rng.normal(size=(size, width)) for width in (p, q)] for _ in range(20)]
            values = [metric.pair(*(metric.recipe(as_samples(layer)) for layer in pair)) for pair in pairs]
            if metric.sense == "similarity":
                assert abs(np.mean(values)) <= 0.21, f"{np.mean(values)} for unrelated layers of {size} samples"
            else:
                assert np.mean(values) >= 0.79 * metric.bounds[1], (
                    f"{np.mean(values)} for unrelated layers of {size} samples"
                )

    def test_fewer_samples_than_it_needs_are_said(self, metric: Metric[Any]) -> None:
        """Test that fewer samples than `samples_needed` give a warning with that number."""
        p, q = 5, 8
        n = metric.samples_needed(p, q)
        few = max(metric.min_samples, 12)
        x, y = self.layers(n=few, widths=(p, q))
        if n is None or n <= few:
            warning = metric.scarcity(few, p, q)
        else:
            assert metric.scarcity(n, p, q) is None
            warning = metric.scarcity(n - 1, p, q)
            assert warning
            assert f"{n:,}" in warning
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                metric(x, y)
            except UndefinedValueError:
                return
        texts = [str(caught.message) for caught in raised if caught.category is UnreliableValueWarning]
        assert any("samples are too few" in text or text.endswith(str(warning)) for text in texts) == bool(warning), (
            texts
        )
        assert all(text.startswith(f"{metric.spec}: ") for text in texts)

    @pytest.mark.parametrize(("n", "p", "q"), [(10, 3, 4), (6, 8, 7)])
    def test_gradient(self, metric: Metric[Any], n: int, p: int, q: int) -> None:
        """Compare the gradient with finite differences; a measure that is not differentiable has to raise an error."""
        n = max(n, metric.min_samples + 2)
        x, y = (torch.from_numpy(layer) for layer in self.layers(n=n, widths=(p, q)))
        plain = _value(metric, x, y)
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        if not metric.differentiable:
            with pytest.raises(InvalidInputError, match="gradient"):
                metric(x, y)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableValueWarning)
            value = metric(x, y)
            assert value.ndim == 0
            _assert_close(float(value.detach()), plain, max(self.tolerance, 1e-8))
            # a random direction shows an error of any entry, and needs two values instead of two for each entry
            assert torch.autograd.gradcheck(metric, (x, y), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)
            with torch.no_grad():
                assert metric(x, y) == plain

    @pytest.mark.parametrize("n", [6, 40])
    def test_a_layer_is_like_itself(self, metric: Metric[Any], n: int) -> None:
        (x,) = self.layers(n=n, widths=(6,))
        _assert_close(_value(metric, x, x), 1.0 if metric.sense == "similarity" else 0.0, self.tolerance)

    @pytest.mark.parametrize("n", [4, 6, 40])
    def test_values_are_within_bounds(self, metric: Metric[Any], n: int) -> None:
        low, high = metric.bounds
        for seed in range(5):
            x, y = self.layers(seed, n=n)
            (unrelated,) = self.layers(seed + 100, n=n, widths=(5,))
            first, *others = (metric.recipe(as_samples(layer)) for layer in (x, y, -x, unrelated, x**3))
            for factor in (first, *others):
                value = metric.pair(first, factor)
                assert low - self.tolerance <= value <= high + self.tolerance, f"{value} is outside [{low}, {high}]"

    def test_float32_is_close_to_float64(self, metric: Metric[Any]) -> None:
        x, y = (layer.astype(np.float32) for layer in self.layers(n=200))
        wide = _value(metric, x.astype(np.float64), y.astype(np.float64))
        _assert_close(_value(metric, x, y), wide, self.tolerance_float32)

    def test_every_container_gives_the_same_value(self, metric: Metric[Any]) -> None:
        x, y = self.layers()
        value = _value(metric, x, y)
        assert type(value) is float
        assert _value(metric, torch.from_numpy(x), torch.from_numpy(y)) == value
        frozen = x.astype(">f8", order="F")
        frozen.flags.writeable = False
        assert _value(metric, frozen, y[::-1][::-1]) == value, "another memory layout changes the value"

    # Blocks

    def test_block_is_pair_for_all_pairs(self, metric: Metric[Any]) -> None:
        """Test that `block` equals `pair` for all pairs, and is NaN exactly where `pair` raises an error."""
        rows, columns = self.layers(0, widths=(6, 3, 8)), self.layers(0, widths=(4, 6, 5, 7))
        spike = np.zeros((len(rows[0]), 2))
        spike[0] = 1  # constant except for one sample: not every recipe accepts it, not every measure is defined for it
        a, b = _prepared(metric, [*rows, spike]), _prepared(metric, [spike, *columns])
        for left, right in ((a, b), (b, a), (a, a), (a, list(a)), (a[:1], b)):
            block = metric.block(left, right)
            assert block.dtype == np.float64
            assert block.shape == (len(left), len(right))
            for i, row in enumerate(left):
                for j, column in enumerate(right):
                    _assert_close(float(block[i, j]), _pair_or_nan(metric, row, column), self.tolerance)
        assert metric.block([], b).shape == (0, len(b))
        assert metric.block(a, []).shape == (len(a), 0)

    def test_nothing_is_changed_in_passing(self, metric: Metric[Any]) -> None:
        x, y = self.layers()
        copies = x.copy(), y.copy()
        a, b = _prepared(metric, [x, y])
        first = metric.pair(a, b)
        metric.block([a, b], [b, a])
        assert metric.pair(a, b) == first, "comparing changed a factor"
        np.testing.assert_array_equal((x, y), copies, err_msg="preparing changed the activations")
        assert a.nbytes > 0

    # Undefined values and invalid input

    def test_a_constant_layer_is_undefined(self, metric: Metric[Any]) -> None:
        (x,) = self.layers(widths=(5,))
        for constant in (0.0, 0.1, -1e6):
            layer = np.full_like(x, constant)
            for pair in ((x, layer), (layer, x), (layer, layer)):
                with pytest.raises(UndefinedValueError, match="constant"):
                    _value(metric, *pair)

    def test_what_is_no_layer_is_refused(self, metric: Metric[Any]) -> None:
        (x,) = self.layers(widths=(5,))
        with_nan, with_infinity = x.copy(), x.copy()
        with_nan[2, 3], with_infinity[0, 0] = np.nan, -np.inf
        refused = {
            "NaN": with_nan,
            "infinite": with_infinity,
            "no features": x[:, :0],
            "shape": x[:, 0],
            "features": x.reshape(len(x), 5, 1),
            "samples": x[:-1],
            "numbers": x.astype(str),
        }
        for word, invalid in refused.items():
            for pair in ((invalid, x), (x, invalid)):
                with pytest.raises(InvalidInputError, match=word):
                    _value(metric, *pair)
        for n in range(metric.min_samples):
            with pytest.raises(InvalidInputError, match="samples"):
                _value(metric, x[:n], x[:n])


class ExtractorContract:
    """Base class for the tests of an extractor; a subclass defines the method `extractor`, and pytest runs the tests.

    ::

        class TestMyExtractor(repsim.testing.ExtractorContract):
            def extractor(self):
                return MyExtractor("net")
    """

    tolerance: ClassVar[float] = 1e-5
    """Largest difference allowed between batches of different sizes, relative to a layer's largest value."""

    def extractor(self) -> Extractor:
        """Return a new extractor."""
        raise NotImplementedError

    def samples(self) -> SampleSource:
        """Return at least six samples that the extractor can read; by default pictures."""
        images: Callable[[], SampleSource] | None = getattr(self, "images", None)
        if images is None:
            return open_images("digits")
        warn_deprecated("ExtractorContract.images", instead="define samples()", gone_in="2.0.0")
        return images()

    def _read(self, extractor: Extractor, rows: Sequence[int], batch_size: int) -> dict[tuple[str, str], Array]:
        batches = list(extractor.stream(self.samples(), list(rows), Stream(batch_size=batch_size)))
        assert [row for batch in batches for row in batch.rows] == list(rows), (
            "the rows are not the requested samples in their order"
        )
        assert all(len(batch.rows) <= batch_size for batch in batches)
        return {key: torch.cat([batch.values[key] for batch in batches]).numpy() for key in batches[0].values}

    def _assert_same(self, arrays: dict[tuple[str, str], Array], expected: dict[tuple[str, str], Array]) -> None:
        for key, values in expected.items():
            error = np.abs(arrays[key] - values).max(initial=0)
            assert error <= self.tolerance * np.abs(values).max(initial=0), f"{key} differs by {error}"

    def test_layers_and_readouts_are_declared_in_depth_order(self) -> None:
        extractor = self.extractor()
        names = [layer.name for layer in extractor.layers()]
        assert names
        assert len(set(names)) == len(names), "two layers have the same name"
        keys = list(extractor.readouts)
        assert keys == sorted(keys, key=lambda key: names.index(key[0])), "readouts are not in the order of the layers"
        for (name, readout), (layer, how) in extractor.readouts.items():
            assert (layer.name, how.name) == (name, readout)
            assert "/" not in name + readout, "a name with a slash cannot be stored in HDF5"

    def test_what_is_declared_is_what_comes(self) -> None:
        extractor = self.extractor()
        values = self._read(extractor, range(5), batch_size=4)
        assert set(values) == set(_declared(extractor))
        for key, (layer, readout) in _declared(extractor).items():
            rows = 4 // readout.block + 1 // readout.block
            assert values[key].shape == (rows, math.prod(readout.shape(layer))), key
            assert values[key].dtype == np.float32, key
            assert np.isfinite(values[key]).all(), key

    def test_a_sample_has_its_own_values_in_any_batch(self) -> None:
        extractor = self.extractor()
        one_batch = self._read(extractor, range(6), batch_size=6)
        one_batch = {key: values for key, values in one_batch.items() if _declared(extractor)[key][1].block == 1}
        self._assert_same(self._read(extractor, range(6), batch_size=1), one_batch)
        rows = [4, 0, 5, 2]
        self._assert_same(self._read(extractor, rows, 3), {key: values[rows] for key, values in one_batch.items()})

    def test_two_of_a_kind_agree(self) -> None:
        first, second = self.extractor(), self.extractor()
        assert first.name == second.name
        assert first.provenance() == second.provenance()
        self._assert_same(self._read(first, range(4), 4), self._read(second, range(4), 4))

    def test_provenance_is_json(self) -> None:
        record = self.extractor().provenance()
        assert record
        assert json.loads(json.dumps(record)) == record

    def test_an_unreadable_sample_ends_the_stream(self) -> None:
        class Damaged(type(self.samples())):  # type: ignore[misc]
            def load(self, index: int) -> Any:
                raise SampleError(f"cannot read the sample {index}")

        samples = self.samples()
        samples.__class__ = Damaged
        with pytest.raises(SampleError, match="sample 3"):
            list(self.extractor().stream(samples, [3, 4], Stream(batch_size=2)))


def _declared(extractor: Extractor) -> dict[tuple[str, str], tuple[LayerSpec, Readout]]:
    """Return the layer and the readout of every array in a batch, including controls."""
    return {**extractor.readouts, **getattr(extractor, "controls", {})}


def _orthogonal(p: int) -> Array:
    return np.linalg.qr(np.random.default_rng(11).normal(size=(p, p)))[0]


_TRANSFORMS: dict[Invariance, Callable[[Array], Array]] = {
    "permutation": lambda x: np.roll(x, 1, axis=1),
    "orthogonal": lambda x: x @ _orthogonal(x.shape[1]),
    "isotropic scaling": lambda x: x * 3.7,
    "translation": lambda x: x + np.linspace(-5, 4, x.shape[1]),
    "invertible linear": lambda x: x @ (_orthogonal(x.shape[1]) * np.geomspace(0.3, 3, x.shape[1])),
}


def _value(metric: Metric[Any], x: Array | torch.Tensor, y: Array | torch.Tensor) -> float:
    """Return the value of a measure without warnings about few samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableValueWarning)
        return metric(x, y)


def _prepared(metric: Metric[Any], layers: Sequence[Array]) -> list[Any]:
    """Return the factors of the layers, without those for which the recipe is undefined."""
    factors = []
    for layer in layers:
        try:
            factors.append(metric.recipe(as_samples(layer)))
        except UndefinedValueError:
            continue
    return factors


def _pair_or_nan(metric: Metric[Any], a: Any, b: Any) -> float:
    try:
        return metric.pair(a, b)
    except UndefinedValueError:
        return math.nan


def _assert_close(value: float, expected: float, tolerance: float) -> None:
    """Check that two values agree within absolute plus relative ``tolerance``; NaN equals only NaN."""
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
