"""Find the boundaries of models, and of the stages of a network, along a side of a matrix."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Run:
    """Consecutive layers of one model; ``first`` is the position of its first layer, counted from 0."""

    model: str
    first: int
    count: int


def runs(models: Iterable[str]) -> list[Run]:
    """Find the runs of consecutive layers of each model.

    Parameters
    ----------
    models : iterable of str
        Model of every layer.

    Examples
    --------
    >>> runs(["a", "a", "b"])
    [Run(model='a', first=0, count=2), Run(model='b', first=2, count=1)]
    """
    along: list[Run] = []
    for model, layers in groupby(models):
        along.append(Run(model, along[-1].first + along[-1].count if along else 0, len(list(layers))))
    return along


def boundaries(layers: Iterable[str]) -> list[int]:
    """Find the layers at which the stage changes.

    The stage of a layer is the part of its name before the number of the block, if that part has a number itself:
    ``layer1`` of ``layer1.0``, ``stages.0`` of ``stages.0.blocks.2``, ``blocks.1`` of ``blocks.1.0``. The blocks of a
    ViT, such as ``blocks.0``, have one number and no stage. A network has no stages if every stage would consist of one
    layer.

    Parameters
    ----------
    layers : iterable of str
        Names of the layers of one network in order of depth, with or without a readout (``layer1.0@mean``).

    Returns
    -------
    list of int
        Positions, counted from 0; the first layer is not among them.

    Examples
    --------
    >>> boundaries(["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"])
    [1, 3, 5]
    >>> boundaries(["patch_embed", "blocks.0", "blocks.1", "norm"])
    []
    """
    stages = [_stage(layer.split("@")[0]) for layer in layers]
    named = [stage for stage in stages if stage]
    if len(set(named)) < 2 or len(set(named)) == len(named):
        return []
    return [at for at in range(1, len(stages)) if stages[at] != stages[at - 1]]


def _stage(layer: str) -> str:
    """Return the name up to its first number if the number of a block follows it; else an empty string."""
    match = re.match(r"(?:(.*?[^\d.]\d+)\.(?:.*?\d+)(?:\.|$)|(.*?\.\d+)\.(?:.*\.)?\d+(?:\.|$))", layer)
    return (match[1] or match[2]) if match else ""
