"""Embedding and head of few bits: a packed embedding unpacks the rows that it looks up, and a head may share its table.

What a family's embedding does beside looking up, such as a scale, it goes on doing.
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.backbone.structure import tied
from layerwise.quantization.blockwise import quantized
from layerwise.quantization.packed import Packed, PackedLinear, Quantized, dequantized, plain_linear, unpack_rows


class PackedEmbedding(Packed, nn.Embedding):
    """An embedding `[...] -> [..., columns]` with weights of `bits` bits; only rows that are asked for are unpacked.

    Its `weight` `[0, columns]` holds nothing: it tells the dtype that rows come in, and the device.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        which = tokens.flatten()
        codes = unpack_rows(self.codes, self.bits, *self.shape, which)
        scale, zero = (each if len(each) == 1 else each[which] for each in (self.scale, self.zero))
        found = dequantized(Quantized(codes, scale, zero, self.group)).to(self.weight.dtype)
        return found.view(*tokens.shape, -1)

    def extra_repr(self) -> str:
        rows, columns = self.shape
        return f"{rows}, {columns}, bits={self.bits}, group={self.group}"


class TiedHead(nn.Module):
    """A head `[..., columns] -> [..., rows]` with the weights of a packed embedding, which holds them for both."""

    def __init__(self, table: PackedEmbedding, bias: nn.Parameter | None):
        super().__init__()
        object.__setattr__(self, "table", table)  # not as a part, or it would be stored under two names
        self.weight = table.weight  # one for both, as of any tied model
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table.weights().to(x.dtype), self.bias)

    def dense(self, dtype: torch.dtype) -> nn.Linear:
        """A plain linear layer with the weights that this one stands for."""
        return plain_linear(self.table.weights().to(dtype), self.bias)

    def extra_repr(self) -> str:
        rows, columns = self.table.shape
        return f"in_features={columns}, out_features={rows}, tied"


def packed_embedding(dense: nn.Embedding, matrix: Quantized, bits: int) -> PackedEmbedding:
    """`dense` with its weights at few bits, otherwise as it is; a new module."""
    place = "cpu" if dense.weight.is_meta else dense.weight.device  # nothing has to be brought there later
    empty = torch.empty(0, dense.weight.shape[1], dtype=dense.weight.dtype, device=place)
    new = copy.deepcopy(dense, {id(dense.weight): nn.Parameter(empty, requires_grad=False)})
    new.__class__ = _kind(type(dense))
    new.hold(matrix, bits)
    return new


@cache
def _kind(dense: type) -> type:
    """The packed class of an embedding, whose own forward looks rows up by `super().forward`."""
    if dense is nn.Embedding:
        return PackedEmbedding
    return type(f"Packed{dense.__name__}", (dense, PackedEmbedding), {})


@torch.inference_mode(False)  # so that the result can be saved, moved and used anywhere
@torch.no_grad()
def quantized_ends(model: nn.Module, quantizer, ends: tuple[int | None, int | None]) -> dict[str, nn.Module]:
    """Embedding and head of `model` at the bits `ends`, by their path, to be put in its place; None leaves one out.

    Where they are one table, which gets one width, both are among them. Raises ValueError as `Blockwise.matrix`.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    of_embedding, of_head = ends
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    if of_embedding is not None:
        new = packed_embedding(embedding, quantized_end(quantizer, embedding, of_embedding, "embedding"), of_embedding)
        found[paths[id(embedding)]] = new
        if tied(model):
            found[paths[id(head)]] = TiedHead(new, head.bias)
            return found
    if of_head is not None:
        found[paths[id(head)]] = PackedLinear(quantized_end(quantizer, head, of_head, "head"), of_head, head.bias)
    return found


def quantized_end(quantizer, module: nn.Module, bits: int, name: str) -> Quantized:
    """The weights of embedding or head at `bits` bits; raises ValueError as `Blockwise.matrix`, with its `name`."""
    try:
        return quantized(quantizer, module.weight, bits)
    except ValueError as error:
        raise ValueError(f"{getattr(quantizer, 'name', 'the quantizer')}, {name}: {error}") from error
