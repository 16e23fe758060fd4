"""Controls of texts in stores of real extractions, and in the study of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import repsim
from repsim.errors import InvalidInputError
from repsim.extractors import Stream, open_samples
from repsim.extractors.factory import make_extractor
from repsim.extractors.loading import stream_together
from repsim.extractors.text_controls import bag_of_characters, text_statistics
from repsim.labels import EMBEDDINGS, TOKENS
from repsim.study.design import design
from repsim.study.untrained_networks import extract_untrained
from repsim.testing.examples import write_pictures
from tests.small_transformers import TEXTS, make_folder


def test_each_network_has_its_own_embeddings(tmp_path: Path) -> None:
    """Two networks with the same tokenizer read the same batches: the embeddings are nevertheless their own."""
    names = [f"hf/{make_folder(tmp_path / name, 'bert', seed=seed)}" for seed, name in enumerate(("one", "two"))]
    stores = repsim.extract(names, list(TEXTS), tmp_path / "acts", batch_size=3, progress=False)
    models = list(stores)
    digits, embeddings = (
        [np.asarray(store.control("input", name)) for store in models] for name in ("tokens", "embeddings")
    )
    np.testing.assert_array_equal(digits[0], digits[1])
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.1
    ids = np.where(digits[0][:, 0] < 0, -1, 2048 * digits[0][:, 0] + digits[0][:, 1]).astype(int)
    assert [int((row >= 0).sum()) for row in ids] == [len(text.split()) for text in TEXTS]
    assert len({int(row[0]) for row in ids[:2]}) == 1  # both texts begin with "the"
    for store, name in zip(models, ("one", "two"), strict=True):
        table = transformers.AutoModel.from_pretrained(tmp_path / name).get_input_embeddings().weight.detach().numpy()
        every = [np.r_[2, row[row >= 0], 3] for row in ids]  # with the class token and the end
        expected = np.stack([table[row].mean(0) for row in every])
        np.testing.assert_allclose(np.asarray(store.control("input", "embeddings")), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(store.control("input", "characters"), bag_of_characters(TEXTS))
        assert store.statistics is not None
        assert store.statistic_names[0] == "length: characters"
        np.testing.assert_allclose(store.statistics[:, :13], text_statistics(TEXTS), rtol=1e-6)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Return a table of pictures and texts, whose ids are in a column of their own name."""
    write_pictures(tmp_path / "pictures", [f"{k}.png" for k in range(16)], size=(32, 32))
    rows = [
        {"name": f"s{k}", "picture": f"pictures/{k}.png", "caption": f"{TEXTS[k % 8]} {TEXTS[k // 8]}"}
        for k in range(16)
    ]
    table = tmp_path / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    return table


def extracted(folder: Path, table: Path, kind: str, column: str, **options: Any) -> Any:
    path = make_folder(folder / kind, kind) if not (folder / kind).exists() else folder / kind
    (store,) = repsim.extract(
        [f"hf/{path}"],
        str(table),
        folder / f"acts-{column}",
        column=column,
        id_column="name",
        progress=False,
        **options,
    )
    return store


@pytest.mark.slow
def test_untrained_twins_of_pictures_and_texts_read_their_columns(tmp_path: Path, pairs: Path) -> None:
    """One table serves both; twins see its samples, and have equal layers, other weights and own controls."""
    stores = [
        extracted(tmp_path, pairs, "bert", "caption", max_length=12),
        extracted(tmp_path, pairs, "vit", "picture"),
    ]
    study = design(stores)
    twins = extract_untrained(study, 2, tmp_path / "twins", data=str(pairs))
    assert [twin.provenance["column"] for twin in twins] == ["caption", "caption", "picture", "picture"]
    assert [twin.provenance["weights"] for twin in twins] == ["random"] * 4
    assert twins[0].provenance["max_length"] == 12
    both = design([*stores, *twins])
    for member in both.trained:
        assert len(both.twins_of(member)) == 2
        for twin in both.twins_of(member):
            assert twin.blocks == member.blocks
            assert twin.store.sample_ids.difference(member.store.sample_ids) is None
    np.testing.assert_array_equal(
        stores[0].control("input", "tokens"),
        twins[1].control("input", "tokens"),  # the same tokenizer
    )
    embeddings = [np.asarray(twin.control("input", "embeddings")) for twin in twins[:2]]
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3
    again = extract_untrained(study, 2, tmp_path / "twins", data=str(pairs))
    assert [twin.checksum for twin in again] == [twin.checksum for twin in twins]


def test_the_recorded_table_is_found_again(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = extracted(tmp_path, pairs, "bert", "caption")
    monkeypatch.chdir(tmp_path)
    (twin,) = extract_untrained(design([store]), 1, tmp_path / "twins")
    assert twin.provenance["column"] == "caption"
    monkeypatch.chdir(tmp_path / "pictures")
    with pytest.raises(InvalidInputError, match=r"was made from pairs\.jsonl \[caption\], and"):
        extract_untrained(design([store]), 1, tmp_path / "others")


def test_other_texts_of_the_same_names_are_refused(tmp_path: Path, pairs: Path) -> None:
    store = extracted(tmp_path, pairs, "bert", "caption")
    pairs.write_text(pairs.read_text().replace("dog", "cat"))
    with pytest.raises(InvalidInputError, match="the same names as those of .*, but other contents"):
        extract_untrained(design([store]), 1, tmp_path / "twins", data=str(pairs))
    assert not (tmp_path / "twins").exists()


@pytest.mark.slow
def test_a_study_of_pictures_and_texts_controls_for_both_inputs(tmp_path: Path, pairs: Path) -> None:
    stores = [extracted(tmp_path, pairs, "bert", "caption"), extracted(tmp_path, pairs, "vit", "picture")]
    study = repsim.universality(
        stores, ["cka"], controls="untrained:2", controls_folder=tmp_path / "twins", data=str(pairs), permutations=19,
        draws=20, progress=False,
    )  # fmt: skip
    controls = json.loads(study.attrs["input_controls"])
    for name in ("pixels", "shares of the tokens", "characters", "static embeddings", "statistics of the text"):
        assert any(name in control for control in controls)
    assert "not stored" not in study.attrs["warnings"]
    assert not any("not stored" in reason for reason in study["claim_reason"].values.tolist())


def test_models_that_share_a_batch_read_their_own_embeddings(tmp_path: Path) -> None:
    extractors = [
        make_extractor(f"hf/{make_folder(tmp_path / str(seed), 'bert', seed=seed)}", samples=open_samples(list(TEXTS)))
        for seed in range(2)
    ]
    rows = [list(range(len(TEXTS)))] * 2
    values: dict[int, Any] = {}
    for k, batch in stream_together(extractors, open_samples(list(TEXTS)), rows, Stream(batch_size=8)):  # type: ignore[arg-type]
        values[k] = batch.values
    tokens, embeddings = ([values[k][key].numpy() for k in range(2)] for key in (TOKENS, EMBEDDINGS))
    np.testing.assert_array_equal(*tokens)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.1
