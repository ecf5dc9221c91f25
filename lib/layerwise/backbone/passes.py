"""Parts of a forward pass: what enters and leaves the blocks, and passes that begin at any block.

The model's own forward does the rest, so masks, positions, final norm and head are as in any family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from layerwise.backbone import architectures, devices, structure


def run_trunk(model: nn.Module, tokens: Tensor, keep: Tensor | None = None) -> ModelOutput:
    """Run the model without its head on tokens `[n, length]`; where `keep` of that shape is False there is padding.

    Returns what the head reads: `last_hidden_state` `[n, length, D]` of it, after the final norm.
    """
    attention = None if keep is None else keep.long()
    return structure.trunk(model)(input_ids=tokens, attention_mask=attention, use_cache=False)


class Head:
    """The head of a model, with all that its forward does after the blocks, such as a scale or a cap of the logits.

    It is the model's own forward, in which given states stand in for the rest; so it is right in any family. `output`
    is what takes the place of the model's own linear layer there, if anything does. A layer of few bits is unpacked
    once: it would be for a few positions at a time.
    """

    def __init__(self, model: nn.Module, output: nn.Module | None = None):
        self.model, own = model, model.get_output_embeddings()
        if output is None and hasattr(own, "dense"):
            output = own.dense(model.dtype)
        self.own, self.output = ([], []) if output is None else ([own], [output.forward])
        stack = model.get_submodule(structure.blocks_path(model).rpartition(".")[0])
        self.passed_by = list(dict.fromkeys([structure.trunk(model), stack]))  # families call the one or the other
        self.token = torch.zeros(1, 1, dtype=torch.long, device=devices.entrance(model))  # not looked at

    def __call__(self, read: ModelOutput, states: Tensor) -> Tensor:
        """Logits of `states` `[m, D]`, some of those in `read`, which `run_trunk` gave: `[m, V]` in its dtype."""
        given = replace(read, last_hidden_state=states[None])
        stand_ins = [lambda *args, **kwargs: given] * len(self.passed_by)
        with structure.forwards([*self.passed_by, *self.own], [*stand_ins, *self.output]):
            return self.model(input_ids=self.token, use_cache=False).logits[0]


def entering(model: nn.Module, tokens: Tensor, keep: Tensor | None = None) -> tuple[Tensor, list[dict]]:
    """What enters block 0, `[n, length, D]`, and what each block gets beside it, arguments by name; no block is run."""
    states, arguments = [], []

    def stand_in(block):
        others = list(inspect.signature(block.forward).parameters)[1:]

        def record(hidden_states, *args, **kwargs):
            if not states:
                states.append(hidden_states)
            arguments.append(dict(zip(others, args, strict=False)) | kwargs)
            # What comes of it isn't used, so that a model may take the first of what it believes to be a tuple.
            return states[0]

        return record

    each = list(structure.blocks(model))
    # In a sliced model, what enters block 0 has not the width that the final norm expects.
    passed_by = (
        [model.get_submodule(architectures.architecture(model).final_norm)] if structure.is_sliced(model) else []
    )
    stand_ins = [*map(stand_in, each), *[lambda hidden: hidden for _ in passed_by]]
    with structure.forwards([*each, *passed_by], stand_ins):
        run_trunk(model, tokens, keep)
    return states[0], arguments


def in_tuples(model: nn.Module) -> bool:
    """Whether the blocks of a model return tuples, of which the hidden states are the first; it runs on one token."""
    found = []
    handle = structure.blocks(model)[0].register_forward_hook(lambda *given: found.append(isinstance(given[-1], tuple)))
    try:
        with torch.inference_mode():
            run_trunk(model, torch.zeros(1, 1, dtype=torch.long, device=devices.entrance(model)))
    finally:
        handle.remove()
    return found[0]


@contextmanager
def watching(model: nn.Module, hook: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Call `hook(x, y)` with what enters and leaves each block, `[n, length, D]` each, in the order of the blocks.

    The hooks are removed however the context is left.
    """

    def call(block, args, kwargs, output):
        hook(args[0] if args else kwargs["hidden_states"], structure.written(output))

    handles = []
    try:
        handles += [block.register_forward_hook(call, with_kwargs=True) for block in structure.blocks(model)]
        yield
    finally:
        for handle in handles:
            handle.remove()


class Passes:
    """Passes over one batch of tokens `[n, length]`, each with modules of its own in place of the last blocks.

    `run` first from block 0; after that from any block up to which the last pass that kept its states had the blocks
    that are meant now. Memory: the hidden states that enter each block, `[L]` times `[n, length, D]`.
    """

    def __init__(self, model: nn.Module, tokens: Tensor):
        self.model, self.tokens = model, tokens
        self.blocks = list(structure.blocks(model))
        self.entering: list[Tensor | None] = [None] * len(self.blocks)
        self.give: Callable = lambda state: state

    def run(self, start: int, stand_ins: Sequence[Callable], keep: bool = True) -> ModelOutput:
        """What the head reads with `stand_ins` for the blocks from `start` on, remembering what enters each of these
        if `keep`. Fewer stand-ins than blocks leave the last blocks as they are in the model."""
        # Blocks before `start` are passed by; the first one after them takes what is remembered in place of its input.
        forwards = [lambda ignored, *args, **kwargs: self.give(ignored)] * start
        forwards += [self._stand_in(i, module, i == start > 0, keep) for i, module in enumerate(stand_ins, start)]
        with structure.forwards(self.blocks[: len(forwards)], forwards):
            return run_trunk(self.model, self.tokens.to(devices.entrance(self.model)))

    def _stand_in(self, i: int, module: Callable, remembered: bool, keep: bool) -> Callable:
        # Looked up now: while the pass runs, what the model's own block is asked for is this stand-in.
        forward = module.forward if isinstance(module, nn.Module) else module

        def stand_in(hidden, *args, **kwargs):
            hidden = self.entering[i] if remembered else hidden
            if keep:
                self.entering[i] = hidden
            output = forward(hidden, *args, **kwargs)
            if isinstance(output, tuple):
                self.give = lambda state: (state,)
            return self.give(structure.written(output))

        return stand_in
