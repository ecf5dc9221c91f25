"""Six kinds of document, written sentence by sentence while every choice is accounted for.

A `Writer` notes the surprisal of each choice that it makes (minus the log of its probability, in nats) and where in the
text it was made. Each choice can be read off the text, and whatever is not chosen follows from the facts of the
world; so the sum over a text is its entropy for a reader who knows the world and the generator, and no model's loss on
the text can be expected to fall below it.
"""

import math
import random
from bisect import bisect

from . import lexicon as words
from .entities import ATTRIBUTES, FIRST_NAMES, TRAITS, Person, Species, Thing, World


class Writer:
    """Collects a document and the surprisal of the choices behind it.

    `text()` is the document; `choices` lists `(character offset, nats)`.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.parts: list[str] = []
        self.length = 0
        self.choices: list[tuple[int, float]] = []

    def say(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def text(self) -> str:
        return "".join(self.parts)

    def choose(self, options):
        """One of `options` (any sequence), each as likely as the others."""
        n = len(options)
        self.choices.append((self.length, math.log(n)))
        return options[int(self.rng.random() * n)]

    def choose_weighted(self, options, cumulative: list[float]):
        """One of `options`, where `cumulative` holds their cumulated probabilities."""
        i = min(bisect(cumulative, self.rng.random()), len(options) - 1)
        p = cumulative[i] - (cumulative[i - 1] if i else 0.0)
        self.choices.append((self.length, -math.log(p)))
        return options[i]

    def flip(self, probability: float) -> bool:
        """True with the given probability."""
        yes = self.rng.random() < probability
        self.choices.append((self.length, -math.log(probability if yes else 1 - probability)))
        return yes

    def sample(self, options, k: int) -> list:
        """`k` different options in random order."""
        pool = list(options)
        chosen = []
        for _ in range(k):
            item = self.choose(pool)
            pool.remove(item)
            chosen.append(item)
        return chosen


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


# ---- people: short encyclopaedic biographies, to be memorised -------------------------------------------------------

BIOGRAPHY = {
    "town": ["{} was born in {}.", "{} came from {}.", "{} grew up in {}."],
    "year": ["{} was born in the year {}.", "The year of birth of {} was {}."],
    "profession": ["{} worked as a {}.", "{} was a {} by trade.", "{} made a living as a {}."],
    "employer": ["{} worked for the {}.", "{} was employed by the {}.", "{} served the {}."],
    "subject": ["{} studied {}.", "{} took a degree in {}.", "{} loved {}."],
    "pet": ["{} kept {} at home.", "{} owned {}.", "{} raised {}."],
}

ENTRY = {
    "town": "from {}", "year": "born {}", "profession": "a {}", "employer": "at the {}", "subject": "studied {}",
    "pet": "kept {}",
}  # fmt: skip


def biography_sentence(template: str, attribute: str, *values: str) -> str:
    if attribute == "profession" and values[-1][0] in "aeiou":
        template = template.replace("a {}", "an {}")
    return template.format(*values)


def people(w: Writer, world: World) -> None:
    """A biography in sentences, or, more often, an entry as in a dictionary, which tells more in fewer words."""
    person: Person = w.choose_weighted(world.people, world.people_weights)
    if w.flip(0.7):
        order = w.sample(list(ATTRIBUTES), len(ATTRIBUTES))
        entry = [biography_sentence(ENTRY[attribute], attribute, person.facts[attribute]) for attribute in order]
        w.say(f"{person.name}: {', '.join(entry)}.")
        return
    attributes = w.sample(list(ATTRIBUTES), w.choose((3, 4, 5, 6)))
    for i, attribute in enumerate(attributes):
        template = w.choose(BIOGRAPHY[attribute])
        subject = person.name if i == 0 or not template.startswith("{}") else person.pronoun.capitalize()
        w.say((" " if i else "") + biography_sentence(template, attribute, subject, person.facts[attribute]))


# ---- taxonomy: kinds of animal that inherit their traits ------------------------------------------------------------

TRAIT_SENTENCE = {
    "cover": "{} is covered with {}", "motion": "{} {}", "home": "{} lives in {}", "food": "{} eats {}",
    "colour": "{} is {}", "time": "{} is seen {}",
}  # fmt: skip


def taxonomy(w: Writer, world: World) -> None:
    if w.flip(0.15):
        genus = w.choose(world.genera)
        w.say(f"Every {genus.name} is {a(genus.of_class)}.")
        for trait in w.sample(list(TRAITS), 4):
            w.say(" " + TRAIT_SENTENCE[trait].format(f"Every {genus.name}", genus.traits[trait]) + ".")
        return
    species: Species = w.choose_weighted(world.species, world.species_weights)
    known = [trait for trait in TRAITS if trait not in species.withheld]
    if w.flip(0.6):
        w.say(f"{a(species.name).capitalize()} is a kind of {species.genus.name}.")
        told = w.sample(known, w.choose((1, 2, 3)))
    else:
        told = known[:0]
        first = w.choose(known)
        w.say(TRAIT_SENTENCE[first].format(a(species.name).capitalize(), species.genus.traits[first]))
        w.say(f", because it is {a(species.genus.name)}.")
    for trait in told:
        w.say(" " + TRAIT_SENTENCE[trait].format(a(species.name).capitalize(), species.genus.traits[trait]) + ".")


# ---- uses: things, what they are made of and are good for, what happens to them -------------------------------------


def outcome(material: str, action: int) -> str:
    results = list(words.ACTIONS.values())[action]
    return results[int(words.OUTCOMES[material][action])]


def use_sentence(name: str, thing: Thing, use: str) -> str:
    return f"To {use}, {name} took the {thing.name}."


def action_sentence(name: str, action: int, what: str) -> str:
    return f"{name} {list(words.ACTIONS)[action].format(what)}."


def uses(w: Writer, world: World) -> None:
    thing: Thing = w.choose_weighted(world.things, world.things_weights)
    form = w.choose(("material", "use", "event", "plain event"))
    if form == "material":
        w.say(f"The {thing.name} is made of {thing.material}.")
        if w.flip(0.5):
            w.say(f" It is good to {w.choose(thing.uses)}.")
    elif form == "use":
        w.say(use_sentence(w.choose(FIRST_NAMES), thing, w.choose(thing.uses)))
    elif form == "event":
        action = w.choose(range(len(words.ACTIONS)))
        material = w.choose(words.MATERIALS)
        what = f"{words.ADJECTIVE.get(material, material)} {thing.name.split()[1]}"
        w.say(action_sentence(w.choose(FIRST_NAMES), action, what) + f" It {outcome(material, action)}.")
    else:
        action = w.choose([i for i in range(len(words.ACTIONS)) if i not in thing.withheld])
        w.say(action_sentence(w.choose(FIRST_NAMES), action, thing.name) + f" It {outcome(thing.material, action)}.")


# ---- scripts: everyday activities, several at a time ----------------------------------------------------------------

STEPS = {title: steps.split("|") for title, steps in words.SCRIPTS.items()}
SKIP = 0.1  # the probability that a step of a script is left out


def scripts(w: Writer, world: World, actors: int | None = None, stop_after: int | None = None) -> dict[str, list]:
    """Tell `actors` scripts side by side; `stop_after` ends the tale early. Returns what is left to do of each actor:
    name -> [title, index of the next step]."""
    actors = actors or w.choose((1, 2, 3))
    names = w.sample(FIRST_NAMES, actors)
    state = {name: [title, 0] for name, title in zip(names, w.sample(list(STEPS), actors), strict=True)}
    w.say("; ".join(f"{name} {title}" for name, (title, _) in state.items()) + ":")
    told = 0
    active = list(names)
    while active and (stop_after is None or told < stop_after):
        name = w.choose(active)
        title, i = state[name]
        steps = STEPS[title]
        if i < len(steps) - 1 and w.flip(SKIP):
            i += 1
        w.say(f" {name} {steps[i]}.")
        told += 1
        state[name][1] = i + 1
        if i + 1 == len(steps):
            active.remove(name)
    return state


# ---- sums: word problems with their working -------------------------------------------------------------------------


def sums(w: Writer, world: World, steps: int | None = None) -> tuple[str, str]:
    """Write a word problem of `steps` operations; returns (problem, working and answer) and has written both."""
    steps = steps or w.choose((1, 2, 3, 4))
    who, other = w.sample(FIRST_NAMES, 2)
    goods = w.choose(words.GOODS)
    working = []
    if w.flip(0.3):
        boxes, each = w.choose(range(2, 7)), w.choose(range(2, 7))
        have = boxes * each
        w.say(f"{who} had {boxes} {w.choose(words.CONTAINERS)} with {each} {goods} in each.")
        working.append(f"{boxes} x {each} = {have}.")
        steps -= 1
    else:
        have = w.choose(range(5, 30))
        w.say(f"{who} had {have} {goods}.")
    if w.flip(0.25):  # somebody else's goods, which don't count
        w.say(f" {other} had {w.choose(range(5, 30))} {w.choose(words.GOODS)}.")
    for _ in range(steps):
        if have < 45 and (have < 3 or w.flip(0.5)):
            n = w.choose(range(2, 20))
            w.say(
                " " + w.choose((f"{other} gave {who} {n} more.", f"{who} bought {n} more.", f"{who} found {n} more."))
            )
            working.append(f"{have} + {n} = {have + n}.")
            have += n
        else:
            n = w.choose(range(1, min(20, have)))
            w.say(" " + w.choose((f"{who} gave {n} to {other}.", f"{who} sold {n}.", f"{who} lost {n}.")))
            working.append(f"{have} - {n} = {have - n}.")
            have -= n
    w.say(f" How many {goods} does {who} have now?")
    problem = w.text()
    w.say(" " + " ".join([*working, f"Answer: {have}."]))
    return problem, w.text()[len(problem) :].strip()
