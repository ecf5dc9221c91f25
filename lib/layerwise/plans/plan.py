"""A plan says what happens to each block; it knows no model.

What is unset in a layer stays as it is in the model. Plans over the same blocks are merged with `|`, so that slicing,
bits and pruning are planned apart and done together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerwise.plans import llama_cpp, sizes, written
from layerwise.plans.layer import MOST_BITS, Layer, merged, whole
from layerwise.plans.storage import Stored

if TYPE_CHECKING:
    from layerwise.backbone.shapes import Shape


@dataclass(frozen=True, repr=False)
class Plan:
    """What happens to each of `L` blocks of a model whose residual stream has the width `width`, and to its two ends.

    Where embedding and head are one table, the bits of either are those of both.

    Raises ValueError if there are no layers, if none is kept, or if a layer or the head is wider than the model.
    """

    layers: tuple[Layer, ...]
    width: int
    head: int | None = None  # columns of the final hidden state that a sliced head reads; None: the head is not sliced
    embedding_bits: int | None = None  # per weight of the token embedding, 1 to 16; None: it stays as it is
    head_bits: int | None = None  # per weight of the head

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.width is None:
            raise ValueError("a plan needs the width of the model's residual stream, the D of its shape")
        object.__setattr__(self, "width", whole("width", self.width, 1, None))
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise ValueError(f"layer {i} is {layer!r}: it must be a Layer")
            if layer.width is not None and layer.width > self.width:
                raise ValueError(f"layer {i}: width {layer.width} is more than the model's {self.width}")
        for name, most in (("head", None), ("embedding_bits", MOST_BITS), ("head_bits", MOST_BITS)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value, 1, most))
        if self.head is not None and self.head > self.width:
            raise ValueError(f"the head: width {self.head} is more than the model's {self.width}")
        if not any(layer.keep for layer in self.layers):
            raise ValueError("a plan must keep at least one layer")

    def __or__(self, other: Plan) -> Plan:
        """Both plans in one: unset fields are filled in, and a layer that either removes is removed.

        Raises ValueError where the two set one field to different values, or are for different models.
        """
        if not isinstance(other, Plan):
            return NotImplemented
        mine, others = (len(self.layers), self.width), (len(other.layers), other.width)
        if mine != others:
            raise ValueError(
                f"a plan for {mine[0]} layers of width {mine[1]} can't be merged with one for {others[0]} layers of "
                f"width {others[1]}: both must be for the same model"
            )
        pairs = enumerate(zip(self.layers, other.layers, strict=True))
        ends = {}
        for name, called in zip(written.ENDS, ("the head", *written.ENDS[1:]), strict=True):
            a, b = getattr(self, name), getattr(other, name)
            if None not in (a, b) and a != b:
                raise ValueError(f"one plan sets {called} to {a}, the other to {b}")
            ends[name] = b if a is None else a
        return Plan(tuple(merged(i, *pair) for i, pair in pairs), self.width, **ends)

    @property
    def kept(self) -> tuple[Layer, ...]:
        """The layers that are not removed."""
        return tuple(layer for layer in self.layers if layer.keep)

    @property
    def mean_slice(self) -> float:
        """Mean over the kept layers of the share of the width that is cut; an unset width is not cut."""
        return float(np.mean([1 - (layer.width or self.width) / self.width for layer in self.kept]))

    @property
    def average_bits(self) -> float | None:
        """Mean bits over the kept layers as arXiv 2406.17415 counts them, where layers weigh alike, and scales and what
        is outside the blocks do not count. None if a kept layer has no bits set, which are then the model's own, and if
        one sets bits by matrix: their mean depends on sizes, so `effective_bits` tells it, given a shape."""
        bits = [layer.bits for layer in self.kept if layer.bits is not None and layer.matrices is None]
        return float(np.mean(bits)) if len(bits) == len(self.kept) else None

    @property
    def quantizes(self) -> bool:
        """Whether it sets bits of anything that is kept: of a block, the embedding or the head."""
        return self.by_matrix or any(layer.quantized for layer in self.kept)

    @property
    def by_matrix(self) -> bool:
        """Whether it sets bits otherwise than by whole blocks: of a matrix, the embedding or the head."""
        ends = (self.embedding_bits, self.head_bits)
        return any(layer.matrices for layer in self.kept) or any(bits is not None for bits in ends)

    def ends(self, tied: bool) -> tuple[int | None, int | None]:
        """Bits of embedding and head of a model where they are one table (`tied`) or two.

        Raises ValueError where one table would get two widths.
        """
        of_embedding, of_head = self.embedding_bits, self.head_bits
        if not tied:
            return of_embedding, of_head
        if None not in (of_embedding, of_head) and of_embedding != of_head:
            raise ValueError(
                f"the plan sets embedding_bits to {of_embedding} and head_bits to {of_head}, but in this model they "
                "are one table: set one of them, or both alike"
            )
        both = of_head if of_embedding is None else of_embedding
        return both, both

    @property
    def slices(self) -> bool:
        """Whether it slices at all: sets the head or the width of a kept layer, be it to all that there is."""
        return self.head is not None or any(layer.width is not None for layer in self.kept)

    @property
    def stream(self) -> tuple[int, ...]:
        """Widths of the residual stream: what each kept layer reads, in order, then what the head reads."""
        return (*(layer.width or self.width for layer in self.kept), self.head or self.width)

    def predicted_parameters(self, shape: Shape) -> int:
        """Parameters of the model of this shape once it is compressed to the plan, exact for slicing and dropping.

        A sliced model has its norms folded into the matrices that read them (the final norm too where the head is
        sliced), and in every block shortcut matrices that carry the residual stream from one basis to the next. A head
        that is tied to the embedding stays so where that takes fewer parameters (see `storage.tables`). A weight of few
        bits is a parameter like any other.

        Raises ValueError for a shape with other blocks or another width, and if the plan slices what can't be sliced.
        """
        return sizes.parameters_of(self, shape)

    def predicted_bytes(self, shape: Shape, stored: Stored | None = None) -> int:
        """Bytes of the model as stored: matrices of few bits by `stored`, all else at the dtype of the shape.

        `stored(bits, rows, columns) -> bytes` of one matrix; a quantizer that stores otherwise than the built-in "rtn"
        (groups of 64, each with a scale of 16 bits and a zero point of 8) has its own, as its attribute `stored`. For
        layers that set outliers, `outliers` is a keyword of it, as in `Outliers().stored`.

        Embedding and head count at their bits where the plan sets them. What is told is exact for the quantizers of
        this package; where a plan leaves it to one how many outliers there are, to a few bytes for each matrix.

        Raises ValueError as `predicted_parameters`, and for outliers that `stored` doesn't count.
        """
        few = sizes.few_in_blocks(self, shape, stored) + sizes.few_at_the_ends(self, shape, stored)
        return (self.predicted_parameters(shape) - few.weights) * shape.bytes_per_parameter + few.bytes

    def effective_bits(self, shape: Shape, stored: Stored | None = None) -> float:
        """Bits per weight in the matrices of the kept blocks as stored, scales and zero points counted, by `stored`.

        Every weight counts alike, so large matrices more than small ones. Matrices without bits count at the dtype of
        the shape; embedding and head don't count. Arguments and errors as in `predicted_bytes`.
        """
        few = sizes.few_in_blocks(self, shape, stored)
        each = (sizes.block_sizes(self, shape, i) for i, layer in enumerate(self.layers) if layer.keep)
        total = sum(rows * columns for block in each for rows, columns in block)
        return 8 * (few.bytes + (total - few.weights) * shape.bytes_per_parameter) / total

    def bits_by_part(self, shape: Shape) -> tuple[int | None, ...]:
        """Bits of each of `shape.parts`, in their order; None where they are unset, or the block is removed.

        Raises ValueError for a shape with other blocks, another width or other linear layers.
        """
        sizes.check_shape(self, shape)
        ends = dict(zip(sizes.ENDS, self.ends(shape.tied), strict=True))
        found = []
        for part in shape.parts:
            layer = None if part.block is None else self.layers[part.block]
            found.append(ends[part.path] if layer is None else layer.bits_of(part.path) if layer.keep else None)
        return tuple(found)

    def to_json(self) -> str:
        """The plan as text for a file, one line per layer with the fields it sets, so that a diff compares plans."""
        return written.json_of(self)

    def to_llama_cpp(self, types: Mapping[int | None, str] = llama_cpp.TYPES) -> str:
        """The plan as the file of tensor types by which llama.cpp quantizes a GGUF file of 16 or 32 bits:

            llama-quantize --tensor-type-file types.txt model-f16.gguf model.gguf q4_k_m

        where the last word counts for what the plan doesn't tell, which is nothing. A plan that removes blocks needs
        `--prune-layers 20,21` too, with their numbers: the file goes by the numbers that the others then have. Where
        embedding and head are one table, it is told by `embedding_bits`, as `lw.plans.by_part` sets them.

        Parameters
        ----------
        types
            llama.cpp's type for each number of bits, and for None, what a matrix without bits gets; by default q2_k to
            q6_k, q8_0 and f16. Those called k need rows of whole groups of 256 weights. Where a row isn't,
            llama-quantize takes a larger type of groups of 32 in place of it; `lw.plans.llama_cpp_bytes` counts that.

        Raises
        ------
        ValueError
            For bits that `types` hasn't, a path in a block that isn't known to be in a GGUF file, and a plan that
            slices or keeps outliers.
        """
        return llama_cpp.tensor_types(self, types)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote. Raises ValueError for anything else, fields with unknown names included."""
        return cls(**written.fields_in(text))

    def __repr__(self) -> str:
        return written.plain_table(self)

    def _repr_html_(self) -> str:
        return written.html_table(self)
