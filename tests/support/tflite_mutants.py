"""Damaged and hostile .tflite files, and what becomes of a command that opens them, in a forked child with limits."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gemma_edge import cli
from toolkit.base.files import hash_file
from toolkit.bundle.judged import graph_faults
from toolkit.bundle.manifest import MANIFEST_NAME, FileRecord
from toolkit.bundle.manifest_json import dump_manifest, read_manifest
from toolkit.bundle.signatures import bundle_signatures
from toolkit.tflite.judge import read_header
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import (
    BufferRecord,
    ModelRecord,
    OperatorRecord,
    Quantization,
    SubgraphRecord,
    TensorRecord,
)
from toolkit.tflite.schema_pack import pack

MAX_RSS_BYTES = 1 << 30
MAX_SECONDS = 60
NUMBERS = (-(2**31), -(2**16), -2, -1, 0, 1, 2, 3, 7, 16, 255, 256, 2**16, 2**24, 2**30, 2**31 - 1)
"""Numbers at which code goes wrong."""


# --- bytes -----------------------------------------------------------------------------------------------------------


def mutate_bytes(header: bytes, choice: random.Random) -> bytes:
    """Change a few bytes, numbers or blocks of a flatbuffer."""
    data = bytearray(header)
    for _ in range(choice.choice((1, 1, 1, 2, 4, 16))):
        place = choice.randrange(len(data))
        word = place // 4 * 4
        kind = choice.randrange(6)
        if kind == 0:
            data[place] ^= 1 << choice.randrange(8)
        elif kind == 1:
            data[place] = choice.randrange(256)
        elif kind == 2:
            struct.pack_into("<i", data, min(word, len(data) - 4), choice.choice(NUMBERS))
        elif kind == 3:
            (value,) = struct.unpack_from("<i", data, min(word, len(data) - 4))
            changed = (value + choice.choice((-64, -8, -4, -1, 1, 4, 8, 64))) & 0xFFFFFFFF
            struct.pack_into("<I", data, min(word, len(data) - 4), changed)
        elif kind == 4:
            other, size = choice.randrange(len(data)), choice.choice((4, 8, 32, 256))
            data[place : place + size] = data[other : other + size][: len(data) - place]
        else:
            struct.pack_into("<H", data, min(place // 2 * 2, len(data) - 2), choice.choice((0, 1, 4, 6, 255, 65535)))
    return bytes(data[: len(header)]).ljust(len(header), b"\0")


# --- records: well-formed files that say something else --------------------------------------------------------------


def mutate_records(model: ModelRecord, choice: random.Random) -> ModelRecord:
    """Change what a file says, so that it is still a well-formed one."""
    graphs = list(model.subgraphs)
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        place = choice.randrange(len(graphs))
        graphs[place] = choice.choice(_CHANGES)(graphs[place], model, choice)
    return replace(model, subgraphs=tuple(graphs), buffers=_buffers(model, choice))


def _buffers(model: ModelRecord, choice: random.Random) -> tuple[BufferRecord, ...]:
    """Sometimes with a constant of other numbers."""
    constants = [n for n, buffer in enumerate(model.buffers) if buffer.data]
    if not constants or choice.random() < 0.7:
        return model.buffers
    place = choice.choice(constants)
    data = model.buffers[place].data or b""
    numbers = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), np.int32).copy()
    numbers[choice.randrange(len(numbers))] = choice.choice(NUMBERS)
    buffers = list(model.buffers)
    buffers[place] = BufferRecord(numbers.tobytes()[: len(data)])
    return tuple(buffers)


def _change_tensor(graph: SubgraphRecord, model: ModelRecord, choice: random.Random) -> SubgraphRecord:
    place = choice.randrange(len(graph.tensors))
    tensors = list(graph.tensors)
    tensors[place] = _other_tensor(tensors[place], model, choice)
    return replace(graph, tensors=tuple(tensors))


def _other_tensor(tensor: TensorRecord, model: ModelRecord, choice: random.Random) -> TensorRecord:
    kind = choice.randrange(5)
    if kind == 0:
        names = ("FLOAT32", "FLOAT16", "INT32", "INT8", "INT4", "BOOL", "UINT8", "INT64", "STRING", "RESOURCE")
        return replace(tensor, type=choice.choice(names))
    if kind == 1:
        return replace(tensor, buffer=choice.randrange(len(model.buffers)))
    if kind == 2:
        changed = None if tensor.quantization else Quantization(np.ones(max(tensor.shape[:1] or (1,)), np.float32))
        return replace(tensor, quantization=changed)
    shape = list(tensor.shape)
    if kind == 3 and shape:
        axis = choice.randrange(len(shape))
        shape[axis] = choice.choice((*(n for n in NUMBERS if n > -2), shape[axis] * 2, shape[axis] + 1))
    else:
        shape = choice.choice(([], [1, *shape], shape[1:], shape[::-1], [*shape, 1]))
    return replace(tensor, shape=tuple(shape))


def _change_operator(graph: SubgraphRecord, model: ModelRecord, choice: random.Random) -> SubgraphRecord:
    if not graph.operators:
        return graph
    place = choice.randrange(len(graph.operators))
    operators = list(graph.operators)
    operators[place] = _other_operator(operators[place], graph, choice)
    if choice.random() < 0.1:
        choice.shuffle(operators)
    return replace(graph, operators=tuple(operators))


def _other_operator(op: OperatorRecord, graph: SubgraphRecord, choice: random.Random) -> OperatorRecord:
    kind, count = choice.randrange(6), len(graph.tensors)
    if kind == 0:
        names = ("ADD", "FULLY_CONNECTED", "RESHAPE", "GATHER", "WHILE", "IF", "CUSTOM", "TILE", "STRIDED_SLICE",
                 "HASHTABLE", "VAR_HANDLE", "CONV_2D", "TOPK_V2", "SPLIT", "LSTM", "SVDF", "DIV", "PAD")  # fmt: skip
        other = choice.choice(names)
        return replace(op, builtin=other) if choice.random() < 0.5 else OperatorRecord(other, 1, op.inputs, op.outputs)
    if kind == 1 and op.inputs:
        inputs = list(op.inputs)
        inputs[choice.randrange(len(inputs))] = choice.choice((-1, choice.randrange(count), count, 2**30))
        return replace(op, inputs=tuple(inputs))
    if kind == 2:
        return replace(op, outputs=choice.choice(((choice.randrange(count),), (), (*op.outputs, 0))))
    if kind == 3 and op.fields:
        place = choice.randrange(len(op.fields))
        name, value = op.fields[place]
        changed = choice.choice(NUMBERS) if isinstance(value, int) else choice.choice((0.0, -1.0, float("nan"), 1e38))
        small = int(changed) & 0x7F if isinstance(value, bool) or name in ("padding", "inDataType") else changed
        fields = (*op.fields[:place], (name, small), *op.fields[place + 1 :])
        return replace(op, fields=fields)
    if kind == 4:
        return replace(op, inputs=choice.choice((op.inputs[::-1], op.inputs[:1], (*op.inputs, *op.inputs), ())))
    return replace(op, version=choice.choice((0, 1, 2, 5, 99)), options=op.options)


def _change_ends(graph: SubgraphRecord, model: ModelRecord, choice: random.Random) -> SubgraphRecord:
    """Other inputs or outputs."""
    ends = dict(choice.choice((graph.inputs, graph.outputs)))
    if not ends:
        return graph
    name = choice.choice(sorted(ends))
    number = ends.pop(name)
    kind = choice.randrange(3)
    if kind == 0:
        ends["other\x1b[2J"] = number
    elif kind == 1:
        ends[name] = choice.randrange(len(graph.tensors))
    return replace(graph, inputs=ends) if name in graph.inputs else replace(graph, outputs=ends)


_CHANGES: Sequence[Callable[[SubgraphRecord, ModelRecord, random.Random], SubgraphRecord]] = (
    _change_tensor, _change_tensor, _change_operator, _change_operator, _change_ends,
)  # fmt: skip


def repacked(data: bytes, header_bytes: int, model: ModelRecord) -> bytes | None:
    """The file with another header of these records, its weights where they were; None if that has no room for it."""
    try:
        header = pack(model)
    except (OverflowError, TypeError, ValueError, AttributeError, struct.error):
        return None  # no flatbuffer can say that
    behind = {buffer.offset_bytes for buffer in model.buffers if buffer.offset_bytes}
    if not behind:
        return header
    shift = -(-max(0, len(header) - header_bytes) // 4096) * 4096
    moved = [replace(b, offset_bytes=b.offset_bytes + shift) if b.offset_bytes else b for b in model.buffers]
    header = pack(replace(model, buffers=tuple(moved)))
    return header.ljust(header_bytes + shift, b"\0") + data[header_bytes:]


# --- bundles and children --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bundle_with(bundle: Path, name: str, data: bytes) -> Iterator[Path]:
    """A copy of a bundle in which one file is another, with a manifest that has its hash."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        copy = Path(folder) / "bundle"
        copy.mkdir()
        for entry in bundle.iterdir():
            if entry.name not in (name, MANIFEST_NAME):
                os.link(entry, copy / entry.name)
        (copy / name).write_bytes(data)
        manifest, found = read_manifest(bundle), hash_file(copy / name)
        files = {**manifest.files, name: FileRecord(found.size, found.sha256, found.chunks)}
        changed = {}
        for group_name, group in manifest.groups.items():
            changed[group_name] = replace(group, bytes=sum(files[file].bytes for file in group.files))
        (copy / MANIFEST_NAME).write_bytes(dump_manifest(replace(manifest, files=files, groups=changed)))
        yield copy


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    signal: int
    code: int
    rss_bytes: int
    errors: str

    @property
    def lost(self) -> str | None:
        """What is wrong with it; None if it ended as it should: done, or with one error."""
        if self.signal:
            return f"signal {signal.Signals(self.signal).name}"
        if self.rss_bytes > MAX_RSS_BYTES:
            return f"{self.rss_bytes:,} bytes of memory"
        if self.code not in (0, 1, 2, 3) or "Traceback" in self.errors or "a bug in gemma-edge" in self.errors:
            return f"exit code {self.code}: {self.errors[-500:]}"
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        return None if len(lines) == (self.code in (2, 3)) else f"{len(lines)} errors: {self.errors[-500:]}"


def in_child(work: Callable[[], int]) -> Outcome:
    """Run `work` in a forked child, whose memory and time are limited; its value is the exit code."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _be_child(work, errors.fileno())
        _, status, usage = os.wait4(child, 0)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return Outcome(max(0, -code), max(0, code), usage.ru_maxrss * 1024, text)


def _be_child(work: Callable[[], int], errors: int) -> None:
    code = 99
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(errors, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115, pytest's own is not the descriptor
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        code = work()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"Traceback: {type(error).__name__}: {error}".encode())
    finally:
        os._exit(code)


def copy_of(bundle: Path, folder: Path) -> Path:
    """A bundle in `folder`, whose files can be linked from there."""
    return Path(shutil.copytree(bundle, folder / "bundle"))


class Attack:
    """Opens mutants of one file of a bundle as `run` does, and tells what was lost."""

    def __init__(self, bundle: Path, name: str, arguments: Sequence[str] = ()) -> None:
        """arguments: further ones of `run`, such as an image for the tower whose file it is."""
        self._bundle, self._name, self._arguments = bundle, name, arguments
        self._data = (bundle / name).read_bytes()
        self._header_bytes = len(read_header(bundle / name).data)
        self._model = read_tflite(bundle / name).model
        self._wanted = bundle_signatures(read_manifest(bundle))[name]

    def mutant(self, seed: int) -> bytes | None:
        """The mutant of a number; None if it would be the file itself."""
        choice = random.Random(seed)
        if choice.random() < 0.5:
            header = self._data[: self._header_bytes]
            data: bytes | None = mutate_bytes(header, choice) + self._data[self._header_bytes :]
            if data is not None and choice.random() < 0.05:
                data = data[: choice.randrange(len(data))]
        else:
            data = repacked(self._data, self._header_bytes, mutate_records(self._model, choice))
        return None if data == self._data else data

    def judge(self, data: bytes) -> Outcome:
        """What the judge makes of a file, in a child: exit code 0 if it passes, 1 if not, whatever its faults."""
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            file.write(data)
            file.flush()
            return in_child(lambda: int(bool(graph_faults(Path(file.name), self._wanted))))

    def run(self, data: bytes) -> Outcome:
        """Open a file by the command `run`, whatever the judge says."""
        with bundle_with(self._bundle, self._name, data) as bundle:
            command = ["run", str(bundle), "-p", "the cat", "-n", "3", "--weight-cache", "memory", "--no-progress"]
            return in_child(lambda: cli.main([*command, *self._arguments]))
