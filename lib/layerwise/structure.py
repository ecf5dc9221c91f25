"""Where the parts of a decoder-only model are, found by what they are and not by the family's name.

Any model that transformers' AutoModelForCausalLM makes has a list of blocks with linear layers, and a residual stream
through them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SLICED = "sliced_"  # before the family in the `model_type` of a sliced model


class UnknownStructure(ValueError):
    """A model in which the decoder blocks can't be told."""


def blocks(model) -> nn.ModuleList:
    """The decoder blocks of a model, in order: `[L]` modules.

    They are the outermost list of as many modules as its configuration has layers. Raises UnknownStructure if there is
    none, or more than one.
    """
    return model.get_submodule(blocks_path(model))


def blocks_path(model) -> str:
    """Where the list of the decoder blocks is in the model, such as "model.layers"."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    every = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    inside = {id(module) for module in (decoder or model).modules()}
    found = [path for path, module in every if len(module) == count and id(module) in inside]
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(found) != 1:
        lists = ", ".join(f"{path} of {len(module)}" for path, module in every) or "none at all"
        raise UnknownStructure(
            f"{type(model).__name__}: one list of {count} decoder blocks is looked for, and {len(found)} are there; "
            f"its lists of modules are {lists}"
        )
    return found[0]


def is_sliced(model) -> bool:
    """Whether the model was sliced: then its blocks read and write in bases of their own, of their own width."""
    return model.config.model_type.startswith(SLICED)


def trunk(model) -> nn.Module:
    """All of a model but its head: what gives the hidden states that the head reads."""
    base = model.base_model
    return base if base is not model else model.get_submodule(blocks_path(model).rpartition(".")[0])


def check_positions(model, tokens: Tensor) -> None:
    """Raise ValueError if windows of `tokens` `[n, length]` are longer than the model's table of positions; warn if
    it computes positions, and was made for fewer."""
    config, length = model.config.get_text_config(decoder=True), tokens.shape[1]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or length <= positions:
        return
    told = f"windows of {length} tokens, and the model has {positions} positions: take windows of at most {positions}"
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    tables = [table for table in tables if table is not model.get_input_embeddings()]
    if any(table.num_embeddings - getattr(table, "offset", 0) == positions for table in tables):
        raise ValueError(told)
    warnings.warn(f"{told}, or what is measured beyond them says little of the model", stacklevel=4)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode for a while, so without dropout; afterwards each part of them has the mode that it had."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def tied(model) -> bool:
    """Whether embedding and head are one tensor: what a configuration says of that, checkpoints don't always keep."""
    embedding, head = _ends(model)
    if head is not None and (embedding.is_meta or head.is_meta):  # of what is away, each name has a stand-in
        return bool(model.config.tie_word_embeddings)
    return embedding is head


def untie_what_differs(model) -> None:
    """Let the configuration of a model that was just read say "untied" if its embedding and head are two that differ.

    transformers leaves two such tensors apart where a configuration ties them, and what goes by that would tie them
    later.
    """
    if model.config.tie_word_embeddings and not tied(model):
        model.config.tie_word_embeddings = torch.equal(*_ends(model))


def _ends(model) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights of embedding and head."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return embedding.weight, getattr(head, "weight", None)


def twin(model):
    """The very modules and tensors of a model under a configuration of its own, which is true to them (see `tied`).

    It is for libraries that tie weights by the configuration, or write to it: what is the caller's stays as it was.
    """
    same = copy.copy(model)
    same.config = copy.deepcopy(model.config)
    same.config.tie_word_embeddings = tied(model)
    return same


@contextmanager
def forwards(modules: Sequence[nn.Module], stand_ins: Sequence[Callable]) -> Iterator[None]:
    """Let `modules` answer with `stand_ins` for a while; what an instance had of its own comes back afterwards."""
    own = [vars(module).get("forward") for module in modules]
    try:
        for module, stand_in in zip(modules, stand_ins, strict=True):
            module.forward = stand_in
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in vars(module):
                del module.forward


def written(output) -> torch.Tensor:
    """Hidden states `[n, length, D]` in what a block returns: in transformers 4, some families put them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of a block by their path in it, in the order of the modules, but for those that slicing added.

    The shortcuts of a sliced block are its residual path, which is neither scored nor quantized. Raises ValueError for
    a block without linear layers: its weights have few bits already.
    """
    found = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    found = {name: linear for name, linear in found.items() if not name.startswith("shortcuts.")}
    if not found:
        raise ValueError("the block has no linear layers: its weights have few bits already, so take the dense model")
    return found
