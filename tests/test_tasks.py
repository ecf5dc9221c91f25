import json
import math

import layerwise as lw
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    config = LlamaConfig(**{"num_attention_heads": 2, "max_position_embeddings": 64, **sizes, **changes})
    return LlamaForCausalLM(config).eval()


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
    table = lw.accuracy(*parrot, tasks=["world_choose", "world_say"]).set_index("task")
    assert table.metric.to_dict() == {"world_choose": "acc_norm", "world_say": "exact_match"}
    # "c" is the likeliest choice, the right one once in three, and the right reply twice in three.
    assert table.value.to_list() == pytest.approx([1 / 3, 2 / 3])
    assert table.stderr.to_list() == pytest.approx([math.sqrt(1 / 3 * 2 / 3 / 2)] * 2)
    assert table.chance.to_list() == pytest.approx([1 / 3, 0.5])
    assert table.n.to_list() == [3, 3]


def test_answers_are_the_items_behind_the_accuracy(tasks, parrot):
    rows = lw.answers(*parrot, tasks=["world_choose", "world_say"])
    assert rows.task.to_list() == ["world_choose"] * 3 + ["world_say"] * 3
    assert rows.item.to_list() == [0, 1, 2] * 2
    assert rows.correct.to_list() == [1, 0, 0, 1, 0, 1]


def test_limit_takes_the_first_items(tasks, parrot):
    row = lw.accuracy(*parrot, tasks=["world_choose"], limit=1).iloc[0]
    assert row.n == 1 and row.value == 1


def test_an_unknown_task_lists_the_known_ones(tasks, parrot):
    with pytest.raises(ValueError, match=r"unknown task 'world_chose'. Did you mean 'world_choose'.*world_say"):
        lw.accuracy(*parrot, tasks=["world_chose"])


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
        lw.accuracy(model, tokenizer, [task], limit=1)
        assert (seen[0][:, 0] == tokenizer.bos_token_id).all() and (seen[0][:, 1] != tokenizer.bos_token_id).all(), task
