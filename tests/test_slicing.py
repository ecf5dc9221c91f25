"""Slicing against its definition, on tiny random models of every family."""

import copy
from functools import cache

import layerwise as lw
import numpy as np
import pytest
import torch
from families import CALIBRATIONS, CUT, CUT_HEAD, FAMILIES, VARIANTS, logits, random_tokens, sliced, slices, uneven
from layerwise.backbone.architectures import architecture
from layerwise.backbone.structure import blocks
from layerwise.compression.rotation import Gram

TOKENS = random_tokens(8, 12)
LENGTHS = (12, 7, 3, 12, 9, 1, 5, 8)  # of windows with padding


@cache
def dense(family):
    return uneven(family)


@cache
def bases(family):
    return lw.calibrate(dense(family), TOKENS)


def error(found, expected):
    """Largest error, as a share of the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


# A cut of nothing.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_slicing_nothing_leaves_the_logits_equal(family, dtype):
    model = uneven(family, dtype)
    expected, shared = logits(model), lw.calibrate(model, TOKENS)
    errors = []
    for whole in (slices(32, 32, 32), slices(32, 32, 32, head=32)):
        for small in (lw.compress(model, whole, TOKENS), lw.compress(model, whole, calibration=shared)):
            assert small.dtype == dtype
            errors.append(error(logits(small), expected))
    print(f"{family}, {dtype}: {max(errors):.1e}")  # pytest -rP shows the table
    assert max(errors) < (1e-6 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_slicing_nothing_of_other_configurations(variant, calibration):
    family, changes = VARIANTS[variant]
    model = uneven(family, **changes)
    small = sliced(calibration, model, slices(32, 32, 32, head=32), TOKENS)
    assert error(logits(small), logits(model)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_slicing_nothing_on_fewer_tokens_than_the_width(family):
    model = dense(family)
    for calibration in CALIBRATIONS:
        with pytest.warns(UserWarning, match="9 calibration tokens for a stream of width 32.* nothing about 23 of its"):
            small = sliced(calibration, model, slices(32, 32, 32, head=32), random_tokens(1, 9))
        assert error(logits(small), logits(model)) < 1e-6


# The definition: the dense model with a projection before each half of a block. Nothing here is the library's.


def halves(model):
    """Norm, and what is added to the stream given what the norm puts out, of each half-block: by name, in order."""

    def attention(block):
        return lambda read, given: block.self_attn(hidden_states=read, **given)[0]

    if model.config.model_type == "opt":
        for block in model.model.decoder.layers:
            yield block.self_attn_layer_norm, attention(block)
            yield block.final_layer_norm, lambda read, _, b=block: b.fc2(b.activation_fn(b.fc1(read)))
    elif model.config.model_type == "phi":
        for block in model.model.layers:
            yield block.input_layernorm, lambda read, given, b=block: attention(b)(read, given) + b.mlp(read)
    else:
        for block in model.model.layers:
            yield block.input_layernorm, attention(block)
            yield block.post_attention_layernorm, lambda read, _, b=block: b.mlp(read)


def literal(model, windows, project):
    """Logits `[length, vocabulary]` of each window, run alone; `project(place, states)` gives what is left of states.

    Places are the half-blocks, then the head; states are a list of `[1, length, 32]`, one for each window.
    """
    family = model.config.model_type
    stack = model.model.decoder if family == "opt" else model.model
    final = {"opt": "final_layer_norm", "phi": "final_layernorm"}.get(family, "norm")
    per_block = 1 if family == "phi" else 2
    states, given = [], []
    for window in windows:
        seen = []
        handles = [
            block.register_forward_pre_hook(lambda _, x, kw, seen=seen: seen.append((x[0], kw)), with_kwargs=True)
            for block in stack.layers
        ]
        model(window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        states.append(seen[0][0])
        given.append([arguments for _, arguments in seen])
    for place, (norm, add) in enumerate(halves(model)):
        states = project(place, states)
        states = [x + add(norm(x), kw[place // per_block]) for x, kw in zip(states, given, strict=True)]
    states = project(per_block * len(stack.layers), states)
    return [model.lm_head(getattr(stack, final)(x))[0] for x in states]


class Literal:
    """SliceGPT's definition, in the dense basis: what a place reads is projected on the first principal components.

    Components are those of `windows`, of different lengths. `calibration` "sequential" takes them from states that
    were projected before, "shared" from those of the dense model.
    """

    def __init__(self, model, plan, windows, calibration):
        steps = 1 if model.config.model_type == "phi" else 2
        self.widths = [layer.width for layer in plan.layers for _ in range(steps)] + [plan.head]
        self.center = model.config.model_type in ("opt", "phi")
        self.model, self.eigenvalues, self.projections = model, [], []

        def observe(place, states):
            self.fit(self.widths[place], torch.cat([x[0] for x in states]).numpy())
            return self.project(place, states) if calibration == "sequential" else states

        with torch.no_grad():
            literal(model, windows, observe)

    def fit(self, width, rows):
        if self.center:
            rows = rows - rows.mean(axis=1, keepdims=True)
        values, vectors = np.linalg.eigh(rows.T @ rows)
        kept = vectors[:, ::-1][:, :width]
        self.eigenvalues.append(values[::-1])
        # A head that isn't cut reads the stream as it is.
        self.projections.append(torch.eye(32).double() if width is None else torch.from_numpy(kept @ kept.T))

    def project(self, place, states):
        return [x @ self.projections[place] for x in states]

    def logits(self):
        with torch.no_grad():
            return torch.stack(literal(self.model, random_tokens(3, 12, seed=99), self.project))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("plan", [CUT, CUT_HEAD], ids=["blocks", "blocks and head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_model_is_the_dense_one_with_projections(family, plan, calibration):
    model = dense(family)
    expected = Literal(model, plan, TOKENS, calibration).logits()
    small = lw.compress(model, plan, TOKENS) if calibration == "sequential" else None
    small = small or lw.compress(model, plan, calibration=bases(family))
    assert error(logits(small), expected) < 1e-5
    assert error(logits(model), expected) > 0.1  # the cut is one that matters


@pytest.mark.parametrize("family", FAMILIES)
def test_eigenvalues_and_rotated_states_against_numpy(family):
    found = lw.calibrate(dense(family), TOKENS)  # anew: it gets hooks
    expected = Literal(dense(family), CUT, TOKENS, "shared")
    assert len(found.eigenvalues) == len(expected.eigenvalues) == (4 if family == "phi" else 7)
    for ours, numpys in zip(found.eigenvalues, expected.eigenvalues, strict=True):
        np.testing.assert_allclose(ours, numpys, atol=1e-6 * numpys[0])
    seen = []
    model, table = found.rotated, architecture(family)
    for reader in (*blocks(model), model.get_submodule(table.final_norm)):
        reader.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    logits(model, TOKENS)
    seen[-1] = seen[-1] @ found.head  # the head reads the stream as it is in the dense model
    for rows, numpys in zip(seen, expected.eigenvalues[:: len(table.steps)], strict=True):
        # In its principal components the stream is uncorrelated, and each has its eigenvalue as sum of squares.
        np.testing.assert_allclose(rows.T @ rows, np.diag(numpys), atol=1e-5 * numpys[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_pca_against_numpy(dtype):
    generator = torch.Generator().manual_seed(0)
    states = (torch.randn(6, 10, 8, generator=generator) * torch.arange(1, 9) + 2).to(dtype)
    keep = torch.rand(6, 10, generator=generator) > 0.3
    for center in (False, True):
        rows = states[keep].double().numpy()
        rows = rows - rows.mean(axis=1, keepdims=True) if center else rows
        values, vectors = np.linalg.eigh(rows.T @ rows)
        gram = Gram(center)
        gram.add(torch.where(keep[..., None], states, torch.nan)[:2], keep[:2])
        gram.add(states[2:], keep[2:])
        found, basis = gram.pca()
        assert found.dtype == basis.dtype == torch.float64
        np.testing.assert_allclose(found, values[::-1], rtol=1e-6, atol=1e-6 * values[-1])
        for width in range(1, 8):  # a component has no sign, what it projects on has none to lose
            kept = vectors[:, ::-1][:, :width]
            np.testing.assert_allclose(basis[:, :width] @ basis[:, :width].T, kept @ kept.T, atol=1e-5)


# What must not matter.


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_leaves_the_bases_as_those_of_the_windows_without_it(family, side, calibration):
    model, generator = dense(family), torch.Generator().manual_seed(2)
    mask = torch.zeros_like(TOKENS)
    for window, length in enumerate(LENGTHS):
        mask[window, slice(-length, None) if side == "left" else slice(length)] = 1
    padded = torch.where(mask == 1, TOKENS, torch.randint(96, TOKENS.shape, generator=generator))
    small = sliced(calibration, model, CUT, padded, mask=mask)
    expected = Literal(model, CUT, [row[keep == 1] for row, keep in zip(TOKENS, mask, strict=True)], calibration)
    assert error(logits(small), expected.logits()) < 1e-5
    without_mask = sliced(calibration, model, CUT, padded)
    assert error(logits(without_mask), expected.logits()) > 1e-2
    if calibration == "shared":
        other = torch.where(mask == 1, TOKENS, torch.randint(96, TOKENS.shape, generator=generator))
        pairs = zip(*(lw.calibrate(model, tokens, mask).eigenvalues for tokens in (padded, other)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_order_and_batches_of_the_windows_do_not_matter(family, calibration):
    model = dense(family)
    expected = logits(sliced(calibration, model, CUT, TOKENS))
    order = torch.randperm(len(TOKENS), generator=torch.Generator().manual_seed(0))
    for tokens, batch in ((TOKENS, 1), (TOKENS, 3), (TOKENS, 100), (TOKENS[order], 8)):
        assert error(logits(sliced(calibration, model, CUT, tokens, batch=batch)), expected) < 1e-5


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_the_sliced_float32_model(family, calibration):
    for dtype, within in ((torch.bfloat16, 0.1), (torch.float16, 0.0125)):
        model = uneven(family, dtype)
        small = sliced(calibration, model, CUT_HEAD, TOKENS)
        assert small.dtype == dtype and {p.dtype for p in small.parameters()} == {dtype}
        expected = logits(sliced(calibration, copy.deepcopy(model).float(), CUT_HEAD, TOKENS))
        assert error(logits(small).float(), expected) < within
