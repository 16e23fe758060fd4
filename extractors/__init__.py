"""Extractors: read the activations of a model's layers for the samples of a source.

``repsim.extractors.open_samples`` opens the samples; `repsim.extractors.timm_models.TimmExtractor` reads timm models.
"""

if __name__ != "repsim.extractors":
    raise ImportError("the folder extractors/ is the package repsim.extractors: write 'import repsim.extractors'")

import importlib
import warnings

from repsim.extractors.base import Batch, Extractor, LayerSpec, Readout, Stream
from repsim.extractors.samples.opening import open_images, open_samples
from repsim.extractors.samples.source import ImageSource, SampleSource
from repsim.runtime import notebook

if notebook.running():
    with warnings.catch_warnings():  # tqdm, imported by huggingface_hub, warns when ipywidgets is not installed
        warnings.filterwarnings("ignore", "IProgress not found")
        importlib.import_module("tqdm.auto")

__all__ = [
    "Batch",
    "Extractor",
    "ImageSource",
    "LayerSpec",
    "Readout",
    "SampleSource",
    "Stream",
    "open_images",
    "open_samples",
]
