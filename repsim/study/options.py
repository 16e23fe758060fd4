"""Options of a study, shared by `repsim.universality`, its command and study files."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from repsim.errors import InvalidArgumentError
from repsim.runtime.options import Count, Device, Memory, Positive, Text, option

METRICS = ("cka", "mutual_knn", "nuclear", "svcca")
"""Default measures of a study. Partial CKA comes with cka."""
_CONTROLS = r"^untrained:0*[1-9][0-9]*$"


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions:
    """Options of the statistics of a study."""

    metrics: Annotated[
        list[Text],
        option("Measures, as in `repsim metrics`. Debiased CKA and partial CKA are always included.",
               unset=", ".join(METRICS)),
    ] = field(default_factory=list)  # fmt: skip
    families: Annotated[
        dict[str, list[Text]],
        option(
            "Families of models: for each family, globs over names of models.",
            unset="by the architecture (resnet, ...)",
            metavar="NAME=GLOB[,GLOB]",
        ),
    ] = field(default_factory=dict)
    family_by: Annotated[
        Text | None,
        option("Axis whose values are the families: with width the families width=32, width=64, ...", unset="none"),
    ] = None
    controls: Annotated[
        Annotated[str, Meta(pattern=_CONTROLS)] | None,
        option("untrained:N extracts N untrained networks of each architecture as controls, batch norm recalibrated.",
               written="untrained:3", metavar="untrained:N"),
    ] = None  # fmt: skip
    permutations: Annotated[
        Annotated[int, Meta(ge=19, le=10**9)] | None,
        option("Number of permutations of the samples, for chance levels.",
               unset="1000, or a multiple that the correction for the number of pairs needs"),
    ] = None  # fmt: skip
    draws: Annotated[Positive, option("Number of draws of the multiplier bootstrap, for joint intervals.")] = 2000
    seed: Annotated[Count, option("Seed of permutations, splits and draws.")] = 0
    device: Device = "auto"
    memory: Memory = None

    @property
    def untrained(self) -> int:
        """Number of untrained networks of every architecture that are extracted as controls."""
        if self.controls is None:
            return 0
        if not re.search(_CONTROLS, self.controls):
            raise InvalidArgumentError("controls", "untrained:N, for example untrained:3", self.controls)
        return int(self.controls.partition(":")[2])


@dataclass(frozen=True, kw_only=True)
class UniversalityOptions(StatisticsOptions):
    """Options of `repsim.universality`."""

    readout: Annotated[Text | None, option("Readout to compare, if stores hold several.")] = None
    groups: Annotated[
        Text | None,
        option("Groups of samples that are not independent: `folders`, `re:PATTERN` over the ids with the group in its "
               "first bracket, or a CSV file of id or file name, and group.",
               unset="those that the stores hold", path=True, metavar="folders|re:PATTERN|PATH"),
    ] = None  # fmt: skip
    controls_folder: Annotated[
        Text | None,
        option("Folder in which untrained networks are kept.", unset="NAME.controls beside NAME.nc, or controls"),
    ] = None
    data: Annotated[
        Text | None,
        option(
            "The samples that untrained networks see, such as a table of pairs, of which each reads its column.",
            unset="those that the stores were made from",
        ),
    ] = None
    split: Annotated[Text | None, option("Split of these samples.")] = None
    data_root: Annotated[Text | None, option("Folder of the timm data sets.")] = None
    overwrite: Annotated[bool, option("Replace an existing study.")] = False
