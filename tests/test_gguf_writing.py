"""GGUF files that we write: what they hold is what the model computes with, and they are read as what was written."""

import gguf
import layerwise as lw
import numpy as np
import pytest
import torch
from families import logits, random_tokens, tiny
from gguf import GGUFReader
from layerwise.models.gguf_tokenizers import SPLITS
from tiny_gguf import TOKENS, llama, write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TEXT = "hello  world\n\n123 <|im_end|> it's"


def small(family, **changes):
    """A tiny model whose rows are whole groups of 32."""
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": len(TOKENS), "sliding_window": None}
    if family == "qwen3":  # transformers doesn't read it of this family, and takes that of all that there are
        sizes["head_dim"] = 128
    return tiny(family, **sizes | changes)


def drawn(model, seed=0, widths=(4, 5, 8, None)):
    """A plan that gives every part of a model one of `widths` at random."""
    shape = lw.shape(model)
    return lw.plans.by_part(shape, np.random.default_rng(seed).choice(np.array(widths, object), len(shape.parts)))


@pytest.fixture
def tokenizer(tmp_path):
    """The tokenizer of a file that llama.cpp's converter could have written."""
    return lw.load(write(tmp_path / "other.gguf", llama()), device="cpu")[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dense_llama_is_written_as_the_converter_of_llama_cpp_does(dtype, tmp_path):
    model = llama(dtype=dtype, tie_word_embeddings=False)
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    kind = gguf.GGMLQuantizationType[kinds[dtype]]
    expected, found = (
        {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        for path in (write(tmp_path / "its.gguf", model, kind), lw.save_gguf(model, tmp_path / "ours.gguf"))
    )
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        assert tensor.tensor_type == expected[name].tensor_type and (tensor.shape == expected[name].shape).all()
        assert (tensor.data == expected[name].data).all(), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_computes_what_was_written(family, tied, tmp_path):
    model = small(family, tie_word_embeddings=tied)
    again, _ = lw.load(lw.save_gguf(model, tmp_path / "dense.gguf"), device="cpu")
    assert logits(again).equal(logits(model))
    plan = drawn(model)
    few = lw.compress(model, plan, quantizer="gguf")
    file = lw.save_gguf(few, tmp_path / "few.gguf")
    again, nobody = lw.load(file, device="cpu", dtype=torch.float32)
    assert logits(again).equal(logits(few)) and not logits(again).equal(logits(model)) and nobody is None
    tensors = GGUFReader(file).tensors
    assert sum(tensor.n_bytes for tensor in tensors) == lw.size(few).bytes
    assert lw.size(few).bytes == plan.predicted_bytes(lw.shape(model), lw.quantization.GGUF().stored)
    asked = [{4: "Q4_1", 5: "Q5_1", 8: "Q8_0", None: "F32"}[bits] for bits in plan.bits_by_part(lw.shape(model))]
    assert sorted(each.tensor_type.name for each in tensors if len(each.shape) > 1) == sorted(asked)
    assert ("output.weight" in {tensor.name for tensor in tensors}) == (not tied)


def test_a_checkpoint_that_was_compressed_block_by_block_makes_the_same_file(tmp_path):
    model = small("llama", tie_word_embeddings=True)
    plan = drawn(model)
    expected = lw.save_gguf(lw.compress(model, plan, quantizer="gguf"), tmp_path / "expected.gguf")
    lw.save(model, tmp_path / "dense")
    folder = lw.compress_checkpoint(tmp_path / "dense", tmp_path / "few", plan, quantizer="gguf", device="cpu")
    found = lw.save_gguf(lw.load(folder, device="cpu")[0], tmp_path / "found.gguf")
    assert found.read_bytes() == expected.read_bytes()


def test_blocks_are_told_as_they_are_left(tmp_path):
    model = small("llama", num_hidden_layers=3)
    left = lw.compress(model, lw.plans.drop(lw.shape(model), [2, 0, 1], 1))
    again, _ = lw.load(lw.save_gguf(left, tmp_path / "left.gguf"), device="cpu")
    assert logits(again).equal(logits(left)) and again.config.num_hidden_layers == 2


def test_positions_of_llama_3_are_written_as_what_frequencies_are_divided_by(tmp_path):
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = scaled | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    model = llama(rope_parameters=rope, head_dim=64, hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    file = lw.save_gguf(model, tmp_path / "llama3.gguf")
    (divisors,) = (tensor.data for tensor in GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    assert divisors.min() == pytest.approx(1) and divisors.max() == pytest.approx(8)
    again, _ = lw.load(file, device="cpu")
    assert again.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(logits(again), logits(model), atol=1e-4)


# Tokenizers.


def test_a_tokenizer_comes_back(tokenizer, tmp_path):
    model = llama(vocab_size=len(TOKENS) + 5)  # tables are padded
    file = lw.save_gguf(model, tmp_path / "model.gguf", tokenizer)
    again = lw.load(file, device="cpu")[1]
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"] and again.chat_template == tokenizer.chat_template
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    kinds = GGUFReader(file).get_field("tokenizer.ggml.token_type").contents()
    assert kinds == [3] * 3 + [1] * (len(TOKENS) - 3) + [5] * 5


@pytest.mark.parametrize("begins", [True, False])
def test_a_file_says_whether_texts_begin_with_a_token(begins, tmp_path):
    said = {"tokenizer.ggml.add_bos_token": begins}
    _, tokenizer = lw.load(write(tmp_path / "other.gguf", llama(), said=said), device="cpu")
    file = lw.save_gguf(llama(), tmp_path / "model.gguf", tokenizer)
    assert GGUFReader(file).get_field("tokenizer.ggml.add_bos_token").contents() == begins
    assert lw.load(file, device="cpu")[1](TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("split", SPLITS)
def test_how_text_is_split_is_known_by_what_it_does(split, tmp_path):
    _, tokenizer = lw.load(write(tmp_path / "other.gguf", llama(), said={"tokenizer.ggml.pre": split}), device="cpu")
    if split in ("smollm", "starcoder"):  # as their own files have it
        digits = pre_tokenizers.Digits(individual_digits=True)
        own = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = own
    file = lw.save_gguf(llama(), tmp_path / "model.gguf", tokenizer)
    assert SPLITS[GGUFReader(file).get_field("tokenizer.ggml.pre").contents()] == SPLITS[split]


def test_tokenizers_that_a_file_cannot_have_are_refused(tokenizer, tmp_path):
    words = Tokenizer(models.WordLevel({"hello": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for other in (words, Tokenizer(models.BPE())):
        with pytest.raises(lw.models.UnsuitableModel, match="byte-pair encodings of bytes and split text"):
            lw.save_gguf(llama(), tmp_path / "model.gguf", PreTrainedTokenizerFast(tokenizer_object=other))
    with pytest.raises(lw.models.UnsuitableModel, match=rf"token {len(TOKENS) - 1}, and the model's vocabulary is 96"):
        lw.save_gguf(llama(vocab_size=96), tmp_path / "model.gguf", tokenizer)


# What can't be written.


def compressed(layer, quantizer="rtn"):
    """A tiny Llama whose block 0 is as `layer` says."""
    return lw.compress(small("llama"), lw.Plan((layer, lw.Layer()), 32), random_tokens(4, 16), quantizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny("phi"), "a model of 'phi' can't be written to GGUF here; of llama, mistral, qwen2, qwen3 it can"),
        (
            lambda: small("mistral", sliding_window=8),
            "has one of 8 for 64 tokens: set model.config.max_position_embeddings = 8",
        ),
        (lambda: small("llama", hidden_act="gelu"), "an MLP of this family has silu, not 'gelu'"),
        (
            lambda: small("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "how it scales rotary positions .'linear'. can't be written",
        ),
        (
            lambda: compressed(lw.Layer(bits=4), "rtn"),
            'layers.0.self_attn.q_proj: its few bits are of another kind.*compress with quantizer="gguf"',
        ),
        (
            lambda: compressed(lw.Layer(bits=8), "quanto"),
            "layers.0.self_attn.q_proj: its few bits are of another kind than a file can have",
        ),
        (lambda: compressed(lw.Layer(width=16)), "a model of 'sliced_llama' can't be written"),
    ],
)
def test_a_model_that_a_file_cannot_have_is_refused_and_nothing_is_left(make, message, tmp_path):
    model = make()
    (tmp_path / "model.gguf").write_bytes(b"before")
    with pytest.raises(lw.models.UnsuitableModel, match=message):
        lw.save_gguf(model, tmp_path / "model.gguf")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.gguf", b"before")]


def test_a_file_is_replaced_and_a_folder_is_not(tmp_path):
    lw.save_gguf(small("llama"), tmp_path / "new" / "model.gguf")
    file = lw.save_gguf(small("qwen2"), tmp_path / "new" / "model.gguf")
    assert lw.models.configuration(file).model_type == "qwen2" and [*file.parent.iterdir()] == [file]
    (tmp_path / "folder.gguf").mkdir()
    for path in (tmp_path / "folder.gguf", tmp_path / "model"):
        with pytest.raises(ValueError, match="must be a file that ends in .gguf: a folder is what lw.save writes"):
            lw.save_gguf(small("llama"), path)


def test_a_model_that_was_fitted_is_written_at_its_size(tmp_path):
    model, tokenizer = lw.load("embedded/6L")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The cat saw {i} dogs." for i in range(3000)), encoding="utf-8")
    half = lw.shape(model).total_bytes // 2
    fitted = lw.fit(model, tokenizer, half, "gguf", lw.costs.relative_error, corpus=str(text))
    file = lw.save_gguf(fitted.model, tmp_path / "model.gguf", tokenizer)
    again, its = lw.load(file, device="cpu", dtype=fitted.model.dtype)
    assert logits(again).equal(logits(fitted.model)) and its(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert set(fitted.plan.bits_by_part(lw.shape(model))) <= {4, 5, 8, None}
