"""What models predict on windows of tokens: losses and divergences, from the logits of a few positions at a time.

With a large vocabulary the logits are what a language model has most of, and float32 copies of them twice that. So the
hidden states that the head reads are what is held; logits `[m, V]` are made from them where they are looked at, in the
model's own dtype, and a part of these is in float32 at a time, as much as a processor's cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from layerwise.backbone import devices
from layerwise.backbone.passes import Head
from layerwise.backbone.structure import text_config

KEPT = 0.5  # of the memory that is free, what logits that are kept may take
LOGITS = 2**25  # bytes of logits that are made at once: a product of fewer rows is slower
FLOATS = 2**21  # bytes of a float32 copy of some, for each thread: about what a core's cache holds
LAUNCHED = 2**26  # bytes of both on an accelerator, where it counts how often something is launched


class Window:
    """The logits of a window of tokens at the positions that predict one, `[length - 1, V]`: made when they are asked
    for, or kept, and with them what a softmax over each row sums up to, `[length - 1, 2]` (see `_log_sums`)."""

    def __init__(self, head: Head, read: ModelOutput, i: int):
        self.head, self.read = head, read
        self.states = read.last_hidden_state[i, :-1]
        self.kept: Tensor | None = None
        self.sums: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def bytes(self) -> int:
        """What its logits take."""
        return len(self) * text_config(self.head.model).vocab_size * self.head.model.dtype.itemsize

    def rows(self) -> list[slice]:
        """All positions, in parts whose logits are made at once."""
        return _parts(len(self), self.bytes // len(self), LOGITS if _cached(self.states) else LAUNCHED)

    def logits(self, rows: slice) -> Tensor:
        return self.head(self.read, self.states[rows]) if self.kept is None else self.kept[rows]

    def keep(self) -> None:
        """Make all logits now, to have them from now on."""
        kept = None
        for rows in self.rows():
            made = self.logits(rows)
            kept = made.new_empty(len(self), made.shape[1]) if kept is None else kept
            kept[rows] = made
        self.kept, self.sums = kept, torch.cat([_log_sums(kept[few].float()) for few in _few(kept)])


def windows(head: Head, read: ModelOutput) -> list[Window]:
    """The windows of a batch, of which `read` is what the head reads."""
    return [Window(head, read, i) for i in range(len(read.last_hidden_state))]


def room(model) -> int:
    """Bytes that kept logits of a model may take."""
    return int(KEPT * devices.free_memory(devices.entrance(model)))


def keep_logits(each: Sequence[Window], room: int) -> int:
    """Keep the logits of windows, one after the other, while they take no more than `room` bytes together; returns what
    they take."""
    taken = 0
    for window in each:
        if taken + window.bytes > room:
            break
        window.keep()
        taken += window.bytes
    return taken


def losses(predicted: Sequence[Window], tokens: Tensor) -> Tensor:
    """Mean next-token loss of each window of `tokens` `[n, length]`, float64 `[n]` on the CPU."""
    found = []
    for window, text in zip(predicted, tokens, strict=True):
        each = [_losses(window.logits(rows), text[1:][rows]) for rows in window.rows()]
        found.append(_mean(each))
    return _finite(torch.stack(found))


def differences(predicted: Sequence[Window], reference: Sequence[Window], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(loss of `predicted` minus loss of `reference`, KL(reference || predicted)) of each window of `tokens`
    `[n, length]`, each float64 `[n]` on the CPU; both are means over the predicted positions."""
    found = []
    for window, other, text in zip(predicted, reference, tokens, strict=True):
        each = []
        for rows in other.rows():
            sums = None if other.sums is None else other.sums[rows]
            each.append(_differences(window.logits(rows), other.logits(rows), text[1:][rows], sums))
        found.append([_mean(kind) for kind in zip(*each, strict=True)])
    loss, kl = (_finite(torch.stack(kind)) for kind in zip(*found, strict=True))
    return loss, kl


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss at each position, `[m, V], [m] -> [m]` in float32."""
    targets = targets.to(logits.device)
    return torch.cat([F.cross_entropy(logits[few].float(), targets[few], reduction="none") for few in _few(logits)])


def _differences(logits: Tensor, reference: Tensor, targets: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss difference and divergence at each position, `[m, V], [m, V], [m] -> [m], [m]` in float32.

    `sums` `[m, 2]` are the reference's (see `_log_sums`), where they are known.
    """
    logits, targets = logits.to(reference.device), targets.to(reference.device)
    loss, kl = [], []
    for few in _few(reference):
        log_p, other = F.log_softmax(logits[few].float(), dim=-1), reference[few].float()
        log_q = F.log_softmax(other, dim=-1) if sums is None else (other - sums[few, :1]).sub_(sums[few, 1:])
        change = torch.sub(log_q, log_p, out=log_p)
        loss.append(change.gather(1, targets[few, None]).squeeze(1))
        kl.append(torch.linalg.vecdot(log_q.exp_(), change))
    return torch.cat(loss), torch.cat(kl)


def _log_sums(logits: Tensor) -> Tensor:
    """The largest logit of each row, and the logarithm of the sum of exponentials of all below it: `[m, V] -> [m, 2]`.

    The logits minus both, one after the other, are the log-softmax of PyTorch in every digit, which is how it goes.
    """
    return torch.stack([logits.amax(dim=-1), -F.log_softmax(logits, dim=-1).amax(dim=-1)], dim=1)


def _mean(per_position: Sequence[Tensor]) -> Tensor:
    # To the CPU first: not every device has float64.
    return torch.cat(per_position).cpu().double().mean()


def _few(logits: Tensor) -> list[slice]:
    """The rows of `logits` `[m, V]`, in parts of which float32 copies are made at once."""
    threads = torch.get_num_threads()
    return _parts(len(logits), 4 * logits.shape[1], threads * FLOATS if _cached(logits) else LAUNCHED, threads)


def _cached(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _parts(count: int, each: int, most: int, least: int = 1) -> list[slice]:
    """`count` rows of `each` bytes, in equal parts of up to `most` bytes, or `least` rows."""
    size = max(most // each, least)
    size = -(-count // -(-count // size))
    return [slice(start, start + size) for start in range(0, count, size)]


def _finite(per_window):
    bad = (~per_window.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the model's logits are not finite in {len(bad)} of {len(per_window)} windows of a batch: its weights or "
            "activations overflow, so it has no loss (float16 overflows where bfloat16 and float32 don't)"
        )
    return per_window
