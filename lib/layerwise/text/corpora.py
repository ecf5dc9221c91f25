"""Text by name and split, as windows of tokens `[n, length]`.

`CORPORA` holds one function per name; a corpus of documents is one entry, made with `from_documents`. A local `.txt` or
`.jsonl` file goes by its path. Where a tokenizer begins text with a token of its own, `tokens` has it drawn without and
puts it before every window. Windows of one draw never overlap. The splits of a file
or of any finite corpus have no text in common; those of the world are new draws over the same facts, see `world.data`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from layerwise import world
from layerwise.backbone.structure import check_positions, text_config
from layerwise.text import published, textfiles
from layerwise.world import data

SPLITS = ("calibration", "test")
TEST_SHARE = 0.2  # the end of a local file is its test split


def tokens(tokenizer, name="world", split="calibration", n=128, length=None, seed=0, bos=True, data=None) -> Tensor:
    """`n` windows of `length` tokens of a corpus, drawn by `seed`: int64 `[n, length]`.

    Parameters
    ----------
    tokenizer
        Of the model that will read the windows.
    name
        "world", one kind of its text such as "world/people", a published corpus ("wikitext2", "ptb", "c4", "alpaca",
        "pg19", downloaded once from the Hub), or the path of a text file in UTF-8 (`.txt`: one document; `.jsonl`: one
        document per line, in the field "text").
    split
        "calibration" or "test", or of "wikitext2" also "validation".
    n, length
        Windows, and tokens of each. Unless given, `length` is 2,048 for published corpora, as in the papers, and 256
        for others, or what the tokenizer says that its model takes, if that is less.
    seed
        Draws the windows.
    bos
        Whether windows begin with the token that the tokenizer begins text with, if it has one (see the notes).
    data
        A folder with a copy of the corpus's file as the Hub has it, which is then read without a network and known by
        its hash; of WikiText-2 it can also be wiki.valid.raw or wiki.test.raw, which hold the same text.

    Raises
    ------
    ValueError
        For an unknown name or split, for text too short for `n` windows, and for a file that is missing, not in UTF-8,
        or in `data` another one than was published.
    HubError
        For a published corpus that can't be downloaded.

    Notes
    -----
    The world read by its own tokenizer begins every window with a document, as its models were trained; each seed is
    other text. Elsewhere documents are joined by the end-of-text token and cut into windows without gap or overlap;
    WikiText-2, PTB and PG-19 are one document each. Where the tokenizer begins text with a token of its own, as those
    of Llama, Mistral and Gemma do, every window is that token and `length - 1` of text: their models are broken without
    it. `bos=False` leaves it out, as in older papers, where the first window of the whole text had it at most.
    """
    if tokenizer is None:
        raise ValueError("there is no tokenizer: a model saved without one can only be given tokens made elsewhere")
    name = str(name)
    corpus = published.CORPORA.get(name)
    splits = SPLITS if corpus is None else tuple(corpus.files)
    if split not in splits:
        raise ValueError(f"there is no split {split!r}: take one of {', '.join(map(repr, splits))}")
    if length is None:
        length = min(256 if corpus is None else 2048, tokenizer.model_max_length)
    begin = _begin(tokenizer, name) if bos else []
    if n < 1 or length <= len(begin):
        least = f", and that with {len(begin)} that begins it" if begin else ""
        raise ValueError(f"cannot draw {n} windows of {length} tokens: both must be at least 1{least}")
    draw = CORPORA.get(name) or partial(from_documents, partial(_file_documents, name), name=name)
    if data is not None:
        if corpus is None:
            raise ValueError(f"data has copies of {', '.join(published.CORPORA)}, and {name!r} is none of these")
        draw = partial(draw, data=data)
    text = draw(tokenizer, split=split, n=n, length=length - len(begin), seed=seed)
    return torch.cat([torch.tensor(begin, dtype=torch.int64).expand(n, -1), text], dim=1)


def about(tokenizer, name, bos=True) -> dict:
    """What windows of `tokens` depend on besides its other arguments, for what rows say of their run.

    Parameters
    ----------
    tokenizer, name, bos
        As for `tokens`.

    Returns
    -------
    about
        `bos`, whether windows begin with the tokenizer's own token, where it has one; `file`, the hash of a local file.
        Empty for the world read by its own tokenizer, and where a tokenizer has no such token for published corpora,
        copies included: their text is known by their name.
    """
    found = {}
    if _begin(tokenizer, str(name)):
        found["bos"] = bos
    if str(name) not in CORPORA:
        found["file"] = hashlib.sha256(_file(str(name)).read_bytes()).hexdigest()[:16]
    return found


def _begin(tokenizer, name: str) -> list[int]:
    """The tokens that a tokenizer puts before any text; none for the world's, in whose windows they are already."""
    if name.partition("/")[0] == "world" and _is_worlds(tokenizer):
        return []
    # Of an empty text it gives what it puts before and behind one.
    added, read = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(added, read, strict=False))]


def _is_worlds(tokenizer) -> bool:
    return tokenizer.get_vocab() == world.tokenizer().get_vocab()


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


def _from_published(tokenizer, split, n, length, seed, name, data=None) -> Tensor:
    """Windows of a published corpus; of one of many documents only as many are read as it takes."""
    corpus = published.CORPORA[name]
    if corpus.joined is not None:
        load = partial(corpus.documents, seed=seed, data=data)
        return from_documents(load, tokenizer, name=name, split=split, n=n, length=length, seed=seed)
    stream = _stream(tokenizer, corpus.documents(split, seed, data), enough=n * length)
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
    if _is_worlds(tokenizer):
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


def check_text(model, tokens: Tensor) -> None:
    """Raise ValueError unless `model` can read `tokens` `[n, length]`: all in its vocabulary, as `check_tokens` says,
    and windows no longer than its table of positions. Warns of windows beyond what computed positions were made for.
    """
    check_tokens(tokens, text_config(model).vocab_size)
    check_positions(model, tokens)


def check_mask(mask: Tensor | None, tokens: Tensor) -> None:
    """Raise unless `mask` is None or has the shape of `tokens` `[n, length]` and keeps at least one of them."""
    if mask is not None and not (mask.shape == tokens.shape and mask.any()):
        raise ValueError(
            f"mask must have the shape of the tokens, {list(tokens.shape)}, and keep at least one; "
            f"it has the shape {list(mask.shape)} and keeps {int(mask.sum())}"
        )


def _file(name: str) -> Path:
    """The path of a local file of text, or an error that says what there is instead."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".txt", ".jsonl"):
        close = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no corpus {name!r}.{hint} Corpora are {', '.join(CORPORA)}, or the path of a .txt or .jsonl file"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")
    return path


def _file_documents(name: str, split: str) -> list[str]:
    """Documents of one split of a local file; the last fifth of its text or lines is the test split."""
    path = _file(name)
    if path.suffix.lower() == ".txt":
        text = textfiles.read_text(path)
        cut = int(len(text) * (1 - TEST_SHARE))
        space = re.compile(r"\s|$").search(text, cut)  # no word is in both splits
        return [text[space.end() :] if split == "test" else text[: space.start()]]
    records = textfiles.json_lines(path)
    for number, record in records:
        if not isinstance(record.get("text"), str):
            raise ValueError(f'{name}, line {number} is not a JSON object with a string "text"')
    documents = [record["text"] for _, record in records]
    cut = round(len(documents) * (1 - TEST_SHARE))
    return documents[cut:] if split == "test" else documents[:cut]


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
