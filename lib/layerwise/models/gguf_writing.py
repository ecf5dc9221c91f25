"""GGUF files of our models, for llama.cpp: the weights that a model has here, those of few bits bit for bit.

What llama.cpp wants otherwise than transformers: other names, vectors in float32, and in the family of Llama the rows
of q and k in another order, in which the two numbers that are rotated together are neighbours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from layerwise.backbone.devices import check_present
from layerwise.backbone.structure import blocks
from layerwise.models import gguf_files, gguf_tokenizers
from layerwise.models.folders import UnsuitableModel
from layerwise.quantization.ggml import in_file
from layerwise.quantization.packed import packed

# What a family is called in a file. llama.cpp takes Mistral for a Llama.
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
DTYPES = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}


def save_gguf(model: nn.Module, path, tokenizer=None) -> Path:
    """Save a model as a GGUF file, which llama.cpp runs, and `lw.load` reads as a dense model.

    Parameters
    ----------
    model
        Of the families Llama, Mistral, Qwen2 and Qwen3: a dense one, or one that was compressed with quantizer "gguf".
        Those matrices become Q4_1, Q5_1 and Q8_0 as they are, without another rounding; others stay in the dtype that
        they have in memory, and vectors, such as norms, become float32.
    path
        Of the file, which ends in .gguf; one that is there is replaced, once the new one is complete.
    tokenizer
        A byte-level one, as of GPT-2, SmolLM, Llama 3 and Qwen2. Without one, llama.cpp can only be given numbers.

    Returns
    -------
    file
        `path`, absolute.

    Raises
    ------
    UnsuitableModel
        For a model or a tokenizer that can't be in such a file, and why: another family, a sliced model, a sliding
        window, other positions than Llama 3's, few bits of another quantizer.
    ValueError
        For a path that is a folder, or that ends otherwise.
    """
    path = Path(path).expanduser().absolute()
    if not gguf_files.is_named_so(path):
        raise ValueError(f"{path} must be a file that ends in .gguf: a folder is what lw.save writes")
    check_present(model)
    config, count = model.config, len(blocks(model))
    family = _family(config)
    names = gguf.get_tensor_name_map(_kind(family), count)
    tensors = [(_name(names, where), kind, contents) for where, kind, contents in _tensors(model, family)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        new = Path(temporary) / path.name
        writer = GGUFWriter(new, family)
        _describe(writer, config, count)
        gguf_tokenizers.describe_tokenizer(writer, tokenizer, config.vocab_size)
        for name, kind, contents in (*tensors, *_frequencies(config)):
            writer.add_tensor(name, contents, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        new.replace(path)
    return path


def _family(config: PretrainedConfig) -> str:
    """What a file calls the family; raises UnsuitableModel for what llama.cpp would compute otherwise."""
    if (kind := config.model_type) not in FAMILIES:
        raise UnsuitableModel(f"a model of {kind!r} can't be written to GGUF here; of {', '.join(FAMILIES)} it can")
    if config.hidden_act != "silu":
        raise UnsuitableModel(f"in a GGUF file an MLP of this family has silu, not {config.hidden_act!r}")
    window, most = getattr(config, "sliding_window", None), config.max_position_embeddings
    if window is not None and window < most:
        raise UnsuitableModel(
            f"llama.cpp has no sliding window in this family, and the model has one of {window} for {most} tokens: "
            f"set model.config.max_position_embeddings = {window}, which is where both do the same"
        )
    return FAMILIES[kind]


def _kind(family: str) -> gguf.MODEL_ARCH:
    return {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[family]


def _describe(writer: GGUFWriter, config: PretrainedConfig, count: int) -> None:
    """Write what the file says of the model, which has `count` blocks."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(count)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _tensors(model: nn.Module, family: str) -> Iterator[tuple[str, Kind, np.ndarray]]:
    """Path, type and contents of each tensor: matrices as bytes, vectors as numbers."""
    for path, layer in packed(model).items():
        try:
            kind, rows = in_file(layer)
        except ValueError as error:
            raise UnsuitableModel(f"{path}: {error}") from error
        yield f"{path}.weight", kind, _rows(path, rows, model.config, family)
    for path, parameter in model.named_parameters():  # those that are tied once
        if parameter.numel():  # that of a packed embedding holds nothing
            one = parameter.detach().cpu()
            one = one.float() if one.ndim == 1 or one.dtype not in DTYPES else one.contiguous()
            contents = one.numpy() if one.ndim == 1 else one.view(torch.uint8).numpy()
            yield path, DTYPES[one.dtype], _rows(path, contents, model.config, family)


def _rows(path: str, contents: np.ndarray, config: PretrainedConfig, family: str) -> np.ndarray:
    """Rows in the order that llama.cpp wants: of a Llama's q and k, those of the two halves of a head in turns."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = [count for name, count in heads.items() if f".{name}" in path]
    if family != "llama" or not found:
        return contents
    halves = contents.reshape(found[0], 2, len(contents) // found[0] // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(contents.shape)


def _frequencies(config: PretrainedConfig) -> list[tuple[str, Kind, np.ndarray]]:
    """The tensor by which Llama 3's rotary frequencies are divided; none where they are as they were."""
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        return []
    if kind != "llama3":
        raise UnsuitableModel(f"how it scales rotary positions ({kind!r}) can't be written to GGUF here")
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
    return [(gguf_files.ROTARY, Kind.F32, (plain / scaled).numpy())]


def _name(names: gguf.TensorNameMap, path: str) -> str:
    """What a file calls the tensor at `path`."""
    if (name := names.get_name(path, (".weight", ".bias"))) is None:
        raise UnsuitableModel(f"{path} is no tensor that a GGUF file of this family has")
    return name
