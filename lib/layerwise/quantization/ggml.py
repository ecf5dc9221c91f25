"""llama.cpp's formats of groups of 32 weights: what `lw.save_gguf` writes as it is, without another rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from layerwise.quantization.blockwise import Blockwise, whole_groups
from layerwise.quantization.packed import Packed, Quantized, pack

GROUP = 32
KINDS = {4: Kind.Q4_1, 5: Kind.Q5_1, 8: Kind.Q8_0}
MIDDLE = 128  # the code of 0 in Q8_0, whose codes are signed in a file


@dataclass(frozen=True)
class GGUF(Blockwise):
    """llama.cpp's Q4_1 (4 bits), Q5_1 (5 bits) and Q8_0 (8 bits), as it rounds without an importance matrix.

    A group is 32 consecutive weights of a row, which must be whole groups. Of 4 and 5 bits, levels reach from the
    smallest weight of a group to the largest, and a group has a scale and its smallest weight, both float16. Of 8 bits,
    they reach as far below 0 as above, and a group has a float16 scale.
    """

    name: ClassVar[str] = "gguf"
    widths: ClassVar[tuple[int, ...]] = (8, 5, 4)

    def check_columns(self, columns: int) -> None:
        whole_groups(columns, GROUP)

    def matrix(self, weight: Tensor, bits: int) -> Quantized:
        rows, columns = weight.shape
        self.check_columns(columns)
        groups = weight.reshape(rows, -1, GROUP)
        if bits == 8:
            step = groups.abs().amax(2) / 127
            exact = groups * _inverse(step)
            # llama.cpp rounds halves away from 0, torch to even ones
            away = exact.abs().floor() + (2 * exact.abs().frac()).floor()
            codes = (away.copysign(exact) + MIDDLE).to(torch.uint8)
            return Quantized(codes.view(rows, columns), step.half(), MIDDLE, GROUP)
        low, levels = groups.amin(2), 2**bits - 1
        step = (groups.amax(2) - low) / levels
        codes = ((groups - low[..., None]) * _inverse(step) + 0.5).clamp(max=levels).to(torch.uint8)
        return Quantized(codes.view(rows, columns), step.half(), 0, GROUP, low.half())

    def stored(self, bits: int, rows: int, columns: int) -> int:
        group, size = gguf.GGML_QUANT_SIZES[KINDS[bits]]
        return rows * columns // group * size


def in_file(layer: Packed) -> tuple[Kind, np.ndarray]:
    """The type of a packed matrix in a GGUF file, and its bytes there, uint8 `[rows, bytes of a row]`.

    Raises ValueError for one that another quantizer than `GGUF` made.
    """
    matrix, bits = layer.quantized(), layer.bits
    expected = (MIDDLE, False) if bits == 8 else (0, True)
    # A zero point that is a tensor belongs to another format, whatever is in it.
    known = bits in KINDS and matrix.group == GROUP and isinstance(matrix.zero, int)
    if not known or (matrix.zero, matrix.low is not None) != expected:
        raise ValueError('its few bits are of another kind than a file can have: compress with quantizer="gguf"')
    rows = matrix.codes.shape[0]
    codes = matrix.codes.view(rows, -1, GROUP)
    numbers = [_bytes(part) for part in (matrix.scale, matrix.low) if part is not None]
    if bits == 8:
        return KINDS[bits], _joined([*numbers, codes ^ MIDDLE])  # that is their code as signed bytes
    fifth = [pack(codes >> 4, 1).view(rows, -1, GROUP // 8)] if bits == 5 else []
    first, second = (codes & 15).split(GROUP // 2, dim=2)
    return KINDS[bits], _joined([*numbers, *fifth, first | second << 4])


def _inverse(step: Tensor) -> Tensor:
    """What weights are multiplied by, `[rows, groups, 1]`; 0 where all weights of a group are one."""
    return torch.where(step == 0, 0, 1 / step)[..., None]


def _bytes(part: Tensor) -> Tensor:
    """Numbers of 16 bits `[rows, groups]` as bytes `[rows, groups, 2]`."""
    return part.contiguous().view(torch.uint8).view(*part.shape, 2)


def _joined(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts, dim=2).flatten(1).cpu().numpy()
