"""Getting a timm model with its weights: timm's own, random, or from a file that cannot run code."""

import contextlib
import hashlib
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from repsim.errors import UnknownNameError, WeightsError
from repsim.extractors import zoo as _zoo  # noqa: F401 - registers the embedded models with timm


def check_name(name: str) -> None:
    """Raise, with near names, unless timm knows this architecture and tag."""
    base, _, tag = name.partition(".")
    if ":" in name:  # hf-hub:..., local-dir:...: timm resolves these itself
        return
    if not timm.is_model(base):
        raise UnknownNameError("model", name, timm.list_models(), hint="(`repsim models '*PATTERN*'` lists them)")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UnknownNameError("pretrained tag", tag, tags, hint=f"of {base}")


def load_model(name: str, weights: str = "pretrained", seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Create a timm model in eval mode on the CPU; returns it with what is to be recorded of its weights.

    ``weights``: ``pretrained`` (timm's tag, from the hub or its cache), ``random`` (from ``seed``), or a file.
    """
    check_name(name)
    record: dict[str, Any] = {"weights": weights}
    if weights == "pretrained":
        model = _pretrained(name)
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=False)
        record["seed"] = seed
    else:
        model = _from_file(name, Path(weights))
        record["weights"] = "file"
        record["weights_file"] = Path(weights).name
    config = model.pretrained_cfg
    tag = config.get("tag") or ""
    record["architecture"] = config.get("architecture") or name
    record["timm_name"] = (
        f"{record['architecture']}.{tag}" if tag and weights == "pretrained" else record["architecture"]
    )
    record["weights_sha256"] = fingerprint(model)
    return model.eval(), record


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, by sorted name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pretrained(name: str) -> nn.Module:
    try:
        with _quiet_hub():
            model: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        offline = isinstance(error, OSError)
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        source = (config.hf_hub_id or config.url) if config else None
        if offline or source is not None:
            reason = "they are not in the cache and the hub cannot be reached" if offline else _first_line(error)
            raise WeightsError(
                f"no pretrained weights for {name} ({source or 'no known source'}): {reason}. "
                "Use --weights FILE (.safetensors or .pth), or --weights random; "
                "HF_HUB_OFFLINE=1 skips the wait for the network"
            ) from error
        raise WeightsError(
            f"timm has no pretrained weights for {name}. Use --weights FILE, or --weights random"
        ) from error
    return model


def _from_file(name: str, path: Path) -> nn.Module:
    """Load a checkpoint of tensors, in timm's or its authors' format, with as many classes as it has."""
    if not path.is_file():
        raise WeightsError(
            f"no such weights file: {path} (--weights takes pretrained, random, or a .safetensors or .pth file)"
        )
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path.name} holds more than tensors, and unpickling it could run code: refused. "
            "Save its state_dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise anything, safetensors its own SafetensorError
        raise WeightsError(f"cannot read weights from {path.name}: {_first_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path.name} is no state_dict: expected names and tensors")
    head = timm.create_model(name, pretrained=False, num_classes=1).pretrained_cfg.get("classifier")
    head = head[0] if isinstance(head, list | tuple) else head
    weight = state.get(f"{head}.weight")
    classes = len(weight) if weight is not None else 0
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=True,
            num_classes=classes,
            pretrained_cfg_overlay={"state_dict": state, "num_classes": classes, "label_offset": 0},
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} does not fit {name}: {_first_line(error, lines=2)}") from None
    return model


def _first_line(error: Exception, lines: int = 1) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    return (text[:200] + " ...") if len(text) > 200 else text or type(error).__name__


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's retries off the terminal: one line at the end says what happened."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
