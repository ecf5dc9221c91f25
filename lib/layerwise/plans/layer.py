"""One block of a plan: whether it stays, how wide it is, and how many bits its weights have."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

MOST_BITS = 16  # more than that is no compression of anything that models are stored in


@dataclass(frozen=True)
class Layer:
    """One block of a plan; None = unset.

    `matrices` goes before `bits`, which is then the width of the linear layers that it doesn't name. It is given as a
    mapping, `Layer(bits=4, matrices={"mlp.down_proj": 6})`, and kept as pairs in the order of the paths.

    Raises ValueError for a value that no block can have; a width and a path are checked against the model's by `Plan`.
    """

    keep: bool = True  # False: the block is removed, and its other fields have no effect
    width: int | None = None  # columns of the residual stream that the block reads
    bits: int | None = None  # per weight of its linear layers, 1 to 16
    outliers: float | None = None  # share of its weights that stay unquantized, in [0, 1)
    matrices: Mapping[str, int] | tuple[tuple[str, int], ...] | None = None  # bits by path of a linear layer in it

    def __post_init__(self) -> None:
        if not isinstance(self.keep, (bool, np.bool_)):
            raise ValueError(f"keep must be True or False, not {self.keep!r}")
        # numpy's numbers become Python's, so that equal plans look equal and can be written as JSON
        object.__setattr__(self, "keep", bool(self.keep))
        for name, most in (("width", None), ("bits", MOST_BITS)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value, 1, most))
        if self.outliers is not None:
            number = isinstance(self.outliers, (int, float, np.number)) and not isinstance(self.outliers, bool)
            if not number or not 0 <= self.outliers < 1:
                raise ValueError(f"outliers must be a share, at least 0 and below 1, not {self.outliers!r}")
            object.__setattr__(self, "outliers", float(self.outliers))
        if self.matrices is not None:
            object.__setattr__(self, "matrices", _pairs(self.matrices))

    @property
    def quantized(self) -> bool:
        """Whether it sets bits, of all its linear layers or of some."""
        return self.bits is not None or self.matrices is not None

    def bits_of(self, path: str) -> int | None:
        """Bits of the linear layer at `path` in the block; None where they are unset."""
        return dict(self.matrices or ()).get(path, self.bits)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not at their default, as JSON has them."""
        found = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        return found | {"matrices": dict(found["matrices"])} if "matrices" in found else found


def merged(i: int, a: Layer, b: Layer) -> Layer:
    """Layer `i` of two plans in one. Raises ValueError where they set a field, or a matrix, to different values."""
    mine, others = a.given, b.given
    matrices = [each.pop("matrices", {}) for each in (mine, others)]
    for one, other in ((mine, others), tuple(matrices)):
        for name in one.keys() & other.keys():
            if one[name] != other[name]:
                raise ValueError(f"layer {i}: one plan sets {name} to {one[name]}, the other to {other[name]}")
    return Layer(**mine | others, matrices=matrices[0] | matrices[1])


def whole(name: str, value: Any, low: int, high: int | None) -> int:
    """`value` as an int; raises ValueError unless it is a whole number from `low` to `high`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if whole < low or (high is not None and whole > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, not {whole}")
    return whole


def _pairs(matrices: object) -> tuple[tuple[str, int], ...] | None:
    """Bits by path, checked, as pairs in the order of the paths; None if there are none."""
    try:
        found = dict(matrices)  # type: ignore[call-overload]  # whatever it is: what can't be one is refused
    except (TypeError, ValueError):
        found = None
    if found is None or not all(isinstance(path, str) for path in found):
        raise ValueError(f'matrices must be bits by path, such as {{"mlp.down_proj": 6}}, not {matrices!r}')
    return tuple((path, whole(f"bits of {path}", found[path], 1, MOST_BITS)) for path in sorted(found)) or None
