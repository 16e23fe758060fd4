"""Picture files of all kinds, from the command line to the store: which are read, left out, or refused."""

import csv
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import repsim
from repsim.cli import main
from repsim.commands.shared import Command
from repsim.errors import ImageError, InvalidInputError, OutputError, SampleMismatchError, StoreError, UnknownNameError
from repsim.extraction import choose_samples, extract
from repsim.extractors import open_images
from repsim.extractors.samples.decoding import suffixes
from repsim.extractors.samples.opening import examine
from repsim.labels import INPUT, STATISTICS, LayerKey, SampleIds
from repsim.stores import reader
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import open_store
from repsim.stores.writer import StoreWriter

Pictures = Callable[..., Path]
MODEL = ["test_resnet", "--weights", "random", "--layers", "layer1.0"]
OPTIONS: dict[str, Any] = {"weights": "random", "layers": "layer1.0"}


def picture(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def repack(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(root, arcname=".")
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def extracted(root: Path, out: Path, *options: str | Path) -> Result:
    return run("extract", *MODEL, "--data", root, "-o", out, *options)


def flip(path: Path) -> None:
    """Change one pixel of a picture in a file of the same size."""
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)


# --- contents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_replaced_pictures_of_the_same_name_and_size_are_refused(tmp_path: Path, kind: str) -> None:
    """Both the same extraction again and a comparison refuse them."""
    root = folder(tmp_path / "photos", *(f"{k}.bmp" for k in range(5)))

    def data() -> Path:
        return root if kind == "folder" else repack(root, tmp_path / "photos.tar")

    before = extract("test_resnet", data(), tmp_path / "a", **OPTIONS)
    flip(root / "3.bmp")
    done = extracted(data(), tmp_path / "a")
    assert done.exit_code == 2
    expected = "was made with other settings: other pictures behind the same names, the first: 3.bmp (1 of 5)"
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    after = extract("test_resnet", data(), tmp_path / "b", name="after", **OPTIONS)
    with pytest.raises(SampleMismatchError, match=r"behind the same names, the first: 3\.bmp \(1 of 5\); extract"):
        repsim.compare(before, after, ["cka"])
    third = repsim.write_store(
        tmp_path / "c.h5", {"x": before["layer1.0"][:]}, model="third", sample_ids=list(before.sample_ids)
    )
    with pytest.raises(SampleMismatchError, match="behind the same names"):  # also if the first store has no hashes
        repsim.compare([third, before, after])


def test_an_interrupted_extraction_does_not_go_on_with_other_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", *(f"{k}.bmp" for k in range(6)))

    class StoppedError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done >= 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        extract("test_resnet", root, tmp_path / "a", batch_size=2, progress=stop, **OPTIONS)
    flip(root / "0.bmp")
    with pytest.raises(OutputError, match=r"partial was made with other settings: other pictures .* the first: 0\.bmp"):
        extract("test_resnet", root, tmp_path / "a", batch_size=2, **OPTIONS)


def test_a_folder_and_a_tar_of_it_hold_the_same_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a/1.png", "b/2.bmp")
    tar = repack(root, tmp_path / "photos.tar")
    one, other = (choose_samples(open_images(str(data))).ids for data in (root, tar))
    assert one.contents_known(other)
    assert one.difference(other) is None
    assert one == other


def test_the_hash_is_of_the_file_or_of_the_pixels(tmp_path: Path) -> None:
    import hashlib  # noqa: PLC0415

    root = folder(tmp_path / "photos", "1.png")
    file = hashlib.sha256((root / "1.png").read_bytes()).digest()[:8]
    images = open_images(str(root))
    assert (images.examine(0).digest, images.content_kind) == (file, "files")
    digits = open_images("digits")
    pixels = hashlib.sha256(b"8 x 8\n" + np.asarray(digits.load(7)).tobytes()).digest()[:8]
    assert (digits.examine(7).digest, digits.content_kind) == (pixels, "pixels")
    with extract("digits_vit", "digits", tmp_path / "acts", weights="random", layers="blocks.0", limit=4) as store:
        assert store.sample_ids.hashed == "pixels"
        assert store.sample_ids.hashes == b"".join(digits.examine(k * 1797 // 4).digest for k in range(4))


def without_hashes(path: Path, store: Any) -> Path:
    """Remove the hashes from a store, as earlier versions wrote it: with names and sizes only."""
    old = store.contents
    ids = SampleIds(old.sample_ids.ids, old.sample_ids.content)
    with StoreWriter(path, Contents(**{**vars(old), "sample_ids": ids}), overwrite=True) as writer:
        for spec in old.arrays:
            control = {INPUT: store.pixels, STATISTICS: store.statistics}.get((spec.key.layer, spec.key.readout))
            array = store[spec.key.layer] if control is None else control
            writer.write(spec.key, slice(None), array[:])
        writer.mark_done(slice(None))
    return path


def test_stores_made_before_contents_were_hashed_stay_usable(tmp_path: Path) -> None:
    """They can be compared and are complete for the same command; a note reports what was not checked."""
    root = folder(tmp_path / "photos", *(f"{k}.bmp" for k in range(6)))
    new = extract("test_resnet", root, tmp_path / "a", **OPTIONS)
    path = new.path
    (tmp_path / "old").mkdir()
    old = without_hashes(tmp_path / "old" / path.name, new)
    with h5py.File(old) as file:
        assert "content" not in file["samples"]
    done = run("compare", old, path, "-m", "cka")
    assert done.exit_code == 0, done.output
    assert (
        "note: not checked: whether sample ids name the same pictures in all stores; there are no hashes" in done.stderr
    )
    assert "not checked" not in run("compare", old, old).stderr
    assert "not checked" not in run("compare", path, path).stderr
    done = extracted(root, tmp_path / "old")
    assert done.exit_code == 0, done.output
    assert "is complete already" in done.stderr
    assert "keeps no hashes of pictures: only their names and sizes were checked" in done.stderr
    picture(root / "2.bmp", 99)
    with (root / "2.bmp").open("ab") as file:
        file.write(b"\0")  # another size
    done = extracted(root, tmp_path / "old")
    assert done.exit_code == 2
    assert "other pictures behind the same names: the sizes of the files of the 6 samples differ" in done.stderr


@pytest.mark.parametrize("damage", ["kind", "hashes", "length", "dtype"])
def test_hashes_in_a_store_are_read_with_suspicion(tmp_path: Path, damage: str) -> None:
    ids = SampleIds(("a", "b", "c"), "", bytes(range(24)), "files")
    path = tmp_path / "x.h5"
    spec = ArraySpec(LayerKey("m", "l", "given"), (2,))
    with StoreWriter(path, Contents((spec,), ids, "given", {})) as writer:
        writer.write(spec.key, slice(None), np.zeros((3, 2), "f4"))
        writer.mark_done(slice(None))
    assert open_store(path).sample_ids == ids
    with h5py.File(path, "r+") as file:
        samples = file["samples"]
        if damage == "kind":
            del samples.attrs["content_kind"]
        else:
            del samples["content"]
            values = np.zeros(2 if damage == "length" else 3, "<u4" if damage == "dtype" else "<u8")
            if damage != "hashes":
                samples.create_dataset("content", data=values)
    with pytest.raises(StoreError, match="damaged"):
        reader.read(path)
    with pytest.raises(InvalidInputError, match="16 bytes of hashes for 3 samples"):
        SampleIds(("a", "b", "c"), "", bytes(16), "files")


def test_other_labels_are_other_settings(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", *(f"{k}.png" for k in range(4)))
    table = {f"{k}.png": k % 2 for k in range(4)}
    extract("test_resnet", root, tmp_path / "a", labels=table, **OPTIONS)
    extract("test_resnet", root, tmp_path / "a", labels=table, **OPTIONS)
    with pytest.raises(OutputError, match=r"labels: 1 of 4 differ, the first: 3\.png \(1 before, 0 now\)"):
        extract("test_resnet", root, tmp_path / "a", labels=table | {"3.png": 0}, **OPTIONS)
    with pytest.raises(OutputError, match="labels: some before, none now"):
        extract("test_resnet", root, tmp_path / "a", **OPTIONS)


def test_a_study_refuses_stores_that_disagree_on_the_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stores = [
        repsim.write_store(tmp_path / f"{k}.h5", {"x": rng.normal(size=(24, 4))}, model=str(k), labels=labels)
        for k, labels in enumerate([np.arange(24) % 3, (np.arange(24) + 1) % 3, np.arange(24) // 8])
    ]
    from repsim.study.controls import classes  # noqa: PLC0415
    from repsim.study.design import design  # noqa: PLC0415

    groups = classes(design(stores[:2]))  # the same classes with other numbers
    assert groups is not None
    assert groups.numbers.tolist() == [0, 1, 2] * 8
    with pytest.raises(SampleMismatchError, match=r"0\.h5 and .*2\.h5 give the same samples different class labels"):
        design(stores)


# --- which files are pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    "litter", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "#recycle"]
)
def test_hidden_folders_are_no_classes_and_do_not_hide_splits(tmp_path: Path, kind: str, litter: str) -> None:
    names = ["train/cat/1.png", "val/cat/1.png", f"{litter}/1.png", f"train/{litter}/1.png", "train/cat/._1.png"]
    root = folder(tmp_path / "photos", *names)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / name).write_bytes(b"")
    data = str(root if kind == "folder" else repack(root, tmp_path / "photos.tar"))
    with pytest.raises(InvalidInputError, match="holds the splits train, val; choose one with split=NAME, or take"):
        open_images(data)
    images = open_images(data, split="train")
    assert (images.ids, list(images.classes)) == (["train/cat/1.png"], ["cat"])
    assert not images.left_out


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.png", "val/a/1.png", "extra/a/1.png"], "holds the splits train, val beside extra; choose"),
        (["Train/a/1.png", "test2017/a/1.png"], "holds the splits Train, test2017; choose"),
        (["train/1.png", "car/1.png"], "holds the split train beside car; choose"),
        (["set/train/a/1.png", "set/val/a/1.png"], "holds the splits set/train, set/val; choose"),
        (["seg_train/a/1.png", "seg_test/a/1.png", "pred/1.png"], "holds the splits seg_test, seg_train beside pred;"),
        (["trainA/1.png", "testA/1.png", "trainB/1.png"], "holds the splits testA, trainA beside trainB; choose"),
        (["bottle/train/1.png", "bottle/test/1.png", "nut/train/1.png"], "holds the splits bottle/test, bottle/train;"),
    ],
)
def test_training_pictures_are_not_mixed_with_others(tmp_path: Path, kind: str, names: list[str], message: str) -> None:
    root = folder(tmp_path / "photos", *names)
    data = str(root if kind == "folder" else repack(root, tmp_path / "photos.tar"))
    with pytest.raises(InvalidInputError, match=message):
        open_images(data)
    everything = open_images(data, split=".")
    assert everything.ids == sorted(names)
    assert everything.name.endswith(" [.]")
    first = names[0].rpartition("/")[0]
    assert open_images(data, split=first).ids == [names[0]]
    for nowhere in ("..", "../photos", "/etc", "tran", ".hidden", ""):
        with pytest.raises(UnknownNameError, match="unknown split"):
            open_images(data, split=nowhere)


def test_folders_with_names_similar_to_splits_are_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "trains/1.png", "tests_of_time/1.png", "cars/test/1.png", "train_car/1.png")
    assert len(open_images(str(root))) == 4


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_all_formats_of_pillow_are_pictures_and_other_files_are_counted(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "photos"
    files = []
    for suffix in ("jfif", "avif", "jpe", "jp2", "webp", "JPG", "tiff", "tga", "ppm", "qoi", "pcx", "mpo"):
        if f".{suffix.lower()}" in suffixes():
            files.append(f"{suffix}.{suffix}")
            picture(root / files[-1], format="JPEG" if suffix == "jfif" else None)
    for name in ("1.heic", "2.HEIC", "notes.txt", "README", "film.mpg", "page.eps", "store.h5", "depth.pfm"):
        (root / name).write_bytes(b"x")
    images = open_images(str(root if kind == "folder" else repack(root, tmp_path / "photos.tar")))
    assert images.ids == sorted(files)
    assert len(files) > 8
    contents, bad = examine(images, range(len(images)), skip_bad=True)
    assert (len(contents), bad) == (len(files), {})
    assert images.left_out.counts == {
        ".heic": 2, ".eps": 1, ".h5": 1, ".mpg": 1, ".pfm": 1, ".txt": 1, "without a suffix": 1,
    }  # fmt: skip
    assert str(images.left_out).startswith(".heic: 2 (1.heic, ...), .eps: 1 (page.eps), ")


def test_a_link_to_itself_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "train/1.png", "val/1.png")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert open_images(str(root), split="val").ids == ["val/1.png"]


def test_an_empty_name_is_not_the_working_folder() -> None:
    with pytest.raises(ImageError, match="the name of the data is empty"):
        open_images("")


def test_a_disguised_document_is_no_picture(tmp_path: Path) -> None:
    """Pillow would pass it to ghostscript, which runs the program in it."""
    root = folder(tmp_path / "photos", "1.png")
    (root / "2.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(ImageError, match=r"picture 2\.png: not a picture that can be decoded"):
        open_images(str(root)).load(1)


def test_files_that_are_left_out_are_noted_and_recorded_and_are_no_setting(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "1.png", "2.png")
    (root / "3.heic").write_bytes(b"x")
    done = extracted(root, tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "note: photos: left out: .heic: 1 (3.heic)\n" in done.stderr
    (root / "4.txt").write_bytes(b"x")
    done = extracted(root, tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "complete already" in done.stderr
    (path,) = (tmp_path / "a").iterdir()
    assert open_store(path).provenance["left_out"] == {".heic": 1}
    (tmp_path / "only").mkdir()
    (root / "3.heic").rename(tmp_path / "only" / "3.heic")
    with pytest.raises(
        ImageError, match=r"no picture found in only \(looked for .*\); left out: \.heic: 1 \(3\.heic\)"
    ):
        open_images(str(tmp_path / "only"))


def test_crossed_links_do_not_duplicate_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", *(f"{'ab'[k % 2]}/{k}.png" for k in range(12)))
    (root / "a" / "to_b").symlink_to("../b")
    (root / "b" / "to_a").symlink_to("../a")
    (root / "a" / "up").symlink_to("..")
    (root / "0_first").symlink_to("a")  # sorted before its target
    (root / "a" / "again.png").symlink_to("0.png")
    (root / "b" / "out").symlink_to(tmp_path)
    images = open_images(str(root))
    assert len(images) == 12
    assert set(images.classes) == {"a", "b"}
    assert images.left_out.counts == {
        "links to folders that are read already": 5,
        "links to pictures that are taken already": 1,
    }


def test_links_that_lead_elsewhere_are_followed_once(tmp_path: Path) -> None:
    """In a folder of links to pictures elsewhere, each is read; a broken link raises an error with its name."""
    pool = folder(tmp_path / "pool", "1.png", "2.png", "more/3.png")
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").symlink_to(pool / "1.png")
    (root / "b.png").symlink_to(pool / "2.png")
    (root / "c.png").symlink_to(pool / "2.png")
    (root / "d").symlink_to(pool / "more")
    (root / "e").symlink_to(pool / "more")
    images = open_images(str(root))
    assert images.ids == ["a.png", "b.png", "d/3.png"]
    (root / "z.png").symlink_to(pool / "nowhere.png")
    with pytest.raises(ImageError, match=r"cannot read the picture z\.png: No such file or directory"):
        choose_samples(open_images(str(root)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_sockets_and_folders_that_are_called_like_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe would block forever."""
    root = folder(tmp_path / "photos", "1.png", "2.jpg/3.png")
    os.mkfifo(root / "pipe.jpg")
    (root / "to_pipe.jpg").symlink_to("pipe.jpg")
    monkeypatch.chdir(root)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        images = open_images(str(root))
        tar = open_images(str(repack_by_hand(root, tmp_path / "photos.tar")))
    for source in (images, tar):
        assert source.ids == ["1.png", "2.jpg/3.png"]
    assert images.left_out.counts == {"no regular files": 3}
    assert tar.left_out.counts == {"no regular files": 1, "links that lead out of the archive": 1}
    assert len(choose_samples(images).ids) == 2
    with pytest.raises(ImageError, match="no such folder or file"):
        open_images(str(root / "pipe.jpg"))


def repack_by_hand(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in ("1.png", "2.jpg/3.png", "pipe.jpg", "to_pipe.jpg"):
            archive.add(root / name, arcname=name)
    return path


def test_names_that_are_no_text_have_ids_that_are(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a.png", "café.png", "b\n.png")
    os.rename(os.fsencode(root / "a.png"), os.fsencode(root) + b"/caf\xe9.png")  # noqa: PTH104 - Latin-1
    images = open_images(str(root))
    assert sorted(images.ids) == ["b\\x0a.png", "caf\\xe9.png", "café.png"]
    store = extract("test_resnet", root, tmp_path / "a", **OPTIONS)
    assert list(store.sample_ids) == list(images.ids)
    assert open_images(str(repack(root, tmp_path / "photos.tar"))).ids == images.ids
    (root / "caf\\xe9.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"two pictures of photos would have the same id caf\\xe9\.png; rename one"):
        open_images(str(root))
    for name in (b"caf\xe9", b"\xff.png"):  # the folder itself
        folder(tmp_path / "next", "1.png")
        place = os.fsencode(tmp_path) + b"/" + name
        os.rename(tmp_path / "next", place)  # noqa: PTH104
        images = open_images(os.fsdecode(place))
        images.name.encode()
        assert "\\x" in images.name


def test_a_name_that_is_no_text_on_the_command_line(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a.png", "b.png")
    os.rename(os.fsencode(root / "a.png"), os.fsencode(root) + b"/caf\xe9.png")  # noqa: PTH104
    done = extracted(root, tmp_path / "a")
    assert done.exit_code == 0, done.output
    (root / "b.png").write_bytes(b"x")
    done = extracted(root, tmp_path / "b")
    assert done.exit_code == 2
    assert "cannot read the picture b.png" in done.stderr


def test_several_frames_are_one_picture_with_a_note(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "still.gif", "still.png", "still.tif")
    frames = [Image.new("RGB", (9, 9), (k, 0, 0)) for k in (10, 200)]
    for name in ("film.gif", "pages.tif", "film.webp", "film.png"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:])
    samples = choose_samples(open_images(str(root)))
    assert samples.left_out.counts == {"with further frames, of which the first is taken": 4}
    place = list(samples.source.ids).index("pages.tif")
    assert np.asarray(samples.source.load(place)).max() == 10


# --- large pictures --------------------------------------------------------------------------------------------------


def test_large_pictures_are_allowed_by_their_number_of_pixels(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "1.png")  # 192 pixels
    assert len(choose_samples(open_images(str(root), max_pixels=192)).rows) == 1
    done = extracted(root, tmp_path / "a", "--max-pixels", "191")
    assert done.exit_code == 2
    assert "1.png: it has 16 x 12 = 192 pixels, and 191 are allowed; --max-pixels 192 allows it" in done.stderr
    assert extracted(root, tmp_path / "a", "--max-pixels", "192").exit_code == 0
    (path,) = (tmp_path / "a").iterdir()
    assert open_store(path).provenance["max_pixels"] == 192
    assert extracted(root, tmp_path / "a").exit_code == 0  # max_pixels does not change values, so the store is complete
    with pytest.raises(InvalidInputError, match="max_pixels is at least 1, not 0"):
        open_images(str(root), max_pixels=0)


def test_pillows_own_limits_neither_warn_nor_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors in these tests; Pillow's limit, a setting of the user, does not change."""
    root = folder(tmp_path / "photos", "1.png", "2.gif", "3.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    contents, bad = examine(open_images(str(root)), range(3), 2, skip_bad=True)
    assert (len(contents), bad) == (3, {})
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
@pytest.mark.slow
def test_a_picture_is_not_skipped_when_memory_runs_out(tmp_path: Path) -> None:
    """A picture that is skipped as damaged would be missing without a reason."""
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    program = (
        "import resource, repsim.extractors.samples.opening as i; s = i.open_images({0!r}); "
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**26,) * 2); print(i.examine(s, [0], skip_bad=True))"
    )
    command = [sys.executable, "-c", program.format(str(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("MemoryError")


# --- labels ----------------------------------------------------------------------------------------------------------

NAMES = ("a/1.png", "a/2.png", "b/3.png")


@pytest.mark.parametrize(
    ("text", "labels", "classes"),
    [
        ("a/1.png,cat\na/2.png,dog\nb/3.png,cat\n", [0, 1, 0], ("cat", "dog")),
        ("id,label\r\nb/3.png,cat\r\na/2.png,dog\r\na/1.png,cat\r\n", [0, 1, 0], ("cat", "dog")),
        ("\ufefffilename;class\n1.png;7\n2.png;0\n3.png;7\n", [7, 0, 7], ()),
        ("\ufeff1.png,7\n2.png,0\n3.png,7\n", [7, 0, 7], ()),
        ("label\tid\n7\t1\n0\t2\n7\t3\n", [7, 0, 7], ()),
        ('"a/1.png","grey, wild cat"\n"a/2.png","dog"\n"b/3.png","dog"\n', [1, 0, 0], ("dog", "grey, wild cat")),
        ("1.png 3\n2.png 4\n3.png 5", [3, 4, 5], ()),
        ("img_path,true class\n1.png,x\n2.png,y\n3.png,y\n", [0, 1, 1], ("x", "y")),
        ("id,width,label\n1,640,x\n2,480,y\n\n3,480,y\n", [0, 1, 1], ("x", "y")),
        ("1,007\n2,7\n3,7\n", [0, 1, 1], ("007", "7")),
    ],
)
def test_labels_of_a_file(tmp_path: Path, text: str, labels: list[int], classes: tuple[str, ...]) -> None:
    root = folder(tmp_path / "photos", *NAMES)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    images = open_images(str(root), labels=tmp_path / "labels.csv")
    assert images.labels is not None
    assert (images.labels.tolist(), tuple(images.classes)) == (labels, classes)
    assert images.label_record["file"] == "labels.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,x\n2,y\n", r"do not match one to one: 1 pictures without a label \(3\)$"),
        ("id,label\n1,x\n2,y\n3,x\n4,x\n5,x\n6,x\n7,x\n", r": 4 labels without a picture \(4, 5, 6, \.\.\.\)$"),
        ("1,x\n2,y\n3,x\n3,y\n", r": 1 names that occur twice \(3\)$"),
        ("0,x\n1,x\n2,y\n3,x\n", r": 1 labels without a picture \(0\)$"),  # without a header
        ("1,0.5\n2,1\n3,1\n", "a class must be an integer from 0 or a text, but a/1.png has 0.5"),
        ("1,1.0\n2,0.0\n3,1.0\n", "a/1.png has 1.0"),
        ("1,-1\n2,1\n3,1\n", "sample 0 has -1, which is negative"),
        ("1,x\n2,\n3,x\n", r"a/2.png has no class \(''\)"),
        ("1,1\n2,NaN\n3,1\n", r"a/2.png has no class \('NaN'\)"),
        ("id,w,h\n1,2,3\n2,3,4\n3,4,5\n", r"has 3 columns \(id, w, h\), and the column of classes is not clear"),
        ("1\n2\n3\n", "its lines do not all have the same two or more fields"),
        ("1,x\n2\n3,x\n", "its lines do not all have the same two or more fields"),
        ("", "its lines do not all"),
        ("1,x\n2,y\0\n3,x\n", "holds null characters"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    root = folder(tmp_path / "photos", *NAMES)
    (tmp_path / "labels.csv").write_text(text, newline="")
    with pytest.raises(InvalidInputError, match=message) as caught:
        open_images(str(root), labels=tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)


def test_label_files_that_cannot_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", *NAMES)
    (tmp_path / "latin.csv").write_bytes("1,Löwe\n2,y\n3,x\n".encode("latin-1"))
    for path, message in (
        ("latin.csv", "not text in UTF-8"),
        ("nothing.csv", "is not a file"),
        ("photos", "is not a file"),
    ):
        done = extracted(root, tmp_path / "a", "--labels", tmp_path / path)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


def test_labels_from_python(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", *NAMES)
    store = extract("test_resnet", root, tmp_path / "a", labels={"1": "x", "2": "y", "3": "x"}, **OPTIONS)
    assert store.labels is not None
    assert (store.labels.tolist(), store.classes) == ([0, 1, 0], ("x", "y"))
    assert store.provenance["labels"] == {"source": "given", "matched_by": "file name without suffix"}
    assert open_images(str(root), labels=np.array([3, 1, 3])).labels.tolist() == [3, 1, 3]  # type: ignore[union-attr]
    for wrong in ([1, 2], [0.5, 1, 2], [float("nan"), 1.0, 2.0], [None, 1, 2], [[1, 0], [0, 1], [1, 0]], {"1": 0}):
        with pytest.raises(InvalidInputError):
            open_images(str(root), labels=wrong)


def test_a_table_of_labels_is_recorded_and_taken_by_limit_and_split(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "train/1.png", "val/2.png", "val/3.png")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("2.png", "x"), ("3.png", "y")])
    done = extracted(root, tmp_path / "a", "--split", "val", "--labels", tmp_path / "labels.csv", "--limit", "1")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "a").iterdir()
    with open_store(path) as store:
        assert store.labels is not None
        assert (store.labels.tolist(), store.classes) == ([0], ("x", "y"))
        record = store.provenance["labels"]
    assert (record["file"], record["matched_by"], len(record["sha256"])) == (
        "labels.csv",
        "id without the first folder",
        64,
    )


# --- names of models, and repeated options ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_and_its_store_have_the_name_that_is_given(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "1.png", "2.png")
    done = extracted(root, tmp_path / "a", "--name", "mine (epoch 3)")
    assert done.exit_code == 0, done.output
    with open_store(tmp_path / "a" / "mine (epoch 3).h5") as store:
        assert store.model == "mine (epoch 3)"
        assert store.provenance["architecture"] == "test_resnet"
    done = run(
        "extract", "test_resnet", "test_vit", *MODEL[1:3], "--data", root, "-o", tmp_path / "b",
        "--layers", "all", "--name", "one", "--name", "other",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["one.h5", "other.h5"]
    assert extract("test_resnet", root, tmp_path / "c", name="from Python", **OPTIONS).model == "from Python"


@pytest.mark.parametrize("name", ["", " a", "a/b", "a\\b", ".", "..", ".hidden", "a\nb", "a\0b", "x" * 201, "\udce9"])
def test_names_that_cannot_be_a_models(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="the model's name|cannot be a model's"):
        extract("digits_vit", "digits", tmp_path, name=name, weights="random", limit=4)


def test_names_are_one_for_each_model(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "1.png")
    models = ["extract", "test_resnet", "test_vit", "--data", str(root), "-o", str(tmp_path / "a")]
    assert "1 name for 2 models; give one for each, in their order" in run(*models, "--name", "a").stderr
    assert "two models have the name a" in run(*models, "--name", "a", "--name", "a").stderr


@pytest.mark.parametrize("command", sorted(main.commands))
def test_an_option_of_one_value_is_never_dropped(command: str, tmp_path: Path) -> None:
    """click silently takes the last value."""
    declared = main.commands[command]
    assert isinstance(declared, Command)
    for option in declared.params:
        if getattr(option, "multiple", True) or getattr(option, "is_flag", False) or option.param_type_name != "option":
            continue
        flag = max(option.opts, key=len)
        first, second = ["1"] * option.nargs, ["2"] * option.nargs
        done = run(command, flag, *first, min(option.opts, key=len), *second)  # with both of its names
        assert done.exit_code == 2
        assert f"{flag} occurs 2 times, but takes one value" in done.stderr, done.stderr


def test_flags_and_several_values_may_be_repeated(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "1.png")
    done = extracted(root, tmp_path / "a", "--dry-run", "--dry-run", "--name", "a")
    assert done.exit_code == 0, done.output


def test_a_study_file_takes_what_the_command_takes(tmp_path: Path) -> None:
    from repsim.study.study_file import read_protocol  # noqa: PLC0415

    folder(tmp_path / "photos", *(f"{k}.png" for k in range(8)))
    (tmp_path / "labels.csv").write_text("".join(f"{k},{'xy'[k % 2]}\n" for k in range(8)))
    path = tmp_path / "study.yaml"
    path.write_text(
        "models: [{name: test_resnet, weights: random, store: mine}]\nlayers: layer1.0\n"
        "data: {source: photos, labels: labels.csv, max_pixels: 500}\n"
    )
    data = read_protocol(path)[0].data
    assert (data.labels, data.max_pixels) == (str(tmp_path / "labels.csv"), 500)
    done = run("run", path)
    assert "untrained" in done.stderr  # no study is possible, but the store exists
    with open_store(tmp_path / "study" / "acts" / "mine.h5") as store:
        assert store.classes == ("x", "y")


@pytest.mark.slow
def test_the_command_neither_hangs_nor_warns_in_a_separate_process(tmp_path: Path) -> None:
    """The command runs on a pipe, damaged metadata, and a name in Latin-1."""
    root = folder(tmp_path / "photos", "a.png", "b.png")
    os.mkfifo(root / "pipe.jpg")
    os.rename(os.fsencode(root / "a.png"), os.fsencode(root) + b"/caf\xe9.png")  # noqa: PTH104
    picture(root / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x0f\0\x02\xff\xff\xff\xff\xff\xff\xff\xff")
    done = subprocess.run(
        [sys.executable, "-m", "repsim", "extract", *MODEL, "--data", root, "-o", tmp_path / "a", "--workers", "0"],
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().splitlines() == ["note: photos: left out: no regular files: 1 (pipe.jpg)"]


def test_a_report_finds_the_pictures_of_one_split(tmp_path: Path) -> None:
    """The ids begin with the split, and the folder holds other splits, too."""
    from repsim.report.stimuli import stimuli_of  # noqa: PLC0415

    root = folder(tmp_path / "photos", "train/a/1.png", "val/a/2.png", "val/a/3.png")
    names = list(open_images(str(root), split="val").ids)
    part = {"stimuli": {"linear": {"most": [0], "least": [1]}}, "coords": {"sample": names}}
    pictures = stimuli_of([part], str(root))["stimuli"]
    assert sorted(pictures) == names
    assert all("url" in view for (view,) in pictures.values())
