"""Whole blocks removed: what is left is a plain model of its family, with fewer blocks."""

from __future__ import annotations

import copy

from torch import nn

from layerwise.plans import Plan
from layerwise.structure import blocks, blocks_path, is_sliced

PER_BLOCK = ("layer_types",)  # lists of a configuration that have an entry for each block


def remove_blocks(model: nn.Module, plan: Plan, inplace: bool = False) -> nn.Module:
    """`model` without the blocks that the plan does not keep; what else the plan says is left undone.

    Blocks are numbered anew, so that caches fit, and so is what the configuration says of each block: transformers
    itself saves the result, loads it, and generates with it. Nothing is copied of blocks that go; with `inplace`
    nothing is copied at all, and `model` itself is the result.

    Raises ValueError for a sliced model, whose blocks hand on what they write in a basis that only the next one reads.
    """
    if is_sliced(model):
        raise ValueError(
            "no block of a sliced model can be left out, since each reads the basis in which the one before it writes: "
            "take the dense model, and a plan that says both, drop and slice"
        )
    kept = [i for i, layer in enumerate(plan.layers) if layer.keep]
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
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    config = model.config
    for name in PER_BLOCK:
        if values := getattr(config, name, None):
            setattr(config, name, [values[i] for i in kept])
    config.num_hidden_layers = len(kept)
    return model
