"""Computes the one tensor of the vision graphs that the checkpoint has in another form."""

from __future__ import annotations

from converters.gemma3n.config.vision import VisionConfig
from converters.gemma3n.graphs.vision.adapter import END_OF_IMAGE
from converters.gemma3n.plan.token_row import F32, token_row
from toolkit.quant.source import TensorSource


class VisionSource:
    """A `TensorSource` with all tensors of a checkpoint, and the embedding of the token that ends an image."""

    def __init__(self, source: TensorSource, config: VisionConfig) -> None:
        self._source = source
        self._config = config

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`; `END_OF_IMAGE`: [1, 1, text hidden]."""
        return (1, 1, self._config.text_hidden_size) if name == END_OF_IMAGE else self._source.shape(name)

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        """See `TensorSource`."""
        if name != END_OF_IMAGE:
            return self._source.read(name, rows, columns)
        config = self._config
        row = token_row(self._source, "embed_vision", config.end_token_id - config.vocab_offset, config.rms_norm_eps)
        return row if columns is None else row[..., columns[0] : columns[1]]
