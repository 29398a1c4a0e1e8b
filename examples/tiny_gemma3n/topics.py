"""Short texts and chats about 150 everyday things for the tiny models, from `topics.txt`.

    python topics.py SEED

prints a few. A topic is a paragraph: its first sentence says what the thing is, and the others can follow it in any
order. So the same facts occur in many texts, as they do in a large corpus.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from stories import Turns, chat_text

ASK_WHAT = ("What is {it}?", "Please explain what {it} is.", "Do you know what {it} is?", "Tell me what {it} is.")
ASK_MORE = ("Tell me more.", "What else do you know about it?", "Can you say more?", "Is there anything else?")
ASK_ABOUT = ("Tell me about {it}.", "Write a few sentences about {it}.", "What do you know about {it}?")
SYSTEMS = ("You explain things to children.", "You are a teacher.", "Answer in full sentences.", "Be short.")


@dataclass(frozen=True, slots=True)
class Topic:
    """`it`: the thing with its article; `sentences`: what it is, and then facts."""

    it: str
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """Without an article."""
        first, _, rest = self.it.partition(" ")
        return rest if first in ("a", "an", "the") else self.it


def load_topics() -> list[Topic]:
    """All topics."""
    blocks = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").strip().split("\n\n")
    return [Topic(it, tuple(sentences)) for it, *sentences in (block.split("\n") for block in blocks)]


class Explainer:
    """Draws texts and chats about the topics."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.topics = rng, load_topics()

    def facts(self, topic: Topic, count: int) -> list[str]:
        """Some facts in the order of the topic."""
        kept = sorted(self.rng.sample(range(1, len(topic.sentences)), min(count, len(topic.sentences) - 1)))
        return [topic.sentences[index] for index in kept]

    def text(self) -> str:
        """A paragraph, or several under headings."""
        rng, paragraphs = self.rng, []
        for topic in rng.sample(self.topics, rng.choice((1, 1, 2, 3))):
            said = " ".join((topic.sentences[0], *self.facts(topic, rng.choice((2, 3, 4, 5)))))
            paragraphs.append(f"{topic.name.capitalize()}\n{said}" if rng.random() < 0.3 else said)
        return "\n\n".join(paragraphs)

    def chat(self) -> Turns:
        """One to three questions about things, sometimes with a system turn."""
        rng = self.rng
        turns: Turns = []
        system = rng.choice(SYSTEMS) if rng.random() < 0.15 else ""
        if system:
            turns.append(("system", system))
        for topic in rng.sample(self.topics, rng.choice((1, 1, 2))):
            if rng.random() < 0.6:
                what = topic.sentences[0]
                if system != "Be short." and rng.random() < 0.5:
                    what = f"{what} {self.facts(topic, 1)[0]}"
                turns += [("user", rng.choice(ASK_WHAT).format(it=topic.it)), ("model", what)]
                left = [said for said in topic.sentences if said not in what]
                if rng.random() < 0.4:
                    turns += [("user", rng.choice(ASK_MORE)), ("model", " ".join(left[: rng.choice((1, 2))]))]
            else:
                said = " ".join((topic.sentences[0], *self.facts(topic, 1 if system == "Be short." else 3)))
                turns += [("user", rng.choice(ASK_ABOUT).format(it=topic.it)), ("model", said)]
        return turns


def main() -> None:
    explainer = Explainer(random.Random(int(sys.argv[1])))
    for _ in range(6):
        print(explainer.text(), end="\n\n")
        print(chat_text(explainer.chat()))


if __name__ == "__main__":
    main()
