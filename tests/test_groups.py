"""Tests of groups of measures: unavailable ones are left out with a reason, and preparation is shared."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from repsim import metrics
from repsim.cli import main
from repsim.engine.comparison import Comparison, compare
from repsim.errors import InvalidInputError, TooLittleMemoryError, UndefinedValueError, UnknownNameError
from repsim.labels import LayerKey, SampleIds
from repsim.metrics.base import Metric
from repsim.metrics.cca import SVCCA
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore
from repsim.stores.writer import StoreWriter, write_store


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> ActivationStore:
    x = rng.normal(size=(60, 8))
    return write_store(tmp_path / "a.h5", {"x": x, "y": x[:, :5] ** 2}, model="a")


def test_every_measure_is_in_one_group() -> None:
    assert sorted(name for group in metrics.groups().values() for name in group) == metrics.names()


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("svcca", ["svcca"]),
        ("cca", ["cca"]),
        ("group:cca", ["cca", "pwcca", "svcca"]),
        ("svcca:variance=0.9", ["svcca:variance=0.9"]),
    ],
)
def test_what_a_word_stands_for(word: str, names: list[str]) -> None:
    assert [metric.spec for metric in metrics.select(word)] == names


def test_all_is_every_measure_but_the_slow_ones() -> None:
    specs = {metric.spec for metric in metrics.select("all")}
    assert specs == set(metrics.names()) - set(metrics.groups()["topology"])
    assert {"geometry_score", "imd", "rtd"} == set(metrics.groups()["topology"])


def test_all_is_every_measure_whose_library_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metric, "registry", dict(Metric.registry))
    specs = [metric.spec for metric in metrics.select("all")]
    type("Elsewhere", (SVCCA,), {"name": "elsewhere", "extra": "a_library_that_nobody_has"})
    assert [metric.spec for metric in metrics.select("all")] == specs
    assert "elsewhere" in metrics.groups()["cca"]
    assert metrics.get("elsewhere").spec == "elsewhere"


@pytest.mark.parametrize("word", ["group:ccaa", "group:svcca", "al"])
def test_unknown_words(word: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown (group|metric)"):
        metrics.select(word)


def test_what_is_named_twice_is_computed_once(store: ActivationStore) -> None:
    result = compare(store, None, ["svcca", "group:cca", "svcca"])
    assert sorted(map(str, result.data_vars)) == ["cca", "pwcca", "svcca"]


def test_a_group_shares_its_preparation(store: ActivationStore) -> None:
    with Comparison(store, None, ["group:cca", "cka", "cka:estimator=biased"]) as planned:
        family, kernels = planned.plan.stages
    assert {metric.spec for metric in family.metrics} == {"cca", "pwcca", "svcca"}
    assert {metric.spec for metric in kernels.metrics} == {"cka", "cka:estimator=biased"}
    (line,) = [line for line in planned.plan.lines() if "principal" in line]
    assert line == "  each layer prepared once (principal subspace) for all 3 metrics, kept in memory"


def test_who_has_no_value_is_left_out_of_a_group_only(tmp_path: Path, rng: np.random.Generator) -> None:
    """Gram matrices are sufficient for linear CKA only."""
    grams = np.stack([(x := rng.normal(size=(8, 3))) @ x.T for _ in range(4)])
    spec = ArraySpec(LayerKey("g", "x", "gram:8"), (8, 8), block=8)
    contents = Contents((spec,), SampleIds(tuple(map(str, range(32)))), "photos", {}, order=np.arange(32))
    with StoreWriter(tmp_path / "g.h5", contents) as out:
        out.write(spec.key, slice(0, 4), grams.reshape(4, 64).astype(np.float32))
        out.mark_done(slice(None))
    path = tmp_path / "g.h5"
    result = compare(path, None, ["all"])
    assert list(result.data_vars) == ["cka"]
    left_out = json.loads(result.attrs["left_out"])
    assert any(text.startswith("svcca: no pair of layers has a value; layer x: svcca needs") for text in left_out)
    with pytest.raises(UndefinedValueError, match="svcca: no pair of layers has a value"):
        compare(path, None, ["all", "svcca"])
    done = CliRunner().invoke(main, ["compare", str(path), "-m", "all"])
    assert done.exit_code == 0, done.output
    assert "left out: svcca: no pair of layers has a value" in done.output


@dataclasses.dataclass(frozen=True)
class Greedy(SVCCA):
    """Measure that needs many samples."""

    @property
    def min_samples(self) -> int:
        return 61


def test_who_needs_more_samples_is_left_out_of_a_group_only(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metric, "registry", {**Metric.registry, "svcca": Greedy})
    result = compare(store, None, ["group:cca"])
    assert sorted(map(str, result.data_vars)) == ["cca", "pwcca"]
    assert json.loads(result.attrs["left_out"]) == ["svcca: needs at least 61 samples"]
    with pytest.raises(InvalidInputError, match="60 samples are too few"):
        compare(store, None, ["svcca"])
    monkeypatch.setattr(Metric, "registry", {"svcca": Greedy})
    with pytest.raises(InvalidInputError, match="60 samples are too few; svcca: needs at least 61"):
        compare(store, None, ["all"])


def test_who_needs_more_memory_is_left_out_of_a_group_only(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decomposition needs more memory than CKA, whose layers can be read again."""
    wide = write_store(tmp_path / "w.h5", {"x": rng.normal(size=(1500, 1500)).astype("f4")}, model="w")
    monkeypatch.setattr(Comparison, "_base_memory", lambda _: 0)
    with Comparison(wide, None, ["cka"]) as small:
        enough = small.plan.memory
    result = compare(wide, None, ["cka", "group:cca"], memory=enough)
    assert list(result.data_vars) == ["cka"]
    (left_out,) = json.loads(result.attrs["left_out"])
    assert "takes" in left_out
    assert "svcca" in left_out
    with pytest.raises(TooLittleMemoryError, match="svcca on 1 layers of 1500 samples takes"):
        compare(wide, None, ["cka", "svcca"], memory=enough)
