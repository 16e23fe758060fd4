"""Groups of pictures: by folder, by a regular expression over ids, from a file, or as values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from repsim import extract
from repsim.errors import InvalidInputError, OtherSettingsError
from repsim.extractors import open_images
from repsim.extractors.samples.group_files import read_groups
from repsim.testing.examples import write_pictures

NAMES = ("a/scene0_f0.png", "a/scene0_f1.png", "b/scene1_f0.png", "b/scene2_f0.png")


@dataclass(frozen=True)
class Samples:
    name: str = "frames"
    ids: tuple[str, ...] = NAMES


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("folders", ["a", "a", "b", "b"]),
        (r"re:scene(\d+)", ["0", "0", "1", "2"]),
        (r"re:^(?:a/)?(.*)_f", ["scene0", "scene0", "b/scene1", "b/scene2"]),
        ({name.rpartition("/")[2]: k // 2 for k, name in enumerate(NAMES)}, [0, 0, 1, 1]),
        ([3, 3, 4, 5], [3, 3, 4, 5]),
    ],
)
def test_forms_of_groups(groups: Any, expected: list[Any]) -> None:
    assert list(read_groups(Samples(), groups)[0]) == expected


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("head", ["id{}group\n", "file{}scene\n", ""])
def test_groups_of_a_file(tmp_path: Path, separator: str, head: str) -> None:
    lines = [f"{name}{separator}{number:02d}\n" for number, name in enumerate(NAMES)][::-1]
    (tmp_path / "groups.csv").write_text(head.format(separator) + "".join(lines))
    values, record = read_groups(Samples(), tmp_path / "groups.csv")
    assert list(values) == ["00", "01", "02", "03"]
    assert (record["file"], record["matched_by"]) == ("groups.csv", "id")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("re:scene(", "scene\\( is no regular expression"),
        ("re:scene", "has no bracket"),
        (r"re:scene([01])", r"names no group of 1 of 4 samples of frames \(b/scene2_f0.png\)"),
        ("nowhere.csv", "nowhere.csv is not a file"),
        ({NAMES[0]: 1}, "3 samples without a group"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_groups(Samples(), groups)


def test_one_folder_makes_no_groups() -> None:
    with pytest.raises(InvalidInputError, match="all 2 samples of frames are in no folder"):
        read_groups(Samples(ids=("a.png", "b.png")), "folders")
    with pytest.raises(InvalidInputError, match=r"in one folder \(a\)"):
        read_groups(Samples(ids=NAMES[:2]), "folders")


def test_a_group_of_a_file_is_not_empty(tmp_path: Path) -> None:
    rows = [f"{name},{'' if k == 2 else k}\n" for k, name in enumerate(NAMES)]
    (tmp_path / "groups.csv").write_text("id,group\n" + "".join(rows))
    with pytest.raises(InvalidInputError, match=r"b/scene1_f0.png has no group"):
        read_groups(Samples(), tmp_path / "groups.csv")


def test_extraction_stores_the_groups_of_the_chosen_pictures(tmp_path: Path) -> None:
    """Groups are numbered anew if pictures are left out, and other groups do not resume the same store."""
    folder = write_pictures(tmp_path / "frames", [f"s{k // 2}/f{k % 2}.png" for k in range(12)], size=(8, 8))
    with extract("digits_vit.seed0", folder, tmp_path, layers="blocks.5", limit=4, groups="folders") as store:
        assert list(store.sample_ids) == ["s0/f0.png", "s1/f1.png", "s3/f0.png", "s4/f1.png"]
        assert store.groups is not None
        assert (store.groups.tolist(), store.group_names) == ([0, 1, 2, 3], ("s0", "s1", "s3", "s4"))
        assert store.provenance["groups"] == {"source": "folders"}
    with pytest.raises(OtherSettingsError, match="groups: 4 of 4 differ, the first: s0/f0.png"):
        extract("digits_vit.seed0", folder, tmp_path, layers="blocks.5", limit=4, groups=r"re:f(\d)")
    with pytest.raises(OtherSettingsError, match="groups: some before, none now"):
        extract("digits_vit.seed0", folder, tmp_path, layers="blocks.5", limit=4)
    scenes = [f"s{k // 2}" for k in range(12)]  # the same groups in another form: the store is complete already
    before = (tmp_path / "digits_vit.seed0.h5").stat().st_mtime_ns
    extract("digits_vit.seed0", folder, tmp_path, layers="blocks.5", limit=4, groups=scenes).close()
    assert (tmp_path / "digits_vit.seed0.h5").stat().st_mtime_ns == before


def test_open_images_numbers_groups_by_first_occurrence() -> None:
    images = open_images("digits", groups=[k % 7 + 5 for k in range(1797)])
    assert images.groups is not None
    assert (images.groups[:9].tolist(), images.group_names[:2]) == ([0, 1, 2, 3, 4, 5, 6, 0, 1], ("5", "6"))
