"""The quantizer that keeps outliers: arithmetic against literal computations, its layers on disk, what it refuses."""

import itertools

import layerwise as lw
import numpy as np
import pytest
import torch
from families import logits, random_tokens, slices, tiny, uneven
from layerwise.backbone.structure import blocks, linears
from layerwise.plans import Layer, Plan
from layerwise.quantization import Outliers, packed
from layerwise.quantization.rounding import gain, inverse_factor, rounded

TOKENS = random_tokens(16, 24)


def planned(*bits, outliers=(None, None, None)):
    """A plan for a tiny model."""
    return Plan(tuple(Layer(bits=b, outliers=share) for b, share in zip(bits, outliers, strict=True)), 32)


def matrix(rows, columns, seed=0):
    """Weights with a few far off, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) ** 3


def correlated(columns, seed=0, n=400):
    """Inputs `[n, columns]` that say much of one another."""
    generator = torch.Generator().manual_seed(seed)
    few, mixed, own = (
        torch.randn(size, generator=generator) for size in ((n, columns // 4), (columns // 4, columns), (n, columns))
    )
    return few @ mixed + 0.3 * own


def none(weight):
    return torch.zeros_like(weight, dtype=torch.bool)


def inputs(block_of, model, tokens=TOKENS):
    """What enters each linear layer of a block on these tokens, `[n * length, columns]`, by path."""
    found, handles = {}, []
    for path, linear in linears(block_of).items():
        hook = lambda _, args, path=path: found.update({path: args[0].flatten(0, -2)})  # noqa: E731
        handles.append(linear.register_forward_pre_hook(hook))
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    return found


# Arithmetic of one matrix.


def levels_of(values, group=16):
    """All that 3 bits can stand for, `[8, n]`, where sixteen numbers at a time share a float16 scale and zero point."""
    found = []
    for start in range(0, len(values), group):
        part = values[start : start + group]
        scale = np.float16((part.max() - part.min()) / np.float32(7))
        zero = np.float16(-part.min() / np.float32(scale))
        steps = (np.arange(8, dtype=np.float32) - np.float32(zero)) * np.float32(scale)
        found += [steps] * len(part)
    return np.stack(found, 1)


def literal(weight, bits, group):
    """Each group of a row at that pair of quantized scale and zero point which brings it nearest to its weights."""
    weight, top = weight.numpy(), 2**bits - 1
    result = np.empty_like(weight)
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scales, zeros = levels_of((high - low) / top), levels_of(-low / ((high - low) / top))
        for row, values in enumerate(part):
            candidates = []
            for scale, zero in itertools.product(scales[:, row], zeros[:, row]):
                codes = np.clip(np.round(values / (scale if scale > 0 else 1) + zero), 0, top)
                candidates.append((codes - zero) * scale)
            costs = [np.square(candidate - values).sum() for candidate in candidates]
            result[row, start : start + group] = candidates[int(np.argmin(costs))]
    return torch.from_numpy(result)


@pytest.mark.parametrize("bits", Outliers.widths)
def test_without_outliers_and_correlations_it_is_rounding_with_quantized_scales(bits):
    weight = matrix(20, 40)  # the last group of rows and that of columns are short
    layer = rounded(weight.clone(), none(weight), torch.eye(40), bits, 16)
    assert torch.allclose(layer.weights(), literal(weight, bits, 16), atol=1e-5)
    assert len(layer.values) == 0


def test_bits_per_weight_counted_by_hand():
    weight = matrix(32, 48)
    mask = torch.arange(weight.numel()).view_as(weight) % 50 == 0  # 31 weights, 2 %
    layer = rounded(weight.clone(), mask, torch.eye(48), 3, 16)
    by_hand = {
        "codes": 32 * 48 * 3 / 8,
        "statistics": 2 * 32 * 3 * 3 / 8,  # a scale and a zero point for each of 3 groups of 32 rows, at 3 bits
        "scale": 2 * 3 * 2 * 2,  # for each of 3 groups of 2 times 16 rows, for scales and for zero points, 16 bits
        "zero": 2 * 3 * 2 * 2,
        "counts": 32 * 2,
        "columns": 31 * 2,
        "values": 31 * 2,
    }
    assert {name: tensor.nbytes for name, tensor in layer.named_buffers()} == by_hand
    assert Outliers().stored(3, 32, 48, outliers=0.02) == sum(by_hand.values()) == 884
    # Without the 16 bits per row, the paper's own count: b + 2 * 3 / group + 64 / (group * 16) + 32 * share.
    assert 8 * (884 - 64) / weight.numel() == pytest.approx(3 + 6 / 16 + 64 / 256 + 32 * 31 / 1536)


def test_outliers_keep_their_values_and_stay_out_of_the_range_of_their_group():
    weight = matrix(32, 48).clamp(-1, 1)
    weight[5, 20] = 30.0
    mask = none(weight)
    kept, spoilt = (rounded(weight.clone(), mask | only, torch.eye(48), 4, 16) for only in (weight > 1, mask))
    assert kept.weights()[5, 20] == 30.0 and kept.counts.int().tolist() == [int(i == 5) for i in range(32)]
    group = slice(16, 32)
    error, spoilt_error = ((layer.weights() - weight)[5, group].abs().max() for layer in (kept, spoilt))
    assert error < 0.2 and spoilt_error > 0.5


def test_inverse_factor_is_that_of_the_damped_products():
    products = correlated(24).double().T @ correlated(24).double()
    damped = products + 0.01 * products.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    upper = inverse_factor(products.float()).double()
    assert torch.allclose(upper.T @ upper, damped.inverse(), rtol=1e-3, atol=1e-7)
    assert upper.tril(-1).abs().max() == 0
    assert inverse_factor(torch.zeros(3, 3)).equal(torch.eye(3))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("columns", [48, 300])  # within one strip of columns, and over several
def test_error_feedback_lowers_the_error_of_the_output(bits, columns):
    for seed in range(3):
        weight, x = matrix(24, columns, seed), correlated(columns, seed)
        plain = rounded(weight.clone(), none(weight), torch.eye(columns), bits, 16)
        fed_back = rounded(weight.clone(), none(weight), inverse_factor(x.T @ x), bits, 16)
        errors = [(x @ (layer.weights() - weight).T).square().sum() for layer in (fed_back, plain)]
        assert errors[0] < 0.5 * errors[1]


def test_gain_is_what_leaving_a_weight_out_saves():
    weight = matrix(6, 21)
    variance = torch.linspace(0.5, 2, 21)

    def cost(values, ranged, at):
        """Of a row of values, where `ranged` are those that the levels must reach."""
        low, high = min(ranged.min(), 0), max(ranged.max(), 0)
        scale = (high - low) / 3
        rounded_ = ((values / scale - low / scale).round().clamp(0, 3) + low / scale) * scale
        return ((values - rounded_).square() / variance[at]).sum()

    found = gain(weight, variance, 2, 8)
    for row, column in itertools.product(range(6), range(21)):
        at = torch.arange(21)[column // 8 * 8 : column // 8 * 8 + 8]
        others = at[at != column]
        whole = cost(weight[row, at], weight[row, at], at)
        assert found[row, column] == pytest.approx(
            float(whole - cost(weight[row, others], weight[row, others], others)), abs=1e-4
        )


# What it does to a model.


def test_each_block_is_fed_by_those_before_it_quantized():
    model = uneven("llama", torch.float32)
    both = lw.compress(model, planned(2, 2, None), TOKENS, quantizer="outliers")
    first = lw.compress(model, planned(2, None, None), TOKENS, quantizer="outliers")
    then = Outliers()(first, [None, 2, None], TOKENS)
    apart = lw.compress(model, planned(None, 2, None), TOKENS, quantizer="outliers")
    assert logits(then).equal(logits(both)) and not any("layers.2" in path for path in packed(both))
    own, fed = (packed(made)["model.layers.1.mlp.down_proj"].weights() for made in (apart, both))
    assert not own.equal(fed)


def test_more_outliers_lower_the_error_of_the_outputs():
    errors = []
    for seed in range(4):
        model = tiny(seed=seed)
        x, dense = inputs(blocks(model)[0], model), linears(blocks(model)[0])
        for share in (0.0, 0.01, 0.05, 0.2):
            plan = planned(2, None, None, outliers=(share, None, None))
            done = packed(blocks(lw.compress(model, plan, TOKENS, quantizer="outliers"))[0])
            changes = {path: done[path].weights() - dense[path].weight for path in dense}
            errors.append(sum((x[path] @ changes[path].T).square().sum().item() for path in dense))
    means = np.array(errors).reshape(4, 4).mean(0)
    assert (np.diff(means) < 0).all() and means[-1] < 0.6 * means[0]


def test_weights_are_kept_for_their_effect_and_not_for_their_size():
    model = tiny()
    block = blocks(model)[0]
    block.post_attention_layernorm.weight.data[16:] = 1e-3  # so that what these columns hold is all but unheard
    for path in ("mlp.gate_proj", "mlp.up_proj"):
        weight = block.get_submodule(path).weight.data
        weight[:, 16:] *= 3
        assert weight[:, 16:].abs().mean() > 2 * weight[:, :16].abs().mean()
    small = lw.compress(model, planned(3, None, None, outliers=(0.05, None, None)), TOKENS, quantizer="outliers")
    done = packed(blocks(small)[0])
    columns = torch.cat([done[f"mlp.{name}_proj"].columns.int() for name in ("gate", "up")])
    assert len(columns) > 50 and (columns < 16).all()


def test_the_share_is_one_of_the_block_and_goes_where_it_helps():
    model = tiny()
    blocks(model)[0].mlp.down_proj.weight.data *= 10  # ten times the effect on the stream
    small = lw.compress(model, planned(3, None, None, outliers=(0.03, None, None)), TOKENS, quantizer="outliers")
    done = packed(blocks(small)[0])
    total = sum(layer.in_features * layer.out_features for layer in done.values())
    assert sum(len(layer.values) for layer in done.values()) == round(0.03 * total)
    down = done["mlp.down_proj"]
    assert len(down.values) / down.codes.numel() > 0.1 > len(done["mlp.up_proj"].values) / total


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "opt"])
def test_saved_models_come_back_equal_and_as_large_as_predicted(family, tmp_path):
    model = uneven(family, torch.float32, **({"tie_word_embeddings": True} if family == "qwen2" else {}))
    plan = planned(4, 2, 3, outliers=(None, 0.05, 0.0))
    small = lw.compress(model, plan, TOKENS, quantizer="outliers")
    loaded, _ = lw.load(lw.save(small, tmp_path / "small"), device="cpu")
    assert logits(loaded).equal(logits(small)) and lw.size(loaded) == lw.size(small)
    assert lw.size(small).parameters == lw.size(model).parameters
    assert abs(logits(small) - logits(model)).mean() < 0.5 * abs(logits(model)).mean()
    tensors = sum(tensor.nbytes for tensor in {id(t): t for t in small.state_dict(keep_vars=True).values()}.values())
    assert lw.size(small).bytes == tensors
    assert plan.predicted_bytes(lw.shape(model), Outliers().stored) == pytest.approx(tensors, rel=0.001)
    bits = [plan.effective_bits(lw.shape(model), Outliers(share=share).stored) for share in (0.01, 0.06)]
    assert bits[1] - bits[0] == pytest.approx(32 * 0.05 / 3, rel=0.01)  # of the one block that sets no share


def test_packed_layers_keep_their_format_when_the_model_is_cast():
    small = lw.compress(tiny(), planned(3, 3, 3), TOKENS, quantizer="outliers")
    before = lw.size(small).bytes
    layer = packed(small)["model.layers.1.mlp.up_proj"]
    weights, dense = layer.weights(), layer.dense(torch.float64)
    assert dense.weight.equal(weights.double())
    cast = packed(small.double().bfloat16())["model.layers.1.mlp.up_proj"]
    assert cast.weights().equal(weights) and {cast.columns.dtype, cast.counts.dtype} == {torch.uint16}
    assert logits(small).dtype == torch.bfloat16 and lw.size(small).bytes < before


def test_rows_of_zeros_or_of_one_value_stay_what_they_are():
    model = tiny()
    weight = blocks(model)[1].mlp.up_proj.weight.data
    weight[3], weight[4] = 0.0, 0.25
    small = lw.compress(model, planned(4, 4, 4), TOKENS, quantizer="outliers")
    found = packed(small)["model.layers.1.mlp.up_proj"].weights()
    assert (found[3] == 0).all() and (found[4] - 0.25).abs().max() < 0.03
    blocks(model)[1].mlp.up_proj.weight.data.zero_()  # then what enters the layer after it is zero too
    small = lw.compress(model, planned(4, 4, 4), TOKENS, quantizer="outliers")
    assert logits(small).isfinite().all() and (packed(small)["model.layers.1.mlp.up_proj"].weights() == 0).all()


def test_sliced_models_and_groups_of_any_size():
    model = tiny()
    cut = lw.compress(model, slices(20, 29, 11) | planned(8, 8, 8), TOKENS, quantizer=Outliers(group=7, share=0))
    sliced = lw.compress(model, slices(20, 29, 11), TOKENS)
    assert (logits(cut) - logits(sliced)).norm() < 0.05 * logits(sliced).norm()


# Bad input.


def test_bad_input_is_refused_before_anything_is_changed():
    model = tiny()
    weights = blocks(model)[2].mlp.up_proj.weight

    def refused(match, bits=(2, 2, 2), tokens=TOKENS, **options):
        with pytest.raises(ValueError, match=match):
            Outliers()(model, list(bits), tokens, **options)

    refused("outliers has no 5 bits; it has 8, 4, 3, 2", bits=(5, 2, 2))
    refused("bits must be 3 widths", bits=(2, 2))
    refused("needs calibration text", tokens=None)
    refused("outside the vocabulary", tokens=TOKENS + 90)
    refused("outliers must be 3 shares", outliers=[0.1])
    refused("outliers of block 1 must be a share .* not 1.5", outliers=[None, 1.5, None])
    refused("block 2 keeps outliers, and has no bits", bits=(2, 2, None), outliers=[0.1, 0.1, 0.1])
    weights.data[0, 0] = float("nan")
    refused("outliers, block 2, mlp.up_proj: the weights hold NaN")
    assert not packed(model)
    with pytest.raises(ValueError, match="needs calibration text"):
        lw.compress(tiny(), planned(2, 2, 2), quantizer="outliers")
    with pytest.raises(ValueError, match=r"keeps none: take lw.quantization.Outliers\(\)"):
        lw.compress(tiny(), planned(2, 2, 2, outliers=(0.1, None, None)))


def test_inputs_that_overflow_and_rows_too_long_for_the_indices_are_named():
    model = tiny()
    blocks(model)[0].input_layernorm.weight.data *= 1e30
    with pytest.raises(ValueError, match="outliers, block 0, self_attn.q_proj: what enters it is NaN or infinite"):
        lw.compress(model, planned(2, 2, 2), TOKENS, quantizer="outliers")
    wide = tiny(intermediate_size=2**16)
    with pytest.raises(ValueError, match="block 0, mlp.down_proj: rows of 65536 weights: indices of 16 bits reach"):
        lw.compress(wide, planned(2, 2, 2), TOKENS, quantizer="outliers")
    model = tiny()
    blocks(model)[0].mlp.up_proj.weight.data[0, 0] = 1e7
    with pytest.raises(ValueError, match="outliers, block 0, mlp.up_proj: weights are too large for float16"):
        lw.compress(model, planned(2, 2, 2), TOKENS, quantizer="outliers")


@pytest.mark.parametrize("settings", [{"group": 0}, {"group": "row"}, {"share": 1.0}, {"share": -0.1}, {"share": True}])
def test_settings_that_no_matrix_can_have(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        Outliers(**settings)


def test_a_quantizer_of_ones_own_gets_the_outliers_of_the_plan(tmp_path):
    got = []

    class Own(lw.quantization.RTN):
        def __call__(self, model, bits, tokens=None, outliers=None):
            got.append(outliers)
            return super().__call__(model, bits, tokens)

    plan = planned(2, 2, 2, outliers=(0.1, None, None))
    for inplace in (False, True):
        lw.compress(tiny(), plan, quantizer=Own(), inplace=inplace)
    assert got == [[0.1, None, None]] * 2
    with pytest.raises(ValueError, match="needs the whole model in memory"):
        lw.compress_checkpoint(lw.save(tiny(), tmp_path / "dense"), tmp_path / "small", plan, quantizer=Own())


def test_only_a_quantizer_that_counts_outliers_predicts_their_size():
    shape, plan = lw.shape(tiny()), planned(2, 2, 2, outliers=(0.1, None, None))
    for stored in (None, lw.quantization.RTN().stored):
        with pytest.raises(ValueError, match="the plan keeps outliers: give `stored` of their quantizer"):
            plan.predicted_bytes(shape, stored)


def test_each_matrix_has_its_bits_and_outliers_are_of_those_that_get_any(tmp_path):
    model = tiny()
    layers = (
        Layer(bits=4, matrices={"mlp.up_proj": 2}, outliers=0.0),
        Layer(matrices={"mlp.up_proj": 3, "mlp.down_proj": 8}, outliers=0.0991),  # no whole number in a matrix
        Layer(),
    )
    plan, quantizer = Plan(layers, 32), Outliers()
    small = lw.compress(model, plan, TOKENS, quantizer=quantizer)
    found = packed(small)
    assert {path.partition("layers.")[2]: layer.bits for path, layer in found.items()} == {
        f"{i}.{path}": bits
        for i, layer in enumerate(layers)
        for path in linears(blocks(model)[i])
        if (bits := layer.bits_of(path)) is not None
    }
    kept = sum(len(found[f"model.layers.1.mlp.{name}"].values) for name in ("up_proj", "down_proj"))
    assert kept == round(0.0991 * 2 * 32 * 56) == 2 * round(0.0991 * 32 * 56) - 1
    assert lw.size(small).bytes == plan.predicted_bytes(lw.shape(model), quantizer.stored)
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))
    with pytest.raises(ValueError, match="outliers leaves embedding and head as they are"):
        lw.compress(model, Plan(layers, 32, embedding_bits=8), TOKENS, quantizer=quantizer)


def test_one_width_by_path_is_that_width_of_the_block():
    model = tiny()
    by_path = Layer(matrices=dict.fromkeys(linears(blocks(model)[0]), 3))
    small, same = (
        lw.compress(model, Plan((each,) * 3, 32), TOKENS, quantizer="outliers") for each in (by_path, Layer(bits=3))
    )
    assert logits(small).equal(logits(same))
