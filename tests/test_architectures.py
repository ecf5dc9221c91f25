"""The table of families: every path it holds is there, and the counts add up."""

import layerwise as lw
import pytest
import torch
from families import FAMILIES, config, tiny
from layerwise.backbone.architectures import ARCHITECTURES, UnsupportedArchitecture, architecture
from layerwise.backbone.structure import blocks, linears, written
from transformers import AutoModelForCausalLM


def test_every_family_has_a_tiny_model():
    assert set(FAMILIES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_paths_lead_to_the_parts(family):
    model, found = tiny(family), architecture(family)
    width = model.config.hidden_size
    for path in found.embeddings:
        assert model.get_submodule(path).weight.shape[1] == width
    assert model.get_submodule(found.final_norm).weight.shape == (width,)
    assert model.get_submodule(found.head).weight.shape == (model.config.vocab_size, width)
    for block in blocks(model):
        norms = [found.attention_norm] + ([] if found.parallel else [found.mlp_norm])
        assert all(block.get_submodule(path).weight.shape == (width,) for path in norms)
        assert (getattr(block.get_submodule(norms[0]), "bias", None) is None) == (found.norm == "rms")
        assert all(block.get_submodule(p).in_features == width for p in found.attention_inputs + found.mlp_inputs)
        assert all(block.get_submodule(p).out_features == width for p in (found.attention_output, found.mlp_output))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_table_names_every_linear_layer_of_a_block(family):
    found = architecture(family)
    named = {*found.attention_inputs, found.attention_output, *found.mlp_inputs, found.mlp_output}
    assert set(linears(blocks(tiny(family))[0])) == named


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_residual_stream_is_all_that_blocks_read_and_write(family):
    """With all outputs at zero, a block is the identity: nothing else writes to the stream."""
    model, found = tiny(family), architecture(family)
    block = blocks(model)[1]
    for path in (found.attention_output, found.mlp_output):
        for parameter in block.get_submodule(path).parameters():
            parameter.data.zero_()
    seen = []
    handle = block.register_forward_hook(lambda _, args, y: seen.append((args[0], written(y))))
    with torch.no_grad():
        model(torch.arange(8)[None])
    handle.remove()
    assert torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_shape_adds_up_on_meta_and_in_memory(family):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32)
    model = tiny(family)
    shape = lw.shape(model)
    assert lw.shape(empty) == shape
    assert (shape.L, shape.D) == (3, 32)
    assert shape.total_parameters == sum(p.numel() for p in model.parameters())
    assert shape.total_bytes == 4 * shape.total_parameters
    assert shape.linear_weights[0] == sum(x.weight.numel() for x in linears(blocks(model)[0]).values())
    assert shape.linear_weights[0] < shape.parameters[0]


def test_shape_counts_a_tied_embedding_once_and_bytes_as_stored():
    tied, untied = (tiny("llama", tie_word_embeddings=tie) for tie in (True, False))
    assert lw.shape(untied).other_parameters - lw.shape(tied).other_parameters == 96 * 32
    untied.stored_dtype = torch.bfloat16
    assert lw.shape(untied).dtype == "bfloat16"
    assert lw.shape(untied).total_bytes == 2 * lw.shape(untied).total_parameters


def test_a_model_without_a_final_norm_has_a_shape():
    """OPT-350m, which normalizes after attention and MLP."""
    model = tiny("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    assert lw.shape(model).total_parameters == sum(p.numel() for p in model.parameters())


def test_a_family_that_slicing_does_not_know_is_named_and_the_known_are_listed():
    for of in (config("gpt_neox"), "gpt_neox"):
        with pytest.raises(UnsupportedArchitecture, match="'gpt_neox' can't be sliced.*llama.*phi3.*opt"):
            architecture(of)
    with pytest.raises(UnsupportedArchitecture, match="Linear, which names no model_type"):
        architecture(torch.nn.Linear(2, 2))


def test_package_names_resolve_and_a_wrong_one_lists_the_right_ones():
    assert lw.scores.__name__ == "layerwise.scores"
    with pytest.raises(AttributeError, match="no 'lode'; it has load, save, tokens"):
        lw.lode()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_has_the_shape_of_its_model(name):
    model = tiny(name).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    assert lw.shape(model.config) == lw.shape(model)
