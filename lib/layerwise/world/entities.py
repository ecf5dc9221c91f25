"""The facts of the world: who lives in it, which kinds of animal there are, what things are made of.

Everything is drawn once from one seed. The text of `documents` states these facts again and again; the tasks of
`items` ask for them. Some facts are *withheld*: no document states them, they follow from others, and the inference
tasks ask for exactly those.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from . import lexicon as words

PEOPLE = 5000
SPECIES = 1200
GENERA_PER_CLASS = 6

TOWNS = [a + b for a in words.TOWN_STEMS for b in words.TOWN_ENDS]
EMPLOYERS = [f"{a} {b}" for a in words.EMPLOYER_NAMES for b in words.EMPLOYER_KINDS]
YEARS = [str(y) for y in range(1800, 2000)]
FIRST_NAMES = words.WOMEN + words.MEN
# what a biography tells, with the values that it can take
ATTRIBUTES = {
    "town": TOWNS, "year": YEARS, "profession": words.PROFESSIONS, "employer": EMPLOYERS,
    "subject": words.SUBJECTS, "pet": words.PETS,
}  # fmt: skip
# what is known of a kind of animal; the first two belong to its class, the others to its genus
TRAITS = {
    "cover": [cover for cover, _ in words.CLASSES.values()], "motion": [motion for _, motion in words.CLASSES.values()],
    "home": words.HOMES, "food": words.FOODS, "colour": words.COLOURS, "time": words.TIMES,
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    facts: dict[str, str]  # attribute -> value


@dataclass(frozen=True)
class Genus:
    name: str
    of_class: str
    traits: dict[str, str]


@dataclass(frozen=True)
class Species:
    name: str
    genus: Genus
    withheld: frozenset[str]  # traits that no document states of this species: they follow from its genus


@dataclass(frozen=True)
class Thing:
    name: str
    material: str
    uses: tuple[str, ...]
    withheld: frozenset[int]  # actions whose outcome no document tells without naming the material


def popularity(n: int, exponent: float = 0.6) -> list[float]:
    """Weights `[n]`, summing to 1, that fall off by a power law: the well-known are told of more often.

    This grades the difficulty of what has to be memorised.
    """
    weights = [(rank + n / 50) ** -exponent for rank in range(1, n + 1)]
    total = sum(weights)
    return [w / total for w in weights]


class World:
    """All facts, drawn from `seed`. Two worlds of one seed are equal on every machine."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        rng = random.Random(f"world-{seed}")
        self.people = _people(rng)
        self.genera = _genera(rng)
        self.species = _species(rng, self.genera)
        self.things = _things(rng)

    @cached_property
    def people_weights(self) -> list[float]:
        return list(accumulate(popularity(len(self.people))))

    @cached_property
    def species_weights(self) -> list[float]:
        return list(accumulate(popularity(len(self.species))))

    @cached_property
    def things_shares(self) -> dict[str, float]:
        """How often a thing is drawn, by its name, and any thing of a kind, by the last word of its name."""
        shares: dict[str, float] = {}
        for thing, share in zip(self.things, popularity(len(self.things)), strict=True):
            for name in (thing.name, thing.name.split()[1]):
                shares[name] = shares.get(name, 0.0) + share
        return shares

    @cached_property
    def things_weights(self) -> list[float]:
        return list(accumulate(popularity(len(self.things))))


def _people(rng: random.Random) -> list[Person]:
    surnames = [a + b for a in words.SURNAME_STEMS for b in words.SURNAME_ENDS]
    women = set(words.WOMEN)
    names = rng.sample([(first, last) for first in FIRST_NAMES for last in surnames], PEOPLE)
    return [
        Person(
            f"{first} {last}",
            "she" if first in women else "he",
            {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()},
        )
        for first, last in names
    ]


def _invented_names(rng: random.Random, n: int, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < n:
        syllables = 1 if rng.random() < 0.15 else 2
        name = "".join(
            rng.choice(words.SPECIES_ONSETS) + rng.choice(words.SPECIES_VOWELS) for _ in range(syllables)
        ) + rng.choice(words.SPECIES_CODAS)
        if name not in taken and len(name) > 3:
            taken.add(name)
            names.append(name)
    return names


def _genera(rng: random.Random) -> list[Genus]:
    names = _invented_names(rng, GENERA_PER_CLASS * len(words.CLASSES), set())
    genera = []
    for i, name in enumerate(names):
        of_class = list(words.CLASSES)[i % len(words.CLASSES)]
        cover, motion = words.CLASSES[of_class]
        own = {trait: rng.choice(TRAITS[trait]) for trait in ("home", "food", "colour", "time")}
        genera.append(Genus(name, of_class, {"cover": cover, "motion": motion, **own}))
    return genera


def _species(rng: random.Random, genera: list[Genus]) -> list[Species]:
    names = _invented_names(rng, SPECIES, {g.name for g in genera})
    return [Species(name, rng.choice(genera), frozenset(rng.sample(list(TRAITS), 3))) for name in names]


def _things(rng: random.Random) -> list[Thing]:
    """Every kind of thing by several makers, so that what a thing is made of must be memorised, not guessed."""
    return [
        Thing(
            f"{maker} {name}",
            rng.choice(words.MATERIALS),
            tuple(rng.sample(words.USES, 2)),
            frozenset(rng.sample(range(len(words.ACTIONS)), 4)),
        )
        for name in words.THINGS
        for maker in words.MAKERS
    ]
