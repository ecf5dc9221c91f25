"""One matrix, rounded with error feedback at the least cost to what its layer puts out; the arithmetic of `outliers`.

With the layer's inputs as rows of `X`, and `H = X' X`, changing a row of weights by `d` adds `d H d'` to the squared
error of its output. Rounding one weight `w` of column j to `q`, where all others of its row may make up for it, adds
`(w - q)^2 / [H^-1]_jj`. That is the saliency of SpQR (arXiv 2306.03078), whose H is `2 X' X` and whose error is halved.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.quantization.packed import (
    STATISTIC_BITS,
    STATISTIC_GROUP,
    Outlying,
    Quantized,
    SparseLinear,
    dequantized,
)

DAMPING = 0.01  # what is added to the diagonal of H, as a share of its mean: GPTQ's
WIDTH = 128  # columns, about, whose errors are passed on together to all that follow them


def inverse_factor(products: Tensor) -> Tensor:
    """The upper triangular `U` `[columns, columns]` with `H^-1 = U' U`, where `H` is `products`, damped (in place)."""
    damping = DAMPING * products.diagonal().mean()
    # Inputs that were always 0 say nothing: then any rounding is as good, and each weight stands for itself.
    products.diagonal().add_(torch.where(damping > 0, damping, 1.0))
    # From the other end, Cholesky gives H = R R' with R upper triangular, so U = R^-1: no inverse of H is needed.
    upper = torch.linalg.cholesky(products.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper), device=upper.device), upper=True)


def gain(weight: Tensor, variance: Tensor, bits: int, group: int) -> Tensor:
    """How much less it costs to round the group of each weight if that weight is kept out of it, `[rows, columns]`.

    `variance` `[columns]` is the diagonal of H^-1. What a weight costs itself is saved in any case; that of the others
    changes if it is the lowest or the highest of its group, whose range is then shorter. Scales and zero points are
    those before they are quantized.
    """
    gains = torch.empty_like(weight)
    for columns in _groups(weight.shape[1], group):
        part = weight[:, columns]

        def costs(low, high, part=part, price=1 / variance[columns]):
            scale, zero = _grid(low, high, bits)
            return price * (part - (_codes(part, scale, zero, bits) - zero) * scale).square()

        # 0 is always in the range: it stands for the missing second of a group of one weight too.
        ends = F.pad(part, (0, 1))
        (low, second_low), (high, second_high) = (
            ends.topk(2, largest=largest).values.T[..., None] for largest in (False, True)
        )
        all_in = costs(low.clamp(max=0), high.clamp(min=0))
        gains[:, columns] = all_in
        for at, others in (
            (part.argmin(1, keepdim=True), costs(second_low.clamp(max=0), high.clamp(min=0))),
            (part.argmax(1, keepdim=True), costs(low.clamp(max=0), second_high.clamp(min=0))),
        ):
            without = others.sum(1, keepdim=True) - others.gather(1, at)
            gains[:, columns].scatter_(1, at, all_in.sum(1, keepdim=True) - without)
    return gains


def rounded(
    weight: Tensor, mask: Tensor, upper: Tensor, bits: int, group: int, bias: nn.Parameter | None = None
) -> SparseLinear:
    """A matrix `[rows, columns]` at `bits` bits, but for the weights where `mask` is True, which are kept.

    Columns are rounded from left to right. Each error is passed on to the columns behind it by a row of `upper`, the
    factor of H^-1, which is how they best make up for it. `weight` is overwritten.
    """
    codes, statistics = torch.empty_like(weight, dtype=torch.uint8), []
    price = upper.diagonal() ** -2  # of rounding a column, where those before it can't change any more
    count, width = weight.shape[1], group * max(1, WIDTH // group)
    for start in range(0, count, width):
        end = min(start + width, count)
        errors = torch.empty_like(weight[:, start:end])
        for j in range(start, end):
            if j % group == 0:
                here = slice(j, j + group)
                statistics.append(_statistics(weight[:, here], mask[:, here], price[here], bits))
                scale, zero = dequantized(statistics[-1])
            column = weight[:, j]
            codes[:, j] = _codes(column, scale, zero, bits)
            value = torch.where(mask[:, j], column.half().float(), (codes[:, j] - zero) * scale)
            errors[:, j - start] = (column - value) / upper[j, j]
            weight[:, j] = value
            weight[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    if not weight.isfinite().all():
        raise ValueError("weights are too large for float16")
    second = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*(each[:3] for each in statistics), strict=True))
    counts, columns = mask.sum(1).to(torch.uint16), mask.nonzero()[:, 1].to(torch.uint16)
    outliers = Outlying(counts, columns, weight[mask].half())
    return SparseLinear(codes, group, Quantized(*second, STATISTIC_GROUP), outliers, bits, bias)


def _grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and real zero point of the levels from `low` to `high`."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    return scale, torch.where(scale > 0, -low / scale, levels / 2)


def _codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest levels. On a scale of 0 all are the same."""
    return (weight / torch.where(scale > 0, scale, 1.0) + zero).round().clamp(0, 2**bits - 1)


def _statistics(part: Tensor, mask: Tensor, price: Tensor, bits: int) -> Quantized:
    """Scale and zero point of each row of a group of columns `[rows, group]`, as codes `[2, rows]`.

    They reach, about, from the lowest weight of the row that isn't in `mask` to the highest. Of all pairs of codes a
    row takes the one at which its weights cost least: squared errors, each times the `price` `[group]` of its column.
    """
    inside = part.masked_fill(mask, 0)
    second = _second_level(torch.stack(_grid(inside.amin(1).clamp(max=0), inside.amax(1).clamp(min=0), bits)))
    count = 2**STATISTIC_BITS
    every = torch.arange(count, dtype=torch.uint8, device=part.device)[:, None, None].expand(-1, 2, len(part))
    scales, zeros = torch.stack([dequantized(Quantized(codes, *second)) for codes in every], 1)[..., None]
    scales, zeros = scales[:, None], zeros[None]  # pairs are [count, count, rows, 1]
    errors = (_codes(part, scales, zeros, bits) - zeros) * scales - part
    best = (errors.square() * torch.where(mask, 0, price)).sum(3).flatten(0, 1).argmin(0)
    return Quantized(torch.stack([best // count, best % count]).to(torch.uint8), *second)


def _second_level(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """float16 scales and zero points for codes that stand for `values` `[2, rows]`, none negative; their group."""
    missing = -values.shape[1] % STATISTIC_GROUP
    groups = F.pad(values[None], (0, missing), mode="replicate")[0].unflatten(1, (-1, STATISTIC_GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / (2**STATISTIC_BITS - 1)).half()
    # Values that are all but equal are code 0 at the scale that they are: a zero point far off would overflow float16.
    equal = scale <= 1e-4 * high
    zero = torch.where(equal, -1.0, -low / scale.float()).half()
    return torch.where(equal, low.half(), scale), zero, STATISTIC_GROUP


def _groups(columns: int, group: int) -> Iterator[slice]:
    return (slice(start, min(start + group, columns)) for start in range(0, columns, group))
