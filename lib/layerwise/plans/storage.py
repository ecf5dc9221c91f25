"""What a quantized matrix takes on disk, and what embedding and head do, so that a plan's size can be told before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Group = int | Literal["row", "matrix"]
Stored = Callable[[int, int, int], int]  # (bits, rows, columns) -> bytes


@dataclass(frozen=True)
class Grouped:
    """A matrix `[rows, columns]` as whole numbers of some bits each, with a scale and a zero point for every group.

    `stored(bits, rows, columns) -> bytes`. A group is that many consecutive weights of a row (the last one of a row may
    be short), "row" a whole row, "matrix" all of it. `scale` and `zero` are bits per group; 0 is none.

    Raises ValueError for a group that is none of these.
    """

    group: Group = 64
    scale: int = 16
    zero: int = 8

    def __post_init__(self) -> None:
        whole = isinstance(self.group, int) and not isinstance(self.group, bool) and self.group > 0
        if not whole and self.group not in ("row", "matrix"):
            raise ValueError(f'group must be a number of weights, "row" or "matrix", not {self.group!r}')

    def __call__(self, bits: int, rows: int, columns: int) -> int:
        groups = 1 if self.group == "matrix" else rows * -(-columns // self.size(columns))
        return -(-bits * rows * columns // 8) + groups * (self.scale + self.zero) // 8

    def size(self, columns: int) -> int:
        """Weights of one row of `columns` that share a scale."""
        return self.group if isinstance(self.group, int) else columns


def tables(rows: int, width: int, first: int, head: int | None) -> tuple[int, int]:
    """Parameters of embedding and head of a sliced model, biases left out: with one table for both, and with two.

    `rows` is the vocabulary, `width` that of the dense model; block 0 reads `first` columns, and the head `head` of
    them, None for all as they are in the dense model.

    One table `[rows, width]` needs an entrance `[width, first]`, by which what is looked up is rotated and cut, and for
    a head that is cut an exit `[head, width]`. Two are cut themselves: `[rows, first]` and `[rows, head]`.
    """
    return rows * width + width * (first + (head or 0)), rows * (first + (head or width))


def stays_tied(rows: int, width: int, first: int, head: int | None) -> bool:
    """Whether a tied model keeps its one table when it is sliced: if that takes fewer parameters (see `tables`)."""
    one, two = tables(rows, width, first, head)
    return one < two
