"""Time one extraction of texts in a process of its own: read settings as JSON, print measurements as one line of JSON.

All programs get the same texts and the same encoder with random weights, of the size of MiniLM: 6 blocks of width 384.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from extraction_worker import Clock
from machine_rates import peak_mib
from tokenizers import Tokenizer, models, pre_tokenizers, processors


@dataclass(frozen=True)
class Settings:
    """Settings of one run. ``folder`` is made by `make_folder`, ``out`` is the output folder."""

    contender: str
    folder: str
    out: str
    batch_size: int = 32
    device: str = "cpu"


def make_folder(folder: Path, texts: int, *, words: int = 5000, **sizes: int) -> Path:
    """Write the encoder, its tokenizer, and texts of 4 to 40 words; most are short, as captions are."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{k}" for k in range(words))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(vocabulary)}, unk_token=vocabulary[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    minilm = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **{**minilm, **sizes})).save_pretrained(
        folder
    )
    rng = np.random.default_rng(0)
    lengths = (4 + rng.gamma(2, 5, texts)).astype(int).clip(max=40)
    lines = [" ".join(f"word{k}" for k in rng.integers(0, words, length)) for length in lengths]
    (folder / "texts.txt").write_text("\n".join(lines))
    return folder


def bare(settings: Settings) -> dict[str, Any]:
    """Tokenize, sort by length, and compute the masked mean of the last layer, batch by batch."""
    clock = Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.folder)
    model = transformers.AutoModel.from_pretrained(settings.folder).to(settings.device).eval()
    clock.mark()
    texts = (Path(settings.folder) / "texts.txt").read_text().splitlines()
    ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    order = sorted(range(len(texts)), key=lambda row: -len(ids[row]))
    means = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(texts), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(settings.device)
        with torch.no_grad():
            tokens = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        means[rows] = ((tokens * mask).sum(1) / mask.sum(1)).cpu()
    np.save(Path(settings.out) / "means.npy", means.numpy())
    return clock.result(len(texts), 0, 0)


def repsim(settings: Settings, layers: str = "encoder.layer.5") -> dict[str, Any]:
    """Run ``repsim extract hf/./FOLDER --layers ... --readout mean``, with the controls that a store of texts has."""
    from repsim.extraction import Extraction, choose_samples, choose_stream  # noqa: PLC0415
    from repsim.extractors import open_samples  # noqa: PLC0415
    from repsim.extractors.transformers_models import TransformersExtractor  # noqa: PLC0415

    clock = Clock()
    source = open_samples(str(Path(settings.folder) / "texts.txt"))
    extractor = TransformersExtractor(f"hf/{settings.folder}", samples=source, layers=layers)
    clock.mark()
    samples = choose_samples(source)
    how = choose_stream(
        samples, readout="mean", batch_size=settings.batch_size, workers=None, device=settings.device, amp=False
    )
    job = Extraction(extractor, samples, Path(settings.out), how)
    with job.run() as store:
        result = clock.result(len(store), 0, 0)
    return result | {"layers": len(job.extractor.readouts), "bytes": job.path.stat().st_size}


def repsim_blocks(settings: Settings) -> dict[str, Any]:
    """Run the same with all blocks."""
    return repsim(settings, "blocks")


CONTENDERS = {"bare": bare, "repsim": repsim, "repsim, all blocks": repsim_blocks}

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    run_settings = Settings(**json.loads(sys.argv[1]))
    measured = CONTENDERS[run_settings.contender](run_settings)
    measured["mib"] = peak_mib()
    print(json.dumps(measured))
