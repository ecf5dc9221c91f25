"""Matrices whose weights take as many bits as they have: the one format that every blockwise quantizer ends in.

A weight is `(code - zero) * scale`, with a code of some bits for every weight, and a scale and a zero point for every
group of weights (`Grouped` says which groups there are). Scales are float16 whatever a model computes in; zero points
are float16 or uint8. Weights are unpacked when they are used, a matrix at a time, so what is saved is memory and disk,
not time.

A `SparseLinear` stores scales and zero points as codes too, and some weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STATISTIC_BITS = 3  # of a scale or a zero point in a SparseLinear
STATISTIC_GROUP = 16  # rows that share a scale and a zero point for these


class Quantized(NamedTuple):
    """A matrix `[rows, columns]` as codes, uint8 of that size, with scales and zero points `[rows or 1, groups or 1]`.

    A row has `columns / group` groups, rounded up: the last one may be short.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group: int


def dequantized(matrix: Quantized) -> Tensor:
    """The weights that a quantized matrix stands for, float32 `[rows, columns]`."""
    rows, columns = matrix.codes.shape
    scale, zero = matrix.scale.float(), matrix.zero.float()
    if columns % matrix.group == 0 and scale.shape[1] == columns // matrix.group:
        grouped = matrix.codes.view(rows, -1, matrix.group).float()  # the one copy of a large matrix
        return grouped.sub_(zero[..., None]).mul_(scale[..., None]).view(rows, columns)
    scale, zero = (
        part if part.shape[1] == 1 else part.repeat_interleave(matrix.group, 1)[:, :columns] for part in (scale, zero)
    )
    return matrix.codes.float().sub_(zero).mul_(scale)


class Packed(nn.Module):
    """What holds a matrix `[rows, columns]` with weights of `bits` bits.

    Its buffers are what is stored: `codes` uint8, `scale` float16, `zero` float16 or uint8. They keep their dtypes when
    the model is cast, since they are a format, not a precision to compute in.
    """

    def hold(self, matrix: Quantized, bits: int) -> None:
        """Take what is held, once the module is there."""
        self.shape = tuple(matrix.codes.shape)
        self.bits, self.group = bits, matrix.group
        self.register_buffer("codes", pack(matrix.codes, bits))
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("zero", matrix.zero)

    def quantized(self) -> Quantized:
        """Codes, scales and zero points, unpacked."""
        codes = unpack(self.codes, self.bits, math.prod(self.shape))
        return Quantized(codes.view(self.shape), self.scale, self.zero, self.group)

    def weights(self) -> Tensor:
        """The weights that it stands for, float32 `[rows, columns]`."""
        return dequantized(self.quantized())

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = getattr(self, name)
            if now.dtype != buffer.dtype:  # a cast: undo it, from what was there, where it is now
                setattr(self, name, buffer.to(now.device))
        return self


class PackedLinear(Packed):
    """A linear layer `[..., columns] -> [..., rows]` with weights of `bits` bits; a bias stays as it is."""

    def __init__(self, matrix: Quantized, bits: int, bias: nn.Parameter | None = None):
        super().__init__()
        self.hold(matrix, bits)
        self.out_features, self.in_features = self.shape
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weights().to(x.dtype), self.bias)

    def dense(self, dtype: torch.dtype) -> nn.Linear:
        """A plain linear layer with the weights that this one stands for: larger, faster, and equal."""
        return plain_linear(self.weights().to(dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}"


def plain_linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer with these weights `[rows, columns]`, which are not copied."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
    return linear


class Outlying(NamedTuple):
    """Weights of a matrix `[rows, columns]` that are kept as they are, row after row: a sparse matrix."""

    counts: Tensor  # uint16 [rows], how many there are in each row
    columns: Tensor  # uint16 [number of them]
    values: Tensor  # float16 [number of them]


class SparseLinear(PackedLinear):
    """A packed layer whose scales and zero points are quantized too, and some of whose weights are float16.

    `statistics` are the real scales and zero points of all groups, `[2, groups, rows]` as one matrix of `2 * groups`
    rows: codes of `STATISTIC_BITS` bits, with a float16 scale and zero point for each `STATISTIC_GROUP` of them. Where
    there is an outlier, it replaces what its code says.
    """

    def __init__(
        self,
        codes: Tensor,
        group: int,
        statistics: Quantized,
        outliers: Outlying,
        bits: int,
        bias: nn.Parameter | None = None,
    ):
        super().__init__(Quantized(codes, statistics.scale, statistics.zero, group), bits, bias)
        self.register_buffer("statistics", pack(statistics.codes, STATISTIC_BITS))
        for name, tensor in outliers._asdict().items():
            self.register_buffer(name, tensor)

    def quantized(self) -> Quantized:
        """Codes, and scales and zero points in float32; what it says of an outlier doesn't count."""
        coarse = super().quantized()
        groups = self.scale.shape[0] // 2
        codes = unpack(self.statistics, STATISTIC_BITS, 2 * groups * self.out_features).view(2 * groups, -1)
        scale, zero = dequantized(Quantized(codes, self.scale, self.zero, STATISTIC_GROUP)).view(2, groups, -1).mT
        return Quantized(coarse.codes, scale, zero, self.group)

    def weights(self) -> Tensor:
        weights = super().weights()
        numbers = torch.arange(self.out_features, device=weights.device)
        rows = numbers.repeat_interleave(self.counts.int(), output_size=len(self.values))
        weights[rows, self.columns.int()] = self.values.float()
        return weights

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, outliers={len(self.values)}"


def packed(model: nn.Module) -> dict[str, Packed]:
    """The packed layers of a model by their path; empty if nothing in it is packed."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}


# Codes of 8, 4, 2 or 1 bits fill bytes evenly. Other widths are stored in such parts: the 3 bits of a code as 2 and 1.


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2**bits as a string of bytes, uint8 `[...] -> [ceil of numel * part / 8, summed over the parts]`."""
    flat, shift, parts = codes.flatten(), 0, []
    for part in _parts(bits):
        field = (flat >> shift) & (2**part - 1)
        each = 8 // part
        field = F.pad(field, (0, -len(field) % each)).view(-1, each)
        places = torch.arange(0, 8, part, dtype=torch.uint8, device=codes.device)
        parts.append((field << places).sum(1, dtype=torch.uint8))
        shift += part
    return torch.cat(parts)


def unpack(stored: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes that `pack` stored, uint8 `[count]`."""
    codes = None
    for field, part, shift in _fields(stored, bits, count):
        found = _spread(field, part)[:count] << shift
        codes = found if codes is None else codes | found
    return codes


def unpack_rows(stored: Tensor, bits: int, rows: int, columns: int, which: Tensor) -> Tensor:
    """The rows `which` `[n]` of the codes `[rows, columns]` that `pack` stored, uint8 `[n, columns]`."""
    codes = None
    for field, part, shift in _fields(stored, bits, rows * columns):
        if columns * part % 8 == 0:
            found = _spread(field.view(rows, -1)[which], part)
        else:  # a row may begin and end within a byte
            at = part * (which[:, None] * columns + torch.arange(columns, device=which.device))
            found = (field[at // 8] >> (at % 8).to(torch.uint8)) & (2**part - 1)
        codes = found << shift if codes is None else codes | found << shift
    return codes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `pack` needs for `count` codes."""
    return sum(-(-count * part // 8) for part in _parts(bits))


def _fields(stored: Tensor, bits: int, count: int) -> Iterator[tuple[Tensor, int, int]]:
    """The parts of `count` codes: the bytes of each, the bits of a code that it has, and the lower ones before it."""
    start, shift = 0, 0
    for part in _parts(bits):
        length = -(-count * part // 8)
        yield stored[start : start + length], part, shift
        start, shift = start + length, shift + part


def _spread(field: Tensor, part: int) -> Tensor:
    """Numbers of `part` bits from bytes that are full of them, uint8 `[..., bytes] -> [..., bytes * 8 / part]`."""
    if part == 8:
        return field
    places = torch.arange(0, 8, part, dtype=torch.uint8, device=field.device)
    return ((field[..., None] >> places) & (2**part - 1)).flatten(-2)


def _parts(bits: int) -> list[int]:
    return [part for part in (8, 4, 2, 1) if bits & part]
