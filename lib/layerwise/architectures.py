"""The one table of model families: where the blocks, norms and projections are, and what shape they have.

Adding a family is one entry in `ARCHITECTURES` and one row in `tests/families.py`. All paths are attribute paths of a
Hugging Face `...ForCausalLM`; those of a block are relative to the block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

SLICED = "sliced_"  # before the family in the `model_type` of a sliced model


class UnsupportedArchitecture(ValueError):
    """A model family that the table does not hold."""


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


def architecture(model) -> Architecture:
    """The table's entry for a model, a config, or a `model_type` by name.

    Raises UnsupportedArchitecture, which names the family and lists those that are supported.
    """
    config = getattr(model, "config", model)
    family = config if isinstance(config, str) else getattr(config, "model_type", None)
    family = (family or "").removeprefix(SLICED)  # parts of a sliced model are where its family has them
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


def is_sliced(model) -> bool:
    """Whether the model was sliced: then its blocks read and write in bases of their own, of their own width."""
    return model.config.model_type.startswith(SLICED)


@contextmanager
def forwards(modules: Sequence[nn.Module], stand_ins: Sequence[Callable]) -> Iterator[None]:
    """Let `modules` answer with `stand_ins` for a while; what an instance had of its own comes back afterwards."""
    own = [vars(module).get("forward") for module in modules]
    try:
        for module, stand_in in zip(modules, stand_ins, strict=True):
            module.forward = stand_in
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in vars(module):
                del module.forward


def written(output) -> torch.Tensor:
    """Hidden states `[n, length, D]` in what a block returns: in transformers 4, some families put them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of a block by their path in it, in the order of the modules, but for those that slicing added.

    The shortcuts of a sliced block are its residual path, which is neither scored nor quantized. Raises ValueError for
    a block without linear layers: its weights have few bits already.
    """
    found = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    found = {name: linear for name, linear in found.items() if not name.startswith("shortcuts.")}
    if not found:
        raise ValueError("the block has no linear layers: its weights have few bits already, so take the dense model")
    return found


class Matrix(NamedTuple):
    """The weights of a linear layer, and which of its two sides the residual stream is on, if either."""

    rows: int  # outputs
    columns: int  # inputs
    stream: Literal["read", "written", "written at the end", None]


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model; holds no tensors.

    Lengths are `L`. Bytes are counted at `dtype`. A tied embedding is counted once, in `other_parameters`.
    """

    L: int  # blocks
    D: int  # width of the residual stream
    dtype: str  # of the weights as stored, such as "bfloat16"
    parameters: tuple[int, ...]  # of each block, all of them
    matrices: tuple[tuple[Matrix, ...], ...]  # of each block, those of its linear layers: what is quantized
    bytes: tuple[int, ...]  # of each block
    other_parameters: int  # embeddings, final norm, head
    other_bytes: int
    # What `Plan.predicted_parameters` needs to know of slicing. A block's norms are folded into the linear layers that
    # read them, and so are in none of its three counts; a shift that is folded becomes a bias.
    reads: tuple[int, ...]  # of each block, per column of the stream that it reads
    writes: tuple[int, ...]  # of each block, per column of the stream that it writes at its end
    untouched: tuple[int, ...]  # of each block, whatever the widths: biases of what reads, norms of q and k
    parallel: bool  # attention and MLP write the stream together, so that a block needs one shortcut matrix, not two
    embedding_rows: int  # of all embeddings: tokens, and positions where they are added to the stream
    final_parameters: int  # final norm and head as they are, the head counted even if it is tied
    head_rows: int  # vocabulary: per column that the head reads
    head_bias: int  # the head's bias once the final norm is folded into it, or 0

    @property
    def linear_weights(self) -> tuple[int, ...]:
        """Weights in the matrices of each block."""
        return tuple(sum(matrix.rows * matrix.columns for matrix in block) for block in self.matrices)

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(self.parameters) + self.other_parameters

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole model at `dtype`."""
        return sum(self.bytes) + self.other_bytes

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of one weight at `dtype`."""
        return self.total_bytes // self.total_parameters


def shape(model) -> Shape:
    """The `Shape` of a model, on any device, or of what a configuration says: no weights are needed.

    Bytes are those of the checkpoint: `lw.load` notes the stored dtype on the model as `stored_dtype`, because
    computing a bfloat16 model in float32 doesn't make it larger. A model without that note is counted as in memory.
    """
    found = architecture(model)
    if isinstance(model, PretrainedConfig):
        with torch.device("meta"):
            dtype = model.dtype or torch.bfloat16
            model = AutoModelForCausalLM.from_config(copy.deepcopy(model), dtype=dtype)
    each = blocks(model)
    stored = getattr(model, "stored_dtype", None) or model.dtype
    parameters = tuple(sum(p.numel() for p in block.parameters()) for block in each)
    other = sum(p.numel() for p in model.parameters()) - sum(parameters)  # .parameters() gives a tied weight once
    size = torch.empty(0, dtype=stored).element_size()
    reads, writes, untouched = zip(*(_by_column(block, found) for block in each), strict=True)
    head = model.get_submodule(found.head)
    final_norm = attrgetter(found.final_norm)(model)  # None in OPT-350m, which can be scored, though not sliced
    return Shape(
        L=len(each),
        D=model.config.hidden_size,
        dtype=str(stored).removeprefix("torch."),
        parameters=parameters,
        matrices=tuple(_matrices(block, found) for block in each),
        bytes=tuple(size * count for count in parameters),
        other_parameters=other,
        other_bytes=size * other,
        reads=reads,
        writes=writes,
        untouched=untouched,
        parallel=found.parallel,
        embedding_rows=sum(model.get_submodule(path).weight.shape[0] for path in found.embeddings),
        final_parameters=sum(_count(module) for module in (final_norm, head) if module is not None),
        head_rows=head.out_features,
        head_bias=_folded_bias(head, final_norm),
    )


def _matrices(block: nn.Module, found: Architecture) -> tuple[Matrix, ...]:
    roles = {path: "read" for step in found.steps for path in step.reads}
    for step in found.steps:
        roles |= dict.fromkeys(step.writes, "written at the end" if step == found.steps[-1] else "written")
    return tuple(
        Matrix(linear.out_features, linear.in_features, roles.get(path)) for path, linear in linears(block).items()
    )


def _by_column(block: nn.Module, found: Architecture) -> tuple[int, int, int]:
    """Parameters of a block per column that it reads, per column that it writes at its end, and the rest."""
    reads, counted, biases = 0, set(), 0
    for step in found.steps:
        norm = block.get_submodule(step.norm)
        readers, writers = ([block.get_submodule(path) for path in paths] for paths in (step.reads, step.writes))
        writes = sum(linear.in_features + (linear.bias is not None) for linear in writers)
        # What an earlier step than the last writes has the width that the block reads.
        reads += sum(linear.out_features for linear in readers) + (0 if step == found.steps[-1] else writes)
        biases += sum(_folded_bias(linear, norm) for linear in readers)
        counted |= {parameter for module in (norm, *readers, *writers) for parameter in module.parameters()}
    untouched = biases + sum(parameter.numel() for parameter in block.parameters() if parameter not in counted)
    return reads, writes, untouched


def _folded_bias(linear: nn.Linear, norm: nn.Module) -> int:
    """Parameters of the bias of a linear layer once the norm before it is folded into it."""
    return linear.out_features if linear.bias is not None or getattr(norm, "bias", None) is not None else 0


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
