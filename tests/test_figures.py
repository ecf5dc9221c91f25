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
