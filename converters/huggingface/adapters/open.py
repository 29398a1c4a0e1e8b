"""Opens an adapter's directory: recognises its form, reads both files and hashes them."""

from __future__ import annotations

from pathlib import Path

from converters.huggingface.adapters.adapter import Adapter, AdapterSource, hash_adapter
from converters.huggingface.adapters.choice import AdapterChoice
from converters.huggingface.adapters.mlx import WEIGHTS as MLX_WEIGHTS
from converters.huggingface.adapters.mlx import read_mlx
from converters.huggingface.adapters.peft import WEIGHTS as PEFT_WEIGHTS
from converters.huggingface.adapters.peft import read_peft
from converters.huggingface.hub.locate import locate_adapter
from converters.huggingface.safetensors import SafetensorsFile
from toolkit.base.errors import CheckpointError
from toolkit.base.files import Progress
from toolkit.base.strict_json import JsonObject, read_json_file

CONFIG = "adapter_config.json"


def open_adapter(choice: AdapterChoice, progress: Progress | None = None) -> Adapter:
    """Open an adapter; CheckpointError if it is of no known form, EnvironmentFault if it cannot be downloaded."""
    path, name = locate_adapter(choice.source, progress)
    config, weights = path / CONFIG, _weights(path)
    stated = JsonObject(_set_options(read_json_file(config, CheckpointError)), str(config), CheckpointError)
    file = SafetensorsFile(weights)
    try:
        if not file.tensors:
            raise CheckpointError(file=weights, found="no tensors", wanted="those of an adapter")
        read = read_mlx if weights.name == MLX_WEIGHTS else read_peft
        updates = read(AdapterSource(path, stated, file, choice.scale))
        return Adapter(name, path, choice.scale, hash_adapter(config, weights), updates, file)
    except BaseException:
        file.close()
        raise


def _set_options(config: object) -> object:
    """The config without options that are off: each release adds options, which matter only if they are used."""
    if not isinstance(config, dict):
        return config
    return {
        key: value
        for key, value in config.items()
        if not any(value is off for off in (None, False)) and value not in ([], {})
    }


def _weights(path: Path) -> Path:
    """The file of weights beside the adapter's config."""
    if not (path / CONFIG).is_file():
        inner = sorted(item.name for item in path.iterdir() if (item / CONFIG).is_file())
        remedy = f"name the adapter in it: {', '.join(inner[-3:])}" if inner else None
        raise CheckpointError(file=path, found=f"no {CONFIG}", wanted="an adapter of PEFT or mlx-lm", remedy=remedy)
    found = [path / name for name in (PEFT_WEIGHTS, MLX_WEIGHTS) if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    remedy = None
    if (path / "adapter_model.bin").is_file():
        remedy = "reading adapter_model.bin may run any program: load it with PEFT and save it as safetensors"
    elif (path / "adapters.npz").is_file():
        remedy = "adapters.npz is from an early mlx-lm: train or save it with a later version"
    stated = " and ".join(item.name for item in found) or "no weights"
    raise CheckpointError(file=path, found=stated, wanted=f"{PEFT_WEIGHTS} or {MLX_WEIGHTS}", remedy=remedy)
