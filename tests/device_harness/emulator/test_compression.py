"""`sync:` version 2: compressed files, links and dry runs, as AOSP's adbd takes and gives them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adbd import Peer

from device_harness.adb.connection import Stream
from device_harness.adb.transport import Transport
from device_harness.adb.wire import pack_sync, parse_sync
from device_harness.emulator.compression import (
    DRY_RUN,
    FLAGS,
    CompressedDataError,
    Decompressor,
    Method,
    available,
    compressor,
)
from device_harness.emulator.daemon import features
from device_harness.emulator.faults import Faults

TMP = "/data/local/tmp/v2"
REGULAR, LINK = 0o100644, 0o120777
METHODS = tuple(FLAGS.values())
FLAG = {method: flag for flag, method in FLAGS.items()}
BLOCK = 64 * 1024

Connect = Callable[[Peer], Transport]


def content(size: int) -> bytes:
    """Half of it compresses well."""
    return np.random.default_rng(size).bytes(size // 2) + b"gemma " * (size // 12)


def packed(data: bytes, method: Method) -> bytes:
    made = compressor(method)
    return made.compress(data) + made.finish()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    if found not in available():
        pytest.skip(f"needs the library for {found}: pip install 'gemma-edge[emulator]'")
    return found


# --- the methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_what_was_compressed_comes_back_in_any_pieces(method: Method, step: int) -> None:
    data = content(3000 if step == 1 else 3_000_000)
    raw = packed(data, method)
    decompressor = Decompressor(method)
    found = b"".join(piece for at in range(0, len(raw), step) for piece in decompressor.pieces(raw[at : at + step]))
    decompressor.require_end()
    assert found == data


def test_a_block_that_unpacks_to_much_comes_in_small_pieces(method: Method) -> None:
    raw = packed(bytes(64 << 20), method)
    sizes = [len(piece) for piece in Decompressor(method).pieces(raw)]
    assert sum(sizes) == 64 << 20 and max(sizes) <= 2 << 20


def test_damaged_cut_and_too_much_data_is_refused(method: Method) -> None:
    raw = packed(content(100_000), method)
    with pytest.raises(CompressedDataError, match="damaged"):
        list(Decompressor(method).pieces(b"\xff" * 4 + raw[4:]))
    decompressor = Decompressor(method)
    list(decompressor.pieces(raw[:-1]))
    with pytest.raises(CompressedDataError, match="without its end"):
        decompressor.require_end()
    list(decompressor.pieces(raw[-1:]))
    decompressor.require_end()
    assert not list(decompressor.pieces(b""))
    with pytest.raises(CompressedDataError, match="after the end"):
        list(decompressor.pieces(b"more"))
    with pytest.raises(CompressedDataError, match="damaged" if method == "brotli" else "4 bytes after the end"):
        list(Decompressor(method).pieces(raw + b"more"))


def test_only_methods_with_a_library_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    import device_harness.emulator.compression as compression

    monkeypatch.setattr(compression, "find_spec", lambda name: None)
    monkeypatch.setattr(compression, "_HAS_ZSTD", False)
    assert not [name for name in features() if name.startswith("sendrecv_v2_") and "dry" not in name]
    assert "sendrecv_v2" in features()


# --- the device --------------------------------------------------------------------------------------------------


class Sync:
    """A `sync:` stream, spoken by hand."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._inbox = b""

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), BLOCK):
            self._stream.write(data[at : at + BLOCK], timeout=30)

    def take(self, count: int) -> bytes:
        while len(self._inbox) < count:
            data = self._stream.read(timeout=30)
            assert data, "the stream ended"
            self._inbox += bytes(data)
        taken, self._inbox = self._inbox[:count], self._inbox[count:]
        return taken

    def send(self, path: str, mode: int, flags: int, raw: bytes) -> str:
        """Push; OKAY, or the device's reason."""
        name = f"{TMP}/{path}".encode()
        self.write(pack_sync("SND2", len(name)) + name)
        self.write(b"SND2" + mode.to_bytes(4, "little") + flags.to_bytes(4, "little"))
        for at in range(0, len(raw), BLOCK):
            block = raw[at : at + BLOCK]
            self.write(pack_sync("DATA", len(block)) + block)
        self.write(pack_sync("DONE", 1_700_000_000))
        return self.end()

    def end(self) -> str:
        id_, value = parse_sync(self.take(8))
        return "OKAY" if id_ == "OKAY" else self.take(value).decode()

    def receive(self, path: str, flags: int) -> bytes:
        """Pull: the bytes as they came."""
        name = f"{TMP}/{path}".encode()
        self.write(pack_sync("RCV2", len(name)) + name + b"RCV2" + flags.to_bytes(4, "little"))
        raw = b""
        while True:
            id_, value = parse_sync(self.take(8))
            if id_ == "DONE":
                return raw
            assert id_ == "DATA" and value <= BLOCK, self.take(value) if id_ == "FAIL" else id_
            raw += self.take(value)


@pytest.fixture
def device(peer: Peer) -> Peer:
    peer.set_faults(Faults())
    shutil.rmtree(peer.path(TMP), ignore_errors=True)
    peer.path(TMP).mkdir()
    peer.path(TMP).chmod(0o777)
    return peer


@pytest.fixture
def sync(device: Peer, reach: Connect) -> Sync:
    return Sync(reach(device)._link.open("sync:", timeout=30))


@pytest.mark.parametrize("size", [0, 1, 700_001])
def test_a_compressed_file_is_stored_and_comes_back(device: Peer, sync: Sync, method: Method, size: int) -> None:
    data = content(size)
    assert sync.send("file", REGULAR, FLAG[method], packed(data, method)) == "OKAY"
    raw = sync.receive("file", FLAG[method])
    decompressor = Decompressor(method)
    assert b"".join(decompressor.pieces(raw)) == data
    decompressor.require_end()
    # AOSP's adbd answers OKAY before it sets the time, but takes the next request only afterwards.
    stored = device.path(f"{TMP}/file")
    assert stored.read_bytes() == data and int(stored.stat().st_mtime) == 1_700_000_000


def test_version_2_sends_files_as_they_are_too(device: Peer, sync: Sync) -> None:
    data = content(300_000)
    assert sync.send("plain", REGULAR, 0, data) == "OKAY"
    assert sync.receive("plain", 0) == data and device.path(f"{TMP}/plain").read_bytes() == data


def test_a_dry_run_stores_nothing(device: Peer, sync: Sync) -> None:
    assert sync.send("dry", REGULAR, DRY_RUN, content(200_000)) == "OKAY"
    assert sync.send("wet", REGULAR, 0, b"x") == "OKAY"
    assert not device.path(f"{TMP}/dry").exists()


def test_a_link_is_made_as_one(device: Peer, sync: Sync) -> None:
    assert sync.send("there", REGULAR, 0, b"through") == "OKAY"
    assert sync.send("link", LINK, 0, b"there\0") == "OKAY"
    assert os.readlink(device.path(TMP) / "link") == "there" and sync.receive("link", 0) == b"through"


@pytest.mark.parametrize("flags", [1 | 2, 2 | 4, 8, 0x40000000])
def test_flags_that_contradict_or_are_unknown_end_the_stream(sync: Sync, flags: int) -> None:
    name = f"{TMP}/odd".encode()
    sync.write(pack_sync("SND2", len(name)) + name)
    sync.write(b"SND2" + REGULAR.to_bytes(4, "little") + flags.to_bytes(4, "little"))
    assert sync.end() != "OKAY"


def test_damaged_data_is_an_error_and_the_next_push_works(device: Peer, sync: Sync, method: Method) -> None:
    raw = bytearray(packed(content(300_000), method))
    raw[:4] = b"\xff\xff\xff\xff"
    assert sync.send("damaged", REGULAR, FLAG[method], bytes(raw)) != "OKAY"


# --- adb 34 ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_adb_34_pushes_and_pulls_with_every_method(
    device: Peer, new_adb: Callable[..., str], method: Method, tmp_path: Path
) -> None:
    data = content(5_000_000)
    (tmp_path / "file").write_bytes(data)
    assert "1 file pushed" in new_adb(device, "push", "-z", method, tmp_path / "file", f"{TMP}/file")
    assert device.path(f"{TMP}/file").read_bytes() == data
    assert "1 file pulled" in new_adb(device, "pull", "-z", method, f"{TMP}/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.full
def test_adb_34_tries_a_push_without_storing_it(device: Peer, new_adb: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content(500_000))
    assert "1 file pushed" in new_adb(device, "push", "-n", tmp_path / "file", f"{TMP}/file")
    assert not device.path(f"{TMP}/file").exists()
