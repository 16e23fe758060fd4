"""Batch norm of untrained networks: the statistics of the stimuli, in place of those of a network that saw nothing.

Fresh from its initialisation batch norm has a running mean of 0 and a variance of 1: in eval mode it does nothing,
activations grow or die with depth, and an untrained network is a poorer control than it has to be.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repsim.errors import Argument, ImageError, InvalidInputError, Remedy
from repsim.extractors import hooks
from repsim.extractors.base import Stream
from repsim.extractors.images import choose
from repsim.extractors.loading import picture_loader
from repsim.extractors.preprocessing import Transform
from repsim.extractors.sources import ImageSource

SAMPLES = 512
"""At most so many are looked at, spread evenly over the chosen ones."""
_BATCH = 32
"""Of a size of its own, so that the statistics are the same for every batch size."""

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Path of a batch norm -> mean and unbiased variance of each channel."""


def check_weights(weights: object) -> None:
    """Refuse to replace statistics that were learnt."""
    if weights != "random":
        raise InvalidInputError(
            "recalibrating batch norm is for untrained networks, as trained ones have statistics of their own",
            remedy=Remedy("use it with ", Argument("weights", "random")),
        )


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm that has running statistics, libraries' own kinds among them, by its path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def measure(
    model: nn.Module, transform: Transform, images: ImageSource, rows: Sequence[int], how: Stream
) -> Statistics:
    """Find the mean and the variance of what every batch norm gets, over at most 512 of the samples; changes nothing.

    One pass in float32, in which every batch norm normalises by its own batch, as in training, and all else is in eval
    mode. Moments are pooled over the batches: a running average of the batches' variances, as torch keeps it, would
    lack what differs between batches.

    Parameters
    ----------
    model, transform
        The network, and what prepares its pictures.
    images, rows
        The pictures, and which of them: all that will be extracted.
    how
        Device and workers; batches have a size of their own.

    Returns
    -------
    dict
        For `assign`, on the CPU. A batch norm that this forward pass never calls is not in it.

    Raises
    ------
    InvalidInputError
        For fewer than two samples, which have no variance.
    ImageError
        With the name of a picture that cannot be read.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> from repsim.extractors.timm_models import TimmExtractor
    >>> extractor = TimmExtractor("digits_resnet", weights="random")
    >>> found = measure(extractor.model, extractor.transform, open_images("digits"), range(40), Stream())
    >>> mean, variance = found["bn1"]
    >>> mean.shape, bool((variance > 0).all())
    (torch.Size([64]), True)
    >>> assign(extractor.model, found)
    """
    chosen = np.asarray(rows, np.int64)[choose(len(rows), SAMPLES)]
    if len(chosen) < 2:
        raise InvalidInputError("recalibrating batch norm takes at least 2 samples: one has no variance")
    batches = np.array_split(chosen, -(-len(chosen) // _BATCH))  # of equal size but for one, so none has one sample
    device = torch.device(how.device)
    with _watching(model.to(device)) as moments, torch.no_grad():
        for _, pictures in picture_loader(images, transform, batches, how):
            if isinstance(pictures, ImageError):
                raise pictures
            model(pictures.to(device))
    return {path: pooled.statistics() for path, pooled in moments.items()}


def assign(model: nn.Module, statistics: Statistics) -> None:
    """Make them the running statistics of the model's batch norms."""
    norms = batch_norms(model)
    for path, values in statistics.items():
        for running, value in zip((norms[path].running_mean, norms[path].running_var), values, strict=True):
            assert running is not None, "batch_norms() chooses those that have them"
            running.copy_(value)


class _Moments:
    """Mean and sum of squared deviations over batches, each known by its own (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """One batch (b, channels, ...)."""
        variance, mean = (moment.double() for moment in torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0))
        count = x.numel() // x.shape[1]
        total, change = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + change**2 * (self.count * count / total)
        self.mean = self.mean + change * (count / total)
        self.count = total

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, as torch keeps them."""
        return self.mean.float(), (self.squares / (self.count - 1)).float()


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, _Moments]]:
    """Every batch norm normalises by the batch, and what it gets is summed up; afterwards all is as it was."""
    moments: dict[str, _Moments] = defaultdict(_Moments)
    with hooks.evaluating(model), ExitStack() as stack:
        for path, norm in batch_norms(model).items():
            norm.training = True
            stack.callback(setattr, norm, "track_running_stats", norm.track_running_stats)
            norm.track_running_stats = False
            watch = norm.register_forward_pre_hook(lambda _, args, path=path: moments[path].add(args[0]))
            stack.callback(watch.remove)
        yield moments
