"""Short stories and chats for the tiny Gemma 3n, written by a seeded grammar of our own, in plain modern English.

    python stories.py SEED

prints a few. A pattern such as `[It rained|The sun shone] on {place}.` stands for one of its alternatives, with the
slots filled from the world of one story: who, where, with what. A story keeps the facts that it tells, so that
questions about it have answers.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GRAMMAR = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""`words`: the words for slots. `jobs`: jobs with what they make. `sounds`: those of animals. `plots`: topic, text and
facts (questions about the story with their answers). `endings`: for most plots. `memories`: what the user says, the
reply, a later question and its answer. `known`, `one_word`: questions with answers."""
WORDS = {name: words.split(", ") for name, words in GRAMMAR["words"].items()}
JOBS, SOUNDS = GRAMMAR["jobs"], GRAMMAR["sounds"]
OPPOSITES = [pair.split("-") for pair in GRAMMAR["opposites"].split(", ")]
FEMALE = {"mother", "sister", "grandmother", "aunt"}

Turns = list[tuple[str, str]]
"""Who (system, user or model), and what was said."""


def choose(pattern: str, rng: random.Random) -> str:
    """The pattern with each `[a|b]` replaced by one of its alternatives, innermost first."""
    while True:
        made = re.sub(r"\[([^\[\]]*)\]", lambda found: rng.choice(found[1].split("|")), pattern)
        if made == pattern:
            return re.sub(r" +", " ", made).strip()
        pattern = made


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def pronouns(prefix: str, female: bool) -> dict[str, str]:
    """Slots such as `he`, `He`, `him`, `his` (with a 2 after them for the second person of a story)."""
    words = ("she", "her", "her") if female else ("he", "him", "his")
    named = dict(zip(("he", "him", "his"), words, strict=True))
    named |= {name.capitalize(): word.capitalize() for name, word in named.items()}
    return {name + prefix: word for name, word in named.items()}


@dataclass(frozen=True, slots=True)
class Story:
    """A story. `topic`: what a user may ask a story about; `facts`: questions about the story, with their answers."""

    text: str
    topic: str
    facts: tuple[tuple[str, str], ...]


OPENINGS = (
    "[One day|One morning|One [warm|cold|bright|rainy|quiet] [day|morning|evening]|Last [week|summer|winter]|Yesterday]"
)


class Storyteller:
    """Draws stories and chats."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def world(self) -> dict[str, str]:
        """All slots of one story, each drawn once, so that the story is consistent."""
        rng, female, second = self.rng, self.rng.random() < 0.5, self.rng.random() < 0.5
        name, name2 = rng.choice(WORDS["girls"] if female else WORDS["boys"]), ""
        while name2 in ("", name):
            name2 = rng.choice(WORDS["girls"] if second else WORDS["boys"])
        thing, thing2 = rng.sample(WORDS["things"], 2)
        colour, job, family = rng.choice(WORDS["colours"]), rng.choice(list(JOBS)), rng.choice(WORDS["family"])
        slots = {"name": name, "name2": name2, "thing": thing, "a_thing2": with_article(thing2), "colour": colour}
        slots |= {
            "size": rng.choice(WORDS["sizes"]),
            "small": rng.choice(("small", "little")),
            "family": family,
            "job": job,
        }
        slots["a_thing"] = with_article(
            rng.choice((thing, f"{colour} {thing}", f"{rng.choice(WORDS['sizes'])} {thing}"))
        )
        for names, pool in (
            ("spot spot2 spot3", "spots"), ("place place2", "places"), ("animal animal2", "animals"),
            ("food food2", "foods"), ("skill", "skills"), ("plant", "plants"), ("pet", "pets"),
            ("number", "numbers"), ("petname", "pet_names"), ("dish", "dishes"),
        ):  # fmt: skip
            drawn = rng.sample(WORDS[pool], len(names.split()))
            slots |= dict(zip(names.split(), drawn, strict=True))
        slots |= pronouns("", female) | pronouns("2", second) | pronouns("f", family in FEMALE)
        slots |= {"goods": JOBS[job], "opening": choose(OPENINGS, rng)}
        return slots

    def phrase(self, pattern: str, slots: dict[str, str]) -> str:
        text = choose(" ".join(pattern.split()), self.rng).format_map(slots)
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)  # "a {animal}" before an owl

    def fill(self, pattern: str, slots: dict[str, str]) -> str:
        """Like `phrase`, for whole sentences."""
        text = self.phrase(pattern, slots)
        return text[:1].upper() + text[1:]

    def story(self, kind: str | None = None) -> Story:
        slots, plots = self.world(), GRAMMAR["plots"]
        plot = plots[kind or self.rng.choice(list(plots))]
        slots["ending"] = self.fill(GRAMMAR["endings"], slots)
        text = self.fill(" ".join(plot["text"]), slots)
        facts = tuple((self.fill(question, slots), self.fill(answer, slots)) for question, answer in plot["facts"])
        return Story(text, self.phrase(plot["topic"], slots), facts)

    # --- chats -------------------------------------------------------------------------------------------------------

    def chat(self) -> Turns:
        """A chat as turns (who, text), where who is system, user or model. The first turn may be the system's."""
        kinds: tuple[tuple[Callable[[], Turns], float], ...] = (
            (self.story_chat, 0.25), (self.acquaintance, 0.25), (self.questions, 0.30), (self.with_system, 0.20),
        )  # fmt: skip
        return self.rng.choices([kind for kind, _ in kinds], [share for _, share in kinds])[0]()

    def pairs(self, *turns: tuple[str, str]) -> Turns:
        slots = self.world()
        made = [(self.fill(ask, slots), self.fill(answer, slots)) for ask, answer in turns]
        return [turn for ask, answer in made for turn in (("user", ask), ("model", answer))]

    def story_chat(self) -> Turns:
        story = self.story()
        ask = choose(
            f"[Tell me a [short |]story about {story.topic}.|Please write [a story|something] about {story.topic}.]",
            self.rng,
        )
        turns = [("user", ask), ("model", story.text)]
        for question, answer in self.rng.sample(story.facts, self.rng.choice((0, 1, 2, 2))):
            turns += [("user", question), ("model", answer)]
        return turns + (self.pairs(THANKS) if self.rng.random() < 0.3 else [])

    def acquaintance(self) -> Turns:
        """A chat in which the user tells something and asks about it later."""
        rng, slots = self.rng, self.world()
        told = [[self.fill(pattern, slots) for pattern in memory] for memory in rng.sample(GRAMMAR["memories"], 2)]
        if rng.random() < 0.4:
            told.pop()
        *_, later, answer = rng.choice(told)
        turns = self.pairs(HELLO) if rng.random() < 0.4 else []
        turns += [turn for said, reply, *_ in told for turn in (("user", said), ("model", reply))]
        turns += [("user", later), ("model", answer)]
        return turns + (self.pairs(THANKS) if rng.random() < 0.3 else [])

    def questions(self) -> Turns:
        count = self.rng.choice((1, 2, 3))
        turns = self.pairs(HELLO) if self.rng.random() < 0.3 else []
        turns += [turn for _ in range(count) for turn in self.question()]
        return turns + (self.pairs(THANKS) if self.rng.random() < 0.2 else [])

    def question(self) -> Turns:
        """One question of general knowledge."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.25:
            a, b = rng.randrange(10), rng.randrange(10)
            ask = rng.choice((f"What is {a} plus {b}?", f"How much is {a} + {b}?"))
            return self.pairs((ask, f"[{a} plus {b} is {a + b}.|It is {a + b}.]"))
        if kind < 0.35:
            animal = rng.choice(list(SOUNDS))
            ask = f"[What does {with_article(animal)} do|What sound does {with_article(animal)} make]?"
            return self.pairs((ask, f"{with_article(animal).capitalize()} can {SOUNDS[animal]}."))
        if kind < 0.5:
            a, b = rng.choice(OPPOSITES)
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
            return self.pairs((f"What is the opposite of {a}?", f"The opposite of {a} is {b}."))
        return self.pairs(rng.choice(GRAMMAR["known"]))

    def with_system(self) -> Turns:
        """A chat whose first turn says who the model is, or how to answer."""
        kind = self.rng.random()
        if kind < 0.35:
            return self.in_a_role()
        if kind < 0.65:
            system = self.rng.choice(("Answer in one word.", "Answer with one word only.", "Use one word."))
            asked = self.rng.sample(GRAMMAR["one_word"], self.rng.choice((2, 3)))
            return [("system", system), *(turn for q, a in asked for turn in (("user", q), ("model", a)))]
        if kind < 0.85:
            word = self.rng.choice(("Thank you.", "Have a nice day.", "My friend.", "Peace."))
            system = self.rng.choice((f"End every answer with: {word}", f"Always say “{word}” at the end."))
            asked = [self.question() for _ in range(self.rng.choice((1, 2, 3)))]
            return [("system", system), *(turn for ask, (_, a) in asked for turn in (ask, ("model", f"{a} {word}")))]
        story = self.story()
        system = self.rng.choice(("You tell stories.", "You are a storyteller.", "You write short stories."))
        ask = self.rng.choice(("Hello.", "Please begin.", f"Tell me about {story.topic}."))
        return [("system", system), ("user", ask), ("model", story.text)]

    def in_a_role(self) -> Turns:
        rng, slots = self.rng, self.world()
        name, job = slots["name"], slots["job"]
        called = f"Your name is {name}.", f"You are {name}, a {job}.", f"You are called {name}. You are a {job}."
        system, work = rng.choice(called), f"I am a {job}." + (f" I make {JOBS[job]}." if job in MAKERS else "")
        asked = [("[What is your name?|Who are you?|What are you called?]", f"[My name is {name}.|I am {name}.]")]
        if job in system:
            asked.append(("[What do you do?|What is your work?]", work))
        rng.shuffle(asked)
        turns = self.pairs(HELLO) if rng.random() < 0.3 else []
        return [("system", system), *turns, *self.pairs(*asked), *self.question()]


MAKERS = ("baker", "carpenter", "cook", "tailor", "potter")
HELLO = (
    "[Hello|Hi|Hello there|Good morning|Good evening][.|!|]",
    "[Hello! How can I help you?|Hello! What would you like to talk about?|Good to see you. What can I do for you?]",
)
THANKS = (
    "[Thank you|Thanks|Thank you very much|Good bye][.|!]",
    "[You are welcome.|You are welcome! Have a nice day.|I was glad to help.|Good bye! Come again.]",
)


def chat_text(turns: Turns) -> str:
    """A chat in the chat format, without `<bos>`; a system turn joins the first question (chat_template.jinja)."""
    text, system = "", ""
    for who, said in turns:
        if who == "system":
            system = said + "\n\n"
            continue
        text += f"<start_of_turn>{who}\n{system}{said.strip()}<end_of_turn>\n"
        system = ""
    return text


def main() -> None:
    teller = Storyteller(random.Random(int(sys.argv[1])))
    for kind in GRAMMAR["plots"]:
        print(teller.story(kind).text, end="\n\n")
    for _ in range(12):
        print(chat_text(teller.chat()))


if __name__ == "__main__":
    main()
