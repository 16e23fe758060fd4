"""Read the pictures or texts of a folder, or the pictures of a tar archive: their files, ids, classes and splits.

A file is a picture if it is a regular file with a suffix of a format that Pillow opens, and a text if its suffix is
``.txt``. Hidden files and folders, and those that operating systems create, are ignored and are no classes. All other
files that are left out are counted (`SampleSource.left_out`).
"""

import os
import posixpath
import re
import stat
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from repsim.errors import Argument, ImageError, InvalidInputError, Remedy, SampleError, UnknownNameError, reason
from repsim.extractors.samples.decoding import MAX_PIXELS, suffixes, unreadable
from repsim.extractors.samples.encoded_pictures import EncodedPictures
from repsim.extractors.samples.source import NOUNS, LeftOut, SampleSource
from repsim.extractors.samples.texts import check_text, decode_text

TEXT_SUFFIXES = frozenset({".txt"})
"""Suffixes of text files in lower case."""
EVERYTHING = "."
"""Value of ``split`` that takes all pictures, even if folders are named like splits."""
_SYSTEM_NAMES = frozenset({
    "__macosx", "__pycache__", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip
"""Names that macOS, Windows, Synology, QNAP, file servers and Python create in folders, in addition to dot files."""
_WORDS = r"train(?:ing)?|val(?:id|idation)?|test(?:ing)?|eval(?:uation)?"
_SPLIT = re.compile(rf"({_WORDS}|dev|hold[-_ ]?out)([-_ ]?(set|split|data|images|imgs|\d+))*", re.IGNORECASE)
_SPLIT_WORD = re.compile(rf"(?<![^\W\d_])(?i:{_WORDS})(?![a-z])")
"""A word for a split inside a name, not after a letter and not before a lower-case letter: ``seg_train``, ``trainA``,
but not ``trains``."""
_Key = tuple[int, int]


def is_split(name: str) -> bool:
    """Return whether the name of a folder is that of a split of a data set.

    >>> [name for name in ("train", "Val", "test2017", "training_set", "trains", "cat") if is_split(name)]
    ['train', 'Val', 'test2017', 'training_set']
    """
    return _SPLIT.fullmatch(name) is not None


def splits_among(names: Iterable[str]) -> list[str]:
    """Return the names that are those of splits, and names that differ from each other only in the word for a split.

    >>> splits_among(["seg_train", "seg_test", "trainA", "testA", "val", "cat", "test_tube"])
    ['seg_test', 'seg_train', 'testA', 'trainA', 'val']
    """
    names = sorted(names)
    rests = {name: _SPLIT_WORD.sub("*", name, count=1) for name in names}
    counts = Counter(rest for name, rest in rests.items() if rest != name)
    return [name for name in names if is_split(name) or counts[rests[name]] > 1]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is ignored.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "__MACOSX", "Thumbs.db", "cat")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def printable(path: str) -> str:
    r"""Return a path as an id: bytes that are not UTF-8, and control characters, become ``\x..``.

    >>> printable("caf\udce9.png"), printable("café.png")
    ('caf\\xe9.png', 'café.png')
    """
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() or not _is_control(char) else f"\\x{ord(char):02x}" for char in text)


def _is_control(char: str) -> bool:
    return ord(char) < 32 or 127 <= ord(char) < 160


class _Tree(SampleSource):
    """Files by relative path: a flat list, or one folder per class.

    Parameters
    ----------
    name : str
        Name of the source.
    paths : iterable of str
        Relative paths with ``/`` between their parts.
    split : str, optional
        Only files below this folder are kept.
    tops : iterable of str
        Names of the folders at the top, for the message about an unknown split.
    """

    problem: ClassVar[type[SampleError]] = SampleError
    """Class of the errors."""
    wanted: ClassVar[str] = ""
    """Description of the files that are read, for messages."""

    def __init__(self, name: str, paths: Iterable[str], split: str | None, tops: Iterable[str] = ()) -> None:
        name = printable(name)
        one, several = NOUNS[self.modality]
        self.paths = sorted(paths)
        left_out = f"; left out: {self.left_out}" if self.left_out else ""
        inside = split if split not in {None, EVERYTHING} else None
        if inside is not None and (not self.paths or _invalid(inside)):
            folders = sorted({*tops, *(path.split("/", 1)[0] for path in self.paths if "/" in path)})
            if inside in folders:
                raise self.problem(f"no {one} found in {name} [{inside}]{left_out}")
            raise UnknownNameError(
                "split",
                inside,
                folders,
                remedy=Remedy(Argument("split"), f" names a folder directly inside {name}"),
            )
        if not self.paths:
            raise self.problem(f"no {one} found in {name} (looked for {self.wanted}){left_out}")
        if split is None:
            _refuse_splits(name, self.paths)
        self.name = name if split is None else f"{name} [{split}]"
        self.ids = [printable(path) for path in self.paths]
        if len(set(self.ids)) < len(self.ids):
            twice = next(a for a, b in zip(sorted(self.ids), sorted(self.ids)[1:], strict=False) if a == b)
            raise self.problem(f"two {several} of {name} would have the same id {twice}; rename one")
        start = len(inside) + 1 if inside else 0
        parents = [path[start:].rpartition("/")[0] for path in self.ids]
        if all(parents):  # if a file lies beside the folders, these are not classes
            self.classes = sorted(set(parents))
            number = {c: i for i, c in enumerate(self.classes)}
            self.labels = np.array([number[parent] for parent in parents], dtype=np.int64)


class _PictureTree(_Tree, EncodedPictures):
    """Pictures by relative path."""

    problem = ImageError
    wanted = ".jpg, .png, .webp and all other formats of Pillow"

    def file_name(self, index: int) -> str:
        """Return the relative path of one picture."""
        return self.ids[index]


class _FolderTree(_Tree):
    """Files of a folder, which is read recursively; links are followed."""

    def _walk(self, root: Path, split: str | None, endings: frozenset[str]) -> None:
        self.root = root
        inside = split if split not in {None, EVERYTHING} else ""
        paths: list[str] = []
        if not (inside and (_invalid(inside) or not (root / inside).is_dir())):
            paths = _Walk(root, self.left_out, endings, self.noun).run(inside or "")
        tops = [entry.name for entry in _entries(str(root)) if _is_folder(entry) and not is_hidden(entry.name)]
        super().__init__(root.name or str(root), paths, split, tops if inside else ())

    def path(self, index: int) -> Path:
        """Return the path of one file."""
        return self.root / self.paths[index]

    def sizes(self) -> Sequence[int]:
        """Return the file sizes in bytes; 0 for a broken link."""
        files = [self.path(index) for index in range(len(self.ids))]
        return [file.stat().st_size if file.exists() else 0 for file in files]


class Folder(_FolderTree, _PictureTree):
    """A folder of pictures, flat or with one folder per class. It is read recursively, and links are followed."""

    def __init__(self, root: Path, split: str | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self._walk(root, split, suffixes())

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of one file."""
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise unreadable(self.ids[index], reason(error)) from None


class TextFolder(_FolderTree):
    """A folder of text files, flat or with one folder per class; each file is one text."""

    modality = "text"
    quick = True
    wanted = ".txt"

    def __init__(self, root: Path, split: str | None = None) -> None:
        self._walk(root, split, TEXT_SUFFIXES)
        self.record = {"ids_from": "file names"}

    def load(self, index: int) -> str:
        """Return the text of one file, without the line ends after its last line."""
        name = self.ids[index]
        try:
            raw = self.path(index).read_bytes()
        except OSError as error:
            raise SampleError(f"cannot read the text {name}: {reason(error)}") from None
        return check_text(decode_text(raw, name).rstrip("\r\n"), name)


class _Walk:
    """Recursive listing of files below a folder by suffix, with every folder and file listed once despite links.

    Real folders are read first. A link is followed if its target has not been read yet.
    """

    def __init__(self, root: Path, left_out: LeftOut, endings: frozenset[str], noun: str) -> None:
        self.root, self.left_out, self.suffixes, self.noun = str(root), left_out, endings, noun
        real = Path(os.path.realpath(root))
        self.above = {key for folder in (real, *real.parents) if (key := _key(str(folder)))}
        self.seen: set[_Key] = set()
        self.folder_links: list[str] = []
        self.file_links: list[str] = []
        self.files: list[str] = []

    def run(self, start: str) -> list[str]:
        """Return the relative paths of the files below ``start``, unordered."""
        self._descend(start)
        while self.folder_links:
            self.folder_links.sort(key=lambda link: (link.count("/"), link), reverse=True)
            link = self.folder_links.pop()
            key = _key(self._absolute(link))
            if key in self.seen or key in self.above:
                self.left_out.add("links to folders that are read already", printable(link))
            else:
                self._descend(link)
        if self.file_links:
            self._follow_files()
        return self.files

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - called a million times

    def _descend(self, start: str) -> None:
        """Read a folder and the real folders below it."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            key = _key(self._absolute(folder))
            if key in self.seen:  # mounted twice
                self.left_out.add("folders that are read already", printable(folder))
                continue
            if key is not None:
                self.seen.add(key)
            for entry in _entries(self._absolute(folder)):
                if is_hidden(entry.name):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._add_link(path, is_folder=_is_folder(entry))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif self._is_wanted(path):
                    if entry.is_file(follow_symlinks=False):
                        self.files.append(path)
                    else:
                        self.left_out.add("no regular files", printable(path))

    def _add_link(self, path: str, *, is_folder: bool) -> None:
        if is_folder:
            self.folder_links.append(path)
        elif self._is_wanted(path):
            self.file_links.append(path)

    def _is_wanted(self, path: str) -> bool:
        return _has_suffix(path, self.suffixes, self.left_out)

    def _follow_files(self) -> None:
        """Add the files that links lead to, each once. A broken link is kept, so that reading it raises an error."""
        targets = {os.path.realpath(self._absolute(path)) for path in self.files}
        for link in sorted(self.file_links):
            real = os.path.realpath(self._absolute(link))
            try:
                regular = stat.S_ISREG(os.stat(real).st_mode)  # noqa: PTH116 - a string, not a Path
            except OSError:
                regular = True
            if not regular:
                self.left_out.add("no regular files", printable(link))
            elif real in targets:
                self.left_out.add(f"links to {self.noun} that are taken already", printable(link))
            else:
                targets.add(real)
                self.files.append(link)


class Tar(_PictureTree):
    """A tar archive of pictures. It is not unpacked: each member is read at its offset."""

    def __init__(self, path: Path, split: str | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        self._members = self._pictures(dict(list_members(path, self.left_out)))
        tops = {name.split("/", 1)[0] for name in self._members if "/" in name}
        if split not in {None, EVERYTHING}:
            self._members = {name: extent for name, extent in self._members.items() if name.startswith(f"{split}/")}
        super().__init__(path.name, self._members, split, tops)

    def _pictures(self, members: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        endings = suffixes()
        return {
            name: extent
            for name, extent in members.items()
            if not _any_hidden(name) and _has_suffix(name, endings, self.left_out)
        }

    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of one member."""
        offset, size = self._members[self.paths[index]]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise unreadable(self.ids[index], reason(error)) from None

    def sizes(self) -> Sequence[int]:
        """Return the sizes of the members in bytes."""
        return [self._members[path][1] for path in self.paths]


def holds_texts(root: Path) -> bool:
    """Return whether a folder holds text files and no pictures. The search ends at the first picture."""
    endings = suffixes()
    texts = False
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for file in files:
            suffix = posixpath.splitext(file)[1].lower()
            if is_hidden(file):
                continue
            if suffix in endings:
                return False
            texts = texts or suffix in TEXT_SUFFIXES
        if any(Path(folder, name).is_symlink() for name in folders):  # may lead to pictures
            return False
    return texts


def list_members(path: Path, left_out: LeftOut) -> list[tuple[str, tuple[int, int]]]:
    """Return name, offset and size of every file of a tar archive in its order, hard links to these included.

    Links and devices with the suffix of a picture are counted in ``left_out``.

    Raises
    ------
    ImageError
        The file is no tar archive, compressed, damaged or cut off.
    """
    name = printable(path.name)
    try:
        is_tar = tarfile.is_tarfile(path)
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}") from None
    if not is_tar:
        raise ImageError(f"{name} is a file but no tar archive; use a folder of pictures or a .tar")
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below; an error here means compression
    except tarfile.TarError:
        raise ImageError(
            f"{name} is compressed, so its files cannot be read individually; unpack it, or make a plain .tar"
        ) from None
    damaged = f"{name} is damaged or cut off"
    members: list[tuple[str, tuple[int, int]]] = []
    extents: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with archive, path.open("rb") as file:
        try:
            for member in archive:
                inner = _plain(member.name)
                if member.isfile() and not member.issparse():
                    extents[inner] = (member.offset_data, member.size)
                    members.append((inner, extents[inner]))
                elif member.islnk() and (target := _plain(member.linkname)) in extents:
                    extents[inner] = extents[target]  # the same file under a second name
                    members.append((inner, extents[inner]))
                elif member.issym():
                    links[inner] = posixpath.normpath(posixpath.join(posixpath.dirname(inner), member.linkname))
                elif not member.isdir() and not _any_hidden(inner) and _has_suffix(inner, suffixes(), LeftOut()):
                    left_out.add("no regular files", printable(inner))
        except (tarfile.TarError, OSError) as error:
            raise ImageError(f"{damaged} after {len(extents)} files: {reason(error)}") from None
        file.seek(archive.offset)  # tarfile does not notice a cut between two members or within a header
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ImageError(f"{damaged} after {len(extents)} files: it has no end mark")
    for link in sorted(links):
        if _any_hidden(link) or link in extents or not _has_suffix(link, suffixes(), LeftOut()):
            continue
        inside = links[link] in extents
        why = "links to pictures that are taken already" if inside else "links that lead out of the archive"
        left_out.add(why, printable(link))
    return members


def _refuse_splits(name: str, paths: Sequence[str]) -> None:
    """Raise `InvalidInputError` if folders are splits, so that training and test pictures would be mixed.

    At the top, where data sets have their splits, one folder with the name of a split is enough. At deeper levels two
    are needed, as a single one may be a class.
    """
    children: dict[str, set[str]] = defaultdict(set)
    for parent in {path.rpartition("/")[0] for path in paths}:
        parts = parent.split("/") if parent else []
        for depth, part in enumerate(parts):
            children["/".join(parts[:depth])].add(part)
    top = ""
    while len(children[top]) == 1 and not any(path.rpartition("/")[0] == top for path in paths):
        top = f"{top}/{next(iter(children[top]))}".lstrip("/")
    for parent in sorted(children, key=lambda path: (path != top, path)):
        splits = splits_among(children[parent])
        others = sorted(children[parent].difference(splits))
        if len(splits) > 1 or (splits and others and parent == top):
            prefix = f"{parent}/" if parent else ""
            split_names = ", ".join(printable(prefix + split) for split in splits)
            beside = f" beside {', '.join(map(printable, others[:3]))}{', ...' if len(others) > 3 else ''}"
            raise InvalidInputError(
                f"{name} holds the split{'s' if len(splits) > 1 else ''} {split_names}{beside if others else ''}",
                remedy=Remedy(
                    "choose one with ",
                    Argument("split", metavar="NAME"),
                    ", or take everything with ",
                    Argument("split", EVERYTHING),
                ),
            )


def _has_suffix(path: str, endings: frozenset[str], left_out: LeftOut) -> bool:
    """Return whether a path has the suffix of a picture; if not, count it in ``left_out``."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in endings:
        left_out.add(printable(suffix) or "without a suffix", printable(path))
    return suffix in endings


def _invalid(split: str) -> bool:
    """Return whether a split leads out of its folder, or into a hidden one."""
    return split.startswith("/") or any(part in {"", ".."} or is_hidden(part) for part in split.split("/"))


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _any_hidden(path: str) -> bool:
    return any(map(is_hidden, path.split("/")))


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, sorted by name.

    Raises
    ------
    ImageError
        The folder cannot be listed; without the error its pictures would be missing silently.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"cannot list the folder {printable(folder)}: {error.strerror}") from None


def _key(folder: str) -> _Key | None:
    try:
        status = os.stat(folder)  # noqa: PTH116 - a string, not a Path
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False
