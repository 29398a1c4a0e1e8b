"""How many drafts of a drafter's file a model would accept, on text that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import EMBEDDER
from toolkit.bundle.signatures import DRAFT
from toolkit.drafting.examples import Examples
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile, Runtime
from toolkit.runtime.bundle import Bundle

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Embeddings:
    """Looks up token embeddings in a bundle's `embedder.tflite`, as a decoder gets them."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        text = bundle.manifest.text
        self._width = text.step_sizes[-1]
        self._hidden = text.hidden_size
        name = f"embed_{self._width}"
        model = runtime.open(bundle.model_file(EMBEDDER), "table")
        self._ids = model.input_buffer(name, "ids")
        self._rows = model.output_buffer(name, "embeddings")
        self._embed = model.bind(name, {"ids": self._ids}, {"embeddings": self._rows})

    def __call__(self, ids: I64) -> F32:
        """f32[n, hidden] of i64[n]."""
        found = np.empty((len(ids), self._hidden), np.float32)
        padded = np.zeros(self._width, np.int32)
        for start in range(0, len(ids), self._width):
            some = ids[start : start + self._width]
            padded[: len(some)] = some
            self._ids.write(padded)
            self._embed()
            found[start : start + len(some)] = self._rows.read()[0, : len(some)]
        return found


def measure_acceptance(
    file: ModelFile,
    embedding: Callable[[I64], F32],
    examples: Examples,
    rows: I64,
    drafts: int,
    options: BackendOptions,
) -> tuple[float, ...]:
    """The part of `rows` at which the first draft is accepted, the first two, and so on.

    `rows`: examples that are followed by `drafts` - 1 more of their passage.
    """
    runtime = BACKENDS[0].start(options)
    try:
        model = runtime.open(file, "small")
        inputs = {name: model.input_buffer(DRAFT, name) for name in model.signature(DRAFT).inputs}
        outputs = {name: model.output_buffer(DRAFT, name) for name in model.signature(DRAFT).outputs}
        call = model.bind(DRAFT, inputs, outputs)
        for buffer in inputs.values():
            buffer.write(np.zeros(buffer.info.shape, buffer.info.dtype))
        accepted = np.zeros(drafts, np.int64)
        for row in rows.tolist():
            token, state = examples.tokens[row], examples.states[examples.at[row] - 1]
            for draft in range(drafts):
                both = np.concatenate([embedding(np.array([token]))[0], state])
                inputs["activations"].write(both)
                call()
                token = int(np.argmax(outputs["logits"].read()))
                if token != examples.following[row + draft]:
                    break
                accepted[draft] += 1
                state = outputs["projected_activations"].read().reshape(-1)
    finally:
        runtime.close()
    return tuple(float(count) / len(rows) for count in accepted)
