"""Studies of picture and text networks: relations, families, and what is said across modalities."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim.errors import InvalidInputError
from repsim.report.payload import payload
from repsim.results.files import open_study, save_result
from repsim.stores.store import ActivationStore
from repsim.study import reading, tables, words
from repsim.study.design import Design, design
from repsim.study.universality import universality
from repsim.testing.examples import append_features, unrelated_layers, write_network

MODALITIES = {"cnn": "image", "vit": "image", "bert": "text"}
N = 40


def write(folder: Path, families: dict[str, str], *, architecture: str = "", **options: Any) -> list[ActivationStore]:
    """Write two trained and two untrained networks of each family; trained ones share features."""
    rng = np.random.default_rng(5)
    common, pixels = rng.normal(size=(N, 5)), rng.normal(size=(N, 3, 2, 2))
    stores = []
    for family, modality in families.items():
        weight = 1.4 if modality == "image" else 0.6  # pairs of modalities are less alike than those within one
        record = {"modality": modality, "column": modality, "architecture": architecture or family}
        for k in range(2):
            for name, learned in ((f"{family}.seed{k}", 1.0), (f"{family}+random-seed{k}", 0.0)):
                layers = append_features(unrelated_layers(rng, N, 4, 4), learned * weight * common)
                store = write_network(
                    folder,
                    name,
                    layers,
                    pixels=pixels,
                    source=f"pairs.jsonl [{modality}]",
                    provenance=record,
                    **options,
                )
                stores.append(store)
    return stores


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[xr.Dataset]:
    with ExitStack() as stack:
        stores = write(tmp_path_factory.mktemp("stores"), MODALITIES)
        yield universality([stack.enter_context(store) for store in stores], ["cka"], permutations=19, draws=20)


def decided(study: xr.Dataset, **levels: str) -> xr.Dataset:
    """Return the study with a level of claim for each pair of families, ``cnn_vit="networks"``; others have none."""
    changed = study.copy()
    names = study["families"].values.tolist()
    level = [levels.get(name.replace(" x ", "_"), "") for name in names]
    changed["claim_level"] = ("families", np.array(level, dtype="U13"))
    changed["claim_reason"] = ("families", ["" if one == "architectures" else "too few networks" for one in level])
    return changed


def test_relations_tell_modality_and_family_apart(study: xr.Dataset) -> None:
    families = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    for a, b, relation in zip(*(study[name].values.tolist() for name in ("pair_a", "pair_b", "relation")), strict=True):
        one, other = families[a], families[b]
        expected = (
            "same architecture" if one == other
            else "other family" if MODALITIES[one] == MODALITIES[other]
            else "other modality"
        )  # fmt: skip
        assert relation == expected
    assert study["kind_of_pair"].values.tolist() == [
        "other family",
        "same family",
        "same architecture",
        "other modality",
    ]
    assert study["modality"].values.tolist() == ["image"] * 4 + ["text"] * 2
    assert study["data"].item() == "pairs.jsonl [image] and pairs.jsonl [text]"
    assert reading.modalities(study) == MODALITIES
    relations = list(dict.fromkeys(row[1] for row in tables.by_measure(study).rows))
    assert {text.partition(" (")[0] for text in relations} == {"same architecture", "other family", "other modality"}


def test_means_are_those_of_their_pairs(study: xr.Dataset) -> None:
    halves = study["split_half"].sel(measure="cka").values
    for relation in ("other family", "other modality"):
        value, *_ = reading.means_over_pairs(study, "index", "cka", relation)
        np.testing.assert_allclose(value, halves[study["relation"].values == relation].mean())


def test_what_is_common_to_families_counts_all_modalities(study: xr.Dataset) -> None:
    """The share of all families is the similarity of all pairs of different families."""
    across = np.isin(study["relation"].values, ["other family", "other modality"])
    energy = study["energy"].sel(measure="cka given input").values
    within = energy[study["relation"].values == "other family"].mean()
    share = float(study["mean_share"].sel(state="trained", share_of="universal"))
    assert share == pytest.approx(energy[across].mean(), abs=0.03)
    assert within - share > 0.1


def test_a_study_is_read_back(study: xr.Dataset, tmp_path: Path) -> None:
    save_result(study, tmp_path / "study.nc")
    assert words.summary(open_study(tmp_path / "study.nc")) == json.loads(study.attrs["summary"])


def test_sentences_name_the_modalities(study: xr.Dataset) -> None:
    summary = words.summary(study)
    assert [text[:60] for text in summary if text.startswith("Across")] == [
        "Across families of one modality, matching layers have a debi",
        "Across modalities (picture networks and text networks), matc",
    ]
    assert any("matched by their ids alone" in text for text in json.loads(study.attrs["warnings"]))


def test_nothing_is_claimed_across_modalities_by_pairs_of_one(study: xr.Dataset) -> None:
    for level, text in (("architectures", "universal across picture networks (cnn, vit)"),
                        ("networks", "Those of cnn and vit (picture networks) are")):  # fmt: skip
        (sentence,) = [one for one in words.summary(decided(study, cnn_vit=level)) if text in one]
        assert sentence.endswith("Nothing follows from this across modalities.")
        assert not re.search("across modalities,", sentence)
        (refused,) = [one for one in words.summary(decided(study, cnn_vit=level)) if one.startswith("Nothing learned")]
        assert "cnn x bert (across modalities), vit x bert (across modalities)" in refused


def test_one_pair_of_two_modalities_is_a_claim_across_them(study: xr.Dataset) -> None:
    summary = words.summary(decided(study, cnn_bert="architectures"))
    (sentence,) = [text for text in summary if "is universal" in text]
    assert (
        "universal across modalities, picture networks (cnn) and text networks (bert): networks of cnn and" in sentence
    )
    assert "Nothing follows" not in sentence
    every = decided(study, **{f"{a}_{b}": "architectures" for a, b in combinations(MODALITIES, 2)})
    (sentence,) = [text for text in words.summary(every) if "is universal" in text]
    assert "universal across modalities, picture networks (cnn, vit) and text networks (bert): " in sentence
    assert reading.verdict(every)
    assert not reading.verdict(decided(study, cnn_vit="architectures", cnn_bert="architectures"))


def test_the_page_shows_both_kinds_of_pairs(study: xr.Dataset) -> None:
    (part,) = payload([study])["parts"]
    labels = [tile["label"] for tile in part["tiles"]]
    assert "Debiased CKA of matching layers, across modalities" in labels
    assert "The same in the strongest control, across families of one modality, given input" in labels
    assert part["relations"] == ["other modality", "other family", "same architecture"]
    places = [part["coords"]["kind_of_pair"].index(relation) for relation in part["relations"]]
    assert places == [3, 0, 2]  # of their colours: those of a study of one modality stay
    assert part["networks"]["columns"][3] == "Modality"


def built(folder: Path, *args: Any, **options: Any) -> Design:
    with ExitStack() as stack:
        stores = [stack.enter_context(store) for store in write(folder, *args)]
        return design(stores, **options)


def test_families_that_mix_modalities_are_refused(tmp_path: Path) -> None:
    message = "family 'all': cnn.seed0 reads pictures and bert.seed0 reads texts; networks of different modalities"
    with pytest.raises(InvalidInputError, match=message):
        built(tmp_path, MODALITIES, families={"all": ["*"]})


def test_two_towers_of_one_architecture_are_no_twins(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stores = write(tmp_path, {"see": "image", "read": "text"}, architecture="clip-base")
        for store in stores:
            stack.enter_context(store)
        made = design(stores)
        assert {member.name.partition(".")[0]: member.family for member in made.trained} == {
            "see": "clip-base (pictures)",
            "read": "clip-base (texts)",
        }
        for member in made.trained:
            assert [twin.modality for twin in made.twins_of(member)] == [member.modality] * 2
        assert {pair.relation for pair in made.pairs} == {"other modality", "same architecture"}


@pytest.mark.slow
def test_a_study_of_texts_alone_has_the_relations_and_words_of_any_study(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stores = write(tmp_path, {"bert": "text", "gpt": "text"})
        for store in stores:
            stack.enter_context(store)
        study = universality(stores, ["cka"], permutations=19, draws=20)
        assert study["kind_of_pair"].values.tolist() == ["other family", "same family", "same architecture"]
        text = " ".join([*words.summary(study), *json.loads(study.attrs["warnings"])])
        assert "modalit" not in text
        assert "picture" not in text
        assert "pixels" not in text
