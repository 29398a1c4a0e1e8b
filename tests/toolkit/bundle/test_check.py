"""The checker of bundle directories: one broken bundle per fault, each found and named, and nothing else with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import (
    SHAPES,
    decoder,
    decoder_signatures,
    embedder,
    fill,
    fill_with_towers,
    stand_in,
    tower_signatures,
    with_lock,
    write_graphs,
)
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge import cli
from toolkit.base.errors import BundleError
from toolkit.bundle.lock import LockedExport, LockedSize, dump_lock, read_lock
from toolkit.bundle.manifest import (
    AUDIO_ADAPTER,
    AUDIO_ENCODER,
    EMBEDDER,
    LOCK,
    MANIFEST_NAME,
    TEXT_DECODER,
    TOKENIZER,
    VISION_ADAPTER,
    VISION_ENCODER,
    CheckpointRecord,
    QuantRecord,
)
from toolkit.bundle.manifest_json import encode_manifest
from toolkit.bundle.ple_shards import HEADER_BYTES, ShardHeader, read_header, shard_name
from toolkit.bundle.write import BundleDraft, write_bundle
from toolkit.check import check, left_out, unknown_graphs
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.ple_lookup import PleTable


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "bundle"
    write_bundle(path, fill_with_towers)
    return path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def found(path: Path) -> list[tuple[str, str]]:
    return [(fault.file, fault.fault) for fault in check(path)]


def rewrite(bundle: Path, name: str, write: Callable[[Path], object]) -> None:
    """Replace a file and tell the manifest, so that only its content is at fault."""
    write(bundle / name)
    data = (bundle / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()

    def edit(value: dict[str, Any]) -> None:
        value["files"][name] = {"bytes": len(data), "chunks": [digest] if data else [], "sha256": digest}
        for group in value["groups"].values():
            group["bytes"] = sum(value["files"][file]["bytes"] for file in group["files"])

    edit_manifest(bundle, edit)


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((bundle / MANIFEST_NAME).read_bytes())
    edit(value)
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(value))


def patch(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_whole_bundle_has_no_fault(bundle: Path) -> None:
    assert check(bundle) == []


def test_progress_counts_the_bytes_of_all_files_and_rows_twice(bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(bundle, progress=lambda done, total: seen.append((done, total)))
    size = sum(entry.stat().st_size for entry in bundle.iterdir() if entry.name != MANIFEST_NAME)
    rows = sum(entry.stat().st_size - HEADER_BYTES for entry in bundle.glob("ple_*.bin"))
    assert rows > 0 and seen[-1] == (size + rows, size + rows)


def test_a_row_that_no_writer_may_write_is_found_under_a_manifest_that_agrees(bundle: Path) -> None:
    shard = bundle / "ple_00000.bin"
    rewrite(bundle, shard.name, lambda path: patch(path, path.stat().st_size - 6, b"\x01"))
    assert [fault for _, fault in found(bundle)] == [f"row of token {read_header(shard).row_count - 1}", "rows"]


STRAYS = ("p", "pl", "ple", "ple_0")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_damaged_shard_is_named_among_strays_whose_names_begin_its_own(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, reverse: bool
) -> None:
    for name in STRAYS:
        (bundle / name).write_bytes(b"")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=reverse))
    shard = bundle / "ple_00000.bin"
    rewrite(bundle, shard.name, lambda path: patch(path, 20, b"\xff"))
    assert sorted(found(bundle)) == [*((name, "file") for name in STRAYS), (shard.name, "header")]
    assert cli.main(["check", str(bundle), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert {"file": shard.name, "fault": "header", "found": "damaged bytes", "wanted": None} in faults
    with pytest.raises(BundleError) as caught:
        PleTable([shard])
    assert (caught.value.file, caught.value.place) == (str(shard), "header")
    assert str(caught.value) == f"{shard}, header: damaged bytes; copy it again"


def test_a_damaged_row_is_named_when_it_is_read(bundle: Path) -> None:
    for name in STRAYS:
        (bundle / name).write_bytes(b"")
    shard = bundle / "ple_00000.bin"
    patch(shard, shard.stat().st_size - 6, b"\x01")
    last = read_header(shard).row_count - 1
    with closing(PleTable([shard])) as table, pytest.raises(BundleError) as caught:
        table.lookup([last])
    assert (caught.value.file, caught.value.place) == (str(shard), f"row of token {last}")


def test_nothing_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file or directory"):
        check(tmp_path / "nowhere")


def test_a_directory_without_a_manifest_is_one_fault(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()
    assert found(bundle) == [(MANIFEST_NAME, "file")]


def test_a_manifest_that_is_a_directory_is_one_fault(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()
    (bundle / MANIFEST_NAME).mkdir()
    assert found(bundle) == [(MANIFEST_NAME, "file")]


def test_all_faults_of_the_manifest_are_reported(bundle: Path) -> None:
    def edit(value: dict[str, Any]) -> None:
        value["groups"]["text"]["runtime"]["hidden_size"] = 0
        value["files"][TOKENIZER]["sha256"] = ""

    edit_manifest(bundle, edit)
    assert sorted(found(bundle)) == [
        (MANIFEST_NAME, "files tokenizer.json sha256"),
        (MANIFEST_NAME, "groups text runtime hidden_size"),
    ]


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / EMBEDDER).unlink()
    assert found(bundle) == [(EMBEDDER, "file")]


def test_an_extra_file_is_named(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("")
    assert found(bundle) == [("notes.txt", "file")]


def test_a_link_in_place_of_a_file_is_named_and_not_followed(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / EMBEDDER, tmp_path / "elsewhere")
    (bundle / EMBEDDER).symlink_to(tmp_path / "elsewhere")
    assert found(bundle) == [(EMBEDDER, "file")]


def test_a_pipe_in_place_of_a_file_does_not_hang(bundle: Path) -> None:
    (bundle / EMBEDDER).unlink()
    os.mkfifo(bundle / EMBEDDER)
    assert found(bundle) == [(EMBEDDER, "file")]


def test_a_bundle_without_its_decoder_is_refused(bundle: Path) -> None:
    (bundle / TEXT_DECODER).unlink()

    def forget(value: dict[str, Any]) -> None:
        del value["files"][TEXT_DECODER]
        value["groups"]["text"].update(files=[EMBEDDER], bytes=value["files"][EMBEDDER]["bytes"])

    edit_manifest(bundle, forget)
    assert found(bundle) == [(TEXT_DECODER, "file")]


def test_one_changed_byte_of_a_weight_is_found_with_its_range(bundle: Path) -> None:
    size = (bundle / TEXT_DECODER).stat().st_size
    patch(bundle / TEXT_DECODER, size - 1, b"\xff")
    assert found(bundle) == [(TEXT_DECODER, f"bytes 0 to {size}")]


def test_a_hash_of_the_whole_that_its_chunks_contradict_is_found(bundle: Path) -> None:
    edit_manifest(bundle, lambda value: value["files"][TOKENIZER].update(sha256="0" * 64))
    assert found(bundle) == [(TOKENIZER, "sha256")]


def test_a_cut_file_is_found_by_its_size_and_by_the_weights_beyond_its_end(bundle: Path) -> None:
    os.truncate(bundle / EMBEDDER, (bundle / EMBEDDER).stat().st_size - 1)
    faults = found(bundle)
    assert (EMBEDDER, "size") in faults
    assert any(file == EMBEDDER and fault.startswith("buffer") for file, fault in faults)


def test_faults_of_several_files_are_all_reported(bundle: Path) -> None:
    (bundle / EMBEDDER).unlink()
    (bundle / "notes.txt").write_text("")
    patch(bundle / TOKENIZER, 0, b"[")
    assert {file for file, _ in found(bundle)} == {EMBEDDER, "notes.txt", TOKENIZER}


def test_a_file_that_is_no_flatbuffer_is_found_though_its_hash_is_right(bundle: Path) -> None:
    rewrite(bundle, EMBEDDER, lambda path: path.write_bytes(b"GIF89a" * 10))
    assert [file for file, _ in found(bundle)] == [EMBEDDER]


def test_a_graph_that_the_format_does_not_describe_is_named_and_a_whole_file(tmp_path: Path) -> None:
    for name, content in (("whole", None), ("broken", b"GIF89a" * 10)):

        def filled(directory: Path, content: bytes | None = content) -> BundleDraft:
            draft = fill(directory)
            data = (directory / EMBEDDER).read_bytes() if content is None else content
            (directory / "other.tflite").write_bytes(data)
            return draft

        write_bundle(tmp_path / name, filled)
        assert unknown_graphs(tmp_path / name) == ("other.tflite",)
    assert check(tmp_path / "whole") == []
    assert [fault.file for fault in check(tmp_path / "broken")] == ["other.tflite"]


def test_an_empty_graph_file_is_found(bundle: Path) -> None:
    rewrite(bundle, EMBEDDER, lambda path: path.write_bytes(b""))
    assert [file for file, _ in found(bundle)] == [EMBEDDER]


def test_a_missing_signature_is_named(bundle: Path) -> None:
    rewrite(bundle, TEXT_DECODER, lambda path: write_graphs(path, decoder_signatures()[:-1]))
    assert found(bundle) == [(TEXT_DECODER, "signature small_decode")]


def test_a_signature_that_no_size_has_is_named(bundle: Path) -> None:
    extra = decoder("prefill_16", 16, None)
    rewrite(bundle, TEXT_DECODER, lambda path: write_graphs(path, [*decoder_signatures(), extra]))
    assert found(bundle) == [(TEXT_DECODER, "signature prefill_16")]


def test_a_tensor_of_another_shape_is_named(bundle: Path) -> None:
    wrong = [embedder(n, "embed", "embeddings", (1, n, 8)) for n in (1, 4)]
    wrong.append(embedder(8, "embed", "embeddings", (8, 1, 8)))
    rewrite(bundle, EMBEDDER, lambda path: write_graphs(path, wrong))
    assert [(f.fault, f.found, f.wanted) for f in check(bundle)] == [
        ("signature embed_8 output embeddings", "FLOAT32[8, 1, 8]", "FLOAT32[1, 8, 8]")
    ]


def test_logits_of_another_vocabulary_are_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "lm_head.weight", (41, 8))
    signatures = [decoder("decode", 1, "lm_head.weight", vocab_size=41)]
    signatures += [signature for signature in decoder_signatures() if signature.name != "decode"]
    rewrite(bundle, TEXT_DECODER, lambda path: write_graphs(path, signatures))
    assert found(bundle) == [(TEXT_DECODER, "signature decode output logits")]


@pytest.mark.parametrize(
    ("name", "wrong", "fault"),
    [
        (VISION_ENCODER, ("encode", {"images": (1, 5, 5, 3)}, {"features": (1, 4, 5)}), "encode input images"),
        (VISION_ADAPTER, ("adapt", {"features": (1, 4, 5)}, {"embeddings": (1, 4, 8)}), "adapt output embeddings"),
        (AUDIO_ENCODER, ("encode_5", {}, {}), "encode_5"),
        (
            AUDIO_ENCODER,
            ("encode_4", {"src_inputs": (1, 4, 3)}, {"features": (1, 1, 6), "mask": (1, 1)}),
            "encode_4 input mask",
        ),
        (AUDIO_ADAPTER, ("end_of_audio", {}, {"embeddings": (1, 1, 7)}), "end_of_audio output embeddings"),
    ],
)
def test_a_signature_of_a_tower_that_contradicts_its_record_is_named(
    bundle: Path, name: str, wrong: tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]], fault: str
) -> None:
    rest = [signature for signature in tower_signatures()[name] if signature.name != wrong[0]]
    rewrite(bundle, name, lambda path: write_graphs(path, [*rest, stand_in(*wrong)]))
    assert found(bundle) == [(name, f"signature {fault}")]


@pytest.mark.parametrize("name", [VISION_ENCODER, VISION_ADAPTER, AUDIO_ENCODER, AUDIO_ADAPTER])
def test_a_missing_file_of_a_tower_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert found(bundle) == [(name, "file")]


def test_a_tower_without_any_of_its_files_was_left_out_by_a_push_and_text_never(bundle: Path) -> None:
    for name in (VISION_ENCODER, VISION_ADAPTER):
        (bundle / name).unlink()
    assert found(bundle) == [] and left_out(bundle) == ("vision",)
    (bundle / TEXT_DECODER).unlink()
    assert found(bundle) == [(TEXT_DECODER, "file")] and left_out(bundle) == ("vision",)


@pytest.mark.parametrize(
    "name",
    [TEXT_DECODER, VISION_ENCODER, VISION_ADAPTER, AUDIO_ADAPTER, TOKENIZER, "chat_template.jinja", "ple_00000.bin"],
)
def test_a_bundle_without_one_of_its_files_is_not_exported(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"bundle: no {name}; convert"):
        export_litertlm(bundle, bundle.parent / "model.litertlm")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (TOKENIZER, b"{"),
        (TOKENIZER, b'{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": []}]}'),
        (TOKENIZER, b'{"model": {"vocab": {"a": 1}}}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_bundle_of_a_stranger_is_not_exported(bundle: Path, name: str, data: bytes) -> None:
    rewrite(bundle, name, lambda path: path.write_bytes(data))
    with pytest.raises(BundleError, match=name):
        export_litertlm(bundle, bundle.parent / "model.litertlm")


def test_a_token_of_a_tower_that_the_tokenizer_cannot_spell_is_found(bundle: Path) -> None:
    vocab = {f"<{i}>": i for i in range(40) if i != 37}
    text = json.dumps({"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}})
    rewrite(bundle, TOKENIZER, lambda path: path.write_text(text))
    assert [(f.file, f.fault, f.found) for f in check(bundle)] == [(TOKENIZER, "vision soft_token_id", "no token 37")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "JSON"),
        ("[]", "model vocab"),
        ('{"model": {"vocab": {}}}', "model vocab"),
        ('{"model": {"vocab": {"a": 40}}}', "token ids"),
        ('{"model": {"vocab": {"a": -1}}}', "token ids"),
        ('{"model": {"vocab": {"a": 1.0}}}', "token ids"),
        ('{"model": {"vocab": {"a": {}}}}', "token ids"),
        ('{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 99, "content": "b"}]}', "token ids"),
        ('{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": "b"}]}', "token ids"),
        ('{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 2}]}', "tokens"),
        ('{"model": {"vocab": {"a": 1}}, "added_tokens": ["b"]}', "tokens"),
        ('{"model": {"vocab": {"a": 1}}, "added_tokens": {"b": 2}}', "added_tokens"),
        ('{"model": {"vocab": [["a", -1.5], 7]}}', "tokens"),
        ('{"model": {"vocab": {"a": ' + "[" * 100_000, "JSON"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_found(bundle: Path, text: str, fault: str) -> None:
    rewrite(bundle, TOKENIZER, lambda path: path.write_text(text))
    assert found(bundle) == [(TOKENIZER, fault)]


def test_a_chat_template_in_another_encoding_is_found(bundle: Path) -> None:
    rewrite(bundle, "chat_template.jinja", lambda path: path.write_bytes("é".encode("latin-1")))
    assert found(bundle) == [("chat_template.jinja", "text")]


def test_a_tokenizer_and_a_template_beyond_their_limits_are_found_unread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.bundle.check.MAX_TOKENIZER_BYTES", 100)
    rewrite(bundle, "chat_template.jinja", lambda path: path.write_bytes(b"x" * ((1 << 20) + 1)))
    assert [(f.file, f.fault, f.found) for f in check(bundle)] == [
        (TOKENIZER, "size", "over 100 bytes"),
        ("chat_template.jinja", "text", "over 1,048,576 bytes"),
    ]


# --- shards ----------------------------------------------------------------------------------------------------------


def cut(bundle: Path, counts: Sequence[int], names: Sequence[str]) -> list[str]:
    """The faults of a bundle whose one shard is cut into several, of so many rows each."""
    whole = bundle / "ple_00000.bin"
    header, rows = read_header(whole), whole.read_bytes()[HEADER_BYTES:]
    whole.unlink()
    first, written = 0, {}
    for number, (count, name) in enumerate(zip(counts, names, strict=True)):
        part = rows[first * header.layout.row_bytes :][: count * header.layout.row_bytes]
        digest = hashlib.sha256(part).digest()
        own = ShardHeader(header.layout, first, count, number, len(counts), digest)
        (bundle / name).write_bytes(own.pack() + part)
        written[name] = (bundle / name).read_bytes()
        first += count

    def edit(value: dict[str, Any]) -> None:
        del value["files"][whole.name]
        for name, data in written.items():
            digest = hashlib.sha256(data).hexdigest()
            value["files"][name] = {"bytes": len(data), "chunks": [digest], "sha256": digest}
        size = sum(map(len, written.values()))
        value["groups"]["per_layer_embedding"].update(files=list(written), bytes=size)

    edit_manifest(bundle, edit)
    return [f"{fault.file} {fault.fault}" for fault in check(bundle)]


def test_shards_of_equal_rows_and_fewer_in_the_last_have_no_fault(bundle: Path) -> None:
    assert cut(bundle, (14, 14, 8), [shard_name(n) for n in range(3)]) == []


@pytest.mark.parametrize(("counts", "wrong"), [((14, 10, 12), 1), ((10, 10, 16), 2), ((10, 13, 13), 1)])
def test_shards_of_unequal_rows_are_found(bundle: Path, counts: tuple[int, ...], wrong: int) -> None:
    assert cut(bundle, counts, [shard_name(n) for n in range(3)]) == [f"{shard_name(wrong)} header row_count"]


def test_shards_whose_names_do_not_count_up_are_found(bundle: Path) -> None:
    """The program for devices opens shards by their numbers."""
    assert cut(bundle, (14, 14, 8), [shard_name(n) for n in (0, 7, 9)]) == [f"{shard_name(7)} shard"]


# --- the lock --------------------------------------------------------------------------------------------------------


def with_changed_lock(path: Path, **changes: Any) -> list[str]:
    """The faults of a bundle whose lock says something else, under a manifest that knows that lock."""
    write_bundle(path, lambda directory: with_lock(fill_with_towers(directory)))
    assert check(path) == []
    changed = dump_lock(replace(read_lock(path), **changes))
    rewrite(path, LOCK, lambda file: file.write_bytes(changed))
    faults = check(path)
    assert {fault.file for fault in faults} == {LOCK}
    return [fault.fault for fault in faults]


def test_a_lock_that_contradicts_the_manifest_is_found(tmp_path: Path) -> None:
    other = CheckpointRecord("other", "1" * 64)
    export = LockedExport("large", ("text",), "gemma3n", None, "cpu")
    changes = {"checkpoint": other, "context": 31, "prefill_sizes": (4,), "draft_tokens": 3, "export": export}
    recipes = {"text": QuantRecord("own", ())}
    sizes = (LockedSize("large", (0, 1), (16, 8)),)
    assert with_changed_lock(tmp_path / "b", groups=("text",), recipes=recipes, sizes=sizes, **changes) == [
        "checkpoint name", "checkpoint sha256", "context", "draft_tokens", "export", "groups", "prefill_sizes",
        "recipes audio", "recipes text rules", "recipes vision", "sizes",
    ]  # fmt: skip


def test_a_drafter_that_no_lock_can_describe_is_a_fault_of_the_lock(tmp_path: Path) -> None:
    """It was an error that ended the check."""
    write_bundle(tmp_path / "b", lambda directory: with_lock(fill_with_towers(directory)))
    value = json.loads((tmp_path / "b" / LOCK).read_bytes())
    value["drafter"] = {"tokens": 600, "hidden_units": 3}
    rewrite(tmp_path / "b", LOCK, lambda file: file.write_text(json.dumps(value)))
    [fault] = check(tmp_path / "b")
    wanted = "an integer from 2 to 65536 and an even number"
    assert (fault.file, fault.fault, fault.wanted) == (LOCK, "drafter hidden_units", wanted)


def test_checking_changes_nothing(bundle: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {entry.name: (entry.stat().st_mtime_ns, entry.stat().st_size) for entry in bundle.iterdir()}

    before = state()
    check(bundle)
    assert state() == before


@pytest.mark.slow
def test_a_turn_that_ends_in_a_token_which_stops_nothing_is_found(tmp_path: Path) -> None:
    request = ConvertRequest(EXAMPLE, tmp_path / "b", groups=("text",), context=64, prefill_sizes=(8,))
    convert(request, gate=None)
    assert found(tmp_path / "b") == []

    def edit(value: dict[str, Any]) -> None:
        value["groups"]["text"]["runtime"]["stop_token_ids"] = [1]
        del value["files"][LOCK]  # which would be another one

    edit_manifest(tmp_path / "b", edit)
    (tmp_path / "b" / LOCK).unlink()
    assert found(tmp_path / "b") == [("chat_template.jinja", "the end of a turn")]
