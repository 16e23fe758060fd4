"""Extractor of timm's classification models."""

import timm

from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.options import ModelOptions
from repsim.extractors.preprocessing import timm_preprocessing
from repsim.extractors.readouts import get_several
from repsim.extractors.weights import load_model, suffix


class TimmExtractor(ModuleExtractor):
    """Extractor of the layers of a timm model, with the preprocessing that belongs to its weights.

    Parameters
    ----------
    model : str
        A timm name (``resnet50``, ``vit_base_patch16_224.augreg_in21k_ft_in1k``, ``digits_vit.seed0``).
    weights : str
        ``pretrained``, ``random``, or a ``.safetensors`` or ``.pth`` file.
    seed : int
        Seed of random weights.
    options : ModelOptions, optional
        Choice of the weights in a file, size and normalisation of the pictures, and arguments of the model.
    layers : str
        ``blocks``, ``stages``, ``all``, or globs (`repsim.extractors.layers.select`).
    readout : str
        One or several of ``mean``, ``max``, ``cls``, ``flatten``, ``grid:K``, ``gram:B``, ``sketch:M``, separated by
        commas.

    Raises
    ------
    UnknownNameError
        A model, tag, layer or readout does not exist; the message suggests similar names.
    WeightsError
        The weights are not available, are damaged, contain code, or belong to another architecture.
    InvalidInputError
        The model does not take one of the options, a layer is never called, or no chosen layer has the readout
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
        get_several(readout)  # a typing error in the readout is reported before the download
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
