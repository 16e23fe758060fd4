"""Samples of every kind, extracted by the real verb: killed, resumed and shared by torchrun, equal to the bit."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import repsim
from repsim.errors import InvalidInputError, SampleError

N = 48
MODULE = '''
"""A module that reads dictionaries of tokens, and the data of each kind for it."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import repsim
from repsim.stores import writer


class Texts(Dataset):
    def __init__(self):
        torch.manual_seed(5)
        self.items = [torch.randint(1, 40, (int(length),)) for length in torch.randint(2, 12, (48,))]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Texts().items)


def pad(items):
    ids = nn.utils.rnn.pad_sequence(items, batch_first=True)
    return {"ids": ids, "attention_mask": (ids > 0).long()}


def words(texts):
    return pad([torch.tensor([1 + hash_of(word) % 39 for word in text.split()]) for text in texts])


def hash_of(word):
    return sum(ord(letter) * 31**k for k, letter in enumerate(word))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))

    def forward(self, ids, attention_mask):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=attention_mask == 0)
        return {"last_hidden_state": x}


def open_data(kind, folder):
    """Return the data of a kind, and the further keywords of extract."""
    if kind == "loader":
        return DataLoader(Texts(), batch_size=5, collate_fn=pad), {}
    if kind == "stream":
        return DataLoader(Stream(), batch_size=5, collate_fn=pad), {}
    if kind == "datasets":
        return f"{folder}/saved", {"collate": words, "column": "text", "batch_size": 5}
    if kind == "webdataset":
        return f"{folder}/shard-{{0..1}}.tar", {"collate": words, "column": "txt", "batch_size": 5}
    return f"{folder}/table.parquet", {"collate": words, "column": "text", "batch_size": 5}


def main(kind, folder, out, kill_after=0):
    data, keywords = open_data(kind, folder)
    net = Net()
    calls = 0

    def forward(module, batch):
        nonlocal calls
        calls += 1
        if kill_after and calls > kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return module(**batch)

    forward.__qualname__ = "forward"
    if kill_after:
        writer.COMMIT_SECONDS = 0
    store = repsim.extract(net, data, out, forward=forward, name="net", progress=False, **keywords)
    assert "blocks.1" in store.layers, store.layers


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
'''


def sentences() -> list[str]:
    random = np.random.default_rng(1)
    words = ["red", "blue", "bird", "fish", "swims", "flies", "over", "under", "the", "sea", "hill", "slowly"]
    return [" ".join(random.choice(words, random.integers(2, 11))) for _ in range(N)]


def make_data(folder: Path) -> None:
    """Write the same texts as a parquet table, a folder of a data set, and two shards."""
    datasets, webdataset = pytest.importorskip("datasets"), pytest.importorskip("webdataset")
    pandas = pytest.importorskip("pandas")
    texts, ids = sentences(), [f"t{k:02d}" for k in range(N)]
    pandas.DataFrame({"id": ids, "text": texts}).to_parquet(folder / "table.parquet")
    datasets.Dataset.from_dict({"id": ids, "text": texts}).save_to_disk(str(folder / "saved"))
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"shard-{shard}.tar")) as writer:
            for k in range(shard * N // 2, (shard + 1) * N // 2):
                writer.write({"__key__": ids[k], "txt": texts[k]})


def run(script: Path, *words: Any, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, str(script)]
    if ranks > 1:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            str(script),
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*launch, *map(str, words)], capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def values(folder: Path) -> dict[str, Any]:
    with repsim.open_store(folder / "net.h5") as store:
        assert repsim.verify(store.path) == []
        return {**{layer: store[layer][:] for layer in store.layers}, "ids": np.array(list(store.sample_ids))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loader", "stream", "parquet", "datasets", "webdataset"])
def test_killed_resumed_and_shared_runs_are_equal_to_the_bit(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "work.py"
    script.write_text(textwrap.dedent(MODULE), encoding="utf-8")
    make_data(tmp_path)
    whole = run(script, kind, tmp_path, tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    expected = values(tmp_path / "whole")
    killed = run(script, kind, tmp_path, tmp_path / "killed", 6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "net.h5").exists()
    assert (tmp_path / "killed" / "net.h5.partial").exists()
    resumed = run(script, kind, tmp_path, tmp_path / "killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    shared = run(script, kind, tmp_path, tmp_path / "shared", 0, ranks=2)
    assert shared.returncode == 0, shared.stderr
    for folder in ("killed", "shared"):
        again = values(tmp_path / folder)
        assert again.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(again[key], array, err_msg=f"{folder} {key}")


@pytest.mark.slow
def test_kinds_of_the_same_texts_give_the_same_values(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(textwrap.dedent(MODULE), encoding="utf-8")
    make_data(tmp_path)
    stores = []
    for kind in ("parquet", "datasets", "webdataset"):
        done = run(script, kind, tmp_path, tmp_path / kind, 0)
        assert done.returncode == 0, done.stderr
        stores.append(values(tmp_path / kind))
    for other in stores[1:]:
        for key, array in stores[0].items():
            np.testing.assert_array_equal(other[key], array)


def test_pairs_give_stores_whose_ids_and_groups_agree(tmp_path: Path, pictures: Any) -> None:
    root = pictures(names=[f"{k}.png" for k in range(6)])
    lines = [
        {"id": f"{k}{part}", "image": f"{root.name}/{k}.png", "text": f"caption {part} of {k}"}
        for k in range(6)
        for part in "ab"
    ]
    table = root.parent / "pairs.jsonl"
    table.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    net = nn.Sequential(nn.Embedding(256, 8))

    def letters(texts: list[str]) -> dict[str, torch.Tensor]:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(list(text.encode())) for text in texts], batch_first=True)
        return {"ids": ids, "attention_mask": ids > 0}

    of_text = repsim.extract(
        net, str(table), tmp_path / "acts", column="text", forward=lambda module, batch: module(batch["ids"]),
        collate=letters, name="reader", layers="all",
    )  # fmt: skip
    of_image = repsim.extract("test_resnet", str(table), tmp_path / "acts", column="image", weights="random")
    assert of_text.sample_ids.ids == of_image.sample_ids.ids == tuple(line["id"] for line in lines)
    assert of_text.groups is not None
    assert of_image.groups is not None
    np.testing.assert_array_equal(of_text.groups, of_image.groups)
    assert of_text.groups.tolist() == [k for k in range(6) for _ in "ab"]
    assert (of_text.modality, of_image.modality) == ("text", "image")
    result = repsim.compare(of_text, of_image, "mutual_knn:k=3")
    assert np.isfinite(result["mutual_knn:k=3"]).all()


class Rows(IterableDataset[torch.Tensor]):
    """A stream of vectors."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(24.0).reshape(8, 3))


def test_blocks_of_a_stream_are_refused(tmp_path: Path) -> None:
    """Blocks are a random partition of the samples, and a stream has one order."""
    stream = Rows()
    with pytest.raises(InvalidInputError, match=r"gram:4 reads samples in a random order"):
        repsim.extract(
            nn.Sequential(nn.Linear(3, 2)), stream, tmp_path, name="net", layers="all", readout="gram:4", batch_size=4
        )


def test_samples_that_cannot_be_read_are_left_out_of_the_examples_of_a_module(tmp_path: Path) -> None:
    """A module is traced with the first samples; those that are left out are not among them."""
    texts = ["", "ab", "cd", "ef", "gh"]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options: dict[str, Any] = {
        "name": "net", "layers": "0", "transform": lambda text: torch.tensor([float(ord(letter)) for letter in text])
    }  # fmt: skip
    net = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(SampleError, match=r"texts.jsonl, line 1 is empty"):
        repsim.extract(net, table, tmp_path / "all", **options)
    assert repsim.extract(net, table, tmp_path / "acts", skip_bad=True, **options).sample_ids.ids == tuple("2345")
