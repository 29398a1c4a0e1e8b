"""Our program in C on this computer and on an emulated device, through the client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from paths import EXAMPLE
from waiting import wait_until

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import Transport
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.native.answer import DeviceConversation, DeviceSettings
from device_harness.native.client import NativeClient
from device_harness.native.conversation import NativeConversation
from device_harness.native.library import LibraryChoice, find_library
from device_harness.native.place import PlacedRunner, place_runner
from device_harness.programs.build import parse_architecture
from device_harness.push.source import open_source
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.bundle.ple_shards import read_header
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import AnswerRequest
from toolkit.runtime.generate import Generation
from toolkit.runtime.media_prompt import Span, read_image
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

PROMPT = [2, 100, 200, 300]
GREEDY = Sampling()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "tiny"
    convert(ConvertRequest(EXAMPLE, path, sizes=("large", "small"), context=512), gate=None)
    return path


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[int]:
    """The tokens that our session generates."""
    with Session(Bundle(bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        sampler = Sampler(GREEDY, session.text.text_ids)
        return list(Generation(session, PROMPT, sampler, limit=12, stops=()))


def placed_on(machine: Machine) -> PlacedRunner:
    try:
        return place_runner(machine)
    except EnvironmentFault as error:
        if error.place == "ziglang":
            pytest.skip(str(error))
        raise


@pytest.fixture
def boxed() -> Iterator[Machine]:
    """An emulated device with a file system of its own: paths within commands' input are not translated elsewhere."""
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap (apt-get install bubblewrap)")
    with Emulator(EmulatorSettings()) as device, Transport(tcp_endpoint(device.serial)).connect() as transport:
        if not device.userland.is_isolated:
            pytest.skip("bubblewrap may not make namespaces here")
        yield AdbDevice(transport)


@pytest.fixture
def client() -> Iterator[NativeClient]:
    with NativeClient(Host(), placed_on(Host())) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("where", ["host", "device"])
def test_a_bundle_answers_on_a_machine_as_in_our_session(
    where: str, bundle: Path, expected: list[int], request: pytest.FixtureRequest
) -> None:
    machine: Machine = Host() if where == "host" else request.getfixturevalue("boxed")
    folder = machine.place_files(open_source(bundle))
    with NativeClient(machine, placed_on(machine)) as native:
        opened = native.open(folder, threads=1, weight_folder=f"{folder}-weights")
        assert (opened.size, opened.context, opened.threads) == ("large", 512, 1)
        assert opened.weight_file is not None and opened.weight_file.startswith(f"{folder}-weights/")
        generation = native.generate(PROMPT, GREEDY, limit=12, stops=())
        assert list(generation) == expected
        assert generation.end is not None and generation.end.ending == "length"
        assert generation.end.first_s > generation.end.prefill_s > 0
        pid = native.pid
    # It ends by itself when its input does, which takes a moment.
    wait_until(lambda: machine.shell(f"kill -0 {pid} 2>/dev/null || echo gone", timeout=20).stdout == "gone\n")


@pytest.mark.slow
def test_a_conversation_computes_only_what_is_new(bundle: Path, client: NativeClient) -> None:
    manifest = Bundle(bundle).manifest
    assert manifest.vision is not None
    vision = manifest.vision
    medium = read_image(EXAMPLE / "samples" / "red-circle.png", vision)
    client.open(str(bundle), threads=1)
    conversation = NativeConversation(client)
    prompt = [2, 50, vision.begin_token_id, *([vision.soft_token_id] * vision.soft_tokens), vision.end_token_id, 60]
    spans = [Span(3, vision.soft_tokens, medium)]
    with Session(Bundle(bundle), SessionSettings(threads=1, weight_cache="memory")) as session:
        for reused in (0, len(prompt)):
            kept, generation = conversation.generate(prompt, GREEDY, spans=spans, limit=5, stops=())
            tokens = list(generation)
            assert generation.end is not None
            conversation.note(tokens, generation.end.position)
            sampler = Sampler(GREEDY, session.text.text_ids)
            assert tokens == list(Generation(session, prompt, sampler, limit=5, stops=(), spans=spans))
            assert kept == reused or kept > len(prompt) - 10 > reused - 10
            prompt = [*prompt, *tokens, 70, 71]
        kept, generation = conversation.generate([2, 50, 51], GREEDY, limit=1)
        generation.stop()
        assert kept in (0, 2)


@pytest.mark.slow
def test_after_an_answer_with_a_fault_that_nobody_saw_the_next_one_is_right(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop text is found while the program goes on, and meets a damaged row."""
    broken = tmp_path / "bundle"
    shutil.copytree(bundle, broken)
    monkeypatch.setattr(Host, "cache_folder", str(tmp_path))
    manifest = Bundle(broken).manifest

    def request(prompt: list[int], limit: int = 4) -> AnswerRequest:
        return AnswerRequest(prompt, Sampler(GREEDY, manifest.text.text_ids), limit, stops=())

    placed_on(Host())
    conversation = DeviceConversation(Bundle(broken), nullcontext(Host()), DeviceSettings(threads=1))
    try:
        first = list(conversation.answer(request(PROMPT)))
        follow_up = [*PROMPT, first[0], 70, 71]
        conversation.forget()
        expected = list(conversation.answer(request(follow_up)))
        conversation.forget()
        shard = broken / "ple_00000.bin"
        with open(shard, "r+b") as file:
            file.seek(4096 + first[2] * read_header(shard).layout.row_bytes)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
            file.flush()
        tokens = conversation.answer(request(PROMPT, limit=400))
        assert next(iter(tokens)) == first[0]
        wait_until(lambda: not tokens._receiver.is_alive())
        tokens.end("stop text")
        assert tokens.report().ending == "stop text"
        again = conversation.answer(request(follow_up))
        assert (list(again), again.report().reused_tokens) == (expected, 0)
        left = conversation.answer(request(expected, limit=400))
        next(iter(left))  # and nobody takes the others, or ends it
        again = conversation.answer(request(follow_up))
        assert list(again) == expected
    finally:
        conversation.close()


@pytest.mark.slow
def test_an_answer_can_be_stopped_and_the_conversation_goes_on(bundle: Path, client: NativeClient) -> None:
    client.open(str(bundle), threads=1)
    generation = client.generate(PROMPT, GREEDY, stops=())
    next(generation)
    end = generation.stop()
    assert end.ending == "interrupted" and end.position < 500
    client.use("small")
    client.truncate(0)
    assert client.prefill([2, 3]) == 2 and client.decode(4).dtype == np.float32
    assert set(client.stats()) >= {"memory", "faults", "ple", "tower_loads"}


@pytest.mark.slow
def test_errors_of_the_program_are_ours(bundle: Path, client: NativeClient, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: no such file; run gemma-edge check"):
        client.open(str(tmp_path))
    client.open(str(bundle), threads=1)
    with pytest.raises(UsageError, match="size: found huge, wanted one of the manifest's sizes"):
        client.use("huge")
    assert client.prefill([2]) == 1


@pytest.mark.slow
def test_a_program_that_is_killed_is_named_with_its_end(client: NativeClient) -> None:
    Host().shell(f"kill -KILL {client.pid}", timeout=20)
    with pytest.raises(EnvironmentFault, match="host bundle_runner: the program ended"):
        client.stats()


# --- the library -------------------------------------------------------------------------------------------------


def here() -> str:
    return Host().shell("uname -m", timeout=20).stdout


def test_a_library_without_the_functions_or_for_another_machine_is_refused(tmp_path: Path) -> None:
    arm = tmp_path / "libLiteRt.so"
    arm.write_bytes(b"\x7fELF\x02".ljust(18, b"\0") + b"\xb7\0".ljust(100, b"\0"))
    for path, architecture, fault in (
        (arm, "x86_64", "found code for aarch64, wanted x86_64"),
        (arm, "aarch64", "no function LiteRtCreateCompiledModel; use libLiteRt.so of LiteRT 2.3"),
        (tmp_path / "none.so", "x86_64", "none.so: found no such file"),
        (Path(__file__), "x86_64", "found no 64-bit ELF file"),
    ):
        with pytest.raises(EnvironmentFault, match=fault):
            find_library("android", parse_architecture(architecture, "test"), LibraryChoice(path), say=print)


def test_without_a_library_for_the_machine_the_error_says_what_brings_one() -> None:
    for system, architecture, fault in (
        ("android", "x86_64", "none is known for x86_64 Android; give --library PATH"),
        ("linux", "aarch64" if parse_architecture(here(), "host") == "x86_64" else "x86_64", "Linux on this computer"),
    ):
        with pytest.raises(EnvironmentFault, match=fault):
            find_library(
                "android" if system == "android" else "linux", parse_architecture(architecture, "test"),
                LibraryChoice(), say=print,
            )  # fmt: skip


@pytest.mark.full
def test_pip_brings_the_library_for_android(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path))
    said: list[str] = []
    for _ in range(2):
        found = find_library("android", "aarch64", LibraryChoice(), say=said.append)
    assert found.path.name == "liblitert-lm.so" and found.version == "litert-lm-api 0.18.1" and len(said) == 1
    found.path.write_bytes(found.path.read_bytes()[:-1])
    with pytest.raises(EnvironmentFault, match="remove it, so that it is downloaded again"):
        find_library("android", "aarch64", LibraryChoice(), say=said.append)
