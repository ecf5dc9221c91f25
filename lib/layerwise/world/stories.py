"""Stories: people who move about, pick things up, hand them on and put them down; who has what, and where is it?"""

import math

from . import lexicon as words
from .documents import Writer
from .entities import FIRST_NAMES, World

GO = ("went to", "walked to", "ran to")
TAKE = ("picked up", "took", "grabbed")
LEAVE = ("put down", "left", "dropped")
# how many of each a story has, each number as likely
EVENTS, PLACES, NAMES, THINGS = range(2, 10), (2, 3, 4), (2, 3), (1, 2, 3)


class Scene:
    """Where everybody and everything is. A thing is at a place or held by a person."""

    def __init__(self, people: dict[str, str], things: dict[str, str]):
        self.place = dict(people)  # person -> place
        self.at = dict(things)  # thing -> place, or the person who holds it

    def whereabouts(self, thing: str) -> str:
        return self.place.get(self.at[thing], self.at[thing])

    def holder(self, thing: str) -> str | None:
        return self.at[thing] if self.at[thing] in self.place else None

    def actions(self, person: str) -> list[tuple[str, str]]:
        """What the person can do now: (verb, object) pairs; going somewhere is always possible."""
        here = self.place[person]
        possible = [("go", "")]
        for thing, at in self.at.items():
            if at == here:
                possible.append(("take", thing))
            elif at == person:
                possible.append(("leave", thing))
                possible += [("give " + p, thing) for p, where in self.place.items() if where == here and p != person]
        return possible


class Unseen:
    """How surprising the places of a story are for a reader who isn't told among which, or how many, it happens."""

    def __init__(self):
        self.seen: set[str] = set()
        self.odds = dict.fromkeys(PLACES, 1.0)  # of each number of places, given what has been seen

    def surprisal(self, place: str, elsewhere: bool = False) -> float:
        """Nats of a place chosen among all of the story, or among all but the one where somebody is."""
        seen, others = len(self.seen), len(words.PLACES) - len(self.seen)
        before = sum(self.odds.values())
        for number in self.odds:
            chance = 1.0 if place in self.seen else max(0, number - seen) / others
            self.odds[number] *= chance / (number - elsewhere)
        self.seen.add(place)
        return -math.log(sum(self.odds.values()) / before)


def where_sentence(scene: Scene, thing: str) -> str:
    return f"The {thing} was now in the {scene.whereabouts(thing)}."


def who_sentence(scene: Scene, thing: str) -> str:
    return f"Now {scene.holder(thing) or 'nobody'} had the {thing}."


def stories(w: Writer, world: World, questions: bool = True) -> Scene:
    """Write a story with statements about where things are now, at its end and before, unless `questions` is False."""
    events = w.choose(EVENTS, told=False)
    places = w.sample(words.PLACES, w.choose(PLACES, told=False))
    names = w.sample(FIRST_NAMES, w.choose(NAMES, told=False))
    things = w.sample(words.BELONGINGS, w.choose(THINGS, told=False))
    scene = Scene({p: w.choose(places, told=False) for p in names}, {t: w.choose(places, told=False) for t in things})
    unseen = Unseen()
    for person in w.tell(names, FIRST_NAMES, NAMES):
        w.note(unseen.surprisal(scene.place[person]))
        w.say(("" if person == names[0] else " ") + f"{person} was in the {scene.place[person]}.")
    for thing in w.tell(things, words.BELONGINGS, THINGS):
        w.note(unseen.surprisal(scene.at[thing]))
        w.say(f" The {thing} was in the {scene.at[thing]}.")
    for done in range(events):
        w.goes_on(done, EVENTS)
        person = w.choose(names)
        verb, thing = w.choose(scene.actions(person))
        if verb == "go":
            goal = w.choose([p for p in places if p != scene.place[person]], told=False)
            w.note(unseen.surprisal(goal, elsewhere=True))
            scene.place[person] = goal
            w.say(f" {person} {w.choose(GO)} the {goal}.")
        elif verb == "take":
            scene.at[thing] = person
            w.say(f" {person} {w.choose(TAKE)} the {thing}.")
        elif verb == "leave":
            scene.at[thing] = scene.place[person]
            w.say(f" {person} {w.choose(LEAVE)} the {thing}.")
        else:
            scene.at[thing] = verb.removeprefix("give ")
            w.say(f" {person} gave the {thing} to {scene.at[thing]}.")
        # whether a statement stands by itself or begins the closing ones is certain only when the next event is told,
        # or the text ends
        if questions and w.flip(0.3):
            w.say(" " + where_sentence(scene, w.choose(things)), certain=False)
    w.goes_on(events, EVENTS, more=False)
    if questions:
        for thing in w.tell(w.sample(things, len(things)), things):
            if scene.holder(thing) and w.flip(0.5):
                w.say(" " + who_sentence(scene, thing), certain=False)
            else:
                w.say(" " + where_sentence(scene, thing), certain=False)
    return scene
