"""Reads the weights out of a checkpoint file, whatever training program wrapped them, without ever running code.

A file may hold a state_dict, or a tree that holds several (``state_dict`` and ``state_dict_ema``, ``student`` and
``teacher``), with optimisers, options and numbers beside them. Which one is taken is decided by rules that are written
in this file, reported and recorded; what the rules do not decide is an error that lists what the file holds.
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

_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema",
    "teacher", "target_encoder", "state_dict", "model_state_dict", "model_state", "model", "net", "network",
    "net_state_dict", "module", "weights", "params", "backbone", "encoder", "student",
)  # fmt: skip
"""Keys of sets of weights, the first that a file has is taken: averaged ones as timm does, the teacher as DINO does."""
_BY_USER = "the user"
"""Who chose a set of weights."""
_PLAIN = {"state_dict_ema", "model_ema", "state_dict", "model"}
"""Keys that say nothing worth recording where a file has only the one set of weights."""
_PREFIXES = (
    "ema", "ema_model", "model_ema", "teacher", "module", "_orig_mod", "model", "net", "network", "backbone", "encoder",
    "student", "online_network", "classifier", "visual", "trunk", "_forward_module", "state_dict", "encoder_q",
    "base_encoder", "timm_model", "image_encoder", "feature_extractor", "convnet", "_feature_blocks",
    "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
)  # fmt: skip
"""Parts of names that programs put before those of the network they train."""
_AROUND = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch puts before a module that it parallelises or compiles."""
_INSIDE = re.compile(r"\.(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_ASIDE = ("optim", "sched", "scaler", "loss", "criterion", "callback", "loop", "rng", "hyper_parameters", "args")
"""Parts of keys under which no weights of a network lie."""
_COUNTERS = {"total_ops", "total_params", "n_averaged"}
"""Names of tensors that thop and AveragedModel put beside the weights."""
_BESIDE = ("decoder", "projector.", "predictor.", "prototypes.", "queue", "proj_head.", "projection_head.")
"""Beginnings of names of tensors that self-supervised training needs beside the network."""
_NEW_HEAD = re.compile(r"(head|heads|fc|classifier)\.(\d+|mlp|layers?|last_layer|block)\.")
"""Names of tensors of several layers that were put in the place of a classifier of one."""
_OPTIONS = ("args", "hyper_parameters", "config", "cfg", "opt")
"""Keys of the options that a network was trained with."""
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}
_MAGIC = {
    b"version https://git-lfs": "It is a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"<": "It is a web page, not what was to be downloaded",
    b"{": "It is JSON: of weights in several files, perhaps; save them with torch.save as one state_dict",
    b"\x1f\x8b": "It is compressed: unpack it with gunzip",
    b"\x89hdf": "It is an HDF5 file, of Keras perhaps: save the tensors with torch.save",
}
"""First bytes of files that are no weights of torch's, and what they are; in lower case."""
_DEEPEST = 4
_LONGEST = 16
"""Depth of a tree, and length of its lists, to which weights are looked for."""
_VALUES = ("collections.", "datetime.", "decimal.", "fractions.", "functools.partial", "logging.", "types.", "uuid.")
"""Beginnings of names of Python's own classes that checkpoints hold, beside those of other packages."""
_BUILTINS = frozenset(
    {"frozenset", "slice", "range", "complex", "int", "float", "bool", "str", "bytes", "list", "tuple"}
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one set of weights by name, and what was chosen to get them."""

    name: str
    """Of the file."""
    state: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    """Options that the training program stored beside the weights."""
    record: dict[str, Any] = field(default_factory=dict)
    """For the provenance: `weights_key` and `weights_prefix`, where there was something to choose."""
    notes: list[str] = field(default_factory=list)
    """The same for people."""
    keys: tuple[str, ...] = ()
    """Keys of all sets of weights in the file."""


class _Inert:
    """Stands for a value of a checkpoint that has nothing to do with its weights, such as a path. Does nothing."""

    def __init__(self, *_: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


class _StandIn:
    """Makes an empty mapping where a checkpoint asks for a class of another package; that class is never imported.

    A subclass of dict so keeps its items, and everything else is nothing.
    """

    def __new__(cls, *_: Any) -> Any:
        """Return a mapping, to which torch's reader lets a file add items, and never an object of this class."""
        return collections.OrderedDict()


def _foreign(path: Path) -> list[str]:
    """Name the classes in a file of torch.save that torch does not know, and that hold values."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - no such file: whoever reads it says so
        return []
    return sorted(names)


def _holds_values(name: str) -> bool:
    """Whether a name is of a class whose objects programs keep in checkpoints; Python's own functions are none."""
    module, _, rest = name.partition(".")
    if module in {"builtins", "__builtin__"}:
        return rest in _BUILTINS
    return module not in sys.stdlib_module_names or name.startswith(_VALUES)


def _harmless() -> list[Any]:
    """What a checkpoint may hold beside tensors: numbers of numpy, options, paths. None of these runs code."""
    core = np._core if hasattr(np, "_core") else np.core
    allowed: list[Any] = [argparse.Namespace, collections.defaultdict, np.ndarray, np.dtype]
    allowed += [type(np.dtype(code)) for code in "?bhilqBHILQefdFDSUM"]
    for home in ("numpy._core.multiarray", "numpy.core.multiarray"):  # numpy 2 and 1
        allowed += [
            (core.multiarray.scalar, f"{home}.scalar"),
            (core.multiarray._reconstruct, f"{home}._reconstruct"),
        ]
    for home in ("pathlib", "pathlib._local"):
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
            allowed.append((_Inert, f"{home}.{kind}"))
    return allowed


def read_checkpoint(path: Path, *, key: str | None = None, prefix: str | None = None) -> "Contents":
    """Read a file of weights; nothing but tensors, numbers, texts and options is ever unpickled.

    Raises
    ------
    WeightsError
        The file is missing, damaged, holds something else than tensors, has no set of weights, or no such ``key``.
    """
    if not path.is_file():
        inside = [file.name for file in sorted(path.glob("*")) if file.suffix in _SUFFIXES] if path.is_dir() else []
        what = f"{path} is a folder, with the files {abbreviate(inside)}" if inside else str(path)
        raise WeightsError(
            f"no such weights file: {what}",
            remedy=Remedy(Argument("weights"), " takes pretrained, random, or a .safetensors or .pth file"),
        )
    _refuse_bomb(path)
    stand_ins: list[str] = []
    # not with timm.models.load_state_dict: some versions load without weights_only after a TypeError
    try:
        if _is_safetensors(path):
            held: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's, about the kinds of tensors that other programs save
                foreign = _foreign(path)
                if all(map(_holds_values, foreign)):
                    stand_ins = foreign
                with (
                    torch.serialization.safe_globals([(_StandIn, name) for name in stand_ins]),
                    path.open("rb") as file,
                ):
                    held = torch.load(file, map_location="cpu", weights_only=True)
        refused = bool(stand_ins) and not any(_sets(held))  # a whole module
    except Exception as error:  # noqa: BLE001 - damaged files raise anything, safetensors its own SafetensorError
        if kind := _kind(path):
            raise WeightsError(f"cannot read weights from {path.name}, is it damaged? {kind}") from None
        refused = bool(stand_ins) or isinstance(error, pickle.UnpicklingError)
        if not refused:
            raise WeightsError(f"cannot read weights from {path.name}, is it damaged? {reason(error)}") from None
    if refused:
        names = f" ({abbreviate(foreign, 3)})" if foreign else ""
        raise WeightsError(
            f"{path.name} holds something else than tensors, and unpickling that could run code{names}: refused. "
            "Save its state_dict alone, best as .safetensors"
        )
    contents = Contents(path.name, held, key, prefix)
    if stand_ins:
        contents.notes.append(f"beside the weights of {path.name}, and not read: {abbreviate(stand_ins, 3)}")
    return contents


def _is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors: by its first bytes, and by its suffix where these are not of torch.save."""
    with path.open("rb") as file:
        start = file.read(10)
    return start[8:] == b'{"' or (path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80")))


def _kind(path: Path) -> str:
    """Say what a file is that holds no weights that can be read, where its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in parts:
                return "It is a TorchScript archive: load it with torch.jit.load, and save its state_dict"
            if parts and all(name.endswith(".npy") for name in parts):
                return "It is an archive of numpy: make tensors of its arrays, and save them with torch.save"
    return next((kind for magic, kind in _MAGIC.items() if start.lstrip().lower().startswith(magic)), "")


def _refuse_bomb(path: Path) -> None:
    """Torch stores tensors as they are: a file that unpacks to far more than its size is made to fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return  # no zip, or one that the reader will refuse
    if unpacked > 4 * path.stat().st_size:
        raise WeightsError(
            f"{path.name} has {path.stat().st_size:,} bytes and would unpack to {unpacked:,}: refused. "
            "Save its state_dict with torch.save, or best as .safetensors"
        )


class Contents:
    """What a file of weights holds, before it is held against a network.

    Parameters
    ----------
    name
        Of the file, for messages.
    held
        What was unpickled.
    key, prefix
        What the user chose of it.
    """

    def __init__(self, name: str, held: Any, key: str | None = None, prefix: str | None = None) -> None:
        self.name, self._prefix = name, prefix
        self.sets = dict(_sets(held))
        self.args = _options(held)
        self.notes: list[str] = []
        if not self.sets:
            inside = f"; its keys are {abbreviate(held)}" if isinstance(held, Mapping) and held else ""
            raise WeightsError(f"{name} is no state_dict: expected names and tensors{inside}")
        self.key, self._chosen_by = self._choose(key)
        self.tensors = _tensors(name, self.sets[self.key])

    def _choose(self, key: str | None) -> tuple[str, str]:
        """Which set of weights, and why that one."""
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
                remedy=Remedy("say which with ", Argument("weights_key", metavar="KEY")),
            )
        return first[0], "preferred"

    def fit(self, own: Collection[str]) -> Checkpoint:
        """Take the wrappers off the names, until they are the names ``own`` of a network's tensors if they can be."""
        record: dict[str, Any] = {}
        notes = list(self.notes)
        others = [k for k in self.sets if k not in {self.key, ""}]
        if others and self.key:
            record["weights_key"] = self.key
            remedy = None if self._chosen_by == _BY_USER else Remedy(Argument("weights_key"), " takes another")
            notes.append(
                Hint(f"weights: {self.key} of {self.name}, which also holds {abbreviate(others)}", remedy=remedy)
            )
        elif self.key and (self.key not in _PLAIN or self._chosen_by == _BY_USER):
            record["weights_key"] = self.key
            notes.append(f"weights: {self.key} of {self.name}")
        state, prefix = self._unwrapped(own)
        if prefix:
            left = sum(name not in _COUNTERS for name in self.tensors) - len(state)
            beside = f"; {left} under other names left out" if left else ""
            also = [other for other in network_prefixes(self.tensors, own) if other != prefix] if left else []
            beside += f", a network under {abbreviate(also)} among them" if also else ""
            remedy = Remedy(Argument("weights_prefix"), " takes it") if also else None
            notes.append(
                Hint(
                    f"weights: {len(state)} tensors of {self.name}, their names without {prefix!r}{beside}",
                    remedy=remedy,
                )
            )
            if not set(prefix.split(".")) <= {*_AROUND, ""} or left:
                record["weights_prefix"] = prefix
        if aside := [k for k in state if k not in own and _is_number(k, state[k])]:
            state = {k: tensor for k, tensor in state.items() if k not in aside}
            notes.append(f"weights: {abbreviate(aside)} of {self.name} left out: numbers, no weights")
        decoder = [k for k in state if k not in own and (k.startswith(_BESIDE) or _is_new_head(k, state, own))]
        if decoder and matching_share(state, own) >= 0.5:
            aside = [k for k in state if k in decoder or (k == "mask_token" and k not in own)]
            state = {k: tensor for k, tensor in state.items() if k not in aside}
            record["weights_left_out"] = len(aside)
            notes.append(f"weights: left out what serves the training only: {abbreviate(aside, 3)}")
        return Checkpoint(self.name, state, self.args, record, notes, tuple(k for k in self.sets if k))

    def _unwrapped(self, own: Collection[str]) -> tuple[dict[str, Tensor], str]:
        """Tensors without what is before their names, and what that was."""
        every = {_INSIDE.sub("", name): tensor for name, tensor in self.tensors.items()}
        around = _around(every)
        if self._prefix is not None:
            prefix = self._prefix
            if prefix and not any(name.startswith(prefix) for name in every):
                prefix = around + prefix
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
        known = dict.fromkeys(prefix for name in tensors for prefix in _leading(_known_prefix(name)))
        shares = {prefix: matching_share(_strip(tensors, prefix), own) for prefix in known}
        top = max(shares.values(), default=0.0)
        if top > max(bare, 0.1):
            first = [prefix for prefix, share in shares.items() if share == top]
            best = min(_rank(prefix) for prefix in first)
            first = [prefix for prefix in first if _rank(prefix) == best]
            if len(first) > 1:
                raise WeightsError(
                    f"{self.name} holds several networks that fit, under {abbreviate(first)}",
                    remedy=Remedy("say which with ", Argument("weights_prefix", metavar="PREFIX")),
                )
            return _strip(tensors, first[0]), first[0]
        # in the authors' own format, perhaps, which timm may know: only what wraps every name is taken off
        return (_strip(tensors, around) if around else every), around


def _is_number(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a number beside the weights: a counter, or an epoch."""
    return name.rpartition(".")[2] in _COUNTERS or (not tensor.ndim and "." not in name)


def _is_new_head(name: str, state: Collection[str], own: Collection[str]) -> bool:
    """Whether a name is of layers in the place of the whole classifier, none of which the network has."""
    head = _NEW_HEAD.match(name)
    return head is not None and not any(key.startswith(f"{head[1]}.") and key in own for key in state)


def _around(names: Collection[str]) -> str:
    """What torch's wrappers put before every name."""
    parts = next(iter(names), "").split(".")
    count = next((k for k, part in enumerate(parts) if part not in _AROUND), 0)
    leading = ["".join(f"{part}." for part in parts[:k]) for k in range(count, 0, -1)]
    return next((prefix for prefix in leading if all(name.startswith(prefix) for name in names)), "")


def network_prefixes(names: Collection[str], own: Collection[str]) -> list[str]:
    """Prefixes without which most names are those of a network.

    >>> network_prefixes(["q.conv.weight", "k.conv.weight", "conv.bias"], ["conv.weight"])
    ['q.', 'k.']
    """
    anchor = next((key for key in own if "." in key), "")
    prefixes = [name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}")] if anchor else []
    return [p for p in prefixes if matching_share([n.removeprefix(p) for n in names if n.startswith(p)], own) >= 0.5]


def _rank(key: str) -> tuple[int, int]:
    """Place of a key among those that are preferred, by any of its parts, and its depth."""
    places = [_PREFERRED.index(part) for part in key.split(".") if part in _PREFERRED]
    return (min(places) if places else len(_PREFERRED), key.count("."))


def matching_share(state: Collection[str], own: Collection[str]) -> float:
    """Share of a network's tensors that have their names in ``state``."""
    return len(set(state) & set(own)) / max(1, len(own))


def _known_prefix(name: str) -> str:
    """The parts before a name that programs are known to put there: ``model.net._orig_mod.conv1.weight``."""
    parts = name.split(".")
    count = next((k for k, part in enumerate(parts) if part not in _PREFIXES), 0)
    return "".join(f"{part}." for part in parts[:count])


def _leading(prefix: str) -> Iterator[str]:
    """Each way to cut a prefix: of ``model.net.`` that is ``model.`` and ``model.net.``."""
    parts = prefix.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        yield "".join(f"{part}." for part in parts[:count])


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with ``prefix``, without it, and without torch.compile's mark inside."""
    return {
        name[len(prefix) :].replace("_orig_mod.", ""): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _sets(held: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of names to tensors in a tree, with its dotted key; optimisers and the like are passed over.

    In a list the keys are positions.
    """
    if isinstance(held, list | tuple) and depth < _DEEPEST:
        for position, value in enumerate(held[:_LONGEST]):
            yield from _sets(value, f"{path}.{position}" if path else str(position), depth + 1)
        return
    if not isinstance(held, Mapping) or depth > _DEEPEST or not all(isinstance(k, str) for k in held):
        return
    arrays = [v for v in held.values() if isinstance(v, Tensor | np.ndarray)]
    # some tensor with axes: a checkpoint may have its epoch as a tensor, too
    if any(array.ndim for array in arrays) and (not path or len(arrays) * 2 > len(held)):
        yield path, held
    for key, value in held.items():
        if isinstance(value, Mapping | list | tuple) and not any(part in key.lower() for part in _ASIDE):
            yield from _sets(value, f"{path}.{key}" if path else key, depth + 1)


def _tensors(name: str, held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a set; numbers and texts beside them are no weights."""
    tensors: dict[str, Tensor] = {}
    for key, value in held.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            tensors[key] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        elif isinstance(value, Tensor):
            if value.is_quantized or value.layout != torch.strided or value.is_meta:
                raise WeightsError(
                    f"{name}: {key} is {'quantised' if value.is_quantized else 'sparse or without values'}; "
                    "repsim reads dense float weights: dequantise them, and save the state_dict again"
                )
            tensors[key] = value.detach()
    return tensors


def _options(held: Any) -> dict[str, Any]:
    """Options that the training program stored, from the first of the keys that it may have them under.

    Those of torchvision's (``val_crop_size``, ``val_resize_size``) get timm's names.
    """
    if not isinstance(held, Mapping):
        return {}
    options: dict[str, Any] = {}
    for key in _OPTIONS:
        value = held.get(key)
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
    """The first names of many, in a row.

    >>> abbreviate(["a", "b", "c"], 2)
    'a, b, ... (3)'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f", ... ({len(every)})" if len(every) > most else "")
