"""Opens a Gemma 3n checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from converters.gemma.checkpoint import GemmaTensors, Parsed
from converters.gemma.tensors import TextTable, unused_kv_tensors
from converters.gemma3n.config.text import CAUSAL_LM, TextConfig, parse_config
from converters.gemma3n.sizes.choose import named_slices
from converters.gemma3n.sizes.matformer import is_whole
from converters.gemma3n.tensors import text_tensors
from converters.huggingface.configs import CheckpointConfigs
from converters.slices import Slice


class Gemma3nTensors(GemmaTensors[TextConfig]):
    """The tensors and the named slices of a Gemma 3n checkpoint."""

    def __init__(self, configs: CheckpointConfigs) -> None:
        """Open and check the files; CheckpointError unless every file, key and tensor is what Gemma 3n needs."""
        architecture, config = parse_config(configs.config, configs.generation, str(configs.config_path))
        table = TextTable(text_tensors(config), unused_kv_tensors(config), {"layer_scalar": "Gemma 4"})
        super().__init__(configs, Parsed("Gemma 3n", architecture, architecture != CAUSAL_LM, config, table))
        try:
            self._slices = named_slices(config, configs.path)
        except BaseException:
            self.close()
            raise

    @property
    def slices(self) -> Mapping[str, Slice]:
        """The named slices; one of them, `default_slice`, is the whole checkpoint."""
        return self._slices

    @property
    def default_slice(self) -> Slice:
        """The slice that is the whole checkpoint."""
        return next(item for item in self._slices.values() if is_whole(item, self.config))
