"""Measures our own session, in a separate process on the machine that runs it: `python3 -m` this module.

The first prompt after loading gives the time to first token, and the rate of its prefill under a separate name. The
other rates come from a second prompt in the same process, as llama-bench warms up before it measures. Tokens are random
but always the same; the second prompt has different ones, so that its rows of per-layer embeddings are not those that
the first has left in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from device_harness.runners.child_program import Measured, run_child, uptime
from device_harness.runners.session.litert_profile import count_nodes
from toolkit.base.errors import EnvironmentFault
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.results.record import Delegation
from toolkit.runtime.backends.cpu import CpuBackend
from toolkit.runtime.backends.gpu.remote import GpuRuntime
from toolkit.runtime.backends.interface import BackendOptions
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.session import Session, SessionSettings, default_threads
from toolkit.runtime.speculative import SpeculativeDecoder
from toolkit.tflite.reader import read_tflite

SEED = 0


def measure(arguments: argparse.Namespace) -> Measured:
    """Load, prefill and decode; returns figures by their names in docs/formats/results.md."""
    started = time.perf_counter()
    bundle = Bundle(arguments.model)
    settings = SessionSettings(
        size=arguments.size,
        threads=arguments.threads or default_threads(),
        weight_cache=arguments.cache,
        backend=arguments.backend,
    )
    with Session(bundle, settings) as session, closing(DraftSources(session)) as sources:
        init_s = time.perf_counter() - started
        most = min(bundle.manifest.text.vocab_size, bundle.manifest.text.ple_vocab_size)
        draw = np.random.default_rng(SEED)
        counts = (arguments.prompt_tokens, arguments.prompt_tokens, arguments.generated_tokens)
        first, prompt, drawn = ([int(token) for token in draw.integers(0, most, count)] for count in counts)
        prompt = arguments.prompt_ids or prompt
        started = time.perf_counter()
        session.prefill(first[:-1])
        first_prefill_s = time.perf_counter() - started
        session.decode(first[-1]).argmax()
        first_s = time.perf_counter() - started
        session.truncate(0)
        prompt_began = uptime()
        started = time.perf_counter()
        session.prefill(prompt)
        prefill_s = time.perf_counter() - started
        drafting = None
        if arguments.prompt_ids is not None:
            drafting = _Drafting(session, prompt, sources.for_answer())
        decode_began = uptime()
        started = time.perf_counter()
        for token in drawn:
            if drafting is None:
                session.decode(token).argmax()
            else:
                drafting.step()
        decode_s = time.perf_counter() - started
    # A prompt of one token has no prefill: its only token is processed by the decode step.
    first_rate = {"first_prefill_tokens_per_s": len(first[:-1]) / first_prefill_s} if first[:-1] else {}
    phases = {
        "prompt": (prompt_began, prompt_began + prefill_s),
        "decode": (decode_began, decode_began + decode_s),
    }
    figures = {
        "init_s": init_s,
        "time_to_first_token_s": first_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tokens_count": len(prompt),
        "decode_tokens_count": len(drawn),
        "prefill_tokens_per_s": len(prompt) / prefill_s,
        "decode_tokens_per_s": len(drawn) / decode_s,
        **first_rate,
        **({} if drafting is None else drafting.figures()),
    }
    return Measured(figures, phases)


class _Drafting:
    """Continues a text, greedily, with drafts."""

    def __init__(self, session: Session, prompt: Sequence[int], source: DraftSource) -> None:
        """The session holds the prompt, whose last token is processed again, for its logits."""
        session.truncate(len(prompt) - 1)
        self._decoder = SpeculativeDecoder(session, source, prompt[:-1])
        self._most = session.text.text_ids
        self._token = prompt[-1]

    def step(self) -> None:
        """Generate one token."""
        self._token = int(self._decoder.decode(self._token)[: self._most].argmax())

    def figures(self) -> dict[str, float]:
        """How many drafts were right; without drafts, there is no share."""
        found = self._decoder.statistics
        share = {"draft_acceptance_fraction": found.accepted / found.offered} if found.offered else {}
        return {
            "drafts_offered_count": found.offered,
            "drafts_accepted_count": found.accepted,
            "decode_tokens_per_step": (found.steps + found.accepted) / found.steps,
            **share,
        }


def count(arguments: argparse.Namespace) -> Delegation:
    """Count the delegated nodes of the size's signatures for the whole context."""
    bundle = Bundle(arguments.model)
    size = bundle.manifest.size(arguments.size)
    names = [size.signature(width) for width in (1, *bundle.manifest.text.prefill_sizes)]
    options = BackendOptions(arguments.threads or default_threads(), arguments.cache)
    return _on_gpu(bundle, names, options) if arguments.backend == "gpu" else _on_cpu(bundle, names, options)


def _on_gpu(bundle: Bundle, names: Sequence[str], options: BackendOptions) -> Delegation:
    """Count the nodes in the file: the GPU backend refuses a graph unless it takes every node."""
    path = bundle.path / TEXT_DECODER
    runtime = GpuRuntime(options)
    try:
        runtime.open(bundle.described_file(TEXT_DECODER), "large")
        source = f"LiteRT opened {', '.join(names)} with the GPU alone, adapter {runtime.adapter}"
    finally:
        runtime.close()
    content = read_tflite(path)
    nodes = sum(len(content.graph(name).operators) for name in names)
    return Delegation(nodes, nodes, source)


def _on_cpu(bundle: Bundle, names: Sequence[str], options: BackendOptions) -> Delegation:
    """Count the nodes that the CPU's delegate takes, with the session's packed weights."""
    packed = CpuBackend().kept_file(bundle.described_file(TEXT_DECODER), options)
    if packed is None or not packed.exists():
        raise EnvironmentFault("weight cache", found="no packed weights, which save memory")
    path = bundle.path / TEXT_DECODER
    found = count_nodes(library()[1], path, names, threads=options.threads, weight_cache=packed)
    return Delegation(*found, f"LiteRT's profiler, one run of {', '.join(names)}")


def library() -> tuple[str, Path]:
    """The name of LiteRT's package, and its shared library."""
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or spec.origin is None:
        raise EnvironmentFault("Python", found="the package ai_edge_litert is not installed")
    return "ai-edge-litert", Path(spec.origin).parent / "libLiteRt.so"


if __name__ == "__main__":
    sys.exit(run_child(None, measure, library, count))
