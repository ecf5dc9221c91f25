"""The embedded world: deterministic text, entropy checked against frequencies, withheld facts, sound tasks."""

import hashlib
import json
import math
import random
import re
from collections import Counter
from functools import cache
from itertools import islice

import numpy as np
import pytest
from layerwise import world
from layerwise.world import data, documents, entities, items
from layerwise.world import stories as stories_module
from layerwise.world.entities import TRAITS, World
from layerwise.world.stories import stories
from layerwise.world.tokens import FOLDER as TOKENIZER
from layerwise.world.tokens import save_tokenizer, train_tokenizer


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


def test_the_text_is_the_one_that_the_shipped_models_have_read():
    """Whoever changes the text trains the models anew, and then puts down the new digest here."""
    digest = hashlib.sha256(data.rows("train", 256)[0].tobytes())
    for kind in data.KINDS:
        digest.update(data.rows("test", 64, kind=kind)[0].tobytes())
    assert digest.hexdigest()[:16] == "4bd21c1785c6254c"


def test_unknown_split_and_kind_name_what_there_is():
    with pytest.raises(ValueError, match="calibration"):
        data.rows("validation", 1)
    with pytest.raises(ValueError, match="biographies.*people"):
        data.rows("test", 1, kind="biographies")


def test_what_is_noted_counts_where_the_text_tells_it():
    w = documents.Writer(random.Random(0))
    w.choose("abcd")
    w.choose("abc", told=False)
    w.say("xy")
    w.choose_weighted("ab", [0.5, 1.0])
    w.say("z", certain=False)
    list(w.tell(w.sample("abc", 2), "abc", (1, 2)))
    w.say("z")
    yes = w.flip(0.9)
    assert [end for end, _ in w.surprisal()] == [2, 4, 5]
    told = [math.log(4), math.log(2) + math.log(3) + math.log(2) + math.log(2), -math.log(0.9 if yes else 0.1)]
    assert [nats for _, nats in w.surprisal()] == pytest.approx(told)


@pytest.fixture
def tiny_world(monkeypatch):
    """A world of few words, in which whole documents come again and again."""
    words = documents.words
    for name, size in {"THINGS": 2, "MAKERS": 2, "MATERIALS": 2, "USES": 3, "GOODS": 2, "CONTAINERS": 1, "PLACES": 3,
                       "BELONGINGS": 2}.items():  # fmt: skip
        monkeypatch.setattr(words, name, getattr(words, name)[:size])
    numbers = {"EVENTS": (1, 2), "PLACES": (2, 3), "THINGS": (1,), "GO": ("went to",), "TAKE": ("took",)}
    for name, value in numbers.items():
        monkeypatch.setattr(stories_module, name, value)
    for name, value in {"OPERATIONS": (1, 2), "SENTENCES": (1, 2, 3)}.items():
        monkeypatch.setattr(documents, name, value)
    monkeypatch.setattr(documents, "STEPS", {"made tea": ["sat", "ate"], "lit a fire": ["sat"], "ran": ["ate"]})
    for module in (documents, stories_module):
        monkeypatch.setattr(module, "FIRST_NAMES", ["Ada", "Ben", "Cora"])
    for module in (documents, entities):
        monkeypatch.setattr(module, "ATTRIBUTES", {k: entities.ATTRIBUTES[k] for k in ("town", "year", "pet")})
    for name, value in {"PEOPLE": 3, "SPECIES": 6}.items():
        monkeypatch.setattr(entities, name, value)
    tiny = World()
    monkeypatch.setattr(data, "world", lambda: tiny)


@pytest.mark.parametrize("kind", [*data.KINDS, None])
def test_the_surprisal_of_a_document_is_its_probability(tiny_world, kind):
    """Documents that came often in a first draw come in a second one as often as their surprisals say."""
    n = 20_000
    drawn = list(islice(data.documents("train", kind=kind), n))
    surprisal = {text: sum(nats for _, nats in told) for text, told in drawn}
    first, second = Counter(text for text, _ in drawn), Counter(texts(kind, n, "test"))
    often = [text for text, count in first.items() if count >= 3]
    observed, expected = sum(second[t] for t in often), sum(n * math.exp(-surprisal[t]) for t in often)
    assert observed > 500 and abs(observed - expected) < 4 * math.sqrt(expected)
    # and one by one: the squared differences are as large as chance makes them
    often = [text for text in often if first[text] >= 6]
    chi = sum((second[t] - n * math.exp(-surprisal[t])) ** 2 / (n * math.exp(-surprisal[t])) for t in often)
    assert len(often) >= 5 and chi < len(often) + 6 * math.sqrt(2 * len(often))


@pytest.mark.parametrize("kind", [*data.KINDS, None])
def test_what_a_beginning_tells_is_not_less_probable_than_the_beginning(tiny_world, kind):
    """For every beginning that came often: the surprisal counted so far is at most minus the log of its frequency."""
    n, begun, told = 3_000, Counter(), {}
    for text, surprisal in islice(data.documents("train", kind=kind), n):
        for end in range(1, min(len(text), 80) + 1):
            begun[text[:end]] += 1
            told[text[:end]] = max(told.get(text[:end], 0.0), sum(nats for at, nats in surprisal if at <= end))
    often = [start for start, count in begun.items() if count >= 25]
    assert len(often) > 50
    for start in often:
        assert told[start] <= -math.log(begun[start] / n) + 4.5 / math.sqrt(begun[start]), start


@pytest.mark.parametrize("kind", [*data.KINDS, None])
def test_the_floor_of_one_token_is_at_most_its_entropy(kind):
    tokens, floor = data.rows("test", 1024, length=2, kind=kind)
    share = np.unique(tokens[:, 1], return_counts=True)[1] / len(tokens)
    assert floor.mean() <= -(share * np.log(share)).sum()


def test_rows_count_what_the_end_of_a_document_tells():
    """Rows of the same text: the floor grows with the length, and at last by what only an end tells."""
    text, surprisal = next(data.documents("test", kind="stories"))
    tokens = len(world.tokenizer()(text).input_ids)  # with the end-of-text token that it begins with
    cut, whole, ended = (data.rows("test", 1, tokens + more, kind="stories")[1][0] for more in (-1, 0, 1))
    assert cut <= whole == pytest.approx(sum(nats for end, nats in surprisal if end <= len(text)))
    assert ended == pytest.approx(sum(nats for _, nats in surprisal)) and ended > whole


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


@cache
def made(task):
    return items.items(task)


def earned(asked, score):
    """The share of items whose right choice scores highest; ties share."""
    hits = []
    for item in asked:
        scores = [score(item["context"], choice) for choice in item["choices"]]
        hits.append((scores[item["label"]] == max(scores)) / scores.count(max(scores)))
    return np.mean(hits)


@pytest.mark.parametrize("task", ["world_taxonomy", "world_people", "world_uses", "world_scripts"])
def test_knowing_how_often_choices_come_earns_chance(task):
    text = " ".join(texts(task.removeprefix("world_"), 4_000 if task == "world_scripts" else 15_000))
    often = cache(lambda choice: text.count(" " + choice.rstrip(".")))
    assert earned(made(task), lambda _, choice: often(choice)) < world.CHANCE[task] + 0.04


def test_no_choice_of_a_next_step_has_been_told():
    assert not any(f" {choice}" in item["context"] for item in made("world_scripts") for choice in item["choices"])


def test_the_next_step_is_the_only_possible_choice_and_comes_after_a_pause():
    """Read from the text alone: what the asked one has done last, and what may come next in that activity."""
    places = []
    for item in made("world_scripts"):
        head, _, told = item["context"].partition(": ")
        *sentences, name = told.split(". ")
        titles = dict(part.split(" ", 1) for part in head.split("; "))
        assert 4 <= len(titles) <= 5
        done = [s.removeprefix(f"{name} ") for s in sentences if s.startswith(f"{name} ")]
        assert done and not any(s.startswith(f"{name} ") for s in sentences[-items.PAUSE :])
        steps = documents.STEPS[titles[name]]
        i = steps.index(done[-1]) + 1
        choices = [choice.rstrip(".") for choice in item["choices"]]
        assert [choice in steps[i : i + 2] for choice in choices] == [k == item["label"] for k in range(4)]
        order = [min(s.index(choice) for s in documents.STEPS.values() if choice in s) for choice in choices]
        places.append(sum(place < order[item["label"]] for place in order))
    # the order of activities, without the story, tells little: the right choice is the first, second or third in it
    assert np.bincount(places)[:3] / len(places) == pytest.approx(1 / 3, abs=0.05)


def test_what_was_told_last_or_most_earns_chance_in_stories():
    first = re.compile(r"\w+")
    for score in (
        lambda context, choice: context.rfind(first.match(choice)[0]),
        lambda context, choice: len(re.findall(rf"\b{first.match(choice)[0]}\b", context)),
    ):
        assert abs(earned(made("world_coreference"), score) - 0.5) < 0.05


def told_by(story):
    """An independent reading: where each thing of a story was at first, and where it is at its end."""
    first, place = {}, {}
    for sentence in story.rstrip(".").split(". "):
        if m := re.fullmatch(r"The (\w+) was in the (\w+)", sentence):
            first[m[1]] = place[m[1]] = m[2]
        elif m := re.fullmatch(r"(\w+) (?:was in|went to|walked to|ran to) the (\w+)", sentence):
            place[m[1]] = m[2]
        elif m := re.fullmatch(r"(\w+) (?:picked up|took|grabbed) the (\w+)", sentence):
            place[m[2]] = m[1]
        elif m := re.fullmatch(r"(\w+) (?:put down|left|dropped) the (\w+)", sentence):
            place[m[2]] = place[m[1]]
        elif m := re.fullmatch(r"\w+ gave the (\w+) to (\w+)", sentence):
            place[m[1]] = m[2]
        elif not re.fullmatch(r"The \w+ was now in the \w+|Now \w+ had the \w+", sentence):
            raise AssertionError(f"not understood: {sentence}")
    return {thing: (begin, place.get(place[thing], place[thing])) for thing, begin in first.items()}


def test_the_right_place_follows_from_the_story():
    """Few of the things are elsewhere than at first: one in five, in the text one in seven."""
    moved = []
    for item in made("world_coreference"):
        story, _, thing = item["context"].removesuffix(" was now in the").rpartition(" The ")
        begin, end = told_by(story)[thing]
        assert item["choices"][item["label"]] == f"{end}."
        moved.append(begin != end)
    assert np.mean(moved) == pytest.approx(1 / 5, abs=0.02)
    told = [begin != end for story in texts("stories", 2000) for begin, end in told_by(story).values()]
    assert np.mean(told) == pytest.approx(1 / 7, abs=0.02)


def test_half_of_the_sums_begin_with_more_than_any_text_but_stay_within_its_numbers():
    begun = {int(n) for text in texts("sums", 2000) for n in re.findall(r" had (\d+)", text)}
    told = {int(n) for text in texts("sums", 2000) for n in re.findall(r"= (\d+)\.", text)}
    assert max(begun) == 29 and max(told) >= 60
    asked = [int(m[1]) for item in made("world_sums") if (m := re.match(r"\w+ had (\d+) \w+\.", item["context"]))]
    assert max(asked) < 64 and 0.5 < np.mean([n > max(begun) for n in asked]) < 0.65
    for item in made("world_sums"):
        *steps, answer = re.findall(r"\d+", item["working"])
        assert steps[-1] == answer == item["answer"] and max(map(int, steps)) < 64


@pytest.mark.parametrize("task", world.TASKS)
def test_items_fit_into_the_window_of_the_embedded_models(task):
    tokenizer = world.tokenizer()
    longest = 0
    for item in made(task):
        ends = item.get("choices") or [item["working"]]
        longest = max(longest, *(len(tokenizer(f"{item['context']} {end}").input_ids) for end in ends))
    assert longest <= 250


@pytest.mark.parametrize("task", world.TASKS)
def test_shipped_items_are_those_the_code_makes(task):
    shipped = [json.loads(line) for line in (world.TASK_PATH / f"{task}.jsonl").read_text().splitlines()]
    assert shipped == made(task)
    if task != "world_sums":
        assert all(len(set(i["choices"])) == len(i["choices"]) for i in shipped)
        assert all(len(i["choices"]) == round(1 / world.CHANCE[task]) for i in shipped)
        share = np.bincount([i["label"] for i in shipped]) / len(shipped)
        assert share == pytest.approx(world.CHANCE[task], abs=0.05)


def test_stories_and_sums_of_the_tasks_do_not_occur_in_the_training_text():
    asked = {item["context"].rpartition(" The ")[0] for item in made("world_coreference")}
    beginnings = {story[:50] for story in asked}
    for text in texts("stories", 5000):
        assert text[:50] not in beginnings or not any(text.startswith(story) for story in asked)
    problems = {item["context"] for item in made("world_sums")}
    assert not any(text.partition("now?")[0] + "now?" in problems for text in texts("sums", 5000))


def test_scene_tells_who_holds_what():
    w = documents.Writer(random.Random(3))
    scene = stories(w, World())
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
