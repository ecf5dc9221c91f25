"""Checkpoints compressed block by block: what is written is what `compress` gives."""

import copy
import json
import weakref

import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, random_tokens, tiny
from layerwise import world
from layerwise.backbone.structure import UnknownStructure, blocks, linears
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
    widths = np.random.default_rng(0).choice([8, 4, 2], len(shape.parts)).tolist()
    matrices = lw.plans.by_part(shape, [None, *widths[1:]])
    found = {"drop": drop, "slices": slices, "bits": bits, "matrices": matrices}
    return found | {"all": drop | slices | bits, "all by matrix": drop | slices | matrices}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ["drop", "slices", "bits", "matrices", "all", "all by matrix"])
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


def test_one_table_is_written_once_with_its_few_bits(tmp_path):
    model = checkpoint(tmp_path / "dense", tie_word_embeddings=True)
    plan = lw.Plan((lw.Layer(),) * 3, 32, head_bits=4)
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, device="cpu")
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert not {name for name in names if "lm_head" in name} and "model.embed_tokens.codes" in names
    found, expected = lw.load(folder, device="cpu")[0], lw.compress(model, plan)
    assert torch.equal(found(random_tokens()).logits, expected(random_tokens()).logits)
    assert lw.size(found) == lw.size(expected) and lw.size(found).bytes == plan.predicted_bytes(lw.shape(model))


def test_tied_half_precision_models_keep_both(tmp_path):
    model = tiny(tie_word_embeddings=True).to(torch.bfloat16)
    lw.save(model, tmp_path / "dense")  # in one file
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plans(model)["drop"], device="cpu")
    again = AutoModelForCausalLM.from_pretrained(folder)  # needs nothing of ours
    assert again.dtype == torch.bfloat16 and again.lm_head.weight is again.model.embed_tokens.weight
    names = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    assert "lm_head.weight" not in names


def test_a_configuration_without_a_dtype_leaves_it_to_the_checkpoint(tmp_path):
    model = checkpoint(tmp_path / "dense", dtype=torch.float16)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plans(model)["drop"], device="cpu")
    assert load_file(next((tmp_path / "small").glob("*.safetensors"))).popitem()[1].dtype == torch.float16


def test_padding_is_left_out_and_batches_make_no_difference(tmp_path):
    model, tokens = checkpoint(tmp_path / "dense"), random_tokens(6)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    options = {"tokens": tokens, "mask": mask, "batch": 2}
    plan = plans(model)["slices"]
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, device="cpu", **options)
    expected = lw.compress(model, plan, **options)
    assert torch.equal(lw.load(folder, device="cpu")[0](tokens).logits, expected(tokens).logits)


class Watching:
    """A quantizer of a user's own: gives a new block with its weights rounded, and notes what is left of those before.

    `held` has for each block the bytes of weights of earlier ones that are still in memory.
    """

    def __init__(self):
        self.held, self.seen = [], []

    def block(self, block, bits):
        left = [storage for each in self.seen if (storage := each()) is not None]
        self.held.append(sum(storage.nbytes() for storage in left))
        new = copy.deepcopy(block)
        for each in (*block.parameters(), *new.parameters()):
            self.seen.append(weakref.ref(each.untyped_storage()))
        for linear in linears(new).values():
            linear.weight.data.round_(decimals=1)
        return new

    def __call__(self, model, bits, tokens=None):
        for i, width in enumerate(bits):
            if width is not None:
                blocks(model)[i] = self.block(blocks(model)[i], width)
        return model


def test_a_quantizer_of_ones_own_may_return_another_block(tmp_path):
    model, tokens = checkpoint(tmp_path / "dense"), random_tokens()
    plan, own = plans(model)["bits"], Watching()
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, quantizer=own, device="cpu")
    expected = lw.compress(model, plan, quantizer=own)
    again = AutoModelForCausalLM.from_pretrained(folder)  # nothing is packed, so this is a plain checkpoint
    assert torch.equal(again(tokens).logits, expected(tokens).logits)
    assert not torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind", ["bits", "slices"])
def test_blocks_that_are_done_are_not_held_in_memory(kind, tmp_path):
    model, tokens, own = checkpoint(tmp_path / "dense", num_hidden_layers=6), random_tokens(8), Watching()
    shape = lw.shape(model)
    plan = lw.plans.bits(shape, np.arange(6), 6, 8, 4)
    plan = plan if kind == "bits" else plan | lw.plans.constant_slices(shape, 0.25)
    given = None if kind == "bits" else tokens
    lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, given, own, device="cpu")
    assert own.held == [0] * 6
    whole = Watching()
    lw.compress(model, plan, given, whole)
    assert max(whole.held) > 0, "compress holds all of them"


def test_target_may_be_source_and_what_was_there_is_replaced(tmp_path):
    model, tokens = checkpoint(tmp_path / "model"), random_tokens()
    plan = plans(model)["all"]
    for _ in range(2):
        folder = lw.compress_checkpoint(tmp_path / "model", tmp_path / "small", plan, tokens, device="cpu")
    lw.compress_checkpoint(tmp_path / "model", tmp_path / "model", plan, tokens, device="cpu")
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "model").iterdir())
    assert sum(name.startswith("packed-") for name in files) == 3  # two blocks, and what is around them


def test_a_sliced_checkpoint_can_be_quantized(tmp_path):
    model, tokens = tiny(), random_tokens(8)
    sliced = lw.compress(model, plans(model)["slices"], tokens)
    lw.save(sliced, tmp_path / "sliced")
    plan = lw.plans.bits(lw.shape(model), [0, 1, 2], 2, 8, 4)
    folder = lw.compress_checkpoint(tmp_path / "sliced", tmp_path / "small", plan, device="cpu")
    assert torch.equal(lw.load(folder, device="cpu")[0](tokens).logits, lw.compress(sliced, plan)(tokens).logits)


def test_packed_checkpoints_of_one_and_of_several_files_come_from_the_hub(standin, tmp_path):
    model, tokens = checkpoint(tmp_path / "dense"), random_tokens()
    plan = plans(model)["bits"]
    standin.repos["org/several"] = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "small", plan, device="cpu")
    standin.repos["org/one"] = lw.save(lw.compress(model, plan), tmp_path / "one")
    config = tmp_path / "one" / "config.json"
    written = json.loads(config.read_text())
    del written["quantization_config"]["files"]  # as it was written before there could be several
    config.write_text(json.dumps(written))
    several, one = (lw.load(name, device="cpu")[0](tokens).logits for name in ("org/several", "org/one"))
    assert torch.equal(several, one)


def test_tied_weights_may_be_stored_under_either_name(tmp_path):
    model, tokens = tiny(tie_word_embeddings=True), random_tokens()
    folder = lw.save(model, tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    plan = plans(model)["drop"]
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    small = lw.compress_checkpoint(folder, tmp_path / "small", plan, device="cpu")
    assert torch.equal(lw.load(small, device="cpu")[0](tokens).logits, lw.compress(model, plan)(tokens).logits)


@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_names_without_the_prefix_of_the_base_model_are_read_as_load_does(family, tmp_path):
    model, tokens = tiny(family), random_tokens(8)
    folder = lw.save(model, tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(lw.load(folder, device="cpu")[0](tokens).logits, model(tokens).logits)
    plan = plans(model)["all"]
    small = lw.compress_checkpoint(folder, tmp_path / "small", plan, tokens, device="cpu")
    expected = lw.compress(model, plan, tokens)
    assert torch.equal(lw.load(small, device="cpu")[0](tokens).logits, expected(tokens).logits)


def test_bad_input_is_named_and_leaves_no_folder(tmp_path):
    model = checkpoint(tmp_path / "dense")
    every, target = plans(model), tmp_path / "small"
    for plan, options, message in (
        (
            every["bits"],
            {"quantizer": lw.quantization.GPTQ(group=8), "tokens": random_tokens()},
            "gptq needs the whole model in memory",
        ),
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


def test_what_is_no_model_is_refused_before_any_work(tmp_path):
    folder, plan = lw.save(tiny(), tmp_path / "dense"), plans(tiny())["bits"]
    config = folder / "config.json"
    written = json.loads(config.read_text())

    def refused(error, message):
        with pytest.raises(error, match=message):
            lw.compress_checkpoint(folder, tmp_path / "small", plan, device="cpu")

    config.write_text(json.dumps(written | {"model_type": "t5"}))
    refused(UnknownStructure, "'t5' is no language model")
    config.write_text(json.dumps(written))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    refused(DamagedModel, "model.safetensors is damaged")
    (folder / "model.safetensors").unlink()
    refused(DamagedModel, "it has no model.safetensors")
    config.unlink()
    refused(DamagedModel, "it has no config.json")
