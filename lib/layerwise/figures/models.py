"""The models themselves: how they were trained, and what they can do."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.figures.common import COLOURS, GREY, label_ends, legend, looks_of, panels


def loss_curves(rows: pd.DataFrame, floor: float) -> list[Axes]:
    """Test loss over training, a line per model, above the entropy of the text itself.

    Rows: model, tokens, test_loss. `floor` in nats per token: no model can stay below it.
    """
    (ax,) = panels(1, 3.0)
    looks = looks_of(rows["model"])
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
    label_ends(ax, ends | {"floor": floor}, {**{m: c for m, (c, _) in looks.items()}, "floor": GREY})
    return [ax]


def accuracies(rows: pd.DataFrame) -> list[Axes]:
    """Accuracy by task, a mark per model with two standard errors to each side; the grey bar is chance.

    Rows as `lw.accuracy` gives them, plus model: model, task, value, stderr, chance.
    """
    tasks, models = rows["task"].unique(), rows["model"].unique()
    (ax,) = panels(1, 0.9 + 0.2 * len(tasks) * (len(models) + 0.8))
    looks = looks_of(rows["model"])
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
    legend(ax, looks, [plt.Rectangle((0, 0), 1, 1, color="#e0e0e0", label="chance")])
    return [ax]


def by_depth(rows: pd.DataFrame) -> list[Axes]:
    """What models of one family tolerate over their depth, a dot per model, a panel per kind, a line through the means.

    Rows: kind, blocks, value with low and high, shares in [0, 1], one per model and kind.
    """
    kinds = rows["kind"].unique()
    axes = panels(len(kinds), 1.5)
    for ax, kind in zip(axes, kinds, strict=True):
        part = rows[rows["kind"] == kind]
        several = part.groupby("blocks")["value"]
        means = 100 * several.mean()
        ax.plot(means, color=GREY, lw=1)
        aside = several.cumcount() - (several.transform("size") - 1) / 2  # models of one depth stand side by side
        x = part["blocks"] * 2 ** (0.08 * aside)
        ax.vlines(x, 100 * part["low"], 100 * part["high"], color=COLOURS[0], alpha=0.45, lw=3)
        ax.plot(x, 100 * part["value"], ls="", marker="o", color=COLOURS[0])
        ax.set(title=kind, ylabel="share, %", ylim=(0, None))
        ax.set_xscale("log", base=2)
        ax.set_xticks(means.index, [f"{blocks:g}" for blocks in means.index])
        ax.minorticks_off()
    axes[-1].set_xlabel("blocks")
    return axes
