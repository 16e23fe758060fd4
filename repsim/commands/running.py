"""A whole study from one file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repsim.commands import terminal
from repsim.commands.extracting import extract_models
from repsim.commands.remedies import said
from repsim.commands.shared import OVERWRITE, PATH, Command, command_line, say
from repsim.errors import Argument, InvalidInputError, OtherSettingsError, OutputError, Remedy
from repsim.runtime.files import check_output, claimed, replacing, tidy

if TYPE_CHECKING:
    import xarray as xr

    from repsim.study.study_file import Protocol


@click.command(cls=Command)
@click.argument("file", type=PATH, required=False)
@click.option("--dry-run", is_flag=True, help="Show what would be done; compute nothing.")
@click.option("--example", is_flag=True, help="Print a study file that runs as it is.")
@click.option("--from", "made", type=PATH, metavar="STUDY.nc", help="Print the study file that a study was made from.")
@OVERWRITE
def run(file: Path | None, made: Path | None, *, dry_run: bool, example: bool, overwrite: bool) -> None:
    """Do what a study FILE says: extract its models, ask how universal they are, draw what was found.

    Leaves the stores (acts/), the study (study.nc), what is drawn of it, and a copy of FILE in one folder. The same
    file again goes on where an interrupted run stopped, and computes nothing that is there. docs/study-file.md explains
    every key.

    \b
    Examples:
      repsim run --example > study.yaml
      repsim run study.yaml --dry-run
      repsim run study.yaml
      repsim run --from study/study.nc > again.yaml
    """
    if sum([file is not None, example, made is not None]) != 1:
        raise InvalidInputError("name one study file, or one of --example and --from STUDY.nc")
    from repsim.study.study_file import EXAMPLE, read_protocol

    if example:
        click.echo(EXAMPLE, nl=False)
    elif made is not None:
        click.echo(_text_of(made), nl=False)
    elif file is not None:
        protocol, text = read_protocol(file)
        _run(file, protocol, text, dry_run=dry_run, overwrite=overwrite)


def _text_of(study: Path) -> str:
    from repsim.results.files import open_study

    text = open_study(study).attrs.get("study_file")
    if text is None:
        raise InvalidInputError(f"{study} was not made by `repsim run`; its attribute 'command' says how it was")
    return str(text)


def _run(file: Path, protocol: "Protocol", text: str, *, dry_run: bool, overwrite: bool) -> None:
    from repsim import metrics
    from repsim.results.files import save_result
    from repsim.runtime.memory import parse_size

    for spec in protocol.metrics:  # a slip of the hand, here or below, should not cost an extraction
        metrics.select(spec)
    if protocol.memory:
        parse_size(protocol.memory)
    out = Path(protocol.out) if protocol.out else file.with_suffix("")
    if out == file or out.is_file():
        raise OutputError(f"{out} is a file; name another folder with the key `out`")
    target = out / "study.nc"
    stores = _extract(protocol, out / "acts", dry_run=dry_run)
    if dry_run:
        click.echo(
            f"then a study of {len(protocol.models)} models and {protocol.untrained} untrained networks of every "
            f"architecture, {protocol.permutations} permutations: {target}{', which is there' * target.exists()}"
        )
    if dry_run or not stores:
        return
    with claimed(target):  # for hours: a second run would find the study there at its end
        study = None if overwrite or not target.exists() else _known(target, protocol, file, stores)
        if study is None:
            check_output(target, overwrite=overwrite)
            study = _conduct(protocol, stores, out).assign_attrs(study_file=text)
            save_result(study, target, overwrite=overwrite)
            _keep_text(text, out)
        else:
            say(f"{target} holds this study already; --overwrite makes it anew")
            tidy(target)
            if not (out / "study.yaml").exists():  # the run that saved the study was killed right then
                _keep_text(str(study.attrs["study_file"]), out)
        terminal.study(study)
        click.echo(f"saved {target}")
        _draw(study, protocol, out)


def _keep_text(text: str, out: Path) -> None:
    with replacing(out / "study.yaml", overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _extract(protocol: "Protocol", folder: Path, *, dry_run: bool) -> list[Path]:
    try:
        return extract_models(
            protocol.models,
            protocol.data,
            folder,
            layers=protocol.layers,
            readout=protocol.readout,
            batch_size=protocol.batch_size,
            workers=protocol.workers,
            together=protocol.together,
            device=protocol.device,
            amp=protocol.amp,
            dtype=protocol.dtype,
            overwrite=False,
            dry_run=dry_run,
            anew="",
        )
    except OtherSettingsError as error:  # extract's --overwrite would replace it; ours replaces the study
        error.remedy = Remedy("delete it, or name another folder with ", Argument("out", of="study file"))
        raise


def _conduct(protocol: "Protocol", stores: Sequence[Path], out: Path) -> "xr.Dataset":
    from repsim.study.universality import universality

    with terminal.steps() as steps:
        return universality(
            stores,
            protocol.metrics or None,
            families=protocol.families,
            untrained=protocol.untrained,
            folder=out / "controls",
            data=protocol.data.source,
            split=protocol.data.split,
            data_root=protocol.data.root,
            permutations=protocol.permutations,
            draws=protocol.draws,
            seed=protocol.seed,
            device=protocol.device,
            memory=protocol.memory,
            steps=steps,
            command=command_line(),
        )


def _known(target: Path, protocol: "Protocol", file: Path, stores: Sequence[Path]) -> "xr.Dataset":
    """The study that is there, if it is the one that the file describes; else an error that says what differs."""
    from repsim.results.files import open_study
    from repsim.stores.store import open_store
    from repsim.study.study_file import parse_protocol

    study = open_study(target)
    text = study.attrs.get("study_file")
    if text is None:
        raise OutputError(f"{target} was not made by `repsim run`; use --overwrite to replace it, or another folder")
    differ = [f"the key {key}" for key in protocol.differences(parse_protocol(str(text), file))]
    told = {each["model"]: each["checksum"] for each in json.loads(study.attrs["stores"])}
    for path in stores:
        with open_store(path) as store:
            if told.get(store.model) != store.checksum:
                differ.append(f"the store of {store.model}")
    if differ:
        raise OutputError(
            f"{target} is of another study: {', '.join(differ)} differs; use --overwrite to replace it, or name "
            "another folder with the key `out`"
        )
    return study


def _draw(study: "xr.Dataset", protocol: "Protocol", out: Path) -> None:
    """Figures and the report page; those that are there are replaced."""
    if protocol.figures:
        from repsim.figures import save_all

        for name, what, path in save_all(study, out / "figures"):
            click.echo(f"saved {path}: {what}" if path else f"no {name}: {said(what)}")
    if protocol.report:
        from repsim.report.page import write_report

        write_report(study, out / "report.html", overwrite=True)
        click.echo(f"saved {out / 'report.html'}")
