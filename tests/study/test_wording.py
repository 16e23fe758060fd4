"""Wording of the sentences of real studies: no mean hides a pair, no line is repeated, no name looks like a claim."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.study.test_sentences import World, claims, conduct, levels, reasons, summary

pytestmark = pytest.mark.slow


def sentence(study: xr.Dataset, start: str) -> str:
    (match,) = [text for text in summary(study) if text.startswith(start)]
    return match


@pytest.fixture(scope="module")
def two_of_four(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Return a study of four families, of which a and b share something."""
    world = World(120)
    common = world.normal()
    families = {name: world.family(common if name in "ab" else world.normal(), depth=1) for name in "abcd"}
    folder = tmp_path_factory.mktemp("two of four")
    return conduct(folder, world, families, trained=3, untrained=3, metrics=["cka", "mutual_knn"])


def test_means_over_pairs_of_families_show_their_range(two_of_four: xr.Dataset) -> None:
    """The mean over six pairs is that of none of them."""
    values = two_of_four["trained_value"].sel(measure="cka given input")
    text = sentence(two_of_four, "With the input projected out")
    low = str(values["families"].values[np.argmin(values.values)])
    assert f" on average, from {float(values.min()):.3f} for {low} to {float(values.max()):.3f} for a x b, and" in text
    raw = sentence(two_of_four, "Across families")
    assert re.search(r" on average, from 0\.\d+ for \w x \w to 0\.\d+ for a x b; in the strongest control it is", raw)
    assert "which is" not in raw
    signs = re.findall(r"(more|less|not clearly more or less) alike in (\d)", raw)
    assert sum(int(count) for _, count in signs) == 6
    assert ("more", "1") in signs
    assert raw.endswith(" of 6 pairs of families.")


def test_refusals_of_one_kind_are_one_sentence(two_of_four: xr.Dataset) -> None:
    refused = [text for text in summary(two_of_four) if text.startswith("Nothing learned")]
    pairs = [name for name, level in levels(two_of_four).items() if not level]
    assert len(pairs) == 5
    assert len(refused) <= 2  # less alike than a control, and not shown to be more alike
    assert all(sum(pair in text for text in refused) == 1 for pair in pairs)
    for text in refused:
        assert re.fullmatch(
            r".* \(the tables have the numbers of these \d pairs of families\)\.|.*\(.* to .*\)\.", text
        )
    assert len(set(reasons(two_of_four).values()) - {""}) == 5  # which the table shows


def test_claims_say_for_how_many_pairs_they_are_adjusted(two_of_four: xr.Dataset) -> None:
    (claim,) = claims(two_of_four)
    assert re.search(r"p (=|<) [\d.]+, adjusted for 6 pairs of families\.", claim)
    assert "Hommel" not in claim


def test_refusals_say_for_how_many_pairs_they_are_adjusted(tmp_path: Path) -> None:
    """Two networks of each family allow p = 1 / 36, times 3."""
    world = World(120)
    common = world.normal()
    families = {name: world.family(common if name in "ab" else world.normal(), depth=1) for name in "abc"}
    study = conduct(tmp_path, world, families)
    assert levels(study)["a x b"] == "networks"
    (claim,) = claims(study)
    assert re.search(r"p = 0\.\d+ over networks and samples, adjusted for 3 pairs of families\.", claim)


def test_measures_agree_only_if_all_say_the_same(two_of_four: xr.Dataset) -> None:
    for pair in two_of_four["families"].values.tolist():
        text = sentence(two_of_four, f"{pair}: the measures")
        signs = set(re.findall(r"(not clearly more or less|more|less) alike \(", text))
        assert ("the measures agree" in text) == (len(signs) == 1)
        assert ("the measures disagree" in text) == ({"more", "less"} <= signs)
        assert ("the measures are not equally clear" in text) == (len(signs) == 2 and not {"more", "less"} <= signs)


def test_the_word_universal_in_a_name_is_no_claim(tmp_path: Path) -> None:
    world = World(100)
    families = {name: world.family(world.normal(), depth=1) for name in ("universal-net", "c")}
    study = conduct(tmp_path, world, families)
    text = " ".join(summary(study))
    assert '"universal-net" x c' in text
    assert '"universal-net" (2 + 2)' in text
    assert "universal" not in re.sub('"universal-net[^"]*"', "", text)


def test_a_negative_share_of_a_mixed_family_is_not_printed(tmp_path: Path) -> None:
    """Networks of a1 share something with b, and those of a2 nothing: members of a are less alike than a and b are."""
    world = World(120)
    common = world.normal()
    families = {"a1": world.family(common, depth=1), "a2": world.family(world.normal(), depth=1)}
    families["b"] = world.family(common, depth=1)
    by_hand = {"a": ["a1*", "a2*"]}
    study = conduct(tmp_path, world, families, by_hand=by_hand)
    shares = study["mean_share"].sel(state="trained")
    assert float(shares.sel(share_of="family")) < -0.01
    text = sentence(study, "Shares of the energy of trained")
    assert "family -" not in text
    assert f" + family {float(shares.sel(share_of='universal_and_family')):.3f}, seed" in text
    assert text.endswith("(networks of one family are no more alike than those of different ones).")


def test_tight_classes_are_not_warned_of_as_near_duplicates(tmp_path: Path) -> None:
    world = World(200)
    labels = np.arange(200) % 40
    by_class = 8 * np.eye(40)[labels]
    common = 0.3 * world.normal()
    families = {name: world.family(common, by_class, depth=1) for name in "ab"}
    study = conduct(tmp_path, world, families, untrained=3, stored={"labels": labels})
    assert "nearly the same" not in study.attrs["warnings"]
    assert "declared as groups" not in " ".join(reasons(study).values())
    assert json.loads(study.attrs["warnings"])
