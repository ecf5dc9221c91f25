"""Rows of a study's tables, put the way that figures and claims take them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats


def window_rows(rows: pd.DataFrame, value: str = "loss") -> pd.DataFrame:
    """Rows with columns w0, w1, ... as a row for each window, with the columns `window` and `value`; empty ones go."""
    windows = [column for column in rows if column[0] == "w" and column[1:].isdigit()]
    kept = [column for column in rows if column not in {*windows, value}]
    long = rows[[*kept, *windows]].melt(id_vars=kept, value_vars=windows, var_name="window", value_name=value)
    long["window"] = long["window"].str[1:].astype(int)
    return long.dropna(subset=[value]).reset_index(drop=True)


def item_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `right`, a + or a - for each item, as a row for each item, with the columns `item` and `correct`."""
    long = rows.assign(correct=rows["right"].map(list)).drop(columns="right").explode("correct")
    long["item"] = long.groupby(level=0).cumcount()
    return long.assign(correct=(long["correct"] == "+").astype(int)).reset_index(drop=True)


def cost_table(costs: pd.DataFrame, model: str, quantizer: str, cost: str) -> np.ndarray:
    """What each part costs at each width, `[parts, widths]`, from rows of `Study.values`: model, quantizer, cost, block
    (the number of the part), w0, w1, ... by width."""
    own = costs[(costs["model"] == model) & (costs["quantizer"] == quantizer) & (costs["cost"] == cost)]
    own = own.dropna(axis="columns", how="all").sort_values("block")
    return own[[name for name in own if name[0] == "w" and name[1:].isdigit()]].to_numpy()


def accuracy_rows(answers: pd.DataFrame, dense: str = "dense") -> pd.DataFrame:
    """What each case answers right, over the items of all tasks, minus what the dense model does on the same items.

    `answers` as `Study.answers` gives them, with a column `family`; that of the dense model is called `dense`. A row
    per case, with its labels, and `value`, `low`, `high` in points of accuracy, 95 % over items. Tasks that the dense
    model has no answers to are left out.
    """
    labels = [name for name in answers if name not in {"task", "right", "key", "seconds"}]
    found = []
    for _, part in answers.groupby("model", sort=False):
        reference = part[part["family"] == dense].set_index("task")["right"]
        for values, case in part[part["family"] != dense].groupby(labels, sort=False, dropna=False):
            own = dict(zip(case["task"], case["right"], strict=True))
            if not (pairs := [(own[task], reference[task]) for task in own if task in reference]):
                continue
            own, other = (np.array(list("".join(each))) == "+" for each in zip(*pairs, strict=True))
            gain = stats.mean(100 * (own.astype(float) - other))
            found.append(dict(zip(labels, values, strict=True)) | gain._asdict())
    return pd.DataFrame(found, columns=[*labels, "value", "low", "high"])
