"""Picture sets that have a name: the digits of scikit-learn, and the data sets that timm opens."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from repsim.errors import Argument, ImageError, Remedy, UnknownNameError, reason
from repsim.extractors.samples.decoding import MAX_PIXELS, as_rgb, decode, unreadable
from repsim.extractors.samples.source import Content, ImageSource, pixel_content

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "eval", "evaluation"})
_TRAIN = frozenset({"train", "training"})


class Digits(ImageSource):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels.

    The split ``train`` has the samples at even positions, ``test`` those at odd positions.
    """

    quick = True
    splits: ClassVar[dict[str | None, slice]] = {
        None: slice(None),
        "train": slice(0, None, 2),
        "test": slice(1, None, 2),
    }

    def __init__(self, split: str | None = None) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import; only this source needs it

        if split not in self.splits:
            raise UnknownNameError("split", str(split), [s for s in self.splits if s], where="of digits")
        digits = load_digits()
        chosen = range(len(digits.target))[self.splits[split]]
        self.name = "digits" if split is None else f"digits [{split}]"
        self.ids = [f"digits/{i:04d}" for i in chosen]
        self.labels = digits.target[chosen].astype(np.int64)
        self.classes = [str(c) for c in range(10)]
        self._pixels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)

    def load(self, index: int) -> Image.Image:
        """Return one digit as an RGB picture."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - decoded already
        """Hash the pixels of one digit."""
        return pixel_content(Digits.load(self, index))

    def sizes(self) -> Sequence[int]:
        """Return the size of each picture in bytes, 64 for all."""
        return [self._pixels[0].size] * len(self.ids)


class TimmDataset(ImageSource):
    """A data set that timm's ``create_dataset`` opens by name.

    Items are read one by one, without timm's error handling, which would replace a damaged picture by the next one.
    """

    def __init__(
        self,
        name: str,
        split: str | None,
        root: str | None,
        max_pixels: int = MAX_PIXELS,
        *,
        download: bool = False,
    ) -> None:
        self.max_pixels = max_pixels
        prefix, _, rest = name.partition("/")
        split = split or "validation"
        if prefix in {"hfids", "tfds", "wds"}:
            raise ImageError(
                f"{name} can only be streamed: its samples have no fixed order; use a folder, a .tar, torch/ or hfds/"
            )
        if prefix == "torch" and rest in {"folder", "image_folder"}:
            raise ImageError(
                f"{name} is a folder of pictures",
                remedy=Remedy("give the folder itself, and its split with ", Argument("split")),
            )
        if prefix == "torch" and split not in _SPLITS:  # timm would take another split without a warning
            raise UnknownNameError("split", split, sorted(_SPLITS), where=f"of {name}")
        if root is None and prefix == "torch":
            raise ImageError(
                f"the folder of {name} is not set",
                remedy=Remedy("set it with ", Argument("data_root", metavar="DIR")),
            )
        try:
            from timm.data.dataset_factory import create_dataset  # noqa: PLC0415 - slow, and only this source needs it

            self._dataset = create_dataset(name, root=root, split=split, download=download, search_split=False)
        except Exception as error:  # noqa: BLE001 - a third-party data set may raise any exception
            fetch = Remedy(Argument("download", value=True), " allows the download")
            where = f" under {root}" if root else ""
            raise ImageError(
                f"cannot open {name} [{split}]{where}: {reason(error)}",
                remedy=None if download or prefix != "torch" else fetch,
            ) from None
        if prefix == "torch":  # timm has several names for the two splits; the same samples get the same ids
            split = "train" if split in _TRAIN else "test"
        self.name = f"{name} [{split}]"
        self.ids = [f"{name}/{split}/{i}" for i in range(len(self._dataset))]
        reader = getattr(self._dataset, "reader", None)
        self._items = self._dataset if reader is None else reader
        iterate = getattr(reader, "iter_targets", None)
        self._take_labels(list(iterate()) if iterate else getattr(self._dataset, "targets", ()))
        self.classes = [str(c) for c in getattr(self._dataset, "classes", getattr(reader, "class_to_idx", ()))]

    def _take_labels(self, targets: Sequence[Any]) -> None:
        """Use the targets as labels if there is one integer per sample; otherwise record that they are left out."""
        if len(targets) != len(self.ids) or not len(targets):
            return
        if all(np.ndim(target) == 0 and np.asarray(target).dtype.kind in "iub" for target in targets):
            self.labels = np.asarray(targets, dtype=np.int64)
        else:
            self.left_out.add("targets of samples that are no class numbers", str(targets[0]))

    def _item(self, index: int) -> Any:
        """Read one sample without ``ImageDataset.__getitem__``, which returns the next sample after an error."""
        try:
            return self._items[index][0]
        except MemoryError:  # the sample itself may be fine
            raise
        except Exception as error:  # noqa: BLE001 - a third-party data set may raise any exception
            raise unreadable(self.ids[index], reason(error)) from None

    def load(self, index: int) -> Image.Image:
        """Return one sample, decoded to RGB."""
        picture = self._item(index)
        if not isinstance(picture, Image.Image):  # an open file
            return decode(picture, self.ids[index], self.max_pixels)
        try:
            return as_rgb(picture)
        except MemoryError:  # the sample itself may be fine
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise any exception on damaged files
            raise unreadable(self.ids[index], reason(error)) from None

    def sizes(self) -> Sequence[int]:
        """Return zeros: the sizes are unknown without reading all samples, so only the ids make the fingerprint."""
        return [0] * len(self.ids)
