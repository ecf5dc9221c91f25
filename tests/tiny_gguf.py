"""GGUF files of tiny random models, as llama.cpp's converter lays them out."""

import gguf
import numpy as np
from families import tiny
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ Ġ", "Ċ Ċ", "1 2", "12 3"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def llama(**changes):
    """A tiny Llama of two blocks whose sizes are multiples of 32, what a group of weights in a file is."""
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": len(TOKENS), "tie_word_embeddings": True}
    return tiny(**(sizes | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2} | changes))


def file_name(name: str) -> str:
    """What a file calls a tensor of a Llama model."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.rpartition('.')[0]]}.{rest.rpartition('.')[2]}"


def tensors(model) -> dict[str, np.ndarray]:
    """The tensors of a Llama model under the names of a file; rows of q and k in the order of llama.cpp's rotation."""
    found, config = {}, model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        value = parameter.detach().float().numpy()
        if "q_proj" in name or "k_proj" in name:
            of = heads[name.split(".")[-2]]
            value = value.reshape(of, 2, value.shape[0] // of // 2, -1).swapaxes(1, 2).reshape(value.shape)
        found[file_name(name)] = np.ascontiguousarray(value)
    return found


def write(path, model, kind=Kind.F32, kinds=None, architecture="llama", said=None, more=None, vocabulary=True):
    """Write a model with its matrices of a `kind`, those in `kinds` of another; `said` are further metadata, `more`
    further tensors. Returns the path."""
    writer, config = GGUFWriter(path, architecture), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)
        said = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.add_bos_token": False} | (said or {})
    adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for key, value in (said or {}).items():
        adders[type(value)](key, value)
    for name, value in (tensors(model) | (more or {})).items():
        its = (kinds or {}).get(name, kind) if value.ndim > 1 else Kind.F32
        writer.add_tensor(name, gguf.quantize(value, its), raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
