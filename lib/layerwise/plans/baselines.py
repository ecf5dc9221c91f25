"""Importances that know nothing of a model's blocks, or only where they sit: what a score has to beat.

Those that deal a score's values out to other blocks give plans of the same widths, elsewhere, by rules that go by
values and not only by their order.
"""

import numpy as np
from numpy.typing import ArrayLike


def by_position(L: int) -> dict[str, np.ndarray]:
    """Importances `[L]` in [0, 1] that follow from where a block sits, by name; higher = keep more.

    Ramps over depth in both directions, each with and without the end that it would compress first; a U, which keeps
    both ends and compresses the middle; and the ends kept with all other blocks alike, which is a plan of widths: as an
    order of blocks it says nothing of the others. Raises ValueError for fewer than three blocks.
    """
    if L < 3:
        raise ValueError(f"{L} blocks have no middle: at least 3 are needed")
    depth = np.linspace(0, 1, L)
    first, last = np.eye(L)[[0, -1]]
    return {
        "late first": 1 - depth,
        "late first, last block kept": np.maximum(1 - depth, last),
        "early first": depth,
        "early first, block 0 kept": np.maximum(depth, first),
        "middle first": np.abs(2 * depth - 1),
        "block 0 kept, others alike": first,
        "ends kept, others alike": first + last,
    }


def in_reverse(importance: ArrayLike) -> np.ndarray:
    """The values of a score `[L]`, the highest for the block that had the lowest, and so on."""
    values = np.asarray(importance)
    return np.sort(values)[::-1][values.argsort().argsort()]


def shuffled(importance: ArrayLike, seed: int, ends_kept: bool = False) -> np.ndarray:
    """The values of a score in a random order.

    Parameters
    ----------
    importance
        `[L]`, higher = keep more.
    seed
        The same one gives the same order.
    ends_kept
        The first and the last block get the two highest values, the first the highest of all.

    Returns
    -------
    importance
        `[L]`, the same values, dealt out to other blocks.
    """
    values, rng = np.asarray(importance), np.random.default_rng(seed)
    if not ends_kept:
        return rng.permutation(values)
    *others, second, highest = np.sort(values)
    return np.array([highest, *rng.permutation(others), second])
