"""Rows -> verdicts: does what a paper claims hold on this model?

Every claim is a function from the tidy rows of one model to a `Verdict`. It runs no model and reads no file. The rules
that decide stand in `verdict`, before any row is seen.
"""

from layerwise.claims.depth import q4, tolerated
from layerwise.claims.differences import against, by_model, changes
from layerwise.claims.dynamic import q2
from layerwise.claims.equal_bytes import at_equal_bytes, best_that_fits, crossing, crossings, q3, random_ahead
from layerwise.claims.quantization import gains, q1, q5, q6, share_within, shares
from layerwise.claims.slice_widths import against_constant, s1, s1_tasks, s2, settings
from layerwise.claims.twins import beside_twins, twins_in_words
from layerwise.claims.verdict import Verdict, effects, estimates, summary, table, told

__all__ = [
    "Verdict",
    "against",
    "against_constant",
    "at_equal_bytes",
    "beside_twins",
    "best_that_fits",
    "by_model",
    "changes",
    "crossing",
    "crossings",
    "effects",
    "estimates",
    "gains",
    "q1",
    "q2",
    "q3",
    "q4",
    "q5",
    "q6",
    "random_ahead",
    "s1",
    "s1_tasks",
    "s2",
    "settings",
    "share_within",
    "shares",
    "summary",
    "table",
    "told",
    "tolerated",
    "twins_in_words",
]
