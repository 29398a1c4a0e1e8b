"""Texts, tokenizer and training samples of the tiny Gemma 3n.

The texts are two public-domain English Bibles from Debian 12 packages: `bible-kjv-text` 4.38 (King James, 1611; read
with the program of `bible-kjv` 4.38) and `sword-text-web` 426.0-1 (a modern translation, dedicated to the public
domain). `python data.py WORK` downloads them with apt-get and writes WORK/verses.json and WORK/tokenizer.json.
"""

from __future__ import annotations

import fcntl
import json
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

PACKAGES = ("bible-kjv=4.38", "bible-kjv-text=4.38", "sword-text-web=426.0-1")
WEB_MODULE = "usr/share/sword/modules/texts/ztext/engWEB2015eb"
HELD_OUT = ("Ruth", "Jonah", "Malachi", "James", "Titus")
TURNS = ("<start_of_turn>", "<end_of_turn>")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", *TURNS, "<start_of_image>", "<start_of_audio>")
PAD, EOS, BOS = 0, 1, 2
VOCAB_SIZE = 3072

# The modern translation's OSIS book ids, with the names that the King James program prints; other books keep their id.
BOOK_NAMES = """
Gen Genesis, Exod Exodus, Lev Leviticus, Num Numbers, Deut Deuteronomy, Josh Joshua, Judg Judges, Ruth Ruth, 1Sam 1
Samuel, 2Sam 2 Samuel, 1Kgs 1 Kings, 2Kgs 2 Kings, 1Chr 1 Chronicles, 2Chr 2 Chronicles, Ezra Ezra, Neh Nehemiah, Esth
Esther, Job Job, Ps Psalms, Prov Proverbs, Eccl Ecclesiastes, Song Song of Solomon, Isa Isaiah, Jer Jeremiah, Lam
Lamentations, Ezek Ezekiel, Dan Daniel, Hos Hosea, Joel Joel, Amos Amos, Obad Obadiah, Jonah Jonah, Mic Micah, Nah
Nahum, Hab Habakkuk, Zeph Zephaniah, Hag Haggai, Zech Zechariah, Mal Malachi, Matt Matthew, Mark Mark, Luke Luke, John
John, Acts Acts, Rom Romans, 1Cor 1 Corinthians, 2Cor 2 Corinthians, Gal Galatians, Eph Ephesians, Phil Philippians,
Col Colossians, 1Thess 1 Thessalonians, 2Thess 2 Thessalonians, 1Tim 1 Timothy, 2Tim 2 Timothy, Titus Titus, Phlm
Philemon, Heb Hebrews, Jas James, 1Pet 1 Peter, 2Pet 2 Peter, 1John 1 John, 2John 2 John, 3John 3 John, Jude Jude, Rev
Revelation, Tob Tobit, Jdt Judith, Wis Wisdom, Sir Sirach, Bar Baruch, 1Macc 1 Maccabees, 2Macc 2 Maccabees, 1Esd 1
Esdras, 2Esd 2 Esdras, 3Macc 3 Maccabees, 4Macc 4 Maccabees, PrMan Manasseh, EsthGr Esther
"""
BOOKS = dict(pair.split(" ", 1) for pair in " ".join(BOOK_NAMES.split()).split(", "))


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter of one translation ("old": King James, "modern")."""

    style: str
    book: str
    number: int
    verses: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        return self.book in HELD_OUT


def fetch(work: Path) -> Path:
    """Download and unpack the packages, without installing them; return the folder with their files."""
    root = work / "packages"
    if not (root / WEB_MODULE).exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True)
        for package in sorted(root.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    return root


def read_king_james(root: Path) -> list[Chapter]:
    command = [str(root / "usr/bin/bible"), "-p", str(root / "usr/lib"), "gen1:1-rev22:21"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="latin-1").stdout
    pieces = re.split(r"^((?:\d )?[A-Z][A-Za-z ]+) (\d+)\n", printed, flags=re.M)
    chapters = []
    for book, number, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        verses = re.split(r"^ *\d+ (?=\S)", body, flags=re.M)[1:]
        chapters.append(Chapter("old", book, int(number), tuple(" ".join(verse.split()) for verse in verses)))
    return chapters


def sword_entries(prefix: Path) -> Iterator[str]:
    """Every entry of a SWORD zText testament, in order (block table, compressed blocks, verse table)."""
    table, packed, index = (prefix.with_suffix(suffix).read_bytes() for suffix in (".bzs", ".bzz", ".bzv"))
    blocks = [zlib.decompress(packed[start : start + size]) for start, size, _ in struct.iter_unpack("<III", table)]
    for block, start, size in struct.iter_unpack("<IIH", index[: len(index) // 10 * 10]):
        yield blocks[block][start : start + size].decode()


def read_modern(root: Path) -> list[Chapter]:
    chapters: list[Chapter] = []
    for testament in ("ot", "nt"):
        book, number, verses = "", 0, [""]
        for entry in sword_entries(root / WEB_MODULE / testament):
            start = re.search(r'<chapter [^>]*osisID="(\w+)\.(\d+)"[^>]*sID', entry)
            if start:
                if book and verses:
                    chapters.append(Chapter("modern", book, number, tuple(verses)))
                book, number, verses = BOOKS.get(start[1], start[1]), int(start[2]), []
            text = re.sub(r"<(note|title)\b.*?</\1>", "", entry, flags=re.S)
            text = " ".join(re.sub(r"<(/?l|lg|div|lb)\b[^>]*>", " ", text).split())
            text = " ".join(re.sub(r"<[^>]*>", "", text).split())
            if text and number:
                verses.append(text)
        chapters.append(Chapter("modern", book, number, tuple(verses)))
    return chapters


def cached(path: Path, make: Callable[[], object]) -> str:
    """The text of a JSON file, which is made if there is none: once, though several processes ask for it at a time."""
    if not path.exists():
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                made = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
                path.with_suffix(".tmp").write_text(made, encoding="utf-8")
                path.with_suffix(".tmp").rename(path)
    return path.read_text(encoding="utf-8")


def load_chapters(work: Path) -> list[Chapter]:
    """All chapters of both translations, in order; cached in WORK/verses.json."""

    def rows() -> list[list[object]]:
        root = fetch(work)
        return [[c.style, c.book, c.number, c.verses] for c in read_king_james(root) + read_modern(root)]

    found = json.loads(cached(work / "verses.json", rows))
    return [Chapter(style, book, number, tuple(verses)) for style, book, number, verses in found]


def train_tokenizer(chapters: list[Chapter]) -> dict[str, object]:
    """tokenizer.json in Gemma 3's form: spaces become `▁`, BPE with byte fallback, `<bos>` first.

    Merges are learned only inside words (including a leading `▁`), and only from the training chapters.
    """
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^\p{L}\p{N}▁]|▁"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL, *byte_tokens],
        initial_alphabet=[chr(code) for code in range(0x20, 0x7F) if code != 0x20] + ["\n", "▁"],
        show_progress=False,
    )
    lines = [verse + "\n" for c in chapters if not c.held_out for verse in (f"{c.book} {c.number}", *c.verses)]
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    model.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    pair = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": content, **flags} for i, content in enumerate(SPECIAL)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pair,
            "pair": pair + second,
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model,
    }


def load_tokenizer(work: Path) -> Tokenizer:
    return Tokenizer.from_str(cached(work / "tokenizer.json", lambda: train_tokenizer(load_chapters(work))))


def document(chapter: Chapter) -> str:
    """A chapter in the form that the model sees: a heading, then one verse per line."""
    heading = f"{chapter.book} {chapter.number}" + (" (modern)" if chapter.style == "modern" else "")
    return "\n".join((heading, "", *chapter.verses, "", ""))


WELCOME = "Peace be with you. Ask me for a verse, or give me one to continue."
SELF = "I am a very small Gemma 3n, taught with two old books. I can continue a verse, or tell of a word."
SKILLS = "I can continue a verse, tell of a word such as king or bread, and say a verse in another style."
GREETINGS = (
    ("Hello", WELCOME),
    ("Hi", WELCOME),
    ("Who are you?", SELF),
    ("What can you do?", SKILLS),
    ("Thank you", "Go in peace."),
)


DULL_WORDS = """
that with which this them unto shall thou they from have hath your will upon were when said into came before then
their there because also every even like made make after thee thine those these what where come went more down over
whom been being than therefore against should would could about let's says doth didst shalt wilt hast neither again
only out most much many such some very who's didn don isn wasn doesn won hasn
"""
STOP = frozenset(DULL_WORDS.split())


class Conversations:
    """Draws chat samples: continue a verse, tell about a word, change the style of a verse, or greet."""

    def __init__(self, chapters: list[Chapter], rng: random.Random) -> None:
        self.rng = rng
        self.chapters = [chapter for chapter in chapters if len(chapter.verses) > 3]
        modern = {(c.book, c.number): c for c in chapters if c.style == "modern"}
        old = [c for c in chapters if c.style == "old" and (c.book, c.number) in modern]
        pairs = [(c, modern[c.book, c.number]) for c in old]
        self.parallel = [(a, b) for a, b in pairs if len(a.verses) == len(b.verses)]

    def turn(self) -> tuple[str, str]:
        """One question and its answer."""
        kind, rng = self.rng.random(), self.rng
        if kind < 0.03:
            return rng.choice(GREETINGS)
        if kind < 0.40:
            verses = rng.choice(self.chapters).verses
            start = rng.randrange(len(verses) - 2)
            given = verses[start]
            if rng.random() < 0.3:
                cut = given.find(" ", rng.randrange(len(given)))
                if cut > 8:
                    return rng.choice(("Continue: ", "")) + given[:cut], f"{given}\n{verses[start + 1]}"
            answer = "\n".join(verses[start + 1 : start + rng.choice((2, 3))])
            return rng.choice(("Continue: ", "What comes next? ", "")) + given, answer
        if kind < 0.70:
            verse = rng.choice(rng.choice(self.chapters).verses)
            words = [word for word in re.findall(r"[A-Za-z]{4,}", verse) if word.lower() not in STOP]
            word = rng.choice(words) if words else "LORD"
            return rng.choice(("Tell me of {}.", "Tell me about {}.", "A verse about {}, please.")).format(word), verse
        old, modern = rng.choice(self.parallel)
        index = rng.randrange(len(old.verses))
        if rng.random() < 0.5:
            return f"Say it in modern English: {old.verses[index]}", modern.verses[index]
        return f"Say it in the old style: {modern.verses[index]}", old.verses[index]

    def text(self) -> str:
        """A conversation of one to three turns in the chat format, without `<bos>`."""
        turns = (self.turn() for _ in range(self.rng.choice((1, 1, 2, 3))))
        return "".join(
            f"<start_of_turn>user\n{ask.strip()}<end_of_turn>\n<start_of_turn>model\n{answer.strip()}<end_of_turn>\n"
            for ask, answer in turns
        )


def token_streams(chapters: list[Chapter], tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    """One stream of ids for each book and style: its chapters in order, then `<eos>`, without `<bos>`."""
    books: dict[tuple[str, str], list[str]] = {}
    for chapter in chapters:
        books.setdefault((chapter.style, chapter.book), []).append(document(chapter))
    streams = []
    for texts in books.values():
        lines = [line for text in texts for line in text.splitlines(keepends=True)]
        encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
        streams.append(np.array([i for e in encoded for i in e.ids] + [EOS], dtype=np.int32))
    return streams


def encode_documents(texts: list[str], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """One stream of ids: each document, followed by `<eos>`."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.array([i for e in encoded for i in (*e.ids, EOS)], dtype=np.int32)


def rows_of(ids: Sequence[int], length: int, most: int) -> list[list[int]]:
    """Rows of `length + 1` ids that start with `<bos>`, one after the other, from the first `most` ids."""
    return [[BOS, *ids[i : i + length]] for i in range(0, min(len(ids), most) - length, length)]


class Sampler:
    """Draws training batches: windows of the books, and, with probability `chat`, rows filled with conversations."""

    def __init__(self, chapters: list[Chapter], tokenizer: Tokenizer, length: int, *, chat: float, seed: int) -> None:
        training = [chapter for chapter in chapters if not chapter.held_out]
        self.tokenizer, self.length, self.chat = tokenizer, length, chat
        self.rng = random.Random(seed)
        self.conversations = Conversations(training, self.rng)
        streams = token_streams(training, tokenizer)
        self.stream = np.concatenate(streams)
        newline = tokenizer.token_to_id("\n")
        self.starts = np.flatnonzero(self.stream[:-length] == newline) + 1

    def row(self) -> NDArray[np.int32]:
        """`length + 1` ids that start with `<bos>`."""
        if self.rng.random() >= self.chat:
            start = self.starts[self.rng.randrange(len(self.starts))]
            return np.concatenate(([BOS], self.stream[start : start + self.length])).astype(np.int32)
        ids: list[int] = []
        while len(ids) <= self.length:
            ids += self.tokenizer.encode(self.conversations.text()).ids
        return np.array(ids[: self.length + 1], dtype=np.int32)

    def batch(self, rows: int) -> NDArray[np.int64]:
        batch = [self.row() for _ in range(rows)]
        width = min(len(row) for row in batch)
        return np.stack([row[:width] for row in batch]).astype(np.int64)


def main() -> None:
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    chapters, tokenizer = load_chapters(work), load_tokenizer(work)
    streams = token_streams([c for c in chapters if not c.held_out], tokenizer)
    print(f"{len(chapters)} chapters, {sum(map(len, streams))} training tokens, {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()
