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
BOTH = "cka given input and labels"


def test_the_summary_is_in_the_study(study: xr.Dataset) -> None:
    assert json.loads(study.attrs["summary"]) == words.summary(study)


def test_every_number_of_similarities_is_one_of_the_study(study: xr.Dataset) -> None:
    assert sentence(study, "trained networks of 2") == (
        "4 trained networks of 2 families, and 4 untrained: cnn (2 + 2), vit (2 + 2); 40 samples of given, readout "
        "given."
    )
    assert sentence(study, "Across families") == (
        f"Across families, matching layers have a debiased CKA of {three(study, 'index_mean', **RAW)}; in the "
        f"strongest control it is {three(study, 'control_mean', **RAW)}, which is less."
    )
    across = study["relation"].values == "other family"
    for kernel, start in (("cka given input", "With the input projected"), (BOTH, "Within the classes")):
        at = {**GIVEN_INPUT, "kernel": kernel}
        energy = short(float(study["energy"].sel(measure=kernel).values[across].mean()))
        left = study["energy_left"].sel(kernel=kernel).values
        trained, untrained = (short(left[study["network_state"].values == s].mean()) for s in ("trained", "untrained"))
        text = sentence(study, start)
        assert text.endswith(
            f" it is {three(study, 'index_mean', **at)}, and {energy} in units of energy; left of the "
            f"energy: {trained} of trained networks, {untrained} of untrained ones. In the strongest control it is "
            f"{three(study, 'control_mean', **at)}."
        )


def test_every_number_of_parts_is_one_of_the_study(study: xr.Dataset) -> None:
    for state in ("trained", "untrained"):
        shares = study["mean_share"].sel(state=state)
        names = ("input", "universal", "family", "seed")
        parts = [f"{reading.name_of(study, name)} {short(float(shares.sel(share_of=name)))}" for name in names]
        assert sentence(study, f" {state} representations").endswith(f"mean over depth: {', '.join(parts)}.")
    dimensions = study["effective_dimension"].values
    trained, untrained = (dimensions[study["network_state"].values == s].mean() for s in ("trained", "untrained"))
    assert sentence(study, "effective dimension") == (
        f"The effective dimension of layers is {trained:.1f} in trained networks and {untrained:.1f} in untrained "
        "ones, on average."
    )
    p = study["p_index_holm"].sel(measure="cka given input").values
    assert sentence(study, "Independence is rejected").startswith(
        f"Independence is rejected for {(p <= 0.05).sum()} of 6 pairs of models at 5 % (all layers, 119 permutations"
    )
    given_input = study.sel(measure="cka given input").isel(pair=study["relation"].values == "other family")
    half, whole = (short(given_input[name].values.mean()) for name in ("split_half", "index"))
    assert sentence(study, "on one half").endswith(
        f"measured on the other: {half}; found and measured on all samples it would be {whole} (cka given input)."
    )
    assert three(study, "common_share", map="cka given input") in sentence(study, "first common component")
    agreement = study["agreement"].sel(kernel="cka given input")
    ranked = agreement.sortby(agreement)["sample"].values.tolist()
    many = altered(study, {"kernel": "cka given input"}, agreement_signal=3.0)
    assert sentence(many, "agree most") == (
        f"Networks agree most on {', '.join(ranked[:-4:-1])}, and least on {', '.join(ranked[:3])} (cka given input)."
    )


def altered(study: xr.Dataset, at: dict[str, str], **values: float | str) -> xr.Dataset:
    result = study.copy(deep=True)
    for name, value in values.items():
        if isinstance(value, str):
            result[name] = result[name].astype(object)
        result[name].loc[at] = value
        if isinstance(value, str):
            result[name] = result[name].astype(str)
    return result


FAMILIES = {"families": "cnn x vit"}


def test_what_is_universal(study: xr.Dataset) -> None:
    claimed = altered(study, FAMILIES, claim_level="architectures", claim_reason="")
    at = {**FAMILIES, "kernel": BOTH}
    effect = with_interval(
        [float(study[f"effect{end}"].sel({**FAMILIES, "measure": BOTH})) for end in ("", "_low", "_high")]
    )
    p = float(study["p_architectures"].sel(FAMILIES))
    assert sentence(claimed, "universal across") == (
        "To this extent what was learned is universal across these families, beyond the classes: networks of cnn and "
        f"vit are more alike than the strongest control by {effect}, and by {three(study, 'effect_energy', **at)} of "
        f"the energy ({BOTH}). This holds for networks of these architectures: the interval over networks and samples "
        f"is above 0, and the exact test over networks and this interval give p = {p:.3f}."
    )
    assert "universal " in sentence(claimed, " trained representations")


def test_what_is_shared_by_these_networks(study: xr.Dataset) -> None:
    claimed = altered(study, FAMILIES, claim_level="networks", claim_reason="exchanging gives p = 0.200")
    text = sentence(claimed, "These trained networks")
    assert text.startswith(
        "These trained networks are, on average over their pairs, more alike than each of their controls, beyond the "
        "classes, on samples like these: "
        "cnn.seed0, cnn.seed1, vit.seed0, vit.seed1. Those of cnn and vit are more alike than the strongest control by "
    )
    assert text.endswith(
        "Whether training makes networks of these architectures alike is not shown: exchanging gives p = 0.200."
    )
    assert "universal" not in " ".join(words.summary(claimed))


def test_what_is_not_shown(study: xr.Dataset) -> None:
    refused = altered(study, FAMILIES, claim_level="", claim_reason="there is no control")
    assert sentence(refused, "Nothing learned") == (
        "Nothing learned is shown to be shared by cnn x vit: there is no control."
    )
    assert "universal" not in " ".join(words.summary(refused))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-9, 0.2, ", which is less."), (0.0, 0.2, ", which is no clear difference."),
        (-0.1, 0.2, ", which is no clear difference."), (-0.2, 0.0, ", which is no clear difference."),
        (-0.2, -1e-9, ", which is more."),
    ],
)  # fmt: skip
def test_how_raw_similarity_compares_with_the_control(
    study: xr.Dataset, low: float, high: float, expected: str
) -> None:
    other = altered(study, RAW, learned_mean_low=low, learned_mean_high=high)
    assert sentence(other, "Across families").endswith(expected)


def test_without_controls_nothing_is_compared(study: xr.Dataset) -> None:
    no_control = altered(study, RAW, control_mean=np.nan)
    assert sentence(no_control, "Across families") == (
        f"Across families, matching layers have a debiased CKA of {three(study, 'index_mean', **RAW)}."
    )
    given_input = altered(study, GIVEN_INPUT, control_mean=np.nan)
    assert sentence(given_input, "With the input projected").endswith(
        "Without untrained networks it cannot be said how much is learned."
    )
    undefined = altered(study, GIVEN_INPUT, index_mean=np.nan)
    assert sentence(undefined, "With the input projected") == (
        "With the input projected out, nothing is left on half of the samples: they are too few."
    )


def test_stimuli_are_named_only_above_noise(study: xr.Dataset) -> None:
    quiet = altered(study, {"kernel": "cka given input"}, agreement_signal=1.9)
    assert "No stimuli stand out" in " ".join(words.summary(quiet))
    assert "agree most" not in " ".join(words.summary(quiet))


def test_clusters_of_models(study: xr.Dataset) -> None:
    at = {"map": "cka given input"}
    grouped = altered(study, at, cluster_stability=0.875)
    grouped["cluster"].loc[at] = [0, 1, 0, 1]
    assert sentence(grouped, "Clusters of models") == (
        "Clusters of models: cnn.seed0, vit.seed0 | cnn.seed1, vit.seed1; found again in resampled stimuli with an "
        "adjusted Rand index of 0.875."
    )
    grouped["cluster"].loc[at] = 0
    assert "The models form no clear clusters." in words.summary(grouped)


def test_no_common_component(study: xr.Dataset) -> None:
    at = {"map": "cka given input"}
    noise = altered(study, at, common_share=0.3, common_share_noise=0.31)
    assert sentence(noise, "common component") == (
        "The models have no common component: the first one carries 0.300, and of unrelated models it would carry up "
        "to 0.310 (cka given input)."
    )


def test_ceilings(study: xr.Dataset) -> None:
    at = {"kernel": "cka given input", "families": "cnn x vit"}
    below = altered(study, at, ratio=0.5, ratio_low=0.4, ratio_high=0.6)
    assert sentence(below, "of the ceiling") == (
        "cnn x vit: 0.500 (0.400 to 0.600) of the ceiling that other seeds set (cka given input)."
    )
    above = altered(study, at, ratio=1.2, ratio_low=0.9, ratio_high=1.5)
    assert "cnn x vit: as alike as other seeds allow; the ratio to the ceiling is not shown to be below 1" in " ".join(
        words.summary(above)
    )


def test_no_ratio_to_a_ceiling_above_1_is_printed(study: xr.Dataset) -> None:
    """It estimates a cosine."""
    at = {"kernel": "cka given input", "families": "cnn x vit"}
    below = altered(study, at, ratio=0.99, ratio_low=0.95, ratio_high=1.03)
    assert "cnn x vit: 0.990 (0.950 to 1.000) of the ceiling" in sentence(below, "of the ceiling")
    above = altered(study, at, ratio=1.2, ratio_low=1.097, ratio_high=1.3)
    assert sentence(above, "no ceiling") == (
        "cnn x vit: more alike than other seeds are, which therefore set no ceiling (cka given input)."
    )
    assert not re.search(r"1\.0*[1-9]", " ".join(text for text in words.summary(above) if "ceiling" in text))


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
    if text != "0":
        assert formatting.number(value, value, value) == f"{text} ({text} to {text})"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0004, 0.0001, 0.0006), "0 (0 to 0.001)"),
        ((0.0002, 0.0001, 0.0004), "0.0002 (0.0001 to 0.0004)"),
        ((2e-6, -3e-6, 4e-6), "0.000002 (-0.000003 to 0.000004)"),
        ((-0.0004, -0.0004, 0), "-0.0004 (-0.0004 to 0)"), ((0.0, 0.0, 0.0), "0 (0 to 0)"),
        ((0.0, -1e-12, 1e-12), "0 (0 to 0)"), ((0.0001, -0.002, 0.003), "0 (-0.002 to 0.003)"),
    ],
)  # fmt: skip
def test_intervals_of_tiny_numbers(values: tuple[float, float, float], text: str) -> None:
    """Nothing is above "0 (0 to 0)"."""
    assert formatting.number(*values) == text


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
