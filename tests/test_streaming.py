"""Checkpoints compressed block by block: what is written is what `compress` gives."""

import json

import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, random_tokens, tiny
from layerwise import world
from layerwise.models import DamagedModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def checkpoint(folder, family="llama", **options):
    """A tiny model as the Hub has it: in several files, its tokenizer beside them."""
    model = tiny(family, **options)
    model.save_pretrained(folder, max_shard_size="20KB")
    world.tokenizer().save_pretrained(folder)
    return model


def plans(model):
    """Everything that a plan can ask for, by itself and together."""
    shape = lw.shape(model)
    importance = np.arange(shape.L)[::-1]
    drop = lw.plans.drop(shape, importance, 1)
    slices = lw.plans.dynamic_slices(shape, importance, 0.25, 0.1)
    bits = lw.plans.bits(shape, importance, 2, 8, 4)
    return {"drop": drop, "slices": slices, "bits": bits, "all": drop | slices | bits}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ["drop", "slices", "bits", "all"])
def test_every_family_gives_what_compress_gives(family, what, tmp_path):
    model, tokens = checkpoint(tmp_path / "dense", family), random_tokens(8)
    plan = plans(model)[what]
    given = tokens if plan.slices else None
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, given, device="cpu")
    expected = lw.compress(model, plan, given)
    found, tokenizer = lw.load(folder, device="cpu")
    assert torch.equal(found(tokens).logits, expected(tokens).logits)
    assert found.config.architectures == [type(found).__name__] and tokenizer is not None
    state = expected.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in found.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in state.items()
    }
    assert lw.size(found) == lw.size(expected)


def test_tied_half_precision_models_keep_both(tmp_path):
    model = tiny(tie_word_embeddings=True).to(torch.bfloat16)
    lw.save(model, tmp_path / "dense")  # in one file
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plans(model)["drop"], device="cpu")
    again = AutoModelForCausalLM.from_pretrained(folder)  # needs nothing of ours
    assert again.dtype == torch.bfloat16 and again.lm_head.weight is again.model.embed_tokens.weight
    names = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    assert "lm_head.weight" not in names


def test_padding_is_left_out_and_batches_make_no_difference(tmp_path):
    model, tokens = checkpoint(tmp_path / "dense"), random_tokens(6)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    options = {"tokens": tokens, "mask": mask, "batch": 2}
    plan = plans(model)["slices"]
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, device="cpu", **options)
    expected = lw.compress(model, plan, **options)
    assert torch.equal(lw.load(folder, device="cpu")[0](tokens).logits, expected(tokens).logits)


def test_bad_input_is_named_and_leaves_no_folder(tmp_path):
    model = checkpoint(tmp_path / "dense")
    every, target = plans(model), tmp_path / "small"
    for plan, options, message in (
        (every["bits"], {"quantizer": "gptq", "tokens": random_tokens()}, "gptq needs the whole model in memory"),
        (every["slices"], {}, "slicing needs calibration text"),
        (plans(tiny(num_hidden_layers=4))["bits"], {}, "the plan is for 4 layers"),
        (lw.plans.bits(lw.shape(model), [0, 1, 2], 1, 8, 4), {"quantizer": lambda model, bits: model}, "whole model"),
    ):
        with pytest.raises(ValueError, match=message):
            lw.compress_checkpoint(tmp_path / "dense", target, plan, device="cpu", **options)
        assert not target.exists()
    packed = lw.save(lw.compress(model, every["bits"]), tmp_path / "packed")
    with pytest.raises(ValueError, match="few bits already"):
        lw.compress_checkpoint(packed, target, every["drop"], device="cpu")


@pytest.mark.parametrize(("change", "message"), [
    (lambda tensors, name: tensors.pop(name), "missing: "),
    (lambda tensors, name: tensors.update(extra=torch.ones(1)), "unexpected: extra"),
    (lambda tensors, name: tensors.update({name: tensors[name] * torch.nan}), "hold NaN or infinity"),
    (lambda tensors, name: tensors.update({name: tensors[name][:1]}), r"config.json says \["),
])  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_leaves_no_folder(change, message, tmp_path):
    folder = lw.save(tiny(), tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    change(tensors, "model.layers.1.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedModel, match=message):
        lw.compress_checkpoint(folder, tmp_path / "small", plans(tiny())["bits"], device="cpu")
    assert not (tmp_path / "small").exists() and len(list(tmp_path.iterdir())) == 1
