"""A plan found by search: within its bytes, better than where it began, and told with what it took."""

import layerwise as lw
import numpy as np
import pytest
from families import random_tokens, uneven
from layerwise.quantization import RTN

TOKENS = random_tokens(6, 12)
QUANTIZER, WIDTHS = RTN(16), (2, 4, 8)


def alike(shape, bits):
    return lw.plans.by_part(shape, [bits] * len(shape.parts))


def test_a_search_keeps_to_its_bytes_and_only_gets_better():
    model = uneven()
    shape = lw.shape(model)
    start = lw.plans.by_part(shape, [2, 8] * (len(shape.parts) // 2) + [4] * (len(shape.parts) % 2))
    budget = start.predicted_bytes(shape, QUANTIZER.stored)
    found = lw.evolve(model, TOKENS, QUANTIZER, WIDTHS, budget, start, generations=6)
    assert found.plan.predicted_bytes(shape, QUANTIZER.stored) <= budget
    assert {*found.plan.bits_by_part(shape)} <= {*WIDTHS} and found.plan != start
    before = lw.compare(lw.compress(model, start, quantizer=QUANTIZER), model, TOKENS).kl
    after = lw.compare(lw.compress(model, found.plan, quantizer=QUANTIZER), model, TOKENS).kl
    assert after == pytest.approx(found.kl[-1], abs=1e-6) and after < before
    assert len(found.kl) == 6 and (np.diff(found.kl) <= 0).all()
    # The start on all six windows; in each generation sixteen plans on two of them, and four on all.
    assert found.passes == 6 + 6 * (16 * 2 + 4 * 6)
    again = lw.evolve(model, TOKENS, QUANTIZER, WIDTHS, budget, start, generations=6)
    assert again.plan == found.plan


def test_a_search_spends_bytes_that_are_left():
    model = uneven()
    shape = lw.shape(model)
    start = alike(shape, 2)
    budget = alike(shape, 4).predicted_bytes(shape, QUANTIZER.stored)
    found = lw.evolve(model, TOKENS, QUANTIZER, WIDTHS, budget, start, generations=3)
    taken = found.plan.predicted_bytes(shape, QUANTIZER.stored)
    assert start.predicted_bytes(shape, QUANTIZER.stored) < taken <= budget


def test_a_start_that_can_not_be_is_an_error():
    model = uneven()
    shape = lw.shape(model)
    with pytest.raises(ValueError, match="takes .* bytes, more than 1000"):
        lw.evolve(model, TOKENS, QUANTIZER, WIDTHS, 1000, alike(shape, 4))
    with pytest.raises(ValueError, match="parts at 3 bits, not in widths"):
        lw.evolve(model, TOKENS, QUANTIZER, WIDTHS, "1 GB", alike(shape, 3))
