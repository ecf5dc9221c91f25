"""How much memory a model of some configuration needs, told without it: nothing is loaded, nothing is computed.

The functions that this is about run themselves, on torch's fake tensors, which have sizes and no contents; what is
alive is counted as in `timing`. So the answer follows the code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AutoModelForCausalLM, PretrainedConfig

from layerwise import scores
from layerwise.backbone import passes
from layerwise.backbone.structure import SLICED, check_decoder, positions
from layerwise.compression.compress import compress
from layerwise.evaluation import predictions
from layerwise.evaluation.timing import Alive, generate
from layerwise.models.loading import configuration
from layerwise.plans import Plan
from layerwise.quantization import quantizer as by_name


class Memory(NamedTuple):
    """Bytes in use at once at the most, lower = better; each counts the model that the work is done on.

    Not counted: the process and its libraries (with CUDA half a gigabyte or more), what an allocator can't use between
    tensors, and what single operators use for themselves.
    """

    weights: int  # of the dense model
    scoring: int  # a score that needs text, such as LIM
    compressing: int | None  # slicing or quantizing or both, as the plan says; None without a plan
    compressed: int  # weights of the result; those of the dense model without a plan
    evaluating: int  # perplexity of the result
    serving: int  # the result reads a prompt of `length` tokens and goes on from it with the KV cache


def memory(
    config: PretrainedConfig | str,
    plan: Plan | None = None,
    quantizer: str | Callable = "rtn",
    windows: int = 128,
    length: int = 2048,
    batch: int = 8,
    inplace: bool = True,
    dtype: torch.dtype | None = None,
) -> Memory:
    """What a dense model of `config`, a configuration or a name as `lw.load` takes it, needs on a single device.

    It takes seconds, for large models up to a minute.

    Parameters
    ----------
    config
        A configuration, or a name, of which only the configuration is read.
    plan, quantizer, batch, inplace
        As for `lw.compress`.
    windows, length
        Of calibration and evaluation text, `length` in tokens.
    dtype
        The configuration's own unless it is given, and bfloat16 if it has none.

    Raises
    ------
    UnknownStructure, UnsupportedArchitecture
        For what is no decoder-only model, and for slices of what can't be sliced. Names raise what `lw.load` does.
    ValueError
        For the configuration of a compressed model, for what `lw.compress` refuses, for windows that leave no position
        to go on with, and for bits by a quantizer that looks at text ("gptq", "outliers"): what these need depends on
        it.
    """
    if not isinstance(config, PretrainedConfig):
        config = configuration(config)
    check_decoder(config)
    if config.model_type.startswith(SLICED) or getattr(config, "quantization_config", None):
        raise ValueError("this model is compressed already: give the configuration of the dense one, and the plan")
    for name, number in {"windows": windows, "length": length, "batch": batch}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    most = positions(config)
    if most is not None and length >= most:
        raise ValueError(
            f"length {length} and one more token need {length + 1} positions, and the model has {most}: give a "
            "smaller length"
        )
    bits = plan is not None and plan.quantizes
    if bits and getattr(by_name(quantizer), "needs_tokens", False):
        raise ValueError(f"what {quantizer} needs depends on the text that it looks at: take rtn, quanto or hqq")
    wanted = dtype or config.dtype or torch.bfloat16

    def told(windows):
        return _told(config, wanted, plan, quantizer, torch.Size([windows, length]), batch, inplace)

    if plan is None or bits or not plan.slices or windows <= 3 * batch:
        return told(windows)
    # Slicing keeps the hidden states of all windows from its beginning to its end, so that each batch adds the same.
    two, three = told(2 * batch), told(3 * batch)
    more = (three.compressing - two.compressing) * (windows - 3 * batch) // batch
    return three._replace(compressing=three.compressing + more)


def _told(config, dtype, plan, quantizer, size, batch, inplace) -> Memory:
    """What `memory` returns, of calibration tokens of this size, by a run of all the work."""
    with _faked() as alive:

        def peak(work):
            alive.peak = alive.now
            work()
            return alive.peak

        few = torch.zeros(batch, size[1], dtype=torch.long)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval().requires_grad_(False)
        dense = model.get_memory_footprint()
        scoring = peak(lambda: scores.statistics(model, few, batch=batch))
        compressing = None
        if plan is not None:
            alive.peak = alive.now
            text = torch.zeros(size, dtype=torch.long) if plan.slices else None
            model = compress(model, plan, text, quantizer, batch=batch, inplace=inplace)
            compressing, text = alive.peak, None
        evaluating = peak(lambda: _evaluate(model, few))
        serving = peak(lambda: generate(model, few[:1], 1))
        return Memory(dense, scoring, compressing, model.get_memory_footprint(), evaluating, serving)


def _evaluate(model, tokens: Tensor) -> None:
    """What `evaluation.window_losses` does with a batch: it looks at one window at a time, so the first will do."""
    with torch.inference_mode():
        windows = predictions.windows(passes.Head(model), passes.run_trunk(model, tokens))
        predictions.losses(windows[:1], tokens[:1])


@contextmanager
def _faked() -> Iterator[Alive]:
    """Tensors without contents, and a count of what they would take."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        # torch's own way of copying a tensor reads its memory, of which a fake one has none.
        mock.patch.object(FakeTensor, "__deepcopy__", _copied, create=True),
        # For fake tensors transformers writes out masks that it does without for real ones.
        mock.patch("transformers.masking_utils.is_tracing", lambda tensor=None: False),
        # For fake tensors torch's grouped product, of a mixture of experts, has bfloat16 only.
        mock.patch("transformers.integrations.moe._can_use_grouped_mm", lambda *_: False),
        Alive() as alive,
        _Answers(),
    ):
        yield alive


def _copied(tensor: Tensor, memo: dict) -> Tensor:
    return memo.setdefault(id(tensor), tensor.clone())


class _Answers(TorchFunctionMode):
    """Answers what code asks of a fake tensor's contents as if all were well: all of them are finite, none is out of
    range, and a number is 1."""

    def __init__(self):
        super().__init__()
        self._any = WeakTensorKeyDictionary()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.__bool__, Tensor.item) and args[0].dtype == torch.bool:
            return args[0] not in self._any
        if func in (Tensor.item, Tensor.__int__):
            return 1
        if func is Tensor.__float__:
            return 1.0
        if func in (Tensor.numpy, Tensor.tolist):
            contents = np.ones(tuple(args[0].shape))
            return contents if func is Tensor.numpy else contents.tolist()
        if func is Tensor.nonzero:
            return args[0].new_empty((0, args[0].dim()), dtype=torch.long)
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any):
            self._any[result] = True
        return result
