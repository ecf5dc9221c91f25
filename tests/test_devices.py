"""Devices that lack float64, as Apple's do: everything that is measured can be measured there."""

import layerwise as lw
import numpy as np
import pytest
import torch
from families import random_tokens, tiny
from layerwise import damage, evaluation, scores
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class WithoutFloat64(TorchFunctionMode):
    """Treats a model as if it were on such a device: what is computed from its weights is there until `.cpu()`."""

    def __init__(self, model):
        super().__init__()
        self.there = {id(parameter): parameter for parameter in model.parameters()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            return result.clone()  # on the CPU already, it would be the very tensor
        if any(id(x) in self.there for x in used):
            for made in tree_leaves(result):
                if isinstance(made, torch.Tensor):
                    if made.dtype == torch.float64:
                        raise TypeError("this device has no float64")
                    self.there[id(made)] = made  # kept, so that no other tensor gets its id
        return result


MEASUREMENTS = {
    "lim": lambda model, tokens: scores.measure(scores.lim, model, tokens).standard_error,
    "zd": lambda model, tokens: scores.zd(model),
    "perplexity": lambda model, tokens: np.array(lw.perplexity(model, tokens)),
    "compare": lambda model, tokens: np.array(lw.compare(model, tiny(seed=1), tokens)),
    "damage": lambda model, tokens: damage.by_window(model, tokens, kinds=["removed", "4 bits"])["kl"].to_numpy(),
}


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_nothing_is_in_float64_on_the_device_of_the_model(what):
    model, tokens = tiny(), random_tokens(4)
    expected = MEASUREMENTS[what](model, tokens)
    with WithoutFloat64(model) as device:
        np.testing.assert_allclose(MEASUREMENTS[what](model, tokens), expected, rtol=1e-6)
        assert len(device.there) > len(list(model.parameters()))  # it was seen to compute something
        with pytest.raises(TypeError, match="no float64"):
            model.lm_head.weight.detach().double()


def test_stand_in_is_strict_about_sums():
    model = tiny()
    with WithoutFloat64(model), pytest.raises(TypeError, match="no float64"):
        model.lm_head.weight.detach().sum(dtype=torch.float64)


def test_evaluation_gives_its_numbers_on_the_cpu():
    assert evaluation.window_losses(tiny(), random_tokens(2)).device.type == "cpu"
