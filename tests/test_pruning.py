"""Whole blocks removed: what is left against a model of fewer blocks, and the plans that say which go."""

import copy
import itertools

import layerwise as lw
import numpy as np
import pytest
import torch
from families import CUT, FAMILIES, VARIANTS, logits, random_tokens, slices, tiny, uneven
from layerwise.backbone.architectures import architecture
from layerwise.backbone.structure import blocks
from layerwise.compression.semi_structured import TwoOfFour
from layerwise.plans import Layer, Plan
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = random_tokens(8, 12)
EVERY = {family: (family, {}) for family in FAMILIES} | VARIANTS


def without(*gone, L=3, width=32):
    return Plan(tuple(Layer(keep=i not in gone) for i in range(L)), width)


def literally(model, gone):
    """A new model of transformers, with fewer blocks in its configuration and the weights of those that are kept."""
    kept = [i for i in range(len(blocks(model))) if i not in gone]
    content = model.config.to_dict() | {"num_hidden_layers": len(kept)}
    if content.get("layer_types"):
        content["layer_types"] = [content["layer_types"][i] for i in kept]
    fewer = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content)).to(model.dtype).eval()
    path, state = architecture(model).blocks, {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(path + "."):
            state[name] = tensor
            continue
        i, _, rest = name.removeprefix(path + ".").partition(".")
        if int(i) in kept:
            state[f"{path}.{kept.index(int(i))}.{rest}"] = tensor
    fewer.load_state_dict(state)
    return fewer


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("name", EVERY)
def test_what_is_left_is_a_model_of_fewer_blocks(name, gone, tmp_path):
    family, changes = EVERY[name]
    model = uneven(family, torch.float32, **changes)
    before = copy.deepcopy(model.state_dict())
    small = lw.compress(model, without(*gone))
    expected = literally(model, gone)
    assert logits(small).equal(logits(expected))
    assert type(small) is type(model) and small.config.to_dict() == expected.config.to_dict()
    assert len(blocks(model)) == model.config.num_hidden_layers == 3
    assert all(before[key].equal(value) for key, value in model.state_dict().items())
    lw.save(small, tmp_path / "small")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert logits(plain).equal(logits(small)) and logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(
        logits(small)
    )


@pytest.mark.parametrize("name", EVERY)
def test_it_generates_the_same_with_and_without_a_cache(name):
    family, changes = EVERY[name]
    small = lw.compress(uneven(family, torch.float32, **changes), without(0))
    prompt, more = random_tokens(2, 7), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    told = [small.generate(prompt, use_cache=cached, **more) for cached in (True, False)]
    assert told[0].equal(told[1]) and told[0].shape == (2, 13)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_size_is_predicted(family):
    model = tiny(family)
    for plan in (without(1), without(0, 1) | slices(20, 29, 11), without(2) | slices(20, 29, 11, head=17)):
        small = lw.compress(model, plan, TOKENS)
        size = lw.size(small)
        assert size.parameters == plan.predicted_parameters(lw.shape(model))
        assert size.bytes == plan.predicted_bytes(lw.shape(model))


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "opt"])
def test_a_merged_plan_is_done_in_its_order_and_comes_back(family, tmp_path):
    model = tiny(family, **({} if family == "opt" else {"intermediate_size": 64}))
    plan = without(1) | CUT | Plan((Layer(bits=8), Layer(bits=4), Layer(bits=4)), 32)
    small = lw.compress(model, plan, TOKENS)
    fewer = lw.compress(model, without(1))
    left = Plan((CUT.layers[0], CUT.layers[2]), 32)
    cut = lw.compress(fewer, left, TOKENS)
    last = lw.compress(cut, Plan((Layer(bits=8), Layer(bits=4)), 32))
    assert logits(small).equal(logits(last))
    assert lw.size(small).bytes == plan.predicted_bytes(lw.shape(model))
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))


def test_in_place_the_model_itself_loses_blocks():
    model = tiny()
    expected, kept = logits(lw.compress(model, without(1))), blocks(model)[2]
    small = lw.compress(model, without(1), inplace=True)
    assert small is model and blocks(model)[1] is kept and logits(model).equal(expected)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("plan", "arguments", "message"),
    [
        (without(1) | Plan((Layer(bits=16),) * 3, 32), {}, "rtn has no 16 bits"),
        (without(1) | CUT, {"tokens": None}, "sequential calibration needs tokens"),
        (without(1) | CUT, {"tokens": TOKENS + 96}, "is outside the vocabulary"),
        (without(1) | CUT, {"mask": torch.ones(8, 11)}, "mask must have the shape"),
        (without(1) | Plan((Layer(bits=4),) * 3, 32), {"tokens": None, "quantizer": "gptq"}, "needs calibration text"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_blocks_go(plan, arguments, message, inplace):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        lw.compress(model, plan, **{"tokens": TOKENS} | arguments, inplace=inplace)
    assert len(blocks(model)) == 3


def test_what_has_no_blocks_to_spare_says_so():
    model = tiny()
    with pytest.raises(ValueError, match="no block of a sliced model can be left out"):
        lw.compress(lw.compress(model, CUT, TOKENS), without(1))
    with pytest.raises(ValueError, match="the bases are those of the model with all its blocks: first remove blocks"):
        lw.compress(model, without(1) | CUT, calibration=lw.calibrate(model, TOKENS))


# Plans.


def gone(plan):
    return [i for i, layer in enumerate(plan.layers) if not layer.keep]


SHAPE = lw.shape(tiny(num_hidden_layers=6))


def test_the_least_important_blocks_go_and_of_equals_the_last():
    assert gone(lw.plans.drop(SHAPE, [3, 1, 2, 1, 5, 4], 3)) == [1, 2, 3]
    assert gone(lw.plans.drop(SHAPE, [3, 1, 2, 1, 5, 4], 1)) == [3]
    assert gone(lw.plans.drop(SHAPE, -np.arange(6), 2)) == [4, 5]
    assert gone(lw.plans.drop(SHAPE, np.zeros(6), 0)) == []


def test_the_run_that_changes_least_goes_and_of_equals_the_last():
    distances = np.ones((7, 7))
    distances[1, 3] = 0.5
    assert gone(lw.plans.drop_run(SHAPE, distances, 2)) == [1, 2]
    distances[3, 5] = 0.5
    assert gone(lw.plans.drop_run(SHAPE, distances, 2)) == [3, 4]
    distances[0, 5] = 0.9
    assert gone(lw.plans.drop_run(SHAPE, distances, 5)) == [0, 1, 2, 3, 4]
    assert gone(lw.plans.drop_run(SHAPE, distances, 0)) == []


@pytest.mark.parametrize("k", [-1, 6, 1.5])
def test_a_number_of_blocks_that_cannot_go(k):
    with pytest.raises(ValueError, match="k must be"):
        lw.plans.drop(SHAPE, np.arange(6), k)
    with pytest.raises(ValueError, match="k must be"):
        lw.plans.drop_run(SHAPE, np.ones((7, 7)), k)


def test_distances_that_do_not_fit_say_what_is_needed():
    with pytest.raises(ValueError, match=r"must be \[L \+ 1, L \+ 1\], here \[7, 7\], not \[6\]"):
        lw.plans.drop_run(SHAPE, np.arange(6), 2)
    with pytest.raises(ValueError, match="across the 2 blocks from 3 on is not finite"):
        lw.plans.drop_run(SHAPE, np.where(np.arange(7) == 5, np.nan, np.ones((7, 7))), 2)


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_angular_distances_are_those_of_the_hidden_states(family):
    model, tokens = uneven(family, torch.float32), random_tokens(5, 12)
    states = []
    handles = [
        block.register_forward_hook(lambda b, args, kwargs, out: states.append((args[0], out)), with_kwargs=True)
        for block in blocks(model)
    ]
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    each = [x for x, _ in states] + [states[-1][1]]
    found = lw.scores.angular_distances(model, tokens, batch=2)
    for i, j in itertools.combinations(range(4), 2):
        cosine = torch.nn.functional.cosine_similarity(each[i].double(), each[j].double(), dim=-1)
        assert found[i, j] == pytest.approx((cosine.arccos() / torch.pi).mean().item(), rel=1e-5)
    assert found == pytest.approx(found.T) and (np.diagonal(found) == 0).all()


def test_padding_does_not_count_in_angular_distances():
    model, tokens = tiny(), random_tokens(3, 12)
    padded = torch.cat([tokens, torch.zeros(3, 4, dtype=torch.int64)], 1)
    mask = torch.cat([torch.ones(3, 12), torch.zeros(3, 4)], 1)
    found = lw.scores.angular_distances(model, padded, mask)
    assert found == pytest.approx(lw.scores.angular_distances(model, tokens), abs=1e-6)


def test_a_damaged_model_has_no_angular_distances():
    model = tiny()
    blocks(model)[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="what leaves block 1 holds NaN"):
        lw.scores.angular_distances(model, TOKENS)


def test_removal_goes_by_what_is_missed_least_each_time():
    model, tokens = tiny(num_hidden_layers=4), random_tokens(6, 12)
    before = copy.deepcopy(model.state_dict())
    found = lw.damage.removal_order(model, tokens, batch=4)

    def loss(gone):
        return np.log(lw.perplexity(lw.compress(model, without(*gone, L=4)), tokens).value)

    removed = []
    for _ in range(3):
        left = [i for i in range(4) if i not in removed]
        removed.append(min(left, key=lambda i: loss([*removed, i])))
    assert np.argsort(found).tolist()[:3] == removed and sorted(found) == [0, 1, 2, 3]
    assert all(before[key].equal(value) for key, value in model.state_dict().items())


def test_removal_wants_a_model_and_text_that_it_can_run():
    with pytest.raises(ValueError, match="measure the damage to the dense model"):
        lw.damage.removal_order(lw.compress(tiny(), CUT, TOKENS), TOKENS)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        lw.damage.removal_order(tiny(), TOKENS[:, :1])


# Two of each four weights.


def test_two_of_each_four_weights_stay():
    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shape = lw.shape(model)
    plan = lw.plans.bits(shape, np.arange(shape.L)[::-1], 1, 16, 16)  # every block
    pruned = lw.compress(model, plan, quantizer=TwoOfFour())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    for old, new in zip(blocks(model), blocks(pruned), strict=True):
        for path, linear in lw.structure.linears(old).items():
            kept = new.get_submodule(path).weight
            for row, other in zip(linear.weight.view(-1, 4), kept.view(-1, 4), strict=True):
                largest = row.abs().argsort(descending=True)[:2]
                assert torch.equal(other, torch.zeros(4).index_put((largest,), row[largest]))
    # 16 bits for half of the weights, 2 bits for the place of each
    saved = sum(shape.linear_weights) * (shape.bytes_per_parameter - 2 / 2 - 2 / 16)
    assert plan.predicted_bytes(shape, TwoOfFour().stored) == shape.total_bytes - saved


def test_what_two_of_four_refuses():
    model = tiny("llama")
    with pytest.raises(ValueError, match="2:4 has no 8 bits; it has 16"):
        TwoOfFour()(model, [8, None, None])
    with pytest.raises(ValueError, match="rows of 6 weights can't be cut into groups of 4"):
        TwoOfFour().check_columns(6)
