"""Run study files: extract the models, make the study, draw figures, and write the report page."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xarray as xr

from repsim import figures, metrics
from repsim._version import __version__
from repsim.errors import Argument, Function, OtherSettingsError, OutputError, Remedy
from repsim.extraction.jobs import Extraction
from repsim.extraction.options import ExtractOptions, Model, Passes
from repsim.extraction.patterns import expand_patterns
from repsim.extraction.runs import Extracted, Listeners, extract_steps, plan_extraction
from repsim.report.page import write_report
from repsim.results.files import open_study, save_result
from repsim.runtime.events import Note, UpToDate, log_notes
from repsim.runtime.files import check_output, remove_partial, replacing, reserved
from repsim.runtime.hardware import choose_device
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
    """Event: the study is saved at ``path``."""

    study: xr.Dataset
    path: Path


@dataclass(frozen=True)
class Drawn:
    """Event: a figure or the report page is saved; without a path, ``what`` is the reason why there is no figure."""

    name: str
    what: str
    path: Path | None


@dataclass(frozen=True)
class StudyPlan:
    """A study file after reading and checking: its content, and the folder for the results."""

    file: Path
    protocol: Protocol
    text: str
    out: Path
    models: Sequence[Model]
    """Models of the protocol; weights that are a pattern stand for one model per file."""

    @property
    def target(self) -> Path:
        """File of the study."""
        return self.out / "study.nc"

    @property
    def options(self) -> ExtractOptions:
        """Options of the extraction. Stores with other settings are not replaced: they may belong to another study."""
        return ExtractOptions(**fields_of(self.protocol, Passes))


def run_study(
    file: str | os.PathLike[str], *, overwrite: bool = False, progress: Steps | Literal[False] | None = None
) -> xr.Dataset:
    r"""Run a study file: extract its models, make the universality study, draw figures, and write the report page.

    Stores, study, figures, report page and a copy of the file are saved in one folder (docs/study-file.md). The same
    call continues an interrupted run, and does not compute existing results again. Under torchrun the processes share
    the extraction and the study; the first one saves it and draws.

    Parameters
    ----------
    file : path
        The study file.
    overwrite : bool
        Replace a study with other settings; stores are kept.
    progress : callable or False, optional
        Called with the name of each step of the work. It returns a function that is called with the number of parts of
        this step done and of all. By default a notebook shows progress bars; False shows nothing.

    Returns
    -------
    xarray.Dataset
        The study, as `repsim.universality` returns it.

    Raises
    ------
    InvalidInputError, UnknownNameError
        The study file is not valid; the message names the line.
    OutputError
        The folder holds a study, or stores, with other settings.
    RepsimError
        As in `repsim.extract` and `repsim.universality`.

    Examples
    --------
    >>> import tempfile
    >>> text = "models: [digits_vit.seed0, digits_vit.seed1]\ndata: {source: digits, limit: 16}\n"
    >>> more = "metrics: [cka]\npermutations: 19\ndraws: 20\nfigures: false\nreport: false\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = Path(folder, "study.yaml").write_text(text + more)
    ...     study = run_study(f"{folder}/study.yaml")
    ...     sorted(path.name for path in Path(folder, "study").iterdir())
    ['acts', 'study.nc', 'study.nc.parts', 'study.yaml']
    """
    plan = plan_study(Path(file))
    with ranks() as me:
        for _ in log_notes(study_steps(plan, overwrite=overwrite, progress=progress)):
            pass
        me.wait()  # for the first process, which alone makes the study
    return open_study(plan.target)


def plan_study(file: Path) -> StudyPlan:
    """Read and check a study file, before anything is computed."""
    protocol, text = read_protocol(file)
    for spec in protocol.metrics:  # typing errors in metrics and memory are reported before the extraction
        metrics.select(spec)
    if isinstance(protocol.memory, str):
        parse_size(protocol.memory)
    out = Path(protocol.out) if protocol.out else file.with_suffix("")
    if out == file or out.is_file():
        raise OutputError(f"{out} is a file; name another folder with the key `out`")
    return StudyPlan(file, protocol, text, out, expand_patterns(protocol.models))


def planned_extractions(plan: StudyPlan, *, listeners: Listeners = lambda _: None) -> Iterator[Note | Extraction]:
    """Yield the planned extraction of each model, and notes, without computing or writing anything."""
    return plan_extraction(plan.models, plan.protocol.data, plan.out / "acts", plan.options, listeners=listeners)


def study_steps(
    plan: StudyPlan,
    *,
    overwrite: bool = False,
    progress: Steps | Literal[False] | None = None,
    command: str | None = None,
) -> Iterator[Note | UpToDate | Extracted | Studied | Drawn]:
    """Run a study, and yield an event when a store, the study, a figure or the report page is finished.

    Under torchrun the processes share the extraction and the study; only the first yields events after the extraction.
    """
    protocol, target = plan.protocol, plan.target
    listeners: Listeners = progress if callable(progress) else lambda _: progress
    stores: dict[int, Path] = {}
    with ranks() as me, _locked(target) if me.first else nullcontext():
        # locked from here on: a second run fails now and not after hours, when the study already exists
        me.agree(_facts(protocol))
        try:
            for event in extract_steps(
                plan.models, protocol.data, plan.out / "acts", plan.options, listeners=listeners, command=command
            ):
                if isinstance(event, Extracted):
                    stores[event.model] = event.path
                yield event
        except OtherSettingsError as error:  # overwrite=True of a study replaces the study, but no stores
            error.remedy = Remedy("delete it, or name another folder with the key `out`")
            raise
        earlier = None
        if me.first:
            earlier = None if overwrite or not target.exists() else _same_study(plan, list(stores.values()))
        study = earlier
        if me.broadcast(earlier is None):
            if me.first:
                check_output(target, overwrite=overwrite)
            paths = me.broadcast([stores[k] for k in sorted(stores)])
            study = _conduct(plan, paths, progress, command).assign_attrs(study_file=plan.text)
            if me.first:
                save_result(study, target, overwrite=overwrite)
                _keep_text(plan.text, plan.out)
        if not me.first or study is None:
            return
        if earlier is not None:
            yield UpToDate(target, "holds this study already")
            remove_partial(plan.out / "study.yaml")  # the run that saved the study was killed right then, or
            if not (plan.out / "study.yaml").exists():  # shortly before
                _keep_text(str(study.attrs["study_file"]), plan.out)
        yield Studied(study, target)
        yield from _draw(study, protocol, plan.out)


def _facts(protocol: Protocol) -> dict[str, object]:
    """Return what has to be equal in all processes of a run before the extraction, which compares what it depends on.

    Paths may differ, as nodes may have copies of their own; the memory of the first process counts for all.
    """
    statistics = fields_of(protocol, StatisticsOptions)
    del statistics["memory"]
    return statistics | {
        "device": choose_device(protocol.device).partition(":")[0],
        "a version of repsim": __version__,
    }


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lock the study during the block; a new folder in which nothing was written is removed."""
    new = not target.parent.exists()
    try:
        with reserved(target, overwrite=True):
            yield
    finally:
        if new:
            with suppress(OSError):  # it is not empty
                target.parent.rmdir()


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
    parts = plan.target.with_name(f"{plan.target.name}.parts")
    return conduct(stores, options, parts=parts, steps=steps, command=command)


def _keep_text(text: str, out: Path) -> None:
    with replacing(out / "study.yaml", overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _same_study(plan: StudyPlan, stores: Sequence[Path]) -> xr.Dataset:
    """Return the existing study if it is the one that the file describes.

    Raises
    ------
    OutputError
        The existing study is another one; the message names the differences.
    """
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
            f"{target} holds another study; differences: {', '.join(differ)}",
            path=target,
            remedy=Remedy(
                "use ",
                Argument("overwrite", value=True),
                " to replace it, or name another folder with the key `out`",
            ),
        )
    return study


def _draw(study: xr.Dataset, protocol: Protocol, out: Path) -> Iterator[Drawn]:
    """Draw figures and write the report page, and yield an event for each; existing files are replaced."""
    if protocol.figures:
        for name, what, path in figures.save_all(study, out / "figures"):
            yield Drawn(name, what, path)
    if protocol.report:
        write_report(study, out / "report.html", overwrite=True)
        yield Drawn("report", "", out / "report.html")
