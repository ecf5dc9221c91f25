"""Devices: which to work on, in which dtype, and models that are larger than the memory of one.

Such a model is spread by `accelerate`: over further GPUs, then the host's memory, then the checkpoint on disk. What is
on a GPU is computed there, and moves on to the next. Weights of the other two kinds are away, on the meta device, and
brought to the first device each time their layer runs, so that a model can be read but not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.utils import align_module_device, get_max_memory
from torch import Tensor, nn

SHARE = 0.9  # of a device's free memory that weights may take, so that there is room to compute with them


def accelerator() -> str:
    """The kind of device to work on: an accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def room(weights: int) -> dict[int | str, int] | None:
    """Bytes that weights may take on each device, in accelerate's order, if `weights` bytes are more than the first has
    room for; else None."""
    torch.cuda.empty_cache()  # else what models before this one had is not free
    free = {place: int(SHARE * bytes) for place, bytes in get_max_memory().items()}
    return free if weights > next(iter(free.values())) else None


def places(model: nn.Module, paths: Iterable[str]) -> list[int | str]:
    """The device in accelerate's map of a model that was spread, for each of these modules."""
    found = []
    for path in paths:
        above = [key for key in model.hf_device_map if f"{path}.".startswith(f"{key}." if key else "")]
        found.append(model.hf_device_map[max(above, key=len)])
    return found


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
    """Raise ValueError if weights of a model are away."""
    away = sum(parameter.is_meta for parameter in model.parameters())
    if away:
        raise ValueError(
            f"{away} of the model's weights are in the host's memory or on disk, and brought to the device only when "
            "they are used, or have no values at all: such a model can be scored and evaluated, not changed. "
            "lw.compress_checkpoint compresses a checkpoint block by block, however large it is"
        )


def finite(weights: Tensor) -> bool:
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
    """What a configuration says that the weights are stored in."""
    told = config.get("dtype") or config.get("torch_dtype")
    return getattr(torch, str(told).removeprefix("torch.")) if told else None
