"""Layers of several stores as tensors over the same samples in the same order, or a refusal."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import Argument, InvalidInputError, Remedy, SampleMismatchError
from repsim.labels import LayerKey, SampleIds
from repsim.metrics.base import as_samples
from repsim.stores.store import Activations, ActivationStore

_ALIKE = Remedy(
    "extract both from the same ", Argument("data", of="extract"), " with the same ", Argument("limit", of="extract"),
    " and ", Argument("split", of="extract"),
)  # fmt: skip
_UNCHECKED = "whether the pictures behind the names are the same was not checked"


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
        references: dict[tuple[bool, str], ActivationStore] = {}  # one of each kind of knowledge of what pictures are
        for store in stores:
            ids = store.sample_ids
            for other in (first, *references.values()):
                if difference := other.sample_ids.difference(ids):
                    raise SampleMismatchError(
                        f"{other.path} and {store.path} do not hold the same samples: {difference}",
                        paths=(other.path, store.path),
                        remedy=_ALIKE,
                    )
            references.setdefault((bool(ids.content), ids.hashed), store)
            if _has_grams(first) and _has_grams(store) and not np.array_equal(_order(first), _order(store)):
                raise SampleMismatchError(
                    f"{first.path} and {store.path} hold Gram matrices of blocks that are not of the same samples: "
                    "they were read in different orders",
                    paths=(first.path, store.path),
                    remedy=Remedy("extract one of them again as the other was"),
                )

    @property
    def notes(self) -> list[str]:
        """What could not be checked: the contents of pictures, where not all stores keep hashes of them."""
        first = self.stores[0].sample_ids
        hashed = [store for store in self.stores if store.sample_ids.hashes]
        if not hashed or all(first.contents_known(store.sample_ids) for store in self.stores):
            return []
        bare = [store.path.name for store in self.stores if not store.sample_ids.hashes]
        if not bare:
            return [f"{_UNCHECKED}: stores hash different things of them"]
        missing = f"no hashes of contents in {', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}"
        return [f"{_UNCHECKED}: {missing}; stores that this version extracts have them"]

    @property
    def sample_ids(self) -> SampleIds:
        """Of every store."""
        return self.stores[0].sample_ids

    def __repr__(self) -> str:
        models = ", ".join(store.model for store in self.stores)
        return f"<AlignedView of {len(self.sample_ids)} samples of {self.stores[0].data}: {models}>"

    def load(self, store: ActivationStore, name: str, *, min_samples: int = 1) -> Float[Tensor, "rows ..."]:
        """Read one layer as it can be compared: floating, finite, of enough samples.

        Features are flattened to (n, p). Gram matrices (n // B, B, B) and sketches (n, 2, m) keep their shape.
        """
        key = store[name].key
        try:
            if key.form == "features":
                return self.stream(store, name, "cpu", min_samples=min_samples)[:]
            values = torch.from_numpy(store[name][:])
            n, shape = len(self.sample_ids), tuple(values.shape)
            _check_compressed(key, n, shape)
            return as_samples(values.flatten(1), 1 if key.form == "grams" else min_samples).view(shape)
        except InvalidInputError as error:
            raise InvalidInputError(f"{store.path}, layer {name}: {error}") from None

    def stream(self, store: ActivationStore, name: str, device: str, *, min_samples: int = 1) -> "StoredRows":
        """A layer's features (n, p) that are read as they are needed."""
        if len(store) < min_samples:
            raise InvalidInputError(
                f"{store.path}, layer {name}: {len(store)} samples are too few: this measure needs at least "
                f"{min_samples}"
            )
        return StoredRows(store[name], torch.device(device))


class StoredRows:
    """A layer of a store, of which rows are read when somebody asks for them (`repsim.metrics.recipes.rows.Rows`).

    What is read for the first time is held against its checksum, and has to be finite.
    """

    def __init__(self, array: Activations, device: torch.device) -> None:
        self._array = array
        self.device = device
        self.shape = (len(array), math.prod(array.shape[1:]))
        self.dtype = torch.float64 if array.dtype == np.float64 else torch.float32
        self._seen = np.zeros(len(array), bool)

    def __getitem__(self, rows: slice | Tensor) -> Float[Tensor, "rows p"]:
        if isinstance(rows, Tensor):
            wanted = rows.cpu().numpy()
            values = np.concatenate([self._read(int(i), int(i) + 1) for i in wanted])
        else:
            start, stop, step = rows.indices(len(self._array))
            values = self._read(start, max(start, stop))[::step]
        tensor = torch.from_numpy(np.ascontiguousarray(values)).flatten(1)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # without it the copy would not run beside the computation
        return tensor.to(self.device, non_blocking=True).to(self.dtype)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        known = bool(self._seen[start:stop].all())
        values = self._array.read_rows(start, stop, check=not known)
        if not known:
            finite = np.isfinite(values)
            if not finite.all():
                first = start + int(np.argwhere(~finite)[0, 0])
                raise InvalidInputError(f"{(~finite).sum()} values are NaN or infinite, the first in sample {first}")
            self._seen[start:stop] = True
        return values


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
