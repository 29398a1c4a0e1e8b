"""The manifest's format: what is written is read back, and everything else is refused with its place."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import AUDIO, DRAFT, TEXT, TOWERS_DRAFT, VISION
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.base import files
from toolkit.base.errors import BundleError
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import (
    DRAFTER,
    DRAFTER_TEXT,
    MANIFEST_NAME,
    TOWER_FILES,
    CheckpointRecord,
    DrafterRecord,
    FileRecord,
    GroupRecord,
    Manifest,
)
from toolkit.bundle.manifest_json import dump_manifest, encode_manifest, parse_manifest, read_manifest
from toolkit.bundle.signatures import bundle_signatures
from toolkit.bundle.write import describe


def manifest() -> Manifest:
    names = ["embedder.tflite", "ple_00000.bin", "text_decoder.tflite", "tokenizer.json"]
    names += [file for files in TOWER_FILES.values() for file in files]
    records = {name: FileRecord(100 + i, f"{i:064x}", (f"{i:064x}",)) for i, name in enumerate(names)}
    draft = TOWERS_DRAFT
    return Manifest(
        generator="gemma-edge 0.1.0",
        architecture=draft.architecture,
        checkpoint=draft.checkpoint,
        sizes=draft.sizes,
        default_size=draft.default_size,
        quant=draft.quant,
        groups={
            "per_layer_embedding": GroupRecord("per_layer_embedding", (names[1],), 432, 101),
            "text": GroupRecord("text", (names[2], names[0]), 1000, 202, TEXT),
            "vision": GroupRecord("vision", TOWER_FILES["vision"], 10, 209, VISION),
            "audio": GroupRecord("audio", TOWER_FILES["audio"], 10, 213, AUDIO),
        },
        files=records,
    )


def parse(data: bytes) -> tuple[Manifest | None, list[Fault]]:
    faults: list[Fault] = []
    return parse_manifest(data, faults), faults


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(dump_manifest(manifest()))
    edit(value)
    return encode_manifest(value)


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """An edit that sets one value; "text/context" is short for "groups/text/runtime/context", as in `place_of`."""

    def edit(target: Any) -> None:
        *parents, last = place_of(path, "/").split("/")
        for key in parents:
            target = target[int(key) if isinstance(target, list) else key]
        target[int(last) if isinstance(target, list) else last] = copy.deepcopy(value)

    return edit


def place_of(short: str, between: str = " ") -> str:
    """What a group says, by where it stands in the manifest."""
    first, *rest = short.split(between)
    return between.join(["groups", first, "runtime", *rest] if first in ("text", "vision", "audio") else [first, *rest])


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    found, faults = parse(dump_manifest(manifest()))
    assert faults == []
    assert found == manifest()


def test_static_activations_are_written_only_where_a_recipe_has_them() -> None:
    assert b"static_activations" not in dump_manifest(manifest())
    quant = {role: replace(record, static_activations=role == "text") for role, record in manifest().quant.items()}
    data = dump_manifest(replace(manifest(), quant=quant))
    assert data.count(b'"static_activations": true') == 1 == data.count(b"static_activations")
    found, faults = parse(data)
    assert faults == [] and found is not None and found.quant == quant


def test_the_encoding_is_fixed_to_the_byte() -> None:
    data = dump_manifest(manifest())
    assert data.startswith(b'{\n "architecture": "Gemma3nForCausalLM",\n "checkpoint": {\n  "name": "handmade",\n')
    assert b'\n  "vision": {\n   "bytes": 209,\n' in data and b'\n   "runtime": {\n    "begin_token_id": 3,\n' in data
    assert b'\n "format": "gemma-edge-bundle/3",\n' in data
    assert data.endswith(b"\n}\n")
    assert data.isascii()
    shuffled = replace(manifest(), sizes=dict(reversed(list(manifest().sizes.items()))))
    assert dump_manifest(shuffled) == data


def test_the_default_size_is_found_without_a_name_and_others_by_name() -> None:
    assert manifest().size().decode == "decode"
    assert manifest().size("small").signature(8) == "small_prefill_8"
    with pytest.raises(BundleError, match="found huge, wanted large or small"):
        manifest().size("huge")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "JSON"),
        (b"\xff{}", "UTF-8"),
        (b"[]", "an object"),
        (b'{"format": "gemma-edge-bundle/1"}', "gemma-edge-bundle/1"),
        (b'{"format": "gemma-edge-bundle/4"}', "gemma-edge-bundle/4"),
        (b'{"format": "gemma-edge-bundle/1", "format": "gemma-edge-bundle/1"}', "twice"),
        (b'{"format": NaN}', "NaN"),
        (b'{"a":' * 100_000, "nesting"),
        (b'{"format": ' + b"9" * 5000 + b"}", "digits"),
    ],
    ids=[
        "empty",
        "not UTF-8",
        "a list",
        "an earlier version",
        "a later version",
        "a key twice",
        "NaN",
        "deep",
        "a long number",
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, fault: str) -> None:
    found, faults = parse(data)
    assert found is None
    assert fault in str([faults[0].found, faults[0].wanted])


EMPTY_FILE = {"bytes": 0, "chunks": [], "sha256": "0" * 64}
WRONG = {
    "generator": (put("generator", 1), "generator"),
    "control characters": (put("architecture", "a\x1b[31m"), "architecture"),
    "long text": (put("architecture", "a" * 257), "architecture"),
    "upper-case hash": (put("checkpoint/sha256", "A" * 64), "checkpoint sha256"),
    "short hash": (put("checkpoint/sha256", "0" * 63), "checkpoint sha256"),
    "a boolean for a number": (put("text/hidden_size", True), "text hidden_size"),
    "a fraction for a number": (put("text/hidden_size", 8.0), "text hidden_size"),
    "no layers": (put("text/num_layers", 0), "text num_layers"),
    "an absurd width": (put("text/hidden_size", 2**40), "text hidden_size"),
    "an absurd context": (put("text/context", 2**31), "text context"),
    "more PLE rows than words": (put("text/ple_vocab_size", 41), "text ple_vocab_size"),
    "prefill longer than the context": (put("text/prefill_sizes", [4, 33]), "text prefill_sizes[1]"),
    "prefill sizes out of order": (put("text/prefill_sizes", [8, 4]), "text prefill_sizes"),
    "a prefill bucket that is no context bucket": (put("text/prefill_buckets", [16]), "text prefill_buckets"),
    "a prefill bucket too short for a prefill": (
        lambda value: value["groups"]["text"]["runtime"].update(context_buckets=[4], prefill_buckets=[4]),
        "text prefill_buckets",
    ),
    "a context bucket as long as the context": (put("text/context_buckets", [8, 32]), "text context_buckets[1]"),
    "a prefill bucket as long as the context": (put("text/prefill_buckets", [32]), "text prefill_buckets[0]"),
    "a context bucket of one position": (put("text/context_buckets", [1]), "text context_buckets[0]"),
    "no drafted token": (put("text/draft_tokens", 0), "text draft_tokens"),
    "as many drafted tokens as a prefill": (put("text/draft_tokens", 8), "text draft_tokens"),
    "no prefill size": (put("text/prefill_sizes", []), "text prefill_sizes"),
    "a stop token outside the vocabulary": (put("text/stop_token_ids", [40]), "text stop_token_ids[0]"),
    "no stop token": (put("text/stop_token_ids", []), "text stop_token_ids"),
    "a begin token outside the vocabulary": (put("text/bos_token_id", 40), "text bos_token_id"),
    "a padding token outside the vocabulary": (put("text/pad_token_id", 40), "text pad_token_id"),
    "a negative token": (put("text/bos_token_id", -1), "text bos_token_id"),
    "a soft-cap of zero": (put("text/final_logit_softcap", 0), "text final_logit_softcap"),
    "no cache": (put("text/kv_caches", []), "text kv_caches"),
    "a cache with a name twice": (put("text/kv_caches/0/value", "kv_cache_k_0"), "text kv_caches"),
    "a cache with a path for a name": (put("text/kv_caches/0/value", "../k"), "text kv_caches[0] value"),
    "a cache of another context": (put("text/kv_caches/0/shape", [1, 1, 31, 4]), "text kv_caches[0] shape"),
    "a cache of three dimensions": (put("text/kv_caches/0/shape", [1, 32, 4]), "text kv_caches[0] shape"),
    "an unknown key": (put("text/extra", 1), "text"),
    "an unknown key at the top": (put("extra", 1), "JSON"),
    "a size's name that cannot be printed": (put("sizes/\n", {}), "sizes key"),
    "widths missing": (put("sizes/small/ffn_sizes", [8]), "sizes small"),
    "layers out of order": (put("sizes/small/layers", [2, 0]), "sizes small layers"),
    "a prefix that LiteRT-LM would take": (put("sizes/small/prefix", "prefill_s"), "sizes small prefix"),
    "a prefix twice": (put("sizes/small/prefix", ""), "sizes"),
    "a default size with a prefix": (put("default_size", "small"), "default_size"),
    "a default size that is none": (put("default_size", "huge"), "default_size"),
    "layers that no size has": (put("text/num_layers", 4), "text num_layers"),
    "an image without pixels": (put("vision/image_size", 0), "vision image_size"),
    "an image that fills nothing": (put("vision/soft_tokens", 0), "vision soft_tokens"),
    "an unknown key of a tower": (put("audio/extra", 1), "audio"),
    "a marker outside the vocabulary": (put("vision/begin_token_id", 40), "vision begin_token_id"),
    "a soft token outside the vocabulary": (put("audio/soft_token_id", 40), "audio soft_token_id"),
    "a table beyond the vocabulary": (put("audio/vocab_size", 3), "audio vocab_size"),
    "an end outside the tower's table": (put("vision/end_token_id", 38), "vision end_token_id"),
    "padding outside the tower's table": (put("audio/padding_token_id", 37), "audio padding_token_id"),
    "tables that share an id": (put("vision/vocab_size", 3), "audio vocab_offset"),
    "lengths out of order": (put("audio/frame_lengths", [7, 4]), "audio frame_lengths"),
    "a sound longer than its soft tokens": (put("audio/frame_lengths", [4, 9]), "audio frame_lengths[1]"),
    "no length": (put("audio/frame_lengths", []), "audio frame_lengths"),
    "a tower of which nothing is known": (put("groups/vision/runtime", None), "groups vision runtime"),
    "embeddings that say something": (
        put("groups/per_layer_embedding/runtime", {}),
        "groups per_layer_embedding runtime",
    ),
    "no text": (lambda value: value["groups"].pop("text"), "groups"),
    "an unknown kind": (put("groups/text/kind", "smell"), "groups text kind"),
    "a group of another kind than its name": (
        lambda value: value["groups"].update(token_embedding=value["groups"].pop("per_layer_embedding")),
        "groups token_embedding kind",
    ),
    "a group that lacks a file": (put("groups/vision/files", ["vision_encoder.tflite"]), "groups vision files"),
    "an unknown dtype": (put("quant/text/rules/0/dtype", "int3"), "quant text rules[0] dtype"),
    "a rule for no name": (put("quant/text/rules/0/match", "[*]"), "quant text rules[0] match"),
    "an unknown search": (put("quant/text/rules/0/search", "l1"), "quant text rules[0] search"),
    "a block of nothing": (put("quant/text/rules/0/block_size", 0), "quant text rules[0] block_size"),
    "a file of a negative size": (put("files/tokenizer.json/bytes", -1), "files tokenizer.json bytes"),
    "a chunk too many": (put("files/tokenizer.json/chunks", ["0" * 64] * 2), "files tokenizer.json chunks"),
    "a file outside the directory": (put("files/..%2fpasswd", {}), "files key"),
    "files that differ in case": (put("files/Tokenizer.JSON", EMPTY_FILE), "files"),
    "the manifest among the files": (
        put("files/manifest.json", EMPTY_FILE),
        "files",
    ),
    "a group with a file that is none": (put("groups/per_layer_embedding/files", ["nothing.bin"]), "groups"),
    "a file in two groups": (put("groups/per_layer_embedding/files", ["embedder.tflite"]), "groups"),
    "a group of another size": (put("groups/per_layer_embedding/bytes", 1), "groups per_layer_embedding bytes"),
}


@pytest.mark.parametrize(("edit", "place"), WRONG.values(), ids=WRONG.keys())
def test_each_wrong_value_is_refused_with_its_place(edit: Callable[[dict[str, Any]], object], place: str) -> None:
    found, faults = parse(edited(edit))
    assert found is None
    assert place_of(place) in [fault.fault for fault in faults]
    assert all(fault.file == MANIFEST_NAME for fault in faults)


def test_every_key_is_wanted() -> None:
    whole = json.loads(dump_manifest(manifest()))
    del whole["sha256"]  # which `encode_manifest` adds

    def drop(value: Any, path: str) -> None:
        for key in list(value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []):
            if isinstance(value, dict):
                kept = value.pop(key)
                optional = path in ("/sizes", "/quant", "/groups", "/files")
                found, faults = parse(encode_manifest(whole))
                assert optional or (found is None and faults), f"{path}/{key}"
                value[key] = kept
            drop(value[key], f"{path}/{key}")

    drop(whole, "")


PUBLISHED = DrafterRecord("large", checkpoint=CheckpointRecord("drafter", "ab" * 32), caches=("kv_cache_k_0",))
FITTED = DrafterRecord("large", acceptance=(0.5, 0.25, 0.25), steps=40)


def with_drafter(record: DrafterRecord, files: tuple[str, ...], *, draft_tokens: int | None = 3) -> bytes:
    """The manifest with a group `drafter`, whether it is valid or not."""
    value = json.loads(dump_manifest(manifest()))
    runtime = {key: item for key, item in dataclasses.asdict(record).items() if item not in (None, ())}
    group = {"kind": "drafter", "files": list(files), "parameters": 0, "bytes": 100 * len(files), "runtime": runtime}
    value["groups"]["drafter"] = group
    value["files"] |= {name: {"bytes": 100, "sha256": "cd" * 32, "chunks": ["cd" * 32]} for name in files}
    if draft_tokens is not None:
        value["groups"]["text"]["runtime"]["draft_tokens"] = draft_tokens
    return encode_manifest(value)


@pytest.mark.parametrize(
    ("record", "files"), [(PUBLISHED, (DRAFTER,)), (FITTED, (DRAFTER, DRAFTER_TEXT))], ids=["published", "fitted"]
)
def test_a_drafter_is_read_back_as_it_was_written(record: DrafterRecord, files: tuple[str, ...]) -> None:
    found, faults = parse(with_drafter(record, files))
    assert faults == [] and found is not None and found.drafter == record
    keys = json.loads(dump_manifest(found))["groups"]["drafter"]["runtime"].keys()
    assert keys == ({"size", "checkpoint", "caches"} if record.checkpoint else {"size", "acceptance", "steps"})
    read = set(bundle_signatures(found)[DRAFTER]["draft"].inputs) - {"activations", "input_pos", "mask"}
    assert read == set(record.caches)


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (replace(PUBLISHED, caches=()), "caches"),
        (replace(PUBLISHED, caches=("kv_cache_k_9",)), "caches"),
        (replace(PUBLISHED, caches=("kv_cache_k_0", "kv_cache_k_0")), "caches"),
        (replace(PUBLISHED, steps=3), "runtime"),
        (replace(PUBLISHED, size="none"), "size"),
        (replace(FITTED, caches=("kv_cache_k_0",)), "caches"),
        (replace(FITTED, steps=None), "steps"),
        (replace(FITTED, acceptance=()), "acceptance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_drafter_is_of_one_kind(record: DrafterRecord, place: str) -> None:
    found, faults = parse(with_drafter(record, (DRAFTER,) if record.checkpoint else (DRAFTER, DRAFTER_TEXT)))
    assert found is None and [fault.fault.split()[-1] for fault in faults] == [place]


def test_a_published_drafter_has_one_file_and_a_model_that_checks_drafts() -> None:
    _, faults = parse(with_drafter(PUBLISHED, (DRAFTER, DRAFTER_TEXT), draft_tokens=None))
    assert [fault.fault for fault in faults] == ["groups drafter files", "groups text runtime draft_tokens"]


def test_the_manifests_hash_is_that_of_its_other_lines() -> None:
    data = dump_manifest(manifest())
    lines = data.splitlines(keepends=True)
    (digest,) = (line for line in lines if line.startswith(b' "sha256": '))
    others = b"".join(line for line in lines if line != digest)
    assert digest == b' "sha256": "%s",\n' % hashlib.sha256(others).hexdigest().encode()
    for wrong in (others, data.replace(b"handmade", b"handmode"), data.replace(b'"sizes": {', b'"sizes":  {')):
        found, faults = parse(wrong)
        assert (found, [fault.fault for fault in faults]) == (None, ["sha256"])


def test_faults_in_several_parts_are_all_reported() -> None:
    def edit(value: dict[str, Any]) -> None:
        put("text/hidden_size", 0)(value)
        put("text/stop_token_ids", [-1, -2])(value)
        put("files/tokenizer.json/sha256", "x")(value)
        put("files/embedder.tflite/sha256", "x")(value)
        put("default_size", "")(value)

    _, faults = parse(edited(edit))
    places = {"text hidden_size", "text stop_token_ids[0]", "text stop_token_ids[1]", "default_size"}
    places |= {"files tokenizer.json sha256", "files embedder.tflite sha256"}
    assert {fault.fault for fault in faults} == set(map(place_of, places))


def test_a_manifest_that_could_not_be_read_is_not_written() -> None:
    with pytest.raises(BundleError, match="groups text runtime hidden_size"):
        text = replace(manifest().groups["text"], runtime=replace(TEXT, hidden_size=0))
        dump_manifest(replace(manifest(), groups={**manifest().groups, "text": text}))


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_a_bundle_of_format_1_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text('{"format": "gemma-edge-bundle/1", "text": {}}')
    with pytest.raises(BundleError, match="found gemma-edge-bundle/1, wanted gemma-edge-bundle/3; convert it again"):
        read_manifest(tmp_path)


def test_an_enormous_manifest_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.bundle.manifest_json.MAX_MANIFEST_BYTES", 10)
    (tmp_path / MANIFEST_NAME).write_bytes(b" " * 11)
    with pytest.raises(BundleError, match="over 10 bytes"):
        read_manifest(tmp_path)


def test_files_are_described_as_they_lie_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 4)
    for name in ("embedder.tflite", "ple_00000.bin", "text_decoder.tflite"):
        (tmp_path / name).write_bytes(name.encode())
    found = describe(DRAFT, tmp_path)
    assert found.files["embedder.tflite"].bytes == len("embedder.tflite")
    assert len(found.files["embedder.tflite"].chunks) == 4
    assert found.groups["text"].bytes == len("embedder.tflite" + "text_decoder.tflite")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_edit_of_the_bytes_is_worse_than_a_fault(data: st.DataObject) -> None:
    original = dump_manifest(manifest())
    at = data.draw(st.integers(0, len(original) - 1))
    length = data.draw(st.integers(0, 12))
    changed = original[:at] + data.draw(st.binary(max_size=8)) + original[at + length :]
    found, faults = parse(changed)
    assert (found is None) == bool(faults)
