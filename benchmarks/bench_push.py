"""Seconds, rate and peak memory of `gemma-edge push` to an emulated device, beside Debian's `adb push` to the same.

Each push is a process of its own, the contenders in turn and back (A B B A), to an empty folder, in memory that this
machine has at hand: a virtual one may have lent it back, and then `adb push`, which fills the page cache, takes up to
three seconds longer. `adb push` compares no hashes, before or after, and does not wait for the storage; ours does. So
besides the whole time there is that of sending alone, and for adb that of a push followed by `fsync` on the device.
Ours pushes a bundle, whose manifest has the hashes, and the same bytes as a .litertlm, whose hashes it computes; stored
there by the device's own programs, and by ours. Then each of the two pushes the .litertlm again, and with one byte
changed. Prints a table and appends a record for each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, run_child, text
from device_harness.programs.build import PUSH_RECEIVER, native_program, parse_architecture
from toolkit.bundle.manifest import CheckpointRecord, KvCache, SizeRecord, TextRecord
from toolkit.bundle.write import BundleDraft, GroupDraft, write_bundle
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import summary

MIB = 1024 * 1024
FOLDER = "/data/local/tmp/bench"
NAME = "model.litertlm"


@dataclass(frozen=True, slots=True)
class Push:
    """One push of ours: the process, and what it says of itself."""

    process_s: float
    push_s: float
    send_s: float
    bytes_sent: int
    peak_rss_bytes: int


def write_source(path: Path, mib: int) -> None:
    """Bytes that do not compress."""
    generator = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(generator.bytes(MIB))


def touch_memory(size: int) -> None:
    """Have this machine own so much memory, in a process that gives it up again."""
    script = "import mmap, sys; m = mmap.mmap(-1, int(sys.argv[1]))\nfor at in range(0, len(m), 4096): m[at] = 1"
    subprocess.run([sys.executable, "-c", script, str(size)], check=True)


@contextmanager
def emulated_device(folder: Path, isolation: str) -> Iterator[str]:
    """Its serial; a process of its own, so that the contenders meet the same one."""
    command = [sys.executable, "-m", "gemma_edge", "emulator", "--json", "--port", "0"]
    command += ["--root", str(folder), "--isolation", isolation]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["serial"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def adb_server(serial: str, port: int) -> Iterator[dict[str, str]]:
    """The environment of an adb whose server knows the device."""
    environment = {"ANDROID_ADB_SERVER_PORT": str(port)}
    whole = {**os.environ, **environment}
    subprocess.run(["adb", "connect", serial], env=whole, check=True, capture_output=True)
    try:
        yield environment
    finally:
        subprocess.run(["adb", "kill-server"], env=whole, check=False, capture_output=True)


@dataclass(frozen=True, slots=True)
class Contender:
    """What of ours takes part: a bundle (its manifest has the hashes) or a .litertlm, and who stores it there."""

    source: Path
    receiver: str

    @property
    def name(self) -> str:
        return f"{'bundle' if self.source.is_dir() else 'litertlm'}_{self.receiver}"


def push_ours(serial: str, contender: Contender, log: Path) -> Push:
    """One `gemma-edge push`."""
    command = [sys.executable, "-m", "gemma_edge", "push", str(contender.source), "--device", serial, "--json"]
    command += ["--receiver", contender.receiver, "--target", f"{FOLDER}/{contender.name}"]
    usage = run_child(command, log)
    result = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
    return Push(usage.seconds, result["seconds"], result["send_seconds"], result["bytes_sent"], usage.peak_rss_bytes)


def write_bundle_of(source: Path, bundle: Path) -> None:
    """A bundle whose one large file is `source`, under a second name."""
    text = TextRecord(
        vocab_size=8,
        ple_vocab_size=8,
        hidden_size=8,
        ple_size=4,
        num_layers=1,
        context=8,
        prefill_sizes=(8,),
        context_buckets=(),
        prefill_buckets=(),
        final_logit_softcap=30.0,
        bos_token_id=2,
        pad_token_id=0,
        stop_token_ids=(1,),
        kv_caches=(KvCache("k", "v", (1, 1, 8, 4)),),
    )

    def fill(folder: Path) -> BundleDraft:
        os.link(source, folder / "text_decoder.tflite")
        return BundleDraft(
            architecture="Gemma3nForCausalLM",
            checkpoint=CheckpointRecord("random", "0" * 64),
            sizes={"one": SizeRecord((0,), (8,), "")},
            default_size="one",
            quant={},
            groups={"text": GroupDraft("text", ("text_decoder.tflite",), 8, text)},
        )

    write_bundle(bundle, fill)


def measure(
    serial: str, contenders: Sequence[Contender], scratch: Path, repeats: int, adb: dict[str, str]
) -> dict[str, list[Figures]]:
    """Rounds in which the contenders take turns; what each has pushed is removed before the next."""
    log = scratch / "log"
    ours: dict[str, list[Push]] = {contender.name: [] for contender in contenders}
    theirs: list[float] = []
    synced: list[float] = []
    device = scratch / "device" / FOLDER.lstrip("/")
    source = contenders[-1].source
    for turn in range(repeats):
        for contender in [None, *contenders][:: -1 if turn % 2 else 1]:
            shutil.rmtree(device, ignore_errors=True)
            os.sync()  # else one contender waits for what the other wrote
            touch_memory(source.stat().st_size * 3 // 2)
            if contender is not None:
                ours[contender.name].append(push_ours(serial, contender, log))
            else:
                command = ["adb", "-s", serial, "push", str(source), f"{FOLDER}/adb/{NAME}"]
                theirs.append(run_child(command, log, adb).seconds)
                sync = ["adb", "-s", serial, "shell", f"fsync {FOLDER}/adb/{NAME} || sync"]
                synced.append(theirs[-1] + run_child(sync, log, adb).seconds)
    shutil.rmtree(device, ignore_errors=True)
    updates = [contender for contender in contenders if contender.source == source]
    for contender in updates:
        push_ours(serial, contender, log)
    again = {contender.name: push_ours(serial, contender, log) for contender in updates}
    with open(source, "r+b") as file:
        file.seek(source.stat().st_size // 2)
        file.write(b"changed")
    changed = {contender.name: push_ours(serial, contender, log) for contender in updates}
    adb_push: list[Figures] = [{"push_s": seconds} for seconds in theirs]
    adb_synced: list[Figures] = [{"push_s": seconds} for seconds in synced]
    return {
        "adb push": adb_push,
        "adb push, then fsync": adb_synced,
        **{name: [_figures(push) for push in pushes] for name, pushes in ours.items()},
        **{f"{name}, nothing to send": [_figures(push)] for name, push in again.items()},
        **{f"{name}, one byte changed": [_figures(push)] for name, push in changed.items()},
    }


def _figures(push: Push) -> Figures:
    """`push_s` is of the whole process, as it is adb's."""
    return {
        "push_s": push.process_s,
        "push_alone_s": push.push_s,
        "send_s": push.send_s,
        "sent_bytes": push.bytes_sent,
        "peak_rss_bytes": push.peak_rss_bytes,
    }


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Median, and from least to most."""
    rows = [
        [system, text(summary([run["push_s"] for run in runs]), ".2f"), str(len(runs))]
        for system, runs in found.items()
    ]
    return markdown(["push", "seconds, whole process", "repeats"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_push", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pushes of each (default: %(default)s)")
    parser.add_argument("--isolation", default="auto", help="of the emulated device (default: %(default)s)")
    parser.add_argument("--receivers", default="native,shell", help="who stores it there (default: %(default)s)")
    parser.add_argument("--server-port", type=int, default=5099, help="of adb's server (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where files go (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS / "push.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        source = scratch / NAME
        write_source(source, options.mib)
        bundle = scratch / "bundle"
        write_bundle_of(source, bundle)
        receivers = options.receivers.split(",")
        contenders = [Contender(path, receiver) for path in (bundle, source) for receiver in receivers]
        if "native" in receivers:
            native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host"))
        version = subprocess.run(["adb", "version"], capture_output=True, text=True, check=True).stdout.split("\n")[1]
        recorder = Recorder("push", ("adb-shell", "numpy"))
        model = model_record(source, "random bytes")
        with (
            emulated_device(scratch / "device", options.isolation) as serial,
            adb_server(serial, options.server_port) as adb,
        ):
            found = measure(serial, contenders, scratch, options.repeats, adb)
    tests: dict[str, FigureName] = {"push": "push_s", "send": "send_s", "peak": "peak_rss_bytes"}
    for system, runs in found.items():
        told = {test: figure for test, figure in tests.items() if figure in runs[0]}
        conditions = {"system": system, "isolation": options.isolation}
        recorder.append(options.output, Measured(model, told, runs, conditions), {"adb": version})
    print(table(found))


if __name__ == "__main__":
    main()
