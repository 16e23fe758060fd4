"""Plan a study from the shapes of its layers: blocks of models, sizes of panels and tiles, and what each step costs.

Planning reads no activations and measures nothing. The same shapes and limits give the same plan on every machine, so
that results are the same to the bit and an interrupted study goes on with the blocks that are missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repsim.study.blocks import Block


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """Division of a study into blocks, and the sizes with which they are computed."""

    blocks: Sequence[Block]
    panel: int = 0
    """Samples whose features are read at once; 0 for the setting of `tuning`."""
    stack: int = 0
    """Bytes of a stack of tiles; 0 for the setting of `tuning`."""
    held: int = 2
    """Panels in memory at once."""
    room: int = 2**29
    """Bytes for sums of single groups of samples."""

    def tile(self, layers: int) -> int:
        """Return the side of a tile for a block with this number of layers."""
        del layers
        return 0
