"""Choose layers by presets, names and globs, and determine the meaning of the axes of their outputs."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from repsim.errors import Argument, Function, InvalidInputError, Remedy, UnknownNameError
from repsim.extractors.base import Axes, LayerSpec
from repsim.extractors.hooks import Trace, TracedTensor

# The class names of blocks follow conventions: *Block, *Bottleneck, Inception*, Mixed_*, *Cell, ... A module with a
# list of blocks is a stage, unless its own name is that of a block. Other modules with children (stems, poolings
# between stages, heads) are recognised by their names. scripts/validation/sweep_timm tests these rules on all families
# of timm. For a model without blocks, the stages are used. The dense blocks of RDNet return only what they add to the
# state; the state is the output of a DenseStage.
_BLOCK = re.compile(
    r"Block|Bottleneck|Residual|Mixed|MBConv$|Inception([A-E]|$)|XceptionModule|RepDepthwiseSeparable|DenseStage|Cell|"
    r"DlaTree|Layer$",
    re.IGNORECASE,
)
_STAGE = re.compile(r"(?<!Dense)Stage|Level", re.IGNORECASE)
_NO_BLOCK = re.compile(r"stem|embed|down|head|norm|pool|classifier|pos_|^se$|attn$|mlp$", re.IGNORECASE)
_MERGES = re.compile(r"PatchMerging")  # in the list of blocks of torchvision's Swin
_NUMBERED = re.compile(r"(stage|layer|level|block)_?\d+")
_CLASS_TOKEN = re.compile(r"(cls|class)_token")
_STEMS = ("patch_embed", "stem", "patch_embeds.0", "embeds")


def blocks(model: nn.Module) -> list[str]:
    """Return the paths of the residual or transformer blocks: the outermost modules that repeat along the depth."""
    paths: list[str] = []

    def walk(module: nn.Module, path: str) -> None:
        listed = isinstance(module, nn.Sequential | nn.ModuleList) or bool(_STAGE.search(type(module).__name__))
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            kind = type(child).__name__
            container = isinstance(child, nn.Sequential | nn.ModuleList) and kind != "DenseStage"
            if _NO_BLOCK.search(name) or _MERGES.search(kind) or not any(child.children()):
                continue
            stage = _STAGE.search(kind) or _lists_blocks(child)
            block = not stage and (_is_block(child) or (listed and not _lists_composites(child)))
            if (listed and _begins_with_block(child)) if container else block:
                paths.append(child_path)
            else:
                walk(child, child_path)

    walk(model, "")
    return paths


def _lists_composites(module: nn.Module) -> bool:
    """Return whether the module holds a list of modules that have children themselves."""
    lists = (c for c in module.children() if isinstance(c, nn.Sequential | nn.ModuleList))
    return any(any(any(m.children()) for m in c) for c in lists)


def _is_block(module: nn.Module) -> bool:
    return bool(_BLOCK.search(type(module).__name__))


def _lists_blocks(module: nn.Module) -> bool:
    """Return whether a module is a stage despite its name: FasterNet's Block has a numbered list of ``blocks``."""
    inner = getattr(module, "blocks", None)
    if not isinstance(inner, nn.Sequential) or not all(name.isdecimal() for name, _ in inner.named_children()):
        return False
    return any(any(m.children()) for m in inner)


def _begins_with_block(sequence: nn.Module) -> bool:
    """Return whether a sequence is one block: those of ConvMixer are a residual module and a convolution after it."""
    first, *others = sequence.children()
    after = [m for m in others if not any(m.children()) and any(True for _ in m.parameters())]
    return _is_block(first) and bool(after) and not any(map(_is_block, others))


def presets(model: nn.Module, trace: Trace) -> dict[str, list[str]]:
    """Return the module paths that the presets ``blocks`` and ``stages`` stand for in this model."""
    modules = dict(model.named_modules())
    stages = [i["module"] for i in feature_info(model) if "module" in i]
    if not stages or not all(stage in modules for stage in stages):  # in some families the stages are not modules
        lists = (n for n in ("stages", "blocks", "layers") if isinstance(modules.get(n), nn.Sequential | nn.ModuleList))
        top = next(lists, None)
        stages = [f"{top}.{name}" for name, _ in modules[top].named_children()] if top else []
        stages = stages or [name for name, _ in model.named_children() if _NUMBERED.fullmatch(name)]  # HRNet
    stages = [end for stage in stages if (end := _end(trace, stage))] or _resolutions(modules, trace)
    repeated = [path for path in blocks(model) if path in trace.started] or stages
    before = _stem(trace, min(repeated, key=trace.started.__getitem__)) if repeated else None
    return {"blocks": [*([before] if before else []), *repeated, *_pre_logits(trace)], "stages": stages}


def feature_info(model: nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of the stages, from a plain model or a wrapped one."""
    info = getattr(model, "feature_info", None) or []
    return [dict(i) for i in (info if isinstance(info, list) else info.info)]


def _stem(trace: Trace, first_block: str) -> str | None:
    """Return the path of the stem or patch embedding: a usual name, or else the last module before the first block."""
    begin = trace.started[first_block]
    outputs = [f.site.module for f in trace.tensors if f.site.side == "output"]
    before = [path for path in outputs if trace.finished[path] < begin]
    return next((name for name in _STEMS if name in before), before[-1] if before else None)


def _end(trace: Trace, stage: str) -> str | None:
    """Return the path of a stage, or of its last module if the model calls the modules of the stage one by one."""
    inside = [f.site.module for f in trace.tensors if f.site.module == stage or f.site.module.startswith(f"{stage}.")]
    return stage if stage in inside else max(inside, key=trace.finished.__getitem__, default=None)


def _resolutions(modules: Mapping[str, nn.Module], trace: Trace) -> list[str]:
    """Return the last module at each resolution of the feature maps, for plain chains (VGG, AlexNet)."""
    last: dict[tuple[int, ...], str] = {}
    for tensor in trace.tensors:
        path, size = tensor.site.module, tensor.shape[1:]
        if tensor.site.side == "output" and len(size) == 2 and size != (1, 1) and not any(modules[path].children()):
            last[size] = path
    return list(last.values())


def _pre_logits(trace: Trace) -> list[str]:
    return ["pre_logits", *(tensor.name for tensor in trace.tensors if tensor.site.side == "input")]


def select(
    layers: Sequence[LayerSpec], spec: str, *, presets: Mapping[str, Sequence[str]], left_out: Mapping[str, str]
) -> tuple[LayerSpec, ...]:
    """Return the layers that match presets (``blocks``, ``stages``, ``all``), names, or globs, separated by commas.

    In a glob, ``*`` matches within one part of a dotted path (``layer?.*`` matches the 16 blocks of a ResNet-50, not
    its 204 submodules) and ``**`` matches any number of parts. The path of a module stands for all its calls and all
    tensors that it returns.

    Raises
    ------
    UnknownNameError
        No layer matches; the message suggests similar names.
    InvalidInputError
        The spec is empty, the model has no blocks or stages, or nothing can be read at a module.
    """
    chosen: set[str] = set()
    for part in filter(None, (p.strip() for p in spec.split(","))):
        if part == "all":
            hits = {layer.name for layer in layers}
        elif part in presets:
            hits = {
                layer.name for layer in layers if layer.site.side == "output" and layer.site.module in presets[part]
            }
            hits |= {layer.name for layer in layers if layer.name in presets[part]}
            if not hits:
                raise InvalidInputError(
                    f"this model has no {part} that repsim recognises",
                    remedy=Remedy("name layers, or use ", Argument("layers", "all")),
                )
        else:
            hits = {layer.name for layer in layers if part == layer.name or _matches(_module_path(layer), part)}
        if not hits:
            if reasons := sorted({reason for path, reason in left_out.items() if _matches(path, part)}):
                raise InvalidInputError(f"layer {part!r} {' and '.join(reasons)}, so nothing can be read there")
            names = [layer.name for layer in layers]
            raise UnknownNameError(
                "layer",
                part,
                names,
                remedy=Remedy(
                    Function("repsim.extractors.factory.make_extractor"),
                    " with ",
                    Argument("layers", "all"),
                    " lists them",
                ),
            )
        chosen |= hits
    if not chosen:
        raise InvalidInputError(Argument("layers", spec), " names no layer")
    return tuple(layer for layer in layers if layer.name in chosen)


def _module_path(layer: LayerSpec) -> str:
    return layer.name if layer.site.side == "input" else layer.site.module


def _matches(path: str, pattern: str) -> bool:
    """Return whether a dotted path matches a glob, part by part."""

    def match(parts: list[str], patterns: list[str]) -> bool:
        if not patterns:
            return not parts
        if patterns[0] == "**":
            return any(match(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatchcase(parts[0], patterns[0]) and match(parts[1:], patterns[1:])

    return match(path.split("."), pattern.split("."))


class Geometry:
    """Meaning of the axes of a model's tensors, derived from the input size and the attributes of the model."""

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        self.height, self.width = input_size
        has_parameter = any(_CLASS_TOKEN.match(name.rpartition(".")[2]) for name, _ in model.named_parameters())
        # SigLIP has neither class token nor registers; other models have registers but no class token
        self.class_token = bool(getattr(model, "has_class_token", has_parameter))
        # CoaT, CrossViT, TNT and VOLO have class tokens but no attribute with the number of prefix tokens
        self.prefix = int(getattr(model, "num_prefix_tokens", has_parameter))
        info = feature_info(model)
        self.reductions = {int(i["reduction"]) for i in info if i.get("reduction")}
        self.channels = {i["module"]: int(i["num_chs"]) for i in info if "module" in i}
        self.unrolled = hasattr(model, "unroll")  # Hiera orders its tokens by mask units, not as a grid
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def describe(self, tensor: TracedTensor) -> LayerSpec:
        """Return the layer of one tensor, with its axes, grid and prefix tokens."""
        shape = tensor.shape
        axes: Axes = "other"
        prefix: int | None = 0
        grid: tuple[int, int] | None = None
        if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1) or (len(shape) == 3 and shape[1:] == (1, 1)):
            axes = "NC"  # a single token, or a feature map with a single position, is a vector
        elif len(shape) == 2:
            axes, prefix, grid = self._tokens(shape)
            grid = None if self.unrolled else grid
        elif len(shape) == 3:
            axes, grid = self._map(tensor)
        has_class = bool(axes == "NLC" and prefix and self.class_token)
        return LayerSpec(tensor.name, tensor.type, shape, axes, prefix, has_class, grid, tensor.site)

    def _tokens(self, shape: tuple[int, ...]) -> tuple[Axes, int | None, tuple[int, int] | None]:
        """Return axes, prefix tokens and grid of a (tokens, channels) or (channels, tokens) tensor.

        The axis of tokens is the one whose length is that of a patch grid, with or without prefix tokens.
        """
        prefixes = dict.fromkeys((self.prefix, 0))
        for prefix in prefixes:  # first grids of the model's strides, then any grid that fits
            if grid := self._known_grid(shape[0] - prefix):
                return "NLC", prefix, grid
        if grid := self._known_grid(shape[1]):
            return "NCL", 0, grid
        for prefix in prefixes:
            if grid := self._any_grid(shape[0] - prefix):
                return "NLC", prefix, grid
        return "NLC", None, None

    def _known_grid(self, tokens: int) -> tuple[int, int] | None:
        grids = ((self.height // r, self.width // r) for r in sorted(self.reductions))
        return next((g for g in grids if g[0] * g[1] == tokens > 0), None)

    def _any_grid(self, tokens: int) -> tuple[int, int] | None:
        if tokens < 1:
            return None
        h = round((tokens * self.height / self.width) ** 0.5)
        w = tokens // h if h else 0
        return (h, w) if h * w == tokens and self._same_aspect(h, w) else None

    def _same_aspect(self, h: int, w: int) -> bool:
        """Return whether a grid has the aspect ratio of the picture, up to one step of rounding."""
        return abs(h * self.width - w * self.height) < max(self.height, self.width)

    def _map(self, tensor: TracedTensor) -> tuple[Axes, tuple[int, int] | None]:
        """Return axes and grid of a tensor with three axes: two spatial ones with the picture's aspect ratio.

        If both orders are possible, the attributes of the model decide.
        """
        a, b, c = tensor.shape
        first, last = self._same_aspect(b, c), self._same_aspect(a, b)
        if not first and not last:  # NesT's tokens are (blocks, tokens, channels), not ordered as a grid
            return ("NHWC", None) if self._known_grid(a * b) else ("other", None)
        if first and last:
            expected = self.channels.get(tensor.site.module)
            first = (
                a == expected if expected is not None and (a == expected) != (c == expected) else not self.channels_last
            )
        return ("NCHW", (b, c)) if first else ("NHWC", (a, b))


class SampleGeometry:
    """Meaning of the axes of a model's tensors for samples other than pictures.

    It follows from one trace, or from two with different numbers of tokens: an axis that changes with the number of
    tokens is that of the tokens.

    Parameters
    ----------
    traces : sequence of Trace
        One trace, or two.
    longest : int, optional
        Largest number of tokens of a sample; by default the largest in the traces.
    class_token : bool
        Whether the first token is a class token.
    """

    def __init__(self, traces: Sequence[Trace], *, longest: int | None = None, class_token: bool = False) -> None:
        self.first, *others = traces
        self.tokens, self.class_token = [trace.tokens for trace in traces], class_token
        self.others = [{tensor.name: tensor.shape for tensor in trace.tensors} for trace in others]
        self.longest = longest or max((tokens or 0 for tokens in self.tokens), default=0)
        self._one_dimensional: set[tuple[int, ...]] = set()

    def describe(self, tensor: TracedTensor) -> LayerSpec | None:
        """Return the layer of one tensor; None if its shape depends on the tokens in another way than their number."""
        shapes = [tensor.shape, *(other.get(tensor.name) for other in self.others)]
        axes, shape, prefix, grid = self._axes(tensor, shapes)
        if axes is None:
            return None
        has_class = axes == "NTC" and self.class_token
        return LayerSpec(tensor.name, tensor.type, shape, axes, prefix, has_class, grid, tensor.site)

    def _axes(
        self, tensor: TracedTensor, shapes: Sequence[tuple[int, ...] | None]
    ) -> tuple[Axes | None, tuple[int, ...], int | None, tuple[int, int] | None]:
        shape = tensor.shape
        if all(
            tokens and own is not None and len(own) == 2 and own == (tokens, shape[1])
            for own, tokens in zip(shapes, self.tokens, strict=True)
        ):
            return "NTC", (self.longest, shape[1]), 0, None
        if len(set(shapes)) > 1:
            return None, shape, None, None
        if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1):
            return "NC", shape, 0, None
        if len(shape) == 2:  # leaves say which axis is which: convolutions of sequences put the channels first
            if "1d" in tensor.type:
                self._one_dimensional.add(shape)
            return ("NCL" if shape in self._one_dimensional else "NLC"), shape, 0, None
        if len(shape) == 3 and shape[1:] == (1, 1):
            return "NC", shape, 0, None
        return ("NCHW", shape, 0, (shape[1], shape[2])) if len(shape) == 3 else ("other", shape, 0, None)
