"""Check that stores hold the same samples in the same order, or pair them, and read their layers as tensors."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import Argument, InvalidInputError, Remedy, SampleMismatchError
from repsim.labels import LayerKey, SampleIds, noun_of
from repsim.metrics.base import as_samples
from repsim.runtime.arrays import is_finite
from repsim.stores.in_memory import ROW_NUMBERS, ArrayInMemory, StoreInMemory
from repsim.stores.pairing import ID, PairBy, Pairing, is_pairable, pair
from repsim.stores.store import Activations, ActivationStore, is_other_view

_ALIKE = Remedy(
    "extract both from the same ", Argument("data", of="extract"), " with the same ", Argument("limit", of="extract"),
    " and ", Argument("split", of="extract"),
)  # fmt: skip
_UNCHECKED = "not checked: whether sample ids name the same {} in all stores"
_IDS = Remedy("arrays in memory take the sample ids of a store with ", Argument("ids", metavar="store.sample_ids"))


class AlignedView:
    """Stores whose rows are the same samples in the same order; `load` and `stream` read their layers.

    Stores of different modalities, or of different columns of a table, hold different views of a sample, such as a
    picture and its caption. Their samples are compared by ids alone, and `notes` says so.

    Parameters
    ----------
    *stores : ActivationStore
        The open stores, at least one.
    pairing : Pairing, optional
        Which rows of the stores belong together, if their samples are paired deliberately; the rows of the view are
        then the pairs, and samples without partner are left out.

    Raises
    ------
    SampleMismatchError
        The stores hold different samples or the same samples in another order; the message counts the differences and
        shows the first. Or two stores put them into different classes, or hold Gram matrices whose blocks consist of
        different samples.
    """

    def __init__(self, *stores: ActivationStore, pairing: Pairing | None = None) -> None:
        self.stores, self.pairing = stores, pairing
        self._class_notes: list[str] = []
        if pairing is None:
            self._check_samples()
        self._check_classes()
        if pairing is None or pairing.whole:
            self._check_blocks()

    def _check_samples(self) -> None:
        """Check that all stores hold the same samples in the same order."""
        stores, first = self.stores, self.stores[0]
        # one store for each view and kind of fingerprint of the samples: only fingerprints of one kind can be compared
        references: dict[tuple[str, str, bool, str], ActivationStore] = {}
        for store in stores:
            ids = store.sample_ids
            for reference in (first, *references.values()):
                contents = not is_other_view(reference, store)
                if difference := reference.sample_ids.difference(ids, contents=contents):
                    raise SampleMismatchError(
                        f"{reference.path} and {store.path} do not hold the same samples: {difference}",
                        paths=(reference.path, store.path),
                        by_samples=True,
                        remedy=_IDS if any(isinstance(other, StoreInMemory) for other in stores) else _ALIKE,
                    )
            references.setdefault((store.modality, store.column, bool(ids.content), ids.hashed), store)

    def _check_classes(self) -> None:
        """Check that all stores put the samples into the same classes; pairs of different ids may be of two classes."""
        labelled = [store for store in self.stores if store.labels is not None]
        for store in labelled[1:]:
            if self._classes(store) == self._classes(labelled[0]):
                continue
            if self.pairing is not None and not self.pairing.same_ids:
                names = f"{labelled[0].path.name} and {store.path.name}"
                self._class_notes = [f"{names} put the pairs into different classes; this changes no value"]
                continue
            raise SampleMismatchError(
                f"{labelled[0].path} and {store.path} give the same samples different class labels",
                paths=(labelled[0].path, store.path),
                remedy=Remedy("extract one of them again, with the same ", Argument("labels", of="extract")),
            )

    def _check_blocks(self) -> None:
        """Check that the blocks of Gram matrices consist of the same samples in all stores."""
        first = self.stores[0]
        for store in self.stores:
            if _has_grams(first) and _has_grams(store) and not np.array_equal(_order(first), _order(store)):
                raise SampleMismatchError(
                    f"{first.path} and {store.path} hold Gram matrices whose blocks are not of the same samples: the "
                    "samples were read in different orders",
                    paths=(first.path, store.path),
                    remedy=Remedy("extract one of them again with the order of the other"),
                )

    @property
    def notes(self) -> list[str]:
        """Notes on the pairs, or on what was not checked: hashes are missing, or samples are of different views."""
        if self.pairing is not None:
            return [*self.pairing.notes, *self._class_notes]
        if any(store.provenance.get("sample_ids") == ROW_NUMBERS for store in self.stores):
            return ["no sample ids were given: row k of every array is taken as the same sample"]
        notes = [note for stores in self._views for note in _unchecked(stores)]
        if len(self._views) > 1:
            views = " and ".join(f"{_first(view)} ({noun_of(_known(view))} of {view[0].data})" for view in self._views)
            notes.append(
                f"samples are matched by their ids alone across {views}; not checked: whether what has the same id "
                "belongs together"
            )
        return notes

    @cached_property
    def _views(self) -> list[list[ActivationStore]]:
        """Stores by the view of the samples that they hold."""
        views: list[list[ActivationStore]] = []
        for store in self.stores:
            own = next((view for view in views if not any(is_other_view(other, store) for other in view)), None)
            if own is None:
                views.append([store])
            else:
                own.append(store)
        return views

    @property
    def data(self) -> str:
        """Description of the samples: that of every view, and of all stores whose samples are paired."""
        if self.pairing is not None:
            return " paired with ".join(dict.fromkeys(store.data for store in self.stores))
        return " and ".join(dict.fromkeys(view[0].data for view in self._views))

    @property
    def sample_ids(self) -> SampleIds:
        """Sample ids, the same for every store; of pairs those of the first store."""
        return self.stores[0].sample_ids if self.pairing is None else self.pairing.sample_ids

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sample ids, or of the list of pairs."""
        return self.sample_ids.fingerprint if self.pairing is None else self.pairing.fingerprint

    def rows(self, store: ActivationStore) -> NDArray[np.int64] | None:
        """Return the rows of a store in the order of the view, (n,); None if they are all its rows in their order."""
        return None if self.pairing is None or self.pairing.whole else self.pairing.rows[store]

    def _classes(self, store: ActivationStore) -> list[int]:
        """Return the class of every sample, numbered by first occurrence: names and numbers of classes do not count."""
        rows, numbers = self.rows(store), dict[int, int]()
        labels = np.asarray(store.labels)
        return [numbers.setdefault(label, len(numbers)) for label in labels[... if rows is None else rows].tolist()]

    def __repr__(self) -> str:
        models = ", ".join(store.model for store in self.stores)
        return f"<AlignedView of {len(self.sample_ids)} samples of {self.data}: {models}>"

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
            rows = self.rows(store)
            values = torch.from_numpy(store[name][:] if rows is None else store[name][rows])
            n, shape = len(self.sample_ids), tuple(values.shape)
            _check_compressed(key, n, shape)
            return as_samples(values.flatten(1), 1 if key.form == "grams" else min_samples).view(shape)
        except InvalidInputError as error:
            raise InvalidInputError(f"{store.path}, layer {name}: {error}") from None

    def stream(self, store: ActivationStore, name: str, device: str, *, min_samples: int = 1) -> "StoredRows":
        """Return the features of a layer, (n, p), as `StoredRows`, which read rows from the file when indexed."""
        n, kind = len(self.sample_ids), "samples" if self.pairing is None else "pairs of samples"
        if n < min_samples:
            raise InvalidInputError(
                f"{store.path}, layer {name}: {n} {kind} are too few: this measure needs at least {min_samples}"
            )
        return StoredRows(store[name], torch.device(device), self.rows(store))


def align(stores: Sequence[ActivationStore], pair_by: PairBy | Any) -> AlignedView:
    """Return the stores with their samples checked, or paired; advise to pair samples that can be paired by id."""
    if pair_by is not None:
        return AlignedView(*stores, pairing=pair(stores, pair_by))
    try:
        return AlignedView(*stores)
    except SampleMismatchError as error:
        advice = error.remedy.parts if error.remedy else ()
        if advice and error.by_samples and is_pairable(stores):
            advice += (", or pair equal ids deliberately with ", Argument("pair_by", ID))
            error.remedy = Remedy(*advice)
        raise


class StoredRows:
    """Layer of a store whose rows are read from the file when indexed (`repsim.metrics.recipes.rows.Rows`).

    Rows that are read for the first time are checked: the checksum has to match, and all values have to be finite.

    Parameters
    ----------
    array : Activations
        The array of the layer.
    device : torch.device
        Device of the tensors.
    order : array of shape (n,), optional
        Rows of the array that are the rows of the layer, in this order; by default all of them.
    """

    def __init__(self, array: Activations, device: torch.device, order: NDArray[np.int64] | None = None) -> None:
        self._array, self._order = array, order
        self.device = device
        self.shape = (len(array) if order is None else len(order), math.prod(array.shape[1:]))
        self.dtype = torch.float64 if array.dtype == np.float64 else torch.float32
        self._checked = np.zeros(len(array), bool)

    def __getitem__(self, rows: slice | Tensor) -> Float[Tensor, "rows p"]:
        step = 1
        if isinstance(rows, Tensor):
            indices = rows.cpu().numpy()
            wanted = indices if self._order is None else self._order[indices]
        elif self._order is not None:
            wanted = self._order[rows]
        else:
            start, stop, step = rows.indices(len(self._array))
            wanted = slice(start, max(start, stop))
        tensor = self._read(wanted)[::step].flatten(1).contiguous()
        to_gpu = self.device.type == "cuda" and not tensor.is_cuda
        if to_gpu:
            tensor = tensor.pin_memory()  # only pinned memory is copied while the GPU computes
        return tensor.to(self.device, non_blocking=to_gpu).to(self.dtype)  # a copy from a GPU has to be waited for

    def _read(self, rows: slice | NDArray[np.int64]) -> Tensor:
        """Read consecutive rows, or rows in any order; check those that are read for the first time."""
        array = self._array
        checked = isinstance(array, ArrayInMemory) or bool(self._checked[rows].all())  # `StoreInMemory` checks it
        if isinstance(array, ArrayInMemory):
            tensor = array.read_in_place(rows)
        elif isinstance(rows, slice):
            tensor = torch.from_numpy(array.read_rows(rows.start, rows.stop, check=not checked))
        else:
            tensor = torch.from_numpy(array.read_indices(rows, check=not checked))
        if not checked:
            if not is_finite(tensor):
                finite = torch.isfinite(tensor)
                first = int(np.arange(len(array))[rows][int(torch.nonzero(~finite)[0, 0])])
                raise InvalidInputError(
                    f"{int((~finite).sum())} values are NaN or infinite, the first in sample {first}"
                )
            self._checked[rows] = True
        return tensor


def _check_compressed(key: LayerKey, n: int, shape: tuple[int, ...]) -> None:
    """Check that an array of Gram matrices or sketches has the shape that its readout requires."""
    if key.form == "grams" and n < key.size:
        raise InvalidInputError(f"{n} samples are too few: {key.readout} needs at least {key.size}, one block")
    expected = (n // key.size, key.size, key.size) if key.form == "grams" else (n, 2, min(key.size, shape[-1]))
    if shape != expected:
        raise InvalidInputError(f"expected the shape {expected} for {key.readout} of {n} samples, got {shape}")


def _unchecked(stores: Sequence[ActivationStore]) -> list[str]:
    """Return a note if it was not checked that stores of one view have the same samples, for lack of hashes."""
    first = stores[0].sample_ids
    hashed = [store for store in stores if store.sample_ids.hashes]
    if not hashed or all(first.contents_known(store.sample_ids) for store in stores):
        return []
    noun = noun_of(_known(stores))
    unchecked = _UNCHECKED.format(noun)
    bare = [store for store in stores if not store.sample_ids.hashes]
    if not bare:
        kinds = "the files and others the pixels" if noun == "pictures" else "other contents than others"
        return [f"{unchecked}; some stores hash {kinds}"]
    return [f"{unchecked}; there are no hashes of the {noun} in {_first(bare)}; extract again to add them"]


def _known(stores: Sequence[ActivationStore]) -> set[str]:
    """Return the modalities of stores, as far as they are known."""
    return {store.modality for store in stores} - {""}


def _first(stores: Sequence[ActivationStore]) -> str:
    """Return the names of the first three stores."""
    return ", ".join(store.path.name for store in stores[:3]) + (", ..." if len(stores) > 3 else "")


def _has_grams(store: ActivationStore) -> bool:
    return any(store[name].key.form == "grams" for name in store.layers)


def _order(store: ActivationStore) -> NDArray[np.int64]:
    """Return the order in which the samples were read and cut into blocks, (n,)."""
    return np.arange(len(store)) if store.order is None else store.order
