"""Reads the weights out of a checkpoint file, whatever training program wrapped them, without ever running code.

A file may hold a state_dict, or a tree that holds several (``state_dict`` and ``state_dict_ema``, ``student`` and
``teacher``), with optimisers, options and numbers beside them. Which one is taken is decided by rules that are written
in this file, reported and recorded; what the rules do not decide is an error that lists what the file holds.
"""

import argparse
import collections
import pickle
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

from repsim.errors import WeightsError, reason

_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema",
    "teacher", "target_encoder", "state_dict", "model_state_dict", "model_state", "model", "net", "network",
    "net_state_dict", "module", "weights", "params", "backbone", "encoder", "student",
)  # fmt: skip
"""Keys of sets of weights, the first that a file has is taken: averaged ones as timm does, the teacher as DINO does."""
_PLAIN = {"state_dict_ema", "model_ema", "state_dict", "model"}
"""Keys that say nothing worth recording where a file has only the one set of weights."""
_PREFIXES = (
    "ema", "ema_model", "model_ema", "teacher", "module", "_orig_mod", "model", "net", "network", "backbone", "encoder",
    "student", "online_network", "classifier", "visual", "trunk", "_forward_module", "state_dict",
)  # fmt: skip
"""Parts of names that programs put before those of the network they train."""
_ASIDE = ("optim", "sched", "scaler", "loss", "criterion", "callback", "loop", "rng", "hyper_parameters", "args")
"""Parts of keys under which no weights of a network lie."""
_COUNTERS = {"total_ops", "total_params", "n_averaged"}
"""Names of tensors that thop and AveragedModel put beside the weights."""
_BESIDE = ("decoder", "projector.", "predictor.", "prototypes.", "queue", "proj_head.", "projection_head.")
"""Beginnings of names of tensors that self-supervised training needs beside the network."""
_OPTIONS = ("args", "hyper_parameters", "config", "cfg", "opt")
"""Keys of the options that a network was trained with."""
_DEEPEST = 4


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
        raise WeightsError(
            f"no such weights file: {path} (--weights takes pretrained, random, or a .safetensors or .pth file)"
        )
    _refuse_bomb(path)
    # not with timm.models.load_state_dict: some versions load without weights_only after a TypeError
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's, about the kinds of tensors that other programs save
                held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path.name} holds something else than tensors, and unpickling that could run code: refused. "
            "Save its state_dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise anything, safetensors its own SafetensorError
        raise WeightsError(f"cannot read weights from {path.name}, is it damaged? {reason(error)}") from None
    return Contents(path.name, held, key, prefix)


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
        if not self.sets:
            inside = f"; its keys are {listed(held)}" if isinstance(held, Mapping) and held else ""
            raise WeightsError(f"{name} is no state_dict: expected names and tensors{inside}")
        self.key, self._chosen_by = self._choose(key)
        self.tensors = _tensors(name, self.sets[self.key])

    def _choose(self, key: str | None) -> tuple[str, str]:
        """Which set of weights, and why that one."""
        if key is not None:
            if key not in self.sets:
                raise WeightsError(
                    f"{self.name} has no weights under {key!r}; --weights-key takes {listed(filter(None, self.sets))}"
                    if any(self.sets)
                    else f"{self.name} is a bare state_dict, without keys to choose from: leave --weights-key out"
                )
            return key, "--weights-key"
        if len(self.sets) == 1:
            return next(iter(self.sets)), "the only one"
        if "" in self.sets and not any(k.rpartition(".")[2] in _PREFERRED for k in self.sets):
            return "", "the outermost"
        ranks = {k: _rank(k) for k in self.sets if k}
        best = min(ranks.values())
        first = [k for k, rank in ranks.items() if rank == best]
        if len(first) > 1 or best[0] == len(_PREFERRED):
            raise WeightsError(
                f"{self.name} holds several sets of weights: {listed(ranks)}; say which with --weights-key KEY"
            )
        return first[0], "preferred"

    def fit(self, own: Collection[str]) -> Checkpoint:
        """Take the wrappers off the names, until they are the names ``own`` of a network's tensors if they can be."""
        record: dict[str, Any] = {}
        notes: list[str] = []
        others = [k for k in self.sets if k not in {self.key, ""}]
        if others and self.key:
            record["weights_key"] = self.key
            how = "chosen with --weights-key" if self._chosen_by == "--weights-key" else "--weights-key takes another"
            notes.append(f"weights: {self.key} of {self.name}, which also holds {listed(others)} ({how})")
        elif self.key and (self.key not in _PLAIN or self._chosen_by == "--weights-key"):
            record["weights_key"] = self.key
            notes.append(f"weights: {self.key} of {self.name}")
        state, prefix = self._unwrapped(own)
        if prefix:
            left = sum(name not in _COUNTERS for name in self.tensors) - len(state)
            beside = f"; {left} under other names left out" if left else ""
            notes.append(f"weights: {len(state)} tensors of {self.name}, their names without {prefix!r}{beside}")
            if prefix not in {"module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."} or left:
                record["weights_prefix"] = prefix
        if aside := [k for k in state if k.rpartition(".")[2] in _COUNTERS and k not in own]:
            state = {k: tensor for k, tensor in state.items() if k not in aside}
            notes.append(f"weights: {listed(aside)} of {self.name} left out: counters, no weights")
        decoder = [k for k in state if k not in own and k.startswith(_BESIDE)]
        if decoder and fits(state, own) >= 0.5:
            aside = [k for k in state if k in decoder or (k == "mask_token" and k not in own)]
            state = {k: tensor for k, tensor in state.items() if k not in aside}
            record["weights_left_out"] = len(aside)
            notes.append(f"weights: left out what serves the training only: {listed(aside, 3)}")
        return Checkpoint(self.name, state, self.args, record, notes, tuple(k for k in self.sets if k))

    def _unwrapped(self, own: Collection[str]) -> tuple[dict[str, Tensor], str]:
        """Tensors without what is before their names, and what that was."""
        every = {name.replace("._orig_mod.", "."): tensor for name, tensor in self.tensors.items()}
        if self._prefix is not None:
            prefix = self._prefix
            if prefix and not any(name.startswith(prefix) for name in every):
                raise WeightsError(f"no name in {self.name} begins with {prefix!r}; its names are {listed(every)}")
            state = _strip(every, prefix)
            if prefix and all(name.startswith(".") for name in state):
                prefix += "."
            return _strip(every, prefix), prefix
        tensors = {name: tensor for name, tensor in every.items() if name not in _COUNTERS}
        bare = fits(tensors, own)
        if bare >= 0.5:
            return every, ""
        known = dict.fromkeys(prefix for name in tensors for prefix in _leading(_known_prefix(name)))
        shares = {prefix: fits(_strip(tensors, prefix), own) for prefix in known}
        top = max(shares.values(), default=0.0)
        if top > max(bare, 0.1):
            first = [prefix for prefix, share in shares.items() if share == top]
            best = min(_rank(prefix) for prefix in first)
            first = [prefix for prefix in first if _rank(prefix) == best]
            if len(first) > 1:
                raise WeightsError(
                    f"{self.name} holds several networks that fit, under {listed(first)}; say which with "
                    "--weights-prefix PREFIX"
                )
            return _strip(tensors, first[0]), first[0]
        # in the authors' own format, perhaps, which timm may know: only what wraps every name is taken off
        around = [prefix for prefix in shares if set(prefix.split(".")) <= {"module", "_orig_mod", ""}]
        whole = [prefix for prefix in around if all(name.startswith(prefix) for name in tensors)]
        prefix = max(whole, key=len, default="")
        return (_strip(tensors, prefix) if prefix else every), prefix


def _rank(key: str) -> tuple[int, int]:
    """Place of a key among those that are preferred, by any of its parts, and its depth."""
    places = [_PREFERRED.index(part) for part in key.split(".") if part in _PREFERRED]
    return (min(places) if places else len(_PREFERRED), key.count("."))


def fits(state: Collection[str], own: Collection[str]) -> float:
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
    """Every mapping of names to tensors in a tree, with its dotted key; optimisers and the like are passed over."""
    if not isinstance(held, Mapping) or depth > _DEEPEST or not all(isinstance(k, str) for k in held):
        return
    arrays = [v for v in held.values() if isinstance(v, Tensor | np.ndarray)]
    # some tensor with axes: a checkpoint may have its epoch as a tensor, too
    if any(array.ndim for array in arrays) and (not path or len(arrays) * 2 > len(held)):
        yield path, held
    for key, value in held.items():
        if isinstance(value, Mapping) and not any(part in key.lower() for part in _ASIDE):
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
    """Options that the training program stored, from the first of the keys that it may have them under."""
    if not isinstance(held, Mapping):
        return {}
    for key in _OPTIONS:
        value = held.get(key)
        if isinstance(value, argparse.Namespace):
            return vars(value)
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return dict(value)
    return {}


def listed(names: Any, most: int = 6) -> str:
    """The first names of many, in a row.

    >>> listed(["a", "b", "c"], 2)
    'a, b, ... (3)'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f", ... ({len(every)})" if len(every) > most else "")
