"""Modern explanatory prose in the public domain: the documentation of SQLite, from Debian 12's `sqlite3-doc`.

    python prose4.py WORK

downloads the package with apt-get, unpacks it (nothing is installed), and writes WORK/sqlite.json: one text for each
page. Tables, lists of options and code are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import prose

PACKAGE = "sqlite3-doc=3.40.1-2+deb12u2"
BLOCKS = frozenset("p h1 h2 h3 h4 li ul ol dl dd dt table tr td div pre blockquote center title".split())  # noqa: SIM905
SKIPPED = frozenset(("pre", "script", "style", "table", "svg", "title"))
MIN_WORDS = 25


class Paragraphs(HTMLParser):
    """Collects the text between tags that begin or end a block."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[str] = []
        self.blocks = [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self.skipped.append(tag)
        if tag in BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.skipped:
            del self.skipped[self.skipped.index(tag) :]
        if tag in BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.blocks[-1] += data


def is_prose(text: str) -> bool:
    """Whether a paragraph is whole sentences of words, with few names from programs."""
    letters = sum(c.isalpha() or c == " " for c in text)
    plain = not re.search(r"[_=(){}\[\]<>|*]|[a-z][A-Z]{2}", text)
    return plain and len(text.split()) >= MIN_WORDS and letters > 0.94 * len(text) and text[-1] in ".?!”"


def page_text(html: str) -> str:
    parser = Paragraphs()
    parser.feed(html)
    return "\n".join(filter(is_prose, (prose.tidy(block) for block in parser.blocks if block.strip())))


def load(work: Path) -> list[str]:
    """The pages that have prose; cached in WORK/sqlite.json."""
    path = work / "sqlite.json"
    if not path.exists():
        root = work / "sqlite"
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=root, check=True)
        for package in sorted(root.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        pages = sorted((root / "usr/share/doc/sqlite3").rglob("*.html"))
        texts = dict.fromkeys(page_text(page.read_text(encoding="utf-8", errors="replace")) for page in pages)
        path.write_text(json.dumps([text for text in texts if text], ensure_ascii=False), encoding="utf-8")
    loaded: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def main() -> None:
    texts = load(Path(sys.argv[1]))
    print(f"{len(texts)} pages, {sum(len(text.split()) for text in texts)} words")


if __name__ == "__main__":
    main()
