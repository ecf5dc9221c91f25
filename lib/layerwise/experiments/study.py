"""What the experiments of a chapter share: models, texts, and results that are known by what was computed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from layerwise import models as by_name
from layerwise.backbone.shapes import shape
from layerwise.experiments.cases import Case, Function, Runner, filled
from layerwise.experiments.known import key, known
from layerwise.experiments.ledger import Ledger, Result, apart, is_clean
from layerwise.experiments.workers import elsewhere
from layerwise.provenance import provenance
from layerwise.quantization import quantizer
from layerwise.text import corpora, published


class Study:
    """The models and texts of a chapter, and its results: found where they are known, run where they are missing.

    A result is known by the model's fingerprint and dtype, the plan, the quantizer's settings and code, the texts and
    the measure (see `known`): an edit of any of these computes it anew, and nothing else does. Names, labels, figures
    and the text of a chapter are no part of it.

    `models`, `tokenizers`, `shapes` are dicts by the name in tables, without "embedded/"; `last` is the last name.

    Parameters
    ----------
    chapter : str
        Its folder in `results/`.
    models : str or Mapping
        Names for `lw.load`, separated by commas, or "embedded" for all that the book ships; or models of one's own,
        {name: (model, tokenizer)}.
    corpus, length : str, int
        What `lw.tokens` takes its windows from, and tokens in each.
    test : int
        Windows of test text that quality is measured on: the same for both profiles, so that results compare.
    full : bool
        Whether to run all that is asked and to put it into `results/`; else what is committed is taken, and only what
        is quick is run where nothing is known.
    data : path, optional
        A folder with copies of published corpora (see `lw.tokens`), where the Hub can't be reached. Calibration text of
        "wikitext2" is of its validation split, since copies have no training text.
    beside : str
        Names of models that aren't run here, separated by commas: their committed results stand beside those of the
        others, where these are committed too.
    results, rows : path
        Where committed tables are, and where what is run here is kept, a file for each result.
    executor : concurrent.futures.Executor, optional
        Runs what is missing on its workers, which load the models by their names; else it is run here.
    """

    def __init__(
        self, chapter: str, models, corpus: str = "world", length: int = 256, test: int = 16, full: bool = False,
        data=None, beside: str = "", results="../results", rows="rows", executor: Executor | None = None,
    ):  # fmt: skip
        self.chapter, self.corpus, self.length, self.full = chapter, corpus, length, full
        self.data, self.executor, self.test_windows = data or None, executor, test
        self.ledger = Ledger(results, rows, clean=full and is_clean(provenance()))
        self.models, self.tokenizers, self.paths = {}, {}, {}
        for name, path, loaded in _loaded(models):
            self.models[name], self.tokenizers[name] = loaded
            self.paths[name] = path
        if executor is not None and None in self.paths.values():
            raise ValueError("workers load models by name: give names, not models, with an executor")
        self.shapes = {name: shape(model) for name, model in self.models.items()}
        self.last = list(self.models)[-1]
        self.beside = [name for each in beside.split(",") if (name := each.strip()) and name not in self.models]
        self._texts: dict = {}
        self._known: dict = {name: known(model) for name, model in self.models.items()}
        self._of_text: dict[int, object] = {}
        self._found: dict = {}  # this chapter's committed results by table and model, for `recheck`
        self._asked: dict = {}  # model and labels of all that was asked, by table, for `unasked`
        self._scores: dict = {}

    def text(self, model: str, split: str = "calibration", n: int = 32, seed: int = 0, corpus: str | None = None):
        """Tokens `[n, length]` of the corpus for a model, by its own tokenizer; drawn once."""
        of = (model, split, n, seed, corpus or self.corpus)
        if of not in self._texts:
            copies = {} if self.data is None or of[-1] not in published.CORPORA else {"data": self.data}
            if of[-1] == "wikitext2" and split == "calibration":
                split = "validation"  # from the Hub too: copies have no training text
            self._texts[of] = corpora.tokens(
                self.tokenizers[model], of[-1], split, n=n, length=self.length, seed=seed, **copies
            )
        return self._texts[of]

    def test(self, model: str) -> torch.Tensor:
        """The test text that quality is measured on."""
        return self.text(model, "test", self.test_windows)

    def values(
        self, table: str, functions: Mapping[str, Callable], models: Iterable[str] | None = None, split="calibration",
        n: int = 64, seed: int = 0, corpus: str | None = None, label: str = "score", quick=lambda labels: True,
        **labels,
    ) -> pd.DataFrame:  # fmt: skip
        """What functions of `(model, tokens)` give for each block: a row per block, `value` or w0, w1, ... by window.

        A function returns `[L]`, as every score does, `[L, windows]`, or what `lw.scores.measure` does, whose `low` and
        `high` are kept too; its name goes into the column `label`, beside `draw` and what other `labels` say.
        """
        asked = []
        for name in models or self.models:
            tokens = self.text(name, split, n, seed, corpus)
            for called, function in functions.items():
                what = {"model": self._known[name], "function": function, "text": self._hashed(tokens)}
                asked.append((Function(name, {label: called, "draw": seed} | labels, function, tokens), key(what)))
        return self._table(table, asked, quick, "values", corpus)

    def score(
        self, model: str, function: Callable, n: int = 64, seed: int = 0, corpus: str | None = None, quick: bool = True
    ) -> np.ndarray | None:
        """Importance `[L]` of a model's blocks by `function(model, tokens)`, on `n` windows of calibration text.

        The same numbers wherever the book is built: those of `results/` where they are committed, since the last digit
        may decide which of two blocks goes first. One that takes long isn't `quick`: it is run in the full profile, and
        else None where it isn't known.
        """
        of = (model, key({"function": function}), n, seed, corpus)
        if of not in self._scores:
            about = {"windows": n, "text": corpus or self.corpus}  # by which a table tells scores of one name apart
            called = getattr(function, "__name__", type(function).__name__)
            named = {called: function}
            alone = copy(self)
            alone.beside = []  # it is one model's
            found = alone.values(
                "scores", named, [model], "calibration", n, seed, corpus, quick=lambda labels: quick, **about
            )
            if found.empty:
                if not (quick or self.full):
                    return None
                raise ValueError(f"{called} gave nothing on {model}: the warning above says why")
            found = found[found["model"] == model]
            self._scores[of] = found.sort_values("block")["value"].to_numpy()
        return self._scores[of]

    def case(
        self, model: str, plan, /, by=None, draw: int = 0, n: int = 32, corpus=None, shared=False, seed=None, **labels
    ) -> Case:
        """A plan to be measured, by a quantizer (a name or a function), calibrated on a draw of `n` windows.

        Where the draw is one of something else, such as a random order, `seed` is that of the calibration text.
        """
        case = Case(model, {"draw": draw} | labels, plan, None if by is None else quantizer(by), shared=shared)
        text = self.text(model, "calibration", n, draw if seed is None else seed, corpus) if case.reads_text else None
        return replace(case, calibration=text)

    def quality(
        self, table: str, cases: Iterable[Case], quick: Callable[[Mapping], bool] = lambda labels: True,
        split: str = "test", windows: str = "loss", corpus: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Every case against the dense model on the test text: its labels, sizes, loss, KL; w0, w1, ... of `windows`.

        Choices may rest on another `split`; another `corpus`, which a label `text` should name, says what holds beyond
        the text that was scored on. `loss` is the compressed model's minus the dense model's, in nats per token, with
        95 % intervals over windows. What isn't known is run if `quick(labels)` or in the full profile. Cases that fail
        are told in a warning and missing; what was finished is kept.
        """
        asked, how = [], {"windows": windows} if windows != "loss" else {}
        for case in cases:
            text = self.text(case.model, split, self.test_windows, corpus=corpus)
            measure = {"measure": "quality", "test": self._hashed(text)} | how
            asked.append((replace(case, text=text), key(self._what(case) | measure)))
        return self._table(table, asked, quick, "quality", corpus, **how)

    def answers(
        self, table: str, cases: Iterable[Case], tasks: Iterable[str], items: int | None = None, data=None,
        quick: Callable[[Mapping], bool] = lambda labels: True,
    ) -> pd.DataFrame:  # fmt: skip
        """Every case on tasks of lm-eval: its labels, `task`, and `right`, which has a + or a - for each item."""
        asked = []
        for case in cases:
            for task in tasks:
                measure = {"measure": "answers", "task": task, "items": items}
                if data is not None:
                    measure["data"] = hashlib.sha256((Path(data) / f"{task}.jsonl").read_bytes()).hexdigest()
                of_task = replace(case, labels={**case.labels, "task": task})
                asked.append((of_task, key(self._what(case) | measure)))
        return self._table(table, asked, quick, "answers", items=items, data=data)

    def recheck(
        self, count: int = 1, tolerance: float = 1e-3, chosen=lambda labels: True, by_mean: bool = False
    ) -> pd.DataFrame:
        """Run a sample of the committed results again: `count` for each table and model, with how far they are apart.

        The sample is the same at every build, and of those for which `chosen(labels)`, with the model among the labels.
        Raises AssertionError where one differs by more than `tolerance`, in nats or whatever its unit is, in any window
        or block, or `by_mean` over windows, for techniques that repeat themselves on average only; and in its bytes.
        """
        rows = []
        for (table, model), (found, how, settings) in self._found.items():
            sample = {name: case for case, name in found if chosen({"model": model, **case.labels})}
            for name, case in sorted(sample.items(), key=lambda each: each[0])[:count]:
                runner = Runner(self.models[model], self.tokenizers[model])
                ((_, new),) = getattr(runner, how)([case], **settings)
                if isinstance(new, Exception):
                    raise new
                about = {"table": table, "model": model, **case.labels}
                rows.append(about | {"apart": apart(new, self.ledger.find(name), by_mean)})
        checked = pd.DataFrame(rows, columns=None if rows else ["table", "model", "apart"])
        if len(wrong := checked[~(checked["apart"] <= tolerance)]):
            raise AssertionError(f"committed results are not what is computed now:\n{wrong.to_string(index=False)}")
        return checked

    def unasked(self) -> pd.DataFrame:
        """Committed results of the chapter and its models under labels that nothing has asked for up to here."""
        return self.ledger.unasked(self.chapter, self._asked, self.models)

    def _what(self, case):
        what = {"model": self._known[case.model]} | case.what
        if "calibration" in what:
            what["calibration"] = self._hashed(what["calibration"])
        return what

    def _hashed(self, tokens):
        """What a text is known by; they are few and kept, so each is hashed once."""
        if id(tokens) not in self._of_text:
            self._of_text[id(tokens)] = (known(tokens), tokens)
        return self._of_text[id(tokens)][0]

    def _table(self, table: str, asked: list[tuple], quick, how: str, corpus=None, **settings) -> pd.DataFrame:
        """Rows of all that is asked, in order: what isn't known is run by a method of `Runner`."""
        # Of one name the last counts: a cell that adds to a list may be run again, edited or not.
        asked = list({(case.model, *case.labels.items()): (case, name) for case, name in asked}.values())
        self._asked.setdefault(table, []).extend({"model": case.model, **case.labels} for case, _ in asked)
        results = {name: self.ledger.find(name) for _, name in asked}
        wanted = {name: case for case, name in reversed(asked) if self.full or quick(case.labels)}
        missing = {name: case for name, case in wanted.items() if results[name] is None}
        for name, rows, origin in self._run(table, missing, how, settings):
            about = {"text": corpus or self.corpus, "length": self.length}
            results[name] = self.ledger.add(name, Result(rows, {**origin, **about}))
        for model in self.models:
            there = [(case, name) for case, name in asked if case.model == model and name in self.ledger.committed]
            self._found.setdefault((table, model), ([], how, settings))[0].extend(there)
        # What isn't wanted is shown where it is committed only: a sweep would have the few plans that others share.
        committed = self.ledger.committed
        shown = [(case, name) for case, name in asked if self.full or quick(case.labels) or name in committed]
        if left := len(asked) - len(shown):
            print(f'{table}: {left} results of the full profile aren\'t there; PROFILE = "full" makes them')
        found = pd.DataFrame(
            {"model": case.model, **case.labels, "key": name} | filled(row, case, self.shapes[case.model])
            for case, name in shown
            if results[name]
            for row in results[name].rows
        )
        if self.full and len(found):
            labels = list(dict.fromkeys(label for case, _ in asked for label in case.labels))
            self.ledger.commit(self.chapter, table, found, labels, {n: r for n, r in results.items() if r})
        keys = [(case.labels, name) for case, name in asked]
        others = [self.ledger.beside(self.chapter, table, model, keys) for model in self.beside]
        return pd.concat([found, *others], ignore_index=True) if others else found

    def _run(self, table: str, missing: Mapping, how: str, settings: Mapping):
        """Run what is missing, each finished one handed out at once; a warning tells what failed."""
        failures = []
        with tqdm(total=len(missing), desc=table, disable=None if missing else True) as bar:
            for name, outcome, origin in self._outcomes(missing, how, settings):
                if isinstance(outcome, Exception):
                    case = missing[name]
                    labels = ", ".join(f"{k} {v}" for k, v in {"model": case.model, **case.labels}.items())
                    failures.append(f"{labels}: {type(outcome).__name__}: {outcome}")
                else:
                    yield name, outcome, origin
                bar.update()
        if failures:
            listed = "\n  ".join(failures[:10])
            warnings.warn(f"{table}: {len(failures)} of {len(missing)} failed:\n  {listed}", stacklevel=4)

    def _outcomes(self, missing, how, settings):
        origin = provenance() if missing else {}
        names = {id(case): name for name, case in missing.items()}
        for model in self.models:
            todo = [case for case in missing.values() if case.model == model]
            if todo and self.executor is None:
                runner = Runner(self.models[model], self.tokenizers[model])
                for case, outcome in getattr(runner, how)(todo, **settings):
                    yield names[id(case)], outcome, origin
            elif todo:
                for case, outcome, where in elsewhere(self.executor, self.paths[model], how, todo, settings, origin):
                    yield names[id(case)], outcome, where


def _loaded(models):
    if isinstance(models, Mapping):
        yield from ((name, None, loaded) for name, loaded in models.items())
        return
    paths = by_name.embedded() if models == "embedded" else models.split(",")
    for path in map(str.strip, paths):
        yield path.removeprefix("embedded/"), path, by_name.load(path)
