"""Scores of blocks: by layer, by amount of text, against damage."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.figures.common import GREY, legend, line, log_scale, looks_of, panels, thousands


def by_layer(rows: pd.DataFrame) -> list[Axes]:
    """Scores by relative depth, a panel per score, a line per model, intervals as bars.

    Rows: model, score, block, value, low, high. A first block that would squeeze all others into a line is drawn as an
    arrow at the edge with its value in words.
    """
    scores = rows["score"].unique()
    axes = panels(len(scores), 2.3)
    looks = looks_of(rows["model"])
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
            line(ax, depth[inside], lines[inside], looks[model], model)
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
    legend(axes[0], looks)
    return axes


def settling(rows: pd.DataFrame) -> list[Axes]:
    """How many calibration tokens until the order of blocks settles: rank correlation with the final order.

    Rows: model, score, tokens, value, low, high; a panel per score. The dashed line is agreement.
    """
    scores = rows["score"].unique()
    axes = panels(len(scores), 2.2)
    looks = looks_of(rows["model"])
    for ax, score in zip(axes, scores, strict=True):
        for model, lines in rows[rows["score"] == score].groupby("model", sort=False):
            lines = lines.sort_values("tokens")
            ax.fill_between(lines["tokens"], lines["low"], lines["high"], color=looks[model][0], alpha=0.15, lw=0)
            line(ax, lines["tokens"], lines[["value"]], looks[model], model)
        ax.axhline(1, color=GREY, ls="--", lw=1)
        ax.set(xscale="log", title=score, ylabel="rank correlation")
        ax.set_ylim(top=1.03)
        ax.xaxis.set_major_formatter(thousands)
    axes[-1].set_xlabel("calibration tokens")
    legend(axes[0], looks)
    return axes


def against_damage(rows: pd.DataFrame) -> list[Axes]:
    """Measured damage against the rank of a score, a panel per model, blocks by their number.

    Rows of one score and one kind of damage: model, score, kind, block, rank (1 = least important), value, low, high.
    Ranks, because a rank correlation sees nothing else of the score; the damage is in nats per token, on a log scale.
    """
    models = rows["model"].unique()
    axes = panels(len(models), 2.1, sharex=False)
    looks = looks_of(rows["model"])
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
        log_scale(ax)
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
    axes = panels(len(scores), 0.5 + 0.22 * len(kinds) * (len(models) + 0.7))
    looks = looks_of(rows["model"])
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
    legend(axes[0], looks)
    return axes


def given_position(rows: pd.DataFrame) -> list[Axes]:
    """Rank correlations of scores with damage, as they are (filled) and given position (hollow), a panel per model.

    Rows as `claims.knowledge` gives them: model, kind, score, correlation and beyond, both with their low and high.
    """
    models, kinds, scores = (rows[name].unique() for name in ("model", "kind", "score"))
    axes = panels(len(models), 0.4 + 0.19 * len(kinds) * len(scores))
    looks = looks_of(scores)
    for ax, model in zip(axes, models, strict=True):
        ax.axvline(0, color=GREY, lw=1)
        for row in rows[rows["model"] == model].itertuples():
            y = list(kinds).index(row.kind) + 0.8 * ((list(scores).index(row.score) + 0.5) / len(scores) - 0.5)
            colour, marker = looks[row.score]
            ax.plot([row.correlation_low, row.correlation_high], [y - 0.08] * 2, color=colour, lw=1.2, alpha=0.35)
            ax.plot([row.beyond_low, row.beyond_high], [y + 0.08] * 2, color=colour, lw=2.4, alpha=0.6)
            ax.plot(row.correlation, y - 0.08, marker=marker, color=colour, zorder=3)
            ax.plot(row.beyond, y + 0.08, marker=marker, color=colour, mfc="white", zorder=3)
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set(title=model, xlim=(-1.05, 1.05), ylim=(len(kinds) - 0.4, -0.6), xticks=[-1, -0.5, 0, 0.5, 1])
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("rank correlation with damage\n(filled: as it is, hollow: given position)")
    legend(axes[0], looks)
    return axes


def residual_norms(rows: pd.DataFrame) -> list[Axes]:
    """Root mean square per coordinate of what enters each block and of what the block adds, by relative depth.

    Rows: model, block, quantity ("enters" or "added"), value, low, high; a panel per quantity, log scales.
    """
    quantities = rows["quantity"].unique()
    axes = panels(len(quantities), 2.1)
    looks = looks_of(rows["model"])
    for ax, quantity in zip(axes, quantities, strict=True):
        for model, lines in rows[rows["quantity"] == quantity].groupby("model", sort=False):
            lines = lines.sort_values("block")
            line(ax, lines["block"] / max(lines["block"].max(), 1), lines, looks[model], model)
        ax.set(title=quantity, ylabel="RMS")
        log_scale(ax)
    axes[-1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["first", "", "middle", "", "last"])
    axes[-1].set_xlabel("block, by relative depth")
    legend(axes[0], looks)
    return axes


def _limits_without_first(rows) -> tuple[float, float] | None:
    """Limits of y that leave block 0 out, if it lies further from all others than they lie apart; else None."""
    rest, first = rows[rows["block"] > 0], rows.loc[rows["block"] == 0, "value"]
    low, high = rest[["value", "low"]].min().min(), rest[["value", "high"]].max().max()
    gap = max((first - high).max(), (low - first).max())
    if rest.empty or not gap > high - low > 0:
        return None
    margin = 0.08 * (high - low)
    return low - margin, high + margin
