"""Linear layers whose weights take as many bits as they have: the one format that every blockwise quantizer ends in.

A weight is `(code - zero) * scale`, with a code of some bits for every weight, and a scale and a zero point for every
group of weights (`Grouped` says which groups there are). Scales are float16 whatever a model computes in; zero points
are float16 or uint8. Weights are unpacked when they are used, a matrix at a time, so what is saved is memory and disk,
not time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    codes, columns = matrix.codes, matrix.codes.shape[1]
    scale, zero = (
        part if part.shape[1] == 1 else part.repeat_interleave(matrix.group, 1)[:, :columns]
        for part in (matrix.scale.float(), matrix.zero.float())
    )
    return (codes.float() - zero) * scale


class PackedLinear(nn.Module):
    """A linear layer `[..., columns] -> [..., rows]` with weights of `bits` bits; a bias stays as it is.

    Its buffers are what is stored: `codes` uint8, `scale` float16, `zero` float16 or uint8. They keep their dtypes when
    the model is cast, since they are a format, not a precision to compute in.
    """

    def __init__(self, matrix: Quantized, bits: int, bias: nn.Parameter | None = None):
        super().__init__()
        self.out_features, self.in_features = matrix.codes.shape
        self.bits, self.group = bits, matrix.group
        self.register_buffer("codes", pack(matrix.codes, bits))
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("zero", matrix.zero)
        self.register_parameter("bias", bias)

    def quantized(self) -> Quantized:
        """Codes, scales and zero points, unpacked."""
        codes = unpack(self.codes, self.bits, self.out_features * self.in_features)
        return Quantized(codes.view(self.out_features, self.in_features), self.scale, self.zero, self.group)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, dequantized(self.quantized()).to(x.dtype), self.bias)

    def dense(self, dtype: torch.dtype) -> nn.Linear:
        """A plain linear layer with the weights that this one stands for: larger, faster, and equal."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(dequantized(self.quantized()).to(dtype), requires_grad=False)
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}"

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = getattr(self, name)
            if now.dtype != buffer.dtype:  # a cast: undo it, from what was there, where it is now
                setattr(self, name, buffer.to(now.device))
        return self


def packed(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed layers of a model by their path; empty if nothing in it is packed."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


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
    codes, start, shift = None, 0, 0
    for part in _parts(bits):
        length = -(-count * part // 8)
        field = stored[start : start + length]
        if part < 8:
            places = torch.arange(0, 8, part, dtype=torch.uint8, device=stored.device)
            field = ((field[:, None] >> places) & (2**part - 1)).flatten()
        field = field[:count] << shift
        codes = field if codes is None else codes | field
        start, shift = start + length, shift + part
    return codes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `pack` needs for `count` codes."""
    return sum(-(-count * part // 8) for part in _parts(bits))


def _parts(bits: int) -> list[int]:
    return [part for part in (8, 4, 2, 1) if bits & part]
