"""A sliced model is a transformers model: saved, loaded, generating, evaluated, trained and counted as any other."""

import copy
import json
import random
import subprocess
import sys

import layerwise as lw
import pytest
import torch
from families import (
    CALIBRATIONS,
    CUT,
    CUT_HEAD,
    FAMILIES,
    VARIANTS,
    logits,
    random_tokens,
    sliced,
    slices,
    tiny,
    uneven,
)
from layerwise import world
from layerwise.compression.sliced import ScaleFreeNorm
from layerwise.plans import Plan
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

TOKENS = random_tokens(8, 12)
CONFIGURATIONS = {family: (family, {}) for family in FAMILIES} | VARIANTS


def small(name, plan=CUT_HEAD):
    """A tiny model in float32, sliced."""
    family, changes = CONFIGURATIONS[name]
    return lw.compress(uneven(family, torch.float32, **changes), plan, TOKENS)


# Saved and loaded.

READ_ALL = """
import sys
from pathlib import Path
import layerwise, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder, found = Path(sys.argv[1]), {}
tokens = load_file(folder / "tokens.safetensors")["tokens"]
for path in folder.glob("*/config.json"):
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype="auto")
    with torch.no_grad():
        found[path.parent.name] = model(tokens).logits
save_file(found, folder / "logits.safetensors")
"""


def test_another_process_reads_them_once_layerwise_is_imported(tmp_path):
    models = {name: small(name) for name in FAMILIES}
    models["two kinds of attention"] = small("qwen2, two kinds of attention", CUT)
    for dtype in (torch.float16, torch.bfloat16):
        # Loaded in its dtype: a cast would also cast the rotary frequencies, which no checkpoint has.
        dense, _ = lw.load(lw.save(uneven("llama", dtype), tmp_path / "dense"), device="cpu")
        models[str(dtype)] = lw.compress(dense, CUT_HEAD, TOKENS)
        assert lw.size(models[str(dtype)]).bytes == 2 * lw.size(models["llama"]).parameters
    for name, model in models.items():
        lw.save(model, tmp_path / "models" / name)
    models["in pieces"] = models["opt"]
    models["opt"].save_pretrained(tmp_path / "models" / "in pieces", max_shard_size="20KB")
    assert len(list((tmp_path / "models" / "in pieces").glob("model-*-of-*.safetensors"))) > 2
    save_file({"tokens": TOKENS}, tmp_path / "models" / "tokens.safetensors")
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "models")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    found = load_file(tmp_path / "models" / "logits.safetensors")
    assert found.keys() == models.keys()
    for name, model in models.items():
        assert found[name].dtype == model.dtype, name
        assert torch.equal(found[name], logits(model, TOKENS)), name


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_round_trip_is_exact_and_the_configuration_records_the_plan(name, tmp_path):
    model = small(name)
    folder = lw.save(model, tmp_path / "model", tokenizer=world.tokenizer())
    again, tokenizer = lw.load(folder, device="cpu")
    assert torch.equal(logits(again), logits(model)) and tokenizer.get_vocab() == world.tokenizer().get_vocab()
    assert again.plan == model.plan == CUT_HEAD and lw.size(again) == lw.size(model)
    written = json.loads((folder / "config.json").read_text())
    assert Plan.from_json(json.dumps(written["plan"])) == CUT_HEAD
    assert written["model_type"] == f"sliced_{CONFIGURATIONS[name][0]}" and written["hidden_size"] == 32
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json"}


def test_a_copy_is_a_model_of_its_own(tmp_path):
    model = small("llama")
    before, other = logits(model), copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += 0.1
    assert logits(model).equal(before) and not logits(other).equal(before)
    assert other.plan == model.plan
    again, _ = lw.load(lw.save(other, tmp_path / "other"), device="cpu")
    assert logits(again).equal(logits(other))


# Run.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_norm_is_that_of_the_family_on_states_whose_end_is_0(dtype):
    states = 300 * torch.randn(5, 32, generator=torch.Generator().manual_seed(0))  # squares overflow float16
    states[:, 20:] = 0
    rms, centred = states.to(dtype), (states - states[:, :20].mean(1, keepdim=True)).to(dtype)
    centred[:, 20:] = 0
    norm, layer_norm = ScaleFreeNorm(32, 1e-5), torch.nn.LayerNorm(32, elementwise_affine=False)
    assert norm(rms[:, :20]).equal(LlamaRMSNorm(32, 1e-5).to(dtype)(rms)[:, :20])
    torch.testing.assert_close(norm(centred[:, :20]), layer_norm(centred)[:, :20], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy_text_is_the_same_with_and_without_the_cache(name):
    model = small(name)
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    prompts = TOKENS[:, :6]
    cached = model.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **settings)
    assert cached.shape == (8, 14)
    assert cached.equal(model.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=False, **settings))
    by_hand = prompts
    for _ in range(8):
        by_hand = torch.cat([by_hand, logits(model, by_hand)[:, -1:].argmax(-1)], dim=1)
    assert cached.equal(by_hand)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_prompts_of_a_left_padded_batch_go_on_as_they_do_alone(name):
    model = small(name)
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    lengths = (7, 2, 5)
    mask = torch.stack([(torch.arange(7) >= 7 - length).long() for length in lengths])
    together = model.generate(TOKENS[:3, :7] * mask, attention_mask=mask, **settings)
    for row, length, tokens in zip(together, lengths, TOKENS, strict=False):
        prompt = tokens[None, 7 - length : 7]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert row[-5:].equal(alone[0, -5:])


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_hidden_states_have_the_widths_of_the_plan(family):
    model = small(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(TOKENS, output_hidden_states=True, output_attentions=True)
    assert [states.shape[-1] for states in output.hidden_states] == [20, 29, 11, 17]
    assert [weights.shape for weights in output.attentions] == [(8, 4, 12, 12)] * 3
    torch.testing.assert_close(output.logits, logits(small(family), TOKENS), rtol=1e-4, atol=1e-4)


def test_lm_eval_takes_a_sliced_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    model, tokenizer = lw.load("embedded/6L", device="cpu")
    tokens, tasks = lw.tokens(tokenizer, n=4, length=64), ["world_taxonomy", "world_sums"]
    tables = []
    for mean in (0, 0.25):
        small = lw.compress(model, lw.plans.constant_slices(lw.shape(model), mean), tokens)
        tables.append(lw.accuracy(small, tokenizer, tasks, limit=2))
    assert tables[0].equals(lw.accuracy(model, tokenizer, tasks, limit=2))
    assert (tables[1].n == 2).all() and tables[1].value.between(0, 1).all()


# Trained.


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family, calibration):
    with torch.inference_mode():
        model = sliced(calibration, uneven(family, torch.float32), CUT_HEAD, TOKENS)
    model.requires_grad_().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer.zero_grad()
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
        loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


# Counted.


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sizes_are_as_predicted_for_any_plan(name):
    family, changes = CONFIGURATIONS[name]
    draw = random.Random(name)
    for tied in {changes.get("tie_word_embeddings", False), True}:
        model = tiny(family, **changes | {"tie_word_embeddings": tied})
        shape, bases = lw.shape(model), lw.calibrate(model, TOKENS)
        for head in (None, 32, draw.randint(1, 32)):
            plan = slices(*(draw.randint(1, 32) for _ in range(3)), head=head)
            cut = lw.compress(model, plan, calibration=bases)
            assert lw.size(cut) == (plan.predicted_parameters(shape), plan.predicted_bytes(shape)), (tied, plan)
            one_table = cut.get_output_embeddings().weight is cut.get_input_embeddings().weight
            assert one_table == cut.config.tie_word_embeddings <= tied
    model.stored_dtype = torch.bfloat16
    cut = lw.compress(model, CUT, TOKENS)
    assert lw.size(cut).bytes == CUT.predicted_bytes(lw.shape(model)) == 2 * lw.size(cut).parameters


def test_sizes_are_those_of_the_file(tmp_path):
    model = small("llama, tied")
    stored = load_file(lw.save(model, tmp_path / "model") / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == lw.size(model).parameters
    assert isinstance(model, type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")))
