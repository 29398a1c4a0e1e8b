"""Bundles and exports keep their bytes: what a change of structure must not move, one hash for each file.

A change that means to move them records the hashes anew, and says why in its commit:

    PYTHONPATH=tests/support python tests/test_same_bytes.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, random_tensors, write_checkpoint, write_tokenizer
from paths import EXAMPLE, FIXTURES, GEMMA_4_EXAMPLE
from towers import write_multimodal_checkpoint

from gemma_edge import cli

RECORDED = FIXTURES / "same_bytes.json"

CASES: Mapping[str, tuple[str, Sequence[str]]] = {
    "tiny-int4": ("example", ("--quant", "int4", "--sizes", "large,mid-wide,small", "--context", "512")),
    "tiny-f32-text": ("example", ("--quant", "f32", "--groups", "text", "--sizes", "small", "--context", "256")),
    "tiny-buckets": ("example", ("--quant", "int8", "--groups", "text", "--context", "2048", "--shard-mb", "1")),
    "tiny-channel": ("example", ("--quant", "int4-channel", "--audio-quant", "int4", "--search", "absmax")),
    "tiny-gemma4": ("gemma 4", ("--quant", "int4", "--context", "512")),
    "random-f32": ("random", ("--quant", "f32", "--context", "40", "--prefill", "4,16")),
    "random-int8": ("random", ("--quant", "int8", "--context", "100", "--prefill", "8")),
    "random-towers": ("multimodal", ("--quant", "int8", "--context", "160", "--prefill", "4,16,64")),
    "random-towers-f32": ("multimodal", ("--quant", "f32", "--context", "160")),
}
"""Name to checkpoint and the options of `convert`. Every bundle is exported too."""


def checkpoint(kind: str, directory: Path) -> Path:
    if kind in ("example", "gemma 4"):
        return EXAMPLE if kind == "example" else GEMMA_4_EXAMPLE
    if kind == "multimodal":
        return write_multimodal_checkpoint(directory)
    tensors = {
        name: tensor / np.float32(tensor.shape[-1] ** 0.5) if tensor.ndim == 2 else tensor
        for name, tensor in random_tensors(TINY, dtype="float32").items()
    }
    write_checkpoint(directory, TINY, tensors)
    write_tokenizer(directory)
    return directory


def hashes(name: str, scratch: Path) -> dict[str, str]:
    """File to sha256, the export's too."""
    kind, options = CASES[name]
    bundle, export = scratch / "bundle", scratch / "bundle.litertlm"
    source = checkpoint(kind, scratch / kind)
    assert cli.main(["convert", str(source), "-o", str(bundle), "--no-verify", "--quiet", *options]) == 0
    assert cli.main(["export", str(bundle), "-o", str(export), "--quiet"]) == 0
    files = [*sorted(bundle.iterdir()), export]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


LONG = ("tiny-channel", "tiny-buckets", "random-towers-f32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in CASES]
)
def test_a_conversion_gives_the_bytes_recorded(name: str, tmp_path: Path) -> None:
    assert hashes(name, tmp_path) == json.loads(RECORDED.read_text())[name]


def record() -> None:
    """Write the hashes of today."""
    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = hashes(name, Path(scratch))
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()
