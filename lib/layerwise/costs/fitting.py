"""`fit`: a model of so many bytes, from a dense one: costs of matrices, the cheapest plan, the model, its quality."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from layerwise.backbone.shapes import shape
from layerwise.backbone.structure import positions
from layerwise.compression.compress import compress
from layerwise.costs.measured import predicted
from layerwise.evaluation.comparison import Comparison, compare, size
from layerwise.plans import Plan, allocate, by_part, number_of_bytes, told_bytes
from layerwise.quantization import quantizer as by_name
from layerwise.text import corpora

WIDTHS = (2, 3, 4, 5, 6, 8)  # of these, what the quantizer has, and None: the model's own dtype
SCORED, HELD_OUT = 8, 16  # windows
LENGTH = 512  # tokens of each, or as many as the model has positions
DENSE = 16  # a floor of so many bits: as they are


@dataclass(frozen=True)
class Report:
    """What `fit` did: bytes, quality on text that it hadn't seen, and what it took."""

    asked: int  # bytes
    context: int  # tokens whose keys and values were to fit into them
    bytes: int  # of the model as stored
    cache_bytes: int  # keys and values of the context
    dense_bytes: int
    bits_per_weight: float  # everything that is stored, over all parameters
    predicted: float  # sum of the costs, nats per token; meant for costs that are predictions of KL
    quality: Comparison | None  # against the dense model on the held-out text; None: it stays dense
    corpus: str
    seconds: Mapping[str, float]  # by step

    def __repr__(self) -> str:
        return "\n".join(f"{name:18} {value}" for name, value in self._lines())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self._lines())
        return f"<table>{rows}</table>"

    def _lines(self) -> list[tuple[str, str]]:
        cache = f", and {told_bytes(self.cache_bytes)} for {self.context} tokens" if self.context else ""
        found = [
            ("asked", told_bytes(self.asked)),
            ("taken", f"{told_bytes(self.bytes)}{cache}"),
            ("dense", told_bytes(self.dense_bytes)),
            ("bits per weight", f"{self.bits_per_weight:.2f}, everything counted"),
        ]
        if self.quality is None:
            return [*found, ("quality", "the dense model fits as it is")]
        q = self.quality
        return [
            *found,
            ("KL from dense", f"{q.kl:.4f} nats per token ({q.kl_low:.4f} to {q.kl_high:.4f}) on {self.corpus}"),
            ("predicted", f"{self.predicted:.4f}"),
            ("loss", f"{q.loss:+.4f} nats per token ({q.loss_low:+.4f} to {q.loss_high:+.4f})"),
            ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())),
        ]


class Fitted(NamedTuple):
    """What `fit` returns."""

    model: nn.Module
    plan: Plan
    report: Report


def fit(
    model: nn.Module,
    tokenizer,
    bytes: int | str,
    quantizer: str | Callable = "rtn",
    cost: Callable = predicted,
    *,
    corpus: str = "wikitext2",
    data=None,
    context: int = 0,
    fused: bool = False,
    floors: Mapping[str, int] | None = None,
    widths: Sequence[int | None] | None = None,
) -> Fitted:
    """A model that takes at most so many bytes, with the bits where they are predicted to count most.

    Parameters
    ----------
    model, tokenizer
        A dense model, as `lw.load` gives it. It stays as it is.
    bytes
        Of the model as stored, embedding, head, scales and zero points counted: a number, or "4 GB".
    quantizer
        A name or a function as for `lw.compress`. One that leaves embedding and head as they are, such as "gptq",
        leaves their bytes out of what can be saved.
    cost
        What predicts the cost of a width, one of `lw.costs` or of your own, with the same signature.
    corpus, data
        What text is drawn from, as for `lw.tokens`: for the costs from its calibration text, to measure quality from
        its test text. A file of your own is a corpus too.
    context, fused, floors
        As for `lw.plans.allocate`.
    widths
        Bits to choose from; by default 2, 3, 4, 5, 6 and 8, as far as the quantizer has them, and None, which leaves a
        matrix as it is.

    Returns
    -------
    model, plan, report
        The model, which `lw.save` stores; its plan; what it takes, and its KL from the dense model on the test text
        with its 95 % interval. Where the dense model fits as it is, it is that one itself.

    Raises
    ------
    ValueError
        For a budget that no plan meets, with the range of those that can be met, and what `lw.plans.allocate`,
        `lw.tokens`, the cost and `lw.compress` raise.
    """
    asked, known, how = number_of_bytes(bytes), shape(model), by_name(quantizer)
    spent, seconds, start = context * known.cache_bytes, {}, time.perf_counter()

    def report(plan: Plan, taken: int, told: float, quality: Comparison | None) -> Report:
        per_weight = 8 * taken / known.total_parameters
        return Report(asked, context, taken, spent, known.total_bytes, per_weight, told, quality, corpus, seconds)

    if known.total_bytes + spent <= asked:
        plan = by_part(known, [None] * len(known.parts))
        return Fitted(model, plan, report(plan, known.total_bytes, 0.0, None))
    choices = _widths(how) if widths is None else list(widths)
    least = dict(floors or {})
    if not hasattr(how, "matrix"):  # it does the matrices of blocks only
        if None not in choices:
            raise ValueError("this quantizer leaves embedding and head as they are: add None to widths")
        least |= {part.path: DENSE for part in known.parts if part.block is None}
    stored = getattr(how, "stored", None)
    widest = by_part(known, [max(choices, key=lambda bits: bits or DENSE)] * len(known.parts))
    room = min(asked, widest.predicted_bytes(known, stored) + spent)
    options = {"fused": fused, "floors": least, "context": context}
    allocate(known, np.zeros((len(known.parts), len(choices))), room, choices, stored, **options)  # or say why not
    calibration, test = _text(model, tokenizer, corpus, data)
    costs = cost(model, calibration, how, choices)
    seconds["costs"], start = time.perf_counter() - start, time.perf_counter()
    plan = allocate(known, costs, room, choices, stored, **options)
    told = sum(row[choices.index(bits)] for row, bits in zip(costs, plan.bits_by_part(known), strict=True))
    seconds["plan"], start = time.perf_counter() - start, time.perf_counter()
    small = compress(model, plan, None if hasattr(how, "block") else calibration, how)
    if (stored_in := getattr(model, "stored_dtype", model.dtype)) != model.dtype:
        # What `lw.save` stores, and what is measured. Rotary frequencies are buffers, and stay in float32.
        for parameter in small.parameters():
            parameter.data = parameter.data.to(stored_in)
    seconds["compressing"], start = time.perf_counter() - start, time.perf_counter()
    taken = size(small).bytes
    if taken + spent > asked:
        raise ValueError(
            f"the model takes {told_bytes(taken)}, more than the plan said: the quantizer stores more than its "
            "`stored` counts, or has none"
        )
    quality = compare(small, model, test)
    seconds["comparing"] = time.perf_counter() - start
    return Fitted(small, plan, report(plan, taken, float(told), quality))


def _widths(quantizer: Callable) -> list[int | None]:
    has = getattr(quantizer, "widths", WIDTHS)
    return [bits for bits in WIDTHS if bits in has] + [None]


def _text(model: nn.Module, tokenizer, corpus: str, data) -> tuple[Tensor, Tensor]:
    """Calibration and test text, `[n, length]` each."""
    length = min(LENGTH, positions(model) or LENGTH)
    scored = "validation" if corpus == "wikitext2" else "calibration"  # copies of it have no training text
    more = {} if data is None else {"data": data}
    return (
        corpora.tokens(tokenizer, corpus, scored, n=SCORED, length=length, **more),
        corpora.tokens(tokenizer, corpus, "test", n=HELD_OUT, length=length, **more),
    )
