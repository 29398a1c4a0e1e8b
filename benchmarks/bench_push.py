"""Compares `gemma-edge push` to a device on this machine with Debian's `adb push`: seconds, rate and peak memory.

The device is the emulated one or AOSP's adbd 34 (`--device adbd`), which is reached directly, with `delayed_ack`
switched off, and through Debian's adb server. Each push is a separate process, the contenders in turn and back (A B B
A), to an empty folder, in memory that this machine has at hand: a virtual one may have lent it back, and then `adb
push`, which fills the page cache, takes up to three seconds longer. `adb push` compares no hashes, before or after, and
does not wait for the storage; ours does. So besides the whole time there is that of sending alone, and for adb that of
a push followed by `fsync` on the device. Ours pushes a bundle, whose manifest has the hashes, the same bytes as a
.litertlm of ours, which has them too, and as one of another program (`foreign`), whose hashes it computes; stored there
by the device's own programs, and by ours. Then each of the two pushes the .litertlm again, and with one byte changed.
Prints a table and appends a record for each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, run_child, text
from benchmarks.push_peers import Device, Way, aosp_device, emulated_device
from device_harness.programs.build import PUSH_RECEIVER, native_program, parse_architecture
from toolkit.base.files import hash_file
from toolkit.base.layout import SECTION_ALIGNMENT
from toolkit.bundle.manifest import CheckpointRecord, KvCache, SizeRecord, TextRecord
from toolkit.bundle.write import BundleDraft, GroupDraft, write_bundle
from toolkit.litertlm.container import FilePart, Section, write_container
from toolkit.litertlm.schema import LLM_METADATA, pack_container_metadata
from toolkit.litertlm.tables import MAGIC, METADATA_OFFSET, VERSION, ContainerMetadata, SectionRecord
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import summary

MIB = 1024 * 1024
FOLDER = "/data/local/tmp/bench"
NAME, FOREIGN, CONTENT = "model.litertlm", "foreign.litertlm", "content"

_MEMORY: dict[FigureName, str] = {
    "peak_rss_bytes": "MB",
    "daemon_peak_rss_bytes": "MB, device's daemon",
    "server_peak_rss_bytes": "MB, adb's server",
}
_TESTS: dict[str, FigureName] = {
    "push": "push_s",
    "send": "send_s",
    "peak": "peak_rss_bytes",
    "daemon": "daemon_peak_rss_bytes",
    "server": "server_peak_rss_bytes",
}


def write_source(path: Path, mib: int) -> None:
    """Write bytes that do not compress."""
    generator = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(generator.bytes(MIB))


def write_litertlm(content: Path, path: Path) -> None:
    """Write the same bytes as a .litertlm with one section."""
    part = FilePart(content, content.stat().st_size, hash_file(content).sha256)
    write_container(path, [Section(LLM_METADATA, (part,))], {})


def touch_memory(size: int) -> None:
    """Make this machine own so much memory, in a process that frees it again."""
    script = "import mmap, sys; m = mmap.mmap(-1, int(sys.argv[1]))\nfor at in range(0, len(m), 4096): m[at] = 1"
    subprocess.run([sys.executable, "-c", script, str(size)], check=True)


def write_foreign(content: Path, path: Path) -> None:
    """The same bytes as a .litertlm by another program, which has no hashes."""
    size = content.stat().st_size
    section = SectionRecord(LLM_METADATA, SECTION_ALIGNMENT, SECTION_ALIGNMENT + size)
    metadata = pack_container_metadata(ContainerMetadata({}, (section,)))
    with open(path, "wb") as file, open(content, "rb") as source:
        file.write(MAGIC + struct.pack("<3I4xQ", *VERSION, METADATA_OFFSET + len(metadata)) + metadata)
        file.seek(SECTION_ALIGNMENT)
        shutil.copyfileobj(source, file, MIB)


@dataclass(frozen=True, slots=True)
class Contender:
    """One of ours: a bundle, or a .litertlm with hashes or without; who stores it, and how it is reached."""

    source: Path
    receiver: str
    way: Way

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.receiver}, {self.way.name}"

    @property
    def kind(self) -> str:
        return "bundle" if self.source.is_dir() else {NAME: "litertlm"}.get(self.source.name, self.source.stem)


def push_ours(device: Device, contender: Contender, log: Path) -> Figures:
    """One `gemma-edge push`; `push_s` is of the whole process, as for adb."""
    words = ["push", str(contender.source), "--device", device.serial, "--json", "--receiver", contender.receiver]
    command = [*device.inside, *contender.way.command(*words, "--target", f"{FOLDER}/{contender.kind}")]
    device.forget_peaks()
    usage = run_child(command, log, contender.way.environment)
    result = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
    return {
        "push_s": usage.seconds,
        "push_alone_s": result["seconds"],
        "send_s": result["send_seconds"],
        "sent_bytes": result["bytes_sent"],
        "peak_rss_bytes": usage.peak_rss_bytes,
        **_peaks(device),
    }


def push_adb(device: Device, source: Path, log: Path) -> tuple[Figures, Figures]:
    """`adb push`, alone and with the `fsync` after it."""
    adb = [*device.inside, "adb", "-s", device.serial]
    device.forget_peaks()
    pushed = run_child([*adb, "push", str(source), f"{FOLDER}/adb/{NAME}"], log, device.adb)
    peaks = _peaks(device)
    synced = run_child([*adb, "shell", f"fsync {FOLDER}/adb/{NAME} || sync"], log, device.adb)
    both = pushed.seconds + synced.seconds
    return {"push_s": pushed.seconds, "peak_rss_bytes": pushed.peak_rss_bytes, **peaks}, {"push_s": both}


def _peaks(device: Device) -> Figures:
    found = device.peaks()
    return {"daemon_peak_rss_bytes": found["daemon"], "server_peak_rss_bytes": found["server"]}


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
        os.link(source, folder / "ple_00000.bin")  # a shard, because a push would refuse a graph of random bytes
        return BundleDraft(
            architecture="Gemma3nForCausalLM",
            checkpoint=CheckpointRecord("random", "0" * 64),
            sizes={"one": SizeRecord((0,), (8,), "")},
            default_size="one",
            quant={},
            groups={
                "text": GroupDraft("text", (), 8, text),
                "ple": GroupDraft("per_layer_embedding", ("ple_00000.bin",), 8),
            },
        )

    write_bundle(bundle, fill)


def measure(device: Device, contenders: Sequence[Contender], scratch: Path, repeats: int) -> dict[str, list[Figures]]:
    """Rounds in which the contenders take turns; what each has pushed is removed before the next."""
    log = scratch / "log"
    found: dict[str, list[Figures]] = {"adb push": [], "adb push, then fsync": []}
    found |= {contender.name: [] for contender in contenders}
    folder = device.root / FOLDER.lstrip("/")
    source = scratch / NAME
    for turn in range(repeats):
        for contender in [None, *contenders][:: -1 if turn % 2 else 1]:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()  # otherwise one contender waits for what the other wrote
            touch_memory(source.stat().st_size * 3 // 2)
            if contender is not None:
                found[contender.name].append(push_ours(device, contender, log))
                continue
            for name, figures in zip(("adb push", "adb push, then fsync"), push_adb(device, source, log), strict=True):
                found[name].append(figures)
    shutil.rmtree(folder, ignore_errors=True)
    updates = [contender for contender in contenders if contender.source == source and contender.way == device.ways[0]]
    for contender in updates:
        push_ours(device, contender, log)  # into the same folder, where the next push finds it
        found[f"{contender.name}, nothing to send"] = [push_ours(device, contender, log)]
    for number, contender in enumerate(updates):
        with open(scratch / CONTENT, "r+b") as file:
            file.seek(source.stat().st_size // 2)
            file.write(b"change %d" % number)
        write_litertlm(scratch / CONTENT, source)
        found[f"{contender.name}, one byte changed"] = [push_ours(device, contender, log)]
    return found


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """The median, least and most, also relative to adb's push with a sync."""
    beside = summary([run["push_s"] for run in found["adb push, then fsync"]]).median
    rows = []
    for system, runs in found.items():
        seconds = summary([run["push_s"] for run in runs])
        memory = [str(round(max(run[name] for run in runs) / 1e6)) if name in runs[0] else "" for name in _MEMORY]
        rows.append([system, text(seconds, ".2f"), f"{seconds.median / beside:.2f}", str(len(runs)), *memory])
    return markdown(["push", "seconds, whole process", "against adb + fsync", "repeats", *_MEMORY.values()], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_push", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pushes of each (default: %(default)s)")
    parser.add_argument("--device", choices=("emulator", "adbd"), default="emulator", help="default: %(default)s")
    parser.add_argument("--isolation", default="auto", help="of the emulated device (default: %(default)s)")
    parser.add_argument("--receivers", default="native,shell", help="who stores it there (default: %(default)s)")
    parser.add_argument("--sources", default="bundle,litertlm,foreign", help="what is pushed (default: %(default)s)")
    parser.add_argument("--server-port", type=int, default=5099, help="of adb's server (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where files go (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS / "push.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        source = scratch / NAME
        write_source(scratch / CONTENT, options.mib)
        write_litertlm(scratch / CONTENT, source)
        write_foreign(scratch / CONTENT, scratch / FOREIGN)
        bundle = scratch / "bundle"
        write_bundle_of(scratch / CONTENT, bundle)
        receivers = options.receivers.split(",")
        if "native" in receivers:
            native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host"))
        version = subprocess.run(["adb", "version"], capture_output=True, text=True, check=True).stdout.split("\n")[1]
        recorder = Recorder("push", ("adb-shell", "numpy"))
        model = model_record(source, "random bytes")
        is_adbd = options.device == "adbd"
        port = options.server_port
        with aosp_device(port) if is_adbd else emulated_device(scratch / "device", options.isolation, port) as device:
            sources = {"bundle": bundle, "litertlm": source, "foreign": scratch / FOREIGN}
            kinds = [sources[kind] for kind in options.sources.split(",")]
            contenders = [Contender(*chosen) for chosen in itertools.product(kinds, receivers, device.ways)]
            found = measure(device, contenders, scratch, options.repeats)
    for system, runs in found.items():
        told = {test: figure for test, figure in _TESTS.items() if figure in runs[0]}
        recorder.append(
            options.output, Measured(model, told, runs, {"system": system, **device.conditions}), {"adb": version}
        )
    print(table(found))


if __name__ == "__main__":
    main()
