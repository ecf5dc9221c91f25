"""Means, intervals, tests and rank correlations: the one place where numbers over windows become statements.

The unit of every interval is a *window* (one row of tokens), because windows are drawn independently and the tokens
within one are not; where calibration draws, or trained models, vary too, they are a second unit. Nothing here knows a
model; inputs are numpy arrays.
"""

from layerwise.stats.luck import Luck, luck
from layerwise.stats.means import (
    Estimate,
    another,
    bootstrap_interval,
    crossed_mean,
    crossed_p_value,
    half_width,
    holm,
    mean,
    over_models,
    p_value,
    standard_error,
)
from layerwise.stats.ranks import rank_correlation, rank_luck

__all__ = [
    "Estimate",
    "Luck",
    "another",
    "bootstrap_interval",
    "crossed_mean",
    "crossed_p_value",
    "half_width",
    "holm",
    "luck",
    "mean",
    "over_models",
    "p_value",
    "rank_correlation",
    "rank_luck",
    "standard_error",
]
