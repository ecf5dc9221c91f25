"""`compress`: what a plan says, done to a model."""

from __future__ import annotations

from torch import Tensor, nn

from layerwise import slicing
from layerwise.architectures import blocks
from layerwise.plans import Plan


def compress(
    model,
    plan: Plan,
    tokens: Tensor | None = None,
    calibration: str | slicing.Bases = "sequential",
    mask: Tensor | None = None,
    batch: int = 8,
    inplace: bool = False,
) -> nn.Module:
    """A model compressed to `plan`, in the dtype and on the device of `model`, which stays as it is.

    Slicing is SliceGPT's (arXiv 2401.15024) with the widths of the plan. `calibration` "sequential" takes the bases
    from `tokens` `[n, length]`, block after block, each from what the blocks before it, already sliced, put out;
    `mask` `[n, length]` is 0 for padding, which the bases leave out; `batch` windows are run at a time. The `Bases`
    that `calibrate` took from the dense model serve many plans, and need no tokens.

    `inplace` saves memory: the blocks of `model` are freed as they are sliced, and it can't be used afterwards.

    The result is a transformers model whose configuration holds the plan: it generates, and saves and loads by
    `save_pretrained` and `from_pretrained`. A tied head is untied.

    Raises UnsupportedArchitecture, and ValueError for a plan of another model, tokens that are missing or outside the
    vocabulary, and weights or hidden states that are NaN or infinite, naming the block. Warns if there are fewer tokens
    than the stream is wide.
    """
    _check_plan(model, plan)
    if isinstance(calibration, slicing.Bases):
        if calibration.source() is not model:
            raise ValueError("the bases were taken from another model than the one to compress: calibrate this one")
        if tokens is not None or mask is not None or inplace:
            raise ValueError("with bases, tokens, mask and inplace have no effect: the bases hold all that is needed")
        return slicing.truncate(calibration, plan)
    if calibration != "sequential":
        raise ValueError(f"calibration must be 'sequential' or what lw.calibrate gives, not {calibration!r}")
    if tokens is None:
        raise ValueError("sequential calibration needs tokens: give tokens=lw.tokens(...), or calibration=bases")
    return slicing.slice_model(model, plan, tokens, mask, batch, inplace)


def _check_plan(model, plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise ValueError(f"plan must be a Plan, such as lw.plans.constant_slices(lw.shape(model), 0.25), not {plan!r}")
    count, width = len(blocks(model)), model.config.hidden_size
    if (len(plan.layers), plan.width) != (count, width):
        raise ValueError(
            f"the plan is for {len(plan.layers)} layers of width {plan.width}, the model has {count} of width {width}: "
            "make the plan from lw.shape(model)"
        )
    other = [name for name in ("bits", "outliers") if any(getattr(layer, name) is not None for layer in plan.layers)]
    if len(plan.kept) < count:
        other.append("keep=False")
    if other:
        raise ValueError(f"the plan sets {', '.join(other)}: what can be done to a model so far is slicing")
    if plan.head is None and all(layer.width is None for layer in plan.layers):
        raise ValueError("the plan sets nothing: make one with lw.plans.constant_slices(lw.shape(model), mean=0.25)")
