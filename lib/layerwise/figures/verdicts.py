"""Verdicts side by side: which claim holds on which model."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.figures.common import legend, panels

# Pale enough for black type; blue, orange and grey are told apart by colour-blind readers too.
_FILLS = {"holds": "#b5d3ea", "doesn't hold": "#f6c9a0", "can't tell": "#e3e3e3"}


def verdicts(rows: pd.DataFrame, models: Sequence[str] = ()) -> list[Axes]:
    """A cell for every claim and model: its colour is the verdict, in it the effect and its unit.

    Rows as `claims.table` gives them, one per claim and model: claim, model, verdict, effect, unit. Claims stand in the
    order of their first appearance, and so do models, after those of `models`; where a claim has no row for a model the
    cell stays empty. A claim on all models together has the model "", and one cell from the first column to the last.

    Raises ValueError where a claim has several rows for a model.
    """
    if (again := rows.duplicated(["claim", "model"])).any():
        place = rows.loc[again, ["claim", "model"]].iloc[0]
        raise ValueError(f"{place['claim']} has more than one verdict for {place['model']}")
    names = list(rows["claim"].unique())
    models = list(dict.fromkeys([*models, *(model for model in rows["model"] if model)]))
    (ax,) = panels(1, 0.42 * len(names))
    for row in rows.itertuples():
        x, wide = (models.index(row.model), 1) if row.model else (0, len(models))
        y = names.index(row.claim)
        ax.add_patch(plt.Rectangle((x + 0.03, y + 0.06), wide - 0.06, 0.88, color=_FILLS[row.verdict], lw=0))
        if np.isfinite(row.effect):
            # the sign for it, since the words have no room
            unit = "ρ" if row.unit == "rank correlation" else row.unit
            form = ".3f" if unit == "nats" else ".0f" if abs(row.effect) >= 10 else ".2g"
            effect = f"{row.effect:+{form}} {unit}".replace("-", "−")
            ax.text(x + wide / 2, y + 0.5, effect, ha="center", va="center", fontsize=9 if len(models) < 4 else 7)
    ax.set(xlim=(0, len(models)), ylim=(len(names), 0))
    short = [name.split("/")[-1].replace("-", "\n", 1) for name in models]  # names of the Hub and of wheels are long
    ax.set_xticks(np.arange(len(models)) + 0.5, short)
    ax.set_yticks(np.arange(len(names)) + 0.5, names)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    used = [name for name in _FILLS if name in set(rows["verdict"])]
    legend(ax, {}, [plt.Rectangle((0, 0), 1, 1, color=_FILLS[name], label=name) for name in used])
    return [ax]
