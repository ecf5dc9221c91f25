"""Tiny random models, one row for each family, those that can be sliced and others: what tests use until they need
trained weights."""

import layerwise as lw
import torch
from layerwise.plans import Layer, Plan
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

# Decoder-only families that slicing doesn't know: all else works for them.
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}

DECODERS = {
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": GROUPED,
    "cohere2": GROUPED | ALTERNATING,
    "exaone4": GROUPED | ALTERNATING,
    "falcon": {"new_decoder_architecture": False},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | ALTERNATING | {"head_dim": 8},
    "gemma3_text": GROUPED | ALTERNATING | {"head_dim": 8},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["local"], 1]], "window_size": 4},
    "gpt_neox": {"intermediate_size": 56},
    "gptj": {"rotary_dim": 4},
    "granite": GROUPED | {"residual_multiplier": 0.5},
    "mpt": {},
    "nemotron": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "smollm3": GROUPED | {"no_rope_layers": [1, 0, 1]},
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "gpt_oss": GROUPED | EXPERTS | ALTERNATING | {"head_dim": 8},
    "llama4_text": GROUPED
    | EXPERTS
    | {"moe_layers": [0, 2], "no_rope_layers": [1, 0, 1], "intermediate_size_mlp": 56, "attention_chunk_size": 4},
    "mixtral": GROUPED | EXPERTS,
    "phimoe": GROUPED | EXPERTS,
    "qwen3_moe": GROUPED | EXPERTS | {"num_experts": 4, "mlp_only_layers": [1], "head_dim": 8},
}
MIXTURES = ("gpt_oss", "llama4_text", "mixtral", "phimoe", "qwen3_moe")  # their experts are one parameter

# Configurations that change what a block does or what is stored, and that checkpoints of these families do have.
VARIANTS = {
    # With more tokens than three widths one table takes less than two that are cut, even where the head is cut too.
    "llama, tied": ("llama", {"tie_word_embeddings": True, "vocab_size": 384}),
    "llama, every bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, sliding window": ("mistral", {"sliding_window": 4}),
    "qwen2, two kinds of attention": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16}),
    "phi3, half rotary": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": 4}),
    "opt, no shift and no bias": ("opt", {"layer_norm_elementwise_affine": False, "enable_bias": False}),
    "opt, untied": ("opt", {"tie_word_embeddings": False}),
    "opt, many tokens": ("opt", {"vocab_size": 384}),  # tied, as is its default
    "phi, tied": ("phi", {"tie_word_embeddings": True, "vocab_size": 384}),
    "phi, norms on heads": ("phi", {"qk_layernorm": True}),
}


def config(family: str, **changes):
    """Configuration of a tiny model of a family: 3 blocks of width 32, 96 tokens, unless `changes` say otherwise."""
    return AutoConfig.for_model(family, **(SMALL | (FAMILIES | DECODERS).get(family, {}) | changes))


def tiny(family: str = "llama", seed: int = 0, **changes):
    """A tiny random model in eval mode and float32; weights large enough that blocks do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, initializer_range=0.15, **changes))
        if family == "opt":  # its initialisation has one fixed scale: let the biases and norms differ too
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def uneven(family: str = "llama", dtype: torch.dtype = torch.float64, **changes):
    """A tiny model whose norms and biases are random too: in a new one they are 1 and 0, and hide what they do."""
    model = tiny(family, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model.to(dtype)


def random_tokens(n: int = 5, length: int = 12, vocabulary: int = 96, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 [n, length]."""
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """What the model says of tokens, without gradients; of some random ones that other seeds draw if none are given."""
    with torch.no_grad():
        return model(random_tokens(3, 12, seed=99) if tokens is None else tokens).logits


# Slices of them.


def slices(*widths: int, head: int | None = None) -> Plan:
    """The plan that slices a tiny model to these widths."""
    return Plan(tuple(Layer(width=width) for width in widths), SMALL["hidden_size"], head)


CUT = slices(20, 29, 11)
CUT_HEAD = slices(20, 29, 11, head=17)
CALIBRATIONS = ("sequential", "shared")


def sliced(calibration: str, model, plan: Plan, tokens: torch.Tensor, **options):
    """The model sliced to the plan with either calibration on the tokens."""
    if calibration == "sequential":
        return lw.compress(model, plan, tokens, **options)
    return lw.compress(model, plan, calibration=lw.calibrate(model, tokens, **options))
