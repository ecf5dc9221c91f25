"""The Fisher information of what is rounded off: what each width of each matrix costs, from one pass over some text.

For a small change `e` of weights, `KL(dense || changed) = e' F e / 2` per token, where `F`, the Fisher information, is
the mean over tokens of `g g'`, with `g` the gradient of the log-probability of a word that is drawn from the model
itself. Gradients of single tokens would take a backward pass each. One pass for a whole window gives the sum of all,
with a random sign for each token: the square of that has the same mean, since the products of different tokens, which
have random signs, cancel (Hutchinson's trick).

What is summed of `e' F e` is, by `fisher`, the diagonal: the squared gradients, weighted with the squared errors, as if
rounding errors of single weights were independent of each other. At three bits and fewer they aren't: what enters a
matrix has large components that all errors of a row meet. `fisher_along` has all products of a matrix's weights, for
each position of what it puts out; it is less biased there, and noisier, since it has one number for a position where
the diagonal has one for each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.backbone import devices, structure
from layerwise.costs.gradients import frozen, pass_back
from layerwise.costs.tables import Rounding, Table, weight_tables
from layerwise.evaluation.comparison import check_windows

CELL = 64  # weights of a row whose squared gradients are summed, and whose squared errors are averaged


def fisher(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int | None],
    seed: int = 0,
) -> np.ndarray:
    """Predicted KL(dense || rounded) of each matrix at each width alone, in nats per token; the mean of
    `fisher_by_window`, which has parameters, errors and memory."""
    return fisher_by_window(model, tokens, quantizer, widths, seed).mean(axis=0)


def fisher_by_window(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int | None],
    seed: int = 0,
) -> np.ndarray:
    """What `fisher` averages: predicted nats from each window alone.

    Parameters
    ----------
    model
        A dense model. It stays as it is.
    tokens
        Calibration text `[n, length]`: eight windows do. Each is passed forward once, and then through each block
        forward and back.
    quantizer
        A name, or a function as for `lw.compress`, with `.matrix`; others are stood for by rounding to nearest.
    widths
        Bits; None is weights that stay as they are.
    seed
        Of the words that are drawn from the model, and of the signs.

    Returns
    -------
    costs
        float64 `[n, parts, widths]`, lower = better. Windows are independent, so their standard deviation over the root
        of `n` is the standard error of the mean.

    Raises
    ------
    ValueError
        For tokens that the model can't read, a width that the quantizer lacks, a model that was sliced or has few bits,
        and gradients that are NaN or infinite.

    Notes
    -----
    Memory beside the model: the hidden states that enter each block, of all windows; of one block at a time the
    activations of one window, the gradient of a matrix and what is rounded off; the gradient of the embedding and that
    of the head, and float32 logits of a few positions (a quarter of a gigabyte, and three times that for what is made
    of them).
    """
    return forms_by_window(model, tokens, quantizer, widths, seed)[0]


def fisher_along(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int | None],
    seed: int = 0,
) -> np.ndarray:
    """Predicted KL(dense || rounded) of each matrix at each width alone, in nats per token, from the gradient along its
    rounding error: all products of its weights, for each position of what it puts out.

    Parameters and errors are those of `fisher_by_window`, as is memory, with what is rounded off of a block at each
    width. Embedding and head are those of `fisher`. Float64 `[parts, widths]`, lower = better.
    """
    return forms_by_window(model, tokens, quantizer, widths, seed, along=widths)[1].mean(axis=0)


def forms_by_window(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int | None],
    seed: int = 0,
    along: Sequence[int | None] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Both forms of one pass: what `fisher_by_window` gives, and at those widths that are in `along`, for matrices in
    blocks, what `fisher_along` averages; elsewhere this is the former. Float64 `[n, parts, widths]` each."""
    check_windows(model, tokens)
    each, rounding = weight_tables(model), Rounding(quantizer, widths)
    diagonal = np.zeros((len(tokens), len(each), len(widths)))
    whole = np.zeros_like(diagonal)
    chosen = [k for k, bits in enumerate(widths) if bits is not None and bits in along]
    positions = 2 * tokens.shape[1]
    errors: dict[int, _Errors] = {}  # of the block that the pass back is in
    with structure.evaluating(model), frozen(model, each), torch.inference_mode(False):
        for part in pass_back(model, each, tokens, torch.Generator(devices.entrance(model)).manual_seed(seed)):
            n, j = part.window, part.table
            if j not in errors:
                if any(each[other].block != each[j].block for other in errors):
                    errors.clear()
                errors[j] = _rounded_off(each[j], rounding, [] if part.entered is None else chosen)
            squares = _by_cell(part.gradient().float().square()) / positions
            diagonal[n, j] = whole[n, j] = [(cells * squares).sum().item() for cells in errors[j].squares]
            for k, error in zip(chosen, errors[j].whole, strict=False):
                moved = (part.leaving * (part.entered @ error.T)).float().sum(1)
                whole[n, j, k] = moved.square().sum().item() / positions
    if not np.isfinite([diagonal, whole]).all():
        raise ValueError("gradients are not finite: the model's weights or activations overflow; take another dtype")
    return diagonal, whole


class _Errors(NamedTuple):
    squares: list[Tensor]  # mean squared error in each cell, [rows, cells], by width
    whole: list[Tensor]  # errors [rows, columns] in the model's dtype, of those widths that ask for them


def _rounded_off(table: Table, rounding: Rounding, chosen: Sequence[int]) -> _Errors:
    sizes = _by_cell(torch.ones(1, table.weight.shape[1], device=table.weight.device))
    squares, whole = [], []
    for k, bits in enumerate(rounding.widths):
        error = rounding.error(table.weight, bits)
        if k in chosen:
            whole.append(error.to(table.weight.dtype, copy=True))
        squares.append(_by_cell(error.square_()) / sizes)
    return _Errors(squares, whole)


def _by_cell(matrix: Tensor) -> Tensor:
    """Sums over `CELL` weights of a row, `[rows, columns] -> [rows, cells]`."""
    missing = -matrix.shape[1] % CELL
    padded = F.pad(matrix, (0, missing)) if missing else matrix
    return padded.view(len(matrix), -1, CELL).sum(2)
