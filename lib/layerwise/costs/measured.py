"""What each width of each matrix costs alone, measured: the reference that predictions of it are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone import structure
from layerwise.backbone.passes import Head, Passes
from layerwise.costs.fisher import forms_by_window
from layerwise.costs.tables import Rounding, dense_windows, replaced, weight_tables
from layerwise.evaluation import predictions
from layerwise.evaluation.comparison import check_windows

FEW = 4  # bits up to which the ends are measured: beyond, rounding errors are small, and Fisher is right
ALONG = 3  # bits up to which errors of a matrix's weights aren't independent enough for the diagonal alone
LARGE = 0.05  # nats: what is predicted to cost more is no small change any more, and is measured


def predicted(
    model: nn.Module, tokens: Tensor, quantizer: str | Callable, widths: Sequence[int | None], seed: int = 0
) -> np.ndarray:
    """Predicted KL(dense || rounded) of each matrix at each width alone, in nats per token: what `lw.fit` goes by.

    That of `fisher`, for matrices in blocks at 3 bits and fewer its geometric mean with `fisher_along`, of which the
    one is biased and the other noisy there. Both are for small changes. So what is predicted to cost more than 0.05
    nats is measured, and so are embedding and head, the largest tables, at 4 bits and fewer. It takes a pass forward
    over the tokens and one forward and back through each block, another forward, and one, from its block on, for each
    table and width that is measured. Parameters and errors are those of `fisher_by_window`; the result, float64
    `[parts, widths]`, is a mean over windows as that of `fisher`.
    """
    along = [bits for bits in widths if bits is not None and bits <= ALONG]
    diagonal, whole = (form.mean(axis=0) for form in forms_by_window(model, tokens, quantizer, widths, seed, along))
    found = np.sqrt(diagonal * whole)
    large = found > LARGE
    few = np.array([bits is not None and bits <= FEW for bits in widths])
    large |= np.array([table.block is None for table in weight_tables(model)])[:, None] & few
    if large.any():
        # Each table is rounded once for a batch, which takes as long as a pass: as many windows as their logits allow.
        logits = tokens.shape[1] * structure.text_config(model).vocab_size * model.dtype.itemsize
        batch = int(np.clip(predictions.room(model) // logits, 1, len(tokens)))
        alone = measured_by_window(model, tokens, quantizer, widths, batch, only=large).mean(axis=0)
        found[large] = alone[large]
    return found


def measured(
    model: nn.Module, tokens: Tensor, quantizer: str | Callable, widths: Sequence[int | None], batch: int = 8
) -> np.ndarray:
    """KL(dense || rounded) of each matrix at each width alone, in nats per token: the mean of `measured_by_window`."""
    return measured_by_window(model, tokens, quantizer, widths, batch).mean(axis=0)


def measured_by_window(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int | None],
    batch: int = 8,
    only: np.ndarray | None = None,
) -> np.ndarray:
    """KL(dense || rounded) of each matrix at each width alone, for each window of text.

    Parameters
    ----------
    model
        A dense model. Its weights are changed one table at a time; they are what they were afterwards, to the last bit,
        also when this is interrupted.
    tokens
        Calibration text `[n, length]`.
    quantizer
        A name, or a function as for `lw.compress`, with `.matrix`; others are stood for by rounding to nearest.
    widths
        Bits; None is weights that stay as they are, which cost 0.
    batch
        Windows that are run at a time.
    only
        Which are measured, bool `[parts, widths]`; None is all. Others are 0.

    Returns
    -------
    costs
        float64 `[n, parts, widths]`, lower = better.

    Raises
    ------
    ValueError
        As `lw.costs.fisher_by_window`.

    Notes
    -----
    It takes a pass over the tokens for each part and width, from the block of the part on: half of that on average. For
    a model of 200 matrices and 5 widths that is some 500 whole passes. Memory beside the model: the hidden states that
    enter each block and the dense model's logits, of a batch, and a float32 copy or two of the table that is rounded.
    """
    check_windows(model, tokens)
    each, rounding = weight_tables(model), Rounding(quantizer, widths)
    blocks, head = list(structure.blocks(model)), Head(model)
    found = np.zeros((len(tokens), len(each), len(widths)))
    chosen = np.array([[bits is not None for bits in widths]] * len(each)) & (True if only is None else only)
    parts = tokens.split(batch)
    with (
        torch.inference_mode(),
        structure.evaluating(model),
        tqdm(total=len(parts) * int(chosen.sum()), desc="measuring", leave=False, disable=None) as bar,
    ):
        for start, part in zip(range(0, len(tokens), batch), parts, strict=True):
            passes = Passes(model, part)
            dense = dense_windows(model, head, passes.run(0, blocks))
            for j, k in zip(*np.nonzero(chosen), strict=True):
                table = each[j]
                with replaced(table, rounding.at(table.weight, widths[k])):
                    read = passes.run(table.block or 0, blocks[table.block or 0 :], keep=False)
                    kl = predictions.differences(predictions.windows(head, read), dense, part)[1]
                found[start : start + len(part), j, k] = kl.numpy()
                bar.update()
    return found
