"""Expected values of oracles.py, and a check that every measure has one, or a reason why not."""

import importlib
import warnings

import pytest

import repsim.metrics
from repsim.errors import UnreliableValueWarning
from repsim.metrics.base import Metric
from tests.metrics.oracles import AWAITED, ORACLES, WITHOUT, Oracle, layers


def missing(name: str) -> str | None:
    """Return the reason why a measure cannot be computed, or None."""
    if name not in repsim.metrics.names():
        assert name in AWAITED, f"oracles.py has numbers for {name}, which is no measure"
        return f"{name} is awaited"
    extra = Metric.registry[name].extra
    if extra is not None and importlib.util.find_spec(extra) is None:
        return f"{name} needs {extra}"
    return None


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: f"{oracle.spec}-{oracle.data}-{oracle.swapped}")
def test_oracle(oracle: Oracle) -> None:
    if why := missing(oracle.name):
        pytest.skip(why)
    x, y = layers(oracle.data)
    if oracle.swapped:
        x, y = y, x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableValueWarning)
        value = repsim.metrics.get(oracle.spec)(x, y)
    assert value == pytest.approx(oracle.value, rel=oracle.within, abs=oracle.within)


def test_the_data_are_those_of_the_oracles() -> None:
    assert [array.sum() for array in layers("uniform")] == pytest.approx(
        [369.612266744197, 381.998391593449], abs=1e-10
    )


def test_every_measure_has_an_oracle_or_says_why_not() -> None:
    with_one = {oracle.name for oracle in ORACLES}
    assert not with_one & set(WITHOUT)
    for name in repsim.metrics.names():
        if Metric.registry[name].__module__.startswith("repsim."):
            assert name in with_one | set(WITHOUT), f"{name} has no number in tests/metrics/oracles.py, nor a reason"
    for name in WITHOUT:
        missing(name)
