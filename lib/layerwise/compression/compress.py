"""`compress`: what a plan says, done to a model: blocks removed, then sliced, then quantized."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from layerwise.backbone.architectures import architecture
from layerwise.backbone.devices import check_present
from layerwise.backbone.shapes import Shape, shape
from layerwise.backbone.structure import blocks, evaluating, linears, text_config, tied, weight_matrix
from layerwise.compression import slicing
from layerwise.compression.pruning import remove_blocks
from layerwise.plans import Layer, Plan
from layerwise.plans.sizes import check_shape, end_sizes
from layerwise.quantization import packed
from layerwise.quantization import quantizer as by_name
from layerwise.quantization.blockwise import Bits, bits_by_path, check_bits, check_widths, each_block
from layerwise.quantization.gptq import compressed
from layerwise.quantization.tables import quantized_ends
from layerwise.text.corpora import check_text


def compress(
    model,
    plan: Plan,
    tokens: Tensor | None = None,
    quantizer: str | Callable = "rtn",
    calibration: str | slicing.Bases = "sequential",
    mask: Tensor | None = None,
    batch: int = 8,
    inplace: bool = False,
) -> nn.Module:
    """A model compressed to `plan`: blocks removed, then sliced, then quantized, whichever of them the plan asks for.

    Parameters
    ----------
    model
        A dense model. It stays as it is, unless `inplace`.
    plan
        What happens to each of its blocks.
    tokens
        Calibration text `[n, length]`, where slicing or the quantizer needs it.
    quantizer
        The name of a built-in one ("rtn", "quanto", "hqq", "gguf", "gptq", "outliers", see `lw.quantization`), one with
        settings of yours, such as `lw.quantization.HQQ(group=128)`, or a function
        `(model, bits, tokens=None) -> model`.
    calibration
        Of slicing: "sequential", or the `Bases` that `calibrate` took from the dense model, which serve many plans and
        need no tokens.
    mask
        `[n, length]`, 0 for padding, which the bases of slicing leave out.
    batch
        Windows that are run at a time.
    inplace
        Save memory by freeing or changing the blocks of `model` as they are done; it cannot be used afterwards.

    Returns
    -------
    small
        The compressed model, on the device of `model`, in its dtype, in eval mode. `lw.save` stores few bits as few.

    Raises
    ------
    UnsupportedArchitecture
        Why the model can't be sliced.
    ValueError
        For a plan of another model, tokens that are missing, outside the vocabulary or longer than a table of
        positions, a width in bits that the quantizer lacks, a size or layers that it can't do, blocks that can't be
        removed, a model that was spread over devices, and weights or hidden states that are NaN or infinite, naming
        the block.
    ImportError
        If the package of a quantizer is missing.

    Warns
    -----
    UserWarning
        If there are fewer tokens than the stream is wide.

    Notes
    -----
    **Removal** leaves a model of its family with fewer blocks, which is sliced and quantized like any other.

    **Slicing** is SliceGPT's (arXiv 2401.15024) with the widths of the plan. Sequential calibration takes the bases
    block after block, each from what the blocks before it, already sliced, put out. The result is a transformers model
    whose configuration holds the plan: it generates, and saves and loads by `save_pretrained` and `from_pretrained`. A
    tied head stays tied where that takes fewer bytes.

    **Quantization** gives the linear layers of each block the bits of the plan, and embedding and head theirs, if the
    plan sets any: by `quantizer.matrix(weight, bits)`, which "rtn", "quanto", "hqq" and "gguf" have. Where the two are
    one table they still are.
    """
    check_plan(model, plan)
    check_present(model)
    if (plan.slices or plan.quantizes) and (packed(model) or compressed(model).bytes):
        raise ValueError("the model's weights have few bits already: compress the dense model, by a plan that says all")
    if plan.slices:
        _check_slicing(model, plan, tokens, calibration, mask, batch, inplace)
    quantize = check_quantizer(model, by_name(quantizer), plan, tokens, mask)
    with evaluating(model):
        if len(plan.kept) < len(plan.layers):
            model, inplace = remove_blocks(model, plan, inplace), True
            plan = replace(plan, layers=plan.kept)
        if plan.slices and calibration == "sequential":
            model, inplace = slicing.slice_model(model, plan, tokens, mask, batch, inplace), True
        elif plan.slices:
            model, inplace = slicing.truncate(calibration, plan), True
        if quantize:
            model = quantize(model, tokens, inplace)
    model.config._commit_hash = None  # it is no longer what that commit has
    model.config.tie_word_embeddings = tied(model)
    return model.eval()


def _check_slicing(model, plan, tokens, calibration, mask, batch, inplace) -> None:
    """Raise ValueError, before any work is done, for a calibration that doesn't fit what else is given."""
    removed = len(plan.kept) < len(plan.layers)
    if not isinstance(calibration, slicing.Bases):
        if calibration != "sequential":
            raise ValueError(f"calibration must be 'sequential' or what lw.calibrate gives, not {calibration!r}")
        if tokens is None:
            raise ValueError("sequential calibration needs tokens: give tokens=lw.tokens(...), or calibration=bases")
        if removed:  # else it is checked, and warned of, when slicing begins
            with warnings.catch_warnings(action="ignore"):
                slicing.check_calibration(model, tokens, mask, batch)
        return
    if calibration.source() is not model:
        raise ValueError("the bases were taken from another model than the one to compress: calibrate this one")
    if removed:
        raise ValueError(
            "the bases are those of the model with all its blocks: first remove blocks, by a plan that only drops, and "
            "calibrate what is left; or calibrate sequentially"
        )
    if mask is not None or inplace or (tokens is not None and not plan.quantizes):
        raise ValueError("with bases, tokens, mask and inplace have no effect: the bases hold all that is needed")


def check_quantizer(model, quantizer, plan, tokens, mask) -> Callable | None:
    """What quantizes a model by the plan, or None if it sets no bits. Raises ValueError before any work is done."""
    name = getattr(quantizer, "name", getattr(quantizer, "__name__", "the quantizer"))
    outliers, more = [layer.outliers for layer in plan.kept], {}
    if any(share is not None for share in outliers):
        if "outliers" not in inspect.signature(quantizer).parameters:
            raise ValueError(f"the plan sets outliers, and {name} keeps none: take lw.quantization.Outliers()")
        more["outliers"] = outliers
    if not more and not plan.quantizes:
        return None
    every, ends = block_bits(model, plan), plan.ends(tied(model))
    if hasattr(quantizer, "widths"):
        check_bits(quantizer, model, every)
        check_widths(quantizer, set(ends))
    if any(ends) and not hasattr(quantizer, "matrix"):
        raise ValueError(
            f"{name} leaves embedding and head as they are, since it has no .matrix(weight, bits): take 'rtn', "
            "'quanto' or 'hqq', or a plan without embedding_bits and head_bits"
        )
    if mask is not None and getattr(quantizer, "needs_tokens", False):
        raise ValueError(f"{name} can't leave padding out: give it windows without padding, and no mask")
    if getattr(quantizer, "needs_tokens", False) and tokens is None:
        raise ValueError(f"{name} needs calibration text: give tokens=lw.tokens(...)")
    if tokens is not None:
        with warnings.catch_warnings(action="ignore"):  # what reads the tokens warns of them
            check_text(model, tokens)
    if hasattr(quantizer, "check_columns"):
        _check_columns(model, quantizer, name, plan, every)
    bits = [each for each, layer in zip(every, plan.layers, strict=True) if layer.keep]

    def quantize(model, tokens, inplace):
        outside = quantized_ends(model, quantizer, ends)
        if not inplace and not more and hasattr(quantizer, "block"):
            # Block by block, so that beside the model and the result there is one copied block at a time.
            done = zip(blocks(model), each_block(quantizer, model, bits, copies=True), strict=True)
            instead = {id(model.get_submodule(path)): module for path, module in outside.items()}
            return copy.deepcopy(model, instead | {id(block): new for block, new in done})
        small = quantizer(model if inplace else copy.deepcopy(model), bits, tokens=tokens, **more)
        for path, module in outside.items():
            small.set_submodule(path, module)
        return small

    return quantize


def block_bits(model, plan: Plan) -> list[Bits]:
    """What a quantizer is told of each block of `model`: bits, or bits by path where the plan has some by matrix."""

    def told(layer: Layer, block: nn.Module) -> Bits:
        if not layer.keep or layer.matrices is None:
            return layer.bits if layer.keep else None
        found = {path: layer.bits_of(path) for path in linears(block)}
        return {path: bits for path, bits in found.items() if bits is not None}

    return [told(layer, block) for layer, block in zip(plan.layers, blocks(model), strict=True)]


def _check_columns(model, quantizer, name: str, plan: Plan, every: list[Bits]) -> None:
    """Raise ValueError if rows of a table, as wide as the plan leaves them, are none that the quantizer can do."""
    steps = architecture(model).steps if plan.slices else ()
    reads = {path for step in steps for path in step.reads}
    kept = [i for i, layer in enumerate(plan.layers) if layer.keep]
    found = []  # what it is called, its columns, and whether slicing has decided them
    for i, width in zip(kept, plan.stream, strict=False):
        for path in bits_by_path(blocks(model)[i], every[i]):
            own = weight_matrix(blocks(model)[i].get_submodule(path)).shape[1]
            found.append((f"block {i}, {path}", width if path in reads else own, path in reads))
    if plan.embedding_bits or plan.head_bits:
        found += [(end, columns, plan.slices) for end, _, _, columns in end_sizes(plan, shape(model))]
    for called, columns, sliced in found:
        try:
            quantizer.check_columns(columns)
        except ValueError as error:
            hint = _multiple_hint(quantizer, plan.width) if sliced else ""
            raise ValueError(f"{name}, {called}: {error}{hint}") from error


def _multiple_hint(quantizer, D: int) -> str:
    """The `multiple` of slicing rules, a divisor of `D`, all of whose widths a quantizer can do."""

    def fits(columns: int) -> bool:
        try:
            quantizer.check_columns(columns)
        except ValueError:
            return False
        return True

    multiples = (m for m in range(1, D + 1) if D % m == 0 and all(map(fits, range(m, D + 1, m))))
    if multiple := next(multiples, None):
        return f"; or slice by lw.plans.constant_slices or dynamic_slices with multiple={multiple}"
    return f"; no multiple of lw.plans.constant_slices or dynamic_slices fits, since {D} itself doesn't"


def check_plan(model, plan: Plan) -> None:
    """Raise ValueError unless `plan` is one for this model, and asks for something."""
    check_fits(model, plan)
    if plan == Plan((Layer(),) * len(plan.layers), plan.width):
        raise ValueError("the plan sets nothing: make one with lw.plans.bits(lw.shape(model), scores, low_layers=3)")


def check_fits(model, plan: Plan, known: Shape | None = None) -> None:
    """Raise ValueError unless `plan` is one for this model, whose shape needs not be taken again if it is `known`."""
    if not isinstance(plan, Plan):
        raise ValueError(f"plan must be a Plan, such as lw.plans.constant_slices(lw.shape(model), 0.25), not {plan!r}")
    count, width = len(blocks(model)), text_config(model).hidden_size
    if (len(plan.layers), plan.width) != (count, width):
        raise ValueError(
            f"the plan is for {len(plan.layers)} layers of width {plan.width}, the model has {count} of width {width}: "
            "make the plan from lw.shape(model)"
        )
    if plan.by_matrix:
        check_shape(plan, known or shape(model))
