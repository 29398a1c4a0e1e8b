"""Opens the tensors of a checkpoint, whether they are floats or codes."""

from __future__ import annotations

from converters.huggingface.configs import CheckpointConfigs
from converters.huggingface.gemma_quant.config import QUANT_METHOD, parse_gemma_quant, quant_method
from converters.huggingface.gemma_quant.tensors import GemmaQuantTensors
from converters.huggingface.stored_tensors import StoredTensors


def open_tensors(configs: CheckpointConfigs) -> StoredTensors:
    """The tensors in `configs.path`, or in its remote files; CheckpointError for invalid files.

    Of the methods of quantisation that a config may state, one is supported. With another method, tensors are read as
    floats, because some configs still state a method after the weights were converted to floats.
    """
    if quant_method(configs.config) != QUANT_METHOD:
        return StoredTensors(configs.path, configs.remote_files)
    config = parse_gemma_quant(configs.config, str(configs.config_path))
    return GemmaQuantTensors(configs.path, configs.remote_files, config)
