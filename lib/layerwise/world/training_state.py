"""Checkpoints of a training run that survive a kill at any moment: safetensors, a checksum, and one to fall back on."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

KEEP = 2  # the newest, and the one before it in case the newest is damaged


def write_synced(path: Path, content: bytes | str) -> None:
    """All or nothing: the file has its name only when every byte of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict) -> Path:
    """Write `checkpoint-STEP.safetensors` with `state` (JSON values) in its header; keep the last `KEEP`."""
    metadata = {"state": json.dumps(state), "sha256": _digest(tensors)}
    path = folder / f"checkpoint-{step:08d}.safetensors"
    write_synced(path, save(tensors, metadata))
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """Tensors and state of the newest checkpoint that is whole; None if the folder has no checkpoint at all.

    A damaged one is reported by a warning, renamed to end in `.damaged`, and the one before it is taken.
    Raises ValueError if there are checkpoints and all are damaged: to begin again is for the user to decide.
    """
    found = _checkpoints(folder)
    for path in reversed(found):
        try:
            return _read(path)
        except (SafetensorError, ValueError, KeyError) as fault:
            warnings.warn(f"{path.name} is damaged ({fault}); taking the checkpoint before it", stacklevel=2)
            path.rename(path.with_name(f"{path.name}.damaged"))
    if found:
        raise ValueError(f"every checkpoint in {folder} is damaged: delete the folder to train from the beginning")
    return None


def _read(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if metadata.get("sha256") != _digest(tensors):
        raise ValueError("its checksum doesn't match its content")
    return tensors, json.loads(metadata["state"])


def _checkpoints(folder):
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _digest(tensors):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
