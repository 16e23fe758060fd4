"""Contracts for third parties (and for ourselves): what a measure, or an extractor, must prove to be believed.

Needs pytest. A measure of your own is proven in a test file like this one::

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
from repsim.errors import ImageError, InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.extractors import Extractor, ImageSource, LayerSpec, Readout, Stream, open_images
from repsim.metrics.base import Array, Group, Invariance, Metric, as_samples

INVARIANCES: tuple[Invariance, ...] = get_args(Invariance)


class MetricContract:
    """Theorems that hold for every measure. A subclass states its `metrics` and its `reference`; pytest does the rest.

    Every word that a measure declares is held against generic data: a declared invariance has to hold, and an
    undeclared one has to be broken; a measure declared asymmetric has to be asymmetric. A measure for which a theorem
    is truly another one overrides that test.
    """

    metrics: ClassVar[Sequence[Metric[Any]]]
    """The instances to test: every option should appear in one of them."""
    reference: ClassVar[Callable[..., float]]
    """The value by another way (a staticmethod): float64 (n, p) and (n, q), and the metric's fields as keywords."""
    tolerance: ClassVar[float] = 1e-9
    """Largest error allowed in float64."""
    tolerance_float32: ClassVar[float] = 1e-6
    """Largest error allowed where the activations are float32."""
    breaks: ClassVar[float] = 1e-4
    """The least change that counts as one: far above rounding, far below what a broken invariance does."""

    def layers(self, seed: int = 0, n: int = 40, widths: Sequence[int] = (6, 6)) -> list[Array]:
        """Generic layers of the same n samples: a shared signal, noise, features of unequal size, means off zero."""
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=(n, 3))
        return [
            (signal @ rng.normal(size=(3, p)) + rng.normal(size=(n, p))) * np.geomspace(1, 0.1, p) + rng.normal(size=p)
            for p in widths
        ]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every test for every metric, and where it asks for one, every invariance."""
        if "metric" in metafunc.fixturenames:
            metafunc.parametrize("metric", self.metrics, ids=[metric.spec for metric in self.metrics])
        if "invariance" in metafunc.fixturenames:
            metafunc.parametrize("invariance", INVARIANCES)

    # What it says about itself

    def test_declarations_are_complete(self, metric: Metric[Any]) -> None:
        for word in ("name", "title", "formula", "citation"):
            assert getattr(metric, word).strip(), f"{word} is empty"
        assert metric.sense in {"similarity", "distance"}
        low, high = metric.bounds
        assert low < high
        assert metric.invariances <= metric.invariances_of_y <= set(INVARIANCES)
        assert metric.group in get_args(Group)
        assert metric.question.endswith("?")
        assert metric.needs.strip(), "needs is empty: how many samples does a value take to mean anything?"
        assert metric.sense == "distance" or not metric.triangle, "a similarity knows no triangle inequality"
        assert metric.label.startswith(metric.title)

    def test_docstring_cites_and_shows(self, metric: Metric[Any]) -> None:
        text = type(metric).__doc__ or ""
        assert "References\n" in text, "the docstring cites nothing: a section References is missing"
        assert "Examples\n" in text, "the docstring shows nothing: a section Examples is missing"
        assert ">>> " in text, "the docstring's Examples do not run"
        names = [field.name for field in dataclasses.fields(metric)]
        assert not names or "Parameters\n" in text, "the docstring has no section Parameters"
        for name in names:
            described = re.search(rf"^{name}( : .+)?$", inspect.cleandoc(text), re.MULTILINE)
            assert described, f"the docstring does not say what {name} is"

    def test_is_a_frozen_value(self, metric: Metric[Any]) -> None:
        twin = dataclasses.replace(metric)
        assert twin == metric
        assert hash(twin) == hash(metric)
        for name in [field.name for field in dataclasses.fields(metric)] or ["anything"]:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(metric, name, None)

    def test_spec_makes_the_same_metric(self, metric: Metric[Any]) -> None:
        again = repsim.metrics.get(metric.spec)
        assert again == metric
        assert repr(again) == repr(metric)

    def test_equal_recipes_share(self, metric: Metric[Any]) -> None:
        recipe, twin = metric.recipe, dataclasses.replace(metric).recipe
        assert recipe == twin
        assert hash(recipe) == hash(twin)

    # Its values

    @pytest.mark.parametrize(("n", "p", "q"), [(40, 6, 6), (41, 5, 9), (40, 9, 4), (10, 20, 15)])
    def test_agrees_with_the_reference(self, metric: Metric[Any], n: int, p: int, q: int) -> None:
        parameters = {field.name: getattr(metric, field.name) for field in dataclasses.fields(metric)}
        x, y = self.layers(n=n, widths=(p, q))
        strangers = [self.layers(seed, n=n, widths=(q,))[0] for seed in range(1, 5)]  # some values below chance, too
        for other in (y, *strangers):
            _assert_close(_value(metric, x, other), self.reference(x, other, **parameters), self.tolerance)

    def test_invariance(self, metric: Metric[Any], invariance: Invariance) -> None:
        """A declared one holds on either side, or on that of y; an undeclared one is broken on at least one.

        Of an asymmetric measure, on that of y: for the narrower layer, or for the wider one.
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
                f"invariances_of_y do not name {invariance}, but on that side the value stays the same"
            )

    def test_symmetry(self, metric: Metric[Any]) -> None:
        """A metric declared asymmetric must be asymmetric, too."""
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
        """Where it is declared."""
        if not metric.triangle:
            return
        for seed in range(5):
            x, y, z = self.layers(seed, widths=(6, 4, 7))
            near = x + 0.1 * self.layers(seed + 50)[0]
            for a, b, c in ((x, y, z), (y, x, z), (x, z, y), (x, near, y), (near, x, z)):
                around = _value(metric, a, b) + _value(metric, b, c)
                assert _value(metric, a, c) <= around + self.tolerance, (
                    "declared a metric, but d(x, z) > d(x, y) + d(y, z)"
                )

    def test_which_sample_is_which_matters(self, metric: Metric[Any]) -> None:
        """Unless it is declared not to."""
        x, y = self.layers()
        order = np.random.default_rng(3).permutation(len(x))
        change = abs(_value(metric, x, y[order]) - _value(metric, x, y))
        if metric.paired:
            assert change > self.breaks, "declared paired, but permuting the samples of one layer changes nothing"
        else:
            assert change <= self.tolerance, (
                f"declared not paired, but permuting one side changes the value by {change}"
            )

    def test_chance_level(self, metric: Metric[Any], draws: int = 200) -> None:
        """The mean, and the standard deviation, over permutations of one layer's samples, where they are declared."""
        x, y = self.layers(n=24, widths=(5, 7))
        a, b = _prepared(metric, [x, y])
        chance = metric.chance(a, b)
        if chance is None:
            return
        rng = np.random.default_rng(5)
        values = metric.block([a], _prepared(metric, [y[rng.permutation(len(y))] for _ in range(draws)]))[0]
        error, sd = abs(values.mean() - chance.mean), values.std(ddof=1)
        allowed = 4 * sd / math.sqrt(draws) + (0 if chance.exact else 0.1 * abs(chance.mean))
        assert error <= allowed + self.tolerance, f"chance is {values.mean():.4f} here, and not {chance.mean:.4f}"
        if chance.sd is not None:
            assert 0.85 < sd / chance.sd < 1.18, f"the standard deviation is {sd:.4f} here, and not {chance.sd:.4f}"

    def test_as_many_samples_as_it_needs(self, metric: Metric[Any]) -> None:
        """From `samples_needed` on, unrelated layers score 0.2 at most, or are four fifths of the range apart.

        A measure that names no number warns of every number, or is a distance that has no such scale.
        """
        p, q = 5, 8
        n = metric.samples_needed(p, q)
        if n is None:
            free = metric.sense == "distance" and metric.needs.startswith("any number")
            assert free or metric.scarcity(10**9, p, q), "how many samples does this measure need?"
            return
        if not metric.paired or math.isinf(metric.bounds[1]):
            return
        rng = np.random.default_rng(7)
        for size in (n, 2 * n):
            values = [_value(metric, rng.normal(size=(size, p)), rng.normal(size=(size, q))) for _ in range(20)]
            if metric.sense == "similarity":
                assert abs(np.mean(values)) <= 0.21, f"of {size} samples unrelated layers score {np.mean(values)}"
            else:
                assert np.mean(values) >= 0.79 * metric.bounds[1], f"of {size} samples they are {np.mean(values)} apart"

    def test_fewer_samples_than_it_needs_are_said(self, metric: Metric[Any]) -> None:
        """By a warning that names the number, up to the number."""
        p, q = 5, 8
        n = metric.samples_needed(p, q)
        few = max(metric.min_samples, 12)
        x, y = self.layers(n=few, widths=(p, q))
        if n is None or n <= few:
            said = metric.scarcity(few, p, q)
        else:
            assert metric.scarcity(n, p, q) is None
            said = metric.scarcity(n - 1, p, q)
            assert said
            assert f"{n:,}" in said
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                metric(x, y)
            except UndefinedValueError:
                return
        texts = [str(each.message) for each in raised if each.category is UnreliableValueWarning]
        assert any("samples are too few" in text or text.endswith(str(said)) for text in texts) == bool(said), texts
        assert all(text.startswith(f"{metric.spec}: ") for text in texts)

    @pytest.mark.parametrize(("n", "p", "q"), [(10, 3, 4), (6, 8, 7)])
    def test_gradient(self, metric: Metric[Any], n: int, p: int, q: int) -> None:
        """That of a differentiable measure is right (by finite differences); any other one says that it has none."""
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
            assert torch.autograd.gradcheck(metric, (x, y), eps=1e-6, atol=1e-5, rtol=1e-4)
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
            (stranger,) = self.layers(seed + 100, n=n, widths=(5,))
            for other in (x, y, -x, stranger, x**3):
                value = _value(metric, x, other)
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
        """And NaN exactly where `pair` raises."""
        rows, columns = self.layers(0, widths=(6, 3, 8)), self.layers(0, widths=(4, 6, 5, 7))
        spike = np.zeros((len(rows[0]), 2))
        spike[0] = 1  # differs from a constant in one sample: prepared by some recipes, undefined for some measures
        a, b = _prepared(metric, [*rows, spike]), _prepared(metric, [spike, *columns])
        for left, right in ((a, b), (b, a), (a, a), (a, list(a)), (a[:1], b)):
            block = metric.block(left, right)
            assert block.dtype == np.float64
            assert block.shape == (len(left), len(right))
            for i, one in enumerate(left):
                for j, other in enumerate(right):
                    _assert_close(float(block[i, j]), _pair_or_nan(metric, one, other), self.tolerance)
        assert metric.block([], b).shape == (0, len(b))
        assert metric.block(a, []).shape == (len(a), 0)

    def test_nothing_is_changed_in_passing(self, metric: Metric[Any]) -> None:
        x, y = self.layers()
        kept = x.copy(), y.copy()
        a, b = _prepared(metric, [x, y])
        first = metric.pair(a, b)
        metric.block([a, b], [b, a])
        assert metric.pair(a, b) == first, "comparing changed a factor"
        np.testing.assert_array_equal((x, y), kept, err_msg="preparing changed the activations")
        assert a.nbytes > 0

    # What has no value

    def test_a_constant_layer_is_undefined(self, metric: Metric[Any]) -> None:
        (x,) = self.layers(widths=(5,))
        for constant in (0.0, 0.1, -1e6):
            layer = np.full_like(x, constant)
            for pair in ((x, layer), (layer, x), (layer, layer)):
                with pytest.raises(UndefinedValueError, match="constant"):
                    _value(metric, *pair)

    def test_what_is_no_layer_is_refused(self, metric: Metric[Any]) -> None:
        (x,) = self.layers(widths=(5,))
        hole, abyss = x.copy(), x.copy()
        hole[2, 3], abyss[0, 0] = np.nan, -np.inf
        refused = {
            "NaN": hole,
            "infinite": abyss,
            "no features": x[:, :0],
            "shape": x[:, 0],
            "features": x.reshape(len(x), 5, 1),
            "samples": x[:-1],
            "numbers": x.astype(str),
        }
        for word, bad in refused.items():
            for pair in ((bad, x), (x, bad)):
                with pytest.raises(InvalidInputError, match=word):
                    _value(metric, *pair)
        for n in range(metric.min_samples):
            with pytest.raises(InvalidInputError, match="samples"):
                _value(metric, x[:n], x[:n])


class ExtractorContract:
    """Theorems that hold for every extractor. A subclass makes one in `extractor`; pytest does the rest.

    ::

        class TestMyExtractor(repsim.testing.ExtractorContract):
            def extractor(self):
                return MyExtractor("net")
    """

    tolerance: ClassVar[float] = 1e-5
    """Largest difference allowed between batches of different sizes, relative to a layer's largest value."""

    def extractor(self) -> Extractor:
        """Make a new extractor."""
        raise NotImplementedError

    def images(self) -> ImageSource:
        """At least six pictures that it can read."""
        return open_images("digits")

    def _read(self, extractor: Extractor, rows: Sequence[int], batch_size: int) -> dict[tuple[str, str], Array]:
        batches = list(extractor.stream(self.images(), list(rows), Stream(batch_size=batch_size)))
        assert [row for batch in batches for row in batch.rows] == list(rows), (
            "not the samples asked for, in their order"
        )
        assert all(len(batch.rows) <= batch_size for batch in batches)
        return {key: torch.cat([batch.values[key] for batch in batches]).numpy() for key in batches[0].values}

    def _assert_same(self, got: dict[tuple[str, str], Array], wanted: dict[tuple[str, str], Array]) -> None:
        for key, values in wanted.items():
            error = np.abs(got[key] - values).max()
            assert error <= self.tolerance * np.abs(values).max(), f"{key} differs by {error}"

    def test_layers_and_readouts_are_declared_in_depth_order(self) -> None:
        extractor = self.extractor()
        names = [layer.name for layer in extractor.layers()]
        assert names
        assert len(set(names)) == len(names), "two layers have one name"
        keys = list(extractor.readouts)
        assert keys == sorted(keys, key=lambda key: names.index(key[0])), "readouts are not in the order of the layers"
        for (name, readout), (layer, how) in extractor.readouts.items():
            assert (layer.name, how.name) == (name, readout)
            assert "/" not in name + readout, "HDF5 cannot name this"

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
        whole = self._read(extractor, range(6), batch_size=6)
        whole = {key: values for key, values in whole.items() if _declared(extractor)[key][1].block == 1}
        self._assert_same(self._read(extractor, range(6), batch_size=1), whole)
        mixed = [4, 0, 5, 2]
        self._assert_same(self._read(extractor, mixed, 3), {key: values[mixed] for key, values in whole.items()})

    def test_two_of_a_kind_agree(self) -> None:
        first, second = self.extractor(), self.extractor()
        assert first.name == second.name
        assert first.provenance() == second.provenance()
        self._assert_same(self._read(first, range(4), 4), self._read(second, range(4), 4))

    def test_provenance_is_json(self) -> None:
        record = self.extractor().provenance()
        assert record
        assert json.loads(json.dumps(record)) == record

    def test_an_unreadable_picture_ends_the_stream(self) -> None:
        class Damaged(type(self.images())):  # type: ignore[misc]
            def load(self, index: int) -> Any:
                raise ImageError(f"cannot read the picture {index}")

        images = self.images()
        images.__class__ = Damaged
        with pytest.raises(ImageError, match="picture 3"):
            list(self.extractor().stream(images, [3, 4], Stream(batch_size=2)))


def _declared(extractor: Extractor) -> dict[tuple[str, str], tuple[LayerSpec, Readout]]:
    """Everything that a batch holds: of the layers, and of the controls, where there are any."""
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
    """The value, whatever the measure thinks of so few samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableValueWarning)
        return metric(x, y)


def _prepared(metric: Metric[Any], layers: Sequence[Array]) -> list[Any]:
    """The factors of the layers that the recipe can prepare."""
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
    """Equal to ``tolerance``, absolute below 1 and relative above; NaN equals NaN only."""
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
