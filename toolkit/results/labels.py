"""What tests, devices and runs are called in every table, page and comparison."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.results.record import BenchRecord

EMULATED = "emulated"
"""Noted like a flag where a device is emulated: speeds are then those of the computer that ran the emulator."""


def workload_name(prompt_tokens: int, generated_tokens: int) -> str:
    """What a test is called: `pp` with the prompt's tokens, `tg` with the generated ones, as llama-bench has it.

    >>> workload_name(512, 0), workload_name(0, 128), workload_name(512, 128)
    ('pp512', 'tg128', 'pp512+tg128')
    """
    parts = [f"pp{prompt_tokens}"] * bool(prompt_tokens) + [f"tg{generated_tokens}"] * bool(generated_tokens)
    return "+".join(parts)


def labels(record: BenchRecord) -> Mapping[str, str]:
    """Model, runner, settings and device by heading; an empty text where the record does not say."""
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
    """Maker and model of the device; an emulated one is always called emulated, whatever it calls itself."""
    device = record.device
    name = " ".join(text for text in (device.manufacturer, device.model) if text) or device.kind
    return f"{name} ({EMULATED})" if device.emulated and EMULATED not in name else name


def threads_text(record: BenchRecord) -> str:
    """`1 thread` or `4 threads`; empty where the runner chose the number."""
    if record.threads is None:
        return ""
    return "1 thread" if record.threads == 1 else f"{record.threads} threads"


def notes(record: BenchRecord) -> tuple[str, ...]:
    """What no reader may overlook: emulation, flags, nodes that an accelerator did not take."""
    found = [EMULATED] * record.device.emulated + [flag.replace("_", " ") for flag in record.flags]
    part = record.delegation.text if record.delegation is not None and record.backend != "cpu" else None
    return (*found, part) if part else tuple(found)


def figure_heading(figure: str) -> str:
    """What stands above a column of a figure, whose cells say the unit.

    >>> figure_heading("latency_p50_s"), figure_heading("read_bytes_per_s")
    ('latency p50', 'read')
    """
    for ending in ("_bytes_per_s", "_tokens_per_s", "_per_s", "_bytes", "_count", "_s"):
        if figure.endswith(ending):
            return figure.removesuffix(ending).replace("_", " ")
    return figure.replace("_", " ")
