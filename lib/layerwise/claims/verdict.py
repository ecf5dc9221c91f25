"""What a verdict is, and the rules that every claim is decided by.

All take a gain with its 95 % interval, higher = better, 0 = as good as the rival. Which interval: one that covers
everything that was drawn (calibration texts, windows or items), and no luck of choosing.

`no_worse` allows for a margin:

- holds: the whole interval is above minus the margin;
- doesn't hold: the whole interval is below minus the margin;
- inconclusive: minus the margin is inside, or the data give no interval.

`as_much_as` asks for a gain of x where it is largest:

- holds: there is a gain (the interval is above 0), and x is inside or below it;
- doesn't hold: the whole interval is below x;
- inconclusive: both 0 and x are inside, or the data give no interval.

So where nothing is gained it says "holds" with a risk of 2.5 %, and where x or more is gained it says "doesn't hold"
with the same risk. Where something is gained, but less than x, it depends on the precision: read the interval.

`a_gain` asks for one that counts, and is what a rival that nobody drew has to be beaten by:

- holds: the interval is above 0, and the least gain that counts is inside or below it;
- doesn't hold: the whole interval is below the least gain that counts;
- inconclusive: else, or the data give no interval.

`more_than_luck` is for an order of blocks against random ones. One order of many is better or worse than their mean
even if it knows nothing, and enough windows show that. So beside a gain it asks that an order without information does
as well with a chance of at most 5 %; the chance that is told is the exact upper limit of the share, beside the count.

A claim of several parts holds where all of them hold, and doesn't where one of them doesn't: `all_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from layerwise.stats import Estimate, Luck, holm, over_models

HOLDS, DOES_NOT, INCONCLUSIVE = "holds", "doesn't hold", "inconclusive"
SAID = {HOLDS: "holds", DOES_NOT: "doesn't hold", INCONCLUSIVE: "is inconclusive"}  # of a claim, in a sentence
NATS = 0.01  # per token, 1 % of perplexity: a gain of loss that counts
RISK = 0.05  # of a false finding: luck taken for one, in one setting, or after correction in any setting of many


class Part(NamedTuple):
    """A part of a claim that asks for a gain: positive = the claim's side, with the least that counts, in its unit."""

    gain: Estimate
    least: float
    unit: str


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What became of one claim on the model of `rows`; printed, glued or shown in a notebook, it reads as text.

    `effect` with its 95 % interval from `low` to `high` is in `unit`; each claim says which direction is better. They
    are NaN where the data give none. `reason` is made from the numbers. `luck` is that of the order that is judged,
    where random ones are its rivals, and `parts` are the gains that the claim asks for, where it asks for nothing else.

    Raises ValueError for a verdict that is none of "holds", "doesn't hold" and "inconclusive".
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
    luck: Luck | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in (known := (HOLDS, DOES_NOT, INCONCLUSIVE)):
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
    """Verdicts on one claim in a clause that goes on from it: "holds on 12L, 24L; is inconclusive on 6L"."""
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


def by_model(rows: pd.DataFrame, unit: str, sign: str = "+") -> str:
    """Estimates in a clause, "+1.20 nats (95 %: +1.07 to +1.33) on 6L, ...": rows with model, value, low, high.

    `sign` "-" leaves the plus out, for what is no difference.
    """
    each = rows.dropna(subset="value")[["model", "value", "low", "high"]].itertuples(index=False)
    return (
        ", ".join(f"{in_words(Estimate(*values), unit, sign)} on {model}" for model, *values in each) or "not measured"
    )


def no_worse(gain: Estimate, margin: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `margin` in the unit of the gain."""
    if np.isnan(gain.low):
        return INCONCLUSIVE, "the data give no interval"
    if gain.low > -margin:
        return HOLDS, f"all of that is better than the margin, {margin:g} {unit} worse"
    if gain.high < -margin:
        return DOES_NOT, f"all of that is beyond the margin, {margin:g} {unit} worse"
    return INCONCLUSIVE, f"the margin, {margin:g} {unit} worse, is inside that"


def as_much_as(gain: Estimate, claimed: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `claimed` in the unit of the gain."""
    if np.isnan(gain.low):
        return INCONCLUSIVE, "the data give no interval"
    if gain.high < claimed:
        return DOES_NOT, f"a gain of {claimed:g} {unit} is ruled out"
    if gain.low > 0:
        return HOLDS, f"there is a gain, and one of {claimed:g} {unit} is possible"
    return INCONCLUSIVE, f"both no gain and one of {claimed:g} {unit} are possible"


def a_gain(gain: Estimate, least: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `least`, the smallest gain that counts, in the unit of the gain."""
    if np.isnan(gain.low):
        return INCONCLUSIVE, "the data give no interval"
    if gain.high < least:
        return DOES_NOT, f"as much as {least:g} {unit} is ruled out" if least else "that is below 0"
    if gain.low > 0:
        return HOLDS, "that is above 0"
    return INCONCLUSIVE, f"both 0 and {least:g} {unit} are possible" if least else "0 is possible"


def more_than_luck(gain: Estimate, luck: Luck, least: float, unit: str) -> tuple[str, str]:
    """Verdict and, in words, why; `least`, the smallest gain that counts, in the unit of the gain."""
    verdict, why = a_gain(gain, least, unit)
    if verdict != HOLDS:
        return verdict, why
    counts = f"{luck.as_good} of {luck.drawn} orders without information do as well"
    chance = f"{counts} (p = {luck.p:.2g}; at most {100 * luck.most:.2g} % of all)"
    return (HOLDS, f"{why}, and {chance}") if luck.p <= RISK else (INCONCLUSIVE, f"{why}, but {chance}")


def corrected(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Verdicts on one claim, of a model each, with their luck corrected for the number of models by Holm's method.

    Where a claim holds on a model because few random orders do as well, one of many models would show that by chance:
    what remains of luck then leaves the verdict at "inconclusive", and so do random orders that are too few to tell.
    Verdicts without luck stay as they are.
    """
    verdicts = list(verdicts)
    lucks = [each.luck for each in verdicts if each.luck is not None]
    adjusted = iter(holm([luck.p for luck in lucks]))
    enough = math.ceil(len(lucks) / RISK) - 1
    found = []
    for each in verdicts:
        if each.luck is not None and (p := next(adjusted)) > RISK and each.verdict == HOLDS:
            why = f"Of {counted(len(lucks), 'model')}, one would do so by luck with p = {p:.2f}"
            if each.luck.drawn < enough:
                why += f"; {each.luck.drawn} random orders are too few, {enough} are needed"
            each = replace(each, verdict=INCONCLUSIVE, reason=f"{each.reason} {why}.")
        found.append(each)
    return found


def on_family(verdicts: Sequence[Verdict], family: str) -> Verdict:
    """One verdict on models that were trained alike, from those on the single ones: the model is the unit.

    Of each part of the claim the gain is the mean over models, with an interval over models and evaluation
    (`stats.over_models`), judged by `a_gain`; the claim holds where all parts do. The effect is the mean of the single
    ones. Luck is no question here: one order is another one on each model.

    Raises ValueError for fewer than two models, for one that is there twice, for different claims, and for a claim that
    asks for something else than gains.
    """
    models = [each.model for each in verdicts]
    if len(verdicts) < 2 or len(set(models)) < len(models) or len({each.claim for each in verdicts}) != 1:
        raise ValueError(f"a family needs one verdict on one claim for each of several models, not {len(verdicts)}")
    first = verdicts[0]
    if not first.parts:
        raise ValueError(f"{first.claim} asks for something else than gains: it has no verdict on several models")

    def together(estimates: Iterable[tuple[float, float, float]]) -> Estimate:
        return over_models(*np.array(list(estimates)).T)

    found, why = [], []
    for parts in zip(*(each.parts for each in verdicts), strict=True):
        gain = together(part.gain for part in parts)
        found.append(a_gain(gain, parts[0].least, parts[0].unit))
        why.append(f"{in_words(gain, parts[0].unit)}: {found[-1][1]}")
    effect = together((each.effect, each.low, each.high) for each in verdicts)
    reason = f"Over {counted(len(models), 'model')} of {family}, on average, it gains {'; '.join(why)}."
    rows = pd.concat([each.rows for each in verdicts], ignore_index=True)
    statement = f"{first.statement} (in this family: {family})"
    return Verdict(first.claim, statement, all_of(each for each, _ in found), *effect, first.unit, reason, rows)


def all_of(verdicts: Iterable[str]) -> str:
    """The verdict on a claim from those on its parts."""
    found = set(verdicts)
    return DOES_NOT if DOES_NOT in found else INCONCLUSIVE if INCONCLUSIVE in found else HOLDS


def turned(estimate: Estimate) -> Estimate:
    """The estimate of the opposite: a loss as a gain, and back."""
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def in_words(estimate: Estimate, unit: str, sign: str = "+") -> str:
    """The value with its unit and its interval, if there is one; `sign` as in a format, "+" shows it always."""
    digits = 3 if unit == "nats" else 2
    value, low, high = (f"{number:{sign}.{digits}f}".replace("-", "−") for number in estimate)
    return f"{value} {unit}" if np.isnan(estimate.low) else f"{value} {unit} (95 %: {low} to {high})"


def counted(number: int, word: str) -> str:
    """1 model, 2 models."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _models(verdict: Verdict) -> str:
    number = verdict.rows["model"].nunique()
    return verdict.model if number == 1 else f"{number} models together"
