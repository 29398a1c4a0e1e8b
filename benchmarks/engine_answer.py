"""Answers a prompt greedily in LiteRT-LM's engine, with its drafter or without; prints one JSON object.

`python -m benchmarks.engine_answer FILE.litertlm --prompt TEXT --decode 64 --threads 2 --cache DIR [--drafts]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What to answer; `cache` keeps packed weights between processes. The prompt gets no template."""

    file: Path
    prompt: str
    decode: int
    threads: int
    cache: Path
    drafts: bool

    def command(self) -> list[str]:
        """The command line of its process, which runs in another directory: its paths are absolute."""
        flags = ["--prompt", self.prompt, "--decode", self.decode, "--threads", self.threads]
        flags += ["--cache", self.cache.resolve(), *(["--drafts"] if self.drafts else [])]
        return [sys.executable, "-m", "benchmarks.engine_answer", str(self.file.resolve()), *map(str, flags)]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what the engine's BenchmarkInfo says of it."""

    text: str
    pieces: int
    """How many pieces of text were streamed: one for each step whose text is not empty."""
    tokens: int
    """With drafts, they may be more than was asked for, by the drafts of the last step."""
    tokens_per_s: float
    """While decoding."""
    cpu_seconds: float
    """Of this process while it decoded."""


def answer(request: AnswerRequest) -> Answer:
    """Answer in this process; a first answer, which warms up, is not counted."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    with litert_lm.Engine(
        str(request.file),
        backend=litert_lm.Backend.CPU(thread_count=request.threads),
        cache_dir=str(request.cache),
        enable_benchmark=True,
        enable_speculative_decoding=request.drafts,
    ) as engine:
        for count in (min(8, request.decode), request.decode):
            greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
            with engine.create_session(
                apply_prompt_template=False, sampler_config=greedy, max_output_tokens=count
            ) as session:
                session.run_prefill([request.prompt])
                started = time.process_time()
                pieces = [piece for part in session.run_decode_async() for piece in part.texts]
                cpu_seconds = time.process_time() - started
                info = session.get_benchmark_info()
    return Answer(
        "".join(pieces),
        len(pieces),
        info.last_decode_token_count,
        info.last_decode_tokens_per_second,
        cpu_seconds,
    )


def run_child(request: AnswerRequest) -> Answer:
    """Answer in a separate process. SystemExit with its last output if it fails."""
    done = subprocess.run(request.command(), capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"error: {' '.join(request.command())}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return Answer(**json.loads(lines[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_answer", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--decode", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--drafts", action="store_true")
    print(json.dumps(asdict(answer(AnswerRequest(**vars(parser.parse_args(arguments)))))))


if __name__ == "__main__":
    main()
