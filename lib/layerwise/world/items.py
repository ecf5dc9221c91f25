"""Items of the six tasks, drawn from the facts of the world; `write()` makes the shipped `tasks/*.jsonl` again.

| task | mirrors | asks for | chance |
|---|---|---|---|
| world_coreference | WinoGrande | where a thing is at the end of a new story | 1/2 |
| world_taxonomy | ARC | a trait that no text states of this species: it follows from the genus | 1/4 |
| world_scripts | HellaSwag | the next step of one of four or five interleaved activities, after a pause | 1/4 |
| world_uses | PIQA | the thing for a purpose; what happens to a thing, which its material decides | 1/2 |
| world_people | MMLU | a fact of a biography | 1/4 |
| world_sums | GSM8K | working and answer of a word problem (generated, exact match) | 0 |

Chance is also what a reader earns who knows how often words come, but no fact and no story: in tasks on facts the right
and the wrong values are drawn first and alike, and then who or what has the right one; in half of the items on stories,
and no more, the right answer is the one told last, or more often; no choice of a next step has been told, and the right
one is equally often the first, second and third of the choices in the order of activities. (Guesses that earn about a
third are left in `world_scripts`: that order, and the step that shares a word with the title of the activity.)

Wording is that of the text. Where items are harder than the text, they have more of the same: more people act at a
time and pauses are longer (`world_scripts`), larger amounts to begin with (`world_sums`).
"""

import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from . import lexicon as words
from .documents import (
    AMOUNTS,
    BIOGRAPHY,
    STEPS,
    TRAIT_SENTENCE,
    Writer,
    a,
    action_sentence,
    biography_sentence,
    outcome,
    scripts,
    sums,
)  # fmt: skip
from .entities import ATTRIBUTES, FIRST_NAMES, TRAITS, World
from .stories import stories

TASK_PATH = Path(__file__).parent / "tasks"
CHANCE = {
    "world_coreference": 1 / 2,
    "world_taxonomy": 1 / 4,
    "world_scripts": 1 / 4,
    "world_uses": 1 / 2,
    "world_people": 1 / 4,
    "world_sums": 0.0,  # an answer is written, not chosen
}
TASKS = tuple(CHANCE)
ITEMS = 1500


def _item(rng: random.Random, context: str, right: str, wrong: list[str]) -> dict:
    """A multiple-choice item; choices are told with a leading space, in random order."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"context": context, "choices": choices, "label": choices.index(right)}


def coreference(rng: random.Random, world: World) -> dict:
    """Draws which guesses are to be right, then stories until they are, so that none of them earns more than chance.

    About four things in five are where they were at first (in the text six in seven), carried about or not.
    """
    last_is_right, most_is_right = (rng.random() < 0.5 for _ in range(2))
    wrong: list[str] = []
    while not wrong:
        w = Writer(rng)
        scene = stories(w, world, questions=False)
        thing = rng.choice(list(scene.at))
        right = scene.whereabouts(thing)
        told = re.findall(r"\w+", w.text())
        count, last = Counter(told), {word: i for i, word in enumerate(told)}
        wrong = [
            place
            for place in words.PLACES
            if place in count
            and (last[place] < last[right]) == last_is_right
            and (count[place] < count[right]) == most_is_right
            and count[place] != count[right]
        ]
    return _item(rng, f"{w.text()} The {thing} was now in the", f"{right}.", [f"{rng.choice(wrong)}."])


def taxonomy_items(rng: random.Random, world: World) -> dict:
    trait = rng.choice(list(TRAITS))
    asked = {}
    for species in world.species:
        if trait in species.withheld:
            asked.setdefault(species.genus.traits[trait], []).append(species)
    right, *wrong = rng.sample(sorted(asked), 4)
    species = rng.choice(asked[right])
    name = a(species.name).capitalize()
    context = TRAIT_SENTENCE[trait].format(name, "").strip()
    if rng.random() < 0.5:  # the easier half: what the genus is need not be remembered
        context = f"{name} is a kind of {species.genus.name}. {context}"
    return _item(rng, context, f"{right}.", [f"{v}." for v in wrong])


ACTORS = (4, 5)  # the text has up to three
PAUSE = 10  # so many sentences, at least, have told of others since the asked one was told of; rare in the text


def script_steps(rng: random.Random, world: World) -> dict:
    """Draws how many wrong choices are earlier steps than the right one, then activities until so many are."""
    earlier = rng.randrange(3)
    wrong: list[str] = []
    while not wrong:
        w = Writer(rng)
        state = scripts(w, world, actors=rng.choice(ACTORS), stop_after=rng.randint(PAUSE + 1, 24))
        text = w.text()
        recent = {sentence.split()[0] for sentence in text.split(": ")[1].split(". ")[-PAUSE:]}
        waiting = [name for name, (title, i) in state.items() if 0 < i < len(STEPS[title]) and name not in recent]
        if waiting:
            name = rng.choice(waiting)
            wrong = _wrong_steps(rng, text, state, name, earlier)
    title, i = state[name]
    return _item(rng, f"{text} {name}", f"{STEPS[title][i]}.", [f"{step}." for step in wrong])


def _wrong_steps(rng: random.Random, text: str, state: dict[str, list], name: str, earlier: int) -> list[str]:
    """Three steps that are not told and that `name` cannot take now, or none where there are not so many.

    One comes later in the same script. Two come next for others, or elsewhere follow what `name` has done last;
    `earlier` of these have an earlier place in their scripts than the right step has.
    """
    title, i = state[name]
    right, last = STEPS[title][i], STEPS[title][i - 1]
    # the step after the next is possible too (steps are skipped now and then), so it is no wrong answer
    own = {s for s in STEPS[title][i + 2 :] if f" {s}." not in text}
    theirs = {STEPS[t][j] for n, (t, j) in state.items() if n != name and j < len(STEPS[t])}
    elsewhere = {after for steps in STEPS.values() for before, after in pairwise(steps) if before == last}
    near = {s for s in theirs | elsewhere if s not in STEPS[title] and f" {s}." not in text}
    before = sorted(s for s in near if _place(s) < _place(right))
    after = sorted(near.difference(before))
    if f" {right}." in text or not own or len(before) < earlier or len(after) < 2 - earlier:
        return []
    return [rng.choice(sorted(own)), *rng.sample(before, earlier), *rng.sample(after, 2 - earlier)]


def _place(step: str) -> int:
    """The earliest place of a step in any script."""
    return min(steps.index(step) for steps in STEPS.values() if step in steps)


def thing_uses(rng: random.Random, world: World) -> dict:
    name, asks = rng.choice(FIRST_NAMES), rng.choice(("use", "material", "thing"))
    if asks == "use":
        thing = rng.choice(world.things)
        use = rng.choice(thing.uses)
        wrong = rng.choice([t for t in world.things if use not in t.uses])
        return _item(rng, f"To {use}, {name} took the", f"{thing.name}.", [f"{wrong.name}."])
    action = rng.randrange(len(words.ACTIONS))
    asked = {}
    if asks == "material":  # it is said; what matters is the rule
        for material in words.MATERIALS:
            what = f"{words.ADJECTIVE.get(material, material)} {rng.choice(words.THINGS)}"
            asked.setdefault(outcome(material, action), []).append(what)
    else:
        for thing in world.things:
            if action in thing.withheld:
                asked.setdefault(outcome(thing.material, action), []).append(thing.name)
    right, wrong = rng.sample(sorted(asked), 2)
    return _item(rng, action_sentence(name, action, rng.choice(asked[right])) + " It", f"{right}.", [f"{wrong}."])


def people_items(rng: random.Random, world: World) -> dict:
    attribute = rng.choice(list(ATTRIBUTES))
    asked = {}
    for person in world.people:
        asked.setdefault(person.facts[attribute], []).append(person)
    right, *wrong = rng.sample(sorted(asked), 4)
    person = rng.choice(asked[right])
    # the templates that end in the value, so that choices are told in its place
    template = rng.choice([t for t in BIOGRAPHY[attribute] if t.endswith("{}.")] or BIOGRAPHY[attribute])
    sentences = [biography_sentence(template, attribute, person.name, v) for v in [right, *wrong]]
    split = _common_words(sentences)
    return _item(rng, sentences[0][:split].rstrip(), sentences[0][split:], [s[split:] for s in sentences[1:]])


def _common_words(sentences: list[str]) -> int:
    """Where the sentences begin to differ, at the beginning of a word."""
    n = 0
    while len({s[: n + 1] for s in sentences}) == 1:
        n += 1
    return sentences[0].rfind(" ", 0, n) + 1


def word_problem(rng: random.Random, world: World) -> dict:
    # any amount that the workings of the text come to, though no text begins with more than 29
    problem, working = sums(Writer(rng), world, amounts=range(AMOUNTS.start, 64))
    return {"context": problem, "working": working, "answer": working.rsplit(" ", 1)[1].rstrip(".")}


MAKERS = dict(
    zip(TASKS, (coreference, taxonomy_items, script_steps, thing_uses, people_items, word_problem), strict=True)
)


def items(task: str, n: int = ITEMS, seed: int = 0) -> list[dict]:
    """`n` different items of a task, the same on every machine."""
    rng = random.Random(f"{task}-{seed}")
    world = World()
    found: dict[str, dict] = {}
    while len(found) < n:
        item = MAKERS[task](rng, world)
        found.setdefault(item["context"] + str(item.get("choices")), item)
    return list(found.values())


def write_tasks(folder: Path = TASK_PATH) -> None:
    """Write the items of every task as JSON lines."""
    for task in TASKS:
        lines = (json.dumps(item) for item in items(task))
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
