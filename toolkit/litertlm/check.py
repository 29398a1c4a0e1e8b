"""Checks a .litertlm against docs/formats/litertlm.md; shares only the records of schema.py with the writer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.base.errors import BundleError, GraphError
from toolkit.base.files import Advance, Progress
from toolkit.base.layout import SECTION_ALIGNMENT, Span, overlaps
from toolkit.base.signatures import Truster
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.prompting import turn_end_token
from toolkit.bundle.signatures import (
    DECODE,
    DRAFT,
    VERIFY,
    TextShapes,
    buffer_faults,
    checked_drafts,
    counts_of,
    shapes_of,
    signature_faults,
    text_shapes_of,
)
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import tokenizer_faults
from toolkit.litertlm import schema, tables
from toolkit.litertlm.chat_template import engine_prompts, rendering_fault
from toolkit.litertlm.check_towers import AUDIO, VISION, tower_faults
from toolkit.litertlm.engine_tools import tool_conversations
from toolkit.litertlm.hashes import has_hashes, hash_faults, trust_faults
from toolkit.litertlm.header import Header, header_end
from toolkit.litertlm.lock_section import read_lock
from toolkit.litertlm.schema import LlmMetadata
from toolkit.litertlm.tables import TFLITE_MODEL, ContainerMetadata, SectionRecord
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER, MAX_TOKENIZER_BYTES, unpack_tokenizer
from toolkit.tflite.reader import TfliteContent, read_tflite
from toolkit.tflite.target import CPU

DESCRIBED = (schema.EMBEDDER, schema.PREFILL_DECODE, schema.PER_LAYER_EMBEDDER, schema.DRAFTER, *VISION, *AUDIO)
"""The graphs whose signatures are checked; of others, whether they are whole."""
REQUIRED = (schema.LLM_METADATA, schema.EMBEDDER, schema.PREFILL_DECODE, schema.PER_LAYER_EMBEDDER)


def check_litertlm(path: Path, *, trust: Sequence[Truster] = (), progress: Progress | None = None) -> list[Fault]:
    """All faults that can be found in a .litertlm; `trust`: if not empty, one of these keys must have signed it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        fixed = file.read(tables.METADATA_OFFSET)
        end = header_end(path.name, fixed, size)
        if isinstance(end, Fault):
            return [end]
        table = file.read(end - tables.METADATA_OFFSET)
    try:
        header = Header(fixed + table, tables.unpack_container_metadata(table, path))
    except BundleError as error:
        return [Fault.of(error, path.name, "header")]
    sections = header.metadata.sections
    faults = _layout_faults(path.name, sections, end, size) + _count_faults(path.name, sections)
    placed = {s.label: s for s in sections if end <= s.begin <= s.end <= size}
    if not faults and has_hashes(header.metadata):
        faults += hash_faults(path, header, Advance(size, progress))
    faults += _lock_faults(path, ContainerMetadata(header.metadata.system, tuple(placed.values())))
    if trust:
        faults += trust_faults(path.name, header, trust)
    return faults + _Contents(path, placed).faults()


def _lock_faults(path: Path, metadata: ContainerMetadata) -> list[Fault]:
    try:
        read_lock(path, metadata)
    except BundleError as error:
        return [Fault.of(error, path.name, "lock")]
    return []


def _layout_faults(file: str, sections: tuple[SectionRecord, ...], header_end: int, size: int) -> list[Fault]:
    faults = []
    for section in sections:
        place, found = f"section {section.label}", f"bytes {section.begin} to {section.end}"
        if section.begin % SECTION_ALIGNMENT:
            faults.append(Fault(file, place, f"begin {section.begin}", f"a multiple of {SECTION_ALIGNMENT}"))
        if section.begin >= section.end:
            faults.append(Fault(file, place, found, "at least one byte"))
        if section.end > size:
            faults.append(Fault(file, place, found, f"at most {size}, the file's size"))
    header = Span(0, header_end, "the header")
    spans = [Span(s.begin, s.end, f"section {s.label}") for s in sections]
    for a, b in overlaps([header, *spans]):
        faults.append(Fault(file, f"{b.name} overlaps {a.name}", f"begin {b.begin}", f"{a.end} or later"))
    # `overlaps` allows equal ranges, since weights may be shared; sections may not.
    for (begin, end), count in Counter((s.begin, s.end) for s in sections).items():
        if count > 1:
            faults.append(Fault(file, f"bytes {begin} to {end}", f"{count} sections", "one"))
    last = max((s.end for s in sections), default=header_end)
    if last < size:
        faults.append(Fault(file, "size", f"{size} bytes", f"{last}, the end of the last section"))
    return faults


def _count_faults(file: str, sections: tuple[SectionRecord, ...]) -> list[Fault]:
    counts = Counter(section.label for section in sections)
    faults = [
        Fault(file, f"section {label}", f"{counts[label]} of them", "one")
        for label in sorted({*REQUIRED, *counts})
        if (label in REQUIRED and not counts[label]) or counts[label] > 1
    ]
    for group in (VISION, AUDIO):
        missing = [label for label in group if not counts[label]]
        if len(missing) < len(group):
            faults += [Fault(file, f"section {label}", "none", "one beside those of its group") for label in missing]
    tokenizers = sum(counts[label] for label in schema.TOKENIZERS)
    if tokenizers != 1:
        faults.append(Fault(file, "tokenizer", f"{tokenizers} sections", "one"))
    return faults


class _Contents:
    """Checks the content of the sections, each found by its label."""

    def __init__(self, path: Path, sections: Mapping[str, SectionRecord]) -> None:
        self._path = path
        self._sections = sections
        self._faults: list[Fault] = []

    def faults(self) -> list[Fault]:
        metadata = self._llm_metadata()
        decoder = self._graph(schema.PREFILL_DECODE)
        shapes = None if decoder is None else self._check_decoder(decoder)
        for label in (schema.EMBEDDER, schema.PER_LAYER_EMBEDDER):
            graph = self._graph(label)
            if graph is not None and shapes is not None:
                self._check_embedder(label, graph, shapes)
        if metadata is not None:
            self._check_metadata(metadata, shapes)
        if shapes is not None:
            self._check_towers(metadata, shapes)
        tokenizer = self._check_tokenizer(shapes)
        self._check_other_graphs()
        if metadata is not None and not self._faults:
            self._check_prompts(metadata, tokenizer)
        return self._faults

    def _fault(self, label: str, fault: str, found: object, wanted: str | None) -> None:
        self._faults.append(Fault(self._path.name, f"section {label} {fault}".strip(), str(found), wanted))

    def _read(self, label: str, limit: int) -> bytes | None:
        section = self._sections.get(label)
        if section is None:
            return None
        if section.end - section.begin > limit:
            self._fault(label, "size", f"{section.end - section.begin} bytes", f"at most {limit}")
            return None
        with open(self._path, "rb") as file:
            return os.pread(file.fileno(), section.end - section.begin, section.begin)

    def _llm_metadata(self) -> LlmMetadata | None:
        data = self._read(schema.LLM_METADATA, schema.MAX_LLM_METADATA_BYTES)
        try:
            return None if data is None else schema.unpack_llm_metadata(data, self._path)
        except BundleError as error:
            self._fault(schema.LLM_METADATA, "", error.found, error.wanted)
            return None

    def _graph(self, label: str) -> TfliteContent | None:
        section = self._sections.get(label)
        if section is None:
            return None
        try:
            content = read_tflite(self._path, (section.begin, section.end))
        except GraphError as error:
            self._fault(label, error.place or "", error.found, error.wanted)
            return None
        self._place(label, buffer_faults("", content))
        return content

    def _place(self, label: str, faults: list[Fault]) -> None:
        for fault in faults:
            self._fault(label, fault.fault, fault.found, fault.wanted)

    def _check_decoder(self, content: TfliteContent) -> TextShapes | None:
        label, names = schema.PREFILL_DECODE, content.model.signatures
        if DECODE not in names:
            self._fault(label, f"signature {DECODE}", "missing", "this signature")
            return None
        shapes = text_shapes_of(content.graph(DECODE))
        if shapes is None:
            self._fault(label, f"signature {DECODE}", "other inputs or outputs", "embeddings, mask, logits and so on")
            return None
        sizes = counts_of(names, "prefill_")
        # A larger one fails at the end of the context (docs/formats/litertlm.md).
        if not sizes or sizes[0] > CPU.smallest_prefill_limit:
            found = f"prefill of {sizes[0]}" if sizes else "no prefill"
            self._fault(label, "signatures", found, f"a prefill of at most {CPU.smallest_prefill_limit}")
        signatures = shapes_of(content)
        drafts = checked_drafts(signatures)
        self._place(label, signature_faults("", signatures, shapes.decoders(sizes, draft_tokens=drafts)))
        self._check_drafter(shapes, drafts)
        return shapes

    def _check_drafter(self, shapes: TextShapes, drafts: int | None) -> None:
        """Check the drafter: it needs a decoder that checks drafts, and may read the decoder's caches."""
        content = self._graph(schema.DRAFTER)
        if content is None:
            return
        if drafts is None:
            self._fault(schema.PREFILL_DECODE, f"signature {VERIFY}", "missing", "this signature, for the drafter")
        signatures = list(shapes_of(content).values())
        if len(signatures) != 1:
            self._fault(schema.DRAFTER, "signatures", len(signatures), "1")
        else:
            wanted = shapes.drafter(caches=signatures[0].inputs)
            self._place(schema.DRAFTER, signature_faults("", {DRAFT: signatures[0]}, wanted))

    def _check_embedder(self, label: str, content: TfliteContent, shapes: TextShapes) -> None:
        """Check that the first signature takes one token: the engine calls no other."""
        counts = counts_of(content.model.signatures, "embed_")
        first = content.model.signatures[:1]
        if first != ("embed_1",):
            self._fault(label, "first signature", first[0] if first else "none", "embed_1")
        wanted = shapes.embedders(counts) if label == schema.EMBEDDER else shapes.per_layer_embedder()
        self._place(label, signature_faults("", shapes_of(content), wanted))

    def _check_metadata(self, metadata: LlmMetadata, shapes: TextShapes | None) -> None:
        label = schema.LLM_METADATA
        if not metadata.stop_tokens:
            self._fault(label, "stop_tokens", "none", "at least one")
        if metadata.start_token is None and metadata.jinja_prompt_template is None:
            self._fault(label, "start_token", "none", "one, for prompts without a template")
        if metadata.sampler is not None:
            self._check_sampling(metadata.sampler, metadata.sampling)
        if shapes is None:
            return
        if not 0 < metadata.max_num_tokens <= shapes.context:
            self._fault(label, "max_num_tokens", metadata.max_num_tokens, f"1 to {shapes.context}, the mask's length")
        tokens = (metadata.start_token, metadata.pad_token, *metadata.stop_tokens)
        ids = [token for sequence in tokens if isinstance(sequence, tuple) for token in sequence]
        for token in ids:
            if not 0 <= token < shapes.vocab_size:
                self._fault(label, "token id", token, f"0 to {shapes.vocab_size - 1}")

    def _check_sampling(self, sampler: str, sampling: SamplingRecord) -> None:
        """Check the rules of the engine, which reads the sampling only when an app sets none (observed)."""
        values: dict[str, tuple[object, bool, str]] = {
            "type": (sampler, sampler in schema.SAMPLERS, schema.TOP_P),
            "k": (sampling.top_k, sampling.top_k >= 1, "at least 1"),
            "p": (sampling.top_p, 0 <= sampling.top_p <= 1, "0 to 1"),
            "temperature": (sampling.temperature, sampling.temperature >= 0, "at least 0"),
        }
        for name, (found, holds, wanted) in values.items():
            if not holds:
                self._fault(schema.LLM_METADATA, f"sampler_params {name}", found, wanted)

    def _check_towers(self, metadata: LlmMetadata | None, shapes: TextShapes) -> None:
        read = {label: self._graph(label) for label in (*VISION, *AUDIO)}
        graphs = {label: graph for label, graph in read.items() if graph is not None}
        for label, fault in tower_faults(graphs, metadata, shapes.hidden_size):
            self._place(label, [fault])

    def _check_other_graphs(self) -> None:
        """Graphs that the format does not describe are whole files at least, since the engine opens them."""
        for label, section in self._sections.items():
            if section.type == TFLITE_MODEL and label not in DESCRIBED:
                self._graph(label)

    def _check_prompts(self, metadata: LlmMetadata, tokenizer: bytes | None) -> None:
        """Check the engine's tokens for conversations, and that the token which ends a turn is a stop token."""
        label, template = schema.LLM_METADATA, metadata.jinja_prompt_template
        if template is None:
            return
        try:
            opened = None if tokenizer is None else Tokenizer(self._path, tokenizer)
        except BundleError as error:
            self._fault(HF_TOKENIZER, error.place or "", error.found, error.wanted)
            return
        engine = engine_prompts(metadata, opened)
        tools = tool_conversations(engine.model_type) if metadata.supports_function_calling else ()
        fault = rendering_fault(template, engine, tools)
        if fault is not None:
            self._fault(label, f"jinja_prompt_template, {fault.place}", fault.found, fault.wanted)
        if fault is not None or tokenizer is None:
            return
        token = turn_end_token(ChatTemplate(template), tokenizer)
        if token is not None and opened is not None:
            stops = ((token,), opened.token_of(token))
            if not any(stop in stops for stop in metadata.stop_tokens):
                self._fault(label, "stop_tokens", str(list(metadata.stop_tokens)), f"{token} too, which ends a turn")

    def _check_tokenizer(self, shapes: TextShapes | None) -> bytes | None:
        """The content of tokenizer.json, if it is valid."""
        label = HF_TOKENIZER
        data = self._read(label, MAX_TOKENIZER_BYTES)
        if data is None:
            return None
        text = unpack_tokenizer(data)
        if not isinstance(text, bytes):
            self._place(label, text)
            return None
        faults = tokenizer_faults("", text, shapes.vocab_size if shapes else 2**31)
        self._place(label, faults)
        return None if faults else text
