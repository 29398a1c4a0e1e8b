"""`gemma-edge check`: checks every hash, bound and reference of a bundle."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from gemma_edge.api.check import check
from gemma_edge.terminal import Terminal, one_line
from toolkit.check import is_unhashed, left_out, refused_by_engine, refused_by_gpu, unknown_graphs

EXAMPLES = (
    "gemma-edge check BUNDLE",
    "gemma-edge check model.litertlm --json",
    "gemma-edge check model.litertlm --trust public.pem",
    "gemma-edge check BUNDLE/ple_00001.bin",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="BUNDLE", type=Path, help="a bundle directory, a .litertlm file, or one PLE shard"
    )
    parser.add_argument(
        "--trust", metavar="KEY", type=Path, action="append", default=[],
        help="a file with an Ed25519 public key, in PEM or OpenSSH format; a .litertlm that none of these keys has "
        "signed is a fault; may be repeated",
    )  # fmt: skip


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 without faults, else 1; an op that a GPU refuses is not a fault, because a CPU runs it."""
    with terminal.bar("check") as show:
        faults = check(arguments.path, trust=arguments.trust, progress=show)
    lines = [str(fault.error(fault.file or arguments.path)) for fault in faults]
    refused = refused_by_gpu(arguments.path)
    lines += [
        f"note: {name} {op.signature}: a GPU refuses op {op.op}, {op.builtin}: {op.reason}" for name, op in refused
    ]
    if is_unhashed(arguments.path):
        lines.append("note: the file has no hashes, so damage to its weights cannot be found")
    unknown = unknown_graphs(arguments.path)
    if unknown:
        lines.append(f"note: of an unknown kind, so that only their form is checked: {', '.join(unknown)}")
    engine = None if faults else refused_by_engine(arguments.path)
    absent = left_out(arguments.path)
    lines += [f"note: not here, as after push --groups: {', '.join(absent)}"] if absent else []
    lines += [] if engine is None else [f"note: export refuses this bundle: {engine}"]
    verdict = f"{arguments.path}: {f'faults: {len(faults)}' if faults else 'no faults found'}"
    value = {"ok": not faults, "faults": [dataclasses.asdict(fault) for fault in faults]}
    value["export_refusal"] = None if engine is None else str(engine)
    value["groups_left_out"] = list(absent)
    value["unknown_graphs"] = list(unknown)
    value["gpu_refusals"] = [{"file": name, **dataclasses.asdict(op)} for name, op in refused]
    terminal.result(value, "\n".join(map(one_line, [*lines, verdict])))
    return 1 if faults else 0
