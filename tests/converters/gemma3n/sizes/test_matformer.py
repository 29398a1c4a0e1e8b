from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from checkpoints import TINY, as_float32, random_tensors, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.gemma3n.config.text import TextConfig, parse_config, to_hugging_face
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.gemma3n.sizes.matformer import (
    SlicedCheckpoint,
    effective_parameters,
    is_whole,
    parameters_by_group,
    slice_config,
    whole_slice,
)
from converters.slices import Slice
from toolkit.base.errors import CheckpointError, SliceError, UsageError

CONFIG = parse_config(TINY, None, "config.json")[1]
SMALL = Slice("small", (0, 2, 3, 4, 6), (24, 48, 1, 32, 16))


def slice_by_hand(part: Slice) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
    """Config and tensors as MatFormer Lab makes them, layer_types cut as well; written without the code under test."""
    kept, ple = list(part.layers), 8
    tensors = random_tensors(TINY, unused_kv=True)
    sliced: dict[str, NDArray[np.generic]] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("model.")
        if short == "embed_tokens_per_layer.weight":
            tensor = tensor.reshape(-1, 7, ple)[:, kept].reshape(len(tensor), -1)
        elif short == "per_layer_model_projection.weight":
            tensor = tensor.reshape(7, ple, -1)[kept].reshape(len(kept) * ple, -1)
        elif short.startswith("layers."):
            _, layer, rest = short.split(".", 2)
            if int(layer) not in kept:
                continue
            new = kept.index(int(layer))
            width = part.ffn_sizes[new]
            if rest in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
                tensor = tensor[:width]
            elif rest == "mlp.down_proj.weight":
                tensor = tensor[:, :width]
            name = f"model.layers.{new}.{rest}"
        sliced[name] = np.ascontiguousarray(tensor)
    config = {
        **TINY,
        "num_hidden_layers": len(kept),
        "intermediate_size": list(part.ffn_sizes),
        "num_kv_shared_layers": sum(layer >= 5 for layer in kept),
    }
    for key in ("layer_types", "activation_sparsity_pattern"):
        values = TINY[key]
        assert isinstance(values, list)
        config[key] = [values[layer] for layer in kept]
    return config, sliced


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemma3nCheckpoint]:
    directory = tmp_path_factory.mktemp("whole")
    with open_gemma3n(write_checkpoint(directory, TINY, random_tensors(TINY, unused_kv=True))) as opened:
        yield opened


@st.composite
def slices(draw: st.DrawFn) -> Slice:
    """Any slice of the tiny model that keeps what others read: 3 for layer 5, 4 for layer 6."""
    kept = draw(st.sets(st.integers(0, 6), min_size=1))
    kept |= {donor for layer, donor in ((5, 3), (6, 4)) if layer in kept}
    return Slice("drawn", tuple(sorted(kept)), tuple(draw(st.integers(1, 48)) for _ in kept))


@settings(max_examples=40)
@given(part=slices())
def test_a_slice_equals_a_checkpoint_that_was_sliced_first(
    checkpoint: Gemma3nCheckpoint, tmp_path_factory: pytest.TempPathFactory, part: Slice
) -> None:
    config, tensors = slice_by_hand(part)
    with open_gemma3n(write_checkpoint(tmp_path_factory.getbasetemp() / "sliced", config, tensors)) as first:
        sliced = SlicedCheckpoint(checkpoint, part)
        assert sliced.config == first.config
        assert parse_config(to_hugging_face(sliced.config), None, "config.json")[1] == first.config
        for name in first.tensors:
            assert sliced.shape(name) == first.shape(name)
            found = sliced.read(name)
            assert found.dtype == np.float32
            assert np.array_equal(found, first.read(name)), name


@given(part=slices(), data=st.data())
def test_parts_of_a_slice_equal_parts_of_it_whole(
    checkpoint: Gemma3nCheckpoint, part: Slice, data: st.DataObject
) -> None:
    sliced = SlicedCheckpoint(checkpoint, part)
    last = len(part.layers) - 1
    names = ["embed_tokens_per_layer.weight", "per_layer_model_projection.weight", "norm.weight", "embed_tokens.weight"]
    names += [f"layers.{last}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    name = data.draw(st.sampled_from(names))
    whole = sliced.read(name)
    cuts = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in whole.shape]
    rows = data.draw(st.sampled_from([None, (cuts[0][0], cuts[0][1])]))
    columns = data.draw(st.sampled_from([None, (cuts[-1][0], cuts[-1][1])])) if whole.ndim > 1 else None
    wanted = whole[slice(*rows) if rows else slice(None)]
    wanted = wanted[:, slice(*columns)] if columns else wanted
    assert np.array_equal(sliced.read(name, rows, columns), wanted)


@pytest.mark.parametrize("name", ["embed_tokens_per_layer.weight", "layers.0.mlp.down_proj.weight"])
def test_a_range_outside_the_slice_is_refused(checkpoint: Gemma3nCheckpoint, name: str) -> None:
    sliced = SlicedCheckpoint(checkpoint, SMALL)
    width = sliced.shape(name)[1]
    for columns in ((0, width + 1), (-1, 1), (2, 1)):
        with pytest.raises(UsageError, match=rf"{name}.*wanted one within 0..{width}"):
            sliced.read(name, None, columns)


def test_a_layer_that_was_skipped_has_no_tensors(checkpoint: Gemma3nCheckpoint) -> None:
    sliced = SlicedCheckpoint(checkpoint, SMALL)
    assert sliced.shape("layers.4.mlp.gate_proj.weight") == (16, 32)
    for name in ("layers.5.mlp.gate_proj.weight", "layers.05.mlp.gate_proj.weight", "layers.x.norm.weight", "nothing"):
        for access in (sliced.shape, sliced.read):
            with pytest.raises(CheckpointError, match=r"no tensor"):
                access(name)


@dataclass
class Recorder:
    """A TextModel that remembers what was read of it."""

    config: TextConfig
    shapes: Mapping[str, tuple[int, ...]]
    reads: list[tuple[str, tuple[int, int] | None, tuple[int, int] | None]] = field(default_factory=list)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        self.reads.append((name, rows, columns))
        low, high = rows or (0, self.shapes[name][0])
        left, right = columns or (0, self.shapes[name][-1])
        return np.zeros((high - low, right - left), np.float32)


def test_nothing_is_read_that_the_slice_lacks(checkpoint: Gemma3nCheckpoint) -> None:
    recorder = Recorder(CONFIG, {name: info.shape for name, info in checkpoint.tensors.items()})
    sliced = SlicedCheckpoint(recorder, SMALL)
    sliced.read("layers.1.mlp.gate_proj.weight")
    sliced.read("layers.3.mlp.up_proj.weight", (5, 20))
    sliced.read("layers.3.mlp.down_proj.weight", (1, 2))
    sliced.read("embed_tokens_per_layer.weight", (7, 9))
    sliced.read("embed_tokens_per_layer.weight", (7, 9), (4, 12))
    sliced.read("embed_tokens.weight", (0, 10))
    assert recorder.reads == [
        ("layers.2.mlp.gate_proj.weight", (0, 48), None),
        ("layers.4.mlp.up_proj.weight", (5, 20), None),
        ("layers.4.mlp.down_proj.weight", (1, 2), (0, 32)),
        # Of layers 0, 2 to 4 and 6 most of the row is wanted: it is read in one piece.
        ("embed_tokens_per_layer.weight", (7, 9), (0, 56)),
        ("embed_tokens_per_layer.weight", (7, 9), (4, 20)),
        ("embed_tokens.weight", (0, 10), None),
    ]
    recorder.reads.clear()
    ends = SlicedCheckpoint(recorder, Slice("ends", (0, 1, 4, 6), (48,) * 4))
    ends.read("embed_tokens_per_layer.weight", (7, 9), (14, 26))
    ends.read("per_layer_model_projection.weight", (15, 32))
    assert recorder.reads == [
        ("embed_tokens_per_layer.weight", (7, 9), (14, 16)),
        ("embed_tokens_per_layer.weight", (7, 9), (32, 40)),
        ("embed_tokens_per_layer.weight", (7, 9), (48, 50)),
        ("per_layer_model_projection.weight", (15, 16), None),
        ("per_layer_model_projection.weight", (32, 40), None),
        ("per_layer_model_projection.weight", (48, 56), None),
    ]


def test_the_whole_is_a_slice_too(checkpoint: Gemma3nCheckpoint) -> None:
    part = whole_slice(CONFIG, "all")
    assert is_whole(part, CONFIG) and not is_whole(SMALL, CONFIG)
    sliced = SlicedCheckpoint(checkpoint, part)
    assert sliced.config == checkpoint.config
    for name, info in checkpoint.tensors.items():
        assert np.array_equal(sliced.read(name), as_float32(random_tensors(TINY, unused_kv=True)[info.name]))


@pytest.mark.parametrize(
    ("layers", "widths", "found"),
    [
        ((), (), ": no layers"),
        ((0, 1), (48,), "found 1 FFN sizes, wanted one for each of 2 layers"),
        ((0, 7), (48, 48), "found layer 7 after 0, wanted increasing indices below 7"),
        ((1, 0), (48, 48), "found layer 0 after 1"),
        ((0, 0), (48, 48), "found layer 0 after 0"),
        ((-1, 0), (48, 48), "found layer -1 after -1"),
        ((0, 1), (48, 49), "FFN of layer 1: found 49, wanted an integer from 1 to 48"),
        ((0, 1), (0, 48), "FFN of layer 0: found 0"),
        ((0, 1, 2, 4, 5, 6), (48,) * 6, "layer 3 is skipped, whose keys and values layer 5 reads"),
        ((0, 1, 2, 3, 6), (48,) * 5, "layer 4 is skipped, whose keys and values layer 6 reads"),
    ],
)
def test_a_slice_that_the_checkpoint_cannot_give_is_refused(
    layers: tuple[int, ...], widths: tuple[int, ...], found: str
) -> None:
    with pytest.raises(SliceError) as caught:
        slice_config(CONFIG, Slice("bad", layers, widths))
    assert "slice bad" in str(caught.value) and found in str(caught.value)


def test_a_donor_may_go_with_all_who_read_it() -> None:
    config = slice_config(CONFIG, Slice("a", (0, 1, 2, 4, 6), (48,) * 5))
    assert [layer.kv_source for layer in config.layers] == [None, None, None, None, 3]


def test_effective_parameters_leave_out_the_two_tables(checkpoint: Gemma3nCheckpoint) -> None:
    text = next(group for group in checkpoint.groups if group.name == "text")
    assert effective_parameters(CONFIG) == text.parameters
    tables = [checkpoint.shape(name) for name in ("embed_tokens.weight", "embed_tokens_per_layer.weight")]
    assert list(parameters_by_group(CONFIG).values()) == [text.parameters, *map(math.prod, tables)]


@pytest.mark.reference
@settings(max_examples=30)
@given(part=slices())
def test_transformers_shares_keys_and_values_as_the_slice_does(part: Slice) -> None:
    transformers = pytest.importorskip("transformers")
    config = slice_config(CONFIG, part)
    shared = sum(layer.kv_source is not None for layer in config.layers)
    modes = transformers.Gemma3nTextConfig(**to_hugging_face(config)).kv_sharing_modes
    assert [mode == "reuse" for mode in modes] == [layer.kv_source is not None for layer in config.layers]
    if shared:
        stores = {config.layers[i].attention: i for i, mode in enumerate(modes) if mode == "store"}
        for layer in config.layers:
            assert layer.kv_source in (None, stores[layer.attention])
