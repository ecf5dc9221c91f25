"""A checkpoint compressed block by block: for models that no memory at hand holds whole.

The model is made without weights. Each block gets its own from the checkpoint when its turn comes, is sliced and
quantized by the very code that `compress` uses, goes to disk, and is let go.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from layerwise.backbone.devices import accelerator, all_finite
from layerwise.backbone.structure import blocks, blocks_path, tied
from layerwise.compression import slicing
from layerwise.compression.compress import block_bits, check_plan, check_quantizer
from layerwise.compression.pruning import remove_blocks
from layerwise.models import gguf_files, names
from layerwise.models.folders import DamagedModel, check_target, put_in_place, tensor_files
from layerwise.models.loading import checked, configuration
from layerwise.plans import Plan
from layerwise.quantization import checkpoint
from layerwise.quantization import quantizer as by_name
from layerwise.quantization.blockwise import Bits
from layerwise.quantization.tables import quantized_ends
from layerwise.text import hub


def compress_checkpoint(
    source,
    target,
    plan: Plan,
    tokens: Tensor | None = None,
    quantizer: str | Callable = "rtn",
    mask: Tensor | None = None,
    batch: int = 8,
    device="auto",
    revision: str | None = None,
) -> Path:
    """Write to a folder what `compress` makes of a model that no memory needs to hold whole.

    Parameters
    ----------
    source
        A name as `load` takes it.
    target
        The folder. It may be `source`, if nothing but a model is there; it appears, or is replaced, when all is
        written.
    plan, tokens, quantizer, mask, batch
        As for `compress`; slicing is calibrated sequentially.
    device
        Where blocks are worked on; "auto" is the accelerator if there is one.
    revision
        Of `source`, as for `load`.

    Returns
    -------
    folder
        `target`, as an absolute path. In the dtype of the checkpoint, the tensors are those that `compress` gives, in
        files of one block each, with the tokenizer beside them.

    Raises
    ------
    ValueError
        For a quantizer that looks at text ("gptq", "outliers"), which needs the whole model, and for a GGUF file, which
        can only be read whole. Else what `load` and `compress` raise.

    Notes
    -----
    Memory doesn't grow with the number of blocks: embeddings and head, one block before and after, and for slicing the
    hidden states of all tokens, `[n, length, D]`, and what a PCA and a rotated embedding take, in float64 and float32.
    """
    if (local := names.place(os.fspath(source))) and gguf_files.is_named_so(local):
        raise ValueError(
            f"{source} is a GGUF file, which can only be read whole: take lw.compress; or lw.load and lw.save it where "
            "there is room, and compress that folder"
        )
    config = configuration(source, revision)  # without the weights: what can't be done is refused before they come
    if getattr(config, "quantization_config", None):
        raise ValueError("the checkpoint's weights have few bits already: compress the dense model, by a plan of all")
    check_target(Path(target))
    device = torch.device(accelerator() if device == "auto" else device)
    model, quantizer = _empty(config), by_name(quantizer)
    check_plan(model, plan)
    alone = hasattr(quantizer, "block") and all(layer.outliers is None for layer in plan.kept)
    if check_quantizer(model, quantizer, plan, tokens, mask) and not alone:
        name = getattr(quantizer, "name", "this quantizer")
        raise ValueError(f"{name} needs the whole model in memory: take lw.compress, or 'rtn', 'quanto' or 'hqq'")
    if plan.slices:
        if tokens is None:
            raise ValueError("slicing needs calibration text: give tokens=lw.tokens(...)")
        slicing.check_calibration(model, tokens, mask, batch, loaded=False)
    folder, _, _ = checked(os.fspath(source), revision)
    weights = _Weights(folder, model)
    if (apart := weights.apart(model)) or config.dtype is None:
        config.dtype = config.dtype or weights.tensor(next(iter(weights.places))).dtype
        config.tie_word_embeddings = tied(model) and not apart
        model = _empty(config)
    weights.check(model)
    where = blocks_path(model)
    own = [f"{where}.{i}" for i, layer in enumerate(plan.layers) if layer.keep]
    outside = [name for name, _ in model.named_parameters() if not name.startswith(f"{where}.")]
    if len(own) < len(plan.layers):
        remove_blocks(model, plan, inplace=True)
        plan = replace(plan, layers=plan.kept)
    bits, ends = block_bits(model, plan), plan.ends(tied(model))
    for name in outside:
        weights.give(model, name, name, device)
    model.tie_weights()
    with put_in_place(Path(target)) as new:
        new.mkdir()
        files = _Files(new, len(bits) + 1)

        @contextmanager
        def visit(i: int, dense: nn.Module, block: nn.Module) -> Iterator[None]:
            for name, _ in list(dense.named_parameters()):
                weights.give(dense, name, f"{own[i]}.{name}", device)
            yield
            done = block if bits[i] is None else _quantized(quantizer, block, bits[i], own[i])
            files.write(done, f"{where}.{i}.")
            for module in (dense, block, done):
                _let_go(module)

        with torch.no_grad():
            if plan.slices:
                states = slicing.Sequential(model, tokens, mask, batch)
                model = slicing.slice_by(model, plan, states, inplace=True, visit=visit)
            else:
                for i, block in enumerate(tqdm(blocks(model), desc="compressing", unit="block", leave=False, delay=5)):
                    with visit(i, block, block):
                        pass
            for path, module in quantized_ends(model, quantizer, ends).items():
                model.set_submodule(path, module)
        files.finish(model)
        for file in {file for pattern in hub.BESIDE for file in folder.glob(pattern) if file.is_file()}:
            shutil.copy(file, new)
    return Path(target).expanduser().absolute()


class _Weights:
    """The tensors of a checkpoint, read one by one, by the names that they have in `model`.

    Transformers says which these are: checkpoints may have older names, or no prefix before what has no head. Raises
    ValueError where it would make one tensor of several, as of experts that are stored one by one.
    """

    def __init__(self, folder: Path, model: nn.Module):
        self.folder, self.places = folder, {}
        self.stored_as: dict[str, str] = {}  # the name under which a tensor is there
        wanted, how = model.state_dict(), get_model_conversion_mapping(model)
        converters = [each for each in how if isinstance(each, WeightConverter)]
        renamings = [each for each in how if not isinstance(each, WeightConverter)]
        ignored = re.compile("|".join([r"inv_freq$", *(model._keys_to_ignore_on_load_unexpected or [])]))
        for name, file in tensor_files(folder).items():
            own, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
            if converted:
                raise ValueError(
                    f"{folder}: {name} is stored otherwise than the model has it, as a part of {own}: take "
                    "lw.compress, which needs the whole model in memory"
                )
            if own in wanted or not ignored.search(own):
                self.places[own], self.stored_as[own] = file, name

    def apart(self, model: nn.Module) -> bool:
        """Whether the checkpoint holds different tensors for what is one in the model, its embedding and head."""
        one = model.get_input_embeddings().weight
        names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is one]
        found = [self.tensor(name) for name in names if name in self.places]
        return any(not torch.equal(found[0], other) for other in found[1:])

    def check(self, model: nn.Module) -> None:
        """Raise DamagedModel unless each tensor of the model is there, and nothing else."""
        names: dict[int, list[str]] = {}  # of each parameter; tied ones have several, of which one may be stored
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        missing, unexpected = [], set(self.places)
        for first, *others in names.values():
            stored = [name for name in (first, *others) if name in self.places]
            if not stored:
                missing.append(first)
                continue
            self.places[first], self.stored_as[first] = self.places[stored[0]], self.stored_as[stored[0]]
            unexpected -= set(stored)
        for what, found in (("missing", missing), ("unexpected", unexpected)):
            if found:
                listed = ", ".join(sorted(found)[:3])
                raise DamagedModel(f"{self.folder}: the weights do not fit config.json, {what}: {listed}")

    def tensor(self, name: str) -> Tensor:
        """A tensor of the checkpoint, on the CPU."""
        with safe_open(self.folder / self.places[name], framework="pt") as file:
            return file.get_tensor(self.stored_as[name])

    def give(self, module: nn.Module, name: str, key: str, device: torch.device) -> None:
        """Give the parameter `name` of `module` its value, the tensor `key`."""
        value = self.tensor(key)
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        empty = getattr(owner, last)
        if value.shape != empty.shape:
            raise DamagedModel(f"{self.folder}: {key} is {list(value.shape)}, config.json says {list(empty.shape)}")
        if not all_finite(value):
            raise DamagedModel(f"{self.folder}: the weights {key} hold NaN or infinity; get the checkpoint anew")
        setattr(owner, last, nn.Parameter(value.to(device, empty.dtype, copy=True), requires_grad=False))


class _Files:
    """Files of a new checkpoint, written one after the other."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.names: list[str] = []
        self.places: dict[str, str] = {}
        self.layers: dict[str, dict] = {}  # those that are packed
        self.bytes = 0

    def write(self, module: nn.Module, prefix: str = "") -> None:
        """What a module holds, under names that begin with `prefix`; tied tensors once."""
        tensors, seen = {}, set()
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen and tensor.numel():
                tensors[prefix + name] = tensor.detach().cpu().contiguous()
            seen.add(id(tensor))
        name = f"model-{len(self.names) + 1:05d}-of-{self.count:05d}.safetensors"
        save_file(tensors, self.folder / name, metadata={"format": "pt"})
        self.names.append(name)
        self.places |= dict.fromkeys(tensors, name)
        self.layers |= checkpoint.layers(module, prefix)
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def finish(self, model: nn.Module) -> None:
        """What is outside of the blocks, and the configuration."""
        self.write(model)
        model.config.architectures = [type(model).__name__]
        if not self.layers:
            model.config.save_pretrained(self.folder)
            index = {"metadata": {"total_size": self.bytes}, "weight_map": self.places}
            (self.folder / hub.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            return
        names = [name.replace("model", "packed") for name in self.names]
        for before, after in zip(self.names, names, strict=True):
            (self.folder / before).rename(self.folder / after)
        checkpoint.describe(model, self.folder, names, self.layers)


def _empty(config: PretrainedConfig) -> nn.Module:
    """The model of a configuration, on the meta device, in the dtype that it says; its buffers have their values."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    model.tie_weights()  # each parameter was replaced by an empty one
    return model.eval().requires_grad_(False)


def _quantized(quantizer, block: nn.Module, bits: Bits, name: str) -> nn.Module:
    try:
        return quantizer.block(block, bits)
    except ValueError as error:
        raise ValueError(f"{getattr(quantizer, 'name', 'the quantizer')}, {name}, {error}") from error


def _let_go(module: nn.Module) -> None:
    """Free the tensors of a module, whose shapes nobody asks for any more."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.new_empty(0)
