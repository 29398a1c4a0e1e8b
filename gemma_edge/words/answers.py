"""Shows an answer while it is generated, and lines on its speed, memory and look-ups."""

from __future__ import annotations

from gemma_edge.terminal import Terminal
from toolkit.results.quantities import bytes_text
from toolkit.runtime.answer import Answer, AnswerStream
from toolkit.runtime.generate import GenerationReport
from toolkit.runtime.memory import PLE_GROUP, Memory
from toolkit.runtime.ple_lookup import PleStatistics


def show_answer(stream: AnswerStream, terminal: Terminal, *, pieces: bool = False) -> Answer:
    """Print an answer while it is generated. An interrupt ends it and keeps the text so far, if there is any.

    pieces: under `--json`, print each piece too, as an object with the key `piece`.
    """
    shown = 0
    try:
        for piece in stream:
            terminal.stream(piece)
            if pieces and terminal.as_json:
                terminal.result({"piece": piece}, "")
            shown += len(piece)
    except KeyboardInterrupt:
        stream.close()
        if not stream.has_answer:
            raise
    terminal.stream(stream.answer.text[shown:] + "\n")
    return stream.answer


def cut_text(tokens: int) -> str:
    """A line on an answer that was cut before its end."""
    return f"[cut after {tokens:,} tokens; -n N allows more]"


def speed_text(report: GenerationReport) -> str:
    """A line on the number of tokens and the speed."""
    parts = [f"{report.prompt_tokens} prompt tokens", f"{len(report.token_ids)} generated ({report.ending})"]
    if report.reused_tokens:
        parts[0] += f", {report.reused_tokens} reused"
    if report.media_s is not None:
        parts.append(f"images and sounds {report.media_s:.1f} s")
    if report.prefill_tokens_per_s is not None:
        parts.append(f"prefill {report.prefill_tokens_per_s:,.1f} tokens/s")
    if report.decode_tokens_per_s is not None:
        parts.append(f"decode {report.decode_tokens_per_s:,.1f} tokens/s")
    if report.drafts is not None:
        parts.append(f"{report.drafts.accepted} of {report.drafts.offered} drafts accepted")
    if report.time_to_first_token_s is not None:
        parts.append(f"first token after {report.time_to_first_token_s:.3f} s")
    return "[" + "; ".join(parts) + "]"


def memory_text(memory: Memory, peak_rss_bytes: int | None, *, backend: str) -> str:
    """A line on the resident memory by kind, and on how much of it the model needs."""
    parts = [] if peak_rss_bytes is None else [f"peak {bytes_text(peak_rss_bytes)}"]
    process, ple = memory.process, memory.groups.get(PLE_GROUP)
    if process.rss_bytes is None:
        parts.append("by kind and by group not measured on this system")
    if process.rss_anonymous_bytes is not None and process.rss_file_bytes is not None:
        parts += [f"{bytes_text(process.rss_anonymous_bytes)} anonymous", f"{bytes_text(process.rss_file_bytes)} files"]
    if process.rss_shmem_bytes:
        parts.append(f"{bytes_text(process.rss_shmem_bytes)} shared")
    if ple is not None:
        parts.append(f"PLE {bytes_text(ple.resident_bytes)} of {bytes_text(ple.mapped_bytes)} resident")
    if memory.effective_bytes is not None:
        parts.append(f"effective {bytes_text(memory.effective_bytes)}")
    if backend == "gpu":
        parts.append("without the GPU and its process")
    return "[memory: " + "; ".join(parts) + "]"


def ple_text(statistics: PleStatistics) -> str:
    """A line on the look-ups of per-layer embeddings."""
    minor, major = statistics.minor_faults, statistics.major_faults
    read = f"{bytes_text(statistics.bytes_read)} read"
    waited = "page faults not counted on this system"
    if minor is not None and major is not None:
        waited = f"{minor + major:,} page faults, {major:,} of them from flash"
    return f"[PLE: {statistics.rows:,} rows; {statistics.cache_hits:,} hits; {read}; {waited}]"
