"""Copies some signatures of a .tflite file into another, under new names; their weights are copied once, unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from toolkit.base.errors import EnvironmentFault, GraphError
from toolkit.base.files import write_at
from toolkit.base.layout import MATRIX_ALIGNMENT, PAGE_BYTES, align_up
from toolkit.tflite.reader import TfliteContent, read_tflite
from toolkit.tflite.records import BufferRecord, ModelRecord, SubgraphRecord
from toolkit.tflite.rms_norms import with_composite_norms
from toolkit.tflite.schema_pack import pack

_COPY_BYTES = 8 << 20


def select_signatures(
    source: Path,
    target: Path,
    names: Mapping[str, str],
    change: Callable[[SubgraphRecord], SubgraphRecord] | None = None,
    *,
    composite_norms: bool = False,
    without_tables: bool = False,
) -> None:
    """Write to `target` the signatures of `source` in `names` (new name to old name), in that order.

    `change`, if given, is applied to the subgraph of each; then, with `composite_norms`, RMS norms become composites.
    Buffers that no selected signature uses are left out. The others are stored by their numbers. With `without_tables`,
    for a source without lookup tables, they are stored in its order: the target is then the file that the source would
    be if it had been written with these signatures alone.
    The target is written in place: the caller renames it when it is complete. GraphError if a signature is missing, if
    a selected one calls one that is not selected, or if the source says what a copy would lack.
    """
    content = read_tflite(source)
    if content.model.besides:
        found = f"{' and '.join(content.model.besides)}, which a copy would lack"
        raise GraphError(file=source, found=found, remedy="convert it again")
    graphs = tuple(replace(_renumbered(content, names, old), name=new) for new, old in names.items())
    if change is not None:
        graphs = tuple(map(change, graphs))
    used = sorted({tensor.buffer for graph in graphs for tensor in graph.tensors} | {0})
    renumbered = {old: new for new, old in enumerate(used)}
    graphs = tuple(
        replace(g, tensors=tuple(replace(t, buffer=renumbered[t.buffer]) for t in g.tensors)) for g in graphs
    )
    buffers = [content.model.buffers[i] for i in used]
    model = ModelRecord(graphs, tuple(buffers), tuple(names))
    if composite_norms:
        model = with_composite_norms(model)
        buffers = list(model.buffers)
    placed = _place(buffers, len(pack(model)), without_tables=without_tables)
    header = pack(replace(model, buffers=placed))
    with open(source, "rb") as read, open(target, "wb") as write:
        write_at(write.fileno(), header, 0)
        for old, new in zip(buffers, placed, strict=True):
            if old.offset_bytes:
                _copy(read.fileno(), old.offset_bytes, write.fileno(), new.offset_bytes, old.size_bytes)


def _renumbered(content: TfliteContent, names: Mapping[str, str], old_name: str) -> SubgraphRecord:
    """A subgraph whose operators call other subgraphs by their indices among the selected signatures."""
    places = {content.index(old): place for place, old in enumerate(names.values())}
    graph = content.graph(old_name)
    for op in graph.operators:
        for index in op.called():
            if index not in places:
                missing = content.model.subgraphs[index].name
                place = f"{old_name} op {op.builtin}"
                raise GraphError(
                    place, file=content.path, found=f"it calls the subgraph {missing}, which is not selected"
                )
    return replace(graph, operators=tuple(op.calling(places) for op in graph.operators))


def _place(buffers: list[BufferRecord], header_bytes: int, *, without_tables: bool = False) -> tuple[BufferRecord, ...]:
    """The buffers with new offsets after the header, in the order of their numbers; page-aligned ones stay so.

    With `without_tables`, they are in the order of their old offsets, and none needs a page of its own.
    """
    placed = list(buffers)
    end = header_bytes
    for n in sorted(range(len(buffers)), key=lambda n: buffers[n].offset_bytes if without_tables else n):
        buffer = buffers[n]
        if buffer.offset_bytes:
            border = MATRIX_ALIGNMENT if without_tables or buffer.offset_bytes % PAGE_BYTES else PAGE_BYTES
            offset = align_up(end, border)
            end = offset + buffer.size_bytes
            placed[n] = replace(buffer, offset_bytes=offset)
    return tuple(placed)


def _copy(source: int, source_offset: int, target: int, target_offset: int, size: int) -> None:
    done = 0
    while done < size:
        data = os.pread(source, min(_COPY_BYTES, size - done), source_offset + done)
        if not data:
            raise EnvironmentFault("weights", found=f"the end of the file after {done} bytes", wanted=f"{size} bytes")
        write_at(target, data, target_offset + done)
        done += len(data)
