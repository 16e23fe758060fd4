"""Load a model of transformers with its weights: pretrained, random, or from a file. No code of a repository is run.

Models over texts (encoders, decoders, encoder-decoders) and over pictures are read, and of a model with two towers, such
as CLIP, the one that the data are for. Weights are in float32 on the CPU, whatever the type in which they are stored.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import nn

from repsim.errors import (
    Argument,
    Hint,
    InvalidInputError,
    MissingExtraError,
    Part,
    Remedy,
    UnknownNameError,
    WeightsError,
    reason,
)
from repsim.extractors import hooks
from repsim.extractors.checkpoints import abbreviate, read_checkpoint
from repsim.extractors.fitting import format_kwargs, shapes_of
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preparation import Preparation
from repsim.extractors.preprocessing import Preprocessing, prepare_pictures
from repsim.extractors.readouts import get_several
from repsim.extractors.repositories import CONFIG, PREFIX, Repository, locate
from repsim.extractors.tokenized import (
    FAST,
    SENTENCE_LIMIT,
    SMALL_FILES,
    VOCABULARIES,
    Tokenization,
    make_tokenization,
    read_tokenizer,
)
from repsim.extractors.transformer_layers import find_inputs, stacks, transformer_presets
from repsim.extractors.weights import ALTERNATIVES, fingerprint, suffix
from repsim.labels import NOUNS

Tower = Literal["text", "vision"]
_INPUTS: Mapping[str, Tower] = {"input_ids": "text", "pixel_values": "vision"}
"""Main input of the models that are read -> the tower that reads it."""
_MODALITIES: Mapping[str, Tower] = {"text": "text", "image": "vision"}
_PICTURES = ("preprocessor_config.json", "processor_config.json")
_POOLER = "pooler"
_FOR_MODEL = {"use_safetensors", "attn_implementation"}
"""Entries of ``model_kwargs`` that are not entries of the configuration."""
_FULL_TEXTS = {"siglip", "siglip_text_model"}
"""Types of models that were trained on texts padded to one length, with the padding seen."""


class TransformersExtractor(ModuleExtractor):
    """Extractor of the layers of a model of transformers, or of one of its towers, for texts or for pictures.

    Texts are tokenized by the tokenizer of the model, cut to its number of tokens, and padded on the right; no value
    depends on the padding. Pictures are prepared by the image processor of the model.

    The preset ``blocks`` has the input of the first block, all blocks, and the norm after the last one: every entry of
    ``output_hidden_states``. Of an encoder-decoder it has those of both; the decoder reads the same text, shifted right
    by one token. Poolers and projections are layers, but not in this preset.

    Parameters
    ----------
    model : str
        ``hf/OWNER/NAME``, ``hf/NAME``, ``hf/NAME@REVISION``, or ``hf/./FOLDER``; the prefix may be left out.
    modality : {"text", "image"}, optional
        Modality of the data; by default what the model reads, and text for a model of two towers.
    weights : str
        ``pretrained``, ``random`` (from the configuration), or a ``.safetensors`` or ``.pth`` file.
    seed : int
        Seed of random weights.
    options : ModelOptions, optional
        ``max_length``, ``weights_key`` and ``weights_prefix`` of a file, and ``model_kwargs``: entries of the
        configuration, ``attn_implementation``, or ``use_safetensors=False``.
    layers, readout : str
        As in `ModuleExtractor`.

    Raises
    ------
    UnknownNameError
        A folder, layer or readout does not exist; the message suggests similar names.
    WeightsError
        A file is missing, damaged or needs code of its repository, the hub cannot be reached, or the weights do not fit.
    InvalidInputError
        The model does not read data of this modality or does not take an option, or no chosen layer has the readout.
    MissingExtraError
        transformers is not installed.
    """

    def __init__(
        self,
        model: str,
        modality: str | None = None,
        *,
        weights: str = "pretrained",
        seed: int = 0,
        options: ModelOptions | None = None,
        layers: str = "blocks",
        readout: str = "mean",
    ) -> None:
        get_several(readout)  # a typing error in the readout is reported before the download
        loaded = load_model(model, modality, weights, seed, options)
        network, label = loaded.model, loaded.repository.label
        prepared = _prepare_texts(loaded, options) if loaded.tower == "text" else _prepare_pictures(loaded)
        firsts = [paths[0] for paths in stacks(network)]
        with hooks.evaluating(network):
            sources = find_inputs(network, prepared.examples[0], prepared.forward, firsts)
        self._inputs = {path: f"{path}.input" for path in firsts if path not in sources}
        self._stems = {**sources, **self._inputs}
        super().__init__(
            network,
            prepared,
            name=label + (f"+{loaded.record['tower']}" if loaded.record["tower"] else "") + suffix(weights, seed, options),
            layers=layers,
            readout=readout,
            provenance={"extractor": "transformers", **loaded.record},
            notes=loaded.notes,
        )

    def _presets(self, trace: hooks.Trace) -> dict[str, list[str]]:
        return transformer_presets(self.model, trace, self._stems)

    def _classifiers(self) -> list[str]:
        return []


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


def check_name(model: str) -> None:
    """Check that ``model`` is a name of the hub or a folder with a model, without reading or downloading a file.

    Raises
    ------
    UnknownNameError, InvalidInputError
        There is no such folder, or the hub cannot have such a name.
    """
    locate(model)


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
        A file is missing, damaged or needs code of its repository, the hub cannot be reached, or the weights do not fit.
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
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = _build(repository.name, config, kwargs)
            record["seed"] = seed
        elif weights == "pretrained":
            model = _pretrained(repository, config, kwargs, record, notes)
        else:
            model = _from_file(repository, config, kwargs, Path(weights), options, record, notes)
            record |= {"weights": "file", "weights_file": Path(weights).name}
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


def positions_of(model: nn.Module, config: Any) -> int | None:
    """Return the number of positions that a model can give to tokens, or None if it has no limit.

    RoBERTa and its relatives do not use the first rows of their position embedding, up to that of the padding.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    unused = (
        module.padding_idx + 1
        for path, module in model.named_modules()
        if path.rpartition(".")[2] == "position_embeddings" and getattr(module, "padding_idx", None) is not None
    )
    return limit - next(unused, 0)


def sentence_limit(repository: Repository) -> int | None:
    """Return the number of tokens up to which the authors of a sentence-transformers model use it, if it is one."""
    path = repository.find(SENTENCE_LIMIT, needed=False)
    if path is None:
        return None
    try:
        limit = json.loads(path.read_text("utf-8")).get("max_seq_length")
    except (ValueError, AttributeError):
        return None
    return limit if isinstance(limit, int) else None


def _check_options(name: str, options: ModelOptions, weights: str) -> None:
    """Refuse options that models of transformers do not have."""
    options.check_weights(weights)
    pictures = replace(options, weights_key=None, weights_prefix=None, max_length=None, model_kwargs={})
    if pictures.chosen:
        raise InvalidInputError(*pictures.chosen, f": not for {name}; models of transformers take max_length, model_kwargs, and weights_key and weights_prefix of a "
            "file")
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
        raise WeightsError(f"{PREFIX}{repository.name} cannot be loaded: {_explain_config(path, error)}") from None
    if unknown := sorted(set(unused) & set(entries)):
        raise UnknownNameError("entry of the configuration", unknown[0], config.to_dict(), where=f"of {repository.name}")
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
    return f"transformers {require_transformers().__version__} has no models of type {content['model_type']!r}" if (
        "does not recognize this architecture" in str(error)
    ) else reason(error)


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


def _build(name: str, config: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return a model of a configuration, with random weights."""
    chosen = {key: value for key, value in kwargs.items() if key == "attn_implementation"}
    try:
        return require_transformers().AutoModel.from_config(
            config, trust_remote_code=False, dtype=torch.float32, **chosen
        )
    except Exception as error:
        entries = f" with {format_kwargs(kwargs)}" if kwargs else ""
        raise InvalidInputError(f"{PREFIX}{name} cannot be built{entries}: {reason(error)}") from None


def _pretrained(
    repository: Repository, config: Any, kwargs: Mapping[str, Any], record: dict[str, Any], notes: list[str]
) -> Any:
    """Return the model with the weights of its folder or repository."""
    safe = bool(kwargs.get("use_safetensors", True))
    stem = "model.safetensors" if safe else "pytorch_model.bin"
    try:
        first = repository.read(stem, f"{stem}.index.json")
    except WeightsError as error:
        if not safe or " has no file " not in error.problem:
            raise
        other = repository.find("pytorch_model.bin", needed=False) or repository.find(
            "pytorch_model.bin.index.json", needed=False
        )
        parts: list[Part] = [*ALTERNATIVES.parts]
        if other is not None:
            parts = ["its weights are pickles: ", Argument("model_kwargs", metavar="use_safetensors=False"), " reads them",
                     " without running code of them"]  # fmt: skip
        raise WeightsError(f"{PREFIX}{repository.name} has no weights as {stem}", remedy=Remedy(*parts)) from None
    if first.name.endswith(".index.json"):
        for shard in _shards(first):
            repository.read(shard)
    try:
        model, info = require_transformers().AutoModel.from_pretrained(
            first.parent,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **{"use_safetensors": safe, **kwargs},
        )
    except Exception as error:
        raise _misfit(repository.name, config, kwargs, first, error) from None
    return _checked(repository.name, model, info, record, notes, first.name)


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


def _misfit(name: str, config: Any, kwargs: Mapping[str, Any], file: Path, error: Exception) -> WeightsError:
    """Return the error for weights that could not be loaded; for tensors of other shapes it names one."""
    why = reason(error)
    if "ignore_mismatched_sizes" in str(error):
        with contextlib.suppress(Exception):
            model, info = require_transformers().AutoModel.from_pretrained(
                file.parent, config=config, local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **kwargs,
            )  # fmt: skip
            why = _other_shapes(info)
    return WeightsError(f"the weights of {PREFIX}{name} ({file.name}) cannot be loaded: {why}")


def _other_shapes(info: Mapping[str, Any]) -> str:
    """Return a text with the first of the tensors whose shapes differ."""
    key, theirs, own = sorted(info["mismatched_keys"])[0]
    more = f" and {len(info['mismatched_keys']) - 1} more" if len(info["mismatched_keys"]) > 1 else ""
    return f"{key} has shape {tuple(theirs)} in the file and {tuple(own)} in the network{more}"


def _from_file(
    repository: Repository,
    config: Any,
    kwargs: Mapping[str, Any],
    path: Path,
    options: ModelOptions,
    record: dict[str, Any],
    notes: list[str],
) -> Any:
    """Return a model of the configuration with the tensors of a file, whose names may begin with that of the base."""
    contents = read_checkpoint(path, key=options.weights_key, prefix=options.weights_prefix)
    with torch.device("meta"):
        skeleton = _build(repository.name, config, kwargs)
    own = list(shapes_of(skeleton))
    base = f"{skeleton.base_model_prefix}."
    if base != "." and any(f".{base}" in f".{key}" for key in contents.tensors):
        own = [base + key for key in own]
    checkpoint = contents.fit(own)
    record.update(checkpoint.record)
    notes += checkpoint.notes
    chosen = {key: value for key, value in kwargs.items() if key == "attn_implementation"}
    model, info = type(skeleton).from_pretrained(
        None,
        config=config,
        state_dict=checkpoint.state,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **chosen,
    )
    if info["mismatched_keys"]:
        raise WeightsError(f"{checkpoint.name} does not fit {PREFIX}{repository.name}: {_other_shapes(info)}")
    return _checked(repository.name, model, info, record, notes, checkpoint.name)


def _checked(
    name: str,
    model: Any,
    info: Mapping[str, Any],
    record: dict[str, Any],
    notes: list[str],
    source: str,
) -> Any:
    """Return the model without a pooler that has no weights; raise `WeightsError` if other weights are missing."""
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing and all(key.startswith(f"{_POOLER}.") for key in missing) and hasattr(model, _POOLER):
        model.pooler = None  # its weights would be random
        record["left_out"] = _POOLER
        notes.append(f"built without its {_POOLER}, of which {source} has no weights")
        missing = []
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} tensors of {PREFIX}{name}, which would be random: {abbreviate(missing, 3)}"
        )
    if unused:
        record["weights_left_out"] = len(unused)
        notes.append(f"weights: {len(unused)} tensors of heads that the base model does not have are left out: "
                     f"{abbreviate(unused, 3)}")  # fmt: skip
    return model


def _fetch_tokenizer(repository: Repository) -> None:
    """Download the files of the tokenizer, if they are not on this machine."""
    if repository.find(FAST, needed=False) is None:
        repository.find_all(VOCABULARIES)
    repository.find_all(SMALL_FILES)


def _prepare_texts(loaded: Loaded, options: ModelOptions | None) -> Preparation:
    """Return the preparation of texts for a model, with the limit on their number of tokens."""
    network: Any = loaded.model
    config, name = loaded.config, f"{PREFIX}{loaded.repository.name}"
    folder = loaded.repository.folder
    assert folder is not None, "the configuration was read"
    asked = options.max_length if options else None
    start = None
    if getattr(config, "is_encoder_decoder", False):
        start = getattr(config, "decoder_start_token_id", None)
        start = config.pad_token_id if start is None else start
    with quiet():
        made = make_tokenization(
            read_tokenizer(folder, name),
            name=name,
            words=_embedding(network).num_embeddings,
            positions=positions_of(network, config),
            sentences=sentence_limit(loaded.repository),
            asked=asked,
            start=start,
            full=config.model_type in _FULL_TEXTS,
        )
        examples = made.examples()
    first = made.tokenizer.cls_token_id
    encoder = not (getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False))
    class_token = encoder and first is not None and bool((examples[0]["input_ids"][:, 0] == first).all())
    note = f"texts are read up to {made.limit} tokens, the limit of {made.limited_by}" if made.limit else "texts are not cut"
    return Preparation(
        collate=made.batch,
        forward=TextForward(made),
        key=made.key,
        record=made.record(),
        notes=() if asked else (Hint(note, remedy=Remedy(Argument("max_length"), " sets another limit")),),
        examples=examples,
        modality="text",
        class_token=class_token,
        longest=made.limit,
        lengths=made.lengths,
    )


@dataclass(frozen=True)
class TextForward:
    """Call of a model with the tensors of a batch of texts."""

    tokenization: Tokenization

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Return the output of the model."""
        return model(**self.tokenization.inputs(batch))


def _embedding(network: Any) -> Any:
    """Return the embedding of the tokens."""
    tower = network.get_submodule("text_model") if isinstance(network, TowerModel) else network
    return tower.get_input_embeddings()


def _prepare_pictures(loaded: Loaded) -> Preparation:
    """Return the preparation of pictures by the image processor of the model."""
    network: Any = loaded.model
    folder, name = loaded.repository.folder, f"{PREFIX}{loaded.repository.name}"
    with quiet():
        try:
            processor = require_transformers().AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except Exception as error:
            raise WeightsError(f"the image processor of {name} cannot be read: {reason(error)}") from None
    names = [path.rpartition(".")[2] for path, _ in network.named_parameters()]
    network.has_class_token = any(part in {"cls_token", "class_embedding"} for part in names)
    network.num_prefix_tokens = (
        network.has_class_token
        + ("distillation_token" in names)
        + (getattr(loaded.config, "num_register_tokens", 0) if "register_tokens" in names else 0)
    )
    entries = json.loads(json.dumps(processor.to_dict(), default=str))
    record = {"preprocessing": {"processor": type(processor).__name__, **entries}}
    key = f"transformers {json.dumps(record, sort_keys=True)}"
    prepared = prepare_pictures(network, Preprocessing(ProcessorTransform(processor), key, record))
    return replace(prepared, forward=call_with_pixels)


@dataclass(frozen=True)
class ProcessorTransform:
    """Preparation of one picture by an image processor of transformers."""

    processor: Any

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Return the prepared picture, (3, H, W)."""
        pixels: torch.Tensor = self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels


def call_with_pixels(model: nn.Module, pixels: torch.Tensor) -> Any:
    """Call a model of transformers with a batch of pictures."""
    return model(pixel_values=pixels)
