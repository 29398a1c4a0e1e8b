"""A conversation with a bundle on this machine: tokens, images and sounds in, logits out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import UsageError
from toolkit.bundle.manifest import AUDIO_ENCODER, EMBEDDER, TEXT_DECODER, VISION_ENCODER, SizeRecord
from toolkit.bundle.ple_shards import is_shard_name
from toolkit.runtime.backends import BACKENDS, find_backend
from toolkit.runtime.backends.interface import BackendOptions, Buffer, Call, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.kv_buffers import KvBuffers
from toolkit.runtime.media_prompt import Span, first_difference
from toolkit.runtime.memory import FilePages, Memory, read_memory, release_freed_memory
from toolkit.runtime.ple_lookup import DEFAULT_CACHE_BYTES, PleTable
from toolkit.runtime.prefill import plan_prefill
from toolkit.runtime.towers import Towers
from toolkit.runtime.weight_cache import WeightCache, default_directory

LARGE = (TEXT_DECODER, VISION_ENCODER, AUDIO_ENCODER)
"""The files whose weights a backend arranges for its hardware, and keeps so."""

BLOCKED = np.float32(-0.7 * np.finfo(np.float32).max)
"""A mask's value where a position may not be seen (docs/formats/manifest.md)."""


def default_threads() -> int:
    """The cores that this process may use, at most 4: beyond, a decode step waits for memory."""
    return min(4, len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a bundle is run."""

    size: str | None = None
    """One of the bundle's sizes; None for its default."""
    threads: int = field(default_factory=default_threads)
    weight_cache: WeightCache = field(default_factory=default_directory)
    """Where to keep weights that the backend has rearranged for its hardware."""
    backend: str = BACKENDS[0].name
    """What runs the graphs: a name of `toolkit.runtime.backends`."""
    ple_in_ram: bool = False
    """Copy the per-layer embeddings to memory, for comparison; else rows are read when tokens need them."""
    ple_cache_bytes: int = DEFAULT_CACHE_BYTES
    """Rows kept for tokens that come again."""
    stage_ended: Callable[[str], None] = field(default=lambda _: None)
    """Called with the name of each stage when it ends: load, vision, audio, prefill, decode."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError("threads", found=self.threads, wanted="a number from 1")
        find_backend(self.backend)

    @property
    def backend_options(self) -> BackendOptions:
        """What of it is the backend's affair."""
        return BackendOptions(self.threads, self.weight_cache)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The input buffers of signatures of one width, and the call that fills the token embeddings.

    `masks` holds one for each context bucket that was used.
    """

    ids: Buffer
    embed: Call
    decoder: dict[str, Buffer]
    masks: dict[int, Buffer]


class Session:
    """Holds the KV caches and which tokens are in them: after a fault or an interrupt, those taken in by then."""

    def __init__(self, bundle: Bundle, settings: SessionSettings | None = None) -> None:
        settings = settings or SessionSettings()
        self.bundle = bundle
        self.text = bundle.manifest.text
        self._size = settings.size or bundle.manifest.default_size
        self._size_record: SizeRecord = bundle.manifest.size(settings.size)
        files = {name: bundle.model_file(name) for name in (TEXT_DECODER, EMBEDDER)}
        self._backend = find_backend(settings.backend)
        self._backend_options = settings.backend_options
        self.ple = PleTable(bundle.ple_shards(), cache_bytes=settings.ple_cache_bytes, in_ram=settings.ple_in_ram)
        self.stage_ended = settings.stage_ended
        self._runtime = self._backend.start(self._backend_options)
        # Also where nobody closes it, in the end at Python's: a backend may have something to say of being let go.
        self._close = weakref.finalize(self, _close, self._runtime, self.ple)
        try:
            self._decoder = self._runtime.open(files[TEXT_DECODER], "large")
            self._embedder = self._runtime.open(files[EMBEDDER], "table")
            # The backend has rearranged the model's weights: their own pages would count as this process's for good.
            FilePages(files[TEXT_DECODER].path).release()
            release_freed_memory()
            self._embedding_table = FilePages(files[EMBEDDER].path)
            self._embedding_table.expect_random_reads()
            self._caches = KvBuffers(self._decoder, self._size_record.decode, self.text)
        except BaseException:
            self.close()
            raise
        self._ids: list[int] = []
        self._inputs: dict[int, _Inputs] = {}
        self._calls: dict[str, Call] = {}
        self.towers = Towers(bundle, self._backend, self._backend_options, ended=self.stage_ended)
        self._spans: tuple[Span, ...] = ()
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._logits = self._decoder.output_buffer(self._size_record.decode, "logits")
        self._padded = np.zeros(max(self.text.prefill_sizes, default=1), np.int32)
        self._mask = np.empty(len(self._padded) * self.text.context, np.float32)

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> str:
        """The size that runs."""
        return self._size

    @property
    def context(self) -> int:
        """Positions that the caches hold."""
        return self.text.context

    @property
    def position(self) -> int:
        """Positions in use."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens behind us."""
        return tuple(self._ids)

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        """Parameter groups in the manifest's order: those of the text, and the towers that some prompt has needed."""
        manifest = self.bundle.manifest
        of_text = {TEXT_DECODER, EMBEDDER, *filter(is_shard_name, manifest.files)}
        return tuple(
            name for name, group in manifest.groups.items() if name in self.towers.loaded or of_text & set(group.files)
        )

    def memory(self) -> Memory:
        """What this process holds now; each group's files with those that the backend has made of their weights."""
        groups: dict[str, list[Path]] = {}
        for name, group in self.bundle.manifest.groups.items():
            groups[name] = [self.bundle.path / file for file in group.files]
            large = [self.bundle.described_file(file) for file in group.files if file in LARGE]
            kept = [self._backend.kept_file(file, self._backend_options) for file in large]
            groups[name] += [path for path in kept if path is not None and path.exists()]
        return read_memory(groups)

    def use(self, size: str) -> None:
        """Go on with another size of the bundle: all sizes read and write the same caches."""
        self._size_record = self.bundle.manifest.size(size)
        self._size = size

    def truncate(self, position: int) -> None:
        """Forget the tokens from `position` on; UsageError when the caches have lost what came before it."""
        if not 0 <= position <= self.position:
            raise UsageError("position", found=position, wanted=f"0 to {self.position}")
        if position < self.position and not self._caches.can_return_to(position):
            raise UsageError("position", found=position, wanted="0, or one within reach of the sliding windows' caches")
        if position == 0:
            self._caches.forget()
        del self._ids[position:]
        self._spans = tuple(span for span in self._spans if span.start < position)
        self._rows.clear()

    def close(self) -> None:
        """Free everything; the session cannot be used any more."""
        self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- computing -------------------------------------------------------------------------------------------------

    def prefill(self, ids: Sequence[int]) -> None:
        """Take tokens in without asking what follows them."""
        self._require(ids)
        self.ple.prefetch(ids)
        done = 0
        for width, count in plan_prefill(len(ids), self.text.prefill_sizes, self.context - self.position):
            self._step(width, ids[done : done + count])
            done += count

    def decode(self, token: int) -> NDArray[np.float32]:
        """Take one token in; the logits of what follows it, f32[vocabulary]."""
        self._require((token,))
        self._step(1, (token,))
        logits: NDArray[np.float32] = self._logits.read().reshape(-1)
        return logits

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Take a prompt in: all but the last token by prefill, the last by decode; the logits of what follows it."""
        self._require(ids)
        if not ids:
            raise UsageError("prompt", found="no tokens")
        self.prefill(ids[:-1])
        return self.decode(ids[-1])

    def rewind_to(self, ids: Sequence[int], spans: Sequence[Span] = ()) -> int:
        """Keep what the conversation has in common with `ids`, but not all of them; how many tokens that are.

        Nothing is kept when that lies further back than the caches of sliding windows reach. The towers then embed the
        images and sounds of `spans` that are still to be taken in, and the tokens of their own tables.
        """
        common = min(self._common_tokens(ids), first_difference(self._spans, spans, len(ids)))
        if common < self.position and not self._caches.can_return_to(common):
            common = 0
        self.truncate(common)
        self._require(ids[common:])
        self._rows = self.towers.rows(ids, spans, common)
        self._spans = tuple(spans)
        return common

    def _common_tokens(self, ids: Sequence[int]) -> int:
        common = 0
        while common < min(self.position, len(ids) - 1) and self._ids[common] == ids[common]:
            common += 1
        return common

    def logits_for(self, ids: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """A new conversation of exactly these tokens: the logits that follow each of its second half.

        The first half runs through prefill, the rest through decode, so both are judged. Returns the first position
        and f32[len(ids) - first, vocabulary].
        """
        self.truncate(0)
        self._require(ids)
        first = len(ids) // 2
        self.prefill(ids[:first])
        rows = np.empty((len(ids) - first, self.text.vocab_size), np.float32)
        for row, token in zip(rows, ids[first:], strict=True):
            row[:] = self.decode(token)
        return first, rows

    # --- one call --------------------------------------------------------------------------------------------------

    def _require(self, ids: Sequence[int]) -> None:
        """Faults are found before any work."""
        if not self._close.alive:
            raise UsageError("session", found="it is closed", remedy="open another")
        if self.position + len(ids) > self.context:
            raise UsageError(
                "conversation",
                found=f"{self.position + len(ids)} tokens",
                wanted=f"at most {self.context}, the bundle's context",
                remedy="shorten it, or convert with a larger --context",
            )
        for token in ids:
            if not 0 <= token < self.text.vocab_size:
                raise UsageError("token id", found=token, wanted=f"0 to {self.text.vocab_size - 1}")

    def _step(self, width: int, ids: Sequence[int]) -> None:
        """Run one signature: `ids` at the next positions, the rest of its width padding."""
        inputs = self._inputs_of(width)
        bucket = self._bucket_of(width)
        padded, mask = self._padded[:width], self._mask[: width * bucket].reshape(width, bucket)
        padded[:] = 0
        padded[: len(ids)] = ids
        inputs.ids.write(padded)
        inputs.embed()
        # With a row the kernel maps what it has around it: after a long prompt, half the table would count as ours.
        self._embedding_table.release()
        self._place_rows(inputs.decoder["embeddings"], len(ids))
        per_layer = inputs.decoder["per_layer_embeddings"]
        rows = self.ple.lookup(ids)
        per_layer.write(rows if len(ids) == width else np.resize(rows, per_layer.info.shape))
        # Padding stands at position 0 and sees nothing; its cache rows are written again before anyone sees them.
        mask.fill(BLOCKED)
        padded[:] = 0
        for row in range(len(ids)):
            padded[row] = self.position + row
            mask[row, : self.position + row + 1] = 0
        inputs.decoder["input_pos"].write(padded)
        call = self._call_of(width, bucket)
        inputs.masks[bucket].write(mask)
        self._caches.note(self.position + width)
        call()
        self._ids.extend(ids)

    def _place_rows(self, embeddings: Buffer, count: int) -> None:
        """Put the towers' rows over the embedder's, of the next `count` positions; each is needed once."""
        places = [row for row in range(count) if self.position + row in self._rows]
        if places:
            values = embeddings.read()
            for row in places:
                values[0, row] = self._rows.pop(self.position + row)
            embeddings.write(values)

    def _bucket_of(self, width: int) -> int:
        """The smallest part of the context with a signature of this width that holds the next `width` positions."""
        end = self.position + width
        return next((bucket for bucket in self.text.buckets(width) if end <= bucket), self.context)

    def _call_of(self, width: int, bucket: int) -> Call:
        """The current size's decode for a width of 1, else its prefill."""
        name = self._size_record.signature(width, None if bucket == self.context else bucket)
        inputs = self._inputs_of(width)
        if bucket not in inputs.masks:
            inputs.masks[bucket] = self._decoder.input_buffer(name, "mask")
        if name not in self._calls:
            caches = self._caches.buffers
            outputs = {**caches, "logits": self._logits} if width == 1 else caches
            bound = {**inputs.decoder, "mask": inputs.masks[bucket], **caches}
            self._calls[name] = self._decoder.bind(name, bound, outputs)
        return self._calls[name]

    def _inputs_of(self, width: int) -> _Inputs:
        """Made when a width is first used: a wide prefill's mask alone takes megabytes."""
        if width not in self._inputs:
            name, embed = self._size_record.signature(width), f"embed_{width}"
            kinds = ("embeddings", "per_layer_embeddings", "input_pos")
            decoder = {kind: self._decoder.input_buffer(name, kind) for kind in kinds}
            ids = self._embedder.input_buffer(embed, "ids")
            # The embedder writes straight into the decoder's input.
            call = self._embedder.bind(embed, {"ids": ids}, {"embeddings": decoder["embeddings"]})
            self._inputs[width] = _Inputs(ids, call, decoder, {})
        return self._inputs[width]


def _close(runtime: Runtime, ple: PleTable) -> None:
    runtime.close()
    ple.close()
