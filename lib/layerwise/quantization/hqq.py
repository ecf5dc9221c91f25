"""HQQ's weight quantization (half-quadratic quantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from layerwise.plans.storage import Group, Grouped
from layerwise.quantization.blockwise import Blockwise, whole_groups
from layerwise.quantization.packages import needs
from layerwise.quantization.packed import Quantized


@dataclass(frozen=True)
class HQQ(Blockwise):
    """hqq's `Quantizer`, groups along rows: asymmetric, zero points fitted so that few weights are far off.

    Scale and zero point of each group are float16. `group` is so many weights of a row, which it must divide, "row" or
    "matrix", the last without the fit, which hqq has for rows only.
    """

    group: Group = 64
    name: ClassVar[str] = "hqq"
    widths: ClassVar[tuple[int, ...]] = (8, 4, 3, 2, 1)

    def check_columns(self, columns: int) -> None:
        whole_groups(columns, Grouped(self.group).size(columns))

    def matrix(self, weight: Tensor, bits: int) -> Quantized:
        quantize = needs("hqq.core.quantize", "hqq").Quantizer.quantize
        rows, columns = weight.shape
        size = Grouped(self.group).size(columns)
        self.check_columns(columns)
        codes, found = quantize(
            weight,
            nbits=bits,
            channel_wise=self.group != "matrix",
            group_size=self.group if isinstance(self.group, int) else None,
            axis=1,
            bitpack=False,
            device=str(weight.device),
        )
        shape = (1, 1) if self.group == "matrix" else (rows, -1)
        scale, zero = (found[name].reshape(shape).half().clone() for name in ("scale", "zero"))
        return Quantized(codes.reshape(rows, columns).to(torch.uint8), scale, zero, size)

    def stored(self, bits: int, rows: int, columns: int) -> int:
        return Grouped(self.group, zero=16)(bits, rows, columns)
