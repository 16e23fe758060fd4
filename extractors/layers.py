"""Which layers to read: presets and globs over what a trace of the forward pass found, and what their axes mean."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.base import Axes, LayerSpec
from repsim.extractors.hooks import Found, Trace

# Blocks are named by convention: *Block, *Bottleneck, Inception*, Mixed_*, *Cell, ... A module with a list of such
# inside is a stage, unless its own name says that it is a block. What stands in the way (stems, poolings between
# stages, heads) goes by names of its own. scripts and tests hold this against timm's families; a model that it does
# not fit falls back to its stages.
_BLOCK = re.compile(r"Block|Bottleneck|Residual|Mixed|Inception[A-E]|Cell|DlaTree|Layer$", re.IGNORECASE)
_STAGE = re.compile(r"Stage|Level", re.IGNORECASE)
_ASIDE = re.compile(r"stem|embed|down|head|norm|pool|classifier|pos_|^se$|attn$|mlp$", re.IGNORECASE)
_STEMS = ("patch_embed", "stem", "patch_embeds.0", "embeds")


def blocks(model: nn.Module) -> list[str]:
    """Paths of the residual or transformer blocks: the outermost modules that repeat along the depth."""
    paths: list[str] = []

    def walk(module: nn.Module, path: str) -> None:
        listed = isinstance(module, nn.Sequential | nn.ModuleList) or bool(_STAGE.search(type(module).__name__))
        for name, child in module.named_children():
            here = f"{path}.{name}" if path else name
            kind = type(child).__name__
            container = isinstance(child, nn.Sequential | nn.ModuleList)
            if _ASIDE.search(name) or not any(child.children()):
                continue
            stage = _STAGE.search(kind) or _lists_composites(child)
            if not container and ((_BLOCK.search(kind) and not _STAGE.search(kind)) or (listed and not stage)):
                paths.append(here)
            else:
                walk(child, here)

    walk(model, "")
    return paths


def _lists_composites(module: nn.Module) -> bool:
    """Whether the module holds a list of modules that themselves have children."""
    lists = (c for c in module.children() if isinstance(c, nn.Sequential | nn.ModuleList))
    return any(any(any(m.children()) for m in c) for c in lists)


def stem(trace: Trace, first_block: str) -> str | None:
    """The stem or patch embedding: by its usual name, or else the last thing computed before the first block."""
    begin = trace.started[first_block]
    before = [f.site.module for f in trace.found if trace.finished[f.site.module] < begin and f.site.side == "output"]
    for name in _STEMS:
        if name in before:
            return name
    return before[-1] if before else None


def select(
    layers: Sequence[LayerSpec], spec: str, *, presets: Mapping[str, Sequence[str]], left_out: Mapping[str, str]
) -> tuple[LayerSpec, ...]:
    """Choose layers by a preset (``blocks``, ``stages``, ``all``) or by globs, e.g. ``layer3.*,norm``.

    In a glob ``*`` stays within one dotted part (``layer?.*`` is the 16 blocks of a ResNet-50, not its 204 submodules)
    and ``**`` is any number of parts.
    """
    if spec == "all":
        return tuple(layers)
    if spec in presets:
        modules = set(presets[spec])
        chosen = tuple(layer for layer in layers if layer.site.module in modules or layer.name in modules)
        if not chosen:
            raise InvalidInputError(
                f"found no {spec} in this model; name layers yourself (`repsim layers MODEL --layers all` shows them)"
            )
        return chosen
    wanted: set[str] = set()
    for part in filter(None, (p.strip() for p in spec.split(","))):
        hits = {layer.name for layer in layers if part == layer.name or _matches(_module_path(layer), part)}
        if not hits:
            if reasons := {reason for path, reason in left_out.items() if _matches(path, part)}:
                raise InvalidInputError(f"layer {part!r} {' and '.join(sorted(reasons))}, so nothing can be read there")
            names = [layer.name for layer in layers]
            raise UnknownNameError("layer", part, names, hint="(`repsim layers MODEL --layers all` lists them)")
        wanted |= hits
    if not wanted:
        raise InvalidInputError(f"--layers {spec!r} names no layer")
    return tuple(layer for layer in layers if layer.name in wanted)


def _module_path(layer: LayerSpec) -> str:
    return layer.name if layer.site.side == "input" else layer.site.module


def _matches(path: str, pattern: str) -> bool:
    """Match part by part."""

    def match(parts: list[str], patterns: list[str]) -> bool:
        if not patterns:
            return not parts
        if patterns[0] == "**":
            return any(match(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatchcase(parts[0], patterns[0]) and match(parts[1:], patterns[1:])

    return match(path.split("."), pattern.split("."))


class Geometry:
    """What the axes of a model's tensors mean, worked out from the input size and what the model says of itself."""

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        self.height, self.width = input_size
        self.prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
        # SigLIP and register-only models have prefix tokens, or none, but no class token
        has_class = getattr(model, "has_class_token", None)
        self.class_token = bool(has_class) if has_class is not None else getattr(model, "cls_token", None) is not None
        info = getattr(model, "feature_info", None) or []
        info = info if isinstance(info, list) else info.info
        self.reductions = {int(i["reduction"]) for i in info if i.get("reduction")}
        self.channels = {i["module"]: int(i["num_chs"]) for i in info if "module" in i}
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def describe(self, found: Found) -> LayerSpec:
        """Work out axes, grid and prefix tokens of one tensor."""
        shape = found.shape
        axes: Axes = "other"
        prefix: int | None = 0
        grid: tuple[int, int] | None = None
        if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1):
            axes = "NC"  # a single token is a vector too
        elif len(shape) == 2:
            axes, prefix, grid = self._tokens(shape)
        elif len(shape) == 3:
            axes = self._map_axes(found)
            grid = (shape[1], shape[2]) if axes == "NCHW" else (shape[0], shape[1])
        has_class = bool(axes == "NLC" and prefix and self.class_token)
        return LayerSpec(found.name, found.type, shape, axes, prefix, has_class, grid, found.site)

    def _tokens(self, shape: tuple[int, ...]) -> tuple[Axes, int | None, tuple[int, int] | None]:
        """(tokens, channels) or (channels, tokens): the axis whose length is a patch grid, with or without prefix."""
        prefixes = dict.fromkeys((self.prefix, 0))
        for grid_of in (self._known_grid, self._any_grid):  # the model's own strides first, any fitting grid after
            for prefix in prefixes:
                if grid := grid_of(shape[0] - prefix):
                    return "NLC", prefix, grid
            if grid := grid_of(shape[1]):
                return "NCL", 0, grid
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
        """Whether a grid could come from the picture: the same aspect ratio, up to one step of rounding."""
        return abs(h * self.width - w * self.height) < max(self.height, self.width)

    def _map_axes(self, found: Found) -> Axes:
        """NCHW or NHWC: where the two spatial axes keep the picture's aspect ratio; what the model says where both do."""
        a, b, c = found.shape
        first, last = self._same_aspect(b, c), self._same_aspect(a, b)
        if first != last:
            return "NCHW" if first else "NHWC"
        known = self.channels.get(found.site.module)
        if known is not None and (a == known) != (c == known):
            return "NCHW" if a == known else "NHWC"
        return "NHWC" if self.channels_last and last else "NCHW"
