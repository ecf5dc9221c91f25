"""Gradients of what a model predicts, by every table of its weights: a pass back, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, run_trunk
from layerwise.costs.tables import Table

LOGITS = 2**28  # bytes of float32 logits at once


class Part(NamedTuple):
    """What the pass back of one window gives for one table."""

    window: int
    table: int
    of_end: Tensor | None = None  # the gradient [rows, columns], of embedding and head
    entered: Tensor | None = None  # [length, columns], of matrices in blocks
    leaving: Tensor | None = None  # [length, rows], the gradient by what the matrix puts out

    def gradient(self) -> Tensor:
        """Of the signed sum of log-probabilities by the table, [rows, columns]; made when it is asked for."""
        return self.of_end if self.entered is None else self.leaving.T @ self.entered


def pass_back(model: nn.Module, each: list[Table], tokens: Tensor, generator: torch.Generator) -> Iterator[Part]:
    """Gradients of every table from all windows, block by block from the last, each block run once more for that.

    So what is rounded off of a block is made once for all windows, and no more than one block has activations.
    """
    tables = {table.path: j for j, table in enumerate(each) if table.block is None}
    ends = {path: each[j].weight for path, j in tables.items()}
    head = [ends["head"]] if "head" in ends else []
    runs, gradients, states = [], [], []
    for n, window in enumerate(tqdm(tokens, desc="gradients, head", unit="window", leave=False, disable=None)):
        states.append(generator.get_state())
        with torch.enable_grad():
            run = Run(model, window[None].to(devices.entrance(model)))
            at_states, at_head = _through_head(model, run.read, head, generator)
            gradients.append(torch.autograd.grad(run.read.last_hidden_state, run.leaving, at_states[None])[0])
        run.read = replace(run.read, last_hidden_state=run.read.last_hidden_state.detach())
        runs.append(run)
        if head:
            yield Part(n, tables["head"], at_head[0])
    blocks = list(enumerate(structure.blocks(model)))
    for i, block in tqdm(
        reversed(blocks), total=len(blocks), desc="gradients", unit="block", leave=False, disable=None
    ):
        own = {id(table.module): j for j, table in enumerate(each) if table.block == i}
        for n, run in enumerate(runs):
            found: list[Part] = []
            with _watched(block, own, n, found), torch.enable_grad():
                entering, output = run.again(i, block)
                gradients[n] = torch.autograd.grad(output, entering, gradients[n])[0]
            yield from found
    for n, run in enumerate(runs):
        weight = ends["embedding"]
        (gradient,) = torch.autograd.grad(run.embedded, weight, gradients[n])
        if not head:  # it is the same table: made again, since all windows' take too much memory
            generator.set_state(states[n])
            with torch.enable_grad():
                gradient = gradient + _through_head(model, run.read, [weight], generator)[1][0]
        yield Part(n, tables["embedding"], gradient)


class Run:
    """A pass forward over one window `[1, length]`: what enters each block is kept, and no activation within them."""

    def __init__(self, model: nn.Module, window: Tensor):
        self.entering: list[Tensor] = []
        self.beside: list[tuple[tuple, dict]] = []  # other arguments of each block
        blocks = list(structure.blocks(model))
        stand_ins = [self._stand_in(block.forward, block is blocks[-1]) for block in blocks]
        with structure.forwards(blocks, stand_ins):
            self.read = run_trunk(model, window)

    def _stand_in(self, forward: Callable, last: bool) -> Callable:
        def stand_in(hidden_states, *args, **kwargs):
            if not self.entering:
                self.embedded = hidden_states
            self.entering.append(hidden_states.detach())
            self.beside.append((args, kwargs))
            with torch.no_grad():
                output = forward(self.entering[-1], *args, **kwargs)
            state = structure.written(output)
            if last:  # the pass back through what follows the blocks ends here
                state = self.leaving = state.detach().requires_grad_()
            return (state,) if isinstance(output, tuple) else state

        return stand_in

    def again(self, i: int, block: nn.Module) -> tuple[Tensor, Tensor]:
        """What enters block `i`, and what leaves it with the activations that a pass back needs."""
        args, kwargs = self.beside[i]
        entering = self.entering[i].requires_grad_()
        return entering, structure.written(block(entering, *args, **kwargs))


@contextmanager
def _watched(block: nn.Module, tables: dict[int, int], window: int, found: list[Part]) -> Iterator[None]:
    """While a block is run and passed back through, parts of its matrices, `{id of a module: table}`, go to `found`."""

    def watch(j: int) -> Callable:
        def hook(module, args, output):
            entered = args[0].detach().flatten(0, -2)

            def use(gradient):
                leaving = gradient.detach().flatten(0, -2)
                found.append(Part(window, j, entered=entered, leaving=leaving))

            output.register_hook(use)

        return hook

    handles = [
        module.register_forward_hook(watch(tables[id(module)])) for module in block.modules() if id(module) in tables
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
def frozen(model: nn.Module, each: list[Table]):
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
