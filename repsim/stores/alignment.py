"""Check that stores hold the same samples in the same order, and read their layers as tensors."""

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
_UNCHECKED = "not checked: whether sample ids name the same pictures in all stores"


class AlignedView:
    """Stores whose rows are the same samples in the same order; `load` and `stream` read their layers.

    Parameters
    ----------
    *stores : ActivationStore
        The open stores, at least one.

    Raises
    ------
    SampleMismatchError
        The stores hold different samples or the same samples in another order; the message counts the differences and
        shows the first. Or two stores put them into different classes, or hold Gram matrices whose blocks consist of
        different samples.
    """

    def __init__(self, *stores: ActivationStore) -> None:
        self.stores = stores
        first = stores[0]
        # one store for each kind of fingerprint of the pictures: only fingerprints of one kind can be compared
        references: dict[tuple[bool, str], ActivationStore] = {}
        labelled: ActivationStore | None = None
        for store in stores:
            ids = store.sample_ids
            for reference in (first, *references.values()):
                if difference := reference.sample_ids.difference(ids):
                    raise SampleMismatchError(
                        f"{reference.path} and {store.path} do not hold the same samples: {difference}",
                        paths=(reference.path, store.path),
                        remedy=_ALIKE,
                    )
            if labelled is None and store.labels is not None:
                labelled = store
            elif labelled is not None and store.labels is not None and _classes(store) != _classes(labelled):
                raise SampleMismatchError(
                    f"{labelled.path} and {store.path} give the same samples different class labels",
                    paths=(labelled.path, store.path),
                    remedy=Remedy("extract one of them again, with the same ", Argument("labels", of="extract")),
                )
            references.setdefault((bool(ids.content), ids.hashed), store)
            if _has_grams(first) and _has_grams(store) and not np.array_equal(_order(first), _order(store)):
                raise SampleMismatchError(
                    f"{first.path} and {store.path} hold Gram matrices whose blocks are not of the same samples: the "
                    "samples were read in different orders",
                    paths=(first.path, store.path),
                    remedy=Remedy("extract one of them again with the order of the other"),
                )

    @property
    def notes(self) -> list[str]:
        """Notes on checks that were not possible: pictures are compared only if all stores keep hashes of them."""
        first = self.stores[0].sample_ids
        hashed = [store for store in self.stores if store.sample_ids.hashes]
        if not hashed or all(first.contents_known(store.sample_ids) for store in self.stores):
            return []
        bare = [store.path.name for store in self.stores if not store.sample_ids.hashes]
        if not bare:
            return [f"{_UNCHECKED}; some stores hash the files and others the pixels"]
        missing = f"{', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}"
        return [f"{_UNCHECKED}; there are no hashes of the pictures in {missing}; extract again to add them"]

    @property
    def sample_ids(self) -> SampleIds:
        """Sample ids, the same for every store."""
        return self.stores[0].sample_ids

    def __repr__(self) -> str:
        models = ", ".join(store.model for store in self.stores)
        return f"<AlignedView of {len(self.sample_ids)} samples of {self.stores[0].data}: {models}>"

    def load(self, store: ActivationStore, name: str, *, min_samples: int = 1) -> Float[Tensor, "rows ..."]:
        """Read one layer into memory, and check that it is finite and has enough samples.

        Parameters
        ----------
        store : ActivationStore
            One of the stores of this view.
        name : str
            Name of the layer in the store.
        min_samples : int
            Least number of samples that the measure needs.

        Returns
        -------
        torch.Tensor
            Features flattened to (n, p); Gram matrices (n // B, B, B) and sketches (n, 2, m) keep their shape.

        Raises
        ------
        InvalidInputError
            The layer has too few samples, NaN or infinite values, or a shape that its readout does not allow.
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
        """Return the features of a layer, (n, p), as `StoredRows`, which read rows from the file when indexed."""
        if len(store) < min_samples:
            raise InvalidInputError(
                f"{store.path}, layer {name}: {len(store)} samples are too few: this measure needs at least "
                f"{min_samples}"
            )
        return StoredRows(store[name], torch.device(device))


class StoredRows:
    """Layer of a store whose rows are read from the file when indexed (`repsim.metrics.recipes.rows.Rows`).

    Rows that are read for the first time are checked: the checksum has to match, and all values have to be finite.
    """

    def __init__(self, array: Activations, device: torch.device) -> None:
        self._array = array
        self.device = device
        self.shape = (len(array), math.prod(array.shape[1:]))
        self.dtype = torch.float64 if array.dtype == np.float64 else torch.float32
        self._checked = np.zeros(len(array), bool)

    def __getitem__(self, rows: slice | Tensor) -> Float[Tensor, "rows p"]:
        if isinstance(rows, Tensor):
            indices = rows.cpu().numpy()
            values = np.concatenate([self._read(int(i), int(i) + 1) for i in indices])
        else:
            start, stop, step = rows.indices(len(self._array))
            values = self._read(start, max(start, stop))[::step]
        tensor = torch.from_numpy(np.ascontiguousarray(values)).flatten(1)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # only pinned memory is copied while the GPU computes
        return tensor.to(self.device, non_blocking=True).to(self.dtype)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        checked = bool(self._checked[start:stop].all())
        values = self._array.read_rows(start, stop, check=not checked)
        if not checked:
            finite = np.isfinite(values)
            if not finite.all():
                first = start + int(np.argwhere(~finite)[0, 0])
                raise InvalidInputError(f"{(~finite).sum()} values are NaN or infinite, the first in sample {first}")
            self._checked[start:stop] = True
        return values


def _check_compressed(key: LayerKey, n: int, shape: tuple[int, ...]) -> None:
    """Check that an array of Gram matrices or sketches has the shape that its readout requires."""
    if key.form == "grams" and n < key.size:
        raise InvalidInputError(f"{n} samples are too few: {key.readout} needs at least {key.size}, one block")
    expected = (n // key.size, key.size, key.size) if key.form == "grams" else (n, 2, min(key.size, shape[-1]))
    if shape != expected:
        raise InvalidInputError(f"expected the shape {expected} for {key.readout} of {n} samples, got {shape}")


def _classes(store: ActivationStore) -> list[int]:
    """Return the class of every sample, numbered by first occurrence: names and numbers of classes do not matter."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in np.asarray(store.labels).tolist()]


def _has_grams(store: ActivationStore) -> bool:
    return any(store[name].key.form == "grams" for name in store.layers)


def _order(store: ActivationStore) -> NDArray[np.int64]:
    """Return the order in which the samples were read and cut into blocks, (n,)."""
    return np.arange(len(store)) if store.order is None else store.order
