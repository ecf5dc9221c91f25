"""What the page `book/planner` computes with: models, the sizes of groups, and quality as it was measured.

The page computes by itself, in the reader's browser (`book/_static/planner.js`), and its formulas are those of
`lw.shape` and `Plan.predicted_bytes`. What it computes with is written here, from the library and the committed
results, when the book is staged, so that nothing of it is typed into the page.
"""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from layerwise.costs.fitting import WIDTHS
from layerwise.plans.storage import Grouped

MODELS = Path("results", "models.csv")
MEASURED = Path("results", "fit_a_budget", "budgets.csv")
SCRIPT = Path("book", "_static", "planner_data.js")  # of the staged book

CARDS = (6, 8, 12, 16, 24, 40, 80, 141)  # gigabytes
ASIDE = 10**9  # bytes of each for the process and its libraries
# While a matrix of few bits is used, layerwise holds its weights in float32 and in the model's own two bytes.
UNPACKED = 6  # bytes
UNIFORM = (8, 6, 4, 3, 2)  # bits
COSTS = {"fit": "lw.fit", "uniform": "uniform"}  # by need, and one width for everything, as the table calls them
TEXT = ("name", "model_type", "dtype", "source")


def configurations(root: Path) -> list[dict]:
    """The models to choose from, from small to large: fields of their `config.json`, and their `name` on the Hub."""
    with open(root / MODELS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: int(row["parameters"]))
    return [
        {key: text if key in TEXT else json.loads(text) for key, text in row.items() if text and key != "source"}
        for row in rows
    ]


def over_samples(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rows that are alike in the columns `by`, one per calibration sample, as one: the mean of `kl`, and the ends of
    all intervals, `low` and `high`."""
    return rows.groupby(by, as_index=False).agg(kl=("kl", "mean"), low=("kl_low", "min"), high=("kl_high", "max"))


def quality(root: Path) -> list[dict]:
    """What bits cost on the models that were measured, pretrained ones first; empty where nothing has been measured.

    Each has its `model`, whether it is `pretrained`, and for `fit` and `uniform` a list of `[budget, kl, low, high]`
    with rising budgets: as many bytes as everything takes at so many bits. KL is in nats per token, with its 95 %
    interval; where there are several calibration samples, the mean of them and the ends of all their intervals.
    """
    if not (root / MEASURED).is_file():
        return []
    rows = pd.read_csv(root / MEASURED, low_memory=False)
    rows = rows[(rows["quantizer"] == "rtn") & rows["cost"].isin(COSTS.values())]
    points = over_samples(rows, ["model", "cost", "budget"])
    found = []
    for model, part in points.groupby("model"):
        each = {}
        for name, cost in COSTS.items():
            values = part.loc[part["cost"] == cost, ["budget", "kl", "low", "high"]].values
            each[name] = [[float(f"{value:.4g}") for value in point] for point in values]
        found.append({"model": Path(model).name, "pretrained": model.startswith("packaged/"), **each})
    return sorted(found, key=lambda one: (not one["pretrained"], len(one["model"]), one["model"]))


def script(root: Path) -> str:
    """The script that gives the page its data."""
    data = {
        "models": configurations(root),
        "cards": CARDS,
        "aside": ASIDE,
        "unpacked": UNPACKED,
        "uniform": UNIFORM,
        "widths": WIDTHS,
        "groups": asdict(Grouped()),
        "quality": quality(root),
    }
    return f"globalThis.plannerData = {json.dumps(data, indent=1)};\n"
