"""How others predict what a width costs, from the formulas of their papers and programs, for the same solver.

Each is here to be compared with, in its own few lines; what makes them programs, their own solvers, thresholds and
exceptions made by hand, is not here. Units differ, so that only the plans that `lw.plans.allocate` makes of them
compare. All take `(model, tokens, quantizer, widths)` and return float64 `[parts, widths]`, lower = better; tokens are
`[n, length]`. They raise ValueError as `fisher_by_window` does, and leave the model as it is.

Memory beside the model: a few copies of its weights, of `output_error` one for each width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, Passes
from layerwise.costs.tables import Rounding, Table, at_bits, dense_windows, replaced, weight_tables
from layerwise.evaluation import predictions
from layerwise.evaluation.comparison import check_windows

SIZES = (0.05, 0.15)  # of noise, as a share of the size of the weights

Quantizer = str | Callable
Widths = Sequence[int | None]


def relative_error(model: nn.Module, tokens: Tensor | None, quantizer: Quantizer, widths: Widths) -> np.ndarray:
    """The squared error of each matrix over its squared size, `|W - W_b|^2 / |W|^2`, times its share of all weights.

    What can be said without a pass over text, which isn't read.
    """
    each = weight_tables(model)
    weights = np.array([table.weight.numel() for table in each])
    return _relative(each, Rounding(quantizer, widths)) * (weights / weights.sum())[:, None]


def by_importance(score: Callable) -> Callable:
    """A cost out of a score of blocks, `score(model, tokens) -> importance [L]`, higher = keep more.

    The relative error of each matrix times the rank of its block, from `1 / L` to 1; embedding and head have the mean
    rank. So LIM and ZD say which blocks come first, as in arXiv 2406.17415, and may use more than two widths.
    """

    def cost(model: nn.Module, tokens: Tensor | None, quantizer: Quantizer, widths: Widths) -> np.ndarray:
        importance = rankdata(score(model, tokens))
        share = importance / len(importance)
        factors = [share.mean() if table.block is None else share[table.block] for table in weight_tables(model)]
        return relative_error(model, tokens, quantizer, widths) * np.array(factors)[:, None]

    cost.__name__ = f"by_importance_{getattr(score, '__name__', 'score')}"
    return cost


def noise(model: nn.Module, tokens: Tensor, quantizer: Quantizer, widths: Widths, seed: int = 0) -> np.ndarray:
    """HIGGS' linearity theorem (arXiv 2411.17525): `a |W - W_b|^2 / |W|^2`, with the factor `a` of each matrix fitted
    to what Gaussian noise in it costs, at several sizes.

    The paper fits the change of perplexity; here it is KL(dense || with noise), in nats, which is never below zero and
    whose own noise is far less. It takes a pass for each part and size, from the block of the part on.
    """
    check_windows(model, tokens)
    each, blocks, head = weight_tables(model), list(structure.blocks(model)), Head(model)
    generator = torch.Generator(devices.entrance(model)).manual_seed(seed)
    squares, factors = np.square(SIZES), []
    with torch.inference_mode(), structure.evaluating(model):
        passes = Passes(model, tokens)
        dense = dense_windows(model, head, passes.run(0, blocks))
        for table in tqdm(each, desc="noise", unit="matrix", leave=False, disable=None):
            weight, found = table.weight.detach().float(), []
            for size in SIZES:
                # By row: rows of an embedding differ in size, and rounding, which goes by groups, respects that.
                spread = size * weight.square().mean(dim=1, keepdim=True).sqrt()
                added = torch.empty_like(weight).normal_(generator=generator) * spread
                with replaced(table, weight + added):
                    read = passes.run(table.block or 0, blocks[table.block or 0 :], keep=False)
                    kl = predictions.differences(predictions.windows(head, read), dense, tokens)[1]
                found.append(kl.mean().item())
            factors.append(squares @ found / (squares @ squares))  # least squares, through 0
    return _relative(each, Rounding(quantizer, widths)) * np.array(factors)[:, None]


def first_order(model: nn.Module, tokens: Tensor, quantizer: Quantizer, widths: Widths) -> np.ndarray:
    """AutoScheme's delta loss (intel/auto-round): the sum over weights of `|g (W - W_b)|`, where `g` is the gradient of
    the loss of the model that is rounded to `b` bits as a whole. A pass forward and back for each width."""
    check_windows(model, tokens)
    each, rounding, columns = weight_tables(model), Rounding(quantizer, widths), []
    for bits in widths:
        with at_bits(each, rounding, [bits] * len(each)) as own:
            gradients = _gradients(model, each, tokens, _loss) if own else []
            found = [
                (gradient.float() * (weight.float() - table.weight.float())).abs().sum().item()
                for table, weight, gradient in zip(each, own, gradients, strict=False)
            ]
        columns.append(found or [0.0] * len(each))
    return np.array(columns).T


def signed_gradient(model: nn.Module, tokens: Tensor, quantizer: Quantizer, widths: Widths) -> np.ndarray:
    """mlx-lm's dynamic quantization: `<g, W_high - W_low>`, where `g` is the gradient of KL(dense || low) of the model
    with all at the lower of two widths; negative where more bits win.

    That is for two widths. Here each is raised to the next one so, from the model with all at that width, and what is
    won on the way is added up. A pass forward and back for each width.
    """
    check_windows(model, tokens)
    each, rounding = weight_tables(model), Rounding(quantizer, widths)
    with torch.inference_mode(), structure.evaluating(model):
        wanted = [model(input_ids=w[None].to(devices.entrance(model)), use_cache=False).logits[0, :-1] for w in tokens]
    steps = sorted(range(len(widths)), key=lambda k: widths[k] or np.inf)
    found = np.zeros((len(each), len(widths)))
    for low, high in pairwise(steps):
        dense = iter([logits.clone().float().log_softmax(-1) for logits in wanted])

        def divergence(logits: Tensor, window: Tensor, dense=dense) -> Tensor:
            return F.kl_div(logits[:-1].log_softmax(-1), next(dense), reduction="batchmean", log_target=True)

        with at_bits(each, rounding, [widths[low]] * len(each)) as own:
            gradients = _gradients(model, each, tokens, divergence)
            for j, (table, weight, gradient) in enumerate(zip(each, own, gradients, strict=True)):
                raised = rounding.at(weight, widths[high]) - table.weight.detach().float()
                found[j, high] = found[j, low] + (gradient.float() * raised).sum().item()
    return found


def output_error(model: nn.Module, tokens: Tensor, quantizer: Quantizer, widths: Widths) -> np.ndarray:
    """NVIDIA ModelOpt's AutoQuantize: the sum over what a matrix puts out of `(dL/dy x dy)^2`, where `dy` is what
    rounding changes in it. One pass forward and back, and a product with the errors of each width."""
    check_windows(model, tokens)
    each, rounding = weight_tables(model), Rounding(quantizer, widths)
    errors = [torch.stack([rounding.error(table.weight, bits) for bits in widths]).to(model.dtype) for table in each]
    found, handles = np.zeros((len(each), len(widths))), []

    def watch(j: int) -> Callable:
        def hook(module, args, output):
            entered = args[0].detach()

            def use(gradient):
                for k, error in enumerate(errors[j]):
                    if isinstance(module, nn.Embedding):
                        changed = F.embedding(entered, error) * getattr(module, "embed_scale", 1)  # Gemma's
                    else:
                        changed = entered @ error.T
                    found[j, k] += (gradient.detach().float() * changed.float()).square_().sum().item()

            output.register_hook(use)

        return hook

    try:
        for j, table in enumerate(each):
            handles.append(table.module.register_forward_hook(watch(j)))
            if table.path == "embedding" and structure.tied(model):
                handles.append(model.get_output_embeddings().register_forward_hook(watch(j)))
        # A gradient of the embedding has to come back through all that the hooks watch.
        _gradients(model, [table for table in each if table.path == "embedding"], tokens, _loss)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _relative(each: Sequence[Table], rounding: Rounding) -> np.ndarray:
    """`|W - W_b|^2 / |W|^2`, float64 `[parts, widths]`."""
    found = []
    for table in tqdm(each, desc="rounding", leave=False, delay=5):
        size = table.weight.detach().float().square().sum().item() or 1.0
        found.append([rounding.error(table.weight, bits).square_().sum().item() / size for bits in rounding.widths])
    return np.array(found)


def _loss(logits: Tensor, window: Tensor) -> Tensor:
    return F.cross_entropy(logits[:-1], window[1:])


def _gradients(model: nn.Module, each: Sequence[Table], tokens: Tensor, loss: Callable) -> list[Tensor]:
    """Gradients `[rows, columns]` of the mean over windows of `loss(logits [length, V], window)`, by each table."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    weights = [table.module.weight for table in each]
    sums: list[Tensor] = []
    try:
        model.requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)
        for weight in weights:
            weight.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), structure.evaluating(model):
            for window in tqdm(tokens, desc="gradients", unit="window", leave=False, disable=None):
                window = window.to(devices.entrance(model))
                logits = model(input_ids=window[None], use_cache=False).logits[0].float()
                new = torch.autograd.grad(loss(logits, window) / len(tokens), weights)
                sums = [old + more for old, more in zip(sums, new, strict=True)] if sums else list(new)
    finally:
        for parameter, before in asked.items():
            parameter.requires_grad_(before)
    return [total.T if isinstance(table.module, Conv1D) else total for total, table in zip(sums, each, strict=True)]
