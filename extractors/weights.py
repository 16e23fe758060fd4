"""Load a timm model with its weights: pretrained, random, or from a file."""

import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from repsim.errors import Argument, Function, InvalidInputError, Remedy, UnknownNameError, WeightsError, reason
from repsim.extractors import fitting
from repsim.extractors import zoo as _zoo  # noqa: F401 - registers the embedded models with timm
from repsim.extractors.checkpoints import read_checkpoint
from repsim.extractors.options import ModelOptions

ALTERNATIVES = Remedy(
    "use ", Argument("weights", metavar="FILE"), " (.safetensors or .pth), or ", Argument("weights", "random")
)
"""Remedy of errors about pretrained weights that are not available."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def check_name(name: str) -> None:
    """Check that timm has this architecture and tag.

    Raises
    ------
    UnknownNameError
        timm has no such architecture or tag; the message suggests similar names.
    """
    base, _, tag = name.partition(".")
    if ":" in name:  # timm resolves hf-hub:... and local-dir:... itself
        return
    if not timm.is_model(base):
        raise UnknownNameError(
            "model", name, timm.list_models(), remedy=Remedy(Function("timm.list_models"), " lists them")
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise UnknownNameError("pretrained tag", tag, tags, where=f"of {base}")


class Loaded(NamedTuple):
    """A network with its weights, in eval mode on the CPU."""

    model: nn.Module
    record: dict[str, Any]
    """Entries about the weights for the provenance."""
    notes: list[str]
    """Messages for the user about choices that were made."""


def load_model(name: str, weights: str = "pretrained", seed: int = 0, options: ModelOptions | None = None) -> Loaded:
    """Create a timm model in eval mode on the CPU.

    Parameters
    ----------
    name : str
        Name of the model in timm.
    weights : str
        ``pretrained`` (of timm's tag, from the hub or its cache), ``random``, or a file.
    seed : int
        Seed of random weights.
    options : ModelOptions, optional
        Options of building the model and of preparing its pictures; they are stored in its ``pretrained_cfg``.

    Returns
    -------
    Loaded
        The model, the provenance of its weights, and notes.

    Examples
    --------
    >>> model, record, notes = load_model("digits_resnet", weights="random", seed=3)
    >>> record["architecture"], record["seed"], len(record["weights_sha256"]), model.training
    ('digits_resnet', 3, 64, False)
    """
    check_name(name)
    options = options or ModelOptions()
    options.check_weights(weights)
    record: dict[str, Any] = {"weights": weights}
    model: Any
    if weights == "pretrained":
        model, settings = _pretrained(name, options)
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, settings = fitting.build(name, options)
        record["seed"] = seed
    else:
        contents = read_checkpoint(Path(weights), key=options.weights_key, prefix=options.weights_prefix)
        with quiet_downloads():
            model, settings = fitting.build_from(name, contents, options)
        record |= {"weights": "file", "weights_file": Path(weights).name}
    config = model.pretrained_cfg
    tag = config.get("tag") or ""
    record["architecture"] = config.get("architecture") or name
    record["timm_name"] = (
        f"{record['architecture']}.{tag}" if tag and weights == "pretrained" else record["architecture"]
    )
    record |= settings.record
    record["weights_sha256"] = fingerprint(model)
    return Loaded(model.eval(), record, settings.notes)


def suffix(weights: str, seed: int, options: ModelOptions | None = None) -> str:
    """Return the suffix of a model's name for weights, a picture size or a text length that are not its defaults.

    >>> suffix("random", 3), suffix("runs/epoch9.pth", 0), suffix("pretrained", 0)
    ('+random-seed3', '+epoch9', '')
    >>> suffix("runs/epoch9.pth", 0, ModelOptions.read(weights_key="state_dict", img_size=96))
    '+epoch9.state_dict+96px'
    """
    options = options or ModelOptions()
    if weights == "pretrained":
        text = ""
    else:
        part = "".join(f".{text.strip('.')}" for text in (options.weights_key, options.weights_prefix) if text)
        text = f"+random-seed{seed}" if weights == "random" else f"+{Path(weights).stem}{part}"
    if options.img_size is not None:
        height, width = options.img_size
        text += f"+{height}px" if height == width else f"+{height}x{width}px"
    if options.max_length is not None:
        text += f"+{options.max_length}tokens"
    return text


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers in the order of their names.

    Other values that a module adds to its state_dict are not included.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pretrained(name: str, options: ModelOptions) -> tuple[Any, fitting.Settings]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    model: Any
    try:
        with quiet_downloads():
            model, settings = fitting.build(name, options, pretrained=True)
    except InvalidInputError:  # an option of the user's
        raise
    except Exception as error:
        close_response(error)
        _check_cache(config.to_dict() if config else {})
        source = config and (config.hf_hub_id or config.url or (config.file and Path(config.file).name))
        if config and not source:
            raise WeightsError(f"timm has no pretrained weights for {name}", remedy=ALTERNATIVES) from None
        why, remedy = explain_download(error)
        raise WeightsError(f"no pretrained weights for {name} ({source or name}): {why}", remedy=remedy) from error
    _check_cache(model.pretrained_cfg)
    return model, settings


def explain_download(error: Exception) -> tuple[str, Remedy]:
    """Return why a file could not be downloaded, and what to do."""
    if isinstance(error, LocalEntryNotFoundError) or type(error) is URLError:  # a 404 is a URLError too
        remedy = Remedy(*ALTERNATIVES.parts, "; HF_HUB_OFFLINE=1 skips the wait for the network")
        return "they are not in the cache and the hub cannot be reached", remedy
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        why = (
            f"the hub refuses access ({status}). If they exist, accept their terms on the hub's page and "
            "log in (`hf auth login`, or HF_TOKEN)"
        )
        return why, ALTERNATIVES
    return reason(error), ALTERNATIVES


def close_response(error: Exception) -> None:
    """Close the connection of an HTTP error, which would stay open as long as the error exists."""
    if isinstance(error, HTTPError):
        error.close()


def url_cache(url: str) -> Path:
    """Return the path at which torch caches a downloaded file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def check_hash(file: Path) -> None:
    """Raise `WeightsError` if ``file`` exists and its SHA-256 is not the one in its name, ``resnet18-f37072fd.pth``."""
    named = re.search(r"-([0-9a-f]{8})\.", file.name)  # 8 digits: in IN1K-vit.h.14-300e.pth the 300e is not a hash
    if named and file.is_file():
        _compare(file, named[1])


def _check_cache(config: Mapping[str, Any]) -> None:
    """Raise `WeightsError` if the weights in the cache are damaged.

    By default, timm does not check hashes. The client of the hub names large files by their SHA-256 but does not check
    it when it reads them.
    """
    repo, _, revision = (config.get("hf_hub_id") or "").partition("@")
    if not repo and config.get("url"):
        check_hash(url_cache(config["url"]))
    for name in (config.get("hf_hub_filename"), *_HUB_FILES) if repo else ():
        cached = try_to_load_from_cache(repo, name, revision=revision or None) if name else None
        if isinstance(cached, str):
            check_blob(Path(cached))


def check_blob(cached: Path) -> None:
    """Raise `WeightsError` if a file in the cache of the hub's client has another SHA-256 than in its name."""
    blob = cached.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        _compare(blob, blob.name)


def _compare(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise WeightsError(
            f"weights are damaged in the cache (SHA-256 {actual[:8]}..., expected {expected[:8]}...); "
            f"delete this file, and they will be downloaded again: {file}"
        )


@contextlib.contextmanager
def quiet_downloads() -> Iterator[None]:
    """Hide the log messages of the hub's retries, and redirect output about downloads from stdout to stderr."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch prints a line when it downloads
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
