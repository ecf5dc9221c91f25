"""Rows -> matplotlib axes. Every figure takes a tidy table, one row a mark, and returns the axes it drew.

Drawn for a column of 4.8 inches: shown as they are on a wide screen, and still readable when a phone shrinks them to
330 pixels. Panels stand below each other, never side by side. Columns that mean the same have one name everywhere:
`model`, `score`, `block`, `kind`, `value` with `low` and `high` (95 %). Models keep the order and the colour of their
first appearance in a table.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

WIDTH = 4.8  # inches

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow and sky blue are too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b6b6b"


def style() -> None:
    """Set matplotlib's defaults for this process: type that a phone can show, few lines, an opaque light card."""
    plt.rc("figure", facecolor="white")
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", facecolor="white")
    plt.rc("font", size=10.5)
    plt.rc("axes", titlesize=10.5, titlelocation="left", titleweight="bold", labelsize=10.5)
    plt.rc("axes", edgecolor=GREY, grid=True, axisbelow=True)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", color="#e4e4e4", linewidth=0.8)
    plt.rc(("xtick", "ytick"), color=GREY, labelcolor="black", labelsize=10)
    plt.rc("legend", frameon=False, fontsize=10, handletextpad=0.4, columnspacing=1.2)
    plt.rc("lines", linewidth=1.6, markersize=4.5)
    plt.rc("errorbar", capsize=0)
    plt.rc("svg", hashsalt="layerwise")  # the same figure is the same file


def by_layer(rows: pd.DataFrame) -> list[Axes]:
    """Scores by relative depth, a panel per score, a line per model, intervals as bars.

    Rows: model, score, block, value, low, high. A first block that would squeeze all others into a line is drawn as an
    arrow at the edge with its value in words.
    """
    scores = rows["score"].unique()
    axes = _panels(len(scores), 2.3)
    looks = _looks(rows["model"])
    for ax, score in zip(axes, scores, strict=True):
        chosen = rows[rows["score"] == score]
        limits = _limits_without_first(chosen)
        outside = []
        for model, lines in chosen.groupby("model", sort=False):
            lines = lines.sort_values("block")
            depth = lines["block"].to_numpy() / max(lines["block"].max(), 1)
            inside = np.ones(len(lines), bool)
            first = lines["value"].iloc[0]
            if limits and not limits[0] <= first <= limits[1]:
                inside[0] = False
                outside.append((first, f"{first:.2f} ({model})"))
                up = bool(first > limits[1])
                ax.plot(0, limits[up], marker="^" if up else "v", color=GREY, markersize=7, clip_on=False, zorder=3)
            _line(ax, depth[inside], lines[inside], looks[model], model)
        if limits:
            ax.set_ylim(limits)
        ax.set_title(f"{score}\n" if outside else score)
        if outside:
            named = ", ".join(text for _, text in outside)
            # Many lines have no room for a number each: then the range has to do.
            named = named if len(outside) <= 3 else f"{min(outside)[0]:.2f} to {max(outside)[0]:.2f}"
            where = {"xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points"}
            ax.annotate(f"block 0: {named}", (0, 1), **where, fontsize=9, color=GREY)
        ax.set_ylabel("importance")
    axes[-1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["first", "", "middle", "", "last"])
    axes[-1].set_xlabel("block, by relative depth")
    _legend(axes[0], looks)
    return axes


def settling(rows: pd.DataFrame) -> list[Axes]:
    """How many calibration tokens until the order of blocks settles: rank correlation with the final order.

    Rows: model, score, tokens, value, low, high; a panel per score. The dashed line is agreement.
    """
    scores = rows["score"].unique()
    axes = _panels(len(scores), 2.2)
    looks = _looks(rows["model"])
    for ax, score in zip(axes, scores, strict=True):
        for model, lines in rows[rows["score"] == score].groupby("model", sort=False):
            lines = lines.sort_values("tokens")
            ax.fill_between(lines["tokens"], lines["low"], lines["high"], color=looks[model][0], alpha=0.15, lw=0)
            _line(ax, lines["tokens"], lines[["value"]], looks[model], model)
        ax.axhline(1, color=GREY, ls="--", lw=1)
        ax.set(xscale="log", title=score, ylabel="rank correlation")
        ax.set_ylim(top=1.03)
        ax.xaxis.set_major_formatter(_thousands)
    axes[-1].set_xlabel("calibration tokens")
    _legend(axes[0], looks)
    return axes


def against_damage(rows: pd.DataFrame) -> list[Axes]:
    """Measured damage against the rank of a score, a panel per model, blocks by their number.

    Rows of one score and one kind of damage: model, score, kind, block, rank (1 = least important), value, low, high.
    Ranks, because a rank correlation sees nothing else of the score; the damage is in nats per token, on a log scale.
    """
    models = rows["model"].unique()
    axes = _panels(len(models), 2.1, sharex=False)
    looks = _looks(rows["model"])
    for ax, model in zip(axes, models, strict=True):
        lines = rows[rows["model"] == model]
        colour, _ = looks[model]
        # An interval that reaches below 0 has no place on a log scale: its bar ends at a hundredth of the value.
        low = np.maximum(lines["low"], lines["value"] / 100)
        ax.vlines(lines["rank"], low, lines["high"], color=colour, alpha=0.35, lw=5)
        ax.plot(lines["rank"], lines["value"], ls="", marker="o", markersize=14, mfc="white", mec=colour)
        for row in lines.itertuples():
            place = {"ha": "center", "va": "center_baseline", "fontsize": 8.5}
            ax.annotate(str(row.block), (row.rank, row.value), **place, color=colour)
        ax.set(title=model, ylabel="KL, nats")
        ax.margins(x=0.06, y=0.18)
        _log(ax)
        ax.set_xticks([lines["rank"].min(), lines["rank"].max()], ["least", "most"])
    axes[-1].set_xlabel(f"importance by {rows['score'].iloc[0]}, rank")
    axes[0].figure.suptitle(f"Damage: {rows['kind'].iloc[0]}", x=0.02, ha="left", fontsize=10.5)
    return axes


def correlations(rows: pd.DataFrame) -> list[Axes]:
    """Rank correlations of scores with damage, a panel per score, with block 0 (filled) and without it (hollow).

    Rows: model, score, kind, blocks ("all" or "without block 0"), value, low, high.
    """
    scores = rows["score"].unique()
    kinds, models = rows["kind"].unique(), rows["model"].unique()
    axes = _panels(len(scores), 0.5 + 0.22 * len(kinds) * (len(models) + 0.7))
    looks = _looks(rows["model"])
    for ax, score in zip(axes, scores, strict=True):
        ax.axvline(0, color=GREY, lw=1)
        for k, kind in enumerate(kinds):
            for m, model in enumerate(models):
                here = (rows["score"] == score) & (rows["kind"] == kind) & (rows["model"] == model)
                for row in rows[here].itertuples():
                    full = row.blocks == "all"
                    y = k * (len(models) + 0.7) + m + (-0.17 if full else 0.17)
                    colour, marker = looks[model]
                    ax.plot([row.low, row.high], [y, y], color=colour, lw=2 if full else 1.2, alpha=0.6)
                    ax.plot(row.value, y, marker=marker, color=colour, mfc=colour if full else "white", zorder=3)
        centres = [k * (len(models) + 0.7) + (len(models) - 1) / 2 for k in range(len(kinds))]
        ax.set_yticks(centres, kinds)
        ax.set(title=score, xlim=(-1.05, 1.05), xticks=[-1, -0.5, 0, 0.5, 1])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("rank correlation with damage\n(filled: all blocks, hollow: without block 0)")
    _legend(axes[0], looks)
    return axes


def residual_norms(rows: pd.DataFrame) -> list[Axes]:
    """Root mean square per coordinate of what enters each block and of what the block adds, by relative depth.

    Rows: model, block, quantity ("enters" or "added"), value, low, high; a panel per quantity, log scales.
    """
    quantities = rows["quantity"].unique()
    axes = _panels(len(quantities), 2.1)
    looks = _looks(rows["model"])
    for ax, quantity in zip(axes, quantities, strict=True):
        for model, lines in rows[rows["quantity"] == quantity].groupby("model", sort=False):
            lines = lines.sort_values("block")
            _line(ax, lines["block"] / max(lines["block"].max(), 1), lines, looks[model], model)
        ax.set(title=quantity, ylabel="RMS")
        _log(ax)
    axes[-1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["first", "", "middle", "", "last"])
    axes[-1].set_xlabel("block, by relative depth")
    _legend(axes[0], looks)
    return axes


def loss_curves(rows: pd.DataFrame, floor: float) -> list[Axes]:
    """Test loss over training, a line per model, above the entropy of the text itself.

    Rows: model, tokens, test_loss. `floor` in nats per token: no model can stay below it.
    """
    (ax,) = _panels(1, 3.0)
    looks = _looks(rows["model"])
    ends = {}
    for model, lines in rows.dropna(subset="test_loss").groupby("model", sort=False):
        lines = lines.sort_values("tokens")
        ax.plot(lines["tokens"] / 1e6, lines["test_loss"], color=looks[model][0])
        ends[model] = lines["test_loss"].iloc[-1]
    ax.axhline(floor, color=GREY, ls="--", lw=1)
    top = np.quantile(rows["test_loss"].dropna(), 0.9)
    reach = max([*ends.values(), top]) - floor
    ax.set_ylim(floor - 0.12 * reach, floor + 1.1 * reach)
    ax.set(xlabel="training tokens, millions", ylabel="test loss, nats per token")
    ax.set_xlim(left=0)
    _label_ends(ax, ends | {"floor": floor}, {**{m: c for m, (c, _) in looks.items()}, "floor": GREY})
    return [ax]


def accuracies(rows: pd.DataFrame) -> list[Axes]:
    """Accuracy by task, a mark per model with two standard errors to each side; the grey bar is chance.

    Rows as `lw.accuracy` gives them, plus model: model, task, value, stderr, chance.
    """
    tasks, models = rows["task"].unique(), rows["model"].unique()
    (ax,) = _panels(1, 0.9 + 0.2 * len(tasks) * (len(models) + 0.8))
    looks = _looks(rows["model"])
    for k, task in enumerate(tasks):
        start = k * (len(models) + 0.8)
        here = rows[rows["task"] == task]
        chance = here["chance"].dropna()
        if len(chance):
            ax.barh(start + (len(models) - 1) / 2, 100 * chance.iloc[0], len(models), color="#e0e0e0", zorder=1)
        for m, model in enumerate(models):
            for row in here[here["model"] == model].itertuples():
                colour, marker = looks[model]
                ax.errorbar(100 * row.value, start + m, xerr=200 * row.stderr, color=colour, marker=marker)
    centres = [k * (len(models) + 0.8) + (len(models) - 1) / 2 for k in range(len(tasks))]
    ax.set_yticks(centres, [task.removeprefix("world_") for task in tasks])
    ax.set(xlim=(0, 101), xlabel="accuracy, %")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    _legend(ax, looks, [plt.Rectangle((0, 0), 1, 1, color="#e0e0e0", label="chance")])
    return [ax]


def _panels(count, height, sharex=True) -> list[Axes]:
    figure, axes = plt.subplots(count, 1, figsize=(WIDTH, 0.5 + height * count), sharex=sharex, squeeze=False)
    figure.align_ylabels()
    return list(axes[:, 0])


def _looks(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model."""
    names = list(dict.fromkeys(models))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _line(ax, x, lines, look, label):
    colour, marker = look
    if "low" in lines:
        ax.vlines(x, lines["low"], lines["high"], color=colour, alpha=0.45, lw=3)
    ax.plot(x, lines["value"], color=colour, marker=marker, label=label)


def _limits_without_first(rows) -> tuple[float, float] | None:
    """Limits of y that leave block 0 out, if it lies further from all others than they lie apart; else None."""
    rest, first = rows[rows["block"] > 0], rows.loc[rows["block"] == 0, "value"]
    low, high = rest[["value", "low"]].min().min(), rest[["value", "high"]].max().max()
    gap = max((first - high).max(), (low - first).max())
    if rest.empty or not gap > high - low > 0:
        return None
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _log(ax):
    """Log scale for y with plain numbers on it, also where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _legend(ax, looks, extra=()):
    """One line of names above the first panel; a table of one model needs none, its caption names it."""
    handles = [plt.Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in looks.items()]
    handles = [*(handles if len(handles) > 1 else []), *extra]
    if not handles:
        return
    ax.figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), handlelength=1.4)


def _label_ends(ax, ends, colours):
    """Names at the right end of lines, pushed apart where lines end close together."""
    bottom, top = ax.get_ylim()
    gap = 0.075 * (top - bottom)
    y = -np.inf
    for name, value in sorted(ends.items(), key=lambda item: item[1]):
        y = max(value, y + gap)
        ax.annotate(
            name, (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", color=colours[name], annotation_clip=False,
        )  # fmt: skip


def _thousands(value, _):
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
