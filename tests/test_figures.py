from itertools import product

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from layerwise import figures, stats

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


def test_what_a_score_knows_is_filled_as_it_is_and_hollow_given_position():
    columns = ["model", "kind", "score", "correlation", "beyond"]
    values = [("a", "removed", "LIM", 0.9, 0.1), ("a", "removed", "ZD", -0.5, 0.2), ("b", "3 bits", "LIM", 0.4, -0.3)]
    rows = pd.DataFrame(values, columns=columns)
    for name, width in product(("correlation", "beyond"), ("low", "high")):
        rows[f"{name}_{width}"] = rows[name] + (0.05 if width == "high" else -0.05)
    axes = figures.given_position(rows)
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b"]
    marks = [line for ax in axes for line in ax.get_lines() if line.get_marker() in figures.MARKERS]
    hollow = [line.get_xdata()[0] for line in marks if line.get_markerfacecolor() == "white"]
    assert hollow == [0.1, 0.2, -0.3] and len(marks) == 6
    assert marks[0].get_color() == marks[4].get_color() != marks[2].get_color()  # a score's, in every panel


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


def test_models_of_one_depth_stand_side_by_side_under_the_interval_of_their_mean():
    rows = pd.DataFrame({"kind": "bits", "blocks": [6, 6, 12], "value": [29, 31, 50], "recipe": "AdamW"})
    rows = rows.assign(low=rows["value"] - 1, high=rows["value"] + 1)
    rows = pd.concat([rows, rows[2:].assign(value=10, recipe="muon"), rows.assign(kind="slicing")])
    axes = figures.by_depth(rows, "share, %")
    assert [ax.get_title(loc="left") for ax in axes] == ["bits", "slicing"]
    means, six, twelve, _, muon = axes[0].get_lines()
    assert (list(means.get_xdata()), list(means.get_ydata())) == ([6, 12], [30, 50])
    assert [list(dots.get_ydata()) for dots in (six, twelve, muon)] == [[29, 31], [50], [10]]
    assert np.diff(six.get_xdata()).item() > 0 and muon.get_xdata() > twelve.get_xdata()
    bars = [bar.get_segments()[0][:, 1] for bar in axes[0].collections]
    assert list(bars[0]) == pytest.approx(stats.over_models([29, 31], [28, 30], [30, 32])[1:])
    assert list(bars[1]) == [49, 51]
    assert [text.get_text() for text in axes[1].get_xticklabels()] == ["6", "12"]
    assert {"AdamW", "muon"} <= set(words(axes))


def test_the_interval_of_a_depth_is_cut_at_what_is_possible():
    rows = pd.DataFrame({"kind": "bits", "recipe": "AdamW", "blocks": [12, 12], "value": [58, 67]})
    (ax,) = figures.by_depth(rows.assign(low=rows["value"] - 1, high=rows["value"] + 1), "share, %", (20, 100))
    (bar,) = ax.collections[0].get_segments()
    assert list(bar[:, 1]) == [20, 100]
    assert ax.get_ylim()[0] == 20 and ax.get_ylim()[1] > 100


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


def test_rivals_of_accuracy_show_their_whole_intervals():
    rows = pd.DataFrame({"model": "6L", "plan": ["20 %", "30 %"], "value": [0.001, 0.004], "low": -0.2, "high": 0.3})
    (ax,) = figures.rivals(rows, unit="points", better="right")
    assert ax.get_xlabel() == "against constant slicing, points (right: better)"
    assert max(line.get_xdata()[-1] for line in ax.get_lines()) == 30 < ax.get_xlim()[1] and not ax.texts


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


def test_families_over_bytes_average_draws_and_show_random_ones_as_a_band():
    places = [
        (family, step, draw)
        for family in ("removal by LIM", "removal in random order")
        for step in (0, 1)
        for draw in (0, 1)
    ]
    rows = pd.DataFrame(places, columns=["family", "step", "draw"]).assign(model="6L")
    rows["bytes"] = 3_000_000 - 1_000_000 * rows["step"] + 100_000 * rows["draw"]
    rows["loss"] = np.log(2) * (rows["step"] + rows["draw"])
    rows = rows.assign(loss_low=rows["loss"] - 0.1, loss_high=rows["loss"] + 0.1, kl=1.0, kl_low=0.9, kl_high=1.1)
    (ax,) = figures.over_bytes(rows, dense={"6L": 4_000_000})
    by_lim, median, dense = ax.get_lines()
    assert by_lim.get_xdata() == pytest.approx([2.05, 3.05]) and by_lim.get_ydata() == pytest.approx([0.375, 0.75])
    assert median.get_ydata() == pytest.approx([0.375, 0.75]) and dense.get_xdata().tolist() == [4]
    assert ax.get_yscale() == "linear" and {"removal by LIM", "quality", "dense"} <= set(words([ax]))
    assert "KL, nats" in words(figures.over_bytes(rows, "kl"))
    points = rows.assign(value=-3.0, low=-4.0, high=-2.0)
    assert "points of accuracy" in words(figures.over_bytes(points, "accuracy", {"6L": 4_000_000}))


def test_more_names_than_colours_still_look_different():
    looks = figures.common.looks_of(map(str, range(20)))
    assert len(set(looks.values())) == 20


def plans_rows(orders=("LIM", "random", "random, block 0 high", "reversed LIM"), levels=("8→4", "4→2"), L=6):
    """A plan per levels, order, draw and number of lowered blocks; losses are concave or convex in it, by order."""
    bend = {"LIM": 2.0, "random": 1.0, "random, block 0 high": 1.3, "reversed LIM": 0.5}
    places = [
        (name, order, draw, k)
        for name in levels
        for order in orders
        for draw in range(3 if order.startswith("random") else 1)
        for k in range(L + 1)
    ]
    rows = pd.DataFrame(places, columns=["levels", "order", "draw", "lowered"])
    share = rows["lowered"] / L
    loss = share ** rows["order"].map(bend) + 0.1 * rows["draw"] * share * (1 - share)
    rows = rows.assign(model="6L", quantizer="rtn", group="64", loss=loss, kl=loss + 0.01)
    rows = rows.assign(accuracy=80 - 20 * loss, dense=82.0)
    return rows.assign(average_bits=4 - 2 * share, bytes=1e6 * (2 - share))


def test_orders_are_lines_of_quality_and_random_ones_a_band_of_their_draws():
    rows = plans_rows()
    axes = figures.orders(rows)
    assert [ax.get_title(loc="left") for ax in axes] == ["8→4", "4→2"]
    lines = {line.get_color(): line for line in axes[0].get_lines()}
    part = rows[rows["levels"] == "8→4"]
    lim = part[part["order"] == "LIM"].sort_values("average_bits")
    drawn = lines[figures.COLOURS[0]]
    assert np.sort(drawn.get_xdata()) == pytest.approx(lim["average_bits"])
    assert drawn.get_ydata()[np.argsort(drawn.get_xdata())] == pytest.approx(np.exp(-lim["loss"]))
    random = np.exp(-part[part["order"] == "random"].pivot(index="lowered", columns="draw", values="loss"))
    assert lines[figures.GREY].get_ydata() == pytest.approx(random.mean(axis=1))
    bands = [np.round(band.get_paths()[0].vertices, 6).tolist() for band in axes[0].collections]
    low, high = np.round(random.quantile([0.05, 0.95], axis=1).to_numpy()[:, 3], 6)
    assert len(bands) == 2 and [3.0, low] in bands[0] and [3.0, high] in bands[0]
    assert {"dense", "97.5 %"} <= set(words(axes))


def test_accuracy_is_drawn_as_it_is_beside_that_of_the_dense_model():
    (ax,) = figures.orders(plans_rows(("LIM",), ("4→2",)), y="accuracy")
    lines = {line.get_color(): line for line in ax.get_lines()}
    assert lines[figures.COLOURS[0]].get_ydata()[0] == 80 and lines["black"].get_ydata()[0] == 82
    assert "dense" in words([ax]) and "97.5 %" not in words([ax]) and ax.get_ylabel() == "accuracy, %"


def test_one_width_for_all_blocks_is_a_line_through_its_widths():
    rows = plans_rows(("LIM",), ("4→2",))
    uniform = rows[:3].assign(order="uniform", lowered=np.nan, average_bits=[4.0, 2.0, 3.0], loss=[0.1, 1.0, 0.4])
    (ax,) = figures.orders(pd.concat([rows, uniform]))
    line = next(line for line in ax.get_lines() if line.get_color() == figures.COLOURS[-1])
    assert line.get_xdata().tolist() == [2, 3, 4] and "uniform" in words([ax])
    assert line.get_ydata() == pytest.approx(np.exp([-1.0, -0.4, -0.1]))


@pytest.mark.parametrize(("y", "x"), [("quality", "average_bits"), ("kl", "bytes"), ("accuracy", "bytes")])
def test_orders_have_their_names_beside_their_lines_and_apart(y, x):
    orders = ("LIM", "random", "reversed LIM")
    axes = figures.orders(plans_rows(orders), y=y, x=x)
    axes[0].figure.canvas.draw()
    for ax in axes:
        names = {text.get_text(): text for text in ax.texts if text.get_transform() is ax.transAxes}
        assert set(names) == set(orders)
        boxes = [text.get_window_extent() for text in names.values()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        room = ax.get_window_extent().padded(1)
        assert all(room.contains(*corner) for box in boxes for corner in box.corners())
        for line in ax.get_lines():
            pixels = ax.transData.transform(line.get_xydata()) if len(line.get_xdata()) > 2 else np.empty((0, 2))
            assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


def test_an_order_has_one_colour_in_every_figure():
    (all_orders, _), (few,) = figures.orders(plans_rows()), figures.orders(plans_rows(("reversed LIM",), ("4→2",)))
    shown = [{text.get_text(): text.get_color() for text in ax.texts} for ax in (all_orders, few)]
    assert shown[0]["reversed LIM"] == shown[1]["reversed LIM"] != shown[0]["LIM"]


def test_orders_have_a_panel_for_each_technique():
    rows = pd.concat([plans_rows(levels=("4→2",)), plans_rows(levels=("4→2",)).assign(quantizer="hqq")])
    assert [ax.get_title(loc="left") for ax in figures.orders(rows)] == ["rtn", "hqq"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: t, {"y": "loss"}, "y must be one of quality, kl, accuracy"),
        (lambda t: t, {"x": "k"}, "x one of average_bits, bytes"),
        (lambda t: pd.concat([t, t.assign(model="12L")]), {}, "of one model, but the rows are of 6L, 12L"),
    ],
)
def test_orders_that_cannot_be_drawn_say_why(change, arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.orders(change(plans_rows()), **arguments)


def shares_rows():
    rows = pd.DataFrame({"order": ["LIM", "random"], "value": [0.4, 0.07], "low": [0.3, 0.05], "high": [0.5, 0.12]})
    return rows.merge(pd.Series(["8→4", "4→2"], name="levels"), how="cross").assign(model="6L")


def test_shares_are_marks_with_intervals_on_the_zones_of_the_paper():
    axes = figures.shares(shares_rows())
    assert [ax.get_title(loc="left") for ax in axes] == ["8→4", "4→2"]
    for ax in axes:
        zones = sorted((zone.get_x(), zone.get_x() + zone.get_width()) for zone in ax.patches)
        assert zones == [pytest.approx((5, 10)), pytest.approx((25, 50))]
        drawn = {tuple(np.round(line.get_xdata(), 6)) for line in ax.get_lines()}
        assert drawn == {(40,), (30, 50), (7,), (5, 12)}
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["LIM", "random"]
    assert {"paper, by score", "paper, random"} <= set(words(axes))


def test_shares_of_two_techniques_at_once_are_an_error():
    with pytest.raises(ValueError, match="6L, 8→4, LIM is there more than once"):
        figures.shares(pd.concat([shares_rows(), shares_rows().assign(quantizer="hqq")]))


VERDICTS = pd.DataFrame(
    {
        "claim": ["S1", "S1", "Q1", "Q1"],
        "model": ["6L", "12L", "6L", "24L"],
        "verdict": ["holds", "doesn't hold", "inconclusive", "holds"],
        "effect": [-3.14159, 0.5, np.nan, 28.0],
        "unit": ["%", "rank correlation", "points", "points"],
    }
)


def test_verdicts_are_cells_with_their_effects():
    (ax,) = figures.verdicts(VERDICTS)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["6L", "12L", "24L"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["S1", "Q1"]
    assert sorted(text.get_text() for text in ax.texts) == ["? ", "✓ +28 points", "✓ −3.1 %", "✗ +0.50 ρ"]
    colours = {patch.get_xy(): patch.get_facecolor() for patch in ax.patches}
    assert len(colours) == 4 and colours[0.03, 0.06] == colours[2.03, 1.06] != colours[1.03, 0.06]
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend == ["✓ holds", "✗ doesn't hold", "? inconclusive"]
    (ax,) = figures.verdicts(VERDICTS, ["24L"])  # which stands first then
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["24L", "6L", "12L"]


def test_a_verdict_on_all_models_together_spans_the_columns():
    together = pd.DataFrame({"claim": ["Q4"], "model": [""], "verdict": ["holds"], "effect": [7.0], "unit": ["points"]})
    (ax,) = figures.verdicts(pd.concat([VERDICTS, together]))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["6L", "12L", "24L"]
    wide = {patch.get_y(): patch.get_width() for patch in ax.patches}
    assert wide[2.06] == pytest.approx(2.94) and wide[0.06] == pytest.approx(0.94)
    assert {text.get_text(): text.get_position() for text in ax.texts}["✓ +7.0 points"] == (1.5, 2.5)


def test_a_claim_has_one_verdict_on_a_model():
    with pytest.raises(ValueError, match="S1 has more than one verdict for 6L"):
        figures.verdicts(pd.concat([VERDICTS, VERDICTS[:1]]))


def test_an_effect_in_brief_has_two_digits_as_far_as_its_unit_has_them():
    wanted = {
        ("%", -4.144): "−4.1 %", ("%", 14.94): "+15 %", ("%", 0.089): "+0.09 %", ("%", 100.0): "+100 %",
        ("nats", 3.559): "+3.6 nats", ("nats", 0.0229): "+0.023 nats", ("nats", -0.0017): "−0.002 nats",
        ("rank correlation", 0.5): "+0.50 ρ",
    }  # fmt: skip
    assert {place: figures.brief(place[1], place[0]) for place in wanted} == wanted


def test_a_forest_is_of_intervals_with_their_verdict_in_words():
    rows = pd.DataFrame(
        {
            "kind": ["width", "width", "bytes"],
            "model": ["6L", "12L", "6L"],
            "verdict": ["holds", "inconclusive", "doesn't hold"],
            "value": [-2.8, 0.5, 8.7],
            "low": [-3.2, -1.0, 7.0],
            "high": [-2.3, 2.0, 10.4],
        }
    )
    width, of_bytes = figures.forest(rows)
    assert (width.get_title(loc="left"), of_bytes.get_title(loc="left")) == ("width", "bytes")
    assert [tick.get_text() for tick in width.get_yticklabels()] == ["6L", "12L"]
    drawn = {tuple(line.get_xdata()): set(line.get_ydata()) for line in width.get_lines()}
    assert drawn == {(0, 0): {0, 1}, (-3.2, -2.3): {0}, (-2.8,): {0}, (-1.0, 2.0): {1}, (0.5,): {1}}
    said = {text.get_text(): text.xy[1] for ax in (width, of_bytes) for text in ax.texts}
    assert said == {"✓ holds, −2.8 %": 0, "? inconclusive, +0.50 %": 1, "✗ doesn't hold, +8.7 %": 0}


def test_what_fits_is_coloured_by_the_smallest_card_that_has_room():
    needs = [("7B", "score", 15.0), ("7B", "serve", 15.1), ("70B", "score", 139.9), ("70B", "serve", 200.0)]
    rows = pd.DataFrame(needs, columns=["model", "job", "gigabytes"])
    (ax,) = figures.fits(rows, cards=(16, 24, 141), spare=1)
    fills = [patch.get_facecolor() for patch in ax.patches]
    named = {line.get_label(): line.get_facecolor() for line in ax.figure.legends[0].get_patches()}
    assert fills == [named["16 GB"], named["24 GB"], named["141 GB"], named["none"]]
    assert [text.get_text() for text in ax.texts] == ["15", "15", "140", "200"]
    with pytest.raises(ValueError, match="at most 5 cards"):
        figures.fits(rows, cards=range(1, 7), spare=1)
