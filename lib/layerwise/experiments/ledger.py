"""Finished results by their key: committed ones in tables of `results/`, this machine's own a file each in `rows/`."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from layerwise.experiments.results import load_rows
from layerwise.experiments.store import plain, write_whole

OWN = ("model", "key", "run")  # columns of every committed table, beside its labels and what was measured


class Result:
    """What one computation gave: rows of what was measured, and where it comes from."""

    def __init__(self, rows: list[dict], origin: Mapping, committed: bool = False):
        self.rows, self.origin, self.committed = rows, dict(origin), committed


class Ledger:
    """Results that were finished before, wherever they are, and the place for new ones.

    A table `FOLDER/CHAPTER/NAME.csv` has a column `key` (see `known.key`), labels, and what was measured; beside it
    NAME.json tells which columns are labels, and for each `run` in the column of that name its provenance. A result may
    have several rows, and stand in several tables.
    """

    def __init__(self, folder, own):
        self.folder, self.own = Path(folder), Path(own)
        self.committed: dict[str, Result] = {}
        for path in sorted(self.folder.glob("*/*.csv")):
            self._read(path)

    def _read(self, path: Path) -> None:
        sidecar = path.with_suffix(".json")
        told = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
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
        self.committed |= found

    def find(self, key: str) -> Result | None:
        """The result of that key, or None. Committed ones come first; a damaged file of one's own counts as none."""
        if key in self.committed:
            return self.committed[key]
        file = self.own / f"{key}.json"
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            return Result(told["rows"], told["provenance"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{file} is damaged: this result is computed anew", stacklevel=3)
            return None

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
        path = self.folder / chapter / f"{table}.csv"
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
        rows = rows.assign(run=rows["key"].map(runs))
        if path.exists():
            rows = pd.concat([_others(load_rows(path), told["labels"], rows, labels), rows], ignore_index=True)
        origins = {run: (told["runs"] | origins)[run] for run in rows["run"].unique()}
        ordered = ["model", *labels, *[c for c in rows if c not in {*OWN, *labels}], "key", "run"]
        write_whole(path, rows[ordered].to_csv(index=False, lineterminator="\n"))
        sidecar = {"labels": labels, "runs": origins}
        write_whole(path.with_suffix(".json"), json.dumps(sidecar, indent=2, default=plain) + "\n")
        return True


def is_clean(origin: Mapping) -> bool:
    """Whether a run can be repeated from its commit, or was carried over from tables that were committed before."""
    return not origin.get("dirty", True) or bool(origin.get("carried"))


def _others(before: pd.DataFrame, labels: list[str], rows: pd.DataFrame, new_labels: list[str]) -> pd.DataFrame:
    """The rows of a table that stay: of other models, and of these what has other labels."""
    if set(labels) != set(new_labels):  # the table is made another way now
        return before[~before["model"].isin(rows["model"].unique())]
    of = ["model", *labels]
    asked = set(rows[of].astype(str).itertuples(index=False, name=None))
    return before[[each not in asked for each in before[of].astype(str).itertuples(index=False, name=None)]]


def run_name(origin: Mapping) -> str:
    """A short name for where results come from: the same for all of one run."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True, default=plain).encode()).hexdigest()[:8]
