"""Options of a comparison: `repsim.compare` and its command take them from here."""

from dataclasses import dataclass, field
from typing import Annotated

from repsim.runtime.options import Device, Memory, Text, option


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """All that a comparison depends on, beside the stores."""

    metrics: Annotated[
        list[Text],
        option("Measures, as in `repsim metrics`. `all`, or a group: alignment, rsm, neighbours, group:cca, "
               "statistics, and topology, which all is without.", unset="cka, or what the result has that grows"),
    ] = field(default_factory=list)  # fmt: skip
    readouts: Annotated[
        list[Text],
        option("Compare only arrays of these readouts, like with like; of several there is one variable for each "
               "metric and readout.", unset="all arrays with all"),
    ] = field(default_factory=list)  # fmt: skip
    memory: Memory = None
    device: Device = "auto"
    tf32: Annotated[bool, option("Let a GPU round products to TensorFloat-32: faster, errors of 1e-3.")] = False
    explain: Annotated[bool, option("Report what will be done, and what it took.")] = False
    overwrite: Annotated[bool, option("Start anew, and replace what is there.")] = False
