"""The Python API of gemma-edge: what the verbs of the command line do, except `demo`, `emulator` and `completion`.

`convert`, `rebuild`, `inspect`, `inspect_file`, `check`, `verify` and `export` make and examine bundles; `load` opens
one to generate text; `devices`, `push`, `bench`, `bench_devices` and `probe` work with Android devices; `report`,
`compare` and `export_results` read what `bench` recorded. Errors are `ToolkitError`s, which say what was found and what
to do. Nothing is printed: messages go to the loggers `gemma_edge`, `toolkit`, `converters` and `device_harness`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_edge.api.bench import bench
    from gemma_edge.api.bench_devices import BenchFailure, bench_devices
    from gemma_edge.api.chat import Chat
    from gemma_edge.api.check import check
    from gemma_edge.api.compare import compare
    from gemma_edge.api.convert import convert
    from gemma_edge.api.devices import devices
    from gemma_edge.api.export import export
    from gemma_edge.api.export_results import export_results
    from gemma_edge.api.inspect import inspect, inspect_file
    from gemma_edge.api.load import load
    from gemma_edge.api.model import Model
    from gemma_edge.api.probe import probe
    from gemma_edge.api.push import push
    from gemma_edge.api.rebuild import rebuild
    from gemma_edge.api.report import report
    from gemma_edge.api.verify import verify
    from toolkit.base.errors import ToolkitError
    from toolkit.runtime.answer import Answer, AnswerStream

_MODULES = {
    "Answer": "toolkit.runtime.answer",
    "AnswerStream": "toolkit.runtime.answer",
    "BenchFailure": "gemma_edge.api.bench_devices",
    "Chat": "gemma_edge.api.chat",
    "Model": "gemma_edge.api.model",
    "ToolkitError": "toolkit.base.errors",
    "bench": "gemma_edge.api.bench",
    "bench_devices": "gemma_edge.api.bench_devices",
    "check": "gemma_edge.api.check",
    "compare": "gemma_edge.api.compare",
    "convert": "gemma_edge.api.convert",
    "devices": "gemma_edge.api.devices",
    "export": "gemma_edge.api.export",
    "export_results": "gemma_edge.api.export_results",
    "inspect": "gemma_edge.api.inspect",
    "inspect_file": "gemma_edge.api.inspect",
    "load": "gemma_edge.api.load",
    "probe": "gemma_edge.api.probe",
    "push": "gemma_edge.api.push",
    "rebuild": "gemma_edge.api.rebuild",
    "report": "gemma_edge.api.report",
    "verify": "gemma_edge.api.verify",
}
"""The module that defines each name, imported on first use, since LiteRT and NumPy take a second to import."""

__all__ = [
    "Answer",
    "AnswerStream",
    "BenchFailure",
    "Chat",
    "Model",
    "ToolkitError",
    "bench",
    "bench_devices",
    "check",
    "compare",
    "convert",
    "devices",
    "export",
    "export_results",
    "inspect",
    "inspect_file",
    "load",
    "probe",
    "push",
    "rebuild",
    "report",
    "verify",
]

# A library logs nothing unless the program configures logging; without a handler, Python prints warnings on stderr.
for _package in ("gemma_edge", "toolkit", "converters", "device_harness"):
    logging.getLogger(_package).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
