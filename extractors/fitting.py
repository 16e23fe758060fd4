"""Build the timm network that fits the tensors of a checkpoint: its size, channels, classes, tokens and pooling.

Settings that follow with certainty from the names and shapes of the tensors are taken from them, others from the
options that the training program stored. Options of the user override both. All settings are reported and recorded.
timm silently resamples position embeddings and tables to the size of the network; this module raises an error instead,
unless the user has chosen another size.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isqrt
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from repsim.errors import Argument, InvalidInputError, Remedy, WeightsError, reason
from repsim.extractors.checkpoints import Checkpoint, Contents, abbreviate, matching_share, network_prefixes
from repsim.extractors.options import INTERPOLATIONS, ModelOptions

_SIZES = (
    96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512, 518, 640, 768, 1024,
)  # fmt: skip
"""Picture sizes that are tried if the shapes of the tensors do not determine the size."""
_POSITIONS = ("pos_embed", "rel_pos", "relative_position", "attention_bias", "position")
"""Parts of names of tensors that encode positions in a picture."""
_RESAMPLED = ("pos", "attention_bias", "patch_embed")
"""Parts of names of tensors that timm resamples."""
_SIZE_DEPENDENT = ("pos", "tokens", "attention_bias", "spatial", "sgu")
"""Parts of names of tensors whose shapes depend on the size of the pictures."""
_READING_OPTIONS = Remedy(
    Argument("weights_key"), ", ", Argument("weights_prefix"), ", ", Argument("weights_match", "order"), ", ",
    Argument("img_size"), ", ", Argument("model_kwargs"), " set how it is read",
)  # fmt: skip
_IN_ORDER = Argument("weights_match", "order")
_CHANNELS = (1, 3)

ARGS = "args of the checkpoint"
ORDERED = "weights: {} tensors of {} taken in order, as all shapes are equal"

Shapes = dict[str, torch.Size]


@dataclass
class Settings:
    """Arguments with which a network is built, the size of its pictures, and the reasons for both."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the function that builds the model."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures, if they are not the default of the architecture."""
    record: dict[str, Any] = field(default_factory=dict)
    """Entries for the provenance."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user."""

    def infer(self, why: str, **kwargs: Any) -> None:
        """Add arguments of the model that follow from the weights, unless they are set already."""
        fresh = {k: v for k, v in kwargs.items() if k not in self.kwargs}
        if fresh:
            self.kwargs |= fresh
            self.notes.append(f"built with {format_kwargs(fresh)}: {why}")


def format_kwargs(kwargs: Mapping[str, Any]) -> str:
    """Return keyword arguments as they are written in Python.

    >>> format_kwargs({"img_size": (96, 96), "global_pool": "avg"})
    "img_size=(96, 96), global_pool='avg'"
    """
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items())


def skeleton(name: str, **kwargs: Any) -> nn.Module:
    """Build a timm network on the meta device, without memory for its weights, to read its names and shapes."""
    model: nn.Module
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, **kwargs)
        except (NotImplementedError, RuntimeError):  # LeViT computes with values in its constructor
            model = timm.create_model(name, pretrained=False, **kwargs)
    return model


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shapes of all parameters and buffers by name, in the order of the network."""
    return {name: value.shape for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def build(name: str, options: ModelOptions, *, pretrained: bool = False) -> tuple[nn.Module, Settings]:
    """Build a timm network with the options of the user; its weights are random or, if ``pretrained``, timm's."""
    settings = Settings(dict(options.model_kwargs))
    if not options.chosen:
        return timm.create_model(name, pretrained=pretrained), settings
    plain = _skeleton(name, {})
    base = _skeleton(name, settings.kwargs)
    _choose_size(settings, base, options, {})
    model = timm.create_model(name, pretrained=pretrained, **settings.kwargs)
    if pretrained and settings.kwargs:
        before, after = shapes_of(plain), shapes_of(model)
        if changed := [key for key in before if key in after and before[key] != after[key]]:
            _record_resampled(settings, {key: (before[key], after[key]) for key in changed})
    _choose_preprocessing(settings, model, options, {})
    return model, settings


def build_from(name: str, contents: Contents, options: ModelOptions) -> tuple[nn.Module, Settings]:
    """Build the timm network that fits the tensors of a file, and load these tensors.

    Parameters
    ----------
    name : str
        Name of the architecture in timm.
    contents : Contents
        The file of weights.
    options : ModelOptions
        Options of the user.

    Returns
    -------
    torch.nn.Module, Settings
        The network, and how it was built.

    Raises
    ------
    WeightsError
        The tensors belong to another network, or would have to be resampled; the message names them.
    InvalidInputError
        The network cannot be built with the options, or its number of input channels is not 1 or 3.
    """
    args, kwargs = contents.args, dict(options.model_kwargs)
    base = _skeleton(name, kwargs)
    merged = _build_merged(name, contents, kwargs, base)
    checkpoint = contents.fit(shapes_of(merged or base))
    settings = Settings(kwargs, record=dict(checkpoint.record), notes=list(checkpoint.notes))
    if options.weights_match == "order":
        checkpoint = replace(checkpoint, state=match_in_order(checkpoint.state, shapes_of(base), checkpoint.name))
        settings.record["weights_match"] = "order"
        settings.notes.append(ORDERED.format(len(checkpoint.state), checkpoint.name))
    state = checkpoint.state
    check_dtypes(state, base, checkpoint.name, settings.notes)
    _infer_from_args(settings, base, args, checkpoint.name)
    native = matching_share(state, shapes_of(base)) >= 0.5
    if native and merged is None:
        requested = options.img_size or args_size(args)
        _infer_from_tensors(settings, base, state, requested)
        _infer_size(settings, name, base, state, requested)
    _choose_size(settings, base, options, args)
    classes = _count_classes(base, state)
    try:
        if merged is not None:
            model = _reparameterised(name, state, classes, settings)
        else:
            channels = settings.kwargs.get("in_chans", base.pretrained_cfg["input_size"][0])
            size = settings.kwargs.get("img_size") or base.pretrained_cfg["input_size"][1:]
            model = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay={
                    "state_dict": dict(state),
                    "num_classes": classes,
                    "label_offset": 0,
                    "input_size": (channels, *read_pair(size)),
                },
                **{"num_classes": classes, **settings.kwargs},
            )
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 - the conversion of authors' formats may raise any exception
        try:
            own = shapes_of(skeleton(name, **{"num_classes": classes, **settings.kwargs}))
        except Exception:  # noqa: BLE001 - the family does not take an argument inferred from the weights
            raise InvalidInputError(
                f"{name} cannot be built with {format_kwargs(settings.kwargs)}: {reason(error, lines=2)}"
            ) from None
        raise misfit_error(name, own, checkpoint, error) from None
    model.pretrained_cfg.pop("state_dict", None)
    _verify(name, model, checkpoint, settings, options)
    _choose_preprocessing(settings, model, options, args)
    return model, settings


def read_pair(size: Any) -> tuple[int, int]:
    """Return the height and width of a size that is one number or a pair."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def match_in_order(state: Mapping[str, Tensor], own: Shapes, name: str) -> dict[str, Tensor]:
    """Return the tensors under the names of a network, matched by their order; numbers and axes must agree."""
    if name.endswith(".safetensors"):
        raise WeightsError(_IN_ORDER, f": {name} keeps no order of its tensors; save the state_dict with torch.save")
    own_keys = [key for key in own if not key.endswith("num_batches_tracked")]
    file_keys = [key for key in state if not key.endswith("num_batches_tracked")]
    if len(own_keys) != len(file_keys):
        raise WeightsError(
            _IN_ORDER,
            f": {name} has {len(file_keys)} tensors ({abbreviate(file_keys, 3)}), the network {len(own_keys)} "
            f"({abbreviate(own_keys, 3)}); the numbers must be equal",
        )
    for i, (a, b) in enumerate(zip(file_keys, own_keys, strict=True)):
        if state[a].ndim != len(own[b]):
            raise WeightsError(
                _IN_ORDER,
                f": tensor {i + 1} of {name}, {a}, has shape {tuple(state[a].shape)} where the network has {b} of "
                f"{tuple(own[b])}",
            )
    return {b: state[a] for a, b in zip(file_keys, own_keys, strict=True)}


def _skeleton(name: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return skeleton(name, **kwargs)
    except Exception as error:  # the keys and values are the user's
        if not kwargs:
            raise
        raise InvalidInputError(f"{name} cannot be built with {format_kwargs(kwargs)}: {reason(error)}") from None


def _accepts(model: nn.Module, key: str) -> bool:
    return key in inspect.signature(type(model).__init__).parameters


def _head_names(model: Any) -> list[str]:
    heads = model.pretrained_cfg.get("classifier")
    return [heads] if isinstance(heads, str) else list(heads or [])


def _count_classes(model: Any, state: Mapping[str, Tensor]) -> int:
    """Return the number of classes of the classifier among the tensors; 0 without a classifier."""
    names = (*_head_names(model), "head", "fc", "classifier", "head.fc")
    weights = (state.get(f"{head}.weight") for head in names)
    return next((len(weight) for weight in weights if weight is not None and weight.ndim), 0)


def check_dtypes(state: Mapping[str, Tensor], base: nn.Module, name: str, notes: list[str]) -> None:
    """Raise `WeightsError` for integer weights, and add a note for precisions other than float32."""
    own = {key: value for key, value in base.state_dict().items() if isinstance(value, Tensor)}
    real = [key for key, value in own.items() if value.is_floating_point()]
    kinds = {state[key].dtype for key in real if key in state}
    plain = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
    if wrong := kinds - plain:
        first = next(key for key in real if key in state and state[key].dtype in wrong)
        raise WeightsError(
            f"{name}: {first} is {str(state[first].dtype).removeprefix('torch.')}, not a plain real number: quantised "
            "weights need their scales; dequantise them, and save the state_dict again"
        )
    if others := sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}):
        notes.append(f"weights: {', '.join(others)} in {name}, float32 in the network")


def _infer_from_args(settings: Settings, base: nn.Module, args: Mapping[str, Any], name: str) -> None:
    """Infer arguments of the network from the options that timm's training program stored."""
    why = f"args of {name}"
    stored = args.get("model_kwargs")
    if isinstance(stored, Mapping):
        settings.infer(why, **{key: value for key, value in stored.items() if key != "num_classes"})
    pool = args.get("gp")
    if isinstance(pool, str) and pool and pool != getattr(base, "global_pool", pool):
        settings.infer(why, global_pool=pool)
    eps = args.get("bn_eps")
    if isinstance(eps, float):
        settings.infer(why, bn_eps=eps)


def _infer_from_tensors(
    settings: Settings, base: Any, state: Mapping[str, Tensor], requested: tuple[int, int] | None
) -> None:
    """Infer the arguments of the network that follow with certainty from names and shapes of the tensors."""
    own = shapes_of(base)
    convs = base.pretrained_cfg.get("first_conv") or ()
    for conv in [convs] if isinstance(convs, str) else convs:
        weight, own_shape = state.get(f"{conv}.weight"), own.get(f"{conv}.weight")
        if weight is None or own_shape is None or weight.ndim != 4 or weight.shape[1] == own_shape[1]:
            continue
        channels = weight.shape[1] * settings.kwargs.get("in_chans", 3) / own_shape[1]
        if channels not in _CHANNELS:
            raise InvalidInputError(
                f"these weights take pictures of {channels:g} channels ({conv}.weight has shape "
                f"{tuple(weight.shape)}); repsim supports 3 channels (RGB) and 1 channel (grey)"
            )
        settings.infer(f"{conv}.weight has {weight.shape[1]} input channels", in_chans=int(channels))
    if "mask_token" in state and "mask_token" not in own:  # DINOv2's own format, which timm converts
        _infer_from_dinov2(settings, base, state)
        return
    class_token = _infer_from_tokens(settings, base, state, own, requested)
    for key, yes, no, names in (
        ("init_values", 1e-5, None, ("blocks.0.ls1.gamma",)),
        ("qkv_bias", True, False, ("blocks.0.attn.qkv.bias",)),
        ("qk_norm", True, False, ("blocks.0.attn.q_norm.weight",)),
        ("pre_norm", True, False, ("norm_pre.weight",)),
    ):
        in_file, in_network = (any(part in keys for part in names) for keys in (state, own))
        if in_file != in_network and "blocks.0.attn.proj.weight" in state and _accepts(base, key):
            settings.infer(f"the file has {'' if in_file else 'no '}{names[0]}", **{key: yes if in_file else no})
    if _accepts(base, "global_pool") and "pos_embed" in own:
        _infer_from_pooling(settings, base, state, own, class_token)


def _infer_from_dinov2(settings: Settings, base: Any, state: Mapping[str, Tensor]) -> None:
    """Infer the picture size from a position embedding with one additional position, for the class token."""
    patches: Any = getattr(base, "patch_embed", None)
    table = state.get("pos_embed")
    side = isqrt(table.shape[1] - 1) if table is not None and table.ndim == 3 and table.shape[1] else 0
    if side and side * side == state["pos_embed"].shape[1] - 1 and (side, side) != tuple(patches.grid_size):
        pixels = (side * patches.patch_size[0], side * patches.patch_size[1])
        settings.infer(f"pos_embed has {side} x {side} positions", img_size=pixels)


def _infer_from_pooling(settings: Settings, base: Any, state: Mapping[str, Tensor], own: Shapes, token: bool) -> None:
    """Infer how the network pools its tokens from its norms and from whether it has a class token."""
    norms = ("norm.weight", "fc_norm.weight", "attn_pool.q.weight")
    (norm, fc_norm, attention), in_network = ([part in names for part in norms] for names in (state, own))
    if [norm, fc_norm, attention] != in_network:
        if attention and not in_network[2]:
            settings.infer("the file has attn_pool", global_pool="map")
        elif fc_norm and not norm:
            settings.infer("the file has fc_norm and no norm", global_pool="avg")
        elif norm and not fc_norm and token:
            settings.infer("the file has norm and no fc_norm", global_pool="token")
    elif not token and not attention and getattr(base, "global_pool", "") == "token":
        settings.infer("the file has no class token to pool", global_pool="avg", fc_norm=fc_norm)


def _infer_from_tokens(
    settings: Settings, base: Any, state: Mapping[str, Tensor], own: Shapes, requested: tuple[int, int] | None
) -> bool:
    """Infer prefix tokens and the picture size from the position embedding; return whether there is a class token."""
    token = "cls_token" in state
    if token != ("cls_token" in own) and _accepts(base, "class_token"):
        settings.infer(f"the file has {'a' if token else 'no'} cls_token", class_token=token)
    registers = state["reg_token"].shape[1] if "reg_token" in state and state["reg_token"].ndim == 3 else 0
    key = next((key for key in ("reg_tokens", "num_reg_tokens") if _accepts(base, key)), None)
    if key and registers != (own["reg_token"][1] if "reg_token" in own else 0):
        settings.infer(f"reg_token has {registers} tokens", **{key: registers})
    table = state.get("pos_embed")
    patch = getattr(getattr(base, "patch_embed", None), "patch_size", None)
    grid = getattr(getattr(base, "patch_embed", None), "grid_size", None)
    kernel = state.get("patch_embed.proj.weight")
    if table is None or "pos_embed" not in own or table.ndim != 3 or patch is None or grid is None:
        return token
    if kernel is not None and kernel.ndim == 4 and tuple(kernel.shape[2:]) != tuple(patch):
        raise WeightsError(
            f"patch_embed.proj.weight has patches of {kernel.shape[2]} x {kernel.shape[3]} pixels, the network of "
            f"{patch[0]} x {patch[1]}",
            remedy=Remedy("use another model, or ", Argument("model_kwargs", {"patch_size": kernel.shape[2]})),
        )
    count, prefix = table.shape[1], token + registers + ("dist_token" in state)
    embedded = own["pos_embed"][1] - grid[0] * grid[1]
    orders = dict.fromkeys((prefix, 0) if embedded or not prefix else (0, prefix))
    requested = settings.kwargs.get("img_size") or requested
    for extra in orders:
        cells = count - extra
        side = isqrt(max(cells, 0))
        wanted = None if requested is None else tuple(s // p for s, p in zip(read_pair(requested), patch, strict=True))
        square = (side, side) if side * side == cells and side else None
        size = next((g for g in (wanted, tuple(grid), square) if g and g[0] * g[1] == cells), None)
        if size is None:
            continue
        if bool(extra) != bool(embedded) and prefix and _accepts(base, "no_embed_class"):
            settings.infer(f"pos_embed has {count} positions", no_embed_class=not extra)
        if size != tuple(grid):
            pixels = (size[0] * patch[0], size[1] * patch[1])
            settings.infer(f"pos_embed has {size[0]} x {size[1]} positions", img_size=pixels)
        break
    else:
        if requested is None:
            raise WeightsError(
                f"pos_embed has {count} positions, {prefix} of them for prefix tokens; the others do not form a square",
                remedy=Remedy(
                    "set the picture size with ",
                    Argument("img_size", metavar="HxW"),
                    f" (patches are {patch[0]} x {patch[1]})",
                ),
            )
    return token


def _infer_size(
    settings: Settings, name: str, base: Any, state: Mapping[str, Tensor], requested: tuple[int, int] | None
) -> None:
    """Find the picture size at which the shapes of all tensors agree, by trying the usual sizes."""
    heads = {f"{head}.{part}" for head in (*_head_names(base), "head", "fc", "head.fc") for part in ("weight", "bias")}

    def mismatches(**kwargs: Any) -> list[str] | None:
        try:
            own = shapes_of(skeleton(name, **{**settings.kwargs, **kwargs}))
        except Exception:  # noqa: BLE001 - this family does not take the size
            return None
        return [key for key, shape in own.items() if key in state and state[key].shape != shape and key not in heads]

    wrong = mismatches()
    fixed = base.pretrained_cfg.get("fixed_input_size") and not getattr(base, "dynamic_img_size", False)
    if wrong == [] and requested and fixed and mismatches(img_size=requested) == []:
        settings.infer("all tensors fit this size", img_size=requested)
    if not wrong or "img_size" in settings.kwargs:
        return
    if not all(any(part in key for part in _SIZE_DEPENDENT) for key in wrong):
        return
    table = next((key for key in wrong if key.endswith("relative_position_bias_table")), None)
    side, own_side = (isqrt(len(tensors[table])) if table else 0 for tensors in (state, base.state_dict()))
    window = {"window_size": (side + 1) // 2} if table and side % 2 and side * side == len(state[table]) else {}
    patch = next((m.patch_size for m in base.modules() if isinstance(getattr(m, "patch_size", None), tuple)), (1, 1))
    sizes = [requested] if requested else [(s, s) for s in _SIZES if s % patch[0] == 0]
    none: dict[str, int] = {}
    # timm reduces the window for small pictures by itself, but never enlarges it
    for extra in [none] * (side <= own_side) + [window] * bool(window):
        good = list(islice((size for size in sizes if mismatches(img_size=size, **extra) == []), 3))
        if len(good) == 1:
            settings.infer(f"shape of {wrong[0]}", img_size=good[0], **extra)
            return
        if good:
            raise WeightsError(
                f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, which fits pictures of "
                f"{abbreviate(f'{h} x {w}' for h, w in good)} (and perhaps others)",
                remedy=Remedy("choose one with ", Argument("img_size", metavar="HxW")),
            )


def args_size(args: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the picture size, height and width, that a training program stored in its options; None without one."""
    for key in ("input_size", "img_size"):
        value = args.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value, value
        if isinstance(value, list | tuple) and len(value) in {2, 3} and all(isinstance(v, int) for v in value):
            return value[-2], value[-1]
    return None


def _choose_size(settings: Settings, base: Any, options: ModelOptions, args: Mapping[str, Any]) -> None:
    """Determine the picture size that the network is built for, and the size of the pictures."""
    config = base.pretrained_cfg
    usual = tuple(config["input_size"][1:])
    fixed = bool(config.get("fixed_input_size")) or "img_size" in settings.kwargs
    built = read_pair(settings.kwargs.get("img_size") or usual)
    stored = args_size(args)
    if options.img_size is not None:
        if fixed and built != options.img_size:
            settings.kwargs["img_size"] = options.img_size
        settings.size = options.img_size
        settings.notes.append(f"pictures of {options.img_size[0]} x {options.img_size[1]} pixels, set by the user")
    elif stored is not None:
        if fixed and stored != built and not getattr(base, "dynamic_img_size", False):
            raise WeightsError(
                f"the args of the checkpoint have pictures of {stored[0]} x {stored[1]}, but its tensors are for "
                f"{built[0]} x {built[1]}",
                remedy=Remedy(
                    "set ",
                    Argument("img_size", f"{built[0]}x{built[1]}"),
                    ", or another size, to which they are resampled",
                ),
            )
        if stored != usual:
            settings.size = stored
            settings.notes.append(f"pictures of {stored[0]} x {stored[1]} pixels: {ARGS}")
            if fixed and stored != built:
                settings.kwargs["img_size"] = built  # timm would build the network for the size of the pictures
                settings.notes.append(
                    f"the position embedding is for {built[0]} x {built[1]}; the network itself resamples it in every "
                    "forward pass, as in its training"
                )
    elif built != usual:
        settings.size = built


def preprocessing_choices(options: ModelOptions, args: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the preprocessing parameters that the user or else the training program set, with their origin.

    Returns
    -------
    dict
        Mapping from ``mean``, ``std``, ``interpolation`` and ``crop_pct``, as far as they are set, to the value and a
        text that names its origin.
    """
    values: dict[str, tuple[Any, str]] = {}
    for key in ("mean", "std", "interpolation", "crop_pct"):
        chosen, stored = getattr(options, key), args.get(key)
        if chosen is not None:
            values[key] = chosen, "set by the user"
        elif key in {"mean", "std"}:
            numbers = (stored,) if isinstance(stored, float) else stored
            if isinstance(numbers, list | tuple) and numbers and all(isinstance(v, float | int) for v in numbers):
                values[key] = tuple(numbers), ARGS
        elif (isinstance(stored, str) and stored in INTERPOLATIONS) or (isinstance(stored, float) and 0 < stored <= 1):
            values[key] = stored, ARGS  # not "random", which is for training
    return values


def _choose_preprocessing(settings: Settings, model: Any, options: ModelOptions, args: Mapping[str, Any]) -> None:
    """Determine how pictures are prepared, and store it in the network's ``pretrained_cfg``."""
    config = model.pretrained_cfg
    chosen = settings.size
    size = chosen or tuple(config["input_size"][1:])
    channels = settings.kwargs.get("in_chans", config["input_size"][0])
    if channels not in _CHANNELS:
        raise InvalidInputError(
            f"this network takes pictures of {channels} channels; repsim supports 3 channels (RGB) and 1 channel (grey)"
        )
    overlay: dict[str, Any] = {"input_size": (channels, *size)}
    for key, (value, why) in preprocessing_choices(options, args).items():
        if value != config.get(key):
            overlay[key] = value
            settings.notes.append(f"{key} {format_value(value)}: {why}")
    for key in ("mean", "std"):  # one number per channel
        value = tuple(overlay.get(key) or config.get(key) or ())
        if len(value) == 1:
            overlay[key] = value * channels
        elif value and channels == 1:
            overlay[key] = (sum(value) / len(value),)
    if channels == 1:
        settings.notes.append(
            f"grey pictures of 1 channel, normalised with mean {format_value(overlay.get('mean', ()))} and std "
            f"{format_value(overlay.get('std', ()))}"
        )
    model.pretrained_cfg = {**config, **overlay}
    prepared = {key: value for key, value in overlay.items() if key != "input_size"}
    if chosen:
        prepared["img_size"] = chosen
    if prepared:
        settings.record["prepared"] = prepared
    if settings.kwargs:
        settings.record["model_kwargs"] = settings.kwargs


def format_value(value: Any) -> str:
    """Return a preprocessing parameter as text for messages."""
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _build_merged(name: str, contents: Contents, kwargs: Mapping[str, Any], base: nn.Module) -> nn.Module | None:
    """Return the reparameterised form of a network if the tensors are those of this form; None otherwise."""
    if not any("reparam" in key for key in contents.tensors) or any("reparam" in key for key in shapes_of(base)):
        return None
    with torch.random.fork_rng(devices=[]):
        merged: nn.Module = reparameterize_model(timm.create_model(name, pretrained=False, **kwargs).eval())
    return merged if any("reparam" in key for key in shapes_of(merged)) else None


def _reparameterised(name: str, state: Mapping[str, Tensor], classes: int, settings: Settings) -> Any:
    """Build the inference form of a network, in which the branches of a block are merged into one convolution."""
    with torch.random.fork_rng(devices=[]):
        plain = timm.create_model(name, pretrained=False, **{"num_classes": classes, **settings.kwargs})
    model: Any = reparameterize_model(plain.eval())
    model.load_state_dict(state)
    model.pretrained_cfg = {**plain.pretrained_cfg, "num_classes": classes}
    settings.record["reparameterised"] = True
    settings.notes.append("built in its inference form: the branches of the weights are merged (reparameterised)")
    return model


def differences(own: Shapes, state: Mapping[str, Tensor], name: str) -> str:
    """Return a text with the differences between a file and a network: shapes, missing and additional tensors."""
    wrong = [
        f"{key} has shape {tuple(state[key].shape)} in {name} and {tuple(shape)} in the network"
        for key, shape in own.items()
        if key in state and state[key].shape != shape
    ]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    parts = [f"{'; '.join(wrong[:2])}{f' and {len(wrong) - 2} more' if len(wrong) > 2 else ''}"] if wrong else []
    parts += [f"{len(missing)} missing: {abbreviate(missing, 3)}"] if missing else []
    parts += [f"{len(extra)} that the network does not have: {abbreviate(extra, 3)}"] if extra else []
    return "; ".join(parts)


def misfit_error(name: str, own: Shapes, checkpoint: Checkpoint, error: Exception) -> WeightsError:
    """Return the error for tensors that do not fit a network, with the differences and a remedy."""
    state, source = checkpoint.state, checkpoint.name
    problem = differences(own, state, source)
    if matching_share(state, own) < 0.5:
        problem = f"its names are {abbreviate(state, 3)}, those of the network {abbreviate(own, 3)}"
        if inside := network_prefixes(state, own):
            choices = [part for prefix in inside[:4] for part in (" or ", Argument("weights_prefix", prefix))][1:]
            return WeightsError(
                f"{source} does not fit {name}: {problem}",
                remedy=Remedy(*choices, " would make them fit"),
            )
    problem = problem or reason(error, lines=2)
    sets = f"; sets of weights in it: {abbreviate(checkpoint.keys)}" if len(checkpoint.keys) > 1 else ""
    return WeightsError(f"{source} does not fit {name}: {problem}{sets}", remedy=_READING_OPTIONS)


def _record_resampled(settings: Settings, changed: Mapping[str, tuple[Any, Any]]) -> None:
    settings.record["resampled"] = sorted(changed)
    first, (before, after) = next(iter(changed.items()))
    settings.notes.append(
        f"resampled to the chosen size: {first} from {tuple(before)} to {tuple(after)}"
        + (f", and {len(changed) - 1} more" if len(changed) > 1 else "")
    )


def _verify(name: str, model: Any, checkpoint: Checkpoint, settings: Settings, options: ModelOptions) -> None:
    """Check that every tensor of the network comes from the file, and that none was resampled without a request."""
    state = checkpoint.state
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    changed: dict[str, tuple[Any, Any]] = {
        key: (state[key].shape, value.shape)
        for key, value in own.items()
        if key in state and state[key].numel() != value.numel() and any(part in key for part in _RESAMPLED)
    }
    if "mask_token" in state and "mask_token" not in own and "pos_embed" in changed:
        before, after = changed["pos_embed"]  # for DINOv2 timm adds the class token's position to the token itself
        if abs(before[1] - after[1]) <= 1:
            del changed["pos_embed"]
    if matching_share(state, own) < 0.5:  # another format: the names differ, so the sizes are compared
        sizes = {value.numel() for value in state.values()}
        for key, value in own.items():
            width = value.shape[-1] if value.ndim else 1
            near = any((value.numel() + extra * width) in sizes for extra in range(-8, 9))
            if any(part in key for part in _POSITIONS) and not near:
                changed[key] = (("another size",), value.shape)
    if changed:
        if options.img_size is None and not {"img_size", "patch_size", "window_size"} & set(options.model_kwargs):
            raise WeightsError(
                f"{checkpoint.name} does not fit {name} as it is: "
                f"{differences(shapes_of(model), state, checkpoint.name)}; timm would resample",
                remedy=Remedy("to resample them, set ", Argument("img_size"), " or ", Argument("model_kwargs")),
            )
        _record_resampled(settings, changed)
    if matching_share(state, own) >= 0.5:  # some families accept missing tensors and leave them random
        spare = Counter(
            value.numel() for key, value in state.items() if key not in own or own[key].numel() != value.numel()
        )
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        if Counter(own[key].numel() for key in missing) - spare:
            raise WeightsError(
                f"{checkpoint.name} does not fit {name}: {len(missing)} missing: {abbreviate(missing, 3)}",
                remedy=_READING_OPTIONS,
            )
