"""Tables: CSV, tab-separated, JSON lines and parquet; pairs of pictures and texts."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repsim.errors import ImageError, InvalidInputError, RepsimError, SampleError, UnknownNameError
from repsim.extractors.samples.opening import examine, open_images, open_samples
from repsim.testing.examples import write_pictures
from tests.extractors.samples.source_contract import check_one_change, check_source, digests

KINDS = ("csv", "tsv", "jsonl", "parquet")
ROWS: list[dict[str, Any]] = [
    {
        "key": f"k{k}",
        "picture": f"photos/{k // 2}.png",
        "caption": f'the "{k}", a\nthing',
        "scene": "ab"[k // 3],
        "weight": k / 4,
        "class": k % 2,
    }
    for k in range(6)
]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a table by the suffix of the file."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=4)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_have_the_same_ids_labels_and_groups(tmp_path: Path, kind: str) -> None:
    """Two columns of one table are two sources of the same samples; captions of one picture are a group."""
    write_pictures(tmp_path / "photos", ["0.png", "1.png", "2.png"])
    path = write_table(tmp_path / f"pairs.{kind}", ROWS)
    ids = [row["key"] for row in ROWS]
    pictures = open_samples(path, column="picture")
    check_source(pictures, [pixels(tmp_path / row["picture"]) for row in ROWS], ids)
    texts = open_samples(path, column="caption")
    check_source(texts, [row["caption"] for row in ROWS], ids)
    assert (pictures.name, texts.name) == (f"pairs.{kind} [picture]", f"pairs.{kind} [caption]")
    assert (pictures.modality, texts.modality) == ("image", "text")
    for source, column in ((pictures, "picture"), (texts, "caption")):
        assert source.record == {"column": column, "ids_from": "column key"}
        assert source.labels is not None
        assert source.groups is not None
        assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert source.label_record == {"source": "column", "column": "class"}
        assert source.groups.tolist() == [0, 0, 1, 1, 2, 2]
        assert source.group_record == {"source": "pictures that repeat", "column": "picture"}
        assert list(source.notes) == [
            f"pairs.{kind}: labels are those of the column class; label_column=NAME takes another",
            (
                f"pairs.{kind}: groups are the 3 pictures of the column picture, which repeat in 6 rows; "
                "group_column=NAME takes other groups"
            ),
        ]
    scenes = open_samples(path, column="caption", group_column="scene", label_column="scene", id_column="key")
    assert scenes.groups is not None
    assert (scenes.groups.tolist(), list(scenes.group_names)) == ([0, 0, 0, 1, 1, 1], ["a", "b"])
    assert (list(scenes.classes), list(scenes.notes)) == (["a", "b"], [])
    numbers = open_samples(path, column="weight")
    check_source(numbers, [row["weight"] for row in ROWS], ids)
    assert numbers.modality == "tensor"


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_cell_changes_one_hash(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path / "photos", ["0.png", "1.png", "2.png", "3.png"])
    rows = [dict(row) for row in ROWS]
    path = write_table(tmp_path / f"pairs.{kind}", rows)
    before = {column: digests(open_samples(path, column=column)) for column in ("picture", "caption", "weight")}
    assert before["picture"][0] == before["picture"][1] != before["picture"][2]
    rows[3] |= {"picture": "photos/3.png", "caption": "another", "weight": 9.0}
    write_table(path, rows)
    for column, hashes in before.items():
        check_one_change(hashes, digests(open_samples(path, column=column)), 3)


@pytest.mark.slow
def test_pictures_of_a_table_have_the_hashes_of_a_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", ["0.png", "1.png", "2.png"])
    rows = [{"image": f"photos/{k}.png"} for k in range(3)]
    by_path = open_samples(write_table(tmp_path / "a.csv", rows))
    inside = [{"image": {"bytes": (folder / f"{k}.png").read_bytes(), "path": None}} for k in range(3)]
    by_bytes = open_samples(write_table(tmp_path / "a.parquet", inside))
    alone = [{"image": (folder / f"{k}.png").read_bytes()} for k in range(3)]
    in_cells = open_samples(write_table(tmp_path / "b.parquet", alone))
    hashes = digests(open_images(str(folder)))
    for source in (by_path, by_bytes, in_cells):
        assert check_source(source, [pixels(folder / f"{k}.png") for k in range(3)], source.ids) == hashes
        assert (source.content_kind, source.groups) == ("files", None)
    assert list(by_path.notes) == ["a.csv: the column image is read"]
    assert list(by_path.ids) == ["2", "3", "4"]
    assert list(by_bytes.ids) == ["0", "1", "2"]


def test_bytes_of_pictures_that_repeat_are_groups_across_row_groups(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", ["0.png", "1.png"])
    data = [(folder / f"{k}.png").read_bytes() for k in (0, 1)]
    rows = [{"image": {"bytes": data[k % 2], "path": None}, "text": f"t{k}"} for k in range(10)]
    source = open_samples(write_table(tmp_path / "a.parquet", rows), column="text")
    assert source.groups is not None
    assert source.groups.tolist() == [0, 1] * 5


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_numbers_are_arrays(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [{"x": [k, 2 * k, 5]} for k in range(4)]
    source = open_samples(write_table(tmp_path / f"a.{kind}", rows))
    check_source(source, [row["x"] for row in rows], source.ids)
    assert str(source.load(0).dtype) == "torch.int64"
    rows[2]["x"] = [1.0]
    with pytest.raises(SampleError, match=r"no column of a\.\w+ holds pictures, texts or numbers alone: x; name the"):
        open_samples(write_table(tmp_path / f"a.{kind}", rows))
    with pytest.raises(SampleError, match=r"the column x of a\.\w+ cannot be read: .* numbers in equal shapes"):
        open_samples(tmp_path / f"a.{kind}", column="x")


def test_types_of_numbers(tmp_path: Path) -> None:
    """Parquet has types; numbers in texts become integers or float32."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    values = [[0.1, 0.2], [0.3, 0.4]]
    for dtype in ("float16", "float32", "float64"):
        kind = pa.list_({"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}[dtype])
        cells = pa.array([np.array(row, dtype) for row in values], kind)
        parquet.write_table(pa.table({"x": cells}), tmp_path / "a.parquet")
        sample = open_samples(tmp_path / "a.parquet").load(1)
        assert sample.numpy().tolist() == np.array(values[1], dtype).tolist()
        assert str(sample.dtype) == f"torch.{dtype}"
    (tmp_path / "a.csv").write_text("real,whole\n0.1,1\n0.2,2\n")
    real, whole = (open_samples(tmp_path / "a.csv", column=name).load(0) for name in ("real", "whole"))
    assert (str(real.dtype), str(whole.dtype), whole.item()) == ("torch.float32", "torch.int64", 1)
    assert real.item() == np.float32(0.1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv is empty"),
        ("a.csv", "text\n", r"a\.csv has no rows"),
        ("a.csv", "image,text\na.png,x\nb.png,y,z\n", r"a\.csv, line 3: 3 fields, and the first line names 2 columns"),
        ("a.csv", 'text,n\n"x\ny",1\n"z\n', r"a\.csv, line 4: unexpected end of data"),
        ("a.csv", "a.png,x\nb.png,y\n", r"a\.csv: the first line names the columns, but 'a\.png' is no name"),
        ("a.csv", "1,2\n3,4\n", r"a\.csv: the first line names the columns, but '1' is no name"),
        ("a.csv", "text,text\nx,y\n", r"a\.csv: a column has no name, or two have the same"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON: Expecting value"),
        ("a.jsonl", '"x"\n', r"a\.jsonl, line 1: a JSON object is expected, not a str"),
        ("a.jsonl", "\n", r"a\.jsonl is empty"),
        ("a.parquet", "PAR1", r"cannot read a\.parquet: "),
    ],
)
def test_malformed_tables_name_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SampleError, match=message):
        open_samples(tmp_path / name)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes(b"text\nx\n\xff\n")
        with pytest.raises(SampleError, match=rf"{name}, line 3: not text in UTF-8 \(byte 0xff\)"):
            open_samples(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"a": "x", "b": "y"}],
            {},
            r"t\.jsonl has 2 columns that can be read: a \(texts\), b \(texts\); name the column",
        ),
        ([{"text": "x"}], {"column": "txt"}, r"unknown column 'txt'; did you mean text\? \(t\.jsonl has text\)"),
        ([{"text": "x"}], {"id_column": "name"}, r"unknown column 'name'; known: text"),
        (
            [{"text": "x", "id": 1}, {"text": "y", "id": 1}],
            {},
            r"1 ids of the column id repeat: 1 \(1 in line 1, line 2\)",
        ),
        ([{"text": "x", "id": 1}, {"text": "y"}], {}, r"t\.jsonl, line 2: the id in the column id is none"),
        ([{"text": "x", "id": 1.5}], {}, r"the id in the column id is 1\.5"),
        ([{"text": "x", "c": 1}, {"text": "y"}], {"label_column": "c"}, r"line 2 has no class in the column c: None"),
        ([{"text": "x", "c": 0.5}], {"label_column": "c"}, r"labels are classes"),
        ([{"text": "x", "g": "a"}, {"text": "y"}], {"group_column": "g"}, r"line 2 has no group in the column g"),
        ([{"text": "x"}, {"text": 3}], {"column": "text"}, r"the column text of t\.jsonl cannot be read"),
        ([{"text": "x"}], {"labels": ["a"], "label_column": "text"}, "labels are given twice"),
        ([{"text": "x"}], {"ids": ["a"], "id_column": "text"}, "ids are given twice"),
        ([{"text": "x"}], {"split": "train"}, r"split does not apply to t\.jsonl"),
        ([{"text": "x"}], {"root": "data"}, r"root does not apply to t\.jsonl"),
    ],
)
def test_what_cannot_be_chosen(tmp_path: Path, rows: list[dict[str, Any]], options: Any, message: str) -> None:
    with pytest.raises(RepsimError, match=message) as raised:
        open_samples(write_table(tmp_path / "t.jsonl", rows), **options)
    assert isinstance(raised.value, SampleError | InvalidInputError | UnknownNameError)
    assert "\n" not in str(raised.value)


def test_numbers_that_are_written_as_texts(tmp_path: Path) -> None:
    """CSV has no types; JSON and parquet have."""
    rows = [{"text": "7"}, {"text": "12"}]
    kinds = {kind: open_samples(write_table(tmp_path / f"a.{kind}", rows)).modality for kind in KINDS}
    assert kinds == {"csv": "tensor", "tsv": "tensor", "jsonl": "text", "parquet": "text"}


def test_choices_are_said_and_recorded(tmp_path: Path) -> None:
    rows = [
        {"caption": "x", "height": 1.5, "ID": 7, "target": 0.5},
        {"caption": "y", "height": 2.0, "ID": 9, "target": 1},
    ]
    source = open_samples(write_table(tmp_path / "t.jsonl", rows))
    check_source(source, ["x", "y"], ["7", "9"])
    assert source.record == {"column": "caption", "ids_from": "column ID"}
    assert source.labels is None
    first, second = source.notes
    assert first == "t.jsonl: the column caption is read (beside height, ID, target)"
    assert second.startswith("t.jsonl: the column target is not taken as labels: labels are classes")
    assert open_samples(tmp_path / "t.jsonl", ids=[1, 2]).record["ids_from"] == "given"


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n\n"x\ny",1\nz,2\n')
    check_source(open_samples(tmp_path / "a.csv"), ["x\ny", "z"], ["3", "5"])
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    check_source(open_samples(tmp_path / "a.jsonl"), ["x", "y"], ["1", "3"])
    (tmp_path / "b.csv").write_text("text;n\nx, y;1\n")
    check_source(open_samples(tmp_path / "b.csv"), ["x, y"], ["2"])


def test_empty_cells_can_be_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["0.png"])
    rows = [{"image": "0.png", "text": "x"}, {"image": "", "text": ""}, {"image": "1.png", "text": "z"}]
    path = write_table(tmp_path / "a.csv", rows)
    texts, pictures = (open_samples(path, column=column) for column in ("text", "image"))
    with pytest.raises(SampleError, match=r"a\.csv, line 3 has no text"):
        examine(texts, range(3))
    assert list(examine(texts, range(3), skip_bad=True)[0]) == [0, 2]
    contents, bad = examine(pictures, range(3), skip_bad=True)
    assert list(contents) == [0]
    assert bad[1] == "cannot read the picture a.csv, line 3: the cell is empty"
    with pytest.raises(
        ImageError, match=r"cannot read the picture 1\.png \(a\.csv, line 4\): No such file or directory"
    ):
        pictures.load(2)


def test_pictures_in_another_folder_are_missing_as_a_whole(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [{"image": "x/0.png"}, {"image": "x/1.png"}])
    with pytest.raises(ImageError, match=r"none of the 2 pictures that a\.csv names exists \(the first: x/0\.png\)"):
        open_samples(path)


def test_addresses_are_texts(tmp_path: Path) -> None:
    """Nothing is downloaded."""
    source = open_samples(write_table(tmp_path / "a.csv", [{"url": "https://example.org/a.png"}]))
    assert source.modality == "text"


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(SampleError, match="two columns have the same name: text"):
        open_samples(tmp_path / "twice.parquet")


def test_json_that_is_nested_too_deeply_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(SampleError, match=r"deep.jsonl, line 2: not valid JSON"):
        open_samples(tmp_path / "deep.jsonl")


@pytest.mark.parametrize("ids", [{"p", "q"}, {"p": 1, "q": 2}])
def test_ids_without_an_order_are_refused(ids: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected a sequence in the order of the samples"):
        open_samples(["a", "b"], ids=ids)


def test_pictures_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "pairs.csv").write_text("image\nfolder.png\n")
    with pytest.raises(ImageError, match="it is no file"):
        open_samples(tmp_path / "pairs.csv").load(0)
