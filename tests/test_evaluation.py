import copy
import json
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


# Accuracy: a task of three items whose answers are known from the weights alone.


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    from layerwise import world

    items = [{"text": "a b", "choices": ["c", "d", "e e"], "answer": i, "reply": r} for i, r in enumerate("cdc")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
"""
    (tmp_path / "choose.yaml").write_text(
        f"""task: world_choose
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}},
              {{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
{common}"""
    )
    (tmp_path / "say.yaml").write_text(
        f"""task: world_say
output_type: generate_until
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{max_gen_toks: 1, do_sample: false, until: []}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
{common}"""
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(world, "TASK_PATH", tmp_path)
    monkeypatch.setattr(world, "CHANCE", {"world_say": 0.5})
    monkeypatch.setattr(world, "TASKS", ("world_choose", "world_say"))


@pytest.fixture(scope="module")
def parrot():
    """A model that says "c" to everything, and its tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<e>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, unk_token="<e>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", bos_token="<e>", pad_token="<e>")
    model = tiny(vocab_size=6)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.model.embed_tokens.weight.fill_(1)
    model.lm_head = torch.nn.Linear(32, 6)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.tensor([0.0, 0, 0, 5, 4, 3]))
    return model, tokenizer


def test_accuracy_gives_value_error_chance_and_number_of_items(tasks, parrot):
    table = evaluation.accuracy(*parrot, tasks=["world_choose", "world_say"]).set_index("task")
    assert table.metric.to_dict() == {"world_choose": "acc_norm", "world_say": "exact_match"}
    # "c" is the likeliest choice, the right one once in three, and the right reply twice in three.
    assert table.value.to_list() == pytest.approx([1 / 3, 2 / 3])
    assert table.stderr.to_list() == pytest.approx([math.sqrt(1 / 3 * 2 / 3 / 2)] * 2)
    assert table.chance.to_list() == pytest.approx([1 / 3, 0.5])
    assert table.n.to_list() == [3, 3]


def test_answers_are_the_items_behind_the_accuracy(tasks, parrot):
    rows = evaluation.answers(*parrot, tasks=["world_choose", "world_say"])
    assert rows.task.to_list() == ["world_choose"] * 3 + ["world_say"] * 3
    assert rows.item.to_list() == [0, 1, 2] * 2
    assert rows.correct.to_list() == [1, 0, 0, 1, 0, 1]


def test_limit_takes_the_first_items(tasks, parrot):
    row = evaluation.accuracy(*parrot, tasks=["world_choose"], limit=1).iloc[0]
    assert row.n == 1 and row.value == 1


def test_an_unknown_task_lists_the_known_ones(tasks, parrot):
    with pytest.raises(ValueError, match=r"unknown task 'world_chose'. Did you mean 'world_choose'.*world_say"):
        evaluation.accuracy(*parrot, tasks=["world_chose"])


def test_prompts_begin_with_the_token_that_begins_every_document(tmp_path, monkeypatch):
    """Both where choices are compared and where answers are generated; the models have seen no text without it."""
    from layerwise import world

    tokenizer, seen = world.tokenizer(), []
    model = tiny(vocab_size=len(tokenizer), max_position_embeddings=256)
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or [kwargs["input_ids"]])[0]), with_kwargs=True
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for task in ("world_taxonomy", "world_sums"):
        seen.clear()
        evaluation.accuracy(model, tokenizer, [task], limit=1)
        assert (seen[0][:, 0] == tokenizer.bos_token_id).all() and (seen[0][:, 1] != tokenizer.bos_token_id).all(), task
