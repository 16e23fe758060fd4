"""Compile the forward pass of a model together with its readouts, and arrange weights for fast convolutions.

Both change last digits, so they are options, and the provenance of a store records them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from repsim.errors import Argument, InvalidInputError, Remedy, reason
from repsim.extractors.base import LayerSpec, Readout
from repsim.extractors.hooks import Readings
from repsim.extractors.preparation import Preparation, copy, like_examples, mapped

_TOLERANCE = {False: 1e-2, True: 1e-1}
"""Largest difference between compiled and eager readouts of a layer, relative to its largest value, without and with
half precision. Rounding gives 1e-5 (1e-3 with TF32; 1e-2 in half precision), and a wrong program gives about 1."""
_OTHER_PROGRAMS = 8
"""Number of programs that torch compiles of one function by default, beside those of the models."""
_OPTION = Argument("compile", value=True)


class PassedModel(Protocol):
    """Attributes of a model that its forward pass uses."""

    name: str
    model: nn.Module
    preparation: Preparation
    readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]


@contextmanager
def compiling(models: int) -> Iterator[None]:
    """Compile anew inside the block, and forget the compiled programs afterwards.

    The hooks of a pass are part of its programs, so a later pass over the same model needs others. By default torch
    runs a function as it is, without a word, once it was compiled eight times.
    """
    import torch._dynamo  # noqa: PLC0415 - takes seconds

    torch.compiler.reset()
    limit = models + _OTHER_PROGRAMS
    try:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, cache_size_limit=limit):
            yield
    finally:
        torch.compiler.reset()


class CompiledPass:
    """Forward pass of one model and its readouts, compiled for full batches.

    Other batches, such as the last, run as they are. So there is one program, and which batches it computes does not
    depend on interruptions or on the number of processes. The first full batch is also computed without compilation,
    and the values are compared.

    Parameters
    ----------
    extractor : PassedModel
        The model. Its hooks are registered already.
    values : Readings
        Readouts of a pass, which the hooks fill.
    batch_size : int
        Number of samples in a full batch.
    half : bool
        Whether the passes run in half precision.
    backend : str or callable
        Compiler, as in `torch.compile`.
    """

    def __init__(
        self,
        extractor: PassedModel,
        values: Readings,
        *,
        batch_size: int,
        half: bool = False,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self._extractor, self._values = extractor, values
        self._batch_size, self._tolerance = batch_size, _TOLERANCE[half]
        model, forward = extractor.model, extractor.preparation.forward

        def run(batch: Any) -> Any:
            return forward(model, batch)

        self._run = run
        self._program: Callable[[Any], Any] = torch.compile(run, dynamic=False, backend=backend)
        self._checked = False

    def __call__(self, batch: Any) -> Any:
        """Return the output of the model for a batch.

        Raises
        ------
        InvalidInputError
            The model cannot be compiled, or the compiled values differ from the others by more than rounding errors.
        """
        if not like_examples(batch, self._extractor.preparation.examples, self._batch_size):
            return self._run(batch)
        expected: dict[tuple[str, str], Tensor] | None = None
        if not self._checked:
            self._run(copy(batch))
            expected, self._checked = dict(self._values), True
        self._values.begin()  # always before the program, which is only valid for the state that it was compiled in
        output = self._compiled(batch)
        if expected is not None:
            self._compare(expected)
        return output

    def _compiled(self, batch: Any) -> Any:
        import torch._dynamo  # noqa: PLC0415 - takes seconds

        name = self._extractor.name
        try:
            return self._program(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            if type(getattr(error, "inner_exception", None)).__name__ == "InvalidCxxCompiler":
                raise InvalidInputError(
                    f"{name} cannot be compiled: torch.compile finds no C++ compiler on this machine",
                    remedy=Remedy("install g++ or clang, name it in the variable CXX, or leave out ", _OPTION),
                ) from error
            raise InvalidInputError(
                f"{name} cannot be compiled: {reason(error)}", remedy=Remedy("leave out ", _OPTION)
            ) from error

    def _compare(self, expected: Mapping[tuple[str, str], Tensor]) -> None:
        for key, right in expected.items():
            value = self._values.get(key)
            if value is None:
                what = "reads nothing"
            else:
                gap = float((value - right).abs().max() / right.abs().max().clamp_min(torch.finfo(right.dtype).tiny))
                if gap <= self._tolerance:
                    continue
                what = f"differs by {gap:.1g} of its largest value"
            if not bool(torch.isfinite(right).all()):
                continue  # reported where values are written
            raise InvalidInputError(
                f"{self._extractor.name} does not compute the same when compiled: {key[1]} of layer {key[0]!r} {what}",
                remedy=Remedy("leave out ", _OPTION),
            )


@contextmanager
def in_channels_last(model: nn.Module) -> Iterator[None]:
    """Put the channels of the weights of convolutions last in memory inside the block; the values stay equal."""
    weights = [
        weight
        for weight in (*model.parameters(), *model.buffers())
        if weight.ndim == 4 and not weight.is_contiguous(memory_format=torch.channels_last)
    ]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()


def with_channels_last(batch: Any) -> Any:
    """Return a batch whose pictures have their channels last in memory.

    >>> with_channels_last(torch.zeros(2, 3, 4, 4)).stride()
    (48, 1, 12, 3)
    """
    return mapped(batch, lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
