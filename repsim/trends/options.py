"""Options of a series, shared by `repsim.series` and its command."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from repsim.runtime.options import Count, Device, Memory, Text, option

METRICS = ("cka",)


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """Options of `repsim.series`."""

    metrics: Annotated[
        list[Text],
        option("Measures, as in `repsim metrics`. Debiased CKA, raw and given the input, is always included.",
               unset="cka"),
    ] = field(default_factory=list)  # fmt: skip
    axis: Annotated[Text, option("Axis along which the models stand.", metavar="NAME")] = "step"
    reference: Annotated[
        Text,
        option("What points are compared with, beside the point before and the same point of other runs: `last` or "
               "`first` of their run, the name of a model, or `run=NAME`, the same point of another run.",
               metavar="last|first|MODEL|run=NAME"),
    ] = "last"  # fmt: skip
    run: Annotated[
        Text | None,
        option("Axis that tells runs apart.", unset="run or seed, the first that all models have", metavar="NAME"),
    ] = None
    points: Annotated[
        Literal["states", "networks"] | None,
        option("`states`: the points of a run are states of one network, as along training time. `networks`: every "
               "point is a network of its own. It decides what a trend is tested against.",
               unset="states if the axis is a time (step, epoch, ...), or networks"),
    ] = None  # fmt: skip
    scale: Annotated[
        Literal["linear", "log"] | None,
        option("Scale of the axis, for slopes and figures.", unset="log if values span a factor of 10"),
    ] = None
    settled_at: Annotated[
        Annotated[float, Meta(gt=0, lt=1)],
        option("A layer has settled when its similarity to the last point has gone this share of the way."),
    ] = 0.9
    axes_file: Annotated[
        Text | None,
        option("CSV file with further coordinates: a column `model`, and one column for every axis.",
               path=True, metavar="PATH"),
    ] = None  # fmt: skip
    readout: Annotated[
        Text | None,
        option("Readout to compare, if stores hold several.", unset="the first that all stores hold"),
    ] = None
    groups: Annotated[
        Text | None,
        option("Groups of samples that are not independent: `folders`, `re:PATTERN` over the ids with the group in its "
               "first bracket, or a CSV file of id or file name, and group.",
               unset="those that the stores hold", path=True, metavar="folders|re:PATTERN|PATH"),
    ] = None  # fmt: skip
    pair_by: Annotated[
        Literal["id"] | None,
        option("Pair samples deliberately if the stores hold other samples, or another order: `id` pairs equal sample "
               "ids and leaves the others out.", unset="all stores have to hold the same samples in the same order"),
    ] = None  # fmt: skip
    all_pairs: Annotated[bool, option("Compare every point with every other, too: matching layers.")] = False
    seed: Annotated[Count, option("Seed of the random draws of intervals.")] = 0
    device: Device = "auto"
    memory: Memory = None
    overwrite: Annotated[bool, option("Replace an existing series.")] = False
