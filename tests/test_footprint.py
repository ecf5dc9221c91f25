"""`lw.memory`: what fake tensors tell, against what real ones take."""

import copy

import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from layerwise import evaluation, scores, timing
from layerwise.plans import Layer, Plan
from transformers import AutoModelForCausalLM

WINDOWS = {"windows": 9, "length": 24, "batch": 2}


def plans(shape):
    """A plan of each kind for any shape of three blocks."""
    order = np.arange(shape.L)
    sliced, bits = lw.plans.constant_slices(shape, 0.25), lw.plans.bits(shape, order, 2, 8, 4)
    return {"slices": sliced, "bits": bits, "all": sliced | bits | lw.plans.drop(shape, order, 1)}


def measured(config, plan, quantizer="rtn", inplace=True):
    """The same work done by hand on a real model, the peak of each part in bytes."""
    tokens = torch.zeros(WINDOWS["windows"], WINDOWS["length"], dtype=torch.long)
    batch, found = WINDOWS["batch"], {}
    with timing.Alive() as alive:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval().requires_grad_(False)

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
@pytest.mark.parametrize("what", ["dense", "slices", "bits", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_what_real_tensors_take(name, what):
    model = tiny(name)
    plan = plans(lw.shape(model)).get(what)
    told = lw.memory(model.config, plan, dtype=torch.float32, **WINDOWS)
    assert told.model == model.get_memory_footprint()
    for part, bytes in measured(model.config, plan).items():
        assert getattr(told, part) == pytest.approx(bytes, rel=0.05), part


@pytest.mark.parametrize("quantizer", ["quanto", "hqq"])
def test_quantizers_of_other_packages(quantizer):
    config = tiny(hidden_size=128, intermediate_size=256).config
    with torch.device("meta"):
        plan = plans(lw.shape(AutoModelForCausalLM.from_config(config)))["bits"]
    told = lw.memory(config, plan, quantizer, dtype=torch.float32, **WINDOWS)
    assert told.compressing == pytest.approx(measured(config, plan, quantizer)["compressing"], rel=0.05)
    assert told.compressed < told.model
