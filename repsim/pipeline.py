"""Do what a study file says, from models to figures: what `repsim.run_study` and `repsim run` do."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xarray as xr

from repsim import figures, metrics
from repsim.errors import Argument, Function, OtherSettingsError, OutputError, Remedy
from repsim.extraction.jobs import Extraction
from repsim.extraction.options import ExtractOptions, Passes
from repsim.extraction.runs import Extracted, Listeners, extract_steps, plan_extraction
from repsim.report.page import write_report
from repsim.results.files import open_study, save_result
from repsim.runtime.events import Note, UpToDate, log_notes
from repsim.runtime.files import check_output, locked, remove_partial, replacing
from repsim.runtime.memory import parse_size
from repsim.runtime.options import fields_of
from repsim.runtime.processes import ranks
from repsim.runtime.progress import Steps
from repsim.stores.store import open_store
from repsim.study.options import StatisticsOptions, UniversalityOptions
from repsim.study.study_file import Protocol, parse_protocol, read_protocol
from repsim.study.universality import conduct


@dataclass(frozen=True)
class Studied:
    """The study, which is saved at ``path``."""

    study: xr.Dataset
    path: Path


@dataclass(frozen=True)
class Drawn:
    """A figure, or the report page; without a path the study gives no such figure, and ``what`` says why."""

    name: str
    what: str
    path: Path | None


@dataclass(frozen=True)
class StudyPlan:
    """A study file, read and checked: what it says, and where everything goes."""

    file: Path
    protocol: Protocol
    text: str
    out: Path

    @property
    def target(self) -> Path:
        """File of the study."""
        return self.out / "study.nc"

    @property
    def options(self) -> ExtractOptions:
        """How the models are extracted. Stores of other settings are never replaced: they may be of another study."""
        return ExtractOptions(**fields_of(self.protocol, Passes))


def run_study(
    file: str | os.PathLike[str], *, overwrite: bool = False, progress: Steps | Literal[False] | None = None
) -> xr.Dataset:
    r"""Do what a study file says: extract its models, study how universal they are, draw what was found.

    Leaves the stores, the study, figures, the report page and a copy of the file in one folder (docs/study-file.md).
    The same call again goes on where an interrupted one stopped, and computes nothing that is there. Under torchrun the
    processes share the extraction, and the first does the rest.

    Parameters
    ----------
    file
        The study file.
    overwrite
        Replace a study of other settings; stores are kept.
    progress
        Called with the name of each step of the work; returns what is called with the number of steps done and of all.
        By default a notebook shows bars; False is silent.

    Returns
    -------
    xarray.Dataset
        The study, as `repsim.universality` gives it.

    Raises
    ------
    InvalidInputError, UnknownNameError
        The file says what cannot be meant; the message names the line.
    OutputError
        The folder holds a study, or stores, of other settings.
    RepsimError
        As `repsim.extract` and `repsim.universality`.

    Examples
    --------
    >>> import tempfile
    >>> text = "models: [digits_vit.seed0, digits_vit.seed1]\ndata: {source: digits, limit: 16}\n"
    >>> more = "metrics: [cka]\npermutations: 19\ndraws: 20\nfigures: false\nreport: false\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = Path(folder, "study.yaml").write_text(text + more)
    ...     study = run_study(f"{folder}/study.yaml")
    ...     sorted(path.name for path in Path(folder, "study").iterdir())
    ['acts', 'study.nc', 'study.yaml']
    """
    plan = plan_study(Path(file))
    with ranks() as me:
        for _ in log_notes(study_steps(plan, overwrite=overwrite, progress=progress)):
            pass
        me.wait()  # for the first, which alone makes the study
    return open_study(plan.target)


def plan_study(file: Path) -> StudyPlan:
    """Read a study file, and refuse what can be refused before anything is computed."""
    protocol, text = read_protocol(file)
    for spec in protocol.metrics:  # a slip of the hand, here or below, should not cost an extraction
        metrics.select(spec)
    if isinstance(protocol.memory, str):
        parse_size(protocol.memory)
    out = Path(protocol.out) if protocol.out else file.with_suffix("")
    if out == file or out.is_file():
        raise OutputError(f"{out} is a file; name another folder with the key `out`")
    return StudyPlan(file, protocol, text, out)


def planned_extractions(plan: StudyPlan, *, listeners: Listeners = lambda _: None) -> Iterator[Note | Extraction]:
    """Yield what would be extracted, a model at a time; nothing is computed or written."""
    protocol = plan.protocol
    return plan_extraction(protocol.models, protocol.data, plan.out / "acts", plan.options, listeners=listeners)


def study_steps(
    plan: StudyPlan,
    *,
    overwrite: bool = False,
    progress: Steps | Literal[False] | None = None,
    command: str | None = None,
) -> Iterator[Note | UpToDate | Extracted | Studied | Drawn]:
    """Do a study, and yield what happens: stores, the study, figures and the report page, as each is finished.

    Among the processes of torchrun only the first goes on after the extraction, and yields more than stores.
    """
    protocol, target = plan.protocol, plan.target
    listeners: Listeners = progress if callable(progress) else lambda _: progress
    stores: dict[int, Path] = {}
    with ranks() as me:
        try:
            for event in extract_steps(
                protocol.models, protocol.data, plan.out / "acts", plan.options, listeners=listeners, command=command
            ):
                if isinstance(event, Extracted):
                    stores[event.model] = event.path
                yield event
        except OtherSettingsError as error:  # overwrite=True of a study replaces the study, and not this
            error.remedy = Remedy("delete it, or name another folder with the key `out`")
            raise
    if not me.first:
        return
    with locked(target):  # for hours: a second run would find the study there at its end
        study = None if overwrite or not target.exists() else _same_study(plan, list(stores.values()))
        if study is None:
            check_output(target, overwrite=overwrite)
            study = _conduct(plan, [stores[k] for k in sorted(stores)], progress, command).assign_attrs(
                study_file=plan.text
            )
            save_result(study, target, overwrite=overwrite)
            _keep_text(plan.text, plan.out)
        else:
            yield UpToDate(target, "holds this study already")
            remove_partial(target)
            if not (plan.out / "study.yaml").exists():  # the run that saved the study was killed right then
                _keep_text(str(study.attrs["study_file"]), plan.out)
        yield Studied(study, target)
        yield from _draw(study, protocol, plan.out)


def _conduct(
    plan: StudyPlan, stores: Sequence[Path], steps: Steps | Literal[False] | None, command: str | None
) -> xr.Dataset:
    protocol = plan.protocol
    options = UniversalityOptions(
        **fields_of(protocol, StatisticsOptions),
        controls_folder=str(plan.out / "controls"),
        data=protocol.data.source,
        split=protocol.data.split,
        data_root=protocol.data.root,
    )
    return conduct(stores, options, steps=steps, command=command)


def _keep_text(text: str, out: Path) -> None:
    with replacing(out / "study.yaml", overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _same_study(plan: StudyPlan, stores: Sequence[Path]) -> xr.Dataset:
    """The study that is there, if it is the one that the file describes; else an error that says what differs."""
    target = plan.target
    study = open_study(target)
    text = study.attrs.get("study_file")
    if text is None:
        raise OutputError(
            f"{target} was not made by ",
            Function("repsim.run_study"),
            path=target,
            remedy=Remedy("use ", Argument("overwrite", value=True), " to replace it, or another folder"),
        )
    differ = [f"the key {key}" for key in plan.protocol.differences(parse_protocol(str(text), plan.file))]
    checksums = {store["model"]: store["checksum"] for store in json.loads(study.attrs["stores"])}
    for path in stores:
        with open_store(path) as store:
            if checksums.get(store.model) != store.checksum:
                differ.append(f"the store of {store.model}")
    if differ:
        raise OutputError(
            f"{target} is of another study: {', '.join(differ)} differs",
            path=target,
            remedy=Remedy(
                "use ",
                Argument("overwrite", value=True),
                " to replace it, or name another folder with the key `out`",
            ),
        )
    return study


def _draw(study: xr.Dataset, protocol: Protocol, out: Path) -> Iterator[Drawn]:
    """Draw figures and write the report page; those that are there are replaced."""
    if protocol.figures:
        for name, what, path in figures.save_all(study, out / "figures"):
            yield Drawn(name, what, path)
    if protocol.report:
        write_report(study, out / "report.html", overwrite=True)
        yield Drawn("report", "", out / "report.html")
