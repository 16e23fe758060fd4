"""Options of an extraction, shared by `repsim.extract`, the command `repsim extract` and study files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from repsim.runtime.options import Count, Device, Positive, Text, option
from repsim.stores.axes import read_texts

DType = Literal["float32", "float16"]
Number = int | float
Argument = str | int | float | bool | None | list[str | int | float | bool | None]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of building a model and preparing its samples that differ from the defaults of its name and weights."""

    weights_key: Annotated[
        Text | None, option("Set of weights to take from a file with several, by its key.", unset="chosen")
    ] = None
    weights_prefix: Annotated[
        Text | None, option("Take only weights whose names begin with this, and remove it.", unset="all")
    ] = None
    weights_match: Annotated[
        Literal["names", "order"],
        option("Match a file's tensors by their names, or by their order where names differ and all shapes are equal."),
    ] = "names"
    img_size: Annotated[
        int | str | tuple[int, ...] | None,
        option(
            "Size of the pictures in pixels: a number, or HxW. Weights of another size are resampled.",
            unset="as the weights, else the model's name",
            metavar="N|HxW",
        ),
    ] = None
    mean: Annotated[
        Number | str | tuple[Number, ...] | None,
        option("Mean that pixels in [0, 1] are normalised with: one number or three.", unset="as the weights",
               metavar="X|X,X,X"),
    ] = None  # fmt: skip
    std: Annotated[
        Number | str | tuple[Number, ...] | None,
        option("Standard deviation that pixels are normalised with: one number or three.", unset="as the weights",
               metavar="X|X,X,X"),
    ] = None  # fmt: skip
    interpolation: Annotated[
        Text | None, option("Interpolation that resizes pictures: bicubic, bilinear, ...", unset="as the weights")
    ] = None
    crop_pct: Annotated[
        Number | str | None,
        option("Share of the resized picture that the crop takes.", unset="as the weights", metavar="X"),
    ] = None
    max_length: Annotated[
        Positive | None,
        option("Largest number of tokens of a text, special tokens included; longer texts are cut.",
               unset="the model's own limit"),
    ] = None  # fmt: skip
    model_kwargs: Annotated[
        Mapping[str, Argument],
        option("Arguments of the function that builds the model (global_pool=avg).", metavar="KEY=VALUE"),
    ] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, Any]:
        """Options of this class as keywords of `repsim.extractors.factory.make_extractor`."""
        return {choice.name: getattr(self, choice.name) for choice in fields(Choices)}


@dataclass(frozen=True, kw_only=True)
class Model(Choices):
    """A model: its name, its weights, and its name in results."""

    name: Annotated[
        Text,
        option("Name in timm, `torchvision/NAME`, `hf/NAME` of transformers, or a network that comes with repsim."),
    ]
    weights: Annotated[
        Text,
        option("`pretrained`, `random`, or a .safetensors or .pth file. A pattern stands for one model per file, with "
               "axes from the names: 'runs/{run}/step_{step}.pt'; `*` matches anything.", path=True),
    ] = "pretrained"  # fmt: skip
    seed: Annotated[Count, option("Seed of random weights.")] = 0
    recalibrate: Annotated[
        bool,
        option("Set the statistics of batch norm of random weights to those of up to 512 of the pictures; "
               "otherwise batch norm does nothing."),
    ] = False  # fmt: skip
    axes: Annotated[
        Mapping[str, int | float | str],
        option("Coordinates of the model among others (step=1000, width=64, run=a).", metavar="NAME=VALUE",
               check=read_texts),
    ] = field(default_factory=dict)  # fmt: skip
    store: Annotated[
        Text | None,
        option("Name of the model in results and of its store, NAME.h5.", unset="the name, with the chosen options"),
    ] = None

    def __str__(self) -> str:
        return f"{self.name} with {self.weights}" + f", seed {self.seed}" * (self.weights == "random")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Options of the samples, which are the same for every model."""

    source: Annotated[
        Text,
        option("Folder of pictures, a .tar, `digits`, or a timm data set (torch/cifar10); texts (.txt) or a table "
               "(.csv, .jsonl, .parquet); arrays (.npy, .npz, .safetensors, .pt, .zarr); docs/samples.md lists all.",
               path=True),
    ]  # fmt: skip
    column: Annotated[
        Text | None,
        option("Column of a table, array of a file, or extension in webdataset shards that is read: 'image', 'text'.",
               unset="the only one that can be read"),
    ] = None  # fmt: skip
    id_column: Annotated[
        Text | None, option("Column of a table with the ids of the samples.", unset="id or key, else line numbers")
    ] = None
    label_column: Annotated[
        Text | None,
        option("Column of a table with the classes of the samples.", unset="label or class, if there is one"),
    ] = None
    group_column: Annotated[
        Text | None,
        option("Column of a table with groups of samples that are not independent.",
               unset="the pictures, if several lines have the same"),
    ] = None  # fmt: skip
    split: Annotated[
        Text | None,
        option("Part of the data: a folder inside it (`.`: all of it), or `train`, `test`, ... of a data set.",
               unset="chosen by the source"),
    ] = None  # fmt: skip
    root: Annotated[Text | None, option("Folder of the timm data sets.", unset="none", path=True)] = None
    limit: Annotated[Positive | None, option("Number of samples, spread evenly over the data.", unset="all")] = None
    download: Annotated[bool, option("Download the timm data set if it is missing.")] = False
    skip_bad: Annotated[bool, option("Leave out and list samples that cannot be decoded, instead of stopping.")] = False
    labels: Annotated[
        Text | None,
        option("Classes of the samples: a CSV file of two columns, id or file name, and class.",
               unset="those of the data", path=True),
    ] = None  # fmt: skip
    groups: Annotated[
        Text | None,
        option("Groups of samples that are not independent (frames of a scene, crops): `folders`, `re:PATTERN` over "
               "the ids with the group in its first bracket, or a CSV file of id or file name, and group.",
               unset="none: all are independent", path=True, metavar="folders|re:PATTERN|PATH"),
    ] = None  # fmt: skip
    max_pixels: Annotated[
        Positive | None, option("Refuse pictures with more pixels than this.", unset="178956970, 179 megapixels")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Options of the layers, their readouts, the forward passes, and the axes of all models."""

    layers: Annotated[Text, option("`blocks`, `stages`, `all`, or globs over module names: 'layer3.*,norm'.")] = (
        "blocks"
    )
    readout: Annotated[
        Text,
        option("How a layer becomes an array: `mean`, `max`, `cls`, `last`, `flatten`, `grid:K`, `gram:B`, `sketch:M`; "
               "separate several by commas."),
    ] = "mean"  # fmt: skip
    batch_size: Annotated[Positive | None, option("Samples per forward pass.", unset="32; whole blocks for gram:B")] = (
        None
    )
    workers: Annotated[Count | None, option("Processes that prepare samples.", unset="one per core")] = None
    together: Annotated[
        Positive,
        option("Models in memory at once; those that prepare samples in the same way share the work."),
    ] = 4  # fmt: skip
    device: Device = "auto"
    amp: Annotated[bool, option("Half precision in the forward pass (float16 on cuda, bfloat16 elsewhere).")] = False
    channels_last: Annotated[
        bool,
        option("Compute convolutions with the channels in the last axis of memory: faster for some convolutional "
               "networks; changes last digits."),
    ] = False  # fmt: skip
    compile: Annotated[
        bool,
        option("Compile each model with `torch.compile`, which takes from seconds to minutes for each and needs a C++ "
               "compiler: faster for many samples; changes last digits."),
    ] = False  # fmt: skip
    dtype: Annotated[DType, option("Type in which activations are stored.")] = "float32"
    axes_file: Annotated[
        Text | None,
        option("CSV file of axes: one column per axis, and the column `model` (names of stores) or `weights` (files "
               "relative to the CSV, or patterns).", unset="none", path=True),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Passes):
    """All options of an extraction except those of models and samples."""

    overwrite: Annotated[bool, option("Start again, and replace existing stores.")] = False
