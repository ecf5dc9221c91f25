"""Plans as text: JSON for files, and the table that a notebook shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from layerwise.plans.layer import Layer

if TYPE_CHECKING:
    from layerwise.plans.plan import Plan

FIELDS = ("keep", "width", "bits", "outliers", "matrices")  # of a layer, in the order of a table's columns
ENDS = ("head", "embedding_bits", "head_bits")  # of a plan: what it says of what is outside of the blocks


def json_of(plan: Plan) -> str:
    """What `Plan.to_json` returns. What is unset isn't written: results are known by this text."""
    lines = ",\n".join(f"    {json.dumps(layer.given)}" for layer in plan.layers)
    ends = "".join(f'  "{name}": {value},\n' for name in ENDS if (value := getattr(plan, name)) is not None)
    return f'{{\n  "width": {plan.width},\n{ends}  "layers": [\n{lines}\n  ]\n}}\n'


def fields_in(text: str) -> dict[str, Any]:
    """The fields of a plan that `json_of` wrote, its layers as such. Raises ValueError for anything else."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a plan must be JSON: {error}") from error
    _check_names(content, ("width", "head", "layers", *ENDS[1:]), "a plan", required=("width", "layers"))
    if not isinstance(content["layers"], list):
        raise ValueError('"layers" of a plan must be a list')
    layers = []
    for i, layer in enumerate(content["layers"]):
        _check_names(layer, FIELDS, f"layer {i}")
        try:
            layers.append(Layer(**layer))
        except ValueError as error:
            raise ValueError(f"layer {i}: {error}") from error
    return content | {"layers": tuple(layers)}


def plain_table(plan: Plan) -> str:
    """The plan for a terminal: a line that sums it up, then a line per layer."""
    names, rows = _cells(plan)
    table = [names, *rows]
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in table]
    return "\n".join([_summary(plan), *lines])


def html_table(plan: Plan) -> str:
    """The plan for a notebook."""
    names, rows = _cells(plan)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    summary = f"<caption>{escape(_summary(plan))}</caption>"
    return f"<table>{summary}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _summary(plan: Plan) -> str:
    parts = [f"mean slice {plan.mean_slice:.1%}"]
    parts += [f"head {plan.head}"] if plan.head is not None else []
    parts += [f"average bits {plan.average_bits:.2f}"] if plan.average_bits is not None else []
    parts += [f"{name} {bits} bits" for name, bits in _ends(plan) if bits is not None]
    removed = len(plan.layers) - len(plan.kept)
    parts += [f"{removed} removed"] if removed else []
    return f"Plan for {len(plan.layers)} layers of width {plan.width}: {', '.join(parts)}"


def _ends(plan: Plan) -> tuple[tuple[str, int | None], ...]:
    return ("embedding", plan.embedding_bits), ("head", plan.head_bits)


def _cells(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: the fields that some layer sets."""
    given = [layer.given for layer in plan.layers]
    names = [name for name in FIELDS if any(name in layer for layer in given)]
    rows = [[_cell(layer.get(name, "")) for name in names] for layer in given]
    return ["layer", *names], [[str(i), *row] for i, row in enumerate(rows)]


def _cell(value: Any) -> str:
    if isinstance(value, dict):  # of matrices: their paths would take columns that nobody reads
        widths = list(value.values())
        return f"{sum(widths) / len(widths):.2f} in {len(widths)} ({min(widths)} to {max(widths)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_names(content: object, names: Iterable[str], what: str, required: Iterable[str] = ()) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be an object with {', '.join(names)}, not {content!r}")
    if unknown := sorted(content.keys() - set(names)):
        raise ValueError(f"{what} has no field {', '.join(map(repr, unknown))}; its fields are {', '.join(names)}")
    if missing := [name for name in required if name not in content]:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
