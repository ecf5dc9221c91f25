"""Tiny random models, one row for each supported family: what tests use until they need trained weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 56}

FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "phi3": GROUPED,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi": {"intermediate_size": 64},
}


def config(family: str, **changes):
    """Configuration of a tiny model of a family: 3 blocks of width 32, 96 tokens, unless `changes` say otherwise."""
    return AutoConfig.for_model(family, **(SMALL | FAMILIES.get(family, {}) | changes))


def tiny(family: str = "llama", seed: int = 0, **changes):
    """A tiny random model in eval mode and float32; weights large enough that blocks do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, initializer_range=0.15, **changes))
        if family == "opt":  # its initialisation has one fixed scale: let the biases and norms differ too
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def random_tokens(n: int = 5, length: int = 12, vocabulary: int = 96, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 [n, length]."""
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))
