"""Recalibrate the batch norm of untrained networks: set its running statistics to those of the pictures.

After initialisation, batch norm has a running mean of 0 and a variance of 1, so in eval mode it changes nothing.
Activations then grow or vanish with depth, and the untrained network is a poor control.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repsim.errors import Argument, InvalidInputError, Remedy, SampleError
from repsim.extractors import hooks
from repsim.extractors.base import Stream
from repsim.extractors.loading import sample_loader
from repsim.extractors.preparation import Preparation, move
from repsim.extractors.samples.opening import choose
from repsim.extractors.samples.source import SampleSource
from repsim.runtime.progress import report_share

SAMPLES = 512
"""Largest number of samples that are used. They are spread evenly over the chosen samples."""
_BATCH = 32
"""Batch size of the recalibration. It is fixed, so that the statistics do not depend on the batch size of the user."""

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Path of a batch norm -> mean and unbiased variance of each channel."""


def check_weights(weights: object, *, module: bool = False) -> None:
    """Raise `InvalidInputError` unless the weights are random: trained networks keep their own statistics.

    Whether those of a torch ``module`` are, only the provenance that the user passes can tell.
    """
    if weights != "random":
        raise InvalidInputError(
            "recalibrating batch norm is for untrained networks; trained networks keep their own statistics",
            remedy=Remedy(
                "use it with ",
                Argument("provenance", {"weights": "random"}) if module else Argument("weights", "random"),
            ),
        )


def as_initialised(norm: _BatchNorm) -> bool:
    """Return whether a batch norm has the statistics of its initialisation, with which it does nothing."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())


def statistics_of(model: nn.Module) -> Statistics:
    """Return a copy of the running statistics of the model's batch norms, for `assign`."""
    return {
        path: (norm.running_mean.clone(), norm.running_var.clone())
        for path, norm in batch_norms(model).items()
        if norm.running_mean is not None and norm.running_var is not None
    }


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return all batch norms with running statistics by path, including subclasses that libraries define."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def measure(
    model: nn.Module, preparation: Preparation, samples: SampleSource, rows: Sequence[int], how: Stream
) -> Statistics:
    """Estimate the mean and variance of the input of every batch norm over at most 512 samples.

    The model is not changed. In one pass in float32, every batch norm normalises by its own batch, as in training, and
    all other modules are in eval mode. Moments are pooled over the batches, because a running average of the variances
    of batches, as in torch, lacks the variance between batches.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    preparation : Preparation
        The preparation of the samples.
    samples : SampleSource
        The samples.
    rows : sequence of int
        Positions of the samples that will be extracted.
    how : Stream
        Device and workers. The batch size is fixed.

    Returns
    -------
    dict
        Mapping from the path of a batch norm to mean and unbiased variance per channel, on the CPU, for `assign`. A
        batch norm that the forward pass does not call is left out.

    Raises
    ------
    InvalidInputError
        There are fewer than two samples, so the variance is undefined.
    SampleError
        A sample cannot be read; the message contains its name.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> from repsim.extractors.timm_models import TimmExtractor
    >>> extractor = TimmExtractor("digits_resnet", weights="random")
    >>> statistics = measure(extractor.model, extractor.preparation, open_images("digits"), range(40), Stream())
    >>> mean, variance = statistics["bn1"]
    >>> mean.shape, bool((variance > 0).all())
    (torch.Size([64]), True)
    >>> assign(extractor.model, statistics)
    """
    chosen = np.asarray(rows, np.int64)[choose(len(rows), SAMPLES)]
    if len(chosen) < 2:
        raise InvalidInputError("recalibrating batch norm needs at least 2 samples: one has no variance")
    batches = np.array_split(chosen, -(-len(chosen) // _BATCH))  # sizes differ by at most 1, so no batch has 1 sample
    device = torch.device(how.device)
    with _collecting_moments(model.to(device)) as moments, torch.no_grad():
        for k, (_, batch) in enumerate(sample_loader(samples, preparation, batches, how)):
            report_share(k, len(batches))
            if isinstance(batch, SampleError):
                raise batch
            preparation.forward(model, move(batch, device, non_blocking=device.type == "cuda"))
    return {path: pooled.statistics() for path, pooled in moments.items()}


def assign(model: nn.Module, statistics: Statistics) -> None:
    """Set the running statistics of the model's batch norms."""
    norms = batch_norms(model)
    for path, values in statistics.items():
        for running, value in zip((norms[path].running_mean, norms[path].running_var), values, strict=True):
            assert running is not None, "batch_norms() returns only batch norms with running statistics"
            running.copy_(value)


class _Moments:
    """Mean and sum of squared deviations, updated batch by batch (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Update the moments with one batch (b, channels, ...)."""
        variance, mean = (moment.double() for moment in torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0))
        count = x.numel() // x.shape[1]
        total, change = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + change**2 * (self.count * count / total)
        self.mean = self.mean + change * (count / total)
        self.count = total

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance per channel, in float32."""
        return self.mean.float(), (self.squares / (self.count - 1)).float()


@contextmanager
def _collecting_moments(model: nn.Module) -> Iterator[dict[str, _Moments]]:
    """Make every batch norm normalise by the batch inside the block, and yield the moments of its inputs by path.

    Afterwards all modules have their previous mode and settings.
    """
    moments: dict[str, _Moments] = defaultdict(_Moments)
    with hooks.evaluating(model), ExitStack() as stack:
        for path, norm in batch_norms(model).items():
            norm.training = True
            stack.callback(setattr, norm, "track_running_stats", norm.track_running_stats)
            norm.track_running_stats = False
            handle = norm.register_forward_pre_hook(lambda _, args, path=path: moments[path].add(args[0]))
            stack.callback(handle.remove)
        yield moments
