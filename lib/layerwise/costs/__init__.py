"""What each matrix is predicted to cost at each width, in nats of KL: what `lw.plans.allocate` spends bytes by.

A cost is a function `(model, tokens, quantizer, widths) -> [parts, widths]`, float64, lower = better, in the order of
`lw.shape(model).parts`: the linear layers block by block, the embedding, and the head if it is a table of its own.
`tokens` `[n, length]` are calibration text, `quantizer` is a name or a function as for `lw.compress`, and a width is a
number of bits, or None for weights that stay as they are and cost nothing. A function of your own goes where one of
these goes.
"""

from layerwise.costs.fisher import fisher, fisher_along, fisher_by_window
from layerwise.costs.fitting import fit
from layerwise.costs.measured import measured, measured_by_window, predicted
from layerwise.costs.rivals import by_importance, first_order, noise, output_error, relative_error, signed_gradient

__all__ = [
    "by_importance",
    "first_order",
    "fisher",
    "fisher_along",
    "fisher_by_window",
    "fit",
    "measured",
    "measured_by_window",
    "noise",
    "output_error",
    "predicted",
    "relative_error",
    "signed_gradient",
]
