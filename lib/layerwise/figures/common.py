"""What all figures share: size, colours, style, panels, legends and axes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
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


def panels(count, height, sharex=True) -> list[Axes]:
    """`count` axes below each other, each `height` inches high."""
    figure, axes = plt.subplots(count, 1, figsize=(WIDTH, 0.5 + height * count), sharex=sharex, squeeze=False)
    figure.align_ylabels()
    return list(axes[:, 0])


def looks_of(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model, or of each of whatever else the figure tells apart."""
    names = list(dict.fromkeys(models))
    count = len(COLOURS)  # of markers too; an eighth name has the first one's colour and another marker
    return {name: (COLOURS[i % count], MARKERS[(i + i // count) % count]) for i, name in enumerate(names)}


def line(ax, x, lines, look, label):
    """A line through the values of `lines`, with their intervals as bars where they have any."""
    colour, marker = look
    if "low" in lines:
        ax.vlines(x, lines["low"], lines["high"], color=colour, alpha=0.45, lw=3)
    ax.plot(x, lines["value"], color=colour, marker=marker, label=label)


def log_scale(ax):
    """Log scale for y with plain numbers on it, also where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def legend(ax, looks, extra=()):
    """Names above the first panel, as many to a line as have room; a single name needs none, its caption tells it."""
    handles = [plt.Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in looks.items()]
    handles += extra
    if len(handles) < 2:
        return
    room = 62 // (2 + max(len(handle.get_label()) for handle in handles))  # about 62 letters have the WIDTH
    columns = max(1, min(len(handles), room, 4))
    ax.figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=1.4)


def label_ends(ax, ends, colours):
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


def thousands(value, _) -> str:
    """Ticks of token counts: 500, 2k, 16k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
