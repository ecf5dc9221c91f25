"""Stories: people who move about, pick things up, hand them on and put them down; who has what, and where is it?"""

from . import lexicon as words
from .documents import Writer
from .entities import FIRST_NAMES, World

GO = ("went to", "walked to", "ran to")
TAKE = ("picked up", "took", "grabbed")
LEAVE = ("put down", "left", "dropped")


class Scene:
    """Where everybody and everything is. A thing is at a place or held by a person."""

    def __init__(self, people: dict[str, str], things: dict[str, str]):
        self.place = dict(people)  # person -> place
        self.at = dict(things)  # thing -> place, or the person who holds it
        self.visited = {thing: [place] for thing, place in things.items()}  # the places a thing has been in
        self.held_by = {thing: [] for thing in things}  # the people who have held it

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

    def note(self) -> None:
        for thing, places in self.visited.items():
            if places[-1] != self.whereabouts(thing):
                places.append(self.whereabouts(thing))
            holder, held = self.holder(thing), self.held_by[thing]
            if holder and (not held or held[-1] != holder):
                held.append(holder)


def where_sentence(scene: Scene, thing: str) -> str:
    return f"The {thing} was now in the {scene.whereabouts(thing)}."


def who_sentence(scene: Scene, thing: str) -> str:
    return f"Now {scene.holder(thing) or 'nobody'} had the {thing}."


def stories(w: Writer, world: World, events: int | None = None, questions: bool = True) -> Scene:
    """Write a story of `events` events, followed by statements about its end unless `questions` is False."""
    events = events or w.choose(range(2, 10))
    places = w.sample(words.PLACES, w.choose((2, 3, 4)))
    names = w.sample(FIRST_NAMES, w.choose((2, 3)))
    things = w.sample(words.BELONGINGS, w.choose((1, 2, 3)))
    scene = Scene({p: w.choose(places) for p in names}, {t: w.choose(places) for t in things})
    w.say(" ".join(f"{p} was in the {place}." for p, place in scene.place.items()))
    for thing, place in scene.at.items():
        w.say(f" The {thing} was in the {place}.")
    for _ in range(events):
        person = w.choose(names)
        verb, thing = w.choose(scene.actions(person))
        if verb == "go":
            goal = w.choose([p for p in places if p != scene.place[person]])
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
        scene.note()
        if questions and w.flip(0.3):
            w.say(" " + where_sentence(scene, w.choose(things)))
    if questions:
        for thing in w.sample(things, len(things)):
            if scene.holder(thing) and w.flip(0.5):
                w.say(" " + who_sentence(scene, thing))
            else:
                w.say(" " + where_sentence(scene, thing))
    return scene
