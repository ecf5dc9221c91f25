"""Plans that remove whole blocks: the least important ones, or the run of neighbours that changes least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from layerwise.plans.layer import Layer, whole
from layerwise.plans.plan import Plan
from layerwise.plans.slices import finite_importance

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape


def drop(shape: Shape, importance: ArrayLike, k: int) -> Plan:
    """Remove the least important blocks.

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    importance
        `[L]`, higher = keep. With `lw.scores.lim` the blocks of least influence of ShortGPT (arXiv 2403.03853) go, with
        `lw.damage.removal_order` those of SLEB (arXiv 2402.09025), with `-np.arange(L)` the last ones. Of equally
        important blocks the earlier counts as more important.
    k
        How many blocks go.

    Raises
    ------
    ValueError
        For an importance that isn't `L` finite numbers, and for a `k` that leaves no block.
    """
    order = np.argsort(-finite_importance(importance, shape.L), kind="stable")
    kept = set(order[: shape.L - whole("k", k, 0, shape.L - 1)].tolist())
    return Plan(tuple(Layer(keep=i in kept) for i in range(shape.L)), shape.D)


def drop_run(shape: Shape, distances: ArrayLike, k: int) -> Plan:
    """Remove the neighbouring blocks across which the residual stream changes least (arXiv 2403.17887).

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    distances
        `[L + 1, L + 1]`, those of `lw.scores.angular_distances`: `distances[i, i + k]` is how far what enters block `i`
        is from what leaves block `i + k - 1`. Of equally short runs the last is removed.
    k
        How many blocks go.

    Raises
    ------
    ValueError
        For distances of another shape, for NaN in those that are compared, and for a `k` that leaves no block.
    """
    k = whole("k", k, 0, shape.L - 1)
    distances = np.asarray(distances, dtype=np.float64)
    if distances.shape != (shape.L + 1, shape.L + 1):
        raise ValueError(
            f"distances must be [L + 1, L + 1], here [{shape.L + 1}, {shape.L + 1}], not {list(distances.shape)}: "
            "take lw.scores.angular_distances(model, tokens)"
        )
    across = np.diagonal(distances, k)
    if not np.isfinite(across).all():
        raise ValueError(f"the distance across the {k} blocks from {np.isfinite(across).argmin()} on is not finite")
    start = shape.L - k - across[::-1].argmin()
    return Plan(tuple(Layer(keep=not start <= i < start + k) for i in range(shape.L)), shape.D)
