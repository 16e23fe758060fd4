"""The command line: the only place that prints and exits. What is heavy is imported inside the commands."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim import __version__, terminal
from repsim.errors import InvalidInputError, OtherProcessError, RepsimError
from repsim.files import check_output, human

if TYPE_CHECKING:
    from repsim.extraction import Extraction

_READ = click.Path(path_type=Path)
_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (cuda, then mps, then cpu), or a torch device."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is there.")


class _UserError(click.ClickException):
    exit_code = 2


class _Group(click.Group):
    """Turns an error that the user can mend into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RepsimError as error:
            if isinstance(error, OtherProcessError) and not error.first:  # the first speaks for all
                raise SystemExit(_UserError.exit_code) from None
            raise _UserError(" ".join(" ".join([str(error), *getattr(error, "__notes__", ())]).split())) from None
        except KeyboardInterrupt as stop:
            for note in getattr(stop, "__notes__", ()):
                click.echo(note, err=True)
            raise


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="repsim")
def main() -> None:
    """Do two neural networks represent the world in the same way?

    Extract the activations of timm models into HDF5 stores, compare every layer of one with every layer of the other,
    and draw the heatmap:

    \b
      repsim extract resnet50 vit_base_patch16_224 --data photos/ -o acts/
      repsim compare acts/resnet50.h5 acts/vit_base_patch16_224.h5 -m cka -m svcca -o result.nc
      repsim heatmap result.nc -o result.png

    Nothing at hand yet? `repsim demo` does all of it in a minute, with networks and images that come with repsim.
    """


@main.command()
@click.argument("pattern", default="*")
@_JSON
def models(pattern: str, *, as_json: bool) -> None:
    """List the models that can be extracted: timm's, and the small trained networks that come with repsim.

    PATTERN is a glob over names. The tags after a name are its pretrained weights.

    \b
    Examples:
      repsim models 'resnet*'
      repsim models 'digits_*'
    """
    import timm

    from repsim.errors import UnknownNameError
    from repsim.extractors import zoo  # noqa: F401 - registers the embedded networks with timm

    names = timm.list_models(pattern)
    if not names:
        raise UnknownNameError("model", pattern, timm.list_models(), hint="(quote a pattern: '*vit*')")
    tags = {name: [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")] for name in names}
    if as_json:
        click.echo(json.dumps(tags))
        return
    for name, known in tags.items():
        click.echo(f"{name}  {click.style(', '.join(filter(None, known)), dim=True)}".rstrip())


@main.command()
@click.argument("model")
@click.option(
    "--layers", "spec", default="blocks", show_default=True, help="blocks, stages, all, or globs: 'layer3.*,norm'."
)
@_JSON
def layers(model: str, spec: str, *, as_json: bool) -> None:
    """List the layers of MODEL that would be read, with type, output shape and width. Needs no weights.

    In a glob, * stays within one dotted part: 'layer?.*' is the 16 blocks of a ResNet-50, not everything inside them.

    \b
    Examples:
      repsim layers resnet50
      repsim layers vit_base_patch16_224 --layers 'blocks.*.attn'
    """
    from dataclasses import asdict

    from repsim.extractors.factory import make_extractor

    extractor = make_extractor(model, weights="random", layers=spec)
    if as_json:
        click.echo(json.dumps([asdict(layer) for layer in extractor.layers()]))
        return
    table = terminal.table("layer", "type", "output shape", "axes", ">width")
    for layer in extractor.layers():
        table.add_row(layer.name, layer.type, terminal.times(layer.shape), layer.axes, str(layer.width))
    terminal.console().print(table)
    for note in getattr(extractor, "notes", ()):
        click.echo(f"note: {note}", err=True)


@main.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--data", required=True, help="A folder of pictures, a .tar, digits, or a timm data set (torch/cifar10).")
@click.option(
    "-o", "--out", type=_READ, default=Path("acts"), show_default=True, help="Folder for the stores, MODEL.h5."
)
@click.option("--layers", default="blocks", show_default=True, help="blocks, stages, all, or globs: 'layer3.*,norm'.")
@click.option(
    "--readout",
    default="mean",
    show_default=True,
    help="mean, max, cls, flatten, grid:K, gram:B, sketch:M; several with commas.",
)
@click.option("--limit", type=click.IntRange(min=1), help="So many pictures, spread evenly over the data.")
@click.option("--split", help="Part of the data: a folder inside it, or train, test, ... of a data set.")
@click.option("--data-root", help="Where a timm data set lies.")
@click.option("--download", is_flag=True, help="Fetch a timm data set that is not there yet.")
@click.option(
    "--weights", default="pretrained", show_default=True, help="pretrained, random, or a .safetensors or .pth file."
)
@click.option("--seed", default=0, show_default=True, help="Of random weights.")
@click.option(
    "--recalibrate",
    is_flag=True,
    help="First give batch norm of random weights the statistics of up to 512 of the pictures; else it does nothing.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Pictures a forward pass.  [default: 32; whole blocks for gram:B]"
)
@click.option("--workers", type=click.IntRange(min=0), help="Processes that decode pictures.  [default: one a core]")
@click.option(
    "--together",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Models in memory at once; those that prepare pictures alike share the decoding.",
)
@_DEVICE
@click.option("--amp", is_flag=True, help="Half precision in the forward pass (float16 on cuda, bfloat16 elsewhere).")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Stored as."
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out and list pictures that cannot be decoded, instead of stopping."
)
@click.option("--overwrite", is_flag=True, help="Start anew, and replace what is there.")
@click.option("--dry-run", is_flag=True, help="Show layers, shapes, bytes and disk room; compute nothing.")
def extract(
    models: Sequence[str],
    data: str,
    out: Path,
    layers: str,
    readout: str,
    limit: int | None,
    split: str | None,
    data_root: str | None,
    weights: str,
    seed: int,
    batch_size: int | None,
    workers: int | None,
    together: int,
    device: str,
    dtype: Any,
    *,
    recalibrate: bool,
    download: bool,
    amp: bool,
    skip_bad: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Extract activations of timm or torchvision MODELS on the same pictures: one HDF5 store a model.

    The same command again goes on where an interrupted one stopped, and leaves finished stores as they are. Several
    processes share the work, on one machine or on several with a common file system, when torchrun starts them.

    \b
    Examples:
      repsim extract resnet50 vit_base_patch16_224 --data photos/ -o acts/ --limit 500
      repsim extract vit_base_patch16_224 --data photos/ --layers 'blocks.*' --readout mean,cls
      repsim extract resnet50 --data photos/ --readout gram:256        (of whole feature maps, for minibatch CKA)
      repsim extract resnet50 torchvision/resnet50 --weights random --seed 1 --recalibrate --data photos/
      repsim extract resnet18 --weights my_model.safetensors --data photos/ --dry-run
      repsim extract digits_resnet.seed0 --data digits --split test
      torchrun --nproc-per-node 4 -m repsim extract resnet50 --data photos/ -o acts/
    """
    from repsim.extraction import Extraction, choose_samples, choose_stream, run_together
    from repsim.extractors import open_images
    from repsim.extractors.factory import make_extractor
    from repsim.ranks import ranks

    _check(models, weights, recalibrate=recalibrate)
    with ranks() as me:
        images = open_images(data, split=split, root=data_root, download=download)
        with terminal.progress("checking pictures", "images/s", quiet=not me.first) as advance:
            samples = choose_samples(images, limit=limit, skip_bad=skip_bad, progress=advance, me=me)
        how = choose_stream(samples, readout=readout, batch_size=batch_size, workers=workers, device=device, amp=amp)
        say = _say if me.first else _say_nothing
        for name, why in samples.skipped.items():
            say(f"skipped {name}: {why}")
        for group in _groups(models, together):
            jobs = []
            for model in group:
                with terminal.waiting(
                    f"loading {model}, {weights}", quiet=not me.first
                ):  # a download, or its time-out, takes a while
                    extractor = make_extractor(model, weights=weights, seed=seed, layers=layers, readout=readout)
                jobs.append(
                    Extraction(
                        extractor,
                        samples,
                        out,
                        how,
                        dtype,
                        overwrite=overwrite,
                        recalibrate=recalibrate,
                        command=_command_line(),
                    )
                )
                for note in jobs[-1].notes:
                    say(f"note: {model}: {note}")
            if dry_run:
                for job in jobs if me.first else []:
                    _show_plan(job)
                continue
            before = me.share([job.already() for job in jobs] if me.first else [])
            for job, done in zip(jobs, before, strict=True):
                if done == len(samples.rows):
                    say(f"{job.path} is complete already; --overwrite makes it anew")
                elif done:
                    say(f"{job.path}: going on after {done} of {len(samples.rows)} pictures")
            start = time.perf_counter()
            with terminal.progress(
                " + ".join(job.extractor.name for job in jobs), "images/s", quiet=not me.first
            ) as advance:
                stores = run_together(jobs, advance, me)
            seconds = time.perf_counter() - start
            for job, done, store in zip(jobs, before, stores, strict=True):
                new = len(store) - done
                rate = f", {new / seconds:.1f} images/s on {how.device}" if new else ""
                if me.first:
                    click.echo(
                        f"{job.path}  {len(store)} pictures x {len(store.layers)} layers, {human(job.bytes)}{rate}"
                    )
                store.close()


def _check(models: Sequence[str], weights: str, *, recalibrate: bool) -> None:
    """What can be refused before anything is opened or downloaded."""
    from repsim.extractors.factory import check_name
    from repsim.extractors.recalibration import check_weights

    if recalibrate:
        check_weights(weights)
    for model in models:
        check_name(model)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _say_nothing(_: str) -> None:
    """Of several processes only the first talks."""


def _groups(models: Sequence[str], together: int) -> list[list[str]]:
    """Models that prepare pictures alike, so many at most, in the order in which they are named."""
    from repsim.extractors.factory import preprocessing_of

    kinds: dict[str, list[str]] = {}
    for model in dict.fromkeys(models):
        kinds.setdefault(preprocessing_of(model) or model, []).append(model)
    return [kind[i : i + together] for kind in kinds.values() for i in range(0, len(kind), together)]


def _show_plan(job: "Extraction") -> None:
    table = terminal.table(
        "layer", "type", "output shape", "readout", "readout shape", ">bytes a picture", title=str(job.path)
    )
    for spec in job.arrays:
        facts = spec.facts
        shape = terminal.times(facts["output_shape"])
        size = f"{spec.row_bytes(job.dtype) / spec.block:,.0f}"
        table.add_row(spec.key.layer, facts["type"], shape, spec.key.readout, terminal.times(spec.shape), size)
    terminal.console().print(table)
    room = "enough room" if job.bytes * 1.05 <= job.bytes_free else "NOT ENOUGH ROOM"
    click.echo(
        f"{human(job.bytes_per_sample)} a picture, {human(job.bytes)} for {len(job.samples.rows)} "
        f"pictures; {human(job.bytes_free)} free: {room}"
    )


@main.command()
@click.argument("store", type=_READ)
@_JSON
def inspect(store: Path, *, as_json: bool) -> None:
    """Show what a STORE holds: model, weights, data, preprocessing, and every layer's array.

    \b
    Example:
      repsim inspect acts/resnet50.h5
    """
    from repsim.store import open_store

    with open_store(store) as opened:
        rows = [
            {
                "layer": name,
                "readout": opened[name].key.readout,
                "shape": opened[name].shape,
                "dtype": str(opened[name].dtype),
            }
            | opened.facts(name)
            for name in opened.layers
        ]
        if as_json:
            facts = {"model": opened.model, "data": opened.data, "samples": len(opened), "layers": rows}
            facts["pixels"] = None if opened.pixels is None else opened.pixels.shape
            click.echo(json.dumps(facts | {"provenance": opened.provenance}))
            return
        ids = opened.sample_ids.ids
        click.echo(f"{store}: {opened.model} on {opened.data}, {len(ids)} samples ({ids[0]} ... {ids[-1]})")
        if opened.labels is not None:
            click.echo(f"labels: {len(opened.classes) or len(set(opened.labels.tolist()))} classes")
        table = terminal.table("layer", "readout", "type", "output shape", "axes", "stored as")
        for row in rows:
            stored = f"{terminal.times(row['shape'])} {row['dtype']}"
            shape = terminal.times(row.get("output_shape", ()))
            table.add_row(row["layer"], row["readout"], row.get("type", ""), shape, row.get("axes", ""), stored)
        terminal.console().print(table)
        if opened.pixels is not None:
            click.echo(f"pixels of the input: {terminal.times(opened.pixels.shape)}, a control beside the layers")
        for key, value in opened.provenance.items():
            if value not in (None, "", {}, []):
                click.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


@main.command()
@click.argument("stores", nargs=-1, required=True, type=_READ)
def verify(stores: Sequence[Path]) -> None:
    """Read STORES whole and hold every byte against its checksum. Exit code 1 where something is damaged.

    Comparing checks what it reads in the same way; this is for a copy, or an old disk.

    \b
    Example:
      repsim verify acts/*.h5
    """
    from repsim.errors import StoreError
    from repsim.store import verify as find_damage

    damaged = 0
    for path in stores:
        try:
            with terminal.progress(str(path), "layers/s") as advance:
                found = list(map(str, find_damage(path, advance)))
        except StoreError as error:
            found = [str(error)]
        damaged += bool(found)
        click.echo(f"{path}: {'; '.join(found) if found else 'as it was written'}")
    if damaged:
        raise SystemExit(1)


@main.command()
@click.argument("name", required=False)
@_JSON
def metrics(name: str | None, *, as_json: bool) -> None:
    """List the measures of similarity; with a NAME, explain one: what it answers, its formula, what it needs.

    \b
    Examples:
      repsim metrics
      repsim metrics cka
      repsim metrics cka:kernel=rbf --json
    """
    from repsim import explain
    from repsim import metrics as registry

    if name is not None:
        metric = registry.get(name)
        if as_json:
            click.echo(json.dumps(explain.facts(metric)))
        else:
            terminal.explanation(metric)
    elif as_json:
        click.echo(json.dumps([explain.facts(each) for members in explain.families().values() for each in members]))
    else:
        terminal.measures()


@main.command()
@click.argument("stores", nargs=-1, required=True, type=_READ)
@click.option(
    "-m",
    "--metric",
    "specs",
    multiple=True,
    help="As in `repsim metrics`; repeat for several. all, or a group: alignment, rsm, neighbours, "
    "group:cca, statistics, and topology, which all is without.  [default: cka, or what the result has that grows]",
)
@click.option(
    "--readout",
    "readouts",
    multiple=True,
    help="Compare only layers read out so, like with like; repeat for several.  [default: all arrays with all]",
)
@click.option("-o", "--out", type=_READ, help="Save the result here, as netCDF (.nc); what is there is added to.")
@click.option(
    "--all", "square", is_flag=True, help="All layers with all layers, within models too, also of two STORES."
)
@click.option(
    "--memory", help="A process may take at most: 2GiB, 500MB.  [default: half of the machine's, or 80 % of a GPU's]"
)
@_DEVICE
@click.option("--tf32", is_flag=True, help="Let a GPU round products to TensorFloat-32: faster, errors of 1e-3.")
@click.option("--explain", is_flag=True, help="Say on stderr what will be done, and what it took.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with time and memory; compute nothing.")
@_JSON
@click.option("--overwrite", is_flag=True, help="Start anew, and replace what is there.")
def compare(
    stores: Sequence[Path],
    specs: Sequence[str],
    readouts: Sequence[str],
    out: Path | None,
    memory: str | None,
    device: str,
    *,
    square: bool,
    tf32: bool,
    explain: bool,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Compare the layers of STORES: of two, every layer of one with every layer of the other; of more, all with all.

    One store alone is compared with itself. All stores must hold the same samples in the same order. Values are exact
    at any size: what does not fit into the memory is read again as it is needed.

    With -o, the same command again goes on where an interrupted one stopped. Where the result is there already, what is
    new (further stores, further metrics) is computed and added. Several processes share the work when torchrun starts
    them.

    \b
    Examples:
      repsim compare acts/resnet50.h5 acts/vit_base_patch16_224.h5 -m cka -m svcca -o result.nc
      repsim compare acts/resnet50.h5 -m cka:kernel=rbf,bandwidth=0.5 --json
      repsim compare acts/a.h5 acts/b.h5 -m all -o all.nc
      repsim compare acts/a.h5 acts/b.h5 --readout mean --readout flatten -o readouts.nc
      repsim compare acts/*.h5 -o all.nc --memory 2GiB --explain
      torchrun --nproc-per-node 4 -m repsim compare acts/*.h5 -o all.nc
    """
    from repsim.comparison import Comparison
    from repsim.ranks import ranks
    from repsim.results import open_result, save_result

    if out is not None and out.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a result is netCDF: name it .nc, not {out.name}")
    with ranks() as me:
        grows = out is not None and out.exists() and not overwrite
        known = open_result(out) if out is not None and grows else None
        if out is not None and me.first and not dry_run:
            check_output(out, overwrite=overwrite or grows)
        a, b = (list(stores), None) if square or len(stores) > 2 else (stores[0], stores[-1])
        with Comparison(
            a, b, specs or None, device=device, memory=memory, tf32=tf32, readouts=readouts, known=known, me=me
        ) as planned:
            if (explain or dry_run) and me.first:
                terminal.plan(planned.plan, planned.rates())
            if dry_run:
                return
            fresh = known is None or bool(planned.plan.stages)
            parts = None if out is None else out.with_name(f"{out.name}.parts")
            if me.first and parts is not None and (done := len(list(parts.glob("*.part")))):
                _say(f"going on with {done} parts that an interrupted run has left in {parts}")
            start = time.perf_counter()
            with terminal.progress("comparing", "%/s", quiet=not me.first) as advance:
                save = (
                    partial(save_result, path=out, overwrite=overwrite or grows) if out is not None and fresh else None
                )
                result = planned.run(parts=parts, progress=advance, command=_command_line(), save=save)
            seconds = time.perf_counter() - start
        if not me.first:
            return
        if out is not None and not fresh:
            _say(f"{out} holds all of this already; --overwrite computes it anew")
    if explain:
        terminal.took(seconds)
    terminal.remarks(result)
    if as_json:
        click.echo(json.dumps(terminal.as_json(result)))
        return
    for variable in result.data_vars.values():
        terminal.matches(variable)
    if out is not None and fresh:
        draw = shlex.join(["repsim", "heatmap", str(out), "-o", str(out.with_suffix(".png"))])
        click.echo(f"saved {out}; draw it with: {draw}")


@main.command()
@click.argument("result", type=_READ)
@click.option("-o", "--out", type=_READ, required=True, help="The figure: .png, .pdf or .svg.")
@click.option("-m", "--metric", "specs", multiple=True, help="Only these of the result's metrics.  [default: all]")
def heatmap(result: Path, out: Path, specs: Sequence[str]) -> None:
    """Draw the layer x layer heatmap of a RESULT of `repsim compare`. An existing figure is replaced.

    \b
    Examples:
      repsim heatmap result.nc -o result.png
      repsim heatmap result.nc -m svcca -o figure.pdf
    """
    from repsim import figures
    from repsim.results import open_result

    figures.save(figures.figure(open_result(result), list(specs) or None), out)
    click.echo(str(out))


@main.command()
@click.argument("stores", nargs=-1, required=True, type=_READ)
@click.option("-o", "--out", type=_READ, help="Save the study here, as netCDF (.nc).")
@click.option(
    "-m",
    "--metric",
    "specs",
    multiple=True,
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
@_DEVICE
@_JSON
@_OVERWRITE
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
      repsim universality acts/*.h5 --family cnn='resnet*,convnext*' --family vit='*vit*' -o study.nc
      repsim universality acts/*.h5 -m cka -m mutual_knn:k=5 --permutations 200 --json
    """
    from repsim.results import save_result
    from repsim.study.conduct import universality as conduct

    if out is not None and out.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a study is netCDF: name it .nc, not {out.name}")
    if out is not None:
        check_output(out, overwrite=overwrite)
    folder = Path("controls") if out is None else out.with_name(f"{out.stem}.controls")
    with terminal.steps() as steps:
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
            command=_command_line(),
        )
    if out is not None:
        save_result(study, out, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(terminal.study_as_json(study)))
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


@main.command()
@click.option(
    "-o", "--out", type=_READ, default=Path("demo"), show_default=True, help="Folder for everything it makes."
)
def demo(out: Path) -> None:
    """Run the whole chain in a minute or two, with nothing but what comes with repsim.

    Extracts six small networks trained on handwritten digits (a ResNet and a ViT, three seeds each) and untrained ones,
    on digits they never saw; compares them; draws the heatmaps; says what to look at, and how universal their
    representations are.

    \b
    Example:
      repsim demo -o demo/
    """
    from repsim.demo import STUDY, run
    from repsim.results import open_study

    with terminal.progress("demo", "steps/s") as advance:
        made = run(out, advance)
    for path, what in made.items():
        click.echo(f"{path}  {what}")
    terminal.study(open_study(out / STUDY))


def _command_line() -> str:
    return shlex.join(["repsim", *sys.argv[1:]])
