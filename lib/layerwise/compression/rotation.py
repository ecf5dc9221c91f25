"""The arithmetic of slicing: principal components of the residual stream, and weights in another basis of it.

A basis is `[D, w]`, a direction a column; with `x` a row of the dense stream, the new stream holds `x basis`. What
reads the stream takes the norm before it along: `W diag(scale) basis` for `W [out, D]`, and `W shift` on its bias. What
writes it becomes `basis' W` for `W [D, in]`. A basis whose columns have mean zero centres what is written, which is
the part of LayerNorm that ScaleFreeNorm leaves out.

Products with weights are taken in float32, or in float64 for float64 weights, and stored in the dtype and on the device
of the dense weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layerwise.backbone.architectures import Step


class Gram:
    """Sum of `x' x` over rows of hidden states, its lower triangle: float64 `[D, D]`, whatever the dtype of the states.

    Products of one batch are taken in float32 (float64 for float64 states): products of bfloat16 numbers are exact in
    it, while a sum rounded to bfloat16 would drown all but the first components. With `center`, rows lose their mean
    first, as they do in LayerNorm.
    """

    def __init__(self, center: bool = False):
        self.center = center
        self.total: Tensor | None = None

    def add(self, states: Tensor, keep: Tensor | None = None) -> None:
        """Add hidden states `[n, length, D]`, or `[n * length, D]`; only where `keep` `[n, length]` is True."""
        rows = states.flatten(0, -2)
        rows = rows if keep is None else rows[keep.flatten().to(rows.device)]
        rows = _wide(rows)
        if self.center:
            rows = rows - rows.mean(-1, keepdim=True)
        D = rows.shape[1]
        if self.total is None:
            self.total = _float64(rows.new_zeros(D, D))
        width = -(-D // 4)
        for start in range(0, D, width):  # four strips, without most of what lies above the diagonal: 3/8 less to do
            strip = slice(start, start + width)
            self.total[start:, strip] += _float64(rows[:, start:].T @ rows[:, strip])

    def pca(self, where: str = "the hidden state") -> tuple[Tensor, Tensor]:
        """Principal components without centring the columns: eigenvalues `[D]`, largest first, and the basis `[D, D]`
        with a component a column, both float64.

        With `center`, the direction that no centred row has is a column of zeros.
        Raises ValueError that names `where` if states were NaN or infinite.
        """
        if not self.total.isfinite().all():
            raise ValueError(
                f"{where} is NaN or infinite: weights up to there are damaged, or the dtype overflows (float16 does "
                "where bfloat16 and float32 don't)"
            )
        values, vectors = torch.linalg.eigh(self.total, UPLO="L")
        vectors = vectors.flip(1)
        return values.flip(0), vectors - vectors.mean(0) if self.center else vectors


def embed(dense, small, paths: Sequence[str], basis: Tensor) -> None:
    """Embeddings at `paths` that write the stream in `basis` `[D, w]`: one that has an entrance, by that."""
    for path in paths:
        weight, new = dense.get_submodule(path).weight, small.get_submodule(path)
        if hasattr(new, "entrance"):
            put(new.entrance, "weight", basis.T, weight)
        else:
            put(new, "weight", _wide(weight) @ _like(basis, weight), weight)


def read_stream(dense, small, norm: str, paths: Sequence[str], basis: Tensor) -> None:
    """Linear layers at `paths` that read the stream in `basis` `[D, w]`, without the scale and shift of `norm`.

    If the norm of `small` has an exit, they read it through that, `diag(scale) basis`, and have weights as in `dense`.
    """
    into, norm = getattr(small.get_submodule(norm), "exit", None), dense.get_submodule(norm)
    scale, shift = norm.weight, getattr(norm, "bias", None)
    for path in paths:
        old, new = dense.get_submodule(path), small.get_submodule(path)
        weight = _wide(old.weight)
        if into is not None:
            put(into, "weight", basis if scale is None else scale.to(basis)[:, None] * basis, old.weight)
        else:
            scaled = weight if scale is None else weight * _like(scale, weight)
            put(new, "weight", scaled @ _like(basis, weight), old.weight)
        if new.bias is not None:
            bias = weight.new_zeros(len(weight)) if old.bias is None else _wide(old.bias)
            put(new, "bias", bias.clone() if shift is None else bias + weight @ _like(shift, weight), old.weight)


def write_stream(dense, small, paths: Sequence[str], basis: Tensor) -> None:
    """Linear layers at `paths` that write the stream in `basis` `[D, w]`."""
    for path in paths:
        old, new = dense.get_submodule(path), small.get_submodule(path)
        put(new, "weight", _like(basis, old.weight).T @ _wide(old.weight), old.weight)
        if old.bias is not None:
            put(new, "bias", _wide(old.bias) @ _like(basis, old.bias), old.bias)


def pass_on(shortcut: nn.Linear, before: Tensor, after: Tensor, like: Tensor) -> None:
    """A shortcut from the stream in the basis `before` `[D, w]` to the stream in `after` `[D, v]`."""
    put(shortcut, "weight", after.T @ before, like)


def lend(dense, small, step: Step, shortcut: nn.Linear, basis: Tensor) -> None:
    """Let a step, which reads the stream in `basis`, write the dense one, until it is known in which basis to write."""
    for path in step.writes:
        old, new = dense.get_submodule(path), small.get_submodule(path)
        new.weight, new.bias = old.weight, old.bias
    put(shortcut, "weight", basis, dense.get_submodule(step.writes[0]).weight)


def keep_untouched(dense, small, touched: Sequence[str], share: bool) -> None:
    """Take over the parameters that no basis touches, copied unless `share`: all but those of modules at `touched`."""
    given = dict(dense.named_parameters(remove_duplicate=False))
    for name, _ in list(small.named_parameters()):
        if name in given and not any(name.startswith(f"{path}.") for path in touched):
            path, _, last = name.rpartition(".")
            put(small.get_submodule(path), last, given[name] if share else given[name].clone(), given[name])


def keep_buffers(dense, small) -> None:
    """Copy modules that hold buffers and no parameters, such as rotary embeddings: no checkpoint has these."""
    for name, module in list(dense.named_modules()):
        if next(module.buffers(recurse=False), None) is not None and next(module.parameters(), None) is None:
            small.set_submodule(name, copy.deepcopy(module))


def free_weights(module: nn.Module) -> None:
    """Let go of the weights of a module; what shares their memory keeps it."""
    for parameter in module.parameters():
        parameter.data = parameter.new_empty(0)


def put(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    """Set a parameter of `module` to `value`, in the dtype and on the device of `like`."""
    value = value.detach().to(like.device, like.dtype).contiguous()
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _like(tensor, other):
    """`tensor` where `other` is, in the dtype that products with it are taken in."""
    return tensor.to(other.device, torch.float64 if other.dtype == torch.float64 else torch.float32)


def _float64(tensor: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.cpu().double()
