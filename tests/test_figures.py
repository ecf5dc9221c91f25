import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from layerwise import figures

DEPTHS = {"6L": 6, "12L": 12}


@pytest.fixture(autouse=True)
def clean():
    plt.switch_backend("agg")
    with plt.rc_context():
        figures.style()
        yield
    plt.close("all")


def table(**columns):
    """One row per model and block with an interval of 0.01 to each side; other columns are crossed in."""
    rows = pd.DataFrame(
        {"model": model, "block": block, "value": -0.9 - 0.01 * block}
        for model, L in DEPTHS.items()
        for block in range(L)
    )
    for name, values in columns.items():
        rows = rows.merge(pd.Series(values, name=name), how="cross")
    return rows.assign(low=rows["value"] - 0.01, high=rows["value"] + 0.01)


def words(axes):
    axes[0].figure.canvas.draw()
    return [text.get_text() for text in axes[0].figure.findobj(matplotlib.text.Text)]


def test_by_layer_draws_every_block_of_every_model_at_its_relative_depth():
    axes = figures.by_layer(table(score=["LIM", "ZD"]))
    assert [ax.get_title(loc="left") for ax in axes] == ["LIM", "ZD"]
    for ax in axes:
        lines = {line.get_label(): line for line in ax.get_lines()}
        for model, L in DEPTHS.items():
            assert lines[model].get_xdata() == pytest.approx(np.arange(L) / (L - 1))
            assert lines[model].get_ydata() == pytest.approx(-0.9 - 0.01 * np.arange(L))


def test_a_first_block_far_from_all_others_is_told_in_words():
    rows = table(score=["LIM"])
    rows.loc[rows["block"] == 0, ["value", "low", "high"]] = -0.2
    axes = figures.by_layer(rows)
    low, high = axes[0].get_ylim()
    assert high < -0.85 and low > -1.1
    assert "block 0: -0.20 (6L), -0.20 (12L)" in words(axes)


def test_a_first_block_among_the_others_is_drawn_as_they_are():
    assert not any("block 0" in text for text in words(figures.by_layer(table(score=["LIM"]))))


def test_models_keep_their_colour_from_figure_to_figure():
    first, second = figures.by_layer(table(score=["LIM"])), figures.residual_norms(positive(quantity=["enters"]))
    colours = [[line.get_color() for line in axes[0].get_lines()] for axes in (first, second)]
    assert colours[0] == colours[1] and len(set(colours[0])) == 2


def positive(**columns):
    rows = table(**columns)
    return rows.assign(value=-rows["value"], low=-rows["high"], high=-rows["low"])


def test_against_damage_numbers_the_blocks_and_survives_intervals_below_zero():
    rows = positive(score=["LIM"], kind=["2 bits"]).assign(low=-1.0)
    axes = figures.against_damage(rows.assign(rank=rows["block"] + 1))
    assert [ax.get_title(loc="left") for ax in axes] == ["6L", "12L"]
    assert {str(block) for block in range(12)} <= set(words(axes)) and "Damage: 2 bits" in words(axes)
    assert all(ax.get_ylim()[0] > 0 for ax in axes)


def test_correlations_show_all_blocks_filled_and_the_rest_hollow():
    rows = table(score=["LIM"], kind=["removed", "2 bits"], blocks=["all", "without block 0"]).query("block == 0")
    (ax,) = figures.correlations(rows)
    marks = [line for line in ax.get_lines() if line.get_marker() in figures.MARKERS]
    assert len(marks) == 8
    assert sum(line.get_markerfacecolor() == "white" for line in marks) == 4
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["removed", "2 bits"]


def test_settling_has_a_line_per_model_over_tokens():
    rows = table(score=["LIM"]).rename(columns={"block": "tokens"}).assign(tokens=lambda t: 2.0 ** t["tokens"])
    (ax,) = figures.settling(rows)
    assert {"6L", "12L"} <= {line.get_label() for line in ax.get_lines()} and ax.get_xscale() == "log"


def test_loss_curves_name_models_and_floor_where_the_lines_end():
    rows = pd.DataFrame({"model": ["6L"] * 3 + ["12L"] * 3, "tokens": [0, 1e6, 2e6] * 2, "test_loss": [7, 3, 2.5] * 2})
    axes = figures.loss_curves(rows, floor=2.0)
    assert {"6L", "12L", "floor"} <= set(words(axes))
    heights = [text.xy[1] for text in axes[0].texts]
    assert min(np.diff(sorted(heights))) > 0.05, "names of lines that end together must not cover each other"
    assert axes[0].get_ylim()[0] < 2


def test_accuracies_show_chance_where_it_is_known():
    rows = pd.DataFrame(
        {
            "model": "6L",
            "task": ["world_uses", "world_sums"],
            "value": [0.7, 0.6],
            "stderr": 0.01,
            "chance": [0.5, None],
        }
    )
    (ax,) = figures.accuracies(rows)
    assert [bar.get_width() for bar in ax.patches] == [50]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["uses", "sums"]


def test_plan_bars_stack_what_is_kept_and_what_is_cut_under_the_mean():
    slices = {"constant": [0.25] * 4, "LR": [0, 0.2, 0.3, 0.5]}
    rows = pd.DataFrame({"plan": p, "block": i, "slice": s} for p, cut in slices.items() for i, s in enumerate(cut))
    axes = figures.plan_bars(rows)
    assert [ax.get_title(loc="left") for ax in axes] == ["constant", "LR"]
    for ax, cut in zip(axes, slices.values(), strict=True):
        kept, gone = np.split(np.array([bar.get_height() for bar in ax.patches]), 2)
        assert kept == pytest.approx(100 - 100 * np.array(cut)) and kept + gone == pytest.approx([100] * 4)
        (mean,) = ax.get_lines()
        assert list(mean.get_ydata()) == pytest.approx([75, 75])


def grid_rows(bases):
    cells = [(mean, base) for mean, bases in bases.items() for base in bases]
    rows = pd.DataFrame(cells, columns=["mean", "base"]).assign(model="6L", value=-0.03, low=-0.04, high=-0.02)
    rows.loc[rows["mean"] == rows["base"], ["value", "low", "high"]] = 0.0
    return rows


def test_grid_colours_better_blue_and_dots_what_is_certain():
    rows = grid_rows({0.2: [0, 0.1, 0.2], 0.3: [0, 0.1, 0.2, 0.3]})
    rows.loc[0, ["value", "low", "high"]] = 0.02, -0.01, 0.05
    rows.loc[3, ["value", "low", "high"]] = 0.125, 0.01, 0.24
    (ax,) = figures.grid(rows)
    colours = np.array([bar.get_facecolor() for bar in ax.patches])
    red, blue = colours[:, 0], colours[:, 2]
    assert (red[rows["value"] > 0] > blue[rows["value"] > 0]).all()
    assert (red[rows["value"] < 0] < blue[rows["value"] < 0]).all()
    assert [text.get_text() for text in ax.texts] == ["+2.0", "−3.0", "0", "+12", "−3.0", "−3.0", "0"]
    dots = {(round(x.get_xdata()[0]), round(x.get_ydata()[0])) for x in ax.get_lines()}
    assert dots == {(0, 10), (1, 0), (1, 10), (1, 20)}


def test_cells_of_a_fine_grid_touch_whatever_their_steps_and_have_no_numbers():
    means = {0.30: np.arange(0.30, -0.001, -0.02), 0.35: np.arange(0.35, 0, -0.02)}
    (ax,) = figures.grid(grid_rows(means))
    for x, bases in enumerate(means.values()):
        cells = sorted((bar.get_y(), bar.get_height()) for bar in ax.patches if round(bar.get_x() + 0.5) == x)
        bottoms, heights = np.array(cells).T
        assert len(cells) == len(bases) and bottoms[1:] == pytest.approx(bottoms[:-1] + heights[:-1])
        assert bottoms + heights / 2 == pytest.approx(100 * np.sort(bases), abs=1e-6)
    assert not ax.texts


def test_rivals_stand_against_constant_and_draws_are_a_band():
    values = {"LR": [-0.03], "ramp": [-0.02], "random": [-0.01, 0.02, 0.04], "reversed": [0.9]}
    rows = pd.DataFrame({"model": "6L", "plan": plan, "value": v} for plan, many in values.items() for v in many)
    (ax,) = figures.rivals(rows.assign(low=rows["value"] - 0.01, high=rows["value"] + 0.01))
    marks = {tuple(np.round(line.get_xdata(), 6)) for line in ax.get_lines() if line.get_marker() in figures.MARKERS}
    assert {(-3,), (-2,), (-1, 2, 4)} <= marks
    (band,) = ax.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-1, 5))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(values)
    # Ninety percent would squeeze all others onto the line.
    assert ax.get_xlim()[1] < 30 and [text.get_text() for text in ax.texts] == ["+90 %"]


def test_rivals_by_kind_have_a_colour_for_each():
    rows = pd.DataFrame({"model": "6L", "plan": ["LR", "ZD", "ramp"], "kind": ["score", "score", "none"]})
    axes = figures.rivals(rows.assign(value=-0.02, low=-0.03, high=-0.01))
    assert {"score", "none"} <= set(words(axes))
    colours = [line.get_color() for line in axes[0].get_lines() if line.get_marker() in figures.MARKERS]
    assert colours[0] == colours[1] != colours[2]


def test_a_plan_of_two_kinds_has_a_line_for_each():
    rows = pd.DataFrame({"model": "6L", "plan": ["LR", "ramp"] * 2, "kind": ["width"] * 2 + ["bytes"] * 2})
    (ax,) = figures.rivals(rows.assign(value=[-0.02, 0.01, -0.03, 0.02], low=-0.04, high=0.03))
    marks = [line for line in ax.get_lines() if line.get_marker() in figures.MARKERS]
    heights = {line.get_xdata()[0]: line.get_ydata()[0] for line in marks}
    assert heights[-2.0] < 0 < heights[-3.0] < 0.5 < heights[1.0] < 1 < heights[2.0] and not ax.patches


@pytest.mark.parametrize(("factor", "scale"), [(1, "linear"), (100, "log")])
def test_curves_are_lines_over_a_budget_and_draws_a_band(factor, scale):
    points = [
        (plan, x, draw) for plan, draws in (("LR", 1), ("random", 3)) for x in (30, 10, 20) for draw in range(draws)
    ]
    rows = pd.DataFrame(points, columns=["plan", "x", "draw"]).assign(
        model="6L", value=lambda t: 9 + t["x"] + t["draw"]
    )
    rows.loc[rows["x"] == 30, "value"] *= factor
    axes = figures.curves(rows.assign(low=rows["value"] - 1, high=rows["value"] + 1), "mean slice, %", "perplexity")
    lr, median = axes[0].get_lines()
    assert lr.get_xdata().tolist() == [10, 20, 30] and lr.get_ydata() == pytest.approx([19, 29, 39 * factor])
    assert median.get_ydata() == pytest.approx([20, 30, 40 * factor])
    band = axes[0].collections[-1].get_paths()[0].vertices
    assert {(10, 19), (10, 21), (20, 29), (20, 31)} <= {tuple(np.round(point, 6)) for point in band}
    assert axes[0].get_yscale() == scale and {"LR", "random", "perplexity"} <= set(words(axes))
    assert axes[0].get_xscale() == "linear"
    assert figures.curves(rows.assign(low=0, high=0), "tokens", "perplexity", log_x=True)[0].get_xscale() == "log"
