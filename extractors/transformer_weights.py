"""Load a model of transformers with its weights: pretrained, random, or from a file. No code of a repository is run.

Models over texts (encoders, decoders, encoder-decoders) and over pictures are read, and of a model with two towers,
such as CLIP, the one that the data are for. Weights are in float32 on the CPU, whatever their type in the file.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from repsim.errors import (
    Argument,
    InvalidInputError,
    MissingExtraError,
    Remedy,
    UnknownNameError,
    WeightsError,
    reason,
)
from repsim.extractors.checkpoints import abbreviate, read_checkpoint
from repsim.extractors.fitting import format_kwargs, shapes_of
from repsim.extractors.options import ModelOptions
from repsim.extractors.repositories import CONFIG, PREFIX, Repository, locate
from repsim.extractors.tokenized import (
    FAST,
    SMALL_FILES,
    VOCABULARIES,
)
from repsim.extractors.weights import ALTERNATIVES, fingerprint
from repsim.labels import NOUNS

Tower = Literal["text", "vision"]
_INPUTS: Mapping[str, Tower] = {"input_ids": "text", "pixel_values": "vision"}
"""Main input of the models that are read -> the tower that reads it."""
_MODALITIES: Mapping[str, Tower] = {"text": "text", "image": "vision"}
_PICTURES = ("preprocessor_config.json", "processor_config.json")
_POOLER = "pooler"
_SAFE, _PICKLES, _INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
"""Names of files of weights, and the end of the name of a list of several."""
_FOR_MODEL = {"use_safetensors", "attn_implementation"}
"""Entries of ``model_kwargs`` that are not entries of the configuration."""


class Loaded(NamedTuple):
    """A model with its weights, in eval mode on the CPU, and what belongs to it."""

    model: nn.Module
    config: Any
    """Configuration of what is read: of the model, or of its tower."""
    tower: Tower
    repository: Repository
    record: dict[str, Any]
    """Entries about the weights for the provenance."""
    notes: list[str]
    """Messages for the user about choices that were made."""


def require_transformers() -> Any:
    """Return the library; raise `MissingExtraError` if it is not installed."""
    try:
        import transformers  # noqa: PLC0415 - takes seconds, and is installed with the extra only
    except ImportError:
        raise MissingExtraError(f"a model of {PREFIX}...", "transformers", extra="text") from None
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide messages and progress bars of transformers; what matters in them is in the notes."""
    logging = require_transformers().logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_model(
    name: str,
    modality: str | None = None,
    weights: str = "pretrained",
    seed: int = 0,
    options: ModelOptions | None = None,
) -> Loaded:
    """Return a model of transformers in eval mode on the CPU.

    Parameters
    ----------
    name : str
        ``hf/OWNER/NAME``, ``hf/NAME@REVISION``, or ``hf/./FOLDER`` (`repsim.extractors.repositories.locate`).
    modality : str, optional
        Modality of the data, ``text`` or ``image``: it decides which tower of a model with two is read. By default what
        the model reads, and text for a model of two towers.
    weights : str
        ``pretrained``, ``random`` (from the configuration), or a ``.safetensors`` or ``.pth`` file.
    seed : int
        Seed of random weights.
    options : ModelOptions, optional
        Choice of the weights in a file, and ``model_kwargs``: entries of the configuration, ``attn_implementation``,
        or ``use_safetensors=False`` for weights that are stored as pickles.

    Raises
    ------
    WeightsError
        A file is missing, damaged or needs code of its repository, the hub is not reached, or the weights do not fit.
    InvalidInputError
        The model does not read data of this modality, or does not take one of the options.
    MissingExtraError
        transformers is not installed.
    """
    options = options or ModelOptions()
    _check_options(name, options, weights)
    repository = locate(name)
    notes = list(repository.notes)
    with quiet():
        config, kwargs = _read_config(repository, options)
        tower = _choose_tower(repository.name, config, modality)
        record: dict[str, Any] = {
            "transformers_name": repository.name,
            "model_type": config.model_type,
            "weights": weights,
            "attention": "",
            "transformers_version": require_transformers().__version__,
        }
        loading = _Loading(repository, config, kwargs, record, notes)
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = loading.build()
            record["seed"] = seed
        elif weights == "pretrained":
            model = loading.pretrained()
        else:
            model = loading.from_file(Path(weights), options)
        if tower == "text":
            _fetch_tokenizer(repository)
        else:
            repository.find_all(_PICTURES)
    model.config.use_cache = False  # one pass over a text needs no cache of keys and values
    record["attention"] = getattr(model.config, "_attn_implementation", None) or "eager"
    if repository.revision:
        record["revision"] = repository.revision
    if options.model_kwargs:
        record["model_kwargs"] = dict(options.model_kwargs)
    two = hasattr(config, "text_config") and hasattr(config, "vision_config")
    if two:
        _check_towers(repository.name, model, tower)
        model, config = TowerModel(model, tower), getattr(config, f"{tower}_config")
    record["architecture"] = architecture_of(config)
    record["tower"] = tower if two else ""
    record["weights_sha256"] = fingerprint(model)
    return Loaded(model.eval(), config, tower, repository, record, notes)


def _check_towers(name: str, model: Any, tower: Tower) -> None:
    """Raise `InvalidInputError` unless a model with two inputs has a network for each, as CLIP and SigLIP have."""
    if not all(hasattr(model, f"{part}_model") for part in ("text", "vision")):
        raise InvalidInputError(f"{PREFIX}{name} reads texts and pictures in one network, so it has no {tower} tower")


class TowerModel(nn.Module):
    """One tower of a model such as CLIP, with the projection to the space that both towers share, if there is one.

    The modules keep their names: ``text_model``, ``text_projection``, ``vision_model``, ``visual_projection``.
    """

    def __init__(self, model: Any, tower: Tower) -> None:
        super().__init__()
        self.config = getattr(model.config, f"{tower}_config")
        self._tower = f"{tower}_model"
        self._projection = "text_projection" if tower == "text" else "visual_projection"
        self.add_module(self._tower, getattr(model, self._tower))
        if isinstance(projection := getattr(model, self._projection, None), nn.Module):
            self.add_module(self._projection, projection)

    def get_input_embeddings(self) -> Any:
        """Return the embedding of the tokens of the tower over texts."""
        tower: Any = self.get_submodule(self._tower)
        return tower.get_input_embeddings()

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Return the outputs of the tower, with the projection (b, p) of the pooled one if the model has it."""
        outputs = dict(self.get_submodule(self._tower)(**inputs))
        if self._projection in self._modules:
            outputs["projection"] = self.get_submodule(self._projection)(outputs["pooler_output"])
        return outputs


def architecture_of(config: Any) -> str:
    """Return the design and the size of a model: its type, the number of blocks, and their width.

    Networks of one architecture can be compared with the same untrained networks.
    """
    kind = config.model_type.removesuffix("_model")
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    return f"{kind}-{layers}x{width}" if layers and width else kind


def _check_options(name: str, options: ModelOptions, weights: str) -> None:
    """Refuse options that models of transformers do not have."""
    options.check_weights(weights)
    others = replace(options, weights_key=None, weights_prefix=None, max_length=None, model_kwargs={})
    if others.chosen:
        raise InvalidInputError(
            *others.chosen,
            f": not for {name}; models of transformers take max_length, model_kwargs, and weights_key and "
            "weights_prefix of a file",
        )
    if refused := {"trust_remote_code", "code_revision"} & set(options.model_kwargs):
        raise InvalidInputError(f"{min(refused)}: repsim runs no code of a repository")


def _read_config(repository: Repository, options: ModelOptions) -> tuple[Any, dict[str, Any]]:
    """Return the configuration with the entries of the user, and the arguments that are for the model."""
    path = repository.read(CONFIG)
    entries = {key: value for key, value in options.model_kwargs.items() if key not in _FOR_MODEL}
    try:
        config, unused = require_transformers().AutoConfig.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False, return_unused_kwargs=True, **entries
        )
    except Exception as error:
        raise WeightsError(f"{PREFIX}{repository.name} cannot be loaded: {_explain_config(path, error)}") from error
    if unknown := sorted(set(unused) & set(entries)):
        where = f"of {repository.name}"
        raise UnknownNameError("entry of the configuration", unknown[0], config.to_dict(), where=where)
    return config, {key: value for key, value in options.model_kwargs.items() if key in _FOR_MODEL}


def _explain_config(path: Path, error: Exception) -> str:
    """Return why a configuration cannot be used, in one line."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        return f"its {CONFIG} is not valid JSON"
    if not isinstance(content, dict) or "model_type" not in content:
        return f"its {CONFIG} names no model_type, so it is no model of transformers"
    if "auto_map" in content:
        return "it needs code of its repository, and repsim runs none"
    if "does not recognize this architecture" in str(error):
        return f"transformers {require_transformers().__version__} has no models of type {content['model_type']!r}"
    return reason(error)


def _choose_tower(name: str, config: Any, modality: str | None) -> Tower:
    """Return the tower that reads data of a modality; raise `InvalidInputError` if the model has none."""
    inputs = _main_input(name, config)
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        towers: list[Tower] = ["text", "vision"]
    elif inputs in _INPUTS:
        towers = [_INPUTS[inputs]]
    else:
        raise InvalidInputError(f"{PREFIX}{name} takes {inputs}; repsim reads models over texts and over pictures")
    if modality is None:
        return towers[0]
    if (wanted := _MODALITIES.get(modality)) not in towers:
        words = {"text": "texts", "vision": "pictures"}
        raise InvalidInputError(
            f"{PREFIX}{name} reads {' or '.join(words[tower] for tower in towers)}, and the data are "
            f"{NOUNS.get(modality, NOUNS['other'])[1]}"
        )
    assert wanted is not None, "a tower of the model"
    return wanted


def _main_input(name: str, config: Any) -> str:
    """Return the name of the main input of a model."""
    mapping = require_transformers().AutoModel._model_mapping
    if type(config) not in mapping:
        raise InvalidInputError(f"{PREFIX}{name}: models of type {config.model_type} have no layers that can be read")
    kind = mapping[type(config)]
    kinds = kind if isinstance(kind, tuple | list) else [kind]
    return str(kinds[0].main_input_name)


@dataclass
class _Loading:
    """Weights of one model while they are loaded, with the record and the notes about them."""

    repository: Repository
    config: Any
    kwargs: Mapping[str, Any]
    """Arguments for the model: ``attn_implementation`` and ``use_safetensors``."""
    record: dict[str, Any]
    notes: list[str]

    @property
    def name(self) -> str:
        """Name of the model, for messages."""
        return PREFIX + self.repository.name

    @property
    def _attention(self) -> dict[str, Any]:
        return {key: value for key, value in self.kwargs.items() if key == "attn_implementation"}

    def build(self) -> Any:
        """Return a model of the configuration, with random weights."""
        try:
            return require_transformers().AutoModel.from_config(
                self.config, trust_remote_code=False, dtype=torch.float32, **self._attention
            )
        except Exception as error:
            entries = f" with {format_kwargs(self.kwargs)}" if self.kwargs else ""
            raise InvalidInputError(f"{self.name} cannot be built{entries}: {reason(error)}") from error

    def pretrained(self) -> Any:
        """Return the model with the weights of its folder or repository."""
        safe = bool(self.kwargs.get("use_safetensors", True))
        file = self._weights(_SAFE if safe else _PICKLES)
        if file is None:
            kind = _SAFE if safe else _PICKLES
            raise WeightsError(f"{self.name} has no weights as {kind}", remedy=self._other_weights())
        if file.name.endswith(_INDEX):
            for shard in _shards(file):
                self.repository.read(shard)
        arguments = {
            "config": self.config, "local_files_only": True, "trust_remote_code": False, "dtype": torch.float32,
            "output_loading_info": True, "use_safetensors": safe, **self._attention,
        }  # fmt: skip
        load = require_transformers().AutoModel.from_pretrained
        try:
            # tensors of other shapes are an error below, which names one
            model, info = load(file.parent, ignore_mismatched_sizes=True, **arguments)
        except Exception as error:
            raise WeightsError(f"the weights of {self.name} ({file.name}) cannot be loaded: {reason(error)}") from error
        return self._checked(model, info, file.name)

    def from_file(self, path: Path, options: ModelOptions) -> Any:
        """Return the model with the tensors of a file, whose names may begin with that of the base model."""
        contents = read_checkpoint(path, key=options.weights_key, prefix=options.weights_prefix)
        with torch.device("meta"):
            skeleton = self.build()
        own = list(shapes_of(skeleton))
        base = f"{skeleton.base_model_prefix}."
        if base != "." and any(f".{base}" in f".{key}" for key in contents.tensors):
            own = [base + key for key in own]
        checkpoint = contents.fit(own)
        self.record |= {**checkpoint.record, "weights": "file", "weights_file": path.name}
        self.notes += checkpoint.notes
        model, info = type(skeleton).from_pretrained(
            None,
            config=self.config,
            state_dict=checkpoint.state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **self._attention,
        )
        return self._checked(model, info, checkpoint.name)

    def _weights(self, name: str) -> Path | None:
        """Return the file of weights, or the list of several files, if there is one."""
        return self.repository.find(name) or self.repository.find(name + _INDEX, needed=False)

    def _other_weights(self) -> Remedy:
        """Return the remedy for missing weights: to allow pickles if there are some, or else other weights."""
        if any(self.repository.find(name, needed=False) for name in (_PICKLES, _PICKLES + _INDEX)):
            asked = Argument("model_kwargs", metavar="use_safetensors=False")
            return Remedy("it has pickles: ", asked, " reads them, without running code in them")
        return ALTERNATIVES

    def _checked(self, model: Any, info: Mapping[str, Any], source: str) -> Any:
        """Return the model without a pooler that has no weights.

        Raises
        ------
        WeightsError
            Other tensors are missing, or have other shapes: transformers would make them random.
        """
        if wrong := sorted(info["mismatched_keys"]):
            key, theirs, own = wrong[0]
            raise WeightsError(
                f"{source} does not fit {self.name}: {key} has shape {tuple(theirs)} in the file and {tuple(own)} in "
                f"the network{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}"
            )
        missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing and all(key.startswith(f"{_POOLER}.") for key in missing) and hasattr(model, _POOLER):
            model.pooler = None
            self.record["left_out"] = _POOLER
            self.notes.append(f"built without its {_POOLER}, of which {source} has no weights")
            missing = []
        if missing:
            raise WeightsError(
                f"{source} lacks {len(missing)} tensors of {self.name}, which would be random: {abbreviate(missing, 3)}"
            )
        if unused:
            self.record["weights_left_out"] = len(unused)
            self.notes.append(
                f"weights: {len(unused)} tensors that the base model does not have are left out: "
                f"{abbreviate(unused, 3)}"
            )
        return model


def _shards(index: Path) -> list[str]:
    """Return the names of the files of weights that an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index.name} is not a list of weights in several files") from None
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise WeightsError(f"{index.name} names a file outside of its folder: {name!r}")
    return names


def _fetch_tokenizer(repository: Repository) -> None:
    """Download the files of the tokenizer, if they are not on this machine."""
    if repository.find(FAST, needed=False) is None:
        repository.find_all(VOCABULARIES)
    repository.find_all(SMALL_FILES)
