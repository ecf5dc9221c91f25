"""What is done with a caller's model: it is run in eval mode, keeps its own, and reads what it has positions for."""

import copy
import warnings

import layerwise as lw
import numpy as np
import pytest
import torch
from families import random_tokens, slices, tiny
from layerwise import damage, scores
from layerwise.backbone.structure import blocks


def four_bits(model):
    return lw.plans.bits(lw.shape(model), [1, 2, 3], low_layers=3, high=8, low=4)


def logits_of(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens[:, :12]).logits.numpy()


MEASURES = {
    "perplexity": lambda model, tokens: lw.perplexity(model, tokens),
    "compare": lambda model, tokens: lw.compare(model, tiny("opt", seed=1, max_position_embeddings=128), tokens),
    "compare, second": lambda model, tokens: lw.compare(
        tiny("opt", seed=1, max_position_embeddings=128), model, tokens
    ),
    "reference": lambda model, tokens: lw.compare(
        tiny("opt", seed=1, max_position_embeddings=128), lw.Reference(model, tokens), tokens
    ),
    "lim": lambda model, tokens: lw.scores.lim(model, tokens),
    "measure": lambda model, tokens: scores.measure(scores.lim, model, tokens).standard_error,
    "angles": lambda model, tokens: lw.scores.angular_distances(model, tokens),
    "damage": lambda model, tokens: damage.by_window(model, tokens)["kl"],
    "order": lambda model, tokens: damage.removal_order(model, tokens),
    "assembly": lambda model, tokens: np.stack(lw.Assembly(model, (8, 4)).compare([four_bits(model)], tokens)),
    "calibrate": lambda model, tokens: np.stack(lw.calibrate(model, tokens).eigenvalues),
    "slices": lambda model, tokens: logits_of(lw.compress(model, slices(20, 29, 11), tokens), tokens),
    "outliers": lambda model, tokens: logits_of(lw.compress(model, four_bits(model), tokens, "outliers"), tokens),
}


@pytest.mark.parametrize("what", MEASURES)
def test_there_is_no_dropout_and_each_part_keeps_its_mode(what):
    model, tokens = tiny("opt", dropout=0.5), random_tokens()
    expected = MEASURES[what](model, tokens)
    blocks(model.train())[1].eval()
    modes = {name: part.training for name, part in model.named_modules()}
    assert len(set(modes.values())) == 2
    np.testing.assert_array_equal(MEASURES[what](model, tokens), expected)
    assert {name: part.training for name, part in model.named_modules()} == modes


def test_speed_is_that_of_eval_mode():
    model, seen = tiny("opt", dropout=0.5).train(), []
    model.model.decoder.register_forward_pre_hook(lambda decoder, args: seen.append(decoder.training))
    lw.speed(model, prompt=4, new=2, repeats=1)
    assert seen and not any(seen) and all(part.training for part in model.modules())


def test_what_is_compressed_is_in_eval_mode_and_lent_models_are():
    model, tokens = tiny("opt", dropout=0.5).train(), random_tokens()
    for plan in (four_bits(model), slices(20, 29, 11), lw.plans.drop(lw.shape(model), [1, 2, 3], 1)):
        assert not any(part.training for part in lw.compress(model, plan, tokens).modules())
    with lw.Assembly(model, (8, 4)).as_planned(four_bits(model)) as lent:
        assert not any(part.training for part in lent.modules())
    assert all(part.training for part in model.modules())


def test_modes_come_back_after_an_error():
    model = tiny("opt").train()
    with torch.no_grad():
        blocks(model)[1].fc1.weight[0, 0] = torch.nan
    for measure in (lw.perplexity, lw.scores.lim):
        with pytest.raises(ValueError, match="not finite|NaN"):
            measure(model, random_tokens())
        assert all(part.training for part in model.modules())


LONG = random_tokens(4, 80)


FEW = ("perplexity", "lim", "damage", "order")
CASES = [("opt", what) for what in MEASURES] + [(family, what) for family in ("gpt2", "gptj", "mpt") for what in FEW]
SIZES = {"mpt": {"max_seq_len": 64}}


@pytest.mark.parametrize(("family", "what"), CASES)
def test_windows_beyond_a_table_of_positions_are_an_error_before_any_work(family, what):
    model = tiny(family, **SIZES.get(family, {}))
    told = "windows of 80 tokens, and the model has 64 positions: take windows of at most 64"
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=told):
        MEASURES[what](model, LONG)


@pytest.mark.filterwarnings("error")
def test_all_positions_may_be_used():
    for family in ("opt", "gpt2", "gptj", "mpt", "llama"):
        lw.perplexity(tiny(family, **SIZES.get(family, {})), LONG[:, :64])
    by_distance = tiny("bloom")
    del by_distance.config.max_position_embeddings  # which no such model has
    lw.perplexity(by_distance, LONG)


ROTARY = {
    name: MEASURES[name] for name in ("perplexity", "lim", "damage", "assembly", "calibrate", "slices", "outliers")
}


@pytest.mark.parametrize("what", ROTARY)
def test_windows_beyond_what_rotary_positions_were_made_for_are_warned_of(what):
    with pytest.warns(UserWarning, match="80 tokens, and the model has 64 positions.* says little of the model"):
        ROTARY[what](tiny(), LONG)


def test_quantizers_check_the_text_themselves():
    beyond = torch.full((4, 12), 96)
    for quantizer in (lw.quantization.Outliers(), lw.quantization.GPTQ(group=8)):
        model = tiny("opt")
        model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
        with pytest.raises(ValueError, match="windows of 80 tokens, and the model has 64 positions"):
            quantizer(model, [8, None, None], LONG)
        with pytest.raises(ValueError, match="token 96 at window 0, position 0 is outside the vocabulary of 96"):
            quantizer(model, [8, None, None], beyond)


def test_buffers_of_quantized_matrices_are_no_table_of_positions():
    """Positions as many as a matrix has rows: as in models of 2,048 positions and width 2,048."""
    small = lw.compress(tiny(max_position_embeddings=32), four_bits(tiny()))
    with pytest.warns(UserWarning, match="has 32 positions.* says little of the model"):
        lw.perplexity(small, LONG)


def test_each_model_is_warned_of_once():
    model, other = tiny(), tiny(seed=1)
    with warnings.catch_warnings(action="ignore"):
        reference = lw.Reference(other, LONG)
    bits = four_bits(model)
    for count, work in (
        (1, lambda: lw.compare(model, model, LONG)),
        (1, lambda: lw.compare(model, reference, LONG)),
        (2, lambda: lw.compare(model, other, LONG)),
        (1, lambda: lw.compress(model, bits, LONG, "outliers")),
        (0, lambda: lw.compress(model, bits, LONG, "rtn")),  # which reads no text
    ):
        with warnings.catch_warnings(record=True, action="always") as told:
            work()
        assert sum("says little of the model" in str(each.message) for each in told) == count


def test_a_copy_keeps_its_own_table_of_positions():
    model = copy.deepcopy(tiny("opt", max_position_embeddings=80))
    assert np.isfinite(lw.perplexity(model, LONG).value)
