"""Define `repsim spans`, which shows the consecutive blocks that change a representation least."""

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.shared import DEVICE, JSON, PATH, Command, echo, print_note


@click.command(cls=Command)
@click.argument("store", type=PATH, shell_complete=completing.files(".h5"))
@click.option(
    "-k", "--k", type=click.IntRange(min=1), help="Blocks in a span.  [default: the best span of every number]"
)
@click.option("-m", "--metric", default="cka", show_default=True, shell_complete=completing.metrics, help="Measure.")
@click.option(
    "--layers", multiple=True, help="Pattern of layers, such as 'blocks.*'; repeat it for several.  [default: all]"
)
@click.option("--readout", help="Readout of the layers, if the store has several.")
@click.option("-o", "--out", type=PATH, help="Save a figure here: .png, .pdf, .svg, .eps or .tiff.")
@DEVICE
@JSON
def spans(
    store: Path,
    k: int | None,
    metric: str,
    layers: Sequence[str],
    readout: str | None,
    out: Path | None,
    device: str,
    *,
    as_json: bool,
) -> None:
    """Show which consecutive blocks of the network in STORE change its representation least.

    For every span of blocks the layer before it is compared with the layer after it. The most similar span is the first
    candidate to be left out. A high similarity says that the representation changes little there, not that the network
    keeps its accuracy without the span: leave it out and measure.

    The table also has the angular distance of Gromov et al. (2024), the mean angle of the rows before and after divided
    by pi, and the block influence of Men et al. (2024), 1 minus their mean cosine.

    \b
    Examples:
      repsim extract vit_base_patch16_224 --data photos/ --layers 'patch_embed,blocks.*' -o acts/
      repsim spans acts/vit_base_patch16_224.h5
      repsim spans acts/vit_base_patch16_224.h5 -k 3 -o spans.png
      repsim spans acts/vit_base_patch16_224.h5 -k 1 --json
    """
    from repsim.figures.canvas import check_format
    from repsim.runtime.text_tables import Table
    from repsim.trends.spans import WARNING, removable_spans

    if out is not None:
        check_format(out)
    frame = removable_spans(store, k, metric, layers=list(layers) or None, readout=readout, device=device)
    if out is not None:
        from repsim.figures import plot_spans, save

        save(plot_spans(frame).figure, out)  # type: ignore[arg-type]
    if as_json:
        lines = json.loads(frame.to_json(orient="records", double_precision=15))  # NaN becomes null
        facts = {name: value for name, value in frame.attrs.items() if name != "valid_range"}  # may be infinite
        echo(json.dumps({**facts, "spans": lines}))
        return
    shown: Any = (frame if k is not None else frame[frame["best"]]).itertuples()
    rows = [
        (
            str(span.k), span.first if span.k == 1 else f"{span.first} to {span.last}", f"{span.similarity:.3f}",
            "" if isnan(span.low) else f"{span.low:.3f} to {span.high:.3f}",
            *("" if isnan(number) else f"{number:.3f}" for number in (span.angular_distance, span.block_influence)),
            "best" if span.best and k is not None else "",
        )
        for span in shown
    ]  # fmt: skip
    attrs = frame.attrs
    title = f"{attrs['label']}: {attrs['model']}, {attrs['n_samples']:,} samples of {attrs['data']}"
    heads = (">k", "span", ">similarity", "95 % interval", ">angle / pi", ">influence", "")
    terminal.print_table(Table(title, heads, tuple(rows)))
    print_note(f"note: {WARNING}")
    if out is not None:
        echo(f"saved {out}")
