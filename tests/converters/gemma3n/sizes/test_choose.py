from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from checkpoints import TINY, F, S, random_tensors, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from converters.gemma3n.config.text import TextConfig, parse_config
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.sizes.choose import (
    choose_slice,
    find_slice,
    memory_bytes,
    named_slices,
    official_sizes,
    parse_integers,
    read_slice,
)
from converters.gemma3n.sizes.matformer import effective_parameters, is_whole, slice_config, whole_slice
from converters.slices import Budget, Slice, parse_budget
from toolkit.base.errors import SliceError, UsageError

E4B_KEYS: dict[str, object] = {
    **TINY,
    "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144,
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "num_hidden_layers": 35,
    "intermediate_size": 16384,
    "layer_types": [S, S, S, S, F] * 7,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
    "num_kv_shared_layers": 15,
    "num_attention_heads": 8,
    "head_dim": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
    "laurel_rank": 64,
}
E2B_KEYS = {
    **E4B_KEYS,
    "num_hidden_layers": 30,
    "intermediate_size": 8192,
    "layer_types": [S, S, S, S, F] * 6,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
    "num_kv_shared_layers": 10,
}
E4B = parse_config(E4B_KEYS, None, "config.json")[1]
E2B = parse_config(E2B_KEYS, None, "config.json")[1]
TINY_CONFIG = parse_config(TINY, None, "config.json")[1]

# MatFormer Lab's table in run lengths, 4 for 8,192 and 8 for 16,384; counts are 6144 sum(F) + 12345936 L + 25168128.
TABLE = {
    "E4B": (35, 3_980_491_248, 62.3, "8*35"),
    "E2B": (30, 1_905_495_648, 50.9, "4*30"),
    "E1.96B": (30, 1_955_827_296, 53.4, "4*4 8*1 4*25"),
    "E2.54B": (35, 2_520_873_456, 55.4, "4*4 8*1 4*15 8*5 4*10"),
    "E2.69B": (35, 2_671_868_400, 57.7, "4*4 8*1 4*4 8*1 4*4 8*1 4*4 8*6 4*10"),
    "E2.98B-layer": (35, 2_973_858_288, 59.5, "4*15 8*10 4*5 8*5"),
    "E3.18B": (35, 3_175_184_880, 61.8, "4*4 8*1 4*4 8*16 4*4 8*1 4*4 8*1"),
    "E3.39B": (35, 3_376_511_472, 63.0, "4*4 8*1 4*4 8*21 4*4 8*1"),
    "E3.59B": (35, 3_577_838_064, 63.4, "4*4 8*26 4*4 8*1"),
    "E3.79B-layer": (35, 3_779_164_656, 63.4, "4*4 8*31"),
    "E2.49B": (35, 2_470_541_808, 54.5, "4*20 8*5 4*10"),
    "E2.73B": (35, 2_722_200_048, 57.1, "4*15 8*10 4*10"),
    "E2.98B-block": (35, 2_973_858_288, 59.5, "4*10 8*15 4*10"),
    "E3.24B": (35, 3_225_516_528, 60.7, "4*10 8*20 4*5"),
    "E3.49B": (35, 3_477_174_768, 61.4, "4*5 8*25 4*5"),
    "E3.79B-block": (35, 3_728_833_008, 62.0, "4*5 8*30"),
}


@dataclass(frozen=True)
class Model:
    """What a size is chosen from."""

    config: TextConfig
    slices: Mapping[str, Slice]


def cost_in(bits: float) -> Callable[[Slice], int]:
    """What a token would read of a slice of E4B if every weight had so many bits."""
    return lambda slice_: memory_bytes(slice_config(E4B, slice_), bits)


def widths(runs: str) -> tuple[int, ...]:
    pairs = [run.split("*") for run in runs.split()]
    return tuple(2048 * int(factor) for factor, count in pairs for _ in range(int(count)))


# --- official sizes --------------------------------------------------------------------------------------------------


def test_all_sixteen_official_sizes_are_there() -> None:
    assert [size.slice.name for size in official_sizes()] == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_an_official_size_is_the_one_in_the_table(name: str) -> None:
    layers, parameters, mmlu, runs = TABLE[name]
    size = next(size for size in official_sizes() if size.slice.name == name)
    assert size.slice.ffn_sizes == widths(runs)
    assert size.slice.layers == (tuple(range(35)) if layers == 35 else (*range(20), *range(25, 35)))
    assert size.mmlu == mmlu
    config = slice_config(E4B, size.slice)
    assert config.num_layers == layers
    assert effective_parameters(config) == parameters
    assert parameters == 6144 * sum(widths(runs)) + 12_345_936 * layers + 25_168_128


def test_the_official_e2b_slice_has_the_released_e2bs_config() -> None:
    assert slice_config(E4B, find_slice(named_slices(E4B, Path("/nowhere")), "E2B")) == E2B


@pytest.mark.parametrize("skipped", [(), (3,), (0, 9, 10, 24), (20, 34), (16, 17, 20, 21, 22, 23, 24)])
def test_skipping_layers_shortens_sparsity_and_sharing_as_matformer_lab_does(skipped: tuple[int, ...]) -> None:
    kept = tuple(layer for layer in range(35) if layer not in skipped)
    config = slice_config(E4B, Slice("x", kept, (8192,) * len(kept)))
    sparse = 10 - sum(layer <= 9 for layer in skipped)
    assert [layer.sparsity for layer in config.layers] == [0.95] * sparse + [0.0] * (len(kept) - sparse)
    assert len(kept) - len(config.kv_layers) == 15 - sum(layer >= 20 for layer in skipped)
    assert [layer.attention for layer in config.layers] == [E4B.layers[layer].attention for layer in kept]


@pytest.mark.parametrize("donor", [18, 19])
def test_the_donors_of_keys_and_values_cannot_be_skipped(donor: int) -> None:
    kept = tuple(layer for layer in range(35) if layer != donor)
    with pytest.raises(SliceError, match=f"layer {donor} is skipped"):
        slice_config(E4B, Slice("x", kept, (16384,) * 34))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("E2B", "E2B"),
        ("e2b", "E2B"),
        ("E4B", "E4B"),
        ("main model", "E4B"),
        ("Config for official E2B Model", "E2B"),
        ("e1.96b", "E1.96B"),
        ("E2.54B", "E2.54B"),
        ("E2.54B layer", "E2.54B"),
        ("Config for E2.54B (layer-level)", "E2.54B"),
        ("E2.49B-block", "E2.49B"),
        ("E2.98B layer", "E2.98B-layer"),
        ("e2.98b-BLOCK", "E2.98B-block"),
        ("Config for E3.79B (block-level)", "E3.79B-block"),
        (" E3.79B_layer ", "E3.79B-layer"),
    ],
)
def test_an_official_size_answers_to_its_names(asked: str, name: str) -> None:
    assert find_slice(named_slices(E4B, Path("/nowhere")), asked).name == name


@pytest.mark.parametrize("asked", ["E2.98B", "e2.98b", "E3.79B"])
def test_a_name_that_two_sizes_share_is_refused_with_both(asked: str) -> None:
    short = asked.upper()
    with pytest.raises(SliceError, match=f"wanted one of {short}-layer, {short}-block"):
        find_slice(named_slices(E4B, Path("/nowhere")), asked)


@pytest.mark.parametrize("asked", ["E3B", "", "E2.54B block", "E2", "small", "x" * 1000])
def test_an_unknown_name_is_refused_with_the_known_ones(asked: str) -> None:
    with pytest.raises(SliceError, match=r"wanted one of E4B, E2B, E1.96B, "):
        find_slice(named_slices(E4B, Path("/nowhere")), asked)


def test_official_names_are_only_for_official_dimensions() -> None:
    assert list(named_slices(E4B, Path("/nowhere"))) == list(TABLE)
    assert list(named_slices(E2B, Path("/nowhere"))) == ["E2B"]
    assert is_whole(find_slice(named_slices(E2B, Path("/nowhere")), "e2b"), E2B)
    assert list(named_slices(TINY_CONFIG, Path("/nowhere"))) == ["full"]
    assert list(named_slices(replace(E4B, hidden_size=1024), Path("/nowhere"))) == ["full"]
    with pytest.raises(SliceError, match=r"found E2B, wanted one of full"):
        find_slice(named_slices(TINY_CONFIG, Path("/nowhere")), "E2B")


# --- files -----------------------------------------------------------------------------------------------------------

SMALL = {"name": "small", "layers": [0, 2, 3, 4], "ffn_sizes": [24, 24, 48, 48]}
LARGE = {"name": "large", "layers": list(range(7)), "ffn_sizes": [48] * 7}


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_checkpoint_names_its_sizes_in_matformer_json(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, TINY, random_tensors(TINY))
    with open_gemma3n(directory) as checkpoint:
        assert list(checkpoint.slices) == ["full"]
        assert checkpoint.default_slice == whole_slice(checkpoint.config, "full")
    write_json(directory / "matformer.json", {"format": "gemma-edge-matformer/1", "slices": [SMALL, LARGE]})
    with open_gemma3n(directory) as checkpoint:
        assert list(checkpoint.slices) == ["small", "large"]
        assert checkpoint.slices["small"] == Slice("small", (0, 2, 3, 4), (24, 24, 48, 48))
        assert checkpoint.default_slice.name == "large"
        assert find_slice(checkpoint.slices, "Small").name == "small"
    write_json(directory / "matformer.json", {"format": "gemma-edge-matformer/1", "slices": [SMALL]})
    with open_gemma3n(directory) as checkpoint:
        assert list(checkpoint.slices) == ["small", "full"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([], "found an array"),
        ({"slices": []}, "format: missing"),
        ({"format": "gemma-edge-matformer/2", "slices": []}, "wanted gemma-edge-matformer/1"),
        ({"format": "gemma-edge-matformer/1"}, "slices: missing"),
        ({"format": "gemma-edge-matformer/1", "slices": [], "default": "x"}, "unknown key default"),
        ({"format": "gemma-edge-matformer/1", "slices": [[]]}, "slice 0: found an array"),
        ({"format": "gemma-edge-matformer/1", "slices": [SMALL, SMALL]}, "the name small twice"),
        ({"format": "gemma-edge-matformer/1", "slices": [SMALL, {**SMALL, "name": "SMALL"}]}, "twice"),
        ({"format": "gemma-edge-matformer/1", "slices": [{**SMALL, "name": "full"}]}, "full"),
        ({"format": "gemma-edge-matformer/1", "slices": [{**SMALL, "layers": [0, 2, 3, 9]}]}, "found layer 9 after 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_matformer_json_is_checked(tmp_path: Path, value: object, found: str) -> None:
    write_json(tmp_path / "matformer.json", value)
    with pytest.raises(SliceError) as caught:
        named_slices(TINY_CONFIG, tmp_path)
    assert found in str(caught.value)


def test_a_name_of_googles_cannot_be_taken(tmp_path: Path) -> None:
    part = {"name": "e2b", "layers": list(range(35)), "ffn_sizes": [64] * 35}
    write_json(tmp_path / "matformer.json", {"format": "gemma-edge-matformer/1", "slices": [part]})
    with pytest.raises(SliceError, match=r"e2b twice"):
        named_slices(E4B, tmp_path)


def test_a_slice_file_holds_one_slice(tmp_path: Path) -> None:
    part = read_slice(write_json(tmp_path / "a.json", SMALL), TINY_CONFIG)
    assert part == Slice("small", (0, 2, 3, 4), (24, 24, 48, 48))


@pytest.mark.parametrize(
    "dims",
    [[24] * 5, ["24"] * 5, ["2 * 12", 24, "3*8", " 24 ", "1 * 2 * 12"], "[24, 2 * 12, 3 * 8, 4 * 6, 24]"],
    ids=repr,
)
def test_a_slice_file_may_be_matformer_labs(tmp_path: Path, dims: object) -> None:
    value = {"layers_to_skip": [1, 5], "ffn_hidden_dims": dims}
    part = read_slice(write_json(tmp_path / "my-mix.json", value), TINY_CONFIG)
    assert part == Slice("my-mix", (0, 2, 3, 4, 6), (24,) * 5)
    named = {**value, "name": "mine", "layers_to_skip": "[1, 5]"}
    assert read_slice(write_json(tmp_path / "a.json", named), TINY_CONFIG).name == "mine"


@pytest.mark.parametrize("skip", [None, [], "[]"])
def test_matformer_lab_may_skip_nothing(tmp_path: Path, skip: object) -> None:
    path = write_json(tmp_path / "a.json", {"layers_to_skip": skip, "ffn_hidden_dims": [8] * 7})
    assert read_slice(path, TINY_CONFIG).layers == tuple(range(7))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {**SMALL, "name": "../x"},
        {**SMALL, "name": "a b"},
        {**SMALL, "name": ""},
        {**SMALL, "name": "prefill_8"},
        {**SMALL, "name": "n" * 65},
        {**SMALL, "name": 5},
        {**SMALL, "layers": [0, 2, 3, True]},
        {**SMALL, "layers": "0-3"},
        {**SMALL, "ffn_sizes": [24, 24, 48]},
        {**SMALL, "ffn_sizes": [24, 24, 48, 1e3]},
        {**SMALL, "quality": 1},
        {"layers_to_skip": [7], "ffn_hidden_dims": [8] * 6},
        {"layers_to_skip": [1, 1], "ffn_hidden_dims": [8] * 6},
        {"layers_to_skip": [3], "ffn_hidden_dims": [8] * 6},
        {"layers_to_skip": [1], "ffn_hidden_dims": [8] * 7},
        {"layers_to_skip": [1], "ffn_hidden_dims": [8, 8, 8, 8, 8, "__import__('os')"]},
        {"layers_to_skip": [1], "ffn_hidden_dims": "[8] * 6"},
        {"layers_to_skip": [1], "ffn_hidden_dims": [8, 8, 8, 8, 8, True]},
        {"layers_to_skip": [1], "ffn_hidden_dims": [8, 8, 8, 8, 8, 8.0]},
        {"layers_to_skip": [1], "ffn_hidden_dims": [8] * 6, "layers": [1]},
    ],
    ids=repr,
)
def test_a_slice_file_that_cannot_be_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(SliceError):
        read_slice(write_json(tmp_path / "a.json", value), TINY_CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "[8",
        "[8,]",
        "[,8]",
        "[8 ** 2]",
        "[8 + 8]",
        "[-8]",
        "[0x10]",
        "[8.0]",
        "[8_]",
        "[1_2_3_4]",
        "[" + "9*" * 60 + "9]",
        "[" + "9" * 5000 + "]",
        "[\uff19]",
        "[[8]]",
        "[8]; import os",
    ],
    ids=lambda text: str(text)[:20],
)
def test_widths_are_parsed_and_never_evaluated(text: str) -> None:
    with pytest.raises(SliceError, match=r"FFN: found"):
        parse_integers(text, "FFN")


@given(st.text(alphabet="[]0123456789_* ,", max_size=30))
def test_any_list_of_widths_parses_or_is_refused(text: str) -> None:
    try:
        values = parse_integers(text, "FFN")
    except SliceError:
        return
    assert len(values) == (text.count(",") + 1 if any(map(str.isdigit, text)) else 0)


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3GB", Budget(3e9, "bytes")),
        ("3 gb", Budget(3e9, "bytes")),
        ("1.5GiB", Budget(1.5 * 2**30, "bytes")),
        ("900MB", Budget(9e8, "bytes")),
        ("512MiB", Budget(2.0**29, "bytes")),
        ("3.0B", Budget(3e9, "parameters")),
        ("2b", Budget(2e9, "parameters")),
        ("900M", Budget(9e8, "parameters")),
    ],
)
def test_a_budget_is_parameters_or_bytes(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "3", "GB", "-3GB", "3 G B", "1e9B", "nanB", "3TB", "3,0B", "٣B", "9" * 500 + "B"])
def test_a_budget_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"wanted such as 3GB \(of memory\) or 3.0B \(effective parameters\)"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ("100B", "E4B"),
        ("3.98050B", "E4B"),
        ("3.98B", "E3.59B"),  # its accuracy is stated above the main model's, and as high as E3.79B's
        ("3.5B", "E3.39B"),
        ("3.3B", "E3.18B"),  # 61.8 against 60.7 for E3.24B, which is larger
        ("3.0B", "E2.98B-layer"),
        ("2.7B", "E2.69B"),
        ("2.6B", "E2.54B"),
        ("2.0B", "E1.96B"),
        ("1.91B", "E2B"),
    ],
)
def test_the_best_official_size_within_a_number_of_parameters(budget: str, name: str) -> None:
    model = Model(E4B, named_slices(E4B, Path("/nowhere")))
    assert choose_slice(model, parse_budget(budget), cost_in(8)).name == name


def test_memory_counts_what_each_token_reads() -> None:
    assert memory_bytes(E4B, 8) == 3_980_491_248 + 537_395_200
    assert memory_bytes(E2B, 4) == (1_905_495_648 + 537_395_200) // 2


@pytest.mark.parametrize(("bits", "name"), [(8.0, "E2.49B"), (4.0, "E4B"), (9.0, "E1.96B")])
def test_the_best_official_size_within_an_amount_of_memory(bits: float, name: str) -> None:
    model = Model(E4B, named_slices(E4B, Path("/nowhere")))
    budget = {8.0: "3.05GB", 4.0: "3GB", 9.0: "2.85GB"}[bits]
    assert choose_slice(model, parse_budget(budget), cost_in(bits)).name == name


@pytest.mark.parametrize("budget", ["1.9B", "1GB"])
def test_a_budget_below_the_smallest_size_names_it(budget: str) -> None:
    model = Model(E4B, named_slices(E4B, Path("/nowhere")))
    with pytest.raises(SliceError, match=r"for E2B, the smallest size"):
        choose_slice(model, parse_budget(budget), cost_in(8))


def test_sizes_without_a_stated_accuracy_rank_by_parameters() -> None:
    parts = {
        "a": Slice("a", (0, 3, 4), (8, 8, 8)),
        "b": Slice("b", (0, 1, 3, 4), (8, 8, 8, 8)),
        "large": whole_slice(TINY_CONFIG, "large"),
    }
    model = Model(TINY_CONFIG, parts)
    cost = {name: effective_parameters(slice_config(TINY_CONFIG, part)) for name, part in parts.items()}
    assert cost["a"] < cost["b"] < cost["large"]
    for limit, name in ((cost["large"], "large"), (cost["large"] - 1, "b"), (cost["b"], "b"), (cost["b"] - 1, "a")):
        assert choose_slice(model, Budget(limit, "parameters"), cost_in(8)).name == name
