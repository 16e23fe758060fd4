"""Read the weights from checkpoint files of many training programs, without running code from the file.

A file may hold a state_dict, or a tree with several of them (``state_dict`` and ``state_dict_ema``, ``student`` and
``teacher``) beside optimisers, options and counters. The rules in this file choose one set of weights; the choice is
reported and recorded. If the rules do not decide, an error lists the sets of weights in the file.
"""

import argparse
import collections
import contextlib
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from repsim.errors import Argument, Hint, Remedy, WeightsError, reason
from repsim.runtime.files import format_size

_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema",
    "teacher", "target_encoder", "state_dict", "model_state_dict", "model_state", "model", "net", "network",
    "net_state_dict", "module", "weights", "params", "backbone", "encoder", "student",
)  # fmt: skip
"""Keys of sets of weights, in order of preference: averaged weights first as in timm, the teacher as in DINO."""
_BY_USER = "the user"
"""Value of `Contents._chosen_by` when the user chose the set of weights."""
_PLAIN = {"state_dict_ema", "model_ema", "state_dict", "model"}
"""Keys that are not recorded when the file has only one set of weights."""
_PREFIXES = (
    "ema", "ema_model", "model_ema", "teacher", "module", "_orig_mod", "model", "net", "network", "backbone", "encoder",
    "student", "online_network", "classifier", "visual", "trunk", "_forward_module", "state_dict", "encoder_q",
    "base_encoder", "timm_model", "image_encoder", "feature_extractor", "convnet", "_feature_blocks",
    "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
)  # fmt: skip
"""Parts of tensor names that training programs add before the names of the network."""
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of tensor names that torch adds before a module that it parallelises or compiles."""
_INNER_WRAPPER = re.compile(r"\.(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_NO_WEIGHTS = ("optim", "sched", "scaler", "loss", "criterion", "callback", "loop", "rng", "hyper_parameters", "args")
"""Parts of keys under which a file holds no weights of a network."""
_COUNTERS = {"total_ops", "total_params", "n_averaged"}
"""Names of tensors that thop and AveragedModel add to the weights."""
_TRAINING_ONLY = ("decoder", "projector.", "predictor.", "prototypes.", "queue", "proj_head.", "projection_head.")
"""Prefixes of tensors that self-supervised training uses in addition to the network."""
_NEW_HEAD = re.compile(r"(head|heads|fc|classifier)\.(\d+|mlp|layers?|last_layer|block)\.")
"""Names of tensors of a classifier with several layers that replaced a classifier with one layer."""
_OPTIONS = ("args", "hyper_parameters", "config", "cfg", "opt")
"""Keys under which training programs store their options."""
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}
_MAGIC = {
    b"version https://git-lfs": "It is a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"<": "It is a web page, not the file that was to be downloaded",
    b"{": "It is JSON, perhaps the index of weights in several files; save them with torch.save as one state_dict",
    b"\x1f\x8b": "It is compressed: unpack it with gunzip",
    b"\x89hdf": "It is an HDF5 file, perhaps of Keras: save its tensors with torch.save",
}
"""First bytes, in lower case, of files that are not torch checkpoints, and a description of these files."""
_MAX_REPEATED = 2**26
"""Bytes of expanded tensors, which claim more numbers than the file holds, that a file may have: masks, for example."""
_MAX_DEPTH = 4
_MAX_LENGTH = 16
"""Depth of the tree, and length of its lists, up to which weights are searched."""
_VALUE_CLASSES = (
    "collections.", "datetime.", "decimal.", "fractions.", "functools.partial", "logging.", "types.", "uuid.",
)  # fmt: skip
"""Prefixes of the names of standard-library classes whose objects occur in checkpoints."""
_BUILTINS = frozenset(
    {"frozenset", "slice", "range", "complex", "int", "float", "bool", "str", "bytes", "list", "tuple"}
)


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights: its tensors by name, and the choices that led to it."""

    name: str
    """Name of the file."""
    state: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    """Options that the training program stored with the weights."""
    record: dict[str, Any] = field(default_factory=dict)
    """Choices for the provenance: `weights_key` and `weights_prefix`, if there were several possibilities."""
    notes: list[str] = field(default_factory=list)
    """The same choices as messages for the user."""
    keys: tuple[str, ...] = ()
    """Keys of all sets of weights in the file."""


class _Inert:
    """Placeholder for a value of a checkpoint that is not part of its weights, such as a path. It does nothing."""

    def __init__(self, *_: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


class _StandIn:
    """Replacement for a class of another package that a checkpoint names; that class is never imported.

    Objects become empty mappings. An object of a subclass of dict keeps its items; all other values are dropped.
    """

    def __new__(cls, *_: Any) -> Any:
        """Return an empty mapping, to which torch's reader may add items, and never an object of this class."""
        return collections.OrderedDict()


def _unknown_classes(path: Path) -> list[str]:
    """Return the names of the classes in a file of torch.save that torch does not allow by default."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - an unreadable file; torch.load raises the error
        return []
    return sorted(names)


def _holds_values(name: str) -> bool:
    """Return whether a name is that of a class whose objects occur in checkpoints, and not of a Python function."""
    module, _, rest = name.partition(".")
    if module in {"builtins", "__builtin__"}:
        return rest in _BUILTINS
    return module not in sys.stdlib_module_names or name.startswith(_VALUE_CLASSES)


def _safe_globals() -> list[Any]:
    """Return the classes that a checkpoint may hold besides tensors: numpy numbers, options, paths. None runs code."""
    core = np._core if hasattr(np, "_core") else np.core
    allowed: list[Any] = [argparse.Namespace, collections.defaultdict, np.ndarray, np.dtype]
    allowed += [type(np.dtype(code)) for code in "?bhilqBHILQefdFDSUM"]
    for home in ("numpy._core.multiarray", "numpy.core.multiarray"):  # numpy 2 and 1
        allowed += [
            (core.multiarray.scalar, f"{home}.scalar"),
            (core.multiarray._reconstruct, f"{home}._reconstruct"),
        ]
    for home in ("pathlib", "pathlib._local"):
        for cls in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
            allowed.append((_Inert, f"{home}.{cls}"))
    return allowed


def read_checkpoint(path: Path, *, key: str | None = None, prefix: str | None = None) -> "Contents":
    """Read a file of weights. Only tensors, numbers, texts and options are unpickled, so no code can run.

    Parameters
    ----------
    path : Path
        The file, written by torch.save or in the safetensors format.
    key, prefix : str, optional
        The set of weights, and the prefix of its tensor names, that the user chose.

    Returns
    -------
    Contents
        The sets of weights and the options in the file.

    Raises
    ------
    WeightsError
        The file is missing or damaged, holds objects other than tensors, or has no set of weights, or none named
        ``key``.
    """
    if not path.is_file():
        inside = [file.name for file in sorted(path.glob("*")) if file.suffix in _SUFFIXES] if path.is_dir() else []
        what = f"{path} is a folder, with the files {abbreviate(inside)}" if inside else str(path)
        raise WeightsError(
            f"no such weights file: {what}",
            remedy=Remedy(Argument("weights"), " takes pretrained, random, or a .safetensors or .pth file"),
        )
    _refuse_zip_bomb(path)
    stand_ins: list[str] = []
    # timm.models.load_state_dict is not safe: some versions load without weights_only after a TypeError
    try:
        if _is_safetensors(path):
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_safe_globals()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about some kinds of tensors that other programs save
                unknown = _unknown_classes(path)
                if all(map(_holds_values, unknown)):
                    stand_ins = unknown
                with (
                    torch.serialization.safe_globals([(_StandIn, name) for name in stand_ins]),
                    path.open("rb") as file,
                ):
                    content = torch.load(file, map_location="cpu", weights_only=True)
        refused = bool(stand_ins) and not any(_sets(content))  # a pickled module
    except Exception as error:  # noqa: BLE001 - damaged files raise any exception, safetensors a SafetensorError
        if description := _describe_file(path):
            raise WeightsError(f"cannot read weights from {path.name}, is it damaged? {description}") from None
        refused = bool(stand_ins) or isinstance(error, pickle.UnpicklingError)
        if not refused:
            raise WeightsError(f"cannot read weights from {path.name}, is it damaged? {reason(error)}") from None
    if refused:
        names = f" ({abbreviate(unknown, 3)})" if unknown else ""
        raise WeightsError(
            f"{path.name} holds objects other than tensors, and unpickling them could run code{names}: refused. "
            "Save its state_dict alone, best as .safetensors"
        )
    contents = Contents(path.name, content, key, prefix)
    if stand_ins:
        contents.notes.append(f"objects in {path.name} that were not read: {abbreviate(stand_ins, 3)}")
    return contents


def _is_safetensors(path: Path) -> bool:
    """Return whether a file has the safetensors format, from its first bytes or else from its suffix."""
    with path.open("rb") as file:
        start = file.read(10)
    return start[8:] == b'{"' or (path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80")))


def _describe_file(path: Path) -> str:
    """Return a description of a file without readable weights, from its first bytes; empty if they are unknown."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in parts:
                return "It is a TorchScript archive: load it with torch.jit.load, and save its state_dict"
            if parts and all(name.endswith(".npy") for name in parts):
                return "It is a numpy archive: convert its arrays to tensors, and save them with torch.save"
    return next((description for magic, description in _MAGIC.items() if start.lstrip().lower().startswith(magic)), "")


def _refuse_zip_bomb(path: Path) -> None:
    """Refuse a zip file that unpacks to far more than its size: torch does not compress tensors, so it is an attack."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return  # not a zip file, or one that the reader will refuse
    if unpacked > 4 * path.stat().st_size:
        raise WeightsError(
            f"{path.name} has {path.stat().st_size:,} bytes and would unpack to {unpacked:,}: refused. "
            "Save its state_dict with torch.save, or best as .safetensors"
        )


class Contents:
    """Contents of a file of weights, before they are matched with a network.

    Parameters
    ----------
    name : str
        Name of the file, for messages.
    content : object
        The unpickled content of the file.
    key, prefix : str, optional
        The set of weights, and the prefix of its tensor names, that the user chose.
    """

    def __init__(self, name: str, content: Any, key: str | None = None, prefix: str | None = None) -> None:
        self.name, self._prefix = name, prefix
        self.sets = dict(_sets(content))
        self.args = _options(content)
        self.notes: list[str] = []
        if not self.sets:
            inside = f"; its keys are {abbreviate(content)}" if isinstance(content, Mapping) and content else ""
            raise WeightsError(f"{name} is not a state_dict: expected names and tensors{inside}")
        self.key, self._chosen_by = self._choose(key)
        self.tensors = _tensors(name, self.sets[self.key])

    def _choose(self, key: str | None) -> tuple[str, str]:
        """Return the key of the set of weights to use, and why it was chosen."""
        if key is not None:
            if key not in self.sets:
                keys = Argument("weights_key")
                if not any(self.sets):
                    raise WeightsError(
                        f"{self.name} is a bare state_dict, without keys to choose from",
                        remedy=Remedy("leave ", keys, " out"),
                    )
                raise WeightsError(
                    f"{self.name} has no weights under {key!r}",
                    remedy=Remedy(keys, f" takes {abbreviate(filter(None, self.sets))}"),
                )
            return key, _BY_USER
        if len(self.sets) == 1:
            return next(iter(self.sets)), "the only one"
        if "" in self.sets and not any(k.rpartition(".")[2] in _PREFERRED for k in self.sets):
            return "", "the outermost"
        ranks = {k: _rank(k) for k in self.sets if k}
        best = min(ranks.values())
        first = [k for k, rank in ranks.items() if rank == best]
        if len(first) > 1 or best[0] == len(_PREFERRED):
            raise WeightsError(
                f"{self.name} holds several sets of weights: {abbreviate(ranks)}",
                remedy=Remedy("choose one with ", Argument("weights_key", metavar="KEY")),
            )
        return first[0], "preferred"

    def fit(self, own: Collection[str]) -> Checkpoint:
        """Return the set of weights with its tensor names matched to those of a network.

        Prefixes that programs add to the names are removed, if the names then agree with ``own``, the tensor names of
        the network. Counters and tensors that only the training uses are left out.
        """
        record: dict[str, Any] = {}
        notes = list(self.notes)
        others = [k for k in self.sets if k not in {self.key, ""}]
        if others and self.key:
            record["weights_key"] = self.key
            remedy = None if self._chosen_by == _BY_USER else Remedy(Argument("weights_key"), " chooses another")
            notes.append(
                Hint(f"weights: {self.key} of {self.name}, which also holds {abbreviate(others)}", remedy=remedy)
            )
        elif self.key and (self.key not in _PLAIN or self._chosen_by == _BY_USER):
            record["weights_key"] = self.key
            notes.append(f"weights: {self.key} of {self.name}")
        state, prefix = self._unwrapped(own)
        if prefix:
            left = sum(name not in _COUNTERS for name in self.tensors) - len(state)
            omitted = f"; {left} under other names left out" if left else ""
            also = [other for other in network_prefixes(self.tensors, own) if other != prefix] if left else []
            omitted += f", among them a network under {abbreviate(also)}" if also else ""
            remedy = Remedy(Argument("weights_prefix"), " chooses it") if also else None
            notes.append(
                Hint(
                    f"weights: {len(state)} tensors of {self.name}, prefix {prefix!r} removed{omitted}",
                    remedy=remedy,
                )
            )
            if not set(prefix.split(".")) <= {*_WRAPPERS, ""} or left:
                record["weights_prefix"] = prefix
        if numbers := [k for k in state if k not in own and _is_number(k, state[k])]:
            state = {k: tensor for k, tensor in state.items() if k not in numbers}
            notes.append(f"weights: {abbreviate(numbers)} of {self.name} left out: numbers, not weights")
        training_only = [
            k for k in state if k not in own and (k.startswith(_TRAINING_ONLY) or _is_new_head(k, state, own))
        ]
        if training_only and matching_share(state, own) >= 0.5:
            unused = [k for k in state if k in training_only or (k == "mask_token" and k not in own)]
            state = {k: tensor for k, tensor in state.items() if k not in unused}
            record["weights_left_out"] = len(unused)
            notes.append(f"weights: tensors that only the training uses are left out: {abbreviate(unused, 3)}")
        return Checkpoint(self.name, state, self.args, record, notes, tuple(k for k in self.sets if k))

    def _unwrapped(self, own: Collection[str]) -> tuple[dict[str, Tensor], str]:
        """Return the tensors with the prefix removed from their names, and the prefix."""
        every = {_INNER_WRAPPER.sub("", name): tensor for name, tensor in self.tensors.items()}
        wrapper = _wrapper_prefix(every)
        if self._prefix is not None:
            prefix = self._prefix
            if prefix and not any(name.startswith(prefix) for name in every):
                prefix = wrapper + prefix
            if prefix and not any(name.startswith(prefix) for name in every):
                raise WeightsError(
                    f"no name in {self.name} begins with {self._prefix!r}; its names are {abbreviate(every)}"
                )
            state = _strip(every, prefix)
            if prefix and all(name.startswith(".") for name in state):
                prefix += "."
            return _strip(every, prefix), prefix
        tensors = {name: tensor for name, tensor in every.items() if name not in _COUNTERS}
        bare = matching_share(tensors, own)
        if bare >= 0.5:
            return every, ""
        prefixes = dict.fromkeys(prefix for name in tensors for prefix in _leading(_usual_prefix(name)))
        shares = {prefix: matching_share(_strip(tensors, prefix), own) for prefix in prefixes}
        top = max(shares.values(), default=0.0)
        if top > max(bare, 0.1):
            first = [prefix for prefix, share in shares.items() if share == top]
            best = min(_rank(prefix) for prefix in first)
            first = [prefix for prefix in first if _rank(prefix) == best]
            if len(first) > 1:
                raise WeightsError(
                    f"{self.name} holds several networks that fit, under {abbreviate(first)}",
                    remedy=Remedy("choose one with ", Argument("weights_prefix", metavar="PREFIX")),
                )
            return _strip(tensors, first[0]), first[0]
        # timm may know the format of the authors, so only prefixes that all names have are removed
        return (_strip(tensors, wrapper) if wrapper else every), wrapper


def _is_number(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is not a weight but a number, such as a counter or an epoch."""
    return name.rpartition(".")[2] in _COUNTERS or (not tensor.ndim and "." not in name)


def _is_new_head(name: str, state: Collection[str], own: Collection[str]) -> bool:
    """Return whether a tensor belongs to a new classifier that replaced the one of the network."""
    head = _NEW_HEAD.match(name)
    return head is not None and not any(key.startswith(f"{head[1]}.") and key in own for key in state)


def _wrapper_prefix(names: Collection[str]) -> str:
    """Return the prefix that torch's wrappers (DataParallel, compile, FSDP) have added to all names."""
    parts = next(iter(names), "").split(".")
    count = next((k for k, part in enumerate(parts) if part not in _WRAPPERS), 0)
    leading = ["".join(f"{part}." for part in parts[:k]) for k in range(count, 0, -1)]
    return next((prefix for prefix in leading if all(name.startswith(prefix) for name in names)), "")


def network_prefixes(names: Collection[str], own: Collection[str]) -> list[str]:
    """Return the prefixes after whose removal at least half of a network's tensor names are among ``names``.

    >>> network_prefixes(["q.conv.weight", "k.conv.weight", "conv.bias"], ["conv.weight"])
    ['q.', 'k.']
    """
    anchor = next((key for key in own if "." in key), "")
    prefixes = [name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}")] if anchor else []
    return [p for p in prefixes if matching_share([n.removeprefix(p) for n in names if n.startswith(p)], own) >= 0.5]


def _rank(key: str) -> tuple[int, int]:
    """Return the rank of a key in the order of preference (by its best part), and its depth. Lower is better."""
    places = [_PREFERRED.index(part) for part in key.split(".") if part in _PREFERRED]
    return (min(places) if places else len(_PREFERRED), key.count("."))


def matching_share(state: Collection[str], own: Collection[str]) -> float:
    """Return the share of a network's tensor names that occur in ``state``, in [0, 1]."""
    return len(set(state) & set(own)) / max(1, len(own))


def _usual_prefix(name: str) -> str:
    """Return the prefix of a name that consists of usual parts: ``model.net.`` of ``model.net.conv1.weight``."""
    parts = name.split(".")
    count = next((k for k, part in enumerate(parts) if part not in _PREFIXES), 0)
    return "".join(f"{part}." for part in parts[:count])


def _leading(prefix: str) -> Iterator[str]:
    """Yield the leading parts of a prefix: ``model.`` and ``model.net.`` of ``model.net.``."""
    parts = prefix.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        yield "".join(f"{part}." for part in parts[:count])


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, with it and torch.compile's ``_orig_mod.`` removed."""
    return {
        name[len(prefix) :].replace("_orig_mod.", ""): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _sets(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every mapping from names to tensors in a tree, with its dotted key; optimisers and the like are skipped.

    The keys of list items are their positions.
    """
    if isinstance(tree, list | tuple) and depth < _MAX_DEPTH:
        for position, value in enumerate(tree[:_MAX_LENGTH]):
            yield from _sets(value, f"{path}.{position}" if path else str(position), depth + 1)
        return
    if not isinstance(tree, Mapping) or depth > _MAX_DEPTH or not all(isinstance(k, str) for k in tree):
        return
    arrays = [v for v in tree.values() if isinstance(v, Tensor | np.ndarray)]
    # at least one tensor must have axes: a checkpoint may also store its epoch as a tensor
    if any(array.ndim for array in arrays) and (not path or len(arrays) * 2 > len(tree)):
        yield path, tree
    for key, value in tree.items():
        if isinstance(value, Mapping | list | tuple) and not any(part in key.lower() for part in _NO_WEIGHTS):
            yield from _sets(value, f"{path}.{key}" if path else key, depth + 1)


def _tensors(name: str, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a set of weights; numbers and texts among them are not weights and are dropped."""
    tensors: dict[str, Tensor] = {}
    repeated = 0
    for key, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            tensors[key] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        elif isinstance(value, Tensor):
            if value.is_quantized or value.layout != torch.strided or value.is_meta:
                raise WeightsError(
                    f"{name}: {key} is {'quantised' if value.is_quantized else 'sparse or without values'}; "
                    "repsim reads dense float weights: dequantise them, and save the state_dict again"
                )
            size, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
            repeated += size if size > stored else 0
            if repeated > _MAX_REPEATED:
                raise WeightsError(
                    f"{name}: {key} repeats few numbers, and would take {format_size(size)} of memory for "
                    f"{format_size(stored)} in the file: refused. Save the state_dict after tensor.contiguous()"
                )
            tensors[key] = value.detach()
    return tensors


def _options(content: Any) -> dict[str, Any]:
    """Return the options that the training program stored, from the first of the usual keys that the file has.

    Options of torchvision (``val_crop_size``, ``val_resize_size``) get timm's names.
    """
    if not isinstance(content, Mapping):
        return {}
    options: dict[str, Any] = {}
    for key in _OPTIONS:
        value = content.get(key)
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            options = dict(value)
            break
    crop, resize = options.get("val_crop_size"), options.get("val_resize_size")
    if isinstance(crop, int) and crop > 0:
        options.setdefault("img_size", crop)
        if isinstance(resize, int) and resize >= crop:
            options.setdefault("crop_pct", crop / resize)
    return options


def abbreviate(names: Any, most: int = 6) -> str:
    """Return the first names of a list, separated by commas, with the total number if there are more.

    >>> abbreviate(["a", "b", "c"], 2)
    'a, b, ... (3)'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f", ... ({len(every)})" if len(every) > most else "")
