"""Parses what bundle_runner answers to the commands of a benchmark (docs/formats/bundle_runner.md)."""

from __future__ import annotations

from collections.abc import Sequence

from device_harness.native.client import GPU_PLACE
from device_harness.parsers.delegates import undelegated_nodes
from device_harness.runners.gpu_failure import read_gpu_failure
from device_harness.runners.interface import Reading
from toolkit.base.errors import EnvironmentFault, ToolkitError
from toolkit.base.strict_json import JsonObject, parse_json
from toolkit.results.figures import known_figures
from toolkit.results.record import Backend, Delegation
from toolkit.runtime.backends.gpu.log import explained_refusal, selected_adapter

WHAT = "bundle_runner"
COMMANDS = ("start", "open", "prefill", "decode", "truncate", "prefill", "decode", "stats")
"""The commands whose answers a benchmark has, in order."""


def read_native(output: str, prompt_tokens: int, generated_tokens: int) -> Reading:
    """Parse a process's complete output, which has LiteRT's log too; EnvironmentFault if an answer is missing."""
    answers = [_answer(line) for line in output.splitlines() if line.startswith("{")]
    found = tuple(answer.string("ok") for answer in answers)
    if found != COMMANDS:
        raise EnvironmentFault(WHAT, found=f"the answers {', '.join(found) or 'none'}", wanted=", ".join(COMMANDS))
    _, opened, first_prefill, first_decode, _, prefill, decode, stats = answers
    init_s, first_prefill_s, first_decode_s, prefill_s, decode_s = (
        _seconds(answer) for answer in (opened, first_prefill, first_decode, prefill, decode)
    )
    figures: dict[str, float] = {
        "init_s": init_s,
        "time_to_first_token_s": first_prefill_s + first_decode_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tokens_count": prompt_tokens,
        "decode_tokens_count": generated_tokens,
        "prefill_tokens_per_s": prompt_tokens / prefill_s,
        "decode_tokens_per_s": generated_tokens / decode_s,
        **_faults(stats.child("faults")),
    }
    if prompt_tokens > 1:
        figures["first_prefill_tokens_per_s"] = (prompt_tokens - 1) / first_prefill_s
    phases = {"prompt": _phase(prefill), "decode": _phase(decode)}
    begin_s, end_s = _phase(opened)[0], phases["decode"][1]
    fault = opened.string("weight_cache_fault") if opened.has("weight_cache_fault") else None
    return Reading(known_figures(figures, WHAT), begin_s=begin_s, end_s=end_s, phases=phases, weight_cache_fault=fault)


def read_profile(output: str, nodes: int, signatures: Sequence[str]) -> Delegation:
    """Parse the answers to `open` and `profile`, which ran the signatures, of `nodes` nodes together, once."""
    answers = [_answer(line) for line in output.splitlines() if line.startswith("{")]
    found = [answer.string("summary") for answer in answers if answer.has("summary")]
    if len(found) != 1:
        raise EnvironmentFault(WHAT, found=f"{len(found)} profiles", wanted="one")
    left = undelegated_nodes(found[0])
    return Delegation(nodes - left, nodes, f"LiteRT's profiler, one run of {', '.join(signatures)}")


def read_gpu_nodes(output: str, nodes: int, signatures: Sequence[str]) -> Delegation:
    """Parse the answer to `open` on a GPU: the program refuses a graph of which the GPU does not take every node."""
    answers = [_answer(line) for line in output.splitlines() if line.startswith("{")]
    if [answer.string("ok") for answer in answers] != ["start", "open"]:
        raise EnvironmentFault(WHAT, found=f"{len(answers)} answers", wanted="start and open")
    source = f"LiteRT opened {', '.join(signatures)} with the GPU alone, adapter {selected_adapter(output)}"
    return Delegation(nodes, nodes, source)


def read_failure(output: str, exit_code: int, *, backend: Backend) -> ToolkitError | None:
    """The error that the program has answered, or a fault of the GPU's driver; None if the output tells neither."""
    try:
        for line in output.splitlines():
            if line.startswith("{"):
                _answer(line)
    except EnvironmentFault as error:
        return explained_refusal(output, error) if error.place == GPU_PLACE else error
    return read_gpu_failure(output, exit_code) if backend == "gpu" else None


def _answer(line: str) -> JsonObject:
    answer = JsonObject(parse_json(line.encode(), None, EnvironmentFault, WHAT), None, EnvironmentFault, WHAT)
    if answer.has("error"):
        error = answer.child("error")
        texts = {key: error.string(key) if error.has(key) else None for key in ("file", "place", "wanted")}
        raise EnvironmentFault(
            texts["place"] or WHAT, file=texts["file"], found=error.string("found"), wanted=texts["wanted"]
        )
    return answer


def _phase(answer: JsonObject) -> tuple[float, float]:
    """When a command began and ended, by the machine's uptime."""
    end_s = answer.number("uptime_s", 0, 1e12)
    return end_s - _seconds(answer), end_s


def _seconds(answer: JsonObject) -> float:
    # The clock may not have moved during an empty prefill.
    return max(answer.number("seconds", 0, 1e9), 1e-9)


def _faults(faults: JsonObject) -> dict[str, float]:
    names = {"minor": "minor_faults_count", "major": "major_faults_count", "read_bytes": "read_bytes"}
    return {figure: faults.integer(key, 0, 2**62) for key, figure in names.items() if faults.has(key)}
