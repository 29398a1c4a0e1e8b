"""What the oracles of Gemma 3n and Gemma 4 have in common: they write random tiny checkpoints, and run transformers.

Needs torch and transformers; a test that calls into this module is skipped where they are missing. A tensor depends on
the checkpoint's seed, its name and its shape only.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

DType = Literal["f32", "bf16"]


@dataclass(frozen=True, slots=True, eq=False)
class OracleConfig:
    """One random tiny model, as overrides of an oracle's `TINY`, and a prompt for it."""

    name: str
    overrides: Mapping[str, object]
    ids: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        return self.name


def random_prompt(length: int, vocab_size: int, *, always: Sequence[int] = ()) -> tuple[int, ...]:
    """A bos token, then random ids; those of `always` are spread over the prompt."""
    ids = np.random.default_rng(length).integers(0, vocab_size, length)
    ids[0] = 2
    for place, token in zip(np.linspace(1, length - 1, len(always)).astype(int), always, strict=True):
        ids[place] = token
    return tuple(int(token) for token in ids)


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    draw: Callable[[str, tuple[int, ...], int], NDArray[np.float32]],
    seed: int,
    *,
    prefix: str,
    dtype: DType,
) -> dict[str, torch.Tensor]:
    """A tensor for each shape, by `draw` of its name, its shape and the seed; `prefix` precedes the stored names."""
    torch = import_torch()
    kind = torch.float32 if dtype == "f32" else torch.bfloat16
    return {prefix + name: torch.from_numpy(draw(name, shape, seed)).to(kind) for name, shape in shapes.items()}


def write_checkpoint(
    directory: Path,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    family: str,
    multimodal: bool,
    dtype: DType,
    shards: int = 1,
) -> Path:
    """Write config.json and safetensors, as the text model or as the multimodal one; return the directory.

    family: how its classes begin, such as "Gemma3n".
    """
    directory.mkdir(parents=True, exist_ok=True)
    kind = family.lower()
    text = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    text |= {"dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype], "tie_word_embeddings": True}
    if multimodal:
        written = {
            "architectures": [f"{family}ForConditionalGeneration"],
            "model_type": kind,
            "dtype": text["dtype"],
            "text_config": {**text, "model_type": f"{kind}_text"},
        }
    else:
        written = {**text, "architectures": [f"{family}ForCausalLM"], "model_type": f"{kind}_text"}
    (directory / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    write_safetensors(directory, tensors, shards)
    return directory


def write_safetensors(directory: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """model.safetensors, or with shards > 1 the parts and their index; tensors are dealt in turn."""
    from safetensors.torch import save_file

    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
        return
    files = [f"model-{part + 1:05}-of-{shards:05}.safetensors" for part in range(shards)]
    weight_map = {name: files[place % shards] for place, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def text_keys(directory: Path) -> dict[str, Any]:
    """The text model's keys of a checkpoint's config.json."""
    written: dict[str, Any] = json.loads((directory / "config.json").read_text())
    keys: dict[str, Any] = written.get("text_config", written)
    return keys


def load_weights(model: PreTrainedModel, directory: Path, prefixes: Sequence[str]) -> None:
    """Fill a text model with a checkpoint's tensors in float32; `prefixes` precede its tensors' names, longest first.

    The model was built from its config: from_pretrained would leave non-persistent buffers to luck, because
    transformers 5 builds on the meta device.
    """
    model.train(False)
    wanted = set(model.state_dict()) - {"lm_head.weight"}
    state = {name: tensor for name, tensor in _stored(directory, prefixes) if name in wanted}
    assert set(state) == wanted, f"missing tensors: {sorted(wanted - set(state))}"
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)


def _stored(directory: Path, prefixes: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    torch = import_torch()
    from safetensors.torch import load_file

    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
            yield "model." + name.removeprefix(prefix), tensor.to(torch.float32)


def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits after each token of one sequence, f32[T, V], without a cache."""
    torch = import_torch()
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    return logits


def greedy_tokens(model: PreTrainedModel, ids: Sequence[int], n: int) -> list[int]:
    """The n tokens that follow by argmax, each from a full forward without a cache; stop tokens do not stop it."""
    torch = import_torch()
    tokens = torch.tensor([list(ids)])
    with torch.inference_mode():
        for _ in range(n):
            logits = model(tokens, use_cache=False, logits_to_keep=1).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    found: list[int] = tokens[0, len(ids) :].tolist()
    return found


@functools.cache
def scratch_folder() -> Path:
    """A folder for checkpoints that all tests of this process share; removed at its end."""
    directory = Path(tempfile.mkdtemp(prefix="gemma_edge_oracle_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def import_torch() -> ModuleType:
    """torch on one thread: with tensors this small, a second one would only wait."""
    torch: ModuleType = pytest.importorskip("torch", reason="the oracle needs torch and transformers")
    pytest.importorskip("transformers", reason="the oracle needs torch and transformers")
    torch.set_num_threads(1)
    return torch
