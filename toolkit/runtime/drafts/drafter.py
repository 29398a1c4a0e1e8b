"""Drafts from the bundle's drafter: a small graph that guesses a token from the last one and the state before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import DRAFTER, EMBEDDER, TextRecord
from toolkit.bundle.signatures import draft_signature
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, Buffer, Call, Model, ModelFile, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.kv_buffers import BLOCKED
from toolkit.runtime.memory import FilePages

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

NO_CACHES: Mapping[str, Buffer] = MappingProxyType({})


class Embeddings:
    """Looks up token embeddings in a bundle's `embedder.tflite`, scaled as for the decoder."""

    def __init__(self, model: Model, text: TextRecord, width: int | None = None) -> None:
        """`model`: the opened embedder. `width`: how many are looked up at a time, one of the text record's step sizes;
        None for the largest."""
        self._width = width or text.step_sizes[-1]
        self._hidden = text.hidden_size
        name = f"embed_{self._width}"
        self._ids = model.input_buffer(name, "ids")
        self._rows = model.output_buffer(name, "embeddings")
        self._embed = model.bind(name, {"ids": self._ids}, {"embeddings": self._rows})

    @classmethod
    def of_bundle(cls, bundle: Bundle, runtime: Runtime, width: int | None = None) -> Embeddings:
        """Open the embedder of a bundle."""
        file = bundle.model_file(EMBEDDER)
        with FilePages(file.path) as pages:
            model = runtime.open(file, "table")
        pages.expect_random_reads()
        return cls(model, bundle.manifest.text, width)

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

    def __init__(
        self, file: ModelFile, runtime: Runtime, caches: Mapping[str, Buffer] = NO_CACHES, buckets: Sequence[int] = ()
    ) -> None:
        """`caches`: the buffers of the model's KV caches, made in this runtime, for a drafter that reads some of them:
        it reads them in place. `buckets`: the context buckets in which it has signatures."""
        self._model = runtime.open(file, "small")
        self._buckets = tuple(buckets)
        smallest = self._buckets[0] if self._buckets else None
        # LiteRT allocates memory for a signature once it is asked about it: for the whole context, as late as possible.
        name = draft_signature(smallest)
        info = self._model.signature(name)
        self._caches = {key: caches[key] for key in info.inputs if key in caches}
        self._inputs = {
            key: self._model.input_buffer(name, key) for key in info.inputs if key not in self._caches and key != "mask"
        }
        self._outputs = {key: self._model.output_buffer(name, key) for key in info.outputs}
        self._calls: dict[int | None, tuple[Call, Buffer]] = {}
        self._call = self._of_bucket(smallest)
        self._position(0)

    def begin(self, seen: int) -> None:
        """Prepare drafts after `seen` tokens, which are in the caches, and one more, which is not.

        A drafter without caches, as fitted ones are, needs no preparation.
        """
        if not self._caches:
            return
        self._call = self._of_bucket(next((bucket for bucket in self._buckets if seen <= bucket), None))
        self._position(seen)

    def guess(self, embedding: F32, state: F32) -> tuple[int, F32]:
        """The next token after one with this embedding, f32[hidden], and the state f32[hidden] to continue from.

        `state`: f32[hidden], the row whose logits gave the token with that embedding.
        """
        self._inputs["activations"].write(np.concatenate([embedding, state]))
        call, _ = self._call
        call()
        token = int(np.argmax(self._outputs["logits"].read()))
        return token, self._outputs["projected_activations"].read().reshape(-1)

    def _position(self, seen: int) -> None:
        """Write the position of the last of `seen` tokens, and a mask that blocks the rows after it."""
        _, mask = self._call
        values = np.full(mask.info.shape, BLOCKED, np.float32)
        values[..., :seen] = 0
        mask.write(values)
        self._inputs["input_pos"].write(np.array([max(seen - 1, 0)], np.int32))

    def _of_bucket(self, bucket: int | None) -> tuple[Call, Buffer]:
        """The call that reads the first `bucket` positions of the caches, or all, and its mask; made at first use."""
        if bucket not in self._calls:
            name = draft_signature(bucket)
            mask = self._model.input_buffer(name, "mask")
            call = self._model.bind(name, {**self._inputs, **self._caches, "mask": mask}, self._outputs)
            self._calls[bucket] = call, mask
        return self._calls[bucket]


class DrafterSource:
    """A source of drafts from the group `drafter` of a bundle; it serves one answer after another."""

    def __init__(self, model: DraftModel, embedding: Embeddings, close: Callable[[], None] = lambda: None) -> None:
        """`close`: frees what was opened for it alone."""
        self._model = model
        self._embedding = embedding
        self._close = close

    @classmethod
    def beside(cls, bundle: Bundle, options: BackendOptions) -> DrafterSource:
        """Open a drafter that reads no caches, and the token embeddings, on the CPU, whatever the model runs on."""
        runtime = BACKENDS[0].start(options)
        try:
            model = DraftModel(bundle.model_file(DRAFTER), runtime)
            return cls(model, Embeddings.of_bundle(bundle, runtime, width=1), runtime.close)
        except BaseException:
            runtime.close()
            raise

    def propose(self, ids: Sequence[int], activations: F32 | None, most: int) -> Sequence[int]:
        """Guess one token after another; none after a prompt's last token, whose state is not known."""
        if activations is None:
            return ()
        drafts: list[int] = []
        token, state = ids[-1], activations
        self._model.begin(len(ids) - 1)
        for _ in range(most):
            token, state = self._model.guess(self._embedding(np.array([token]))[0], state)
            drafts.append(token)
        return drafts

    def close(self) -> None:
        """Free all memory; may be called twice."""
        self._close()
