"""Files of a model of transformers: in a folder on this machine, or in a repository of the hub at one commit."""

import re
from collections.abc import Sequence
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
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, validate_repo_id
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from repsim.errors import Argument, InvalidInputError, Part, Remedy, UnknownNameError, WeightsError
from repsim.extractors.weights import check_blob, explain_download, quiet_downloads

PREFIX = "hf/"
CONFIG = "config.json"
_COPY = Remedy("or copy its files to a folder, and name that: hf/./FOLDER")


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
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            with quiet_downloads():
                if self.folder is None:
                    _check_connection(self.repo, name, self.asked)
                # after the first file the commit is known: all files are of one commit, and none is asked for twice
                path = Path(hf_hub_download(self.repo, name, revision=self.revision or self.asked))
        except Exception as error:
            missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if missing or (isinstance(error, LocalEntryNotFoundError) and not needed):
                return None
            if isinstance(error, RevisionNotFoundError):
                raise WeightsError(f"{PREFIX}{self.repo} has no revision {self.asked!r}") from None
            why, remedy = explain_download(error)
            parts: list[Part] = ["check the name, ", *_COPY.parts]
            if Argument("weights", "random") in remedy.arguments:
                parts += remedy.parts[remedy.parts.index(Argument("weights", "random")) + 1 :]
            raise WeightsError(f"{PREFIX}{self.name} cannot be loaded ({name}): {why}", remedy=Remedy(*parts)) from error
        finally:
            if shown:
                enable_progress_bars()
        check_blob(path)
        self.folder = path.parents[name.count("/")]
        return path

    def find_all(self, names: Sequence[str]) -> list[Path]:
        """Return the paths of those of the files that exist; none of them is necessary."""
        return [path for name in names if (path := self.find(name, needed=False)) is not None]


def _check_connection(repo: str, name: str, revision: str | None) -> None:
    """Raise the error of the hub if a file is neither in the cache nor on the hub; its client retries for 20 seconds."""
    if isinstance(try_to_load_from_cache(repo, name, revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=10)
    except HfHubHTTPError:
        raise
    except Exception as error:
        raise LocalEntryNotFoundError("no connection") from error


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
    path = Path(name).expanduser()
    if name.startswith(("./", "../", "/", "~")) or name in {".", ".."}:
        if not path.is_dir():
            parent = path.parent
            beside = sorted(p.name for p in parent.iterdir() if (p / CONFIG).is_file()) if parent.is_dir() else []
            raise UnknownNameError("folder", name, beside, where=f"in {PREFIX}{name}")
        if not (path / CONFIG).is_file():
            raise InvalidInputError(f"{PREFIX}{name}: this folder has no {CONFIG}, so it holds no model of transformers")
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
