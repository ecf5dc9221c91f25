"""Plans of bits and outliers by importance: so many blocks at this width, so many at that, and outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from layerwise.plans.layer import Layer, whole
from layerwise.plans.plan import Plan
from layerwise.plans.slices import finite_importance, share

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape


def bits(
    shape: Shape,
    importance: ArrayLike,
    low_layers: int | None = None,
    high: int | None = 8,
    low: int | None = 4,
    *,
    widths: Sequence[int | None] | None = None,
    counts: Sequence[int] | None = None,
) -> Plan:
    """Bits by importance, the plan of arXiv 2406.17415: two groups of blocks, or several.

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    importance
        `[L]`, higher = keep more. Of equally important blocks the earlier counts as more important, so that with equal
        scores the last blocks are lowered first.
    low_layers, high, low
        The `low_layers` least important blocks get `low` bits, the others `high`; None leaves blocks as they are.
    widths, counts
        In their place: the `counts[0]` most important blocks get `widths[0]` bits, the next `counts[1]` get
        `widths[1]`, and so on.

    Raises
    ------
    ValueError
        For an importance that isn't `L` finite numbers, for counts that are not whole, are negative or don't add up to
        `L`, and for widths that don't go down.
    """
    order = np.argsort(-finite_importance(importance, shape.L), kind="stable")
    if low_layers is not None and widths is None and counts is None:
        low_layers = whole("low_layers", low_layers, 0, shape.L)
        widths, counts = (high, low), (shape.L - low_layers, low_layers)
    elif low_layers is not None or widths is None or counts is None:
        raise ValueError("give either low_layers, with high and low, or both widths and counts")
    counts = [whole("each of counts", count, 0, shape.L) for count in counts]
    if len(widths) != len(counts) or sum(counts) != shape.L:
        raise ValueError(
            f"widths {tuple(widths)} need as many counts that add up to the {shape.L} blocks of the "
            f"model: {tuple(counts)} don't"
        )
    falling = [np.inf if width is None else width for width in widths]
    if falling != sorted(falling, reverse=True):
        raise ValueError(f"widths go to blocks from the most important to the least, so they must fall, not {widths}")
    by_rank = np.repeat(np.array(widths, object), counts)
    return Plan(tuple(Layer(bits=by_rank[rank]) for rank in np.argsort(order)), shape.D)


def outliers(shape: Shape, importance: ArrayLike, mean: float, base: float = 0.0) -> Plan:
    """Shares of weights that stay unquantized, by importance.

    `share_i = base + (mean - base) * m_i / mean(m)`, with `m_i` the importance between 0 and 1 (smallest and largest)
    and its mean taken over weights: the slicing rule of arXiv 2411.03513 turned to what is kept. Equal importance means
    equal shares.

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    importance
        `[L]`, higher = keep more.
    mean
        Share of the weights of all blocks.
    base
        Share of its weights that every block keeps at least.

    Raises
    ------
    ValueError
        For an importance that isn't `L` finite numbers, shares outside [0, 1), a `base` above `mean`, and a share that
        would reach 1.
    """
    scores = finite_importance(importance, shape.L) / 2  # so that the range of the largest floats is one too
    mean, base = share("mean", mean), share("base", base)
    if base > mean:
        raise ValueError(f"base {base:g} is above the mean {mean:g}: what every block keeps can't be more than that")
    span = scores.max() - scores.min()
    relative = (scores - scores.min()) / span if span else np.ones(shape.L)
    shares = base + (mean - base) * relative / np.average(relative, weights=shape.linear_weights)
    if shares.max() >= 1:
        raise ValueError(
            f"block {shares.argmax()} would keep {shares.max():.2f} of its weights: "
            "take a smaller mean or a larger base"
        )
    return Plan(tuple(Layer(outliers=float(each)) for each in shares), shape.D)
