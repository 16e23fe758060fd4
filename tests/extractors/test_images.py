"""Image sources: folders, archives, digits and data sets, and pictures that cannot be read."""

import os
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.dataset import ImageDataset
from torchvision import transforms

from repsim.errors import ImageError, InvalidInputError, UnknownNameError
from repsim.extraction import choose_samples
from repsim.extractors.samples.opening import choose, examine, open_images
from repsim.extractors.samples.source import ImageSource

CLASSES = ["cat/b.png", "cat/a.JPG", "dog/x.png", "ant/deep/1.png"]


def make_tar(root: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(root, arcname=".")
    return path


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_classes_are_folders_and_ids_are_relative_paths(pictures: Any, tmp_path: Path, kind: str) -> None:
    root = pictures(names=CLASSES)
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "cat" / "notes.txt").write_text("no picture")
    images = open_images(str(root if kind == "folder" else make_tar(root, tmp_path / "all.tar")))
    assert list(images.ids) == sorted(CLASSES)
    assert images.classes == ["ant/deep", "cat", "dog"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 1, 2]
    for i, name in enumerate(images.ids):
        with Image.open(root / name) as picture:
            assert np.array_equal(np.asarray(images.load(i)), np.asarray(picture.convert("RGB")))
    assert list(images.sizes()) == [(root / name).stat().st_size for name in images.ids]


def test_a_flat_folder_has_no_labels(pictures: Any) -> None:
    images = open_images(str(pictures(3)))
    assert (len(images), images.labels, list(images.classes)) == (3, None, [])
    assert images.name == "photos"


def test_links_are_followed_but_not_in_circles(pictures: Any) -> None:
    root = pictures(names=["a/1.png"])
    (root / "b").symlink_to(root / "a")
    (root / "a" / "round").symlink_to(root)
    images = open_images(str(root))
    assert images.ids == ["a/1.png"]
    assert str(images.left_out) == "links to folders that are read already: 2 (a/round, ...)"


def test_the_fingerprint_is_of_these_pictures_in_this_order(pictures: Any, tmp_path: Path) -> None:
    root = pictures(4)
    images = open_images(str(root))
    value = images.fingerprint([0, 1, 2])
    assert value == open_images(str(make_tar(root, tmp_path / "same.tar"))).fingerprint([0, 1, 2])
    assert value not in {images.fingerprint([0, 2, 1]), images.fingerprint([0, 1]), images.fingerprint([1, 2, 3])}
    with (root / "photo01.png").open("ab") as file:
        file.write(b"\0")
    assert open_images(str(root)).fingerprint([0, 1, 2]) != value


def test_splits(pictures: Any) -> None:
    root = pictures(names=["train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png"])
    with pytest.raises(InvalidInputError, match="photos holds the splits train, val; choose one with split=NAME"):
        open_images(str(root))
    with pytest.raises(UnknownNameError, match="unknown split 'vall'; did you mean val"):
        open_images(str(root), split="vall")
    images = open_images(str(root), split="val")
    assert (images.name, images.ids) == ("photos [val]", ["val/cat/2.png", "val/dog/2.png"])
    assert list(images.classes) == ["cat", "dog"]
    with pytest.raises(UnknownNameError, match="unknown split 'test2'; did you mean test"):
        open_images("digits", split="test2")


def test_digits_split_into_halves() -> None:
    complete, train, test = (open_images("digits", split=split) for split in (None, "train", "test"))
    assert (len(complete), len(train), len(test)) == (1797, 899, 898)
    assert sorted([*train.ids, *test.ids]) == list(complete.ids)
    assert complete.labels is not None
    assert test.labels is not None
    assert complete.labels[1::2].tolist() == test.labels.tolist()
    assert np.asarray(test.load(3)).tolist() == np.asarray(complete.load(7)).tolist()
    assert np.asarray(complete.load(0))[..., 0].max() <= 255


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no picture found in photos \(looked for .*\.png"),
        (None, "no such folder or file: .*photos"),
    ],
)
def test_nothing_to_read(tmp_path: Path, names: list[str] | None, message: str) -> None:
    if names is not None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "readme.md").write_text("no picture")
    with pytest.raises(ImageError, match=message):
        open_images(str(tmp_path / "photos"))


def test_damaged_archives(pictures: Any, tmp_path: Path) -> None:
    path = make_tar(pictures(3), tmp_path / "all.tar")
    complete = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    last = members[-1]
    cuts = {  # tarfile itself notices the first only
        "inside a picture": last.offset_data + last.size // 2,
        "between two pictures": last.offset,
        "inside a header": last.offset + 100,
    }
    for cut in cuts.values():
        path.write_bytes(complete[:cut])
        with pytest.raises(ImageError, match=r"^all\.tar is damaged or cut off after [0-3] files: "):
            open_images(str(path))
    for content in (b"", b"no archive at all" * 99):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"^all\.tar is a file but no tar archive; use"):
            open_images(str(path))
    with tarfile.open(path, "w"):
        pass
    with pytest.raises(ImageError, match=r"no picture found in all\.tar"):
        open_images(str(path))
    for name in ("all.tar.gz", "compressed.tar"):
        packed = make_tar(tmp_path / "photos", tmp_path / name, "w:gz")
        with pytest.raises(ImageError, match="is compressed, .* unpack it"):
            open_images(str(packed))


def test_a_hard_link_in_a_tar_is_the_picture_again(pictures: Any, tmp_path: Path) -> None:
    root = pictures(1)
    (root / "second.png").hardlink_to(root / "photo00.png")
    images = open_images(str(make_tar(root, tmp_path / "all.tar")))
    assert len(images) == 2
    assert np.array_equal(np.asarray(images.load(0)), np.asarray(images.load(1)))


@pytest.mark.slow
def test_a_folder_that_cannot_be_listed_is_not_passed_over() -> None:
    """The test runs as user nobody if the tests run as root, who may list every folder."""
    script = "import sys\nfrom repsim.extractors.samples.opening import open_images\n"
    script += "try: print(open_images(sys.argv[1]).ids)\nexcept OSError as error: print(error)"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder in ("open", "closed"):
            (root / folder).mkdir()
            Image.new("RGB", (8, 8)).save(root / folder / "1.png")
        root.chmod(0o755)
        (root / "closed").chmod(0)
        python = [sys.executable, "-c", script, name]
        if os.geteuid() == 0:
            drop = "import os, sys; import repsim.extractors.samples.opening; os.setuid(65534); "
            drop += "sys.argv[:] = sys.argv[1:]\n"
            python = [sys.executable, "-c", drop + script, "", name]
        done = subprocess.run(python, capture_output=True, text=True, check=True)
        (root / "closed").chmod(0o755)
    assert done.stdout == f"cannot list the folder {root}/closed: Permission denied\n"


def test_choose_spreads_over_the_whole() -> None:
    assert choose(10, None) == choose(10, 99) == list(range(10))
    assert choose(9, 3) == [0, 3, 6]
    with pytest.raises(InvalidInputError, match="limit is at least 1, not 0"):
        choose(5, 0)


@pytest.mark.parametrize("workers", [0, 3])
def test_examine_finds_every_bad_picture_and_keeps_the_order(pictures: Any, workers: int) -> None:
    root = pictures(names=[f"{i}.jpg" for i in range(5)])
    complete = (root / "1.jpg").read_bytes()
    (root / "1.jpg").write_bytes(complete[: len(complete) // 2])
    (root / "3.jpg").write_bytes(b"hello")
    images = open_images(str(root))
    (root / "4.jpg").unlink()
    seen: list[tuple[int, int]] = []
    contents, bad = examine(
        images, [4, 3, 2, 1, 0], workers, lambda done, total: seen.append((done, total)), skip_bad=True
    )
    assert list(contents) == [2, 0]
    assert list(bad) == [4, 3, 1]
    assert bad[4] == "cannot read the picture 4.jpg: No such file or directory"
    assert bad[3] == "cannot read the picture 3.jpg: not a picture that can be decoded"
    assert bad[1].startswith("cannot read the picture 1.jpg: image file is truncated")
    assert not any("skip" in why for why in bad.values()), "the remedy is in use already"
    assert seen == [(i, 5) for i in range(1, 6)]


def one(tmp_path: Path, name: str = "picture.png") -> Any:
    return np.asarray(open_images(str(tmp_path)).load([*open_images(str(tmp_path)).ids].index(name)))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8))
    picture = colours.convert("RGB").convert(mode) if mode != "RGBA" else colours
    picture.save(tmp_path / "picture.png")
    assert np.array_equal(one(tmp_path), np.asarray(picture.convert("RGB")))  # transparency is dropped, as timm does


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    picture.putpalette([value for i in range(16) for value in (i, 2 * i, 3 * i)])
    picture.save(tmp_path / "picture.png", transparency=bytes(range(16)))
    expected = np.arange(16).reshape(4, 4, 1) * np.array([1, 2, 3])
    assert np.array_equal(one(tmp_path), expected)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "picture.jpg", quality=95)
    red = one(tmp_path, "picture.jpg").mean((0, 1))
    assert np.allclose(red, [255, 0, 0], atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_greys_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion makes everything above 255 white."""
    greys = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(greys).save(tmp_path / f"picture.{suffix}")
    assert np.array_equal(one(tmp_path, f"picture.{suffix}")[..., 1], np.arange(256).reshape(16, 16))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "picture.tif")
    with pytest.raises(ImageError, match=r"picture\.tif: its pixels \(mode F\) have no fixed range"):
        one(tmp_path, "picture.tif")


def test_exif_orientation_is_not_applied_as_in_timm(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (30, 10)).save(tmp_path / "picture.jpg", exif=exif)
    assert one(tmp_path, "picture.jpg").shape == (10, 30, 3)


def mnist(root: Path) -> list[Any]:
    """Write the test split of a small MNIST in the files that torchvision reads."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 5, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 5) + bytes([3, 1, 4, 1, 5]))
    return list(pixels)


def test_a_data_set_by_timms_name(tmp_path: Path) -> None:
    pixels = mnist(tmp_path)
    images: ImageSource = open_images("torch/mnist", root=str(tmp_path))
    assert list(images.ids) == [f"torch/mnist/test/{i}" for i in range(5)]
    assert images.labels is not None
    assert images.labels.tolist() == [3, 1, 4, 1, 5]
    assert len(images.classes) == 10
    for i, expected in enumerate(pixels):
        assert np.array_equal(np.asarray(images.load(i)), expected[..., None].repeat(3, 2))
    assert images.fingerprint([0]) == open_images("torch/mnist", split="val", root=str(tmp_path)).fingerprint([0])
    assert images.fingerprint([0]) != open_images("torch/mnist", split="train", root=str(tmp_path)).fingerprint([0])


def test_other_pixels_in_a_data_set_are_other_pictures(tmp_path: Path) -> None:
    """Only the hashes differ, as sizes are unknown and ids are numbers."""
    mnist(tmp_path)
    before = choose_samples(open_images("torch/mnist", root=str(tmp_path))).ids
    assert choose_samples(open_images("torch/mnist", root=str(tmp_path))).ids.difference(before) is None
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[16 + 2 * 28 * 28] ^= 1
    path.write_bytes(data)
    after = choose_samples(open_images("torch/mnist", root=str(tmp_path))).ids
    assert before.difference(after) == ("other pictures behind the same names, the first: torch/mnist/test/2 (1 of 5)")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch/cifar10", {}, r"the folder of torch/cifar10 is not set; set it with data_root=DIR"),
        ("torch/cifar10", {"root": "ROOT"}, r"cannot open torch/cifar10 \[validation\].*download=True allows"),
        ("torch/nonsense", {"root": "ROOT"}, "Unknown torchvision dataset nonsense"),
        ("torch/mnist", {"root": "ROOT", "split": "tets"}, "unknown split 'tets'; did you mean"),
        ("torch/folder", {"root": "ROOT"}, "give the folder itself"),
        ("tfds/mnist", {}, "can only be streamed"),
        ("nonsense/mnist", {}, "no such folder or file"),
    ],
)
def test_data_sets_that_cannot_be_opened(tmp_path: Path, name: str, options: dict[str, str], message: str) -> None:
    arguments: Any = {key: str(tmp_path) if value == "ROOT" else value for key, value in options.items()}
    with pytest.raises((ImageError, UnknownNameError), match=message) as caught:
        open_images(name, **arguments)
    assert "\n" not in str(caught.value)


def test_an_unreadable_sample_of_a_data_set_is_not_replaced_by_the_next(tmp_path: Path) -> None:
    """timm's own data set returns the next sample instead; repsim reads the items one by one."""
    mnist(tmp_path)
    images: Any = open_images("torch/mnist", root=str(tmp_path))
    images._dataset.data = images._dataset.data[:3]  # as if the file had lost its end
    contents, bad = examine(images, range(5), skip_bad=True)
    assert list(contents) == [0, 1, 2]
    assert bad[3].startswith("cannot read the picture torch/mnist/test/3: index 3")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves its files open
def test_the_input_of_models_equals_that_of_timm(pictures: Any) -> None:
    """The same pixels as timm's ImageDataset on the same folder, in the same order."""
    root = pictures(names=["a/1.png", "b/1.jpg"])
    theirs = ImageDataset(str(root), transform=transforms.PILToTensor())
    ours = open_images(str(root))
    for i in range(2):
        assert np.array_equal(np.asarray(ours.load(i)).transpose(2, 0, 1), theirs[i][0].numpy())
