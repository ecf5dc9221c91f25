"""A plan says what happens to each block; it knows no model.

What is unset in a layer stays as it is in the model. Plans over the same blocks are merged with `|`, so that slicing,
bits and pruning are planned apart and done together.
"""

from __future__ import annotations

import inspect
import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from layerwise.plans.storage import Grouped, Stored, tables

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape

FIELDS = ("keep", "width", "bits", "outliers")


@dataclass(frozen=True)
class Layer:
    """One block of a plan; None = unset.

    Raises ValueError for a value that no block can have; a width is checked against the model's by `Plan`.
    """

    keep: bool = True  # False: the block is removed, and its other fields have no effect
    width: int | None = None  # columns of the residual stream that the block reads
    bits: int | None = None  # per weight of its linear layers, 1 to 16
    outliers: float | None = None  # share of its weights that stay unquantized, in [0, 1)

    def __post_init__(self) -> None:
        if not isinstance(self.keep, (bool, np.bool_)):
            raise ValueError(f"keep must be True or False, not {self.keep!r}")
        # numpy's numbers become Python's, so that equal plans look equal and can be written as JSON
        object.__setattr__(self, "keep", bool(self.keep))
        for name, most in (("width", None), ("bits", 16)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value, 1, most))
        if self.outliers is not None:
            number = isinstance(self.outliers, (int, float, np.number)) and not isinstance(self.outliers, bool)
            if not number or not 0 <= self.outliers < 1:
                raise ValueError(f"outliers must be a share, at least 0 and below 1, not {self.outliers!r}")
            object.__setattr__(self, "outliers", float(self.outliers))


@dataclass(frozen=True, repr=False)
class Plan:
    """What happens to each of `L` blocks of a model whose residual stream has the width `width`.

    Raises ValueError if there are no layers, if none is kept, or if a layer or the head is wider than the model.
    """

    layers: tuple[Layer, ...]
    width: int
    head: int | None = None  # columns of the final hidden state that a sliced head reads; None: the head is not sliced

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.width is None:
            raise ValueError("a plan needs the width of the model's residual stream, the D of its shape")
        object.__setattr__(self, "width", whole("width", self.width, 1, None))
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise ValueError(f"layer {i} is {layer!r}: it must be a Layer")
            if layer.width is not None and layer.width > self.width:
                raise ValueError(f"layer {i}: width {layer.width} is more than the model's {self.width}")
        if self.head is not None:
            object.__setattr__(self, "head", whole("head", self.head, 1, None))
            if self.head > self.width:
                raise ValueError(f"the head: width {self.head} is more than the model's {self.width}")
        if not any(layer.keep for layer in self.layers):
            raise ValueError("a plan must keep at least one layer")

    def __or__(self, other: Plan) -> Plan:
        """Both plans in one: unset fields are filled in, and a layer that either removes is removed.

        Raises ValueError where the two set one field to different values, or are for different models.
        """
        if not isinstance(other, Plan):
            return NotImplemented
        mine, others = (len(self.layers), self.width), (len(other.layers), other.width)
        if mine != others:
            raise ValueError(
                f"a plan for {mine[0]} layers of width {mine[1]} can't be merged with one for {others[0]} layers of "
                f"width {others[1]}: both must be for the same model"
            )
        pairs = enumerate(zip(self.layers, other.layers, strict=True))
        if None not in (self.head, other.head) and self.head != other.head:
            raise ValueError(f"one plan sets the head to {self.head}, the other to {other.head}")
        head = other.head if self.head is None else self.head
        return Plan(tuple(_merge(i, a, b) for i, (a, b) in pairs), self.width, head)

    @property
    def kept(self) -> tuple[Layer, ...]:
        """The layers that are not removed."""
        return tuple(layer for layer in self.layers if layer.keep)

    @property
    def mean_slice(self) -> float:
        """Mean over the kept layers of the share of the width that is cut; an unset width is not cut."""
        return float(np.mean([1 - (layer.width or self.width) / self.width for layer in self.kept]))

    @property
    def average_bits(self) -> float | None:
        """Mean bits over the kept layers as arXiv 2406.17415 counts them, where layers weigh alike, and scales and what
        is outside the blocks do not count. None if a kept layer has no bits set, which are then the model's own."""
        bits = [layer.bits for layer in self.kept if layer.bits is not None]
        return float(np.mean(bits)) if len(bits) == len(self.kept) else None

    @property
    def slices(self) -> bool:
        """Whether it slices at all: sets the head or the width of a kept layer, be it to all that there is."""
        return self.head is not None or any(layer.width is not None for layer in self.kept)

    @property
    def stream(self) -> tuple[int, ...]:
        """Widths of the residual stream: what each kept layer reads, in order, then what the head reads."""
        return (*(layer.width or self.width for layer in self.kept), self.head or self.width)

    def predicted_parameters(self, shape: Shape) -> int:
        """Parameters of the model of this shape once it is compressed to the plan, exact for slicing and dropping.

        A sliced model has its norms folded into the matrices that read them (the final norm too where the head is
        sliced), and in every block shortcut matrices that carry the residual stream from one basis to the next. A head
        that is tied to the embedding stays so where that takes fewer parameters (see `storage.tables`). A weight of few
        bits is a parameter like any other.

        Raises ValueError for a shape with other blocks or another width, and if the plan slices what can't be sliced.
        """
        self._check(shape)
        kept = [i for i, layer in enumerate(self.layers) if layer.keep]
        if not self.slices:
            return sum(shape.parameters[i] for i in kept) + shape.other_parameters
        if isinstance(sliced := shape.slicing, str):
            raise ValueError(sliced)
        one, two = tables(sliced.head_rows, self.width, self.stream[0], self.head)
        total = (sliced.embedding_rows - sliced.head_rows) * self.stream[0] + (min(one, two) if shape.tied else two)
        for i, (reads, writes) in zip(kept, pairwise(self.stream), strict=True):
            total += sliced.reads[i] * reads + sliced.writes[i] * writes + sliced.untouched[i]
            # Sequential blocks have a second shortcut, after attention, where the width stays.
            total += reads * writes + (0 if sliced.parallel else reads * reads)
        if self.head is None:
            return total + sliced.final_parameters - sliced.head_rows * self.width
        return total + sliced.head_bias

    def predicted_bytes(self, shape: Shape, stored: Stored | None = None) -> int:
        """Bytes of the model as stored: matrices of few bits by `stored`, all else at the dtype of the shape.

        `stored(bits, rows, columns) -> bytes` of one matrix; a quantizer that stores otherwise than the built-in "rtn"
        (groups of 64, each with a scale of 16 bits and a zero point of 8) has its own, as its attribute `stored`. For
        layers that set outliers, `outliers` is a keyword of it, as in `Outliers().stored`.

        Raises ValueError as `predicted_parameters`, and for outliers that `stored` doesn't count.
        """
        weights, taken = self._quantized(shape, stored)
        return (self.predicted_parameters(shape) - weights) * shape.bytes_per_parameter + taken

    def effective_bits(self, shape: Shape, stored: Stored | None = None) -> float:
        """Bits per weight in the matrices of the kept blocks as stored, scales and zero points counted, by `stored`.

        Blocks without bits count at the dtype of the shape. Arguments and errors as in `predicted_bytes`.
        """
        weights, taken = self._quantized(shape, stored)
        sizes = (self._sizes(shape, i) for i, layer in enumerate(self.layers) if layer.keep)
        total = sum(rows * columns for block in sizes for rows, columns in block)
        return 8 * (taken + (total - weights) * shape.bytes_per_parameter) / total

    def _quantized(self, shape: Shape, stored: Stored | None) -> tuple[int, int]:
        """How many weights get few bits, and the bytes that they then take."""
        self._check(shape)
        stored, weights, taken = stored or Grouped(), 0, 0
        counted = "outliers" in inspect.signature(stored).parameters
        if any(layer.outliers for layer in self.kept) and not counted:
            raise ValueError("the plan keeps outliers: give `stored` of their quantizer, lw.quantization.Outliers()")
        for i, layer in enumerate(self.layers):
            if layer.keep and layer.bits is not None:
                sizes = self._sizes(shape, i)
                weights += sum(rows * columns for rows, columns in sizes)
                more = {"outliers": layer.outliers} if counted and layer.outliers is not None else {}
                taken += sum(stored(layer.bits, rows, columns, **more) for rows, columns in sizes)
        return weights, taken

    def _sizes(self, shape: Shape, i: int) -> list[tuple[int, int]]:
        """Rows and columns of the matrices of block i, which is kept, at the widths of the plan."""
        if not self.slices:  # the model may have been sliced before
            return [(matrix.rows, matrix.columns) for matrix in shape.matrices[i]]
        at = sum(layer.keep for layer in self.layers[:i])
        reads, writes = self.stream[at : at + 2]
        widths: dict[str | None, tuple[int | None, int | None]]
        widths = {"read": (None, reads), "written": (reads, None), "written at the end": (writes, None)}
        sizes = [(widths.get(matrix.stream, (None, None)), matrix) for matrix in shape.matrices[i]]
        return [(rows or matrix.rows, columns or matrix.columns) for (rows, columns), matrix in sizes]

    def _check(self, shape: Shape) -> None:
        if (shape.L, shape.D) != (len(self.layers), self.width):
            raise ValueError(
                f"a plan for {len(self.layers)} layers of width {self.width} says nothing of a model with {shape.L} of "
                f"width {shape.D}"
            )

    def to_json(self) -> str:
        """The plan as text for a file, one line per layer with the fields it sets, so that a diff compares plans."""
        lines = ",\n".join(f"    {json.dumps(_set(layer))}" for layer in self.layers)
        head = "" if self.head is None else f'  "head": {self.head},\n'
        return f'{{\n  "width": {self.width},\n{head}  "layers": [\n{lines}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote. Raises ValueError for anything else, fields with unknown names included."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a plan must be JSON: {error}") from error
        _check_names(content, ("width", "head", "layers"), "a plan", required=("width", "layers"))
        if not isinstance(content["layers"], list):
            raise ValueError('"layers" of a plan must be a list')
        layers = []
        for i, layer in enumerate(content["layers"]):
            _check_names(layer, FIELDS, f"layer {i}")
            try:
                layers.append(Layer(**layer))
            except ValueError as error:
                raise ValueError(f"layer {i}: {error}") from error
        return cls(tuple(layers), content["width"], content.get("head"))

    def __repr__(self) -> str:
        names, rows = self._table()
        table = [names, *rows]
        sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in table]
        return "\n".join([self._summary(), *lines])

    def _repr_html_(self) -> str:
        names, rows = self._table()
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        summary = f"<caption>{escape(self._summary())}</caption>"
        return f"<table>{summary}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _summary(self) -> str:
        bits = "" if self.average_bits is None else f", average bits {self.average_bits:.2f}"
        head = "" if self.head is None else f", head {self.head}"
        removed = len(self.layers) - len(self.kept)
        return (
            f"Plan for {len(self.layers)} layers of width {self.width}: mean slice {self.mean_slice:.1%}{head}{bits}"
            f"{f', {removed} removed' if removed else ''}"
        )

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and cells: the fields that some layer sets."""
        given = [_set(layer) for layer in self.layers]
        names = [name for name in FIELDS if any(name in layer for layer in given)]
        rows = [[layer.get(name, "") for name in names] for layer in given]
        cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        return ["layer", *names], [[str(i), *row] for i, row in enumerate(cells)]


def whole(name: str, value: Any, low: int, high: int | None) -> int:
    """`value` as an int; raises ValueError unless it is a whole number from `low` to `high`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if whole < low or (high is not None and whole > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, not {whole}")
    return whole


def _set(layer: Layer) -> dict[str, Any]:
    """The fields of a layer that are not at their default."""
    return {field.name: value for field in fields(layer) if (value := getattr(layer, field.name)) != field.default}


def _merge(i: int, a: Layer, b: Layer) -> Layer:
    mine, others = _set(a), _set(b)
    for name in mine.keys() & others.keys():
        if mine[name] != others[name]:
            raise ValueError(f"layer {i}: one plan sets {name} to {mine[name]}, the other to {others[name]}")
    return Layer(**mine | others)


def _check_names(content: object, names: Iterable[str], what: str, required: Iterable[str] = ()) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be an object with {', '.join(names)}, not {content!r}")
    if unknown := sorted(content.keys() - set(names)):
        raise ValueError(f"{what} has no field {', '.join(map(repr, unknown))}; its fields are {', '.join(names)}")
    if missing := [name for name in required if name not in content]:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
