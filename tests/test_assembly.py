"""Models of mixed widths put together from blocks that were quantized once."""

import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, logits, random_tokens, slices, tiny
from layerwise.backbone.structure import blocks
from layerwise.quantization import RTN

TOKENS = random_tokens(5, 12)


def plans_of(model, orders=((3, 1, 2), (1, 2, 3), (2, 3, 1))):
    shape = lw.shape(model)
    return [lw.plans.bits(shape, order, low_layers=k, high=8, low=2) for order in orders for k in range(4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_finds_what_each_compressed_model_gives(family):
    model = tiny(family)
    before = logits(model)
    plans = plans_of(model)
    loss, kl = lw.Assembly(model, (8, 2), RTN(16)).compare(plans, TOKENS, batch=2)
    assert loss.shape == kl.shape == (12, 5)
    for plan, *found in zip(plans, loss.mean(1), kl.mean(1), strict=True):
        expected = lw.compare(lw.compress(model, plan, quantizer=RTN(16)), model, TOKENS)
        assert found == pytest.approx([expected.loss, expected.kl], abs=1e-6)
    assert logits(model).equal(before)


def test_blocks_may_stay_as_they_are_and_the_dense_model_differs_from_itself_by_nothing():
    model = tiny()
    shape = lw.shape(model)
    plans = [lw.plans.bits(shape, [1, 2, 3], low_layers=k, high=None, low=2) for k in (0, 1, 3, 0)]
    loss, kl = lw.Assembly(model, (2,)).compare(plans, TOKENS)
    assert (loss[[0, 3]] == 0).all() and (kl[[0, 3]] == 0).all() and kl[1].mean() < kl[2].mean()


def test_each_block_is_quantized_once_for_each_width_and_equal_plans_are_run_once():
    class Counting(RTN):
        done = 0

        def block(self, block, bits):
            Counting.done += 1
            return super().block(block, bits)

    model = tiny()
    assembly = lw.Assembly(model, (8, 2, 2), Counting())
    run = []
    for block in blocks(model):  # a hook of the dense blocks would not see their stand-ins
        block.register_forward_pre_hook(lambda *_: run.append("dense"))
    for bits in (8, 2):
        for i, block in enumerate(assembly.blocks[bits]):
            forward = block.forward
            block.forward = lambda *args, i=i, bits=bits, forward=forward, **kwargs: (
                run.append((i, bits)) or forward(*args, **kwargs)
            )
    plans = plans_of(model)
    assembly.compare(plans, TOKENS)
    assert Counting.done == 2 * 3
    choices = sorted({tuple(layer.bits for layer in plan.layers) for plan in plans})
    # Each distinct beginning of a plan is one run of the block it ends with.
    beginnings = {choice[: i + 1] for choice in choices for i in range(3)}
    quantized = [each for each in run if each != "dense"]
    assert len(quantized) == len(beginnings)


def test_a_plan_can_be_lent_to_whatever_wants_a_model():
    model = tiny()
    plan = plans_of(model)[2]
    assembly = lw.Assembly(model, (8, 2), RTN(16))
    with assembly.as_planned(plan) as lent:
        found = logits(lent)
    assert found.equal(logits(lw.compress(model, plan, quantizer=RTN(16))))
    assert not logits(model).equal(found)


def mixed(model, count=8, widths=(8, 2, None), seed=0):
    """Plans that give every part of a model one of `widths` at random; in each two the first half is the same."""
    shape, rng = lw.shape(model), np.random.default_rng(seed)
    found = []
    for _ in range(count // 2):
        first, *others = ([widths[i] for i in rng.integers(len(widths), size=len(shape.parts))] for _ in range(3))
        half = len(first) // 2
        found += [lw.plans.by_part(shape, first[:half] + each[half:]) for each in others]
    return found


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "gemma2"])
def test_widths_may_differ_within_a_block_and_at_the_ends(family):
    model = tiny(family)
    before = logits(model)
    plans = mixed(model)
    assembly = lw.Assembly(model, (8, 2), RTN(16))
    loss, kl = assembly.compare(plans, TOKENS, batch=2)
    for plan, *found in zip(plans, loss, kl, strict=True):
        small = lw.compress(model, plan, quantizer=RTN(16))
        assert [each.tolist() for each in found] == [
            each.tolist() for each in lw.evaluation.window_differences(small, model, TOKENS, batch=2)
        ]
        with assembly.as_planned(plan) as lent:
            assert logits(lent).equal(logits(small))
    assert logits(model).equal(before)


@pytest.mark.parametrize("tie", [True, False])
def test_tables_are_made_once_when_a_plan_asks_for_them(tie):
    class Counting(RTN):
        done = []

        def matrix(self, weight, bits):
            Counting.done.append((weight.shape[0], bits))
            return super().matrix(weight, bits)

    model = tiny(tie_word_embeddings=tie)
    assembly = lw.Assembly(model, (2,), Counting())
    Counting.done.clear()
    ends = [(3, None), (None, 3), (4, 4), (3, None), (None, None)]
    plans = [lw.Plan((lw.Layer(bits=2),) * 3, 32, embedding_bits=one, head_bits=two) for one, two in ends]
    loss, _ = assembly.compare(plans, TOKENS)
    assert Counting.done == [(96, 3), (96, 4)] if tie else sorted(Counting.done) == [(96, 3)] * 2 + [(96, 4)] * 2
    assert (loss[0] == loss[3]).all() and (loss[0] == loss[1]).all() == tie
    for plan in plans:
        with assembly.as_planned(plan):
            pass
    assert len(Counting.done) == (2 if tie else 4)
    own = {p.data_ptr() for p in model.parameters()}
    assert sum(p.numel() for p in assembly.tables.values() if p.data_ptr() not in own) == 96 * 32 * (2 if tie else 4)


def test_another_head_runs_no_block_and_another_matrix_those_from_its_own_on():
    model = tiny()
    assembly, ran = lw.Assembly(model, (8, 2)), []
    for i, block in enumerate(blocks(model)):
        norm = block.input_layernorm  # one for all widths, of the block and of what is put together from it
        norm.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    for bits in (8, 2):
        for i, block in enumerate(assembly.blocks[bits]):
            block.input_layernorm = blocks(model)[i].input_layernorm
    layer = lw.Layer(bits=8)
    down = lw.Layer(bits=8, matrices={"mlp.down_proj": 2})
    plans = [
        lw.Plan((layer,) * 3, 32),
        lw.Plan((layer,) * 3, 32, head_bits=4),
        lw.Plan((layer, down, layer), 32, head_bits=4),
    ]
    assembly.compare(plans[:1], TOKENS)
    alone = len(ran)
    assert alone == 2 * 3  # the dense model, and the plan
    ran.clear()
    assembly.compare(plans, TOKENS)
    assert len(ran) == alone + 2
    ran.clear()
    assembly.compare([*plans[:1], lw.Plan((layer,) * 3, 32, embedding_bits=4)], TOKENS)
    assert len(ran) == alone + 3


def test_memory_is_a_copy_of_the_matrices_for_each_width():
    model = tiny()
    assembly = lw.Assembly(model, (8, 4, 2))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    new = {p.data_ptr(): p.numel() for bits in (8, 4, 2) for block in assembly.blocks[bits] for p in block.parameters()}
    assert sum(count for where, count in new.items() if where not in own) == 3 * sum(lw.shape(model).linear_weights)


def test_bad_input():
    model = tiny()
    with pytest.raises(ValueError, match=r"gptq has no .block"):
        lw.Assembly(model, (8, 4), "gptq")
    with pytest.raises(ValueError, match="rtn has no 9 bits"):
        lw.Assembly(model, (9,), "rtn")
    assembly = lw.Assembly(model, (8, 2))
    with pytest.raises(ValueError, match="blocks at 4 bits, the assembly at 8, 2"):
        assembly.compare([lw.plans.bits(lw.shape(model), [1, 2, 3], low_layers=1)], TOKENS)
    with pytest.raises(ValueError, match="blocks at 4 bits, the assembly at 8, 2"):
        assembly.compare([lw.Plan((lw.Layer(matrices={"mlp.up_proj": 4}),) * 3, 32)], TOKENS)
    with pytest.raises(ValueError, match="layer 0 has no linear layer 'mlp.up'"):
        assembly.compare([lw.Plan((lw.Layer(matrices={"mlp.up": 8}),) * 3, 32)], TOKENS)
    with pytest.raises(ValueError, match="rtn has no 9 bits"):
        assembly.compare([lw.Plan((lw.Layer(),) * 3, 32, head_bits=9)], TOKENS)
    with pytest.raises(ValueError, match="may set bits and nothing else"):
        assembly.compare([slices(20, 20, 20)], TOKENS)
    with pytest.raises(ValueError, match="the plan is for 2 layers"):
        assembly.compare([lw.Plan((lw.Layer(bits=8),) * 2, 32)], TOKENS)
    with pytest.raises(ValueError, match="tokens"):
        assembly.compare(plans_of(model), TOKENS.float())
    assert np.isfinite(assembly.compare(plans_of(model)[:1], TOKENS)[0]).all()


def test_a_quantizer_of_whole_blocks_does_plans_of_whole_blocks():
    class Whole:
        def __call__(self, model, bits, tokens=None):
            raise AssertionError("it is asked block by block")

        def block(self, block, bits):
            return block

    model = tiny()
    assembly = lw.Assembly(model, (8, 2), Whole())
    assert (assembly.compare(plans_of(model), TOKENS)[1] == 0).all()
    by_matrix = lw.Plan((lw.Layer(matrices={"mlp.up_proj": 8}),) * 3, 32)
    for plan in (by_matrix, lw.Plan((lw.Layer(),) * 3, 32, embedding_bits=8)):
        with pytest.raises(ValueError, match=r"has no .matrix\(weight, bits\), which quantizes a matrix by itself"):
            assembly.compare([plan], TOKENS)


def test_an_interrupted_pass_leaves_the_model_as_it_was():
    model, before = tiny(), None
    before = logits(model)
    assembly = lw.Assembly(model, (8, 2))

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    assembly.blocks[2][1].forward = stop
    with pytest.raises(KeyboardInterrupt):
        assembly.compare(plans_of(model), TOKENS)
    assert logits(model).equal(before)
    with pytest.raises(KeyboardInterrupt), assembly.as_planned(plans_of(model)[3]) as lent, torch.no_grad():
        lent(TOKENS)
    assert logits(model).equal(before)
