"""The extractor for timm's classification models."""

import timm

from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preprocessing import timm_preprocessing
from repsim.extractors.readouts import get_several
from repsim.extractors.weights import load_model, suffix


class TimmExtractor(ModuleExtractor):
    """Reads layers of one timm model, with the preprocessing that belongs to its weights.

    Parameters
    ----------
    model
        A timm name (``resnet50``, ``vit_base_patch16_224.augreg_in21k_ft_in1k``, ``digits_vit.seed0``).
    weights
        ``pretrained``, ``random``, or a ``.safetensors`` or ``.pth`` file.
    seed
        Of random weights.
    options
        Of which weights of a file, of which size and normalisation, built how (`repsim.extractors.options`).
    layers
        ``blocks``, ``stages``, ``all``, or globs (`repsim.extractors.layers.select`).
    readout
        One or several of ``mean``, ``max``, ``cls``, ``flatten``, ``grid:K``, with commas between.

    Raises
    ------
    UnknownNameError
        For a model, tag, layer or readout of no known name; with the nearest ones.
    WeightsError
        For weights that cannot be had, are damaged, hold code, or are another architecture's.
    InvalidInputError
        For an option that the model does not know, a layer that is never called, and a readout that no chosen layer has
        (``cls`` of a ResNet).

    Examples
    --------
    >>> from repsim.extractors import Stream, open_images
    >>> extractor = TimmExtractor("digits_vit", weights="random", layers="blocks.*")
    >>> [(layer.name, layer.shape, layer.prefix_tokens) for layer in extractor.layers()][0]
    ('blocks.0', (65, 64), 1)
    >>> batch = next(extractor.stream(open_images("digits"), range(6), Stream(batch_size=4)))
    >>> batch.rows, tuple(batch.values["blocks.0", "mean"].shape)
    ((0, 1, 2, 3), (4, 64))
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str = "pretrained",
        seed: int = 0,
        options: ModelOptions | None = None,
        layers: str = "blocks",
        readout: str = "mean",
    ) -> None:
        get_several(readout)  # a slip of the hand there should not cost a download
        loaded, record, notes = load_model(model, weights, seed, options)
        super().__init__(
            loaded,
            timm_preprocessing(loaded.pretrained_cfg),  # type: ignore[arg-type]
            name=(model if weights == "pretrained" else record["timm_name"]) + suffix(weights, seed, options),
            layers=layers,
            readout=readout,
            provenance={
                "extractor": "timm",
                **record,
                "batch_norm": "eval mode, not recalibrated" if weights == "random" else "eval mode",
                "timm_version": timm.__version__,
            },
            notes=notes,
        )
