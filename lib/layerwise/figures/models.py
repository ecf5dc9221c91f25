"""The models themselves: how they were trained, and what they can do."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.figures.common import GREY, label_ends, legend, looks_of, panels
from layerwise.stats import over_models


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


def by_depth(rows: pd.DataFrame, unit: str, possible: tuple[float, float] = (0, 100)) -> list[Axes]:
    """A quantity over the depth of trained models, a dot per model, a panel per kind, a line through each depth's mean.

    Rows: kind, recipe (of the training; a colour each), blocks, and value with low and high, in the `unit`. Where a
    recipe has several models of a depth, the broad bar is the 95 % interval of their mean, so that it covers what
    training again would give; a single model has its own interval, a thin bar. `possible` is the least and the most
    that a value can be: bars are cut there, and the axis begins at the least.
    """
    kinds, looks = rows["kind"].unique(), looks_of(rows["recipe"])
    axes = panels(len(kinds), 1.5)
    for ax, kind in zip(axes, kinds, strict=True):
        for recipe, part in rows[rows["kind"] == kind].groupby("recipe", sort=False):
            colour, marker = looks[recipe]
            aside = 2 ** (0.16 * list(looks).index(recipe))  # recipes stand side by side, and models of one depth
            means = part.groupby("blocks")["value"].mean()
            ax.plot(means.index * aside, means, color=colour, lw=1)
            for blocks, alike in part.groupby("blocks"):
                several = len(alike) > 1
                _, low, high = over_models(alike["value"], alike["low"], alike["high"], possible)
                x = blocks * aside
                ax.vlines(x, low, high, color=colour, alpha=0.3 if several else 0.6, lw=9 if several else 1.5)
                beside = 2 ** (0.04 * (np.arange(len(alike)) - (len(alike) - 1) / 2))
                ax.plot(x * beside, alike["value"], ls="", marker=marker, color=colour, mec="white", mew=0.5)
        ax.set(title=kind, ylabel=unit)
        ax.set_ylim(bottom=possible[0])
        ax.set_xscale("log", base=2)
        depths = np.unique(rows["blocks"].to_numpy(float))
        ax.set_xticks(depths, [f"{blocks:g}" for blocks in depths])
        ax.minorticks_off()
    axes[-1].set_xlabel("blocks")
    legend(axes[0], looks)
    return axes
