"""Shows what a .litertlm contains, for `inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gemma_edge.api.inspect import FileInspection
from gemma_edge.terminal import table
from toolkit.base.printable import printable
from toolkit.litertlm.schema import LlmMetadata, Token
from toolkit.results.quantities import bytes_text

_SHOWN_CHARACTERS = 60


def file_json(findings: FileInspection) -> dict[str, object]:
    """The JSON of a .litertlm: all that is shown, and the whole template."""
    metadata = findings.metadata
    return {
        "kind": "litertlm",
        "inputs": list(findings.inputs),
        "system": dict(findings.system),
        "sections": [dataclasses.asdict(section) for section in findings.sections],
        "metadata": None if metadata is None else dataclasses.asdict(metadata),
    }


def file_text(findings: FileInspection) -> str:
    """The sections as a table, then what the file tells the engine."""
    rows = [
        [printable(s.label), str(s.begin), bytes_text(s.bytes), ", ".join(f"{k} {v}" for k, v in _besides(s.items))]
        for s in findings.sections
    ]
    lines = [f"inputs: {', '.join(findings.inputs)}"]
    lines += [] if findings.metadata is None else list(_metadata(findings.metadata))
    lines += [f"{printable(key)}: {_short(text)}" for key, text in sorted(findings.system.items())]
    return "\n\n".join([table(["section", "begin", "bytes", ""], rows), "\n".join(lines)])


def _besides(items: dict[str, str] | object) -> Iterator[tuple[str, str]]:
    assert isinstance(items, dict)
    return ((printable(key), printable(text)) for key, text in items.items() if key != "model_type")


def _metadata(metadata: LlmMetadata) -> Iterator[str]:
    sampling, template = metadata.sampling, metadata.jinja_prompt_template
    yield f"model type: {printable(metadata.model_type)}"
    yield f"context: {metadata.max_num_tokens} tokens"
    yield f"start token: {_token(metadata.start_token)}"
    yield f"stop tokens: {', '.join(_token(token) for token in metadata.stop_tokens) or 'none'}"
    yield f"sampler: temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
    yield f"function calling: {'yes' if metadata.supports_function_calling else 'no'}"
    yield f"thinking: {'yes' if metadata.supports_thinking else 'no'}"
    yield f"minimum runtime: {printable(metadata.min_runtime_version) or 'any'}"
    yield f"chat template: {'none' if template is None else f'{len(template)} characters: {_short(template)}'}"


def _token(token: Token | None) -> str:
    if token is None:
        return "none"
    return printable(token) if isinstance(token, str) else " ".join(map(str, token))


def _short(text: str) -> str:
    shown = printable(text[:_SHOWN_CHARACTERS])
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown}..."
