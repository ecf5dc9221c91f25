"""Devices that lack float64, as Apple's do, or bfloat16, and models that are larger than the memory of one."""

from types import SimpleNamespace

import layerwise as lw
import numpy as np
import psutil
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from families import random_tokens, tiny
from layerwise import damage, evaluation, models, results, scores, world
from layerwise.backbone import devices
from layerwise.backbone.architectures import architecture
from layerwise.backbone.structure import blocks
from layerwise.evaluation import footprint
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_are_seen_anywhere(dtype):
    weights = torch.full((5, 7), torch.finfo(dtype).max, dtype=dtype)
    assert devices.all_finite(weights) and devices.all_finite(weights[:0])
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in ((0, 0), (2, 3), (4, 6)):
            damaged = weights.clone()
            damaged[place] = value
            assert not devices.all_finite(damaged)


@pytest.mark.parametrize(("stored", "native", "expected"), [
    ("bfloat16", False, torch.float16), ("bfloat16", True, "auto"), ("float16", False, "auto"),
])  # fmt: skip
def test_a_gpu_without_bfloat16_gets_float16_and_a_warning(stored, native, expected, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert devices.dtype_for({"dtype": stored}, torch.device("cuda")) == expected
    told = [str(warning.message) for warning in recwarn]
    assert told == ([] if expected == "auto" else ["Tesla T4 has no bfloat16, so this model is loaded in float16, "
                                                   "which overflows sooner"])  # fmt: skip
    assert devices.dtype_for({"dtype": stored}, torch.device("cpu")) == "auto"


@pytest.fixture(params=["llama", "opt", "phi"])
def folder(request, tmp_path):
    """A checkpoint of several files."""
    model = tiny(request.param, num_hidden_layers=6)
    model.save_pretrained(tmp_path / "model", max_shard_size=30_000)
    return tmp_path / "model"


def leave_free(folder, monkeypatch, share):
    """Let memory have room for a share of the weights in a folder."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = SimpleNamespace(available=share * weights / devices.SPREAD)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


def spread(folder, monkeypatch):
    """A model some of whose blocks stay on disk."""
    leave_free(folder, monkeypatch, 0.7)
    with pytest.warns(
        UserWarning, match="larger than what is free on cpu, so its blocks are: [1-5] on cpu, [1-5] on disk"
    ):
        return lw.load(folder)[0]


def test_a_model_larger_than_memory_is_scored_and_evaluated_as_if_it_were_not(folder, monkeypatch):
    whole, tokens = lw.load(folder, device="cpu")[0], random_tokens(4)
    model = spread(folder, monkeypatch)
    assert any(parameter.is_meta for parameter in model.parameters())
    for measure in (lw.scores.lim, lw.scores.zd, lw.scores.angular_distances, lw.perplexity):
        np.testing.assert_array_equal(measure(model, tokens), measure(whole, tokens))
    removed = [damage.by_window(each, tokens, kinds=["removed"])["kl"] for each in (model, whole)]
    np.testing.assert_array_equal(*removed)
    assert results.fingerprint(model) == results.fingerprint(whole)
    assert (lw.shape(model), lw.size(model)) == (lw.shape(whole), lw.size(whole))
    assert lw.compare(model, whole, tokens).kl == 0


def test_a_model_larger_than_memory_is_not_changed(folder, monkeypatch):
    model, tokens = spread(folder, monkeypatch), random_tokens()
    plan = lw.plans.bits(lw.shape(model), scores.zd(model), low_layers=1, high=8, low=4)
    for change in (
        lambda: lw.compress(model, plan),
        lambda: lw.compress(model, lw.plans.constant_slices(lw.shape(model), 0.25), tokens),
        lambda: lw.quantization.RTN()(model, [8] * 6),
        lambda: lw.Assembly(model, [8]),
        lambda: damage.by_window(model, tokens, kinds=["removed", "4 bits"]),
        lambda: lw.speed(model, prompt=8, new=2),
    ):
        with pytest.raises(ValueError, match=r"scored and evaluated, not changed. lw.compress_checkpoint"):
            change()


def test_memory_that_embeddings_do_not_fit_into_is_too_little(folder, monkeypatch):
    leave_free(folder, monkeypatch, 0.01)
    with pytest.raises(MemoryError, match="isn't enough memory for the embeddings of .*model"):
        lw.load(folder)


def test_damaged_weights_are_found_on_disk_too(tmp_path, monkeypatch):
    model = tiny(num_hidden_layers=6)
    with torch.no_grad():
        blocks(model)[5].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    leave_free(tmp_path / "model", monkeypatch, 0.7)
    with (
        pytest.warns(UserWarning, match="on disk"),
        pytest.raises(models.DamagedModel, match="layers.5.mlp.up_proj.weight hold NaN"),
    ):
        lw.load(tmp_path / "model")


@pytest.mark.parametrize(("share", "dtype"), [(0.8, "auto"), (0.5, torch.float16)])
def test_what_has_room_on_one_device_is_not_spread(share, dtype, folder, monkeypatch, recwarn):
    """Weights may take more of a device if all of them go there, and float16 takes half of what is stored."""
    leave_free(folder, monkeypatch, share)
    devices.check_present(lw.load(folder, dtype=dtype)[0])
    assert not [warning for warning in recwarn if "larger than" in str(warning.message)]


def test_what_models_that_are_gone_had_is_free(monkeypatch):
    free = iter([10, 1000])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=next(free)))
    assert devices.limits(100, torch.device("cpu")) is None


def test_memory_that_torch_holds_and_does_not_use_is_free(monkeypatch):
    gpu = SimpleNamespace(
        mem_get_info=lambda device: (10, 100), memory_reserved=lambda device: 80, memory_allocated=lambda device: 20
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    monkeypatch.setattr(devices, "get_max_memory", lambda: {0: 60, 1: 100, "cpu": 1000})
    assert devices.limits(63, torch.device("cuda")) is None
    assert devices.limits(64, torch.device("cuda")) == {0: 42, 1: 70, "cpu": 700}


def test_places_are_told_by_device():
    spread = tiny()
    spread.hf_device_map = {"model.layers.1": 0, "model.layers.10": "cpu", "model": 1}
    kind = devices.accelerator()
    paths = [f"model.layers.{i}" for i in (0, 1, 10)]
    assert devices.placement(spread, paths) == f"1 on {kind}:1, 1 on {kind}:0, 1 on cpu"
    assert devices.placement(tiny(), paths) == "3 on cpu"  # accelerate has none if one device has room after all


def test_a_dtype_is_a_dtype(folder):
    with pytest.raises(ValueError, match="dtype must be 'auto' or a torch.dtype such as torch.float16, not 'bf16'"):
        lw.load(folder, dtype="bf16")


OTHER = "lazy"  # of the kinds of device that torch knows, one that fake tensors may be on in a build for CPUs


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_blocks_on_another_device_are_scored_and_evaluated_where_they_are(family):
    """On fake tensors, which have a device and no contents: an operator with arguments on two devices is an error."""
    with footprint._faked():
        model = tiny(family, num_hidden_layers=4)
        tokens = random_tokens(4)
        for part in (part for block in blocks(model)[2:] for part in block.modules()):
            for name, weights in list(part.named_parameters(recurse=False)):  # fake ones can't be moved in place
                setattr(part, name, torch.nn.Parameter(weights.to(OTHER), requires_grad=False))
        with pytest.raises(Exception, match="two different devices|same device"):
            evaluation.window_losses(model, tokens)
        for block in blocks(model)[2:]:
            add_hook_to_module(block, AlignDevicesHook(execution_device=OTHER))
        norm = model.get_submodule(architecture(model).final_norm)
        norm.register_forward_pre_hook(lambda norm, states: states[0].to("cpu"))
        assert {p.device.type for p in model.parameters()} == {"cpu", OTHER}
        assert lw.scores.lim(model, tokens).shape == lw.scores.zd(model).shape == (4,)
        evaluation.window_losses(model, tokens)
        damage.removal_order(model, tokens)
        with pytest.raises(ValueError, match="lw.compress_checkpoint"):
            lw.compress(model, lw.plans.bits(lw.shape(model), range(4), 2, 8, 4))


def test_a_model_larger_than_memory_is_asked_the_same_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tokenizer, tasks = world.tokenizer(), list(world.TASKS)[:1]
    model = tiny(num_hidden_layers=12, vocab_size=len(tokenizer), tie_word_embeddings=True)
    folder = lw.save(model, tmp_path / "model", tokenizer)
    leave_free(folder, monkeypatch, 0.75)
    with pytest.warns(UserWarning, match="on disk"):
        spread, _ = lw.load(folder)
    assert lw.answers(spread, tokenizer, tasks, limit=4).equals(lw.answers(model, tokenizer, tasks, limit=4))
