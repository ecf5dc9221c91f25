"""What a verdict is, and the rules that every claim is decided by.

All take a gain with its 95 % interval, higher = better, 0 = as good as the rival. Which interval: one that covers
everything that was drawn (calibration texts, windows or items), and no luck of choosing.

`no_worse` allows for a margin:

- holds: the whole interval is above minus the margin;
- doesn't hold: the whole interval is below minus the margin;
- can't tell: minus the margin is inside, or the data give no interval.

`as_much_as` asks for a gain of x where it is largest:

- holds: there is a gain (the interval is above 0), and x is inside or below it;
- doesn't hold: the whole interval is below x;
- can't tell: both 0 and x are inside, or the data give no interval.

So where nothing is gained it says "holds" with a risk of 2.5 %, and where x or more is gained it says "doesn't hold"
with the same risk. Where something is gained, but less than x, it depends on the precision: read the interval.

`more_than_luck` is for an order of blocks against random ones. One order of many is better or worse than their mean
even if it knows nothing, and enough windows show that. So beside the interval it takes the luck, the share of orders
without information that do as well:

- holds: there is a gain (the interval is above 0), the least gain that counts is inside or below it, and the luck is at
  most 5 %;
- doesn't hold: the whole interval is below the least gain that counts;
- can't tell: else, or the data give no interval.

A claim of several parts holds where all of them hold, and doesn't where one of them doesn't: `all_of`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from layerwise.stats import Estimate

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "doesn't hold", "can't tell"
SAID = {HOLDS: "holds", DOES_NOT: "doesn't hold", CANNOT_TELL: "can't be told"}  # of a claim, in a sentence
RISK = 0.05  # of a false finding: luck taken for one, in one setting, or after correction in any setting of many


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What became of one claim on the model of `rows`; printed, glued or shown in a notebook, it reads as text.

    `effect` with its 95 % interval from `low` to `high` is in `unit`; each claim says which direction is better. They
    are NaN where the data give none. `reason` is made from the numbers.

    Raises ValueError for a verdict that is none of "holds", "doesn't hold" and "can't tell".
    """

    claim: str
    statement: str
    verdict: str
    effect: float
    low: float
    high: float
    unit: str
    reason: str
    rows: pd.DataFrame

    def __post_init__(self) -> None:
        if self.verdict not in (known := (HOLDS, DOES_NOT, CANNOT_TELL)):
            raise ValueError(f"a verdict is one of {', '.join(map(repr, known))}, not {self.verdict!r}")

    @property
    def model(self) -> str:
        """The model, or the models, that the rows are of."""
        return ", ".join(map(str, self.rows["model"].unique()))

    def __repr__(self) -> str:
        return f"{self.claim} on {self.model}: {self.verdict}. {self.reason}"

    def _repr_html_(self) -> str:
        head = f"<strong>{escape(self.claim)}: {escape(self.verdict)}</strong> on {escape(self.model)}"
        return f"<p>{head}<br><em>{escape(self.statement)}</em><br>{escape(self.reason)}</p>"


def table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Verdicts as rows, one each, without the rows that they rest on: what is shown side by side, or committed."""
    names = ["claim", "model", "verdict", "effect", "low", "high", "unit", "reason"]
    return pd.DataFrame([[getattr(verdict, name) for name in names] for verdict in verdicts], columns=names)


def told(verdicts: Iterable[Verdict]) -> str:
    """For each verdict where the claim stands, and why."""
    return " ".join(f"On {_models(each)} it {SAID[each.verdict]}. {each.reason}" for each in verdicts)


def summary(verdicts: Iterable[Verdict]) -> str:
    """Verdicts on one claim in a clause that goes on from it: "holds on 12L, 24L; can't be told on 6L"."""
    on: dict[str, list[str]] = {verdict: [] for verdict in SAID}
    for each in verdicts:
        on[each.verdict].append(_models(each))
    told_of = (f"{SAID[verdict]} on {', '.join(names)}" for verdict, names in on.items() if names)
    return "; ".join(told_of) or "was not judged"


def effects(verdicts: Iterable[Verdict]) -> str:
    """The effect of each verdict with its interval, in a clause: "−0.75 % (95 %: −1.02 to −0.48) on 12L, ..."."""
    return ", ".join(
        f"{in_words(Estimate(each.effect, each.low, each.high), each.unit)} on {_models(each)}" for each in verdicts
    )


def estimates(rows: pd.DataFrame, unit: str, sign: str = "+") -> str:
    """The same of rows with model, value, low, high; `sign` "-" leaves the plus out, for what is no difference."""
    each = rows.dropna(subset="value")[["model", "value", "low", "high"]].itertuples(index=False)
    said = [f"{in_words(Estimate(*values), unit, sign)} on {model}" for model, *values in each]
    return ", ".join(said) or "not measured"


def no_worse(gain: Estimate, margin: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `margin` in the unit of the gain."""
    if np.isnan(gain.low):
        return CANNOT_TELL, "the data give no interval"
    if gain.low > -margin:
        return HOLDS, f"all of that is better than the margin, {margin:g} {unit} worse"
    if gain.high < -margin:
        return DOES_NOT, f"all of that is beyond the margin, {margin:g} {unit} worse"
    return CANNOT_TELL, f"the margin, {margin:g} {unit} worse, is inside that"


def as_much_as(gain: Estimate, claimed: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `claimed` in the unit of the gain."""
    if np.isnan(gain.low):
        return CANNOT_TELL, "the data give no interval"
    if gain.high < claimed:
        return DOES_NOT, f"a gain of {claimed:g} {unit} is ruled out"
    if gain.low > 0:
        return HOLDS, f"there is a gain, and one of {claimed:g} {unit} is not ruled out"
    return CANNOT_TELL, f"neither no gain nor one of {claimed:g} {unit} is ruled out"


def more_than_luck(gain: Estimate, luck: float, least: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `least`, the smallest gain that counts, in the unit of the gain."""
    if np.isnan(gain.low):
        return CANNOT_TELL, "the data give no interval"
    chance = f"{100 * luck:.2g} % of orders without information may do as well"
    if gain.high < least:
        return DOES_NOT, f"as much as {least:g} {unit} is ruled out" if least else "that is below 0"
    if gain.low > 0 and luck <= RISK:
        return HOLDS, f"that is above 0, and only {chance}"
    if gain.low > 0:
        return CANNOT_TELL, f"that is above 0, but {chance}"
    return CANNOT_TELL, f"neither 0 nor {least:g} {unit} is ruled out" if least else "0 is not ruled out"


def all_of(verdicts: Iterable[str]) -> str:
    """The verdict on a claim from those on its parts."""
    found = set(verdicts)
    return DOES_NOT if DOES_NOT in found else CANNOT_TELL if CANNOT_TELL in found else HOLDS


def turned(estimate: Estimate) -> Estimate:
    """The estimate of the opposite: a loss as a gain, and back."""
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def in_words(estimate: Estimate, unit: str, sign: str = "+") -> str:
    """The value with its unit and its interval, if there is one; `sign` as in a format, "+" shows it always."""
    value, low, high = (f"{number:{sign}.2f}".replace("-", "−") for number in estimate)
    return f"{value} {unit}" if np.isnan(estimate.low) else f"{value} {unit} (95 %: {low} to {high})"


def counted(number: int, word: str) -> str:
    """1 draw, 2 draws."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _models(verdict: Verdict) -> str:
    number = verdict.rows["model"].nunique()
    return verdict.model if number == 1 else f"{number} models together"
