"""Devices: which to work on, in which dtype, and models that are larger than the memory of one.

Such a model is spread by `accelerate`: over further GPUs, then the host's memory, then the checkpoint on disk. What is
on a GPU, or without one in the host's memory, is computed there. Other weights are away, on the meta device, and
brought to where they are computed with each time their layer runs. Such a model can be read, not changed: its hooks
don't survive copies, and changes of what is away are lost.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import torch
from accelerate.utils import align_module_device, get_max_memory
from torch import Tensor, nn

FITS = 0.9  # of a device's free memory, what weights may take that all go there
SPREAD = 0.7  # what they may take of each device if they don't: with less room for logits, more batches would fail


def accelerator() -> str:
    """The kind of device to work on: an accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def limits(weights: float, device: torch.device) -> dict[int | str, int] | None:
    """Bytes that weights may take on each device, by accelerate's names, if `device` has no room for `weights` bytes;
    None if it has."""
    if weights <= FITS * free_memory(device):
        return None
    gc.collect()  # models that were spread before refer to themselves, and are not gone until now
    getattr(torch.get_device_module(device), "empty_cache", lambda: None)()
    if weights <= FITS * free_memory(device):
        return None
    return {place: int(SPREAD * room) for place, room in get_max_memory().items()}


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    own = torch.get_device_module(device)
    if not hasattr(own, "mem_get_info"):
        return psutil.virtual_memory().available
    return own.mem_get_info(device)[0] + own.memory_reserved(device) - own.memory_allocated(device)


def placement(model: nn.Module, paths: list[str]) -> str:
    """Where accelerate has put these modules of a model that was spread, in words: "20 on cuda:0, 12 on cpu"."""
    everywhere = {"": str(entrance(model))}  # if accelerate found that one device has room after all
    found, kind = getattr(model, "hf_device_map", everywhere), accelerator()

    def place(path: str) -> str:
        at = found[max((key for key in found if f"{path}.".startswith(f"{key}." if key else "")), key=len)]
        return f"{kind}:{at}" if isinstance(at, int) else str(at)

    return ", ".join(f"{count} on {at}" for at, count in Counter(map(place, paths)).items())


def entrance(model: nn.Module) -> torch.device:
    """The device that a model takes its tokens on."""
    return model.get_input_embeddings().weight.device


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Weights of a module that are away, on the device that runs it for a while: to be read, since changes are lost."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a model, in its order, each tensor there while it's looked at."""
    for path, module in model.named_modules(remove_duplicate=False):
        with align_module_device(module):
            own = {name: tensor for name, tensor in module.state_dict().items() if "." not in name}
            yield from ((f"{path}.{name}" if path else name, tensor) for name, tensor in own.items())


def check_present(model: nn.Module) -> None:
    """Raise ValueError for a model whose weights are not all simply there: spread by accelerate, or without values."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            "accelerate has spread the model over several devices: so it can be scored and evaluated, not changed. "
            "lw.compress_checkpoint compresses a checkpoint block by block, however large it is; or load the model "
            "onto one device that has room for it, by its name"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the model's weights are on the meta device, where they have no values: load the model")


def all_finite(weights: Tensor) -> bool:
    """Whether there is no NaN and no infinity among weights; their extremes show it in one reading, without a copy."""
    return not weights.numel() or bool(torch.stack(torch.aminmax(weights)).isfinite().all())


def dtype_for(config: dict, device: torch.device) -> str | torch.dtype:
    """The dtype of the checkpoint ("auto"); float16 for bfloat16 on a GPU that only emulates it, with a warning."""
    if stored(config) != torch.bfloat16 or device.type != "cuda":
        return "auto"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "auto"
    gpu = torch.cuda.get_device_name(device)
    warnings.warn(f"{gpu} has no bfloat16, so this model is loaded in float16, which overflows sooner", stacklevel=3)
    return torch.float16


def stored(config: dict) -> torch.dtype | None:
    """What a configuration says that the weights are stored in; ValueError if torch has no such dtype."""
    told = config.get("dtype") or config.get("torch_dtype")
    if not told:
        return None
    found = getattr(torch, str(told).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"its dtype is {told!r}, but should be one of torch's, such as 'bfloat16'")
    return found
