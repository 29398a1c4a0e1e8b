"""Chats of several questions about pictures and sounds for the tiny Gemma 3n, answered in words or in sentences."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import media_data
import media_model
import numpy as np
import stories
import torch
from media_data import COLOURS, DIGITS, FIGURES, SHAPES, UNSEEN, WORDS
from numpy.typing import NDArray
from stories import with_article
from tokenizers import Tokenizer
from torch import Tensor
from train_media import Media

ASKED, ANSWERED, MISLED = 0.1, 3.0, 0.6
"""How much the tokens of questions and of answers count in the loss, and how often an answer's colour is made wrong."""
OTHER_WORDS = ("big", "small", "bright", "dark", "new", "old", "nice", "strange", "simple", "clear")
"""What may also stand in the place of the colour."""

SEE = (
    "What do you see in this picture?", "Tell me what you see.", "Describe the picture.",
    "What does the picture show?", "Look at this picture. What is it?", "What is in the picture?",
)  # fmt: skip
SEEN = ("I see {what}.", "The picture shows {what}.", "This is {what}.", "It is {what}.")
COLOUR_OF = (
    "What colour is the {figure}?",
    "Which colour does the {figure} have?",
    "Tell me the colour of the {figure}.",
)
FIGURE_OF = ("What shape or digit do you see?", "What is the {colour} thing?", "Which figure is it?")
HEAR = (
    "Tell me what you hear.",
    "What word do you hear?",
    "Listen. What was the word?",
    "Which word did the voice say?",
    "Please write down what was said.",
)
HEARD = ("The word was “{word}”.", "I hear the word “{word}”.", "The voice said “{word}”.")
SENTENCES = ("Answer in a full sentence.", "Answer in full sentences.", "Please use whole sentences.")


@dataclass(slots=True)
class Tokens:
    """A conversation, or a row of several: ids, how much each counts as a target, and the places of soft tokens."""

    ids: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    given: list[tuple[int, Tensor]] = field(default_factory=list)

    def extend(self, other: Tokens) -> None:
        self.given += [(len(self.ids) + start, rows) for start, rows in other.given]
        self.ids += other.ids
        self.shares += other.shares


class MediaChats:
    """Draws conversations about pictures and sounds in the training sets."""

    def __init__(self, media: Media, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.media, self.tokenizer, self.rng = media, tokenizer, rng
        self.teller = stories.Storyteller(rng)

    def draw(self) -> Tokens:
        return self.picture() if self.rng.random() < 0.62 else self.sound()

    def add(self, tokens: Tokens, text: str, share: float) -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        tokens.ids += ids
        tokens.shares += [share] * len(ids)

    def add_medium(self, tokens: Tokens, begin: str, soft: Tensor, soft_id: int, end: int) -> None:
        self.add(tokens, f"\n\n{begin}", 0.0)
        tokens.given.append((len(tokens.ids), torch.cat((soft, self.media.hard[end][None]))))
        tokens.ids += [soft_id] * len(soft) + [end]
        tokens.shares += [0.0] * (len(soft) + 1)
        self.add(tokens, "\n\n", 0.0)

    def answer(self, tokens: Tokens, said: str, parts: tuple[str, str] | None = None) -> None:
        """Add an answer. `parts`: a colour and a figure in it; sometimes another word replaces the right colour.

        It does not count in the loss. So the figure is learned from the picture, whatever was said before it. Pairs
        that are never shown are not named either.
        """
        self.add(tokens, "<start_of_turn>model\n", ASKED)
        if parts and said.count(parts[0]) == 1 and self.rng.random() < MISLED:
            before, _, after = said.partition(f" {parts[0]} ")
            others = [c for c in COLOURS if c != parts[0] and (c, parts[1]) not in UNSEEN]
            if after:
                self.add(tokens, before, ANSWERED)
                word = self.rng.choice(others if self.rng.random() < 0.6 else OTHER_WORDS)
                self.add(tokens, f" {word}", 0.0)
                said = f" {after}"
        self.add(tokens, said, ANSWERED)
        self.add(tokens, "<end_of_turn>\n", ANSWERED)

    def begin(self, system: str, question: str, medium: tuple[str, Tensor, int, int]) -> Tokens:
        tokens = Tokens()
        self.add(tokens, f"<bos><start_of_turn>user\n{system}", 0.0)
        if self.rng.random() < 0.3:
            self.add(tokens, question, ASKED)
            self.add_medium(tokens, *medium)
        else:
            self.add_medium(tokens, *medium)
            self.add(tokens, question, ASKED)
        self.add(tokens, "<end_of_turn>\n", ASKED)
        return tokens

    def ask(self, tokens: Tokens, question: str) -> None:
        self.add(tokens, f"<start_of_turn>user\n{question}<end_of_turn>\n", ASKED)

    def picture(self) -> Tokens:
        rng, media = self.rng, self.media
        chosen = rng.randrange(len(media.pictures))
        colour, figure = list(COLOURS)[media.colour[chosen]], FIGURES[media.figure[chosen]]
        medium = ("<start_of_image>", media.pictures[chosen], media_model.IMAGE_SOFT, media_model.IMAGE_END)
        kind, draw = rng.random(), rng.random()
        if kind < 0.55:  # as train_media.py asks
            question = rng.choice(media_data.picture_questions(draw))
            said = media_data.picture_answer(int(media.colour[chosen]), int(media.figure[chosen]), draw)
            tokens = self.begin("", question, medium)
        else:
            system = f"{rng.choice(SENTENCES)}\n\n" if kind > 0.9 else ""
            question = rng.choice(media_data.PICTURE_QUESTIONS if system else SEE)
            said = rng.choice(SEEN).format(what=with_article(f"{colour} {figure}"))
            tokens = self.begin(system, question, medium)
        self.answer(tokens, said, (colour, figure))
        for _ in range(rng.choice((0, 0, 1, 2))):
            question, said = self.more(colour, figure)
            self.ask(tokens, question)
            self.answer(tokens, said)
        return tokens

    def more(self, colour: str, figure: str) -> tuple[str, str]:
        """Another question about a picture."""
        rng, kind = self.rng, self.rng.randrange(6)
        if kind == 0:
            return rng.choice(COLOUR_OF).format(figure=figure), f"The {figure} is {colour}."
        if kind == 1:
            return rng.choice(FIGURE_OF).format(colour=colour), f"It is {with_article(figure)}."
        if kind == 2:
            other = rng.choice([c for c in COLOURS if c != colour])
            asked = rng.choice((colour, other))
            return f"Is it {asked}?", f"Yes, it is {colour}." if asked == colour else f"No, it is {colour}."
        if kind == 3:
            other = rng.choice([f for f in FIGURES if f != figure])
            asked = rng.choice((figure, other))
            ask = f"Is it {with_article(asked)}?"
            return ask, f"{'Yes' if asked == figure else 'No'}, it is {with_article(figure)}."
        if kind == 4:
            digit = figure in DIGITS
            ask, yes = rng.choice(
                (("Is it a digit?", digit), ("Is it a number?", digit), ("Is it a shape?", not digit))
            )
            return ask, f"{'Yes' if yes else 'No'}, it is {with_article(figure)}."
        a, b = rng.sample(SHAPES if figure in SHAPES else DIGITS, 2)
        a, b = (figure, b if b != figure else a) if rng.random() < 0.5 else (b if b != figure else a, figure)
        return f"Is it {with_article(a)} or {with_article(b)}?", f"It is {with_article(figure)}."

    def sound(self) -> Tokens:
        rng, media = self.rng, self.media
        chosen = rng.randrange(len(media.sounds))
        word = WORDS[media.word[chosen]]
        kept = int(media.valid[chosen]) if rng.random() < 0.5 else media_model.AUDIO_TOKENS
        medium = ("<start_of_audio>", media.sounds[chosen, :kept], media_model.AUDIO_SOFT, media_model.AUDIO_END)
        kind = rng.random()
        if kind < 0.55:
            tokens = self.begin("", rng.choice(media_data.SOUND_QUESTIONS), medium)
            self.answer(tokens, word)
        else:
            system = f"{rng.choice(SENTENCES)}\n\n" if kind > 0.9 else ""
            tokens = self.begin(system, rng.choice(media_data.SOUND_QUESTIONS if system else HEAR), medium)
            self.answer(tokens, rng.choice(HEARD).format(word=word))
        if rng.random() < 0.4:
            other = rng.choice([w for w in WORDS if w != word])
            asked, digit = rng.choice((word, other)), word in DIGITS
            question, yes = rng.choice((("Is it a number?", digit), (f"Was it “{asked}”?", asked == word)))
            self.ask(tokens, question)
            self.answer(tokens, f"{'Yes' if yes else 'No'}, the word was “{word}”.")
        return tokens


def given_rows(row: Tokens, length: int, hidden: int) -> NDArray[np.float32]:
    """The soft tokens of a row at their places, and zeros elsewhere: f32[length, hidden]."""
    made = np.zeros((length, hidden), np.float32)
    for start, rows in row.given:
        kept = max(0, min(len(rows), length - start))
        made[start : start + kept] = rows[:kept].numpy()
    return made
