"""Parameters, bytes and bits of a model of some shape once it is compressed to a plan, told before it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from layerwise.plans.storage import Grouped, Stored, stays_tied, tables

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Matrix, Shape
    from layerwise.plans.plan import Plan

ENDS = ("embedding", "head")


class Few(NamedTuple):
    """Weights that get few bits, and the bytes that they then take."""

    weights: int
    bytes: int

    def __add__(self, other: Few) -> Few:  # type: ignore[override]  # of two counts, not of two tuples
        return Few(self.weights + other.weights, self.bytes + other.bytes)


def check_shape(plan: Plan, shape: Shape) -> None:
    """Raise ValueError unless a model of this shape has all that the plan speaks of."""
    if (shape.L, shape.D) != (len(plan.layers), plan.width):
        raise ValueError(
            f"a plan for {len(plan.layers)} layers of width {plan.width} says nothing of a model with {shape.L} of "
            f"width {shape.D}"
        )
    for i, layer in enumerate(plan.layers):
        known = [matrix.path for matrix in shape.matrices[i]]
        if unknown := [path for path in dict(layer.matrices or ()) if path not in known]:
            raise ValueError(f"layer {i} has no linear layer {unknown[0]!r}; it has {', '.join(known)}")
    for name, bits, table in _ends(plan, shape):
        if bits is not None and table is None:
            raise ValueError(f"the plan sets {name}_bits, and the model's {name} is of a kind that can't have few bits")


def slices_of(plan: Plan, shape: Shape) -> tuple[bool, int, int]:
    """Of a model that is sliced to the plan: whether embedding and head are one table, and the columns of each.

    Raises ValueError for one that can't be sliced.
    """
    if isinstance(sliced := shape.slicing, str):
        raise ValueError(sliced)
    first, last = plan.stream[0], plan.head or plan.width
    if shape.tied and stays_tied(sliced.head_rows, plan.width, first, plan.head):
        return True, plan.width, plan.width
    return False, first, last


def parameters_of(plan: Plan, shape: Shape) -> int:
    """What `Plan.predicted_parameters` returns."""
    check_shape(plan, shape)
    kept = [i for i, layer in enumerate(plan.layers) if layer.keep]
    if not plan.slices:
        return sum(shape.parameters[i] for i in kept) + shape.other_parameters
    if isinstance(sliced := shape.slicing, str):
        raise ValueError(sliced)
    one, two = tables(sliced.head_rows, plan.width, plan.stream[0], plan.head)
    total = (sliced.embedding_rows - sliced.head_rows) * plan.stream[0] + (min(one, two) if shape.tied else two)
    for i, (reads, writes) in zip(kept, pairwise(plan.stream), strict=True):
        total += sliced.reads[i] * reads + sliced.writes[i] * writes + sliced.untouched[i]
        # Sequential blocks have a second shortcut, after attention, where the width stays.
        total += reads * writes + (0 if sliced.parallel else reads * reads)
    if plan.head is None:
        return total + sliced.final_parameters - sliced.head_rows * plan.width
    return total + sliced.head_bias


def few_in_blocks(plan: Plan, shape: Shape, stored: Stored | None) -> Few:
    """What gets few bits in the kept blocks. Raises ValueError for outliers that `stored` doesn't count."""
    check_shape(plan, shape)
    stored, found = stored or Grouped(), Few(0, 0)
    counted = "outliers" in inspect.signature(stored).parameters
    if any(layer.outliers for layer in plan.kept) and not counted:
        raise ValueError("the plan keeps outliers: give `stored` of their quantizer, lw.quantization.Outliers()")
    for i, layer in enumerate(plan.layers):
        if not (layer.keep and layer.quantized):
            continue
        in_block = Few(0, 0)
        for matrix, (rows, columns) in zip(shape.matrices[i], block_sizes(plan, shape, i), strict=True):
            if (bits := layer.bits_of(matrix.path)) is None:
                continue
            more, size = {}, rows * columns
            if counted and layer.outliers is not None:  # a whole number of all that are in the block
                ends = (in_block.weights, in_block.weights + size)
                before, with_it = (round(layer.outliers * count) for count in ends)
                more["outliers"] = (with_it - before) / size
            in_block += Few(size, stored(bits, rows, columns, **more))
        found += in_block
    return found


def few_at_the_ends(plan: Plan, shape: Shape, stored: Stored | None) -> Few:
    """What gets few bits of embedding and head; one table counts once."""
    stored = stored or Grouped()
    return sum((Few(r * c, stored(bits, r, c)) for _, bits, r, c in end_sizes(plan, shape)), Few(0, 0))


def end_sizes(plan: Plan, shape: Shape) -> list[tuple[str, int, int, int]]:
    """Of embedding and head, once where they are one table: name, bits, rows and columns at the widths of the plan."""
    found = [(name, bits, table.rows, table.columns) for name, bits, table in _ends(plan, shape) if bits and table]
    one = shape.tied
    if plan.slices and found:
        one, *columns = slices_of(plan, shape)
        width = dict(zip(ENDS, columns, strict=True))
        found = [(name, bits, rows, width[name]) for name, bits, rows, _ in found]
    return found[:1] if one else found


def block_sizes(plan: Plan, shape: Shape, i: int) -> list[tuple[int, int]]:
    """Rows and columns of the matrices of block i, which is kept, at the widths of the plan."""
    if not plan.slices:  # the model may have been sliced before
        return [(matrix.rows, matrix.columns) for matrix in shape.matrices[i]]
    at = sum(layer.keep for layer in plan.layers[:i])
    reads, writes = plan.stream[at : at + 2]
    widths: dict[str | None, tuple[int | None, int | None]]
    widths = {"read": (None, reads), "written": (reads, None), "written at the end": (writes, None)}
    sizes = [(widths.get(matrix.stream, (None, None)), matrix) for matrix in shape.matrices[i]]
    return [(rows or matrix.rows, columns or matrix.columns) for (rows, columns), matrix in sizes]


def _ends(plan: Plan, shape: Shape) -> Iterator[tuple[str, int | None, Matrix | None]]:
    """Name, bits and table of embedding and head."""
    return zip(ENDS, plan.ends(shape.tied), (shape.embedding, shape.head), strict=True)
