"""The embedded world: deterministic text, entropy checked against frequencies, withheld facts, sound tasks."""

import json
import math
import random
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from layerwise import world
from layerwise.world import data, documents, items
from layerwise.world.entities import TRAITS, World
from layerwise.world.stories import stories
from layerwise.world.tokens import FOLDER as TOKENIZER
from layerwise.world.tokens import save as save_tokenizer
from layerwise.world.tokens import train as train_tokenizer


def texts(kind, n, split="train"):
    return [text for text, _ in islice(data.documents(split, kind=kind), n)]


def test_rows_are_the_same_whether_read_at_once_or_in_pieces():
    tokens, floor = data.rows("train", 300, 64, start=200)  # crosses a block's boundary
    again = [data.rows("train", 100, 64, start=s) for s in (200, 300, 400)]
    assert np.array_equal(tokens, np.concatenate([t for t, _ in again]))
    assert np.array_equal(floor, np.concatenate([f for _, f in again]))


def test_splits_and_seeds_differ():
    train, test, other = (data.rows(s, 4, 64, seed=k)[0] for s, k in (("train", 0), ("test", 0), ("train", 1)))
    assert not np.array_equal(train, test) and not np.array_equal(train, other)


def test_every_row_begins_a_document_and_is_full():
    tokens, floor = data.rows("test", 32, 128)
    assert (tokens[:, 0] == 0).all() and tokens.dtype == np.uint16 and tokens.max() < 2048
    assert (floor > 0).all()


def test_unknown_split_and_kind_name_what_there_is():
    with pytest.raises(ValueError, match="calibration"):
        data.rows("validation", 1)
    with pytest.raises(ValueError, match="biographies.*people"):
        data.rows("test", 1, kind="biographies")


def test_surprisal_of_a_choice_is_minus_the_log_of_its_probability():
    w = documents.Writer(random.Random(0))
    w.choose("abcd")
    w.say("xy")
    w.choose_weighted("ab", [0.5, 1.0])
    yes = w.flip(0.9)
    w.sample("abc", 2)
    offsets, nats = zip(*w.choices, strict=True)
    assert offsets == (0, 2, 2, 2, 2)
    assert nats == pytest.approx([math.log(4), math.log(2), -math.log(0.9 if yes else 0.1), math.log(3), math.log(2)])


@pytest.mark.parametrize("kind", ["uses", "taxonomy"])
def test_reported_entropy_is_the_entropy_of_the_text(kind):
    """The choices behind a document can be read off it: its frequency is exp(-surprisal)."""
    n = 40_000
    drawn = list(islice(data.documents("train", kind=kind), n))
    surprisal = {text: sum(nats for _, nats in choices) for text, choices in drawn}
    assert all(
        len({round(sum(x for _, x in c), 9) for t, c in drawn if t == text}) == 1 for text in list(surprisal)[:20]
    )
    # documents likely enough to be counted: their share must be what the surprisals say
    likely = {text for text, nats in surprisal.items() if math.exp(-nats) * n >= 8}
    counts = Counter(text for text, _ in drawn)
    observed, expected = sum(counts[t] for t in likely), sum(n * math.exp(-surprisal[t]) for t in likely)
    assert len(likely) > 20 and abs(observed - expected) < 5 * math.sqrt(expected)


def test_a_cut_row_counts_only_the_choices_that_it_shows():
    short, long = data.rows("test", 64, 48)[1], data.rows("test", 64, 256)[1]
    assert 0 < short.mean() < long.mean()


def test_withheld_traits_are_never_stated():
    facts = {s.name: s for s in World().species}
    stated = 0
    for text in texts("taxonomy", 20_000):
        for sentence in text.split(". "):
            match = re.match(r"[Aa]n? (\w+) (.+)", sentence)
            if not match or match[1] not in facts:
                continue
            species = facts[match[1]]
            for trait in TRAITS:
                told = documents.TRAIT_SENTENCE[trait].format("", species.genus.traits[trait]).strip()
                if match[2].split(", because")[0].rstrip(".") == told:
                    stated += 1
                    assert trait not in species.withheld, text
    assert stated > 10_000


def test_withheld_outcomes_are_never_told():
    things = {t.name: t for t in World().things}
    told = 0
    for text in texts("uses", 20_000):
        for action, form in enumerate(documents.words.ACTIONS):
            match = re.match(r"\w+ " + form.format(r"([A-Z]\w+ \w+)") + r"\. It", text)
            if match:
                told += 1
                assert action not in things[match[1]].withheld
    assert told > 1_000


def test_what_stories_state_follows_from_what_happened():
    """An independent reading of the story, sentence by sentence, agrees with its closing statements."""
    checked = 0
    for text in texts("stories", 300):
        place, at = {}, {}
        for sentence in text.rstrip(".").split(". "):
            if m := re.fullmatch(r"(\w+) (?:was in|went to|walked to|ran to) the (\w+)", sentence):
                place[m[1]] = m[2]
            elif m := re.fullmatch(r"The (\w+) was in the (\w+)", sentence):
                at[m[1]] = m[2]
            elif m := re.fullmatch(r"(\w+) (?:picked up|took|grabbed) the (\w+)", sentence):
                assert place.get(at[m[2]], at[m[2]]) == place[m[1]]
                at[m[2]] = m[1]
            elif m := re.fullmatch(r"(\w+) (?:put down|left|dropped) the (\w+)", sentence):
                at[m[2]] = place[m[1]]
            elif m := re.fullmatch(r"\w+ gave the (\w+) to (\w+)", sentence):
                at[m[1]] = m[2]
            elif m := re.fullmatch(r"The (\w+) was now in the (\w+)", sentence):
                assert place.get(at[m[1]], at[m[1]]) == m[2], text
                checked += 1
            elif m := re.fullmatch(r"Now (\w+) had the (\w+)", sentence):
                assert at[m[2]] == m[1], text
                checked += 1
            else:
                raise AssertionError(f"not understood: {sentence}")
    assert checked > 300


def test_sums_are_right():
    for text in texts("sums", 500):
        last = None
        for left, sign, right, result in re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)\.", text):
            value = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign](int(left), int(right))
            assert value == int(result) and (last is None or int(left) == last)
            last = value
        assert text.endswith(f"Answer: {last}.")


@pytest.mark.parametrize("task", world.TASKS)
def test_shipped_items_are_those_the_code_makes(task):
    shipped = [json.loads(line) for line in (world.TASK_PATH / f"{task}.jsonl").read_text().splitlines()]
    assert len(shipped) >= 1000
    assert shipped[:100] == items.items(task, 100)
    if task != "world_sums":
        assert all(len(set(i["choices"])) == len(i["choices"]) for i in shipped)
        assert all(len(i["choices"]) == round(1 / world.CHANCE[task]) for i in shipped)
        share = np.bincount([i["label"] for i in shipped]) / len(shipped)
        assert share == pytest.approx(world.CHANCE[task], abs=0.05)


def test_stories_of_the_task_do_not_occur_in_the_training_text():
    asked = {item["context"][:120] for item in items.items("world_coreference", 200)}
    assert not any(text[:120] in asked for text in texts("stories", 5000))


def test_scene_tells_who_holds_what():
    w = documents.Writer(random.Random(3))
    scene = stories(w, World(), events=12)
    for thing, at in scene.at.items():
        assert scene.whereabouts(thing) in documents.words.PLACES
        assert scene.holder(thing) == (at if at in scene.place else None)


def test_tokenizer_splits_digits_begins_with_the_end_token_and_round_trips():
    tokenizer = world.tokenizer()
    text = "Ada had 47 apples. A blorkun is a kind of plix."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.eos_token_id == 0 and len(tokenizer) == 2048
    assert tokenizer.decode(ids[1:]) == text
    assert {"4", "7"} <= {t.strip("Ġ") for t in tokenizer.convert_ids_to_tokens(ids)}


def test_the_shipped_tokenizer_is_the_one_that_today_s_text_gives(tmp_path):
    save_tokenizer(train_tokenizer(), tmp_path)
    for shipped in TOKENIZER.glob("*.json"):
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes(), shipped.name
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
