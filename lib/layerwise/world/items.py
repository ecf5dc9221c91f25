"""Items of the six tasks, drawn from the facts of the world; `write()` makes the shipped `tasks/*.jsonl` again.

| task | mirrors | asks for | chance |
|---|---|---|---|
| world_coreference | WinoGrande | who has a thing, or where it is, at the end of a new story | 1/2 |
| world_taxonomy | ARC | a trait of a species that no text states: it follows from the genus | 1/4 |
| world_scripts | HellaSwag | the next step of one of several interleaved activities | 1/4 |
| world_uses | PIQA | the thing for a purpose; what happens to a thing, by its material, where no text tells | 1/2 |
| world_people | MMLU | a fact of a biography | 1/4 |
| world_sums | GSM8K | working and answer of a word problem (generated, exact match) | 0 |
"""

import json
import random
from pathlib import Path

from . import lexicon as words
from .documents import (
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


def coreference(rng: random.Random, world: World) -> dict | None:
    w = Writer(rng)
    scene = stories(w, world, events=rng.randint(3, 9), questions=False)
    thing = rng.choice(list(scene.at))
    holder, place = scene.holder(thing), scene.whereabouts(thing)
    others = [p for p in scene.held_by[thing] if p != holder]
    before = [p for p in scene.visited[thing] if p != place]
    if holder and others and rng.random() < 0.5:
        return _item(rng, f"{w.text()} Now", f"{holder} had the {thing}.", [f"{others[-1]} had the {thing}."])
    if not before:
        return None
    return _item(rng, f"{w.text()} The {thing} was now in the", f"{place}.", [f"{before[-1]}."])


def taxonomy(rng: random.Random, world: World) -> dict:
    species = rng.choice(world.species)
    trait = rng.choice(sorted(species.withheld))
    right = species.genus.traits[trait]
    wrong = rng.sample([v for v in TRAITS[trait] if v != right], 3)
    context = TRAIT_SENTENCE[trait].format(a(species.name).capitalize(), "").strip()
    return _item(rng, context, f"{right}.", [f"{v}." for v in wrong])


def script_steps(rng: random.Random, world: World) -> dict | None:
    w = Writer(rng)
    state = scripts(w, world, actors=rng.choice((1, 2, 3)), stop_after=rng.randint(4, 14))
    going_on = [name for name, (title, i) in state.items() if 0 < i < len(STEPS[title])]
    if not going_on:
        return None
    name = rng.choice(going_on)
    title, i = state[name]
    right = STEPS[title][i]
    # the step after the next is possible too (steps are skipped now and then), so it is no wrong answer
    own = [s for j, s in enumerate(STEPS[title]) if j not in (i, i + 1)]
    theirs = [STEPS[t][j] for n, (t, j) in state.items() if n != name and j < len(STEPS[t])]
    theirs = [s for s in theirs if s not in STEPS[title]] or [_foreign_step(rng, title)]
    last = own[i - 1] if i > 1 and rng.random() < 0.5 else rng.choice(own)
    wrong = {last, rng.choice(own), rng.choice(theirs)}
    while len(wrong) < 3:
        wrong.add(_foreign_step(rng, title))
    return _item(rng, f"{w.text()} {name}", f"{right}.", [f"{s}." for s in sorted(wrong)])


def _foreign_step(rng: random.Random, title: str) -> str:
    return rng.choice([s for steps in STEPS.values() for s in steps if s not in STEPS[title]])


def thing_uses(rng: random.Random, world: World) -> dict:
    thing, name = rng.choice(world.things), rng.choice(FIRST_NAMES)
    if rng.random() < 0.5:
        use = rng.choice(thing.uses)
        wrong = rng.choice([t for t in world.things if use not in t.uses])
        return _item(rng, f"To {use}, {name} took the", f"{thing.name}.", [f"{wrong.name}."])
    action = rng.choice(sorted(thing.withheld))
    right = outcome(thing.material, action)
    wrong = rng.choice([o for o in list(words.ACTIONS.values())[action] if o != right])
    return _item(rng, action_sentence(name, action, thing.name) + " It", f"{right}.", [f"{wrong}."])


def people(rng: random.Random, world: World) -> dict:
    person = rng.choice(world.people)
    attribute = rng.choice(list(ATTRIBUTES))
    right = person.facts[attribute]
    wrong = rng.sample([v for v in ATTRIBUTES[attribute] if v != right], 3)
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
    problem, working = sums(Writer(rng), world)
    return {"context": problem, "working": working, "answer": working.rsplit(" ", 1)[1].rstrip(".")}


MAKERS = dict(zip(TASKS, (coreference, taxonomy, script_steps, thing_uses, people, word_problem), strict=True))


def items(task: str, n: int = ITEMS, seed: int = 0) -> list[dict]:
    """`n` different items of a task, the same on every machine."""
    rng = random.Random(f"{task}-{seed}")
    world = World()
    found: dict[str, dict] = {}
    while len(found) < n:
        item = MAKERS[task](rng, world)
        if item:
            found.setdefault(item["context"] + str(item.get("choices")), item)
    return list(found.values())


def write(folder: Path = TASK_PATH) -> None:
    """Write the items of every task as JSON lines."""
    for task in TASKS:
        lines = (json.dumps(item) for item in items(task))
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
