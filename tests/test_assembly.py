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
    with pytest.raises(ValueError, match="may set bits and nothing else"):
        assembly.compare([slices(20, 20, 20)], TOKENS)
    with pytest.raises(ValueError, match="the plan is for 2 layers"):
        assembly.compare([lw.Plan((lw.Layer(bits=8),) * 2, 32)], TOKENS)
    with pytest.raises(ValueError, match="tokens"):
        assembly.compare(plans_of(model), TOKENS.float())
    assert np.isfinite(assembly.compare(plans_of(model)[:1], TOKENS)[0]).all()


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
