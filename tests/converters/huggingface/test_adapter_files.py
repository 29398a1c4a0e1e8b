"""Adapters written by hand: what is merged, tensor by tensor, and what is refused by name."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from adapter_files import PEFT, noise, write_adapter
from checkpoints import TINY, TINY_MULTIMODAL, random_tensors, safetensors_bytes, write_checkpoint
from numpy.typing import NDArray

from converters.families import open_checkpoint
from converters.huggingface.adapters.choice import AdapterChoice, parse_adapter
from converters.huggingface.adapters.updates import Factor, LowRank
from converters.huggingface.safetensors import SafetensorsFile
from toolkit.base.errors import CheckpointError, ToolkitError, UsageError

F32 = NDArray[np.float32]

ROOT = "base_model.model.model."
QUERY = "layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = random_tensors(TINY, dtype="float32", unused_kv=True)
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", TINY, tensors)


def query_factors(prefix: str = ROOT) -> dict[str, F32]:
    factors: dict[str, F32] = {}
    for layer in range(7):
        factors[f"{prefix}{QUERY.format(layer)}.lora_A.weight"] = noise(2, 32, seed=layer)
        factors[f"{prefix}{QUERY.format(layer)}.lora_B.weight"] = noise(32, 2, seed=layer)
    return factors


def read(base: Path, name: str, *choices: AdapterChoice | Path) -> F32:
    adapters = [choice if isinstance(choice, AdapterChoice) else AdapterChoice(choice) for choice in choices]
    with open_checkpoint(base, adapters=adapters) as checkpoint:
        return checkpoint.read(name)  # type: ignore[attr-defined, no-any-return]


def query(base: Path, *choices: AdapterChoice | Path) -> F32:
    return read(base, QUERY.format(1) + ".weight", *choices)


def product(factors: Mapping[str, F32], layer: int = 1, prefix: str = ROOT) -> NDArray[np.float64]:
    name = prefix + QUERY.format(layer)
    return factors[f"{name}.lora_B.weight"].astype(np.float64) @ factors[f"{name}.lora_A.weight"].astype(np.float64)


def test_a_scale_merges_so_much_of_the_change(base: Path, tmp_path: Path) -> None:
    factors = query_factors()
    adapter = write_adapter(tmp_path / "a", factors)
    for scale in (1.0, 0.5, -2.0):
        wanted = query(base) + scale * 3 * product(factors)
        np.testing.assert_allclose(query(base, AdapterChoice(adapter, scale)), wanted, rtol=1e-6)


def test_adapters_are_merged_one_after_the_other(base: Path, tmp_path: Path) -> None:
    factors = query_factors()
    first = write_adapter(tmp_path / "a", factors)
    second = write_adapter(tmp_path / "b", factors)
    wanted = query(base) + 3 * product(factors) - 1.5 * product(factors)
    np.testing.assert_allclose(query(base, first, AdapterChoice(second, -0.5)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dora", "dora-columns", "whole", "tokens"])
def test_every_part_that_is_read_has_the_bits_of_the_whole(base: Path, tmp_path: Path, kind: str) -> None:
    name, tensors, config = f"{QUERY.format(1)}.weight", dict(query_factors()), dict(PEFT)
    table = f"{ROOT}embed_tokens_per_layer"
    if kind == "dora":
        tensors |= {f"{ROOT}{QUERY.format(i)}.lora_magnitude_vector": noise(32, seed=i) for i in range(7)}
        config |= {"use_dora": True}
    elif kind == "dora-columns":
        name = "embed_tokens_per_layer.weight"
        tensors = {f"{table}.lora_embedding_A": noise(2, 256), f"{table}.lora_embedding_B": noise(56, 2)}
        tensors |= {f"{table}.lora_magnitude_vector": noise(56)}
        config |= {"use_dora": True, "target_modules": ["embed_tokens_per_layer"]}
    elif kind == "whole":
        tensors |= {f"{ROOT}layers.1.mlp.up_proj.modules_to_save.weight": noise(48, 32)}
        name = "layers.1.mlp.up_proj.weight"
    elif kind == "tokens":
        name = "embed_tokens_per_layer.weight"
        tensors |= {f"{table}.token_adapter.trainable_tokens_delta": noise(3, 56)}
        config |= {"trainable_token_indices": {"embed_tokens_per_layer": [9, 3, 200]}}
    choice = AdapterChoice(write_adapter(tmp_path / "a", tensors, config), 0.75)
    with open_checkpoint(base, adapters=[choice]) as checkpoint:
        whole = checkpoint.read(name)  # type: ignore[attr-defined]
        assert not np.array_equal(whole, read(base, name))
        for rows, columns in (((2, 11), None), (None, (5, 30)), ((3, 4), (0, 1)), ((7, 31), (8, 9)), ((4, 4), None)):
            part = checkpoint.read(name, rows, columns)  # type: ignore[attr-defined]
            np.testing.assert_array_equal(part, whole[slice(*(rows or (None,))), slice(*(columns or (None,)))])


@pytest.mark.parametrize("trained", ["model.", "model.language_model.", "language_model.model.", "language_model.", ""])
@pytest.mark.parametrize("stored", ["model.", "model.language_model."])
def test_an_adapter_fits_whatever_class_it_was_trained_on(tmp_path: Path, trained: str, stored: str) -> None:
    config = TINY if stored == "model." else TINY_MULTIMODAL
    plain = write_checkpoint(tmp_path / "base", config, random_tensors(TINY, prefix=stored, dtype="float32"))
    factors = query_factors(f"base_model.model.{trained}")
    adapter = write_adapter(tmp_path / "a", factors)
    wanted = query(plain) + 3 * product(factors, prefix=f"base_model.model.{trained}")
    np.testing.assert_allclose(query(plain, adapter), wanted, rtol=1e-5, atol=1e-6)


def test_factors_of_layers_that_only_read_others_keys_are_left_out(base: Path, tmp_path: Path) -> None:
    """Releases of transformers with these modules train them too, without effect; others do not save them."""
    bare = write_checkpoint(tmp_path / "bare", TINY, random_tensors(TINY, dtype="float32"))
    name = f"{ROOT}layers.6.self_attn.k_proj"
    extra = {f"{name}.lora_A.weight": noise(2, 32), f"{name}.lora_B.weight": noise(16, 2)}
    config = {**PEFT, "target_modules": ["q_proj"]}
    adapter = write_adapter(tmp_path / "a", {**query_factors(), **extra}, config)
    for checkpoint in (bare, base):
        assert not np.array_equal(query(checkpoint), query(checkpoint, adapter))


MLX: Mapping[str, object] = {
    "fine_tune_type": "lora",
    "num_layers": 2,
    "lora_parameters": {"rank": 2, "scale": 5.0, "dropout": 0.0},
    "model": "mlx-community/gemma-3n-E2B-it-lm-bf16",
    "iters": 1000,
    "learning_rate": 1e-05,
}


def test_adapters_of_mlx_are_merged(base: Path, tmp_path: Path) -> None:
    """The rule is that of mlx-lm's LoRALinear.fuse, DoRALinear.fuse and LoRAEmbedding.fuse."""
    up, norms = "layers.5.mlp.up_proj", "layers.5.mlp.down_proj"
    tensors = {
        f"model.language_model.{up}.lora_a": noise(32, 2),
        f"model.language_model.{up}.lora_b": noise(2, 48),
        "model.language_model.embed_tokens.lora_a": noise(300, 2),
        "model.language_model.embed_tokens.lora_b": noise(2, 32),
    }
    adapter = write_adapter(tmp_path / "lora", tensors, MLX, mlx=True)
    change = 5 * (noise(2, 48).T @ noise(32, 2).T)
    wanted = read(base, f"{up}.weight") + change
    np.testing.assert_allclose(read(base, f"{up}.weight", adapter), wanted, rtol=1e-4, atol=1e-5)
    wanted = read(base, "embed_tokens.weight") + 5 * noise(300, 2) @ noise(2, 32)
    np.testing.assert_allclose(read(base, "embed_tokens.weight", adapter), wanted, rtol=1e-4, atol=1e-5)
    tensors = {
        f"model.language_model.{norms}.lora_a": noise(48, 2),
        f"model.language_model.{norms}.lora_b": noise(2, 32),
        f"model.language_model.{norms}.m": noise(32),
    }
    adapter = write_adapter(tmp_path / "dora", tensors, {**MLX, "fine_tune_type": "dora"}, mlx=True)
    merged = read(base, f"{norms}.weight") + 5 * noise(2, 32).T @ noise(48, 2).T
    wanted = noise(32)[:, None] / np.linalg.norm(merged, axis=1, keepdims=True) * merged
    np.testing.assert_allclose(read(base, f"{norms}.weight", adapter), wanted, rtol=1e-4, atol=1e-5)
    whole = {f"model.language_model.{norms}.weight": noise(32, 48)}
    adapter = write_adapter(tmp_path / "full", whole, {**MLX, "fine_tune_type": "full"}, mlx=True)
    np.testing.assert_array_equal(read(base, f"{norms}.weight", adapter), noise(32, 48))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, 'peft_type: found IA3, wanted "LORA"'),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: pissa_niter_16, which changes the base"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: loftq, which changes the base"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication: found .*, wanted none; merge it with"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_some_new_form": True}, "unknown key.* use_some_new_form"),
        ({"velora_config": {"num_groups": 4}}, "unknown key.* velora_config"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern: found .* wanted a regular expression"),
        ({"target_modules": "q_proj["}, "target_modules: found .* wanted a regular expression"),
        ({"rank_pattern": {"q_proj": 3}}, r"lora_A.weight \[2, 32\], wanted rank 3 as adapter_config.json says"),
        ({"use_dora": True}, "wanted lora_A.weight, lora_B.weight, lora_magnitude_vector"),
        ({"target_modules": ["q_proj", "down_proj"]}, "no factors for layers.0.mlp.down_proj, which its target_mod"),
        ({"target_modules": r".*\.(q|o)_proj"}, "no factors for layers.0.self_attn.o_proj, which its target_modules"),
        ({"r": None}, "adapter_config.json, r: "),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern q_proj: found 0"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern q_proj: found 2.5"),
    ],
)
def test_a_form_that_cannot_be_merged_is_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    adapter = write_adapter(tmp_path / "a", query_factors(), {**PEFT, **change})
    with pytest.raises(CheckpointError, match=says):
        query(base, adapter)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": r"((.+)+)+!"},
        {"rank_pattern": {r"((.+)+)+!": 2}},
        {"alpha_pattern": {r"((.+)+)+!": 2}},
    ],
    ids=["targets", "ranks", "alphas"],
)
def test_patterns_that_match_without_end_are_one_error(base: Path, tmp_path: Path, change: dict[str, object]) -> None:
    adapter = write_adapter(tmp_path / "a", query_factors(), {**PEFT, **change})
    with pytest.raises(ToolkitError, match="it took more than 10 s") as caught:
        query(base, adapter)
    assert str(caught.value.file).endswith("adapter_config.json")


@pytest.mark.parametrize(("value", "alpha", "found"), [(3e38, 1e6, "-?inf"), (np.nan, 6, "nan, not a finite")])
def test_numbers_that_do_not_stay_finite_are_named_with_the_adapters_file(
    base: Path, tmp_path: Path, value: float, alpha: float, found: str
) -> None:
    factors = query_factors()
    factors[f"{ROOT}{QUERY.format(1)}.lora_B.weight"][3, 0] = value
    adapter = write_adapter(tmp_path / "a", factors, {**PEFT, "lora_alpha": alpha})
    with pytest.raises(CheckpointError, match=rf"tensor .*layers\.1\.self_attn\.q_proj.*, row 3: {found}") as caught:
        query(base, adapter)
    assert caught.value.file == str(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("mlx", [False, True])
def test_factors_without_axes_are_refused(base: Path, tmp_path: Path, *, mlx: bool) -> None:
    parts = ("lora_a", "lora_b") if mlx else ("lora_embedding_A", "lora_embedding_B")
    prefix = "model.language_model." if mlx else ROOT
    tensors = {f"{prefix}embed_tokens.{part}": np.array(1.0, np.float32) for part in parts}
    adapter = write_adapter(tmp_path / "a", tensors, MLX if mlx else PEFT, mlx=mlx)
    with pytest.raises(CheckpointError, match=r"factors \[\] and \[\] for a tensor|embed_tokens lora_embedding_A \[\]"):
        query(base, adapter)


def test_options_of_later_releases_that_are_off_do_not_matter(base: Path, tmp_path: Path) -> None:
    off: dict[str, object] = {"monteclora_config": None, "use_qalora": False, "some_list": [], "loftq_config": {}}
    adapter = write_adapter(tmp_path / "a", query_factors(), {**PEFT, **off})
    assert not np.array_equal(query(base), query(base, adapter))


UP = f"{ROOT}layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{ROOT}layers.9.mlp.up_proj.lora_A.weight": (2, 32)}, "layers.9.mlp.up_proj with lora_A.weight, wanted"),
        ({f"{ROOT}layers.0.mlp.up_proj.weight.lora_E": (2,)}, "up_proj.weight.lora_E, which the checkpoint does not"),
        ({"base_model.model.score.weight": (2, 32)}, "score.weight, which the checkpoint does not have"),
        ({"model.layers.0.mlp.up_proj.lora_A.weight": (2, 32)}, "a tensor of an unknown form, model.layers.0"),
        ({f"{UP}.lora_A.weight": (2, 32), f"{UP}.lora_B.weight": (49, 2)}, r"factors \[49, 2\] and \[2, 32\] for a"),
        ({f"{UP}.lora_A.weight": (2, 31), f"{UP}.lora_B.weight": (48, 2)}, r"factors .* for a tensor \[48, 32\]"),
        (
            {f"{UP}.lora_A.weight": (2, 32), f"{UP}.lora_B.weight": (48, 2), f"{UP}.lora_B.bias": (48,)},
            "up_proj.bias, which the checkpoint does not have",
        ),
        ({f"{ROOT}norm.modules_to_save.weight": (31,)}, r"\[31\] for a tensor \[32\]"),
        ({f"{ROOT}embed_tokens.weight": (302, 32)}, "vocabulary was not resized"),
        ({f"{ROOT}embed_tokens.weight": (300, 32)}, "other values than the token embedding, to which this model ties"),
        ({f"{ROOT}embed_tokens.token_adapter.trainable_tokens_delta": (2, 32)}, "trained tokens of model.embed_tok"),
        ({"base_model.model.model.vision_tower.x.lora_A.weight": (2, 32)}, "vision_tower.x with lora_A.weight"),
        ({f"{UP}.lora_A.weight": (2, 32), f"{UP}.lora_B.weight": ()}, r"factors \[\] and \[2, 32\] for a tensor"),
        ({f"{UP}.lora_A.weight": (2, 32), f"{UP}.lora_B.weight": (48,)}, r"factors \[48\] and \[2, 32\] for a tensor"),
    ],
)
def test_a_tensor_without_its_place_is_refused_by_name(
    base: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], says: str
) -> None:
    more = {name: noise(*shape) for name, shape in tensors.items()}
    adapter = write_adapter(tmp_path / "a", {**query_factors(), **more})
    with pytest.raises(CheckpointError, match=says):
        query(base, adapter)


def test_an_embedding_and_a_head_that_were_saved_equal_are_merged(base: Path, tmp_path: Path) -> None:
    table = noise(300, 32)
    both = {f"{ROOT}embed_tokens.weight": table, "base_model.model.lm_head.weight": table}
    adapter = write_adapter(tmp_path / "a", {**query_factors(), **both})
    np.testing.assert_array_equal(read(base, "embed_tokens.weight", adapter), table)


def test_an_adapter_of_a_smaller_model_is_refused(base: Path, tmp_path: Path) -> None:
    """E2B's attention has the shapes of E4B's: only the missing layers show it."""
    fewer = {name: factor for name, factor in query_factors().items() if ".6." not in name}
    adapter = write_adapter(tmp_path / "a", fewer)
    with pytest.raises(CheckpointError, match=r"no factors for layers.6.self_attn.q_proj.*was it trained on this mo"):
        query(base, adapter)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no adapter_config.json, wanted an adapter of PEFT or mlx-lm"),
        ({"adapter_config.json": "{}"}, "found no weights, wanted adapter_model.safetensors or adapters.safetensors"),
        ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "load it with PEFT and save it as safetensors"),
        ({"adapter_config.json": "{}", "adapters.npz": ""}, "adapters.npz is from an early mlx-lm"),
        ({"checkpoint-20/adapter_config.json": "{}"}, "name the adapter in it: checkpoint-20"),
    ],
)
def test_a_directory_without_a_whole_adapter_says_what_is_there(
    base: Path, tmp_path: Path, files: dict[str, str], says: str
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=says):
        query(base, folder)


@pytest.mark.parametrize(
    ("text", "source", "scale"), [("a/b=0.5", "a/b", 0.5), ("a/b@v1=-1e-1", "a/b@v1", -0.1), ("a/b@v1", "a/b@v1", 1.0)]
)
def test_a_scale_stands_behind_an_equals_sign(text: str, source: str, scale: float) -> None:
    assert parse_adapter(text) == AdapterChoice(source, scale)


def test_a_directory_of_exactly_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pirate=0.5", "user/pirate@main=2"):
        assert parse_adapter(name).scale != 1
        (tmp_path / name).mkdir(parents=True)
        assert parse_adapter(name) == AdapterChoice(name)


@pytest.mark.parametrize("text", ["x=", "x=half", "x=nan", "x=0", "x=inf", "x=1001"])
def test_a_scale_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"adapter"):
        parse_adapter(text)


def test_an_adapter_beside_the_weights_is_merged_by_naming_the_checkpoint_again(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", TINY, random_tensors(TINY, dtype="float32"))
    plain = query(checkpoint)
    write_adapter(tmp_path / "a", query_factors())
    for item in (tmp_path / "a").iterdir():
        item.rename(checkpoint / item.name)
    with pytest.raises(CheckpointError, match=rf"merge it with --adapter {checkpoint}, or remove it"):
        query(checkpoint)
    other = write_adapter(tmp_path / "other", query_factors())
    with pytest.raises(CheckpointError, match="merge it with --adapter"):
        query(checkpoint, other)
    np.testing.assert_allclose(
        query(checkpoint, checkpoint), plain + 3 * product(query_factors()), rtol=1e-5, atol=1e-6
    )


def test_a_file_that_changes_while_it_is_read_is_noticed(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", query_factors())
    with open_checkpoint(base, adapters=[AdapterChoice(adapter)]) as checkpoint:
        checkpoint.require_unchanged()
        with (adapter / "adapter_model.safetensors").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: .*changed since it was opened"):
            checkpoint.require_unchanged()


def test_a_part_takes_memory_for_that_part_alone(tmp_path: Path) -> None:
    """A tensor of 64 MiB, of which a sixtieth is read: the whole, or its whole change, would show."""
    path = tmp_path / "factors.safetensors"
    path.write_bytes(safetensors_bytes({"b": noise(8192, 8), "a": noise(8, 2048)}))
    file = SafetensorsFile(path)
    update = LowRank(Factor(file, file.tensors["b"]), Factor(file, file.tensors["a"]), 1.0)

    def zeros(rows: tuple[int, int] | None, columns: tuple[int, int] | None) -> F32:
        assert rows is not None
        return np.zeros((rows[1] - rows[0], 2048), np.float32)

    tracemalloc.start()
    update.read(zeros, (8192, 2048), (0, 128), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
