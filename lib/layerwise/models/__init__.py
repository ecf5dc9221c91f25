"""Models loaded and saved by name: embedded, packaged, GGUF, of the Hub, or a folder; a checkpoint block by block."""

from layerwise.models.folders import DamagedModel, UnknownModel, UnsuitableModel
from layerwise.models.gguf_writing import save_gguf
from layerwise.models.loading import configuration, load, save
from layerwise.models.names import PREFIX, WEIGHTS, embedded
from layerwise.models.wheels import packaged

__all__ = [
    "PREFIX",
    "WEIGHTS",
    "DamagedModel",
    "UnknownModel",
    "UnsuitableModel",
    "configuration",
    "embedded",
    "load",
    "packaged",
    "save",
    "save_gguf",
]
