"""Products of what enters a block and what leaves it, token by token, and their means over windows.

Of one batch at a time, three numbers per token and block are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Products:
    """(x.y, |x|^2, |y|^2) of each block of one batch, float32 `[batch, length]` each, in the order of the blocks.

    Products are taken in float32: a dot of D terms that are summed pairwise is right to about 1e-7 of |x||y|, far below
    the spread between tokens, while float64 copies of the hidden states would cost more than the rest of the scoring.
    Everything that is summed over tokens is float64.
    """

    def __init__(self) -> None:
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        self.last: tuple[Tensor, Tensor] | None = (
            None  # y of the block before and its squares: as a rule the very x that comes next
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        xs = self.last[1] if self.last and x is self.last[0] else _dot(x, x)
        x, xs = x.to(y.device), xs.to(y.device)  # from the device of the block before
        ys = _dot(y, y)
        self.products.append((_dot(x, y), xs, ys))
        self.last = y, ys

    def taken(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        found, self.products = self.products, []
        return found


def window_means(products: list[tuple[Tensor, Tensor, Tensor]], keep: Tensor, start: int) -> Tensor:
    """Means over the tokens of each window: cosine and squared norms of x, y, y - x, float64 `[4, L, batch]`."""
    # Blocks may be on several devices, and not every device has float64: it is computed on the CPU, where three
    # numbers per token and block are little.
    xy, xx, yy = torch.stack([torch.stack(each).cpu() for each in products], dim=1).double()  # [L, batch, length]
    # Padding may hold anything, NaN too: it is replaced, not multiplied by 0.
    xy, xx, yy = (torch.where(keep, each, 0.0) for each in (xy, xx, yy))
    bad = ~torch.stack([xx, yy], dim=1).isfinite()  # [L, x or y, batch, length]
    if bad.any():
        # The first in this order is the cause: attention spreads a NaN to other tokens, but not to earlier blocks.
        block, side, window, position = bad.nonzero()[0].tolist()
        verb = ("is given", "puts out")[side]
        raise ValueError(
            f"block {block} of {len(products)} {verb} NaN or infinity (window {start + window}, position {position}): "
            "weights up to there are damaged, or the dtype overflows (float16 does where bfloat16 and float32 don't)"
        )
    cosine = xy / (xx * yy).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    change = (xx + yy - 2 * xy).clamp_min(0)
    return torch.stack([cosine, xx, yy, change]).sum(-1) / keep.sum(-1).clamp_min(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.float()).sum(-1)
