"""Whole blocks removed: what is left is a plain model of its family, with fewer blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from layerwise.backbone.structure import blocks, blocks_path, is_sliced, text_config
from layerwise.plans import Plan

INDICES = ("mlp_only_layers", "moe_layers")  # lists of a configuration that hold numbers of blocks
NUMBERS = ("layer_idx", "layer_id")  # attributes of modules that hold the number of their block


def remove_blocks(model: nn.Module, plan: Plan, inplace: bool = False) -> nn.Module:
    """`model` without the blocks that the plan does not keep; what else the plan says is left undone.

    Blocks are numbered anew, so that caches fit, and so is what the configuration says of each block: transformers
    itself saves the result, loads it, and generates with it. Nothing is copied of blocks that go; with `inplace`
    nothing is copied at all, and `model` itself is the result.

    Raises ValueError, before anything is changed, for a sliced model, whose blocks hand on what they write in a basis
    that only the next one reads, and for blocks that depend on their number in a way that no configuration can say of
    those that are left.
    """
    if is_sliced(model):
        raise ValueError(
            "no block of a sliced model can be left out, since each reads the basis in which the one before it writes: "
            "take the dense model, and a plan that says both, drop and slice"
        )
    kept = [i for i, layer in enumerate(plan.layers) if layer.keep]
    _check(model.config, kept)
    path, every = blocks_path(model), blocks(model)
    fewer = nn.ModuleList([every[i] for i in kept])
    if inplace:
        model.set_submodule(path, fewer)
    else:
        # One memory for both copies: what blocks share with the rest, such as the configuration, they share again.
        memo: dict = {}
        memo[id(every)] = copy.deepcopy(fewer, memo)
        model = copy.deepcopy(model, memo)
    for i, block in enumerate(model.get_submodule(path)):
        for module in block.modules():
            for name in NUMBERS:
                if hasattr(module, name):
                    setattr(module, name, i)
    _renumber(text_config(model), kept)
    return model


def _renumber(text: PretrainedConfig, kept: list[int]) -> None:
    """Let a configuration say of the blocks `kept`, under their new numbers, what it said of them."""
    count = text.num_hidden_layers
    for name, values in list(vars(text).items()):
        if name in INDICES and values is not None:
            setattr(text, name, [new for new, old in enumerate(kept) if old in values])
        elif "layer" in name and isinstance(values, (list, tuple)) and len(values) == count:
            setattr(text, name, [values[i] for i in kept])
    if hasattr(text, "attention_types"):  # GPT-Neo's, from which it makes its list when it is loaded
        text.attention_types = [[list(text.attention_layers), 1]]
    step = getattr(text, "decoder_sparse_step", 1)  # Qwen's: one block in so many has experts, the others have none
    if step != 1:
        dense = [new for new, old in enumerate(kept) if (old + 1) % step]
        text.mlp_only_layers, text.decoder_sparse_step = sorted({*text.mlp_only_layers, *dense}), 1
    text.num_hidden_layers = len(kept)


def _check(config: PretrainedConfig, kept: list[int]) -> None:
    """Raise ValueError unless the configuration, renumbered, describes the blocks that it has at `kept` now."""
    fewer = copy.deepcopy(config)
    _renumber(text_config(fewer), kept)
    with torch.device("meta"):
        old, new = (AutoModelForCausalLM.from_config(copy.deepcopy(each)) for each in (config, fewer))
    path = f"{blocks_path(new)}."
    pairs = [(f"block {i}", blocks(old)[i], block) for i, block in zip(kept, blocks(new), strict=True)]
    outside = ([(name, p.shape) for name, p in model.named_parameters() if path not in name] for model in (old, new))
    different = [f"{where}, {what}" for where, *pair in pairs for what in _differences(*pair)]
    different += [one[0] for one, other in zip(*outside, strict=True) if one != other]
    if different:
        gone = ", ".join(str(i) for i in range(len(blocks(old))) if i not in kept)
        raise ValueError(
            f"a {config.model_type} model without blocks {gone} is none that its configuration can describe: "
            f"{different[0]} depends on the number of blocks or of this one. Remove other blocks, or measure what they "
            "are worth by lw.damage"
        )


def _differences(old: nn.Module, new: nn.Module) -> Iterator[str]:
    """In what two blocks differ that were just made, but for their numbers."""
    for one, other in zip_longest(old.named_modules(), new.named_modules()):
        if one is None or other is None or (one[0], type(one[1])) != (other[0], type(other[1])):
            yield f"the kind of {(one or other)[0]}"
            return
        mine, theirs = _told(one[1]), _told(other[1])
        yield from (f"{one[0]}.{name}".lstrip(".") for name in mine | theirs if mine.get(name) != theirs.get(name))


def _told(module: nn.Module) -> dict:
    """What tells a module from others of its class: shapes of its own parameters, numbers, names and switches."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}
    return {name: value for name, value in (plain | shapes).items() if name not in NUMBERS}
