"""The Fisher information of what is rounded off: what each width of each matrix costs, from one pass over some text.

For a small change `e` of weights, `KL(dense || changed) = e' F e / 2` per token, where `F`, the Fisher information, is
the mean over tokens of `g g'`, with `g` the gradient of the log-probability of a word that is drawn from the model
itself. Rounding errors of single weights are as good as independent of each other, so that of `e' F e` the sum over
weights of `F_jj e_j^2` is left: the squared gradients, weighted with the squared errors.

Squared gradients of single tokens would take a backward pass for each token. One pass for a whole window gives the sum
of all gradients, with a random sign for each token: the square of that has the same mean, since the products of
different tokens, which have random signs, cancel (Hutchinson's trick).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, run_trunk
from layerwise.costs.tables import Rounding, Table, weight_tables
from layerwise.evaluation.comparison import check_windows

CELL = 64  # weights of a row whose squared gradients are summed, and whose squared errors are averaged
LOGITS = 2**28  # bytes of float32 logits at once


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
        Calibration text `[n, length]`: eight windows do. Each is passed forward and back once.
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
    Memory beside the model: the activations of one window, the gradient of one matrix at a time, that of the embedding
    and that of the head, float32 logits of a few positions (a quarter of a gigabyte, and as much for what is made of
    them), some float32 copies of a matrix while it is rounded, and of each what is rounded off, in float16, for every
    64th weight and each width.
    """
    check_windows(model, tokens)
    each, rounding = weight_tables(model), Rounding(quantizer, widths)
    errors = [_errors(table.weight, rounding) for table in tqdm(each, desc="rounding", leave=False, delay=5)]
    found = np.zeros((len(tokens), len(each), len(widths)))
    generator = torch.Generator(devices.entrance(model)).manual_seed(seed)
    with structure.evaluating(model), _frozen(model, each):
        for n, window in enumerate(tqdm(tokens, desc="gradients", unit="window", leave=False, disable=None)):

            def use(j: int, gradient: Tensor, n=n) -> None:
                sums = _by_cell(gradient.float().square_()) / (2 * tokens.shape[1])
                found[n, j] = [(error.float().square_() * sums).sum().item() for error in errors[j]]

            _gradients(model, each, window[None].to(devices.entrance(model)), generator, use)
    if not np.isfinite(found).all():
        raise ValueError("gradients are not finite: the model's weights or activations overflow; take another dtype")
    return found


def _errors(weight: Tensor, rounding: Rounding) -> Tensor:
    """The root of the mean squared error in each cell, float16 `[widths, rows, cells]`."""
    columns = weight.shape[1]
    sizes = _by_cell(torch.ones(1, columns, device=weight.device))
    each = [(_by_cell(rounding.error(weight, bits).square_()) / sizes).sqrt_().half() for bits in rounding.widths]
    return torch.stack(each)


def _by_cell(matrix: Tensor) -> Tensor:
    """Sums over `CELL` weights of a row, `[rows, columns] -> [rows, cells]`."""
    missing = -matrix.shape[1] % CELL
    padded = F.pad(matrix, (0, missing)) if missing else matrix
    return padded.view(len(matrix), -1, CELL).sum(2)


def _gradients(model, each: list[Table], window: Tensor, generator, use: Callable[[int, Tensor], None]) -> None:
    """Call `use(number of a table, gradient [rows, columns])` for every table, of one window `[1, length]`.

    Matrices in blocks are done as the backward pass comes to them, and their gradients let go.
    """
    ends = {j: table.weight for j, table in enumerate(each) if table.block is None}
    handles = [
        table.module.register_forward_hook(_watch(j, use)) for j, table in enumerate(each) if table.block is not None
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            read = run_trunk(model, window)
            states, at_head = _through_head(model, read, list(ends.values()), generator)
            at_trunk = torch.autograd.grad(
                read.last_hidden_state, list(ends.values()), states[None], allow_unused=True, materialize_grads=False
            )
    finally:
        for handle in handles:
            handle.remove()
    for j, one, other in zip(ends, at_head, at_trunk, strict=True):
        parts = [part for part in (one, other) if part is not None]
        use(j, sum(parts[1:], parts[0]))


def _watch(j: int, use: Callable[[int, Tensor], None]) -> Callable:
    """A hook on the forward pass of a linear layer that makes and uses its gradient when the backward one is there."""

    def hook(module, args, output):
        entered = args[0].detach().flatten(0, -2)
        output.register_hook(lambda gradient: use(j, gradient.detach().flatten(0, -2).T @ entered))

    return hook


def _through_head(model, read, ends: list[Tensor], generator) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of the signed sum of log-probabilities by what the head reads, `[length, D]`, and by `ends`.

    The logits of some positions are made at a time.
    """
    head, states = Head(model), read.last_hidden_state[0]
    at_once = max(1, LOGITS // (4 * structure.text_config(model).vocab_size))
    found, sums = [], [None] * len(ends)
    for part in states.detach().split(at_once):
        part = part.requires_grad_()
        logits = head(replace(read, last_hidden_state=part[None]), part).float()
        log_p = F.log_softmax(logits, dim=-1)
        words = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        signs = torch.randint(0, 2, (len(part),), generator=generator, device=part.device) * 2 - 1
        total = (log_p.gather(1, words)[:, 0] * signs).sum()
        by_states, *by_ends = torch.autograd.grad(total, [part, *ends], allow_unused=True)
        found.append(by_states)
        sums = [
            new if old is None else old if new is None else old + new for old, new in zip(sums, by_ends, strict=True)
        ]
    return torch.cat(found), sums


@contextmanager
def _frozen(model: nn.Module, each: list[Table]):
    """Only what is outside of the blocks asks autograd for gradients; afterwards all is as it was."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)  # so that the pass back goes through all blocks
        for table in each:
            if table.block is None:
                table.module.weight.requires_grad_(True)
        yield
    finally:
        for parameter, asked in wanted.items():
            parameter.requires_grad_(asked)
