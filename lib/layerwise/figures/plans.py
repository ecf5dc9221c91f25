"""Plans and what they cost: widths by block, the grid of both shares, rivals of one budget, curves over budgets."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm

from layerwise.figures.common import COLOURS, GREY, legend, line, looks_of, panels

_BETTER_IS_BLUE = "RdBu_r"  # ColorBrewer's, which colour-blind readers can tell apart


def plan_bars(rows: pd.DataFrame) -> list[Axes]:
    """Width that each block keeps, a panel per plan, what is cut hatched above it; the dashed line is the mean.

    Rows: plan, block, slice (share of the width that is cut).
    """
    plans = rows["plan"].unique()
    axes = panels(len(plans), 1.15)
    for ax, plan in zip(axes, plans, strict=True):
        lines = rows[rows["plan"] == plan]
        kept = 100 * (1 - lines["slice"])
        ax.bar(lines["block"], kept, width=0.8, color=COLOURS[0])
        ax.bar(
            lines["block"], 100 - kept, bottom=kept, width=0.8, color="white", edgecolor="#b8b8b8", hatch="////", lw=0
        )
        ax.axhline(kept.mean(), color="black", ls="--", lw=1)
        ax.set(title=plan, ylim=(0, 100), yticks=[0, 50, 100])
        ax.grid(axis="x", visible=False)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("block")
    axes[0].figure.supylabel("width kept, %", fontsize=10.5)
    return axes


def grid(rows: pd.DataFrame) -> list[Axes]:
    """The quality of dynamic against constant slicing by mean slice SP and slice base SB, a panel per model.

    Rows: model, mean, base, value, low, high; the value is a relative change, such as that of perplexity: -0.05 is 5 %
    better, and blue. A dot marks the cells whose interval excludes 0. Numbers stand in the cells where they have room;
    colours stop at what nine tenths of the cells stay below.
    """
    models = rows["model"].unique()
    means, bases = (np.sort(rows[name].unique()) for name in ("mean", "base"))
    numbered = len(means) <= 9 and len(bases) <= 12
    axes = panels(len(models), 0.6 + (0.23 if numbered else 0.14) * len(bases))
    shown = 100 * rows["value"].abs().quantile(0.9) or 1.0
    norm = CenteredNorm(0, shown)
    for ax, model in zip(axes, models, strict=True):
        cells = rows[rows["model"] == model].pivot(index="base", columns="mean").reindex(bases)
        values, low, high = (100 * cells[name].reindex(columns=means).to_numpy() for name in ("value", "low", "high"))
        mesh = ax.pcolormesh(values, cmap=_BETTER_IS_BLUE, norm=norm, edgecolors="white", lw=1)
        for y, x in np.argwhere(np.isfinite(values)):
            dark = abs(values[y, x]) > 0.6 * shown
            certain = low[y, x] > 0 or high[y, x] < 0
            if numbered:
                text = f"{values[y, x]:+.1f}".replace("-", "−")
                ax.text(x + 0.5, y + 0.47, text, ha="center", va="center_baseline", fontsize=9, color=_ink(dark))
            if certain:
                place = (x + 0.92, y + 0.5) if numbered else (x + 0.5, y + 0.5)
                ax.plot(*place, marker="o", markersize=3, color=_ink(dark))
        ax.set(title=model, ylabel="base SB, %")
        ax.set_xticks(np.arange(len(means)) + 0.5, [f"{100 * mean:g}" for mean in means])
        few = slice(None, None, 1 + (len(bases) - 1) // 12)
        ax.set_yticks((np.arange(len(bases)) + 0.5)[few], [f"{100 * base:g}" for base in bases[few]])
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    axes[-1].set_xlabel("mean slice SP, %")
    bar = axes[0].figure.colorbar(mesh, ax=axes, orientation="horizontal", extend="both", aspect=40, pad=0.02)
    bar.set_label("against constant slicing, % (blue: better)")
    bar.outline.set_visible(False)
    return axes


def rivals(rows: pd.DataFrame) -> list[Axes]:
    """Plans of one budget against constant slicing, a panel per model; the dashed line is constant slicing.

    Rows: model, plan, value, low, high; the value is a relative change: -0.05 is 5 % better. A plan with several rows
    in a model (its draws) is drawn as a dot per draw, and as a grey band from the best to the worst of them. With a
    column kind, colours tell kinds apart, otherwise models.
    """
    models, plans = rows["model"].unique(), rows["plan"].unique()
    axes = panels(len(models), 0.4 + 0.24 * len(plans))
    group = "kind" if "kind" in rows else "model"
    looks = looks_of(rows[group])
    for ax, model in zip(axes, models, strict=True):
        ax.axvline(0, color="black", ls="--", lw=1)
        for y, plan in enumerate(plans):
            lines = rows[(rows["model"] == model) & (rows["plan"] == plan)]
            values = 100 * lines["value"]
            if len(lines) > 1:
                ax.axvspan(values.min(), values.max(), color="#e8e8e8", zorder=0)
                ax.plot(values, np.full(len(values), y), ls="", marker="o", markersize=3.5, color=GREY, alpha=0.7)
                continue
            for row in lines.itertuples():
                colour, marker = looks[getattr(row, group)]
                ax.plot([100 * row.low, 100 * row.high], [y, y], color=colour, lw=2.5, alpha=0.5)
                ax.plot(100 * row.value, y, marker=marker, color=colour)
        ax.set_yticks(range(len(plans)), plans)
        ax.set_ylim(len(plans) - 0.4, -0.6)
        ax.set_title(model)
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("against constant slicing, % (left: better)")
    if group == "kind":
        legend(axes[0], looks)
    return axes


def curves(rows: pd.DataFrame, xlabel: str, ylabel: str) -> list[Axes]:
    """A quality over a budget, a panel per model, a line per plan with its intervals.

    Rows: model, plan, x, value, low, high, all drawn as they are, in the units that the labels name. A plan with
    several rows at one x (its draws) is drawn as a grey band from the lowest to the highest, with its median.
    """
    models = rows["model"].unique()
    axes = panels(len(models), 2.3)
    drawn = rows.groupby("plan", sort=False)[["model", "x"]].apply(lambda lines: lines.duplicated().any())
    looks = looks_of(drawn.index[~drawn])
    for ax, model in zip(axes, models, strict=True):
        for plan, lines in rows[rows["model"] == model].groupby("plan", sort=False):
            if not drawn[plan]:
                line(ax, lines["x"], lines.sort_values("x"), looks[plan], plan)
                continue
            by_x = lines.groupby("x")["value"]
            ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color="#dcdcdc", lw=0, label=plan)
            ax.plot(by_x.median(), color=GREY, lw=1)
        ax.set(title=model, ylabel=ylabel)
    axes[-1].set_xlabel(xlabel)
    legend(axes[0], looks)
    return axes


def _ink(dark: bool) -> str:
    return "white" if dark else "black"
