"""Runs a conversation with a bundle on this machine: takes tokens, images and sounds, returns logits."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from toolkit.base.activations import Activations, require_activations
from toolkit.base.errors import UsageError
from toolkit.base.freed_memory import release_freed_memory
from toolkit.base.processors import require_threads, usable_processors
from toolkit.bundle.manifest import AUDIO_ENCODER, DRAFTER, EMBEDDER, TEXT_DECODER, VISION_ENCODER, SizeRecord
from toolkit.bundle.ple_shards import is_shard_name
from toolkit.runtime.backends import BACKENDS, find_backend
from toolkit.runtime.backends.interface import BackendOptions, Buffer, Call, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.drafter import DraftModel, Embeddings
from toolkit.runtime.kv_buffers import BLOCKED, KvBuffers
from toolkit.runtime.media_prompt import Span, first_difference
from toolkit.runtime.memory import FilePages, Memory, read_memory
from toolkit.runtime.ple_lookup import DEFAULT_CACHE_BYTES, PleTable
from toolkit.runtime.prefill import plan_prefill
from toolkit.runtime.towers import Towers
from toolkit.runtime.weight_cache import WeightCache, default_directory

LARGE = (TEXT_DECODER, VISION_ENCODER, AUDIO_ENCODER)
"""The files whose weights a backend rearranges for its hardware and keeps in the weight cache."""


def default_threads() -> int:
    """The number of cores that this process may use, at most 4: with more, decode is limited by memory bandwidth."""
    return min(4, usable_processors())


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The settings for running a bundle."""

    size: str | None = None
    """One of the bundle's sizes; None for its default."""
    threads: int = field(default_factory=default_threads)
    weight_cache: WeightCache = field(default_factory=default_directory)
    """Where to keep weights that the backend has rearranged for its hardware."""
    backend: str = BACKENDS[0].name
    """The backend that runs the graphs, by its name in `toolkit.runtime.backends`."""
    activations: Activations = "fp32"
    """The precision in which a GPU computes."""
    ple_in_ram: bool = False
    """Copy the per-layer embeddings to memory, for comparison; otherwise rows are read when tokens need them."""
    ple_cache_bytes: int = DEFAULT_CACHE_BYTES
    """The size of the cache of recently used rows."""
    stage_ended: Callable[[str], None] = field(default=lambda _: None)
    """Called with the name of each stage when it ends: load, vision, audio, prefill, decode."""

    def __post_init__(self) -> None:
        require_threads(self.threads)
        require_activations(self.activations)
        find_backend(self.backend)
        if self.backend == "cpu" and self.activations != "fp32":
            raise UsageError("activations", found=f"{self.activations} on the CPU", wanted="fp32, or the backend gpu")

    @property
    def backend_options(self) -> BackendOptions:
        """The settings that the backend needs."""
        return BackendOptions(self.threads, self.weight_cache, self.activations)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The input buffers of the signatures of one width, and the call that computes the token embeddings.

    `masks` holds one mask buffer for each context bucket used so far.
    """

    ids: Buffer
    embed: Call
    decoder: dict[str, Buffer]
    masks: dict[int, Buffer]


class Session:
    """A conversation: the KV caches and the tokens in them; an error or interrupt keeps the tokens processed so far."""

    def __init__(self, bundle: Bundle, settings: SessionSettings | None = None) -> None:
        settings = settings or SessionSettings()
        self.bundle = bundle
        self.text = bundle.manifest.text
        self._size = settings.size or bundle.manifest.default_size
        self._size_record: SizeRecord = bundle.manifest.size(settings.size)
        files = {name: bundle.model_file(name) for name in (TEXT_DECODER, EMBEDDER)}
        self._backend = find_backend(settings.backend)
        self.backend_options = settings.backend_options
        self.ple = PleTable(bundle.ple_shards(), cache_bytes=settings.ple_cache_bytes, in_ram=settings.ple_in_ram)
        self.stage_ended = settings.stage_ended
        self._runtime = self._backend.start(self.backend_options)
        # Closed when Python ends, at the latest: a backend that is destroyed later may write to stderr.
        self._close = weakref.finalize(self, _close, self._runtime, self.ple)
        try:
            with FilePages(files[TEXT_DECODER].path) as decoder_pages:
                self._decoder = self._runtime.open(files[TEXT_DECODER], "large")
            with FilePages(files[EMBEDDER].path) as self._embedding_table:
                self._embedder = self._runtime.open(files[EMBEDDER], "table")
            self._embedding_table.expect_random_reads()
            drafter = bundle.manifest.drafter
            # A published drafter sees one key more than the model's window has.
            also_read = 0 if drafter is None or drafter.checkpoint is None else 1
            self._caches = KvBuffers(self._decoder, self._size_record.decode, self.text, also_read=also_read)
            self._outputs = {False: self._output_buffers(self._size_record.decode)}
            self._latest = False, 1
            # The backend has a rearranged copy of the weights: the model file's own pages would only take memory.
            # This comes last, because LiteRT reads small constants when it prepares a signature.
            decoder_pages.release()
            release_freed_memory()
        except BaseException:
            self.close()
            raise
        self._ids: list[int] = []
        self._inputs: dict[int, _Inputs] = {}
        self._calls: dict[str, Call] = {}
        self.towers = Towers(bundle, self._backend, self.backend_options, ended=self.stage_ended)
        self._spans: tuple[Span, ...] = ()
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._padded = np.zeros(self.text.step_sizes[-1], np.int32)
        self._mask = np.empty(len(self._padded) * self.text.context, np.float32)

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> str:
        """The name of the size in use."""
        return self._size

    @property
    def context(self) -> int:
        """The number of positions in the caches."""
        return self.text.context

    @property
    def position(self) -> int:
        """The number of positions in use."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens processed so far."""
        return tuple(self._ids)

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        """The parameter groups loaded so far, in the manifest's order: the text groups, and towers that were needed."""
        manifest = self.bundle.manifest
        of_text = {TEXT_DECODER, EMBEDDER, *filter(is_shard_name, manifest.files)}
        return tuple(
            name for name, group in manifest.groups.items() if name in self.towers.loaded or of_text & set(group.files)
        )

    def memory(self) -> Memory:
        """The memory of this process now; the files of a group include the weight cache that the backend made."""
        groups: dict[str, list[Path]] = {}
        for name, group in self.bundle.manifest.groups.items():
            groups[name] = [self.bundle.path / file for file in group.files]
            large = [self.bundle.described_file(file) for file in group.files if file in LARGE]
            kept = [self._backend.kept_file(file, self.backend_options) for file in large]
            groups[name] += [path for path in kept if path is not None and os.path.exists(path)]
        return read_memory(groups)

    def use(self, size: str) -> None:
        """Continue with another size of the bundle: all sizes share the same caches."""
        self._size_record = self.bundle.manifest.size(size)
        self._size = size

    def truncate(self, position: int) -> None:
        """Remove the tokens from `position` on; UsageError if the caches no longer hold what precedes it."""
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
        """Free all memory; the session cannot be used afterwards."""
        self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- computing -------------------------------------------------------------------------------------------------

    def prefill(self, ids: Sequence[int]) -> None:
        """Process tokens without computing logits."""
        self._require(ids)
        self.ple.prefetch(ids)
        done = 0
        for width, count in plan_prefill(len(ids), self.text.prefill_sizes, self.context - self.position):
            self._step(width, ids[done : done + count])
            done += count
        self._runtime.finish()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Process one token, and return the logits of the next, f32[vocabulary]."""
        self._require((token,))
        self._step(1, (token,))
        logits: NDArray[np.float32] = self._output("logits")[0]
        return logits

    def verify(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Process a token and up to `text.draft_tokens` drafts after it; return the logits after each.

        The logits are f32[len(ids), vocabulary]. The drafts count as processed: `truncate` removes wrong ones.
        """
        assert self.text.draft_tokens is not None and len(ids) <= self.text.draft_tokens + 1
        self._require(ids)
        self._step(self.text.draft_tokens + 1, ids, verify=True)
        return self._output("logits")

    def activations(self) -> NDArray[np.float32]:
        """The rows that the logits of the last `decode` or `verify` were computed from, f32[tokens, hidden].

        Only bundles with `text.draft_tokens` have them.
        """
        return self._output("activations")

    def drafter(self) -> tuple[DraftModel, Embeddings]:
        """Open the bundle's drafter beside the model, whose caches it reads in place; it is freed with the session."""
        file = self.bundle.model_file(DRAFTER)
        model = DraftModel(file, self._runtime, self._caches.buffers, self.text.context_buckets)
        return model, Embeddings(self._embedder, self.text, width=1)

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Process a prompt, by prefill and for its last token by decode; return the next logits, f32[vocabulary]."""
        self._require(ids)
        if not ids:
            raise UsageError("prompt", found="no tokens")
        self.prefill(ids[:-1])
        return self.decode(ids[-1])

    def rewind_to(self, ids: Sequence[int], spans: Sequence[Span] = ()) -> int:
        """Keep the tokens that the conversation and `ids` both begin with, but not all of `ids`; return their number.

        No token is kept if that position is further back than the sliding-window caches reach. Then the towers embed
        the images and sounds of `spans` that are not yet processed, and the tokens of their own tables.
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
        """Start a new conversation of exactly these tokens, and return the logits after each of the second half.

        The first half runs through prefill, the rest through decode, so that both are tested. Returns the first
        position of the second half, and f32[len(ids) - first, vocabulary].
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
        """UsageError if the session is closed, the context is too short, or an id is outside the vocabulary."""
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

    def _step(self, width: int, ids: Sequence[int], *, verify: bool = False) -> None:
        """Run one signature: `ids` at the next positions, and padding up to its width."""
        inputs = self._inputs_of(width, verify=verify)
        bucket = self._bucket_of(width, verify=verify)
        padded, mask = self._padded[:width], self._mask[: width * bucket].reshape(width, bucket)
        padded[:] = 0
        padded[: len(ids)] = ids
        inputs.ids.write(padded)
        inputs.embed()
        # The kernel maps cached pages around each row that is read: after a long prompt, half of the table is mapped.
        self._embedding_table.release()
        self._place_rows(inputs.decoder["embeddings"], len(ids))
        per_layer = inputs.decoder["per_layer_embeddings"]
        rows = self.ple.lookup(ids)
        per_layer.write(rows if len(ids) == width else np.resize(rows, per_layer.info.shape))
        # Padding has position 0 and attends to nothing; its cache rows are overwritten before they are used.
        mask.fill(BLOCKED)
        padded[:] = 0
        for row in range(len(ids)):
            padded[row] = self.position + row
            mask[row, : self.position + row + 1] = 0
        inputs.decoder["input_pos"].write(padded)
        call = self._call_of(width, bucket, verify=verify)
        inputs.masks[bucket].write(mask)
        self._caches.note(self.position + width)
        call()
        self._ids.extend(ids)
        if verify or width == 1:
            self._latest = verify, len(ids)

    def _place_rows(self, embeddings: Buffer, count: int) -> None:
        """Replace the embedder's rows with the towers' for the next `count` positions; each is used once."""
        places = [row for row in range(count) if self.position + row in self._rows]
        if places:
            values = embeddings.read()
            for row in places:
                values[0, row] = self._rows.pop(self.position + row)
            embeddings.write(values)

    def _bucket_of(self, width: int, *, verify: bool) -> int:
        """The smallest context bucket with a signature of this width that holds the next `width` positions."""
        end, buckets = self.position + width, self.text.buckets(1 if verify else width)
        return next((bucket for bucket in buckets if end <= bucket), self.context)

    def _call_of(self, width: int, bucket: int, *, verify: bool) -> Call:
        """The call of the current size's decode for a width of 1, otherwise of its verify or a prefill."""
        name = self._size_record.signature(width, None if bucket == self.context else bucket, verify=verify)
        inputs = self._inputs_of(width, verify=verify)
        if bucket not in inputs.masks:
            inputs.masks[bucket] = self._decoder.input_buffer(name, "mask")
        if name not in self._calls:
            caches = self._caches.buffers
            if verify and verify not in self._outputs:
                self._outputs[verify] = self._output_buffers(name)
            outputs = {**caches, **self._outputs[verify]} if verify or width == 1 else caches
            bound = {**inputs.decoder, "mask": inputs.masks[bucket], **caches}
            self._calls[name] = self._decoder.bind(name, bound, outputs)
        return self._calls[name]

    def _output_buffers(self, signature: str) -> dict[str, Buffer]:
        """Buffers for the outputs of a decode or verify other than the caches."""
        names = ("logits",) if self.text.draft_tokens is None else ("logits", "activations")
        return {name: self._decoder.output_buffer(signature, name) for name in names}

    def _output(self, name: str) -> NDArray[np.float32]:
        """The rows of one output of the last decode or verify, without those for padding."""
        verify, count = self._latest
        rows: NDArray[np.float32] = self._outputs[verify][name].read()[0, :count]
        return rows

    def _inputs_of(self, width: int, *, verify: bool) -> _Inputs:
        """The inputs of a width, created at first use: the mask of a wide prefill takes megabytes."""
        if width not in self._inputs:
            name, embed = self._size_record.signature(width, verify=verify), f"embed_{width}"
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
