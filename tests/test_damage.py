import copy

import numpy as np
import pytest
from families import FAMILIES, random_tokens, tiny
from layerwise import damage, evaluation, structure
from layerwise.quantization import RTN
from torch import nn


@pytest.fixture(scope="module")
def model():
    return tiny()


TOKENS = random_tokens()


def like(output, hidden):
    """`hidden` the way that the block gives it, see `structure.written`."""
    return (hidden,) if isinstance(output, tuple) else hidden


def naively(model, i, kind, tokens):
    """The literal way: copy the model, damage one block, run all of it."""
    damaged = copy.deepcopy(model)
    blocks = structure.blocks(damaged)
    if kind == "removed":
        whole = blocks[i].forward
        blocks[i].forward = lambda hidden, *args, **kwargs: like(whole(hidden, *args, **kwargs), hidden)
    else:
        RTN().block(blocks[i], int(kind[0]))
    return evaluation.compare(damaged, model, tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_starting_at_the_block_equals_running_the_whole_damaged_model(family):
    model = tiny(family)
    found = damage.by_block(model, TOKENS, batch=2).set_index(["kind", "block"])
    assert len(found) == 3 * 3
    for (kind, block), row in found.iterrows():
        expected = naively(model, block, kind, TOKENS)
        assert row[list(expected._fields)].to_list() == pytest.approx(expected, rel=1e-4, abs=1e-7), (kind, block)
        assert row.kl > 0


def test_damage_of_window_does_not_depend_on_the_batch(model):
    one, all_ = (damage.by_window(model, TOKENS, batch=batch) for batch in (1, 5))
    assert one[["kind", "block", "window"]].equals(all_[["kind", "block", "window"]])
    assert np.allclose(one[["kl", "loss"]], all_[["kl", "loss"]], atol=1e-6)


def test_matrix_holds_windows_by_block(model):
    windows = damage.by_window(model, TOKENS)
    table = damage.by_block(model, TOKENS).query("kind == '4 bits'")
    matrix = damage.matrix(windows, "4 bits")
    assert matrix.shape == (3, 5)
    assert matrix.mean(axis=1) == pytest.approx(table.kl.to_numpy())
    with pytest.raises(ValueError, match="'3 bits' was measured; there is removed, 4 bits, 2 bits"):
        damage.matrix(windows, "3 bits")


def test_fewer_bits_hurt_more(model):
    kl = damage.by_block(model, TOKENS, kinds=("8 bits", "4 bits", "2 bits")).groupby("kind", observed=True).kl.mean()
    assert kl["8 bits"] < kl["4 bits"] < kl["2 bits"]


def test_a_function_of_ones_own_is_a_kind(model):
    def untouched(block):
        return block

    def silent_mlp(block):
        nn.init.zeros_(block.mlp.down_proj.weight)
        return block

    kl = damage.by_block(model, TOKENS, kinds=(untouched, silent_mlp)).groupby("kind", observed=True).kl.max()
    assert kl["untouched"] == pytest.approx(0, abs=1e-9) and kl["silent_mlp"] > 1e-3


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    return all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_the_model_is_left_as_it_was(model):
    before, expected = state(model), model(TOKENS).logits
    damage.by_window(model, TOKENS)
    assert same(model, before) and model(TOKENS).logits.equal(expected)


def test_an_interrupt_leaves_the_model_as_it_was(model):
    before, expected = state(model), model(TOKENS).logits

    class Stop(nn.Module):
        def forward(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        damage.by_window(model, TOKENS, kinds=("2 bits", lambda block: Stop()))
    assert same(model, before) and model(TOKENS).logits.equal(expected)
    assert not any("forward" in vars(block) for block in structure.blocks(model))


@pytest.mark.parametrize("kind", ["pruned", "40 bits", ""])
def test_an_unknown_kind_says_which_there_are(model, kind):
    with pytest.raises(ValueError, match="'removed', 'N bits'"):
        damage.by_window(model, TOKENS, kinds=(kind,))


def test_two_functions_of_one_name_are_not_mixed_up(model):
    with pytest.raises(ValueError, match="share a name: <lambda>, <lambda>"):
        damage.by_window(model, TOKENS, kinds=(lambda block: block, lambda block: block))
