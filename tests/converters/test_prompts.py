"""What a fine-tune's tokenizer, template and generation_config.json say of the text it generates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, random_tensors, write_checkpoint
from paths import EXAMPLE

from converters.convert import convert
from converters.families import open_checkpoint
from converters.gate import judge
from converters.request import ConvertRequest
from toolkit.base.errors import CheckpointError, UsageError
from toolkit.bundle.manifest import Manifest, SamplingRecord
from toolkit.litertlm import schema, tables
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import SessionSettings

CHATML = (
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The trained example."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint"))


def converted(checkpoint: Path) -> Manifest:
    request = ConvertRequest(
        checkpoint, checkpoint.parent / "bundle", groups=("text",), context=64, prefill_sizes=(8,)
    )  # fmt: skip
    return convert(request, gate=None).manifest


@pytest.mark.slow
@pytest.mark.parametrize("stated", [None, {}, {"eos_token_id": 1}, {"eos_token_id": [1]}])
def test_the_token_that_ends_a_turn_stops_an_answer(
    checkpoint: Path, stated: dict[str, object] | None, caplog: pytest.LogCaptureFixture
) -> None:
    change_json(checkpoint / "config.json", lambda config: config.update(eos_token_id=1))
    (checkpoint / "generation_config.json").unlink()
    if stated is not None:
        (checkpoint / "generation_config.json").write_text(json.dumps(stated))
    assert converted(checkpoint).text.stop_token_ids == (1, 5)
    assert "ends a turn with token 5, which becomes a stop token too" in caplog.text


def test_a_stated_stop_token_needs_no_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert converted(checkpoint).text.stop_token_ids == (1, 5)
    assert "stop token" not in caplog.text


@pytest.mark.slow
def test_an_end_that_is_no_token_is_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkpoint / "chat_template.jinja").write_text(CHATML.replace("END", "'<|im_end|>\n'"))
    assert converted(checkpoint).text.stop_token_ids == (1, 5)
    assert "ends a turn with <|im_end|>, which is not a token: answers may not stop" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}, SamplingRecord(0.7, 40, 0.9)),
        ({"do_sample": True}, SamplingRecord(1.0, 50, 1.0)),
        ({"do_sample": True, "top_k": None}, SamplingRecord(1.0, 0, 1.0)),
        ({"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.2}, SamplingRecord(1.0, 50, 1.0, 0.05, 1.2)),
        ({"do_sample": True, "min_p": None, "repetition_penalty": None}, SamplingRecord(1.0, 50, 1.0)),
        ({"repetition_penalty": 1.1, "min_p": 0.5, "top_k": 40}, SamplingRecord(1.0, 1, 1.0, repeat_penalty=1.1)),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.0}, None),
        ({"temperature": 0.7}, None),
    ],
)
def test_sampling_is_kept_and_exported(
    checkpoint: Path, stated: dict[str, object], kept: SamplingRecord | None, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], **stated}))
    manifest = converted(checkpoint)
    assert manifest.text.sampling == kept
    path = checkpoint.parent / "x.litertlm"
    export_litertlm(checkpoint.parent / "bundle", path)
    begin, end = next((s.begin, s.end) for s in sections_of(path) if s.type == schema.LLM_METADATA)
    metadata = schema.unpack_llm_metadata(path.read_bytes()[begin:end])
    expected = schema.MOST_LIKELY if kept is None else kept
    assert metadata.sampling == SamplingRecord(expected.temperature, expected.top_k or 3072, expected.top_p)
    lost = {"min_p": expected.min_p > 0, "repetition penalty": expected.repeat_penalty != 1}
    said = [record.getMessage() for record in caplog.records if "the file goes without" in record.getMessage()]
    assert len(said) == any(lost.values())
    assert all((name in said[0]) == is_lost for name, is_lost in lost.items() if said)


def sections_of(path: Path) -> Sequence[tables.SectionRecord]:
    data = path.read_bytes()
    return tables.unpack_container_metadata(data[32 : int.from_bytes(data[24:32], "little")]).sections


def test_impossible_sampling_is_refused(checkpoint: Path) -> None:
    stated = checkpoint / "generation_config.json"
    good = json.loads(stated.read_text())
    for key, value in (("temperature", 0.0), ("min_p", 1.5), ("repetition_penalty", 0)):
        stated.write_text(json.dumps({**good, key: value}))
        with pytest.raises(CheckpointError, match=key):
            converted(checkpoint)


def add_token(checkpoint: Path, token: int) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": token, "content": "<tool_call>"})
        tokenizer["model"]["vocab"]["<tool_call>"] = token

    change_json(checkpoint / "tokenizer.json", change)


def test_added_tokens_of_a_multimodal_model_are_refused(checkpoint: Path) -> None:
    add_token(checkpoint, 3327)
    with pytest.raises(CheckpointError, match=r"<tool_call> \(3327\), which are ids of images and sounds"):
        converted(checkpoint)


def spell(checkpoint: Path, spellings: Mapping[int, str]) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        for token, text in spellings.items():
            tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": token, "content": text})
            tokenizer["model"]["vocab"][text] = token

    change_json(checkpoint / "tokenizer.json", change)


TABLES = {token: f"<extra_{token}>" for token in range(3072, 3328) if token not in (3072, 3073, 3200, 3201)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "spellings", [TABLES, {token: f"<unused{token - 3072}>" for token in (3080, 3081, 3300)}], ids=["all", "unused"]
)
def test_a_published_tokenizer_spells_ids_of_the_towers_tables(checkpoint: Path, spellings: dict[int, str]) -> None:
    """Gemma 3n's embedding has 256 rows behind those of text, which its tokenizer may spell: nobody added them."""
    spell(checkpoint, spellings)
    assert converted(checkpoint).text.text_vocab_size is None
    bundle = Bundle(checkpoint.parent / "bundle")
    tokenizer = bundle.tokenizer()
    assert all(token < 3072 for token in bundle.encode(tokenizer, "Once upon a time"))
    assert bundle.drawable_ids(tokenizer) == 3072
    with pytest.raises(UsageError):
        bundle.encode(tokenizer, next(iter(spellings.values())))


def test_a_token_added_to_some_of_the_towers_ids_is_refused(checkpoint: Path) -> None:
    spell(checkpoint, {token: text for token, text in TABLES.items() if token < 3300})
    with pytest.raises(CheckpointError, match=r"<extra_3074> \(3074\).*which are ids of images and sounds"):
        converted(checkpoint)


def test_a_text_model_with_the_published_tokenizer_draws_no_id_of_images(tmp_path: Path) -> None:
    config = {**TINY, "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144, "hidden_size": 8}
    config |= {"num_hidden_layers": 1, "layer_types": ["full_attention"], "intermediate_size": [8]}
    config |= {"activation_sparsity_pattern": [0.0], "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 2}
    path = write_checkpoint(tmp_path / "checkpoint", config, random_tensors(config))
    with open_checkpoint(path) as opened:
        everything = {token: f"w{token}" for token in range(262_400)}
        assert opened.text_vocab_size(everything) is None
        assert opened.text_vocab_size({**everything, 262_400: "<think>"}) == 262_401


def test_added_tokens_of_a_text_model_are_text(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", TINY, random_tensors(TINY))
    vocabulary = {f"w{i}": i for i in range(256)}
    tokens = [{"id": i, "content": text, "special": True} for i, text in ((256, "<think>"), (297, "<tool_call>"))]
    added = [{"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **t} for t in tokens]
    model = {"type": "WordLevel", "vocab": vocabulary | {t["content"]: t["id"] for t in tokens}, "unk_token": "w0"}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    assert converted(path).text.text_ids == 298
    bundle = Bundle(path.parent / "bundle")
    assert bundle.encode(bundle.tokenizer(), "<tool_call>") == [297]
    assert bundle.drawable_ids(bundle.tokenizer()) == 298
    settings = SessionSettings(threads=1, weight_cache="memory")
    with open_checkpoint(path) as opened:
        report = judge(bundle.path, opened, settings, text="<tool_call><think>" * 12)
    assert [passage.text for passage in report.passages] and report.sizes["full"].quality.tokens == 12


@pytest.mark.slow
def test_a_text_bundle_still_refuses_images_spelled_in_prompts(checkpoint: Path) -> None:
    assert converted(checkpoint).text.text_vocab_size is None
    bundle = Bundle(checkpoint.parent / "bundle")
    with pytest.raises(UsageError, match="image"):
        bundle.encode(bundle.tokenizer(), "<image_soft_token>")
