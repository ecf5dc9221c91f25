"""Orders of blocks that know nothing: the values of a score dealt out to other blocks.

Rules that go by values, not only by their order, then give plans of the same widths, elsewhere.
"""

import numpy as np
from numpy.typing import ArrayLike


def in_reverse(importance: ArrayLike) -> np.ndarray:
    """The values of a score `[L]`, the highest for the block that had the lowest, and so on."""
    values = np.asarray(importance)
    return np.sort(values)[::-1][values.argsort().argsort()]


def shuffled(importance: ArrayLike, seed: int) -> np.ndarray:
    """The values of a score `[L]` in a random order, the same for the same seed."""
    return np.random.default_rng(seed).permutation(np.asarray(importance))
