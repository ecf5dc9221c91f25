"""What compressing one block alone does to the model: the ground truth for scores, and costs for an allocation.

Damage to block i can't change what enters it, so the dense model runs once per batch, remembering what enters every
block, and each damaged model starts at its block: half the blocks on average, none of them copied but the damaged one.
"""

import copy
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise import stats
from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, Passes, in_tuples
from layerwise.evaluation import comparison, predictions
from layerwise.quantization import RTN
from layerwise.quantization.blockwise import check_bits
from layerwise.quantization.packed import dequantized

KINDS = ("removed", "4 bits", "2 bits")

Kind = str | Callable[[nn.Module], nn.Module]


def by_block(model: nn.Module, tokens: Tensor, kinds: Sequence[Kind] = KINDS, batch: int = 8) -> pd.DataFrame:
    """Damage by block with 95 % intervals over windows; the same as `summary(by_window(...))`.

    Parameters
    ----------
    model, tokens, kinds, batch
        As for `by_window`; errors are those of it too.

    Returns
    -------
    rows
        A row for each kind and block: kl, kl_low, kl_high, loss, loss_low, loss_high, in nats per predicted token,
        higher = worse.
    """
    return summary(by_window(model, tokens, kinds, batch))


def by_window(model: nn.Module, tokens: Tensor, kinds: Sequence[Kind] = KINDS, batch: int = 8) -> pd.DataFrame:
    """Damage of each kind to each block alone, one row per (block, kind, window of `tokens` `[n, length]`).

    Parameters
    ----------
    model
        A dense model. It stays as it is, bit by bit, also when this is interrupted.
    tokens
        Test text `[n, length]`.
    kinds
        Each is "removed" (the block hands on what it gets), "N bits" (its linear weights rounded to N bits by the
        quantizer `RTN`), or a function of one's own, which gets a copy of the block and returns the module to put in
        its place.
    batch
        Windows that are run at a time.

    Returns
    -------
    rows
        `kl` is KL(dense || damaged), `loss` the damaged model's loss minus the dense model's, both in nats per
        predicted token: higher = worse.

    Raises
    ------
    ValueError
        For a sliced model, tokens that it can't read, an unknown kind, "N bits" for experts that are one parameter, and
        kinds other than "removed" for a model that was spread over devices.

    Notes
    -----
    Memory beside the model: the hidden states entering each block for one batch, one block, and one batch of the dense
    model's logits if they take no more than half of what is free.
    """
    _check(model, tokens)
    if any(kind != "removed" for kind in kinds):
        devices.check_present(model)
    makers = {_label(kind): _maker(kind, model) for kind in kinds}
    if len(makers) < len(kinds):
        raise ValueError(f"two kinds of damage share a name: {', '.join(map(_label, kinds))}; name the functions apart")
    blocks, head = list(structure.blocks(model)), Head(model)
    parts = tokens.split(batch)
    found = []
    with (
        torch.inference_mode(),
        structure.evaluating(model),
        tqdm(total=len(parts) * len(blocks) * len(makers), desc="damage", leave=False, disable=None) as bar,
    ):
        for start, part in zip(range(0, len(tokens), batch), parts, strict=True):
            passes = Passes(model, part)
            dense = predictions.windows(head, passes.run(0, blocks))
            predictions.keep_logits(dense, predictions.room(model))
            for i, block in enumerate(blocks):
                for label, make in makers.items():
                    damaged = predictions.windows(head, passes.run(i, [make(block)], keep=False))
                    loss, kl = predictions.differences(damaged, dense, part)
                    windows = range(start, start + len(part))
                    found += zip([i] * len(part), [label] * len(part), windows, kl.tolist(), loss.tolist(), strict=True)
                    bar.update()
    rows = pd.DataFrame(found, columns=["block", "kind", "window", "kl", "loss"])
    rows["kind"] = pd.Categorical(rows["kind"], list(makers))
    return rows.sort_values(["kind", "block", "window"], ignore_index=True)


def removal_order(model: nn.Module, tokens: Tensor, batch: int = 8) -> np.ndarray:
    """In which order blocks are missed least, by removing one at a time.

    Each time that one goes without which the loss is least, measured anew among those that are left, as in SLEB (arXiv
    2402.09025); the later one if two are equal. It takes L^2 / 2 passes over the tokens, each from the removed block
    on.

    Parameters
    ----------
    model, tokens, batch
        As for `by_window`.

    Returns
    -------
    importance
        float64 `[L]`, higher = removed later, so that
        `lw.plans.drop(shape, lw.damage.removal_order(model, tokens), k)` removes the first `k`.

    Raises
    ------
    ValueError
        As `by_window` does.

    Notes
    -----
    Memory beside the model: the hidden states entering each block for one batch.
    """
    _check(model, tokens)
    every, head = list(structure.blocks(model)), Head(model)
    standing, left, removed = list(every), list(range(len(every))), _Removed(in_tuples(model))
    order = np.full(len(every), len(every) - 1.0)
    total = (len(every) * (len(every) + 1) // 2 - 1) * len(tokens.split(batch))
    with (
        torch.inference_mode(),
        structure.evaluating(model),
        tqdm(total=total, desc="removal", leave=False, disable=None) as bar,
    ):
        for step in range(len(every) - 1):
            lost = dict.fromkeys(left, 0.0)
            for part in tokens.split(batch):
                passes = Passes(model, part)
                passes.run(0, standing)
                for i in left:
                    read = passes.run(i, [removed, *standing[i + 1 :]], keep=False)
                    lost[i] += predictions.losses(predictions.windows(head, read), part).sum().item()
                    bar.update()
            gone = min(left, key=lambda i: (lost[i], -i))
            standing[gone], order[gone] = removed, step
            left.remove(gone)
    return order


def summary(windows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `by_window` -> one row per (kind, block): kl, kl_low, kl_high, loss, loss_low, loss_high."""
    rows = []
    for (kind, block), group in windows.groupby(["kind", "block"], observed=True):
        estimates = comparison.Comparison(*stats.mean(group["loss"]), *stats.mean(group["kl"]))
        rows.append({"kind": kind, "block": block, **estimates._asdict()})
    return pd.DataFrame(rows)


def matrix(windows: pd.DataFrame, kind: str, measure: str = "kl") -> np.ndarray:
    """The damage of one kind, as `stats.rank_correlation` resamples it.

    Parameters
    ----------
    windows
        Rows of `by_window`.
    kind
        The name of one of its kinds.
    measure
        "kl" or "loss", in nats per predicted token, higher = worse.

    Returns
    -------
    damage
        float64 `[L, n]`, by block and window.

    Raises
    ------
    ValueError
        For a kind that wasn't measured.
    """
    chosen = windows[windows["kind"] == kind]
    if chosen.empty:
        raise ValueError(f"no damage of the kind {kind!r} was measured; there is {', '.join(windows['kind'].unique())}")
    return chosen.pivot(index="block", columns="window", values=measure).to_numpy()


def divergence(model: nn.Module, tokens: Tensor, kind: Kind = "2 bits", batch: int = 8) -> np.ndarray:
    """The damage that each block does alone, in the form that `Study.values` takes.

    Parameters
    ----------
    model, tokens, batch
        As for `by_window`; errors are those of it too.
    kind
        One of its kinds.

    Returns
    -------
    damage
        float64 `[L, n]`, by block and window: KL(dense || damaged) in nats per predicted token, higher = worse.
    """
    return matrix(by_window(model, tokens, [kind], batch), _label(kind))


def _check(model, tokens):
    if structure.is_sliced(model):
        raise ValueError(
            "in a sliced model a block can't hand on what it gets, which is in another basis than the next one reads: "
            "measure the damage to the dense model"
        )
    comparison.check_windows(model, tokens)


class _Removed(nn.Module):
    """A block that hands on what it gets, in a tuple where the blocks of its model return one.

    After a pass with the model's own blocks, `Passes` knows that by itself.
    """

    def __init__(self, in_tuple: bool = False):
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden, *args, **kwargs):
        return (hidden,) if self.in_tuple else hidden


def _label(kind):
    return kind if isinstance(kind, str) else kind.__name__


def _maker(kind, model):
    if callable(kind):
        return lambda block: kind(copy.deepcopy(block))
    if kind == "removed":
        return lambda block: _Removed()
    bits = re.fullmatch(r"([1-8]) bits?", kind)
    if not bits:
        raise ValueError(
            f"unknown kind of damage {kind!r}: use 'removed', 'N bits' with N from 1 to 8, or a function that gets a "
            "copy of a block and returns what stands in for it"
        )
    check_bits(RTN(), model, [int(bits[1])] * len(structure.blocks(model)))
    return lambda block: _round_linears(copy.deepcopy(block), int(bits[1]))


def _round_linears(block, bits):
    for linear in structure.linears(block).values():
        weights = structure.weight_matrix(linear).data
        weights.copy_(dequantized(RTN().matrix(weights.float(), bits)))
    return block
