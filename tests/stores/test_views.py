"""Views of samples: pictures and their texts, or two texts of one table, are the same samples where ids agree."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import repsim
from repsim.errors import SampleMismatchError
from repsim.labels import LayerKey, SampleIds
from repsim.stores.alignment import AlignedView
from repsim.stores.pairing import pair
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore, is_other_view, open_store
from repsim.stores.writer import StoreWriter

IDS = tuple("abcdefgh")


class Maker:
    """Writer of stores with hashes, as the extraction makes them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack

    def __call__(
        self, name: str, modality: str, column: str, words: Sequence[str] = IDS, ids: Sequence[str] = IDS
    ) -> ActivationStore:
        hashes = b"".join(hashlib.sha256(f"{column}{word}".encode()).digest()[:8] for word in words)
        kind = "files" if modality == "image" else "values"
        sizes = hashlib.sha256(f"{column}{words}".encode()).hexdigest()
        record = {"extractor": "x", "modality": modality} | ({"column": column} if column else {})
        spec = ArraySpec(LayerKey(name, "out", "mean"), (4,))
        data = f"pairs.jsonl [{column}]" if column else "photos/"
        contents = Contents((spec,), SampleIds(tuple(ids), sizes, hashes, kind), data, record)
        path = self.folder / f"{name}.h5"
        with StoreWriter(path, contents) as writer:
            values = np.random.default_rng(len(name)).normal(size=(len(ids), 4)).astype(np.float32)
            writer.write(spec.key, slice(None), values)
            writer.mark_done(slice(None))
        return self.stack.enter_context(open_store(path))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    with ExitStack() as stack:
        yield Maker(tmp_path, stack)


def test_pictures_and_texts_of_equal_ids_are_the_same_samples(make: Maker) -> None:
    pictures, texts = make("vision", "image", "image"), make("language", "text", "caption")
    view = AlignedView(pictures, texts)
    assert " ".join(view.notes) == (
        "samples are matched by their ids alone across vision.h5 (pictures of pairs.jsonl [image]) and language.h5 "
        "(texts of pairs.jsonl [caption]); not checked: whether what has the same id belongs together"
    )
    result = repsim.compare(pictures, texts, "cka")
    assert result["data"].item() == view.data == "pairs.jsonl [image] and pairs.jsonl [caption]"
    assert np.isfinite(result["cka"].values).all()


def test_two_columns_of_texts_are_two_views(make: Maker) -> None:
    captions, titles = make("captions", "text", "caption"), make("titles", "text", "title")
    assert is_other_view(captions, titles)
    (note,) = AlignedView(captions, titles).notes
    assert "captions.h5 (texts of pairs.jsonl [caption]) and titles.h5 (texts of pairs.jsonl [title])" in note


@pytest.mark.parametrize(
    ("modality", "column", "words"),
    [("text", "caption", "other contents"), ("image", "", "other pictures"), ("image", "image", "other pictures")],
)
def test_other_samples_of_one_view_are_refused(make: Maker, modality: str, column: str, words: str) -> None:
    """Also beside a store of another view, whichever store comes first."""
    first, second = make("first", modality, column), make("second", modality, column, IDS[::-1])
    other = make("other", "tensor", "array")
    for stores in ((first, second), (other, first, second), (first, other, second)):
        with pytest.raises(SampleMismatchError, match=f"{words} behind the same names, the first: a \\(8 of 8\\)"):
            AlignedView(*stores)


def test_ids_decide_across_views(make: Maker) -> None:
    pictures, texts = make("vision", "image", "image"), make("language", "text", "caption", ids=IDS[::-1])
    with pytest.raises(SampleMismatchError, match="the same 8 in another order"):
        AlignedView(pictures, texts)
    paired = pair([pictures, texts], "id")
    assert paired.other_contents is None  # a picture cannot be compared with a text
    assert paired.notes == ["samples are paired by their ids: 8 pairs"]
    assert pair([texts, make("short", "text", "title")], "id").notes == [
        "samples are paired by their ids: 8 pairs; the two texts differ in 8 of them"
    ]


def test_a_store_of_unknown_modality_is_no_other_view(make: Maker, tmp_path: Path) -> None:
    pictures = make("vision", "image", "")
    unknown = repsim.write_store(tmp_path / "mine.h5", {"out": np.ones((8, 2))}, model="mine", sample_ids=IDS)
    assert not is_other_view(pictures, unknown)
    assert AlignedView(pictures, unknown).notes == [
        (
            "not checked: whether sample ids name the same pictures in all stores; there are no hashes of the "
            "pictures in mine.h5; extract again to add them"
        )
    ]
