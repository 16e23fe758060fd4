"""Forward hooks: find every tensor that a forward pass produces, and read out the chosen ones.

Two facts shape this file. A module's output is often overwritten in place right after its hook ran (65 of the 216
modules of a ResNet-50: every batch norm before an in-place ReLU), so a hook must copy or reduce at once. And a hook
that returns anything but None replaces the module's output, so hooks here return nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from repsim.errors import InvalidInputError
from repsim.extractors.base import LayerSpec, Readout, Site

TRACE_BATCH = 3
"""Samples in the tracing batch: not 1 or 2, which a tensor's first axis may well have for another reason."""


@dataclass(frozen=True)
class TracedTensor:
    """A tensor seen while tracing."""

    site: Site
    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Everything that one forward pass calls, in the order in which it is finished."""

    tensors: tuple[TracedTensor, ...]
    left_out: Mapping[str, str]
    """Module path -> why nothing can be read there."""
    started: Mapping[str, int]
    """Module path -> position, among all starts and ends, at which its first call started."""
    finished: Mapping[str, int]
    """The same for where its first call ended."""


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point tensor in a module's output, in order: itself, or what tuples, lists and dictionaries hold.

    >>> [tuple(t.shape) for t in tensors((torch.zeros(2), {"tokens": torch.zeros(3), "index": torch.arange(4)}))]
    [(2,), (3,)]
    """
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    return []


def trace(model: nn.Module, example: Tensor, classifiers: Sequence[str] | None = None) -> Trace:
    """Run ``example`` through the model once and note every module's calls, outputs and shapes.

    ``classifiers`` are the modules whose inputs are the pre-logits features (more than one in a distilled DeiT). Where
    nobody knows them (None), it is the linear map whose output is the model's, if there is one.
    """
    clock = 0
    started: dict[str, int] = {}
    finished: dict[str, int] = {}
    calls: Counter[str] = Counter()
    seen: dict[str, list[list[tuple[int, ...]]]] = defaultdict(list)  # path -> call -> shapes
    inputs: dict[str, tuple[int, ...]] = {}
    order: list[Site] = []
    linear = [path for path, module in model.named_modules() if path and isinstance(module, nn.Linear)]
    candidates = frozenset(linear if classifiers is None else classifiers)
    outputs: dict[str, ref[Tensor]] = {}  # of the candidates, the last to finish at the end; none is kept alive

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
        seen[path].append([tuple(t.shape) for t in tensors(output)])
        if path in candidates and isinstance(output, Tensor):
            outputs.pop(path, None)
            outputs[path] = ref(output)

    # not inference mode: what a module caches meanwhile may take part in training later
    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            if path:
                stack.callback(_remove(module.register_forward_pre_hook(lambda _, args, path=path: before(path, args))))
                stack.callback(_remove(module.register_forward_hook(lambda _, __, out, path=path: after(path, out))))
        result = model(example)
    heads = [_head(tensors(result)[:1], outputs, seen)] if classifiers is None else classifiers
    inputs = {path: shape for path, shape in inputs.items() if path in heads}
    order = [site for site in order if site.side == "output" or site.module in inputs]

    types = {path: type(module).__name__ for path, module in model.named_modules()}
    traced, left_out = _name_tensors(order, seen, inputs, types, len(example))
    left_out |= {path: "is never called in the forward pass" for path in types if path and not calls[path]}
    return Trace(traced, left_out, started, finished)


def _name_tensors(
    order: Sequence[Site],
    seen: Mapping[str, Sequence[Sequence[tuple[int, ...]]]],
    inputs: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
    samples: int,
) -> tuple[tuple[TracedTensor, ...], dict[str, str]]:
    """Name every tensor whose first axis is the samples; say of the other modules why there is none."""
    traced: list[TracedTensor] = []
    left_out: dict[str, str] = {}
    for site in order:
        path = site.module
        if site.side == "input":
            # VGG's own module of that name computes the same thing
            if len(inputs[path]) > 1 and inputs[path][0] == samples and "pre_logits" not in seen:
                name = "pre_logits" if len(inputs) == 1 else f"pre_logits[{list(inputs).index(path)}]"
                traced.append(TracedTensor(site, name, f"input of {types[path]}", inputs[path][1:]))
            continue
        shapes = seen[path][site.call]
        good = [i for i, shape in enumerate(shapes) if len(shape) > 1 and shape[0] == samples]
        if not shapes:
            left_out[path] = "returns no tensor"
        elif not good:
            left_out[path] = f"returns shape {shapes[0]} for {samples} samples (its first axis is not the samples)"
        for i in good:
            name = path + (f"#{site.call + 1}" if len(seen[path]) > 1 else "") + (f"[{i}]" if len(shapes) > 1 else "")
            traced.append(TracedTensor(Site(path, site.call, i), name, types[path], shapes[i][1:]))
    return tuple(traced), left_out


def _head(
    result: list[Tensor], outputs: Mapping[str, ref[Tensor]], seen: Mapping[str, list[list[tuple[int, ...]]]]
) -> str | None:
    """Which linear map made the logits: its output is the model's, or it came last and the logits have its shape."""
    for path, output in outputs.items():
        if result and output() is result[0]:
            return path
    last = next(reversed(list(outputs)), None)
    logits = tuple(result[0].shape) if result else ()
    return last if last and len(logits) == 2 and seen[last][-1] == [logits] else None


def _remove(handle: torch.utils.hooks.RemovableHandle) -> Any:
    return handle.remove


@contextmanager
def reading(
    model: nn.Module, wanted: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Attach hooks that read out ``wanted`` in every forward pass; yields the dictionary that they fill.

    Call `check` after each pass: it empties nothing, but notices what did not come.
    """
    values: dict[tuple[str, str], Tensor] = {}
    calls: Counter[tuple[str, str]] = Counter()
    sites: dict[tuple[str, str], list[tuple[Site, tuple[str, str], LayerSpec, Readout]]] = defaultdict(list)
    for key, (layer, readout) in wanted.items():
        sites[layer.site.module, layer.site.side].append((layer.site, key, layer, readout))

    def take(where: tuple[str, str], value: Any) -> None:
        call = calls[where]
        calls[where] += 1
        items = [value] if isinstance(value, Tensor) else None
        for site, key, layer, readout in sites[where]:
            if site.call == call:  # of the inputs, the pre-logits feature is what the classifier's first call gets
                items = tensors(value) if items is None else items
                values[key] = _read(items[site.item] if site.item < len(items) else None, layer, readout)

    def begin(*_: Any) -> None:
        values.clear()
        calls.clear()

    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.callback(_remove(model.register_forward_pre_hook(begin)))
        for path, side in sites:
            where, module = (path, side), modules[path]
            stack.callback(
                _remove(module.register_forward_pre_hook(lambda _, args, where=where: take(where, args)))
                if side == "input"
                else _remove(module.register_forward_hook(lambda _, __, out, where=where: take(where, out)))
            )
        yield values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # first, for what a module of the user's does when its mode changes
        for module, mode in modes:
            module.training = mode


def _read(output: Tensor | None, layer: LayerSpec, readout: Readout) -> Tensor:
    if output is None or tuple(output.shape[1:]) != layer.shape:
        came = "nothing" if output is None else f"shape {tuple(output.shape[1:])}"
        raise InvalidInputError(
            f"layer {layer.name!r} gave {came} where the trace saw {layer.shape}: "
            "its output depends on the input, so samples cannot be compared"
        )
    return readout(output, layer)


def check(
    values: Mapping[tuple[str, str], Tensor], wanted: Mapping[tuple[str, str], tuple[LayerSpec, Readout]], samples: int
) -> None:
    """Raise unless every wanted readout came, with one row a sample, or one a block of samples."""
    for key, (_, readout) in wanted.items():
        if key not in values:
            raise InvalidInputError(f"layer {key[0]!r} was not reached in this forward pass, though the trace saw it")
        if len(values[key]) != samples // readout.block:
            raise InvalidInputError(f"layer {key[0]!r} gave {len(values[key])} rows for {samples} samples")
