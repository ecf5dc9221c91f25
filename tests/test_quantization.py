"""Quantizers: what they do to one matrix, to a block, and to models of every kind of family."""

import copy
import sys

import gguf
import layerwise as lw
import pytest
import torch
from families import FAMILIES, logits, random_tokens, sliced, slices, tiny
from hypothesis import given
from hypothesis import strategies as st
from layerwise.backbone.structure import blocks, linears
from layerwise.quantization import GGUF, GPTQ, HQQ, RTN, PackedLinear, Quanto, packed
from layerwise.quantization.ggml import in_file
from layerwise.quantization.packed import dequantized, pack, unpack

TOKENS = random_tokens(16, 32)
EVEN = {family: {} if family == "opt" else {"intermediate_size": 64} for family in FAMILIES}  # groups of 16 divide it
QUANTIZERS = {"rtn": RTN(16), "quanto": Quanto(), "hqq": HQQ(16), "gguf": GGUF(), "gptq": GPTQ(16)}


def mixed(model, high=8, low=4):
    """The plan that lowers the middle block, and leaves the last one as it is."""
    return lw.plans.bits(lw.shape(model), [1, 0, 2], widths=(None, high, low), counts=(1, 1, 1))


def half(model):
    """The model with parameters in bfloat16, as loading gives it; casting it would round its rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def weights(seed=0, rows=24, columns=128):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


# Packing.


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_codes_are_what_they_were_after_packing(bits, count, seed):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    stored = pack(codes, bits)
    assert unpack(stored, bits, count).equal(codes)
    assert bits * count / 8 <= stored.numel() < bits * count / 8 + 3  # a started byte for each of three parts at most


def test_packing_by_hand():
    # 3 bits: the lower two of all codes, four to a byte, then the upper ones, eight to a byte.
    codes = torch.tensor([7, 1, 4, 0, 2], dtype=torch.uint8)
    assert pack(codes, 3).tolist() == [0b00_00_01_11, 0b10, 0b00101]
    assert pack(codes, 4).tolist() == [0x17, 0x04, 0x02]


# Round to nearest.


def rounded(weight, bits, group=64):
    return dequantized(RTN(group).matrix(weight, bits))


def test_rounding_by_hand():
    weight = torch.tensor([[-1.0, 0.3, 0.6, 2.0, 5.0]])
    # Groups of 4. The first spans -1 to 2 in 3 steps of 1. The second holds 5 alone, so it spans 0 to 5.
    assert rounded(weight, bits=2, group=4)[0] == pytest.approx([-1, 0, 1, 2, 5], rel=1e-3)
    # One bit: two levels. The step is 3, and the zero point of -1/3 rounds to the lower level: 0 and 3.
    assert rounded(weight[:, :4], bits=1, group=4).tolist() == [[0, 0, 0, 3]]


def test_groups_by_hand():
    weight = torch.tensor([[0.0, 1, 2, 3], [0, 10, 20, 30]])
    assert rounded(weight, bits=2, group="row").tolist() == weight.tolist()
    assert rounded(weight, bits=1, group=2).tolist() == [[0, 1, 3, 3], [0, 10, 30, 30]]
    # One scale for all: steps of 10.
    assert rounded(weight, bits=2, group="matrix").tolist() == [[0, 0, 0, 0], [0, 10, 20, 30]]


def test_rounding_errs_by_half_a_step_at_most():
    weight = weights(rows=8)
    groups = weight.reshape(8, 2, 64)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (rounded(weight, bits=4) - weight).reshape(8, 2, 64).abs().amax(-1)
    # The ends of a range may miss by another half step, because the zero point is rounded too.
    assert (error <= step * 1.01).all() and error.mean() < 0.8 * step.mean()


@pytest.mark.parametrize("quantizer", [RTN(), Quanto(), HQQ()], ids=lambda quantizer: quantizer.name)
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
def test_rows_of_equal_weights_stay_as_they_are(quantizer, value):
    weight = torch.full((3, 128), value)
    for bits in quantizer.widths:
        assert dequantized(quantizer.matrix(weight, bits)).flatten().tolist() == pytest.approx([value] * 384, rel=2e-3)


# The libraries.


@pytest.mark.parametrize("bits", Quanto.widths)
@pytest.mark.parametrize("columns", [128, 192, 256, 384])  # a whole row, and groups of 96 and of 128
def test_quanto_is_what_quanto_makes_of_a_linear_layer(bits, columns):
    from optimum import quanto

    weight = weights(columns=columns).half()
    layer = torch.nn.Sequential(torch.nn.Linear(columns, 24, dtype=torch.float16))
    layer[0].weight.data = weight.clone()
    quanto.quantize(layer, weights=quanto.qtypes[f"qint{bits}"])
    quanto.freeze(layer)
    ours, frozen = Quanto().matrix(weight.float(), bits), layer[0].weight
    if bits == 8:
        theirs = frozen._data.float() * frozen._scale.float()
    else:  # unpacked by hand: quanto's own way would compile a C++ extension, for a minute
        codes = torch.cat([(frozen._data._data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])
        theirs = (codes.float() * frozen._scale.float() - frozen._shift.float()).view(24, columns)
    step = ours.scale.float().max()
    assert (dequantized(ours) - theirs).abs().max() < 0.01 * step
    assert (theirs - weight.float()).abs().max() > 0.3 * step


@pytest.mark.parametrize("bits", HQQ.widths)
@pytest.mark.parametrize(("group", "options"), [(64, {}), ("row", {}), ("matrix", {"channel_wise": False})])
def test_hqq_is_what_hqq_makes_of_a_matrix(bits, group, options):
    from hqq.core.quantize import Quantizer

    weight, size = weights(), group if group == 64 else None
    theirs = Quantizer.dequantize(
        *Quantizer.quantize(weight, nbits=bits, group_size=size, axis=1, device="cpu", bitpack=False, **options)
    ).float()
    ours = HQQ(group).matrix(weight, bits)
    # Both keep zero points in float16, where those around 150 are whole eighths.
    assert (dequantized(ours) - theirs).abs().max() < 0.1 * ours.scale.float().max()


@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_1"), (5, "Q5_1"), (8, "Q8_0")])
def test_gguf_is_bit_for_bit_what_the_package_of_llama_cpp_makes_of_a_matrix(bits, kind):
    drawn = weights()
    drawn[0, :32], drawn[1, :32] = 0.1, 0  # groups without a range
    drawn[2] = (drawn[2] * 256).round() / 256  # halves between codes
    drawn[2, ::32] = 127 / 256
    drawn[3] *= 1e-6  # too small for scales in float16
    matrix = GGUF().matrix(drawn, bits)
    expected = gguf.quantize(drawn.numpy(), gguf.GGMLQuantizationType[kind])
    found, written = in_file(PackedLinear(matrix, bits))
    assert found.name == kind and (written == expected).all()
    assert written.nbytes == GGUF().stored(bits, *drawn.shape)
    again = gguf.dequantize(written, found)
    assert dequantized(matrix).equal(torch.from_numpy(again))


def test_gptq_loses_less_than_rounding_where_it_was_calibrated():
    model, text = tiny(**EVEN["llama"]), random_tokens(64, 32)
    plan = lw.plans.bits(lw.shape(model), [0, 0, 0], low_layers=3, low=3)
    by_gptq, by_rtn = (lw.compress(model, plan, text, quantizer=each) for each in (GPTQ(16), RTN(16)))
    assert lw.compare(by_gptq, model, text).kl_high < lw.compare(by_rtn, model, text).kl_low


# Models.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_compressed_model_has_its_bits_its_predicted_size_and_comes_back_equal(family, name, tmp_path):
    model, quantizer = half(tiny(family, **EVEN[family])), QUANTIZERS[name]
    plan, before = mixed(model), copy.deepcopy(model.state_dict())
    small = lw.compress(model, plan, TOKENS, quantizer=quantizer)
    assert all(before[key].equal(value) for key, value in model.state_dict().items())
    for block, layer in zip(blocks(small), plan.layers, strict=True):
        if name != "gptq":
            bits = {each.bits for each in packed(block).values()}
            assert bits == ({layer.bits} if layer.bits else set()), "blocks without bits stay as they are"
    size, predicted = lw.size(small), plan.predicted_bytes(lw.shape(model), quantizer.stored)
    assert size.parameters == lw.size(model).parameters == plan.predicted_parameters(lw.shape(model))
    assert size.bytes == pytest.approx(predicted, rel=1e-3)

    lw.save(small, tmp_path / "small")
    assert bytes_in(tmp_path / "small") == size.bytes
    back, _ = lw.load(tmp_path / "small", device="cpu")
    assert logits(back).equal(logits(small)) and not logits(back).equal(logits(model))
    assert lw.size(back) == size


def bytes_in(folder):
    """Bytes of all tensors in a folder's safetensors."""
    from safetensors.torch import load_file

    tensors = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("lowered", range(4))
def test_what_is_stored_is_what_average_bits_and_group_size_say(name, lowered, tmp_path):
    model, quantizer = half(tiny(hidden_size=64, intermediate_size=128)), QUANTIZERS[name]
    shape = lw.shape(model)
    plan = lw.plans.bits(shape, [3, 2, 1], low_layers=lowered, high=8, low=4)
    assert plan.average_bits == pytest.approx(8 - 4 * lowered / 3)
    lw.save(lw.compress(model, plan, TOKENS, quantizer=quantizer), tmp_path / "small")
    # By hand: codes, and 32 bits at most for each group of 16, in quanto of a row.
    matrices = sum(shape.linear_weights)
    least = (plan.average_bits * matrices + 16 * (shape.total_parameters - matrices)) / 8
    assert least <= bytes_in(tmp_path / "small") <= least + 32 / 16 * matrices / 8 + 16 * 21
    assert bytes_in(tmp_path / "small") == pytest.approx(plan.predicted_bytes(shape, quantizer.stored), rel=0.1)


def test_the_size_of_a_model_that_was_sliced_before_is_predicted():
    model = half(tiny(**EVEN["llama"]))
    narrow = lw.compress(model, slices(16, 32, 16), TOKENS)
    plan = mixed(narrow)
    size = lw.size(lw.compress(narrow, plan)).bytes
    assert plan.predicted_bytes(lw.shape(narrow)) == pytest.approx(size, rel=1e-3)
    assert plan.effective_bits(lw.shape(narrow)) > 0


def test_what_generation_was_told_comes_back(tmp_path):
    model = tiny()
    told = model.generation_config
    told.eos_token_id, told.do_sample, told.top_k = [3, 5], True, 7
    small = lw.save(lw.compress(model, mixed(model)), tmp_path / "small")
    back = lw.load(small, device="cpu")[0].generation_config
    assert (back.eos_token_id, back.top_k) == ([3, 5], 7)
    (small / "generation_config.json").write_text("{")
    with pytest.raises(lw.models.DamagedModel, match=r"generation_config.json"):
        lw.load(small, device="cpu")


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_a_sliced_model_is_quantized_in_the_widths_of_its_slices(name, tmp_path):
    model = half(tiny(**EVEN["llama"]))
    plan = mixed(model) | slices(16, 32, 16)
    small = lw.compress(model, plan, TOKENS, quantizer=QUANTIZERS[name])
    assert plan.predicted_bytes(lw.shape(model), QUANTIZERS[name].stored) == pytest.approx(
        lw.size(small).bytes, rel=1e-3
    )
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))
    only_sliced = sliced("sequential", model, slices(16, 32, 16), TOKENS)
    assert not logits(small).equal(logits(only_sliced)) and (logits(small) - logits(only_sliced)).abs().mean() < 0.5


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_compressed_model_generates_the_same_with_and_without_its_cache(name):
    model = tiny(**EVEN["llama"])
    small = lw.compress(model, mixed(model), TOKENS, quantizer=QUANTIZERS[name])
    settings = {
        "attention_mask": torch.ones(2, 5).long(),
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
    }
    texts = [small.generate(TOKENS[:2, :5], use_cache=cache, **settings) for cache in (True, False)]
    assert texts[0].equal(texts[1])


def test_casting_a_model_leaves_its_codes_and_scales_alone():
    model = tiny()
    small = lw.compress(model, mixed(model), quantizer="rtn")
    layer = next(iter(packed(small).values()))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    small.to(torch.bfloat16)
    assert small.dtype == torch.bfloat16 and layer.scale.dtype == torch.float16
    assert all(getattr(layer, name).equal(value) for name, value in before.items())
    assert layer(torch.ones(1, layer.in_features, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_in_place_the_model_itself_is_changed():
    model = tiny()
    assert lw.compress(model, mixed(model), inplace=True) is model and packed(model)


def test_a_function_of_ones_own_takes_the_place_of_a_quantizer():
    def signs(model, bits, tokens=None):
        for block, width in zip(blocks(model), bits, strict=True):
            for linear in linears(block).values() if width == 1 else ():
                linear.weight.data = linear.weight.sign() * linear.weight.abs().mean()
        return model

    model = tiny()
    plan = lw.plans.bits(lw.shape(model), [0, 1, 2], low_layers=1, high=None, low=1)
    small = lw.compress(model, plan, quantizer=signs)
    assert linears(blocks(small)[0])["mlp.up_proj"].weight.abs().unique().numel() == 1
    assert blocks(small)[1].mlp.up_proj.weight.equal(blocks(model)[1].mlp.up_proj.weight)


def test_transformers_itself_loads_what_gptq_made_and_vllm_could(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig
    from transformers import AutoModelForCausalLM

    model = tiny(**EVEN["llama"])
    small = lw.compress(model, mixed(model), TOKENS, quantizer=GPTQ(16, symmetric=True))
    lw.save(small, tmp_path / "small")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert logits(plain).equal(logits(small))
    config = QuantizationConfig.model_validate(plain.config.quantization_config.quantization_config.model_dump())
    found = {group.weights.num_bits: group for group in config.config_groups.values()}
    assert set(found) == {4, 8}
    assert all(group.weights.symmetric and group.format == "pack-quantized" for group in found.values())


def test_plain_from_pretrained_refuses_what_it_would_fill_with_random_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny()
    lw.save(lw.compress(model, mixed(model)), tmp_path / "small")
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "small")


# Bad input.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, path = tiny(), tmp_path_factory.mktemp("models") / "small"
    return lw.save(lw.compress(model, mixed(model)), path)


@pytest.mark.parametrize("where", [0.001, 0.5, 0.999])
def test_a_damaged_checkpoint_is_an_error(folder, where, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "packed.safetensors"
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(lw.models.DamagedModel, match="damaged"):
        lw.load(tmp_path / "copy")
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(lw.models.DamagedModel, match="not all of it is there"):
        lw.load(tmp_path / "copy")
    file.unlink()
    with pytest.raises(lw.models.DamagedModel, match=r"has no packed.safetensors"):
        lw.load(tmp_path / "copy")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bad_weights_and_widths_are_errors_that_change_nothing(name):
    model, quantizer = tiny(**EVEN["llama"]), QUANTIZERS[name]
    strange = lw.Plan((lw.Layer(bits=16), lw.Layer(bits=8), lw.Layer()), 32)
    with pytest.raises(ValueError, match=f"{name} has no 16 bits; it has 8, "):
        lw.compress(model, strange, TOKENS, quantizer=quantizer)
    blocks(model)[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"{name}, block 1, mlp.up_proj: the weights hold NaN"):
        lw.compress(model, mixed(model), TOKENS, quantizer=quantizer, inplace=True)
    assert all(before[key].nan_to_num().equal(value.nan_to_num()) for key, value in model.state_dict().items())


@pytest.mark.parametrize("quantizer", [HQQ(24), GPTQ(24)], ids=lambda quantizer: quantizer.name)
def test_a_group_that_does_not_fit_names_the_matrix(quantizer):
    model = tiny(**EVEN["llama"])
    with pytest.raises(
        ValueError, match=r"block 0, self_attn.q_proj: rows of 32 weights can't be cut into groups of 24"
    ):
        lw.compress(model, mixed(model), TOKENS, quantizer=quantizer)


@pytest.mark.parametrize("group", [0, -1, 2.5, True, "rows"])
def test_a_group_that_is_none_is_an_error(group):
    with pytest.raises(ValueError, match='group must be a number of weights, "row" or "matrix"'):
        lw.compress(tiny(), mixed(tiny()), quantizer=RTN(group))


def test_gptq_wants_text_and_names_are_checked():
    model = tiny()
    with pytest.raises(ValueError, match="gptq needs calibration text"):
        lw.compress(model, mixed(model), quantizer="gptq")
    with pytest.raises(ValueError, match="unknown quantizer 'awq': there is rtn, quanto, hqq, gguf, gptq"):
        lw.compress(model, mixed(model), quantizer="awq")
    with pytest.raises(ValueError, match="sets outliers, and rtn keeps none"):
        layers = (lw.Layer(bits=4, outliers=0.01),) * 3
        lw.compress(model, lw.Plan(layers, 32), quantizer="rtn")
    with pytest.raises(ValueError, match="bits must be 3 widths"):
        RTN()(model, [4, 4])


@pytest.mark.parametrize(
    ("name", "module"), [("quanto", "optimum.quanto"), ("hqq", "hqq.core.quantize"), ("gptq", "llmcompressor")]
)
def test_a_missing_package_says_what_to_install(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="install it with pip install"):
        lw.compress(tiny(**EVEN["llama"]), mixed(tiny()), TOKENS, quantizer=QUANTIZERS[name])


def test_a_packed_layer_says_what_it_is():
    layer = PackedLinear(RTN(16).matrix(weights(), 3), 3)
    assert "in_features=128, out_features=24, bits=3, group=16" in repr(layer)


# What users do with the result.


@pytest.mark.parametrize("name", QUANTIZERS)
def test_copies_are_copies_and_a_model_can_be_saved_again_and_again(name, tmp_path):
    model = tiny(**EVEN["llama"])
    small = lw.compress(model, mixed(model), TOKENS, quantizer=QUANTIZERS[name])
    expected = logits(small)
    other = copy.deepcopy(small)
    for parameter in other.parameters():
        if parameter.is_floating_point():
            parameter.data.neg_()
    assert not logits(other).equal(expected), "the copy computes with the weights of its original"
    lw.save(other, tmp_path / "other")
    assert logits(lw.load(tmp_path / "other", device="cpu")[0]).equal(logits(other)), "the original was saved"
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data.zero_()
    for i in range(3):
        lw.save(small, tmp_path / str(i))
        assert logits(small).equal(expected), "saving left its mark"
        small, _ = lw.load(tmp_path / str(i), device="cpu")
        assert logits(small).equal(expected)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_has_few_bits_already_is_refused(name):
    model = tiny(**EVEN["llama"])
    small = lw.compress(model, mixed(model), TOKENS, quantizer=QUANTIZERS[name])
    for again in QUANTIZERS.values():
        with pytest.raises(ValueError, match="have few bits already"):
            lw.compress(small, mixed(model, 4, 2), TOKENS, quantizer=again)


def test_what_needs_dense_weights_says_so():
    model = tiny()
    small = lw.compress(model, mixed(model))
    for asked in (lw.shape, lw.scores.zd):
        with pytest.raises(ValueError, match="have few bits already"):
            asked(small)


def test_loading_in_another_dtype_keeps_the_precision_of_what_is_no_weight(tmp_path):
    model = tiny()
    lw.save(lw.compress(model, mixed(model)), tmp_path / "small")
    back, _ = lw.load(tmp_path / "small", device="cpu", dtype=torch.bfloat16)
    assert back.dtype == torch.bfloat16 and back.model.rotary_emb.inv_freq.dtype == torch.float32


def test_an_embedded_model_is_saved_at_its_own_size(tmp_path):
    model, _ = lw.load("embedded/6L", device="cpu", dtype=torch.bfloat16)
    shape = lw.shape(model)
    plan = lw.plans.bits(shape, range(shape.L), low_layers=3, high=4, low=2)
    small = lw.compress(model, plan, quantizer="hqq")
    lw.save(small, tmp_path / "small")
    predicted = plan.predicted_bytes(shape, HQQ().stored)
    assert bytes_in(tmp_path / "small") == predicted == lw.size(lw.load(tmp_path / "small", device="cpu")[0]).bytes


def test_a_damaged_configuration_is_an_error(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(file.read_text().replace('"group": 64', '"group": 32').replace('"group": 32', '"group": 16'))
    with pytest.raises(lw.models.DamagedModel, match="damaged"):
        lw.load(tmp_path / "copy")


def test_weights_too_large_for_float16_are_an_error():
    model = tiny()
    blocks(model)[1].mlp.up_proj.weight.data[0, 0] = 1e7
    with pytest.raises(ValueError, match=r"rtn, block 1, mlp.up_proj: the weights are too large for scales in float16"):
        lw.compress(model, mixed(model, 2, 2), quantizer=RTN(16))


def test_gptq_gives_each_block_its_bits():
    model = tiny(**EVEN["llama"])
    small = lw.compress(model, mixed(model), TOKENS, quantizer=GPTQ(16))
    found = [
        {linear.quantization_scheme.weights.num_bits for linear in linears(block).values()}
        for block in list(blocks(small))[:2]
    ]
    assert found == [{8}, {4}]
    kept = zip(blocks(small)[2].parameters(), blocks(model)[2].parameters(), strict=True)
    assert all(ours.equal(dense) for ours, dense in kept)


def test_gptq_gives_each_matrix_its_bits(tmp_path):
    model = half(tiny(**EVEN["llama"]))
    layers = (
        lw.Layer(bits=8, matrices={"mlp.up_proj": 3, "self_attn.q_proj": 2}),
        lw.Layer(matrices={"mlp.down_proj": 4, "mlp.up_proj": 3}),
        lw.Layer(bits=2),
    )
    plan = lw.Plan(layers, 32)
    small = lw.compress(model, plan, TOKENS, quantizer=GPTQ(16))
    for block, dense, layer in zip(blocks(small), blocks(model), layers, strict=True):
        for path, linear in linears(block).items():
            scheme = getattr(linear, "quantization_scheme", None)
            assert (scheme and scheme.weights.num_bits) == layer.bits_of(path), path
            assert scheme or linear.weight.equal(dense.get_submodule(path).weight), path
    assert lw.size(small).bytes == plan.predicted_bytes(lw.shape(model), GPTQ(16).stored)
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))
    with pytest.raises(ValueError, match="gptq leaves embedding and head as they are"):
        lw.compress(model, lw.Plan(layers, 32, head_bits=8), TOKENS, quantizer=GPTQ(16))


def test_padding_cannot_be_left_out_by_gptq():
    model = tiny(**EVEN["llama"])
    with pytest.raises(ValueError, match="gptq can't leave padding out"):
        lw.compress(model, mixed(model), TOKENS, quantizer=GPTQ(16), mask=torch.ones_like(TOKENS))
