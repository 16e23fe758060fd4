"""Sentences of a study: they state its numbers, and claim no more than these allow."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repsim.stores.writer import write_store
from repsim.study import formatting, reading, words
from repsim.study.universality import universality
from repsim.testing.examples import unrelated_layers, write_network, write_networks


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[xr.Dataset]:
    with ExitStack() as stack:
        rng = np.random.default_rng(11)
        stores = write_networks(tmp_path_factory.mktemp("stores"), rng, 40, learned=0.8, seen=0.5, depth=2)
        yield universality([stack.enter_context(store) for store in stores], ["cka"], permutations=119, draws=200)


def short(value: float) -> str:
    """Format with three digits, or as 0."""
    text = str(round(value, 3) + 0.0)
    whole, _, part = text.partition(".")
    if part == "0" and whole in {"0", "-0"}:
        return "0"
    return f"{whole}.{part.ljust(3, '0')}"


def with_interval(values: list[float]) -> str:
    return "{} ({} to {})".format(*map(short, values))


def three(study: xr.Dataset, name: str, **at: str) -> str:
    return with_interval([float(study[name + end].sel(at)) for end in ("", "_low", "_high")])


def sentence(study: xr.Dataset, start: str) -> str:
    (match,) = [text for text in words.summary(study) if start in text]
    return match


GIVEN_INPUT = {"kernel": "cka given input", "kind_of_pair": "other family"}
RAW = {"kernel": "cka", "kind_of_pair": "other family"}


def test_the_summary_is_in_the_study(study: xr.Dataset) -> None:
    assert json.loads(study.attrs["summary"]) == words.summary(study)


def test_every_number_is_one_of_the_study(study: xr.Dataset) -> None:
    assert sentence(study, "trained models of") == (
        "4 trained models of 2 families: cnn (2), vit (2); 40 samples of given, readout given."
    )
    assert sentence(study, "Across families") == (
        f"Across families, best-matching layers have a debiased CKA of {three(study, 'index_mean', **RAW)}; with "
        f"untrained networks it is {three(study, 'control_mean', **RAW)}."
    )
    assert sentence(study, "With the input projected out").startswith(
        f"With the input projected out, {three(study, 'index_mean', **GIVEN_INPUT)} is left, and "
        f"{three(study, 'control_mean', **GIVEN_INPUT)} with untrained networks: the learned effect is "
        f"{three(study, 'learned_mean', **GIVEN_INPUT)}, above 0."
    )
    for state in ("trained", "untrained"):
        shares = study["mean_share"].sel(state=state)
        parts = [
            f"{name} {short(float(shares.sel(share_of=name)))}" for name in ("input", "universal", "family", "seed")
        ]
        assert sentence(study, f" {state} representations").endswith(f"mean over depth: {', '.join(parts)}.")
    ratio = [float(study[name].sel(kernel="cka given input", families="cnn x vit"))
             for name in ("ratio", "ratio_low", "ratio_high")]  # fmt: skip
    assert sentence(study, "ceiling") == (
        f"cnn x vit: {with_interval(ratio)} of the ceiling that other seeds set (cka given input)."
    )
    p = study["p_index_holm"].sel(measure="cka given input").values
    assert sentence(study, "more alike than chance").startswith(f"{(p <= 0.05).sum()} of 6 pairs")
    given_input = study.sel(measure="cka given input").isel(pair=study["relation"].values == "other family")
    half, whole = (short(given_input[name].values.mean()) for name in ("split_half", "index"))
    assert sentence(study, "one half").endswith(f"hold on the other: {half} there, {whole} on all (cka given input).")
    assert three(study, "common_share", map="cka given input") in sentence(study, "first common component")
    agreement = study["agreement"].sel(kernel="cka given input")
    ranked = agreement.sortby(agreement)["sample"].values.tolist()
    assert sentence(study, "agree most") == (
        f"Networks agree most on {', '.join(ranked[:-4:-1])}, and least on {', '.join(ranked[:3])} (cka given input)."
    )


def altered(study: xr.Dataset, at: dict[str, str], **values: float) -> xr.Dataset:
    result = study.copy(deep=True)
    for name, value in values.items():
        result[name].loc[at] = value
    return result


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-9, 0.2, "above 0. To this extent what was learned is universal"),
        (0.0, 0.2, "which may be 0. Nothing learned is shown to be shared"),
        (-0.1, 0.2, "which may be 0. Nothing learned is shown to be shared"),
        (-0.2, 0.0, "which may be 0. Nothing learned is shown to be shared"),
        (-0.2, -1e-9, "below 0. Trained networks of different families are less alike than the control"),
        (np.nan, np.nan, "without untrained networks it cannot be said how much is learned"),
    ],
)
def test_the_verdict_is_that_of_the_interval(study: xr.Dataset, low: float, high: float, expected: str) -> None:
    other = altered(study, GIVEN_INPUT, learned_mean_low=low, learned_mean_high=high)
    assert expected in sentence(other, "With the input projected out")
    text = " ".join(words.summary(other))
    assert ("universal" in text) == (low > 0)
    assert (reading.name_of(other, "universal") == "universal") == (low > 0)
    assert reading.name_of(other, "family") == "family"
    assert reading.verdict(other) is (None if np.isnan(low) else low > 0)


def test_raw_similarity_that_does_not_tell(study: xr.Dataset) -> None:
    may = altered(study, RAW, learned_mean_low=-0.1, learned_mean_high=0.1)
    assert "raw similarity does not tell trained networks from untrained ones here" in sentence(may, "Across families")
    below = altered(study, RAW, learned_mean_low=-0.2, learned_mean_high=-0.1)
    assert sentence(below, "Across families").endswith(", which is more.")


def test_clusters_are_universality_classes_only_where_something_is(study: xr.Dataset) -> None:
    grouped = study.copy(deep=True)
    grouped["cluster"].loc[{"map": "cka given input"}] = [0, 1, 0, 1]
    grouped["cluster_stability"].loc[{"map": "cka given input"}] = 0.875
    assert "Candidate universality classes: cnn.seed0, vit.seed0 | cnn.seed1, vit.seed1; found again" in " ".join(
        words.summary(grouped)
    )
    other = altered(grouped, GIVEN_INPUT, learned_mean_low=-0.1)
    assert sentence(other, "Clusters").endswith("with an adjusted Rand index of 0.875.")
    assert "universal" not in " ".join(words.summary(other))


def test_ceilings_are_named_for_the_families_of_the_pair(study: xr.Dataset) -> None:
    three = xr.Dataset(
        {name: (("kernel", "families"), np.full((2, 3), value)) for name, value in
         (("ratio", 0.5), ("ratio_low", 0.4), ("ratio_high", 0.6))},
        coords={
            "kernel": ["cka", "cka given input"],
            "families": ["a x b", "a x c", "b x c"],
            "ceiling_of": ("one_family", ["other seeds", "other recipes of one architecture", "other seeds"]),
        },
    )  # fmt: skip
    assert [re.sub(".*ceiling that (.*) set.*", r"\1", text) for text in words._ceilings(three)] == [
        "other recipes of one architecture and other seeds",
        "other seeds",
        "other recipes of one architecture and other seeds",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.41821, "0.418"), (-0.41851, "-0.419"), (0.0004, "0"), (-0.0004, "0"), (0.0, "0"), (0.9996, "1.000"),
        (1.0, "1.000"), (-1.0, "-1.000"), (10.5, "10.500"), (-20.06, "-20.060"), (0.1, "0.100"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert formatting.number(value) == text
    assert formatting.number(value, np.nan, np.nan) == text
    assert formatting.number(value, value, value) == f"{text} ({text} to {text})"


def test_probabilities_are_never_0() -> None:
    assert [formatting.probability(p) for p in (1e-9, 0.0004, 0.0005, 0.02, 1)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.020",
        "1.000",
    ]
    assert "nan" in formatting.probability(np.nan)


def test_lists() -> None:
    assert formatting.listed([]) == ""
    assert formatting.listed(["a", "b", "c"]) == "a, b, c"
    assert formatting.listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert formatting.listed(["a", "b", "c"], 1) == "a and 2 more"


def test_warnings_of_layers_and_untrained_networks(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 110
    odd = rng.normal(size=(n, 3))
    odd[17] *= 30
    twin = rng.normal(size=(n, 6))
    stale = {"weights": "random", "architecture": "cnn", "batch_norm": "not recalibrated: as it was made"}
    with ExitStack() as stack:
        stores = [
            stack.enter_context(store)
            for store in (
                write_network(tmp_path, "cnn.seed0", [odd, rng.normal(size=(n, 1)), rng.normal(size=(n, 6))]),
                write_network(tmp_path, "vit.seed0", unrelated_layers(rng, n, 6, 6, 6)),
                write_store(tmp_path / "twin.h5", {"a": twin, "b": 2 * twin, "c": odd[:, :2]}, model="cnn+random-seed0",
                            provenance=stale),
            )
        ]  # fmt: skip
        lines = json.loads(universality(stores, ["cka"], permutations=19, draws=50).attrs["warnings"])
    text = "\n".join(lines)
    assert "samples: intervals are wide" not in text
    assert re.search(r"more than a tenth of the variance of cnn.seed0/block0 \(\d+%\), cnn\+random-seed0/c", text)
    assert "cnn.seed0/block1 has one feature: a kernel of rank 1" in text
    assert "batch norm of cnn+random-seed0 was not recalibrated on the samples" in text
    assert "no untrained network of vit" in text
    assert "neighbouring layers of cnn+random-seed0 are the same" in text
