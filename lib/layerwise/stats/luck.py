"""How many orders without information do as well as the one that is judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions


class Luck(NamedTuple):
    """`as_good` of `drawn` random orders do at least as well as the one that is judged, `as_bad` at least as badly."""

    as_good: int
    drawn: int
    as_bad: int = 0

    @property
    def opposite(self) -> Luck:
        """Of the opposite question: how many do at least as badly."""
        return Luck(self.as_bad, self.drawn, self.as_good)

    @property
    def p(self) -> float:
        """One-sided p-value of the order being one more random one, (1 + as_good) / (1 + drawn).

        Below 5 % with a risk of 5 %, exactly, whatever the distribution; fewer than 19 draws never get there.
        """
        return (1 + self.as_good) / (1 + self.drawn)

    @property
    def most(self) -> float:
        """The largest share of all random orders that may do as well: the exact upper limit, one-sided, of 95 %.

        Of Clopper and Pearson (Biometrika 1934): what a share of 0 in a sample leaves open, 3 / drawn about.
        """
        if self.as_good == self.drawn:
            return 1.0
        return float(distributions.beta.ppf(0.95, self.as_good + 1, self.drawn - self.as_good))


def luck(own: float, drawn: ArrayLike) -> Luck:
    """How many random orders do as well as the one that is judged, and how many as badly.

    Parameters
    ----------
    own
        Value of the order that is judged, higher = better.
    drawn
        Values of the random orders, `[draws]`. One that equals `own` but for rounding is as good, and as bad.
    """
    drawn = np.asarray(drawn, np.float64)
    scale = max(abs(own), np.abs(drawn).max(initial=0))
    as_good, as_bad = (int((sign * (drawn - own) >= -1e-9 * scale).sum()) for sign in (1, -1))
    return Luck(as_good, drawn.size, as_bad)
