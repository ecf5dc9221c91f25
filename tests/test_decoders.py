"""Families that slicing doesn't know: all else works for them, held against literal computations."""

import copy

import layerwise as lw
import numpy as np
import pytest
import torch
from families import DECODERS, GROUPED, MIXTURES, config, logits, random_tokens, tiny
from layerwise import damage
from layerwise.backbone.architectures import UnsupportedArchitecture
from layerwise.backbone.passes import entering
from layerwise.backbone.structure import blocks, blocks_path, check_decoder, experts, linears, weight_matrix
from layerwise.plans import Layer, Plan
from layerwise.quantization import HQQ, Outliers, quantizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = random_tokens(4, 12)
DENSE = [family for family in DECODERS if family not in MIXTURES]
BITS = Plan((Layer(bits=8), Layer(), Layer(bits=3)), 32)
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


MINICPM = GROUPED | {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
}


# No row of DECODERS: without its one block of attention, transformers can't tell the length of its cache.
LFM2 = GROUPED | {"layer_types": ["conv", "full_attention", "conv"]}


def without(*gone):
    return Plan(tuple(Layer(keep=i not in gone) for i in range(3)), 32)


def hidden(output):
    return output[0] if isinstance(output, tuple) else output


def sees(**changes):
    """A tiny Gemma 3 that sees images too: its configuration holds that of a decoder."""
    vision = VISION | {"image_size": 28, "patch_size": 14}
    text = config("gemma3_text", initializer_range=0.15, **changes).to_dict()
    content = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", **content)).eval()


def made(family):
    return sees() if family == "gemma3" else tiny(family)


EVERY = [*DECODERS, "gemma3"]


@pytest.mark.parametrize("family", EVERY)
def test_lim_is_that_of_a_double_loop(family):
    model, seen = made(family), {}
    for i, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda _, args, y, i=i: seen.update({i: (args[0], hidden(y))}))
    logits(model, TOKENS)
    cosines = [
        [F.cosine_similarity(x.double(), y.double(), dim=0).item() for x, y in zip(xs, ys, strict=True)]
        for xs, ys in ((x.flatten(0, 1), y.flatten(0, 1)) for x, y in (seen[i] for i in range(3)))
    ]
    assert lw.scores.lim(model, TOKENS, batch=3) == pytest.approx(-np.mean(cosines, axis=1), abs=1e-6)


@pytest.mark.parametrize("family", EVERY)
def test_zd_counts_every_matrix_that_is_multiplied_with(family):
    """By what the modules' own names say: all matrices of a block but routers; no norms, biases, positions."""
    model, expected = made(family), []
    for block in blocks(model):
        names = {name: p for name, p in block.named_parameters() if p.ndim > 1 and not name.endswith("bias")}
        weights = [p for name, p in names.items() if not name.endswith(("router.weight", "mlp.gate.weight"))]
        pool = torch.cat([p.detach().double().flatten() for p in weights]).numpy()
        expected.append(-np.mean((pool - pool.mean()) / pool.std() > 1))
    assert lw.scores.zd(model) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("family", EVERY)
def test_a_shape_is_that_of_the_model_and_says_why_it_cannot_be_sliced(family):
    model = made(family)
    model.config.dtype = model.dtype
    shape = lw.shape(model)
    assert shape == lw.shape(model.config) and (shape.L, shape.D) == (3, 32)
    assert shape.total_parameters == sum(p.numel() for p in model.parameters())
    sizes = [(linear.rows, linear.columns) for linear in shape.matrices[1]]
    assert sizes == [tuple(weight_matrix(linear).shape) for linear in linears(blocks(model)[1]).values()]
    plan = lw.plans.dynamic_slices(shape, [1, 2, 3], 0.25)
    for refused in (plan.predicted_parameters, plan.predicted_bytes):
        with pytest.raises(ValueError, match=f"'{family}' can't be sliced"):
            refused(shape)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    for refused in (lambda: lw.compress(model, plan, TOKENS), lambda: lw.calibrate(model, TOKENS)):
        with pytest.raises(UnsupportedArchitecture, match=f"'{family}' can't be sliced"):
            refused()


# What a configuration says by block: numbers of blocks, and an entry for each.
NUMBERED = ("mlp_only_layers", "moe_layers")
LISTED = ("layer_types", "no_rope_layers")


def literally(model, gone):
    """A new model of a smaller configuration, which is written by hand, with the weights of the blocks kept."""
    kept, text = [i for i in range(3) if i not in gone], model.config.get_text_config().to_dict()
    numbered = {name: [kept.index(i) for i in text[name] if i in kept] for name in NUMBERED if text.get(name)}
    listed = {name: [text[name][i] for i in kept] for name in LISTED if text.get(name)}
    less = text | numbered | listed | {"num_hidden_layers": len(kept)}
    if "attention_types" in text:
        kinds = less.pop("attention_layers")
        less |= {"attention_types": [[[kinds[i]], 1] for i in kept], "num_layers": len(kept)}
    whole = less if text["model_type"] == model.config.model_type else model.config.to_dict() | {"text_config": less}
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model(**whole)).eval()
    path, state = f"{blocks_path(model)}.", {}
    for name, tensor in model.state_dict().items():
        number, _, rest = name.removeprefix(path).partition(".")
        if not name.startswith(path):
            state[name] = tensor
        elif int(number) in kept:
            state[f"{path}{kept.index(int(number))}.{rest}"] = tensor
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize("family", EVERY)
def test_removal_gives_the_smaller_model_and_it_comes_back(family, tmp_path):
    model = made(family)
    before = logits(model)
    for gone in [(0,), (1,), (0, 2)]:
        small = lw.compress(model, without(*gone))
        assert type(small) is type(model) and logits(small).equal(logits(literally(model, gone)))
    small = lw.compress(model, without(0))
    lw.save(small, tmp_path / "small")
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "small"), lw.load(tmp_path / "small", "cpu")[0]):
        assert logits(again).equal(logits(small))
    prompt, more = TOKENS[:1, :6], {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert again.generate(prompt, **more).equal(small.generate(prompt, use_cache=False, **more))
    assert logits(model).equal(before) and len(blocks(model)) == 3


@pytest.mark.parametrize("family", EVERY)
def test_damage_by_removal_is_that_of_the_model_without_the_block(family):
    model = made(family)
    found = damage.by_block(model, TOKENS, kinds=("removed",))
    losses = [lw.compare(lw.compress(model, without(i)), model, TOKENS) for i in range(3)]
    assert found.kl.to_numpy() == pytest.approx([each.kl for each in losses], rel=1e-4, abs=1e-7)
    first = int(np.argmin([each.loss for each in losses]))
    rest = {i: lw.perplexity(lw.compress(model, without(first, i)), TOKENS).value for i in range(3) if i != first}
    assert np.argsort(damage.removal_order(model, TOKENS)).tolist()[:2] == [first, min(rest, key=rest.get)]


@pytest.mark.parametrize("family", EVERY)
def test_what_enters_the_blocks_goes_through_them_as_in_the_model(family):
    model, left = made(family), []
    blocks(model)[-1].register_forward_hook(lambda *given: left.append(hidden(given[-1])))
    with torch.no_grad():
        logits(model, TOKENS)
        states, arguments = entering(model, TOKENS)
        for block, others in zip(blocks(model), arguments, strict=True):
            states = hidden(block(states, **others))
    assert states.equal(left[0])


@pytest.mark.parametrize("name", ["rtn", "quanto", HQQ(group=8), Outliers(share=1 / 64)], ids=str)
@pytest.mark.parametrize("family", ["bloom", "falcon", "gemma3", "gpt2", "gpt_neo"])
def test_every_quantizer_rounds_the_matrices_of_every_kind(family, name, tmp_path):
    model, plan = made(family), Plan(tuple(Layer(bits=8) for _ in range(3)), 32)
    small = lw.compress(model, plan, TOKENS, quantizer=name)
    assert lw.size(small).bytes == plan.predicted_bytes(lw.shape(model), quantizer(name).stored)
    for path, linear in linears(blocks(model)[1]).items():
        packed = blocks(small)[1].get_submodule(path).weights()
        assert packed == pytest.approx(weight_matrix(linear).detach(), abs=0.05)
    assert lw.compare(small, model, TOKENS).kl < 1e-2
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))


@pytest.mark.parametrize("family", ["bloom", "gemma3_text", "gpt_neox", "lfm2"])
def test_gptq_does_all_matrices_of_every_kind_of_block(family):
    model = tiny(family, **(LFM2 if family == "lfm2" else {}))
    plan = Plan(tuple(Layer(bits=width) for width in (8, 8, 4)), 32)
    small = lw.compress(model, plan, TOKENS, lw.quantization.GPTQ(group=8))
    for block, dense in zip(blocks(small), blocks(model), strict=True):
        for path, linear in linears(dense).items():
            assert (
                0
                < (weight_matrix(linears(block)[path]) - weight_matrix(linear)).norm() / weight_matrix(linear).norm()
                < 0.2
            )


def test_matrices_that_gptq_does_not_reach_are_an_error(monkeypatch):
    """llm-compressor leaves out without a word what the configuration's patterns don't match."""
    groups = lw.quantization.GPTQ._groups
    monkeypatch.setattr(lw.quantization.GPTQ, "_groups", lambda self, model, bits: groups(self, model, [8, None, None]))
    plan = Plan((Layer(bits=8), Layer(bits=8), Layer()), 32)
    with pytest.raises(ValueError, match="GPTQ left 7 matrices as they were, such as model.layers.1.self_attn.q_proj"):
        lw.compress(tiny(), plan, TOKENS, lw.quantization.GPTQ(group=8))


@pytest.mark.parametrize("family", [*DENSE, "gemma3"])
def test_bits_come_back_from_disk_as_predicted_and_are_those_of_an_assembly(family, tmp_path):
    model = made(family)
    small = lw.compress(model, BITS)
    lw.save(small, tmp_path / "small")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(small))
    file = tmp_path / "small" / "packed.safetensors"
    assert (
        sum(t.nbytes for t in load_file(file).values()) == lw.size(small).bytes == BITS.predicted_bytes(lw.shape(model))
    )
    with lw.Assembly(model, (8, 3)).as_planned(BITS) as assembled:
        assert logits(assembled).equal(logits(small))
    literal = copy.deepcopy(model)
    for i in (0, 2):
        for path, linear in linears(blocks(literal)[i]).items():
            weight_matrix(linear).data.copy_(blocks(small)[i].get_submodule(path).weights())
    assert logits(literal) == pytest.approx(logits(small), abs=1e-4)
    found = damage.by_block(model, TOKENS, kinds=("3 bits",)).kl.to_numpy()
    alone = lw.compress(model, Plan((Layer(), Layer(), Layer(bits=3)), 32))
    assert found[2] == pytest.approx(lw.compare(alone, model, TOKENS).kl, rel=1e-3)


@pytest.mark.parametrize("family", EVERY)
def test_a_checkpoint_is_compressed_block_by_block_to_the_same(family, tmp_path):
    model, folder = made(family), tmp_path / "small"
    lw.save(model, tmp_path / "dense")
    plan = without(1) if family in MIXTURES else without(1) | BITS
    if family in ("mixtral", "phimoe", "qwen3_moe"):  # which transformers writes expert by expert
        with pytest.raises(
            ValueError, match="experts.0.* is stored otherwise than the model has it, as a part of .*mlp"
        ):
            lw.compress_checkpoint(tmp_path / "dense", folder, plan, device="cpu")
        return
    lw.compress_checkpoint(tmp_path / "dense", folder, plan, device="cpu")
    assert logits(lw.load(folder, device="cpu")[0]).equal(logits(lw.compress(model, plan)))


@pytest.mark.parametrize(("family", "mask"), [("gpt2", "h.0.attn.bias"), ("gpt_neox", "layers.0.attention.bias")])
def test_an_old_checkpoint_is_read_by_its_own_names(family, mask, tmp_path):
    """As GPT-2 and Pythia are on the Hub: without a prefix, with the masks of attention among the weights."""
    model, folder = tiny(family), tmp_path / "dense"
    lw.save(model, folder)
    tensors, prefix = load_file(folder / "model.safetensors"), f"{model.base_model_prefix}."
    tensors[prefix + mask] = torch.ones(1, 1, 8, 8)
    if family == "gpt2":
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert logits(lw.load(folder, device="cpu")[0]).equal(logits(model))
    lw.compress_checkpoint(folder, tmp_path / "small", BITS, device="cpu")
    assert logits(lw.load(tmp_path / "small", device="cpu")[0]).equal(logits(lw.compress(model, BITS)))


@pytest.mark.parametrize("family", EVERY)
def test_memory_is_told_without_the_model(family):
    model = made(family)
    model.config.dtype = model.dtype
    plan = without(1) if family in MIXTURES else without(1) | BITS
    told = lw.memory(model.config, plan, windows=4, length=12, batch=2)
    assert (told.weights, told.compressed) == tuple(
        each.get_memory_footprint() for each in (model, lw.compress(model, plan))
    )
    assert told.compressed < told.serving and told.weights < told.scoring
    assert lw.speed(model, prompt=8, new=2, repeats=1).memory > told.weights


# What can't be done, and says so before any work.


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_are_one_parameter_are_named_and_not_quantized(family):
    model = tiny(family)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    path = next(iter(experts(blocks(model)[0])))
    assert path.endswith("experts.gate_up_proj")
    plan = Plan((Layer(bits=4), Layer(keep=False), Layer(bits=4)), 32)
    for refused in (
        *(
            lambda name=name: lw.compress(model, plan, TOKENS, name, inplace=True)
            for name in lw.quantization.QUANTIZERS
        ),
        lambda: lw.Assembly(model, (4,)),
        lambda: damage.by_block(model, TOKENS, kinds=("removed", "4 bits")),
        lambda: lw.memory(model.config, plan, windows=2, length=8, batch=2),
    ):
        with pytest.raises(
            ValueError, match=f"block 0, {path}: experts .*, plans that remove blocks, .* work for this"
        ):
            refused()
    assert len(blocks(model)) == 3


def test_blocks_without_experts_can_be_quantized():
    small = lw.compress(tiny("qwen3_moe"), Plan((Layer(), Layer(bits=4), Layer()), 32))
    assert lw.size(small).bytes < lw.size(tiny("qwen3_moe")).bytes


def test_gptq_does_no_conv1d_and_names_what_does():
    model = tiny("gpt2")
    with pytest.raises(
        ValueError, match=r"gptq, block 0, attn.c_attn: it can't do a Conv1D. 'rtn', 'quanto', 'hqq' and"
    ):
        lw.compress(model, without(1) | BITS, TOKENS, "gptq", inplace=True)
    assert len(blocks(model)) == 3


def test_qwens_step_between_experts_becomes_a_list():
    """With a step of 2, block 1 has experts; the one that takes its number has none."""
    model = tiny("qwen3_moe", mlp_only_layers=[], decoder_sparse_step=2)
    small = lw.compress(model, without(0))
    assert [bool(experts(block)) for block in blocks(small)] == [True, False]
    assert (small.config.mlp_only_layers, small.config.decoder_sparse_step) == ([1], 1)
    assert logits(AutoModelForCausalLM.from_config(small.config)).shape == logits(small).shape


@pytest.mark.parametrize(
    ("family", "changes", "gone", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, (0,), "without blocks 0 is none .*: block 1, attn.scaling"),
        ("minicpm3", MINICPM, (2,), "block 0, residual_scale depends on the number of blocks"),
    ],
)
def test_blocks_that_depend_on_their_number_are_not_removed(family, changes, gone, message):
    model = tiny(family, **changes)
    with pytest.raises(ValueError, match=message):
        lw.compress(model, without(*gone), inplace=True)
    assert len(blocks(model)) == model.config.num_hidden_layers == 3


@pytest.mark.parametrize("family", [*DECODERS, "gemma3", "llama", "opt", "gpt-sw3", "sliced_llama"])
def test_decoders_are_told_from_other_models(family):
    check_decoder({"model_type": family})
    check_decoder({"model_type": "bert", "is_decoder": True})
