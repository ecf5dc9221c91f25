"""The one table of what slicing asks of a family: where its norms are, and what reads and writes the residual stream.

Everything else needs no table (see `structure`). A family that can be sliced is one entry in `ARCHITECTURES` and one
row in `tests/families.py`. All paths are attribute paths of a Hugging Face `...ForCausalLM`; those of a block are
relative to the block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from transformers import PretrainedConfig

from layerwise.backbone.structure import SLICED, text_config


class UnsupportedArchitecture(ValueError):
    """A model that can't be sliced."""


@dataclass(frozen=True)
class Step:
    """Part of a block that reads the residual stream once and writes to it: attention, MLP, or both side by side."""

    norm: str
    attention: bool
    mlp: bool
    reads: tuple[str, ...]  # linear layers, [out, D]
    writes: tuple[str, ...]  # linear layers, [D, in]


@dataclass(frozen=True)
class Architecture:
    """Where the parts of a family are.

    A block reads the residual stream (width `D`) through its norms into the *inputs* and writes to it by the
    *outputs*. With parallel attention and MLP, both read the one `attention_norm` and there is no `mlp_norm`.
    """

    blocks: str
    embeddings: tuple[str, ...]  # all that writes the residual stream before block 0, [V, D], then [positions, D]
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

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What a block does, in order: attention then MLP, or the one step of a parallel block."""
        if self.parallel:
            reads = self.attention_inputs + self.mlp_inputs
            return (Step(self.attention_norm, True, True, reads, (self.attention_output, self.mlp_output)),)
        return (
            Step(self.attention_norm, True, False, self.attention_inputs, (self.attention_output,)),
            Step(self.mlp_norm, False, True, self.mlp_inputs, (self.mlp_output,)),
        )

    @property
    def attention(self) -> str:
        """Path of the attention module in the block."""
        return self.attention_output.rpartition(".")[0]

    @property
    def mlp(self) -> str:
        """Path of the MLP module in the block; "" where its layers are the block's own (OPT)."""
        return self.mlp_output.rpartition(".")[0]


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


# What attention and MLP write passes a norm before it is added to the stream.
_NORMS_BEHIND = (
    *("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "vaultgemma"),
    *("olmo2", "olmo3", "flex_olmo", "exaone4", "exaone_moe", "glm4"),
)
_CONV1D = ("gpt2", "gpt-sw3", "openai-gpt")
# How many experts there are, by the names that families have for it.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# By what the stream, or what is added to it, is multiplied, unless it is 1.
_FACTORS = ("residual_multiplier", "scale_depth")


def architecture(model) -> Architecture:
    """The table's entry for a model, a config, or a `model_type` by name: what slicing asks for.

    Raises UnsupportedArchitecture, which says why this model can't be sliced and what can be done with it instead.
    """
    config = getattr(model, "config", model)
    family = config if isinstance(config, str) else getattr(config, "model_type", None)
    family = (family or "").removeprefix(SLICED)  # parts of a sliced model are where its family has them
    text = text_config(config) if isinstance(config, PretrainedConfig) else None
    if why := _why_not(family, text):
        named = f"the architecture {family!r}" if family else f"{type(model).__name__}, which names no model_type,"
        bits = "" if _experts(text) else "plans of bits, "
        raise UnsupportedArchitecture(
            f"{named} can't be sliced: {why}. What works for it are scores, damage, {bits}removal of blocks, memory "
            "and evaluation"
        )
    return ARCHITECTURES[family]


def _why_not(family: str, text: PretrainedConfig | None) -> str | None:
    """Why a model can't be sliced, or None if it can; `text` is its configuration, where there is one."""
    factors = [name for name in _FACTORS if getattr(text, name, 1) not in (1, None)]
    if _experts(text):
        return "its MLPs are mixtures of experts, which read and write the stream by no linear layers"
    if family in _NORMS_BEHIND:
        return "it has norms behind attention and MLP, and a norm of what is written does not commute with a rotation"
    if family in _CONV1D:
        return "its linear layers are Conv1D, with weights [in, out], which slicing doesn't rotate"
    if factors:
        return f"its residual path is no plain sum: {factors[0]} is {getattr(text, factors[0])}"
    if not getattr(text, "do_layer_norm_before", True):
        return "it has norms after attention and MLP, on the stream itself (OPT-350m does)"
    if getattr(text, "word_embed_proj_dim", None) not in (None, getattr(text, "hidden_size", None)):
        return "it has embeddings of another width than its stream (OPT-350m does)"
    if family not in ARCHITECTURES:
        return (
            f"slicing knows {', '.join(ARCHITECTURES)}; a family whose norms stand before attention and MLP, and whose "
            "residual path is a plain sum, is one more entry in layerwise.architectures.ARCHITECTURES"
        )
    return None


def _experts(text: PretrainedConfig | dict | None) -> bool:
    """Whether a configuration is that of a mixture of experts: it, or a part of it, says how many there are."""
    told = text.to_dict() if isinstance(text, PretrainedConfig) else text or {}
    return any(
        _experts(value) if isinstance(value, dict) else str(name) in _EXPERTS and isinstance(value, int) and value > 1
        for name, value in told.items()
    )
