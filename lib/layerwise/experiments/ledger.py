"""Finished results by their key: committed ones in tables of `results/`, this machine's own a file each in `rows/`."""

import hashlib
import json
import warnings
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from layerwise.experiments.results import load_rows
from layerwise.experiments.store import plain, write_whole

OWN = ("model", "key", "run")  # columns of every committed table, beside its labels and what was measured
AMOUNTS = {"amount"}  # labels that say how much of a model in words, such as "5 of 6 blocks": models differ in them


class Result:
    """What one computation gave: rows of what was measured, and where it comes from."""

    def __init__(self, rows: list[dict], origin: Mapping, committed: bool = False):
        self.rows, self.origin, self.committed = rows, dict(origin), committed


class Ledger:
    """Results that were finished before, wherever they are, and the place for new ones.

    A table `FOLDER/CHAPTER/NAME.csv` has a column `key` (see `known.key`), labels, and what was measured; beside it
    NAME.json tells which columns are labels, and for each `run` in the column of that name its provenance. A result may
    have several rows, and stand in several tables. If `clean`, results of one's own from code with changes that no
    commit has count as none: they can't be committed.
    """

    def __init__(self, folder, own, clean: bool = False):
        self.folder, self.own, self.clean = Path(folder), Path(own), clean
        self.committed: dict[str, Result] = {}
        for path in sorted(self.folder.glob("*/*.csv")):
            self._read(path)

    def _read(self, path: Path) -> None:
        told = _sidecar(path)
        if "labels" not in told:  # a table of another kind
            return
        rows = load_rows(path)
        measured = [column for column in rows if column not in {*OWN, *told["labels"]}]
        found: dict[str, Result] = {}
        called: dict[str, tuple] = {}  # the first labels that a result stands under; it may have others too
        for of, values in zip(
            rows[["key", "run", "model", *told["labels"]]].astype(str).itertuples(index=False, name=None),
            rows[measured].itertuples(index=False, name=None),
            strict=True,
        ):
            name, run = of[:2]
            if called.setdefault(name, of) == of:
                row = {column: value for column, value in zip(measured, values, strict=True) if not pd.isna(value)}
                found.setdefault(name, Result([], told["runs"][run], committed=True)).rows.append(row)
        for name, result in found.items():
            if name not in self.committed or self.committed[name].origin.get("carried"):
                self.committed[name] = result  # one that was made by this code comes before one that was carried over

    def find(self, key: str) -> Result | None:
        """The result of that key, or None. Committed ones come first; a damaged file of one's own counts as none."""
        if key in self.committed:
            return self.committed[key]
        file = self.own / f"{key}.json"
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            result = Result(told["rows"], told["provenance"])
            return None if self.clean and not is_clean(result.origin) else result
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{file} is damaged: this result is computed anew", stacklevel=3)
            return None

    def beside(self, chapter: str, table: str, model: str, asked: list[tuple[Mapping, str]]) -> pd.DataFrame:
        """Committed rows of a model that isn't run, where what is asked of others under their labels is as committed.

        `asked` has labels and key of each result. A name doesn't tell what function or rule decided: where one was
        edited, its results are no committed ones, and what is committed under its name stays away. A line says so where
        nothing is left of what there is.
        """
        words = {label for labels, _ in asked for label, value in labels.items() if isinstance(value, str)}
        words = sorted(words - AMOUNTS)
        same: dict[tuple, bool] = {}
        for labels, key in asked:
            called = tuple(labels.get(word) for word in words)
            same[called] = same.get(called, True) and key in self.committed
        path = self.folder / chapter / f"{table}.csv"
        rows = load_rows(path).drop(columns="run") if path.exists() else pd.DataFrame(columns=["model", *words])
        rows.attrs = {}
        rows = rows[rows["model"] == model]
        some = len(rows)
        if set(words) <= set(rows):
            rows = rows[[same.get(called, False) for called in rows[words].itertuples(index=False, name=None)]]
        else:
            rows = rows[:0]
        if some and rows.empty:
            print(f"{table}: no results of {model} stand beside, since none of what is asked here is committed of it")
        return rows.dropna(axis="columns", how="all")

    def unasked(self, chapter: str, asked: Mapping[str, list[Mapping]], models: Container[str]) -> pd.DataFrame:
        """What the chapter's tables hold of these models and nothing asks for any more: table, model and labels.

        `asked` has, by table, the model and the labels of each result.
        """
        found = [pd.DataFrame(columns=["table", "model"])]
        for path in sorted((self.folder / chapter).glob("*.csv")):
            if "labels" not in (told := _sidecar(path)):
                continue
            labels = told["labels"]
            rows = load_rows(path)[["model", *labels]].drop_duplicates()
            wanted = pd.DataFrame(asked.get(path.stem, []), columns=["model", *labels])
            names = set(_labelled(wanted, labels))
            left = [each[0] in models and each not in names for each in _labelled(rows, labels)]
            found.append(rows[left].assign(table=path.stem))
        return pd.concat(found, ignore_index=True)

    def add(self, key: str, result: Result) -> Result:
        """Keep a new result in `rows/`, at once and whole; returns it as reading it back would give it."""
        text = json.dumps({"rows": result.rows, "provenance": result.origin}, indent=1, default=plain)
        write_whole(self.own / f"{key}.json", text)
        return Result(json.loads(text)["rows"], result.origin)

    def commit(self, chapter: str, table: str, rows: pd.DataFrame, labels: list[str], results: Mapping) -> bool:
        """Put rows of finished results into a table of `results/`, in place of those of the same labels.

        `rows` has the columns `model`, `key`, `labels` and what was measured; `results` the result of each key.
        Refuses, in a line, where one was made with changes that no commit has, since nobody could make it again:
        returns whether it was written.
        """
        runs = {key: run_name(result.origin) for key, result in results.items()}
        origins = {runs[key]: result.origin for key, result in results.items()}
        if not all(is_clean(origin) for origin in origins.values()):
            print(
                f"{table}: not put into {self.folder.name}/{chapter}, since the code has changes that no commit has: "
                "commit them and run again"
            )
            return False
        _put(self.folder / chapter / f"{table}.csv", rows.assign(run=rows["key"].map(runs)), labels, origins)
        return True


def add_table(path, source) -> list[str]:
    """Put the results of another table, which a run elsewhere has written, into that at `path`; returns its models.

    They take the place of those with the same labels. Raises ValueError for a table that doesn't say what its results
    are known by, and for one that was made by code with changes that no commit has.
    """
    path, source = Path(path), Path(source)
    told = _sidecar(source)
    if "labels" not in told:
        raise ValueError(f"{source}: it doesn't say what its results are known by; take those of the full profile")
    if not all(is_clean(origin) for origin in told["runs"].values()):
        raise ValueError(f"{source}: its code had changes that no commit has, so nobody could make it again")
    rows = load_rows(source)
    models = list(rows["model"].unique())
    _put(path, rows, told["labels"], told["runs"])
    return models


def apart(new: list[dict], known: Result, by_mean: bool = False) -> float:
    """The largest difference of what was measured by window, block or item; of windows that of their mean if `by_mean`,
    of the divergence, where both have it, always that.

    The share of items that are answered otherwise counts as one. Other bytes, where both have them, are infinitely far.
    """
    found = [0.0]
    for row, before in zip(new, known.rows, strict=True):
        windows = [row[name] - before[name] for name in before if name[0] == "w" and name[1:].isdigit()]
        found += [abs(np.mean(windows))] if windows and by_mean else np.abs(windows).tolist()
        found += [abs(row[name] - before[name]) for name in ("value", "kl") if name in row and name in before]
        if "bytes" in row and "bytes" in before and row["bytes"] != before["bytes"]:
            found.append(np.inf)
        if "right" in before:
            found.append(np.mean([a != b for a, b in zip(row["right"], before["right"], strict=True)]))
    return float(max(found))


def is_clean(origin: Mapping) -> bool:
    """Whether a run can be repeated from its commit, or was carried over from tables that were committed before."""
    return not origin.get("dirty", True) or bool(origin.get("carried"))


def _sidecar(path: Path) -> dict:
    sidecar = path.with_suffix(".json")
    return json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}


def _put(path: Path, rows: pd.DataFrame, labels: list[str], origins: Mapping) -> None:
    """Write rows to a table, in place of those with the same labels, and its sidecar."""
    if "labels" in (told := _sidecar(path)):
        rows = pd.concat([_others(load_rows(path), told["labels"], rows, labels), rows], ignore_index=True)
        origins = told["runs"] | dict(origins)
    ordered = ["model", *labels, *[column for column in rows if column not in {*OWN, *labels}], "key", "run"]
    write_whole(path, rows[ordered].to_csv(index=False, lineterminator="\n"))
    sidecar = {"labels": labels, "runs": {run: origins[run] for run in rows["run"].unique()}}
    write_whole(path.with_suffix(".json"), json.dumps(sidecar, indent=2, default=plain) + "\n")


def _others(before: pd.DataFrame, labels: list[str], rows: pd.DataFrame, new_labels: list[str]) -> pd.DataFrame:
    """The rows of a table that stay: of other models, and of these what has other labels."""
    if set(labels) != set(new_labels):  # the table is made another way now
        return before[~before["model"].isin(rows["model"].unique())]
    asked = set(_labelled(rows, labels))
    return before[[each not in asked for each in _labelled(before, labels)]]


def _labelled(rows: pd.DataFrame, labels: list[str]) -> Iterator[tuple]:
    """What each row is called, the same whether it was read from a file, which makes numbers of "32" too, or not."""

    def read(value):
        try:
            return "" if pd.isna(value) else float(value)
        except ValueError:
            return value

    for values in rows[["model", *labels]].itertuples(index=False, name=None):
        yield tuple(map(read, values))


def run_name(origin: Mapping) -> str:
    """A short name for where results come from: the same for all of one run."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True, default=plain).encode()).hexdigest()[:8]
