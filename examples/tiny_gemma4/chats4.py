"""Chats for the tiny Gemma 4 in the form that its chat template gives them, some with a thought before the answer.

    python chats4.py SEED

prints a few. The words are those of the tiny Gemma 3n's stories.py; what that model says about itself, about pictures
and about sounds is replaced.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import stories
from stories import Turns
from transformers import AutoTokenizer

HERE = Path(__file__).parent
THINKING = 0.5
"""The share of chats in which the system turn asks for thoughts."""
STORIES, JOINED, MEANINGS = 0.25, 0.2, 0.05
"""The shares of chats in which the user wants a story, besides those of stories.py; in which the system turn gives the
model a name and the user wants various things; and in which the user asks what a word means."""
ONCE = 0.15
"""The share of stories that begin with "Once upon a time"."""
SELF = "I am a very small Gemma 4. I can tell short stories and answer simple questions."
SKILLS = "I can tell a short story, answer simple questions, and say what a word means."
LONG = 160
"""Answers with more characters are stories or explanations."""
STORY, ASKING = re.compile("story|something about|begin|Hello"), re.compile("Tell|Explain|Please|Write|Say")
GREETING, THANKS = re.compile("Hello|Hi|Good (morning|evening)"), re.compile("Thank|Good bye")


class Storyteller(stories.Storyteller):
    """Draws stories and chats in which the model is a Gemma 4."""

    def world(self) -> dict[str, str]:
        slots = super().world()
        if self.rng.random() < ONCE:
            slots["opening"] = "Once upon a time"
        return slots

    def pairs(self, *turns: tuple[str, str]) -> Turns:
        return [(who, own_words(said)) for who, said in super().pairs(*turns)]


def own_words(said: str) -> str:
    """What the tiny Gemma 4 says where the tiny Gemma 3n speaks of itself."""
    said = said.replace("I am a very small Gemma 3n. I can tell short stories and answer simple questions.", SELF)
    return said if "pictures of shapes" not in said else SKILLS


@dataclass(frozen=True, slots=True)
class Sample:
    """`ids`: the tokens of a chat; `shares`: how much each counts in the loss."""

    ids: list[int]
    shares: list[float]


class Chats:
    """Draws chats as tokens."""

    def __init__(self, rng: random.Random, meanings: list[str]) -> None:
        """`meanings`: words with their meanings, such as `boat (noun): a small ship. “He sails a boat”.`"""
        self.rng, self.meanings = rng, meanings
        self.teller = Storyteller(rng)
        self.tokenizer = AutoTokenizer.from_pretrained(HERE)

    def turns(self) -> Turns:
        kind = self.rng.random()
        if kind < STORIES:
            return self.teller.story_chat()
        if kind < STORIES + JOINED:
            teller = self.teller
            return teller.in_a_role() + self.rng.choice((teller.story_chat, teller.questions, teller.acquaintance))()
        if kind < 1.0 - MEANINGS:
            return self.teller.chat()
        word, meaning = self.rng.choice(self.meanings).split(" ", 1)
        said = meaning.partition("): ")[2].split(". “")[0].rstrip(".")
        ask = self.rng.choice(
            (f"What does “{word}” mean?", f"What is the meaning of “{word}”?", f"Explain the word “{word}”.")
        )
        return [("user", ask), ("model", f"{said[:1].upper()}{said[1:]}.")]

    def draw(self) -> Sample:
        turns = self.turns()
        if self.rng.random() >= THINKING:
            ids = self.encode(self.render(turns))
            return Sample(ids, [1.0] * len(ids))
        answers = [place for place, (who, _) in enumerate(turns) if who == "model"]
        last = max(self.rng.choice(answers), self.rng.choice(answers))
        prompt = self.render(turns[:last], thinking=True, generation=True)
        thought = self.thought(turns[last - 1][1], turns[last][1])
        answer = f"<|channel>thought\n{thought}\n<channel|>{turns[last][1]}<turn|>\n"
        before, after = self.encode(prompt), self.encode(answer)
        # Earlier answers stand here without their thoughts, as the template renders them, and are not to be learned.
        return Sample([*before, *after], [0.0] * len(before) + [1.0] * len(after))

    def thought(self, asked: str, answer: str) -> str:
        """What the user wants, then, if it is a short answer to a question, that answer."""
        if len(answer) > LONG and STORY.search(asked):
            about = asked.partition(" about ")[2].rstrip(".?!") or "what I like"
            plan = "[Who is in it, what happens, and how does it end?|It needs a beginning and a good end.]"
            return stories.choose(f"The user wants a story about {about}. {plan}", self.rng)
        if len(answer) > LONG:
            return "The user wants to know something. I shall say what I know."
        if asked.endswith("?") or ASKING.match(asked):
            return self.rng.choice(("The user asks a question.", "This is a question.")) + f" The answer: {answer}"
        if GREETING.match(asked):
            return stories.choose("[The user greets me. I should be friendly.|I should greet the user.]", self.rng)
        if THANKS.match(asked):
            return "The user thanks me, or leaves."
        return stories.choose("The user tells me something. [I should answer kindly.|I should remember it.]", self.rng)

    def render(self, turns: Turns, *, thinking: bool = False, generation: bool = False) -> str:
        roles = {"model": "assistant"}
        messages = [{"role": roles.get(who, who), "content": said} for who, said in turns]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, enable_thinking=thinking
        )
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def main() -> None:
    chats = Chats(random.Random(int(sys.argv[1])), ["boat (noun): a small vessel. “He rowed a boat”."])
    for _ in range(16):
        print(chats.tokenizer.decode(chats.draw().ids))


if __name__ == "__main__":
    main()
