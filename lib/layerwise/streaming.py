"""A checkpoint compressed block by block: for models that no memory at hand holds whole.

The model is made without weights. Each block gets its own from the checkpoint when its turn comes, is sliced and
quantized by the very code that `compress` uses, goes to disk, and is let go.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from layerwise import hub, slicing
from layerwise.architectures import architecture, blocks
from layerwise.compression import check_plan, check_quantizer
from layerwise.models import DamagedModel, accelerator, local, put_in_place
from layerwise.plans import Plan
from layerwise.pruning import remove_blocks
from layerwise.quantization import checkpoint
from layerwise.quantization import quantizer as by_name


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
    """Write to the folder `target` what `compress` makes of the model `source` to `plan`; returns the folder.

    `source` is a name as `load` takes it, `tokens`, `quantizer`, `mask` and `batch` are as in `compress`, and slicing
    is calibrated sequentially. The tensors are those that `compress` would give, in files of one block each, with the
    tokenizer beside them. Memory: embeddings and head, one block before and after, and for slicing the hidden states of
    all tokens, `[n, length, D]`; it doesn't grow with the number of blocks. Blocks are worked on at `device`.

    Raises what `load` and `compress` raise, and ValueError for a quantizer that looks at text ("gptq", "outliers"),
    which needs the whole model. `target` appears, or is replaced, when it is complete.
    """
    folder = local(source, revision)
    device = torch.device(accelerator() if device == "auto" else device)
    quantizer = by_name(quantizer)
    model, weights = _empty(folder), _Weights(folder)
    weights.check(model)
    check_plan(model, plan)
    if check_quantizer(model, quantizer, plan, tokens, mask) and not hasattr(quantizer, "block"):
        name = getattr(quantizer, "name", "this quantizer")
        raise ValueError(f"{name} needs the whole model in memory: take lw.compress, or 'rtn', 'quanto' or 'hqq'")
    if plan.slices:
        if tokens is None:
            raise ValueError("slicing needs calibration text: give tokens=lw.tokens(...)")
        slicing.check(model, tokens, mask, batch, loaded=False)
    own = [f"{architecture(model).blocks}.{i}" for i, layer in enumerate(plan.layers) if layer.keep]
    outside = [name for name, _ in model.named_parameters() if not name.startswith(f"{architecture(model).blocks}.")]
    remove_blocks(model, plan, inplace=True)
    plan = Plan(plan.kept, plan.width, plan.head)
    bits = [layer.bits for layer in plan.layers]
    for name in outside:
        weights.give(model, name, name, device)
    model.tie_weights()
    with put_in_place(Path(target)) as new:
        new.mkdir()
        files = _Files(new, "packed" if any(bits) else "model", len(bits) + 1)

        @contextmanager
        def visit(i: int, dense: nn.Module, block: nn.Module) -> Iterator[None]:
            for name, _ in list(dense.named_parameters()):
                weights.give(dense, name, f"{own[i]}.{name}", device)
            yield
            if bits[i] is not None:
                _quantize(quantizer, block, bits[i], own[i])
            files.write(f"{architecture(model).blocks}.{i}.", block)
            _let_go(block)

        with torch.no_grad():
            if plan.slices:
                states = slicing.Sequential(model, tokens, mask, batch)
                model = slicing.slice_by(model, plan, states, inplace=True, visit=visit)
            else:
                for i, block in enumerate(blocks(model)):
                    with visit(i, block, block):
                        pass
        _let_go(blocks(model))
        files.finish(model)
        for pattern in hub.BESIDE:
            for file in folder.glob(pattern):
                shutil.copy(file, new)
    return Path(target)


class _Weights:
    """The tensors of a checkpoint, read one by one."""

    def __init__(self, folder: Path):
        index = folder / hub.INDEX
        self.folder = folder
        if index.exists():
            self.places = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                self.places = dict.fromkeys(file.keys(), "model.safetensors")

    def check(self, model: nn.Module) -> None:
        """Raise DamagedModel unless each tensor of the model is there, and nothing else."""
        tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        once = {name for name, _ in model.named_parameters()}
        there = {name for name in self.places if not name.endswith("inv_freq")}  # a constant of old checkpoints
        for what, names in (("missing", once - there), ("unexpected", there - tied)):
            if names:
                raise DamagedModel(
                    f"{self.folder}: the weights do not fit config.json, {what}: {', '.join(sorted(names)[:3])}"
                )

    def give(self, module: nn.Module, name: str, key: str, device: torch.device) -> None:
        """Give the parameter `name` of `module` its value, the tensor `key`."""
        with safe_open(self.folder / self.places[key], framework="pt") as file:
            value = file.get_tensor(key)
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        empty = getattr(owner, last)
        if value.shape != empty.shape:
            raise DamagedModel(f"{self.folder}: {key} is {list(value.shape)}, config.json says {list(empty.shape)}")
        if not value.isfinite().all():
            raise DamagedModel(f"{self.folder}: the weights {key} hold NaN or infinity; get the checkpoint anew")
        setattr(owner, last, nn.Parameter(value.to(device, empty.dtype, copy=True), requires_grad=False))


class _Files:
    """Files of a new checkpoint, written one after the other."""

    def __init__(self, folder: Path, stem: str, count: int):
        self.folder, self.stem, self.count = folder, stem, count
        self.places: dict[str, str] = {}
        self.bytes = 0

    def write(self, prefix: str, module: nn.Module) -> None:
        """What a module holds, under names that begin with `prefix`; tied tensors once."""
        tensors, seen = {}, set()
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen and tensor.numel():
                tensors[prefix + name] = tensor.detach().cpu().contiguous()
            seen.add(id(tensor))
        number = len(set(self.places.values())) + 1
        name = f"{self.stem}-{number:05d}-of-{self.count:05d}.safetensors"
        save_file(tensors, self.folder / name, metadata={"format": "pt"})
        self.places |= dict.fromkeys(tensors, name)
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def finish(self, model: nn.Module) -> None:
        """What is outside of the blocks, and the configuration."""
        self.write("", model)
        model.config.architectures = [type(model).__name__]
        if self.stem == "packed":
            checkpoint.describe(model, self.folder, sorted(set(self.places.values())))
            return
        model.config.save_pretrained(self.folder)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": self.places}
        (self.folder / hub.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _empty(folder: Path) -> nn.Module:
    """The model of a folder, on the meta device, in the dtype of its checkpoint; its buffers have their values."""
    config = AutoConfig.from_pretrained(folder)
    architecture(config.model_type)
    if getattr(config, "quantization_config", None):
        raise ValueError("the checkpoint's weights have few bits already: compress the dense model")
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    model.tie_weights()  # each parameter was replaced by an empty one
    return model.eval().requires_grad_(False)


def _quantize(quantizer, block: nn.Module, bits: int, name: str) -> None:
    try:
        quantizer.block(block, bits)
    except ValueError as error:
        raise ValueError(f"{getattr(quantizer, 'name', 'the quantizer')}, {name}, {error}") from error


def _let_go(module: nn.Module) -> None:
    """Free the tensors of a module, whose shapes nobody asks for any more."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.new_empty(0)
