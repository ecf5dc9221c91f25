"""Text by name and split, as windows of tokens `[n, length]`.

`CORPORA` holds one function per name; a corpus of documents is one entry, made with `from_documents`. A local `.txt` or
`.jsonl` file goes by its path. Windows of one draw never overlap. The splits of a file
or of any finite corpus have no text in common; those of the world are new draws over the same facts, see `world.data`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from layerwise import published, world
from layerwise.world import data

SPLITS = ("calibration", "test")
TEST_SHARE = 0.2  # the end of a local file is its test split


def tokens(tokenizer, name="world", split="calibration", n=128, length=None, seed=0) -> Tensor:
    """`n` windows of `length` tokens of a corpus, drawn by `seed`: int64 `[n, length]`.

    `name` is "world", one kind of its text such as "world/people", a published corpus ("wikitext2", "ptb", "c4",
    "alpaca", "pg19", downloaded once from the Hub), or the path of a text file (`.txt`: one document; `.jsonl`: one
    document per line, in the field "text"). `split` is "calibration" or "test". Unless given, `length` is 2,048 for
    published corpora, as in the papers, and 256 for others.

    The world read by its own tokenizer begins every window with a document, as its models were trained; each seed is
    other text. Elsewhere documents are joined by the end-of-text token and cut into windows without gap or overlap;
    WikiText-2, PTB and PG-19 are one document each.

    Raises ValueError for an unknown name or split, and for text too short for `n` windows; HubError for a published
    corpus that can't be downloaded.
    """
    if tokenizer is None:
        raise ValueError("there is no tokenizer: a model saved without one can only be given tokens made elsewhere")
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: take one of {', '.join(map(repr, SPLITS))}")
    name = str(name)
    if length is None:
        length = 2048 if name in published.CORPORA else 256
    if n < 1 or length < 1:
        raise ValueError(f"cannot draw {n} windows of {length} tokens: both must be at least 1")
    draw = CORPORA.get(name) or partial(from_documents, partial(_file_documents, name), name=name)
    return draw(tokenizer, split=split, n=n, length=length, seed=seed)


def from_documents(load: Callable[[str], Iterable[str]], tokenizer, name, split, n, length, seed) -> Tensor:
    """Windows of a finite corpus, where `load(split)` gives its documents: int64 `[n, length]` in random order."""
    stream = _stream(tokenizer, load(split))
    _check_length(stream, name, split, n, length)
    generator = torch.Generator().manual_seed(seed)
    # The rest that fills no window is split by chance between both ends, so that seeds cut at different places.
    offset = int(torch.randint(len(stream) % length + 1, (1,), generator=generator))
    whole = torch.tensor(stream[offset:], dtype=torch.int64)
    whole = whole[: len(whole) // length * length].view(-1, length)
    return whole[torch.randperm(len(whole), generator=generator)[:n]]


def _from_published(tokenizer, split, n, length, seed, name) -> Tensor:
    """Windows of a published corpus; of one of many documents only as many are read as it takes."""
    corpus = published.CORPORA[name]
    if corpus.joined is not None:
        load = partial(corpus.documents, seed=seed)
        return from_documents(load, tokenizer, name=name, split=split, n=n, length=length, seed=seed)
    stream = _stream(tokenizer, corpus.documents(split, seed), enough=n * length)
    _check_length(stream, name, split, n, length)
    return torch.tensor(stream[: n * length], dtype=torch.int64).view(n, length)


def _check_length(stream, name, split, n, length):
    if len(stream) < n * length:
        raise ValueError(
            f"the {split} split of {name!r} is too short: {n} windows of {length} tokens need {n * length}, and it has "
            f"{len(stream)}, enough for n={len(stream) // length}"
        )


def _from_world(tokenizer, split, n, length, seed, kind=None) -> Tensor:
    """Windows of the embedded world, whose text has no end; for another model's tokenizer its documents in a row."""
    if tokenizer.get_vocab() == world.tokenizer().get_vocab():
        rows, _ = data.rows(split, n, length=length, seed=seed, kind=kind)
        return torch.from_numpy(rows.astype("int64"))
    documents = (text for text, _ in data.documents(split, seed=seed, kind=kind))
    stream = _stream(tokenizer, documents, enough=n * length)
    return torch.tensor(stream[: n * length], dtype=torch.int64).view(n, length)


CORPORA: dict[str, Callable[..., Tensor]] = {
    "world": _from_world,
    **{f"world/{kind}": partial(_from_world, kind=kind) for kind in data.KINDS},
    **{name: partial(_from_published, name=name) for name in published.CORPORA},
}


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Raise unless `tokens` is an integer tensor `[n, length]`, not empty, with every value in `[0, vocab_size)`."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex() or tokens.ndim != 2:
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens must be an integer tensor [n, length], as lw.tokens gives them, not {got}")
    if tokens.numel() == 0:
        raise ValueError(f"tokens are empty: their shape is {list(tokens.shape)}")
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        window, position = outside.nonzero()[0].tolist()
        raise ValueError(
            f"token {tokens[window, position].item()} at window {window}, position {position} is outside the "
            f"vocabulary of {vocab_size} (0 to {vocab_size - 1}), and so are {int(outside.sum()) - 1} more: the tokens "
            "come from another model's tokenizer"
        )


def check_mask(mask: Tensor | None, tokens: Tensor) -> None:
    """Raise unless `mask` is None or has the shape of `tokens` `[n, length]` and keeps at least one of them."""
    if mask is not None and not (mask.shape == tokens.shape and mask.any()):
        raise ValueError(
            f"mask must have the shape of the tokens, {list(tokens.shape)}, and keep at least one; "
            f"it has the shape {list(mask.shape)} and keeps {int(mask.sum())}"
        )


def _file_documents(name: str, split: str) -> list[str]:
    """Documents of one split of a local file; the last fifth of its text or lines is the test split."""
    path = Path(name).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        close = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no corpus {name!r}.{hint} Corpora are {', '.join(CORPORA)}, or the path of a .txt or .jsonl file"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        cut = int(len(text) * (1 - TEST_SHARE))
        space = re.compile(r"\s|$").search(text, cut)  # no word is in both splits
        return [text[space.end() :] if split == "test" else text[: space.start()]]
    records = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    cut = round(len(records) * (1 - TEST_SHARE))
    chosen = records[cut:] if split == "test" else records[:cut]
    return [_text_field(line, f"{name}, line {number}") for number, line in chosen]


def _text_field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{where} is not a JSON object with a string "text"')
    return text


def _stream(tokenizer, documents: Iterable[str], enough: int | None = None) -> list[int]:
    """Token ids of all documents, each followed by the end-of-text token; stops once there are `enough`."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found: list[int] = []
    for text in filter(None, documents):
        # verbose=False: a text longer than the model's context is what is wanted here, so no warning of it.
        found += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
        if enough is not None and len(found) >= enough:
            break
    return found
