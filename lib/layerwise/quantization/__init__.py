"""Weight quantization to a plan: real quantizers, one file each, behind one signature.

A quantizer is a function `(model, bits, tokens=None) -> model`: `bits` `[L]` says for each block how many bits the
weights of its linear layers get: a number for all of them, `{path: number}` for those at these paths in a block where
the plan goes by matrix, None for none; `tokens` `[n, length]` are calibration text, for those that use it. It may
change the model that it is given, which is a copy. One that treats each block by itself offers
`.block(block, bits) -> block` too, so that a sweep over plans quantizes nothing twice. One that treats each matrix by
itself offers `.matrix(weight, bits) -> Quantized`, by which embedding and head are quantized. `widths` and `stored` say
what it has and what that takes on disk. One that keeps outliers takes `outliers` `[L]` too, the share of each block's
weights. One that can't do rows of every length has `check_columns(columns)`, which raises ValueError. A function of
your own needs nothing but the signature.
"""

from __future__ import annotations

from collections.abc import Callable

from layerwise.quantization.blockwise import Blockwise
from layerwise.quantization.gptq import GPTQ
from layerwise.quantization.hqq import HQQ
from layerwise.quantization.outliers import Outliers
from layerwise.quantization.packed import PackedLinear, packed
from layerwise.quantization.quanto import Quanto
from layerwise.quantization.rtn import RTN
from layerwise.quantization.tables import PackedEmbedding

QUANTIZERS: dict[str, Callable] = {each.name: each() for each in (RTN, Quanto, HQQ, GPTQ, Outliers)}

__all__ = [
    "GPTQ",
    "HQQ",
    "QUANTIZERS",
    "Blockwise",
    "Outliers",
    "PackedEmbedding",
    "PackedLinear",
    "Quanto",
    "RTN",
    "packed",
    "quantizer",
]


def quantizer(given: str | Callable) -> Callable:
    """The quantizer of a name, or the function itself. Raises ValueError for a name that there isn't."""
    if callable(given):
        return given
    if given not in QUANTIZERS:
        raise ValueError(
            f"unknown quantizer {given!r}: there is {', '.join(QUANTIZERS)}, and any function "
            "(model, bits, tokens=None) -> model, such as lw.quantization.RTN(group=128)"
        )
    return QUANTIZERS[given]
