"""Drafts from the bundle's drafter: a small graph that guesses a token from the last one and the state before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import DRAFTER, EMBEDDER
from toolkit.bundle.signatures import DRAFT
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.memory import FilePages

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Embeddings:
    """Looks up token embeddings in a bundle's `embedder.tflite`, scaled as for the decoder."""

    def __init__(self, bundle: Bundle, runtime: Runtime, width: int | None = None) -> None:
        """`width`: how many are looked up at a time, one of the text record's step sizes; None for the largest."""
        text = bundle.manifest.text
        self._width = width or text.step_sizes[-1]
        self._hidden = text.hidden_size
        name = f"embed_{self._width}"
        file = bundle.model_file(EMBEDDER)
        model = runtime.open(file, "table")
        self._ids = model.input_buffer(name, "ids")
        self._rows = model.output_buffer(name, "embeddings")
        self._embed = model.bind(name, {"ids": self._ids}, {"embeddings": self._rows})
        FilePages(file.path).expect_random_reads()

    def __call__(self, ids: I64) -> F32:
        """The embeddings f32[n, hidden] of ids i64[n]."""
        found = np.empty((len(ids), self._hidden), np.float32)
        padded = np.zeros(self._width, np.int32)
        for start in range(0, len(ids), self._width):
            some = ids[start : start + self._width]
            padded[: len(some)] = some
            self._ids.write(padded)
            self._embed()
            found[start : start + len(some)] = self._rows.read()[0, : len(some)]
        return found


class DraftModel:
    """An opened drafter (docs/formats/manifest.md, signature `draft`)."""

    def __init__(self, file: ModelFile, runtime: Runtime) -> None:
        model = runtime.open(file, "small")
        info = model.signature(DRAFT)
        inputs = {name: model.input_buffer(DRAFT, name) for name in info.inputs}
        outputs = {name: model.output_buffer(DRAFT, name) for name in info.outputs}
        for buffer in inputs.values():  # positions and mask, which fitted drafters do not use, stay 0
            buffer.write(np.zeros(buffer.info.shape, buffer.info.dtype))
        self._call = model.bind(DRAFT, inputs, outputs)
        self._both = inputs["activations"]
        self._logits, self._state = outputs["logits"], outputs["projected_activations"]

    def guess(self, embedding: F32, state: F32) -> tuple[int, F32]:
        """The next token after one with this embedding, f32[hidden], and the state f32[hidden] to continue from.

        `state`: f32[hidden], the row whose logits gave the token with that embedding.
        """
        self._both.write(np.concatenate([embedding, state]))
        self._call()
        return int(np.argmax(self._logits.read())), self._state.read().reshape(-1)


class DrafterSource:
    """A source of drafts from the group `drafter` of a bundle; it serves one answer after another."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        """Open the drafter and the token embeddings on the CPU, whatever the model runs on."""
        self._runtime = BACKENDS[0].start(options)
        try:
            self._model = DraftModel(bundle.model_file(DRAFTER), self._runtime)
            self._embedding = Embeddings(bundle, self._runtime, width=1)
        except BaseException:
            self.close()
            raise

    def propose(self, ids: Sequence[int], activations: F32 | None, most: int) -> Sequence[int]:
        """Guess one token after another; none after a prompt's last token, whose state is not known."""
        if activations is None:
            return ()
        drafts: list[int] = []
        token, state = ids[-1], activations
        for _ in range(most):
            token, state = self._model.guess(self._embedding(np.array([token]))[0], state)
            drafts.append(token)
        return drafts

    def close(self) -> None:
        """Free all memory; may be called twice."""
        self._runtime.close()
