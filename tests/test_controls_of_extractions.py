"""Controls of texts in stores of real extractions, and in the study of them."""

from pathlib import Path

import numpy as np
import transformers

import repsim
from repsim.extractors.text_controls import bag_of_characters, text_statistics
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
        np.testing.assert_allclose(store.control("input", "embeddings"), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(store.control("input", "characters"), bag_of_characters(TEXTS))
        assert store.statistics is not None
        assert store.statistic_names[0] == "length: characters"
        np.testing.assert_allclose(store.statistics[:, :13], text_statistics(TEXTS), rtol=1e-6)
