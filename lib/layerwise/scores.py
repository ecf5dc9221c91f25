"""How important is each block? `(model, tokens) -> importance [L]`, higher = keep more.

`x_i` is the hidden state that enters block `i`, `y_i` the one that leaves it, both read at the block itself: a Hugging
Face `hidden_states[-1]` is taken after the final norm and is not `y_{L-1}`. A score of your own is any function of this
signature; `measure` gives it a standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise import stats
from layerwise.backbone import devices, passes
from layerwise.backbone.products import Products, window_means
from layerwise.backbone.structure import blocks, evaluating, experts, is_sliced, linears, text_config
from layerwise.text.corpora import check_mask, check_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Score = Callable[..., ArrayLike]  # (model, tokens, and more by name) -> importance [L]
GROUPS = 8  # into which `measure` splits the windows for a score that it can't look into


@dataclass(frozen=True, eq=False)
class Measured:
    """A score of every block with its standard error, float64 `[L]` each: `value, standard_error = measure(...)`.

    `low` and `high` are the 95 % interval of every block on its own, by Student's t with the `degrees` of freedom that
    the error has: few windows give a wide interval, and a single one gives none (NaN).
    """

    value: np.ndarray
    standard_error: np.ndarray
    degrees: float

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.value, self.standard_error))

    @property
    def low(self) -> np.ndarray:
        return self.value - stats.half_width(self.standard_error, self.degrees)

    @property
    def high(self) -> np.ndarray:
        return self.value + stats.half_width(self.standard_error, self.degrees)


@dataclass(frozen=True)
class Statistics:
    """What one pass over the tokens tells of each block, window by window.

    `tokens` `[n]` counts the tokens of a window that are no padding. The others are means over these, `[L, n]`:
    `cosine` of x and y; `read`, `written` and `change`, the mean squares per coordinate of x, y and y - x.

    Tokens of a window depend on each other, windows do not: the window is the sampling unit of every standard error.
    Indexing takes some of the windows, `statistics[:16]`, so that nothing is run twice to see fewer tokens.
    """

    tokens: np.ndarray
    cosine: np.ndarray
    read: np.ndarray
    written: np.ndarray
    change: np.ndarray

    def __getitem__(self, windows: int | slice | np.ndarray) -> Statistics:
        chosen = np.atleast_1d(np.arange(len(self.tokens))[windows])
        parts = (self.cosine, self.read, self.written, self.change)
        return Statistics(self.tokens[chosen], *(part[:, chosen] for part in parts))

    @property
    def lim(self) -> Measured:
        """Layer input modification: minus the mean cosine over all tokens."""
        value, error = self._mean(self.cosine)
        return Measured(-value, error, self._windows - 1)

    def rms(self, which: str) -> Measured:
        """Root mean square of a coordinate of the residual stream `[L]`: `which` is "read", "written" or "change"."""
        value, error = self._mean(getattr(self, which))
        root = np.sqrt(value)
        error = np.divide(error, 2 * root, out=np.zeros_like(error), where=root > 0)
        return Measured(root, error, self._windows - 1)

    @property
    def _windows(self) -> int:
        """How many windows have a token; one of padding alone tells nothing."""
        return int(np.count_nonzero(self.tokens))

    def _mean(self, of_windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over tokens and its standard error over windows, that of a ratio estimate: `[L, n] -> [L], [L]`.

        Windows weigh by their tokens. With equally long windows this is the usual standard error of a mean.
        """
        n = self._windows
        weights = self.tokens / self.tokens.sum()
        value = of_windows @ weights
        if n < 2:
            return value, np.full_like(value, np.nan)  # one window has no spread
        squares = (((of_windows - value[:, None]) * weights) ** 2).sum(axis=1)
        return value, np.sqrt(squares * n / (n - 1))


def lim(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None, batch: int = 8) -> np.ndarray:
    """Layer input modification, minus the mean over tokens of cos(x_i, y_i): float64 `[L]`, higher = more important.

    Defined in arXiv 2406.17415; the layer redundancy LR of arXiv 2411.03513 is its negative, and the block influence
    of ShortGPT (arXiv 2403.03853) is 1 plus it. Errors as for `statistics`.

    Parameters
    ----------
    model, tokens, mask, batch
        As for `statistics`.
    """
    return statistics(model, tokens, mask, batch).lim.value


def angular_distances(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None, batch: int = 8) -> np.ndarray:
    """How far the residual stream turns across runs of blocks: mean over tokens of the angle.

    The distance is that of arXiv 2403.17887, which looks at the last token of each window only. `lw.plans.drop_run`
    removes the run across which it is least. Memory: a batch's hidden states at all blocks. Errors as for `statistics`.

    Parameters
    ----------
    model, tokens, mask, batch
        As for `statistics`.

    Returns
    -------
    distances
        float64 `[L + 1, L + 1]`. Entry `[i, j]` is arccos(cos(a, b)) / pi, in [0, 1], between what enters block `i` and
        what enters block `j`; `L` is what leaves the last block.
    """
    keep = _check(model, tokens, mask)
    states: list[Tensor] = []

    def hook(x: Tensor, y: Tensor) -> None:
        states.extend([y] if states else [x, y])

    total = torch.zeros(len(blocks(model)) + 1, len(blocks(model)) + 1, dtype=torch.float64)
    with torch.inference_mode(), evaluating(model), passes.watching(model, hook):
        for rows in _batches(model, tokens, mask, batch):
            for window, kept in enumerate(keep[rows]):
                # One window at a time, [tokens, L + 1, D], so that float32 copies stay small.
                each = torch.stack([state[window].cpu()[kept] for state in states], dim=1).float()
                if (bad := ~each.isfinite().all(dim=2).all(dim=0)).any():
                    place = int(bad.nonzero()[0])
                    where = f"leaves block {place - 1}" if place else "enters block 0"
                    raise ValueError(f"what {where} holds NaN or infinity: weights up to there are damaged")
                each = torch.nn.functional.normalize(each, dim=-1)
                total += (each @ each.mT).double().clamp(-1, 1).arccos().sum(0)
            states.clear()
    return (total / keep.sum() / torch.pi).fill_diagonal_(0).numpy()


def zd(model: PreTrainedModel, tokens: Tensor | None = None, mask: Tensor | None = None) -> np.ndarray:
    """Z-score distribution: minus the share of a block's weights with z > 1, float64 `[L]`, higher = more important.

    z = (w - mean) / std over the weight matrices of all linear layers of the block, pooled; the standard deviation is
    that of the population (arXiv 2406.17415). The weights of all its experts are among them, its router's are not.
    Raises ValueError that names the block and the matrix if a weight is NaN or infinite.

    Parameters
    ----------
    model, tokens, mask
        Only the model is read. `tokens` and `mask` are there so that scores are called alike.
    """
    return np.array([-_share_above_one(block, i) for i, block in enumerate(blocks(model))])


def measure(
    score: Score, model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None, **options: Any
) -> Measured:
    """A score and its standard error over windows, with intervals.

    Parameters
    ----------
    score
        `(model, tokens, **options) -> importance [L]`; the mask goes to it too if there is one.
    model, tokens, mask
        As for `statistics`.

    Returns
    -------
    value, standard_error
        float64 `[L]` each, with intervals (see `Measured`). For `lim` both come from one pass. For `zd` the error is 0:
        it is a census of the weights, not a sample of text. Any other score is computed on all tokens, then on up to 8
        disjoint groups of windows, from whose spread the error is estimated: that costs twice, and suits scores that
        are means over text. One window gives no error (NaN).
    """
    if score is lim:
        return statistics(model, tokens, mask, **options).lim
    check_mask(mask, tokens)
    if mask is not None:  # windows of padding alone are no windows
        some = mask.bool().any(dim=1)
        tokens, mask = tokens[some], mask[some]

    def call(part: Tensor, kept: Tensor | None) -> np.ndarray:
        return _checked(score(model, part, **options if kept is None else options | {"mask": kept}), score, model)

    value = call(tokens, mask)
    if score is zd:
        return Measured(value, np.zeros_like(value), np.inf)
    if len(tokens) < 2:
        return Measured(value, np.full_like(value, np.nan), 0)
    n = min(GROUPS, len(tokens))
    masks = [None] * n if mask is None else mask.tensor_split(n)
    each = np.stack([call(*group) for group in zip(tokens.tensor_split(n), masks, strict=True)])
    return Measured(value, stats.standard_error(each.T), n - 1)


def statistics(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None, batch: int = 8) -> Statistics:
    """Run the blocks over text once, and keep no hidden state.

    Parameters
    ----------
    model
        It is run in eval mode, without its head.
    tokens
        `[n, length]`.
    mask
        `[n, length]`, 1 (or True) for tokens and 0 for padding, on either side; goes to the model as its attention
        mask. None means that all are tokens.
    batch
        Windows that are run at a time.

    Returns
    -------
    statistics
        What grows with the tokens is four numbers per window and block. A token whose x or y is exactly 0 has no
        direction: its cosine counts as 0, as in torch.

    Raises
    ------
    ValueError
        For a sliced model, tokens outside the vocabulary, windows longer than a table of positions, a mask of another
        shape or without any token, and NaN or infinite hidden states, naming the first block that has them.
    """
    keep = _check(model, tokens, mask)
    found: list[Tensor] = []
    products = Products()
    with torch.inference_mode(), evaluating(model), passes.watching(model, products.add):
        for rows in _batches(model, tokens, mask, batch):
            found.append(window_means(products.taken(), keep[rows], rows.start))
    means = torch.cat(found, dim=2).numpy()  # [4, L, n]
    means[1:] /= text_config(model).hidden_size
    return Statistics(keep.sum(1).numpy(), *means)


def _check(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens are no padding, bool `[n, length]`; raises ValueError for what can't be scored."""
    if is_sliced(model):
        raise ValueError(
            "a block of a sliced model reads and writes the stream in two bases, so that no cosine compares the two: "
            "score the dense model"
        )
    check_text(model, tokens)
    check_mask(mask, tokens)
    return torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()


def _batches(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None, batch: int) -> Iterator[slice]:
    """Run the model, without its head, on `batch` windows at a time; yields which, after each."""
    device = devices.entrance(model)
    for start in tqdm(range(0, len(tokens), batch), desc="scoring", unit="batch", leave=False, delay=5):
        rows = slice(start, start + batch)
        passes.run_trunk(model, tokens[rows].to(device), None if mask is None else mask[rows].to(device))
        yield rows


def _share_above_one(block: nn.Module, index: int) -> float:
    """Share of a block's linear weights that lie more than one standard deviation above their mean, all pooled."""
    # On the CPU, since not every device has float64; one block at a time.
    with devices.present(block):
        found = {name: linear.weight for name, linear in linears(block).items()} | experts(block)
        weights = {name: weight.detach().cpu() for name, weight in found.items()}
    count = sum(w.numel() for w in weights.values())
    sums = {name: weight.sum(dtype=torch.float64).item() for name, weight in weights.items()}
    if bad := [name for name, total in sums.items() if not np.isfinite(total)]:
        raise ValueError(f"block {index}: the weights of {bad[0]} hold NaN or infinity, so they have no z-score")
    mean = sum(sums.values()) / count
    # Deviations from the mean in a second pass: E[w^2] - E[w]^2 would cancel. One matrix at a time is in float64.
    variance = sum((w.double() - mean).square_().sum().item() for w in weights.values()) / count
    return sum(torch.count_nonzero(w.double() > mean + variance**0.5).item() for w in weights.values()) / count


def _checked(value: ArrayLike, score: Score, model: PreTrainedModel) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if value.shape != (count := len(blocks(model)),):
        name = getattr(score, "__name__", score)
        raise ValueError(f"{name} gave the shape {list(value.shape)}: a score gives one number per block, [{count}]")
    return value
