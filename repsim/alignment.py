"""Layers of several stores as tensors over the same samples in the same order, or a refusal."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError, SampleMismatchError
from repsim.labels import LayerKey, SampleIds
from repsim.metrics.base import as_samples
from repsim.store import ActivationStore


class AlignedView:
    """Stores whose rows are the same samples: `load` reads a layer of one of them.

    Raises
    ------
    SampleMismatchError
        The stores hold other samples or another order; the message counts them and shows the first. Or both hold Gram
        matrices, of blocks that are not of the same samples.
    """

    def __init__(self, *stores: ActivationStore) -> None:
        self.stores = stores
        first = stores[0]
        for store in stores[1:]:
            if difference := first.sample_ids.difference(store.sample_ids):
                raise SampleMismatchError(
                    f"{first.path} and {store.path} do not hold the same samples: {difference}. "
                    "Extract both from the same --data with the same --limit and --split"
                )
            if _has_grams(first) and _has_grams(store) and not np.array_equal(_order(first), _order(store)):
                raise SampleMismatchError(
                    f"{first.path} and {store.path} hold Gram matrices of blocks that are not of the same samples: "
                    "they were read in different orders. Extract one of them again as the other was"
                )

    @property
    def sample_ids(self) -> SampleIds:
        """Of every store."""
        return self.stores[0].sample_ids

    def load(self, store: ActivationStore, name: str, *, min_samples: int = 1) -> Float[Tensor, "rows ..."]:
        """Read one layer as it can be compared: floating, finite, of enough samples.

        Features are flattened to (n, p). Gram matrices (n // B, B, B) and sketches (n, 2, m) keep their shape.
        """
        key, values = store[name].key, torch.from_numpy(store[name][:])
        n, shape = len(self.sample_ids), tuple(values.shape)
        try:
            if key.form == "features":
                return as_samples(values.flatten(1), min_samples)
            _check_compressed(key, n, shape)
            return as_samples(values.flatten(1), 1 if key.form == "grams" else min_samples).view(shape)
        except InvalidInputError as error:
            raise InvalidInputError(f"{store.path}, layer {name}: {error}") from None


def _check_compressed(key: LayerKey, n: int, shape: tuple[int, ...]) -> None:
    """Refuse what does not have the shape that its readout promises."""
    if key.form == "grams" and n < key.size:
        raise InvalidInputError(f"{n} samples are too few: {key.readout} needs at least {key.size}, one block")
    expected = (n // key.size, key.size, key.size) if key.form == "grams" else (n, 2, min(key.size, shape[-1]))
    if shape != expected:
        raise InvalidInputError(f"{key.readout} of {n} samples has the shape {expected}, but this is {shape}")


def _has_grams(store: ActivationStore) -> bool:
    return any(store[name].key.form == "grams" for name in store.layers)


def _order(store: ActivationStore) -> NDArray[np.int64]:
    """The order in which the samples were read, and cut into blocks."""
    return np.arange(len(store)) if store.order is None else store.order
