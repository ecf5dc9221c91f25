"""What scores are given by mistake: each error names what was wrong, where, and what would be right."""

import numpy as np
import pytest
import torch
from families import random_tokens, tiny
from layerwise import corpora, scores
from layerwise.backbone.structure import blocks


def test_tokens_outside_the_vocabulary_are_named_with_their_place():
    tokens = random_tokens()
    tokens[2, 5] = 96
    message = r"token 96 at window 2, position 5 is outside the vocabulary of 96 \(0 to 95\).*another model's tokenizer"
    for attempt in (lambda: scores.lim(tiny(), tokens), lambda: corpora.check_tokens(tokens, 96)):
        with pytest.raises(ValueError, match=message):
            attempt()
    tokens[1, 0] = -100
    with pytest.raises(ValueError, match="token -100 at window 1, position 0.*and so are 1 more"):
        scores.lim(tiny(), tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"\[n, length\].*not torch.int64 \[3\]"),
        (torch.zeros(3, 4), r"integer tensor.*not torch.float32 \[3, 4\]"),
        ([[1, 2]], "not list"),
        (torch.zeros(0, 4, dtype=torch.int64), r"tokens are empty: their shape is \[0, 4\]"),
    ],
)
def test_tokens_of_another_kind(tokens, message):
    with pytest.raises(ValueError, match=message):
        scores.lim(tiny(), tokens)


def test_masks_that_fit_nothing():
    tokens = random_tokens(5, 12)
    with pytest.raises(ValueError, match=r"shape of the tokens, \[5, 12\].*has the shape \[5, 11\]"):
        scores.lim(tiny(), tokens, mask=torch.ones(5, 11))
    with pytest.raises(ValueError, match="at least one; it has the shape .* and keeps 0"):
        scores.lim(tiny(), tokens, mask=torch.zeros(5, 12))


def test_nan_in_weights_names_the_block():
    model = tiny()
    blocks(model)[1].mlp.down_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match="block 1 of 3 puts out NaN or infinity .window 0, position 0"):
        scores.lim(model, random_tokens())
    with pytest.raises(ValueError, match="block 1: the weights of mlp.down_proj hold NaN or infinity"):
        scores.zd(model)


def test_nan_in_the_embedding_is_not_blamed_on_a_block():
    model, tokens = tiny(), random_tokens(9)
    token = next(t for t in range(96) if not (tokens[:6] == t).any() and (tokens[6:] == t).any())
    model.model.embed_tokens.weight.data[token] = torch.inf
    with pytest.raises(ValueError, match="block 0 of 3 is given NaN or infinity .window [678], position"):
        scores.lim(model, tokens, batch=4)


def test_own_score_of_another_shape():
    def first_two(model, tokens):
        return np.zeros(2)

    with pytest.raises(ValueError, match=r"first_two gave the shape \[2\]: a score gives one number per block, \[3\]"):
        scores.measure(first_two, tiny(), random_tokens())
