"""Options of `repsim.compare` and of the command ``repsim compare``."""

from dataclasses import dataclass, field
from typing import Annotated

from repsim.runtime.options import Device, Memory, Text, option


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of a comparison."""

    metrics: Annotated[
        list[Text],
        option("Measures, as listed by `repsim metrics`; `all`, which excludes topology; or a group: alignment, rsm, "
               "neighbours, group:cca, statistics, topology.", unset="cka, or the metrics of an existing result"),
    ] = field(default_factory=list)  # fmt: skip
    readouts: Annotated[
        list[Text],
        option("Compare only arrays of these readouts, each with arrays of the same readout; several readouts give "
               "one variable for each metric and readout.", unset="all arrays with all arrays"),
    ] = field(default_factory=list)  # fmt: skip
    pair_by: Annotated[
        str | list[tuple[str, str]] | None,  # not Text: msgspec 0.22 crashes on a constrained text beside a list
        option("Pair samples deliberately if the stores hold other samples, or another order: `id` pairs equal sample "
               "ids and leaves the others out; a CSV file pairs any ids: its first line names the columns (the models, "
               "or a,b), and each further line holds the ids of a pair. In Python also a list of pairs.",
               unset="all stores have to hold the same samples in the same order", metavar="id|FILE.csv"),
    ] = None  # fmt: skip
    interval: Annotated[
        bool | float,
        option("Compute 95 % intervals over samples, by the exact jackknife, under debiased CKA (`cka`, "
               "`cka:kernel=rbf`). In Python also another level, such as 0.9."),
    ] = False  # fmt: skip
    groups: Annotated[
        Text | None,
        option("Groups of samples that are not independent, which intervals leave out as wholes: `folders`, "
               "`re:PATTERN` over the ids with the group in its first bracket, or a CSV file of id or file name, and "
               "group. In Python also one integer or text for each sample.",
               unset="those that the stores hold", path=True, metavar="folders|re:PATTERN|PATH"),
    ] = None  # fmt: skip
    memory: Memory = None
    device: Device = "auto"
    tf32: Annotated[bool, option("Let a GPU round products to TensorFloat-32: faster, errors of 1e-3.")] = False
    explain: Annotated[bool, option("Report the plan, and the time and memory that the comparison took.")] = False
    overwrite: Annotated[bool, option("Start again, and replace an existing result.")] = False
