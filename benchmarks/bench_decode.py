"""Compares prefill and decode rates in one run: our session, our program in C, LiteRT-LM's engine, and llama.cpp.

Contenders of one recipe are compared: bundles in our own session and in bundle_runner, .litertlm files of ours and of
the official exporter in LiteRT-LM's engine, and GGUF files in llama.cpp. Each run is a separate process; contenders
take turns (A B A B), after one run of each that builds its weight cache and is not counted.

  python -m benchmarks.bench_decode --session int8=bundle --native int8=bundle --litertlm int8=ours.litertlm \\
      --peer-litertlm int8=theirs.litertlm --peer-gguf int8=Q8_0.gguf --llama-python PEER/bin/python

With --baseline, recipes (or models: a name is any word) are compared with that one in the same runtime, round by round:

  python -m benchmarks.bench_decode --session 3n=gemma3n-e2b --session 4=gemma4-e2b-qat --baseline 3n
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.engine_run import EngineRun
from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device, tree_bytes
from benchmarks.session_run import SessionRequest, SessionRun, run_child
from toolkit.base.processors import usable_processors
from toolkit.bundle.footprint import footprints
from toolkit.litertlm.reader import read_litertlm
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import Summary, summary
from toolkit.runtime.bundle import Bundle

OURS, EXPORTER, LLAMA = "gemma-edge", "litert-torch", "llama.cpp"
PEERS = (EXPORTER, LLAMA)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a file: its name, the script that makes one run from `RunOptions`, and the Python for the script."""

    name: str
    script: str
    python: str = sys.executable


SESSION = Runtime("our session", "session_run")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A file or bundle under a recipe's name, who made it, and what runs it."""

    system: str
    runtime: Runtime
    recipe: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """The size of the file, or of all files in the bundle."""
        return self.path.stat().st_size if self.path.is_file() else tree_bytes(self.path)

    @property
    def weight_bytes(self) -> int | None:
        """The bytes of weights that a decoded token reads from a bundle; None for a file."""
        if self.path.is_file():
            return None
        manifest = Bundle(self.path).manifest
        return footprints(self.path, manifest)[manifest.default_size].weight_bytes

    def context(self, load: Load) -> int | None:
        """The positions of its KV caches: its own, which a .litertlm of another program may not say, or the load's."""
        if self.path.is_dir():
            return Bundle(self.path).manifest.text.context
        return read_litertlm(self.path).context if self.path.suffix == ".litertlm" else load.context


@dataclass(frozen=True, slots=True)
class Load:
    """What every run does; `context`: for files without a context of their own."""

    prefill: int
    decode: int
    threads: int
    context: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """An entrant's runs; `first` built the weight cache."""

    entrant: Entrant
    first: EngineRun
    runs: tuple[EngineRun, ...]

    def prefill(self) -> Summary:
        """Tokens per second."""
        return summary([run.prefill_tokens_per_s for run in self.runs])

    def decode(self) -> Summary:
        """Tokens per second."""
        return summary([run.decode_tokens_per_s for run in self.runs])

    def peak_rss_bytes(self) -> Summary:
        """Of the engine's process, including mapped file pages."""
        return summary([run.peak_rss_bytes for run in self.runs])


def measure(entrants: Sequence[Entrant], load: Load, cache: Path) -> list[Outcome]:
    """One run of each, which is not counted, then rounds of one run each."""
    caches = [cache / str(number) for number in range(len(entrants))]
    for directory in caches:
        directory.mkdir()
    first = [_run(entrant, load, directory) for entrant, directory in zip(entrants, caches, strict=True)]
    runs: list[list[EngineRun]] = [[] for _ in entrants]
    for _ in range(load.repeats):
        for number, entrant in enumerate(entrants):
            run = _run(entrant, load, caches[number])
            runs[number].append(run)
            rates = f"{run.prefill_tokens_per_s:.1f} prefill, {run.decode_tokens_per_s:.1f} decode tokens/s"
            print(f"{entrant.system} in {entrant.runtime.name} {entrant.recipe}: {rates}", flush=True)
    return [Outcome(e, f, tuple(r)) for e, f, r in zip(entrants, first, runs, strict=True)]


def _run(entrant: Entrant, load: Load, cache: Path) -> EngineRun:
    if entrant.runtime == SESSION:
        request = SessionRequest(entrant.path, load.prefill, load.decode, cache, threads=load.threads)
        return _from_session(run_child(request), load)
    options = {key: value for key, value in asdict(load).items() if key != "repeats"} | {"cache": cache}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [entrant.runtime.python, "-m", f"benchmarks.{entrant.runtime.script}", str(entrant.path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"error: {entrant.path}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return EngineRun(**json.loads(lines[-1]))


def _from_session(run: SessionRun, load: Load) -> EngineRun:
    assert run.prefill_tokens_per_s is not None, "no prompt is shorter than a token"
    return EngineRun(
        init_seconds=run.load_seconds,
        time_to_first_token_seconds=load.prefill / run.prefill_tokens_per_s + run.first_step_ms / 1e3,
        prefill_tokens=load.prefill,
        prefill_tokens_per_s=run.prefill_tokens_per_s,
        decode_tokens=load.decode,
        decode_tokens_per_s=run.decode_tokens_per_s,
        peak_rss_bytes=max(run.peaks.values()),
    )


def measured(outcome: Outcome, load: Load) -> Measured:
    """One entrant's runs as a record; its first run has the `init` of the run that packed the weights."""
    entrant = outcome.entrant
    runs = [figures(run) for run in outcome.runs]
    runs[0]["first_init_s"] = outcome.first.init_seconds
    tests: dict[str, FigureName] = {
        f"pp{load.prefill}": "prefill_tokens_per_s",
        f"tg{load.decode}": "decode_tokens_per_s",
        f"ttft{load.prefill}": "time_to_first_token_s",
        "init": "init_s",
        "first_init": "first_init_s",
        "peak": "peak_rss_bytes",
    }
    return Measured(
        model_record(entrant.path, entrant.path.stem, quantization=entrant.recipe),
        tests,
        runs,
        {"system": entrant.system, "runtime": entrant.runtime.name, "prompt": str(load.prefill)},
        threads=load.threads,
        context=entrant.context(load),
    )


def figures(run: EngineRun) -> Figures:
    """The figures of one process."""
    return {
        "init_s": run.init_seconds,
        "prefill_tokens_per_s": run.prefill_tokens_per_s,
        "decode_tokens_per_s": run.decode_tokens_per_s,
        "time_to_first_token_s": run.time_to_first_token_seconds,
        "peak_rss_bytes": run.peak_rss_bytes,
    }


def table(outcomes: Sequence[Outcome], baseline: str | None = None) -> str:
    """Median, and from least to most; for ours also prefill and decode as ratios of the medians to each peer's.

    `baseline`: a recipe, with which the others of its maker are compared in the same runtime, by the medians of the
    rounds' ratios.
    """
    peers = {(o.entrant.recipe, o.entrant.system): o for o in outcomes if o.entrant.system in PEERS}
    present = [system for system in PEERS if any(key[1] == system for key in peers)]
    bases = {(o.entrant.system, o.entrant.runtime): o for o in outcomes if o.entrant.recipe == baseline}
    rows = []
    for outcome in outcomes:
        entrant = outcome.entrant
        ratios = [_ratio(outcome, peers.get((entrant.recipe, system))) for system in present]
        ratios += [] if baseline is None else [_ratio_of_rounds(outcome, bases.get((entrant.system, entrant.runtime)))]
        rates = text(outcome.prefill(), ".0f"), text(outcome.decode(), ".1f")
        read = "" if entrant.weight_bytes is None else f"{entrant.weight_bytes / 1e6:.0f}"
        sizes = read, f"{entrant.size_bytes / 1e6:.0f}", text(outcome.peak_rss_bytes(), ".0f", 1e-6)
        rows.append([entrant.recipe, f"{entrant.system} in {entrant.runtime.name}", *rates, *ratios, *sizes])
    against = [f"x {system}: prefill, decode" for system in present]
    against += [] if baseline is None else [f"x {baseline}: prefill, decode"]
    header = ["recipe", "contender", "prefill, tokens/s", "decode, tokens/s", *against]
    return markdown([*header, "weights, MB a token", "file, MB", "peak RSS, MB"], rows)


def _ratio(outcome: Outcome, peer: Outcome | None) -> str:
    if peer is None or outcome.entrant.system != OURS:
        return ""
    prefill = outcome.prefill().median / peer.prefill().median
    return f"{prefill:.2f}, {outcome.decode().median / peer.decode().median:.2f}"


def _ratio_of_rounds(outcome: Outcome, base: Outcome | None) -> str:
    """The medians of prefill and decode as ratios to those of the same round, with the least and the most."""
    if base is None or base is outcome:
        return ""
    pairs = list(zip(outcome.runs, base.runs, strict=True))
    prefill = summary([one.prefill_tokens_per_s / other.prefill_tokens_per_s for one, other in pairs])
    decode = summary([one.decode_tokens_per_s / other.decode_tokens_per_s for one, other in pairs])
    return f"{text(prefill, '.2f')}, {text(decode, '.2f')}"


def _named_path(argument: str) -> tuple[str, Path]:
    name, separator, path = argument.partition("=")
    if not separator or not name or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted RECIPE=PATH with a path that exists")
    return name, Path(path).resolve()


def _entrants(options: argparse.Namespace) -> list[Entrant]:
    engine = Runtime("LiteRT-LM", "engine_run")
    # Absolute, because runs start in another directory; not resolved, because that would leave the environment.
    python = "" if options.llama_python is None else str(options.llama_python.absolute())
    llama = Runtime("llama.cpp", "llama_run", python)
    kinds = (
        (OURS, SESSION, options.session),
        (OURS, Runtime("bundle_runner", "native_run"), options.native),
        (OURS, engine, options.litertlm),
        (EXPORTER, engine, options.peer_litertlm),
        (LLAMA, llama, options.peer_gguf),
    )
    return [Entrant(system, runtime, *named) for system, runtime, found in kinds for named in found]


def _llama_versions(python: Path | None) -> dict[str, str]:
    if python is None:
        return {}
    code = "import importlib.metadata as m; print(m.version('llama-cpp-python'))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return {"llama-cpp-python": found.stdout.strip()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = {
        "--session": "a bundle of ours, run by our session",
        "--native": "a bundle of ours, run by our program in C",
        "--litertlm": "a .litertlm of ours, run by LiteRT-LM",
        "--peer-litertlm": "a .litertlm of the official exporter, run by LiteRT-LM",
        "--peer-gguf": "a file of gguf_peer, run by llama.cpp",
    }
    for flag, about in kinds.items():
        parser.add_argument(
            flag, action="append", default=[], type=_named_path, metavar="RECIPE=PATH", help=f"{about}; repeatable"
        )
    parser.add_argument("--llama-python", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument("--baseline", metavar="RECIPE", help="compare the other recipes with this one")
    parser.add_argument(
        "--prefill", type=int, nargs="+", default=[512], help="lengths of the prompt, in turn (default: 512)"
    )
    parser.add_argument("--decode", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=usable_processors(), help="default: %(default)s")
    parser.add_argument(
        "--context", type=int, default=4096, help="of llama.cpp; others have the file's own (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="counted runs of each file (default: %(default)s)")
    parser.add_argument(
        "--scratch", type=Path, help="where weight caches are written and removed; default: the system's"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "decode.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    entrants = _entrants(options)
    if not entrants:
        parser.error("nothing to run: give --session, --native, --litertlm or a peer's file as RECIPE=PATH")
    if options.baseline is not None and options.baseline not in {entrant.recipe for entrant in entrants}:
        parser.error(f"--baseline: nothing is called {options.baseline}")
    if options.peer_gguf and options.llama_python is None:
        parser.error("--peer-gguf needs --llama-python")
    versions = _llama_versions(options.llama_python)
    for prefill in options.prefill:
        load = Load(prefill, options.decode, options.threads, options.context, options.repeats)
        recorder = Recorder("decode")
        with TemporaryDirectory(dir=options.scratch, prefix="bench_decode.") as cache:
            outcomes = measure(entrants, load, Path(cache).resolve())
        for outcome in outcomes:
            peers = versions if outcome.entrant.system == LLAMA else {}
            recorder.append(options.output, measured(outcome, load), peers)
        print(f"\n{this_device()}\n{load}\nload average before: {recorder.load_before:.2f}\n")
        print(table(outcomes, options.baseline), flush=True)


if __name__ == "__main__":
    main()
