"""Contract tests of all measures: a new measure fails until it has a contract class with a reference."""

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import repsim.metrics
from repsim.metrics.base import Metric
from repsim.metrics.cca import CCA, PWCCA, SVCCA
from repsim.metrics.cka import CKA
from repsim.testing import MetricContract
from tests.metrics import references


class TestCKA(MetricContract):
    metrics = (
        CKA(),
        CKA(estimator="biased"),
        CKA(kernel="rbf"),
        CKA(kernel="rbf", bandwidth=1.5, estimator="biased"),
        CKA(kernel="rbf", sigma=2.0),
        CKA(estimator="minibatch", batch=4),
        CKA(kernel="rbf", estimator="minibatch", batch=4),
    )
    reference = staticmethod(references.cka)

    def test_order_of_samples_does_not_matter(self, metric: Metric[Any]) -> None:
        """The order matters only for minibatches."""
        if getattr(metric, "batch", None) is None:
            super().test_order_of_samples_does_not_matter(metric)
            return
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            super().test_order_of_samples_does_not_matter(metric)


class TestCCA(MetricContract):
    metrics = (CCA(), CCA(summary="r2"))
    reference = staticmethod(references.cca)


class TestSVCCA(MetricContract):
    metrics = (SVCCA(), SVCCA(variance=0.8), SVCCA(variance=1.0), SVCCA(summary="r2"))
    reference = staticmethod(references.svcca)


class TestPWCCA(MetricContract):
    metrics = (PWCCA(),)
    reference = staticmethod(references.pwcca)


for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):  # the contracts of the other families
    if _module.name.startswith("test_contract_") and not _module.name.endswith("_bites"):
        importlib.import_module(f"tests.metrics.{_module.name}")


def _subclasses(cls: type[MetricContract]) -> Iterator[type[MetricContract]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def contracts() -> dict[type[Metric[Any]], type[MetricContract]]:
    return {
        type(metric): contract
        for contract in _subclasses(MetricContract)
        for metric in getattr(contract, "metrics", ())
    }


@pytest.mark.parametrize("name", repsim.metrics.names())
def test_every_measure_has_a_contract(name: str) -> None:
    cls = Metric.registry[name]
    assert cls in contracts(), f"{name} has no contract: add a class to {__file__}, with a reference formula"
    contract = contracts()[cls]
    assert hasattr(contract, "reference"), f"the contract of {name} has no reference formula"
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        tried = {getattr(metric, field.name) for metric in getattr(contract, "metrics", ())}
        untried = set(typing.get_args(hints[field.name])) - tried - {float, int, bool, type(None)}
        assert not untried, f"no contract tries {name}:{field.name}={untried.pop()}"


def test_a_measure_without_a_contract_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metric, "registry", dict(Metric.registry))
    type("New", (CKA,), {"name": "new"})
    with pytest.raises(AssertionError, match="new has no contract"):
        test_every_measure_has_a_contract("new")
