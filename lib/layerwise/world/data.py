"""Text of the world as rows of tokens, with the floor of each row: what no reader can predict of it.

The splits are new draws of text over the same world: the facts are those of every split, and so short documents that
state nothing but facts (of `taxonomy` and `uses` above all) occur in several. Stories, scripts and sums are new.

Rows are drawn in blocks whose random state depends only on (split, seed, kind, block number), so any row can be had
without the ones before it, and a training run that resumes sees the same text.
"""

import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .documents import Writer, people, scripts, sums, taxonomy, uses
from .entities import World
from .stories import stories
from .tokens import tokenizer

WRITERS = {"people": people, "stories": stories, "taxonomy": taxonomy, "uses": uses, "scripts": scripts, "sums": sums}
# how often a document of each kind comes; as documents differ in length, the shares of tokens are about
# 31 % people, 20 % stories, 19 % sums, 11 % taxonomy, 11 % scripts and 8 % uses
KIND_WEIGHTS = {"people": 60, "stories": 14, "taxonomy": 28, "uses": 32, "scripts": 7, "sums": 18}
KINDS = tuple(WRITERS)
SPLITS = ("train", "calibration", "test")
BLOCK = 256  # rows per block


@lru_cache(maxsize=2)
def world(seed: int = 0) -> World:
    return World(seed)


def documents(split: str, seed: int = 0, kind: str | None = None, block: int = 0) -> Iterator[tuple[str, list]]:
    """Endless documents as (text, surprisal), the latter as `Writer.surprisal` gives it: [(end, nats), ...]."""
    rng = random.Random(f"{split}-{seed}-{kind}-{block}")
    facts = world()
    total = sum(KIND_WEIGHTS.values())
    cumulative = np.cumsum([w / total for w in KIND_WEIGHTS.values()]).tolist()
    while True:
        writer = Writer(rng)
        chosen = kind or writer.choose_weighted(KINDS, cumulative)
        WRITERS[chosen](writer, facts)
        yield writer.text(), writer.surprisal()


def rows(
    split: str, n: int, length: int = 256, seed: int = 0, kind: str | None = None, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `start … start + n - 1` of a split.

    Returns `tokens` uint16 [n, length] and `floor` float64 [n]: the surprisal in nats of what the `length - 1` tokens
    of each row that a model predicts tell for certain, to a reader who knows the world and the generator. No model's
    loss, summed over these tokens, has an expectation below that of `floor`. Every row begins with the end-of-text
    token at the beginning of a document, so that nothing a reader needs lies outside it; the last document of a row
    is cut, and counts as far as it goes.

    kind: one of `KINDS`, or None for the mixture that the embedded models are trained on.
    Raises ValueError for an unknown split or kind.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: the world has {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of text {kind!r}: the world has {', '.join(KINDS)}")
    tokens = np.empty((n, length), np.uint16)
    floor = np.empty(n)
    for block in range(start // BLOCK, -(-(start + n) // BLOCK)):
        block_tokens, block_floor = _block(split, seed, kind, block, length)
        low, high = max(start, block * BLOCK), min(start + n, (block + 1) * BLOCK)
        tokens[low - start : high - start] = block_tokens[low - block * BLOCK : high - block * BLOCK]
        floor[low - start : high - start] = block_floor[low - block * BLOCK : high - block * BLOCK]
    return tokens, floor


@lru_cache(maxsize=4)
def _block(split: str, seed: int, kind: str | None, block: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    source = documents(split, seed, kind, block)
    backend = tokenizer().backend_tokenizer
    end = tokenizer().eos_token_id
    tokens = np.empty((BLOCK, length), np.uint16)
    floor = np.zeros(BLOCK)
    row, filled = 0, 0
    ended = 0.0  # nats of what the last document's end tells: counted when another end-of-text token follows
    while row < BLOCK:
        batch = [next(source) for _ in range(256)]
        for (text, surprisal), code in zip(
            batch, backend.encode_batch([t for t, _ in batch], add_special_tokens=False), strict=True
        ):
            floor[row] += ended
            ids = [end, *code.ids][: length - filled]
            tokens[row, filled : filled + len(ids)] = ids
            reached = code.offsets[len(ids) - 2][1] if len(ids) > 1 else 0
            floor[row] += sum(nats for told, nats in surprisal if told <= reached)
            ended = sum(nats for told, nats in surprisal if told > len(text))
            filled += len(ids)
            if filled == length:
                row, filled, ended = row + 1, 0, 0.0
                if row == BLOCK:
                    break
    return tokens, floor
