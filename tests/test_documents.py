"""The documents name files and folders that exist, and source files quote code in one way."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from paths import REPOSITORY

from gemma_edge.parser import parse
from toolkit.base.errors import UsageError
from toolkit.results.record import Flag

DOCUMENTS = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    REPOSITORY / "benchmarks" / "README.md",
    *sorted((REPOSITORY / "examples").glob("*/README.md")),
]
ROOTS = ("gemma_edge", "toolkit", "converters", "device_harness", "benchmarks", "examples", "tests", "docs")


def expanded(text: str) -> Iterator[str]:
    """`a/{b,c}.py` names a/b.py and a/c.py."""
    braces = re.search(r"\{([^{}]*)\}", text)
    if braces is None:
        yield text
        return
    for part in braces[1].split(","):
        yield from expanded(text[: braces.start()] + part.strip() + text[braces.end() :])


def named_paths(document: Path) -> Iterator[Path]:
    """Links to files, and words in backticks that begin with one of our folders; what has a placeholder is left out."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            yield document.parent / target
    for quoted in re.findall(r"`((?:{})/[^`\s]*)`".format("|".join(ROOTS)), text):
        for path in expanded(quoted):
            if not re.search(r"[A-Z]{3,}|[<>]", path.removesuffix("README.md")):
                yield REPOSITORY / path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_document_names_is_there(document: Path) -> None:
    missing = [str(path) for path in named_paths(document) if not (list(path.parent.glob(path.name)) or path.exists())]
    assert not missing


def anchors(document: Path) -> set[str]:
    """What a link may name behind `#`: the headings, as the site and code hosts write them in links."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_into_a_document_leads_to_one_of_its_headings(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", document.read_text(encoding="utf-8"))
    targets = [(document.parent / path if path else document, anchor) for path, anchor in links]
    assert [f"{path.name}#{anchor}" for path, anchor in targets if anchor not in anchors(path)] == []


def test_the_site_has_a_place_for_every_document() -> None:
    listed = (REPOSITORY / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS if path.parent.name != "formats"]
    assert [page for page in pages if f"- {page}\n" not in listed] == ["README.md"], "that is its index.md"


def test_every_picture_is_shown_by_a_document() -> None:
    shown = {
        document.parent / target
        for document in DOCUMENTS
        for target in re.findall(r"!\[[^]]*\]\(([^):]+)\)", document.read_text(encoding="utf-8"))
    }
    folders = ("benchmarks/results", "docs/pictures", "examples/tiny_gemma3n", "examples/tiny_gemma4")
    pictures = {path for folder in folders for path in (REPOSITORY / folder).glob("*.svg")}
    assert pictures - {path.resolve() for path in shown} == set()


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words of each `gemma-edge` command in indented or fenced code; [optional] words are given."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"```\w*\n(.*?)```", lambda code: textwrap.indent(code[1], " " * 4), text, flags=re.DOTALL)
    for line in re.findall(r"^    (?:\$ )?((?:\S.* && )?gemma-edge [a-z]+ .*)$", text, re.MULTILINE):
        for command in re.split(r" && | [|<>] ", re.sub(r"[\[\]]", "", line)):
            program, *words = shlex.split(command, comments=True)
            if program == "gemma-edge":
                yield words


def test_every_command_of_a_document_is_one_that_the_program_takes() -> None:
    taken, refused = 0, []
    for document in DOCUMENTS:
        for words in command_lines(document):
            try:
                taken += bool(parse(words))
            except UsageError as error:
                refused.append(f"{document.name}: {shlex.join(words)}: {error}")
    assert taken > 100 and refused == []


@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material (pip install -e .[docs])")
    command = [sys.executable, str(REPOSITORY / "docs" / "site" / "build.py"), str(tmp_path / "site")]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0 and "WARNING" not in outcome.stderr, outcome.stderr[-4000:]
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in api for name in ("load", "convert", "model-generate", "chat-send"))
    assert (tmp_path / "site" / "docs" / "formats" / "manifest" / "index.html").is_file()


def test_sources_quote_code_in_single_backticks() -> None:
    sources = [
        path for root in ROOTS for kind in ("*.py", "*.c", "*.h") for path in sorted((REPOSITORY / root).rglob(kind))
    ]
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"(?<!`)`{2}(?!`)", line)
    ]
    assert sources
    assert not found


@pytest.mark.parametrize("page", ["docs/bench.md", "docs/formats/results.md"])
def test_every_flag_of_a_record_is_in_the_document(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert [flag for flag in get_args(Flag) if f"`{flag}`" not in text] == []


def test_every_error_of_the_troubleshooting_page_is_one_that_we_print() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r'^\*\*"([^"]+)"\*\*', page, flags=re.MULTILINE)
    assert len(quoted) + len(re.findall(r"^\*\*[^\"]", page, flags=re.MULTILINE)) == 20
    roots = ("gemma_edge", "toolkit", "converters", "device_harness")
    files = (path for root in roots for path in (REPOSITORY / root).rglob("*.py"))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    printed = re.sub(r'"\s*\n\s*f?"', "", sources)  # a text may be split over lines
    assert [text for text in quoted if text not in printed] == []
