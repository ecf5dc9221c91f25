"""The tables of weights that costs are about, in the order of `lw.shape(model).parts`, and what rounding leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from layerwise.backbone.devices import check_present
from layerwise.backbone.passes import Head
from layerwise.backbone.shapes import shape
from layerwise.backbone.structure import blocks, is_sliced, linears, weight_matrix
from layerwise.evaluation import predictions
from layerwise.quantization import RTN
from layerwise.quantization import quantizer as by_name
from layerwise.quantization.packed import dequantized


class Table(NamedTuple):
    """One part of a model: its weights `[rows, columns]`, which share memory with the model's, and the module."""

    block: int | None
    path: str
    module: nn.Module
    weight: Tensor


def weight_tables(model: nn.Module) -> list[Table]:
    """The parts of a model, in the order of `lw.shape(model).parts`.

    Raises ValueError for a model that was sliced, spread over devices, or whose weights have few bits already.
    """
    check_present(model)
    if is_sliced(model):
        raise ValueError("the model was sliced: costs are those of matrices of a dense model")
    found = []
    for i, block in enumerate(blocks(model)):
        found += [Table(i, path, linear, weight_matrix(linear)) for path, linear in linears(block).items()]
    ends = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for part in shape(model).parts:
        if part.block is None:
            found.append(Table(None, part.path, ends[part.path], ends[part.path].weight))
    return found


class Rounding:
    """A matrix at each of some widths, as a quantizer leaves it; widths that are None leave it as it is.

    A quantizer that can't do a matrix by itself, such as GPTQ, which looks at what enters it, is stood for by rounding
    to nearest in groups of its size: what it leaves is smaller, and about in proportion.

    Raises ValueError for a width that the quantizer lacks.
    """

    def __init__(self, quantizer: str | Callable, widths: Sequence[int | None]):
        found = by_name(quantizer)
        self.matrix = getattr(found, "matrix", None) or RTN(getattr(found, "group", RTN().group)).matrix
        self.widths = list(widths)
        has = getattr(found, "widths", self.widths)
        if strange := [bits for bits in self.widths if bits is not None and bits not in has]:
            name = getattr(found, "name", "the quantizer")
            raise ValueError(f"{name} has no {strange[0]} bits; it has {', '.join(map(str, has))}")

    def at(self, weight: Tensor, bits: int | None) -> Tensor:
        """The weights `[rows, columns]` that the matrix at so many bits stands for, float32."""
        return weight.detach().float() if bits is None else dequantized(self.matrix(weight.detach().float(), bits))

    def error(self, weight: Tensor, bits: int | None) -> Tensor:
        """What is rounded off, float32 `[rows, columns]`."""
        return weight.detach().float() - self.at(weight, bits)


def dense_windows(model: nn.Module, head: Head, read: ModelOutput) -> list[predictions.Window]:
    """What a dense model predicts, its logits kept: made later, they would be those of a head that is rounded by then.

    Raises ValueError where they have no room.
    """
    windows = predictions.windows(head, read)
    predictions.keep_logits(windows, predictions.room(model))
    if any(window.kept is None for window in windows):
        raise ValueError("logits of so many windows take more than half of the free memory: take fewer at once")
    return windows


@contextmanager
def at_bits(each: Sequence[Table], rounding: Rounding, bits: Sequence[int | None]) -> Iterator[list[Tensor]]:
    """Tables at their bits for a while, None as they are; gives the model's own weights, which come back afterwards, to
    the last bit."""
    chosen = [(table, width) for table, width in zip(each, bits, strict=True) if width is not None]
    own = [table.weight.detach().clone() for table, _ in chosen]
    try:
        with torch.no_grad():
            for table, width in chosen:
                table.weight.copy_(rounding.at(table.weight, width))
        yield own
    finally:
        with torch.no_grad():
            for (table, _), weight in zip(chosen, own, strict=True):
                table.weight.copy_(weight)


@contextmanager
def replaced(table: Table, weight: Tensor) -> Iterator[None]:
    """A table with other weights for a while; the model's own come back afterwards, to the last bit."""
    own = table.weight.detach().clone()
    try:
        with torch.no_grad():
            table.weight.copy_(weight)
        yield
    finally:
        with torch.no_grad():
            table.weight.copy_(own)
