"""Scores against literal definitions, on tiny random models."""

import weakref

import numpy as np
import pytest
import torch
from families import FAMILIES, random_tokens, tiny
from layerwise import scores
from layerwise.backbone.structure import blocks, linears, written
from torch.utils._python_dispatch import TorchDispatchMode


def streams(model, tokens, mask=None):
    """Hidden states x_i and y_i of one batch, recorded by independent means: [(x, y)] in float64."""
    seen = []
    handles = [
        block.register_forward_hook(lambda _, args, y: seen.append((args[0].double(), written(y).double())))
        for block in blocks(model)
    ]
    with torch.no_grad():
        model(tokens, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return seen


def literal_lim(model, tokens, mask=None):
    """The formula as it is written: a loop over blocks and tokens, in float64."""
    keep = torch.ones_like(tokens) if mask is None else mask
    values = []
    for x, y in streams(model, tokens, mask):
        cosines = []
        for window in range(tokens.shape[0]):
            for position in range(tokens.shape[1]):
                if keep[window, position]:
                    a, b = x[window, position], y[window, position]
                    cosines.append((a @ b / (a.norm() * b.norm())).item())
        values.append(-sum(cosines) / len(cosines))
    return np.array(values)


@pytest.mark.parametrize("family", FAMILIES)
def test_lim_is_the_literal_double_loop_for_every_family(family):
    model, tokens = tiny(family), random_tokens()
    found = scores.lim(model, tokens)
    assert found.dtype == np.float64 and found.shape == (3,)
    np.testing.assert_allclose(found, literal_lim(model, tokens), atol=3e-7)
    assert found.std() > 1e-3  # the blocks differ, so that a mixed-up order would be seen


def test_batches_of_any_size_give_the_same():
    model, tokens = tiny(), random_tokens(7)
    at_once = scores.statistics(model, tokens, batch=7)
    for batch in (1, 3):
        parts = scores.statistics(model, tokens, batch=batch)
        np.testing.assert_allclose(parts.cosine, at_once.cosine, atol=3e-7)
        np.testing.assert_allclose(parts.change, at_once.change, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(family, side):
    model, tokens = tiny(family), random_tokens(4, 10)
    lengths = [10, 7, 3, 1]
    mask = torch.zeros_like(tokens)
    for window, length in enumerate(lengths):
        mask[window, slice(-length, None) if side == "left" else slice(length)] = 1
    found = scores.lim(model, tokens, mask=mask)
    alone = [scores.lim(model, row[keep.bool()][None]) for row, keep in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(found, np.average(alone, axis=0, weights=lengths), atol=5e-7)
    np.testing.assert_allclose(found, literal_lim(model, tokens, mask), atol=5e-7)
    assert abs(found - scores.lim(model, tokens)).max() > 1e-4  # and it does matter here


def test_windows_of_padding_alone_are_no_windows():
    model, tokens = tiny(), random_tokens(6, 10)
    mask = torch.ones_like(tokens)
    mask[3:] = 0
    some, few = scores.statistics(model, tokens, mask), scores.statistics(model, tokens[:3])
    for of_all, of_real in ((some.lim, few.lim), (some.rms("read"), few.rms("read"))):
        np.testing.assert_allclose(of_all.low, of_real.low, atol=1e-6)
    assert np.isnan(some[2:].lim.low).all(), "one window has no spread, whatever stands beside it"
    own = [scores.measure(mean_cosine, model, *of) for of in ((tokens, mask), (tokens[:3], mask[:3]))]
    np.testing.assert_allclose(own[0].low, own[1].low, atol=1e-6)


def test_last_block_is_read_before_the_final_norm():
    model, tokens = tiny(), random_tokens()
    block = blocks(model)[-1]
    for path in ("self_attn.o_proj", "mlp.down_proj"):
        block.get_submodule(path).weight.data.zero_()
    model.model.norm.weight.data = torch.randn(32)
    assert scores.lim(model, tokens)[-1] == pytest.approx(-1, abs=1e-6)


def test_cosines_of_float16_and_bfloat16_models_are_taken_in_float32():
    tokens = random_tokens()
    for dtype in (torch.float16, torch.bfloat16):
        model = tiny().to(dtype)
        np.testing.assert_allclose(scores.lim(model, tokens), literal_lim(model, tokens), atol=1e-6)


def test_norms_are_those_of_the_stream():
    model, tokens = tiny(), random_tokens()
    found = scores.statistics(model, tokens)
    for i, (x, y) in enumerate(streams(model, tokens)):
        for which, state in (("read", x), ("written", y), ("change", y - x)):
            assert found.rms(which).value[i] == pytest.approx(state.pow(2).mean().sqrt().item(), rel=1e-5)
    np.testing.assert_array_equal(found.read[1:], found.written[:-1])


def test_standard_error_is_that_of_the_windows():
    model, tokens = tiny(), random_tokens(9)
    each = np.stack([scores.lim(model, window[None]) for window in tokens])
    value, error = scores.measure(scores.lim, model, tokens)
    np.testing.assert_allclose(value, each.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(error, each.std(axis=0, ddof=1) / 3, rtol=1e-3)
    assert np.isnan(scores.measure(scores.lim, model, tokens[:1]).standard_error).all()


def test_standard_error_covers_as_often_as_it_says():
    """Windows of uneven length: the error of a ratio, checked against the spread over many draws."""
    draw = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        counts = draw.integers(5, 50, size=40)
        cosine = draw.normal(0.5 + counts / 200, 0.1)[None]  # longer windows have larger cosines
        value, error = scores.Statistics(counts, cosine, cosine, cosine, cosine).lim
        values.append(value[0])
        errors.append(error[0])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)


def mean_cosine(model, tokens, mask=None):
    """What LIM would be if every window counted the same, as a score of a user's own."""
    return -scores.statistics(model, tokens, mask).cosine.mean(axis=1)


def test_intervals_reach_as_far_as_the_windows_warrant():
    model, tokens = tiny(), random_tokens(16)
    for score, n, quantile in (
        (scores.lim, 16, 2.131),  # Student's t with 15 degrees of freedom, from a printed table
        (scores.lim, 3, 4.303),
        (mean_cosine, 16, 2.365),  # from 8 groups
        (mean_cosine, 2, 12.706),
    ):
        found = scores.measure(score, model, tokens[:n])
        np.testing.assert_allclose(found.high - found.value, quantile * found.standard_error, rtol=1e-3)
        np.testing.assert_allclose(found.value - found.low, quantile * found.standard_error, rtol=1e-3)
    for score in (scores.lim, mean_cosine):
        assert np.isnan(scores.measure(score, model, tokens[:1]).high).all()
    census = scores.measure(scores.zd, model, tokens)
    assert (census.low == census.value).all() and (census.high == census.value).all()


def test_intervals_of_a_mean_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(1)
    covered = []
    for _ in range(1500):
        cosine = draw.normal(0.5, 0.1, size=(1, 4))
        found = scores.Statistics(np.full(4, 8), cosine, cosine, cosine, cosine).lim
        covered.append(found.low[0] < -0.5 < found.high[0])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)  # 1.96 standard errors would cover 0.86


def test_some_of_the_windows_without_a_second_pass():
    model, tokens = tiny(), random_tokens(6)
    whole = scores.statistics(model, tokens)
    np.testing.assert_allclose(whole[2:5].lim.value, scores.lim(model, tokens[2:5]), atol=1e-6)
    np.testing.assert_allclose(whole[[0, 5]].lim.value, scores.lim(model, tokens[[0, 5]]), atol=1e-6)


def test_zd_is_the_literal_share_and_needs_no_text():
    model = tiny()
    found = scores.zd(model)
    for i, block in enumerate(blocks(model)):
        pooled = np.concatenate([x.weight.detach().double().numpy().ravel() for x in linears(block).values()])
        z = (pooled - pooled.mean()) / pooled.std()
        assert found[i] == pytest.approx(-(z > 1).mean(), abs=1e-12)
    assert len(set(found)) == 3
    value, error = scores.measure(scores.zd, model, random_tokens())
    np.testing.assert_array_equal(value, found)
    np.testing.assert_array_equal(error, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_zd_of_every_family(family):
    found = scores.zd(tiny(family))
    assert found.shape == (3,) and (found < 0).all() and (found > -0.5).all()


def test_zd_pools_matrices_and_keeps_small_deviations_from_a_large_mean():
    model = tiny()
    linear = linears(blocks(model)[0])
    for name, matrix in linear.items():
        matrix.weight.data.fill_(0 if name != "mlp.down_proj" else 1)
    share = linear["mlp.down_proj"].weight.numel() / sum(x.weight.numel() for x in linear.values())
    assert scores.zd(model)[0] == pytest.approx(-share)  # by matrix, none would stand out
    for matrix in linear.values():
        matrix.weight.data = matrix.weight.data * 1e-3 + 1e3
    assert scores.zd(model)[0] == pytest.approx(-share)


def test_own_score_gets_a_standard_error():
    model, tokens = tiny(), random_tokens(16)
    value, error = scores.measure(mean_cosine, model, tokens)
    reference = scores.measure(scores.lim, model, tokens)
    np.testing.assert_allclose(value, reference.value, atol=1e-6)
    assert (error > reference.standard_error / 3).all() and (error < reference.standard_error * 3).all()


def test_own_score_gets_the_mask_of_its_tokens():
    model, tokens = tiny(), random_tokens(16, 10)
    mask = torch.ones_like(tokens)
    mask[5:, 7:] = 0
    found = scores.measure(mean_cosine, model, tokens, mask=mask)
    np.testing.assert_allclose(found.value, mean_cosine(model, tokens, mask))
    groups = [mean_cosine(model, tokens[i : i + 2], mask[i : i + 2]) for i in range(0, 16, 2)]
    np.testing.assert_allclose(found.standard_error, np.std(groups, axis=0, ddof=1) / 8**0.5)
    np.testing.assert_array_equal(scores.measure(scores.zd, model, tokens, mask=mask).value, scores.zd(model))
    with pytest.raises(ValueError, match=r"mask must have the shape of the tokens, \[16, 10\]"):
        scores.measure(mean_cosine, model, tokens, mask=mask[:8])


def test_model_is_left_as_it_was_even_after_an_error():
    model, tokens = tiny(), random_tokens()

    def hooks():
        return [len(block._forward_hooks) for block in blocks(model)]

    scores.lim(model, tokens)
    assert hooks() == [0, 0, 0]
    handle = blocks(model)[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scores.lim(model, tokens)
    handle.remove()
    assert hooks() == [0, 0, 0]


class HiddenStates(TorchDispatchMode):
    """Holds a weak reference to every tensor of hidden states that any operation makes: [rows, length, 32]."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 3 and result.shape[-1] == 32:
            self.made.append(weakref.ref(result))
        return result

    def alive(self):
        return sum(state() is not None for state in self.made)


def test_no_hidden_state_outlives_its_batch():
    """Eight times the tokens leave no more tensors of hidden states alive at the last block."""
    model = tiny()
    most = {}
    for n in (2, 16):
        with HiddenStates() as states:
            handle = blocks(model)[-1].register_forward_hook(
                lambda *_, n=n, states=states: most.update({n: max(most.get(n, 0), states.alive())})
            )
            scores.lim(model, random_tokens(n), batch=2)
        handle.remove()
        assert len(states.made) > n and states.alive() == 0
    assert 0 < most[16] <= most[2] + 1  # the output of the batch before may still be waiting
