"""What a model is worth on text: perplexity, comparison with another model on the same tokens, size.

Tokens are `[n, length]`, one independent window a row; every interval is over windows (see `stats`). Logits are
taken in float32 whatever the model computes in, sums over tokens in float64. Of the logits few are there at a time (see
`predictions`), so that memory beside the model is what its blocks need for a batch. A model is run in eval mode, and
has its own mode again afterwards.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise import stats
from layerwise.backbone import passes, structure
from layerwise.backbone.devices import entrance
from layerwise.backbone.structure import text_config
from layerwise.evaluation import predictions
from layerwise.quantization import packed
from layerwise.quantization.gptq import compressed
from layerwise.text.corpora import check_text


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
    """Perplexity on windows of text; each is read on its own, and its first token isn't predicted.

    Parameters
    ----------
    model
        It is run in eval mode.
    tokens
        `[n, length]`.
    batch
        Windows that are run at a time.

    Returns
    -------
    value, low, high
        exp(mean loss per predicted token), lower = better, and its 95 % interval over windows. The loss equals that of
        transformers for the same tokens. The interval is computed for the mean loss and carried through exp, so it is
        not symmetric.

    Raises
    ------
    ValueError
        For tokens that the model can't read.
    """
    return Perplexity(*(math.exp(loss) for loss in stats.mean(window_losses(model, tokens, batch))))


class Reference:
    """What `model` predicts on `tokens` `[n, length]`, for `compare` with many others: so it is run once.

    Its logits `[n, length - 1, V]` are kept, in its own dtype, while they take no more than half of the memory that is
    free on its device; `bytes` is what they take. Of windows for which there is no room the hidden states are kept, and
    the head, but nothing else, is run again each time. Comparisons are the same in every digit. The model must stay as
    it is. Raises ValueError for tokens that it can't read.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, batch: int = 8):
        check_windows(model, tokens)
        self.model, self.tokens, self.bytes = model, tokens.clone(), 0
        self.windows: list[predictions.Window] = []
        head, room = passes.Head(model), predictions.room(model)
        with torch.inference_mode(), structure.evaluating(model):
            for part in _batches(tokens, batch, "reference"):
                new = _predicted(head, part)
                self.bytes += predictions.keep_logits(new, room - self.bytes)
                self.windows += new


def compare(a: nn.Module, b: nn.Module | Reference, tokens: Tensor, batch: int = 8) -> Comparison:
    """Loss of one model minus that of another, and their divergence, on the same text, paired window by window.

    Pairing matters: windows differ in difficulty far more than two versions of a model do on one window.

    Parameters
    ----------
    a, b
        Two models of one vocabulary. Where many are compared with one, give that as `Reference(b, tokens)`.
    tokens
        `[n, length]`.
    batch
        Windows that are run at a time.

    Returns
    -------
    loss, loss_low, loss_high, kl, kl_low, kl_high
        Loss of `a` minus loss of `b`, positive = `a` is worse, and KL(b || a), both in nats per predicted token, with
        95 % intervals over windows.

    Raises
    ------
    ValueError
        For models of two vocabularies, tokens that they can't read, logits that are NaN or infinite, and a reference on
        other tokens.
    """
    loss, kl = window_differences(a, b, tokens, batch)
    return Comparison(*stats.mean(loss), *stats.mean(kl))


def window_differences(
    a: nn.Module, b: nn.Module | Reference, tokens: Tensor, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """What `compare` averages, for each window.

    Parameters
    ----------
    a, b, tokens, batch
        As for `compare`; errors are those of it too.

    Returns
    -------
    loss, kl
        float64 `[n]` each, in nats per predicted token: loss of `a` minus that of `b`, positive = `a` is worse, and
        KL(b || a).
    """
    known = b if isinstance(b, Reference) else None
    b = b if known is None else known.model
    check_windows(a, tokens)
    if known is None and b is not a:  # a reference was checked when it was made
        check_windows(b, tokens)
    words = [text_config(model).vocab_size for model in (a, b)]
    if words[0] != words[1]:
        sizes = f"{words[0]} and {words[1]}"
        raise ValueError(f"the models have vocabularies of {sizes} tokens: only models that share one can be compared")
    if known is not None and not torch.equal(tokens.cpu(), known.tokens.cpu()):
        raise ValueError("the reference was made on other tokens: compare on those, or make one on these")
    found, done, heads = [], 0, (passes.Head(a), passes.Head(b))
    with torch.inference_mode(), structure.evaluating(a, b):
        for part in _batches(tokens, batch, "comparing"):
            reference = _predicted(heads[1], part) if known is None else known.windows[done : done + len(part)]
            found.append(torch.stack(predictions.differences(_predicted(heads[0], part), reference, part)))
            done += len(part)
    loss, kl = torch.cat(found, dim=1).numpy()
    return loss, kl


def window_losses(model: nn.Module, tokens: Tensor, batch: int = 8) -> Tensor:
    """Mean loss of each window in nats per predicted token, float64 `[n]`.

    Parameters
    ----------
    model, tokens, batch
        As for `perplexity`; errors are those of it too.
    """
    check_windows(model, tokens)
    head = passes.Head(model)
    with torch.inference_mode(), structure.evaluating(model):
        found = [predictions.losses(_predicted(head, part), part) for part in _batches(tokens, batch, "perplexity")]
    return torch.cat(found)


def size(model: nn.Module) -> Size:
    """Parameters and bytes of `model` as stored; counts from shapes, so it works on the meta device too."""
    packed_layers, by_gptq = packed(model), compressed(model)
    tensors = {id(tensor): (name, tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    stored = [tensor for name, tensor in tensors.values() if name not in by_gptq.left_out]
    by_gptq_layers = map(model.get_submodule, by_gptq.bytes)
    parameters = sum(tensor.numel() for tensor in stored if isinstance(tensor, nn.Parameter))
    parameters += sum(math.prod(layer.shape) for layer in packed_layers.values())
    parameters += sum(layer.in_features * layer.out_features for layer in by_gptq_layers)
    taken = sum(tensor.numel() * _stored_bytes(tensor, model) for tensor in stored) + sum(by_gptq.bytes.values())
    return Size(parameters, taken)


def _stored_bytes(tensor, model):
    # A checkpoint in bfloat16 that `load` computes in float32 has not grown; `load` notes what it was stored in.
    noted = getattr(model, "stored_dtype", None)
    # Scales, which are buffers, are in their own dtype whatever the model computes in.
    computed = isinstance(tensor, nn.Parameter) and tensor.dtype == model.dtype
    return noted.itemsize if noted and computed else tensor.element_size()


def check_windows(model: nn.Module, tokens: Tensor) -> None:
    """Raise unless `tokens` is `[n, length]` with something to predict, all in the model's vocabulary and positions."""
    check_text(model, tokens)
    if tokens.shape[1] < 2:
        raise ValueError("windows of one token leave nothing to predict: take windows of at least 2 tokens")


def _batches(tokens: Tensor, batch: int, label: str) -> Iterator[Tensor]:
    """Rows of `tokens`, `batch` at a time, under a progress bar that leaves no trace."""
    yield from tqdm(tokens.split(batch), desc=label, unit="batch", leave=False, disable=None)


def _predicted(head: passes.Head, tokens: Tensor) -> list[predictions.Window]:
    """What a model predicts on a batch of `tokens` `[n, length]`, window by window."""
    return predictions.windows(head, passes.run_trunk(head.model, tokens.to(entrance(head.model))))
