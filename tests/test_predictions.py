"""Losses and divergences from a few logits at a time, against the logits of all positions in float64."""

from types import SimpleNamespace

import layerwise as lw
import numpy as np
import psutil
import pytest
import torch
from families import CUT, FAMILIES, random_tokens, sliced, tiny
from layerwise import damage, evaluation
from layerwise.backbone import devices, passes
from layerwise.evaluation import predictions, timing

TOKENS = random_tokens(5, 24)

# Whose forward does more than apply a matrix to what the blocks give, or whose parts have other names.
OTHERS = {
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 1.5},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 7.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.2},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {},
    "gptj": {"rotary_dim": 4},
    "mixtral": {"num_key_value_heads": 2, "intermediate_size": 56, "output_router_logits": True},
    "llama4_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 56,
        "intermediate_size_mlp": 56,
        "num_local_experts": 2,
    },
}


def packed():
    model = tiny()
    return lw.compress(model, lw.plans.bits(lw.shape(model), [1, 2, 3], low_layers=2, high=8, low=4))


MODELS = {name: lambda name=name: tiny(name) for name in FAMILIES}
MODELS |= {name: lambda name=name: tiny(name, **OTHERS[name]) for name in OTHERS}
MODELS |= {"tied": lambda: tiny(tie_word_embeddings=True), "packed": packed}
MODELS["sliced"] = lambda: sliced("sequential", tiny(), CUT, random_tokens(4, 12))


def log_probabilities(model, tokens):
    """`[n, length - 1, V]` in float64, from all logits at once."""
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, :-1].double().log_softmax(-1)


def literal(model, reference, tokens):
    """Loss of the model, and of it and a reference the difference and the divergence, float64 `[n]` each."""
    p, q = (log_probabilities(each, tokens) for each in (model, reference))
    of_text = [-x.gather(2, tokens[:, 1:, None]).squeeze(2).mean(1) for x in (p, q)]
    return of_text[0], of_text[0] - of_text[1], (q.exp() * (q - p)).sum(-1).mean(1)


def shaken(model, scale=0.02):
    """Another model of its kind."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter += (scale * noise).to(parameter.dtype)
    return model


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Seven logits at a time, and of these three in float32, by a vocabulary of 96."""
    monkeypatch.setattr(predictions, "LOGITS", 7 * 96 * 4)
    monkeypatch.setattr(predictions, "FLOATS", 3 * 96 * 4 // torch.get_num_threads())


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_all_logits(name, few_at_a_time):
    model, other = MODELS[name](), shaken(MODELS[name]())
    loss, change, kl = literal(model, other, TOKENS)
    np.testing.assert_allclose(evaluation.window_losses(model, TOKENS, batch=2), loss, atol=2e-6)
    found = evaluation.window_differences(model, other, TOKENS, batch=2)
    np.testing.assert_allclose(found, torch.stack([change, kl]), atol=2e-6)
    assert kl.min() > 1e-5


@pytest.mark.parametrize("name", ["llama", "tied", "opt", "gemma2"])
def test_logits_are_rounded_by_the_model_and_nowhere_else(name, few_at_a_time):
    model, other = MODELS[name]().bfloat16(), shaken(MODELS[name]()).bfloat16()
    loss, change, kl = literal(model, other, TOKENS)
    np.testing.assert_allclose(evaluation.window_losses(model, TOKENS), loss, atol=5e-4)
    np.testing.assert_allclose(evaluation.window_differences(model, other, TOKENS), [change, kl], atol=5e-4)


def test_the_head_is_the_end_of_the_forward_of_the_model_whichever_positions():
    model = tiny("gemma2", **OTHERS["gemma2"])
    with torch.no_grad():
        read, all_ = passes.run_trunk(model, TOKENS), model(input_ids=TOKENS).logits
        states = read.last_hidden_state[1, [3, 20, 4]]
        np.testing.assert_allclose(passes.Head(model)(read, states), all_[1, [3, 20, 4]], atol=1e-6)
        assert model(input_ids=TOKENS).logits.equal(all_)


def room_for(windows, model, monkeypatch):
    """Let there be memory for the kept logits of so many windows."""
    bytes = windows * 23 * 96 * model.dtype.itemsize
    free = SimpleNamespace(available=bytes / predictions.KEPT)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    return bytes


@pytest.mark.parametrize("windows", [0, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_is_the_second_model_in_every_digit(dtype, windows, monkeypatch, few_at_a_time):
    model, other = tiny().to(dtype), shaken(tiny()).to(dtype)
    expected = evaluation.compare(model, other, TOKENS, batch=2)
    taken = room_for(windows, model, monkeypatch)
    reference = lw.Reference(other, TOKENS, batch=2)
    assert reference.bytes == taken
    other.model.layers[0].register_forward_pre_hook(
        lambda *_: pytest.fail("the blocks of the reference were run again")
    )
    for batch in (2, 3):
        assert evaluation.compare(model, reference, TOKENS, batch=batch) == pytest.approx(expected, rel=1e-5)
    assert evaluation.compare(model, reference, TOKENS, batch=2) == expected


def test_a_reference_is_of_its_tokens():
    model = tiny()
    reference = lw.Reference(model, TOKENS)
    for others in (TOKENS[:3], random_tokens(5, 24, seed=1)):
        with pytest.raises(ValueError, match="made on other tokens"):
            lw.compare(model, reference, others)
    with pytest.raises(ValueError, match="60 and 96 tokens"):
        lw.compare(tiny(vocab_size=60), reference, TOKENS % 60)


@pytest.mark.parametrize("windows", [0, 5])
def test_sweeps_find_the_same_whether_logits_are_kept_or_not(windows, monkeypatch):
    model = tiny()
    plans = [lw.plans.bits(lw.shape(model), [1, 2, 3], low_layers=k, high=8, low=2) for k in range(4)]
    expected = lw.Assembly(model, (8, 2)).compare(plans, TOKENS), damage.by_window(model, TOKENS)
    room_for(windows, model, monkeypatch)
    np.testing.assert_array_equal(lw.Assembly(model, (8, 2)).compare(plans, TOKENS), expected[0])
    assert damage.by_window(model, TOKENS).equals(expected[1])


WIDE = 2**16  # words
LONG = random_tokens(2, 300, vocabulary=WIDE)
MEASURES = {
    "perplexity": (1, lambda model, assembly: lw.perplexity(model, LONG)),
    "compare": (2, lambda model, assembly: lw.compare(model, model, LONG)),
    "damage": (2, lambda model, assembly: damage.by_window(model, LONG, kinds=["removed"])),
    "order": (1, lambda model, assembly: damage.removal_order(model, LONG)),
    "assembly": (2, lambda model, assembly: assembly.compare([lw.Plan((lw.Layer(bits=4),) * 2, 32)], LONG)),
}


@pytest.mark.parametrize("what", MEASURES)
def test_logits_of_all_positions_are_never_there(what, monkeypatch):
    """Those of both windows would take 157 MB in float32, of one 78; a few float32 copies for each thread are more."""
    model = tiny(vocab_size=WIDE, max_position_embeddings=512, num_hidden_layers=2)
    assembly = lw.Assembly(model, (4,))
    room_for(0, model, monkeypatch)
    models, measure = MEASURES[what]
    with timing.Alive() as alive:
        measure(model, assembly)
    assert alive.peak < models * predictions.LOGITS + 4 * torch.get_num_threads() * predictions.FLOATS + 4e6


def test_free_memory_is_that_of_the_device():
    assert 0 < predictions.room(tiny()) <= predictions.KEPT * devices.free_memory(torch.device("cpu")) * 1.1
