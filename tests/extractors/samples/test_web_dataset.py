"""Shards of webdataset, written by its own TarWriter; the reference is what webdataset itself reads."""

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from repsim.errors import InvalidInputError, RepsimError, SampleError
from repsim.extractors.samples.opening import examine, open_samples
from tests.extractors.samples.source_contract import check_one_change, check_source, digests

N = 6


def sample(k: int, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    content = {
        "__key__": f"part/{k:04}",
        "png": rng.integers(0, 256, (5, 4, 3), np.uint8),
        "txt": f"caption {k}",
        "npy": rng.normal(size=3).astype(np.float32),
        "json": {"caption": f"json {k}", "n": k},
        "cls": k % 2,
    }
    return content | changes


def write_shards(folder: Path, samples: list[dict[str, Any]], size: int = 4) -> str:
    """Write shards of ``size`` samples and return their pattern."""
    folder.mkdir(exist_ok=True)
    starts = range(0, len(samples), size)
    for shard, start in enumerate(starts):
        with webdataset.TarWriter(str(folder / f"shard-{shard:03}.tar")) as writer:
            for content in samples[start : start + size]:
                writer.write(content)
    return str(folder / f"shard-{{000..{len(starts) - 1:03}}}.tar")


def reference(folder: Path) -> list[dict[str, Any]]:
    """Read shards with webdataset's own functions; its class WebDataset leaves the files open."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in sorted(folder.glob("*.tar"))]
        streams = ({"url": file.name, "stream": file} for file in files)
        return list(webdataset.decode()(group_by_keys(tar_file_expander(streams))))


@pytest.mark.parametrize("column", ["png", "txt", "npy", "json.caption", "json.n"])
def test_columns_are_what_webdataset_reads(tmp_path: Path, column: str) -> None:
    pattern = write_shards(tmp_path / "data", [sample(k) for k in range(N)])
    rows = reference(tmp_path / "data")
    name, _, field = column.partition(".")
    expected = [row[name][field] if field else row[name] for row in rows]
    if column == "png":
        expected = [sample(k)["png"] for k in range(N)]
    source = open_samples(pattern, column=column)
    hashes = check_source(source, expected, [row["__key__"] for row in rows])
    assert len(set(hashes)) == N
    assert source.name == f"shard-{{000..001}}.tar [{column}]"
    assert source.record == {"column": column, "ids_from": "keys", "shards": 2}
    assert source.labels is not None
    assert source.labels.tolist() == [row["cls"] for row in rows]
    assert list(source.notes) == [
        "shard-{000..001}.tar: labels are those of the column cls; label_column=NAME takes another"
    ]


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("png", {"png": np.zeros((5, 4, 3), np.uint8)}),
        ("txt", {"txt": "another"}),
        ("npy", {"npy": np.zeros(3, np.float32)}),
        ("json.caption", {"json": {"caption": "another", "n": 1}}),
    ],
)
def test_one_changed_member_changes_one_hash(tmp_path: Path, column: str, change: dict[str, Any]) -> None:
    before = digests(open_samples(write_shards(tmp_path, [sample(k) for k in range(N)]), column=column))
    changed = [sample(k, **(change if k == 4 else {})) for k in range(N)]
    check_one_change(before, digests(open_samples(write_shards(tmp_path, changed), column=column)), 4)


def test_a_tar_without_a_column_is_one_of_pictures(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(k) for k in range(3)])
    source = open_samples(tmp_path / "shard-000.tar")
    assert list(source.ids) == [f"part/{k:04}.png" for k in range(3)]
    by_column = open_samples(tmp_path / "shard-000.tar", column="png")
    assert list(by_column.ids) == [f"part/{k:04}" for k in range(3)]
    assert digests(source) == digests(by_column)
    with pytest.raises(
        SampleError, match=r"has 3 columns that can be read: png \(pictures\), txt \(texts\), json.caption"
    ):
        open_samples(write_shards(tmp_path / "more", [sample(0)], 1))
    assert open_samples(tmp_path / "shard-000.tar", id_column="json.n", column="txt").ids[2] == "2"
    with pytest.raises(SampleError, match="has 3 columns that can be read"):
        open_samples(tmp_path / "shard-000.tar", label_column="cls")
    with pytest.raises(InvalidInputError, match="split does not apply to shard-000.tar"):
        open_samples(tmp_path / "shard-000.tar", column="png", split="train")


def test_fields_of_json_are_ids_labels_and_groups(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [sample(k) for k in range(N)])
    options: dict[str, Any] = {"id_column": "json.n", "label_column": "json.caption", "group_column": "cls"}
    source = open_samples(pattern, column="txt", **options)
    assert (list(source.ids), list(source.classes)) == ([str(k) for k in range(N)], [f"json {k}" for k in range(N)])
    assert source.groups is not None
    assert source.groups.tolist() == [0, 1] * 3
    assert source.record["ids_from"] == "column json.n"


def test_samples_that_lack_a_member(tmp_path: Path) -> None:
    rows = [sample(k) for k in range(4)]
    del rows[1]["txt"], rows[2]["png"], rows[3]["npy"]
    pattern = write_shards(tmp_path, rows)
    texts, pictures, arrays = (open_samples(pattern, column=column) for column in ("txt", "png", "npy"))
    with pytest.raises(SampleError, match=r"shard-000\.tar: part/0001\.txt has no text"):
        examine(texts, range(4))
    for source, missing in ((texts, 1), (pictures, 2), (arrays, 3)):
        assert list(examine(source, range(4), skip_bad=True)[1]) == [missing]


def test_arrays_of_different_shapes_and_damaged_members(tmp_path: Path) -> None:
    damaged = io.BytesIO()
    np.save(damaged, np.ones(3))
    pattern = write_shards(
        tmp_path, [sample(0), sample(1, npy=np.ones(4, np.float32)), sample(2, npy=damaged.getvalue()[:-5])]
    )
    source = open_samples(pattern, column="npy")
    with pytest.raises(SampleError, match=r"part/0001\.npy has the shape \(4,\), and the first has \(3,\)"):
        source.load(1)
    with pytest.raises(SampleError, match=r"cannot read shard-000\.tar: part/0002\.npy"):
        source.load(2)


def test_keys_that_repeat(tmp_path: Path) -> None:
    """In several shards, ids get the name of the shard; within one, the samples cannot be told apart."""
    pattern = write_shards(tmp_path / "a", [sample(k % 2) for k in range(4)], 2)
    source = open_samples(pattern, column="txt")
    assert list(source.ids) == [f"shard-{shard:03}/part/{k:04}" for shard in (0, 1) for k in (0, 1)]
    assert source.notes[-1].endswith("keys repeat in several shards; ids are shard/key")
    pattern = write_shards(tmp_path / "b", [sample(k % 2) for k in range(4)])
    with pytest.raises(SampleError, match=r"the files of the sample part/0000 do not lie together"):
        open_samples(pattern, column="txt")
    pattern = write_shards(tmp_path / "c", [sample(0), sample(0)])
    with pytest.raises(SampleError, match=r"the sample part/0000 has two files \.\w+"):
        open_samples(pattern, column="txt")


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(k) for k in range(N)])
    with pytest.raises(
        SampleError, match=r"2 of the 4 shards of shard-\{000\.\.003\}\.tar do not exist: shard-002\.tar, s"
    ):
        open_samples(str(tmp_path / "shard-{000..003}.tar"), column="txt")
    whole = (tmp_path / "shard-000.tar").read_bytes()
    (tmp_path / "shard-000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RepsimError, match=r"shard-000\.tar is damaged or cut off"):
        open_samples(str(tmp_path / "shard-{000..001}.tar"), column="txt")


def test_json_that_is_none(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [sample(0), sample(1, json=b"{")])
    with pytest.raises(SampleError, match=r"shard-000\.tar: part/0001\.json: not valid JSON"):
        open_samples(pattern, column="txt")
    pattern = write_shards(tmp_path, [sample(0), sample(1, json=json.dumps([1]).encode())])
    assert len(open_samples(pattern, column="txt")) == 2


def test_pictures_have_the_limit_of_pixels(tmp_path: Path) -> None:
    big = io.BytesIO()
    Image.new("RGB", (40, 40)).save(big, "PNG")
    pattern = write_shards(tmp_path, [sample(0, png=big.getvalue())])
    with pytest.raises(SampleError, match="1,600 pixels, and 100 are allowed"):
        open_samples(pattern, column="png", max_pixels=100).load(0)
