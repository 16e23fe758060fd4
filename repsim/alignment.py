"""Layers of several stores as tensors over the same samples in the same order, or a refusal."""

import torch
from jaxtyping import Float
from torch import Tensor

from repsim.errors import InvalidInputError, SampleMismatchError
from repsim.labels import SampleIds
from repsim.metrics.base import as_samples
from repsim.store import ActivationStore


class AlignedView:
    """Stores whose rows are the same samples: ``view[side, name]`` is that layer, (n, p), p = all features of a sample.

    Raises
    ------
    SampleMismatchError
        The stores hold other samples or another order; the message counts them and shows the first.
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

    @property
    def sample_ids(self) -> SampleIds:
        """Of every store."""
        return self.stores[0].sample_ids

    def load(self, store: ActivationStore, name: str, *, min_samples: int = 1) -> Float[Tensor, "n p"]:
        """Read one layer as it can be compared: flattened, floating, finite, and with enough samples."""
        array = store[name]
        try:
            return as_samples(torch.from_numpy(array[:]).flatten(1), min_samples)
        except InvalidInputError as error:
            raise InvalidInputError(f"{store.path}, layer {name}: {error}") from None
