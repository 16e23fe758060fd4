"""Data sets of Hugging Face: in memory, saved to disk, streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from repsim.errors import InvalidInputError, RepsimError, SampleError, UnknownNameError
from repsim.extractors.samples.opening import open_images, open_samples
from repsim.testing.examples import write_pictures
from tests.extractors.samples.source_contract import check_one_change, check_source, digests

N = 6


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make(folder: Path, texts: list[str] | None = None) -> Any:
    """Make a data set with a column of every kind; each picture has two captions."""
    write_pictures(folder / "photos", [f"{k}.png" for k in range(N // 2)])
    features = datasets.Features({
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "vector": datasets.Sequence(datasets.Value("float32")),
        "matrix": datasets.Array2D((2, 3), "float64"),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "n": datasets.Value("int32"),
    })  # fmt: skip
    return datasets.Dataset.from_dict(
        {
            "image": [str(folder / "photos" / f"{k // 2}.png") for k in range(N)],
            "text": texts or [f"caption {k}" for k in range(N)],
            "vector": [[k, 0.1] for k in range(N)],
            "matrix": np.arange(6.0 * N).reshape(N, 2, 3).tolist(),
            "kind": [k % 2 for k in range(N)],
            "n": list(range(N)),
        },
        features=features,
    )


@pytest.mark.slow
@pytest.mark.parametrize("saved", [True, False])
def test_features_decide_what_is_read(tmp_path: Path, *, saved: bool) -> None:
    data = make(tmp_path)
    if saved:
        data.save_to_disk(str(tmp_path / "saved"))
        data = tmp_path / "saved"
    name = "saved" if saved else "Dataset"
    pixels = [np.asarray(Image.open(tmp_path / "photos" / f"{k // 2}.png")) for k in range(N)]
    expected: dict[str, tuple[str, list[Any]]] = {
        "image": ("image", pixels),
        "text": ("text", [f"caption {k}" for k in range(N)]),
        "vector": ("tensor", [np.array([k, 0.1], np.float32) for k in range(N)]),
        "matrix": ("tensor", list(np.arange(6.0 * N).reshape(N, 2, 3))),
        "n": ("tensor", list(range(N))),
    }
    for column, (modality, samples) in expected.items():
        source = open_samples(data, column=column)
        check_source(source, samples, [str(k) for k in range(N)])
        assert (source.name, source.modality) == (f"{name} [{column}]", modality)
        assert source.record == {"column": column, "ids_from": "positions"}
        assert source.labels is not None
        assert source.groups is not None
        assert (source.labels.tolist(), list(source.classes)) == ([0, 1] * 3, ["cat", "dog"])
        assert source.groups.tolist() == [0, 0, 1, 1, 2, 2]
        assert source.notes[0].startswith(f"{name}: labels are those of the column kind")
    assert str(open_samples(data, column="vector").load(0).dtype) == "torch.float32"
    assert digests(open_samples(data, column="image"))[::2] == digests(open_images(str(tmp_path / "photos")))
    with pytest.raises(SampleError, match=r"has 2 columns that can be read: image \(pictures\), text \(texts\)"):
        open_samples(data)
    with pytest.raises(SampleError, match=r"the column kind of .* takes one of: image, text, vector, matrix, n"):
        open_samples(data, column="kind")


def test_one_changed_cell_changes_one_hash(tmp_path: Path) -> None:
    before = digests(open_samples(make(tmp_path), column="text"))
    texts = [f"caption {k}" for k in range(N)]
    texts[4] = "another"
    check_one_change(before, digests(open_samples(make(tmp_path, texts), column="text")), 4)


def test_splits(tmp_path: Path) -> None:
    data = make(tmp_path).select_columns(["text", "n"])
    datasets.DatasetDict(train=data, test=data.select([3, 4])).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(SampleError, match="two has the splits train, test; choose one with split=NAME"):
        open_samples(tmp_path / "two")
    with pytest.raises(UnknownNameError, match=r"unknown split 'tset'; did you mean test\? \(of two\)"):
        open_samples(tmp_path / "two", split="tset")
    test = open_samples(tmp_path / "two", split="test")
    check_source(test, ["caption 3", "caption 4"], ["0", "1"])
    assert test.name == "two [test] [text]"
    assert list(test.notes) == ["two [test]: the column text is read (beside n)"]
    only = open_samples(datasets.DatasetDict(train=data), column="n", id_column="text")
    assert only.ids[2] == "caption 2"
    assert only.notes[0].endswith("the split train is read, the only one")
    with pytest.raises(RepsimError, match="split does not apply to Dataset"):
        open_samples(data, split="train")


@pytest.mark.parametrize(
    ("column", "modality"), [("text", "text"), ("image", "image"), (None, "other"), ("vector", "other")]
)
def test_streams(tmp_path: Path, column: str | None, modality: str) -> None:
    stream = make(tmp_path).to_iterable_dataset()
    source = open_samples(stream, column=column, ids=[f"s{k}" for k in range(N)])
    assert (source.modality, source.indexable, len(source)) == (modality, False, N)
    rows = list(stream)
    read = dict(source.read([0, 3]))
    for row, sample in read.items():
        if column == "image":
            assert np.array_equal(np.asarray(sample), np.asarray(rows[row]["image"]))
        else:
            assert sample == (rows[row][column] if column else rows[row])
    if column == "text":
        check_source(source, [f"caption {k}" for k in range(N)], [f"s{k}" for k in range(N)])


def test_what_streams_refuse(tmp_path: Path) -> None:
    stream = make(tmp_path).to_iterable_dataset()
    with pytest.raises(UnknownNameError, match="unknown column 'txt'"):
        open_samples(stream, column="txt")
    with pytest.raises(InvalidInputError, match="id_column does not apply to .*, which is streamed; give ids"):
        open_samples(stream, column="text", id_column="n")


def test_lists_of_different_lengths(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0]]})
    with pytest.raises(
        SampleError, match=r"row 1 of the column x of Dataset has the shape \(1,\), and the first has \(2,\)"
    ):
        open_samples(data).load(1)


def test_rows_of_a_transform_are_items(tmp_path: Path) -> None:
    data = make(tmp_path).select_columns(["n"]).with_transform(lambda rows: {"n": [2 * n for n in rows["n"]]})
    source = open_samples(data)
    assert source.load(2) == {"n": 4}
    with pytest.raises(InvalidInputError, match="column does not apply to .*, whose rows a function transforms"):
        open_samples(data, column="n")


def test_a_damaged_folder(tmp_path: Path) -> None:
    make(tmp_path).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(SampleError, match="cannot read the data set in saved"):
        open_samples(tmp_path / "saved")
