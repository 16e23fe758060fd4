"""How universal representations are."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from repsim.commands import completing, terminal
from repsim.commands.shared import DEVICE, JSON, OVERWRITE, PATH, Command, command_line
from repsim.errors import InvalidInputError
from repsim.runtime.files import check_output, claimed


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the study here, as netCDF (.nc).")
@click.option(
    "-m",
    "--metric",
    "specs",
    multiple=True,
    shell_complete=completing.metrics,
    help="As in `repsim metrics`; repeat for several. Debiased CKA, and partial CKA, are always there.  "
    "[default: cka, mutual_knn, nuclear, svcca]",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME=GLOB[,GLOB]",
    help="Models whose names match are of this family; repeat for several.  [default: timm's module: resnet, ...]",
)
@click.option("--readout", help="Which arrays take part, where stores hold several readouts.")
@click.option(
    "--controls",
    metavar="untrained:N",
    help="Extract N untrained networks of every architecture, batch norm recalibrated, and keep them.",
)
@click.option("--data", help="The pictures that they are to see.  [default: what the stores say they were made from]")
@click.option("--split", help="Part of --data.")
@click.option("--data-root", help="Where a timm data set lies.")
@click.option(
    "--permutations", type=click.IntRange(min=19), default=1000, show_default=True, help="Of the samples, for chance."
)
@click.option("--seed", default=0, show_default=True, help="Of permutations, splits and draws.")
@click.option("--memory", help="Take at most: 2GiB, 500MB.  [default: half of the machine's, or 80 % of a GPU's]")
@DEVICE
@JSON
@OVERWRITE
def universality(
    stores: Sequence[Path],
    out: Path | None,
    specs: Sequence[str],
    families: Sequence[str],
    readout: str | None,
    controls: str | None,
    data: str | None,
    split: str | None,
    data_root: str | None,
    permutations: int,
    seed: int,
    memory: str | None,
    device: str,
    *,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Are the representations of models universal across architectures, and how much of that is learned?

    Compares all models in STORES, layer by layer and as wholes, and holds each value against chance (in closed form and
    by permuted samples), against what the networks share anyway (their input, the classes, untrained
    networks), and against other seeds of the same architecture. Says in plain sentences what follows.

    Take several trained models of two families or more, several seeds or recipes of each where there are any. The word
    universal is kept for what is above every control with its whole 95 % interval.

    \b
    Examples:
      repsim universality acts/*.h5 --controls untrained:3 -o study.nc
      repsim universality acts/*.h5 --family cnn='*net*' --family vit='*vit*'
      repsim universality acts/*.h5 -m cka -m mutual_knn:k=5 --json
    """
    from repsim.results.export import study_as_json
    from repsim.results.files import save_result
    from repsim.study.universality import universality as conduct

    if out is not None and out.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a study is netCDF: name it .nc, not {out.name}")
    if out is not None:
        check_output(out, overwrite=overwrite)
    folder = Path("controls") if out is None else out.with_name(f"{out.stem}.controls")
    with nullcontext() if out is None else claimed(out), terminal.steps() as steps:  # hours, so nobody does it twice
        study = conduct(
            stores,
            specs or None,
            families=_families(families),
            readout=readout,
            untrained=_untrained(controls),
            folder=folder,
            data=data,
            split=split,
            data_root=data_root,
            permutations=permutations,
            seed=seed,
            device=device,
            memory=memory,
            steps=steps,
            command=command_line(),
        )
        if out is not None:
            save_result(study, out, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(study_as_json(study)))
        return
    terminal.study(study)
    if out is not None:
        click.echo(f"saved {out}")


def _families(words: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, globs = word.partition("=")
        if not (name and equals and globs):
            raise InvalidInputError(f"--family takes NAME=GLOB, as in --family cnn='resnet*,convnext*', not {word!r}")
        found.setdefault(name, []).extend(filter(None, globs.split(",")))
    return found


def _untrained(word: str | None) -> int:
    if word is None:
        return 0
    kind, _, count = word.partition(":")
    if kind != "untrained" or not count.isdecimal() or int(count) < 1:
        raise InvalidInputError(f"--controls takes untrained:N, as in --controls untrained:3, not {word!r}")
    return int(count)
