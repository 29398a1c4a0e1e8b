"""A conversation with a bundle on a machine: the `Conversation` of `toolkit.runtime` with graphs in bundle_runner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from device_harness.machines.machine import Machine
from device_harness.native.client import CPU, NativeClient, NativeGeneration, Processor
from device_harness.native.conversation import NativeConversation
from device_harness.native.library import LibraryChoice
from device_harness.native.place import PlacedRunner, place_runner
from device_harness.push.source import PushProgress, Step, open_source
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.base.processors import require_threads
from toolkit.base.procfs import ProcessStatus
from toolkit.base.strict_json import JsonObject
from toolkit.bundle.manifest import TEXT_GROUPS
from toolkit.runtime.backends.gpu.fit import require_bundle_fit
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import AnswerRequest
from toolkit.runtime.generate import Ending, GenerationReport, rate
from toolkit.runtime.judged_files import require_judged_bundle
from toolkit.runtime.memory import GroupMemory, Memory
from toolkit.runtime.ple_lookup import PleStatistics

_WEIGHTS = "weights"
"""The folder for packed weights, beside the bundles on a machine."""
_RECOVER_S = 60.0
_CLOSE_S = 5.0


def _ignore(step: Step, done: int, total: int) -> None:
    """A progress function that does nothing."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How to run a bundle on a machine, and functions that are called meanwhile."""

    size: str | None = None
    threads: int | None = None
    """CPU threads; None for as many as the program chooses, at most 4."""
    processor: Processor = CPU
    library: LibraryChoice = field(default_factory=LibraryChoice)
    pushing: Callable[[str], AbstractContextManager[PushProgress]] = field(default=lambda _: nullcontext(_ignore))
    """Given a machine's name, opens the progress function of a push."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Called with messages for the user."""

    def __post_init__(self) -> None:
        require_threads(self.threads)


class DeviceConversation:
    """The model on a machine; after a lost connection, the next answer computes the whole conversation again."""

    def __init__(self, bundle: Bundle, machine: AbstractContextManager[Machine], settings: DeviceSettings) -> None:
        """Send the bundle and the program, as far as the machine lacks them, and open the bundle there.

        `machine` is entered, and left by `close`. EnvironmentFault without a compiler or LiteRT's library.
        """
        self._bundle = bundle
        self._settings = settings
        self._size = settings.size or bundle.manifest.default_size
        self._towers: set[str] = set()
        self._stack = ExitStack()
        self._client: NativeClient | None = None
        self._open_size = self._size
        self._tokens: DeviceTokens | None = None
        try:
            self._machine = self._stack.enter_context(machine)
            is_on_gpu = settings.processor.backend == "gpu"
            if is_on_gpu:
                require_bundle_fit(bundle.path, bundle.manifest)
            self._placed: PlacedRunner = place_runner(
                self._machine, settings.library, with_gpu=is_on_gpu, say=settings.note
            )
            with settings.pushing(self._machine.serial) as progress:
                require_judged_bundle(bundle.path, bundle.manifest)
                self._folder = self._machine.place_files(open_source(bundle.path), progress=progress)
            self._conversation = self._start()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> str:
        return self._size

    @property
    def groups_loaded(self) -> tuple[str, ...]:
        """The text groups, and the towers that were needed: each was loaded for its image or sound, and freed."""
        groups = self._bundle.manifest.groups
        return tuple(name for name in groups if name in self._towers or groups[name].kind in TEXT_GROUPS)

    def use(self, size: str) -> None:
        self._bundle.manifest.size(size)
        self._size = size

    def forget(self) -> None:
        """Remove all tokens, even those that the next prompt begins with: another size may have processed them."""
        self._settle()
        self._conversation.forget()

    def answer(self, request: AnswerRequest) -> DeviceTokens:
        if request.speculative:
            raise UsageError("speculative", found="it has no effect on a device", wanted="a model on this computer")
        self._settle()
        self._tokens = DeviceTokens(self, request)
        return self._tokens

    def memory(self) -> Memory:
        """The memory of the program on the machine."""
        found = self._stats().child("memory")
        process = ProcessStatus(
            *(_bytes(found, f"{name}_bytes") for name in ("rss", "peak_rss", "swap")),
            *(_bytes(found, f"rss_{name}_bytes") for name in ("anonymous", "file", "shmem")),
        )
        groups = found.child("groups")
        return Memory(process, {name: _group_memory(groups.child(name)) for name in groups.names()})

    def ple_statistics(self) -> PleStatistics:
        """Rows and bytes read: the program reads rows by pread, so that no page fault belongs to a look-up."""
        found = self._stats().child("ple")
        return PleStatistics(rows=_bytes(found, "rows") or 0, bytes_read=_bytes(found, "bytes_read") or 0)

    def close(self) -> None:
        """End the program on the machine, and leave the machine."""
        try:
            self._settle(_CLOSE_S)
        finally:
            try:
                self._end_program()
            finally:
                self._stack.close()

    # --- for `DeviceTokens` ----------------------------------------------------------------------------------------

    def begin(self, request: AnswerRequest) -> tuple[int, NativeGeneration]:
        """Begin to generate in the size in use; return how many tokens of the prompt were there already."""
        client = self._ready()
        if self._open_size != self._size:
            client.use(self._size)
            self._open_size = self._size
        self._towers |= {span.medium.group for span in request.spans}
        return self._conversation.generate(
            request.prompt,
            request.sampler.settings,
            drawn=request.sampler.drawn,
            spans=request.spans,
            limit=request.limit,
            stops=tuple(request.stops),
            vocabulary=request.sampler.vocabulary,
        )

    def ended(self, generation: NativeGeneration) -> None:
        """Record what the program holds after an answer."""
        if generation.end is not None:
            self._conversation.note(generation.tokens, generation.end.position)

    def failed(self, error: BaseException) -> None:
        """After a fault in the middle of an answer: give up a program that may be gone."""
        if not isinstance(error, (UsageError, BundleError)):
            self._end_program()

    @property
    def media_s(self) -> float | None:
        """How long it took to embed the last prompt's new images and sounds."""
        return self._conversation.media_s

    def _settle(self, timeout: float | None = None) -> None:
        """End an answer that its reader has left, which still waits for the program, for at most so many seconds."""
        if self._tokens is not None:
            self._tokens.settle(timeout)

    def _end_program(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ready(self) -> NativeClient:
        """The program, started again if it was lost."""
        if not self._machine.available:
            self._end_program()
        if self._client is None:
            self._machine.recover(timeout=_RECOVER_S)
            self._conversation = self._start()
        assert self._client is not None
        return self._client

    def _stats(self) -> JsonObject:
        self._settle()
        try:
            found = self._ready().stats()
        except EnvironmentFault as error:
            self.failed(error)
            raise
        return JsonObject(found, None, EnvironmentFault, f"{self._machine.serial} bundle_runner")

    def _start(self) -> NativeConversation:
        self._client = client = NativeClient(self._machine, self._placed)
        opened = client.open(
            self._folder,
            size=self._size,
            threads=self._settings.threads,
            weight_folder=f"{self._machine.cache_folder}/{_WEIGHTS}",
            processor=self._settings.processor,
        )
        if opened.weight_cache == "built":
            self._settings.note(
                f"arranged the weights for this processor in {opened.seconds:.1f} s; later runs find them"
            )
        self._open_size = opened.size
        return NativeConversation(client)


class DeviceTokens:
    """The tokens of one answer, as the machine sends them.

    A thread receives them, so that Ctrl-C interrupts the wait for a token and not a message of the connection. Another
    one may ask the program to stop meanwhile.
    """

    def __init__(self, owner: DeviceConversation, request: AnswerRequest) -> None:
        self._owner = owner
        self._request = request
        self._taken: list[int] = []
        self._reused = 0
        self._ending: Ending = "interrupted"
        self._generation: NativeGeneration | None = None
        self._turn = threading.Lock()
        self._is_stopping = False
        self._is_finished = False
        self._is_over = threading.Event()
        """The receiver has ended. Before Python 3.13 a thread counts as ended once a wait for it was interrupted."""
        self._received: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self._receiver = threading.Thread(target=self._receive, name="tokens of a device", daemon=True)

    def __iter__(self) -> Iterator[int]:
        self._receiver.start()
        while (item := self._received.get()) is not None:
            if isinstance(item, BaseException):
                self._owner.failed(item)
                raise item
            self._taken.append(item)
            yield item
        self._finish()

    def end(self, ending: Ending) -> None:
        """Stop the machine after its current step."""
        self.settle()
        self._ending = ending

    def settle(self, timeout: float | None = None) -> None:
        """Stop the machine unless the answer is over; then note what it holds, or a fault that nobody has seen."""
        with self._turn:  # one thread writes to the program at a time: either this one or the receiver asks it to stop
            self._is_stopping = True
            generation = self._generation
        if generation is not None and not self._is_over.is_set():
            with suppress(EnvironmentFault):  # the receiver meets it too
                generation.ask_to_stop()
        if self._receiver.ident is not None:
            self._is_over.wait(timeout)
        while not self._received.empty():
            if isinstance(item := self._received.get(), BaseException):
                self._owner.failed(item)
        self._received.put(None)  # for an iterator that goes on
        self._finish()

    def report(self) -> GenerationReport:
        request, end = self._request, self._generation.end if self._generation is not None else None
        new = len(request.prompt) - 1 - self._reused
        media_s = self._owner.media_s if request.spans else None
        # An interrupt drops tokens that the program has already sent: times and counts are those of the program.
        return GenerationReport(
            token_ids=tuple(self._taken),
            prompt_tokens=len(request.prompt),
            reused_tokens=self._reused,
            ending=self._ending,
            prefill_tokens_per_s=None if end is None else rate(new, end.prefill_s),
            decode_tokens_per_s=None if end is None else rate(end.tokens - 1, end.decode_s),
            time_to_first_token_s=end.first_s + (media_s or 0.0) if end is not None and end.tokens else None,
            media_s=media_s,
        )

    def _receive(self) -> None:
        """Put all tokens into the queue, then None; or what went wrong."""
        try:
            self._reused, generation = self._owner.begin(self._request)
            with self._turn:
                self._generation = generation
                is_stopping = self._is_stopping
            if is_stopping:
                generation.ask_to_stop()
            for token in generation:
                self._received.put(token)
            self._received.put(None)
        except BaseException as error:
            self._received.put(error)
        finally:
            self._is_over.set()

    def _finish(self) -> None:
        generation = self._generation
        if generation is None or generation.end is None or self._is_finished:
            return
        self._is_finished = True
        self._ending = generation.end.ending
        self._owner.ended(generation)
        if self._request.sampler.settings.temperature:
            self._request.sampler.drawn += generation.end.tokens


def _bytes(found: JsonObject, key: str) -> int | None:
    return None if found.value(key) is None else found.integer(key, 0, 2**62)


def _group_memory(found: JsonObject) -> GroupMemory:
    """The memory of a group's files; how much of them is in the kernel's page cache is not known from outside."""
    mapped, resident = (found.integer(f"{name}_bytes", 0, 2**62) for name in ("mapped", "resident"))
    return GroupMemory(mapped, resident, None)
