"""Packed models on disk: `config.json` says which layers are packed, `packed.safetensors` holds all tensors.

The weights have a name of their own, and the configuration a `quant_method` of its own, so that what doesn't know the
format finds no weights. Under the usual name, plain `from_pretrained` would put random weights where packed ones are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from layerwise.backbone.structure import Conv1D, untie_what_differs, weight_matrix
from layerwise.quantization.packed import (
    STATISTIC_GROUP,
    Outlying,
    Packed,
    PackedLinear,
    Quantized,
    SparseLinear,
    packed,
)
from layerwise.quantization.tables import PackedEmbedding, TiedHead, packed_embedding

METHOD = "layerwise"
FORMAT = 1
FILE = "packed.safetensors"


def is_ours(config: dict) -> bool:
    """Whether this is the configuration of a packed model."""
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


def files(config: dict) -> list[str]:
    """Names of the files with the tensors of a packed model: one, or several if it was written block by block."""
    return config["quantization_config"].get("files", [FILE])


def write_packed(model: nn.Module, folder: Path) -> None:
    """Write a model with packed layers to an empty folder; tied tensors are stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        holds_nothing = isinstance(tensor, nn.Parameter) and not tensor.numel()  # that of a packed embedding
        if id(tensor) not in seen and not holds_nothing:
            tensors[name] = tensor.detach().contiguous()
        seen.add(id(tensor))
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    describe(model, folder, [FILE], layers(model))


def layers(module: nn.Module, prefix: str = "") -> dict[str, dict]:
    """What config.json says of each packed layer, by its path, which begins with `prefix`."""
    return {prefix + path: {"bits": layer.bits, "group": layer.group} for path, layer in packed(module).items()}


def describe(model: nn.Module, folder: Path, names: list[str], layers: dict[str, dict]) -> None:
    """Write config.json, which says how to read the files `names` that hold the tensors of `model`."""
    model.config.save_pretrained(folder)
    about = {"quant_method": METHOD, "format": FORMAT, "files": names, "layers": layers}
    about["sha256"] = _sha256([folder / name for name in names], layers)
    file = folder / "config.json"
    dtype = str(model.dtype).removeprefix("torch.")  # which the configuration of a model that was cast doesn't know
    config = json.loads(file.read_text()) | {"dtype": dtype, "quantization_config": about}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_packed(folder: Path) -> nn.Module:
    """The model that `write_packed` wrote, on the CPU. Raises ValueError that says what is wrong with the folder."""
    config = json.loads((folder / "config.json").read_text())
    names, about = files(config), config.pop("quantization_config")
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, this version of layerwise reads {FORMAT}")
    if gone := [name for name in names if not (folder / name).exists()]:
        raise ValueError(f"it has no {gone[0]}")
    if _sha256([folder / name for name in names], about.get("layers")) != about.get("sha256"):
        raise ValueError("its tensors or config.json are not what was written: damaged, or not all of it is there")
    tensors = {}
    for name in names:
        tensors |= load_file(folder / name)
    kind = AutoConfig.for_model(config.pop("model_type"), **config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(kind, dtype=kind.dtype)
    for path, layer in about["layers"].items():
        model.set_submodule(path, _empty(model.get_submodule(path), tensors, path, **layer))
    table = model.get_input_embeddings()
    if one := isinstance(table, PackedEmbedding) and model.config.tie_word_embeddings:
        model.set_output_embeddings(TiedHead(table, model.get_output_embeddings().bias))
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    untie_what_differs(model)
    if not one:  # it would make the head's bias as short as the weight that holds nothing
        model.tie_weights()
    if (folder / GENERATION_CONFIG_NAME).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left or unexpected:
        raise ValueError(f"its tensors don't fit config.json: {', '.join((left + unexpected)[:3])}")
    return model


def _empty(layer: nn.Linear | Conv1D | nn.Embedding, tensors: dict, path: str, bits: int, group: int) -> Packed:
    """A packed layer of the size of `layer`, with room for the tensors of this path."""

    def like(name: str) -> torch.Tensor:
        return torch.empty_like(tensors[f"{path}.{name}"])

    rows, columns = weight_matrix(layer).shape
    with torch.device("meta"):
        codes = torch.empty(rows, columns, dtype=torch.uint8)
        scale, zero = like("scale"), like("zero")
        if isinstance(layer, nn.Embedding):
            return packed_embedding(layer, Quantized(codes, scale, zero, group), bits)
        if f"{path}.statistics" not in tensors:
            return PackedLinear(Quantized(codes, scale, zero, group), bits, layer.bias)
        statistics = torch.empty(2 * -(-columns // group), rows, dtype=torch.uint8)
        outliers = Outlying(*map(like, Outlying._fields))
        return SparseLinear(
            codes, group, Quantized(statistics, scale, zero, STATISTIC_GROUP), outliers, bits, layer.bias
        )


def _sha256(paths: list[Path], layers) -> str:
    """A digest of the tensors and of what says how to read them."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    digest.update(json.dumps(layers, sort_keys=True).encode())
    return digest.hexdigest()
