"""Forward hooks: trace all tensors that a forward pass produces, and read out the chosen ones.

A module's output is often overwritten in place right after its hook has run (65 of the 216 modules of a ResNet-50:
every batch norm before an in-place ReLU), so a hook must copy or reduce the output at once. A hook that returns a value
other than None replaces the module's output, so the hooks in this file return nothing.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from repsim.errors import InvalidInputError
from repsim.extractors.base import LayerSpec, Readout, Site
from repsim.extractors.preparation import call

TRACE_BATCH = 3
"""Number of samples of the tracing batch: not 1 or 2, which are frequent lengths of other axes."""


@dataclass(frozen=True)
class TracedTensor:
    """A tensor of a traced forward pass; ``shape`` is that of one sample."""

    site: Site
    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Tensors of one forward pass, in the order in which their modules finish."""

    tensors: tuple[TracedTensor, ...]
    left_out: Mapping[str, str]
    """Module path -> reason why no tensor of the module can be read."""
    started: Mapping[str, int]
    """Module path -> position, among all starts and ends of calls, of the start of its first call."""
    finished: Mapping[str, int]
    """Module path -> position, among all starts and ends of calls, of the end of its first call."""
    outputs: int | None = None
    """Number of outputs of the model; None unless it returns one vector for each sample."""
    tokens: int | None = None
    """Number of tokens of the example with which the model was traced, padding included; None without a mask."""


def tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in a module's output, in order.

    Tuples, lists, dictionaries and dataclasses are searched.

    >>> [tuple(t.shape) for t in tensors((torch.zeros(2), {"tokens": torch.zeros(3), "index": torch.arange(4)}))]
    [(2,), (3,)]
    """
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for entry in dataclasses.fields(value) for t in tensors(getattr(value, entry.name))]
    return []


def _labels(value: Any) -> list[str]:
    """Return a label for each tensor in `tensors`: its key or field at the top, and otherwise its number.

    >>> _labels({"last": torch.zeros(2), "all": (torch.zeros(1), torch.zeros(1))}), _labels((torch.zeros(1),))
    (['last', 'all.0', 'all.1'], ['0'])
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return [str(i) for i in range(len(tensors(value)))]
    return [
        str(key) if isinstance(entry, Tensor) else f"{key}.{i}"
        for key, entry in value.items()
        for i in range(len(tensors(entry)))
    ]


def trace(
    model: nn.Module,
    example: Any,
    classifiers: Sequence[str] | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] = call,
    samples: int | None = None,
    tokens: int | None = None,
    inputs_of: Mapping[str, str] | None = None,
) -> Trace:
    """Run ``example`` through the model once and record every module's calls, outputs and shapes.

    Parameters
    ----------
    model : torch.nn.Module
        The model, in eval mode.
    example : Tensor or nest of tensors
        Input of the model, a batch.
    classifiers : sequence of str, optional
        Paths of the modules whose inputs are the pre-logits features (several in a distilled DeiT). By default the
        linear layer whose output is the output of the model, if there is one.
    forward : callable
        Function that calls the model with a batch.
    samples : int, optional
        Number of samples in the example; by default its length.
    tokens : int, optional
        Number of tokens in the example, padding included.
    inputs_of : mapping, optional
        Path of a module -> name of the layer that is its input.

    Returns
    -------
    Trace
        The tensors whose first axis is the samples.
    """
    clock = 0
    labels: dict[str, list[list[str]]] = defaultdict(list)  # as output_shapes: names of the tensors in an output
    started: dict[str, int] = {}
    finished: dict[str, int] = {}
    calls: Counter[str] = Counter()
    output_shapes: dict[str, list[list[tuple[int, ...]]]] = defaultdict(list)  # path -> call -> shapes
    inputs: dict[str, tuple[int, ...]] = {}
    order: list[Site] = []
    linear = [path for path, module in model.named_modules() if path and isinstance(module, nn.Linear)]
    named = {} if inputs_of is None else dict(inputs_of)
    candidates = frozenset({*(linear if classifiers is None else classifiers), *named})
    outputs: dict[str, ref[Tensor]] = {}  # candidate -> weak reference to its output, in the order of the last calls

    def before(path: str, args: tuple[Any, ...]) -> None:
        nonlocal clock
        clock += 1
        started.setdefault(path, clock)
        if path in candidates and path not in inputs and (arguments := tensors(args)):
            inputs[path] = tuple(arguments[0].shape)
            order.append(Site(path, side="input"))

    def after(path: str, output: Any) -> None:
        nonlocal clock
        clock += 1
        finished.setdefault(path, clock)
        order.append(Site(path, calls[path]))
        calls[path] += 1
        output_shapes[path].append([tuple(t.shape) for t in tensors(output)])
        labels[path].append(_labels(output))
        if path in candidates and isinstance(output, Tensor):
            outputs.pop(path, None)
            outputs[path] = ref(output)

    # no inference mode: tensors that a module caches may be used in training later
    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            if path:
                stack.callback(_remove(module.register_forward_pre_hook(lambda _, args, path=path: before(path, args))))
                stack.callback(_remove(module.register_forward_hook(lambda _, __, out, path=path: after(path, out))))
        result = forward(model, example)
    samples = len(example) if samples is None else samples
    heads = [_find_head(tensors(result)[:1], outputs, output_shapes)] if classifiers is None else classifiers
    named |= _pre_logits([path for path in inputs if path in heads], output_shapes)
    inputs = {path: shape for path, shape in inputs.items() if path in named}
    order = [site for site in order if site.side == "output" or site.module in inputs]

    types = {path: type(module).__name__ for path, module in model.named_modules()}
    traced, left_out = _name_tensors(order, output_shapes, labels, inputs, named, types, samples)
    left_out |= {path: "is never called in the forward pass" for path in types if path and not calls[path]}
    vectors = isinstance(result, Tensor) and result.ndim == 2 and len(result) == samples
    return Trace(traced, left_out, started, finished, result.shape[1] if vectors else None, tokens)


def _name_tensors(  # noqa: PLR0917 - what one trace has recorded
    order: Sequence[Site],
    output_shapes: Mapping[str, Sequence[Sequence[tuple[int, ...]]]],
    labels: Mapping[str, Sequence[Sequence[str]]],
    inputs: Mapping[str, tuple[int, ...]],
    named: Mapping[str, str],
    types: Mapping[str, str],
    samples: int,
) -> tuple[tuple[TracedTensor, ...], dict[str, str]]:
    """Return the tensors whose first axis is the samples, and the reasons why other modules have none."""
    traced: list[TracedTensor] = []
    left_out: dict[str, str] = {}
    for site in order:
        path = site.module
        if site.side == "input":
            if len(inputs[path]) > 1 and inputs[path][0] == samples:
                traced.append(TracedTensor(site, named[path], f"input of {types[path]}", inputs[path][1:]))
            continue
        shapes = output_shapes[path][site.call]
        good = [i for i, shape in enumerate(shapes) if len(shape) > 1 and shape[0] == samples]
        if not shapes:
            left_out[path] = "returns no tensor"
        elif not good:
            left_out[path] = f"returns shape {shapes[0]} for {samples} samples (its first axis is not the samples)"
        for i in good:
            call = f"#{site.call + 1}" if len(output_shapes[path]) > 1 else ""
            name = f"{path}{call}[{labels[path][site.call][i]}]" if len(shapes) > 1 else f"{path}{call}"
            traced.append(TracedTensor(Site(path, site.call, i), name, types[path], shapes[i][1:]))
    return tuple(traced), left_out


def _pre_logits(heads: Sequence[str], output_shapes: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the layers that are the inputs of the classifiers."""
    if "pre_logits" in output_shapes:  # VGG has a module of this name, whose output is the same tensor
        return {}
    return {path: "pre_logits" if len(heads) == 1 else f"pre_logits[{k}]" for k, path in enumerate(heads)}


def _find_head(
    result: list[Tensor], outputs: Mapping[str, ref[Tensor]], output_shapes: Mapping[str, list[list[tuple[int, ...]]]]
) -> str | None:
    """Return the path of the linear layer that computes the logits, or None.

    Its output is the output of the model, or it is the last linear layer and its output has the shape of the logits.
    """
    for path, output in outputs.items():
        if result and output() is result[0]:
            return path
    last = next(reversed(list(outputs)), None)
    logits = tuple(result[0].shape) if result else ()
    return last if last and len(logits) == 2 and output_shapes[last][-1] == [logits] else None


def _remove(handle: torch.utils.hooks.RemovableHandle) -> Any:
    return handle.remove


class Readings(dict[tuple[str, str], Tensor]):
    """Readouts of one forward pass, by layer and readout; `reading` fills it."""

    mask: Tensor | None = None
    """Mask (b, T) of the real tokens of the batch, which is set before the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        """Number of calls of each module in this pass, by its path and the side that is read."""

    def begin(self) -> None:
        """Forget the readouts and calls of the pass before."""
        self.clear()
        self.calls.clear()


@contextmanager
def reading(model: nn.Module, wanted: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]) -> Iterator[Readings]:
    """Attach hooks that read out ``wanted`` in every forward pass, and yield the dictionary that they fill.

    Call `check` after each pass: it raises an error if a readout is missing.
    """
    values = Readings()
    sites: dict[tuple[str, str], list[tuple[Site, tuple[str, str], LayerSpec, Readout]]] = defaultdict(list)
    for key, (layer, readout) in wanted.items():
        sites[layer.site.module, layer.site.side].append((layer.site, key, layer, readout))

    def read(place: tuple[str, str], value: Any) -> None:
        call = values.calls[place]
        values.calls[place] += 1
        items = [value] if isinstance(value, Tensor) else None
        for site, key, layer, readout in sites[place]:
            if site.call == call:  # the pre-logits feature is the input of the classifier's first call
                items = tensors(value) if items is None else items
                item = items[site.item] if site.item < len(items) else None
                values[key] = read_out(item, layer, readout, values.mask)

    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.callback(_remove(model.register_forward_pre_hook(lambda *_: values.begin())))
        for path, side in sites:
            place, module = (path, side), modules[path]
            stack.callback(
                _remove(module.register_forward_pre_hook(lambda _, args, place=place: read(place, args)))
                if side == "input"
                else _remove(module.register_forward_hook(lambda _, __, out, place=place: read(place, out)))
            )
        yield values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block, and restore its mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # calls train() of the user's modules, which may do more than set the mode
        for module, mode in modes:
            module.training = mode


def read_out(output: Any, layer: LayerSpec, readout: Readout, mask: Tensor | None = None) -> Tensor:
    """Return the readout of one output of a module; raise `InvalidInputError` for another shape than in the trace."""
    output = output if isinstance(output, Tensor) else None
    if layer.axes == "NTC" and output is not None:
        if mask is None or output.ndim != 3 or output.shape[:2] != mask.shape or output.shape[2] != layer.shape[1]:
            against = "no mask" if mask is None else f"a mask {tuple(mask.shape)}"
            raise InvalidInputError(
                f"layer {layer.name!r} gave shape {tuple(output.shape)} with {against}; expected (samples, tokens, "
                f"{layer.shape[1]}) with a mask (samples, tokens)"
            )
        return readout(output, layer, mask.to(output.device))
    if output is None or tuple(output.shape[1:]) != layer.shape:
        got = "nothing" if output is None else f"shape {tuple(output.shape[1:])}"
        raise InvalidInputError(
            f"layer {layer.name!r} gave {got}, but {layer.shape} in the trace: "
            "the shape of its output depends on the input, so samples cannot be compared"
        )
    return readout(output, layer)


def check(
    values: Mapping[tuple[str, str], Tensor], wanted: Mapping[tuple[str, str], tuple[LayerSpec, Readout]], samples: int
) -> None:
    """Check that every wanted readout is present, with one row per sample or per block of samples."""
    for key, (_, readout) in wanted.items():
        if key not in values:
            raise InvalidInputError(f"layer {key[0]!r} was not called in this forward pass, but in the trace it was")
        if len(values[key]) != samples // readout.block:
            raise InvalidInputError(f"layer {key[0]!r} gave {len(values[key])} rows for {samples} samples")
