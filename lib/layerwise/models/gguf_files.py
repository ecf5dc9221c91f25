"""GGUF files: the header says whether one can be used, transformers reads it, and what comes of it is a dense model.

What transformers leaves out of a file is an error, or is done here: the rotary frequencies of Llama 3.1 and later. The
format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGUFReader
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from layerwise.backbone import devices
from layerwise.models import reading
from layerwise.models.folders import DamagedModel, UnsuitableModel

PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
TAKE = "take the model's safetensors"
ROTARY = "rope_freqs.weight"  # by what each rotary frequency is divided, [head_dim / 2]
FLOATS = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def is_named_so(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name; a folder may be called so too."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def only(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no safetensors; None if it has none. Raises UnsuitableModel for several."""
    found = sorted(path for path in folder.iterdir() if is_named_so(path))
    if not found or any(folder.glob("*.safetensors*")):
        return None
    if len(found) > 1 and not PART.search(found[0].name):
        listed = ", ".join(path.name for path in found[:3]) + (", ..." if len(found) > 3 else "")
        raise UnsuitableModel(f"{folder} holds {len(found)} GGUF files, name one of them: {listed}")
    return found[0]


def gguf_configuration(path: Path) -> PretrainedConfig:
    """The configuration of the dense model that a GGUF file makes; its dtype is that of the file's matrices, bfloat16
    if they have few bits. Weights aren't read.

    Raises DamagedModel for a file that is no GGUF or isn't whole, UnsuitableModel for a part of one, and for an
    architecture or a type of weights that can't be converted.
    """
    file = opened(path)
    family = said(file, "general.architecture")
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, AttributeError) as error:
        if family in GGUF_SUPPORTED_ARCHITECTURES:
            raise DamagedModel(f"{path}: its metadata makes no configuration ({error!r})") from error
        known = ", ".join(sorted({*GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}))
        raise UnsuitableModel(
            f"{path} has a model of architecture {family!r}, which transformers can't convert from GGUF: {TAKE}. "
            f"It converts {known}"
        ) from error
    scaling = said(file, f"{family}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise UnsuitableModel(f"{path}: transformers leaves out how it scales rotary positions ({scaling!r}): {TAKE}")
    if frequencies := next((tensor for tensor in file.tensors if tensor.name == ROTARY), None):
        config.rope_parameters = _llama3(path, config, np.array(frequencies.data))
    config.dtype = _dtype(file)
    return config


def read_gguf(
    path: Path, config: PretrainedConfig, dtype: torch.dtype, device: str | torch.device = "cpu", room: bool = False
):
    """The dense model of a GGUF file with its `configuration`: unpacked in float32, rounded to `dtype`.

    Raises UnsuitableModel if transformers leaves tensors of the file out, DamagedModel if the file lacks some; with
    `room`, MemoryError if the device hasn't got room for it.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if left_out := _left_out(opened(path), empty):
        raise UnsuitableModel(f"{path}: transformers leaves out {', '.join(left_out[:3])} of this model: {TAKE}")
    size = sum(parameter.numel() for parameter in empty.parameters()) * dtype.itemsize
    if room and devices.limits(size, torch.device(device)):
        raise MemoryError(
            f"{path} takes {size / 1e9:.1f} GB as {dtype}, more than is free on {device}, and a GGUF file is read "
            'whole: load it with device="cpu" where there is room, lw.save it, and go on with the folder'
        )
    dense = {}
    if hasattr(transformers, "GgufConfig"):  # since 5.17, which keeps weights packed where it has kernels for that
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with reading.quiet(bars=False):
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            device_map=device,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **dense,
        )
    reading.check_fit(report, path)
    return model


def opened(path: Path) -> GGUFReader:
    """The header of a GGUF file, and its tensors, which stay on the disk; raises as `gguf_configuration` of files."""
    with open(path, "rb") as start:
        begins = start.read(4)
    if begins != b"GGUF":
        raise DamagedModel(f"{path} is no GGUF file: it begins with {begins!r}, not with b'GGUF'")
    part = "merge the parts with llama.cpp's llama-gguf-split --merge FIRST_PART WHOLE, or " + TAKE
    if PART.search(path.name):
        raise UnsuitableModel(f"{path} is one part of several of a model: {part}")
    try:
        file = GGUFReader(path)
        unpacked = {tensor.tensor_type: tensor for tensor in file.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise DamagedModel(f"{path} is cut off or damaged, get it anew: {error!r}") from error
    if (said(file, "split.count") or 1) > 1:
        raise UnsuitableModel(f"{path} is one of {said(file, 'split.count')} parts of a model: {part}")
    for kind, tensor in unpacked.items():
        try:
            gguf.dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], kind)
        except NotImplementedError as error:
            raise UnsuitableModel(f"{path}: weights of type {kind.name} can't be unpacked ({error}): {TAKE}") from error
    return file


def said(file: GGUFReader, key: str):
    """What the metadata of a GGUF file say, or None."""
    field = file.get_field(key)
    return None if field is None else field.contents()


def _dtype(file: GGUFReader) -> torch.dtype:
    """That of a file's matrices; bfloat16 if they have several, or few bits."""
    kinds = {FLOATS.get(tensor.tensor_type.name, torch.bfloat16) for tensor in file.tensors if len(tensor.shape) > 1}
    return kinds.pop() if len(kinds) == 1 else torch.bfloat16


def _left_out(file: GGUFReader, empty: nn.Module) -> list[str]:
    """Tensors of a file that no tensor of the model has the name of."""
    kind = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[said(file, "general.architecture")]
    names = gguf.get_tensor_name_map(kind, empty.config.num_hidden_layers)
    known = {ROTARY, "output.weight"}  # the latter is there of tied heads too
    for path in empty.state_dict():
        parts = path.split(".")  # gguf knows some with and some without what is before
        tails = (names.get_name(".".join(parts[i:]), (".weight", ".bias")) for i in range(len(parts)))
        known |= {tail for tail in tails if tail}
    experts = any(".experts." in path for path in empty.state_dict())  # which transformers puts together by itself
    found = [tensor.name for tensor in file.tensors if tensor.name not in known]
    return [name for name in found if not (experts and "_exps" in name)]


def _llama3(path: Path, config: PretrainedConfig, divisors: np.ndarray) -> dict:
    """The rotary parameters of Llama 3.1 and later, of which a file only has what they make of the frequencies."""
    found = config.rope_parameters | {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = type(config).from_dict(config.to_dict() | {"rope_parameters": found})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    plain = found["rope_theta"] ** -(torch.arange(len(divisors)) / len(divisors))
    if not torch.allclose(plain / torch.from_numpy(divisors), frequencies, rtol=1e-3):
        raise UnsuitableModel(f"{path}: {ROTARY} aren't those of Llama 3.1 and later: {TAKE}")
    return found
