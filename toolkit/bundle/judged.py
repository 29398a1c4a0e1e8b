"""Compares the graphs of a bundle's .tflite file with what the manifest and docs/formats/manifest.md say of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import GraphError
from toolkit.bundle.faults import Fault
from toolkit.bundle.signatures import SignatureShape, TensorShape, signature_faults
from toolkit.tflite.judge import Header, judge, read_header
from toolkit.tflite.judged_tensors import JudgedTensor


def graph_faults(path: Path, wanted: Mapping[str, SignatureShape], header: Header | None = None) -> list[Fault]:
    """The faults of a file: the first thing that no graph of ours has, or each wrong input or output.

    `wanted`: the signatures that it must have. `header`: the file's header, if it has been read already.
    """
    try:
        judged = judge(read_header(path) if header is None else header)
    except GraphError as error:
        return [Fault.of(error, path.name, "graph")]
    found = {
        name: SignatureShape(_shapes(signature.inputs), _shapes(signature.outputs))
        for name, signature in judged.items()
    }
    return signature_faults(path.name, found, wanted)


def _shapes(tensors: Mapping[str, JudgedTensor]) -> dict[str, TensorShape]:
    return {name: TensorShape(tensor.type, tensor.shape) for name, tensor in tensors.items()}
