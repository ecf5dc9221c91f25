"""Sliced models as transformers models: a configuration and a model class per family, registered when imported.

A sliced model differs from its dense family in four ways, and in nothing else:

- the residual stream has another width in every block, given by the plan in the configuration;
- norms have no parameters: their scale and shift went into the linear layers that read them (`ScaleFreeNorm`);
- the residual path goes through shortcut matrices, because neighbouring blocks write in different bases;
- where embedding and head of the dense model are one table `[V, D]`, it stays as it is if that takes fewer parameters
  (`stays_tied`), with an entrance behind the embedding and, if the head is sliced, an exit behind the final norm. Else
  they are two. The configuration says so by `entrance`; models of versions that always untied have none.

`hidden_size` stays the dense width `D`: attention heads have their size from it, and norms still divide by it.
"""

from __future__ import annotations

import json
from functools import cache
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from layerwise.backbone.architectures import ARCHITECTURES, Architecture, Step, architecture
from layerwise.backbone.structure import SLICED, blocks, tied
from layerwise.plans import Plan
from layerwise.plans.storage import stays_tied


class ScaleFreeNorm(nn.Module):
    """RMSNorm without a scale, dividing by the root mean square over the dense width `D`: `[..., w] -> [..., w]`.

    What was cut off is taken as 0, as in SliceGPT (arXiv 2401.15024), so the mean is over `D`, not over `w`. On a
    stream that was centred when it was written, it is LayerNorm without scale and shift.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden if hidden.dtype == torch.float64 else hidden.float()
        mean_square = x.square().sum(-1, keepdim=True) / self.width
        return (x * torch.rsqrt(mean_square + self.eps)).to(hidden.dtype)


class ExitNorm(ScaleFreeNorm):
    """The final norm before a sliced head that has the dense model's table `[V, D]`: norm and exit, `[h] -> [D]`."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.exit(super().forward(hidden))


class SlicedBlock:
    """What every sliced block does; mixed into the block class of a family, whose attention and MLP stay as they are.

    `shortcuts` `[steps]` are the matrices of the residual path. Dropout of what attention and MLP write, which some
    families have for training, is left out.
    """

    architecture: Architecture

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        """`[n, length, w_i] -> [n, length, w_{i+1}]`; `kwargs` go to the attention."""
        for step, shortcut in zip(self.architecture.steps, self.shortcuts, strict=True):
            hidden_states = self.take(step, shortcut, hidden_states, **kwargs)
        return hidden_states

    def take(self, step: Step, shortcut: nn.Module, hidden: Tensor, **kwargs) -> Tensor:
        """One step: what passes the shortcut, plus what attention and MLP add to it."""
        read = attrgetter(step.norm)(self)(hidden)
        hidden = shortcut(hidden)
        if step.attention:
            hidden = hidden + attrgetter(self.architecture.attention)(self)(hidden_states=read, **kwargs)[0]
        if step.mlp:
            hidden = hidden + self._mlp(read)
        return hidden

    def _mlp(self, read):
        table = self.architecture
        if table.mlp:
            return attrgetter(table.mlp)(self)(read)
        into, out = attrgetter(*table.mlp_inputs, table.mlp_output)(self)
        return out(self.activation_fn(into(read)))


class TiedEmbedding(nn.Embedding):
    """An embedding with the dense model's table `[V, D]`; what is looked up goes through an entrance, `[D] -> [w0]`."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.entrance(super().forward(tokens))


class SlicedModel:
    """What every sliced `...ForCausalLM` does; mixed into that of a family."""

    def __init__(self, config):
        super().__init__(config)
        _cut(self, self.plan)

    @property
    def plan(self) -> Plan:
        """The plan that the model was sliced to."""
        return Plan.from_json(json.dumps(self.config.plan))


def skeleton(model, plan: Plan) -> nn.Module:
    """What `model`, dense or sliced, is when it is sliced to `plan`: shapes without weights, on the meta device."""
    config = model.config
    rows = len(model.get_input_embeddings().weight)
    tie = tied(model) and stays_tied(rows, plan.width, plan.stream[0], plan.head)
    content = config.to_dict() | {"plan": json.loads(plan.to_json()), "entrance": tie, "tie_word_embeddings": tie}
    content = {name: value for name, value in content.items() if name not in ("model_type", "architectures")}
    family = config.model_type.removeprefix(SLICED)
    new = AutoConfig.for_model(SLICED + family, **content | {"dtype": model.dtype})
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(new, attn_implementation=config._attn_implementation)
    return empty.eval().requires_grad_(False)


def _cut(model, plan: Plan) -> None:
    """Give the parts of a dense model that was just made, whose weights have no value yet, the shapes of the plan."""
    table = architecture(model)
    stream = plan.stream
    for path in table.embeddings:
        embedding = model.get_submodule(path)
        if model.config.entrance and embedding is model.get_input_embeddings():
            embedding.__class__ = TiedEmbedding
            embedding.entrance = nn.Linear(plan.width, stream[0], bias=False, dtype=model.dtype)
            continue
        embedding.embedding_dim = stream[0]
        embedding.weight = nn.Parameter(torch.empty(len(embedding.weight), stream[0], dtype=embedding.weight.dtype))
    for block, width, after in zip(blocks(model), stream, stream[1:], strict=False):
        block.__class__ = _block_class(type(block), table)
        block.shortcuts = nn.ModuleList()
        for step in table.steps:
            out = after if step.mlp else width  # the attention of a sequential block writes at the width of its MLP
            for path in step.reads:
                _reshape(block, path, width=width, bias=_shifts(block, step.norm))
            for path in step.writes:
                _reshape(block, path, out=out)
            _replace_norm(block, step.norm, plan.width)
            block.shortcuts.append(nn.Linear(width, out, bias=False, dtype=model.dtype))
    if plan.head:
        width = plan.width if model.config.entrance else plan.head
        _reshape(model, table.head, width=width, bias=_shifts(model, table.final_norm))
        norm = _replace_norm(model, table.final_norm, plan.width, ExitNorm if model.config.entrance else ScaleFreeNorm)
        if model.config.entrance:
            norm.exit = nn.Linear(plan.head, plan.width, bias=False, dtype=model.dtype)
    model.tie_weights()  # if the configuration says so: a head that was reshaped is a new one


def _reshape(parent, path, width=None, out=None, bias=False):
    """A linear layer anew with another input or output width, and with a bias if it had one or `bias` asks for one."""
    old = parent.get_submodule(path)
    sizes = (width or old.in_features, out or old.out_features)
    parent.set_submodule(path, nn.Linear(*sizes, bias=bias or old.bias is not None, dtype=old.weight.dtype))


def _shifts(parent, path):
    """Whether a norm has a shift, which becomes a bias of what reads it."""
    return getattr(parent.get_submodule(path), "bias", None) is not None


def _replace_norm(parent, path, width, kind=ScaleFreeNorm):
    norm = parent.get_submodule(path)
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    new = kind(width, eps)
    parent.set_submodule(path, new)
    return new


@cache
def _block_class(dense: type, table: Architecture) -> type:
    return _class(SlicedBlock, dense, architecture=table)


def _register(family: str) -> None:
    """Make the classes of a family and let transformers' AutoConfig and AutoModelForCausalLM know them."""
    dense_config = type(AutoConfig.for_model(family))
    dense_model = MODEL_FOR_CAUSAL_LM_MAPPING[dense_config]
    fields = {"plan": "dict | None", "entrance": "bool"}
    config = _class(dense_config, model_type=SLICED + family, plan=None, entrance=False, __annotations__=fields)
    kept_whole = [f"Sliced{name}" for name in dense_model._no_split_modules] + [TiedEmbedding.__name__]
    model = _class(SlicedModel, dense_model, config_class=config, _no_split_modules=kept_whole)
    AutoConfig.register(SLICED + family, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)


def _class(*bases: type, **content) -> type:
    """The sliced class of the last of `bases`, also as an attribute of this module, where pickle looks for it."""
    name = f"Sliced{bases[-1].__name__}"
    globals()[name] = type(name, bases, content | {"__module__": __name__})
    return globals()[name]


for _family in ARCHITECTURES:
    _register(_family)
