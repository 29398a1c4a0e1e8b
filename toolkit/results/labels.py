"""The names of tests, devices and runs in all tables, pages and comparisons."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.results.record import BenchRecord

EMULATED = "emulated"
"""Shown like a flag for an emulated device, whose speeds are those of the computer that ran the emulator."""


def workload_name(prompt_tokens: int, generated_tokens: int) -> str:
    """The name of a test, as in llama-bench: `pp` and the number of prompt tokens, `tg` and that of generated ones.

    >>> workload_name(512, 0), workload_name(0, 128), workload_name(512, 128)
    ('pp512', 'tg128', 'pp512+tg128')
    """
    parts = [f"pp{prompt_tokens}"] * bool(prompt_tokens) + [f"tg{generated_tokens}"] * bool(generated_tokens)
    return "+".join(parts)


def labels(record: BenchRecord) -> Mapping[str, str]:
    """Model, runner, settings and device of a record, by heading; empty if the record does not state it."""
    model = record.model
    return {
        "model": model.name,
        "size": model.size or "",
        "quant": model.quantization or "",
        "runner": f"{record.runner}, {record.conditions}" if record.conditions else record.runner,
        "backend": record.backend,
        "threads": "" if record.threads is None else str(record.threads),
        "start": record.start,
        "device": device_name(record),
    }


def device_name(record: BenchRecord) -> str:
    """Manufacturer and model of the device, and its serial number if several devices were measured together.

    An emulated device is marked as such, whatever name it states.
    """
    device = record.device
    name = " ".join(text for text in (device.manufacturer, device.model, record.device_serial) if text) or device.kind
    return f"{name} ({EMULATED})" if device.emulated and EMULATED not in name else name


def threads_text(record: BenchRecord) -> str:
    """`1 thread` or `4 threads`; empty if the runner chose the number itself."""
    if record.threads is None:
        return ""
    return "1 thread" if record.threads == 1 else f"{record.threads} threads"


def notes(record: BenchRecord) -> tuple[str, ...]:
    """Warnings for every reader: emulation, flags, and how many nodes ran on the accelerator."""
    found = [EMULATED] * record.device.emulated + [flag.replace("_", " ") for flag in record.flags]
    part = record.delegation.text if record.delegation is not None and record.backend != "cpu" else None
    return (*found, part) if part else tuple(found)


def figure_heading(figure: str) -> str:
    """The heading of a figure's column, without the unit, which is in the cells.

    >>> figure_heading("latency_p50_s"), figure_heading("read_bytes_per_s")
    ('latency p50', 'read')
    """
    for ending in ("_bytes_per_s", "_tokens_per_s", "_per_s", "_bytes", "_count", "_s"):
        if figure.endswith(ending):
            return figure.removesuffix(ending).replace("_", " ")
    return figure.replace("_", " ")
