"""The NumPy reference against transformers in float32, and what it promises about reading."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import (
    CONFIGS,
    checkpoint_of,
    faint_checkpoint,
    hf_greedy,
    hf_logits,
    make_checkpoint,
)
from oracle_models import OracleConfig, write_safetensors

from converters.gemma.reference import HEAD_ROWS, logits
from converters.gemma3n.config.text import TextConfig, TextModel
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.reference import forward, hidden_states
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from converters.slices import Slice
from toolkit.base.errors import UsageError

pytestmark = pytest.mark.reference

IDS = CONFIGS[0].ids


class CountingModel:
    """A TextModel that notes what is read from another."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self.reads: Counter[str] = Counter()
        self.rows: dict[str, set[int]] = {}
        self.largest = 0

    @property
    def config(self) -> TextConfig:
        return self.model.config

    def shape(self, name: str) -> tuple[int, ...]:
        return self.model.shape(name)

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        data = self.model.read(name, rows, columns)
        self.reads[name] += 1
        self.rows.setdefault(name, set()).update(range(*(rows or (0, self.shape(name)[0]))))
        self.largest = max(self.largest, data.size)
        return data


def reference(directory: Path, ids: tuple[int, ...] | list[int]) -> NDArray[np.float32]:
    with open_gemma3n(directory) as checkpoint:
        return forward(checkpoint, [np.array(ids, np.int32)])[0]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_and_greedy_tokens_agree_with_transformers(config: OracleConfig) -> None:
    directory = checkpoint_of(config)
    greedy = hf_greedy(directory, config.ids, 64)
    ids = [*config.ids, *greedy]
    found = reference(directory, ids)
    # Bound of the project: 1e-3. Seen: 4.5e-5 for the longest prompt, 2e-5 elsewhere.
    assert np.abs(found - hf_logits(directory, ids)).max() < 2e-4
    # As every prefix agrees, so do the tokens that the reference would choose one after the other.
    assert found[len(config.ids) - 1 : -1].argmax(-1).tolist() == greedy


def test_what_keeps_norms_from_dividing_by_nothing_is_as_in_transformers(tmp_path: Path) -> None:
    directory = faint_checkpoint(tmp_path)
    assert np.abs(reference(directory, IDS) - hf_logits(directory, IDS)).max() < 2e-4


@pytest.mark.parametrize("naming", ["conditional", "conditional_old"])
def test_a_bfloat16_multimodal_checkpoint_agrees_with_transformers(tmp_path: Path, naming: str) -> None:
    make_checkpoint(tmp_path, seed=5, naming=naming, dtype="bf16", shards=2, unused_kv=True)  # type: ignore[arg-type]
    assert np.abs(reference(tmp_path, IDS) - hf_logits(tmp_path, IDS)).max() < 2e-4


@pytest.mark.parametrize(
    "part",
    [
        Slice("narrow", (0, 1, 2, 3, 4, 5, 6), (80, 64, 40, 24, 48, 64, 8)),
        Slice("without_shared_sliding", (0, 1, 2, 3, 4, 6), (96,) * 6),
        Slice("short", (0, 3, 4, 5), (50, 96, 32, 17)),
    ],
    ids=lambda part: part.name,
)
def test_a_slice_equals_transformers_on_a_checkpoint_sliced_first(tmp_path: Path, part: Slice) -> None:
    source = checkpoint_of(CONFIGS[0])
    sliced = slice_on_disk(source, tmp_path, part)
    with open_gemma3n(source) as checkpoint:
        found = forward(SlicedCheckpoint(checkpoint, part), [np.array(IDS, np.int32)])[0]
    np.testing.assert_array_equal(found, reference(sliced, IDS))
    assert np.abs(found - hf_logits(sliced, IDS)).max() < 2e-4


def slice_on_disk(source: Path, target: Path, part: Slice) -> Path:
    """MatFormer Lab's recipe with torch alone: what the converter's slices are compared with."""
    torch, load_file = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").load_file
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    width = config["hidden_size_per_layer_input"]
    columns = torch.cat([torch.arange(width) + layer * width for layer in part.layers])
    result = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    for name, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0)):
        result[f"model.{name}.weight"] = tensors[f"model.{name}.weight"].index_select(axis, columns).contiguous()
    for new, (old, ffn) in enumerate(zip(part.layers, part.ffn_sizes, strict=True)):
        prefix = f"model.layers.{old}."
        for name in [name for name in tensors if name.startswith(prefix)]:
            tensor = tensors[name]
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                tensor = tensor[:ffn].contiguous()
            if name.endswith("down_proj.weight"):
                tensor = tensor[:, :ffn].contiguous()
            result[f"model.layers.{new}.{name[len(prefix) :]}"] = tensor
    owners = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    config |= {
        "num_hidden_layers": len(part.layers),
        "intermediate_size": list(part.ffn_sizes),
        "num_kv_shared_layers": sum(layer >= owners for layer in part.layers),
        "layer_types": [config["layer_types"][layer] for layer in part.layers],
        "activation_sparsity_pattern": [config["activation_sparsity_pattern"][layer] for layer in part.layers],
    }
    (target / "config.json").write_text(json.dumps(config))
    write_safetensors(target, result)
    return target


def test_sequences_do_not_see_each_other() -> None:
    together = [np.array(IDS[:length], np.int32) for length in (9, 1, 21)]
    with open_gemma3n(checkpoint_of(CONFIGS[0])) as checkpoint:
        found = forward(checkpoint, together)
    assert [len(part) for part in found] == [9, 1, 21]
    for part, ids in zip(found, together, strict=True):
        np.testing.assert_allclose(part, hf_logits(checkpoint_of(CONFIGS[0]), ids.tolist()), atol=2e-4)


def test_any_rows_of_the_hidden_states_give_their_logits() -> None:
    with open_gemma3n(checkpoint_of(CONFIGS[0])) as checkpoint:
        hidden = hidden_states(checkpoint, [np.array(IDS, np.int32)])[0]
        some = logits(checkpoint, hidden[[3, 20]])
    np.testing.assert_allclose(some, hf_logits(checkpoint_of(CONFIGS[0]), IDS)[[3, 20]], atol=2e-4)


def test_matrices_are_read_once_and_tables_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.gemma.reference.HEAD_ROWS", 100)
    with open_gemma3n(checkpoint_of(CONFIGS[0])) as checkpoint:
        model = CountingModel(checkpoint)
        hidden = hidden_states(model, [np.array([2, 5, 6, 7, 299], np.int32), np.array([6, 40], np.int32)])
        assert model.rows["embed_tokens.weight"] == {2, 5, 6, 7, 40, 299}
        assert model.rows["embed_tokens_per_layer.weight"] == {0, 2, 5, 6, 7, 40}
        of_layers = {name: count for name, count in model.reads.items() if name.startswith("layers.")}
        twice = {name for name, count in of_layers.items() if count > 1}
        assert {name.split(".", 2)[2] for name in twice} == {"altup.router_norm.weight", "altup.modality_router.weight"}
        assert model.largest == math.prod(checkpoint.shape("layers.0.mlp.gate_proj.weight"))
        model.reads.clear()
        logits(model, hidden[0])
        assert model.reads == {"embed_tokens.weight": 3}
    assert HEAD_ROWS >= 1024


def test_the_unused_keys_and_values_of_sharing_layers_are_not_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=5, unused_kv=True)
    with open_gemma3n(tmp_path) as checkpoint:
        model = CountingModel(checkpoint)
        hidden_states(model, [np.array(IDS, np.int32)])
    assert "layers.4.self_attn.k_proj.weight" in model.reads
    assert not {name for name in model.reads if name.startswith(("layers.5.self_attn.k", "layers.6.self_attn.v"))}


def test_progress_counts_layers() -> None:
    seen: list[tuple[int, int]] = []
    with open_gemma3n(checkpoint_of(CONFIGS[0])) as checkpoint:
        hidden_states(checkpoint, [np.array([2], np.int32)], progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 7) for done in range(1, 8)]


BAD_SEQUENCES: Mapping[str, tuple[list[list[int]], str]] = {
    "no sequence": ([], "no tokens"),
    "an empty sequence": ([[2, 3], []], "no tokens"),
    "an id behind the vocabulary": ([[2, 300]], "found 300, wanted 0 to 299"),
    "a negative id": ([[2], [3, -1]], "found -1, wanted 0 to 299"),
}


@pytest.mark.parametrize("name", BAD_SEQUENCES)
def test_bad_sequences_are_refused(name: str) -> None:
    sequences, message = BAD_SEQUENCES[name]
    with open_gemma3n(checkpoint_of(CONFIGS[0])) as checkpoint, pytest.raises(UsageError, match=message):
        forward(checkpoint, [np.array(ids, np.int32) for ids in sequences])
