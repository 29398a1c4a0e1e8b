"""The synthetic checkpoint: real enough to open, to convert and to load in transformers; and the tables of results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_convert, bench_decode, synthetic
from benchmarks.engine_run import EngineRun
from converters.gemma.tensors import unused_kv_tensors
from converters.gemma3n.config.audio import audio_tensors, parse_audio_config
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.tensors import text_tensors
from toolkit.results.json_lines import read_results


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "tiny"
    synthetic.write_synthetic(path, "tiny")
    return path


def test_the_same_preset_and_seed_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    synthetic.write_synthetic(tmp_path / "again", "tiny")
    synthetic.write_synthetic(tmp_path / "other", "tiny", seed=1)
    written = (tiny / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == written
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != written


def test_the_checkpoint_opens_with_the_config_of_its_preset(tiny: Path) -> None:
    with open_gemma3n(tiny) as checkpoint:
        assert checkpoint.config == synthetic.PRESETS["tiny"]


def test_matrices_keep_the_magnitude_of_activations_and_norms_are_near_one(tiny: Path) -> None:
    with open_gemma3n(tiny) as checkpoint:
        gate = checkpoint.read("layers.2.mlp.gate_proj.weight")
        per_layer = checkpoint.read("embed_tokens_per_layer.weight")
        norm = checkpoint.read("layers.2.input_layernorm.weight")
    config = synthetic.PRESETS["tiny"]
    assert gate.std() == pytest.approx(config.hidden_size**-0.5, rel=0.05)
    assert per_layer.std() == pytest.approx(config.ple_size**-0.5, rel=0.05)
    assert np.abs(norm - 1).max() < 0.3


def test_a_sharded_checkpoint_opens_and_holds_the_same_tensors(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SHARDED", ("tiny",))
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 300_000)
    synthetic.write_synthetic(tmp_path / "sharded", "tiny")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    with open_gemma3n(tmp_path / "sharded") as sharded, open_gemma3n(tiny) as whole:
        assert sharded.tensors.keys() == whole.tensors.keys()


def test_the_published_class_has_the_same_weights_under_its_own_names(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "published"
    synthetic.write_synthetic(path, "tiny", architecture="Gemma3nForConditionalGeneration")
    name = "layers.1.altup.correct_output_scale"
    with open_gemma3n(path) as published, open_gemma3n(tiny) as causal:
        assert published.config == causal.config and published.tensors.keys() == causal.tensors.keys()
        np.testing.assert_array_equal(published.read(name), causal.read(name))


@pytest.mark.parametrize("preset", ["e2b", "e4b"])
def test_published_presets_have_the_published_number_of_weights(preset: str) -> None:
    config = synthetic.PRESETS[preset]
    tensors = text_tensors(config) | unused_kv_tensors(config)
    # The text models' tensors as the published checkpoints hold them, K/V weights that nothing reads included.
    published = {"e2b": 4_456_156_768, "e4b": 6_866_696_688}
    assert sum(math.prod(shape) for shape in tensors.values()) == published[preset]


def test_the_tower_for_sound_is_the_published_one() -> None:
    config = synthetic.PRESETS["e4b"]
    tower = parse_audio_config(synthetic._audio_json(config), config, "config.json")
    assert (tower.vocab_offset, tower.padding_token_id) == (262_272, 262_399)
    assert sum(math.prod(shape) for shape in audio_tensors(tower).values()) == 684_694_048


@pytest.mark.reference
def test_transformers_loads_it_with_no_tensor_missing_or_left_over(tiny: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tiny, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] - {"lm_head.weight"} and not loading["unexpected_keys"]
    with torch.no_grad():
        logits = model(torch.tensor([[2, 5, 300, 3071]])).logits
    assert torch.isfinite(logits).all() and logits.std() > 0.1


@pytest.mark.slow
def test_bench_convert_measures_a_conversion_and_appends_its_result(tiny: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ["--preset", "tiny", "--checkpoint", str(tiny), "--recipes", "int8", "--repeats", "1"]
    also = ["--also=--search absmax --context 64"]
    bench_convert.main([*arguments, *also, "--scratch", str(tmp_path), "--output", str(results)])
    record, other = read_results(results).records
    assert record.script is not None and other.script is not None
    assert record.script.conditions == {"system": "gemma-edge", "recipe": "int8"}
    assert other.script.conditions["system"] == "gemma-edge --search absmax --context 64"
    (figures,) = [item.figures for item in record.iterations]
    assert 0 < figures["convert_s"] < 120
    assert 20e6 < figures["peak_rss_bytes"] < 1e9
    assert figures["output_bytes"] > 969_104 and record.device.cpus >= 1


def test_bench_decode_compares_ours_with_the_peer_of_the_same_recipe(tmp_path: Path) -> None:
    file = tmp_path / "model.litertlm"
    file.write_bytes(bytes(1000))

    def outcome(system: str, prefill: float, decode: float, recipe: str = "int8") -> bench_decode.Outcome:
        run = EngineRun(0.1, 0.5, 512, prefill, 128, decode, 10**8)
        entrant = bench_decode.Entrant(system, bench_decode.Runtime("an engine", "engine_run"), recipe, file)
        return bench_decode.Outcome(entrant, run, (run, run, run))

    others = [outcome("litert-torch", 200.0, 20.0), outcome("llama.cpp", 100.0, 60.0)]
    lines = bench_decode.table([outcome("gemma-edge", 300.0, 30.0), *others, outcome("llama.cpp", 1.0, 1.0, "int4")])
    ours, exporter, *_ = [[cell.strip() for cell in line.split("|")[1:]] for line in lines.splitlines()[2:]]
    rates = ["300 (300 to 300)", "30.0 (30.0 to 30.0)"]
    assert ours[:6] == ["int8", "gemma-edge in an engine", *rates, "1.50, 1.50", "3.00, 0.50"]
    rates = ["200 (200 to 200)", "20.0 (20.0 to 20.0)"]
    assert exporter[:6] == ["int8", "litert-torch in an engine", *rates, "", ""]


def test_with_vision_the_published_tower_is_there_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters.gemma3n.config import vision as vision_config
    from converters.gemma3n.config import vision_blocks
    from converters.gemma3n.plan.vision import read_vision_config

    small = (("er_r1_k3_s2_e1_c8",), ("uir_r1_a3_k5_s2_e2_c16", "mqa_r1_k3_h2_v2_s1_d8_c16"))
    monkeypatch.setattr(vision_config, "STAGES", small)
    synthetic.write_synthetic(tmp_path / "v", "tiny", architecture="Gemma3nForConditionalGeneration", vision=True)
    with open_gemma3n(tmp_path / "v") as checkpoint:
        config = read_vision_config(checkpoint)
        assert config.stages == vision_blocks.parse_stages(small, 64)
        kernel = checkpoint.read("vision_tower.timm_model.blocks.1.0.pw_exp.conv.weight")
    assert kernel.std() == pytest.approx(8**-0.5, rel=0.3)
