"""Cases of an experiment, and what runs them: compressed to a plan, measured on text or tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from torch import nn

from layerwise import evaluation, stats
from layerwise.backbone.shapes import shape as shape_of
from layerwise.compression.compress import compress
from layerwise.compression.slicing import calibrate
from layerwise.evaluation import tasks
from layerwise.experiments.assembly import Assembly
from layerwise.experiments.known import known
from layerwise.plans import Plan
from layerwise.scores import Measured

# Plans that an assembly compares before they are kept: the dense model is run once more for each so many.
TOGETHER = 24


@dataclass(frozen=True)
class Case:
    """One thing to compute on one model: what it is known by, how to do it, and how the experiment calls it.

    `plan` None leaves the model as it is. `calibration` `[n, length]` is what slicing and quantizers look at;
    `shared` takes the bases of the dense model. `text` `[n, length]` is what quality is measured on. `labels` are the
    experiment's own and decide nothing.
    """

    model: str
    labels: Mapping
    plan: Plan | None = None
    quantizer: Callable | None = None
    calibration: torch.Tensor | None = field(default=None, repr=False)
    shared: bool = False
    text: torch.Tensor | None = field(default=None, repr=False)

    @property
    def by_block(self) -> bool:
        """Whether blocks of several such plans can be quantized once: bits alone, by a quantizer without text.

        If bits differ within a block, or embedding or head have any, matrices are what is quantized once.
        """
        if self.plan is None or not hasattr(self.quantizer, "block"):
            return False
        if self.plan.by_matrix and not hasattr(self.quantizer, "matrix"):
            return False
        layers = self.plan.layers
        return not self.plan.slices and all(layer.keep and layer.outliers is None for layer in layers)

    @property
    def _has_bits(self) -> bool:
        return self.plan.quantizes or any(layer.outliers is not None for layer in self.plan.kept)

    @property
    def reads_text(self) -> bool:
        """Whether slicing or the quantizer looks at calibration text."""
        if self.plan is None:
            return False
        return bool(self.plan.slices) or (self._has_bits and not hasattr(self.quantizer, "block"))

    @property
    def what(self) -> dict:
        """All that decides the compressed model, beside the model: calibration only where something looks at it."""
        if self.plan is None:
            return {"plan": None}
        what: dict = {"plan": self.plan}
        if self._has_bits:
            what["quantizer"] = self.quantizer
        if self.reads_text:
            what["calibration"] = self.calibration
        if self.plan.slices:
            what["bases"] = "dense" if self.shared else "sequential"
        return what

    def sizes(self, shape) -> dict:
        """Average and effective bits, where all blocks have some, and bytes as stored, of the plan."""
        if self.plan is None:
            return {"bytes": shape.total_bytes}
        stored = getattr(self.quantizer, "stored", None)
        found = {"bytes": self.plan.predicted_bytes(shape, stored)}
        if self.plan.average_bits is not None:
            found["average_bits"] = self.plan.average_bits
        if all(layer.quantized for layer in self.plan.kept):
            found["effective_bits"] = self.plan.effective_bits(shape, stored)
        return found


@dataclass(frozen=True)
class Function:
    """A function of `(model, tokens)` to be run on one model, as a `Case` is a plan."""

    model: str
    labels: Mapping
    function: Callable
    tokens: torch.Tensor = field(repr=False)


Outcome = tuple[Case | Function, list[dict] | Exception]  # rows of what was measured, or what went wrong


class Runner:
    """Runs cases on one model, each finished one handed out at once; what cases share is computed once."""

    def __init__(self, model: nn.Module, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.shape = shape_of(model)
        self._reference = self._bases = None

    def values(self, cases: Iterable[Function]) -> Iterator[Outcome]:
        """What functions give, a row per block: `value`, with low and high if measured, or w0, w1, ... by window."""
        yield from self._each(cases, lambda case: _by_block(case.function(self.model, case.tokens)))

    def quality(self, cases: Iterable[Case], windows: str = "loss") -> Iterator[Outcome]:
        """Loss minus the dense model's and divergence from it, in nats: a row per case, w0, w1, ... by window."""
        for by_block, group in _groups(cases):
            if not by_block:
                yield from self._each(group, partial(self._quality, windows=windows))
                continue
            try:
                assembly = self._assembly(group)
            except Exception as error:
                yield from ((case, error) for case in group)
                continue
            for _, same in groupby(group, key=lambda case: id(case.text)):
                same = list(same)
                for start in range(0, len(same), TOGETHER):
                    yield from self._compared(assembly, same[start : start + TOGETHER], windows)

    def answers(self, cases: Iterable[Case], items: int | None, data=None) -> Iterator[Outcome]:
        """What items of a case's `task` are answered: a row per case, in `right` a + or a - for each item."""
        for by_block, group in _groups(cases):
            assembly = None
            for _, same in groupby(group, key=_compressed_alike):  # of one model, one task after the other
                same = list(same)
                try:
                    if by_block:
                        assembly = assembly or self._assembly(group)
                        planned = assembly.as_planned(same[0].plan)
                    else:
                        planned = self._compressed(same[0])
                    with planned as model:
                        yield from self._each(same, partial(self._answers, model, items=items, data=data))
                except Exception as error:
                    yield from ((case, error) for case in same)

    def _answers(self, model, case, items, data):
        found = tasks.answers(model, self.tokenizer, [case.labels["task"]], items, data=data)
        right = "".join("+" if each else "-" for each in found["correct"])
        return [{"right": right} | case.sizes(self.shape)]

    def _assembly(self, group: list[Case]):
        layers = {layer for case in group for layer in case.plan.layers}
        widths = {bits for layer in layers for bits in (layer.bits, *dict(layer.matrices or ()).values())}
        return Assembly(self.model, sorted(widths - {None}), group[0].quantizer)

    def _compared(self, assembly, part: list[Case], windows: str):
        began = time.perf_counter()
        try:
            loss, kl = assembly.compare([case.plan for case in part], part[0].text)
        except Exception as error:
            yield from ((case, error) for case in part)
            return
        seconds = round((time.perf_counter() - began) / len(part), 3)
        for case, *measured in zip(part, loss, kl, strict=True):
            yield case, [_row(*measured, windows) | case.sizes(self.shape) | {"seconds": seconds}]

    def _each(self, cases: Iterable, measure: Callable[..., list[dict]]):
        for case in cases:
            began = time.perf_counter()
            try:
                rows = measure(case)
            except Exception as error:
                yield case, error
                continue
            seconds = round(time.perf_counter() - began, 3)
            yield case, [row | {"seconds": seconds} for row in rows]

    def _quality(self, case: Case, windows: str) -> list[dict]:
        reference = self._dense_reference(case.text)
        with self._compressed(case) as model:
            measured = evaluation.window_differences(model, reference, case.text)
            stored = evaluation.size(model).bytes  # how many outliers there are isn't planned to the last one
        return [_row(*measured, windows) | case.sizes(self.shape) | {"bytes": stored}]

    @contextmanager
    def _compressed(self, case: Case) -> Iterator[nn.Module]:
        if case.plan is None:
            yield self.model
            return
        how = {"quantizer": case.quantizer} if case.quantizer is not None else {}
        tokens = case.calibration
        if case.shared and case.plan.slices:
            how["calibration"] = self._dense_bases(tokens)
            if not case.plan.quantizes:  # nothing else looks at text
                tokens = None
        yield compress(self.model, case.plan, tokens=tokens, **how)

    def _dense_reference(self, tokens):
        """The dense model's predictions of the last text: cases of one come together."""
        if self._reference is None or self._reference[0] is not tokens:
            self._reference = None  # before the new one is made: two may not fit
            self._reference = (tokens, evaluation.Reference(self.model, tokens))
        return self._reference[1]

    def _dense_bases(self, tokens):
        """Bases of the last calibration text: draws come one after the other."""
        if self._bases is None or not torch.equal(self._bases[0], tokens):
            self._bases = None  # before the new ones are made: two may not fit
            self._bases = (tokens, calibrate(self.model, tokens))
        return self._bases[1]


def _compressed_alike(case: Case) -> tuple:
    return id(case.plan), id(case.quantizer), id(case.calibration), case.shared


def _groups(cases: Iterable[Case]) -> Iterator[tuple[bool, list[Case]]]:
    """Cases by quantizer where an assembly does them, and whether that is so."""

    def group(case):
        return "" if not case.by_block else repr(known(case.quantizer))

    for name, found in groupby(sorted(cases, key=group), key=group):
        found = list(found)
        if name:  # neighbours begin alike, so that an assembly runs the beginning once
            found.sort(key=lambda case: (id(case.text), _in_order(case.plan)))
        yield bool(name), found


def _in_order(plan: Plan) -> list[tuple]:
    """What sorts plans so that neighbours begin alike."""
    ends = [(plan.embedding_bits or 99, ()), (plan.head_bits or 99, ())]
    return [ends[0], *((layer.bits or 99, layer.matrices or ()) for layer in plan.layers), ends[1]]


def _by_block(values) -> list[dict]:
    if isinstance(values, Measured):
        columns = pd.DataFrame({"value": values.value, "low": values.low, "high": values.high})
        return columns.rename_axis("block").reset_index().to_dict("records")
    values = np.asarray(values, dtype=float)
    if values.ndim == 1:
        return [{"block": i, "value": float(value)} for i, value in enumerate(values)]
    windows = ({f"w{j}": float(f"{value:.5g}") for j, value in enumerate(row)} for row in values)
    return [{"block": i} | row for i, row in enumerate(windows)]


def _row(loss, kl, windows: str) -> dict:
    """Means with their intervals, and `windows` of them one by one: those of the "loss" or of the "kl"."""
    row, both = {}, {"loss": loss, "kl": kl}
    for name, values in both.items():
        three = [round(float(value), 7) for value in stats.mean(values)]
        row |= dict(zip([name, f"{name}_low", f"{name}_high"], three, strict=True))
    return row | {f"w{i}": round(float(value), 6) for i, value in enumerate(both[windows])}


def filled(row: Mapping, case: Case | Function, shape) -> dict:
    """A row with what follows from its plan and its windows, which tables that were carried over may lack."""
    if isinstance(case, Function):
        return dict(row)
    windows = [value for name, value in row.items() if name[0] == "w" and name[1:].isdigit()]
    lacks_loss = windows and "loss" not in row
    losses = zip(["loss", "loss_low", "loss_high"], stats.mean(windows), strict=True) if lacks_loss else ()
    return (case.sizes(shape) if "bytes" not in row else {}) | dict(losses) | dict(row)
