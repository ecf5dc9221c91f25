"""The cheapest plan of so many bytes: bits for every matrix, from what each width is predicted to cost.

Which of a few widths each matrix gets, at the least total cost and within a budget, is a knapsack problem with one
choice from every class. It is solved as a mixed-integer program by HiGHS, to the end: its linear relaxation leaves few
choices open, so that a model of some hundred matrices takes a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from layerwise.plans.layer import Layer
from layerwise.plans.parts import by_part
from layerwise.plans.plan import Plan
from layerwise.plans.storage import Grouped, Stored

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Part, Shape

NEAR = 0.99  # of the budget: what a plan takes at least, where sizes of matrices allow it
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
FUSED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # vLLM computes each in one product


def allocate(
    shape: Shape,
    costs: ArrayLike,
    bytes: int | str,
    widths: Sequence[int | None],
    stored: Stored | None = None,
    *,
    fused: bool = False,
    share: Callable[[Part], Hashable] | None = None,
    floors: Mapping[str, int] | None = None,
    removal: ArrayLike | None = None,
    context: int = 0,
) -> Plan:
    """Bits for each linear layer, the embedding and the head, at the least predicted cost within a budget of bytes.

    Parameters
    ----------
    shape
        Of the model, as `lw.shape` gives it.
    costs
        `[parts, widths]`, in the order of `shape.parts` and of `widths`: what a part at a width is predicted to cost,
        lower = better. Costs are added up over parts, as nats of KL that `lw.costs` predict may be.
    bytes
        Of the model as stored, everything counted: a number, or "6 GB" (10^9 bytes) or "6 GiB" (2^30).
    widths
        Bits; None leaves a part in the model's own dtype.
    stored
        The quantizer's `stored(bits, rows, columns) -> bytes`, as for `Plan.predicted_bytes`.
    fused
        One width for the matrices of queries, keys and values of a block, and one for its gate and up: vLLM computes
        each in one product.
    share
        Parts for which this gives the same get one width, such as `lambda part: (part.block, part.path == "head")`.
    floors
        The least bits of parts by how their path ends, such as `{"embedding": 6, "down_proj": 3}`. A head that is tied
        to the embedding goes by that.
    removal
        `[L]`: what it is predicted to cost to remove a block, in the unit of `costs`. A block may then be removed where
        that is the better use of bytes; None removes no block.
    context
        Tokens whose keys and values have to fit into the bytes too.

    Returns
    -------
    plan
        The best of those that take at most `bytes` and at least 99 % of them; where sizes of matrices allow no plan
        within that 1 %, the best of those that take at most `bytes`.

    Raises
    ------
    ValueError
        For costs of another size or that aren't finite, bytes that can't be read, floors that name no part or leave it
        no width, and a budget that no plan meets, with the range of those that can be met.

    Notes
    -----
    The optimum is exact, to the solver's tolerance of about a millionth, so that methods of predicting costs differ in
    their costs only. Thresholds and greedy fillings, which others use, approximate it.
    """
    budget = number_of_bytes(bytes)
    table = np.array(costs, float)
    parts = shape.parts
    if table.shape != (len(parts), len(widths)) or not np.isfinite(table).all():
        raise ValueError(
            f"costs must be finite numbers for {len(parts)} parts x {len(widths)} widths, in the order of shape.parts "
            f"and of widths; these are {' x '.join(map(str, table.shape))}"
        )
    sizes = np.array([_sizes(part, widths, stored or Grouped(), shape.bytes_per_parameter) for part in parts], float)
    table[~_allowed(shape, widths, floors or {})] = np.inf
    classes = _classes(parts, fused, share)
    removed_too = None if removal is None else _removal(shape, removal, parts, classes)
    cached = np.full(shape.L, context * shape.cache_bytes / shape.L)
    inside = sum(part.rows * part.columns for part in parts) * shape.bytes_per_parameter
    fixed = shape.total_bytes - inside + cached.sum()
    # What goes with a block beside its matrices: norms, biases, its keys and values.
    beside = cached + shape.bytes - np.array(shape.linear_weights) * shape.bytes_per_parameter
    together = np.zeros((classes.max() + 1, 2, len(widths)))
    np.add.at(together, classes, np.stack([table, sizes], 1))
    first = np.unique(classes, return_index=True)[1]
    block_of = np.array([-1 if parts[i].block is None else parts[i].block for i in first])
    program = _Program(together[:, 0], together[:, 1], removed_too, beside, block_of)
    chosen, gone = program.solve(budget, fixed)
    plan = by_part(shape, [widths[k] for k in chosen[classes]])
    layers = [Layer(keep=False) if i in gone else layer for i, layer in enumerate(plan.layers)]
    return Plan(tuple(layers), plan.width, embedding_bits=plan.embedding_bits, head_bits=plan.head_bits)


def number_of_bytes(told: int | str) -> int:
    """Bytes as a number, of a number or of text such as "6 GB" (10^9), "6 GiB" (2^30) or "800MB".

    Raises ValueError for what is neither, or isn't above 0.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kmgt]?i?)b?\s*", str(told), re.IGNORECASE)
    if isinstance(told, bool) or not found or found[2].lower() not in UNITS or float(found[1]) <= 0:
        raise ValueError(f'bytes must be a number above 0, or text such as "6 GB" or "6 GiB", not {told!r}')
    return int(float(found[1]) * UNITS[found[2].lower()])


def told_bytes(count: float) -> str:
    """Bytes in words that `number_of_bytes` reads, such as "4.21 GB"."""
    unit = next((unit for unit in ("T", "G", "M", "k") if count >= UNITS[unit.lower()]), "")
    return f"{count / UNITS[unit.lower()]:.4g} {unit}B"


def _sizes(part: Part, widths: Sequence[int | None], stored: Stored, dense: int) -> list[int]:
    count = part.rows * part.columns
    return [count * dense if width is None else stored(width, part.rows, part.columns) for width in widths]


def _allowed(shape: Shape, widths: Sequence[int | None], floors: Mapping[str, int]) -> np.ndarray:
    """Which widths each part may have, bool `[parts, widths]`."""
    allowed = np.ones((len(shape.parts), len(widths)), bool)
    for ending, least in floors.items():
        ending = "embedding" if ending == "head" and shape.tied else ending
        named = [i for i, part in enumerate(shape.parts) if f".{part.path}".endswith(f".{ending}")]
        enough = [width is None or width >= least for width in widths]
        if not named or not any(enough):
            paths = ", ".join(dict.fromkeys(part.path for part in shape.parts))
            what = f"no part's path ends so; there is {paths}" if not named else "no width is as large"
            raise ValueError(f"the floor {ending!r}: {least} can't be kept: {what}")
        allowed[named] &= enough
    return allowed


def _classes(parts: Sequence[Part], fused: bool, share: Callable[[Part], Hashable] | None) -> np.ndarray:
    """The number of each part's class, `[parts]`: parts of one class get one width."""

    def name(part: Part) -> Hashable:
        if share is not None and (told := share(part)) is not None:
            return "shared", told
        where, _, last = part.path.rpartition(".")
        return part.block, where, next((names for names in FUSED if last in names), last) if fused else last

    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name(part), len(numbers)) for part in parts])


def _removal(shape: Shape, removal: ArrayLike, parts: Sequence[Part], classes: np.ndarray) -> np.ndarray:
    found = np.array(removal, float)
    if found.shape != (shape.L,) or not np.isfinite(found).all():
        raise ValueError(f"removal must be {shape.L} finite numbers, one for each block, not {removal!r}")
    blocks: dict[int, set[int | None]] = {}
    for part, each in zip(parts, classes.tolist(), strict=True):
        blocks.setdefault(each, set()).add(part.block)
    if any(len(each) > 1 for each in blocks.values()):
        raise ValueError("where blocks may be removed, parts of several blocks can't share a width")
    return found


class _Program:
    """One width for each class of parts, and whether each block stays: a mixed-integer program.

    `costs` and `sizes` are `[classes, widths]`, infinitely dear where a width isn't allowed; `removal` is `[L]` or
    None, `beside` `[L]` the bytes that go with a block besides those of its parts, `block_of` `[classes]`, -1 for none.
    """

    def __init__(
        self, costs: np.ndarray, sizes: np.ndarray, removal: np.ndarray | None, beside: np.ndarray, block_of: np.ndarray
    ):
        self.shape, count = costs.shape, costs.size
        drops = 0 if removal is None else len(removal)
        self.costs = np.concatenate([costs.ravel(), [] if removal is None else removal])
        self.sizes = np.concatenate([sizes.ravel(), -beside[:drops]])
        self.may = np.isfinite(self.costs)
        # Each class has one of its widths, unless its block is gone; not every block may go.
        rows = [np.repeat(np.arange(len(costs)), costs.shape[1])]
        columns = [np.arange(count)]
        if drops:
            inside = np.flatnonzero(block_of >= 0)
            rows += [inside, np.full(drops, len(costs))]
            columns += [count + block_of[inside], count + np.arange(drops)]
        where = np.concatenate(rows), np.concatenate(columns)
        self.choose = csr_array((np.ones(len(where[0])), where), shape=(len(costs) + (drops > 0), count + drops))
        least = np.ones(len(costs))
        self.low = np.append(least, 0) if drops else least
        self.high = np.append(least, drops - 1) if drops else least

    def solve(self, budget: int, fixed: float) -> tuple[np.ndarray, set[int]]:
        """Which width each class gets, `[classes]`, and which blocks are removed, at `fixed` bytes for all else."""
        room = budget - fixed
        found = self._best(NEAR * budget - fixed, room)
        if found is None and (found := self._best(-np.inf, room)) is None:
            raise ValueError(self._range(budget, fixed))
        if found[1] < NEAR * budget - fixed and self._best(room, np.inf) is None:
            raise ValueError(self._range(budget, fixed))
        if self.costs[self.may].min() >= 0:
            # The solver's tolerance is a share of the dearest choice. What is dearer than the whole plan is out of it.
            self.may &= self.costs <= np.where(self.may, self.costs, 0) @ found[0]
            found = self._best(min(found[1], NEAR * budget - fixed), room) or found
        x = found[0]
        classes = x[: np.prod(self.shape)].reshape(self.shape)
        return classes.argmax(1), set(np.flatnonzero(x[classes.size :]).tolist())

    def _best(self, least: float, most: float, costs: np.ndarray | None = None) -> tuple[np.ndarray, float] | None:
        """The cheapest choice of at least and at most so many bytes, 0 or 1 `[variables]`, and its bytes; None if there
        is none."""
        costs = self.costs if costs is None else costs
        scale = np.abs(costs[self.may]).max() or 1.0
        unit = np.abs(self.sizes).max()  # coefficients near 1 keep the solver's tolerances small in bytes
        while True:
            limits = [LinearConstraint(self.choose, self.low, self.high)]
            limits.append(LinearConstraint(self.sizes[None] / unit, least / unit, most / unit))
            solved = milp(
                np.where(self.may, costs, 0) / scale,
                integrality=np.ones(len(costs)),
                bounds=Bounds(0, self.may.astype(float)),
                constraints=limits,
                options={"mip_rel_gap": 1e-6},
            )
            if solved.x is None:
                return None
            x = solved.x.round()
            taken = float(self.sizes @ x)
            if taken <= most:
                return x, taken
            most -= taken - most + 1  # within the solver's tolerance of the budget, and above it

    def _range(self, budget: int, fixed: float) -> str:
        ends = [self._best(-np.inf, np.inf, sign * self.sizes) for sign in (1, -1)]
        low, high = (told_bytes(fixed + end[1]) for end in ends if end is not None)
        return (
            f"no plan takes {told_bytes(budget)}: with these widths the model takes from {low} to {high}, all that is "
            "stored counted, and keys and values where a context is given"
        )
