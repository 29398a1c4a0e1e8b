"""Pushes to an emulated device: what arrives, what is sent, and what faults leave."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adbd import Adbd, AdbdSettings, Peer
from bundles import DRAFT, TEXT, VISION
from debian import Unavailable
from waiting import PATIENCE_S

import device_harness.push.chunks
import device_harness.push.program
import device_harness.push.push
import gemma_edge
import toolkit.base.files
import toolkit.bundle.manifest_faults
from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import (
    ConnectionLost,
    DeviceFault,
    DeviceRefusal,
    ExecStream,
    ServiceRefused,
    Transport,
)
from device_harness.bench.placement import open_model, place_model
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.programs.build import PUSH_RECEIVER, native_program, parse_architecture
from device_harness.push.push import DEFAULT_FOLDER, push_source
from device_harness.push.receiver import Receiver, place_receiver
from device_harness.push.remote import RemoteFolder
from device_harness.push.result import PushResult
from device_harness.push.scripts import ChunkRun
from device_harness.push.source import Step, open_source
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.write import BundleDraft, GroupDraft, write_bundle
from toolkit.litertlm import schema
from toolkit.litertlm.container import Section, write_container
from toolkit.runtime.weight_cache import default_directory

CHUNK = 16 * 1024
TARGET = "/data/local/tmp/pushed"
GROUPS = {
    "text": GroupDraft("text", ("text_decoder.tflite", "embedder.tflite"), 10, TEXT),
    "ple": GroupDraft("per_layer_embedding", ("ple_00000.bin",), 10),
    "tower": GroupDraft("vision", ("vision_encoder.tflite",), 10, VISION),
}
SIZES = {
    "text_decoder.tflite": 5 * CHUNK + 4321,
    "embedder.tflite": CHUNK,
    "ple_00000.bin": 2 * CHUNK + 1,
    "vision_encoder.tflite": CHUNK - 1,
    "tokenizer.json": 1234,
    "chat_template.jinja": 0,
}

MakeDevice = Callable[[EmulatorSettings], Emulator]
Content = dict[str, bytes]


class Counting(Transport):
    """Notes what the device is told to store: file name, offset and bytes."""

    def __init__(self, device: Peer) -> None:
        super().__init__(tcp_endpoint(device.serial))
        self.writes: list[tuple[str, int, int]] = []
        self.connect()

    def __enter__(self) -> Counting:
        return self

    def stream_exec(self, command: str, *, timeout: float = 30.0) -> ExecStream:
        for name, first, stop, last in re.findall(r"^put (\S+) (\d+) (\d+) (\d+)$", command, re.MULTILINE):
            size = (int(stop) - 1 - int(first)) * CHUNK + int(last)
            self.writes.append((name, int(first) * CHUNK, size))
        return super().stream_exec(command, timeout=timeout)

    def bytes_of(self, name: str) -> int:
        return sum(size for part, _, size in self.writes if part == f"{name}.part")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(toolkit.bundle.manifest_faults, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(device_harness.push.program, "CHUNK_BYTES", CHUNK)


@pytest.fixture(scope="session")
def receiver() -> str:
    """Our program, by its path here: a device that is a folder runs it from there."""
    try:
        return str(native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host")).path)
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture(autouse=True, params=["shell", "native"])
def stored_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """All of this holds whoever takes the bytes on the device: its own programs, or ours."""
    if request.param == "native":
        path: str = request.getfixturevalue("receiver")

        def folder(device: Transport, name: str, placed: str | None) -> RemoteFolder:
            return RemoteFolder(device, name, placed or (path if name == TARGET else None))

        monkeypatch.setattr(device_harness.push.push, "RemoteFolder", folder)
    kind: Receiver = request.param
    return kind


@pytest.fixture
def device(peer: Peer) -> Peer:
    """Clean, and without faults."""
    peer.set_faults(Faults())
    clear(peer)
    return peer


@pytest.fixture(scope="module")
def old_device() -> Iterator[Emulator]:
    """Takes 4096 bytes a message, so that a cut leaves all that came before it."""
    with Emulator(EmulatorSettings(isolation="folder", max_payload_bytes=4096)) as device:
        yield device


@pytest.fixture(params=["emulator", pytest.param("adbd", marks=pytest.mark.full)])
def cut_device(request: pytest.FixtureRequest) -> Peer:
    device: Peer = request.getfixturevalue("old_device" if request.param == "emulator" else "adbd")
    device.set_faults(Faults())
    clear(device)
    return device


@pytest.fixture(params=["emulator", pytest.param("adbd", marks=pytest.mark.full)])
def make_small(request: pytest.FixtureRequest, make_device: MakeDevice) -> Iterator[Callable[[int], Peer]]:
    """Starts devices that have so many bytes of storage, and end with the test."""
    if request.param == "emulator":
        yield lambda size: make_device(EmulatorSettings(isolation="folder", storage_bytes=size))
        return
    root = request.getfixturevalue("adbd_root")
    visible = (default_directory() / "native",)
    with ExitStack() as stack:
        try:
            yield lambda size: stack.enter_context(Adbd(root, AdbdSettings(visible=visible, storage_bytes=size)))
        except Unavailable as error:
            pytest.skip(str(error))


@pytest.fixture
def transport(device: Peer) -> Iterator[Counting]:
    with Counting(device) as transport:
        yield transport


def clear(device: Peer) -> None:
    folder = device.path(TARGET)
    for path in folder.iterdir() if folder.exists() else ():
        path.unlink()


def make_content(seed: int = 0) -> Content:
    generator = np.random.default_rng(seed)
    return {name: generator.bytes(size) for name, size in SIZES.items()}


def make_bundle(path: Path, content: Mapping[str, bytes], groups: Mapping[str, GroupDraft] = GROUPS) -> Path:
    def fill(folder: Path) -> BundleDraft:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        return dataclasses.replace(DRAFT, groups=groups)

    write_bundle(path, fill)
    return path


def on_device(device: Peer) -> Content:
    return {path.name: path.read_bytes() for path in device.path(TARGET).iterdir()}


def locally(bundle: Path) -> Content:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def push(transport: Transport, path: Path, groups: Collection[str] | None = None, **more: object) -> PushResult:
    return push_source(transport, open_source(path, groups), target=TARGET, **more)  # type: ignore[arg-type]


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_first_push_brings_every_file_and_leaves_nothing_else(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    result = push(transport, bundle)
    assert on_device(device) == locally(bundle)
    total = sum(len(data) for data in locally(bundle).values())
    assert (result.bytes_sent, result.bytes_skipped, result.chunks_repaired) == (total, 0, 0)
    assert result.megabytes_per_s is not None and result.files[-1] == "manifest.json"


def test_files_are_readable_for_apps(device: Peer, transport: Counting, tmp_path: Path) -> None:
    push(transport, make_bundle(tmp_path / "bundle", make_content()))
    assert {path.stat().st_mode & 0o777 for path in device.path(TARGET).iterdir()} == {0o644}


def test_a_second_push_writes_nothing(device: Peer, transport: Counting, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    push(transport, bundle)
    before = {path.name: path.stat().st_mtime_ns for path in device.path(TARGET).iterdir()}
    transport.writes.clear()
    result = push(transport, bundle)
    assert transport.writes == [] and result.bytes_sent == 0 and result.megabytes_per_s is None
    assert result.bytes_skipped == sum(len(data) for data in locally(bundle).values())
    assert {path.name: path.stat().st_mtime_ns for path in device.path(TARGET).iterdir()} == before


@pytest.mark.slow
def test_one_changed_tensor_sends_the_chunks_it_touches(device: Peer, transport: Counting, tmp_path: Path) -> None:
    content = make_content()
    push(transport, make_bundle(tmp_path / "one", content))
    transport.writes.clear()
    changed = bytearray(content["text_decoder.tflite"])
    changed[3 * CHUNK - 10 : 3 * CHUNK + 10] = bytes(20)
    bundle = make_bundle(tmp_path / "two", {**content, "text_decoder.tflite": bytes(changed)})
    result = push(transport, bundle)
    assert on_device(device) == locally(bundle)
    manifest_bytes = (bundle / "manifest.json").stat().st_size
    assert transport.bytes_of("text_decoder.tflite") == 2 * CHUNK
    assert result.bytes_sent <= 2 * CHUNK + manifest_bytes
    assert result.bytes_copied >= SIZES["text_decoder.tflite"] - 2 * CHUNK
    assert set(result.files_sent) == {"text_decoder.tflite", "manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 5])
def test_a_file_of_another_size_is_sent_from_where_it_differs(
    device: Peer, transport: Counting, tmp_path: Path, stored_by: Receiver, size: int
) -> None:
    content = make_content()
    push(transport, make_bundle(tmp_path / "one", content))
    transport.writes.clear()
    old = content["text_decoder.tflite"]
    new = (old + bytes(range(1, 256)) * 1000)[:size]
    bundle = make_bundle(tmp_path / "two", {**content, "text_decoder.tflite": new})
    push(transport, bundle)
    assert on_device(device) == locally(bundle)
    # Ours copies the start of a chunk, where the new file ends in its middle; dd copies all of it.
    same = size if stored_by == "native" and size <= len(old) else min(len(old), size) // CHUNK * CHUNK
    assert transport.bytes_of("text_decoder.tflite") == size - same


@pytest.mark.slow
def test_a_file_of_equal_size_and_other_bytes_is_replaced(device: Peer, transport: Counting, tmp_path: Path) -> None:
    push(transport, make_bundle(tmp_path / "one", make_content(0)))
    bundle = make_bundle(tmp_path / "two", make_content(1))
    result = push(transport, bundle)
    assert on_device(device) == locally(bundle) and result.bytes_copied == 0


@pytest.mark.slow
def test_a_file_damaged_on_the_device_is_mended_under_the_same_manifest(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    push(transport, bundle)
    damaged = device.path(f"{TARGET}/ple_00000.bin")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    transport.writes.clear()
    result = push(transport, bundle)
    assert on_device(device) == locally(bundle)
    assert (transport.writes, result.files_sent) == ([("ple_00000.bin.part", 2 * CHUNK, 1)], ("ple_00000.bin",))


def test_only_wanted_groups_and_files_of_none_are_sent(device: Peer, transport: Counting, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    push(transport, bundle, groups=["ple"])
    wanted = {"ple_00000.bin", "tokenizer.json", "chat_template.jinja", "manifest.json"}
    assert on_device(device) == {name: data for name, data in locally(bundle).items() if name in wanted}
    result = push(transport, bundle, groups=["ple", "text"])
    assert set(result.files_sent) == {"embedder.tflite", "text_decoder.tflite"}
    assert "vision_encoder.tflite" not in on_device(device)


def test_a_litertlm_goes_as_one_file_and_by_its_own_hashes(device: Peer, transport: Counting, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(make_content()["text_decoder.tflite"])
    push(transport, path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    transport.writes.clear()
    result = push(transport, path)
    assert on_device(device) == {"model.litertlm": path.read_bytes()}
    assert transport.bytes_of("model.litertlm") == 4321 and result.files == ("model.litertlm",)


@pytest.mark.slow
def test_files_that_only_the_older_bundle_had_go_and_strangers_stay(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    content = make_content()
    push(transport, make_bundle(tmp_path / "one", content))
    device.path(f"{TARGET}/mine.txt").write_bytes(b"mine")
    less = {name: data for name, data in content.items() if name != "vision_encoder.tflite"}
    groups = {name: group for name, group in GROUPS.items() if name != "tower"}
    bundle = make_bundle(tmp_path / "two", less, groups)
    result = push(transport, bundle)
    assert on_device(device) == {**locally(bundle), "mine.txt": b"mine"}
    assert result.files_removed == ("vision_encoder.tflite",)


@pytest.mark.slow
def test_a_file_that_differs_in_case_only_is_left_for_it_may_be_the_new_one(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    content = make_content()
    push(transport, make_bundle(tmp_path / "one", {**content, "Notes.txt": b"old"}))
    result = push(transport, make_bundle(tmp_path / "two", {**content, "notes.txt": b"new"}))
    assert result.files_removed == ()


@pytest.mark.slow
def test_a_group_left_out_goes_if_it_is_another_models_and_stays_if_not(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    content = make_content()
    push(transport, make_bundle(tmp_path / "one", content))
    two = make_bundle(tmp_path / "two", {**content, "tokenizer.json": b"{}", "vision_encoder.tflite": b"other"})
    result = push(transport, two, groups=["text"])
    assert result.files_removed == ("vision_encoder.tflite",)
    assert on_device(device)["ple_00000.bin"] == content["ple_00000.bin"]


def test_a_foreign_manifest_on_the_device_removes_nothing(
    device: Peer, transport: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = device.path(TARGET)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keep.bin").write_bytes(b"keep")
    (folder / "manifest.json").write_text(json.dumps({"files": {"keep.bin": {}, "../x": {}}}))
    bundle = make_bundle(tmp_path / "bundle", make_content())
    push(transport, bundle)
    assert on_device(device) == {**locally(bundle), "keep.bin": b"keep"}
    assert "its files stay" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False])
def test_it_works_in_both_shells(make_device: MakeDevice, tmp_path: Path, stored_by: Receiver, old: bool) -> None:
    settings = EmulatorSettings(isolation="folder", features=frozenset(), max_payload_bytes=4096)
    bundle = make_bundle(tmp_path / "bundle", make_content())
    device = make_device(settings if old else EmulatorSettings())
    with Counting(device) as transport:
        push(transport, bundle, receiver=place_receiver(transport, stored_by))
        assert on_device(device) == locally(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["fullblock", "openssl", "sha256sum", "English"])
def test_it_works_with_the_programs_that_a_device_has(make_device: MakeDevice, tmp_path: Path, missing: str) -> None:
    device = make_device(EmulatorSettings(isolation="folder"))
    refusal = {
        "fullblock": "case $* in *iflag*) exit 1;; esac; exec /bin/dd",
        "openssl": "exit 1",
        "sha256sum": "exit 1",
        "English": 'case $LC_ALL in C) exec /bin/dd "$@";; esac; exec /bin/dd status=none',
    }
    program = device.path("/system/bin") / ("dd" if missing in ("fullblock", "English") else missing)
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\n{refusal[missing]} "$@"\n')
    program.chmod(0o755)
    one, two = (make_bundle(tmp_path / str(seed), make_content(seed)) for seed in (1, 2))
    with Counting(device) as transport:
        if missing == "sha256sum" and shutil.which("openssl") is None:
            with pytest.raises(DeviceRefusal, match="sha256sum"):
                push(transport, one)
            return
        push(transport, one)
        assert on_device(device) == locally(one)
        assert push(transport, one).bytes_sent == 0
        push(transport, two)
        assert on_device(device) == locally(two)


# --- cuts -------------------------------------------------------------------------------------------------------------


def received(device: Peer, act: Callable[[], object]) -> int:
    """Bytes that come in over the wire meanwhile."""
    device.set_faults(Faults())
    act()
    if isinstance(device, Adbd):
        return device.received
    assert isinstance(device, Emulator)
    return device._daemon.store._received


@pytest.mark.full
@pytest.mark.slow
def test_a_push_cut_at_50_random_points_goes_on_by_itself(cut_device: Peer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    with Counting(cut_device) as transport:
        total = received(cut_device, lambda: push(transport, bundle))
    dice = random.Random(5)
    reconnects = 0
    for at in [1, total - 1, *(dice.randrange(total) for _ in range(48))]:
        cut_device.set_faults(Faults())  # a push may take less than the first did: its cut is not for the next one
        clear(cut_device)
        with Counting(cut_device) as transport:
            cut_device.set_faults(Faults(drop_at_byte=at))
            reconnects += push(transport, bundle).reconnects
        assert on_device(cut_device) == locally(bundle), f"cut at byte {at}"
    assert reconnects >= 45


@pytest.mark.full
def test_what_a_cut_left_of_an_update_is_taken_up_by_the_next_push(cut_device: Peer, tmp_path: Path) -> None:
    one, content = make_content(1), make_content()
    changed = {name: data[: len(data) // 2] + one[name][len(data) // 2 :] for name, data in content.items()}
    before, after = make_bundle(tmp_path / "one", content), make_bundle(tmp_path / "two", changed)
    source = open_source(after)
    with Counting(cut_device) as transport:
        push(transport, before)
        total = received(cut_device, lambda: push(transport, after))
    dice = random.Random(6)
    cuts = 0
    for at in (dice.randrange(total) for _ in range(8)):
        clear(cut_device)
        with Counting(cut_device) as transport:
            push(transport, before)
            cut_device.set_faults(Faults(drop_at_byte=at))
            try:
                push_source(transport, source, target=TARGET, patience_s=0)
            except ConnectionLost:
                cuts += 1
        cut_device.set_faults(Faults())
        with Counting(cut_device) as transport:
            push(transport, after)
        assert on_device(cut_device) == locally(after), f"cut at byte {at}"
    assert cuts >= 6


@pytest.mark.slow
def test_after_a_cut_whole_chunks_are_not_sent_again(cut_device: Peer, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(np.random.default_rng(3).bytes(64 * CHUNK))
    source = open_source(path)
    with Counting(cut_device) as transport:
        cut_device.set_faults(Faults(drop_at_byte=48 * CHUNK))
        with pytest.raises(ConnectionLost):
            push_source(transport, source, target=TARGET, patience_s=0)
    part = cut_device.path(f"{TARGET}/model.litertlm.part")
    # What was cut off may still be on its way through the device's pipes.
    give_up = time.monotonic() + 10
    while not (have := part.stat().st_size // CHUNK) and time.monotonic() < give_up:
        time.sleep(0.01)
    with Counting(cut_device) as transport:
        push_source(transport, source, target=TARGET)
        [(_, offset, size)] = transport.writes
    # A command of the cut connection may have written a little more since.
    assert offset >= have * CHUNK > 0 and offset + size == 64 * CHUNK


@pytest.mark.slow
def test_a_device_that_reboots_in_the_middle_gets_the_rest(cut_device: Peer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    with Counting(cut_device) as transport:
        cut_device.set_faults(Faults(reboot_at_byte=5 * CHUNK))
        assert push(transport, bundle).reconnects >= 1
    assert on_device(cut_device) == locally(bundle)


def test_a_device_that_never_gets_further_is_given_up(
    cut_device: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    cuts = 0

    def cut(*_: object, **__: object) -> None:
        nonlocal cuts
        cuts += 1
        raise ConnectionLost("device", found="a cut", wanted="none")

    with Counting(cut_device) as transport:
        monkeypatch.setattr(transport, "stream_exec", cut)
        with pytest.raises(ConnectionLost):
            push(transport, bundle)
    assert cuts == 4


@pytest.mark.slow
def test_an_interrupt_leaves_what_the_next_push_goes_on_with(cut_device: Peer, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(np.random.default_rng(3).bytes(3 * 1024 * 1024))

    def interrupt(step: Step, done: int, total: int) -> None:
        if step == "send" and done > total // 2:
            raise KeyboardInterrupt

    with Counting(cut_device) as transport, pytest.raises(KeyboardInterrupt):
        push(transport, path, progress=interrupt)
    assert list(on_device(cut_device)) == ["model.litertlm.part"]
    with Counting(cut_device) as transport:
        result = push(transport, path)
    assert on_device(cut_device) == {"model.litertlm": path.read_bytes()}
    assert result.bytes_skipped > 0


# --- storage ----------------------------------------------------------------------------------------------------------


def test_too_little_room_is_found_before_anything_is_sent(make_small: Callable[[int], Peer], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    device = make_small(100_000)
    with Counting(device) as transport, pytest.raises(EnvironmentFault, match="bytes free") as caught:
        push(transport, bundle)
    assert transport.writes == [] and on_device(device) == {}
    assert caught.value.exit_code == 3


def test_without_room_for_both_the_old_file_is_changed_in_place(
    make_small: Callable[[int], Peer], tmp_path: Path
) -> None:
    content = make_content()
    one = make_bundle(tmp_path / "one", content)
    total = sum(len(data) for data in locally(one).values())
    device = make_small(total + 2 * CHUNK)
    changed = {**content, "text_decoder.tflite": content["text_decoder.tflite"][:-1] + b"?"}
    two = make_bundle(tmp_path / "two", changed)
    with Counting(device) as transport:
        push(transport, one)
        result = push(transport, two)
    assert on_device(device) == locally(two)
    assert transport.bytes_of("text_decoder.tflite") == SIZES["text_decoder.tflite"] + 4321
    assert result.bytes_copied == 0


@pytest.mark.slow
def test_a_bundle_that_is_changed_in_place_has_no_manifest_until_it_is_whole(
    make_small: Callable[[int], Peer], tmp_path: Path
) -> None:
    one, two = (make_bundle(tmp_path / str(seed), make_content(seed)) for seed in (1, 2))
    total = sum(len(data) for data in locally(one).values())
    device = make_small(total + 2 * CHUNK)
    source = open_source(two)
    with Counting(device) as transport:
        push(transport, one)
        device.set_faults(Faults(drop_at_byte=4 * CHUNK))
        with pytest.raises(ConnectionLost):
            push_source(transport, source, target=TARGET, patience_s=0)
    assert "manifest.json" not in on_device(device) and "manifest.json.old" in on_device(device)
    with Counting(device) as transport:
        push(transport, two)
    assert on_device(device) == locally(two)


def test_a_disk_with_less_room_than_it_told_is_one_clear_error(
    make_small: Callable[[int], Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    monkeypatch.setattr(RemoteFolder, "free_bytes", lambda folder: 10**9)
    device = make_small(100_000)
    with Counting(device) as transport:
        with pytest.raises(DeviceRefusal, match=r"No space left on device.*push again"):
            push(transport, bundle)
        assert transport.shell("echo on", timeout=10).stdout == "on\n"
    assert all(name.endswith(".part") for name in on_device(device))


def test_a_disk_that_fills_up_meanwhile_is_one_clear_error_and_loses_nothing(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    device.set_faults(Faults(disk_full_at_byte=4 * CHUNK))
    with pytest.raises(DeviceRefusal, match=r"No space left on device.*push again"):
        push(transport, bundle)
    device.set_faults(Faults())
    with Counting(device) as again:
        push(again, bundle)
    assert on_device(device) == locally(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 3 * CHUNK + 7, 8 * CHUNK])
def test_a_block_that_the_device_stores_wrong_is_sent_again(
    device: Peer, transport: Counting, tmp_path: Path, at: int
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    device.set_faults(Faults(corrupt_at_byte=at))
    result = push(transport, bundle)
    assert on_device(device) == locally(bundle)
    assert result.chunks_repaired == 1


def test_storage_that_stays_wrong_is_reported_with_the_place(
    device: Peer, transport: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "model.litertlm", tmp_path / "other"
    path.write_bytes(bytes(3 * CHUNK))
    other.write_bytes(bytes(2 * CHUNK - 1) + b"\1" + bytes(CHUNK))
    send_run = device_harness.push.chunks._send_run

    def damaging(stream: ExecStream, run: ChunkRun, *rest: Any) -> None:
        send_run(stream, ChunkRun(dataclasses.replace(run.file, path=other), run.first, run.stop), *rest)

    monkeypatch.setattr(device_harness.push.chunks, "_send_run", damaging)
    with pytest.raises(DeviceRefusal, match=r"model.litertlm: found other bytes from 16,384 on, sent 3 times"):
        push(transport, path)
    assert list(on_device(device)) == ["model.litertlm.part"]


def test_the_receiver_is_found_again_by_its_hash_and_replaced_if_it_is_another(
    device: Peer, transport: Counting, stored_by: Receiver
) -> None:
    assert place_receiver(transport, "shell") is None
    if stored_by == "native":
        first = place_receiver(transport, "native")
        assert first is not None
        file, program = device.path(first), device.path(first).read_bytes()
        inode = file.stat().st_ino
        assert place_receiver(transport, "auto") == first and file.stat().st_ino == inode
        file.write_bytes(b"another")
        assert place_receiver(transport, "auto") == first and file.read_bytes() == program
        assert transport.shell(first, timeout=10).stdout.startswith("usage: push_receiver")


def test_a_receiver_that_the_device_cannot_run_is_not_used_and_that_is_said(
    device: Peer, transport: Counting, receiver: str
) -> None:
    placed = place_receiver(transport, "native")
    assert placed is not None
    device.path(placed).chmod(0o644)
    said: list[str] = []
    assert place_receiver(transport, "auto", say=said.append) is None
    assert len(said) == 1 and "Permission denied" in said[0] and "own tools store and hash instead" in said[0]
    with pytest.raises(DeviceFault, match="Permission denied"):
        place_receiver(transport, "native")
    device.path(placed).chmod(0o755)
    assert place_receiver(transport, "auto") == placed


def test_a_receiver_needs_none_of_the_devices_programs_for_chunks(
    make_device: MakeDevice, receiver: str, tmp_path: Path
) -> None:
    device = make_device(EmulatorSettings(isolation="folder"))
    for name in ("dd", "openssl", "sha256sum"):
        program = device.path("/system/bin") / name
        program.unlink(missing_ok=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    path = tmp_path / "model.litertlm"
    data = np.random.default_rng(3).bytes(9 * CHUNK + 5)
    with Counting(device) as transport:
        path.write_bytes(data)
        push(transport, path, receiver=receiver)
        path.write_bytes(data[: 4 * CHUNK] + b"?" + data[4 * CHUNK + 1 :])
        result = push(transport, path, receiver=receiver)
        again = push(transport, path, receiver=receiver)
    assert on_device(device) == {"model.litertlm": path.read_bytes()}
    assert (result.receiver, result.bytes_sent, result.bytes_copied) == ("native", CHUNK, 8 * CHUNK + 5)
    assert (again.bytes_sent, again.bytes_copied) == (0, 0)


def test_what_the_device_cannot_read_is_sent_again(device: Peer, transport: Counting, tmp_path: Path) -> None:
    """Here a folder of files is no way to fail a read: the device's file ends while it is looked at."""
    path = tmp_path / "model.litertlm"
    path.write_bytes(np.random.default_rng(3).bytes(3 * CHUNK))
    push(transport, path)
    sizes = transport.shell

    def shrinking(command: str, **how: Any) -> Any:
        result = sizes(command, **how)
        if "stat -c" in command:
            os.truncate(device.path(f"{TARGET}/model.litertlm"), CHUNK + 7)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "shell", shrinking)
        result = push(transport, path)
    assert on_device(device) == {"model.litertlm": path.read_bytes()}
    assert (result.bytes_copied, result.bytes_sent) == (CHUNK, 2 * CHUNK)


def test_a_processor_that_nothing_is_built_for_stores_by_its_own_programs(
    transport: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = transport.shell
    monkeypatch.setattr(
        transport,
        "shell",
        lambda command, **how: shell(command.replace("uname -m", "echo armv7l"), **how),
    )
    assert place_receiver(transport, "auto") is None
    with pytest.raises(DeviceFault, match="armv7l"):
        place_receiver(transport, "native")


def test_a_benchmarks_model_is_stored_by_our_program_where_it_has_been_built(
    device: Peer, transport: Counting, receiver: str, tmp_path: Path
) -> None:
    write_container(tmp_path / "model.litertlm", [Section(schema.LLM_METADATA, (bytes(CHUNK),))], {})
    shutil.rmtree(device.path(f"{DEFAULT_FOLDER}/bin"), ignore_errors=True)
    place_model(AdbDevice(transport), open_model(tmp_path / "model.litertlm"))
    assert list(device.path(f"{DEFAULT_FOLDER}/bin").glob(f"*/{Path(receiver).name}"))


@pytest.mark.slow
def test_two_pushes_to_one_folder_take_turns(device: Peer, tmp_path: Path) -> None:
    contents = [make_content(), make_content(seed=1)]
    bundles = [make_bundle(tmp_path / str(number), content) for number, content in enumerate(contents)]
    sending, waiting = threading.Event(), threading.Event()
    log = logging.getLogger("device_harness.adb.turns")

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for another push" in record.getMessage():
                waiting.set()

    def hold(step: Step, done: int, total: int) -> None:
        if step == "send":
            sending.set()
            assert waiting.wait(PATIENCE_S)

    noted = Noted()
    log.addHandler(noted)
    try:
        with ThreadPoolExecutor(1) as pool, Counting(device) as one, Counting(device) as other:
            first = pool.submit(push_source, one, open_source(bundles[0]), target=TARGET, progress=hold)
            assert sending.wait(PATIENCE_S)
            push_source(other, open_source(bundles[1]), target=TARGET)
            first.result()
    finally:
        log.removeHandler(noted)
    assert on_device(device) == {path.name: path.read_bytes() for path in bundles[1].iterdir()}


def test_a_damaged_litertlm_is_neither_pushed_nor_measured(device: Peer, tmp_path: Path) -> None:
    """Its hashes are compared while it is sent; what the device had under its name stays."""
    path = tmp_path / "model.litertlm"
    write_container(path, [Section(schema.LLM_METADATA, (b"\1" * CHUNK,))], {})
    old = path.read_bytes()
    gemma_edge.push(path, device.serial, target=TARGET)
    write_container(path, [Section(schema.LLM_METADATA, (bytes(CHUNK),))], {})
    data = path.read_bytes()
    # In a whole chunk, which has a hash of its own in the file, and in the hashes of chunks.
    for at in (2 * CHUNK - 1, len(data) - 1):
        path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        for refuse in (lambda: gemma_edge.push(path, device.serial, target=TARGET), lambda: open_model(path)):
            with pytest.raises(BundleError, match=r"found sha256 .*, wanted .*; export it again"):
                refuse()
        assert on_device(device)["model.litertlm"] == old
    path.write_bytes(data)
    gemma_edge.push(path, device.serial, target=TARGET)
    assert on_device(device)["model.litertlm"] == data


def test_hashing_a_litertlm_to_measure_it_shows_its_progress(tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    write_container(path, [Section(schema.LLM_METADATA, (bytes(CHUNK),))], {})
    size, told = path.stat().st_size, list[tuple[str, int, int]]()
    open_model(path, progress=lambda *steps: told.append(steps))
    assert told[-1] == ("check", 2 * size, 2 * size) and len({done for _, done, _ in told}) > 2


# --- hostile and wrong input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil", "/data/evil", "a/b", "..", "-rf", "a b", "$(id)", "a;id", "a\nb", "x.part"]
)
def test_a_manifest_with_a_name_that_leads_elsewhere_is_refused(
    device: Peer, transport: Counting, tmp_path: Path, name: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"].pop("tokenizer.json")
    (bundle / "manifest.json").write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError):
        push(transport, bundle)
    assert transport.writes == []


@pytest.mark.parametrize("target", ["relative", "/data/../etc", "/data/a b", "/data/$(id)", "/data//x", "/", "/data/."])
def test_a_target_that_is_no_plain_path_is_refused(transport: Counting, tmp_path: Path, target: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    with pytest.raises(UsageError, match="remote path"):
        push_source(transport, open_source(bundle), target=target)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.part"])
def test_a_link_on_the_device_is_not_followed(device: Peer, transport: Counting, tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    outside = device.path("/data/local/tmp/outside")
    outside.write_bytes(b"outside")
    device.path(TARGET).mkdir(parents=True, exist_ok=True)
    device.path(f"{TARGET}").joinpath(name).symlink_to(outside)
    with pytest.raises(DeviceRefusal, match="found a link"):
        push(transport, bundle)
    assert outside.read_bytes() == b"outside" and transport.writes == []


@pytest.mark.slow
def test_a_chunk_that_is_not_what_the_manifest_says_ends_the_push_and_changes_nothing(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    before = make_bundle(tmp_path / "before", make_content(1))
    push(transport, before)
    bundle = make_bundle(tmp_path / "bundle", make_content())
    data = bytearray((bundle / "ple_00000.bin").read_bytes())
    data[CHUNK + 7] ^= 1
    (bundle / "ple_00000.bin").write_bytes(data)
    with pytest.raises(BundleError, match=r"ple_00000\.bin: found sha256 [0-9a-f]+ from byte 16,384 on"):
        push(transport, bundle)
    found = on_device(device)
    assert {name: found[name] for name in locally(before)} == locally(before)
    data[CHUNK + 7] ^= 1
    (bundle / "ple_00000.bin").write_bytes(data)
    push(transport, bundle)
    assert on_device(device) == locally(bundle)


@pytest.mark.slow
def test_a_file_is_looked_at_before_it_takes_the_place_of_one_that_cannot_stay(
    make_small: Callable[[int], Peer], tmp_path: Path
) -> None:
    one, two = (make_bundle(tmp_path / str(seed), make_content(seed)) for seed in (1, 2))
    total = sum(len(data) for data in locally(one).values())
    device = make_small(total + 2 * CHUNK)
    (two / "vision_encoder.tflite").write_bytes(bytes(SIZES["vision_encoder.tflite"]))
    with Counting(device) as transport:
        push(transport, one)
        transport.writes.clear()
        with pytest.raises(BundleError, match=r"vision_encoder\.tflite: found sha256"):
            push(transport, two)
    assert on_device(device) == locally(one) and transport.writes == []


def test_local_damage_in_what_the_device_has_already_is_no_matter(
    device: Peer, transport: Counting, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    push(transport, bundle)
    content = on_device(device)
    (bundle / "ple_00000.bin").write_bytes(bytes(SIZES["ple_00000.bin"]))
    assert push(transport, bundle).bytes_sent == 0 and on_device(device) == content


@pytest.mark.slow
@pytest.mark.parametrize("features", [frozenset(), frozenset({"shell_v2"})])
def test_only_a_device_of_shell_v1_needs_exec_and_without_it_is_one_clear_error(
    make_device: MakeDevice, tmp_path: Path, features: frozenset[str]
) -> None:
    device = make_device(EmulatorSettings(isolation="folder", features=features))
    device.set_faults(Faults(refused_services=("exec:",)))
    bundle = make_bundle(tmp_path / "bundle", make_content())
    with Counting(device) as transport:
        if features:
            push(transport, bundle)
            assert on_device(device) == locally(bundle)
        else:
            with pytest.raises(ServiceRefused, match=r" exec: the device refuses this service"):
                push(transport, bundle)


# --- several devices, progress ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_devices_take_the_same_files_at_once(device: Peer, make_device: MakeDevice, tmp_path: Path) -> None:
    devices = [device, make_device(EmulatorSettings(isolation="folder"))]
    bundle = make_bundle(tmp_path / "bundle", make_content())
    source = open_source(bundle)
    both = threading.Barrier(2, timeout=30)

    def meet(step: Step, done: int, total: int) -> None:
        if step == "send" and done == total:
            both.wait()

    def one(device: Peer) -> PushResult:
        with Counting(device) as transport:
            return push_source(transport, source, target=TARGET, progress=meet)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, devices))
    assert [result.device for result in results] == [device.serial for device in devices]
    assert all(on_device(device) == locally(bundle) for device in devices)


@pytest.mark.slow
def test_progress_counts_each_step_to_its_end(device: Peer, transport: Counting, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_content())
    seen: dict[str, list[tuple[int, int]]] = {}
    push(transport, bundle, progress=lambda step, done, total: seen.setdefault(step, []).append((done, total)))
    content = {path.name: path.stat().st_size for path in bundle.iterdir()}
    total = sum(content.values())
    assert list(seen) == ["send", "verify"]
    assert seen["send"][-1] == seen["verify"][-1] == (total, total)
    assert all(calls == sorted(calls) for calls in seen.values())
    path = tmp_path / "bundle" / "text_decoder.tflite"
    changed = {**make_content(), path.name: path.read_bytes()[:-1] + b"?"}
    seen.clear()
    result = push(
        transport,
        make_bundle(tmp_path / "changed", changed),
        progress=lambda step, done, total: seen.setdefault(step, []).append((done, total)),
    )
    assert list(seen) == ["compare", "copy", "send", "verify"]
    assert seen["copy"][-1] == (result.bytes_copied, result.bytes_copied)
    assert all(calls == sorted(calls) for calls in seen.values())
