"""Talks to bundle_runner (docs/formats/bundle_runner.md) through a machine's dialogue: one method for each command."""

from __future__ import annotations

import json
import logging
import shlex
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from device_harness.machines.machine import Dialogue, Machine
from device_harness.native.place import PlacedRunner
from toolkit.base.activations import Activations
from toolkit.base.errors import BundleError, EnvironmentFault, ToolkitError, UsageError
from toolkit.base.strict_json import JsonObject, parse_json
from toolkit.runtime.backends.gpu.log import driver_fault, explained_refusal
from toolkit.runtime.media_prompt import Medium
from toolkit.runtime.sampling import Sampling

PROTOCOL = 1
GPU_PLACE = "backend gpu"
"""The place of the program's errors about the GPU."""
SILENCE_S = 600.0
"""How long the program may say nothing: packing the weights of a large model takes minutes on a phone."""

Ending = Literal["stop token", "length", "context", "interrupted"]
_ENDINGS = get_args(Ending)
_MOST_BYTES = 16 << 20
"""The most bytes of an answer and the lines before it, whatever a device sends; 262,144 logits take 1 MiB."""
_ERRORS: dict[str, type[ToolkitError]] = {"usage": UsageError, "bundle": BundleError, "machine": EnvironmentFault}
_STOP = b'{"do": "stop"}\n'
_KEPT_LINES, _MOST_SAID = 64, 4096
_MOST_SEED = 2**63 - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Processor:
    """What runs the graphs on the machine: its CPU, or its GPU in float32 or float16."""

    backend: Literal["cpu", "gpu"] = "cpu"
    activations: Activations = "fp32"

    @property
    def fields(self) -> dict[str, object]:
        """The keys of the command `open`."""
        return {"backend": "gpu", "activations": self.activations} if self.backend == "gpu" else {}


CPU = Processor()


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """What the program says about the bundle that it has opened."""

    size: str
    context: int
    text_ids: int
    """Ids below this one may be drawn."""
    threads: int
    weight_cache: str
    """`off`, `memory`, `kept`, or `built` if the packed weights were made now."""
    weight_file: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class MediumUse:
    """An image or a sound that was embedded before, and the index in `ids` of its first row, which may be negative."""

    key: str
    at: int


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """How a generation ended, and what it took."""

    ending: Ending
    tokens: int
    """0 if it was interrupted before the first one."""
    position: int
    prefill_s: float
    """0 if it was interrupted before the end of the prefill."""
    first_s: float
    """From the command to the first token; 0 without one."""
    decode_s: float
    """For the other tokens."""


class NativeGeneration:
    """An iterator over the tokens of one answer; `end` is set when it is over. `stop` ends it early."""

    def __init__(self, client: NativeClient, fields: Mapping[str, object]) -> None:
        self.end: GenerationEnd | None = None
        self.tokens: list[int] = []
        """All tokens that the program has drawn so far."""
        self._client = client
        client._send("generate", fields)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.end is not None:
            raise StopIteration
        answer = self._client._answer("generate")
        if answer.has("token"):
            self.tokens.append(answer.integer("token", 0, self._client.text_ids - 1))
            if len(self.tokens) > self._client.context:
                found = f"more than {self._client.context} tokens, all that the caches hold"
                raise EnvironmentFault(self._client._what, found=found)
            return self.tokens[-1]
        self.end = _generation_end(answer)
        raise StopIteration

    def ask_to_stop(self) -> None:
        """Ask the program to end the answer after its current step; another thread may be waiting for its tokens."""
        self._client._write(_STOP)

    def stop(self) -> GenerationEnd:
        """End the answer after the current step; the ids of tokens that were not taken are dropped."""
        if self.end is None:
            self.ask_to_stop()
            for _ in self:
                pass
        assert self.end is not None
        return self.end


class NativeClient:
    """The program on a machine, with at most one bundle open; a context manager that ends the program when left."""

    def __init__(self, machine: Machine, placed: PlacedRunner, *, silence: float = SILENCE_S) -> None:
        """Start the program; EnvironmentFault if it cannot use the library, or speaks another protocol version."""
        self._what = f"{machine.serial} bundle_runner"
        self._dialogue: Dialogue = machine.open_dialogue(f"exec {shlex.join(placed.argv)}", silence=silence)
        self._runtime = placed.runtime
        self._input = bytearray()
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._media: set[str] = set()
        self._is_on_gpu = False
        self.context, self.text_ids = 0, 0
        """Of the open bundle: the positions in its caches, and the number of ids that may be drawn."""
        self._dialogue.__enter__()
        try:
            start = self._answer("start")
            if start.integer("protocol", 0, 2**31) != PROTOCOL:
                raise EnvironmentFault(self._what, found="another protocol", wanted=str(PROTOCOL))
            self.pid = start.integer("pid", 1, 2**31)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NativeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the program."""
        self._dialogue.__exit__(None, None, None)

    # --- commands --------------------------------------------------------------------------------------------------

    def open(
        self,
        bundle: str,
        *,
        size: str | None = None,
        threads: int | None = None,
        weight_folder: str | None = None,
        processor: Processor = CPU,
    ) -> OpenedBundle:
        """Open the bundle in this folder on the machine; `weight_folder`: where to keep packed weights, None: nowhere.

        For a GPU the caller must have checked that it takes the graphs (`require_fit`). A folder that cannot be used is
        a warning.
        """
        fields: dict[str, object] = {"bundle": bundle, **processor.fields}
        self._is_on_gpu = processor.backend == "gpu"
        fields |= {} if size is None else {"size": size}
        fields |= {} if threads is None else {"threads": threads}
        if weight_folder is not None:
            fields["weight_cache"] = {"folder": weight_folder, "runtime": self._runtime}
        try:
            answer = self._ask("open", fields)
        except EnvironmentFault as error:
            if not self._is_on_gpu or error.place != GPU_PLACE:
                raise
            raise explained_refusal("\n".join(self._said), error) from error
        self._warn_of_weights(answer)
        self.context, self.text_ids = answer.integer("context", 1, 2**31), answer.integer("text_ids", 1, 2**31)
        return OpenedBundle(
            size=answer.string("size"),
            context=self.context,
            text_ids=self.text_ids,
            threads=answer.integer("threads", 1, 2**31),
            weight_cache=answer.string("weight_cache"),
            weight_file=answer.string("weight_file") if answer.has("weight_file") else None,
            seconds=_seconds(answer, "seconds"),
        )

    def prefill(self, ids: Sequence[int], media: Sequence[MediumUse] = ()) -> int:
        """Process tokens without logits; return the number of tokens in the conversation."""
        return _position(self._ask("prefill", {"ids": list(ids), **_uses(media)}))

    def decode(self, token: int, media: Sequence[MediumUse] = ()) -> NDArray[np.float32]:
        """Process a token; return the logits of the next, f32[vocabulary]."""
        answer = self._ask("decode", {"ids": [token], "logits": True, **_uses(media)})
        count = answer.integer("bytes", 4, _MOST_BYTES)
        if count % 4:
            answer.refuse("bytes", count, "whole numbers of 4 bytes")
        return np.frombuffer(self._bytes(count), "<f4").astype(np.float32)

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        limit: int | None = None,
        stops: Sequence[int] | None = None,
        vocabulary: int | None = None,
        drawn: int = 0,
        media: Sequence[MediumUse] = (),
        earlier: Collection[int] = (),
    ) -> NativeGeneration:
        """Process a prompt and begin to generate; iterate over the answer's tokens, each as soon as it is drawn.

        `drawn`: how many tokens earlier answers have drawn with the same seed; `earlier`: the ids of the conversation
        before `ids`, for the repeat penalty. UsageError for a seed beyond 2^63 - 1.
        """
        if sampling.seed > _MOST_SEED:
            raise UsageError("seed", found=sampling.seed, wanted=f"0 to {_MOST_SEED} on a device")
        given = {
            "drawn": drawn or None,
            # Larger numbers have the same effect as these, and may not be ones that the program can hold.
            "limit": None if limit is None else min(limit, self.context + 1),
            "top_k": min(sampling.top_k, self.text_ids),
            "stop": None if stops is None else list(stops),
            "vocabulary": vocabulary,
        }
        fields: dict[str, object] = {"ids": list(ids), **_uses(media)}
        fields |= {name: value for name, value in given.items() if value is not None}
        fields |= {name: getattr(sampling, name) for name in ("temperature", "top_p", "seed", "min_p")}
        if sampling.repeat_penalty != 1:
            fields |= {"repeat_penalty": sampling.repeat_penalty, "earlier": sorted(set(earlier))}
        return NativeGeneration(self, fields)

    def truncate(self, position: int) -> None:
        """Remove the tokens from `position` on; UsageError if the caches no longer hold what precedes it."""
        self._ask("truncate", {"position": position})

    def use(self, size: str) -> None:
        """Continue with another size of the bundle."""
        self._ask("size", {"name": size})

    def embed(self, medium: Medium) -> None:
        """Embed an image or a sound, unless the program has it already; its tower is loaded for that alone."""
        if medium.key in self._media:
            return
        if medium.group == "vision":
            data = medium.values.astype(np.uint8, copy=False).tobytes()
            answer = self._ask("image", {"key": medium.key, "bytes": len(data)}, data)
        else:
            assert medium.mask is not None
            data = medium.values.astype("<f4", copy=False).tobytes() + medium.mask.astype(np.uint8).tobytes()
            answer = self._ask("sound", {"key": medium.key, "bytes": len(data), "frames": len(medium.values)}, data)
        self._warn_of_weights(answer)
        self._media.add(medium.key)

    def forget_media_but(self, kept: Sequence[Medium]) -> None:
        """Free the embeddings of all other images and sounds."""
        for key in self._media - {medium.key for medium in kept}:
            self._ask("forget", {"key": key})
            self._media.discard(key)

    def stats(self) -> dict[str, object]:
        """Memory by kind and group, page faults, and reads of per-layer embeddings, as the program counts them."""
        answer = self._ask("stats", {})
        return {name: answer.value(name) for name in answer.names()}

    # --- lines and bytes -------------------------------------------------------------------------------------------

    def _ask(self, do: str, fields: Mapping[str, object], payload: bytes = b"") -> JsonObject:
        self._send(do, fields, payload)
        return self._answer(do)

    def _send(self, do: str, fields: Mapping[str, object], payload: bytes = b"") -> None:
        self._write(json.dumps({"do": do, **fields}).encode() + b"\n" + payload)

    def _write(self, data: bytes) -> None:
        if not self._dialogue.write(data):
            raise self._ended()

    def _answer(self, do: str) -> JsonObject:
        """The next answer; the program's error as one of ours."""
        size = 0
        while not (line := self._line()).startswith(b"{"):
            if line.strip():
                self._said.append(line[:_MOST_SAID].decode("utf-8", "replace").strip())
            size += len(line) + 1
            self._require_few(size)
        answer = JsonObject(parse_json(line, None, EnvironmentFault, self._what), None, EnvironmentFault, self._what)
        if answer.has("error"):
            raise _error(answer.child("error"))
        if not answer.has("token") and answer.string("ok") != do:
            raise EnvironmentFault(self._what, found=f"an answer to {answer.string('ok')}", wanted=f"one to {do}")
        return answer

    def _warn_of_weights(self, answer: JsonObject) -> None:
        if answer.has("weight_cache_fault"):
            fault = answer.string("weight_cache_fault")
            _log.warning("%s: packing weights in memory, because they cannot be kept: %s", self._what, fault)

    def _line(self) -> bytes:
        looked = 0
        while (end := self._input.find(b"\n", looked)) < 0:
            looked = len(self._input)
            self._require_few(looked)
            self._receive()
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return line

    def _require_few(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise EnvironmentFault(self._what, found=f"over {_MOST_BYTES:,} bytes without an answer")

    def _bytes(self, count: int) -> bytes:
        while len(self._input) < count:
            self._receive()
        data = bytes(self._input[:count])
        del self._input[:count]
        return data

    def _receive(self) -> None:
        data = self._dialogue.read()
        if not data:
            raise self._ended()
        self._input += data

    def _ended(self) -> EnvironmentFault:
        said = [line for line in (*self._said, self._input.decode("utf-8", "replace").strip()) if line]
        if self._is_on_gpu:
            return driver_fault("\n".join(said), "without an answer")
        found = "the program ended" + (f" after the line: {said[-1][:300]}" if said else "")
        return EnvironmentFault(self._what, found=found, remedy="most often memory is short: use a smaller size")


def _error(fields: JsonObject) -> ToolkitError:
    def text(key: str) -> str | None:
        return fields.string(key) if fields.has(key) else None

    kind = _ERRORS.get(fields.string("kind"), EnvironmentFault)
    remedy = "run gemma-edge check, and push or convert it again" if kind is BundleError else None
    return kind(text("place"), file=text("file"), found=fields.string("found"), wanted=text("wanted"), remedy=remedy)


def _uses(media: Sequence[MediumUse]) -> dict[str, object]:
    return {"media": [{"key": use.key, "at": use.at} for use in media]} if media else {}


def _position(answer: JsonObject) -> int:
    return answer.integer("position", 0, 2**31)


def _seconds(answer: JsonObject, key: str) -> float:
    return answer.number(key, 0, 1e9)


def _ending(answer: JsonObject) -> Ending:
    found = answer.string("ending")
    if found not in _ENDINGS:
        answer.refuse("ending", found, " or ".join(_ENDINGS))
    return cast("Ending", found)


def _generation_end(answer: JsonObject) -> GenerationEnd:
    return GenerationEnd(
        ending=_ending(answer),
        tokens=answer.integer("tokens", 0, 2**31),
        position=_position(answer),
        prefill_s=_seconds(answer, "prefill_s"),
        first_s=_seconds(answer, "first_s"),
        decode_s=_seconds(answer, "decode_s"),
    )
