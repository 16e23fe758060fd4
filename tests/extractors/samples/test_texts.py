"""Texts: lines of a file, a folder of files, a list."""

from pathlib import Path

import pytest

from repsim.errors import InvalidInputError, SampleError, UnknownNameError
from repsim.extractors.samples.opening import examine, open_images, open_samples
from repsim.testing.examples import write_pictures
from tests.extractors.samples.source_contract import check_one_change, check_source, digests


@pytest.mark.parametrize(
    ("raw", "texts", "ids"),
    [
        (b"one\ntwo\n", ["one", "two"], ["1", "2"]),
        (b"one\ntwo", ["one", "two"], ["1", "2"]),
        (b"\xef\xbb\xbfone\r\n two \r\n", ["one", " two "], ["1", "2"]),
        ("é\u2028x\n日本\n".encode(), ["é\u2028x", "日本"], ["1", "2"]),
        (
            b"\n".join(b"t%d" % k for k in range(1, 12)),
            [f"t{k}" for k in range(1, 12)],
            [f"{k:02}" for k in range(1, 12)],
        ),
    ],
)
def test_each_line_is_a_text(tmp_path: Path, raw: bytes, texts: list[str], ids: list[str]) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(raw)
    source = open_samples(path)
    before = check_source(source, texts, ids)
    assert (source.name, source.modality, source.noun, source.quick) == ("captions.txt", "text", "texts", True)
    assert source.record == {"ids_from": "line numbers"}
    assert sum(source.sizes()) == sum(len(text.encode()) for text in texts)
    path.write_bytes(raw.replace(texts[1].encode(), b"changed"))
    check_one_change(before[:2], digests(open_samples(str(path)))[:2], 1)


def test_empty_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n\n")
    source = open_samples(tmp_path / "a.txt")
    check_source(source, ["one", "two"], ["1", "4"])
    assert str(source.left_out) == "empty lines: 3 (line 2, ...)"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"no text in a\.txt"),
        (b"\n \n", r"no text in a\.txt"),
        (b"one\ncaf\xe9\n", r"a\.txt, line 2: not text in UTF-8 \(byte 0xe9\)"),
    ],
)
def test_files_that_hold_no_texts(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(SampleError, match=message):
        open_samples(tmp_path / "a.txt")


def write_texts(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_folder_of_texts(tmp_path: Path) -> None:
    """Folders are classes, and the id is the path, as for pictures; a text may have several lines."""
    root = write_texts(tmp_path / "texts", {"b/1.txt": "x\ny\n", "a/2.txt": "z\n", "a/1.TXT": "w", "a/notes.md": "-"})
    source = open_samples(root)
    check_source(source, ["w", "z", "x\ny"], ["a/1.TXT", "a/2.txt", "b/1.txt"])
    assert source.labels is not None
    assert (source.modality, list(source.classes), source.labels.tolist()) == ("text", ["a", "b"], [0, 0, 1])
    assert source.left_out.counts == {".md": 1}
    assert list(open_samples(root, split="b").ids) == ["b/1.txt"]
    with pytest.raises(UnknownNameError, match="unknown split 'c'"):
        open_samples(root, split="c")
    write_texts(root, {"train/3.txt": "u"})
    with pytest.raises(InvalidInputError, match="texts holds the split train beside a, b; choose one with split=NAME"):
        open_samples(root)


def test_a_folder_with_pictures_is_one_of_pictures(tmp_path: Path) -> None:
    root = write_texts(write_pictures(tmp_path / "photos", ["z/0.png"]), {"a/0.txt": "x"})
    source = open_samples(root)
    assert (source.modality, list(source.ids)) == ("image", ["z/0.png"])
    assert digests(source) == digests(open_images(str(root)))
    with pytest.raises(SampleError, match=r"no picture found in a .*left out: \.txt: 1"):
        open_images(str(root / "a"))
    write_texts(tmp_path / "other", {"notes.md": "-", "b/.hidden.txt": "-"})
    with pytest.raises(SampleError, match="no picture found in other"):
        open_samples(tmp_path / "other")


def test_damaged_texts_of_a_folder_can_be_left_out(tmp_path: Path) -> None:
    root = write_texts(tmp_path / "texts", {f"{k}.txt": f"text {k}" for k in range(4)})
    (root / "1.txt").write_bytes(b"\xff")
    (root / "2.txt").write_text(" \n")
    source = open_samples(root)
    with pytest.raises(SampleError, match=r"1\.txt, line 1: not text in UTF-8"):
        examine(source, range(4))
    contents, bad = examine(source, range(4), skip_bad=True)
    assert list(contents) == [0, 3]
    assert bad[2] == "the text of 2.txt is empty"


def test_a_list_of_texts() -> None:
    source = open_samples(["a cat", "a dog"], ids=["x", 7], labels={"x": "cat", "7": "dog"})
    check_source(source, ["a cat", "a dog"], ["x", "7"])
    assert (source.record, source.classes) == ({"ids_from": "given"}, ("cat", "dog"))
    check_source(open_samples(("b", "c")), ["b", "c"], ["0", "1"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the list of texts is empty"),
        (["a", 3], "element 1 is a int"),
    ],
)
def test_lists_that_are_no_texts(texts: list[object], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        open_samples(texts)


@pytest.mark.parametrize(
    ("text", "message"), [("", "the text of text 1 is empty"), ("a\ud800", "half a surrogate pair")]
)
def test_texts_that_no_model_can_read(text: str, message: str) -> None:
    source = open_samples(["a", text])
    with pytest.raises(SampleError, match=message):
        examine(source, range(2))
    assert list(examine(source, range(2), skip_bad=True)[0]) == [0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "1 ids for the 2 samples of texts"),
        (["a", "a"], r"1 ids repeat: a; every sample needs its own"),
        (["a", None], "sample 1 has None"),
        ("ab", "expected one for each sample of texts, got the single 'ab'"),
    ],
)
def test_ids_that_do_not_fit(ids: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        open_samples(["x", "y"], ids=ids)


def test_messages_about_labels_and_groups_name_texts() -> None:
    with pytest.raises(
        InvalidInputError, match=r"the 2 texts of texts do not match one to one: 1 texts without a label"
    ):
        open_samples(["x", "y"], labels={"0": "a"})
    with pytest.raises(InvalidInputError, match=r"1 groups without a text \(2\)"):
        open_samples(["x", "y"], groups={"0": 1, "1": 1, "2": 2})
