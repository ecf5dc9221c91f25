"""GGUF files: what is read is what was written, dense; what can't be used is said by the header."""

import gguf
import layerwise as lw
import numpy as np
import pytest
import torch
from families import logits
from gguf import GGMLQuantizationType as Kind
from layerwise.backbone import devices
from layerwise.backbone.structure import UnknownStructure
from layerwise.models import loading
from tiny_gguf import SPECIAL, TOKENS, file_name, llama, write


@pytest.fixture
def no_reading(monkeypatch):
    monkeypatch.setattr(
        loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read")
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_floats_is_the_model_that_it_was_written_of(tied, tmp_path):
    model = llama(tie_word_embeddings=tied)
    again, tokenizer = lw.load(write(tmp_path / "model.gguf", model), device="cpu")
    assert torch.equal(logits(again), logits(model))
    assert (again.dtype, again.stored_dtype) == (torch.float32, torch.float32)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert lw.results.fingerprint(again) == lw.results.fingerprint(model) and len(tokenizer) == len(TOKENS)


def unpacked(kind: Kind, packed: np.ndarray) -> np.ndarray:
    """Weights [rows, columns] of a matrix as bytes: groups of 32, each with a scale, and for Q4_1 an offset."""
    rows = packed.shape[0]
    if kind == Kind.Q8_0:
        groups = packed.reshape(rows, -1, 34)
        return (groups[..., :2].view(np.float16).astype(np.float32) * groups[..., 2:].view(np.int8)).reshape(rows, -1)
    groups = packed.reshape(rows, -1, 20)
    scale, offset = groups[..., :2].view(np.float16), groups[..., 2:4].view(np.float16)
    numbers = np.concatenate([groups[..., 4:] & 15, groups[..., 4:] >> 4], axis=-1)
    return (scale.astype(np.float32) * numbers + offset.astype(np.float32)).reshape(rows, -1)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), (torch.float32, torch.float32)])
def test_weights_of_few_bits_are_unpacked_in_float32_and_rounded_once(dtype, expected, tmp_path):
    model, embedding = llama(), {"token_embd.weight": Kind.Q8_0}
    path = write(tmp_path / "model.gguf", model, Kind.Q4_1, embedding)
    again, _ = lw.load(path, device="cpu", dtype=dtype)
    assert (again.dtype, again.stored_dtype) == (expected, torch.bfloat16)
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = dict(again.named_parameters())
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    ):
        tensor = file[file_name(name)]
        assert tensor.tensor_type == embedding.get(tensor.name, Kind.Q4_1)
        assert torch.equal(weights[name], torch.from_numpy(unpacked(tensor.tensor_type, tensor.data)).to(expected))
    query = "model.layers.0.self_attn.q_proj.weight"  # whose rows are in another order in the file
    error = (weights[query].float() - model.get_parameter(query)).abs().max()
    assert 0 < error < 0.1 * model.get_parameter(query).abs().max()


def test_files_in_half_precision_stay_in_it(tmp_path):
    again, _ = lw.load(write(tmp_path / "model.gguf", llama(), Kind.F16), device="cpu")
    assert (again.dtype, again.stored_dtype) == (torch.float16, torch.float16)
    assert torch.equal(again.lm_head.weight, llama().lm_head.weight.half())


def test_what_was_read_is_saved_as_safetensors(tmp_path):
    write(tmp_path / "model.gguf", llama(), Kind.Q8_0)
    model, tokenizer = lw.load(tmp_path, device="cpu")  # a folder that holds one
    assert not hasattr(model.config, "quantization_config")
    again, same = lw.load(lw.save(model, tmp_path / "saved.gguf", tokenizer), device="cpu")  # however it is called
    assert torch.equal(logits(again), logits(model))
    assert (again.dtype, again.config.eos_token_id) == (torch.bfloat16, 2)
    text = "hello  world\n\n123 <|im_end|>"
    assert same(text)["input_ids"] == tokenizer(text)["input_ids"] and same.chat_template == tokenizer.chat_template
    small = lw.compress(model, lw.plans.bits(lw.shape(model), [2, 1], low_layers=1, high=8, low=4))
    assert lw.size(small).bytes < lw.size(model).bytes


def test_it_is_planned_for_by_its_header(tmp_path, no_reading):
    path = write(tmp_path / "model.gguf", llama(), Kind.Q8_0)
    config = lw.models.configuration(path)
    assert (config.num_hidden_layers, config.dtype, config.tie_word_embeddings) == (2, torch.bfloat16, True)
    assert lw.memory(str(path), windows=2, length=8) == lw.memory(config, windows=2, length=8)
    plan = lw.plans.bits(lw.shape(config), [2, 1], low_layers=1, high=8, low=4)
    with pytest.raises(ValueError, match="model.gguf is a GGUF file, which can only be read whole: take lw.compress"):
        lw.compress_checkpoint(path, tmp_path / "target", plan)


def test_the_tokenizer_is_the_one_that_the_file_describes(tmp_path):
    _, tokenizer = lw.load(write(tmp_path / "model.gguf", llama()), device="cpu")
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert roles == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == llama().config.max_position_embeddings
    assert len(tokenizer) == len(TOKENS) and [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2]

    def split(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])

    # Digits are apart, and so is the space before them, for which GPT-2's pattern alone gives Ċ Ċ and 123.
    assert split("hello\n\n123<|im_end|>") == ["hell", "o", "ĊĊ", "1", "2", "3", "<|im_end|>"]
    for text in ("hello  world", "é 漢字 🙂\t12", " ."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert split(chat) == ["<|im_start|>", "hell", "o", "<|im_end|>"]


@pytest.mark.parametrize(
    ("said", "begins", "digits"),
    [
        ({"tokenizer.ggml.add_bos_token": True}, True, ["1", "2", "3"]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, False, ["123"]),
        ({"tokenizer.ggml.pre": "qwen2"}, False, ["1", "2", "3"]),
        ({"tokenizer.ggml.pre": "gpt-2"}, False, ["123"]),
    ],
)
def test_texts_are_begun_and_split_as_the_file_says(said, begins, digits, tmp_path):
    _, tokenizer = lw.load(write(tmp_path / "model.gguf", llama(), said=said), device="cpu")
    first = ["<|im_start|>"] if begins else []
    assert tokenizer.convert_ids_to_tokens(tokenizer("123")["input_ids"]) == first + digits


def test_a_tokenizer_that_splits_in_an_unknown_way_is_a_warning(tmp_path):
    path = write(tmp_path / "model.gguf", llama(), said={"tokenizer.ggml.pre": "klingon"})
    with pytest.warns(UserWarning, match=r"splits text in a way that isn't known here \('klingon'\).*as for GPT-2"):
        lw.load(path, device="cpu")
    bare = write(tmp_path / "bare.gguf", llama(), vocabulary=False)
    assert lw.load(bare, device="cpu")[1] is None


def test_rotary_frequencies_of_llama_3_are_recognized(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = llama(rope_parameters=rope, max_position_embeddings=131072, hidden_size=64, head_dim=16)
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    divisors = (plain / model.model.rotary_emb.inv_freq).numpy()
    assert divisors.min() == pytest.approx(1) and divisors.max() == pytest.approx(8)
    path = write(tmp_path / "model.gguf", model, more={"rope_freqs.weight": divisors})
    again, _ = lw.load(path, device="cpu")
    assert torch.allclose(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    other = write(tmp_path / "other.gguf", model, more={"rope_freqs.weight": divisors**0.5})
    with pytest.raises(lw.models.UnsuitableModel, match="rope_freqs.weight aren't those of Llama 3.1"):
        lw.load(other, device="cpu")


def test_a_file_that_is_cut_off_is_damaged(tmp_path, no_reading):
    path = write(tmp_path / "model.gguf", llama())
    whole = path.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 3000, 100, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(lw.models.DamagedModel, match="model.gguf is cut off or damaged, get it anew"):
            lw.load(path)
    for nothing in (b"version https://git-lfs", b""):
        path.write_bytes(nothing)
        with pytest.raises(lw.models.DamagedModel, match="model.gguf is no GGUF file: it begins with b'"):
            lw.load(path)


def test_what_cannot_be_converted_is_said_before_weights_are_read(tmp_path, no_reading):
    model = llama()
    with pytest.raises(
        lw.models.UnsuitableModel, match="architecture 'rwkv7', which transformers can't convert.*llama"
    ):
        lw.load(write(tmp_path / "rwkv.gguf", model, architecture="rwkv7"))
    with pytest.raises(UnknownStructure, match="t5"):
        lw.load(write(tmp_path / "t5.gguf", model, architecture="t5"))
    with pytest.raises(lw.models.UnsuitableModel, match="leaves out how it scales rotary positions .'yarn'"):
        lw.load(write(tmp_path / "yarn.gguf", model, said={"llama.rope.scaling.type": "yarn"}))
    bias = {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    with pytest.raises(lw.models.UnsuitableModel, match="transformers leaves out blk.0.attn_q.bias of this model"):
        lw.load(write(tmp_path / "bias.gguf", model, more=bias))


def test_parts_of_a_model_and_several_models_are_refused(tmp_path, no_reading):
    part = write(tmp_path / "model-00001-of-00003.gguf", llama())
    with pytest.raises(lw.models.UnsuitableModel, match="one part of several.*merge the parts with llama.cpp's"):
        lw.load(part)
    with pytest.raises(lw.models.UnsuitableModel, match="one part of several"):
        lw.load(tmp_path)
    part.unlink()
    with pytest.raises(lw.models.UnsuitableModel, match="part.gguf is one of 3 parts of a model: merge"):
        lw.load(write(tmp_path / "part.gguf", llama(), said={"split.count": 3}))
    write(tmp_path / "other.gguf", llama())
    with pytest.raises(lw.models.UnsuitableModel, match="holds 2 GGUF files, name one of them: other.gguf, part.gguf"):
        lw.load(tmp_path)


def test_a_tensor_that_is_missing_is_named(tmp_path, monkeypatch):
    model = llama()
    monkeypatch.setitem(vars(model.model.layers[1].mlp)["_modules"], "up_proj", None)
    with pytest.raises(lw.models.DamagedModel, match="missing: model.layers.1.mlp.up_proj.weight"):
        lw.load(write(tmp_path / "model.gguf", model), device="cpu")


def test_a_file_that_there_is_no_room_for_is_not_read(tmp_path, no_reading, monkeypatch):
    path = write(tmp_path / "model.gguf", llama())
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match='a GGUF file is read whole: load it with device="cpu"'):
        lw.load(path)


def test_a_name_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(lw.models.UnknownModel, match="nor is there such a folder or file"):
        lw.load("nowhere.gguf")
