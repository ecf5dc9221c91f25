"""Rows -> verdicts: does what a paper claims hold on this model?

Every claim is a function from the tidy rows of one model to a `Verdict`. It runs no model and reads no file. The rules
that decide stand in `verdict`, before any row is seen.
"""

from layerwise.claims.allocation import kl_ratios, told_ratios
from layerwise.claims.block_orders import CLOSE, RAMPS, best_by_position
from layerwise.claims.depth import q4, q4_by_blocks, tolerated
from layerwise.claims.differences import against, changes, changes_by_model
from layerwise.claims.dynamic import q2
from layerwise.claims.equal_bytes import (
    at_equal_bytes,
    best_that_fits,
    crossing,
    crossings,
    q3,
    q3_exception,
    random_ahead,
)
from layerwise.claims.position import beyond_position, chosen_widths, knowledge, slices_beyond_position, within_twice
from layerwise.claims.quantization import q1, q1_at_random, q5, share_within, shares
from layerwise.claims.slice_widths import against_constant, s1, s1_tasks, s2, settings
from layerwise.claims.techniques import gains, q6
from layerwise.claims.twins import beside_twins, twins_in_words
from layerwise.claims.verdict import Verdict, by_model, corrected, effects, on_family, summary, table, told

__all__ = [
    "CLOSE",
    "RAMPS",
    "Verdict",
    "against",
    "against_constant",
    "at_equal_bytes",
    "beside_twins",
    "best_by_position",
    "best_that_fits",
    "beyond_position",
    "by_model",
    "changes",
    "changes_by_model",
    "chosen_widths",
    "corrected",
    "crossing",
    "crossings",
    "effects",
    "gains",
    "kl_ratios",
    "knowledge",
    "on_family",
    "q1",
    "q1_at_random",
    "q2",
    "q3",
    "q3_exception",
    "q4",
    "q4_by_blocks",
    "q5",
    "q6",
    "random_ahead",
    "s1",
    "s1_tasks",
    "s2",
    "settings",
    "share_within",
    "shares",
    "slices_beyond_position",
    "summary",
    "table",
    "told",
    "told_ratios",
    "tolerated",
    "twins_in_words",
    "within_twice",
]
