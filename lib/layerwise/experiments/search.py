"""A plan found by search: plans are changed at random, and what is better on some text stays. It predicts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from layerwise.backbone.shapes import shape as shape_of
from layerwise.experiments.assembly import Assembly
from layerwise.plans import Plan, by_part, number_of_bytes

SIEVE = ((16, 2), (4, 8))  # in each generation: so many plans are compared on so many windows, then the best of these


class Searched(NamedTuple):
    """What `evolve` returns."""

    plan: Plan
    kl: np.ndarray  # of the best plan on all windows, after each generation, in nats per token
    passes: int  # windows that a model of few bits was run on


def evolve(
    model: nn.Module,
    tokens: Tensor,
    quantizer: str | Callable,
    widths: Sequence[int],
    bytes: int | str,
    start: Plan,
    generations: int = 50,
    seed: int = 0,
) -> Searched:
    """The plan of at most so many bytes that an evolutionary search finds, in the way of EvoPress (arXiv 2410.14649).

    Each generation makes sixteen plans from the best one so far. Each of them trades one to three times: a part, by
    chance, goes one width down, and others, by chance, go up while there are bytes left. All are compared with the
    dense model on two windows, the best four on all, and the best of these takes over if its KL there is lower.
    EvoPress trades within layers of one size and runs longer on more text: this is its idea, at a fraction of its bill.

    Parameters
    ----------
    model, quantizer
        A dense model, and what an `Assembly` takes.
    tokens
        Calibration text `[n, length]`, of which as many windows as there are, up to eight, are used.
    widths
        Bits that each linear layer, the embedding and the head may have.
    bytes
        As for `lw.plans.allocate`.
    start
        Where the search begins, such as one width for all.
    generations, seed
        How long it goes on, and what draws the changes.

    Raises
    ------
    ValueError
        For a start that takes more than the bytes, or has other widths, and what `Assembly` raises.
    """
    shape, budget, widths = shape_of(model), number_of_bytes(bytes), sorted(widths)
    assembly = Assembly(model, widths, quantizer)
    stored = getattr(assembly.quantizer, "stored", None)
    if (taken := start.predicted_bytes(shape, stored)) > budget:
        raise ValueError(f"the plan that the search starts from takes {taken} bytes, more than {budget}")
    if strange := sorted({str(bits) for bits in start.bits_by_part(shape) if bits not in widths}):
        raise ValueError(f"the plan that the search starts from has parts at {', '.join(strange)} bits, not in widths")
    sizes = _sizes(shape, widths, stored)
    room = budget - (
        taken - _taken(sizes, best := np.array([widths.index(bits) for bits in start.bits_by_part(shape)]))
    )
    rng, passes, path = np.random.default_rng(seed), 0, []
    tokens = tokens[: SIEVE[-1][1]]

    def divergence(chosen: Sequence[np.ndarray], windows: int) -> np.ndarray:
        nonlocal passes
        passes += len(chosen) * min(windows, len(tokens))
        plans = [by_part(shape, [widths[k] for k in each]) for each in chosen]
        return assembly.compare(plans, tokens[:windows])[1].mean(axis=1)

    (kl,) = divergence([best], len(tokens))
    for _ in tqdm(range(generations), desc="search", unit="generation", leave=False, disable=None):
        pool = [_changed(best, sizes, room, rng) for _ in range(SIEVE[0][0])]
        for count, windows in SIEVE:
            pool = pool[:count]
            found = divergence(pool, windows)
            pool = [pool[k] for k in np.argsort(found, kind="stable")]
        if found.min() < kl:
            kl, best = found.min(), pool[0]
        path.append(kl)
    return Searched(by_part(shape, [widths[k] for k in best]), np.array(path), passes)


def _sizes(shape, widths: Sequence[int], stored) -> np.ndarray:
    """Bytes of each part at each width, `[parts, widths]`, from what plans take that differ in it alone."""
    low = [widths[0]] * len(shape.parts)
    least = by_part(shape, low).predicted_bytes(shape, stored)
    found = np.zeros((len(low), len(widths)))
    for j in range(len(low)):
        for k, bits in enumerate(widths):
            plan = by_part(shape, [*low[:j], bits, *low[j + 1 :]])
            found[j, k] = plan.predicted_bytes(shape, stored) - least
    return found


def _taken(sizes: np.ndarray, chosen: np.ndarray) -> float:
    return sizes[np.arange(len(chosen)), chosen].sum()


def _changed(best: np.ndarray, sizes: np.ndarray, room: float, rng: np.random.Generator) -> np.ndarray:
    """A plan `[parts]`, numbers of widths, in which bytes were moved by chance, within `room` as `_taken` counts."""
    chosen = best.copy()
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):  # few changes are likelier, as in EvoPress
        may = np.flatnonzero(chosen > 0)
        if len(may):
            chosen[rng.choice(may)] -= 1
        left = room - _taken(sizes, chosen)
        for j in rng.permutation(len(chosen)):
            if chosen[j] + 1 < sizes.shape[1] and (more := sizes[j, chosen[j] + 1] - sizes[j, chosen[j]]) <= left:
                chosen[j] += 1
                left -= more
    return chosen
