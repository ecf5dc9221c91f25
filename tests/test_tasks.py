import contextlib
import copy
import hashlib
import json
import math
import tempfile

import families
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


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of one token a character, and a random model that takes it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = "\n" + "".join(map(chr, range(32, 127)))
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="~"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="~")
    return families.tiny(vocab_size=len(characters), max_position_embeddings=1024, seed=1), tokenizer


ARC = [
    ("Why is the sky blue?", ["It is.", "Light is scattered.", "Because"], "B"),
    ("What do plants eat", ["1", "light and air", "stones"], "C"),
    ("Which is warm", ["the sun", "ice", "a comet"], "A"),
]
WINOGRANDE = [
    ("The cup fell off the shelf since _ was moved.", "cup", "shelf", "1"),
    ("Ann thanked Bea because _ had helped.", "Ann", "Bea", "2"),
    ("The ox saw a cat and _ ran.", "ox", "cat", "2"),
]
MMLU = [
    ("anatomy", "How many bones?", ["0", "206", "7", "9"], 1),
    ("astronomy", "What is a star?", ["a sun", "a planet", "ice", "no"], 0),
    ("anatomy", "Where is the heart?", ["head", "hand", "chest", "foot"], 2),
]
FIELDS = {
    "arc_easy": [
        {"question": q, "choices": {"text": texts, "label": list("ABC")}, "answerKey": key} for q, texts, key in ARC
    ],
    "winogrande": [{"sentence": s, "option1": one, "option2": two, "answer": key} for s, one, two, key in WINOGRANDE],
    "mmlu": [{"subject": s, "question": q, "choices": choices, "answer": key} for s, q, choices, key in MMLU],
    "gsm8k": [{"question": "How many?", "answer": f"So many.\n#### {n}"} for n in (7, 8)],
}


def put(folder, *names):
    for name in names:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in FIELDS[name]))


def log_likelihood(letters, prompt, answer):
    """Of an answer after a prompt, added up token by token."""
    model, tokenizer = letters
    ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]])
    said = families.logits(model, ids).log_softmax(-1)[0]
    return sum(said[i - 1, ids[0, i]].item() for i in range(len(prompt), len(prompt + answer)))


def best(letters, pairs, lengths=None):
    scores = [log_likelihood(letters, *pair) for pair in pairs]
    return max(range(len(pairs)), key=lambda i: scores[i] / (lengths[i] if lengths else 1))


def test_items_of_a_folder_are_asked_as_lm_eval_asks_those_of_the_hub(letters, tmp_path, monkeypatch):
    """Prompts and metrics by hand, as lm-eval's own files of these tasks say; nothing is left behind."""
    put(tmp_path, "arc_easy", "winogrande", "mmlu")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    rows = lw.answers(*letters, ["arc_easy", "winogrande", "mmlu"], data=tmp_path)
    expected = []
    for question, texts, key in ARC:
        pairs = [(f"Question: {question}\nAnswer:", f" {text}") for text in texts]
        expected.append(best(letters, pairs, [len(text) for text in texts]) == "ABC".index(key))
    for sentence, one, two, key in WINOGRANDE:
        before, after = sentence.split("_")
        expected.append(
            best(letters, [(before + option, f" {after.strip()}") for option in (one, two)]) + 1 == int(key)
        )
    for subject, question, choices, key in sorted(MMLU, key=lambda item: item[0]):
        told = f"The following are multiple choice questions (with answers) about {subject}.\n\n{question}\n"
        told += "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True)) + "Answer:"
        expected.append(best(letters, [(told, f" {letter}") for letter in "ABCD"]) == key)
    assert rows["correct"].to_list() == expected and 0 < sum(expected) < len(expected)
    assert rows["task"].to_list() == ["arc_easy"] * 3 + ["winogrande"] * 3 + ["mmlu"] * 3
    digest = hashlib.sha256((tmp_path / "mmlu.jsonl").read_bytes()).hexdigest()[:16]
    assert rows["data"].to_list()[-1] == f"mmlu.jsonl sha256:{digest}"
    assert not any((tmp_path / "scratch").iterdir())


def test_logits_are_made_where_answers_are_read_and_likelihoods_stay_the_same_in_every_digit(
    letters, tmp_path, monkeypatch
):
    from layerwise.evaluation import harness, tasks
    from lm_eval.models.huggingface import HFLM

    put(tmp_path, "arc_easy", "winogrande", "mmlu")
    made = []

    def ask():
        made.clear()
        result, _ = tasks._harness(*letters, ["arc_easy", "winogrande", "mmlu"], None, 4, tmp_path)
        said = {name: [sample["filtered_resps"] for sample in each] for name, each in result["samples"].items()}
        return said, sum(made)

    handle = letters[0].lm_head.register_forward_pre_hook(lambda _, args: made.append(args[0].shape[:2].numel()))
    try:
        said, few = ask()
        monkeypatch.setattr(harness.Harness, "_model_call", HFLM._model_call)
        expected, all_ = ask()
        assert said == expected and few < all_
    finally:
        handle.remove()


def test_a_file_that_was_edited_is_read_again_and_tasks_of_the_world_need_none(letters, tmp_path):
    def ask():
        return lw.answers(*letters, ["world_uses", "arc_easy"], limit=3, data=tmp_path)

    put(tmp_path, "arc_easy")
    path = tmp_path / "arc_easy.jsonl"
    first = ask()
    path.write_text("\ufeff" + "\n".join(reversed(path.read_text().splitlines())), encoding="utf-8")
    again = ask()
    assert first["data"].isna().to_list() == [True] * 3 + [False] * 3
    assert again["correct"].to_list()[3:] == first["correct"].to_list()[:2:-1] != first["correct"].to_list()[3:]
    assert again["data"][3] != first["data"][3]


def test_answers_to_items_of_a_folder_are_generated(tmp_path):
    """By a model that goes on with "#### 7" whatever it is asked: right once in two."""
    put(tmp_path, "gsm8k")
    row = lw.accuracy(*says("#### 7"), ["gsm8k"], data=tmp_path).iloc[0]
    assert (row.metric, row.value, row.n, row.cut) == ("exact_match", 0.5, 2, 0) and math.isnan(row.chance)


def says(word, **changes):
    """A model that says one word whatever it is asked, and its tokenizer, to which all other text is "?"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "<end>": 1, word: 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = families.tiny(vocab_size=3, **{"max_position_embeddings": 512, "eos_token_id": 1, **changes})
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 3)
        model.lm_head.bias.copy_(torch.tensor([0.0, -1, 1]))
    return model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


@pytest.mark.parametrize(
    ("tasks", "file", "message"),
    [
        (["arc_easy", "piqa"], "", "has no arc_easy.jsonl and no piqa.jsonl; there is boolq.jsonl"),
        (["boolq"], "", "boolq.jsonl is empty"),
        (["boolq"], '{"question": "a"}\n\n{"question": "b"\n', "boolq.jsonl, line 3 is no JSON"),
        (["boolq"], '{"question": "a"}\n', "the items of boolq.jsonl sha256:[0-9a-f]{16} .* boolq asks: 'passage' is"),
        (["ai2_arc"], "", "'ai2_arc' is a name for several tasks .* of arc_challenge, arc_easy"),
        (["bolq"], "", "unknown task 'bolq'. Did you mean 'boolq'"),
    ],
)
def test_a_folder_that_does_not_serve_says_why(letters, tmp_path, tasks, file, message):
    (tmp_path / "boolq.jsonl").write_text(file)
    with pytest.raises(ValueError, match=message):
        lw.accuracy(*letters, tasks, data=tmp_path)


def test_items_of_an_unknown_subject_and_a_folder_that_is_none(letters, tmp_path):
    (tmp_path / "mmlu.jsonl").write_text('{"subject": "alchemy", "question": "a"}\n')
    with pytest.raises(ValueError, match="mmlu is a group of 57 tasks.* It has alchemy, of which mmlu has no task"):
        lw.accuracy(*letters, ["mmlu"], data=tmp_path)
    with pytest.raises(ValueError, match="there is no folder '.*mmlu.jsonl'"):
        lw.accuracy(*letters, ["mmlu"], data=tmp_path / "mmlu.jsonl")


def test_prompts_longer_than_the_positions_are_counted(letters, tmp_path):
    model, tokenizer = letters
    long = FIELDS["arc_easy"][0] | {"question": 3 * "Why? "}
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(item) + "\n" for item in [*FIELDS["arc_easy"], long]))
    longest = max(len(f"Question: {q}\nAnswer: {text}") for q, texts, _ in ARC for text in texts)
    model = copy.deepcopy(model)
    for positions, cut in ((longest - 1, 0), (longest - 2, 1)):  # nothing is predicted from the last one
        model.config.max_position_embeddings = positions
        with contextlib.nullcontext() if not cut else pytest.warns(UserWarning, match="arc_easy: 1 of 4 items"):
            assert lw.accuracy(model, tokenizer, ["arc_easy"], data=tmp_path)["cut"].to_list() == [cut]
    model.config.max_position_embeddings = 15
    with pytest.raises(ValueError, match="an answer has 20 tokens, and the model 15 positions"):
        lw.accuracy(model, tokenizer, ["arc_easy"], data=tmp_path)


def test_prompts_before_generated_answers_are_counted_too(tasks, parrot):
    model, tokenizer = copy.deepcopy(parrot)
    model.config.max_position_embeddings = 2  # one for the answer, and prompts have two tokens
    with pytest.warns(UserWarning, match="world_say: 3 of 3 items have a prompt longer than the 2 positions"):
        assert lw.accuracy(model, tokenizer, ["world_say"])["cut"].to_list() == [3]
    model.config.max_position_embeddings = 1
    with pytest.raises(
        ValueError, match="world_say generates answers of up to 1 tokens, and the model has 1 positions"
    ):
        lw.accuracy(model, tokenizer, ["world_choose", "world_say"])


@pytest.mark.parametrize("token", ["bos_token", "eos_token"])
def test_model_and_tokenizer_are_left_as_they_are(tasks, parrot, token):
    """One special token is enough; the caller's own objects get no other, and each part keeps its mode."""
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = (
        parrot[0],
        PreTrainedTokenizerFast(tokenizer_object=parrot[1].backend_tokenizer, **{token: "<e>"}),
    )
    before, settings = dict(tokenizer.special_tokens_map), model.generation_config.to_dict()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    table = lw.accuracy(model, tokenizer, ["world_choose", "world_say"])
    assert table["value"].to_list() == pytest.approx([1 / 3, 2 / 3])
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert tokenizer.special_tokens_map == before and len(tokenizer) == 6
    assert model.generation_config.to_dict() == settings


def test_a_tokenizer_without_special_tokens_is_refused_and_gets_none(tasks, parrot):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=parrot[1].backend_tokenizer)
    with pytest.raises(ValueError, match="no token that ends text and none that begins it.* tokenizer.eos_token = "):
        lw.accuracy(parrot[0], tokenizer, ["world_choose"])
    assert len(tokenizer) == 6 and not tokenizer.special_tokens_map
    with pytest.raises(ValueError, match="there is no tokenizer"):
        lw.accuracy(parrot[0], None, ["world_choose"])


def test_a_task_without_an_accuracy_is_refused_before_it_is_asked(tasks, parrot, tmp_path, monkeypatch):
    said = (tmp_path / "say.yaml").read_text().replace("exact_match", "bleu").replace("world_say", "world_bleu")
    (tmp_path / "bleu.yaml").write_text(said)
    monkeypatch.setattr(parrot[0], "forward", lambda *_, **__: pytest.fail("the model was asked"))
    with pytest.raises(ValueError, match="'world_bleu' reports none of acc_norm, acc, exact_match"):
        lw.accuracy(*parrot, tasks=["world_bleu"])
