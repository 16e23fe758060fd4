"""Aligned cosine and permutation Procrustes: degenerate layers, wide ones, and theorems of their own."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from repsim.errors import UndefinedValueError, UnreliableValueWarning
from repsim.metrics.base import Array, PairMetric, as_samples
from repsim.metrics.rotation import AlignedCosine, PermutationProcrustes, Polar, SampleSpace, UncentredFeatures
from tests.metrics import references_alignment
from tests.threads import torch_threads


def orthonormal(rng: np.random.Generator, n: int, k: int) -> Array:
    return np.asarray(np.linalg.qr(rng.normal(size=(n, k)))[0])


class TestAlignedCosine:
    def test_samples_without_direction_are_named(self, rng: np.random.Generator) -> None:
        x, y = rng.normal(size=(2, 10, 3))
        x[[2, 5]] = 0
        for pair in ((x, y), (y, x)):
            with pytest.raises(UndefinedValueError, match="2 of 10 samples are 0 in every feature"):
                AlignedCosine()(*pair)

    def test_layers_with_nothing_in_common(self, rng: np.random.Generator) -> None:
        q = orthonormal(rng, 12, 6)
        with pytest.raises(UndefinedValueError, match="nothing in common"):
            AlignedCosine()(q[:, :3], 1e8 * q[:, 3:])

    def test_directions_without_a_counterpart(self, rng: np.random.Generator) -> None:
        """Either sign of the second direction is as good a rotation: the value is the mean over both, either way."""
        a, b, c = orthonormal(rng, 12, 3).T
        x, y = np.column_stack([a, b]), np.column_stack([a, c])

        def cosines(sign: float) -> float:
            return float(np.mean((a * a + sign * b * c) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)))

        expected = (cosines(1) + cosines(-1)) / 2
        assert abs(cosines(1) - cosines(-1)) > 0.01
        assert AlignedCosine()(x, y) == pytest.approx(expected, abs=1e-12)
        assert AlignedCosine()(y, x) == pytest.approx(expected, abs=1e-12)
        assert AlignedCosine()(np.hstack([x, x]), y) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_wide_layers_take_little(self, rng: np.random.Generator, dtype: type[np.float32]) -> None:
        x, y = (rng.normal(size=(8, p)).astype(dtype) for p in (20_000, 30_000))
        a, b = (SampleSpace()(as_samples(layer)) for layer in (x, y))
        assert a.nbytes == 8 * 8 * 9
        products = a.samples @ a.samples.T * float(np.abs(x).max()) ** 2
        torch.testing.assert_close(products, torch.tensor(x @ x.T).double(), rtol=1e-5, atol=1e-2)
        rotated = np.linalg.qr(x.T)[1].T, np.linalg.qr(y.T)[1].T
        expected = references_alignment.aligned_cosine(*(side.astype(np.float64) for side in rotated))
        assert AlignedCosine().pair(a, b) == pytest.approx(expected, abs=1e-5)

    def test_scale(self, rng: np.random.Generator) -> None:
        x, y = rng.normal(size=(2, 20, 6))
        value = AlignedCosine()(x, y)
        assert AlignedCosine()(x * 1e250, y * 1e-250) == pytest.approx(value, abs=1e-12)
        small = x * np.geomspace(1e-6, 1, 20)[:, None]  # quiet samples count as much as loud ones
        expected = references_alignment.aligned_cosine(small, y)
        assert AlignedCosine()(small, y) == pytest.approx(expected, abs=1e-7)

    def test_more_features_than_samples(self, rng: np.random.Generator) -> None:
        with pytest.warns(UnreliableValueWarning, match="even unrelated layers"):
            assert AlignedCosine()(rng.normal(size=(10, 500)), rng.normal(size=(10, 400))) > 0.9
        assert AlignedCosine()(rng.normal(size=(10, 500)), rng.normal(size=(10, 2))) < 0.8

    def test_gradient_where_singular_values_repeat(self, rng: np.random.Generator) -> None:
        a = torch.from_numpy(3 * orthonormal(rng, 4, 4)).requires_grad_()
        assert torch.autograd.gradcheck(Polar.apply, (a,))
        for side in (orthonormal(rng, 6, 4), orthonormal(rng, 6, 4).T):
            assert torch.autograd.gradcheck(Polar.apply, (torch.from_numpy(3 * side).requires_grad_(),))

    def test_gradient_where_samples_repeat(self, rng: np.random.Generator) -> None:
        """There is a kink, but nothing infinite."""
        x, y = (torch.from_numpy(rng.normal(size=(6, p))[[0, 0, 1, 2, 3, 3]]).requires_grad_() for p in (9, 8))
        for gradient in torch.autograd.grad(AlignedCosine()(x, y), (x, y)):
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 10

    def test_gradient_of_one_side_of_a_wide_pair(self, rng: np.random.Generator) -> None:
        x, y = (torch.from_numpy(rng.normal(size=(6, p))) for p in (9, 8))
        x.requires_grad_()
        with pytest.warns(UnreliableValueWarning):
            plain = AlignedCosine()(x.detach(), y)
        assert AlignedCosine()(x, y).item() == pytest.approx(plain, abs=1e-12)
        assert torch.autograd.gradcheck(lambda x: AlignedCosine()(x, y), (x,))


class TestPermutationProcrustes:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_shuffled_layer_is_no_distance_away(self, rng: np.random.Generator, dtype: type[np.float32]) -> None:
        x = (100 + rng.normal(size=(30, 12))).astype(dtype)
        assert PermutationProcrustes()(x, x[:, rng.permutation(12)]) == 0

    def test_partners_and_those_without(self) -> None:
        """x_0 goes to y_1 and x_1 to y_2; y_0 = (1, 2, 2, 0) stays alone, with its norm of 3."""
        x = np.array([[5.0, 0], [0, 5], [0, 0], [0, 0]])
        y = np.array([[1.0, 5, 0], [2, 0, 5], [2, 0, 4], [0, 0, 0]])
        assert PermutationProcrustes()(x, y) == pytest.approx(5.0, abs=1e-12)
        assert PermutationProcrustes()(y, x) == pytest.approx(5.0, abs=1e-12)

    def test_scale(self, rng: np.random.Generator) -> None:
        x, y = rng.normal(size=(2, 20, 6))
        value = PermutationProcrustes()(x, y)
        for scale in (1e-250, 1e250):
            assert PermutationProcrustes()(x * scale, y * scale) == pytest.approx(value * scale, rel=1e-12)
        assert PermutationProcrustes()(x * 1e250, y) == pytest.approx(1e250 * np.linalg.norm(x), rel=1e-12)
        loud = (x * 1e30).astype(np.float32), (y * 1e30).astype(np.float32)
        assert PermutationProcrustes()(*loud) == pytest.approx(value * 1e30, rel=1e-5)
        assert UncentredFeatures()(as_samples(x * 1e250)).values.abs().max() <= 1

    def test_a_metric_between_layers_of_equal_width_or_without_negative_values(self, rng: np.random.Generator) -> None:
        d = PermutationProcrustes()
        for _ in range(30):
            x, y, z = rng.normal(size=(3, 5, 4))
            y = (x + z) / 2 + 0.1 * y
            assert d(x, z) <= d(x, y) + d(y, z) + 1e-12
            x, y, z = (np.abs(rng.normal(size=(5, p))) for p in (2, 6, 3))
            y[:, :2], y[:, 2:5] = x / 2, z / 2
            assert d(x, z) <= d(x, y) + d(y, z) + 1e-12

    def test_but_not_in_general(self) -> None:
        x = np.array([[1.0], [-1], [2], [0]])
        middle = np.hstack([x, -x]) / 2
        d = PermutationProcrustes()
        assert d(x, -x) > d(x, middle) + d(middle, -x) + 0.1
        assert not d.triangle

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-5, 1e-3, 1e-2, 1e-1, 10.0])
    @pytest.mark.parametrize(("p", "q"), [(12, 12), (5, 12), (12, 5), (1, 1)])
    def test_near_and_far_layers_have_the_digits_of_the_differences(
        self, rng: np.random.Generator, dtype: type[np.float32], apart: float, p: int, q: int
    ) -> None:
        """Far layers by their norms and inner products, near ones by the differences of their features."""
        wide = 3 + rng.normal(size=(30, 12))
        x = wide[:, :p].astype(dtype)
        y = (wide[:, :q] + apart * rng.normal(size=(30, q))).astype(dtype)[:, ::-1].copy()
        left, right = (np.pad(side.astype(np.float64), ((0, 0), (0, 12 - side.shape[1]))) for side in (x, y))
        i, j = linear_sum_assignment(left.T @ right, maximize=True)
        expected = np.linalg.norm(left[:, i] - right[:, j])
        assert PermutationProcrustes()(x, y) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("metric", [AlignedCosine(), PermutationProcrustes()], ids=lambda metric: metric.name)
def test_pairs_in_threads_are_pairs_alone(rng: np.random.Generator, metric: PairMetric[Any]) -> None:
    """Also those without a value."""
    columns = [metric.recipe(as_samples(rng.normal(size=(20, p)))) for p in (3, 4, 5)]
    q = orthonormal(rng, 20, 8)
    rows = [*columns[:1], *(metric.recipe(as_samples(side)) for side in (q[:, :3], q[:, 3:7], q[:, 7:]))]
    columns.append(rows[1])
    with torch_threads(3):
        together = metric.block(rows, columns)
        assert torch.get_num_threads() == 3
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            if np.isnan(together[i, j]):
                with pytest.raises(UndefinedValueError):
                    metric.pair(a, b)
            else:
                assert together[i, j] == pytest.approx(metric.pair(a, b), rel=1e-12, abs=1e-12)
    assert np.isnan(together).sum() == (2 if metric.name == "aligned_cosine" else 0)
