"""Folders with small transformers and tokenizers, as ``save_pretrained`` writes them; weights are random."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from repsim.extractors.transformer_weights import quiet

FAST: Any = transformers.PreTrainedTokenizerFast
WORDS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "a", "short", "words", "and", "of", "more",
    "them", "dog", "cat", "runs", "the", "red", "over", "big", "small", ".", ",",
)  # fmt: skip
TEXTS = (
    "the cat runs",
    "the big red dog runs over the small cat , and the cat runs over nine of them .",
    "a dog",
    "one two three four five six",
    "red",
    "the small words and more words",
    "seven eight nine of them",
    "big dog , small cat",
)
"""Texts of 1 to 18 words."""
_SIZES = MappingProxyType(
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
)


def word_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of words with the special tokens of BERT."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]"}  # fmt: skip
    return FAST(tokenizer_object=tokenizer, **special, **options)


def byte_tokenizer(*, ends: bool = False, **options: Any) -> Any:
    """Return a byte-pair tokenizer without special tokens, or with one before and after the text; it has no padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
        )
    special = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    return FAST(tokenizer_object=tokenizer, padding_side="left", **special, **options)


def configuration(kind: str, **changes: Any) -> Any:
    """Return the configuration of a small model."""
    tower = dict(_SIZES)
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    words = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text, vision = {**tower, **words, "max_position_embeddings": 40}, {**tower, "image_size": 32, "patch_size": 8}
    bert = {**tower, "vocab_size": 40, "max_position_embeddings": 40}
    configurations: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        "bert": ("BertConfig", bert),
        "roberta": ("RobertaConfig", {**bert, "pad_token_id": 0, "max_position_embeddings": 41}),
        "mpnet": ("MPNetConfig", {**bert, "pad_token_id": 1, "max_position_embeddings": 42}),
        "distilbert": ("DistilBertConfig", {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2,
                                            "hidden_dim": 32}),
        "gpt2": ("GPT2Config", {**words, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 200}),
        "llama": ("LlamaConfig", {**tower, **words, "max_position_embeddings": 200}),
        "opt": ("OPTConfig", {**words, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                              "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 200}),
        "gpt_neox": ("GPTNeoXConfig", {**tower, **words, "max_position_embeddings": 200}),
        "t5": ("T5Config", {**words, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32,
                            "decoder_start_token_id": 0}),
        "bart": ("BartConfig", {**words, **encoder, **decoder, "d_model": 16, "decoder_start_token_id": 1,
                                "max_position_embeddings": 200, "forced_eos_token_id": None}),
        "gpt_neo": ("GPTNeoConfig", {**words, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
                                     "attention_types": [[["global", "local"], 1]], "window_size": 4}),
        "fnet": ("FNetConfig", {**words, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}),
        "canine": ("CanineConfig", {**tower, "max_position_embeddings": 256, "num_hash_buckets": 50,
                                    "local_transformer_stride": 8, "downsampling_rate": 4}),
        "clip": ("CLIPConfig", {"text_config": text, "vision_config": vision, "projection_dim": 8}),
        "siglip": ("SiglipConfig", {"text_config": text, "vision_config": vision}),
        "vit": ("ViTConfig", vision),
        "dinov2": ("Dinov2Config", {**vision, "image_size": 28, "patch_size": 14}),
    }  # fmt: skip
    name, arguments = configurations[kind]
    return getattr(transformers, name)(**{**arguments, **changes})


def make_folder(
    folder: Path, kind: str, *, seed: int = 0, tokenizer: Any = None, model: Any = None, **changes: Any
) -> Path:
    """Write a small model with its tokenizer, its preparation of pictures, or both, and return the folder."""
    with quiet():
        config = configuration(kind, **changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = (model or transformers.AutoModel.from_config)(config)
            for weight in network.parameters():  # norms of an untrained network are 1 and 0, and hide errors
                torch.nn.init.normal_(weight, std=0.3)
        network.save_pretrained(folder)
        if kind in {"clip", "siglip", "vit", "dinov2"}:
            size = 28 if kind == "dinov2" else 32
            transformers.ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
        if kind not in {"vit", "dinov2"}:
            bert = kind in {"bert", "roberta", "mpnet", "distilbert"}
            ends = kind in {"clip", "siglip", "t5", "bart"}
            (tokenizer or (word_tokenizer() if bert else byte_tokenizer(ends=ends))).save_pretrained(folder)
    return folder
