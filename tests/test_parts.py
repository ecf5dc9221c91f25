"""Plans by matrix: what a model's parts are, and plans that give each its bits."""

import layerwise as lw
import pytest
import torch
from families import DECODERS, FAMILIES, MIXTURES, tiny
from hypothesis import given
from hypothesis import strategies as st
from layerwise.backbone.structure import blocks, linears, weight_matrix
from layerwise.plans import Layer, Plan, by_part

SHAPES = {"untied": lw.shape(tiny()), "tied": lw.shape(tiny("gpt2"))}


@pytest.mark.parametrize("family", [*FAMILIES, *(family for family in DECODERS if family not in MIXTURES)])
def test_parts_are_the_matrices_of_the_blocks_and_then_the_ends(family):
    model = tiny(family)
    shape, inside = lw.shape(model), []
    for i, block in enumerate(blocks(model)):
        inside += [(i, path, *weight_matrix(linear).shape) for path, linear in linears(block).items()]
    assert list(map(tuple, shape.parts[: len(inside)])) == inside
    ends = {part.path: (part.rows, part.columns) for part in shape.parts[len(inside) :]}
    embedding, head = (module.weight.shape for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    assert ends == {"embedding": embedding} | ({} if shape.tied else {"head": head})
    assert list(ends) == ["embedding", "head"][: len(ends)] and shape.head[:2] == head
    assert lw.shape(model.config) == lw.shape(tiny(family).to(model.config.dtype or torch.bfloat16))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@given(data=st.data())
def test_a_plan_by_part_says_what_it_was_given(shape, data):
    bits = tuple(
        data.draw(st.lists(st.sampled_from((2, 4, None)), min_size=len(shape.parts), max_size=len(shape.parts)))
    )
    plan = by_part(shape, bits)
    assert plan.bits_by_part(shape) == bits and by_part(shape, plan.bits_by_part(shape)) == plan
    assert Plan.from_json(plan.to_json()) == plan


def test_one_width_for_a_block_is_a_plan_of_blocks():
    shape = SHAPES["untied"]
    plan = by_part(shape, [*[8] * 7, *[4] * 7, *[None] * 7, None, 3])
    assert plan == Plan((Layer(bits=8), Layer(bits=4), Layer()), 32, head_bits=3)


def test_bits_of_a_block_are_those_of_the_matrices_that_are_not_named():
    shape = SHAPES["untied"]
    plan = Plan((Layer(bits=4, matrices={"self_attn.v_proj": 8}), Layer(keep=False, bits=2), Layer()), 32)
    assert plan.bits_by_part(shape) == (4, 4, 8, 4, 4, 4, 4, *[None] * 16)


def test_one_table_has_one_width_whichever_end_it_is_asked_of():
    layers = (Layer(),) * 3
    for ends in ({"embedding_bits": 6}, {"head_bits": 6}, {"embedding_bits": 6, "head_bits": 6}):
        assert Plan(layers, 32, **ends).bits_by_part(SHAPES["tied"])[-1] == 6
    both = Plan(layers, 32, embedding_bits=6, head_bits=5)
    assert both.bits_by_part(SHAPES["untied"])[-2:] == (6, 5)
    for asked in (both.bits_by_part, both.predicted_bytes):
        with pytest.raises(ValueError, match="embedding_bits to 6 and head_bits to 5, but in this model they are one"):
            asked(SHAPES["tied"])


def test_effective_bits_weigh_matrices_by_their_size():
    shape = SHAPES["untied"]  # in float32
    stored = lambda bits, rows, columns: rows * columns * bits // 8  # noqa: E731
    plan = Plan((Layer(bits=4, matrices={"mlp.up_proj": 8}), Layer(bits=4), Layer(keep=False)), 32, embedding_bits=1)
    up, block = 56 * 32, shape.linear_weights[0]
    assert plan.effective_bits(shape, stored) == pytest.approx(4 + 4 * up / (2 * block))
    some = Plan((Layer(matrices={"mlp.up_proj": 8}), Layer(), Layer()), 32)
    assert some.effective_bits(shape, stored) == pytest.approx(32 - 24 * up / (3 * block))


def test_what_the_model_has_not_is_named():
    shape = SHAPES["untied"]
    strange = Plan((Layer(), Layer(matrices={"mlp.up": 4}), Layer()), 32)
    with pytest.raises(ValueError, match=r"layer 1 has no linear layer 'mlp.up'; it has self_attn.q_proj, .*down_proj"):
        strange.predicted_bytes(shape)
    with pytest.raises(ValueError, match="bits must be 23 widths, one for each of shape.parts, not 3"):
        by_part(shape, [4, 4, 4])
    model = tiny("gpt2")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="sets head_bits, and the model's head is of a kind"):
        Plan((Layer(),) * 3, 32, head_bits=4).predicted_bytes(lw.shape(model))


def test_bits_for_all_are_bytes_between_two_widths():
    shape = SHAPES["tied"]
    two, four = (by_part(shape, [bits] * len(shape.parts)).predicted_bytes(shape) for bits in (2, 4))
    assert lw.plans.bytes_at(shape, 2, [4, 2]) == two and lw.plans.bytes_at(shape, 4, [2, 4]) == four
    assert lw.plans.bytes_at(shape, 2.5, [2, 4]) == int(two + (four - two) / 4)
    with pytest.raises(ValueError, match="from 2 to 4"):
        lw.plans.bytes_at(shape, 5, [2, 4])
