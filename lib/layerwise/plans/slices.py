"""Slicing plans: the same width for every block, or widths that follow a score, under one budget.

Widths are counted here in *units* of `multiple` columns. Before rounding they are real numbers, a mean of theirs is
what a budget fixes, and rounding keeps their sum.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from layerwise.plans.layer import Layer
from layerwise.plans.plan import Plan

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape

Budget = Literal["width", "parameters", "bytes"]
_SIZES: dict[str, Callable[[Plan, Shape], int]] = {
    "parameters": Plan.predicted_parameters,
    "bytes": Plan.predicted_bytes,
}


def constant_slices(shape: Shape, mean: float, multiple: int = 1, budget: Budget = "width") -> Plan:
    """Every block at the same width: SliceGPT (arXiv 2401.15024). Errors as for `dynamic_slices`.

    Parameters
    ----------
    shape, mean
        As for `dynamic_slices`.
    multiple
        The width is the multiple of it that is nearest to `(1 - mean) * D`, of two equally near ones the wider;
        `plan.mean_slice` is the mean that this achieves.
    budget
        As for `dynamic_slices`. With "parameters" or "bytes" the widths of two blocks may differ by one `multiple`,
        since the budget is then met to the last unit of width.
    """
    return dynamic_slices(shape, np.zeros(shape.L), mean, multiple=multiple, budget=budget)


def dynamic_slices(
    shape: Shape,
    importance: ArrayLike,
    mean: float,
    base: float = 0.0,
    multiple: int = 1,
    budget: Budget = "width",
) -> Plan:
    """Widths by importance, by the rule of arXiv 2411.03513.

    With LR = -importance, `r_i = (LR_i - min LR) / (max LR - min LR)` and
    `slice_i = base + (mean - base) * r_i / mean(r)`. Equal scores mean constant slicing.

    Parameters
    ----------
    shape
        Of the dense model, as `lw.shape` gives it.
    importance
        `[L]`, higher = keep more.
    mean
        Share that is cut; of what, `budget` says.
    base
        Share of its *width* that every block loses at least.
    multiple
        Every width is a multiple of it and at least one. Where the rule asks a block for more than it has, the excess
        is cut from the other blocks, in proportion to r as long as some with r > 0 have width left, then evenly.
    budget
        "width": the rule is applied to the mean that `constant_slices` achieves, and the total width is exactly the one
        of that plan. Rounding is by largest remainders; a less important block never ends up wider. "parameters" or
        "bytes": `mean` is the share of the dense model's, and the plan is the widest by this rule that fits: one more
        unit of width would not. Embeddings, shortcut matrices and the head count.

    Raises
    ------
    ValueError
        For shares outside [0, 1), a `base` above `mean`, a budget that no such plan meets, a `multiple` that does not
        divide `D`, and an importance that isn't `L` finite numbers.
    """
    units = shape.D // _divisor(multiple, shape.D)
    mean, base = share("mean", mean), share("base", base)
    redundancy = _redundancy(importance, shape.L)
    if budget == "width":
        return _plan(shape, _of_width(redundancy, mean, base, units), multiple)
    if budget not in _SIZES:
        raise ValueError(f'budget must be "width", "parameters" or "bytes", not {budget!r}')
    return _of_size(shape, redundancy, mean, base, multiple, budget)


def _of_width(redundancy: np.ndarray, mean: float, base: float, units: int) -> np.ndarray:
    """Widths `[L]` by the rule, whose mean is the width of constant slicing."""
    if base > mean:
        raise ValueError(
            f"base {base:g} is above the mean {mean:g}: what every block loses can't be more than they lose on average"
        )
    constant = _nearest((1 - mean) * units)
    if constant < 1:
        raise ValueError(f"a mean slice of {mean:g} leaves no width: at most {1 - 0.5 / units:g} can be cut")
    widths, order = _by_rule(redundancy, constant, _most(base, units, at_least=constant))
    whole = np.floor(widths).astype(int)
    whole[order[: constant * len(whole) - whole.sum()]] += 1
    return whole


def _of_size(shape: Shape, redundancy: np.ndarray, mean: float, base: float, multiple: int, budget: Budget) -> Plan:
    """The widest plan by the rule whose predicted size is at most `1 - mean` of the dense model's."""
    units = shape.D // multiple
    most = _most(base, units, at_least=1)
    dense = _SIZES[budget](Plan((Layer(),) * shape.L, shape.D), shape)
    # A share that was computed from a size must give that size back.
    allowed = int((1 - mean) * dense * (1 + 1e-12))

    def size(widths: np.ndarray) -> int:
        return _SIZES[budget](_plan(shape, widths, multiple), shape)

    def at(width: float) -> tuple[np.ndarray, np.ndarray]:
        """Whole widths for a mean of `width` units, rounded down, and the order in which they are rounded up."""
        widths, order = _by_rule(redundancy, width, most)
        return np.floor(widths).astype(int), order

    low, high = 1.0, float(most)
    (narrowest, _), (widest, _) = at(low), at(high)
    if not size(narrowest) <= allowed <= size(widest):
        least, largest = (max(0.0, 1 - size(widths) / dense) for widths in (widest, narrowest))
        raise ValueError(
            f"no plan with base {base:g} and multiple {multiple} cuts {mean:g} of the {budget}: "
            f"{least:.4f} to {largest:.4f} can be cut, shortcut matrices counted"
        )
    # What the rule gives grows with the mean width, so there is one where it stops to fit.
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if size(at(middle)[0]) <= allowed else (low, middle)
    widths, order = at(low)
    for i in order:
        widths[i] += 1
        if size(widths) > allowed:
            widths[i] -= 1
            break
    return _plan(shape, widths, multiple)


def _redundancy(importance: ArrayLike, L: int) -> np.ndarray:
    """The rule's r, float64 `[L]` in [0, 1], 1 = least important; all 1 where the scores are equal."""
    scores = finite_importance(importance, L) / 2  # so that the range of the largest floats is one too
    span = scores.max() - scores.min()
    if span == 0:
        return np.ones(L)
    # Differences below the noise of float64 are none.
    return np.round((scores.max() - scores) / span, 12)


def finite_importance(importance: ArrayLike, L: int) -> np.ndarray:
    """`importance` as float64 `[L]`; raises ValueError unless it is `L` finite numbers."""
    try:
        scores = np.asarray(importance, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"importance must be {L} numbers, one for each block: {error}") from error
    if scores.shape != (L,):
        raise ValueError(f"importance must be {L} numbers, one for each block, but its shape is {scores.shape}")
    if bad := np.flatnonzero(~np.isfinite(scores)).tolist():
        raise ValueError(f"importance must be finite, but is {scores[bad[0]]} for block {bad[0]}")
    return scores


def _by_rule(redundancy: np.ndarray, mean: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Real widths `[L]` in units by the rule, and the order in which rounding may widen them.

    Their mean is `mean` units; none is above `most`, nor below one.
    """
    widths = np.round(_filled(redundancy, mean, most), 9)  # 2.9999999999 is 3
    remainders = widths - np.floor(widths)
    # Largest remainder first, of equal ones the more important first: so no block overtakes a more important one.
    order = np.lexsort((redundancy, -remainders))
    return widths, order[remainders[order] > 0]


def _filled(redundancy: np.ndarray, mean: float, most: float) -> np.ndarray:
    """Widths `most - step * redundancy`, none below 1, with the step that makes their mean `mean`."""
    total = mean * len(redundancy)
    clamped = np.zeros(len(redundancy), bool)
    while (free := (redundancy > 0) & ~clamped).any():
        step = (most * (~clamped).sum() + clamped.sum() - total) / redundancy[free].sum()
        widths = np.where(clamped, 1.0, most - step * redundancy)
        below = widths < 1 - 1e-9
        if not below.any():
            return np.maximum(widths, 1.0)
        clamped |= below
    return np.where(clamped, 1.0, (total - clamped.sum()) / (~clamped).sum())


def _most(base: float, units: int, at_least: float) -> float:
    """Units that a block keeps at most under `base`; not a fraction that rounding would then exceed."""
    most = min((1 - base) * units, _nearest((1 - base) * units))
    return max(most, at_least)


def _nearest(width: float) -> int:
    """The nearest whole number, of two equally near ones the larger; 0.7 * 5 counts as 3.5."""
    return int(np.floor(width + 0.5 + 1e-9))


def _plan(shape: Shape, widths: np.ndarray, multiple: int) -> Plan:
    return Plan(tuple(Layer(width=int(width) * multiple) for width in widths), shape.D)


def share(name: str, value: float) -> float:
    """`value` as a float; raises ValueError unless it is a number in [0, 1)."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"{name} must be a share, at least 0 and below 1, not {value!r}")
    return float(value)


def _divisor(multiple: int, D: int) -> int:
    try:
        if isinstance(multiple, (bool, np.bool_)) or operator.index(multiple) < 1 or D % multiple:
            raise TypeError
    except TypeError:
        divisors = ", ".join(str(n) for n in range(1, D + 1) if D % n == 0)
        raise ValueError(f"multiple must divide the width {D}, not be {multiple!r}: take one of {divisors}") from None
    return multiple
