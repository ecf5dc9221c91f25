"""A quantizer that is dynamic by itself, after SpQR (arXiv 2306.03078): small groups, whose scales and zero points are
quantized too, and those weights kept in 16 bits that it would cost most to round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone.devices import entrance
from layerwise.backbone.passes import entering
from layerwise.backbone.structure import blocks, evaluating, linears, weight_matrix, written
from layerwise.quantization.blockwise import Bits, bits_by_path, check_bits, check_matrices
from layerwise.quantization.packed import STATISTIC_BITS, STATISTIC_GROUP, packed_bytes
from layerwise.quantization.rounding import gain, inverse_factor, rounded
from layerwise.text.corpora import check_text

BATCH = 8  # windows that are run at a time
MOST = 2**16 - 1  # columns that indices and counts of 16 bits reach to


@dataclass(frozen=True)
class Outliers:
    """`(model, bits, tokens, outliers=None) -> model`: block after block, each fed by those before it, quantized.

    Those weights of a block are kept in float16 whose absence lowers the cost of rounding their group most. The others
    are rounded as in GPTQ (arXiv 2210.17323), column by column, and the columns that are left make up for the error.

    Parameters
    ----------
    group
        So many weights of a row have a scale and a zero point, of 3 bits each; the last group of a row may be short.
    share
        Of the weights of a block that are kept, where the plan says nothing. It is not a share of each matrix.
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
        bits: Sequence[Bits],
        tokens: Tensor | None = None,
        outliers: Sequence[float | None] | None = None,
    ) -> nn.Module:
        """`model` with the linear layers of its blocks at few bits, in place.

        Parameters
        ----------
        bits
            `[L]`, those of a code in each block, or by path of its linear layers; None leaves a block as it is.
        tokens
            Calibration text `[n, length]`, without padding.
        outliers
            `[L]`, the share in [0, 1) of each block's weights that are kept, of those that get bits; None, or no
            `outliers`, is `share`.

        Raises
        ------
        ValueError
            Before anything is changed, for a width that there isn't, shares outside [0, 1) or for blocks without bits,
            no tokens or tokens outside the vocabulary or longer than a table of positions, and weights that are NaN or
            infinite or can't be indexed; later, for inputs of a layer that are NaN or infinite.
        """
        check_bits(self, model, bits)
        shares = self._shares(bits, outliers)
        if tokens is None:
            raise ValueError("outliers needs calibration text: give tokens=lw.tokens(...)")
        check_text(model, tokens)
        check_matrices(self, model, bits)
        each = list(blocks(model))
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            self._sequentially(model, each, bits, shares, tokens)
        return model

    def check_columns(self, columns: int) -> None:
        """Raise ValueError for rows that are too long to be indexed."""
        if columns > MOST:
            raise ValueError(f"rows of {columns} weights: indices of 16 bits reach to {MOST}")

    def stored(self, bits: int, rows: int, columns: int, outliers: float | None = None) -> int:
        """Bytes of a matrix at `bits` bits. `outliers` is the share that is kept of it, or of its whole block's."""
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
        batches = [entering(model, part) for part in tokens.to(entrance(model)).split(BATCH)]
        for i, block in enumerate(tqdm(each, desc=self.name, unit="block", leave=False, delay=5)):
            if widths := bits_by_path(block, bits[i]):
                products = _products(block, widths, ((hidden, arguments[i]) for hidden, arguments in batches))
                try:
                    self._block(block, widths, shares[i], products)
                except ValueError as error:
                    raise ValueError(f"{self.name}, block {i}, {error}") from error
            if any(bits[i + 1 :]):
                for k, (hidden, arguments) in enumerate(batches):
                    batches[k] = written(block(hidden, **arguments[i])), arguments

    def _block(self, block, widths, share, products):
        layers, factors, gains = linears(block), {}, []
        for path, bits in widths.items():
            if not products[path].isfinite().all():
                raise ValueError(
                    f"{path}: what enters it is NaN or infinite: the dtype overflows, or weights are damaged"
                )
            try:
                factors[path] = inverse_factor(products.pop(path))
            except torch.linalg.LinAlgError as error:
                raise ValueError(
                    f"{path}: what enters it is degenerate ({error}): give more calibration text"
                ) from error
            weight = weight_matrix(layers[path]).float()
            gains.append(gain(weight, factors[path].square().sum(0), bits, self.group))
        for (path, bits), mask in zip(widths.items(), _largest(gains, share), strict=True):
            linear = layers[path]
            weight = weight_matrix(linear).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            try:
                layer = rounded(weight, mask, factors.pop(path), bits, self.group, linear.bias)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            block.set_submodule(path, layer)


def _products(block: nn.Module, paths: Iterable[str], states: Iterable[tuple[Tensor, dict]]) -> dict[str, Tensor]:
    """`X' X` of what enters linear layers of the block, float32 `[columns, columns]`, by their path."""
    handles, products = [], {}

    def watch(path, linear):
        weight = weight_matrix(linear)
        total = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float32)
        products[path] = total

        def add(linear, args):
            rows = args[0].flatten(0, -2).float()
            total.addmm_(rows.T, rows)

        return linear.register_forward_pre_hook(add)

    try:
        handles += [watch(path, block.get_submodule(path)) for path in paths]
        for hidden, arguments in states:
            block(hidden, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return products


def _largest(gains: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest of all gains together: this share of them, rounded to a whole number."""
    flat = torch.cat([each.flatten() for each in gains])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(round(share * len(flat)), sorted=False).indices] = True
    parts = chosen.split([each.numel() for each in gains])
    return [part.view_as(each) for part, each in zip(parts, gains, strict=True)]


def _check_share(name: str, share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(f"{name} must be a share of the weights, at least 0 and below 1, not {share!r}")
