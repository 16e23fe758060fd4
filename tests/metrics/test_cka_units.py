"""CKA of sampled units, where the truth is known: networks that are random maps of the same latent variables."""

import warnings

import numpy as np
import pytest
import torch

from repsim.errors import UndefinedValueError
from repsim.metrics.base import as_samples
from repsim.metrics.cka import CKA
from repsim.metrics.cka_units import SampledUnits, SampledUnitsCKA
from repsim.metrics.recipes.gram import CentredGram
from repsim.testing.examples import RowsOnDisk
from tests.metrics.references import cka_units, cosine, gram, u_centred


@pytest.mark.slow
def test_norms_of_sampled_units_are_right_on_average(rng: np.random.Generator) -> None:
    """p units w, drawn from N(0, I), of latent z: the mean of A / p is the U-centred Gram matrix of all units, ZZ'."""
    z = rng.normal(size=(30, 5))
    truth = np.sum(u_centred(gram(z)) ** 2)
    corrected, plain = [], []
    for _ in range(2000):
        x = z @ rng.normal(size=(5, 12))
        factor = SampledUnits()(as_samples(x))
        scale = float(CentredGram().fit(as_samples(x)).scale) ** 4 / 12**2
        corrected.append(factor.shared2 * scale)
        plain.append(factor.norm2 * scale)
    error = np.std(corrected, ddof=1) / np.sqrt(len(corrected))
    assert abs(np.mean(corrected) - truth) < 4 * error
    assert np.mean(plain) - truth > 20 * error  # debiased CKA does not correct for units


@pytest.mark.slow
@pytest.mark.parametrize("units", [pytest.param(10, marks=pytest.mark.slow), 40])
def test_few_units_estimate_the_cka_of_all_units(rng: np.random.Generator, units: int) -> None:
    """The kernels of all units are ZZ' and (Z + noise)(Z + noise)', whatever units are drawn."""
    z = rng.normal(size=(100, 20))
    other = z + rng.normal(size=z.shape)
    truth = cosine(u_centred(gram(z)), u_centred(gram(other)))
    values: dict[str, list[float]] = {metric.name: [] for metric in (CKA(), SampledUnitsCKA())}
    for _ in range(200):
        x, y = z @ rng.normal(size=(20, units)), other @ rng.normal(size=(20, units))
        for metric in (CKA(), SampledUnitsCKA()):
            values[metric.name].append(metric(x, y))
    assert np.mean(values["cka_units"]) == pytest.approx(truth, rel=0.1)
    assert np.mean(values["cka"]) < 0.8 * truth


def test_the_value_is_that_of_the_formula_written_unit_by_unit(rng: np.random.Generator) -> None:
    z = rng.normal(size=(12, 3))
    x, y = z @ rng.normal(size=(3, 7)) + 4, z @ rng.normal(size=(3, 5))
    assert SampledUnitsCKA()(x, y) == pytest.approx(cka_units(x, y), rel=1e-11)


def test_with_all_units_it_is_cka(rng: np.random.Generator) -> None:
    """With many copies of p units, 1 / p of all products are those of a unit with itself."""
    z = rng.normal(size=(50, 6))
    x, y = np.tile(z, 500), np.tile(z[:, :4], 500)
    assert SampledUnitsCKA()(x, y) == pytest.approx(CKA()(x, y), rel=2e-3)


def test_a_layer_that_is_read_from_a_file(rng: np.random.Generator) -> None:
    z = rng.normal(size=(60, 4))
    x, y = z @ rng.normal(size=(4, 80)), z @ rng.normal(size=(4, 7))
    streamed = [SampledUnits()(RowsOnDisk(side)) for side in (x, y)]
    assert not streamed[0].in_memory
    assert SampledUnitsCKA().pair(*streamed) == pytest.approx(SampledUnitsCKA()(x, y), rel=1e-12)


def test_units_with_nothing_in_common_have_no_value(rng: np.random.Generator) -> None:
    x = np.linalg.qr(rng.normal(size=(40, 6)))[0]
    x = np.linalg.qr(x - x.mean(0))[0]
    for side in (x, x[:, :1]):
        with pytest.raises(UndefinedValueError, match="different units share no more than noise"):
            SampledUnitsCKA()(side, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UndefinedValueError, match="no more than noise"):
            SampledUnitsCKA()(torch.from_numpy(x).requires_grad_(), torch.from_numpy(x))
