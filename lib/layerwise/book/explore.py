"""What the page `book/explore` draws: rows of two committed tables, and figures of them in Vega-Lite.

The figures are written in Altair and drawn in the reader's browser by Vega, whose scripts the package vl-convert has.
All of it becomes scripts of the staged book, and nothing of it is committed: the data and the figures, which are light,
and Vega, which the page loads when it is asked to.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert
from transformers import AutoConfig

import layerwise as lw
from layerwise.claims import against_constant, changes
from layerwise.experiments.rows import window_rows
from layerwise.models.names import PREFIX, place

from . import planner

BUDGETS = planner.MEASURED
GRID = Path("results", "dynamic_slicing", "grid.csv")  # plans of one width
EQUAL_BYTES = GRID.with_name("equal_bytes.csv")
SCRIPT = Path("book", "_static", "explore_data.js")  # of the staged book
VEGA_SCRIPT = SCRIPT.with_name("vega.js")

# What a line is of. The page gives each a colour; one is chosen by the reader.
BUDGET_LINES = ("lw.fit", "uniform", "chosen", "other")
GRID_LINES = ("constant", "chosen", "other")
HEIGHT = 340  # pixels
INTERVAL = {"interval": "95 % interval"}


def dense_bytes(root: Path, model: str) -> int | None:
    """Bytes of the dense model that a table calls `model`; None for one of the Hub that the planner doesn't have."""
    if "/" not in model:
        return lw.shape(AutoConfig.from_pretrained(place(PREFIX + model))).total_bytes
    if folder := place(model):
        return lw.shape(AutoConfig.from_pretrained(folder)).total_bytes
    for fields in planner.configurations(root):
        if fields["name"] == model:
            return lw.shape(AutoConfig.for_model(**fields)).total_bytes
    return None


def budget_rows(root: Path) -> list[dict]:
    """KL at so many bytes, of each model and quantizer: `dense` bytes, `rows` of [way, budget, bytes, kl, low, high].

    Samples are put together as `planner.over_samples` does, at the mean of their bytes. A model whose dense size nobody
    here knows is left out.
    """
    table, by = _table(root / BUDGETS), ["model", "quantizer", "cost", "budget"]
    points = planner.over_samples(table, by).merge(table.groupby(by, as_index=False)["bytes"].mean(), on=by)
    found = []
    for model, quantizer, part in _parts(points, "quantizer", first="rtn"):
        if dense := dense_bytes(root, model):
            rows = [
                [row.cost, row.budget, int(row.bytes), *_short(row.kl, row.low, row.high)]
                for row in part.sort_values(["cost", "budget"]).itertuples()
            ]
            found.append({"model": Path(model).name, "quantizer": quantizer, "dense": dense, "rows": rows})
    return found


def slice_rows(root: Path) -> list[dict]:
    """Perplexity of slices, of each model, and of plans `equal` in width or in bytes: `rows` of [plan, SP, SB, over the
    dense model's, low, high, over constant slices', low, high], SP and SB in %.

    Intervals cover calibration samples and test windows. None stands for the ends of that of a single sample, and for
    constant slices over themselves.
    """
    by = ["model", "plan", "mean", "base"]
    points = []
    for equal, path in (("width", GRID), ("bytes", EQUAL_BYTES)):
        rows = window_rows(_table(root / path))
        both = changes(rows, by, "loss").merge(
            changes(against_constant(rows), by), on=by, how="left", suffixes=("", "_constant")
        )
        points.append(both.assign(equal=equal))
    found = []
    for model, equal, part in _parts(pd.concat(points), "equal", first="width"):
        rows = []
        for row in part.sort_values(["plan", "base", "mean"]).itertuples():
            over = (row.value, row.low, row.high, row.value_constant, row.low_constant, row.high_constant)
            rows.append([row.plan, *_short(100 * row.mean, 100 * row.base, *(1 + change for change in over))])
        found.append({"model": Path(model).name, "equal": equal, "rows": rows})
    return found


def budgets_figure() -> dict:
    """KL against bytes in Vega-Lite. Rows: way, name, line, budget, megabytes, share, kl, low, high, interval."""
    rows = (
        alt.Chart(alt.NamedData("rows"))
        # On a log scale, an interval that reaches zero goes to the bottom.
        .transform_calculate(seen="datum.low > 0 ? datum.low : datum.kl")
        .transform_joinaggregate(bottom="min(seen)")
        .transform_calculate(above="max(datum.low, datum.bottom)")
    )
    return _figure(
        rows,
        x=alt.X(
            "share:Q",
            title="bytes, share of dense",
            axis=alt.Axis(labelExpr="round(100 * datum.value) + ' %'", tickCount=6),
            scale=alt.Scale(zero=False),
        ),
        y="kl",
        low="above",
        axis={"title": "KL, nats", "axis": alt.Axis(format="~g", tickCount=4), "scale": alt.Scale(type="log")},
        lines=BUDGET_LINES,
        hover={"name": "bits by", "budget": "budget, bits", "megabytes": "MB", "share": "of dense", "kl": "KL, nats"},
        description="KL against bytes, a line for each way to choose bits; the table below has the numbers.",
    )


def grid_figure() -> dict:
    """Perplexity against SP in Vega-Lite. Rows: way, name, line, sp, sb, value, low, high, interval."""
    return _figure(
        alt.Chart(alt.NamedData("rows")),
        x=alt.X("sp:Q", title="mean slice SP, %", axis=alt.Axis(tickCount=4), scale=alt.Scale(zero=False, padding=12)),
        y="value",
        low="low",
        axis={"title": "perplexity, times", "scale": alt.Scale(zero=False)},
        lines=GRID_LINES,
        hover={"name": "slices", "sp": "SP, %", "sb": "SB, %", "value": "perplexity, times"},
        description="Perplexity against the mean slice, a line for each slice base; the table below has the numbers.",
    )


def explore_script(root: Path) -> str:
    """The script that gives the page its data and its figures."""
    data = {
        "megabytes": round(len(vega_script()) / 1e6, 1),
        "budgets": {"figure": budgets_figure(), "parts": budget_rows(root)},
        "grid": {"figure": grid_figure(), "parts": slice_rows(root)},
    }
    return f"globalThis.exploreData = {json.dumps(data, separators=(',', ':'))};\n"


def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed of the version that Altair writes for, with the licence that they came with."""
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    licence = importlib.metadata.distribution("vl-convert-python").read_text("licenses/LICENSE")
    made = (
        "Vega, Vega-Lite and Vega-Embed, of the University of Washington Interactive Data Lab, bundled by vl-convert."
    )
    bundle = vl_convert.javascript_bundle(vl_version=version)  # which gives `window` three names
    # In a function, because its many other names are also those of scripts that the theme has.
    return f"/*! {made}\n\n{licence}*/\n(() => {{\n{bundle}\n}})();\n"


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, low_memory=False)


def _parts(points: pd.DataFrame, kind: str, first: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Points by model and another column, pretrained models first, of each the kind `first`."""
    groups = points.groupby(["model", kind])
    for model, value in sorted(
        groups.groups, key=lambda key: ("/" not in key[0], len(key[0]), key[0], key[1] != first, key[1])
    ):
        yield model, value, groups.get_group((model, value))


def _short(*values: float) -> list[float | None]:
    return [None if pd.isna(value) else float(f"{value:.5g}") for value in values]


def _figure(
    rows: alt.Chart,
    *,
    x: alt.X,
    y: str,
    low: str,
    axis: dict,
    lines: tuple[str, ...],
    hover: dict[str, str],
    description: str,
) -> dict:
    """Lines, points with their intervals, and what is said where a reader points; the page gives rows and colours."""
    looks = alt.Scale(domain=list(lines))
    # Lines that are there to compare with have small points and no intervals.
    other, own = alt.datum.line == "other", alt.datum.line != "other"
    drawn = rows.encode(x=x, y=alt.Y(f"{y}:Q", **axis), color=alt.Color("line:N", scale=looks, legend=None))
    shape = alt.Shape("line:N", scale=looks, legend=None)
    # Formatted by the page, so that table and tooltip say the same.
    tooltip = [alt.Tooltip(f"said.{name}:N", title=title) for name, title in (hover | INTERVAL).items()]
    layers = [
        drawn.transform_filter(other).mark_line(strokeWidth=1, point={"size": 12}).encode(detail="way:N"),
        drawn.transform_filter(own)
        .mark_rule(strokeWidth=3, opacity=0.5)
        .encode(y=alt.Y(f"{low}:Q", **axis), y2="high:Q"),
        drawn.transform_filter(own).mark_line(strokeWidth=2).encode(detail="way:N"),
        drawn.transform_filter(own).mark_point(filled=True, size=55, opacity=1).encode(shape=shape),
        drawn.mark_point(filled=True, size=250, opacity=0).encode(tooltip=tooltip),  # as large as a finger
    ]
    chart = alt.layer(*layers).properties(width="container", height=HEIGHT, description=description)
    figure = chart.to_dict()
    del figure["$schema"]  # the address of another host; the page says that it is Vega-Lite
    return figure
