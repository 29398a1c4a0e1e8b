"""Pushes a bundle or a .litertlm: sends only chunks that differ, renames at the end, continues after a cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from device_harness.adb.transport import (
    ConnectionLost,
    DeviceFault,
    DeviceRefusal,
    DeviceTimeout,
    Transport,
    remote_path,
)
from device_harness.push.plan import Action, FilePlan, FileState, Remote, plan_push
from device_harness.push.remote import PartStart, RemoteFolder
from device_harness.push.result import PushResult, PushTally
from device_harness.push.scripts import ChunkRun, Chunks
from device_harness.push.source import (
    OLD_MANIFEST,
    PART,
    Comparison,
    PushFile,
    PushProgress,
    PushSource,
    Step,
    require_unchanged,
)
from toolkit.base.files import Advance, safe_name
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import MANIFEST_NAME, Manifest
from toolkit.bundle.manifest_json import MAX_MANIFEST_BYTES, parse_manifest

DEFAULT_FOLDER = "/data/local/tmp/gemma-edge"

_REPAIRS = 2
"""How often a chunk that the device stored wrongly is sent again."""
_FRUITLESS_CUTS = 3
"""A push gives up after this many lost connections in a row without one complete chunk in between."""

_log = logging.getLogger(__name__)


def push_source(
    device: Transport,
    source: PushSource,
    *,
    target: str | None = None,
    receiver: str | None = None,
    progress: PushProgress | None = None,
    confirm: Callable[[], object] | None = None,
    patience_s: float = 60.0,
) -> PushResult:
    """Push files (see `open_source`) to the folder `target` of a device; several devices may share a source.

    BundleError if local files differ from their manifest; EnvironmentFault for any fault of the device.
    After a fault or an interrupt, what was sent is kept in NAME.part files, and the next push resumes there. A push
    waits for another one from this computer to the same folder.

    `receiver`: the result of `place_receiver`. `confirm`: called before a file on the device is given up, and before
    any file takes its final name; what it raises ends the push. `patience_s`: how many seconds a device has to come
    back after a lost connection.
    """
    folder = RemoteFolder(device, target or default_target(source), receiver)
    with folder.held():
        return _Push(device, folder, source, progress, confirm or _nothing).run(patience_s)


def default_target(source: PushSource) -> str:
    """The default target folder of a push."""
    if source.folder is None:
        return DEFAULT_FOLDER
    return remote_path(DEFAULT_FOLDER, safe_name(source.folder, "folder name, of which --target can name another"))


def _nothing() -> None:
    """Confirm nothing."""


class _Push:
    """One push to one device. After a lost connection, it starts again from what the device has by then."""

    def __init__(
        self,
        device: Transport,
        folder: RemoteFolder,
        source: PushSource,
        progress: PushProgress | None,
        confirm: Callable[[], object],
    ) -> None:
        self._device = device
        self._folder = folder
        self._source = source
        self._progress = progress
        self._confirm = confirm
        self._tally = PushTally()
        self._done: set[str] = set()
        self._left_bytes: int | None = None
        """The bytes that are left to send, by the latest plan."""

    def run(self, patience_s: float) -> PushResult:
        started = time.monotonic()
        fruitless, least = 0, None
        while True:
            try:
                self._attempt()
                return self._result(time.monotonic() - started)
            except (ConnectionLost, DeviceTimeout) as error:
                left = self._left_bytes
                gained = left is not None and (least is None or left < least)
                fruitless, least = (0, left) if gained else (fruitless + 1, least)
                if fruitless >= _FRUITLESS_CUTS or not patience_s:
                    raise
                _log.info("%s; connecting again", error)
                self._reconnect(error, patience_s)
                self._tally.reconnects += 1

    def _reconnect(self, lost: DeviceFault, patience_s: float) -> None:
        try:
            self._device.reconnect(timeout=patience_s)
        except (ConnectionLost, DeviceTimeout) as error:
            found = f"{lost.found}, and no device for {patience_s:g} s after it ({error.found})"
            remedy = "connect it and push again; what was sent is kept"
            raise ConnectionLost(error.place, file=error.file, found=found, remedy=remedy) from lost

    def _attempt(self) -> None:
        self._folder.create()
        sizes = self._sizes()
        stale = self._stale(sizes)
        states = self._compare(sizes)
        self._done |= {state.file.name for state in states if state.is_done}
        plans = plan_push(states, self._folder.free_bytes(), self._folder.what)
        self._left_bytes = sum(plan.bytes_of("send") for plan in plans)
        if self._tally.skipped is None:
            self._tally.skipped = sum(file.size for file in self._source.files) - self._left_bytes
        stored = self._send(plans, sizes)
        self._verify(plans, stored)
        self._folder.settle([plan.file for plan in plans])
        self._confirm()
        self._commit(plans, sizes, stale)

    def _sizes(self) -> dict[str, int]:
        names = [name for file in self._source.files for name in (file.name, file.name + PART)]
        return self._folder.sizes([*names, OLD_MANIFEST] if self._source.manifest is not None else names)

    def _stale(self, sizes: dict[str, int]) -> list[str]:
        """Files of the device's old bundle that are not part of the new one."""
        new = self._source.manifest
        if new is None:
            return []
        # /sdcard ignores case, so removing a name there could remove another file.
        wanted = {file.name.lower() for file in self._source.files}
        stale: set[str] = set()
        for name in (MANIFEST_NAME, OLD_MANIFEST):
            old = self._read_manifest(name, sizes)
            for entry, record in old.files.items() if old is not None else ():
                same = entry in new.files and new.files[entry].sha256 == record.sha256
                if entry.lower() not in wanted and not same and not entry.lower().endswith(PART):
                    stale |= {entry, entry + PART}
        return sorted(self._folder.sizes(sorted(stale)))

    def _read_manifest(self, name: str, sizes: dict[str, int]) -> Manifest | None:
        if not 0 < sizes.get(name, 0) <= MAX_MANIFEST_BYTES:
            return None
        faults: list[Fault] = []
        manifest = parse_manifest(self._device.pull_bytes(self._folder.path(name)), faults)
        if manifest is None:
            _log.warning("%s/%s: %s; its files stay", self._folder.what, name, faults[0].error())
        return manifest

    def _compare(self, sizes: dict[str, int]) -> list[FileState]:
        """Hash those files on the device that could be reused."""
        missing = [file for file in self._source.files if file.name not in self._done]
        candidates = [_useful(file, name, sizes) for file in missing for name in (file.name, file.name + PART)]
        with ThreadPoolExecutor(1) as pool:
            # Hash on both sides at once; hashes in a manifest cost nothing.
            here = pool.submit(_know, candidates)
            digests = self._digests("compare", [chunks for chunks in candidates if chunks.numbers])
            here.result()

        parts = [file.name + PART for file in missing if file.name + PART in sizes]
        stored = self._folder.stored_bytes(parts)

        def look(file: PushFile, name: str) -> Remote | None:
            if name not in sizes:
                return None
            size = sizes[name]
            return Remote(size, _good(file, digests.get(name, {})), min(size, stored.get(name, size)))

        return [FileState(file, look(file, file.name), look(file, file.name + PART)) for file in missing]

    def _send(self, plans: Sequence[FilePlan], sizes: dict[str, int]) -> dict[str, dict[int, str]]:
        """Create each NAME.part; return the hashes that the device has computed of their content so far."""
        if any(plan.gives_up_whole for plan in plans):
            self._confirm()
            self._require_valid(plans)
        if MANIFEST_NAME in sizes and _takes_apart(plans):
            self._folder.switch([(MANIFEST_NAME, OLD_MANIFEST)], [])
        self._folder.start_parts(
            PartStart(plan.file.name, plan.keep_bytes, plan.starts_as_whole, plan.gives_up_whole) for plan in plans
        )
        copied = self._copy(_runs(plans, "copy"))
        sent = self._store(_runs(plans, "send"))
        return {name: {**copied.get(name, {}), **sent.get(name, {})} for name in copied.keys() | sent.keys()}

    def _require_valid(self, plans: Sequence[FilePlan]) -> None:
        """Verify all local chunks of a file before the device's old file is removed."""
        advance = self._advance("check", sum(plan.bytes_of("send") for plan in plans))
        for plan in plans:
            for run in plan.runs_of("send"):
                for chunk in range(run.first, run.stop):
                    require_unchanged(plan.file, chunk)
                    advance(plan.file.length(chunk))

    def _copy(self, runs: Sequence[ChunkRun]) -> dict[str, dict[int, str]]:
        """Copy chunks from the old file; return the hashes of the copies."""
        size = sum(run.bytes for run in runs)
        files = {run.name: run.file for run in runs}
        digests: dict[str, dict[int, str]] = {name: {} for name in files}
        advance = self._advance("copy", size)

        def take(name: str, number: int, digest: str) -> None:
            digests[name][number] = digest
            advance(files[name].length(number))

        self._folder.copy(runs, take)
        self._tally.copied += size
        return digests

    def _store(self, runs: Sequence[ChunkRun]) -> dict[str, dict[int, str]]:
        """Send chunks, not by sync: after a cut, adbd removes a partial file (AOSP file_sync_service.cpp)."""
        advance = self._advance("send", sum(run.bytes for run in runs))
        files = {run.name: run.file for run in runs}
        digests: dict[str, dict[int, str]] = {name: {} for name in files}
        started = last = time.monotonic()

        def sent(file: PushFile, count: int) -> None:
            nonlocal last
            self._tally.files.add(file.name)
            last = time.monotonic()
            self._tally.sent += count
            advance(count)

        with Comparison() as comparison:

            def take(name: str, number: int, digest: str) -> None:
                digests[name][number] = digest
                comparison.add(files[name], number, digest)

            try:
                self._folder.store(runs, sent, take)
            finally:
                self._tally.send_seconds += last - started
            comparison.finish()
        return digests

    def _verify(self, plans: Sequence[FilePlan], stored: dict[str, dict[int, str]]) -> None:
        """Check the hash of every written chunk on the device; with the size, this verifies the whole file.

        `stored`: the hashes that the device has already reported of chunks that were sent. It is asked for the others.
        """
        written = [Chunks(plan.file.name + PART, plan.file, plan.written) for plan in plans]
        advance = self._advance("verify", _bytes_of(written))
        for repair in range(_REPAIRS + 1):
            asked = [chunks.without(stored.get(chunks.name, {})) for chunks in written]
            advance(_bytes_of(written) - _bytes_of(asked))
            digests = self._folder.digests(asked, advance)
            written = [_wrong(chunks, {**stored.get(chunks.name, {}), **digests[chunks.name]}) for chunks in written]
            written = [chunks for chunks in written if chunks.numbers]
            if not written:
                return
            if repair < _REPAIRS:
                stored = self._repair(written)
                advance = self._advance("verify", _bytes_of(written))
        file, first = written[0].file, written[0].numbers[0]
        begin = file.offset(first)
        raise DeviceRefusal(
            f"{self._folder.what}/{file.name}",
            found=f"other bytes from {begin:,} on, sent {_REPAIRS + 1} times",
            wanted=f"sha256 {file.chunks[first]} for {file.length(first):,} bytes",
            remedy="try another cable; the device's storage may be failing",
        )

    def _repair(self, bad: Sequence[Chunks]) -> dict[str, dict[int, str]]:
        for chunks in bad:
            _log.warning(
                "%s/%s: stored wrong, sending again: chunks %s", self._folder.what, chunks.name, chunks.numbers
            )
            self._tally.repaired += len(chunks.numbers)
        return self._store([ChunkRun(chunks.file, n, n + 1) for chunks in bad for n in chunks.numbers])

    def _commit(self, plans: Sequence[FilePlan], sizes: dict[str, int], stale: Sequence[str]) -> None:
        """Rename all files, the manifest last. Only during these renames can files of two bundles be mixed."""
        names = [plan.file.name for plan in plans]
        moves = [(name + PART, name) for name in names]
        is_new = MANIFEST_NAME in names
        if is_new and MANIFEST_NAME in sizes:
            moves = [] if _takes_apart(plans) else [(MANIFEST_NAME, OLD_MANIFEST)]
            moves += [(name + PART, name) for name in names]
        leftovers = [name + PART for name in self._done if name + PART in sizes]
        has_old = OLD_MANIFEST in sizes or (is_new and MANIFEST_NAME in sizes)
        # The manifest that lists them is removed last, so that after a cut it still lists them.
        removals = [*leftovers, *stale, *([OLD_MANIFEST] if has_old else [])]
        if moves or removals:
            self._folder.switch(moves, removals)
        self._tally.removed += [name for name in stale if not name.endswith(PART)]

    def _result(self, seconds: float) -> PushResult:
        tally = self._tally
        return PushResult(
            device=self._device.serial,
            target=self._folder.folder,
            receiver="shell" if self._folder.receiver is None else "native",
            files=tuple(file.name for file in self._source.files),
            files_sent=tuple(sorted(tally.files)),
            files_removed=tuple(tally.removed),
            bytes_sent=tally.sent,
            bytes_skipped=tally.skipped or 0,
            bytes_copied=tally.copied,
            chunks_repaired=tally.repaired,
            reconnects=tally.reconnects,
            seconds=seconds,
            send_seconds=tally.send_seconds,
        )

    def _digests(self, step: Step, wanted: Sequence[Chunks]) -> dict[str, dict[int, str]]:
        return self._folder.digests(wanted, self._advance(step, _bytes_of(wanted)))

    def _advance(self, step: Step, total: int) -> Advance:
        progress = self._progress
        return Advance(total, None if progress is None else lambda done, of: progress(step, done, of))


def _takes_apart(plans: Sequence[FilePlan]) -> bool:
    """Whether old files are removed before the new ones are complete; then the old manifest must not stay."""
    return any(plan.gives_up_whole for plan in plans) and any(plan.file.name == MANIFEST_NAME for plan in plans)


def _runs(plans: Sequence[FilePlan], action: Action) -> list[ChunkRun]:
    return [ChunkRun(plan.file, run.first, run.stop) for plan in plans for run in plan.runs_of(action)]


def _know(candidates: Iterable[Chunks]) -> None:
    """Compute the hashes of local chunks that no manifest and no file records."""
    for chunks in candidates:
        for number in chunks.numbers:
            chunks.file.chunks[number]


def _useful(file: PushFile, name: str, sizes: Mapping[str, int]) -> Chunks:
    """The chunks of a file that lie within the size of the device's file `name`."""
    there = sizes.get(name, 0)
    return Chunks(name, file, tuple(n for n in range(len(file.chunks)) if file.offset(n + 1) <= there))


def _wrong(chunks: Chunks, digests: Mapping[int, str]) -> Chunks:
    return chunks.without(_good(chunks.file, digests))


def _bytes_of(wanted: Iterable[Chunks]) -> int:
    return sum(chunks.bytes for chunks in wanted)


def _good(file: PushFile, digests: Mapping[int, str]) -> frozenset[int]:
    return frozenset(chunk for chunk, digest in digests.items() if file.chunks[chunk] == digest)
