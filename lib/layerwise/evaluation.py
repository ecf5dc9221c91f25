"""What a model is worth on text: perplexity, comparison with another model on the same tokens, size.

Tokens are `[n, length]`, one independent window a row; every interval is over windows (see `stats`). Logits are
taken in float32 whatever the model computes in, sums over tokens in float64, and never more than one batch is kept.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from layerwise import corpora, stats
from layerwise.devices import entrance
from layerwise.quantization import packed
from layerwise.quantization.gptq import compressed
from layerwise.structure import text_config


class Perplexity(NamedTuple):
    """exp(mean loss per predicted token), with its 95 % interval over windows."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the same tokens, in nats per predicted token, each with a 95 % interval over windows.

    `loss` is the first model's loss minus the second's: positive = the first is worse. `kl` is the divergence of the
    first from the second, KL(second || first): what is lost when the first stands in for the second.
    """

    loss: float
    loss_low: float
    loss_high: float
    kl: float
    kl_low: float
    kl_high: float


class Size(NamedTuple):
    """Number of parameters and bytes of everything that is stored; tied tensors count once.

    A weight of few bits is one parameter; its share of scales and zero points counts in the bytes.
    """

    parameters: int
    bytes: int


def perplexity(model: nn.Module, tokens: Tensor, batch: int = 8) -> Perplexity:
    """Perplexity of `model` on `tokens` `[n, length]`; each window is read on its own, its first token isn't predicted.

    The loss equals that of transformers for the same tokens. The interval is computed for the mean loss and carried
    through exp, so it is not symmetric.
    """
    return Perplexity(*(math.exp(loss) for loss in stats.mean(window_losses(model, tokens, batch))))


def compare(a: nn.Module, b: nn.Module, tokens: Tensor, batch: int = 8) -> Comparison:
    """Loss of `a` minus loss of `b`, and KL(b || a), on the same `tokens` `[n, length]`, paired window by window.

    Pairing matters: windows differ in difficulty far more than two versions of a model do on one window.
    """
    loss, kl = window_differences(a, b, tokens, batch)
    return Comparison(*stats.mean(loss), *stats.mean(kl))


def window_differences(a: nn.Module, b: nn.Module, tokens: Tensor, batch: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What `compare` averages, for each window of `tokens` `[n, length]`: (loss, KL), float64 `[n]` each."""
    check(a, tokens)
    check(b, tokens)
    words = [text_config(model).vocab_size for model in (a, b)]
    if words[0] != words[1]:
        sizes = f"{words[0]} and {words[1]}"
        raise ValueError(f"the models have vocabularies of {sizes} tokens: only models that share one can be compared")
    found = []
    with torch.inference_mode():
        for part in batches(tokens, batch, "comparing"):
            reference = logits(b, part)
            found.append(torch.stack(differences(logits(a, part).to(reference.device), reference, part)))
    loss, kl = torch.cat(found, dim=1).numpy()
    return loss, kl


def window_losses(model: nn.Module, tokens: Tensor, batch: int = 8) -> Tensor:
    """Mean loss of each window in nats per predicted token, `[n, length] -> float64 [n]`."""
    check(model, tokens)
    with torch.inference_mode():
        found = [losses(logits(model, part), part) for part in batches(tokens, batch, "perplexity")]
    return torch.cat(found)


def size(model: nn.Module) -> Size:
    """Parameters and bytes of `model` as stored; counts from shapes, so it works on the meta device too."""
    packed_layers, by_gptq = packed(model), compressed(model)
    tensors = {id(tensor): (name, tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    stored = [tensor for name, tensor in tensors.values() if name not in by_gptq.left_out]
    few_bits = [*packed_layers.values(), *map(model.get_submodule, by_gptq.bytes)]
    parameters = sum(tensor.numel() for tensor in stored if isinstance(tensor, nn.Parameter))
    parameters += sum(layer.in_features * layer.out_features for layer in few_bits)
    taken = sum(tensor.numel() * _stored_bytes(tensor, model) for tensor in stored) + sum(by_gptq.bytes.values())
    return Size(parameters, taken)


def _stored_bytes(tensor, model):
    # A checkpoint in bfloat16 that `load` computes in float32 has not grown; `load` notes what it was stored in.
    noted = getattr(model, "stored_dtype", None)
    # Scales, which are buffers, are in their own dtype whatever the model computes in.
    computed = isinstance(tensor, nn.Parameter) and tensor.dtype == model.dtype
    return noted.itemsize if noted and computed else tensor.element_size()


# The parts of the above that `damage` shares.


def check(model: nn.Module, tokens: Tensor) -> None:
    """Raise unless `tokens` is `[n, length]` with something to predict and all in the model's vocabulary."""
    corpora.check_tokens(tokens, text_config(model).vocab_size)
    if tokens.shape[1] < 2:
        raise ValueError("windows of one token leave nothing to predict: take windows of at least 2 tokens")


def batches(tokens: Tensor, batch: int, label: str) -> Iterator[Tensor]:
    """Rows of `tokens`, `batch` at a time, under a progress bar that leaves no trace."""
    yield from tqdm(tokens.split(batch), desc=label, unit="batch", leave=False, disable=None)


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's logits for a batch, `[n, length] -> [n, length, vocabulary]`, in the model's own dtype."""
    return model(input_ids=tokens.to(entrance(model)), use_cache=False).logits


def losses(predicted: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token loss per window, `[n, length, vocabulary], [n, length] -> float64 [n]` on the CPU."""
    rows = zip(predicted, tokens.to(predicted.device), strict=True)
    per_token = (F.cross_entropy(p[:-1].float(), t[1:], reduction="none") for p, t in rows)
    # To the CPU first: not every device has float64.
    return _finite(torch.stack([loss.cpu().double().mean() for loss in per_token]))


def differences(predicted: Tensor, reference: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(loss of `predicted` minus loss of `reference`, KL(reference || predicted)) per window, each float64 `[n]`.

    Both are logits `[n, length, vocabulary]`; both means are over the predicted positions and are on the CPU. One
    window at a time, so that the float32 copies of a large vocabulary stay small.
    """
    loss, kl = [], []
    for p, q, t in zip(predicted, reference, tokens.to(reference.device), strict=True):
        p, q = (F.log_softmax(x[:-1].float(), dim=-1) for x in (p, q))
        change = (q - p).gather(1, t[1:, None]).cpu().double().mean()
        loss.append(change)
        kl.append((q.exp() * (q - p)).sum(dim=-1).cpu().double().mean())
    return _finite(torch.stack(loss)), _finite(torch.stack(kl))


def _finite(per_window):
    bad = (~per_window.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the model's logits are not finite in {len(bad)} of {len(per_window)} windows of a batch: its weights or "
            "activations overflow, so it has no loss (float16 overflows where bfloat16 and float32 don't)"
        )
    return per_window
