"""Every block of a model at every width, quantized once; models of mixed widths are put together from them.

A sweep over plans then costs its evaluations and nothing else. It costs less than that where plans begin alike: what
enters the first block in which a plan differs from the one before it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, Passes
from layerwise.compression.compress import check_fits
from layerwise.evaluation import comparison, predictions
from layerwise.plans import Plan
from layerwise.quantization import packed, quantizer
from layerwise.quantization.blockwise import check_bits, each_block


class Assembly:
    """The blocks of `model` at each of `widths`, by a quantizer that does blocks one by one.

    Its models compute what `lw.compress(model, plan, quantizer=...)` gives, to the last bit, from weights that were
    unpacked beforehand. `model` itself stays as it is, and must stay so; a plan may leave blocks of it unquantized.
    Memory beside it: one copy of the matrices of its blocks for each width, in the model's dtype.

    Raises ValueError for a quantizer that can't do blocks one by one (GPTQ, which looks at what enters them) and for
    what the quantizer refuses.
    """

    def __init__(self, model: nn.Module, widths: Sequence[int], quantizer: str | Callable = "rtn"):
        self.model, self.quantizer = model, _by_block(quantizer)
        devices.check_present(model)
        own = list(structure.blocks(model))
        self.blocks: dict[int | None, list[nn.Module]] = {None: own}
        with structure.evaluating(model):
            for bits in dict.fromkeys(widths):
                if hasattr(self.quantizer, "widths"):
                    check_bits(self.quantizer, model, [bits] * len(own))
                done = each_block(self.quantizer, model, [bits] * len(own), copies=True)
                self.blocks[bits] = [_unpacked(block, dense) for block, dense in zip(done, own, strict=True)]

    def compare(self, plans: Sequence[Plan], tokens: Tensor, batch: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Each plan against the dense model, by window of `tokens` `[n, length]`: (loss, KL), float64 `[plans, n]`.

        Both are those of `lw.compare`, in nats per predicted token, positive = worse than dense. Equal plans are run
        once, and of plans that begin alike the beginning is run once. One batch of the dense model's logits is kept if
        they take no more than half of the memory that is free.
        """
        comparison.check_windows(self.model, tokens)
        choices = [self._choice(plan) for plan in plans]
        order = _neighbours(choices)
        parts, head = tokens.split(batch), Head(self.model)
        found: dict[tuple, list[list[Tensor]]] = {choice: [[], []] for choice in order}
        with (
            torch.inference_mode(),
            structure.evaluating(self.model),
            tqdm(total=len(parts) * len(order), desc="plans", unit="pass", leave=False, disable=None) as bar,
        ):
            for part in parts:
                passes, before = Passes(self.model, part), (None,) * len(self.blocks[None])
                dense = planned = predictions.windows(head, passes.run(0, self._modules(before)))
                predictions.keep_logits(dense, predictions.room(self.model))
                for choice in order:
                    start = _first_difference(before, choice)
                    if start is not None:
                        planned = predictions.windows(head, passes.run(start, self._modules(choice)[start:]))
                        before = choice
                    for kept, values in zip(found[choice], predictions.differences(planned, dense, part), strict=True):
                        kept.append(values)
                    bar.update()
        loss, kl = (np.stack([torch.cat(found[choice][k]).numpy() for choice in choices]) for k in (0, 1))
        return loss, kl

    @contextmanager
    def as_planned(self, plan: Plan) -> Iterator[nn.Module]:
        """The model with the blocks of the plan, for a while: for whatever wants a model, such as `lw.accuracy`."""
        modules = self._modules(self._choice(plan))
        forwards = [module.forward for module in modules]
        with structure.evaluating(self.model), structure.forwards(self.blocks[None], forwards):
            yield self.model

    def _choice(self, plan: Plan) -> tuple[int | None, ...]:
        check_fits(self.model, plan)
        if plan.slices or len(plan.kept) < len(plan.layers) or any(layer.outliers is not None for layer in plan.layers):
            raise ValueError("an assembly has blocks at several widths in bits: the plan may set bits and nothing else")
        choice = tuple(layer.bits for layer in plan.layers)
        if strange := sorted({bits for bits in choice if bits not in self.blocks}):
            have = ", ".join(str(bits) for bits in self.blocks if bits)
            raise ValueError(f"the plan has blocks at {', '.join(map(str, strange))} bits, the assembly at {have}")
        return choice

    def _modules(self, choice: Sequence[int | None]) -> list[nn.Module]:
        return [self.blocks[bits][i] for i, bits in enumerate(choice)]


def _by_block(given: str | Callable) -> Callable:
    found = quantizer(given)
    if not hasattr(found, "block"):
        raise ValueError(
            f"{getattr(found, 'name', found)} has no .block(block, bits), which quantizes a block by itself: compress "
            "the model to each plan instead"
        )
    return found


def _neighbours(choices: Iterable[tuple]) -> list[tuple]:
    """The choices, once each, in an order in which neighbours share the longest beginnings."""
    return sorted(set(choices), key=lambda choice: [bits or 99 for bits in choice])


def _first_difference(a: Sequence, b: Sequence) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def _unpacked(block: nn.Module, dense: nn.Module) -> nn.Module:
    """`block` with plain linear layers where it has packed ones; what else it has in common with `dense` is shared."""
    for path, layer in packed(block).items():
        block.set_submodule(path, layer.dense(dense.get_submodule(path).weight.dtype))
    mine = dict(block.named_parameters())
    for name, parameter in dense.named_parameters():
        if name in mine and mine[name].shape == parameter.shape and torch.equal(mine[name], parameter):
            path, _, last = name.rpartition(".")
            setattr(block.get_submodule(path), last, parameter)
    return block
