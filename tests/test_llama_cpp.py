"""What llama.cpp takes of us: the file of tensor types of a plan."""

import random
import re

import gguf
import layerwise as lw
import pytest
from families import FAMILIES, tiny
from layerwise.backbone.structure import blocks, linears
from layerwise.plans import Layer, Plan
from layerwise.plans.llama_cpp import TENSORS, TYPES

KNOWN = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "phi3": "PHI3", "phi": "PHI2"}


def types_of(text: str, names: list[str]) -> dict[str, str]:
    """What llama-quantize gives each tensor: the type of the one line whose pattern is found in its name, lowered."""
    lines = [line.split("=") for line in text.split()]
    assert all(len(line) == 2 and not re.search("[A-Z]", line[0]) for line in lines)
    found = {name: [kind for pattern, kind in lines if re.search(pattern, name)] for name in names}
    assert all(len(kinds) <= 1 for kinds in found.values()), "which of several counts depends on the version"
    return {name: kind for name, (kind,) in ((name, kinds) for name, kinds in found.items() if kinds)}


@pytest.mark.parametrize("family", KNOWN)
def test_every_matrix_of_a_family_has_the_name_that_a_file_gives_it(family):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[KNOWN[family]], 3)
    for path in linears(blocks(tiny(family))[0]):
        assert names.get_name(f"model.layers.1.{path}") == f"blk.1.{TENSORS[path]}"
    assert {*FAMILIES} - {*KNOWN} == {"opt"}, "which llama.cpp doesn't know"


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_gets_the_type_of_its_bits(tied):
    shape = lw.shape(tiny(num_hidden_layers=12, tie_word_embeddings=tied))
    bits = random.Random(0).choices([*TYPES], k=len(shape.parts))
    ends = {"embedding": "token_embd.weight", "head": "output.weight"}
    names = [ends.get(part.path) or f"blk.{part.block}.{TENSORS[part.path]}.weight" for part in shape.parts]
    asked = dict(zip(names, (TYPES[width] for width in bits), strict=True))
    text = lw.plans.by_part(shape, bits).to_llama_cpp()
    assert types_of(text, names) == asked
    assert types_of(text, ["output_norm.weight", "blk.3.attn_q.bias", "rope_freqs.weight"]) == {}


def test_bits_of_a_block_are_those_of_what_is_not_named():
    layers = (Layer(bits=4, matrices={"self_attn.o_proj": 8}), Layer(keep=False, bits=2), Layer(bits=3))
    text = Plan(layers, 32, head_bits=6).to_llama_cpp()
    names = [f"blk.{i}.{name}.weight" for i in range(3) for name in ("attn_output", "ffn_up", "attn_output_norm")]
    assert (
        types_of(text, [*names, "output.weight", "token_embd.weight"])
        == {
            "blk.0.attn_output.weight": "q8_0",
            "blk.0.attn_output_norm.weight": "q4_k",  # asked for, and not done: norms stay as they are
            "blk.0.ffn_up.weight": "q4_k",
            **dict.fromkeys(names[3:6], "q3_k"),  # block 2, which is block 1 once that is removed
            "output.weight": "q6_k",
            "token_embd.weight": "f16",
        }
    )


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        (512, {bits: kind for bits, kind in TYPES.items() if bits}),
        (576, {2: "q4_0", 3: "q4_0", 4: "q5_0", 5: "q5_1", 6: "q8_0", 8: "q8_0"}),  # no whole groups of 256
    ],
)
def test_bytes_are_those_of_the_types(columns, kinds):
    for bits, kind in kinds.items():
        group, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        assert lw.plans.llama_cpp_bytes(bits, 3, columns) == 3 * columns // group * size
    with pytest.raises(ValueError, match="no type of llama.cpp stands for 7 bits, only for 2, 3, 4, 5, 6, 8"):
        lw.plans.llama_cpp_bytes(7, 3, columns)
    with pytest.raises(ValueError, match="rows of 40 weights can't be cut into groups of 32"):
        lw.plans.llama_cpp_bytes(4, 3, 40)


def test_types_can_be_told_and_what_cannot_be_written_is_said():
    plan = Plan((Layer(bits=7, matrices={"mlp.up_proj": 4}),), 32)
    text = plan.to_llama_cpp({7: "iq4_nl", 4: "q4_0", None: "bf16"})
    assert set(types_of(text, ["blk.0.attn_q.weight", "blk.0.ffn_up.weight", "output.weight"]).values()) == {
        "iq4_nl",
        "q4_0",
        "bf16",
    }
    with pytest.raises(ValueError, match="types has none for 7 bits, only for 2, 3, 4, 5, 6, 8, None"):
        plan.to_llama_cpp()
    with pytest.raises(ValueError, match="layer 0: what llama.cpp calls 'conv.in_proj' isn't known here"):
        Plan((Layer(matrices={"conv.in_proj": 4}),), 32).to_llama_cpp()
    for layer in (Layer(width=16), Layer(bits=4, outliers=0.1)):
        with pytest.raises(ValueError, match="a plan that slices or keeps outliers can't be written for it"):
            Plan((layer,), 32).to_llama_cpp()
