"""Tell which class of the labels each output of a classifier stands for, and the size of a network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torch import nn

_IMAGENET = 1000
"""Number of outputs of a network for the ImageNet-1k classes."""


class Classes(NamedTuple):
    """Meaning of the outputs of a classifier."""

    numbers: NDArray[np.int64]
    """Class number of each output; -1 for outputs of classes that the labels do not have."""
    rule: str
    """The reason in words, which the store records."""


def classes_of_outputs(outputs: int, classes: Sequence[str], count: int) -> Classes | None:
    """Return which class each output of a network stands for; None if it does not classify these classes.

    Parameters
    ----------
    outputs : int
        Number of outputs of the network.
    classes : sequence of str
        Names of the classes in the order of their numbers; empty if they have none.
    count : int
        Number of classes.

    Returns
    -------
    Classes or None
        With as many outputs as classes, output k is class k. With 1,000 outputs and classes named by synsets of
        ImageNet (``n01440764``), output k is the k-th of these synsets.

    Examples
    --------
    >>> classes_of_outputs(3, ["cat", "dog", "owl"], 3).numbers.tolist()
    [0, 1, 2]
    >>> numbers = classes_of_outputs(1000, ["n01443537", "n01440764"], 2).numbers
    >>> numbers[:3].tolist()
    [1, 0, -1]
    >>> classes_of_outputs(1000, ["cat", "dog"], 2) is None
    True
    """
    if outputs == count:
        return Classes(np.arange(outputs), f"output k is class k of the {count} classes in their order")
    if outputs == _IMAGENET and classes:
        synsets = {name: k for k, name in enumerate(ImageNetInfo().label_names())}
        if synsets.keys() >= set(classes):
            numbers = np.full(outputs, -1)
            numbers[[synsets[name] for name in classes]] = np.arange(len(classes))
            return Classes(numbers, "outputs are the synsets of ImageNet-1k, by the names of the classes")
    return None


def sizes(model: nn.Module, width: int | None) -> dict[str, Any]:
    """Return the size of a network: ``parameters``, ``depth`` and ``width``.

    Parameters
    ----------
    model : torch.nn.Module
        The network. Its depth is its number of convolutions and linear maps, shortcuts and classifier included.
    width : int, optional
        Number of features before the classifier, which timm's ``num_features`` replaces; without both there is no
        width.

    Examples
    --------
    >>> import timm
    >>> sizes(timm.create_model("resnet18"), None)
    {'parameters': 11689512, 'depth': 21, 'width': 512}
    """
    features = getattr(model, "num_features", width)
    depth = sum(isinstance(module, nn.Linear | nn.modules.conv._ConvNd) for module in model.modules())
    record = {"parameters": sum(values.numel() for values in model.parameters()), "depth": depth}
    return record | ({"width": features} if isinstance(features, int) else {})
