"""Sentences before a study: which claims its networks allow, and which networks to add."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
        (TRAINED, "cnn x vit: without untrained networks of cnn, vit the pairs of models with it are not held"),
        (TRAINED + UNTRAINED[:2], "cnn x vit: without untrained networks of vit the pairs"),
        (
            TRAINED[::2] + UNTRAINED[::2],
            "cannot give less than p = 0.250. For a claim about architectures, take at least two trained and three",
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
    assert "The input of cnn.seed0, vit.seed0 is not stored: nothing can be claimed of them." in text
    assert "There are no class labels" in text
    assert "take more" not in text
    assert "Family cnn: cnn (1 trained, 0 untrained)." in text
