"""`gemma-edge probe`: measures how fast a device reads rows of per-layer embeddings from flash."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from device_harness.flash.probe import MOST_READS, ProbeResult, ProbeSettings, ReadMeasure, read_token_file
from device_harness.push.push import DEFAULT_FOLDER
from gemma_edge.api.probe import ProbeListener, probe
from gemma_edge.options.numbers import within
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal, one_line, table
from gemma_edge.words.pushing import step_bars
from toolkit.results.quantities import bytes_text

EXAMPLES = (
    "gemma-edge probe BUNDLE",
    "gemma-edge probe BUNDLE --device 192.168.1.20:5555 --json",
    "gemma-edge probe BUNDLE --host --reads 2000 --batch 512",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = ProbeSettings()
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle directory")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        metavar="SERIAL|HOST:PORT",
        help="the device to measure (default: ANDROID_SERIAL, else the only device)",
    )
    where.add_argument("--host", action="store_true", help="measure this computer, with the bundle as it is")
    parser.add_argument(
        "--target", metavar="DIR", help=f"the bundle's folder on the device (default: {DEFAULT_FOLDER}/NAME)"
    )
    parser.add_argument(
        "--reads", metavar="N", type=_count, default=default.reads, help="how many single rows to read (default: 512)"
    )
    parser.add_argument(
        "--batch", metavar="N", type=_count, default=default.batch_rows, help="rows per batch (default: 256)"
    )
    parser.add_argument(
        "--batches", metavar="N", type=_count, default=default.batches, help="how many batches to read (default: 8)"
    )
    parser.add_argument("--seed", metavar="N", type=_seed, help="seed of the random token ids (default: 0)")
    parser.add_argument(
        "--tokens", metavar="FILE", type=Path, help="a file of token ids to read instead of random ones"
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0; 2 if the bundle's shards have faults; 3 if the device failed, or nothing can be built for it."""
    refuse_unused("--seed", arguments.seed is not None and arguments.tokens is not None, "with --tokens")
    settings = ProbeSettings(
        reads=arguments.reads,
        batch_rows=arguments.batch,
        batches=arguments.batches,
        seed=ProbeSettings().seed if arguments.seed is None else arguments.seed,
        tokens=None if arguments.tokens is None else read_token_file(arguments.tokens),
    )
    listener = ProbeListener(
        pushing=partial(step_bars, terminal),
        reading=lambda name: terminal.bar(f"{name} probe".strip(), unit="kinds of read"),
        note=lambda text: terminal.note(one_line(text)),
    )
    result = probe(
        arguments.bundle,
        device=arguments.device,
        host=arguments.host,
        target=arguments.target,
        settings=settings,
        listener=listener,
    )
    terminal.result(_as_json(result), _as_text(result))
    return 0


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
    for pattern, title in (("row", "one row per read, as in decode"), ("batch", "one batch per read, as in prefill")):
        measures = [measure for measure in result.measures if measure.pattern == pattern]
        if measures:
            lines += ["", f"{title}: {measures[0].reads} reads of {_rows_text(measures)}", _measure_table(measures)]
    stuck = max(
        (measure.resident_pages_before for measure in result.measures if measure.state == "not_cold"), default=0
    )
    if stuck:
        lines.append(f"not cold: up to {stuck:,} pages could not be dropped from memory; check who owns the files")
    return "\n".join(lines)


def _rows_text(measures: Sequence[ReadMeasure]) -> str:
    mean = measures[0].rows / measures[0].reads
    return "1 row" if measures[0].pattern == "row" else f"{mean:.0f} distinct rows"


def _measure_table(measures: Sequence[ReadMeasure]) -> str:
    header = [
        "access",
        "state",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "max µs",
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
    return within(text, 1, MOST_READS)


def _seed(text: str) -> int:
    return within(text, 0, 2**63)
