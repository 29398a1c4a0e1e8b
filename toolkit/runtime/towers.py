"""Runs the vision and audio towers: each is loaded when a request needs it, and freed when its work is done."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import TOWER_FILES, AudioRecord, Manifest, VisionRecord
from toolkit.media.pixels import pixels
from toolkit.runtime.backends.interface import Backend, BackendOptions, Buffer, Model, ModelFile, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Medium, Span, TowerName

CACHE_BYTES = 64 << 20
"""The size of the cache of embeddings for images and sounds: about 30 images of 256 rows of 2,048 numbers."""

F32 = NDArray[np.float32]


class LoadedTower(Protocol):
    """The vision or the audio tower in memory."""

    def embed(self, medium: Medium) -> F32:
        """Compute the embeddings f32[soft tokens, hidden] of an image or a piece of a sound."""

    def token(self, token: int) -> F32:
        """The embedding f32[hidden] of a token id in the tower's own table."""


class Towers:
    """Embeds images, sounds and their special tokens; `loaded`: the towers that were needed so far."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: BackendOptions,
        *,
        ended: Callable[[TowerName], None] | None = None,
    ) -> None:
        """Opens no file yet. `ended` is called with the name of each tower when it is freed."""
        self.loaded: set[TowerName] = set()
        self._bundle = bundle
        self._backend = backend
        self._options = options
        self._ended = ended
        self._cache: OrderedDict[str, F32] = OrderedDict()

    def rows(self, ids: Sequence[int], spans: Sequence[Span], first: int) -> dict[int, F32]:
        """The embeddings f32[hidden] that come from towers rather than the embedder, by position, from `first` on.

        Each tower that is needed is loaded once; only one is in memory at a time.
        """
        spans = [span for span in spans if span.end > first]
        covered = {place for span in spans for place in range(span.start, span.end)}
        rows: dict[int, F32] = {}
        for group, record in _records(self._bundle.manifest).items():
            places = [p for p in range(first, len(ids)) if p not in covered and ids[p] in record.table]
            media = {span.medium.key: span.medium for span in spans if span.medium.group == group}
            embedded, tokens = self._compute(group, media.values(), {ids[place] for place in places})
            rows |= {place: tokens[ids[place]] for place in places}
            for span in spans:
                if span.medium.group == group:
                    found = embedded[span.medium.key]
                    rows |= {p: found[p - span.start] for p in range(max(first, span.start), span.end)}
        return rows

    def _compute(
        self, group: TowerName, media: Collection[Medium], tokens: set[int]
    ) -> tuple[dict[str, F32], dict[int, F32]]:
        """The embeddings of media by their key, and of tokens by their id."""
        found = {medium.key: self._cache[medium.key] for medium in media if medium.key in self._cache}
        missing = [medium for medium in media if medium.key not in found]
        table: dict[int, F32] = {}
        if missing or tokens:
            with self._open(group) as tower:
                found |= {medium.key: tower.embed(medium) for medium in missing}
                table = {token: tower.token(token) for token in sorted(tokens)}
        for key, rows in found.items():
            self._keep(key, rows)
        return found, table

    def _keep(self, key: str, rows: F32) -> None:
        self._cache[key] = rows
        self._cache.move_to_end(key)
        while self._cache and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)

    @contextmanager
    def _open(self, group: TowerName) -> Iterator[LoadedTower]:
        """Load the tower in its own runtime, so that closing it frees all its memory."""
        runtime = self._backend.start(self._options)
        self.loaded.add(group)
        try:
            files = [self._bundle.model_file(name) for name in TOWER_FILES[group]]
            record = _records(self._bundle.manifest)[group]
            yield open_tower(runtime, files, record)
        finally:
            runtime.close()
            if self._ended is not None:
                self._ended(group)


def open_tower(runtime: Runtime, files: Sequence[ModelFile], record: VisionRecord | AudioRecord) -> LoadedTower:
    """Open a tower; `files`: its encoder and its adapter, in this order."""
    encoder = runtime.open(files[0], "large")
    adapter = runtime.open(files[1], "small")
    return _Audio(encoder, adapter, record) if isinstance(record, AudioRecord) else _Vision(encoder, adapter)


class _Vision:
    def __init__(self, encoder: Model, adapter: Model) -> None:
        self._images = encoder.input_buffer("encode", "images")
        features = adapter.input_buffer("adapt", "features")
        self._embeddings = adapter.output_buffer("adapt", "embeddings")
        self._encode = encoder.bind("encode", {"images": self._images}, {"features": features})
        self._adapt = adapter.bind("adapt", {"features": features}, {"embeddings": self._embeddings})
        self._table = _Table(adapter)

    def embed(self, medium: Medium) -> F32:
        self._images.write(pixels(medium.values.astype(np.uint8, copy=False)))
        self._encode()
        self._adapt()
        rows: F32 = self._embeddings.read()[0]
        # The last row is the end-of-image token, for runtimes that put all rows into the prompt.
        return rows[:-1]

    def token(self, token: int) -> F32:
        return self._table.row(token)


class _Audio:
    def __init__(self, encoder: Model, adapter: Model, audio: AudioRecord) -> None:
        self._encoder = encoder
        self._adapter = adapter
        self._audio = audio
        self._table = _Table(adapter)

    def embed(self, medium: Medium) -> F32:
        assert medium.mask is not None
        count = len(medium.values)
        length = self._audio.length_for(count)
        encode, adapt = f"encode_{length}", f"adapt_{length}"
        inputs = {name: self._encoder.input_buffer(encode, name) for name in ("src_inputs", "mask")}
        between = {name: self._adapter.input_buffer(adapt, name) for name in ("features", "mask")}
        embeddings = self._adapter.output_buffer(adapt, "embeddings")
        mel = np.zeros((1, length, self._audio.mel_bins), np.float32)
        mel[0, :count] = medium.values
        inputs["src_inputs"].write(mel)
        inputs["mask"].write(np.pad(medium.mask, (0, length - count))[np.newaxis])
        self._encoder.bind(encode, inputs, between)()
        self._adapter.bind(adapt, between, {"embeddings": embeddings})()
        rows: F32 = embeddings.read()[0]
        return rows

    def token(self, token: int) -> F32:
        return self._table.row(token)


class _Table:
    """Looks up embeddings in a tower's own token table."""

    def __init__(self, adapter: Model) -> None:
        self._ids: Buffer = adapter.input_buffer("embed_1", "ids")
        self._embeddings = adapter.output_buffer("embed_1", "embeddings")
        self._embed = adapter.bind("embed_1", {"ids": self._ids}, {"embeddings": self._embeddings})

    def row(self, token: int) -> F32:
        self._ids.write(np.array([[token]], np.int32))
        self._embed()
        row: F32 = self._embeddings.read()[0, 0]
        return row


def _records(manifest: Manifest) -> Mapping[TowerName, VisionRecord | AudioRecord]:
    """The record of each tower that the bundle has."""
    records: dict[TowerName, VisionRecord | AudioRecord | None] = {"vision": manifest.vision, "audio": manifest.audio}
    return {group: record for group, record in records.items() if record is not None}
