"""Models by name: those embedded in the package, packaged in a wheel, local folders and files, the Hub.

Checkpoints are data: only safetensors and GGUF are read and no code that comes with a model is run.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME

from layerwise.backbone import devices
from layerwise.backbone.structure import blocks, blocks_path, check_decoder, twin, untie_what_differs
from layerwise.models import folders, gguf_files, gguf_tokenizers, names, reading
from layerwise.models.folders import DamagedModel, UnknownModel, UnsuitableModel
from layerwise.models.names import PREFIX, WEIGHTS, embedded
from layerwise.models.wheels import packaged
from layerwise.quantization import checkpoint, gptq, packed
from layerwise.text import hub

__all__ = [
    "WEIGHTS",
    "DamagedModel",
    "UnknownModel",
    "UnsuitableModel",
    "checked",
    "configuration",
    "embedded",
    "load",
    "packaged",
    "save",
]


def load(name, device="auto", dtype="auto", revision=None):
    """A model and its tokenizer (None if it has none), by name: "embedded/12L", "packaged/smollm2-135m", a local folder
    or GGUF file, or a Hub id.

    Parameters
    ----------
    name
        What to load, as above.
    device
        "auto" is the accelerator if there is one, else the CPU. A dense model whose weights take more than nine tenths
        of what is free there is spread by accelerate over further GPUs, the host's memory and the disk, and a warning
        says what is where. Such a model can be scored and evaluated, not changed; `lw.compress_checkpoint` compresses
        it. A device by name, such as "cuda", gets all of the model.
    dtype
        "auto" is float32 for embedded models, whose results are then the same everywhere, and the checkpoint's own for
        others. A GPU that has no bfloat16 gets float16 instead, and a warning says so.
    revision
        A branch, tag or commit on the Hub; the commit that was read is in `results.fingerprint(model)`.

    Returns
    -------
    model
        In eval mode, and its parameters want no gradients: call `model.requires_grad_()` to train it. The dtype of the
        checkpoint is kept as `model.stored_dtype`, for counting bytes.
    tokenizer
        None if there is none.

    Raises
    ------
    UnknownModel, DamagedModel, hub.HubError, MemoryError
        For a name that is none, a model that is not whole, what the Hub refuses (a licence that wasn't accepted, no
        network, ...), and too little memory.
    UnknownStructure
        Before any weights are read, for what is no decoder-only model.
    UnsuitableModel
        Likewise, for one that another tool has quantized, an adapter alone, or a model with another head than that for
        the next token.
    ValueError
        For a `dtype` that is none.

    Notes
    -----
    Packaged models are converted once (`wheels.folder`). The weights of packaged/smollm2-135m lie on a grid of 4 bits
    in groups of 32: a quantizer that finds it (hqq with 4 bits in groups of 32) costs nothing there, which says nothing
    of other models; groups of 64 or 128, 3 bits and 2 bits are real tests.
    A GGUF file, or a folder with one and no safetensors, is unpacked in float32 to a dense model; "auto" is then the
    dtype of its matrices, and bfloat16 if they have few bits.
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
    elif gguf_files.is_named_so(folder):
        wanted = devices.stored(config) if dtype == "auto" else dtype
        model = gguf_files.read_gguf(folder, AutoConfig.for_model(**config), wanted, device, room=chosen)
    elif (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors":
        with gptq.quiet_gptq():  # unpacked at once, not in the middle of the first forward pass
            unpacked = CompressedTensorsConfig(dequantize=True)
            model = _read(folder, dtype, device, quiet=True, quantization_config=unpacked)
    elif chosen and (limits := devices.limits(_bytes(folder, config, dtype), device)):
        model = _read(folder, dtype, "auto", quiet=small, max_memory=limits)
        if devices.entrance(model).type == "meta":
            raise MemoryError(f"there isn't enough memory for the embeddings of {name}, which come first")
        where = devices.placement(model, [f"{blocks_path(model)}.{i}" for i in range(len(blocks(model)))])
        warnings.warn(f"{name} is larger than what is free on {device}, so its blocks are: {where}", stacklevel=2)
    else:
        model = _read(folder, dtype, device, quiet=small)
    model = model.eval().requires_grad_(False)
    untie_what_differs(model)
    for tensor, weights in devices.tensors(model):
        if weights.is_floating_point() and not devices.all_finite(weights):
            raise DamagedModel(f"{name}: the weights {tensor} hold NaN or infinity; get the checkpoint anew")
    model.stored_dtype = devices.stored(config) or model.dtype
    model.config._commit_hash = names.origin(name, folder)
    return model, _tokenizer(folder)


def configuration(name, revision=None) -> PretrainedConfig:
    """The configuration of a model by its name as `load` takes it; of the Hub nothing else is fetched.

    Raises UnknownModel, DamagedModel, `hub.HubError`, UnsuitableModel, and UnknownStructure for what is no decoder-only
    model.
    """
    name = os.fspath(name)
    folder = names.place(name) or names.asked(name, lambda: hub.download_config(name, revision)).parent
    if gguf_files.is_named_so(folder):
        return _of_gguf(folder)
    _own_files(name, folders.read_config(folder))
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def save(model, path, tokenizer=None) -> Path:
    """Save a model as safetensors in a folder, in a format that `load` reads.

    Parameters
    ----------
    model
        Weights are saved in the dtype that they have in memory. An embedded model was loaded into float32, which
        doubles its bytes: one that was loaded with `dtype=torch.bfloat16` is saved at its own size.
    path
        The folder. A model that is there is replaced.
    tokenizer
        Saved beside the model if it is given.

    Returns
    -------
    folder
        `path`, absolute.

    Raises
    ------
    ValueError
        For a `path` that holds something else than a model, or more.

    Notes
    -----
    Layers of few bits take few bits: a model with packed layers (by "rtn", "quanto", "hqq", "gguf", "outliers") is
    written to a format of this package, that `load` reads and plain `from_pretrained` refuses; one by "gptq" to
    compressed-tensors, that transformers reads too. `lw.save_gguf` writes a file for llama.cpp.

    It is written beside `path` and put in place when it is complete, so that a crash leaves no half of a model.
    """
    with folders.put_in_place(Path(path)) as new:
        with reading.quiet(bars=False):
            plain = twin(model)
            plain.generation_config = GenerationConfig()  # transformers saves none that it finds fault with
            if packed(model):
                checkpoint.write_packed(plain, new)
            elif gptq.compressed(model).bytes:
                gptq.write_gptq(plain, new)
            else:
                plain.save_pretrained(new)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.to_json_file(new / GENERATION_CONFIG_NAME, use_diff=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
    return Path(path).expanduser().absolute()


def checked(name: str, revision: str | None = None) -> tuple[Path, dict, list[str]]:
    """The folder, or GGUF file, of a model by its name as `load` takes it, downloaded if need be; its configuration;
    and the files of its weights if they are packed. Raises what `load` does before weights are read."""
    folder = names.place(name) or names.asked(
        name, lambda: hub.download_model(name, revision, lambda config: _own_files(name, config))
    )
    if gguf_files.is_named_so(folder):
        return folder, _of_gguf(folder).to_dict(), []
    config = folders.read_config(folder)
    ours = _own_files(name, config)
    if not ours:
        folders.check_head(folder)
    return folder, config, ours


def _of_gguf(file: Path) -> PretrainedConfig:
    """The configuration of a GGUF file; raises UnknownStructure too."""
    found = gguf_files.gguf_configuration(file)
    check_decoder(found)
    return found


def _bytes(folder: Path, config: dict, dtype) -> float:
    """Bytes of the weights of a folder in memory, in `dtype`."""
    as_stored = sum((folder / file).stat().st_size for file in set(folders.tensor_files(folder).values()))
    stored = devices.stored(config)
    return as_stored if dtype == "auto" or stored is None else as_stored * dtype.itemsize / stored.itemsize


def _own_files(name: str, config: dict) -> list[str]:
    """The files with the weights of a packed model; raises UnknownStructure and UnsuitableModel, before anything large
    is read."""
    check_decoder(config)
    if checkpoint.is_ours(config):
        return checkpoint.files(config)
    folders.check_kind(name, config)
    return []


def _read(folder: Path, dtype, device: torch.device | str, quiet: bool, **options):
    """The model on its device, shard by shard, so that the host never holds all of it beside the device; raises
    DamagedModel if the weights don't fit the configuration."""
    try:
        with reading.quiet(bars=not quiet):
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
    reading.check_fit(report, folder)
    return model


def _read_packed(folder: Path, dtype):
    """A model that was saved with packed layers; raises DamagedModel if it isn't all there."""
    try:
        with reading.quiet(bars=False):
            model = checkpoint.read_packed(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DamagedModel(f"{folder}: {error}") from error
    if dtype != "auto":
        for parameter in model.parameters():  # its buffers, such as rotary frequencies, keep their precision
            parameter.data = parameter.data.to(dtype)
    return model


def _tokenizer(folder: Path):
    if gguf_files.is_named_so(folder):
        return gguf_tokenizers.gguf_tokenizer(folder)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    if not any((folder / file).exists() for file in files):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
