import itertools
import types

import layerwise as lw
import pytest
import torch
from families import FAMILIES, tiny
from layerwise.evaluation import timing

SHORT = {"prompt": 10, "new": 5}


def seen_tokens(model, **options):
    """Token ids of every forward of `lw.speed`, in order."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    lw.speed(model, **options)
    handle.remove()
    return seen


def test_every_run_reads_the_prompt_once_and_then_one_token_a_step():
    seen = seen_tokens(tiny(), batch=2, repeats=3, **SHORT)
    assert [tuple(ids.shape) for ids in seen] == ([(2, 10)] + [(2, 1)] * 5) * 4  # one run warms up


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_decoded_from_the_cache_is_what_the_whole_text_gives(family):
    model = tiny(family)
    prompt, *steps = seen_tokens(model, batch=2, repeats=1, **SHORT)[:6]
    text = prompt
    for _ in steps:
        with torch.no_grad():
            text = torch.cat([text, model(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(torch.cat([prompt, *steps], dim=1), text)


def test_the_prompt_comes_from_the_seed():
    model = tiny()
    first, again, other = (seen_tokens(model, repeats=1, seed=seed, **SHORT)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_tokens_per_second_count_the_batch_and_are_medians(monkeypatch):
    prefill_decode = [(100, 100), (2, 8), (40, 1), (1, 4)]  # seconds of the run that warms up, then of three
    clock = itertools.chain.from_iterable((0, prefill, prefill + decode) for prefill, decode in prefill_decode)
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    found = lw.speed(tiny(), batch=3, repeats=3, **SHORT)
    assert (found.prefill, found.decode) == (3 * 10 / 2, 3 * 5 / 4)


def test_memory_is_the_model_and_what_a_run_needs_on_top():
    model = tiny()
    stored = sum(parameter.nbytes for parameter in model.parameters())
    cache = 2 * 3 * 16 * 14 * 4  # K and V of 3 blocks, 2 heads of 8, the prompt and all but the last token, float32

    def extra(**options):
        return lw.speed(model, repeats=1, **(SHORT | options)).memory - stored

    assert cache < extra() < cache + 96 * 32 * 4
    assert extra() == extra()
    assert 1.9 < extra(batch=20) / extra(batch=10) < 2.1
    assert extra(prompt=40) > 2 * extra()


def test_tensors_count_while_they_are_alive_and_once():
    with timing.Alive() as alive:
        a = torch.zeros(100)  # 400 bytes
        b = a.view(10, 10)[2:].add_(1)  # the same storage
        c = b * 2  # 320 bytes more
        del c
        assert (alive.now, alive.peak) == (400, 720)
        del a
        assert alive.now == 400
        del b
    assert (alive.now, alive.peak) == (0, 720)


def test_an_allocator_that_keeps_a_peak_is_asked_for_it(monkeypatch):
    asked = []
    allocator = types.SimpleNamespace(
        reset_peak_memory_stats=lambda device: asked.append("reset"),
        memory_allocated=lambda device: 1000,
        max_memory_allocated=lambda device: 1700,
    )
    model = tiny()
    stored = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    monkeypatch.setattr(torch, "get_device_module", lambda device: allocator)
    assert lw.speed(model, repeats=1, **SHORT).memory == stored + 700
    assert asked == ["reset"]


def test_more_positions_than_the_model_has_are_an_error():
    with pytest.raises(ValueError, match=r"prompt 60 \+ new 5 are 65 positions, but the model has 64"):
        lw.speed(tiny(), prompt=60, new=5)
    with pytest.raises(ValueError, match=r"are 65 positions, but the model has 64"):
        lw.speed(tiny("mpt", max_seq_len=64), prompt=60, new=5)
    assert lw.speed(tiny(), prompt=59, new=5, repeats=1).memory > 0


@pytest.mark.parametrize("name", ["batch", "prompt", "new", "repeats"])
def test_nothing_to_time_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        lw.speed(tiny(), **(SHORT | {name: 0}))
