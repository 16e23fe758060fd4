"""Layers of transformers: the input of each stack of blocks, the blocks, and the norm after the last one.

These are all entries of ``output_hidden_states``, so that the preset ``blocks`` of a transformer has every state of its
residual stream. transformers puts the output of the last norm in the place of that of the last block; here both are
layers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from repsim.extractors.hooks import Trace, tensors
from repsim.extractors.layers import blocks

_NORM = re.compile(r"norm", re.IGNORECASE)


def stacks(model: nn.Module) -> list[list[str]]:
    """Return the paths of the blocks of a transformer, one list per stack: encoder and decoder are two."""
    by_parent: dict[str, list[str]] = {}
    for path in blocks(model):
        by_parent.setdefault(path.rpartition(".")[0], []).append(path)
    return list(by_parent.values())


def find_inputs(
    model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any], firsts: Sequence[str]
) -> dict[str, str]:
    """Return which module computes the input of each of these blocks: path of the block -> path of the module.

    A block is left out if its input is the output of no module, such as the sum of two embeddings in OPT.
    """
    outputs: dict[str, Tensor] = {}
    sources: dict[str, str] = {}

    def after(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[path] = output

    def before(path: str, args: tuple[Any, ...]) -> None:
        entered = tensors(args)[:1]
        equal = [name for name, output in outputs.items() if entered and _equal(output, entered[0])]
        named = [name for name in equal if "embed" in name.rpartition(".")[2]]
        if equal:  # the outermost module, which finishes last: embeddings, not embeddings.LayerNorm
            sources.setdefault(path, (named or equal)[-1])

    modules = dict(model.named_modules())
    with ExitStack() as stack, torch.no_grad():
        for path, module in modules.items():
            if path:
                handle = module.register_forward_hook(lambda _, __, out, path=path: after(path, out))
                stack.callback(handle.remove)
        for path in firsts:
            handle = modules[path].register_forward_pre_hook(lambda _, args, path=path: before(path, args))
            stack.callback(handle.remove)
        forward(model, batch)
    return sources


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def transformer_presets(model: nn.Module, trace: Trace, inputs: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the layers that the preset ``blocks`` stands for in a transformer.

    Parameters
    ----------
    model : torch.nn.Module
        The transformer.
    trace : Trace
        Its forward pass.
    inputs : mapping
        Path of the first block of a stack -> name of the layer that is its input.
    """
    chosen: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}  # of the first tensor: blocks may return a tuple, with attention weights
    for tensor in trace.tensors:
        if tensor.site.side == "output":
            shapes.setdefault(tensor.site.module, tensor.shape)
    for paths in stacks(model):
        if paths[0] not in trace.started:
            continue
        chosen += [inputs[paths[0]], *paths]
        chosen += _last_norm(model, trace, shapes, paths)
    return {"blocks": chosen, "stages": []}


def _last_norm(
    model: nn.Module, trace: Trace, shapes: Mapping[str, tuple[int, ...]], paths: Sequence[str]
) -> list[str]:
    """Return the norm over all tokens after the last block of a stack, in the module of the stack or around it."""
    last, parent = paths[-1], paths[-1].rpartition(".")[0]
    candidates = [
        path
        for path, module in model.named_modules()
        if _NORM.search(type(module).__name__)
        and path in trace.started
        and trace.started[path] > trace.finished[last]
        and f"{parent}.".startswith(f"{path.rpartition('.')[0]}." if "." in path else "")
        and shapes.get(path) == shapes.get(last)
    ]
    return [min(candidates, key=trace.started.__getitem__)] if candidates else []
