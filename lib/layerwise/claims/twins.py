"""Whether a model that was trained another way stands apart from its twins: the same but for the training seed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from layerwise import stats

_SCALES = {  # on which training seeds are taken to be normal, and back
    "rank correlation": (np.arctanh, np.tanh),
    "%": (np.asarray, lambda shares: np.clip(shares, 0, 100)),
}
_COLUMNS = ["model", "kind", "unit", "value", "low", "high", "twins", "from", "to", "apart"]


def beside_twins(rows: pd.DataFrame, twins: str = "AdamW", other: str = "muon") -> pd.DataFrame:
    """Every quantity of the models of the recipe `other`, and where one more of their twins would have it.

    Rows, one per model and kind (of quantity): model, kind, blocks, recipe, unit ("rank correlation" or "%"), and value
    with its 95 % interval, low and high. Twins have as many blocks.

    One row per model of `other` and kind: how many twins there are, and `from`, `to`, the 95 % prediction interval of
    one more, of correlations on Fisher's scale: NaN with fewer than two, or if all have the same value. `apart` says
    whether the model's own interval lies outside; None where there is none to compare with.
    """
    found = []
    for row in rows[rows["recipe"] == other].to_dict("records"):
        alike = (rows["recipe"] == twins) & (rows["kind"] == row["kind"]) & (rows["blocks"] == row["blocks"])
        values = rows.loc[alike, "value"]
        beside = {"twins": len(values), "from": np.nan, "to": np.nan, "apart": None}
        if values.nunique() > 1:
            there, back = _SCALES[row["unit"]]
            _, beside["from"], beside["to"] = back(stats.another(there(values)))
            beside["apart"] = row["low"] > beside["to"] or row["high"] < beside["from"]
        found.append(row | beside)
    return pd.DataFrame(found, columns=_COLUMNS)


def twins_in_words(row: Mapping) -> str:
    """A row of `beside_twins` whose `apart` is known as part of a sentence."""
    form = "{:+.2f}" if row["unit"] == "rank correlation" else "{:.0f} %"
    value, low, high, least, most = (form.format(row[each]) for each in ("value", "low", "high", "from", "to"))
    stands = "stands apart" if row["apart"] else "doesn't clearly stand apart"
    told = (
        f"{value} ({low} to {high}); judging by {row['twins']} twins, another seed by AdamW would lie between "
        f"{least} and {most}, so it {stands}"
    )
    return told.replace("-", "−")
