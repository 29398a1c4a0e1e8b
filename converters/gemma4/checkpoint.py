"""Opens a Gemma 4 checkpoint."""

from __future__ import annotations

from converters.gemma.checkpoint import GemmaTensors, Parsed
from converters.gemma.tensors import TextTable, unused_kv_tensors
from converters.gemma4.config import CAUSAL_LM, TextConfig, parse_config
from converters.gemma4.tensors import text_tensors
from converters.huggingface.configs import CheckpointConfigs


class Gemma4Tensors(GemmaTensors[TextConfig]):
    """The tensors of a checkpoint of Gemma 4."""

    def __init__(self, configs: CheckpointConfigs) -> None:
        """Open and check the files; CheckpointError unless every file, key and tensor is what Gemma 4 needs."""
        architecture, config = parse_config(configs.config, configs.generation, str(configs.config_path))
        table = TextTable(text_tensors(config), unused_kv_tensors(config), {"altup": "Gemma 3n", "laurel": "Gemma 3n"})
        super().__init__(configs, Parsed("Gemma 4", architecture, architecture != CAUSAL_LM, config, table))
