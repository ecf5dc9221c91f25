"""What compressing does to the model that was given, what it costs a trained one, and what it refuses."""

import copy

import layerwise as lw
import numpy as np
import pytest
import torch
from families import (
    CALIBRATIONS,
    CUT,
    CUT_HEAD,
    FAMILIES,
    VARIANTS,
    logits,
    random_tokens,
    sliced,
    slices,
    tiny,
    uneven,
)
from layerwise import damage, results
from layerwise.backbone.architectures import UnsupportedArchitecture
from layerwise.backbone.structure import blocks
from layerwise.compression.rotation import Gram
from layerwise.plans import Layer, Plan

TOKENS = random_tokens(8, 12)


def bits(model, width):
    return lw.plans.bits(lw.shape(model), [0] * len(blocks(model)), len(blocks(model)), 8, width)


def half_wide(model):
    return lw.plans.constant_slices(lw.shape(model), 0.5)


def first_two(model):
    return lw.plans.drop(lw.shape(model), [3, 2, 1], 1)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    """The same weights bit by bit, and nothing left of what watched it."""
    same = all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    return same and not any("forward" in vars(part) or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_share_no_memory_with_the_dense_model_or_the_bases(family):
    """What a cast or training does to one of them, no other feels."""
    model = uneven(family, torch.float32)
    before, said, shared = state(model), logits(model), lw.calibrate(model, TOKENS)
    first, second = (lw.compress(model, CUT_HEAD, calibration=shared) for _ in range(2))
    rotated, expected = logits(shared.rotated), logits(second)
    assert unchanged(model, before) and logits(model).equal(said)
    for small in (first, lw.compress(model, CUT, TOKENS), lw.compress(model, slices(32, 32, 32), TOKENS)):
        for parameter in small.bfloat16().parameters():  # the cast is of rotary frequencies too
            parameter.zero_()
    assert unchanged(model, before) and logits(model).equal(said) and logits(shared.rotated).equal(rotated)
    for parameter in shared.rotated.bfloat16().parameters():
        parameter.zero_()
    assert unchanged(model, before) and logits(model).equal(said) and logits(second).equal(expected)


@pytest.mark.parametrize("plan", [half_wide, lambda model: bits(model, 4), lambda model: bits(model, 2), first_two])
def test_a_compressed_model_is_no_longer_that_of_its_commit(plan):
    model = tiny()
    model.config._commit_hash = "abc"
    small = lw.compress(model, plan(model), TOKENS)
    assert results.fingerprint(model) == "abc" != results.fingerprint(small) != results.fingerprint(tiny())


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_dense_model_is_left_as_it_was_after_an_error_midway(calibration):
    model = uneven("llama", torch.float32)
    blocks(model)[1].mlp.down_proj.weight.data.mul_(1e38)
    before = state(model)
    with pytest.raises(ValueError, match="what enters block 2 is NaN or infinite: .* the dtype overflows"):
        sliced(calibration, model, CUT, TOKENS)
    assert unchanged(model, before)


@pytest.mark.parametrize("variant", [*FAMILIES, "llama, tied", "phi, norms on heads"])
def test_slicing_in_place_gives_the_same_and_frees_the_dense_blocks(variant):
    family, changes = VARIANTS.get(variant, (variant, {}))
    model = uneven(family, torch.float32, **changes)
    expected = lw.compress(model, CUT_HEAD, TOKENS)
    small = lw.compress(model, CUT_HEAD, TOKENS, inplace=True)
    assert logits(small).equal(logits(expected)) and lw.size(small) == lw.size(expected)
    assert sum(parameter.numel() for block in blocks(model) for parameter in block.parameters()) == 0


# On a trained model: what a cut costs.


@pytest.fixture(scope="module")
def trained():
    return lw.load("embedded/6L", device="cpu")


@pytest.fixture(scope="module")
def draws(trained):
    return [lw.tokens(trained[1], n=16, length=48, seed=seed) for seed in range(3)]


def loss(model, tokens):
    return np.log(lw.perplexity(model, tokens).value)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_cutting_more_of_the_same_layers_is_worse(calibration, trained, draws):
    model, _ = trained
    losses = [[loss(model, draw) for draw in draws]]
    shared = [lw.calibrate(model, draw) for draw in draws] if calibration == "shared" else []
    for cut in (0.15, 0.3):
        widths = [round((1 - cut) * 128) if i in (1, 2, 4) else 128 for i in range(6)]
        plan = Plan(tuple(Layer(width=width) for width in widths), 128)
        small = [lw.compress(model, plan, calibration=bases) for bases in shared]
        small = small or [lw.compress(model, plan, draw) for draw in draws]
        losses.append([loss(*pair) for pair in zip(small, draws, strict=True)])
    assert (np.diff(np.mean(losses, axis=1)) > 0.01).all(), losses


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_principal_components_are_better_than_random_ones(calibration, trained, draws, monkeypatch):
    model, _ = trained
    plan = lw.plans.constant_slices(lw.shape(model), 0.2)
    principal = loss(sliced(calibration, model, plan, draws[0]), draws[0])
    generator = torch.Generator().manual_seed(0)

    def random_basis(gram, where=""):
        D = len(gram.total)
        return torch.ones(D), torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]

    monkeypatch.setattr(Gram, "pca", random_basis)
    assert loss(sliced(calibration, model, plan, draws[0]), draws[0]) > principal + 0.5


def test_bfloat16_costs_little_beside_the_cut(trained, draws):
    model, _ = trained
    plan = lw.plans.constant_slices(lw.shape(model), 0.2)
    wide = lw.compress(model, plan, draws[0])
    half = lw.compress(copy.deepcopy(model).bfloat16(), plan, draws[0])
    cost = loss(wide, draws[0]) - loss(model, draws[0])
    assert abs(loss(half, draws[0]) - loss(wide, draws[0])) < 0.05 * cost


# Bad input: an error before any work.


@pytest.fixture
def idle():
    """A model that must not be run."""
    model = tiny()
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    return model


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            slices(20, 20),
            "the plan is for 2 layers of width 32, the model has 3 of width 32: make the plan from lw.shape",
        ),
        (Plan((Layer(width=16),) * 3, 16), "the plan is for 3 layers of width 16, the model has 3 of width 32"),
        (CUT | Plan((Layer(), Layer(bits=16), Layer()), 32), "rtn has no 16 bits; it has 8, 7"),
        (Plan((Layer(outliers=0.1),) * 3, 32), "the plan sets outliers, and rtn keeps none"),
        (Plan((Layer(),) * 3, 32), r"the plan sets nothing: make one with lw.plans.bits\(lw.shape"),
        ([20, 29, 11], r"plan must be a Plan, such as lw.plans.constant_slices.*, not \[20, 29, 11\]"),
    ],
)
def test_plans_that_do_not_fit_the_model(plan, message, idle):
    with pytest.raises(ValueError, match=message):
        lw.compress(idle, plan, TOKENS)


@pytest.mark.parametrize("quantizer", [lw.quantization.HQQ(group=8), lw.quantization.GPTQ(group=8)])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_widths_that_have_no_whole_groups_are_told_with_the_multiple_that_has(family, quantizer, tmp_path):
    model = tiny(family, hidden_size=32, intermediate_size=64)
    handle = model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    shape, importance = lw.shape(model), [3, 1, 2]
    bits = lw.plans.bits(shape, importance, 2, 8, 4) | lw.plans.drop(shape, [0, 1, 2], 1)
    odd = lw.plans.dynamic_slices(shape, importance, 0.3, 0.1) | bits
    wrong = (
        f"{quantizer.name}, block [12], self_attn.q_proj: rows of {odd.kept[0].width} weights can't be cut into groups "
        "of 8: .* or slice by lw.plans.constant_slices or dynamic_slices with multiple=8"
    )
    with pytest.raises(ValueError, match=wrong):
        lw.compress(model, odd, TOKENS, quantizer)
    if quantizer.name == "hqq":
        lw.save(model, tmp_path / "dense")
        with pytest.raises(ValueError, match=wrong):
            lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", odd, TOKENS, quantizer, device="cpu")
    handle.remove()
    even = lw.plans.dynamic_slices(shape, importance, 0.3, 0.1, multiple=8) | bits
    assert lw.compress(model, even, TOKENS, quantizer).plan.stream == even.stream


def test_groups_that_no_multiple_has_and_those_of_matrices_that_no_slice_touches(idle):
    bits = lw.plans.bits(lw.shape(idle), [0, 1, 2], 2, 8, 4)
    with pytest.raises(ValueError, match="groups of 12: .*; no multiple of .* fits, since 32 itself doesn't"):
        lw.compress(idle, slices(20, 20, 20) | bits, TOKENS, lw.quantization.HQQ(group=12))
    with pytest.raises(ValueError, match="block 0, mlp.down_proj: rows of 56 weights can't .*take a divisor of 56$"):
        lw.compress(idle, bits, TOKENS, lw.quantization.HQQ(group=32))


def outside(tokens):
    return torch.where(torch.arange(12) == 5, 96, tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": None}, r"sequential calibration needs tokens: give tokens=lw.tokens\(...\), or calibration=bases"),
        ({"tokens": outside(TOKENS)}, "token 96 at window 0, position 5 is outside the vocabulary of 96"),
        ({"tokens": TOKENS.float()}, r"tokens must be an integer tensor \[n, length\]"),
        ({"tokens": TOKENS[:0]}, r"tokens are empty: their shape is \[0, 12\]"),
        ({"mask": torch.ones(8, 11)}, r"mask must have the shape of the tokens, \[8, 12\].* has the shape \[8, 11\]"),
        ({"mask": torch.zeros(8, 12)}, "keep at least one"),
        ({"calibration": "shared"}, "calibration must be 'sequential' or what lw.calibrate gives, not 'shared'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, idle):
    with pytest.raises(ValueError, match=message):
        lw.compress(idle, CUT, **{"tokens": TOKENS} | arguments)
    if {"tokens", "mask"} & arguments.keys() and arguments.get("tokens", TOKENS) is not None:
        with pytest.raises(ValueError, match=message):
            lw.calibrate(idle, **{"tokens": TOKENS} | arguments)


def test_bases_serve_the_model_that_they_were_taken_from():
    model = tiny()
    bases = lw.calibrate(model, TOKENS)
    for others in (tiny(), bases.rotated):
        with pytest.raises(ValueError, match="the bases were taken from another model than the one to compress"):
            lw.compress(others, CUT, calibration=bases)
    for arguments in ({"tokens": TOKENS}, {"mask": torch.ones(8, 12)}, {"inplace": True}):
        with pytest.raises(ValueError, match="with bases, tokens, mask and inplace have no effect"):
            lw.compress(model, CUT, calibration=bases, **arguments)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_few_tokens_are_a_warning_that_says_how_many_are_needed(calibration, recwarn):
    mask = torch.zeros_like(TOKENS)
    mask[:, :3] = 1
    sliced(calibration, tiny(), CUT, TOKENS, mask=mask)
    assert [str(warning.message)[:62] for warning in recwarn if warning.category is UserWarning] == [
        "24 calibration tokens for a stream of width 32: the PCA says n"
    ]
    assert "8 of its directions. It needs 32 tokens at the very least" in str(recwarn[0].message)
    recwarn.clear()
    sliced(calibration, tiny(), CUT, TOKENS)
    assert not recwarn


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj", "lm_head"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_are_named_even_where_no_state_shows_them(path, value, idle):
    idle.get_submodule(path).weight.data[3, 4] = value
    for calibration in CALIBRATIONS:
        with pytest.raises(ValueError, match=f"the weights {path}.weight hold NaN or infinity"):
            sliced(calibration, idle, CUT, TOKENS)


@pytest.mark.parametrize(
    ("family", "path", "where"),
    [
        ("llama", "model.embed_tokens", "what enters block 0"),
        ("llama", "model.layers.1.self_attn.o_proj", "what the attention of block 1 puts out"),
        ("phi3", "model.layers.0.mlp.down_proj", "what enters block 1"),
        ("opt", "model.decoder.layers.2.self_attn.out_proj", "what the attention of block 2 puts out"),
        ("phi", "model.layers.0.self_attn.dense", "what enters block 1"),
        ("phi", "model.layers.2.mlp.fc2", "what the last block puts out"),
    ],
)
def test_states_that_overflow_are_named_by_block(family, path, where):
    model = uneven(family, torch.float32)
    model.get_submodule(path).weight.data.mul_(1e38)
    for calibration in CALIBRATIONS:
        with pytest.raises(ValueError, match=f"{where} is NaN or infinite"):
            sliced(calibration, model, CUT_HEAD, TOKENS)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "gpt2",
            {},
            "'gpt2' can't be sliced: its linear layers are Conv1D.* works for it are scores, damage, plans of bits",
        ),
        (
            "mixtral",
            {},
            "'mixtral' can't be sliced: its MLPs are mixtures of experts.*scores, damage, removal of blocks",
        ),
        ("gemma2", {}, "'gemma2' can't be sliced: it has norms behind attention and MLP"),
        ("granite", {}, "'granite' can't be sliced: its residual path is no plain sum: residual_multiplier is 0.5"),
        ("bloom", {}, "'bloom' can't be sliced: slicing knows llama, mistral, .*, phi; .* one more entry in"),
        ("opt", {"do_layer_norm_before": False}, r"'opt' can't be sliced: it has norms after attention.*OPT-350m does"),
        ("opt", {"word_embed_proj_dim": 16}, "embeddings of another width than its stream"),
    ],
)
def test_models_that_cannot_be_sliced(family, changes, message):
    model = tiny(family, **changes)
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    for attempt in (lambda: lw.compress(model, CUT, TOKENS), lambda: lw.calibrate(model, TOKENS)):
        with pytest.raises(UnsupportedArchitecture, match=message):
            attempt()


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_what_a_sliced_model_is_not_for(family):
    small = lw.compress(tiny(family), CUT, TOKENS)
    for attempt in (lambda: lw.compress(small, CUT, TOKENS), lambda: lw.calibrate(small, TOKENS)):
        with pytest.raises(ValueError, match="the model is sliced already: slice the dense one"):
            attempt()
    for score in (lw.scores.lim, lambda *args: lw.scores.measure(lw.scores.lim, *args)):
        with pytest.raises(ValueError, match="reads and writes the stream in two bases.*: score the dense model"):
            score(small, TOKENS)
    with pytest.raises(ValueError, match="in another basis than the next one reads: measure the damage to the dense"):
        damage.by_window(small, TOKENS, kinds=["removed"])
    assert lw.scores.zd(small).shape == (3,)  # it reads weights alone
