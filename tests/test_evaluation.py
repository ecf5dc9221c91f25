import copy
import math

import layerwise as lw
import pytest
import torch
from layerwise import evaluation, stats
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    config = LlamaConfig(**{"num_attention_heads": 2, "max_position_embeddings": 64, **sizes, **changes})
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(50, (7, 16), generator=torch.Generator().manual_seed(0))


def spoiled(model, scale=0.3):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return other


def test_perplexity_is_exp_of_the_loss_of_transformers(model, tokens):
    with torch.no_grad():
        theirs = model(input_ids=tokens, labels=tokens).loss.item()
    value, low, high = evaluation.perplexity(model, tokens, batch=3)
    assert math.log(value) == pytest.approx(theirs, abs=1e-5)
    assert low < value < high


def test_the_interval_is_over_windows(model, tokens):
    losses = evaluation.window_losses(model, tokens, batch=3)
    with torch.no_grad():
        theirs = [model(input_ids=row[None], labels=row[None]).loss.item() for row in tokens]
    assert losses.tolist() == pytest.approx(theirs, abs=1e-5)
    assert evaluation.perplexity(model, tokens) == pytest.approx([math.exp(x) for x in stats.mean(theirs)], rel=1e-5)


def test_a_bfloat16_model_is_read_in_float32(model, tokens):
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        logits = half(input_ids=tokens).logits.float()
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert math.log(evaluation.perplexity(half, tokens).value) == pytest.approx(expected, abs=1e-5)


def test_compare_is_loss_difference_and_kl_from_the_second_model(model, tokens):
    worse = spoiled(model)
    with torch.no_grad():
        p, q = (F.log_softmax(m(input_ids=tokens).logits[:, :-1].double(), dim=-1) for m in (worse, model))
    targets = tokens[:, 1:, None]
    found = evaluation.compare(worse, model, tokens, batch=3)
    assert found.loss == pytest.approx((q - p).gather(2, targets).mean().item(), abs=1e-6)
    assert found.kl == pytest.approx((q.exp() * (q - p)).sum(-1).mean().item(), abs=1e-6)
    assert found.kl_low < found.kl < found.kl_high and found.loss_low < found.loss < found.loss_high


@pytest.fixture(scope="module")
def trained(model, tokens):
    """The model after a moment's training on the first windows, which have become easy."""
    trained = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    for _ in range(10):
        trained(input_ids=tokens[:4], labels=tokens[:4]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return trained


def test_positive_means_that_the_first_is_worse(model, trained, tokens):
    assert evaluation.compare(model, trained, tokens[:4]).loss_low > 0
    assert evaluation.compare(trained, model, tokens[:4]).loss_high < 0


def test_a_model_does_not_differ_from_itself(model, tokens):
    assert evaluation.compare(model, model, tokens) == (0, 0, 0, 0, 0, 0)


def test_pairing_narrows_the_interval(trained, tokens):
    other = spoiled(trained, 0.01)
    paired = evaluation.compare(other, trained, tokens)
    alone = stats.mean(evaluation.window_losses(other, tokens))
    assert (paired.loss_high - paired.loss_low) < 0.3 * (alone.high - alone.low)


def test_size_counts_tied_tensors_once():
    untied, tied = tiny(), tiny(tie_word_embeddings=True)
    head = untied.lm_head.weight.numel()
    assert evaluation.size(untied) == (sum(p.numel() for p in untied.parameters()), 4 * untied.num_parameters())
    assert evaluation.size(untied).parameters - evaluation.size(tied).parameters == head
    assert evaluation.size(copy.deepcopy(untied).bfloat16()).bytes == 2 * untied.num_parameters()


def test_size_is_that_of_the_checkpoint_whatever_it_is_computed_in():
    model = tiny()
    model.stored_dtype = torch.bfloat16
    assert evaluation.size(model).bytes == 2 * model.num_parameters()


def test_size_counts_scales_as_they_are_whatever_the_checkpoint_was_in():
    plan = lw.plans.bits(lw.shape(tiny()), [0, 1], low_layers=2)
    small = lw.compress(tiny().half(), plan)
    as_it_is = evaluation.size(small).bytes
    outside = sum(p.numel() for p in small.parameters())
    small.stored_dtype = torch.float32
    assert evaluation.size(small).bytes - as_it_is == 2 * outside


def test_size_needs_no_weights():
    with torch.device("meta"):
        shapes = tiny(tie_word_embeddings=True)
    assert evaluation.size(shapes) == evaluation.size(tiny(tie_word_embeddings=True))


def test_models_that_cannot_be_compared(model, tokens):
    with pytest.raises(ValueError, match="60 and 50 tokens"):
        evaluation.compare(tiny(vocab_size=60), model, tokens)


def test_windows_with_nothing_to_predict(model, tokens):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        evaluation.perplexity(model, tokens[:, :1])


def test_a_model_that_overflows_has_no_perplexity(model, tokens):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="logits are not finite"):
        evaluation.perplexity(broken, tokens)
