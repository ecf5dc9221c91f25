"""Every block of a model at every width, quantized once; models of mixed widths are put together from them.

A sweep over plans then costs its evaluations and nothing else. It costs less than that where plans begin alike: what
enters the first block in which a plan differs from the one before it is remembered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone import devices, structure
from layerwise.backbone.passes import Head, Passes
from layerwise.backbone.shapes import shape
from layerwise.compression.compress import check_fits
from layerwise.evaluation import comparison, predictions
from layerwise.plans import Layer, Plan
from layerwise.quantization import packed, quantizer
from layerwise.quantization.blockwise import check_bits, check_widths, each_block
from layerwise.quantization.packed import dequantized
from layerwise.quantization.tables import quantized_end

# What an assembly makes a model of: bits of the embedding, of the linear layers of each block, and of the head.
Choice = tuple[tuple[int | None, ...], ...]


class Assembly:
    """The blocks of `model` at each of `widths`, by a quantizer that does blocks one by one.

    Its models compute what `lw.compress(model, plan, quantizer=...)` gives, to the last bit, from weights that were
    unpacked beforehand. `model` itself stays as it is, and must stay so; a plan may leave blocks of it unquantized.
    Memory beside it: one copy of the matrices of its blocks for each width, in the model's dtype, and one of embedding
    and head for each width that a plan has asked for.

    With a quantizer that does matrices one by one (`.matrix(weight, bits)`), plans may mix widths within a block, and
    set those of embedding and head, at any width that the quantizer has.

    Raises ValueError for a quantizer that can't do blocks one by one (GPTQ, which looks at what enters them) and for
    what the quantizer refuses.
    """

    def __init__(self, model: nn.Module, widths: Sequence[int], quantizer: str | Callable = "rtn"):
        self.model, self.quantizer = model, _by_block(quantizer)
        devices.check_present(model)
        self.shape = shape(model)
        own = list(structure.blocks(model))
        self.blocks: dict[int | None, list[nn.Module]] = {None: own}
        self.tables: dict[tuple[str, int], nn.Parameter] = {}  # of embedding and head, made when a plan asks for one
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
        heads = {bits: Head(self.model, self._end("head", bits)) for bits in {None, *(end for *_, (end,) in order)}}
        parts, nothing = tokens.split(batch), self._choice(Plan((Layer(),) * self.shape.L, self.shape.D))
        found: dict[Choice, list[list[Tensor]]] = {choice: [[], []] for choice in order}
        with (
            torch.inference_mode(),
            structure.evaluating(self.model),
            tqdm(total=len(parts) * len(order), desc="plans", unit="pass", leave=False, disable=None) as bar,
        ):
            for part in parts:
                passes, before = Passes(self.model, part), nothing
                read = passes.run(0, self.blocks[None])
                dense = planned = predictions.windows(heads[None], read)
                predictions.keep_logits(dense, predictions.room(self.model))
                for choice in order:
                    start = _first_difference(before, choice)
                    if start is not None:
                        if start <= self.shape.L:  # else the head alone is another one
                            read = self._run(passes, max(start - 1, 0), choice)
                        planned, before = predictions.windows(heads[choice[-1][0]], read), choice
                    for kept, values in zip(found[choice], predictions.differences(planned, dense, part), strict=True):
                        kept.append(values)
                    bar.update()
        loss, kl = (np.stack([torch.cat(found[choice][k]).numpy() for choice in choices]) for k in (0, 1))
        return loss, kl

    @contextmanager
    def as_planned(self, plan: Plan) -> Iterator[nn.Module]:
        """The model with the blocks of the plan, for a while: for whatever wants a model, such as `lw.accuracy`."""
        (of_embedding,), *inside, (of_head,) = self._choice(plan)
        own, modules = list(self.blocks[None]), [self._block(i, bits) for i, bits in enumerate(inside)]
        for name, bits in (("embedding", of_embedding), ("head", of_head)):
            if bits is not None:
                own.append(self._end(name, None))
                modules.append(self._end(name, bits))
        forwards = [module.forward for module in modules]
        with structure.evaluating(self.model), structure.forwards(own, forwards):
            yield self.model

    def _choice(self, plan: Plan) -> Choice:
        check_fits(self.model, plan, self.shape)
        if plan.slices or len(plan.kept) < len(plan.layers) or any(layer.outliers is not None for layer in plan.layers):
            raise ValueError("an assembly has blocks at several widths in bits: the plan may set bits and nothing else")
        of_embedding, of_head = plan.ends(self.shape.tied)
        each = zip(plan.layers, self.shape.matrices, strict=True)
        inside = [tuple(layer.bits_of(matrix.path) for matrix in matrices) for layer, matrices in each]
        if strange := sorted({bits for block in inside for bits in block if bits not in self.blocks}):
            have = ", ".join(str(bits) for bits in self.blocks if bits)
            raise ValueError(f"the plan has blocks at {', '.join(map(str, strange))} bits, the assembly at {have}")
        if of_embedding or of_head or any(len(set(block)) > 1 for block in inside):
            if not hasattr(self.quantizer, "matrix"):
                raise ValueError(
                    f"{getattr(self.quantizer, 'name', 'the quantizer')} has no .matrix(weight, bits), which quantizes "
                    "a matrix by itself: the plan may set one width for each block and nothing else"
                )
            check_widths(self.quantizer, {of_embedding, of_head})
        return ((of_embedding,), *inside, (of_head,))

    def _run(self, passes: Passes, start: int, choice: Choice):
        """What the head reads, where nothing changes before block `start`."""
        modules = [self._block(i, bits) for i, bits in enumerate(choice[1:-1]) if i >= start]
        own, embedding = self._end("embedding", None), self._end("embedding", choice[0][0])
        with structure.forwards([own], [embedding.forward]):
            return passes.run(start, modules)

    def _block(self, i: int, widths: Sequence[int | None]) -> nn.Module:
        """Block `i` with its linear layers, in their order, at these widths: no tensor is copied for it."""
        if len(set(widths)) == 1:
            return self.blocks[widths[0]][i]
        dense = self.blocks[None][i]
        shared: dict[int, object] = {id(tensor): tensor for tensor in (*dense.parameters(), *dense.buffers())}
        shared |= {id(each): each for module in dense.modules() if (each := vars(module).get("config"))}
        for (path, layer), bits in zip(structure.linears(dense).items(), widths, strict=True):
            shared[id(layer)] = self.blocks[bits][i].get_submodule(path)
        return copy.deepcopy(dense, shared)

    @torch.inference_mode(False)  # so that a table serves both within and outside of it
    @torch.no_grad()
    def _end(self, name: str, bits: int | None) -> nn.Module:
        """The embedding or the head at `bits` bits: where they are one table, so are those that this gives."""
        own = self.model.get_input_embeddings() if name == "embedding" else self.model.get_output_embeddings()
        if bits is None:
            return own
        at = ("embedding" if self.shape.tied else name, bits)
        if at not in self.tables:
            weights = dequantized(quantized_end(self.quantizer, own, bits, name)).to(own.weight.dtype)
            self.tables[at] = nn.Parameter(weights, requires_grad=False)
        shared = {id(tensor): tensor for tensor in own.parameters()} | {id(own.weight): self.tables[at]}
        return copy.deepcopy(own, shared)


def _by_block(given: str | Callable) -> Callable:
    found = quantizer(given)
    if not hasattr(found, "block"):
        raise ValueError(
            f"{getattr(found, 'name', found)} has no .block(block, bits), which quantizes a block by itself: compress "
            "the model to each plan instead"
        )
    return found


def _neighbours(choices: Iterable[Choice]) -> list[Choice]:
    """The choices, once each, in an order in which neighbours share the longest beginnings."""
    return sorted(set(choices), key=lambda choice: [[bits or 99 for bits in part] for part in choice])


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
