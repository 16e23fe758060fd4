"""Files of a model of transformers: in a folder on this machine, or in a repository of the hub at one commit."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from repsim.errors import InvalidInputError, Remedy, UnknownNameError, WeightsError
from repsim.extractors.weights import ALTERNATIVES, check_blob, explain_download, quiet_downloads
from repsim.runtime.files import expand_home

PREFIX = "hf/"
CONFIG = "config.json"


@dataclass
class Repository:
    """Model by its name after ``hf/``: a folder, or a repository and what was asked for as its revision."""

    name: str
    """Name as the user wrote it, without the prefix."""
    folder: Path | None = None
    """Folder with the files; of a repository, the folder of its commit in the cache."""
    repo: str = ""
    """Owner and name on the hub, or "" for a folder of the user."""
    asked: str | None = None
    """Branch, tag or commit that the user named."""
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Name for the store: that of the folder, or of the repository with the revision that was asked for."""
        if not self.repo:
            assert self.folder is not None
            return self.folder.resolve().name
        return self.repo + (f"@{self.asked}" if self.asked else "")

    @property
    def revision(self) -> str | None:
        """Commit whose files were read; None for a folder of the user, and before the first file is read."""
        return self.folder.name if self.repo and self.folder is not None else None

    def read(self, *names: str) -> Path:
        """Return the path of the first of the files that exists.

        Raises
        ------
        WeightsError
            None of them exists, or the hub cannot be reached or refuses access.
        """
        for name in names:
            if (path := self.find(name, needed=name == names[-1])) is not None:
                return path
        raise WeightsError(f"{PREFIX}{self.name} has no file {' or '.join(names)}")

    def find(self, name: str, *, needed: bool = True) -> Path | None:
        """Return the path of a file, downloaded if necessary, or None if the model does not have it.

        Without a connection, a file that is not in the cache and not ``needed`` counts as one that does not exist.

        Raises
        ------
        WeightsError
            The hub cannot be reached, refuses access, or has no such repository or revision.
        """
        if not self.repo:
            assert self.folder is not None
            path = self.folder / name
            return path if path.is_file() else None
        try:
            with quiet_downloads(), _without_bars():
                path = _download(self.repo, name, self.revision or self.asked)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and needed:
                raise self._unavailable(name, error) from error
            return None
        except RevisionNotFoundError:
            raise WeightsError(f"{PREFIX}{self.repo} has no revision {self.asked!r}") from None
        except Exception as error:
            raise self._unavailable(name, error) from error
        check_blob(path)
        self.folder = path.parents[name.count("/")]  # of the commit, from which all other files are read
        return path

    def _unavailable(self, name: str, error: Exception) -> WeightsError:
        """Return the error for a file that the hub does not give."""
        why, remedy = explain_download(error)
        rest = remedy.parts[len(ALTERNATIVES.parts) :]  # weights= does not help, as the model is defined by its files
        return WeightsError(
            f"{PREFIX}{self.name} cannot be loaded ({name}): {why}",
            remedy=Remedy("check the name, or copy its files to a folder, and name that: hf/./FOLDER", *rest),
        )

    def find_all(self, names: Sequence[str]) -> list[Path]:
        """Return the paths of those of the files that exist; none of them is necessary."""
        return [path for name in names if (path := self.find(name, needed=False)) is not None]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of the hub's client."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _download(repo: str, name: str, revision: str | None) -> Path:
    """Return the path of a file in the cache, downloaded if necessary.

    Raises
    ------
    LocalEntryNotFoundError
        The file is not in the cache, and there is no connection. The client of the hub would try for 20 seconds.
    """
    cached = try_to_load_from_cache(repo, name, revision=revision)
    if isinstance(cached, str) and Path(cached).parent.name == revision:  # files of a commit do not change
        return Path(cached)
    if not isinstance(cached, str):
        try:
            get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=10)
        except HfHubHTTPError:
            raise
        except Exception as error:
            raise LocalEntryNotFoundError("there is no connection") from error
    return Path(hf_hub_download(repo, name, revision=revision))


def locate(name: str) -> Repository:
    """Return the folder or the repository that a name stands for, without reading or downloading a file.

    Parameters
    ----------
    name : str
        ``OWNER/NAME`` or ``NAME`` of the hub, with ``@REVISION`` if it is not the newest; or a folder: ``./FOLDER``, an
        absolute path, or any path to an existing folder with a ``config.json``. The prefix ``hf/`` may come before it.

    Raises
    ------
    UnknownNameError, InvalidInputError
        There is no such folder, the folder has no ``config.json``, or the hub cannot have such a name.

    Examples
    --------
    >>> locate("hf/sentence-transformers/all-MiniLM-L6-v2@main").asked
    'main'
    >>> locate("hf/a/b/c")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: hf/a/b/c: expected hf/OWNER/NAME, hf/NAME, or hf/./FOLDER ...
    """
    name = name.removeprefix(PREFIX)
    path = expand_home(Path(name))
    if name.startswith(("./", "../", "/", "~")) or name in {".", ".."}:
        if not path.is_dir():
            parent = path.parent
            beside = sorted(p.name for p in parent.iterdir() if (p / CONFIG).is_file()) if parent.is_dir() else []
            raise UnknownNameError("folder", name, beside, where=f"in {PREFIX}{name}")
        if not (path / CONFIG).is_file():
            raise InvalidInputError(f"{PREFIX}{name}: this folder has no {CONFIG}, so it is no model of transformers")
        return Repository(name, path)
    if name and (path / CONFIG).is_file():
        return Repository(name, path, notes=[f"{PREFIX}{name} is the folder {name}; the hub is not asked"])
    repo, at, revision = name.partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        valid = False
    else:
        valid = bool(re.fullmatch(r"[^/]+(/[^/]+)?", repo)) and not (at and not revision)
    if not valid:
        raise InvalidInputError(
            f"{PREFIX}{name}: expected {PREFIX}OWNER/NAME, {PREFIX}NAME, or {PREFIX}./FOLDER with a {CONFIG}, and "
            "perhaps @REVISION"
        )
    return Repository(name, None, repo, revision or None)
