"""Six kinds of document, written piece by piece while the surprisal of what they tell is accounted for.

A `Writer` notes minus the log of the probability, in nats, of each choice that the text tells, and the character at
which the text has told it for certain. What is drawn but never told counts nothing: a story's places count by their
probability for a reader who isn't told among which places it happens. So the sum over a document is -log p(document)
for a reader who knows the world and the generator, and the sum over what the beginning of a document has told is at
most -log p(beginning): no model's loss can be expected to fall below the mean of these sums. For the beginning it is
a bound, not the entropy itself: half a sentence tells something, and counts only when its choices are certain.
"""

import math
import random
from bisect import bisect

from . import lexicon as words
from .entities import ATTRIBUTES, FIRST_NAMES, TRAITS, Person, Species, Thing, World


class Writer:
    """Collects a document and the surprisal of what it tells.

    Draw first, then note what the next piece tells, then `say` it; draws note themselves unless `told=False`.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.parts: list[str] = []
        self.length = 0
        self.told: list[tuple[int, float]] = []
        self.noted = 0.0  # nats of what has been noted since the text last told something

    def say(self, text: str, certain: bool = True) -> None:
        """Add to the text. If `certain`, the text up to here leaves no doubt about what has been noted."""
        self.parts.append(text)
        self.length += len(text)
        if certain:
            self.told.append((self.length, self.noted))
            self.noted = 0.0

    def text(self) -> str:
        return "".join(self.parts)

    def surprisal(self) -> list[tuple[int, float]]:
        """(end, nats): the text up to character `end` tells this; an `end` behind the text means that its end does."""
        return [*self.told, (self.length + 1, self.noted)]

    def note(self, nats: float) -> None:
        self.noted += nats

    def choose(self, options, told: bool = True):
        """One of `options` (any sequence), each as likely as the others."""
        n = len(options)
        if told:
            self.noted += math.log(n)
        return options[int(self.rng.random() * n)]

    def choose_weighted(self, options, cumulative: list[float], told: bool = True):
        """One of `options`, where `cumulative` holds their cumulated probabilities."""
        i = min(bisect(cumulative, self.rng.random()), len(options) - 1)
        if told:
            self.noted -= math.log(cumulative[i] - (cumulative[i - 1] if i else 0.0))
        return options[i]

    def flip(self, probability: float) -> bool:
        """True with the given probability."""
        yes = self.rng.random() < probability
        self.noted -= math.log(probability if yes else 1 - probability)
        return yes

    def sample(self, options, k: int) -> list:
        """`k` different options in random order; nothing is noted before `tell`."""
        pool = list(options)
        chosen = []
        for _ in range(k):
            item = self.choose(pool, told=False)
            pool.remove(item)
            chosen.append(item)
        return chosen

    def tell(self, chosen: list, options, numbers=None):
        """Go through what was sampled from `options` and note each when its turn comes, and that there is no more at
        the end. `numbers`: how many there could have been, each number as likely (by default their number is known)."""
        numbers = numbers or (len(chosen),)
        for i, item in enumerate(chosen):
            self.goes_on(i, numbers)
            self.note(math.log(len(options) - i))
            yield item
        self.goes_on(len(chosen), numbers, more=False)

    def goes_on(self, done: int, numbers, more: bool = True) -> None:
        """Note whether there is more after `done`, where any of `numbers` was as likely to be the number in the end."""
        p = sum(n > done for n in numbers) / sum(n >= done for n in numbers)
        self.note(-math.log(p if more else 1 - p))


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


SENTENCES = (3, 4, 5, 6)  # of a biography


def biography_sentence(template: str, attribute: str, *values: str) -> str:
    if attribute == "profession" and values[-1][0] in "aeiou":
        template = template.replace("a {}", "an {}")
    return template.format(*values)


def people(w: Writer, world: World) -> None:
    """A biography in sentences, or, more often, an entry as in a dictionary, which tells more in fewer words."""
    person: Person = w.choose_weighted(world.people, world.people_weights)
    if w.flip(0.7):
        w.say(f"{person.name}:")
        order = w.sample(list(ATTRIBUTES), len(ATTRIBUTES))
        for attribute in w.tell(order, ATTRIBUTES):
            end = "." if attribute == order[-1] else ","
            w.say(" " + biography_sentence(ENTRY[attribute], attribute, person.facts[attribute]) + end)
        return
    attributes = w.sample(list(ATTRIBUTES), w.choose(SENTENCES, told=False))
    for i, attribute in enumerate(w.tell(attributes, ATTRIBUTES, SENTENCES)):
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
        for trait in w.tell(w.sample(list(TRAITS), 4), TRAITS):
            w.say(" " + TRAIT_SENTENCE[trait].format(f"Every {genus.name}", genus.traits[trait]) + ".")
        return
    species: Species = w.choose_weighted(world.species, world.species_weights)
    known = [trait for trait in TRAITS if trait not in species.withheld]
    if w.flip(0.6):
        w.say(f"{a(species.name).capitalize()} is a kind of {species.genus.name}.")
    else:
        first = w.choose(known)
        w.say(TRAIT_SENTENCE[first].format(a(species.name).capitalize(), species.genus.traits[first]))
        w.say(f", because it is {a(species.genus.name)}.")
        return
    numbers = (1, 2, 3)
    for trait in w.tell(w.sample(known, w.choose(numbers, told=False)), known, numbers):
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
    thing: Thing = w.choose_weighted(world.things, world.things_weights, told=False)
    kind = thing.name.split()[1]
    form = w.choose(("material", "use", "event", "plain event"))
    w.note(-math.log(world.things_shares[kind if form == "event" else thing.name]))
    if form == "material":
        w.say(f"The {thing.name} is made of {thing.material}.")
        if w.flip(0.5):
            w.say(f" It is good to {w.choose(thing.uses)}.")
    elif form == "use":
        w.say(use_sentence(w.choose(FIRST_NAMES), thing, w.choose(thing.uses)))
    elif form == "event":
        action = w.choose(range(len(words.ACTIONS)))
        material = w.choose(words.MATERIALS)
        what = f"{words.ADJECTIVE.get(material, material)} {kind}"
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
    numbers = (actors,) if actors else (1, 2, 3)
    actors = actors or w.choose(numbers, told=False)
    names = w.sample(FIRST_NAMES, actors)
    state = {name: [title, 0] for name, title in zip(names, w.sample(list(STEPS), actors), strict=True)}
    titles = w.tell([title for title, _ in state.values()], STEPS)
    for name in w.tell(names, FIRST_NAMES, numbers):
        w.say(("" if name == names[0] else "; ") + f"{name} {next(titles)}")
    w.say(":")
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


OPERATIONS = (1, 2, 3, 4)
AMOUNTS = range(5, 30)  # that somebody has to begin with


def sums(w: Writer, world: World, amounts: range = AMOUNTS) -> tuple[str, str]:
    """Write a word problem that begins with one of `amounts`, or with boxes; returns (problem, working and answer) and
    has written both. More is gained only below 45, so the working stays below 64 for amounts below 64."""
    operations = w.choose(OPERATIONS, told=False)
    who, other = w.sample(FIRST_NAMES, 2)
    names = w.tell([who, other], FIRST_NAMES)
    next(names)
    goods = w.choose(words.GOODS)
    working = []
    boxed = w.flip(0.3)
    if boxed:
        boxes, each = w.choose(range(2, 7)), w.choose(range(2, 7))
        have = boxes * each
        w.say(f"{who} had {boxes} {w.choose(words.CONTAINERS)} with {each} {goods} in each.")
        working.append(f"{boxes} x {each} = {have}.")
    else:
        have = w.choose(amounts)
        w.say(f"{who} had {have} {goods}.")
    if w.flip(0.25):  # somebody else's goods, which don't count
        next(names)
        w.say(f" {other} had {w.choose(AMOUNTS)} {w.choose(words.GOODS)}.")
    for done in range(boxed, operations):
        w.goes_on(done, OPERATIONS)
        if have < 45 and (have < 3 or w.flip(0.5)):
            n = w.choose(range(2, 20))
            options = (f"{other} gave {who} {n} more.", f"{who} bought {n} more.", f"{who} found {n} more.")
            working.append(f"{have} + {n} = {have + n}.")
            have += n
        else:
            n = w.choose(range(1, min(20, have)))
            options = (f"{who} gave {n} to {other}.", f"{who} sold {n}.", f"{who} lost {n}.")
            working.append(f"{have} - {n} = {have - n}.")
            have -= n
        sentence = w.choose(options)
        if sentence == options[0]:
            next(names, None)  # nothing, if the other has been named before
        w.say(" " + sentence)
    w.goes_on(operations, OPERATIONS, more=False)
    w.say(f" How many {goods} does {who} have now?")
    problem = w.text()
    w.say(" " + " ".join([*working, f"Answer: {have}."]))
    return problem, w.text()[len(problem) :].strip()
