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
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

SLICED = "sliced_"  # before the family in the `model_type` of a sliced model


class UnknownStructure(ValueError):
    """A model that is no decoder-only language model, or one in which the decoder blocks can't be told."""


def check_decoder(config: PretrainedConfig | dict) -> None:
    """Raise UnknownStructure unless a configuration, or what its file holds, is of a decoder-only language model."""
    told = config if isinstance(config, dict) else config.to_dict()
    family = (told.get("model_type") or "").removeprefix(SLICED)
    if not family:
        raise UnknownStructure("the configuration names no model_type, so what kind of model it is can't be told")

    def says(name: str) -> bool:
        return bool(told.get(name, getattr(CONFIG_MAPPING[family], name, False)))

    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "is no language model that transformers' AutoModelForCausalLM knows"
    elif says("is_encoder_decoder"):
        what = "has an encoder beside its decoder"
    elif family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not says("is_decoder"):
        what = "is an encoder, which reads all of a text at once"
    else:
        return
    raise UnknownStructure(
        f"{family!r} {what}: layerwise works on decoder-only language models, such as Llama or GPT-2"
    )


def text_config(model) -> PretrainedConfig:
    """Of a model or a configuration, the part that is about text: it has `hidden_size`, `vocab_size` and so on.

    Models that see images too have it inside of their own; for others it is the configuration itself.
    """
    return getattr(model, "config", model).get_text_config(decoder=True)


def blocks(model) -> nn.ModuleList:
    """The decoder blocks of a model, in order: `[L]` modules.

    They are the outermost list of as many modules as its configuration has layers. Raises UnknownStructure if there is
    none, or more than one.
    """
    return model.get_submodule(blocks_path(model))


def blocks_path(model) -> str:
    """Where the list of the decoder blocks is in the model, such as "model.layers"."""
    count = text_config(model).num_hidden_layers
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


def positions(model) -> int | None:
    """How many positions a model or a configuration has, or was made for; None if it doesn't say."""
    config = text_config(model)
    if config.model_type == "mpt":  # its bias by distance is made for so many, and it has no other number of them
        return config.max_seq_len
    return getattr(config, "max_position_embeddings", None)


def check_positions(model, tokens: Tensor) -> None:
    """Raise ValueError if windows of `tokens` `[n, length]` are longer than the model's table of positions; warn if
    it computes positions, and was made for fewer."""
    most, length = positions(model), tokens.shape[1]
    if most is None or length <= most:
        return
    told = f"windows of {length} tokens, and the model has {most} positions: take windows of at most {most}"
    if _has_table(model, most):
        raise ValueError(told)
    warnings.warn(f"{told}, or what is measured beyond them says little of the model", stacklevel=5)


def _has_table(model, positions: int) -> bool:
    """Whether the model looks positions up in a table that ends, learned or, as in GPT-J and CTRL, computed once."""
    if text_config(model).model_type == "mpt":
        return True
    for part in model.modules():
        if isinstance(part, nn.Embedding) and part is not model.get_input_embeddings():
            rows = [part.num_embeddings - getattr(part, "offset", 0)]
        else:  # not buffers of other names: quantized matrices are some, of as many rows by chance
            rows = [len(each) for name, each in part.named_buffers(recurse=False) if "pos" in name and each.ndim == 2]
        if positions in rows:
            return True
    return False


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


def written(output) -> Tensor:
    """Hidden states `[n, length, D]` in what a block returns: some families, such as Bloom, put them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def linears(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """All linear layers of a block by their path in it, in the order of the modules, but for those that slicing added.

    Their weights are read by `weight_matrix`. The routers of a mixture of experts are left out: they choose, and
    nothing that they compute enters the stream. The shortcuts of a sliced block are its residual path, which is neither
    scored nor quantized. Raises ValueError for a block without linear layers, and where weights of some have few bits:
    those that are left would be taken for all.
    """
    few_bits = any("codes" in dict(module.named_buffers(recurse=False)) for module in block.modules())
    found = {name: module for name, module in block.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    found = {name: linear for name, linear in found.items() if not name.startswith("shortcuts.")}
    found = {
        name: linear for name, linear in found.items() if "router" not in f"{name} {type(linear).__name__}".lower()
    }
    if few_bits or not found:
        raise ValueError(
            "weights of the block have few bits already, or it has no linear layers at all: take the dense model"
        )
    return found


def weight_matrix(linear: nn.Linear | Conv1D) -> Tensor:
    """The weights of a linear layer as `[out, in]`, sharing memory with the layer: GPT-2's Conv1D has `[in, out]`."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def experts(block: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a mixture of experts that are one parameter for all experts, as a rule `[E, ...]`, by their path.

    They belong to no linear layer. Experts that are linear layers are among `linears`.
    """
    owners = [
        (path, module)
        for path, module in block.named_modules()
        if "expert" in type(module).__name__.lower() and not isinstance(module, nn.Linear)
    ]
    return {
        f"{path}.{name}": parameter
        for path, module in owners
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and not name.endswith("bias")
    }
