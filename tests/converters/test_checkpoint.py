from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    TINY,
    TINY_MULTIMODAL,
    as_float32,
    count_bytes_read,
    random_tensors,
    tensor_shapes,
    write_checkpoint,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.families import open_checkpoint
from converters.gemma3n.family import open_gemma3n
from toolkit.base.errors import CheckpointError
from toolkit.bundle.manifest import CHECKPOINT_GROUPS

Tensors = dict[str, NDArray[np.generic]]

MULTIMODAL_PREFIXES = ("model.language_model.", "language_model.model.")


def write_multimodal(directory: Path, prefix: str, tower: str = "model.") -> Path:
    tensors = random_tensors(TINY, prefix=prefix, unused_kv=True)
    for name in ("vision_tower.timm_model.conv_stem.conv.weight", "embed_vision.embedding.weight"):
        tensors[tower + name] = np.full((2, 3), 0x3F80, np.uint16)
    for name in ("audio_tower.conformer.0.norm.weight", "embed_audio.embedding.weight"):
        tensors[tower + name] = np.full((5,), 0x3F80, np.uint16)
    return write_checkpoint(directory, TINY_MULTIMODAL, tensors)


@pytest.mark.parametrize("dtype", ["uint16", "float16", "float32"])
def test_every_tensor_reads_as_float32_under_its_canonical_name(tmp_path: Path, dtype: str) -> None:
    tensors = random_tensors(TINY, dtype=dtype)
    with open_gemma3n(write_checkpoint(tmp_path, TINY, tensors)) as checkpoint:
        assert {f"model.{name}" for name in checkpoint.tensors} == set(tensors)
        for name, info in checkpoint.tensors.items():
            wanted = as_float32(tensors[info.name])
            assert checkpoint.shape(name) == wanted.shape
            assert np.array_equal(checkpoint.read(name), wanted)
        wanted = as_float32(tensors["model.layers.1.mlp.down_proj.weight"])
        assert np.array_equal(checkpoint.read("layers.1.mlp.down_proj.weight", (3, 9), (5, 40)), wanted[3:9, 5:40])


@pytest.mark.parametrize("prefix", MULTIMODAL_PREFIXES)
@pytest.mark.parametrize("tower", ["model.", ""])
def test_names_of_old_and_new_releases_become_the_same(tmp_path: Path, prefix: str, tower: str) -> None:
    with open_gemma3n(write_multimodal(tmp_path, prefix, tower)) as checkpoint:
        assert checkpoint.architecture == "Gemma3nForConditionalGeneration"
        assert set(tensor_shapes(TINY, unused_kv=True)) < set(checkpoint.tensors)
        assert checkpoint.read("embed_vision.embedding.weight").sum() == 6
        assert checkpoint.shape("vision_tower.timm_model.conv_stem.conv.weight") == (2, 3)


def test_a_text_model_may_keep_the_multimodal_prefix(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, prefix="model.language_model.")
    assert open_gemma3n(write_checkpoint(tmp_path, TINY, tensors)).architecture == "Gemma3nForCausalLM"


def test_every_tensor_is_in_exactly_one_group(tmp_path: Path) -> None:
    with open_gemma3n(write_multimodal(tmp_path, "model.language_model.")) as checkpoint:
        groups = {group.name: group for group in checkpoint.groups}
        assert tuple(groups) == CHECKPOINT_GROUPS
        names = [name for group in groups.values() for name in group.tensors]
        assert sorted(names) == sorted(checkpoint.tensors)
        assert groups["token_embedding"].parameters == 300 * 32
        assert groups["per_layer_embedding"].parameters == 256 * 7 * 8
        assert (groups["vision"].parameters, groups["audio"].parameters) == (12, 10)
        assert all(group.stored_bytes == 2 * group.parameters for group in groups.values())


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    one = open_gemma3n(write_checkpoint(tmp_path / "one", TINY, tensors))
    many = open_gemma3n(
        write_checkpoint(tmp_path / "many", TINY, tensors, shards=[sorted(tensors)[part::3] for part in range(3)])
    )
    assert one.fingerprint() == many.fingerprint()
    for name in one.tensors:
        assert np.array_equal(one.read(name), many.read(name))


# --- what must be there ----------------------------------------------------------------------------------------------


def broken(directory: Path, change: Callable[[Tensors], object]) -> str:
    tensors = random_tensors(TINY)
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        open_gemma3n(write_checkpoint(directory, TINY, tensors))
    return str(caught.value)


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    error = broken(tmp_path, lambda tensors: [tensors.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)])
    assert "tensors missing: layers.0.mlp.up_proj.weight, layers.1.mlp.up_proj.weight" in error
    assert "(5 in all)" in error and "layers.4" not in error


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    extra = np.zeros((2, 2), np.uint16)
    error = broken(tmp_path, lambda tensors: tensors.update({"model.layers.7.norm.weight": extra, "adapter": extra}))
    assert "tensors unknown: adapter, model.layers.7.norm.weight" in error


def test_towers_in_a_text_model_are_unknown(tmp_path: Path) -> None:
    name = "model.vision_tower.timm_model.conv_stem.conv.weight"
    assert f"tensors unknown: {name}" in broken(tmp_path, lambda t: t.update({name: np.zeros(2, np.uint16)}))


def test_wrong_shapes_are_named_with_both_shapes(tmp_path: Path) -> None:
    error = broken(tmp_path, lambda t: t.update({"model.norm.weight": np.zeros((1, 32), np.uint16)}))
    assert "tensors of the wrong shape: norm.weight [1, 32] instead of [32]" in error


def test_types_that_are_no_weights_are_named(tmp_path: Path) -> None:
    error = broken(tmp_path, lambda t: t.update({"model.norm.weight": np.zeros(32, np.int64)}))
    assert "tensors not of BF16, F16, F32: norm.weight I64" in error


def test_all_faults_come_in_one_error(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        tensors["model.extra"] = np.zeros(1, np.uint16)
        tensors["model.layers.0.altup.correct_output_scale"] = np.zeros(3, np.uint16)

    error = broken(tmp_path, change)
    assert "missing" in error and "unknown" in error and "shape" in error
    assert "\n" not in error


def test_text_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.language_model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]

    assert "wanted" in broken(tmp_path, change)


def test_a_checkpoint_without_a_token_embedding_says_what_it_looks_for(tmp_path: Path) -> None:
    error = broken(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert "found no embed_tokens.weight, wanted model.language_model.embed_tokens.weight or" in error


def test_a_tower_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, prefix="model.language_model.")
    tensors |= {f"{prefix}embed_audio.x": np.zeros(1, np.uint16) for prefix in ("", "model.")}
    with pytest.raises(CheckpointError, match=r"found embed_audio.x and model.embed_audio.x, wanted one of them"):
        open_gemma3n(write_checkpoint(tmp_path, TINY_MULTIMODAL, tensors))


def test_keys_and_values_that_nobody_reads_may_be_stored_or_not(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, unused_kv=True)
    checkpoint = open_gemma3n(write_checkpoint(tmp_path / "all", TINY, tensors))
    assert checkpoint.shape("layers.6.self_attn.k_proj.weight") == (16, 32)
    del tensors["model.layers.6.self_attn.k_proj.weight"]
    open_gemma3n(write_checkpoint(tmp_path / "some", TINY, tensors))
    tensors["model.layers.5.self_attn.k_proj.weight"] = np.zeros((16, 31), np.uint16)
    with pytest.raises(CheckpointError, match=r"wrong shape: layers.5.self_attn.k_proj"):
        open_gemma3n(write_checkpoint(tmp_path / "wrong", TINY, tensors))


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"])
def test_an_exact_copy_of_the_tied_output_matrix_is_left_out(tmp_path: Path, name: str) -> None:
    tensors = random_tensors(TINY)
    plain = open_gemma3n(write_checkpoint(tmp_path / "plain", TINY, tensors))
    copied = {**tensors, name: tensors["model.embed_tokens.weight"]}
    checkpoint = open_gemma3n(write_checkpoint(tmp_path / "copied", TINY, copied))
    assert set(checkpoint.tensors) == set(plain.tensors)
    assert checkpoint.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("change", ["value", "shape"])
def test_an_output_matrix_of_its_own_is_refused(tmp_path: Path, change: str) -> None:
    tensors = random_tensors(TINY)
    head = tensors["model.embed_tokens.weight"].copy()
    if change == "value":
        head[-1, -1] ^= 1
    tensors["lm_head.weight"] = {"value": head, "shape": head[:-1]}[change]
    with pytest.raises(CheckpointError, match=r"lm_head.weight: found values that differ from the token embedding's"):
        open_gemma3n(write_checkpoint(tmp_path, TINY, tensors))


def test_a_copy_of_the_output_matrix_in_another_type_is_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    head = as_float32(tensors["model.embed_tokens.weight"])
    directory = write_checkpoint(tmp_path, {**TINY, "tie_word_embeddings": False}, {**tensors, "lm_head.weight": head})
    with open_gemma3n(directory) as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors
    head[5, 5] += 1
    write_checkpoint(tmp_path, TINY, {**tensors, "lm_head.weight": head})
    with pytest.raises(CheckpointError, match="values that differ"):
        open_gemma3n(tmp_path)


def test_an_output_matrix_alone_stands_for_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    plain = open_gemma3n(write_checkpoint(tmp_path / "plain", TINY, tensors))
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    kept = open_gemma3n(write_checkpoint(tmp_path / "kept", TINY, tensors))
    assert np.array_equal(kept.read("embed_tokens.weight"), plain.read("embed_tokens.weight"))
    assert kept.fingerprint() == plain.fingerprint()


def test_an_untied_model_without_its_output_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings: found false, and no lm_head\.weight"):
        open_gemma3n(write_checkpoint(tmp_path, {**TINY, "tie_word_embeddings": False}, random_tensors(TINY)))


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_a_quantization_left_over_16_bit_weights_is_a_warning(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(TINY)
    open_gemma3n(write_checkpoint(tmp_path, {**TINY, key: {"quant_method": "bitsandbytes"}}, tensors))
    assert "states a quantization, but its weights are not quantised" in caplog.text


def test_quantised_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48 * 16, 1), np.uint8)
    config = {**TINY, "quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(CheckpointError, match="quantised already: convert the 16-bit checkpoint"):
        open_gemma3n(write_checkpoint(tmp_path, config, tensors))


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "module._orig_mod."]
)
def test_the_prefix_that_a_trainers_wrapper_left_is_named(tmp_path: Path, wrapper: str) -> None:
    tensors = {wrapper + name: tensor for name, tensor in random_tensors(TINY).items()}
    with pytest.raises(CheckpointError, match=f"found {wrapper}model.embed_tokens.*strip {wrapper} from every name"):
        open_gemma3n(write_checkpoint(tmp_path, TINY, tensors))


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_base_model_has_no_outer_prefix(tmp_path: Path, prefix: str) -> None:
    architecture, outer = ("Gemma3nTextModel", TINY) if not prefix else ("Gemma3nModel", TINY_MULTIMODAL)
    config = {**outer, "architectures": [architecture]}
    tensors = random_tensors(TINY, prefix=prefix)
    with open_checkpoint(write_checkpoint(tmp_path, config, tensors)) as checkpoint:
        assert checkpoint.architecture == outer["architectures"][0]  # type: ignore[index]


def test_a_checkpoint_without_architectures_is_known_by_its_model_type(tmp_path: Path) -> None:
    config = {key: value for key, value in TINY.items() if key != "architectures"}
    with open_checkpoint(write_checkpoint(tmp_path, config, random_tensors(TINY))) as checkpoint:
        assert checkpoint.architecture == "Gemma3nForCausalLM"
    write_checkpoint(tmp_path, {**config, "model_type": "llama"}, random_tensors(TINY))
    with pytest.raises(CheckpointError, match="architectures: found llama, wanted Gemma3n"):
        open_checkpoint(tmp_path)


def test_a_trainers_folder_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-500", TINY, random_tensors(TINY))
    with pytest.raises(CheckpointError, match="name the checkpoint in it: checkpoint-500"):
        open_checkpoint(tmp_path)


@pytest.mark.reference
@pytest.mark.parametrize("base", [False, True])
def test_a_tied_model_saved_by_safetensors_alone_opens(tmp_path: Path, base: bool) -> None:
    transformers = pytest.importorskip("transformers")
    save_model = pytest.importorskip("safetensors.torch").save_model
    keys = {key: value for key, value in TINY.items() if key not in ("architectures", "model_type")}
    model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**keys))
    model.save_pretrained(tmp_path)
    if base:
        model.model.save_pretrained(tmp_path)
    else:
        save_model(model, str(tmp_path / "model.safetensors"))
    with open_checkpoint(tmp_path) as checkpoint:
        embedding = checkpoint.read("embed_tokens.weight")  # type: ignore[attr-defined]
        assert np.array_equal(embedding, model.get_input_embeddings().weight.detach().numpy())


# --- identity --------------------------------------------------------------------------------------------------------


def fingerprint_of(directory: Path) -> str:
    with open_gemma3n(directory) as checkpoint:
        return checkpoint.fingerprint()


def test_the_fingerprint_changes_with_any_bit_that_counts(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    base = fingerprint_of(write_checkpoint(tmp_path / "base", TINY, tensors))
    assert fingerprint_of(write_checkpoint(tmp_path / "again", dict(reversed(TINY.items())), tensors)) == base
    reordered = dict(reversed(tensors.items()))
    assert fingerprint_of(write_checkpoint(tmp_path / "order", TINY, reordered)) == base
    assert fingerprint_of(write_checkpoint(tmp_path / "config", {**TINY, "sliding_window": 5}, tensors)) != base
    tensors["model.norm.weight"] = np.bitwise_xor(tensors["model.norm.weight"].view(np.uint16), np.uint16(1))
    assert fingerprint_of(write_checkpoint(tmp_path / "bit", TINY, tensors)) != base


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_the_fingerprint_of_a_large_tensor_reads_pieces_all_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    tensors = random_tensors({**TINY, "vocab_size": 100_000})
    table = tensors["model.embed_tokens.weight"].view(np.uint16)
    base = open_gemma3n(write_checkpoint(tmp_path / "base", {**TINY, "vocab_size": 100_000}, tensors))
    count = count_bytes_read(monkeypatch)
    fingerprint = base.fingerprint()
    assert count() < table.nbytes / 10
    changed = table.copy()
    changed.reshape(-1)[int(place * (table.size - 1))] ^= 1
    tensors["model.embed_tokens.weight"] = changed
    other = write_checkpoint(tmp_path / "other", {**TINY, "vocab_size": 100_000}, tensors)
    assert (fingerprint_of(other) != fingerprint) == (place != 0.5)
    tensors["model.embed_tokens.weight"] = table + np.uint16(1)
    assert fingerprint_of(write_checkpoint(tmp_path / "tuned", {**TINY, "vocab_size": 100_000}, tensors)) != fingerprint


def test_stop_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, {**TINY, "eos_token_id": 1}, random_tensors(TINY))
    assert open_gemma3n(directory).config.eos_token_ids == (1,)
    before = fingerprint_of(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106], "top_k": 64}))
    assert open_gemma3n(directory).config.eos_token_ids == (1, 106)
    assert fingerprint_of(directory) != before


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/no/such/place", "./nowhere", "nowhere", "a/b/c", "~/x", "..", "owner/../x", "owner/", ""]
)
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    with pytest.raises(CheckpointError):
        open_checkpoint(Path("owner/name"))


def test_a_file_is_refused_in_favour_of_its_directory(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, TINY, random_tensors(TINY))
    with pytest.raises(CheckpointError, match=r"wanted the directory that holds config.json"):
        open_checkpoint(directory / "model.safetensors")


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no config.json, wanted a checkpoint in Hugging Face's form"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "way_on"),
    [("adapter_config.json", "LoRA"), ("manifest.json", "bundle"), ("m.gguf", "GGUF"), ("notes.txt", "form: config")],
)
def test_what_is_no_checkpoint_gets_a_way_on(tmp_path: Path, name: str, way_on: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"found no config.json.*{way_on}"):
        open_checkpoint(tmp_path)


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_a_mutated_config_is_refused_or_still_valid(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    if not directory.exists():
        write_checkpoint(directory, TINY, random_tensors(TINY))
    text = json.dumps(TINY)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 6)))
        text = (
            text[:start]
            + data.draw(st.sampled_from(["", "0", "-", "9" * 12, "true", "null", "[", "}", '"', "1e3"]))
            + text[end:]
        )
    (directory / "config.json").write_text(text)
    try:
        open_gemma3n(directory).close()
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.reference
@pytest.mark.parametrize("naming", ["causal", "conditional", "conditional_old"])
@pytest.mark.parametrize("shards", [1, 3])
def test_checkpoints_of_transformers_open(tmp_path: Path, naming: str, shards: int) -> None:
    from oracle import PREFIXES, make_checkpoint

    load_file = pytest.importorskip("safetensors.torch").load_file
    directory = make_checkpoint(tmp_path, seed=3, naming=naming, dtype="bf16", shards=shards, unused_kv=True)  # type: ignore[arg-type]
    with open_gemma3n(directory) as checkpoint:
        for file in directory.glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                canonical = name.removeprefix(PREFIXES[naming])  # type: ignore[index]
                assert np.array_equal(checkpoint.read(canonical), tensor.float().numpy())


@pytest.mark.reference
def test_what_transformers_saves_opens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    keys = {key: value for key, value in TINY.items() if key not in ("architectures", "model_type")}
    model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**keys)).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    with open_gemma3n(tmp_path) as checkpoint:
        assert len({info.file for info in checkpoint.tensors.values()}) > 1
        state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
        assert set(checkpoint.tensors) == set(state) - {"lm_head.weight"}
        for name in checkpoint.tensors:
            assert np.array_equal(checkpoint.read(name), state[name].float().numpy())
