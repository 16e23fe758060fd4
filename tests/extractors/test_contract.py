"""The extractor of timm models fulfils `ExtractorContract`, and wrong extractors fail it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from repsim.extractors import Batch
from repsim.extractors.timm_models import TimmExtractor
from repsim.testing import ExtractorContract


class TestResNet(ExtractorContract):
    def extractor(self) -> TimmExtractor:
        return TimmExtractor("digits_resnet.seed0", readout="mean,grid:2")


class TestViT(ExtractorContract):
    def extractor(self) -> TimmExtractor:
        return TimmExtractor("digits_vit", weights="random", readout="cls,max")


class TestCompressed(ExtractorContract):
    def extractor(self) -> TimmExtractor:
        return TimmExtractor("digits_resnet.seed0", layers="layer3.*", readout="gram:4,sketch:16,flatten")


class _Swaps(TimmExtractor):
    """Mixes up the samples of a batch."""

    def stream(self, *args: Any) -> Iterator[Batch]:
        for batch in super().stream(*args):
            yield dataclasses.replace(batch, values={key: values.flip(0) for key, values in batch.values.items()})


class _Forgets(TimmExtractor):
    """Loses its last sample."""

    def stream(self, images: Any, rows: Any, how: Any) -> Iterator[Batch]:
        return super().stream(images, rows[:-1], how)


class _TurnsToTraining(TimmExtractor):
    """Is in train mode from the second batch on, so that the values of a sample depend on its batch."""

    def stream(self, *args: Any) -> Iterator[Batch]:
        for batch in super().stream(*args):
            self.model.train()
            yield batch


class _Guesses(TimmExtractor):
    """Returns other values than it declares."""

    def stream(self, *args: Any) -> Iterator[Batch]:
        for batch in super().stream(*args):
            yield dataclasses.replace(batch, values={key: values[:, :-1] for key, values in batch.values.items()})


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [_Swaps, _Forgets, _TurnsToTraining, _Guesses])
def test_the_contract_bites(wrong: type[TimmExtractor]) -> None:
    class Contract(ExtractorContract):
        def extractor(self) -> TimmExtractor:
            return wrong("digits_resnet.seed0", layers="layer2.0")

    failed = []
    for name in dir(Contract):
        if name.startswith("test_"):
            try:
                getattr(Contract(), name)()
            except AssertionError:
                failed.append(name)
    assert failed
