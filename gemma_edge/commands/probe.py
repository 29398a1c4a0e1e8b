"""`gemma-edge probe`: how fast a device's flash gives rows of per-layer embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from device_harness.adb.devices import connect
from device_harness.adb.transport import remote_path
from device_harness.flash.probe import (
    MOST_READS,
    ProbeResult,
    ProbeSettings,
    ReadMeasure,
    probe_device,
    probe_host,
    read_token_file,
    shard_groups,
    shard_names,
)
from device_harness.push.push import DEFAULT_FOLDER, default_target, push_source
from device_harness.push.receiver import place_receiver
from device_harness.push.source import open_source
from gemma_edge.commands.push import step_bars
from gemma_edge.terminal import Terminal, bytes_text, table
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest_json import read_manifest

EXAMPLES = (
    "gemma-edge probe BUNDLE",
    "gemma-edge probe BUNDLE --device 192.168.1.20:5555 --json",
    "gemma-edge probe BUNDLE --host --reads 2000 --batch 512",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = ProbeSettings()
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle's directory")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device", metavar="SERIAL|HOST:PORT", help="where to (default: ANDROID_SERIAL, else the only device)"
    )
    where.add_argument("--host", action="store_true", help="this computer, the bundle where it lies")
    parser.add_argument(
        "--target", metavar="DIR", help=f"the bundle's folder on the device (default: {DEFAULT_FOLDER}/NAME)"
    )
    parser.add_argument("--reads", metavar="N", type=_count, default=default.reads, help="single rows (default: 512)")
    parser.add_argument(
        "--batch", metavar="N", type=_count, default=default.batch_rows, help="rows of a batch (default: 256)"
    )
    parser.add_argument("--batches", metavar="N", type=_count, default=default.batches, help="batches (default: 8)")
    parser.add_argument("--seed", metavar="N", type=_seed, default=default.seed, help="of the token ids (default: 0)")
    parser.add_argument("--tokens", metavar="FILE", type=Path, help="token ids to read, in place of drawn ones")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0; 2 for a bundle whose shards are not sound; 3 if the device failed, or nothing can be built for it."""
    if arguments.host and arguments.target is not None:
        raise UsageError("--target", found="--host beside it", wanted="one of both")
    if arguments.batch < 2:
        raise UsageError("--batch", found=str(arguments.batch), wanted="at least 2")
    settings = ProbeSettings(
        reads=arguments.reads,
        batch_rows=arguments.batch,
        batches=arguments.batches,
        seed=arguments.seed,
        tokens=None if arguments.tokens is None else read_token_file(arguments.tokens),
    )
    probe = _probe_host if arguments.host else _probe_device
    result = probe(arguments, settings, terminal)
    terminal.result(_as_json(result), _as_text(result))
    return 0


def _probe_host(arguments: argparse.Namespace, settings: ProbeSettings, terminal: Terminal) -> ProbeResult:
    shards = [arguments.bundle / name for name in shard_names(read_manifest(arguments.bundle))]
    with tempfile.TemporaryDirectory() as scratch, terminal.bar("probe", unit="kinds of read") as progress:
        return probe_host(shards, settings, scratch=Path(scratch), progress=progress, say=terminal.note)


def _probe_device(arguments: argparse.Namespace, settings: ProbeSettings, terminal: Terminal) -> ProbeResult:
    manifest = read_manifest(arguments.bundle)
    names = shard_names(manifest)
    with ExitStack() as stack:
        device = stack.enter_context(connect(arguments.device))
        source = open_source(arguments.bundle, shard_groups(manifest))
        with step_bars(terminal, device.serial) as steps:
            target = default_target(source) if arguments.target is None else remote_path(arguments.target.rstrip("/"))
            push_source(device, source, target=target, receiver=place_receiver(device, "auto"), progress=steps)
        progress = stack.enter_context(terminal.bar(f"{device.serial} probe", unit="kinds of read"))
        return probe_device(device, target, names, settings, progress=progress, say=terminal.note)


def _as_json(result: ProbeResult) -> dict[str, object]:
    program = result.program
    return {
        "device": result.device,
        "emulated": result.emulated,
        "program": {"name": program.name, "architecture": program.architecture, "sha256": program.sha256},
        "table": {name: value for name, value in dataclasses.asdict(result.table).items() if name != "pid"},
        "measures": [dataclasses.asdict(measure) for measure in result.measures],
    }


def _as_text(result: ProbeResult) -> str:
    facts = result.table
    kind = ", an emulated device: these are the host's speeds" if result.emulated else ""
    shards = "shard" if facts.shards == 1 else "shards"
    lines = [
        f"{result.device}{kind}",
        f"{facts.rows:,} rows of {facts.row_bytes:,} bytes in {facts.shards} {shards}, "
        f"{bytes_text(facts.table_bytes)}; pages of {facts.page_bytes:,} bytes",
    ]
    for pattern, title in (("row", "one row a read, as decode does"), ("batch", "a batch a read, as prefill does")):
        measures = [measure for measure in result.measures if measure.pattern == pattern]
        if measures:
            lines += ["", f"{title}: {measures[0].reads} reads of {_rows_text(measures)}", _measure_table(measures)]
    stuck = max(
        (measure.resident_pages_before for measure in result.measures if measure.state == "not_cold"), default=0
    )
    if stuck:
        lines.append(f"not cold: up to {stuck:,} pages could not be dropped from memory; who owns the files?")
    return "\n".join(lines)


def _rows_text(measures: Sequence[ReadMeasure]) -> str:
    mean = measures[0].rows / measures[0].reads
    return "1 row" if measures[0].pattern == "row" else f"{mean:.0f} distinct rows"


def _measure_table(measures: Sequence[ReadMeasure]) -> str:
    header = [
        "access",
        "state",
        "p50 us",
        "p90 us",
        "p99 us",
        "max us",
        "MB/s",
        "faults",
        "major",
        "from flash",
        "resident",
    ]
    return table(header, [_cells(measure) for measure in measures])


def _cells(measure: ReadMeasure) -> list[str]:
    latencies = (measure.latency_p50_us, measure.latency_p90_us, measure.latency_p99_us, measure.latency_max_us)
    storage = "-" if measure.storage_read_bytes is None else bytes_text(measure.storage_read_bytes)
    return [
        measure.access,
        measure.state.replace("_", " "),
        *(f"{latency:,.1f}" for latency in latencies),
        f"{measure.bandwidth_bytes_per_s / 1e6:,.1f}",
        f"{measure.minor_faults:,}",
        f"{measure.major_faults:,}",
        storage,
        f"{measure.resident_pages_after:,}",
    ]


def _count(text: str) -> int:
    return _within(text, 1, MOST_READS)


def _seed(text: str) -> int:
    return _within(text, 0, 2**63)


def _within(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise UsageError(found=repr(text), wanted=f"{least} to {most}")
    return int(text)
