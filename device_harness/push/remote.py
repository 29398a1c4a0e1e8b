"""The device's side of a push: shell commands in one folder, and what they print. Nothing outside of it is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from device_harness.adb.transport import DeviceRefusal, Transport, quote, remote_path
from device_harness.push.chunks import ChunkShell, OnDigest, OnSent, timeout_s
from device_harness.push.scripts import ChunkRun, Chunks, batches, chunk_word, sync_command
from device_harness.push.source import PART, PushFile

MAX_SCRIPT_CHARACTERS = 1500
"""Old devices take 4096 bytes a message, and a command is quoted once more on its way."""


@dataclass(frozen=True, slots=True)
class PartStart:
    """What NAME.part starts as: its own first `keep_bytes`, or NAME's (`takes_whole`); whether NAME goes."""

    name: str
    keep_bytes: int
    takes_whole: bool
    removes_whole: bool


class RemoteFolder:
    """The folder that a bundle is pushed to; names in it have passed `safe_name`."""

    def __init__(self, device: Transport, folder: str, receiver: str | None = None) -> None:
        """`receiver`: the program on the device that stores and hashes; None: its own ones do."""
        self._device = device
        self._chunks = ChunkShell(device, self._inside, receiver)
        self.receiver = receiver
        self.folder = remote_path(folder)
        self.what = f"{device.serial} {self.folder}"

    def path(self, name: str) -> str:
        """A file of the folder, for the transport."""
        return remote_path(self.folder, name)

    def create(self) -> None:
        """Make the folder if it is not there; readable for apps, whatever the shell's umask."""
        self._run(f"umask 022; mkdir -p {quote(self.folder)}")

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those that are there; DeviceRefusal if one is a link or no file, for it could lead elsewhere."""
        found: dict[str, int] = {}
        test = "if [ -L $n ]; then echo $n link; elif [ -f $n ]; then echo $n $(stat -c %s $n); elif [ -e $n ]; then "
        for words in batches(map(chunk_word, names), MAX_SCRIPT_CHARACTERS):
            output = self._run_inside(f"for n in {' '.join(words)}; do {test}echo $n directory; fi; done")
            found |= self._parse_sizes(output)
        return found

    def digests(self, wanted: Sequence[Chunks], tick: Callable[[int], None]) -> dict[str, dict[int, str]]:
        """sha256 of chunks by file name, computed by the device; `tick` gets the bytes of each as it comes."""
        found: dict[str, dict[int, str]] = {chunks.name: {} for chunks in wanted}
        files = {chunks.name: chunks.file for chunks in wanted}
        for name, number, digest in self._chunks.hash(wanted):
            found[name][number] = digest
            tick(files[name].length(number))
        for chunks in wanted:
            if len(found[chunks.name]) != len(chunks.numbers):
                hashes = f"{len(found[chunks.name])} hashes"
                remedy = "Android has dd and sha256sum from version 8 on"
                what = f"{self.what}: sha256sum {chunks.name}"
                raise DeviceRefusal(what, found=hashes, wanted=str(len(chunks.numbers)), remedy=remedy)
        return found

    def store(self, runs: Sequence[ChunkRun], on_sent: OnSent, on_digest: OnDigest) -> None:
        """Send runs of chunks to their NAME.part; `on_digest` hears the hash of each as the device has stored it."""
        self._chunks.store(runs, on_sent, on_digest)

    def free_bytes(self) -> int:
        """Room on the storage that the folder lies on."""
        return parse_df(self._run_inside("df -k ."), self.what)

    def start_parts(self, starts: Iterable[PartStart]) -> None:
        """Make NAME.part of what is there: the first bytes of it, or of NAME; then give NAME up if it has to go.

        One that starts with nothing is a new file, for what a cut push left running may still write to the old one.
        """
        commands = []
        for start in starts:
            name, part = chunk_word(start.name), chunk_word(start.name + PART)
            if start.takes_whole:
                commands.append(f"mv -f {name} {part}")
            elif start.removes_whole:
                commands.append(f"rm -f {name}")
            if not start.keep_bytes:
                commands.append(f"rm -f {part}")
            commands.append(f": >> {part} && truncate -s {start.keep_bytes} {part}")
        self._run_all(commands)

    def copy(self, runs: Sequence[ChunkRun], on_digest: OnDigest) -> None:
        """Chunks of NAME to the same places in NAME.part; `on_digest` hears the hash of each there."""
        for name, number, digest in self._chunks.copy(runs):
            on_digest(name, number, digest)

    def settle(self, files: Sequence[PushFile]) -> None:
        """Bring each NAME.part to its size and to the storage."""
        commands = []
        for file in files:
            part = file.name + PART
            # Apps read as another user; where modes mean nothing, as on /sdcard, chmod may fail.
            readable = f"chmod 644 {part} 2>/dev/null"
            commands.append(f"truncate -s {file.size} {part} && {{ {readable}; {sync_command(part)}; }}")
        self._run_all(commands, sum(file.size for file in files))

    def switch(self, moves: Iterable[tuple[str, str]], removals: Iterable[str]) -> None:
        """Rename, then remove, in order; a cut between two leaves the later ones undone. Then all is on the storage."""
        renames = [f"mv -f {chunk_word(old)} {chunk_word(new)}" for old, new in moves]
        self._run_all([*renames, *(f"rm -f {chunk_word(name)}" for name in removals), sync_command(".")], 1 << 30)

    def _run_all(self, commands: Iterable[str], size: int = 0) -> None:
        for batch in batches(commands, MAX_SCRIPT_CHARACTERS):
            self._run_inside(" && ".join(batch), size)

    def _parse_sizes(self, output: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, _, kind in (line.partition(" ") for line in output.split("\n") if line):
            if not kind.isdecimal():
                found = f"a {kind}" if kind in ("link", "directory") else repr(f"{name} {kind}")
                remedy = "remove it, or choose another --target"
                raise DeviceRefusal(f"{self.what}/{name}", found=found, wanted="a file or nothing", remedy=remedy)
            sizes[name] = int(kind)
        return sizes

    def _inside(self, script: str) -> str:
        return f"cd {quote(self.folder)} && {{ {script}; }}"

    def _run_inside(self, script: str, size: int = 0) -> str:
        return self._run(self._inside(script), size)

    def _run(self, command: str, size: int = 0) -> str:
        return self._device.shell(command, timeout=timeout_s(size)).require(self.what)


def parse_df(text: str, what: str) -> int:
    """Free bytes of `df -k` for one file system, also where a long name has a line of its own.

    >>> parse_df("Filesystem 1K-blocks Used Available Use% Mounted on\\n/dev/fuse 100 40 60 40% /sdcard\\n", "sdcard")
    61440
    """
    words = " ".join(text.strip().splitlines()[1:]).split()
    percents = [i for i, word in enumerate(words) if re.fullmatch(r"\d+%", word)]
    if len(percents) != 1 or percents[0] < 4 or not words[percents[0] - 1].isdecimal():
        raise DeviceRefusal(f"{what}: df", found=repr(text.strip()[-200:]), wanted="size, used, available, use%")
    return int(words[percents[0] - 1]) * 1024
