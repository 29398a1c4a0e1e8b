"""English prose from freely licensed Debian 12 packages, for the tiny Gemma 3n.

    python prose.py WORK

downloads the packages with apt-get, unpacks them (nothing is installed), and writes WORK/prose.json: documents, each
with its source and whether it is held out. A twentieth of every source is held out: whole missions, scenarios, pages,
chapters and words.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import data

CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()  # noqa: SIM905
PACKAGES = (
    "endless-sky-data=0.9.8-1.2", "dict-wn=1:3.0-37", "gnome-user-docs=43.0-2", "r-cran-janeaustenr=1.0.0-1",
    "sqlite3-doc=3.40.1-2+deb12u2",
    *(f"wesnoth-1.16-{name}=1:1.16.9-1" for name in CAMPAIGNS),
)  # fmt: skip
HELD_OUT_SHARE = 20
COMMON = 4
"""Words are included with their definitions if the other sources use them at least this many times."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document. `key`: documents with the same key are held out together, or not at all."""

    source: str
    key: str
    text: str

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.key.encode()) % HELD_OUT_SHARE == 0


def fetch(work: Path) -> Path:
    """Download and unpack the packages; return the folder with their files."""
    root = work / "prose"
    if not (root / "done").exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True)
        for package in sorted(root.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        (root / "done").touch()
    return root


def tidy(text: str) -> str:
    """The text with single spaces between words, and typographic quotes as in the other texts."""
    text = re.sub(r'(^|[\s(\[—])"', r"\1“", " ".join(text.split())).replace('"', "”")
    text = re.sub(r"(?<=\w)'(?=\w)", "\u2019", text)
    return text.replace("...", "…").replace(" -- ", "—").replace("--", "—")


def endless_sky(root: Path) -> Iterator[Document]:
    """Conversations of missions: the paragraphs between backticks, without the player's choices of answers."""
    for path in sorted((root / "usr/share/games/endless-sky/data").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        for part in re.split(r"(?m)^(?=mission |conversation |event )", text):
            lines = [
                re.sub(r"<[^>]*>", "", tidy(said)) if "<" not in said else ""
                for said in re.findall(r"`\s*([^`]+)`", part)
            ]
            paragraphs = [line for line in lines if len(line) > 40 or line.endswith(("”", ".", "?", "!"))]
            if sum(map(len, paragraphs)) > 200:
                yield Document("endless-sky", part.split("\n", 1)[0], "\n".join(paragraphs))


def wesnoth(root: Path) -> Iterator[Document]:
    """What is told and said in the campaigns, one document for each scenario."""
    for path in sorted((root / "usr/share/games/wesnoth/1.16/data/campaigns").glob("*/scenarios/**/*.cfg")):
        text, lines = path.read_text(encoding="utf-8"), []
        pattern = r'(?m)^\s*(speaker|message|story)\s*=\s*(?:_\s*"((?:[^"]|"")*)"|([^\n]*))'
        speaker = ""
        for kind, quoted, plain in re.findall(pattern, text):
            said = tidy(re.sub(r"<[^>]*>", "", quoted.replace('""', "'")))
            if kind == "speaker":
                speaker = plain.strip() if re.fullmatch(r"[A-Z][\w \u2019'-]*", plain.strip()) else ""
            elif len(said) > 20:
                lines.append(said if kind == "story" or not speaker else f"“{said}” said {speaker}.")
        if sum(map(len, lines)) > 300:
            yield Document("wesnoth", path.stem, "\n".join(lines))


def gnome_help(root: Path) -> Iterator[Document]:
    """Pages of GNOME Help: title and paragraphs."""
    for path in sorted((root / "usr/share/help/C/gnome-help").glob("*.page")):
        tree = ElementTree.parse(path).getroot()
        lines = [tidy("".join(e.itertext())) for e in tree.iter() if e.tag.endswith(("}p", "}title"))]
        lines = [line for line in lines if line and not line.startswith(("http", "$"))]
        if sum(map(len, lines)) > 300:
            yield Document("gnome-help", path.stem, "\n".join(lines))


def austen(root: Path) -> Iterator[Document]:
    """Jane Austen's six novels, one document for each chapter: lines of text in R's format for lazily loaded data."""
    packed = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    at = 0
    while at < len(packed):
        unpack = zlib.decompressobj()
        lines = list(r_texts(unpack.decompress(packed[at + 4 :])))
        at = len(packed) - len(unpack.unused_data)
        title = next((line.strip().title() for line in lines if line.strip()), "")
        chapters = re.split(r"(?im)^(?:volume|chapter)\b[^\n]*$", "\n".join(lines))
        for number, chapter in enumerate(chapters):
            paragraphs = [tidy(part) for part in re.split(r"\n\s*\n", chapter.replace("_", ""))]
            kept = [part for part in paragraphs if len(part) > 20]
            if sum(map(len, kept)) > 1000:
                yield Document("austen", f"{title} {number}", "\n".join(kept))


def r_texts(data: bytes) -> Iterator[str]:
    """The strings of one serialised R object, in order: each has its flags, its length, and its bytes."""
    for found in re.finditer(rb"\0[\x04\x08\x00]\0\x09", data):
        (length,) = struct.unpack_from(">i", data, found.end())
        if 0 <= length < 1000:
            yield data[found.end() + 4 : found.end() + 4 + length].decode("utf-8", "replace")


def sqlite(root: Path) -> Iterator[Document]:
    """Pages of SQLite's documentation: paragraphs of plain sentences, without code."""
    for path in sorted((root / "usr/share/doc/sqlite3").glob("*.html")):
        page = path.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"(?s)<p>(.*?)(?=<(?:p|/p|pre|ul|ol|h\d|table|div|blockquote)\b)", page)
        lines = [tidy(html.unescape(re.sub(r"<[^>]*>", "", part))) for part in found]
        lines = [
            line for line in lines if len(line) > 80 and line.endswith(".") and not re.search(r"[{}=;<>_#/]", line)
        ]
        if sum(map(len, lines)) > 800:
            yield Document("sqlite", path.stem, "\n".join(lines))


def wordnet(root: Path, common: Callable[[str], bool]) -> Iterator[Document]:
    """Common words with their meanings, and sentences that use them."""
    text = gzip.decompress((root / "usr/share/dictd/wn.dict.dz").read_bytes()).decode("utf-8", "replace")
    kinds = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}
    for entry in re.split(r"\n(?=\S)", text):
        word, _, body = entry.partition("\n")
        if not (re.fullmatch("[a-z]+", word) and common(word)):
            continue
        body = re.sub(r"\[(?:syn|ant):[^\]]*\]|[{}]", "", " ".join(body.split()))
        lines, kind = [], ""
        for found in re.finditer(
            r"(?:^|\s)(?:(n|v|adj|adv) )?(\d+): (.*?)(?=\s(?:(?:n|v|adj|adv) )?\d+: |$)", " " + body
        ):
            kind = kinds.get(found[1] or "", kind)
            meaning, *examples = re.split(r';\s*(?=")', found[3].strip())
            if int(found[2]) <= 3 and meaning:
                said = " ".join(f"{tidy(e.strip())}." for e in examples[:2])
                lines.append(f"{word} ({kind}): {tidy(meaning.strip(' ;'))}. {said}".strip())
        if lines:
            yield Document("wordnet", word, "\n".join(lines[:4]))


def without_trained_meanings(words: list[Document]) -> Iterator[Document]:
    """The words, with no line in a held-out one whose meaning a word in training has too: synonyms share theirs."""

    def meaning(line: str) -> str:
        return line.partition("): ")[2].split(". “")[0]

    trained = {meaning(line) for d in words if not d.held_out for line in d.text.split("\n")}
    for d in words:
        lines = [line for line in d.text.split("\n") if not d.held_out or meaning(line) not in trained]
        if lines:
            yield Document(d.source, d.key, "\n".join(lines))


def load(work: Path) -> list[Document]:
    """All documents; cached in WORK/prose.json."""

    def rows() -> list[list[str]]:
        root = fetch(work)
        documents = [*endless_sky(root), *wesnoth(root), *gnome_help(root), *austen(root), *sqlite(root)]
        counts = Counter(word for d in documents for word in re.findall(r"[a-z]+", d.text.lower()))
        words = wordnet(root, lambda word: counts[word] >= COMMON and len(word) > 2)
        documents += without_trained_meanings(list(words))
        return [[d.source, d.key, d.text] for d in documents]

    return [Document(*row) for row in json.loads(data.cached(work / "prose.json", rows))]


def held_out_texts(work: Path) -> tuple[str, str]:
    """The verses and the modern prose, of games, that curves of training are measured on."""
    verses = (Path(__file__).parent / "eval.txt").read_text(encoding="utf-8")
    documents = [d.text for d in load(work) if d.held_out and d.source in ("endless-sky", "wesnoth")]
    return verses, "\n".join(documents)[:40_000]


def main() -> None:
    documents = load(Path(sys.argv[1]))
    for source in sorted({d.source for d in documents}):
        for held_out in (False, True):
            texts = [d.text for d in documents if d.source == source and d.held_out == held_out]
            words = sum(len(text.split()) for text in texts)
            print(f"{source}{' (held out)' if held_out else ''}: {len(texts)} documents, {words} words")


if __name__ == "__main__":
    main()
