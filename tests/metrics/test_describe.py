"""Descriptions of measures: every declaration is included, and docstrings are parsed correctly."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import repsim.metrics
from repsim.metrics import describe
from repsim.metrics.base import Factor, Invariance, Metric, PairMetric, Recipe

BOUNDS = (0.0, math.inf)


@dataclass(frozen=True)
class Odd(PairMetric[Factor]):
    """A measure with all that is unusual.

    One paragraph
    of two lines, with ``code``::

        a_ij = 1
          where i = j

    Parameters
    ----------
    mode
        ``plain`` or ``fancy``: which
        of the two.
    scale : float
        A number.

    Notes
    -----
    Either of

    - the first,
      on two lines;
    - the second.

    References
    ----------
    Somebody, Somebody Else. A title of 1984 that goes on
    and on. A Journal 2001.
    Another. A book, 1999 (chapter 3).
    """

    title: ClassVar[str] = "Odd"
    group: ClassVar[Any] = "topology"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = False
    triangle: ClassVar[bool] = True
    paired: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    extra: ClassVar[str | None] = "oddities"
    formula: ClassVar[str] = "f"
    citation: ClassVar[str] = "Somebody 2001"
    question: ClassVar[str] = "Is it odd?"
    needs: ClassVar[str] = "many"

    mode: Literal["plain", "fancy"] = "plain"
    scale: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        return BOUNDS

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset()

    @property
    def invariances_of_y(self) -> frozenset[Invariance]:
        return frozenset({"translation", "permutation"})

    @property
    def recipe(self) -> Recipe[Factor]:
        return repsim.metrics.get("cka").recipe

    def value(self, a: Factor, b: Factor) -> Tensor:
        return torch.tensor(float(a is b))


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Metric[Any]:
    """Return a measure that is registered only during the test."""
    monkeypatch.setattr(Metric, "registry", dict(Metric.registry))
    metric: Metric[Any] = type("Odder", (Odd,), {"name": "odd", "__doc__": Odd.__doc__})(scale=2.0)
    return metric


def test_unusual_declarations_are_described(odd: Metric[Any]) -> None:
    said = describe.traits(odd)
    assert said["sense"].startswith("distance: smaller")
    assert said["range"] == "0 to infinity"
    assert describe.interval(odd) == "[0, inf)"
    assert said["symmetric"].startswith("no")
    assert said["unchanged by"] == (
        "no transformation of the features; in the second layer also permutation of features, translation"
    )
    assert "two clouds" in said["samples"]
    assert said["triangle"].startswith("holds")
    assert said["gradient"].startswith("none")
    assert "seeded" in said["random"]
    assert said["samples needed"].startswith("no number")
    assert "changes nothing" in said["chance"]
    assert said["installed by"] == "pip install 'repsim-toolkit[topology]'"
    assert describe.letters(odd) == "- (P T)"


@pytest.mark.parametrize("name", repsim.metrics.names())
def test_facts_are_json_and_complete(name: str) -> None:
    metric = repsim.metrics.get(name)
    said = json.loads(json.dumps(describe.facts(metric), allow_nan=False))
    declared = {word for word in Metric.__annotations__ if not word.startswith("_")} - {"registry"}
    assert declared <= set(said)
    assert said["description"]
    assert said["references"]
    assert [option["name"] for option in said["parameters"]] == [field.name for field in dataclasses.fields(metric)]
    assert all(option["text"] for option in said["parameters"])


def test_infinity_is_null_to_programs(odd: Metric[Any]) -> None:
    assert describe.facts(odd)["bounds"] == [0.0, None]


def test_docstrings_are_parsed(odd: Metric[Any]) -> None:
    said = describe.sections(type(odd))
    assert list(said) == ["", "Parameters", "Notes", "References"]
    assert describe.paragraphs(said[""]) == [
        ("prose", ["A measure with all that is unusual."]),
        ("prose", ["One paragraph of two lines, with `code`:"]),
        ("literal", ["a_ij = 1", "  where i = j"]),
    ]
    assert describe.paragraphs(said["Notes"]) == [
        ("prose", ["Either of"]),
        ("list", ["the first, on two lines;", "the second."]),
    ]
    assert describe.references(odd) == [
        "Somebody, Somebody Else. A title of 1984 that goes on and on. A Journal 2001.",
        "Another. A book, 1999 (chapter 3).",
    ]
    mode, scale = describe.parameters(odd)
    assert (mode.assignment, mode.text) == ("mode=plain, or fancy", "`plain` or `fancy`: which of the two.")
    assert (scale.assignment, scale.default, scale.text) == ("scale=2.0", None, "A number.")


def test_a_page_is_folded_and_formulas_are_not(odd: Metric[Any]) -> None:
    page = list(describe.lines(odd, 50))
    assert page[0] == "odd:scale=2.0: Odd (plain, scale=2.0)"
    assert "        where i = j" in page
    assert 40 < max(map(len, page)) <= 50
    assert [line for line in page if line[:1].strip()][1:] == ["Options", "Definition", "Notes", "References"]
