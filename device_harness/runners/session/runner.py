"""Runs our own session on machines with Python and this package: Linux boards, the emulated device, this computer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.runners import python_child
from device_harness.runners.interface import Job, JobPlan, LocalModel, PlacedModel, Workload, text_tests, whole_files
from toolkit.base.errors import UsageError, errors_about
from toolkit.bundle.chat import read_bounded_text
from toolkit.bundle.manifest import Manifest
from toolkit.results.figures import FigureName
from toolkit.results.labels import workload_name
from toolkit.runtime.backends import backend_names
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.speculative import require_drafts

_MODULE = "device_harness.runners.session.child"
_CACHE = "bench-weight-cache"
_MOST_TEXT_BYTES = 16 << 20  # far more than fits into any context


@dataclass(frozen=True, slots=True)
class SessionRunner:
    """Runs a bundle's directory with a backend of `toolkit.runtime.backends`."""

    text: Path | None = None
    """A text to continue speculatively, in place of random tokens."""

    def plan(self, model: LocalModel, workload: Workload) -> JobPlan:
        """Plan one job; UsageError for an unknown backend, or more tokens than the bundle's context or the text has.

        Placing the job is an EnvironmentFault if the machine has no Python with this package.
        """
        manifest = model.manifest
        assert manifest is not None
        require_workload(manifest, workload, "session", backend_names())
        tests = session_tests(workload)
        words: tuple[str, ...] = ()
        if self.text is not None:
            tests |= draft_tests(workload)
            words = ("--prompt-ids", ",".join(map(str, _prompt(self.text, model.path, workload))))

        def jobs(machine: Machine, there: PlacedModel) -> tuple[Job, ...]:
            return (_job(machine, there, manifest, workload, tests, words),)

        return jobs


def _prompt(text: Path, model: Path, workload: Workload) -> list[int]:
    """The first tokens of a text, as many as the workload's prompt has; BundleError if the bundle checks no drafts."""
    bundle = Bundle(model)
    require_drafts(bundle)
    with errors_about("--speculative"):
        words = read_bounded_text(text, UsageError, _MOST_TEXT_BYTES)
    ids = bundle.tokenizer().encode_limited(words, special=True)
    if len(ids) < workload.prompt_tokens:
        wanted = f"at least {workload.prompt_tokens}, as -p says"
        raise UsageError("--speculative", file=text, found=f"{len(ids)} tokens", wanted=wanted)
    return ids[: workload.prompt_tokens]


def require_workload(manifest: Manifest, workload: Workload, runner: str, backends: Sequence[str]) -> None:
    """UsageError for a backend that the runner lacks, another context than the bundle's, or more tokens than it has."""
    if workload.backend not in backends:
        wanted = f"{' or '.join(backends)} with the runner {runner}"
        raise UsageError("--backend", found=workload.backend, wanted=wanted)
    if workload.context not in (None, manifest.text.context):
        wanted = f"{manifest.text.context}, which the bundle's graphs are made for"
        remedy = "convert with that --context"
        raise UsageError("--context", found=workload.context, wanted=wanted, remedy=remedy)
    tokens = workload.prompt_tokens + workload.generated_tokens
    if tokens > manifest.text.context:
        wanted = f"at most {manifest.text.context}, the bundle's context"
        raise UsageError("-p and -n", found=f"{tokens} tokens", wanted=wanted, remedy="ask for fewer")


def _job(
    machine: Machine,
    model: PlacedModel,
    manifest: Manifest,
    workload: Workload,
    tests: Mapping[str, FigureName],
    prompt: Sequence[str],
) -> Job:
    binaries = python_child.binaries(machine, _MODULE)
    cache = python_child.cache_folder(machine, _CACHE)
    size = ("--size", model.record.size or manifest.default_size)
    words = (model.path, *size, "--backend", workload.backend, "--cache", cache, *python_child.options(workload))
    argv = (*python_child.command(machine, _MODULE), *words, *prompt)
    return Job(
        tests=tests,
        argv=argv,
        read=python_child.read_child,
        model=model.record,
        binaries=binaries,
        works_in_child=workload.backend == "gpu",
        weight_caches=(f"{cache}/*.xnnpack",),
        groups=whole_files(model.path, manifest),
        context=manifest.text.context,
        no_delegation="LiteRT's profiler was not asked: the run was cut short",
        count_nodes=(*argv, "--count-nodes"),
        read_nodes=python_child.read_nodes,
    )


def session_tests(workload: Workload) -> dict[str, FigureName]:
    """The tests, including the prefill of the first prompt, which is the one that Google's engine measures."""
    tests = text_tests(workload)
    if workload.prompt_tokens > 1:
        tests[f"{workload_name(workload.prompt_tokens, 0)}:first"] = "first_prefill_tokens_per_s"
    return tests


def draft_tests(workload: Workload) -> dict[str, FigureName]:
    """The tests of speculative decoding: the share of right drafts, and the tokens for each time the model ran."""
    decode = workload_name(0, workload.generated_tokens)
    return {f"{decode}:accepted": "draft_acceptance_fraction", f"{decode}:per_step": "decode_tokens_per_step"}
