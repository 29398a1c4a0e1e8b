"""The hashes of chunks in a .litertlm: what they are of, and that no damage escapes the quick comparison."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import toolkit.base.files
from device_harness.push import source
from device_harness.push.source import open_source, require_unchanged
from toolkit.base.errors import BundleError
from toolkit.litertlm import tables
from toolkit.litertlm.container import Section, write_container
from toolkit.litertlm.hashes import chunk_hashes, hash_faults, require_hashes
from toolkit.litertlm.header import read_header

CHUNK = 32 * 1024


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two sections over several chunks, with a gap between them, and one of the chunks' hashes."""
    path = tmp_path / "model.litertlm"
    write(path, 100_001, 70_000)
    return path


def write(path: Path, *sizes: int) -> None:
    contents = [hashlib.shake_256(bytes([number])).digest(size) for number, size in enumerate(sizes)]
    write_container(path, [Section(tables.TFLITE_MODEL, (content,), f"m{len(content)}") for content in contents], {})


def test_each_chunk_between_the_header_and_the_hashes_is_hashed(path: Path) -> None:
    data, header = path.read_bytes(), read_header(path)
    *_, last = header.metadata.sections
    assert (last.type, last.end) == ("GenericBinaryData", len(data))
    assert (last.items["name"], last.items["chunk_bytes"]) == ("chunk_sha256", str(CHUNK))
    begins = [len(header.data), *range(CHUNK, last.begin, CHUNK)]
    spans = zip(begins, [*begins[1:], last.begin], strict=True)
    wanted = [hashlib.sha256(data[begin:end]).digest() for begin, end in spans]
    assert data[last.begin :] == b"".join(wanted)
    found = chunk_hashes(path, header)
    assert found is not None
    assert found.whole == {n: hashlib.sha256(data[n * CHUNK :][:CHUNK]).hexdigest() for n in range(1, len(wanted) - 1)}
    require_hashes(path)
    assert hash_faults(path, header, lambda _: None) == []


@pytest.mark.parametrize(("size", "count"), [(2 * CHUNK - 16384 - 1, 2), (2 * CHUNK - 3 * 16384, 0)])
def test_a_file_without_a_whole_chunk_has_no_such_section(tmp_path: Path, size: int, count: int) -> None:
    write(tmp_path / "model.litertlm", size)
    sections = read_header(tmp_path / "model.litertlm").metadata.sections
    assert sections[1:] == () if not count else sections[1].end - sections[1].begin == 32 * count


def test_a_change_of_any_byte_is_found(path: Path) -> None:
    data, header = path.read_bytes(), read_header(path)
    sections = header.metadata.sections
    borders = [CHUNK, 2 * CHUNK, *(at for section in sections for at in (section.begin, section.end))]
    for at in {40, len(header.data) - 1, len(header.data), *borders, *(at - 1 for at in borders)} - {len(data)}:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BundleError):
            require_hashes(path)


def test_whole_chunks_can_be_left_to_the_caller_and_nothing_else(path: Path) -> None:
    data, found = path.read_bytes(), chunk_hashes(path, read_header(path))
    assert found is not None
    done: list[int] = []
    require_hashes(path, done.append, whole_chunks=False)
    assert sum(done) == len(data)
    for number in range(len(data) // CHUNK + 1):
        at = max(number * CHUNK, len(read_header(path).data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if number in found.whole:
            require_hashes(path, whole_chunks=False)
        else:
            with pytest.raises(BundleError):
                require_hashes(path, whole_chunks=False)
        path.write_bytes(data)


def test_hashes_of_chunks_that_disagree_with_the_file_are_found_by_check(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each section is what its own hash says, and so is the one with hashes of other bytes."""
    data, header = path.read_bytes(), read_header(path)
    sections = [Section(s.type, (data[s.begin : s.end],), s.items.get("model_type")) for s in header.metadata.sections]
    wrong = bytes(len(sections[-1].content[0]))  # type: ignore[arg-type]
    items = {"name": "chunk_sha256", "chunk_bytes": str(CHUNK)}
    other = tmp_path / "other.litertlm"
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", 1 << 30)  # the writer adds none of its own
    write_container(other, [*sections[:-1], Section(tables.BINARY_DATA, (wrong,), items=items)], {})
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    faults = hash_faults(other, read_header(other), lambda _: None)
    assert [fault.fault for fault in faults][1] == f"bytes {CHUNK} to {2 * CHUNK}"
    with pytest.raises(BundleError, match="bytes"):
        require_hashes(other)


def test_hashes_of_chunks_are_the_last_of_a_file_so_that_they_are_of_all_of_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, header = path.read_bytes(), read_header(path)
    sections = [
        Section(s.type, (data[s.begin : s.end],), s.items.get("model_type"), items=s.items)
        for s in header.metadata.sections
    ]
    other = tmp_path / "other.litertlm"
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", 1 << 30)  # the writer adds none of its own
    write_container(other, [*sections, Section("HF_Tokenizer_Zlib", (b"more",))], {})
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    [fault] = hash_faults(other, read_header(other), lambda _: None)
    size = sections[-1].size
    wanted = f"{size} bytes up to {other.stat().st_size}, the end of the file"
    assert (fault.fault, fault.wanted) == ("section chunk_sha256", wanted)
    with pytest.raises(BundleError, match="the end of the file"):
        require_hashes(other)


def test_hashes_of_no_chunks_are_not_taken_for_those_of_a_whole_file(tmp_path: Path) -> None:
    """Such a section is within the format of a header, and says nothing of the bytes before it."""
    path = tmp_path / "model.litertlm"
    nothing = Section(tables.BINARY_DATA, (b"",), items={"name": "chunk_sha256", "chunk_bytes": str(CHUNK)})
    write_container(path, [Section(tables.TFLITE_MODEL, (b"a" * 16384,), "m"), nothing], {})
    assert read_header(path).metadata.sections[1].end == path.stat().st_size < 2 * CHUNK
    require_hashes(path)
    path.write_bytes(path.read_bytes()[:-1] + b"b")
    with pytest.raises(BundleError, match="section m: found sha256"):
        require_hashes(path)


def test_a_push_reads_no_whole_chunk_to_know_its_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = path.read_bytes(), list[int]()

    def count(_: Path, begin: int, end: int) -> str:
        read.append(begin)
        return hashlib.sha256(data[begin:end]).hexdigest()

    monkeypatch.setattr(source, "range_sha256", count)
    [file] = open_source(path).files
    assert list(file.chunks) == [hashlib.sha256(data[at : at + CHUNK]).hexdigest() for at in range(0, len(data), CHUNK)]
    whole = chunk_hashes(path, read_header(path))
    assert whole is not None
    assert read == [at for at in range(0, len(data), CHUNK) if at // CHUNK not in whole.whole]


def test_a_chunk_that_is_not_what_the_file_says_is_no_chunk_to_push(path: Path) -> None:
    data = path.read_bytes()
    [file] = open_source(path).files
    path.write_bytes(data[: CHUNK + 5] + b"?" + data[CHUNK + 6 :])
    with pytest.raises(BundleError, match=r"from byte 32,768 on: found sha256 .*, wanted .*; export it again"):
        require_unchanged(file, 1)
    require_unchanged(file, 2)


def test_hashes_of_chunks_of_another_size_are_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", 2 * CHUNK)
    data = path.read_bytes()
    assert chunk_hashes(path, read_header(path)) is None
    [file] = open_source(path).files
    assert file.chunks[1] == hashlib.sha256(data[2 * CHUNK : 4 * CHUNK]).hexdigest()
    require_hashes(path)
