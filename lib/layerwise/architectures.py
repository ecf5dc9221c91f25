"""The one table of model families: where the blocks, norms and projections are, and what shape they have.

Adding a family is one entry in `ARCHITECTURES` and one row in `tests/families.py`. All paths are attribute paths of a
Hugging Face `...ForCausalLM`; those of a block are relative to the block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn


class UnsupportedArchitecture(ValueError):
    """A model family that the table does not hold."""


@dataclass(frozen=True)
class Architecture:
    """Where the parts of a family are.

    A block reads the residual stream (width `D`) through its norms into the *inputs* and writes to it by the
    *outputs*. With parallel attention and MLP, both read the one `attention_norm` and there is no `mlp_norm`.
    """

    blocks: str
    embeddings: tuple[str, ...]  # all that writes the residual stream before block 0, [V or positions, D]
    final_norm: str
    head: str
    attention_norm: str
    mlp_norm: str | None
    attention_inputs: tuple[str, ...]
    attention_output: str
    mlp_inputs: tuple[str, ...]
    mlp_output: str
    norm: Literal["rms", "layer"]  # scale only, or mean, scale and shift

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same input and are added up."""
        return self.mlp_norm is None


_LLAMA = Architecture(
    blocks="model.layers",
    embeddings=("model.embed_tokens",),
    final_norm="model.norm",
    head="lm_head",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention_inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    mlp_inputs=("mlp.gate_proj", "mlp.up_proj"),
    mlp_output="mlp.down_proj",
    norm="rms",
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,  # biases on q, k and v
    "qwen3": _LLAMA,  # norms on the heads of q and k, which no cut of the residual stream touches
    "phi3": replace(  # q, k and v in one matrix, gate and up in another
        _LLAMA, attention_inputs=("self_attn.qkv_proj",), mlp_inputs=("mlp.gate_up_proj",)
    ),
    "opt": Architecture(
        blocks="model.decoder.layers",
        embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        final_norm="model.decoder.final_layer_norm",
        head="lm_head",
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        attention_inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.out_proj",
        mlp_inputs=("fc1",),
        mlp_output="fc2",
        norm="layer",
    ),
    "phi": Architecture(  # Phi-1.5, Phi-2
        blocks="model.layers",
        embeddings=("model.embed_tokens",),
        final_norm="model.final_layernorm",
        head="lm_head",
        attention_norm="input_layernorm",
        mlp_norm=None,
        attention_inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.dense",
        mlp_inputs=("mlp.fc1",),
        mlp_output="mlp.fc2",
        norm="layer",
    ),
}


def architecture(model) -> Architecture:
    """The table's entry for a model, a config, or a `model_type` by name.

    Raises UnsupportedArchitecture, which names the family and lists those that are supported.
    """
    config = getattr(model, "config", model)
    family = config if isinstance(config, str) else getattr(config, "model_type", None)
    if family not in ARCHITECTURES:
        named = f"the architecture {family!r}" if family else f"{type(model).__name__}, which names no model_type,"
        raise UnsupportedArchitecture(
            f"{named} is not supported; supported are {', '.join(ARCHITECTURES)}. Mixtures of experts and models whose "
            "blocks are not decoder blocks with one residual stream do not fit; another dense decoder is one more "
            "entry in layerwise.architectures.ARCHITECTURES"
        )
    return ARCHITECTURES[family]


def blocks(model) -> nn.ModuleList:
    """The decoder blocks of a model, in order: `[L]` modules."""
    return model.get_submodule(architecture(model).blocks)


def written(output) -> torch.Tensor:
    """Hidden states `[n, length, D]` in what a block returns: in transformers 4, some families put them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of a block by their path in it, in the order of the modules."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model; holds no tensors.

    Lengths are `L`. Bytes are counted at `dtype`. A tied embedding is counted once, in `other_parameters`.
    """

    L: int  # blocks
    D: int  # width of the residual stream
    dtype: str  # of the weights as stored, such as "bfloat16"
    parameters: tuple[int, ...]  # of each block, all of them
    linear_weights: tuple[int, ...]  # of each block, in the weight matrices of its linear layers: what is quantized
    bytes: tuple[int, ...]  # of each block
    other_parameters: int  # embeddings, final norm, head
    other_bytes: int

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(self.parameters) + self.other_parameters

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole model at `dtype`."""
        return sum(self.bytes) + self.other_bytes


def shape(model) -> Shape:
    """The `Shape` of a model, on any device; on "meta" too, where no weights are needed.

    Bytes are those of the checkpoint: `lw.load` notes the stored dtype on the model as `stored_dtype`, because
    computing a bfloat16 model in float32 doesn't make it larger. A model without that note is counted as in memory.
    """
    stored = getattr(model, "stored_dtype", None) or model.dtype
    each = blocks(model)
    parameters = tuple(sum(p.numel() for p in block.parameters()) for block in each)
    weights = tuple(sum(linear.weight.numel() for linear in linears(block).values()) for block in each)
    other = sum(p.numel() for p in model.parameters()) - sum(parameters)  # .parameters() gives a tied weight once
    size = torch.empty(0, dtype=stored).element_size()
    return Shape(
        L=len(each),
        D=model.config.hidden_size,
        dtype=str(stored).removeprefix("torch."),
        parameters=parameters,
        linear_weights=weights,
        bytes=tuple(size * count for count in parameters),
        other_parameters=other,
        other_bytes=size * other,
    )
