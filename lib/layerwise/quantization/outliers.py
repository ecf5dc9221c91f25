"""A quantizer that is dynamic by itself, after SpQR (arXiv 2306.03078): small groups, whose scales and zero points are
quantized too, and the weights whose rounding would cost most kept in 16 bits.

What a linear layer's rounding costs is the squared error of its output on calibration text: with its inputs as rows of
`X` and `H = X' X`, changing a row of weights by `d` costs `d H d'`. Rounding one weight `w` of column j to `q`, with
all others free to make up for it, costs `(w - q)^2 / [H^-1]_jj` (Optimal Brain Surgeon; the paper's saliency has H of
twice the size, and half the cost).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from layerwise.architectures import blocks, linears, written
from layerwise.corpora import check_tokens
from layerwise.passes import entering
from layerwise.quantization.blockwise import check, finite
from layerwise.quantization.packed import (
    STATISTIC_BITS,
    STATISTIC_GROUP,
    Outlying,
    Quantized,
    SparseLinear,
    dequantized,
    packed_bytes,
)

BATCH = 8  # windows that are run at a time
DAMPING = 0.01  # what is added to the diagonal of H, as a share of its mean: GPTQ's
WIDTH = 128  # columns, about, whose errors are passed on together to all that follow them
MOST = 2**16 - 1  # columns that an index of 16 bits tells apart


@dataclass(frozen=True)
class Outliers:
    """`(model, bits, tokens, outliers=None) -> model`: block after block, each fed by those before it, quantized.

    `bits[i]` are those of a code in block i. `outliers[i]` is the share of the block's weights, in [0, 1), that are
    kept in float16; None, or no `outliers`, is `share`. They are the same share of all weights of the block, not of
    each matrix: those whose absence from their group lowers the cost of rounding most. What is rounded is corrected for
    as in GPTQ (arXiv 2210.17323), column by column, by changing the columns that are left.

    `group` weights of a row have a scale and a zero point, of 3 bits each; the last group of a row may be short.
    `tokens` `[n, length]` hold no padding.
    """

    group: int = 16
    share: float = 0.01
    name: ClassVar[str] = "outliers"
    widths: ClassVar[tuple[int, ...]] = (8, 4, 3, 2)
    needs_tokens: ClassVar[bool] = True

    def __post_init__(self):
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 1:
            raise ValueError(f"group must be a number of weights, not {self.group!r}")
        _check_share("share", self.share)

    def __call__(
        self,
        model: nn.Module,
        bits: Sequence[int | None],
        tokens: Tensor | None = None,
        outliers: Sequence[float | None] | None = None,
    ) -> nn.Module:
        """`model` with the linear layers of block i at `bits[i]` bits, in place; None leaves a block as it is.

        Raises ValueError, before anything is changed, for a width that there isn't, shares outside [0, 1) or for blocks
        without bits, no tokens or tokens outside the vocabulary, and weights that are NaN or infinite or can't be
        indexed; later, for inputs of a layer that are NaN or infinite.
        """
        check(self, model, bits)
        shares = self._shares(bits, outliers)
        if tokens is None:
            raise ValueError("outliers needs calibration text: give tokens=lw.tokens(...)")
        check_tokens(tokens, model.config.vocab_size)
        each = list(blocks(model))
        for i, (block, width) in enumerate(zip(each, bits, strict=True)):
            if width is not None:
                _check_matrices(i, block)
        with torch.inference_mode(False), torch.no_grad():
            self._sequentially(model, each, bits, shares, tokens)
        return model

    def stored(self, bits: int, rows: int, columns: int, outliers: float | None = None) -> int:
        """Bytes of a matrix at `bits` bits that keeps this share of its weights; exact for the sum over a block."""
        statistics = 2 * -(-columns // self.group)  # rows of the matrix of scales and zero points
        kept = round((self.share if outliers is None else outliers) * rows * columns)
        second = packed_bytes(statistics * rows, STATISTIC_BITS) + 4 * statistics * -(-rows // STATISTIC_GROUP)
        return packed_bytes(rows * columns, bits) + second + 2 * rows + 4 * kept

    def _shares(self, bits, outliers) -> list[float]:
        outliers = [None] * len(bits) if outliers is None else list(outliers)
        if len(outliers) != len(bits):
            raise ValueError(f"outliers must be {len(bits)} shares, one for each block, not {len(outliers)}")
        for i, (width, share) in enumerate(zip(bits, outliers, strict=True)):
            if share is not None:
                _check_share(f"outliers of block {i}", share)
            if share and width is None:
                raise ValueError(f"block {i} keeps outliers, and has no bits that they could be kept from: set both")
        return [self.share if share is None else share for share in outliers]

    def _sequentially(self, model, each, bits, shares, tokens):
        parts = tokens.to(model.device).split(BATCH)
        batches = [entering(model, part) for part in parts]
        for i, block in enumerate(tqdm(each, desc=self.name, unit="block", leave=False, delay=5)):
            states = [(hidden, arguments[i]) for hidden, arguments in batches]
            if bits[i] is not None:
                sums = _products(block, states)
                try:
                    self._block(block, bits[i], shares[i], sums)
                except ValueError as error:
                    raise ValueError(f"{self.name}, block {i}, {error}") from error
            if any(width is not None for width in bits[i + 1 :]):
                outputs = [written(block(hidden, **arguments)) for hidden, arguments in states]
                batches = [(output, rest) for output, (_, rest) in zip(outputs, batches, strict=True)]

    def _block(self, block, bits, share, sums):
        found = linears(block)
        factors, gains = {}, []
        for path, linear in found.items():
            if not sums[path].isfinite().all():
                raise ValueError(
                    f"{path}: what enters it is NaN or infinite: the dtype overflows, or weights are damaged"
                )
            factors[path] = inverse_factor(sums.pop(path))
            gains.append(gain(linear.weight.float(), factors[path].square().sum(0), bits, self.group))
        for (path, linear), mask in zip(found.items(), _largest(gains, share), strict=True):
            weight = linear.weight.float()
            block.set_submodule(path, rounded(weight, mask, factors.pop(path), bits, self.group, linear.bias))


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
    count, width = weight.shape[1], group * max(1, WIDTH // group)
    for start in range(0, count, width):
        end = min(start + width, count)
        errors = torch.empty_like(weight[:, start:end])
        for j in range(start, end):
            if j % group == 0:
                part = weight[:, j : j + group].masked_fill(mask[:, j : j + group], 0)
                grid = torch.stack(_grid(part.amin(1).clamp(max=0), part.amax(1).clamp(min=0), bits))
                statistics.append(_coarse(grid))
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


def _products(block: nn.Module, states: Sequence[tuple[Tensor, dict]]) -> dict[str, Tensor]:
    """`X' X` of what enters each linear layer of the block, float32 `[columns, columns]`, by path."""
    found, handles = linears(block), []
    sums = {
        path: linear.weight.new_zeros([linear.in_features] * 2, dtype=torch.float32) for path, linear in found.items()
    }

    def watch(total):
        def add(linear, args):
            rows = args[0].flatten(0, -2).float()
            total.addmm_(rows.T, rows)

        return add

    try:
        handles += [linear.register_forward_pre_hook(watch(sums[path])) for path, linear in found.items()]
        for hidden, arguments in states:
            block(hidden, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _largest(gains: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest of all gains together: this share of them, rounded to a whole number."""
    sizes = [gain.numel() for gain in gains]
    flat = torch.cat([gain.flatten() for gain in gains])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(round(share * len(flat)), sorted=False).indices] = True
    return [part.view_as(gain) for part, gain in zip(chosen.split(sizes), gains, strict=True)]


def _grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and real zero point of the levels from `low` to `high`."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    return scale, torch.where(scale > 0, -low / scale, levels / 2)


def _codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest levels. On a scale of 0 all are the same."""
    return (weight / torch.where(scale > 0, scale, 1.0) + zero).round().clamp(0, 2**bits - 1)


def _coarse(values: Tensor) -> Quantized:
    """Scales and zero points `[2, rows]`, none negative, to the nearest of the levels of their group of rows."""
    rows = values.shape[1]
    groups = F.pad(values[None], (0, -rows % STATISTIC_GROUP), mode="replicate")[0].view(
        len(values), -1, STATISTIC_GROUP
    )
    low, high = groups.amin(2), groups.amax(2)
    levels = 2**STATISTIC_BITS - 1
    scale = ((high - low) / levels).half()
    # What is equal, or almost, is one code, whose level is the scale itself. A zero point would overflow float16.
    equal = scale.float() <= 1e-4 * high
    scale = torch.where(equal, low.half(), scale)
    zero = torch.where(equal, -1.0, -low / scale.float()).half()
    codes = _codes(groups, scale.float()[..., None], zero.float()[..., None], STATISTIC_BITS)
    return Quantized(codes.flatten(1)[:, :rows].to(torch.uint8), scale, zero, STATISTIC_GROUP)


def _groups(columns: int, group: int) -> Iterator[slice]:
    return (slice(start, min(start + group, columns)) for start in range(0, columns, group))


def _check_matrices(i: int, block: nn.Module) -> None:
    for path, linear in linears(block).items():
        try:
            finite(linear.weight)
            if linear.in_features > MOST:
                raise ValueError(f"rows of {linear.in_features} weights: indices of 16 bits reach to {MOST}")
        except ValueError as error:
            raise ValueError(f"{Outliers.name}, block {i}, {path}: {error}") from error


def _check_share(name: str, share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(f"{name} must be a share of the weights, at least 0 and below 1, not {share!r}")
