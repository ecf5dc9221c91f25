"""optimum-quanto's weight quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from layerwise.plans.storage import Grouped
from layerwise.quantization.blockwise import Blockwise
from layerwise.quantization.packages import needs
from layerwise.quantization.packed import Quantized


@dataclass(frozen=True)
class Quanto(Blockwise):
    """What `optimum.quanto.quantize(weights=...)` and `freeze` do to linear layers of a float16 model.

    int8 is symmetric with a scale for each row; int4 and int2 are asymmetric with a scale and a zero point, both
    float16, for each group. Groups are quanto's own: 128 weights, or fewer where 128 doesn't divide a longer row, and
    a whole row where that has no more than 128 weights or no such divisor.
    """

    name: ClassVar[str] = "quanto"
    widths: ClassVar[tuple[int, ...]] = (8, 4, 2)

    def matrix(self, weight: Tensor, bits: int) -> Quantized:
        quanto = needs("optimum.quanto", "optimum-quanto")
        weight, kind = weight.half(), quanto.qtypes[f"qint{bits}"]
        rows, columns = weight.shape
        if bits == 8:
            scale = quanto.AbsmaxOptimizer()(weight, kind, axis=0)
            codes = torch.ops.quanto.quantize_symmetric(weight, dtype=kind.dtype, axis=0, scale=_filled(scale))
            zero = torch.full((1, 1), 128, dtype=torch.uint8, device=weight.device)
            return Quantized((codes.short() + 128).to(torch.uint8), scale.view(rows, 1), zero, columns)
        size = self._group(bits, rows, columns)
        scale, shift = quanto.MaxOptimizer()(weight, kind, axis=0, group_size=size if size < columns else None)
        # Equal weights have a range of 0. On a scale of 1 they are all one code, and the zero point says which weight.
        scale = _filled(scale)
        codes = torch.ops.quanto.quantize_affine(
            weight, bits=bits, axis=0, group_size=size if size < columns else None, scale=scale, shift=shift
        )
        # Where quanto keeps a shift in units of weights, here is a zero point in units of codes.
        zero = (shift.float() / scale.float()).half()
        return Quantized(codes.view(rows, columns), scale.view(rows, -1), zero.view(rows, -1), size)

    def stored(self, bits: int, rows: int, columns: int) -> int:
        if bits == 8:
            return Grouped("row", zero=0)(bits, rows, columns) + 1
        return Grouped(self._group(bits, rows, columns), zero=16)(bits, rows, columns)

    @staticmethod
    def _group(bits: int, rows: int, columns: int) -> int:
        quanto = needs("optimum.quanto", "optimum-quanto")
        with torch.device("meta"):
            layer = quanto.QLinear(columns, rows, bias=False, weights=quanto.qtypes[f"qint{bits}"])
        return layer.weight_group_size or columns


def _filled(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
