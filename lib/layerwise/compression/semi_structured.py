"""Two of each four weights of a row are zero: pruning that some GPUs multiply at twice the speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from layerwise.backbone.structure import linears, weight_matrix
from layerwise.quantization.blockwise import check_bits, check_finite, check_matrices, each_block, whole_groups


@dataclass(frozen=True)
class TwoOfFour:
    """Of each four weights in a row the two smallest by magnitude become zero, the others stay as they are.

    The pattern 2:4 of arXiv 2104.08378, without any training. It has the signature of a quantizer, with 16 bits as the
    only width, so that plans say which blocks are pruned, and sweeps prune no block twice. `stored` counts what the
    kept weights and their places take, 16 and 2 bits each, in the format of these GPUs; `lw.save` writes zeros in full.
    """

    name: ClassVar[str] = "2:4"
    widths: ClassVar[tuple[int, ...]] = (16,)

    def check_columns(self, columns: int) -> None:
        """Raise ValueError for rows that can't be cut into fours."""
        whole_groups(columns, 4)

    def __call__(self, model: nn.Module, bits: Sequence[int | None], tokens: Tensor | None = None) -> nn.Module:
        """`model` with the blocks of width 16 pruned, in place; None leaves a block as it is. `tokens` are not used.

        Raises ValueError for other widths, and naming block and matrix for one with NaN, infinity, or rows that can't
        be cut into fours.
        """
        check_bits(self, model, bits)
        check_matrices(self, model, bits)
        for _ in each_block(self, model, bits, copies=False):
            pass
        return model

    @torch.no_grad()
    def block(self, block: nn.Module, bits: int) -> nn.Module:
        """`block` with its linear layers pruned, in place; errors as for a model."""
        for path, linear in linears(block).items():
            weights = weight_matrix(linear)
            try:
                check_finite(weights)
                self.check_columns(weights.shape[1])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            fours = weights.float().unflatten(1, (-1, 4))
            kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.abs().topk(2, dim=-1).indices, True)
            weights.data.copy_((fours * kept).flatten(1))
        return block

    def stored(self, bits: int, rows: int, columns: int) -> int:
        """Bytes of a pruned matrix: half of its weights in 16 bits, and two bits for the place of each."""
        return rows * columns // 2 * 2 + rows * columns // 8
