"""Data sets and loaders of torch."""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from repsim.errors import InvalidInputError, SampleError
from repsim.extractors.samples.opening import examine, open_images, open_samples
from repsim.extractors.samples.source import ImageSource
from tests.extractors.samples.source_contract import check_one_change, check_source, digests

X = torch.arange(24.0).reshape(8, 3)
Y = torch.arange(8) % 3


class Mapped(Dataset[Any]):
    """A map-style data set of a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if self.items[index] is None:
            raise RuntimeError("a broken file")
        return self.items[index]


class Streamed(IterableDataset[Any]):
    """An iterable data set of a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Counting(IterableDataset[Any]):
    """Items that count the iterations: never the same twice."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter([torch.tensor([1.0]), torch.tensor([float(self.passes)])])


class Reversed(Sampler[int]):
    """Positions from the last to the first, or in another order in every iteration."""

    def __init__(self, n: int, *, fixed: bool = True) -> None:
        self.n, self.fixed, self.passes = n, fixed, 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        order = range(self.n)[::-1]
        return iter(order if self.fixed or self.passes % 2 else sorted(order))

    def __len__(self) -> int:
        return self.n


def test_items_of_a_data_set_are_not_interpreted() -> None:
    source = open_samples(TensorDataset(X, Y))
    check_source(source, list(zip(X, Y, strict=True)), [str(k) for k in range(8)])
    assert (source.modality, source.labels, source.record) == ("other", None, {"ids_from": "positions"})
    assert list(source.notes) == [
        (
            "TensorDataset: items (tuple of Tensor (3,), Tensor ()) go to the forward pass as they are; none of their "
            "parts is a label"
        )
    ]
    labelled = open_samples(TensorDataset(X, Y), labels=Y.tolist(), ids=[f"s{k}" for k in range(8)])
    assert labelled.labels is not None
    assert (labelled.labels.tolist(), labelled.ids[7]) == (Y.tolist(), "s7")


def test_texts_tensors_and_pictures_are_recognised() -> None:
    texts = open_samples(Mapped(["a", "b"]))
    check_source(texts, ["a", "b"], ["0", "1"])
    tensors = open_samples(Mapped(list(X)))
    check_source(tensors, list(X), [str(k) for k in range(8)])
    digits = open_images("digits")
    pictures = open_samples(Mapped([digits.load(k) for k in range(3)]))
    check_source(pictures, [digits.load(k) for k in range(3)], ["0", "1", "2"])
    assert (texts.modality, tensors.modality, pictures.modality) == ("text", "tensor", "image")
    assert isinstance(pictures, ImageSource)
    assert digests(pictures) == [digits.examine(k).digest for k in range(3)]
    assert not [*texts.notes, *tensors.notes, *pictures.notes]
    grey = open_samples(Mapped([Image.new("L", (2, 2), 7)]))
    assert grey.load(0).mode == "RGB"


def test_one_changed_value_changes_one_hash() -> None:
    rows = [{"ids": X[k], "text": f"t{k}", "n": k, "pair": (k, [None, 1.5])} for k in range(8)]
    before = check_source(open_samples(Mapped(rows)), rows, [str(k) for k in range(8)])
    assert len(set(before)) == 8
    for change in ({"ids": X[2] + 1}, {"text": "u"}, {"n": 3}, {"pair": (2, [None, 2.5])}, {"new": 1}):
        changed = [*rows[:2], rows[2] | change, *rows[3:]]
        check_one_change(before, digests(open_samples(Mapped(changed))), 2)


def test_objects_without_contents_are_refused() -> None:
    with pytest.raises(SampleError, match="a sample holds a object, whose contents cannot be hashed"):
        open_samples(Mapped([{"x": object()}]))
    with pytest.raises(SampleError, match="an array of Python objects"):
        open_samples(Mapped([(np.array([object()]),)]))


def test_data_sets_that_cannot_be_read() -> None:
    broken = open_samples(Mapped(["a", None, "c"]))
    with pytest.raises(SampleError, match="cannot read item 1 of Mapped: a broken file"):
        examine(broken, range(3))
    assert list(examine(broken, range(3), skip_bad=True)[0]) == [0, 2]
    with pytest.raises(SampleError, match="Mapped is empty"):
        open_samples(Mapped([]))
    with pytest.raises(InvalidInputError, match="root does not apply to a Mapped"):
        open_samples(Mapped(["a"]), root="x")

    class Random(Mapped):
        def __getitem__(self, index: int) -> Tensor:
            return torch.rand(3)

    with pytest.raises(InvalidInputError, match="gives another item 0 when it is read again; switch its random transf"):
        open_samples(Random([1, 2]))


def test_a_loader_gives_its_order_its_batches_and_its_collate_function() -> None:
    collate = operator.itemgetter(0)
    loader: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=3, collate_fn=collate, num_workers=2)
    source = open_samples(loader)
    check_source(source, list(zip(X, Y, strict=True)), [str(k) for k in range(8)])
    assert (source.batch_size, source.collate) == (3, collate)
    assert source.name == "DataLoader of TensorDataset"
    assert source.notes[-1].endswith("its 2 worker processes are not used; those of the extraction are")
    assert open_samples(DataLoader(TensorDataset(X), batch_size=4, drop_last=True)).batch_size == 4


@pytest.mark.parametrize(
    ("options", "order", "size"),
    [
        ({"sampler": Reversed(8), "batch_size": 3}, range(8)[::-1], 3),
        ({"sampler": [5, 0, 2]}, [5, 0, 2], 1),
        ({"batch_sampler": [[4, 5], [1]]}, [4, 5, 1], 2),
        ({"batch_sampler": [torch.tensor([4, 5]), torch.tensor([1])]}, [4, 5, 1], 2),
        ({"batch_sampler": BatchSampler(SequentialSampler(X), 5, drop_last=False)}, range(8), 5),
    ],
)
def test_samplers_with_a_fixed_order(options: Any, order: Any, size: int) -> None:
    """Reference: what iterating the loader itself gives."""
    loader: DataLoader[Any] = DataLoader(Mapped(list(X)), **options)
    source = open_samples(loader)
    check_source(source, [X[k] for k in order], [str(k) for k in order])
    assert source.batch_size == size
    assert torch.equal(torch.cat(list(loader)), torch.stack([source.load(k) for k in range(len(source))]))


DATA: Dataset[Any] = TensorDataset(X, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": True}, r"draws its samples at random \(RandomSampler\); .* make the loader with shuffle=False"),
        ({"sampler": WeightedRandomSampler([1.0] * 8, 8)}, r"at random \(WeightedRandomSampler\)"),
        ({"batch_sampler": BatchSampler(RandomSampler(X), 2, drop_last=False)}, r"at random \(RandomSampler\)"),
        ({"sampler": DistributedSampler(DATA, 2, 0)}, r"gives each process its own part .* make the loader without it"),
        ({"batch_size": 3, "drop_last": True}, r"drops the last 2 samples \(drop_last=True\); make the loader with"),
        ({"batch_sampler": BatchSampler(SequentialSampler(X), 3, drop_last=True)}, "drops the last 2 samples"),
        ({"sampler": Reversed(8, fixed=False)}, r"\(Reversed\) gives another order in a second iteration"),
        ({"sampler": [0, 1, 1]}, "gives 1 samples more than once"),
        ({"batch_size": None}, "batch_size=None, so it makes no batches"),
    ],
)
def test_loaders_without_a_fixed_order_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as raised:
        open_samples(DataLoader(DATA, **options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("items", "modality"),
    [(list(X), "tensor"), ([f"t{k}" for k in range(8)], "text"), ([(1, k) for k in range(8)], "other")],
)
def test_streams_in_the_order_of_the_data(items: list[Any], modality: str) -> None:
    source = open_samples(Streamed(items), ids=[f"s{k}" for k in range(8)])
    check_source(source, items, [f"s{k}" for k in range(8)])
    assert (source.modality, source.indexable) == (modality, False)
    assert source.record == {"ids_from": "given", "streamed": True}
    read = list(source.read([1, 4, 6]))
    assert [row for row, _ in read] == [1, 4, 6]
    assert len(examine(source, [0, 7])[0]) == 2


def test_a_stream_of_pictures_and_a_loader_of_a_stream() -> None:
    digits = [open_images("digits").load(k) for k in range(3)]
    source = open_samples(Streamed(digits))
    check_source(source, digits, ["0", "1", "2"])
    assert source.modality == "image"
    loader: DataLoader[Any] = DataLoader(Streamed(list(X)), batch_size=3)
    assert (open_samples(loader).batch_size, len(open_samples(loader))) == (3, 8)
    with pytest.raises(InvalidInputError, match="drops the last 2 samples"):
        open_samples(DataLoader(Streamed(list(X)), batch_size=3, drop_last=True))
    with pytest.raises(InvalidInputError, match="batch_size=None, so its items are batches already"):
        open_samples(DataLoader(Streamed(list(X)), batch_size=None))


def test_streams_whose_order_is_not_fixed_are_noticed() -> None:
    """A stream is read in several passes; each is compared with the first."""
    data = Streamed(list(X))
    source = open_samples(data)
    data.items = [*X[:3], X[4], X[3], *X[5:]]
    with pytest.raises(SampleError, match="gives another item at position 3 than when it was opened"):
        list(source.read(range(8)))
    assert len(list(source.read(range(3)))) == 3
    data.items = list(X[:6])
    with pytest.raises(SampleError, match="gave 6 items, and 8 when it was opened"):
        list(source.read([7]))
    counting = open_samples(Counting())
    with pytest.raises(SampleError, match="gives another item at position 1"):
        list(counting.read([0, 1]))
    with pytest.raises(SampleError, match="gives no items"):
        open_samples(Streamed([]))
    with pytest.raises(InvalidInputError, match="2 ids for the 8 samples"):
        open_samples(Streamed(list(X)), ids=["a", "b"])


def test_a_subset_and_an_object_with_positions() -> None:
    source = open_samples(Subset(DATA, [4, 2]))
    check_source(source, [(X[4], Y[4]), (X[2], Y[2])], ["0", "1"])

    class Positions:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Tensor:
            return X[index]

    assert len(open_samples(Positions())) == 2


def test_a_source_is_copied_when_it_is_opened_again() -> None:
    digits = open_images("digits")
    again = open_samples(digits, groups=r"re:/(\d)")
    assert digits.groups is None
    assert again.groups is not None
    with pytest.raises(InvalidInputError, match="split does not apply to digits, which is a source already"):
        open_samples(digits, split="test")
