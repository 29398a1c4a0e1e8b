"""Graphs on the GPU, each time in its own process: a fault of the delegate or of a driver ends the process.

python gpu_process.py REQUEST.json      # as `run_graphs` starts it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from software_vulkan import VulkanDriver, find_driver

Arrays = Mapping[str, NDArray[np.generic]]
Processor = Literal["cpu", "gpu-f32", "gpu-f16"]
SECONDS = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a process said: whether all of the file runs where it should, outputs by signature if so, and its log."""

    whole: bool
    outputs: Mapping[str, Mapping[str, NDArray[Any]]]
    log: str


def driver(*, float16: bool = False) -> VulkanDriver:
    """The driver to test with; the test is skipped where there is none, or none that computes in float16."""
    found = find_driver()
    if found is None:
        pytest.skip("no Vulkan driver that LiteRT takes: python tests/support/software_vulkan.py downloads one")
    if float16 and not found.float16:
        pytest.skip(f"{found.name} does not compute in float16: python tests/support/software_vulkan.py gets one")
    return found


def run_graphs(model: Path, inputs: Mapping[str, Arrays], processor: Processor) -> Outcome:
    """The signatures of a .tflite that `inputs` names, with its numbers. The test fails where the process dies.

    A name may be `SIGNATURE@WORD`, so that one process runs a signature with several inputs.
    """
    environment = {} if processor == "cpu" else driver(float16=processor == "gpu-f16").environment
    with TemporaryDirectory(prefix="gemma-edge-gpu-") as scratch:
        for name, arrays in inputs.items():
            np.savez(Path(scratch, f"{name}.in.npz"), **arrays)  # type: ignore[arg-type]
        request = Path(scratch, "request.json")
        request.write_text(json.dumps({"model": str(model), "signatures": list(inputs), "processor": processor}))
        log = run_alone([str(Path(__file__)), str(request)], environment)
        answer = Path(scratch, "answer.json")
        if not answer.exists():
            return Outcome(False, {}, log)
        outputs = {name: dict(np.load(Path(scratch, f"{name}.out.npz"))) for name in inputs}
        return Outcome(json.loads(answer.read_text())["whole"], outputs, log)


def run_alone(arguments: list[str], environment: Mapping[str, str]) -> str:
    """What a Python program of ours says. The test fails, and shows it, where the process dies or takes too long."""
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
    )
    if child.returncode:
        pytest.fail(f"exit code {child.returncode} of {' '.join(arguments)}:\n{child.stdout[-4000:]}", pytrace=False)
    return child.stdout


def _main(request: Path) -> None:
    """The process: build the model for one processor, run each signature, leave what it gave beside the request."""
    from ai_edge_litert import options as litert  # type: ignore[import-untyped]
    from ai_edge_litert.compiled_model import CompiledModel  # type: ignore[import-untyped]
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator  # type: ignore[import-untyped]

    values = json.loads(request.read_text())
    if values["processor"] == "cpu":
        options = litert.Options(hardware_accelerators=HardwareAccelerator.CPU)
    else:
        f16 = values["processor"] == "gpu-f16"
        # As LiteRT-LM sets them.
        gpu = litert.GpuOptions(enforce_f32=not f16, infinite_float_capping=f16)
        # Not with CPU beside it: what XNNPACK takes then counts as accelerated too.
        options = litert.Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=gpu)
    try:
        model = CompiledModel.from_file(values["model"], options=options)
    except RuntimeError as error:
        print(error)
        return
    for name in values["signatures"]:
        outputs = _run(model, name.split("@")[0], dict(np.load(f"{request.parent}/{name}.in.npz")))
        np.savez(request.parent / f"{name}.out.npz", **outputs)  # type: ignore[arg-type]
    (request.parent / "answer.json").write_text(json.dumps({"whole": bool(model.is_fully_accelerated())}))
    # The delegate's threads may fall over each other at exit.
    sys.stdout.flush()
    os._exit(0)


def _run(model: Any, name: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    inputs = {key: model.create_input_buffer_by_name(name, key) for key in model.get_input_tensor_details(name)}
    details = model.get_output_tensor_details(name)
    outputs = {key: model.create_output_buffer_by_name(name, key) for key in details}
    for key, buffer in inputs.items():
        buffer.write(np.ascontiguousarray(arrays[key]))
    model.run_by_name(name, inputs, outputs)
    found = {}
    for key, detail in details.items():
        shape, dtype = tuple(detail["shape"]), np.dtype(str(np.dtype(detail["dtype"])))
        found[key] = np.asarray(outputs[key].read(int(np.prod(shape)), dtype)).reshape(shape)
    return found


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
