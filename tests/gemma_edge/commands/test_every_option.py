"""Every option of a verb reaches the setting that it is for, and no other; one without a row here is a failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from result_records import RECORDS

from converters.huggingface.adapters.choice import AdapterChoice
from device_harness.adb.wire import LEGACY_PAYLOAD_BYTES, VERSION
from device_harness.runners import ALL
from gemma_edge.cli import main
from gemma_edge.parser import verb_parser
from toolkit.runtime.media_prompt import MediaFile

GLOBAL = {"-h", "-v", "-q", "--json", "--no-progress"}
"""Options of every verb, which test_cli.py is about."""
Settings = dict[str, Any]


class Seen(BaseException):
    """What a verb would have worked with; no `except Exception` on its way stops it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


@dataclasses.dataclass(frozen=True)
class Row:
    """An option as it is typed, and the settings that it changes, by their dotted names."""

    words: str
    changes: Settings
    beside: str = ""
    """Words that it needs; or, with `instead`, those of the command without it."""
    instead: bool = False


def row(words: str, beside: str = "", /, *, instead: bool = False, **changes: object) -> Row:
    """A row; `__` in a name stands for a dot."""
    return Row(words, {name.replace("__", "."): value for name, value in changes.items()}, beside, instead)


BENCH = [
    row("--device PHONE", device="PHONE"),
    row("--host", host=True),
    row("--runner session", request__runner="session"),
    row("-p 7", request__workload__prompt_tokens=7, request__lengths_given=True),
    row("-n 9", request__workload__generated_tokens=9, request__lengths_given=True),
    row("-r 3", settings__repetitions=3),
    row("--cold", request__workload__start="cold"),
    row("--drop-page-cache", settings__drop_page_cache=True),
    row("--context 64", request__workload__context=64),
    row("--size small", request__size="small"),
    row("--backend npu", request__workload__backend="npu"),
    row("--threads 3", request__workload__threads=3),
    row("--timeout 7.5", request__workload__timeout_s=7.5),
    row("--max-celsius 41.5", settings__readiness__limit_celsius=41.5),
    row("--gate-timeout 8.5", settings__readiness__timeout_s=8.5),
    row("--refuse-hot", settings__readiness__refuses=True),
    row("--min-battery 33", settings__readiness__low_battery_percent=33),
    row("--on-low-power wait", settings__readiness__on_low_power="wait"),
    row("--cool-down 6.5", settings__cool_down_s=6.5),
    row("--stay-awake", settings__stay_awake=True),
    row("--airplane-mode", settings__airplane_mode=True),
    row("--interval 0.25", settings__interval_s=0.25),
    row("--idle-seconds 2.5", settings__idle_s=2.5),
    row("--format csv", form="csv"),
    row("-o csv", form="csv"),
    row("--results kept.jsonl", results=Path("kept.jsonl")),
    row("--trace", "--results kept.jsonl", settings__trace_folder=Path("kept.traces")),
    row("--drop-torn-line", "--results kept.jsonl", drop_torn_line=True),
    row("--force", "--results kept.jsonl", force=True),
    *(
        Row(f"{option.flag} it", {f"request.options.{option.name}": ("it",)})
        for option in dict.fromkeys(option for spec in ALL for option in spec.options)
    ),
]
MACHINE = [
    row("--threads 3", session__threads=3),
    row("--weight-cache packed", session__weight_cache=Path("packed")),
    row("--backend gpu", session__backend="gpu"),
    row("--activations fp16", "--backend gpu", session__activations="fp16"),
    row("--ple ram", session__ple_in_ram=True),
    row("--ple-cache-mb 7", session__ple_cache_bytes=7 << 20),
]
CONVERT = [
    *MACHINE,
    row("-o other", "-o o", instead=True, output=Path("other")),
    row("--revision v1", revision="v1"),
    row("--adapter pirate=0.5", adapters=[AdapterChoice("pirate", 0.5)]),
    row("--force", force=True),
    row("--sizes B,A", sizes=("B", "A")),
    row("--slice own.json", slice_file=Path("own.json")),
    row("--budget 3GB", budget="3GB"),
    row("--quant int4", quant="int4"),
    row("--ple-quant int4", ple_quant="int4"),
    row("--groups text,ple", groups=("text", "per_layer_embedding")),
    row("--vision-quant int4", vision_quant="int4"),
    row("--audio-quant int4", audio_quant="int4"),
    row("--audio-lengths 7,3", audio_lengths=(3.0, 7.0)),
    row("--search absmax", search="absmax"),
    row("--calibrate self", calibrate="self"),
    row("--calibrate-media photos", calibration_media=Path("photos")),
    row("--bytes-per-token 1.2GB", bytes_per_token="1.2GB"),
    row("--kl 0.01", kl=0.01),
    row("--context 96", context=96),
    row("--prefill 32,8", prefill_sizes=(8, 32)),
    row("--shard-mb 7", shard_mb=7),
    row("--draft-tokens 4", draft_tokens=4),
    row("--drafter fit", drafter="fit"),
    row("--drafter-tokens 77", "--drafter fit", drafter_tokens=77),
    row("--report page.html", report=Path("page.html")),
    row("--no-verify", verify=False),
]
RUN = [
    *MACHINE,
    row("--size small", session__size="small"),
    row("--groups text", loaded=("text",)),
    row("--speculative", speculative=True),
    row("--thinking", thinking=True),
    row("-p two", "one", instead=True, prompt="two"),
    row("-f prompt.txt", "one", instead=True, prompt="from a file"),
    row("--system briefly", system="briefly"),
    row("--raw", raw=True),
    row("--ignore-eos", ignore_eos=True),
    row("--image a.png", media=[MediaFile("vision", "a.png")]),
    row("--audio a.wav", media=[MediaFile("audio", "a.wav")]),
    row("-n 9", max_tokens=9),
    row("--temperature 0.7", temperature=0.7),
    row("--top-k 9", top_k=9),
    row("--top-p 0.8", top_p=0.8),
    row("--min-p 0.1", min_p=0.1),
    row("--repeat-penalty 1.5", repeat_penalty=1.5),
    row("--seed 9", seed=9),
    row("--stop END --stop FIN", stop=["END", "FIN"]),
    row("--stream", "--json", pieces=True),
    row("one --device PHONE", "one --device BOARD", instead=True, device="PHONE"),
    row("--library own.so", "--device BOARD", there__library__path=Path("own.so")),
]
OLD: Settings = {"version": VERSION, "max_payload_bytes": LEGACY_PAYLOAD_BYTES, "features": frozenset()}
EMULATOR = [
    row("--port 0", port=0),
    row("--port 65535", port=65535),
    row("--memory 1MB", memory_bytes=10**6),
    row("--storage 2MB", storage_bytes=2 * 10**6),
    row("--fault battery=15 --fault corrupt=9", faults__battery_percent=15, faults__corrupt_at_byte=9),
    row("--root files", root=Path("files")),
    row("--force", "--root files", force=True),
    row("--isolation folder", isolation="folder"),
    row("--key key.pub", access__keys=("a key",)),
    Row("--old", OLD),
]
VERBS: dict[str, tuple[str, list[Row]]] = {
    "bench": ("bench model", BENCH),
    "convert": ("convert checkpoint", CONVERT),
    "run": ("run bundle", RUN),
    "emulator": ("emulator", EMULATOR),
}
NEEDED = {"convert": "-o o", "run": "one"}
"""Words without which a verb does nothing; a row with `instead` brings its own."""


@pytest.fixture(autouse=True)
def observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the work of each verb: `Seen`."""
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text("from a file")
    Path("key.pub").write_text("a key")

    def bench_records(request: object, settings: object, **others: object) -> Iterator[object]:
        found.update(request=request, settings=settings, **others)
        yield RECORDS[0]

    def bench_table(records: object, form: str, *_: object) -> str:
        raise Seen({**taken(), "form": form})

    def convert(checkpoint: object, output: object, **others: object) -> None:
        raise Seen({"checkpoint": checkpoint, "output": output, **others})

    @contextmanager
    def model(_: object, session: object, *, groups: object, opener: object = None) -> Iterator[SimpleNamespace]:
        found.update(session=session, loaded=groups)
        yield SimpleNamespace(stream=stream)

    def stream(prompt: str, **others: object) -> None:
        found.update(prompt=prompt, **others)

    def show_answer(*_: object, pieces: bool) -> None:
        raise Seen({**taken(), "pieces": pieces})

    def emulator(settings: Any) -> None:
        raise Seen(flat(settings))

    def taken() -> Settings:
        kept = dict(found)
        found.clear()
        return kept

    found: Settings = {}
    bundle = SimpleNamespace(manifest=SimpleNamespace(files={}))
    for name, value in {
        "commands.bench.bench_records": bench_records,
        "commands.bench.bench_table": bench_table,
        "commands.convert.convert": convert,
        "commands.run.show_answer": show_answer,
        "options.session.Model": model,
        "options.session.Bundle": lambda _: bundle,
        "api.on_device.open_on_device": lambda device, there: found.update(device=device, there=there),
        "commands.emulator.Emulator": emulator,
        "commands.emulator.parse_public_key": bytes.decode,
    }.items():
        monkeypatch.setattr(f"gemma_edge.{name}", value)


def flat(value: Any, name: str = "") -> Settings:
    """Settings by dotted names, without functions."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (AdapterChoice, MediaFile)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, dict):
        return {} if callable(value) else {name: value}
    parts = [flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}


def settings_of(words: str) -> Settings:
    with pytest.raises(Seen) as seen:
        main([*words.split(), "--no-progress"])
    return flat(seen.value.settings)


@pytest.mark.parametrize("verb", VERBS)
def test_each_option_changes_its_settings_and_no_others(verb: str) -> None:
    command, rows = VERBS[verb]
    needed = NEEDED.get(verb, "")
    for item in rows:
        if item.instead:
            before, after = f"{command} {item.beside}", f"{command} {item.words}"
        else:
            before = f"{command} {needed} {item.beside}"
            after = f"{before} {item.words}"
        without, given = settings_of(before), settings_of(after)
        changed = {name: value for name, value in given.items() if name not in without or without[name] != value}
        assert changed == item.changes, item.words


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_row(verb: str) -> None:
    tried = {word for item in VERBS[verb][1] for word in item.words.split() if word.startswith("-")}
    options = [action.option_strings for action in verb_parser(verb)._actions if action.option_strings]
    assert [names for names in options if not tried.intersection(names) and not GLOBAL.intersection(names)] == []


@pytest.mark.parametrize(
    ("words", "option", "beside"),
    [
        ("run bundle one --stream", "--stream", "without --json"),
        ("chat bundle --stream", "--stream", "without --json"),
        ("bench model --force", "--force", "without --results"),
        ("bench model --drop-torn-line", "--drop-torn-line", "without --results"),
        ("bench model --json --format csv", "--format csv", "with --json"),
        ("bench model --json -o csv", "--format csv", "with --json"),
        ("convert checkpoint -o o --no-verify --threads 3", "--threads", "with --no-verify"),
        ("convert checkpoint -o o --no-verify --drafter fit --backend gpu", "--backend", "with --no-verify"),
        ("convert checkpoint -o o --no-verify --drafter published --ple ram", "--ple", "with --no-verify"),
        ("inspect checkpoint --force", "--force", "without --plot"),
        ("probe bundle --seed 0 --tokens ids.txt", "--seed", "with --tokens"),
        ("emulator --force", "--force", "without --root"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, option: str, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {option}: it has no effect {beside}; leave it out\n"


@pytest.mark.parametrize("words", ["run bundle one", "convert checkpoint -o o"])
def test_a_cpu_computes_in_float32_alone(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--activations", "fp16"]) == 2
    assert "activations: found fp16 on the CPU, wanted fp32" in capsys.readouterr().err
