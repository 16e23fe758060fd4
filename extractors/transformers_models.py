"""Extractor of models of transformers: language models, models over pictures, and each tower of CLIP and the like."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from repsim.errors import Argument, Hint, InvalidInputError, Remedy, SampleError, WeightsError, reason
from repsim.extractors import hooks
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preparation import MASK, Preparation
from repsim.extractors.preprocessing import Preprocessing, prepare_pictures
from repsim.extractors.readouts import get_several
from repsim.extractors.repositories import PREFIX, Repository, locate
from repsim.extractors.samples.source import SampleSource
from repsim.extractors.text_controls import controls_of_text
from repsim.extractors.tokenized import SENTENCE_LIMIT, Tokenization, make_tokenization, read_tokenizer
from repsim.extractors.transformer_layers import find_inputs, stacks, transformer_presets
from repsim.extractors.transformer_weights import Loaded, load_model, quiet, require_transformers
from repsim.extractors.weights import suffix
from repsim.labels import TOKENS

_PADDING_ERROR = 1e-3
"""Largest relative difference of the values of a text alone and in a padded batch that is due to rounding."""
_SHORT = 512
"""Limit of tokens up to which arrays of all tokens are as long as the limit, whatever the data."""
_FULL_TEXTS = {"siglip", "siglip_text_model", "siglip2", "siglip2_text_model"}
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
    samples : SampleSource, optional
        The data. Of a model that reads long texts, their largest number of tokens is then the first axis of layers of
        tokens; otherwise it is the limit of the model.
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
        A file is missing, damaged or needs code of its repository, the hub is not reached, or the weights do not fit.
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
        samples: SampleSource | None = None,
        weights: str = "pretrained",
        seed: int = 0,
        options: ModelOptions | None = None,
        layers: str = "blocks",
        readout: str = "mean",
    ) -> None:
        get_several(readout)  # a typing error in the readout is reported before the download
        loaded = load_model(model, samples.modality if samples else modality, weights, seed, options)
        network = loaded.model
        tower = f"+{loaded.record['tower']}" if loaded.record["tower"] else ""
        prepared = _prepare_texts(loaded, options, samples) if loaded.tower == "text" else _prepare_pictures(loaded)
        firsts = [paths[0] for paths in stacks(network)]
        self.depends_on_padding = False
        """Whether values of real tokens change with the padding of a batch, so that each text has to be read alone."""
        with hooks.evaluating(network):
            try:
                sources = find_inputs(network, prepared.examples[0], prepared.forward, firsts)
                if loaded.tower == "text":
                    self.depends_on_padding = depends_on_padding(network, prepared)
            except Exception as error:
                name = f"{PREFIX}{loaded.repository.name}"
                raise InvalidInputError(
                    f"{name} cannot run on a batch of texts or pictures: {reason(error)}"
                ) from error
        self._inputs = {path: f"{path}.input" for path in firsts if path not in sources}
        self._stems = {**sources, **self._inputs}
        super().__init__(
            network,
            prepared,
            name=loaded.repository.label + tower + suffix(weights, seed, options),
            layers=layers,
            readout=readout,
            provenance={"extractor": "transformers", **loaded.record},
            notes=loaded.notes,
        )

    def _presets(self, trace: hooks.Trace) -> dict[str, list[str]]:
        return transformer_presets(self.model, trace, self._stems)

    def _classifiers(self) -> list[str]:
        return []


def check_name(model: str) -> None:
    """Check that ``model`` is a name of the hub or a folder with a model, without reading or downloading a file.

    Raises
    ------
    UnknownNameError, InvalidInputError
        There is no such folder, or the hub cannot have such a name.
    """
    locate(model)


def depends_on_padding(network: nn.Module, prepared: Preparation) -> bool:
    """Return whether a model gives other values to the real tokens of a text if its batch is padded.

    Some models do not mask the padding in all of their operations: Fourier transforms (FNet) and convolutions over
    tokens (ConvBERT) read it.
    """
    batch = prepared.examples[0]
    lengths = batch[MASK].sum(1)
    row, width = int(lengths.argmin()), int(lengths.min())
    if width == batch[MASK].shape[1]:
        return False
    alone = prepared.collate([batch["texts"][row]])
    with torch.no_grad():
        outputs = [hooks.tensors(prepared.forward(network, inputs)) for inputs in (batch, alone)]
    padded, single = outputs[0][0][row : row + 1, :width].double(), outputs[1][0][:, :width].double()
    if padded.ndim != 3 or padded.shape != single.shape:
        return False
    return bool((padded - single).norm() > _PADDING_ERROR * single.norm())


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


def _prepare_texts(loaded: Loaded, options: ModelOptions | None, samples: SampleSource | None) -> Preparation:
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
            words=_embeddings(network, name).num_embeddings,
            positions=positions_of(network, config),
            sentences=sentence_limit(loaded.repository),
            asked=asked,
            start=start,
            full=config.model_type in _FULL_TEXTS,
        )
        examples = made.examples()
        longest = _longest(made, samples)
    controls = controls_of_text(_embeddings(network, name), made.tokenizer, longest or 1)
    first = made.tokenizer.cls_token_id
    encoder = not (getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False))
    class_token = encoder and first is not None and bool((examples[0]["input_ids"][:, 0] == first).all())
    note = "texts are not cut"
    if made.limit is not None:
        note = f"texts are read up to {made.limit} tokens, the limit of {made.limited_by}"
    return Preparation(
        collate=made.batch,
        forward=TextForward(made),
        key=made.key,
        record=made.record(),
        notes=() if asked else (Hint(note, remedy=Remedy(Argument("max_length"), " sets another limit")),),
        examples=examples,
        modality="text",
        class_token=class_token,
        longest=longest,
        controls={key: control for key, control in controls.items() if longest is not None or key != TOKENS},
        lengths=made.lengths,
    )


def _embeddings(network: Any, name: str) -> Any:
    """Return the embedding of the tokens; raise `InvalidInputError` for a model without one, such as CANINE."""
    try:
        embeddings = network.get_input_embeddings()
    except NotImplementedError:
        embeddings = None
    if not hasattr(embeddings, "num_embeddings"):
        raise InvalidInputError(f"{name} has no embedding of tokens, so repsim cannot read it")
    return embeddings


def _longest(made: Tokenization, samples: SampleSource | None) -> int | None:
    """Return the largest number of tokens of a text that the model will read; None if it is not known.

    A limit of thousands of tokens says nothing about the data, and would make large arrays of tokens.
    """
    if samples is None or (made.limit is not None and made.limit <= _SHORT):
        return made.limit
    longest = max(made.lengths(_readable(samples)) or [0]) or None
    if longest is None:
        return made.limit
    return longest if made.limit is None else min(longest, made.limit)


def _readable(samples: SampleSource) -> list[str]:
    """Return the texts that can be read; the extraction reports the others, or leaves them out."""
    if not samples.indexable:
        return [text for _, text in samples.read(range(len(samples)))]
    texts: list[str] = []
    for row in range(len(samples)):
        try:
            texts.append(samples.load(row))
        except SampleError:
            continue
    return texts


@dataclass(frozen=True)
class TextForward:
    """Call of a model with the tensors of a batch of texts."""

    tokenization: Tokenization

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Return the output of the model."""
        return model(**self.tokenization.inputs(batch))


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
            raise WeightsError(f"the image processor of {name} cannot be read: {reason(error)}") from error
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
