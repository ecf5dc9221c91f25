"""Rows -> matplotlib axes. Every figure takes a tidy table, one row a mark, and returns the axes it drew.

Drawn for a column of 4.8 inches: shown as they are on a wide screen, and still readable when a phone shrinks them to
330 pixels. Panels stand below each other, never side by side. Columns that mean the same have one name everywhere:
`model`, `score`, `block`, `kind`, `plan`, `value` with `low` and `high` (95 %). Models keep the order and the colour of
their first appearance in a table.
"""

from layerwise.figures.common import COLOURS, GREY, MARKERS, WIDTH, style
from layerwise.figures.memory import fits
from layerwise.figures.models import accuracies, by_depth, loss_curves
from layerwise.figures.orders import orders, shares
from layerwise.figures.plans import curves, grid, over_bytes, plan_bars, rivals
from layerwise.figures.scores import against_damage, by_layer, correlations, given_position, residual_norms, settling
from layerwise.figures.verdicts import SIGNS, brief, forest, verdicts

__all__ = [
    "COLOURS",
    "GREY",
    "MARKERS",
    "SIGNS",
    "WIDTH",
    "accuracies",
    "against_damage",
    "brief",
    "by_depth",
    "by_layer",
    "correlations",
    "curves",
    "fits",
    "forest",
    "given_position",
    "grid",
    "loss_curves",
    "orders",
    "over_bytes",
    "plan_bars",
    "residual_norms",
    "rivals",
    "settling",
    "shares",
    "style",
    "verdicts",
]
