"""Verdicts side by side: which claim holds on which model, and by how much."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerwise.claims.verdict import DOES_NOT, HOLDS, INCONCLUSIVE
from layerwise.figures.common import GREY, legend, panels

# Pale enough for black type; blue, orange and grey are told apart by colour-blind readers too, and signs by all.
_FILLS = {HOLDS: "#b5d3ea", DOES_NOT: "#f6c9a0", INCONCLUSIVE: "#e3e3e3"}
_LINES = {HOLDS: "#0072B2", DOES_NOT: "#B34700", INCONCLUSIVE: GREY}
_HALF = 4.2  # inches: two such figures stand side by side on a laptop
SIGNS = {HOLDS: "✓", DOES_NOT: "✗", INCONCLUSIVE: "?"}


def brief(effect: float, unit: str) -> str:
    """An effect at two digits, as far as its unit has them, for the least room: "−4.1 %", "+0.023 nats", "+15 %"."""
    unit = "ρ" if unit == "rank correlation" else unit  # the sign for it, since the words have no room
    most = 3 if unit == "nats" else 2
    places = most if effect == 0 else int(np.clip(1 - np.floor(np.log10(abs(effect))), 0, most))
    return f"{effect:+.{places}f} {unit}".replace("-", "−")


def forest(rows: pd.DataFrame) -> list[Axes]:
    """What a method is worth against its rivals: a panel per rival, a line per model, the verdict beside it in words.

    Rows: kind (who the rival is), model, verdict, and value with low and high, the change of perplexity against the
    rival in %, negative = the method is better. Models stand in the order of their first appearance.
    """
    kinds = list(rows.groupby("kind", sort=False))
    most = max(len(part) for _, part in kinds)
    axes = panels(len(kinds), 0.45 + 0.22 * most)
    axes[0].figure.set_figwidth(_HALF)
    for ax, (kind, part) in zip(axes, kinds, strict=True):
        ax.axvline(0, color="black", lw=1)
        for y, row in enumerate(part.itertuples()):
            colour = _LINES[row.verdict]
            ax.plot([row.low, row.high], [y, y], color=colour, lw=2.5, alpha=0.5)
            ax.plot(row.value, y, marker="o", color=colour)
            words = f"{SIGNS[row.verdict]} {row.verdict}, {brief(row.value, '%')}"
            place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
            ax.annotate(words, (1, y), **place, va="center", fontsize=10, color=colour, annotation_clip=False)
        ax.set(title=kind, ylim=(most - 0.5, -0.5))
        ax.set_yticks(range(len(part)), part["model"])
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("change of perplexity, %\n← better than the rival")
    return axes


def verdicts(rows: pd.DataFrame, models: Sequence[str] = ()) -> list[Axes]:
    """A cell for every claim and model: its colour and sign are the verdict, beside it the effect and its unit.

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
        effect = brief(row.effect, row.unit) if np.isfinite(row.effect) else ""
        size = 9 if len(models) < 4 else 7
        ax.text(x + wide / 2, y + 0.5, f"{SIGNS[row.verdict]} {effect}", ha="center", va="center", fontsize=size)
    ax.set(xlim=(0, len(models)), ylim=(len(names), 0))
    short = [name.split("/")[-1].replace("-", "\n", 1) for name in models]  # names of the Hub and of wheels are long
    ax.set_xticks(np.arange(len(models)) + 0.5, short)
    ax.set_yticks(np.arange(len(names)) + 0.5, names)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    used = [name for name in _FILLS if name in set(rows["verdict"])]
    legend(ax, {}, [plt.Rectangle((0, 0), 1, 1, color=_FILLS[name], label=f"{SIGNS[name]} {name}") for name in used])
    return [ax]
