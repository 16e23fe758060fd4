"""Several models in one pass: the same values as one by one, and each picture decoded once."""

import gc
import multiprocessing
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from repsim.errors import ImageError, InvalidInputError
from repsim.extraction import choose_samples
from repsim.extractors import ImageSource, Stream, open_images
from repsim.extractors.loading import stream_together
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.timm_models import TimmExtractor
from repsim.labels import INPUT, PREDICTION, STATISTICS

Values = dict[tuple[str, str], Tensor]
TO_TENSOR = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])


class Counting(ImageSource):
    """Counts how often each picture is decoded."""

    def __init__(self, images: ImageSource) -> None:
        self.images, self.loads = images, Counter[int]()
        self.name, self.ids = images.name, images.ids

    def load(self, index: int) -> Image.Image:
        self.loads[index] += 1
        return self.images.load(index)

    def sizes(self) -> Sequence[int]:
        return self.images.sizes()


class Overwrites(nn.Module):
    """Changes its input batch in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.body(x.mul_(2).sub_(1))
        return out


def read(passes: Any, count: int) -> list[tuple[list[int], Values]]:
    """Return the rows and values of each extractor."""
    rows: list[list[int]] = [[] for _ in range(count)]
    values: list[list[Any]] = [[] for _ in range(count)]
    for k, batch in passes:
        rows[k] += batch.rows
        values[k].append(batch.values)
    return [
        (r, {key: torch.cat([b[key] for b in v]) for key in v[0]} if v else {})
        for r, v in zip(rows, values, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_together_is_the_same_as_one_by_one(workers: int) -> None:
    images = open_images("digits")
    extractors: list[ModuleExtractor] = [
        TimmExtractor("digits_vit", weights="random", readout="mean,cls"),
        TimmExtractor("digits_resnet.seed0", readout="mean,flatten"),
        TimmExtractor("digits_vit.seed1", layers="blocks.3"),
    ]
    assert len({extractor.preprocessing for extractor in extractors}) == 1
    rows = [list(range(10)), [4, 5, 6, 7], [*range(4), 8, 9]]
    how = Stream(batch_size=4, workers=workers)
    for k, (came, values) in enumerate(read(stream_together(extractors, images, rows, how), 3)):
        assert came == rows[k]
        batches = list(extractors[k].stream(images, rows[k], how))
        assert set(values) == {*extractors[k].readouts, INPUT, STATISTICS, PREDICTION}
        for key, value in values.items():
            assert torch.equal(value, torch.cat([batch.values[key] for batch in batches])), key


def test_every_picture_is_decoded_once_and_no_model_runs_without_need() -> None:
    images = Counting(open_images("digits"))
    models = [Overwrites() for _ in range(3)]
    extractors = [ModuleExtractor(model, TO_TENSOR, layers="body") for model in models]
    traced = [model.calls for model in models]
    order = [7, 3, 9, 1, 0, 2, 8, 5, 6, 4, 30]
    rows: list[list[int]] = [order[4:], order, []]
    got = read(stream_together(extractors, images, rows, Stream(batch_size=4)), 3)
    assert [came for came, _ in got] == rows
    assert images.loads == Counter(order)
    assert [model.calls - before for model, before in zip(models, traced, strict=True)] == [2, 3, 0]


def test_a_model_that_overwrites_its_input_does_not_spoil_the_next() -> None:
    torch.manual_seed(0)
    model = Overwrites()
    extractors = [ModuleExtractor(model, TO_TENSOR, layers="body") for _ in range(3)]  # the same model, three times
    pixels = torch.stack([TO_TENSOR(open_images("digits").load(i)) for i in range(4)])
    expected = model.body(pixels * 2 - 1).mean((2, 3))
    for came, values in read(stream_together(extractors, open_images("digits"), [range(4)] * 3, Stream()), 3):
        assert came == [0, 1, 2, 3]
        torch.testing.assert_close(values["body", "mean"], expected, rtol=1e-5, atol=1e-6)


def test_rows_may_repeat_for_one_extractor() -> None:
    extractor = ModuleExtractor(Overwrites(), TO_TENSOR, layers="body")
    rows = [0, 1, 0, 1, 5, 5, 5]
    ((came, values),) = read(stream_together([extractor], open_images("digits"), [rows], Stream(batch_size=2)), 1)
    assert came == rows
    assert torch.equal(values["body", "mean"][:2], values["body", "mean"][2:4])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1, 2, 3], [2, 3, 0, 1]], "not parts of one order: two batches are in different orders in two sequences"),
        ([[0, 1, 2, 3], [0, 2]], "not whole batches of one order: two begin with 0 and differ"),
        ([[0, 1, 2, 3], [1, 2]], "not whole batches of one order: a row is in two batches"),
    ],
)
def test_rows_that_are_not_whole_batches_of_one_order_are_refused(rows: list[list[int]], message: str) -> None:
    extractors = [ModuleExtractor(Overwrites(), TO_TENSOR, layers="body") for _ in rows]
    with pytest.raises(InvalidInputError, match=message):
        stream_together(extractors, open_images("digits"), rows, Stream(batch_size=2))


def test_models_that_prepare_pictures_differently_cannot_share_them() -> None:
    extractors = [TimmExtractor(name, weights="random") for name in ("digits_vit", "test_vit")]
    with pytest.raises(InvalidInputError, match=r"^digits_vit\+random-seed0, test_vit\+random-seed0 prepare pictures"):
        stream_together(extractors, open_images("digits"), [range(4)] * 2, Stream())


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_before_an_unreadable_picture_are_yielded(pictures: Any, workers: int) -> None:
    root = pictures(5)
    (root / "photo03.png").write_bytes(b"no picture")
    extractors = [ModuleExtractor(Overwrites(), TO_TENSOR, layers="body") for _ in range(2)]
    how = Stream(batch_size=2, workers=workers)
    running = stream_together(extractors, open_images(str(root)), [range(5), range(5)], how)
    assert [(k, batch.rows) for k, batch in (next(running), next(running))] == [(0, (0, 1)), (1, (0, 1))]
    with pytest.raises(ImageError, match=r"^cannot read the picture photo03\.png"):
        next(running)


@pytest.mark.slow
def test_no_activation_outlives_its_batch() -> None:
    """Only readouts are kept in memory, and only as long as the caller keeps them."""
    outputs: list[weakref.ref[Tensor]] = []
    readouts: list[weakref.ref[Tensor]] = []
    model = Overwrites()
    extractor = ModuleExtractor(model, TO_TENSOR, layers="body")
    model.body.register_forward_hook(lambda _, __, out: outputs.append(weakref.ref(out)))
    for batch in extractor.stream(open_images("digits"), range(12), Stream(batch_size=3)):
        readouts.append(weakref.ref(batch.values["body", "mean"]))
        gc.collect()
        assert [output() for output in outputs] == [None] * len(readouts)
        assert [readout() is None for readout in readouts[:-1]] == [True] * (len(readouts) - 1)
    assert len(outputs) == 4


def test_the_keyword_images_warns_for_one_release() -> None:
    extractor = TimmExtractor("digits_vit", weights="random")
    digits = open_images("digits")
    with pytest.warns(DeprecationWarning, match=r"stream\(images=...\) is deprecated .* write samples="):
        batches = list(extractor.stream(images=digits, rows=range(3), how=Stream()))  # type: ignore[call-arg]
    assert [batch.rows for batch in batches] == [(0, 1, 2)]
    with pytest.warns(DeprecationWarning, match="write source="):
        samples = choose_samples(images=digits, limit=2, check=False)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"Samples.images is deprecated"):
        assert samples.images is digits


def test_an_error_whose_frames_are_kept_leaves_no_worker_process() -> None:
    """A process that stays would keep what it has inherited open, such as pipes of other programs."""

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Flatten(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 2:
                raise ValueError("third")
            out: Tensor = self.layer(x)
            return out

    extractor = ModuleExtractor(Fails(), TO_TENSOR, layers="layer")
    with pytest.raises(InvalidInputError, match="third") as kept:
        list(extractor.stream(open_images("digits"), range(64), Stream(batch_size=4, workers=2)))
    assert kept.value.__traceback__ is not None
    assert [process for process in multiprocessing.active_children() if process.name.startswith("pt_data")] == []
    assert multiprocessing.active_children() == []
