"""Recalibrated batch norm: the statistics are those of the samples, and nothing else changes."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision import transforms

from repsim.errors import ImageError, InvalidInputError
from repsim.extractors import ImageSource, Stream, open_images
from repsim.extractors.preprocessing import prepare_pictures
from repsim.extractors.recalibration import assign, batch_norms, measure
from repsim.extractors.samples.opening import choose
from repsim.extractors.timm_models import TimmExtractor

TO_TENSOR = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
Array = np.ndarray


class Watched(ImageSource):
    """Digits that count how often each is decoded; some cannot be decoded."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.images, self.bad, self.loads = open_images("digits"), bad, Counter[int]()
        self.name, self.ids = self.images.name, self.images.ids

    def load(self, index: int) -> Image.Image:
        self.loads[index] += 1
        if index in self.bad:
            raise ImageError(f"cannot read the picture {index}")
        return self.images.load(index)

    def sizes(self) -> Sequence[int]:
        return self.images.sizes()


def recalibrated(model: nn.Module, rows: Sequence[int], transform: Any = TO_TENSOR) -> dict[str, tuple[Tensor, Tensor]]:
    statistics = measure(model, prepare_pictures(model, transform), open_images("digits"), rows, Stream())
    assign(model, statistics)
    return statistics


def inputs(model: nn.Module, transform: Any, rows: Sequence[int]) -> dict[str, Array]:
    """Return the inputs of every batch norm in eval mode, over all calls: (channels, values) in float64."""
    kept: dict[str, list[Array]] = defaultdict(list)
    hooks = [
        norm.register_forward_pre_hook(
            lambda _, args, path=path: kept[path].append(args[0].double().transpose(0, 1).flatten(1).numpy())
        )
        for path, norm in batch_norms(model).items()
    ]
    images = open_images("digits")
    with torch.no_grad():
        model.eval()(torch.stack([transform(images.load(row)) for row in rows]))
    for hook in hooks:
        hook.remove()
    return {path: np.concatenate(values, 1) for path, values in kept.items()}


@pytest.mark.parametrize("n", [20, 33, 100])
def test_the_first_batch_norm_has_the_moments_of_its_input(n: int) -> None:
    """The moments are those of all samples: 33 samples are two batches, and the variance between them counts."""
    extractor = TimmExtractor("digits_resnet", weights="random", seed=1)
    rows = list(range(n))
    recalibrated(extractor.model, rows, extractor.transform)
    x = inputs(extractor.model, extractor.transform, rows)["bn1"]
    first: Any = batch_norms(extractor.model)["bn1"]
    np.testing.assert_allclose(first.running_mean, x.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.running_var, x.var(1, ddof=1), rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_resnet", pytest.param("test_efficientnet", marks=pytest.mark.slow)])
def test_every_batch_norm_standardises(name: str) -> None:
    """Outputs before the affine part are standardised, approximately, as earlier layers used statistics of batches."""
    extractor = TimmExtractor(name, weights="random")
    rows = list(range(0, 1797, 10))
    norms = batch_norms(extractor.model)
    assert len(norms) > 10
    assert name == "digits_resnet" or any(isinstance(norm, BatchNormAct2d) for norm in norms.values())
    far = inputs(extractor.model, extractor.transform, rows)
    assert max(abs(x.var(1).mean() - 1) for x in far.values()) > 0.5  # without recalibration they are not
    recalibrated(extractor.model, rows, extractor.transform)
    for path, x in inputs(extractor.model, extractor.transform, rows).items():
        mean, variance = (np.asarray(running) for running in (norms[path].running_mean, norms[path].running_var))
        out = (x - mean[:, None]) / np.sqrt(variance + norms[path].eps)[:, None]
        shrunk = variance / (variance + norms[path].eps)  # eps reduces a channel with little variance
        assert np.abs(out.mean(1)).max() < 0.1, path
        np.testing.assert_allclose(out.var(1), shrunk, rtol=0.15, err_msg=path)


class Kinds(nn.Module):
    """Batch norms of several kinds: one that is called twice, one never, one without statistics, one of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.dropout, self.vector = nn.Dropout(0.5), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.twice(x) * 0 + x + 1)
        out: Tensor = self.vector(self.free(self.twice(x)).mean((2, 3)) * 0 + x.amax((2, 3)))
        return out


def test_each_kind_of_batch_norm() -> None:
    model = Kinds().train()
    rows = list(range(33))
    statistics = recalibrated(model, rows)
    assert set(statistics) == {"twice", "vector"}
    seen = inputs(model, TO_TENSOR, rows)
    for path, (mean, variance) in statistics.items():  # both calls are pooled; no dropout; vectors, too
        np.testing.assert_allclose(mean, seen[path].mean(1), rtol=1e-5)
        np.testing.assert_allclose(variance, seen[path].var(1, ddof=1), rtol=1e-5)
    assert seen["twice"].shape == (3, 2 * 33 * 64)
    never: Any = model.never
    assert (never.running_mean.tolist(), never.running_var.tolist()) == ([0] * 3, [1] * 3)
    assert model.free.running_mean is None


def test_measuring_changes_nothing() -> None:
    model = Kinds().train()
    model.dropout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = [(m.training, getattr(m, "momentum", 0), getattr(m, "track_running_stats", 0)) for m in model.modules()]
    for images in (Watched(), Watched(bad=[5])):
        try:
            measure(model, prepare_pictures(model, TO_TENSOR), images, range(9), Stream())
            assert not images.bad
        except ImageError as error:
            assert str(error) == "cannot read the picture 5"  # noqa: PT017 - the loop is what both have in common
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert settings == [
            (m.training, getattr(m, "momentum", 0), getattr(m, "track_running_stats", 0)) for m in model.modules()
        ]
        assert not [m for m in model.modules() if m._forward_pre_hooks or m._forward_hooks]


def test_at_most_512_samples_evenly_spread_and_whatever_the_batch_size() -> None:
    model = Kinds()
    images = Watched()
    rows = list(range(3, 1797))
    statistics = measure(model, prepare_pictures(model, TO_TENSOR), images, rows, Stream(batch_size=8))
    assert images.loads == Counter(rows[i] for i in choose(len(rows), 512))
    again = measure(model, prepare_pictures(model, TO_TENSOR), images, rows, Stream(batch_size=300, workers=1))
    assert all(torch.equal(a, b) for path in statistics for a, b in zip(statistics[path], again[path], strict=True))


def test_few_samples_and_dead_channels() -> None:
    """Two samples are enough for a variance, one is refused; a constant channel has variance 0 and stays finite."""
    model = timm.create_model("test_resnet")
    first: Any = model.get_submodule("conv1")
    while not isinstance(first, nn.Conv2d):
        first = first[0]
    with torch.no_grad():
        first.weight[0] = 0
    statistics = recalibrated(model, [3, 900])
    assert all(torch.isfinite(value).all() and (value[1] >= 0).all() for value in map(torch.stack, statistics.values()))
    assert min(float(variance.min()) for _, variance in statistics.values()) == 0
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.randn(2, 3, 8, 8))).all()
    with pytest.raises(InvalidInputError, match="at least 2 samples"):
        recalibrated(model, [3])
