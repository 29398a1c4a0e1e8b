"""Names and texts of strangers reach a terminal as text: they cannot control it, or look like a line of ours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import embedder, fill, stand_in, write_graphs
from lying_device import Lie, lying_device, message, serves
from paths import EXAMPLE, FIXTURES
from result_records import RECORDS

from device_harness.adb import devices
from device_harness.adb import port as transport_port
from device_harness.adb.wire import EXIT, STDERR, STDOUT, pack_shell
from gemma_edge import cli, parser
from toolkit.bundle.manifest import EMBEDDER, MANIFEST_NAME
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.write import write_bundle
from toolkit.litertlm import schema, tables
from toolkit.litertlm.container import Section, write_container
from toolkit.results.json_lines import open_results

FORGED = "forged: no faults found"
HOSTILE = f"x\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\u200f\u061c\x7f\r\n{FORGED}\n\x08y"
NAME = HOSTILE.replace("/", "_")
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

VERBS = parser.VERBS


@pytest.fixture(autouse=True)
def no_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADB_SERVER_SOCKET", "tcp:1")
    monkeypatch.setattr(devices, "EMULATOR_PORTS", (1,))
    monkeypatch.setattr(transport_port, "usb_devices", lambda: iter(()))
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files with strangers' texts in every place that a verb reads."""
    root = tmp_path_factory.mktemp("strange")
    (root / NAME).mkdir()
    (root / f"{NAME}.litertlm").write_bytes(HOSTILE.encode())
    (root / f"{NAME}.jsonl").write_text(HOSTILE)
    (root / f"{NAME}.json").write_text(json.dumps({HOSTILE: HOSTILE, "format": HOSTILE}))
    checkpoint = root / f"{NAME} checkpoint"
    shutil.copytree(EXAMPLE, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": [HOSTILE], HOSTILE: HOSTILE}))
    template = root / f"{NAME} template"
    shutil.copytree(EXAMPLE, template)
    (template / "chat_template.jinja").write_text("{{ raise_exception('" + HOSTILE.replace("\n", "\\n") + "') }}")
    _bundles(root)
    records = [
        replace(record, device=replace(record.device, model="\u202e\u200fdegrof\u2066")) for record in RECORDS[:2]
    ]
    with open_results(root / "results.jsonl") as writer:
        for record in records:
            writer.append(record)
    return root


def _bundles(root: Path) -> None:
    """Valid except for strange names: signatures, files that do not belong, groups, a container's sections."""
    bundle = root / f"{NAME} bundle"
    write_bundle(bundle, fill)
    (bundle / NAME).write_text("")
    write_graphs(
        bundle / EMBEDDER, [embedder(1, "embed", "embeddings", (1, 1, 8)), stand_in(HOSTILE, {}, {"y": (1, 1)})]
    )
    broken = Path(shutil.copytree(bundle, root / f"{NAME} broken"))
    value = json.loads((broken / MANIFEST_NAME).read_text())
    edited: dict[str, Any] = {**value, HOSTILE: 1, "architecture": HOSTILE, "default_size": HOSTILE}
    (broken / MANIFEST_NAME).write_bytes(encode_manifest(edited))
    sections = [Section(tables.TFLITE_MODEL, (b"x",), HOSTILE), Section(schema.LLM_METADATA, (HOSTILE.encode(),))]
    write_container(root / f"{NAME} sections.litertlm", sections, {HOSTILE: HOSTILE, "generator": HOSTILE})


def hostile_words(strange: Path, tmp_path: Path, *, few: bool) -> Iterator[tuple[str, ...]]:
    """Command lines for every verb, with strangers' names where it takes any; `few`: for a part of the files."""
    endings = (" bundle", " broken", ".litertlm") if few else ("",)
    things = [str(path) for path in sorted(strange.iterdir()) if path.name.endswith(endings)]
    missing, out = str(strange / "missing" / NAME), str(tmp_path / NAME)
    for thing in [*things, missing]:
        yield "inspect", thing
        yield "convert", thing, "-o", out, "--no-verify", "--quant", thing, "--groups", "text", "--context", "32"
        yield "convert", thing, "-o", out, "--no-verify", "--sizes", HOSTILE.replace("\n", " ")
        yield "check", thing
        yield "check", thing, "--trust", missing
        yield "verify", thing, "--checkpoint", str(EXAMPLE)
        yield "run", thing, "-p", HOSTILE, "--size", HOSTILE
        yield "chat", thing
        yield "export", thing, "-o", f"{out}.litertlm", "--size", HOSTILE
        yield "rebuild", thing, "--checkpoint", thing, "-o", out
        yield "push", thing, "--device", HOSTILE
        yield "bench", thing, "--host", "-r", "1", "-p", "4", "-n", "4", "--size", HOSTILE
        yield "probe", thing, "--host"
        yield "report", thing, "-o", f"{out}.html"
        yield "compare", thing, str(FIXTURES / "results.jsonl")
    for verb in VERBS:
        yield verb, f"--{HOSTILE}"
        yield verb, HOSTILE, HOSTILE
    yield "emulator", "--fault", HOSTILE
    if not few:  # it runs the whole demonstration
        yield "demo", "--output", missing
    yield "devices", "--address", HOSTILE
    yield "devices", "--timeout", HOSTILE
    yield (HOSTILE,)


def require_harmless(words: Sequence[str], text: str) -> None:
    found = STEERING.search(text)
    assert found is None, (words, text[max(0, found.start() - 80) : found.start() + 20])
    assert FORGED not in [line.strip() for line in text.splitlines()], (words, text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "few"),
    [
        ((), True),
        *(pytest.param(words, False, marks=pytest.mark.full) for words in ((), ("-v",), ("--json",))),
    ],
)
def test_no_verb_lets_a_strangers_name_control_the_terminal_or_look_like_a_line(
    strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], few: bool
) -> None:
    used = set()
    for words in hostile_words(strange, tmp_path, few=few):
        code = cli.main([*words, *options])
        said = capsys.readouterr()
        require_harmless(words, said.out + said.err)
        assert code != 3 or "a bug in gemma-edge" not in said.err, (words, said.err)
        used.add(words[0])
    assert used >= set(VERBS)


BANNER = b"device::ro.product.model=" + HOSTILE.encode() + b";ro.product.name=x;features=shell_v2"
CONNECTED = message("CNXN", 0x01000001, 1 << 20, BANNER)
STATE = HOSTILE.replace(":", "").encode() + b"::features=shell_v2"
REFUSES = [pack_shell(STDOUT, HOSTILE.encode()), pack_shell(STDERR, HOSTILE.encode()), pack_shell(EXIT, b"\1")]
ANSWERS = [pack_shell(STDOUT, HOSTILE.encode()), pack_shell(EXIT, b"\0")]
LIES: dict[str, Callable[[], Lie]] = {
    "refuses everything": lambda: serves(lambda: REFUSES, CONNECTED),
    "answers everything": lambda: serves(lambda: ANSWERS, CONNECTED),
    "is in a strange state": lambda: serves(lambda: REFUSES, message("CNXN", 0x01000001, 1 << 20, STATE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_device_cannot_either(
    lie: Callable[[], Lie], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_bundle(tmp_path / "bundle", fill)
    with lying_device(lie()) as address:
        for words in (
            ("devices", "--address", address),
            ("push", str(tmp_path / "bundle"), "--device", address),
            ("push", str(tmp_path / "bundle"), "--device", address, "--receiver", "shell"),
            ("bench", str(tmp_path / "bundle"), "--device", address, "-r", "1", "-p", "4", "-n", "4"),
            ("probe", str(tmp_path / "bundle"), "--device", address),
        ):
            for options in ((), ("--json",)):
                cli.main([*words, *options])
                said = capsys.readouterr()
                require_harmless(words, said.out + said.err)
                assert "a bug in gemma-edge" not in said.err, (words, said.err)


def test_a_page_of_strange_results_has_no_such_characters(strange: Path, tmp_path: Path) -> None:
    assert cli.main(["report", str(strange / "results.jsonl"), "-o", str(tmp_path / "page.html"), "-q"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\\u202e" in page and STEERING.search(page) is None
