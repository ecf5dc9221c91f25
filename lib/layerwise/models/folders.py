"""Folders that hold a model: what is in one, whether it is whole, and how a new one takes its place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from layerwise.backbone import devices
from layerwise.text import hub

SINGLE = "model.safetensors"  # the file of a model that has only one
ADAPTER = "adapter_config.json"
# How the classes end of models that have another head than the one for the next token.
LABELLING = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "RewardModel")
# What a saved model consists of: all that may go when another one takes its place.
PARTS = ["config.json", "*.safetensors", hub.INDEX, *hub.BESIDE, "recipe.yaml", "training_args.bin", "plan.json"]


class UnknownModel(ValueError):
    """A name that is no embedded or packaged model, nothing local and nothing on the Hub."""


class UnsuitableModel(ValueError):
    """A model that is whole, and not one to work on here: it has few bits already, is an adapter, has another head."""


class DamagedModel(ValueError):
    """A folder that lacks part of a model, or whose weights can't be read or computed with."""


def read_config(folder: Path) -> dict:
    """What config.json of a folder says; raises DamagedModel if it's none."""
    _check_no_adapter(folder)
    if not (folder / "config.json").exists():
        raise DamagedModel(f"{folder} is no model: it has no config.json (a model folder also has {SINGLE})")
    try:
        found, _ = PretrainedConfig.get_config_dict(folder)
        devices.stored(found)
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{folder / 'config.json'} is not a configuration: {error}") from error
    return found


def tensor_files(folder: Path) -> dict[str, str]:
    """The file that holds each tensor, by the tensor's name; raises DamagedModel if a file is missing or cut off.

    Nothing large is read.
    """
    index = folder / hub.INDEX
    if not index.exists():
        return dict.fromkeys(_names(folder, SINGLE), SINGLE)
    try:
        found = dict(json.loads(index.read_text())["weight_map"])
        files = sorted(set(map(str, found.values())))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedModel(f"{index} is not an index of weight files: {error!r}") from error
    for file in files:
        _names(folder, file)
    return found


def _names(folder: Path, file: str) -> list[str]:
    """Names of the tensors in a file."""
    if not (folder / file).exists():
        pickled = next(folder.glob("*.bin"), None)
        hint = f"; {pickled.name} is a pickle, which is not read: convert it to safetensors" if pickled else ""
        raise DamagedModel(f"{folder} is no complete model: it has no {file}{hint}")
    try:
        with safe_open(folder / file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise DamagedModel(f"{folder / file} is damaged or not safetensors ({error}): get it anew") from error


def check_kind(name: str, config: dict) -> None:
    """Raise UnsuitableModel if a configuration is that of a model which another tool has quantized, or of one that
    labels text; compressed-tensors are read."""
    quantized = config.get("quantization_config") or {}
    method = quantized.get("quant_method") or ("bitsandbytes" if quantized else "")
    if method and method != "compressed-tensors":
        raise UnsuitableModel(
            f"{name} was quantized by {method} (quantization_config in config.json), and what is scored and compressed "
            "here is a dense model, in float32, float16 or bfloat16: take the model that it was made of"
        )
    others = [each for each in config.get("architectures") or [] if each.endswith(LABELLING)]
    if others:
        raise UnsuitableModel(
            f"{name} is a {others[0]}: it labels or scores text and has no head for the next token. Take the causal "
            "language model that it was made of"
        )


def check_head(folder: Path) -> None:
    """Raise UnsuitableModel for a model with a value head beside it, and what `tensor_files` does."""
    if found := next((name for name in tensor_files(folder) if name.startswith("v_head.")), None):
        raise UnsuitableModel(
            f"{folder} holds a language model with a value head ({found}), as trl trains it: save the language model "
            "alone, by model.pretrained_model.save_pretrained(...)"
        )


def _check_no_adapter(folder: Path) -> None:
    """Raise UnsuitableModel for a folder with an adapter, in whose place transformers may read the model it is for."""
    if not (folder / ADAPTER).exists():
        return
    try:
        base = json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "the base model"
    raise UnsuitableModel(
        f"{folder} holds an adapter such as LoRA ({ADAPTER}), not a model: merge it into {base} and save that, with "
        "peft: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...). If the weights in the "
        f"folder are merged already, remove {ADAPTER}"
    )


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A folder to write a model to, that takes the place of `path` when all of it is written.

    Raises ValueError as `check_target` does.
    """
    path = path.expanduser().absolute()
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        yield new
        if path.exists():
            path.rename(old)  # a folder can't be replaced in one step
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise


def check_target(path: Path) -> None:
    """Raise ValueError if something is at `path` that is no model, or more than a model."""
    path = path.expanduser()
    if not path.exists():
        return
    inside = list(path.iterdir()) if path.is_dir() else []
    if not path.is_dir() or (inside and not _says_its_family(path / "config.json")):
        raise ValueError(f"{path} exists and is not a model: choose another folder")
    more = sorted(
        each.name for each in inside if not (each.is_file() and any(fnmatch(each.name, part) for part in PARTS))
    )
    if more:
        raise ValueError(
            f"{path} holds more than a model, which would be lost ({', '.join(more[:3])}): choose another folder"
        )


def _says_its_family(file: Path) -> bool:
    try:
        return "model_type" in json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return False
