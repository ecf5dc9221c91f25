"""What widths are predicted to cost: against derivatives taken one word at a time, and against what they do cost."""

import sys

import layerwise as lw
import numpy as np
import pytest
import torch
from families import DECODERS, MIXTURES, logits, random_tokens, tiny, uneven
from layerwise.__main__ import main
from layerwise.backbone.structure import blocks, linears
from layerwise.costs.gradients import pass_back
from layerwise.costs.tables import Rounding, weight_tables
from layerwise.quantization import GPTQ, RTN
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

TOKENS = random_tokens(3, 10)
QUANTIZER = RTN(16)
WIDTHS = (2, 4, None)
BUILT_IN = {
    "predicted": lw.costs.predicted,
    "fisher": lw.costs.fisher,
    "fisher along": lw.costs.fisher_along,
    "measured": lw.costs.measured,
    "noise": lw.costs.noise,
    "first order": lw.costs.first_order,
    "output error": lw.costs.output_error,
    "relative error": lw.costs.relative_error,
    "by LIM": lw.costs.by_importance(lw.scores.lim),
}


def exact_fisher(model, tokens, widths):
    """The same by its definition: squared gradients of every word's log-probability at every position, weighted with
    the probability of the word, and with squared errors, which are averaged in a cell."""
    each, rounding = weight_tables(model), Rounding(QUANTIZER, widths)
    weights = [table.module.weight for table in each]
    model.requires_grad_(True)
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for window in tokens:
        log_p = model(window[None]).logits[0].log_softmax(-1)
        for position in log_p:
            for word, probability in zip(position, position.detach().exp(), strict=True):
                for total, gradient in zip(sums, torch.autograd.grad(word, weights, retain_graph=True), strict=True):
                    total += probability * gradient.square()
    model.requires_grad_(False)
    found = []
    for table, total in zip(each, sums, strict=True):
        total = total if total.shape == table.weight.shape else total.T
        squares = [rounding.error(table.weight, bits).double().square() for bits in widths]
        found.append([(total * _averaged(each)).sum().item() for each in squares])
    return np.array(found) / (2 * tokens.numel())


def _averaged(squares, cell=64):
    return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in squares.split(cell, dim=1)], dim=1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fisher_is_unbiased(family):
    model = uneven(family, vocab_size=11, num_hidden_layers=1)
    tokens = random_tokens(2, 5, vocabulary=11)
    expected = exact_fisher(model, tokens, WIDTHS)
    draws = np.concatenate([lw.costs.fisher_by_window(model, tokens, QUANTIZER, WIDTHS, seed) for seed in range(150)])
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert (expected[:, :2] > 0).all() and (expected[:, 2] == 0).all()
    apart = np.abs(draws.mean(axis=0) - expected)[:, :2] / error[:, :2]
    assert np.mean(apart) < 1.2 and apart.max() < 4.5  # of standard errors
    assert np.median(error[:, :2] / expected[:, :2]) < 0.1


def exact_along(model, tokens, widths):
    """What `fisher_along` estimates, by its definition: for every word at every position, weighted with its
    probability, the squared product of the gradient by what a matrix puts out and what its error changes there."""
    each, rounding = weight_tables(model), Rounding(QUANTIZER, widths)
    each = [table for table in each if table.block is not None]
    seen = {}
    for table in each:
        table.module.register_forward_hook(
            lambda module, args, out, j=table: seen.update({id(j.module): (args[0], out)})
        )
    model.requires_grad_(True)
    found = np.zeros((len(each), len(widths)))
    for window in tokens:
        log_p = model(window[None]).logits[0].log_softmax(-1)
        entered, left = zip(*(seen[id(table.module)] for table in each), strict=True)
        errors = [[rounding.error(table.weight, bits) for bits in widths] for table in each]
        changed = [[(x[0] @ e.T.to(x)).detach() for e in own] for x, own in zip(entered, errors, strict=True)]
        for position in log_p:
            for word, probability in zip(position, position.detach().exp(), strict=True):
                gradients = torch.autograd.grad(word, left, retain_graph=True)
                for j, (gradient, own) in enumerate(zip(gradients, changed, strict=True)):
                    along = [(gradient[0] * each).sum(1).square().sum().item() for each in own]
                    found[j] += probability.item() * np.array(along)
    model.requires_grad_(False)
    return found / (2 * tokens.numel())


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # one with a head of its own, one whose head is the embedding
def test_a_pass_back_block_by_block_is_that_of_autograd(family):
    model = uneven(family)
    each, tokens = weight_tables(model), random_tokens(2, 6)
    parts = list(pass_back(model.requires_grad_(True), each, tokens, torch.Generator().manual_seed(3)))
    assert len(parts) == 2 * len(each) == len({part[:2] for part in parts})
    generator = torch.Generator().manual_seed(3)
    for n, window in enumerate(tokens):
        log_p = model(window[None]).logits[0].float().log_softmax(-1)
        words = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        signs = torch.randint(0, 2, (len(window),), generator=generator) * 2 - 1
        total = (log_p.gather(1, words)[:, 0] * signs).sum()
        expected = torch.autograd.grad(total, [table.module.weight for table in each])
        for part in (part for part in parts if part.window == n):
            module, gradient = each[part.table].module, expected[part.table]
            gradient = gradient.T if isinstance(module, Conv1D) else gradient
            torch.testing.assert_close(part.gradient(), gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fisher_along_errors_is_unbiased(family):
    model = uneven(family, vocab_size=11, num_hidden_layers=1)
    tokens = random_tokens(2, 5, vocabulary=11)
    expected = exact_along(model, tokens, WIDTHS)
    draws = np.stack([lw.costs.fisher_along(model, tokens, QUANTIZER, WIDTHS, seed) for seed in range(300)])
    draws = draws[:, : len(expected)]
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    apart = np.abs(draws.mean(axis=0) - expected)[:, :2] / error[:, :2]
    assert np.mean(apart) < 1.2 and apart.max() < 4.5  # of standard errors
    assert np.median(error[:, :2] / expected[:, :2]) < 0.1 and (expected[:, 2] == 0).all()


def test_fisher_and_what_is_measured_agree_where_little_is_rounded_off():
    model = uneven()
    tokens = random_tokens(24, 24)
    widths = (6, 8)
    predicted = lw.costs.fisher(model, tokens, QUANTIZER, widths)
    found = lw.costs.measured(model, tokens, QUANTIZER, widths)
    assert np.corrcoef(np.log(predicted[:, 0]), np.log(found[:, 0]))[0, 1] > 0.95
    assert predicted.sum(axis=0) == pytest.approx(found.sum(axis=0), rel=0.35)


def test_measured_is_what_a_compressed_model_loses():
    model = tiny()
    shape = lw.shape(model)
    found = lw.costs.measured(model, TOKENS, QUANTIZER, WIDTHS)
    assert found.shape == (len(shape.parts), 3) and (found[:, 2] == 0).all()
    for j in (0, 6, 9, len(shape.parts) - 2, len(shape.parts) - 1):
        bits = [None] * len(shape.parts)
        bits[j] = 2
        small = lw.compress(model, lw.plans.by_part(shape, bits), quantizer=QUANTIZER)
        assert found[j, 0] == pytest.approx(lw.compare(small, model, TOKENS).kl, abs=1e-6)


@pytest.mark.parametrize("cost", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_cost_has_a_number_for_every_part_and_leaves_the_model_as_it_is(family, cost):
    model = tiny(family)
    before, asked = logits(model), [parameter.requires_grad for parameter in model.parameters()]
    costs = cost(model, TOKENS, QUANTIZER, WIDTHS)
    assert costs.shape == (len(lw.shape(model).parts), 3) and np.isfinite(costs).all()
    assert (costs[:, 2] == 0).all() and (costs[:, 0] > costs[:, 1]).mean() > 0.9 and (costs[:, 1] >= 0).all()
    assert logits(model).equal(before)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked


def test_a_signed_gradient_says_what_more_bits_win():
    model = uneven()
    costs = lw.costs.signed_gradient(model, TOKENS, QUANTIZER, (2, 8))
    assert (costs[:, 0] == 0).all() and costs[:, 1].sum() < 0


@pytest.mark.parametrize("family", sorted(set(DECODERS) - set(MIXTURES)))
def test_every_family_has_a_fisher_cost(family):
    model = tiny(family)
    costs = lw.costs.fisher(model, TOKENS, QUANTIZER, (2, None))
    assert costs.shape == (len(lw.shape(model).parts), 2) and (costs[:, 0] > 0).mean() > 0.9


@pytest.mark.parametrize("large", [np.inf, 0.01])
def test_predicted_is_both_forms_of_fisher_but_for_what_is_measured(large, monkeypatch):
    monkeypatch.setattr(sys.modules[lw.costs.measured.__module__], "LARGE", large)
    model = uneven()
    widths = (2, 4, 8, None)
    found, of_fisher, of_along, of_measured = (
        cost(model, TOKENS, QUANTIZER, widths)
        for cost in (lw.costs.predicted, lw.costs.fisher, lw.costs.fisher_along, lw.costs.measured)
    )
    expected = of_fisher.copy()
    expected[:-2, 0] = np.sqrt(of_fisher * of_along)[:-2, 0]
    alone = expected > large
    assert alone.any() == (large < 1) and not alone.all()
    alone[-2:, :2] = True  # the ends, at few bits
    assert found == pytest.approx(np.where(alone, of_measured, expected))
    assert (np.abs(of_measured / expected - 1) > 1e-3)[alone].all()  # so that it matters which


@pytest.fixture
def to_fit(tmp_path):
    """A tiny model in bfloat16, the tokenizer of another, and a text."""
    model = tiny(dtype=torch.bfloat16, hidden_size=64, intermediate_size=64, vocab_size=512)
    model.stored_dtype = torch.bfloat16
    model.config.max_position_embeddings = 64
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join(f"w{i}" for i in rng.integers(0, 400, 30000)), encoding="utf-8")
    return model, lw.load("embedded/6L")[1], text


def test_fit_keeps_to_the_bytes_and_tells_what_they_cost(to_fit):
    model, tokenizer, text = to_fit
    budget = int(0.3 * lw.shape(model).total_bytes)
    fitted = lw.fit(model, tokenizer, budget, QUANTIZER, corpus=str(text))
    assert lw.size(fitted.model).bytes == fitted.report.bytes <= budget
    assert fitted.report.bytes == fitted.plan.predicted_bytes(lw.shape(model), QUANTIZER.stored) >= 0.99 * budget
    assert fitted.report.quality.kl > 0 and "nats per token" in repr(fitted.report)
    whole = lw.fit(model, tokenizer, "1 GB", corpus=str(text))
    assert whole.model is model and "fits as it is" in repr(whole.report)
    with pytest.raises(ValueError, match="no plan takes 1 kB"):
        lw.fit(model, tokenizer, "1 kB", QUANTIZER, corpus=str(text))


def test_fit_by_gptq_loads_in_transformers_and_could_in_vllm(to_fit, tmp_path):
    model, tokenizer, text = to_fit
    shape, quantizer = lw.shape(model), GPTQ(16, symmetric=True)
    low, high = (lw.Plan((lw.Layer(bits=bits),) * 3, 64).predicted_bytes(shape, quantizer.stored) for bits in (4, 8))
    fitted = lw.fit(model, tokenizer, (low + high) // 2, quantizer, corpus=str(text), widths=(4, 8, None), fused=True)
    lw.save(fitted.model, tmp_path / "fitted", tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "fitted").eval()
    assert logits(plain).equal(logits(fitted.model))
    every = [linear for block in blocks(plain) for linear in linears(block).values()]
    found = [getattr(linear, "quantization_scheme", None) for linear in every]
    bits = [scheme and scheme.weights.num_bits for scheme in found]
    assert bits == list(fitted.plan.bits_by_part(shape)[: len(bits)]) and {*bits} >= {4, 8}
    assert all(scheme.weights.symmetric and scheme.format == "pack-quantized" for scheme in found if scheme)
    names = [path.rpartition(".")[2] for path in linears(blocks(model)[0])]
    for i in range(3):  # those that vLLM computes in one product have one scheme
        own = dict(zip(names, bits[i * len(names) :], strict=False))
        assert own["q_proj"] == own["k_proj"] == own["v_proj"] and own["gate_proj"] == own["up_proj"]


def test_fit_is_a_command_too(tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["fit", "embedded/6L", "--bytes", "1 MB", "--out", str(out), "--corpus", "world"]) == 0
    said = capsys.readouterr().out
    assert "KL from dense" in said and "small, with its plan in plan.json" in said
    model, tokenizer = lw.load(out)
    assert tokenizer is not None and 990_000 <= lw.size(model).bytes <= 1_000_000
    plan = lw.Plan.from_json((out / "plan.json").read_text(encoding="utf-8"))
    assert plan.predicted_bytes(lw.shape(lw.load("embedded/6L")[0])) == lw.size(model).bytes
    assert main(["fit", "embedded/6L", "--bytes", "1 kB", "--out", str(out), "--corpus", "world"]) == 1
    assert "no plan takes 1 kB" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["fit", "embedded/6L", "--bytes", "1 MB", "--out", str(tmp_path / "other")]) == 1
    assert "is not a model: choose another folder" in capsys.readouterr().err


def loss(model, tokens):
    return sum(model(window[None], labels=window[None]).loss for window in tokens) / len(tokens)


def test_first_order_is_the_error_times_the_gradient_of_the_rounded_model():
    model, rounding = uneven(), Rounding(QUANTIZER, WIDTHS)
    found = lw.costs.first_order(model, TOKENS, QUANTIZER, WIDTHS)
    dense = [table.weight.clone() for table in weight_tables(model)]
    for table in weight_tables(model):
        table.weight.data.copy_(rounding.at(table.weight, 2))
    weights = [table.module.weight.requires_grad_() for table in weight_tables(model)]
    gradients = torch.autograd.grad(loss(model, TOKENS), weights)
    changes = [own - table.weight for own, table in zip(dense, weight_tables(model), strict=True)]
    expected = [(g * change).abs().sum().item() for g, change in zip(gradients, changes, strict=True)]
    assert found[:, 0] == pytest.approx(expected, rel=1e-4)


def test_output_error_is_the_gradient_of_what_is_put_out_times_its_change():
    model, rounding = uneven("gemma2"), Rounding(QUANTIZER, WIDTHS)
    found = lw.costs.output_error(model, TOKENS, QUANTIZER, WIDTHS)
    tables, expected = weight_tables(model), []
    model.get_input_embeddings().weight.requires_grad_(True)
    for j in (0, 6, len(tables) - 1):
        kept = []
        modules = [tables[j].module, *([model.get_output_embeddings()] if tables[j].block is None else [])]
        handles = [
            module.register_forward_hook(lambda m, args, y, kept=kept: kept.append((m, args[0], y)))
            for module in modules
        ]
        value = loss(model, TOKENS)
        for handle in handles:
            handle.remove()
        gradients = torch.autograd.grad(value, [y for *_, y in kept])
        own = tables[j].weight.detach().clone()
        total = 0.0
        for (module, entered, before), gradient in zip(kept, gradients, strict=True):
            module.weight.data.copy_(rounding.at(own, 2))
            with torch.no_grad():
                total += (gradient * (module(entered) - before)).square().sum().item()
            module.weight.data.copy_(own)
        expected.append(total)
    assert [found[j, 0] for j in (0, 6, len(tables) - 1)] == pytest.approx(expected, rel=1e-4)


def test_noise_is_scaled_to_what_it_costs():
    model = uneven()
    tokens = random_tokens(8, 24)
    found = lw.costs.noise(model, tokens, QUANTIZER, (6, None))
    alone = lw.costs.measured(model, tokens, QUANTIZER, (6, None))
    assert np.corrcoef(np.log(found[:, 0]), np.log(alone[:, 0]))[0, 1] > 0.8
    assert np.median(found[:, 0] / alone[:, 0]) == pytest.approx(1, abs=0.6)


def test_blocks_that_a_score_calls_important_cost_more():
    model = tiny()
    shape = lw.shape(model)
    alike = lw.costs.relative_error(model, None, QUANTIZER, (2, None))
    costs = lw.costs.by_importance(lambda model, tokens: [3, 1, 2])(model, None, QUANTIZER, (2, None))
    factors = costs[:, 0] / alike[:, 0]
    by_block = [factors[[part.block == i for part in shape.parts]] for i in range(3)]
    assert [each[0] for each in by_block] == pytest.approx([1, 1 / 3, 2 / 3])
    assert all(each == pytest.approx(each[0]) for each in by_block) and factors[-1] == pytest.approx(2 / 3)


def test_more_bits_win_what_the_divergence_falls_by():
    model = uneven()
    costs = lw.costs.signed_gradient(model, TOKENS, QUANTIZER, (6, 8))
    low, high = (
        lw.compress(model, lw.plans.by_part(lw.shape(model), [bits] * len(costs)), quantizer=QUANTIZER)
        for bits in (6, 8)
    )
    fell = lw.compare(low, model, TOKENS).kl - lw.compare(high, model, TOKENS).kl
    assert -costs[:, 1].sum() == pytest.approx(2 * fell, rel=0.35)  # of a parabola the slope at its end is twice that


def test_what_a_rounded_head_costs_needs_the_dense_models_logits(monkeypatch):
    monkeypatch.setattr("layerwise.evaluation.predictions.room", lambda model: 0)
    for cost in (lw.costs.measured, lw.costs.predicted, lw.costs.noise):
        with pytest.raises(ValueError, match="take fewer at once"):
            cost(tiny(), TOKENS, QUANTIZER, WIDTHS)


def test_fit_of_a_model_that_is_computed_in_float32_is_saved_at_the_size_that_was_asked(tmp_path):
    model, tokenizer = lw.load("embedded/6L")
    fitted = lw.fit(model, tokenizer, "3.2 MB", corpus="world")
    lw.save(fitted.model, tmp_path / "small")
    assert lw.size(lw.load(tmp_path / "small")[0]).bytes == fitted.report.bytes
    names = 40_000  # what the file says of its tensors
    assert (tmp_path / "small" / "packed.safetensors").stat().st_size <= 3_200_000 + names


def test_what_can_not_be_is_told_before_costs_are_computed():
    model, tokenizer = lw.load("embedded/6L")

    def cost(*given):
        raise AssertionError("costs were computed")

    with pytest.raises(ValueError, match="no plan takes 1 kB"):
        lw.fit(model, tokenizer, "1 kB", cost=cost, corpus="world")
    with pytest.raises(ValueError, match="leaves embedding and head as they are: add None"):
        lw.fit(model, tokenizer, "1 MB", "gptq", cost=cost, widths=(4, 8), corpus="world")
