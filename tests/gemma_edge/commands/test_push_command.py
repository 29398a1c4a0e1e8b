"""gemma-edge push, from the command line to an emulated device and to AOSP's adbd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from adbd import Adbd, Peer, fetch
from bundles import fill
from debian import Unavailable

from device_harness.emulator.device import Emulator, EmulatorSettings
from gemma_edge.cli import main
from toolkit.bundle.write import write_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # This computer's own keys are not used.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ADB_VENDOR_KEYS", raising=False)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    write_bundle(tmp_path / "bundle", fill)
    return tmp_path / "bundle"


@pytest.fixture(scope="module", params=["emulator", pytest.param("adbd", marks=pytest.mark.full)])
def devices(request: pytest.FixtureRequest) -> Iterator[list[Peer]]:
    settings = EmulatorSettings(isolation="folder")
    with ExitStack() as stack:
        first: Peer
        try:
            if request.param == "emulator":
                first = stack.enter_context(Emulator(settings))
            else:
                first = stack.enter_context(Adbd(fetch()))
        except Unavailable as error:
            pytest.skip(str(error))
        yield [first, stack.enter_context(Emulator(settings))]


def test_two_devices_get_the_bundle_and_a_line_of_json_each(
    bundle: Path, devices: list[Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for device in devices for word in ("--device", device.serial)]
    assert main(["push", str(bundle), *options, "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {result["device"] for result in results} == {device.serial for device in devices}
    content = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for result in results:
        assert result["target"] == "/data/local/tmp/gemma-edge/bundle"
        assert result["bytes_sent"] == sum(map(len, content.values())) and result["megabytes_per_s"] > 0
        assert result.keys() >= {"bytes_skipped", "files", "seconds"}
    for device in devices:
        folder = device.path("/data/local/tmp/gemma-edge/bundle")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_groups_and_target_are_the_users_choice(
    bundle: Path, devices: list[Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    target = "/data/local/tmp/elsewhere/"
    arguments = ["push", str(bundle), "--device", devices[0].serial, "--groups", "ple", "--target", target]
    assert main(arguments) == 0
    assert "sent at" in capsys.readouterr().out
    assert "text_decoder.tflite" not in {path.name for path in devices[0].path(target).iterdir()}
    assert main(arguments) == 0
    assert "0 B sent;" in capsys.readouterr().out


def test_a_device_that_is_not_there_does_not_keep_the_others_from_theirs(
    bundle: Path, devices: list[Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    target = "/data/local/tmp/third"
    arguments = ["--device", "127.0.0.1:1", "--device", devices[0].serial, "--target", target]
    assert main(["push", str(bundle), *arguments]) == 3
    output = capsys.readouterr()
    assert "error: 127.0.0.1:1" in output.err and f"{devices[0].serial} {target}" in output.out
    assert (devices[0].path(target) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "localhost:1", "--device", "localhost:1"], "--device: the same device twice"),
        (["--target", "here"], "a relative path"),
        (["--groups", "text,,ple"], "names separated by commas"),
        (["--groups", "audio"], "groups: found audio, wanted"),
    ],
)
def test_wrong_use_is_told_before_any_device_is_asked(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["push", str(bundle), *options]) == 2
    assert words in capsys.readouterr().err
