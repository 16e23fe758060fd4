"""Test which spans of blocks are most alike before and after, and that skipping them is measured, not assumed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import repsim
from repsim.engine.uncertainty import jackknife
from repsim.errors import InvalidInputError
from repsim.extractors.factory import make_extractor
from repsim.extractors.samples.opening import open_images
from repsim.figures import plot_spans
from repsim.stores.store import ActivationStore
from tests.commands import calls


@pytest.fixture
def network(tmp_path: Path, rng: np.random.Generator) -> ActivationStore:
    """Make a network of five layers: the second and third block change little, the first much, the last its width."""
    stem, other = rng.normal(size=(80, 10)), rng.normal(size=(80, 10))
    layers = {"stem": stem, "block1": other, "block2": other + 0.1 * stem, "block3": other + 0.3 * stem}
    layers["block4"] = (other + stem)[:, :7]
    return repsim.write_store(tmp_path / "net.h5", layers, model="net", source="photos", groups=None)


@pytest.mark.slow
def test_every_span_is_compared_by_the_layers_around_it(network: ActivationStore) -> None:
    spans = repsim.removable_spans(network)
    names = list(network.layers)
    assert len(spans) == 4 + 3 + 2 + 1
    rows: Any = spans.itertuples()
    for span in rows:
        first, last = names.index(span.first), names.index(span.last)
        assert (span.before, span.after, last - first + 1) == (names[first - 1], names[last], span.k)
        x, y = network[span.before][:], network[span.after][:]
        assert span.similarity == pytest.approx(repsim.similarity(x, y), abs=1e-9)
        left_out = [repsim.similarity(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(len(x))]
        interval = jackknife(span.similarity, left_out)
        assert [span.low, span.high] == pytest.approx([float(interval.low), float(interval.high)], abs=1e-6)
        if x.shape != y.shape:
            assert np.isnan([span.angular_distance, span.block_influence]).all()
            continue
        cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)]
        assert span.angular_distance == pytest.approx(np.mean([np.arccos(c) / np.pi for c in cosines]))
        assert span.block_influence == pytest.approx(np.mean([1 - c for c in cosines]))
    best = spans[spans["best"]]
    assert best["k"].tolist() == [1, 2, 3, 4]
    assert best["first"].tolist()[:2] == ["block2", "block2"]
    only = repsim.removable_spans(network.path, 2)
    pd.testing.assert_frame_equal(only, spans[spans["k"] == 2].reset_index(drop=True))


def test_a_distance_is_best_where_it_is_smallest_and_has_no_interval(network: ActivationStore) -> None:
    spans = repsim.removable_spans(network, 1, "procrustes")
    assert spans[spans["best"]]["similarity"].item() == spans["similarity"].min()
    assert np.isnan(spans[["low", "high"]]).all(None)


def test_groups_are_left_out_as_wholes(tmp_path: Path, rng: np.random.Generator) -> None:
    """Ten scenes of six frames: layers that share nothing are unrelated, and the interval has ten units."""
    scene = np.repeat(np.arange(20), 6)
    x, y = (rng.normal(size=(20, 8))[scene] + rng.normal(size=(120, 8)) / 3 for _ in range(2))
    layers = {"a": x, "b": y}
    grouped = repsim.removable_spans(repsim.write_store(tmp_path / "g.h5", layers, model="g", groups=scene))
    single = repsim.removable_spans(repsim.write_store(tmp_path / "s.h5", layers, model="s"))
    assert grouped.attrs["groups"] == 20
    assert abs(grouped["similarity"].item()) < single["similarity"].item()
    widths = [(frame["high"] - frame["low"]).item() for frame in (grouped, single)]
    assert widths[0] > 1.3 * widths[1]
    expected = repsim.leave_one_out([x], [y], groups=scene)
    assert grouped["similarity"].item() == pytest.approx(expected.mean(), abs=0.02)


def test_layers_and_readouts_are_selected(tmp_path: Path) -> None:
    store = repsim.extract("digits_vit.seed0", "digits", tmp_path, split="test", limit=40, readout="mean,cls")
    with pytest.raises(InvalidInputError, match=r"has several readouts: mean, cls; name one of them with readout"):
        repsim.removable_spans(store)
    spans = repsim.removable_spans(store, 1, layers="blocks.*", readout="cls")
    assert spans["first"].tolist() == [f"blocks.{k}@cls" for k in range(1, 6)]
    gram = repsim.extract("digits_vit.seed0", "digits", tmp_path / "g", split="test", limit=40, readout="gram:8")
    with pytest.raises(InvalidInputError, match=r"holds compressed layers \(gram:8\)"):
        repsim.removable_spans(gram)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 5}, r"k is a number of blocks from 1 to 4 \(5 layers of .*net.h5\), not 5"),
        ({"k": 0}, "not 0"),
        ({"layers": "stage*"}, r"net.h5 has no layer that matches stage\*; at least two layers .*stem, block1"),
        ({"layers": ["stem"]}, "net.h5 has one layer that matches stem"),
        ({"readout": "cls"}, "has no readout cls, only given"),
        ({"metric": "ckaa"}, "did you mean cka"),
    ],
)
def test_bad_input_is_one_line(network: ActivationStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(repsim.RepsimError, match=message):
        repsim.removable_spans(network, **options)


def test_the_command_shows_the_table_and_writes_a_figure(network: ActivationStore, tmp_path: Path) -> None:
    shown = calls.succeed("spans", network.path, "-o", tmp_path / "spans.svg")
    lines = [line.split() for line in shown.stdout.splitlines() if re.match(r" *\d ", line)]
    assert [(line[0], line[1]) for line in lines] == [(str(k), "block2" if k < 4 else "block1") for k in (1, 2, 3, 4)]
    of_one = calls.succeed("spans", network.path, "-k", "1").stdout
    assert [line.split()[1] for line in of_one.splitlines() if line.rstrip().endswith("best")] == ["block2"]
    assert "not that the network keeps its accuracy without it" in shown.stderr
    assert "block3" in (tmp_path / "spans.svg").read_text()
    text = json.loads(calls.succeed("spans", network.path, "-k", "1", "--json").stdout)
    spans = repsim.removable_spans(network, 1)
    assert [span["similarity"] for span in text["spans"]] == pytest.approx(spans["similarity"].tolist(), abs=1e-12)
    assert text["spans"][3]["angular_distance"] is None
    assert (text["model"], text["n_samples"], text["metric"]) == ("net", 80, "cka")
    before = sorted(tmp_path.iterdir())
    for wrong, message in (
        (["-k", "9", "-o", tmp_path / "x.png"], "from 1 to 4"), (["-o", tmp_path / "x.gif"], "none of the suffixes"),
        (["--layers", "stem"], "one layer that matches stem"),
    ):  # fmt: skip
        assert re.search(message, calls.fail("spans", network.path, *wrong))
    assert sorted(tmp_path.iterdir()) == before


def test_the_figure_has_a_cell_for_each_span(network: ActivationStore) -> None:
    spans = repsim.removable_spans(network)
    ax = plot_spans(spans)
    values = ax.images[0].get_array()
    assert values is not None
    assert (~np.ma.getmaskarray(np.ma.masked_invalid(values))).sum() == len(spans)
    assert values[0, 1] == spans["similarity"][1]
    frames: Any = ax.patches
    assert [round(frame.get_x() + 0.5) for frame in frames] == [
        ["block1", "block2", "block3", "block4"].index(name) for name in spans[spans["best"]]["first"]
    ]
    with pytest.raises(InvalidInputError, match="expected the table of repsim.removable_spans"):
        plot_spans(spans.drop(columns="best"))


@pytest.mark.slow
def test_skipping_the_best_and_the_worst_span_of_a_trained_network(tmp_path: Path) -> None:
    """The table of docs/blocks.md: accuracy on the test digits without the most and the least similar span."""
    images = open_images("digits", split="test")
    extractor: Any = make_extractor("digits_vit.seed0")
    network: Any = extractor.model.eval()
    blocks = list(network.blocks)
    x = torch.stack([extractor.transform(images.load(i)) for i in range(len(images))])

    def accuracy(skipped: range = range(0)) -> float:
        network.blocks = torch.nn.Sequential(*[block for k, block in enumerate(blocks) if k not in skipped])
        with torch.inference_mode():
            return float(np.mean(network(x).argmax(1).numpy() == images.labels))

    store = repsim.extract("digits_vit.seed0", "digits", tmp_path, split="test", layers="patch_embed,blocks.*")
    spans = repsim.removable_spans(store)
    ends = [[int(name.removeprefix("blocks.")) for name in spans[side]] for side in ("first", "last")]
    spans["accuracy"] = [accuracy(range(first, last + 1)) for first, last in zip(*ends, strict=True)]
    assert accuracy() == pytest.approx(0.979, abs=0.005)
    by_length = spans[spans["k"] <= 3].groupby("k")["similarity"]
    best, worst = spans.loc[by_length.idxmax()], spans.loc[by_length.idxmin()]
    np.testing.assert_allclose(best["accuracy"], [0.978, 0.962, 0.908], atol=0.01)
    assert (worst["accuracy"] < 0.2).all()
    # similarity is no accuracy: a less similar span of three keeps more of it
    three = spans[spans["k"] == 3].set_index("first")
    assert three["similarity"].idxmax() == "blocks.2"
    assert three["accuracy"]["blocks.3"] > three["accuracy"]["blocks.2"] + 0.02
