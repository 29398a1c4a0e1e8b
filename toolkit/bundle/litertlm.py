"""Exports a bundle as one .litertlm (docs/formats/litertlm.md) that Google's LiteRT-LM engine loads."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from toolkit.bundle import litertlm_schema as schema
from toolkit.bundle.litertlm_schema import ContainerMetadata, LlmMetadata, SectionRecord
from toolkit.bundle.manifest import (
    CHAT_TEMPLATE,
    EMBEDDER,
    TEXT_DECODER,
    TOKENIZER,
    Manifest,
    SizeRecord,
)
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_graph import ROWS, layout_ple
from toolkit.bundle.ple_shards import HEADER_BYTES, check_sequence, is_shard_name, read_header, shard_name
from toolkit.errors import BundleError, EnvironmentFault
from toolkit.files import CHUNK_BYTES, Advance, Progress, atomic_file, hash_file, require_free_space
from toolkit.layout import SECTION_ALIGNMENT, align_up
from toolkit.tflite.rewrite import select_signatures
from toolkit.tflite.writer import pack_header

_ZLIB_LEVEL = 9


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file without its first `skip` bytes, and the size and hash that the whole of it must have."""

    path: Path
    file_size: int
    sha256: str
    skip: int = 0

    @property
    def size(self) -> int:
        """Bytes that are taken."""
        return self.file_size - self.skip


@dataclass(frozen=True, slots=True)
class Section:
    """A section before its place is known: what it is, and where its bytes come from."""

    type: str
    content: tuple[bytes | FilePart, ...]
    model_type: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.content)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A written container, and which of the bundle's sizes runs in it."""

    path: Path
    bytes: int
    size: str


def export_litertlm(
    bundle: Path | str, path: Path | str, size: str | None = None, *, progress: Progress | None = None
) -> ExportResult:
    """Write one size of a bundle, by default its default size, as a .litertlm.

    BundleError if the bundle has no such size, or if a file is not what the manifest says.
    """
    source, target = Path(bundle), Path(path)
    manifest = read_manifest(source)
    name = manifest.default_size if size is None else size
    system = {
        "checkpoint": manifest.checkpoint.name,
        "checkpoint_sha256": manifest.checkpoint.sha256,
        "generator": manifest.generator,
        "size": name,
    }
    with _decoder(source, manifest, name, target) as decoder:
        total = write_container(target, _sections(source, manifest, decoder), system, progress=progress)
    return ExportResult(target, total, name)


def write_container(
    path: Path, sections: Sequence[Section], system: Mapping[str, str], *, progress: Progress | None = None
) -> int:
    """Write the sections behind their header, a chunk at a time, read all of it back and rename; the bytes written."""
    header, places = _layout(sections, system)
    total = places[-1].end
    require_free_space(path.resolve().parent, total)
    digest = hashlib.sha256()
    advance = Advance(2 * total, progress)

    def verify(partial: Path) -> None:
        if hash_file(partial, advance=advance).sha256 != digest.hexdigest():
            raise EnvironmentFault(str(path), found="other bytes when read back", wanted="what was written")

    with atomic_file(path, verify=verify) as partial, open(partial, "wb") as file:
        for chunk in _stream(header, sections, places):
            file.write(chunk)
            digest.update(chunk)
            advance(len(chunk))
        file.flush()
        assert file.tell() == total, "the layout and the sections disagree"
    return total


def _layout(sections: Sequence[Section], system: Mapping[str, str]) -> tuple[bytes, tuple[SectionRecord, ...]]:
    """The header, and where each section lies. The metadata's length is the same for all offsets but 0."""

    def records(start: int) -> tuple[SectionRecord, ...]:
        placed: list[SectionRecord] = []
        for section in sections:
            start = align_up(start, SECTION_ALIGNMENT)
            items = {} if section.model_type is None else {schema.MODEL_TYPE: section.model_type}
            placed.append(SectionRecord(section.type, start, start + section.size, items))
            start += section.size
        return tuple(placed)

    trial = schema.pack_container_metadata(ContainerMetadata(system, records(SECTION_ALIGNMENT)))
    header_end = schema.METADATA_OFFSET + len(trial)
    places = records(header_end)
    metadata = schema.pack_container_metadata(ContainerMetadata(system, places))
    assert len(metadata) == len(trial), "the metadata grew after it was laid out"
    version = schema.MAGIC + struct.pack("<3I", *schema.VERSION)
    fixed = version.ljust(schema.HEADER_END_OFFSET, b"\0") + struct.pack("<Q", header_end)
    return fixed.ljust(schema.METADATA_OFFSET, b"\0") + metadata, places


def _stream(header: bytes, sections: Sequence[Section], places: Sequence[SectionRecord]) -> Iterator[bytes]:
    yield header
    end = len(header)
    for section, place in zip(sections, places, strict=True):
        yield bytes(place.begin - end)
        for part in section.content:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _read_part(part)
        end = place.end


def _read_part(part: FilePart) -> Iterator[bytes]:
    """The file's bytes; after the last one an error unless they have the hash they should have."""
    digest = hashlib.sha256()
    skip = part.skip
    with open(part.path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            yield chunk[skip:]
            skip = max(0, skip - len(chunk))
    _check_hash(part, digest.hexdigest())


def _require_hash(part: FilePart) -> None:
    _check_hash(part, hash_file(part.path).sha256)


def _check_hash(part: FilePart, found: str) -> None:
    if found != part.sha256:
        raise BundleError(str(part.path), found=f"sha256 {found}", wanted=part.sha256, remedy="convert it again")


def _sections(bundle: Path, manifest: Manifest, decoder: FilePart) -> tuple[Section, ...]:
    """Small ones first: a reader finds them within the first megabytes."""
    text = manifest.text
    template = bundle / CHAT_TEMPLATE if CHAT_TEMPLATE in manifest.files else None
    metadata = LlmMetadata(
        start_token=(text.bos_token_id,),
        stop_tokens=tuple((token,) for token in text.stop_token_ids),
        pad_token=(text.pad_token_id,),
        max_num_tokens=text.context,
        jinja_prompt_template=None if template is None else template.read_text(encoding="utf-8"),
    )
    tokenizer = (bundle / TOKENIZER).read_bytes()
    packed = struct.pack("<Q", len(tokenizer)) + zlib.compress(tokenizer, _ZLIB_LEVEL)
    return (
        Section(schema.LLM_METADATA, (schema.pack_llm_metadata(metadata),)),
        Section(schema.HF_TOKENIZER, (packed,)),
        Section(schema.TFLITE_MODEL, (_whole(bundle, EMBEDDER, manifest),), schema.EMBEDDER),
        Section(schema.TFLITE_MODEL, (decoder,), schema.PREFILL_DECODE),
        Section(schema.TFLITE_MODEL, _per_layer_embedder(bundle, manifest), schema.PER_LAYER_EMBEDDER),
    )


def _per_layer_embedder(bundle: Path, manifest: Manifest) -> tuple[bytes | FilePart, ...]:
    """A graph over the rows of all shards, which follow it as they are."""
    names = sorted(filter(is_shard_name, manifest.files))
    shards = [_whole(bundle, name, manifest) for name in names or [shard_name(0)]]
    headers = [read_header(shard.path) for shard in shards]
    check_sequence([shard.path for shard in shards], headers)
    layout = layout_ple(headers[0].layout)
    header = pack_header(layout).ljust(layout.blobs[ROWS].offset_bytes, b"\0")
    return (header, *(replace(shard, skip=HEADER_BYTES) for shard in shards))


def _whole(bundle: Path, name: str, manifest: Manifest) -> FilePart:
    if name not in manifest.files:
        raise BundleError(str(bundle), found=f"no {name}", wanted="a bundle with text", remedy="convert it again")
    return FilePart(bundle / name, manifest.files[name].bytes, manifest.files[name].sha256)


@contextmanager
def _decoder(bundle: Path, manifest: Manifest, size: str, scratch_beside: Path) -> Iterator[FilePart]:
    """The decoder as it is; of several sizes only the one that runs, under the plain names, and no context buckets."""
    whole = _whole(bundle, TEXT_DECODER, manifest)
    chosen = manifest.size(size)
    if len(manifest.sizes) == 1 and not manifest.text.context_buckets:
        yield whole
        return
    _require_hash(whole)
    with TemporaryDirectory(prefix=f".{scratch_beside.name}.", dir=scratch_beside.resolve().parent) as scratch:
        path = Path(scratch) / TEXT_DECODER
        plain = SizeRecord(chosen.layers, chosen.ffn_sizes, "")
        names = {plain.prefill(n): chosen.prefill(n) for n in manifest.text.prefill_sizes}
        select_signatures(whole.path, path, {**names, plain.decode: chosen.decode})
        found = hash_file(path)
        yield FilePart(path, found.size, found.sha256)
