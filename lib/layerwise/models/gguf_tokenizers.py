"""The tokenizer that a GGUF file describes, and the description of one.

Transformers converts it too, but takes the first token of a text for the last one, splits every text as GPT-2 does
where the family is Llama, and begins none with a token. Here byte-level tokenizers are made from the file alone; of
others, transformers' conversion gets the file's special tokens.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layerwise.models import reading
from layerwise.models.folders import UnsuitableModel
from layerwise.models.gguf_files import TAKE, opened, said

# How byte-level tokenizers split a text before they merge, one pattern after the other, by the name that a file has for
# it (`tokenizer.ggml.pre`): patterns of the tokenizers of GPT-2, SmolLM, StarCoder, Llama 3 and Qwen2.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
}
TELLING = "I'll it'S  12345 a1b\n\n \t\tx-1...y!\r\n(z) é漢字🙂  end  "  # no two of SPLITS that differ split it alike
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(path: Path):
    """The tokenizer of a GGUF file, or None if it has none: its special tokens and chat template, and texts begin with
    the file's first token if it says so. A way of splitting that isn't known here is a warning."""
    file = opened(path)
    kind, tokens = said(file, "tokenizer.ggml.model"), said(file, "tokenizer.ggml.tokens")
    if not tokens:
        return None
    ids = {role: said(file, f"tokenizer.ggml.{name}_token_id") for role, name in ROLES.items()}
    special = {role: None if id is None else tokens[id] for role, id in ids.items()}
    split = said(file, "tokenizer.ggml.pre")
    if kind == "gpt2":
        if split not in SPLITS:
            warnings.warn(
                f"{path}: its tokenizer splits text in a way that isn't known here ({split!r}), so it's split as for "
                f"GPT-2. If tokens must be exact, {TAKE} and tokenizer",
                stacklevel=3,
            )
        backend = _byte_level(file, tokens, split)
        made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    else:
        with reading.quiet(bars=False):
            made = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, clean_up_tokenization_spaces=False, trust_remote_code=False
            )
        for role, token in special.items():
            setattr(made, role, token)
    made.chat_template = said(file, "tokenizer.chat_template")
    if positions := said(file, f"{said(file, 'general.architecture')}.context_length"):
        made.model_max_length = positions
    begins = said(file, "tokenizer.ggml.add_bos_token")
    if begins is None:  # then llama.cpp knows it of the kind
        begins = kind == "llama" or split == "llama-bpe"
    first = [(special["bos_token"], ids["bos_token"])] if begins and special["bos_token"] else []
    names = [token for token, _ in first]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*names, "$A"], pair=[*names, "$A", "$B"], special_tokens=first
    )
    return made


def describe_tokenizer(writer: GGUFWriter, tokenizer, size: int) -> None:
    """Write what a file says of a tokenizer whose model has a vocabulary of `size`; nothing but that if it is None.

    Raises UnsuitableModel for one that is not byte-level, splits text as none in `SPLITS` does, or has more tokens.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    told = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    written, split = told.get("model", {}), told and _split_of(tokenizer.backend_tokenizer.pre_tokenizer)
    if written.get("type") != "BPE" or not split:
        raise UnsuitableModel(
            "the tokenizer can't be written to GGUF here: those can that are byte-pair encodings of bytes and split "
            f"text as one of {', '.join(SPLITS)}. Without tokenizer, the file has the model alone"
        )
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= size:
        raise UnsuitableModel(f"the tokenizer has the token {max(ids.values())}, and the model's vocabulary is {size}")
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [TokenType.UNUSED] * size
    for token, i in ids.items():
        tokens[i], kinds[i] = token, TokenType.NORMAL
    for added in told["added_tokens"]:
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in written["merges"]])
    for role, name in ROLES.items():
        if getattr(tokenizer, role) is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", getattr(tokenizer, f"{role}_id"))
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(patterns: list[str]) -> pre_tokenizers.Sequence:
    """What splits a text by patterns, one after the other, and turns it into bytes."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _split_of(pre_tokenizer) -> str | None:
    """The name of how a tokenizer splits, by what it does: the same patterns are written in many ways."""
    found = pre_tokenizer and pre_tokenizer.pre_tokenize_str(TELLING)
    return next(
        (name for name, patterns in SPLITS.items() if _splitting(patterns).pre_tokenize_str(TELLING) == found), None
    )


def _byte_level(file, tokens: list[str], split: str | None) -> Tokenizer:
    """Byte-pair encoding of bytes, as GPT-2 and most models since have it."""
    merges = [tuple(merge.split(" ")) for merge in said(file, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
    made.pre_tokenizer = _splitting(SPLITS.get(split, SPLITS["gpt-2"]))
    made.decoder = decoders.ByteLevel()
    kinds = said(file, "tokenizer.ggml.token_type") or []
    whole = {TokenType.CONTROL: made.add_special_tokens, TokenType.USER_DEFINED: made.add_tokens}
    for kind, add in whole.items():
        found = [token for token, its in zip(tokens, kinds, strict=False) if its == kind]
        add([AddedToken(token, normalized=False, special=kind == TokenType.CONTROL) for token in found])
    return made
