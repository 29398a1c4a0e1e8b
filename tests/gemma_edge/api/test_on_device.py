"""A model on a device answers as it does here: over adb, with the program in C on an emulated device."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import EXAMPLE
from waiting import wait_until

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import Transport
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.programs.build import compiler_version
from gemma_edge.api.model import Model
from gemma_edge.cli import main
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.bundle.lock import DrafterSettings
from toolkit.drafting.make import Drafting
from toolkit.runtime.session import SessionSettings

PICTURE, SOUND = EXAMPLE / "samples" / "red-circle.png", EXAMPLE / "samples" / "left.wav"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("on-device") / "tiny"
    convert(ConvertRequest(EXAMPLE, path, sizes=("large", "small"), context=512), gate=None)
    return path


@pytest.fixture(scope="module")
def device() -> Iterator[Emulator]:
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap (apt-get install bubblewrap)")
    try:
        compiler_version()
    except EnvironmentFault as error:
        pytest.skip(str(error))
    with Emulator(EmulatorSettings()) as found:
        if not found.userland.is_isolated:
            pytest.skip("bubblewrap may not make namespaces here")
        yield found


@pytest.fixture(scope="module")
def there(tiny: Path, device: Emulator) -> Iterator[Model]:
    with gemma_edge.load(tiny, device=device.serial) as model:
        yield model


@pytest.fixture(scope="module")
def here(tiny: Path) -> Iterator[Model]:
    with gemma_edge.load(tiny, weight_cache="memory") as model:
        yield model


RUNNING = "$(grep -ls ^bundle_runner /proc/[0-9]*/comm | sed s,/comm,,)"
"""In a shell, the directories of the program's processes."""


def shell(device: Emulator, command: str) -> str:
    with Transport(tcp_endpoint(device.serial)).connect() as transport:
        return transport.shell(command, timeout=60).stdout


def running(device: Emulator) -> list[str]:
    """The process ids of the program on the device."""
    return shell(device, f"for p in {RUNNING}; do echo ${{p#/proc/}}; done").split()


def test_prompts_are_answered_as_here(there: Model, here: Model) -> None:
    for size in ("large", "small"):
        for temperature in (0.0, 1.0):
            for images, audio in (((), ()), ((PICTURE,), ()), ((), (SOUND,)), ((PICTURE,), (SOUND,))):
                answers = [
                    model.generate(
                        "What is this?", images=images, audio=audio, size=size, max_tokens=8,
                        temperature=temperature, seed=7,
                    )
                    for model in (there, here)
                ]  # fmt: skip
                assert answers[0].token_ids == answers[1].token_ids, (size, temperature, images, audio)
                assert (answers[0].text, answers[0].ending, answers[0].size) == (
                    answers[1].text, answers[1].ending, size,
                )  # fmt: skip
                assert (answers[0].media_s is None) == (not images and not audio)
    assert set(there.groups_loaded) == set(here.groups_loaded)


def test_a_bundle_with_a_drafter_answers_without_it(random_checkpoint: Path, device: Emulator, tmp_path: Path) -> None:
    bundle, drafter = tmp_path / "drafted", DrafterSettings(tokens=600, hidden_units=16)
    request = ConvertRequest(random_checkpoint, bundle, context=120, prefill_sizes=(4, 16), drafter=drafter)
    settings = SessionSettings(threads=1, weight_cache="memory")
    convert(request, gate=None, drafting=Drafting(settings, least_accepted=0.0))
    found = []
    for where in (None, device.serial):
        with gemma_edge.load(bundle, device=where) as model:
            answer = model.generate("the cat", raw=True, max_tokens=8)
            found.append((answer.token_ids, set(model.groups_loaded)))
    assert found[0] == found[1] and "drafter" not in found[0][1]


def test_a_chat_goes_on_with_its_tokens_its_size_and_its_random_numbers(there: Model, here: Model) -> None:
    chats = [model.chat(system="Answer in one word.", temperature=1.0, seed=5, max_tokens=6) for model in (there, here)]
    reused = []
    for turn, text in enumerate(("Hello", "Who are you?", "What is this?")):
        answers = []
        for chat in chats:
            chat.size = ("large", "small", "large")[turn]
            answers.append(chat.send(text, images=(PICTURE,) if turn == 2 else ()))
        assert answers[0].token_ids == answers[1].token_ids and answers[0].text == answers[1].text
        reused.append(answers[0].reused_tokens)
        assert answers[0].reused_tokens == answers[1].reused_tokens
    assert reused[0] == 0 < reused[1] < reused[2]


def test_a_stop_text_and_a_closed_stream_end_the_program_s_answer_and_the_next_is_right(
    there: Model, here: Model
) -> None:
    whole = here.generate("Tell me a story.", max_tokens=24).text
    stopped = there.generate("Tell me a story.", max_tokens=None, stop=whole[20:26])
    assert (stopped.text, stopped.ending) == (whole[:20], "stop text")
    stream = there.stream("Tell me a story.", max_tokens=None)
    next(stream)
    stream.close()
    assert stream.answer.ending == "interrupted" and whole.startswith(stream.answer.text)
    assert there.generate("Tell me a story.", max_tokens=24).text == whole


def test_memory_and_look_ups_are_those_of_the_program(there: Model, here: Model) -> None:
    there.generate("Hello", max_tokens=2)
    memory, ple = there.memory(), there.ple_statistics
    assert memory.process.rss_bytes is not None and 10_000_000 < memory.process.rss_bytes < 200_000_000
    assert set(memory.groups) == set(here.memory().groups)
    assert memory.groups["text"].mapped_bytes > 1_000_000 and memory.groups["text"].page_cache_bytes is None
    assert ple.bytes_read == ple.rows * 1024 > 0 and ple.minor_faults == 0


def test_a_program_killed_in_the_middle_of_an_answer_is_an_error_and_the_next_prompt_starts_it_again(
    there: Model, device: Emulator
) -> None:
    before = there.generate("Tell me a story.", max_tokens=12).token_ids
    stream = there.stream("Tell me a story.", max_tokens=None, ignore_eos=True)
    next(stream)
    # In one command, because the answer takes a fraction of a second; it also hits one that may be ending.
    shell(device, f"for p in {RUNNING}; do kill -KILL ${{p#/proc/}}; done")
    with pytest.raises(EnvironmentFault, match=f"{device.serial} bundle_runner: the program ended"):
        list(stream)
    assert there.generate("Tell me a story.", max_tokens=12).token_ids == before


def test_a_cut_connection_ends_the_answer_and_the_next_prompt_connects_again(there: Model, device: Emulator) -> None:
    before = there.generate("Hello", max_tokens=4).token_ids
    device.set_faults(Faults(bytes_per_s=4000))  # so that the answer is far from its end
    stream = there.stream("Tell me another story, please.", max_tokens=None, ignore_eos=True)
    next(stream)
    device.set_faults(Faults(drop_at_byte=1))
    with pytest.raises(EnvironmentFault, match=device.serial):
        list(stream)
    device.set_faults(Faults())
    assert there.generate("Hello", max_tokens=4).token_ids == before


def test_nothing_runs_on_the_device_when_the_model_is_closed(tiny: Path, device: Emulator, there: Model) -> None:
    # Programs of tests before this one may be ending.
    others = set(running(device))
    with gemma_edge.load(tiny, device=device.serial) as model:
        ours = set(running(device)) - others
        assert len(ours) == 1
        model.generate("Hello", max_tokens=2)
    wait_until(lambda: not ours & set(running(device)))


def test_the_command_prints_the_same_answer_as_here(
    tiny: Path, device: Emulator, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = []
    for place in (("--device", device.serial), ("--weight-cache", "off")):
        assert main(["run", str(tiny), "-p", "Hello", "-n", "6", *place]) == 0
        out, err = capfd.readouterr()
        assert "effective" in err and "[PLE: " in err
        shown.append(out)
    assert shown[0] == shown[1] != ""


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--device", "x:1", "--ple", "ram"), "--ple: it has no effect on a device"),
        (("--device", "x:1", "--speculative"), "--speculative: it has no effect on a device"),
        (("--device", "x:1", "--weight-cache", "off"), "--weight-cache: it has no effect on a device"),
        (("--library", "x.so"), "--library: no device to use it on; add --device SERIAL"),
    ],
)
def test_options_that_belong_elsewhere_are_refused(
    words: tuple[str, ...], fault: str, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny), "-p", "Hello", *words]) == 2
    assert fault in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_settings_of_this_computer_are_refused_for_a_device(tiny: Path) -> None:
    with pytest.raises(UsageError, match="settings that have no effect on a device"):
        gemma_edge.load(tiny, device="x:1", ple="ram")
