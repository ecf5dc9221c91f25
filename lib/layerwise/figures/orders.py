"""Sweeps over orders of blocks: quality over size, and the share of blocks that can be lowered."""

from collections.abc import Iterable
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from layerwise.claims.block_orders import CLOSE, RAMPS
from layerwise.claims.quantization import AT_RANDOM, BY_SCORE
from layerwise.figures.common import COLOURS, GREY, MARKERS, legend, log_scale, looks_of, panels

_BANDS = {"random": GREY, "random, ends kept": "#6a51a3"}  # none of the colours that lines have
_KNOWN = ("LIM", "ZD", "damage", "reversed LIM", *RAMPS)  # have one colour in every figure
_UNIFORM = {"uniform": (COLOURS[-1], MARKERS[-1])}
_X = {"average_bits": ("average bits per weight", 1), "bytes": ("megabytes as stored", 1e-6)}
_Y = {"quality": "quality, share of the dense model's", "kl": "KL, nats", "accuracy": "accuracy, %"}


def orders(rows: pd.DataFrame, y: str = "quality", x: str = "average_bits", level: float = CLOSE) -> list[Axes]:
    """Quality, KL divergence or accuracy over size, a line per order, a panel per levels and technique.

    Rows: of one model, one per plan: quantizer, group, levels, order, draw, lowered, average_bits or bytes, and what is
    drawn: loss (mean over windows minus the dense model's), kl, or accuracy and the dense model's, dense, both in %.
    Quality is the dense model's perplexity divided by the plan's, exp(-loss). The dashed line is the dense model, the
    thin one `level` of its quality. An order with several draws is drawn as its mean, in a band from the 5th to the
    95th percentile of its draws. Plans of an order "uniform" lower no blocks, their lowered is missing. Names stand at
    the lines where there is most room for them.

    Raises ValueError for another `y` or `x`, and for rows of several models.
    """
    if y not in _Y or x not in _X:
        raise ValueError(f"y must be one of {', '.join(_Y)} and x one of {', '.join(_X)}, not {y!r} and {x!r}")
    if len(models := rows["model"].unique()) != 1:
        raise ValueError(f"a figure of orders is of one model, but the rows are of {', '.join(map(str, models))}")
    label, factor = _X[x]
    rows = rows.assign(x=rows[x] * factor, y=np.exp(-rows["loss"]) if y == "quality" else rows[y])
    varies = [name for name in ("quantizer", "group", "levels") if rows[name].nunique() > 1] or ["levels"]
    settings = list(rows.groupby(varies, sort=False))
    axes = panels(len(settings), 3.1, sharex=False)
    looks = looks_of([*_KNOWN, *(order for order in rows["order"] if order not in _BANDS)]) | _UNIFORM
    every = []
    for ax, (setting, part) in zip(axes, settings, strict=True):
        lines_of = {}
        for order in sorted(part["order"].unique(), key=lambda name: name not in _BANDS):
            look = looks.get(order, (_BANDS.get(order), ""))
            lines_of[order] = (_order(ax, part[part["order"] == order], look), look[0])
        heights = {}
        if y == "quality":
            heights = {"dense": 1, f"{100 * level:g} %": level}
        elif y == "accuracy":
            heights = {"dense": part["dense"].iloc[0]}
        elif part["y"].max() > 20 * part["y"].min() > 0:
            log_scale(ax)
        for name, height in heights.items():
            _reference(ax, height, name, **({"ls": "--", "lw": 1} if name == "dense" else {"lw": 0.6}))
        ax.set(title=", ".join(setting), ylabel=_Y[y])
        every.append((lines_of, heights.values()))
    axes[-1].set_xlabel(label)
    axes[0].figure.draw_without_rendering()  # now the panels have their places, and points their pixels
    for ax, drawn in zip(axes, every, strict=True):
        _name_lines(ax, *drawn)
    return axes


def shares(rows: pd.DataFrame) -> list[Axes]:
    """The share of blocks that can be lowered until quality leaves a level, by order, with intervals.

    Rows as `claims.shares` gives them, of one technique: model, levels, order, value, low, high. A panel per levels, a
    mark per model. The zones are what arXiv 2406.17415 reports: 25 to 50 % by its order, 5 to 10 % without one.

    Raises ValueError for rows with several values for one model, levels and order.
    """
    keys = ["model", "levels", "order"]
    if (again := rows.duplicated(keys)).any():
        place = ", ".join(map(str, rows.loc[again, keys].iloc[0]))
        raise ValueError(f"{place} is there more than once: choose the rows of one technique and one level")
    names, models = list(rows["order"].unique()), list(rows["model"].unique())
    axes = panels(rows["levels"].nunique(), 0.5 + len(names) * (0.14 + 0.12 * len(models)))
    looks = looks_of(rows["model"])
    for ax, (levels, part) in zip(axes, rows.groupby("levels", sort=False), strict=True):
        for (low, high), colour in ((BY_SCORE, "#d5e8f5"), (AT_RANDOM, "#dedede")):
            ax.axvspan(100 * low, 100 * high, color=colour, lw=0, zorder=0)
        for row in part.itertuples():
            colour, marker = looks[row.model]
            place = (models.index(row.model) + 0.5) / len(models) - 0.5
            at = names.index(row.order) + 0.7 * place
            ax.plot([100 * row.low, 100 * row.high], [at, at], color=colour, lw=2.5, alpha=0.5)
            ax.plot(100 * row.value, at, marker=marker, color=colour, ls="")
        ax.set(title=levels, xlim=(-1.5, 101.5), ylim=(len(names) - 0.4, -0.6))
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("blocks at the lower width\nuntil quality leaves the level, %")
    zones = {"paper, by score": "#d5e8f5", "paper, random": "#dedede"}
    legend(axes[0], looks, [plt.Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in zones.items()])
    return axes


def _order(ax, lines, look) -> np.ndarray:
    """A line through the means of the draws, `[K, 2]`, in a band of the draws if there are several."""
    colour, marker = look
    by_k = lines.groupby(lines["lowered"].fillna(lines["x"]))  # without a number of lowered blocks, by size
    at, middle = by_k["x"].mean(), by_k["y"].mean()
    if lines["draw"].nunique() > 1:
        low, high = (by_k["y"].quantile(share) for share in (0.05, 0.95))
        ax.fill_between(at, low, high, color=colour, alpha=0.22, lw=0)
    ax.plot(at, middle, color=colour, marker=marker, markersize=3.5, lw=1.4)
    return np.column_stack([at, middle])


def _reference(ax, height, name, **look):
    """A level across the panel, with its name at the right end."""
    ax.axhline(height, color="black", **look)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (3, 0), "textcoords": "offset points"}
    ax.annotate(name, (1, height), **place, va="center", fontsize=9, annotation_clip=False)


def _name_lines(ax: Axes, lines_of: dict[str, tuple[np.ndarray, str]], heights: Iterable[float]) -> None:
    """Write the name of every line beside it, where the fewest lines and names are in the way.

    Lines of one sweep meet at both ends, so names have no place there. A line is `[K, 2]`, with its colour; at
    `heights` other lines cross the panel.
    """
    room = ax.get_window_extent()
    middle, reach = (room.p0 + room.p1) / 2, room.size / 2
    steps = np.linspace(0, 1, 80)
    drawn = {}
    for order, (points, _) in lines_of.items():
        pixels = ax.transData.transform(points)
        at = np.linspace(0, 1, len(pixels))
        drawn[order] = np.column_stack([np.interp(steps, at, axis) for axis in pixels.T])
    across = [(x, height) for height in heights for x in np.linspace(*ax.get_xlim(), 80)]
    taken = ax.transData.transform(np.reshape(across, (-1, 2)))
    for order, (_, colour) in lines_of.items():
        text = ax.text(0, 0, order, color=colour, fontsize=9.5, transform=ax.transAxes, va="center", ha="center")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.8)])
        half = text.get_window_extent().size / 2
        others = np.concatenate([taken, *(line for name, line in drawn.items() if name != order)])

        def cost(place, half=half, own=drawn[order], others=others):
            beyond = np.maximum(np.abs(place - middle) + half - reach, 0).sum()
            covered = [(np.abs(line - place) < half + 3).all(axis=1).sum() for line in (own, others)]
            return 100 * beyond + covered[0] + 3 * covered[1]

        sides = half + (4, 2)
        beside = [side * sides for side in product((-1, 0, 1), (-1, 0, 1)) if any(side)]
        places = [centre + side for centre in drawn[order][8:-8:2] for side in beside]
        best = min(places, key=cost)
        text.set_position(ax.transAxes.inverted().transform(best))
        grid = np.stack(np.meshgrid(np.linspace(-1, 1, 18), np.linspace(-1, 1, 6)), axis=-1).reshape(-1, 2)
        taken = np.concatenate([taken, best + half * grid])
