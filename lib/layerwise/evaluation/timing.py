"""How fast a model reads and writes, and how much memory that takes.

Speed is that of a model on a machine: compare only what one machine measured, one after the other.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layerwise.backbone.devices import check_present, entrance
from layerwise.backbone.structure import evaluating, positions, text_config


class Speed(NamedTuple):
    """Tokens per second of a whole batch, higher = better; memory in bytes, lower = better.

    `prefill` is reading the prompt, all tokens at once; `decode` is going on from there, one token a step and row.

    `memory` is what the model's parameters and buffers take as they are loaded, plus the most that a run had in use on
    top of them (activations, KV cache, logits). Where the device's allocator keeps a peak (CUDA), that is read;
    elsewhere, as on the CPU, it is the tensors that are alive at once, without what an operator uses for itself. Other
    models in memory do not count, nor does the process around it.
    """

    prefill: float
    decode: float
    memory: int


def speed(model: nn.Module, batch: int = 1, prompt: int = 512, new: int = 64, repeats: int = 3, seed: int = 0) -> Speed:
    """Time greedy generation with the KV cache: a prompt `[batch, prompt]` of random tokens, then `new` steps.

    Only the last position of the prompt goes through the head, as in `generate`. The model is in eval mode. On a
    machine that does something else, the numbers are too low.

    Parameters
    ----------
    batch, prompt, new
        Sequences at a time, tokens of each prompt, and tokens that are generated.
    repeats
        Runs that the medians are of.
    seed
        Draws the tokens of the prompts.

    Returns
    -------
    prefill, decode, memory
        Tokens per second of reading the prompts and of going on from there, and bytes (see `Speed`): medians of the
        runs after one that warms up, in which the memory is measured.

    Raises
    ------
    ValueError
        For a number below 1, for more positions, prompt + new, than the model has, and for a model that was spread over
        devices, whose memory is on several.
    """
    check_present(model)
    for name, number in {"batch": batch, "prompt": prompt, "new": new, "repeats": repeats}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    most = positions(model)
    if most is not None and prompt + new > most:
        raise ValueError(
            f"prompt {prompt} + new {new} are {prompt + new} positions, but the model has {most}: "
            "take a shorter prompt or fewer new tokens"
        )
    tokens = torch.randint(
        text_config(model).vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(seed)
    )
    tokens = tokens.to(entrance(model))
    with evaluating(model):
        memory = model.get_memory_footprint() + _peak(lambda: generate(model, tokens, new), tokens.device)
        runs = [generate(model, tokens, new) for _ in range(repeats)]
    prefill, decode = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    return Speed(batch * prompt / prefill, batch * new / decode, memory)


@torch.inference_mode()
def generate(model: nn.Module, tokens: Tensor, new: int) -> tuple[float, float]:
    """Seconds to read `tokens` `[batch, prompt]`, and seconds for `new` further steps of one token a row."""
    started = time.perf_counter()
    token, cache = _step(model, tokens, None)
    token.cpu()  # waits for a device that works on its own
    read = time.perf_counter()
    for _ in range(new):
        token, cache = _step(model, token, cache)
    token.cpu()
    return read - started, time.perf_counter() - read


def _step(model: nn.Module, tokens: Tensor, cache) -> tuple[Tensor, object]:
    """The likeliest next token of each row `[batch, 1]`, and the cache with `tokens` `[batch, n]` in it."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1:].argmax(dim=-1), output.past_key_values


def _peak(run: Callable, device: torch.device) -> int:
    """The most bytes that `run()` has in use at a time, beyond what is in use before."""
    allocator = torch.get_device_module(device)
    if hasattr(allocator, "max_memory_allocated"):
        allocator.reset_peak_memory_stats(device)
        before = allocator.memory_allocated(device)
        run()
        return allocator.max_memory_allocated(device) - before
    with Alive() as alive:
        run()
    return alive.peak


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make and that are still alive: `now`, and at most so far, `peak`.

    Tensors on the meta device have none. A process's resident set would not do: it keeps pages that earlier work has
    freed, so that a second run seems free.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # A view, or a result written in place, has the storage of an argument.
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and not made.is_meta:
                storage = made.untyped_storage()
                if id(storage) not in given and storage not in self._seen:
                    self._seen.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, bytes: int) -> None:
        self.now += bytes
        self.peak = max(self.peak, self.now)
