"""What a plan needs to know of a model: sizes, without tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from layerwise.backbone.architectures import Architecture, UnsupportedArchitecture, architecture
from layerwise.backbone.structure import blocks, linears, text_config, tied, weight_matrix


class Matrix(NamedTuple):
    """The weights of a linear layer, and which of its two sides the residual stream is on, if either."""

    rows: int  # outputs
    columns: int  # inputs
    stream: Literal["read", "written", "written at the end", None]
    path: str = ""  # of the linear layer in its block


class Part(NamedTuple):
    """A table of weights that can have bits of its own."""

    block: int | None  # None: it is outside of the blocks
    path: str  # of the linear layer in its block, or "embedding", or "head"
    rows: int
    columns: int


@dataclass(frozen=True)
class Slicing:
    """What `Plan.predicted_parameters` needs to know of slicing; lengths are `L`.

    A block's norms are folded into the linear layers that read them, and so are in none of its three counts; a shift
    that is folded becomes a bias.
    """

    reads: tuple[int, ...]  # of each block, per column of the stream that it reads
    writes: tuple[int, ...]  # of each block, per column of the stream that it writes at its end
    untouched: tuple[int, ...]  # of each block, whatever the widths: biases of what reads, norms of q and k
    parallel: bool  # attention and MLP write the stream together, so that a block needs one shortcut matrix, not two
    embedding_rows: int  # of all embeddings: tokens, and positions where they are added to the stream
    final_parameters: int  # final norm and head as they are, the head counted even if it is tied
    head_rows: int  # vocabulary: per column that the head reads
    head_bias: int  # the head's bias once the final norm is folded into it, or 0


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
    tied: bool  # embedding and head are one table
    slicing: Slicing | str  # or why the model can't be sliced
    embedding: Matrix | None = None  # that of tokens; None: it is of a kind that can't have few bits
    head: Matrix | None = None  # the embedding's table, where the two are tied
    cache_bytes: int = 0  # keys and values of one token, all blocks; models that keep less of some take it as a bound

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that can have bits, in the one order that plans by matrix and costs have: the linear layers block by
        block, then the embedding, then the head, unless it is the embedding's table."""
        ends = [("embedding", self.embedding), *([] if self.tied else [("head", self.head)])]
        inside = (
            Part(i, each.path, each.rows, each.columns) for i, block in enumerate(self.matrices) for each in block
        )
        outside = (Part(None, name, table.rows, table.columns) for name, table in ends if table)
        return (*inside, *outside)

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
    if isinstance(model, PretrainedConfig):
        with torch.device("meta"):
            dtype = model.dtype or torch.bfloat16
            model = AutoModelForCausalLM.from_config(copy.deepcopy(model), dtype=dtype)
    each = blocks(model)
    stored = getattr(model, "stored_dtype", None) or model.dtype
    parameters = tuple(sum(p.numel() for p in block.parameters()) for block in each)
    other = sum(p.numel() for p in model.parameters()) - sum(parameters)  # .parameters() gives a tied weight once
    size = torch.empty(0, dtype=stored).element_size()
    try:
        found = architecture(model)
    except UnsupportedArchitecture as error:
        streams, slicing = {}, str(error)
    else:
        streams, slicing = _streams(found), _slicing(model, found)
    embedding, head = _ends(model)
    return Shape(
        L=len(each),
        D=text_config(model).hidden_size,
        dtype=str(stored).removeprefix("torch."),
        parameters=parameters,
        matrices=tuple(_matrices(block, streams) for block in each),
        bytes=tuple(size * count for count in parameters),
        other_parameters=other,
        other_bytes=size * other,
        tied=tied(model),
        slicing=slicing,
        embedding=embedding,
        head=head,
        cache_bytes=size * _cached(text_config(model)),
    )


def _matrices(block: nn.Module, streams: dict[str, str]) -> tuple[Matrix, ...]:
    found = linears(block).items()
    return tuple(Matrix(*weight_matrix(linear).shape, streams.get(path), path) for path, linear in found)


def _ends(model) -> tuple[Matrix | None, Matrix | None]:
    """Sizes of embedding and head, as far as they are a table and a linear layer. Raises ValueError for an embedding
    whose weights have few bits already."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, nn.Embedding) and len(embedding.weight) != embedding.num_embeddings:
        raise ValueError("the embedding's weights have few bits already, so take the dense model")
    tables = [
        Matrix(*module.weight.shape, None, name) if isinstance(module, kind) else None
        for name, module, kind in (("embedding", embedding, nn.Embedding), ("head", head, nn.Linear))
    ]
    return tables[0], tables[0] if tied(model) else tables[1]


def _cached(config: PretrainedConfig) -> int:
    """Numbers that attention keeps of one token: a key and a value for each head that has its own, in every block."""
    heads = config.num_attention_heads
    own = getattr(config, "num_key_value_heads", None) or heads
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * own * each


def _streams(found: Architecture) -> dict[str, str]:
    """On which side the residual stream is of each linear layer of a block that reads or writes it."""
    streams = {path: "read" for step in found.steps for path in step.reads}
    for step in found.steps:
        streams |= dict.fromkeys(step.writes, "written at the end" if step == found.steps[-1] else "written")
    return streams


def _slicing(model, found: Architecture) -> Slicing:
    reads, writes, untouched = zip(*(_by_column(block, found) for block in blocks(model)), strict=True)
    final_norm, head = model.get_submodule(found.final_norm), model.get_submodule(found.head)
    return Slicing(
        reads=reads,
        writes=writes,
        untouched=untouched,
        parallel=found.parallel,
        embedding_rows=sum(model.get_submodule(path).weight.shape[0] for path in found.embeddings),
        final_parameters=_count(final_norm) + _count(head),
        head_rows=head.out_features,
        head_bias=_folded_bias(head, final_norm),
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
