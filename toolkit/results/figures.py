"""The names of all figures. A name that is not listed here is an error, so that a mistyped one is noticed.

A name ends in its unit, which also tells whether more is better (docs/formats/results.md). mypy checks the names in the
source; reading and writing a record checks those in files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal, TypeVar, cast, get_args

from toolkit.base.errors import ResultsError

Runs = Literal[
    "init_s",
    "time_to_first_token_s",
    "prefill_s",
    "decode_s",
    "prefill_tokens_count",
    "decode_tokens_count",
    "prefill_tokens_per_s",
    "first_prefill_tokens_per_s",
    "decode_tokens_per_s",
    "inference_s",
    "inference_min_s",
    "inference_max_s",
    "inference_stddev_s",
    "inferences_count",
    "warmup_first_s",
    "peak_memory_bytes",
    "model_resident_bytes",
    "major_faults_count",
    "minor_faults_count",
    "read_bytes",
    "draft_acceptance_fraction",
    "drafts_offered_count",
    "drafts_accepted_count",
    "decode_tokens_per_step",
]
"""Figures of a process that runs a model."""

Energy = Literal[
    "energy_joules",
    "energy_s",
    "idle_joules",
    "prompt_joules",
    "prompt_idle_joules",
    "prompt_joules_per_token",
    "decode_joules",
    "decode_idle_joules",
    "decode_joules_per_token",
]
"""Energy of a process, of its prompt and of its answer; `idle`: what the machine would have used at rest."""

Memory = Literal[
    "rss_bytes",
    "anonymous_bytes",
    "file_bytes",
    "shared_memory_bytes",
    "swap_bytes",
    "rss_and_swap_bytes",
    "high_water_rss_bytes",
    "pss_bytes",
    "pss_anonymous_bytes",
    "pss_file_bytes",
    "private_clean_bytes",
    "private_dirty_bytes",
]
"""A process's memory, as the kernel reports it."""

Series = Literal["t_s", "temperature_celsius", "cpu_frequency_hz"]
"""Columns that only samples have."""

Reads = Literal[
    "row_pread_latency_p50_s",
    "row_pread_latency_p99_s",
    "row_pread_bandwidth_bytes_per_s",
    "row_pread_minor_faults_count",
    "row_pread_major_faults_count",
    "row_pread_resident_after_count",
    "row_pread_storage_read_bytes",
    "row_pread_random_latency_p50_s",
    "row_pread_random_latency_p99_s",
    "row_pread_random_bandwidth_bytes_per_s",
    "row_pread_random_minor_faults_count",
    "row_pread_random_major_faults_count",
    "row_pread_random_resident_after_count",
    "row_pread_random_storage_read_bytes",
    "row_mmap_latency_p50_s",
    "row_mmap_latency_p99_s",
    "row_mmap_bandwidth_bytes_per_s",
    "row_mmap_minor_faults_count",
    "row_mmap_major_faults_count",
    "row_mmap_resident_after_count",
    "row_mmap_storage_read_bytes",
    "row_mmap_random_latency_p50_s",
    "row_mmap_random_latency_p99_s",
    "row_mmap_random_bandwidth_bytes_per_s",
    "row_mmap_random_minor_faults_count",
    "row_mmap_random_major_faults_count",
    "row_mmap_random_resident_after_count",
    "row_mmap_random_storage_read_bytes",
    "batch_pread_latency_p50_s",
    "batch_pread_latency_p99_s",
    "batch_pread_bandwidth_bytes_per_s",
    "batch_pread_minor_faults_count",
    "batch_pread_major_faults_count",
    "batch_pread_resident_after_count",
    "batch_pread_storage_read_bytes",
    "batch_pread_random_latency_p50_s",
    "batch_pread_random_latency_p99_s",
    "batch_pread_random_bandwidth_bytes_per_s",
    "batch_pread_random_minor_faults_count",
    "batch_pread_random_major_faults_count",
    "batch_pread_random_resident_after_count",
    "batch_pread_random_storage_read_bytes",
    "batch_mmap_latency_p50_s",
    "batch_mmap_latency_p99_s",
    "batch_mmap_bandwidth_bytes_per_s",
    "batch_mmap_minor_faults_count",
    "batch_mmap_major_faults_count",
    "batch_mmap_resident_after_count",
    "batch_mmap_storage_read_bytes",
    "batch_mmap_random_latency_p50_s",
    "batch_mmap_random_latency_p99_s",
    "batch_mmap_random_bandwidth_bytes_per_s",
    "batch_mmap_random_minor_faults_count",
    "batch_mmap_random_major_faults_count",
    "batch_mmap_random_resident_after_count",
    "batch_mmap_random_storage_read_bytes",
    "batch_pread_readahead_latency_p50_s",
    "batch_pread_readahead_latency_p99_s",
    "batch_pread_readahead_bandwidth_bytes_per_s",
    "batch_pread_readahead_minor_faults_count",
    "batch_pread_readahead_major_faults_count",
    "batch_pread_readahead_resident_after_count",
    "batch_pread_readahead_storage_read_bytes",
    "batch_mmap_willneed_latency_p50_s",
    "batch_mmap_willneed_latency_p99_s",
    "batch_mmap_willneed_bandwidth_bytes_per_s",
    "batch_mmap_willneed_minor_faults_count",
    "batch_mmap_willneed_major_faults_count",
    "batch_mmap_willneed_resident_after_count",
    "batch_mmap_willneed_storage_read_bytes",
]
"""Figures of the flash probe. A name has the pattern of the read, the way of access, and what was measured."""

Old = Literal["bandwidth_bytes_per_s", "latency_p50_s", "latency_p99_s", "resident_bytes", "rows_count"]
"""Figures of the flash probe in files of earlier versions, which had one record for each way of access."""

Scripts = Literal[
    "convert_s",
    "convert_cpu_s",
    "gate_s",
    "gate_cpu_s",
    "sample_cpu_s",
    "peak_rss_bytes",
    "output_bytes",
    "kept_bytes",
    "storage_bytes_per_s",
    "first_init_s",
    "decode_step_s",
    "decode_cpu_s",
    "prefill_cpu_s",
    "init_cpu_s",
    "decode_read_bytes_per_s",
    "memory_read_bytes_per_s",
    "memory_bandwidth_fraction",
    "lookup_latency_p50_s",
    "lookup_latency_p99_s",
    "lookup_read_bytes",
    "weights_per_s",
    "weights_per_cpu_s",
    "gaussian_error_fraction",
    "laplace_error_fraction",
    "student_t4_error_fraction",
    "books_kl_nats",
    "books_kl_low_nats",
    "books_kl_high_nats",
    "books_kl_fraction",
    "books_kl_low_fraction",
    "books_kl_high_fraction",
    "languages_kl_nats",
    "languages_kl_low_nats",
    "languages_kl_high_nats",
    "languages_kl_fraction",
    "languages_kl_low_fraction",
    "languages_kl_high_fraction",
    "encode_s",
    "relative_error_fraction",
    "pictures_error_fraction",
    "pictures_right_fraction",
    "pictures_right_low_fraction",
    "pictures_right_high_fraction",
    "sounds_error_fraction",
    "sounds_right_fraction",
    "sounds_right_low_fraction",
    "sounds_right_high_fraction",
    "push_s",
    "push_alone_s",
    "send_s",
    "sent_bytes",
    "daemon_peak_rss_bytes",
    "server_peak_rss_bytes",
    "media_s",
    "effective_bytes",
    "ple_resident_bytes",
    "group_peak_bytes",
    "load_peak_bytes",
    "vision_peak_bytes",
    "audio_peak_bytes",
    "prefill_peak_bytes",
    "decode_peak_bytes",
    "weight_bytes",
    "cache_bytes",
]
"""Figures that only the scripts in benchmarks/ measure."""

FigureName = Literal[Runs, Energy, Memory, Series, Reads, Old, Scripts]

Name = TypeVar("Name", bound=str)

FIGURES: frozenset[str] = frozenset(get_args(FigureName))


def nearest_figure(name: str) -> str:
    """The figure that an unknown name was probably meant to be.

    >>> nearest_figure("decode_token_per_s"), nearest_figure("x")
    ('decode_tokens_per_s', 'a name in toolkit/results/figures.py')
    """
    found = difflib.get_close_matches(name, sorted(FIGURES), n=1)
    return found[0] if found else "a name in toolkit/results/figures.py"


def known_figure(name: str, place: str) -> FigureName:
    """Return `name` if it is a figure's name; ResultsError otherwise, with `place` as its place."""
    if name not in FIGURES:
        raise ResultsError(f"{place} figure", found=name, wanted=nearest_figure(name))
    return cast(FigureName, name)


def known_figures(values: Mapping[Name, float], place: str) -> dict[FigureName, float]:
    """The same values, after `known_figure` has checked each name."""
    return {known_figure(name, place): value for name, value in values.items()}


def is_more_better(figure: str) -> bool:
    """Whether more is better: of rates, accepted drafts and right answers, but not of times, bytes, joules and counts.

    >>> is_more_better("decode_tokens_per_s"), is_more_better("init_s")
    (True, False)
    """
    return figure.endswith(("_per_s", "_per_step", "_acceptance_fraction", "_right_fraction"))
