"""`lw.memory`: what fake tensors tell, against what real ones take."""

import copy

import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, logits, random_tokens, tiny
from layerwise import evaluation, scores
from layerwise.evaluation import timing
from transformers import AutoConfig, AutoModelForCausalLM

WINDOWS = {"windows": 9, "length": 24, "batch": 2}


def plans(shape):
    """A plan of each kind for any shape of three blocks."""
    order = np.arange(shape.L)
    sliced, bits = lw.plans.constant_slices(shape, 0.25), lw.plans.bits(shape, order, 2, 8, 4)
    matrices = lw.plans.by_part(shape, [(8, 4, 2)[i % 3] for i in range(len(shape.parts))])
    return {"slices": sliced, "bits": bits, "matrices": matrices, "all": sliced | bits | lw.plans.drop(shape, order, 1)}


def measured(config, plan, quantizer="rtn", inplace=True):
    """The same work done by hand on a real model, the peak of each part in bytes."""
    tokens = torch.zeros(WINDOWS["windows"], WINDOWS["length"], dtype=torch.long)
    batch, found = WINDOWS["batch"], {}
    with timing.Alive() as alive:
        model = (
            AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval().requires_grad_(False)
        )

        def done(part):
            found[part] = alive.peak
            alive.peak = alive.now

        alive.peak = alive.now
        scores.statistics(model, tokens[:batch], batch=batch)
        done("scoring")
        if plan is not None:
            text = tokens if plan.slices else None
            model = lw.compress(model, plan, text, quantizer, batch=batch, inplace=inplace)
            done("compressing")
        evaluation.window_losses(model, tokens[:batch], batch)
        done("evaluating")
        timing.generate(model, tokens[:1], 1)
        done("serving")
    return found


@pytest.mark.filterwarnings("ignore:.*calibration tokens")
@pytest.mark.parametrize("what", ["dense", "slices", "bits", "matrices", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_what_real_tensors_take(name, what):
    model = tiny(name)
    plan = plans(lw.shape(model)).get(what)
    told = lw.memory(model.config, plan, dtype=torch.float32, **WINDOWS)
    assert told.weights == model.get_memory_footprint()
    for part, bytes in measured(model.config, plan).items():
        assert getattr(told, part) == pytest.approx(bytes, rel=0.05), part


@pytest.mark.parametrize("what", ["slices", "bits"])
def test_what_is_not_done_in_place_needs_more(what):
    config = tiny().config
    plan = plans(lw.shape(config))[what]
    of = WINDOWS | {"dtype": torch.float32}
    kept, changed = (lw.memory(config, plan, inplace=inplace, **of).compressing for inplace in (False, True))
    assert kept == pytest.approx(measured(config, plan, inplace=False)["compressing"], rel=0.05)
    assert kept > changed


@pytest.mark.parametrize("quantizer", ["quanto", "hqq", "gguf"])
def test_quantizers_of_other_packages(quantizer):
    config = tiny(hidden_size=128, intermediate_size=256).config
    plan = plans(lw.shape(config))["bits"]
    told = lw.memory(config, plan, quantizer, dtype=torch.float32, **WINDOWS)
    assert told.compressing == pytest.approx(measured(config, plan, quantizer)["compressing"], rel=0.05)
    assert told.compressed < told.weights


def test_a_model_that_no_machine_here_holds():
    config = AutoConfig.for_model(
        "llama",
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=2,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    plan = plans(lw.shape(config))["bits"]
    told = lw.memory(config, plan, length=4096)
    parameters = lw.shape(config).total_parameters
    assert told.weights == pytest.approx(2 * parameters, rel=1e-6)  # bfloat16, and a few rotary frequencies
    assert told.compressed < told.serving < told.weights < told.scoring
    cache = 2 * 2 * 8 * 128 * 4096 * 2  # K and V of 2 blocks, 8 heads of 128, 4096 tokens
    assert told.serving - told.compressed > cache


def test_evaluating_takes_little_more_than_scoring_however_large_the_vocabulary():
    """The logits of eight windows would take 4 GB."""
    config = tiny(vocab_size=2).config
    config.vocab_size, config.max_position_embeddings = 2**20, 1024
    told = lw.memory(config, length=256, dtype=torch.bfloat16)
    assert told.evaluating < told.scoring + 1.5e8


def test_what_cannot_be_told():
    config = tiny().config
    plan = lw.plans.bits(lw.shape(config), np.arange(3), 2, 8, 4)
    with pytest.raises(ValueError, match="length 64 and one more token need 65 positions, and the model has 64"):
        lw.memory(config, length=64)
    with pytest.raises(ValueError, match="need 65 positions, and the model has 64"):
        lw.memory(tiny("mpt", max_seq_len=64).config, length=64)
    with pytest.raises(ValueError, match="gptq needs depends on the text"):
        lw.memory(config, plan, "gptq", length=24)
    with pytest.raises(ValueError, match="quanto has no 3 bits"):
        lw.memory(config, lw.plans.bits(lw.shape(config), np.arange(3), 2, 8, 3), "quanto", length=24)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        lw.memory(config, length=24, batch=0)
    with pytest.raises(lw.models.UnknownModel, match="embedded/7L"):
        lw.memory("embedded/7L")
    with pytest.raises(lw.structure.UnknownStructure, match="'t5' is no language model that transformers' AutoModel"):
        lw.memory(AutoConfig.for_model("t5"))


@pytest.mark.filterwarnings("ignore:.*calibration tokens")
@pytest.mark.parametrize("what", ["slices", "bits"])
def test_a_compressed_model_is_no_dense_one(what, tmp_path):
    model = tiny()
    small = lw.compress(model, plans(lw.shape(model))[what], random_tokens())
    lw.save(small, tmp_path / "small")
    with pytest.raises(ValueError, match="compressed already: give the configuration of the dense one"):
        lw.memory(tmp_path / "small", length=24)


def test_an_embedded_model_by_its_name():
    model, _ = lw.load("embedded/6L")
    told = lw.memory("embedded/6L", length=128, dtype=torch.float32)
    assert told.weights == told.compressed == model.get_memory_footprint()


def test_fake_tensors_leave_the_process_as_it_was():
    model, tokens = tiny(), random_tokens()
    before = logits(model, tokens)
    model.config.dtype = None
    config = model.config.to_dict()
    lw.memory(model.config, plans(lw.shape(model.config))["all"], **WINDOWS)
    assert model.config.to_dict() == config
    assert torch.equal(logits(copy.deepcopy(model), tokens), before)
