"""What fits where: the memory of every job on every model, beside the cards that hold it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.figures.common import legend, panels

# Pale to dark with the size of the card, in steps that stay apart without colour; black type is readable on all.
_FILLS = ("#e8f1fa", "#cfe1f2", "#abd0e6", "#6aaed6", "#3787c0")
_NONE = "#f6c9a0"


def fits(rows: pd.DataFrame, cards: Sequence[int], spare: float) -> list[Axes]:
    """A cell for every model and job: in it the gigabytes that it needs, its colour the smallest card that has them.

    Rows: model, job, gigabytes. `cards` are at most five sizes in gigabytes, small to large, of which `spare` are left
    to the process and its libraries. Models and jobs stand in the order of their first appearance.
    """
    if len(cards) > len(_FILLS):
        raise ValueError(f"at most {len(_FILLS)} cards can be told apart, not {len(cards)}")
    models, jobs = list(rows["model"].unique()), list(rows["job"].unique())
    (ax,) = panels(1, 0.36 * len(models) + 0.5)
    for row in rows.itertuples():
        x, y = jobs.index(row.job), models.index(row.model)
        card = np.searchsorted(np.asarray(cards) - spare, row.gigabytes)
        fill = _FILLS[card] if card < len(cards) else _NONE
        ax.add_patch(plt.Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, color=fill, lw=0))
        digits = 1 if row.gigabytes < 10 else 0
        ax.text(x + 0.5, y + 0.5, f"{row.gigabytes:.{digits}f}", ha="center", va="center", fontsize=9)
    ax.set(xlim=(0, len(jobs)), ylim=(len(models), 0))
    ax.set_xticks(np.arange(len(jobs)) + 0.5, jobs, fontsize=8)
    ax.set_yticks(np.arange(len(models)) + 0.5, models)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    shown = [(fill, f"{card} GB") for fill, card in zip(_FILLS, cards, strict=False)] + [(_NONE, "none")]
    legend(ax, {}, [plt.Rectangle((0, 0), 1, 1, color=fill, label=label) for fill, label in shown])
    return [ax]
