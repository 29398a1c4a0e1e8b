"""Downloads of Google's programs from a stand-in for their bucket: whole, recorded, and the same ever after."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import BucketServer

from device_harness.programs.bucket import Bucket
from device_harness.programs.published import PublishedProgram, fetch_program, require_sha256
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.base.files import hash_file

NAME = "litert_lm_advanced_main"
FOLDER = "binaries/latest/android_arm64/litert_lm/"
PROGRAM = b"program " * 40_000
LIBRARY = b"library " * 10_000


@pytest.fixture
def server() -> Iterator[BucketServer]:
    with BucketServer() as running:
        running.objects = {
            "binaries/latest/android_arm64/benchmark_model": b"benchmark",
            "binaries/latest/android_arm64/libLiteRt.so": b"for apps",
            FOLDER + NAME: PROGRAM,
            FOLDER + "litert_lm_main": b"another program",
            FOLDER + "libLiteRtOpenClAccelerator.so": LIBRARY,
            FOLDER + "libLiteRtTopKOpenClSampler.so": b"sampler",
            FOLDER + "qairt_version.txt": b"2.44",
            FOLDER + "deeper/libOther.so": b"not here",
        }
        yield running


def fetch(server: BucketServer, cache: Path, **changes: object) -> Path:
    values: dict[str, object] = {"name": NAME, "version": "latest", "abi": "arm64-v8a", **changes}
    program = PublishedProgram(**values)  # type: ignore[arg-type]
    return fetch_program(program, Bucket(server.url), say=lambda _: None, directory=cache)


def names(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir()}


def lock_of(path: Path) -> Path:
    return path.parent.with_name(f"{path.name}.lock.json")


LIBRARIES = {"libLiteRtOpenClAccelerator.so", "libLiteRtTopKOpenClSampler.so"}


@pytest.mark.parametrize("is_static", [False, True])
def test_a_program_comes_with_the_libraries_of_its_folder_once(
    server: BucketServer, tmp_path: Path, is_static: bool
) -> None:
    server.is_static = is_static
    path = fetch(server, tmp_path)
    assert path == tmp_path / "binaries/latest/android_arm64" / NAME / NAME
    assert path.read_bytes() == PROGRAM and path.stat().st_mode & 0o100
    assert names(path) == {NAME, *LIBRARIES}
    lock = json.loads(lock_of(path).read_bytes())
    assert lock["format"] == "gemma-edge-binaries/1" and lock["source"] == f"{server.url}/litert/{FOLDER}"
    assert lock["files"][NAME] == {"bytes": len(PROGRAM), "sha256": hash_file(path).sha256}
    assert set(lock["files"]) == names(path)
    before = len(server.requests)
    assert fetch(server, tmp_path) == path and len(server.requests) == before


def test_the_same_download_makes_the_same_lock(server: BucketServer, tmp_path: Path) -> None:
    first, second = fetch(server, tmp_path / "a"), fetch(server, tmp_path / "b")
    assert lock_of(first).read_bytes() == lock_of(second).read_bytes()


def test_benchmark_model_comes_alone(server: BucketServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path, name="benchmark_model")
    assert names(path) == {"benchmark_model"} and path.read_bytes() == b"benchmark"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_transfer_that_is_cut_goes_on(server: BucketServer, tmp_path: Path, knows_ranges: bool) -> None:
    server.knows_ranges = knows_ranges
    server.cut_at[FOLDER + NAME] = 100_000
    assert fetch(server, tmp_path).read_bytes() == PROGRAM
    starts = [start for name, start in server.requests if name.endswith(NAME)]
    assert starts == ([0, 100_000] if knows_ranges else [0, 0])


def test_a_run_that_was_cut_is_gone_on_with_by_the_next(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_at[FOLDER + NAME] = 100_000
    monkeypatch.setattr("device_harness.programs.bucket._ATTEMPTS", 1)
    with pytest.raises(EnvironmentFault, match=r"found 100,000 bytes, then nothing, wanted 320,000; run it again"):
        fetch(server, tmp_path)
    folder = tmp_path / "binaries/latest/android_arm64"
    assert not (folder / NAME / NAME).exists() and not (folder / f"{NAME}.lock.json").exists()
    path = fetch(server, tmp_path)
    assert path.read_bytes() == PROGRAM and names(path) == {NAME, *LIBRARIES}
    assert (f"/litert/{FOLDER}{NAME}", 100_000) in server.requests
    assert server.downloads().count("libLiteRtOpenClAccelerator.so") == 1


def test_what_changes_between_two_runs_is_not_mixed(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_at[FOLDER + NAME] = 100_000
    with monkeypatch.context() as patch, pytest.raises(EnvironmentFault, match="then nothing"):
        patch.setattr("device_harness.programs.bucket._ATTEMPTS", 1)
        fetch(server, tmp_path)
    server.objects[FOLDER + NAME] = newer = b"newer one " * 30_000
    server.objects[FOLDER + "libLiteRtTopKOpenClSampler.so"] = b"newer sampler"
    del server.objects[FOLDER + "libLiteRtOpenClAccelerator.so"]
    path = fetch(server, tmp_path)
    assert path.read_bytes() == newer and names(path) == {NAME, "libLiteRtTopKOpenClSampler.so"}


def test_without_hashes_in_the_list_a_cut_run_starts_again(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.lists_md5 = False
    server.cut_at[FOLDER + NAME] = 100_000
    with monkeypatch.context() as patch, pytest.raises(EnvironmentFault, match="then nothing"):
        patch.setattr("device_harness.programs.bucket._ATTEMPTS", 1)
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == PROGRAM
    assert [start for name, start in server.requests if name.endswith(NAME)] == [0, 0]


def test_a_file_that_is_damaged_on_its_way_is_refused(server: BucketServer, tmp_path: Path) -> None:
    listed = server.objects[FOLDER + NAME]
    server.redirects[f"/litert/{FOLDER}{NAME}"] = "x"
    with pytest.raises(EnvironmentFault, match="a redirection to http://"):
        fetch(server, tmp_path)
    server.redirects.clear()
    bucket = Bucket(server.url)
    files = bucket.files(FOLDER)
    server.objects[FOLDER + NAME] = b"X" + listed[1:]
    program = PublishedProgram(NAME, "latest", "arm64-v8a")
    bucket.files = lambda folder: files  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match=r"found md5 .* as listed; run it again"):
        fetch_program(program, bucket, say=lambda _: None, directory=tmp_path)
    assert not [path for path in tmp_path.rglob(f"*{NAME}*") if path.is_file()]


def test_a_cached_file_that_has_changed_is_refused(server: BucketServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    library = path.parent / "libLiteRtTopKOpenClSampler.so"
    library.write_bytes(b"tampered")
    with pytest.raises(EnvironmentFault, match=r"libLiteRtTopKOpenClSampler.so: found sha256 .*, wanted .*lock.json"):
        fetch(server, tmp_path)
    library.unlink()
    assert fetch(server, tmp_path) == path and library.read_bytes() == b"sampler"


@pytest.mark.parametrize("published", [b"A" * len(PROGRAM), b"shorter", PROGRAM + b"longer"])
def test_what_was_published_anew_is_refused_where_the_old_one_is_recorded(
    server: BucketServer, tmp_path: Path, published: bytes
) -> None:
    path = fetch(server, tmp_path)
    server.objects[FOLDER + NAME] = published
    path.unlink()
    wanted = "what is published has changed" if len(published) == len(PROGRAM) else f"a file of {len(published):,} byte"
    with pytest.raises(EnvironmentFault, match=wanted):
        fetch(server, tmp_path)
    assert not path.exists() and not list(path.parent.glob(".*"))
    lock_of(path).unlink()
    assert fetch(server, tmp_path).read_bytes() == published


def test_a_library_that_nobody_published_is_refused(server: BucketServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    (path.parent / "libMine.so").write_bytes(b"mine")
    with pytest.raises(EnvironmentFault, match=r"libMine.so: found a library, wanted those of .*; remove it"):
        fetch(server, tmp_path)


def test_hashes_that_the_user_gives_count_from_the_first(server: BucketServer, tmp_path: Path) -> None:
    wrong = {NAME: "0" * 64}
    with pytest.raises(EnvironmentFault, match=f"wanted {'0' * 64} by --binary-sha256"):
        fetch(server, tmp_path, sha256=wrong)
    assert not [path for path in tmp_path.rglob(f"*{NAME}*") if path.is_file()]
    path = fetch(server, tmp_path)
    right = {name: hash_file(path.parent / name).sha256 for name in names(path)}
    assert fetch(server, tmp_path, sha256=right) == path
    require_sha256(path, right)
    for check in (lambda: fetch(server, tmp_path, sha256=wrong), lambda: require_sha256(path, wrong)):
        with pytest.raises(EnvironmentFault, match="by --binary-sha256"):
            check()
    with pytest.raises(UsageError, match=r"--binary-sha256: found libNone.so, wanted one of libLiteRtOpenCl"):
        fetch(server, tmp_path, sha256={"libNone.so": "0" * 64})


def test_a_version_or_program_that_is_not_published_is_one_error(server: BucketServer, tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"found nothing, wanted litert_lm_advanced_main; try another --binary-v"
    ):
        fetch(server, tmp_path, version="9.9.9")
    del server.objects[FOLDER + NAME]
    with pytest.raises(EnvironmentFault, match=r"found .*litert_lm_main.*, wanted litert_lm_advanced_main"):
        fetch(server, tmp_path)
    with pytest.raises(EnvironmentFault, match="ABI: found armeabi-v7a, wanted arm64-v8a or x86_64"):
        fetch(server, tmp_path, abi="armeabi-v7a")
    with pytest.raises(UsageError, match=r"--binary-version: found '../up'"):
        fetch(server, tmp_path, version="../up")


def test_a_recorded_file_that_is_gone_from_the_server_is_one_error(server: BucketServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    path.unlink()
    del server.objects[FOLDER + NAME]
    with pytest.raises(EnvironmentFault, match=r"litert_lm_advanced_main: 404 Not Found; give --binary PATH instead"):
        fetch(server, tmp_path)


def test_no_network_is_one_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        bucket = Bucket(f"http://localhost:{taken.getsockname()[1]}")
        program = PublishedProgram(NAME, "latest", "arm64-v8a")
        with pytest.raises(EnvironmentFault, match=": Connection refused; give --binary PATH instead"):
            fetch_program(program, bucket, say=lambda _: None, directory=tmp_path)


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "ftp://localhost", "file:///etc", "https://", "https://host?x", "nonsense", "http://["],
)
def test_only_https_is_asked(url: str) -> None:
    with pytest.raises(UsageError, match=r"--binary-server: found .*wanted https://HOST"):
        Bucket(url)


@pytest.mark.parametrize(
    ("listing", "wanted"),
    [
        ('{"items": [{"name": "FOLDERa b", "size": "1"}]}', "'a b', wanted letters"),
        ('{"items": [{"name": "FOLDER..", "size": "1"}]}', "wanted letters"),
        ('{"items": [{"name": "FOLDERa", "size": "9999999999"}]}', "size: found 9999999999, wanted 1 to"),
        ('{"items": [{"name": "FOLDERa", "size": "-1"}]}', "size: found -1"),
        ('{"items": [{"name": "FOLDERa", "size": 1}]}', "wanted a string"),
        ('{"items": [{"name": "FOLDERa", "size": "1", "md5Hash": "AAAA"}]}', "md5Hash: found AAAA, wanted 16 bytes"),
        ('{"nextPageToken": "x"}', "over 1000 files"),
        ("<html>sign in</html>", ": not JSON"),
        ("[]", "found an array"),
    ],
)
def test_a_list_that_is_none_is_refused(server: BucketServer, listing: str, wanted: str) -> None:
    server._listing = lambda query: json.loads("{}")  # type: ignore[method-assign]
    send = server._send
    text = listing.replace("FOLDER", FOLDER).encode()
    server._send = lambda handler, code, data, headers: send(handler, code, text, headers)  # type: ignore[method-assign,assignment,misc]
    with pytest.raises((EnvironmentFault, UsageError), match=wanted):
        Bucket(server.url).files(FOLDER)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda lock: lock.update(format="x/2"), "format: found x/2"),
        (lambda lock: lock["files"].update({"../up.so": {"bytes": 1, "sha256": "0" * 64}}), "found '../up.so'"),
        (lambda lock: lock["files"].update({"run.sh": {"bytes": 1, "sha256": "0" * 64}}), "run.sh: found such a file"),
        (lambda lock: lock["files"][NAME].update(sha256="00"), "64 hexadecimal digits"),
        (lambda lock: lock["files"].pop(NAME), f"wanted {NAME}"),
        (lambda lock: lock.update(more=1), "unknown key more"),
    ],
)
def test_a_lock_that_is_none_is_refused(server: BucketServer, tmp_path: Path, change: object, wanted: str) -> None:
    path = fetch(server, tmp_path)
    lock = json.loads(lock_of(path).read_bytes())
    change(lock)  # type: ignore[operator]
    lock_of(path).write_text(json.dumps(lock))
    with pytest.raises((EnvironmentFault, UsageError), match=wanted):
        fetch(server, tmp_path)
