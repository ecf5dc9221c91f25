"""Loading by name and saving: what comes back is what was saved, and what is no model is named."""

import json

import layerwise as lw
import pytest
import torch
from families import CUT, FAMILIES, random_tokens, tiny
from layerwise import models, world
from layerwise.backbone.structure import UnknownStructure
from layerwise.models import loading, names
from safetensors.torch import load_file, save_file


@pytest.fixture
def no_reading(monkeypatch):
    monkeypatch.setattr(
        loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read")
    )


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny Llama model."""
    return lw.save(tiny(), tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact_for_every_family(family, tmp_path):
    model, tokens = tiny(family), random_tokens()
    again, tokenizer = lw.load(lw.save(model, tmp_path / "model"), device="cpu")
    assert tokenizer is None
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_tied_embeddings_stay_tied(tmp_path):
    again, _ = lw.load(lw.save(tiny(tie_word_embeddings=True), tmp_path / "model"), device="cpu")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def compressed(model, how):
    """The model as it is, or in one of the formats that compressed ones are saved in."""
    bits = lw.plans.bits(lw.shape(model), [0, 1, 2], 2, 8, 4)
    if how == "gptq":
        return lw.compress(model, bits, random_tokens(8), lw.quantization.GPTQ(group=8))
    if how == "sliced":
        return lw.compress(model, CUT, random_tokens(8))
    return lw.compress(model, bits) if how == "packed" else model


@pytest.mark.parametrize("how", ["dense", "packed", "sliced", "gptq", "streamed"])
def test_generation_settings_are_saved_as_they_came(how, tmp_path):
    """Those of Llama-2-chat and Vicuna say how to sample and don't ask for it, which transformers doesn't save."""
    model = tiny()
    model.generation_config.update(temperature=0.9, top_p=0.6)
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "refused")
    came, config = model.generation_config.to_dict(), model.config.to_dict()
    small = compressed(model, how)
    folder = lw.save(small, tmp_path / "saved")
    if how == "streamed":
        plan = lw.plans.bits(lw.shape(model), [0, 1, 2], 2, 8, 4)
        folder = lw.compress_checkpoint(folder, tmp_path / "streamed", plan, device="cpu")
    again, _ = lw.load(folder, device="cpu")
    assert (again.generation_config.temperature, again.generation_config.top_p) == (0.9, 0.6)
    assert not again.generation_config.do_sample
    assert small.generation_config.to_dict() == came
    assert model.config.to_dict() == config


def test_tokenizer_is_saved_and_loaded(tmp_path):
    folder = lw.save(tiny(), tmp_path / "model", tokenizer=world.tokenizer())
    _, tokenizer = lw.load(folder, device="cpu")
    assert tokenizer("1 + 2")["input_ids"] == world.tokenizer()("1 + 2")["input_ids"]


def test_dtype_of_the_checkpoint_is_kept_for_counting_bytes(tmp_path):
    folder = lw.save(tiny().to(torch.bfloat16), tmp_path / "model")
    as_stored, _ = lw.load(folder, device="cpu")
    wide, _ = lw.load(folder, device="cpu", dtype=torch.float32)
    assert (as_stored.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert lw.shape(as_stored) == lw.shape(wide)
    assert torch.equal(wide.lm_head.weight, as_stored.lm_head.weight.float())
    sizes = []
    for dtype in (wide.dtype, wide.stored_dtype):  # a model is saved as it is in memory
        again = lw.save(wide.to(dtype), tmp_path / "again")
        sizes.append((again / "model.safetensors").stat().st_size)
    assert sizes[0] > 1.8 * sizes[1]
    assert torch.equal(lw.load(again, device="cpu")[0].lm_head.weight, as_stored.lm_head.weight)


def test_embedded_models_load_in_float32_with_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "WEIGHTS", tmp_path)
    for blocks in (3, 12):
        lw.save(tiny(num_hidden_layers=blocks).to(torch.bfloat16), tmp_path / f"{blocks}L", tokenizer=world.tokenizer())
    assert lw.models.embedded() == ["embedded/3L", "embedded/12L"]
    model, tokenizer = lw.load("embedded/3L", device="cpu")
    assert (model.dtype, model.stored_dtype, lw.shape(model).L) == (torch.float32, torch.bfloat16, 3)
    assert tokenizer.eos_token_id == 0
    message = r"Did you mean 'embedded/12L'\?.*embedded/3L, embedded/12L.*Hub id"
    for name in ("embedded/12", "embeded/12L", "12L"):
        with pytest.raises(models.UnknownModel, match=message):
            lw.load(name)


def test_saving_replaces_a_model_but_nothing_else(saved, tmp_path):
    lw.save(tiny(seed=1), saved)
    assert torch.equal(lw.load(saved, device="cpu")[0].lm_head.weight, tiny(seed=1).lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no temporary folder is left
    for name in ("recipe.yaml", "training_args.bin", "vocab.json"):  # of llm-compressor, of transformers
        (saved / name).write_text("{}")
    lw.save(tiny(seed=1), saved)
    (saved / "checkpoint-500").mkdir()  # as the Trainer of transformers leaves it
    with pytest.raises(ValueError, match=r"more than a model, which would be lost \(checkpoint-500\): choose another"):
        lw.save(tiny(seed=2), saved)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    with pytest.raises(ValueError, match="app exists and is not a model: choose another folder"):
        lw.save(tiny(seed=2), tmp_path / "app")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("water the plants")
    with pytest.raises(ValueError, match="notes exists and is not a model: choose another folder"):
        lw.save(tiny(), tmp_path / "notes")


def test_crash_while_saving_leaves_the_model_that_was_there(saved, tmp_path):
    model = tiny(seed=1)
    model.save_pretrained = lambda folder: 1 / 0
    with pytest.raises(ZeroDivisionError):
        lw.save(model, saved)
    assert torch.equal(lw.load(saved, device="cpu")[0].lm_head.weight, tiny().lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_says_what_is_missing(saved, tmp_path):
    with pytest.raises(models.UnknownModel, match="no embedded model './nowhere', nor is there such a folder or file"):
        lw.load("./nowhere")
    with pytest.raises(models.DamagedModel, match="is a file: a model is a folder with config.json"):
        lw.load(saved / "config.json")
    with pytest.raises(models.DamagedModel, match="is no model: it has no config.json"):
        lw.load(tmp_path)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(models.DamagedModel, match="no model.safetensors; pytorch_model.bin is a pickle.*convert it"):
        lw.load(saved)


def test_damaged_files_are_named(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], b"hello" * 100, b""):
        weights.write_bytes(damaged)
        with pytest.raises(models.DamagedModel, match="model.safetensors is damaged or not safetensors"):
            lw.load(saved)
    weights.write_bytes(whole)
    (saved / "config.json").write_text("{ this is not JSON")
    with pytest.raises(models.DamagedModel, match="config.json is not a configuration"):
        lw.load(saved)


@pytest.mark.parametrize("dtype", ["bfloat61", "nn", 16])
def test_a_dtype_that_torch_has_not_is_refused(dtype, saved):
    written = json.loads((saved / "config.json").read_text()) | {"dtype": dtype}
    (saved / "config.json").write_text(json.dumps(written))
    with pytest.raises(models.DamagedModel, match=f"its dtype is '?{dtype}'?, but should be .* 'bfloat16'"):
        lw.load(saved)


def test_missing_shard_is_named(saved):
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": "second.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(models.DamagedModel, match="it has no second.safetensors"):
        lw.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(5, 32)}), "mismatched: lm_head.weight"),
        (
            lambda w: w.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(2, 2)}),
            "unexpected: model.layers.3.mlp",
        ),
        (
            lambda w: w["model.layers.1.mlp.up_proj.weight"].view(-1)[7].fill_(torch.nan),
            "layers.1.mlp.up_proj.weight hold NaN",
        ),
        (lambda w: w["model.norm.weight"][3].fill_(torch.inf), "model.norm.weight hold NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_used_are_named(saved, change, message):
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(models.DamagedModel, match=message):
        lw.load(saved, device="cpu")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("t5", "'t5' is no language model that transformers' AutoModelForCausalLM knows"),
        ("no_such_family", "'no_such_family' is no language model"),
        ("bert", "'bert' is an encoder"),
        ("bart", "'bart' has an encoder beside its decoder"),
        ("", "the configuration names no model_type"),
    ],
)
def test_what_is_no_decoder_only_model_is_refused_before_weights_are_read(family, message, saved, no_reading):
    written = json.loads((saved / "config.json").read_text()) | {"model_type": family}
    (saved / "config.json").write_text(json.dumps(written))
    with pytest.raises(UnknownStructure, match=message):
        lw.load(saved)


def test_code_in_a_checkpoint_is_not_run(saved):
    (saved / "evil.py").write_text("raise SystemExit('this was run')")
    written = json.loads((saved / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (saved / "config.json").write_text(json.dumps(written))
    assert type(lw.load(saved, device="cpu")[0]).__name__ == "LlamaForCausalLM"


def written(folder, **changes):
    """Change what config.json of a folder says."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("method", ["auto-round", "gptq", "awq", "fp8", "some-new-tool", None])
def test_a_model_that_another_tool_has_quantized_is_told(method, saved, no_reading):
    named = {"quant_method": method} if method else {"load_in_4bit": True}  # as bitsandbytes did at first
    written(saved, quantization_config={"bits": 4, **named})
    told = f"was quantized by {method or 'bitsandbytes'} .*is a dense model.*take the model that it was made of"
    for ask in (lw.load, lw.models.configuration, lw.memory):
        with pytest.raises(models.UnsuitableModel, match=told):
            ask(str(saved))
    with pytest.raises(models.UnsuitableModel, match=told):
        lw.compress_checkpoint(saved, saved.parent / "target", lw.plans.drop(lw.shape(tiny()), [1, 2, 3], k=1))


def test_an_adapter_alone_is_told(saved, tmp_path, no_reading):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}')
    save_file({"lora_A.weight": torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    told = "holds an adapter such as LoRA.*merge it into owner/base and save that, with peft"
    with pytest.raises(models.UnsuitableModel, match=told):
        lw.load(adapter)
    (adapter / "config.json").write_bytes((saved / "config.json").read_bytes())  # as some tools leave it
    with pytest.raises(models.UnsuitableModel, match=told):
        lw.load(adapter)


def test_a_model_with_another_head_is_told(saved, no_reading):
    weights = load_file(saved / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 32)}
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(models.UnsuitableModel, match=r"a value head \(v_head.summary.weight\), as trl trains it: save"):
        lw.load(saved)
    written(saved, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(models.UnsuitableModel, match="is a LlamaForSequenceClassification: it labels or scores text"):
        lw.load(saved)
