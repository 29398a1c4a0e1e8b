"""Builds the documents as a site: `python docs/site/build.py SITE`, or `nox -s docs` (pip install 'gemma-edge[docs]').

mkdocs wants all pages in one folder, so they are copied into a temporary one, each at its place in the repository, with
copies of the other files that they link to. The page of the Python API is made from the docstrings.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE))

from api_page import api_page  # noqa: E402, it is a file beside this one

_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def pages() -> list[Path]:
    """The documents, relative to the repository."""
    found = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    found += [REPOSITORY / "benchmarks" / "README.md", *(REPOSITORY / "examples").glob("*/README.md")]
    return sorted(path.relative_to(REPOSITORY) for path in found)


def stage(target: Path) -> None:
    """Copy the documents, and what they link to, into a folder, with an index of each folder that is linked to."""
    known = set(pages())
    for page in known:
        place = target / ("index.md" if page == Path("README.md") else page)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        place.write_text(_LINK.sub(lambda link, page=page: _linked(link, page, target), text), encoding="utf-8")
    (target / "api.md").write_text(api_page(), encoding="utf-8")
    shutil.copyfile(HERE / "site.css", target / "site.css")


def _linked(link: re.Match[str], page: Path, target: Path) -> str:
    """A link as the site has it; a file that is no page is copied to where the link points."""
    if "://" in link[2] or link[2].startswith("mailto:"):
        return link[0]
    there = Path(os.path.normpath(page.parent / link[2]))
    source = REPOSITORY / there
    if there == Path("README.md"):
        return f"{link[1]}{os.path.relpath('index.md', page.parent)}{link[3]}"
    if source.is_dir():
        index = there / ("README.md" if (source / "README.md").is_file() else "index.md")
        if index.name == "index.md":
            _list_files(source, target / index)
        return f"{link[1]}{os.path.relpath(index, page.parent)}{link[3]}"
    if source.suffix != ".md" and source.is_file():
        (target / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / there)
    return link[0]


def _list_files(folder: Path, index: Path) -> None:
    """Write a page that lists the files of a folder, with links to those that are pages."""
    lines = (
        f"- [{_title(file)}]({file.name})" if file.suffix == ".md" else f"- `{file.name}`" for file in folder.iterdir()
    )
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text("\n".join([f"# {folder.name.capitalize()}", "", *sorted(lines)]) + "\n", encoding="utf-8")


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _navigation(settings: dict[str, object]) -> Iterator[object]:
    """The navigation, with every page of the formats."""
    nav = settings["nav"]
    assert isinstance(nav, list)
    for entry in nav:
        if entry == {"Formats": "formats"}:
            formats = [page.as_posix() for page in pages() if page.parent == Path("docs/formats")]
            yield {"Formats": ["docs/formats/index.md", *formats]}
        else:
            yield entry


def build(site: Path) -> int:
    """Build the site into a folder that is replaced; returns mkdocs' exit code, not 0 after any warning."""
    with tempfile.TemporaryDirectory() as scratch:
        source, config = Path(scratch) / "source", Path(scratch) / "mkdocs.yml"
        source.mkdir()
        stage(source)
        settings = yaml.unsafe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8").replace("!ENV SITE_SOURCE", "''"))
        settings |= {"docs_dir": str(source), "nav": list(_navigation(settings)), "not_in_nav": "/benchmarks/results/"}
        config.write_text(yaml.dump(settings, sort_keys=False), encoding="utf-8")
        words = ["build", "--strict", "--config-file", str(config), "--site-dir", str(site.resolve())]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run([sys.executable, "-m", "mkdocs", *words], env=environment, check=False).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path, help="the folder to write")
    sys.exit(build(parser.parse_args().site))
