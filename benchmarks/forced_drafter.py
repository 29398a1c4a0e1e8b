"""A drafter for LiteRT-LM's engine that is right as often as it is told, at the cost of a fitted one.

The engine tells a drafter no token. But it passes `input_pos`, the same for all drafts of a step, and passes what the
drafter writes as its state on to the next draft of the step: so a drafter can count, and look its drafts up in a table
by position. It counts in multiples of `COUNT`, which the model's own states do not reach.

The arithmetic of a fitted drafter of the model's dimensions, with random matrices, is in the graph too. Its results are
added after a multiplication by `TRACE`, which leaves them too small to change anything. Beyond a fitted drafter's cost,
each draft takes four passes over the logits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.lock import DrafterSettings
from toolkit.bundle.manifest import DRAFTER, TextRecord
from toolkit.drafting.fit import Drafter
from toolkit.drafting.graph import declare_inputs, guess, write_drafter
from toolkit.drafting.make import HEAD_TOKENS
from toolkit.litertlm import schema
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.litertlm.exported_drafter import ExportedDrafter
from toolkit.litertlm.reader import read_litertlm
from toolkit.runtime.speculative import DraftStatistics
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value

F32 = NDArray[np.float32]

COUNT = 2.0**20
"""How much is added to the first element of the state for each draft of a step."""
TRACE = 1e-9
AHEAD = 2
"""How many positions after `input_pos`, that of the last token in the caches, the first draft is: the token that was
drawn last, which is not in the caches yet, is between them."""


def random_drafter(text: TextRecord) -> Drafter:
    """Random matrices in the shape of a fitted drafter; they do not see the element of the state that counts."""
    draw = np.random.default_rng(0)
    width, units = text.hidden_size, DrafterSettings().hidden_units

    def matrix(rows: int, columns: int) -> F32:
        return draw.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))

    scale = np.ones(2 * width, np.float32)
    scale[width] = 0
    head_ids = np.arange(min(HEAD_TOKENS, text.text_ids))
    layers = matrix(units, 2 * width + 1), matrix(width, 2 * width + units + 1)
    return Drafter(scale, *layers, matrix(len(head_ids), width), head_ids)


def forced_graph(table: Sequence[int], drafter: Drafter, text: TextRecord) -> Graph:
    """The graph of a drafter that offers for each position the token that `table` has there; 0 behind its end."""
    graph = Graph()
    activations, position = declare_inputs(graph, text)

    def number(value: float) -> Value:
        return graph.constant(np.full((1, 1, 1), value, np.float32))

    hidden, vocabulary = text.hidden_size, text.vocab_size
    counted = ops.mul(ops.take(activations, 2, hidden, hidden + 1), number(1 / COUNT))
    drafted = ops.relu(ops.floor(ops.add(counted, number(0.5))))
    tokens = np.zeros(text.context + AHEAD + (text.draft_tokens or 0), np.float32)
    tokens[: len(table)] = table
    ahead = ops.add(ops.reshape(ops.cast(drafted, DType.INT32), (1,)), graph.ints([AHEAD]))
    token = ops.reshape(ops.gather(graph.constant(tokens), ops.add(position, ahead), 0), (1, 1, 1))
    distance = ops.abs_(ops.sub(graph.constant(np.arange(vocabulary, dtype=np.float32).reshape(1, 1, -1)), token))
    state, logits = guess(drafter, activations, vocabulary)
    first = np.zeros((1, 1, hidden), np.float32)
    first[..., 0] = COUNT
    count = ops.mul(ops.add(drafted, number(1)), graph.constant(first))
    graph.output("projected_activations", ops.add(count, ops.mul(state, number(TRACE))))
    graph.output("logits", ops.sub(ops.mul(logits, number(TRACE)), distance))
    return graph


def write_forced_drafter(path: Path, table: Sequence[int], text: TextRecord) -> None:
    """Write the drafter; all files for one model are equally long and differ only in the table."""
    write_drafter(path, random_drafter(text), text, build=partial(forced_graph, tuple(table)))


def export_with_drafter(bundle: Path, path: Path, drafter: Path) -> None:
    """Export the text group of a bundle with `draft_tokens`, with a drafter's file as its drafter."""

    def copy(folder: Path) -> ExportedDrafter:
        made = folder / DRAFTER
        made.write_bytes(drafter.read_bytes())
        return ExportedDrafter(made, DrafterSettings())

    export_litertlm(bundle, path, ExportOptions(groups=("text",), drafter=copy, force=True))


def replace_drafter(path: Path, drafter: Path) -> None:
    """Overwrite the drafter in an export with another one that is as long.

    The file keeps its time, so that the engine finds its packed weights again; its hashes are wrong then, but the
    engine does not read them.
    """
    section = next(section for section in read_litertlm(path).sections if section.label == schema.DRAFTER)
    data = drafter.read_bytes()
    assert len(data) == section.end - section.begin, "the drafters of one model are equally long"
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(section.begin)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def drawn(right: float, count: int) -> list[bool]:
    """For each token of an answer whether a draft of it is right: each with the given probability, always the same."""
    return [number < right for number in np.random.default_rng(0).random(count).tolist()]


def offered(answer: Sequence[int], right: Sequence[bool], vocabulary: int) -> list[int]:
    """The tokens that are drafted of an answer: its own, or where a draft is to be wrong the next id.

    >>> offered([7, 8, 9], [True, False, False], 10)
    [7, 9, 0]
    """
    return [token if good else (token + 1) % vocabulary for token, good in zip(answer, right, strict=True)]


def expected(right: Sequence[bool], drafts: int, count: int) -> DraftStatistics:
    """What the engine does for at least `count` tokens: a step without drafts, then `drafts` in each step.

    A draft counts only if all before it in the step were right; the token after the last one that counts is the
    model's own, and the next step drafts what follows it.

    >>> expected([True] * 12, 3, 6)  # 1 + 4 + 4 tokens
    DraftStatistics(steps=3, offered=6, accepted=6)
    >>> expected([True, True, False, True, True, True, True], 3, 6)  # 1 + 2 + 4
    DraftStatistics(steps=3, offered=6, accepted=4)
    >>> expected([False] * 9, 3, 6)
    DraftStatistics(steps=6, offered=15, accepted=0)
    """
    done, steps, accepted = 1, 1, 0
    while done < count:
        good = sum(1 for _ in takewhile(bool, right[done : done + drafts]))
        done, steps, accepted = done + good + 1, steps + 1, accepted + good
    return DraftStatistics(steps, drafts * (steps - 1), accepted)
