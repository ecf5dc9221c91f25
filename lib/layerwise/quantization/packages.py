"""Libraries that quantizers are built on, which are asked for when they are first needed."""

from importlib import import_module
from types import ModuleType


def needs(module: str, package: str) -> ModuleType:
    """A module of an optional package; raises ImportError that says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this quantizer is built on {package}, which could not be imported ({error}): install it with "
            f"pip install {package}, or all quantizers with pip install 'layerwise[quantizers]'"
        ) from error
