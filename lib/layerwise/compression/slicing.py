"""SliceGPT (arXiv 2401.15024), done to a plan with a width per block (arXiv 2411.03513).

Every place where the residual stream is read gets a basis, the principal components of what passes there on the
calibration tokens. Stored in that basis, the stream loses its trailing columns. Two calibrations:

- *sequential*, as in the papers: each PCA sees what the blocks before it, already sliced, put out (`slice_model`);
- *shared*: all bases from the dense model (`calibrate`), after which slicing to any plan is cutting the corners of the
  rotated weights (`truncate`).

The arithmetic is in `rotation`, the model in `sliced`. At full width neither changes what the model computes.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone import passes
from layerwise.backbone.architectures import architecture
from layerwise.backbone.devices import all_finite, check_present, entrance
from layerwise.backbone.structure import blocks, evaluating, is_sliced
from layerwise.compression import rotation
from layerwise.compression.rotation import Gram
from layerwise.compression.sliced import skeleton
from layerwise.plans import Layer, Plan
from layerwise.text.corpora import check_mask, check_text


@dataclass(frozen=True, eq=False)
class Bases:
    """A dense model in its principal components, at full width: what every plan is a truncation of.

    `eigenvalues` has one float64 `[D]` per place where the stream is read, largest first: block by block the input of
    the attention and, in sequential families, that of the MLP; last, that of the head. Divided by their sum they are
    the share of the stream that each component carries. `head` `[D, D]` is the basis of that last place.
    """

    rotated: nn.Module
    head: Tensor
    eigenvalues: tuple[Tensor, ...]
    source: weakref.ref  # the dense model


def calibrate(model, tokens: Tensor, mask: Tensor | None = None, batch: int = 8) -> Bases:
    """Bases of the dense model, for slicing it to many plans: `compress(model, plan, calibration=bases)`.

    One forward pass in eval mode, without the head; hidden states are not kept.

    Parameters
    ----------
    model
        A dense model. It stays as it is.
    tokens
        Calibration text `[n, length]`.
    mask
        `[n, length]`, 1 for tokens and 0 for padding, which the PCA leaves out.
    batch
        Windows that are run at a time.

    Returns
    -------
    bases
        They hold one rotated copy of the model.

    Raises
    ------
    ValueError
        For tokens outside the vocabulary, windows longer than a table of positions, NaN or infinite weights, and hidden
        states that are, naming the block.
    UnsupportedArchitecture
        Why the model can't be sliced.

    Warns
    -----
    UserWarning
        If there are fewer tokens than `D`.
    """
    check_calibration(model, tokens, mask, batch)
    table = architecture(model)
    places = [block.get_submodule(step.norm) for block in blocks(model) for step in table.steps]
    places.append(model.get_submodule(table.final_norm))
    grams = [Gram(table.norm == "layer") for _ in places]
    keep: Tensor | None = None

    def watch(gram):
        return lambda norm, args: gram.add(args[0], keep)

    handles = []
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        try:
            handles += [norm.register_forward_pre_hook(watch(gram)) for norm, gram in zip(places, grams, strict=True)]
            for part, keep in _parts(model, tokens, mask, batch):
                passes.run_trunk(model, part, keep)
        finally:
            for handle in handles:
                handle.remove()
        eigenvalues, bases = [], []
        for where in _names(model):  # a sum is let go when its basis is there: for wide models they are large
            values, basis = grams.pop(0).pca(where)
            eigenvalues.append(values)
            bases.append(basis)
        full = Plan(tuple(Layer(width=model.config.hidden_size) for _ in blocks(model)), model.config.hidden_size)
        rotated = slice_by(model, full, _Known(bases))
    return Bases(rotated, bases[-1], tuple(eigenvalues), weakref.ref(model))


@torch.inference_mode(False)  # so that the result can be trained, wherever it is made
@torch.no_grad()
def truncate(bases: Bases, plan: Plan) -> nn.Module:
    """The rotated model of `bases` cut to `plan`: a new model, which shares no memory with it."""
    full = bases.rotated
    small = skeleton(full, plan)
    if plan.head:  # in the rotated model the last block writes the stream as it is in the dense model
        table = architecture(full)
        basis, width = bases.head[:, : plan.head], plan.stream[-2]
        before, after, step = blocks(full)[-1], blocks(small)[-1], table.steps[-1]
        rotation.write_stream(before, after, step.writes, basis)
        shortcut = before.shortcuts[-1].weight
        rotation.put(after.shortcuts[-1], "weight", basis.T.to(shortcut) @ shortcut[:, :width], shortcut)
        rotation.read_stream(full, small, table.final_norm, [table.head], basis)
    if full.config.entrance and not small.config.entrance:
        path, entrance = architecture(full).embeddings[0], full.get_input_embeddings().entrance
        rotation.embed(full, small, [path], entrance.weight.T[:, : plan.stream[0]])
    for name, empty in [(name, part) for name, part in small.named_parameters() if part.is_meta]:
        corner = full.get_parameter(name)[tuple(map(slice, empty.shape))]
        path, _, last = name.rpartition(".")
        rotation.put(small.get_submodule(path), last, corner.clone(), corner)
    return _dress(full, small)


def slice_model(
    model, plan: Plan, tokens: Tensor, mask: Tensor | None = None, batch: int = 8, inplace: bool = False
) -> nn.Module:
    """Slice `model` to `plan`, taking each PCA from what the blocks before it, already sliced, put out.

    Each step of a block runs once per batch of `tokens` `[n, length]`; arguments and errors are those of `calibrate`.
    Memory beside the two models: the hidden states of all tokens. With `inplace`, a block of `model` is freed as soon
    as it is sliced, so that both together take little more than the larger; `model` can't be used afterwards, nor if
    this is interrupted.
    """
    check_calibration(model, tokens, mask, batch)
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        return slice_by(model, plan, Sequential(model, tokens, mask, batch), inplace)


def check_calibration(model, tokens: Tensor, mask: Tensor | None = None, batch: int = 8, loaded: bool = True) -> None:
    """Raise, before any work, if `model` can't be sliced on `tokens`; warn if they are few. Its weights are looked at
    if they are `loaded`."""
    architecture(model)
    if is_sliced(model):
        raise ValueError("the model is sliced already: slice the dense one, by a plan that says all")
    check_text(model, tokens)
    check_mask(mask, tokens)
    if batch < 1:
        raise ValueError(f"batch must be at least one window, not {batch}")
    if loaded:
        check_present(model)
    for name, weights in model.named_parameters() if loaded else ():  # no activation shows all of them
        if not all_finite(weights):
            raise ValueError(f"the weights {name} hold NaN or infinity: get the checkpoint anew")
    count, D = tokens.numel() if mask is None else int(mask.sum()), model.config.hidden_size
    if count < D:
        warnings.warn(
            f"{count} calibration tokens for a stream of width {D}: the PCA says nothing about {D - count} of its "
            f"directions. It needs {D} tokens at the very least, and many times that to be stable",
            stacklevel=3,
        )


@contextmanager
def nothing(i: int, dense: nn.Module, block: nn.Module) -> Iterator[None]:
    """A visit to a block of a model that is in memory."""
    yield


class _Known:
    """Bases that were measured beforehand, in the order in which the stream is read."""

    def __init__(self, bases: Sequence[Tensor]):
        self.bases = iter(bases)

    def first(self) -> Tensor:
        return next(self.bases)

    def after(self, i, dense, block, step, shortcut, basis) -> Tensor:
        return next(self.bases)


class Sequential:
    """Bases from hidden states that pass through the model while it is being sliced, step by step."""

    def __init__(self, model, tokens, mask, batch):
        self.center = architecture(model).norm == "layer"
        self.names = _names(model)
        self.batches = [
            (keep, *passes.entering(model, part, keep)) for part, keep in _parts(model, tokens, mask, batch)
        ]

    def first(self) -> Tensor:
        gram = Gram(self.center)
        for keep, states, _ in self.batches:
            gram.add(states, keep)
        return gram.pca(next(self.names))[1]

    def after(self, i, dense, block, step, shortcut, basis) -> Tensor:
        """The basis of what `step` of block i writes, given the stream in `basis` `[D, w]`."""
        rotation.lend(dense, block, step, shortcut, basis)
        gram = Gram(self.center)
        for keep, states, arguments in self.batches:
            states.copy_(block.take(step, shortcut, states @ basis.to(states), **arguments[i]))
            gram.add(states, keep)
        return gram.pca(next(self.names))[1]


def slice_by(
    model, plan: Plan, bases: _Known | Sequential, inplace: bool = False, visit: Callable = nothing
) -> nn.Module:
    """`model` in `bases`, cut to `plan`. What the head reads is the dense model's own, unless the plan cuts it.

    `visit(i, dense, sliced)` is a context in which block i is sliced, with all that is done to it and to its hidden
    states.
    """
    table, stream = architecture(model), plan.stream
    small = skeleton(model, plan)
    basis = entering = bases.first()[:, : stream[0]]
    pairs = list(zip(blocks(model), blocks(small), strict=True))
    for i, (dense, block) in enumerate(tqdm(pairs, desc="slicing", unit="block", leave=False, delay=5)):
        with visit(i, dense, block):
            end = table.steps[-1] if i + 1 == len(pairs) and not plan.head else None
            rotated = [path for step in table.steps for path in step.reads + (step.writes if step is not end else ())]
            rotation.keep_untouched(dense, block, rotated, share=inplace)
            for step, shortcut in zip(table.steps, block.shortcuts, strict=True):
                rotation.read_stream(dense, block, step.norm, step.reads, basis)
                like = dense.get_submodule(step.writes[0]).weight
                if step is end:
                    rotation.put(shortcut, "weight", basis, like)
                    break
                before, width = basis, stream[i + 1] if step.mlp else stream[i]
                basis = bases.after(i, dense, block, step, shortcut, before)[:, :width]
                rotation.write_stream(dense, block, step.writes, basis)
                rotation.pass_on(shortcut, before, basis, like)
            if inplace:
                rotation.free_weights(dense)
    rotation.embed(model, small, table.embeddings, entering)  # here, where blocks that were freed have made room
    rotated = [table.blocks, *(table.embeddings[1:] if small.config.entrance else table.embeddings)]
    if plan.head:
        rotation.read_stream(model, small, table.final_norm, [table.head], basis)
        rotated += [table.final_norm, table.head]
    rotation.keep_untouched(model, small, rotated, share=inplace)
    return _dress(model, small)


def _dress(model, small) -> nn.Module:
    """What belongs to a model beside its parameters; and its one table, if it has one, in both places."""
    small.tie_weights()
    rotation.keep_buffers(model, small)
    small.generation_config = copy.deepcopy(model.generation_config)
    small.stored_dtype = getattr(model, "stored_dtype", model.dtype)
    return small


def _names(model) -> Iterator[str]:
    """What passes at each place where the stream is read, in words."""
    for i in range(len(blocks(model))):
        yield f"what enters block {i}"
        if not architecture(model).parallel:
            yield f"what the attention of block {i} puts out"
    yield "what the last block puts out"


def _parts(model, tokens, mask, batch) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of `tokens` and of `mask`, where the model has its embedding."""
    device = entrance(model)
    for start in tqdm(range(0, len(tokens), batch), desc="calibrating", unit="batch", leave=False, delay=5):
        rows = slice(start, start + batch)
        yield tokens[rows].to(device), None if mask is None else mask[rows].to(device).bool()
