"""The content of a .tflite file as records: the tables of `tflite/schema.fbs`, most enums by name instead of number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from toolkit.tflite.graph import OptionValue


@dataclass(frozen=True, slots=True)
class Quantization:
    """How integer codes stand for numbers: code times scale.

    Either `scales` holds one scale for each index of `axis`, or a single one; or each `block_size` columns of a row
    share a scale, and tensor `block_scales_tensor` holds the scales, float16[rows, columns / block_size].
    """

    scales: NDArray[np.float32] | None = None
    axis: int = 0
    block_size: int | None = None
    block_scales_tensor: int | None = None


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A value of a subgraph; `type` is a name of `TensorType`, `buffer` an index of the model's (0: no bytes)."""

    name: str
    shape: tuple[int, ...]
    type: str
    buffer: int
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    """A builtin operator; inputs and outputs are indices into its subgraph's tensors.

    `options`: the name of its options' table. `fields`: the fields in it by name: numbers (also for enums), texts,
    bytes, and lists as tuples. A number that is left out has the schema's default; a list or text is absent.
    """

    builtin: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str | None = None
    fields: tuple[tuple[str, OptionValue], ...] = ()

    def called(self) -> tuple[int, ...]:
        """The indices of the subgraphs that the operator runs, from its options.

        >>> OperatorRecord("IF", 1, (), (), "IfOptions", (("thenSubgraphIndex", 1), ("elseSubgraphIndex", 2))).called()
        (1, 2)
        """
        values = (value for name, value in self.fields if _names_subgraphs(name))
        return tuple(int(index) for value in values for index in (value if isinstance(value, tuple) else (value,)))

    def calling(self, renumbered: Mapping[int, int]) -> OperatorRecord:
        """The operator with new indices for the subgraphs that it runs; `renumbered` maps old indices to new ones."""
        fields = []
        for name, value in self.fields:
            if _names_subgraphs(name):
                value = tuple(renumbered[int(i)] for i in value) if isinstance(value, tuple) else renumbered[int(value)]
            fields.append((name, value))
        return replace(self, fields=tuple(fields))


@dataclass(frozen=True, slots=True)
class SubgraphRecord:
    """A graph; `inputs` and `outputs` map the names in its signature to indices of tensors.

    A graph without a signature uses the names of the tensors.
    """

    name: str
    tensors: tuple[TensorRecord, ...]
    operators: tuple[OperatorRecord, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BufferRecord:
    """Bytes inside the flatbuffer (`data`), or a range of the file after it: its offset in the file, and its size."""

    data: bytes | None = None
    offset_bytes: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Signature i calls subgraph i; the subgraphs after these are called by operators. Buffer 0 is the empty buffer.

    `besides`: what the file says that no record holds, because nothing that runs it depends on it.
    """

    subgraphs: tuple[SubgraphRecord, ...]
    buffers: tuple[BufferRecord, ...]
    signatures: tuple[str, ...] = ()
    besides: tuple[str, ...] = ()


def _names_subgraphs(field_name: str) -> bool:
    """Whether an option holds indices of subgraphs: the schema has no type for them, so the name tells."""
    return "subgraph" in field_name.lower() or field_name == "calledComputations"
