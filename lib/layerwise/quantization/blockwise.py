"""What quantizers that need no data have in common: each matrix by itself, so each block by itself."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone.devices import all_finite, check_present
from layerwise.backbone.structure import blocks, experts, linears, weight_matrix
from layerwise.quantization.packed import PackedLinear, Quantized

Bits = int | Mapping[str, int] | None  # of a block: of all its linear layers, or by their path; None leaves them all


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

    def __call__(self, model: nn.Module, bits: Sequence[Bits], tokens: Tensor | None = None) -> nn.Module:
        """`model` with the linear layers of block i at `bits[i]` bits, in place; None leaves a block as it is.

        Bits by path, `{"mlp.down_proj": 4}`, leave the linear layers that they don't name.

        `tokens` are not used. Raises ValueError as `check_bits`, and as `block`.
        """
        check_bits(self, model, bits)
        check_matrices(self, model, bits)
        for _ in each_block(self, model, bits, copies=False):
            pass
        return model

    @torch.inference_mode(False)  # so that the result can be saved, moved and used anywhere
    @torch.no_grad()
    def block(self, block: nn.Module, bits: Bits) -> nn.Module:
        """`block` with its linear layers at `bits` bits, in place. Nothing is changed if one of them can't be done."""
        done, layers = {}, linears(block)
        for path, width in bits_by_path(block, bits).items():
            try:
                done[path] = PackedLinear(quantized(self, weight_matrix(layers[path]), width), width, layers[path].bias)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        for path, layer in done.items():
            block.set_submodule(path, layer)
        return block


def bits_by_path(block: nn.Module, bits: Bits) -> dict[str, int]:
    """Bits of each linear layer of a block that gets any, in the order of the layers.

    Raises ValueError for a path that the block hasn't.
    """
    if bits is None:
        return {}
    paths = linears(block)
    if not isinstance(bits, Mapping):
        return dict.fromkeys(paths, bits)
    if unknown := [path for path in bits if path not in paths]:
        raise ValueError(f"{unknown[0]}: there is no such linear layer; there is {', '.join(paths)}")
    return {path: bits[path] for path in paths if path in bits}


def quantized(quantizer, weight: Tensor, bits: int) -> Quantized:
    """What `quantizer.matrix` makes of weights `[rows, columns]`; raises ValueError for what float16 can't hold."""
    check_finite(weight)
    found = quantizer.matrix(weight.float(), bits)
    if not (found.scale.isfinite().all() and found.zero.isfinite().all()):
        raise ValueError("the weights are too large for scales in float16")
    return found


def check_bits(quantizer, model: nn.Module, bits: Sequence[Bits]) -> None:
    """Raise ValueError unless there are bits for each block, that the quantizer has, and blocks that it can do.

    It can't do experts that are one parameter for all: they are no matrices, and the rest of a block is little. Nor can
    it do other linear layers than its `layers`, where it names a class.
    """
    count = len(blocks(model))
    if len(bits) != count:
        raise ValueError(f"bits must be {count} widths, one for each block of the model, not {len(bits)}")
    every = (each.values() if isinstance(each, Mapping) else [each] for each in bits)
    check_widths(quantizer, {width for each in every for width in each})
    name, layers = getattr(quantizer, "name", "the quantizer"), getattr(quantizer, "layers", None)
    for i, (block, width) in enumerate(zip(blocks(model), bits, strict=True)):
        for path, weights in experts(block).items() if width else ():
            raise ValueError(
                f"{name}, block {i}, {path}: experts that are one parameter {list(weights.shape)} can't be quantized. "
                "Scores, plans that remove blocks, memory and evaluation work for this model"
            )
        for path in bits_by_path(block, width) if layers else ():
            if not isinstance(linear := block.get_submodule(path), layers):
                kind = type(linear).__name__
                raise ValueError(
                    f"{name}, block {i}, {path}: it can't do a {kind}. 'rtn', 'quanto', 'hqq' and 'outliers' can"
                )


def check_widths(quantizer, widths: Set[int | None]) -> None:
    """Raise ValueError for bits that the quantizer hasn't; None is no width."""
    if strange := sorted(widths - {None, *quantizer.widths}):
        raise ValueError(
            f"{getattr(quantizer, 'name', 'the quantizer')} has no {', '.join(map(str, strange))} bits; it has "
            f"{', '.join(map(str, quantizer.widths))}, and None leaves a block as it is"
        )


def check_matrices(quantizer, model: nn.Module, bits: Sequence[Bits]) -> None:
    """Raise ValueError, naming block and matrix, for one that is to be quantized and is not finite.

    So too for a model that was spread over devices, and for rows that the quantizer can't do.
    """
    check_present(model)
    for i, (block, width) in enumerate(zip(blocks(model), bits, strict=True)):
        for path in bits_by_path(block, width):
            linear = block.get_submodule(path)
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


def each_block(quantizer, model: nn.Module, bits: Sequence[Bits], copies: bool) -> Iterator[nn.Module]:
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
