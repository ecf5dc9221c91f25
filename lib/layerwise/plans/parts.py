"""Plans by matrix: bits for each linear layer, the embedding and the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from layerwise.plans.layer import Layer
from layerwise.plans.plan import Plan
from layerwise.plans.storage import Stored

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape


def by_part(shape: Shape, bits: Sequence[int | None]) -> Plan:
    """The plan that gives each part of a model its bits.

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    bits
        One for each of `shape.parts`, in their order: the linear layers block by block, then the embedding, then the
        head if it is a table of its own; None leaves a part as it is.

    Returns
    -------
    plan
        A block whose linear layers all get the same bits has them as `bits`, so that a plan of whole blocks is the one
        that `lw.plans.bits` makes. `plan.bits_by_part(shape)` gives `bits` back.

    Raises
    ------
    ValueError
        For another number of bits than there are parts, and for bits that no weight can have.
    """
    if len(bits) != len(shape.parts):
        raise ValueError(f"bits must be {len(shape.parts)} widths, one for each of shape.parts, not {len(bits)}")
    blocks: list[dict[str, int | None]] = [{} for _ in range(shape.L)]
    ends: dict[str, int | None] = {}
    for part, width in zip(shape.parts, bits, strict=True):
        if part.block is None:
            ends[f"{part.path}_bits"] = width
        else:
            blocks[part.block][part.path] = width
    return Plan(tuple(map(_layer, blocks)), shape.D, **ends)


def bytes_at(shape: Shape, bits: float, widths: Sequence[int], stored: Stored | None = None) -> int:
    """What a model takes at so many bits for all its parts, everything counted; between two of `widths`, in proportion.

    A budget in bits is bytes by this. `stored` is the quantizer's, as for `Plan.predicted_bytes`. Raises ValueError for
    bits beyond the widths.
    """
    widths = sorted(widths)
    if not widths[0] <= bits <= widths[-1]:
        raise ValueError(f"bits must be from {widths[0]} to {widths[-1]}, as the widths are, not {bits}")
    sizes = [by_part(shape, [width] * len(shape.parts)).predicted_bytes(shape, stored) for width in widths]
    return int(np.interp(bits, widths, sizes))


def _layer(bits: dict[str, int | None]) -> Layer:
    if len(alike := set(bits.values())) == 1:
        return Layer(bits=alike.pop())
    return Layer(matrices={path: width for path, width in bits.items() if width is not None})
