"""Items of the six tasks, drawn from the facts of the world; `write()` makes the shipped `tasks/*.jsonl` again.

| task | mirrors | asks for | chance |
|---|---|---|---|
| world_coreference | WinoGrande | who has a thing, or where it is, at the end of a new story | 1/2 |
| world_taxonomy | ARC | a trait that no text states of this species: it follows from the genus | 1/4 |
| world_scripts | HellaSwag | the next step of one of several interleaved activities | 1/4 |
| world_uses | PIQA | the thing for a purpose; what happens to a thing, which its material decides | 1/2 |
| world_people | MMLU | a fact of a biography | 1/4 |
| world_sums | GSM8K | working and answer of a word problem (generated, exact match) | 0 |

Chance is also what a reader earns who knows how often words come, but no fact and no story: in tasks on facts the right
and the wrong values are drawn first and alike, and then who or what has the right one; in half of the items on stories,
and no more, the right answer is the one told last, or more often; no choice of a next step has been told. (One such
guess is left: the step that shares a word with the title of the activity, right in a third of `world_scripts`.)
"""

import json
import random
import re
from collections import Counter
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


def coreference(rng: random.Random, world: World) -> dict:
    """Draws what kind of item it is, then stories until one has such an item: so no kind is rarer than another."""
    asks_holder, has_been_there, last_is_right, most_is_right = (rng.random() < 0.5 for _ in range(4))
    wrong: list[str] = []
    while not wrong:
        w = Writer(rng)
        scene = stories(w, world, events=rng.randint(3, 9), questions=False)
        thing = rng.choice(list(scene.at))
        right = scene.holder(thing) if asks_holder else scene.whereabouts(thing)
        if right is None:
            continue
        told = re.findall(r"\w+", w.text())
        count, last = Counter(told), {word: i for i, word in enumerate(told)}
        if asks_holder:
            options = scene.held_by[thing]
        else:
            options = scene.visited[thing] if has_been_there else scene.place.values()
        wrong = [
            x
            for x in dict.fromkeys(options)
            if (last[x] < last[right]) == last_is_right
            and (count[x] < count[right]) == most_is_right
            and count[x] != count[right]
        ]
    if asks_holder:
        return _item(rng, f"{w.text()} Now", f"{right} had the {thing}.", [f"{rng.choice(wrong)} had the {thing}."])
    return _item(rng, f"{w.text()} The {thing} was now in the", f"{right}.", [f"{rng.choice(wrong)}."])


def taxonomy(rng: random.Random, world: World) -> dict:
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
    own = STEPS[title][i + 2 :]
    theirs = [STEPS[t][j] for n, (t, j) in state.items() if n != name and j < len(STEPS[t])]
    wrong = {rng.choice(kind) for kind in (own, theirs) if kind}
    while len(wrong) < 3:
        wrong.add(rng.choice([step for steps in STEPS.values() for step in steps]))
    if any(f" {step}." in w.text() or step in STEPS[title][: i + 2] for step in wrong) or f" {right}." in w.text():
        return None
    return _item(rng, f"{w.text()} {name}", f"{right}.", [f"{s}." for s in sorted(wrong)])


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


def people(rng: random.Random, world: World) -> dict:
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
