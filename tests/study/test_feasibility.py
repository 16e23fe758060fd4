"""Sentences before a study: which claims its networks allow, and which networks to add."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from repsim.stores.writer import write_store
from repsim.study.feasibility import explain_study
from repsim.testing.examples import TRAINED, UNTRAINED, write_networks

MORE = ("cnn+random-seed2", "vit+random-seed2")


def explained(folder: Path, models: tuple[str, ...], n: int = 20, **options: Any) -> str:
    with ExitStack() as stack:
        rng = np.random.default_rng(0)
        stores = write_networks(folder, rng, n, learned=1, seen=1, models=models, depth=2, **options)
        return "\n".join(explain_study([stack.enter_context(store) for store in stores]))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (TRAINED[:2], "With one family nothing can be said across families: add networks of another one."),
        (TRAINED, "cnn x vit: nothing can be claimed: without untrained networks there is no control; add three"),
        (
            TRAINED + UNTRAINED[:2],
            "there is no control; add three untrained networks of vit (controls untrained:3).",
        ),
        (
            TRAINED[::2] + UNTRAINED[::2],
            ("without a second trained and a second untrained network of cnn, vit there is no interval over networks, "
            "and the exact test over networks cannot give less than p = 0.250. For a claim about architectures, take "
            "at least two trained and three untrained ones of cnn, vit."),
        ),
        (TRAINED[:3] + UNTRAINED, "cannot give less than p = 0.056"),  # 6 x 3 choices
        (
            TRAINED + UNTRAINED,
            "about these architectures; the smallest p of the exact test over networks is 0.028.",
        ),
        (TRAINED + UNTRAINED + MORE, "the smallest p of the exact test over networks is 0.010."),
    ],
)  # fmt: skip
def test_what_can_be_claimed(models: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    text = explained(tmp_path, models)
    assert sentence in text
    assert "20 samples: intervals are tested from 200 samples on; take more." in text


def test_what_is_lacking(tmp_path: Path) -> None:
    text = explained(tmp_path, TRAINED[::2], 200, pixels=None, labels=None)
    assert "No store holds the input of its network: nothing can be claimed." in text
    assert "beyond classes: there are no class labels." in text
    assert "Near duplicates (frames of a scene, copies, crops) are looked for by the study." in text
    assert "take more" not in text
    assert "Family cnn: cnn (1 trained, 0 untrained)." in text


def explained_networks(folder: Path, *stores: tuple[str, str, int, dict[str, Any]], **options: Any) -> list[str]:
    """Explain networks (architecture, weights, their number, options of the store); they are not computed with."""
    rng, pixels = np.random.default_rng(0), np.ones((200, 3))
    with ExitStack() as stack:
        written = [
            stack.enter_context(
                write_store(
                    folder / f"{architecture}.{weights}{k}.h5", {"layer": rng.normal(size=(200, 2))},
                    model=f"{architecture}.{weights}{k}", provenance={"architecture": architecture, "weights": weights},
                    **({"pixels": pixels} | stored),
                )
            )
            for architecture, weights, count, stored in stores
            for k in range(count)
        ]  # fmt: skip
        return explain_study(written, **options)


def networks(names: str, trained: int, untrained: int) -> list[tuple[str, str, int, dict[str, Any]]]:
    return [(name, *state, {}) for name in names for state in (("trained", trained), ("random", untrained))]


def starting(sentences: list[str], start: str) -> str:
    (match,) = [text for text in sentences if text.startswith(start)]
    return match


def test_one_trained_network_has_no_interval_over_networks(tmp_path: Path) -> None:
    """With one trained and six untrained networks the exact test can reach 1/49: it is not the reason."""
    text = starting(explained_networks(tmp_path, *networks("ab", 1, 6)), "a x b")
    assert text == (
        "a x b: a claim can be about these networks only, on samples like these: without a second trained and a second "
        "untrained network of a, b there is no interval over networks. For a claim about architectures, take at least "
        "two trained and three untrained ones of a, b."
    )


@pytest.mark.parametrize(
    ("families", "trained", "untrained", "expected"),
    [
        ("abcd", 2, 3, ("other pairs of families hold, too; the smallest p of the exact test over networks is 0.010, "
         "and 0.060 adjusted for 6 pairs of families if only one of them holds. For a claim about a single pair, take "
         "3 trained and 3 untrained networks of every architecture.")),
        ("abc", 2, 3, ("a claim can be about these architectures; the smallest p of the exact test over networks is "
         "0.010, and 0.030 adjusted for 3 pairs of families if only one of them holds.")),
        ("ab", 2, 3, ("a claim can be about these architectures; the smallest p of the exact test over networks is "
         "0.010.")),
    ],
)  # fmt: skip
def test_what_is_possible_if_only_one_pair_of_families_holds(
    tmp_path: Path, families: str, trained: int, untrained: int, expected: str
) -> None:
    """Hommel's method multiplies the p-value of a single pair by the number of pairs."""
    sentences = explained_networks(tmp_path, *networks(families, trained, untrained))
    text = starting(sentences, "a x b")  # one sentence for all pairs
    assert text.endswith(expected)
    assert ("a x c" in text) == (len(families) > 2)


def test_pairs_without_controls_or_intervals_are_not_adjusted_for(tmp_path: Path) -> None:
    sentences = explained_networks(tmp_path, *networks("abc", 2, 3), *networks("d", 2, 0), *networks("e", 1, 3))
    assert "adjusted for 3 pairs of families" in starting(sentences, "a x b")
    assert starting(sentences, "a x d") == (
        "a x d, b x d, c x d, d x e: nothing can be claimed: without untrained networks there is no control; add three "
        "untrained networks of d (controls untrained:3)."
    )


def test_partly_lacking_untrained_networks(tmp_path: Path) -> None:
    """Networks of a and b can be claimed; those of c, of the family of a, cannot."""
    sentences = explained_networks(
        tmp_path, *networks("ab", 3, 3), *networks("c", 3, 0), families={"first": ["a.*", "c.*"], "second": ["b.*"]}
    )
    assert starting(sentences, "first x second") == (
        "first x second: a claim can be about networks of a, b only, on samples like these: those of c have no "
        "control; add three untrained networks of c (controls untrained:3)."
    )


def test_families_that_share_untrained_networks(tmp_path: Path) -> None:
    by_hand = {"first": ["a.trained0", "a.trained1"], "second": ["a.trained2", "a.trained3"]}
    sentences = explained_networks(tmp_path, *networks("a", 4, 4), families=by_hand)
    assert "only, on samples like these: the untrained networks of a are those of both families." in starting(
        sentences, "first x second"
    )


def test_the_smallest_p_is_that_of_the_worst_pair_of_architectures(tmp_path: Path) -> None:
    """Every architecture of a family has to hold: a with b can reach 1/100, and c with b 1/60."""
    sentences = explained_networks(
        tmp_path, *networks("ab", 2, 3), *networks("c", 2, 2), families={"first": ["a.*", "c.*"], "second": ["b.*"]}
    )
    assert "the smallest p of the exact test over networks is 0.017." in starting(sentences, "first x second")


def test_input_that_is_partly_stored(tmp_path: Path) -> None:
    without: dict[str, Any] = {"pixels": None}
    (tmp_path / "one").mkdir()
    sentences = explained_networks(
        tmp_path / "one", *networks("a", 2, 2), ("b", "trained", 2, {}), ("b", "random", 2, without)
    )
    assert starting(sentences, "The input of") == (
        "The input of b.random0, b.random1 is not stored; it is taken to be that of the other networks."
    )
    sentences = explained_networks(
        tmp_path, *networks("a", 2, 2), ("b", "trained", 2, without), ("b", "random", 2, without)
    )
    assert starting(sentences, "The input of") == (
        "The input of b.trained0, b.trained1 is not stored: nothing can be claimed of them. Extract them again, or "
        "write them with their input."
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            np.arange(200),
            "It cannot be said whether anything goes beyond classes: every sample is of a class of its own.",
        ),
        (
            np.arange(200) % 198,
            "It cannot be told whether anything goes beyond the classes, so nothing can be claimed: ",
        ),
    ],
)
def test_labels_that_are_hardly_classes(tmp_path: Path, labels: NDArray[np.int64], expected: str) -> None:
    stores = [(name, state, 2, {"labels": labels}) for name in "ab" for state in ("trained", "random")]
    sentences = explained_networks(tmp_path, *stores)
    assert starting(sentences, expected)
    assert not any("no class labels" in text for text in sentences)
