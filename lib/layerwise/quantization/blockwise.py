"""What quantizers that need no data have in common: each matrix by itself, so each block by itself."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone.devices import all_finite, check_present
from layerwise.backbone.structure import blocks, experts, linears, weight_matrix
from layerwise.quantization.packed import PackedLinear, Quantized


class Blockwise(ABC):
    """A quantizer `(model, bits, tokens=None) -> model` that does one block after the other.

    A subclass says how one matrix is quantized (`matrix`), which `widths` it has, and what a matrix then takes on disk
    (`stored(bits, rows, columns) -> bytes`).
    """

    name: ClassVar[str]
    widths: ClassVar[tuple[int, ...]]

    @abstractmethod
    def matrix(self, weight: Tensor, bits: int) -> Quantized:
        """One matrix `[rows, columns]`, float32 and finite, at `bits` bits; ValueError for a size that it can't do."""

    @abstractmethod
    def stored(self, bits: int, rows: int, columns: int) -> int:
        """Bytes of a matrix at `bits` bits."""

    def check_columns(self, columns: int) -> None:  # noqa: B027 most do any
        """Raise ValueError for rows of so many weights if they can't be done."""

    def __call__(self, model: nn.Module, bits: Sequence[int | None], tokens: Tensor | None = None) -> nn.Module:
        """`model` with the linear layers of block i at `bits[i]` bits, in place; None leaves a block as it is.

        `tokens` are not used. Raises ValueError as `check_bits`, and as `block`.
        """
        check_bits(self, model, bits)
        check_matrices(self, model, bits)
        for _ in each_block(self, model, bits, copies=False):
            pass
        return model

    @torch.inference_mode(False)  # so that the result can be saved, moved and used anywhere
    @torch.no_grad()
    def block(self, block: nn.Module, bits: int) -> nn.Module:
        """`block` with its linear layers at `bits` bits, in place. Nothing is changed if one of them can't be done."""
        done = {}
        for path, linear in linears(block).items():
            try:
                check_finite(linear.weight)
                quantized = self.matrix(weight_matrix(linear).float(), bits)
                if not (quantized.scale.isfinite().all() and quantized.zero.isfinite().all()):
                    raise ValueError("the weights are too large for scales in float16")
                done[path] = PackedLinear(quantized, bits, linear.bias)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        for path, layer in done.items():
            block.set_submodule(path, layer)
        return block


def check_bits(quantizer, model: nn.Module, bits: Sequence[int | None]) -> None:
    """Raise ValueError unless there is a width for each block, one that the quantizer has, and blocks that it can do.

    It can't do experts that are one parameter for all: they are no matrices, and the rest of a block is little. Nor can
    it do other linear layers than its `layers`, where it names a class.
    """
    count = len(blocks(model))
    if len(bits) != count:
        raise ValueError(f"bits must be {count} widths, one for each block of the model, not {len(bits)}")
    if strange := sorted({width for width in bits if width is not None} - set(quantizer.widths)):
        raise ValueError(
            f"{getattr(quantizer, 'name', 'the quantizer')} has no {', '.join(map(str, strange))} bits; it has "
            f"{', '.join(map(str, quantizer.widths))}, and None leaves a block as it is"
        )
    name, layers = getattr(quantizer, "name", "the quantizer"), getattr(quantizer, "layers", None)
    for i, (block, width) in enumerate(zip(blocks(model), bits, strict=True)):
        for path, weights in experts(block).items() if width else ():
            raise ValueError(
                f"{name}, block {i}, {path}: experts that are one parameter {list(weights.shape)} can't be quantized. "
                "Scores, plans that remove blocks, memory and evaluation work for this model"
            )
        for path, linear in linears(block).items() if width and layers else ():
            if not isinstance(linear, layers):
                kind = type(linear).__name__
                raise ValueError(
                    f"{name}, block {i}, {path}: it can't do a {kind}. 'rtn', 'quanto', 'hqq' and 'outliers' can"
                )


def check_matrices(quantizer, model: nn.Module, bits: Sequence[int | None]) -> None:
    """Raise ValueError, naming block and matrix, for one that is to be quantized and is not finite.

    So too for a model that was spread over devices, and for rows that the quantizer can't do.
    """
    check_present(model)
    for i, (block, width) in enumerate(zip(blocks(model), bits, strict=True)):
        for path, linear in linears(block).items() if width else ():
            try:
                check_finite(linear.weight)
                quantizer.check_columns(weight_matrix(linear).shape[1])
            except ValueError as error:
                raise ValueError(f"{quantizer.name}, block {i}, {path}: {error}") from error


def check_finite(weight: Tensor) -> None:
    """Raise ValueError if a matrix holds NaN or infinity."""
    if not all_finite(weight):
        raise ValueError("the weights hold NaN or infinity: get the checkpoint anew")


def whole_groups(columns: int, group: int) -> None:
    """Raise ValueError if a row can't be cut into groups of this size."""
    if columns % group:
        raise ValueError(f"rows of {columns} weights can't be cut into groups of {group}: take a divisor of {columns}")


def each_block(quantizer, model: nn.Module, bits: Sequence[int | None], copies: bool) -> Iterator[nn.Module]:
    """The blocks of `model` at `bits` `[L]` by `quantizer.block`, one after the other: copies, or these very blocks.

    What it refuses says which block it was.
    """
    own = tqdm(list(blocks(model)), desc="quantizing", unit="block", leave=False, delay=5)
    for i, (block, width) in enumerate(zip(own, bits, strict=True)):
        block = copy.deepcopy(block) if copies else block
        try:
            block = block if width is None else quantizer.block(block, width)
        except ValueError as error:
            raise ValueError(f"{getattr(quantizer, 'name', 'the quantizer')}, block {i}, {error}") from error
        yield block
