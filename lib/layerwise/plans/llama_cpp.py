"""A plan as the file of tensor types that llama.cpp's llama-quantize takes.

Each line is `PATTERN=TYPE`. A tensor of the name that the pattern, a regular expression, is found in gets the type. Of
several lines for one tensor some versions take the first and others the last, so here no two are for the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerwise.plans.layer import Layer
    from layerwise.plans.plan import Plan

TYPES: Mapping[int | None, str] = MappingProxyType(
    {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 8: "q8_0", None: "f16"}
)
# Bytes of a group of 256 weights of a row in those types, and of 32 in what llama-quantize takes where a row has no
# whole number of the former: q4_0 for q2_k and q3_k, q5_0 for q4_k, q5_1 for q5_k, q8_0 for q6_k.
OF_256 = {2: 84, 3: 110, 4: 144, 5: 176, 6: 210}
OF_32 = {2: 18, 3: 18, 4: 22, 5: 24, 6: 34, 8: 34}
# What llama.cpp calls the linear layer at a path in a block.
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",  # Phi-3
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.dense": "attn_output",  # Phi-2
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def llama_cpp_bytes(bits: int, rows: int, columns: int) -> int:
    """Bytes of a matrix `[rows, columns]` in the type that `Plan.to_llama_cpp` asks for `bits`: q2_k to q6_k or q8_0.

    For `lw.plans.allocate` and `Plan.predicted_bytes`, as their `stored`, so that a budget is met by what
    llama-quantize writes. What it takes in place of a type that a row is too short for is counted.

    Raises ValueError for bits that no type stands for, and for rows that aren't whole groups of 32 weights.
    """
    if bits not in OF_32:
        raise ValueError(f"no type of llama.cpp stands for {bits} bits, only for {', '.join(map(str, OF_32))}")
    if columns % 32:
        raise ValueError(f"rows of {columns} weights can't be cut into groups of 32, which the types of llama.cpp need")
    if columns % 256 == 0 and bits in OF_256:
        return rows * columns // 256 * OF_256[bits]
    return rows * columns // 32 * OF_32[bits]


def tensor_types(plan: Plan, types: Mapping[int | None, str] = TYPES) -> str:
    """What `Plan.to_llama_cpp` returns."""
    if plan.slices or any(layer.outliers for layer in plan.kept):
        raise ValueError("llama.cpp has only bits: a plan that slices or keeps outliers can't be written for it")
    lines = [line for i, layer in enumerate(plan.kept) for line in _of_block(i, layer, types)]
    for name, bits in (("token_embd", plan.embedding_bits), ("output", plan.head_bits)):
        lines.append(_line(rf"{name}\.weight", bits, types))
    return "".join(lines)


def _of_block(i: int, layer: Layer, types: Mapping[int | None, str]) -> list[str]:
    """The lines of a block: one for each matrix that is named, and one for all others."""
    named = dict(layer.matrices or ())
    if unknown := [path for path in named if path not in TENSORS]:
        raise ValueError(
            f"layer {i}: what llama.cpp calls {unknown[0]!r} isn't known here; it is of {', '.join(TENSORS)}"
        )
    lines = [_line(rf"blk\.{i}\.{TENSORS[path]}\.weight", bits, types) for path, bits in named.items()]
    but = rf"(?!({'|'.join(TENSORS[path] for path in named)})\.)" if named else ""
    # Norms have such names too: llama-quantize leaves them as they are, whatever is asked.
    return [*lines, _line(rf"blk\.{i}\.{but}.+\.weight", layer.bits, types)]


def _line(name: str, bits: int | None, types: Mapping[int | None, str]) -> str:
    if bits not in types:
        raise ValueError(f"types has none for {bits} bits, only for {', '.join(map(str, types))}: give it one")
    return f"^{name}$={types[bits]}\n"
