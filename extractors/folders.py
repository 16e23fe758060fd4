"""Find the pictures of a folder or a tar archive: which files count, what their ids and classes are, which split.

A file counts if it is a regular one with the suffix of a format that Pillow opens. Hidden files and folders, and those
that systems leave behind, never count and are no classes. Everything else that does not count is counted and named
(`ImageSource.left_out`).
"""

import io
import os
import posixpath
import re
import stat
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from repsim.errors import Argument, ImageError, InvalidInputError, Remedy, UnknownNameError, reason
from repsim.extractors.decoding import MAX_PIXELS, decode, has_frames, suffixes, suffixes_of_frames, unreadable
from repsim.extractors.sources import Content, ImageSource, LeftOut, digest

EVERYTHING = "."
"""The split that is no split: everything, where folders look like splits."""
_LITTER = frozenset({
    "__macosx", "__pycache__", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip
"""What macOS, Windows, Synology, QNAP, servers and Python leave in folders, beside names that begin with a dot."""
_WORDS = r"train(?:ing)?|val(?:id|idation)?|test(?:ing)?|eval(?:uation)?"
_SPLIT = re.compile(rf"({_WORDS}|dev|hold[-_ ]?out)([-_ ]?(set|split|data|images|imgs|\d+))*", re.IGNORECASE)
_SPLIT_WORD = re.compile(rf"(?<![^\W\d_])(?i:{_WORDS})(?![a-z])")
"""One of these inside a name, after no letter and before no small one: ``seg_train``, ``trainA``, not ``trains``."""
_Key = tuple[int, int]


def is_split(name: str) -> bool:
    """Whether a folder's name says that it is one part of a data set.

    >>> [name for name in ("train", "Val", "test2017", "training_set", "trains", "cat") if is_split(name)]
    ['train', 'Val', 'test2017', 'training_set']
    """
    return _SPLIT.fullmatch(name) is not None


def splits_among(names: Iterable[str]) -> list[str]:
    """Names of folders that are called like a split, and of those that differ in the word for their split only.

    >>> splits_among(["seg_train", "seg_test", "trainA", "testA", "val", "cat", "test_tube"])
    ['seg_test', 'seg_train', 'testA', 'trainA', 'val']
    """
    names = sorted(names)
    rests = {name: _SPLIT_WORD.sub("*", name, count=1) for name in names}
    counts = Counter(rest for name, rest in rests.items() if rest != name)
    return [name for name in names if is_split(name) or counts[rests[name]] > 1]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name never counts.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "__MACOSX", "Thumbs.db", "cat")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _LITTER


def printable(path: str) -> str:
    r"""Make an id of a path: bytes that are no UTF-8 and control characters become ``\x..``, all else stays.

    >>> printable("caf\udce9.png"), printable("café.png")
    ('caf\\xe9.png', 'café.png')
    """
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() or not _is_control(char) else f"\\x{ord(char):02x}" for char in text)


def _is_control(char: str) -> bool:
    return ord(char) < 32 or 127 <= ord(char) < 160


class _Tree(ImageSource):
    """Pictures by relative path: a flat list, or one folder a class."""

    content_kind = "files"

    def __init__(self, name: str, paths: Iterable[str], split: str | None, tops: Iterable[str] = ()) -> None:
        """``paths`` are relative, with / between their parts; ``split`` keeps those under that folder."""
        name = printable(name)
        self.paths = sorted(paths)
        beside = f"; left out: {self.left_out}" if self.left_out else ""
        inside = split if split not in {None, EVERYTHING} else None
        if inside is not None and (not self.paths or _invalid(inside)):
            known = sorted({*tops, *(path.split("/", 1)[0] for path in self.paths if "/" in path)})
            if inside in known:
                raise ImageError(f"no picture found in {name} [{inside}]{beside}")
            raise UnknownNameError(
                "split",
                inside,
                known,
                remedy=Remedy(Argument("split"), f" names a folder directly inside {name}"),
            )
        if not self.paths:
            raise ImageError(
                f"no picture found in {name} (looked for .jpg, .png, .webp and whatever else Pillow opens){beside}"
            )
        if split is None:
            _refuse_splits(name, self.paths)
        self.name = name if split is None else f"{name} [{split}]"
        self.ids = [printable(path) for path in self.paths]
        if len(set(self.ids)) < len(self.ids):
            twice = next(
                one for one, other in zip(sorted(self.ids), sorted(self.ids)[1:], strict=False) if one == other
            )
            raise ImageError(f"two pictures of {name} would both be called {twice}; rename one")
        start = len(inside) + 1 if inside else 0
        parents = [path[start:].rpartition("/")[0] for path in self.ids]
        if all(parents):  # a picture beside the class folders means that folders are not classes
            self.classes = sorted(set(parents))
            number = {c: i for i, c in enumerate(self.classes)}
            self.labels = np.array([number[parent] for parent in parents], dtype=np.int64)

    def _read(self, index: int) -> bytes:
        """All bytes of one file."""
        raise NotImplementedError

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        return decode(io.BytesIO(self._read(index)), self.ids[index], self.max_pixels)

    def examine(self, index: int, *, decode: bool = False) -> Content:
        """Hash the bytes of one file, which is read once."""
        data = self._read(index)
        if decode:
            _decode(io.BytesIO(data), self.ids[index], self.max_pixels)
        frames = Path(self.ids[index]).suffix.lower() in suffixes_of_frames() and has_frames(data)
        return Content(digest(data), frames)


_decode = decode


class Folder(_Tree):
    """A folder of pictures, flat or with one folder a class, read recursively, links included."""

    def __init__(self, root: Path, split: str | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.max_pixels = root, max_pixels
        inside = split if split not in {None, EVERYTHING} else ""
        paths: list[str] = []
        if not (inside and (_invalid(inside) or not (root / inside).is_dir())):
            paths = _Walk(root, self.left_out).run(inside or "")
        tops = [entry.name for entry in _listed(str(root)) if _is_folder(entry) and not is_hidden(entry.name)]
        super().__init__(root.name or str(root), paths, split, tops if inside else ())

    def path(self, index: int) -> Path:
        """Return the place of one picture."""
        return self.root / self.paths[index]

    def _read(self, index: int) -> bytes:
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise unreadable(self.ids[index], reason(error)) from None

    def sizes(self) -> Sequence[int]:
        """File sizes; 0 for a link that leads nowhere."""
        files = [self.path(index) for index in range(len(self.ids))]
        return [file.stat().st_size if file.exists() else 0 for file in files]


class _Walk:
    """Lists the pictures below a folder, every folder and every file once, whatever links lead to it.

    Real folders first: a link is followed where it leads to something that was not read yet.
    """

    def __init__(self, root: Path, left_out: LeftOut) -> None:
        self.root, self.left_out, self.suffixes = str(root), left_out, suffixes()
        real = Path(os.path.realpath(root))
        self.above = {key for folder in (real, *real.parents) if (key := _key(str(folder)))}
        self.seen: set[_Key] = set()
        self.folder_links: list[str] = []
        self.file_links: list[str] = []
        self.files: list[str] = []

    def run(self, start: str) -> list[str]:
        """Return relative paths of the pictures below ``start``, in no order."""
        self._descend(start)
        while self.folder_links:
            self.folder_links.sort(key=lambda link: (link.count("/"), link), reverse=True)
            link = self.folder_links.pop()
            key = _key(self._place(link))
            if key in self.seen or key in self.above:
                self.left_out.add("links to folders that are read already", printable(link))
            else:
                self._descend(link)
        if self.file_links:
            self._follow_files()
        return self.files

    def _place(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - a million times

    def _descend(self, start: str) -> None:
        """Read a folder and the real ones below it."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            key = _key(self._place(folder))
            if key in self.seen:  # mounted twice
                self.left_out.add("folders that are read already", printable(folder))
                continue
            if key is not None:
                self.seen.add(key)
            for entry in _listed(self._place(folder)):
                if is_hidden(entry.name):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._take_link(path, is_folder=_is_folder(entry))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif self._is_picture(path):
                    if entry.is_file(follow_symlinks=False):
                        self.files.append(path)
                    else:
                        self.left_out.add("no regular files", printable(path))

    def _take_link(self, path: str, *, is_folder: bool) -> None:
        if is_folder:
            self.folder_links.append(path)
        elif self._is_picture(path):
            self.file_links.append(path)

    def _is_picture(self, path: str) -> bool:
        return _has_suffix(path, self.suffixes, self.left_out)

    def _follow_files(self) -> None:
        """Take what links lead to, once. A link that leads nowhere stays: reading it fails, with its name."""
        taken = {os.path.realpath(self._place(path)) for path in self.files}
        for link in sorted(self.file_links):
            real = os.path.realpath(self._place(link))
            try:
                regular = stat.S_ISREG(os.stat(real).st_mode)  # noqa: PTH116 - of a string
            except OSError:
                regular = True
            if not regular:
                self.left_out.add("no regular files", printable(link))
            elif real in taken:
                self.left_out.add("links to pictures that are taken already", printable(link))
            else:
                taken.add(real)
                self.files.append(link)


class Tar(_Tree):
    """A tar archive of pictures, not unpacked: a member is read by its offset."""

    def __init__(self, path: Path, split: str | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        self._members = self._pictures(self._list())
        tops = {name.split("/", 1)[0] for name in self._members if "/" in name}
        if split not in {None, EVERYTHING}:
            self._members = {name: at for name, at in self._members.items() if name.startswith(f"{split}/")}
        super().__init__(path.name, self._members, split, tops)

    def _list(self) -> dict[str, tuple[int, int]]:
        """Find offset and size of every file, links to files of the archive among them."""
        path, name = self.path, printable(self.path.name)
        try:
            is_tar = tarfile.is_tarfile(path)
        except OSError as error:
            raise ImageError(f"cannot read {name}: {error.strerror}") from None
        if not is_tar:
            raise ImageError(f"{name} is a file but no tar archive; give a folder of pictures or a .tar")
        try:
            archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below; an error here has a meaning of its own
        except tarfile.TarError:
            raise ImageError(
                f"{name} is compressed: its pictures cannot be read in any order; unpack it, or make a plain .tar"
            ) from None
        damaged = f"{name} is damaged or cut off"
        members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        with archive, path.open("rb") as file:
            try:
                for member in archive:
                    where = _plain(member.name)
                    if member.isfile() and not member.issparse():
                        members[where] = (member.offset_data, member.size)
                    elif member.islnk() and (target := _plain(member.linkname)) in members:
                        members[where] = members[target]  # the same file under a second name
                    elif member.issym():
                        links[where] = posixpath.normpath(posixpath.join(posixpath.dirname(where), member.linkname))
                    elif not member.isdir() and not _any_hidden(where) and _has_suffix(where, suffixes(), LeftOut()):
                        self.left_out.add("no regular files", printable(where))
            except (tarfile.TarError, OSError) as error:
                raise ImageError(f"{damaged} after {len(members)} files: {reason(error)}") from None
            file.seek(archive.offset)  # tarfile takes a cut between two members, or within a header, for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ImageError(f"{damaged} after {len(members)} files: it has no end mark")
        for where in sorted(links):
            if _any_hidden(where) or where in members or not _has_suffix(where, suffixes(), LeftOut()):
                continue
            inside = links[where] in members
            why = "links to pictures that are taken already" if inside else "links that lead out of the archive"
            self.left_out.add(why, printable(where))
        return members

    def _pictures(self, members: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        endings = suffixes()
        return {
            name: where
            for name, where in members.items()
            if not _any_hidden(name) and _has_suffix(name, endings, self.left_out)
        }

    def _read(self, index: int) -> bytes:
        offset, size = self._members[self.paths[index]]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise unreadable(self.ids[index], reason(error)) from None

    def sizes(self) -> Sequence[int]:
        """Member sizes."""
        return [self._members[path][1] for path in self.paths]


def _refuse_splits(name: str, paths: Sequence[str]) -> None:
    """Raise `InvalidInputError` where training pictures lie beside others, whatever third folder lies there, too.

    One folder that is called like a split is enough at the top, where data sets have theirs; further below it takes
    two, as one may be a class.
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
            under = f"{parent}/" if parent else ""
            which = ", ".join(printable(under + split) for split in splits)
            beside = f" beside {', '.join(map(printable, others[:3]))}{', ...' if len(others) > 3 else ''}"
            raise InvalidInputError(
                f"{name} holds the split{'s' if len(splits) > 1 else ''} {which}{beside if others else ''}",
                remedy=Remedy(
                    "choose one with ",
                    Argument("split", metavar="NAME"),
                    ", or take everything with ",
                    Argument("split", EVERYTHING),
                ),
            )


def _has_suffix(path: str, endings: frozenset[str], left_out: LeftOut) -> bool:
    """Whether a path ends like a picture; counts it otherwise."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in endings:
        left_out.add(printable(suffix) or "without a suffix", printable(path))
    return suffix in endings


def _invalid(split: str) -> bool:
    """Whether a split leads out of its folder, or into a hidden one."""
    return split.startswith("/") or any(part in {"", ".."} or is_hidden(part) for part in split.split("/"))


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _any_hidden(path: str) -> bool:
    return any(map(is_hidden, path.split("/")))


def _listed(folder: str) -> list["os.DirEntry[str]"]:
    """Read a folder. One that cannot be listed is an error: its pictures would be missing without a word."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"cannot list the folder {printable(folder)}: {error.strerror}") from None


def _key(folder: str) -> _Key | None:
    try:
        facts = os.stat(folder)  # noqa: PTH116 - of a string
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
