"""Functions of the base class: labels, specs and the conversion of layers."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim.engine.planning import LayerShape, Limits, plan
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import Metric, PairMetric, as_samples
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.rows import Centred, column_means


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("cka", "CKA (linear, debiased)"),
        ("cka:estimator=biased", "CKA (linear, biased)"),
        ("cka:kernel=rbf,bandwidth=0.5", "CKA (rbf, debiased, bandwidth=0.5)"),
        ("cka:kernel=rbf,sigma=2", "CKA (rbf, debiased, sigma=2.0)"),
        ("svcca", "SVCCA (variance=0.99, rho)"),
        ("cca", "CCA (rho)"),
        ("cca:summary=r2", "CCA (r2)"),
        ("pwcca", "PWCCA"),
    ],
)
def test_label(spec: str, label: str) -> None:
    assert get(spec).label == label


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.sampled_from(["debiased", "biased"]))
def test_every_spec_can_be_read_back(width: float, estimator: str) -> None:
    metric = get(f"cka:kernel=rbf,sigma={width},estimator={estimator}")
    assert metric == CKA("rbf", "biased" if estimator == "biased" else "debiased", sigma=width)
    assert get(metric.spec) == metric


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5), "expected an array of shape (n samples, p features), got (5,)"),
        (np.zeros((5, 3, 2, 2)), "got (5, 3, 2, 2); reduce or flatten everything after the first axis"),
        (np.array(3.0), "got ()"),
        (np.zeros((3, 2)), "3 samples are too few: this measure needs at least 4"),
        (np.zeros((5, 0)), "the layer has no features (p = 0)"),
        (np.zeros((5, 2), complex), "take their real and imaginary parts as features"),
        (np.array([["a", "b"]] * 5), "expected an array of numbers, got dtype <U1"),
        (np.array([[None, 1]] * 5), "expected an array of numbers, got dtype object"),
        (np.array([[1, 2]] * 4 + [[np.nan, np.inf]]), "2 values are NaN or infinite, the first in sample 4"),
    ],
)
def test_invalid_layers(x: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        CKA()(x, np.arange(10.0).reshape(5, 2))


def test_unequal_numbers_of_samples() -> None:
    with pytest.raises(InvalidInputError, match="x has 6 samples and y has 5; rows must be the same samples"):
        CKA()(np.eye(6), np.eye(5))


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("f2", torch.float32),
        ("f4", torch.float32),
        ("f8", torch.float64),
        (">f4", torch.float32),
        ("longdouble", torch.float64),
        ("u1", torch.float64),
        ("u2", torch.float64),
        ("i8", torch.float64),
        ("bool", torch.float64),
    ],
)
def test_dtypes(dtype: str, becomes: torch.dtype) -> None:
    x = (np.arange(12).reshape(6, 2) % 3).astype(dtype)
    tensor = as_samples(x)
    assert tensor.dtype == becomes
    np.testing.assert_array_equal(tensor.numpy(), x.astype(float))


def test_memory_layouts() -> None:
    x = np.arange(12.0).reshape(6, 2)
    x.flags.writeable = False
    np.testing.assert_array_equal(as_samples(x).numpy(), x)
    np.testing.assert_array_equal(as_samples(x[::-2]).numpy(), x[::-2])
    np.testing.assert_array_equal(as_samples(x.T.copy().T).numpy(), x)


def test_a_single_column_read_backwards() -> None:
    """Contiguous to numpy, whose stride of a single column means nothing; torch would refuse it."""
    x = np.arange(5.0)[:, None]
    assert as_samples(x[:, ::-1]).tolist() == x.tolist()


def test_centring_keeps_every_digit() -> None:
    """In float64, with any offset, and without changing the original."""
    x = torch.tensor([[1e8, 0.1], [1e8 + 1, 0.1], [1e8 + 2, 0.1]], dtype=torch.float64)
    kept = x.clone()
    mean, peak = column_means(x)
    assert peak == 1
    np.testing.assert_array_equal(Centred(x, mean, 1.0, x.dtype)[:].numpy(), [[-1, 0], [0, 0], [1, 0]])
    assert torch.equal(x, kept)


def test_two_measures_cannot_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metric, "registry", dict(Metric.registry))
    with pytest.raises(TypeError, match=r"two measures are named 'cka': repsim\.metrics\.cka and "):
        type("Impostor", (CKA,), {"name": "cka"})


def test_a_measure_written_for_the_base_of_0_1_works_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """It extends `Metric` itself, and its recipe is any function."""
    monkeypatch.setattr(Metric, "registry", dict(Metric.registry))
    declared = {name: getattr(get("magnitude_difference"), name) for name in ("title", "group", "sense", "symmetric")}
    body = declared | {
        "name": "old",
        "bounds": (0.0, math.inf),
        "invariances": frozenset({"permutation"}),
        "recipe": staticmethod(lambda x: x.sum()),
        "value": lambda _, a, b: (a - b).abs(),
    }
    with pytest.warns(DeprecationWarning, match=r"Old extends Metric: extend repsim\.metrics\.base\.PairMetric"):
        old: Any = dataclass(frozen=True)(type("Old", (Metric,), body))
    base = type("Base", (Metric,), {})
    with pytest.warns(DeprecationWarning, match="Derived extends Metric"):
        derived: Any = dataclass(frozen=True)(type("Derived", (base,), body | {"name": "derived"}))
    assert derived()(np.ones((4, 2)), np.zeros((4, 3))) == 8
    assert issubclass(old, PairMetric)
    assert old()(np.ones((4, 2)), np.zeros((4, 3))) == 8
    block = old().block([torch.tensor(1.0)], [torch.tensor(3.0), torch.tensor(0.0)])
    np.testing.assert_array_equal(block, [[2, 1]])
    assert old().recipe_for("features")(torch.ones(2)) == 2
    shapes = [LayerShape("a", 3)]
    assert plan(shapes, shapes, 10, [old()], Limits(2**30)).stages[0].algorithm == "pairs"
