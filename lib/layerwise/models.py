"""Models by name: those embedded in the package, local folders, the Hub.

Checkpoints are data: only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig, PretrainedConfig
from transformers.utils import logging

from layerwise import devices, folders, hub
from layerwise.folders import DamagedModel
from layerwise.quantization import checkpoint, gptq, packed
from layerwise.structure import blocks, blocks_path, check_decoder

WEIGHTS = Path(__file__).parent / "world" / "weights"
PREFIX = "embedded/"


class UnknownModel(ValueError):
    """A name that is no embedded model, no local folder and nothing on the Hub."""


def embedded() -> list[str]:
    """Names of the models that ship with the package, small to large."""
    configs = WEIGHTS.glob("*/config.json")
    blocks = {path.parent.name: json.loads(path.read_text())["num_hidden_layers"] for path in configs}
    return [PREFIX + name for name in sorted(blocks, key=lambda name: (blocks[name], name))]


def load(name, device="auto", dtype="auto", revision=None):
    """A model and its tokenizer (None if it has none), by name: "embedded/12L", a local folder, or a Hub id.

    `device` "auto" is the accelerator if there is one, else the CPU. A dense model whose weights take more than nine
    tenths of what is free there is spread by accelerate over further GPUs, the host's memory and the disk, and a
    warning says what is where. Such a model can be scored and evaluated, not changed; `lw.compress_checkpoint`
    compresses it. A `device` by name, such as "cuda", gets all of the model.

    `dtype` "auto" is float32 for embedded models, whose results are then the same everywhere, and the checkpoint's own
    for others; the dtype of the checkpoint is kept as `model.stored_dtype`, for counting bytes. A GPU that has no
    bfloat16 gets float16 instead, and a warning says so.

    `revision` is a branch, tag or commit on the Hub; the commit that was read is in `results.fingerprint(model)`. The
    model is in eval mode and its parameters want no gradients: call `model.requires_grad_()` to train it.

    Raises UnknownModel, DamagedModel, `hub.HubError` (a licence that wasn't accepted, no network, ...), MemoryError, or
    UnknownStructure for what is no decoder-only model, before any weights are read; ValueError for a `dtype` that is
    none.
    """
    name = os.fspath(name)
    folder, config, ours = checked(name, revision)
    small = name.startswith(PREFIX)
    chosen, device = device == "auto", torch.device(devices.accelerator() if device == "auto" else device)
    if not (dtype == "auto" or isinstance(dtype, torch.dtype)):
        raise ValueError(f"dtype must be 'auto' or a torch.dtype such as torch.float16, not {dtype!r}")
    if dtype == "auto":
        dtype = torch.float32 if small else devices.dtype_for(config, device)
    if ours:
        model = _read_packed(folder, dtype).to(device)
    elif (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors":
        with gptq.quiet():  # unpacked at once, not in the middle of the first forward pass
            unpacked = CompressedTensorsConfig(dequantize=True)
            model = _read(folder, dtype, device, quiet=True, quantization_config=unpacked)
    elif chosen and (limits := devices.limits(_bytes(folder, config, dtype), device)):
        model = _read(folder, dtype, "auto", quiet=small, max_memory=limits)
        if devices.entrance(model).type == "meta":
            raise MemoryError(f"there isn't enough memory for the embeddings of {name}, which come first")
        where = devices.places(model, [f"{blocks_path(model)}.{i}" for i in range(len(blocks(model)))])
        warnings.warn(f"{name} is larger than what is free on {device}, so its blocks are: {where}", stacklevel=2)
    else:
        model = _read(folder, dtype, device, quiet=small)
    model = model.eval().requires_grad_(False)
    for tensor, weights in devices.tensors(model):
        if weights.is_floating_point() and not devices.finite(weights):
            raise DamagedModel(f"{name}: the weights {tensor} hold NaN or infinity; get the checkpoint anew")
    model.stored_dtype = devices.stored(config) or model.dtype
    if _folder(name) is None:
        model.config._commit_hash = folder.name  # the cache calls a snapshot by its commit
    return model, _tokenizer(folder)


def configuration(name, revision=None) -> PretrainedConfig:
    """The configuration of a model by its name as `load` takes it; of the Hub nothing else is fetched.

    Raises UnknownModel, DamagedModel, `hub.HubError`, and UnknownStructure for what is no decoder-only model.
    """
    name = os.fspath(name)
    folder = _folder(name) or _asked(name, lambda: hub.config(name, revision)).parent
    check_decoder(folders.config(folder))
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def save(model, path, tokenizer=None) -> Path:
    """Save a model, and its tokenizer if given, as safetensors in the folder `path`; returns the folder.

    Weights are saved in the dtype that they have in memory. An embedded model was loaded into float32, which doubles
    its bytes: one that was loaded with `dtype=torch.bfloat16` is saved at its own size.

    Layers of few bits take few bits: a model with packed layers (by "rtn", "quanto", "hqq", "outliers") is written to a
    format of this package, that `load` reads and plain `from_pretrained` refuses; one by "gptq" to compressed-tensors,
    that transformers reads too.

    It is written beside `path` and put in place when it is complete, so that a crash leaves no half of a model. A model
    that is there is replaced; a folder that holds something else, or more, is an error.
    """
    with folders.put_in_place(Path(path)) as new:
        with _reports(bars=False):
            if packed(model):
                checkpoint.write(model, new)
            elif gptq.compressed(model).bytes:
                gptq.write(model, new)
            else:
                model.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
    return Path(path).expanduser().absolute()


def checked(name: str, revision: str | None = None) -> tuple[Path, dict, list[str]]:
    """The folder of a model by its name as `load` takes it, downloaded if need be; its configuration; and the files of
    its weights if they are packed. Raises what `load` does before weights are read."""
    folder = _folder(name) or _from_hub(name, revision)
    config = folders.config(folder)
    ours = _own_files(config)
    if not ours:
        folders.places(folder)
    return folder, config, ours


def _folder(name: str) -> Path | None:
    """The local folder that a name means, or None for a Hub id; a name that looks like a path must be there."""
    if name.startswith(PREFIX):
        if name not in embedded():
            raise UnknownModel(_unknown(name))
        return WEIGHTS / name.removeprefix(PREFIX)
    path = Path(name).expanduser()
    if path.is_file():
        raise DamagedModel(f"{name} is a file: a model is a folder with config.json and model.safetensors")
    if path.is_dir():
        return path
    if name != name.strip() or not name or name[0] in "./~" or name.count("/") > 1 or "\\" in name:
        raise UnknownModel(_unknown(name, "nor is there such a folder"))
    if _close(name, cutoff=0.75):  # a slip of the pen: say so, instead of asking the Hub until it times out
        raise UnknownModel(_unknown(name))
    return None


def _bytes(folder: Path, config: dict, dtype) -> float:
    """Bytes of the weights of a folder in memory, in `dtype`."""
    as_stored = sum((folder / file).stat().st_size for file in set(folders.places(folder).values()))
    stored = devices.stored(config)
    return as_stored if dtype == "auto" or stored is None else as_stored * dtype.itemsize / stored.itemsize


def _from_hub(name: str, revision: str | None) -> Path:
    """The folder of a model of the Hub, downloaded if need be."""
    return _asked(name, lambda: hub.download(name, revision, _own_files))


def _asked(name: str, ask: Callable[[], Path]) -> Path:
    """What the Hub gives of a model; its errors say what there is without it."""
    try:
        return ask()
    except hub.NotOnHub as error:
        raise UnknownModel(_unknown(name, f"and {error}")) from error
    except hub.Unreachable as error:
        raise hub.Unreachable(f"{error}. What needs no network: {', '.join(embedded())}, and folders") from error


def _own_files(config: dict) -> list[str]:
    """The files with the weights of a packed model; raises UnknownStructure, before anything large is read."""
    check_decoder(config)
    return checkpoint.files(config) if checkpoint.is_ours(config) else []


def _close(name: str, cutoff: float) -> str | None:
    """The embedded model whose name, with or without its prefix, is nearest to `name`."""
    short = {full.removeprefix(PREFIX): full for full in embedded()}
    by_name = short | {full: full for full in short.values()}
    found = difflib.get_close_matches(name, by_name, n=1, cutoff=cutoff)
    return by_name[found[0]] if found else None


def _unknown(name: str, also: str = "") -> str:
    close = _close(name, cutoff=0.5)
    hint = f" Did you mean {close!r}?" if close else ""
    listed = ", ".join(embedded()) or "none in this installation"
    return (
        f"there is no embedded model {name!r}{', ' + also if also else ''}.{hint} Embedded models: {listed}. A local "
        "folder with config.json and model.safetensors works too, and so does a Hub id such as 'organisation/model' "
        "where the Hub can be reached"
    )


def _read(folder: Path, dtype, device: torch.device | str, quiet: bool, **options):
    """The model on its device, shard by shard, so that the host never holds all of it beside the device; raises
    DamagedModel if the weights don't fit the configuration."""
    try:
        with _reports(bars=not quiet):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=device,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are reported with their names
                output_loading_info=True,
                **options,
            )
    except OSError as error:
        raise DamagedModel(f"{folder}: its weights could not be read. {error}") from error
    for what in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{what}_keys"])
        names = [key for key in names if not key.endswith("inv_freq")]  # a constant that old checkpoints hold
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DamagedModel(f"{folder}: the weights do not fit config.json, {what}: {', '.join(names[:3])}{more}")
    return model


def _read_packed(folder: Path, dtype):
    """A model that was saved with packed layers; raises DamagedModel if it isn't all there."""
    try:
        with _reports(bars=False):
            model = checkpoint.read(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DamagedModel(f"{folder}: {error}") from error
    if dtype != "auto":
        for parameter in model.parameters():  # its buffers, such as rotary frequencies, keep their precision
            parameter.data = parameter.data.to(dtype)
    return model


@contextmanager
def _reports(bars: bool):
    """Transformers without its report of what doesn't fit, which becomes an error here; progress bars if wanted."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    spreading = getLogger("accelerate.big_modeling")  # warns of what `load` says in words of its own
    level = spreading.level
    spreading.setLevel("ERROR")
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        spreading.setLevel(level)
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _tokenizer(folder: Path):
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    if not any((folder / file).exists() for file in files):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
