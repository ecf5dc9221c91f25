"""One table for embedding and head stays one when a model is sliced, and two that differ stay two."""

import copy
import json
import warnings

import layerwise as lw
import pytest
import torch
from families import CALIBRATIONS, CUT, CUT_HEAD, FAMILIES, SMALL, logits, random_tokens, sliced, slices, tiny, uneven
from layerwise import world
from layerwise.backbone.structure import tied
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = random_tokens(8, 12)
ONE_TABLE = [CUT, slices(28, 29, 11, head=24), slices(32, 32, 32), slices(32, 32, 32, head=32)]


def weights(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def untied(model):
    """The same model with a copy of the table for its head."""
    other = copy.deepcopy(model)
    other.config.tie_word_embeddings = False
    other.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert not tied(other) and tied(model)
    return other


# Sliced.


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_two_tables(family, calibration):
    model = uneven(family, tie_word_embeddings=True)
    apart = untied(model)
    for plan in (*ONE_TABLE, CUT_HEAD):
        one, two = (sliced(calibration, each, plan, TOKENS) for each in (model, apart))
        assert tied(one) == one.config.tie_word_embeddings == (plan != CUT_HEAD) and not tied(two)
        torch.testing.assert_close(logits(one), logits(two), rtol=1e-9, atol=1e-9)
        assert not tied(one) or weights(one)[0].equal(weights(model)[0])


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_what_takes_fewer_parameters_is_what_is_kept(family):
    model = tiny(family, tie_word_embeddings=True)
    shape, apart, bases = lw.shape(model), lw.shape(untied(model)), lw.calibrate(model, TOKENS)
    seen = set()
    for width in (8, 16, 23, 24, 25, 32):
        for head in (None, 8, 23, 24, 25, 32):
            plan = slices(width, 32, 20, head=head)
            small = lw.compress(model, plan, calibration=bases)
            assert lw.size(small) == (plan.predicted_parameters(shape), plan.predicted_bytes(shape))
            one = 96 * 32 + 32 * (width + (head or 0))
            two = 96 * (width + (head or 32))
            assert plan.predicted_parameters(apart) - lw.size(small).parameters == max(0, two - one)
            assert tied(small) == (one < two)
            seen.add(tied(small))
    assert seen == {True, False}


def test_a_vocabulary_smaller_than_the_width_is_two_tables():
    model = uneven("llama", tie_word_embeddings=True, vocab_size=24)
    tokens = TOKENS % 24
    for calibration in CALIBRATIONS:
        small = sliced(calibration, model, slices(32, 32, 32), tokens)
        assert not tied(small)
        torch.testing.assert_close(logits(small, tokens), logits(model, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", ONE_TABLE[:2], ids=["blocks", "blocks and head"])
def test_bytes_are_as_predicted_in_memory_and_in_the_file(family, plan, tmp_path):
    model = uneven(family, torch.float32, tie_word_embeddings=True)
    shape = lw.shape(model)
    assert lw.shape(model.config).tied == shape.tied is True
    small = lw.compress(model, plan, TOKENS, inplace=True)
    folder = lw.save(small, tmp_path / "small")
    stored = load_file(folder / "model.safetensors")
    inside = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert inside == lw.size(small).bytes == plan.predicted_bytes(shape)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    new = AutoModelForCausalLM.from_config(small.config)
    assert tied(new) and lw.size(new) == lw.size(small)
    for again in (lw.load(folder, device="cpu")[0], AutoModelForCausalLM.from_pretrained(folder)):
        assert tied(again) and logits(again).equal(logits(small)) and lw.size(again) == lw.size(small)


def test_memory_is_told_of_one_table():
    model = tiny(tie_word_embeddings=True)
    told = lw.memory(model.config, CUT, windows=2, length=20, batch=2, dtype=torch.float32)
    assert told.compressed == lw.compress(model, CUT, TOKENS).get_memory_footprint()


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_what_is_quantized_then_keeps_one_table(family, quantizer, tmp_path):
    model = uneven(family, torch.float32, tie_word_embeddings=True, vocab_size=384)
    shape = lw.shape(model)
    plan = slices(24, 24, 24, head=24) | lw.plans.bits(shape, [0, 1, 2], 2, 8, 4)
    small = lw.compress(model, plan, TOKENS, lw.quantization.GPTQ(group=8) if quantizer == "gptq" else quantizer)
    assert tied(small) and weights(small)[0].equal(weights(model)[0])
    again, _ = lw.load(lw.save(small, tmp_path / "small"), device="cpu")
    assert tied(again) and logits(again).equal(logits(small)) and lw.size(again) == lw.size(small)
    if quantizer == "rtn":
        assert lw.size(small).bytes == plan.predicted_bytes(shape)
        lw.save(model, tmp_path / "dense")
        folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "streamed", plan, TOKENS, device="cpu")
        again, _ = lw.load(folder, device="cpu")
        assert tied(again) and logits(again).equal(logits(small)) and lw.size(again) == lw.size(small)


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_training_keeps_one_table(family, tmp_path):
    model = lw.compress(uneven(family, torch.float32, tie_word_embeddings=True), ONE_TABLE[1], TOKENS)
    before, said = weights(model)[0].clone(), logits(model)
    model.requires_grad_().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    model.eval()
    assert tied(model) and not weights(model)[1].equal(before) and not logits(model).equal(said)
    again, _ = lw.load(lw.save(model, tmp_path / "trained"), device="cpu")
    assert tied(again) and logits(again).equal(logits(model))


def test_a_sliced_model_that_was_untied_in_memory_is_saved_as_two(tmp_path):
    small = untied(lw.compress(uneven("llama", tie_word_embeddings=True), ONE_TABLE[1], TOKENS))
    small.lm_head.weight.data *= 2
    again, _ = lw.load(lw.save(small, tmp_path / "two"), device="cpu")
    assert not tied(again) and logits(again).equal(logits(small))
    assert logits(lw.load(lw.save(again, tmp_path / "again"), device="cpu")[0]).equal(logits(small))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_models_that_earlier_versions_sliced_still_load(family, tmp_path):
    """They have two tables, and their configuration says nothing of an entrance."""
    one = lw.compress(uneven(family, tie_word_embeddings=True), CUT, TOKENS)
    said = SMALL | FAMILIES[family] | {"plan": json.loads(CUT.to_json()), "tie_word_embeddings": False}
    old = AutoModelForCausalLM.from_config(AutoConfig.for_model(f"sliced_{family}", **said), dtype=torch.float64)
    tensors = one.state_dict()
    path = next(name for name in tensors if name.endswith("embed_tokens.weight")).removesuffix("weight")
    tensors[f"{path}weight"] = tensors[f"{path}weight"] @ tensors.pop(f"{path}entrance.weight").T
    old.load_state_dict(tensors)
    old.save_pretrained(tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps({name: value for name, value in written.items() if name != "entrance"}))
    again, _ = lw.load(tmp_path / "old", device="cpu")
    assert not tied(again) and again.plan == CUT
    torch.testing.assert_close(logits(again), logits(one), rtol=1e-9, atol=1e-9)


# Two that differ, where the configuration says that they are one.


@pytest.fixture
def two(tmp_path):
    """A folder whose config.json ties the head to the embedding, of which it holds twice the values."""
    folder = lw.save(tiny(tie_word_embeddings=True, vocab_size=len(world.tokenizer())), tmp_path / "two")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def plans(shape):
    bits = lw.plans.bits(shape, [0, 1, 2], 2, 8, 4)
    return {"bits": bits, "slices": CUT, "all": bits | CUT | lw.plans.drop(shape, [0, 1, 2], 1)}


def test_what_load_gives_says_that_they_are_two(two, tmp_path):
    model, _ = lw.load(two, device="cpu")
    assert not tied(model) and not model.config.tie_word_embeddings and not lw.shape(model).tied
    assert weights(model)[1].equal(2 * weights(model)[0])
    tensors = load_file(two / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, two / "model.safetensors", metadata={"format": "pt"})
    equal, _ = lw.load(two, device="cpu")
    assert tied(equal) and equal.config.tie_word_embeddings


@pytest.mark.parametrize("what", ["bits", "slices", "all"])
def test_they_stay_two_through_compressing_saving_and_loading(what, two, tmp_path):
    model, _ = lw.load(two, device="cpu")
    shape = lw.shape(model)
    plan = plans(shape)[what]
    small = lw.compress(model, plan, TOKENS)
    assert not tied(small) and lw.size(small).bytes == plan.predicted_bytes(shape)
    again, _ = lw.load(lw.save(small, tmp_path / "small"), device="cpu")
    assert logits(again).equal(logits(small)) and not tied(again) and not again.config.tie_word_embeddings
    streamed = lw.compress_checkpoint(two, tmp_path / "streamed", plan, TOKENS, device="cpu")
    again, _ = lw.load(streamed, device="cpu")
    assert logits(again).equal(logits(small)) and not tied(again) and lw.size(again) == lw.size(small)


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_a_configuration_of_a_packed_model_that_ties_what_differs_is_not_believed(quantizer, two, tmp_path):
    model, _ = lw.load(two, device="cpu")
    quantizer = lw.quantization.GPTQ(group=8) if quantizer == "gptq" else quantizer
    small = lw.compress(model, plans(lw.shape(model))["bits"], TOKENS, quantizer)
    folder = lw.save(small, tmp_path / "small")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"tie_word_embeddings": True}))
    again, _ = lw.load(folder, device="cpu")
    assert not tied(again) and logits(again).equal(logits(small)) and not again.config.tie_word_embeddings


def test_what_a_caller_read_by_transformers_stays_as_it_was(two, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model = AutoModelForCausalLM.from_pretrained(two).eval()
    config, said, before = model.config, logits(model), copy.deepcopy(model.config.to_dict())
    assert not tied(model) and config.tie_word_embeddings
    plan = plans(lw.shape(model))["bits"]
    for small in (model, lw.compress(model, plan), lw.compress(model, CUT, TOKENS)):
        assert small is model or not small.config.tie_word_embeddings
        folder = lw.save(small, tmp_path / "small")
        assert not json.loads((folder / "config.json").read_text()).get("tie_word_embeddings")
        again, _ = lw.load(folder, device="cpu")
        assert logits(again).equal(logits(small)) and not tied(again)
    loaded, tokenizer = lw.load(two, device="cpu")[0], world.tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lw.answers(model, tokenizer, ["world_taxonomy"], limit=8)
        assert found.equals(lw.answers(loaded, tokenizer, ["world_taxonomy"], limit=8))
    assert not tied(model) and logits(model).equal(said)
    assert model.config is config and config.to_dict() == before
