"""Round to nearest: the reference that the others are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.plans.storage import Group, Grouped
from layerwise.quantization.blockwise import Blockwise
from layerwise.quantization.packed import Quantized


@dataclass(frozen=True)
class RTN(Blockwise):
    """Every weight to the nearest of 2**bits evenly spaced levels, which reach from the smallest weight of its group to
    the largest, and to 0, which is always a level: asymmetric, with a float16 scale and a zero point of 8 bits.

    `group` is so many consecutive weights of a row (the last group of a row may be short), "row" or "matrix".
    """

    group: Group = 64
    name: ClassVar[str] = "rtn"
    widths: ClassVar[tuple[int, ...]] = (8, 7, 6, 5, 4, 3, 2, 1)

    def matrix(self, weight: Tensor, bits: int) -> Quantized:
        rows, columns = weight.shape
        size = Grouped(self.group).size(columns)
        # Repeating the row's last weight leaves the range of its last group as it is.
        groups = F.pad(weight[None], (0, -columns % size), mode="replicate")[0].view(rows, -1, size)
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        if self.group == "matrix":
            low, high = low.amin().view(1, 1), high.amax().view(1, 1)
        levels = 2**bits - 1
        scale = ((high - low) / levels).half()
        # Zeros alone have no range. A range too small for float16 has none either: its weights are zeros to it.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = (-low / scale.float()).round().clamp(0, levels)
        codes = ((groups / scale.float()[..., None]).round() + zero[..., None]).clamp(0, levels)
        return Quantized(codes.view(rows, -1)[:, :columns].to(torch.uint8), scale, zero.to(torch.uint8), size)

    def stored(self, bits: int, rows: int, columns: int) -> int:
        return Grouped(self.group)(bits, rows, columns)
